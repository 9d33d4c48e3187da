"""``scoresde sample``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..build import build, options_of, parse_value
from ..errors import NumericalError, UsageError
from ..tables import GRIDS, SDES, SOLVERS
from .common import common_options, load_run, print_json, say, sde_option, settings, verb

if TYPE_CHECKING:
    from ..progress import Progress
    from ..solvers import Step

__all__ = ["sample"]


@verb(
    short_help="Draw samples from a run.",
    epilog="Example:  scoresde sample runs/digits-vp --solver pc --steps 500 --snr 0.16 --n 100",
)
@click.argument("run", required=False)
@click.option("--solver", default="ode", show_default=True, help=f"{', '.join(SOLVERS)}, or module:Class.")
@click.option("--n", type=click.IntRange(1), default=64, show_default=True, help="Number of samples.")
@click.option("--steps", type=click.IntRange(1), help="Steps of a fixed-step solver.")
@click.option("--rtol", type=click.FloatRange(0, min_open=True), help="Relative tolerance of an adaptive solver.")
@click.option("--atol", type=click.FloatRange(0), help="Absolute tolerance.  [default: as rtol]")
@click.option("--snr", type=click.FloatRange(0, min_open=True), help="Signal-to-noise ratio of the Langevin corrector.")
@click.option("--eta", type=click.FloatRange(0), help="Factor on the noise of a stochastic solver.")
@click.option("--churn", type=click.FloatRange(0), help="Noise that the solver edm puts in on its way.")
@click.option("--order", help="Order of a multistep solver; of pc: pc or cp.")
@click.option("--grid", help=f"Time grid: auto, {', '.join(GRIDS)}, or the times: 1,0.5,0.1,0.001.")
@click.option("--engine", help="Integrator: own, torchdiffeq, scipy (solver ode); torchsde.")
@click.option("--method", help="Method of the engine, such as dopri5, bosh3, dopri8, RK45; or of torchsde.")
@click.option("--set", "assignments", multiple=True, metavar="solver.NAME=VALUE", help="Any other solver option.")
@click.option("--label", help="Class to draw, by name or number (a model trained with --cond class).")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale.")
@click.option("--denoise/--no-denoise", default=True, show_default=True, help="End with a noise-free step.")
@click.option("--brownian", is_flag=True, help="Noise that stays the same when the number of steps changes.")
@click.option("--path", help=f"Another path to sample on: {', '.join(SDES)}, or module:Class.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="Index of the first sample.")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Samples solved at once.")
@click.option("--save", default="png,npz", show_default=True, help="Files to write: png, npz, gif, path (as arrays).")
@click.option("--frames", type=click.IntRange(2), default=40, show_default=True, help="Frames of gif and path.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/samples/SOLVER-seedN]")
@sde_option("The run's SDE, if it is your own: module:Class.", None)
@common_options
def sample(
    run: str | None, solver: str, n: int, steps: int | None, rtol: float | None, atol: float | None, snr: float | None,
    eta: float | None, churn: float | None, order: str | None, grid: str | None, engine: str | None,
    method: str | None, assignments: tuple[str, ...], label: str | None, guidance: float, denoise: bool, brownian: bool,
    path: str | None, start: int, batch: int, save: str, frames: int, out: Path | None, sde: str | None, seed: int,
    device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Draw samples from a trained RUN (default: the newest); prints where the picture is."""
    if engine == "torchsde":
        chosen = click.get_current_context().get_parameter_source("solver") is click.core.ParameterSource.COMMANDLINE
        if chosen and solver != "torchsde":
            raise UsageError(f"--engine torchsde solves the reverse SDE itself; leave --solver {solver} out")
        solver, engine = "torchsde", None
    typed: dict[str, Any] = {
        "steps": steps, "rtol": rtol, "atol": atol, "snr": snr, "eta": eta,
        "churn": churn, "order": None if order is None else parse_value(order), "grid": grid, "engine": engine,
        "method": method,
    }  # fmt: skip
    options = {name: value for name, value in typed.items() if value is not None}
    options |= settings(assignments, ("solver",))["solver"]
    if steps is not None and grid is not None and "," in grid:
        raise UsageError(f"--steps {steps}: the times given by --grid are the steps; leave --steps out")
    built = build(solver, SOLVERS, "solver", typed=True, **options)
    loaded = load_run(run, sde, device, threads, dtype)
    from ..files import new_folder
    from ..gallery import check_kinds, write_samples
    from ..progress import Progress

    kinds = check_kinds([s.strip() for s in save.split(",") if s.strip()])
    given = click.get_current_context().get_parameter_source("frames") is click.core.ParameterSource.COMMANDLINE
    if given and not {"gif", "path"} & set(kinds):
        raise UsageError(f"--frames {frames} is for --save gif and --save path; say --save {save},gif")
    asked = loaded.given(label).guided(guidance).on(path)
    assert loaded.folder is not None
    name = solver.rpartition(":")[2].lower()
    say(quiet, f"sampling {n} with {name} from {loaded.folder} (step {loaded.step:,})")
    began = time.monotonic()
    # The folder first: a name that cannot be written should not cost the samples.
    default = loaded.folder / "samples" / f"{name}-seed{seed}"
    with new_folder(out or default) as folder, Progress(n, "sample", quiet=quiet) as progress:
        samples = asked.sample(
            n, built, seed=seed, start=start, denoise=denoise, batch=batch, brownian=brownian,
            watch=_meter(progress, batch), record=bool({"gif", "path"} & set(kinds)),
        )  # fmt: skip
    seconds = time.monotonic() - began
    solution = samples.solution
    nfe = solution.nfe.double()
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "solver": name, "options": options_of(built), "n": n,
        "seed": seed, "start": start, "label": label, "guidance": guidance, "denoise": denoise, "brownian": brownian,
        "path": path,
        "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
        "accepted_mean": round(float(solution.accepted.double().mean()), 2),
        "rejected_mean": round(float(solution.rejected.double().mean()), 2),
        "failed": (~solution.ok).nonzero().flatten().tolist(), "seconds": round(seconds, 2),
    }  # fmt: skip
    # Other people's integrators do not tell how many steps they took.
    counted = f"steps {facts['accepted_mean']:g} accepted, {facts['rejected_mean']:g} rejected  "
    counted = counted if facts["accepted_mean"] else ""
    moving = loaded.frames(samples, frames) if samples.solution.trajectory is not None else None
    files = write_samples(folder, samples, loaded.info, facts, kinds, moving)
    if as_json:
        print_json({**facts, "files": [str(f) for f in files]})
    else:
        click.echo(
            f"{files[0] if files else folder}  {n} samples  NFE mean {facts['nfe_mean']:g} max {facts['nfe_max']}  "
            f"{counted}{seconds:.1f} s  seed {seed}"
        )
    if solution.failures():
        raise NumericalError("; ".join(solution.failures()) + f". The others are in {folder}.")


def _meter(progress: Progress, batch: int) -> Callable[[Step], None]:
    """A watcher that counts samples: those of the batches that are done, and a part of those on their way."""

    def watch(step: Step) -> None:
        first = int(step.index[0]) // batch * batch
        now = first + int(min(batch, progress.total - first) * step.done)
        progress.update(max(0, now - progress.done))

    return watch
