"""The command ``scoresde tune``."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..core.errors import CheckpointError, NumericalError, UsageError
from ..core.limits import COUNT, Range
from .command import Whole, option, verb
from .common import Conditioning, Session, conditioning, session, whole_numbers

if TYPE_CHECKING:
    from ..run.fitted import Fits
    from ..run.run import Run
    from ..study.tune import Outcome

__all__ = ["tune"]


@verb(
    short_help="Fit solvers with few evaluations to a run.",
    epilog="Examples:\n  scoresde tune runs/digits-vp --nfe 5,10\n"
    "  scoresde sample runs/digits-vp --solver tuned --steps 5",
)
@option("--nfe", under="Solver", first=True, default="5,10", show_default=True,
        help="Numbers of model evaluations, each of which gets a solver of its own.")  # fmt: skip
@option("--rows", under="Samples", first=True, type=Whole(Range(8, 10**6)), default=256, show_default=True,
        help="Number of trajectories to fit. 64 more are kept apart to check the fit.")  # fmt: skip
@option("--batch", under="Samples", type=Whole(COUNT), default=64, help="Number of trajectories to fit at once.")
@conditioning(labels=True, first=False)
@session(run=True)
def tune(nfe: str, rows: int, batch: int, condition: Conditioning, session: Session) -> None:
    """Fit solvers with few model evaluations to a RUN (default: the newest), and write them to RUN/tuned.json.

    The times and weights of each solver are fitted to the run's own probability flow, so that its samples come close to
    those of a solver with many evaluations. `sample --solver tuned --steps N` uses them, for the same weights,
    condition and guidance only. With --labels, one fit serves all classes.

    A fit whose error on trajectories kept apart is not at most 0.8 times that of the best fixed solver is not written.
    """
    counts = sorted(set(whole_numbers("--nfe", nfe)))
    if condition.label is not None:
        raise UsageError("a solver is not fitted to a single class; use --labels instead of --label to fit it to all")
    run = session.loaded
    from ..core.progress import Progress
    from ..run.fitted import Fits
    from ..study.tune import APART
    from ..study.tune import tune as fit_all

    asked = _conditioned(run, condition, rows + APART, session.seed)
    asked.model  # noqa: B018  # report an invalid condition before anything else
    session.share_threads([run], batch, backward=True)
    session.say(f"fitting solvers with {', '.join(map(str, counts))} evaluations to {session.whence}")
    began = time.monotonic()
    with Progress(rows + APART, "teacher", quiet=session.quiet, every=math.inf) as progress:
        found, outcomes = fit_all(
            asked, counts, rows=rows, seed=session.seed, batch=batch, watch=progress.update,
            on_fit=lambda outcome: progress.note(str(outcome)),
        )  # fmt: skip
    if found is None:
        ratios = ", ".join(f"{one.fit.rms / one.fit.fixed_rms:.2f} for {one.fit.solver.steps}" for one in outcomes)
        raise NumericalError(
            f"no fit is at most 0.8 times the error of the best fixed solver ({ratios} evaluations), so nothing was "
            "written; fit fewer evaluations or more rows, or use multistep",
            parameter="rows", value=4 * rows,
        )  # fmt: skip
    with suppress(UsageError, CheckpointError):  # there is no earlier file, or it is not usable
        found = found.joined(Fits.read(session.folder))
    path = found.write(session.folder)
    facts = {
        "run": str(session.folder), "step": run.step, "rows": rows, "seed": session.seed, **condition.facts,
        "file": str(path), "steps": list(found.steps), "fits": [_facts(outcome) for outcome in outcomes],
        "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    session.print(facts, *_table(outcomes), "", _told(path, found, facts["seconds"]))


def _conditioned(run: Run, condition: Conditioning, count: int, seed: int) -> Run:
    """Return the run with a condition for each of ``count`` rows, and guided."""
    import torch

    if condition.given:
        return condition.guide(run.typical(count, seed))
    if condition.labels:
        if not run.info.classes:
            raise UsageError("--labels requires a run that was trained with classes; leave it out")
        return condition.each(run, torch.arange(count) % len(run.info.classes))
    return condition.all_of(run, count, seed)


def _facts(outcome: Outcome) -> dict[str, object]:
    fit = outcome.fit
    return {
        "steps": fit.solver.steps, "kept": outcome.kept, "rms": fit.rms, "median": fit.median, "fixed": fit.fixed,
        "fixed_rms": fit.fixed_rms, "fixed_median": fit.fixed_median, "multistep_rms": outcome.usual,
        "fitted_median": outcome.median, "start": outcome.start, "cpu_seconds": round(outcome.seconds, 2),
    }  # fmt: skip


def _table(outcomes: tuple[Outcome, ...]) -> list[str]:
    """Format the outcomes: rms / median of the distance to the converged solution on the rows kept apart."""
    lines = [f"{'evaluations':13}{'fitted':18}{'best fixed':18}{'multistep':11}"]
    for one in outcomes:
        fit = one.fit
        cells = f"{fit.rms:.4f} / {fit.median:.4f}", f"{fit.fixed_rms:.4f} / {fit.fixed_median:.4f}"
        note = fit.fixed if one.kept else f"{fit.fixed}; the fit is not good enough and was not written"
        lines.append(f"{fit.solver.steps:<13}{cells[0]:18}{cells[1]:18}{one.usual:<11.4f}{note}")
    return lines


def _told(path: object, found: Fits, seconds: object) -> str:
    return f"{path}  fitted for {', '.join(map(str, found.steps))} evaluations  {seconds:.1f} s"
