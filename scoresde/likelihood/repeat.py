"""A step that keeps no graph and is repeated on the way back.

The graph of a solve in n steps holds every evaluation of the network. Kept instead are the n states between the
steps: on the way back a step is taken once more, now with its graph, and gives the products of its Jacobian with

    d/d state      and      d/d theta,

theta the parameters that the network was found to depend on, by following the graph of one evaluation to its leaves.
The memory is then that of one step, the price one more evaluation for each of the solve, and the gradient that of the
value that was returned.

``torch.utils.checkpoint`` does the same for plain functions. A step takes derivatives inside, and there each of them
repeats the step so far: eight times as many evaluations.

References:
    Chen et al. (2016), arXiv:1604.06174: checkpoints.
    Gholami et al. (2019), ANODE, arXiv:1902.10298: the adjoint's own error, and checkpoints instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["leaves", "repeated"]

Step = Callable[[Tensor, bool], Tensor]  # (state: (B, N), whether to keep the graph) -> (B, N)


def leaves(value: Tensor) -> list[Tensor]:
    """The tensors that ``value``, of any shape, depends on and that collect a gradient."""
    found: list[Tensor] = []
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [before for before, _ in node.next_functions]
    return found


def repeated(step: Step, state: Tensor, parameters: list[Tensor]) -> Tensor:
    """``step(state, ...)``, the shape of ``state: (B, N)``, with a gradient in it and in ``parameters``."""
    out: Tensor = _Repeated.apply(step, state, *parameters)  # type: ignore[no-untyped-call]
    return out


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, state: Tensor, *parameters: Tensor) -> Tensor:
        ctx.step, ctx.count = step, len(parameters)
        ctx.save_for_backward(state, *parameters)
        return step(state, False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            out = ctx.step(state, True)
        # The graph is kept for what lies outside the step, such as an embedding that all steps share.
        found = torch.autograd.grad(out, (state, *parameters), grad, allow_unused=True, retain_graph=True)
        return None, *found
