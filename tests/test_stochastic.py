"""Stochastic solvers on a fixed grid: published steps, exact moments, weak order, and one Brownian path.

Moments are those of ``solving.moments``, without any Monte Carlo.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from models import ALL, F64, gaussian, normals, ring, watched
from scipy.integrate import quad
from solving import FIVE, SLOW, excess, marginal, moments

from scoresde import VPSDE, EulerMaruyama, Noise, SubVPSDE
from scoresde.core.errors import UsageError
from scoresde.sde.grids import make_grid
from scoresde.solvers import DDIM, Ancestral, EDMHeun, MultistepSDE, StochasticHeun
from scoresde.solvers.exponential import er_sde, sa_solver, sde_dpm
from scoresde.solvers.pc import reverse_diffusion


def test_impulses_give_the_moments_of_samples():
    # The method of this file, held against 40,000 samples.
    model, solver = gaussian(VPSDE(), dims=1, mean=0.3, std=0.15), MultistepSDE(12)
    mean, variance = moments(solver, model, (0.0, 1.0))
    x = solver(model, normals(40_000, 1), noise=Noise.of(40_000, 3)).x
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))


@pytest.mark.parametrize("solver", [EulerMaruyama(500, 30.0), StochasticHeun(100, 10.0)], ids=str)
def test_steps_that_overshoot_are_refused_before_the_first(solver):
    # They came out 1e16 to 1e79 times too wide, and as a success. With a tenth of the noise they are right.
    for name in ("vp", "ve", "flow"):
        model = watched(gaussian(ALL[name], dims=1))
        if name != "flow" or isinstance(solver, EulerMaruyama):
            with pytest.raises(UsageError, match="steps overshoot") as refused:
                solver(model, normals(2, 1))
            assert refused.value.parameter == "eta" and not model.times
        assert excess(replace(solver, eta=solver.eta / 10), model.model, solver.steps) == pytest.approx(0, abs=0.3)


# ---------------------------------------------------------------------------------------------------------- weak order

WEAK = {
    "em": (EulerMaruyama(), 1),
    "heun-sde": (StochasticHeun(), 2),
    "ddim, eta 1": (DDIM(eta=1.0), 1),
    "ddim, eta 0.5": (DDIM(eta=0.5), 1),
    "ancestral": (Ancestral(), 1),
    "reverse-diffusion": (reverse_diffusion(), 1),
    "sde": (MultistepSDE(), 2),
    "sde, exact": (MultistepSDE(rule="exact"), 2),
    "sa": (sa_solver(), 2),
    "er-sde": (er_sde(), 2),
    "edm with churn": (EDMHeun(churn=20.0), 2),
}


# On VP all of them, on the flow one of each class.
ON_FLOW = ("em", "heun-sde", "ddim, eta 0.5", "sde", "edm with churn")


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *(("vp", s) for s in WEAK),
        *(("flow", s) if s in ON_FLOW else pytest.param("flow", s, marks=SLOW) for s in WEAK),
        *(pytest.param(name, s, marks=SLOW) for name in ("subvp", "ve", "user_cosine") for s in WEAK),
    ],
)
def test_weak_order(name, solver):
    """How the error of the variance falls. A noise level that is constant over a step is a level like any other, and
    costs no order; what a multistep solver makes of a rough path is of weak order 2, whatever the polynomial's."""
    made, order = WEAK[solver]
    model = gaussian(ALL[name], dims=1, mean=0.3, std=0.5)
    steps = (400, 800) if (name, solver) == ("ve", "em") else (150, 300)
    coarse, fine = (excess(replace(made, grid="sqrt"), model, n) for n in steps)
    measured = math.log2(coarse / fine)
    assert measured > order - 0.15 and (measured < order + 0.15 or solver in ("sa", "er-sde"))


