"""How the learning rate changes during training: the warm-up, and the decay that follows it.

At step n = 0, 1, ..., the learning rate is the largest rate times the factor

    min(1, (n + 1)/warmup) * d(n, N),                                                                           (1)

where N is the number of steps and d, which is 1 at the start and never rises, is the decay:

    ``cosine``      end + (1 - end) (1 + cos(pi n/N))/2             Loshchilov and Hutter 2017, eq. 5
    ``linear``      end + (1 - end) (1 - n/N)
    ``wsd``         end + (1 - end) min(1, (1 - n/N)/share)         Hu et al. 2024: warm up, stay, decay
    ``rsqrt``       1/sqrt(max(1, n/after))                         Karras et al. 2024
    ``constant``    1

The first two depend on N at every step, ``wsd`` only in its last part, and the others not at all. A run that is resumed
with another number of steps therefore continues on another curve under ``cosine`` and ``linear``: 10 steps and then 10
more are not 20. :func:`bent` says so.

References:
    Loshchilov and Hutter (2017), arXiv:1608.03983. Hu et al. (2024), arXiv:2404.06395. Karras et al. (2024),
    arXiv:2312.02696.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from ..core.limits import COUNT, FRACTION, QUANTILE, Checked, ranges
from ..core.registry import build
from ..core.tables import RATES
from ..run.config import TrainConfig

__all__ = ["Constant", "Cosine", "InverseSqrt", "Linear", "Rate", "WarmupStableDecay", "bent", "make_rate", "rate_at"]


class Rate(Checked, ABC):
    """The base class of decays of the learning rate. A decay is called with a step and the number of all steps."""

    @abstractmethod
    def __call__(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate at a step, counted from 0, of a run of ``steps`` steps."""


@dataclass(frozen=True)
class Constant(Rate):
    """A constant learning rate."""

    def __call__(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Rate):
    """Half a period of a cosine over the whole run (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5).

    Args:
        end: The factor at the end of the run, from 0 to 1.
    """

    limits = ranges(end=FRACTION)

    end: float = 0.0

    def __call__(self, step: int, steps: int) -> float:
        return _between(0.5 * (1 + math.cos(math.pi * step / steps)), self.end)


@dataclass(frozen=True)
class Linear(Rate):
    """A straight line over the whole run.

    Args:
        end: The factor at the end of the run, from 0 to 1.
    """

    limits = ranges(end=FRACTION)

    end: float = 0.0

    def __call__(self, step: int, steps: int) -> float:
        return _between(1 - step / steps, self.end)


@dataclass(frozen=True)
class WarmupStableDecay(Rate):
    """A constant rate that falls along a straight line in the last part of the run (Hu et al. 2024, arXiv:2404.06395).

    A run can be extended as long as its decay has not begun.

    Args:
        share: The part of the run in which the rate falls, above 0 and at most 1.
        end: The factor at the end of the run, from 0 to 1.
    """

    limits = ranges(share=QUANTILE, end=FRACTION)

    share: float = 0.2
    end: float = 0.0

    def __call__(self, step: int, steps: int) -> float:
        return _between(min(1.0, (steps - step) / (self.share * steps)), self.end)


@dataclass(frozen=True)
class InverseSqrt(Rate):
    """A rate that falls as the inverse square root of the step (Karras et al. 2024, arXiv:2312.02696).

    Karras et al. use 35,000 to 70,000 steps for ``after``, with runs of up to a million steps.

    Args:
        after: The step from which the rate falls.
    """

    limits = ranges(after=COUNT)

    after: int = 1000

    def __call__(self, step: int, steps: int) -> float:
        return 1 / math.sqrt(max(1.0, step / self.after))


def _between(part: float, end: float) -> float:
    """Return the value on the way from 1 (``part`` 1) to ``end`` (``part`` 0)."""
    return end + (1 - end) * part


def make_rate(config: TrainConfig) -> Rate:
    """Return the decay of a configuration.

    Raises:
        UsageError: If it has no such option, or if an option is invalid.
    """
    name = "constant" if config.decay == "none" else config.decay
    made: Rate = build(name, RATES, "decay", config.decay_options, typed=config.typed, kind=Rate)
    return made


def rate_at(config: TrainConfig, rate: Rate, step: int) -> float:
    """Return the learning rate of a step, counted from 0 (equation 1). The configuration must have been resolved."""
    return config.lr * (min(1.0, (step + 1) / config.warmup) * rate(step, config.steps))


def bent(config: TrainConfig, done: int, before: int) -> str:
    """Explain that another number of steps bends the curve of the learning rate, or return "" if it does not.

    The curve is bent if the last finished step would have had another rate in a run of the new length. Because a decay
    never rises, the steps before it then agreed, too.

    Args:
        config: The resolved configuration, with the new number of steps.
        done: Number of finished steps.
        before: The number of steps that the run had until now.
    """
    rate = make_rate(config)
    if not 0 < done < config.steps or math.isclose(rate(done - 1, before), rate(done - 1, config.steps)):
        return ""
    last, following = rate_at(replace(config, steps=before), rate, done - 1), rate_at(config, rate, done)
    return (
        f"the decay {config.decay!r} of the learning rate depends on the number of steps, which was {before:,} and is "
        f"now {config.steps:,}; the rate goes from {last:.3g} at step {done:,} to {following:.3g} at the next step, "
        f"which is not the curve of a run of {config.steps:,} steps; to extend runs, use the decay 'constant' or "
        "'rsqrt', or 'wsd' before its last part"
    )
