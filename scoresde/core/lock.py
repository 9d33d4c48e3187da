"""A lock that allows one writer per folder. The operating system releases the lock when the writing process ends.

The lock is an ``flock`` on the file ``.lock``. The file also records which process holds the lock, but only for use in
messages. A lock file that a killed process left behind, or that was copied along with the folder, does not lock
anything.
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
from .files import cannot_write, living
from .opened import parse_json

__all__ = ["LOCK", "held_by", "in_use", "locked"]

LOCK = ".lock"
TRIES = 5
HELD = (BlockingIOError, PermissionError)  # raised if the lock is held; PermissionError on some file systems


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on an existing folder while the block runs. Threads of the same process also exclude each other.

    Where ``flock`` is not supported (on non-Unix systems and some network file systems), warn and continue without a
    lock.

    Raises:
        CheckpointError: If the lock is already held (the message says by which process), or if the folder is not
            writable.
    """
    file = _taken(folder)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()  # before the lock is released, see _taken
            os.close(file)


def in_use(folder: Path, holder: str) -> CheckpointError:
    """Return the error for a folder that another process is writing to."""
    return CheckpointError(
        f"{folder} is in use: {holder} is training there; wait for it to finish, or choose another folder"
    )


def held_by(folder: Path) -> str | None:
    """Describe the process that holds a folder's lock. Return ``None`` if the lock is free or the holder is unknown."""
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
    """Lock a folder. Return the descriptor of the lock file, or ``None`` where locks are not supported."""
    path = folder / LOCK
    try:
        import fcntl
    except ImportError:
        _without(folder, "this system does not support file locks")
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
            if tries < TRIES:  # `held_by` takes the lock for a moment as well
                time.sleep(0.02)
                continue
            raise in_use(folder, holder) from None
        except OSError as error:
            os.close(file)
            _without(folder, error.strerror or str(error))
            return None
        try:  # a file that was removed after it was opened does not keep others out
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        except OSError:
            pass
        os.close(file)
    told = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # the lock holds even if the disk is full
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(told).encode() + b"\n", 0)
    return file


def _opened(path: Path, flags: int) -> int:
    file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError("it is not a regular file (remove it first)")
    return file


def _holder(file: int) -> str:
    """Describe the process that holds the lock, as recorded in the lock file."""
    holder = "another process"
    for _ in range(20):  # the holder writes to the file right after locking it
        try:
            told = parse_json(os.pread(file, 4096, 0))
            holder = f"process {int(told['pid'])} on {told['host']!s} (since {told['since']!s})"
            if told["host"] != socket.gethostname() or living(int(told["pid"])):
                break  # otherwise the file still names an earlier holder, which was killed
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.01)
    return holder


def _without(folder: Path, why: str) -> None:
    warnings.warn(
        f"{folder} cannot be locked ({why}); make sure that no other training run writes to it at the same time",
        stacklevel=4,
    )
