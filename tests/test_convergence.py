"""Solvers against the truth: their order, what a tolerance is worth, and what all of them have in common.

The acceptance checks of solvers, each with the test that holds it. Files: conv(ergence), exp(onential), like(lihood),
est(imate), solv(ers), single(step), stoch(astic), and so on. "B" are those on engines and the flow.

1   order on the mixture, log-SNR grid      conv::test_order_on_the_mixture, ::test_unipc_of_order..., ::test_order_four
2   the same on one Gaussian, rms           conv::test_order_on_one_gaussian_in_rms
3   first order is DDIM, by any name        conv::test_every_first_order_method_is_DDIM, single::test_order_one...
4   midpoint rule = DPM-Solver-2            single::test_the_midpoint_rule_in_log_noise_is_dpm_solver_2
5   2M, exact and midpoint                  conv::test_exact_and_midpoint_2m*, exp::test_dpmpp_2m_is_the_published...
6   DDIM(eta), one step                     stoch::test_one_step_of_ddim..., ::test_spread..., exp::test_ancestral_...
7   ancestral sampling errs by 1/N          stoch::test_weak_order (ancestral, ddim)
8   every eta has the marginals             level::test_every_level_and_eta..., ::test_the_mixture_at_every_eta
9   all targets, one trajectory             conv::test_every_target_gives_the_same_sample
10  all paths, one trajectory               conv::test_every_path_takes_the_same_steps...
11  conversions of targets                  conv::test_targets_convert_at_any_noise_level, est::test_round_trip
12  guidance                                conv::test_guidance_..., ::test_guided_..., model::test_guidance_is_...
13  tolerance and evaluations               conv::test_error_and_evaluations_follow_the_tolerance
14  a row alone and in a batch              solv::test_batch_coupling_*, conv::test_a_sample_is_the_same_in_any_batch...
15  likelihood                              like::test_c13, c14, ..., conv::test_likelihood_of_the_mixture
16  there and back                          solv::test_there_and_back, conv::test_*_there_and_back
17  one Brownian path, more steps           stoch::test_on_a_brownian_path_...
18  counted evaluations                     conv::test_evaluations_are_counted, edm::test_cost_..., pc::test_cost
19  the ends of the grid, and N = 1         conv::test_one_step_*, ::test_down_to_no_noise, grids::test_*_refused
20  schedules and grids                     sde::test_*, grids::test_* (discrete betas: original::test_*)
B4  gain of a decade of tolerance           conv::test_a_decade_of_tolerance, ::test_float32_stops_at_its_own_rounding
B5  order on a sqrt-t grid                  conv::test_order_on_the_sqrt_grid
B6  batch independence                      solv::test_batch_coupling_*, conv::test_rounding_is_not_magnified
B7  no call outside the domain              conv::test_evaluations_are_counted, ::test_down_to_no_noise
B8  one model on another path               conv::test_a_vp_model_on_the_straight_path
B9  variance of Euler-Maruyama              stoch::test_variance_of_euler_maruyama_on_a_uniform_grid
B10 the family of SDEs on the flow          level::test_the_mixture_at_every_eta, ::test_noise_that_is_alive_at_the_end
B11 round trip, probes                      solv::test_there_and_back, like::test_probes_*, conv::test_*_probe*

Where alpha = 0 at the start (flow, cosine) the grids in log-SNR begin with one jump; there q hardly moves, and the
orders are those of the other paths. On a grid uniform in t multistep solvers start with an error of h^2 there, and that
is their order: test_the_start_bounds_the_order_on_a_uniform_grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise, product

import pytest
import torch
from models import ALL, F64, Poisoned, gaussian, gaussian_flow, normals, ring, watched
from solving import FEW_AND_ALL, FIVE, FOUR_AND_COSINE, OURS, SLOW, case, errors, prior, slopes, small, start
from torch import Tensor

from scoresde import (
    EDM,
    SDE,
    VESDE,
    VPSDE,
    X0,
    Eps,
    FlowMatching,
    Guided,
    Likelihood,
    Noise,
    ProbabilityFlow,
    RungeKutta,
    Score,
    ScoreModel,
    V,
    Velocity,
    log_likelihood,
)
from scoresde.core.shapes import expand
from scoresde.core.tables import SOLVERS
from scoresde.model.estimate import Estimate, Wrapped
from scoresde.model.parametrization import Parametrization
from scoresde.nn import MLP
from scoresde.ode.integrate import FAILED_NONFINITE, OK, TABLEAUS
from scoresde.sde.grids import make_grid
from scoresde.solvers import DDIM, EDMHeun, Multistep, MultistepSDE, Singlestep, sample
from scoresde.solvers.exponential import unipc

TARGETS = [Eps(), X0(), Score(), V(), Velocity(), EDM(0.5)]

ALONE = [name for name in SOLVERS if name not in ("particles", "tuned")]  # which need something more


# ---------------------------------------------------------------------------------------------------- order (1, 2, B5)


def multistep(variable: str, order: int, rule: str = "exact", correct: bool = False) -> Multistep:
    return Multistep(1, variable, order, rule, correct, taper=False)


# Solver, order, and the steps from which on VP the slope is the order's to within 0.15.
ORDERS = {
    "euler": (RungeKutta(method="euler", frame="t"), 1, 64),
    "ddim": (DDIM(), 1, 64),
    "heun": (RungeKutta(method="heun"), 2, 64),
    "midpoint": (RungeKutta(method="midpoint"), 2, 64),
    "edm": (EDMHeun(), 2, 64),
    "dpm2s": (Singlestep(1, "eps", 2), 2, 64),
    "dpm++2s": (Singlestep(1, "x0", 2), 2, 64),
    "dpm++2m": (multistep("x0", 2, "midpoint"), 2, 64),
    "deis, order 2": (multistep("eps", 2), 2, 64),
    "multistep, order 2": (multistep("straight", 2), 2, 128),
    "dpm++3m": (multistep("x0", 3), 3, 128),
    "deis": (multistep("eps", 3), 3, 128),
    "multistep, order 3": (multistep("straight", 3), 3, 128),
    "dpm3s": (Singlestep(1, "eps", 3, "exact"), 3, 64),
    "dpm++3s": (Singlestep(1, "x0", 3, "exact"), 3, 64),
    "rk4": (RungeKutta(method="rk4"), 4, 64),
    "multistep on v, order 3": (multistep("v", 3), 3, 128),
    "multistep on gauss, order 2": (multistep("gauss", 2), 2, 64),
    "multistep on gauss, order 3": (multistep("gauss", 3), 3, 128),
    "unipc, bh2": (multistep("x0", 2, "midpoint", True), 3, 64),
    "unipc, bh1": (multistep("x0", 2, "bh1", True), 3, 64),
    "unipc, exact": (multistep("x0", 2, "exact", True), 3, 64),
}


# On the flow, where alpha = 0 at the start, one solver of each kind.
KINDS = ("ddim", "edm", "dpm++2s", "deis", "unipc, bh2")
# Whose coefficients another test holds: of the polynomials at a higher order, of the published step, of the tableau.
HELD = (
    "euler", "midpoint", "dpm2s", "deis, order 2", "multistep, order 2", "multistep on gauss, order 2", "unipc, bh1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *(("vp", solver) if solver not in HELD else pytest.param("vp", solver, marks=SLOW) for solver in ORDERS),
        *(("flow", solver) for solver in KINDS),
        *(pytest.param(name, solver, marks=SLOW) for name in ("subvp", "ve", "user_cosine") for solver in ORDERS),
        *(pytest.param("flow", solver, marks=SLOW) for solver in ORDERS if solver not in KINDS),
    ],
)
def test_order_on_the_mixture(name, solver):
    # The log-SNR spans 19 units on VP, 17 on VE, but 27 on sub-VP and 43 on cosine and flow: the same step size in it
    # takes more steps there.
    made, order, steps = ORDERS[solver]
    steps *= 1 if name in ("vp", "ve") else 2
    measured = slopes(errors(replace(made, grid="logsnr"), *case(name), (steps, 2 * steps)))
    assert measured[-1] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", FEW_AND_ALL)
def test_the_default_multistep_solver_is_beyond_third_order(name):
    # From 40 steps on it takes four values and the corrector.
    e = errors(Multistep(grid="logsnr"), *case(name), (64, 256))
    assert math.log2(e[0] / e[1]) / 2 > 3.2


@pytest.mark.parametrize("name", FEW_AND_ALL)
def test_unipc_of_order_three_is_beyond_third_order(name):
    # Its corrector is of order 4; how much of that shows is ruled by the lower orders of its start.
    for variable in ("x0", "eps"):
        e = errors(replace(multistep(variable, 3, "midpoint", True), grid="logsnr"), *case(name), (64, 256))
        assert math.log2(e[0] / e[1]) / 2 > 3.2


@pytest.mark.parametrize("variable", ["straight", *(pytest.param(v, marks=SLOW) for v in ("x0", "eps", "v"))])
def test_order_four(variable):
    # Visible only where q does not move at the start: the first step, of order 1, leaves an error of h^2 times the
    # slope of q there, which falls like (alpha/sigma)^2. With sigma_max 5000 it is below 1e-10, with 50 it is not.
    solver, steps = replace(multistep(variable, 4), grid="logsnr"), 512 if variable == "eps" else 256
    measured = slopes(errors(solver, *case("ve", sde=VESDE(sigma_max=5e3)), (steps, 2 * steps)))
    assert measured[-1] == pytest.approx(4, abs=0.15 if variable != "eps" else 0.2)
    started = slopes(errors(solver, *case("ve", sde=VESDE(sigma_max=5.0)), (128, 256)))
    assert started[-1] == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize(("variable", "order"), [("straight", 3), pytest.param("v", 4, marks=SLOW)])
@pytest.mark.parametrize("name", ["flow", pytest.param("user_cosine", marks=SLOW)])
def test_the_start_bounds_the_order_on_a_uniform_grid(name, variable, order):
    measured = slopes(errors(replace(multistep(variable, order), grid="uniform"), *case(name), (512, 1024)))
    assert measured[-1] == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize(
    ("solver", "order"), [("heun", 2), ("dpm++2m", 2), ("dpm++3m", 3), ("multistep, order 3", 3), ("rk4", 4)]
)
def test_order_on_one_gaussian_in_rms(solver, order):
    # On a Gaussian no point is near a boundary between modes, and the rms has the slopes of the median.
    model, z = gaussian(VPSDE(), dims=2, std=0.3), normals(64, 2)
    exact = gaussian_flow(model, z, 1.0, 1e-3)
    made = replace(ORDERS[solver][0], grid="logsnr")
    e = [float((replace(made, steps=n)(model, z).x - exact).square().mean().sqrt()) for n in (64, 128, 256)]
    assert order - 0.15 < slopes(e)[-1] < order + (0.15 if solver != "dpm++3m" else 0.9)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("rk4", 4), ("dpm++2m", 2)])
@pytest.mark.parametrize("name", ["vp", *(pytest.param(name, marks=SLOW) for name in ("ve", "flow", "user_cosine"))])
def test_order_on_the_sqrt_grid(name, solver, order):
    # Not on sub-VP, where the error of rk4 falls from 4e-10 at 80 steps to rounding before it has a slope.
    model, z = gaussian(ALL[name], dims=1, mean=0.0, std=0.3), ALL[name].prior_std * normals(32, 1)
    low, high = model.domain.interval("sample")
    exact = gaussian_flow(model, z, high, low)
    steps = 320 if solver == "dpm++2m" else 80
    e = errors(replace(ORDERS[solver][0], grid="sqrt"), model, z, exact, (steps, 2 * steps))
    assert slopes(e)[-1] == pytest.approx(order, abs=0.15)


@dataclass(frozen=True)
class Powers(SDE):
    """alpha = (1 - t)^3, sigma = t^2: at log-SNR -20, where the grids begin, sigma has fallen by 7 %."""

    def alpha(self, t):
        return (1 - t) ** 3

    def sigma(self, t):
        return t**2


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_order_in_t_on_a_grid_that_leaps_over_what_holds_nothing_of_the_data(method, order):
    # However many steps, the first was one of the rule's own; the orders came down to 0.93, 0.74 and 0.06.
    model, z = gaussian(Powers(), dims=1, mean=0.0, std=0.5), normals(32, 1)
    low, high = model.domain.interval("sample")
    solver = RungeKutta(method=method, frame="t", grid="logsnr")
    e = errors(solver, model, z, gaussian_flow(model, z, high, low), (640, 1280))
    assert slopes(e)[-1] > order - 0.15


def test_every_tableau_has_the_order_it_claims():
    # The order conditions of Butcher, one for each rooted tree of up to five vertices.
    for name, tableau in TABLEAUS.items():
        a = torch.zeros(len(tableau.c), len(tableau.c), dtype=F64)
        for i, row in enumerate(tableau.a):
            a[i, : len(row)] = torch.tensor(row, dtype=F64)
        c, b, e = a.sum(1), a[-1], torch.tensor(tableau.e, dtype=F64)
        assert torch.allclose(c, torch.tensor(tableau.c, dtype=F64), rtol=0, atol=1e-12), name
        ac, aac, acc = a @ c, a @ (a @ c), a @ c**2
        trees = {
            1: [(torch.ones_like(c), 1)],
            2: [(c, 2)],
            3: [(c**2, 3), (ac, 6)],
            4: [(c**3, 4), (c * ac, 8), (acc, 12), (aac, 24)],
            5: [(c**4, 5), (c**2 * ac, 10), (ac**2, 20), (c * acc, 15), (a @ c**3, 20), (c * aac, 30),
                (a @ (c * ac), 40), (a @ acc, 60), (a @ aac, 120)],
        }  # fmt: skip
        for order in range(1, tableau.order + 1):
            for tree, factor in trees[order]:
                assert float(b @ tree) == pytest.approx(1 / factor, abs=1e-12), (name, order)
                if order < tableau.order:  # the embedded solution b - e is one order below
                    assert float(e @ tree) == pytest.approx(0, abs=1e-12), (name, order)
        assert max(abs(float(e @ tree)) for tree, _ in trees[tableau.order]) > 1e-4, name
        if tableau.g:  # the second estimate vanishes with the conditions up to order 3, and not with those of order 4
            g = torch.tensor(tableau.g, dtype=F64)
            assert max(abs(float(g @ tree)) for n in (1, 2, 3) for tree, _ in trees[n]) < 1e-14, name
            assert max(abs(float(g @ tree)) for tree, _ in trees[4]) > 1e-2, name
    assert {name for name, tableau in TABLEAUS.items() if tableau.g} == {"dopri5", "tsit5"}


# ------------------------------------------------------------------------------------------- tolerance (13, B4, B6, B8)


@pytest.mark.parametrize(("method", "order"), [("bosh3", 3), ("dopri5", 5), ("tsit5", 5)])
@pytest.mark.parametrize("name", FEW_AND_ALL)
def test_error_against_evaluations_has_the_order_of_the_method(name, method, order):
    model, z, exact = case(name)
    points = []
    for tolerance in (1e-4, 1e-6) if method != "bosh3" else (1e-3, 1e-5):
        solved = ProbabilityFlow(rtol=tolerance, atol=tolerance, method=method)(model, z)
        points.append((float((solved.x - exact).norm(dim=1).median()), float(solved.nfe.double().mean())))
    (e0, n0), (e1, n1) = points
    assert math.log(e0 / e1) / math.log(n1 / n0) > order - 0.15


def test_error_and_evaluations_follow_the_tolerance():
    model, z, exact = case("vp")
    rms, median = [], []
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        asked = watched(model)
        solved = ProbabilityFlow(rtol=tolerance, atol=tolerance)(asked, z)
        assert int(solved.nfe.sum()) == sum(asked.evaluations)
        e = (solved.x - exact).norm(dim=1)
        rms.append((float(e.square().mean().sqrt()), float(solved.nfe.double().mean())))
        median.append(float(e.median()))
        assert median[-1] < 50 * tolerance
    assert all(a > b for a, b in pairwise(median)) and all(a > b for (a, _), (b, _) in pairwise(rms))
    assert min(nfe for error, nfe in rms if error < 1e-3) <= 74


@pytest.mark.parametrize("name", FEW_AND_ALL)
def test_a_decade_of_tolerance(name):
    # Each gains a factor of 4 to 30 in the samples of the mixture; likelihoods: test_likelihood.py.
    model, z, exact = case(name)
    loose, tight = (
        float((ProbabilityFlow(rtol=tolerance)(model, z).x - exact).norm(dim=1).median()) for tolerance in (1e-3, 1e-6)
    )
    assert 4**3 < loose / tight < 30**3


def test_float32_stops_at_its_own_rounding():
    model, z, exact = case("vp")
    ends = []
    with pytest.warns(UserWarning, match="float32"):
        for tolerance in (1e-6, 1e-8):
            solved = ProbabilityFlow(rtol=tolerance, atol=tolerance)(model, z.float())
            assert bool(solved.ok.all()) and float(solved.nfe.double().mean()) < 400
            ends.append(float((solved.x.double() - exact).norm(dim=1).median()))
    assert ends[1] > 0.1 * ends[0] and ends[1] < 1e-5


@pytest.mark.parametrize(
    ("dtype", "change", "allowed"), [(F64, 1e-14, 1e-12), (torch.float32, 2.0**-22, 1e-6)], ids=["float64", "float32"]
)
def test_rounding_is_not_magnified(dtype, change, allowed):
    # The last digit, which another batch size or device may change, moves a sample by some such digits (median), as the
    # flow itself does, and no more.
    model, z = start("vp")
    solver = ProbabilityFlow(rtol=1e-3, atol=1e-3)
    moved = (solver(model, z.to(dtype)).x - solver(model, (z * (1 + change)).to(dtype)).x).norm(dim=1)
    assert float(moved.median()) < allowed and (dtype != F64 or float(moved.max()) < allowed)


@dataclass(frozen=True)
class Reclocked(Wrapped):
    """A model on another path: asked at the time of its own with the same log-SNR, in its own scale."""

    path: object

    @property
    def domain(self):
        own = self.model.domain
        return replace(own, sde=self.path, t_min=self._time(own.t_min), t_max=self._time(own.t_max))

    def _time(self, t):
        return float(self.path.t_of_log_snr(self.model.domain.sde.log_snr(torch.tensor(t, dtype=F64))))

    def __call__(self, x, t):
        t = torch.as_tensor(t, dtype=F64)
        theirs = self.model.domain
        own = theirs.sde.t_of_log_snr(self.path.log_snr(t)).clamp(theirs.t_min, theirs.t_max)
        scale = theirs.sde.scale(own) / self.path.scale(t)
        inner = self.model(expand(scale, x) * x, own)
        return Estimate(x, t, inner.x0, inner.eps, self.path)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_a_vp_model_on_the_straight_path(tolerance):
    # The straight frame is one frame for all paths: the model re-clocked takes the very steps it takes on its own.
    model, z, exact = case("vp")
    moved = Reclocked(model, FlowMatching())
    start, end = (moved._time(t) for t in (1.0, 1e-3))
    assert start == pytest.approx(0.993471, abs=1e-6) and end == pytest.approx(0.010377, abs=1e-6)
    (t0, t1), vp, flow = torch.tensor([1.0, 1e-3], dtype=F64), VPSDE(), FlowMatching()
    into = flow.scale(torch.tensor(start, dtype=F64)) / vp.scale(t0)
    solver = ProbabilityFlow(rtol=tolerance, atol=tolerance)
    there = solver(moved, into * z, t0=start, t1=end)
    back = there.x * vp.scale(t1) / flow.scale(torch.tensor(end, dtype=F64))
    here = solver(model, z)
    assert float((back - here.x).abs().median()) < 1e-11
    assert float((back - exact).norm(dim=1).max()) < {1e-4: 9e-3, 1e-6: 4e-4, 1e-8: 1e-6}[tolerance]


# ------------------------------------------------------------------------------------------------ published formulas


def by_hand(step, model, z, times) -> Tensor:
    """``step(x, estimate, t, s)`` down a grid."""
    x = z
    for t, s in pairwise(times):
        x = step(x, model(x, t), t, s)
    return x


@pytest.mark.parametrize("name", FIVE)
def test_every_first_order_method_is_DDIM(name):
    model, z = start(name)
    sde, times = model.domain.sde, make_grid("logsnr", model.domain.sde, 6, 1.0, model.domain.sde.times("sample")[0])

    def ddim(x, e, t, s):
        alpha, sigma = sde.coefficients(s)
        return alpha * e.x0 + sigma * e.eps

    expected = by_hand(ddim, model, z, times)
    solvers = [
        DDIM(6),
        *(Multistep(6, v, 1) for v in ("x0", "eps", "straight")),  # DPM-Solver++-1, DPM-Solver-1, Euler in r
        *(Singlestep(6, v, 1) for v in ("x0", "eps", "straight")),
        RungeKutta(6, "euler", "straight"),
        MultistepSDE(6, "x0", 1, eta=0.0),
        MultistepSDE(6, "x0", 1, eta=0.0, level="er"),  # ER-SDE-1 without noise
    ]
    if name not in ("flow", "user_cosine"):  # no sigma/alpha at the start
        solvers.append(RungeKutta(6, "euler", "ve"))
    if name == "flow":
        solvers.append(RungeKutta(6, "euler", "t"))
    for solver in solvers:
        assert float((replace(solver, grid="logsnr")(model, z).x - expected).abs().max()) < 1e-12, solver


@pytest.mark.parametrize("grid", ["logsnr", "sqrt", "karras"])
def test_exact_and_midpoint_2m(grid):
    # Linear in lambda between the last two values: sigma_s int e^l (D0 + (D0 - D1) (l - l_t)/h_1) dl in closed form.
    model, z = start("vp")
    times = make_grid(grid, VPSDE(), 12, 1.0, 0.05)  # no step is three times as long as the one before
    lam, before = VPSDE().log_snr(times) / 2, []

    def step(x, e, t, s):
        i = len(before)
        (_, sigma_t), (alpha_s, sigma_s) = VPSDE().coefficients(t), VPSDE().coefficients(s)
        h = lam[i + 1] - lam[i]
        x = sigma_s / sigma_t * x - alpha_s * torch.expm1(-h) * e.x0
        if before:
            x = x + alpha_s * (h + torch.expm1(-h)) / (lam[i] - lam[i - 1]) * (e.x0 - before[-1])
        before.append(e.x0)
        return x

    expected = by_hand(step, model, z, times)
    solver = multistep("x0", 2)
    assert float((replace(solver, grid=tuple(times.tolist()))(model, z, t1=0.05).x - expected).abs().max()) < 1e-12


def test_exact_and_midpoint_2m_differ_by_the_cube_of_a_step():
    model, z = start("vp")
    apart = []
    for h in (0.02, 0.01):
        grid = tuple(make_grid("logsnr", VPSDE(), 2, 0.5, 0.5 - h).tolist())
        one, other = (replace(multistep("x0", 2, rule), grid=grid) for rule in ("exact", "midpoint"))
        apart.append(float((one(model, z, t0=0.5, t1=0.5 - h).x - other(model, z, t0=0.5, t1=0.5 - h).x).norm()))
    assert slopes(apart)[0] == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("taper", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("variable", ["x0", "eps"])
def test_unipc_is_the_published_algorithm(variable, variant, order, taper):
    # Zhao et al. 2023, arXiv:2302.04867, eq. 3 and 5, for x0 eq. 8-9: with w = h (eps) or -h (x0), r_k = (l_k - l_t)/h,
    # 1 at the new end, and D_k = (m_k - m_0)/r_k a step subtracts B(h) sum_k rho_k D_k, where
    # sum_k rho_k r_k^(j-1) = j! w phi_{j+1}(w)/B, but rho = 1/2 where there is one D only. B is w (bh1), e^w - 1 (bh2).
    # Tapered, no step looks further back than there are steps to come (the published lower_order_final).
    model, z = start("vp")
    times = make_grid("logsnr", VPSDE(), 7, 1.0, 1e-3)
    lam = VPSDE().log_snr(times) / 2

    def rho(r, w, big_b):
        phi, b = torch.expm1(w) / w, []
        for j in range(1, len(r) + 1):
            phi = (phi - 1 / math.factorial(j)) / w  # phi_{j+1} = (phi_j - 1/j!)/w
            b.append(math.factorial(j) * w * phi / big_b)
        if len(r) == 1:
            return torch.tensor([0.5], dtype=F64)
        return torch.linalg.solve(torch.stack([r**j for j in range(len(r))]), torch.stack(b))

    def update(x, i, nodes, values):
        """From node i to the next, with the values at these nodes, of which the first is i."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (VPSDE().coefficients(t) for t in times[[i, i + 1]])
        keep, factor = (sigma_s / sigma_t, alpha_s) if variable == "x0" else (alpha_s / alpha_t, sigma_s)
        h = lam[i + 1] - lam[i]
        w = -h if variable == "x0" else h
        big_b = torch.expm1(w) if variant == "bh2" else w
        x = keep * x - factor * torch.expm1(w) * values[0]
        if len(nodes) > 1:
            r = (lam[nodes[1:]] - lam[i]) / h
            for share, at, value in zip(rho(r, w, big_b), r, values[1:], strict=True):
                x = x - factor * big_b * share * (value - values[0]) / at
        return x

    x, values, nodes, before = z, [], [], z
    for i in range(7):
        e = model(x, times[i])
        m = e.x0 if variable == "x0" else e.eps
        if i:  # the corrector; the last step has none, for its end is never evaluated
            x = update(before, i - 1, [*nodes, i], [*values, m])
        look = min(order, 7 - i) if taper else order
        values, nodes, before = [m, *values][:look], [i, *nodes][:look], x
        x = update(x, i, nodes, values)
    solver = replace(unipc(7, order, variable, variant, grid="logsnr"), taper=taper)
    assert float((solver(model, z).x - x).abs().max()) < 1e-11


