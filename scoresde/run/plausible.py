"""Are numbers in the units of the data?

Pixels from 0 to 1 beside pixels from 0 to 255 give figures, and wrong ones. Units cannot be seen, but what they do can.
A set of samples may be as bad as it likes, and still it lies about where the data do: it may be grey, collapsed to one
picture or to the mean, or noise that spreads to both sides. In other units it lies elsewhere, or it has the wrong width
and lies where a factor on the data would put it. With m the median and s the spread from the 1 % to the 99 % quantile,
samples are refused

    that overlap nowhere with the data;                                                                        (1)
    that may be the data times a small number,  s < s_data / 8  and  |m - m_data s / s_data| < s,  if the median is not
        where that of the data is, or they fill [-1, 1] or [0, 1];                                             (2)
    of which the data may be a small multiple, if the median is elsewhere, they spread to one side alone, or 4,000 times
        as far;                                                                                                (3)
    that fill [-1, 1] where no data are below 0, or [0, 1] where the data fill [-1, 1];                        (4)
    of data with levels, that lie in [-1, 1] between the levels.                                               (5)

The quantiles are those of each column of a table, of each channel where channels have scales of their own, and else of
all numbers together. A set that is constant is not judged by (2). Whoever knows better says so: ``units="data"``.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import Codec
from ..core.errors import DataError, UsageError
from ..data import DataInfo, Dataset

__all__ = ["Units", "check_units", "in_data_units", "read_units", "warn_of_units"]

Units = str | tuple[float, float]  # auto, data, model, or the numbers that stand for the data's lowest and highest
WAYS = ("auto", "data", "model")
VALUES = 2**20  # numbers that quantiles are taken of, about
FEW = 16  # numbers that have no spread to speak of
SLACK = 0.02  # a value that is rounded, or denoised a little too far, is still in [0, 1]


def read_units(text: str) -> Units:
    """``"0,1"`` to ``(0.0, 1.0)``; ``auto``, ``data`` and ``model`` stay what they are.

    Raises:
        UsageError: If it is none of these.
    """
    if text in WAYS:
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not math.isfinite(high - low) or low >= high:
        raise UsageError(f"units {text!r}: they are two numbers, such as 0,1, or one of: {', '.join(WAYS)}")
    return low, high


def in_data_units(x: Tensor, data: Dataset, units: Units = "auto", source: str = "the samples") -> Tensor:
    """Samples in the units of the data.

    Args:
        x: Samples, shape ``(N, *event)``.
        data: What they are samples of.
        units: Theirs: the two numbers that stand for the lowest and the highest value of the data (of each column of a
            table); ``model`` for those of a network; ``data`` for the data's, and ``auto`` for these, unless they do
            not look so.
        source: Where they come from, for messages.

    Returns:
        Shape ``(N, *event)``. Of data with levels, values between levels are taken to the level below, and those that
        were converted to the nearest.

    Raises:
        DataError: If a value is not finite, if data with levels have none there, or if they look like other units.
        UsageError: If there are no such units.
    """
    if x.is_complex():
        raise DataError(f"{source}: samples are real numbers, and these are {x.dtype}")
    bad = ~x.isfinite().flatten(1).all(1) if x.is_floating_point() else torch.zeros(len(x), dtype=torch.bool)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise DataError(f"{source}: {int(bad.sum()):,} samples are not finite, the first no. {first}; leave them out")
    codec, levels = data.codec, data.codec.levels
    if not x.is_floating_point() and x.dtype != torch.uint8:
        x = x.long()  # the rarer kinds of whole numbers have little arithmetic
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
    """Refuse samples ``(N, *event)`` that look as if they were in other units than the data.

    Raises:
        DataError: If they do, with both ranges.
    """
    if not x.numel():
        return
    axes = _axes(data.info, data.codec)
    theirs, ours = _Spread.of(x, axes), _Spread.of(data.train, axes, data.test)
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
    others = f" (and {more} other{'s' * (more > 1)} likewise)" if more else ""
    raise DataError(
        f"{source}: values from {theirs.low[k]:g} to {theirs.high[k]:g}{where}{others}, {data.info.name} from "
        f"{ours.low[k]:g} to {ours.high[k]:g}: samples come in data units, and these look like others; say which "
        "numbers stand for the lowest and the highest value of the data, or that the units are those of the data",
        parameter="units",
        value=_guess(theirs.low, theirs.high),
    )


def _guess(low: Tensor, high: Tensor) -> str:
    """Between which two numbers values from ``low`` to ``high``, of any shape, were meant to lie."""
    for a, b in ((0, 1), (-1, 1), (0, 255)):
        slack = SLACK * (b - a)
        if a - slack <= float(low.min()) and float(high.max()) <= b + slack:
            return f"{a},{b}"
    return "LOW,HIGH"


def warn_of_units(x: Tensor, codec: Codec, info: DataInfo, stacklevel: int = 3) -> None:
    """Warn of data that lie so far from those of a model that their units may be others.

    They are not refused: to score what is far away is what some ask a likelihood for.

    Args:
        x: In data units, shape ``(N, *event)``.
        codec: The model's map from data units to numbers of order one.
        info: What is known of its own data.
        stacklevel: Of the warning.
    """
    if not x.numel():
        return
    whole = codec.model_shape(info.shape) == info.shape
    axes = _axes(info, codec) if whole else ()
    index = torch.arange(len(x))[_every(x)]
    some = x.cpu()[index].double()
    units = codec.rows(index).continuous
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
        f"the values{_where(info, axes, k)} go from {low:.4g} to {high:.4g}, and those of {info.name}, which the model "
        f"was trained on, from {ours}: are they in the same units?",
        stacklevel=stacklevel,
    )


# ------------------------------------------------------------------------------------------------------------- spread


@dataclass(frozen=True)
class _Spread:
    """Where the numbers of each of G groups lie, each float64 ``(G,)``, and how many numbers a group has."""

    count: int
    low: Tensor
    high: Tensor
    middle: Tensor
    width: Tensor
    tenth: Tensor
    quarter: Tensor

    @classmethod
    def of(cls, x: Tensor, axes: tuple[int, ...], more: Tensor | None = None) -> _Spread:
        """Of ``x: (N, *event)``; the lowest and the highest number are those of ``more`` as well."""
        ends = [_ends(part, axes) for part in (x, more) if part is not None and part.numel()]
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
        """(1)"""
        room = (data.high - data.low) / 4
        return (self.high < data.low - room) | (self.low > data.high + room)

    def smaller(self, data: _Spread) -> Tensor:
        """(2)"""
        return self._times(data) & (self._moved(data) | (self.within(-1, 1) & (self.size > 0.5)))

    def larger(self, data: _Spread) -> Tensor:
        """(3)"""
        room = self.width / 8
        one_sided = (self.low > data.low - room) | (self.high < data.high + room)
        return data._times(self) & (self._moved(data) | one_sided | (self.width > 4000 * data.width))

    def _times(self, other: _Spread) -> Tensor:
        """Whether this may be ``other`` times a small number."""
        r = self.width / other.width
        return (self.width > 0) & (r < 1 / 8) & ((self.middle - r * other.middle).abs() <= self.width)

    def _moved(self, data: _Spread) -> Tensor:
        return (self.middle - data.middle).abs() > torch.maximum(self.width, data.width) / 4

    @property
    def size(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())

    def other_sign(self, data: _Spread) -> Tensor:
        """(4)"""
        wide = self.within(-1, 1) & (self.low < -0.5) & (self.tenth < -0.25)
        wide &= (data.low >= 0) & (data.high > 0.5)
        half = self.within(0, 1) & (self.width > 0.25) & data.within(-1, 1) & (data.quarter < -0.1)
        return wide | half


def _axes(info: DataInfo, codec: Codec) -> tuple[int, ...]:
    """The axes of an event along which units may differ: the columns of a table, or where the codec has many scales."""
    scale = getattr(codec.continuous, "scale", None)
    if info.kind == "vector":
        return (0,)
    if not isinstance(scale, Tensor):
        return ()
    first = len(info.shape) - scale.ndim
    return tuple(first + i for i, size in enumerate(scale.shape) if size > 1)


def _grouped(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Events ``(N, *event)`` as a row of numbers for each group, ``(G, M)``."""
    front = x.movedim([1 + a for a in axes], list(range(len(axes))))
    return front.reshape(math.prod(front.shape[: len(axes)]), -1)


