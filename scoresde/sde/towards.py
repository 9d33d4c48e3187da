r"""SDEs whose data drift towards a known signal y, such as a noisy recording or a blurred image.

The published processes have the mean  y + alpha(t) (x_0 - y)  and the standard deviation sigma(t). In the coordinates
z = x - y, the drift towards y becomes a drift towards 0, so each of them is a path

    z_t = alpha(t) z_0 + sigma(t) eps,      z = x - y,                                                           (1)

with one alpha and one sigma, and its likelihood in x is that in z. Train it with the space ``relative``
(:class:`scoresde.codec.Relative`), which subtracts y. All solvers, losses and likelihoods then apply without change. In
x, the drift of the published SDE is  f(t) (x - y),  where f is the drift rate of the path.

    ``mean-reverting``   dx = theta (y - x) dt + sqrt(2 theta) lambda dw              IR-SDE (Luo et al. 2023)
    ``ouve``             dx = gamma (y - x) dt + s_min (s_max/s_min)^t sqrt(2 k) dw    SGMSE+ (Richter et al. 2023)
    ``bbed``             dx = (y - x)/(1 - t) dt + c k^t dw                            SGMSE-BBED (Lay et al. 2023)
    ``bridge``           dx = (y - x)/(1 - t) dt + S dw                                I2SB (Liu et al. 2023)

The last two are Brownian bridges, which end at y itself and are therefore used only up to a time just before 1.

References:
    Luo, Gustafsson, Zhao, Sjolund and Schon (2023), Image restoration with mean-reverting SDEs, arXiv:2301.11699.
    Richter, Welker, Lemercier, Lay and Gerkmann (2023), Speech enhancement with score-based models, arXiv:2208.05830.
    Lay, Welker, Richter and Gerkmann (2023), Reducing the prior mismatch, arXiv:2302.14748.
    Liu et al. (2023), I2SB: image-to-image Schrodinger bridge, arXiv:2302.05872.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from .base import SDE

__all__ = ["BBED", "OUVE", "Bridge", "MeanReverting"]


class _Towards(SDE):
    """Base class of the paths that are stated in ``z = x - y``."""

    stated_in = "relative"


@dataclass(frozen=True)
class MeanReverting(_Towards):
    """The mean-reverting SDE ``dx = theta (y - x) dt + sqrt(2 theta) lambda dw`` in the coordinates ``z = x - y``.

    With the integral B of theta from 0 to t, ``alpha = e^-B`` and ``sigma = lambda sqrt(1 - e^(-2 B))``. This is a VP
    path whose noise has the standard deviation lambda.

    Args:
        noise: The stationary standard deviation lambda, in model units. The default is the published value, 50 of 255
            grey levels, on data from -1 to 1.
        theta_min, theta_max: The rates theta at t = 0 and at t = 1. The rate is linear in between. With the defaults,
            alpha at t = 1 is the published value, 0.005.
    """

    limits = ranges(
        noise=Range(0, 1e6, above=True), theta_min=Range(0, 1e6), theta_max=Range(0, 1e6, above=True)
    )  # fmt: skip

    noise: float = 0.392
    theta_min: float = 0.1
    theta_max: float = 10.5

    t_sample = 1e-3
    more_noise = ("theta_max", 10.5)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.theta_min + t * (self.theta_max - self.theta_min) / 2)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.noise * torch.sqrt(-torch.expm1(-2 * self._integral(t)))

    @property
    def prior_std(self) -> float:
        return self.noise

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.hypot(alpha, sigma / self.noise)


@dataclass(frozen=True)
class OUVE(_Towards):
    """The Ornstein-Uhlenbeck SDE with exploding variance, in the coordinates ``z = x - y``.

    With ``k = log(sigma_max/sigma_min)``, ``alpha = e^(-gamma t)`` and
    ``sigma^2 = sigma_min^2 k/(gamma + k) (e^(2 k t) - e^(-2 gamma t))``. At t = 1, a fraction alpha of the difference
    x - y is left, 0.22 with the defaults, beside a noise of 0.39. The published sampler starts at y plus noise, as if
    nothing were left. This costs some accuracy (0.08 nats for 4-dimensional Gaussian data). A larger ``gamma`` or
    ``sigma_max`` costs less.

    Args:
        gamma: The stiffness, the rate at which data drift towards y.
        sigma_min, sigma_max: The parameters of the noise level.
    """

    limits = ranges(
        gamma=Range(0, 1e6, above=True), sigma_min=Range(0, 1e6, above=True), sigma_max=Range(0, 1e6, above=True)
    )  # fmt: skip

    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    t_sample = 1e-3
    more_noise = ("gamma", 5)

    def check(self) -> None:
        """Check the parameters, and then the path (see :meth:`SDE.check <scoresde.SDE.check>`)."""
        if not self.sigma_min < self.sigma_max:
            raise UsageError(
                f"OUVE: sigma_min is {self.sigma_min:g} and sigma_max is {self.sigma_max:g}; choose values with "
                "sigma_min < sigma_max",
                parameter="sigma_max",
            )
        super().check()

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.gamma * t)

    def sigma(self, t: Tensor) -> Tensor:
        # e^(2 k t) - e^(-2 gamma t), without cancellation near t = 0
        k = self._growth
        grown = torch.exp(-2 * self.gamma * t) * torch.expm1(2 * (k + self.gamma) * t)
        return self.sigma_min * torch.sqrt(k / (self.gamma + k) * grown)


@dataclass(frozen=True)
class BBED(_Towards):
    """The Brownian bridge with exponential diffusion ``dx = (y - x)/(1 - t) dt + c k^t dw``, in ``z = x - y``.

    Here, ``alpha = 1 - t`` and ``sigma^2 = (1 - t)^2 c^2`` times the integral of ``k^(2 s)/(1 - s)^2`` from 0 to t.

    Args:
        c: The diffusion coefficient at t = 0.
        k: The factor by which the diffusion coefficient grows from t = 0 to t = 1, from 1 to 30. With 1, the path is
            :class:`Bridge`.
    """

    limits = ranges(c=Range(0, 1e6, above=True), k=Range(1, 30))

    c: float = 0.52
    k: float = 2.6

    t_max = 0.999
    t_sample = 1e-3
    more_noise = None

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        # With a = 2 log k and v = 1 - s, the integral is e^a int_(1-t)^1 e^(-a v)/v^2 dv. Integrating by parts gives
        # e^a [ e^(-a (1 - t))/(1 - t) - e^-a - a int_(1-t)^1 e^(-a v)/v dv ], and the last integral is
        # -log(1 - t) + sum_n (-a)^n (1 - (1 - t)^n)/(n n!).
        a, v = 2 * math.log(self.k), 1 - t
        n = torch.arange(1, int(3 * a) + 25, dtype=t.dtype, device=t.device)
        factors = torch.cumprod(-a / n, 0) / n
        log_v = torch.log1p(-t)
        series = -log_v - (factors * torch.expm1(n * log_v[..., None])).sum(-1)
        # (1 - t)^2 times the bracket. The first two terms are (1 - t) (e^(a t) - 1 + t).
        square = v * (torch.expm1(a * t) + t) - a * self.k**2 * v.square() * series
        return self.c * torch.sqrt(square.clamp(min=0) + (square == 0) * 1e-300)


@dataclass(frozen=True)
class Bridge(_Towards):
    """The Brownian bridge ``dx = (y - x)/(1 - t) dt + S dw`` from the data to y, in the coordinates ``z = x - y``.

    Here, ``alpha = 1 - t`` and ``sigma = S sqrt(t (1 - t))``. The diffusion coefficient is the constant S.

    Args:
        noise: The diffusion coefficient S, in model units. The noise is largest in the middle, where it is S/2.
    """

    limits = ranges(noise=Range(0, 1e6, above=True))

    noise: float = 1.0

    t_max = 0.999
    t_sample = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return self.noise * torch.sqrt(t * (1 - t))
