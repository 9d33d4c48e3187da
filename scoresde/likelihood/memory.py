"""How many rows fit into a memory budget.

What a row needs is taken to be

    3 S + 1024 D        numbers,                                                                            (1)

with S what one evaluation of the model stores for the backward pass (measured on two rows against one, so that
weights do not count), three times for the backward pass itself and its workspace, and 1024 states of D numbers for the
stages of a step, two hundred knots of a path with their slopes, twice when they are put in order, and slopes at up to
129 nodes, twice when a finer rule takes them over. With a graph through a step, a backward
pass that will be differentiated again keeps 2 S of its own: for four stages with K passes each,

    4 (1 + 3 K) S + 1024 D,                                                                                 (2)

the third for workspace. Weights and what the allocator keeps are not in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..estimate import Denoiser
from .frame import Frame

__all__ = ["default_budget", "rows_within"]


def default_budget(device: torch.device) -> int:
    """Bytes: half of what is free on a GPU, and 2 GiB elsewhere."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**31


def rows_within(budget: int, model: Denoiser, x: Tensor, passes: int = 0) -> int:
    """How many rows of ``x``, shape ``(B, *event)``, can be solved at once; it asks the model twice.

    Args:
        budget: Bytes.
        model: The denoiser.
        x: Data in model units.
        passes: If the result is to be differentiated: how many backward passes an evaluation has, K or, if the
            divergence is exact, D.

    Raises:
        UsageError: If one row does not fit.
    """
    stored = [_stored(model, x, rows) for rows in (1, 2)]
    state = x[0].numel() * x.element_size()
    row = (4 * (1 + 3 * passes) if passes else 3) * max(stored[1] - stored[0], 0) + 1024 * state
    if row > budget:
        raise UsageError(
            f"one sample needs about {row / 2**20:,.0f} MiB, more than the memory budget of {budget / 2**20:,.0f} MiB; "
            "raise the budget (memory, --memory), if there is more"
        )
    return budget // row


def _stored(model: Denoiser, x: Tensor, count: int) -> int:
    """Bytes that an evaluation of ``count`` rows keeps for the backward pass."""
    index = torch.zeros(count, dtype=torch.int64, device=x.device)
    frame = Frame(model.rows(index), x.detach()[index])
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = frame.start.detach().requires_grad_()
        # kept until the sizes are known: a freed address could be used twice
        u = frame.scales.new_full((count,), frame.interval[1])
        output = frame.field(y, u, torch.arange(count, device=x.device))
        del output
    return sum(sizes.values())
