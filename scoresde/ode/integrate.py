"""Adaptive embedded Runge-Kutta methods with a separate step size for each row.

A batch consists of many independent initial value problems ``dy/dt = f(t, y)``. Libraries usually advance all rows with
a common step size, chosen from the root mean square error over the batch, so easy samples mask a hard one, and the
result for a sample depends on the rest of the batch. Here, every row has its own time and step size, and leaves the
batch when it is finished. The result for a row is therefore the same in any batch, and no row waits for the others.

A step of size h has the stages  k_i = f(t + c_i h, y + h sum_j a_ij k_j)  and the solution  y + h sum_i b_i k_i.  Its
error estimate is  e = h sum_i (b_i - b*_i) k_i.  Methods of order 5 have a second, cruder estimate of order 3,
e' = h sum_i g_i k_i.  With  size = atol/rtol + max(|y|, |y_new|),  the step is accepted if

    err = max( rms(e / size) / rtol, rms(e' / size)^(3/2) / rtol ) <= 1     (maximum over the parts of the state)

and the next step size is given by the PI rule  h <- 0.9 h err^(-0.7/q) err_previous^(0.4/q),  where q is the order of
the method. This step size is truncated to seven binary digits. Without the truncation, a change in the last digit of
the input could change the step size wherever the error estimate is close to rounding error, and hence change the result
by as much as the tolerance.

The second estimate is needed because e can be near 0 even if the error is large. With e alone, the error of up to one
accepted step in several hundred exceeded ten times the tolerance (``experiments/estimates.py``), because the sample
turned towards one of several modes within the step. Since e' decreases like h^4, and hence rms(e' / size)^(3/2) like
h^6, only e matters when steps are small. The second estimate applies only to the first part of the state, because the
other parts are integrals along the trajectory, for which e alone is reliable. DOP853 combines two estimates for the
same purpose (Hairer et al., II.10).

The step control needs only a few numbers per row. These numbers stay on the host, in NumPy (:class:`_Rows`), because a
NumPy call takes a third as long as a torch call. The state and the slopes stay on their device (:class:`_Attempt`).
A round is one attempted step for each active row. In each round, one table of step sizes and times is copied to the
device, and one number per row and error estimate is copied back.

References:
    Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I: II.4 (first step), II.10 (two
    estimates); IV.2 of vol. II (PI control).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.errors import Advice, UsageError
from ..core.limits import ATOL, RTOL, check_number
from ..core.shapes import expand, flat, time_dtype, to_device
from ..core.signals import check
from .tableaus import TABLEAUS, Tableau

__all__ = [
    "FAILED_LIMIT",
    "FAILED_NONFINITE",
    "FAILED_PATH",
    "FAILED_QUADRATURE",
    "FAILED_UNDERFLOW",
    "OK",
    "STATUS",
    "TABLEAUS",
    "OdeSolution",
    "blamed",
    "check_tolerances",
    "coarse",
    "failures",
    "integrate",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Field = Callable[[Tensor, Tensor, Tensor], Tensor]  # f(y: (b, *state), t: (b,), index: (b,)) -> (b, *state)
Parts = Callable[[Tensor], list[Tensor]]
OnStep = Callable[[Tensor, Tensor, Tensor, Tensor, float], None]

OK, FAILED_NONFINITE, FAILED_UNDERFLOW, FAILED_LIMIT, FAILED_PATH, FAILED_QUADRATURE = range(6)
STATUS = {
    OK: "ok",
    FAILED_NONFINITE: "the model returned NaN or infinity",
    FAILED_UNDERFLOW: "the step size became too small (the problem is too stiff for this tolerance); use a larger rtol",
    FAILED_LIMIT: "the limit on evaluations was reached; raise max_nfe, or use a larger rtol",
    FAILED_PATH: "the path, not the model, is NaN or infinite; check alpha, sigma and t_of_log_snr of the SDE",
    FAILED_QUADRATURE: "the quadrature does not resolve the divergence to the tolerance; use the 'coupled' method",
}


def failures(status: Tensor, noun: str = "samples") -> list[str]:
    """Return one line for each kind of failure in ``status: (B,)``.

    Each line states how many rows failed, which rows, and why.
    """
    lines = []
    for code, reason in STATUS.items():
        rows = (status == code).nonzero().flatten().tolist()
        if code != OK and rows:
            which = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            lines.append(f"{len(rows)} of {len(status)} {noun} failed ({which}): {reason}")
    return lines


def blamed(status: Tensor, sound: Callable[[], bool]) -> Tensor:
    """Return ``status: (B,)``, with ``FAILED_NONFINITE`` replaced by ``FAILED_PATH`` if the SDE's path is not finite.

    If the path is not finite, the NaN and infinite values in the failed rows come from the path rather than from the
    model. ``sound`` returns whether the path is finite, and is called only if a row has status ``FAILED_NONFINITE``.
    """
    lost = status == FAILED_NONFINITE
    return torch.where(lost, FAILED_PATH, status) if bool(lost.any()) and not sound() else status


@dataclass(frozen=True)
class OdeSolution:
    """The result of :func:`integrate`.

    Attributes:
        y: The state of each row at ``t1``, or its last state if the row failed, shape ``(B, *state)``.
        nfe: The number of evaluations of f for each row, shape ``(B,)``.
        accepted, rejected: The numbers of accepted and rejected steps of each row, each of shape ``(B,)``.
        status: The status of each row (a key of :data:`STATUS`), shape ``(B,)``.
    """

    y: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor


def _whole(y: Tensor) -> list[Tensor]:
    return [y]


@torch.no_grad()
def integrate(
    f: Field,
    y: Tensor,
    t0: float,
    t1: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    max_nfe: int = 10_000,
    parts: Parts = _whole,
    on_step: OnStep | None = None,
    passing: Field | None = None,
    counts: Tensor | None = None,
) -> OdeSolution:
    """Solve ``dy/dt = f`` from ``t0`` to ``t1``, in either direction.

    Args:
        f: A function ``f(y: (b, *state), t: (b,), index: (b,)) -> (b, *state)`` that returns the slopes of the rows
            ``index`` of the batch. The function is never evaluated outside the interval.
        y: The initial state, shape ``(B, *state)``.
        t0, t1: The start and the end of the interval. The last step of each row ends exactly at ``t1``.
        rtol, atol: The relative and the absolute tolerance for the local error of each row.
        method: A key of :data:`TABLEAUS`.
        max_nfe: The maximum number of evaluations for each row.
        parts: A function that splits the state into parts (linear views), each of which must meet the tolerance. The
            first part must determine the slopes of all parts. The second error estimate is used only for the first
            part.
        on_step: A function called after every round in which at least one step was accepted. (A round attempts one step
            for each active row.) The arguments are the indices ``(b,)`` of the rows whose step was accepted, the times
            ``(b,)``, states ``(b, *state)`` and slopes ``(b, *state)`` of these rows, and the fraction of the interval
            that the slowest row has covered.
        passing: A function that replaces f at stages that have no weight in the solution or the error estimates
            (:attr:`Tableau.passing`). For a part of the state on which f does not depend, such as an integral along the
            trajectory, it may return any finite slope.
        counts: The number of elements of the first part that are real, int64 ``(B,)``, if the state is padded with
            zeros. The root mean square of its error is taken over these elements.

    Raises:
        UsageError: If a tolerance or the method is invalid.
    """
    _check(y, rtol, atol, method)
    ended = _Ended(y)
    if t0 == t1 or not len(y):
        return ended.solution()
    clock, index = time_dtype(y.device), torch.arange(len(y), device=y.device)
    attempt = _Attempt(f, passing or f, y, method, rtol, atol, parts, counts)
    k = f(y, torch.full((len(y),), t0, dtype=clock, device=y.device), index)
    h, sound = attempt.first_step(y, k, t0, t1, index)
    rows = _Rows(t0, t1, TABLEAUS[method], h)
    leave: Bools = ~sound
    status: Ints | int = FAILED_NONFINITE

    # Each round attempts one step for every active row, until all rows have left.
    while True:
        check()  # another process of the same work may have received a signal
        if leave.any():
            ended.add(rows, np.flatnonzero(leave), status, y)
            stay = np.flatnonzero(~leave)
            if not len(stay):
                return ended.solution()
            rows.keep(stay)
            index, y, k = (v.index_select(0, to_device(stay, y)) for v in (index, y, k))
        y_new, k_new, errors = attempt(y, k, to_device(rows.plan(), y, clock), index)
        accept = rows.judge(errors)
        if accept.all():
            y, k = y_new, k_new
        else:
            moved = expand(to_device(accept, y), y)
            y, k = torch.where(moved, y_new, y), torch.where(moved, k_new, k)
        if on_step is not None and accept.any():
            at = to_device(np.flatnonzero(accept), y)
            on_step(index[at], to_device(rows.times(accept), y, clock), y[at], k[at], rows.done)
        leave, status = rows.verdict(accept, errors[0], max_nfe)


def check_tolerances(rtol: float, atol: float | None) -> None:
    """Check that the tolerances are valid. An ``atol`` of ``None`` means the value of ``rtol``.

    Raises:
        UsageError: If a tolerance is invalid.
    """
    check_number("rtol", rtol, RTOL)
    check_number("atol", atol, ATOL, "float | None")


def _check(y: Tensor, rtol: float, atol: float, method: str) -> None:
    check_tolerances(rtol, atol)
    if method not in TABLEAUS:
        raise UsageError(f"unknown Runge-Kutta method {method!r}; choose from: {', '.join(TABLEAUS)}")
    if y.dtype == torch.float32 and rtol < 1e-6:
        warnings.warn(
            Advice(
                f"rtol is {rtol:g}, which is below what float32 can resolve (about 1e-6), so it costs evaluations "
                "without improving accuracy; use float64",
                parameter="dtype",
                value="float64",
            ),
            stacklevel=4,
        )


@lru_cache
def _columns(method: str, ndim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return the weights of each stage's slope in those sums of :class:`_Attempt` that use it."""
    tableau = TABLEAUS[method]
    count = len(tableau.c)
    sums = [*tableau.a[1:], tableau.e, *([tableau.g] if tableau.g else [])]
    rows = [[*row, *[0.0] * (count - len(row))] for row in sums]
    weights = torch.tensor(rows, dtype=dtype, device=device).reshape(len(sums), count, *[1] * ndim)
    return tuple(weights[j:, j] for j in range(count))


