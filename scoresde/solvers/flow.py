"""Deterministic solvers: the probability flow in the straight frame.

With  y = x / (alpha + sigma)  and  r = sigma / (alpha + sigma)  every path is straight (:mod:`scoresde.sde`), and the
probability-flow ODE of Song et al. (2021), arXiv:2011.13456, eq. 13, reads

    dy/dr = eps_hat(x_t, t) - x0_hat(x_t, t),

with no f, g or derivative of the schedule, finite at both ends. The solvers here integrate it, either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import NumericalError, UsageError
from ..estimate import Denoiser
from ..noise import Noise
from ..ode import TABLEAUS, integrate
from ..shapes import expand, time_dtype
from .base import Solution, Solver, fixed_solution, grid_of
from .engines import ENGINES

__all__ = ["Heun", "ProbabilityFlow", "slope"]


def slope(model: Denoiser, y: Tensor, t: Tensor) -> Tensor:
    """``dy/dr`` at ``y``, shape ``(B, *event)``, and time ``t``, shape ``()`` or ``(B,)``."""
    estimate = model(expand(model.sde.scale(t), y) * y, t)
    return estimate.eps - estimate.x0


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """Adaptive Runge-Kutta on the probability flow, with its own step size for each sample.

    Args:
        rtol, atol: Tolerances on the local error of a sample, in the straight frame (data of unit size).
        method: ``dopri5`` (order 5) or ``bosh3`` (order 3; cheaper for rtol of 1e-3 and more); with another engine
            one of its methods.
        max_nfe: Largest number of evaluations of a sample.
        engine: ``own``, or ``torchdiffeq`` or ``scipy`` (see :mod:`scoresde.solvers.engines`).
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    method: str = "auto"
    max_nfe: int = 10_000
    engine: str = "own"

    def __post_init__(self) -> None:
        if not self.rtol > 0 or not self.atol >= 0:
            raise UsageError(
                f"rtol is {self.rtol} and atol {self.atol}; take rtol > 0 and atol >= 0, for example --rtol 1e-5"
            )
        if self.engine not in ("own", *ENGINES):
            raise UsageError(f"unknown engine {self.engine!r}; choose from: own, {', '.join(ENGINES)}")
        if self.engine == "own" and self.method not in ("auto", *TABLEAUS):
            raise UsageError(f"unknown Runge-Kutta method {self.method!r}; choose from: {', '.join(TABLEAUS)}")

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Solution:
        sde = model.sde
        ends = torch.tensor([t0, t1], dtype=time_dtype(x.device), device=x.device)
        scale, ratio = sde.scale(ends), sde.ratio(ends)

        def f(y: Tensor, r: Tensor, index: Tensor) -> Tensor:
            t = sde.t_of_ratio(r).clamp(min(t0, t1), max(t0, t1))
            return slope(model if len(index) == len(x) else model.rows(index), y, t)

        y = x / expand(scale[0], x)
        if self.engine != "own":
            return self._by_engine(f, y, ratio, scale)
        result = integrate(
            f,
            y,
            float(ratio[0]),
            float(ratio[1]),
            rtol=self.rtol,
            atol=self.atol,
            method="dopri5" if self.method == "auto" else self.method,
            max_nfe=self.max_nfe,
        )
        return Solution(
            result.y * expand(scale[1], x), result.nfe, result.accepted, result.rejected, result.status
        )

    def _by_engine(
        self, f: Callable[[Tensor, Tensor, Tensor], Tensor], y: Tensor, ratio: Tensor, scale: Tensor
    ) -> Solution:
        """The same by another integrator, which has one step for the batch and does not count its steps."""
        everyone, calls = torch.arange(len(y), device=y.device), 0

        def slope_at(r: float, state: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > self.max_nfe:
                raise NumericalError(f"{self.engine} took more than {self.max_nfe:,} evaluations; try a larger --rtol")
            return f(state, torch.full((len(y),), r, dtype=time_dtype(y.device), device=y.device), everyone)

        ends = float(ratio[0]), float(ratio[1])
        solved = ENGINES[self.engine](slope_at, y, *ends, self.rtol, self.atol, self.method)
        return fixed_solution(solved * expand(scale[1], y), calls, 0)


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's second-order rule on a fixed grid: two evaluations a step.

    y' = y + h k1,   y <- y + h (k1 + k2) / 2.

    Args:
        steps: Number of steps; the cost is ``2 steps`` evaluations.
        grid: A time grid of :mod:`scoresde.grids`, or ``auto`` for the SDE's own.
    """

    steps: int = 32
    grid: str = "auto"

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Solution:
        sde = model.sde
        times = grid_of(self.grid, model, self.steps, t0, t1).to(device=x.device, dtype=time_dtype(x.device))
        y = x / expand(sde.scale(times[0]), x)
        for t, s in pairwise(times):
            h = expand(sde.ratio(s) - sde.ratio(t), y)
            k1 = slope(model, y, t)
            k2 = slope(model, y + h * k1, s)
            y = y + h * (k1 + k2) / 2
        return fixed_solution(y * expand(sde.scale(times[-1]), x), 2 * self.steps, self.steps)
