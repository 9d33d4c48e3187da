"""The profiles of moving averages of the weights, and how averages of other widths follow from them after training.

An average is updated after each training step,

    w_avg <- d(n) w_avg + (1 - d(n)) w,    n = 1, 2, ...,                                                      (1)

where d is the decay. Its profile is the share that each step has in it. There are two kinds:

    Decay:  d(n) = min(decay, (1 + n) / (10 + n))
    Power:  d(n) = (1 - 1/n)^(gamma + 1)                                                                       (2)

(Karras et al. 2024, arXiv:2312.02696, sec. 3.1). After t steps, the share of step n in a power-function average is the
integral from n - 1 to n of the density

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),    0 <= tau <= t.                                          (3)

Its width sigma_rel is the standard deviation of this density relative to t. It determines gamma:

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).                                                   (4)

The shape of the profile relative to the length of the run is the same at all times, and the average forgets the random
initial weights at once, because d(1) = 0.

An average of another width is a linear combination of averages stored during training. Its coefficients minimise the
integral of the squared difference between the two profiles (Karras et al., appendix C). If averages of the same widths
are stored at all times t_1 < ... < t_N, the problem falls apart. Two successive averages of one width differ only by
the density between their times, so the stored averages span exactly the functions

    u^gamma_j on (t_(k-1), t_k] and 0 elsewhere,    k = 1, ..., N,                                             (5)

with t_0 = 0 and u = tau / t_k. Functions on different intervals are orthogonal, and so the normal equations have one
small block for each interval, with the entries

    integral of u^s over an interval = (1 - (t_(k-1) / t_k)^(s + 1)) / (s + 1).                                (6)

This is the solution of the full system, without its poor condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..core.errors import UsageError
from ..core.limits import FRACTION, Checked, Range, ranges

__all__ = ["EXAMPLE", "WIDTHS", "Decay", "Power", "Profile", "coefficients", "profiles_of", "profiles_text"]

WIDTHS = (0.05, 0.20)  # the widths that may be reconstructed
EXAMPLE = "0.9999,power:0.05,power:0.1"


@dataclass(frozen=True)
class Decay(Checked):
    """An exponential profile with a warm-up. Until d reaches ``decay``, it covers about the last tenth of the steps.

    Args:
        decay: Maximum value of d.
    """

    limits: ClassVar = ranges(decay=FRACTION)

    decay: float = 0.9999

    def __call__(self, n: int) -> float:
        """Return d at update ``n``, counted from 1."""
        return min(self.decay, (1 + n) / (10 + n))

    def __str__(self) -> str:
        return repr(self.decay)


@dataclass(frozen=True)
class Power(Checked):
    """A power-function profile (equation 2).

    Args:
        sigma_rel: The width of the profile, relative to the length of the training.
    """

    # A uniform profile (gamma = 0) has the width 1 / sqrt(12) = 0.289, and a wider one would favour the early steps.
    limits: ClassVar = ranges(sigma_rel=Range(0.01, 0.28))

    sigma_rel: float

    @cached_property
    def gamma(self) -> float:
        """The exponent of the profile, which is the largest root of equation 4."""
        t = self.sigma_rel**-2
        return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())

    def __call__(self, n: int) -> float:
        """Return d at update ``n``, counted from 1."""
        return float((1 - 1 / n) ** (self.gamma + 1))

    def __str__(self) -> str:
        return f"power:{self.sigma_rel!r}"


Profile = Decay | Power


def profiles_of(text: float | str) -> tuple[Profile, ...]:
    """Read profiles from a decay, or from text such as ``0.9999,power:0.05,power:0.1``.

    Raises:
        UsageError: If the text is invalid, or contains a profile twice.

    >>> profiles_of("0.999,power:0.1")
    (Decay(decay=0.999), Power(sigma_rel=0.1))
    """
    found: list[Profile] = []
    for part in str(text).split(","):
        kind, colon, width = part.strip().rpartition(":")
        try:
            number = float(width)
        except ValueError:
            number = math.nan
        if math.isnan(number) or kind.strip() != ("power" if colon else ""):
            raise UsageError(
                f"ema is {text!r}, but {part.strip()!r} is not an average; it must be a decay from 0 to 1 or, with its "
                f"width, a power function, as in {EXAMPLE}",
                parameter="ema",
                value=EXAMPLE,
            )
        try:
            found.append(Power(number) if colon else Decay(number))
        except UsageError as error:
            raise UsageError(f"ema is {text!r}: {error}", parameter="ema", value=EXAMPLE) from None
    if len(set(found)) < len(found):
        raise UsageError(f"ema is {text!r}, which contains an average twice; name each of them once", parameter="ema")
    return tuple(found)


def profiles_text(ema: Any) -> Any:
    """Return the averages of a configuration in the form in which they are stored, which is a decay or text.

    Args:
        ema: A decay, text as for :func:`profiles_of`, or a sequence of several decays, texts and profiles.
    """
    if isinstance(ema, tuple | list) and len(ema) > 1:
        ema = ",".join(map(str, ema))
    if not isinstance(ema, str):
        return ema
    profiles = profiles_of(ema)
    first = profiles[0]
    return first.decay if len(profiles) == 1 and isinstance(first, Decay) else ",".join(map(str, profiles))


def coefficients(
    steps: Sequence[int], profiles: Sequence[Power], target: Power
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the coefficients of stored averages in an average of another width, at the last of the ``steps``.

    Args:
        steps: The N steps after which averages were stored, in ascending order. The average of width ``target`` is that
            after the last of them.
        profiles: The J different profiles of which averages were stored, each of them at all steps.
        target: The profile of the average to reconstruct.

    Returns:
        The coefficients ``(N, J)``, and the relative error of the combined profile: the root of the integral of the
        squared difference to the profile ``target``, divided by that of the squared profile.

    >>> found, error = coefficients(range(10, 641, 10), [Power(0.05), Power(0.1)], Power(0.2))
    >>> found.shape, round(float(found.sum()), 3), round(error, 4)
    ((64, 2), 1.0, 0.0017)
    """
    t = np.asarray(steps, dtype=np.float64)
    if not len(t) or t[0] <= 0 or (np.diff(t) <= 0).any():
        raise UsageError("the steps of the stored averages must be positive and in ascending order", parameter="steps")
    start = np.concatenate([[0.0], t[:-1]])
    gammas, gamma = np.array([profile.gamma for profile in profiles]), target.gamma
    with np.errstate(divide="ignore"):
        ratio = np.log(start / t)  # -infinity in the first interval

    def integral(power: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
        exponent = np.asarray(power) + 1
        found: npt.NDArray[np.float64] = -np.expm1(np.multiply.outer(ratio, exponent)) / exponent
        return found

    # On each interval, the target is height * u^gamma. Times are in units of the last.
    height = (gamma + 1) * np.exp(gamma * np.log(t / t[-1]))
    inner, given = integral(gammas[:, None] + gammas), height[:, None] * integral(gammas + gamma)
    size = np.sqrt(integral(2 * gammas))
    scaled = np.linalg.solve(inner / (size[:, :, None] * size[:, None, :]), (given / size)[..., None])[..., 0]
    found = scaled / size

    squares = t / t[-1] * (height**2 * integral(2 * gamma) - (found * given).sum(1))
    error = math.sqrt(max(0.0, float(squares.sum())) * (2 * gamma + 1)) / (gamma + 1)

    # u^gamma_j on an interval is the stored average at its end, less what of it lies before its start.
    found = found * (t / t[-1])[:, None] / (gammas + 1)
    before = found[1:] * np.exp((gammas + 1) * ratio[1:, None])
    found[:-1] -= before
    return found, error
