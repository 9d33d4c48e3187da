"""Rows of numbers and the distances between them, for every metric.

All metrics flatten events to rows, compute in float64 and never hold more than ``BUDGET`` numbers of a table of pairs
at once: a table of N x M distances is walked in slabs of rows.

Squared distances come from one matrix product,

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b,                                                              (1)

after both sets are moved by the mean of the second, so that little cancels. What is left of a distance of zero is
about 1e-8 of the size of the rows; where zero must be zero, in :func:`nearest`, the winners are measured again, by
subtraction.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.errors import UsageError

__all__ = ["as_rows", "furthest", "nearest", "pair", "slabs", "squared_distances"]

BUDGET = 2**24  # numbers of a table held at once: 128 MB in float64


def as_rows(x: Tensor, name: str, device: torch.device | None = None) -> Tensor:
    """``x``, of shape ``(N, *event)``, as float64 rows ``(N, d)``.

    Raises:
        UsageError: If there are fewer than 2 rows, they are empty, or a value is not finite.
    """
    device = x.device if device is None else device
    if x.ndim < 2:
        raise UsageError(f"{name} has shape (N, *event): got {tuple(x.shape)}")
    if x.shape[0] < 2:
        raise UsageError(f"{name} has {x.shape[0]} rows: a distance between distributions needs at least 2")
    if x[0].numel() == 0:
        raise UsageError(f"{name} has empty events: its shape is {tuple(x.shape)}")
    rows = x.detach().flatten(1)
    bad = ~rows.isfinite()
    if bad.any():
        first = int(bad.any(dim=1).nonzero()[0, 0])
        raise UsageError(
            f"{name} has {int(bad.sum()):,} values that are not finite, the first in row {first}: "
            "drop those rows, or find out why they diverged"
        )
    # Apple's GPU has no float64.
    return rows.cpu().double() if device.type == "mps" else rows.to(device=device, dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(N, d)`` and ``(M, d)`` as float64 rows on one device.

    Raises:
        UsageError: If the shapes are others, or :func:`as_rows` refuses them.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(
            "features have shapes (N, d) and (M, d) with one d: "
            f"got {tuple(x.shape)} and {tuple(y.shape)}; flatten events first"
        )
    return as_rows(x, "x"), as_rows(y, "y", x.device)


def slabs(n: int, m: int) -> Iterator[slice]:
    """Slices of ``range(n)`` such that each, times ``m``, stays within the budget."""
    size = max(1, BUDGET // max(1, m))
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``(N, M)`` between rows ``(N, d)`` and ``(M, d)``, eq. (1); never negative."""
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return torch.addmm(squares, a, b.T, alpha=-2).clamp_min_(0)


def nearest(a: Tensor, b: Tensor, k: int, *, same: bool = False) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest rows of ``b`` to each row of ``a``.

    Args:
        a: Rows ``(N, d)``.
        b: Rows ``(M, d)``.
        k: How many.
        same: ``a`` is ``b``, and no row is its own neighbour.

    Returns:
        Distances, ascending, and indices into ``b``, both of shape ``(N, k)``. Copies have the distance 0, exactly.
    """
    available = len(b) - same
    if not 1 <= k <= available:
        raise UsageError(f"k = {k} nearest neighbours among {available}: take k from 1 to {available}")
    centre = b.mean(dim=0)
    moved, others = a - centre, b - centre
    distances, indices = [], []
    for part in slabs(len(a), max(len(b), k * b.shape[1])):
        table = squared_distances(moved[part], others)
        if same:
            rows = torch.arange(table.shape[0], device=table.device)
            table[rows, rows + part.start] = torch.inf
        found = table.topk(k, largest=False).indices
        exact, order = (a[part, None] - b[found]).norm(dim=2).sort(dim=1)
        distances.append(exact)
        indices.append(found.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def furthest(x: Tensor) -> float:
    """The largest distance between two rows of ``x: (N, *event)``.

    It is exact for up to 2,048 rows. Of more it is a distance that there is: from the row furthest from the middle to
    the row furthest from that one, and on for as long as it grows; it is never less than 1/sqrt(3) of the largest, and
    hardly ever another.
    """
    rows = x.detach().flatten(1)
    if len(rows) <= 2048:
        rows = rows.double()
        return max(float(torch.cdist(part, rows).max()) for part in torch.split(rows, 256))
    found, here = 0.0, rows.mean(0)
    for i in range(16):
        away = torch.linalg.vector_norm(rows - here, dim=1)
        here = rows[int(away.argmax())]
        if i and float(away.max()) <= found:
            break
        found = float(away.max()) if i else 0.0
    return found
