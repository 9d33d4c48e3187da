"""Forward and reverse steps between two times of a path.

The two times s < t may be any times of *any* path, and need not be nodes of a chain. The forward step adds noise,

    q(x_t | x_s) = N(A x_s, S^2 I),    A = alpha_t/alpha_s,    S^2 = sigma_t^2 - A^2 sigma_s^2,                    (1)

and Bayes' rule gives the reverse step, which removes noise (Ho et al. 2020, arXiv:2006.11239, eq. 6-7):

    q(x_s | x_t, x_0) = N(a x_0 + b x_t, v I),
    a = alpha_s S^2/sigma_t^2,    b = A sigma_s^2/sigma_t^2,    v = S^2 sigma_s^2/sigma_t^2.                       (2)

A model replaces x_0 by its estimate x0_hat. The variance of the step is then chosen between two bounds: v,
which is correct if the data are a single point, and S^2, which is correct on a variance-preserving path if the data are
N(0, I) (Ho et al. 2020, sec. 3.2). A fraction f from 0 to 1 interpolates between log v and log S^2 (Nichol and Dhariwal
2021, arXiv:2102.09672, eq. 15):

    p(x_s | x_t) = N(a x0_hat + b x_t, S^2 (sigma_s^2/sigma_t^2)^(1 - f) I).                                       (3)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import SDE

__all__ = ["forward_step", "posterior"]


def forward_step(sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor ``A`` and the noise variance ``S^2`` of the forward step from ``s`` to ``t``, equation (1).

    Both have the same shape as ``t``.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.coefficients(t), sde.coefficients(s)
    # If no signal is left at either time, as on a steep path, the ratio is 0/0. Then x_t is pure noise for any x_s.
    a = torch.where(alpha_s == 0, 0.0, alpha_t / alpha_s)
    return a, (sigma_t.square() - (a * sigma_s).square()).clamp(min=0)


def posterior(sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights ``a`` and ``b`` and the variance ``v`` of the reverse step from ``t`` to ``s``, equation (2).

    All three have the same shape as ``t``.

    >>> import torch
    >>> from scoresde import DDPM
    >>> t, s = torch.tensor([1.0, 0.998], dtype=torch.float64)
    >>> a, b, v = posterior(DDPM(), t, s)
    >>> f"{float(v):.4f}"  # a little less than beta_t + beta_{t-1}
    '0.0396'
    """
    (_, sigma_t), (alpha_s, sigma_s) = sde.coefficients(t), sde.coefficients(s)
    step, variance = forward_step(sde, t, s)
    gain, kept = variance / sigma_t.square(), (sigma_s / sigma_t).square()
    return alpha_s * gain, step * kept, variance * kept
