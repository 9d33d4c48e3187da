"""Noise levels: any eta(t) has the marginals of the path, whoever integrates it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from models import ALL, F64, FOUR, gaussian, mixture_1d, normals, ring, watched
from solving import FEW_AND_ALL, FOUR_AND_COSINE, marginal, moments, start

from scoresde import VPSDE, EulerMaruyama, FlowMatching, Noise
from scoresde.core.errors import UsageError
from scoresde.metrics import sliced_wasserstein
from scoresde.sde.grids import make_grid
from scoresde.solvers import MultistepSDE, StochasticHeun
from scoresde.solvers.exponential import er_sde, sa_solver
from scoresde.solvers.level import LEVELS, level_of, ratios

TIMES = torch.linspace(0.01, 0.99, 25, dtype=F64)


def arch(sde, t):
    """A user's level, of no meaning: alive in the middle."""
    return 1.5 * torch.sin(math.pi * t)


def constant(sde, t):
    return torch.full_like(t, math.sqrt(2))


# ------------------------------------------------------------------------------------------------------------ formulas


def test_levels_are_their_formulas():
    t = TIMES
    assert torch.allclose(level_of(VPSDE(), "g", 1.0, t), torch.sqrt(0.1 + 19.9 * t), rtol=1e-12)
    assert torch.allclose(level_of(FlowMatching(), "g", 1.0, t), torch.sqrt(2 * t / (1 - t)), rtol=1e-12)
    for sde in FOUR.values():
        assert torch.allclose(level_of(sde, "sigma", 1.0, t).square(), 2 * sde.coefficients(t)[1], rtol=1e-12)
    assert torch.equal(level_of(VPSDE(), "auto", 1.0, t), level_of(VPSDE(), "g", 1.0, t))
    assert torch.equal(level_of(FlowMatching(), "auto", 1.0, t), level_of(FlowMatching(), "sigma", 1.0, t))
    # eta is a factor on the level, whatever the level.
    for name in LEVELS:
        assert torch.allclose(level_of(VPSDE(), name, 0.5, t), level_of(VPSDE(), name, 1.0, t) / 2)


@pytest.mark.parametrize("name", FOUR_AND_COSINE)
def test_the_level_of_er_sde_is_the_growth_of_its_noise_scale_function(name):
    # Cui et al. 2023, arXiv:2309.06169: 1 + eta^2/g^2 = d log phi / d log s for phi(s) = s (e^(s^0.3) + 10).
    sde, t = ALL[name], TIMES
    alpha, sigma = sde.coefficients(t)
    log_s = torch.log(sigma / alpha)

    def log_phi(at):
        return at + torch.log(torch.exp(torch.exp(0.3 * at)) + 10)

    growth = (log_phi(log_s + 1e-5) - log_phi(log_s - 1e-5)) / 2e-5
    found = (level_of(sde, "er", 1.0, t) / sde.diffusion(t)).square()
    assert torch.allclose(found, growth - 1, rtol=1e-6, atol=1e-8)


def test_ratios_are_levels_over_g_in_the_middle_of_each_step():
    times = make_grid("sqrt", VPSDE(), 10, 1.0, 1e-3)
    lam = VPSDE().log_snr(times)
    middle = VPSDE().t_of_log_snr((lam[1:] + lam[:-1]) / 2)
    for level in ("sigma", "er", arch):
        expected = 0.7 * level_of(VPSDE(), level, 1.0, middle) / VPSDE().diffusion(middle)
        assert torch.allclose(torch.tensor(ratios(VPSDE(), level, 0.7, times)), expected.float(), rtol=1e-6)
    assert ratios(VPSDE(), "g", 0.7, times) == (0.7,) * 10 == ratios(VPSDE(), "auto", 0.7, times)[:0] + (0.7,) * 10
    assert ratios(VPSDE(), "auto", 0.7, times) == pytest.approx((0.7,) * 10, rel=1e-12)
    # Out of alpha = 0 a step has g for its noise, or none.
    start = make_grid("uniform", FlowMatching(), 4, 1.0, 1e-5)
    assert ratios(FlowMatching(), "g", 1.0, start)[0] == 1 and ratios(FlowMatching(), "sigma", 1.0, start)[0] == 0
    assert min(ratios(FlowMatching(), "sigma", 1.0, start)[1:]) > 0


def test_levels_that_cannot_be_are_refused():
    t = torch.tensor([0.2, 0.9], dtype=F64)
    for level, words in (
        (lambda sde, t: -t, "finite and >= 0"),
        (lambda sde, t: t * torch.nan, "finite and >= 0"),
        (lambda sde, t: torch.ones(3), "one number for each t"),
    ):
        with pytest.raises(UsageError, match=words):
            level_of(VPSDE(), level, 1.0, t)
    with pytest.raises(
        UsageError, match="level function <lambda> must return a tensor with one number for each t, got NoneType"
    ):
        level_of(VPSDE(), lambda sde, t: None, 1.0, t)
    for kind in (EulerMaruyama, StochasticHeun, MultistepSDE):
        with pytest.raises(UsageError, match="auto, g, sigma, er"):
            kind(level="score")
        with pytest.raises(UsageError, match="eta is -1"):
            kind(eta=-1.0)
    # g is infinite where the flow starts: refused before the first evaluation.
    model = watched(ring(FlowMatching()))
    with pytest.raises(UsageError, match="at t = 1"):
        EulerMaruyama(level="g")(model, normals(2, 2))
    assert not model.times


