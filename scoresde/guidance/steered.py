"""Steering: the gradient of a function of the state joins the score of a model.

Let p(c | x_t) be the likelihood of a wish c, such as a class that a classifier recognises in the noisy state. Bayes'
rule gives the score of the samples that satisfy the wish (Song et al. 2021, arXiv:2011.13456, eq. 14; Dhariwal and
Nichol 2021, arXiv:2105.05233, alg. 1),

    grad log p_t(x | c) = grad log p_t(x) + grad log p_t(c | x),                                              (1)

and Tweedie's formula turns it into a change of the two estimates. With g = grad log p_t(c | x),

    x0 = x0_hat + (sigma^2/alpha) g,        eps = eps_hat - sigma g.                                          (2)

Near the prior, where alpha << sigma, equation 2 is the product of a very large and a very small number. The estimate of
the data is then almost independent of the state, and is evaluated at a state that is slightly less noisy
(:func:`informative`).

The estimates at different noise levels belong to no common distribution unless p(c | x_t) is exact. The flow and the
reverse SDE of a steered model then lead to different samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import FRACTION, POSITIVE, QUANTILE, Checked, Range, ranges
from ..core.shapes import align, as_time, expand, flat
from ..model.estimate import Denoiser, Domain, Estimate, Wrapped

__all__ = ["Potential", "Rescaled", "Steered", "Thresholded", "detached", "informative", "steer", "twisted"]

Potential = Callable[[Estimate], Tensor]

LOWEST = 0.01  # the smallest ratio alpha/sigma at which gradients are evaluated


def informative(domain: Domain, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace states that are almost pure noise by states at the noise level alpha/sigma = 0.01.

    The distribution of the data given x_t depends on the state through alpha x_t / sigma^2 and, to second order in
    alpha/sigma, through alpha^2/sigma^2. The first is kept,

        x' = x (alpha/sigma^2) / (alpha'/sigma'^2),

    so that the estimate of the data, and its covariance, change by a relative amount of the order of 1e-4.

    Args:
        domain: The domain of the model.
        x: The states, ``(B, *event)``.
        t: The times, ``()`` or ``(B,)``.

    Returns:
        The states, the times, and which rows were replaced, bool ``()`` or ``(B,)``.
    """
    sde = domain.sde
    alpha, sigma = sde.coefficients(t)
    early = alpha < LOWEST * sigma
    early = early if early.ndim < 2 else flat(early).all(1)
    if not bool(early.any()):
        return x, t, early
    level = 2 * math.log(LOWEST)
    if domain.nodes is None:
        near = float(sde.t_of_log_snr(torch.tensor(level, dtype=torch.float64)))
    else:
        fine = domain.nodes[sde.log_snr(domain.nodes) >= level]
        near = float(fine[-1] if len(fine) else domain.nodes[0])
    s = torch.where(early, torch.full_like(t, near), t)
    alpha_s, sigma_s = sde.coefficients(s)
    ratio = (alpha / sigma.square()) / (alpha_s / sigma_s.square())
    return expand(torch.where(align(early, ratio), ratio, 1.0), x) * x, s, early


def steer(
    model: Denoiser, x: Tensor, t: float | Tensor, change: Callable[[Estimate, Tensor, Tensor], Tensor]
) -> Estimate:
    """Add to the estimate of the data a change that may depend on derivatives of the estimate.

    Args:
        model: The model to steer.
        x: The states, ``(B, *event)``.
        t: The times, ``()`` or ``(B,)``.
        change: A function of the estimate, of the states at which the estimate was made (for derivatives), and of the
            ratio sigma^2/alpha, ``()`` or ``(B,)``. It returns the change, with the same shape as ``x``.
    """
    t, domain = as_time(t, x), model.domain
    near, s, early = informative(domain, x, t)
    with torch.enable_grad():
        state = near if near.requires_grad else near.detach().requires_grad_()
        estimate = model(state, s)
        alpha, sigma = domain.sde.coefficients(s)
        gamma = sigma.square() / alpha
        if domain.sde.coords:  # where no signal is left in one coordinate only, the derivative is 0 up to rounding
            gamma = sigma.square() / torch.maximum(alpha, 1e-6 * sigma).clamp(min=torch.finfo(alpha.dtype).tiny)
        moved = change(estimate, state, gamma)
    if not x.requires_grad:
        estimate, moved = detached(estimate), moved.detach()
    x0 = estimate.x0 + moved
    alpha, sigma = domain.sde.coefficients(t)
    # alpha x0 + sigma eps = x. The first form is also exact where sigma is small.
    eps = estimate.eps - expand(torch.where(sigma > 0, alpha / sigma, 0.0), x) * moved
    if bool(early.any()):
        eps = torch.where(expand(early, x), (x - expand(alpha, x) * x0) / expand(sigma, x), eps)
    # The model below may be steered, too. Its own estimate is then the one without any steering.
    plain = estimate.x0 if estimate.twist is None else estimate.plain
    return replace(estimate, x=x, t=t, x0=x0, eps=eps, plain=plain)


def twisted(estimate: Estimate, log_likelihood: Callable[[], Tensor]) -> Estimate:
    """Add a log-likelihood ``(B,)`` to the twist of an estimate."""
    inner = estimate.twist
    return replace(estimate, twist=log_likelihood if inner is None else lambda: inner() + log_likelihood())


