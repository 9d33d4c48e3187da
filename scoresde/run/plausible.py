"""Detect samples that are not in the units of the data.

A comparison of pixels in [0, 1] with pixels in [0, 255] gives metrics that look valid but are meaningless. A file of
samples does not record the units, but these can often be inferred from the values. Even poor samples lie roughly where
the data lie, whether they are all grey, all equal to one image or the mean, or noise that extends beyond the range of
the data on both sides. Samples in other units lie elsewhere, or look like the data multiplied by a constant. Let m be
the median of the samples and s the distance between their 1 % and 99 % quantiles, and let m_data and s_data be the same
statistics of the data. Samples are rejected if one of these rules applies:

    1. All samples lie above the data, or all lie below, by more than a quarter of the width of the data's range.
    2. The samples may be the data multiplied by a small factor (s < s_data / 8 and |m - m_data s / s_data| < s), and
       either the medians differ, or the samples fill [-1, 1] or [0, 1].
    3. The data may be the samples multiplied by a small factor, and at least one of these is true: the medians differ,
       the samples extend beyond the data on at most one side, or s is more than 4,000 times s_data.
    4. The samples fill [-1, 1] although no data are below 0, or they fill [0, 1] although the data fill [-1, 1].
    5. The data are stored as levels with a range above 2, and the samples lie in [-1, 1] but not on these levels.

Medians count as different if they differ by more than max(s, s_data) / 4. Quantiles are computed per column for tables,
per channel if the codec scales channels separately, and otherwise over all values. Rules 2 and 3 need at least
16 values, rule 2 does not apply to constant samples, and rule 4 does not apply to tables. To skip these checks, pass
``units="data"``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import Codec
from ..core.errors import DataError, UsageError
from ..core.text import one_line
from ..data import DataInfo, Dataset
from ..data.rows import Stored, pieces, thinned

__all__ = [
    "FarCells", "Units", "check_units", "in_data_units", "read_units", "warn_of_cells", "warn_of_shown",
    "warn_of_units",
]  # fmt: skip

# auto, data, model, or the two values that correspond to the lowest and the highest value of the data
Units = str | tuple[float, float]
WAYS = ("auto", "data", "model")
VALUES = 2**20  # approximate number of values from which quantiles are computed
FAR = 12.0  # standard deviations beyond which a given number is questioned
NAMED = 5  # maximum number of given numbers that a warning names
FEW = 16  # minimum number of values for which a spread is meaningful
SLACK = 0.02  # tolerance, relative to the range, for values just outside it because of rounding or denoising


def read_units(text: str) -> Units:
    """Convert text such as ``"0,1"`` to ``(0.0, 1.0)``, and return ``auto``, ``data`` and ``model`` unchanged.

    Raises:
        UsageError: If ``text`` is neither one of these names nor two numbers in increasing order.
    """
    if text in WAYS:
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not math.isfinite(high - low) or low >= high:
        raise UsageError(f"units must be {', '.join(WAYS)} or two increasing numbers such as 0,1, but got {text!r}")
    return low, high


def in_data_units(x: Tensor, data: Dataset, units: Units = "auto", source: str = "the samples") -> Tensor:
    """Convert samples to the units of the data.

    Args:
        x: Samples, shape ``(N, *event)``.
        data: The data that the samples are compared with.
        units: The units of the samples. Two numbers are the sample values that correspond to the lowest and the highest
            value of the data (or of each column, for a table). ``model`` means model units, ``data`` means data units,
            and ``auto`` means data units, with a check that rejects samples that seem to be in other units.
        source: The origin of the samples, for messages.

    Returns:
        Samples, shape ``(N, *event)``. If the data have levels, values between two levels are moved to the level
        below, or to the nearest level if ``units`` is two numbers.

    Raises:
        DataError: If a value is not finite or is outside the range of the levels, or if the samples seem to be in
            other units.
        UsageError: If ``units`` is invalid.
    """
    if x.is_complex():
        raise DataError(f"{source}: samples must be real numbers, got {x.dtype}")
    bad = ~x.isfinite().flatten(1).all(1) if x.is_floating_point() else torch.zeros(len(x), dtype=torch.bool)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise DataError(
            f"{source}: NaN or infinite values in {int(bad.sum()):,} of {len(x):,} samples (the first at index "
            f"{first}); remove these samples"
        )
    codec, levels = data.codec, data.codec.levels
    if not x.is_floating_point() and x.dtype != torch.uint8:
        x = x.long()  # the less common integer types support little arithmetic
    if isinstance(units, str):
        units = read_units(units)
    if units == "model":
        return codec.to_data(x if x.is_floating_point() else x.float())
    if not isinstance(units, str):
        x = _converted(x, data, units, source)
        if levels is not None:
            x = x + _width(levels) / 2
    if levels is not None:
        _check_cells(x, data, levels, source)
    if units == "auto":
        check_units(x, data, source)
    return x if levels is None else levels.to_data(x)


def check_units(x: Tensor, data: Dataset, source: str = "the samples") -> None:
    """Reject samples ``x: (N, *event)`` that seem to be in units other than those of the data.

    Raises:
        DataError: If the samples are rejected. The message states the range of the samples and the range of the data.
    """
    if not x.numel():
        return
    axes = _axes(data.info, data.codec)
    # Of data that stay in their files, an evenly thinned sample is enough for these rules.
    theirs, ours = _Spread.of(x, axes), _Spread.of(thinned(data.train), axes, thinned(data.test))
    found = theirs.apart(ours)
    if theirs.count >= FEW:
        found |= theirs.smaller(ours) | theirs.larger(ours)
    if data.info.kind != "vector":
        found |= theirs.other_sign(ours)
    some = _some(x)
    if data.codec.levels is not None and bool((some != data.codec.levels.to_data(some)).any()):
        found |= theirs.within(-1, 1) & (ours.high - ours.low > 2)
    if not bool(found.any()):
        return
    k = int(found.nonzero()[0, 0])
    where, more = _where(data.info, axes, k), int(found.sum()) - 1
    others = (
        f" (similarly in {more} other {'column' if 'col' in where else 'channel'}{'s' * (more > 1)})" if more else ""
    )
    raise DataError(
        f"{source}: the values{where}{others} range from {theirs.low[k]:g} to {theirs.high[k]:g}, but those of "
        f"{data.info.name} range from {ours.low[k]:g} to {ours.high[k]:g}; samples must be in data units, and these "
        "seem to be in different units. Pass the sample values that correspond to the lowest and to the highest value "
        "of the data, or confirm that the samples are in data units",
        parameter="units",
        value=_guess(theirs.low, theirs.high),
    )


def _guess(low: Tensor, high: Tensor) -> str:
    """Return the likely units of samples, such as ``0,1``, or a placeholder if there is no likely choice."""
    for a, b in ((0, 1), (-1, 1), (0, 255)):
        slack = SLACK * (b - a)
        if a - slack <= float(low.min()) and float(high.max()) <= b + slack:
            return f"{a},{b}"
    return "LOW,HIGH"


def warn_of_units(x: Tensor, codec: Codec, info: DataInfo, stacklevel: int = 3) -> None:
    """Warn if data differ so much from a model's training data that they may be in other units.

    Such data are not rejected, because likelihoods are often computed to detect outliers.

    Args:
        x: Data in data units, shape ``(N, *event)``.
        codec: The model's map from data units to model units.
        info: The description of the data that the model was trained on.
        stacklevel: The stack level of the warning.
    """
    if not x.numel():
        return
    whole = codec.units.model_shape(info.shape) == info.shape
    axes = _axes(info, codec) if whole else ()
    index = torch.arange(len(x))[_every(x)]
    some = x.cpu()[index].double()
    units = codec.rows(index).units
    values, m = _grouped(some, axes), _grouped(units.to_model(some), axes)
    far = (m.abs() > 8).double().mean(1) > 0.02
    if len(x) >= FEW:
        spread = m.std(1)
        far |= (spread < 1 / 32) & (spread > 0) & (m.median(1).values.abs() > 1 / 4)
    if not axes and info.kind in ("image", "volume"):
        room = (info.high - info.low) / 4
        far |= ((values < info.low - room) | (values > info.high + room)).double().mean(1) > 0.05
    if not bool(far.any()):
        return
    k = int(far.nonzero()[0, 0])
    (low, high), ours = values[k].aminmax(), f"{info.low:g} to {info.high:g}"
    if axes:
        ends = torch.tensor([-2.0, 2.0]).double().reshape(2, *[1] * len(info.shape)).expand(2, *info.shape)
        a, b = _grouped(units.to_data(ends), axes)[k].aminmax()
        ours = f"about {a:.4g} to {b:.4g}"
    warnings.warn(
        f"the values{_where(info, axes, k)} range from {low:.4g} to {high:.4g}, but those of {info.name}, which the "
        f"model was trained on, range from {ours}; are both data sets in the same units?",
        stacklevel=stacklevel,
    )


class FarCells(UserWarning):
    """The category of the warnings of :func:`warn_of_cells`."""


def warn_of_cells(
    x: Tensor, m: Tensor, names: Sequence[str], stacklevel: int = 4, *, lines: Sequence[int] = (), source: str = ""
) -> None:
    """Warn if numbers lie so far from the training data that they may be typing errors or in other units.

    Args:
        x: The numbers as they were given, ``(n, D)``, with NaN for unknown numbers.
        m: The same numbers in units of the training data: minus their mean, divided by their standard deviation.
        names: The names of the columns.
        stacklevel: The stack level of the warning.
        lines: The line of each row in the file that was read, or empty to name rows by their index.
        source: The file that was read, or "".
    """
    index = (m.abs() > FAR).nonzero()
    far = index[m[index[:, 0], index[:, 1]].abs().argsort(descending=True, stable=True)].tolist()
    if not far:
        return
    cells = []
    for i, k in far[:NAMED]:
        name = names[k] if k < len(names) else f"feature {k}"
        where = f"line {lines[i]}" if lines else f"row {i} (counted from 0)"
        cells.append((f"{float(x[i, k]):.10g} of {one_line(name)} in {where}", f"{float(m[i, k].abs()):,.0f}"))
    if len(far) == 1:
        told = f"the given value {cells[0][0]} is {cells[0][1]} standard deviations from the mean of the training data"
    else:
        listed = ", ".join(f"{cell} ({distance})" for cell, distance in cells)
        more = f" and {len(far) - NAMED:,} more" if far[NAMED:] else ""
        told = (
            f"{len(far):,} given values are far from the mean of the training data (in standard deviations): "
            f"{listed}{more}"
        )
    error = "a typing error" if len(far) == 1 else "typing errors"
    warnings.warn(
        f"{source}{': ' * bool(source)}{told}; check for {error}, or for other units", FarCells, stacklevel=stacklevel
    )


def warn_of_shown(x: Tensor, codec: Codec, info: DataInfo, stacklevel: int = 4) -> None:
    """Warn if given pictures, signals or rows may be in other units than the training data.

    Args:
        x: What is known of the samples in data units, ``(n, *event)``, with NaN for unknown values.
        codec: The map from data units to model units.
        info: The description of the training data.
        stacklevel: The stack level of the warning.
    """
    m = codec.units.to_model(x.double())
    if info.kind == "vector":
        warn_of_cells(x, m, info.names, stacklevel + 1)
        return
    known = ~x.isnan()
    values, inside = x[known].double(), m[known]
    if values.numel() < FEW:
        return
    room = (info.high - info.low) / 4
    outside = float(((values < info.low - room) | (values > info.high + room)).double().mean()) > 0.05
    # A picture in [0, 1] for a model of levels from 0 to 255 is almost constant, at one end of the range.
    narrow = float(inside.std()) < 1 / 32 and float(values.max()) > float(values.min())
    narrow &= float(inside.median().abs()) > 0.9 and info.kind in ("image", "volume")
    if outside or narrow:
        warnings.warn(
            f"the given values range from {float(values.min()):.4g} to {float(values.max()):.4g}, but those of "
            f"{info.name}, which the model was trained on, range from {info.low:g} to {info.high:g}; are they in the "
            "same units?",
            stacklevel=stacklevel,
        )


# ------------------------------------------------------------------------------------------------------------- spread


@dataclass(frozen=True)
class _Spread:
    """Statistics of G groups of values, as tensors ``(G,)``. Quantiles are computed from ``count`` values per group."""

    count: int
    low: Tensor
    high: Tensor
    middle: Tensor
    width: Tensor
    tenth: Tensor
    quarter: Tensor

    @classmethod
    def of(cls, x: Tensor | Stored, axes: tuple[int, ...], more: Tensor | Stored | None = None) -> _Spread:
        """Compute the statistics of ``x``. The minimum and maximum also include the values in ``more``."""
        parts = [part for part in (x, more) if part is not None and part.shape.numel()]
        ends = [_ends(piece, axes) for part in parts for piece in pieces(part)]
        low = torch.stack([a for a, _ in ends]).amin(0)
        high = torch.stack([b for _, b in ends]).amax(0)
        values = _grouped(_some(x).double(), axes).sort(1).values
        at = [values[:, round(q * (values.shape[1] - 1))] for q in (0.01, 0.1, 0.25, 0.5, 0.99)]
        width = at[4] - at[0]
        return cls(values.shape[1], low, high, at[3], torch.where(width > 0, width, high - low), at[1], at[2])

    def within(self, low: float, high: float) -> Tensor:
        slack = SLACK * (high - low)
        return (self.low >= low - slack) & (self.high <= high + slack)

    def apart(self, data: _Spread) -> Tensor:
        """Return whether all samples lie above the data, or all lie below (rule 1)."""
        room = (data.high - data.low) / 4
        return (self.high < data.low - room) | (self.low > data.high + room)

    def smaller(self, data: _Spread) -> Tensor:
        """Return whether the samples seem to be the data times a small factor (rule 2)."""
        return self._times(data) & (self._moved(data) | (self.within(-1, 1) & (self.size > 0.5)))

    def larger(self, data: _Spread) -> Tensor:
        """Return whether the data seem to be the samples times a small factor (rule 3)."""
        room = self.width / 8
        one_sided = (self.low > data.low - room) | (self.high < data.high + room)
        return data._times(self) & (self._moved(data) | one_sided | (self.width > 4000 * data.width))

    def _times(self, other: _Spread) -> Tensor:
        """Return whether these values could be ``other`` times a small factor."""
        r = self.width / other.width
        return (self.width > 0) & (r < 1 / 8) & ((self.middle - r * other.middle).abs() <= self.width)

    def _moved(self, data: _Spread) -> Tensor:
        return (self.middle - data.middle).abs() > torch.maximum(self.width, data.width) / 4

    @property
    def size(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())

    def other_sign(self, data: _Spread) -> Tensor:
        """Return whether the samples fill [-1, 1] or [0, 1] but the data do not have these signs (rule 4)."""
        wide = self.within(-1, 1) & (self.low < -0.5) & (self.tenth < -0.25)
        wide &= (data.low >= 0) & (data.high > 0.5)
        half = self.within(0, 1) & (self.width > 0.25) & data.within(-1, 1) & (data.quarter < -0.1)
        return wide | half


def _axes(info: DataInfo, codec: Codec) -> tuple[int, ...]:
    """Return the axes of an event along which units may differ, such as the columns of a table."""
    scale = getattr(codec.units, "scale", None)
    if info.kind == "vector":
        return (0,)
    if not isinstance(scale, Tensor):
        return ()
    first = len(info.shape) - scale.ndim
    return tuple(first + i for i, size in enumerate(scale.shape) if size > 1)


def _grouped(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Reshape ``x: (N, *event)`` to one row per group, ``(G, M)``. A group is a column or a channel."""
    front = x.movedim([1 + a for a in axes], list(range(len(axes))))
    return front.reshape(math.prod(front.shape[: len(axes)]), -1)


