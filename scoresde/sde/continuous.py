"""The published continuous-time SDEs.

Each class implements alpha and sigma (:mod:`scoresde.sde.base`). It also overrides the methods of :class:`SDE` that
have closed forms on its path.

References:
    Song et al. (2021), Score-based generative modeling through SDEs, arXiv:2011.13456: VP (eq. 11), VE (eq. 9),
        sub-VP (sec. 3.4), and their marginals (eq. 29).
    Lipman et al. (2023), Flow matching, arXiv:2210.02747: the conditional optimal-transport path (eq. 20-23).
    Nichol and Dhariwal (2021), arXiv:2102.09672: the cosine schedule.
    Karras et al. (2022), arXiv:2206.00364: EDM.
    Kingma et al. (2021), Variational diffusion models, arXiv:2107.00630: a log-SNR linear in t, with learned endpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.limits import Range, check_fields, ranges
from .base import SDE

__all__ = ["EDMSDE", "VDMSDE", "VESDE", "VPSDE", "CosineSDE", "Exploding", "FlowMatching", "SubVPSDE"]


class Exploding(SDE):
    """Base class of the paths with alpha = 1, which do not shrink the data.

    The noise levels go from ``sigma_min`` to ``sigma_max``, in model units. If ``sigma_max`` is ``"auto"``, training
    replaces it with the larger of two values (:func:`scoresde.sde.reach.sigma_for`): the largest distance between two
    training samples (Song and Ermon 2020, arXiv:2006.09011, technique 1), and about ten times the root mean square of
    the samples. Until ``"auto"`` has been replaced, the path cannot be evaluated.
    """

    limits = ranges(sigma_min=Range(1e-9, 1e6), sigma_max=Range(1e-9, 1e6))
    more_noise = ("sigma_max", "auto")

    sigma_min: float
    sigma_max: float | str

    def alpha(self, t: Tensor) -> float:
        return 1.0

    @property
    def highest(self) -> float:
        """The numerical value of ``sigma_max``.

        Raises:
            UsageError: If ``sigma_max`` is ``"auto"`` and has not been computed from the data yet.
        """
        if isinstance(self.sigma_max, str):
            raise UsageError(
                f"{type(self).__name__}: sigma_max is {self.sigma_max!r}, but only training can compute a value from "
                "the data; set sigma_max to a number here",
                parameter="sigma_max",
            )
        return self.sigma_max

    def check(self) -> None:
        """Check the path if ``sigma_max`` is a number (see :meth:`SDE.check <scoresde.SDE.check>`)."""
        if self.sigma_max == "auto":
            return
        if isinstance(self.sigma_max, str) or not self.sigma_min < self.sigma_max:
            raise UsageError(
                f"{type(self).__name__}: sigma_min is {self.sigma_min} and sigma_max is {self.sigma_max!r}; choose "
                "values with 0 < sigma_min < sigma_max, or set sigma_max to auto to compute it from the training data",
                parameter="sigma_max",
                value="auto",
            )
        super().check()

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """Base class of VP and sub-VP: ``alpha = exp(-B/2)`` with ``B(t) = int_0^t beta`` and ``beta`` linear in t.

    Args:
        beta_min, beta_max: The values of beta at t = 0 and at t = 1.
    """

    limits = ranges(beta_min=Range(0, 1e6), beta_max=Range(0, 1e6, above=True))

    beta_min: float = 0.1
    beta_max: float = 20.0

    t_sample = 1e-3
    more_noise = ("beta_max", 20)

    def integral(self, t: Tensor) -> Tensor:
        """Return ``B(t)``, the integral of beta from 0 to ``t``."""
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def t_of_integral(self, integral: Tensor) -> Tensor:
        """Return the time at which ``B(t)`` equals ``integral``."""
        # This form of the root of the quadratic avoids cancellation, and the clamp avoids 0/0 and inf/inf.
        slope, numbers = self.beta_max - self.beta_min, torch.finfo(integral.dtype)
        integral = integral.clamp(numbers.tiny, numbers.max**0.5)
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))

    def beta(self, t: Tensor) -> Tensor:
        """Return ``beta(t)``, which is linear in t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.integral(t) / 2)

    def drift_rate(self, t: Tensor) -> Tensor:
        # This formula also holds where beta is so large that alpha underflows to 0.
        return -self.beta(t) / 2

    @property
    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """The variance-preserving path ``alpha = exp(-B/2)``, ``sigma = sqrt(1 - exp(-B))`` with ``B(t) = int_0^t beta``.

    With ``beta(t) = beta_min + t (beta_max - beta_min)``, the drift rate is ``f = -beta/2``, and the diffusion
    coefficient is ``g = sqrt(beta)`` (Song et al. 2021, arXiv:2011.13456, eq. 11 and 29-33).
    """

    def sigma(self, t: Tensor) -> Tensor:
        # expm1 avoids the cancellation in 1 - exp(-B): in float32 at t = 1e-5, the square root would be off by 0.6 %.
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # alpha' = -beta alpha / 2,  sigma' = beta alpha^2 / (2 sigma)
        (alpha, sigma), beta = self.coefficients(t), self.beta(t)
        return -beta * alpha / 2, beta * alpha.square() / (2 * sigma)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        # This formula also holds at t = 0, where sigma' is infinite.
        return self.beta(t)

    def log_snr(self, t: Tensor) -> Tensor:
        # alpha^2/sigma^2 = exp(-B)/(1 - exp(-B)). This form is finite where alpha underflows to 0.
        integral = self.integral(t)
        return -integral - torch.log(-torch.expm1(-integral))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # alpha^2/sigma^2 = 1/expm1(B), so B = log(1 + exp(-log_snr)). Above its threshold, softplus is the identity.
        return self.t_of_integral(torch.nn.functional.softplus(-log_snr, threshold=40))


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """The sub-VP path: ``alpha = exp(-B/2)`` as for VP, but ``sigma = 1 - exp(-B)``, which is the square of VP's sigma.

    The squared diffusion coefficient is ``g^2 = beta (1 - exp(-2B))`` (Song et al. 2021, arXiv:2011.13456, sec. 3.4 and
    eq. 27-29).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # alpha' = -beta alpha / 2,  sigma' = beta alpha^2
        alpha, beta = self.alpha(t), self.beta(t)
        return -beta * alpha / 2, beta * alpha.square()

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return -self.beta(t) * torch.expm1(-2 * self.integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        # alpha/sigma = exp(-B/2)/(1 - exp(-B)). This form is finite where alpha underflows to 0.
        integral = self.integral(t)
        return -integral - 2 * torch.log(-torch.expm1(-integral))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # sigma/alpha = exp(B/2) - exp(-B/2) = 2 sinh(B/2). At a low log-SNR, B is minus the log-SNR up to rounding.
        near = 2 * torch.asinh(torch.exp(-log_snr.clamp(min=-80) / 2) / 2)
        return self.t_of_integral(torch.where(log_snr < -80, -log_snr, near))


@dataclass(frozen=True)
class VESDE(Exploding):
    """The variance-exploding path ``alpha = 1``, ``sigma = sigma_min (sigma_max/sigma_min)^t``.

    The drift is 0, and ``g = sigma sqrt(2 log(sigma_max/sigma_min))`` (Song et al. 2021, arXiv:2011.13456, eq. 9, 29,
    30). At t = 0, the noise level is ``sigma_min``, not 0, so the path starts with slightly noisy data.

    Args:
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level, or ``auto`` to compute it from the training data (usually the largest
            distance between two samples).
    """

    sigma_min: float = 0.01
    sigma_max: float | str = 50.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.highest / self.sigma_min))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.sigma(t) * math.log(self.highest / self.sigma_min)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.sigma_min)) / math.log(self.highest / self.sigma_min)


@dataclass(frozen=True)
class FlowMatching(SDE):
    """The straight path ``alpha = 1 - t``, ``sigma = t`` of flow matching and rectified flow.

    With time reversed, this is the path of Lipman et al. (2023), arXiv:2210.02747, eq. 20, with sigma_min = 0, and of
    Liu et al. (2023), arXiv:2209.03003, eq. 1. At t = 1, no signal is left, and ``g^2 = 2t/(1 - t)`` is infinite.
    Networks that predict the velocity, x0, v or edm can still be evaluated there.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha + sigma


