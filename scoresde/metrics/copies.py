"""A test for samples that are copies of training data, calibrated on held-out data.

For a sample x, let t be the nearest training row, d(x) = |x - t| the distance to t, and r_k(t) the distance from t to
the k-th nearest other training row. The ratio

    rho(x) = d(x) / r_k(t)                                                                           (1)

is 0 for an exact copy and of order one for a new sample, in dense and sparse regions alike. Models are most likely to
copy training rows that occur more than once. With k = 5, a training row that occurs two or three times still has
r_k > 0, so near copies of this row are also found.

A sample counts as a copy if rho is smaller than is plausible for new data. Held-out rows are new data, and the
probability that one of them lies close to a training row follows a power law in the ratio:

    P(rho < r) = (K / m) (r / u)^kappa,    r < u,                                                    (2)

where m is the number of held-out rows, K is m/4 (at least 10), u is the (K+1)-th smallest ratio of these rows, and the
exponent kappa is the local dimension of the data. For ratios below u, log(u / rho) is exponentially distributed with
rate kappa. If K such values sum to S, the probability that another value exceeds L is exactly (1 + L / S)^-K, whatever
the value of kappa. The p-value of a sample with rho < u is therefore

    p(x) = (K / m) (1 + log(u / rho(x)) / S)^-K,                                                     (3)

which is 0 for an exact copy. A sample is *flagged* if p < level / N, so that the probability of any flag among N new
samples is about ``level``. If the data contain duplicates, some held-out rows may themselves be copies of training
rows. In that case, a copy among the samples does not prove that the model copies, and it is not flagged.

Two statistics describe the samples as a whole. *Authenticity* (Alaa et al.) is the fraction of samples that are further
from t than t is from its own nearest neighbour. Because this fraction is below 1 even for held-out rows, the fraction
for held-out rows is reported as well. *Closer* (Meehan et al.) is the probability that a sample is nearer to the
training data than a held-out row is. It is 1/2 for new data. It exceeds 1/2 for blurred samples, even if none of them
is a copy.

References:
    Alaa, van Breugel, Saveliev and van der Schaar (2022), How faithful is your synthetic data?, arXiv:2102.08921,
    section 4.3.
    Meehan, Chaudhuri and Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
    arXiv:2004.05675.
    Hill (1975), A simple general approach to inference about the tail of a distribution, Annals of Statistics 3.
    Levina and Bickel (2004), Maximum likelihood estimation of intrinsic dimension, NIPS 17: the power law in
    equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import COUNT, SHARE, checked
from .measurement import Measurement, jackknife
from .rows import as_rows, nearest, squared_distances
from .shares import share_above

__all__ = ["HELD_OUT", "Copies", "find_copies", "nearest_line"]

HELD_OUT = 20  # smallest number of held-out rows that can calibrate the test
LOOKED_AT = 100  # largest number of samples, and of held-out rows, checked at the end of training
READ = 2**28  # largest number of values of the training data to read for the check at the end of training
READ_FROM_FILES = 2**25  # the same if the data stay in their files, because they must not fill the memory
COARSE = 512  # number of values per row used in the coarse search for neighbours
CANDIDATES = 8  # number of candidates from the coarse search whose exact distances are computed


@dataclass(frozen=True, eq=False)
class Copies:
    """The nearest training row of each sample and the results of the test for copies.

    Attributes:
        nearest: Index of the nearest training row, int64 ``(N,)``.
        distance: Distance to this row, in the units of the rows, ``(N,)``.
        ratio: The ratio rho of equation 1, ``(N,)``.
        p_value: The p-value of equation 3, ``(N,)``.
        level: Probability that any sample is flagged if all N samples are new.
        closer: Probability that a sample is nearer to the training rows than a held-out row is.
        authenticity: Fraction of samples that are further from their nearest training row than that row is from its
            own nearest neighbour.
        authenticity_held_out: The same fraction for the held-out rows.
        exact: Number of samples at distance 0.
        exact_held_out: Number of held-out rows at distance 0.
    """

    nearest: Tensor
    distance: Tensor
    ratio: Tensor
    p_value: Tensor
    level: float
    closer: Measurement
    authenticity: Measurement
    authenticity_held_out: Measurement
    exact: int
    exact_held_out: int

    @property
    def flagged(self) -> Tensor:
        """Indices of the flagged samples, the most suspicious first, int64 ``(F,)``."""
        return self.suspects[: int((self.p_value * len(self.p_value) < self.level).sum())]

    @property
    def suspects(self) -> Tensor:
        """Indices of all samples, the most suspicious first, int64 ``(N,)``."""
        return self.ratio.argsort(stable=True)


@checked(k=COUNT, level=SHARE)
def find_copies(x: Tensor, train: Tensor, held_out: Tensor, *, k: int = 5, level: float = 0.01) -> Copies:
    """Test whether samples are copies of training rows.

    Args:
        x: Samples, or features extracted from samples, shape ``(N, *event)``.
        train: Training rows, ``(T, *event)``.
        held_out: At least :data:`HELD_OUT` rows of the same kind that were not used for training, ``(m, *event)``.
        k: Rank of the neighbour in the denominator of equation 1.
        level: Probability that any sample is flagged if all samples are new.

    Raises:
        UsageError: If the shapes differ, a value is not finite, there are too few rows, or the level is not between
            0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of the test for copies must be between 0 and 1, got {level:g}")
    shapes = {tuple(z.shape[1:]) for z in (x, train, held_out)}
    if len(shapes) > 1:
        raise UsageError(
            f"samples, training rows and held-out rows must have the same shape, got {', '.join(map(str, shapes))}"
        )
    if len(held_out) < HELD_OUT or len(train) <= k:
        raise UsageError(
            f"the test for copies needs at least {HELD_OUT} held-out rows and more than {k} training rows, "
            f"got {len(held_out)} held-out and {len(train)} training rows; hold out more rows when training",
            parameter="test_fraction",
            value=0.2,
        )
    rows = as_rows(train, "train", x.device)
    distance, index, ratio, own = _ratios(as_rows(x, "x"), rows, k)
    held_distance, _, held_ratio, held_own = _ratios(as_rows(held_out, "held_out", x.device), rows, k)
    return Copies(
        nearest=index,
        distance=distance,
        ratio=ratio,
        p_value=_p_values(ratio, held_ratio),
        level=level,
        closer=jackknife(_closer, distance, held_distance),
        authenticity=jackknife(_share, distance > own),
        authenticity_held_out=jackknife(_share, held_distance > held_own),
        exact=int((distance == 0).sum()),
        exact_held_out=int((held_distance == 0).sum()),
    )


