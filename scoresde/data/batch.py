"""Batches: which rows a training step sees, as a function of the seed and the number of the step.

Each pass over the data has an order of its own, a permutation drawn for (seed, number of the pass), and a batch is the
next piece of it. Nothing depends on the batches before, so that a run that is resumed goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..codec import Codec
from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.noise import keyed
from ..core.shapes import each
from .augment import Augmentation

__all__ = ["Batch", "Batches", "Rows", "Source"]

WIDE = (torch.float64, torch.int64)  # data that float32 would round


@dataclass(frozen=True, eq=False)
class Batch:
    """What a training step sees.

    Attributes:
        x0: Data in model units, shape ``(B, *event)``.
        condition: What is known of each row, or ``None``.
        weight: Weight of each number in the loss, shape of ``x0``; 0 where it is unknown. ``None`` for 1 everywhere.
        eps: The noise that each row is paired with, shape of ``x0``; ``None`` to draw it.
        augment: What was done to each row, as the network is told, ``(B, A)``; ``None`` for nothing. It is never left
            out as a condition is.
    """

    x0: Tensor
    condition: Condition | None = None
    weight: Tensor | None = None
    eps: Tensor | None = None
    augment: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def rows(self, index: Tensor) -> Batch:
        """The rows ``index``, int64 ``(B',)``."""
        known = None if self.condition is None else self.condition.rows(index)
        return Batch(self.x0[index], known, *each(lambda v: v[index], self.weight, self.eps, self.augment))

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        known = None if self.condition is None else self.condition.to(device)
        return Batch(self.x0.to(device), known, *each(lambda v: v.to(device), self.weight, self.eps, self.augment))


class Source(Protocol):
    """What batches are drawn from."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def __call__(self, index: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        """The rows ``index``, int64 ``(B,)``; what is drawn (dequantisation) comes from ``generator``."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of data as a :class:`Source`.

    Args:
        x: In data units, shape ``(n, *event)``.
        codec: The map to model units.
        labels: Class of each row, int64 ``(n,)``, if a batch is to know it.
        classes: How many there are.
    """

    x: Tensor
    codec: Codec
    labels: Tensor | None = None
    classes: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def __call__(self, index: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        x = self.x[index]
        known = None if self.labels is None else Condition(label=self.labels[index], classes=self.classes)
        u = torch.rand(x.shape, generator=generator, dtype=torch.float32)
        x0 = self.codec.to_model(x, known, u.double() if x.dtype in WIDE else u)
        return Batch(x0.to(dtype), known)


class Batches:
    """Batch n of a seed.

    Args:
        source: What is drawn from.
        size: Rows of a batch.
        seed: Of the orders, and of what is done to the rows.
        augmentation: What is done to them, if anything is; of pictures without paired noise or weights.
    """

    def __init__(self, source: Source, size: int, seed: int, augmentation: Augmentation | None = None) -> None:
        self.source, self.size, self.seed, self.augmentation = source, size, seed, augmentation
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        """The batch of a step, of ``size`` rows."""
        batch = self.source(self.index(step), generator, dtype)
        if self.augmentation is None:
            return batch
        if batch.x0.ndim != 4 or batch.eps is not None or batch.weight is not None:
            raise UsageError(
                f"augmentation moves pictures (B, C, H, W), without noise or weights that belong to their pixels; got "
                f"the shape {tuple(batch.x0.shape)}"
            )
        numbers = self.augmentation.drawn(len(batch), batch.x0.shape[1:], seed=self.seed, step=step)
        return replace(batch, x0=self.augmentation.applied(batch.x0, numbers), augment=numbers.to(dtype))

    def index(self, step: int) -> Tensor:
        """Which rows, int64 ``(size,)``."""
        start, stop, count = step * self.size, (step + 1) * self.size, len(self.source)
        parts = []
        while start < stop:  # a batch may span two passes
            epoch, offset = divmod(start, count)
            parts.append(self._permutation(epoch, count)[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int, count: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(count, generator=keyed(self.seed, epoch, "epoch"))
        return self._order