def detached(estimate: Estimate) -> Estimate:
    """Return an estimate whose tensors carry no derivatives."""
    frac = None if estimate.frac is None else estimate.frac.detach()
    return replace(estimate, x=estimate.x.detach(), x0=estimate.x0.detach(), eps=estimate.eps.detach(), frac=frac)


@dataclass(frozen=True)
class Steered(Checked, Wrapped):
    """A model that is steered by the gradient of a function, equation 2 with g = ``scale`` grad ``potential``.

    Args:
        model: The model to steer.
        potential: A function of an :class:`~scoresde.Estimate` that returns the log-likelihood of the wish for each
            row, ``(B,)``. If it uses only ``x`` and ``t``, as a classifier of noisy states does, equation 1 is exact.
            If it uses ``x0``, the result is diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687).
        scale: The factor by which the gradient is multiplied.

    >>> from scoresde import GaussianMixture, VPSDE
    >>> model = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    >>> up = Steered(model, lambda e: -(e.x0[:, 0] - 1) ** 2)
    >>> bool((up(torch.zeros(1, 2), 0.5).x0[0] > model(torch.zeros(1, 2), 0.5).x0[0])[0])
    True
    """

    limits = ranges(scale=Range(-1e6, 1e6))

    potential: Potential
    scale: float = 1.0

    @cached_property
    def domain(self) -> Domain:
        """The domain of the model that is steered."""
        inner = self.model.domain
        if not inner.has_score:
            raise UsageError(
                "steering adds to the score, but a model trained on coupled (data, noise) pairs has no score; use a "
                "model trained without a coupling"
            )
        return replace(inner, consistent=inner.consistent and self.scale == 0, kind="steered model", twisted=True)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        kept = {}

        def change(estimate: Estimate, state: Tensor, gamma: Tensor) -> Tensor:
            value = self.potential(estimate)
            if tuple(value.shape) != (len(x),):
                raise UsageError(
                    f"a potential must return one number for each of the {len(x)} rows, shape ({len(x)},), but this "
                    f"one returned shape {tuple(value.shape)}"
                )
            kept["value"] = self.scale * value.detach()
            (g,) = torch.autograd.grad(value.sum(), state, create_graph=x.requires_grad)
            return expand(gamma, x) * (self.scale * g)

        found = steer(self.model, x, t, change)
        return twisted(found, lambda: kept["value"])


@dataclass(frozen=True)
class Thresholded(Checked, Wrapped):
    """A model whose estimate of the data is limited to the range of the data (dynamic thresholding).

    Let s be the given quantile of the absolute values in the estimate of one row, but at least ``limit``. The estimate
    is clipped to [-s, s] and multiplied by ``limit``/s (Saharia et al. 2022, arXiv:2205.11487, sec. 2.3). This removes
    the saturated colours that a large guidance scale causes.

    Args:
        model: The model, usually a guided one.
        quantile: The quantile, where 1 means the largest absolute value of each row.
        limit: The largest absolute value of the data in model units.
    """

    limits = ranges(quantile=QUANTILE, limit=POSITIVE)

    quantile: float = 0.995
    limit: float = 1.0

    @cached_property
    def domain(self) -> Domain:
        """The domain of the model, whose estimates no longer belong to one distribution."""
        return replace(self.model.domain, consistent=False, kind="thresholded model", twisted=False)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        size = torch.quantile(flat(estimate.x0).abs(), self.quantile, dim=1).clamp(min=self.limit)
        bound = align(size, x)
        return _with_data(estimate, torch.maximum(torch.minimum(estimate.x0, bound), -bound) * (self.limit / bound))


@dataclass(frozen=True)
class Rescaled(Checked, Wrapped):
    """A guided model whose estimate of the data has the standard deviation of the estimate without guidance.

    A large guidance scale increases the contrast of a sample. The estimate is multiplied by the ratio of the standard
    deviations, each over one row, and mixed with the original (Lin et al. 2023, arXiv:2305.08891, eq. 15-16).

    Args:
        model: A :class:`~scoresde.Guided` model, or any other model whose estimates have ``plain``.
        share: The weight of the rescaled estimate.
    """

    limits = ranges(share=FRACTION)

    share: float = 0.7

    @cached_property
    def domain(self) -> Domain:
        """The domain of the model, whose estimates no longer belong to one distribution."""
        inner = self.model.domain
        return replace(inner, consistent=inner.consistent and self.share == 0, twisted=False)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        if estimate.plain is None or x[0].numel() < 2:
            return estimate
        ratio = flat(estimate.plain).std(1) / flat(estimate.x0).std(1).clamp(min=1e-12)
        return _with_data(estimate, align(1 + self.share * (ratio - 1), x) * estimate.x0)


def _with_data(estimate: Estimate, x0: Tensor) -> Estimate:
    """Replace the estimate of the data, and change that of the noise so that ``alpha x0 + sigma eps = x``."""
    alpha, sigma = estimate.sde.coefficients(estimate.t)
    ratio = torch.where(sigma > 0, alpha / sigma, 0.0)
    eps = estimate.eps + expand(ratio, x0) * (estimate.x0 - x0)
    return replace(estimate, x0=x0, eps=eps, twist=None)
