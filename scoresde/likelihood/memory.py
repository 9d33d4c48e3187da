"""An estimate of the number of rows that fit into a memory budget.

The memory for a row is estimated as

    3 S + 1024 D        numbers,                                                                            (1)

where D is the number of dimensions, and S is the number of values that one evaluation of the model stores for the
backward pass. S is measured by subtracting the number of values stored for one row from the number stored for two rows,
so the network's weights are not counted. The factor 3 also accounts for the backward pass and its workspace. The term
1024 D covers the stages of a step, two hundred knots of a trajectory with their slopes (stored twice during sorting),
and the slopes at up to 129 quadrature nodes (stored twice when the rule is refined).

If the result is to be differentiated, the backward passes of the divergence are recorded as well, and each of them
stores another 2 S numbers. For a step of four stages with K passes each, the estimate is

    4 (1 + 3 K) S + 1024 D,                                                                                 (2)

where the 3 S numbers for each pass are the 2 S stored numbers and S numbers of workspace. Finite differences need no
backward pass, but they evaluate two states of each row at once:

    2 F + 1024 D,                                                                                           (3)

where F is the largest number of values that are in memory at once during an evaluation, measured in the same way as S.
The estimates include neither the weights nor the memory cached by the allocator. Equation 3 also leaves out the
workspace of an evaluation.
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
    """Return the default budget in bytes: half of the free memory of a GPU, or 2 GiB on other devices."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**31


def rows_within(budget: int, model: Denoiser, x: Tensor, passes: int = 0, backward: bool = True) -> int:
    """Estimate how many rows of ``x`` can be solved at once within a memory budget.

    The estimate is based on two evaluations of the model.

    Args:
        budget: Memory budget in bytes.
        model: The denoiser.
        x: Data in model units, shape ``(B, *event)``.
        passes: Number of backward passes per evaluation (K, or D for an exact divergence) if the result is to be
            differentiated, and 0 otherwise. A positive number selects equation 2, even for finite differences.
        backward: Whether the computation includes any backward passes.

    Raises:
        UsageError: If not even one row fits.
    """
    measure = _stored if backward else _alive
    one, two = measure(model, x, 1), measure(model, x, 2)
    times = 4 * (1 + 3 * passes) if passes else 3 if backward else 2
    row = times * max(two - one, 0) + 1024 * dims(x) * x.element_size()
    if row > budget:
        raise UsageError(
            f"one sample needs about {row / 2**20:,.0f} MiB, more than the memory budget of {budget / 2**20:,.0f} MiB; "
            "raise the budget if more memory is available",
            parameter="memory",
        )
    return budget // row


def _evaluate(model: Denoiser, x: Tensor, count: int, grad: bool) -> object:
    """Evaluate the model on ``count`` copies of the first row of ``x``, and return the result."""
    index = torch.zeros(count, dtype=torch.int64, device=x.device)
    problem = Problem(model.rows(index), x.detach()[index])
    u = problem.scales.new_full((count,), problem.interval[1])
    with torch.set_grad_enabled(grad):
        return problem.field(problem.start.detach().requires_grad_(grad), u, torch.arange(count, device=x.device))


def _stored(model: Denoiser, x: Tensor, count: int) -> int:
    """Return how many bytes an evaluation of ``count`` rows stores for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Keep the output until the sizes are known, because freed memory could be reused at the same address.
        output = _evaluate(model, x, count, True)
        del output
    return sum(sizes.values())


def _alive(model: Denoiser, x: Tensor, count: int) -> int:
    """Return how many bytes the intermediate results of an evaluation of ``count`` rows occupy at the peak."""
    alive = _Alive()
    with alive:
        _evaluate(model, x, count, False)
    return alive.most


class _Alive(TorchFunctionMode):
    """A counter of the bytes that the results of torch functions occupy, now and at the peak."""

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
        """Count a tensor until it is freed. Tensors that share a storage are counted once."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # inside torch.func, for example in the derivative of an own SDE's alpha
            return
        place, size = storage.data_ptr(), storage.nbytes()
        if not self.holders.get(place):
            self.now += size
            self.most = max(self.most, self.now)
        self.holders[place] = self.holders.get(place, 0) + 1
        weakref.finalize(tensor, self.release, place, size)

    def release(self, place: int, size: int) -> None:
        """Count a tensor as freed. A storage is subtracted when its last tensor is freed."""
        self.holders[place] -= 1
        if not self.holders[place]:
            self.now -= size
