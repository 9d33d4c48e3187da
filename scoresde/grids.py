"""Time grids: where a solver with a given number of steps puts its nodes.

Every grid goes from ``t0`` to ``t1``, either way, in float64, and both ends are exact. A grid is uniform in some
monotone clock of the SDE: ``t`` itself, ``sqrt(t)`` (noise levels of VP grow like sqrt(t) near the data), the log-SNR
``2 log(alpha/sigma)`` (Lu et al. 2022, arXiv:2206.00927), or ``(sigma/alpha)^(1/rho)`` (Karras et al. 2022,
arXiv:2206.00364, eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .errors import UsageError

__all__ = ["GRIDS", "karras", "log_snr", "make_grid", "sqrt_t", "uniform"]


class Clock(Protocol):
    """What a grid needs of an SDE."""

    def log_snr(self, t: Tensor) -> Tensor: ...
    def t_of_log_snr(self, log_snr: Tensor) -> Tensor: ...


def _ends(sde: Clock, t0: float, t1: float) -> Tensor:
    """The log-SNR at both ends; where alpha or sigma is 0 it is infinite, and 20 stands for it."""
    ends = sde.log_snr(torch.tensor([t0, t1], dtype=torch.float64))
    return torch.where(ends.abs() > 60, ends.clamp(-20, 20), ends)


def _between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    return torch.linspace(float(a), float(b), steps + 1, dtype=torch.float64)


def uniform(sde: Clock, steps: int, t0: float, t1: float) -> Tensor:
    """Uniform in t, shape ``(steps + 1,)``."""
    return torch.linspace(t0, t1, steps + 1, dtype=torch.float64)


def sqrt_t(sde: Clock, steps: int, t0: float, t1: float) -> Tensor:
    """Uniform in sqrt(t), shape ``(steps + 1,)``."""
    return torch.linspace(t0**0.5, t1**0.5, steps + 1, dtype=torch.float64).square()


def log_snr(sde: Clock, steps: int, t0: float, t1: float) -> Tensor:
    """Uniform in the log-SNR, shape ``(steps + 1,)``."""
    ends = _ends(sde, t0, t1)
    return sde.t_of_log_snr(_between(ends[0], ends[1], steps))


def karras(sde: Clock, steps: int, t0: float, t1: float, rho: float = 7.0) -> Tensor:
    """Uniform in (sigma/alpha)^(1/rho), shape ``(steps + 1,)``."""
    ends = _ends(sde, t0, t1)
    roots = torch.exp(-ends / (2 * rho))
    return sde.t_of_log_snr(-2 * rho * torch.log(_between(roots[0], roots[1], steps)))


GRIDS: dict[str, Callable[[Clock, int, float, float], Tensor]] = {
    "uniform": uniform,
    "sqrt": sqrt_t,
    "logsnr": log_snr,
    "karras": karras,
}


def make_grid(name: str, sde: Clock, steps: int, t0: float, t1: float) -> Tensor:
    """Return ``steps + 1`` times from ``t0`` to ``t1``, float64, strictly monotone.

    Raises:
        UsageError: If the name is unknown, there is no step, or the nodes do not move.
    """
    if name not in GRIDS:
        raise UsageError(f"unknown time grid {name!r}; choose from: {', '.join(GRIDS)}")
    if steps < 1:
        raise UsageError(f"steps is {steps}; a solver needs at least 1")
    grid = GRIDS[name](sde, steps, t0, t1).cpu()
    grid[0], grid[-1] = t0, t1
    if not bool(((grid[1:] - grid[:-1]) * (t1 - t0) > 0).all()):
        raise UsageError(
            f"the {name!r} grid with {steps} steps from t = {t0} to {t1} has nodes that do not move; "
            "take fewer steps or another grid"
        )
    return grid
