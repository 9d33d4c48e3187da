"""A residual MLP for vectors: each block is  h <- h + W2 silu( norm(h) W1 (1 + scale(c)) + shift(c) )."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.condition import Condition
from ..core.limits import CLASSES, COUNT, DEPTH, FRACTION, TOLD, WIDTH, Range, checked, enough_for_network
from .dropout import Dropout
from .embedding import NoiseEmbedding, zero

__all__ = ["MLP"]


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.modulate = nn.Linear(width, 2 * width)
        self.dropout = Dropout(dropout)
        self.outer = zero(nn.Linear(width, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulate(c).chunk(2, dim=1)
        out: Tensor = self.outer(self.dropout(torch.nn.functional.silu(self.inner(self.norm(h)) * (1 + scale) + shift)))
        return h + out


class MLP(nn.Module):
    """Residual MLP with noise and class modulation.

    Args:
        dims: Number of elements of an event; events of any shape are flattened.
        width: Width of the hidden layers.
        blocks: Number of residual blocks.
        dropout: Dropout probability inside the blocks.
        classes: Number of classes (0: none).
        outputs: How many times the channels (the first axis) of the event are returned; 2 to learn the variance.
        augments: How many numbers say what was done to a row in training (0: no such input).

    Example:
        >>> MLP(dims=2, width=16, blocks=1)(torch.zeros(3, 2), torch.zeros(3)).shape
        torch.Size([3, 2])
    """

    @checked(
        dims=COUNT, width=WIDTH, blocks=DEPTH, dropout=FRACTION, classes=CLASSES, outputs=Range(1, 2), augments=TOLD
    )  # fmt: skip
    def __init__(
        self,
        dims: int,
        width: int = 128,
        blocks: int = 3,
        dropout: float = 0.0,
        classes: int = 0,
        outputs: int = 1,
        augments: int = 0,
    ) -> None:
        super().__init__()
        size = 4 * blocks * width**2 + (1 + outputs) * dims * width
        enough_for_network(size, f"an MLP with {width=}, {blocks=}", "width")
        self.outputs, self.augments = outputs, augments
        self.embedding = NoiseEmbedding(width, classes, augments=augments)
        self.enter = nn.Linear(dims, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zero(nn.Linear(width, outputs * dims)))

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None, augment: Tensor | None = None) -> Tensor:
        """``x: (B, *event)``, noise label ``c: (B,)``, and what is known of the rows; returns the shape of ``x``.

        ``augment: (B, augments)`` is what was done to the rows in training; ``None`` is zeros, for nothing.
        With ``outputs`` above 1, that many times its first axis: ``(B, outputs C, ...)``.
        """
        embedded = self.embedding(c, cond, augment)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedded)
        out: Tensor = self.leave(h)
        return out.reshape(len(x), -1, *x.shape[2:]) if self.outputs > 1 else out.reshape(x.shape)