# -------------------------------------------------------------------------------------- one truth, many ways (9 to 12)


@dataclass(frozen=True)
class Through(Wrapped):
    """A denoiser as a network with a given target would be: its output is made, and solved for x0 and eps again."""

    target: Parametrization

    @property
    def domain(self):
        own = self.model.domain
        return replace(own, t_max=self.target.legal_t_max(own.sde))

    def __call__(self, x, t):
        e, sde = self.model(x, t), self.domain.sde
        a, b = self.target.target(sde, torch.as_tensor(t, dtype=F64))
        return self.target.solve(sde, x, e.t, expand(a, x) * e.x0 + expand(b, x) * e.eps)


# One solver of each class; on the flow, whose targets end before alpha = 0, one of each way to use an estimate.
CLASSES = (
    "ode", "heun", "edm", "ddim", "multistep", "singlestep", "sde", "ancestral", "em", "heun-sde", "adaptive-sde", "pc",
    "torchsde",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *(pytest.param("vp", s, marks=SLOW if s == "adaptive-sde" else ()) for s in CLASSES),
        *(("flow", s) for s in ("heun", "multistep", "sde", "em")),
    ],
)
def test_every_target_gives_the_same_sample(name, solver):
    # Down to 1e-3, and on the flow from 0.999: nearer to the ends the conversions themselves lose the digits.
    model, made = ring(ALL[name]), small(solver)
    z, t0 = normals(8, 2), Through(model, Eps()).domain.t_max
    first, *others = (made(Through(model, p), z, t0=t0, t1=1e-3, noise=Noise.of(8)).x for p in TARGETS)
    for target, other in zip(TARGETS[1:], others, strict=True):
        assert float((other - first).abs().max()) < 1e-10, target


