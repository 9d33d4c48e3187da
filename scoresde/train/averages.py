"""Exponential moving average of the weights, with a decay that increases with the number of updates.

    w_ema <- d w_ema + (1 - d) w,    d = min(decay, (1 + n) / (10 + n))

at update n = 1, 2, ..., where w are the weights and w_ema is their average. As long as d is below ``decay``, the
average covers about the last tenth of the updates. It therefore soon forgets the random initial weights, and samples
drawn after a short run hardly depend on them. Buffers (such as running statistics) are copied, not averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.limits import FRACTION, checked

__all__ = ["EMA"]


class EMA:
    """Exponential moving average of a module's parameters.

    Args:
        module: The module that is trained.
        decay: Maximum value of d, from 0 to 1.
    """

    @checked(decay=FRACTION)
    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, skip: Tensor | None = None) -> None:
        """Update the average with the current weights of ``module``, and copy the buffers of ``module``.

        The tensor ``skip: ()`` is on the device of the module. If it is 1 instead of 0, the average stays as it is,
        although the update is counted.
        """
        self.updates += 1
        weight: float | Tensor = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        # Tied weights have several names, and each of them is averaged.
        trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        for name, value in module.state_dict().items():
            average = self.state[name]
            if name in trained and average.is_floating_point():
                if skip is None:
                    average.lerp_(value, weight)
                else:
                    average.lerp_(value, (weight * (1 - skip.double())).to(average.dtype))
            else:
                average.copy_(value if skip is None else torch.where(skip > 0, average, value))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and the copied buffers, keyed by name."""
        return self.state
