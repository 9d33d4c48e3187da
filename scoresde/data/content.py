"""Identify rows by their content, to split data and to detect whether data have changed since training.

A row is identified by a hash of its content. Two rows are equal if their values (as little-endian float64, with -0 as 0
and one pattern for NaN) and their labels are equal. For images from files, the bytes of the files take the place of the
values. Each row has a number

    u = hash( seed, content, number of equal rows before it ) / 2^64,                                        (1)

which is uniformly distributed on [0, 1). A row is *held out* if u < f, where f is the test fraction. A remaining row is
a *validation row* if u < f + 0.05 (1 - f), which holds for about 5 % of the remaining rows. If there are more than
:data:`MOST` such rows, only the :data:`MOST` rows with the smallest u are validation rows. Since u does not depend on
rows with other content, adding or reordering data never moves a row between training and test. For images from files,
equation 1 omits the number of equal rows, so copies of an image are always in the same part. Tables often have equal
rows, which may be in different parts.

A run stores the sorted hashes of its rows (:class:`Identity`). For large data, earlier versions stored a single hash of
the size, the beginning and the end of every file, which does not notice a change in between. Such runs are still
recognised by this hash.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.opened import opened, regular
from .raw import Array, Known

__all__ = ["LARGE", "MOST", "VALIDATION", "Identity", "contents", "ends", "held_out", "known_again", "told"]

VALIDATION = 0.05
MOST = 2_000
LARGE = 2**30  # total bytes above which earlier versions hashed only the ends of the files
END = 2**16  # bytes hashed at each end of a large file
CHUNK = 2**22  # values hashed at once

Hashes = NDArray[np.uint64]


def contents(x: Array, classes: Sequence[str] | None = None, files: Sequence[bytes] = ()) -> list[bytes]:
    """Hash the content of each row to 16 bytes.

    Args:
        x: The rows, shape ``(N, *event)``.
        classes: Class name of each row, or ``None`` if the content does not include the class.
        files: The hash of each row's file. If not empty, these hashes replace the values of the rows.
    """
    found = []
    for i, row in enumerate(files or _plain(x)):
        digest = hashlib.blake2b(row, digest_size=16)
        if classes is not None:
            digest.update(classes[i].encode("utf-8", "surrogateescape"))
        found.append(digest.digest())
    return found


def told(rows: Sequence[bytes], known: Known) -> list[bytes]:
    """Hash each row together with its condition to 16 bytes.

    Args:
        rows: Content hash of each row (:func:`contents`).
        known: The conditions of the rows.
    """
    parts: list[Iterable[memoryview | bytes]] = [
        _plain(part) for part in (known.vector, known.image, known.features, known.mask) if part is not None
    ]
    if known.text is not None:
        parts.append([str(text).encode("utf-8", "surrogateescape") for text in known.text])
    found = []
    for row, *conditions in zip(rows, *parts, strict=True):
        digest = hashlib.blake2b(row, digest_size=16)
        for condition in conditions:
            digest.update(len(condition).to_bytes(8, "little"))
            digest.update(condition)
        found.append(digest.digest())
    return found


def _plain(x: Array) -> Iterable[memoryview | bytes]:
    """Yield the values of each row as bytes. The bytes of two rows are equal if and only if the values are equal."""
    flat = x.reshape(len(x), -1)
    step = max(1, CHUNK // max(1, flat.shape[1]))
    for start in range(0, len(flat), step):
        chunk = flat[start : start + step].astype("<f8") + 0.0  # turns -0 into 0
        if x.dtype.kind == "f":
            chunk[np.isnan(chunk)] = np.nan
        for row in chunk:
            yield row.tobytes()


def held_out(
    rows: Sequence[bytes], seed: int, fraction: float, *, copies_apart: bool = True, test: bool = True
) -> tuple[Array, Array, Array]:
    """Split rows into training and test rows by equation 1, and choose validation rows among the training rows.

    Args:
        rows: Content hash of each row.
        seed: Seed for the split.
        fraction: Fraction of the rows to hold out, in (0, 1).
        copies_apart: Whether equation 1 includes the number of equal rows. False only for images from files.
        test: Whether to choose test rows. False if the data come with a test part.

    Returns:
        Three sorted int64 arrays: the indexes of the training rows, the positions of the validation rows among the
        training rows, and the indexes of the test rows.
    """
    before: Counter[bytes] = Counter()
    u, key = np.empty(len(rows)), (seed % 2**64).to_bytes(8, "little")
    for i, row in enumerate(rows):
        digest = hashlib.blake2b(key + row + before[row].to_bytes(8, "little"), digest_size=8)
        before[row] += copies_apart
        u[i] = int.from_bytes(digest.digest(), "little") / 2**64
    fraction = fraction if test else 0.0
    train, held = np.flatnonzero(u >= fraction), np.flatnonzero(u < fraction)
    first = np.argsort(u[train], kind="stable")[:MOST]
    return train, np.sort(first[u[train][first] < fraction + VALIDATION * (1 - fraction)]), held


def known_again(train: Sequence[bytes], held: Sequence[bytes]) -> int:
    """Count the held-out rows that equal a training row."""
    trained = set(train)
    return sum(row in trained for row in held)


@dataclass(frozen=True, eq=False)
class Identity:
    """The identity of data, which depends on their content but not on their name or location.

    Attributes:
        hashes: The sorted hashes of the rows, uint64 ``(N,)``, or a single hash of all files if ``large``.
        order: A hash of all rows that depends on their order, or the hash of all files if ``large``.
        large: Whether files were hashed instead of rows. Only earlier versions did this, for large data.
        told: The sorted hashes, each of a row and its condition, uint64 ``(N,)``, or ``None`` if the rows have no
            conditions or files were hashed.
        files: The hash of all files (:func:`ends`) for large data, to recognise the data of a run with ``large``.
            ``None`` for other data. It is not stored.
    """

    hashes: Hashes
    order: int
    large: bool = False
    told: Hashes | None = None
    files: int | None = None

    @classmethod
    def of(cls, rows: Sequence[bytes], own_test: int = 0, told: Sequence[bytes] | None = None) -> Identity:
        """Build the identity from content hashes.

        Args:
            rows: Content hash of each row.
            own_test: Number of rows at the end of ``rows`` that belong to the test part of the source.
            told: Hash of each row together with its condition, or ``None`` if the rows have no conditions.
        """
        parts = [row[:8] for row in rows[: len(rows) - own_test]]
        parts += [hashlib.blake2b(row, digest_size=8, key=b"test").digest() for row in rows[len(rows) - own_test :]]
        hashes = np.frombuffer(b"".join(parts), "<u8").astype(np.uint64)
        order = hashlib.blake2b(hashes.astype("<u8").tobytes(), digest_size=8).digest()
        conditions = None if told is None else np.sort(np.frombuffer(b"".join(row[:8] for row in told), "<u8"))
        return cls(np.sort(hashes), int.from_bytes(order, "little"), told=conditions)

    def compared(self, now: Identity) -> tuple[str, int, int]:
        """Compare this identity with the identity ``now`` of the current data.

        Returns:
            The result, the number of new rows, and the number of missing rows. The result is ``same``, ``re-sorted``,
            ``grown``, ``shrunk`` or ``other``. If files were hashed, it is ``same`` or ``other``, and both numbers are
            0.
        """
        if self.large:
            return ("same" if self.order == now.files else "other"), 0, 0
        new, missing = _more(now.hashes, self.hashes), _more(self.hashes, now.hashes)
        if new and missing:
            return "other", new, missing
        if new or missing:
            return "grown" if new else "shrunk", new, missing
        return "same" if self.order == now.order else "re-sorted", 0, 0

    def without_empty(self, shape: tuple[int, ...], classes: Sequence[str]) -> Identity:
        """Return the identity without rows that have no values, which earlier versions counted as samples.

        Args:
            shape: The shape of a row.
            classes: The names of the classes, or ``()`` if there are none.
        """
        if self.large:
            return self
        nothing = np.full((max(1, len(classes)), *shape), np.nan)
        rows = contents(nothing, list(classes) or None)
        empty = np.concatenate([Identity.of(rows).hashes, Identity.of(rows, own_test=len(rows)).hashes])
        kept = self.hashes[~np.isin(self.hashes, empty)]
        # The order of the rows that are left was not recorded.
        return self if len(kept) == len(self.hashes) else replace(self, hashes=kept, order=0)

    def retold(self, now: Identity) -> int:
        """Count the rows of the current data whose condition has changed since this identity was built.

        Args:
            now: Identity of the current data.
        """
        if self.told is None or now.told is None:
            return 0
        return max(0, _more(now.told, self.told) - _more(now.hashes, self.hashes))

    def joined(self, now: Identity) -> Identity:
        """Merge this identity and ``now`` into the identity of all rows that a run was trained on.

        If a row occurs more often in one identity than in the other, the larger count is used.
        """
        _, new, missing = self.compared(now)
        retold = self.retold(now)
        if self.large or not (new or retold):
            return self
        if not (missing or retold):
            return now
        conditions = None if self.told is None or now.told is None else _both(self.told, now.told)
        # If there are new rows, the order of the merged rows is undefined.
        return Identity(_both(self.hashes, now.hashes), 0 if new else self.order, told=conditions)


def _both(these: Hashes, those: Hashes) -> Hashes:
    """Return the sorted union of two arrays of hashes as multisets (keep the larger count of each hash)."""
    return np.array(sorted((Counter(these.tolist()) | Counter(those.tolist())).elements()), np.uint64)


def _more(these: Hashes, those: Hashes) -> int:
    """Return the number of hashes in ``these`` but not in ``those``, counting every copy."""
    values, counts = np.unique(these, return_counts=True)
    known, known_counts = np.unique(those, return_counts=True)
    _, ours, theirs = np.intersect1d(values, known, assume_unique=True, return_indices=True)
    counts[ours] -= np.minimum(counts[ours], known_counts[theirs])
    return int(counts.sum())


def ends(files: Iterable[Path]) -> int:
    """Hash the size and the first and last 64 KiB of each file to an integer, whatever the names of the files."""
    found = []
    for path in files:
        size = regular(path)
        with opened(path) as file:
            digest = hashlib.blake2b(file.read(END), digest_size=16)
            file.seek(max(0, size - END))
            digest.update(file.read(END))
        found.append(size.to_bytes(8, "little") + digest.digest())
    return int.from_bytes(hashlib.blake2b(b"".join(sorted(found)), digest_size=8).digest(), "little")
