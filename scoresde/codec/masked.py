"""Padded rows: rows of different lengths in one array, with a mask of the real values.

The mask of a row travels in its condition (:attr:`scoresde.Condition.mask`). Padded numbers are exactly 0 in states,
noise and estimates, and the dimensions of each row are counted by its mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import DataError, UsageError
from .base import mask_of
from .space import Space

__all__ = ["Masked"]

KINDS = 4096  # largest number of different masks that are stored with a run
NUMBERS = 2**18  # largest number of values in these masks


@dataclass(frozen=True, eq=False, repr=False)
class Masked(Space):
    """Padded rows, whose real values are marked by a mask: the array ``mask`` of an .npz file.

    Args:
        table: The different masks of the training rows, ``(k, *event)``, or ``None`` if there are too many of them.
            Samples that are drawn without a mask have these masks, as often as the training rows.
        counts: The number of training rows with each mask, ``(k,)``.
    """

    subspace: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("mask",)
    masks: ClassVar[bool] = True
    rigid: ClassVar[bool] = True

    table: Any = None
    counts: Any = None

    def __post_init__(self) -> None:
        for name, dtype in (("table", torch.bool), ("counts", torch.int64)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=dtype))

    def fitted(self, m: Tensor, condition: object = None) -> Self:
        mask = mask_of(condition, m)
        if mask is None:
            raise UsageError(
                "the space 'masked' needs the array 'mask' of an .npz file, (N, ...), which is true for real values; "
                "use data with a mask",
                parameter="space",
                value="none",
            )
        table, counts = torch.unique(mask.cpu().expand(m.shape), dim=0, return_counts=True)
        if len(table) > KINDS or table.numel() > NUMBERS:
            return replace(self, table=None, counts=None)
        return replace(self, table=table, counts=counts)

    def example(self, index: Tensor) -> Tensor:
        """Return a mask for each sample, bool ``(n, *event)``, as often as in training, given its ``index: (n,)``."""
        if self.table is None:
            raise UsageError(
                "the run has too many different masks to draw one for each sample; pass the mask of each sample, as in "
                "run.given(Condition(mask=mask))",
                parameter="given",
            )
        shares = self.counts.double().cumsum(0)
        # Multiples of the golden ratio, modulo 1, fill [0, 1) evenly for any number of samples.
        u = ((index.cpu().double() + 0.5) * (math.sqrt(5) - 1) / 2) % 1
        found: Tensor = self.table[torch.searchsorted(shares, u * shares[-1], right=True)]
        return found

    def require(self, condition: object) -> None:
        if getattr(condition, "mask", None) is None:
            raise UsageError(
                "the space 'masked' needs the mask of each row, which is true for real values; pass it, as in "
                "run.given(Condition(mask=mask))",
                parameter="given",
            )

    def _mask(self, condition: object, x: Tensor) -> Tensor:
        self.require(condition)
        mask = mask_of(condition, x)
        assert mask is not None
        if mask.dtype != torch.bool or mask.shape[1:] != x.shape[1:] or len(mask) not in (1, len(x)):
            raise UsageError(
                f"the mask must be bool, with the shape of the samples, {tuple(x.shape)}, but it is {mask.dtype} of "
                f"shape {tuple(mask.shape)}",
                parameter="given",
            )
        return mask

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        return torch.where(self._mask(condition, x), x, 0)

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        return torch.where(self._mask(condition, m), m, 0)

    def log_det(self, x: Tensor, condition: object = None) -> float:
        return 0.0

    def support(self, condition: object = None, before: Tensor | None = None) -> Tensor | None:
        mask: Tensor | None = getattr(condition, "mask", None)
        return mask if before is None or mask is None else mask & before

    def dims(self, x: Tensor, condition: object = None) -> int | Tensor:
        return self._mask(condition, x).flatten(1).sum(1).expand(len(x))

    def check(self, x: Tensor, condition: object = None) -> None:
        empty = ~self._mask(condition, x).flatten(1).any(1)
        if bool(empty.any()):
            raise DataError(f"row {int(empty.nonzero()[0])} has no real values; remove such rows")

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        return self.to_data(m, condition)

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        return self.to_model(x, condition)
