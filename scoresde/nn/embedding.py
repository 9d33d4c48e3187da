"""An embedding of the noise level and of the condition (its class and its vector), computed by a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.condition import Condition
from ..core.errors import UsageError
from .doors import numbers

__all__ = ["NoiseEmbedding", "zero"]


class NoiseEmbedding(nn.Module):
    """An embedding of the noise label and, optionally, of the class, the augmentation and the vector.

    The noise label is a quarter of a log noise level, so its range is only a few units. Angular frequencies from 1/2 to
    32 resolve the label without making the network a rough function of it. The divergence of a rough network would be
    hard to integrate in the likelihood computation.

    Args:
        width: Size of the embedding.
        classes: Number of classes. If it is not 0, an additional embedding represents "no class".
        features: Number of frequencies for the noise label.
        augments: Number of augmentation parameters per row in training (:mod:`scoresde.data.augment`). They enter
            linearly and without a bias, so zeros are equivalent to no augmentation (Karras et al. 2022,
            arXiv:2206.00364, app. F.2).
        vector: Length of the vector in the condition, or 0 if there is none. The vector and the mask of its known
            values are inputs of the first layer.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int = 0, features: int = 16, augments: int = 0, vector: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 5, features, base=2.0), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.classes = nn.Embedding(classes + 1, 2 * features) if classes else None
        # The initial weights are as large as those of a class embedding. When they started at 0, a small network still
        # ignored the augmentation after 600 steps. They are drawn from their own generator, so that the rest of the
        # network has the same initial values as without augmentation.
        first = torch.randn(augments, 2 * features, generator=torch.Generator().manual_seed(0))
        self.augment = nn.Parameter(first) if augments else None
        self.vector = nn.Linear(2 * vector, width) if vector else None

    def forward(self, c: Tensor, cond: Condition | None = None, augment: Tensor | None = None) -> Tensor:
        """Return the embedding, ``(B, width)``, of the noise label ``c: (B,)``, the class and the vector in ``cond``.

        The tensor ``augment: (B, augments)`` contains the augmentation parameters of each row. If it is ``None``, no
        row is augmented.
        """
        angle = c[:, None] * self.frequencies.to(c.dtype)
        features = math.sqrt(2) * torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
        if self.classes is not None and cond is not None and cond.label is not None:
            features = features + self.classes(cond.label)
        if augment is not None:
            if self.augment is None or augment.shape[1] != len(self.augment):
                known = 0 if self.augment is None else len(self.augment)
                raise UsageError(
                    f"augment has shape (B, {augment.shape[1]}), but the network was built with "
                    f"augments={known}; build it with augments={augment.shape[1]}"
                )
            features = features + augment @ self.augment
        if self.vector is None:
            out: Tensor = self.mlp(features)
            return out
        # The vector and its mask are additional inputs of the first layer.
        known = self.vector(numbers(cond, features, self.vector.in_features // 2))
        out = self.mlp[1:](self.mlp[0](features) + known)
        return out


def zero(module: nn.Module) -> nn.Module:
    """Set all parameters of a layer to 0, so that its initial output is 0, and return the layer."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