def test_a_level_is_named_on_the_command_line_as_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "my_level.py").write_text("def half(sde, t):\n    return sde.diffusion(t) / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    model, x, noise = ring(VPSDE()), normals(4, 2), Noise.of(4)
    named = EulerMaruyama(10, level="my_level:half")(model, x, noise=noise).x
    assert torch.equal(named, EulerMaruyama(10, level="g", eta=0.5)(model, x, noise=noise).x)


# ----------------------------------------------------------------------------------------------------------- marginals

SOLVERS = {
    "em": (EulerMaruyama(100), 0.1),
    "heun-sde": (StochasticHeun(80), 0.07),
    "sde": (MultistepSDE(100), 0.05),
    "sa": (sa_solver(100), 0.05),
    "er-sde": (er_sde(100), 0.05),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("level", ["auto", "g", "sigma", "er", arch], ids=["auto", "g", "sigma", "er", "own"])
@pytest.mark.parametrize("name", FEW_AND_ALL)
def test_every_level_and_eta_has_the_right_marginals(name, level, solver):
    # Exact moments (see solving.py), from the right ones at the start to the right ones at the end.
    made, tolerance = SOLVERS[solver]
    model = gaussian(ALL[name], dims=1, mean=0.3, std=0.5)
    etas = [0.0, 1.0, 2.0] if level == "auto" else [0.5, 2.0]
    low, high = model.domain.interval("sample")
    if name in ("flow", "user_cosine") and level in ("g", "er") and solver in ("em", "heun-sde"):
        high = 0.98  # where these two begin g must be finite
    if name == "ve" and solver == "em":
        # Euler's rule is a third off on VE, from sigma 50 to 0.01, where no noise corrects it.
        made, etas, tolerance = replace(made, steps=200), [1.0, 2.0], 0.2
    if name == "ve" and level is arch and solver in ("sa", "er-sde"):
        # 2 would be twenty times g at low noise, and all of it in one step of a polynomial.
        made, etas = replace(made, steps=160), [0.5, 1.0]
    for eta in etas:
        there = replace(made, eta=eta, level=level, grid="sqrt")
        mean, variance = moments(there, model, marginal(model, high), t0=high, t1=low)
        exact = marginal(model, low)
        assert mean == pytest.approx(exact[0], abs=0.02)
        assert variance == pytest.approx(exact[1], rel=tolerance)


def draws(model, count: int, low: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x0 = model.sample(count, generator)
    return model.domain.sde.perturb(x0, low, torch.randn(x0.shape, generator=generator, dtype=F64))


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("vp", MultistepSDE(200, eta=0.5, grid="logsnr")),
        pytest.param("flow", EulerMaruyama(400), marks=pytest.mark.slow),
        ("flow", EulerMaruyama(200, level=lambda sde, t: math.sqrt(2) * torch.sin(math.pi * t))),
        pytest.param("flow", MultistepSDE(400), marks=pytest.mark.slow),
    ],
    ids=["sde-0.5", "em-sigma", "em-sine", "flow-sde"],
)
def test_the_mixture_at_every_eta(name, solver):
    # Sliced W2 within twice what separates two exact draws.
    count = 500
    model = start(name)[0]
    low, high = model.domain.interval("sample")
    z, want = draws(model, count, high, 1), draws(model, count, low, 2)

    def distance(x):
        return sliced_wasserstein(x, want, projections=64)

    floor = sum(distance(draws(model, count, low, seed)) for seed in range(3, 7)) / 4
    assert distance(solver(model, z, noise=Noise.of(count, 3)).x) < 2 * floor


def test_noise_that_is_alive_at_the_end():
    # eta^2 = 2 up to the data leaves the noise of its last step there (a width of 0.15 becomes 0.157), sqrt(2 sigma)
    # does not: this is why the default fades with sigma.
    model = gaussian(FlowMatching(), dims=1, mean=0.0, std=0.15)
    solvers = EulerMaruyama(400, level=constant), EulerMaruyama(400, level="sigma")
    wide, fine = (math.sqrt(moments(solver, model, (0.0, 1.0))[1]) / 0.15 for solver in solvers)
    assert wide == pytest.approx(1.05, abs=0.03) and fine == pytest.approx(1, abs=0.01)


def test_levels_of_a_mixture_in_one_dimension():
    # The weights of two modes survive a level that is strong in between.
    model, n = mixture_1d(VPSDE()), 4000
    x = EulerMaruyama(150, level=arch)(model, normals(n, 1), noise=Noise.of(n, 2)).x
    left = float((x < float(model.means.mean())).double().mean())
    z = model.sample(200_000, torch.Generator().manual_seed(0))
    assert left == pytest.approx(float((z < float(model.means.mean())).double().mean()), abs=0.03)
