"""The exact denoiser of a Gaussian mixture, with the interface of a trained model.

If the data have the density  p_0 = sum_k w_k N(mu_k, C_k),  with weights w_k, means mu_k and covariances C_k, then the
density at time t is  p_t = sum_k w_k N(alpha mu_k, V_k)  with  V_k = alpha^2 C_k + sigma^2 I.  With the
responsibilities  r_k(x) ~ w_k N(x; alpha mu_k, V_k),  which sum to 1, the estimates are

    eps_hat = sigma sum_k r_k V_k^-1 (x - alpha mu_k),
    x0_hat  = sum_k r_k (mu_k + alpha C_k V_k^-1 (x - alpha mu_k)).

The estimates are computed in the eigenbasis of C_k = Q_k diag(l_k) Q_k^T, in which V_k is diagonal. All solvers, the
loss and the likelihood are tested against this exact model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.shapes import as_time, flat
from ..sde.base import SDE
from .estimate import Domain, Estimate

__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    """A Gaussian mixture, which is both a data distribution and an exact :class:`~scoresde.model.estimate.Denoiser`.

    Args:
        sde: The path.
        means: The mean of each component, shape ``(K, *event)``.
        stds: The standard deviation of each isotropic component, shape ``(K,)``. If all of them are 0, the mixture is a
            finite set of points.
        weights: The weight of each component, shape ``(K,)``. The weights must sum to 1 (default: equal weights).
        covariances: The covariance of each component, shape ``(K, D, D)`` for events of D elements. Give either
            ``stds`` or ``covariances``.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> two = GaussianMixture(VPSDE(), means=torch.tensor([[-1.0], [1.0]]), stds=torch.tensor([0.2, 0.2]))
        >>> round(abs(float(two(torch.zeros(1, 1), 0.5).score)), 6)
        0.0
    """

    sde: SDE
    means: Tensor
    stds: Tensor | None = None
    weights: Tensor | None = None
    covariances: Tensor | None = None

    def __post_init__(self) -> None:
        count, dims = len(self.means), self.means[0].numel()
        if (self.stds is None) == (self.covariances is None):
            raise UsageError(
                "a mixture requires either stds, shape (K,), or covariances, shape (K, D, D), but not both"
            )
        expected = {"stds": (count,), "weights": (count,), "covariances": (count, dims, dims)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                got = tuple(value.shape)
                raise UsageError(
                    f"a mixture with means of shape {tuple(self.means.shape)} requires {name} of shape {shape}; got "
                    f"{got}"
                )
        if self.weights is not None and abs(float(self.weights.sum()) - 1) > 1e-6:
            raise UsageError(f"the weights of a mixture must sum to 1, but they sum to {float(self.weights.sum()):.6g}")
        if self.covariances is not None and float(self.axes[0].min()) < 0:
            raise UsageError(
                f"the covariances of a mixture must not have negative eigenvalues, but the smallest eigenvalue is "
                f"{float(self.axes[0].min()):.6g}"
            )

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor | None]:
        """The eigenvalues ``(K, D)`` and eigenvectors ``(K, D, D)`` of the covariances.

        For isotropic components, the result is the variances ``(K, 1)`` and ``None``.
        """
        if self.covariances is None:
            assert self.stds is not None
            return self.stds.square()[:, None], None
        values, vectors = torch.linalg.eigh(self.covariances)
        # Rounding may turn an eigenvalue that is 0 into a small negative number.
        tiny = 1000 * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
        return torch.where(values.abs() < tiny, values.clamp(min=0), values), vectors

    @cached_property
    def domain(self) -> Domain:
        """The domain, which covers the whole path."""
        return Domain.of(self.sde)

    def rows(self, index: Tensor) -> GaussianMixture:
        """Return the mixture itself, because it is the same for all rows."""
        return self

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Return the quantities from which the estimates and the density are computed.

        Returns:
            The residuals  x - alpha mu_k  in the eigenbasis of each component, ``(B, K, D)``; the eigenvalues of V_k
            and of C_k, with last dimension D, or 1 for isotropic components; the logs of the components' weighted
            densities, ``(B, K)``; alpha; and sigma.
        """
        alpha, sigma = self.sde.coefficients(t)
        if self.sde.coords:
            alpha, sigma = (flat(c.expand(len(c), *x.shape[1:]))[:, None] for c in (alpha, sigma))
        alpha, sigma = (c.to(x.dtype).reshape(len(c) if c.ndim else 1, 1, -1) for c in (alpha, sigma))
        values, vectors = self.axes
        if self.sde.coords and vectors is not None:
            return self._factored(x, alpha, sigma)
        values = values.to(x)
        log_weights = math.log(1 / len(self.means)) if self.weights is None else self.weights.to(x).log()
        residual = flat(x)[:, None] - alpha * flat(self.means.to(x))
        if vectors is not None:
            residual = torch.einsum("bkd,kde->bke", residual, vectors.to(x))
        variance = alpha.square() * values + sigma.square()
        # There is one variance for all axes, or one for each axis.
        log_volume = torch.log(2 * math.pi * variance).sum(-1) * (residual.shape[-1] / variance.shape[-1])
        log_joint = log_weights - ((residual.square() / variance).sum(-1) + log_volume) / 2
        return residual, variance, values, log_joint, alpha, sigma

    def _factored(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Return the same quantities where C_k and ``V_k = A C_k A + S^2`` have different axes, by Cholesky factors.

        Here, A and S are diagonal, with the coefficients ``alpha`` and ``sigma``, each of shape ``(B or 1, 1, D)``. In
        place of the residuals, return  V_k^-1 (x - A mu_k),  and in place of the eigenvalues of V_k and C_k, return
        ones and the covariances ``(K, D, D)``.
        """
        assert self.covariances is not None
        residual = flat(x)[:, None] - alpha * flat(self.means.to(x))
        covariances = self.covariances.to(x)
        v = alpha[..., None] * covariances * alpha[..., None, :] + torch.diag_embed(sigma.square())
        factor = torch.linalg.cholesky(v)
        if len(factor) == 1:  # all rows at once
            solved = torch.cholesky_solve(residual.permute(1, 2, 0)[None], factor)[0].permute(2, 0, 1)
        else:
            solved = torch.cholesky_solve(residual[..., None], factor)[..., 0]
        log_weights = math.log(1 / len(self.means)) if self.weights is None else self.weights.to(x).log()
        log_volume = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + residual.shape[-1] * math.log(2 * math.pi)
        log_joint = log_weights - ((residual * solved).sum(-1) + log_volume) / 2
        return solved, torch.ones_like(log_volume)[..., None], covariances, log_joint, alpha, sigma

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        t = as_time(t, x)
        residual, variance, values, log_joint, alpha, sigma = self._components(x, t)
        r = torch.softmax(log_joint, dim=1)[..., None]
        if self.sde.coords and self.covariances is not None:
            eps = sigma[:, 0] * (r * residual).sum(1)
            shifts = torch.einsum("kde,bke->bkd", values, alpha * residual)
            x0 = (r * (flat(self.means.to(x)) + shifts)).sum(1)
            return Estimate(x, t, x0.reshape(x.shape), eps.reshape(x.shape), self.sde)
        eps, x0 = r * residual / variance, r * values * residual / variance
        vectors = self.axes[1]
        if vectors is not None:
            eps, x0 = (torch.einsum("bke,kde->bkd", v, vectors.to(x)) for v in (eps, x0))
        eps = sigma[:, 0] * eps.sum(1)
        x0 = (r * flat(self.means.to(x))).sum(1) + alpha[:, 0] * x0.sum(1)
        return Estimate(x, t, x0.reshape(x.shape), eps.reshape(x.shape), self.sde)

    def log_prob(self, x: Tensor, t: float | Tensor | None = None) -> Tensor:
        """Return the log density, in nats, of each row of ``x: (B, *event)``. The result has shape ``(B,)``.

        The density is that of the data, or ``p_t`` if ``t`` is given.
        """
        if t is not None:
            return torch.logsumexp(self._components(x, as_time(t, x))[3], dim=1)
        return replace(self, sde=_Data()).log_prob(x, 0.0)

    def given(self, known: Tensor, values: Tensor) -> GaussianMixture:
        """Return the distribution of the unknown elements of an event, given the known elements.

        The event is split into known elements y and unknown elements h. The result has one component for each component
        of this mixture. If a component has the weight w, the mean ``(mu_y, mu_h)`` and the covariance blocks ``C_yy``,
        ``C_hy`` and ``C_hh``, then its counterpart in the result has

            weight ~ w N(y; mu_y, C_yy),    mean = mu_h + K (y - mu_y),    covariance = C_hh - K C_hy^T,

        with ``K = C_hy C_yy^-1``. The result can be used for inpainting. If the mixture is over vectors (x, c), and c
        is known, the result is ``p(x | c)``.

        Args:
            known: A boolean mask of the known elements, with the shape of an event.
            values: The values of the known elements, with the shape of an event. Entries for unknown elements are
                ignored and may be NaN.

        Returns:
            A mixture over the U unknown elements, in the order of the flattened event. Its events have the shape
            ``(U,)``, and its means have the dtype of ``means``.

        Raises:
            UsageError: If ``known`` or ``values`` does not have the shape of an event, if all elements are known, or if
                the known elements have a singular covariance in one of the components.

        >>> from scoresde import GaussianMixture, VPSDE
        >>> joint = GaussianMixture(VPSDE(), torch.zeros(1, 2), covariances=torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]))
        >>> rest = joint.given(torch.tensor([False, True]), torch.tensor([torch.nan, 2.0]))
        >>> rest.means, rest.covariances
        (tensor([[1.]]), tensor([[[0.7500]]]))
        """
        event = tuple(self.means.shape[1:])
        for name, value in (("known", known), ("values", values)):
            if tuple(value.shape) != event:
                raise UsageError(
                    f"{name} has shape {tuple(value.shape)}, but the events of the mixture have shape {event}"
                )
        seen, count = known.to(self.means.device).bool().flatten(), len(self.means)
        if bool(seen.all()):
            raise UsageError("all elements of the event are known; at least one must be unknown")
        means, wide = flat(self.means).double(), torch.float64
        r = values.to(means.device, wide).flatten()[seen] - means[:, seen]
        weights = torch.full((count,), 1 / count, dtype=wide) if self.weights is None else self.weights.double()
        log_weights = weights.to(means.device).log()
        if self.covariances is None:
            assert self.stds is not None
            block = self.stds.double().square()[:, None, None] * torch.eye(int(seen.sum()), dtype=wide, device=r.device)
        else:
            block = self.covariances.double()[:, seen][:, :, seen]
        factor, failed = torch.linalg.cholesky_ex(block)
        if bool(failed.any()):
            raise UsageError(
                f"the known elements have a singular covariance in component {int(failed.nonzero()[0])}, so their "
                "density is not defined; add a small variance to the components"
            )
        white = torch.linalg.solve_triangular(factor, r[..., None], upper=False)[..., 0]
        log_density = -white.square().sum(1) / 2 - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        new = torch.softmax(log_weights + log_density, 0)
        mean, stds, covariances = means[:, ~seen], self.stds, None
        if self.covariances is not None:
            across = self.covariances.double()[:, ~seen][:, :, seen]
            gain = torch.cholesky_solve(across.mT, factor).mT
            mean = mean + (gain @ r[..., None])[..., 0]
            rest = self.covariances.double()[:, ~seen][:, :, ~seen] - gain @ across.mT
            covariances = ((rest + rest.mT) / 2).to(self.means)
        return GaussianMixture(self.sde, mean.to(self.means), stds, new, covariances)

    def seen(self, operator: Callable[[Tensor], Tensor], y: Tensor, noise: float = 0.0) -> GaussianMixture:
        """Return the distribution of an event x, given a measurement ``y = A x + noise z``, with z standard normal.

        A component with the weight w, the mean mu and the covariance C becomes a component with

            weight ~ w N(y; A mu, S),    mean = mu + K (y - A mu),    covariance = C - K A C,

        with ``S = A C A^T + noise^2 I`` and ``K = C A^T S^-1``.

        Args:
            operator: A linear function that maps events ``(B, *event)`` to measurements ``(B, *measured)``.
            y: One measurement, with the shape ``measured``.
            noise: The standard deviation of the measurement noise.

        Raises:
            UsageError: If S is singular for one of the components.

        >>> from scoresde import GaussianMixture, VPSDE
        >>> broad = GaussianMixture(VPSDE(), torch.zeros(1, 1), torch.ones(1))
        >>> after = broad.seen(lambda x: 2 * x, torch.tensor([2.0]), noise=1.0)
        >>> [round(float(v), 4) for v in (after.means, after.covariances)]
        [0.8, 0.2]
        """
        means, wide, count = flat(self.means).double(), torch.float64, len(self.means)
        dims, event = means.shape[1], self.means.shape[1:]
        basis = torch.eye(dims, dtype=wide, device=means.device).reshape(dims, *event)
        a = flat(operator(basis)).mT  # A as a matrix, one column for each element of an event
        values, vectors = self.axes
        c = torch.diag_embed(values.double().expand(count, dims))
        if vectors is not None:
            c = vectors.double() @ c @ vectors.double().mT
        across = a @ c
        s = across @ a.mT + noise**2 * torch.eye(len(a), dtype=wide, device=means.device)
        factor, failed = torch.linalg.cholesky_ex(s)
        if bool(failed.any()):
            raise UsageError(
                f"the measurement has a singular covariance in component {int(failed.nonzero()[0])}, so its density is "
                "not defined; use a positive noise level"
            )
        r = y.to(means).flatten() - means @ a.mT
        white = torch.linalg.solve_triangular(factor, r[..., None], upper=False)[..., 0]
        log_density = -white.square().sum(1) / 2 - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        weights = torch.full((count,), 1 / count, dtype=wide) if self.weights is None else self.weights.double()
        new = torch.softmax(weights.to(means.device).log() + log_density, 0)
        gain = torch.cholesky_solve(across, factor).mT
        mean = means + (gain @ r[..., None])[..., 0]
        rest = c - gain @ across
        covariances = ((rest + rest.mT) / 2).to(self.means)
        return GaussianMixture(self.sde, mean.reshape(count, *event).to(self.means), None, new, covariances)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``count`` samples from the data distribution.

        The result has shape ``(count, *event)`` and the dtype of ``means``.
        """
        # Samples are drawn on the generator's device, so that a CPU generator gives the same draws on any device.
        drawn_on = torch.device("cpu") if generator is None else generator.device
        weights = torch.ones(len(self.means)) if self.weights is None else self.weights
        k = torch.multinomial(weights.double().to(drawn_on), count, replacement=True, generator=generator)
        z = torch.randn(count, *self.means.shape[1:], generator=generator, dtype=self.means.dtype, device=drawn_on)
        k, z = k.to(self.means.device), flat(z.to(self.means.device))
        values, vectors = self.axes
        z = values[k].sqrt() * z
        if vectors is not None:
            z = torch.einsum("nde,ne->nd", vectors[k], z)
        return self.means[k] + z.reshape(count, *self.means.shape[1:])


@dataclass(frozen=True)
class _Data(SDE):
    """A path with alpha = 1 and sigma = t, so that ``p_0`` is the data distribution."""

    def alpha(self, t: Tensor) -> float:
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        return t