ALIKE = [
    DDIM(),
    DDIM(eta=1.0),
    RungeKutta(),
    RungeKutta(method="rk4"),
    EDMHeun(),
    EDMHeun(churn=5.0),
    *(multistep(v, k) for v in ("x0", "eps", "straight", "v") for k in (2, 3)),
    *(multistep(v, 2, "exact", True) for v in ("x0", "eps", "straight", "v")),
    *(multistep("x0", 2, rule, True) for rule in ("midpoint", "bh1")),
    *(Singlestep(1, v, k) for v in ("x0", "eps", "straight", "v") for k in (2, 3)),
    MultistepSDE(),
    MultistepSDE(variable="eps", order=1),
    MultistepSDE(order=2, rule="exact", correct=True),
    MultistepSDE(order=3, rule="exact", level="er"),
]


@pytest.mark.parametrize("solver", ALIKE, ids=repr)
def test_every_path_takes_the_same_steps_between_the_same_noise_levels(solver):
    levels, ends = torch.linspace(-7.0, 7.0, 13, dtype=F64), []
    for name in ("vp", "subvp", "ve", "flow"):
        model = ring(ALL[name])
        times = tuple(model.domain.sde.t_of_log_snr(levels).tolist())
        (a0, s0), (a1, _) = (model.domain.sde.coefficients(torch.tensor(t, dtype=F64)) for t in (times[0], times[-1]))
        z = a0 * (s0 / a0) * normals(8, 2)
        solved = replace(solver, grid=times)(model, z, t0=times[0], t1=times[-1], noise=Noise.of(8))
        ends.append(solved.x / a1)
    assert float((torch.stack(ends[1:]) - ends[0]).abs().max()) < 1e-7


