"""Dense output between the steps of a solver, by Hermite interpolation.

For each row, a solver produces knots u_j, with a state y_j and a slope k_j = dy/du at each knot. Exactly one polynomial
of degree at most 2m - 1 has these states and slopes at m consecutive knots. With the Lagrange polynomials l_j of these
knots, this polynomial is

    y(u) = sum_j l_j(u)^2 { [1 - 2 l_j'(u_j) (u - u_j)] y_j + (u - u_j) k_j },                               (1)
    l_j'(u_j) = sum_(i != j) 1/(u_j - u_i),

and the interpolation error is of order h^(2m) for steps of size h. With a solver of order 5, the polynomial through
four knots (degree 7) is as accurate between the knots as the solver is at the knots. The cubic through two knots has an
error three times as large as the solver's error.

References:
    Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, II.6 (dense output).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Knots", "hermite"]


def hermite(u: Tensor, knots: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the coefficients of the states and of the slopes in equation (1), each of shape ``(P, m)``.

    Args:
        u: The points at which to interpolate, shape ``(P,)``.
        knots: The knots for each point, shape ``(P, m)``.
        there: A mask of the knots that exist, bool ``(P, m)``, or ``None`` if all of them exist. The coefficients of a
            missing knot are 0.
    """
    m = knots.shape[1]
    there = torch.ones_like(knots, dtype=torch.bool) if there is None else there
    other = there[:, :, None] & there[:, None, :] & ~torch.eye(m, dtype=torch.bool, device=u.device)
    gap = torch.where(other, knots[:, :, None] - knots[:, None, :], 1.0)
    ahead = u[:, None] - knots
    lagrange = torch.where(other, ahead[:, None, :] / gap, 1.0).prod(2)
    lean = torch.where(other, 1 / gap, 0.0).sum(2)
    square = torch.where(there, lagrange.square(), 0.0)
    return square * (1 - 2 * lean * ahead), square * ahead


class Knots:
    """A recorder for the knots that a solver produces.

    Pass the recorder as ``on_step`` to :func:`scoresde.ode.integrate.integrate`.

    Args:
        u: The first knot, which is the same for all rows.
        y: The states at the first knot, shape ``(B, D)``.
        slope: The slopes at the first knot, shape ``(B, D)``.
    """

    def __init__(self, u: float, y: Tensor, slope: Tensor) -> None:
        everyone = torch.arange(len(y), device=y.device)
        self.count = torch.zeros_like(everyone)
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        self(everyone, torch.full((len(y),), u, dtype=torch.float64, device=y.device), y, slope, 0.0)

    def __call__(self, index: Tensor, u: Tensor, y: Tensor, slope: Tensor, done: float) -> None:
        """Add a knot at ``u: (b,)`` to each row in ``index: (b,)``.

        The states ``y`` and slopes ``slope`` have shape ``(b, D)``. The argument ``done`` is not used.
        """
        self.steps.append((index, self.count[index], u, y, slope))
        self.count[index] += 1

    def path(self, order: int = 4) -> Path:
        """Return the trajectories of all rows, interpolated by polynomials through ``order`` knots each."""
        index, place, u, y, slope = (torch.cat([s[i] for s in self.steps]) for i in range(5))
        shape = (len(self.count), max(order, int(self.count.max())))
        at = index, place

        def table(value: Tensor, fill: float) -> Tensor:
            return value.new_full((*shape, *value.shape[1:]), fill).index_put(at, value)

        return Path(table(u, torch.inf), table(y, 0.0), table(slope, 0.0), self.count, order)


class Path:
    """The interpolated trajectory of each row, as returned by :meth:`Knots.path`.

    Args:
        u: The knots in ascending order, shape ``(B, M)``. If a row has fewer than M knots, the remaining entries are
            infinite.
        y: The states at the knots, shape ``(B, M, D)``.
        slope: The slopes at the knots, shape ``(B, M, D)``.
        count: The number of knots of each row, shape ``(B,)``.
        order: The number of knots per polynomial.
    """

    def __init__(self, u: Tensor, y: Tensor, slope: Tensor, count: Tensor, order: int) -> None:
        self.u, self.y, self.slope, self.count, self.order = u, y, slope, count, order

    def __call__(self, rows: Tensor, u: Tensor) -> Tensor:
        """Return the states of ``rows: (P,)``, interpolated at ``u: (P,)``. The result has shape ``(P, D)``."""
        interval = (self.u[rows] <= u[:, None]).sum(1) - 1
        last = (self.count[rows] - self.order).clamp(min=0)
        first = torch.minimum((interval - self.order // 2 + 1 - self.order % 2).clamp(min=0), last)
        place = first[:, None] + torch.arange(self.order, device=u.device)
        there, at = place < self.count[rows][:, None], (rows[:, None], place)
        value, slope = hermite(u, torch.where(there, self.u[at], 0.0), there)
        y, k = self.y[at], self.slope[at]
        return torch.einsum("pm,pmd->pd", value.to(y.dtype), y) + torch.einsum("pm,pmd->pd", slope.to(y.dtype), k)
