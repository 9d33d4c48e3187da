"""What the tests of solvers share: a mixture with its exact end, orders, and moments without Monte Carlo.

On one Gaussian every step is affine in the state and the noise, x <- A x + C + b z, and so is the whole solver. Fed
with a batch of impulses, a row with x = 1 and rows with one of the z = 1, it shows its own gains, and with them mean
and variance of its samples (:func:`moments`).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from models import ALL, F64, normals
from torch import Tensor

from scoresde import GaussianMixture, Noise, ProbabilityFlow
from scoresde.core.registry import resolve
from scoresde.core.tables import SOLVERS

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from few_steps import problem

FIVE = ("vp", "subvp", "ve", "user_cosine", "flow")
# The cosine spans the same log-SNRs as the flow, with a clock that is inverted by bisection: nothing new, slowly.
SLOW = [pytest.mark.slow]
FOUR_AND_COSINE = ["vp", "subvp", "ve", "flow", pytest.param("user_cosine", marks=SLOW)]
FEW_AND_ALL = ["vp", "flow", *(pytest.param(name, marks=SLOW) for name in ("subvp", "ve", "user_cosine"))]
OURS = [
    name for name in SOLVERS if name not in ("original", "torchsde", "particles", "tuned")
]  # which need more than a model


def prior(name: str, *shape: int) -> Tensor:
    """Draws from the prior of a path."""
    return ALL[name].prior_std * normals(*shape)


def small(name: str):
    """A solver of the table with few steps."""
    made = resolve(name, SOLVERS)()
    fields = {f.name for f in dataclasses.fields(made)}
    if "steps" in fields:
        return replace(made, steps=6)
    if name == "adaptive-sde":
        return replace(made, rtol=0.3, atol=0.3, first=0.05)
    return replace(made, rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------- orders


@cache
def start(name: str, sde=None) -> tuple[GaussianMixture, Tensor]:
    """The mixture on a path, and draws from its p at the start."""
    model = replace(problem(), sde=ALL[name] if sde is None else sde)
    generator = torch.Generator().manual_seed(0)
    x0 = model.sample(256, generator)
    return model, model.sde.perturb(x0, model.sde.t_max, torch.randn(x0.shape, generator=generator, dtype=F64))


@cache
def case(name: str, sde=None) -> tuple[GaussianMixture, Tensor, Tensor]:
    """The same, and where the exact flow takes the draws."""
    model, z = start(name, sde)
    return model, z, ProbabilityFlow(rtol=1e-12, atol=1e-12)(model, z).x


def errors(solver, model, z, exact, steps) -> list[float]:
    """The median distance to the exact end, for each number of steps."""
    return [float((replace(solver, steps=n)(model, z).x - exact).norm(dim=1).median()) for n in steps]


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


# -------------------------------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class Impulses(Noise):
    """Noise for rows that answer one question each: the first two have none, row 2 + k has z = 1 in draw k alone.

    A solver's own draws come first, then those of its corrector.
    """

    steps: int = 0

    def _row(self, row, shape, dtype):
        z = torch.zeros(len(self.indices), *shape, dtype=dtype)
        z[2 + row] = 1
        return z

    def between(self, t, s, shape, step, dtype=torch.float32):
        return self._row(step, shape, dtype)

    def normal(self, shape, step=0, stream="solver", dtype=torch.float32):
        return self._row(self.steps + step if stream == "corrector" else step, shape, dtype)


def moments(solver, model, start: tuple[float, float], draws: int | None = None, **ends) -> tuple[float, float]:
    """Mean and variance at the end of a solver on 1-D Gaussian data, given those at the start."""
    draws = solver.steps if draws is None else draws
    x = torch.zeros(2 + draws, 1, dtype=F64)
    x[1] = 1
    noise = Impulses(0, torch.arange(len(x)), steps=solver.steps)
    end = solver(model, x, noise=noise, **ends).x[:, 0]
    gains = end[1:] - end[0]
    mean, variance = start
    return float(end[0] + gains[0] * mean), float(gains[0] ** 2 * variance + gains[1:].square().sum())


def marginal(model, t: float) -> tuple[float, float]:
    """Mean and variance of p_t for 1-D Gaussian data."""
    alpha, sigma = model.domain.sde.coefficients(torch.tensor(t, dtype=F64))
    return float(alpha * model.means[0, 0]), float((alpha * model.stds[0]) ** 2 + sigma**2)


def excess(solver, model, steps: int) -> float:
    """Relative error of the variance at the end, from the right one at the start."""
    low, high = model.domain.interval("sample")
    return moments(replace(solver, steps=steps), model, marginal(model, high))[1] / marginal(model, low)[1] - 1
