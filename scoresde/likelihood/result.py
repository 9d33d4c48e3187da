"""What the likelihood returns, and bits per dimension from nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..ode.integrate import FAILED_NONFINITE, OK, failures

__all__ = ["ALLOWED", "LogLikelihood", "bits_per_dim", "settled"]

ALLOWED = 0.01  # the change that a converged figure may show, in bits per dimension


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch; every field but ``z`` has shape ``(B,)``.

    Attributes:
        log_prob: Nats, in model units; NaN where a row failed.
        stderr_probes: Standard error of ``log_prob`` from its K probes, with K - 1 degrees of freedom; 0 if the
            divergence is exact, NaN for one probe, which says nothing about its own error.
        z: Latents at ``t_max``, shape ``(B, *event)``.
        nfe: Networks evaluated per row.
        divergences: At how many points with the divergence, that is, with K backward passes (D if it is exact), or
            with K pairs of evaluations for ``difference``.
        residual: How far the rule of the quadrature is from closing the path, root mean square per dimension in the
            straight frame (see :mod:`scoresde.likelihood.quadrature`); NaN for a coupled solve.
        change: Nats by which ``log_prob`` changes when the tolerance is ten times tighter (looser, where the numbers
            resolve no tighter one), or the steps are doubled; NaN for rows that were not checked, infinite for those
            whose other solve fails.
        status: A key of :data:`scoresde.ode.integrate.STATUS` per row; 0 is success.
    """

    log_prob: Tensor
    stderr_probes: Tensor
    z: Tensor
    nfe: Tensor
    divergences: Tensor
    residual: Tensor
    change: Tensor
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


def settled(status: Tensor, log_prob: Tensor) -> Tensor:
    """``status: (B,)``, where a success without a finite ``log_prob: (B,)`` is none: a divergence can fail alone."""
    return torch.where((status == OK) & ~log_prob.detach().isfinite(), FAILED_NONFINITE, status)


def bits_per_dim(log_prob: Tensor, dims: int | Tensor, log_cell: float = 0.0) -> Tensor:
    """Bits per dimension from nats in model units (:mod:`scoresde.likelihood`, eq. 2).

    Args:
        log_prob: Nats, shape ``(B,)``: a density, or with ``log_cell`` 0 a probability.
        dims: Number of dimensions D, or one for each row, shape ``(B,)``.
        log_cell: ``sum_d log(b / scale_d)``, the log volume of a cell in model units.

    >>> round(float(bits_per_dim(torch.tensor([-2 * math.log(2.0)]), 2, 2 * math.log(2 / 256))), 6)
    8.0
    """
    if isinstance(dims, Tensor):
        dims = dims.to(log_prob)
    return -(log_prob + log_cell) / (dims * math.log(2))
