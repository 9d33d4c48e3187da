"""Data sets: samples in data units, and the codec that maps the samples to model units.

A model sees each sample as an *event*, channels first: an image ``(C, H, W)``, a volume ``(C, D, H, W)``, a signal
``(C, L)`` or a vector ``(D,)``. A codec maps data units to model units, in which values are of order one
(:mod:`.units`). By default, the content of a row determines whether the row is held out (:mod:`.content`).

:class:`DataInfo` describes the data, so that a trained model can draw samples and compute likelihoods even if the data
are not available. :func:`load_data` samples a toy distribution, builds a data set from the bundled digits, or reads a
file or a folder. It never executes anything that it reads.
"""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..codec import Affine, Codec, Composed, Levels
from ..core.condition import SLOTS, Condition
from ..core.errors import Advice, DataError, UsageError
from ..core.limits import SEED, SHARE, checked
from ..core.text import one_line
from .arrays import raw_of
from .captions import captioned
from .content import LARGE, Identity, contents, ends, held_out, known_again, told
from .given import CondInfo
from .inplace import InPlace, in_place
from .outliers import Outliers, outliers_of
from .raw import AS_IS, Array, Raw, Reading
from .readers import READABLE, pictures_place, read_digits, read_path
from .rows import Joined, Stored, part, tensor_of
from .table import left_out
from .tinted import read_tinted
from .toys import DENSITIES, TOYS, sample_toy
from .units import units_of

__all__ = ["NAMES", "DataInfo", "Dataset", "load_data", "old_codec", "split"]

NAMES = (*TOYS, "digits", "tinted", "captions")
TOY_POINTS = 20_000
KINDS = ("image", "volume", "signal", "vector")
ARRAY = "(array)"  # the source of data that do not come from a file


@dataclass(frozen=True)
class DataInfo:
    """The description of a data set. It is saved with a run as ``data.json``, so that sampling does not need the data.

    Attributes:
        name: Short name used in titles and file names.
        source: The name or path from which the data were loaded.
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        shape: Event shape, channels first: ``(C, H, W)``, ``(C, D, H, W)``, ``(C, L)`` or ``(D,)``.
        low: Lower end of the range of values, in data units.
        high: Upper end of the range of values, in data units.
        levels: Number of equally spaced values from ``low`` to ``high``, or None if any values are continuous.
        classes: Class names in label order. Empty if there are no labels.
        n_train: Number of training samples.
        n_test: Number of test samples.
        channels_last: Whether the channels are last in the source. They are moved to the front when the source is read.
        names: Column names of a table, or empty.
        wide: Whether the values need 64-bit numbers. If so, generated samples are written in float64.
        n_validation: Number of training samples that are used only to choose between checkpoints.
        trained: Number of samples of each class that are used for training. Empty if there are no labels, and for runs
            that predate this field.
        spread: Root mean square of the training samples in model units, or ``None`` before training.
        furthest: Largest distance between two training samples in model units. ``None`` before training, and for runs
            whose probability path does not depend on this distance (:mod:`scoresde.sde.reach`).
        known: Description of the conditions of the samples, except their classes (:mod:`scoresde.data.given`).
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
    spread: float | None = None
    furthest: float | None = None
    known: CondInfo = field(default_factory=CondInfo)

    @property
    def dims(self) -> int:
        """Number of values in an event."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain numbers, strings and lists, for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {
            "shape": list(self.shape),
            "classes": list(self.classes),
            "names": list(self.names),
            "trained": list(self.trained),
            "known": self.known.to_dict(),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> DataInfo:
        """Restore a description from the output of :meth:`to_dict`.

        Raises:
            DataError: If a key is missing or unknown, or if a value is malformed.
        """
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        optional = {f.name for f in fields(cls)} - required | {"transform"}  # a key of format 1
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
                spread=_positive(stored.get("spread")),
                furthest=_positive(stored.get("furthest")),
                known=CondInfo.from_dict(stored.get("known", {})),
            )
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise DataError(f"malformed data description: {error}") from error
        if not info.shape or min(info.shape) < 1:
            raise DataError(f"malformed data description: shape must contain positive integers, got {info.shape}")
        if (info.levels is not None and info.levels < 2) or info.low > info.high:
            raise DataError(
                "malformed data description: levels must be null or at least 2, and low must not be greater than high, "
                f"got levels = {levels}, low = {info.low} and high = {info.high}"
            )
        if info.kind not in KINDS:
            raise DataError(f"malformed data description: kind must be one of {', '.join(KINDS)}, got {info.kind!r}")
        return info

    def describe(self) -> str:
        """Describe the data in a few lines: counts, shape, range, levels and classes."""
        values = f"{self.levels} levels" if self.levels else "continuous"
        name, source = one_line(self.name), one_line(self.source)
        lines = [
            f"{name}: {self.n_train} training and {self.n_test} test samples from {source}",
            f"{self.kind} of shape {' x '.join(map(str, self.shape))} ({self.dims} dimensions)",
            f"values from {self.low:g} to {self.high:g}, {values}",
        ]
        if self.classes:
            more = ", ..." if len(self.classes) > 10 else ""
            lines.append(f"{len(self.classes)} classes: {', '.join(map(one_line, self.classes[:10]))}{more}")
        if known := self.known.describe():
            lines.append(f"conditions besides the class: {known}")
        return "\n".join(lines)


