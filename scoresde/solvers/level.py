r"""Noise levels eta(t) for the solvers of the reverse SDE.

For any eta(t) >= 0, the SDE  dx = (velocity - eta^2/2 score) dt + eta dw  has the marginals of the path (Song et al.
2021, arXiv:2011.13456, app. D.1; Ma et al. 2024, arXiv:2401.08740, sec. 2.4). A solver with the options ``eta`` (a
factor) and ``level`` uses the noise level  eta(t) = eta * level(t).  The level is one of

    ``g``       the diffusion coefficient g of the SDE; with eta = 1, this gives Anderson's reverse SDE
    ``sigma``   sqrt(2 sigma(t)), which is finite everywhere, and 0 where sigma is 0
    ``auto``    ``g``, or ``sigma`` if g is infinite at ``t_max`` (as for flow matching and the cosine schedule)
    ``er``      g sqrt(0.3 s^0.3 e^(s^0.3) / (e^(s^0.3) + 10))  with  s = sigma/alpha  (Cui et al. 2023,
                arXiv:2309.06169, app. A); this level, the default of ``er-sde``, becomes small near the data

or your own function ``level(sde, t)``. On the command line, such a function is given as ``module:function``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, check_number
from ..core.registry import resolve
from ..core.shapes import align
from ..sde.base import SDE, informative

__all__ = ["LEVELS", "Level", "auto_level", "check_level", "level_of", "ratios"]

ETA = Range(0, 1000, hint="eta multiplies the noise level of the reverse SDE")
Level = str | Callable[[SDE, Tensor], Tensor]


def _g(sde: SDE, t: Tensor) -> Tensor:
    alpha, sigma = sde.coefficients(t)
    # Where no signal is left, g is infinite, but alpha may be a rounding error: cos(pi/2) evaluates to 6e-17.
    return torch.where(informative(alpha, sigma), sde.diffusion(t), torch.inf)


def auto_level(sde: SDE, t: Tensor) -> Tensor:
    """Return ``g(t)``, or ``sqrt(2 sigma(t))`` if g is infinite at ``t_max``. The result has the shape of ``t``."""
    return sde.diffusion(t) if sde.finite_g else torch.sqrt(2 * sde.coefficients(t)[1])


def _er(sde: SDE, t: Tensor) -> Tensor:
    alpha, sigma = sde.coefficients(t)
    power = (sigma / alpha).pow(0.3)
    # e^p / (e^p + 10), in a form that does not overflow
    return _g(sde, t) * torch.sqrt(0.3 * power / (1 + 10 * torch.exp(-power)))


LEVELS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "auto": auto_level,
    "g": _g,
    "sigma": lambda sde, t: torch.sqrt(2 * sde.coefficients(t)[1]),
    "er": _er,
}


def _function(level: Level) -> Callable[[SDE, Tensor], Tensor]:
    if callable(level):
        return level
    if level in LEVELS:
        return LEVELS[level]
    if ":" not in level:
        raise UsageError(
            f"unknown noise level {level!r}; choose from: {', '.join(LEVELS)}. You can also give your own "
            "function as module:function"
        )
    found: Callable[[SDE, Tensor], Tensor] = resolve(level, {}, "noise level", typed=True, function=True)
    return found


def check_level(level: Level, eta: float) -> None:
    """Check that ``level`` is the name of a noise level or a function, and that the factor ``eta`` is valid.

    Raises:
        UsageError: If the level is unknown, or if the factor is out of range.
    """
    check_number("eta", eta, ETA)
    _function(level)


def level_of(sde: SDE, level: Level, eta: float, t: Tensor) -> Tensor:
    """Return the noise level ``eta(t) = eta * level(t)``, with the same shape as ``t``.

    Raises:
        UsageError: If the level is negative, not finite, or not a tensor with the same shape as ``t``.
    """
    found = _function(level)(sde, t)
    if not isinstance(found, Tensor | float | int):
        raise UsageError(
            f"the noise level function {getattr(level, '__name__', level)} must return a tensor with one number for "
            f"each t, got {type(found).__name__}"
        )
    value = eta * torch.as_tensor(found)
    if sde.coords and value.shape == t.shape:  # one level for all coordinates
        coefficient = sde.coefficients(t)[1]
        value = align(value, coefficient).expand_as(coefficient)
    if value.shape != (shape := sde.coefficients(t)[1].shape if sde.coords else t.shape) or not bool(
        (torch.isfinite(value) & (value >= 0)).all()
    ):
        name, number, at = getattr(level, "__name__", level), f"a tensor of shape {tuple(value.shape)}", ""
        if value.shape == shape:
            each = value.reshape(max(t.numel(), 1), -1)
            i, k = (~(torch.isfinite(each) & (each >= 0))).nonzero()[0].tolist()
            number, at = f"{float(each[i, k]):g}", f" at t = {float(t.flatten()[i]):g}"
        raise UsageError(f"the noise level {name} must be one number for each t, finite and >= 0, got {number}{at}")
    return value


def ratios(sde: SDE, level: Level, eta: float, times: Tensor) -> tuple[float, ...]:
    """Return ``eta(t)/g(t)`` in the middle (in log-SNR) of each of the n steps between ``times: (n + 1,)``.

    If the level is ``g``, every ratio is ``eta``. Otherwise, the ratio is 0 for each step that starts or ends at
    alpha = 0 or sigma = 0.
    """
    if level == "g" or eta == 0:
        return (eta,) * (len(times) - 1)
    if sde.coords:
        raise UsageError(
            f"on {type(sde).__name__}, alpha and sigma differ between coordinates, and the noise level of this solver "
            f"must be 'g', got {getattr(level, '__name__', level)!r}; use level='g', or the 'em' solver",
            parameter="level",
            value="g",
        )
    log_snr = sde.log_snr(times)
    middle = sde.t_of_log_snr((log_snr[1:] + log_snr[:-1]) / 2)
    whole = (log_snr.abs() < 60) & informative(*sde.coefficients(times))
    whole = whole[1:] & whole[:-1]
    found = torch.zeros_like(middle)
    found[whole] = level_of(sde, level, eta, middle[whole]) / sde.diffusion(middle[whole])
    return tuple(found.tolist())
