r"""Exponential multistep solvers: one evaluation a step, order 1 to 6, written once.

Each holds one quantity q of the model to a polynomial and integrates everything else exactly. With a norm N(t), a
clock c(t) and the estimates at hand, the probability flow of any path reads

    d(x/N) = q dc                       variable     N                    q                            c
                                        x0           sigma                x0_hat                       alpha/sigma
                                        eps          alpha                eps_hat                      sigma/alpha
                                        straight     alpha + sigma        eps_hat - x0_hat             sigma/N
                                        v            hypot(alpha, sigma)  (alpha eps - sigma x0)/N     atan(sigma/alpha)

so that a step from t to s with the last k values of q, interpolated by Lagrange polynomials L_j, is

    x_s = (N_s/N_t) x_t + N_s sum_j w_j q_j,      w_j = int_{c(t)}^{c(s)} L_j dc.                                 (1)

The polynomials are in the log-SNR for x0 and eps, whose clocks are unbounded, and in the clock itself for straight and
v, which makes these plain Adams-Bashforth with variable steps, finite from end to end.
One line of the table and one order is one published method: DDIM (any variable but v, order 1), DPM-Solver++ 2M
(x0, 2, midpoint rule), DEIS in log-rho (eps, 2-4). The published "3M" halves a divided difference and is second order;
(1) with k = 3 is third order. With ``correct`` each step is done once more with the value at its own end, which the
next step needs anyway (the idea of UniPC): one order more, no evaluation more. The first k - 1 steps have fewer values
and lower order, and the first one's error of h^2 bounds the order by 2 unless q hardly moves at the start, as on VP,
sub-VP and VE.

The reverse SDE with eta(t) = eta g(t) has the same form in x0: with l = log(alpha/sigma) and h = l_s - l_t,

    x_s = (sigma_s/sigma_t) e^(-eta^2 h) x_t + sigma_s int (1 + eta^2) e^(l - eta^2 (l_s - l)) x0_hat dl
          + sigma_s sqrt(1 - e^(-2 eta^2 h)) z.                                                                   (2)

Order 1 with eta = 1 is ancestral sampling with the posterior of Ho et al. (2020), arXiv:2006.11239, eq. 6-7; order 2 is
DPM-Solver++ 2M-SDE; eta = 0 is (1).

Where alpha = 0 the log-SNR is infinite and eps has no clock: that node serves the first step, which is of first order,
x_s = alpha_s x0_hat + sigma_s eps_hat, and nothing divides by alpha. Likewise a step in log-SNR that is more than three
times as long as the one before (the last one of a grid uniform in t, say) is of first order: a polynomial extrapolated
that far does harm.

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
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UsageError
from ..estimate import Denoiser, Estimate
from ..noise import Noise
from ..shapes import time_dtype
from .base import Solution, Solver, fixed_solution, grid_of

__all__ = ["Multistep", "MultistepSDE", "ancestral", "ddim", "deis", "dpmpp_2m"]

Floats = npt.NDArray[np.float64]

# 24 Gauss-Legendre nodes integrate polynomials times exp over any step that a sensible grid takes to rounding.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True)
class _Variable:
    """A line of the table, as functions of alpha and sigma."""

    norm: Callable[[float, float], float]
    clock: Callable[[float, float], float]
    q: Callable[[Estimate, float, float], Tensor]
    slope: Callable[[Floats], Floats] | None = None  # dc/dl at l = log(alpha/sigma), if the polynomials are in l

    def node(self, alpha: float, sigma: float) -> float:
        """Where the polynomials have this node."""
        return _log_ratio(alpha, sigma) if self.slope else self.clock(alpha, sigma)


_VARIABLES = {
    "x0": _Variable(
        norm=lambda alpha, sigma: sigma,
        clock=lambda alpha, sigma: alpha / sigma,
        q=lambda e, alpha, sigma: e.x0,
        slope=np.exp,
    ),
    "eps": _Variable(
        norm=lambda alpha, sigma: alpha,
        clock=lambda alpha, sigma: sigma / alpha,
        q=lambda e, alpha, sigma: e.eps,
        slope=lambda lam: -np.exp(-lam),
    ),
    "straight": _Variable(
        norm=lambda alpha, sigma: alpha + sigma,
        clock=lambda alpha, sigma: sigma / (alpha + sigma),
        q=lambda e, alpha, sigma: e.eps - e.x0,
    ),
    "v": _Variable(
        norm=math.hypot,
        clock=lambda alpha, sigma: math.atan2(sigma, alpha),
        q=lambda e, alpha, sigma: (alpha * e.eps - sigma * e.x0) / math.hypot(alpha, sigma),
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
        _check(self.order, self.rule)

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Solution:
        times = grid_of(self.grid, model, self.steps, t0, t1)
        path = [(float(a), float(s)) for a, s in zip(*model.sde.coefficients(times), strict=True)]
        times = times.to(device=x.device, dtype=time_dtype(x.device))
        variable = _VARIABLES[self.variable]
        values: list[Tensor] = []  # of q, the newest first
        nodes: list[float] = []  # their l
        before: tuple[Tensor, list[Tensor], list[float]] | None = None  # the step that led here, to correct it
        for i, (here, there) in enumerate(pairwise(path)):
            estimate = model(x, times[i])
            q, node = variable.q(estimate, *here), variable.node(*here)
            if self.correct and before is not None:
                start, old_values, old_nodes = before
                x = self._step(start, [q, *old_values], [node, *old_nodes], path[i - 1], here)
            if not (math.isfinite(node) and math.isfinite(variable.node(*there))):
                # Nothing of the data, or of the noise, is left at one end: no polynomial in l passes through there.
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
        span = variable.clock(*there) - variable.clock(*here)
        interval = variable.node(*here), variable.node(*there)
        for weight, value in zip(_weights(variable.slope, span, nodes, interval, self.rule), values, strict=False):
            x = torch.add(x, value, alpha=norm * weight)
        return x


@dataclass(frozen=True)
class MultistepSDE(Solver):
    """The stochastic exponential multistep solver (2): one evaluation a step.

    Args:
        steps: Number of steps and of evaluations.
        order: Number of values of x0_hat in the polynomial.
        eta: Factor on the noise g of the reverse SDE: 1 is Anderson's, 0 the probability flow.
        rule: ``exact`` integrates the polynomial, ``midpoint`` takes its value in mid-step (DPM-Solver++ 2M-SDE).
        grid: A time grid of :mod:`scoresde.grids`, or ``auto`` for the SDE's own.
    """

    steps: int = 50
    order: int = 2
    eta: float = 1.0
    rule: str = "midpoint"
    grid: str = "auto"

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        _check(self.order, self.rule)
        if self.eta < 0:
            raise UsageError(f"eta is {self.eta}; the noise level of a reverse SDE is >= 0")

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Solution:
        times = grid_of(self.grid, model, self.steps, t0, t1)
        path = [(float(a), float(s)) for a, s in zip(*model.sde.coefficients(times), strict=True)]
        times = times.to(device=x.device, dtype=time_dtype(x.device))
        values: list[Tensor] = []
        nodes: list[float] = []
        for i, (here, there) in enumerate(pairwise(path)):
            estimate, node = model(x, times[i]), _log_ratio(*here)
            if math.isfinite(node):
                values, nodes = [estimate.x0, *values][: self.order], [node, *nodes][: self.order]
            else:
                values, nodes = [estimate.x0], [node]
            x = self._step(x, estimate, values, nodes, here, there)
            spread = there[1] * math.sqrt(-math.expm1(-2 * self.eta**2 * (_log_ratio(*there) - node)))
            if spread > 0:
                z = noise.between(float(times[i]), float(times[i + 1]), tuple(x.shape[1:]), i, x.dtype)
                x = torch.add(x, z, alpha=spread)
            if not math.isfinite(node):
                values, nodes = [], []
        return fixed_solution(x, self.steps, self.steps)

    def _step(
        self,
        x: Tensor,
        estimate: Estimate,
        values: list[Tensor],
        nodes: list[float],
        here: tuple[float, float],
        there: tuple[float, float],
    ) -> Tensor:
        """The mean of (2)."""
        (alpha_s, sigma_s), end = there, _log_ratio(*there)
        if not math.isfinite(nodes[0]):
            # h is infinite: all of the noise is new, or, with eta = 0, all of it stays.
            return alpha_s * estimate.x0 + (sigma_s * estimate.eps if self.eta == 0 else 0.0)
        h, growth = end - nodes[0], 1 + self.eta**2
        span = -alpha_s / sigma_s * math.expm1(-growth * h)

        def slope(at: Floats) -> Floats:
            return growth * np.exp(at - self.eta**2 * (end - at))

        x = sigma_s / here[1] * math.exp(-(self.eta**2) * h) * x
        for weight, value in zip(_weights(slope, span, nodes, (nodes[0], end), self.rule), values, strict=False):
            x = torch.add(x, value, alpha=sigma_s * weight)
        return x


def _check(order: int, rule: str) -> None:
    if not 1 <= order <= 6:
        raise UsageError(f"order is {order}; multistep solvers of order 1 to 6 are there")
    if rule not in ("exact", "midpoint"):
        raise UsageError(f"unknown rule {rule!r}; choose from: exact, midpoint")


def _log_ratio(alpha: float, sigma: float) -> float:
    """``l = log(alpha/sigma)``, infinite where nothing is left of the data (cos(pi/2) is 6e-17) or of the noise."""
    if alpha <= 1e-6 * sigma:
        return -math.inf
    return math.log(alpha / sigma) if sigma > 0 else math.inf


def _weights(
    slope: Callable[[Floats], Floats] | None, span: float, nodes: list[float], interval: tuple[float, float], rule: str
) -> list[float]:
    """``w_j`` of (1), for polynomials through ``nodes``, newest first, integrated over ``interval``.

    ``slope`` is dc/dl if the polynomials are in l, and ``span`` the whole step of the clock. Fewer weights than nodes
    are returned where the step is too long for them.
    """
    start, end = interval
    if len(nodes) == 1 or (slope is not None and abs(end - start) > 3 * abs(nodes[0] - nodes[1])):
        return [span]
    if rule == "midpoint":
        at, dc = np.array([(start + end) / 2]), np.array([span])
    else:
        at = (start + end) / 2 + (end - start) / 2 * _NODES
        dc = (end - start) / 2 * _WEIGHTS * (1.0 if slope is None else slope(at))
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


def ancestral(steps: int = 200, grid: str = "auto") -> MultistepSDE:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, arXiv:2006.11239, eq. 6-7), on any path."""
    return MultistepSDE(steps=steps, order=1, grid=grid)
