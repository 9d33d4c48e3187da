"""Write files and folders completely or not at all, and read files without running code.

Except for log files, everything that this package writes goes through :func:`atomic`: it is written under a temporary
name next to the target, flushed to disk and then renamed. A reader sees either the old or the new content of a file. A
failed write leaves nothing behind, and files left by a killed process are removed by the next write to the same folder.
Log files are written in place, one line at a time (:func:`append_line`). Before a file is read, :mod:`.opened` checks
that it is a regular file.

A JSON object or a file of tensors may contain a checksum, which reveals even a single changed digit. The checksum is
not a signature, because anyone who changes the content can also remove the checksum.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import reprlib
import shutil
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, Preempted, Stopped, UsageError
from .opened import parse_json, read_bytes, reason, regular
from .parallel import ranks
from .signals import held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMAT",
    "append_line",
    "atomic",
    "cannot_write",
    "check_format",
    "check_kinds",
    "clear_leftovers",
    "living",
    "make_folder",
    "missing_above",
    "new_folder",
    "read_json",
    "read_lines",
    "read_metadata",
    "read_object",
    "read_tensors",
    "remove_empty",
    "sync",
    "taken",
    "was_changed",
    "write_arrays",
    "write_csv",
    "write_json",
    "write_lines",
    "write_tensors",
]  # fmt: skip

FORMAT = 2  # version of the file format that this package writes
OLDEST = 1  # oldest version of the format that this package still reads
LARGEST = 2**28  # largest size of a JSON file, in bytes
CHECKSUM = "checksum"  # key of the checksum over the other values of a JSON object

# Names that an interrupted write leaves behind, for a file or folder that was being written or replaced.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>[0-9]{1,10})(-[0-9]+)?", re.DOTALL)
_writing: set[str] = set()  # temporary names that this process is still using, which are not leftovers
_numbers = count()

# Advice for particular operating system errors.
ADVICE = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some space, or choose a folder on another disk",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def cannot_write(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file or folder that could not be written. The message states the cause and a remedy."""
    why = reason(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        why = next((f"{folder} is a file" for folder in (path, *path.parents) if folder.is_file()), why)
    advice = ADVICE.get(getattr(error, "errno", None) or 0, "choose a folder that you can write to")
    return CheckpointError(f"cannot write {path}: {why}; {advice}", parameter="out")


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, at which the block must create a file or a folder.

    If the block succeeds, the new file or folder is renamed to ``path``, where it replaces an existing file or folder
    of the same kind. If the block fails, the new file or folder is removed. Missing parent folders are created, and
    files that killed processes left in the parent folder are removed.

    Raises:
        CheckpointError: If ``path`` cannot be written.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name}.tmp-{os.getpid()}-{next(_numbers)}"
    _writing.add(temporary.name)
    with held():  # delay signals until the file is complete
        yield from _atomic(target, temporary)


def _atomic(target: Path, temporary: Path) -> Iterator[Path]:
    above = missing_above(target)
    try:
        _writable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if ranks() == 1:  # other processes on this disk may run on other machines, whose temporary files look left over
            clear_leftovers(target.parent)
        yield temporary
        sync(temporary)
        if temporary.is_dir() and target.is_dir():
            _replace_folder(temporary, target)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from None
    except CheckpointError as error:  # about a file in the temporary folder
        error.args = (str(error).replace(str(temporary), str(target)),)
        raise
    finally:
        _remove(temporary)
        if not os.path.lexists(target):
            with suppress(OSError):
                for parent in above:
                    parent.rmdir()
        _writing.discard(temporary.name)


def _writable(path: Path) -> None:
    """Check that a path has a valid name and does not lead to a device or a pipe."""
    if "\0" in str(path):
        raise OSError("the name contains a zero byte")
    if not path.name:
        raise OSError("it is a folder")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # do not replace a device or a pipe with a file
        raise OSError("it is a device or a pipe")


def _replace_folder(temporary: Path, target: Path) -> None:
    """Replace the folder ``target`` with the folder ``temporary``."""
    aside = target.with_name(f".{target.name}.old-{os.getpid()}-{next(_numbers)}")
    _writing.add(aside.name)
    try:
        os.rename(target, aside)  # if the process is killed now, clear_leftovers restores the old folder
        os.replace(temporary, target)
    finally:
        if not target.exists():
            os.rename(aside, target)
        _remove(aside)
        _writing.discard(aside.name)


