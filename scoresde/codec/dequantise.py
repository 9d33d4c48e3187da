"""Levels, such as 8-bit pixels and counts, as continuous values.

Numbers that come in levels (8-bit pixels, counts) have no density. They get one by uniform dequantisation: the level k
spreads over its cell  [k, k + w),

    to_model(k) = k + w u,      u uniform on [0, 1),

after which the log density, averaged over a cell, bounds the log probability of the level from below (Theis et al.
2016, arXiv:1511.01844, sec. 3.1), with  log_det = D log w:  log P(k) >= E log p(k + w u) + D log w. Going back, a value
is the level whose cell it lies in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.shapes import dims, time_dtype
from .base import Codec

__all__ = ["Levels"]


@dataclass(frozen=True)
class Levels(Codec):
    """Equally spaced levels.

    Args:
        low: The lowest one, data units.
        high: The highest one, data units.
        count: How many there are, at least 2.
    """

    low: float
    high: float
    count: int

    def __post_init__(self) -> None:
        for name, kind in (("low", float), ("high", float), ("count", int)):  # as a file gives them back
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.count < 2 or not self.low < self.high or not math.isfinite(self.high - self.low):
            raise DataError(f"there are {self.count} levels from {self.low} to {self.high}; take at least 2")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Levels:
        """From plain numbers, as JSON has them."""
        return cls(float(options["low"]), float(options["high"]), int(options["count"]))

    @property
    def width(self) -> float:
        """Distance between two levels, data units."""
        return (self.high - self.low) / (self.count - 1)

    @property
    def levels(self) -> Levels:
        return self

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        """Inside the cell of ``x``, in the dtype of ``noise``; without noise ``x`` as it is, the cell's lower end."""
        if noise is None:
            return x
        x = x.to(noise.dtype)
        # Rounding would carry a u next to 1 into the next cell (255 + 0.999999 is 256 in float32): stop short.
        return torch.minimum(x + self.width * noise, torch.nextafter(x + self.width, x))

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        """The level whose cell contains a value, kept in range; ``(B, *event)``, float32 for whole numbers."""
        # In float64: in float32, -6e-8 - (-3) is 3, one cell too far.
        index = torch.floor((m.to(time_dtype(m.device)) - self.low) / self.width)
        level = self.low + self.width * index.clamp(0, self.count - 1)
        return level.to(m.dtype) if m.is_floating_point() else level.float()

    def log_det(self, x: Tensor, condition: object = None) -> float:
        return dims(x) * math.log(self.width)
