r"""Pretrained weights from other code: networks and losses of the original code (Song et al. 2021, arXiv:2011.13456).

A network trained with that code receives x_t without scaling, and a noise label of a different kind. The rule that
turns the output of the network into a score depends on the SDE:

    =====================  ==============================  =========================  ===========================
    parametrisation        the original                    label                      score
    =====================  ==============================  =========================  ===========================
    `OriginalEps`          VP, sub-VP, continuous          999 t                      -output / sigma(t)
    `OriginalScore`        VE, continuous                  sigma(t)                   output
    `OriginalLevelEps`     VP, discrete (DDPM)             level i                    -output / sigma_i
    `OriginalLevelScore`   VE, discrete (SMLD, NCSN)       N - 1 - i, from the top    output
    =====================  ==============================  =========================  ===========================

The noise label of this package is a quarter of the log noise level, whatever the SDE. The parametrisations here are for
networks trained with other labels. Give these parametrisations by their full name, ``--predict
scoresde.run.foreign:OriginalEps``, or pass them to :class:`~scoresde.ScoreModel`.

Levels. The discrete networks know N levels. Here the levels are the nodes t_i = (i + 1)/N of :class:`~scoresde.DDPM`
and :class:`~scoresde.SMLD`: the level is i = N t - 1, and ``sigma_i`` is the sigma of the path at that node. The
original has no such chain. It calls these networks along the continuous path, with the label t (N - 1), which in
general is not an integer, and with sigma_i of the level floor(t (N - 1)); for VE the label is round((1 - t)(N - 1)). On
a path without nodes, this package does the same.

The losses (in ``losses.py`` of the original) all have one form, where s is the score at x_t = alpha x_0 + sigma z:

    |sigma s + z|^2,      or with ``likelihood``      g(t)^2 |s + z/sigma|^2,                                      (1)

each as the mean over the elements, or as half of the sum. On the nodes of a chain, the first form is the DDPM loss of
the original, |output - z|^2, or its SMLD loss, sigma_i^2 |s + z/sigma_i|^2.
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
    """Noise prediction of a network labelled with 999 t (VP and sub-VP). Its inputs are not scaled."""

    def input_scale(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return ``999 t``, with the same shape as ``t``."""
        return 999 * t


@dataclass(frozen=True)
class OriginalScore(Score):
    """Score prediction of a network labelled with sigma(t), which divides by sigma itself (VE)."""

    def input_scale(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def output_scale(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return ``sigma(t)``, with the same shape as ``t``."""
        return sde.coefficients(t)[1]


@lru_cache(maxsize=8)
def _sigmas(levels: int, beta_min: float, beta_max: float) -> Tensor:
    """Return ``sigma_i`` of the original's table for VP, float64 ``(N,)``."""
    chain = DDPM(levels, start=beta_min / levels, end=beta_max / levels)
    return chain.sigma(chain.nodes)


@dataclass(frozen=True)
class OriginalLevelEps(OriginalEps):
    """Noise prediction of a network labelled with the level (DDPM).

    Args:
        levels: The number N of levels on a continuous VP path; a chain has its own number of levels.
    """

    levels: int = 1000

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the level for a node, or ``t (N - 1)`` on a continuous path, with the same shape as ``t``."""
        return t * (self.levels - 1) if sde.nodes is None else t * len(sde.nodes) - 1

    def target(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        if sde.nodes is not None:
            return super().target(sde, t)
        if not isinstance(sde, VPSDE):
            raise UsageError(
                f"OriginalLevelEps has tables of levels for VPSDE and for chains, but not for {type(sde).__name__}; "
                "use OriginalEps, or the SDE ddpm",
                parameter="sde",
                value="ddpm",
            )
        # score = -F/sigma_i is -eps_hat/sigma(t)
        level = (self.label(sde, t) + 1e-9).long()
        sigma = _sigmas(self.levels, sde.beta_min, sde.beta_max).to(t)[level]
        return torch.zeros_like(t), sigma / sde.coefficients(t)[1]


@dataclass(frozen=True)
class OriginalLevelScore(OriginalScore):
    """Score prediction of a network labelled with the level, counted from the highest noise down (SMLD, NCSN).

    Args:
        levels: The number N of levels on a continuous path; a chain has its own number of levels.
    """

    levels: int = 1000

    def label(self, sde: SDE, t: Tensor) -> Tensor:
        """Return ``N - 1 - i`` for a node, else ``round((1 - t)(N - 1))``, with the same shape as ``t``."""
        if sde.nodes is None:
            return ((1 - t) * (self.levels - 1)).round()
        return ((1 - t) * len(sde.nodes)).round()


def original_loss(
    model: Denoiser, x0: Tensor, t: Tensor, z: Tensor, *, likelihood: bool = False, reduce: str = "mean"
) -> Tensor:
    """Compute the loss (1) of each row.

    Args:
        model: Any model; a network with a parametrisation of this module is called as in the original.
        x0: Data in model units, shape ``(B, *event)``.
        t: Times, shape ``(B,)``; the original draws them uniformly from 1e-5 to 1, or from the nodes of a chain.
        z: Standard normal numbers, with the same shape as ``x0``.
        likelihood: Weight by ``g^2`` instead of ``sigma^2`` (``likelihood_weighting`` in the original).
        reduce: ``mean`` over the elements (``reduce_mean`` in the original), or ``half-sum``.

    Returns:
        Losses, shape ``(B,)``.
    """
    if reduce not in REDUCTIONS:
        raise UsageError(f"unknown reduction {reduce!r}; {closest(reduce, REDUCTIONS)}")
    sigma = expand(model.domain.sde.coefficients(t)[1], x0)
    error = (sigma * model(model.domain.sde.perturb(x0, t, z), t).score + z).square()
    if likelihood:
        error = error * expand(model.domain.sde.diffusion_squared(t), x0) / sigma.square()
    return mean_flat(error) if reduce == "mean" else sum_flat(error) / 2
