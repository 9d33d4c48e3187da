"""Classical Runge-Kutta rules (Euler, midpoint, Heun and RK4) for steps of a given size.

With nodes c_j, stage weights a_jl and weights b_j, a step of size h from y is

    k_j = f(c_j, y + h sum_(l < j) a_jl k_l),        y <- y + h sum_j b_j k_j,                                   (1)

where the first argument of f is the position within the step, as a fraction of h (Hairer, Norsett and Wanner 1993,
Solving Ordinary Differential Equations I, II.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..core.shapes import add_scaled

__all__ = ["RULES", "Rule", "rule_step"]


@dataclass(frozen=True)
class Rule:
    """An explicit Runge-Kutta rule.

    Attributes:
        c: The nodes, as fractions of the step.
        a: The stage weights, one row for each stage.
        b: The weights of the solution.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


RULES = {
    "euler": Rule((0,), ((),), (1,)),
    "midpoint": Rule((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun": Rule((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "rk4": Rule((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def rule_step(rule: str, f: Callable[[float, Tensor], Tensor], y: Tensor, h: float) -> Tensor:
    """Take one Runge-Kutta step (equation 1) and return the new state.

    Args:
        rule: A key of :data:`RULES`.
        f: A function that returns the slope, given the position within the step (as a fraction of ``h``) and the state.
        y: The state, of any shape.
        h: The step size, which may be negative.

    >>> import torch
    >>> round(float(rule_step("rk4", lambda c, y: y, torch.ones(()), 1.0)), 4)  # 1 + 1 + 1/2 + 1/6 + 1/24
    2.7083
    """
    found = RULES[rule]
    k: list[Tensor] = []
    for c, row in zip(found.c, found.a, strict=True):
        k.append(f(c, add_scaled(y, [h * a for a in row], k)))
    return add_scaled(y, [h * b for b in found.b], k)
