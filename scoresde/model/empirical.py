"""The exact score of a finite set of points.

A set of points x_k is a Gaussian mixture whose components have zero width, so its denoiser has the closed form

    x0_hat(x, t) = sum_k r_k x_k,      r_k ~ exp(-|x - alpha x_k|^2 / (2 sigma^2)),                             (1)

where the weights r_k sum to 1. This denoiser minimises the training loss, so a network that reached the minimum would
only reproduce the training points (Karras et al. 2022, arXiv:2206.00364, app. B.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.limits import NONNEGATIVE, Checked, ranges
from ..core.shapes import as_time, expand
from ..model.estimate import Domain, Estimate
from ..model.mixture import GaussianMixture
from ..sde.base import SDE

__all__ = ["CHUNK", "TrainingSet"]

CHUNK = 2**21  # maximum number of elements in a tensor: rows x points x elements per event


@dataclass(frozen=True)
class TrainingSet(Checked):
    """The exact score of a finite set of points, as a denoiser that processes the points in chunks.

    Args:
        sde: The path.
        points: The points in model units, shape ``(K, *event)``.
        std: Standard deviation of the Gaussian around each point, or 0 if the data are exactly the points.
    """

    limits = ranges(std=NONNEGATIVE)

    sde: SDE
    points: Tensor
    std: float = 0.0

    @cached_property
    def domain(self) -> Domain:
        """The domain, which covers the whole path."""
        return Domain.of(self.sde)

    def rows(self, index: Tensor) -> TrainingSet:
        """Return the denoiser itself, because it is the same for all rows."""
        return self

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        """Estimate the data and the noise, in float64, at ``x: (B, *event)`` and ``t: ()`` or ``(B,)``."""
        t, x = as_time(t, x), x.double()
        best = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
        total, x0, eps = torch.zeros_like(best), torch.zeros_like(x), torch.zeros_like(x)
        for part in torch.split(self.points, max(1, CHUNK // x.numel())):
            stds = torch.full((len(part),), self.std, dtype=x.dtype, device=x.device)
            piece = GaussianMixture(self.sde, part.to(x), stds)
            # The set is a mixture of its chunks. Each chunk is weighted by its density times its number of points,
            # relative to the largest weight so far.
            weight = piece.log_prob(x, t) + math.log(len(part))
            top = torch.maximum(best, weight)
            old, new = torch.exp(best - top), torch.exp(weight - top)
            found = piece(x, t)
            x0, eps = (expand(old, x) * a + expand(new, x) * b for a, b in ((x0, found.x0), (eps, found.eps)))
            best, total = top, old * total + new
        return Estimate(x, t, x0 / expand(total, x), eps / expand(total, x), self.sde)
