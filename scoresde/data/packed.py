"""What is known about the rows of a packed array, in a file beside the array.

An array in an ``.npy`` file has no labels, no test part, and no trace of the files that its pictures came from. For an
array that was packed by :mod:`.pack`, all this is in a second file, ``photos.keys.npz`` beside ``photos.npy``:

    about    JSON: the kind of the data, the number of training rows, the classes, the range of the levels, the names of
             the columns, the name of each picture's file, and a hash of all values of the array
    hashes   the hash of each picture's file, uint8 (N, 8), which identifies the row and decides on its split
    labels   the class index of each row, int64 (N,), or -1 for a row without a class
    text     the text about each row, as JSON

The hash of all values shows whether the two files belong together. If they do not, or if the second file is damaged,
the array is rejected, because its rows would be split differently without it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.files import write_arrays
from ..core.opened import parse_json, read_arrays, reason
from .raw import Array, Known, Raw
from .rows import PIECE, Stored

__all__ = ["Packed", "beside", "digest_of", "in_bytes"]


def beside(path: Path) -> Path:
    """Return the path of the file that describes the rows of the packed array at ``path``."""
    return path.with_suffix(".keys.npz")


def digest_of(x: Array | Stored) -> str:
    """Return a hash of the values of all rows, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in in_bytes(x):
        digest.update(piece)
    return digest.hexdigest()


def in_bytes(x: Array | Stored) -> Iterator[memoryview]:
    """Yield the values of all rows as little-endian bytes, a few rows at a time."""
    size = max(1, PIECE // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), size):
        index = np.arange(start, min(start + size, len(x)))
        piece = x.read(index) if isinstance(x, Stored) else x[index]
        yield np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).data.cast("B")


@dataclass(frozen=True, eq=False)
class Packed:
    """What is known about the rows of a packed array.

    Attributes:
        raw: What a reader would return for the rows, with samples of any value.
        digest: The hash of all values (:func:`digest_of`).
    """

    raw: Raw
    digest: str

    def write(self, path: Path) -> Path:
        """Write the file that describes the array at ``path``, and return its path."""
        raw = self.raw
        count = len(raw.train) + (0 if raw.test is None else len(raw.test))
        about = {
            "kind": raw.kind, "n_train": len(raw.train), "count": count, "classes": raw.classes, "levels": raw.levels,
            "names": raw.names, "whole": raw.whole, "digest": self.digest,
            "files": [file.as_posix() for file in raw.files] if raw.hashes else [],
        }  # fmt: skip
        arrays: dict[str, Any] = {"about": _bytes(about)}
        if raw.hashes:
            arrays["hashes"] = np.frombuffer(b"".join(raw.hashes), np.uint8).reshape(-1, 8)
        if raw.train_labels is not None:
            held = np.full(count - len(raw.train), -1) if raw.test_labels is None else raw.test_labels
            arrays["labels"] = np.concatenate([raw.train_labels, held])
        if raw.train_known.text is not None:
            texts = [one.text for one in (raw.train_known, raw.test_known) if one.text is not None]
            arrays["text"] = _bytes(np.concatenate(texts).tolist())
        return write_arrays(beside(path), arrays)

    @classmethod
    def read(cls, path: Path, x: Array) -> Packed | None:
        """Read what is known about the rows of the array at ``path``, or return ``None`` if it was not packed.

        Args:
            path: The ``.npy`` file.
            x: The rows ``(N, *event)``, or an array of the same shape and dtype.

        Raises:
            DataError: If the file beside the array is damaged, or describes an array of another length.
        """
        file = beside(path)
        if path.suffix.lower() != ".npy" or not file.exists():
            return None
        try:
            arrays = read_arrays(file)
            about = parse_json(bytes(arrays["about"]))
            n, count = int(about["n_train"]), int(about["count"])
            if x.ndim == 0 or count != len(x) or not 0 < n <= count:
                raise ValueError(f"it describes {count:,} rows, but the array has {len(x) if x.ndim else 1:,}")
            raw = Raw(
                str(about["kind"]), x[:n], x[n:] if n < count else None, classes=tuple(map(str, about["classes"])),
                levels=None if about["levels"] is None else _three(about["levels"]),
                names=tuple(map(str, about["names"])), whole=tuple(map(bool, about["whole"])),
            )  # fmt: skip
            if "hashes" in arrays:
                hashes, files = arrays["hashes"], about["files"]
                if hashes.shape != (count, 8) or hashes.dtype != np.uint8 or len(files) != count:
                    raise ValueError(f"it has hashes of shape {hashes.shape} for {count:,} rows")
                raw = replace(raw, hashes=tuple(map(bytes, hashes)), files=tuple(path / str(name) for name in files))
            if "labels" in arrays:
                labels = arrays["labels"].astype(np.int64)
                if labels.shape != (count,) or labels.max() >= len(raw.classes) or labels[:n].min() < 0:
                    raise ValueError("its labels are not those of its classes")
                held = labels[n:] if n < count and labels[n:].min() >= 0 else None
                raw = replace(raw, train_labels=labels[:n], test_labels=held)
            if "text" in arrays:
                text = np.array([str(one) for one in parse_json(bytes(arrays["text"]))], dtype=str)
                if len(text) != count:
                    raise ValueError(f"it has {len(text):,} texts for {count:,} rows")
                raw = replace(raw, train_known=Known(text=text[:n]), test_known=Known(text=text[n:]))
            return cls(raw, str(about["digest"]))
        except (OSError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise DataError(
                f"{file}, which describes the rows of {path.name}, cannot be used: {reason(error)}; pack the data again"
            ) from error

    def checked(self, path: Path, digest: str) -> Raw:
        """Return what a reader would return, if the hash of the array at ``path`` is the one that was packed.

        Raises:
            DataError: If it is another array.
        """
        if digest != self.digest:
            raise DataError(
                f"{beside(path)} describes another array than {path.name}, which has changed since it was packed; pack "
                "the data again, or rename the array to use it without the description"
            )
        return self.raw


def _bytes(value: Any) -> Array:
    return np.frombuffer(json.dumps(value).encode("ascii"), np.uint8)


def _three(levels: Any) -> tuple[int, int, int]:
    low, high, count = map(int, levels)
    return low, high, count
