"""Checks of a path: its times, the shapes and values of alpha and sigma, and the order of its noise levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import POSITIVE, TIME, check_number
from ..core.shapes import align

if TYPE_CHECKING:
    from .base import SDE

__all__ = ["check_event", "check_path", "check_scalar"]

_LARGEST = 1e15  # the largest valid alpha and sigma, whose squares are still finite in float32


def _check_times(sde: SDE, where: str) -> None:
    """Check the times of a path and its ``data_scale``. The text ``where`` begins the messages."""
    for label in ("t_min", "t_max", "t_sample", "data_scale"):
        value = getattr(sde, label)
        if not isinstance(value, Tensor) and (value is not None or label != "t_sample"):
            check_number(label, value, POSITIVE if label == "data_scale" else TIME, where=where)
    if not sde.t_min < sde.t_max:
        raise UsageError(f"{where}t_min = {sde.t_min} and t_max = {sde.t_max} must satisfy 0 <= t_min < t_max")
    if sde.t_sample is not None and not sde.t_min <= sde.t_sample < sde.t_max:
        raise UsageError(
            f"{where}sampling stops at t_sample = {sde.t_sample}, which must be at least t_min = {sde.t_min} and "
            f"less than t_max = {sde.t_max}"
        )


@torch.no_grad()
def check_path(sde: SDE) -> None:
    """Check a path at 257 times (:meth:`SDE.check <scoresde.SDE.check>`).

    Raises:
        UsageError: If the path is not valid. If a value is not valid, the message names the first offending t.
    """
    name = type(sde).__name__
    _check_times(sde, f"{name}: ")
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(0, 1, 257, dtype=torch.float64).square()
    t[-1] = sde.t_max
    given = _check_coords(sde, t)
    for label, function in (("alpha", sde.alpha), ("sigma", sde.sigma)):
        try:
            values = sde._tensor(function(given), given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{sde!r}.{label}(t) failed for a tensor of times: {error}; implement this method with torch "
                "functions (torch.cos, not math.cos)"
            ) from error
        _check_shape(sde, label, values, given)
        values = values.expand(len(t), *sde.coords)
        bad = ~((values >= 0) & (values <= _LARGEST))  # also True for NaN
        if label == "sigma":
            bad |= (values == 0) & align(t > 0, values)
        if bool(bad.any()):
            at = bad.nonzero()[0].tolist()
            value, place = float(values[tuple(at)]), f"at t = {float(t[at[0]]):.6g}{_place(at)}"
            raise UsageError(
                f"{name}.{label}(t) is {value:.6g} {place}; it must be finite, "
                f"{'>= 0' if label == 'alpha' else '> 0'} and <= {_LARGEST:g} for all t in [{sde.t_min}, "
                f"{sde.t_max}] (the class attributes t_min and t_max set this interval)"
            )
    alpha, sigma = sde.coefficients(t[0])
    small = (0 < sigma) & (sigma < alpha / _LARGEST)
    if bool(small.any()):
        least = float(sigma[small].min())
        raise UsageError(
            f"{name}: at t_min = {sde.t_min:g}, sigma is {least:.3g}, which is too small to distinguish from "
            "zero; set t_min = 1e-5, or t_min = 0 if sigma is exactly zero at t = 0 (t_min is a class attribute)"
        )
    if sde.coords:
        _check_bands(sde, t)
        if sde.nodes is not None:
            raise UsageError(
                f"{name}: a chain has one alpha and one sigma at each node, but coords is {sde.coords}; leave out "
                "the nodes"
            )
    snr = sde.log_snr(t)
    gone = torch.isneginf(snr[1:]) & torch.isneginf(snr[:-1])  # no signal is left on a steep path, which is valid
    rising = ~(torch.diff(snr) < 0) & ~gone  # also True for NaN
    if bool(rising.any()):
        i = int(rising.nonzero()[0])
        raise UsageError(
            f"{name}: the log-SNR 2 log(alpha/sigma) must decrease from the data (t = 0) to the prior (t = 1), but "
            f"it does not decrease between t = {float(t[i]):.6g} and t = {float(t[i + 1]):.6g}"
        )


def _check_coords(sde: SDE, t: Tensor) -> Tensor:
    """Check ``coords``, and return the times ``t: (n,)`` in the shape in which alpha and sigma receive them."""
    coords = sde.coords
    if not isinstance(coords, tuple) or not all(isinstance(n, int) and n > 0 for n in coords):
        raise UsageError(
            f"{type(sde).__name__}: coords must be a tuple of positive integers, one for each axis of an event, "
            f"such as (8,) or (1, 28, 28); got {coords!r}"
        )
    return t.reshape(-1, *[1] * len(coords))


def _check_shape(sde: SDE, label: str, values: Tensor, t: Tensor) -> None:
    """Check the shape of what alpha or sigma returned for the times ``t``."""
    whole = (len(t), *sde.coords)
    if sde.coords:
        fits = values.ndim == len(whole) and all(n in (1, m) for n, m in zip(values.shape, whole, strict=True))
        expected = f"broadcast to {whole}, because coords = {sde.coords}"
    else:
        fits, expected = values.shape == t.shape, "have the same shape as t"
    if not fits:
        raise UsageError(
            f"{type(sde).__name__}.{label}(t) has shape {tuple(values.shape)} for t of shape {tuple(t.shape)}; "
            f"it must {expected}"
        )


def _check_bands(sde: SDE, t: Tensor) -> None:
    """Check that no coordinate's own log-SNR increases with t."""
    alpha, sigma = sde.coefficients(t)
    # Rounding may let a constant ratio rise or fall.
    rising = torch.diff(sigma / (alpha + sigma), dim=0) < -1e-12
    if bool(rising.any()):
        i = rising.nonzero()[0].tolist()
        raise UsageError(
            f"{type(sde).__name__}: the log-SNR 2 log(alpha/sigma) of a coordinate must not increase from the "
            f"data (t = 0) to the prior (t = 1), but it increases between t = {float(t[i[0]]):.6g} and "
            f"t = {float(t[i[0] + 1]):.6g}{_place(i)}"
        )


def check_event(sde: SDE, shape: tuple[int, ...]) -> None:
    """Check that :attr:`~scoresde.SDE.coords` broadcasts to events of the given shape, in model units.

    Raises:
        UsageError: If it does not.
    """
    coords = sde.coords
    fits = len(coords) == len(shape) and all(n in (1, m) for n, m in zip(coords, shape, strict=True))
    if coords and not fits:
        raise UsageError(
            f"{type(sde).__name__}: alpha and sigma have coords = {coords}, which do not broadcast to events of "
            f"shape {tuple(shape)}; coords needs one number for each axis of an event: 1, or the length of the axis"
        )


def check_scalar(sde: SDE, what: str, instead: str, parameter: str | None = None, value: object = None) -> None:
    """Refuse a path whose alpha and sigma differ between coordinates.

    Args:
        sde: The path.
        what: What requires a path with one alpha and one sigma, as the subject of the message.
        instead: What to use instead.
        parameter, value: The parameter at fault and a value that works.

    Raises:
        UsageError: If the path has separate coordinates.
    """
    if sde.coords:
        raise UsageError(
            f"{what} requires one alpha and one sigma for all elements of an event, but those of {type(sde).__name__} "
            f"differ between coordinates (coords = {sde.coords}); use {instead}",
            parameter=parameter,
            value=value,
        )


def _place(index: list[int]) -> str:
    """Return the words that name the coordinate of an element of a table ``(n, *coords)``."""
    return f" in coordinate {tuple(index[1:])}" if len(index) > 1 else ""
