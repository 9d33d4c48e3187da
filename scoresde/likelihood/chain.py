r"""The variational bound for a discrete chain, term by term, in nats per sample.

A chain of N nodes 1/N = t_0 < ... < t_{N-1} = 1 is a latent-variable model. It consists of the prior at the top node, a
step from each node to the next lower node (equation 3 of :mod:`scoresde.sde.marginal`), and a decoder from the lowest
node to the data. Let q be the noising process and p the model. The negative log density of a data point x_0 has the
upper bound (Ho et al. 2020, arXiv:2006.11239, eq. 5)

    -log p(x_0) <= L_T + sum_i L_i + L_0,                                                                         (1)

    L_T = KL( q(x_T | x_0) | N(0, prior_std^2 I) ),
    L_i = E KL( q(x_s | x_t, x_0) | p(x_s | x_t) ),      t = t_i, s = t_{i-1}, i = 1 ... N - 1,
    L_0 = E -log p(x_0 | x_{t_0}).

Both distributions in L_i are Gaussian. The difference of their means is  a (x_0 - x0_hat),  where a is the coefficient
of x_0 in the posterior mean. The variance of q is the posterior variance v, and the variance of p is  v r^f,  with
r = sigma_t^2/sigma_s^2. The fraction f interpolates between the posterior variance (f = 0) and the variance of the
forward step (f = 1). Since  a^2/v = SNR(s) - SNR(t)  with  SNR = alpha^2/sigma^2,  the Kullback-Leibler divergence,
summed over the elements of x_0, is

    KL = 1/2 sum [ f log r + (r^-f - 1) + (SNR(s) - SNR(t)) (x_0 - x0_hat)^2 r^-f ],                              (2)

which for f = 0 is the diffusion loss of Kingma et al. (2021), arXiv:2107.00630, eq. 14.

The decoder N(x0_hat, w I) is the step down to zero noise, whose posterior variance would be 0. Following Ho et al., the
posterior variance of the next higher step is used instead. The fraction f interpolates log w between log v(t_1, t_0)
for f = 0 and log sigma_{t_0}^2 for f = 1. For continuous or dequantised data, L_0 is the negative log density under the
decoder. For data stored as discrete levels that are ``bin_width`` apart, L_0 can instead be the negative log
probability of the bin around the level (Ho et al. 2020, eq. 13). The outermost bins then extend to infinity.

A model that was trained in continuous time has no nodes of its own, but any nodes make a chain of it
(:func:`even_nodes`). With N nodes that are even in the log-SNR, the bound of the chain exceeds the bound in continuous
time (:mod:`scoresde.likelihood.elbo`) by an amount that falls like 1/N. With f = 0, the variance of the decoder would
also fall like 1/N, far below the error of x0_hat, and L_0 would grow like N. For such a chain, the decoder has f = 1.

Training. A model that learns f (Nichol and Dhariwal 2021, arXiv:2102.09672, sec. 3.1) is trained at uniformly drawn
nodes to minimise

    L_hybrid = L_simple + 0.001 L_vlb,      L_vlb = N L_i in bits per dimension,                                  (3)

where no gradient flows through x0_hat in the second term, so that this term trains only the variance. The full loss is
computed in :mod:`scoresde.objective.loss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import STEPS, Range, checked
from ..core.noise import Noise
from ..core.shapes import dims, expand, sum_flat, time_dtype
from ..model.estimate import Counted, Denoiser, Estimate, Tally
from ..sde.base import SDE
from ..sde.check import check_scalar
from ..sde.grids import make_grid, nearest_node
from ..sde.marginal import posterior

__all__ = [
    "HYBRID_WEIGHT", "Bound", "bound", "decoder_nll", "discretised_nll", "even_nodes", "prior_kl", "step_kl",
    "variance_loss",
]  # fmt: skip

# Weight of L_vlb in equation 3.
HYBRID_WEIGHT = 0.001


def prior_kl(sde: SDE, x0: Tensor, count: int | Tensor | None = None, t: float | None = None) -> Tensor:
    """Compute ``L_T``, the KL divergence of ``q(x_T | x_0)`` from the prior, for each row of ``x0: (B, *event)``.

    The result has shape ``(B,)``. ``count`` is the number of dimensions, one number or ``(B,)``, if not all elements
    are real (the others must be 0). ``t`` is the time T of the prior (default: the end of the path).
    """
    count = dims(x0) if count is None else count.to(time_dtype(x0.device)) if isinstance(count, Tensor) else count
    t = sde.t_max if t is None else t
    alpha, sigma = sde.coefficients(torch.tensor([t], dtype=time_dtype(x0.device), device=x0.device))
    # KL(N(m, s^2) | N(0, S^2)) = 1/2 [ (m/S)^2 + q - 1 - log q ],  q = (s/S)^2
    excess = (sigma / sde.prior.std).square() - 1
    shift, constant = (alpha / sde.prior.std).square(), count * (excess - torch.log1p(excess))
    return (sum_flat(x0.square()) * shift.to(x0.dtype) + constant.to(x0.dtype)) / 2


def step_kl(estimate: Estimate, x0: Tensor, s: Tensor, variance: str = "auto", each: Tensor | None = None) -> Tensor:
    """Compute the KL divergence of equation 2 for the step from ``estimate.t`` down to ``s``.

    The result has shape ``(B,)``.

    Args:
        estimate: The model's estimate at ``x_t``.
        x0: The data, shape ``(B, *event)``.
        s: The time at which the step ends, shape ``()`` or ``(B,)``. It must be less than ``estimate.t``.
        variance: The choice of the step's variance, one of :data:`scoresde.model.estimate.VARIANCES`.
        each: Weight of each element's contribution, with the same shape as ``x0``. ``None`` means weights of 1.
    """
    sde, frac = estimate.sde, estimate.share(variance)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.coefficients(estimate.t), sde.coefficients(s)
    gain = expand((alpha_s / sigma_s).square() - (alpha_t / sigma_t).square(), x0)
    grown = frac * expand(2 * torch.log(sigma_t / sigma_s), x0)  # f log r
    kl = grown + torch.expm1(-grown) + gain * (x0 - estimate.x0).square() * torch.exp(-grown)
    return sum_flat(_weighed(kl.expand(x0.shape), each)) / 2


def _weighed(terms: Tensor, each: Tensor | None) -> Tensor:
    return terms if each is None else each * terms


def _decoder_log_variance(estimate: Estimate, nodes: Tensor, variance: str) -> Tensor:
    """Return the log variance of the decoder, ``log w``."""
    first, second = nodes[:2].to(estimate.t)
    low = torch.log(posterior(estimate.sde, second, first)[2])
    high = 2 * torch.log(estimate.sde.coefficients(first)[1])
    low, high = (v.to(estimate.x) for v in (low, high))
    return low + estimate.share(variance) * (high - low)


def decoder_nll(
    estimate: Estimate, x0: Tensor, nodes: Tensor, variance: str = "auto", each: Tensor | None = None
) -> Tensor:
    """Compute ``L_0`` for continuous data: the negative log density ``-log N(x_0; x0_hat, w I)``.

    The result has shape ``(B,)``.

    Args:
        estimate: The model's estimate at the lowest node.
        x0: The data, shape ``(B, *event)``.
        nodes: The nodes of the chain, shape ``(N,)``.
        variance: The choice of the decoder's variance, one of :data:`scoresde.model.estimate.VARIANCES`.
        each: Weight of each element's contribution, with the same shape as ``x0``. ``None`` means weights of 1.
    """
    log_w = _decoder_log_variance(estimate, nodes, variance)
    nll = (x0 - estimate.x0).square() * torch.exp(-log_w) + log_w + math.log(2 * math.pi)
    return sum_flat(_weighed(nll, each)) / 2


def discretised_nll(
    estimate: Estimate,
    x0: Tensor,
    nodes: Tensor,
    bin_width: float,
    low: float = -1.0,
    high: float = 1.0,
    variance: str = "auto",
) -> Tensor:
    """Compute ``L_0`` for discrete data: the negative log probability of their bins under the decoder.

    The result has shape ``(B,)``.

    Args:
        estimate: The model's estimate at the lowest node.
        x0: The data, given as the centres of bins, shape ``(B, *event)``.
        nodes: The nodes of the chain, shape ``(N,)``.
        bin_width: Width of a bin in model units, for example 2/255 for 256 levels from -1 to 1.
        low, high: The lowest and the highest level in model units. Their bins extend to infinity.
        variance: The choice of the decoder's variance, one of :data:`scoresde.model.estimate.VARIANCES`.
    """
    std = torch.exp(_decoder_log_variance(estimate, nodes, variance) / 2)
    left, right = (x0 - bin_width / 2 - estimate.x0) / std, (x0 + bin_width / 2 - estimate.x0) / std
    left = torch.where(x0 <= low + bin_width / 4, -torch.inf, left)
    right = torch.where(x0 >= high - bin_width / 4, torch.inf, right)
    # Compute log(Phi(right) - Phi(left)) in the lower tail, where neither term is near 1. Bins above 0 are mirrored.
    upper = left + right > 0
    left, right = torch.where(upper, -right, left), torch.where(upper, -left, right)
    top, bottom = torch.special.log_ndtr(right), torch.special.log_ndtr(left)
    return -sum_flat(top + torch.log(-torch.expm1(bottom - top)))


@dataclass(frozen=True)
class Bound:
    """The terms of equation 1 for each sample of a batch, in nats. Their sum is an upper bound on ``-log p(x_0)``.

    Attributes:
        prior: ``L_T``, shape ``(B,)``.
        steps: ``L_i``, shape ``(B, N - 1)``, starting with the lowest step. Each term is estimated from one draw of the
            noise.
        data: ``L_0``, shape ``(B,)``, estimated from one draw of the noise.
        nfe: Number of network evaluations per row, int64 ``(B,)``.
    """

    prior: Tensor
    steps: Tensor
    data: Tensor
    nfe: Tensor

    @property
    def total(self) -> Tensor:
        """The bound of equation 1, shape ``(B,)``."""
        return self.prior + self.steps.sum(1) + self.data


@checked(count=Range(2, STEPS.high))
def even_nodes(model: Denoiser, count: int) -> Tensor:
    """Return ``count`` nodes that are even in the log-SNR, from the data to the prior, float64 ``(count,)``.

    If no signal is left at the end of the path, where the log-SNR is infinite, the nodes are even down to a log-SNR of
    -20, and the last one is the end of the path.

    Raises:
        UsageError: If ``count`` is invalid, or alpha and sigma differ between the elements of an event.

    >>> from scoresde import GaussianMixture, VESDE
    >>> normal = GaussianMixture(VESDE(0.01, 100.0), torch.zeros(1, 1), torch.ones(1))
    >>> even_nodes(normal, 5).sub(1e-5).abs().round(decimals=4)  # uniform in t, as the log-SNR of VE is linear in t
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    sde, (t0, t1) = model.domain.sde, model.domain.interval("likelihood")
    check_scalar(sde, "the bound of a chain", "the bound in continuous time")
    if not bool(sde.coefficients(torch.tensor(t0, dtype=torch.float64))[1] > 0):
        raise UsageError(f"a chain needs noise at its lowest node, but {type(sde).__name__} has none at t = {t0:g}")
    return make_grid("logsnr", sde, count - 1, t0, t1)


