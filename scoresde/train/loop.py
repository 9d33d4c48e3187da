"""The training loop, which also writes the run folder, handles signals and plots samples.

A single training step is defined in :mod:`scoresde.train.state`.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..codec import Codec
from ..core.condition import SLOTS, Condition
from ..core.errors import CheckpointError, DataError, NumericalError, UsageError
from ..core.files import (
    FORMAT,
    append_line,
    clear_leftovers,
    missing_above,
    read_lines,
    read_object,
    read_tensors,
    remove_empty,
    write_json,
    write_lines,
    write_tensors,
)
from ..core.lock import locked
from ..core.optional import optional
from ..core.progress import Progress
from ..core.signals import Interrupts, keeps
from ..core.text import printable
from ..data import NAMES, DataInfo, Dataset
from ..data.batch import Batches, Rows
from ..data.dataset import ARRAY
from ..data.given import Sources
from ..metrics.copies import nearest_line
from ..metrics.rows import furthest
from ..model.network import ScoreModel
from ..objective.coupling import Pairs
from ..objective.draw import PathDraw
from ..objective.loss import Denoising
from ..objective.times import Setting, Times, make_times
from ..objective.weighting import Weight, check_weight, make_weighting
from ..operators import Operator
from ..run.config import AUTO, TrainConfig, plain
from ..run.files import (
    accept_changes,
    checkpoints,
    clear_start,
    drop_older,
    find_run,
    load_weights,
    make_run_folder,
    newest_checkpoint,
    read_config,
    refuse_taken,
)
from ..run.origin import UNITS, became, beside, keep_identity, placed, read_again
from ..run.run import Run, described, warn_of_prior
from ..run.seen import keep_mask, kept_mask
from ..run.spec import ModelSpec
from ..sde.reach import explodes, sigma_for
from ..solvers import RungeKutta
from .averages import EMA
from .state import Record, TrainState, keyed_rng, steps
from .validation import Validation, sentence

__all__ = ["fit"]


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
        held.enter_context(_writing(folder))
    config, data = _data_for(config, data, folder, changed_data)
    config, model, spec = prepared(config, data, network, start, folder)
    # A model keeps the units and the vocabulary of the data that it was first trained on.
    told = data.info.known.told(config.sources)
    if start is not None:
        told = start.info.known
    elif folder is not None:
        told = DataInfo.from_dict(read_object(folder / "data.json")).known
    data = data.described(told)
    info = _measured(data, spec.codec, model)
    warn_of_prior(model.domain, info)
    if not resume and (pairs is None) == (config.coupling == "reflow"):
        raise UsageError(
            "pairs and the 'reflow' coupling must be used together; the function reflow draws suitable pairs"
        )
    weighting, times = _objective(config, model)
    model.to(device=device, dtype=dtype)
    optimiser = torch.optim.Adam(model.learned.parameters(), lr=config.lr, betas=(0.9, 0.999))
    draw = PathDraw(times, model.domain.nodes, config.coupling == "ot", config.cond_drop)
    state = TrainState(model, optimiser, draw, EMA(model.learned, config.ema))
    objective = Denoising(weighting)
    operator = _operator(config, data.info, start, folder)
    train, validating = _parts(data, spec, config, config.coupling != "reflow", operator)
    validation = Validation(validating, draw, objective, config.seed, dtype) if validating is not None else None

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
            _restore(folder, config, state, edited)
            if validation is not None:
                validation.resume(folder, state.step, lambda weights: _averaged(state, weights), edited=edited)
        else:
            there, above = out is not None and Path(out).exists(), [] if out is None else missing_above(Path(out))
            folder = make_run_folder(out, f"{info.name}-{config.name('sde').rpartition(':')[2].lower()}")
            if not there:
                held.callback(remove_empty, folder, above)  # for example if the disk is full
            held.enter_context(_writing(folder))
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
            pairs = _kept(folder / "pairs.safetensors", pairs, spec.classes)
        metrics = folder / "metrics.jsonl"  # drop the lines of steps that will be repeated
        write_lines(metrics, (line for line in read_lines(metrics) if line["step"] <= state.step))
        write_json(folder / "config.json", facts, signed=True)  # last, because it makes the folder a run
        if start is not None and new:  # the starting weights are stored nowhere else
            state.save(folder, config.keep)
    batches = Batches(train if pairs is None else pairs, config.batch, config.seed, config.augmentation)

    def trained(weights: Mapping[str, Tensor] | None = None, step: int = 0) -> Run:
        return Run(
            _averaged(state, weights), spec.codec, info, config, spec, step or state.step, folder, operator=operator
        )

    save_every, look_every, log_every = (max(1, config.steps // parts) for parts in (5, 20, 200))
    shown_at = previews(config.steps, config.sample_every)
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
            looked = validation is not None and (record.step % look_every == 0 or last)
            if looked:
                assert validation is not None and state.average is not None
                losses = validation.look(_averaged(state), state.averaged(), record.step, folder)
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
                        shown_samples = _sample_sheet(folder / "samples", trained(), data)
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
            losses = validation.losses(_averaged(state))
        choice, best = validation.choose(losses, state.step, folder), validation.best
        lines.append(sentence(choice))
        if choice["used"] == "best":
            run, shown_samples = trained(best.weights, best.step), None
            if folder is not None:
                with optional(f"the figure of samples at step {best.step}"):
                    shown_samples = _sample_sheet(folder / "samples", run, data)
    elif validation is None and data.identity is not None and config.coupling != "reflow":
        lines.append(
            f"validation: none, because the training samples (count: {len(data.train)}) are too few to spare any; to "
            "detect overfitting, use the likelihood of the test samples"
        )
    if folder is not None:
        with optional("the figure of the loss"):
            _loss_figure(folder, None if best is None else best.step)
    if not quiet:
        with optional("the line on the nearest training samples"):
            x = _few_samples(run, data) if shown_samples is None else shown_samples
            lines.append(nearest_line(x, data.filled, data.test, spec.codec.continuous.to_model))
        print(printable("\n".join(lines)), file=sys.stderr)
    return run


def _data_for(
    config: TrainConfig, data: Dataset | Tensor | npt.ArrayLike | None, folder: Path | None, changed: bool
) -> tuple[TrainConfig, Dataset]:
    """Load the data unless they are given, and record in ``config`` how they are read and split."""
    stored = None if folder is None else TrainConfig.from_dict(read_config(folder))
    if folder is not None and stored is not None:
        config = _as_begun(config, stored, DataInfo.from_dict(read_object(folder / "data.json")))
        if "split" not in read_config(folder):  # a missing field means the behaviour before the field existed
            config = replace(config, split=stored.split)
    if data is None:
        data = config.load_data() if folder is None else read_again(folder, config)
        config = placed(config)
    else:
        if not isinstance(data, Dataset):
            data = Dataset.of(
                data, seed=config.seed, test_fraction=config.test_fraction, layout=config.layout, split=config.split
            )
        # Data that do not come from a file keep their name, so that no file is read instead of them.
        config = placed(replace(config, data=data.info.source))
    config = _split_as(config, data)
    if folder is None or stored is None:
        return config, data
    _same_units(folder, data, stored.sources)
    became(folder, data, changed=changed)
    return config, data.told_as(DataInfo.from_dict(read_object(folder / "data.json")).known)


def previews(total: int, every: int = 0) -> set[int]:
    """Return the steps after which samples are plotted: all multiples of ``every``, and the last step, ``total``.

    If ``every`` is 0, samples are plotted after 1, 2, 5, 10, 20, 50 and 100 % of the ``total`` steps instead.
    """
    if every:
        return {*range(every, total + 1, every), total}
    return {max(1, math.ceil(total * percent / 100)) for percent in (1, 2, 5, 10, 20, 50, 100)}


def _parts(
    data: Dataset, spec: ModelSpec, config: TrainConfig, split: bool, operator: Operator | None
) -> tuple[Rows, Rows | None]:
    """Return the training rows and the validation rows (``None`` if no rows are set aside)."""

    def rows(index: Tensor | None) -> Rows:
        x, y, known, complete = data.train, data.train_labels, config.told(data.train_given), data.complete
        y = y if spec.classes else None
        if index is not None:
            x, y = x[index], None if y is None else y[index]
            known = (
                None if known is None else known.rows(index.nonzero().flatten() if index.dtype == torch.bool else index)
            )
            complete = None if complete is None else complete[index]
        return Rows(x, spec.codec, y, spec.classes, known, data.info.known, complete, operator)

    if not split or data.validates is None or not len(data.validates):
        return rows(None), None
    return rows(data.trains), rows(data.validates)


def prepared(
    config: TrainConfig,
    data: Dataset,
    network: nn.Module | None = None,
    start: Run | None = None,
    resumed: Path | None = None,
) -> tuple[TrainConfig, ScoreModel, ModelSpec]:
    """Return the resolved configuration, the model to train, and the specification of the model.

    Without ``start``, the model is untrained. Otherwise, it is a copy of the model of the run ``start``. If a run is
    resumed, the specification is read from its folder, ``resumed``.
    """
    if start is not None:
        config = _continued(config, start, network, data)
    given = config.batch
    if data.complete is not None:
        _check_incomplete(config, data)
    codec = data.codec if start is None else start.codec
    config = config.fitted(lambda: sigma_for(furthest(_model_units(data, codec)), _spread(data, codec)))
    config = config.shaped(codec.model_shape(data.info.shape))
    operator = _operator(config, data.info, start, resumed)
    config = config.resolved(data.info, data_std=_spread(data, codec), operator=operator)
    if resumed is not None:
        config = replace(config, batch=given)  # even if the number of rows has changed
    if start is not None:
        assert isinstance(start.base, ScoreModel)
        spec = start.spec or config.spec(data.info, start.codec)
        spec = replace(spec, coupled=config.coupling != "independent")
        model = copy.deepcopy(start.base).requires_grad_(True)
        model.domain = replace(model.domain, has_score=not spec.coupled)
    else:
        if resumed is None:
            spec = config.spec(data.info, data.codec, network is None)
        else:
            spec = described(resumed, TrainConfig.from_dict(read_config(resumed)))[1]
        sde = None if isinstance(config.sde, str) else config.sde
        predict = None if isinstance(config.predict, str) else config.predict
        with keyed_rng(config.seed, -1, "cpu"):
            model = spec.build(sde, network, predict, typed=config.typed_names())
        spec = spec.resolved(model, config.typed_names())
    model.sde.check_event(spec.codec.model_shape(data.info.shape))
    config.check_network(model.network)
    _objective(config, model)  # rejects invalid names and combinations before a folder is created
    return config, model, spec


def _operator(config: TrainConfig, info: DataInfo, start: Run | None, resumed: Path | None) -> Operator | None:
    """Return the operator of the run ``start`` or, without ``start``, the operator in ``config.cond``, if any."""
    if start is not None:
        return start.operator
    # A resumed run reads the masks of its operator from its own folder.
    return config.operator_for(info, None if resumed is None else partial(kept_mask, resumed, config.sources.operator))


def _check_incomplete(config: TrainConfig, data: Dataset) -> None:
    """Reject missing values in the training samples unless ``config`` allows missing values."""
    assert data.complete is not None
    missing = f"{data.info.source}: values of the training samples are missing (count: {int((~data.complete).sum()):,})"
    if not config.sources.gaps:
        raise DataError(
            f"{missing}; fill in these values, leave out the affected samples, or train with cond='cells', which "
            "accepts missing values",
            parameter="cond",
            value="cells",
        )
    if config.augmentation is not None:
        raise UsageError(
            f"{missing}, so the samples cannot be augmented; leave out the augmentation",
            parameter="augment",
            value="none",
        )


def _continued(config: TrainConfig, start: Run, network: nn.Module | None, data: Dataset) -> TrainConfig:
    """Return ``config`` with the network, path, parametrisation and condition of the run ``start``."""
    if network is not None:
        raise UsageError("training that continues from a run uses the network of that run; do not pass a network")
    if data.info.shape != start.info.shape:
        raise DataError(
            f"the run was trained on samples of shape {start.info.shape}, but the data have shape "
            f"{data.info.shape}; use data of the same shape"
        )
    if start.config is None or not isinstance(start.base, ScoreModel):
        raise UsageError("training can continue only from a run with a training configuration and a score model")
    if config.augment not in ("none", start.config.augment):
        raise UsageError(
            f"the run was trained with augment={start.config.augment!r}, so its network has no inputs for "
            f"{config.augment!r}; use the augmentation of the run, or none",
            parameter="augment",
            value=start.config.augment,
        )
    return replace(
        config, sde=start.base.sde, sde_options={}, shift=1.0, predict=start.base.parametrization, predict_options={},
        cond=start.config.cond, learn_variance=start.config.learn_variance, preset=start.config.preset,
        network_options=start.config.network_options,
    )  # fmt: skip


@torch.no_grad()
def _objective(config: TrainConfig, model: ScoreModel) -> tuple[Weight, Times]:
    """Build the weighting and the time sampler, and check that they suit the path and the prediction."""
    low, high = model.domain.interval("train")
    weighting = make_weighting(config.weighting, config.weighting_options, config.typed)
    check_weight(weighting, model.sde, model.parametrization, low, high)
    setting = Setting(model.sde, low, high, model.parametrization, weighting)
    return weighting, make_times(config.t_sampler, config.t_sampler_options, setting, config.typed)


def _rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step, with a linear warm-up and an optional cosine decay."""
    factor = min(1.0, (step + 1) / config.warmup)
    if config.decay != "none":
        factor = factor * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * factor


