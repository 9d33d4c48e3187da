"""Paths derived from other paths: a path with a shifted log-SNR, and the part of a path between two times.

A Gaussian path is determined by its log-SNR  l(t) = 2 log(alpha/sigma)  and its scale (Kingma et al. 2021,
arXiv:2107.00630, sec. 5.1), so changing either the log-SNR or the scale gives another path.

A shift by a factor s multiplies sigma/alpha by s at every t, so the shifted log-SNR is

    l_s(t) = l(t) - 2 log s.                                                                             (1)

The scale is chosen to preserve the quantity that is constant along the original path, which is alpha^2 + sigma^2 for
VP, alpha + sigma for flow matching, and alpha for VE (:meth:`scoresde.SDE.size`). On the straight path, equation (1) is
the time shift  t' = s t / (1 + (s - 1) t)  of Esser et al. (2024), arXiv:2403.03206, eq. 23. The authors use this shift
because larger images need more noise to hide the same amount of structure: sigma/alpha must grow roughly with the
square root of the number of pixels.

A :class:`Stretch` is the part of a path between two times, with its own prior. It is used as the path of a model that
covers fewer noise levels than the whole path (:class:`scoresde.model.convert.Converted`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.limits import POSITIVE, Range, check_fields, ranges
from .base import SDE

__all__ = ["SHIFT", "Shifted", "Stretch"]

SHIFT = Range(1e-6, 1e6, hint="the factor by which sigma/alpha is multiplied, for example 3")


@dataclass(frozen=True)
class Shifted(SDE):
    """A path obtained by shifting the log-SNR of another path by ``-2 log(shift)``.

    A ``shift`` above 1 gives more noise at every t.

    Args:
        path: The path to shift.
        shift: The factor s by which sigma/alpha is multiplied.

    >>> from scoresde import FlowMatching
    >>> [round(float(c), 6) for c in Shifted(FlowMatching(), 3.0).coefficients(torch.tensor(0.5))]  # t' = 0.75
    [0.25, 0.75]
    """

    limits = ranges(shift=SHIFT)

    path: SDE
    shift: float

    def __post_init__(self) -> None:
        check_fields(self, "")
        for name in ("t_min", "t_max", "t_sample", "smooth"):
            object.__setattr__(self, name, getattr(self.path, name))
        super().__post_init__()

    @property
    def coords(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.path.coords

    @property
    def stated_in(self) -> str:  # type: ignore[override]
        return self.path.stated_in

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.path.coefficients(t)
        keep = self.path.size(alpha, sigma) / self.path.size(alpha, self.shift * sigma)
        return keep * alpha, keep * self.shift * sigma

    def alpha(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[1]

    def log_snr(self, t: Tensor) -> Tensor:
        if self.coords:  # the clock of the shifted coordinates, which is not the shifted clock
            return super().log_snr(t)
        return self.path.log_snr(t) - 2 * math.log(self.shift)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        if self.coords:
            return super().t_of_log_snr(log_snr)
        return self.path.t_of_log_snr(log_snr + 2 * math.log(self.shift))

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.path.size(alpha, sigma)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.path.parameters()

    @property
    def nodes(self) -> Tensor | None:
        return self.path.nodes

    @property
    def prior_std(self) -> float | Tensor:
        # The prior is scaled by the same factor as sigma at t_max, where (almost) no signal is left.
        end = torch.tensor(self.t_max, dtype=torch.float64)
        ratio = (self.coefficients(end)[1] / self.path.coefficients(end)[1]).detach()
        return self.path.prior_std * (ratio if self.coords else float(ratio))


@dataclass(frozen=True)
class Stretch(SDE):
    """The part of a path between two times.

    Args:
        path: The whole path.
        std: Standard deviation of the Gaussian that approximates the distribution of ``x_t`` at ``t_max``: a number, or
            a tensor ``(1, *coords)``.
        t_min, t_max: The times at which the part begins and ends.
        t_sample: The time at which sampling stops (default: ``t_min``).
        data_scale: The factor that converts data in model units to states at ``t_min``: a number, or a tensor
            ``(1, *coords)``.
    """

    limits = ranges(std=POSITIVE, data_scale=POSITIVE)

    path: SDE
    std: float | Tensor
    t_min: float = SDE.t_min
    t_max: float = SDE.t_max
    t_sample: float | None = None
    data_scale: float | Tensor = 1.0

    @property
    def coords(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.path.coords

    def alpha(self, t: Tensor) -> Tensor | float:
        return self.path.alpha(t)

    def sigma(self, t: Tensor) -> Tensor | float:
        return self.path.sigma(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.rates(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return self.path.diffusion_squared(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.path.log_snr(t)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.path.t_of_log_snr(log_snr)

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.path.size(alpha, sigma)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        return self.path.smooth

    @property
    def prior_std(self) -> float | Tensor:
        return self.std
