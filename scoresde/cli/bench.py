"""The command ``scoresde bench``."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import suppress
from pathlib import Path

from ..core.errors import CheckpointError, DataError, UsageError
from ..core.limits import COUNT, SEVERAL
from ..core.tables import GRIDS, SOLVERS
from .command import Whole, option, verb
from .common import Conditioning, Session, conditioning, in_list, out_option, session, whole_numbers

__all__ = ["bench"]


@verb(
    short_help="Compare solvers on a trained run.",
    epilog="Example:  scoresde bench runs/digits-vp --solvers ddim,dpm++2m,heun --nfe 5,10,20,50 --grid logsnr",
)
@option("--solvers", under="Solver", first=True, default="ddim,dpm++2m,unipc,deis,multistep,heun,ode,sde",
        metavar="NAMES", help=f"Solvers to compare: {', '.join(SOLVERS)}, or module:Class.")  # fmt: skip
@option("--nfe", under="Solver", first=True, default="5,10,20,50",
        help="Budgets of fixed-step solvers, in model evaluations.")  # fmt: skip
@option("--n", under="Samples", first=True, type=Whole(SEVERAL), default=128, help="Number of samples.")
@option("--grid", under="Solver", first=True, metavar="NAME",
        help=f"Time grid for fixed-step solvers: auto, {', '.join(GRIDS)}.")  # fmt: skip
@option("--batch", under="Samples", type=Whole(COUNT), default=256, help="Maximum number of samples per batch.")
@conditioning()
@out_option("RUN/bench")
@session(run=True)
def bench(
    solvers: str, nfe: str, n: int, grid: str | None, batch: int, condition: Conditioning, out: Path | None,
    session: Session,
) -> None:  # fmt: skip
    """Compare solvers on a trained RUN (default: the newest) at several budgets of model evaluations.

    The command measures how far each solver's samples are from the converged solution and from held-out data. It prints
    a table and the path to the figure.

    If solvers were fitted to the run with the command tune, they are compared, too, and marked as fitted.

    Fixed-step solvers run once for each number of model evaluations in --nfe. Adaptive solvers run with tolerances from
    0.1 down to 0.0001, or down to 0.01 if they are stochastic.
    """
    budgets = sorted(set(whole_numbers("--nfe", nfe)))
    from dataclasses import asdict

    from ..study.bench import bench as measure
    from ..study.bench import bench_table, plan, solvers_by_name, write_bench

    built = solvers_by_name(in_list(solvers), grid)
    plan(built, budgets)  # report a wrong option before anything else
    run = session.loaded
    from ..core.progress import Progress

    asked = condition.all_of(run, n, session.seed)
    asked.model  # noqa: B018  # report an invalid condition before reading the data
    with suppress(UsageError, CheckpointError):  # unless solvers were fitted to the run as it is conditioned
        if set(asked.fits.steps) & set(budgets):
            built |= solvers_by_name(["tuned"])
    count = len(plan(built, budgets)) + 1
    try:
        data = run.data()
    except DataError as error:
        warnings.warn(f"the distance to held-out data will not be measured: {error}", stacklevel=1)
        data = None
    session.say(f"comparing {', '.join(built)} with {n} samples from {session.whence}")
    began = time.monotonic()
    progress = Progress(count, "bench", quiet=session.quiet, every=math.inf)

    def on_row(row: object) -> None:
        progress.note(f"{progress.done + 1:3}/{count}  {row}")
        progress.update()

    with session.new_folder(out or session.folder / "bench") as folder:
        with progress:
            found = measure(asked, built, budgets, n=n, seed=session.seed, data=data, batch=batch, on_row=on_row)
        facts = {
            "run": str(session.folder), "step": run.step, "solvers": {name: repr(s) for name, s in built.items()},
            "nfe": budgets, "n": n, "seed": session.seed, **condition.facts, "batch": batch, "dtype": session.dtype,
            "device": str(run.device), "data": None if data is None else data.info.name,
            "converged": asdict(found.converged), "floor": None if found.floor is None else asdict(found.floor),
            "seconds": round(time.monotonic() - began, 2),
        }  # fmt: skip
        files = write_bench(folder, found, facts)
    session.print(
        {**facts, "rows": [asdict(row) for row in found.rows], "files": [str(f) for f in files]},
        f"{bench_table(found)}\n\n{files[0]}  {n} samples  {facts['seconds']:.1f} s  seed {session.seed}",
    )
