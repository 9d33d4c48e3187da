"""Heun's method with churn, in the variance-exploding frame (Karras et al. 2022, arXiv:2206.00364, alg. 2).

In terms of  y = x/alpha  and  s = sigma/alpha,  every path is the VE path  y = x_0 + s eps,  and the probability flow
is dy/ds = eps_hat. A step from s to s' first adds noise, which raises the noise level to s^ = s (1 + gamma), and then
applies Heun's method from s^ to s'. With N steps and standard normals z,

    gamma = min(churn/N, sqrt(2) - 1)  if s_min <= s <= s_max, else 0
    y^ = y + sqrt(s^^2 - s^2) s_noise z
    d = eps_hat(y^, s^),   y' = y^ + (s' - s^) d,   y <- y^ + (s' - s^) (d + eps_hat(y', s')) / 2.

The noise level never exceeds the level at which sampling starts, because the model does not cover higher levels. The
published algorithm ends with an Euler step to s = 0. Here, the final noise-free step of :func:`scoresde.sample`
(``denoise``) plays this role, so sampling with N steps costs 2N + 1 evaluations. If a step starts at alpha = 0 (where s
is infinite) or ends at sigma = 0, its result is alpha x0_hat + sigma eps_hat, where alpha and sigma are the values at
the end of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from ..core.noise import Noise
from ..core.shapes import expand
from ..model.estimate import Denoiser
from ..ode.fixed import rule_step
from ..sde.check import check_scalar
from ..sde.grids import Grid
from .base import FixedStep
from .exponential import log_ratio

__all__ = ["EDMHeun"]


@dataclass(frozen=True)
class EDMHeun(FixedStep):
    """The EDM sampler: order 2 without churn, two evaluations per step.

    Args:
        steps: Number of steps.
        churn: Total amount of noise added over all steps. If it is 0, the solver is deterministic.
        s_min, s_max: Noise is added only at noise levels sigma/alpha between these two values.
        s_noise: Factor by which the added noise is multiplied. Values above 1 compensate for a network that removes too
            much noise.
        grid: See :class:`~scoresde.solvers.base.FixedStep`. The default, ``karras``, is the published grid.
    """

    limits = ranges(churn=Range(0, 1e6), s_min=Range(0, 1e9), s_max=Range(0, infinite=True),
        s_noise=Range(0, 10, above=True))  # fmt: skip

    steps: int = 18
    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = 1e9
    s_noise: float = 1.0
    grid: str | Grid | tuple[float, ...] = field(default="karras", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("s_min", "s_max", "s_noise") if self.churn == 0 else ():
            if getattr(self, name) != getattr(type(self), name):
                raise UsageError(
                    f"{name} = {getattr(self, name)} has no effect without churn; set churn as well, for example to 40"
                )

    @property
    def needs_score(self) -> bool:  # type: ignore[override]
        """Whether the solver needs the score. Only churn needs it, because adding noise assumes a Gaussian path."""
        return self.churn > 0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the solver draws noise, which it does only with churn."""
        return self.churn > 0

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return 2

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        sde, clock = model.domain.sde, times.tolist()
        check_scalar(sde, "the 'edm' solver", "the 'heun' solver", parameter="solver", value="heun")
        path = list(zip(*(c.tolist() for c in sde.coefficients(times.cpu())), strict=True))
        highest = math.exp(-log_ratio(*path[0])) if math.isfinite(log_ratio(*path[0])) else math.inf
        most = min(self.churn / (len(times) - 1), math.sqrt(2) - 1)

        def advance(i: int, x: Tensor) -> Tensor:
            (alpha, sigma), (alpha_s, sigma_s) = path[i], path[i + 1]
            if not (math.isfinite(log_ratio(alpha, sigma)) and math.isfinite(log_ratio(alpha_s, sigma_s))):
                estimate = model(x, times[i])
                return sde.perturb(estimate.x0, times[i + 1], estimate.eps)
            y, s, end, t = x / alpha, sigma / alpha, sigma_s / alpha_s, times[i]
            if most > 0 and self.s_min <= s <= self.s_max:
                hat = min(s * (1 + most), highest)
                if hat > s:
                    z = noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype)
                    y, s = y + math.sqrt(hat**2 - s**2) * self.s_noise * z, hat
                    t = sde.t_of_log_snr(torch.tensor(-2 * math.log(hat), dtype=torch.float64)).to(times)
                    t = t.clamp(times.min(), times.max())

            def f(c: float, y: Tensor) -> Tensor:
                if c == 0:
                    return model(expand(sde.coefficients(t)[0], y) * y, t).eps
                return model(alpha_s * y, times[i + 1]).eps

            end_state: Tensor = alpha_s * rule_step("heun", f, y, end - s)
            return end_state

        return advance
