"""What a training step draws besides its rows: noise, times, and what some rows are not to know.

Everything comes from the generator of the step, in one order (times, noise, pairing, dropped conditions), so that a
step is a function of the seed and its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.limits import FRACTION, NONNEGATIVE, Checked, ranges
from ..core.shapes import each, time_dtype
from ..data.batch import Batch
from ..sde.grids import snap
from .coupling import optimal_transport
from .times import Times

__all__ = ["Draw", "Draws", "NoiseDraw", "PathDraw"]


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for a batch.

    Attributes:
        eps: The noise of each row, shape ``(B, *event)``.
        condition: What each row is told, or ``None``.
        t: Times, shape ``(B,)``, or ``None`` where there are none; on the nodes of a chain.
        drawn: The times as they were drawn, shape ``(B,)``, likewise.
        weight: Factor on the loss of each row, which makes up for how its time was drawn, shape ``(B,)``; ``None``
            for 1.
    """

    eps: Tensor
    condition: Condition | None = None
    t: Tensor | None = None
    drawn: Tensor | None = None
    weight: Tensor | None = None

    def rows(self, index: Tensor) -> Draws:
        """The draws of the rows ``index``, int64 ``(B',)``."""
        known = None if self.condition is None else self.condition.rows(index)
        return Draws(self.eps[index], known, *each(lambda v: v[index], self.t, self.drawn, self.weight))

    def to(self, device: torch.device | str) -> Draws:
        """The same on a device; ``drawn`` stays where it is."""
        known = None if self.condition is None else self.condition.to(device)
        dtype = time_dtype(torch.device(device))
        t, weight = each(lambda v: v.to(device, dtype), self.t, self.weight)
        return Draws(self.eps.to(device), known, t, self.drawn, weight)


class Draw(Protocol):
    """How a step draws; what it learns of the losses on the way is part of the state of training."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Draws:
        """Draw for the rows of ``batch``, all from ``generator``."""
        ...

    def update(self, draws: Draws, losses: Tensor) -> None:
        """Learn from the ``losses`` of the last draw, shape ``(B,)``, before their weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it has learned, to be saved; shapes are its own."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` returned, of any shape that it had."""
        ...


@dataclass(frozen=True, eq=False)
class PathDraw(Checked):
    """Times and noise for denoising, a :class:`Draw`.

    Args:
        times: The sampler of times.
        nodes: The times that there are, shape ``(N,)``; ``None`` for all in an interval.
        pair: Pair the rows of a batch with its noise by optimal transport, instead of as they come.
        drop: Share of the rows that are told nothing, from 0 to 1.
    """

    limits = ranges(drop=FRACTION)

    times: Times
    nodes: Tensor | None = None
    pair: bool = False
    drop: float = 0.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Draws:
        drawn, weight = self.times.draw(len(batch), generator)
        eps, known = batch.eps, batch.condition
        if eps is None:
            eps = torch.randn(batch.x0.shape, generator=generator, dtype=batch.x0.dtype)
        if self.pair:
            eps = optimal_transport(batch.x0, eps, _apart(batch))
        if known is not None:
            known = known.dropped(torch.rand(len(batch), generator=generator, dtype=torch.float32) < self.drop)
        return Draws(eps, known, snap(drawn, self.nodes), drawn, weight)

    def update(self, draws: Draws, losses: Tensor) -> None:
        assert draws.drawn is not None
        self.times.update(draws.drawn, losses)

    def state(self) -> dict[str, Tensor]:
        return self.times.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.times.load(state)


def _apart(batch: Batch) -> Tensor | None:
    """Groups of rows whose noise must not tell one from the other, int64 ``(B,)``, or ``None``.

    These are classes, and the rows to which nothing was done in augmentation: the model is asked for those alone, with
    noise of all kinds.
    """
    label = None if batch.condition is None else batch.condition.label
    if batch.augment is None:
        return label
    moved = (batch.augment != 0).any(1).long()
    return moved if label is None else 2 * label + moved


@dataclass(frozen=True)
class NoiseDraw(Checked):
    """Noise alone, a :class:`Draw`: for what sees data that are a little noisy.

    Args:
        std: Its standard deviation, model units.
    """

    limits = ranges(std=NONNEGATIVE)

    std: float = 0.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Draws:
        eps = torch.randn(batch.x0.shape, generator=generator, dtype=batch.x0.dtype)
        return Draws(self.std * eps, batch.condition)

    def update(self, draws: Draws, losses: Tensor) -> None:
        """There is nothing to learn."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to load."""
