"""Does a generator copy its training data? Each sample's nearest training row, calibrated on held-out data.

For a sample x let t be the nearest training row, d(x) = |x - t|, and r_k(t) the distance of t to its k-th nearest other
training row. The ratio

    rho(x) = d(x) / r_k(t)                                                                           (1)

is 0 for a copy and of order one for something new, in crowded and in empty regions alike; with k = 5 a training row
that is there two or three times, which is what models copy first, does not hide behind its twin.

How small must rho be? As small as new data never are. Held-out rows are new, and the chance that one comes close to a
training row falls like a power of the ratio, the power being the dimension of the data around it:

    P(rho < r) = (K / m) (r / u)^kappa,    r < u,                                                    (2)

with u the (K+1)-th smallest ratio of m held-out rows, K = m/4. Then log(u / rho) is exponential of rate kappa, K of
them sum to S, and the chance that the next one exceeds L, with kappa unknown, is exactly (1 + L / S)^-K. So a sample
has the p-value

    p(x) = (K / m) (1 + log(u / rho(x)) / S)^-K,                                                     (3)

0 for a copy, and it is *flagged* if p < level / N: among N new rows the chance of any flag is about ``level``. If
held-out rows are copies of training rows themselves (real data repeat), a copy among the samples proves nothing, and is
not flagged.

Two figures of the whole set go with it. *Authenticity* (Alaa et al.) is the share of samples that are further from t
than t is from its own nearest neighbour; held-out rows have a share below 1, too, which is given for comparison.
*Closer* (Meehan et al.) is the chance that a sample is nearer to the training data than a held-out row, 1/2 for new
data; blurred samples exceed it without copying anything.

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

HELD_OUT = 20  # rows at least, to say how near new data come
LOOKED_AT = 100  # samples at the end of a training, and as many held-out rows
READ = 2**28  # numbers of the training data that are read for it
COARSE = 512  # numbers of a row by which its neighbours are looked for there
CANDIDATES = 8  # that are measured by all of their numbers


@dataclass(frozen=True, eq=False)
class Copies:
    """The nearest training row of each sample, and what that says.

    Attributes:
        nearest: Index of the nearest training row, int64 ``(N,)``.
        distance: Distance to it, ``(N,)``, in the units of the rows.
        ratio: (1), ``(N,)``.
        p_value: (3), ``(N,)``.
        level: The chance of a flag among as many new rows.
        closer: The chance that a sample is nearer to the training rows than a held-out row.
        authenticity: Share of the samples that are further from their nearest training row than its own neighbour.
        authenticity_held_out: The same share of the held-out rows.
        exact: How many samples have a distance of 0.
        exact_held_out: How many held-out rows have one.
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
        """Indices of the samples that new data would not explain, the most suspicious first, int64 ``(F,)``."""
        return self.suspects[: int((self.p_value * len(self.p_value) < self.level).sum())]

    @property
    def suspects(self) -> Tensor:
        """Indices of all samples, ``(N,)``, the most suspicious first."""
        return self.ratio.argsort(stable=True)


