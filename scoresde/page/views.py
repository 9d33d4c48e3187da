"""What all pages show, whatever the data: the classes to choose from, the paths, and the solvers on this model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import NumericalError, UsageError
from ..core.registry import name_of
from ..core.tables import SDES
from ..data import Dataset
from ..model.network import ScoreModel
from ..run.run import Run
from ..sde.base import SDE
from ..sde.continuous import VESDE, VPSDE, CosineSDE, FlowMatching
from ..study.bench import BenchRow, bench, plan, solvers_by_name
from .charts import Chart, chart, curve, decades, short
from .data import Numbers, pack_floats, unpack

__all__ = ["BUDGETS", "COMPARED", "View", "pack_paths", "shares_of_data", "solver_results", "sources_of", "views_of"]

NODES = 257  # points of each path's curves
CLASSES = 6  # classes that a page offers, because each takes space
COMPARED = ("ddim", "heun", "multistep", "ancestral")
BUDGETS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class View:
    """A run with the class that a reader chooses in a menu.

    Attributes:
        name: The name in the menu.
        label: The index of the class, the number of classes for "no class", or ``None`` if the run has no classes.
        run: The run, with the class bound.
    """

    name: str
    label: int | None
    run: Run


def views_of(run: Run) -> list[View]:
    """Return the entries of the menu of classes. Only the first classes are offered if there are many.

    A run without classes has one entry, without a name. A run with any other condition has one entry as well, with the
    conditions of the first held-out row.
    """
    if run.config is not None and run.config.sources.rich:
        return [View("", None, run.typical(1))]
    classes = run.base.classes if isinstance(run.base, ScoreModel) else 0
    if not classes or run.condition is not None:
        return [View("", None, run)]
    without = [View("any class", classes, run)] if run.example_labels(1) is None else []
    names = [*run.info.classes, *map(str, range(len(run.info.classes), classes))]
    kept = [k for k in range(classes) if len(run.info.trained) != classes or run.info.trained[k]]
    return [*without, *(View(names[k], k, run.given(k)) for k in kept[:CLASSES])]


def sources_of(run: Run) -> str:
    """Return the name of the run's data, with the step of its weights."""
    return run.info.name if run.config is None else f"{run.info.name}, step {run.step:,}"


# ------------------------------------------------------------------------------------------------------------- paths


def pack_paths(sde: SDE) -> list[dict[str, Any]]:
    """Pack the paths that the reader can compare: the run's own path and the usual ones, each with its coefficients.

    The array of a path, ``(2, NODES)``, has the angle ``atan2(sigma, alpha)`` and the size ``sqrt(alpha^2 + sigma^2)``
    at evenly spaced times. If the coefficients of the run's own path differ between coordinates, only this path is
    returned, with the coefficients of its clock.
    """
    usual: dict[str, SDE] = {
        "linear (VP)": VPSDE(),
        "cosine": CosineSDE(),
        "straight": FlowMatching(),
        "VE": VESDE(),
    }
    own = {f"this model: {name_of(sde, SDES)}": sde}
    others = {} if sde.coords else {name: path for name, path in usual.items() if path != sde}
    same = next((name for name, path in usual.items() if path == sde), None)
    if same is not None:
        own = {f"this model: {same}": sde}
    return [_pack_path(name, path) for name, path in (own | others).items()]


def _pack_path(name: str, sde: SDE) -> dict[str, Any]:
    low, high = sde.times("sample")
    t = torch.linspace(low, high, NODES, dtype=torch.float64)
    with torch.no_grad():
        if sde.coords:
            turn, size = torch.sigmoid(-sde.log_snr(t)).sqrt().asin(), torch.ones_like(t)
        else:
            alpha, sigma = sde.coefficients(t)
            turn, size = torch.atan2(sigma, alpha), torch.hypot(alpha, sigma)
    return {"name": name, "low": low, "high": high, "curves": pack_floats(torch.stack([turn, size]).numpy())}


