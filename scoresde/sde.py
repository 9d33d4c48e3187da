r"""Linear SDEs, that is, Gaussian paths.

A linear SDE  dx = f(t) x dt + g(t) dw  turns a data point x_0 into

    x_t = alpha(t) x_0 + sigma(t) eps,      eps ~ N(0, I),                                    (1)

and (1) says everything about it: an :class:`SDE` states ``alpha`` and ``sigma``, and

    f = alpha'/alpha,      g^2 = 2 sigma (sigma' - f sigma)                                   (2)

follow by forward-mode automatic differentiation. Time runs from 0 (data) to 1 (prior), everywhere.

The straight frame. Every such path is the straight path in another clock and scale: with

    s = alpha + sigma,      r = sigma / s,      y = x / s:      y = (1 - r) x_0 + r eps,       (3)

so the probability flow is dy/dr = eps_hat - x0_hat, with no f, g, alpha' or sigma', finite at both ends for all of
them. The ODE solvers and the likelihood work there; r and the log-SNR  2 log(alpha/sigma)  name the same clock.

References:
    Song et al. (2021), Score-based generative modeling through SDEs, arXiv:2011.13456: VP (eq. 11), VE (eq. 9),
        sub-VP (sec. 3.4), and their marginals (eq. 29).
    Kingma et al. (2021), Variational diffusion models, arXiv:2107.00630: a path is its log-SNR (sec. 3, 5.1).
    Lipman et al. (2023), Flow matching, arXiv:2210.02747: the conditional optimal-transport path (eq. 20-23).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .errors import UsageError
from .shapes import as_time, expand, sum_flat, time_dtype

__all__ = ["EDMSDE", "SDE", "VDMSDE", "VESDE", "VPSDE", "CosineSDE", "FlowMatching", "SubVPSDE"]


class SDE(ABC):
    """A linear SDE given by its Gaussian path ``x_t = alpha(t) x_0 + sigma(t) eps``.

    Derive a frozen dataclass and write ``alpha`` and ``sigma`` with torch functions; times arrive as tensors of shape
    ``()`` or ``(B,)``, usually float64, and a constant may be returned as a plain number. Sampling with every solver,
    training and likelihood follow.

    Attributes:
        t_min, t_max: The legal domain of t; training draws t from it and the likelihood integrates over it.
        t_sample: Where sampling stops (default: ``t_min``).
        data_scale: What a unit of the data is at ``t_min``: 1, but for a path that a model was converted to.
        default_grid: The time grid that suits this SDE (see :mod:`scoresde.grids`).

    Example:
        >>> import math
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Cosine(SDE):
        ...     def alpha(self, t):
        ...         return torch.cos(math.pi / 2 * t)
        ...     def sigma(self, t):
        ...         return torch.sin(math.pi / 2 * t)
        >>> float(Cosine().diffusion(torch.tensor(0.5)) ** 2)  # pi tan(pi t / 2)
        3.14159...
    """

    t_min: float = 1e-5
    t_max: float = 1.0
    t_sample: float | None = None
    data_scale: float = 1.0
    default_grid: ClassVar[str] = "sqrt"

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor | float:
        """How much of the data is left at ``t``, in the shape of ``t``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor | float:
        """The standard deviation of the noise at ``t``, in the shape of ``t``."""

    def __post_init__(self) -> None:
        self.check()

    # ----------------------------------------------------------------------------------------------- coefficients

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``alpha(t), sigma(t)`` as tensors in the shape and dtype of ``t``."""
        return self._tensor(self.alpha(t), t), self._tensor(self.sigma(t), t)

    @staticmethod
    def _tensor(value: Tensor | float, t: Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.as_tensor(value, dtype=t.dtype, device=t.device).expand(t.shape)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``alpha'(t), sigma'(t)``, the time derivatives, in the shape of ``t``."""
        rates: tuple[Tensor, Tensor] = torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[1]
        return rates

    def drift_rate(self, t: Tensor) -> Tensor:
        """``f(t) = alpha'/alpha``, in the shape of ``t``; infinite where alpha is 0."""
        return self.rates(t)[0] / self.coefficients(t)[0]

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """``g(t)^2 = 2 sigma (sigma' - f sigma)``, in the shape of ``t``; infinite where alpha is 0."""
        (alpha, sigma), (d_alpha, d_sigma) = self.coefficients(t), self.rates(t)
        return 2 * sigma * (d_sigma - d_alpha / alpha * sigma)

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The drift ``f(t) x`` of the forward SDE, shape of ``x``."""
        return expand(self.drift_rate(as_time(t, x)), x) * x

    def diffusion(self, t: float | Tensor) -> Tensor:
        """The diffusion ``g(t)`` of the forward SDE, in the shape of ``t``."""
        t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
        # g^2 >= 0; rounding can leave -1e-17 where the noise does not grow.
        return self.diffusion_squared(t).clamp(min=0).sqrt()

    def noise_level(self, t: Tensor) -> Tensor:
        """The default noise ``eta(t)`` of stochastic samplers: ``g``, or ``sqrt(2 sigma)`` if g is infinite at t_max.

        For any eta >= 0 the SDE ``dx = (velocity - eta^2/2 score) dt + eta dw`` has the marginals of the path (Song
        et al. 2021, app. D.1; Ma et al. 2024, arXiv:2401.08740, sec. 2.4), so this is a choice, not a law.
        """
        return self.diffusion(t) if self.finite_g else torch.sqrt(2 * self.coefficients(t)[1])

    @property
    def finite_g(self) -> bool:
        """Whether g is finite up to ``t_max``, that is, whether some of the data is left there."""
        alpha, sigma = self.coefficients(torch.tensor(self.t_max, dtype=torch.float64))
        return bool(alpha.detach() > 1e-6 * sigma.detach())

    @property
    def nodes(self) -> Tensor | None:
        """The times of a discrete chain, rising, float64 ``(N,)``; ``None`` for a path in continuous time."""
        return None

    # ----------------------------------------------------------------------------------------------- marginals

    def marginal(self, x0: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (shape of ``x0``) and standard deviation (shape of ``t``) of ``x_t`` given ``x_0``."""
        alpha, sigma = self.coefficients(as_time(t, x0))
        return expand(alpha, x0) * x0, sigma

    def perturb(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """``x_t = alpha x_0 + sigma eps``: one jump along the path, shape of ``x0``."""
        alpha, sigma = self.coefficients(as_time(t, x0))
        return expand(alpha, x0) * x0 + expand(sigma, x0) * eps

    @property
    def prior_std(self) -> float:
        """Standard deviation of the Gaussian that stands for ``x_t`` at ``t_max``, in sampling and likelihood alike."""
        return float(self.coefficients(torch.tensor(self.t_max, dtype=torch.float64))[1])

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log density of the prior ``N(0, prior_std^2 I)`` in nats, ``(B, *event)`` to ``(B,)``."""
        dims = z[0].numel()
        return -sum_flat(z.square()) / (2 * self.prior_std**2) - dims * math.log(
            self.prior_std * math.sqrt(2 * math.pi)
        )

    # ----------------------------------------------------------------------------------------------- clocks

    def log_snr(self, t: Tensor) -> Tensor:
        """``2 log(alpha/sigma)``, in the shape of ``t``; falls from data to prior."""
        alpha, sigma = self.coefficients(t)
        return 2 * (torch.log(alpha) - torch.log(sigma))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has a given value, in its shape, clamped to the domain; float64.

        This is a bisection on ``[t_min, t_max]`` down to the last bit, right for any monotone path; a subclass with a
        closed form overrides it.
        """
        target = log_snr.to(time_dtype(log_snr.device))
        low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
        for _ in range(64):
            middle = (low + high) / 2
            above = self.log_snr(middle) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2

    def scale(self, t: Tensor) -> Tensor:
        """``s = alpha + sigma``, the scale of the straight frame (3)."""
        alpha, sigma = self.coefficients(t)
        return alpha + sigma

    def ratio(self, t: Tensor) -> Tensor:
        """``r = sigma / (alpha + sigma)``, the clock of the straight frame (3), from about 0 to about 1."""
        alpha, sigma = self.coefficients(t)
        return sigma / (alpha + sigma)

    def t_of_ratio(self, r: Tensor) -> Tensor:
        """The time at which :meth:`ratio` is ``r``, clamped to the domain."""
        t = self.t_of_log_snr(2 * (torch.log1p(-r) - torch.log(r)))
        return t.clamp(self.t_min, self.t_max)

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What of ``(alpha, sigma)`` a change of the log-SNR leaves as it is (see :mod:`scoresde.paths`).

        A path that only mixes, ``alpha^2 + sigma^2 = 1``, keeps the root of that sum, and this is the default; where
        another function is constant along the path, a subclass names it. Linear in both, in the shape of ``alpha``.
        """
        return torch.hypot(alpha, sigma)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What of the path is learned with the network, by name: nothing, unless a subclass says so."""
        return {}

    def times(self, use: str) -> tuple[float, float]:
        """The interval of t for ``use``: ``"train"``, ``"sample"`` or ``"likelihood"``."""
        if use not in ("train", "sample", "likelihood"):
            raise UsageError(f"unknown use {use!r} of the times; choose from: train, sample, likelihood")
        if use == "sample" and self.t_sample is not None:
            return self.t_sample, self.t_max
        return self.t_min, self.t_max

    # ----------------------------------------------------------------------------------------------- self-check

    def check(self) -> None:
        """Check that the path is one: right shapes, finite, sigma > 0, log-SNR falling.

        Raises:
            UsageError: With the first t that offends.
        """
        name = type(self).__name__
        if not 0 <= self.t_min < self.t_max:
            raise UsageError(f"{name}: t_min = {self.t_min} and t_max = {self.t_max} must satisfy 0 <= t_min < t_max")
        t = self.t_min + (self.t_max - self.t_min) * torch.linspace(0, 1, 257, dtype=torch.float64).square()
        t[-1] = self.t_max
        for label, function in (("alpha", self.alpha), ("sigma", self.sigma)):
            try:
                values = self._tensor(function(t), t)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"{self!r}.{label}(t) fails for a tensor of times: {error}; write it with torch functions "
                    "(torch.cos, not math.cos)"
                ) from error
            if values.shape != t.shape:
                raise UsageError(
                    f"{name}.{label}(t) has shape {tuple(values.shape)} for t of shape {tuple(t.shape)}; "
                    "it must be computed element by element"
                )
            bad = ~torch.isfinite(values) | (values < 0)
            if label == "sigma":
                bad |= (values == 0) & (t > 0)
            if bool(bad.any()):
                i = int(bad.nonzero()[0])
                raise UsageError(
                    f"{name}.{label}(t) is {float(values[i]):.6g} at t = {float(t[i]):.6g}; it must be finite and "
                    f"{'>= 0' if label == 'alpha' else '> 0'} on [{self.t_min}, {self.t_max}] (t_min and t_max are "
                    "class attributes you can set)"
                )
        rising = torch.diff(self.log_snr(t)) >= 0
        if bool(rising.any()):
            i = int(rising.nonzero()[0])
            raise UsageError(
                f"{name}: the log-SNR 2 log(alpha/sigma) must fall from data (t = 0) to prior (t = 1), but it does not "
                f"between t = {float(t[i]):.6g} and {float(t[i + 1]):.6g}"
            )


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """What VP and sub-VP share: ``alpha = exp(-B/2)``, ``B(t) = int_0^t beta``, ``beta`` linear in t."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    t_sample = 1e-3

    def integral(self, t: Tensor) -> Tensor:
        """``B(t) = beta_min t + (beta_max - beta_min) t^2 / 2``, in the shape of ``t``."""
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def t_of_integral(self, integral: Tensor) -> Tensor:
        """The time at which B has a given value."""
        # The root of the quadratic in the form that does not cancel.
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))

    def beta(self, t: Tensor) -> Tensor:
        """``beta(t) = beta_min + t (beta_max - beta_min)``, in the shape of ``t``."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.integral(t) / 2)

    @property
    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance preserving: ``alpha = exp(-B/2)``, ``sigma = sqrt(1 - exp(-B))``, ``B(t) = int_0^t beta``.

    ``beta(t) = beta_min + t (beta_max - beta_min)``; then ``f = -beta/2`` and ``g = sqrt(beta)`` (Song et al. 2021,
    arXiv:2011.13456, eq. 11 and 29-33).
    """

    def sigma(self, t: Tensor) -> Tensor:
        # expm1, because 1 - exp(-B) cancels: in float32 at t = 1e-5 its root is 0.6 % off.
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # alpha' = -beta alpha / 2,  sigma' = beta alpha^2 / (2 sigma)
        (alpha, sigma), beta = self.coefficients(t), self.beta(t)
        return -beta * alpha / 2, beta * alpha.square() / (2 * sigma)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        # also at t = 0, where sigma' is infinite
        return self.beta(t)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # alpha^2/sigma^2 = 1/expm1(B), so B = log(1 + exp(-log_snr)).
        return self.t_of_integral(torch.nn.functional.softplus(-log_snr))


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP: ``alpha = exp(-B/2)`` as for VP, but ``sigma = 1 - exp(-B)``, the square of VP's.

    ``g^2 = beta (1 - exp(-2B))`` (Song et al. 2021, arXiv:2011.13456, sec. 3.4 and eq. 27-29).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # alpha' = -beta alpha / 2,  sigma' = beta alpha^2
        alpha, beta = self.alpha(t), self.beta(t)
        return -beta * alpha / 2, beta * alpha.square()

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # sigma/alpha = exp(B/2) - exp(-B/2) = 2 sinh(B/2).
        return self.t_of_integral(2 * torch.asinh(torch.exp(-log_snr / 2) / 2))


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: ``alpha = 1``, ``sigma = sigma_min (sigma_max/sigma_min)^t``.

    ``f = 0`` and ``g = sigma sqrt(2 log(sigma_max/sigma_min))`` (Song et al. 2021, arXiv:2011.13456, eq. 9, 29, 30).
    At t = 0 the noise is ``sigma_min``, not 0: the path starts at the data blurred by that much.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    default_grid = "logsnr"  # uniform in t; measured better than Karras et al.'s (docs/choosing-a-solver.md)

    def alpha(self, t: Tensor) -> float:
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha


@dataclass(frozen=True)
class FlowMatching(SDE):
    """The straight path ``alpha = 1 - t``, ``sigma = t`` of flow matching and rectified flow.

    Lipman et al. (2023), arXiv:2210.02747, eq. 20 with sigma_min = 0 and time reversed; Liu et al. (2023),
    arXiv:2209.03003, eq. 1. ``g^2 = 2t/(1 - t)`` is infinite at t = 1, where no data are left; networks that output
    the velocity, x0 or v are finite there.
    """

    default_grid = "uniform"

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
    """Variance preserving, with a cosine: ``alpha = cos(u)/cos(u_0)``, ``u = (t + offset)/(1 + offset) pi/2``.

    Nichol and Dhariwal (2021), arXiv:2102.09672, eq. 17, in continuous time and without their clipping. offset = 0 is
    the trigonometric path ``alpha = cos(pi t/2)``, ``sigma = sin(pi t/2)`` (Albergo and Vanden-Eijnden 2023,
    arXiv:2209.15571). Nothing of the data is left at t = 1, so that g is infinite there.

    Args:
        offset: Their s. With it the noise begins like sqrt(t) instead of t.
    """

    offset: float = 0.008

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.offset) / (1 + self.offset) * (math.pi / 2)

    @property
    def _start(self) -> float:
        return self.offset / (1 + self.offset) * math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        # cos(u_0)^2 - cos(u)^2 = sin(u - u_0) sin(u + u_0), which does not cancel
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
        # cos(u)^2 = cos(u_0)^2 sigmoid(log_snr), by the arc tangent, which is exact at both ends
        cosine = math.cos(self._start) * torch.sigmoid(log_snr).sqrt()
        sine = torch.sqrt(math.sin(self._start) ** 2 + math.cos(self._start) ** 2 * torch.sigmoid(-log_snr))
        return torch.atan2(sine, cosine) * (2 / math.pi * (1 + self.offset)) - self.offset

    @property
    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class EDMSDE(SDE):
    """The path of EDM: ``alpha = 1`` and noise levels from ``sigma_min`` to ``sigma_max`` (Karras et al. 2022).

    Their time is sigma itself; ours runs through the levels as their sampler does (arXiv:2206.00364, eq. 5),
    ``sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho``: a grid uniform in t is theirs.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    default_grid = "uniform"

    def _root(self, t: Tensor) -> tuple[Tensor, float]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low + t * (high - low), high - low

    def alpha(self, t: Tensor) -> float:
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        return self._root(t)[0] ** self.rho

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        root, rate = self._root(t)
        return torch.zeros_like(t), self.rho * rate * root ** (self.rho - 1)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        low, rate = self._root(torch.zeros_like(log_snr))
        return (torch.exp(-log_snr / (2 * self.rho)) - low) / rate

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha


