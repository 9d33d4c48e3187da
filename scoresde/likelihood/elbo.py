"""The variational bound for the reverse SDE, in continuous time.

Let l be the log-SNR, and  x_t = alpha x + sigma eps.  The density p(x) that the reverse *SDE* assigns to data x
satisfies the bound (Kingma et al. 2021, eq. 11 and 17; Song et al. 2021, thm. 3)

    -log p(x)  <=  KL( q(x_T | x) || prior )  +  1/2 int_l(t_max)^l(t_min) E |eps - eps_hat(x_t)|^2 dl  +  R,   (1)

    R = E[ -log N( x; x_t/alpha, (sigma/alpha)^2 ) ] at t_min = D/2 ( log(2 pi e) - l(t_min) ).

In the term R, the state at t_min is decoded by a Gaussian whose standard deviation is the noise level sigma/alpha at
t_min. Equation 1 therefore bounds a density at t = 0, namely the model's density at t_min in the units of the data,
blurred once more by sigma/alpha. The prior term has the closed form  D/2 (sigma^2/s^2 - 1 - log(sigma^2/s^2)) +
alpha^2 |x|^2/(2 s^2),  where s is the standard deviation of the prior.

Equation 1 is *not* a bound on the likelihood under the probability flow (equation 1 of :mod:`scoresde.likelihood`). The
SDE and the flow are different models unless the score is exact. With 1.1 times the exact score of N(0, 0.5^2) on the VP
path, the negative log-likelihood of the flow is 1.223 nats and the bound is 0.783 nats. Either of the two can be
larger, so reports show both.

The integral is estimated on strata of equal length in the variable

    v = log( r / (1 - r + 0.05) ),      r = sigma/(alpha + sigma),                                          (2)

which is close to -l/2 except near pure noise, where the integrand vanishes. Each stratum has one time and one draw of
eps, so the estimate is unbiased for any number of strata. Where the noise is too small to be detected in x_t, the
squared error |eps - eps_hat|^2 is close to |eps|^2, whose fluctuations carry no information. The part
c |eps|^2 of the squared error, where c = (alpha^2/(alpha^2 + sigma^2))^2, is therefore replaced by its mean, c D.

References:
    Kingma, Salimans, Poole and Ho (2021), Variational diffusion models, arXiv:2107.00630.
    Song, Durkan, Murray and Ermon (2021), Maximum likelihood training, arXiv:2101.09258.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import COUNT, STEPS, TIME, checked, enough_memory
from ..core.noise import Noise
from ..core.parts import Packed
from ..core.shapes import align, as_states, at, dims, expand, sum_flat, time_dtype
from ..model.estimate import Counted, Denoiser, Tally
from .problem import Problem

__all__ = ["Elbo", "elbo", "whose"]

SOFTNESS = 0.05


@dataclass(frozen=True)
class Elbo:
    """The terms of equation 1 in nats, for densities in model units.

    The sum of the terms is an upper bound on ``-log p``.

    Attributes:
        prior, reconstruction: The first and the last term of the bound, each of shape ``(B,)``.
        steps: Contributions to the second term, shape ``(B, S)``, ordered from data to noise. Each stratum contributes
            one entry. For a chain, each step contributes one entry instead.
        stderr: Standard error of the sum of all terms, shape ``(B,)``, estimated from the draws with ``draws - 1``
            degrees of freedom. It is NaN for a single draw.
        nfe: Number of network evaluations per row, shape ``(B,)``.
        whose: Description of the model to which the bound applies. The default is the reverse SDE, whose distribution
            differs from that of the flow.
    """

    prior: Tensor
    steps: Tensor
    reconstruction: Tensor
    stderr: Tensor
    nfe: Tensor
    whose: str = "reverse SDE"

    @property
    def diffusion(self) -> Tensor:
        """The second term of the bound, shape ``(B,)``."""
        return self.steps.sum(1)

    @property
    def log_prob(self) -> Tensor:
        """The lower bound on ``log p`` (minus the sum of the terms), shape ``(B,)``."""
        return -(self.prior + self.diffusion + self.reconstruction)

    def pack(self) -> Packed:
        """Pack the bound into named tensors and a dictionary that contains ``whose`` (see :meth:`unpack`)."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "whose"}, {"whose": self.whose}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], device: torch.device) -> Elbo:
        """Restore the bound from the result of :meth:`pack`."""
        return cls(**{name: value.to(device) for name, value in tensors.items()}, whose=str(facts["whose"]))

    @classmethod
    def join(cls, pieces: Sequence[Elbo]) -> Elbo:
        """Concatenate the bounds for consecutive parts of a batch."""
        tensors: dict[str, Any] = {
            f.name: torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(cls) if f.name != "whose"
        }
        return replace(pieces[0], **tensors)


