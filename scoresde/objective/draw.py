"""The random draws for the rows of a training step: times, noise and dropped conditions.

All random numbers come from the step's generator in a fixed order (times, noise, dropped conditions), so they depend
only on the seed and the step number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.limits import FRACTION, NONNEGATIVE, Checked, ranges
from ..core.shapes import each, moved, time_dtype
from ..data.batch import Batch
from ..sde.grids import snap
from .coupling import optimal_transport
from .times import Times

__all__ = ["Draw", "Draws", "NoiseDraw", "PathDraw"]


@dataclass(frozen=True, eq=False)
class Draws:
    """The random draws for a batch.

    Attributes:
        eps: The noise of each row, shape ``(B, *event)``.
        condition: The condition that the network receives for each row, or ``None``.
        t: The times, shape ``(B,)``, or ``None`` if no times are drawn. For a chain, each time is moved to a node
            (:func:`~scoresde.sde.grids.snap`).
        drawn: The times before they are moved to nodes, shape ``(B,)``, or ``None``.
        weight: The weight of each row's loss, shape ``(B,)``, or ``None`` if all weights are 1. The weights compensate
            for the density from which the times are drawn.
    """

    eps: Tensor
    condition: Condition | None = None
    t: Tensor | None = None
    drawn: Tensor | None = None
    weight: Tensor | None = None

    def rows(self, index: Tensor) -> Draws:
        """Return the draws for the rows at the positions ``index``, an int64 tensor ``(B',)``."""
        known = None if self.condition is None else self.condition.rows(index)
        return Draws(self.eps[index], known, *each(lambda v: v[index], self.t, self.drawn, self.weight))

    def to(self, device: torch.device | str) -> Draws:
        """Return a copy of the draws on ``device``. The tensor ``drawn`` is not moved."""
        known = None if self.condition is None else self.condition.to(device)
        dtype = time_dtype(torch.device(device))
        t, weight = each(lambda v: moved(v.to(dtype), device), self.t, self.weight)
        return Draws(moved(self.eps, device), known, t, self.drawn, weight)


class Draw(Protocol):
    """A source of the random draws for training. It may adapt to the losses of earlier steps."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Draws:
        """Return the random draws for the rows of ``batch``, using only ``generator``."""
        ...

    def update(self, draws: Draws, losses: Tensor) -> None:
        """Learn from the unweighted ``losses: (B,)`` that a training step computed with ``draws``.

        If several processes train together, this is called only if :meth:`state` is not empty.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what this source has learned, as a dictionary of tensors. Training saves this state."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that :meth:`state` returned."""
        ...


@dataclass(frozen=True, eq=False)
class PathDraw(Checked):
    """The :class:`Draw` for denoising score matching, which draws times, noise and dropped conditions.

    Args:
        times: The time sampler.
        nodes: The nodes of a chain, shape ``(N,)``, to which the times are moved, or ``None`` for continuous times.
        pair: Whether to pair the rows and the noise of a batch by optimal transport. Otherwise, each row is paired with
            the noise that was drawn for it.
        drop: Probability, from 0 to 1, that the condition of a row is dropped.
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
        if batch.support is not None:  # padded numbers have no noise
            eps = torch.where(batch.support, eps, 0)
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
    """Return the group of each row, ``(B,)``, or ``None`` for a single group. Rows of a group may exchange noise."""
    label = None if batch.condition is None else batch.condition.label
    if batch.augment is None:
        return label
    # Augmented rows form separate groups. Otherwise, the noise would reveal whether a row is augmented, whereas in
    # sampling, rows with any noise get the augmentation parameters of original rows.
    moved = (batch.augment != 0).any(1).long()
    return moved if label is None else 2 * label + moved


@dataclass(frozen=True)
class NoiseDraw(Checked):
    """A :class:`Draw` that draws only noise, for training on slightly noisy data.

    Args:
        std: Standard deviation of the noise, in model units.
    """

    limits = ranges(std=NONNEGATIVE)

    std: float = 0.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Draws:
        eps = torch.randn(batch.x0.shape, generator=generator, dtype=batch.x0.dtype)
        return Draws(self.std * eps, batch.condition)

    def update(self, draws: Draws, losses: Tensor) -> None:
        """Do nothing, because there is nothing to learn."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, because there is nothing to load."""
