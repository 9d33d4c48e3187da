"""Weightings of the denoising loss, which set how much an error counts at each noise level.

Up to a factor, the error of an output F with the target ``a x_0 + b eps`` equals the error of the estimated noise or of
the estimated data, because ``alpha x0_hat + sigma eps_hat = x_t`` is exact:

    |F - target|^2 = (d/alpha)^2 |eps_hat - eps|^2 = (d/sigma)^2 |x0_hat - x_0|^2,      d = a sigma - b alpha.     (1)

Each weighting is therefore defined once, as a weight ``w`` on ``|eps_hat - eps|^2``. Calling the weighting returns
``w (alpha/d)^2``, the factor on the squared error of the network output F. With ``SNR = alpha^2/sigma^2``,
``l = log SNR`` and ``l' = dl/dt``, the weights w are

    ``native``      (d/alpha)^2         the factor on |F - target|^2 is 1: plain regression
    ``eps``         1                   the simple loss of Ho et al. 2020, eq. 14
    ``x0``          1/SNR               |x0_hat - x_0|^2
    ``v``           1 + 1/SNR           (SNR + 1) |x0_hat - x_0|^2, Salimans and Ho 2022, sec. 4
    ``score``       1/sigma^2           |score - grad log p(x_t | x_0)|^2
    ``likelihood``  g^2/sigma^2         ``score`` times g^2, Song, Durkan et al. 2021, thm. 1
    ``p2``          (k + SNR)^-gamma    Choi et al. 2022
    ``min-snr``     min(1, gamma/SNR)   min(SNR, gamma) |x0_hat - x_0|^2, Hang et al. 2023
    ``edm``         1 + 1/(s^2 SNR)     Karras et al. 2022, tab. 1; s is ``data_std``
    ``sigmoid``     sigmoid(bias - l) (-l')     Kingma and Gao 2023, Hoogeboom et al. 2024

Convention. The loss is the mean over times drawn with a density p(t), so

    E_t w |eps_hat - eps|^2 = int w p(t)/(-l') |eps_hat - eps|^2 dl.                                               (2)

What is learned, and how well at each noise level, depends only on ``w p/(-l')``, the effective weight per unit of
log-SNR. The path and its parametrisation by t do not matter (Kingma et al. 2021, sec. 5.1). The weightings
``likelihood`` and ``sigmoid`` are published as weights per unit of log-SNR, which are 1 and ``sigmoid(bias - l)``,
respectively. Here, both have the additional factor ``-l' = g^2/sigma^2``, so that the weights per unit of log-SNR are
as published if times are uniform in t.

References:
    Ho et al. (2020), arXiv:2006.11239. Song, Durkan, Murray and Ermon (2021), arXiv:2101.09258. Kingma et al. (2021),
    arXiv:2107.00630. Salimans and Ho (2022), arXiv:2202.00512. Choi et al. (2022), arXiv:2204.00227. Karras et al.
    (2022), arXiv:2206.00364. Hang et al. (2023), arXiv:2303.09556. Kingma and Gao (2023), arXiv:2303.00848. Hoogeboom
    et al. (2024), arXiv:2410.19324.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import isclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Checked, Range, ranges
from ..core.registry import READ, Typed, construct, resolve
from ..core.shapes import align
from ..core.tables import WEIGHTINGS
from ..model.parametrization import Parametrization
from ..sde.base import SDE

__all__ = [
    "P2",
    "EDMWeight",
    "EpsWeight",
    "LikelihoodWeight",
    "MinSNR",
    "Native",
    "ScoreWeight",
    "Sigmoid",
    "VWeight",
    "Weight",
    "Weighting",
    "X0Weight",
    "check_weight",
    "log_snr_speed",
    "make_weighting",
    "noise_factor",
]

# A weighting returns the factor on |F - target|^2, with the same shape as t.
Weight = Callable[[SDE, Parametrization, Tensor], Tensor]

# Keep alpha and sigma above 0, so that min(SNR, gamma)/SNR and similar terms are right at both ends. The squares of
# alpha/sigma and sigma/alpha then stay finite in float32.
_TINY = 1e-18


def _levels(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = sde.coefficients(t)
    return torch.maximum(alpha, _TINY * sigma), torch.maximum(sigma, _TINY * alpha)


def _snr(sde: SDE, t: Tensor) -> Tensor:
    alpha, sigma = _levels(sde, t)
    return (alpha / sigma).square()


def log_snr_speed(sde: SDE, t: Tensor) -> Tensor:
    """Return ``-l' = g^2/sigma^2``, the rate at which the log-SNR falls, with the same shape as ``t``."""
    # Differentiating 2 log(alpha/sigma) avoids differences of large numbers, and g, which is infinite where alpha = 0.
    (alpha, sigma), (d_alpha, d_sigma) = _levels(sde, t), sde.rates(t)
    return 2 * (alpha * d_sigma - d_alpha * sigma) / (alpha * sigma)


