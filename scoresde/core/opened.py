"""The door through which files are read: regular ones alone, and no more of them than memory holds.

A pipe would be waited for and a device has no end, so that what is no regular file is refused before it is opened.
What is packed unpacks to a limit, and what a header promises is held against the bytes that there are before anything
is allocated. Errors are ``OSError`` and ``ValueError``; :func:`reason` says them in a few words, and the reader adds
which file it was.

References:
    NumPy enhancement proposal 1, for ``.npy`` and ``.npz``; Fifield (2019), A better zip bomb.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .limits import memory

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "file_digest", "gunzipped", "is_gzip", "may_unpack", "opened", "out_of_memory", "parse_json", "read_arrays",
    "read_bytes", "reason", "regular",
]  # fmt: skip

FREE, RATIO = 2**28, 100  # a file unpacks to so many bytes, or to so many times its own size if that is more
NESTED = 64  # levels of JSON
GZIP = b"\x1f\x8b"
KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a pipe, which is not read: write its content to a file"),
    (stat.S_ISSOCK, "it is a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "it is a device, which is not read"),
)


def reason(error: BaseException) -> str:
    """Why a file could not be read or written, in one line, without its name."""
    if out_of_memory(error):
        return "it takes more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, in Python or in torch's allocators."""
    told = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "allocate memory" in told or "out of memory" in told


def regular(path: str | os.PathLike[str]) -> int:
    """The size of a regular file in bytes, without opening it.

    Raises:
        OSError: If there is none, or it is something else.
    """
    try:
        found = os.stat(path)
    except ValueError:
        raise OSError("the name has a zero byte in it") from None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(next((what for kind, what in KINDS if kind(found.st_mode)), "it is no regular file"))
    return found.st_size


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: If there is none, or it is something else.
    """
    regular(path)
    return open(path, "rb")


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The bytes of a regular file, of at most ``most`` if that is given.

    Raises:
        OSError: If there is none, or it is something else, or larger.
    """
    _fits(regular(path), most)
    with open(path, "rb") as file:
        return file.read()


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the bytes of a regular file, 64 hexadecimal digits.

    Raises:
        OSError: If there is none, or it is something else.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fits(size: int, most: int | None = None) -> None:
    """Refuse what is larger than the memory of this machine, or than ``most``."""
    if most is not None and size > most:
        raise OSError(f"it has {_bytes(size)}, and such a file has at most {_bytes(most)}")
    if size > memory():
        raise OSError(f"it takes {_bytes(size)} of memory, and there are {_bytes(memory())}")


def _bytes(count: int) -> str:
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:,.4g} {name}"
    return f"{count:,} bytes"


# -------------------------------------------------------------------------------------------------------------- packed


def is_gzip(path: Path) -> bool:
    """Whether the content is gzip, whatever the name says."""
    with opened(path) as file:
        return file.read(2) == GZIP


def may_unpack(packed: int, size: int | None = None) -> int:
    """To how many bytes a file of ``packed`` bytes may unpack.

    Raises:
        OSError: If ``size`` is more.
    """
    most = max(FREE, RATIO * packed)
    if size is not None:
        if size > most:
            raise OSError(_bomb(packed, _bytes(size), most))
        _fits(size)
    return most


def _bomb(packed: int, size: str, most: int) -> str:
    return (
        f"it has {_bytes(packed)} and unpacks to {size}, and the limit is {_bytes(most)}: unpack it first, if it is "
        "what it should be"
    )


def gunzipped(data: bytes) -> bytes:
    """The bytes themselves, or what they unpack to if they are gzip.

    Raises:
        OSError: If that is too much.
        Exception: Of several kinds if they are damaged.
    """
    if data[:2] != GZIP:
        return data
    most = may_unpack(len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(_bomb(len(data), f"more than {_bytes(most)}", most))
    return found


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a NumPy file by name, of any shapes; that of an ``.npy`` file is called x. Nothing is unpickled.

    Raises:
        OSError: If there is none, it is something else than a file, or too large.
        ValueError: If it is damaged, or holds anything but plain arrays.
    """
    import numpy as np

    size = regular(path)
    with open(path, "rb") as file:
        try:
            if file.read(2) == b"PK":
                with zipfile.ZipFile(file) as archive:
                    members = archive.infolist()
                    may_unpack(size, sum(member.file_size for member in members))
                    for member in members:
                        with archive.open(member) as inside:
                            _hold(inside, member.file_size, packed=True)
            else:
                _fits(size)
                file.seek(0)
                _hold(file, size)
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
        except (OSError, MemoryError):
            raise
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            raise ValueError(reason(error)) from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("it holds members that are no arrays")
    return arrays


def _hold(file: IO[bytes], size: int, packed: bool = False) -> None:
    """Hold what the header of an array promises against the bytes that follow; a member of an archive has no others.

    NumPy reads as many bytes as the header says, so that the checksum of a member would not be looked at if these were
    too few.
    """
    import numpy as np

    if file.read(6) != b"\x93NUMPY":
        return  # np.load says what it is
    readers = {b"\1\0": np.lib.format.read_array_header_1_0, b"\2\0": np.lib.format.read_array_header_2_0}
    read = readers.get(file.read(2))
    if read is None:
        return
    shape, _, dtype = read(file)
    if dtype.hasobject:
        return  # refused without being read
    promised, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or promised > there or (packed and promised < there):
        raise ValueError(f"an array of shape {shape} and dtype {dtype} has {promised:,} bytes, and {there:,} are there")


# ---------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str | bytes) -> Any:
    """Plain values from JSON in UTF-8, nested to a limit, whole numbers of at most 64 bits.

    Raises:
        ValueError: If it is none.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8"), parse_int=_whole)
    except (MemoryError, RecursionError) as error:
        raise ValueError(reason(error)) from None
    level = [value]
    for _ in range(NESTED):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x if isinstance(x, list) else ())]
        if not level:
            return value
    raise ValueError("it is nested too deep")


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"a whole number of {len(digits.lstrip('-'))} digits, which is too large")
    return int(digits)