def whose(model: Denoiser, process: str = "reverse SDE") -> str:
    """Describe what a result applies to: ``process``, followed by the kind of the model if it is guided or steered."""
    return process if model.domain.consistent else f"{process} of the {model.domain.kind}"


@checked(strata=STEPS, draws=STEPS, batch=COUNT, t_min=TIME)
@torch.no_grad()
def elbo(
    model: Denoiser,
    x: Tensor,
    *,
    strata: int = 64,
    draws: int = 1,
    t_min: float | None = None,
    noise: Noise | None = None,
    batch: int = 256,
) -> Elbo:
    """Compute the bound of equation 1 on the log density of each row under the reverse SDE.

    Args:
        model: A denoiser that has a score.
        x: Data in model units at t = 0, shape ``(B, *event)``.
        strata: Number of strata per draw. One time is drawn in each stratum.
        draws: Number of independent estimates to average.
        t_min: The time at which the diffusion begins and the state is decoded (default: the model's ``t_min``).
        noise: Noise addresses of the rows (default: samples 0 to B-1 of seed 0).
        batch: Largest number of states evaluated at once.

    Raises:
        UsageError: If the model has no score, or an option is invalid.
    """
    x = as_states(x)
    if not model.domain.has_score:
        raise UsageError(
            "a model trained on coupled (data, noise) pairs has no score, so it has no variational bound; compute its "
            "likelihood under the probability flow instead"
        )
    if x.ndim == 0 or not x.numel():
        raise UsageError(f"the data must have shape (B, *event) and must not be empty; got shape {tuple(x.shape)}")
    # Four 8-byte numbers per stratum: its index, its index within the row, its value, and a copy of the value when all
    # values are concatenated.
    enough_memory(32 * len(x) * draws * strata, f"a bound with {len(x):,} x {draws:,} x {strata:,} evaluations "
                  "(rows x draws x strata)", "strata")  # fmt: skip
    noise = Noise.of(len(x), device=x.device) if noise is None else noise
    noise, size = noise.within(model.domain.support), model.domain.dims(x)
    size = size if isinstance(size, int) else size.to(time_dtype(x.device))
    if len(noise.indices) != len(x):
        raise UsageError(f"noise and data must have the same number of rows; got {len(noise.indices)} and {len(x)}")
    sde, count = model.domain.sde, len(x)
    t0, t1 = Problem(model, x, t_min).ends
    ends = torch.tensor([t0, t1], dtype=time_dtype(x.device), device=x.device)
    if not bool(sde.log_snr(ends[0]).isfinite()):
        raise UsageError(
            f"the bound needs noise at t_min, but {type(sde).__name__} has no noise at t = {t0:g}; use a larger t_min, "
            "such as 1e-5",
            parameter="t_min",
            value=1e-5,
        )

    values, counted = [], Counted(model, Tally(x))
    # The items are the strata of all draws of all rows.
    for item in torch.split(torch.arange(count * draws * strata, device=x.device), batch):
        row, place, stratum = item // (draws * strata), item % (draws * strata), item % strata
        draw = noise.rows(row)
        u = (stratum + draw.uniform((), 2 * place, "elbo", ends.dtype)) / strata
        eps = draw.normal(tuple(x.shape[1:]), 2 * place + 1, "elbo", x.dtype)
        values.append(_integrand(counted, x, row, eps, u, ends))
    parts = torch.cat(values).reshape(count, draws, strata) / strata
    each = parts.sum(2)

    alpha, sigma = sde.coefficients(ends)
    if sde.coords:  # the same terms, summed over the coordinates
        alpha, sigma = (c.expand(2, *x.shape[1:]) for c in (alpha, sigma))
        ratio, shrunk = ((at(c, 1) / sde.prior.std).square() for c in (sigma, alpha))
        prior = (sum_flat(ratio - 1 - ratio.log()).to(x.dtype) + sum_flat(shrunk.to(x.dtype) * x.square())) / 2
        rebuilt = dims(x) / 2 * math.log(2 * math.pi * math.e) - (alpha[0] / sigma[0]).log().sum()
    else:
        ratio = (sigma[1] / sde.prior.std).square()
        shrunk = (alpha[1] / sde.prior.std).square().to(x.dtype)
        prior = (size / 2 * (ratio - 1 - ratio.log())).to(x.dtype) + shrunk * sum_flat(x.square()) / 2
        rebuilt = size / 2 * (math.log(2 * math.pi * math.e) - sde.log_snr(ends[0]))
    stderr = each.std(1) / math.sqrt(draws) if draws > 1 else torch.full_like(prior, torch.nan)
    nfe = torch.full((count,), draws * strata, dtype=torch.int64, device=x.device) + counted.tally.more
    steps, rebuilt = parts.mean(1).to(x.dtype), rebuilt.to(x.dtype).expand(count)
    return Elbo(prior, steps, rebuilt, stderr.to(x.dtype), nfe, whose(model))


