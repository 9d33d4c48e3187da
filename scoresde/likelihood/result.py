"""The result of a likelihood computation, and the conversion from nats to bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..ode.integrate import FAILED_NONFINITE, OK, failures

__all__ = ["ALLOWED", "LogLikelihood", "bits_per_dim", "settled"]

ALLOWED = 0.01  # largest change of a converged result, in bits per dimension


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch. All fields except ``z`` have shape ``(B,)``.

    Attributes:
        log_prob: Log density in nats, in model units. It is NaN or infinite for a row that failed.
        stderr_probes: Standard error of ``log_prob``, estimated from K probes with K - 1 degrees of freedom. It is 0 if
            the divergence is exact, and NaN for a single probe.
        z: Latents at ``t_max``, shape ``(B, *event)``.
        nfe: Number of network evaluations per row.
        divergences: Number of points per row at which the divergence was computed. Each point takes K backward passes
            (D if the divergence is exact) or, for ``difference``, K pairs of evaluations.
        residual: Residual of the quadrature, as the root mean square over the dimensions in the straight frame
            (equation 2 of :mod:`scoresde.likelihood.quadrature`), or NaN for the ``coupled`` method.
        change: Change of ``log_prob`` in nats, with its sign, when the tolerances are ten times tighter (ten times
            looser if the dtype does not resolve tighter ones), or when the number of steps is doubled. It is NaN for
            rows that were not checked, and infinite for rows whose second solve failed.
        status: A key of :data:`scoresde.ode.integrate.STATUS`, where 0 means success.
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
        """Mask of the rows that succeeded, bool ``(B,)``."""
        return self.status == OK

    def failures(self) -> list[str]:
        """Return one line of text for each kind of failure that occurred."""
        return failures(self.status)

    @classmethod
    def join(cls, pieces: Sequence[LogLikelihood]) -> LogLikelihood:
        """Concatenate the results for consecutive parts of a batch."""
        return cls(*(torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(cls)))


def settled(status: Tensor, log_prob: Tensor) -> Tensor:
    """Return a copy of ``status: (B,)`` in which rows with a non-finite ``log_prob: (B,)`` are marked as failed.

    Rows that had already failed keep their status. The divergence of a row can be NaN or infinite even if its
    trajectory is finite.
    """
    return torch.where((status == OK) & ~log_prob.detach().isfinite(), FAILED_NONFINITE, status)


def bits_per_dim(log_prob: Tensor, dims: int | Tensor, log_cell: float = 0.0) -> Tensor:
    """Convert log-likelihoods in nats to bits per dimension (equation 2 of :mod:`scoresde.likelihood`).

    Args:
        log_prob: Log-likelihoods in nats, shape ``(B,)``: log densities in model units or, if ``log_cell`` is 0, log
            probabilities.
        dims: Number of dimensions D, either one number for all rows or a tensor with one number per row, shape
            ``(B,)``.
        log_cell: The log volume of a cell in model units, ``sum_d log(b / scale_d)``.

    >>> round(float(bits_per_dim(torch.tensor([-2 * math.log(2.0)]), 2, 2 * math.log(2 / 256))), 6)
    8.0
    """
    if isinstance(dims, Tensor):
        dims = dims.to(log_prob)
    return -(log_prob + log_cell) / (dims * math.log(2))
