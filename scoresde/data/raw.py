"""Types shared by readers and data sets: the options for reading a file or folder, and the content that was read.

A reader returns a :class:`Raw` with the numbers as stored, the kind of data and the labels. How a model uses the
numbers (range, levels, scaling, split) is decided in :mod:`scoresde.data.dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError
from ..core.limits import SIZE, Checked, ranges

__all__ = ["AS_IS", "Array", "Known", "Raw", "Reading", "index_labels", "zeros"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Reading(Checked):
    """Options for reading files and folders that can be read in more than one way.

    Attributes:
        size: Side length, in pixels, of the square to which all images are resized, or 0 to keep their sizes.
        fit: How to resize an image that is not square: ``crop`` (keep the centre), ``pad`` (add black borders)
            or ``stretch``. If ``fit`` is empty and ``size`` is set, such images are rejected.
        layout: Position of the channel axis of an array: ``first``, ``last`` or ``auto``.
        on_bad: What to do if a file cannot be read: ``stop`` (raise an error) or ``skip`` (leave the file out).
        older: Whether to read a folder of images as earlier versions did, for runs without stored row hashes. Those
            versions read only files directly in a class folder, rounded colours to 8 bits, and kept alpha channels.
        columns: Names of the table columns that contain the condition of each sample rather than the sample itself.
        only: Names of the table columns to read as data, in this order. Other columns are left out, except those in
            ``columns`` and the class. If empty, all columns are read.
        empty: What to do with an empty cell of a table, or with NaN in an array of samples: ``stop`` (raise an error)
            or ``keep`` (treat it as an unknown value).
        needs: The kinds of condition that must be readable: any of ``vector``, ``image``, ``text`` and ``mask``. If a
            condition of another kind cannot be read, it is left out, with a note.
    """

    limits = ranges(size=SIZE)

    size: int = 0
    fit: str = ""
    layout: str = "auto"
    on_bad: str = "stop"
    older: bool = False
    columns: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    empty: str = "stop"
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {
            "fit": ("", "crop", "pad", "stretch"),
            "layout": ("auto", "first", "last"),
            "on_bad": ("stop", "skip"),
            "empty": ("stop", "keep"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                told = ", ".join(v for v in values if v)
                raise UsageError(f"{name} is {getattr(self, name)!r}, but must be one of: {told}")
        if self.fit and not self.size:
            raise UsageError(
                f"fit is {self.fit!r}, but size is not set; set both, or neither", parameter="size", value=64
            )


AS_IS = Reading()


@dataclass(frozen=True, eq=False)
class Known:
    """The conditions of the samples in a source, except their classes.

    Attributes:
        vector: K numbers for each sample, shape ``(N, K)``, with NaN where a number is missing.
        names: Names of the K numbers, or empty if they have no names.
        image: A picture or signal for each sample, shape ``(N, C, *space)``, with NaN for unknown values.
        text: The text of each sample, shape ``(N,)``, or "" for a sample without a text.
        features: E features for each of at most L words of each text, shape ``(N, L, E)``. NaN where there is no word.
        mask: Which values of each sample are real, bool, with the shape of the samples. Padded values are stored as 0.
    """

    vector: Array | None = None
    names: tuple[str, ...] = ()
    image: Array | None = None
    text: Array | None = None
    features: Array | None = None
    mask: Array | None = None

    @property
    def some(self) -> bool:
        """Whether there are any conditions."""
        return any(part is not None for part in (self.vector, self.image, self.text, self.features, self.mask))

    def rows(self, index: Array) -> Known:
        """Return the conditions of the samples at the positions ``index``, an int64 array ``(n,)``."""
        parts = (self.vector, self.image, self.text, self.features, self.mask)
        vector, image, text, features, mask = (None if part is None else part[index] for part in parts)
        return Known(vector, self.names, image, text, features, mask)


@dataclass(frozen=True)
class Raw:
    """The content of a file or folder, as returned by a reader.

    Attributes:
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        train: The training samples, or all samples if the source has no test part, shape ``(N, *event)``.
        test: The test samples, or None if the source has no test part.
        train_labels: Class index of each sample in ``train``, shape ``(N,)``, or None.
        test_labels: Class index of each sample in ``test``, or None.
        classes: Class names, in the order of the indexes.
        levels: Lowest value, highest value and number of levels, or None if the file format does not determine them.
        channels_last: Whether the channels are last in the source.
        names: Column names of a table, or empty.
        whole: Whether each column of a table contains only integers. If empty, the dtype of ``train`` determines this.
        hashes: 8-byte hash of each sample's file. The training samples come first. Empty if samples do not have their
            own files.
        keys: Content hash of each row (:mod:`scoresde.data.content`), the training samples first, or empty if the
            hashes are not known yet.
        files: The files that were read.
        notes: Messages from the reader about what it did, one sentence each.
        complete: A mask of the known values, bool, with the shape of ``train``, or None if all values are known. An
            unknown value is stored as the mean of its column.
        train_known: The condition of each sample in ``train``, except its class.
        test_known: The condition of each sample in ``test``, except its class.
        lines: Line of the file on which each row of a table ends, counted from 1 as in an editor, or empty.
    """

    kind: str
    train: Array
    test: Array | None = None
    train_labels: Array | None = None
    test_labels: Array | None = None
    classes: tuple[str, ...] = ()
    levels: tuple[int, int, int] | None = None
    channels_last: bool = False
    names: tuple[str, ...] = ()
    whole: tuple[bool, ...] = ()
    hashes: tuple[bytes, ...] = ()
    keys: tuple[bytes, ...] = ()
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    complete: Array | None = None
    train_known: Known = field(default_factory=Known)
    test_known: Known = field(default_factory=Known)
    lines: tuple[int, ...] = ()


def zeros(count: int, event: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array ``(count, *event)`` of zeros that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), (count, *event))


def index_labels(path: Path | str, *parts: Array | None) -> tuple[list[Array | None], tuple[str, ...]]:
    """Convert labels to indexes into the sorted classes of all parts. Return the indexes and the class names."""
    found = [p for p in parts if p is not None]
    for p in found:
        if p.dtype.kind not in "biuU" and not (p.dtype.kind == "f" and np.array_equal(p, np.round(p))):
            raise DataError(f"{path}: labels have dtype {p.dtype}, but must be integers or strings")
    if not found:
        return list(parts), ()
    found = [p.astype(np.int64) if p.dtype.kind in "bf" else p for p in found]
    values = np.unique(np.concatenate(found))
    indexed = iter(np.searchsorted(values, p) for p in found)
    return [None if p is None else next(indexed) for p in parts], tuple(str(v) for v in values)
