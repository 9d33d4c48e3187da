"""Distributions of training times.

A time sampler is a quantile function Q on (0, 1): ``t = Q(u)`` with u uniform has the density ``p(t) = 1/Q'(u)``.
Stratified sampling draws one u in each of ``count`` cells, ``u_i = (i + shift)/count`` with a single uniform shift.
The mean loss over stratified draws has the same expectation as the mean loss over independent draws, but less variance
(Kingma et al. 2021, arXiv:2107.00630, app. I.1).

Let w be the weighting and L the loss. There are two kinds of non-uniform samplers. With *emphasis*, draws are not
reweighted, so p is part of the objective, as a factor on the weighting,

    E_p w(t) L(t) = int p(t) w(t) L(t) dt.                                                                         (1)

With *importance*, each draw has the weight ``1/(p(t) (high - low))``, so that for any p the expected loss equals that
for times uniform on ``[low, high]``,

    E_p w(t) L(t) / (p(t) (high - low)) = (high - low)^-1 int w(t) L(t) dt,                                        (2)

and p affects only the variance of individual draws. The best choice is ``p ~ sqrt(E (w L)^2)``.

    ``uniform``              t uniform, draws independent                                            neither
    ``low-discrepancy``      t uniform, stratified                                                   neither
    ``sqrt``                 sqrt(t) uniform                                                         emphasis
    ``lognormal``            log(sigma/alpha) normal; Karras et al. 2022, arXiv:2206.00364, tab. 1   emphasis
    ``logit-normal``         logit(t) normal; Esser et al. 2024, arXiv:2403.03206, eq. 19            emphasis
    ``mode``                 mostly in the middle, heavy tails; Esser et al. 2024, eq. 20            emphasis
    ``importance``           p ~ weight on |eps_hat - eps|^2; Song, Durkan et al. 2021,              importance
                             arXiv:2101.09258, sec. 4.3
    ``loss-second-moment``   p ~ sqrt(E L^2) of recent losses; Nichol and Dhariwal 2021,             importance
                             arXiv:2102.09672, sec. 3.3

All samplers stay within the domain ``[low, high]``. A distribution that extends beyond this domain is truncated, not
clamped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import CheckpointError, UsageError
from ..core.limits import Checked, Range, ranges
from ..core.registry import READ, Typed, build
from ..core.tables import PARAMETRIZATIONS, TIME_SAMPLERS
from ..model.parametrization import Eps, Parametrization
from ..sde.base import SDE
from ..sde.check import check_scalar
from ..sde.grids import finite_log_snr, make_grid
from .weighting import Native, Weight, log_snr_speed, noise_factor

__all__ = [
    "Importance",
    "LogNormal",
    "LogitNormal",
    "LossSecondMoment",
    "LowDiscrepancy",
    "Mode",
    "Setting",
    "Sqrt",
    "TimeSampler",
    "Times",
    "independent",
    "make_times",
]


@dataclass(frozen=True)
class Setting:
    """The path, the prediction and the weighting of a loss, and the interval from which times are drawn.

    Args:
        sde: The path.
        low, high: The ends of the interval.
        parametrization: The prediction, which defines the output of the network.
        weighting: The factor on the squared error of the output (see :mod:`scoresde.objective.weighting`).
    """

    sde: SDE
    low: float
    high: float
    parametrization: Parametrization = field(default_factory=Eps)
    weighting: Weight = field(default_factory=Native)

    @property
    def ends(self) -> Tensor:
        """The ends of the interval, ``[low, high]``, as a float64 tensor of shape ``(2,)``."""
        return torch.tensor([self.low, self.high], dtype=torch.float64)


_MEAN, _STD = Range(-1000, 1000), Range(0, 1e9, above=True)


@dataclass(frozen=True, kw_only=True)
class TimeSampler(Checked, ABC):
    """A distribution of training times.

    To write a time sampler, define a frozen dataclass that inherits from this class, and implement :meth:`quantile`.

    Args:
        stratified: Whether to divide the distribution into cells of equal probability, one for each draw, and to draw
            one time from each cell. Otherwise, the draws are independent.

    Attributes:
        emphasis: Whether the density is part of the objective (equation 1). If not, the weights of the draws compensate
            for the density (equation 2).
    """

    emphasis: ClassVar[bool] = True
    stratified: bool = True

    @abstractmethod
    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        """Return the quantiles of the time distribution at the probabilities ``u``.

        The result is a float64 tensor with the same shape as ``u``.
        """

    def check(self, setting: Setting) -> None:
        """Check that this sampler supports the time interval, the path and the weighting of ``setting``.

        Raises:
            UsageError: If the sampler does not support them.
        """
        if self.emphasis and getattr(setting.weighting, "per_log_snr", False):
            raise UsageError(
                f"the weighting {setting.weighting} is defined for times uniform in t, but {self} draws some values "
                "of t more often, which would change the loss; use the 'low-discrepancy' or 'importance' time sampler"
            )

    def over(self, setting: Setting) -> Times:
        """Return this sampler, bound to a setting."""
        return Times(self, setting)


class Times:
    """A time sampler bound to a setting, as used by the training loop.

    Args:
        sampler: The distribution.
        setting: The setting to which the sampler is bound.
    """

    def __init__(self, sampler: TimeSampler, setting: Setting) -> None:
        sampler.check(setting)
        self.sampler, self.setting = sampler, setting

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw ``count`` times and the weights of their losses, both float64 ``(count,)`` on the CPU."""
        if self.sampler.stratified:
            shift = torch.rand((), generator=generator, dtype=torch.float64)
            u = (torch.arange(count, dtype=torch.float64) + shift) / count
        else:
            u = torch.rand(count, generator=generator, dtype=torch.float64)
        t = self.quantile(u).clamp(self.setting.low, self.setting.high)
        return t, self.weight(t)

    def quantile(self, u: Tensor) -> Tensor:
        """Return the quantiles of the time distribution at the probabilities ``u``, with the same shape as ``u``."""
        return self.sampler.quantile(u, self.setting)

    def weight(self, t: Tensor) -> Tensor:
        """Return the weights of draws at the times ``t`` (equation 2). If draws are not reweighted, the weights are 1.

        The result has the same shape as ``t``.
        """
        return torch.ones_like(t)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the unweighted ``losses: (count,)`` at the times ``t: (count,)`` of the last draw."""

    def state(self) -> dict[str, Tensor]:
        """Return what the sampler has learned, as a dictionary of tensors. Training saves this state."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that :meth:`state` returned."""


