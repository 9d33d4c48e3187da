"""Pack data into few files that can be read in place: tar or zip archives, or an array.

Archives hold the bytes of the picture files, under the names that they have in the source, together with the files of
their conditions and classes. They are read like the source (:mod:`.places`), so they give the same rows, in the same
order and with the same hashes. An archive in several parts is a folder of tar archives in the WebDataset format: all
files of a sample are in one archive, one after another, and each archive is a random part of the data.

An array holds the decoded pictures, or the rows of another array or of a table. What an array cannot hold is in a file
beside it (:mod:`.packed`): the hashes of the source, so that the rows are split as in the source, the classes, the
texts and the test part. Whatever is written appears only when it is complete.
"""

from __future__ import annotations

import hashlib
import math
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np

from ..core.errors import DataError, Problems, UsageError
from ..core.files import atomic
from ..core.opened import reason
from .decoded import PictureFiles
from .folders import Found, find_pictures
from .inplace import InPlace, in_place
from .packed import Packed, beside, in_bytes
from .parquet import write_pictures, write_table
from .pictures import read_image_folder
from .places import Place
from .raw import AS_IS, Array, Raw, Reading
from .readers import pictures_place, read_path
from .rows import PIECE, Stored

__all__ = ["SHARD", "Written", "pack"]

SHARD = 2**30  # size above which another tar archive of a folder is begun, in bytes
EPOCH = (1980, 1, 1, 0, 0, 0)  # time of all members of a zip archive, so that the same data give the same bytes


@dataclass(frozen=True)
class Written:
    """What was packed.

    Attributes:
        path: The file, or the folder of tar archives.
        count: Number of rows.
        files: Every file that was written.
    """

    path: Path
    count: int
    files: tuple[Path, ...]


def pack(
    path: Path, out: Path, reading: Reading = AS_IS, watch: Callable[[int, int], None] = lambda done, of: None
) -> Written:
    """Pack the data at ``path`` into one file, or into a folder of tar archives.

    Args:
        path: The data: pictures in a folder or an archive, an array or a table.
        out: What to write. The suffix determines the format: ``.npy``, ``.zip``, ``.tar``, ``.parquet``, or none for a
            folder of tar archives.
        reading: Options for reading the data. Only an array holds decoded pictures, so the size and the way to fit it
            apply only to ``.npy``.
        watch: Called with the number of rows that are done and the number of all rows.

    Raises:
        UsageError: If ``out`` exists, if its suffix is unknown, or if an option does not suit it.
        DataError: If the data cannot be read, or cannot be packed in this format.
    """
    kind = out.suffix.lower()
    if kind not in (".npy", *ARCHIVES):
        raise UsageError(
            f"{out}: there is no format for the suffix {out.suffix!r}; use .npy, .zip, .tar or .parquet, or no suffix "
            "for a folder of tar archives",
            parameter="out",
        )
    for there in (out, beside(out)) if kind == ".npy" else (out,):
        if os.path.lexists(there):
            raise UsageError(f"{there} already exists; choose another name, or remove it first", parameter="out")
    place = pictures_place(path)
    if kind == ".npy":
        return _array(path, out, reading, place, watch)
    if kind == ".parquet" and place is None:
        return _table(path, out, reading, watch)
    if place is None:
        raise DataError(
            f"{path} does not hold picture files, so it cannot be packed into an archive; pack it into an array (.npy)"
        )
    asked = [name for name in ("size", "fit", "layout", "on_bad") if getattr(reading, name) != getattr(AS_IS, name)]
    if asked:
        raise UsageError(
            f"an archive holds the bytes of the picture files, so {' and '.join(asked)} would have no effect; pack "
            "without, and use the same when reading the archive, or pack into an array (.npy)"
        )
    found = find_pictures(place)
    if found.problems:
        raise Problems(path, found.problems, found.notes)
    return ARCHIVES[kind](place, found, out, watch)


# ------------------------------------------------------------------------------------------------------------- archives


def _samples(place: Place, found: Found, above: str) -> Iterator[list[tuple[str, bytes]]]:
    """Yield the files of each sample, the picture first, as names and contents."""
    for path, _ in (*found.train, *found.test):
        files = []
        for file in (path, *found.beside(path)):
            try:
                data = place.read(file)
            except (OSError, MemoryError) as error:
                raise DataError(f"{file} cannot be read: {reason(error)}") from error
            files.append((above + file.relative_to(place.path).as_posix(), data))
        yield files


def _above(place: Place, found: Found, out: Path) -> str:
    """Return the folder that must enclose all members, or "".

    An archive whose members lie in one folder may be taken for an archive of that folder (:mod:`.places`). Then there
    must be one folder more.
    """
    names = [path.relative_to(place.path).parts for path, _ in (*found.train, *found.test)]
    one = {name[0] for name in names}
    return f"{out.name.partition('.')[0]}/" if len(one) == 1 and all(len(name) > 1 for name in names) else ""


