"""A comparison of solvers at several budgets of model evaluations. All solvers start from the same prior samples.

Two distances are measured, both in model units. The first is the distance between a solver's result x and the
*converged* solution x*,

    rms = sqrt( mean of (x - x*)^2 over samples and dimensions ).

The converged solution is the solution of the probability flow from the same prior samples with a tolerance of 1e-6
(1e-8 in float64). Both x and x* are taken before the final noise-free step of :func:`scoresde.sample`. Stochastic
solvers do not approximate x*, so this distance is not computed for them. A few samples, which pass near a border
between modes of the data, can hold half of this mean, so the *median* over samples of the distance of each sample is
also reported.

Solvers that were fitted to the run (:mod:`scoresde.study.tune`) are marked as "fitted" in all results.

The second distance depends on both the solver and the model. It is the sliced 2-Wasserstein distance
(:mod:`scoresde.metrics`) between the samples and held-out data. The samples are taken after the noise-free step, and
held-out data that are stored as levels are dequantised. With few samples, this distance is biased upwards and does not
fall to 0. The *floor* is the lowest value to expect. It is the distance between an equal number of training samples and
the same held-out data. As the steps of a deterministic solver shrink, its distance tends to the distance for the
converged solution.

A solver with a fixed grid takes as many steps as the budget of evaluations allows. An adaptive solver is run at several
tolerances, and the number of evaluations that it used is reported. Any other solver is run once with its own settings.
The reported evaluations and seconds do not include the noise-free step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError, NumericalError, UsageError
from ..core.files import write_csv, write_json
from ..core.limits import COUNT, SEED, SEVERAL, checked, enough_memory
from ..core.noise import Noise
from ..core.optional import optional
from ..core.registry import build, fields_of, options_of, resolve
from ..core.tables import SOLVERS
from ..data import Dataset
from ..data.rows import Stored, part
from ..metrics import sliced_wasserstein
from ..model.estimate import Denoiser
from ..run.run import Run
from ..sde.grids import FittedGrid, as_grid
from ..solvers import ProbabilityFlow, Solution, Solver, Tuned, sample
from ..solvers.base import OnGrid

__all__ = ["Bench", "BenchRow", "Case", "Floor", "bench", "bench_table", "plan", "solvers_by_name", "write_bench"]

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
STOCHASTIC_TOLERANCES = (1e-1, 5e-2, 2e-2, 1e-2)  # as published; smaller tolerances cost too much at order 1/2
DRAWS = 8  # number of sets of training samples over which the floor is averaged


@dataclass(frozen=True)
class Case:
    """A solver and its budget, which is a number of evaluations (``asked``) or a ``tolerance``.

    For a solver that is run with its own settings, ``asked`` and ``tolerance`` are ``None``. If the budget is too small
    for a single step, ``solver`` is ``None``.
    """

    name: str
    solver: Solver | None
    asked: int | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class BenchRow:
    """The result of a solver at one budget, with ``None`` for missing values.

    Attributes:
        solver: Name of the solver.
        asked: Number of evaluations in the solver's budget.
        tolerance: Value of ``rtol`` and ``atol`` for a solver whose budget is a tolerance.
        nfe: Number of evaluations that the solver used, averaged over the samples.
        rms: Root-mean-square distance per dimension between the samples that succeeded and the converged solution.
        sliced_w2: Sliced W2 distance between the samples and held-out data.
        seconds: Time that the solver took for all samples, in seconds.
        failed: Number of samples that failed.
        note: The reason why there is no result, or an empty string.
        median: Median, over the samples that succeeded, of the distance of each sample from the converged solution.
    """

    solver: str
    asked: int | None = None
    tolerance: float | None = None
    nfe: float | None = None
    rms: float | None = None
    sliced_w2: float | None = None
    seconds: float | None = None
    failed: int = 0
    note: str = ""
    median: float | None = None

    def __str__(self) -> str:
        budget = "" if self.tolerance is None else f"tolerance {self.tolerance:g}"
        head = f"{self.solver:19}{f'{self.asked} evaluations' if self.asked else budget:18}"
        if self.note:
            return head + self.note
        text = f"{head}distance {_short(self.rms):9} median {_short(self.median):9} "
        text += f"sliced W2 {_short(self.sliced_w2):9} {self.seconds:.2f} s"
        text += "" if self.nfe == self.asked else f"  {self.nfe:.1f} evaluations"
        return text + (f"  failed samples: {self.failed}" if self.failed else "")


@dataclass(frozen=True)
class Floor:
    """The sliced W2 distance between training rows and held-out rows, for several random draws of training rows.

    Attributes:
        mean, least, most: Mean, smallest and largest distance over the draws.
        samples, held_out: Number of training rows in each draw, and number of held-out rows.
    """

    mean: float
    least: float
    most: float
    samples: int
    held_out: int


@dataclass(frozen=True)
class Bench:
    """The results of a comparison of solvers.

    Attributes:
        rows: One row for each solver and budget.
        converged: The row for the converged solution.
        floor: The floor of the sliced W2 distance, or ``None`` if no data were given.
    """

    rows: tuple[BenchRow, ...]
    converged: BenchRow
    floor: Floor | None


def solvers_by_name(names: Iterable[str], grid: str | None = None) -> dict[str, Solver]:
    """Build solvers with default settings, keyed by name. If ``grid`` is given, it replaces the default time grids.

    Solvers without a time grid ignore ``grid``. The name of a solver that will be fitted to the run, or that uses the
    grid of the run, says so.

    Raises:
        UsageError: If a name is unknown.
    """
    found: dict[str, Solver] = {}
    for name in names:
        takes = grid is not None and "grid" in fields_of(resolve(name, SOLVERS, "solver", typed=True))
        made = build(name, SOLVERS, "solver", {"grid": grid} if takes else {}, typed=True, kind=Solver)
        of_run = isinstance(made, Tuned) or (isinstance(made, OnGrid) and isinstance(as_grid(made.grid), FittedGrid))
        told = "" if not of_run else " (fitted)" if isinstance(made, Tuned) else " (fitted grid)"
        found[f"{name}{told}"] = made
    return found


def plan(solvers: Mapping[str, Solver], nfe: Sequence[int]) -> tuple[Case, ...]:
    """List the combinations of solver and budget to run, in order.

    Raises:
        UsageError: If there is nothing to run.
    """
    if not solvers or not nfe or min(nfe) < 1:
        raise UsageError(
            "a comparison requires at least one solver and at least one evaluation budget, and each budget must be at "
            f"least 1, got the solvers {list(solvers)} and the budgets {list(nfe)}"
        )
    cases: list[Case] = []
    for name, solver in solvers.items():
        if {"rtol", "atol"} <= options_of(solver).keys():
            tolerances = STOCHASTIC_TOLERANCES if solver.stochastic else TOLERANCES
            cases += [Case(name, _at(solver, tolerance), tolerance=tolerance) for tolerance in tolerances]
        elif solver.within(10**6) is not None:  # the solver accepts a number of evaluations
            cases += [Case(name, solver.within(count), asked=count) for count in nfe]
        else:
            cases.append(Case(name, solver))
    if all(case.solver is None for case in cases):
        raise UsageError(
            f"an evaluation budget of {max(nfe)} is too small for one step of {', '.join(solvers)}; use a larger "
            "budget",
            parameter="nfe",
        )
    return tuple(cases)


@checked(n=SEVERAL, seed=SEED, batch=COUNT)
def bench(
    run: Run,
    solvers: Mapping[str, Solver],
    nfe: Sequence[int] = (5, 10, 20, 50),
    *,
    n: int = 128,
    seed: int = 0,
    data: Dataset | None = None,
    batch: int = 256,
    on_row: Callable[[BenchRow], None] | None = None,
) -> Bench:
    """Run solvers at several budgets, and measure how far the results are from the converged solution and from data.

    Args:
        run: A trained run, conditioned or not. A run conditioned on one class is compared with data of that class.
        solvers: Solvers, keyed by the name shown in the results.
        nfe: Budgets for the solvers with a fixed grid, as numbers of evaluations.
        n: Number of samples.
        seed: Seed for the prior samples, for the solvers' noise and for choosing rows of the data.
        data: The data that the run was trained on, or ``None`` to leave out the sliced W2 distance.
        batch: Maximum number of samples per batch.
        on_row: Called with each row of the results, starting with the row for the converged solution.

    Raises:
        UsageError: If an option is invalid, or no solver can run.
        DataError: If the data do not match the run.
        NumericalError: If the converged solution failed for every sample.
    """
    cases, run = plan(solvers, nfe), run.masked(n=n)
    model = run.model
    run.codec.require(run.condition)
    if run.needs:
        data = None  # rows of data have other coordinates than these samples, because each has its own condition
    # Three arrays are in memory at once: the starting points, the converged solution and the solution of one row.
    size = 3 * math.prod(run.info.shape) * torch.finfo(run.dtype).bits // 8
    enough_memory(n * size, f"{n:,} samples of {run.info.dims:,} numbers", "n")
    real, floor = (None, None) if data is None else _real(run, data, n, seed)
    common = _Common(run, model, Noise.of(n, seed, device=run.device), batch, real, floor)
    told = on_row or (lambda row: None)

    tolerance = 1e-8 if run.dtype == torch.float64 else 1e-6
    first, converged = common.solve(BenchRow("converged", tolerance=tolerance), _at(ProbabilityFlow(), tolerance))
    if first.failed == n:
        raise NumericalError(
            f"the probability flow failed for all samples at a tolerance of {tolerance:g}: "
            f"{'; '.join(converged.failures())}"
        )
    told(first)
    rows = []
    for case in cases:
        row = BenchRow(case.name, case.asked, case.tolerance)
        try:
            if case.solver is None:
                raise UsageError("too few evaluations for one step")
            row, _ = common.solve(row, case.solver, converged)
        except (UsageError, NumericalError) as error:
            row = replace(row, note=str(error))
        rows.append(row)
        told(row)
    if all(row.note for row in rows):
        raise UsageError(f"none of the solvers could run ({rows[0].solver}: {rows[0].note})")
    return Bench(tuple(rows), first, floor)


@dataclass(frozen=True)
class _Common:
    """The model, starting points and data that all rows share."""

    run: Run
    model: Denoiser
    noise: Noise
    batch: int
    real: Tensor | None
    floor: Floor | None

    def solve(self, row: BenchRow, solver: Solver, converged: Solution | None = None) -> tuple[BenchRow, Solution]:
        """Run a solver, and return the completed row and the solution before the noise-free step."""
        solver = self.run.fitted(solver)
        model, shape, dtype = self.model, self.run.codec.model_shape(self.run.info.shape), self.run.dtype
        began = time.monotonic()
        solution = sample(model, solver, shape, self.noise, denoise=False, batch=self.batch, dtype=dtype)
        failed = int((~solution.ok).sum())  # this also waits for the device
        row = replace(row, seconds=time.monotonic() - began, nfe=float(solution.nfe.double().mean()), failed=failed)
        if converged is not None and not solver.stochastic:
            rms, median = _distances(solution, converged)
            row = replace(row, rms=rms, median=median)
        if self.real is not None and self.floor is not None:
            x0 = solution.x if solver.denoises else _denoised(model, solution.x, self.batch)
            x0 = x0[solution.ok & torch.isfinite(x0).flatten(1).all(dim=1)][: self.floor.samples]
            row = replace(row, sliced_w2=sliced_wasserstein(x0, self.real) if len(x0) > 1 else None)
        return row, solution


def _at(solver: Solver, tolerance: float) -> Solver:
    """Return a copy of an adaptive solver with the given tolerance."""
    found: Solver = replace(solver, rtol=tolerance, atol=None)  # type: ignore[type-var]
    return found


def _distances(solution: Solution, converged: Solution) -> tuple[float | None, float | None]:
    """Return the rms and the median row of the distance per dimension over the samples that succeeded in both."""
    ok = solution.ok & converged.ok
    each = (solution.x[ok].double() - converged.x[ok].double()).square().flatten(1).mean(1)
    return (float(each.mean().sqrt()), float(each.median().sqrt())) if bool(ok.any()) else (None, None)


def _denoised(model: Denoiser, x: Tensor, batch: int) -> Tensor:
    """Return the model's estimates of the data for the states ``x`` at the end of sampling."""
    t, rows = model.domain.interval("sample")[0], torch.split(torch.arange(len(x), device=x.device), batch)
    with torch.no_grad():
        return torch.cat([model.rows(index)(x[index], t).x0 for index in rows])


