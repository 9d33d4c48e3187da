"""Grey: a colour picture is reduced to its brightness.

For each pixel, the measurement is  y = w . x,  where x contains the red, green and blue values and w contains their
weights according to ITU-R BT.601. Hence

    A diag(a) A^T = diag(sum_c w_c^2 a_c).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from .base import Linear, Number

__all__ = ["Grey"]

WEIGHTS = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Grey(Linear):
    """A reduction of colour pictures to a single grey channel, ``0.299 R + 0.587 G + 0.114 B``."""

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        self._space(event)
        if event[0] != 3:
            raise UsageError(
                f"grey needs pictures with 3 channels, but the number of channels is {event[0]}; use another operator",
                parameter="cond",
            )
        return super().on(event)

    def __call__(self, x: Tensor) -> Tensor:
        return (_weights(x) * x).sum(1, keepdim=True)

    def transpose(self, y: Tensor) -> Tensor:
        return _weights(y) * y

    def solve(self, r: Tensor, a: Number, b: Number = 0.0) -> Tensor:
        w = _weights(r)
        if isinstance(a, Tensor) and a.ndim:
            a = a.to(r).expand(len(r), *self._event)
        return r / ((w.square() * a).sum(1, keepdim=True) + b)

    def pinv(self, y: Tensor) -> Tensor:
        w = _weights(y)
        return w * (y / w.square().sum())

    @property
    def title(self) -> str:
        """A short description for figures."""
        return "grey"


def _weights(x: Tensor) -> Tensor:
    return torch.tensor(WEIGHTS, dtype=x.dtype, device=x.device).reshape(1, 3, *[1] * (x.ndim - 2))
