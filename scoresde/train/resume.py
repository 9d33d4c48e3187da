"""How a run is resumed: which of its settings it keeps, which data suit it, and where it continues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..core.condition import SLOTS, Condition
from ..core.errors import CheckpointError, DataError, UsageError
from ..core.files import clear_leftovers, read_lines, read_object, read_tensors, write_tensors
from ..core.lock import locked
from ..data import NAMES, DataInfo, Dataset
from ..data.dataset import ARRAY
from ..data.given import Sources
from ..objective.coupling import Pairs
from ..run.config import AUTO, TrainConfig, plain
from ..run.files import BEFORE, BEST, CHOICE, checkpoints, drop_older, newest_checkpoint, read_config
from ..run.origin import UNITS, became, placed, read_again
from ..run.run import described
from ..run.spec import ModelSpec
from .state import TrainState

__all__ = ["check_resumable", "data_for", "finished", "kept_pairs", "restore", "writing"]


def data_for(
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


def _as_begun(config: TrainConfig, stored: TrainConfig, info: DataInfo) -> TrainConfig:
    """Return ``config`` with the automatic settings that were chosen when the run started."""
    # Only numbers are copied. Names read from a file are not trusted, because the user did not type them
    # (scoresde.core.registry).
    names = ("batch", "lr", "warmup", "steps", "validate_every")
    kept: dict[str, Any] = {n: getattr(stored, n) for n in names if not getattr(config, n)}
    for name in ("precision", "channels_last"):
        if getattr(config, name) == AUTO:
            kept[name] = getattr(stored, name)
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


def finished(folder: Path, config: TrainConfig, *, edited: bool = False) -> bool:
    """Return whether a run has nothing left to do. This is known without reading its data.

    A run that was stopped after its last step, before its weights were chosen and its losses drawn, is not finished.

    Args:
        folder: The run folder.
        config: The configuration of the run, with the wanted total number of steps.
        edited: Whether to accept files of the run that were changed after they were written.

    Raises:
        UsageError: If the run has already been trained for more steps.
        CheckpointError: If the files that describe the run are missing, damaged or contradict each other.
    """
    described(folder, config)
    if not checkpoints(folder):
        return False
    newest = newest_checkpoint(folder, edited=edited)
    done = _step_of(newest)
    _check_steps(folder, config.steps, done)
    if done < config.steps:
        return False
    chosen, figure = folder / CHOICE, folder / "plots" / "loss.png"
    if any((folder / "checkpoints" / name).is_dir() for name in (BEST, BEFORE)):
        if not chosen.is_file() or read_object(chosen).get("last_step") != done:
            return False
    if len(list(read_lines(folder / "metrics.jsonl"))) < 2:  # too few for a figure
        return True
    return figure.is_file() and figure.stat().st_mtime_ns >= (newest / "state.json").stat().st_mtime_ns


def _step_of(checkpoint: Path) -> int:
    return int(read_object(checkpoint / "state.json")["step"])


def _check_steps(folder: Path, steps: int, done: int) -> None:
    if steps < done:
        raise UsageError(
            f"{folder} has already been trained for {done:,} steps, but steps is {steps:,}; use a larger number",
            parameter="steps",
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Lock a run folder for writing, and delete the leftovers of interrupted writes."""
    with locked(folder):
        clear_leftovers(folder, below=True)
        yield


def check_resumable(folder: Path, dtype: torch.dtype) -> None:
    """Check what can be checked before the data are read and the model is built.

    Raises:
        CheckpointError: If the folder has only an average that was computed from the snapshots of a run.
        UsageError: If the run was trained with another ``dtype``.
    """
    facts, name = read_object(folder / "config.json"), str(dtype).removeprefix("torch.")
    if isinstance(averaged := facts.get("averaged"), dict):
        whence = f", {averaged['from']}" if "from" in averaged else ""
        raise CheckpointError(
            f"{folder} contains an average of the weights of another run{whence}, without the state of its training; "
            "resume that run"
        )
    if (trained := facts.get("dtype", name)) != name:
        raise UsageError(
            f"{folder} was trained with dtype {trained}, not {name}; use the same dtype",
            parameter="dtype",
            value=trained,
        )


def restore(
    folder: Path, config: TrainConfig, state: TrainState, edited: bool, *, tidy: bool = True, redivided: bool = False
) -> None:
    """Check ``config`` against the settings of the run, and load the newest checkpoint if there is one.

    Args:
        folder: The run folder.
        config: The configuration with which to continue.
        state: The state, whose contents are replaced by those of the checkpoint.
        edited: Whether to accept files of the run that were changed after they were written.
        tidy: Whether to remove checkpoints that are older than the interrupted run wanted to keep.
        redivided: Whether to accept other dropout masks, if the batch is divided otherwise than before.
    """
    stored = TrainConfig.from_dict(read_config(folder)).to_dict()
    free = {"steps", "warmup", "accumulate", "recompute", "workers", "keep", "compile", "frechet_every", "snapshots"}
    if not {config.data, stored["data"]} & set(NAMES):
        free.add("data")  # such data are identified by their content, not by their name or path
    for name, value in config.to_dict().items():
        if name not in free and plain(value) != plain(stored[name]):
            raise UsageError(
                f"{folder} has {name} = {stored[name]!r}, not {value!r}; a resumed run keeps its settings, so use the "
                "stored value"
            )
    if not checkpoints(folder):
        if config.coupling == "reflow":
            raise CheckpointError(f"{folder} has neither a checkpoint nor its starting weights; run reflow again")
        return
    checkpoint = newest_checkpoint(folder, edited=edited)
    _check_steps(folder, config.steps, _step_of(checkpoint))
    facts = read_object(checkpoint / "state.json")
    before = facts.get("divided", [1, 1])
    if facts.get("short") and before[0] == state.divided[0] and stored["accumulate"] == config.accumulate:
        state.divided, state.short = (before[0], before[1]), True
    _same_masks(folder, before, state, redivided)
    state.load(checkpoint)
    if tidy:
        drop_older(folder, checkpoint, config.keep)  # the interrupted run had no time to do this


def _same_masks(folder: Path, before: Any, state: TrainState, accepted: bool) -> None:
    """Reject another number of processes or parts if the dropout masks depend on it, unless this is accepted."""
    if not any(map(_drops, state.network.modules())) or accepted or list(state.divided) == before:
        return
    raise UsageError(
        f"{folder} has dropout, whose masks depend on how the batch is divided: it was trained in {_division(before)}, "
        f"and would continue in {_division(state.divided)}; use the same numbers, or accept other masks",
        parameter="redivided",
    )


def _drops(module: nn.Module) -> bool:
    """Return whether a module, such as a dropout or an attention layer, is known to drop values at random."""
    rates = [getattr(module, "p", 0.0) if isinstance(module, _DropoutNd) else 0.0, getattr(module, "dropout", 0.0)]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def _division(divided: Any) -> str:
    processes, parts = divided
    return f"{processes} process{'es' * (processes > 1)} with {parts} part{'s' * (parts > 1)} each"


def kept_pairs(path: Path, pairs: Pairs | None, classes: int) -> Pairs:
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