@pytest.mark.parametrize("p", TARGETS, ids=str)
def test_targets_convert_at_any_noise_level(p):
    # At sigma from 1e-4 to 1e4: output of p, estimate, output of q, estimate, output of p.
    sde = VESDE(1e-4, 1e4)
    t = torch.linspace(0, 1, 17, dtype=F64).clamp(1e-5, 1)
    x0, eps = normals(17, 4), normals(17, 4, seed=1)
    x = sde.perturb(x0, t, eps)

    def output(target, x0, eps):
        a, b = target.target(sde, t)
        return expand(a, x) * x0 + expand(b, x) * eps

    first = output(p, x0, eps)
    there = p.solve(sde, x, t, first)
    for q in TARGETS:
        back = q.solve(sde, x, t, output(q, there.x0, there.eps))
        again = output(p, back.x0, back.eps)
        # An output can be no more exact than what the other target says of it: x0 is lost in eps at sigma 1e4, and the
        # other way at 1e-4, at 1e-16 times the ratio.
        assert float(((again - first) / first.abs().mean(1, keepdim=True)).abs().max()) < 1e-10, q


def conditional():
    torch.manual_seed(0)
    network = MLP(dims=2, width=16, blocks=1, classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ScoreModel(network, VPSDE(), EDM(), classes=3).double().eval().requires_grad_(False)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc", "dpm++3s", "heun", "ode", "sde", "em", "edm"])
def test_guidance_of_scale_one_is_the_conditional_model_and_of_zero_the_other(solver):
    model, made, z = conditional(), small(solver), normals(6, 2)
    cond, uncond = model.given(torch.tensor([0, 1, 2, 0, 1, 2])), model.given(3)

    def end(denoiser):
        return made(denoiser, z, noise=Noise.of(6))

    assert torch.equal(end(Guided(cond, uncond, 1.0)).x, end(cond).x)
    assert torch.allclose(end(Guided(cond, uncond, 0.0)).x, end(uncond).x, rtol=0, atol=1e-12)
    assert torch.equal(end(Guided(cond, uncond, 1.0)).nfe, end(cond).nfe)
    asked = watched(uncond)
    end(Guided(cond, asked, 1.0))
    assert not asked.times  # at scale 1 the other model is not asked


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("name", FOUR_AND_COSINE)
def test_guided_gaussians_are_a_product_of_powers(name, scale):
    # p_c^s / p_u^(s-1) of two Gaussians is a Gaussian: precisions and their means mix in the same proportion.
    sde = ALL[name]
    wide, narrow = gaussian(sde, dims=2, mean=0.0, std=1.0), gaussian(sde, dims=2, mean=0.8, std=0.3)
    guided, x = Guided(narrow, wide, scale), normals(16, 2)
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = sde.coefficients(torch.tensor(t, dtype=F64))
        v_c, v_u = 0.09 * alpha**2 + sigma**2, alpha**2 + sigma**2
        score = -scale * (x - 0.8 * alpha) / v_c - (1 - scale) * x / v_u
        e = guided(x, t)
        assert torch.allclose(e.score, score, rtol=1e-10, atol=1e-12)
        # One mixture for all targets: x0, eps and velocity belong to this score.
        assert torch.allclose(e.eps, -sigma * score, rtol=1e-9, atol=1e-12)
        assert torch.allclose(alpha * e.x0, x + sigma**2 * score, rtol=1e-9, atol=1e-11)
        rate_a, rate_s = sde.rates(torch.tensor(t, dtype=F64))
        assert torch.allclose(e.velocity, rate_a * e.x0 + rate_s * e.eps, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------------------------- likelihood, round trips


@pytest.mark.parametrize("target", [X0(), Velocity()], ids=str)
def test_likelihood_of_the_mixture(target):
    # log p(x) = log prior(z) + log p_low(x) - log p_high(z), for targets that are not eps; on VP, which ends at t = 1.
    model = start("vp")[0]
    x = model.sample(4, torch.Generator().manual_seed(1))
    low, high = VPSDE().times("likelihood")
    solved = log_likelihood(Through(model, target), x, Likelihood(rtol=1e-7, divergence="exact"), check=False)
    exact = VPSDE().prior.log_prob(solved.z) + model.log_prob(x, low) - model.log_prob(solved.z, high)
    assert float((solved.log_prob - exact).abs().max()) < 1e-5


@pytest.mark.parametrize("name", FOUR_AND_COSINE)
def test_ddim_there_and_back(name):
    model = start(name)[0]
    low, high = model.domain.interval("sample")
    x = model.sample(64, torch.Generator().manual_seed(0))
    off = []
    for steps in (100, 200):
        solver = DDIM(steps, grid="logsnr")
        z = solver(model, x, t0=low, t1=high).x
        off.append(float((solver(model, z, t0=high, t1=low).x - x).norm(dim=1).median()))
    assert slopes(off)[-1] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *(("vp", n) for n in OURS if not small(n).stochastic),
        *product(("subvp", "ve", "flow"), ("ode", "heun", "multistep", "singlestep")),
    ],
)
def test_every_deterministic_solver_goes_there_and_back(name, solver):
    # From data to noise and back; on a Gaussian each way is known too.
    model, made = gaussian(ALL[name], dims=2), small(solver)
    low, high = model.domain.interval("sample")
    x = 0.3 + 0.5 * normals(16, 2)
    if hasattr(made, "steps"):
        made = replace(made, steps=80, grid="logsnr")
    z = made(model, x, t0=low, t1=high).x
    first_order = solver in ("euler", "ddim")
    exact = gaussian_flow(model, x, low, high)
    assert float((z - exact).abs().median()) < (0.3 if first_order else 0.03) * ALL[name].prior_std
    assert float((made(model, z, t0=high, t1=low).x - x).abs().max()) < (0.6 if first_order else 0.02)


