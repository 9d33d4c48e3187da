"""Dropout whose numbers come from a generator of its own, where it is given one.

The dropout of torch draws from the one global generator of the process: two trainings in two threads would mix up their
draws. With ``generator`` set, the mask is that of the global generator in the same state (on a CPU, to the bit), and
the global one is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "drawing_from", "draws_by_dropout"]


OURS = tuple(f"scoresde.nn.{name}" for name in ("mlp", "unet", "classifier"))


class Dropout(nn.Dropout):
    """``x * m / (1 - p)`` in training, with m = 0 with probability p and 1 otherwise; ``x`` itself in evaluation.

    Attributes:
        generator: Where m is drawn from, on the device of x; ``None`` for the global generator.
    """

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop some of the numbers of ``x``, of any shape."""
        if self.generator is None or not self.training or self.p in (0.0, 1.0):
            return super().forward(x)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)


def draws_by_dropout(network: nn.Module) -> bool:
    """Whether :class:`Dropout` is all that is random in a network: it is one of this package, and no subclass."""
    return type(network).__module__ in OURS


@contextmanager
def drawing_from(network: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Give all :class:`Dropout` in a network a generator."""
    found = [module for module in network.modules() if isinstance(module, Dropout)]
    try:
        for module in found:
            module.generator = generator
        yield
    finally:
        for module in found:
            module.generator = None
