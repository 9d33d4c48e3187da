"""Data: what a set of samples is, in its own units, and how it meets a model, in units of order one.

Everything a model sees is an *event*, channels first: an image ``(C, H, W)``, a signal ``(C, L)`` or a vector
``(D,)``. One affine map, :class:`Transform`, joins the two systems of units,

    model = (data - shift) / scale,        log p(data) = log p(model) - sum over the event of log scale.

Numbers that come in levels (8-bit pixels, counts) have no density. They get one by uniform dequantisation:
value ``k`` spreads over its bin ``[k, k + bin)``, after which the log density averaged over a bin bounds the
log probability of the level from below (Theis et al.). Their model units are [-1, 1). Continuous images map
their range to [-1, 1]; signals and vectors are standardised with the mean and standard deviation of the
training rows.

:class:`DataInfo` holds all of this without the data, so a trained model can sample and score in data units
when the data is gone. :func:`load_data` reads a toy, the bundled digits, or a path; nothing read is ever
executed.

References:
    Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models,
    https://arxiv.org/abs/1511.01844.
    Song et al. (2021), Score-based generative modeling through SDEs, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..shapes import time_dtype
from .readers import READABLE, Array, Raw, read_digits, read_path
from .toys import DENSITIES, TOYS, eight_gaussians, sample_toy

__all__ = ["NAMES", "DataInfo", "Dataset", "Transform", "eight_gaussians", "load_data", "sample_toy", "split"]

NAMES = (*TOYS, "digits")
TOY_POINTS = 20_000
KINDS = ("image", "signal", "vector")
EXACT = 2**24  # float32 holds every whole number up to here


@dataclass(frozen=True, eq=False)
class Transform:
    """The affine map between data units and model units, ``model = (data - shift) / scale``.

    Attributes:
        shift: float64, broadcastable to an event: ``()``, ``(D,)`` or ``(C, 1)``, in data units.
        scale: The same, positive.
    """

    shift: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if not (bool(torch.isfinite(self.shift).all()) and bool(torch.isfinite(self.scale).all())):
            raise DataError("a data transform needs a finite shift and scale")
        if not bool((self.scale > 0).all()):
            raise DataError(
                f"the scale of a data transform must be positive, got {self.scale.min().item():g}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transform):
            return NotImplemented
        return torch.equal(self.shift, other.shift) and torch.equal(self.scale, other.scale)

    def encode(self, x: Tensor) -> Tensor:
        """Data units to model units: ``(B, *event)`` in the dtype of ``x``, or float32 for whole numbers."""
        dtype = x.dtype if x.is_floating_point() else time_dtype(x.device)
        m = (x.to(dtype) - self.shift.to(x.device, dtype)) / self.scale.to(x.device, dtype)
        return m if x.is_floating_point() else m.float()

    def decode(self, m: Tensor) -> Tensor:
        """Model units to data units: ``(B, *event)`` in the dtype of ``m``."""
        return m * self.scale.to(m.device, m.dtype) + self.shift.to(m.device, m.dtype)

    def log_scale(self, shape: Sequence[int]) -> float:
        """Sum of ``log(scale)`` over an event of shape ``shape``, in nats: ``log p(model) - log p(data)``."""
        return float(torch.broadcast_to(self.scale, tuple(shape)).log().sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Transform:
        """The inverse of :meth:`to_dict`."""
        _check_keys("data transform", stored, required={"shift", "scale"}, optional=set())
        shift, scale = (torch.tensor(stored[key], dtype=torch.float64) for key in ("shift", "scale"))
        return cls(shift, scale)


@dataclass(frozen=True)
class DataInfo:
    """What sampling and likelihood need to know about a data set, without it. Saved as ``data.json``.

    Attributes:
        name: Short name, for titles and file names.
        source: The name or path it was loaded from.
        kind: ``"image"``, ``"signal"`` or ``"vector"``.
        shape: Event shape, channels first: ``(C, H, W)``, ``(C, L)`` or ``(D,)``.
        low: Smallest value, data units.
        high: Largest value, data units.
        levels: Number of equally spaced values from ``low`` to ``high``, or None for continuous data.
        classes: Class names in the order of the labels, empty if there are no labels.
        n_train: Number of training samples.
        n_test: Number of test samples.
        transform: The map to model units.
        channels_last: The source had its channels last; samples can be written back the same way.
    """

    name: str
    source: str
    kind: str
    shape: tuple[int, ...]
    low: float
    high: float
    levels: int | None
    classes: tuple[str, ...]
    n_train: int
    n_test: int
    transform: Transform
    channels_last: bool = False

    @property
    def bin_width(self) -> float | None:
        """Distance between two levels, data units; None for continuous data."""
        return None if self.levels is None else (self.high - self.low) / (self.levels - 1)

    @property
    def dims(self) -> int:
        """Numbers in an event."""
        return math.prod(self.shape)

    def dequantise(self, x: Tensor, u: Tensor) -> Tensor:
        """Spread each level over its bin: ``x + bin_width * u``.

        Args:
            x: Levels in data units, ``(B, *event)``, any dtype.
            u: Uniform numbers in [0, 1), the shape of ``x``, floating.

        Returns:
            Data units, inside the bin of ``x``, in the dtype of ``u``; ``x`` itself if data is continuous.
        """
        x = x.to(u.dtype)
        if self.bin_width is None:
            return x
        # Rounding would carry a u next to 1 into the next bin (255 + 0.999999 is 256 in float32): stop short.
        return torch.minimum(x + self.bin_width * u, torch.nextafter(x + self.bin_width, x))

    def quantise(self, x: Tensor) -> Tensor:
        """The level whose bin contains ``x``, data units, kept in range; ``x`` itself if data is continuous.

        Args:
            x: Data units, ``(B, *event)``.

        Returns:
            Values among the ``levels``, the same shape, in the dtype of ``x``, or float32 for whole numbers.
        """
        if self.levels is None or self.bin_width is None:
            return x
        # In float64: in float32, -6e-8 - (-3) is 3, one bin too far.
        index = torch.floor((x.to(time_dtype(x.device)) - self.low) / self.bin_width)
        level = self.low + self.bin_width * index.clamp(0, self.levels - 1)
        return level.to(x.dtype) if x.is_floating_point() else level.float()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {
            "shape": list(self.shape),
            "classes": list(self.classes),
            "transform": self.transform.to_dict(),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> DataInfo:
        """The inverse of :meth:`to_dict`; a DataError names what is missing, unknown or malformed."""
        required = {f.name for f in fields(cls) if f.default is MISSING}
        _check_keys("data description", stored, required, optional={f.name for f in fields(cls)} - required)
        try:
            levels = stored["levels"]
            info = cls(
                name=str(stored["name"]),
                source=str(stored["source"]),
                kind=str(stored["kind"]),
                shape=tuple(int(s) for s in stored["shape"]),
                low=float(stored["low"]),
                high=float(stored["high"]),
                levels=None if levels is None else int(levels),
                classes=tuple(str(c) for c in stored["classes"]),
                n_train=int(stored["n_train"]),
                n_test=int(stored["n_test"]),
                transform=Transform.from_dict(stored["transform"]),
                channels_last=bool(stored.get("channels_last", False)),
            )
            torch.broadcast_to(info.transform.scale + info.transform.shift, info.shape)
        except DataError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"malformed data description: {error}") from error
        if (info.levels is not None and info.levels < 2) or info.low > info.high:
            raise DataError(f"malformed data description: {levels} levels from {info.low} to {info.high}")
        if info.kind not in KINDS:
            raise DataError(f"malformed data description: kind {info.kind!r} is none of {', '.join(KINDS)}")
        return info

    def describe(self) -> str:
        """A few lines for people: counts, shape, range, levels and classes."""
        values = f"{self.levels} levels" if self.levels else "continuous"
        lines = [
            f"{self.name}: {self.n_train} training and {self.n_test} test samples from {self.source}",
            f"{self.kind} of shape {' x '.join(map(str, self.shape))} ({self.dims} dimensions)",
            f"values from {self.low:g} to {self.high:g}, {values}",
        ]
        if self.classes:
            more = ", ..." if len(self.classes) > 10 else ""
            lines.append(f"{len(self.classes)} classes: {', '.join(self.classes[:10])}{more}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in memory, in data units.

    Attributes:
        info: The description that outlives the data.
        train: ``(n_train, *event)``; uint8 for 8-bit sources, int32 for other whole numbers, else float32.
        test: ``(n_test, *event)``, the same dtype.
        train_labels: Indexes into ``info.classes``, ``(n_train,)`` int64, or None.
        test_labels: ``(n_test,)`` int64, or None.
        log_density: True log density in nats and data units, ``(N, *event)`` to ``(N,)``, where one is known.
    """

    info: DataInfo
    train: Tensor
    test: Tensor
    train_labels: Tensor | None
    test_labels: Tensor | None
    log_density: Callable[[Tensor], Tensor] | None = None