def _ratios(x: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the training row nearest to each row of ``x``, and compute the ratio of equation 1.

    Returns:
        The distance to this training row, the index of this row, the ratio, and the distance from this row to its
        nearest neighbour.
    """
    distance, index = (found[:, 0] for found in nearest(x, train, 1))
    needed, back = torch.unique(index, return_inverse=True)
    # The nearest neighbour of a training row is the row itself, at distance 0; k others follow.
    around = nearest(train[needed], train, k + 1)[0][back]
    ratio = torch.where(distance == 0, 0.0, distance / around[:, k])
    return distance, index, ratio, around[:, 1]


def _p_values(ratio: Tensor, held_out: Tensor) -> Tensor:
    """Return the p-values of samples (equation 3), given the ratios of the samples and of held-out rows."""
    ordered, m = held_out.sort().values, len(held_out)
    tail = min(m // 2, max(10, m // 4))
    u, below = ordered[tail], ordered[:tail]
    total = float((u / below).log().sum())
    if not 0 < total < math.inf:  # copies among the held-out rows, or many equal ratios: count instead of extrapolating
        return (1 + torch.searchsorted(ordered, ratio, right=True)) / (m + 1)
    excess = (u / ratio).log().clamp_min(0)
    smooth = tail / m * (1 + excess / total) ** -tail
    return torch.where(ratio < u, smooth, torch.searchsorted(ordered, ratio, right=True) / m)


def _closer(distance: Tensor, held_out: Tensor) -> float:
    """Estimate ``P(distance < held_out) + P(distance = held_out) / 2``."""
    return 1 - share_above(distance, held_out)


def _share(found: Tensor) -> float:
    return float(found.double().mean())


# -------------------------------------------------------------------------------------------------- one-line summary


class Readable(Protocol):
    """Rows ``(n, *event)`` that can be sliced: a tensor, or rows that stay in their files."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int | slice, /) -> Tensor:
        """Return a row ``(*event,)``, or the rows of a slice ``(m, *event)``."""
        ...


def nearest_line(
    samples: Tensor,
    train: Readable,
    held_out: Readable,
    units: Callable[[Tensor], Tensor] = torch.Tensor.float,
    *,
    level: float = 0.01,
) -> str:
    """Summarise in one line how far samples and held-out rows are from the training data.

    The line is printed at the end of training. The test of :func:`find_copies` is applied to at most :data:`LOOKED_AT`
    samples and at most as many held-out rows, which takes a second or two. Candidates for nearest neighbours are found
    from at most :data:`COARSE` values of each row, and the distances to them are then computed from all values. To save
    time, the distance from a training row to its fifth nearest neighbour is approximated by the distance to its nearest
    neighbour among every fifth training row.

    Args:
        samples: Samples, shape ``(N, *event)``. Samples with non-finite values are left out.
        train: Training rows, ``(T, *event)``.
        held_out: Rows that were not used for training, ``(m, *event)``. There may be none.
        units: Function that converts rows to the units in which distances are computed, such as
            ``codec.continuous.to_model``. Without such a conversion, one column of a table can outweigh the others.
        level: Probability that any sample is flagged if all samples are new.
    """
    if samples.is_floating_point():
        samples = samples[samples.flatten(1).isfinite().all(1)]
    if not len(samples) or len(train) < 2:
        return (
            "distance to the nearest training sample: not computed, because it requires at least 1 finite sample and 2 "
            f"training samples (got {len(samples)} and {len(train)})"
        )
    size = max(1, train[0].numel())
    step = -(-len(train) * size // (READ if isinstance(train, Tensor) else READ_FROM_FILES))
    most = min(LOOKED_AT, max(HELD_OUT, 2**24 // size))
    rows, new = train[::step], samples[:most]
    kept = held_out[:: max(1, len(held_out) // most)][:most]

    def flat(x: Tensor) -> Tensor:
        return units(x if x.is_floating_point() else x.double()).flatten(1).to(torch.float32)

    x = torch.cat([flat(part) for part in (new, kept) if len(part)])
    distance, index = _nearest_in_slabs(x, rows, flat)
    needed, back = torch.unique(index, return_inverse=True)
    around = _nearest_in_slabs(flat(rows[needed]), rows[:: 5 if len(rows) > 5 * HELD_OUT else 1], flat, other=True)[0]
    ratio = torch.where(distance == 0, 0.0, distance / around[back])
    ours, theirs = distance[: len(new)], distance[len(new) :]
    text = f"distance to the nearest training sample: {float(ours.median()):.3g} for samples"
    text += f", {float(theirs.median()):.3g} for held-out samples" if len(theirs) else ""
    text += f" (medians of {len(ours)}" + (f" and {len(theirs)}" if len(theirs) else "")
    text += f", against one in {step} training samples)" if step > 1 else ")"
    exact, exact_new = int((ours == 0).sum()), int((theirs == 0).sum())
    if exact or exact_new:
        text += f"; exact copies: {exact} among samples, {exact_new} among held-out samples"
    if len(theirs) >= HELD_OUT:
        p = _p_values(ratio[: len(ours)].double(), ratio[len(ours) :].double())
        text += f"; samples closer than new data would be: {int((p * len(p) < level).sum()) or 'none'}"
    return text


def _nearest_in_slabs(
    x: Tensor, train: Tensor, flat: Callable[[Tensor], Tensor], other: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the distance from each row of ``x: (N, d)`` to its nearest training row, and the index of that row.

    If ``other`` is true, training rows at distance 0 are ignored.
    """
    some, slab = slice(None, None, -(-x.shape[1] // COARSE)), max(1, 2**19 // x.shape[1])
    centre = flat(train[:slab])[:, some].mean(0)  # to limit cancellation in |a|^2 + |b|^2 - 2 a.b
    moved = x[:, some] - centre
    best, index = torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64)
    for start in range(0, len(train), slab):
        table = squared_distances(moved, flat(train[start : start + slab])[:, some] - centre)
        near = table.topk(min(CANDIDATES, table.shape[1]), largest=False)
        best, index = torch.cat([best, near.values], 1), torch.cat([index, near.indices + start], 1)
        keep = best.topk(min(CANDIDATES, best.shape[1]), largest=False).indices
        best, index = best.gather(1, keep), index.gather(1, keep)
    exact = torch.stack([(flat(train[j]) - row).norm(dim=1) for row, j in zip(x, index, strict=True)])
    found = (exact.where(exact > 0, torch.inf) if other else exact).min(1)
    return found.values, index.gather(1, found.indices[:, None])[:, 0]