def _ends(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the minimum and the maximum of each group."""
    low, high = x.amin(0).double()[None], x.amax(0).double()[None]
    return _grouped(low, axes).amin(1), _grouped(high, axes).amax(1)


def _some(x: Tensor | Stored) -> Tensor:
    """Return enough evenly spaced rows of ``x`` to estimate its quantiles."""
    return x[_every(x)]


def _every(x: Tensor | Stored) -> slice:
    return slice(None, None, max(1, len(x) // max(64, VALUES // x.shape[1:].numel())))


def _where(info: DataInfo, axes: tuple[int, ...], k: int) -> str:
    """Say where group ``k`` is, such as " in channel 0", or return "" if the group has no name."""
    if not axes:
        return ""
    if info.kind == "vector":
        named = info.names[k] if len(info.names) == info.shape[0] else str(k)
        return f" in column {named}"
    return f" in channel {k}" if axes == (0,) else ""


# --------------------------------------------------------------------------------------------------------- conversion


def _converted(x: Tensor, data: Dataset, units: tuple[float, float], source: str) -> Tensor:
    """Convert samples from the range ``units`` to the range of the data."""
    low, high = units
    if not len(x):
        return x
    theirs = float(x.min()), float(x.max())
    if not (2 * low - high <= theirs[0] and theirs[1] <= 2 * high - low):
        raise DataError(
            f"{source}: the values range from {theirs[0]:g} to {theirs[1]:g}, which does not fit the given units "
            f"({low:g} to {high:g}); pass the two sample values that correspond to the lowest and the highest value of "
            "the data",
            parameter="units",
            value="LOW,HIGH",
        )
    info, axes = data.info, _axes(data.info, data.codec)
    ends: tuple[float | Tensor, float | Tensor] = (info.low, info.high)
    if axes:
        shape = [n if i in axes else 1 for i, n in enumerate(info.shape)]
        found = _Spread.of(data.train, axes, data.test)
        ends = found.low.reshape(shape), found.high.reshape(shape)
    share = (x.double() - low) / (high - low)
    return ends[0] + share * (ends[1] - ends[0])


def _width(levels: Codec) -> float | Tensor:
    """Return the distance between adjacent levels."""
    width: float | Tensor = getattr(levels, "width", 0.0)
    return width


def _check_cells(x: Tensor, data: Dataset, levels: Codec, source: str) -> None:
    """Check that every value lies in the cell of a level."""
    for part in torch.split(x, max(1, VALUES // max(1, data.info.dims))):
        off = part.double() - levels.to_data(part.double())
        if not bool(((off == 0) | ((off > 0) & (off < _width(levels)))).all()):
            break
    else:
        return
    info = data.info
    raise DataError(
        f"{source}: the values range from {float(x.min()):g} to {float(x.max()):g}, but those of {info.name} range "
        f"from {info.low:g} to {info.high:g}; samples must be in data units. If they are in other units, pass the two "
        f"values that correspond to {info.low:g} and {info.high:g}",
        parameter="units",
        value=_guess(x, x),
    )
