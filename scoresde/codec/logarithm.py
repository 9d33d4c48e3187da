"""The logarithm of positive data, such as prices, concentrations and spectra.

m = (log x - shift) / scale,      log |dm/dx| = -sum (log x + log scale).                                  (1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import DataError
from .affine import Affine
from .base import mask_of, summed
from .space import Space

__all__ = ["Log"]


@dataclass(frozen=True, eq=False, repr=False)
class Log(Space):
    """The logarithm of positive data, standardised for each column or channel.

    Args:
        shift, scale: Mean and standard deviation of the logarithms, as numbers or arrays that broadcast to an event.
            They are computed from the training data.
    """

    masks: ClassVar[bool] = True
    levels_too: ClassVar[bool] = False  # the log-determinant varies within the cell of a level

    shift: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        if not bool((self.scale > 0).all() & self.scale.isfinite().all() & self.shift.isfinite().all()):
            raise DataError("the shift and the scale of the space 'log' must be finite, and the scale positive")

    def affine(self, affine: Affine, values: Tensor) -> Affine:
        if bool((values <= 0).any()):
            raise self._refused(float(values.min()))
        return Affine(0.0, values.double().log().mean().exp())

    @staticmethod
    def _refused(value: float) -> DataError:
        return DataError(
            f"the space 'log' needs positive data, but a value is {value:g}; use another space, or add an offset"
        )

    def fitted(self, m: Tensor, condition: object = None) -> Self:
        self.check(m, condition)
        mask = mask_of(condition, m)
        real = torch.ones_like(m, dtype=torch.bool) if mask is None else mask.expand(m.shape)
        logs = torch.where(real, m.double(), 1).log()
        axes = (0, *range(2, m.ndim))  # a column of a table, or a channel, has its own shift and scale
        count = real.sum(axes, keepdim=True).clamp(min=1)
        shift = logs.sum(axes, keepdim=True) / count
        square = torch.where(real, logs - shift, 0).square().sum(axes, keepdim=True) / count
        scale = square.sqrt()
        return replace(self, shift=shift[0], scale=torch.where(scale > 0, scale, 1.0)[0])

    def _positive(self, x: Tensor, condition: object) -> Tensor:
        mask = mask_of(condition, x)
        return x if mask is None else torch.where(mask, x, 1)

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        m: Tensor = (self._positive(x, condition).log() - self.shift.to(x)) / self.scale.to(x)
        mask = mask_of(condition, x)
        return m if mask is None else torch.where(mask, m, 0)

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        x: Tensor = (m.double() * self.scale.to(m.device) + self.shift.to(m.device)).exp()
        return x.to(m.dtype)

    def log_det(self, x: Tensor, condition: object = None) -> Tensor:
        logs = self._positive(x.double(), condition).log() + self.scale.log().to(x.device)
        return -summed(logs, x, condition)

    def check(self, x: Tensor, condition: object = None) -> None:
        x = self._positive(x, condition)
        if bool((x <= 0).any()):
            raise self._refused(float(x.min()))