def _real(run: Run, data: Dataset, n: int, seed: int) -> tuple[Tensor, Floor]:
    """Return at most ``n`` held-out rows in model units, and the floor for these rows."""
    info, theirs = run.info, data.info
    if (theirs.shape, theirs.levels) != (info.shape, info.levels):
        raise DataError(
            f"{theirs.name} has shape {theirs.shape} and {theirs.levels or 'no'} levels, but the run was trained on "
            f"data with shape {info.shape} and {info.levels or 'no'} levels; use the data that the run was trained on"
        )

    label = None if run.condition is None else run.condition.label
    only = label if label is not None and len(label) == 1 else None

    def choose(rows: Tensor | Stored, y: Tensor | None, draw: int) -> Tensor:
        x = rows if only is None or y is None else part(rows, y == only)
        if len(x) < 2:
            raise DataError(
                f"the distance to data requires at least 2 training samples and 2 held-out samples (of the run's "
                f"class, if it is conditioned on one), but {theirs.name} has {len(x)} in one of the two splits"
            )
        few = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + draw))[:n]]
        u = Noise.of(len(few), seed, start=draw * n).uniform(info.shape, stream="dequantise", dtype=torch.float64)
        return run.codec.to_model(few.to(u.dtype), noise=u)

    held_out = choose(data.test, data.test_labels, 0)
    whole = data.whole
    labels = None if data.train_labels is None else data.train_labels[whole]
    draws = [choose(part(data.train, whole), labels, 1 + k) for k in range(DRAWS)]
    values = [sliced_wasserstein(draw, held_out) for draw in draws]
    mean = sum(values) / len(values)
    return held_out, Floor(mean, min(values), max(values), samples=len(draws[0]), held_out=len(held_out))


