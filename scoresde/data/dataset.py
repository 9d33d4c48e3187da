"""Data: what a set of samples is, in its own units, and the codec that takes it to those of a model.

Everything a model sees is an *event*, channels first: an image ``(C, H, W)``, a signal ``(C, L)`` or a vector
``(D,)``. Data units become model units, of order one, by a codec (:mod:`scoresde.codec`). Levels are dequantised, and
their model units are [-1, 1). Continuous images map their range to [-1, 1]; signals and vectors are standardised with
the mean and standard deviation of the training rows.

:class:`DataInfo` holds what is known of the data without the data, so that a trained model can sample and score when
the data is gone. :func:`load_data` reads a toy, the bundled digits, or a path; nothing that is read is ever executed.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..codec import Affine, Codec, Composed, Levels
from ..core.errors import DataError, UsageError
from .arrays import raw_of
from .raw import AS_IS, Array, Raw, Reading
from .readers import READABLE, read_digits, read_path
from .toys import DENSITIES, TOYS, sample_toy

__all__ = ["NAMES", "DataInfo", "Dataset", "load_data", "old_codec", "split"]

NAMES = (*TOYS, "digits")
TOY_POINTS = 20_000
KINDS = ("image", "volume", "signal", "vector")
ARRAY = "(array)"  # the source of data that no file holds
EXACT = 2**24  # float32 holds every whole number up to here


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
        channels_last: The source had its channels last; samples can be written back the same way.
        names: Of the columns of a table, or empty.
        wide: Values need float64, and samples are written in it.
        n_validation: Number of samples held out of the training ones, to choose between checkpoints.
        trained: Number of training samples of each class; empty without labels, or if the run is older than this.
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
    channels_last: bool = False
    names: tuple[str, ...] = ()
    wide: bool = False
    n_validation: int = 0
    trained: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """Numbers in an event."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {
            "shape": list(self.shape),
            "classes": list(self.classes),
            "names": list(self.names),
            "trained": list(self.trained),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> DataInfo:
        """The inverse of :meth:`to_dict`; a DataError names what is missing, unknown or malformed."""
        required = {f.name for f in fields(cls) if f.default is MISSING}
        optional = {f.name for f in fields(cls)} - required | {"transform"}  # which stood here in format 1
        _check_keys("data description", stored, required, optional)
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
                channels_last=bool(stored.get("channels_last", False)),
                names=tuple(str(c) for c in stored.get("names", ())),
                wide=bool(stored.get("wide", False)),
                n_validation=int(stored.get("n_validation", 0)),
                trained=tuple(int(n) for n in stored.get("trained", ())),
            )
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise DataError(f"malformed data description: {error}") from error
        if not info.shape or min(info.shape) < 1:
            raise DataError(f"malformed data description: shape {info.shape}")
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


def old_codec(stored: Mapping[str, Any]) -> Codec:
    """The codec of data that were described in format 1, which had the affine map among their facts.

    Raises:
        DataError: If the description is malformed.
    """
    try:
        transform = stored["transform"]
        _check_keys("data transform", transform, required={"shift", "scale"}, optional=set())
        affine, info = Affine.from_options(transform), DataInfo.from_dict(stored)
        torch.broadcast_to(affine.scale + affine.shift, info.shape)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"malformed data description: {error}") from error
    if info.levels is None:
        return affine
    return Composed((Levels(info.low, info.high, info.levels), affine))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in memory, in data units.

    Attributes:
        info: The description that outlives the data.
        codec: The map to model units.
        train: ``(n_train, *event)``; uint8 for 8-bit sources, int32 for other whole numbers, else float32.
        test: ``(n_test, *event)``, the same dtype.
        train_labels: Indexes into ``info.classes``, ``(n_train,)`` int64, or None.
        test_labels: ``(n_test,)`` int64, or None.
        log_density: True log density in nats and data units, ``(N, *event)`` to ``(N,)``, where one is known.
    """

    info: DataInfo
    codec: Codec
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    log_density: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls,
        train: Tensor | npt.ArrayLike,
        test: Tensor | npt.ArrayLike | None = None,
        *,
        classes: Tensor | npt.ArrayLike | None = None,
        test_classes: Tensor | npt.ArrayLike | None = None,
        name: str = "array",
        seed: int = 0,
        test_fraction: float = 0.1,
        layout: str = "auto",
        split: str = "content",
    ) -> Dataset:
        """The data set of an array, as :func:`load_data` makes it of a file that holds it.

        Args:
            train: All samples, or the training ones: ``(N, D)`` vectors, ``(N, C, L)`` signals, ``(N, C, H, W)``
                images.
            test: Samples to hold out; without them a share of ``train`` is.
            classes, test_classes: The class of each sample, numbers or names, shape ``(N,)``.
            name: For titles and folders.
            seed, test_fraction, split: Of the split (see :func:`load_data`).
            layout: Where the channels are, ``first`` or ``last``, if the shape does not tell.

        Raises:
            DataError: If it cannot be data.

        >>> data = Dataset.of(np.random.default_rng(0).normal(3.0, 2.0, (100, 2)))
        >>> data.info.kind, len(data.train), len(data.test)
        ('vector', 90, 10)
        """
        given = {"x_train": train, "x_test": test, "y_train": classes, "y_test": test_classes}
        arrays = {key: _array(value) for key, value in given.items() if value is not None}
        raw = raw_of(arrays, name, Reading(layout=layout))
        return _build(raw, name, ARRAY, seed, test_fraction, split)


def _array(values: Tensor | npt.ArrayLike) -> npt.NDArray[Any]:
    """An array of a tensor wherever it is and whatever is asked of it, or of what NumPy takes."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)


