"""``scoresde bench``."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path

import click

from ..errors import DataError
from ..tables import GRIDS, SOLVERS
from .common import common_options, load_run, print_json, say, sde_option, verb, whole_numbers

__all__ = ["bench"]


@verb(
    short_help="Compare solvers on a run.",
    epilog="Example:  scoresde bench runs/digits-vp --solvers ddim,dpm++2m,heun --nfe 5,10,20,50 --grid logsnr",
)
@click.argument("run", required=False)
@click.option("--solvers", default="ddim,dpm++2m,unipc,deis,multistep,heun,ode,sde", show_default=True,
              help=f"{', '.join(SOLVERS)}, or module:Class.")  # fmt: skip
@click.option("--nfe", default="5,10,20,50", show_default=True, help="Evaluations of the fixed-step solvers.")
@click.option("--n", type=click.IntRange(2), default=128, show_default=True, help="Number of samples.")
@click.option("--grid", help=f"Time grid of the fixed-step solvers: auto, {', '.join(GRIDS)}.")
@click.option("--label", help="Class to draw, by name or number (a model trained with --cond class).")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale.")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Samples solved at once.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/bench]")
@sde_option("The run's SDE, if it is your own: module:Class.", None)
@common_options
def bench(
    run: str | None, solvers: str, nfe: str, n: int, grid: str | None, label: str | None, guidance: float, batch: int,
    out: Path | None, sde: str | None, seed: int, device: str, dtype: str, threads: int | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Solvers at several budgets on a trained RUN (default: the newest): how far is each from the converged
    solution, and from held-out data? Prints a table, and where the figure is.

    Fixed-step solvers get the evaluations of --nfe, adaptive ones tolerances from 0.1 to 0.0001 (0.01 if stochastic).
    """
    budgets = sorted(set(whole_numbers("--nfe", nfe)))
    from dataclasses import asdict

    from ..bench import bench as measure
    from ..bench import plan, solvers_by_name, table, write_bench

    built = solvers_by_name([s.strip() for s in solvers.split(",") if s.strip()], grid)
    count = len(plan(built, budgets)) + 1
    loaded = load_run(run, sde, device, threads, dtype)
    from ..files import new_folder
    from ..progress import Progress

    asked = loaded.given(label).guided(guidance)
    assert loaded.folder is not None
    try:
        data = loaded.data()
    except DataError as error:
        warnings.warn(f"there will be no distance to data: {error}", stacklevel=1)
        data = None
    say(quiet, f"comparing {', '.join(built)} on {n} samples from {loaded.folder} (step {loaded.step:,})")
    began = time.monotonic()
    progress = Progress(count, "bench", quiet=quiet, every=math.inf)

    def on_row(row: object) -> None:
        progress.note(f"{progress.done + 1:3}/{count}  {row}")
        progress.update()

    with new_folder(out or loaded.folder / "bench") as folder, progress:
        found = measure(asked, built, budgets, n=n, seed=seed, data=data, batch=batch, on_row=on_row)
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "solvers": {name: repr(s) for name, s in built.items()},
        "nfe": budgets, "n": n, "seed": seed, "label": label, "guidance": guidance, "batch": batch, "dtype": dtype,
        "device": str(loaded.device), "data": None if data is None else data.info.name,
        "converged": asdict(found.converged), "floor": None if found.floor is None else asdict(found.floor),
        "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    files = write_bench(folder, found, facts)
    if as_json:
        print_json({**facts, "rows": [asdict(row) for row in found.rows], "files": [str(f) for f in files]})
    else:
        click.echo(f"{table(found)}\n\n{files[0]}  {n} samples  {facts['seconds']:.1f} s  seed {seed}")