# ----------------------------------------------------------------------------------------------------------- reports


def _short(value: float | None) -> str:
    """Format a number with about three significant digits, or ``None`` as a dash."""
    if value is None:
        return "-"
    if value == 0 or not 1e-4 <= abs(value) < 1e4:
        return "0" if value == 0 else f"{value:.1e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def bench_table(found: Bench) -> str:
    """Format the results as text: for each quantity, a table with a row per solver and a column per budget."""
    by_solver: dict[str, list[BenchRow]] = {}
    for row in found.rows:
        by_solver.setdefault(row.solver, []).append(row)
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, rows in by_solver.items():
        kind = "evaluations" if rows[0].asked else "tolerance" if rows[0].tolerance else "own settings"
        groups.setdefault((kind, tuple(str(r.asked or r.tolerance or "") for r in rows)), []).append(name)
    width = max(len(name) for name in (*by_solver, "evaluations")) + 2

    def line(name: str, cells: Iterable[str]) -> str:
        return (name.ljust(width) + "".join(cell.rjust(10) for cell in cells)).rstrip()

    def block(title: str, cell: Callable[[BenchRow], str], names: Iterable[str], *more: str) -> list[str]:
        lines = [title]
        for (kind, budgets), members in groups.items():
            shown = [name for name in members if name in names]
            lines += [line(kind, budgets)] * bool(shown)
            lines += [line(name, map(cell, by_solver[name])) for name in shown]
        return [*lines, *more, ""]

    floor, last = found.floor, found.converged
    odd = [name for name, rows in by_solver.items() if any(r.nfe not in (None, r.asked) for r in rows)]
    lost = [name for name, rows in by_solver.items() if any(r.failed for r in rows)]
    lines = block("distance to the converged solution (RMS per dimension)", lambda r: _short(r.rms), by_solver)
    if any(row.median is not None for row in found.rows):
        lines += block("distance of the median sample (RMS per dimension)", lambda r: _short(r.median), by_solver)
    if floor is not None:
        lines += block(
            f"sliced W2 distance to held-out data ({floor.samples} samples, {floor.held_out} held-out rows)",
            lambda r: _short(r.sliced_w2),
            by_solver,
            line("converged", [_short(last.sliced_w2)]),
            line("real data", [_short(floor.mean)]) + f"  ({_short(floor.least)} to {_short(floor.most)})",
        )
    lines += block("seconds", lambda r: _fixed(r.seconds, 2), by_solver, line("converged", [_fixed(last.seconds, 2)]))
    if odd:
        lines += block("evaluations used", lambda r: _fixed(r.nfe, 1), odd, line("converged", [_fixed(last.nfe, 1)]))
    if lost:
        lines += block("failed samples", lambda r: "-" if r.note else str(r.failed), lost)
    return "\n".join(lines[:-1])


