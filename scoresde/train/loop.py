"""The training loop, which also writes the run folder, handles signals and plots samples.

A single training step is defined in :mod:`scoresde.train.state`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

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
from ..core.progress import Progress
from ..core.signals import Interrupts, keeps
from ..core.text import printable
from ..data import DataInfo, Dataset
from ..data.batch import Batches
from ..metrics.copies import nearest_line
from ..objective.coupling import Pairs
from ..run.config import TrainConfig
from ..run.files import (
    accept_changes,
    checkpoints,
    clear_start,
    find_run,
    make_run_folder,
    refuse_taken,
)
from ..run.origin import beside, keep_identity
from ..run.run import Run, warn_of_prior
from ..run.seen import keep_mask
from .pictures import evaluations, few_samples, loss_figure, sample_sheet
from .prepare import averaged_model, begun, measured, operator_of, parts, prepared
from .resume import data_for, kept_pairs, restore, writing
from .schedule import affordable, older, previews
from .state import Record, steps
from .stated import aligned
from .validation import Validation, sentence

__all__ = ["fit", "prepared", "previews"]


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
    with ExitStack() as held:
        return _fit(
            config, data, network, pairs, start, out, save, resume, torch.device(device), dtype, quiet, changed_data,
            edited, held,
        )  # fmt: skip


def _fit(
    config: TrainConfig, data: Dataset | Tensor | npt.ArrayLike | None, network: nn.Module | None, pairs: Pairs | None,
    start: Run | None, out: str | Path | None, save: bool, resume: bool, device: torch.device, dtype: torch.dtype,
    quiet: bool, changed_data: bool, edited: bool, held: ExitStack,
) -> Run:  # fmt: skip
    """Train (see :func:`fit`). The signal handlers and the run's lock are released when ``held`` closes."""
    interrupts = held.enter_context(Interrupts())
    folder = find_run(out, edited=edited) if resume else None
    if folder is not None:
        held.enter_context(writing(folder))
    config, data = data_for(config, data, folder, changed_data)
    if folder is None and start is None:
        data = aligned(config, data)
    config, model, spec = prepared(config, data, network, start, folder)
    # A model keeps the units and the vocabulary of the data that it was first trained on.
    told = data.info.known.told(config.sources)
    if start is not None:
        told = start.info.known
    elif folder is not None:
        told = DataInfo.from_dict(read_object(folder / "data.json")).known
    data = data.described(told)
    operator = operator_of(config, data.info, start, folder)
    info = measured(config, data, spec.codec, model, operator)
    warn_of_prior(model.domain, info)
    if not resume and (pairs is None) == (config.coupling == "reflow"):
        raise UsageError(
            "pairs and the 'reflow' coupling must be used together; the function reflow draws suitable pairs"
        )
    state, objective = begun(config, model, device, dtype)
    train, validating = parts(data, spec, config, operator)
    every = config.validate_every or older(config.steps)
    validation = None
    if validating is not None and every <= config.steps:
        validation = Validation(validating, state.draw, objective, config.seed, dtype)

    if save:
        made_of = spec.to_dict()  # rejects what could not be read back, before a folder is created
        new = folder is None
        interrupts.remember()  # so that an interrupted run has a checkpoint, if only of its first step
        if folder is not None:
            accept_changes(folder)
            if not (checkpoints(folder) or quiet):
                print(
                    f"{folder} has no checkpoint yet, so training starts at step 0 with the settings of the run",
                    file=sys.stderr,
                )
            restore(folder, config, state, edited)
            if validation is not None:
                validation.resume(folder, state.step, lambda weights: averaged_model(state, weights), edited=edited)
        else:
            there, above = out is not None and Path(out).exists(), [] if out is None else missing_above(Path(out))
            name = f"{info.name}-{config.name('sde').rpartition(':')[2].lower()}"
            folder = make_run_folder(out, name)
            if out is None and folder.name != name and not quiet:
                print(printable(taken(folder.with_name(name), folder)), file=sys.stderr)
            if not there:
                held.callback(remove_empty, folder, above)  # for example if the disk is full
            held.enter_context(writing(folder))
            refuse_taken(folder, mine=True)  # another process may have trained here since
            clear_start(folder)
        facts = {"format": FORMAT, "config": config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
        write_json(folder / "model.json", made_of, signed=True)
        if new:  # the description of a run's data is never rewritten
            write_json(folder / "data.json", info.to_dict(), signed=True)
        if new or (folder / "rows.npz").is_file():  # an older run, split by row numbers, has no such file
            keep_identity(folder, data, conditions=bool(config.sources.needs))
        facts["data_beside"] = beside(folder, config)  # the data may have moved
        if new and operator is not None:
            keep_mask(folder, operator)
        if config.coupling == "reflow":
            pairs = kept_pairs(folder / "pairs.safetensors", pairs, spec.classes)
        metrics = folder / "metrics.jsonl"  # drop the lines of steps that will be repeated
        write_lines(metrics, (line for line in read_lines(metrics) if line["step"] <= state.step))
        write_json(folder / "config.json", facts, signed=True)  # last, because it makes the folder a run
        if start is not None and new:  # the starting weights are stored nowhere else
            state.save(folder, config.keep)
    batches = Batches(train if pairs is None else pairs, config.batch, config.seed, config.augmentation, config.workers)

    def trained(weights: Mapping[str, Tensor] | None = None, step: int = 0) -> Run:
        model = averaged_model(state, weights)
        return Run(model, spec.codec, info, config, spec, step or state.step, folder, operator=operator)

    save_every, log_every = (max(1, config.steps // n) for n in (5, 200))
    pictures = affordable(evaluations(info, model.domain.nodes), config.steps, config.batch)
    shown_at = previews(config.steps, config.sample_every, pictures)
    first, average, began = state.step, 0.0, time.monotonic()
    saved, kept_step = began, first
    losses: Tensor | None = None
    shown_samples: Tensor | None = None
    model.train()
    interrupts.remember()
    records = steps(
        state, objective, batches, config.steps, seed=config.seed, rate=partial(_rate, config), clip=config.clip
    )
    with Progress(config.steps, "train", quiet=quiet, initial=first) as progress:
        for record in _explained(records, folder):
            # Like EMA, the average at first covers about the last tenth of the steps, so it soon forgets the start.
            n = record.step - 1 - first
            keep = min(0.98, n / (n + 9))
            average = keep * average + (1 - keep) * record.loss
            last = record.step == config.steps
            shown, line = {"loss": average}, {"step": record.step, "loss": record.loss, "lr": record.lr}
            looked = validation is not None and (record.step % every == 0 or last)
            if looked:
                assert validation is not None and state.average is not None
                losses = validation.look(averaged_model(state), state.averaged(), record.step, folder)
                line["validation"] = float(losses.mean())
            if losses is not None:
                shown["validation"] = float(losses.mean())
            progress.update(1, shown)
            if folder is not None:
                if record.step % log_every == 0 or last or looked:
                    line |= {"grad_norm": record.grad_norm, "seconds": round(time.monotonic() - began, 2)}
                    append_line(folder / "metrics.jsonl", line)
                due = record.step % save_every == 0 or last
                if due or interrupts.number is not None or time.monotonic() - saved > 60 * config.save_minutes:
                    state.save(folder, config.keep)
                    saved, kept_step = time.monotonic(), record.step
                if record.step in shown_at:
                    with optional(f"the figure of samples at step {record.step}"):
                        shown_samples = sample_sheet(folder / "samples", trained(), data)
            if interrupts.number is not None and not last:
                if folder is not None and kept_step != record.step:  # the signal came while the figure was drawn
                    state.save(folder, config.keep)
                kept = f"the checkpoint is saved in {folder}" if folder else "nothing was saved"
                raise interrupts.error(f" after step {record.step}: {kept}", "resume" if folder else None, folder)
    if folder is not None:
        keeps(f"all steps ({config.steps:,}) are done, and the checkpoint is saved in {folder}", "resume", folder)
    interrupts.forget()
    run, lines, best = trained(), [], None
    if validation is not None and validation.best is not None:
        if losses is None:  # a run that had already completed all its steps
            losses = validation.losses(averaged_model(state))
        choice, best = validation.choose(losses, state.step, folder), validation.best
        lines.append(sentence(choice))
        if choice["used"] == "best":
            run, shown_samples = trained(best.weights, best.step), None
            if folder is not None:
                with optional(f"the figure of samples at step {best.step}"):
                    shown_samples = sample_sheet(folder / "samples", run, data)
    elif validation is None and data.identity is not None and config.coupling != "reflow":
        lines.append(_without_validation(config.steps, every, None if validating is not None else len(data.train)))
    if folder is not None:
        with optional("the figure of the loss"):
            loss_figure(folder, None if best is None else best.step)
    if not quiet:
        with optional("the line on the nearest training samples"):
            x = few_samples(run, data) if shown_samples is None else shown_samples
            lines.append(nearest_line(x, data.filled, data.test, spec.codec.units.to_model))
        print(printable("\n".join(lines)), file=sys.stderr)
    return run


def _rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step, with a linear warm-up and an optional cosine decay."""
    factor = min(1.0, (step + 1) / config.warmup)
    if config.decay != "none":
        factor = factor * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * factor


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


def _explained(records: Iterator[Record], folder: Path | None) -> Iterator[Record]:
    """Yield the records, and if a step fails, mention the last checkpoint in the error."""
    try:
        yield from records
    except NumericalError as error:
        saved = folder is not None and checkpoints(folder)
        kept = f" The last checkpoint in {folder} is from an earlier step." if saved else ""
        raise NumericalError(f"{error}{kept}", parameter=error.parameter, value=error.value) from None
