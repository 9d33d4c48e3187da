"""Quadrature of the divergence along a trajectory that was solved beforehand.

Solving for the trajectory needs only forward passes. The divergence is smooth along the trajectory, so its integral
over u needs fewer evaluations than the trajectory itself. The nodes of this integral are independent of the steps:

    int_u0^u1 tr J du  ~  sum_i w_i tr J(y(u_i), u_i),       y(u_i) from the solver's dense output.             (1)

This method pays off if the divergence dominates the cost, that is, for an exact divergence or for many probes. With one
probe, it costs more than the coupled system at equal error, because an error in the trajectory changes log p to first
order, by the error times the score. Including the power (:mod:`scoresde.likelihood.problem`) in the error norm of the
trajectory keeps this change small. Different nodes have different probes.

The Clenshaw-Curtis rule for n has the nodes  u_k = -cos(k pi/n)  for k = 0, ..., n, scaled to the interval, and is
exact for polynomials of degree up to n. Its nodes are every second node of the rule for 2n, so all evaluations are
reused when n is doubled.

The number of nodes. The slope f and the power are also evaluated at the nodes, and their exact integrals are known from
the trajectory. The residual

    e_n = sum_i w_i f(y(u_i), u_i) - (y(u1) - y(u0)),        and the same for the power,                     (2)

shows how well the rule resolves the flow and how accurate the dense output is. Unlike the difference between two nested
rules for the trace, it contains no noise from the probes. The power is in nats per dimension, like the trace.

Each row starts with n = 16, and n is doubled until the residual is below three times the tolerance, both for the slope
(as the root mean square over the dimensions) and for the power. Doubling also stops when e_n - e_(n/2) is below this
limit, because the rule has then converged, and only the error of the trajectory remains. If the traces are exact, the
error of their integral I_n must also be below this limit. From one rule to the next, the error of I_n falls by a factor
that itself grows, so this error is estimated as

    | I_n - I_(n/2) |^(3/2) / | I_(n/2) - I_(n/4) |^(1/2)    per dimension.                                  (3)

A row fails if it has not converged with the last rule (n = 1024), or if the residual of the slope exceeds ten times the
tolerance. The cause is usually a narrow feature of a rough density. The steps of the ``coupled`` method resolve such
features. In a test on 774 rows (random networks, and mixtures with widths of at least 0.01), results were compared with
n = 1024 on the same trajectories. The criterion accepted errors of up to 1.1 times the tolerance, and used 119 nodes on
average. With the exponent 2 instead of 3/2 in equation 3 and without the power, it would have accepted errors of up to
9 times the tolerance, and used 92 nodes on average.

References:
    Clenshaw and Curtis (1960), Numer. Math. 2:197-205.
    Trefethen (2008), Is Gauss quadrature better than Clenshaw-Curtis?, SIAM Review 50(1):67-87.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ode.dense import Knots, Path
from ..ode.integrate import FAILED_QUADRATURE, OK, integrate
from .divergence import Probes
from .problem import Problem
from .result import LogLikelihood, settled

__all__ = ["by_quadrature", "clenshaw_curtis"]

FEWEST, MOST = 16, 1024  # smallest and largest n, both doubled for a convergence check
# In units of the tolerance: n is doubled until equations 2 and 3 are below FACTOR, and a row fails if the residual of
# its slope (equation 2) exceeds WORST.
FACTOR, WORST = 3, 10
PLACED = 256  # up to this n, a node has the same probes in every rule that contains it
HELD = 2**27  # largest number of slope values at nodes that are kept at once


def clenshaw_curtis(n: int, u0: float, u1: float) -> tuple[Tensor, Tensor]:
    """Return the nodes and the weights of the Clenshaw-Curtis rule for ``n`` on the interval from ``u0`` to ``u1``.

    Both are float64 tensors of shape ``(n + 1,)``. The number ``n`` must be even.
    """
    k, j = torch.arange(n + 1, dtype=torch.float64), torch.arange(1, n // 2 + 1, dtype=torch.float64)
    # w_k = c_k/n (1 - sum_j b_j cos(2 j k pi/n) / (4 j^2 - 1)),  c_0 = c_n = b_(n/2) = 1 and 2 elsewhere
    b = torch.where(2 * j == n, 1.0, 2.0)
    c = torch.where((k == 0) | (k == n), 1.0, 2.0)
    weights = c / n * (1 - torch.cos(2 * math.pi / n * j * k[:, None]) @ (b / (4 * j.square() - 1)))
    u = (u0 + u1) / 2 - (u1 - u0) / 2 * torch.cos(math.pi / n * k)
    u[0], u[-1] = u0, u1
    return u, weights * (u1 - u0) / 2


def by_quadrature(
    problem: Problem,
    probes: Probes,
    rtol: float,
    atol: float,
    scheme: str,
    max_nfe: int,
    rows_at_once: int,
    finer: bool = False,
) -> LogLikelihood:
    """Solve for the trajectory, then integrate the traces along it (equation 1).

    Args:
        problem: The data, the model and the interval.
        probes: The probes of the rows.
        rtol, atol: Tolerances for the trajectory and, multiplied by a constant factor, for equations 2 and 3.
        scheme: A Runge-Kutta method of :mod:`scoresde.ode.integrate`.
        max_nfe: Largest number of evaluations per row while solving for the trajectory.
        rows_at_once: Largest number of states evaluated at once.
        finer: Whether to double both the smallest and the largest number of nodes, as the convergence check does.
    """
    (u0, u1), y0 = problem.interval, problem.start
    everyone = torch.arange(len(y0), device=y0.device)
    state = torch.cat([y0, torch.zeros_like(y0[:, :1])], dim=1)

    def f(state: Tensor, u: Tensor, rows: Tensor) -> Tensor:
        return torch.cat(problem.field(state[:, :-1], u, rows), dim=1)

    with torch.no_grad():
        start = torch.full((len(y0),), u0, dtype=problem.scales.dtype, device=y0.device)
        knots = Knots(u0, state, f(state, start, everyone))
        solved = integrate(
            f,
            state,
            u0,
            u1,
            rtol=rtol,
            atol=atol,
            method=scheme,
            max_nfe=max_nfe,
            parts=lambda s: [s[:, :-1], s[:, -1:]],
            on_step=knots,
            counts=None if isinstance(problem.counts, int) else problem.counts,
        )
    log_det = y0.new_full((len(y0), probes.columns), torch.nan)
    residual, count, status = y0.new_full((len(y0),), torch.nan), torch.zeros_like(solved.nfe), solved.status.clone()
    moved = solved.y - state
    allowed = FACTOR * (atol + rtol * torch.maximum(state.abs(), solved.y.abs()))
    open_rows = everyone[status == OK]
    todo = [(open_rows, FEWEST << finer, _Nodes(problem, knots.path(), probes, rows_at_once))] if len(open_rows) else []
    while todo:
        rows, n, nodes = todo.pop()
        if len(rows) > 1 and n * len(rows) * moved.shape[1] > HELD:
            halves = torch.arange(len(rows), device=rows.device) < len(rows) // 2
            todo += [(rows[which], n, nodes.some(which)) for which in (halves, ~halves)]
            continue
        log_det[rows], integral, change, doubt = nodes.integrals(rows, n)
        off = integral - moved[rows]
        residual[rows], count[rows] = off[:, :-1].square().mean(1).sqrt(), n + 1
        rough = torch.minimum(_size(off / allowed[rows]), _size(change / allowed[rows])) > 1
        if probes.kind == "exact":
            counts = problem.counts if isinstance(problem.counts, int) else problem.counts[rows]
            size = log_det[rows, 0].abs() / counts
            rough |= doubt[:, 0] / counts > FACTOR * (atol + rtol * size)
        strayed = (off / allowed[rows])[:, :-1].square().mean(1).sqrt() > WORST / FACTOR
        last = n == MOST << finer
        status[rows[(rough if last else ~rough) & (rough | strayed)]] = FAILED_QUADRATURE
        if not last and bool(rough.any()):
            todo.append((rows[rough], 2 * n, nodes.some(rough)))
    z, log_prob = problem.finish(solved.y[:, :-1], log_det)
    mean, stderr = probes.summary(torch.where((status == FAILED_QUADRATURE)[:, None], torch.nan, log_prob))
    unchecked = torch.full_like(residual, torch.nan)
    nfe = solved.nfe + 1 + (1 + probes.more) * count + problem.counted.tally.more
    return LogLikelihood(mean, stderr, z, nfe, count, residual, unchecked, settled(status, mean))


def _size(error: Tensor) -> Tensor:
    """Return, for each row, the larger of the rms error of the slopes and the absolute error of the power."""
    # The last column is the error of the power.
    return torch.maximum(error[:, :-1].square().mean(1).sqrt(), error[:, -1].abs())


class _Nodes:
    """The slopes and traces of unconverged rows at the nodes of a rule, kept for reuse by a finer rule."""

    def __init__(self, problem: Problem, path: Path, probes: Probes, rows_at_once: int) -> None:
        self.problem, self.path, self.probes, self.rows_at_once = problem, path, probes, rows_at_once
        self.slopes: Tensor | None = None  # (nodes, rows, D + 1), where the last column is the power
        self.traces: Tensor | None = None  # (nodes, rows, K)

    def some(self, which: Tensor) -> _Nodes:
        """Return a copy that contains only the rows selected by the mask ``which``."""
        found = _Nodes(self.problem, self.path, self.probes, self.rows_at_once)
        if self.slopes is not None and self.traces is not None:
            found.slopes, found.traces = self.slopes[:, which], self.traces[:, which]
        return found

    def integrals(self, rows: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Integrate the traces, the slopes and the power of ``rows`` with the rule for ``n``.

        Returns:
            The integrals of the traces, ``(b, K)``; the integrals of the slopes and the power, ``(b, D + 1)``; the
            differences between these integrals and those from the rule for ``n/2``; and the estimated errors of the
            integrals of the traces (equation 3, not divided by D).
        """
        interval = self.problem.interval
        u = clenshaw_curtis(n, *interval)[0].to(rows.device)
        new = torch.arange(n + 1, device=rows.device)
        new = new if self.slopes is None else new[1::2]
        # The new nodes of a finer rule have odd indices. Their probes get positions that no coarser rule has used.
        place = new * (PLACED // n) if n <= PLACED else n + new
        slopes, traces = self._evaluate(rows, u[new], place)
        if self.slopes is not None and self.traces is not None:
            slopes, traces = _interleave(self.slopes, slopes), _interleave(self.traces, traces)
        self.slopes, self.traces = slopes, traces

        def rule(values: Tensor, stride: int = 1) -> Tensor:
            weights = clenshaw_curtis(n // stride, *interval)[1].to(values)
            return torch.einsum("n,nbd->bd", weights, values[::stride])

        fine, middle, coarse = rule(traces), rule(traces, 2), rule(traces, 4)
        last, before = (fine - middle).abs(), (middle - coarse).abs()
        doubt = last * (last / before).nan_to_num(nan=1.0).clamp(max=1).sqrt()
        return fine, rule(slopes), rule(slopes) - rule(slopes, 2), doubt

    def _evaluate(self, rows: Tensor, u: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes with the power, ``(m, b, D + 1)``, and the traces, ``(m, b, K)``, at the m points ``u``."""
        pairs = torch.cartesian_prod(torch.arange(len(u), device=u.device), torch.arange(len(rows), device=u.device))
        found = []
        for pair in torch.split(pairs, self.rows_at_once):
            node, row = pair[:, 0], rows[pair[:, 1]]
            y = self.path(row, u[node])[:, :-1]
            slope, traces, power = self.problem.with_traces(y, u[node], row, self.probes, place[node])
            found.append((torch.cat([slope, power], dim=1), traces))
        slopes, traces = (torch.cat(v).reshape(len(u), len(rows), -1) for v in zip(*found, strict=True))
        return slopes, traces


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Merge the values at the even and at the odd nodes, in order of the nodes."""
    out = even.new_empty(len(even) + len(odd), *even.shape[1:])
    out[::2], out[1::2] = even, odd
    return out