@dataclass(frozen=True)
class CosineSDE(SDE):
    """The variance-preserving cosine path: ``alpha = cos(u)/cos(u_0)`` with ``u = (t + offset)/(1 + offset) pi/2``.

    Here, ``u_0`` is the value of u at t = 0. The path follows the schedule of Nichol and Dhariwal (2021),
    arXiv:2102.09672, eq. 17, but in continuous time and without clipped betas. With ``offset = 0``, it is the
    trigonometric path of Albergo and Vanden-Eijnden (2023), arXiv:2209.15571, with ``alpha = cos(pi t/2)`` and
    ``sigma = sin(pi t/2)``. No signal is left at t = 1, so g is infinite there.

    Args:
        offset: The offset s of Nichol and Dhariwal. If it is above 0, sigma initially grows like sqrt(t) instead of t.
    """

    limits = ranges(offset=Range(0, 100))

    offset: float = 0.008

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.offset) / (1 + self.offset) * (math.pi / 2)

    @property
    def _start(self) -> float:
        return self.offset / (1 + self.offset) * math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        # sin(u - u_0) sin(u + u_0) equals cos(u_0)^2 - cos(u)^2 and avoids cancellation.
        u = self._angle(t)
        product = torch.sin(t * (math.pi / 2 / (1 + self.offset))) * torch.sin(u + self._start)
        return torch.sqrt(product) / math.cos(self._start)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # alpha' = -u' sin(u)/cos(u_0),  (sigma^2)' = 2 u' sin(u) cos(u)/cos(u_0)^2
        u, rate = self._angle(t), math.pi / 2 / (1 + self.offset)
        d_alpha = -rate * torch.sin(u) / math.cos(self._start)
        if self.offset == 0:
            return d_alpha, rate * torch.cos(u)
        return d_alpha, rate * torch.sin(u) * torch.cos(u) / (math.cos(self._start) ** 2 * self.sigma(t))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # cos(u)^2 = cos(u_0)^2 sigmoid(log_snr) is solved with the arctangent, which is accurate at both ends.
        cosine = math.cos(self._start) * torch.sigmoid(log_snr).sqrt()
        sine = torch.sqrt(math.sin(self._start) ** 2 + math.cos(self._start) ** 2 * torch.sigmoid(-log_snr))
        return torch.atan2(sine, cosine) * (2 / math.pi * (1 + self.offset)) - self.offset

    @property
    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class EDMSDE(Exploding):
    """The EDM path, with ``alpha = 1`` and noise levels from ``sigma_min`` to ``sigma_max`` (Karras et al. 2022).

    In the paper, time is sigma itself. Here, ``sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) -
    sigma_min^(1/rho)))^rho``, so a grid that is uniform in t has the same noise levels as the paper's sampler
    (arXiv:2206.00364, eq. 5).

    Args:
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level, or ``auto`` to compute it from the training data (usually the largest
            distance between two samples).
        rho: The exponent. A larger value places more of the noise levels near ``sigma_min``.
    """

    limits = ranges(rho=Range(0, 100, above=True))

    sigma_min: float = 0.002
    sigma_max: float | str = 80.0
    rho: float = 7.0

    def _root(self, t: Tensor) -> tuple[Tensor, float]:
        low, high = self.sigma_min ** (1 / self.rho), self.highest ** (1 / self.rho)
        return low + t * (high - low), high - low

    def sigma(self, t: Tensor) -> Tensor:
        return self._root(t)[0] ** self.rho

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        root, rate = self._root(t)
        return torch.zeros_like(t), self.rho * rate * root ** (self.rho - 1)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        low, rate = self._root(torch.zeros_like(log_snr))
        return (torch.exp(-log_snr / (2 * self.rho)) - low) / rate