# ----------------------------------------------------------------------------------------------------- in closed form


@dataclass(frozen=True)
class LowDiscrepancy(TimeSampler):
    """Times that are distributed uniformly in t, and stratified within a batch by default.

    Most papers also use times that are uniform in t, but draw them independently.
    """

    emphasis = False

    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        return setting.low + (setting.high - setting.low) * u


def independent() -> LowDiscrepancy:
    """Return a sampler of independent times that are uniform in t: :class:`LowDiscrepancy` without stratification."""
    return LowDiscrepancy(stratified=False)


@dataclass(frozen=True)
class Sqrt(TimeSampler):
    """Times uniform in sqrt(t), so that the low noise levels of VP and sub-VP are drawn more often.

    Times below 0.01 cover about a third of the log-SNR range of the variance-preserving path, but a sampler that is
    uniform in t draws only 1 % of its times there.
    """

    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        low, high = math.sqrt(setting.low), math.sqrt(setting.high)
        return (low + (high - low) * u).square()


@dataclass(frozen=True)
class LogNormal(TimeSampler):
    """Times with ``log(sigma/alpha) ~ N(mean, std^2)`` on any path (Karras et al. 2022, arXiv:2206.00364, tab. 1).

    Args:
        mean, std: Mean and standard deviation of the log noise level. The defaults are for data with a standard
            deviation of about 0.5. EDM2 uses -0.4 and 1.
    """

    limits = ranges(mean=_MEAN, std=_STD)

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        z = self.mean + self.std * _cut_normal(u, self._ends(setting))
        return setting.sde.t_of_log_snr(-2 * z)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        _reach(self, self._ends(setting), setting)

    def _ends(self, setting: Setting) -> Tensor:
        return (-setting.sde.log_snr(setting.ends) / 2 - self.mean) / self.std