def bound(
    model: Denoiser,
    x0: Tensor,
    noise: Noise | None = None,
    *,
    nodes: Tensor | None = None,
    variance: str = "auto",
    decoder: str | None = None,
    bin_width: float | None = None,
    low: float = -1.0,
    high: float = 1.0,
) -> Bound:
    """Compute the terms of equation 1. Each term except ``L_T`` is estimated from one draw of the noise.

    Args:
        model: A denoiser.
        x0: Data in model units, shape ``(B, *event)``.
        noise: Noise addresses of the rows (default: samples 0 to B-1 of seed 0).
        nodes: The nodes of the chain in ascending order, shape ``(N,)``, such as those of :func:`even_nodes` (default:
            the nodes of a discrete model). The last node is the end of the path, at which the prior is.
        variance: The choice of the variance for the steps, one of :data:`scoresde.model.estimate.VARIANCES`.
        decoder: The choice of the variance for the decoder (default: the same as ``variance``).
        bin_width, low, high: See :func:`discretised_nll`. If ``bin_width`` is ``None``, ``L_0`` is computed by
            :func:`decoder_nll` instead.

    Raises:
        UsageError: If there are no nodes, or the given nodes do not ascend within the domain of the model to its end.

    Example:
        >>> from scoresde import DDPM, Eps, ScoreModel
        >>> from scoresde.nn import MLP
        >>> model = ScoreModel(MLP(dims=2, width=8, blocks=1), DDPM(30), Eps())
        >>> terms = bound(model, torch.zeros(5, 2))
        >>> terms.steps.shape, terms.total.shape
        (torch.Size([5, 29]), torch.Size([5]))
    """
    sde = model.domain.sde
    nodes = _nodes(model) if nodes is None else _checked(model, nodes)
    decoder = variance if decoder is None else decoder
    support = model.domain.support
    noise = (Noise.of(len(x0), device=x0.device) if noise is None else noise).within(support)
    each = None if support is None else support.to(x0)
    counted = Counted(model, Tally(x0))

    def at(i: int) -> Estimate:
        eps = noise.normal(tuple(x0.shape[1:]), i, "user", x0.dtype)
        t = nodes[i].to(x0.device)
        return counted(sde.perturb(x0, t, eps), t)

    with torch.no_grad():
        steps = [step_kl(at(i), x0, nodes[i - 1].to(x0.device), variance, each) for i in range(1, len(nodes))]
        lowest = at(0)
        if bin_width is None:
            data = decoder_nll(lowest, x0, nodes, decoder, each)
        else:
            data = discretised_nll(lowest, x0, nodes, bin_width, low, high, decoder)
    nfe = torch.zeros(len(x0), dtype=torch.int64, device=x0.device) + counted.tally.total
    prior = prior_kl(sde, x0, model.domain.dims(x0), float(nodes[-1]))
    return Bound(prior, torch.stack(steps, 1), data, nfe)


