"""The files of a run: weights in safetensors, everything else in JSON. Loading them never runs code.

A run folder holds

    config.json   model.json   data.json   rows.npz   metrics.jsonl   validation.json   samples/   plots/
    checkpoints/LATEST
    checkpoints/step-000002400/{model,ema,optim}.safetensors  state.json
    checkpoints/best/ema.safetensors  state.json

A checkpoint is written under a temporary name, flushed to the disk and renamed, so that it exists whole or not at all;
``state.json`` carries the size and SHA-256 of each file beside it. A reader takes the newest checkpoint that is whole.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError, UsageError
from ..core.files import FORMAT, atomic, check_format, make_folder, read_json, write_json, write_tensors

__all__ = [
    "BEST", "CHOICE", "chosen_checkpoint", "find_run", "load_weights", "make_run_folder", "newest_checkpoint",
    "read_config", "refuse_taken", "save_best", "save_checkpoint",
]  # fmt: skip

BEST = "best"  # the checkpoint with the lowest validation loss
CHOICE = "validation.json"  # says at the end of a training whether it is used


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run as plain values.

    Raises:
        CheckpointError: If it is missing or from another format.
    """
    path = folder / "config.json"
    stored = read_json(path)
    check_format(path, stored)
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{path} has no configuration in it; is it damaged?")
    config: dict[str, Any] = stored["config"]
    return config


def make_run_folder(out: str | Path | None, name: str) -> Path:
    """Make the folder of a new run: ``out``, or ``runs/NAME`` with a number if that is taken.

    Raises:
        UsageError: If ``out`` already holds a run.
        CheckpointError: If it cannot be written.
    """
    if out is None:
        folder, n = Path("runs") / name, 2
        while folder.exists():
            folder, n = Path("runs") / f"{name}-{n}", n + 1
    else:
        folder = Path(out)
        refuse_taken(folder)
    for part in ("checkpoints", "samples", "plots"):
        make_folder(folder / part)
    return folder


def refuse_taken(folder: Path) -> None:
    """Refuse the folder of another run for a new one.

    Raises:
        UsageError: If ``folder`` already holds a run.
    """
    if (folder / "config.json").exists():
        message = f"{folder} already holds a run; resume it, or choose another folder"
        raise UsageError(message, parameter="resume", value=folder)


def find_run(run: str | Path | None) -> Path:
    """Return the folder of a run: a path, a name under ``runs/``, or the newest run there.

    Raises:
        CheckpointError: If there is none.
    """
    if run is not None:
        for folder in (Path(run), Path("runs") / run):
            if (folder / "config.json").is_file():
                return folder
        if Path(run).is_file():
            raise CheckpointError(f"{run} is a file; give the run folder, such as runs/NAME")
        why = "it has no config.json" if Path(run).is_dir() else "there is no such folder, nor one under runs/"
        here = sorted(p.parent.name for p in Path("runs").glob("*/config.json"))
        names = f"the runs here are: {', '.join(here)}" if here else "there is none here; train one first"
        raise CheckpointError(f"{run} is no run folder ({why}); {names}", parameter=None if here else "fit")
    runs = sorted(
        (p.parent for p in Path("runs").glob("*/config.json") if any((p.parent / "checkpoints").glob("step-*"))),
        key=lambda folder: (folder / "checkpoints").stat().st_mtime_ns,
    )
    if not runs:
        raise CheckpointError(
            f"there is no run with a checkpoint in {Path('runs').absolute()}; train one first", parameter="fit"
        )
    return runs[-1]


def _digest(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Save a checkpoint whole or not at all, then drop all but the newest ``keep``.

    Args:
        folder: The run folder.
        step: Steps done.
        tensors: Groups of tensors by name, one safetensors file each.
        state: Plain JSON values.
        keep: How many checkpoints stay.
    """
    root = folder / "checkpoints"
    final = root / f"step-{step:09d}"
    _write(final, step, tensors, state)
    with atomic(root / "LATEST") as pointer:
        pointer.write_text(final.name + "\n", encoding="utf-8")
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for stale in root.glob(".step-*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return final


def save_best(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Save averaged weights as the best so far, in place of those before; see :func:`save_checkpoint`."""
    return _write(folder / "checkpoints" / BEST, step, tensors, {})


def _write(checkpoint: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the files of a checkpoint and what is known of them."""
    with atomic(checkpoint) as temporary:
        temporary.mkdir()
        files = {}
        for group, content in tensors.items():
            path = write_tensors(temporary / f"{group}.safetensors", content)
            files[path.name] = _digest(path)
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state, "files": files})
    return checkpoint


def _fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or ``None`` if it is whole."""
    state = read_json(checkpoint / "state.json")
    check_format(checkpoint / "state.json", state)
    files = state.get("files")
    listed = isinstance(files, dict) and files and all(isinstance(entry, dict) for entry in files.values())
    if not listed or not isinstance(state.get("step"), int):
        return f"{checkpoint / 'state.json'} does not say which files belong to the checkpoint (damaged?)"
    for name, expected in state["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected.get("size"):
            return f"{path} has {path.stat().st_size} bytes instead of {expected.get('size')} (truncated?)"
        if _digest(path) != expected:
            return f"{path} does not have the SHA-256 that state.json says (damaged?)"
    return None


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint that is whole.

    Raises:
        CheckpointError: If there is none, with what is wrong with those there are.
    """
    checkpoints = sorted((folder / "checkpoints").glob("step-*"), reverse=True)
    if not checkpoints:
        raise CheckpointError(f"{folder} has no checkpoint yet; wait for its first, or train again")
    faults: list[str] = []
    for checkpoint in checkpoints:
        try:
            fault = _fault(checkpoint)
        except CheckpointError as error:
            fault = str(error)
        if fault is None:
            if faults:
                warnings.warn(f"using {checkpoint.name}: {faults[0]}", stacklevel=2)
            return checkpoint
        faults.append(fault)
    raise CheckpointError(f"{folder} has no whole checkpoint: {'; '.join(faults)}")


def chosen_checkpoint(folder: Path) -> Path:
    """Return the checkpoint whose averaged weights are used: the newest, or the best if training chose that.

    Raises:
        CheckpointError: If there is none that is whole.
    """
    path = folder / CHOICE
    if not path.is_file() or read_json(path).get("used") != "best":
        return newest_checkpoint(folder)
    best = folder / "checkpoints" / BEST
    fault = f"{best} is missing" if not best.is_dir() else _fault(best)
    if fault is None:
        return best
    warnings.warn(f"using the last weights, not the best ones: {fault}", stacklevel=2)
    return newest_checkpoint(folder)


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a module, every name and shape as expected.

    Raises:
        CheckpointError: With the first difference.
    """
    expected = module.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            where = "the file" if name in tensors else "the network"
            raise CheckpointError(f"{source}: {name!r} is only in {where}; was the network changed since?")
        if tensors[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{source}: {name!r} has shape {tuple(tensors[name].shape)}, the network {tuple(expected[name].shape)}"
            )
    module.load_state_dict(dict(tensors))
