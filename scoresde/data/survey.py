"""Compute what must be known about numbers before they are used, in one pass over rows that stay in their files.

The pass computes the content hash of each row (:mod:`.content`), the lowest and the highest value of each column or
channel, and the moments that decide on their units (:mod:`.units`), and checks that all values are finite. The results
are those of the same rows in memory, except that moments (:mod:`.rows`) can differ in their last digits, because they
are added up piece by piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.errors import DataError
from .content import contents
from .raw import Array
from .rows import PIECE, Moments, Stored, axes_of

__all__ = ["surveyed", "well_formed"]

SOME = 4096  # the moments of about this many evenly spaced rows decide whether channels differ in kind
KEY = 16  # bytes of a content hash


def surveyed(rows: Stored, kind: str, where: str, names: Sequence[str | None] = ()) -> dict[str, Array]:
    """Pass over all rows once.

    Args:
        rows: The rows.
        kind: Kind of the data.
        where: The file, and the array in it, for messages.
        names: The class name of each row, or ``None`` for a row without a class. Empty if no row has one.

    Returns:
        Arrays, keyed by name: ``keys``, the content hash of each row as uint8 ``(n, 16)``; ``lows`` and ``highs``, with
        all axes but that of the columns or channels kept as 1; ``mean_some`` and ``std_some``, of about 4,096 evenly
        spaced rows; and for 64-bit numbers ``lost``, the largest error of rounding to float32, and ``std``.

    Raises:
        DataError: If a value is not finite.
    """
    axes, step = axes_of(kind, rows.ndim), max(1, len(rows) // SOME)
    floats, deep = rows.values.kind == "f", rows.values == np.float64
    size = max(1, PIECE // max(1, int(np.prod(rows.event))))
    keys, bad, first = [], 0, 0
    lows = highs = lost = None
    some: Moments | None = None
    every: Moments | None = None
    for start in range(0, len(rows), size):
        index = np.arange(start, min(start + size, len(rows)))
        x = rows.read(index)
        if floats and not (finite := np.isfinite(x)).all():
            first = first if bad else start + int((~finite).reshape(len(x), -1).any(1).argmax())
            bad += int((~finite).sum())
        if bad:  # only the rest of the values that are not finite must still be counted
            continue
        keys += _contents(x, names[start : start + len(x)])
        low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
        lows = low if lows is None else np.minimum(lows, low)
        highs = high if highs is None else np.maximum(highs, high)
        with np.errstate(over="ignore", invalid="ignore"):
            if len(thin := x[index % step == 0]):
                moments = Moments.of(thin, axes)
                some = moments if some is None else some + moments
            if deep:
                error = np.abs(x - x.astype(np.float32).astype(x.dtype)).max(axes, keepdims=True)
                lost = error if lost is None else np.maximum(lost, error)
                moments = Moments.of(x, axes)
                every = moments if every is None else every + moments
    if bad:
        raise DataError(
            f"{where} has {bad} NaN or infinite value{'s' if bad > 1 else ''}, the first in row {first}, counted from "
            "0; drop such rows or fill in the values"
        )
    assert lows is not None and highs is not None and some is not None
    found = {"keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY), "lows": lows, "highs": highs,
             "mean_some": some.mean, "std_some": some.std}  # fmt: skip
    if lost is not None and every is not None:
        found |= {"lost": lost, "std": every.std}
    return found


def _contents(x: Array, names: Sequence[str | None]) -> list[bytes]:
    """Hash the content of each row, including its class if it has one."""
    classes = [name for name in names if name is not None]
    if len(classes) in (0, len(x)):
        return contents(x, classes or None)
    return [contents(x[i : i + 1], None if name is None else [name])[0] for i, name in enumerate(names)]


def well_formed(found: Mapping[str, Array], rows: Stored, kind: str) -> bool:
    """Return whether arrays have the names, the shapes and the kinds of those that :func:`surveyed` returns."""
    axes = axes_of(kind, rows.ndim)
    shape = tuple(1 if i in axes else n for i, n in enumerate(rows.shape))
    names = {"lows", "highs", "mean_some", "std_some"} | ({"lost", "std"} if rows.values == np.float64 else set())
    keys = found.get("keys")
    return (
        set(found) == names | {"keys"}
        and keys is not None
        and keys.dtype == np.uint8
        and keys.shape == (len(rows), KEY)
        and all(found[name].shape == shape and found[name].dtype.kind in "biuf" for name in names)
    )
