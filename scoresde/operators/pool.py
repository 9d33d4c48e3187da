"""Pooling to a lower resolution: each pixel of the measurement is the mean of a block of pixels.

If the blocks have k pixels along each of d spatial axes, each row of A has k^d non-zero entries, all equal to k^-d. No
two rows have non-zero entries in the same column. Hence

    A diag(a) A^T = diag(A a) / k^d,

and equation 2 of :mod:`scoresde.operators.base` is a division.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from .base import Linear, Number

__all__ = ["Pool"]


@dataclass(frozen=True, eq=False)
class Pool(Linear):
    """A reduction of the resolution: each block of pixels is replaced by its mean.

    Args:
        size: Side of a block along each spatial axis, in pixels.

    >>> import torch
    >>> Pool(2)(torch.arange(4.0).reshape(1, 1, 4))
    tensor([[[0.5000, 2.5000]]])
    """

    limits = ranges(size=Range(2, 10**4))

    size: int = 2

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        space = self._space(event)
        if any(side % self.size for side in space):
            raise UsageError(
                f"pool:{self.size} needs sides that are divisible by {self.size}, but the samples are "
                f"{' x '.join(map(str, space))}; use another block size, or load the images at another size (size=)",
                parameter="cond",
            )
        return super().on(event)

    def __call__(self, x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x.reshape(*x.shape[:axis], -1, self.size, *x.shape[axis + 1 :]).mean(axis + 1)
        return x

    def transpose(self, y: Tensor) -> Tensor:
        return self._spread(y) / self._block(y)

    def solve(self, r: Tensor, a: Number, b: Number = 0.0) -> Tensor:
        if isinstance(a, Tensor) and a.ndim:
            a = self(a.to(r).expand(len(r), *self._event))
        return r / (a / self._block(r) + b)

    def pinv(self, y: Tensor) -> Tensor:
        return self._spread(y)

    def _block(self, y: Tensor) -> int:
        """Return the number of pixels in a block."""
        return int(self.size ** (y.ndim - 2))

    def _spread(self, y: Tensor) -> Tensor:
        """Repeat each pixel of ``y`` over its block."""
        for axis in range(2, y.ndim):
            y = y.repeat_interleave(self.size, axis)
        return y

    @property
    def title(self) -> str:
        """A short description for figures."""
        return f"pooled by {self.size}"
