"""The sweep of the experiments finds what is wrong by more than it allows, and passes what is right."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import F64

from scoresde import VPSDE, Likelihood, ProbabilityFlow, RungeKutta
from scoresde.solvers import Ancestral
from scoresde.solvers.base import Solver

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
import sweep


@dataclass(frozen=True)
class Off(Solver):
    """A solver whose rows are all right but one, which is off by so much along the first axis."""

    solver: Solver
    by: float
    rtol: float = 1e-5
    steps: int = 24
    frame: str = "straight"
    engine: str = "own"

    @property
    def stochastic(self):
        return self.solver.stochastic

    def solve(self, model, x, t0, t1, noise, watch):
        solver = replace(self.solver, steps=self.steps) if hasattr(self.solver, "steps") else self.solver
        solved = solver.solve(model, x, t0, t1, noise, watch)
        moved = solved.x.clone()
        moved[-1, 0] += self.by
        return replace(solved, x=moved)


def case(name, solver, order=0, dims=3, single=False) -> sweep.Case:
    """A case on VP that is made to measure."""
    made = sweep.Case(0, 0)
    made.rng = np.random.default_rng(3)
    made.name, made.dtype, made.path, made.sde, made.solver, made.order = name, F64, "vp", VPSDE(), solver, order
    made.stochastic = getattr(solver, "stochastic", False)
    made.law = sweep.Law.draw(made.rng, dims, single, made.stochastic)
    low, high = VPSDE().times("likelihood" if name in sweep.LIKELIHOODS else "sample")
    made.t0, made.t1 = (low, high) if name in sweep.LIKELIHOODS else (high, low)
    made.here, made.there = made.at(made.t0), made.at(made.t1)
    made.model = made.law.model(made.sde)
    return made


@pytest.mark.parametrize(
    ("name", "solver", "order", "by"),
    [
        ("ode", ProbabilityFlow(1e-6), 0, 1e-3),
        ("heun", RungeKutta(24), 2, 1.0),
        ("ancestral", Ancestral(24), 1, 0.3),
    ],
)
def test_one_row_that_is_off_is_found(name, solver, order, by, monkeypatch):
    monkeypatch.setattr(sweep, "DOUBLINGS", 1)
    single = solver.stochastic
    assert case(name, solver, order, single=single).run().worst <= 1
    assert case(name, Off(solver, by, getattr(solver, "rtol", 0.0)), order, single=single).run().worst > 1


def test_a_likelihood_that_is_off_is_found(monkeypatch):
    how = Likelihood(divergence="exact", rtol=1e-5)
    assert case("coupled", how).run().worst <= 1
    right = sweep.log_likelihood

    def off(*args, **options):
        result = right(*args, **options)
        return replace(result, log_prob=result.log_prob + 0.01)

    monkeypatch.setattr(sweep, "log_likelihood", off)
    assert case("coupled", how).run().worst > 1


def test_the_reference_is_a_gaussian_flow_and_its_adjoint_that_of_differences():
    rng = np.random.default_rng(0)
    law = sweep.Law.draw(rng, 3, True, False)
    here, there = (0.3, 0.9), (0.99, 0.02)
    flow = sweep.Flow(law, law.start(rng, 4, *here), here, there)
    numerical = flow.path.y[:, -1].reshape(flow.x.shape) * np.hypot(*there)
    np.testing.assert_allclose(numerical, flow.end, atol=1e-9)
    mixed = sweep.Law(np.array([[-1.0], [1.0]]), np.array([[0.04], [0.04]]), None, np.array([0.5, 0.5]))
    x, d = np.array([[0.01], [0.2], [1.5]]), 1e-6
    ends = [sweep.Flow(mixed, x + s * d, here, there).end for s in (1, -1)]
    _, sizes, _ = sweep.Flow(mixed, x, here, there).adjoint(np.ones((3, 1)))
    amplified = np.abs(ends[0] - ends[1])[:, 0] / (2 * d) * np.hypot(*here) / np.hypot(*there)
    np.testing.assert_allclose(sizes[-1], amplified, rtol=0.02)


def test_its_model_is_the_librarys():
    rng = np.random.default_rng(1)
    for dims, axes in ((1, False), (3, True), (4, False)):
        law = sweep.Law.draw(rng, dims, axes, axes)
        model, x, t = law.model(VPSDE()), rng.normal(size=(5, dims)), 0.4
        alpha, sigma = (float(c) for c in VPSDE().coefficients(torch.tensor(t, dtype=F64)))
        np.testing.assert_allclose(law.score(x, alpha, sigma), model(torch.from_numpy(x), t).score.numpy(), rtol=1e-9)
        np.testing.assert_allclose(law.log_prob(x, alpha, sigma), model.log_prob(torch.from_numpy(x), t), rtol=1e-9)
        phi = np.arctan2(sigma, alpha)
        e = model(torch.from_numpy(x * np.hypot(alpha, sigma)), t)
        velocity = np.cos(phi) * e.eps.numpy() - np.sin(phi) * e.x0.numpy()
        np.testing.assert_allclose(law.velocity(phi, x), velocity, atol=1e-9)


def test_a_case_is_a_function_of_its_numbers():
    first, second = sweep.Case(5, 17), sweep.Case(5, 17)
    assert str(first) == str(second) and (first.law.means == second.law.means).all()
    assert str(sweep.Case(5, 18)) != str(first)
