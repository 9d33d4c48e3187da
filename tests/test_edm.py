"""The sampler of EDM against its algorithm by hand, its noise and its cost; and that it never asks above the start."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from models import ALL, F64, gaussian, normals, ring, watched
from solving import FEW_AND_ALL, FIVE, excess, prior

from scoresde import VESDE, VPSDE, GaussianMixture, Noise, RungeKutta
from scoresde.core.errors import UsageError
from scoresde.solvers import EDMHeun, sample


def levels(low: float, high: float, n: int, rho: float = 7.0) -> list[float]:
    # Karras et al. 2022, arXiv:2206.00364, eq. 5, without the zero at its end
    a, b = high ** (1 / rho), low ** (1 / rho)
    return [(a + i / (n - 1) * (b - a)) ** rho for i in range(n)]


def algorithm_2(denoise, y, sigmas, churn=0.0, s_min=0.0, s_max=math.inf, s_noise=1.0, highest=math.inf, draw=None):
    """Alg. 2 of the paper down to the last of ``sigmas``, with D(y, sigma); no noise goes beyond ``highest``."""
    n = len(sigmas) - 1
    for i, (here, there) in enumerate(pairwise(sigmas)):
        gamma = min(churn / n, math.sqrt(2) - 1) if s_min <= here <= s_max else 0.0
        hat = min(here * (1 + gamma), highest)
        if hat > here * (1 + 1e-12):
            y = y + math.sqrt(hat**2 - here**2) * s_noise * draw(i)
        slope = (y - denoise(y, hat)) / hat
        euler = y + (there - hat) * slope
        y = y + (there - hat) * (slope / 2 + (euler - denoise(euler, there)) / (2 * there))
    return y


def exact_denoiser(model: GaussianMixture):
    """D(y, sigma) of the same data on alpha = 1, with no path at all."""

    def denoise(y, sigma):
        variance = model.stds.square()[:, None, None] + sigma**2
        gap = y[None] - model.means[:, None]
        log = -gap.square() / (2 * variance) - torch.log(variance) / 2
        share = torch.softmax(log.sum(2), dim=0)[..., None]
        return (share * (model.means[:, None] + model.stds.square()[:, None, None] * gap / variance)).sum(0)

    return denoise


OPTIONS = [
    {},
    {"churn": 5.0},
    {"churn": 40.0},
    {"churn": 40.0, "s_min": 0.05, "s_max": 5.0, "s_noise": 1.007},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_it_is_the_published_algorithm(name, options):
    # In y = x/alpha, sigma/alpha, for any path; with the solver's own normals.
    model, x, noise = ring(ALL[name]), prior(name, 12, 2), Noise.of(12, 7)
    low, high = model.domain.interval("sample")
    (a0, s0), (a1, s1) = (model.domain.sde.coefficients(torch.tensor(t, dtype=F64)) for t in (high, low))
    y = algorithm_2(
        exact_denoiser(model), x / a0, levels(float(s1 / a1), float(s0 / a0), 13),
        highest=float(s0 / a0), draw=lambda i: noise.normal((2,), i, "solver", F64), **options,
    )  # fmt: skip
    solved = EDMHeun(12, **options)(model, x, noise=noise)
    assert float((solved.x - a1 * y).abs().max()) < 1e-6


def test_without_churn_it_is_heun_in_the_frame_ve():
    model, x = ring(VPSDE()), normals(12, 2)
    ours, same = EDMHeun(9)(model, x).x, RungeKutta(9, "heun", "ve", grid="karras")(model, x).x
    assert float((ours - same).abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["flow", "user_cosine"])
def test_where_alpha_is_0_the_first_step_is_a_jump(name):
    # No x/alpha at the start: alpha_s x0_hat + sigma_s eps_hat, and Heun's rule from there.
    model, x = ring(ALL[name]), normals(12, 2)
    times = (1.0, 0.9, 0.5, 0.2)
    a, s = model.domain.sde.coefficients(torch.tensor(0.9, dtype=F64))
    e = model(x, 1.0)
    rest = EDMHeun(grid=times[1:])(model, a * e.x0 + s * e.eps, t0=0.9, t1=0.2).x
    assert float((EDMHeun(grid=times)(model, x, t1=0.2).x - rest).abs().max()) < 1e-12


def test_cost_with_the_last_euler_step():
    # N noise levels and the zero: 2 N - 1 evaluations, the last of them the step to zero that every sampler takes.
    model = watched(ring(VESDE()))
    solved = sample(model, EDMHeun(17), (2,), Noise.of(4), dtype=F64)
    assert solved.nfe.tolist() == [2 * 18 - 1] * 4 == [len(model.times)] * 4
    assert sample(model, EDMHeun(17), (2,), Noise.of(4), dtype=F64, denoise=False).nfe.tolist() == [34] * 4
    assert EDMHeun().within(18).steps == 9 and EDMHeun().within(1) is None


@pytest.mark.parametrize("name", FIVE)
def test_noise_never_goes_above_the_start(name):
    # There is no model above the start, nor below the end: the first steps churn less, and the first not at all.
    model = watched(ring(ALL[name]))
    low, high = model.domain.interval("sample")
    for t0 in (high, 0.7):
        solved = EDMHeun(6, churn=100.0)(model, prior(name, 8, 2), t0=t0, noise=Noise.of(8))
        assert bool(solved.ok.all())
        asked = torch.cat(model.times)
        assert float(asked.max()) <= t0 and float(asked.min()) >= low
        model.times.clear()


def test_noise_is_put_in_between_its_levels_only():
    model, x, noise = ring(VESDE()), prior("ve", 8, 2), Noise.of(8)
    plain = EDMHeun(12)(model, x, noise=noise, record=True).trajectory
    churned = EDMHeun(12, churn=20.0, s_max=1.0)(model, x, noise=noise, record=True).trajectory
    same = (plain.states(0) - churned.states(0)).abs().amax(1) < 1e-12
    sigma = VESDE().sigma(plain.times(0))
    # A step that leaves from a level above s_max is without noise, so that the state after it is the same.
    assert bool(same[: int((sigma > 1).sum()) + 1].all()) and not bool(same[int((sigma > 1).sum()) + 1 :].any())
    assert EDMHeun(12, churn=20.0, s_min=1e8).stochastic
    none = EDMHeun(12, churn=20.0, s_min=1e8)(model, x, noise=noise).x
    assert float((none - EDMHeun(12)(model, x).x).abs().max()) < 1e-12


@pytest.mark.parametrize("name", FEW_AND_ALL)
def test_churn_leaves_the_law_alone(name):
    # Noise in and out again: the variance is right to the second order of a step, however much there is.
    for churn in (10.0, 60.0):
        off = [excess(EDMHeun(churn=churn, grid="logsnr"), gaussian(ALL[name], 1, 0.3, 0.5), n) for n in (160, 320)]
        assert abs(off[0]) < 0.06 and abs(off[1]) < 0.35 * abs(off[0])


def test_more_noise_than_is_right_widens_the_samples():
    model = gaussian(VPSDE(), 1, 0.3, 0.5)
    fine = excess(EDMHeun(churn=20.0), model, 200)
    assert excess(EDMHeun(churn=20.0, s_noise=1.05), model, 200) > fine + 0.02


def test_it_needs_the_score_only_with_churn():
    assert not EDMHeun().needs_score and not EDMHeun().stochastic
    assert EDMHeun(churn=1.0).needs_score and EDMHeun(churn=1.0).stochastic
    with pytest.raises(UsageError, match="from noise to data"):
        EDMHeun(churn=1.0)(ring(VPSDE()), normals(2, 2), t0=0.1, t1=0.9)
    for options in ({"churn": -1.0}, {"s_noise": 0.0}):
        with pytest.raises(UsageError, match=r"churn is -1.0|s_noise is 0.0"):
            EDMHeun(**options)
    assert replace(EDMHeun(), grid="sqrt") != EDMHeun()


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_it_encodes(name):
    model = gaussian(ALL[name], dims=2)
    low, high = model.domain.interval("sample")
    x = 0.3 + 0.5 * normals(8, 2)
    solver = EDMHeun(150, grid="logsnr")
    z = solver(model, x, t0=low, t1=high).x
    assert float((solver(model, z, t0=high, t1=low).x - x).abs().max()) < 2e-3


@pytest.mark.parametrize("option", [{"s_min": 0.1}, {"s_max": 10.0}, {"s_noise": 1.003}])
def test_options_of_the_churn_need_churn(option):
    EDMHeun(4, churn=10.0, **option)
    with pytest.raises(UsageError, match="no effect without churn"):
        EDMHeun(4, **option)
