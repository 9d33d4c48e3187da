"""The embedding of the noise level and the class in a network: Fourier features of the label and a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.condition import Condition
from ..core.errors import UsageError
from .doors import masked

__all__ = ["NoiseEmbedding", "zero"]


class NoiseEmbedding(nn.Module):
    """Embedding of the noise label and, if there are classes, of the class.

    The label spans a few units (it is a quarter of a log noise level). Angular frequencies from 1/2 to 32 resolve the
    label without making the network a rough function of it, which would affect the divergence in the likelihood.

    Args:
        width: Size of the embedding.
        classes: Number of classes; one more embedding stands for "no class".
        features: Number of frequencies of the label.
        augments: The number of augmentation parameters of a row in training (:mod:`scoresde.data.augment`). They enter
            linearly and without a bias, so zeros are equivalent to no augmentation (Karras et al. 2022,
            arXiv:2206.00364, app. F.2).
        vector: The number of numbers in the condition of a row, or 0 if there are none. They and their mask enter the
            first layer.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int = 0, features: int = 16, augments: int = 0, vector: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 5, features, base=2.0), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.classes = nn.Embedding(classes + 1, 2 * features) if classes else None
        # Initialised as large as a class embedding: when these weights started at 0, a small network still ignored the
        # augmentation after 600 steps. They are drawn from their own generator, so that the rest of the network has the
        # same initial values as without augmentation.
        first = torch.randn(augments, 2 * features, generator=torch.Generator().manual_seed(0))
        self.augment = nn.Parameter(first) if augments else None
        self.vector = nn.Linear(2 * vector, width) if vector else None

    def forward(self, c: Tensor, cond: Condition | None = None, augment: Tensor | None = None) -> Tensor:
        """Embed the noise label ``c: (B,)``, and the class of each row if ``cond`` has labels, in ``(B, width)``.

        ``augment: (B, augments)`` describes the augmentation of each row. ``None`` means zeros, for no augmentation.
        """
        angle = c[:, None] * self.frequencies.to(c.dtype)
        features = math.sqrt(2) * torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
        if self.classes is not None and cond is not None and cond.label is not None:
            features = features + self.classes(cond.label)
        if augment is not None:
            if self.augment is None or augment.shape[1] != len(self.augment):
                known = 0 if self.augment is None else len(self.augment)
                raise UsageError(
                    f"the augmentation of each row is described by {augment.shape[1]} numbers, but the network has an "
                    f"input for {known}; build it with augments={augment.shape[1]}"
                )
            features = features + augment @ self.augment
        if self.vector is None:
            out: Tensor = self.mlp(features)
            return out
        # The numbers and their mask are further inputs of the first layer.
        numbers = torch.full_like(features[:, :1], torch.nan).expand(-1, self.vector.in_features // 2)
        if cond is not None and cond.vector is not None:
            if cond.vector.shape[1] != numbers.shape[1]:
                raise UsageError(
                    f"the condition has {cond.vector.shape[1]} numbers for each row, but the network was built for "
                    f"{numbers.shape[1]}"
                )
            numbers = cond.vector.to(features.dtype)
        out = self.mlp[1:](self.mlp[0](features) + self.vector(masked(numbers)))
        return out


def zero(module: nn.Module) -> nn.Module:
    """Set the parameters of a layer to 0, so that its block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
