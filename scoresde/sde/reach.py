r"""A check that the prior fits the end of a path.

At ``t_max``, noisy data are distributed as ``x = alpha x_0 + sigma eps``, but sampling starts from the prior N(0, P^2).
The flow does not correct this difference, so the samples inherit it. For Gaussian data with standard deviation s, x has
the variance ``alpha^2 s^2 + sigma^2``, the flow is linear, and the variance of the samples is off by the factor

    P^2 / (alpha^2 s^2 + sigma^2),                                                                          (1)

or by ``P^2/sigma^2`` in coordinates in which the data hardly vary. It is not enough for these factors to be near 1. For
example, on a variance-preserving path with s = P = 1, the factor (1) is 1 however little noise there is. Sampling
then starts with pure noise, although the fraction

    alpha^2 s^2 / (alpha^2 s^2 + sigma^2)                                                                   (2)

of the variance of x comes from the data. A prior fits if this fraction is at most 0.01 and both factors deviate from 1
by at most 0.01. The misfit then costs at most 0.005 nats per dimension (the KL divergence of N(alpha x_0, sigma^2) from
N(0, P^2), averaged over the data). This is less than 0.01 bits per dimension, the tolerance used to check that a
likelihood has converged. The published paths satisfy this criterion. The fraction (2) is 4e-5 for VP and DDPM, 0.005
for the latent diffusion schedule, 0.007 for VDM (the largest value), and 0 for flow matching and cosine.

If alpha = 1, the standard deviation of the noise at the end must also be at least the largest distance between two data
points (Song and Ermon 2020, arXiv:2006.09011, technique 1). Otherwise, a sample stays near its starting point.
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
    """The coefficients of the signal and the noise at the end of a path, for comparison with the prior.

    Attributes:
        sde: The path.
        alpha, sigma: The coefficients of the path at its end. If they differ between coordinates, those of the
            coordinate with the most signal.
        spread: Root mean square of the data, in model units.
        furthest: The largest distance between two data points, in model units, or ``None`` if it is unknown.
        std: Standard deviation of the prior.
    """

    sde: SDE
    alpha: float
    sigma: float
    spread: float = 1.0
    furthest: float | None = None
    std: float = 1.0

    @classmethod
    @torch.no_grad()
    def of(cls, sde: SDE, t_max: float | None = None, spread: float = 1.0, furthest: float | None = None) -> Reach:
        """Build a :class:`Reach` from the coefficients of ``sde`` at ``t_max`` (default: the end of the path).

        >>> from scoresde import VPSDE
        >>> reach = Reach.of(VPSDE(beta_max=0.5), spread=0.5)
        >>> f"{reach.alpha:.2f} {reach.share:.2f} {reach.variance:+.2f}"
        '0.86 0.42 +1.25'
        """
        end = torch.tensor(sde.t_max if t_max is None else t_max, dtype=torch.float64)
        alpha, sigma = (c.flatten() for c in sde.coefficients(end))
        k = int((alpha / sigma).argmax())
        std = torch.as_tensor(sde.prior.std, dtype=torch.float64).flatten()
        return cls(sde, float(alpha[k]), float(sigma[k]), spread, furthest, float(std[k if len(std) > 1 else 0]))

    @property
    def share(self) -> float:
        """How much of the variance at the end comes from the data: the fraction (2)."""
        data = (self.alpha * self.spread) ** 2
        return data / (data + self.sigma**2)

    @property
    def variance(self) -> float:
        """The relative error of the samples' variance for Gaussian data, from equation (1)."""
        return self.std**2 / ((self.alpha * self.spread) ** 2 + self.sigma**2) - 1

    @property
    def still(self) -> float:
        """The relative error of the samples' variance in coordinates in which the data hardly vary."""
        return (self.std / self.sigma) ** 2 - 1

    @property
    def short(self) -> str:
        """A one-line description of the misfit, or an empty string if the prior fits."""
        if max(self.share, abs(self.variance), abs(self.still)) > MISFIT:
            return (
                f"the prior does not fit: a fraction of {self.share:.2g} of the variance at t_max comes from the data "
                f"(alpha = {self.alpha:.2g}), and the variance of the samples is off by {_percent(self.variance)} for "
                f"Gaussian data and by {_percent(self.still)} in coordinates in which the data hardly vary"
            )
        if self.furthest is not None and explodes(self.sde) and self.sigma / self.alpha < self.furthest:
            return (
                f"the noise level at t_max is {self.sigma / self.alpha:.3g}, which is less than the largest distance "
                f"between two data points, {self.furthest:.4g}"
            )
        return ""

    @property
    def advice(self) -> Advice | None:
        """A warning that describes the misfit and how to fix it, or ``None`` if the prior fits."""
        if not self.short:
            return None
        path = self.sde
        while isinstance(path, Shifted | Stretch):
            path = path.path
        field, value = path.more_noise or (None, None)
        how = "alpha closer to 0, or a larger sigma, at t_max" if field is None else f"{field}={value}"
        if field == "sigma_max" and self.furthest is not None:
            how += f", which is {sigma_for(self.furthest, self.spread):g} here"
        told = f"{self.short}; train with more noise at the end of the path ({type(path).__name__} with {how})"
        return Advice(told, parameter=None if field is None else f"sde.{field}", value=value)


def explodes(sde: SDE) -> bool:
    """Return whether alpha is constant, so that the noise must be as large as the distances in the data."""
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    with torch.no_grad():
        first, last = sde.coefficients(ends)[0]
    return bool(((first - last).abs() <= 1e-12 * first).all())


def sigma_for(furthest: float, spread: float = 0.0) -> float:
    """Return a suitable ``sigma_max`` for a path with alpha = 1, rounded to four significant digits.

    Args:
        furthest: The largest distance between two samples, in model units. The result is at least this distance.
        spread: Root mean square of the samples, in model units. The result is also at least about ten times this
            value, so that the fraction (2) is small enough. This matters only in few dimensions.

    >>> sigma_for(12.34567, 1.0), sigma_for(4.53, 1.0)
    (12.35, 9.955)
    """
    return float(f"{1.0005 * max(furthest, spread * math.sqrt(1 / MISFIT - 1)):.4g}")


def _percent(part: float) -> str:
    return f"{round(100 * part) + 0:+,d} %"