@pytest.mark.parametrize("solver", ["em", "heun-sde", "reverse-diffusion"])
def test_weak_order_on_a_grid_that_leaps_over_what_holds_nothing_of_the_data(solver):
    # alpha(1) is 2e-19: one step to sigma = 22,000 alpha, however many there are. The spread stayed 1 to 6 % off.
    made, order = WEAK[solver]
    model = gaussian(SubVPSDE(0.2, 170.0), dims=1, mean=0.3, std=0.5)
    coarse, fine = (excess(replace(made, grid="karras"), model, n) for n in (400, 800))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("steps", "std", "ratio"),
    [
        (50, 0.15, 1.06803), (100, 0.15, 1.02371), (200, 0.15, 1.00981), (50, 1.0, 1.01423), (200, 1.0, 1.00351),
    ],
)  # fmt: skip
def test_variance_of_euler_maruyama_on_a_uniform_grid(steps, std, ratio):
    # The figures of an independent recursion: standard deviation over that of the marginal at t = 1e-3, on VP.
    model = gaussian(VPSDE(), dims=1, mean=0.0, std=std)
    solver = EulerMaruyama(steps, grid="uniform")
    variance = moments(solver, model, (0.0, 1.0))[1]
    assert math.sqrt(variance / marginal(model, 1e-3)[1]) == pytest.approx(ratio, abs=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_stochastic_heun_is_its_affine_recursion(eta):
    # From f = -beta/2 and g^2 = beta: drift f x - (1 + eta^2)/2 g^2 score, run down, with score = -(x - alpha m)/v.
    steps, m, std = 40, 0.3, 0.5
    sde, times = VPSDE(), make_grid("sqrt", VPSDE(), 40, 1.0, 1e-3).tolist()

    def drift(t):
        beta, (mean, v) = 0.1 + 19.9 * t, marginal(gaussian(sde, 1, m, std), t)
        pull = (1 + eta**2) / 2 * beta / v
        return -beta / 2 + pull, -pull * mean, eta * math.sqrt(beta)  # a x + c, and the noise level

    mean, variance = 0.0, 1.0
    for t, s in pairwise(times):
        h, (a, c, here), (a_s, c_s, there) = t - s, drift(t), drift(s)
        spread = math.sqrt(h * (here**2 + there**2) / 2)
        # x' = (1 - h a) x - h c + spread z;  x <- x - h/2 (a x + c + a_s x' + c_s) + spread z
        gain = 1 - h / 2 * (a + a_s * (1 - h * a))
        mean = gain * mean - h / 2 * (c + c_s - a_s * h * c)
        variance = gain**2 * variance + (spread * (1 - h / 2 * a_s)) ** 2
    found = moments(StochasticHeun(steps, eta=eta, grid="sqrt"), gaussian(sde, 1, m, std), (0.0, 1.0))
    assert found == pytest.approx((mean, variance), rel=1e-9)


# ------------------------------------------------------------------------------------------------- published one-steps


def step_of_vp(t=0.5, s=0.4):
    """Everything about a step of VP: alpha, sigma at both ends and the step h of log(alpha/sigma)."""
    (a, sigma), (a_s, sigma_s) = (VPSDE().coefficients(torch.tensor(v, dtype=F64)) for v in (t, s))
    return a, sigma, a_s, sigma_s, torch.log(a_s / sigma_s) - torch.log(a / sigma)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FIVE)
def test_one_step_of_ddim_has_the_posterior_of_the_path(name, eta):
    # q(x_s | x_t, x_0): variance s_s^2/s_t^2 (s_t^2 - (a_t/a_s)^2 s_s^2) at eta = 1, and eta times its root below. The
    # mean puts what is left of sigma_s^2 along eps.
    model, x, noise = ring(ALL[name]), normals(16, 2), Noise.of(16, 5)
    (a, sig), (a_s, sig_s) = (model.domain.sde.coefficients(torch.tensor(v, dtype=F64)) for v in (0.5, 0.4))
    variance = sig_s**2 / sig**2 * (sig**2 - (a / a_s) ** 2 * sig_s**2)
    e = model(x, 0.5)
    mean = a_s * e.x0 + torch.sqrt(sig_s**2 - eta**2 * variance) * e.eps
    if eta == 1:  # the posterior's mean, written with x_t: a_s(1 - r) x0 + r a_s/a x, r = a^2 s_s^2/(a_s^2 s_t^2)
        r = (a * sig_s / (a_s * sig)) ** 2
        assert torch.allclose(mean, a_s * (1 - r) * e.x0 + r * a_s / a * x, rtol=0, atol=1e-12)
    z = noise.normal((2,), 0, "solver", F64)
    solved = DDIM(1, eta=eta)(model, x, t0=0.5, t1=0.4, noise=noise).x
    assert float((solved - (mean + eta * torch.sqrt(variance) * z)).abs().max()) < 1e-12


