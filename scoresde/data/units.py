"""The units of data: the levels and range of the values, and the codec that maps values to numbers of order one.

Columns of a table, channels of a signal, and image channels that differ in kind (such as temperature and humidity) each
have their own shift and scale: the mean and the standard deviation over the training rows. Images with channels of the
same kind, such as colours, are mapped from their range to [-1, 1].

Integers are treated as levels. Each integer column has its own levels, from its lowest to its highest value. The scale
of such a column is the standard deviation of the dequantised values, so that even an almost constant column has
values of order one. All statistics are computed in float64 from the stored values. Values that need 64 bits are scaled
before they are rounded to float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Affine, Codec, Composed, Levels
from ..core.errors import DataError
from .index import remembered
from .raw import Array, Raw
from .rows import Moments, Stored, Subset, axes_of, pieces

__all__ = ["Units", "units_of"]

EXACT = 2**18  # up to this, float32 represents every integer and every 64th of an integer exactly
LARGEST = 2**53  # up to this, float64 represents every integer exactly
ROUNDED = 1e-6  # rounding error allowed in float32, in standard deviations
# Channels differ in kind if the ratio of their largest to their smallest standard deviation, or the ratio of the range
# of their means to the largest standard deviation, is above this value.
UNLIKE = 4.0


@dataclass(frozen=True)
class Units:
    """The range, levels and precision of the values in a data set.

    Attributes:
        low, high: The ends of the range of values.
        levels: The codec for values that are levels, or ``None``.
        each: Whether each column or channel has its own shift and scale.
        wide: Whether the values need 64-bit numbers.
    """

    low: float
    high: float
    levels: Levels | None
    each: bool
    wide: bool

    @property
    def count(self) -> int | None:
        """Number of levels from ``low`` to ``high``, or ``None`` if some values are not levels."""
        levels = self.levels
        if levels is None or not isinstance(levels.count, int):
            whole = levels is not None and bool((torch.as_tensor(levels.count) > 0).all())
            return int(self.high - self.low) + 1 if whole else None
        return levels.count

    def codec(
        self, kind: str, train: Tensor | Stored, source: str, names: Sequence[str] = (), complete: Tensor | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Codec:  # fmt: skip
        """Build the map from data units to model units.

        Args:
            kind: Kind of the data.
            train: Training rows in data units, ``(n, *event)``. Stored rows are read once, in pieces.
            source: Source of the data, for messages.
            names: Column names, for messages.
            complete: A mask of the known values, bool ``(n, *event)``, or ``None`` if all values are known.
            about: What the values of stored rows depend on, as plain JSON values.

        Raises:
            DataError: If a column is constant or entirely unknown in the training rows, or if the squares of the values
                overflow.
        """
        affine = self._standardised(kind, train, source, names, complete, about or {}) if self.each else self._ranged()
        return affine if self.levels is None else Composed((self.levels, affine))

    def _ranged(self) -> Affine:
        """Return the map from the range of the data to [-1, 1]. The range includes the cell of the highest level."""
        assert self.levels is None or isinstance(self.levels.width, float)
        top = self.high if self.levels is None else self.high + self.levels.width
        half = torch.tensor((top - self.low) / 2, dtype=torch.float64)
        return Affine(self.low + half, half)

    def _standardised(
        self, kind: str, train: Tensor | Stored, source: str, names: Sequence[str], complete: Tensor | None,
        about: Mapping[str, Any],
    ) -> Affine:  # fmt: skip
        """Return the map that gives each column or channel mean 0 and standard deviation 1 over the training rows."""
        axes = axes_of(kind, train.ndim)
        if isinstance(train, Stored):
            std, mean, lows, highs = _remembered_moments(train, axes, about)
        else:
            std, mean = torch.std_mean(train.double(), axes, correction=0, keepdim=True)
            lows, highs = train.amin(axes), train.amax(axes)
        if complete is not None and isinstance(train, Tensor):
            count = complete.sum(axes, keepdim=True)
            mean = torch.where(complete, train, 0).sum(axes, keepdim=True, dtype=torch.float64) / count.clamp(min=1)
            square = torch.where(complete, train - mean, 0).square()
            std = (square.sum(axes, keepdim=True) / count.clamp(min=1)).sqrt()
            if bool((count == 0).any()):
                raise DataError(constant_column(kind, (count == 0).flatten(), source, names, unknown=True))
            lows = torch.where(complete, train.double(), torch.inf).amin(axes)
            highs = torch.where(complete, train.double(), -torch.inf).amax(axes)
        std, mean = std[0], mean[0]
        width = torch.zeros_like(std)
        if self.levels is not None:
            width = torch.as_tensor(self.levels.width, dtype=torch.float64).expand(std.shape)
        # Dequantisation spreads level k over [k, k + w).
        mean, std = mean + width / 2, (std.square() + width.square() / 12).sqrt()
        constant = (std == 0) | (lows == highs).reshape(std.shape) & (width == 0)
        if bool(constant.any()):
            raise DataError(constant_column(kind, constant.flatten(), source, names))
        if not bool((mean.isfinite() & std.isfinite()).all()):
            raise DataError(f"{source}: the squares of the values overflow; divide the values by a constant first")
        return Affine(mean, std)


def units_of(raw: Raw, source: str, survey: Mapping[str, Array] | None = None) -> Units:
    """Determine the levels and range of the values, and whether each column or channel has its own scale.

    Args:
        raw: What was read.
        source: Source of the data, for messages.
        survey: What :func:`~scoresde.data.survey.surveyed` found, for rows that stay in their files, or ``None`` to
            compute it from the rows in ``raw``.

    Raises:
        DataError: If there are no values, only one distinct value, or integers that are too large for float64.
    """
    if not raw.train.size:
        raise DataError(f"{source} has no samples (shape {raw.train.shape})")
    parts = [raw.train] if raw.test is None or not raw.test.size else [raw.train, raw.test]
    dtype, axes = raw.train.dtype, axes_of(raw.kind, raw.train.ndim)
    if raw.levels is not None:
        given = Levels(*raw.levels)
        return Units(float(raw.levels[0]), float(raw.levels[1]), given, each=False, wide=False)
    if dtype == np.uint8 and raw.kind in ("image", "volume"):
        return Units(0.0, 255.0, Levels(0, 255, 256), each=False, wide=False)
    if survey is not None:
        lows, highs = (survey[name][0].astype(np.float64) for name in ("lows", "highs"))
    else:
        lows = np.min([p.min(axes, keepdims=True)[0] for p in parts], axis=0).astype(np.float64)
        highs = np.max([p.max(axes, keepdims=True)[0] for p in parts], axis=0).astype(np.float64)
    low, high = float(lows.min()), float(highs.max())
    whole = np.full(lows.shape, dtype.kind != "f")
    if raw.whole:
        whole = np.array(raw.whole).reshape(lows.shape)
    if low == high and (raw.kind in ("image", "volume") or whole.all()):
        raise DataError(
            f"{source}: every value is {low:g}, but constant data have no density; check how the data were saved"
        )
    largest = float(np.abs(np.where(whole, np.maximum(np.abs(lows), np.abs(highs)), 0)).max())
    if largest >= LARGEST:
        raise DataError(
            f"{source}: float64 cannot represent integers up to {largest:.0f} exactly (the limit is {LARGEST}); "
            "subtract an offset, or convert the integers to floating-point numbers, which are treated as continuous"
        )
    each = raw.kind in ("vector", "signal") or _unlike(raw.train, axes, lows, highs, survey)
    wide = largest >= EXACT or (dtype.kind == "f" and dtype.itemsize > 4 and _rounded(raw.train, axes, whole, survey))
    if dtype.kind == "f" and not wide:  # the values as they will be stored
        low, high = float(np.float32(low)), float(np.float32(high))
    levels = None
    if whole.any():
        levels = Levels(0, 1, 2) if dtype == np.bool_ else _levels(whole, lows, highs, each)
    return Units(low, high, levels, each, wide)


def constant_column(kind: str, constant: Tensor, source: str, names: Sequence[str] = (), unknown: bool = False) -> str:
    """Return the error message for columns or channels that are constant or, if ``unknown``, have no known values."""
    found = constant.nonzero().flatten().tolist()
    what = "feature" if kind == "vector" else "channel"
    listed = ", ".join(names[i] if names else str(i) for i in found[:10]) + (", ..." if len(found) > 10 else "")
    s = "s" if len(found) > 1 else ""
    where = f"column{s} {listed}" if names else f"{what}{s} {listed} (counted from 0)"
    it = "them" if s else "it"
    if unknown:
        return f"{source}: no training sample has a value in {where}; drop {it}"
    return f"{source}: every training sample has the same value in {where}; constants have no density, so drop {it}"


def _levels(whole: Array, lows: Array, highs: Array, each: bool) -> Levels:
    """Return the codec for integer levels, with a range for each column or one range for all columns."""
    if not each or (whole.all() and lows.min() == lows.max() and highs.min() == highs.max()):
        low, high = float(lows.min()), float(highs.max())
        return Levels(low, high, int(high - low) + 1)
    counts = np.where(whole, highs - lows + 1, 0).astype(np.int64)
    lows, highs = np.where(whole, lows, 0.0), np.where(whole, highs, 0.0)  # a continuous column has no range
    return Levels(torch.from_numpy(lows), torch.from_numpy(highs), torch.from_numpy(counts))


def _unlike(
    x: Array, axes: tuple[int, ...], lows: Array, highs: Array, survey: Mapping[str, Array] | None = None
) -> bool:
    """Return whether image channels differ in kind, judging by their means and standard deviations."""
    if lows.size < 2 or lows.min() == highs.max():
        return False
    if survey is not None:
        std, mean = survey["std_some"], survey["mean_some"]
    else:
        some = x[:: max(1, len(x) // 4096)]
        std, mean = some.std(axes, dtype=np.float64), some.mean(axes, dtype=np.float64)
    return bool(std.max() > UNLIKE * std.min() or np.ptp(mean) > UNLIKE * std.max())


def _rounded(x: Array, axes: tuple[int, ...], whole: Array, survey: Mapping[str, Array] | None = None) -> bool:
    """Return whether float32 rounds values in a non-integer column by more than ``ROUNDED`` standard deviations."""
    with np.errstate(over="ignore", invalid="ignore"):
        if survey is not None:
            lost, std = survey["lost"], survey["std"]
        else:
            lost, std = np.abs(x - x.astype(np.float32).astype(x.dtype)).max(axes), x.std(axes, dtype=np.float64)
        return bool((~(lost <= ROUNDED * std) & ~whole.reshape(lost.shape)).any())


def _remembered_moments(train: Stored, axes: tuple[int, ...], about: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return the results of :func:`_moments`, which are computed once for each choice of training rows."""
    index = train.index if isinstance(train, Subset) else np.arange(len(train))
    digest = hashlib.blake2b(np.ascontiguousarray(index, "<i8").tobytes(), digest_size=16).hexdigest()
    names = ("std", "mean", "low", "high")
    shape = tuple(1 if i in axes else n for i, n in enumerate(train.shape))
    found, _ = remembered(
        {"what": "moments", "of": about, "rows": digest, "wide": train.wide},
        lambda: {name: x.numpy() for name, x in zip(names, _moments(train, axes), strict=True)},
        lambda found: (
            set(found) == set(names) and all(x.dtype.kind in "fiu" and x.shape == shape for x in found.values())
        ),
    )
    return tuple(torch.from_numpy(found[name]) for name in names)


def _moments(train: Stored, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the standard deviation, the mean, the lowest and the highest value of each column or channel.

    All axes of the results but that of the columns or channels have length 1.
    """
    found: Moments | None = None
    lows, highs = [], []
    for x in pieces(train):
        moments = Moments.of(x.numpy(), axes)
        found = moments if found is None else found + moments
        lows.append(x.amin(axes))
        highs.append(x.amax(axes))
    assert found is not None
    std, mean = torch.from_numpy(found.std), torch.from_numpy(found.mean)
    return std, mean, torch.stack(lows).amin(0).reshape(std.shape), torch.stack(highs).amax(0).reshape(std.shape)
