"""``scoresde train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..build import build, closest, fields_of, resolve
from ..errors import UsageError
from ..tables import PARAMETRIZATIONS, PRESETS, SDES, TIME_SAMPLERS, WEIGHTINGS
from .common import common_options, dtype_of, prepare, print_json, say, sde_option, settings, verb

if TYPE_CHECKING:
    import torch

    from ..config import TrainConfig

__all__ = ["train"]


@verb(
    short_help="Train a model; prints the run folder.",
    epilog="\b\nExamples:\n  scoresde train --data photos/ --out runs/photos\n  scoresde train --sde mymodule:MySDE",
)
@sde_option(f"{', '.join(SDES)}, or module:Class of your own.", "vp")
@click.option("--data", default="digits", show_default=True, help="digits, a 2-D toy, or a path: images, IDX, npy.")
@click.option("--steps", type=click.IntRange(1), help="Training steps.  [default: by the preset]")
@click.option("--batch", type=click.IntRange(1), help="Batch size.  [default: by the preset]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: by the preset]")
@click.option("--preset", default="auto", show_default=True, help=f"Network size: auto, {', '.join(PRESETS)}.")
@click.option("--predict", default="auto", show_default=True, help=f"Output: auto, {', '.join(PARAMETRIZATIONS)}.")
@click.option("--weighting", default="auto", show_default=True, help=f"Loss: auto, {', '.join(WEIGHTINGS)}.")
@click.option("--t-sampler", default="auto", show_default=True, help=f"Times: auto, {', '.join(TIME_SAMPLERS)}.")
@click.option("--coupling", type=click.Choice(["independent", "ot"]), default="independent", show_default=True,
              help="Noise to data: any to any, or dealt out by optimal transport in each batch.")  # fmt: skip
@click.option("--shift", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Factor on sigma/alpha at every t: above 1 for large images.")  # fmt: skip
@click.option("--cond", type=click.Choice(["none", "class"]), default="none", show_default=True, help="Use labels.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/DATA-SDE]")
@click.option("--resume", metavar="RUN", help="Continue a run from its newest checkpoint (with its own settings).")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE",
              help="Any other setting: sde.beta_max=18, network.channels=64, weighting.gamma=5, clip=2.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the resolved settings, sizes and a time estimate; train nothing.")
@common_options
def train(
    sde: str, data: str, steps: int | None, batch: int | None, lr: float | None, preset: str, predict: str,
    weighting: str, t_sampler: str, coupling: str, shift: float, cond: str, out: Path | None, resume: str | None,
    assignments: tuple[str, ...], dry_run: bool, seed: int, device: str, dtype: str, threads: int | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train a model by denoising score matching; prints the run folder."""
    from dataclasses import replace

    chosen = prepare(device, threads)
    from ..checkpoint import find_run, newest_checkpoint, read_config
    from ..config import TrainConfig, build_sde, stored_fields
    from ..train import fit
    from ..weighting import make_weighting

    if resume is not None:
        _refuse_new_settings(resume)
        out = find_run(resume)
        config = TrainConfig.from_dict(read_config(out))
        config = _named_again(config, resume)
        if steps:
            config = replace(config, steps=steps)
    else:
        groups = settings(assignments, ("", "sde", "network", "predict", "weighting", "t_sampler"))
        names = {f.name for f in stored_fields()}
        for name in groups[""]:
            if name not in names:
                dotted = [f"sde.{f}" for f in fields_of(resolve(sde, SDES, "SDE", typed=True))]
                near = [d for d in dotted if d.endswith(f".{name}")]
                raise UsageError(f"no setting {name!r}; {f'did you mean {near[0]}?' if near else closest(name, names)}")
        config = TrainConfig(
            **{
                "data": data, "sde": sde, "sde_options": groups["sde"], "predict": predict,
                "predict_options": groups["predict"], "weighting": weighting, "weighting_options": groups["weighting"],
                "t_sampler": t_sampler, "t_sampler_options": groups["t_sampler"], "coupling": coupling,
                "shift": shift, "preset": preset,
                "network_options": groups["network"], "cond": cond, "steps": steps or 0, "batch": batch or 0,
                "lr": lr or 0.0, "seed": seed, **groups[""],
            }
        )  # fmt: skip
        # What is misspelt is said before the data are read.
        build_sde(config)
        if config.predict != "auto":
            build(config.predict, PARAMETRIZATIONS, "prediction", typed=True, **config.predict_options)
        if config.weighting != "auto":
            make_weighting(config.weighting, config.weighting_options, True)
    dataset = config.load_data()
    say(quiet, dataset.info.describe())
    if dry_run:
        _dry_run(config, dataset, chosen, as_json)
        return
    before = 0
    if resume is not None and out is not None:
        before = int(newest_checkpoint(out).name.removeprefix("step-"))
    began = time.monotonic()
    run = fit(
        config, data=dataset, out=out, resume=resume is not None, device=chosen, dtype=dtype_of(dtype), quiet=quiet
    )
    seconds = time.monotonic() - began
    if as_json:
        print_json({"run": str(run.folder), "step": run.step, "seconds": round(seconds, 1)})
    else:
        more = f", {run.step:,} in all" if before else ""
        say(quiet, f"trained {run.step - before:,} steps in {seconds:.0f} s{more}")
        say(quiet, f"samples during training: {run.folder}/samples/")
        click.echo(str(run.folder))


def _refuse_new_settings(run: str) -> None:
    """A resumed run keeps its settings: an option that would be ignored is refused."""
    named = ("sde", "predict", "weighting", "t_sampler")
    allowed = (*named, "resume", "steps", "dry_run", "device", "dtype", "threads", "as_json", "quiet")
    for option in click.get_current_context().command.params:
        if option.name not in allowed and _typed(option.name or "") is not None:
            raise UsageError(f"{option.opts[0]} cannot change a run that is resumed; {run} keeps its settings")


def _named_again(config: TrainConfig, run: str) -> TrainConfig:
    """A class in no table must be named by the user again; nothing else may change."""
    typed = {}
    for field in ("sde", "predict", "weighting", "t_sampler"):
        name = _typed(field)
        if name is not None and name != config.name(field):
            raise UsageError(
                f"--{field.replace('_', '-')} {name}: {run} was trained with {config.name(field)}, and a resumed run "
                "keeps it"
            )
        if name is not None:
            typed[field] = name
    return config.named(**typed)


def _typed(option: str) -> Any:
    """What was typed for an option, or None for its default."""
    context = click.get_current_context()
    source = context.get_parameter_source(option)
    return context.params[option] if source is click.core.ParameterSource.COMMANDLINE else None


def _dry_run(config: TrainConfig, dataset: Any, device: torch.device, as_json: bool) -> None:
    from dataclasses import replace

    from ..train import fit, prepared

    resolved, model, _ = prepared(config, dataset)
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
        print_json(facts)
        return
    for key, value in resolved.to_dict().items():
        click.echo(f"{key:16} {value}")
    click.echo(f"{'parameters':16} {size:,}")
    click.echo(f"{'time':16} about {facts['estimated_minutes']} minutes ({seconds * 1e3:.0f} ms a step on {device})")