# ------------------------------------------------------------------------------------------------- counts, ends, rows


def evaluations(solver: str, name: str, steps: int) -> int | None:
    """What so many steps cost, as solvers/__init__.py has it; None if the solver chooses its steps."""
    each = {
        "heun": 2, "edm": 2, "rk4": 4, "dpm2s": 2, "dpm++2s": 2, "singlestep": 2, "dpm3s": 3, "dpm++3s": 3,
        "heun-sde": 2, "pc": 2, "ald": 5,
    }.get(solver, 1)  # fmt: skip
    # The step out of alpha = 0 is of first order where there is no clock.
    saved = each - 1 if name in ("flow", "user_cosine") and ("dpm" in solver or solver in ("edm", "singlestep")) else 0
    return None if solver in ("ode", "adaptive-sde", "torchsde") else steps * each - saved


@pytest.mark.parametrize(
    ("name", "solver"),
    # On VE as on VP; original has no flow.
    [
        *(pytest.param(n, s, marks=SLOW if n == "ve" else ()) for n, s in product(("vp", "ve"), ALONE)),
        *(("flow", s) for s in ALONE if s != "original"),
    ],
)
def test_evaluations_are_counted(name, solver):
    # And asked within the domain, both ways.
    model, made = watched(ring(ALL[name])), small(solver)
    low, high = model.domain.interval("sample")
    z = ALL[name].prior_std * normals(5, 2)
    solved = made(model, z, noise=Noise.of(5))
    assert int(solved.nfe.sum()) == sum(model.evaluations) and bool(solved.ok.all())
    assert evaluations(solver, name, 6) in (None, int(solved.nfe[0]))
    if not made.stochastic and solver != "original":
        made(model, solved.x, t0=low, t1=high)
    times = torch.cat(model.times)
    assert low <= float(times.min()) and float(times.max()) <= high


