"""Exponential Runge-Kutta ("singlestep") solvers, with k evaluations per step for order k.

A multistep solver of order k (:mod:`scoresde.solvers.exponential`) approximates a quantity q by a polynomial through
its last k values. The solvers in this module instead compute k values within each step. The stages divide the step into
equal parts, as measured by the argument of the polynomials (l or the clock). Let x_i be the state, and q_i the value of
q, at the fraction u_i of the step from t to s. A step is then

    order 2:  x_1 from q_t;   then x_s from (q_1, q_t)                                 u_1 = 1/2
    order 3:  x_1 from q_t;   x_2 from (q_1, q_t);   then x_s from (q_2, q_t)          u_1, u_2 = 1/3, 2/3

Each stage uses equation (1) of :mod:`scoresde.solvers.exponential`. With the variable ``eps``, the solvers are
DPM-Solver-2 and DPM-Solver-3, and with ``x0``, they are DPM-Solver++ 2S and 3S. With ``straight``, they are the
classical midpoint method and Heun's third-order method. No values are carried over from one step to the next, so an
abrupt change in the model's output in one step (for example, due to guidance) does not affect the next step.

If sampling starts at alpha = 0 and the grid is uniform in t, as it is by default on the straight path, the first steps
are long in log-SNR, however many steps there are. With ``eps`` and ``x0``, the measured order of the third-order
solvers is then 2.0 to 2.3 (docs/choosing-a-solver.md). With ``straight`` or ``v``, or with the ``logsnr`` grid, the
measured order is 3.

References:
    Lu et al. (2022), arXiv:2206.00927, alg. 1-2: DPM-Solver.
    Lu et al. (2022), arXiv:2211.01095, alg. 1: DPM-Solver++ 2S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from ..core.noise import Noise
from ..core.shapes import add_scaled
from ..model.estimate import Denoiser
from ..sde.check import check_scalar
from .base import FixedStep
from .exponential import RULES, VARIABLES, log_ratio, weights

__all__ = ["Singlestep", "dpm_2s", "dpm_3s", "dpmpp_2s", "dpmpp_3s"]

_FRACTIONS = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@dataclass(frozen=True)
class Singlestep(FixedStep):
    """Exponential Runge-Kutta solver of order k = 1, 2 or 3, with k evaluations per step.

    Args:
        steps: Number of steps.
        variable: The quantity approximated by a polynomial: ``x0``, ``eps``, ``straight``, ``v`` or ``gauss``.
        order: Order of the solver, from 1 to 3.
        rule: How the polynomial is integrated at order 2: ``midpoint`` (as published), ``bh1`` or ``exact``. At order
            3, it is always integrated exactly.
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    limits = ranges(order=Range(1, 3))

    steps: int = 10
    variable: str = "x0"
    order: int = 2
    rule: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable not in VARIABLES:
            raise UsageError(f"unknown variable {self.variable!r}; choose from: {', '.join(VARIABLES)}")
        if self.rule not in RULES:
            raise UsageError(f"unknown rule {self.rule!r}; choose from: {', '.join(RULES)}")

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return self.order

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        sde, variable = model.domain.sde, VARIABLES[self.variable]
        check_scalar(sde, "a singlestep solver", "the 'multistep' solver", parameter="solver", value="multistep")
        path = list(zip(*(c.tolist() for c in sde.coefficients(times.cpu())), strict=True))
        rule = "exact" if self.order == 3 else self.rule

        def advance(i: int, x: Tensor) -> Tensor:
            here, there = path[i], path[i + 1]
            start, end = variable.node(*here), variable.node(*there)
            estimate = model(x, times[i])
            # If both ends of the step are pure noise, a finite clock does not advance, so there are no stages.
            noise_only = log_ratio(*here) == log_ratio(*there) == -math.inf
            if noise_only or not (math.isfinite(start) and math.isfinite(end)):
                return sde.perturb(estimate.x0, times[i + 1], estimate.eps)
            first = variable.q(estimate, *here)
            values, nodes = [first], [start]
            for fraction in _FRACTIONS[self.order]:
                node = start + fraction * (end - start)
                lam = torch.tensor(2 * variable.log_ratio(node), dtype=torch.float64)
                t = sde.t_of_log_snr(lam)
                low, high = sorted((float(times[i]), float(times[i + 1])))
                t = t.clamp(low, high)
                middle = tuple(float(c) for c in sde.coefficients(t))
                stage = step(x, here, (middle[0], middle[1]), values, nodes, "exact")
                q = variable.q(model(stage, t.to(times)), middle[0], middle[1])
                values, nodes = [q, first], [variable.node(*middle), start]
            return step(x, here, there, values, nodes, rule)

        def step(
            x: Tensor, here: tuple[float, float], there: tuple[float, float],
            values: list[Tensor], nodes: list[float], rule: str,
        ) -> Tensor:  # fmt: skip
            norm = variable.norm(*there)
            span = variable.clock(*there) - variable.clock(*here)
            found = weights(variable.slope, span, nodes, (variable.node(*here), variable.node(*there)), rule)
            return add_scaled(norm / variable.norm(*here) * x, [norm * w for w in found], values)

        return advance


def dpm_2s(steps: int = 10, grid: str = "auto") -> Singlestep:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, alg. 1), with its stage in the middle of the step."""
    return Singlestep(steps, "eps", 2, grid=grid)


def dpm_3s(steps: int = 7, grid: str = "auto") -> Singlestep:
    """DPM-Solver-3 (Lu et al. 2022, arXiv:2206.00927, alg. 2), with its stages at 1/3 and 2/3 of the step."""
    return Singlestep(steps, "eps", 3, "exact", grid=grid)


def dpmpp_2s(steps: int = 10, grid: str = "auto") -> Singlestep:
    """DPM-Solver++ 2S (Lu et al. 2022, arXiv:2211.01095, alg. 1), with its stage in the middle of the step."""
    return Singlestep(steps, "x0", 2, grid=grid)


def dpmpp_3s(steps: int = 7, grid: str = "auto") -> Singlestep:
    """DPM-Solver++ 3S, the third-order version of DPM-Solver++ 2S."""
    return Singlestep(steps, "x0", 3, "exact", grid=grid)
