"""The files of a run: weights in safetensors, everything else in JSON. Loading them never runs code.

A run folder contains

    config.json   model.json   data.json   rows.npz   metrics.jsonl   validation.json   samples/   plots/
    checkpoints/LATEST
    checkpoints/step-000002400/{model,ema,optim}.safetensors  state.json
    checkpoints/best/ema.safetensors  state.json

A checkpoint is written under a temporary name, flushed to disk and renamed, so it is either complete or absent.
``state.json`` stores the size and SHA-256 of each file beside it and, like the other JSON files, a checksum of itself.
A reader uses the newest complete checkpoint. Only folders named as above are checkpoints. A copy under another name
belongs to the user and is neither read nor removed.

``config.json`` is written after the other files that describe the run, so a folder without it holds no run. A run
without a checkpoint has either just started or stopped before its first checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError, UsageError
from ..core.files import (
    FORMAT,
    atomic,
    cannot_write,
    check_format,
    make_folder,
    read_json,
    read_object,
    was_changed,
    write_json,
    write_tensors,
)
from ..core.lock import held_by, in_use
from ..core.opened import file_digest, reason, regular
from ..core.text import one_line

__all__ = [
    "BEFORE", "BEST", "CHOICE", "accept_changes", "bare_names", "checkpoints", "chosen_checkpoint", "clear_start",
    "drop_older", "fault_of", "find_run", "load_weights", "make_run_folder", "matching", "newest_checkpoint",
    "read_config", "refuse_taken", "save_best", "save_checkpoint",
]  # fmt: skip

BEST = "best"  # the checkpoint with the lowest validation loss
BEFORE = "best-before"  # the best at the time of the newest checkpoint, kept while BEST is newer than that checkpoint
CHOICE = "validation.json"  # written at the end of training; states whether the best weights are used


STEP = re.compile(r"step-([0-9]{9,})")
SIGNED = ("config.json", "model.json", "data.json", CHOICE)
# The files that training writes before its first checkpoint, besides pictures.
BEGUN = (*SIGNED, "rows.npz", "pairs.safetensors", "metrics.jsonl")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run as plain values.

    Raises:
        CheckpointError: If the file is missing or has a different format.
    """
    path = folder / "config.json"
    stored = read_json(path)
    check_format(path, stored)
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{path} contains no configuration; is it damaged?")
    config: dict[str, Any] = stored["config"]
    return config


def make_run_folder(out: str | Path | None, name: str) -> Path:
    """Create the folder of a new run: ``out``, or ``runs/NAME``, with a number if the name is taken.

    Raises:
        UsageError: If ``out`` already holds a run.
        CheckpointError: If the folder cannot be written.
    """
    if out is None:
        folder, n = Path("runs") / name, 2
        make_folder(folder.parent)
        while True:  # if two runs start at the same moment, only one gets the name
            try:
                folder.mkdir()
                break
            except FileExistsError:
                folder, n = Path("runs") / f"{name}-{n}", n + 1
            except OSError as error:
                raise cannot_write(folder, error) from None
    else:
        folder = Path(out)
        refuse_taken(folder)
    for part in ("checkpoints", "samples", "plots"):
        make_folder(folder / part)
    return folder


def refuse_taken(folder: Path, *, mine: bool = False) -> None:
    """Reject a folder that holds another run. A run without a checkpoint may be started again.

    Args:
        folder: The folder.
        mine: Whether the caller holds the lock of the folder.

    Raises:
        CheckpointError: If another process is training there.
        UsageError: If ``folder`` already holds a run.
    """
    if not mine and (holder := held_by(folder)) is not None:
        raise in_use(folder, holder)
    if os.path.exists(folder / "config.json") and checkpoints(folder):
        message = f"{folder} already holds a run; resume it, or choose another folder"
        raise UsageError(message, parameter="resume", value=folder)


