"""Other integrators agree with ours, stay in the domain and fail with our errors."""

from __future__ import annotations

import math

import pytest
import torch
from models import ALL, F64, FOUR, gaussian, normals, ring, watched

from scoresde import VPSDE, Noise
from scoresde.core.errors import NumericalError, UsageError
from scoresde.solvers import ProbabilityFlow, TorchSDE, sample


@pytest.mark.parametrize(
    ("name", "engine", "method"),
    [
        pytest.param("vp", "torchdiffeq", "auto", marks=pytest.mark.slow), ("vp", "torchdiffeq", "bosh3"),
        pytest.param("vp", "scipy", "auto", marks=pytest.mark.slow), ("vp", "scipy", "LSODA"),
        ("ve", "torchdiffeq", "auto"), pytest.param("flow", "torchdiffeq", "dopri8", marks=pytest.mark.slow),
        ("flow", "scipy", "auto"),
    ],
)  # fmt: skip
def test_engines_agree_with_our_driver(name, engine, method):
    model, z = watched(ring(FOUR[name])), FOUR[name].prior_std * normals(12, 2)
    exact = ProbabilityFlow(rtol=1e-8)(model.model, z).x
    solved = ProbabilityFlow(rtol=1e-6, atol=1e-6, engine=engine, method=method)(model, z)
    assert float((solved.x - exact).norm(dim=1).median()) < 3e-5
    assert solved.nfe.tolist() == [len(model.times)] * 12
    times = torch.cat(model.times)
    assert float(times.min()) >= FOUR[name].times("sample")[0] and float(times.max()) <= 1.0


@pytest.mark.parametrize("engine", ["torchdiffeq", "scipy"])
def test_engines_encode(engine):
    model = gaussian(VPSDE(), dims=2)
    x = 0.3 + 0.5 * normals(8, 2)
    ours = ProbabilityFlow(rtol=1e-8, atol=1e-8)(model, x, t0=1e-3, t1=1.0).x
    theirs = ProbabilityFlow(rtol=1e-8, atol=1e-8, engine=engine)(model, x, t0=1e-3, t1=1.0).x
    assert float((ours - theirs).abs().max()) < 1e-6


@pytest.mark.parametrize(("name", "method"), [("vp", "euler"), ("vp", "srk"), ("flow", "srk")])
def test_torchsde_has_the_right_marginals(name, method):
    n, model = 1500, watched(gaussian(ALL[name], dims=2, mean=0.3, std=0.5))
    solved = TorchSDE(steps=60, method=method)(model, ALL[name].prior_std * normals(n, 2), noise=Noise.of(n, 1))
    assert float(solved.x.mean()) == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(2 * n) + 0.01)
    assert float(solved.x.std()) == pytest.approx(0.5, rel=0.05)
    times = torch.cat(model.times)
    assert float(times.min()) >= ALL[name].times("sample")[0] and float(times.max()) <= 1.0
    assert int(solved.nfe[0]) == len(model.times)


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_torchsde_takes_the_steps_asked_for(steps):
    for dtype in (torch.float32, F64):  # eight steps of 0.999/8 add up to a little less than 0.999
        solved = TorchSDE(steps=steps, method="euler")(ring(VPSDE()), normals(2, 2, dtype=dtype))
        assert int(solved.nfe[0]) == steps + 1


def test_torchsde_is_driven_by_the_seed():
    model, x = ring(VPSDE()), normals(8, 2)
    one, again, other = (TorchSDE(steps=5, method="euler")(model, x, noise=Noise.of(8, s)).x for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other)


def test_torchsde_batches_do_not_share_their_noise():
    model = gaussian(VPSDE(), dims=1, std=0.5)
    solved = sample(model, TorchSDE(steps=20, method="euler"), (1,), Noise.of(1000, 3), dtype=F64, batch=500)
    a, b = solved.x[:500, 0], solved.x[500:, 0]
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.2


def test_the_limit_on_evaluations_binds_every_engine():
    model, x = ring(VPSDE()), normals(2, 2)
    for engine in ("torchdiffeq", "scipy"):
        with pytest.raises(NumericalError, match="max_nfe = 10"):
            ProbabilityFlow(engine=engine, max_nfe=10)(model, x)


def test_unknown_engines_and_methods_are_refused_before_the_first_call():
    model, x = watched(ring(VPSDE())), normals(2, 2, dtype=F64)
    for make, words in (
        (lambda: ProbabilityFlow(engine="diffrax"), "torchdiffeq"),
        (lambda: ProbabilityFlow(method="dopri8"), "bosh3"),
        (lambda: ProbabilityFlow(engine="torchdiffeq", method="rk4")(model, x), "dopri8"),
        (lambda: ProbabilityFlow(engine="scipy", method="rk4")(model, x), "DOP853"),
        (lambda: TorchSDE(method="reversible_heun"), "srk"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
    assert not model.times


def test_torchsde_has_no_path_of_ours():
    with pytest.raises(UsageError, match="'sde' or 'em'"):
        TorchSDE()(ring(VPSDE()), normals(2, 2), noise=Noise.of(2, brownian=True))
