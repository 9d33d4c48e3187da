"""Priors that fit and that do not: against Gaussian data, for which the flow is linear."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import F64
from runs import edit
from shell import Shell

from scoresde import (
    DDPM,
    EDMSDE,
    SDE,
    SMLD,
    VDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Noise,
    ProbabilityFlow,
    Shifted,
    SubVPSDE,
    TrainConfig,
    fit,
    load,
    sample,
)  # fmt: skip
from scoresde.core.errors import Advice, UsageError
from scoresde.metrics.rows import furthest
from scoresde.sde.reach import MISFIT, Reach, explodes, sigma_for

FITS = [
    VPSDE(), SubVPSDE(), VESDE(), CosineSDE(), EDMSDE(), VDMSDE(), FlowMatching(), DDPM(), DDPM(50),
    DDPM(schedule="scaled-linear"), DDPM(schedule="cosine"), DDPM(100, zero_snr=True), SMLD(),
    Shifted(FlowMatching(), 3.0), Shifted(VPSDE(), 0.3),
]  # fmt: skip
MISFITS = [
    VPSDE(beta_max=0.5), SubVPSDE(beta_max=0.5), VESDE(sigma_max=2.0), EDMSDE(sigma_max=2.0), SMLD(sigma_max=2.0),
    VDMSDE(log_snr_min=0.0), DDPM(end=0.001), Shifted(VPSDE(beta_max=2.0), 0.5),
]  # fmt: skip
WIDTH = {"network_options": {"width": 8, "blocks": 1}, "steps": 2, "batch": 16}


@pytest.mark.parametrize("sde", FITS, ids=repr)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_published_paths_are_not_warned_of(sde: SDE, spread: float) -> None:
    reach = Reach.of(sde, spread=spread)
    assert reach.short == "" and reach.advice is None and reach.share < MISFIT


@pytest.mark.parametrize("sde", MISFITS, ids=repr)
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_the_figure_is_what_samples_of_gaussian_data_are_off_by(sde: SDE, spread: float) -> None:
    model = GaussianMixture(sde, torch.zeros(1, 1, dtype=F64), torch.tensor([spread], dtype=F64))
    domain = model.domain
    z = torch.tensor([[-1.0], [1.0]], dtype=F64) * sde.prior.std
    x = ProbabilityFlow(1e-8)(model, z, t0=domain.t_max, t1=domain.t_min).x
    # The flow is linear: a state one deviation from the middle ends one deviation from it.
    alpha, sigma = (float(c) for c in sde.coefficients(torch.tensor(domain.t_min, dtype=F64)))
    found = float(x[1] - x[0]) ** 2 / 4 / (alpha**2 * spread**2 + sigma**2) - 1
    reach = Reach.of(sde, spread=spread)
    assert reach.variance == pytest.approx(found, abs=2e-5)
    advice = reach.advice
    assert advice is not None and "the prior does not fit" in str(advice)
    assert f"{round(100 * found) + 0:+,d} %" in str(advice)
    assert advice.parameter is not None and advice.parameter.removeprefix("sde.") in str(advice)


def test_coordinates_that_hardly_vary_are_off_by_more() -> None:
    sde, variances = VPSDE(beta_max=0.5), torch.tensor([1.0, 0.05]).double().square()
    model = GaussianMixture(sde, torch.zeros(1, 2, dtype=F64), covariances=variances.diag()[None])
    x = sample(model, ProbabilityFlow(1e-6), (2,), Noise.of(2000), dtype=F64, denoise=False).x
    off = x.var(0) / (variances + sde.sigma(torch.tensor(1e-3)).square()) - 1
    assert off.tolist() == pytest.approx([Reach.of(sde).variance, Reach.of(sde).still], abs=0.15)
    assert Reach.of(sde).still == pytest.approx(2.86, abs=0.01)


def test_a_path_of_ones_own_is_told_what_to_change() -> None:
    @dataclasses.dataclass(frozen=True)
    class Short(FlowMatching):
        t_max = 0.7

    advice = Reach.of(Short()).advice
    assert advice is not None and advice.parameter is None and "alpha closer to 0" in str(advice)


def test_where_nothing_is_shrunk_the_noise_reaches_across_the_data() -> None:
    assert [explodes(sde) for sde in (VESDE(), SMLD(), EDMSDE(), Shifted(VESDE(), 2.0), VPSDE(), FlowMatching())] == [
        True, True, True, True, False, False,
    ]  # fmt: skip
    advice = Reach.of(VESDE(sigma_max=10.0), spread=0.5, furthest=16.3).advice
    assert advice is not None and (advice.parameter, advice.value) == ("sde.sigma_max", "auto")
    assert "at t_max is 10, which is less than the largest distance between two data points, 16.3" in str(advice)
    assert Reach.of(VESDE(sigma_max=16.4), spread=0.5, furthest=16.3).advice is None
    assert Reach.of(VPSDE(), furthest=1e4).advice is None
    assert sigma_for(16.3, 0.5) >= 16.3 and Reach.of(VESDE(sigma_max=sigma_for(3.0, 1.0)), furthest=3.0).advice is None


@pytest.mark.parametrize("n", [100, 3000])
def test_the_largest_distance(n: int) -> None:
    x = torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(0))
    exact = float(torch.cdist(x.flatten(1).double(), x.flatten(1).double()).max())
    assert exact * (1.0 - 1e-6 if n == 100 else 0.9) <= furthest(x) <= exact * (1 + 1e-6)
    assert furthest(torch.zeros(5, 2)) == 0.0


# ------------------------------------------------------------------------------------------------------- auto


@pytest.mark.parametrize("sde", ["ve", "edm", "smld"])
def test_auto_is_a_number_by_the_time_anything_is_trained(sde: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(200, 6)) @ np.diag([1, 1, 1, 1, 1, 1e-3])
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        run = fit(
            TrainConfig(sde=sde, sde_options={"sigma_max": "auto"}, **WIDTH), data=x, out=tmp_path / "run", quiet=True
        )
        found = run.base.domain.sde.sigma_max
        rows = run.codec.to_model(torch.as_tensor(x, dtype=torch.float32))
        assert found >= 0.9 * furthest(rows) and found < 3 * furthest(rows)
        assert load(tmp_path / "run").base.domain.sde == run.base.domain.sde
        again = fit(
            TrainConfig(sde=sde, sde_options={"sigma_max": "auto"}, **WIDTH | {"steps": 3}), data=x,
            out=tmp_path / "run", resume=True, quiet=True,
        )  # fmt: skip
    assert again.step == 3 and again.base.domain.sde.sigma_max == found


def test_auto_as_an_object_and_shifted() -> None:
    objects = fit(TrainConfig(data="moons", sde=VESDE(sigma_max="auto"), **WIDTH), save=False, quiet=True)
    named = fit(TrainConfig(data="moons", sde="ve", sde_options={"sigma_max": "auto"}, **WIDTH), save=False, quiet=True)
    assert objects.base.domain.sde == named.base.domain.sde
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        half = TrainConfig(data="moons", sde="ve", shift=0.5, sde_options={"sigma_max": "auto"}, **WIDTH)
        shifted = fit(half, save=False, quiet=True).base.domain.sde
    assert shifted.path.sigma_max == pytest.approx(2 * named.base.domain.sde.sigma_max, rel=1e-3)


@pytest.mark.parametrize("sde", [VESDE, EDMSDE, SMLD])
def test_auto_alone_has_no_levels(sde: Any) -> None:
    path = sde(sigma_max="auto")
    for ask in (lambda: path.sigma(torch.ones(1)), lambda: path.prior, lambda: Shifted(path, 2.0)):
        with pytest.raises(UsageError, match="set sigma_max to a number here"):
            ask()
    with pytest.raises(UsageError, match="or set sigma_max to auto to compute it from the training data"):
        sde(sigma_max="most")
    with pytest.raises(UsageError, match="has no option 'sigma_max'"):
        fit(TrainConfig(data="moons", sde_options={"sigma_max": "auto"}, **WIDTH), save=False, quiet=True)


# ---------------------------------------------------------------------------------------------------- where it is said


def test_it_is_said_once_in_training_in_sampling_and_of_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(Advice, match=r"74 of the variance.*alpha = 0\.86") as caught:
        run = fit(TrainConfig(data="moons", sde_options={"beta_max": 0.5}, **WIDTH), out="run", quiet=True)
    assert len([w for w in caught if issubclass(w.category, Advice)]) == 1
    with pytest.warns(Advice, match="beta_max=20"):
        load("run").sample(2)
    assert "0.74 of the variance at t_max comes from the data" in repr(run) and len(repr(run).splitlines()) <= 4
    # A run from before this knows the spread of its data by its prediction, if at all.
    edit("run/data.json", lambda stored: {k: v for k, v in stored.items() if k not in ("spread", "furthest")})
    assert "the prior does not fit" in repr(load("run"))


def test_the_command_line_says_what_to_type(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shell = Shell(capsys)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        shell("train --data moons --sde ve --set sde.sigma_max=2 --set network.width=8 --steps 2 --out run --quiet")
        assert (
            shell.err.count("the prior does not fit") == 1
            and "(on the command line: --set sde.sigma_max=auto)" in shell.err
        )
        shell("sample run --n 2 --save npz --quiet")
        assert shell.err.count("the prior does not fit") == 1 and "scoresde train --set sde.sigma_max=auto" in shell.err
        shell("train --data moons --sde ve --set sde.sigma_max=auto --set network.width=8 --steps 2 --out new --quiet")
        assert "warning" not in shell.err
