r"""The variational bound on the probability of discrete levels, without dequantisation.

The levels k = 0 ... n - 1 of an element of the data are represented by the centres of their cells, a_k in model units.
The model has a latent state z = x_t at t_min, which a softmax over all levels decodes (Kingma et al. 2021, eq. 10):

    P(k | z) = q(z | k) / sum_j q(z | j),      q(z | k) = N( z; alpha a_k, sigma^2 ).                             (1)

The elements of an event are decoded independently. With the centres a in the place of the data, the probability of the
levels has the bound

    -log P(k)  <=  KL( q(x_T | a) || prior )  +  1/2 int_l(t_max)^l(t_min) E |eps - eps_hat(x_t)|^2 dl
                   +  E[ -log P(k | x_{t_min}) ],                                                                 (2)

whose first two terms are those of :mod:`scoresde.likelihood.elbo`. Only the last term differs, and it needs no
evaluation of the network. No volume of a cell occurs in equation 2, because it bounds a probability, not a density.

The choice of t_min. Below t_min, the levels can be told apart, and the integral would only grow, as the network has
been trained on dequantised data and does not know that nothing lies between the levels. By default, t_min is therefore
the time at which half a cell equals three standard deviations sigma/alpha, where the last term is about 0.005 nats for
each element, or the model's t_min if that is later.

A network that was trained on dequantised data was never told the centres of the cells, so its bound (2) is looser than
the bound with uniform dequantisation. For a network trained on the levels themselves, it is the tighter one.

References:
    Kingma, Salimans, Poole and Ho (2021), Variational diffusion models, arXiv:2107.00630, sec. 3.3 and eq. 10.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..codec import Codec, Levels, as_affine
from ..core.errors import UsageError
from ..core.limits import COUNT, STEPS, TIME, checked
from ..core.noise import Noise
from ..core.shapes import as_states, sum_flat, time_dtype
from ..model.estimate import Denoiser
from ..sde.check import check_scalar
from .dequantise import start_time
from .elbo import Elbo, elbo

__all__ = ["decode_from", "elbo_on_levels", "softmax_nll"]

WHAT = "the bound on the levels"
FAR = 9.0  # standard deviations beyond which a level has no weight in equation 1: exp(-9^2/2) is 3e-18


def decode_from(model: Denoiser, codec: Codec) -> float:
    """Return the default time at which the levels are decoded.

    Raises:
        UsageError: If the data are not stored as levels in every element, the codec does more than shift and scale, or
            alpha and sigma differ between the elements of an event.
    """
    levels, sde = codec.levels, model.domain.sde
    if not isinstance(levels, Levels):
        raise UsageError(f"{WHAT} needs data that are stored as discrete levels, and these data are continuous")
    if not levels.everywhere:
        raise UsageError(f"{WHAT} needs discrete levels in every column, and some columns are continuous")
    check_scalar(sde, WHAT, "the bound with uniform dequantisation")
    spacing = torch.as_tensor(levels.width) / as_affine(codec, WHAT).scale
    return start_time(sde, model.domain.interval("likelihood")[0], float(spacing.min()))


@checked(strata=STEPS, draws=STEPS, batch=COUNT, t_min=TIME)
@torch.no_grad()
def elbo_on_levels(
    model: Denoiser,
    codec: Codec,
    x: Tensor,
    *,
    strata: int = 64,
    draws: int = 1,
    t_min: float | None = None,
    noise: Noise | None = None,
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Elbo:
    """Compute the bound of equation 2 on the log probability of each row under the reverse SDE.

    The times and the noise of the diffusion term are those of :func:`scoresde.elbo` for the same ``noise``. The
    ``reconstruction`` of the result is the last term of equation 2, estimated from ``draws`` states of its own.

    Args:
        model: A denoiser that has a score.
        codec: The map from data units to model units.
        x: Data in data units, all of which are levels, shape ``(B, *event)``.
        strata, draws, noise, batch: See :func:`scoresde.elbo`.
        t_min: The time at which the state is decoded (default: :func:`decode_from`).
        dtype: Floating-point dtype of the states.

    Raises:
        UsageError: If :func:`decode_from` rejects the data, or the model has no score.
    """
    t_min = decode_from(model, codec) if t_min is None else t_min
    levels, affine = codec.levels, as_affine(codec, WHAT)
    assert isinstance(levels, Levels)
    device = x.device if noise is None else noise.indices.device
    x, wide = as_states(x).cpu().double(), time_dtype(device)
    centres = affine.to_model(x + levels.width / 2)
    noise = Noise.of(len(x), device=device) if noise is None else noise
    states = centres.to(device=device, dtype=dtype)
    terms = elbo(model, states, strata=strata, draws=draws, t_min=t_min, noise=noise, batch=batch)

    alpha, sigma = (float(c) for c in model.domain.sde.coefficients(torch.tensor(t_min, dtype=torch.float64)))
    width = torch.as_tensor(levels.width, dtype=torch.float64)
    index = ((x - levels.low) / width).round().to(device, wide)
    spacing, count = (width / affine.scale).to(device, wide), torch.as_tensor(levels.count).to(device)
    found = []
    for draw in range(draws):
        # z/alpha - a_k, with noise at the addresses after those of the diffusion term
        eps = noise.normal(tuple(x.shape[1:]), 2 * draws * strata + draw, "elbo", wide)
        off = sigma / alpha * eps
        found.append(softmax_nll(off, index, spacing, count, sigma / alpha))
    return replace(terms, reconstruction=torch.stack(found).mean(0).to(dtype))


def softmax_nll(off: Tensor, index: Tensor, spacing: Tensor, count: Tensor, std: float) -> Tensor:
    """Return ``-log P(k | z)`` of equation 1, summed over the elements of an event. The result has shape ``(B,)``.

    With a_j = a_k + (j - k) h, the logarithm of the sum in equation 1, relative to its term j = k, is

        log sum_j exp( ( d^2 - (d - (j - k) h)^2 ) / (2 s^2) ),      d = z/alpha - a_k,   s = sigma/alpha.          (3)

    The sum runs over the levels near z, because the others have no weight.

    Args:
        off: The distances d, in model units, shape ``(B, *event)``.
        index: The levels k, whole numbers of the dtype of ``off``, shape ``(B, *event)``.
        spacing: The distance h between adjacent levels in model units, which broadcasts to ``(B, *event)``.
        count: The number of levels n, which broadcasts to ``(B, *event)``.
        std: The standard deviation s.

    >>> off = torch.zeros(1, 1, dtype=torch.float64)  # at the middle one of three levels, one standard deviation apart
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> nll = softmax_nll(off, torch.tensor([[1.0]]), one, 3 * one, 1.0)
    >>> f"{float(nll):.4f} is log(1 + 2 exp(-1/2))"
    '0.7944 is log(1 + 2 exp(-1/2))'
    """
    last = count - 1
    nearest = (index + (off / spacing).round()).clamp(min=torch.zeros_like(last), max=last)
    reach = min(math.ceil(FAR * std / float(spacing.min())) + 1, int(last.max()))
    total = torch.full_like(off, -torch.inf)
    for step in range(-reach, reach + 1):
        level = nearest + step
        gain = (off.square() - (off - (level - index) * spacing).square()) / (2 * std**2)
        inside = (level >= 0) & (level <= last)
        total = torch.logaddexp(total, torch.where(inside, gain, -torch.inf))
    return sum_flat(total)
