"""Blur: the picture, mirrored at its edges, is convolved with a Gaussian.

Such a blur is diagonal in the basis of cosines (the orthonormal discrete cosine transform C of type II),

    A = C^T diag(h) C,        h_j = exp(-(pi j s / n)^2 / 2),        j = 0, ..., n - 1,

along each axis of n pixels, where s is the standard deviation in pixels. Hence A is symmetric. If ``a`` and ``b``
are constant over space, equation 2 of :mod:`scoresde.operators.base` is a division in this basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..core.limits import Range, ranges
from .base import Linear, Number

__all__ = ["Blur"]


@dataclass(frozen=True, eq=False)
class Blur(Linear):
    """A Gaussian blur.

    Args:
        sigma: Standard deviation of the Gaussian, in pixels.
    """

    limits = ranges(sigma=Range(0, 1e4, above=True))

    sigma: float = 1.0

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        self._space(event)
        return super().on(event)

    def __call__(self, x: Tensor) -> Tensor:
        return _back(self._factors(x) * _cosines(x))

    def transpose(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, r: Tensor, a: Number, b: Number = 0.0) -> Tensor:
        if isinstance(a, Tensor) and a.ndim:
            a = a.to(r).expand(len(r), *r.shape[1:])
            level = a.flatten(2)[..., :1].reshape(*a.shape[:2], *[1] * (a.ndim - 2))
            if bool((a != level).any()):
                return super().solve(r, a, b)
            a = level
        if isinstance(b, Tensor) and b.ndim > 2 and max(b.shape[2:]) > 1:
            return super().solve(r, a, b)
        matrix = a * self._factors(r).square() + b
        smallest = torch.finfo(r.dtype).eps ** 2 * matrix.max()
        return _back(torch.where(matrix > smallest, _cosines(r) / matrix, 0))

    def pinv(self, y: Tensor) -> Tensor:
        h = self._factors(y)
        return _back(torch.where(h > torch.finfo(y.dtype).eps, _cosines(y) / h, 0))

    def shown(self, y: Tensor) -> Tensor:
        """Return ``y`` itself, because the pseudo-inverse would amplify rounding errors in the blurred picture."""
        return y

    def _factors(self, x: Tensor) -> Tensor:
        """Return the factors h of the cosines, ``(1, 1, *space)``."""
        h = torch.ones((), dtype=x.dtype, device=x.device)
        for side in x.shape[2:]:
            j = torch.arange(side, dtype=x.dtype, device=x.device)
            h = h[..., None] * torch.exp(-((math.pi * self.sigma / side * j) ** 2) / 2)
        return h[None, None]

    @property
    def title(self) -> str:
        """A short description for figures."""
        return f"blurred by {self.sigma:g} pixel{'s' * (self.sigma != 1)}"


def _cosines(x: Tensor) -> Tensor:
    """Apply C along all spatial axes of ``x``."""
    for axis in range(2, x.ndim):
        x = torch.movedim(torch.movedim(x, axis, -1) @ _basis(x.shape[axis], x).T, -1, axis)
    return x


def _back(u: Tensor) -> Tensor:
    """Apply C^T, the inverse of C, along all spatial axes of ``u``."""
    for axis in range(2, u.ndim):
        u = torch.movedim(torch.movedim(u, axis, -1) @ _basis(u.shape[axis], u), -1, axis)
    return u


def _basis(n: int, like: Tensor) -> Tensor:
    """Return the orthonormal cosine basis C for n pixels, with one row for each frequency."""
    i = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * (i + 0.5) * i[:, None]) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.to(like)