def _zip(place: Place, found: Found, out: Path, watch: Callable[[int, int], None]) -> Written:
    count = len(found.train) + len(found.test)
    with atomic(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for i, files in enumerate(_samples(place, found, _above(place, found, out)), 1):
            for name, data in files:
                # Pictures are compressed already.
                archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
            watch(i, count)
    return Written(out, count, (out,))


def _tar(place: Place, found: Found, out: Path, watch: Callable[[int, int], None]) -> Written:
    count = len(found.train) + len(found.test)
    with atomic(out) as temporary, tarfile.open(temporary, "w") as archive:
        for i, files in enumerate(_samples(place, found, _above(place, found, out)), 1):
            for name, data in files:
                archive.addfile(_info(name, data), BytesIO(data))
            watch(i, count)
    return Written(out, count, (out,))


def _shards(place: Place, found: Found, out: Path, watch: Callable[[int, int], None]) -> Written:
    count = len(found.train) + len(found.test)
    names: list[str] = []
    with atomic(out) as temporary, ExitStack() as held:
        temporary.mkdir()
        archive, size = None, 0
        for i, files in enumerate(_samples(place, found, _above(place, found, out)), 1):
            if archive is None or size > SHARD:
                held.close()
                names.append(f"{len(names):06}.tar")
                archive, size = held.enter_context(tarfile.open(temporary / names[-1], "w")), 0
            for name, data in files:
                archive.addfile(_info(name, data), BytesIO(data))
                size += len(data)
            watch(i, count)
        held.close()
    return Written(out, count, tuple(out / name for name in names))


def _info(name: str, data: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info


def _parquet(place: Place, found: Found, out: Path, watch: Callable[[int, int], None]) -> Written:
    count = len(found.train) + len(found.test)

    def counted() -> Iterator[list[tuple[str, bytes]]]:
        for i, files in enumerate(_samples(place, found, ""), 1):
            yield files
            watch(i, count)

    with atomic(out) as temporary:
        write_pictures(temporary, counted())
    return Written(out, count, (out,))


ARCHIVES = {".zip": _zip, ".tar": _tar, "": _shards, ".parquet": _parquet}


# --------------------------------------------------------------------------------------------------------------- arrays


def _array(path: Path, out: Path, reading: Reading, place: Place | None, watch: Callable[[int, int], None]) -> Written:
    """Write the rows of any data as an array, and what is known about them into a file beside it."""
    stored = in_place(path, reading, place)
    if place is not None and stored is None:
        raw = read_image_folder(place, reading, lambda files, made, fits: made())
        rows: Stored | Array = PictureFiles(place, raw.files, reading, raw.train.shape[1:], raw.train.dtype)
    else:
        raw = read_path(path, reading, place) if stored is None else stored.raw
        rows = _all_rows(raw, stored)
    if place is not None and find_pictures(place, reading.older).given:
        raise DataError(
            f"{path} has given pictures, which cannot be packed into an array; pack it into an archive (.zip or .tar)"
        )
    _check_packable(path, raw)
    root = path if place is None else place.path
    named = tuple(Path(file.relative_to(root)) for file in raw.files) if raw.hashes else ()
    count = len(rows)
    with atomic(out) as temporary:
        dtype = (rows.values if isinstance(rows, Stored) else rows.dtype).newbyteorder("<")
        digest, done = hashlib.blake2b(digest_size=16), 0
        with temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(rows.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in in_bytes(rows):
                file.write(piece)
                digest.update(piece)
                done += len(piece)
                watch(done * count // (dtype.itemsize * math.prod(rows.shape)), count)
        written = Packed(replace(raw, files=named), digest.hexdigest()).write(out)
    return Written(out, count, (out, written))


def _table(path: Path, out: Path, reading: Reading, watch: Callable[[int, int], None]) -> Written:
    """Write the rows of a table or of an array of vectors as a parquet file."""
    stored = in_place(path, reading)
    raw = read_path(path, reading) if stored is None else stored.raw
    _check_packable(path, raw)
    if raw.kind != "vector" or raw.test is not None or raw.train_known.text is not None:
        raise DataError(
            f"{path} is not a table without a test part and without texts, so it cannot be packed as parquet; pack it "
            "into an array (.npy)"
        )
    rows = _all_rows(raw, stored)

    def pieces() -> Iterator[Array]:
        size, count = max(1, PIECE // raw.train.shape[1]), len(rows)
        for start in range(0, count, size):
            index = np.arange(start, min(start + size, count))
            yield rows.read(index) if isinstance(rows, Stored) else rows[index]
            watch(int(index[-1]) + 1, count)

    with atomic(out) as temporary:
        write_table(temporary, raw, pieces)
    return Written(out, len(rows), (out,))


def _all_rows(raw: Raw, stored: InPlace | None) -> Stored | Array:
    if stored is not None:
        return stored.rows
    return raw.train if raw.test is None else np.concatenate([raw.train, raw.test])


def _check_packable(path: Path, raw: Raw) -> None:
    """Reject data with parts that an array cannot hold."""
    known = (raw.train_known, raw.test_known)
    conditions = {
        "given images": any(one.image is not None for one in known),
        "numbers as a condition": any(one.vector is not None for one in known),
        "features of texts": any(one.features is not None for one in known),
        "missing values": raw.complete is not None,
        "classes of the test samples only": raw.train_labels is None and raw.test_labels is not None,
    }
    found = [name for name, there in conditions.items() if there]
    if found:
        raise DataError(
            f"{path} has {' and '.join(found)}, which cannot be packed into an array; use the file as it is"
        )
