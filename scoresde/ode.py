"""Adaptive embedded Runge-Kutta with one step size per row.

A batch is many independent initial value problems ``dy/dt = f(t, y)``. Libraries advance all of them with one step
chosen by the root mean square error of the batch, so that an easy majority hides a hard sample, and a sample's result
depends on its neighbours. Here every row has its own time and step and leaves the batch when it is done: the
result alone equals the result in any batch, and nobody waits.

A step of size h has the stages  k_i = f(t + c_i h, y + h sum_j a_ij k_j),  the solution  y + h sum_i b_i k_i  and the
error estimate  e = h sum_i (b_i - b*_i) k_i.  It is accepted where

    err = rms( e / (atol + rtol max(|y|, |y_new|)) ) <= 1        (the largest over the parts of the state)

and the next step follows by the PI rule  h <- 0.9 h err^(-0.7/q) err_previous^(0.4/q),  q the order, cut to seven
binary digits: an error estimate near rounding would otherwise turn the last digit of the input into another step, and
that into another error of the size of the tolerance.

References:
    Dormand and Prince (1980), J. Comput. Appl. Math. 6:19-26.
    Bogacki and Shampine (1989), Appl. Math. Lett. 2:321-325.
    Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I: II.4 (first step), IV.2 of vol. II
    (PI control).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .errors import UsageError
from .shapes import expand, rms_flat, sum_flat, time_dtype

__all__ = [
    "FAILED_LIMIT",
    "FAILED_NONFINITE",
    "FAILED_UNDERFLOW",
    "OK",
    "STATUS",
    "TABLEAUS",
    "OdeSolution",
    "coarse",
    "failures",
    "integrate",
]

OK, FAILED_NONFINITE, FAILED_UNDERFLOW, FAILED_LIMIT = range(4)
STATUS = {
    OK: "ok",
    FAILED_NONFINITE: "the model returned NaN or infinity",
    FAILED_UNDERFLOW: "the step became too small (the problem is too stiff for this tolerance)",
    FAILED_LIMIT: "the limit on evaluations was reached",
}


def failures(status: Tensor, noun: str = "samples") -> list[str]:
    """One line for each kind of failure in ``status``, shape ``(B,)``: how many rows, which, and why."""
    lines = []
    for code, reason in STATUS.items():
        rows = (status == code).nonzero().flatten().tolist()
        if code != OK and rows:
            which = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            lines.append(f"{len(rows)} of {len(status)} {noun} failed ({which}): {reason}")
    return lines


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau whose last stage is the first of the next step (FSAL).

    Attributes:
        c: Nodes.
        a: Rows of stage weights; the last row is the solution's.
        e: Error weights ``b - b*``.
        order: Order of the solution.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    e: tuple[float, ...]
    order: int


TABLEAUS = {
    # Tsitouras (2011), Computers & Mathematics with Applications 62(2), tab. 1.
    "tsit5": Tableau(
        c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
            (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
        ),
        e=(
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        order=5,
    ),
    "bosh3": Tableau(
        c=(0, 1 / 2, 3 / 4, 1),
        a=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        e=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        order=3,
    ),
    "dopri5": Tableau(
        c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        e=(
            35 / 384 - 5179 / 57600,
            0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
        order=5,
    ),
}


@dataclass(frozen=True)
class OdeSolution:
    """What :func:`integrate` returns; every count has shape ``(B,)``.

    Attributes:
        y: The state at ``t1`` (or where a row failed), shape ``(B, *state)``.
        nfe: Evaluations of f per row.
        accepted, rejected: Steps per row.
        status: A key of :data:`STATUS` per row.
    """

    y: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor


def _whole(y: Tensor) -> list[Tensor]:
    return [y]


def integrate(
    f: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    t0: float,
    t1: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    max_nfe: int = 10_000,
    parts: Callable[[Tensor], list[Tensor]] = _whole,
    on_step: Callable[[Tensor, Tensor, Tensor, Tensor, float], None] | None = None,
) -> OdeSolution:
    """Solve ``dy/dt = f`` from ``t0`` to ``t1``, either way; f is never called outside the interval.

    Args:
        f: ``f(y: (b, *state), t: (b,), index: (b,)) -> (b, *state)`` for the rows ``index`` of the batch.
        y: Initial state, shape ``(B, *state)``.
        t0, t1: The interval; both ends are met exactly.
        rtol, atol: Tolerances on the local error of each row.
        method: A key of :data:`TABLEAUS`.
        max_nfe: Largest number of evaluations of a row.
        parts: Linear views of the state that are each held to the tolerance; the worst one counts.
        on_step: Called after each round of steps with the rows that moved, ``index: (b,)``, ``t: (b,)``, their state
            and its slope, ``(b, *state)``, and how much of the way lies behind the slowest row, from 0 to 1.

    Raises:
        UsageError: If a tolerance or the method cannot be used.
    """
    if not rtol > 0 or not atol >= 0:
        raise UsageError(f"rtol is {rtol} and atol {atol}; take rtol > 0 and atol >= 0, for example 1e-5")
    if method not in TABLEAUS:
        raise UsageError(f"unknown Runge-Kutta method {method!r}; choose from: {', '.join(TABLEAUS)}")
    if y.dtype == torch.float32 and rtol < 1e-6:
        warnings.warn(
            f"rtol {rtol:g} is below what float32 can resolve (about 1e-6): it costs evaluations and gains nothing; "
            "use float64 (--dtype float64)",
            stacklevel=2,
        )
    tableau, clock, count, sign = TABLEAUS[method], time_dtype(y.device), len(y), 1.0 if t1 > t0 else -1.0
    low, high, order = min(t0, t1), max(t0, t1), TABLEAUS[method].order
    result = OdeSolution(y.clone(), *torch.zeros(4, count, dtype=torch.int64, device=y.device).unbind())
    if t0 == t1 or not count:
        return result

    def norm(error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        # rms( e / (atol + rtol max(|y|, |y_new|)) ), the largest over the parts
        ratios = [
            rms_flat(e / torch.maximum(b.abs(), a.abs()).mul_(rtol).add_(atol))
            for e, b, a in zip(parts(error), parts(before), parts(after), strict=True)
        ]
        return (ratios[0] if len(ratios) == 1 else torch.stack(ratios).amax(0)).to(clock)

    nodes = torch.tensor(tableau.c, dtype=clock, device=y.device)[:, None]
    index = torch.arange(count, device=y.device)
    t = torch.full((count,), t0, dtype=clock, device=y.device)
    k = f(y, t, index)
    h = coarse(_first_step(f, y, t, k, index, t1 - t0, order, norm))
    rows = _Rows(index, y, t, h, k, torch.ones_like(t), *(torch.full_like(index, n) for n in (2, 0, 0)))
    status = torch.where(torch.isfinite(sum_flat(k * 0)), OK, FAILED_NONFINITE)
    rows = rows.leave(status != OK, status, result)

    while len(rows.index):
        # The last step ends at t1 exactly, and no stage of any step lies outside the interval.
        last = (t1 - rows.t) * sign <= rows.h * sign * (1 + 1e-9)
        h = torch.where(last, t1 - rows.t, rows.h)
        times = (rows.t + nodes * h).clamp_(low, high)
        times = torch.where(last & (nodes == 1), t1, times)
        scaled, y_new, stages = expand(h, rows.y), rows.y, [rows.k]
        for at, weights in zip(times[1:], tableau.a[1:], strict=True):
            y_new = torch.addcmul(rows.y, scaled, _combine(weights, stages))
            stages.append(f(y_new, at, rows.index))
        error = norm(_combine(tableau.e, stages).mul_(scaled), rows.y, y_new)
        accept = error <= 1  # which a NaN is not
        rows.advance(accept, error, h, times[-1], y_new, stages[-1], len(stages) - 1, order)
        if on_step is not None and bool(accept.any()):
            done = float(((rows.t - t0).abs() / (high - low)).min())
            on_step(rows.index[accept], rows.t[accept], rows.y[accept], rows.k[accept], done)

        arrived, tiny = accept & last, ~accept & (rows.h.abs() < 1e-13 * (high - low))
        status = torch.where(rows.nfe + len(stages) - 1 > max_nfe, FAILED_LIMIT, OK)
        status = torch.where(tiny, torch.where(torch.isfinite(error), FAILED_UNDERFLOW, FAILED_NONFINITE), status)
        status = torch.where(arrived, OK, status)
        rows = rows.leave(arrived | (status != OK), status, result)
    return result


@dataclass
class _Rows:
    """The rows that are still on their way.

    Attributes:
        index: Their numbers in the batch, ``(b,)``.
        y, t, h, k: State, time, next step and the slope at ``(t, y)``.
        previous: The last accepted error, for the PI rule; its sign is negative just after a rejection.
        nfe, accepted, rejected: Counts.
    """

    index: Tensor
    y: Tensor
    t: Tensor
    h: Tensor
    k: Tensor
    previous: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor

    def advance(
        self, accept: Tensor, error: Tensor, h: Tensor, t: Tensor, y: Tensor, k: Tensor, nfe: int, q: int
    ) -> None:
        """Go to ``(t, y)`` with slope ``k`` where the step ``h`` is accepted, and choose the next step."""
        safe = torch.nan_to_num(error, nan=torch.inf).clamp_(min=1e-10)
        pi = 0.9 * safe ** (-0.7 / q) * self.previous.abs() ** (0.4 / q)
        plain = 0.9 * safe ** (-1 / q)  # after a rejection, and then without growth
        factor = torch.where(accept & (self.previous > 0), pi.clamp_(0.2, 10.0), plain.clamp_(0.2, 1.0))
        self.h = coarse(h * factor)
        self.previous = torch.where(accept, safe, -self.previous.abs())
        self.nfe, self.accepted, self.rejected = self.nfe + nfe, self.accepted + accept, self.rejected + ~accept
        if bool(accept.all()):
            self.t, self.y, self.k = t, y, k
        else:
            moved = expand(accept, y).bool()
            self.t = torch.where(accept, t, self.t)
            self.y, self.k = torch.where(moved, y, self.y), torch.where(moved, k, self.k)

    def leave(self, rows: Tensor, status: Tensor, result: OdeSolution) -> _Rows:
        """Write ``rows``, bool ``(b,)``, into the result, and return the others."""
        if not bool(rows.any()):
            return self
        out = self.index[rows]
        for name in ("y", "nfe", "accepted", "rejected"):
            getattr(result, name)[out] = getattr(self, name)[rows]
        result.status[out] = status[rows]
        return _Rows(*(getattr(self, f.name)[~rows] for f in fields(self)))


def coarse(h: Tensor) -> Tensor:
    """Step sizes cut to seven binary digits, in the shape of ``h``."""
    mantissa, exponent = torch.frexp(h)
    return torch.ldexp(torch.trunc(128 * mantissa) / 128, exponent)


def _combine(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    """``sum_j weights_j stages_j``, term by term: a matrix product would round differently in other batch sizes."""
    total = weights[0] * stages[0]
    for weight, stage in zip(weights[1:], stages[1:], strict=True):
        if weight:
            total.add_(stage, alpha=weight)
    return total


def _first_step(
    f: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    t: Tensor,
    k: Tensor,
    index: Tensor,
    span: float,
    order: int,
    norm: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """The first step of each row (Hairer et al. 1993, II.4), kept inside the interval; one evaluation."""
    sign, length = (1.0 if span > 0 else -1.0), abs(span)
    size, slope = norm(y, y, y), norm(k, y, y)
    h = torch.where((size < 1e-5) | (slope < 1e-5), torch.full_like(t, 1e-6), 0.01 * size / slope)
    h = torch.nan_to_num(h, nan=1e-6).clamp(max=0.1 * length)
    probe = f(y + expand(sign * h, y) * k, t + sign * h, index)
    bend = norm(probe - k, y, y) / h
    largest = torch.nan_to_num(torch.maximum(slope, bend), nan=torch.inf).clamp(min=1e-12)
    by_curvature = (0.01 / largest) ** (1 / order)
    return sign * torch.minimum(100 * h, by_curvature).clamp(min=1e-9 * length, max=length)
