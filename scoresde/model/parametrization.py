"""Parametrisations, which define the target of a network's output, the scale of its input, and the noise label.

Whatever a network is trained to predict, the target F of its output is a linear combination of the data and the noise.
Each parametrisation is listed here with its coefficients (a, b):

    F = a(t) x_0 + b(t) eps          eps (0, 1)   x0 (1, 0)   v (-sigma, alpha)   velocity (alpha', sigma')
                                     score (0, -1/sigma)   EDM residual: see EDM                            (1)

Together with ``x_t = alpha x_0 + sigma eps``, equation (1) is a 2 x 2 linear system, whose solution is

    x0_hat = (sigma F - b x) / d,    eps_hat = (a x - alpha F) / d,    d = a sigma - b alpha.               (2)

Every output is thus converted to x0_hat and eps_hat directly, without conversions between parametrisations.

References:
    Salimans and Ho (2022), arXiv:2202.00512, app. D: v.
    Karras et al. (2022), arXiv:2206.00364, eq. 7 and tab. 1: EDM.
    Vincent (2011), A connection between score matching and denoising autoencoders: the score of a Gaussian path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.limits import Checked, Range, ranges
from ..core.shapes import expand
from ..sde.base import SDE
from .estimate import Estimate

__all__ = ["EDM", "X0", "Eps", "Parametrization", "Score", "V", "Velocity"]


class Parametrization(Checked, ABC):
    """The meaning of a network's output (its target) and the form of its input (an input scale and a noise label).

    Attributes:
        weighting: The name of the default loss weighting for this parametrisation (see :mod:`scoresde.objective.loss`).
    """

    weighting: ClassVar[str] = "native"

    @abstractmethod
    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients a and b of the target ``F = a x_0 + b eps``.

        Each coefficient has the same shape as ``t``, or shape ``()`` if it is constant.
        """

    def input_scale(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the factor by which ``x_t`` is multiplied to give the network's input, with the same shape as ``t``.

        By default, the input has unit variance if the data have unit variance.
        """
        alpha, sigma = sde.coefficients(t)
        return torch.rsqrt(alpha.square() + sigma.square())

    def output_scale(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the factor by which the raw output is multiplied to give ``F``, with the same shape as ``t``."""
        return torch.ones_like(t)

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the noise label of each time in ``t``, with the same shape as ``t``.

        The label is ``log(sigma/alpha)/4``, clamped to [-5, 5]. The network receives this label instead of t. It
        receives no other information about the SDE.

        On a path that ends at alpha = 0, where the logarithm is infinite, the label is clamped to [-5, 1.5]. With a
        larger bound, a step that starts at alpha = 0 would evaluate the network at a label that hardly ever occurs in
        training. The noise levels that share the label 1.5, with sigma above e^6 alpha (about 400 alpha), can
        hardly be distinguished anyway.
        """
        return (-sde.log_snr(t) / 8).clamp(-5, 5 if sde.finite_g else 1.5)

    def solve(self, sde: SDE, x: Tensor, t: Tensor, output: Tensor) -> Estimate:
        """Estimate the data and the noise by equation (2), with F = ``output``.

        Both ``x`` and ``output`` have shape ``(B, *event)``.
        """
        alpha, sigma = sde.coefficients(t)
        a, b = self.target(sde, t)
        d = a * sigma - b * alpha
        x0 = expand(sigma / d, x) * output - expand(b / d, x) * x
        eps = expand(a / d, x) * x - expand(alpha / d, x) * output
        return Estimate(x, t, x0, eps, sde)

    def legal_t_max(self, sde: SDE) -> float:
        """Return the largest t at which F determines both the data and the noise.

        This is ``t_max``, unless ``d`` of equation (2) is 0 or F is infinite there. In that case, it is a time just
        below ``t_max``. For example, a network that predicts eps says nothing about the data where ``alpha = 0``.
        """
        return sde.t_max if self._solvable(sde, sde.t_max) else sde.t_max - 1e-3

    def legal_t_min(self, sde: SDE) -> float:
        """Return the smallest t at which F determines both the data and the noise.

        This is ``t_min``, unless ``d`` of equation (2) is 0 or F is infinite there. In that case, it is the time at
        which ``sigma = 1e-5 alpha``. For example, a network that predicts x0 says nothing about the noise where
        ``sigma = 0``, and the score is infinite there.
        """
        if self._solvable(sde, sde.t_min):
            return sde.t_min
        with torch.no_grad():
            return float(sde.t_of_log_snr(torch.tensor(2 * math.log(1e5), dtype=torch.float64)).clamp(sde.t_min))

    @torch.no_grad()
    def _solvable(self, sde: SDE, end: float) -> bool:
        """Return whether, at the time ``end``, F is not too large and determines both the data and the noise."""
        t = torch.tensor(end, dtype=torch.float64)
        alpha, sigma = sde.coefficients(t)
        a, b = self.target(sde, t)
        size = torch.hypot(a, b) * torch.hypot(alpha, sigma)
        # The bound on the size is needed because squares of F are summed in float32.
        return bool(((size < 1e15) & ((a * sigma - b * alpha).abs() > 1e-6 * size)).all())


@dataclass(frozen=True)
class Eps(Parametrization):
    """Prediction of the noise: ``F = eps`` (Ho et al. 2020, arXiv:2006.11239, eq. 11-12)."""

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.new_zeros(()), t.new_ones(())


@dataclass(frozen=True)
class X0(Parametrization):
    """Prediction of the data: ``F = x_0``."""

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.new_ones(()), t.new_zeros(())


@dataclass(frozen=True)
class V(Parametrization):
    """Prediction of v: ``F = alpha eps - sigma x_0`` (Salimans and Ho 2022, arXiv:2202.00512, app. D)."""

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = sde.coefficients(t)
        return -sigma, alpha


@dataclass(frozen=True)
class Score(Parametrization):
    """Prediction of the score of ``x_t`` given ``x_0``: ``F = -eps / sigma``.

    The target is from Song et al. (2021), arXiv:2011.13456, eq. 7. The network's raw output is divided by sigma, so the
    raw output only has to predict ``-eps``, which has unit variance. The loss is weighted by ``sigma^2``, as published.
    """

    weighting = "eps"

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.new_zeros(()), -1 / sde.coefficients(t)[1]

    def output_scale(self, sde: SDE, t: Tensor) -> Tensor:
        return 1 / sde.coefficients(t)[1]


@dataclass(frozen=True)
class Velocity(Parametrization):
    """Prediction of the velocity: ``F = alpha' x_0 + sigma' eps`` (Lipman et al. 2023, arXiv:2210.02747, eq. 8)."""

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        return sde.rates(t)


@dataclass(frozen=True)
class EDM(Parametrization):
    """Prediction of the EDM residual on any path (Karras et al. 2022, arXiv:2206.00364, eq. 7 and tab. 1).

    The denoised data are ``x0_hat = c_skip x + c_out F``, and the network's input is ``c_in x``. For data with standard
    deviation s = ``data_std`` per element, the coefficients are chosen so that the target F has unit variance and
    the network's error is amplified as little as possible:

        c_skip = alpha s^2 / n,   c_out = sigma s / sqrt(n),   c_in = 1 / sqrt(n),   n = alpha^2 s^2 + sigma^2.
    """

    limits = ranges(data_std=Range(1e-9, 1e12))

    data_std: float = 1.0

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        # F = (x_0 - c_skip x) / c_out, and 1 - c_skip alpha = sigma^2 / n.
        alpha, sigma = sde.coefficients(t)
        root = torch.hypot(alpha * self.data_std, sigma)
        return sigma / (self.data_std * root), -alpha * self.data_std / root

    def input_scale(self, sde: SDE, t: Tensor) -> Tensor:
        alpha, sigma = sde.coefficients(t)
        return 1 / torch.hypot(alpha * self.data_std, sigma)
