"""Rows by what they are: which of them are held out, and whether data are still those that a run was trained on.

A row is known by a hash of its content. Two rows are equal if their values are (as little-endian float64, with -0 as 0
and one pattern for NaN) and their labels are; pictures from files are equal if the bytes of their files are. With

    u = hash( seed, content, number of equal rows before it ) / 2^64,                                        (1)

uniform on [0, 1), a row is *held out* if u < f, the test fraction, and *validates* if it is among the first 5 % of what
is left, at most :data:`MOST`. What other rows there are, and their order, have no part in it: data that grow or are
sorted again move no row from one side to the other. Copies of a picture share a side, because their number is left out
of (1); the equal rows of a table, which are often many, do not.

A run keeps the sorted hashes of its rows (:class:`Identity`), and of large data the sizes and both ends of its files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.opened import opened, regular
from .raw import Array

__all__ = ["LARGE", "MOST", "VALIDATION", "Identity", "contents", "held_out", "known_again"]

VALIDATION = 0.05
MOST = 2_000
LARGE = 2**30  # bytes of files above which their ends stand for them
END = 2**16  # bytes of such an end
CHUNK = 2**22  # numbers that are hashed at once

Hashes = NDArray[np.uint64]


def contents(x: Array, classes: Sequence[str] | None = None, files: Sequence[bytes] = ()) -> list[bytes]:
    """A hash of the content of each row, 16 bytes.

    Args:
        x: Shape ``(N, *event)``.
        classes: The name of the class of each row.
        files: A hash of the file of each row, which stands for its values.
    """
    found = []
    for i, row in enumerate(files or _plain(x)):
        digest = hashlib.blake2b(row, digest_size=16)
        if classes is not None:
            digest.update(classes[i].encode("utf-8", "surrogateescape"))
        found.append(digest.digest())
    return found


def _plain(x: Array) -> Iterable[memoryview | bytes]:
    """The values of each row as bytes that are equal if the values are."""
    flat = x.reshape(len(x), -1)
    step = max(1, CHUNK // max(1, flat.shape[1]))
    for start in range(0, len(flat), step):
        chunk = flat[start : start + step].astype("<f8") + 0.0  # which makes -0 to 0
        if x.dtype.kind == "f":
            chunk[np.isnan(chunk)] = np.nan
        for row in chunk:
            yield row.tobytes()


def held_out(
    rows: Sequence[bytes], seed: int, fraction: float, *, copies_apart: bool = True, test: bool = True
) -> tuple[Array, Array, Array]:
    """Training rows and test rows by (1), and which of the training rows validate.

    Args:
        rows: The content of each.
        seed: Of the split.
        fraction: Share of the rows to hold out, in (0, 1).
        copies_apart: Whether the number of equal rows before a row counts, as it does for all but files.
        test: Whether test rows are taken at all; otherwise the data have a test part of their own.

    Returns:
        Indexes of training rows, indexes *into these* of those that validate, indexes of test rows; int64, in order.
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
    """How many of the rows held out have an equal one among the training rows."""
    trained = set(train)
    return sum(row in trained for row in held)


@dataclass(frozen=True, eq=False)
class Identity:
    """What data are, whatever their name and place.

    Attributes:
        hashes: Of each row, sorted, uint64 ``(N,)``; of large data one hash of all files.
        order: A hash of the rows in their order.
        large: Whether the files stand for the rows.
    """

    hashes: Hashes
    order: int
    large: bool = False

    @classmethod
    def of(cls, rows: Sequence[bytes], own_test: int = 0) -> Identity:
        """Of rows by their content, of which the last ``own_test`` are the data's own test part."""
        parts = [row[:8] for row in rows[: len(rows) - own_test]]
        parts += [hashlib.blake2b(row, digest_size=8, key=b"test").digest() for row in rows[len(rows) - own_test :]]
        hashes = np.frombuffer(b"".join(parts), "<u8").astype(np.uint64)
        order = hashlib.blake2b(hashes.astype("<u8").tobytes(), digest_size=8).digest()
        return cls(np.sort(hashes), int.from_bytes(order, "little"))

    @classmethod
    def of_files(cls, files: Iterable[Path]) -> Identity:
        """Of large files: their sizes, and a hash of the first and the last 64 kB of each."""
        ends = []
        for path in files:
            size = regular(path)
            with opened(path) as file:
                digest = hashlib.blake2b(file.read(END), digest_size=16)
                file.seek(max(0, size - END))
                digest.update(file.read(END))
            ends.append(size.to_bytes(8, "little") + digest.digest())
        both = hashlib.blake2b(b"".join(sorted(ends)), digest_size=8).digest()
        whole = int.from_bytes(both, "little")
        return cls(np.array([whole], np.uint64), whole, large=True)

    def compared(self, now: Identity) -> tuple[str, int, int]:
        """How data that are read ``now`` differ from these, and how many rows are new and how many are missing.

        Returns:
            ``same``, ``re-sorted``, ``grown``, ``shrunk`` or ``other``; of large data only ``same`` and ``other``.
        """
        if self.large or now.large:
            return ("same", 0, 0) if self.large == now.large and self.order == now.order else ("other", 0, 0)
        new, missing = _more(now.hashes, self.hashes), _more(self.hashes, now.hashes)
        if new and missing:
            return "other", new, missing
        if new or missing:
            return "grown" if new else "shrunk", new, missing
        return "same" if self.order == now.order else "re-sorted", 0, 0

    def joined(self, now: Identity) -> Identity:
        """The rows of both, each as often as in the one that has it more often: all that a run has been trained on."""
        _, new, missing = self.compared(now)
        if self.large or now.large or not new:
            return self
        if not missing:
            return now
        counts = Counter(self.hashes.tolist()) | Counter(now.hashes.tolist())
        return Identity(np.array(sorted(counts.elements()), np.uint64), 0)  # which never stood in one order


def _more(these: Hashes, those: Hashes) -> int:
    """How many of these rows are not among those, each counted as often as it is there."""
    values, counts = np.unique(these, return_counts=True)
    known, known_counts = np.unique(those, return_counts=True)
    there = dict(zip(known.tolist(), known_counts.tolist(), strict=True))
    return sum(max(0, n - there.get(v, 0)) for v, n in zip(values.tolist(), counts.tolist(), strict=True))
