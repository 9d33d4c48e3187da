"""The command line: parse, call, print. No mathematics here, and no torch before a command runs.

Standard output carries results, standard error talks. Exit codes are those of :mod:`scoresde.errors`.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .build import closest, fields_of, parse_value, resolve
from .errors import CheckpointError, DataError, NumericalError, ScoresdeError, UsageError
from .tables import GRIDS, NETWORKS, PARAMETRIZATIONS, PRESETS, SDES, SOLVERS, WEIGHTINGS
from .version import __version__

if TYPE_CHECKING:
    import torch

    from .config import TrainConfig
    from .progress import Progress
    from .run import Run
    from .solvers import Step

__all__ = ["cli", "main"]

F = TypeVar("F", bound=Callable[..., Any])


class _Group(click.Group):
    """A group that helps with a misspelt command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}; {closest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="scoresde")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Score-based generative models in continuous time: train, sample, score.

    \b
    scoresde train --sde vp                      # the embedded digits, a few minutes on a CPU
    scoresde sample --solver ode --rtol 1e-5     # from the newest run
    scoresde likelihood                          # bits/dim of held-out data
    """


def _common(command: F) -> F:
    """The options that mean the same in every command."""
    for option in reversed(
        (
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1."),
            click.option(
                "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True,
                help="Precision of weights and states.",
            ),
            click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]"),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
            click.option("--quiet", is_flag=True, help="No progress on standard error."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _sde_option(help_text: str, default: str | None) -> Callable[[F], F]:
    return click.option("--sde", default=default, show_default=default is not None, metavar="NAME", help=help_text)


def _prepare(device: str, threads: int | None) -> torch.device:
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = "there is no such device" if "Expected one of" in str(error) else str(error).splitlines()[0]
        raise UsageError(f"device {device!r} cannot be used: {reason}; try --device cpu") from None
    return chosen


def _dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _settings(assignments: tuple[str, ...], groups: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``("sde.beta_max=18", "clip=2")`` to ``{"sde": {"beta_max": 18}, "": {"clip": 2}}``; group "" has no dot."""
    found: dict[str, dict[str, Any]] = {g: {} for g in groups}
    for text in assignments:
        key, equals, value = text.partition("=")
        group, _, name = key.strip().rpartition(".")
        if not equals or group not in found:
            kinds = ", ".join(f"{g}.NAME=VALUE" if g else "NAME=VALUE" for g in groups)
            raise UsageError(f"--set {text}: it takes {kinds}")
        found[group][name] = parse_value(value)
    return found


# ------------------------------------------------------------------------------------------------------------- train


@cli.command(
    short_help="Train a model; prints the run folder.",
    epilog="\b\nExamples:\n  scoresde train --data photos/ --out runs/photos\n  scoresde train --sde mymodule:MySDE",
)
@_sde_option(f"{', '.join(SDES)}, or module:Class of your own.", "vp")
@click.option("--data", default="digits", show_default=True, help="digits, a 2-D toy, or a path: images, IDX, npz.")
@click.option("--steps", type=click.IntRange(1), help="Training steps.  [default: by the preset]")
@click.option("--batch", type=click.IntRange(1), help="Batch size.  [default: by the preset]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: by the preset]")
@click.option("--preset", default="auto", show_default=True, help=f"Network size: auto, {', '.join(PRESETS)}.")
@click.option("--predict", default="auto", show_default=True, help=f"Output: auto, {', '.join(PARAMETRIZATIONS)}.")
@click.option("--weighting", default="auto", show_default=True, help=f"Loss: auto, {', '.join(WEIGHTINGS)}.")
@click.option("--cond", type=click.Choice(["none", "class"]), default="none", show_default=True, help="Use labels.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/DATA-SDE]")
@click.option("--resume", metavar="RUN", help="Continue a run from its newest checkpoint (with its own settings).")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE",
              help="Any other setting: sde.beta_max=18, network.channels=64, clip=2.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the resolved settings, sizes and a time estimate; train nothing.")
