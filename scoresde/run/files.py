"""The files of a run. None of their formats can contain code, so loading a run never executes code.

A run folder contains:

    config.json   model.json   data.json   env.json   rows.npz   metrics.jsonl   validation.json   samples/   plots/
    checkpoints/LATEST
    checkpoints/step-000002400/{model,ema,ema-1,ema-2,optim}.safetensors  state.json
    checkpoints/best/ema.safetensors  state.json
    ema/step-000002400.safetensors

(``ema-1`` and so on are further averages, and ``ema/`` contains their snapshots, if there are any.)

A checkpoint is written under a temporary name, flushed to disk and renamed, so it is either complete or absent.
``state.json`` stores the size and SHA-256 hash of every other file in the checkpoint and, like the other JSON files of
a run, a checksum of its own content. Incomplete checkpoints are skipped when a run is loaded. Only folders that are
named as shown above count as checkpoints. A copy under another name belongs to the user: it is neither read nor
removed.

Of the files that describe a run, ``config.json`` is written last, and a folder without it does not count as a run
folder. A run without a checkpoint has either just started or stopped before its first checkpoint.
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
from ..core.parallel import ALONE, World, write_shards
from ..core.text import one_line

__all__ = [
    "BEFORE", "BEST", "CHOICE", "accept_changes", "bare_names", "checkpoint_at", "checkpoints",
    "chosen_checkpoint", "clear_start", "drop_older", "fault_of", "find_run", "load_weights", "make_run_folder",
    "matching", "newest_checkpoint", "read_config", "refuse_taken", "save_best", "save_checkpoint",
]  # fmt: skip

BEST = "best"  # the checkpoint with the lowest validation loss
BEFORE = "best-before"  # the previous best checkpoint, kept while BEST is newer than the newest checkpoint
CHOICE = "validation.json"  # written at the end of training; states whether the best weights are used


STEP = re.compile(r"step-([0-9]{9,})")
SIGNED = ("config.json", "model.json", "data.json", CHOICE)
# The files that training writes before its first checkpoint, besides pictures.
BEGUN = (*SIGNED, "env.json", "rows.npz", "pairs.safetensors", "metrics.jsonl")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run as plain values.

    Raises:
        CheckpointError: If the file is missing or damaged, or this version cannot read its format.
    """
    path = folder / "config.json"
    stored = read_json(path)
    check_format(path, stored)
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{path} contains no configuration; is the file damaged?")
    config: dict[str, Any] = stored["config"]
    return config


def make_run_folder(out: str | Path | None, name: str) -> Path:
    """Create the folder of a new run: ``out``, or ``runs/NAME`` with a number appended if the name is taken.

    Raises:
        UsageError: If ``out`` already contains a run with a checkpoint.
        CheckpointError: If the folder cannot be written, or another process is training in it.
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
    """Reject a folder that already contains a run with a checkpoint.

    A run without a checkpoint may be started again.

    Args:
        folder: The folder.
        mine: Whether the caller holds the folder's lock.

    Raises:
        CheckpointError: If another process is training in the folder.
        UsageError: If the folder already contains a run with a checkpoint.
    """
    if not mine and (holder := held_by(folder)) is not None:
        raise in_use(folder, holder)
    if os.path.exists(folder / "config.json") and checkpoints(folder):
        message = f"{folder} already contains a run; resume it, or choose another folder"
        raise UsageError(message, parameter="resume", value=folder)


def clear_start(folder: Path) -> None:
    """Remove the files of a run that ended before its first checkpoint, and keep all other files."""
    pictures = [*(folder / "samples").glob("step-*.png"), folder / "plots" / "loss.png"]
    for path in (*(folder / name for name in BEGUN), *pictures):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None
    for name in (BEST, BEFORE):
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)


def find_run(run: str | Path | None, *, edited: bool = False) -> Path:
    """Find the folder of a run.

    Args:
        run: A path, a name under ``runs/``, or ``None`` for the newest run under ``runs/`` that has a checkpoint.
        edited: Whether to accept, with a warning, files that were changed after they were written.

    Raises:
        CheckpointError: If there is no such run, or its files were changed and ``edited`` is false.
    """
    folder = _found(run)
    changed = _changed(folder)
    if changed:
        several = f"{' and '.join(changed)} in {folder} {'were' if changed[1:] else 'was'} changed after training"
        if not edited:
            raise CheckpointError(
                f"{several} (the content does not match the checksum); restore the original content, or confirm that "
                "the change was intended",
                parameter="edited",
            )
        warnings.warn(f"{several}; using the changed content", stacklevel=1)
    return folder


def _changed(folder: Path) -> list[str]:
    """Return the names of the files whose content does not match their checksum."""
    return [name for name in SIGNED if os.path.lexists(folder / name) and was_changed(folder / name)]


def accept_changes(folder: Path) -> None:
    """Update the checksums of the changed files of a run to match their contents."""
    for name in _changed(folder):
        write_json(folder / name, read_object(folder / name), signed=True)


def _found(run: str | Path | None) -> Path:
    if run is not None:
        for folder in (Path(run), Path("runs") / run):
            if os.path.isfile(folder / "config.json"):
                return folder
        if os.path.isfile(run):
            raise CheckpointError(f"{run} is a file, not a run folder; pass a folder such as runs/NAME")
        why = "there is no such folder, here or under runs/"
        begun = next((f for f in (Path(run), Path("runs") / run) if os.path.isdir(f / "checkpoints")), None)
        if begun is not None:
            holder = held_by(begun)
            why = (
                "it has no config.json, because training stopped before its first step; train again with the same "
                "output folder (out)"
            )
            why = f"it has no config.json yet, because {holder} has only just started training there" if holder else why
        elif os.path.isdir(run):
            why = "it has no config.json"
        here = [folder.name for folder in _runs()]
        names = (
            f"the runs under runs/ are: {', '.join(map(one_line, here))}"
            if here
            else "there are no runs under runs/; train one first"
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
    """Return the run folders under ``runs/``, sorted by name."""
    try:
        names = sorted(os.listdir("runs"))
    except OSError:
        return []
    return [Path("runs") / name for name in names if os.path.isfile(Path("runs") / name / "config.json")]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first, without checking that they are complete."""
    root = folder / "checkpoints"
    try:
        with os.scandir(root) as inside:
            found = [(int(match[1]), e.name) for e in inside if (match := STEP.fullmatch(e.name)) and e.is_dir()]
    except OSError:
        return []
    return [root / name for step, name in sorted(found, reverse=True) if name == f"step-{step:09d}"]


