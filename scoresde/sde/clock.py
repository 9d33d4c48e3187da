r"""The clock of a path: one number for each time, from which solvers choose their times.

For a path with one alpha and one sigma, the clock is the ratio  r = sigma/(alpha + sigma)  of the straight frame
(:mod:`scoresde.sde.base`). If alpha and sigma differ between coordinates, each coordinate k has its own ratio r_k. The
clock of the path is then the mean over the coordinates in terms of the variable

    u(r) = log( (r + c)/c ) - log( (1 - r + c)/(1 + c) ),      c = 0.2,                                         (1)

that is, the number r with  u(r) = mean_k u(r_k).  Unlike a mean of the log-SNRs, this mean is finite where a coordinate
has no noise or no signal, and unlike a mean of the ratios, it resolves both ends of the path. The same variable is the
integration variable of the likelihood (:mod:`scoresde.likelihood.clock`). Its inverse, with a = c/(1 + c), is

    r = c (e^u - 1) / (1 + a e^u),         dr/du = (r + c) (1 - r + c) / (1 + 2 c).                             (2)

Equation (1) only changes its sign, up to a constant, if r and 1 - r are exchanged. Near r = 1, 1 - r is therefore
computed from the mean of  u(1 - r_k),  without cancellation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.shapes import flat

__all__ = ["SOFTNESS", "mean_ratio", "r_of_clock", "rate_of_mean", "solve_decreasing"]

SOFTNESS = 0.2  # c in equation (1)


def clock(r: Tensor) -> Tensor:
    """Return the value of u at ``r`` (equation 1), with the same shape as ``r``."""
    return torch.log1p(r / SOFTNESS) - torch.log1p(-r / (1 + SOFTNESS))


def r_of_clock(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of r and dr/du at ``u`` (equation 2). Both have the same shape as ``u``."""
    r = SOFTNESS * torch.expm1(u) / (1 + SOFTNESS / (1 + SOFTNESS) * torch.exp(u))
    return r, (r + SOFTNESS) * (1 - r + SOFTNESS) / (1 + 2 * SOFTNESS)


def mean_ratio(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clock's r and 1 - r for the coefficients of each coordinate.

    Args:
        alpha, sigma: The coefficients, each of shape ``(n, *coords)``.

    Returns:
        The clock's r and 1 - r, each of shape ``(n,)``.
    """
    s = alpha + sigma
    noise, signal = (r_of_clock(flat(clock(part / s)).mean(1))[0] for part in (sigma, alpha))
    return noise, signal


def rate_of_mean(r: Tensor, rates: Tensor, mean: Tensor) -> Tensor:
    """Return the derivative of the clock's r, given the derivatives of the ratios of the coordinates.

    Args:
        r, rates: The ratios r_k and their derivatives, each of shape ``(n, *coords)``.
        mean: The clock's r, shape ``(n,)``.

    Returns:
        The derivative, shape ``(n,)``. From equation (2),  dr/dt = (dr/du) mean_k (du/dr_k) (dr_k/dt).
    """
    each = rates * (1 + 2 * SOFTNESS) / ((r + SOFTNESS) * (1 - r + SOFTNESS))
    return (mean + SOFTNESS) * (1 - mean + SOFTNESS) / (1 + 2 * SOFTNESS) * flat(each).mean(1)


def solve_decreasing(f: Callable[[Tensor], Tensor], target: Tensor, low: float, high: float) -> Tensor:
    """Solve ``f(t) = target`` for a decreasing function f, by Chandrupatla's method.

    The method combines bisection with inverse quadratic interpolation (Chandrupatla 1997, Advances in Engineering
    Software 28, 145).

    Args:
        f: The function, which maps times ``(n,)`` to values ``(n,)``. The values at the ends may be infinite.
        target: The values, shape ``(n,)``.
        low, high: The ends of the interval in which to search.

    Returns:
        The times, shape ``(n,)``. If a target is outside the range of f, its time is the nearer end.
    """
    table = low + (high - low) * torch.linspace(0, 1, 129, dtype=target.dtype, device=target.device).pow(3)
    table[-1] = high
    values = f(table)
    place = (values[:, None] > target).sum(0).clamp(1, len(table) - 1)
    a, b, f_a, f_b = table[place - 1], table[place], values[place - 1] - target, values[place] - target
    outside = torch.where(f_a <= 0, a, torch.where(f_b >= 0, b, torch.nan))
    result, done = outside, ~outside.isnan()
    share, eps = torch.full_like(a, 0.5), torch.finfo(target.dtype).eps
    for _ in range(64):
        t = a + share * (b - a)
        found = f(t) - target
        # The new point replaces a. The solution lies between a and b, and c is the point that was dropped last.
        same = (found > 0) == (f_a > 0)
        c, f_c = torch.where(same, a, b), torch.where(same, f_a, f_b)
        b, f_b = torch.where(same, b, a), torch.where(same, f_b, f_a)
        a, f_a = t, found
        best = torch.where(f_a.abs() < f_b.abs(), a, b)
        least = 2 * eps * best.abs() / (b - a).abs()  # the smallest step that is worth taking, as a share of b - a
        # A row keeps its first result, so that it does not depend on the other rows.
        ready = ~done & ((f_a == 0) | ~(least < 0.5))
        result, done = torch.where(ready, best, result), done | ready
        if bool(done.all()):
            return result
        # Interpolate t as a quadratic function of f where it is monotone, and otherwise halve the interval.
        xi, phi = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
        smooth = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
        near = f_a / (f_b - f_a) * f_c / (f_b - f_c) + (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
        share = torch.where(smooth, near, 0.5).clamp(least, 1 - least)
    return torch.where(done, result, best)
