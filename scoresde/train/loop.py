"""The training loop, which also writes the run folder, handles signals and plots samples.

A single training step is defined in :mod:`scoresde.train.state`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..core.errors import NumericalError, UsageError
from ..core.files import (
    FORMAT,
    append_line,
    missing_above,
    read_lines,
    read_object,
    remove_empty,
    taken,
    write_json,
    write_lines,
)
from ..core.optional import optional
from ..core.parallel import Agreement, World, divided, own_device, together
from ..core.parts import digest
from ..core.progress import Progress
from ..core.signals import Interrupts, keeps
from ..core.text import printable
from ..core.threads import available, one_thread
from ..data import DataInfo, Dataset
from ..data.batch import Batches, Rows
from ..metrics import Measurement
from ..metrics.copies import nearest_line
from ..model.network import ScoreModel
from ..objective.coupling import Pairs
from ..objective.loss import Objective
from ..operators import Operator
from ..run.config import TrainConfig
from ..run.environment import ENVIRONMENT, keep_session, session_of
from ..run.files import (
    accept_changes,
    checkpoints,
    clear_start,
    find_run,
    make_run_folder,
    read_config,
    refuse_taken,
)
from ..run.origin import beside, keep_identity
from ..run.run import Run, warn_of_prior
from ..run.seen import keep_mask
from ..run.spec import ModelSpec
from .executing import executable, lanes_of
from .frechet import Features, Frechet, pixels
from .levels import ByLevel, Levels
from .pictures import evaluations, few_samples, loss_figure, sample_sheet, sheet_path
from .prepare import averaged_model, begun, measured, operator_of, parts, prepared
from .rates import Rate, bent, make_rate, rate_at
from .resume import check_resumable, data_for, kept_pairs, restore, writing
from .schedule import affordable, older, previews
from .snapshots import clear_snapshots, needed, planned, take
from .state import Record, TrainState, steps
from .stated import aligned
from .track import Track, Trackers, chosen_trackers
from .validation import Validation, sentence

__all__ = ["fit", "prepared", "previews", "run_name"]


def fit(
    config: TrainConfig,
    *,
    data: Dataset | Tensor | npt.ArrayLike | None = None,
    network: nn.Module | None = None,
    pairs: Pairs | None = None,
    start: Run | None = None,
    out: str | Path | None = None,
    save: bool = True,
    resume: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quiet: bool = False,
    changed_data: bool = False,
    edited: bool = False,
    redivided: bool = False,
    shard: str = "ddp",
    features: Features | None = None,
    track: Track = (),
) -> Run:
    """Train a model by denoising score matching.

    Args:
        config: The configuration. Fields that it leaves open are computed from the data.
        data: A data set, or an array that :meth:`scoresde.Dataset.of` accepts, to use instead of ``config.data``.
        network: A custom network (see :class:`scoresde.ScoreModel`), instead of a preset.
        pairs: Samples paired with noise, for training with the ``reflow`` coupling. They are stored in the run folder.
        start: A run to continue from. Its network, weights, condition, probability path and parametrisation are used
            instead of those in ``config``.
        out: The run folder (default: ``runs/DATA-SDE``).
        save: Whether to write a run folder.
        resume: Whether to continue an existing run from its newest checkpoint. The run is read from ``out``. If ``out``
            is ``None``, the newest run is continued.
        device, dtype: Device and precision of the training.
        quiet: Whether to hide the progress output.
        changed_data: Whether to resume even if rows of the run's data are missing, or if all data have been replaced.
        edited: Whether to resume even if files of the run were changed after they were written.
        redivided: Whether to resume with another number of processes, or of parts (``config.accumulate``), although the
            network has dropout, whose masks then differ.
        shard: What several processes do with the weights: each has all of them (``ddp``), or a part (``fsdp``).
        features: The features for the Fréchet distances of ``config.frechet_every``: a function of the data and the run
            folder (or ``None``) that returns a map from events in data units ``(B, *event)`` to ``(B, d)``. By default,
            the values in model units are compared.
        track: Other places to which the records go: names of trackers, such as ``tensorboard`` or ``module:Class``,
            separated by commas, or a list of names and :class:`~scoresde.train.track.Tracker` objects. They are not
            stored with the run, and cannot stop it.

    If ``torchrun`` has started several processes, they train together (:mod:`scoresde.core.parallel`), and each of them
    returns the run. The batch is that of all processes.

    Returns:
        The trained run. Its weights are the last averaged weights or the averaged weights with the lowest validation
        loss (:mod:`scoresde.train.validation`).

    Raises:
        NumericalError: If the loss is not finite. The message names the step and what to check.
        Preempted: After SIGTERM or SIGUSR1, once the checkpoint is saved.
        Stopped: After Ctrl-C, once the checkpoint is saved. This is a subclass of ``KeyboardInterrupt``.

    Example:
        >>> from scoresde import TrainConfig, fit
        >>> run = fit(TrainConfig(data="8gaussians", steps=2, batch=8), save=False, quiet=True)
        >>> run.sample(4).x.shape
        torch.Size([4, 2])
    """
    if resume and not save:
        raise UsageError(
            "resume needs a run folder, so it cannot be combined with save=False; leave out one of the two"
        )
    makers = chosen_trackers(track, saved=save)
    if shard not in ("ddp", "fsdp"):
        raise UsageError(f"shard is {shard!r}, but must be 'ddp' or 'fsdp'", parameter="shard", value="ddp")
    with ExitStack() as held:
        interrupts = held.enter_context(Interrupts())
        device = own_device(torch.device(device))
        world = held.enter_context(together(device))
        quiet = quiet or not world.main
        folder = world.led(lambda: find_run(out, edited=edited)) if resume else None
        if folder is not None:
            check_resumable(folder, dtype)
        if folder is not None and world.main:
            held.enter_context(writing(folder))
        config, data = data_for(config, data, folder, changed_data)
        if folder is None and start is None:
            data = aligned(config, data)
        automatic = not config.batch
        config, model, spec = prepared(config, data, network, start, folder)
        config = _divisible(config, world, automatic)
        world.same("settings or data", _digest_of(config, data))
        data = _described(config, data, start, folder)
        operator = operator_of(config, data.info, start, folder)
        info = measured(config, data, spec.codec, model, operator)
        warn_of_prior(model.domain, info)
        if not resume and (pairs is None) == (config.coupling == "reflow"):
            raise UsageError(
                "pairs and the 'reflow' coupling must be used together; the function reflow draws suitable pairs"
            )
        train, validating = parts(data, spec, config, operator)
        config = executable(config, model, train if pairs is None else pairs, device, dtype, world, shard)
        state, objective = begun(config, model, device, dtype, world, shard)
        state.divided = (world.size, config.accumulate)
        every = config.validate_every or older(config.steps)
        validation = None
        if validating is not None and every <= config.steps and world.main:
            validation = Validation(validating, state.draw, objective, config.seed, dtype)
        levels = Levels(model.domain, device)
        made = _Made(config, data, model, spec, info, operator, state, validation, make_rate(config), levels)
        lanes = lanes_of(config, model, train if pairs is None else pairs, world)
        if lanes > 1:
            held.enter_context(one_thread())
            if not quiet:
                print(f"each of {lanes} threads evaluates {config.batch // lanes:,} rows of a batch", file=sys.stderr)

        if save:
            spec.to_dict()  # rejects what could not be read back, before a folder is created
            new = folder is None
            interrupts.remember()  # so that an interrupted run has a checkpoint, if only of its first step
            if folder is not None:
                _resumed(folder, made, world, edited, redivided, quiet)
            else:
                folder = world.led(lambda: _new_folder(out, made, quiet, held))
            if config.snapshots and state.step < config.steps:
                told = world.led(partial(needed, folder, config, state))
                if not quiet:
                    print(printable(told), file=sys.stderr)
            if config.coupling == "reflow":
                path = folder / "pairs.safetensors"
                given = pairs
                world.led(lambda: bool(kept_pairs(path, given, spec.classes)))
                pairs = kept_pairs(path, None, spec.classes)
            world.led(partial(_written, folder, made, new, lanes))
            if start is not None and new:  # the starting weights are stored nowhere else
                _saved(folder, made, world)
        settings = made.config.to_dict()
        lines = [(name, partial(make, folder, settings)) for name, make in makers] if world.main else []
        trackers = held.enter_context(Trackers(lines))
        frechet = None
        if config.frechet_every and world.main:
            with optional("the comparison by the Fréchet distance"):
                frechet = Frechet(data, (features or pixels)(data, folder))
        return _trained(
            made, train if pairs is None else pairs, objective, folder, world, interrupts, every, quiet, lanes,
            trackers, frechet,
        )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    """What training is made of."""

    config: TrainConfig
    data: Dataset
    model: ScoreModel
    spec: ModelSpec
    info: DataInfo
    operator: Operator | None
    state: TrainState
    validation: Validation | None
    rate: Rate
    levels: Levels

    def run(self, folder: Path | None, weights: Mapping[str, Tensor], step: int = 0) -> Run:
        """Return the run with the averaged ``weights`` of a ``step`` (default: the current step)."""
        model = averaged_model(self.state, weights)
        return Run(
            model, self.spec.codec, self.info, self.config, self.spec, step or self.state.step, folder,
            operator=self.operator,
        )  # fmt: skip


def _divisible(config: TrainConfig, world: World, automatic: bool) -> TrainConfig:
    """Check that the batch can be divided, and reduce an automatic batch to one that can."""
    parts = world.size * config.accumulate
    if automatic and config.batch >= parts:
        return replace(config, batch=config.batch // parts * parts)
    divided(config.batch, [("processes", world.size), ("accumulate", config.accumulate)])
    return config


def _digest_of(config: TrainConfig, data: Dataset) -> str:
    """Return a digest of what all processes must agree on: the settings, and the content of the data."""
    identity = data.identity
    if identity is None:
        content, order = data.train[torch.arange(min(64, len(data.train)))], 0
    else:
        content, order = torch.from_numpy(identity.hashes.astype("int64")), identity.order
    return digest(json.dumps(config.to_dict(), sort_keys=True, default=str), f"{data.info.shape} {order}", content)


def _described(config: TrainConfig, data: Dataset, start: Run | None, folder: Path | None) -> Dataset:
    """Describe the data in the units and the vocabulary on which the model was first trained."""
    told = data.info.known.told(config.sources)
    if start is not None:
        told = start.info.known
    elif folder is not None:
        told = DataInfo.from_dict(read_object(folder / "data.json")).known
    return data.described(told)


def _resumed(folder: Path, made: _Made, world: World, edited: bool, redivided: bool, quiet: bool) -> None:
    """Restore the state of a run from its newest checkpoint, in all processes."""
    world.led(partial(accept_changes, folder))
    if not (checkpoints(folder) or quiet):
        print(
            f"{folder} has no checkpoint yet, so training starts at step 0 with the settings of the run",
            file=sys.stderr,
        )
    steps_before = TrainConfig.from_dict(read_config(folder)).steps
    restore(folder, made.config, made.state, edited, tidy=world.main, redivided=redivided)
    world.led(partial(clear_snapshots, folder, made.state.step))
    if (told := bent(made.config, made.state.step, steps_before)) and not quiet:
        print(told, file=sys.stderr)
    if made.state.short and not quiet:
        parts = made.state.divided[1]
        print(f"a batch is evaluated in {parts} parts, because memory ran out with fewer before", file=sys.stderr)
    if made.validation is not None:
        made.validation.resume(
            folder, made.state.step, lambda weights: averaged_model(made.state, weights), edited=edited
        )
    world.wait()


def run_name(info: DataInfo, config: TrainConfig) -> str:
    """Return the default name of a run folder."""
    return f"{info.name}-{config.name('sde').rpartition(':')[2].lower()}"


def _new_folder(out: str | Path | None, made: _Made, quiet: bool, held: ExitStack) -> Path:
    """Create the folder of a new run, and lock it until ``held`` closes."""
    there, above = out is not None and Path(out).exists(), [] if out is None else missing_above(Path(out))
    name = run_name(made.info, made.config)
    folder = make_run_folder(out, name)
    if out is None and folder.name != name and not quiet:
        print(printable(taken(folder.with_name(name), folder)), file=sys.stderr)
    if not there:
        held.callback(remove_empty, folder, above)  # for example if the disk is full
    held.enter_context(writing(folder))
    refuse_taken(folder, mine=True)  # another process may have trained here since
    clear_start(folder)
    clear_snapshots(folder)
    return folder


def _written(folder: Path, made: _Made, new: bool, lanes: int) -> None:
    """Write the files that describe a run."""
    config, dtype = made.config, next(made.model.parameters()).dtype
    facts = {"format": FORMAT, "config": config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "model.json", made.spec.to_dict(), signed=True)
    if new:  # the description of a run's data is never rewritten
        write_json(folder / "data.json", made.info.to_dict(), signed=True)
    if new or (folder / "rows.npz").is_file():  # an older run, split by row numbers, has no such file
        keep_identity(folder, made.data, conditions=bool(config.sources.needs))
    facts["data_beside"] = beside(folder, config)  # the data may have moved
    if new and made.operator is not None:
        keep_mask(folder, made.operator)
    with optional(str(folder / ENVIRONMENT)):
        device, processes = next(made.model.parameters()).device, made.state.divided[0]
        now = session_of(
            device, dtype, seed=config.seed, processes=processes, step=made.state.step, threads=available(), lanes=lanes
        )
        keep_session(folder, now, new=new)
    metrics = folder / "metrics.jsonl"  # drop the lines of steps that will be repeated
    write_lines(metrics, (line for line in read_lines(metrics) if line["step"] <= made.state.step))
    write_json(folder / "config.json", facts, signed=True)  # last, because it makes the folder a run


def _saved(folder: Path, made: _Made, world: World) -> None:
    """Save a checkpoint: by the first process, or by all if each has a part of the weights."""
    if made.state.undivided is not None:
        made.state.save(folder, made.config.keep, world)
        world.wait()
    elif world.main:
        made.state.save(folder, made.config.keep)


def _trained(
    made: _Made, source: Rows | Pairs, objective: Objective, folder: Path | None, world: World,
    interrupts: Interrupts, every: int, quiet: bool, lanes: int, trackers: Trackers, frechet: Frechet | None,
) -> Run:  # fmt: skip
    """Take the steps, save and report on the way, and choose the weights."""
    config, data, info, state, validation = made.config, made.data, made.info, made.state, made.validation
    batches = Batches(source, config.batch, config.seed, config.augmentation, config.workers)
    mine = folder if world.main else None  # only the first process writes
    save_every, log_every = (max(1, config.steps // n) for n in (5, 200))
    pictures = affordable(evaluations(info, made.model.domain.nodes), config.steps, config.batch)
    shown_at = previews(config.steps, config.sample_every, pictures)
    snapped_at = set(planned(config.steps, config.snapshots))
    first, average, started = state.step, 0.0, time.monotonic()
    saved, kept_step = started, first
    losses: Tensor | None = None
    distance: Measurement | None = None
    shown_samples: Tensor | None = None
    made.model.train()
    interrupts.remember()
    agreed = Agreement(world)
    validates = world.told(validation is not None)
    waiting: tuple[Record, ByLevel | None] | None = None
    levels = made.levels
    records = steps(
        state, objective, batches, config.steps, seed=config.seed, rate=partial(rate_at, config, made.rate),
        clip=config.clip, world=world, lanes=lanes, watch=levels.add,
    )  # fmt: skip

    with _explained(folder), Progress(config.steps, "train", quiet=quiet, initial=first) as progress:

        def report(record: Record, by_level: ByLevel | None, *, looked: bool = False) -> None:
            """Show the losses of a step, and log them if the losses by noise level are given."""
            nonlocal average
            # Like EMA, the average at first covers about the last tenth of the steps, so it soon forgets the start.
            n = record.step - 1 - first
            keep = min(0.98, n / (n + 9))
            average = keep * average + (1 - keep) * record.loss
            shown: dict[str, float] = {"loss": average}
            line: dict[str, Any] = {"step": record.step, "loss": record.loss, "lr": record.lr}
            if losses is not None:
                shown["validation"] = float(losses.mean())
            progress.update(1, shown)
            if by_level is not None:
                line |= {"grad_norm": record.grad_norm, "seconds": round(time.monotonic() - started, 2)}
                line |= {"loss_by_noise": by_level.means, "rows_by_noise": by_level.counts.tolist()}
                if looked and validation is not None and validation.latest is not None:
                    assert validation.draws.t is not None
                    held = levels.of(validation.draws.t, validation.latest)
                    line |= {
                        "validation": shown["validation"], "validation_by_noise": held.means,
                        "validation_rows_by_noise": held.counts.tolist(),
                    }  # fmt: skip
                if distance is not None:
                    line |= {"frechet": distance.value, "frechet_error": distance.stderr}
                if mine is not None:
                    append_line(mine / "metrics.jsonl", line)
                trackers.log(record.step, line)

        for record in records:
            if waiting is not None:  # one step late, so that the device never waits for it
                report(*waiting)
            last = record.step == config.steps
            wish = mine is not None and time.monotonic() - saved > 60 * config.save_minutes
            saved = time.monotonic() if wish else saved
            stop, wished = agreed(interrupts.code, wish)
            if last and world.several:
                stop = agreed.last()[0] or stop
            if folder is not None and record.step in snapped_at:
                record.check()
                take(folder, state, world)
            looked = validates and (record.step % every == 0 or last)
            due = folder is not None and (record.step % save_every == 0 or last or stop is not None or wished)
            shown = folder is not None and record.step in shown_at
            compared = config.frechet_every > 0 and (record.step % config.frechet_every == 0 or last)
            logged = world.main and (record.step % log_every == 0 or last or looked or compared)
            waiting = record, levels.take() if logged else None
            if looked or due or last or shown or compared or stop is not None:
                record.check()
                weights = state.averaged()
            if looked and validation is not None:
                losses = validation.look(averaged_model(state, weights), weights, record.step, folder)
            distance = None
            if compared and frechet is not None:
                with optional(f"the Fréchet distance at step {record.step}"):
                    distance = frechet(made.run(folder, weights))
            if looked or due or last or compared:
                report(*waiting, looked=looked)
                waiting = None
            if due:
                assert folder is not None
                _saved(folder, made, world)
                saved, kept_step = time.monotonic(), record.step
            if shown and mine is not None:
                with optional(f"the figure of samples at step {record.step}"):
                    path = sheet_path(mine, record.step)
                    shown_samples = sample_sheet(path, made.run(folder, weights), data)
                    trackers.picture(record.step, "samples", path)
            if not world.several and stop is None:
                stop = interrupts.code  # the signal came while the figure was drawn
            if stop is not None and not last:
                if folder is not None and kept_step != record.step:
                    record.check()
                    _saved(folder, made, world)
                world.wait()
                interrupts.code = stop  # another process may have received it
                kept = f"the checkpoint is saved in {folder}" if folder else "nothing was saved"
                raise interrupts.error(f" after step {record.step}: {kept}", "resume" if folder else None, folder)
    world.wait()
    if folder is not None:
        keeps(f"all steps ({config.steps:,}) are done, and the checkpoint is saved in {folder}", "resume", folder)
    interrupts.forget()
    weights = state.averaged()
    run, lines, best = made.run(folder, weights), [], None
    if validation is not None and validation.best is not None:
        if losses is None:  # a run that had already completed all its steps
            losses = validation.losses(averaged_model(state, weights))
        choice, best = validation.choose(losses, state.step, mine), validation.best
        lines.append(sentence(choice))
        if choice["used"] == "best":
            run, shown_samples = made.run(folder, best.weights, best.step), None
            if mine is not None:
                with optional(f"the figure of samples at step {best.step}"):
                    path = sheet_path(mine, best.step)
                    shown_samples = sample_sheet(path, run, data)
                    trackers.picture(best.step, "samples", path)
    elif validation is None and data.identity is not None and config.coupling != "reflow":
        few = data.validates is None or not len(data.validates)
        lines.append(_without_validation(config.steps, every, len(data.train) if few else None))
    if mine is not None:
        with optional("the figure of the loss"):
            if (figure := loss_figure(mine, None if best is None else best.step)) is not None:
                trackers.picture(state.step, "loss", figure)
    if not quiet:
        with optional("the line on the nearest training samples"):
            x = few_samples(run, data) if shown_samples is None else shown_samples
            lines.append(nearest_line(x, data.filled, data.test, made.spec.codec.units.to_model))
        print(printable("\n".join(lines)), file=sys.stderr)
    if world.several:  # the weights that the first process has chosen
        chosen = {name: value.cpu() for name, value in run.base.learned.state_dict().items()}  # type: ignore[attr-defined]
        weights, step = world.told((chosen, run.step))
        run = run if world.main else made.run(folder, weights, step)
    return run


def _without_validation(steps: int, every: int, few: int | None) -> str:
    """Explain why a run of ``steps`` steps has no validation: it is too short, or it has only ``few`` training rows."""
    if few is not None:
        return (
            f"validation: none, because the training samples (count: {few}) are too few to spare any; to detect "
            "overfitting, use the likelihood of the test samples"
        )
    return (
        f"validation: none, because the number of training steps ({steps:,}) is less than validate_every ({every:,}); "
        "to detect overfitting, train longer, choose a smaller validate_every, or use the likelihood of the test "
        "samples"
    )


@contextmanager
def _explained(folder: Path | None) -> Iterator[None]:
    """If a step fails in the block, mention the last checkpoint in the error."""
    try:
        yield
    except NumericalError as error:
        saved = folder is not None and checkpoints(folder)
        kept = f" The last checkpoint in {folder} is from an earlier step." if saved else ""
        raise NumericalError(f"{error}{kept}", parameter=error.parameter, value=error.value) from None
