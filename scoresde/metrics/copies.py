"""Does a generator copy its training data? Each sample's nearest training row, calibrated on held-out data.

For a sample x, let t be the nearest training row, d(x) = |x - t| the distance to t, and r_k(t) the distance from t to
the k-th nearest other training row. The ratio

    rho(x) = d(x) / r_k(t)                                                                           (1)

is 0 for a copy and of order one for a new sample, in dense and in sparse regions alike. Models copy duplicated training
rows first. With k = 5, a training row that occurs two or three times still has r_k above 0, so that copies of that row
are found.

A sample counts as a copy if rho is smaller than it would ever be for new data. Held-out rows are new, and the chance
that one of them lies close to a training row falls as a power of the ratio. The exponent is the local dimension of the
data:

    P(rho < r) = (K / m) (r / u)^kappa,    r < u,                                                    (2)

where u is the (K+1)-th smallest ratio of m held-out rows, and K = m/4. Then log(u / rho) is exponentially distributed
with rate kappa. If K such values sum to S, the chance that the next one exceeds L is exactly (1 + L / S)^-K, although
kappa is unknown. The p-value of a sample is therefore

    p(x) = (K / m) (1 + log(u / rho(x)) / S)^-K,                                                     (3)

which is 0 for a copy. The sample is *flagged* if p < level / N: among N new rows the chance of any flag is about
``level``. If some held-out rows are themselves copies of training rows (real data contain duplicates), a copy among the
samples proves nothing and is not flagged.

Two statistics describe the set as a whole. *Authenticity* (Alaa et al.) is the fraction of samples that are further
from t than t is from its own nearest neighbour. The fraction is also below 1 for held-out rows, and the fraction of
held-out rows is reported for comparison. *Closer* (Meehan et al.) is the chance that a sample is nearer to the training
data than a held-out row is. The chance is 1/2 for new data; for blurred samples it exceeds 1/2 although nothing is
copied.

References:
    Alaa, van Breugel, Saveliev and van der Schaar (2022), How faithful is your synthetic data?, arXiv:2102.08921,
    section 4.3.
    Meehan, Chaudhuri and Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
    arXiv:2004.05675.
    Hill (1975), A simple general approach to inference about the tail of a distribution, Annals of Statistics 3.
    Levina and Bickel (2004), Maximum likelihood estimation of intrinsic dimension, NIPS 17: the power in (2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import COUNT, SHARE, checked
from .measurement import Measurement, jackknife
from .ranks import share_above
from .rows import as_rows, nearest, squared_distances

__all__ = ["HELD_OUT", "Copies", "find_copies", "nearest_line"]

HELD_OUT = 20  # smallest number of held-out rows that can calibrate the test
LOOKED_AT = 100  # largest number of samples, and of held-out rows, checked at the end of training
READ = 2**28  # largest number of values of the training data that this check reads
COARSE = 512  # numbers per row used in the coarse search for neighbours
CANDIDATES = 8  # number of coarse neighbours whose distances are then measured with all numbers


@dataclass(frozen=True, eq=False)
class Copies:
    """The nearest training row of each sample, and the result of the test for copies.

    Attributes:
        nearest: Index of the nearest training row, int64 ``(N,)``.
        distance: Distance to that row, ``(N,)``, in the units of the rows.
        ratio: The ratio (1), ``(N,)``.
        p_value: The p-value (3), ``(N,)``.
        level: The chance that N new rows would produce any flag.
        closer: The chance that a sample is nearer to the training rows than a held-out row is.
        authenticity: Fraction of the samples that are further from their nearest training row than that row is from its
            own nearest neighbour.
        authenticity_held_out: The same fraction for the held-out rows.
        exact: Number of samples with a distance of 0.
        exact_held_out: Number of held-out rows with a distance of 0.
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
        """Indices of the samples that are too close to be new data, the most suspicious first, int64 ``(F,)``."""
        return self.suspects[: int((self.p_value * len(self.p_value) < self.level).sum())]

    @property
    def suspects(self) -> Tensor:
        """Indices of all samples, ``(N,)``, the most suspicious first."""
        return self.ratio.argsort(stable=True)


