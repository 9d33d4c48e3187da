r"""Does a path end where samples begin?

At ``t_max`` the data are ``x = alpha x_0 + sigma eps``, and samples begin at the prior N(0, P^2). The flow between them
is what it is, so that samples inherit the difference. For Gaussian data of standard deviation s, x has the variance
``alpha^2 s^2 + sigma^2``, the flow is linear, and the variance of the samples is off by the factor

    P^2 / (alpha^2 s^2 + sigma^2),                                                                          (1)

and that of coordinates that hardly vary by ``P^2/sigma^2``. Neither says all: with s = P = 1 a path that preserves the
variance has (1) equal to 1 however little noise there is, and still begins with noise where there is a share

    alpha^2 s^2 / (alpha^2 s^2 + sigma^2)                                                                   (2)

of data. A prior fits where (2), and what (1) is off, are at most 0.01: up to there it costs at most 0.005 nats per
dimension, KL( N(alpha x_0, sigma^2) | N(0, P^2) ) averaged over the data, which is less than the 0.01 bits that
likelihoods are checked to. The published paths are within: (2) is 4e-5 for VP and DDPM, 0.005 for the schedule of
latent diffusion and 0.007 for VDM, the largest; it is 0 for flow matching and the cosine.

Where nothing is shrunk, alpha = 1, the noise at the end also has to reach across the data, or a sample stays near where
it began: its deviation is at least the largest distance between two of them (Song and Ermon 2020, arXiv:2006.09011,
technique 1).
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
    """What is there at the end of a path, beside its prior.

    Attributes:
        sde: The path.
        alpha, sigma: Its coefficients at the end.
        spread: Root mean square of the data, model units.
        furthest: The largest distance between two of them, model units; ``None`` if it is not known.
    """

    sde: SDE
    alpha: float
    sigma: float
    spread: float = 1.0
    furthest: float | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, sde: SDE, t_max: float | None = None, spread: float = 1.0, furthest: float | None = None) -> Reach:
        """Of a path at ``t_max`` (default: its own).

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
        """The share (2) of the variance that is the data's."""
        data = (self.alpha * self.spread) ** 2
        return data / (data + self.sigma**2)

    @property
    def variance(self) -> float:
        """By how much of itself the variance (1) of samples of Gaussian data is too large."""
        return self.sde.prior.std**2 / ((self.alpha * self.spread) ** 2 + self.sigma**2) - 1

    @property
    def still(self) -> float:
        """The same for coordinates that hardly vary."""
        return (self.sde.prior.std / self.sigma) ** 2 - 1

    @property
    def short(self) -> str:
        """What does not fit, in a line; empty where all does."""
        if max(self.share, abs(self.variance), abs(self.still)) > MISFIT:
            return (
                f"the prior does not fit: {self.share:.2g} of the variance at t_max is the data's (alpha = "
                f"{self.alpha:.2g}), and the variance of samples is off by {_percent(self.variance)} (Gaussian "
                f"data) to {_percent(self.still)} (coordinates that hardly vary)"
            )
        if self.furthest is not None and explodes(self.sde) and self.sigma / self.alpha < self.furthest:
            return (
                f"the noise at the end, {self.sigma / self.alpha:.3g}, does not reach across the data, two of which "
                f"lie {self.furthest:.4g} apart"
            )
        return ""

    @property
    def advice(self) -> Advice | None:
        """What does not fit, and what would put it right; ``None`` where all fits."""
        if not self.short:
            return None
        path = self.sde
        while isinstance(path, Shifted | Stretch):
            path = path.path
        field, value = path.more_noise or (None, None)
        how = "alpha nearer to 0, or sigma larger, at t_max" if field is None else f"{field}={value}"
        if field == "sigma_max" and self.furthest is not None:
            how += f", which is {sigma_for(self.furthest, self.spread):g} here"
        told = f"{self.short}; train with more noise at the end of {type(path).__name__}, {how}"
        return Advice(told, parameter=None if field is None else f"sde.{field}", value=value)


def explodes(sde: SDE) -> bool:
    """Whether nothing of the data is shrunk along the path, so that its noise has to reach across them."""
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    with torch.no_grad():
        first, last = sde.coefficients(ends)[0].tolist()
    return bool(abs(first - last) <= 1e-12 * first)


def sigma_for(furthest: float, spread: float = 0.0) -> float:
    """The highest noise level of a path that shrinks nothing, to four digits and not below.

    Args:
        furthest: The largest distance between two samples, model units: it reaches across it.
        spread: Their root mean square. In few dimensions it is not much less, and (2) asks for ten times as much.

    >>> sigma_for(12.34567, 1.0), sigma_for(4.53, 1.0)
    (12.35, 9.955)
    """
    return float(f"{1.0005 * max(furthest, spread * math.sqrt(1 / MISFIT - 1)):.4g}")


def _percent(part: float) -> str:
    return f"{round(100 * part) + 0:+,d} %"