def write_bench(folder: Path, found: Bench, made: Mapping[str, Any]) -> list[Path]:
    """Write ``bench.csv`` (the rows), ``bench.json`` (the settings), and the figure ``work-precision.png``.

    The figure is written last, and only if there are distances to show. If it cannot be drawn, a warning is issued.

    Returns:
        The paths to the files, starting with the figure if there is one.
    """
    names = [f.name for f in fields(BenchRow)]
    files = [
        write_csv(folder / "bench.csv", names, ([getattr(row, name) for name in names] for row in found.rows)),
        write_json(folder / "bench.json", dict(made)),
    ]
    if not any(row.rms or row.sliced_w2 for row in found.rows):
        return files
    curves: dict[str, list[list[float]]] = {}
    for row in found.rows:
        point = (row.nfe, row.rms, row.sliced_w2, row.median)
        curves.setdefault(row.solver, []).append([math.nan if v is None else v for v in point])
    floor, picture = found.floor, folder / "work-precision.png"
    with optional(str(picture), f"the numbers are in {files[0]}"):
        from ..plot import save_figure, work_precision

        figure = work_precision(
            curves,
            floor=None if floor is None else (floor.least, floor.most),
            converged=found.converged.sliced_w2,
        )
        save_figure(picture, figure)
        files.insert(0, picture)
    return files
