"""The slope of the flow, and its divergence by random probes, from one or two evaluations of the network.

Let J be the Jacobian of the slope. After a forward pass, one backward pass gives  e^T J  for a vector e. Then

    tr J = sum_i u_i^T J u_i        with the unit vectors u_i: exact, D passes,                              (1)
    tr J = E[ e^T J e ]             for any e with E[e e^T] = I: Hutchinson's estimate, one pass per probe.   (2)

With S = (J + J^T)/2, the variance of an estimate from a probe of random signs is  4 sum_(i<j) S_ij^2,  and with a
Gaussian probe it is 2 |S|_F^2, which also contains the diagonal. Signs are therefore the default: if J is diagonal, a
single probe of signs is exact. Estimates from signs are also nearly symmetrically distributed, as Student's intervals
require. Estimates from Gaussian probes have a skewed distribution in few dimensions (at D = 8, the 95 % interval from 4
fixed probes covers 92.7 %).

Backward passes were measured against forward-mode differentiation (``torch.func.jvp`` and ``vmap``), which in theory
takes two thirds of the time. In PyTorch on a CPU, forward mode takes two to three times as long for the U-Net, and
longer still for small networks, because its derivative rules are composed of small operations.

The passes run one after the other. Batching them over the vectors (``is_grads_batched``) makes little difference on a
CPU (with 16 digits, 75 instead of 78 ms for 4 vectors, and 1.00 instead of 1.15 s for 64 vectors). Batching needs K
times the memory and excludes networks with custom backward rules that ``vmap`` does not support.

Without a backward pass, a probe costs a pair of evaluations, which run as one batch:

    e^T J e  ~  e^T ( f(y + h e) - f(y - h e) ) / 2h,        f(y)  ~  ( f(y + h e) + f(y - h e) ) / 2,        (3)

    h = w (r + q),        w = eps^(1/3),        q = 0.03,

where eps is the spacing of the floating-point numbers at 1. The truncation error is of order h^2, and the rounding
error of f is divided by h; w balances the two. The factor r appears because the density varies over lengths of order r;
q accounts for the width of the data themselves. With the network for the digits, (3) changes a log density by 2e-5
bits/dim in single precision and by 1e-10 bits/dim in double precision. Differences store nothing for a backward pass,
and also work for a network that does not support one.

References:
    Hutchinson (1989), Commun. Stat. Simul. Comput. 18(3):1059-1076.
    Skilling (1989), The eigenvalues of mega-dimensional matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.noise import Noise

__all__ = ["PROBES", "SHORTEST", "Probes", "slope_and_differences", "slope_and_traces", "width"]

PROBES = ("rademacher", "gaussian")

SHORTEST = 0.03  # q of (3)

# Probes have 32-bit addresses, with this many places on the path for each probe of each draw.
PLACES = 2**14


@dataclass(frozen=True)
class Probes:
    """The probe vectors e of each row, drawn on demand.

    Args:
        kind: ``exact`` for the unit vectors, ``rademacher`` or ``gaussian``.
        count: Number of probes K.
        noise: The random numbers of the rows.
        first: Index of the first probe. It lets different draws of the same sample use different probes.
        fixed: Whether a probe is the same everywhere on the path.
        width: Width w of the finite differences in equation (3), or 0 to use exact derivatives.
    """

    kind: str
    count: int
    noise: Noise
    first: int = 0
    fixed: bool = False
    width: float = 0.0

    @property
    def columns(self) -> int:
        """Number of traces: K, or 1 if the trace is exact."""
        return 1 if self.kind == "exact" else self.count

    @property
    def more(self) -> int:
        """Number of extra evaluations for the traces: 0, or 2K - 1 if K pairs (3) also give the slope."""
        return 2 * self.count - 1 if self.width and self.kind != "exact" else 0

    def rows(self, index: Tensor) -> Probes:
        """Select the probes of the rows ``index``, shape ``(B',)``."""
        return replace(self, noise=self.noise.rows(index))

    def vectors(self, y: Tensor, rows: Tensor, place: Tensor | None = None) -> Iterator[Tensor] | None:
        """Yield the K probes at ``y: (P, D)``, each ``(P, D)``; return ``None`` for the unit vectors.

        Args:
            y: The states; the vectors have the same dtype.
            rows: Rows that the states belong to, shape ``(P,)``.
            place: Places on the path, int64 ``(P,)``, or ``None`` for vectors that are the same everywhere. The vectors
                repeat after 2^14 places.
        """
        if self.kind == "exact":
            return None
        noise, draw = self.noise.rows(rows), self._draw
        where = 0 if place is None or self.fixed else place % PLACES
        return (
            draw(noise, y.shape[1], (self.first + k) * PLACES + where, y.dtype) for k in range(self.count)
        )  # probes are drawn one at a time, because they are large for images

    def _draw(self, noise: Noise, dims: int, step: int | Tensor, dtype: torch.dtype) -> Tensor:
        if self.kind == "rademacher":
            return noise.rademacher((dims,), step, "probe", dtype)
        return noise.normal((dims,), step, "probe", dtype)

    def summary(self, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard error, each ``(B,)``, of log densities ``(B, K)`` with one column per probe."""
        mean = log_prob.mean(1)
        if self.kind == "exact":
            return mean, torch.zeros_like(mean)
        if self.count == 1:
            return mean, torch.full_like(mean, torch.nan)
        return mean, log_prob.detach().std(1) / math.sqrt(self.count)

    def check(self) -> None:
        """Reject invalid probes.

        Raises:
            UsageError: If the kind, the count or the first number is invalid; the message lists the valid choices.
        """
        if self.kind != "exact" and self.kind not in PROBES:
            raise UsageError(f"unknown probe {self.kind!r}; choose from: {', '.join(PROBES)}")
        if self.count < 1:
            raise UsageError(f"probes is {self.count}; Hutchinson's estimate needs at least 1")
        if not 0 <= self.first <= 2**32 // PLACES - self.count:
            raise UsageError(
                f"draw times probes is {self.first}; this number must be at least 0 and, after adding the {self.count} "
                f"probes, at most {2**32 // PLACES}"
            )


def slope_and_traces(
    slope: Callable[[Tensor], Tensor], y: Tensor, vectors: Iterable[Tensor] | None, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """The slope at ``y: (P, D)`` and the traces (1) or (2) of its Jacobian.

    Args:
        slope: Function ``(P, D) -> (P, D)`` that acts on each row separately; it is called once.
        y: The states.
        vectors: Probe vectors, each ``(P, D)``, or ``None`` for the exact trace.
        graph: Keep the graph, so that the result can be differentiated again.

    Returns:
        The slope ``(P, D)`` and the traces ``(P, K)``, with K = 1 if exact.
    """
    with torch.enable_grad():
        y = y if graph and y.requires_grad else y.detach().requires_grad_()
        dy = slope(y)

        def pull(output: Tensor, e: Tensor | None = None) -> Tensor:
            options = {"retain_graph": True, "create_graph": graph, "materialize_grads": True}
            return torch.autograd.grad(output, y, e, **options)[0]

        if vectors is None:
            # One backward pass from the sum over the rows gives u_i^T J u_i of every row, because the rows do not mix.
            traces = sum(pull(dy[:, i].sum())[:, i] for i in range(dy.shape[1]))
            assert isinstance(traces, Tensor)
            return (dy if graph else dy.detach()), traces[:, None]
        traces = torch.stack([(pull(dy, e) * e).sum(1) for e in vectors], dim=1)
    return (dy if graph else dy.detach()), traces


def slope_and_differences(
    slope: Callable[[Tensor], Tensor], y: Tensor, vectors: Iterable[Tensor], h: Tensor
) -> tuple[Tensor, Tensor]:
    """The slope at ``y: (P, D)`` and the traces of its Jacobian, both computed with (3).

    Args:
        slope: Function ``(2P, D) -> (2P, N)`` that acts on each row separately, with N at least D. It is called once
            for each vector. Columns beyond the slope are averaged like the slope.
        y: The states.
        vectors: K probe vectors, each ``(P, D)``.
        h: Half the distance between the two points of a pair, shape ``(P, 1)``.

    Returns:
        The slope ``(P, N)`` and the traces ``(P, K)``.
    """
    values, traces = [], []
    for e in vectors:
        above, below = slope(torch.cat([y + h * e, y - h * e])).chunk(2)
        values.append((above + below) / 2)
        traces.append(((above - below)[:, : y.shape[1]] * e).sum(1) / (2 * h[:, 0]))
    return torch.stack(values).mean(0), torch.stack(traces, dim=1)


def width(dtype: torch.dtype) -> float:
    """The width w of (3)."""
    return float(torch.finfo(dtype).eps ** (1 / 3))