def _nodes(model: Denoiser) -> Tensor:
    """Return the nodes of a discrete model, shape ``(N,)``."""
    if model.domain.nodes is None:
        raise UsageError(
            f"the variational bound is a sum over the nodes of a chain, but {type(model.domain.sde).__name__}, the "
            "path of this model, has no nodes; train with the 'ddpm' or 'smld' SDE, pass the nodes, or compute the "
            "likelihood under the probability flow"
        )
    return model.domain.nodes


def _checked(model: Denoiser, nodes: Tensor) -> Tensor:
    """Return given nodes ``(N,)``, after checking that they make a chain of a model."""
    low, high = model.domain.interval("likelihood")
    if nodes.ndim != 1 or len(nodes) < 2 or not bool((nodes.diff() > 0).all()):
        raise UsageError(f"the nodes must be at least two ascending times, shape (N,); got {nodes!r}")
    if float(nodes[0]) < low - 1e-12 or abs(float(nodes[-1]) - high) > 1e-9:
        raise UsageError(
            f"the nodes go from t = {float(nodes[0]):g} to {float(nodes[-1]):g}; for this model, they must begin at or "
            f"after {low:g} and end at {high:g}"
        )
    return nodes


def variance_loss(estimate: Estimate, x0: Tensor, nodes: Tensor, each: Tensor | None = None) -> Tensor:
    """Compute ``L_vlb`` of equation 3 at one node per row, in bits per dimension, without gradients through x0_hat.

    The result has shape ``(B,)``. Its expectation over uniformly drawn nodes is the bound of equation 1 without the
    term ``L_T``, which does not depend on the model.

    Args:
        estimate: The model's estimate at ``x_t``. The times ``estimate.t``, shape ``(B,)``, must be nodes.
        x0: The data, shape ``(B, *event)``.
        nodes: The nodes of the chain, shape ``(N,)``.
        each: Weight of each element's contribution, with the same shape as ``x0``. ``None`` means weights of 1.
    """
    estimate = replace(estimate, x0=estimate.x0.detach())
    index, nodes = nearest_node(estimate.t, nodes), nodes.to(estimate.t)
    lowest = index == 0
    # A row at the lowest node has no step below it. For such a row, compute an arbitrary finite step, and replace the
    # result with the decoder term.
    stepped = replace(estimate, t=torch.where(lowest, nodes[1], estimate.t))
    kl = step_kl(stepped, x0, nodes[(index - 1).clamp(min=0)], each=each)
    nll = decoder_nll(estimate, x0, nodes, each=each)
    return torch.where(lowest, nll, kl) * (len(nodes) / (dims(x0) * math.log(2)))
