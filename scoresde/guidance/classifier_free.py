"""Classifier-free guidance, which moves the estimate of a conditional model away from that of an unconditional model.

A guided model is itself a denoiser, so it can be used with any solver.

References:
    Ho and Salimans (2022), Classifier-free diffusion guidance, arXiv:2207.12598.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import SCALE, Checked, ranges
from ..model.estimate import Denoiser, Domain, Estimate, Wrapped

__all__ = ["Guided"]


@dataclass(frozen=True)
class Guided(Checked, Wrapped):
    """A guided model, whose estimate is ``against + scale (model - against)``.

    A scale of 1 gives ``model``, and a scale of 0 gives ``against``. If ``model`` has a condition and ``against`` does
    not, the estimate is eq. 6 of Ho and Salimans (2022), arXiv:2207.12598, with w = ``scale - 1``. Each call evaluates
    both models, except at scale 0 or 1, where only one of them is needed.

    Args:
        model: The model to move towards.
        against: The model to move away from.
        scale: The strength of the guidance.
    """

    limits = ranges(scale=SCALE)

    against: Denoiser
    scale: float

    @cached_property
    def domain(self) -> Domain:
        """The domain in which both models can be evaluated."""
        a, b = self.model.domain, self.against.domain
        if a.sde != b.sde:
            raise UsageError(
                f"guidance requires two models on the same path, but these models are on {a.sde!r} and {b.sde!r}; "
                "convert one of them with scoresde.convert"
            )
        return replace(
            a,
            t_min=max(a.t_min, b.t_min),
            t_max=min(a.t_max, b.t_max),
            has_score=a.has_score and b.has_score,
            consistent=a.consistent and b.consistent and self.scale in (0.0, 1.0),
        )

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if self.scale in (0.0, 1.0):
            return self.model(x, t) if self.scale else self.against(x, t)
        c, u = self.model(x, t), self.against(x, t)
        # Both estimates satisfy alpha x0 + sigma eps = x, and so does any affine combination of them. A learned
        # variance is taken from the model, because extrapolating the fraction could leave the interval from 0 to 1.
        x0, eps = torch.lerp(u.x0, c.x0, self.scale), torch.lerp(u.eps, c.eps, self.scale)
        return replace(c, x0=x0, eps=eps, calls=c.calls + u.calls)