def shares_of_data(paths: Sequence[Mapping[str, Any]]) -> Chart:
    """Describe the chart of the share of the variance that is data, over the time of each path."""
    lines = []
    for k, path in enumerate(paths):
        left = np.cos(unpack(path["curves"])[0, ::2]) ** 2
        lines.append(curve(np.linspace(0, 1, len(left)), left, k, name=path["name"], dash=k, width=2))
    ends, parts = ((0.0, "data"), (1.0, "noise")), ((0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %"))
    return chart("share of the variance that is data", (0, 1), (0, 1.02), lines, ends, parts)


# ----------------------------------------------------------------------------------------------------------- solvers


@dataclass(frozen=True)
class SolverResults:
    """The results of the solvers on a run.

    Attributes:
        rows: The rows of the comparison (:func:`scoresde.study.bench.bench`).
        ends: For each row, the samples in data units, float64 ``(n, *event)``. Samples that failed are NaN.
        floor: The smallest and the largest sliced W2 distance between as many training rows and held-out rows, in
            several draws, or ``None``.
        note: Why there are no results, or an empty string.
        budgets: The numbers of evaluations.
    """

    rows: Sequence[BenchRow] = ()
    ends: Sequence[Tensor] = ()
    floor: tuple[float, float] | None = None
    note: str = ""
    budgets: Sequence[int] = BUDGETS

    def to_json(self) -> dict[str, Any]:
        """Return everything but the samples as plain numbers and strings."""
        rows = [
            {
                "solver": row.solver, "asked": row.asked, "nfe": row.nfe, "rms": _plain(row.rms),
                "w2": _plain(row.sliced_w2), "note": self._why_not(row), "failed": row.failed, "told": self._told(row),
                "place": self._place(row),
            }
            for row in self.rows
        ]  # fmt: skip
        return {
            "rows": rows, "names": list(dict.fromkeys(row.solver for row in self.rows)), "budgets": self.budgets,
            "floor": None if self.floor is None else [_plain(end) for end in self.floor],
            "chart": self._chart() if any(map(self._place, self.rows)) else None, "note": self.note,
        }  # fmt: skip

    @property
    def _by_data(self) -> bool:
        """Whether the solvers are compared by their distance to data, and not to the end of the flow."""
        return any(row.sliced_w2 for row in self.rows)

    def _place(self, row: BenchRow) -> tuple[float, float] | None:
        """Return the place of a row in the chart: the logarithms of its evaluations and of its distance."""
        distance = row.sliced_w2 if self._by_data else row.rms
        return (math.log10(row.nfe), math.log10(distance)) if row.nfe and _plain(distance) else None  # type: ignore[arg-type]

    def _chart(self) -> Chart:
        """Describe the chart of the distances over the evaluations, both on logarithmic axes."""
        lines = []
        for k, name in enumerate(dict.fromkeys(row.solver for row in self.rows)):
            places = [place for row in self.rows if row.solver == name and (place := self._place(row))]
            xs, ys = [x for x, _ in places], [y for _, y in places]
            lines.append(curve(xs, ys, k % 6, name=name, dash=k % 5, marks=True, legend=True))
        floor = self.floor if self._by_data else None
        band = None if floor is None else [math.log10(max(end, 1e-12)) for end in floor]
        most = max(x for line in lines for x in line["xs"])
        distances = [y for line in lines for y in line["ys"]] + (band or [])
        low, high = min(distances), max(distances)
        spare = 0.08 * (high - low) + 0.02
        x, y = (-0.08, most + 0.08), (low - spare, high + spare)
        title = "sliced W2 to held-out data" if self._by_data else "distance to the end of the flow"
        return chart(f"{title}, by evaluations", x, y, lines, decades(0, x[1]), decades(*y), band)

    def _why_not(self, row: BenchRow) -> str:
        """Return a sentence on why there are no samples, or an empty string."""
        fitted = [str(each.asked) for each in self.rows if each.solver == row.solver and not each.note]
        if not row.note:
            return ""
        if row.solver.startswith("tuned") and fitted:
            return f"This solver was fitted to this model for {', '.join(fitted)} evaluations only."
        if row.asked == 1 and row.note.startswith("too few"):
            return f"Each step of {row.solver} needs two evaluations, so one is too few."
        return f"It cannot run: {row.note}."

    def _told(self, row: BenchRow) -> str:
        """Return the sentences about a row."""
        used = f" ({row.nfe:g} used)" if row.nfe and row.nfe != row.asked else ""
        told = f"{row.solver} with {row.asked} evaluation{'s' * (row.asked != 1)}{used}."
        if row.note:
            return f"{told} {self._why_not(row)}"
        if row.sliced_w2 is not None:
            told += f" The sliced W2 distance of its samples to held-out data is {short(row.sliced_w2, 3)} model units"
            ends = [] if self.floor is None else [short(end, 2) for end in self.floor]
            told += f"; that of real data is {ends[0]} to {ends[1]}." if ends else "."
        if row.rms is not None:
            told += f" Its points end {short(row.rms, 2)} model units from the end of the flow (root mean square)."
        return told


def solver_results(run: Run, data: Dataset | None, n: int, shown: int, seed: int) -> SolverResults:
    """Compare solvers with ``n`` samples at several budgets, and draw ``shown`` of the samples of each case.

    Solvers that were fitted to the run are among them, at the numbers of evaluations for which they were fitted. A
    failure of the comparison is returned as a note, because the other figures do not depend on it.
    """
    compared, asked = run.typical(n, seed), run.typical(shown, seed)
    fitted = _fitted(asked)
    names = [name for name in COMPARED if run.model.domain.has_score or name != "ancestral"]
    solvers = solvers_by_name([*names, *(["tuned"] if fitted else [])])
    budgets = sorted({*BUDGETS, *fitted})
    try:
        found = bench(compared, solvers, budgets, n=n, seed=seed, data=data)
    except (NumericalError, UsageError) as error:
        return SolverResults(note=str(error))
    ends = []
    nothing = torch.full((shown, *run.info.shape), torch.nan, dtype=torch.float64)
    for case, row in zip(plan(solvers, budgets), found.rows, strict=True):
        if case.solver is None or row.note:
            ends.append(nothing)
            continue
        drawn = asked.sample(shown, case.solver, seed=seed)
        good = drawn.solution.ok.cpu().reshape(-1, *[1] * len(run.info.shape))
        ends.append(torch.where(good, drawn.x.cpu().double(), torch.nan))
    floor = None if found.floor is None else (found.floor.least, found.floor.most)
    return SolverResults(found.rows, ends, floor, budgets=budgets)


def _fitted(run: Run) -> tuple[int, ...]:
    """Return the numbers of evaluations for which solvers were fitted to the run as it is."""
    try:
        return run.fits.steps
    except UsageError:  # none were, or to other weights or another condition
        return ()


def _plain(number: float | None) -> float | None:
    """Return the number with six digits, or ``None`` if it is not finite."""
    return float(f"{number:.6g}") if number is not None and bool(np.isfinite(number)) else None


def stacked(ends: Sequence[Tensor]) -> Numbers:
    """Return samples of several cases as one array ``(cases, n, *event)``."""
    found: Numbers = torch.stack(list(ends)).numpy()
    return found
