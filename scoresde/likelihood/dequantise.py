"""Dequantisation: lower bounds on the probability of discrete data under a continuous density.

The probability of discrete data x under a density p is the integral of p over the cell C(x), a cube of side b. For any
density q(v | x) on the cell, Jensen's inequality gives a lower bound (Theis et al. 2016; Ho et al. 2019),

    log P(x) = log int_C p(v) dv  >=  E_q[ log w(v) ],                w(v) = p(v) / q(v | x),                (1)

and K draws from q give a tighter bound, which rises towards log P(x) as K grows (Burda et al. 2016):

    E log( 1/K sum_k w(v_k) )  >=  E log w(v).                                                              (2)

``uniform``: q is uniform on the cell, so v = x + b u, with u uniform on [0, 1)^D, and -log q = D log b. Networks are
trained with the same dequantisation.

``truncated-normal`` (Zheng et al. 2023, sec. 4.3): the noise at the beginning of the trajectory also serves as
dequantisation noise,

    v = x + b/2 + s e,      s = scale sigma(t0)/alpha(t0),      e normal, truncated to |e| <= tau = b/(2 s),     (3)
    -log q = sum_d [ e_d^2/2 + log( sqrt(2 pi) s Z ) ],         Z = erf(tau / sqrt(2)),

where scale is the number of data units per model unit. The state at t0 is alpha(t0) v, where v is expressed in model
units. Following the paper, the trajectory begins where tau = 3, or at the model's t_min if that is later. Truncated
normal noise suits networks that were trained on the levels themselves, because the density of such a network is highest
in the middle of each cell. For networks trained on dequantised data, the bound is looser than with ``uniform``.

``none``: the data are not dequantised. The result is the density at the middle of the cell, not a probability.

References:
    Theis, van den Oord and Bethge (2016), arXiv:1511.01844, sec. 3.1.
    Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519, thm. 1.
    Ho et al. (2019), Flow++, arXiv:1902.00275, eq. 13.
    Zheng et al. (2023), i-DODE, arXiv:2305.03935, sec. 4.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.shapes import sum_flat
from ..sde.base import SDE

__all__ = ["DEQUANTISATIONS", "log_mean_exp", "start_time", "truncated_normal"]

DEQUANTISATIONS = ("uniform", "truncated-normal", "none")

TAU = 3.0


def start_time(sde: SDE, t_min: float, width: float) -> float:
    """Return the time at which half a cell equals :data:`TAU` standard deviations of noise, but at least ``t_min``.

    Args:
        sde: The SDE of the model.
        t_min: The beginning of the model's domain.
        width: Width of a cell in model units.
    """
    log_snr = torch.tensor(-2 * math.log(width / 2 / TAU), dtype=torch.float64)
    return max(t_min, float(sde.t_of_log_snr(log_snr)))


def truncated_normal(u: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
    """Transform uniform numbers to standard normal numbers truncated to ``[-tau, tau]``.

    Args:
        u: Uniform random numbers on [0, 1), float64 ``(B, *event)``.
        tau: The bound, shape ``()``, or one bound for each element of an event, shape ``event``.

    Returns:
        The truncated normal numbers, with the same shape as ``u``, and their joint log density for each row, ``(B,)``.
    """
    # The values of u are multiples of 2^-24. Add half that spacing, because u = 0 would map to infinity for large tau.
    tau = torch.as_tensor(tau, dtype=u.dtype, device=u.device)
    z = torch.erf(tau / math.sqrt(2))
    e = math.sqrt(2) * torch.erfinv((2 * (u + 2**-25) - 1) * z)
    log_q = -e.square() / 2 - torch.log(math.sqrt(2 * math.pi) * z)
    return e, sum_flat(log_q)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Return the logarithm of the mean of ``exp(log_w)`` over the first axis (equation 2).

    For ``log_w: (K, ...)``, the result has shape ``(...)``.
    """
    return torch.logsumexp(log_w, dim=0) - math.log(len(log_w))
