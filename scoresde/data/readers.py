"""Readers: from a file or a folder to plain arrays, channels first, with nothing executed on the way.

Files are not trusted: pickled arrays are refused, only a few image formats are opened, and whatever is wrong is
reported with the name of the file. A format has a module of its own.
"""

from __future__ import annotations

import io
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from .arrays import read_numpy
from .folders import IMAGE_SUFFIXES
from .idx import IDX_NAME, looks_like_idx, read_idx_file, read_idx_folder
from .pictures import read_image_folder
from .raw import AS_IS, Raw, Reading

__all__ = ["READABLE", "read_digits", "read_path"]

READABLE = (
    f"a folder of images ({', '.join(IMAGE_SUFFIXES)}), at any depth, flat, with class folders, or with "
    "train/ and test/; a folder of IDX files (train-images-idx3-ubyte[.gz], ...) or one of them; a .npy or .npz file"
)


def read_path(path: Path, reading: Reading = AS_IS) -> Raw:
    """Read the file or folder ``path`` in whichever of the known layouts it has; ``reading`` says what it does not."""
    raw = _read_path(path, reading)
    pictures, unused = bool(raw.hashes), []
    if reading.size and not pictures:
        unused.append("size and fit are for folders of pictures, and change nothing here")
    if reading.layout != "auto" and pictures:
        unused.append("layout is for arrays, and changes nothing here")
    return replace(raw, notes=(*raw.notes, *unused))


def _read_path(path: Path, reading: Reading) -> Raw:
    try:
        if path.is_dir():
            files = {m[0]: m for p in path.iterdir() if (m := IDX_NAME.fullmatch(p.name))}
            return read_idx_folder(path, files) if files else read_image_folder(path, reading)
        if path.suffix.lower() in (".npy", ".npz"):
            return read_numpy(path, reading)
        if "-ubyte" in path.name or looks_like_idx(path):
            return read_idx_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    raise DataError(f"{path}: not a kind of file that can be read. What can be read: {READABLE}")


def read_digits() -> Raw:
    """The 1,797 8x8 optical digits of UCI, 17 levels, shipped with the package: ``(1797, 1, 8, 8)`` uint8."""
    stored = resources.files("scoresde").joinpath("assets/digits.npz").read_bytes()
    with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    classes = tuple(str(i) for i in range(10))
    return Raw("image", images[:, None], train_labels=labels, classes=classes, levels=(0, 16, 17))
