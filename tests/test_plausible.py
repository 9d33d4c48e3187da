"""Numbers in other units than the data's: found in samples whatever their quality, and converted if told how."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import (
    VPSDE,
    Condition,
    Dataset,
    GaussianMixture,
    Likelihood,
    Run,
    TrainConfig,
    fit,
    load_data,
)
from scoresde.codec import Affine
from scoresde.core.errors import DataError, UsageError
from scoresde.metrics import frechet
from scoresde.run.plausible import check_units, in_data_units, read_units, warn_of_units
from scoresde.study.evaluate import evaluate
from scoresde.study.features import pixels

RNG = np.random.default_rng(0)
ROWS = torch.cat([load_data("digits").train, load_data("digits").test])[:400].double()  # 0 to 16


def table() -> np.ndarray:
    """Columns of unlike sizes, one of them about 0."""
    z = np.random.default_rng(1).normal(size=(300, 4))
    return np.stack([13 + 0.8 * z[:, 0], 750 * np.exp(0.5 * z[:, 1]), 280 + 15 * z[:, 2], 1e4 * z[:, 3]], 1)


DATA: dict[str, Callable[[], Dataset]] = {
    "bytes": lambda: Dataset.of((ROWS * 255 / 16).round().to(torch.uint8)),
    "digits": lambda: load_data("digits"),
    "floats to 255": lambda: Dataset.of(ROWS.float() * 255 / 16),
    "floats to 1": lambda: Dataset.of(ROWS.float() / 16),
    "floats from -1": lambda: Dataset.of(ROWS.float() / 8 - 1),
    "signals": lambda: Dataset.of(RNG.normal(0, 3000, (100, 1, 40)).astype(np.float32)),
    "table": lambda: Dataset.of(table()),
}


def scaled(data: Dataset, low: float, high: float) -> Tensor:
    """The held-out data between other numbers, column by column in a table."""
    x = data.test.double()
    axes = (0,) if data.info.kind == "vector" else tuple(range(x.ndim))
    a, b = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    return low + (x - a) / (b - a) * (high - low)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-32768.0, 32767.0)])
def test_data_between_other_numbers_are_refused_with_both_ranges_and_the_way_out(
    name: str, ends: tuple[float, float]
) -> None:
    data = DATA[name]()
    x = scaled(data, *ends)
    if data.info.kind != "image" and ends[1] > 1:
        return  # numbers that nobody uses for them
    if ends == (data.info.low, data.info.high):
        assert in_data_units(x, data).shape == x.shape  # their own
        return
    with pytest.raises(DataError, match=r"mine: the values.* range from .*, but those of \w+ range.*; samples") as e:
        in_data_units(x, data, source="mine")
    guess = {0.0: "0,1" if ends[1] == 1 else "0,255", -1.0: "-1,1", -32768.0: "LOW,HIGH"}[ends[0]]
    assert (e.value.parameter, e.value.value) == ("units", guess)


@pytest.mark.parametrize("name", DATA)
def test_bad_samples_in_the_right_units_are_not_refused(name: str) -> None:
    data = DATA[name]()
    x = data.test.double()
    axes = (0,) if data.info.kind == "vector" else tuple(range(x.ndim))
    std, mean = torch.std_mean(x, axes, keepdim=True)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    bad = {
        "themselves": x,
        "collapsed to one": x[:1].expand_as(x),
        "the mean of all": x.mean(0, keepdim=True) + 0.01 * std * noise,
        "grey": mean + 0.02 * std * noise,
        "constant": mean.expand_as(x),
        "faint": mean + 0.1 * (x - mean),
        "noise": mean + 3 * std * noise,
        "an eps network after a few steps": mean + 150 * std * noise,
    }
    for what, samples in bad.items():
        if data.codec.levels is not None:
            samples = data.codec.levels.to_data(samples)
        try:
            in_data_units(samples, data)
        except DataError as error:
            raise AssertionError(what) from error
        assert in_data_units(x[:2], data).shape[0] == 2


def test_pictures_of_one_value_are_not_judged_by_their_spread() -> None:
    data = DATA["floats to 255"]()
    for value in (0.0, 0.7, 200.0):
        check_units(torch.full((20, 1, 8, 8), value), data)
    with pytest.raises(DataError, match="seem to be in different units"):
        check_units(torch.full((20, 1, 8, 8), 600.0), data)


def test_numbers_4000_times_as_wide_are_refused_wherever_they_lie() -> None:
    data = DATA["signals"]()
    x = data.test.double() - data.test.double().median()
    check_units(1000 * x, data)
    with pytest.raises(DataError, match="seem to be in different units"):
        check_units(8000 * x, data)


def test_the_column_is_named() -> None:
    data = DATA["table"]()
    kelvin = data.test.clone()
    kelvin[:, 2] -= 273.15
    with pytest.raises(DataError, match=r"values in column 2 range from -?\d.*, but those of array range from 2\d\d"):
        check_units(kelvin, data)
    grams = data.test.clone()
    grams[:, :2] /= 1000
    named = replace(data, info=replace(data.info, names=("acid", "weight", "heat", "x")))
    with pytest.raises(DataError, match=r"in column acid \(similarly in 1 other column\) range"):
        check_units(grams, named)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("units", [(0.0, 1.0), (-1.0, 1.0)])
def test_units_that_are_told_are_converted(name: str, units: tuple[float, float]) -> None:
    data = DATA[name]()
    x = torch.cat([data.train, data.test]).double()
    axes = (0,) if data.info.kind == "vector" else tuple(range(x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    told = (units[0] + (x - low) / (high - low) * (units[1] - units[0])).float()
    found = in_data_units(told, data, units)
    if data.codec.levels is not None:
        assert torch.equal(found.double(), x), "float32 rounds, and a level is the nearest one"
    else:
        torch.testing.assert_close(found.double(), x, rtol=1e-5, atol=1e-6 * float((high - low).max()))


def test_units_of_the_model_and_of_the_data() -> None:
    for name in ("table", "digits"):
        data = DATA[name]()
        m = data.codec.to_model(data.test.double(), noise=torch.full(data.test.shape, 0.5).double())
        torch.testing.assert_close(in_data_units(m, data, "model"), data.test.double(), check_dtype=False)
    small = torch.rand(20, 1, 8, 8)
    assert torch.equal(in_data_units(small, DATA["floats to 255"](), "data"), small)


def test_levels_round_down_as_they_are_and_to_the_nearest_when_converted() -> None:
    data = DATA["bytes"]()
    x = torch.tensor([[3.9, 4.0], [254.2, 255.4]]).repeat(1, 32).reshape(2, 1, 8, 8)
    assert in_data_units(x, data, "data").unique().tolist() == [3, 4, 254, 255]
    ends = torch.tensor([3.9 / 255, 1.0]).repeat(32).reshape(1, 1, 8, 8)
    assert in_data_units(ends, data, (0, 1)).unique().tolist() == [4, 255]
    with pytest.raises(DataError, match="values range from -2 to 3, but those of array range from 0 to 255"):
        in_data_units(x.clamp(-2, 3) - torch.eye(8) * 5, data, "data")


def test_what_units_are_not() -> None:
    assert (read_units("0,1"), read_units("-1, 1"), read_units("model")) == ((0, 1), (-1, 1), "model")
    for text in ("1,0", "0", "a,b", "0,1,2", "0,inf", "bytes"):
        with pytest.raises(
            UsageError, match=r"must be auto, data, model or two increasing numbers such as 0,1, but got"
        ):
            read_units(text)
    data = DATA["bytes"]()
    with pytest.raises(DataError, match=r"values range from 0 to 255, which does not fit the given units \(0 to 1\)"):
        in_data_units(data.test, data, (0, 1))
    spoilt = torch.zeros(3, 1, 8, 8)
    spoilt[1, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"infinite values in 1 of 3 samples \(the first at index 1"):
        in_data_units(spoilt, DATA["floats to 1"]())
    with pytest.raises(DataError, match="real numbers"):
        in_data_units(spoilt + 0j, data)
    for dtype in (np.uint16, np.bool_, np.int8):
        assert in_data_units(torch.from_numpy(np.ones((2, 1, 8, 8), dtype)), data).eq(1).all()


def test_evaluate_in_python_refuses_them_too() -> None:
    data = DATA["floats to 255"]()
    x = data.test / 255
    with pytest.raises(DataError, match="seem to be in different units"):
        evaluate(x, data, pixels(data.codec), {"frechet": frechet})
    assert evaluate(x, data, pixels(data.codec), {"frechet": frechet}, check=False).n == len(x)


# ---------------------------------------------------------------------------------------------------------- likelihood


def exact(data: Dataset) -> Run:
    shape = data.codec.model_shape(data.info.shape)
    mixture = GaussianMixture(VPSDE(), torch.zeros(1, *shape).double(), torch.ones(1).double())
    return Run(mixture, data.codec, data.info, dtype=torch.float64)


@pytest.mark.parametrize("name", ["floats to 1", "table", "signals"])
def test_scoring_data_in_other_units_warns_of_both_ranges(name: str) -> None:
    data = DATA[name]()
    factor = 255 if name != "signals" else 1e5
    with pytest.warns(
        UserWarning, match=r"the values.* range from .* to .*, but those of array, .*in the same units\?"
    ):
        warn_of_units(data.test * factor, data.codec, data.info)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (data.test, data.train, data.test[:1], data.test[:0]):
            warn_of_units(x, data.codec, data.info)


def test_smaller_units_and_other_signs_are_warned_of() -> None:
    data = DATA["floats to 255"]()
    with pytest.warns(UserWarning, match="range from 0 to 1, but those of array, .*, range from 0 to 255"):
        warn_of_units(data.test / 255, data.codec, data.info)
    data = DATA["floats to 1"]()
    with pytest.warns(UserWarning, match="range from -1 to 1, but"):
        warn_of_units(data.test * 2 - 1, data.codec, data.info)
    data = DATA["table"]()
    with pytest.warns(UserWarning, match="in column 2 range from .*, range from about 24"):
        warn_of_units(data.test - torch.tensor([0, 0, 273.15, 0]), data.codec, data.info)
    # an outlier in the training data makes all the rest look narrow, and is no other unit
    heavy = np.random.default_rng(0).normal(size=(300, 1))
    heavy[7] = 1e5
    data = Dataset.of(heavy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_units(torch.randn(50, 1), data.codec, data.info)


def test_the_likelihood_and_the_bound_warn() -> None:
    data = DATA["floats to 1"]()
    run = exact(data)
    for score in (
        lambda x: run.log_likelihood(x, Likelihood(steps=1, divergence="hutchinson"), check=False),
        lambda x: run.elbo(x, strata=1),
    ):
        with pytest.warns(UserWarning, match="in the same units") as caught:
            score(data.test[:3] * 255)
        assert Path(caught[0].filename).name == "test_plausible.py"


def test_a_codec_of_one_scale_for_each_channel_is_judged_channel_by_channel() -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([rng.normal(280, 15, (60, 4, 4)), rng.random((60, 4, 4))], 1).astype(np.float32)
    data = Dataset.of(fields, layout="first")
    scale = Affine(torch.tensor([280, 0.5]).double()[:, None, None], torch.tensor([15, 0.3]).double()[:, None, None])
    data = replace(data, codec=scale)
    check_units(data.test, data)
    x = data.test.clone()
    x[:, 0] -= 273.15
    with pytest.raises(DataError, match=r"in channel 0 range from .*, but those of array range from 2"):
        check_units(x, data)
    with pytest.warns(UserWarning, match="in channel 0 range"):
        warn_of_units(x, data.codec, data.info)
    unit = torch.stack([(data.test[:, i] - low) / (high - low) for i, (low, high) in enumerate(ends(data))], 1)
    torch.testing.assert_close(in_data_units(unit, data, (0, 1)), data.test.double(), rtol=1e-4, atol=1e-4)


def ends(data: Dataset) -> list[tuple[float, float]]:
    x = torch.cat([data.train, data.test])
    return [(float(x[:, i].min()), float(x[:, i].max())) for i in range(x.shape[1])]


def test_a_given_value_far_from_the_data_is_questioned():
    rng = np.random.default_rng(0)
    data = Dataset.of(rng.normal((20.0, 1000.0), (5.0, 10.0), (80, 2)), seed=0)
    tiny = {"steps": 1, "batch": 8, "network_options": {"width": 8, "blocks": 1}}
    run = fit(TrainConfig(cond="cells", **tiny), data=data, save=False, quiet=True)
    cells = torch.tensor([[21.0, torch.nan], [21.0, 10.0]]).double()
    with pytest.warns(
        UserWarning, match=r"given value 10 of feature 1 in row 1 \(.*\) is \d+ standard deviations from the mean"
    ):
        run.given(Condition(image=cells))
    numbers = Condition(vector=torch.from_numpy(rng.normal((7.0, 0.1), (1.0, 0.01), (80, 2))))
    known = Dataset.of(rng.normal(size=(80, 2)), given=numbers, seed=0)
    told = fit(TrainConfig(cond="vector", **tiny), data=known, save=False, quiet=True)
    with pytest.warns(UserWarning, match=r"2 given values are .*100 of .* in row 0 .*, 700 of .* in row 1"):
        told.given(Condition(vector=torch.tensor([[7.0, 100.0], [700.0, 0.1]])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.given(Condition(image=cells[:1]))
        told.given(Condition(vector=torch.tensor([[7.0, torch.nan], [9.0, 0.1]])))


def test_a_picture_in_other_units_is_questioned():
    unet = {"steps": 1, "batch": 8, "network_options": {"channels": 4}}
    run = fit(TrainConfig(data="digits", cond="pool:2", **unet), save=False, quiet=True)
    low = load_data("digits").test[:3].double().reshape(3, 1, 4, 2, 4, 2).mean((3, 5))
    for wrong in (low / 255, low * 16, low / 16 * 2 - 65):
        with pytest.warns(
            UserWarning, match=r"the given values range from .* range from 0 to 16; are they in the same"
        ):
            run.given(Condition(image=wrong))
        with pytest.warns(UserWarning, match="are they in the same units"):
            run.measured("pool:2", wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.given(Condition(image=low))
        run.measured("pool:2", low + 8, noise=8.0)
        run.given(Condition(image=torch.zeros_like(low)))
