"""How many rows fit into a memory budget.

What a row needs is taken to be

    3 S + 1024 D        numbers,                                                                            (1)

with S what one evaluation of the model stores for the backward pass (measured on two rows against one, so that
weights do not count), three times for the backward pass itself and its workspace, and 1024 states of D numbers for the
stages of a step, two hundred knots of a path with their slopes, twice when they are put in order, and slopes at up to
129 nodes, twice when a finer rule takes them over. With a graph through a step, a backward
pass that will be differentiated again keeps 2 S of its own: for four stages with K passes each,

    4 (1 + 3 K) S + 1024 D,                                                                                 (2)

the third for workspace. Differences take no backward pass, and two states of each row at once:

    2 F + 1024 D,                                                                                           (3)

with F the most that an evaluation has alive (measured likewise). Weights, the workspace of (3) and what the allocator
keeps are not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.errors import UsageError
from ..core.shapes import dims
from ..model.estimate import Denoiser
from .problem import Problem

__all__ = ["default_budget", "rows_within"]


def default_budget(device: torch.device) -> int:
    """Bytes: half of what is free on a GPU, and 2 GiB elsewhere."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**31


def rows_within(budget: int, model: Denoiser, x: Tensor, passes: int = 0, backward: bool = True) -> int:
    """How many rows of ``x``, shape ``(B, *event)``, can be solved at once; it asks the model twice.

    Args:
        budget: Bytes.
        model: The denoiser.
        x: Data in model units.
        passes: If the result is to be differentiated: how many backward passes an evaluation has, K or, if the
            divergence is exact, D. The evaluations of differences stay within (2) too.
        backward: Whether there are backward passes.

    Raises:
        UsageError: If one row does not fit.
    """
    measure = _stored if backward else _alive
    one, two = measure(model, x, 1), measure(model, x, 2)
    times = 4 * (1 + 3 * passes) if passes else 3 if backward else 2
    row = times * max(two - one, 0) + 1024 * dims(x) * x.element_size()
    if row > budget:
        raise UsageError(
            f"one sample needs about {row / 2**20:,.0f} MiB, more than the memory budget of {budget / 2**20:,.0f} MiB; "
            "raise the budget, if there is more",
            parameter="memory",
        )
    return budget // row


def _evaluate(model: Denoiser, x: Tensor, count: int, grad: bool) -> object:
    """What an evaluation of ``count`` rows returns."""
    index = torch.zeros(count, dtype=torch.int64, device=x.device)
    problem = Problem(model.rows(index), x.detach()[index])
    u = problem.scales.new_full((count,), problem.interval[1])
    with torch.set_grad_enabled(grad):
        return problem.field(problem.start.detach().requires_grad_(grad), u, torch.arange(count, device=x.device))


def _stored(model: Denoiser, x: Tensor, count: int) -> int:
    """Bytes that an evaluation of ``count`` rows keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # kept until the sizes are known: a freed address could be used twice
        output = _evaluate(model, x, count, True)
        del output
    return sum(sizes.values())


def _alive(model: Denoiser, x: Tensor, count: int) -> int:
    """The most bytes that the results of an evaluation of ``count`` rows take at one time."""
    alive = _Alive()
    with alive:
        _evaluate(model, x, count, False)
    return alive.most


class _Alive(TorchFunctionMode):
    """Counts the bytes of the tensors that functions of torch return, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return found

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor from now until it is gone; tensors that share their numbers count once."""
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not self.holders.get(place):
            self.now += size
            self.most = max(self.most, self.now)
        self.holders[place] = self.holders.get(place, 0) + 1
        weakref.finalize(tensor, self.release, place, size)

    def release(self, place: int, size: int) -> None:
        """One holder less."""
        self.holders[place] -= 1
        if not self.holders[place]:
            self.now -= size