@_common
def train(
    sde: str, data: str, steps: int | None, batch: int | None, lr: float | None, preset: str, predict: str,
    weighting: str, cond: str, out: Path | None, resume: str | None, assignments: tuple[str, ...], dry_run: bool,
    seed: int, device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train a model by denoising score matching; prints the run folder."""
    from dataclasses import fields, replace

    chosen = _prepare(device, threads)
    from .checkpoint import find_run, read_config
    from .config import TrainConfig
    from .data import load_data
    from .train import fit

    if resume is not None:
        _refuse_new_settings(resume)
        out = find_run(resume)
        config = TrainConfig.from_dict(read_config(out))
        if click.get_current_context().get_parameter_source("sde") is click.core.ParameterSource.COMMANDLINE:
            # A class in no table must be named by the user again; nothing else may change.
            if sde != config.sde:
                raise UsageError(f"--sde {sde}: {resume} was trained with {config.sde}, and a resumed run keeps it")
        if steps:
            config = replace(config, steps=steps)
        _refuse_foreign(config, sde)
    else:
        groups = _settings(assignments, ("", "sde", "network", "predict"))
        names = {f.name for f in fields(TrainConfig)}
        for name in groups[""]:
            if name not in names:
                dotted = [f"sde.{f}" for f in fields_of(resolve(sde, SDES, "SDE"))]
                near = [d for d in dotted if d.endswith(f".{name}")]
                raise UsageError(f"no setting {name!r}; {f'did you mean {near[0]}?' if near else closest(name, names)}")
        config = TrainConfig(
            **{
                "data": data, "sde": sde, "sde_options": groups["sde"], "predict": predict,
                "predict_options": groups["predict"], "weighting": weighting, "preset": preset,
                "network_options": groups["network"], "cond": cond, "steps": steps or 0, "batch": batch or 0,
                "lr": lr or 0.0, "seed": seed, **groups[""],
            }
        )  # fmt: skip
    dataset = load_data(config.data, config.seed, config.test_fraction)
    _say(quiet, dataset.info.describe())
    if dry_run:
        _dry_run(config, dataset, chosen, as_json)
        return
    began = time.monotonic()
    run = fit(config, data=dataset, out=out, resume=resume is not None, device=chosen, dtype=_dtype(dtype), quiet=quiet)
    seconds = time.monotonic() - began
    if as_json:
        _print_json({"run": str(run.folder), "step": run.step, "seconds": round(seconds, 1)})
    else:
        _say(quiet, f"trained {run.step:,} steps in {seconds:.0f} s; samples during training: {run.folder}/samples/")
        click.echo(str(run.folder))


def _refuse_new_settings(run: str) -> None:
    """A resumed run keeps its settings: an option that would be ignored is refused."""
    allowed = ("resume", "steps", "sde", "dry_run", "device", "dtype", "threads", "as_json", "quiet")
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name not in allowed and source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"{option.opts[0]} cannot change a run that is resumed; {run} keeps its settings")


def _refuse_foreign(config: TrainConfig, typed: str) -> None:
    """A name from a file imports nothing: what no table lists must be typed again."""
    for what, name, table in (
        ("prediction", config.predict, PARAMETRIZATIONS),
        ("weighting", config.weighting, WEIGHTINGS),
        ("network", config.network_options.get("network", "unet"), NETWORKS),
    ):
        if name not in table:
            raise CheckpointError(
                f"the run was trained with the {what} {name}, which is in no table, and a name from a file is never "
                "imported; resume it in Python: scoresde.fit(config, out=RUN, resume=True)"
            )
    if isinstance(config.sde, str) and config.sde not in SDES and config.sde != typed:
        raise CheckpointError(
            f"the run was trained with the SDE {config.sde}, which is in no table, and a name from a file is never "
            f"imported; name it again: --sde {config.sde}"
        )


def _dry_run(config: TrainConfig, dataset: Any, device: torch.device, as_json: bool) -> None:
    from dataclasses import replace

    from .train import fit, prepared

    resolved, model = prepared(config, dataset)
    fit(replace(resolved, steps=1, warmup=1), data=dataset, save=False, device=device, quiet=True)
    began = time.monotonic()
    fit(replace(resolved, steps=4, warmup=1), data=dataset, save=False, device=device, quiet=True)
    seconds = (time.monotonic() - began) / 4
    size = sum(p.numel() for p in model.parameters())
    facts = {
        "config": resolved.to_dict(),
        "parameters": size,
        "seconds_per_step": round(seconds, 4),
        "estimated_minutes": round(seconds * resolved.steps / 60, 1),
    }
    if as_json:
        _print_json(facts)
        return
    for key, value in resolved.to_dict().items():
        click.echo(f"{key:16} {value}")
    click.echo(f"{'parameters':16} {size:,}")
    click.echo(f"{'time':16} about {facts['estimated_minutes']} minutes ({seconds * 1e3:.0f} ms a step on {device})")


# ------------------------------------------------------------------------------------------------------------ sample


@cli.command(
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
@click.option("--engine", help="Integrator of the solver ode: own, torchdiffeq, scipy.")
@click.option("--method", help="Method of the engine, such as dopri5, bosh3, dopri8, RK45; or of torchsde.")
@click.option("--set", "assignments", multiple=True, metavar="solver.NAME=VALUE", help="Any other solver option.")
@click.option("--label", help="Class to draw, by name or number (a model trained with --cond class).")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale.")
@click.option("--denoise/--no-denoise", default=True, show_default=True, help="End with a noise-free step.")
@click.option("--brownian", is_flag=True, help="Noise that stays the same when the number of steps changes.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="Index of the first sample.")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Samples solved at once.")
@click.option("--save", default="png,npz", show_default=True, help="Files to write: png, npz, gif, path (as arrays).")
@click.option("--frames", type=click.IntRange(2), default=40, show_default=True, help="Frames of gif and path.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/samples/SOLVER-seedN]")
@_sde_option("The run's SDE, if it is your own: module:Class.", None)
@_common
def sample(
    run: str | None, solver: str, n: int, steps: int | None, rtol: float | None, atol: float | None, snr: float | None,
    eta: float | None, churn: float | None, order: str | None, grid: str | None, engine: str | None,
    method: str | None, assignments: tuple[str, ...], label: str | None, guidance: float, denoise: bool, brownian: bool,
    start: int, batch: int, save: str, frames: int, out: Path | None, sde: str | None, seed: int,
    device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Draw samples from a trained RUN (default: the newest); prints where the picture is."""
    from .build import build

    typed: dict[str, Any] = {
        "steps": steps, "rtol": rtol, "atol": rtol if atol is None else atol, "snr": snr, "eta": eta,
        "churn": churn, "order": None if order is None else parse_value(order), "grid": grid, "engine": engine,
        "method": method,
    }  # fmt: skip
    options = {name: value for name, value in typed.items() if value is not None}
    options |= _settings(assignments, ("solver",))["solver"]
    if steps is not None and grid is not None and "," in grid:
        raise UsageError(f"--steps {steps}: the times given by --grid are the steps; leave --steps out")
    built = build(solver, SOLVERS, "solver", **options)
    loaded = _load(run, sde, device, threads, dtype)
    from .build import options_of
    from .gallery import check_kinds, numbered_folder, write_samples
    from .progress import Progress

    kinds = check_kinds([s.strip() for s in save.split(",") if s.strip()])
    given = click.get_current_context().get_parameter_source("frames") is click.core.ParameterSource.COMMANDLINE
    if given and not {"gif", "path"} & set(kinds):
        raise UsageError(f"--frames {frames} is for --save gif and --save path; say --save {save},gif")
    labels = None if label is None else _label(loaded, label)
    assert loaded.folder is not None
    name = solver.rpartition(":")[2].lower()
    # The folder first: a name that cannot be written should not cost the samples.
    folder = numbered_folder(*((out.parent, out.name) if out else (loaded.folder / "samples", f"{name}-seed{seed}")))
    _say(quiet, f"sampling {n} with {name} from {loaded.folder} (step {loaded.step:,})")
    began = time.monotonic()
    try:
        with Progress(n, "sample", quiet=quiet) as progress:
            samples = loaded.sample(
                n, built, seed=seed, start=start, labels=labels, guidance=guidance, denoise=denoise, batch=batch,
                brownian=brownian, watch=_meter(progress, batch), record=bool({"gif", "path"} & set(kinds)),
            )  # fmt: skip
    except BaseException:
        folder.rmdir()  # still empty
        raise
    seconds = time.monotonic() - began
    solution = samples.solution
    nfe = solution.nfe.double()
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "solver": name, "options": options_of(built), "n": n,
        "seed": seed, "start": start, "label": label, "guidance": guidance, "denoise": denoise, "brownian": brownian,
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
        _print_json({**facts, "files": [str(f) for f in files]})
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


def _label(run: Run, text: str) -> int:
    if not run.model.classes:
        raise UsageError(f"--label {text}: {run.folder} was trained without labels; train with --cond class")
    names = list(run.info.classes)
    if text in names:
        return names.index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise UsageError(f"no class {text!r}; {closest(text, names)}")


def _load(run: str | None, sde: str | None, device: str, threads: int | None, dtype: str) -> Run:
    chosen = _prepare(device, threads)
    from .build import resolve
    from .run import load

    given = None if sde is None else resolve(sde, SDES, "SDE")
    return load(run, sde=given, device=chosen, dtype=_dtype(dtype))


# ------------------------------------------------------------------------------------------------------------- bench


@cli.command(
    short_help="Compare solvers on a run.",
    epilog="Example:  scoresde bench runs/digits-vp --solvers ddim,dpm++2m,heun --nfe 5,10,20,50 --grid logsnr",
)
@click.argument("run", required=False)
@click.option("--solvers", default="ddim,dpm++2m,unipc,deis,multistep,heun,ode,sde", show_default=True,
              help=f"{', '.join(SOLVERS)}, or module:Class.")  # fmt: skip
@click.option("--nfe", default="5,10,20,50", show_default=True, help="Evaluations of the fixed-step solvers.")
@click.option("--n", type=click.IntRange(2), default=256, show_default=True, help="Number of samples.")
@click.option("--grid", help=f"Time grid of the fixed-step solvers: auto, {', '.join(GRIDS)}.")
@click.option("--label", help="Class to draw, by name or number (a model trained with --cond class).")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale.")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Samples solved at once.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/bench]")
@_sde_option("The run's SDE, if it is your own: module:Class.", None)
@_common
def bench(
    run: str | None, solvers: str, nfe: str, n: int, grid: str | None, label: str | None, guidance: float, batch: int,
    out: Path | None, sde: str | None, seed: int, device: str, dtype: str, threads: int | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Solvers at several budgets on a trained RUN (default: the newest): how far is each from the converged
    solution, and from held-out data? Prints a table, and where the figure is.

    Fixed-step solvers get the evaluations of --nfe, adaptive ones tolerances from 0.1 to 0.0001 (0.01 if stochastic).
    """
    budgets = sorted(set(_whole_numbers("--nfe", nfe)))
    from dataclasses import asdict

    from .bench import bench as measure
    from .bench import plan, solvers_by_name, table, write_bench

    built = solvers_by_name([s.strip() for s in solvers.split(",") if s.strip()], grid)
    count = len(plan(built, budgets)) + 1
    loaded = _load(run, sde, device, threads, dtype)
    from .data import load_data
    from .gallery import numbered_folder
    from .progress import Progress

    number = None if label is None else _label(loaded, label)
    assert loaded.folder is not None
    try:
        data = load_data(loaded.config.data, loaded.config.seed, loaded.config.test_fraction)
    except DataError as error:
        warnings.warn(f"there will be no distance to data: {error}", stacklevel=1)
        data = None
    folder = numbered_folder(*((out.parent, out.name) if out else (loaded.folder, "bench")))
    _say(quiet, f"comparing {', '.join(built)} on {n} samples from {loaded.folder} (step {loaded.step:,})")
    began = time.monotonic()
    try:
        with Progress(count, "bench", quiet=quiet, every=math.inf) as progress:

            def on_row(row: object) -> None:
                progress.note(f"{progress.done + 1:3}/{count}  {row}")
                progress.update()

            found = measure(
                loaded, built, budgets, n=n, seed=seed, data=data, label=number, guidance=guidance, batch=batch,
                on_row=on_row,
            )  # fmt: skip
    except BaseException:
        folder.rmdir()  # still empty
        raise
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "solvers": {name: repr(s) for name, s in built.items()},
        "nfe": budgets, "n": n, "seed": seed, "label": label, "guidance": guidance, "batch": batch, "dtype": dtype,
        "device": str(loaded.device), "data": None if data is None else data.info.name,
        "converged": asdict(found.converged), "floor": None if found.floor is None else asdict(found.floor),
        "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    files = write_bench(folder, found, facts)
    if as_json:
        _print_json({**facts, "rows": [asdict(row) for row in found.rows], "files": [str(f) for f in files]})
    else:
        click.echo(f"{table(found)}\n\n{files[0]}  {n} samples  {facts['seconds']:.1f} s  seed {seed}")


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text!r}: it takes whole numbers above 0, such as 5,10,20,50")
    return [int(part) for part in parts]


# -------------------------------------------------------------------------------------------------------- likelihood


@cli.command(
    short_help="Score data under a run.",
    epilog="Example:  scoresde likelihood runs/photos --data photos_test/ --probes 4",
)
@click.argument("run", required=False)
@click.option("--data", help="Data to score.  [default: what the run was trained on]")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Part to score.")
@click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="Score so many (0: all).")
@click.option("--probes", type=click.IntRange(1), default=1, show_default=True, help="Hutchinson probes per sample.")
@click.option("--divergence", type=click.Choice(["auto", "exact", "hutchinson"]), default="auto", show_default=True,
              help="auto: exact up to 16 dimensions.")  # fmt: skip
@click.option("--rtol", type=click.FloatRange(0, min_open=True), default=1e-5, show_default=True,
              help="Relative tolerance.")  # fmt: skip
@click.option("--atol", type=click.FloatRange(0), help="Absolute tolerance.  [default: as rtol]")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Samples solved at once.")
@click.option("--labels", is_flag=True, help="Condition on the data's labels (a model trained with --cond class).")
@_sde_option("The run's SDE, if it is your own: module:Class.", None)
@_common
def likelihood(
    run: str | None, data: str | None, split: str, limit: int, probes: int, divergence: str, rtol: float,
    atol: float | None, batch: int, labels: bool, sde: str | None, seed: int, device: str, dtype: str,
    threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Exact likelihood of data under a trained RUN (default: the newest), in bits/dim or nats."""
    loaded = _load(run, sde, device, threads, dtype)
    from .data import load_data
    from .progress import Progress
    from .run import join

    dataset = load_data(data or loaded.config.data, loaded.config.seed, loaded.config.test_fraction)
    theirs, ours = dataset.info, loaded.info
    if (theirs.low, theirs.high, theirs.levels) != (ours.low, ours.high, ours.levels) and ours.levels is not None:
        kind = f"{theirs.levels} levels" if theirs.levels else "continuous values"
        raise DataError(
            f"{theirs.name} has {kind} in [{theirs.low:g}, {theirs.high:g}], the run was trained on "
            f"{ours.levels} levels in [{ours.low:g}, {ours.high:g}]: their bits/dim would not mean the same"
        )
    x, y = (dataset.test, dataset.test_labels) if split == "test" else (dataset.train, dataset.train_labels)
    total = len(x)
    x, y = (x[:limit], None if y is None else y[:limit]) if limit else (x, y)
    if labels and (y is None or theirs.classes != ours.classes):
        raise UsageError(
            f"--labels: {theirs.name} has the classes {', '.join(theirs.classes) or '(none)'}, the run was trained on "
            f"{', '.join(ours.classes) or '(none)'}"
        )
    _say(quiet, f"scoring {len(x):,} of {total:,} {split} samples of {theirs.name} under {loaded.folder}")
    began = time.monotonic()
    pieces = []
    with Progress(len(x), "likelihood", quiet=quiet) as progress:
        for i in range(0, len(x), batch):
            part = slice(i, i + batch)
            scored = loaded.log_likelihood(
                x[part], labels=y[part] if labels and y is not None else None, divergence=divergence,
                probes=probes, rtol=rtol, atol=rtol if atol is None else atol, seed=seed, start=i, batch=batch,
            )  # fmt: skip
            pieces.append(scored)
            progress.update(len(x[part]), {pieces[-1].unit: pieces[-1].mean()})
    scores = join(pieces)
    nfe = scores.model.nfe.double()
    exact = divergence == "exact" or (divergence == "auto" and bool((scores.model.stderr == 0).all()))
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "unit": scores.unit, "mean": scores.mean(),
        "stderr": scores.stderr(), "n": int(scores.model.ok.sum()), "of": total, "split": split, "data": theirs.name,
        "dequantisation": "uniform" if ours.levels else "none", "divergence": "exact" if exact else "hutchinson",
        "probes": None if exact else probes, "rtol": rtol, "t_min": loaded.model.t_min,
        "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
        "failed": int((~scores.model.ok).sum()), "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    if as_json:
        _print_json(facts)
    else:
        how = "exact divergence" if exact else f"{probes} probe{'s' if probes > 1 else ''}"
        dequantised = ", uniform dequantisation" if ours.levels else ""
        click.echo(
            f"{scores.mean():.4f} ± {scores.stderr():.4f} {scores.unit}  "
            f"(n = {facts['n']:,} of {total:,} {split} samples{dequantised}, {how}, "
            f"rtol {rtol:g}, NFE mean {facts['nfe_mean']:g} max {facts['nfe_max']})"
        )
    if scores.model.failures():
        raise NumericalError("; ".join(scores.model.failures()))


# -------------------------------------------------------------------------------------------------------------- info


@cli.command(short_help="Say what a run is.")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(run: str | None, as_json: bool) -> None:
    """What a RUN is (default: the newest): SDE, network, data, steps, last loss."""
    from .checkpoint import find_run, newest_checkpoint, read_config, read_json, read_lines, read_tensors

    folder = find_run(run)
    from .config import TrainConfig
    from .data import DataInfo

    config, data = TrainConfig.from_dict(read_config(folder)).to_dict(), read_json(folder / "data.json")
    described = DataInfo.from_dict(data).describe()
    checkpoint = newest_checkpoint(folder)
    lines = read_lines(folder / "metrics.jsonl")
    facts: dict[str, Any] = {
        "run": str(folder),
        "checkpoint": str(checkpoint),
        "step": read_json(checkpoint / "state.json")["step"],
        "parameters": sum(v.numel() for v in read_tensors(checkpoint / "ema.safetensors").values()),
        "last_loss": lines[-1]["loss"] if lines else math.nan,
        "config": config,
        "data": data,
    }
    if as_json:
        _print_json(facts)
        return
    for key in ("run", "checkpoint", "step", "parameters", "last_loss"):
        value = facts[key]
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
        click.echo(f"{key:12} {text}")
    click.echo(f"{'sde':12} {config['sde']} {config['sde_options'] or ''}".rstrip())
    click.echo(f"{'predict':12} {config['predict']} {config['predict_options'] or ''}".rstrip())
    click.echo(f"{'network':12} {config['preset']} {config['network_options'] or ''}".rstrip())
    for key in ("cond", "steps", "batch", "lr", "seed"):
        click.echo(f"{key:12} {config[key]}")
    click.echo(described)


# -------------------------------------------------------------------------------------------------------------- main


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        click.echo(text, err=True)


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(_strict(content), default=str))


def _strict(value: Any) -> Any:
    """NaN and infinity, which JSON has not, become null."""
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened."""
    warnings.showwarning = _warn
    debug = "--debug" in (sys.argv[1:] if args is None else args)
    args = [a for a in (sys.argv[1:] if args is None else args) if a != "--debug"]
    try:
        code = cli.main(args=args, prog_name="scoresde", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        if debug:
            raise
        error.show()
        sys.exit(error.exit_code)
    except ScoresdeError as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        click.echo(f"unexpected error: {type(error).__name__}: {error}\n(--debug shows the traceback)", err=True)
        sys.exit(1)