def _ends(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number of each group, float64 ``(G,)``."""
    low, high = x.amin(0).double()[None], x.amax(0).double()[None]
    return _grouped(low, axes).amin(1), _grouped(high, axes).amax(1)


def _some(x: Tensor) -> Tensor:
    """Rows of ``x`` from all over it, so many that quantiles of them are good enough."""
    return x[_every(x)]


def _every(x: Tensor) -> slice:
    return slice(None, None, max(1, len(x) // max(64, VALUES // x[0].numel())))


def _where(info: DataInfo, axes: tuple[int, ...], k: int) -> str:
    """Which group, in words."""
    if not axes:
        return ""
    if info.kind == "vector":
        named = info.names[k] if len(info.names) == info.shape[0] else str(k)
        return f" in column {named}"
    return f" in channel {k}" if axes == (0,) else ""


# --------------------------------------------------------------------------------------------------------- conversion


def _converted(x: Tensor, data: Dataset, units: tuple[float, float], source: str) -> Tensor:
    """Samples of which two numbers stand for the ends of the data."""
    low, high = units
    if not len(x):
        return x
    theirs = float(x.min()), float(x.max())
    if not (2 * low - high <= theirs[0] and theirs[1] <= 2 * high - low):
        raise DataError(
            f"{source}: values from {theirs[0]:g} to {theirs[1]:g}, and not from {low:g} to {high:g}, the units that "
            "they were said to have",
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
    """The distance between two levels, data units."""
    width: float | Tensor = getattr(levels, "width", 0.0)
    return width


def _check_cells(x: Tensor, data: Dataset, levels: Codec, source: str) -> None:
    """Refuse values below the lowest level, or beyond the cell of the highest."""
    for part in torch.split(x, max(1, VALUES // max(1, data.info.dims))):
        off = part.double() - levels.to_data(part.double())
        if not bool(((off == 0) | ((off > 0) & (off < _width(levels)))).all()):
            break
    else:
        return
    info = data.info
    raise DataError(
        f"{source}: values from {float(x.min()):g} to {float(x.max()):g}, {info.name} from {info.low:g} to "
        f"{info.high:g}: samples come in data units; if other numbers stand for these two, say which",
        parameter="units",
        value=_guess(x, x),
    )