def clear_start(folder: Path) -> None:
    """Remove the files of a run that ended before its first checkpoint, and nothing else."""
    pictures = [*(folder / "samples").glob("step-*.png"), folder / "plots" / "loss.png"]
    for path in (*(folder / name for name in BEGUN), *pictures):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None
    for name in (BEST, BEFORE):
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)


def find_run(run: str | Path | None, *, edited: bool = False) -> Path:
    """Return the folder of a run: a path, a name under ``runs/``, or the newest run there.

    Args:
        run: The path or the name, or ``None`` for the newest run.
        edited: Accept files that were changed after they were written.

    Raises:
        CheckpointError: If there is no such run, or its files were changed.
    """
    folder = _found(run)
    changed = _changed(folder)
    if changed:
        several = f"{' and '.join(changed)} in {folder} {'were' if changed[1:] else 'was'} changed after training"
        if not edited:
            raise CheckpointError(
                f"{several} (the content does not match its checksum): restore the original, or confirm that it was "
                "edited on purpose",
                parameter="edited",
            )
        warnings.warn(f"{several}; using it as it is", stacklevel=1)
    return folder


def _changed(folder: Path) -> list[str]:
    """Return the names of the files of a run that were changed after they were written."""
    return [name for name in SIGNED if os.path.lexists(folder / name) and was_changed(folder / name)]


def accept_changes(folder: Path) -> None:
    """Update the checksums of the files of a run that were changed, to match their contents."""
    for name in _changed(folder):
        write_json(folder / name, read_object(folder / name), signed=True)


def _found(run: str | Path | None) -> Path:
    if run is not None:
        for folder in (Path(run), Path("runs") / run):
            if os.path.isfile(folder / "config.json"):
                return folder
        if os.path.isfile(run):
            raise CheckpointError(f"{run} is a file; pass the run folder, such as runs/NAME")
        why = "there is no such folder, nor one under runs/"
        begun = next((f for f in (Path(run), Path("runs") / run) if os.path.isdir(f / "checkpoints")), None)
        if begun is not None:
            holder = held_by(begun)
            why = "it has no config.json: training there stopped before it began; start again with the same out"
            why = f"it has no config.json yet: {holder} is starting to train there" if holder else why
        elif os.path.isdir(run):
            why = "it has no config.json"
        here = [folder.name for folder in _runs()]
        names = (
            f"the runs here are: {', '.join(map(one_line, here))}"
            if here
            else "there are no runs here; train one first"
        )
        raise CheckpointError(f"{run} is not a run folder ({why}); {names}", parameter=None if here else "fit")
    runs = [(os.stat(folder / "checkpoints").st_mtime_ns, folder) for folder in _runs() if checkpoints(folder)]
    if not runs:
        begun_here = ", ".join(one_line(folder.name) for folder in _runs())
        more = f" (runs without a checkpoint: {begun_here})" if begun_here else ""
        raise CheckpointError(
            f"there is no run with a checkpoint in {Path('runs').absolute()}{more}; train one first", parameter="fit"
        )
    return max(runs, key=lambda run: run[0])[1]


def _runs() -> list[Path]:
    """Return the folders under ``runs/`` that hold a run, sorted by name."""
    try:
        names = sorted(os.listdir("runs"))
    except OSError:
        return []
    return [Path("runs") / name for name in names if os.path.isfile(Path("runs") / name / "config.json")]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first by name, without checking that they are complete."""
    root = folder / "checkpoints"
    try:
        with os.scandir(root) as inside:
            found = [(int(match[1]), e.name) for e in inside if (match := STEP.fullmatch(e.name)) and e.is_dir()]
    except OSError:
        return []
    return [root / name for step, name in sorted(found, reverse=True) if name == f"step-{step:09d}"]


def _is_copy(checkpoint: Path) -> bool:
    """Return whether the step that a checkpoint states differs from the step in its name."""
    return _step(checkpoint) not in (-1, int(checkpoint.name.removeprefix("step-")))


def _digest(path: Path) -> dict[str, Any]:
    return {"size": regular(path), "sha256": file_digest(path)}


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Save a checkpoint completely or not at all, then remove all checkpoints except the newest ``keep``.

    Args:
        folder: The run folder.
        step: Number of steps done.
        tensors: Groups of tensors, keyed by name. Each group is written to its own safetensors file.
        state: Further plain JSON values for ``state.json``.
        keep: Number of checkpoints to keep.
    """
    root = folder / "checkpoints"
    final = root / f"step-{step:09d}"
    _write(final, step, tensors, state)
    with atomic(root / "LATEST") as pointer:
        pointer.write_text(final.name + "\n", encoding="utf-8")
    drop_older(folder, final, keep)
    return final


