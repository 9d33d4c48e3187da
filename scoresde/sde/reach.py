r"""Check that a path ends where samples begin, that is, that its prior fits.

At ``t_max``, noisy data are distributed as ``x = alpha x_0 + sigma eps``, but samples begin at the prior N(0, P^2). The
flow does not correct this difference, so the samples inherit it. For Gaussian data of standard deviation s, x has the
variance ``alpha^2 s^2 + sigma^2``, the flow is linear, and the variance of the samples is off by the factor

    P^2 / (alpha^2 s^2 + sigma^2),                                                                          (1)

or by ``P^2/sigma^2`` for coordinates that hardly vary. That these factors are near 1 is not sufficient. With s = P = 1,
for example, (1) equals 1 on a variance-preserving path however little noise there is, although sampling begins with
pure noise at a time when the fraction

    alpha^2 s^2 / (alpha^2 s^2 + sigma^2)                                                                   (2)

of the variance belongs to the data. A prior fits if (2) and the deviations of both factors from 1 are at most 0.01. The
misfit then costs at most 0.005 nats per dimension (KL( N(alpha x_0, sigma^2) | N(0, P^2) ), averaged over the data),
which is less than the 0.01 bits to which likelihoods are checked. The published paths satisfy this criterion: (2) is
4e-5 for VP and DDPM, 0.005 for the schedule of latent diffusion, 0.007 (the largest value) for VDM, and 0 for flow
matching and cosine.

On a path that does not shrink the data (alpha = 1), the noise at the end must also reach across the data; otherwise, a
sample stays near where it began. The standard deviation of this noise must be at least the largest distance between two
samples (Song and Ermon 2020, arXiv:2006.09011, technique 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..core.errors import Advice
from .base import SDE
from .modified import Shifted, Stretch

__all__ = ["MISFIT", "Reach", "explodes", "sigma_for"]

MISFIT = 0.01


@dataclass(frozen=True)
class Reach:
    """The data and the noise at the end of a path, for comparison with the prior.

    Attributes:
        sde: The path.
        alpha, sigma: Coefficients of the path at its end.
        spread: Root mean square of the data, in model units.
        furthest: The largest distance between two data points, in model units, or ``None`` if it is unknown.
    """

    sde: SDE
    alpha: float
    sigma: float
    spread: float = 1.0
    furthest: float | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, sde: SDE, t_max: float | None = None, spread: float = 1.0, furthest: float | None = None) -> Reach:
        """Evaluate a path at ``t_max`` (default: the path's own ``t_max``).

        >>> from scoresde import VPSDE
        >>> reach = Reach.of(VPSDE(beta_max=0.5), spread=0.5)
        >>> f"{reach.alpha:.2f} {reach.share:.2f} {reach.variance:+.2f}"
        '0.86 0.42 +1.25'
        """
        end = torch.tensor(sde.t_max if t_max is None else t_max, dtype=torch.float64)
        alpha, sigma = (float(c) for c in sde.coefficients(end))
        return cls(sde, alpha, sigma, spread, furthest)

    @property
    def share(self) -> float:
        """The fraction of the variance that belongs to the data, equation (2)."""
        data = (self.alpha * self.spread) ** 2
        return data / (data + self.sigma**2)

    @property
    def variance(self) -> float:
        """Relative error of the variance of the samples for Gaussian data: the factor of equation (1), minus 1."""
        return self.sde.prior.std**2 / ((self.alpha * self.spread) ** 2 + self.sigma**2) - 1

    @property
    def still(self) -> float:
        """Relative error of the variance of the samples in coordinates in which the data hardly vary."""
        return (self.sde.prior.std / self.sigma) ** 2 - 1

    @property
    def short(self) -> str:
        """A one-line description of the misfit, or an empty string if the prior fits."""
        if max(self.share, abs(self.variance), abs(self.still)) > MISFIT:
            return (
                f"the prior does not fit: a fraction {self.share:.2g} of the variance at t_max belongs to the data "
                f"(alpha = {self.alpha:.2g}), and the variance of samples is off by {_percent(self.variance)} (for "
                f"Gaussian data) to {_percent(self.still)} (in coordinates that hardly vary)"
            )
        if self.furthest is not None and explodes(self.sde) and self.sigma / self.alpha < self.furthest:
            return (
                f"the noise level at t_max, {self.sigma / self.alpha:.3g}, is too low to reach across the data: two "
                f"data points lie {self.furthest:.4g} apart"
            )
        return ""

    @property
    def advice(self) -> Advice | None:
        """A description of the misfit and how to fix it, or ``None`` if the prior fits."""
        if not self.short:
            return None
        path = self.sde
        while isinstance(path, Shifted | Stretch):
            path = path.path
        field, value = path.more_noise or (None, None)
        how = "alpha closer to 0, or a larger sigma, at t_max" if field is None else f"{field}={value}"
        if field == "sigma_max" and self.furthest is not None:
            how += f", which is {sigma_for(self.furthest, self.spread):g} here"
        told = f"{self.short}; train with more noise at the end of {type(path).__name__}: {how}"
        return Advice(told, parameter=None if field is None else f"sde.{field}", value=value)


def explodes(sde: SDE) -> bool:
    """Return whether the path leaves the data unshrunk, so that its noise must reach across the data."""
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    with torch.no_grad():
        first, last = sde.coefficients(ends)[0].tolist()
    return bool(abs(first - last) <= 1e-12 * first)


def sigma_for(furthest: float, spread: float = 0.0) -> float:
    """Return a suitable ``sigma_max`` for a path that does not shrink the data, to four significant digits.

    Args:
        furthest: The largest distance between two samples, in model units, across which the noise must reach.
        spread: Root mean square of the samples. In few dimensions, the spread is not much smaller than ``furthest``,
            and a prior that fits then requires a noise level of about ten times the spread (equation (2)).

    >>> sigma_for(12.34567, 1.0), sigma_for(4.53, 1.0)
    (12.35, 9.955)
    """
    return float(f"{1.0005 * max(furthest, spread * math.sqrt(1 / MISFIT - 1)):.4g}")


def _percent(part: float) -> str:
    return f"{round(100 * part) + 0:+,d} %"