def load_data(
    spec: str,
    seed: int = 0,
    test_fraction: float = 0.1,
    *,
    reading: Reading = AS_IS,
    split: str = "content",
) -> Dataset:
    """Load a data set.

    Args:
        spec: One of ``NAMES``, or the path of a file or folder (``./digits`` for a path that is also a name).
        seed: Draws the toys, and splits what comes without a test part.
        test_fraction: Share of samples held out, in (0, 1); unused where the source has a test part.
        reading: How files are read, where they do not say so themselves.
        split: ``content``: what a sample is decides whether it is held out, so that more data, or another order, moves
            none; or ``rows``, a permutation of the rows. Toys and digits are split by rows.

    Raises:
        DataError: If ``spec`` is neither, or if the data is unreadable or inconsistent.
        UsageError: If ``test_fraction`` is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction must lie between 0 and 1, got {test_fraction:g}; 0.1 is usual")
    if spec in TOYS:
        raw = Raw("vector", sample_toy(spec, TOY_POINTS, seed).numpy())
        return _build(raw, spec, spec, seed, test_fraction, "rows")
    if spec == "digits":
        return _build(read_digits(), spec, spec, seed, test_fraction, "rows")
    path = Path(spec).expanduser()
    if not spec or not path.exists():
        near = difflib.get_close_matches(spec.lower(), NAMES, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DataError(
            f"no data set called {spec!r}, and no such file or folder exists.{hint} Names: "
            f"{', '.join(NAMES)}. Paths: {READABLE}"
        )
    name = path.resolve().name
    name = name if path.is_dir() else name.split(".")[0]
    return _build(read_path(path, reading), name, spec, seed, test_fraction, split)


def split(n: int, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``range(n)`` at random, by the seed alone, into disjoint training and test indexes (int64)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    n_test = max(1, round(test_fraction * n))
    return order[n_test:], order[:n_test]


def _build(raw: Raw, name: str, source: str, seed: int, test_fraction: float, how: str) -> Dataset:
    """Split what is not split yet, find the range and the codec, and put everything into tensors."""
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
        channels_last=raw.channels_last,
    )
    codec: Codec = _affine(raw.kind, train, low, high, levels, source)
    if levels is not None:
        codec = Composed((Levels(low, high, levels), codec))
    return Dataset(info, codec, train, test, y, test_y, DENSITIES.get(source))


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
        raise DataError(f"{source}: every value is {low:g}: a constant has no density, look at how it was saved")
    if dtype.kind == "f":
        return low, high, None
    if max(abs(low), abs(high)) >= EXACT:
        raise DataError(
            f"{source}: whole numbers from {low:.0f} to {high:.0f} do not fit float32 exactly (below "
            f"{EXACT}): convert to floating point (continuous data), or subtract an offset"
        )
    return low, high, int(high - low) + 1


def _affine(kind: str, train: Tensor, low: float, high: float, levels: int | None, source: str) -> Affine:
    if kind == "image" or levels is not None:
        top = high if levels is None else high + (high - low) / (levels - 1)
        half = torch.tensor((top - low) / 2, dtype=torch.float64)
        return Affine(low + half, half)
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
    return Affine(mean[0], std[0])


def _tensor(x: Array) -> Tensor:
    """Compact storage: uint8 stays, other whole numbers become int32, floats float32."""
    small = x.dtype in (np.uint8, np.bool_)
    dtype: type[np.generic] = np.float32 if x.dtype.kind == "f" else np.uint8 if small else np.int32
    return torch.from_numpy(np.ascontiguousarray(x, dtype=dtype))


def _label_tensor(y: Array | None) -> Tensor | None:
    return None if y is None else torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64))


def _check_keys(what: str, stored: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(stored, Mapping):
        raise DataError(f"malformed {what}: a table of keys and values is expected, got {type(stored).__name__}")
    missing, unknown = sorted(required - set(stored)), sorted(set(stored) - required - optional)
    if missing or unknown:
        raise DataError(
            f"malformed {what}: missing keys {missing or 'none'}, unknown keys {unknown or 'none'}; was it "
            "written by another version?"
        )