@dataclass(frozen=True)
class VDMSDE(SDE):
    """The variance-preserving path whose log-SNR is linear in t, from ``log_snr_max`` to ``log_snr_min``.

    The path is from Kingma et al. (2021), arXiv:2107.00630, sec. 3.1, where gamma denotes minus the log-SNR. A grid
    that is uniform in t is also uniform in the log-SNR.

    Args:
        log_snr_max, log_snr_min: The log-SNR at t = 0 and at t = 1.
        learn: Whether to learn both of these values together with the network, by optimising the variational bound
            (sec. 5; see :func:`scoresde.objective.loss.end_terms`). The given numbers are then the initial values.
    """

    limits = ranges(log_snr_max=Range(-100, 100), log_snr_min=Range(-100, 100))

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    learn: bool = False

    more_noise = ("log_snr_min", -5)

    def __post_init__(self) -> None:
        check_fields(self)
        ends = {"log_snr_max": self.log_snr_max, "log_snr_min": self.log_snr_min}
        learned = {name: nn.Parameter(torch.tensor(float(end), dtype=torch.float32)) for name, end in ends.items()}
        object.__setattr__(self, "_learned", learned if self.learn else {})
        super().__post_init__()

    def parameters(self) -> dict[str, nn.Parameter]:
        learned: dict[str, nn.Parameter] = self.__dict__["_learned"]
        return learned

    def ends(self) -> tuple[float | Tensor, float | Tensor]:
        """Return the log-SNRs at t = 0 and t = 1 as numbers, or as tensors of shape ``()`` if they are learned."""
        learned = self.parameters()
        return learned.get("log_snr_max", self.log_snr_max), learned.get("log_snr_min", self.log_snr_min)

    def _ends(self, t: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return the values of :meth:`ends` on the device of ``t``."""
        # The devices can differ, because grids are built on the CPU even for a model on a GPU.
        high, low = (end.to(t.device) if isinstance(end, Tensor) else end for end in self.ends())
        return high, low

    def log_snr(self, t: Tensor) -> Tensor:
        high, low = self._ends(t)
        return high + t * (low - high)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # (log alpha)' = sigma^2 l'/2,  (log sigma)' = -alpha^2 l'/2
        (alpha, sigma), (high, low) = self.coefficients(t), self._ends(t)
        half = (low - high) / 2
        return half * alpha * sigma.square(), -half * sigma * alpha.square()

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        high, low = self._ends(log_snr)
        return (log_snr - high) / (low - high)

    @property
    def prior_std(self) -> float:
        return 1.0
