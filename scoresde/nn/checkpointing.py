"""Gradient checkpointing: keep the inputs of each block of a network, and compute the block again in the backward pass.

The memory for activations is then that of one block and of the inputs of all blocks, and the forward pass is computed
twice (Chen et al. 2016, arXiv:1604.06174). The gradient does not change: a block draws the same dropout masks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .dropout import Dropout

__all__ = ["blocks_of", "recompute"]


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network: the modules with parameters in its lists of modules."""
    for module in network.modules():
        for part in module if isinstance(module, nn.ModuleList) else ():
            if not isinstance(part, nn.ModuleList | nn.ModuleDict) and next(part.parameters(), None) is not None:
                yield part


def recompute(network: nn.Module) -> None:
    """Make the blocks of a network compute their outputs again in the backward pass. The weights keep their names."""
    for block in list(blocks_of(network)):
        block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of the class of a block. (A copy of a module would keep a function that replaces a method.)"""

    def forward(self: nn.Module, *args: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *args)
        drawing = [m for m in self.modules() if isinstance(m, Dropout) and m.generator is not None]
        generator = drawing[0].generator if drawing else None  # the same in all of them
        state = None if generator is None else generator.get_state()
        first = [True]

        def again(*inputs: Any) -> Any:
            if first[0] or generator is None or state is None:
                first[0] = False
                return kind.forward(self, *inputs)
            # The generator of the step may be gone from the layers in the backward pass.
            copy = torch.Generator(generator.device).set_state(state)
            kept = [m.generator for m in drawing]
            try:
                for layer in drawing:
                    layer.generator = copy
                return kind.forward(self, *inputs)
            finally:
                for layer, was in zip(drawing, kept, strict=True):
                    layer.generator = was

        return checkpoint(again, *args, use_reentrant=False)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
