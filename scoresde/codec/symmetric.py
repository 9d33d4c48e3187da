"""Symmetric matrices, such as the adjacency of a graph, as vectors of their upper triangles.

    m = (x_ii, sqrt(2) x_ij for i < j),                                                                       (1)

is orthonormal coordinates of the symmetric matrices, so white noise in m is symmetric noise with variance 1 on the
diagonal and 1/2 off it. Densities are densities per surface measure, in n (n + 1)/2 dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import DataError, UsageError
from .affine import Affine
from .base import mask_of
from .space import Space, one_scale

__all__ = ["Symmetric"]

OFF = 1e-5  # largest asymmetry, relative to the largest value


@dataclass(frozen=True, eq=False, repr=False)
class Symmetric(Space):
    """Symmetric matrices on the last two axes, as vectors of their upper triangles.

    Args:
        diagonal: Whether the diagonal is part of the data. If not, it is 0.
    """

    masks: ClassVar[bool] = True
    rigid: ClassVar[bool] = True
    subspace: ClassVar[bool] = True
    levels_too: ClassVar[bool] = False

    diagonal: bool = True

    def affine(self, affine: Affine, values: Tensor) -> Affine:
        return one_scale(values)

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        least = 1 if self.diagonal else 2
        if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < least:
            raise UsageError(
                f"the space 'symmetric' needs square matrices on the last two axes, of size {least} or more, but the "
                f"samples have shape {shape}",
                parameter="space",
            )
        return (*shape[:-2], shape[-1] * (shape[-1] + (1 if self.diagonal else -1)) // 2)

    def _entries(self, n: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows, the columns and the factors of the entries of m."""
        i, j = torch.triu_indices(n, n, 0 if self.diagonal else 1, device=x.device)
        return i, j, torch.where(i == j, 1.0, math.sqrt(2)).to(x) if x.is_floating_point() else torch.ones_like(i)

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        self.model_shape(tuple(x.shape[1:]))
        i, j, factor = self._entries(x.shape[-1], x)
        return factor * (x[..., i, j] + x[..., j, i]) / 2

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        k, sign = m.shape[-1], 1 if self.diagonal else -1
        n = round((math.sqrt(8 * k + 1) - sign) / 2)
        i, j, factor = self._entries(n, m)
        x = m.new_zeros(*m.shape[:-1], n, n)
        x[..., i, j] = x[..., j, i] = m / factor
        return x

    def log_det(self, x: Tensor, condition: object = None) -> float:
        return 0.0

    def support(self, condition: object = None, before: Tensor | None = None) -> Tensor | None:
        if before is None:
            return None
        i, j, _ = self._entries(before.shape[-1], before)
        return before[..., i, j]

    def dims(self, x: Tensor, condition: object = None) -> int:
        return math.prod(self.model_shape(tuple(x.shape[1:])))

    def check(self, x: Tensor, condition: object = None) -> None:
        mask = mask_of(condition, x)
        if mask is not None and bool((mask != mask.mT).any()):
            raise DataError("the mask of symmetric matrices must be symmetric too")
        x = x.double() if mask is None else torch.where(mask, x.double(), 0)
        size = x.flatten(1).abs().amax(1)
        off = (x - x.mT).flatten(1).abs().amax(1)
        if not self.diagonal:
            off = torch.maximum(off, x.diagonal(dim1=-2, dim2=-1).flatten(1).abs().amax(1))
        wrong = off > OFF * size
        if bool(wrong.any()):
            what = "symmetric matrices" + ("" if self.diagonal else " with a diagonal of 0")
            raise DataError(
                f"the space 'symmetric' needs {what}, but row {int(wrong.nonzero()[0])} is off by "
                f"{float(off[wrong][0]):.3g} ({int(wrong.sum()):,} of {len(x):,} rows are)"
            )

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        return self.to_data(m)

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        return self.to_model(x)
