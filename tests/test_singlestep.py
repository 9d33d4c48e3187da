"""Singlestep solvers are the published formulas, remember nothing, and cost what they say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from models import ALL, normals, ring, watched
from solving import case, errors, slopes
from torch import Tensor

from scoresde import VPSDE, FlowMatching, RungeKutta, SubVPSDE
from scoresde.core.errors import UsageError
from scoresde.core.registry import resolve
from scoresde.core.tables import SOLVERS
from scoresde.model.estimate import Wrapped
from scoresde.sde.grids import make_grid
from scoresde.solvers import DDIM, Multistep, Singlestep
from scoresde.solvers.singlestep import dpm_2s, dpm_3s, dpmpp_2s, dpmpp_3s

VARIABLES = ("x0", "eps", "straight", "v", "gauss")


@dataclass(frozen=True)
class Node:
    """alpha, sigma and lambda = log(alpha/sigma) at a time of VP."""

    t: Tensor

    @classmethod
    def between(cls, a: Node, b: Node, r: float) -> Node:
        """The node at the fraction r of the way in lambda."""
        return cls(VPSDE().t_of_log_snr(2 * (a.lam + r * (b.lam - a.lam))))

    @property
    def alpha(self) -> Tensor:
        return VPSDE().coefficients(self.t)[0]

    @property
    def sigma(self) -> Tensor:
        return VPSDE().coefficients(self.t)[1]

    @property
    def lam(self) -> Tensor:
        return VPSDE().log_snr(self.t) / 2


def dpm_solver_2(x, eps, x0, t, s):
    # Lu et al. 2022, arXiv:2206.00927, alg. 1 with r_1 = 1/2.
    m, h = Node.between(t, s, 0.5), s.lam - t.lam
    u = m.alpha / t.alpha * x - m.sigma * torch.expm1(h / 2) * eps(x, t)
    return s.alpha / t.alpha * x - s.sigma * torch.expm1(h) * eps(u, m)


def dpm_solver_3(x, eps, x0, t, s):
    # The same paper, alg. 2 with r_1 = 1/3, r_2 = 2/3.
    r1, r2, h = 1 / 3, 2 / 3, s.lam - t.lam
    s1, s2, first = Node.between(t, s, r1), Node.between(t, s, r2), eps(x, t)
    u1 = s1.alpha / t.alpha * x - s1.sigma * torch.expm1(r1 * h) * first
    d1 = eps(u1, s1) - first
    u2 = s2.alpha / t.alpha * x - s2.sigma * torch.expm1(r2 * h) * first
    u2 = u2 - s2.sigma * r2 / r1 * (torch.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps(u2, s2) - first
    x = s.alpha / t.alpha * x - s.sigma * torch.expm1(h) * first
    return x - s.sigma / r2 * (torch.expm1(h) / h - 1) * d2


def dpm_solver_pp_2s(x, eps, x0, t, s):
    # Lu et al. 2022, arXiv:2211.01095, alg. 1 with r = 1/2, where D = (1 - 1/2r) x0_t + 1/2r x0_m.
    m, h = Node.between(t, s, 0.5), s.lam - t.lam
    u = m.sigma / t.sigma * x - m.alpha * torch.expm1(-h / 2) * x0(x, t)
    return s.sigma / t.sigma * x - s.alpha * torch.expm1(-h) * x0(u, m)


def dpm_solver_pp_3s(x, eps, x0, t, s):
    # DPM-Solver-3 with x0 in place of eps: sigma and alpha change places, h its sign, and phi_2 = expm1(-h)/h + 1.
    r1, r2, h = 1 / 3, 2 / 3, s.lam - t.lam
    s1, s2, first = Node.between(t, s, r1), Node.between(t, s, r2), x0(x, t)
    u1 = s1.sigma / t.sigma * x - s1.alpha * torch.expm1(-r1 * h) * first
    d1 = x0(u1, s1) - first
    u2 = s2.sigma / t.sigma * x - s2.alpha * torch.expm1(-r2 * h) * first
    u2 = u2 + s2.alpha * r2 / r1 * (torch.expm1(-r2 * h) / (r2 * h) + 1) * d1
    d2 = x0(u2, s2) - first
    x = s.sigma / t.sigma * x - s.alpha * torch.expm1(-h) * first
    return x + s.alpha / r2 * (torch.expm1(-h) / h + 1) * d2


@pytest.mark.parametrize("grid", ["logsnr", "sqrt"])
@pytest.mark.parametrize(
    ("solver", "published"),
    [
        (dpm_2s(6), dpm_solver_2),
        (dpm_3s(6), dpm_solver_3),
        (dpmpp_2s(6), dpm_solver_pp_2s),
        (dpmpp_3s(6), dpm_solver_pp_3s),
    ],
)
def test_the_published_formulas(solver, published, grid):
    model, x = ring(VPSDE()), normals(16, 2)
    z, times = x, make_grid(grid, VPSDE(), 6, 1.0, 1e-3)

    def eps(x, node):
        return model(x, node.t).eps

    def x0(x, node):
        return model(x, node.t).x0

    for t, s in pairwise(times):
        x = published(x, eps, x0, Node(t), Node(s))
    assert float((replace(solver, grid=grid)(model, z).x - x).abs().max()) < 1e-11


@pytest.mark.parametrize("grid", ["logsnr", "sqrt", "karras"])
def test_the_midpoint_rule_in_log_noise_is_dpm_solver_2(grid):
    # Karras et al. 2022, arXiv:2206.00364, app. D: dy/ds = eps with y = x/alpha, s = sigma/alpha, and the midpoint
    # taken in log s: y_m = y + (s_m - s) eps, then y + (s' - s) eps_m.
    model, z, sde = ring(VPSDE()), normals(16, 2), VPSDE()
    times = make_grid(grid, sde, 8, 1.0, 1e-3)
    alpha, sigma = sde.coefficients(times)
    x = z
    for i in range(8):
        here, there = sigma[i] / alpha[i], sigma[i + 1] / alpha[i + 1]
        level = torch.sqrt(here * there)
        t = sde.t_of_log_snr(-2 * torch.log(level))
        y = x / alpha[i]
        middle = y + (level - here) * model(x, times[i]).eps
        y = y + (there - here) * model(sde.coefficients(t)[0] * middle, t).eps
        x = alpha[i + 1] * y
    assert float((dpm_2s(8, grid=grid)(model, z).x - x).abs().max()) < 1e-11


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_on_the_straight_variable_order_two_is_the_classical_midpoint_rule(name):
    model, z = ring(ALL[name]), ALL[name].prior_std * normals(16, 2)
    ours = Singlestep(9, "straight", 2)(model, z).x
    assert float((ours - RungeKutta(9, "midpoint")(model, z).x).abs().max()) < 1e-11


def test_on_the_straight_variable_order_three_is_heuns_third_order_rule():
    # Nodes 0, 1/3, 2/3 and weights 1/4, 0, 3/4, on the straight path, where the rule is the one for dx/dt = velocity.
    model, z = ring(FlowMatching()), normals(16, 2)
    x, times = z, make_grid("uniform", FlowMatching(), 7, 1.0, 1e-5)
    for t, s in pairwise(times):
        h = s - t
        k1 = model(x, t).velocity
        k2 = model(x + h / 3 * k1, t + h / 3).velocity
        k3 = model(x + 2 * h / 3 * k2, t + 2 * h / 3).velocity
        x = x + h / 4 * (k1 + 3 * k3)
    assert float((Singlestep(7, "straight", 3, "exact")(model, z).x - x).abs().max()) < 1e-11


@pytest.mark.parametrize("variable", ["x0", "eps", "straight"])
def test_order_one_is_ddim(variable):
    model, z = ring(VPSDE()), normals(16, 2)
    assert float((Singlestep(7, variable, 1)(model, z).x - DDIM(7)(model, z).x).abs().max()) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variable", VARIABLES)
def test_cost(variable, order):
    model = watched(ring(VPSDE()))
    solver = Singlestep(5, variable, order, "exact")
    solved = solver(model, normals(3, 2))
    assert len(model.times) == 5 * order and solved.nfe.tolist() == [5 * order] * 3
    assert solver.within(20).steps == 20 // order and solver.within(order - 1) is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("variable", VARIABLES)
def test_stages_lie_within_their_step(name, variable):
    model = watched(ring(ALL[name]))
    low = ALL[name].times("sample")[0]
    times = make_grid("sqrt", ALL[name], 4, 1.0, low).tolist()
    solver = Singlestep(4, variable, 3, "exact", grid="sqrt")
    assert bool(torch.isfinite(solver(model, ALL[name].prior_std * normals(4, 2)).x).all())
    asked = torch.cat(model.times).tolist()
    for t, s in pairwise(times):
        # A step out of alpha = 0 has no stages where the variable has no clock there.
        assert sum(s < a <= t for a in asked) in (1, 3)
    assert all(low <= a <= 1 for a in asked)


def test_a_step_knows_nothing_of_the_one_before():
    # A model that jumps at t = 0.5 misleads a multistep solver there, but not a singlestep solver.
    @dataclass(frozen=True)
    class Jump(Wrapped):
        def __call__(self, x, t):
            e = self.model(x, t)
            return replace(e, x0=e.x0 + 1) if float(torch.as_tensor(t).min()) >= 0.5 else e

        def rows(self, index):
            return self

    model, z = ring(VPSDE()), normals(16, 2)
    grid = (1.0, 0.8, 0.65, 0.499, 0.3, 0.1, 1e-3)
    for solver, memory in ((Singlestep(variable="x0", grid=grid), False), (Multistep(6, "x0", 2, grid=grid), True)):
        until = replace(solver, grid=grid[:4])(Jump(model), z, t1=0.499).x
        after = replace(solver, grid=grid[3:])(model, until, t0=0.499).x
        whole = solver(Jump(model), z).x
        assert (float((whole - after).abs().max()) > 1e-3) == memory


def test_encoding_runs_the_stages_the_other_way():
    model = watched(ring(VPSDE()))
    Singlestep(2, "eps", 2, grid="sqrt")(model, normals(2, 2), t0=0.1, t1=0.9)
    times = [float(t) for t in model.times]
    assert times == sorted(times) and times[0] == 0.1


def test_names_and_options():
    assert resolve("dpm2s", SOLVERS)() == Singlestep(10, "eps", 2)
    assert resolve("dpm++3s", SOLVERS)(5) == Singlestep(5, "x0", 3, "exact")
    assert resolve("singlestep", SOLVERS)() == resolve("dpm++2s", SOLVERS)()
    for options, words in (({"variable": "score"}, "straight"), ({"order": 4}, "order"), ({"rule": "bh2"}, "midpoint")):
        with pytest.raises(UsageError, match=words):
            Singlestep(**options)


@pytest.mark.parametrize("variable", VARIABLES)
def test_steps_on_which_nothing_is_left_of_the_data(variable):
    # On a steep path r is 1, and the clock stands still, long after t has left 1.
    model, z = ring(SubVPSDE(beta_max=374.0)), normals(8, 2)
    exact = DDIM(400)(model, z).x
    solved = Singlestep(100, variable, 3, "exact", grid="uniform")(model, z)
    assert bool(solved.ok.all()) and float((solved.x - exact).norm(dim=1).median()) < 0.02


@pytest.mark.parametrize(("variable", "order"), [("straight", 3), ("v", 3), ("x0", 2), ("eps", 2)])
def test_a_start_without_data_bounds_the_order_on_a_uniform_grid_but_in_a_finite_clock(variable, order):
    # As documented: the first steps are long in log-SNR, whatever their number.
    model, z, exact = case("flow")
    found = slopes(errors(Singlestep(1, variable, 3), model, z[:64], exact[:64], (64, 128)))
    assert found == pytest.approx([order], abs=0.3)
