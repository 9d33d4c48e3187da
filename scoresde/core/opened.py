"""Read files safely: open only regular files, and read no more than fits into memory.

Reading from a pipe may block, and reading from a device may never end, so anything that is not a regular file is
rejected before it is opened. Compressed data are unpacked only up to a limit. Before an array is allocated, the size in
its header is compared with the number of bytes that follow. Most errors are of type ``OSError`` or ``ValueError``.
:func:`reason` summarises them, and the caller adds the name of the file.

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

FREE, RATIO = 2**28, 100  # a file may unpack to FREE bytes or RATIO times its own size, whichever is larger
NESTED = 64  # maximum nesting depth of JSON
GZIP = b"\x1f\x8b"
KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a pipe, which is not supported; write its content to a file first"),
    (stat.S_ISSOCK, "it is a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "it is a device, which is not supported"),
)


def reason(error: BaseException) -> str:
    """Return the reason why a file could not be read or written, on one line and without the name of the file."""
    if out_of_memory(error):
        return "it needs more memory than is available"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, in Python or in torch's allocators."""
    told = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "allocate memory" in told or "out of memory" in told


def regular(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file in bytes, without opening it.

    Raises:
        OSError: If the file does not exist or is not a regular file.
    """
    try:
        found = os.stat(path)
    except ValueError:
        raise OSError("the name contains a zero byte") from None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(next((what for kind, what in KINDS if kind(found.st_mode)), "it is not a regular file"))
    return found.st_size


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: If the file does not exist or is not a regular file.
    """
    regular(path)
    return open(path, "rb")


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: If the file does not exist, is not a regular file, does not fit into memory, or is larger than ``most``
            bytes.
    """
    _fits(regular(path), most)
    with open(path, "rb") as file:
        return file.read()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 hash of a regular file, as 64 hexadecimal digits.

    Raises:
        OSError: If the file does not exist or is not a regular file.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fits(size: int, most: int | None = None) -> None:
    """Check that ``size`` bytes fit into memory and do not exceed ``most``."""
    if most is not None and size > most:
        raise OSError(f"its size is {_bytes(size)}, but files of this kind may not exceed {_bytes(most)}")
    if size > memory():
        raise OSError(f"it needs {_bytes(size)} of memory, but only {_bytes(memory())} is available")


def _bytes(count: int) -> str:
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:,.4g} {name}"
    return f"{count:,} bytes"


# -------------------------------------------------------------------------------------------------------------- packed


def is_gzip(path: Path) -> bool:
    """Return whether the content of a file is in gzip format. The name of the file does not matter."""
    with opened(path) as file:
        return file.read(2) == GZIP


def may_unpack(packed: int, size: int | None = None) -> int:
    """Return the maximum number of bytes that a file of ``packed`` bytes may unpack to.

    Raises:
        OSError: If ``size`` is given and exceeds this maximum or the available memory.
    """
    most = max(FREE, RATIO * packed)
    if size is not None:
        if size > most:
            raise OSError(_bomb(packed, _bytes(size), most))
        _fits(size)
    return most


def _bomb(packed: int, size: str, most: int) -> str:
    return (
        f"it unpacks from {_bytes(packed)} to {size}, but a file of this size may unpack to at most {_bytes(most)}; if "
        "you trust the file, unpack it first"
    )


def gunzipped(data: bytes) -> bytes:
    """Return ``data``, after unpacking them if they are in gzip format.

    Raises:
        OSError: If the data unpack to more than the limit that :func:`may_unpack` returns.
        Exception: If the gzip content is damaged. The type of the exception varies.
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
    """Return the arrays in a NumPy file, keyed by name.

    The single array in an ``.npy`` file gets the name ``x``. Nothing is unpickled.

    Raises:
        OSError: If the file does not exist, is not a regular file or is too large.
        ValueError: If the file is damaged, or contains anything other than plain arrays.
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
        except Exception as error:  # decoders can raise almost anything on damaged bytes
            raise ValueError(reason(error)) from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("it contains members that are not arrays")
    return arrays


def _hold(file: IO[bytes], size: int, packed: bool = False) -> None:
    """Reject an array with too few bytes after its header or, in an archive (``packed``), with too many."""
    import numpy as np

    if file.read(6) != b"\x93NUMPY":
        return  # np.load reports the error
    readers = {b"\1\0": np.lib.format.read_array_header_1_0, b"\2\0": np.lib.format.read_array_header_2_0}
    read = readers.get(file.read(2))
    if read is None:
        return
    shape, _, dtype = read(file)
    if dtype.hasobject:
        return  # np.load rejects the array without reading it
    promised, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    # If more bytes follow in an archive, NumPy stops before the end and never verifies the checksum.
    if min(shape, default=0) < 0 or promised > there or (packed and promised < there):
        raise ValueError(
            f"an array of shape {shape} and dtype {dtype} needs {promised:,} bytes, but {there:,} "
            "bytes follow its header"
        )


# ---------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str | bytes) -> Any:
    """Parse JSON, but reject deep nesting and integers that do not fit into 64 bits. Bytes are decoded as UTF-8.

    Raises:
        ValueError: If the text is not valid JSON, is nested too deeply, or contains an integer that is too large.
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
    raise ValueError("it is nested too deeply")


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"it contains an integer of {len(digits.lstrip('-'))} digits, which is too large")
    return int(digits)
