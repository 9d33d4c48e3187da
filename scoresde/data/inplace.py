"""Decide whether data are read into memory or stay in their files, and describe data that stay.

Data stay in their files if they would take more than :data:`LARGE` bytes in memory. What is known about them after one
pass is remembered (:mod:`.index`): their content hashes, which decide on the split, and the range and the moments of
their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.opened import opened, reason
from .arrays import layout_of
from .decoded import PictureFiles, decoded_size
from .folders import find_pictures
from .index import remembered
from .outliers import Outliers, outliers_of
from .packed import Packed, beside, digest_of
from .pictures import read_image_folder
from .places import Place
from .raw import AS_IS, Array, Raw, Reading, zeros
from .readers import unused
from .rows import ArrayFile, Stored, stamp_of, thinned
from .survey import surveyed, well_formed

__all__ = ["LARGE", "InPlace", "in_place"]

LARGE = 2**30  # data that take more bytes than this are not read into memory
SAMPLE = 2**22  # number of values among which typing errors are looked for


@dataclass(frozen=True, eq=False)
class InPlace:
    """Data that stay in their files.

    Attributes:
        raw: What a reader would return for the data. Its samples have the right number, shape and dtype, but all their
            values are 0.
        rows: The training samples, followed by the samples of a test part if there is one.
        about: What the data depend on, as plain JSON values: paths, sizes, times and options.
        survey: What :func:`~scoresde.data.survey.surveyed` found, or ``None`` for pictures, whose units are known.
    """

    raw: Raw
    rows: Stored
    about: Mapping[str, Any]
    survey: Mapping[str, Array] | None = None

    @property
    def unusual(self) -> tuple[Outliers, ...]:
        """Values far outside the others, among evenly spaced training samples."""
        if self.survey is None or (self.rows.values.kind != "f" and self.raw.kind not in ("vector", "signal")):
            return ()
        some = thinned(self.rows, SAMPLE).numpy()
        step = (len(self.rows) - 1) / max(1, len(some) - 1)
        found = outliers_of(replace(self.raw, train=some.astype(self.rows.values)))
        return tuple(replace(one, rows=np.rint(one.rows * step).astype(np.int64)) for one in found)


def in_place(path: Path, reading: Reading = AS_IS, place: Place | None = None) -> InPlace | None:
    """Describe data that are too large to be read into memory. Return ``None`` for all other data.

    Args:
        path: The file or folder.
        reading: Options for reading.
        place: The result of :func:`~scoresde.data.readers.pictures_place`.

    Raises:
        DataError: If the data are too large for memory but cannot be used where they are.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _array(path, reading)
        return None if place is None else _pictures(path, place, reading)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error


def _array(path: Path, reading: Reading) -> InPlace | None:
    """Describe a large ``.npy`` file."""
    opened_array = _large_array(path, reading)
    if opened_array is None:
        return None
    rows, packed = opened_array
    about: dict[str, Any] = {
        "what": "array", "path": str(path.resolve()), "stamp": rows.stamp, "kind": rows.kind,
        "last": rows.channels_last,
    }  # fmt: skip
    told = f"the rows of {path.name} stay in the file, because they take more than {LARGE / 2**30:g} GiB"
    raw, survey, notes = None, None, [told]
    names: list[str | None] = []
    if packed is not None:
        about["beside"] = stamp_of(beside(path))
        found, more = remembered(
            {**about, "what": "hash"}, lambda: {"hash": np.array(digest_of(rows))}, lambda found: set(found) == {"hash"}
        )
        raw = packed.checked(path, str(found["hash"]))
        if raw.train_labels is not None:
            held = np.full(len(rows) - len(raw.train), -1) if raw.test_labels is None else raw.test_labels
            names = [raw.classes[i] if i >= 0 else None for i in np.concatenate([raw.train_labels, held])]
        notes += more
    if raw is None or not raw.hashes:
        survey, more = remembered(
            about,
            lambda: surveyed(rows, rows.kind, f"{path}: array 'x'", names),
            lambda found: well_formed(found, rows, rows.kind),
        )
        x = zeros(len(rows), rows.event, rows.values)
        raw = raw or Raw(rows.kind, x, channels_last=rows.channels_last, files=(path,))
        raw = replace(raw, keys=tuple(map(bytes, survey["keys"])))
        notes += more
    return InPlace(replace(raw, notes=(*raw.notes, *dict.fromkeys(notes), *unused(raw, reading))), rows, about, survey)


def _pictures(path: Path, place: Place, reading: Reading) -> InPlace | None:
    """Describe a folder or an archive of pictures that take much memory when they are decoded."""
    found = find_pictures(place, reading.older)
    if decoded_size(place, [file for file, _ in found.train + found.test], reading) <= LARGE:
        return None
    about: dict[str, Any] = {"what": "pictures", "path": str(path.resolve()), "reading": asdict(reading)}
    notes: list[str] = []

    def store(
        files: list[Path], made: Callable[[], dict[str, Array]], fits: Callable[[Mapping[str, Array]], bool]
    ) -> dict[str, Array]:
        about["stamp"] = place.stamp(files)
        kept, told = remembered(about, made, fits)
        notes.extend(told)
        return kept

    raw = read_image_folder(place, reading, store)
    rows = PictureFiles(place, raw.files, reading, raw.train.shape[1:], raw.train.dtype)
    told = f"the images stay in {path.name}, because they would take more than {LARGE / 2**30:g} GiB of memory"
    return InPlace(replace(raw, notes=(*raw.notes, *unused(raw, reading), told, *notes)), rows, about)


def _large_array(path: Path, reading: Reading) -> tuple[ArrayFile, Packed | None] | None:
    """Return the rows of a large ``.npy`` file, and what is known about them if they were packed.

    Return ``None`` if the usual reader should read or reject the file.
    """
    with opened(path) as file:
        stamp = stamp_of(file.fileno())
        if stamp[0] <= LARGE:
            return None
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[version](file)
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path} is damaged or is not a NumPy file ({reason(error)}); save it again with np.save"
            ) from error
        offset = file.tell()
    if dtype.hasobject:
        return None
    x = zeros(shape[0], shape[1:], dtype) if shape else np.zeros((), dtype)
    packed = Packed.read(path, x)
    kind, channels_last = layout_of(path, "x", x, reading) if packed is None else (packed.raw.kind, False)
    promised = x.size * dtype.itemsize
    if promised > stamp[0] - offset:
        raise DataError(
            f"{path} is damaged: an array of shape {shape} and dtype {dtype} needs {promised:,} bytes, but "
            f"{stamp[0] - offset:,} bytes follow its header; save it again with np.save"
        )
    if fortran and len(shape) > 1:
        raise DataError(
            f"{path} has {stamp[0] / 1e9:,.1f} GB, too many to be read into memory, and is stored column by column, "
            "so that single rows cannot be read; save it row by row, as np.save(file, np.ascontiguousarray(x)) does"
        )
    return ArrayFile(path.resolve(), offset, dtype, tuple(shape), kind, channels_last, stamp), packed
