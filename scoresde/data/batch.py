"""Batches for training, as a function of the seed and the step.

Each pass over the data uses its own permutation, which is determined by the seed and the index of the pass. The batches
are consecutive sections of these permutations. No batch depends on earlier ones, so a resumed run continues exactly
where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..codec import Codec
from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.noise import Noise, keyed
from ..core.shapes import each, expand, flat, moved
from ..operators import Operator
from .ahead import Ahead
from .augment import Augmentation
from .given import CondInfo
from .rows import Stored

__all__ = ["Batch", "Batches", "Rows", "Source", "degraded", "finished"]

WIDE = (torch.float64, torch.int64)  # dtypes of data that float32 would round


@dataclass(frozen=True, eq=False)
class Batch:
    """The data for one training step.

    Attributes:
        x0: Data in model units, shape ``(B, *event)``.
        condition: The condition of each row, or ``None``.
        weight: Weight of each value in the loss, with the same shape as ``x0``. It is 0 where the value is unknown.
            ``None`` means 1 everywhere.
        eps: The noise paired with each row, with the same shape as ``x0``, or ``None`` if the rows are not paired with
            noise.
        augment: The augmentation parameters of each row, ``(B, A)``, or ``None`` if rows are not augmented. The network
            receives the parameters, which, unlike a condition, are never dropped at random.
        clean: The rows of ``x0`` in data units, before dequantisation, with the same shape. ``None`` if no operator is
            applied.
        support: Which numbers of ``x0`` are real, bool, with the same shape, or ``None`` if all are. Their noise is 0
            elsewhere.
    """

    x0: Tensor
    condition: Condition | None = None
    weight: Tensor | None = None
    eps: Tensor | None = None
    augment: Tensor | None = None
    clean: Tensor | None = None
    support: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def rows(self, index: Tensor) -> Batch:
        """Return a batch that contains only the rows at the positions ``index``, an int64 tensor ``(B',)``."""
        known = None if self.condition is None else self.condition.rows(index)
        parts = (self.weight, self.eps, self.augment, self.clean, self.support)
        return Batch(self.x0[index], known, *each(lambda v: v[index], *parts))

    def to(self, device: torch.device | str) -> Batch:
        """Move the batch to a device."""
        known = None if self.condition is None else self.condition.to(device)
        parts = (self.weight, self.eps, self.augment, self.clean, self.support)
        return Batch(moved(self.x0, device), known, *each(lambda v: moved(v, device), *parts))


class Source(Protocol):
    """A source of rows, from which batches are formed."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __call__(self, index: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        """Return a batch of the rows at the positions ``index``, int64 ``(B,)``.

        Any random numbers are drawn from ``generator``.
        """
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of data as a :class:`Source`, in the units of the data's own codec.

    :func:`finished` states them in the space of the codec, if there is one. This is the last step, because a space may
    depend on the measurement of an operator.

    Args:
        x: Data in data units, shape ``(n, *event)``. Rows that stay in their files are read when a batch needs them.
        codec: The map from data units to model units.
        labels: Class indexes of the rows, int64 ``(n,)``, or ``None`` for batches without class labels.
        classes: Number of classes.
        given: The conditions of the rows other than the class, in data units, or ``None``.
        told: The description of the conditions, which is used to convert ``given`` to model units.
        complete: A mask of the known values, bool ``(n, *event)``, or ``None`` if all values are known.
        operator: An operator whose measurement of each row is part of the row's condition (:func:`degraded`), or
            ``None``.
    """

    x: Tensor | Stored
    codec: Codec
    labels: Tensor | None = None
    classes: int = 0
    given: Condition | None = None
    told: CondInfo = CondInfo()  # noqa: RUF009  # frozen
    complete: Tensor | None = None
    operator: Operator | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __call__(self, index: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        x = self.x[index]
        known = None if self.labels is None else Condition(label=self.labels[index], classes=self.classes)
        if self.given is not None:
            more = self.told.to_model(self.given.rows(index)).to_dtype(dtype)
            known = more if known is None else replace(more, label=known.label, classes=known.classes)
        u = torch.rand(x.shape, generator=generator, dtype=torch.float32)
        x0 = self.codec.own.to_model(x, known, u.double() if x.dtype in WIDE else u)
        weight = None if self.complete is None else self.complete[index].to(dtype)
        clean = None if self.operator is None else x.double() if x.dtype in WIDE else x.float()
        return Batch(x0.to(dtype), known, weight, clean=clean)


def degraded(batch: Batch, operator: Operator, codec: Codec, noise: Noise, step: int) -> Batch:
    """Measure each row of a batch with an operator, and return the batch with the measurements in its condition.

    Args:
        batch: The batch, with ``clean`` set.
        operator: The operator, already prepared for the shape of the samples by :meth:`Operator.on`.
        codec: The map from data units to model units.
        noise: The source of the random numbers for each row.
        step: The training step.
    """
    assert batch.clean is not None
    shown = operator.drawn(noise, step).degrade(batch.clean)
    if batch.weight is not None:  # an empty cell is never shown
        shown = torch.where(batch.weight > 0, shown, torch.nan)
    image = codec.units.to_model(shown).to(batch.x0.dtype)
    return replace(batch, condition=replace(batch.condition or Condition(), image=image), clean=None)


def finished(batch: Batch, rows: Rows, noise: Noise, step: int) -> Batch:
    """Measure the rows of a batch if ``rows`` has an operator, and state them in the space of the codec.

    Args:
        batch: A batch of ``rows``, possibly augmented.
        rows: The source of the batch.
        noise: The source of the random numbers of the operator for each row.
        step: The training step.
    """
    if rows.operator is not None:
        batch = degraded(batch, rows.operator, rows.codec, noise, step)
    space = rows.codec.space
    if not space.parts:
        return batch
    batch = replace(batch, x0=space.to_model(batch.x0, batch.condition))
    support = rows.codec.support(batch.condition)
    if support is None:
        return batch
    # The mean over a row is a mean over its real numbers.
    share = flat(support).to(batch.x0.dtype).mean(1).clamp(min=1 / support[0].numel())
    return replace(batch, support=support, weight=support.to(batch.x0.dtype) / expand(share, batch.x0))


class Batches:
    """The batches for a training run, one for each step.

    Args:
        source: The data source.
        size: Number of rows per batch.
        seed: Seed for the row order, for the augmentation and for operators that draw random numbers.
        augmentation: Augmentation of the rows, or ``None``. It requires images without weights and paired noise.
        workers: Number of threads that read the rows of the next batches ahead, if the rows stay in their files. It
            does not change the batches.
    """

    def __init__(
        self, source: Source, size: int, seed: int, augmentation: Augmentation | None = None, workers: int = 0
    ) -> None:
        self.source, self.size, self.seed, self.augmentation = source, size, seed, augmentation
        self._orders: dict[int, Tensor] = {}
        self._ahead: Ahead | None = None
        if workers and isinstance(source, Rows) and isinstance(source.x, Stored):
            self._ahead = Ahead(source.x, workers)
            self.source = replace(source, x=self._ahead)

    def at(self, step: int, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        """Return the batch for a step, with ``size`` rows."""
        if self._ahead is not None:
            self._ahead.expect(step, self.index)
        batch = self.source(self.index(step), generator, dtype)
        if self.augmentation is not None:
            batch = self._augmented(batch, step)
        if not isinstance(self.source, Rows):
            return batch
        return finished(batch, self.source, Noise.of(len(batch), self.seed % 2**64), step)

    def _augmented(self, batch: Batch, step: int) -> Batch:
        assert self.augmentation is not None
        if batch.x0.ndim != 4 or batch.eps is not None or batch.weight is not None:
            raise UsageError(
                f"augmentation needs images (B, C, H, W) without paired noise or per-pixel weights, got a batch of "
                f"shape {tuple(batch.x0.shape)}; pass augmentation=None"
            )
        numbers = self.augmentation.drawn(len(batch), batch.x0.shape[1:], seed=self.seed, step=step)
        x0, clean = (None if x is None else self.augmentation.applied(x, numbers) for x in (batch.x0, batch.clean))
        assert x0 is not None
        return replace(batch, x0=x0, clean=clean, augment=numbers.to(batch.x0.dtype))

    def index(self, step: int) -> Tensor:
        """Return an int64 tensor ``(size,)`` with the indexes of the rows in the batch for a step."""
        start, stop, count = step * self.size, (step + 1) * self.size, len(self.source)
        parts = []
        while start < stop:  # a batch may span two passes
            epoch, offset = divmod(start, count)
            parts.append(self._permutation(epoch, count)[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int, count: int) -> Tensor:
        if epoch not in self._orders:
            if len(self._orders) > 1:  # rows that are read ahead may belong to the next pass
                del self._orders[min(self._orders)]
            self._orders[epoch] = torch.randperm(count, generator=keyed(self.seed, epoch, "epoch"))
        return self._orders[epoch]