class _Attempt:
    """The part of a round that runs on the device: one attempted step for each active row.

    The tensor ``sums`` contains  s_i = sum_j a_ij k_j  for all stages but the first, then the sums for the errors.
    """

    def __init__(
        self, f: Field, passing: Field, y: Tensor, method: str, rtol: float, atol: float, parts: Parts,
        counts: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.counts = counts
        self.f, self.rtol, self.atol, self.parts = f, rtol, atol, parts
        self.fields = [passing if passes else f for passes in TABLEAUS[method].passing]
        self.order, self.stages, self.second = TABLEAUS[method].order, len(self.fields), bool(TABLEAUS[method].g)
        self.columns = _columns(method, y.ndim, y.dtype, y.device)
        self.sums = y.new_empty(len(self.columns[0]), *y.shape)

    def __call__(self, y: Tensor, k: Tensor, plan: Tensor, index: Tensor) -> tuple[Tensor, Tensor, list[Floats]]:
        """Return the states and slopes after the step, and the norms of the error estimates divided by h.

        The argument ``plan`` is the result of :meth:`_Rows.plan`.
        """
        size, *times = plan.unbind()
        h, sums, y_new = expand(size, y), self.sums[:, : len(y)], y
        # Each slope is added at once to all sums that use it, so no slopes are kept. The operations are element-wise,
        # because a matrix product would round differently for different batch sizes.
        torch.mul(self.columns[0], k, out=sums)
        for j, t in enumerate(times, start=1):
            y_new = torch.addcmul(y, h, sums[j - 1])
            k = self.fields[j](y_new, t, index)
            sums[j:].addcmul_(self.columns[j], k)
        allowed = self.allowed(y, y_new)
        errors = [self.norm(sums[self.stages - 1], allowed, index)]
        if self.second:  # the factor is there because _Rows.judge raises this norm to the power 3/2
            errors.append(self.rtol ** (1 / 3) * self.norm(sums[self.stages], allowed[:1], index))
        return y_new, k, errors

    def allowed(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Return ``atol/rtol + max(|y|, |y_new|)`` for each part of the state."""
        pairs = zip(self.parts(before), self.parts(after), strict=True)
        return [torch.maximum(b.abs(), a.abs()).add_(self.atol / self.rtol) for b, a in pairs]

    def norm(self, error: Tensor, allowed: list[Tensor], index: Tensor) -> Floats:
        """Return the maximum of ``rms(error / allowed) / rtol`` over the parts in ``allowed``, for the rows "
        "``index``."""
        norms = [
            torch.linalg.vector_norm(flat(e / s), dim=1).cpu().double().numpy() / (self.rtol * math.sqrt(s[0].numel()))
            for s, e in zip(allowed, self.parts(error), strict=False)
        ]
        if self.counts is not None:  # the root mean square over the real elements
            real = self.counts[index].cpu().double().numpy()
            norms[0] = norms[0] * np.sqrt(allowed[0][0].numel() / real)
        return reduce(np.maximum, norms)

    def first_step(self, y: Tensor, k: Tensor, t0: float, t1: float, index: Tensor) -> tuple[Floats, Bools]:
        """Return each row's first step size (Hairer et al. 1993, II.4), and whether the row's slope is finite."""
        sign, length, allowed = (1.0 if t1 > t0 else -1.0), abs(t1 - t0), self.allowed(y, y)
        size, slope = self.norm(y, allowed, index), self.norm(k, allowed, index)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            h = np.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope)
            h = np.fmin(np.where(np.isnan(h), 1e-6, h), 0.1 * length)
            step, t = to_device(np.stack([sign * h, t0 + sign * h]), y, time_dtype(y.device)).unbind()
            bend = self.norm(self.f(y + expand(step, y) * k, t, index) - k, allowed, index) / h
            steepest = np.maximum(np.maximum(slope, bend), 1e-12)
            found = np.minimum(100 * h, (0.01 / steepest) ** (1 / self.order))
        return coarse(np.fmin(np.fmax(found, 1e-9 * length), length)), np.isfinite(slope)


class _Rows:
    """The step control of the active rows. All arrays are on the host, with one entry per row.

    Attributes:
        index: The positions of the rows in the batch.
        t, then: The times before and after the attempted step, negated if ``t1 < t0``.
        h: The size of the next step, always positive.
        memory: The log of the last accepted error, multiplied by 0.4/q.
        most: The largest factor by which the step size may grow.
        accepted: The number of accepted steps.
        attempts: The number of attempted steps, one number for all active rows.
        last: Whether the attempted step is the row's last.
    """

    def __init__(self, t0: float, t1: float, tableau: Tableau, h: Floats) -> None:
        self.sign = 1.0 if t1 > t0 else -1.0
        self.start, self.end, self.order = self.sign * t0, self.sign * t1, tableau.order
        self.nodes = np.array([c for c in tableau.c if 0 < c < 1])[:, None]
        self.cost, self.attempts = len(tableau.c) - 1, 0
        self.index, self.accepted = np.arange(len(h)), np.zeros(len(h), dtype=np.int64)
        self.t, self.h = np.full(len(h), self.start), h
        self.memory, self.most = np.zeros(len(h)), np.full(len(h), 10.0)
        self.last, self.then = np.zeros(len(h), dtype=bool), self.t

    @property
    def nfe(self) -> int:
        """The number of evaluations so far, the same for every active row."""
        return 2 + self.cost * self.attempts

    @property
    def done(self) -> float:
        """The fraction of the interval that the slowest row has covered."""
        return float((self.t.min() - self.start) / (self.end - self.start))

    def times(self, which: Bools) -> Floats:
        """Return the times of the rows selected by ``which``."""
        return self.sign * self.t[which]

    def keep(self, stay: Ints) -> None:
        """Keep only the rows at positions ``stay``."""
        for name in ("index", "t", "h", "memory", "most", "accepted"):
            setattr(self, name, getattr(self, name)[stay])

    def plan(self) -> Floats:
        """Return an array ``(stages, b)``: the signed step sizes, then the times of all stages but the first."""
        rest = self.end - self.t
        self.last = rest <= self.h * (1 + 1e-9)
        np.copyto(self.h, rest, where=self.last)
        # The last step ends exactly at t1. No stage lies beyond t1, because rounding is monotone.
        self.then = np.where(self.last, self.end, self.t + self.h)
        plan, inner = np.empty((1 + self.cost, len(rest))), 1 + len(self.nodes)
        plan[0], plan[1:inner], plan[inner:] = self.h, self.t + self.nodes * self.h, self.then
        return self.sign * plan

    def judge(self, errors: list[Floats]) -> Bools:
        """Return which of the attempted steps are accepted, and choose the sizes of the next steps.

        The argument ``errors`` contains the norms from :class:`_Attempt`.
        """
        error = np.maximum(self.h * errors[0], 1e-10)
        if len(errors) > 1:
            error = np.maximum(error, (self.h * errors[1]) ** 1.5)
        accept: Bools = error <= 1  # False for NaN
        # The PI rule. After a rejection, the size of the retry depends on the last error alone, and the step after the
        # retry may not be larger than the retry.
        log = np.log(error) / self.order
        power = np.where(accept, self.memory - 0.7 * log, -log)
        self.h = coarse(self.h * np.minimum(np.fmax(0.9 * np.exp(power), 0.2), self.most))
        np.copyto(self.t, self.then, where=accept)
        np.copyto(self.memory, 0.4 * log, where=accept)
        self.most = np.where(accept, 10.0, 1.0)
        self.accepted += accept
        self.attempts += 1
        return accept

    def verdict(self, accept: Bools, error: Floats, max_nfe: int) -> tuple[Bools, Ints | int]:
        """Return which rows leave the batch, and their status codes (or one ``OK`` for all of these rows)."""
        arrived, small = accept & self.last, self.h < 1e-13 * (self.end - self.start)
        spent = self.nfe + self.cost > max_nfe
        if not spent and not small.any():
            return arrived, OK
        stuck = small & ~accept
        leave = arrived | stuck | spent
        why = np.where(np.isfinite(error), FAILED_UNDERFLOW, FAILED_NONFINITE)
        return leave, np.where(arrived, OK, np.where(stuck, why, FAILED_LIMIT))[leave]


class _Ended:
    """The final states and counts of the rows that have left the batch."""

    def __init__(self, y: Tensor) -> None:
        self.start = y
        self.states: list[Tensor] = []
        self.counts: list[Ints] = []

    def add(self, rows: _Rows, which: Ints, status: Ints | int, y: Tensor) -> None:
        """Record that the rows at positions ``which`` leave the batch with the given status."""
        counts = np.empty((5, len(which)), dtype=np.int64)
        counts[0], counts[1], counts[2] = rows.index[which], rows.nfe, rows.accepted[which]
        counts[3], counts[4] = rows.attempts - counts[2], status
        self.counts.append(counts)
        self.states.append(y.index_select(0, to_device(which, y)))

    def solution(self) -> OdeSolution:
        """Return the solution, with the rows in their original order."""
        y, counts = self.start.clone(), np.zeros((4, len(self.start)), dtype=np.int64)
        if self.states:  # empty if the interval or the batch is empty
            found = np.concatenate(self.counts, axis=1)
            counts[:, found[0]] = found[1:]
            y[to_device(found[0], y)] = torch.cat(self.states)
        return OdeSolution(y, *to_device(counts, y).unbind())


def coarse(h: Floats) -> Floats:
    """Return the float64 step sizes ``h: (b,)``, truncated to seven of their 53 binary digits."""
    cut: Floats = (h.view(np.int64) & -(1 << 46)).view(np.float64)
    return cut
