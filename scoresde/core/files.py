"""Files and folders: written whole or not at all, read without running code.

Everything that this package writes goes through :func:`atomic`: to a temporary name beside the target, flushed to the
disk, then renamed. A reader sees the old content or the new one, and what was interrupted leaves nothing behind. Only a
log grows in place, a line at a time (:func:`append_line`).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, Preempted, Stopped, UsageError
from .signals import held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMAT", "append_line", "atomic", "cannot_write", "check_format", "check_kinds", "make_folder", "new_folder",
    "read_json", "read_lines", "read_metadata", "read_tensors", "sync", "write_arrays", "write_csv", "write_json",
    "write_lines", "write_tensors",
]  # fmt: skip

FORMAT = 2  # of what this package writes and reads again
OLDEST = 1  # that it still reads


def cannot_write(path: Path, error: Exception) -> CheckpointError:
    """Why a file could not be written, and what to do."""
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = next((f"{folder} is a file" for folder in (path, *path.parents) if folder.is_file()), reason)
    return CheckpointError(f"cannot write {path}: {reason}; choose a folder you may write to", parameter="out")


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it on success and removed on failure; missing folders are made.

    The block makes a file of that name, or a folder, which takes the place of a folder that is there.

    Raises:
        CheckpointError: If it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    with held():  # a signal comes after the file
        yield from _atomic(target, temporary)


def _atomic(target: Path, temporary: Path) -> Iterator[Path]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # of a process that had this number
        yield temporary
        sync(temporary)
        if temporary.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from None
    except CheckpointError as error:  # of a file in a folder that was being made
        error.args = (str(error).replace(str(temporary), str(target)),)
        raise
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Flush a file to the disk, or the files in a folder."""
    for file in path.iterdir() if path.is_dir() else (path,):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


# -------------------------------------------------------------------------------------------------------------- folders


def make_folder(path: Path) -> Path:
    """Make a folder and those above it.

    Raises:
        CheckpointError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make ``path``, or ``path-2`` and so on if that is taken: nothing is overwritten.

    If the block fails before it has written anything, the folder is removed again.

    Raises:
        CheckpointError: If it cannot be made.
    """
    folder, n, made = path, 2, False
    try:
        with held():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                while not made:
                    try:
                        folder.mkdir()
                        made = True
                    except FileExistsError:
                        folder, n = path.with_name(f"{path.name}-{n}"), n + 1
            except OSError as error:
                raise cannot_write(folder, error) from None
        yield folder
    except BaseException as error:
        with held():
            if made and not any(folder.iterdir()):
                folder.rmdir()
            elif made and isinstance(error, Preempted | Stopped) and error.parameter is None:
                error.args = (f"{str(error).partition(':')[0]}: what was finished is in {folder}",)
        raise


# ----------------------------------------------------------------------------------------------------------------- JSON


def write_json(path: Path, content: Any) -> Path:
    """Write JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CheckpointError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a run folder?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def check_format(path: Path, stored: Any) -> None:
    """Refuse what another version wrote.

    Raises:
        CheckpointError: With the format found.
    """
    found = stored.get("format") if isinstance(stored, dict) else None
    if not isinstance(found, int) or not OLDEST <= found <= FORMAT:
        raise CheckpointError(
            f"{path} has format {found!r}, and this scoresde reads formats {OLDEST} to {FORMAT}; it was written by "
            "another version: install that one (a newer one, if the number is larger)"
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


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """Write a file of JSON lines; without a line, remove it."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if not text:
        path.unlink(missing_ok=True)
        return path
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def check_kinds(kinds: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """Return ``kinds`` of files to write if each is ``known``.

    Raises:
        UsageError: With the first that is not.
    """
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"cannot save {kind!r}; choose from: {', '.join(known)}", parameter="save")
    return kinds


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON object as a line."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from None


# --------------------------------------------------------------------------------------------------- tables and arrays


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write arrays by name to an ``.npz`` file."""
    import numpy as np

    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> Path:
    """Write tensors of any shapes to a safetensors file.

    ``metadata``, plain JSON values, goes into the file's header (see :func:`read_metadata`).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = None if metadata is None else {"scoresde": json.dumps({"format": FORMAT, **metadata})}
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic(path) as temporary:
        try:
            save_file(plain, temporary, metadata=header)
        except SafetensorError as error:
            raise cannot_write(path, error) from None
    return path


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
    check_format(path, stored)
    found: dict[str, Any] = stored
    return found