@checked(k=COUNT, level=SHARE)
def find_copies(x: Tensor, train: Tensor, held_out: Tensor, *, k: int = 5, level: float = 0.01) -> Copies:
    """Look for copies of training rows among samples.

    Args:
        x: Samples, shape ``(N, *event)``: pixels, or features extracted from them.
        train: The data the model was trained on, ``(T, *event)``.
        held_out: Data of the same kind that the model was not trained on, ``(m, *event)``; at least :data:`HELD_OUT`
            rows.
        k: The scale of a training row is the distance to its k-th nearest neighbour.
        level: The chance of any flag if all samples are new.

    Raises:
        UsageError: If the shapes differ, a value is not finite, there are too few rows, or the level is not between
            0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of the test for copies must lie between 0 and 1: got {level:g}")
    shapes = {tuple(z.shape[1:]) for z in (x, train, held_out)}
    if len(shapes) > 1:
        raise UsageError(
            f"samples, training and held-out rows must have the same shape: got {', '.join(map(str, shapes))}"
        )
    if len(held_out) < HELD_OUT or len(train) <= k:
        raise UsageError(
            f"there are {len(held_out)} held-out and {len(train)} training rows, but finding copies needs at least "
            f"{HELD_OUT} held-out rows and {k} neighbours of each training row; hold out more rows when training",
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
    """Find the training row nearest to each row of ``x``.

    The result is the distance and the index of the training row, the ratio (1), and the distance from the training row
    to its own nearest neighbour, each ``(N,)``.
    """
    distance, index = (found[:, 0] for found in nearest(x, train, 1))
    needed, back = torch.unique(index, return_inverse=True)
    # The nearest neighbour of a training row is the row itself, at distance 0; k others follow.
    around = nearest(train[needed], train, k + 1)[0][back]
    ratio = torch.where(distance == 0, 0.0, distance / around[:, k])
    return distance, index, ratio, around[:, 1]


def _p_values(ratio: Tensor, held_out: Tensor) -> Tensor:
    """The p-value (3) of each ratio ``(N,)``, given the ratios of held-out rows ``(m,)``."""
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
    """Estimate ``P(distance < held_out) + P(equal) / 2``."""
    return 1 - share_above(distance, held_out)


def _share(found: Tensor) -> float:
    return float(found.double().mean())


# ------------------------------------------------------------------------------------------------------ in one line


def nearest_line(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
    units: Callable[[Tensor], Tensor] = torch.Tensor.float,
    *,
    level: float = 0.01,
) -> str:
    """Summarise in one line how far a few samples and held-out rows are from the training data.

    The line is printed at the end of training. The rule of :func:`find_copies` is applied to at most :data:`LOOKED_AT`
    samples and as many held-out rows, which takes a second or two. Candidates for neighbours are found from
    :data:`COARSE` numbers of each row, and their distances are then measured with all numbers. The scale around a
    training row is the distance to its nearest neighbour among every fifth training row, which is close to the distance
    to its fifth neighbour.

    Args:
        samples: The samples, shape ``(N, *event)``. Rows that are not finite are left out.
        train: Training rows, ``(T, *event)``.
        held_out: Rows that were not trained on, ``(m, *event)``; may be empty.
        units: Function that converts a slab of rows to the units in which they are compared, such as
            ``codec.continuous.to_model``. Without conversion, one column of a table can outweigh the others.
        level: The chance of any flag if all samples are new.
    """
    if samples.is_floating_point():
        samples = samples[samples.flatten(1).isfinite().all(1)]
    if not len(samples) or len(train) < 2:
        return (
            f"distance to the nearest training sample: not computed for {len(samples)} samples and {len(train)} "
            "training samples"
        )
    size = max(1, train[0].numel())
    step = -(-len(train) * size // READ)
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
    """Find the training row nearest to each row of ``x: (N, d)``, and return its distance and its index, ``(N,)``.

    Only one slab of the training rows at a time is held as floating-point numbers. Copies have a distance of exactly 0;
    with ``other``, copies are ignored.
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
