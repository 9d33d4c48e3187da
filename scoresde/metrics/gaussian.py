"""The Fréchet distance between two sets of samples.

The distance d is the 2-Wasserstein distance between two Gaussians with the means m1 and m2 and the covariances S1 and
S2 of the two sets:

    d^2 = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1^{1/2} S2 S1^{1/2})^{1/2}).                        (1)

The functions return d^2, as is usual in the FID literature. Covariances are computed with the divisor N - 1. The last
trace is the sum of the square roots of the eigenvalues of S1^{1/2} S2 S1^{1/2} = A A^T, where A = S1^{1/2} S2^{1/2}.
These square roots are computed as the singular values of A, which are real and never negative. Taking the roots of the
eigenvalues of a singular matrix would instead introduce errors of size sqrt(eps), where eps is the machine epsilon.

The estimate is biased upwards. The bias depends on the features and falls as 1/N with the size N of the sets, so values
are comparable only at equal N. Chong and Forsyth extrapolate to 1/N = 0 from several sizes N. The jackknife estimate of
the bias is equivalent to an extrapolation from the two sizes N and N (B - 1)/B, where B is the number of blocks.

References:
    Dowson and Landau (1982), The Fréchet distance between multivariate normal distributions, JMVA 12,
    eq. (4).
    Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter (2017), GANs trained by a two time-scale update rule
    converge to a local Nash equilibrium, arXiv:1706.08500, eq. (6).
    Chong and Forsyth (2020), Effectively unbiased FID and Inception score and where to find them, arXiv:1911.07023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import SEVERAL, checked
from .measurement import BLOCKS, Measurement, jackknife
from .rows import as_rows, pair

__all__ = ["Moments", "frechet", "frechet_distance"]


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean and covariance of a set of features.

    Attributes:
        n: Number of rows in the set.
        mean: Mean of the rows, shape ``(d,)``, float64.
        covariance: Sample covariance with divisor n - 1, shape ``(d, d)``, float64.
    """

    n: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Compute the moments of features ``(N, d)``.

        Raises:
            UsageError: If there are fewer than 2 rows, or a value is not finite.
        """
        rows = as_rows(x, "x")
        mean = rows.mean(dim=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred / (len(rows) - 1))

    def distance(self, other: Moments) -> float:
        """Compute the squared Fréchet distance of equation 1, in squared units of the features.

        The result is never negative.

        Raises:
            UsageError: If the two sets have different numbers of features.
        """
        if self.mean.shape != other.mean.shape:
            raise UsageError(
                f"both sets must have the same number of features, got {len(self.mean)} and {len(other.mean)}"
            )
        mean, covariance = other.mean.to(self.mean.device), other.covariance.to(self.mean.device)
        shift = float((self.mean - mean).square().sum())
        cross = float(torch.linalg.svdvals(_root(self.covariance) @ _root(covariance)).sum())
        return max(0.0, shift + float(self.covariance.trace()) + float(covariance.trace()) - 2 * cross)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Compute the squared Fréchet distance between Gaussians fitted to two sets of features, as used for FID.

    Args:
        x: Features, shape ``(N, d)``.
        y: Features, shape ``(M, d)``.

    Returns:
        The squared distance, in squared units of the features. It is never negative.

    Raises:
        UsageError: If the shapes are not ``(N, d)`` and ``(M, d)``, a value is not finite, or a set has
            fewer than 2 rows.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(frechet_distance(x, x + 3), 6)
    9.0
    """
    a, b = pair(x, y)
    if len(a) + len(b) < a.shape[1]:
        return _of_few(a, b)
    return Moments.of(a).distance(Moments.of(b))


def _of_few(x: Tensor, y: Tensor) -> float:
    """Compute equation 1 for fewer rows than features, without forming the covariance matrices."""
    means = [rows.mean(dim=0) for rows in (x, y)]
    a, b = ((rows - mean) / math.sqrt(len(rows) - 1) for rows, mean in zip((x, y), means, strict=True))
    # S1 = a^T a and S2 = b^T b, so the non-zero singular values of S1^{1/2} S2^{1/2} are those of a b^T.
    shift, cross = float((means[0] - means[1]).square().sum()), float(torch.linalg.svdvals(a @ b.mT).sum())
    return max(0.0, shift + float(a.square().sum()) + float(b.square().sum()) - 2 * cross)


@checked(blocks=SEVERAL)
def frechet(x: Tensor, y: Tensor | Moments, *, blocks: int = BLOCKS) -> Measurement:
    """Compute :func:`frechet_distance` with the jackknife estimates of its standard error and bias.

    Args:
        x: Features, shape ``(N, d)``.
        y: Features, shape ``(M, d)``, or their moments. If moments are given, the jackknife deletes
            blocks of ``x`` only.
        blocks: Number of jackknife blocks, B. The distance is computed B + 1 times.
    """
    if isinstance(y, Moments):
        return jackknife(lambda rows: Moments.of(rows).distance(y), as_rows(x, "x"), blocks=blocks)
    return jackknife(frechet_distance, *pair(x, y), blocks=blocks)


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance, with negative eigenvalues replaced by zero."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root
