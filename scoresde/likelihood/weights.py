"""Importance weights of several dequantisations, from which the bounds for every smaller number of them follow.

The importance-weighted bound with K dequantisations is  E log( 1/K sum_k w_k )  (equation 2 of
:mod:`scoresde.likelihood.dequantise`). The weights w_1 ... w_K of a smaller K are the first ones of a larger K, so the
K solves of the largest K give the bounds for all of them. All weights of a row share one fixed probe, as explained in
:mod:`scoresde.likelihood.data`. The differences between the bounds for two K are therefore free of most of the noise of
the probe.

References:
    Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, arXiv:1509.00519, thm. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..codec import Codec
from ..core.condition import Condition
from ..core.noise import Noise
from ..core.parts import Packed, Parts, pieces
from ..core.threads import rows_each
from ..model.estimate import Denoiser
from ..ode.integrate import OK
from .data import States
from .dequantise import log_mean_exp

if TYPE_CHECKING:
    from .method import Likelihood

__all__ = ["Weights", "weights"]


@dataclass(frozen=True)
class Weights:
    """The log weights of K dequantisations of n rows, each from a solve of its own.

    Attributes:
        log_w: The log weights in nats: lower bounds on the log probabilities of the rows, float64 ``(n, K)``.
        nfe: Number of network evaluations, int64 ``(n, K)``.
        status: A key of :data:`scoresde.ode.integrate.STATUS`, where 0 means success, ``(n, K)``.
    """

    log_w: Tensor
    nfe: Tensor
    status: Tensor

    def log_prob(self, count: int) -> Tensor:
        """Return the importance-weighted bound of each row for the first ``count`` dequantisations, float64 ``(n,)``.

        It is NaN for rows of which one of these solves has failed.
        """
        good = (self.status[:, :count] == OK).all(1)
        return torch.where(good, log_mean_exp(self.log_w[:, :count].mT), torch.nan)

    def evaluations(self, count: int) -> Tensor:
        """Return the number of network evaluations of each row for the first ``count`` solves, int64 ``(n,)``."""
        return self.nfe[:, :count].sum(1)

    def pack(self) -> Packed:
        """Pack the weights into named tensors (see :mod:`scoresde.core.parts`)."""
        return {f.name: getattr(self, f.name) for f in fields(self)}, {}


def weights(
    likelihood: Likelihood,
    model: Denoiser,
    codec: Codec,
    x: Tensor,
    noise: Noise,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 256,
    memory: int | None = None,
    parts: Parts | None = None,
    condition: Condition | None = None,
) -> Weights:
    """Compute the weights of ``likelihood.importance`` dequantisations of each row, in data units.

    For the same ``noise``, the bound for K of them is what a likelihood with ``importance=K`` computes.

    Args:
        likelihood: The options, with one draw.
        model, codec, x, noise, dtype, batch, memory, parts, condition: See :func:`scoresde.likelihood.data.score`.
    """
    dims = codec.dims(x, condition)
    how = likelihood.resolved(model, dims if isinstance(dims, int) else int(dims.max()), codec)
    condition = None if condition is None else condition.to("cpu")
    states = States(how, model, codec, x.cpu(), noise, dtype, condition)
    everyone = torch.arange(len(x), device=noise.indices.device)
    batch = how.batch_within(memory, model.rows(everyone[:1]), states(everyone[:1], 0)[0], batch)
    batch = rows_each(len(x), batch)
    batch = batch if parts is None else parts.batch(batch)

    def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Weights:
        return Weights(**{name: value.to(everyone.device) for name, value in tensors.items()})

    solve = partial(_piece, how, states, batch)
    found = pieces(torch.split(everyone, batch), solve, Weights.pack, unpack, parts, noise.indices)
    return Weights(*(torch.cat([getattr(piece, f.name) for piece in found]) for f in fields(Weights)))


def _piece(how: Likelihood, states: States, batch: int, rows: Tensor) -> Weights:
    """Solve for the weights of the rows ``rows``, int64 ``(b,)``."""
    found = []
    for k in range(how.importance):
        state, log_q = states(rows, k)
        solved = how.solve(states.model.rows(rows), state, states.noise.rows(rows), batch)
        found.append((solved.log_prob.double() - log_q, solved.nfe, solved.status))
    return Weights(*(torch.stack(column, 1) for column in zip(*found, strict=True)))