def noise_factor(sde: SDE, parametrization: Parametrization, t: Tensor) -> Tensor:
    """Return the factor ``(alpha/d)^2`` that converts ``|F - target|^2`` to ``|eps_hat - eps|^2`` (equation 1).

    The result has the same shape as ``t``.
    """
    alpha, sigma = _levels(sde, t)
    a, b = parametrization.target(sde, t)
    return (alpha / (a * sigma - b * alpha)).square()


class Weighting(Checked, ABC):
    """The base class of weightings.

    To write a weighting, define a frozen dataclass that inherits from this class, and implement :meth:`on_noise`.

    A weighting is called as ``weighting(sde, parametrization, t)`` and returns the factor on ``|F - target|^2``, with
    the same shape as ``t``. A plain function with this signature is also a weighting.

    Attributes:
        per_log_snr: Whether the weight is defined per unit of log-SNR, and not per unit of t.
    """

    per_log_snr: ClassVar[bool] = False

    @abstractmethod
    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the weight on ``|eps_hat - eps|^2``, with the same shape as ``t``."""

    def __call__(self, sde: SDE, parametrization: Parametrization, t: Tensor) -> Tensor:
        factor = noise_factor(sde, parametrization, t)
        return align(self.on_noise(sde, t), factor) * factor


@dataclass(frozen=True)
class Native:
    """Plain regression of the network output, with weight 1 on ``|F - target|^2`` at all times."""

    def __call__(self, sde: SDE, parametrization: Parametrization, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class EpsWeight(Weighting):
    """The simple loss, ``|eps_hat - eps|^2`` (Ho et al. 2020, arXiv:2006.11239, eq. 14)."""

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class X0Weight(Weighting):
    """The squared error of the predicted data, ``|x0_hat - x_0|^2``."""

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return 1 / _snr(sde, t)


@dataclass(frozen=True)
class VWeight(Weighting):
    """The loss ``(SNR + 1) |x0_hat - x_0|^2`` (Salimans and Ho 2022, arXiv:2202.00512, sec. 4).

    On a path with ``alpha^2 + sigma^2 = 1``, this is the squared error of ``v = alpha eps - sigma x_0``.
    """

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return 1 + 1 / _snr(sde, t)


@dataclass(frozen=True)
class ScoreWeight(Weighting):
    """Score matching with weight 1, ``|score - grad log p(x_t | x_0)|^2`` (Vincent 2011)."""

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return 1 / _levels(sde, t)[1].square()


@dataclass(frozen=True)
class LikelihoodWeight(Weighting):
    """Score matching with weight g^2, ``g^2 |score - grad log p(x_t | x_0)|^2``.

    With this weighting, the loss bounds the negative log-likelihood (Song, Durkan et al. 2021, arXiv:2101.09258, thm.
    1). The squared error of the predicted noise has weight 1 per unit of log-SNR (Kingma et al. 2021, arXiv:2107.00630,
    eq. 18).
    """

    per_log_snr: ClassVar[bool] = True

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return log_snr_speed(sde, t)


@dataclass(frozen=True)
class P2(Weighting):
    """The loss ``|eps_hat - eps|^2 / (k + SNR)^gamma`` (Choi et al. 2022, arXiv:2204.00227).

    Compared with the simple loss, this loss gives less weight to nearly clean data.

    Args:
        k: The SNR around which the weight starts to fall. It must not be negative.
        gamma: The exponent, which must not be negative. The value 0 gives the ``eps`` weighting.
    """

    limits = ranges(k=Range(0, 1e6), gamma=Range(0, 100))

    k: float = 1.0
    gamma: float = 1.0

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return (self.k + _snr(sde, t)) ** -self.gamma


@dataclass(frozen=True)
class MinSNR(Weighting):
    """The loss ``min(SNR, gamma) |x0_hat - x_0|^2`` (Hang et al. 2023, arXiv:2303.09556).

    Args:
        gamma: The SNR above which the weight on ``|x0_hat - x_0|^2`` is constant. It must be positive. The value
            ``inf`` gives the ``eps`` weighting.
    """

    limits = ranges(gamma=Range(0, above=True, infinite=True, hint="5 is the published value"))

    gamma: float = 5.0

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return (self.gamma / _snr(sde, t)).clamp(max=1)


@dataclass(frozen=True)
class EDMWeight(Weighting):
    """The loss ``(sigma^2 + s^2)/(sigma s)^2 |x0_hat - x_0|^2`` of EDM.

    Here, sigma is the noise level of EDM, ``1/sqrt(SNR)``, and s is ``data_std``. This weighting (Karras et al. 2022,
    arXiv:2206.00364, tab. 1) gives an untrained network the same loss at all noise levels. For the EDM prediction, it
    is plain regression of the network output.

    Args:
        data_std: The standard deviation s of the data per element, in model units. By default, training uses the
            standard deviation of the training data.
    """

    limits = ranges(data_std=Range(1e-9, 1e12))

    data_std: float = 1.0

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        return 1 + 1 / (self.data_std**2 * _snr(sde, t))


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """The loss ``sigmoid(bias - log SNR) |eps_hat - eps|^2`` per unit of log-SNR.

    The weighting is due to Kingma and Gao (2023), arXiv:2303.00848, and Hoogeboom et al. (2024), arXiv:2410.19324. The
    weight at time t has the additional factor ``-l'``, which suits times uniform in t.

    Args:
        bias: The log-SNR at which the weight per unit of log-SNR has fallen to one half. A lower value puts less
            weight on fine detail.
    """

    limits = ranges(bias=Range(-100, 100))
    per_log_snr: ClassVar[bool] = True
    bias: float = 0.0

    def on_noise(self, sde: SDE, t: Tensor) -> Tensor:
        # sigmoid(bias - l) = 1/(1 + SNR e^-bias)
        return log_snr_speed(sde, t) / (1 + _snr(sde, t) * math.exp(-self.bias))


def make_weighting(weighting: str | Weight, options: Mapping[str, Any] | None = None, typed: Typed = READ) -> Weight:
    """Return the weighting with the given name and options.

    Args:
        weighting: The weighting itself, the name of a built-in weighting, or ``module:Name`` for your own class or
            function.
        options: The fields of the weighting.
        typed: Which names were typed by a person, rather than read from a file (:mod:`scoresde.core.registry`).

    Raises:
        UsageError: If the name or an option is unknown.
        CheckpointError: If the name was read from a file and is not a built-in.
    """
    if not isinstance(weighting, str):
        return weighting
    found = resolve(weighting, WEIGHTINGS, "weighting", typed=typed)
    if not isclass(found):
        if options:
            raise UsageError(f"the weighting {weighting} is a function and has no options; got {sorted(options)}")
        return found  # type: ignore[no-any-return]
    made = construct(found, "weighting", weighting, options or {}, typed=typed)
    if not callable(made):
        raise UsageError(
            f"the weighting {weighting} is not callable; it must be a function of the SDE, the prediction and the times"
        )
    return made  # type: ignore[no-any-return]


def check_weight(weight: Weight, sde: SDE, parametrization: Parametrization, low: float, high: float) -> None:
    """Check that a weighting returns one finite, non-negative number for each time in ``[low, high]``.

    Raises:
        UsageError: If the result has the wrong shape or contains an invalid value. The message states the shape, or the
            first invalid value and its time.
    """
    t = low + (high - low) * torch.linspace(0, 1, 257, dtype=torch.float64).square()
    t[-1] = high
    values = weight(sde, parametrization, t)
    shapes = (t.shape, sde.coefficients(t)[0].shape)
    if not isinstance(values, Tensor) or values.shape not in shapes:
        found = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"{type(values).__name__}"
        raise UsageError(
            f"the weighting {weight} returns {found} for times of shape (257,); the result must be a tensor of the "
            "same shape"
        )
    bad = (~((values >= 0) & (values < 1e15))).nonzero()
    if len(bad):
        value, i = float(values[tuple(bad[0])]), bad[0, 0]
        raise UsageError(
            f"the weighting {weight} is {value:.3g} at t = {float(t[i]):.3g} for the prediction "
            f"{parametrization} on {sde}, but must be at least 0 and below 1e15; use another weighting or prediction"
        )
