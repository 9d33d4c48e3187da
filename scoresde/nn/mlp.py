"""A residual MLP for vectors: each block is  h <- h + W2 silu( norm(h) W1 (1 + scale(c)) + shift(c) )."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .embedding import NoiseEmbedding, zero

__all__ = ["MLP"]


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.modulate = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
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

    Example:
        >>> MLP(dims=2, width=16, blocks=1)(torch.zeros(3, 2), torch.zeros(3)).shape
        torch.Size([3, 2])
    """

    def __init__(self, dims: int, width: int = 128, blocks: int = 3, dropout: float = 0.0, classes: int = 0) -> None:
        super().__init__()
        if min(dims, width) < 1 or blocks < 0:
            raise UsageError(f"an MLP has dims and width of at least 1; got {dims=}, {width=}, {blocks=}")
        self.embedding = NoiseEmbedding(width, classes)
        self.enter = nn.Linear(dims, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zero(nn.Linear(width, dims)))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x: (B, *event)``, noise label ``c: (B,)``, class ``cond: (B,)`` int64; returns the shape of ``x``."""
        embedded = self.embedding(c, cond)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedded)
        out: Tensor = self.leave(h)
        return out.reshape(x.shape)
