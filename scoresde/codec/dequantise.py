"""Conversion of discrete levels, such as 8-bit pixels and counts, to continuous values.

Discrete data have no density. Uniform dequantisation gives them a density by spreading each level k over its cell
[k, k + w), where w is the distance between adjacent levels:

    to_model(k) = k + w u,      u uniform on [0, 1).

For an event of D elements, the density p of the continuous values gives a lower bound on the probability P of the
levels (Theis et al. 2016, arXiv:1511.01844, sec. 3.1),

    log P(k) >= E_u log p(k + w u) + log_det,      log_det = D log w.

Conversely, ``to_data`` maps a value to the level whose cell contains it.
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
from .base import Codec, mask_of, summed

__all__ = ["Levels"]


@dataclass(frozen=True, eq=False)
class Levels(Codec):
    """Equally spaced levels, either the same for all elements of an event or different for each column or channel.

    Each argument is a number, or a list or tensor that broadcasts to an event. Lists and tensors are converted to int64
    (``count``) or float64 (``low`` and ``high``).

    Args:
        low: The lowest level, in data units.
        high: The highest level, in data units.
        count: The number of levels, at least 2. In a list or tensor, 1 is also allowed, and 0 marks a continuous
            column, which stays unchanged.
    """

    low: float | Tensor
    high: float | Tensor
    count: int | Tensor

    def __post_init__(self) -> None:
        kinds = {"low": (float, torch.float64), "high": (float, torch.float64), "count": (int, torch.int64)}
        for name, (kind, dtype) in kinds.items():  # also accept plain lists, as read from a file
            value = getattr(self, name)
            several = isinstance(value, Sequence) or (isinstance(value, Tensor) and value.ndim > 0)
            object.__setattr__(self, name, torch.as_tensor(value, dtype=dtype) if several else kind(value))
        low, high, count = (torch.as_tensor(getattr(self, name), dtype=torch.float64) for name in kinds)
        alone = count.ndim == 0
        wrong = (count < (2 if alone else 0)) | (low > high) | ~(high - low).isfinite() | ((low == high) & (count > 1))
        if bool(wrong.any()):
            raise DataError(
                f"cannot use {self.count} levels from {self.low} to {self.high}; use at least 2 levels, with low < high"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Levels:
        """Build the codec from plain numbers or lists, as read from JSON."""
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
        """The distance between adjacent levels, in data units: 0 for a continuous column, and 1 for a single level."""
        if isinstance(self.count, int):
            return (self.high - self.low) / (self.count - 1)
        found = torch.where(self.count > 1, (self.high - self.low) / (self.count - 1).clamp(min=1), 1.0)
        return torch.where(self.count > 0, found, 0.0)

    @property
    def everywhere(self) -> bool:
        """Whether all elements of an event are discrete, so that the event has a probability instead of a density."""
        return bool((torch.as_tensor(self.count) > 0).all())

    @property
    def levels(self) -> Levels:
        return self

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        """Replace each level in ``x: (B, *event)`` with a random point in the cell of that level.

        The result has the dtype of ``noise``. Without noise, return ``x`` unchanged, because each level is the lower
        end of its cell.
        """
        if noise is None:
            return x
        x, width = x.to(noise.dtype), self._like(self.width, noise)
        # If u is close to 1, the sum may be rounded up into the next cell (255 + 0.999999 is 256 in float32).
        return torch.minimum(x + width * noise, torch.nextafter(x + width, x))

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        """Return the level whose cell contains each value of ``m: (B, *event)``.

        Values outside the range of levels are mapped to the nearest level, and continuous columns stay unchanged. The
        result has the shape of ``m``. Its dtype is that of ``m``, or float32 if ``m`` contains integers.
        """
        # Computed in float64 where the device has it, because in float32 -6e-8 - (-3) is 3, one cell too far.
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
        """Convert a tensor to the device and dtype of ``x``, or return a plain number unchanged."""
        return value.to(x) if isinstance(value, Tensor) else value

    def log_det(self, x: Tensor, condition: object = None) -> float | Tensor:
        width = self.width
        if isinstance(width, float) and mask_of(condition, x) is None:
            return dims(x) * math.log(width)
        widths = torch.as_tensor(width, dtype=torch.float64)
        logs = torch.where(widths > 0, widths, 1.0).log()
        if mask_of(condition, x) is not None:
            return summed(logs, x, condition)
        return float(torch.broadcast_to(logs, tuple(x.shape[1:])).sum())
