"""The command ``scoresde train``."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import UsageError
from ..core.limits import COUNT, FRACTION, LR, SEED, TRAINED, Range, check_number
from ..core.parallel import ranks
from ..core.registry import build, closest, resolve
from ..core.tables import NETWORKS, PARAMETRIZATIONS, PRESETS, RATES, SDES, SPACES, TIME_SAMPLERS, WEIGHTINGS
from .command import Fields, Real, Whole, option, settings, verb
from .common import (
    Session,
    builds,
    edited_option,
    in_list,
    out_option,
    reading_options,
    sde_option,
    session,
    set_option,
)

if TYPE_CHECKING:
    from ..data import Dataset, Reading
    from ..run.config import TrainConfig
    from ..study.features import Extractor
    from ..train.frechet import Features

__all__ = ["train"]

# The fields of TrainConfig itself, without the options of the parts, which have their own groups.
SETTINGS = Fields(
    "", "training configuration", {"": "scoresde.run.config:TrainConfig"},
    hidden=("typed", "sde_options", "predict_options", "weighting_options", "t_sampler_options", "network_options",
            "decay_options"),
)  # fmt: skip
PARTS = (
    Fields("sde", "SDE", SDES, "sde"),
    Fields("network", "network", NETWORKS, "network", hidden=("dims", "channels_in", "classes", "outputs", "augments")),
    Fields("predict", "prediction", PARAMETRIZATIONS, "predict"),
    Fields("weighting", "weighting", WEIGHTINGS, "weighting"),
    Fields("t_sampler", "time sampler", TIME_SAMPLERS, "t_sampler"),
)
# Its name is a field of the configuration, and not an option.
DECAY = Fields("decay", "decay of the learning rate", RATES)

FREE = (
    "frechet_every",
    "recompute",
    "snapshots",
    "workers",
)  # settings without an option that may change when a run is resumed


@verb(
    short_help="Train a model.",
    epilog="Examples:\n  scoresde train --data photos/ --out runs/photos\n"
    "  scoresde train --data photos/ --cond hole/pool:4\n  scoresde train --sde mymodule:MySDE",
)
@option("--config", "config_file", under="Files", first=True, metavar="FILE",
        help="Settings from a TOML or JSON file, or those of a run. Other options take precedence.")  # fmt: skip
@option("--data", under="Data", first=True, default="digits",
        help="Training data: digits, tinted, captions, a 2-D toy set, or the path to an image folder or to a csv, npy, "
             "npz or IDX file.")  # fmt: skip
@option("--augment", under="Data", default="none", metavar="KINDS",
        help="Augmentation of images: none, all, or any of flip, vflip, scale, shift. The network receives the "
             "parameters of the augmentation as input.")  # fmt: skip
@option("--cond", under="Data", first=True, default="none", metavar="TEXT",
        help="What the model is conditioned on: class, vector (numbers; vector:age,dose for columns of a table), image "
             "(another image), text, or a measurement of the sample. The measurement operators are cells (random "
             "values are missing), hole, half, mask:FILE, pool:K (low resolution), grey, crop, blur, noise:S, jpeg:Q "
             "and module:Class. Join conditions with +; hole/pool:4 trains one model for both operators. The whole "
             "condition is dropped in training with the probability --cond-drop (0.1 by default).")  # fmt: skip
@option("--cond-drop", under="Data", type=Real(FRACTION), default=0.1,
        help="Probability of dropping the whole condition of a sample, for guidance and for samples without a "
             "condition; 0 trains for the condition only.")  # fmt: skip
@reading_options()
@sde_option
@option("--space", under="Path", default="none", metavar="TEXT",
        help=f"Coordinates in which the path is stated: none, {', '.join(SPACES)}, or module:Class. Join spaces with "
             "+, and set the first option after a colon, as in log+basis:dct.")  # fmt: skip
@option("--shift", under="Path", type=Real(Range(1e-6, 1e6)), default=1.0,
        help="Multiply sigma/alpha by this factor at every t; use a factor above 1 for large images.")  # fmt: skip
@option("--coupling", under="Path", type=click.Choice(["independent", "ot"]), default="independent",
        help="How to pair noise with data: independently, or by optimal transport (ot) within each batch.")  # fmt: skip
@option("--preset", under="Network", first=True, default="auto", help=f"Network size: auto, {', '.join(PRESETS)}.")
@option("--network", under="Network", metavar="NAME",
        help=f"Network: {', '.join(NETWORKS)}, or module:Class.  [default: set by the preset]")  # fmt: skip
@option("--predict", under="Network", default="auto", metavar="NAME",
        help=f"What the network predicts: auto, {', '.join(PARAMETRIZATIONS)}.")  # fmt: skip
@option("--weighting", under="Loss", default="auto", metavar="NAME",
        help=f"Weighting of the loss: auto, {', '.join(WEIGHTINGS)}.")  # fmt: skip
@option("--t-sampler", under="Loss", default="auto", metavar="NAME",
        help=f"Sampler of training times: auto, {', '.join(TIME_SAMPLERS)}.")  # fmt: skip
@option("--steps", under="Training", first=True, type=Whole(TRAINED),
        help="Number of training steps; with --resume, the new total.  [default: set by the preset]")  # fmt: skip
@option("--batch", under="Training", type=Whole(COUNT), help="Batch size.  [default: set by the preset]")
@option("--accumulate", under="Training", type=Whole(COUNT),
        help="Number of parts in which a batch is evaluated, to save memory.  [default: 1]")  # fmt: skip
@option("--keep", under="Training", type=Whole(COUNT), help="Number of checkpoints to keep.  [default: 2]")
@option("--ema", under="Training", first=True, metavar="PROFILES",
        help="Averages of the weights, separated by commas: a maximum decay, such as 0.9999, or power:WIDTH. "
             "Samples use the first.  [default: 0.9999]")  # fmt: skip
@option("--lr", under="Training", type=Real(LR),
        help="Learning rate.  [default: set by the preset]")  # fmt: skip
@option("--precision", under="Training", first=True, type=click.Choice(["auto", "float32", "bf16"]), default="auto",
        help="Precision of the network; auto is bf16 on a GPU that computes with it. Weights, paths and losses keep "
             "--dtype.")  # fmt: skip
@option("--compile", under="Training", is_flag=True, help="Compile the network (torch.compile).")
@option("--channels-last", under="Training", type=click.Choice(["auto", "yes", "no"]), default="no",
        help="Memory layout of the network; auto measures which is faster in a few steps, and keeps it.")  # fmt: skip
@set_option("NAME=VALUE", "Any other setting, such as clip=2, sde.beta_max=18 or network.channels=64.", "Training")
@option("--seeds", under="Training", first=True, metavar="LIST",
        help="Train one run for each seed, such as 0,1,2, and print a table of their figures with the spread. After an "
             "interruption, repeat the command to continue.")  # fmt: skip
@option("--resume", under="Training", first=True, metavar="RUN",
        help="Continue a run from its newest checkpoint, with the settings of the run.")  # fmt: skip
@option("--changed-data", under="Training", is_flag=True, help="Resume even if the run's data have changed.")
@option("--shard", under="Training", type=click.Choice(["ddp", "fsdp"]), default="ddp",
        help="With several processes, give each of them all weights (ddp), or a part of them (fsdp).")  # fmt: skip
@option("--redivided", under="Training", is_flag=True,
        help="Resume with another number of processes or parts, although the dropout masks then differ.")  # fmt: skip
@edited_option
@option("--sample-every", under="Training", type=Whole(COUNT),
        help="Number of steps between pictures of samples.  [default: pictures after 1, 2, 5, 10, 20, 50 and 100 % of "
             "the steps; in a short run, only the last of these]")  # fmt: skip
@option("--track", under="Training", metavar="NAMES",
        help="Also send the records to trackers: tensorboard, or module:Class, separated by commas.")  # fmt: skip
@option("--dry-run", under="Training", first=True, is_flag=True,
        help="Print the resolved settings, the model size, and the time and memory that training takes, without "
             "creating a run.")  # fmt: skip
@out_option("runs/DATA-SDE", "Folder of the new run.")
@session(first=("device",), processes=True)
@builds(SETTINGS, *PARTS, DECAY)
def train(
    config_file: str | None, data: str, augment: str, cond: str, cond_drop: float, sde: str, space: str, shift: float,
    coupling: str, preset: str, network: str | None, predict: str, weighting: str, t_sampler: str, steps: int | None,
    batch: int | None, accumulate: int | None, keep: int | None, ema: str | None, lr: float | None,
    precision: str, compile: bool, channels_last: str, assignments: tuple[str, ...], seeds: str | None,
    resume: str | None, changed_data: bool, shard: str, redivided: bool, edited: bool, sample_every: int | None,
    track: str | None, dry_run: bool, out: Path | None, session: Session, reading: Reading,
) -> None:  # fmt: skip
    """Train a model by denoising score matching, and print the folder of the run."""
    from ..run.config import TrainConfig
    from ..run.files import find_run, read_config, refuse_taken
    from ..run.origin import read_again
    from ..train import finished, fit
    from ..train.resume import check_resumable, writing
    from ..train.track import chosen_trackers

    numbers = _seeds(seeds)
    if resume is not None:
        free = settings(assignments, ("",))[""] if assignments else {}
        changeable = {*FREE, "accumulate", "keep", "compile"}
        _refuse_new_settings(resume, {"assignments"} if set(free) <= changeable else set())
        out = find_run(resume, edited=edited)
        config = TrainConfig.from_dict(read_config(out))
        config, own = _named_again(config, resume, out)
        whole = {"steps": steps, "accumulate": accumulate, "keep": keep, "compile": compile}
        now: dict[str, Any] = {**SETTINGS.read(None, free), **{name: n for name, n in whole.items() if n}}
        config = replace(config, **now)
    else:
        own = None
        given = {
            "data": data, "coupling": coupling, "shift": shift, "preset": preset, "cond": cond, "cond_drop": cond_drop,
            "space": space, "augment": augment, "steps": steps or 0, "batch": batch or 0, "lr": lr or 0.0,
            **({} if ema is None else {"ema": ema}),
            "accumulate": accumulate or 1, "keep": keep or 2, "seed": session.seed, "size": reading.size,
            "fit": reading.fit, "layout": reading.layout, "on_bad": reading.on_bad, "sample_every": sample_every or 0,
            "precision": precision, "compile": compile, "channels_last": channels_last,
            "sde": sde, "predict": predict, "weighting": weighting, "t_sampler": t_sampler, "network": network,
        }  # fmt: skip
        config, session = _configured(given, assignments, config_file, session, edited)
        _check_names(config)
    chosen_trackers(track or "")  # report misspelt names before reading the data
    chosen = session.on
    if numbers and not dry_run:
        _train_seeds(config, numbers, session, out, partial(_features, session, edited), track or "")
        return
    config = replace(config, seed=numbers[0]) if numbers else config
    if resume is None and out is not None and not dry_run:
        refuse_taken(out)  # before reading the data
    if resume is not None and out is not None and finished(out, config, edited=edited):
        # This also removes what an interrupted process left behind.
        with nullcontext() if dry_run or not session.main else writing(out):
            _say_finished(out, session, edited)
        return
    if resume is not None and out is not None:
        check_resumable(out, session.floats)
    place = _typed("data") if resume is not None else None
    dataset = config.load_data() if resume is None or out is None else read_again(out, config, place)
    session.say(dataset.describe())
    if dry_run:
        _dry_run(config, dataset, session, own, out if resume is not None else None, edited, max(1, len(numbers)))
        return
    before = 0
    if resume is not None and out is not None:
        before = _done(out, edited)
    began = time.monotonic()
    run = fit(
        config, data=dataset, network=own, out=out, resume=resume is not None, device=chosen, dtype=session.floats,
        quiet=session.quiet, changed_data=changed_data, edited=edited, redivided=redivided,
        shard=shard, features=partial(_features, session, edited), track=track or "",
    )  # fmt: skip
    seconds = time.monotonic() - began
    assert run.folder is not None
    done = _done(run.folder, edited)  # not run.step: the weights in use may be from an earlier step
    more = f", {done:,} in total" if before else ""
    session.say(f"trained {done - before:,} step{'s' * (done - before != 1)} in {seconds:.0f} s{more}")
    session.say(f"samples during training: {run.folder}/samples/")
    session.print({"run": str(run.folder), "step": run.step, "seconds": round(seconds, 1)}, str(run.folder))


def _seeds(text: str | None) -> list[int]:
    """Return the seeds in ``--seeds``, after checking that no other option contradicts them."""
    if text is None:
        return []
    for other in ("seed", "resume"):
        if _typed(other) is not None:
            hint = "repeat the command without --resume to continue" if other == "resume" else "omit --seed"
            raise UsageError(f"--seeds {text} cannot be combined with --{other}; {hint}")
    for assignment in click.get_current_context().params["assignments"]:
        if assignment.partition("=")[0].strip() == "seed":
            raise UsageError(f"--seeds {text} cannot be combined with --set {assignment}; omit --set {assignment}")
    if _typed("shard") is not None:
        raise UsageError(f"--seeds {text} cannot be combined with --shard, which is for several processes; omit it")
    if ranks() > 1:
        raise UsageError("--seeds trains in one process; to use several, train each seed by itself with --seed")
    parts = in_list(text)
    if not parts or not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise UsageError(f"--seeds must be integers >= 0 separated by commas, such as 0,1,2, got {text!r}")
    found = [check_number("--seeds", int(part), SEED, "int") for part in parts]
    if len(set(found)) < len(found):
        raise UsageError(f"--seeds {text} names a seed twice; each seed is one run")
    return found


def _configured(
    given: Mapping[str, Any], assignments: tuple[str, ...], config_file: str | None, session: Session, edited: bool
) -> tuple[TrainConfig, Session]:
    """Return the configuration of a new run. What is typed takes precedence over the file, and the file over defaults.

    Args:
        given: The values of the options, keyed by the names of the settings.
        assignments: The values of ``--set``.
        config_file: The file or run with further settings, or ``None``.
        session: The session. It is returned with the precision that the file states, unless ``--dtype`` is typed.
        edited: Whether to accept a run whose files were changed.
    """
    from ..run.config import TrainConfig

    texts = settings(assignments, ("", *(part.group for part in (*PARTS, DECAY))))
    typed = {name for name in given if _typed(name) is not None}
    if (network := texts["network"].pop("network", None)) is not None:
        given, typed = {**given, "network": network}, {*typed, "network"}
    stated: dict[str, Any] = {}
    if config_file is not None:
        changed = {name: given[name] for name in typed} | SETTINGS.read(None, texts[""])
        stated, session = _from_file(config_file, session, edited, "network" in typed, changed)
    options = {part.group: dict(stated.pop(f"{part.group}_options", {})) for part in PARTS}
    if "network" in options["network"]:
        stated["network"] = options["network"].pop("network")
    chosen = {name: value if name in typed else stated.get(name, value) for name, value in given.items()}
    for part in PARTS:
        name, its = chosen[part.group], stated.get(part.group)
        if part.group not in typed and its not in (None, "auto"):
            resolve(its, part.table, part.what)  # a name in a file is never imported
        elif part.group in typed and its not in (None, name):
            options[part.group] = {}  # these are options of the name in the file
    _refuse_unknown(texts[""], chosen["sde"])
    resolve(chosen["sde"], SDES, "SDE", typed=True)
    for part in PARTS:
        options[part.group] |= part.read(chosen[part.group], texts[part.group])
    now = SETTINGS.read(None, texts[""])
    decay = dict(stated.pop("decay_options", {}))
    if now.get("decay", stated.get("decay")) != stated.get("decay"):
        decay = {}  # these are options of the decay in the file
    options["decay"] = {**decay, **DECAY.read(None, texts["decay"])}
    if (network := chosen.pop("network")) is not None:
        options["network"]["network"] = network
    values = {**stated, **chosen, **{f"{group}_options": found for group, found in options.items()}}
    values.pop("network", None)
    config = TrainConfig(**{**values, **now})
    if config_file is None:
        return config, session
    names = {str(given[name]) for name in typed} | {part for t in texts.values() for v in t.values() for part in
             (v, *in_list(v))}  # fmt: skip
    names |= {*(config.own_operators if "cond" in typed else ()), *(config.space_names if "space" in typed else ())}
    return replace(config, typed=tuple(names)), session


def _from_file(
    file: str, session: Session, edited: bool, network: bool, changed: Mapping[str, Any]
) -> tuple[dict[str, Any], Session]:
    """Return the settings in a file or a run, and the session with the precision that the file states.

    Settings of a run that were chosen for others, whose values in ``changed`` are new, are left open again. The
    argument ``network`` states whether a network is typed.
    """
    from ..run.settings import read_settings

    read = read_settings(file, edited=edited)
    if read.own_network and not network:
        raise UsageError(
            f"{file} was trained with a network of your own, which its settings do not describe; name the network",
            parameter="network",
        )
    if read.dtype is not None and _typed("dtype") is None:
        session = replace(session, dtype=read.dtype)
    stated = dict(read.values)
    # In a run, these settings were chosen for the others, or a person set them; the run does not tell which.
    follow = {"steps": ("warmup", "validate_every"), "batch": ("validate_every",),
              "sde": ("predict", "weighting", "t_sampler")} if read.of_run else {}  # fmt: skip
    new = [name for name in follow if name in changed and changed[name] != stated[name]]
    again = [name for name in dict.fromkeys(n for cause in new for n in follow[cause]) if name not in changed]
    for name in again:
        stated[name] = "auto" if name in follow["sde"] else 0
        if f"{name}_options" in stated:
            stated[f"{name}_options"] = {}
    if again:
        session.say(
            f"{', '.join(again)}: chosen again, because {' and '.join(new)} differ{'s' * (len(new) == 1)} from {file}"
        )
    return stated, session


def _check_names(config: TrainConfig) -> None:
    """Report misspelt names before the data are read."""
    from ..model.parametrization import Parametrization
    from ..objective.weighting import make_weighting
    from ..run.config import build_sde
    from ..train.rates import make_rate

    config.operator()
    config.spaces  # noqa: B018
    build_sde(config)
    make_rate(config)
    if config.predict != "auto":
        build(
            config.predict,
            PARAMETRIZATIONS,
            "prediction",
            config.predict_options,
            typed=config.typed,
            kind=Parametrization,
        )
    if config.weighting != "auto":
        make_weighting(config.weighting, config.weighting_options, config.typed)


def _train_seeds(
    config: TrainConfig, seeds: list[int], session: Session, out: Path | None, features: Features, track: str
) -> None:
    """Train a run for each seed, and print the table of their figures."""
    from ..train.seeds import fit_seeds

    accepted = {name: bool(_typed(name)) for name in ("changed_data", "edited", "redivided")}
    table = fit_seeds(
        config, seeds, out=out, device=session.on, dtype=session.floats, quiet=session.quiet, say=session.say,
        features=features, track=track, **accepted,
    )  # fmt: skip
    session.print(table.facts(), table.text(), str(table.file))


def _features(session: Session, edited: bool, data: Dataset, folder: Path | None) -> Extractor:
    """Return the features by which ``scoresde evaluate`` compares samples with the data."""
    from ..study.features import extractor_by_name

    place = None if folder is None else folder / "classifier"
    return extractor_by_name("auto", data, folder=place, device=session.on, told=session.say, edited=edited)


def _done(folder: Path, edited: bool) -> int:
    """Return the number of training steps that a run has completed."""
    from ..run.files import checkpoints, newest_checkpoint

    return int(newest_checkpoint(folder, edited=edited).name.removeprefix("step-")) if checkpoints(folder) else 0


def _say_finished(run: Path, session: Session, edited: bool) -> None:
    """Report that a resumed run has nothing left to do."""
    from ..core.files import read_object
    from ..run.files import chosen_checkpoint

    session.say(
        f"{run} has completed all its steps ({_done(run, edited):,}), so there is nothing left to do; use a larger "
        "--steps to train further"
    )
    step = int(read_object(chosen_checkpoint(run, edited=edited) / "state.json")["step"])
    session.print({"run": str(run), "step": step, "seconds": 0.0}, str(run))


def _refuse_unknown(names: Iterable[str], sde: str) -> None:
    """Reject settings that the training configuration does not have, and suggest valid names."""
    known = SETTINGS.of(None)
    for name in names:
        if name not in known:
            owners = [p for p in PARTS if name in p.of(sde if p.group == "sde" else None, p.group != "sde")]
            near = f"did you mean {owners[0].group}.{name}?" if owners else closest(name, known)
            raise UsageError(f"unknown setting {name!r}; {near}")


def _refuse_new_settings(run: str, free: set[str]) -> None:
    """Reject options that would have no effect because a resumed run keeps its settings, except those in ``free``."""
    named = ("sde", "network", "predict", "weighting", "t_sampler", "cond", "space")
    everywhere = ("device", "dtype", "threads", "json", "quiet")
    free = {*free, *named, *everywhere, "data", "changed_data", "edited", "redivided", "shard", "max_time", "track"}
    allowed = {*free, "accumulate", "keep", "compile", "resume", "steps", "dry_run"}
    for param in click.get_current_context().command.params:
        if param.name not in allowed and _typed(param.name or "") is not None:
            raise UsageError(
                f"{param.opts[0]} cannot be changed when a run is resumed; {run} keeps its settings, so omit the option"
            )


def _named_again(config: TrainConfig, run: str, folder: Path) -> tuple[TrainConfig, Any]:
    """Check the class names that the user repeats to resume a run, and add them to ``config``.

    Also build the user's network if the run was created with a network object, whose name is not stored.
    """
    from ..run.run import described

    typed, own = {}, None
    if _typed("network") is not None and described(folder, config)[1].network is None:
        own = build(_typed("network"), NETWORKS, "network", typed=True)
    own_operators = tuple(config.own_operators)
    if (cond := _typed("cond")) not in (None, config.cond):
        raise UsageError(
            f"--cond {cond} cannot be used because {run} was trained with {config.cond}, which cannot be changed when "
            "a run is resumed"
        )
    if cond is None and own_operators:
        raise UsageError(
            f"{run} was trained with the operator {own_operators[0]}, which is not a built-in; for safety, names read "
            "from files are never imported, so repeat the name",
            parameter="cond",
            value=config.cond,
        )
    if (space := _typed("space")) not in (None, config.space):
        raise UsageError(
            f"--space {space} cannot be used because {run} was trained with {config.space}, which cannot be changed "
            "when a run is resumed"
        )
    own_spaces = () if space is None else tuple(name for name in config.space_names if ":" in name)
    for field in ("sde", "network", "predict", "weighting", "t_sampler"):
        name, its = _typed(field), config.network if field == "network" else config.name(field)
        if field == "network" and own is not None:
            continue
        if name is not None and name != its:
            raise UsageError(
                f"--{field.replace('_', '-')} {name} cannot be used because {run} was trained with {its}, which cannot "
                "be changed when a run is resumed"
            )
        if name is not None:
            typed[field] = name
    config = config.named(**typed)
    known = config.typed if isinstance(config.typed, Collection) else ()
    return replace(config, typed=(*known, *own_operators, *own_spaces)), own


def _typed(option: str) -> Any:
    """Return the value of an option given on the command line, or ``None`` if it was not given."""
    context = click.get_current_context()
    source = context.get_parameter_source(option)
    return context.params[option] if source is click.core.ParameterSource.COMMANDLINE else None


def _dry_run(
    config: TrainConfig, dataset: Dataset, session: Session, own: Any, resumed: Path | None, edited: bool, runs: int
) -> None:
    """Print the resolved settings, the size of the model, and the time and memory that ``runs`` runs will take."""
    from ..train import prepared, timed
    from ..train.stated import aligned

    dataset = dataset if resumed is not None else aligned(config, dataset)
    resolved, model, spec = prepared(config, dataset, own, None, resumed)
    done = 0 if resumed is None else _done(resumed, edited)
    timing = timed(resolved, model, spec, dataset, folder=resumed, done=done, device=session.on, dtype=session.floats)
    size = sum(p.numel() for p in model.parameters())
    told = resolved.told_in_words(dataset.info)
    minutes = {part: round(seconds / 60, 1) for part, seconds in timing.parts.items()}
    counted = (
        ("steps", timing.steps, timing.step),
        ("validation", timing.validations, timing.validation),
        ("pictures", timing.pictures, timing.picture),
    )
    rows = [f"{f'  {part}':16} {minutes[part]:6.1f} minutes ({n:,} of {_duration(each)})" for part, n, each in counted]
    facts = {
        "config": resolved.to_dict(),
        "told": told,
        "network": None if spec.network is None else {"name": spec.network.name, **spec.network.options},
        "parameters": size,
        "seconds_per_step": round(timing.step, 4),
        "validations": timing.validations,
        "seconds_per_validation": round(timing.validation, 4),
        "pictures": timing.pictures,
        "seconds_per_picture": round(timing.picture, 4),
        "minutes": minutes,
        "runs": runs,
        "estimated_minutes": round(runs * timing.seconds / 60, 1),
        "peak_memory": timing.memory,
        "checkpoint_bytes": timing.checkpoint,
        "disk_bytes": runs * timing.disk(resolved.keep),
    }
    each = f" for each of {runs} seeds" * (runs > 1)
    where = "the GPU" if session.on.type == "cuda" else "the whole process, with the data"
    space = _size(runs * timing.disk(resolved.keep))
    disk = f"{space} at most for {resolved.keep} checkpoints, the best weights and snapshots{each}"
    memory = f"{_size(timing.memory)} at the peak of {where}" if timing.memory else "unknown"
    session.print(
        facts,
        *(f"{key:16} {value}" for key, value in resolved.to_dict().items()),
        f"{'network':16} {spec.network.name} {dict(spec.network.options)}" if spec.network else "",
        *([f"{'condition':16} {told}"] if told else []),
        f"{'parameters':16} {size:,}",
        f"{'memory':16} {memory}",
        f"{'disk':16} {disk}",
        f"{'time':16} about {facts['estimated_minutes']} minutes on {session.on}{f', {runs} seeds' * (runs > 1)}:",
        *rows,
    )


def _size(count: int) -> str:
    """Format a number of bytes."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"