def clear_leftovers(folder: Path, below: bool = False) -> None:
    """Remove the temporary files and folders that interrupted writes left in a folder.

    The files and folders of running processes are kept. If a process was killed while it replaced a folder, the old
    folder is restored. With ``below``, subfolders are cleared as well.
    """
    try:
        with os.scandir(folder) as inside:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in inside]
    except OSError:
        return
    for name, is_folder in found:
        match = LEFTOVER.fullmatch(name)
        if match is None:
            if below and is_folder:
                clear_leftovers(folder / name, below)
            continue
        pid = int(match["pid"])
        if name in _writing if pid == os.getpid() else living(pid):
            continue
        target = folder / match["name"]
        if match["kind"] == "old" and not os.path.lexists(target):
            with suppress(OSError):
                os.rename(folder / name, target)
        _remove(folder / name)


def living(pid: int) -> bool:
    """Return whether a process with the ID ``pid`` is running on this machine."""
    if os.name != "posix":
        return True  # on other systems, probing for the process with a signal would end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


def _remove(path: Path) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError, ValueError):
            path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or all files in and below a folder, to disk."""
    for file in filter(Path.is_file, path.rglob("*")) if path.is_dir() else (path,):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


# -------------------------------------------------------------------------------------------------------------- folders


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, unless they exist, and return the path of the folder.

    Raises:
        CheckpointError: If the folder cannot be created.
    """
    try:
        _writable(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create the folder ``path``, or ``path-2``, ``path-3`` and so on if the name is taken, and yield its path.

    If the block fails before it has written anything, the folder is removed again.

    Raises:
        CheckpointError: If the folder cannot be created.
    """
    folder, n, made, above = path, 2, False, missing_above(path)
    try:
        with held():
            try:
                _writable(path)
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
            left = made and not remove_empty(folder, above)
            if left and isinstance(error, Preempted | Stopped) and error.parameter is None:
                error.args = (f"{str(error).partition(':')[0]}: the finished work is in {folder}",)
        raise


def taken(path: Path, folder: Path) -> str:
    """Return the line that says that the new folder ``folder`` has a number because ``path`` exists."""
    return f"{path} already exists, so the results are written to {folder}"


def missing_above(path: Path) -> list[Path]:
    """Return the parent folders of ``path`` that do not exist, nearest first."""
    return [folder for folder in path.parents if not os.path.lexists(folder)]


def remove_empty(folder: Path, above: Iterable[Path] = ()) -> bool:
    """Remove a folder if it contains no files at any depth.

    Args:
        folder: The folder, which may no longer exist.
        above: Parent folders that were created along with the folder, nearest first. They are also removed if they
            are empty.

    Returns:
        Whether the folder contained no files.
    """
    empty = all(path.is_dir() and not path.is_symlink() for path in folder.rglob("*"))
    if empty:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            for parent in above:
                parent.rmdir()
    return empty


# ----------------------------------------------------------------------------------------------------------------- JSON


def write_json(path: Path, content: Any, *, signed: bool = False, compact: bool = False) -> Path:
    """Write JSON to a file, on a single line if ``compact``.

    With ``signed``, the content must be an object, and a checksum is added to it.
    """
    if signed:
        content = {**content, CHECKSUM: _checksum(parse_json(json.dumps(content)))}
    with atomic(path) as temporary:
        text = json.dumps(content, separators=(",", ":")) if compact else json.dumps(content, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """Read JSON from a file. If the content is an object, its checksum is removed.

    Raises:
        CheckpointError: If the file is missing or is not JSON.
    """
    content = _json(path)
    if isinstance(content, dict):
        content.pop(CHECKSUM, None)
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file, and remove the checksum of the object.

    Raises:
        CheckpointError: If the file is missing, is not JSON or does not contain an object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains {reprlib.repr(content)} instead of a JSON object; is the file damaged?")
    return content


def was_changed(path: Path) -> bool:
    """Return whether the JSON object in a file no longer matches its checksum.

    Raises:
        CheckpointError: If the file is missing or is not JSON.
    """
    content = _json(path)
    if not isinstance(content, dict) or CHECKSUM not in content:
        return False  # written before checksums were introduced
    if "format" in content and not _readable(content["format"]):
        return False  # written by another version, which may compute the checksum differently
    return bool(content.pop(CHECKSUM) != _checksum(content))


def _json(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path, LARGEST))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a run folder?") from None
    except (OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None


def _checksum(content: Any) -> str:
    """Return the SHA-256 hash of a JSON value in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_format(path: Path, stored: Any) -> None:
    """Reject a file that was written by an incompatible version of this package.

    Raises:
        CheckpointError: If the installed version cannot read the format of the file. The message states the format.
    """
    found = stored.get("format") if isinstance(stored, dict) else None
    if not _readable(found):
        raise CheckpointError(
            f"{path} has format {found!r}, but this version of scoresde reads formats {OLDEST} to {FORMAT}; install "
            f"the version that wrote the file (a newer version if the format is above {FORMAT})"
        )


def _readable(number: Any) -> bool:
    return isinstance(number, int) and OLDEST <= number <= FORMAT


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line, each with a numeric ``step``. Return ``[]`` if the file is missing.

    An incomplete last line is skipped silently. Other damaged lines are skipped with a warning.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    try:
        *written, last = read_bytes(path, LARGEST).split(b"\n")
    except FileNotFoundError:
        return []
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
    found = [_line(text) for text in written if text.strip()]
    lines = [line for line in (*found, _line(last)) if line is not None]
    damaged = sum(line is None for line in found)
    if damaged:
        warnings.warn(f"{path}: skipped {damaged:,} damaged line{'s' if damaged > 1 else ''}", stacklevel=2)
    return lines


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = parse_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and type(line.get("step")) in (int, float) else None


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """Write a file with one JSON object per line, or remove the file if there are no objects."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if not text:
        path.unlink(missing_ok=True)
        return path
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def check_kinds(kinds: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """Return ``kinds``, the kinds of files to write, after checking that all of them are ``known``.

    Raises:
        UsageError: If a kind is unknown. The message names the first unknown kind.
    """
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"cannot save {kind!r}; choose from: {', '.join(known)}", parameter="save")
    return kinds


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON object to a file as a separate line, even if the last line of the file is incomplete.

    If the line cannot be written completely, the part that was written is removed again.
    """
    try:
        if os.path.exists(path):
            regular(path)
        with path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
            cut = bool(end) and file.read(1) != b"\n"
            rest = b"\n" * cut + json.dumps(content).encode() + b"\n"
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    os.truncate(path, end)
                raise
    except OSError as error:
        raise cannot_write(path, error) from None


# --------------------------------------------------------------------------------------------------- tables and arrays


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], separator: str = ",") -> Path:
    """Write a table to a CSV file. If ``header`` is empty, the file has no header line."""
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        if header:
            writer.writerow(header)
        writer.writerows(rows)
    return path


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write named arrays to an ``.npz`` file."""
    import numpy as np

    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, *, signed: bool = True
) -> Path:
    """Write named tensors of any shape to a safetensors file.

    Args:
        path: The file to write.
        tensors: The tensors, keyed by name.
        metadata: Plain JSON values for the header of the file (see :func:`read_metadata`).
        signed: Whether to add a checksum of the content to the header. Pass ``False`` if the checksum is stored
            elsewhere.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    facts = {} if metadata is None else {"format": FORMAT, **metadata}
    if signed:
        facts[CHECKSUM] = _tensor_checksum(plain, parse_json(json.dumps(facts)))
    header = {"scoresde": json.dumps(facts)} if facts else None
    with atomic(path) as temporary:
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # the default mode of new files, which safetensors does not use
            save_file(plain, temporary, metadata=header)
            temporary.chmod(stat.S_IMODE(mode))
        except SafetensorError as error:
            raise cannot_write(path, error) from None
    return path