def old_codec(stored: Mapping[str, Any]) -> Codec:
    """Restore the codec from a data description in format 1, which included the affine map.

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


@dataclass(frozen=True)
class How:
    """The options used to read and split data, kept so that both steps can be repeated.

    Attributes:
        seed, test_fraction, split, reading: See :func:`load_data`.
    """

    seed: int
    test_fraction: float
    split: str
    reading: Reading = AS_IS


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in data units, in memory or in files.

    The samples of large data stay in their files (:mod:`scoresde.data.inplace`). ``train`` and ``test`` are then not
    tensors, but :class:`~scoresde.data.rows.Stored` rows, which are read when they are indexed.

    Attributes:
        info: Description of the data, stored in the run folder.
        codec: The map from data units to model units.
        train: Training samples, ``(n_train, *event)``. Unsigned bytes and booleans have dtype uint8. Other numbers have
            dtype int32 or float32, or int64 or float64 if ``info.wide`` is true.
        test: Test samples, ``(n_test, *event)``, with the same dtype.
        train_labels: Indexes into ``info.classes``, ``(n_train,)`` int64, or None.
        test_labels: Indexes into ``info.classes``, ``(n_test,)`` int64, or None.
        log_density: A function that maps samples ``(N, *event)`` in data units to their true log densities ``(N,)`` in
            nats, or ``None`` if the density is unknown.
        validates: Indexes of the validation rows, int64 ``(n_validation,)``. These are training rows that are used only
            to choose between checkpoints.
        identity: Hashes that identify the content of the data, or ``None`` if the data were split by rows.
        known_again: Number of test rows that are equal to a training row.
        notes: Messages from the reader about what it did.
        how: Options used to read and split the data, or ``None``.
        rows: Position of each sample in the source, int64 ``(n_train + n_test,)``. The training samples come first.
            Positions are counted from 0, separately in each part if the source has a test part. ``None`` if each sample
            has its own file.
        files: The file of each sample. The training samples come first. Empty if samples do not have their own files.
        train_given, test_given: The condition of each sample, except its class, in data units.
        complete: A mask of the known values of the training samples, bool ``(n_train, *event)``, or ``None`` if all
            values are known. An unknown value is stored as the mean of its column, and has no weight in training. Test
            samples are always complete.
        unusual: Values that lie far outside the others of their column or channel, such as typing errors.
    """

    info: DataInfo
    codec: Codec
    train: Tensor | Stored
    test: Tensor | Stored
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    log_density: Callable[[Tensor], Tensor] | None = None
    validates: Tensor | None = None
    identity: Identity | None = None
    known_again: int = 0
    notes: tuple[str, ...] = ()
    how: How | None = None
    rows: Tensor | None = None
    files: tuple[Path, ...] = ()
    train_given: Condition = field(default_factory=Condition)
    test_given: Condition = field(default_factory=Condition)
    complete: Tensor | None = None
    unusual: tuple[Outliers, ...] = ()

    def described(self, known: CondInfo) -> Dataset:
        """Return a copy of the data set in which ``known`` describes the conditions of the samples.

        Word indices are converted to the vocabulary of ``known``.
        """
        train, test = (known.translated(given, self.info.known) for given in (self.train_given, self.test_given))
        return replace(self, info=replace(self.info, known=known), train_given=train, test_given=test)

    @property
    def filled(self) -> Tensor | Stored:
        """The training rows without unknown values, ``(n, *event)``, or all training rows if no row is complete.

        Rows that stay in their files have no unknown values, and are not read.
        """
        if self.complete is None:
            return self.train
        found = part(self.train, self.whole)
        return found if len(found) else self.train

    @property
    def trained(self) -> Tensor | Stored:
        """The training rows ``(n, *event)``, without the validation rows."""
        return part(self.train, self.trains)

    @property
    def trains(self) -> Tensor:
        """A boolean mask ``(n_train,)`` of the training rows that is false for validation rows."""
        mask = torch.ones(len(self.train), dtype=torch.bool)
        if self.validates is not None:
            mask[self.validates] = False
        return mask

    @property
    def whole(self) -> Tensor:
        """A boolean mask ``(n_train,)`` that is true for training rows in which every value is known."""
        if self.complete is None:
            return torch.ones(len(self.train), dtype=torch.bool)
        return self.complete.flatten(1).all(1)

    def every(self) -> tuple[Tensor | Stored, Tensor | None, Condition]:
        """Return all samples, training samples first, with their labels and conditions.

        Labels are left out if only the training samples or only the test samples have them. The same applies to each
        kind of condition.
        """
        theirs, ours = (
            (y, *(getattr(given, name) for name in (*SLOTS, "mask")))
            for y, given in ((self.train_labels, self.train_given), (self.test_labels, self.test_given))
        )
        y, label, vector, image, tokens, mask = (
            None if a is None or b is None else _joined(a, b) for a, b in zip(theirs, ours, strict=True)
        )
        return joined(self.train, self.test), y, Condition(label, vector, image, tokens, self.train_given.classes, mask)

    def origin(self, index: int) -> int | Path:
        """Return the file of a sample, or its position in the source if samples do not have their own files.

        Args:
            index: Index of the sample. Test samples are counted after the training samples.
        """
        if self.files:
            return self.files[index]
        return index if self.rows is None else int(self.rows[index])

    def told_as(self, known: CondInfo) -> Dataset:
        """Return the data set with the vocabulary and the standardisation of a trained model.

        Word indices are converted to this vocabulary.

        Args:
            known: The description of the conditions that is stored with the model.
        """
        theirs = self.info.known
        absent: dict[str, Any] = {} if theirs.vector else {"vector": (), "shift": (), "scale": ()}
        absent |= {} if theirs.image else {"image": ()}
        absent |= {} if theirs.words else {"words": ()}
        absent |= {} if theirs.features else {"features": 0}
        known = replace(known, **absent)  # fields for conditions that these data lack
        if theirs == known:
            return self
        both = [known.translated(given, theirs) for given in (self.train_given, self.test_given)]
        return replace(self, info=replace(self.info, known=known), train_given=both[0], test_given=both[1])

    def describe(self) -> str:
        """Describe the data in a few lines, including the split and the notes from the reader."""
        info = self.info
        lines = [info.describe()]
        if info.n_validation:
            kept = f"{info.n_validation} of the training samples {'is' if info.n_validation == 1 else 'are'}"
            lines.append(f"{kept} used only to choose between checkpoints")
        levels = self.codec.levels
        if isinstance(levels, Levels) and not levels.everywhere:
            whole = torch.as_tensor(levels.count).flatten() > 0
            named = [name for name, level in zip(self.info.names or range(len(whole)), whole, strict=True) if level]
            lines.append(f"integer columns, which are treated as levels: {', '.join(map(one_line, named[:20]))}")
        if absent := [name for name, n in zip(info.classes, info.trained, strict=False) if not n]:
            lines.append(f"classes without training samples: {', '.join(map(one_line, absent[:10]))}")
        if self.complete is not None:
            empty = int((~self.complete).sum())
            lines.append(f"empty values of the training samples, which have no weight in training: {empty:,}")
        if self.identity is not None:
            lines.append(f"test samples that equal a training sample: {self.known_again or 'none'}")
        return "\n".join([*lines, *self.notes])

    @classmethod
    @checked(seed=SEED, test_fraction=SHARE)
    def of(
        cls,
        train: Tensor | npt.ArrayLike,
        test: Tensor | npt.ArrayLike | None = None,
        *,
        classes: Tensor | npt.ArrayLike | None = None,
        test_classes: Tensor | npt.ArrayLike | None = None,
        given: Condition | None = None,
        test_given: Condition | None = None,
        text: Sequence[str] | None = None,
        test_text: Sequence[str] | None = None,
        name: str = "array",
        seed: int = 0,
        test_fraction: float = 0.1,
        layout: str = "auto",
        split: str = "content",
    ) -> Dataset:
        """Make a data set from arrays, in the same way as :func:`load_data` does from a file of arrays.

        Args:
            train: The training samples, or all samples if ``test`` is ``None``: ``(N, D)`` vectors, ``(N, C, L)``
                signals, ``(N, C, H, W)`` images or ``(N, C, D, H, W)`` volumes.
            test: The samples to hold out. By default, a fraction of ``train`` is held out.
            classes, test_classes: The class of each sample, as integers or strings, shape ``(N,)``.
            given, test_given: The condition of each sample, except its class, in data units: a ``vector``, an
                ``image``, or features of words as ``tokens``. The ``mask`` marks the real values of padded samples.
            text, test_text: A text about each sample.
            name: Name used in titles and folder names.
            seed, test_fraction, split: Options for the split (see :func:`load_data`).
            layout: Position of the channel axis: ``first``, ``last``, or ``auto`` to infer it from the shape.

        Raises:
            DataError: If an array cannot be used as data, labels or conditions.

        >>> data = Dataset.of(np.random.default_rng(0).normal(3.0, 2.0, (100, 2)))
        >>> data.info.kind, len(data.train), len(data.test)
        ('vector', 90, 10)
        """
        parts = {
            "x_train": train, "x_test": test, "y_train": classes, "y_test": test_classes,
            **_parts_of("train", given, text), **_parts_of("test", test_given, test_text),
        }  # fmt: skip
        arrays = {key: _array(value) for key, value in parts.items() if value is not None}
        x, held = arrays["x_train"], arrays.get("x_test")
        if held is not None and held.ndim == 1 < x.ndim and len(held) == len(x):
            raise UsageError("test must contain samples, not labels; pass the labels as the argument classes")
        reading = Reading(layout=layout, empty="keep", needs=("vector", "image", "text", "mask"))
        data = _build(raw_of(arrays, name, reading), name, ARRAY, How(seed, test_fraction, split, reading))
        return data.warned_of(name)

    def warned_of(self, source: str) -> Dataset:
        """Warn if there are unusual values, and return the data set. ``source`` is the origin of the data."""
        if self.unusual:
            first, count = self.unusual[0], sum(len(found.values) for found in self.unusual)
            told = str(first) if len(self.unusual) == 1 else (
                f"{count:,} values in {len(self.unusual)} columns are far outside the others of their column, such as "
                f"{first.short}; check for typing errors"
            )  # fmt: skip
            warnings.warn(Advice(f"{source}: {told}", parameter="look", value=source), stacklevel=4)
        return self