@checked(k=COUNT, level=SHARE)
def find_copies(x: Tensor, train: Tensor, held_out: Tensor, *, k: int = 5, level: float = 0.01) -> Copies:
    """Look for copies of training rows among samples.

    Args:
        x: Samples, shape ``(N, *event)``: pixels, or features of them.
        train: What the model was trained on, ``(T, *event)``.
        held_out: Data of the same kind that it was not trained on, ``(m, *event)``; :data:`HELD_OUT` rows at least.
        k: The neighbour of a training row that gives its scale.
        level: The chance of a flag if all samples are new.

    Raises:
        UsageError: If the shapes differ, a value is not finite, there are too few rows, or the level is not between
            0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of the test for copies lies between 0 and 1: got {level:g}")
    shapes = {tuple(z.shape[1:]) for z in (x, train, held_out)}
    if len(shapes) > 1:
        raise UsageError(f"samples, training and held-out rows have one shape: got {', '.join(map(str, shapes))}")
    if len(held_out) < HELD_OUT or len(train) <= k:
        raise UsageError(
            f"{len(held_out)} held-out and {len(train)} training rows: copies are judged by at least {HELD_OUT} "
            f"held-out rows and {k} neighbours of a training row; hold out more when training",
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
    """Distance to the nearest training row, its index, (1), and its distance to its own nearest; each ``(N,)``."""
    distance, index = (found[:, 0] for found in nearest(x, train, 1))
    needed, back = torch.unique(index, return_inverse=True)
    # The nearest of a training row is itself, at 0: k others follow.
    around = nearest(train[needed], train, k + 1)[0][back]
    ratio = torch.where(distance == 0, 0.0, distance / around[:, k])
    return distance, index, ratio, around[:, 1]


def _p_values(ratio: Tensor, held_out: Tensor) -> Tensor:
    """(3) for each ratio ``(N,)``, given the ratios of held-out rows ``(m,)``."""
    ordered, m = held_out.sort().values, len(held_out)
    tail = min(m // 2, max(10, m // 4))
    u, below = ordered[tail], ordered[:tail]
    total = float((u / below).log().sum())
    if not 0 < total < math.inf:  # copies among the held-out rows, or many equal ratios: count, do not extrapolate
        return (1 + torch.searchsorted(ordered, ratio, right=True)) / (m + 1)
    excess = (u / ratio).log().clamp_min(0)
    smooth = tail / m * (1 + excess / total) ** -tail
    return torch.where(ratio < u, smooth, torch.searchsorted(ordered, ratio, right=True) / m)


def _closer(distance: Tensor, held_out: Tensor) -> float:
    """``P(distance < held_out) + P(equal) / 2``."""
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
    """How far a few samples are from the training data, beside held-out rows: one line for the end of a training.

    The rule is that of :func:`find_copies` on :data:`LOOKED_AT` samples and held-out rows, in a second or two.
    Neighbours are looked for by :data:`COARSE` of their numbers and measured by all, and the scale around a training
    row is the distance to the nearest in every fifth one, which is much the same as that to its fifth neighbour.

    Args:
        samples: Shape ``(N, *event)``; rows that are not finite are left out.
        train: Training rows, ``(T, *event)``.
        held_out: Rows that were not trained on, ``(m, *event)``, perhaps none.
        units: What takes rows to the units in which they are compared, a slab at a time, such as
            ``codec.continuous.to_model``: in those of a table one column outweighs the others.
        level: The chance of a flag if all samples are new.
    """
    if samples.is_floating_point():
        samples = samples[samples.flatten(1).isfinite().all(1)]
    if not len(samples) or len(train) < 2:
        return f"nearest training samples: nothing to say of {len(samples)} samples and {len(train)} training ones"
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
    text = f"nearest training samples: at {float(ours.median()):.3g} from samples"
    text += f", {float(theirs.median()):.3g} from held-out ones" if len(theirs) else ""
    text += f" (medians of {len(ours)}" + (f" and {len(theirs)}" if len(theirs) else "")
    text += f", against one in {step} training samples)" if step > 1 else ")"
    exact, exact_new = int((ours == 0).sum()), int((theirs == 0).sum())
    if exact or exact_new:
        text += f"; exact copies: {exact} of samples, {exact_new} of held-out ones"
    if len(theirs) >= HELD_OUT:
        p = _p_values(ratio[: len(ours)].double(), ratio[len(ours) :].double())
        text += f"; {int((p * len(p) < level).sum()) or 'none'} nearer than new data would be"
    return text


def _nearest_in_slabs(
    x: Tensor, train: Tensor, flat: Callable[[Tensor], Tensor], other: bool = False
) -> tuple[Tensor, Tensor]:
    """The nearest training row to each row ``x: (N, d)``: its distance and its index, ``(N,)``.

    Only a slab of the training rows is held as floating numbers. Copies have the distance 0, exactly; with ``other``
    they do not count.
    """
    some, slab = slice(None, None, -(-x.shape[1] // COARSE)), max(1, 2**19 // x.shape[1])
    centre = flat(train[:slab])[:, some].mean(0)  # so that little cancels in |a|^2 + |b|^2 - 2 a.b
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