def test_sde_dpm_solver_1_is_the_published_formula():
    # Lu et al. 2022, arXiv:2211.01095, sec. 6: a_s/a x - 2 s_s (e^h - 1) eps + s_s sqrt(e^2h - 1) z.
    a, _, a_s, sig_s, h = step_of_vp()
    model, x, noise = ring(VPSDE()), normals(16, 2), Noise.of(16, 5)
    z = noise.normal((2,), 0, "solver", F64)
    expected = a_s / a * x - 2 * sig_s * torch.expm1(h) * model(x, 0.5).eps + sig_s * torch.sqrt(torch.expm1(2 * h)) * z
    assert float((sde_dpm(1)(model, x, t0=0.5, t1=0.4, noise=noise).x - expected).abs().max()) < 1e-12


def test_2m_sde_is_the_published_formula():
    # The same paper, SDE-DPM-Solver++(2M): s_s/s_t e^-h x + a_s (1 - e^-2h) D + s_s sqrt(1 - e^-2h) z with the D of 2M.
    model, x, noise = ring(VPSDE()), normals(16, 2), Noise.of(16, 5)
    times, before = make_grid("logsnr", VPSDE(), 6, 1.0, 1e-3), None
    lam, (alpha, sigma), start = VPSDE().log_snr(times) / 2, VPSDE().coefficients(times), x
    for i in range(6):
        h, x0 = lam[i + 1] - lam[i], model(x, times[i]).x0
        d = x0
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            d = x0 + (x0 - before) / (2 * r)
        z = noise.normal((2,), i, "solver", F64)
        x = sigma[i + 1] / sigma[i] * torch.exp(-h) * x - alpha[i + 1] * torch.expm1(-2 * h) * d
        x, before = x + sigma[i + 1] * torch.sqrt(-torch.expm1(-2 * h)) * z, x0
    solved = MultistepSDE(6, grid="logsnr")(model, start, noise=noise).x
    assert float((solved - x).abs().max()) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_sa_solver_is_the_published_scheme(tau, order):
    # Xue et al. 2023, arXiv:2305.14267, eq. 14, 17: x_s = s_s/s_t e^(-tau^2 h) x + sum_j b_j x0_j + s_s xi, where
    # b_j = s_s int e^(-tau^2 (l_s - l)) (1 + tau^2) e^l L_j(l) dl and xi^2 has mean 1 - e^(-2 tau^2 h); the corrector
    # is the same with the value at s among the x0_j, and the same xi.
    model, x, noise = ring(VPSDE()), normals(16, 2), Noise.of(16, 5)
    times = make_grid("logsnr", VPSDE(), 5, 1.0, 1e-3)
    lam, (_, sigma), start = (VPSDE().log_snr(times) / 2).tolist(), VPSDE().coefficients(times), x

    def update(x, i, nodes, values):
        h = lam[i + 1] - lam[i]
        total = sigma[i + 1] / sigma[i] * math.exp(-(tau**2) * h) * x
        for j, (node, value) in enumerate(zip(nodes, values, strict=True)):

            def weight(at, j=j, node=node):
                lagrange = math.prod((at - o) / (node - o) for k, o in enumerate(nodes) if k != j)
                return math.exp(at - tau**2 * (lam[i + 1] - at)) * (1 + tau**2) * lagrange

            b = quad(weight, lam[i], lam[i + 1], epsabs=1e-13, epsrel=1e-12)[0]
            total = total + sigma[i + 1] * b * value
        xi = math.sqrt(-math.expm1(-2 * tau**2 * h)) * noise.normal((2,), i, "solver", F64)
        return total + sigma[i + 1] * xi

    nodes, values, before = [], [], x
    for i in range(5):
        x0 = model(x, times[i]).x0
        if i:
            x = update(before, i - 1, [lam[i], *nodes], [x0, *values])
        nodes, values, before = [lam[i], *nodes][:order], [x0, *values][:order], x
        x = update(x, i, nodes, values)
    solved = sa_solver(5, order, tau, grid="logsnr")(model, start, noise=noise).x
    assert float((solved - x).abs().max()) < 1e-10


