"""How the noise level and the class enter a network: Fourier features of the label, then a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.condition import Condition

__all__ = ["NoiseEmbedding", "zero"]


class NoiseEmbedding(nn.Module):
    """Embed the noise label, and the class if there are any.

    The label moves over a few units (it is a quarter of a log noise level), so that angular frequencies from 1/2 to 32
    resolve it without making the network rough in it, which the divergence of the likelihood would feel.

    Args:
        width: Size of the embedding.
        classes: Number of classes; one more embedding stands for "no class".
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int = 0, features: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 5, features, base=2.0), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.classes = nn.Embedding(classes + 1, 2 * features) if classes else None

    def forward(self, c: Tensor, cond: Condition | None = None) -> Tensor:
        """The noise label ``c: (B,)``, and the class of each row if ``cond`` says it, to ``(B, width)``."""
        angle = c[:, None] * self.frequencies.to(c.dtype)
        features = math.sqrt(2) * torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
        if self.classes is not None and cond is not None and cond.label is not None:
            features = features + self.classes(cond.label)
        out: Tensor = self.mlp(features)
        return out


def zero(module: nn.Module) -> nn.Module:
    """Set the parameters of a layer to 0, so that its block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