def drop_older(folder: Path, checkpoint: Path, keep: int = 2) -> None:
    """Remove what is not needed once ``checkpoint`` is complete.

    These are the older checkpoints, except the newest ``keep`` - 1 of them, and the former best weights.
    """
    root, number = folder / "checkpoints", int(checkpoint.name.removeprefix("step-"))
    older = [path for path in checkpoints(folder) if int(path.name.removeprefix("step-")) < number]
    older = [path for path in older if not _is_copy(path)]
    for old in [*older[keep - 1 :], *([root / BEFORE] if 0 <= _step(root / BEST) <= number else [])]:
        shutil.rmtree(old, ignore_errors=True)


def save_best(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Save averaged weights as the best so far, replacing the former best (see :func:`save_checkpoint`).

    The former best weights are kept until there is a checkpoint at least as new as the new best. A run that is resumed
    from the current checkpoint uses the former best weights as its best.
    """
    best, before = (folder / "checkpoints" / name for name in (BEST, BEFORE))
    newest = max(map(_step, checkpoints(folder)), default=-1)
    if 0 <= _step(best) <= newest:
        shutil.rmtree(before, ignore_errors=True)
        with suppress(OSError):
            os.rename(best, before)
    return _write(best, step, tensors, {})


def _step(checkpoint: Path) -> int:
    """Return the step that a checkpoint states, or -1 if it states no step."""
    try:
        step = read_object(checkpoint / "state.json").get("step")
    except CheckpointError:
        return -1
    return step if isinstance(step, int) else -1


def _write(checkpoint: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the files of a checkpoint and their sizes and digests."""
    with atomic(checkpoint) as temporary:
        temporary.mkdir()
        files = {}
        for group, content in tensors.items():
            path = write_tensors(temporary / f"{group}.safetensors", content, signed=False)
            files[path.name] = _digest(path)
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state, "files": files}, signed=True)
    return checkpoint


def fault_of(checkpoint: Path, *, edited: bool = False) -> str | None:
    """Return why a checkpoint cannot be used, or ``None`` if it is complete (see :func:`find_run`)."""
    path = checkpoint / "state.json"
    try:
        if not edited and was_changed(path):
            return f"{path} was changed after it was written (its content does not match its checksum)"
        state = read_json(path)
        check_format(path, state)
    except CheckpointError as error:
        return str(error)
    files = state.get("files")
    listed = isinstance(files, dict) and files and all(isinstance(entry, dict) for entry in files.values())
    if not listed or not isinstance(state.get("step"), int):
        return f"{path} does not list the files of the checkpoint; is it damaged?"
    if STEP.fullmatch(checkpoint.name) and _is_copy(checkpoint):
        return f"{checkpoint} is of step {state['step']:,}, not of the step in its name; is it a copy?"
    for name, expected in files.items():
        path = checkpoint / name
        try:
            found = _digest(path)
        except FileNotFoundError:
            return f"{path} is missing"
        except (OSError, ValueError) as error:
            return f"{path} cannot be read: {reason(error)}"
        if found["size"] != expected.get("size"):
            return f"{path} has {found['size']} bytes instead of {expected.get('size')}; is it truncated?"
        if found != expected:
            return f"{path} does not match its SHA-256 in state.json; is it damaged?"
    return None


