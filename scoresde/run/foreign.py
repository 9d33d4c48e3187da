r"""Parametrisations and losses for pretrained weights of the original code (Song et al. 2021, arXiv:2011.13456).

A network trained with the original code receives two inputs: the unscaled x_t, and a noise label that depends on the
SDE. The conversion of the network's output to a score also depends on the SDE:

    =====================  ==============================  =========================  ===========================
    parametrisation        original model                  label                      score
    =====================  ==============================  =========================  ===========================
    `OriginalEps`          VP, sub-VP, continuous          999 t                      -output / sigma(t)
    `OriginalScore`        VE, continuous                  sigma(t)                   output
    `OriginalLevelEps`     VP, discrete (DDPM)             level i                    -output / sigma_i
    `OriginalLevelScore`   VE, discrete (SMLD, NCSN)       N - 1 - i                  output
    =====================  ==============================  =========================  ===========================

In this package, the usual noise label is a quarter of the logarithm of the noise level, for every SDE. To use one of
the parametrisations above, give its full name, as in ``--predict scoresde.run.foreign:OriginalEps``, or pass it to
:class:`~scoresde.ScoreModel`.

The discrete networks are trained on N noise levels, numbered i = 0, ..., N - 1. In this package, the levels are the
nodes t_i = (i + 1)/N of :class:`~scoresde.DDPM` and :class:`~scoresde.SMLD`. The node t therefore belongs to level
i = N t - 1, and ``sigma_i`` is the sigma of the path at that node. To draw samples, the original code evaluates these
networks along the continuous path instead. For VP, the label is then t (N - 1), which in general is not an integer, and
``sigma_i`` is the sigma of level floor(t (N - 1)). For VE, the label is then round((1 - t)(N - 1)). On a path without
nodes, this package does the same.

The losses in ``losses.py`` of the original code take one of two forms, where z is the noise, and s is the score at
x_t = alpha x_0 + sigma z:

    |sigma s + z|^2,      or with ``likelihood``      g(t)^2 |s + z/sigma|^2.                                      (1)

The squares are either averaged over the elements, or summed and halved. At the nodes of a chain, the first form equals
the DDPM loss of the original code, |output - z|^2, or its SMLD loss, sigma_i^2 |s + z/sigma_i|^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.registry import closest
from ..core.shapes import expand, mean_flat, sum_flat
from ..model.estimate import Denoiser
from ..model.parametrization import Eps, Score
from ..sde.base import SDE
from ..sde.chains import DDPM
from ..sde.continuous import VPSDE

__all__ = ["OriginalEps", "OriginalLevelEps", "OriginalLevelScore", "OriginalScore", "original_loss"]

REDUCTIONS = ("mean", "half-sum")


@dataclass(frozen=True)
class OriginalEps(Eps):
    """Noise prediction by a network that receives the noise label 999 t and an unscaled input (VP and sub-VP)."""

    def input_scale(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return ``999 t``, with the same shape as ``t``."""
        return 999 * t


@dataclass(frozen=True)
class OriginalScore(Score):
    """Score prediction by a network that receives the noise label sigma(t) and divides its output by sigma (VE)."""

    def input_scale(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def output_scale(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return ``sigma(t)``, with the same shape as ``t``."""
        return sde.coefficients(t)[1]


@lru_cache(maxsize=8)
def _sigmas(levels: int, beta_min: float, beta_max: float) -> Tensor:
    """Return the table of ``sigma_i`` that the original code uses for VP."""
    chain = DDPM(levels, start=beta_min / levels, end=beta_max / levels)
    return chain.sigma(chain.nodes)


@dataclass(frozen=True)
class OriginalLevelEps(OriginalEps):
    """Noise prediction by a network whose noise label is the index of the noise level (DDPM).

    Args:
        levels: Number of noise levels N on a continuous VP path. It is ignored on a chain, which has its own levels.
    """

    levels: int = 1000

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the index of the noise level at each node in ``t``, or ``t (N - 1)`` on a continuous path.

        The result has the same shape as ``t``.
        """
        return t * (self.levels - 1) if sde.nodes is None else t * len(sde.nodes) - 1

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        if sde.nodes is not None:
            return super().target(sde, t)
        if not isinstance(sde, VPSDE):
            raise UsageError(
                f"OriginalLevelEps supports only VPSDE and discrete chains, not {type(sde).__name__}; use OriginalEps, "
                "or the 'ddpm' SDE",
                parameter="sde",
                value="ddpm",
            )
        # The score equals both -F/sigma_i, where F is the output of the network, and -eps_hat/sigma(t).
        level = (self.label(sde, t) + 1e-9).long()
        sigma = _sigmas(self.levels, sde.beta_min, sde.beta_max).to(t)[level]
        return torch.zeros_like(t), sigma / sde.coefficients(t)[1]


@dataclass(frozen=True)
class OriginalLevelScore(OriginalScore):
    """Score prediction by a network whose noise label is the level index counted from the highest level (SMLD, NCSN).

    Args:
        levels: Number of noise levels N on a continuous path. It is ignored on a chain, which has its own levels.
    """

    levels: int = 1000

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return ``N - 1 - i`` at the node of level i, or ``round((1 - t)(N - 1))`` on a continuous path.

        The result has the same shape as ``t``.
        """
        if sde.nodes is None:
            return ((1 - t) * (self.levels - 1)).round()
        return ((1 - t) * len(sde.nodes)).round()


def original_loss(
    model: Denoiser, x0: Tensor, t: Tensor, z: Tensor, *, likelihood: bool = False, reduce: str = "mean"
) -> Tensor:
    """Compute the loss of equation 1 for each row.

    Args:
        model: Any model. If its parametrisation is defined in this module, the network is called as in the original
            code.
        x0: Data in model units, shape ``(B, *event)``.
        t: Times, shape ``(B,)``. The original code draws them uniformly from [1e-5, 1], or from the nodes of a chain.
        z: Standard normal noise, with the same shape as ``x0``.
        likelihood: Whether to use the second form, with the factor ``g^2`` (``likelihood_weighting`` in the original
            code).
        reduce: ``mean`` for the mean over the elements (``reduce_mean`` in the original code), or ``half-sum`` for half
            of the sum.

    Returns:
        The loss of each row, shape ``(B,)``.
    """
    if reduce not in REDUCTIONS:
        raise UsageError(f"unknown reduction {reduce!r}; {closest(reduce, REDUCTIONS)}")
    sigma = expand(model.domain.sde.coefficients(t)[1], x0)
    error = (sigma * model(model.domain.sde.perturb(x0, t, z), t).score + z).square()
    if likelihood:
        error = error * expand(model.domain.sde.diffusion_squared(t), x0) / sigma.square()
    return mean_flat(error) if reduce == "mean" else sum_flat(error) / 2
