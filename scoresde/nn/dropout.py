"""Dropout that can draw from its own generator.

The dropout of torch draws from the global generator of the process, so two training runs in two threads would mix up
their draws. With ``generator`` set, the mask is the same as the mask that the global generator would give in the same
state (bit by bit on a CPU), and the global generator is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "drawing_from", "draws_by_dropout"]


OURS = tuple(f"scoresde.nn.{name}" for name in ("mlp", "unet", "classifier"))


class Dropout(nn.Dropout):
    """Dropout: ``x * m / (1 - p)`` in training, where m is 0 with probability p and else 1, and ``x`` in evaluation.

    Attributes:
        generator: The generator of m, on the device of x, or ``None`` for the global generator.
    """

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of ``x``, of any shape, at random."""
        if self.generator is None or not self.training or self.p in (0.0, 1.0):
            return super().forward(x)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)


def draws_by_dropout(network: nn.Module) -> bool:
    """Whether :class:`Dropout` is known to be the only randomness in a network, as in the classes of this package."""
    return type(network).__module__ in OURS


@contextmanager
def drawing_from(network: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Let all :class:`Dropout` layers of a network draw from a generator while the block runs."""
    found = [module for module in network.modules() if isinstance(module, Dropout)]
    try:
        for module in found:
            module.generator = generator
        yield
    finally:
        for module in found:
            module.generator = None
