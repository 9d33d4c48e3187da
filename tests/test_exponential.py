"""Exponential multistep solvers: their order, their published special cases, and the same steps on every path."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from models import ALL, F64, FOUR, gaussian, gaussian_flow, normals, ring, watched

from scoresde import VPSDE, FlowMatching, Noise
from scoresde.core.errors import UsageError
from scoresde.model.estimate import Wrapped
from scoresde.sde.grids import make_grid
from scoresde.solvers import DDIM, Ancestral, EulerMaruyama, Multistep, MultistepSDE, ProbabilityFlow, RungeKutta
from scoresde.solvers.exponential import deis, dpmpp_2m

VARIABLES = ("x0", "eps", "straight", "v")


def start(sde, *shape, seed=0):
    return sde.prior_std * normals(*shape, seed=seed)


def slope(solver_of, name, steps=(64, 128)):
    """Order of convergence, from the median error on one Gaussian (whose flow is known)."""
    model = gaussian(ALL[name], dims=1, std=0.3)
    z = start(ALL[name], 64, 1)
    low, high = model.domain.interval("sample")
    exact = gaussian_flow(model, z, high, low)
    errors = [float((solver_of(n)(model, z).x - exact).abs().median()) for n in steps]
    return math.log2(errors[-2] / errors[-1])


# Up to order 2: the first step, of order 1, makes an error of h^2 where q moves from the start on.
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("variable", ["straight", "v"])
@pytest.mark.parametrize("name", ["flow", "user_cosine"])
def test_order_where_nothing_of_the_data_is_left_at_the_start(name, variable, order):
    # The clocks of straight and v are finite at both ends.
    measured = slope(lambda n: Multistep(steps=n, variable=variable, order=order, grid="uniform"), name)
    assert measured > order - 0.25


def test_a_step_too_long_for_its_polynomial_is_of_first_order():
    # The last step of a grid uniform in t is 7 units of log noise long; extrapolated that far, 2M is useless.
    model, z = ring(FlowMatching()), start(FlowMatching(), 256, 2)
    exact = ProbabilityFlow(rtol=1e-8, atol=1e-8)(model, z).x
    error = (dpmpp_2m(steps=40, grid="uniform")(model, z).x - exact).norm(dim=1)
    assert float(error.square().mean().sqrt()) < 0.1


@pytest.mark.parametrize("order", [1, 2, 3])
def test_correction_adds_an_order_and_no_evaluation(order):
    model = watched(gaussian(VPSDE(), dims=1, std=0.3))
    solved = Multistep(steps=10, order=order, correct=True)(model, start(VPSDE(), 4, 1))
    assert len(model.times) == 10 and solved.nfe.tolist() == [10] * 4
    corrected = slope(lambda n: Multistep(steps=n, variable="x0", order=order, correct=True, grid="logsnr"), "vp")
    assert corrected > order + 0.65


@dataclass(frozen=True)
class Jump(Wrapped):
    """A model whose x0 is too large by a millionth from t = 0.6 on."""

    def __call__(self, x, t):
        e = self.model(x, t)
        return replace(e, x0=e.x0 + 1e-6 * (e.t >= 0.6).to(e.x0.dtype).reshape(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("apart", [1e-3, 1e-5])
@pytest.mark.parametrize("variable", ["x0", "gauss"])
def test_a_correction_that_would_magnify_errors_is_left_out(variable, apart):
    # Two values so near to each other, and a step that is so much longer: the parabola through them and the value at
    # its end has weights of up to h/apart, and would make a hundred millionths or more out of one.
    model, z = ring(VPSDE()), normals(64, 2)
    solver = Multistep(5, variable, 2, correct=True, taper=False, grid=(1.0, 0.6, 0.6 - apart, 0.2, 0.1, 1e-3))
    moved = (solver(Jump(model), z).x - solver(model, z).x).norm(dim=1).median()
    assert float(moved) < 2e-6


def test_ddim_on_the_straight_path_is_euler_on_the_velocity():
    model = ring(FlowMatching())
    x = z = start(FlowMatching(), 16, 2)
    times = make_grid("uniform", FlowMatching(), 9, 1.0, 1e-5)
    for t, s in pairwise(times):
        x = x + (s - t) * model(x, t).velocity
    assert float((DDIM(steps=9)(model, z).x - x).abs().max()) < 1e-12


def test_dpmpp_2m_is_the_published_formula():
    # Lu et al. 2022, arXiv:2211.01095, alg. 2: D = (1 + 1/2r) x0_i - 1/2r x0_{i-1}, r = h_{i-1}/h_i.
    sde, model = VPSDE(), ring(VPSDE())
    x = z = start(sde, 16, 2)
    times = make_grid("logsnr", sde, 8, 1.0, 1e-3)
    lam = sde.log_snr(times) / 2
    previous = None
    for i in range(8):
        x0, h = model(x, times[i]).x0, lam[i + 1] - lam[i]
        d = x0
        if previous is not None:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - previous / (2 * r)
        (_, sigma_t), (alpha_s, sigma_s) = sde.coefficients(times[i]), sde.coefficients(times[i + 1])
        x, previous = sigma_s / sigma_t * x - alpha_s * torch.expm1(-h) * d, x0
    whole = replace(dpmpp_2m(steps=8, grid="logsnr"), taper=False)
    assert float((whole(model, z).x - x).abs().max()) < 1e-12


def test_deis_second_order_is_the_closed_form():
    # eps linear in lambda: int e^-l (eps_0 + (l - l_0) d) dl in closed form, one step with one earlier value.
    sde, model = VPSDE(), ring(VPSDE())
    z = start(sde, 16, 2)
    times = make_grid("logsnr", sde, 2, 1.0, 0.3)
    lam = sde.log_snr(times) / 2
    (a0, s0), (a1, s1), (a2, _) = (sde.coefficients(t) for t in times)
    e0 = model(z, times[0]).eps
    x = a1 / a0 * z + a1 * (s1 / a1 - s0 / a0) * e0
    e1, h = model(x, times[1]).eps, lam[2] - lam[1]
    d = (e1 - e0) / (lam[1] - lam[0])
    integral = torch.exp(-lam[1]) * (-torch.expm1(-h) * e1 + (1 - torch.exp(-h) * (1 + h)) * d)
    expected = a2 / a1 * x - a2 * integral
    assert float((deis(steps=2, order=2, grid="logsnr")(model, z, t1=0.3).x - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("user_ve", deis()), ("user_cosine", Multistep(correct=True)),
        pytest.param("user_ve", Multistep(correct=True), marks=pytest.mark.slow),
        pytest.param("user_cosine", deis(), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_finite_in_the_domain_and_close_at_any_number_of_steps(name, solver):
    import dataclasses

    for steps in (1, 2, 5, 40):
        model = watched(ring(ALL[name]))
        x = dataclasses.replace(solver, steps=steps)(model, start(ALL[name], 64, 2)).x
        assert bool(torch.isfinite(x).all())
        times = torch.cat(model.times)
        assert float(times.max()) <= 1.0 and float(times.min()) >= ALL[name].times("sample")[0]
    exact = ProbabilityFlow(rtol=1e-5, atol=1e-5)(model.model, start(ALL[name], 64, 2)).x
    assert float((x - exact).norm(dim=1).median()) < 0.1


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_a_multistep_solver_beats_heun_at_equal_cost(name):
    # 20 evaluations on the ring: 20 multistep steps against 10 of Heun.
    model, z = ring(FOUR[name]), start(FOUR[name], 128, 2)
    exact = ProbabilityFlow(rtol=1e-7)(model, z).x

    def rms(solver):
        return float((solver(model, z).x - exact).square().sum(1).mean().sqrt())

    assert rms(Multistep(steps=20, grid="sqrt")) < rms(RungeKutta(steps=10, grid="sqrt"))


def test_bad_options_are_refused():
    for options, words in (
        ({"variable": "score"}, "straight"),
        ({"order": 0}, "order"),
        ({"rule": "simpson"}, "midpoint"),
    ):
        with pytest.raises(UsageError, match=words):
            Multistep(**options)


# ------------------------------------------------------------------------------------------------ stochastic


def test_ancestral_step_is_the_posterior_of_ddpm():
    # Ho et al. 2020, eq. 6-7: q(x_s | x_t, x_0) on neighbouring nodes, for VP.
    sde, model = VPSDE(), ring(VPSDE())
    t, s = torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64)
    bar_t, bar_s = sde.alpha(t) ** 2, sde.alpha(s) ** 2
    a, b = bar_t / bar_s, 1 - bar_t / bar_s
    x, noise = normals(16, 2), Noise.of(16, 5)
    x0 = model(x, t).x0
    mean = torch.sqrt(bar_s) * b / (1 - bar_t) * x0 + torch.sqrt(a) * (1 - bar_s) / (1 - bar_t) * x
    z = noise.normal((2,), 0, "solver", F64)
    expected = mean + torch.sqrt((1 - bar_s) / (1 - bar_t) * b) * z
    solved = Ancestral(steps=1)(model, x, t0=0.5, t1=0.4, noise=noise)
    assert float((solved.x - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ALL)
def test_without_noise_it_is_the_deterministic_solver(name, order):
    model, z = ring(ALL[name]), start(ALL[name], 16, 2)
    a = MultistepSDE(steps=15, order=order, eta=0.0, rule="exact")(model, z).x
    b = Multistep(steps=15, order=order, variable="x0")(model, z).x
    assert float((a - b).abs().max()) < 1e-11


def test_forty_exponential_steps_beat_two_hundred_of_euler_maruyama():
    # Width of narrow modes (0.02, and the noise left at t = 1e-3), each solver on a uniform grid.
    n, errors = 1500, []
    for solver in (MultistepSDE(steps=40), EulerMaruyama(steps=200, grid="uniform")):
        model = ring(VPSDE(), std=0.02)
        x = solver(model, start(VPSDE(), n, 2), noise=Noise.of(n, 3)).x
        near = (x[:, None] - model.means).norm(dim=2).amin(1)
        sigma = float(VPSDE().sigma(torch.tensor(1e-3, dtype=F64)))
        errors.append(abs(float(near.square().mean().sqrt()) / math.sqrt(2 * (0.02**2 + sigma**2)) - 1))
    assert errors[0] < 0.5 * errors[1]
