"""Load a file or folder into plain arrays, channels first, without executing any of its content.

Files are not trusted: pickled arrays are rejected, only a few image formats are opened, and every problem is reported
with the name of the file. Each format has its own module.
"""

from __future__ import annotations

import io
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.opened import reason, regular
from .arrays import load_arrays, read_numpy
from .folders import IMAGE_SUFFIXES
from .idx import IDX_NAME, looks_like_idx, read_idx_file, read_idx_folder
from .packed import Packed, beside, digest_of
from .parquet import SUFFIXES, pictures_in_parquet, read_parquet
from .pictures import read_image_folder
from .places import Folder, Place, archive_of, is_archive
from .raw import AS_IS, Raw, Reading
from .table import TABLE_SUFFIXES, is_table, read_table

__all__ = ["READABLE", "pictures_place", "read_digits", "read_path", "unused"]

READABLE = (
    f"a folder of images ({', '.join(IMAGE_SUFFIXES)}) at any depth, with or without class folders, and with or "
    "without train/ and test/; a .zip or .tar archive of such a folder, or a folder of .tar archives; "
    "a folder of IDX files (train-images-idx3-ubyte[.gz], ...) or a single IDX file; a .npy or .npz file; a CSV or TSV "
    f"table ({', '.join(TABLE_SUFFIXES)}, also .gz); a .parquet file of pictures or a table"
)
ARRAYS = (".npy", ".npz")
# Common file types that are not supported, and what to do instead.
INSTEAD = {
    (".xlsx", ".xls", ".ods"): "a spreadsheet; save the sheet as CSV",
    (".feather", ".arrow", ".sav", ".dta"): "a table in another format; save it as CSV",
    (".h5", ".hdf5", ".mat"): "a file of arrays in another format; save them with np.save or np.savez",
    (".pt", ".pth", ".pkl", ".pickle", ".joblib"): (
        "a pickle, which can execute code and is never loaded; save its numbers with np.save or np.savez"
    ),
    (".gz", ".7z", ".rar"): "an archive; unpack it, and pass the folder or file inside it",
}


def read_path(path: Path, reading: Reading = AS_IS, place: Place | None = None) -> Raw:
    """Read the file or folder ``path`` in any supported format.

    Args:
        path: The file or folder.
        reading: Options for reading.
        place: The result of :func:`pictures_place`, if it is known.
    """
    raw = _read_path(path, reading, place)
    files = raw.files or tuple(p for p in (sorted(path.iterdir()) if path.is_dir() else [path]) if p.is_file())
    return replace(raw, notes=(*raw.notes, *unused(raw, reading)), files=files)


def unused(raw: Raw, reading: Reading) -> list[str]:
    """Return a note on each option for reading that has no effect on the data that were read."""
    pictures, found = bool(raw.hashes), []
    if reading.size and not pictures:
        found.append("size and fit apply only to folders of images, and have no effect here")
    if reading.layout != "auto" and pictures and not reading.older:
        found.append("layout applies only to arrays, and has no effect here")
    return found


def _read_path(path: Path, reading: Reading, place: Place | None) -> Raw:
    try:
        place = place or pictures_place(path)
        if place is not None:
            return read_image_folder(place, reading)
        if path.is_dir():
            return read_idx_folder(path, _idx_files(path))
        regular(path)
        if path.suffix.lower() == ".npy" and beside(path).exists():
            return _read_packed(path)
        if path.suffix.lower() in ARRAYS:
            return read_numpy(path, reading)
        if is_table(path):
            return read_table(path, reading)
        if path.suffix.lower() in SUFFIXES:
            return read_parquet(path, reading)
        if "-ubyte" in path.name or looks_like_idx(path):
            return read_idx_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    for suffixes, told in INSTEAD.items():
        if path.suffix.lower() in suffixes:
            raise DataError(f"{path} has an unsupported file type. It is {told}. The supported types are {READABLE}")
    raise DataError(f"{path} has an unsupported file type. The supported types are {READABLE}")


def _read_packed(path: Path) -> Raw:
    """Read an array and what is known about its rows."""
    x = load_arrays(path)["x"]
    packed = Packed.read(path, x)
    assert packed is not None
    return packed.checked(path, digest_of(x))


def pictures_place(path: Path) -> Place | None:
    """Return the folder or the archive of pictures at ``path``, or ``None`` if there is something else.

    Raises:
        DataError: If an archive cannot be read, or if a folder holds data sets of which one must be chosen.
    """
    try:
        return _place(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error


def _place(path: Path) -> Place | None:
    if not path.is_dir():
        regular(path)
        if path.suffix.lower() in SUFFIXES:
            return pictures_in_parquet(path)
        return archive_of(path) if is_archive(path) else None
    if _idx_files(path):
        return None
    if any(p.suffix.lower() == ".tar" for p in path.iterdir()) and not _has_pictures(path):
        return archive_of(path)
    _refuse_files(path)
    return Folder(path)


def _idx_files(path: Path) -> dict[str, re.Match[str]]:
    return {m[0]: m for p in path.iterdir() if (m := IDX_NAME.fullmatch(p.name))}


def _has_pictures(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.rglob("*"))


def _refuse_files(folder: Path) -> None:
    """Reject a folder that has no images, but tables or arrays, each of which is a separate data set."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (*ARRAYS, *SUFFIXES) or is_table(p))
    if not found or _has_pictures(folder):
        return
    more = f" (one of {len(found)} such files)" if len(found) > 1 else ""
    raise DataError(f"{folder} has no images; to read a table or an array, pass the file itself: {found[0]}{more}")


def read_digits() -> Raw:
    """Read the bundled UCI digits, 1,797 images of 8 x 8 pixels with 17 levels, as uint8 ``(1797, 1, 8, 8)``."""
    stored = resources.files("scoresde").joinpath("assets/digits.npz").read_bytes()
    with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    classes = tuple(str(i) for i in range(10))
    return Raw("image", images[:, None], train_labels=labels, classes=classes, levels=(0, 16, 17))
