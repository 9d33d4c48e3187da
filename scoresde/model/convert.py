"""The conversion of a model to another path.

A model can be used on paths other than the one on which it was trained. At the same noise level sigma/alpha, the states
of two paths differ only by the ratio of the paths' scales  s = alpha + sigma,

    x'_t' / s'(t') = x_t / s(t)        where        sigma'/alpha' (t') = sigma/alpha (t),                      (1)

and the estimates of the data and the noise are the same. :class:`Converted` therefore makes it possible to use, for
example, a VP model on the straight path of flow matching. Samples and likelihoods are the same on the new path, but may
be cheaper to compute there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.shapes import align, as_time, expand
from ..sde.base import SDE
from ..sde.modified import Stretch
from .estimate import Denoiser, Domain, Estimate, Wrapped

__all__ = ["Converted", "convert"]


@dataclass(frozen=True)
class Converted(Wrapped):
    """A model that is used on another path at the same noise levels. Use :func:`convert` to create one.

    Args:
        model: Any denoiser.
        sde: The other path, restricted to the noise levels that the model covers.
    """

    sde: Stretch

    @cached_property
    def domain(self) -> Domain:
        """The domain of the model in the times of ``sde``, without the nodes that the path does not cover."""
        theirs, low, high = self.model.domain, self.sde.t_min, self.sde.t_max
        nodes = theirs.nodes
        if nodes is not None:
            levels = theirs.sde.log_snr(nodes)
            # The time found for a level outside the path is an end of the path, so compare the levels as well.
            times = self.sde.t_of_log_snr(levels)
            found = self.sde.log_snr(times)
            same = (found == levels) | (
                (found - levels).abs() <= _SAME * (1 + levels.abs())
            )  # infinite levels can only be equal
            nodes = times[(times > low - _CLOSE) & (times < high + _CLOSE) & same]
        return replace(theirs, sde=self.sde, t_min=low, t_max=high, nodes=nodes)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        t, theirs, ours = as_time(t, x), self.model.domain, self.domain
        outside = (t < ours.t_min - _CLOSE) | (t > ours.t_max + _CLOSE)
        if bool(outside.any()):
            raise UsageError(
                f"cannot evaluate the model at t = {float(t[outside].flatten()[0]):g}: "
                f"{_ranges(theirs, self.sde.path)}; use t between {ours.t_min:.6g} and {ours.t_max:.6g}, where the two "
                "ranges overlap"
            )
        at = theirs.sde.t_of_log_snr(self.sde.log_snr(t)).clamp(theirs.t_min, theirs.t_max)
        # x_t = s(t) x'_t' / s'(t'), equation (1)
        estimate = self.model(expand(theirs.sde.scale(at) / self.sde.scale(t), x) * x, at)
        # A learned variance is dropped, because its two bounds are different on this path.
        return replace(estimate, x=x, t=t, sde=self.sde, frac=None)


_SAME = 1e-6  # the relative difference of two log-SNRs that are equal up to rounding
_CLOSE = 1e-12  # how far rounding may move a time beyond an end of the domain


def convert(model: Denoiser, path: SDE) -> Converted:
    """Convert ``model`` to another path. The result covers only the noise levels that the model and the path share.

    Args:
        model: Any denoiser.
        path: The new path. If the path reaches higher noise levels than the model, the result keeps the model's prior,
            rescaled to the path. Otherwise, the result has the path's prior.

    Raises:
        UsageError: If the model and the path share no noise levels, or if their coefficients differ between coordinates
            and the noise levels of all coordinates do not agree. The result also raises this error when it is
            evaluated outside the shared range. The message states the log-SNR ranges of the model and of the path.

    >>> from scoresde import VPSDE, FlowMatching, GaussianMixture
    >>> model = GaussianMixture(VPSDE(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.2]))
    >>> straight = convert(model, FlowMatching())
    >>> round(straight.domain.t_min, 6), round(straight.domain.t_max, 6)
    (0.000999, 0.993471)
    """
    domain, theirs = model.domain, model.domain.sde
    t = torch.tensor([domain.t_min, theirs.times("sample")[0], domain.t_max], dtype=torch.float64)
    # The model's noise levels, restricted to those of the path.
    most, least = path.log_snr(torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
    shared = theirs.log_snr(t).clamp(least, most)
    low, stop, high = path.t_of_log_snr(shared).clamp(path.t_min, path.t_max).tolist()
    if not low < high:
        raise UsageError(
            f"{_ranges(domain, path)}; these ranges do not overlap, so the model cannot be used on that path"
        )
    if theirs.coords or path.coords:
        _check_same(model, path)
    # At an end that is set by the model, the model's prior or data unit is kept, rescaled to the path.
    ends = torch.tensor([low, high], dtype=torch.float64)
    ours, other = path.scale(ends), theirs.scale(t[[0, 2]])
    ratio = align(ours, other) / align(other, ours)
    start, end = (ratio[:1], ratio[1:]) if ratio.ndim > 1 else ratio.tolist()
    std = end * theirs.prior.std if high < path.t_max else path.prior.std
    unit = start * theirs.data_scale if low > path.t_min else path.data_scale
    return Converted(model, Stretch(path, std, low, high, max(stop, path.times("sample")[0]), unit))


def _check_same(model: Denoiser, path: SDE) -> None:
    """Check that a path has the same noise levels as the model's path in all coordinates at once.

    If each coordinate had levels of its own on the new path, no time of the model would have all of them.
    """
    theirs, low, high = model.domain.sde, model.domain.t_min, model.domain.t_max
    t = torch.linspace(low, high, 257, dtype=torch.float64)
    at = path.t_of_log_snr(theirs.log_snr(t)).clamp(path.t_min, path.t_max)
    inside = (path.log_snr(at) - theirs.log_snr(t)).abs() < _SAME
    if bool(theirs.coords) != bool(path.coords) or not bool(inside.any()):
        raise UsageError(
            f"a model on {type(theirs).__name__} (coords = {theirs.coords}) cannot be converted to "
            f"{type(path).__name__} (coords = {path.coords}), because alpha and sigma differ between coordinates on "
            "one of the two paths only, or because the paths share no noise levels in all coordinates at once; use the "
            "model on its own path"
        )
    (a, s), (alpha, sigma) = theirs.coefficients(t[inside]), path.coefficients(at[inside])
    like = torch.zeros(1, *(theirs.coords or path.coords))
    off = (align(s / (a + s), like) - align(sigma / (alpha + sigma), like)).abs()
    if not float(off.max()) < _SAME:
        raise UsageError(
            f"a model on {type(theirs).__name__} (coords = {theirs.coords}) cannot be converted to "
            f"{type(path).__name__} (coords = {path.coords}), because the two paths do not have the same noise levels "
            f"in all coordinates at once: sigma/(alpha + sigma) differs by up to {float(off.max()):.2g}; use the "
            "model on its own path"
        )


def _ranges(domain: Domain, path: SDE) -> str:
    """Describe the log-SNR ranges of a model and a path for an error message."""

    def span(sde: SDE, low: float, high: float) -> str:
        ends = sde.log_snr(torch.tensor([high, low], dtype=torch.float64))
        return " to ".join(f"{end:.4g}" for end in ends.tolist())

    known, theirs = span(domain.sde, domain.t_min, domain.t_max), span(path, path.t_min, path.t_max)
    return f"the model covers the log-SNR range {known}, and {type(path).__name__} covers {theirs}"
