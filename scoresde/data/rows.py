"""Rows of data that stay in their files, for data that are larger than memory.

A :class:`Stored` answers to the few operations of a tensor that training and evaluation need: its length, its shape and
``rows[index]``, which reads only the rows at ``index`` and returns them as a tensor. The tensor has the same values and
the same dtype as the corresponding rows of the same data in memory, so the two kinds of rows give the same batches. A
subset or a concatenation of stored rows reads nothing until it is indexed.

No file is mapped into memory. The pages of a mapped file count as memory of the process for as long as they are mapped,
so that training on a mapped array would slowly fill the memory with the whole array. Rows are read into the tensors
that are returned, and nothing else is kept. No file stays open either, so stored rows can be used by several threads
and processes at once.

Moments of stored rows are added up piece by piece in float64,

    n = n_1 + n_2,   m = m_1 + (m_2 - m_1) n_2 / n,   M = M_1 + M_2 + (m_2 - m_1)^2 n_1 n_2 / n,              (1)

where n is the number, m the mean and M the sum of the squared deviations of the values in a piece.

References:
    Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, for equation 1.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.opened import opened, reason
from .raw import Array

__all__ = [
    "ArrayFile", "Joined", "Moments", "Stored", "Subset", "axes_of", "channels_first", "evenly", "part", "pieces",
    "stamp_of", "tensor_of", "thinned",
]  # fmt: skip

THIN = 2**25  # largest number of values in an evenly thinned sample of stored rows
PIECE = 2**22  # approximate number of values that are read at once in a pass over all rows


class Stored(ABC):
    """Rows that are read when they are indexed.

    Attributes:
        wide: Whether the values need 64-bit numbers (:func:`tensor_of`).
    """

    wide: bool

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of rows."""

    @property
    @abstractmethod
    def event(self) -> tuple[int, ...]:
        """Shape of a row, channels first."""

    @property
    @abstractmethod
    def values(self) -> np.dtype[np.generic]:
        """NumPy dtype of the rows before they are converted to a tensor."""

    @abstractmethod
    def read(self, index: Array) -> Array:
        """Read the rows at the positions ``index``, int64 ``(B,)``, and return an array ``(B, *event)``.

        Raises:
            DataError: If a file is missing, damaged or was changed since its rows were counted.
        """

    @abstractmethod
    def widened(self, wide: bool) -> Stored:
        """Return the same rows with the given ``wide``."""

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> torch.Size:
        """Shape ``(n, *event)`` of all rows together."""
        return torch.Size((self.count, *self.event))

    @property
    def ndim(self) -> int:
        """Number of axes, including the axis of the rows."""
        return 1 + len(self.event)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensors that indexing returns."""
        return tensor_of(np.empty(0, self.values), self.wide).dtype

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        """Read rows ``(B, *event)``, or a single row ``(*event,)`` if ``index`` is a number.

        Args:
            index: Positions, int64 ``(B,)``, a mask, bool ``(n,)``, a slice, or a single position.
        """
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        return tensor_of(self.read(self._positions(index)), self.wide)

    def _positions(self, index: Tensor | slice) -> Array:
        if isinstance(index, slice):
            return np.arange(*index.indices(self.count))
        positions: Array = (index.nonzero().flatten() if index.dtype == torch.bool else index).cpu().numpy()
        low, high = (int(positions.min()), int(positions.max())) if len(positions) else (0, -1)
        if low < -self.count or high >= self.count:
            raise IndexError(f"row {high if low >= -self.count else low} of {self.count:,} rows does not exist")
        return np.where(positions < 0, positions + self.count, positions)


@dataclass(frozen=True, eq=False)
class ArrayFile(Stored):
    """The rows of an array in an uncompressed file, such as an ``.npy`` file, which lie one after another.

    Attributes:
        path: The file.
        offset: Position of the first row in the file, in bytes.
        stored: Dtype of the values in the file.
        full: Shape of the array in the file.
        kind: Kind of the data, as in :class:`~scoresde.data.raw.Raw`.
        channels_last: Whether the channels are last in the file.
        stamp: Size and time of the file (:func:`stamp_of`) when its rows were counted.
        wide: Whether the values need 64-bit numbers.
    """

    path: Path
    offset: int
    stored: np.dtype[np.generic]
    full: tuple[int, ...]
    kind: str
    channels_last: bool
    stamp: tuple[int, int]
    wide: bool = False

    @property
    def count(self) -> int:
        return self.full[0]

    @property
    def event(self) -> tuple[int, ...]:
        return channels_first(np.empty((0, *self.full[1:]), np.bool_), self.kind, self.channels_last).shape[1:]

    @property
    def values(self) -> np.dtype[np.generic]:
        if self.stored.kind != "f":
            return self.stored
        return np.dtype(np.float64 if self.stored.itemsize > 4 else np.float32)

    def widened(self, wide: bool) -> ArrayFile:
        return replace(self, wide=wide)

    def read(self, index: Array) -> Array:
        x = np.empty((len(index), *self.full[1:]), self.stored)
        size = x[:1].nbytes
        into = x.reshape(-1).view(np.uint8).data
        # Neighbouring rows are read together.
        starts = np.flatnonzero(np.diff(index, prepend=-2) != 1).tolist()
        stops = [*starts[1:], len(index)] if starts else []
        try:
            with opened(self.path) as file:
                if stamp_of(file.fileno()) != self.stamp:
                    raise DataError(f"{self.path} has changed since it was opened; start again with the file as it is")
                for start, stop in zip(starts, stops, strict=True):
                    file.seek(self.offset + int(index[start]) * size)
                    if file.readinto(into[start * size : stop * size]) != (stop - start) * size:
                        raise DataError(f"{self.path} ends before row {int(index[stop - 1]):,}; was it cut off?")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {reason(error)}") from error
        return channels_first(x.astype(self.values, copy=False), self.kind, self.channels_last)


@dataclass(frozen=True, eq=False)
class Subset(Stored):
    """Some of the rows of another :class:`Stored`, at the positions ``index``, int64 ``(n,)``. No row is copied."""

    rows: Stored
    index: Array

    @property
    def wide(self) -> bool:  # type: ignore[override]
        return self.rows.wide

    @property
    def count(self) -> int:
        return len(self.index)

    @property
    def event(self) -> tuple[int, ...]:
        return self.rows.event

    @property
    def values(self) -> np.dtype[np.generic]:
        return self.rows.values

    def widened(self, wide: bool) -> Subset:
        return replace(self, rows=self.rows.widened(wide))

    def read(self, index: Array) -> Array:
        return self.rows.read(self.index[index])


@dataclass(frozen=True, eq=False)
class Joined(Stored):
    """The rows of two or more :class:`Stored` of the same shape and dtype, one after another."""

    parts: tuple[Stored, ...]

    @property
    def wide(self) -> bool:  # type: ignore[override]
        return self.parts[0].wide

    @property
    def count(self) -> int:
        return sum(map(len, self.parts))

    @property
    def event(self) -> tuple[int, ...]:
        return self.parts[0].event

    @property
    def values(self) -> np.dtype[np.generic]:
        return self.parts[0].values

    def widened(self, wide: bool) -> Joined:
        return Joined(tuple(one.widened(wide) for one in self.parts))

    def read(self, index: Array) -> Array:
        x = np.empty((len(index), *self.event), self.values)
        start = 0
        for one in self.parts:
            mine = (index >= start) & (index < start + len(one))
            if mine.any():
                x[mine] = one.read(index[mine] - start)
            start += len(one)
        return x


# ----------------------------------------------------------------------------------------------- tensors or stored rows


def part(x: Tensor | Stored, index: Tensor) -> Tensor | Stored:
    """Return some rows of ``x``, as a tensor ``(B, *event)`` if ``x`` is one, and otherwise without reading them.

    Args:
        x: Rows ``(n, *event)``.
        index: Positions, int64 ``(B,)``, or a mask, bool ``(n,)``.
    """
    if isinstance(x, Tensor):
        return x[index]
    positions = x._positions(index)
    return Subset(x.rows, x.index[positions]) if isinstance(x, Subset) else Subset(x, positions)


def evenly(x: Tensor | Stored, most: int = THIN) -> Tensor:
    """Return the positions of all rows of a tensor, or of an evenly thinned sample of stored rows, int64 ``(m,)``.

    The sample has at most ``most`` values, but at least 16 rows if there are as many.
    """
    if isinstance(x, Tensor):
        return torch.arange(len(x))
    count = min(len(x), max(16, most // max(1, x.shape[1:].numel())))
    return torch.linspace(0, len(x) - 1, count, dtype=torch.float64).round().long()


def thinned(x: Tensor | Stored, most: int = THIN) -> Tensor:
    """Return a tensor unchanged, and the sample of stored rows that :func:`evenly` chooses, ``(m, *event)``."""
    return x if isinstance(x, Tensor) else x[evenly(x, most)]


def pieces(x: Tensor | Stored, rows: int = 0) -> Iterator[Tensor]:
    """Yield all rows of ``x`` in order, as tensors ``(m, *event)`` of ``rows`` rows or about ``PIECE`` values each."""
    size = rows or max(1, PIECE // max(1, x.shape[1:].numel()))
    for start in range(0, len(x), size):
        yield x[start : start + size]


def tensor_of(x: Array, wide: bool) -> Tensor:
    """Convert bytes and booleans to a uint8 tensor, and other numbers to 32 bits, or to 64 bits if ``wide``.

    The array ``x`` may have any shape, which is the shape of the tensor.
    """
    small = x.dtype in (np.uint8, np.bool_)
    dtype: type[np.generic]
    if x.dtype.kind == "f":
        dtype = np.float64 if wide else np.float32
    else:
        dtype = np.uint8 if small else np.int64 if wide else np.int32
    return torch.from_numpy(np.ascontiguousarray(x, dtype=dtype))


def channels_first(x: Array, kind: str, channels_last: bool) -> Array:
    """Return an array of samples as ``(N, *event)`` with channels first."""
    if x.ndim == 1 or (kind == "image" and x.ndim == 3):
        x = x[:, None]
    return np.moveaxis(x, -1, 1) if channels_last else x


def stamp_of(file: int | str | os.PathLike[str]) -> tuple[int, int]:
    """Return the size of a file in bytes and the time of its last change in nanoseconds."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def axes_of(kind: str, ndim: int) -> tuple[int, ...]:
    """Return all axes of an array of samples except the axis of the columns or channels."""
    return (0,) if kind == "vector" else (0, *range(2, ndim))


@dataclass(frozen=True)
class Moments:
    """Number, mean and summed squared deviations of values for each column or channel, by equation 1."""

    count: int
    mean: Array
    squares: Array

    @classmethod
    def of(cls, x: Array, axes: tuple[int, ...]) -> Moments:
        """Compute the moments of the rows ``x: (n, *event)`` along ``axes``, with the axes kept as 1."""
        values = x.astype(np.float64)
        mean = values.mean(axes, keepdims=True)
        return cls(values.size // max(1, mean.size), mean, np.square(values - mean).sum(axes, keepdims=True))

    def __add__(self, other: Moments) -> Moments:
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + np.square(apart) * (self.count / count * other.count)
        return Moments(count, mean, squares)

    @property
    def std(self) -> Array:
        """Standard deviation of all values, as of a population."""
        found: Array = np.sqrt(self.squares / self.count)
        return found
