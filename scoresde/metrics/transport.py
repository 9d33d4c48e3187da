"""The sliced Wasserstein distance, which averages over one-dimensional projections of the data.

In one dimension, optimal transport reduces to sorting. The sliced distance of order p is

    SW_p(x, y) = ( E_u [ W_p(u.x, u.y)^p ] )^(1/p),    u uniform on the unit sphere of R^d,
    W_p(a, b)^p = int_0^1 |F_a^{-1}(q) - F_b^{-1}(q)|^p dq,

where F_a^{-1} is the quantile function of a. The expectation is estimated by the mean over ``projections`` random
directions. The result is not rescaled by the dimension d. Because E[(u.m)^2] = |m|^2 / d, the sliced distance for p = 2
between a set and the same set shifted by a vector m is |m| / sqrt(d), not |m|.

The estimate is biased upwards for small samples, so compare values only at equal N.

References:
    Rabin, Peyré, Delon and Bernot (2011), Wasserstein barycenter and its application to texture mixing, SSVM.
    Bonneel, Rabin, Peyré and Pfister (2015), Sliced and Radon Wasserstein barycenters of measures, JMIV 51.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import SEED, SEVERAL, Range, checked
from .measurement import BLOCKS, Measurement, jackknife
from .rows import as_rows

__all__ = ["sliced", "sliced_wasserstein"]

_BLOCK = 64  # number of directions to project onto at once, which limits memory to 64 (N + M) numbers


@checked(projections=Range(1, 10**6), seed=SEED, p=Range(1, 100))
def sliced_wasserstein(x: Tensor, y: Tensor, *, projections: int = 512, seed: int = 0, p: float = 2) -> float:
    """Compute the sliced p-Wasserstein distance between two sets of samples, in the units of the data.

    Args:
        x: Samples, shape ``(N, *event)``; events of any shape are flattened.
        y: Samples, shape ``(M, *event)``; ``M`` may differ from ``N``.
        projections: Number of random directions.
        seed: Seed for the directions. The same seed and event shape give the same directions.
        p: Order of the distance, at least 1.

    Returns:
        The distance, ``(mean over directions of W_p^p)^(1/p)``. The integral over quantiles is exact, even for sets of
        unequal size.

    Raises:
        UsageError: If the event shapes differ, a value is not finite, a set has fewer than 2 rows, or an
            option is out of range.

    >>> x = torch.arange(4.0).reshape(4, 1)
    >>> round(sliced_wasserstein(x, x + 3), 6)
    3.0
    """
    if projections < 1:
        raise UsageError(f"projections must be at least 1, got {projections}")
    if not p >= 1:
        raise UsageError(f"the order p of a Wasserstein distance must be at least 1, got {p}")
    if x.shape[1:] != y.shape[1:]:
        raise UsageError(f"x and y must have the same event shape, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}")
    a = as_rows(x, "x", x.device)
    b = as_rows(y, "y", x.device)

    # Draw on the CPU, so that the directions do not depend on the device of the data.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(a.device)

    # Both quantile functions are constant between consecutive levels i/N and j/M. In units of 1/(N M) the levels
    # are integers, so rounding cannot assign an interval to the wrong sample. With equal sizes the levels are i/N.
    n, m = a.shape[0], b.shape[0]
    edges = torch.cat((torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n))
    levels: Tensor = torch.unique(edges).to(a.device)
    widths = levels.diff(prepend=levels.new_zeros(1))
    starts = levels - widths
    rank_a, rank_b = starts // m, starts // n
    weights = (widths.double() / (n * m))[:, None]

    total = 0.0
    for u in directions.split(_BLOCK, dim=1):
        gap = (a @ u).sort(dim=0).values[rank_a] - (b @ u).sort(dim=0).values[rank_b]
        total += float((weights * gap.abs() ** p).sum())
    return float((total / projections) ** (1 / p))


@checked(blocks=SEVERAL)
def sliced(x: Tensor, y: Tensor, *, blocks: int = BLOCKS) -> Measurement:
    """Compute the sliced Wasserstein distance of order 2 over 512 directions, with its jackknife error.

    Args:
        x: Samples, shape ``(N, *event)``.
        y: Samples, shape ``(M, *event)``.
        blocks: Number of jackknife blocks, B. The distance is computed B + 1 times.
    """
    # The bias of a distance close to 0 falls as N^(-1/2), not as 1/N, so it is not reported.
    return replace(jackknife(sliced_wasserstein, x, y, blocks=blocks), bias=math.nan)