@dataclass(frozen=True)
class VDMSDE(SDE):
    """Variance preserving with a log-SNR linear in t, from ``log_snr_max`` to ``log_snr_min``.

    Kingma et al. (2021), arXiv:2107.00630, sec. 3.1, whose gamma is minus the log-SNR. Every noise level gets the same
    share of the time, so that a uniform grid is uniform in log-SNR.

    Args:
        log_snr_max, log_snr_min: The ends, at t = 0 and t = 1.
        learn: Learn the ends with the network, by the variational bound (sec. 5; see
            :func:`scoresde.loss.end_terms`); the numbers are where they begin.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    learn: bool = False

    default_grid = "uniform"

    def __post_init__(self) -> None:
        ends = {"log_snr_max": self.log_snr_max, "log_snr_min": self.log_snr_min}
        learned = {name: nn.Parameter(torch.tensor(float(end))) for name, end in ends.items()} if self.learn else {}
        object.__setattr__(self, "_learned", learned)
        super().__post_init__()

    def parameters(self) -> dict[str, nn.Parameter]:
        learned: dict[str, nn.Parameter] = self.__dict__["_learned"]
        return learned

    def ends(self) -> tuple[float | Tensor, float | Tensor]:
        """The log-SNR at t = 0 and t = 1: numbers, or tensors of shape ``()`` where they are learned."""
        learned = self.parameters()
        return learned.get("log_snr_max", self.log_snr_max), learned.get("log_snr_min", self.log_snr_min)

    def log_snr(self, t: Tensor) -> Tensor:
        high, low = self.ends()
        return high + t * (low - high)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # (log alpha)' = sigma^2 l'/2,  (log sigma)' = -alpha^2 l'/2
        (alpha, sigma), (high, low) = self.coefficients(t), self.ends()
        half = (low - high) / 2
        return half * alpha * sigma.square(), -half * sigma * alpha.square()

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        high, low = self.ends()
        return (log_snr - high) / (low - high)

    @property
    def prior_std(self) -> float:
        return 1.0