def joined(a: Tensor | Stored, b: Tensor | Stored) -> Tensor | Stored:
    """Return the rows of ``a: (n, *event)`` followed by those of ``b: (m, *event)``. Stored rows are not read."""
    if isinstance(a, Stored) and isinstance(b, Stored):
        return Joined((a, b))
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return torch.cat([a, b])


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """Join the rows of two tensors, padding shorter texts with -1 (word indices) or NaN (features of words)."""
    if a.ndim < 2 or a.shape[1:] == b.shape[1:] or a.shape[2:] != b.shape[2:]:
        return torch.cat([a, b])
    length, nothing = max(a.shape[1], b.shape[1]), torch.nan if a.is_floating_point() else -1
    return torch.cat(
        [torch.cat([v, v.new_full((len(v), length - v.shape[1], *v.shape[2:]), nothing)], 1) for v in (a, b)]
    )


def _parts_of(part: str, given: Condition | None, text: Sequence[str] | None) -> dict[str, Any]:
    """Return the conditions of one part of the data, named like the arrays of an ``.npz`` file."""
    known = given or Condition()
    if known.label is not None:
        raise UsageError("given contains labels; pass the class of each sample as the argument classes instead")
    if known.tokens is not None and text is not None:
        raise UsageError("given contains tokens, but text was also passed; pass only one of the two")
    return {
        f"c_{part}": known.vector, f"given_{part}": known.image,
        f"text_{part}": known.tokens if text is None else np.array(list(text), dtype=str),
        f"mask_{part}": known.mask,
    }  # fmt: skip


