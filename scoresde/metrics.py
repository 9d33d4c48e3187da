"""Two distances between samples: how far is what was generated from what was wanted?

Sliced Wasserstein. A random direction turns both sets into numbers on a line, where transport is sorting:

    SW_p(x, y) = ( E_u [ W_p(u.x, u.y)^p ] )^(1/p),    u uniform on the unit sphere of R^d,
    W_p(a, b)^p = int_0^1 |F_a^{-1}(q) - F_b^{-1}(q)|^p dq.

The expectation is a mean over ``projections`` directions. There is no factor of d: because
E[(u.m)^2] = |m|^2 / d, a shift by m moves a cloud a sliced distance |m| / sqrt(d), not |m|.

Fréchet. The squared 2-Wasserstein distance between the two Gaussians with the samples' means and covariances,

    d^2 = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1^{1/2} S2 S1^{1/2})^{1/2}).

It is d^2 that is returned, without a root, as everywhere in the FID literature; covariances divide by N - 1.
The last trace is a sum of square roots of eigenvalues of S1^{1/2} S2 S1^{1/2} = A A^T, A = S1^{1/2} S2^{1/2}.
They are taken as the singular values of A: real, never negative, and without the sqrt(eps) noise that rooting
the eigenvalues of a singular matrix would bring.

Convention: tensors in, a Python float out, float64 in between. Both estimates are biased upwards for few
samples, so compare values at equal N only.

References:
    Rabin, Peyré, Delon and Bernot (2011), Wasserstein barycenter and its application to texture mixing, SSVM.
    Bonneel, Rabin, Peyré and Pfister (2015), Sliced and Radon Wasserstein barycenters of measures, JMIV 51.
    Dowson and Landau (1982), The Fréchet distance between multivariate normal distributions, JMVA 12,
    eq. (4).
    Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter (2017), GANs trained by a two time-scale update rule
    converge to a local Nash equilibrium, arXiv:1706.08500, eq. (6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import UsageError

__all__ = ["frechet_distance", "sliced_wasserstein"]

_BLOCK = 64  # Directions projected at once: bounds the memory at 64 (N + M) numbers.


def sliced_wasserstein(x: Tensor, y: Tensor, *, projections: int = 512, seed: int = 0, p: float = 2) -> float:
    """Sliced p-Wasserstein distance between two sets of samples, in the units of the data.

    Args:
        x: Samples, shape ``(N, *event)``; events of any shape are flattened.
        y: Samples, shape ``(M, *event)``; ``M`` may differ from ``N``.
        projections: Number of random directions.
        seed: Of the directions; the same seed gives the same directions for the same event shape.
        p: Order of the distance, at least 1.

    Returns:
        (mean over directions of W_p^p)^(1/p). Sets of unequal size are matched quantile by quantile, exactly.

    Raises:
        UsageError: If the event shapes differ, a value is not finite, there are fewer than 2 rows, or an
            option is out of range.

    >>> x = torch.arange(4.0).reshape(4, 1)
    >>> round(sliced_wasserstein(x, x + 3), 6)
    3.0
    """
    if projections < 1:
        raise UsageError(f"projections is at least 1: got {projections}")
    if not p >= 1:
        raise UsageError(f"the order p of a Wasserstein distance is at least 1: got {p}")
    if x.shape[1:] != y.shape[1:]:
        raise UsageError(
            f"x and y have the same event shape: got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
        )
    a = _rows(x, "x", x.device)
    b = _rows(y, "y", x.device)

    # Drawn on the CPU, so that the directions do not depend on where the data live.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(a.device)

    # Both quantile functions are constant between consecutive levels i/N and j/M. Counted in units of 1/(N M)
    # the levels are integers, so no rounding decides which sample an interval belongs to. Equal sizes give
    # i/N alone.
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


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance between Gaussian fits to two sets of features, as FID reports it.

    Args:
        x: Features, shape ``(N, d)``.
        y: Features, shape ``(M, d)``.

    Returns:
        The squared distance, in squared units of the features; never negative.

    Raises:
        UsageError: If the shapes are not ``(N, d)`` and ``(M, d)``, a value is not finite, or there are fewer
            than 2 rows.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(frechet_distance(x, x + 3), 6)
    9.0
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(
            "features have shapes (N, d) and (M, d) with one d: "
            f"got {tuple(x.shape)} and {tuple(y.shape)}; flatten events first"
        )
    a = _rows(x, "x", x.device)
    b = _rows(y, "y", x.device)
    mean = float((a.mean(dim=0) - b.mean(dim=0)).square().sum())
    cov_a, cov_b = _covariance(a), _covariance(b)
    cross = float(torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum())
    return max(0.0, mean + float(cov_a.trace()) + float(cov_b.trace()) - 2 * cross)


def _rows(x: Tensor, name: str, device: torch.device) -> Tensor:
    """``x`` as float64 rows ``(N, d)``, or a UsageError that says what is wrong with it."""
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


def _covariance(rows: Tensor) -> Tensor:
    """Unbiased covariance ``(d, d)`` of rows ``(N, d)``; also for d = 1."""
    centred = rows - rows.mean(dim=0)
    return centred.T @ centred / (rows.shape[0] - 1)


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root ``(d, d)`` of a covariance; eigenvalues rounded below zero count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root