@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """Times with ``log(t/(1 - t)) ~ N(mean, std^2)`` (Esser et al. 2024, arXiv:2403.03206, eq. 19).

    On the straight path, this distribution equals that of :class:`LogNormal` with the same ``mean`` and ``std``. The
    shift of Esser et al. by a factor s, ``t' = s t/(1 + (s - 1) t)``, corresponds to adding log(s) to ``mean``.

    Args:
        mean, std: Mean and standard deviation of the logit of t.
    """

    limits = ranges(mean=_MEAN, std=_STD)

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _cut_normal(u, self._ends(setting)))

    def check(self, setting: Setting) -> None:
        super().check(setting)
        if not 0 <= setting.low < setting.high <= 1:
            low, high = setting.low, setting.high
            raise UsageError(
                f"logit-normal times lie between 0 and 1, but the time interval is {low:g} to {high:g}; use another "
                "time sampler, such as 'lognormal'"
            )
        _reach(self, self._ends(setting), setting)

    def _ends(self, setting: Setting) -> Tensor:
        return (torch.logit(setting.ends) - self.mean) / self.std


@dataclass(frozen=True)
class Mode(TimeSampler):
    """Times concentrated in the middle, with heavy tails at both ends (Esser et al. 2024, arXiv:2403.03206, eq. 20).

    Args:
        k: The parameter s of the paper, from -1 (more times at the ends) through 0 (uniform) to 2/(pi - 2) = 1.75 (more
            times in the middle).
    """

    limits = ranges(k=Range(-1, 2 / (math.pi - 2), hint="outside -1 to 2/(pi - 2), t does not increase with u"))

    k: float = 1.29

    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        # the paper's f(u) = 1 - u - k (cos^2(pi u/2) - 1 + u) at 1 - u, so that t increases with u
        v = u - self.k * (torch.sin(math.pi / 2 * u).square() - u)
        return setting.low + (setting.high - setting.low) * v


# -------------------------------------------------------------------------------------------------------- by the loss


@dataclass(frozen=True)
class Importance(TimeSampler):
    """Times drawn with a density proportional to the weight w that the loss gives to ``|eps_hat - eps|^2``.

    This is the sampler of Song, Durkan et al. (2021), arXiv:2101.09258, sec. 4.3. With the ``likelihood`` weighting,
    ``w = g^2/sigma^2 = -dl/dt``, so times are uniform in the log-SNR l, and ``int w dt`` is the range of l. In
    general, the inverse of ``int w dt`` is computed from a table.

    If the log-SNR is infinite at an end of the interval, the ``likelihood`` weighting would put all draws there. In
    this case, the times end at a log-SNR of -20 (instead of minus infinity) or 20 (instead of infinity).

    Args:
        error: The name of the output whose error is assumed to be equally large at all times (see
            :data:`scoresde.core.tables.PARAMETRIZATIONS`). ``eps`` is the published choice. ``edm`` is exact for
            Gaussian data of unit variance, and suits weightings that favour high noise.
    """

    emphasis = False
    error: str = "eps"

    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        return self.over(setting).quantile(u)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        check_scalar(
            setting.sde, "the 'importance' time sampler", "the 'low-discrepancy' time sampler", parameter="t_sampler",
            value="low-discrepancy",
        )  # fmt: skip
        if setting.sde.parameters():
            raise UsageError(
                "the 'importance' time sampler has a fixed density, so it does not support a learned path; use the "
                "'low-discrepancy' time sampler"
            )

    def over(self, setting: Setting) -> Times:
        return _Tabulated(self, setting)


