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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.shapes import dims, time_dtype
from .base import Codec

__all__ = ["Levels"]


@dataclass(frozen=True, eq=False)
class Levels(Codec):
    """Equally spaced levels: the same for all numbers of an event, or of each column or channel its own.

    Args:
        low: The lowest one, data units; a number, or float64 of a shape that broadcasts to an event, as the next two.
        high: The highest one, data units.
        count: How many there are, at least 2. Of its own a column may have a single level, or 0: it is continuous, and
            left as it is.
    """

    low: float | Tensor
    high: float | Tensor
    count: int | Tensor

    def __post_init__(self) -> None:
        kinds = {"low": (float, torch.float64), "high": (float, torch.float64), "count": (int, torch.int64)}
        for name, (kind, dtype) in kinds.items():  # as a file gives them back
            value = getattr(self, name)
            several = isinstance(value, Sequence) or (isinstance(value, Tensor) and value.ndim > 0)
            object.__setattr__(self, name, torch.as_tensor(value, dtype=dtype) if several else kind(value))
        low, high, count = (torch.as_tensor(getattr(self, name), dtype=torch.float64) for name in kinds)
        alone = count.ndim == 0
        wrong = (count < (2 if alone else 0)) | (low > high) | ~(high - low).isfinite() | ((low == high) & (count > 1))
        if bool(wrong.any()):
            raise DataError(f"there are {self.count} levels from {self.low} to {self.high}; take at least 2")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Levels:
        """From plain numbers or lists, as JSON has them."""
        return cls(options["low"], options["high"], options["count"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Levels):
            return NotImplemented
        mine, theirs = ((torch.as_tensor(v) for v in (o.low, o.high, o.count)) for o in (self, other))
        return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def __str__(self) -> str:
        parts = (self.low, self.high, self.count)
        low, high, count = (v.flatten().tolist() if isinstance(v, Tensor) else v for v in parts)
        return f"{count} levels from {low} to {high}"

    @property
    def width(self) -> float | Tensor:
        """Distance between two levels, data units; 0 where there are none, and 1 where there is a single one."""
        if isinstance(self.count, int):
            return (self.high - self.low) / (self.count - 1)
        found = torch.where(self.count > 1, (self.high - self.low) / (self.count - 1).clamp(min=1), 1.0)
        return torch.where(self.count > 0, found, 0.0)

    @property
    def everywhere(self) -> bool:
        """Whether every number of an event is a level, so that an event has a probability and not a density."""
        return bool((torch.as_tensor(self.count) > 0).all())

    @property
    def levels(self) -> Levels:
        return self

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        """Inside the cell of ``x``, in the dtype of ``noise``; without noise ``x`` as it is, the cell's lower end."""
        if noise is None:
            return x
        x, width = x.to(noise.dtype), self._like(self.width, noise)
        # Rounding would carry a u next to 1 into the next cell (255 + 0.999999 is 256 in float32): stop short.
        return torch.minimum(x + width * noise, torch.nextafter(x + width, x))

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        """The level whose cell contains a value, kept in range; ``(B, *event)``, float32 for whole numbers."""
        # In float64: in float32, -6e-8 - (-3) is 3, one cell too far.
        wide = m.to(time_dtype(m.device))
        low, width, count = (self._like(v, wide) for v in (self.low, self.width, self.count))
        index = torch.floor((wide - low) / (width if isinstance(width, float) else width.clamp(min=1e-300)))
        if isinstance(count, Tensor):
            index = torch.minimum(index.clamp(min=0), (count - 1).clamp(min=0))
            level = torch.where(count > 0, low + width * index, wide)
        else:
            level = low + width * index.clamp(0, count - 1)
        return level.to(m.dtype) if m.is_floating_point() else level.float()

    @staticmethod
    def _like(value: float | Tensor, x: Tensor) -> Any:
        """A number as it is, a table of them where and as what ``x`` is."""
        return value.to(x) if isinstance(value, Tensor) else value

    def log_det(self, x: Tensor, condition: object = None) -> float:
        width = self.width
        if isinstance(width, float):
            return dims(x) * math.log(width)
        logs = torch.where(width > 0, width, 1.0).log()
        return float(torch.broadcast_to(logs, tuple(x.shape[1:])).sum())