def _integrand(model: Denoiser, x: Tensor, rows: Tensor, eps: Tensor, u: Tensor, ends: Tensor) -> Tensor:
    """Return the integrand ``1/2 |eps - eps_hat|^2 |dl/du|`` for each row in ``rows``.

    The variable u runs from 0 to 1 as v (equation 2) runs over its range.
    """
    sde = model.domain.sde
    r0, r1 = sde.ratio(ends)
    v0, v1 = (torch.log(r / (1 - r + SOFTNESS)) for r in (r0, r1))
    e = torch.exp(v0 + u * (v1 - v0))
    r = e * (1 + SOFTNESS) / (1 + e)
    # l = 2 log((1 - r)/r), so |dl/dr| = 2/(r (1 - r)), to be divided by dv/dr = 1/r + 1/(1 - r + softness)
    rate = 2 * (v1 - v0) * (1 - r + SOFTNESS) / ((1 - r) * (1 + SOFTNESS))
    t = sde.t_of_ratio(r).clamp(float(ends[0]), float(ends[1]))
    alpha, sigma = sde.coefficients(t)
    noisy = expand(alpha, eps) * x[rows] + expand(sigma, eps) * eps
    some = model.rows(rows)
    wrong = (eps - some(noisy, t).eps).square()
    c = (alpha.square() / (alpha.square() + sigma.square())).square()
    if sde.coords:  # the log-SNR l_k of each coordinate falls at its own rate, |dl_k/dr| = 2/(r_k (1 - r_k)) dr_k/dr
        own = sigma / (alpha + sigma)
        speed = sde.speed(t)
        # A coordinate whose signal is gone already contributes nothing.
        falls = torch.where(speed == 0, 0.0, 2 / (own * (1 - own)) * speed)
        falls = falls * align((v1 - v0) / (1 / r + 1 / (1 - r + SOFTNESS)), own)
        return sum_flat(expand(falls / 2, wrong) * (wrong - expand(c, wrong) * (eps.square() - 1)))
    mean = c * (sum_flat(eps.square()) - some.domain.dims(eps))  # replaces c |eps|^2 by its mean, c D
    return rate / 2 * (sum_flat(wrong) - mean)