def _array(values: Tensor | npt.ArrayLike) -> npt.NDArray[Any]:
    """Convert a tensor, or anything that NumPy accepts, to an array."""
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
    """Load a data set, and warn if some values lie far outside the others.

    Args:
        spec: One of ``NAMES``, or the path to a file or folder. Write ``./digits`` for a file or folder called
            ``digits``, because ``digits`` is one of the names.
        seed: Seed for sampling toy distributions and for choosing test and validation samples.
        test_fraction: Fraction of the samples to hold out, in (0, 1). Ignored if the source has a test part.
        reading: Options for files that can be read in more than one way.
        split: How to choose the samples to hold out. With ``content``, the content of a sample determines whether it is
            held out, so that adding or reordering data never moves a sample between training and test. With ``rows``,
            the samples to hold out are chosen by a random permutation of the rows. All data sets in ``NAMES`` are split
            by rows, except ``captions``, which comes with a test part.

    Raises:
        DataError: If ``spec`` is neither a name nor a path, or if the data are unreadable or inconsistent.
        UsageError: If ``test_fraction`` is not between 0 and 1, or if ``reading`` has options for files but ``spec`` is
            one of ``NAMES``.
    """
    return loaded(spec, seed, test_fraction, reading, split).warned_of(spec)


@checked(seed=SEED, test_fraction=SHARE)
def loaded(spec: str, seed: int, test_fraction: float, reading: Reading, split: str = "content") -> Dataset:
    """Load a data set without a warning. The arguments are those of :func:`load_data`."""
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction must be between 0 and 1, got {test_fraction:g}; a typical value is 0.1")
    asked = [name for name in ("size", "fit", "layout", "on_bad") if getattr(reading, name) != getattr(AS_IS, name)]
    if spec in NAMES and asked:
        raise UsageError(
            f"{spec} is not read from a file, so {' and '.join(asked)} would have no effect; "
            f"omit {'it' if len(asked) == 1 else 'them'}"
        )
    if spec in TOYS:
        raw = Raw("vector", sample_toy(spec, TOY_POINTS, seed).numpy())
        return _build(raw, spec, spec, How(seed, test_fraction, "rows"))
    if spec in ("digits", "tinted"):
        raw = read_digits() if spec == "digits" else read_tinted()
        return _build(raw, spec, spec, How(seed, test_fraction, "rows"))
    if spec == "captions":
        return _build(_captions(), spec, spec, How(seed, test_fraction, "rows"))
    path = Path(os.path.expanduser(spec))
    if not spec or not there(path):
        beside = _names_in(path.parent) if spec else []
        near = difflib.get_close_matches(spec.lower(), NAMES, n=3)
        near += [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, beside, n=2)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DataError(
            f"there is no data set, file or folder called {spec!r}.{hint} The named data sets are "
            f"{', '.join(NAMES)}. The supported files and folders are {READABLE}"
        )
    name = os.path.basename(os.path.realpath(path))
    name = name if path.is_dir() else name.split(".")[0]
    how, place = How(seed, test_fraction, split, reading), pictures_place(path)
    stored = in_place(path, reading, place)
    return _build(read_path(path, reading, place) if stored is None else stored.raw, name, spec, how, stored)