def _tensor_checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 hash of tensors and their header values, in hexadecimal digits."""
    import torch

    found = hashlib.sha256(_checksum(facts).encode())
    for name in sorted(tensors):
        tensor = torch.cat([tensors[name].reshape(-1)])  # copy to dense memory, because the tensor may be expanded
        found.update(f"{name} {tensor.dtype} {tuple(tensors[name].shape)}\n".encode())
        found.update(tensor.view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file, keyed by name.

    Raises:
        CheckpointError: If the file is not a safetensors file, or if it was changed after it was written.
    """
    from safetensors.torch import load_file

    try:
        regular(path)
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # a damaged header can raise almost anything
        raise CheckpointError(f"{path} cannot be read as safetensors: {reason(error)}") from None
    facts = _facts(path)
    if isinstance(facts, dict) and CHECKSUM in facts and facts.pop(CHECKSUM) != _tensor_checksum(tensors, facts):
        raise CheckpointError(f"{path} was changed after it was written: its content does not match its checksum")
    return tensors


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the JSON values in the header of a file written by :func:`write_tensors`.

    Raises:
        CheckpointError: If the file was not written by :func:`write_tensors`, or if its format is not supported.
    """
    found = _facts(path)
    check_format(path, found)
    assert isinstance(found, dict)
    found.pop(CHECKSUM, None)
    return found


def _facts(path: Path) -> Any:
    from safetensors import safe_open

    try:
        regular(path)
        with safe_open(path, framework="pt") as file:
            return parse_json((file.metadata() or {}).get("scoresde", "null"))
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {reason(error)}") from None