def test_er_sde_1_is_the_published_formula_up_to_its_noise_within_a_step():
    # Cui et al. 2023, arXiv:2309.06169, eq. 12 in y = x/alpha, with phi(s) = s (e^(s^0.3) + 10) and r = phi(s')/phi(s):
    # y' = r y + (1 - r) x0 + sqrt(s'^2 - s^2 r^2) z. Ours takes the noise level of the step's middle, off by h^3.
    model, x, noise = ring(VPSDE()), normals(16, 2), Noise.of(16, 5)
    z, off = noise.normal((2,), 0, "solver", F64), []
    for s in (0.4, 0.45, 0.475):
        a, sig, a_s, sig_s, _ = step_of_vp(0.5, s)
        here, there = sig / a, sig_s / a_s

        def phi(level):
            return level * (torch.exp(level**0.3) + 10)

        r = phi(there) / phi(here)
        y = r * x / a + (1 - r) * model(x, 0.5).x0 + torch.sqrt(there**2 - (here * r) ** 2) * z
        solved = er_sde(1, order=1)(model, x, t0=0.5, t1=s, noise=noise).x
        off.append(float((solved - a_s * y).abs().max()))
    assert off[0] < 2e-3
    # In the variance the difference is h^3, in the deviation, which is like sqrt(h), h^2.5.
    assert all(math.log2(a / b) > 2.3 for a, b in pairwise(off))


@pytest.mark.parametrize("name", FIVE)
def test_ancestral_sampling_is_ddim_with_eta_one(name):
    model, x, noise = ring(ALL[name]), ALL[name].prior_std * normals(16, 2), Noise.of(16, 5)
    one, other = (s(model, x, noise=noise).x for s in (Ancestral(12), DDIM(12, eta=1.0)))
    assert float((one - other).abs().max()) < 1e-11


# ------------------------------------------------------------------------------------------------ one Brownian path


@pytest.mark.parametrize(
    "solver",
    [EulerMaruyama(), StochasticHeun(), MultistepSDE(), EDMHeun(churn=5.0)],
    ids=["em", "heun-sde", "sde", "edm"],
)
def test_on_a_brownian_path_the_sample_converges(solver):
    # The change of a sample halves as the steps double; other normals for other steps would make another sample of it.
    # Nodes at multiples of 2^-6 and t down to 1/8 spare the path most of its 20 levels.
    model, x, changes = ring(VPSDE(), std=0.3), normals(40, 2), {}
    for brownian in (True, False):
        noise = Noise.of(40, 4, brownian=brownian)
        ends = [
            replace(solver, steps=n, grid="uniform")(model, x, t1=0.125, noise=noise).x
            for n in ((14, 28, 56) if brownian else (14, 28))
        ]
        changes[brownian] = [float((b - a).norm(dim=1).median()) for a, b in pairwise(ends)]
    first, second = changes[True]
    assert second < 0.6 * first and second < 0.1 * changes[False][0]


def test_the_path_is_one_for_the_sample_and_not_for_the_batch():
    model, noise = ring(VPSDE(), std=0.3), Noise.of(6, 4, brownian=True)
    solver, x = MultistepSDE(15, grid="uniform"), normals(6, 2)
    whole, rows = solver(model, x, t1=0.0625, noise=noise).x, torch.tensor([4, 1])
    part = solver(model, x[rows], t1=0.0625, noise=noise.rows(rows)).x
    assert torch.equal(part, whole[rows])