def _is_copy(checkpoint: Path) -> bool:
    """Return whether the ``state.json`` and the folder name of a checkpoint give different steps."""
    return _step(checkpoint) not in (-1, int(checkpoint.name.removeprefix("step-")))


def _digest(path: Path) -> dict[str, Any]:
    return {"size": regular(path), "sha256": file_digest(path)}


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2, *,
    shards: Mapping[str, Tensor] | None = None, world: World = ALONE,
) -> Path:  # fmt: skip
    """Save a checkpoint atomically, then remove older checkpoints (see :func:`drop_older`).

    Args:
        folder: The run folder.
        step: Number of training steps completed.
        tensors: Groups of tensors, keyed by name. Each group is written to its own safetensors file.
        state: Further values to store in ``state.json``, as plain JSON values.
        keep: Number of checkpoints to keep, including the new one. Checkpoints of later steps are
            kept in addition.
        shards: Tensors of which each process has a part, keyed by name. They are written to a folder of their own.
        world: The processes that have these parts. All of them must call this together.
    """
    root = folder / "checkpoints"
    final = root / f"step-{step:09d}"
    _write(final, step, tensors, state, shards, world)
    if not world.main:
        return final
    with atomic(root / "LATEST") as pointer:
        pointer.write_text(final.name + "\n", encoding="utf-8")
    drop_older(folder, final, keep)
    return final


def drop_older(folder: Path, checkpoint: Path, keep: int = 2) -> None:
    """Remove old checkpoints, and possibly the former best weights, once ``checkpoint`` has been written.

    Of the checkpoints that are older than ``checkpoint``, the newest ``keep - 1`` are kept. The former best weights
    (see :func:`save_best`) are kept if the current best weights are newer than ``checkpoint`` or cannot be read.
    """
    root, number = folder / "checkpoints", int(checkpoint.name.removeprefix("step-"))
    older = [path for path in checkpoints(folder) if int(path.name.removeprefix("step-")) < number]
    older = [path for path in older if not _is_copy(path)]
    for old in [*older[keep - 1 :], *([root / BEFORE] if 0 <= _step(root / BEST) <= number else [])]:
        shutil.rmtree(old, ignore_errors=True)


def save_best(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Save averaged weights as the best weights so far. The arguments are those of :func:`save_checkpoint`.

    The former best weights are kept until a checkpoint is at least as new as the new best weights. If the run is
    resumed from an older checkpoint, the former best weights become the best weights again.
    """
    best, before = (folder / "checkpoints" / name for name in (BEST, BEFORE))
    newest = max(map(_step, checkpoints(folder)), default=-1)
    if 0 <= _step(best) <= newest:
        shutil.rmtree(before, ignore_errors=True)
        with suppress(OSError):
            os.rename(best, before)
    return _write(best, step, tensors, {})


def _step(checkpoint: Path) -> int:
    """Return the step in a checkpoint's ``state.json``, or -1 if the file is missing or cannot be read."""
    try:
        step = read_object(checkpoint / "state.json").get("step")
    except CheckpointError:
        return -1
    return step if isinstance(step, int) else -1


def _write(
    checkpoint: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any],
    shards: Mapping[str, Tensor] | None = None, world: World = ALONE,
) -> Path:  # fmt: skip
    """Write the files of a checkpoint, and record their sizes and hashes in ``state.json``."""
    with world.leading(atomic(checkpoint)) as temporary:
        world.led(lambda: temporary.mkdir())
        files = {}
        if shards:
            world.led(lambda: (temporary / "shards").mkdir())
            write_shards(temporary / "shards", shards)
            world.wait()
        if not world.main:
            return checkpoint
        for path in sorted((temporary / "shards").glob("*")):
            files[f"shards/{path.name}"] = _digest(path)
        for group, content in tensors.items():
            path = write_tensors(temporary / f"{group}.safetensors", content, signed=False)
            files[path.name] = _digest(path)
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state, "files": files}, signed=True)
    return checkpoint