class _Tabulated(Times):
    """Importance sampling with a table of ``int w dt`` at equally spaced values of the log-SNR."""

    cells = 4096

    def __init__(self, sampler: Importance, setting: Setting) -> None:
        super().__init__(sampler, setting)
        # Options from a file were already checked by the registry, which rejects names that are not built-ins.
        self.error: Parametrization = build(
            sampler.error, PARAMETRIZATIONS, "prediction", typed=True, kind=Parametrization
        )
        ends = finite_log_snr(setting.sde, setting.ends)
        self.log_snr = torch.linspace(float(ends[0]), float(ends[1]), self.cells + 1, dtype=torch.float64)
        t = setting.sde.t_of_log_snr(self.log_snr).clamp(setting.low, setting.high)
        self.span = float(t[-1] - t[0])
        speed = log_snr_speed(setting.sde, t)
        step = (self.log_snr[0] - self.log_snr[-1]) / self.cells
        slope = self.density(t) / speed
        self.integral = torch.cat([slope.new_zeros(1), (slope[1:] + slope[:-1]).cumsum(0) * (step / 2)])
        self.total = float(self.integral[-1])
        self._check(t, speed)

    def density(self, t: Tensor) -> Tensor:
        """Return the density p at the times ``t``, multiplied by ``total``.

        The result is the weight that the loss gives to the squared error of the output ``error``.
        """
        sde, own = self.setting.sde, self.setting.parametrization
        factor = noise_factor(sde, own, t) / noise_factor(sde, self.error, t)
        return self.setting.weighting(sde, own, t) / factor

    def quantile(self, u: Tensor) -> Tensor:
        return self.setting.sde.t_of_log_snr(_interpolate(u * self.total, self.integral, self.log_snr))

    def weight(self, t: Tensor) -> Tensor:
        return self.total / (self.density(t) * self.span)

    def _check(self, t: Tensor, speed: Tensor) -> None:
        """Reject a weighting without a finite integral, or one whose loss varies less with uniform times."""
        if not 0 < self.total < math.inf:
            raise UsageError(
                "the 'importance' time sampler needs a weighting whose integral over t is positive and finite, but "
                f"the integral of {self.setting.weighting} is {self.total:.3g}; use another weighting, or the "
                "'low-discrepancy' time sampler"
            )
        # The loss is w m, with m = E |eps_hat - eps|^2 = SNR/(SNR + 1) for Gaussian data of unit variance. The second
        # moment is int (w m)^2 dt/span with uniform times, and total int (w m)^2/density dt/span^2 with this sampler.
        sde, own = self.setting.sde, self.setting.parametrization
        w = self.setting.weighting(sde, own, t) / noise_factor(sde, own, t)
        square = (w * torch.sigmoid(self.log_snr)).square()
        mine = torch.where(square > 0, square / self.density(t), 0.0) * (self.total / self.span)
        ratio = float(torch.trapezoid(mine / speed) / torch.trapezoid(square / speed))
        if ratio > 1 + 1e-6:
            raise UsageError(
                f"with the time sampler {self.sampler} and the weighting {self.setting.weighting}, the mean square of "
                f"the loss is {ratio:.3g} times as large as with uniform times (for Gaussian data); set the sampler's "
                "option error='edm', or use the 'low-discrepancy' time sampler",
                parameter="t_sampler.error",
                value="edm",
            )


@dataclass(frozen=True)
class LossSecondMoment(TimeSampler):
    """Times drawn more often where recent losses L are larger, with the density ``p(t) ~ sqrt(E L^2)``.

    This is the sampler of Nichol and Dhariwal (2021), arXiv:2102.09672, sec. 3.3. Within each bin, t is uniform. The
    bins are the cells of the SDE's default grid. All bins are equally likely until every bin has a full history of
    losses.

    Args:
        bins: Number of bins. In the paper, there is one bin for each node of a discrete model.
        history: Number of recent losses to remember for each bin.
        uniform: Fraction of draws that are spread evenly over all bins, so that no bin is neglected.
    """

    limits = ranges(bins=Range(2, 10_000), history=Range(1, 10_000), uniform=Range(0, 1, above=True))

    emphasis = False
    bins: int = 64
    history: int = 10
    uniform: float = 0.001

    def quantile(self, u: Tensor, setting: Setting) -> Tensor:
        return self.over(setting).quantile(u)

    def over(self, setting: Setting) -> Times:
        return _Remembering(self, setting)


