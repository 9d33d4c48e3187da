"""Distances between rows of numbers, for the metrics that compare two sets of samples.

These metrics flatten events to rows and compute in float64. They process a table of N x M distances in slabs of rows,
and keep at most ``BUDGET`` entries of the table in memory at once.

Squared distances are computed with a single matrix product,

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b,                                                              (1)

after the mean of the second set is subtracted from both sets to limit cancellation. Because of rounding, a distance of
zero is computed as about 1e-8 times the norm of the rows. The function :func:`nearest` must return exactly 0 for
identical rows, so it recomputes the distances to the selected neighbours directly from a - b.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.errors import UsageError

__all__ = ["as_rows", "furthest", "nearest", "pair", "slabs", "squared_distances"]

BUDGET = 2**24  # largest number of table entries in memory at once: 128 MB in float64


def as_rows(x: Tensor, name: str, device: torch.device | None = None) -> Tensor:
    """Flatten ``x: (N, *event)`` to float64 rows ``(N, d)``.

    Raises:
        UsageError: If ``x`` has no event axis, there are fewer than 2 rows, events are empty, or a value is not finite.
    """
    device = x.device if device is None else device
    if x.ndim < 2:
        raise UsageError(f"{name} must have shape (N, *event) with at least 2 axes, got {tuple(x.shape)}")
    if x.shape[0] < 2:
        raise UsageError(f"{name} must have at least 2 rows, got {x.shape[0]}")
    if x[0].numel() == 0:
        raise UsageError(f"the events of {name} must not be empty, got shape {tuple(x.shape)}")
    rows = x.detach().flatten(1)
    bad = ~rows.isfinite()
    if bad.any():
        first = int(bad.any(dim=1).nonzero()[0, 0])
        raise UsageError(
            f"{name} has non-finite values ({int(bad.sum()):,} in total, the first in row {first}); remove the "
            "affected rows, or find out why they diverged"
        )
    # Apple's GPU has no float64.
    return rows.cpu().double() if device.type == "mps" else rows.to(device=device, dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Convert features ``(N, d)`` and ``(M, d)`` to float64 rows on the device of ``x``.

    Raises:
        UsageError: If the shapes do not match, a set has fewer than 2 rows, or a value is not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(
            "features must have shapes (N, d) and (M, d) with the same d, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}; flatten events first"
        )
    return as_rows(x, "x"), as_rows(y, "y", x.device)


def slabs(n: int, m: int) -> Iterator[slice]:
    """Divide ``range(n)`` into slices whose length times ``m`` is at most ``BUDGET``, if possible."""
    size = max(1, BUDGET // max(1, m))
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute the squared distances between the rows of ``a: (N, d)`` and the rows of ``b: (M, d)`` with equation 1.

    The result has shape ``(N, M)``.
    """
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return torch.addmm(squares, a, b.T, alpha=-2).clamp_min_(0)


def nearest(a: Tensor, b: Tensor, k: int, *, same: bool = False) -> tuple[Tensor, Tensor]:
    """For each row of ``a``, find the ``k`` nearest rows of ``b``.

    Args:
        a: Rows ``(N, d)``.
        b: Rows ``(M, d)``.
        k: Number of neighbours.
        same: Whether ``a`` and ``b`` are the same set of rows. If so, a row does not count as its own neighbour.

    Returns:
        The distances in ascending order, and the indices into ``b``, each of shape ``(N, k)``. Identical rows have a
        distance of exactly 0.
    """
    available = len(b) - same
    if not 1 <= k <= available:
        raise UsageError(f"k must be between 1 and {available}, the number of rows that can be neighbours, got {k}")
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
    """Find the largest distance between two rows of ``x: (N, *event)``.

    The result is exact for up to 2,048 rows. For more rows, the search starts at the row furthest from the mean, moves
    to the row furthest from the current row, and repeats this step as long as the distance grows. The result is then
    the distance between two actual rows. It is almost always the largest distance, and at least 1/sqrt(3) of it.
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