def there(path: Path) -> bool:
    """Return whether ``path`` exists, or false if the path is invalid."""
    return os.path.exists(path)


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []


@checked(seed=SEED, test_fraction=SHARE)
def split(n: int, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``range(n)`` at random, with the given ``seed``, into training indexes and test indexes, both int64."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    n_test = max(1, round(test_fraction * n))
    return order[n_test:], order[:n_test]


def _captions() -> Raw:
    """Make the captioned pictures. By default, the data set ``digits`` holds out the digits in the test pictures."""
    digits = read_digits()
    return captioned(digits, *split(len(digits.train), 0.1, seed=0))


def _build(raw: Raw, name: str, source: str, how: How, stored: InPlace | None = None) -> Dataset:
    """Build a data set, and split its rows if the source has no test part.

    The samples are those in ``raw``, unless they stay in their files and are ``stored``.
    """
    raw, sources = _with_values(raw)
    units = units_of(raw, source, None if stored is None else stored.survey)
    if raw.test is not None and raw.test.shape[1:] != raw.train.shape[1:]:
        raise DataError(
            f"{source}: training samples have shape {raw.train.shape[1:]}, but test samples have shape "
            f"{raw.test.shape[1:]}; both parts must have the same shape"
        )
    n, y = len(raw.train), _label_tensor(raw.train_labels)
    parts = _by_content(raw, how) if how.split == "content" else None
    complete = None if raw.complete is None else torch.from_numpy(raw.complete)
    real = None if raw.train_known.mask is None else torch.from_numpy(np.array(raw.train_known.mask, np.bool_))
    if parts is not None:
        keep, test = torch.from_numpy(parts.train), torch.from_numpy(parts.test)
    elif raw.test is None:
        keep, test = split(n, how.test_fraction, how.seed)
    if complete is not None and raw.test is None:  # rows with empty cells are used only for training
        whole = complete.flatten(1).all(1)
        if not bool(whole[test].any()):
            some = bool(whole.any())
            what = f"values are missing in {int((~whole).sum()):,} of the {n:,} samples"
            raise DataError(
                f"{source}: {what}, and no complete sample is left to hold out; add complete samples, or "
                + ("hold out a larger fraction" if some else "leave out columns that are mostly empty"),
                parameter="test_fraction" if some else None,
                value=0.3 if some else None,
            )
        keep, test = torch.cat([keep, test[~whole[test]]]), test[whole[test]]
    if raw.test is not None:
        keep, test, test_y = torch.arange(n), torch.arange(len(raw.test)), _label_tensor(raw.test_labels)
    else:
        test_y, y = None if y is None else y[test], None if y is None else y[keep]
    x, test_x = _samples(raw, units.wide, keep, test, stored)
    test_y, notes = None if y is None else test_y, raw.notes
    if y is None and raw.test_labels is not None:
        notes = (*notes, "the labels of the test samples are ignored, because the training samples have none")
    validates = torch.empty(0, dtype=torch.int64) if parts is None else torch.from_numpy(parts.validates)
    if complete is not None:
        complete = complete[keep]
        validates = validates[complete.flatten(1).all(1)[validates]]
    known = raw.train_known.rows(keep.numpy())
    held = raw.test_known if raw.test is not None else raw.train_known.rows(test.numpy())
    given = CondInfo.of(known)
    if len(x) - len(validates) < 2 or len(test_x) < 1:
        raise DataError(
            f"{source} yields {len(x) - len(validates)} training and {len(test_x)} test samples, but at least 2 "
            "training samples and 1 test sample are needed; use more data or another test fraction",
            parameter="test_fraction",
            value=0.1 if len(x) < 2 else 0.3,
        )
    info = DataInfo(
        name=name,
        source=source,
        kind=raw.kind,
        shape=tuple(x.shape[1:]),
        low=units.low,
        high=units.high,
        levels=units.count,
        classes=() if y is None else raw.classes,
        n_train=len(x),
        n_test=len(test_x),
        channels_last=raw.channels_last,
        names=raw.names,
        wide=units.wide,
        n_validation=len(validates),
        known=given,
    )
    data = Dataset(
        info, units.codec(raw.kind, x, source, raw.names, _known_values(complete, real, keep),
                               None if stored is None else stored.about), x, test_x, y, test_y,
        DENSITIES.get(source), validates, None if parts is None else parts.identity,
        0 if parts is None else parts.known_again, notes, how,
        None if raw.hashes else _places(sources, keep, test, raw.test is None), _files(raw, keep, test),
        given.condition(known), given.condition(held), None if complete is None or bool(complete.all()) else complete,
        outliers_of(raw) if stored is None else stored.unusual,
    )  # fmt: skip
    if y is None:
        return data
    counts = torch.bincount(y[data.trains], minlength=len(raw.classes))
    return replace(data, info=replace(info, trained=tuple(counts.tolist())))


def _samples(
    raw: Raw, wide: bool, keep: Tensor, test: Tensor, stored: InPlace | None
) -> tuple[Tensor | Stored, Tensor | Stored]:
    """Return the training samples and the test samples, at the positions ``keep`` and ``test`` in the source."""
    if stored is not None:
        rows = stored.rows.widened(wide)
        return part(rows, keep), part(rows, test if raw.test is None else test + len(raw.train))
    x = tensor_of(raw.train, wide)
    return (x[keep], x[test]) if raw.test is None else (x, tensor_of(raw.test, wide))


def _with_values(raw: Raw) -> tuple[Raw, Array]:
    """Leave out training samples without any known value. Return the rest, and their positions, int64 ``(n,)``."""
    if raw.complete is None:
        return raw, np.arange(len(raw.train))
    there = np.asarray(raw.complete.reshape(len(raw.train), -1).any(1))
    index = np.flatnonzero(there)
    if len(index) in (0, len(there)):
        return raw, np.arange(len(there))
    lines = [raw.lines[i] for i in np.flatnonzero(~there)] if raw.lines else []
    rest = replace(
        raw, train=raw.train[index], complete=raw.complete[index], train_known=raw.train_known.rows(index),
        train_labels=None if raw.train_labels is None else raw.train_labels[index],
        lines=tuple(raw.lines[i] for i in index) if raw.lines else (),
        notes=(*raw.notes, left_out(len(there) - len(index), lines)),
    )  # fmt: skip
    return rest, index


def _places(sources: Array, train: Tensor, test: Tensor, own: bool) -> Tensor:
    """Return the position of each sample in the source. If ``own``, test samples are rows of the training part."""
    at = torch.from_numpy(sources)
    return torch.cat([at[train], at[test] if own else test])


def _known_values(complete: Tensor | None, real: Tensor | None, keep: Tensor) -> Tensor | None:
    """Return the mask of the values from which shifts and scales are computed, or ``None`` for all values."""
    if real is None:
        return complete
    return real[keep] if complete is None else complete & real[keep]


@dataclass(frozen=True)
class _Parts:
    """A split of the rows by content. ``validates`` contains positions in ``train``, not row indexes."""

    train: Array
    test: Array
    validates: Array
    identity: Identity
    known_again: int


def identified(raw: Raw) -> tuple[Identity, list[bytes]]:
    """Return the identity of the data, and the content hash of each row, with those of any test part at the end."""
    n, own_test = len(raw.train), 0 if raw.test is None else len(raw.test)
    # Hash NaN for an unknown value, because the mean that is stored in its place depends on the other rows.
    x = raw.train if raw.complete is None else np.where(raw.complete, raw.train.astype(np.float64), np.nan)
    rows = list(raw.keys) or contents(x, _names(raw.train_labels, raw.classes), raw.hashes[:n])
    if raw.test is not None and not raw.keys:
        rows += contents(raw.test, _names(raw.test_labels, raw.classes), raw.hashes[n:])
    large = _total(raw.files) > LARGE
    conditions = None
    if raw.train_known.some:
        conditions = told(rows[:n], raw.train_known) + (told(rows[n:], raw.test_known) if own_test else [])
    identity = replace(Identity.of(rows, own_test, conditions), files=ends(raw.files) if large else None)
    return identity, rows


def _total(files: Sequence[Path]) -> int:
    """Return the total size of files in bytes, or 0 for members of archives, which earlier versions did not read."""
    try:
        return sum(path.stat().st_size for path in files)
    except OSError:
        return 0


def _by_content(raw: Raw, how: How) -> _Parts:
    """Split the rows by equation 1 of :mod:`scoresde.data.content`, but keep any test part of the source."""
    n, own_test = len(raw.train), 0 if raw.test is None else len(raw.test)
    identity, rows = identified(raw)
    # Copies of an image are in the same part even if their classes differ.
    alike = contents(raw.train, None, raw.hashes[:n]) if raw.hashes else rows[:n]
    train, validates, test = held_out(
        alike, how.seed, how.test_fraction, copies_apart=not raw.hashes, test=not own_test
    )  # fmt: skip
    held = rows[n:] if own_test else [rows[i] for i in test]
    return _Parts(train, test, validates, identity, known_again([rows[i] for i in train], held))


def _files(raw: Raw, train: Tensor, test: Tensor) -> tuple[Path, ...]:
    """Return the file of each sample, training samples first, or ``()`` if samples have no files of their own."""
    if not raw.hashes:
        return ()
    first = 0 if raw.test is None else len(raw.train)
    return tuple(raw.files[i] for i in (*train.tolist(), *(test + first).tolist()))


def _names(y: Array | None, classes: tuple[str, ...]) -> list[str] | None:
    """Return the class name of each row, or ``None`` if there are no labels."""
    return None if y is None else [classes[i] for i in y]


def _label_tensor(y: Array | None) -> Tensor | None:
    return None if y is None else torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64))


def _positive(stored: Any) -> float | None:
    """Read an optional positive number."""
    if stored is None or 0 < float(stored) < math.inf:
        return None if stored is None else float(stored)
    raise ValueError(f"{stored!r} is not a finite positive number")


def _check_keys(what: str, stored: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(stored, Mapping):
        raise DataError(f"malformed {what}: expected a JSON object, got {type(stored).__name__}")
    missing, unknown = sorted(required - set(stored)), sorted(set(stored) - required - optional)
    if missing or unknown:
        raise DataError(
            f"malformed {what}: missing keys: {missing or 'none'}; unknown keys: {unknown or 'none'}. Was it "
            "written by a different version of scoresde?"
        )
