"""The slope of the flow and its divergence by random probes, in one evaluation of the network, or in a pair of them.

With J the Jacobian of the slope, one backward pass from the same forward pass gives  e^T J  for a vector e. Then

    tr J = sum_i u_i^T J u_i        with the unit vectors u_i: exact, D passes,                              (1)
    tr J = E[ e^T J e ]             for any e with E[e e^T] = I: Hutchinson's estimate, one pass a probe.     (2)

With S = (J + J^T)/2, a probe of random signs has the variance  4 sum_(i<j) S_ij^2  and a Gaussian one  2 |S|_F^2, which
is larger by the diagonal. Signs are therefore the default: where J is diagonal one of them is exact. Their estimates
are also nearly symmetric, as Student's intervals want them; those of Gaussian probes are skewed in few dimensions (at
D = 8 the interval of 4 fixed ones for 95 % covers 92.7 %).

Backward passes were measured against forward-mode differentiation (``torch.func.jvp`` and ``vmap``), which should
take two thirds of the time: in PyTorch on a CPU it takes two to three times as long on the U-Net, and more on small
networks, because its rules are composed of small operations.
The passes are taken one after the other. Batched over the vectors (``is_grads_batched``) they take as long on a CPU, 75
against 78 ms for 4 and 1.00 against 1.15 s for 64 with 16 digits, K times the memory, and networks with backward rules
of their own that no ``vmap`` knows would be shut out.

Without any backward pass, a probe costs a pair of evaluations, which are one batch:

    e^T J e  ~  e^T ( f(y + h e) - f(y - h e) ) / 2h,        f(y)  ~  ( f(y + h e) + f(y - h e) ) / 2,        (3)

    h = w (r + q),        w = eps^(1/3),        q = 0.03,

eps the spacing of the floating-point numbers at 1. The error is of order h^2, and the rounding of f comes in divided
by h; w is between them. The density varies over lengths of order r, hence r; q is for where the data has a width of its
own. On the digits' network (3) moves a log density by 2e-5 bits/dim in single and 1e-10 in double precision. It keeps
nothing for a backward pass, and serves a network that has none.

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

# The addresses of the probes, 32 bits: so many places on the path for each probe of each draw.
PLACES = 2**14


@dataclass(frozen=True)
class Probes:
    """The vectors e of each row, drawn where they are asked for.

    Args:
        kind: ``exact`` for the unit vectors, ``rademacher`` or ``gaussian``.
        count: Number of probes K.
        noise: The random numbers of the rows.
        first: Number of the first probe, so that another draw of the same sample has others.
        fixed: Whether a probe is the same everywhere on the path.
        width: w of the differences (3); 0 for derivatives.
    """

    kind: str
    count: int
    noise: Noise
    first: int = 0
    fixed: bool = False
    width: float = 0.0

    @property
    def columns(self) -> int:
        """How many traces there are: K, or 1 if they are exact."""
        return 1 if self.kind == "exact" else self.count

    @property
    def more(self) -> int:
        """How many evaluations the traces cost beside the one of the slope: none, or K pairs (3) in its place."""
        return 2 * self.count - 1 if self.width and self.kind != "exact" else 0

    def rows(self, index: Tensor) -> Probes:
        """The probes of the rows ``index``, shape ``(B',)``."""
        return replace(self, noise=self.noise.rows(index))

    def vectors(self, y: Tensor, rows: Tensor, place: Tensor | None = None) -> Iterator[Tensor] | None:
        """The K probes at ``y: (P, D)``, each ``(P, D)``, or ``None`` for the unit vectors.

        Args:
            y: The states; the vectors take their dtype.
            rows: Whose they are, shape ``(P,)``.
            place: Where on the path, int64 ``(P,)``; left out for vectors that are the same everywhere. After 2^14
                places the vectors begin again.
        """
        if self.kind == "exact":
            return None
        noise, draw = self.noise.rows(rows), self._draw
        where = 0 if place is None or self.fixed else place % PLACES
        return (
            draw(noise, y.shape[1], (self.first + k) * PLACES + where, y.dtype) for k in range(self.count)
        )  # one at a time: for images they are large

    def _draw(self, noise: Noise, dims: int, step: int | Tensor, dtype: torch.dtype) -> Tensor:
        if self.kind == "rademacher":
            return noise.rademacher((dims,), step, "probe", dtype)
        return noise.normal((dims,), step, "probe", dtype)

    def summary(self, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard error, ``(B,)`` each, of log densities ``(B, K)``, one for each probe."""
        mean = log_prob.mean(1)
        if self.kind == "exact":
            return mean, torch.zeros_like(mean)
        if self.count == 1:
            return mean, torch.full_like(mean, torch.nan)
        return mean, log_prob.detach().std(1) / math.sqrt(self.count)

    def check(self) -> None:
        """Refuse what is no probe.

        Raises:
            UsageError: With the valid choices.
        """
        if self.kind != "exact" and self.kind not in PROBES:
            raise UsageError(f"unknown probe {self.kind!r}; choose from: {', '.join(PROBES)}")
        if self.count < 1:
            raise UsageError(f"probes is {self.count}; Hutchinson's estimate needs at least 1")
        if not 0 <= self.first <= 2**32 // PLACES - self.count:
            raise UsageError(
                f"draw times probes is {self.first}, with {self.count} probes; together they are at least 0 and at "
                f"most {2**32 // PLACES}"
            )


def slope_and_traces(
    slope: Callable[[Tensor], Tensor], y: Tensor, vectors: Iterable[Tensor] | None, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """The slope at ``y: (P, D)`` and the traces (1) or (2) of its Jacobian.

    Args:
        slope: ``(P, D) -> (P, D)``, row by row; asked once.
        y: The states.
        vectors: Each ``(P, D)``; ``None`` for the exact trace.
        graph: Keep the graph, so that the result can be differentiated again.

    Returns:
        The slope ``(P, D)`` and the traces ``(P, K)``, K = 1 if exact.
    """
    with torch.enable_grad():
        y = y if graph and y.requires_grad else y.detach().requires_grad_()
        dy = slope(y)

        def pull(output: Tensor, e: Tensor | None = None) -> Tensor:
            options = {"retain_graph": True, "create_graph": graph, "materialize_grads": True}
            return torch.autograd.grad(output, y, e, **options)[0]

        if vectors is None:
            # u_i^T J u_i, and the rows do not mix: one pass from the sum over the rows.
            traces = sum(pull(dy[:, i].sum())[:, i] for i in range(dy.shape[1]))
            assert isinstance(traces, Tensor)
            return (dy if graph else dy.detach()), traces[:, None]
        traces = torch.stack([(pull(dy, e) * e).sum(1) for e in vectors], dim=1)
    return (dy if graph else dy.detach()), traces


def slope_and_differences(
    slope: Callable[[Tensor], Tensor], y: Tensor, vectors: Iterable[Tensor], h: Tensor
) -> tuple[Tensor, Tensor]:
    """The slope at ``y: (P, D)`` and the traces of its Jacobian, both by (3).

    Args:
        slope: ``(2P, D) -> (2P, N)``, row by row, N at least D; asked once for each vector. What it returns beside the
            slope is averaged like it.
        y: The states.
        vectors: K of them, each ``(P, D)``.
        h: Half the distance of a pair, shape ``(P, 1)``.

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
    """w of (3)."""
    return float(torch.finfo(dtype).eps ** (1 / 3))
