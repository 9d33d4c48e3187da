"""Exact log-likelihood by the probability flow, in nats and in bits/dim.

Along the flow  dy/dr = eps_hat - x0_hat  of the straight frame  y = x/s,  s = alpha + sigma,  the density changes by
the divergence (Chen et al. 2018, arXiv:1806.07366, thm. 1; Song et al. 2021, arXiv:2011.13456, eq. 39), so that

    log p(x) = log p_prior(z) + int_r0^r1 div(eps_hat - x0_hat) dr + D log( s(t_max) / s(t_min) ),              (1)

where z is the latent at t_max, D the number of dimensions, and the prior that of the sampler. (1) is the density of
the model at ``t_min``; on a path that a model was converted to, in the scale of its own path (``data_scale``), so that
it is the same on every path. The state is ``(y, log-det / D)`` and both are held to the tolerance, so that ``rtol``
means nats per dimension.

The divergence is exact (D vector-Jacobian products) or Hutchinson's estimate  e^T J e  with K random signs e, drawn
once per sample for the whole solve; the K estimates are carried separately and give the standard error.

Bits per dimension. Data on levels of width b in data units (0, 1, ..., 255: b = 1) are dequantised, x + b u with
u uniform on [0, 1), and mapped to model units by dividing by ``scale``. The probability of a level is the integral of
the density over its cell, and Jensen's inequality (Theis et al. 2016, arXiv:1511.01844, sec. 3.1) gives

    bits/dim = -( log p(x) / D + log(b / scale) ) / log 2        in expectation over u, an upper bound.         (2)

For 256 levels mapped to [-1, 1), b/scale = 2/256 and the constant is 7: it is derived from the data, not a setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .errors import UsageError
from .estimate import Denoiser
from .noise import Noise
from .ode import OK, failures, integrate
from .shapes import expand, flat, sum_flat, time_dtype

__all__ = ["LogLikelihood", "bits_per_dim", "log_likelihood"]

# Up to this many dimensions the exact divergence costs less than the probes that a small error bar would need.
EXACT_UP_TO = 16


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch; every field but ``z`` has shape ``(B,)``.

    Attributes:
        log_prob: Nats, in model units.
        stderr: Standard error of ``log_prob`` from the probes; 0 if the divergence is exact, NaN for one probe.
        z: Latents at ``t_max``, shape ``(B, *event)``.
        nfe: Evaluations of the model (value and divergence together) per row.
        status: A key of :data:`scoresde.ode.STATUS` per row; 0 is success.
    """

    log_prob: Tensor
    stderr: Tensor
    z: Tensor
    nfe: Tensor
    status: Tensor

    @property
    def ok(self) -> Tensor:
        """Which rows succeeded, bool ``(B,)``."""
        return self.status == OK

    def failures(self) -> list[str]:
        """One line for each kind of failure."""
        return failures(self.status)

    @classmethod
    def join(cls, pieces: Sequence[LogLikelihood]) -> LogLikelihood:
        """Put the pieces of a chunked batch together again."""
        return cls(*(torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(cls)))


def bits_per_dim(log_prob: Tensor, dims: int, log_cell: float) -> Tensor:
    """Bits per dimension (2) from nats in model units.

    Args:
        log_prob: Nats, shape ``(B,)``.
        dims: Number of dimensions D.
        log_cell: ``sum_d log(b / scale_d)``, the log volume of a cell in model units.

    >>> round(float(bits_per_dim(torch.tensor([-2 * math.log(2.0)]), 2, 2 * math.log(2 / 256))), 6)
    8.0
    """
    return -(log_prob + log_cell) / (dims * math.log(2))