# Not original, whose times are at least two, nor the two whose noise another precision draws anew.
@pytest.mark.parametrize("solver", [n for n in OURS if n != "adaptive-sde"])
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_one_step_in_single_precision_is_one_in_double(name, solver):
    made, z = small(solver), prior(name, 8, 2)
    made = replace(made, steps=1) if hasattr(made, "steps") else made
    model, noise = ring(ALL[name]), Noise.of(8)
    fine, coarse = (made(model, x, noise=noise) for x in (z, z.float()))
    assert bool(coarse.ok.all()) and (fine.x.dtype, coarse.x.dtype) == (F64, torch.float32)
    assert float(((coarse.x - fine.x).norm(dim=1) / fine.x.norm(dim=1)).median()) < 2e-3
    assert coarse.nfe.tolist() == fine.nfe.tolist() or not hasattr(made, "steps")


@dataclass(frozen=True)
class ToTheData(FlowMatching):
    """The straight path down to where no noise is left."""

    t_min = 0.0


ONE_STEP = [
    "ddim", "multistep", "dpm++2m", "dpm++3m", "deis", "unipc", "edm", "dpm2s", "dpm3s", "dpm++2s", "dpm++3s",
    "singlestep", "sde", "ancestral", "sde-dpm", "sa", "er-sde", "euler",
]  # fmt: skip