def fault_of(checkpoint: Path, *, edited: bool = False) -> str | None:
    """Return why a checkpoint cannot be used, or ``None`` if it can.

    Args:
        checkpoint: The checkpoint folder.
        edited: See :func:`find_run`.
    """
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
        return f"{path} does not state the step and the files of the checkpoint; is the file damaged?"
    if STEP.fullmatch(checkpoint.name) and _is_copy(checkpoint):
        return f"{checkpoint} contains step {state['step']:,}, not the step in its name; is it a copy?"
    for name, expected in files.items():
        path = checkpoint / name
        try:
            found = _digest(path)
        except FileNotFoundError:
            return f"{path} is missing"
        except (OSError, ValueError) as error:
            return f"{path} cannot be read: {reason(error)}"
        if found["size"] != expected.get("size"):
            return f"{path} is {found['size']} bytes long, not {expected.get('size')} bytes; is the file truncated?"
        if found != expected:
            return f"{path} does not match its SHA-256 hash in state.json; is the file damaged?"
    return None


def newest_checkpoint(folder: Path, *, edited: bool = False) -> Path:
    """Return the newest complete checkpoint of a run, and warn if a newer checkpoint cannot be used.

    Args:
        folder: The run folder.
        edited: See :func:`find_run`.

    Raises:
        CheckpointError: If there is no complete checkpoint; the message says what is wrong with each checkpoint.
    """
    found = checkpoints(folder)
    if not found:
        holder = held_by(folder)
        raise CheckpointError(
            f"{folder} has no checkpoint yet; "
            + (
                f"{holder} is training there, so wait for the first checkpoint"
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


def checkpoint_at(folder: Path, step: int, *, edited: bool = False) -> Path:
    """Return the checkpoint that a run saved after ``step`` training steps.

    Args:
        folder: The run folder.
        step: Number of training steps.
        edited: See :func:`find_run`.

    Raises:
        CheckpointError: If there is no such checkpoint, or if it cannot be used.
    """
    kept = {_step(path): path for path in reversed(checkpoints(folder))}
    if step not in kept:
        steps = ", ".join(f"{k:,}" for k in sorted(k for k in kept if k >= 0))
        raise CheckpointError(
            f"{folder} has no checkpoint for step {step:,}; it has checkpoints for these steps: {steps or 'none'}. To "
            "keep more of them, train with keep=5",
            parameter="keep",
            value=5,
        )
    fault = fault_of(kept[step], edited=edited)
    if fault is not None:
        raise CheckpointError(f"the checkpoint of step {step:,} cannot be used: {fault}")
    return kept[step]


def chosen_checkpoint(folder: Path, *, edited: bool = False) -> Path:
    """Return the checkpoint whose averaged weights a loaded run uses.

    This is the best checkpoint, if training selected it and it is usable. Otherwise, it is the newest complete
    checkpoint.

    Args:
        folder: The run folder.
        edited: See :func:`find_run`.

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
    warnings.warn(f"using the last weights instead of the best weights: {fault}", stacklevel=2)
    return newest_checkpoint(folder, edited=edited)


# ------------------------------------------------------------------------------------------------------------- weights

WRAPPERS = ("_orig_mod", "module")  # components that torch.compile and data parallelism add to names in a state dict


def bare_names(module: torch.nn.Module) -> dict[str, str]:
    """Map each name in a module's state dict to the name that it would have if no part of the module were wrapped.

    ``torch.compile`` and data parallelism may wrap any part of a module, which lengthens all names inside that part.
    If two names would become equal, all names are left unchanged.
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
    """Map each name in ``others`` to the name in ``names`` that is equal to it, apart from wrapper components.

    Wrapper components are those that ``torch.compile`` and data parallelism add. A name is mapped to itself if there is
    no equal name, or if names without these components would be ambiguous.
    """

    def bare(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in WRAPPERS)

    ours, theirs = {bare(name): name for name in names}, {bare(name) for name in others}
    if set(others) <= set(names) or len(ours) != len(names) or len(theirs) != len(others):
        return {name: name for name in others}  # the names match already, or would be ambiguous without the wrappers
    return {name: ours.get(bare(name), name) for name in others}


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a module.

    All shapes must match. All names must match as well, apart from wrapper components (see :func:`matching`).

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
