"""One writer in a folder: a lock that the operating system takes back when its holder ends, however that is.

The file ``.lock`` says who holds it, for people. What holds is ``flock`` on it, so that the file alone, of a process
that was killed or in a copy of the folder, locks nothing.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CheckpointError
from .files import cannot_write
from .opened import parse_json

__all__ = ["LOCK", "held_by", "in_use", "locked"]

LOCK = ".lock"
TRIES = 5
HELD = (BlockingIOError, PermissionError)  # what flock raises if another has it: the second on some file systems


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is there; two threads of one process count as two.

    Where there are no such locks (other systems, some network file systems), there is a warning and no lock.

    Raises:
        CheckpointError: If another holds it, with who; or if the folder cannot be written to.
    """
    file = _taken(folder)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()  # before it is let go, see _taken
            os.close(file)


def in_use(folder: Path, holder: str) -> CheckpointError:
    """That another writes into a folder."""
    return CheckpointError(f"{folder} is in use: {holder} trains there; wait for its end, or choose another folder")


def held_by(folder: Path) -> str | None:
    """Who holds the lock of a folder, in words; ``None`` if nobody does, or there is no telling."""
    try:
        import fcntl

        file = _opened(folder / LOCK, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except HELD:
        return _holder(file)
    except OSError:
        return None
    finally:
        os.close(file)
    return None


def _taken(folder: Path) -> int | None:
    """The file of the lock, locked; ``None`` where there are no locks."""
    path = folder / LOCK
    try:
        import fcntl
    except ImportError:
        _without(folder, "this system has none")
        return None
    tries = 0
    while True:
        try:
            file = _opened(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except HELD:
            tries += 1
            holder = _holder(file)
            os.close(file)
            if tries < TRIES:  # a look at who holds it takes a moment as well
                time.sleep(0.02)
                continue
            raise in_use(folder, holder) from None
        except OSError as error:
            os.close(file)
            _without(folder, error.strerror or str(error))
            return None
        try:  # one that was removed between the two is no lock to others
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        except OSError:
            pass
        os.close(file)
    told = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # a disk that is full locks as well
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(told).encode() + b"\n", 0)
    return file


def _opened(path: Path, flags: int) -> int:
    file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError("it is no regular file: remove it")
    return file


def _holder(file: int) -> str:
    """Who holds the lock, as the file says."""
    for _ in range(20):  # it is written right after it was locked
        try:
            told = parse_json(os.pread(file, 4096, 0))
            return f"process {int(told['pid'])} on {told['host']!s} (since {told['since']!s})"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return "another process"


def _without(folder: Path, why: str) -> None:
    warnings.warn(
        f"{folder} cannot be locked ({why}): nothing keeps a second training from writing into it", stacklevel=4
    )
