"""From a density to the probability of a level: dequantisation and its bounds.

The probability of the level x under a density p is the integral of p over the cell C(x), a cube of side b. For any
density q(v | x) on the cell, Jensen's inequality gives a lower bound (Theis et al. 2016; Ho et al. 2019),

    log P(x) = log int_C p(v) dv  >=  E_q[ log w(v) ],                w(v) = p(v) / q(v | x),                (1)

and K draws from q give a tighter bound, which rises towards log P(x) as K grows (Burda et al. 2016):

    E log( 1/K sum_k w(v_k) )  >=  E log w(v).                                                              (2)

``uniform``: q is uniform on the cell, so that v = x + b u and -log q = D log b. Networks are trained with the same
dequantisation.

``truncated-normal`` (Zheng et al. 2023, sec. 4.3): the noise at the beginning of the path serves as dequantisation
noise,

    v = x + b/2 + s e,      s = scale sigma(t0)/alpha(t0),      e normal, truncated to |e| <= tau = b/(2 s),     (3)
    -log q = sum_d [ e^2/2 + log( sqrt(2 pi) s Z ) ],           Z = erf(tau / sqrt(2)).

The state at t0 is alpha(t0) v in model units. As in the paper, the path begins where tau is about 3, or at the model's
t_min if that is later. This choice suits networks that were trained on the levels themselves, whose density is highest
in the middle of a cell. For networks trained on dequantised data, the bound is looser than that of ``uniform``.

``none``: no dequantisation. The result is the density at the middle of the cell, not a probability.

References:
    Theis, van den Oord and Bethge (2016), arXiv:1511.01844, sec. 3.1.    Burda, Grosse and Salakhutdinov (2016),
    arXiv:1509.00519, thm. 1.    Ho et al. (2019), Flow++, arXiv:1902.00275, eq. 13.    Zheng et al. (2023), i-DODE,
    arXiv:2305.03935, sec. 4.3.
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
    """The time at which half a cell is :data:`TAU` standard deviations wide, but not before ``t_min``.

    Args:
        sde: The path.
        t_min: The beginning of the model's domain.
        width: Width of a cell in model units.
    """
    log_snr = torch.tensor(-2 * math.log(width / 2 / TAU), dtype=torch.float64)
    return max(t_min, float(sde.t_of_log_snr(log_snr)))


def truncated_normal(u: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
    """Draw standard normal numbers truncated at ``tau``, by inverting their distribution function.

    Args:
        u: Uniform random numbers on [0, 1), float64 ``(B, *event)``.
        tau: The bound: one for all elements, shape ``()``, or one for each element, shape ``event``.

    Returns:
        The numbers e, in units of the standard deviation, with the same shape as ``u``, and their log density ``(B,)``.
    """
    # Use the centres of the 2^-24 wide cells of u, because u = 0 would map to infinity for large tau.
    tau = torch.as_tensor(tau, dtype=u.dtype, device=u.device)
    z = torch.erf(tau / math.sqrt(2))
    e = math.sqrt(2) * torch.erfinv((2 * (u + 2**-25) - 1) * z)
    log_q = -e.square() / 2 - torch.log(math.sqrt(2 * math.pi) * z)
    return e, sum_flat(log_q)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """The bound (2): ``log mean exp`` over the first axis, ``(K, ...)`` to ``(...)``."""
    return torch.logsumexp(log_w, dim=0) - math.log(len(log_w))
