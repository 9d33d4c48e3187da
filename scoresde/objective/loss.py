"""Denoising score matching, in one form for every network output.

The score-matching objective of Song et al. (2021), arXiv:2011.13456, eq. 7, for a Gaussian path is

    E |score(x_t) - grad log p(x_t | x_0)|^2 lambda(t),      grad log p(x_t | x_0) = -eps / sigma.             (1)

With ``score = -eps_hat / sigma`` and ``lambda = sigma^2``, this objective is exactly  E |eps_hat - eps|^2  (Ho et al.
2020, arXiv:2006.11239, eq. 14). Because ``alpha x0_hat + sigma eps_hat = x_t`` is exact, the error of any output F with
the target a x_0 + b eps is the error of eps_hat times a known factor,

    F - (a x_0 + b eps) = (b - a sigma/alpha) (eps_hat - eps),                                                  (2)

so every weighting (:mod:`scoresde.objective.weighting`) is a factor on  |F - target|^2.  Weightings change how much the
errors at each noise level contribute to the loss, but not which function minimises the loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core.condition import Condition
from ..core.shapes import expand, mean_flat, time_dtype
from ..data.batch import Batch
from ..likelihood.chain import HYBRID_WEIGHT, variance_loss
from ..model.network import ScoreModel
from .draw import Draws
from .weighting import Weight, make_weighting

__all__ = ["Denoising", "Objective", "denoising_loss", "end_terms"]


class Objective(ABC):
    """A training objective. Training minimises the mean of its losses over rows and draws."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the loss of each row, as a tensor of shape ``(B,)``.

        Args:
            model: The module in training.
            batch: The rows.
            draws: The random draws for these rows. Their weights (``draws.weight``) are not applied to the result.
        """

    def ends(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """Return the part of each row's loss that does not depend on the draws, or ``None`` if there is no such part.

        The result has shape ``(B,)``.
        """
        return None


@dataclass(frozen=True)
class Denoising(Objective):
    """Denoising score matching: :func:`denoising_loss`, plus :func:`end_terms` if the path is learned.

    Args:
        weighting: The factor on the squared error.
    """

    weighting: Weight

    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        assert isinstance(model, ScoreModel) and draws.t is not None
        return denoising_loss(
            model, batch.x0, draws.t, draws.eps, draws.condition, self.weighting, batch.weight, batch.augment
        )

    def ends(self, model: nn.Module, batch: Batch) -> Tensor | None:
        assert isinstance(model, ScoreModel)
        return end_terms(model, batch.x0, batch.weight) if model.sde.parameters() else None


def denoising_loss(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    cond: Condition | None = None,
    weighting: str | Weight = "native",
    each: Tensor | None = None,
    augment: Tensor | None = None,
) -> Tensor:
    """Compute the denoising loss of each row, averaged over the elements of the row.

    A model that learns its variance uses the hybrid loss, which adds 0.001 times the variational bound with the mean
    held fixed (equation 3 of :mod:`scoresde.likelihood.chain`).

    Args:
        model: The model in training.
        x0: Data in model units, shape ``(B, *event)``.
        t: The times of the rows, shape ``(B,)``. If the model has nodes, each time must be one of them.
        noise: Standard normal numbers, with the same shape as ``x0``.
        cond: The condition of each row, or ``None``.
        weighting: The weighting or its name (see :func:`scoresde.objective.weighting.make_weighting`).
        each: The factor on the loss of each element, with the same shape as ``x0``, or ``None`` if all factors are 1.
        augment: The augmentation parameters that the network receives for each row, shape ``(B, A)``, or ``None``.

    Returns:
        The losses, shape ``(B,)``.
    """
    sde, parametrization = model.sde, model.parametrization
    # F - (a x_0 + b eps) at x_t = alpha x_0 + sigma eps
    a, b = parametrization.target(sde, t)
    target = expand(a, x0) * x0 + expand(b, x0) * noise
    x = sde.perturb(x0, t, noise)
    output, frac = model.outputs(x, t, cond, augment)
    weight = make_weighting(weighting, typed=True)(sde, parametrization, t)
    loss = _weighed(weight, (output - target).square(), each)
    if frac is None or model.domain.nodes is None:
        return loss
    estimate = replace(parametrization.solve(sde, x, t, output), frac=frac)
    return loss + HYBRID_WEIGHT * variance_loss(estimate, x0, model.domain.nodes, each)


def _weighed(weight: Tensor, square: Tensor, each: Tensor | None) -> Tensor:
    """Return the weighted mean of the squared errors of each row."""
    if each is not None:
        square = each * square
    if weight.ndim > 1:
        return mean_flat(expand(weight, square) * square)
    return weight.to(square.dtype) * mean_flat(square)  # the same, for one weight per row


def end_terms(model: ScoreModel, x0: Tensor, each: Tensor | None = None) -> Tensor:
    """Compute the terms that the ends of the path add to the variational bound.

    The middle term of the bound is equation 1 with ``lambda = g^2``. There are two end terms (Kingma et al. 2021,
    arXiv:2107.00630, eq. 12). The first is the KL divergence of x at ``t_max`` from the prior. The second is the
    negative log density of the data given x at ``t_min``, where this density is N(x/alpha, sigma^2/alpha^2). Like the
    middle term, both are multiplied by 2/D, where D is the number of elements of a row. Only a learned path needs the
    end terms. Without them, the ends of such a path would drift without limit.

    Args:
        model: The model in training.
        x0: Data in model units, shape ``(B, *event)``.
        each: The factor on the terms of each element, with the same shape as ``x0``, or ``None`` if all factors are 1.

    Returns:
        The sum of the terms for each row, shape ``(B,)``.
    """
    sde = model.sde
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=time_dtype(x0.device), device=x0.device)
    (a0, a1), (s0, s1) = sde.coefficients(ends)
    # 2 KL( N(alpha x_0, sigma^2) | N(0, p^2) ) = (sigma^2 + alpha^2 x_0^2)/p^2 - 1 - log sigma^2/p^2
    prior = sde.prior.std**2
    if sde.coords:
        ratio = (s1.square() / prior).expand(1, *x0.shape[1:])
        latent = ratio + (a1.square() / prior).to(x0) * x0.square() - 1 - torch.log(ratio)
        data = 1 + torch.log(2 * math.pi * (s0 / a0).square())
        return mean_flat((latent + data if each is None else each * (latent + data)).to(x0.dtype))
    square = mean_flat(x0.square())
    if each is not None:  # the weighted mean over the elements
        share = mean_flat(each)
        square = mean_flat(each * x0.square()) / share.clamp(min=torch.finfo(share.dtype).tiny)
    latent = (s1.square() + a1.square() * square) / prior - 1 - torch.log(s1.square() / prior)
    data = 1 + torch.log(2 * math.pi * (s0 / a0).square())
    terms: Tensor = (latent + data).to(x0.dtype)
    return terms if each is None else share * terms
