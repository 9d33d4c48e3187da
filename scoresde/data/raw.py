"""What a reader finds in a file or a folder, and how it is to be read: the words that readers and data sets share.

A reader returns :class:`Raw`: the numbers as stored, their kind and their labels. What they mean to a model (range,
levels, scaling, split) is decided in one place, :mod:`scoresde.data.dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError
from ..core.limits import SIZE, Checked, ranges

__all__ = ["AS_IS", "Array", "Raw", "Reading", "index_labels"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Reading(Checked):
    """How a file or folder is to be read, where it does not say so itself.

    Attributes:
        size: The side of the square that all pictures are brought to; 0 leaves them as they are.
        fit: What becomes of another shape: ``crop`` (the middle), ``pad`` (black borders), ``stretch``; empty to
            refuse it.
        layout: Where an array has its channels: ``first``, ``last``, or ``auto``.
        on_bad: What happens at a file that cannot be read: ``stop`` or ``skip``.
        older: Read a folder of pictures as it was read for runs that kept no hashes of their rows: only what lies
            directly in a class folder, with colours rounded to 8 bits and any alpha channel.
    """

    limits = ranges(size=SIZE)

    size: int = 0
    fit: str = ""
    layout: str = "auto"
    on_bad: str = "stop"
    older: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {"fit": ("", "crop", "pad", "stretch"), "layout": ("auto", "first", "last"), "on_bad": ("stop", "skip")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                told = ", ".join(v for v in values if v)
                raise UsageError(f"{name} is {getattr(self, name)!r}; choose from: {told}")
        if self.fit and not self.size:
            raise UsageError(f"fit is {self.fit!r} without a size to fit pictures to", parameter="size", value=64)


AS_IS = Reading()


@dataclass(frozen=True)
class Raw:
    """What a reader found.

    Attributes:
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        train: All samples, or the training ones where the source has a split: ``(N, *event)``.
        test: The test samples where the source has a split, else None.
        train_labels: Class index of each sample, shape ``(N,)``, or None.
        test_labels: The same for ``test``.
        classes: Class names, in the order of the indexes.
        levels: Lowest value, highest value and number of levels where the format fixes them, else None.
        channels_last: The source had its channels last.
        names: Of the columns of a table, or empty.
        whole: Of each column of a table, whether it holds whole numbers and no others; empty if the dtype says it all.
        hashes: A hash of the bytes of each sample's file, 8 bytes, training samples first; empty if there is no file
            for each.
        files: What was read, for the identity of large data.
        notes: What a reader did that a person should know, a sentence each.
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
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def index_labels(path: Path | str, *parts: Array | None) -> tuple[list[Array | None], tuple[str, ...]]:
    """Replace label values by indexes into the sorted values found in all parts; return those as names."""
    found = [p for p in parts if p is not None]
    for p in found:
        if p.dtype.kind not in "biuU" and not (p.dtype.kind == "f" and np.array_equal(p, np.round(p))):
            raise DataError(f"{path}: labels are {p.dtype} and not class numbers or names: give integers or strings")
    if not found:
        return list(parts), ()
    found = [p.astype(np.int64) if p.dtype.kind in "bf" else p for p in found]
    values = np.unique(np.concatenate(found))
    indexed = iter(np.searchsorted(values, p) for p in found)
    return [None if p is None else next(indexed) for p in parts], tuple(str(v) for v in values)
