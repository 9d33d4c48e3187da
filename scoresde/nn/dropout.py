"""Dropout that can draw from a given random generator.

The dropout layers of torch draw from the global generator of the process, so training runs in two threads would affect
each other's draws. If ``generator`` is set on a layer, the layer draws its mask from this generator and leaves the
global generator unchanged. A global generator in the same state would produce the same mask (bit for bit on a CPU).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "drawing_from", "draws_by_dropout"]


OURS = tuple(f"scoresde.nn.{name}" for name in ("mlp", "unet", "classifier"))


class Dropout(nn.Dropout):
    """A dropout layer, which returns ``x * m / (1 - p)`` in training mode and ``x`` in evaluation mode.

    Each element of the mask m is 0 with probability p and 1 otherwise.

    Attributes:
        generator: The generator from which m is drawn, on the same device as x, or ``None`` for the global generator.
    """

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to ``x``, which can have any shape."""
        if self.generator is None or not self.training or self.p in (0.0, 1.0):
            return super().forward(x)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)


def draws_by_dropout(network: nn.Module) -> bool:
    """Return whether :class:`Dropout` is known to be a network's only source of randomness."""
    return type(network).__module__ in OURS


@contextmanager
def drawing_from(network: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Make all :class:`Dropout` layers of a network draw from ``generator`` inside the ``with`` block."""
    found = [module for module in network.modules() if isinstance(module, Dropout)]
    try:
        for module in found:
            module.generator = generator
        yield
    finally:
        for module in found:
            module.generator = None
