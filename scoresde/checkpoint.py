"""The files of a run: weights in safetensors, everything else in JSON. Loading them never runs code.

A run folder holds

    config.json   data.json   metrics.jsonl   samples/   plots/
    checkpoints/LATEST
    checkpoints/step-000002400/{model,ema,optim}.safetensors  state.json

A checkpoint is written under a temporary name, flushed to the disk and renamed, so that it exists whole or not at all;
``state.json`` carries the size and SHA-256 of each file beside it. A reader takes the newest checkpoint that is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, UsageError

__all__ = [
    "FORMAT",
    "append_line",
    "find_run",
    "make_run_folder",
    "newest_checkpoint",
    "read_config",
    "read_json",
    "read_lines",
    "read_metadata",
    "read_tensors",
    "save_checkpoint",
    "write_json",
    "write_tensors",
]

FORMAT = 1


def _cannot_write(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"cannot write {path}: {reason}; choose a folder you may write to with --out")


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, flush it and rename it."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from None


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CheckpointError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a run folder made by scoresde train?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run as plain values.

    Raises:
        CheckpointError: If it is missing or from another format.
    """
    path = folder / "config.json"
    stored = read_json(path)
    _check_format(path, stored)
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{path} has no configuration in it; is it damaged?")
    config: dict[str, Any] = stored["config"]
    return config


def _check_format(path: Path, stored: Any) -> None:
    found = stored.get("format") if isinstance(stored, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has format {found!r}, and this scoresde reads format {FORMAT}; it was written by another "
            "version: install that one (a newer one, if the number is larger)"
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without a last line that was cut short; ``[]`` if there is none."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON object as a line."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


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
        if (folder / "config.json").exists():
            raise UsageError(
                f"{folder} already holds a run; continue it with --resume (resume=True), or choose another --out"
            )
    try:
        for part in ("checkpoints", "samples", "plots"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return folder


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
            raise CheckpointError(f"{run} is a file; give the run folder that scoresde train printed (runs/NAME)")
        why = "it has no config.json" if Path(run).is_dir() else "there is no such folder, nor one under runs/"
        here = sorted(p.parent.name for p in Path("runs").glob("*/config.json"))
        names = f"the runs here are: {', '.join(here)}" if here else "scoresde train makes one"
        raise CheckpointError(f"{run} is no run folder ({why}); {names}")
    runs = sorted(
        (p.parent for p in Path("runs").glob("*/config.json") if any((p.parent / "checkpoints").glob("step-*"))),
        key=lambda folder: (folder / "checkpoints").stat().st_mtime_ns,
    )
    if not runs:
        raise CheckpointError(
            f"there is no run with a checkpoint in {Path('runs').absolute()}; train one first: scoresde train --sde vp"
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
    from safetensors import SafetensorError

    root = folder / "checkpoints"
    final, temporary = root / f"step-{step:09d}", root / f".step-{step:09d}.tmp-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {}
        for group, content in tensors.items():
            path = temporary / f"{group}.safetensors"
            _save(path, content)
            files[path.name] = _digest(path)
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state, "files": files})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        (root / ".LATEST.tmp").write_text(final.name + "\n", encoding="utf-8")
        os.replace(root / ".LATEST.tmp", root / "LATEST")
        for old in sorted(root.glob("step-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        for stale in root.glob(".step-*.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(final, error) from None
    return final


def _save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata=header)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors of any shapes to a safetensors file, under a temporary name that is then renamed.

    ``metadata``, plain JSON values, goes into the file's header (see :func:`read_metadata`).
    """
    from safetensors import SafetensorError

    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    header = None if metadata is None else {"scoresde": json.dumps({"format": FORMAT, **metadata})}
    try:
        _save(temporary, tensors, header)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from None


def _fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or ``None`` if it is whole."""
    state = read_json(checkpoint / "state.json")
    _check_format(checkpoint / "state.json", state)
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: If it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None
    return tensors


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the JSON values in the header of a file that :func:`write_tensors` wrote.

    Raises:
        CheckpointError: If it is none, or from another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {}).get("scoresde", "null"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None
    _check_format(path, stored)
    found: dict[str, Any] = stored
    return found


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
