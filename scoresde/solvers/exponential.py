r"""Exponential multistep solvers: one evaluation a step, any order, written once.

Each holds one quantity q of the model to a polynomial and integrates everything else exactly. With a norm N(t), a
clock c(t) and the estimates at hand, the probability flow of any path reads

    d(x/N) = q dc                       variable     N                    q                            c
                                        x0           sigma                x0_hat                       alpha/sigma
                                        eps          alpha                eps_hat                      sigma/alpha
                                        straight     alpha + sigma        eps_hat - x0_hat             sigma/N
                                        v            hypot(alpha, sigma)  (alpha eps - sigma x0)/N     atan(sigma/alpha)

so that a step from t to s with the last k values of q, interpolated in the log-SNR l by Lagrange polynomials L_j, is

    x_s = (N_s/N_t) x_t + N_s sum_j w_j q_j,      w_j = int_{c(t)}^{c(s)} L_j(l) dc.                              (1)

One line of the table and one order is one published method: DDIM (any variable but v, order 1), DPM-Solver++ 2M
(x0, 2, midpoint rule), DEIS in log-rho (eps, 2-4). The published "3M" halves a divided difference and is second order;
(1) with k = 3 is third order. With ``correct`` each step is done once more with the value at its own end, which the
next step needs anyway (the idea of UniPC): one order more, no evaluation more. The first k - 1 steps have fewer values
and lower order; where x0_hat hardly moves at the start, as on all published paths, that shows only at high accuracy.

Where alpha = 0 the log-SNR is infinite and eps has no clock: that node serves the first step, which is of first order,
x_s = alpha_s x0_hat + sigma_s eps_hat, and nothing divides by alpha.

References:
    Song, Meng and Ermon (2021), arXiv:2010.02502: DDIM.    Lu et al. (2022), arXiv:2211.01095: DPM-Solver++.
    Zhang and Chen (2023), arXiv:2204.13902: DEIS.          Zhao et al. (2023), arXiv:2302.04867: UniPC.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..estimate import Denoiser, Estimate
from ..grids import make_grid
from ..noise import Noise
from ..shapes import time_dtype
from .base import Solution, Solver, fixed_solution

__all__ = ["Multistep", "ddim", "deis", "dpmpp_2m"]

# 24 Gauss-Legendre nodes integrate polynomials times exp over any step that a sensible grid takes to rounding.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True)
class _Variable:
    """A line of the table: coefficients in float64, ``q`` on tensors with the same coefficients as numbers."""

    norm: Callable[[float, float], float]
    clock: Callable[[float, float], float]
    slope: Callable[[np.ndarray], np.ndarray]  # dc/dl at l = log(alpha/sigma)
    q: Callable[[Estimate, float, float], Tensor]


_VARIABLES = {
    "x0": _Variable(
        lambda alpha, sigma: sigma, lambda alpha, sigma: alpha / sigma, np.exp, lambda e, alpha, sigma: e.x0
    ),
    "eps": _Variable(
        lambda alpha, sigma: alpha,
        lambda alpha, sigma: sigma / alpha,
        lambda lam: -np.exp(-lam),
        lambda e, alpha, sigma: e.eps,
    ),
    "straight": _Variable(
        lambda alpha, sigma: alpha + sigma,
        lambda alpha, sigma: sigma / (alpha + sigma),
        lambda lam: -1 / ((1 + np.exp(lam)) * (1 + np.exp(-lam))),
        lambda e, alpha, sigma: e.eps - e.x0,
    ),
    "v": _Variable(
        math.hypot,
        lambda alpha, sigma: math.atan2(sigma, alpha),
        lambda lam: -1 / (np.exp(lam) + np.exp(-lam)),
        lambda e, alpha, sigma: (alpha * e.eps - sigma * e.x0) / math.hypot(alpha, sigma),
    ),
}


@dataclass(frozen=True)
class Multistep(Solver):
    """Exponential Adams-Bashforth (1) on a fixed grid: one evaluation a step.

    Args:
        steps: Number of steps and of evaluations.
        variable: What is held to a polynomial: ``x0``, ``eps``, ``straight`` or ``v``.
        order: Number of values k in the polynomial; the first steps use those there are.
        rule: ``exact`` integrates the polynomial, ``midpoint`` takes its value in mid-step (DPM-Solver++).
        correct: Redo each step with the value at its end (order + 1, no further evaluation).
        grid: A time grid of :mod:`scoresde.grids`, or ``auto`` for the SDE's own.
    """

    steps: int = 20
    variable: str = "straight"
    order: int = 3
    rule: str = "exact"
    correct: bool = False
    grid: str = "auto"

    def __post_init__(self) -> None:
        if self.variable not in _VARIABLES:
            raise UsageError(f"unknown variable {self.variable!r}; choose from: {', '.join(_VARIABLES)}")
        if not 1 <= self.order <= 6:
            raise UsageError(f"order is {self.order}; multistep solvers of order 1 to 6 are there")
        if self.rule not in ("exact", "midpoint"):
            raise UsageError(f"unknown rule {self.rule!r}; choose from: exact, midpoint")

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Solution:
        sde = model.sde
        times = make_grid(sde.default_grid if self.grid == "auto" else self.grid, sde, self.steps, t0, t1)
        path = [(float(a), float(s)) for a, s in zip(*sde.coefficients(times), strict=True)]
        times = times.to(device=x.device, dtype=time_dtype(x.device))
        variable = _VARIABLES[self.variable]
        values: list[Tensor] = []  # of q, the newest first
        nodes: list[float] = []  # their l
        before: tuple[Tensor, list[Tensor], list[float]] | None = None  # the step that led here, to correct it
        for i, (here, there) in enumerate(pairwise(path)):
            estimate = model(x, times[i])
            q, node = variable.q(estimate, *here), _log_ratio(*here)
            if self.correct and before is not None:
                start, old_values, old_nodes = before
                x = self._step(start, [q, *old_values], [node, *old_nodes], path[i - 1], here)
            if not math.isfinite(node):
                # Nothing of the data is left: no polynomial in l passes through here.
                x, before = there[0] * estimate.x0 + there[1] * estimate.eps, None
                continue
            values, nodes = [q, *values][: self.order], [node, *nodes][: self.order]
            before = (x, values, nodes)
            x = self._step(x, values, nodes, here, there)
        return fixed_solution(x, self.steps, self.steps)

    def _step(
        self, x: Tensor, values: list[Tensor], nodes: list[float], here: tuple[float, float], there: tuple[float, float]
    ) -> Tensor:
        """Formula (1) with as many values as are given."""
        variable = _VARIABLES[self.variable]
        norm = variable.norm(*there)
        x = norm / variable.norm(*here) * x
        for weight, value in zip(_weights(variable, nodes, here, there, self.rule), values, strict=True):
            x = torch.add(x, value, alpha=norm * weight)
        return x


def _log_ratio(alpha: float, sigma: float) -> float:
    """``l = log(alpha/sigma)``, infinite where nothing is left of the data (cos(pi/2) is 6e-17) or of the noise."""
    if alpha <= 1e-6 * sigma:
        return -math.inf
    return math.log(alpha / sigma) if sigma > 0 else math.inf


def _weights(
    variable: _Variable, nodes: list[float], here: tuple[float, float], there: tuple[float, float], rule: str
) -> list[float]:
    """``w_j`` of (1)."""
    span = variable.clock(*there) - variable.clock(*here)
    if len(nodes) == 1:
        return [span]
    start, end = _log_ratio(*here), _log_ratio(*there)
    if rule == "midpoint":
        at, dc = np.array([(start + end) / 2]), np.array([span])
    else:
        at = (start + end) / 2 + (end - start) / 2 * _NODES
        dc = (end - start) / 2 * _WEIGHTS * variable.slope(at)
        dc *= span / dc.sum()  # the quadrature's own error, about 1e-16, out of the constant term
    weights = []
    for j, node in enumerate(nodes):
        lagrange = np.ones_like(at)
        for i, other in enumerate(nodes):
            if i != j:
                lagrange *= (at - other) / (node - other)
        weights.append(float((lagrange * dc).sum()))
    return weights


def ddim(steps: int = 50, grid: str = "auto") -> Multistep:
    """DDIM without noise (Song, Meng and Ermon 2021, arXiv:2010.02502, eq. 12): ``x_s = alpha_s x0 + sigma_s eps``."""
    return Multistep(steps=steps, variable="x0", order=1, grid=grid)


def dpmpp_2m(steps: int = 20, grid: str = "auto") -> Multistep:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, alg. 2)."""
    return Multistep(steps=steps, variable="x0", order=2, rule="midpoint", grid=grid)


def deis(steps: int = 20, order: int = 3, grid: str = "auto") -> Multistep:
    """DEIS in log-rho (Zhang and Chen 2023, arXiv:2204.13902, sec. 3): exponential Adams-Bashforth on eps."""
    return Multistep(steps=steps, variable="eps", order=order, grid=grid)
