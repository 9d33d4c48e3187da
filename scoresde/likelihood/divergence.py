"""The slope of the flow and its divergence, exact or estimated with random probes.

The divergence is the trace of the Jacobian J of the slope. After a forward pass, one backward pass computes e^T J for
a vector e, and

    tr J = sum_i u_i^T J u_i        with the unit vectors u_i: exact, D passes,                              (1)
    tr J = E[ e^T J e ]             for any e with E[e e^T] = I: Hutchinson's estimate, one pass per probe.   (2)

Let S = (J + J^T)/2. The variance of the estimate from one probe is  4 sum_(i<j) S_ij^2  for a probe of random signs.
For a Gaussian probe, it is  2 |S|_F^2,  which also contains the diagonal. Random signs are therefore the default. If J
is diagonal, a single probe of random signs is exact. Estimates from random signs also have a nearly symmetric
distribution, as Student's confidence intervals require. In few dimensions, estimates from Gaussian probes have a skewed
distribution (for D = 8, the 95 % interval from 4 fixed probes contains the true value in 92.7 % of cases).

In theory, forward-mode differentiation (``torch.func.jvp`` and ``vmap``) takes two thirds as long as backward
passes. In measurements with PyTorch on a CPU, however, it took two to three times as long for the U-Net, and longer
still for small networks, because its derivative rules are composed of small operations.

The backward passes run one after the other. Batching them over the vectors (``is_grads_batched``) makes little
difference on a CPU (for a batch of 16 digits, 75 ms instead of 78 ms for 4 vectors, and 1.00 s instead of 1.15 s for 64
vectors). Batching K vectors also needs K times the memory, and does not work for networks with custom backward rules
that ``vmap`` does not support.

Finite differences need no backward pass. Each probe then takes two evaluations of the slope f, which run as one batch:

    e^T J e  ~  e^T ( f(y + h e) - f(y - h e) ) / 2h,        f(y)  ~  ( f(y + h e) + f(y - h e) ) / 2,        (3)

    h = w (r + q),        w = eps^(1/3),        q = 0.03,

where r = sigma/(alpha + sigma), and eps is the machine epsilon. The truncation error is of order h^2, and the rounding
error of f is divided by h. The choice of w balances the two. The term r appears because the density varies over lengths
of order r, and q accounts for the spread of the data themselves. For a network trained on digits, using equation 3
changes a log density by 2e-5 bits/dim in single precision and by 1e-10 bits/dim in double precision. Finite differences
store nothing for a backward pass, and also work for networks that do not support one.

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

SHORTEST = 0.03  # q in equation 3

# Number of positions along a trajectory at which each probe of each draw has its own noise address. The probe and the
# position are encoded in the step of the address, which has 32 bits.
PLACES = 2**14


@dataclass(frozen=True)
class Probes:
    """The probe vectors e of each row, drawn on demand.

    Args:
        kind: ``exact`` (unit vectors instead of random probes), ``rademacher`` (random signs) or ``gaussian``.
        count: Number of probes K.
        noise: The noise addresses of the rows.
        first: Index of the first probe. The probes of a row have the indices ``first`` to ``first + K - 1``, and probes
            with different indices are independent.
        fixed: Whether a probe stays the same along the trajectory.
        width: Width w of the finite differences in equation 3, or 0 to use backward passes.
    """

    kind: str
    count: int
    noise: Noise
    first: int = 0
    fixed: bool = False
    width: float = 0.0

    @property
    def columns(self) -> int:
        """Number of traces per row: 1 if the trace is exact, and K otherwise."""
        return 1 if self.kind == "exact" else self.count

    @property
    def more(self) -> int:
        """Number of extra model evaluations that the traces need at each point.

        It is 2K - 1 with finite differences, and 0 otherwise.
        """
        return 2 * self.count - 1 if self.width and self.kind != "exact" else 0

    def rows(self, index: Tensor) -> Probes:
        """Return the probes of the rows with indices ``index: (B',)``."""
        return replace(self, noise=self.noise.rows(index))

    def vectors(self, y: Tensor, rows: Tensor, place: Tensor | None = None) -> Iterator[Tensor] | None:
        """Return an iterator over the K probe vectors, each of shape ``(P, D)``, or ``None`` for an exact trace.

        Args:
            y: The states, shape ``(P, D)``. The probe vectors have the dtype of the states.
            rows: Indices of the rows to which the states belong, shape ``(P,)``.
            place: Indices of the positions along the trajectory, int64 ``(P,)``, or ``None`` for vectors that are the
                same everywhere. The vectors repeat after 2^14 positions.
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
        """Return the mean of the log densities over the probes, and its standard error, each of shape ``(B,)``.

        The argument ``log_prob: (B, K)`` has one column per probe.
        """
        mean = log_prob.mean(1)
        if self.kind == "exact":
            return mean, torch.zeros_like(mean)
        if self.count == 1:
            return mean, torch.full_like(mean, torch.nan)
        return mean, log_prob.detach().std(1) / math.sqrt(self.count)

    def check(self) -> None:
        """Check the kind and the number of probes, and the index of the first one.

        Raises:
            UsageError: If any of these is invalid. The message states the valid values.
        """
        if self.kind != "exact" and self.kind not in PROBES:
            raise UsageError(f"unknown probe {self.kind!r}; choose from: {', '.join(PROBES)}")
        if self.count < 1:
            raise UsageError(f"probes is {self.count}; it must be at least 1")
        if not 0 <= self.first <= 2**32 // PLACES - self.count:
            raise UsageError(
                f"the product of draw and probes is {self.first}; it must be at least 0 and at most "
                f"{2**32 // PLACES - self.count}; choose another draw or fewer probes"
            )


def slope_and_traces(
    slope: Callable[[Tensor], Tensor], y: Tensor, vectors: Iterable[Tensor] | None, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the slope at ``y: (P, D)`` and the traces of its Jacobian (equation 1 or 2).

    Args:
        slope: Function ``(P, D) -> (P, D)`` that acts on each row separately. It is called once.
        y: The states.
        vectors: Probe vectors, each ``(P, D)``, or ``None`` for the exact trace.
        graph: Whether to keep the graph, so that the results can be differentiated.

    Returns:
        The slope ``(P, D)`` and the traces ``(P, K)``, where K = 1 for the exact trace.
    """
    with torch.enable_grad():
        y = y if graph and y.requires_grad else y.detach().requires_grad_()
        dy = slope(y)

        def pull(output: Tensor, e: Tensor | None = None) -> Tensor:
            options = {"retain_graph": True, "create_graph": graph, "materialize_grads": True}
            return torch.autograd.grad(output, y, e, **options)[0]

        if vectors is None:
            # One backward pass from the sum over the rows gives u_i^T J u_i for each row, because rows are independent.
            traces = sum(pull(dy[:, i].sum())[:, i] for i in range(dy.shape[1]))
            assert isinstance(traces, Tensor)
            return (dy if graph else dy.detach()), traces[:, None]
        traces = torch.stack([(pull(dy, e) * e).sum(1) for e in vectors], dim=1)
    return (dy if graph else dy.detach()), traces


def slope_and_differences(
    slope: Callable[[Tensor], Tensor], y: Tensor, vectors: Iterable[Tensor], h: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the slope at ``y: (P, D)`` and the traces of its Jacobian by finite differences (equation 3).

    Args:
        slope: Function ``(2P, D) -> (2P, N)`` that acts on each row separately. It is called once for each vector. The
            first D columns of its output are the slope f. All columns are averaged over the evaluations of a state.
        y: The states.
        vectors: K probe vectors, each ``(P, D)``.
        h: The distance h of equation 3 for each state, shape ``(P, 1)``.

    Returns:
        The output of ``slope`` averaged over all evaluations of a state, shape ``(P, N)``, and the traces, shape
        ``(P, K)``.
    """
    values, traces = [], []
    for e in vectors:
        above, below = slope(torch.cat([y + h * e, y - h * e])).chunk(2)
        values.append((above + below) / 2)
        traces.append(((above - below)[:, : y.shape[1]] * e).sum(1) / (2 * h[:, 0]))
    return torch.stack(values).mean(0), torch.stack(traces, dim=1)


def width(dtype: torch.dtype) -> float:
    """Return the width w of the finite differences in equation 3 for computations in ``dtype``."""
    return float(torch.finfo(dtype).eps ** (1 / 3))