@pytest.mark.parametrize("solver", ONE_STEP)
def test_one_step_to_the_data_is_one_denoising(solver):
    model, z = ring(ToTheData()), normals(8, 2)
    made = replace(small(solver), steps=1)
    assert float((made(model, z, noise=Noise.of(8)).x - model(z, 1.0).x0).abs().max()) < 1e-12


@pytest.mark.parametrize("solver", OURS)
def test_down_to_no_noise(solver):
    # At sigma = 0 there is x0_hat but no score, -eps_hat/sigma. In seven steps half of the samples come near a mode.
    model, made = ring(ToTheData()), small(solver)
    made = replace(made, steps=7) if hasattr(made, "steps") else made
    if solver == "edm":  # whose own grid is coarse from sigma/alpha = inf to 0
        made = replace(made, grid="sqrt")
    solved = made(model, normals(32, 2), noise=Noise.of(32))
    assert bool(solved.ok.all()) and bool(torch.isfinite(solved.x).all())
    assert float((solved.x[:, None] - model.means).norm(dim=2).amin(1).median()) < 0.6


@pytest.mark.parametrize("solver", ALONE)
def test_a_row_of_nan_touches_no_other(solver):
    model, made, z = ring(VPSDE()), small(solver), normals(5, 2)
    if solver != "torchsde":
        assert not made.stochastic or made.needs_score
    fine = made(model, z, noise=Noise.of(5))
    solved = made(Poisoned(model, torch.tensor([False, True, False, False, True])), z, noise=Noise.of(5))
    assert solved.status.tolist() == [OK, FAILED_NONFINITE, OK, OK, FAILED_NONFINITE]
    assert float((solved.x - fine.x)[[0, 2, 3]].abs().max()) < 1e-12
    assert torch.equal(solved.nfe[[0, 2, 3]], fine.nfe[[0, 2, 3]])
    assert "2 of 5 samples failed (1, 4)" in solved.failures()[0]


@pytest.mark.parametrize("solver", OURS)
def test_a_sample_is_the_same_in_any_batch_and_order(solver):
    model, made, noise = ring(VPSDE()), small(solver), Noise.of(12, seed=3)
    whole = sample(model, made, (2,), noise, dtype=F64)
    order = torch.tensor([7, 2, 11, 0, 5])
    some = sample(model, made, (2,), noise.rows(order), dtype=F64, batch=2)
    assert float((some.x - whole.x[order]).abs().max()) < 1e-12
    assert torch.equal(some.nfe, whole.nfe[order])