def _probes(kind: str, count: int, x: Tensor, noise: Noise) -> Tensor:
    """Vectors e with ``mean or sum of e^T J e = trace J``, shape ``(K, B, *event)``."""
    event = tuple(x.shape[1:])
    if kind == "exact":
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        return basis.reshape(-1, 1, *event).expand(-1, len(x), *event)
    return torch.stack([noise.rademacher(event, k, "probe", x.dtype) for k in range(count)])


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    divergence: str = "auto",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    noise: Noise | None = None,
    batch: int = 256,
    max_nfe: int = 10_000,
) -> LogLikelihood:
    """Log density (1) of each row under the model.

    Args:
        model: Any denoiser.
        x: Data in model units, shape ``(B, *event)``.
        divergence: ``exact``, ``hutchinson``, or ``auto``: exact up to 16 dimensions.
        probes: Number of Hutchinson probes K.
        rtol, atol: Tolerances, in units of the straight frame and in nats per dimension.
        method: A Runge-Kutta method of :mod:`scoresde.ode`.
        noise: Addresses of the rows' probes (default: samples 0 to B-1 of seed 0).
        batch: Rows solved at once.
        max_nfe: Largest number of evaluations of a row.

    Raises:
        UsageError: If an option cannot be used.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> normal = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
        >>> result = log_likelihood(normal, torch.zeros(1, 2))
        >>> abs(float(result.log_prob) + math.log(2 * math.pi)) < 1e-3
        True
    """
    dims = x[0].numel() if len(x) else 0
    if divergence == "auto":
        divergence = "exact" if dims <= EXACT_UP_TO else "hutchinson"
    if divergence not in ("exact", "hutchinson"):
        raise UsageError(f"unknown divergence {divergence!r}; choose from: auto, exact, hutchinson")
    if probes < 1:
        raise UsageError(f"probes is {probes}; Hutchinson's estimate needs at least 1")
    noise = Noise.of(len(x), device=x.device) if noise is None else noise
    if noise.indices.device != x.device:
        raise UsageError(f"the noise is on {noise.indices.device}, the data on {x.device}")
    if len(noise.indices) != len(x):
        raise UsageError(f"noise for {len(noise.indices)} rows, but the data has {len(x)}")
    pieces = [
        _solve(model.rows(i), x[i], divergence, probes, rtol, atol, method, noise.rows(i), max_nfe)
        for i in torch.split(torch.arange(len(x), device=x.device), batch)
    ]
    return LogLikelihood.join(pieces)


def _solve(
    model: Denoiser,
    x: Tensor,
    divergence: str,
    probes: int,
    rtol: float,
    atol: float,
    method: str,
    noise: Noise,
    max_nfe: int,
) -> LogLikelihood:
    sde = model.sde
    t0, t1 = max(sde.times("likelihood")[0], model.t_min), model.t_max
    ends = torch.tensor([t0, t1], dtype=time_dtype(x.device), device=x.device)
    scale, ratio = sde.scale(ends), sde.ratio(ends)
    event, dims = tuple(x.shape[1:]), x[0].numel()
    vectors = _probes(divergence, probes, x, noise)

    def f(state: Tensor, r: Tensor, index: Tensor) -> Tensor:
        t = sde.t_of_ratio(r).clamp(t0, t1)
        rows = model if len(index) == len(x) else model.rows(index)
        with torch.enable_grad():
            y = state[:, :dims].reshape(-1, *event).detach().requires_grad_()
            estimate = rows(expand(sde.scale(t), y) * y, t)
            dy = estimate.eps - estimate.x0
            # e^T J e, one backward pass for each e
            traces = [
                sum_flat(torch.autograd.grad(dy, y, e, retain_graph=True)[0] * e)
                for e in (v[index] for v in vectors)  # one row selection at a time: the basis is large
            ]
        trace = torch.stack(traces, dim=1)
        if divergence == "exact":
            trace = trace.sum(1, keepdim=True)
        return torch.cat([flat(dy.detach()), trace / dims], dim=1)

    y = flat(x * expand(sde.data_scale / scale[0], x))
    columns = 1 if divergence == "exact" else probes
    result = integrate(
        f,
        torch.cat([y, y.new_zeros(len(y), columns)], dim=1),
        float(ratio[0]),
        float(ratio[1]),
        rtol=rtol,
        atol=atol,
        method=method,
        max_nfe=max_nfe,
        parts=lambda s: [s[:, :dims], s[:, dims:].mean(1, keepdim=True)],
    )
    z = result.y[:, :dims].reshape(x.shape) * expand(scale[1], x)
    log_det = result.y[:, dims:] * dims
    log_prob = (
        sde.prior_log_prob(z) + log_det.mean(1) + dims * (sde.data_scale * scale[1] / scale[0]).log().to(x.dtype)
    )
    if divergence == "exact":
        stderr = torch.zeros_like(log_prob)
    else:
        stderr = log_det.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(log_prob, torch.nan)
    return LogLikelihood(log_prob.detach(), stderr.detach(), z.detach(), result.nfe, result.status)
