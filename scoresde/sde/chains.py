"""The discrete chains DDPM and SMLD, as SDEs with nodes.

A chain has N noise levels, numbered i = 0, ..., N - 1. Level i is assigned the time t_i = (i + 1)/N, which is called
the *node* of this level. The data are at t = 0. The path agrees with the chain at the nodes and interpolates between
them, so a chain is an :class:`~scoresde.sde.base.SDE` like any other, with ``t_min`` = 1/N. The two chains are

    DDPM   x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z,                     (Ho et al. 2020, eq. 2)            (1)
           alpha^2 = prod_{j <= i} (1 - beta_j),  sigma^2 = 1 - alpha^2,        (Ho et al. 2020, eq. 4)            (2)
           and log alpha is linear in t between nodes (where alpha falls to 0, alpha itself is linear);
    SMLD   alpha = 1,  sigma_i = sigma_min (sigma_max/sigma_min)^(i/(N - 1)),   (Song and Ermon 2019, sec. 4)      (3)
           and log sigma is linear in t.

The forward and reverse steps between two nodes are the same as for any other path (:mod:`scoresde.sde.marginal`). For
DDPM, the forward step between neighbouring nodes is equation (1).

With betas from 0.1/N to 20/N, DDPM converges to VP(0.1, 20) as N grows, with an error of order 1/N. SMLD converges to
VE.

References:
    Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models, arXiv:2006.11239.
    Nichol and Dhariwal (2021), Improved denoising diffusion probabilistic models, arXiv:2102.09672: cosine (eq. 17).
    Rombach et al. (2022), High-resolution image synthesis with latent diffusion, arXiv:2112.10752: scaled-linear.
    Song and Ermon (2019), arXiv:1907.05600, and (2020), arXiv:2006.09011: the noise levels of SMLD.
    Song et al. (2021), arXiv:2011.13456, app. B: both chains as discretised SDEs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, check_fields, ranges
from ..core.registry import closest
from ..core.shapes import time_dtype
from .base import SDE
from .continuous import Exploding

__all__ = ["DDPM", "SMLD"]

# The first and the last beta, multiplied by N. For scaled-linear, sqrt(beta) is linear between the two.
_ENDS = {"linear": (0.1, 20.0), "scaled-linear": (0.85, 12.0)}
_SCHEDULES = (*_ENDS, "cosine")


_BETA = Range(0, 1, above=True, below=True)


class _Chain(SDE):
    """Base class of the chains, which have N = ``steps`` noise levels and one node for each level."""

    limits = ranges(steps=Range(2, 10**6, hint="the number of noise levels"))

    steps: int

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """The first node, 1/N."""
        return 1 / self.steps

    @cached_property
    def nodes(self) -> Tensor:
        """The nodes ``t_i = (i + 1)/N``, float64 ``(N,)``."""
        return torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps


@dataclass(frozen=True)
class DDPM(_Chain):
    """The chain of denoising diffusion probabilistic models (Ho et al. 2020, arXiv:2006.11239).

    Args:
        steps: N, the number of noise levels.
        schedule: ``linear`` (Ho et al.), ``scaled-linear`` (linear in the square root of beta, as in latent diffusion)
            or ``cosine`` (Nichol and Dhariwal, with s = 0.008 and betas clipped at 0.999).
        betas: The betas themselves. If they are given, N is the number of betas, and ``steps`` and ``schedule`` are
            ignored.
        start, end: First and last beta of the ``linear`` and ``scaled-linear`` schedules. The defaults are the values
            published for 1000 steps (1e-4 to 0.02 for ``linear``, 8.5e-4 to 0.012 for ``scaled-linear``), multiplied by
            1000/N, so that chains of different lengths approximate the same SDE.
        zero_snr: Whether to rescale the chain so that no signal is left at its last node. Alpha is shifted and scaled
            so that its first value is unchanged and its last value is 0 (Lin et al. 2024, arXiv:2305.08891, alg. 1).
            The network must then predict v, x0, velocity or edm, not eps or the score. A last beta of 1 also leaves no
            signal.

    Example:
        >>> chain = DDPM()
        >>> [f"{float(b):g}" for b in chain.beta[[0, 999]]], f"{float(chain.alpha(chain.nodes[-1])) ** 2:.5g}"
        (['0.0001', '0.02'], '4.0358e-05')
        >>> DDPM(betas=(0.1, 0.2, 0.4)).nodes
        tensor([0.3333, 0.6667, 1.0000], dtype=torch.float64)
    """

    limits = ranges(start=_BETA, end=_BETA)

    steps: int = 1000
    schedule: str = "linear"
    betas: tuple[float, ...] | None = None
    start: float | None = None
    end: float | None = None
    zero_snr: bool = False

    more_noise = ("zero_snr", "yes")
    smooth = False  # log alpha has a kink at each node

    def __post_init__(self) -> None:
        check_fields(self)
        if self.betas is not None:  # a list if read from JSON
            object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
            object.__setattr__(self, "steps", len(self.betas))
        if self.schedule not in _SCHEDULES:
            raise UsageError(f"unknown DDPM schedule {self.schedule!r}; {closest(self.schedule, _SCHEDULES)}")
        if (self.start, self.end) != (None, None) and (self.betas is not None or self.schedule == "cosine"):
            kind = "given betas" if self.betas is not None else "the 'cosine' schedule"
            raise UsageError(
                f"DDPM: {kind} cannot be combined with start={self.start} and end={self.end}; omit start and end"
            )
        super().__post_init__()

    def check(self) -> None:
        """Check the betas, then the path (see :meth:`SDE.check <scoresde.SDE.check>`).

        Raises:
            UsageError: If a beta or the path is not valid. The message names the first offending step or time.
        """
        wrong = (~((self.beta > 0) & (self.beta < 1))).nonzero().flatten().tolist()
        meant = self.zero_snr or self.betas is not None  # otherwise, a beta of 1 means that there are too few steps
        if meant and wrong == [self.steps - 1] and float(self.beta[-1]) == 1:
            wrong = []  # valid, because no signal is left at the last node
        if len(wrong):
            i = wrong[0]
            raise UsageError(
                f"DDPM: beta is {float(self.beta[i]):g} at step {i + 1} of {self.steps}, but must be above 0 and below "
                "1 (except that the last of the given betas may equal 1). If you gave betas, correct them; otherwise, "
                "use more than 20 steps (the default betas of the linear schedules are proportional to 1/steps), a "
                "smaller value of end, or the 'cosine' schedule"
            )
        super().check()

    @cached_property
    def beta(self) -> Tensor:
        """The variances ``beta_i`` of the noise added in each of the N steps, float64 ``(N,)``."""
        beta = self._published
        if not self.zero_snr:
            return beta
        alpha = torch.cumprod(1 - beta, 0).sqrt()
        square = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))).square()
        return 1 - torch.cat([square[:1], square[1:] / square[:-1]])

    @property
    def _published(self) -> Tensor:
        """The betas before any rescaling for ``zero_snr``."""
        if self.betas is not None:
            return torch.tensor(self.betas, dtype=torch.float64)
        if self.schedule == "cosine":
            # abar(t) = cos(u)^2/cos(u_0)^2, and 1 - cos(b)^2/cos(a)^2 = sin(b - a) sin(b + a)/cos(a)^2
            u = (torch.arange(self.steps + 1, dtype=torch.float64) / self.steps + 0.008) / 1.008 * math.pi / 2
            a, b = u[:-1], u[1:]
            return (torch.sin(b - a) * torch.sin(b + a) / torch.cos(a).square()).clamp(max=0.999)
        first, last = (e / self.steps for e in _ENDS[self.schedule])
        first, last = first if self.start is None else self.start, last if self.end is None else self.end
        if self.schedule == "linear":
            return torch.linspace(first, last, self.steps, dtype=torch.float64)
        return torch.linspace(math.sqrt(first), math.sqrt(last), self.steps, dtype=torch.float64).square()

    @cached_property
    def _table(self) -> Tensor:
        """The values of ``log alpha`` at the times 0, 1/N, ..., 1."""
        return torch.cat([self.beta.new_zeros(1), torch.log1p(-self.beta).cumsum(0) / 2])

    def _log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``log alpha`` and its time derivative.

        At a node, the derivative is the slope in the interval that ends at the node.
        """
        table, position = self._table.to(device=t.device, dtype=t.dtype), t * self.steps
        # Rounding can turn position 3 into 3.0000000000000004, which must still belong to the third interval.
        i = (torch.ceil(position * (1 - 4 * torch.finfo(t.dtype).eps)).long() - 1).clamp(0, self.steps - 1)
        rise, part = table[i + 1] - table[i], position - i
        if not self._ends_in_noise:
            return table[i] + part * rise, self.steps * rise
        # In the last interval, log alpha falls to minus infinity, so alpha itself is linear there.
        last, left = i == self.steps - 1, (1 - part).clamp(0, 1)
        rise = torch.where(last, 0.0, rise)
        value = table[i] + torch.where(last, torch.log(left), part * rise)
        return value, self.steps * torch.where(last, -1 / left, rise)

    @cached_property
    def _ends_in_noise(self) -> bool:
        """Whether the last beta is 1."""
        return float(self.beta[-1]) == 1

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t)[0])

    def sigma(self, t: Tensor) -> Tensor:
        # expm1 avoids the cancellation in 1 - prod (1 - beta_j) near the data.
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)[0]))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # alpha' = alpha (log alpha)',  sigma' = -alpha alpha'/sigma
        (alpha, sigma), slope = self.coefficients(t), self._log_alpha(t)[1]
        d_alpha = alpha * slope
        if self._ends_in_noise:  # at the end of the last step, alpha is 0 and the slope is infinite
            d_alpha = torch.where(alpha == 0, -self.steps * torch.exp(self._table[-2]).to(t), d_alpha)
        return d_alpha, -alpha * d_alpha / sigma

    def diffusion_squared(self, t: Tensor) -> Tensor:
        # This formula also holds at t = 0, where sigma' is infinite.
        return -2 * self._log_alpha(t)[1]

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # log alpha = logsigmoid(log_snr)/2 is looked up in the table, which is decreasing.
        target = torch.nn.functional.logsigmoid(log_snr.to(time_dtype(log_snr.device))) / 2
        table = self._table.to(target)
        i = (torch.searchsorted(-table, (-target).contiguous()) - 1).clamp(0, self.steps - 1)
        part = (target - table[i]) / (table[i + 1] - table[i])
        if self._ends_in_noise:
            part = torch.where(i == self.steps - 1, -torch.expm1(target - table[i]), part)
        t = (i + part) / self.steps
        return t.clamp(self.t_min, self.t_max)

    @property
    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class SMLD(Exploding, _Chain):
    """The chain of score matching with Langevin dynamics (NCSN), with alpha = 1 and geometrically spaced noise levels.

    Song and Ermon (2019), arXiv:1907.05600, used 10 levels from 1 to 0.01. For CIFAR-10, Song and Ermon (2020),
    arXiv:2006.09011, used 232 levels from 50 to 0.01, and Song et al. (2021), arXiv:2011.13456, used 1000 levels.

    Args:
        steps: N, the number of noise levels.
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level, or ``auto`` to compute it from the training data (usually the largest
            distance between two samples).

    Example:
        >>> chain = SMLD(steps=3, sigma_min=0.1, sigma_max=10.0)
        >>> [round(float(s), 6) for s in chain.sigma(chain.nodes)]
        [0.1, 1.0, 10.0]
    """

    steps: int = 1000
    sigma_min: float = 0.01
    sigma_max: float | str = 50.0

    @property
    def _rate(self) -> float:
        """The time derivative of ``log sigma``."""
        return math.log(self.highest / self.sigma_min) * self.steps / (self.steps - 1)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp((t - self.t_min) * self._rate)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.sigma(t) * self._rate

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        t = self.t_min - (log_snr / 2 + math.log(self.sigma_min)) / self._rate
        return t.clamp(self.t_min, self.t_max)
