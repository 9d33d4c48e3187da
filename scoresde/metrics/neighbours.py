"""Precision, recall, density and coverage: which part of one set lies in the balls around another?

Around each point stands the ball that reaches to its k-th nearest neighbour in its own set,

    B(z) = { a : |a - z| <= r_k(z) }.

With samples x_1 .. x_N and reference points y_1 .. y_M,

    precision = (1/N) #{ i : x_i in B(y_j) for some j }       samples that could be real,              (1)
    recall    = (1/M) #{ j : y_j in B(x_i) for some i }       real points that could be sampled,       (2)
    density   = (1/(k N)) #{ (i, j) : x_i in B(y_j) }         the same as (1), but counting the balls, (3)
    coverage  = (1/M) #{ j : some x_i in B(y_j) }             real points that have a sample near.     (4)

(1) and (2) suffer from outliers, whose balls are large; (3) and (4) were made against that. Density is 1 on average
between equal distributions and may be above. Coverage then is 1 - (M-1)!/(M-1-k)! (N+M-1-k)!/(N+M-1)! on average, which
is 0.97 for k = 5 and large equal sizes; precision and recall have no such value. All but density depend on N, M and k:
compare at equal ones only.

The errors are those of the jackknife (:mod:`scoresde.metrics.measurement`), from one walk over the pairs: deleting a
block changes the k-th neighbour of those points that had a neighbour in it, and takes its balls away. These figures are
not smooth in the data, and their errors are too large: by 10 to 60 % in trials, more where a figure is close to 1.

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

__all__ = ["Neighbourhoods", "neighbourhoods"]


@dataclass(frozen=True)
class Neighbourhoods:
    """The four figures, each with its jackknife error; all but density lie between 0 and 1."""

    precision: Measurement
    recall: Measurement
    density: Measurement
    coverage: Measurement


@checked(k=COUNT, blocks=SEVERAL)
def neighbourhoods(x: Tensor, y: Tensor, *, k: int = 5, blocks: int = BLOCKS) -> Neighbourhoods:
    """Precision, recall, density and coverage of samples.

    Args:
        x: Features of the samples, shape ``(N, d)``.
        y: Features of the reference, shape ``(M, d)``.
        k: How many neighbours a ball reaches to.
        blocks: Of the jackknife error; there is none if a set is too small for it.

    Raises:
        UsageError: If the shapes differ, a value is not finite, or a set has no ``k`` neighbours.
    """
    a, b = pair(x, y)
    if not 1 <= k < min(len(a), len(b)):
        raise UsageError(f"k = {k} neighbours in sets of {len(a)} and {len(b)} rows; take k from 1, and more rows")
    in_a, in_b = (block.to(a.device) for block in deal([len(a), len(b)], blocks))
    count = 1 + int(in_a.max())
    # Without the largest block, a set keeps n - ceil(n / count) rows.
    if count < 2 or any(n - -(-n // count) <= k for n in (len(a), len(b))):
        count = 0
    a, b = a - b.mean(dim=0), b - b.mean(dim=0)
    balls_a, balls_b = _balls(a, k, in_a, count), _balls(b, k, in_b, count)

    # Column 0: nothing deleted; column 1 + c: block c deleted.
    held = torch.zeros(len(a), 1 + count, dtype=torch.int64, device=a.device)  # balls of y that hold x_i
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
        """The mean over the rows that are there, without each block in turn."""
        means = [float(values[block != c - 1, c].double().mean()) for c in range(1 + count)]
        # Radii shrink as sets grow, so these do not approach their limits as 1/N: no bias is told.
        return replace(from_blocks(means[0], means[1:]), bias=math.nan)

    return Neighbourhoods(
        precision=over(held > 0, in_a),
        recall=over(recalled, in_b),
        density=over(held.double() / k, in_a),
        coverage=over(covered, in_b),
    )


def _balls(rows: Tensor, k: int, block: Tensor, count: int) -> Tensor:
    """Squared radii ``(N, 1 + count)``: of all the rows, then without each block; -1 for a row that is deleted.

    Rounding must not push a copy out of a ball whose border it stands on, so the radii have a little slack.
    """
    # One block of 20 takes few of the neighbours: 4 k + 20 of them leave k.
    distances, found = nearest(rows, rows, min(len(rows) - 1, 4 * k + 20), same=True)
    slack = 1e-13 * float(rows.square().sum(dim=1).max())
    radii = []
    for c in range(1 + count):
        alive = (block[found] != c - 1).cumsum(dim=1)
        kth = (alive < k).sum(dim=1, keepdim=True).clamp_max(found.shape[1] - 1)
        squares = distances.gather(1, kth)[:, 0].square() + slack
        radii.append(torch.where(block == c - 1, -1.0, squares))
    return torch.stack(radii, dim=1)
