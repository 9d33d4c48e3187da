"""Crop: only the centre of a picture is kept. The pseudo-inverse fills the rest with zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from .base import Linear, Number

__all__ = ["Crop"]


@dataclass(frozen=True, eq=False)
class Crop(Linear):
    """A crop, which keeps only the central window of a picture, signal or volume.

    Args:
        size: Side of the window in pixels; 0 means half of each side of the sample.
    """

    limits = ranges(size=Range(0, 10**6))

    size: int = 0

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        space = self._space(event)
        if self.size >= min(space) or min(space) < 2:
            raise UsageError(
                f"crop:{self.size} needs sides longer than {max(self.size, 1)} px, but the samples are "
                f"{' x '.join(map(str, space))} px; use a smaller window, or another operator",
                parameter="cond",
            )
        return super().on(event)

    def __call__(self, x: Tensor) -> Tensor:
        return x[self._window(tuple(x.shape[2:]))]

    def transpose(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self._event)
        x[self._window(self._event[1:])] = y
        return x

    def solve(self, r: Tensor, a: Number, b: Number = 0.0) -> Tensor:
        if isinstance(a, Tensor) and a.ndim:
            a = self(a.to(r).expand(len(r), *self._event))
        return r / (a + b)

    def pinv(self, y: Tensor) -> Tensor:
        return self.transpose(y)

    def shown(self, y: Tensor) -> Tensor:
        x = torch.full((len(y), *self._event), torch.nan, dtype=y.dtype, device=y.device)
        x[self._window(self._event[1:])] = y
        return x

    def hidden(self, event: tuple[int, ...]) -> Tensor:
        found = super().hidden(event)
        found[self._window(event[1:])] = False
        return found

    def _window(self, space: tuple[int, ...]) -> tuple[slice, ...]:
        sides = [self.size or side // 2 for side in space]
        first = [(side - kept) // 2 for side, kept in zip(space, sides, strict=True)]
        return (slice(None), slice(None), *(slice(i, i + n) for i, n in zip(first, sides, strict=True)))

    @property
    def title(self) -> str:
        """A short description for figures."""
        return "cropped" if not self.size else f"cropped to {self.size} pixel{'s' * (self.size > 1)}"
