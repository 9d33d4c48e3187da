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
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from .measurement import Measurement, jackknife
from .ranks import share_above
from .rows import as_rows, nearest

__all__ = ["HELD_OUT", "Copies", "find_copies"]

HELD_OUT = 20  # rows at least, to say how near new data come


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
