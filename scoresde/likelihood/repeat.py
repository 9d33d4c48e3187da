"""Steps that keep no graph and are recomputed in the backward pass.

The graph of a solve in n steps would store the intermediate results of every evaluation of the network. Here, only the
n states between the steps are stored. In the backward pass, each step is recomputed with its graph, and the gradient is
multiplied by the derivatives of the step,

    d/d state      and      d/d theta.

Here, theta are the parameters on which the network depends. They are found by following the graph of one evaluation to
its leaves. Only one step's graph is then in memory at a time, but the number of evaluations doubles. The gradient is
exactly that of the returned value.

``torch.utils.checkpoint`` does the same for plain functions. A step of the likelihood, however, computes derivatives
itself. With ``checkpoint``, each of these derivatives would recompute the step up to that point, which would take eight
times as many evaluations.

References:
    Chen et al. (2016), arXiv:1604.06174: gradient checkpointing.
    Gholami et al. (2019), ANODE, arXiv:1902.10298: the error of the adjoint equation, and checkpointing instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["leaves", "repeated"]

Step = Callable[[Tensor, bool], Tensor]  # (state: (B, N), whether to keep the graph) -> (B, N)


def leaves(value: Tensor) -> list[Tensor]:
    """Return the leaf tensors that ``value`` depends on and that require gradients.

    The tensor ``value`` may have any shape.
    """
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
    """Apply ``step`` to ``state: (B, N)`` without a graph, and recompute the step in the backward pass.

    Gradients are computed for ``state`` and ``parameters``, the leaves on which the step depends (:func:`leaves`).
    """
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
        # Keep the graph for anything computed outside the step, such as an embedding that all steps share.
        found = torch.autograd.grad(out, (state, *parameters), grad, allow_unused=True, retain_graph=True)
        return None, *found