class _Remembering(Times):
    """Importance sampling according to the most recent losses in each bin."""

    sampler: LossSecondMoment

    def __init__(self, sampler: LossSecondMoment, setting: Setting) -> None:
        super().__init__(sampler, setting)
        self.edges = make_grid("auto", setting.sde, sampler.bins, setting.low, setting.high)
        self.losses: list[deque[float]] = [deque(maxlen=sampler.history) for _ in range(sampler.bins)]

    def probabilities(self) -> Tensor:
        """Return the probability of each bin."""
        bins = self.sampler.bins
        alike = torch.full((bins,), 1 / bins, dtype=torch.float64)
        if any(len(losses) < self.sampler.history for losses in self.losses):
            return alike
        second_moment = torch.tensor([list(losses) for losses in self.losses], dtype=torch.float64).square().mean(1)
        p = self.edges.diff() * second_moment.sqrt()
        return torch.lerp(p / p.sum(), alike, self.sampler.uniform) if float(p.sum()) > 0 else alike

    def quantile(self, u: Tensor) -> Tensor:
        levels = torch.cat([u.new_zeros(1), self.probabilities().cumsum(0)])
        return _interpolate(u * levels[-1], levels, self.edges)

    def weight(self, t: Tensor) -> Tensor:
        # 1/(p (high - low)) with p = probability/width of the bin
        uniform = self.edges.diff() / (self.edges[-1] - self.edges[0])
        return (uniform / self.probabilities())[self._bin(t)]

    def update(self, t: Tensor, losses: Tensor) -> None:
        for i, loss in zip(self._bin(t).tolist(), losses.tolist(), strict=True):
            self.losses[i].append(loss)

    def state(self) -> dict[str, Tensor]:
        rows = [[*losses, *[math.nan] * (self.sampler.history - len(losses))] for losses in self.losses]
        return {"losses": torch.tensor(rows, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        stored = state.get("losses")
        expected = (self.sampler.bins, self.sampler.history)
        if stored is None or stored.shape != expected:
            found = "none" if stored is None else tuple(stored.shape)
            raise CheckpointError(f"the stored losses of {self.sampler} must have shape {expected}; got {found}")
        self.losses = [deque(row[~row.isnan()].tolist(), maxlen=self.sampler.history) for row in stored]

    def _bin(self, t: Tensor) -> Tensor:
        return torch.searchsorted(self.edges, t).clamp(1, self.sampler.bins) - 1


# ------------------------------------------------------------------------------------------------------------- pieces


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate linearly at ``x`` between the points ``(xs, ys)``. ``xs`` must be increasing."""
    i = torch.searchsorted(xs, x, right=True).clamp(1, len(xs) - 1)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return torch.lerp(ys[i - 1], ys[i], share)


def _cut_normal(u: Tensor, ends: Tensor) -> Tensor:
    """Return the ``u``-quantiles of the standard normal distribution truncated to ``ends``."""
    below, above = torch.special.ndtr(ends).tolist()
    z: Tensor = torch.special.ndtri(below + (above - below) * u)
    return z


def _reach(sampler: TimeSampler, ends: Tensor, setting: Setting) -> None:
    """Raise an error if only the far tail of the standard normal distribution lies between the ``ends``."""
    outside = max(float(ends[0]), -float(ends[1]))
    if outside > 3:
        raise UsageError(
            f"the mean of {sampler} lies {outside:.3g} standard deviations outside the training times of "
            f"{setting.sde} (t = {setting.low:g} to {setting.high:g}); use another mean"
        )


def make_times(sampler: str | TimeSampler, options: Mapping[str, Any], setting: Setting, typed: Typed = READ) -> Times:
    """Build a time sampler, and bind it to a setting.

    Args:
        sampler: The name of the sampler, or the sampler itself.
        options: The fields of the sampler.
        setting: The setting to which the sampler is bound.
        typed: Which names were typed by a person, rather than read from a file (:mod:`scoresde.core.registry`).

    Raises:
        UsageError: If the name or an option is unknown, or if the sampler does not support the setting.
        CheckpointError: If the name was read from a file and is not a built-in.
    """
    made = build(sampler, TIME_SAMPLERS, "time sampler", options, typed=typed)
    if not isinstance(made, TimeSampler):
        raise UsageError(
            f"{sampler!r} is not a time sampler; it must be a frozen dataclass that subclasses "
            "scoresde.objective.times.TimeSampler"
        )
    return made.over(setting)
