"""Stochastic solvers of the reverse SDE.

For any noise level eta(t) >= 0 the SDE

    dx = (velocity - eta^2/2 score) dt + eta dw,      run from t = 1 down to 0,                                 (1)

has the marginals of the path: eta = 0 is the probability flow, eta = g the reverse SDE of Anderson (1982) used by
Song et al. (2021), arXiv:2011.13456, eq. 6. Here ``eta(t) = eta * sde.noise_level(t)``, and the option ``eta`` is the
factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import UsageError
from ..estimate import Denoiser
from ..noise import Noise
from ..shapes import expand, time_dtype
from .base import Solution, Solver, fixed_solution, grid_of

__all__ = ["EulerMaruyama", "euler_step"]


def euler_step(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, eta: float, z: Tensor) -> Tensor:
    """One Euler-Maruyama step of (1) from ``t`` down to ``s``, with standard normals ``z``; shape of ``x``."""
    estimate = model(x, t)
    h, level = t - s, eta * model.sde.noise_level(t)
    # x - h (velocity - eta^2/2 score) + eta sqrt(h) z
    drift = estimate.velocity - expand(level.square() / 2, x) * estimate.score
    return x - expand(h, x) * drift + expand(level * torch.sqrt(h), x) * z


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse SDE: one evaluation a step, weak order 1.

    Args:
        steps: Number of steps.
        eta: Factor on the noise level: 1 is the reverse SDE, 0 Euler's rule on the probability flow.
        grid: A time grid of :mod:`scoresde.grids`, or ``auto`` for the SDE's own.
    """

    steps: int = 500
    eta: float = 1.0
    grid: str = "auto"

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise UsageError(f"eta is {self.eta}; the noise level of a reverse SDE is >= 0")

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Solution:
        times = grid_of(self.grid, model, self.steps, t0, t1).to(device=x.device, dtype=time_dtype(x.device))
        for step, (t, s) in enumerate(pairwise(times)):
            z = noise.between(float(t), float(s), tuple(x.shape[1:]), step, x.dtype)
            x = euler_step(model, x, t, s, self.eta, z)
        return fixed_solution(x, self.steps, self.steps)
