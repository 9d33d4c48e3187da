r"""Fit solvers with few evaluations to a run.

A solver with n evaluations is a table of times and factors (:mod:`scoresde.solvers.tuned`). Here, this table is fitted
so that the results of the solver come close to the exact ends of the run's own probability flow:

1. *Rows.* Starting states are drawn from the prior, at indices that no sample uses, and the teacher, ``ode`` with a
   tolerance of 1e-5, solves them. 64 of them are kept apart: no number is fitted to them.
2. *Starts.* ``multistep`` of orders 2 and 3, with and without the correction, is tried on the path's own grid, the
   log-SNR grid and the uniform grid, and on two grids that dynamic programming finds along the trajectories
   (:mod:`scoresde.study.shortest`). The best one on a fixed grid and the best one on a found grid are two starts.
3. *Fit.* From both starts, all times and factors are fitted to a few rows (:mod:`scoresde.study.levenberg`), and the
   better one on the rows kept apart is fitted further, to all rows. On a chain the times must be nodes, so that only
   the factors are fitted, and the start is the best of all on the nodes.
4. *Check.* The numbers are rounded to six digits. A fit is kept only if its error on the rows kept apart is at most 0.8
   times that of the best solver on a fixed grid.

Everything follows from the seed, so that the same fit gives the same bits on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import NumericalError, UsageError
from ..core.limits import COUNT, SEED, Range, checked, enough_memory
from ..core.noise import Noise
from ..core.shapes import expand
from ..model.estimate import Denoiser, Estimate, Wrapped
from ..run.fitted import Fit, Fits, bindings, six_digits
from ..run.run import Run
from ..sde.check import check_scalar
from ..sde.grids import default_grid, make_grid
from ..solvers import Multistep, ProbabilityFlow
from ..solvers.tuned import Tuned, unrolled
from .levenberg import ROBUST, Rows, levenberg, numbers, squares, with_numbers
from .shortest import local_errors, shortest_path

__all__ = ["APART", "GAIN", "Outcome", "Teacher", "fit", "teach", "tune"]

APART = 64  # number of rows that are kept apart
FEW = 64  # number of rows of the first fits
GAIN = 0.8  # the largest ratio of the error to that of the best fixed solver with which a fit is kept
START = 2**40  # the index of the first row, beyond those of samples
NODES = 64  # number of steps of the fine grid
ROUNDS = 5, 14  # most steps of the fits to a few rows and to all rows (more with more than 10 evaluations)
MOST = 40  # most steps of a solver: beyond that, a fixed solver is as good as exact


def _rule(order: int, correct: bool) -> str:
    return f"order {order}{', correct' * correct}"


FIXED = {
    _rule(order, correct): Multistep(order=order, correct=correct) for order in (2, 3) for correct in (False, True)
}


@dataclass(frozen=True)
class Teacher:
    """The problems of a fit, and what their exact trajectories say about time grids.

    Attributes:
        rows: The rows that are fitted.
        apart: The rows that are kept apart.
        times: The K nodes of a fine grid, float64 ``(K,)``.
        errors: The mean square local errors between all pairs of nodes, ``(K, K)``.
    """

    rows: Rows
    apart: Rows
    times: Tensor
    errors: Tensor

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last time."""
        return float(self.times[0]), float(self.times[-1])

    def grid(self, steps: int, power: float) -> tuple[float, ...]:
        """Return the times of the grid of ``steps`` steps with the least sum of local errors to the given power."""
        path = shortest_path(self.errors ** (power / 2), steps)
        return tuple(self.times[path].tolist())


