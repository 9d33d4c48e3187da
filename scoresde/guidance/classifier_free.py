"""Guidance by a second model: the estimate moves away from that of the second model.

A guided model is itself a denoiser, so it can be used with any solver. The second model can be the same network without
its condition (classifier-free guidance), with another condition (a "negative prompt"), or an earlier, less trained
version of the network (autoguidance).

References:
    Ho and Salimans (2022), Classifier-free diffusion guidance, arXiv:2207.12598.
    Karras et al. (2024), Guiding a diffusion model with a bad version of itself, arXiv:2406.02507: autoguidance.
    Kynkaanniemi et al. (2024), Applying guidance in a limited interval, arXiv:2404.07724.
    Liu et al. (2022), Compositional visual generation with composable diffusion models, arXiv:2206.01714, eq. 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import SCALE, Checked, Range, ranges
from ..core.shapes import as_time
from ..model.estimate import Denoiser, Domain, Estimate, Wrapped

__all__ = ["ALL", "Guided", "Mixed", "check_interval"]

ALL = (0.0, math.inf)


@dataclass(frozen=True)
class Guided(Checked, Wrapped):
    """A guided model, whose estimate is ``against + scale (model - against)``.

    A scale of 1 gives ``model``, and a scale of 0 gives ``against``. If ``model`` has a condition and ``against`` does
    not, the estimate is eq. 6 of Ho and Salimans (2022), arXiv:2207.12598, with w = ``scale - 1``. Each call evaluates
    both models, except where only one of them is needed: at scale 1, at scale 0 without an interval, and for rows
    outside the interval.

    Args:
        model: The model to move towards.
        against: The model to move away from.
        scale: The strength of the guidance.
        interval: The lowest and the highest noise level sigma/alpha at which the model is guided. At other levels,
            the estimate is that of ``model``.
    """

    limits = ranges(scale=SCALE, interval=Range(0, infinite=True))

    against: Denoiser
    scale: float
    interval: tuple[float, float] = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval(self.interval)

    @cached_property
    def domain(self) -> Domain:
        """The domain in which both models can be evaluated."""
        exact = self.scale == 1.0 or (self.scale == 0.0 and tuple(self.interval) == ALL)
        return _shared((self.model.domain, self.against.domain), exact, "guided model")

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if self.scale == 1.0:
            return self.model(x, t)
        everywhere = tuple(self.interval) == ALL
        if self.scale == 0.0 and everywhere:
            return self.against(x, t)
        c = self.model(x, t)
        inside = None if everywhere else self._inside(x, t)
        if inside is not None and not bool(inside.any()):
            return c
        if inside is None or bool(inside.all()):
            u = self.against(x, t)
            return self._towards(c, u.x0, u.eps, c.calls + u.calls)
        index, times = inside.nonzero().flatten(), as_time(t, x).expand(len(x))
        u = self.against.rows(index)(x[index], times[index])
        calls = torch.as_tensor(c.calls, device=x.device).expand(len(x)).clone()
        calls[index] += u.calls
        return self._towards(c, c.x0.index_copy(0, index, u.x0), c.eps.index_copy(0, index, u.eps), calls)

    def _inside(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Return which rows are guided, bool ``()`` or ``(B,)``."""
        (low, high), sde, t = self.interval, self.domain.sde, as_time(t, x)
        if sde.coords:  # the clock decides for all coordinates
            sigma = sde.ratio(t)
            alpha = 1 - sigma
        else:
            alpha, sigma = sde.coefficients(t)
        return (sigma >= low * alpha) & ((sigma <= high * alpha) | (high == math.inf))

    def _towards(self, c: Estimate, x0: Tensor, eps: Tensor, calls: int | Tensor) -> Estimate:
        # Both estimates satisfy alpha x0 + sigma eps = x, and so does any affine combination of them. A learned
        # variance is taken from the model, because extrapolating the fraction could leave the interval from 0 to 1.
        x0, eps = torch.lerp(x0, c.x0, self.scale), torch.lerp(eps, c.eps, self.scale)
        return replace(c, x0=x0, eps=eps, calls=calls, plain=c.x0, twist=None)


@dataclass(frozen=True)
class Mixed:
    """An affine combination of several models, whose weights sum to 1.

    For example, ``Mixed((model, three, eight), (-1.0, 1.0, 1.0))`` adds what two conditions change in the estimate of a
    model without condition, which approximates samples that satisfy both conditions (Liu et al. 2022, eq. 11).

    Args:
        models: The models, all of them on the same path.
        weights: The weight of each model.
    """

    models: Sequence[Denoiser]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if not self.models or len(self.models) != len(self.weights):
            raise UsageError(
                f"a mixture of models requires one weight for each model, but the number of models is "
                f"{len(self.models)} and the number of weights is {len(self.weights)}"
            )
        total = math.fsum(self.weights)
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise UsageError(
                f"the weights of a mixture of models must sum to 1, but {', '.join(f'{w:g}' for w in self.weights)} "
                f"sum to {total:g}; otherwise the estimates of data and noise would not add up to the state"
            )

    @cached_property
    def domain(self) -> Domain:
        """The domain in which all models can be evaluated."""
        return _shared(
            [model.domain for model in self.models], sum(w != 0 for w in self.weights) == 1, "mixture of models"
        )

    def rows(self, index: Tensor) -> Mixed:
        """Return the mixture restricted to the rows ``index: (B',)`` of a batch."""
        return replace(self, models=tuple(model.rows(index) for model in self.models))

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        used = [(model, w) for model, w in zip(self.models, self.weights, strict=True) if w]
        parts, weights = [model(x, t) for model, _ in used], [w for _, w in used]
        x0, eps = parts[0].x0 * weights[0], parts[0].eps * weights[0]
        for w, part in zip(weights[1:], parts[1:], strict=True):
            x0, eps = x0 + w * part.x0, eps + w * part.eps
        calls = sum((part.calls for part in parts[1:]), parts[0].calls)
        return replace(parts[0], x0=x0, eps=eps, calls=calls, plain=None, twist=None)


def check_interval(interval: Sequence[float]) -> None:
    """Reject an interval of noise levels whose ends are negative, not numbers, or not in ascending order."""
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:  # also rejects NaN
        raise UsageError(
            f"the guidance interval is {', '.join(f'{end:g}' for end in interval)}; it must be two noise levels "
            "sigma/alpha in ascending order, such as 0,1 or 0.2,inf",
            parameter="interval",
            value="0,1",
        )


def _shared(domains: Sequence[Domain], exact: bool, kind: str) -> Domain:
    """Return the intersection of several domains. ``exact`` means that only one of the models is used."""
    first = domains[0]
    for other in domains[1:]:
        if first.sde != other.sde:
            raise UsageError(
                f"guidance requires two models on the same path, but these models are on {first.sde!r} and "
                f"{other.sde!r}; convert one of them with scoresde.convert"
            )
    return replace(
        first,
        t_min=max(domain.t_min for domain in domains),
        t_max=min(domain.t_max for domain in domains),
        has_score=all(domain.has_score for domain in domains),
        consistent=exact and all(domain.consistent for domain in domains),
        rounded=any(domain.rounded for domain in domains),
        kind=first.kind if exact else kind,
        twisted=False,
    )
