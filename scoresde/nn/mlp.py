"""A residual MLP for vectors.

Each block updates the hidden state h,

    h <- h + W2 silu( (W1 norm(h)) (1 + scale(c)) + shift(c) ),

where W1 and W2 are linear layers, norm is layer normalisation, and scale and shift are linear in the embedding c of the
noise level and of the condition (its class and its vector). The first layer receives the vector together with x, so a
relation between the two is as easy to learn as a relation between two elements of x.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.condition import Condition
from ..core.limits import CLASSES, COUNT, DEPTH, FRACTION, TOLD, WIDTH, Range, checked, enough_for_network
from .doors import CrossAttention, TextEncoder, beside, numbers, slots
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
    """A residual MLP, modulated by the noise level and the class.

    Args:
        dims: Number of elements in an event. Events of any shape are flattened.
        width: Width of the hidden layers.
        blocks: Number of residual blocks.
        dropout: Dropout probability inside the blocks.
        classes: Number of classes, or 0 if there are none.
        outputs: Number of output channels for each channel (entry along the first axis) of an event: 1, or 2 to learn
            the variance.
        augments: Number of augmentation parameters per row in training, or 0 if there are none.
        vector: Length of the vector in the condition, or 0 if there is none. The vector is an input of the first layer
            and of the embedding.
        given: Number of elements of the image in the condition, or 0 if there is none.
        words: Size of the vocabulary if texts are given as word indices, or 0 otherwise.
        features: Number of features per word if texts are given as features from another encoder, or 0 otherwise.

    Example:
        >>> MLP(dims=2, width=16, blocks=1)(torch.zeros(3, 2), torch.zeros(3)).shape
        torch.Size([3, 2])
    """

    @checked(
        dims=COUNT, width=WIDTH, blocks=DEPTH, dropout=FRACTION, classes=CLASSES, outputs=Range(1, 2), augments=TOLD,
        vector=CLASSES, given=CLASSES, words=CLASSES, features=CLASSES,
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
        vector: int = 0,
        given: int = 0,
        words: int = 0,
        features: int = 0,
    ) -> None:
        super().__init__()
        size = 4 * blocks * width**2 + ((1 + outputs) * dims + 2 * given + 2 * vector) * width
        enough_for_network(size, f"an MLP with {width=}, {blocks=}", "width")
        self.outputs, self.augments, self.given, self.vector = outputs, augments, given, vector
        self.slots = slots(classes, vector, given, words or features)
        self.embedding = NoiseEmbedding(width, classes, augments=augments, vector=vector)
        self.enter = nn.Linear(dims + 2 * given + 2 * vector, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zero(nn.Linear(width, outputs * dims)))
        texts = bool(words or features)
        self.text = TextEncoder(width, words, features) if texts else None
        self.attend = nn.ModuleList(CrossAttention(width, width) for _ in range(blocks if texts else 0))

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None, augment: Tensor | None = None) -> Tensor:
        """Apply the network to ``x: (B, *event)`` with the noise label ``c: (B,)`` and the condition of each row.

        The tensor ``augment: (B, augments)`` contains the augmentation parameters of each row in training. If it is
        ``None``, no row is augmented. The result has the same shape as ``x``, but ``outputs`` times as many channels.
        """
        embedded = self.embedding(c, cond, augment)
        image = None if cond is None or cond.image is None else cond.image.flatten(1)
        known = beside(x.flatten(1), image, self.given)
        if self.vector:
            known = torch.cat([known, numbers(cond, x, self.vector)], dim=1)
        h = self.enter(known)
        words = None if self.text is None or cond is None or cond.tokens is None else self.text(cond.tokens)
        for i, block in enumerate(self.blocks):
            if self.text is not None:
                h = self.attend[i](h, words)
            h = block(h, embedded)
        out: Tensor = self.leave(h)
        return out.reshape(len(x), -1, *x.shape[2:]) if self.outputs > 1 else out.reshape(x.shape)
