"""A small classifier whose features are used to compare samples with data.

Features that separate classes also describe the content of an image, so they are a suitable basis for comparison.

Events with spatial axes pass through convolutions. Each convolution after the first halves the size of every axis,
until no axis has more than four positions. Vectors pass through two hidden layers. In both cases, a hidden layer
of ``width`` features and a linear layer with one output per class follow. The features are divided by a single number,
``scale``, which the training code sets to their root mean square. Without this division, distances between features
would depend on the scale of the hidden layer, which is arbitrary.

A classifier of noisy events also receives the noise level r, as one more element of a vector or one more channel that
is equal everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.limits import FRACTION, WIDTH, Range, checked
from .dropout import Dropout

__all__ = ["Classifier"]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Classifier(nn.Module):
    """A classifier for vectors, signals, images or volumes. It uses convolutions for all of these except vectors.

    Args:
        shape: Shape of an event, channels first: ``(D,)``, ``(C, L)``, ``(C, H, W)`` or ``(C, D, H, W)``.
        classes: Number of classes, at least 2.
        width: Number of features.
        dropout: Probability of dropping a feature during training.
        levels: Whether the network receives a noise level for each event.

    Example:
        >>> network = Classifier((1, 8, 8), classes=10)
        >>> network.features(torch.zeros(3, 1, 8, 8)).shape, network(torch.zeros(3, 1, 8, 8)).shape
        (torch.Size([3, 64]), torch.Size([3, 10]))
    """

    @checked(classes=Range(2, 10**6), width=WIDTH, dropout=FRACTION)
    def __init__(
        self, shape: Sequence[int], classes: int, width: int = 64, dropout: float = 0.3, levels: bool = False
    ) -> None:
        super().__init__()
        if not 1 <= len(shape) <= 4 or min(shape, default=0) < 1 or classes < 2 or width < 1:
            raise UsageError(
                f"a classifier needs events of shape (D,), (C, L), (C, H, W) or (C, D, H, W), at least 2 classes and a "
                f"width of at least 1; got shape {tuple(shape)}, classes = {classes} and width = {width}"
            )
        self.levels = levels
        shape = (shape[0] + levels, *shape[1:])
        layers: list[nn.Module] = []
        if len(shape) == 1:
            layers += [nn.Linear(shape[0], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
            size = 128
        else:
            conv = _CONV[len(shape) - 1]
            channels, sides = 32, list(shape[1:])
            layers += [conv(shape[0], channels, 3, padding=1), nn.ReLU()]
            while max(sides) > 4:
                wider = min(2 * channels, 128)
                layers += [conv(channels, wider, 3, stride=2, padding=1), nn.ReLU()]
                channels, sides = wider, [-(-side // 2) for side in sides]
            size = channels * math.prod(sides)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, width), nn.ReLU())
        self.head = nn.Sequential(Dropout(dropout), nn.Linear(width, classes))
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def features(self, x: Tensor, r: Tensor | None = None) -> Tensor:
        """Return the features, ``(B, width)``, of ``x: (B, *event)`` in model units.

        The features are the outputs of the last hidden layer, divided by ``scale``. They are never negative. ``r``
        contains the noise levels, ``(B,)``; ``None`` means no noise.
        """
        out: Tensor = self.body(self._input(x, r)) / self.scale
        return out

    def forward(self, x: Tensor, r: Tensor | None = None) -> Tensor:
        """Return the logits, ``(B, classes)``, for ``x: (B, *event)`` in model units and noise levels ``r: (B,)``."""
        out: Tensor = self.head(self.body(self._input(x, r)))
        return out

    def _input(self, x: Tensor, r: Tensor | None) -> Tensor:
        if not self.levels:
            return x
        level = x.new_zeros(len(x)) if r is None else r.to(x)
        return torch.cat([x, level.reshape(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])], 1)
