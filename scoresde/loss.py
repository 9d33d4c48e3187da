"""Denoising score matching, in one line whatever the network outputs.

The score-matching objective of Song et al. (2021), arXiv:2011.13456, eq. 7, for a Gaussian path is

    E |score(x_t) - grad log p(x_t | x_0)|^2 lambda(t),      grad log p(x_t | x_0) = -eps / sigma,             (1)

and with ``score = -eps_hat / sigma`` and ``lambda = sigma^2`` that *is*  E |eps_hat - eps|^2  (Ho et al. 2020,
arXiv:2006.11239, eq. 14). Because ``alpha x0_hat + sigma eps_hat = x_t`` is exact, an error in any output F is the
same error in eps up to a factor known in closed form,

    F - (a x_0 + b eps) = (b - a sigma/alpha) (eps_hat - eps),                                                  (2)

so every weighting is a factor on  |F - target|^2.  They differ in what the network is asked to get right, not in what
it converges to.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .build import resolve
from .errors import UsageError
from .estimate import Parametrization
from .model import ScoreModel
from .sde import SDE
from .shapes import expand, mean_flat, time_dtype
from .tables import TIME_SAMPLERS, WEIGHTINGS
from .vlb import HYBRID_WEIGHT, variance_loss

__all__ = ["denoising_loss", "end_terms", "eps", "likelihood", "native", "training_times"]


def native(sde: SDE, parametrization: Parametrization, t: Tensor) -> Tensor:
    """Weight 1 on ``|F - target|^2``: plain regression of what the network outputs."""
    return torch.ones_like(t)


def eps(sde: SDE, parametrization: Parametrization, t: Tensor) -> Tensor:
    """The weight that makes it ``|eps_hat - eps|^2``, that is, (1) with ``lambda = sigma^2``."""
    alpha, sigma = sde.coefficients(t)
    a, b = parametrization.target(sde, t)
    return (alpha / (alpha * b - sigma * a)).square()


def likelihood(sde: SDE, parametrization: Parametrization, t: Tensor) -> Tensor:
    """The weight that makes it (1) with ``lambda = g^2`` (Song et al. 2021, arXiv:2101.09258, thm. 1)."""
    return eps(sde, parametrization, t) * sde.diffusion_squared(t) / sde.coefficients(t)[1].square()


def denoising_loss(
    model: ScoreModel, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None, weighting: str = "native"
) -> Tensor:
    """The denoising loss of each row, mean over the event; of a model that learns its variance the hybrid loss.

    That is, plus 0.001 times the variational bound with the mean held fixed, (3) of :mod:`scoresde.vlb`.

    Args:
        model: The model in training.
        x0: Data in model units, shape ``(B, *event)``.
        t: Times, shape ``(B,)``: nodes, if the model has any.
        noise: Standard normal, shape of ``x0``.
        cond: Class of each row, int64 ``(B,)``, or ``None``.
        weighting: A name in :data:`scoresde.tables.WEIGHTINGS` or ``module:function``.

    Returns:
        Shape ``(B,)``.
    """
    sde, parametrization = model.sde, model.parametrization
    # F - (a x_0 + b eps) at x_t = alpha x_0 + sigma eps
    a, b = parametrization.target(sde, t)
    target = expand(a, x0) * x0 + expand(b, x0) * noise
    x = sde.perturb(x0, t, noise)
    output, frac = model.outputs(x, t, cond)
    weight: Tensor = resolve(weighting, WEIGHTINGS, "weighting")(sde, parametrization, t)
    loss = weight.to(x0.dtype) * mean_flat((output - target).square())
    if frac is None or model.nodes is None:
        return loss
    estimate = replace(parametrization.solve(sde, x, t, output), frac=frac)
    return loss + HYBRID_WEIGHT * variance_loss(estimate, x0, model.nodes)


def end_terms(model: ScoreModel, x0: Tensor) -> Tensor:
    """What the ends of the path add to the variational bound, of which (1) with ``lambda = g^2`` is the middle.

    Kingma et al. (2021), arXiv:2107.00630, eq. 12, times 2/D as (1) is: the divergence of x at ``t_max`` from the
    prior, and the negative log density of the data given x at ``t_min``, N(x/alpha, sigma^2/alpha^2). Only a path that
    is learned needs them: without them its ends would run away.

    Args:
        model: The model in training.
        x0: Data in model units, shape ``(B, *event)``.

    Returns:
        Shape ``(B,)``.
    """
    sde = model.sde
    (a0, a1), (s0, s1) = sde.coefficients(torch.tensor([sde.t_min, sde.t_max], dtype=time_dtype(x0.device)))
    # 2 KL( N(alpha x_0, sigma^2) | N(0, p^2) ) = (sigma^2 + alpha^2 x_0^2)/p^2 - 1 - log sigma^2/p^2
    square, prior = mean_flat(x0.square()), sde.prior_std**2
    latent = (s1.square() + a1.square() * square) / prior - 1 - torch.log(s1.square() / prior)
    data = 1 + torch.log(2 * math.pi * (s0 / a0).square())
    terms: Tensor = (latent + data).to(x0.dtype)
    return terms


def training_times(
    sampler: str, count: int, low: float, high: float, generator: torch.Generator | None = None
) -> Tensor:
    """Times to train at, one in each of ``count`` cells of equal probability, float64 ``(count,)``.

    Stratified draws have the expectation of independent ones and less variance (Kingma et al. 2021, arXiv:2107.00630,
    app. I.1). ``uniform`` is uniform in t, as published for all SDEs; ``sqrt`` is uniform in sqrt(t), which visits the
    low noise levels of VP and sub-VP more often: t < 0.01 is a third of their log-SNR range, but 1 % of uniform t.
    """
    if sampler not in TIME_SAMPLERS:
        raise UsageError(f"unknown time sampler {sampler!r}; choose from: {', '.join(TIME_SAMPLERS)}")
    power = TIME_SAMPLERS[sampler]
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    u = (torch.arange(count, dtype=torch.float64) + shift) / count
    root_low, root_high = low ** (1 / power), high ** (1 / power)
    times: Tensor = (root_low + (root_high - root_low) * u) ** power
    return times