def newest_checkpoint(folder: Path, *, edited: bool = False) -> Path:
    """Return the newest complete checkpoint (see :func:`find_run`).

    Raises:
        CheckpointError: If there is no complete checkpoint; the message states what is wrong with the checkpoints
            found.
    """
    found = checkpoints(folder)
    if not found:
        holder = held_by(folder)
        raise CheckpointError(
            f"{folder} has no checkpoint yet; "
            + (
                f"{holder} is training there: wait for its first checkpoint"
                if holder
                else "resume its training, or start it again"
            )
        )
    faults: list[str] = []
    for checkpoint in found:
        fault = fault_of(checkpoint, edited=edited)
        if fault is None:
            if faults:
                warnings.warn(f"using the older checkpoint {checkpoint.name}: {faults[0]}", stacklevel=2)
            return checkpoint
        faults.append(fault)
    raise CheckpointError(
        f"{folder} has no complete checkpoint: {'; '.join(faults)}",
        parameter="edited" if "checksum" in faults[0] else None,
    )


def chosen_checkpoint(folder: Path, *, edited: bool = False) -> Path:
    """Return the checkpoint whose averaged weights are used: the newest, or the best if training chose the best (see
    :func:`find_run`).

    Raises:
        CheckpointError: If there is no complete checkpoint.
    """
    path = folder / CHOICE
    told = read_object(path) if os.path.lexists(path) else None
    if told is not None:
        check_format(path, told)
    if told is None or told.get("used") != "best":
        return newest_checkpoint(folder, edited=edited)
    best = folder / "checkpoints" / BEST
    fault = f"{best} is missing" if not best.is_dir() else fault_of(best, edited=edited)
    if fault is None:
        return best
    warnings.warn(f"using the last weights, not the best weights: {fault}", stacklevel=2)
    return newest_checkpoint(folder, edited=edited)


# ------------------------------------------------------------------------------------------------------------- weights

WRAPPERS = ("_orig_mod", "module")  # parts that torch.compile and parallel training add to names in a network


def bare_names(module: torch.nn.Module) -> dict[str, str]:
    """Map the names in the state of a module to names without the wrappers of ``torch.compile`` and parallel training.

    The wrappers may be anywhere in the module.
    """
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    wrapped = {f"{name}.module".lstrip(".") for name, part in module.named_modules() if isinstance(part, parallel)}
    wrapped |= {name for name, _ in module.named_modules() if name.rpartition(".")[2] == "_orig_mod"}

    def bare(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in wrapped)

    found = {name: bare(name) for name in module.state_dict()}
    return found if len(set(found.values())) == len(found) else {name: name for name in found}


def matching(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Map each of ``others`` to the name in ``names`` that differs from it only by wrappers, or else to itself."""

    def bare(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in WRAPPERS)

    ours, theirs = {bare(name): name for name in names}, {bare(name) for name in others}
    if set(others) <= set(names) or len(ours) != len(names) or len(theirs) != len(others):
        return {name: name for name in others}  # without wrappers, two names would be the same
    return {name: ours.get(bare(name), name) for name in others}


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a module.

    Every name and shape must be as expected, apart from wrappers of the network (see :func:`bare_names`).

    Raises:
        CheckpointError: If a name or a shape differs; the message states the first difference.
    """
    expected = module.state_dict()
    now = matching(expected, tensors)
    tensors = {now[name]: value for name, value in tensors.items()}
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            where = "the file" if name in tensors else "the network"
            raise CheckpointError(f"{source}: {name!r} is only in {where}; has the network changed since training?")
        if tensors[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{source}: {name!r} has shape {tuple(tensors[name].shape)}, but the network expects "
                f"{tuple(expected[name].shape)}"
            )
    module.load_state_dict(dict(tensors))