def load_data(spec: str, seed: int = 0, test_fraction: float = 0.1) -> Dataset:
    """Load a data set.

    Args:
        spec: One of ``NAMES``, or the path of a file or folder (``./digits`` for a path that is also a name).
        seed: Draws the toys, and splits what comes without a test part.
        test_fraction: Share of samples held out, in (0, 1); unused where the source has a test part.

    Raises:
        DataError: If ``spec`` is neither, or if the data is unreadable or inconsistent.
        UsageError: If ``test_fraction`` is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction must lie between 0 and 1, got {test_fraction:g}; 0.1 is usual")
    if spec in TOYS:
        raw = Raw("vector", sample_toy(spec, TOY_POINTS, seed).numpy())
        return _build(raw, spec, spec, seed, test_fraction)
    if spec == "digits":
        return _build(read_digits(), spec, spec, seed, test_fraction)
    path = Path(spec).expanduser()
    if not spec or not path.exists():
        near = difflib.get_close_matches(spec.lower(), NAMES, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DataError(
            f"no data set called {spec!r}, and no such file or folder exists.{hint} Names: "
            f"{', '.join(NAMES)}. Paths: {READABLE}"
        )
    name = path.resolve().name
    return _build(read_path(path), name if path.is_dir() else name.split(".")[0], spec, seed, test_fraction)


def split(n: int, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``range(n)`` at random, by the seed alone, into disjoint training and test indexes (int64)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    n_test = max(1, round(test_fraction * n))
    return order[n_test:], order[:n_test]


def _build(raw: Raw, name: str, source: str, seed: int, test_fraction: float) -> Dataset:
    """Split what is not split yet, find the range and the transform, and put everything into tensors."""
    low, high, levels = _range(raw, source)
    train, y = _tensor(raw.train), _label_tensor(raw.train_labels)
    test_y = _label_tensor(raw.test_labels)
    if raw.test is not None:
        test = _tensor(raw.test)
        if test.shape[1:] != train.shape[1:]:
            raise DataError(
                f"{source}: training events are {tuple(train.shape[1:])}, test events "
                f"{tuple(test.shape[1:])}: both must have one shape"
            )
    else:
        keep, held_out = split(len(train), test_fraction, seed)
        train, test = train[keep], train[held_out]
        if y is not None:
            y, test_y = y[keep], y[held_out]
    if len(train) < 2 or len(test) < 1:
        raise DataError(
            f"{source}: {len(train)} training and {len(test)} test samples: at least 2 and 1 are needed, "
            "give more data or another test fraction"
        )
    info = DataInfo(
        name=name,
        source=source,
        kind=raw.kind,
        shape=tuple(train.shape[1:]),
        low=low,
        high=high,
        levels=levels,
        classes=raw.classes,
        n_train=len(train),
        n_test=len(test),
        transform=_transform(raw.kind, train, low, high, levels, source),
        channels_last=raw.channels_last,
    )
    return Dataset(info, train, test, y, test_y, DENSITIES.get(source))


def _range(raw: Raw, source: str) -> tuple[float, float, int | None]:
    """Lowest value, highest value and number of levels, over training and test rows together."""
    if raw.levels is not None:
        return float(raw.levels[0]), float(raw.levels[1]), raw.levels[2]
    parts = [raw.train] if raw.test is None or not raw.test.size else [raw.train, raw.test]
    if not raw.train.size:
        raise DataError(f"{source}: no samples (shape {raw.train.shape})")
    dtype = raw.train.dtype
    if dtype == np.uint8 and raw.kind == "image":
        return 0.0, 255.0, 256
    if dtype == np.bool_:
        return 0.0, 1.0, 2
    low, high = float(min(p.min() for p in parts)), float(max(p.max() for p in parts))
    if low == high and (raw.kind == "image" or dtype.kind != "f"):
        raise DataError(
            f"{source}: every value is {low:g}: a constant has no density, look at how it was saved"
        )
    if dtype.kind == "f":
        return low, high, None
    if max(abs(low), abs(high)) >= EXACT:
        raise DataError(
            f"{source}: whole numbers from {low:.0f} to {high:.0f} do not fit float32 exactly (below "
            f"{EXACT}): convert to floating point (continuous data), or subtract an offset"
        )
    return low, high, int(high - low) + 1


def _transform(
    kind: str, train: Tensor, low: float, high: float, levels: int | None, source: str
) -> Transform:
    if kind == "image" or levels is not None:
        top = high if levels is None else high + (high - low) / (levels - 1)
        half = torch.tensor((top - low) / 2, dtype=torch.float64)
        return Transform(low + half, half)
    # Per feature of a vector (D,), per channel of a signal (C, 1).
    axes = (0,) if kind == "vector" else (0, 2)
    constant = (train.amin(axes) == train.amax(axes)).nonzero().flatten().tolist()
    if constant:
        what = "feature" if kind == "vector" else "channel"
        listed = ", ".join(map(str, constant[:10])) + (", ..." if len(constant) > 10 else "")
        raise DataError(
            f"{source}: {what} {listed} (counted from 0) is the same in every training sample: a constant "
            f"has no density, drop it"
        )
    std, mean = torch.std_mean(train.double(), axes, correction=0, keepdim=True)
    return Transform(mean[0], std[0])


def _tensor(x: Array) -> Tensor:
    """Compact storage: uint8 stays, other whole numbers become int32, floats float32."""
    small = x.dtype in (np.uint8, np.bool_)
    dtype: type[np.generic] = np.float32 if x.dtype.kind == "f" else np.uint8 if small else np.int32
    return torch.from_numpy(np.ascontiguousarray(x, dtype=dtype))


def _label_tensor(y: Array | None) -> Tensor | None:
    return None if y is None else torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64))


def _check_keys(what: str, stored: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(stored, Mapping):
        raise DataError(
            f"malformed {what}: a table of keys and values is expected, got {type(stored).__name__}"
        )
    missing, unknown = sorted(required - set(stored)), sorted(set(stored) - required - optional)
    if missing or unknown:
        raise DataError(
            f"malformed {what}: missing keys {missing or 'none'}, unknown keys {unknown or 'none'}; was it "
            "written by another version?"
        )