@dataclass(frozen=True)
class Outcome:
    """A fit for one number of steps.

    Attributes:
        fit: The solver and its errors on the rows kept apart.
        usual: The rms error of ``multistep`` with its default options on the same rows.
        median: The median error on the rows that were fitted.
        start: The start that led to the fit.
        seconds: CPU time, in seconds.
    """

    fit: Fit
    usual: float
    median: float
    start: str
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the fit is good enough to be used."""
        return self.fit.rms <= GAIN * self.fit.fixed_rms

    def __str__(self) -> str:
        told = f"{self.fit.solver.steps:5}  {self.fit.rms:.4f} fitted, {self.fit.fixed_rms:.4f} best fixed"
        return f"{told} ({self.fit.fixed}), {self.seconds:.0f} s" + ("" if self.kept else ", not kept")


@dataclass(frozen=True)
class _Watched(Wrapped):
    """A model that notes the states and slopes at which it is evaluated, in the straight frame."""

    seen: list[tuple[Tensor, Tensor]]

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        scale = self.domain.sde.scale(torch.as_tensor(t, dtype=torch.float64))
        self.seen.append((x / expand(scale, x), estimate.eps - estimate.x0))
        return estimate

    def rows(self, index: Tensor) -> _Watched:
        return replace(self, model=self.model.rows(index))


def teach(
    model: Denoiser, x: Tensor, *, apart: int = APART, batch: int = 64, rtol: float = 1e-5,
    watch: Callable[[int], object] = lambda count: None,
) -> Teacher:  # fmt: skip
    """Solve the flow of a model from the states ``x: (B, *event)`` at the start of sampling.

    Args:
        model: The model, with one row for each state or one for all.
        x: The states.
        apart: Number of rows to keep apart, the last ones.
        batch: Number of rows to solve at once.
        rtol: Tolerance of the solver.
        watch: Called with the number of rows that have been solved after each batch.

    Raises:
        NumericalError: If the flow of a row cannot be solved.
        UsageError: If alpha and sigma differ between coordinates, or there are too few rows.
    """
    check_scalar(model.domain.sde, "fitting a solver", "a fixed solver such as 'multistep'")
    if len(x) < apart + 2:
        raise UsageError(f"a fit needs at least 2 rows besides the {apart} rows kept apart, got {len(x)} rows in all")
    low, high = model.domain.interval("sample")
    ends = []
    for index in torch.split(torch.arange(len(x), device=x.device), batch):
        solved = ProbabilityFlow(rtol=rtol)(model.rows(index), x[index], t0=high, t1=low)
        if not bool(solved.ok.all()):
            raise NumericalError(f"the flow of the teacher cannot be solved: {'; '.join(solved.failures())}")
        ends.append(solved.x)
        watch(len(index))
    whole = Rows(model, x, torch.cat(ends), batch)
    rows = whole.part(0, len(x) - apart)
    times = _fine(model, high, low)
    few = rows.part(0, min(FEW, len(rows)))
    spy = _Watched(few.model, [])
    with torch.no_grad():
        last = Multistep(grid=tuple(times.tolist()))(spy, few.x, t0=high, t1=low).x
        spy(last, low)
    z, q = (torch.stack(part) for part in zip(*spy.seen, strict=True))
    errors = local_errors(z, q, model.domain.sde.ratio(times).to(z.device)).cpu()
    return Teacher(rows, whole.part(len(rows), len(x)), times, errors)


def _fine(model: Denoiser, t0: float, t1: float) -> Tensor:
    """Return the nodes of a fine grid that joins the path's own grid and the log-SNR grid, float64 ``(K,)``."""
    sde, nodes = model.domain.sde, model.domain.nodes
    if nodes is not None:
        inside = nodes[(nodes > t1 - 1e-9) & (nodes < t0 + 1e-9)].double().flip(0)
        return inside[
            torch.linspace(0, len(inside) - 1, min(NODES + 1, len(inside)), dtype=torch.float64).round().long()
        ]
    both = [make_grid(grid, sde, NODES // 2, t0, t1) for grid in (default_grid(sde), "logsnr")]
    found = torch.cat(both).sort(descending=True).values
    apart = torch.cat([found.new_tensor([True]).bool(), -found.diff() > 1e-7 * (t0 - t1)])
    if int(apart.sum()) <= NODES // 2 + 1:  # both grids are the same, as for the VE path
        return make_grid(default_grid(sde), sde, NODES, t0, t1)
    return torch.cat([found[apart][:-1], found.new_tensor([t1])]) if not apart[-1] else found[apart]


def _starts(teacher: Teacher, steps: int) -> Iterator[tuple[str, bool, Tuned]]:
    """Yield solvers of a given number of steps: a name, whether the grid was found by programming, and the solver."""
    (t0, t1), domain = teacher.ends, teacher.rows.model.domain
    grids: dict[str, str | tuple[float, ...]] = {name: name for name in (default_grid(domain.sde), "logsnr", "uniform")}
    grids |= {"found, p = 2": teacher.grid(steps, 2), "found, p = 1": teacher.grid(steps, 1)}
    for grid, times in grids.items():
        for name, solver in FIXED.items():
            try:
                made = replace(solver, steps=steps, grid=times)
                found = unrolled(made, domain, t0, t1)
            except UsageError:  # on a chain, two times of a grid may lie on one node
                continue
            yield f"multistep {name}, {grid}", not isinstance(times, str), found


def fit(teacher: Teacher, steps: int, *, seed: int = 0) -> Outcome:
    """Fit a solver with a given number of steps.

    Args:
        teacher: The problems (:func:`teach`).
        steps: Number of steps.
        seed: Seed of the probes, which is stored with the fit.

    Raises:
        UsageError: If the number of steps is too large for the path.
    """
    began = time.process_time()
    model, few = teacher.rows.model, teacher.rows.part(0, min(FEW, len(teacher.rows)))
    tried = [_Start(*start, float(squares(start[-1], few).mean())) for start in _starts(teacher, steps)]
    on_fixed, on_found = ([one for one in tried if one.found == found] for found in (False, True))
    if not on_fixed:
        raise UsageError(f"no grid of this path has {steps} steps; use fewer steps", parameter="nfe")
    name, solver = _fitted(teacher, few, on_fixed, on_found, seed)
    theta = [six_digits(number) for number in numbers(solver, True).tolist()]
    solver = with_numbers(solver, torch.tensor(theta, dtype=torch.float64), True)
    fixed = {one.name: squares(one.solver, teacher.apart) for one in on_fixed}
    best = min(fixed, key=lambda name: float(fixed[name].mean()))
    errors = map(six_digits, (*_errors(squares(solver, teacher.apart)), *_errors(fixed[best])))
    rms, median, fixed_rms, fixed_median = errors
    grid = tuple(map(six_digits, _grid(on_found, steps) if on_found else solver.log_snr))
    made = Fit(solver, grid, rms, median, best, fixed_rms, fixed_median, len(teacher.rows), seed)
    usual = squares(unrolled(Multistep(steps), model.domain, *teacher.ends), teacher.apart)
    fitted = _errors(squares(solver, teacher.rows))[1]
    return Outcome(made, _errors(usual)[0], fitted, name, time.process_time() - began)


@dataclass(frozen=True)
class _Start:
    """A solver with which a fit may start: whether its grid was found by programming, and its mean square error."""

    name: str
    found: bool
    solver: Tuned
    error: float


def _fitted(
    teacher: Teacher, few: Rows, on_fixed: Sequence[_Start], on_found: Sequence[_Start], seed: int
) -> tuple[str, Tuned]:
    """Fit the better of the two starts, and return its name and the fitted solver."""
    times = teacher.rows.model.domain.nodes is None
    groups = [group for group in (on_fixed, on_found) if group] if times else [[*on_fixed, *on_found]]
    best = [min(group, key=lambda one: one.error) for group in groups]
    fits = [levenberg(one.solver, few, ROUNDS[0], times=times, seed=seed) for one in best]
    chosen = _better([squares(made, teacher.apart) for made in fits])
    solver = fits[chosen]
    if len(few) < len(teacher.rows):
        # With more than 10 steps, the curvature of 150 numbers and more takes more probes, and the fit more steps.
        probes = 1 if solver.steps <= 10 else -(-3 * len(numbers(solver, times)) // len(teacher.rows))
        rounds = max(ROUNDS[1], 2 * solver.steps - 6)
        solver = levenberg(solver, teacher.rows, rounds, times=times, seed=(seed + 1) % 2**64, probes=probes)
    return best[chosen].name, solver


def _grid(on_found: Sequence[_Start], steps: int) -> tuple[float, ...]:
    """Return the log-SNRs of the found grid that is better for ``multistep`` with its default options."""
    order, correct, _ = Multistep(steps).choice(steps)
    usual = [one for one in on_found if one.name.startswith(f"multistep {_rule(order, correct)}, found")]
    return min(usual or on_found, key=lambda one: one.error).solver.log_snr


def _errors(e2: Tensor) -> tuple[float, float]:
    """Return the rms over rows and the median row of the mean squares ``(B,)``."""
    return float(e2.mean().sqrt()), float(e2.median().sqrt())


def _better(found: Sequence[Tensor]) -> int:
    """Return which of several solvers is best, given the mean squares of their rows, by the loss of the fit."""
    c2 = ROBUST**2 * min(float(e2.median()) for e2 in found)
    losses = [float(torch.log1p(e2 / c2).mean()) for e2 in found]
    return losses.index(min(losses))


@checked(rows=Range(8, 10**6), seed=SEED, batch=COUNT)
def tune(
    run: Run,
    steps: Iterable[int],
    *,
    rows: int = 256,
    seed: int = 0,
    batch: int = 64,
    watch: Callable[[int], object] = lambda count: None,
    on_fit: Callable[[Outcome], object] = lambda outcome: None,
) -> tuple[Fits | None, tuple[Outcome, ...]]:
    """Fit solvers to a run, as it is conditioned and guided.

    Args:
        run: The run. Its condition has one row, or ``rows + 64`` rows, such as all classes in turn.
        steps: The numbers of steps, each of which is fitted by itself.
        rows: Number of rows to fit.
        seed: Seed of the rows and of the probes.
        batch: Number of rows to solve or differentiate at once.
        watch: Called with the number of rows that the teacher has solved, after each batch.
        on_fit: Called after each fit.

    Returns:
        The fits that are good enough, to be written with :meth:`~scoresde.run.fitted.Fits.write`, or ``None`` if none
        is, and the outcomes for all numbers of steps.

    Raises:
        UsageError: If an option is invalid, or solvers cannot be fitted to the run.
        NumericalError: If the flow of the run cannot be solved.
    """
    counts = sorted(set(steps))
    if not counts or counts[0] < 1 or counts[-1] > MOST:
        raise UsageError(f"the numbers of steps must be from 1 to {MOST}, got {counts}", parameter="nfe")
    low, high = run.model.domain.interval("sample")
    most = len(_fine(run.model, high, low)) - 1
    if counts[-1] > most:
        raise UsageError(f"the path of this run has nodes for at most {most} steps, got {counts[-1]}", parameter="nfe")
    if run.potential is not None or run.measurement is not None or run.begin is not None:
        raise UsageError(
            "solvers are fitted to a run that may be conditioned and guided, but not steered, measured or started from "
            "data, because these change from one use to the next"
        )
    whole = rows + APART
    shape = run.codec.model_shape(run.info.shape)
    enough_memory(whole * 8 * 4 * torch.Size(shape).numel(), f"{whole:,} rows", "rows")
    run = run.masked(n=whole)
    known, model = bindings(run), run._bound(whole)
    noise = Noise.of(whole, seed, START, run.device)
    x = model.domain.sde.prior.sample(noise.within(model.domain.support), shape, run.dtype)
    teacher = teach(model, x, batch=batch, watch=watch)
    outcomes = []
    for count in counts:
        outcomes.append(fit(teacher, count, seed=seed))
        on_fit(outcomes[-1])
    kept = tuple(outcome.fit for outcome in outcomes if outcome.kept)
    return (Fits(known, kept) if kept else None), tuple(outcomes)
