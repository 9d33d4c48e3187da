"""Types that readers and data sets share: the options for reading a file or folder, and the content that was read.

A reader returns :class:`Raw`: the numbers as stored, the kind of data and the labels. What the numbers mean to a model
(range, levels, scaling, split) is decided in one place, :mod:`scoresde.data.dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError
from ..core.limits import SIZE, Checked, ranges

__all__ = ["AS_IS", "Array", "Known", "Raw", "Reading", "index_labels"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Reading(Checked):
    """Options for reading a file or folder whose content can be read in more than one way.

    Attributes:
        size: Side of the square that all pictures are resized to; 0 leaves them as they are.
        fit: How to resize a picture that is not square: ``crop`` (to the middle), ``pad`` (with black borders) or
            ``stretch``. If empty, such a picture is rejected.
        layout: Position of the channels of an array: ``first``, ``last`` or ``auto``.
        on_bad: What to do with a file that cannot be read: ``stop`` or ``skip``.
        older: Whether to read a folder of pictures as earlier versions did, for runs that kept no hashes of their rows:
            only files directly in a class folder, with colours rounded to 8 bits, and with any alpha channel kept.
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
            raise UsageError(f"fit is {self.fit!r}, but size is not set", parameter="size", value=64)


AS_IS = Reading()


@dataclass(frozen=True, eq=False)
class Known:
    """What a source says about each sample besides the sample itself.

    Attributes:
        vector: Numbers, shape ``(N, K)``, with NaN where a number is not given.
        names: Names of these numbers, or empty.
        image: Other pictures or signals, shape ``(N, C, *space)``, with NaN where nothing is known.
        text: Texts, shape ``(N,)``, "" where there is none.
        features: Features of the words of a text, shape ``(N, L, E)``, with NaN where there is no word.
    """

    vector: Array | None = None
    names: tuple[str, ...] = ()
    image: Array | None = None
    text: Array | None = None
    features: Array | None = None

    def rows(self, index: Array) -> Known:
        """Return what is known about the samples ``index``, int64 ``(n,)``."""
        parts = (self.vector, self.image, self.text, self.features)
        vector, image, text, features = (None if part is None else part[index] for part in parts)
        return Known(vector, self.names, image, text, features)


@dataclass(frozen=True)
class Raw:
    """The content of a file or folder, as a reader returns it.

    Attributes:
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        train: All samples, or the training samples if the source has a split, shape ``(N, *event)``.
        test: The test samples if the source has a split, else None.
        train_labels: Class index of each sample in ``train``, shape ``(N,)``, or None.
        test_labels: Class index of each sample in ``test``, or None.
        classes: Class names, in the order of the indexes.
        levels: Lowest value, highest value and number of levels if the format fixes them, else None.
        channels_last: Whether the source had its channels last.
        names: Column names of a table, or empty.
        whole: Whether each column of a table holds only integers. Empty if the dtype of the array answers this.
        hashes: Hash of the file of each sample, 8 bytes, training samples first. Empty if the samples are not stored in
            a file each.
        files: Files that were read, for the identity of large data.
        notes: Messages from the reader about what it did, one sentence each.
        train_known: What is known about each sample in ``train``.
        test_known: What is known about each sample in ``test``.
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
    train_known: Known = field(default_factory=Known)
    test_known: Known = field(default_factory=Known)


def index_labels(path: Path | str, *parts: Array | None) -> tuple[list[Array | None], tuple[str, ...]]:
    """Replace label values by indexes into the sorted values of all parts. Also return these values, as class names."""
    found = [p for p in parts if p is not None]
    for p in found:
        if p.dtype.kind not in "biuU" and not (p.dtype.kind == "f" and np.array_equal(p, np.round(p))):
            raise DataError(f"{path}: labels have dtype {p.dtype}, not class numbers or names; use integers or strings")
    if not found:
        return list(parts), ()
    found = [p.astype(np.int64) if p.dtype.kind in "bf" else p for p in found]
    values = np.unique(np.concatenate(found))
    indexed = iter(np.searchsorted(values, p) for p in found)
    return [None if p is None else next(indexed) for p in parts], tuple(str(v) for v in values)