def _spread(data: Dataset, codec: Codec) -> float:
    """Return the root mean square of the first 4,096 training rows in model units."""
    x = data.train[:4096]
    x = codec.to_model(x, noise=torch.full(x.shape, 0.5, dtype=torch.float64 if data.info.wide else torch.float32))
    if data.complete is not None:
        x = x[data.complete[:4096]]
    return float(x.double().square().mean().sqrt())


def _model_units(data: Dataset, codec: Codec) -> Tensor:
    """Return training rows in model units, evenly thinned if they have more than 2^25 elements."""
    most = max(16, 2**25 // data.info.dims)
    index = torch.linspace(0, len(data.train) - 1, min(most, len(data.train)), dtype=torch.float64)
    x = data.train[index.round().long()]
    return codec.to_model(x, noise=torch.full(x.shape, 0.5, dtype=torch.float64 if data.info.wide else torch.float32))


def _measured(data: Dataset, codec: Codec, model: ScoreModel) -> DataInfo:
    """Return the description of the data, extended by ``spread`` and, if alpha is constant, by ``furthest``."""
    across = furthest(_model_units(data, codec)) if explodes(model.sde) else 0.0
    return replace(data.info, spread=_spread(data, codec) or None, furthest=across or None)


def _averaged(state: TrainState, weights: Mapping[str, Tensor] | None = None) -> ScoreModel:
    """Return a copy of the model for evaluation, with ``weights`` or, by default, the averaged weights."""
    assert isinstance(state.model, ScoreModel) and state.average is not None
    averaged = copy.deepcopy(state.model)
    load_weights(averaged.learned, state.average.state_dict() if weights is None else weights, Path("the best weights"))
    return averaged.eval().requires_grad_(False)


def _explained(records: Iterator[Record], folder: Path | None) -> Iterator[Record]:
    """Yield the records, and if a step fails, mention the last checkpoint in the error."""
    try:
        yield from records
    except NumericalError as error:
        saved = folder is not None and checkpoints(folder)
        kept = f" The last checkpoint in {folder} is from an earlier step." if saved else ""
        raise NumericalError(f"{error}{kept}", parameter=error.parameter, value=error.value) from None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Lock a run folder for writing, and delete the leftovers of interrupted writes."""
    with locked(folder):
        clear_leftovers(folder, below=True)
        yield


def _restore(folder: Path, config: TrainConfig, state: TrainState, edited: bool) -> None:
    """Check ``config`` against the settings of the run, and load the newest checkpoint if there is one."""
    stored = TrainConfig.from_dict(read_config(folder)).to_dict()
    free = {"steps", "warmup"}
    if not {config.data, stored["data"]} & set(NAMES):
        free.add("data")  # such data are identified by their content, not by their name or path
    for name, value in config.to_dict().items():
        if name not in free and plain(value) != plain(stored[name]):
            raise UsageError(
                f"{folder} has {name} = {stored[name]!r}, not {value!r}; a resumed run keeps its settings, so use the "
                "stored value"
            )
    dtype = str(next(state.model.parameters()).dtype).removeprefix("torch.")
    trained = read_object(folder / "config.json").get("dtype", dtype)
    if trained != dtype:
        raise UsageError(
            f"{folder} was trained with dtype {trained}, not {dtype}; use the same dtype",
            parameter="dtype",
            value=trained,
        )
    if not checkpoints(folder):
        if config.coupling == "reflow":
            raise CheckpointError(f"{folder} has neither a checkpoint nor its starting weights; run reflow again")
        return
    checkpoint = newest_checkpoint(folder, edited=edited)
    done = read_object(checkpoint / "state.json")["step"]
    if config.steps < done:
        raise UsageError(
            f"{folder} has already been trained for {done:,} steps, but steps is {config.steps:,}; use a larger number",
            parameter="steps",
        )
    state.load(checkpoint)
    drop_older(folder, checkpoint, config.keep)  # the interrupted run had no time to do this


def _as_begun(config: TrainConfig, stored: TrainConfig, info: DataInfo) -> TrainConfig:
    """Return ``config`` with the automatic settings that were chosen when the run started."""
    # Only numbers are copied. Names read from a file are not trusted, because the user did not type them
    # (scoresde.core.registry).
    kept: dict[str, Any] = {n: getattr(stored, n) for n in ("batch", "lr", "warmup", "steps") if not getattr(config, n)}
    for part in ("predict", "weighting"):
        spread = getattr(stored, f"{part}_options").get("data_std")
        if isinstance(spread, int | float) and config.name(part) in ("auto", stored.name(part)):
            kept[f"{part}_options"] = {"data_std": spread, **getattr(config, f"{part}_options")}
    if config.sde_options.get("sigma_max") == AUTO and config.name("sde") == stored.name("sde"):
        kept["sde_options"] = {**config.sde_options, "sigma_max": stored.sde_options.get("sigma_max", AUTO)}
    batch = min(kept.pop("batch", config.batch), info.n_train - info.n_validation)
    return replace(config, batch=batch, **kept)


def _split_as(config: TrainConfig, data: Dataset) -> TrainConfig:
    """Return ``config`` with options that give the same split when ``data`` are read again."""
    how = data.how
    if how is None or data.identity is None:  # toys and digits are drawn and split by the seed of the run
        return config
    if how.seed != config.seed:
        raise UsageError(
            f"{data.info.source} was split with seed {how.seed}, but the run has seed {config.seed} and would split "
            f"the data differently when it reads them again; split the data with seed {config.seed}",
            parameter="seed",
            value=how.seed,
        )
    if how.reading.columns != config.sources.columns and data.info.source != ARRAY:
        told = f"the columns {', '.join(how.reading.columns)}" if how.reading.columns else "no columns"
        raise UsageError(
            f"{data.info.source} was read with {told} as the condition of each sample, but the run has "
            f"cond={config.cond!r}; name the same columns in both, such as columns=('age',) and cond='vector:age'",
            parameter="cond",
        )
    reading = {name: getattr(how.reading, name) for name in ("size", "fit", "layout", "on_bad")}
    return replace(config, test_fraction=how.test_fraction, split=how.split, **reading)


def _same_units(folder: Path, data: Dataset, sources: Sources) -> None:
    """Reject data whose units differ from the units of the resumed run in ``folder``."""
    known, info = DataInfo.from_dict(read_object(folder / "data.json")), data.info
    found: list[tuple[str, Any, Any]] = [(name, getattr(known, name), getattr(info, name)) for name in UNITS]
    if (folder / "rows.npz").is_file():  # an older run has one range for all columns
        kept = ModelSpec.read(folder / "model.json").codec.levels
        found.append(("levels", kept, data.codec.levels))
    told = info.known.told(sources)
    for name, what in (("vector", "numbers"), ("image", "condition image"), ("features", "feature size")):
        found.append((what, getattr(known.known, name), getattr(told, name)))
    for name, theirs, ours in found:
        if theirs != ours:
            raise DataError(
                f"{folder} was trained on {known.name} with {name} = {theirs}, but these data have {name} = {ours}; "
                "resume with the original data, or start a new run"
            )


def _kept(path: Path, pairs: Pairs | None, classes: int) -> Pairs:
    """Write the pairs of a new run to ``path``, or read the pairs of a resumed run from ``path``."""
    if pairs is None:
        stored = read_tensors(path)
        if not {"x0", "eps"} <= set(stored):
            raise CheckpointError(
                f"{path} must contain the arrays x0 and eps, but contains {', '.join(sorted(stored))}; is it damaged?"
            )
        label, vector, image, tokens = (stored.get(_STORED.get(name, name)) for name in SLOTS)
        known: Condition | None = Condition(label, vector, image, tokens, classes)
        if all(slot is None for slot in (label, vector, image, tokens)):
            known = None
        return Pairs(stored["x0"], stored["eps"], known)
    given = {} if pairs.condition is None else {
        _STORED.get(name, name): value for name in SLOTS if (value := getattr(pairs.condition, name)) is not None
    }  # fmt: skip
    write_tensors(path, {"x0": pairs.x0, "eps": pairs.eps, **given})
    return pairs


_STORED = {"label": "labels"}  # names of the slots of a condition in a file of pairs, where they differ


def _few_samples(run: Run, data: Dataset) -> Tensor:
    """Draw a few samples in data units, always from the same noise and under the same conditions."""
    info, nodes = run.info, run.base.domain.nodes
    n = {"image": 36, "volume": 4, "signal": 8, "vector": 1024}[info.kind]
    n = 9 if info.kind == "image" and info.dims > 4096 else n  # a few large images fill the figure, and each is slow
    solver = RungeKutta(steps=16 if nodes is None else min(16, len(nodes) - 1))
    if run.config is not None and run.config.sources.rich:
        bound = run.given_rows(data, torch.arange(n) % len(data.test))
    else:
        bound = run.given(run.example_labels(n))
    x = replace(bound, told=True).sample(n, solver).x
    if not bool(torch.isfinite(x).all()):
        raise NumericalError("some samples are not finite")
    return x


def _sample_sheet(folder: Path, run: Run, data: Dataset) -> Tensor:
    """Save a figure of a few samples, and return the samples."""
    from ..plot import samples_figure, save_figure, save_image_grid

    info, path, x = run.info, folder / f"step-{run.step:06d}.png", _few_samples(run, data)
    if info.kind in ("image", "volume"):
        save_image_grid(path, x.numpy(), info.low, info.high)
    else:
        behind = data.filled[: max(8, len(x))]
        save_figure(path, samples_figure(x, info.kind, info.low, info.high, behind, info.names))
    return x


def _loss_figure(folder: Path, best: int | None) -> None:
    import numpy as np

    from ..plot import loss_curve, save_figure

    lines = read_lines(folder / "metrics.jsonl")
    if len(lines) > 1:
        lines = [line for line in lines if isinstance(line.get("loss"), float)]
        steps, losses = (np.array([line[key] for line in lines], dtype=float) for key in ("step", "loss"))
        looks = [(line["step"], line["validation"]) for line in lines if "validation" in line]
        validation = None if not looks else (np.array([s for s, _ in looks]), np.array([v for _, v in looks]))
        save_figure(folder / "plots" / "loss.png", loss_curve(steps, losses, validation, best))
