"""The units of data: every column of order one, nothing rounded, and what squeezes the rest is named."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from scoresde.codec import Affine, Levels
from scoresde.core.errors import DataError
from scoresde.data import Dataset
from scoresde.data.batch import Rows


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def in_model_units(data: Dataset) -> torch.Tensor:
    u = torch.rand(data.train.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return data.codec.to_model(data.train.double(), noise=u)


def test_whole_numbers_of_unlike_columns_are_each_of_order_one() -> None:
    x = np.stack([rng().integers(20, 80, 2000), rng(1).integers(0, 10**6, 2000), rng(2).integers(0, 2, 2000)], 1)
    data = Dataset.of(x)
    m = in_model_units(data)
    torch.testing.assert_close(m.std(0), torch.ones(3).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(m.mean(0), torch.zeros(3).double(), atol=0.05, rtol=0)  # with half of each cell
    back = data.codec.to_data(m)
    assert torch.equal(back, data.train.double())  # each value returns to its own level
    extremes = data.codec.to_data(torch.tensor([[-9.0] * 3, [9.0] * 3]))
    assert extremes.tolist() == [x.min(0).tolist(), x.max(0).tolist()]  # and none leaves its own range


def test_the_log_determinant_of_levels_of_their_own_is_that_of_the_map() -> None:
    x = np.stack([rng().integers(0, 5, 500), rng(1).integers(0, 10**4, 500)], 1)
    data = Dataset.of(x)
    affine = data.codec.continuous
    assert isinstance(affine, Affine) and isinstance(data.codec.levels, Levels)
    assert data.codec.levels.count.tolist() == (x.max(0) - x.min(0) + 1).tolist()
    # the cells are 1 wide, so that log|dm/dx| is that of the scales alone
    assert data.codec.log_det(data.train) == pytest.approx(-float(affine.scale.log().sum()), rel=1e-12)
    wide = Levels(torch.tensor([0.0, 0.0]), torch.tensor([4.0, 9.0]), torch.tensor([3, 4]))
    assert wide.log_det(torch.zeros(1, 2)) == pytest.approx(math.log(2) + math.log(3))


def test_levels_beside_continuous_columns_leave_them_alone() -> None:
    levels = Levels(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 0.0]), torch.tensor([4, 0]))
    x, u = torch.tensor([[2.0, 0.123]]), torch.tensor([[0.5, 0.9]])
    assert torch.equal(levels.to_model(x, noise=u), torch.tensor([[2.5, 0.123]])) and not levels.everywhere
    assert torch.equal(levels.to_data(torch.tensor([[2.7, 0.7]])), torch.tensor([[2.0, 0.7]]))
    assert levels.log_det(x) == 0.0 and levels == Levels.from_options({"low": [0, 0], "high": [3, 0], "count": [4, 0]})


@pytest.mark.parametrize("bad", [([0.0], [-1.0], [2]), ([0.0], [0.0], [2]), (0.0, 1.0, 1), ([0.0], [1.0], [-1])])
def test_levels_that_cannot_be(bad: tuple[object, object, object]) -> None:
    with pytest.raises(DataError, match="levels from"):
        Levels(*bad)  # type: ignore[arg-type]


def test_channels_that_differ_in_kind_have_units_of_their_own() -> None:
    fields = np.stack([rng().normal(280, 15, (300, 8, 8)), rng(1).uniform(0, 1, (300, 8, 8))], 1).astype("f4")
    data = Dataset.of(fields)
    m = data.codec.to_model(data.train.double())
    torch.testing.assert_close(m.std((0, 2, 3)), torch.ones(2).double(), atol=1e-4, rtol=0)
    alike = Dataset.of(rng().uniform(0, 1, (50, 3, 8, 8)).astype("f4") * np.array([1, 0.8, 0.6])[:, None, None])
    assert alike.codec.continuous.scale.ndim == 0  # colours share a range
    places = rng().normal(0, 1, (50, 2, 8, 8)).astype("f4") + np.array([0, 100], "f4")[:, None, None]
    assert Dataset.of(places).codec.continuous.scale.numel() == 2  # of one spread, and in two places
    counts = np.stack([rng().integers(0, 4000, (60, 9, 9)), rng(1).integers(0, 6, (60, 9, 9))], 1)
    m = in_model_units(Dataset.of(counts))
    torch.testing.assert_close(m.std((0, 2, 3)), torch.ones(2).double(), atol=0.05, rtol=0)


def test_bytes_keep_one_range_however_dark() -> None:
    x = rng().integers(0, 20, (40, 3, 8, 8)).astype("u1")
    x[:, 1] //= 10
    data = Dataset.of(x)
    assert data.codec.levels == Levels(0, 255, 256) and data.codec.continuous == Affine(
        *torch.tensor([128.0, 128.0]).double()
    )


def test_time_stamps_keep_their_differences() -> None:
    x = 1.7e9 + rng().normal(size=(500, 1)) * 20
    data = Dataset.of(x)
    assert data.train.dtype == torch.float64 and data.info.wide
    assert len(torch.unique(torch.cat([data.train, data.test]))) == 500
    m = data.codec.to_model(data.train).float()
    assert len(torch.unique(m)) == len(data.train)
    back = data.codec.to_data(m.double())
    torch.testing.assert_close(back, data.train, atol=1e-4, rtol=0)
    stamps = Dataset.of(x.astype(np.int64))  # and so do whole ones
    assert stamps.train.dtype == torch.int64 and torch.equal(
        stamps.codec.to_data(in_model_units(stamps)).long(), stamps.train
    )
    assert Dataset.of(rng().normal(size=(500, 1))).train.dtype == torch.float32


def test_one_absurd_value_is_named() -> None:
    x = rng().random((100, 1, 8, 8)).astype("f4")
    x[17, 0, 3, 3] = 1e4
    with pytest.warns(UserWarning, match=r"the value 10000 in row 17 .*the others \(0\.\d+ to 0\.9"):
        Dataset.of(x)
    columns = rng().normal(size=(1000, 3))
    columns[5, 2] = -1e5
    with pytest.warns(UserWarning, match=r"value -100000 of feature 2 in row 5 \(counted from 0\)"):
        Dataset.of(columns)


def test_heavy_tails_and_rare_flags_are_not_absurd() -> None:
    x = np.stack([rng().lognormal(size=2000), rng(1).standard_t(4, 2000), rng(2).random(2000) < 0.002], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dataset.of(x)


def test_a_year_of_time_stamps_is_not_rounded() -> None:
    data = Dataset.of(1.7e9 + rng().uniform(0, 3.15e7, size=(500, 1)))
    assert data.info.wide and len(torch.unique(data.train)) == len(data.train)


def test_large_whole_numbers_keep_their_dequantisation() -> None:
    data = Dataset.of(10_000_000 + rng().integers(0, 200, (2000, 1)))
    x0 = Rows(data.train, data.codec)(torch.arange(len(data.train)), torch.Generator().manual_seed(0), torch.float32).x0
    assert len(torch.unique(x0)) > 0.95 * len(x0)
