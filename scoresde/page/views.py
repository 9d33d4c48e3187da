"""What all pages show, whatever the data: the classes to choose from, the paths, and the solvers on this model."""

from __future__ import annotations

from collections.abc import Sequence
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
from .data import Numbers, pack_floats

__all__ = ["BUDGETS", "COMPARED", "View", "pack_paths", "solver_results", "sources_of", "views_of"]

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
    """

    rows: Sequence[BenchRow] = ()
    ends: Sequence[Tensor] = ()
    floor: tuple[float, float] | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return everything but the samples as plain numbers and strings."""
        rows = [
            {
                "solver": row.solver, "asked": row.asked, "nfe": row.nfe, "rms": _plain(row.rms),
                "w2": _plain(row.sliced_w2), "note": row.note, "failed": row.failed,
            }
            for row in self.rows
        ]  # fmt: skip
        return {
            "rows": rows,
            "floor": None if self.floor is None else [_plain(end) for end in self.floor],
            "note": self.note,
        }


def solver_results(run: Run, data: Dataset | None, n: int, shown: int, seed: int) -> SolverResults:
    """Compare solvers with ``n`` samples at several budgets, and draw ``shown`` of the samples of each case.

    A failure of the comparison is returned as a note, because the other figures do not depend on it.
    """
    solvers = solvers_by_name([name for name in COMPARED if run.model.domain.has_score or name != "ancestral"])
    try:
        found = bench(run.typical(n, seed), solvers, BUDGETS, n=n, seed=seed, data=data)
    except (NumericalError, UsageError) as error:
        return SolverResults(note=str(error))
    ends = []
    asked = run.typical(shown, seed)
    nothing = torch.full((shown, *run.info.shape), torch.nan, dtype=torch.float64)
    for case, row in zip(plan(solvers, BUDGETS), found.rows, strict=True):
        if case.solver is None or row.note:
            ends.append(nothing)
            continue
        drawn = asked.sample(shown, case.solver, seed=seed)
        good = drawn.solution.ok.cpu().reshape(-1, *[1] * len(run.info.shape))
        ends.append(torch.where(good, drawn.x.cpu().double(), torch.nan))
    return SolverResults(found.rows, ends, None if found.floor is None else (found.floor.least, found.floor.most))


def _plain(number: float | None) -> float | None:
    """Return the number with six digits, or ``None`` if it is not finite."""
    return float(f"{number:.6g}") if number is not None and bool(np.isfinite(number)) else None


def stacked(ends: Sequence[Tensor]) -> Numbers:
    """Return samples of several cases as one array ``(cases, n, *event)``."""
    found: Numbers = torch.stack(list(ends)).numpy()
    return found
