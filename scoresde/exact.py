"""Exact denoisers: data distributions whose perturbed score is known, with the same contract as a trained network.

For  p_0 = sum_k w_k N(mu_k, s_k^2 I)  the path gives  p_t = sum_k w_k N(alpha mu_k, v_k I)  with
v_k = alpha^2 s_k^2 + sigma^2, and with the responsibilities  r_k(x) ~ w_k N(x; alpha mu_k, v_k I):

    eps_hat = sigma sum_k r_k (x - alpha mu_k) / v_k,
    x0_hat  = sum_k r_k (mu_k + alpha s_k^2 (x - alpha mu_k) / v_k).

Every solver, the loss and the likelihood are held against this model, not against themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UsageError
from .estimate import Estimate
from .sde import SDE
from .shapes import as_time, flat

__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of isotropic Gaussians as data distribution and exact :class:`~scoresde.estimate.Denoiser`.

    Args:
        sde: The path.
        means: Shape ``(K, *event)``.
        stds: Standard deviation of each component, shape ``(K,)``; 0 gives the closed-form score of a finite set.
        weights: Shape ``(K,)``, adding up to 1; equal if left out.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> two = GaussianMixture(VPSDE(), means=torch.tensor([[-1.0], [1.0]]), stds=torch.tensor([0.2, 0.2]))
        >>> round(abs(float(two(torch.zeros(1, 1), 0.5).score)), 6)
        0.0
    """

    sde: SDE
    means: Tensor
    stds: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.means)
        if self.stds.shape != (count,) or (self.weights is not None and self.weights.shape != (count,)):
            raise UsageError(
                f"{count} means need stds and weights of shape ({count},); got {tuple(self.stds.shape)}"
                + ("" if self.weights is None else f" and {tuple(self.weights.shape)}")
            )
        if self.weights is not None and abs(float(self.weights.sum()) - 1) > 1e-6:
            raise UsageError(f"the weights of a mixture add up to 1, not {float(self.weights.sum()):.6g}")

    @property
    def t_min(self) -> float:
        return self.sde.t_min

    @property
    def t_max(self) -> float:
        return self.sde.t_max

    @property
    def coupled(self) -> bool:
        return False

    @property
    def nodes(self) -> Tensor | None:
        return None

    def rows(self, index: Tensor) -> GaussianMixture:
        """The mixture itself: all rows are alike."""
        return self

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Residuals ``(B, K, D)``, log joint densities ``(B, K)``, and alpha, sigma, variance with K last."""
        alpha, sigma = (c.to(x.dtype).reshape(-1, 1) for c in self.sde.coefficients(t))
        means, stds = flat(self.means.to(x)), self.stds.to(x)
        log_weights = math.log(1 / len(means)) if self.weights is None else self.weights.to(x).log()
        variance = alpha.square() * stds.square() + sigma.square()
        residual = flat(x)[:, None] - alpha[..., None] * means
        log_joint = (
            log_weights
            - residual.square().sum(-1) / (2 * variance)
            - residual.shape[-1] / 2 * torch.log(2 * math.pi * variance)
        )
        return residual, log_joint, alpha, sigma, variance

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        t = as_time(t, x)
        residual, log_joint, alpha, sigma, variance = self._components(x, t)
        r = torch.softmax(log_joint, dim=1)
        means, stds = flat(self.means.to(x)), self.stds.to(x)
        eps = sigma * ((r / variance)[..., None] * residual).sum(1)
        x0 = (r[..., None] * means + (r * alpha * stds.square() / variance)[..., None] * residual).sum(1)
        return Estimate(x, t, x0.reshape(x.shape), eps.reshape(x.shape), self.sde)

    def log_prob(self, x: Tensor, t: float | Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B, *event)`` to ``(B,)``: of the data, or of ``p_t`` if ``t`` is given."""
        if t is not None:
            return torch.logsumexp(self._components(x, as_time(t, x))[1], dim=1)
        return GaussianMixture(_Data(), self.means, self.stds, self.weights).log_prob(x, 0.0)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw from the data distribution, shape ``(count, *event)``, in the dtype of ``means``."""
        # Drawn where the generator is, so that a CPU generator gives the same draws whatever the device.
        drawn_on = torch.device("cpu") if generator is None else generator.device
        weights = torch.ones(len(self.means)) if self.weights is None else self.weights
        k = torch.multinomial(weights.double().to(drawn_on), count, replacement=True, generator=generator)
        z = torch.randn(count, *self.means.shape[1:], generator=generator, dtype=self.means.dtype, device=drawn_on)
        k, z = k.to(self.means.device), z.to(self.means.device)
        return self.means[k] + self.stds[k].reshape(-1, *[1] * (self.means.ndim - 1)) * z


@dataclass(frozen=True)
class _Data(SDE):
    """The identity at t = 0: alpha = 1, sigma = t, so that ``p_0`` is the data itself."""

    def alpha(self, t: Tensor) -> float:
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        return t
