"""Precision, recall, density and coverage of samples, computed from nearest-neighbour balls.

The ball around a point z extends to the k-th nearest neighbour of z in the same set, at the distance r_k(z):

    B(z) = { a : |a - z| <= r_k(z) }.

With samples x_1 .. x_N and reference points y_1 .. y_M,

    precision = (1/N) #{ i : x_i in B(y_j) for some j },              (1)
    recall    = (1/M) #{ j : y_j in B(x_i) for some i },              (2)
    density   = (1/(k N)) #{ (i, j) : x_i in B(y_j) },                (3)
    coverage  = (1/M) #{ j : x_i in B(y_j) for some i }.              (4)

Precision is the fraction of samples that lie near the reference, and recall is the fraction of reference points that
lie near the samples. Density counts how many reference balls contain each sample, whereas precision only records
whether any ball contains it. Coverage is the fraction of reference balls that contain at least one sample.

Precision and recall are sensitive to outliers, because outliers have large balls. Density and coverage were designed to
avoid this weakness. If the two distributions are equal, density has expectation 1 and can exceed 1, and coverage has
expectation 1 - (M-1)!/(M-1-k)! (N+M-1-k)!/(N+M-1)!, which is 0.97 for k = 5 and large N = M. Precision and recall
have no such reference value. Compare values only at equal N, M and k.

The standard errors come from the jackknife (:mod:`scoresde.metrics.measurement`), which takes a single pass over the
pairs of points. Deleting a block removes the balls around the points in the block, and enlarges every other ball whose
centre has one of its k nearest neighbours in the block. Because the statistics are not smooth functions of the data,
the jackknife overestimates their standard errors, by 10 to 60 % in trials and by more for a statistic close to 1.

References:
    Kynkäänniemi, Karras, Laine, Lehtinen and Aila (2019), Improved precision and recall metric for assessing
    generative models, arXiv:1904.06991, eqs. (1) and (2), k = 3.
    Naeem, Oh, Uh, Choi and Yoo (2020), Reliable fidelity and diversity metrics for generative models,
    arXiv:2002.09797, eqs. (4) and (5) and lemma 2, k = 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import COUNT, SEVERAL, checked
from .measurement import BLOCKS, Measurement, deal, from_blocks
from .rows import nearest, pair, slabs, squared_distances

__all__ = ["NEIGHBOURS", "Neighbourhoods", "neighbourhoods"]

NEIGHBOURS = 5  # the default k: a ball extends to the k-th nearest neighbour


@dataclass(frozen=True)
class Neighbourhoods:
    """Precision, recall, density and coverage, each with its jackknife error.

    All statistics except density lie between 0 and 1.
    """

    precision: Measurement
    recall: Measurement
    density: Measurement
    coverage: Measurement


@checked(k=COUNT, blocks=SEVERAL)
def neighbourhoods(x: Tensor, y: Tensor, *, k: int = NEIGHBOURS, blocks: int = BLOCKS) -> Neighbourhoods:
    """Compute the precision, recall, density and coverage of samples.

    Args:
        x: Features of the samples, shape ``(N, d)``.
        y: Features of the reference, shape ``(M, d)``.
        k: Rank of the neighbour that determines the radius of each ball.
        blocks: Number of jackknife blocks. The errors are NaN if a set is too small for the jackknife.

    Raises:
        UsageError: If the shapes differ, a value is not finite, ``k`` is below 1, or a set has ``k`` rows or fewer.
    """
    a, b = pair(x, y)
    if not 1 <= k < min(len(a), len(b)):
        raise UsageError(
            "k must be at least 1 and less than the number of rows in each set, "
            f"got k = {k} for sets of {len(a)} and {len(b)} rows"
        )
    in_a, in_b = (block.to(a.device) for block in deal([len(a), len(b)], blocks))
    count = 1 + int(in_a.max())
    # Without its largest block, a set keeps n - ceil(n / count) rows.
    if count < 2 or any(n - -(-n // count) <= k for n in (len(a), len(b))):
        count = 0
    a, b = a - b.mean(dim=0), b - b.mean(dim=0)
    balls_a, balls_b = _balls(a, k, in_a, count), _balls(b, k, in_b, count)

    # Column 0: nothing deleted; column 1 + c: block c deleted.
    held = torch.zeros(len(a), 1 + count, dtype=torch.int64, device=a.device)  # balls of y that contain x_i
    recalled = torch.zeros(len(b), 1 + count, dtype=torch.bool, device=a.device)
    covered = torch.zeros_like(recalled)
    for part in slabs(len(a), len(b)):
        squares = squared_distances(a[part], b)
        for c in range(1 + count):
            inside = squares <= balls_b[:, c]
            held[part, c] = inside.sum(dim=1)
            covered[:, c] |= (inside & (in_a[part] != c - 1)[:, None]).any(dim=0)
            recalled[:, c] |= (squares <= balls_a[part, c, None]).any(dim=0)

    def over(values: Tensor, block: Tensor) -> Measurement:
        """Return the mean over all rows, with its jackknife error."""
        means = [float(values[block != c - 1, c].double().mean()) for c in range(1 + count)]
        # Radii shrink as sets grow, so the bias of the means is not proportional to 1/N and is not reported.
        return replace(from_blocks(means[0], means[1:]), bias=math.nan)

    return Neighbourhoods(
        precision=over(held > 0, in_a),
        recall=over(recalled, in_b),
        density=over(held.double() / k, in_a),
        coverage=over(covered, in_b),
    )


def _balls(rows: Tensor, k: int, block: Tensor, count: int) -> Tensor:
    """Return the squared radii ``(N, 1 + count)`` of the balls, first for all rows, then with one block left out.

    The entries of deleted rows are -1.
    """
    # A block contains few of the 4 k + 20 neighbours, so at least k of them almost surely remain without the block.
    distances, found = nearest(rows, rows, min(len(rows) - 1, 4 * k + 20), same=True)
    # Enlarge the balls, so that rounding cannot exclude a point that lies exactly on the boundary of a ball.
    slack = 1e-13 * float(rows.square().sum(dim=1).max())
    radii = []
    for c in range(1 + count):
        alive = (block[found] != c - 1).cumsum(dim=1)
        kth = (alive < k).sum(dim=1, keepdim=True).clamp_max(found.shape[1] - 1)
        squares = distances.gather(1, kth)[:, 0].square() + slack
        radii.append(torch.where(block == c - 1, -1.0, squares))
    return torch.stack(radii, dim=1)
