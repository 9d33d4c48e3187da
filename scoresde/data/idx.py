"""Read files in the IDX format, which MNIST uses.

An IDX file consists of a magic number, the big-endian sizes of the axes, and the data.

References:
    LeCun, Cortes and Burges, The MNIST database.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from ..core.errors import DataError
from ..core.opened import is_gzip, may_unpack, opened, reason, regular
from .raw import Array, Raw, index_labels

__all__ = ["IDX_NAME", "looks_like_idx", "read_idx_file", "read_idx_folder"]

IDX_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?", re.IGNORECASE)


def _open_idx(path: Path) -> IO[bytes] | gzip.GzipFile:
    """Open a file, and decompress it if its content is gzip, whatever its name."""
    return gzip.open(path, "rb") if is_gzip(path) else opened(path)


def looks_like_idx(path: Path) -> bool:
    try:
        with _open_idx(path) as file:
            return file.read(3) == b"\x00\x00\x08"
    except (OSError, EOFError, zlib.error):
        return False


def _read_idx(path: Path, ndim: int) -> Array:
    """Read an IDX file of unsigned bytes with ``ndim`` dimensions."""
    header_size = 4 + 4 * ndim
    try:
        size = regular(path)
        most = may_unpack(size) if is_gzip(path) else size
        with _open_idx(path) as file:
            header = file.read(header_size)
            if header[:4] != bytes([0, 0, 8, ndim]):
                what = {1: "labels", 3: "images"}[ndim]
                raise DataError(
                    f"{path} is not an IDX file of {what}: its first bytes are "
                    f"{header[:4].hex(' ') or '(none)'} instead of "
                    f"00 00 08 {ndim:02x} (a {ndim}-dimensional array of unsigned bytes)"
                )
            if len(header) < header_size:
                raise DataError(f"{path} is truncated in its header; download it again")
            shape = struct.unpack(f">{ndim}I", header[4:])
            if most > size:
                may_unpack(size, math.prod(shape))
            # Read at most what the header declares, even if a .gz unpacks to more, and at most what the file can
            # contain, even if the header declares more.
            payload = file.read(min(math.prod(shape), most) + 1)
    except DataError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged or truncated gzip file ({error}); download it again") from error
    except (OSError, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    if len(payload) != math.prod(shape):
        raise DataError(
            f"{path}: the header declares {'x'.join(map(str, shape))} = {math.prod(shape)} bytes of data, but the file "
            f"contains {'more' if len(payload) > math.prod(shape) else len(payload)}. The file is truncated or "
            "damaged; download it again"
        )
    return np.frombuffer(bytearray(payload), np.uint8).reshape(shape)


def _read_idx_pair(images: Path, labels: Path | None) -> tuple[Array, Array | None]:
    x = _read_idx(images, 3)
    y = None if labels is None else _read_idx(labels, 1)
    if labels is not None and y is not None and len(y) != len(x):
        raise DataError(
            f"{labels} has {len(y)} labels, but {images} has {len(x)} images; use files from the same data set"
        )
    return x[:, None], y


def read_idx_folder(folder: Path, names: dict[str, re.Match[str]]) -> Raw:
    # Sort in reverse, so that a plain file takes precedence over its .gz.
    found = sorted(names.items(), reverse=True)
    role = {(m[1].lower() != "train", m[2].lower()): folder / name for name, m in found}
    if (False, "images") not in role:
        raise DataError(
            f"{folder} has the IDX files {sorted(names)}, but no train-images-idx3-ubyte[.gz]; add that file"
        )
    x, y = _read_idx_pair(role[False, "images"], role.get((False, "labels")))
    test_x, test_y = None, None
    if (True, "images") in role:
        test_x, test_y = _read_idx_pair(role[True, "images"], role.get((True, "labels")))
    (y, test_y), classes = index_labels(folder, y, test_y)
    return Raw("image", x, test_x, y, test_y, classes)


def read_idx_file(path: Path) -> Raw:
    name = path.name.removesuffix(".gz")
    partner = name.replace("images", "labels").replace("idx3", "idx1")
    beside = [p for p in (path.with_name(partner), path.with_name(partner + ".gz")) if p.is_file()]
    x, y = _read_idx_pair(path, beside[0] if beside and partner != name else None)
    (y,), classes = index_labels(path, y)
    return Raw("image", x, train_labels=y, classes=classes)
