r"""A check of a class that states alpha and sigma against the published drift and diffusion of its SDE.

Papers and code often state an SDE by its drift and diffusion,  dx = f(t) x dt + g(t) dw,  and the mean and standard
deviation of x_t separately. The two statements can disagree, for example where a variance is returned as a standard
deviation. A class states alpha and sigma only, and f and g follow from them by equation (2) of
:mod:`scoresde.sde.base`. :func:`verify` compares them with the published f and g.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import SHARE, checked
from ..core.shapes import align
from .base import SDE, informative

__all__ = ["Agreement", "verify"]

TIMES = 257  # number of times at which the two statements are compared
POINTS = (1.0, -2.5)  # states at which a drift of x is compared. Two of them show whether it is linear
CONDITION = 0.7  # the condition y, if the drift depends on one
TINY = 1e-12  # differences below this fraction of the largest value, or of 1, are rounding errors


@dataclass(frozen=True)
class Agreement:
    """How well published coefficients agree with those of a class.

    Attributes:
        drift, diffusion: The largest relative difference.
    """

    drift: float
    diffusion: float


@torch.no_grad()
@checked(rtol=SHARE)
def verify(
    sde: SDE, drift: Callable[..., Tensor | float], diffusion: Callable[[Tensor], Tensor | float], rtol: float = 1e-6
) -> Agreement:
    """Check that alpha and sigma of a class agree with the published drift and diffusion of its SDE.

    Args:
        sde: The path, which states alpha and sigma.
        drift: The published drift: the rate ``f(t)``, the drift ``drift(x, t) = f(t) x``, or ``drift(x, t, y)`` for an
            SDE that drifts to a condition y. The path is then that of x - y, with the drift ``f(t) (x - y)``.
        diffusion: The published diffusion coefficient ``g(t)``, a standard deviation per square root of time.
        rtol: The largest relative difference that is accepted.

    Both functions receive float64 tensors: times of shape ``(n,)``, and for the drift, states of the same shape. If
    alpha and sigma differ between the elements of an event, there is one more axis for each axis of the event. They
    return a number, or a tensor that broadcasts to the shape of f or g.

    Returns:
        The largest relative differences over the times between ``t_min`` and ``t_max``. Times at which no signal is
        left are skipped.

    Raises:
        UsageError: If the coefficients differ. The message states the first time at which they do, both values, and a
            likely reason if there is one. Also if the path itself is not valid (:meth:`scoresde.SDE.check`).

    >>> from scoresde import VPSDE
    >>> found = verify(VPSDE(0.1, 20.0), lambda t: -(0.1 + 19.9 * t) / 2, lambda t: torch.sqrt(0.1 + 19.9 * t))
    >>> found.drift < 1e-12 and found.diffusion < 1e-12
    True
    """
    sde.check()
    u = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    t = sde.t_min + (sde.t_max - sde.t_min) * u.square()
    alpha, sigma = sde.coefficients(t)
    t = t[informative(alpha, sigma).reshape(TIMES, -1).all(1)]
    if not len(t):
        raise UsageError(
            f"{type(sde).__name__} cannot be compared with published coefficients, because at each time no signal is "
            "left in at least one coordinate; compare the coordinates one by one"
        )
    f, g = sde.drift_rate(t), sde.diffusion(t)
    return Agreement(_drift(sde, drift, t, f, rtol), _diffusion(sde, diffusion, t, f, g, rtol))


def _drift(sde: SDE, drift: Callable[..., Tensor | float], t: Tensor, f: Tensor, rtol: float) -> float:
    """Compare the drift with the rate ``f`` of the path, and return the largest relative difference."""
    count = _arguments(drift)
    if count == 1:
        return _compare(sde, "drift f(t)", _shaped(drift(align(t, f)), f, "drift"), f, t, rtol)
    ours, theirs = [], []
    for point in POINTS:
        x, y = torch.full_like(f, point), torch.full_like(f, CONDITION)
        ours.append(f * (x if count == 2 else x - y))
        theirs.append(_shaped(drift(*(x, align(t, f), y)[:count]), f, "drift"))
    # A guess about all times must hold at all states.
    what = "drift(x, t)" if count == 2 else f"drift(x, t, y) with y = {CONDITION:g}"
    return _compare(sde, what, torch.cat(theirs), torch.cat(ours), t.repeat(len(POINTS)), rtol, points=POINTS)


def _diffusion(
    sde: SDE, diffusion: Callable[[Tensor], Tensor | float], t: Tensor, f: Tensor, g: Tensor, rtol: float
) -> float:
    """Compare the diffusion with the coefficient ``g`` of the path, and return the largest relative difference."""
    found = _shaped(diffusion(align(t, g)), g, "diffusion")
    sigma, rate = sde.coefficients(t)[1], sde.rates(t)[1]
    reasons = {
        "diffusion looks like g^2: a variance where a standard deviation belongs": g.square(),
        # If sigma is in fact a variance v, then g^2 = v' - 2 f v.
        "sigma looks like a variance where a standard deviation belongs: return its square root": (
            (rate - 2 * f * sigma).clamp(min=0).sqrt()
        ),
    }
    return _compare(sde, "diffusion g(t)", found, g, t, rtol, reasons)


def _compare(
    sde: SDE, what: str, theirs: Tensor, ours: Tensor, t: Tensor, rtol: float,
    reasons: dict[str, Tensor] | None = None, points: tuple[float, ...] = (),
) -> float:  # fmt: skip
    """Return the largest relative difference between two coefficients, and reject one above ``rtol``.

    Args:
        sde: The path.
        what: A description of the coefficient.
        theirs, ours: The published coefficient and that of the path, each ``(n, ...)``.
        t: The times, ``(n,)``.
        rtol: The largest difference that is accepted.
        reasons: Values that the published coefficient has if something is wrong, keyed by what it is.
        points: The states x of the comparison, each for an equal share of the rows, or none for f(t) and g(t).
    """
    difference = _difference(theirs, ours)
    wrong = ~(difference <= rtol)  # also True for NaN
    if not bool(wrong.any()):
        return float(difference.max()) if difference.numel() else 0.0
    first = tuple(wrong.nonzero()[0].tolist())
    where = f" in element {first[1:]}" if len(first) > 1 else ""
    where += f" at x = {points[first[0] * len(points) // len(t)]:g}" if points else ""
    known = {"it has the opposite sign: one of the two is negative": -ours, **(reasons or {})}
    found = [told for told, value in known.items() if bool((_difference(theirs, value) <= rtol).all())]
    ratio = (theirs / ours)[ours != 0]
    if not found and ratio.numel() and bool(((ratio - ratio[0]).abs() <= rtol * ratio[0].abs()).all()):
        found = [f"the published value is {float(ratio[0]):.6g} times the other one everywhere"]
    told = found[0] if found else "check which of the two is wrong, and which of its terms"
    raise UsageError(
        f"{type(sde).__name__}: at t = {float(t[first[0]]):.6g}, the published {what} is {float(theirs[first]):.6g}"
        f"{where}, but alpha and sigma of the class give {float(ours[first]):.6g}; {told}"
    )


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return the relative differences of two tensors, element by element. Values that are equal do not differ."""
    size = torch.maximum(a.abs(), b.abs())
    finite = size[size.isfinite()]
    floor = TINY * max(1.0, float(finite.max()) if finite.numel() else 0.0)
    off = (a - b).abs()
    return torch.where((a == b) | (off <= floor), 0.0, off / size)


def _shaped(value: Tensor | float, like: Tensor, what: str) -> Tensor:
    """Return what a published function returned as a tensor with the shape of ``like``."""
    found = torch.as_tensor(value, dtype=like.dtype)
    try:
        return found.expand(like.shape)
    except RuntimeError:
        raise UsageError(
            f"the published {what} returned shape {tuple(found.shape)} for times of shape {tuple(like.shape)}; it must "
            "return a number, or a tensor that broadcasts to the shape of the times"
        ) from None


def _arguments(function: Callable[..., object]) -> int:
    """Return how many arguments a drift has: 1 for f(t), 2 for drift(x, t), and 3 for drift(x, t, y)."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return 1
    count = sum(p.kind in kinds and p.default is p.empty for p in parameters)
    if not 1 <= count <= 3:
        raise UsageError(
            f"the published drift has {count} arguments without defaults; it must be f(t), drift(x, t) or "
            "drift(x, t, y)"
        )
    return count
