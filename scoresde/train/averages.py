"""Moving averages of the weights, one for each profile (:mod:`scoresde.run.profiles`).

    w_avg <- d(n) w_avg + (1 - d(n)) w

at update n = 1, 2, ..., where w are the weights, w_avg is their average and d is the decay of the profile. By default,
d = min(0.9999, (1 + n) / (10 + n)). As long as d is below 0.9999, the average covers about the last tenth of the
updates. It therefore soon forgets the random initial weights, and samples drawn after a short run hardly depend on
them. Buffers (such as running statistics) are copied, not averaged.

The weights of a network are many small tensors, so an update takes most of its time to find them. They are found once,
and averaged with one call for each profile.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.parallel import own_part
from ..run.profiles import Decay, Profile

__all__ = ["EMA"]


class EMA:
    """Moving averages of a module's parameters.

    Args:
        module: The module that is trained. Its parameters must stay the same objects, as an optimiser requires, too.
        profiles: The profile of each average, or a number for an exponential average with this maximum decay (default:
            0.9999). The first average is the one that is used, and the others are stored.

    Attributes:
        profiles: The profiles.
        updates: Number of updates.
        states: The averaged weights and the copied buffers, keyed by name, for each profile.
        trained: The parameters that are averaged, keyed by name. Tied weights have several names.
    """

    def __init__(self, module: nn.Module, *profiles: Profile | float) -> None:
        self.profiles = tuple(p if isinstance(p, Profile) else Decay(p) for p in profiles) or (Decay(),)
        self.updates = 0
        state, named = module.state_dict(), dict(module.named_parameters(remove_duplicate=False))
        self.states = [{name: value.detach().clone() for name, value in state.items()} for _ in self.profiles]
        self.trained = {n: named[n] for n, value in state.items() if n in named and value.is_floating_point()}
        self._module = module

    @torch.no_grad()
    def update(self, skip: Tensor | None = None) -> None:
        """Update the averages with the current weights of the module, and copy its buffers.

        The tensor ``skip: ()`` is on the device of the module. If it is 1 instead of 0, the averages stay as they are,
        although the update is counted.
        """
        self.updates += 1
        now = [own_part(value) for value in self.trained.values()]
        for profile, state in zip(self.profiles, self.states, strict=True):
            averages = [own_part(state[name]) for name in self.trained]
            weight = 1 - profile(self.updates)
            if skip is None:
                torch._foreach_lerp_(averages, now, weight)
                continue
            weights = {
                dtype: torch.full_like(skip, weight, dtype=dtype).masked_fill(skip > 0, 0)
                for dtype in {average.dtype for average in averages}
            }
            torch._foreach_lerp_(averages, now, [weights[average.dtype] for average in averages])
        if len(self.trained) < len(self.states[0]):
            self._copy(skip)

    def _copy(self, skip: Tensor | None) -> None:
        """Copy what is not averaged."""
        for name, value in self._module.state_dict().items():
            if name not in self.trained:
                for state in self.states:
                    state[name].copy_(value if skip is None else torch.where(skip > 0, state[name], value))

    def state_dict(self, number: int = 0) -> Mapping[str, Tensor]:
        """Return the averaged weights of profile ``number`` and the copied buffers, keyed by name."""
        return self.states[number]
