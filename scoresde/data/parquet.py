"""Parquet files: pictures as a column of the bytes of their files, and tables of numbers and classes.

A parquet file of pictures is read like an archive (:mod:`.places`). The bytes are in a column ``bytes`` or ``image``,
or in a field ``bytes`` of the column ``image``, as in data sets of Hugging Face. A column ``path`` holds the names of
the files, whose folders are the classes and parts of the data. Without such names, the class is in a column ``label``
or ``class``, and a text in a column ``text`` or ``caption``. A row can only be read together with its row group, so
:func:`write_pictures` writes small groups.

Any other parquet file is a table, and is read as if it had been saved as CSV (:mod:`.table`).

Reading needs the library pyarrow, which is installed with the extra ``parquet``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.opened import may_unpack, reason
from ..core.text import one_line
from .places import Member, Place, Tree
from .raw import AS_IS, Array, Raw, Reading
from .rows import stamp_of
from .table import table_of

__all__ = ["SUFFIXES", "Pictures", "pictures_in_parquet", "read_parquet", "write_pictures", "write_table"]

SUFFIXES = (".parquet", ".pq")
BYTES = ("bytes", "image", "img", "picture", "jpg", "png")  # names of the column of the bytes of the picture files
CLASSES, TEXTS = ("label", "class", "cls"), ("text", "caption", "txt")
GROUP = (64, 2**20)  # largest number of rows and of bytes of a row group of pictures
UNNAMED = b"scoresde.unnamed"  # marks a table whose columns have no names
CELLS = 10**8  # largest number of cells of a table


def _library(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: parquet files require pyarrow; install it with pip install 'scoresde[parquet]'"
        ) from error
    return pyarrow.parquet


def _opened(path: Path) -> Any:
    parquet = _library(path)
    try:
        stamp_of(path)
        return parquet.ParquetFile(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # a damaged file can raise almost anything
        raise DataError(f"{path} is damaged or is not a parquet file: {reason(error)}; write it again") from error


# ------------------------------------------------------------------------------------------------------------- pictures


class Pictures(Place):
    """The pictures of a parquet file as files of a folder.

    Args:
        path: The parquet file.
        column: The column, or the field of a column, with the bytes of the picture files.

    Raises:
        DataError: If the names, classes or texts of the pictures cannot be read.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column, self.changed = path, column, stamp_of(path)
        file = _opened(path)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self.starts = np.cumsum([0, *groups]).tolist()
        self.texts: dict[Path, str] = {}
        tree = Tree(path)
        for i, (name, text) in enumerate(self._names(file)):
            tree.add(path, name, Member(0, i, 0, 0))
            if text is not None:
                beside = Path(name).with_suffix(".txt").as_posix()
                tree.add(path, beside, Member(0, -1, 0, 0))
                self.texts[path / beside] = text
        self.tree, self._local = tree, threading.local()

    def _names(self, file: Any) -> Iterator[tuple[str, str | None]]:
        """Yield the name and the text of each picture."""
        schema = file.schema_arrow
        chosen = {
            role: next((name for name in names if name in schema.names), None)
            for role, names in {"path": ("path",), "class": CLASSES, "text": TEXTS}.items()
        }
        columns = [name for name in chosen.values() if name is not None]
        try:
            table = file.read(columns=columns).to_pydict()
        except Exception as error:  # a damaged file can raise almost anything
            raise DataError(f"{self.path} is damaged: {reason(error)}; write it again") from error
        for i in range(file.metadata.num_rows):
            found = {role: None if name is None else table[name][i] for role, name in chosen.items()}
            name, text = found["path"], found["text"]
            if not isinstance(name, str):
                name = f"{i:09}.png"  # the suffix does not matter: the format is found from the bytes
                if found["class"] is not None:
                    name = f"{one_line(str(found['class'])).replace('/', '_')}/{name}"
            yield name, str(text) if text is not None else None

    def listed(self, folder: Path) -> list[tuple[str, bool]]:
        return self.tree.listed(folder)

    def is_folder(self, path: Path) -> bool:
        return path in self.tree.folders

    def stamp(self, files: Iterable[Path]) -> str:
        told = (str(self.path.resolve()), self.changed, self.column)
        return hashlib.blake2b(repr(told).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def read(self, file: Path, most: int | None = None) -> bytes:
        if file in self.texts:
            return self.texts[file].encode("utf-8", "surrogateescape")
        member = self.tree.members.get(file)
        if member is None:
            raise FileNotFoundError("there is no such row in the parquet file")
        group = bisect_right(self.starts, member.start) - 1
        data = self._group(group)[member.start - self.starts[group]]
        if not isinstance(data, bytes):
            raise OSError("its bytes are missing")
        if most is not None and len(data) > most:
            raise OSError(f"its size is {len(data):,} bytes, but files of this kind may not exceed {most:,} bytes")
        return data

    def _group(self, group: int) -> list[Any]:
        """Return the bytes of all pictures of a row group. The last group is kept for the rows after a row."""
        # An open file is not shared with other threads, nor with processes that were forked from this one.
        local, pid = self._local, os.getpid()
        if getattr(local, "pid", None) != pid:
            local.file, local.pid, local.group = _opened(self.path), pid, None
        if stamp_of(self.path) != self.changed:
            raise OSError("the parquet file has changed since it was opened")
        if local.group != group:
            found = local.file.metadata.row_group(group)
            columns = map(found.column, range(found.num_columns))
            column = next(one for one in columns if one.path_in_schema == self.column)
            may_unpack(column.total_compressed_size, column.total_uncompressed_size)
            try:
                values = (
                    local.file.read_row_group(group, columns=[self.column], use_threads=False)
                    .column(0)
                    .combine_chunks()
                )
                if "." in self.column:
                    values = values.field(self.column.partition(".")[2])
                local.kept = values.to_pylist()
            except Exception as error:  # a damaged file can raise almost anything
                raise OSError(f"row group {group} is damaged: {reason(error)}") from None
            local.group = group
        kept: list[Any] = local.kept
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._local = threading.local()


def pictures_in_parquet(path: Path) -> Pictures | None:
    """Return the pictures in a parquet file, or ``None`` if it is a table."""
    schema = _opened(path).schema_arrow
    import pyarrow

    def binary(kind: Any) -> bool:
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    for name in BYTES:
        if name in schema.names:
            kind = schema.field(name).type
            if binary(kind):
                return Pictures(path, name)
            if pyarrow.types.is_struct(kind) and any(f.name == "bytes" and binary(f.type) for f in kind):
                return Pictures(path, f"{name}.bytes")
    return None


def write_pictures(path: Path, samples: Iterable[Sequence[tuple[str, bytes]]]) -> None:
    """Write files as the rows of a parquet file, with their names in the column ``path`` and the rest in ``bytes``.

    Args:
        path: The parquet file.
        samples: The names and the contents of the files of each sample.
    """
    parquet = _library(path)
    import pyarrow

    schema = pyarrow.schema([("path", pyarrow.string()), ("bytes", pyarrow.binary())])
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        names: list[str] = []
        contents: list[bytes] = []
        for files in samples:
            for name, data in files:
                names.append(name)
                contents.append(data)
            if len(names) >= GROUP[0] or sum(map(len, contents)) >= GROUP[1]:
                writer.write_table(pyarrow.table([names, contents], schema=schema))
                names, contents = [], []
        if names:
            writer.write_table(pyarrow.table([names, contents], schema=schema))


# --------------------------------------------------------------------------------------------------------------- tables


def read_parquet(path: Path, reading: Reading = AS_IS) -> Raw:
    """Read a table in a parquet file, as if it had been saved as CSV. Lines in messages count the names as line 1.

    Raises:
        DataError: If the file is damaged or too large, or if its columns are neither numbers nor classes.
    """
    file = _opened(path)
    count, columns = file.metadata.num_rows, file.metadata.num_columns
    if count * columns > CELLS:
        raise DataError(
            f"{path} has {count * columns:,} cells, more than {CELLS:,}; a table is read into memory, so save its "
            "numbers as an .npy array, whose rows are read from the file"
        )
    try:
        table = file.read().to_pydict()
        metadata = file.schema_arrow.metadata or {}
    except Exception as error:  # a damaged file can raise almost anything
        raise DataError(f"{path} is damaged: {reason(error)}; write it again") from error
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if UNNAMED not in metadata:
        writer.writerow(table)
    writer.writerows(zip(*(map(_cell, column) for column in table.values()), strict=True))
    return replace(table_of(path, text.getvalue(), reading, separator=","), lines=())


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def write_table(path: Path, raw: Raw, pieces: Callable[[], Iterator[Array]]) -> None:
    """Write the rows of a table, and their classes, as a parquet file.

    Args:
        path: The parquet file.
        raw: What a reader returned for the rows.
        pieces: A function that yields the rows, a few at a time, as arrays ``(m, D)``.
    """
    parquet = _library(path)
    import pyarrow

    width, start = raw.train.shape[1], 0
    names = list(raw.names) or [f"column {i}" for i in range(1, width + 1)]
    whole = raw.whole or (raw.train.dtype.kind != "f",) * width
    fields = [(name, pyarrow.int64() if one else pyarrow.float64()) for name, one in zip(names, whole, strict=True)]
    if raw.train_labels is not None:
        fields.append((_free(names), pyarrow.string()))
    schema = pyarrow.schema(fields, metadata=None if raw.names or raw.train_labels is not None else {UNNAMED: b"1"})
    with parquet.ParquetWriter(path, schema) as writer:
        for x in pieces():
            columns = [x[:, k].astype(np.int64 if one else np.float64) for k, one in enumerate(whole)]
            if raw.train_labels is not None:
                told = [raw.classes[i] for i in raw.train_labels[start : start + len(x)]]
                columns.append(np.array(told, dtype=object))
            writer.write_table(pyarrow.table([pyarrow.array(column) for column in columns], schema=schema))
            start += len(x)


def _free(names: Sequence[str]) -> str:
    """Return a name that is read as that of the classes."""
    return next(name for name in ("label", "class", "target", "y") if name not in names)
