"""Kernel distances: unbiased estimates of the squared maximum mean discrepancy (MMD).

The squared MMD between the distributions of x and y is

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),                                                   (1)

where x' and y' are independent copies of x and y. Each expectation is estimated by the mean over all pairs of distinct
rows, so the estimate is unbiased. For two sets drawn from the same distribution, the expectation of the estimate is 0
at any N, so the estimate is sometimes negative. There are two kernels:

    k(a, b) = (a.b / d + 1)^3                         polynomial, used for KID in the GAN literature   (2)
    k(a, b) = mean_h exp(-|a - b|^2 / (2 h^2))        Gaussian, with one or more bandwidths h          (3)

Here d is the number of features. The polynomial kernel compares moments up to the third and depends on the scale of the
features. The Gaussian kernel compares distributions at the length scale h. By default, h is the median distance between
two rows of the combined sets.

KID is often reported as the mean over subsets of 1,000 rows. The functions here use all pairs at once, which gives the
same expectation and a smaller variance. The standard error comes from a jackknife over B blocks of rows. The kernel is
first summed over each pair of blocks, which gives three B x B tables. Deleting block b then only removes row b and
column b from each table, so the jackknife adds little cost. For equal distributions, where the estimate is degenerate,
the standard error is too large by a factor of about sqrt(2).

References:
    Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), A kernel two-sample test, JMLR 13, eq. (3).
    Bińkowski, Sutherland, Arbel and Gretton (2018), Demystifying MMD GANs, arXiv:1801.01401, section 4.
    Arvesen (1969), Jackknifing U-statistics, Annals of Mathematical Statistics 40.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import SEVERAL, Range, checked
from .measurement import BLOCKS, Measurement, deal, from_blocks
from .rows import pair, slabs, squared_distances

__all__ = ["kernel_distance", "median_distance", "mmd"]

Kernel = Callable[[Tensor, Tensor], Tensor]  # maps rows (N, d) and (M, d) to values (N, M)


@checked(degree=Range(1, 100), blocks=SEVERAL)
def kernel_distance(x: Tensor, y: Tensor, *, degree: int = 3, blocks: int = BLOCKS) -> Measurement:
    """Compute the kernel distance (KID) between two sets of features.

    The kernel distance is the unbiased estimate of the squared MMD with the polynomial kernel of equation 2.

    Args:
        x: Features, shape ``(N, d)``.
        y: Features, shape ``(M, d)``.
        degree: Degree of the polynomial, 3 in equation 2.
        blocks: Number of jackknife blocks.

    Raises:
        UsageError: If the shapes differ, a value is not finite, a set has fewer than 2 rows, or the degree is below 1.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> kernel_distance(x, x).value
    -62.0
    """
    if degree < 1:
        raise UsageError(f"the degree of the polynomial kernel must be at least 1, got {degree}")
    return _mmd2(*pair(x, y), lambda a, b: (a @ b.T / a.shape[1] + 1) ** degree, blocks)


@checked(blocks=SEVERAL)
def mmd(x: Tensor, y: Tensor, *, bandwidths: Sequence[float] | None = None, blocks: int = BLOCKS) -> Measurement:
    """Compute the unbiased estimate of the squared MMD with the Gaussian kernel of equation 3.

    The estimate is dimensionless and lies between -2 and 2.

    Args:
        x: Features, shape ``(N, d)``.
        y: Features, shape ``(M, d)``.
        bandwidths: Bandwidths in units of the features, or ``None`` for the :func:`median_distance` of the two sets.
        blocks: Number of jackknife blocks. The standard error is computed as if the bandwidths were fixed.

    Raises:
        UsageError: If the shapes differ, a value is not finite, a set has fewer than 2 rows, or a bandwidth is not
            positive.
    """
    a, b = pair(x, y)
    widths = [median_distance(a, b)] if bandwidths is None else [float(h) for h in bandwidths]
    if not widths or not all(h > 0 for h in widths):
        given = "the default (the median row distance) is 0" if bandwidths is None else f"got {list(bandwidths)}"
        raise UsageError(f"bandwidths must be one or more positive numbers, but {given}; pass positive bandwidths")

    def gaussian(p: Tensor, q: Tensor) -> Tensor:
        squares = squared_distances(p, q)
        return torch.stack([(squares / (-2 * h * h)).exp() for h in widths]).mean(dim=0)

    centre = b.mean(dim=0)
    return _mmd2(a - centre, b - centre, gaussian, blocks)


@checked(limit=SEVERAL)
def median_distance(x: Tensor, y: Tensor, *, limit: int = 1000) -> float:
    """Compute the median of the distances between all pairs of rows of the combined sets.

    Args:
        x: Features, shape ``(N, d)``.
        y: Features, shape ``(M, d)``.
        limit: Maximum number of rows to use from each set. These rows are evenly spaced.
    """
    both = torch.cat([rows[:: -(-len(rows) // limit)] for rows in pair(x, y)])
    both = both - both.mean(dim=0)
    distances = squared_distances(both, both).sqrt()
    above = torch.ones_like(distances, dtype=torch.bool).triu(1)
    return float(distances[above].median())


def _mmd2(x: Tensor, y: Tensor, kernel: Kernel, blocks: int) -> Measurement:
    """Return the unbiased estimate of equation 1, with its jackknife error."""
    in_x, in_y = (torch.nn.functional.one_hot(b).double().to(x.device) for b in deal([len(x), len(y)], blocks))
    xx, yy, xy = _sums(x, x, in_x, in_x, kernel), _sums(y, y, in_y, in_y, kernel), _sums(x, y, in_x, in_y, kernel)
    sizes_x, sizes_y = in_x.sum(dim=0), in_y.sum(dim=0)

    def estimate(keep: Tensor) -> float:
        n, m = float(sizes_x @ keep), float(sizes_y @ keep)
        within = float(keep @ xx @ keep) / (n * (n - 1)) + float(keep @ yy @ keep) / (m * (m - 1))
        return within - 2 * float(keep @ xy @ keep) / (n * m)

    every = torch.ones_like(sizes_x)
    # If there is only one block, nothing would remain after it is deleted.
    units = torch.eye(len(every), dtype=every.dtype, device=every.device)
    without = [estimate(every - unit) for unit in units] if len(every) > 1 else []
    return from_blocks(estimate(every), without)


def _sums(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor, kernel: Kernel) -> Tensor:
    """Sum the kernel over the pairs of rows in each pair of blocks, and return the sums as a table ``(B, B)``."""
    total = torch.zeros(in_a.shape[1], in_b.shape[1], dtype=a.dtype, device=a.device)
    for part in slabs(len(a), len(b)):
        table = kernel(a[part], b)
        if a is b:
            rows = torch.arange(table.shape[0], device=table.device)
            table[rows, rows + part.start] = 0  # leave out pairs of a row with itself
        total += in_a[part].T @ (table @ in_b)
    return total
