"""Find the data, labels and conditions among named arrays, and determine which axis holds the channels.

References:
    NumPy enhancement proposal 1, for ``.npy`` and ``.npz``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.opened import read_arrays, reason
from ..core.text import one_line
from .raw import AS_IS, Array, Known, Raw, Reading, index_labels
from .rows import channels_first

__all__ = ["layout_of", "load_arrays", "raw_of", "read_numpy", "roles"]


# Recognised array names, ignoring case, for all samples or for one part of the data (training or test). np.savez calls
# unnamed arrays arr_0 and arr_1, and published samples often have these names.
ALL = ("x", "images", "image", "data", "samples", "features", "arr_0")
TRAIN = ("x_train", "train_x", "train_images", "train_data", "train")
TEST = ("x_test", "test_x", "test_images", "test_data", "test")
LABELS = ("y", "labels", "label", "class", "target", "targets", "arr_1")
TRAIN_LABELS = ("y_train", "train_y", "train_labels")
TEST_LABELS = ("y_test", "test_y", "test_labels")
# The name of the array that holds each kind of condition. If the data come in two parts, the names of their arrays end
# in _train and _test.
KNOWN = {"vector": "c", "image": "given", "text": "text"}
MASK = "mask"  # the array that marks the real values of padded samples, which is read only if a run needs it
CLASSES = 100  # floats with integer values count as classes if there are at most this many distinct values

COLOURS = (1, 3, 4)  # possible numbers of channels of an image
SPACE = 8  # smallest height and width of an image whose channels are last


def read_numpy(path: Path, reading: Reading = AS_IS) -> Raw:
    arrays, notes = _without_targets(path, load_arrays(path))
    left_out = [key for key in arrays if key not in _used(path, arrays, reading)]
    if left_out:
        notes.append(f"the arrays {', '.join(left_out)} are left out" if left_out[1:] else
                     f"the array {left_out[0]} is left out")  # fmt: skip
    raw = raw_of(arrays, path, reading)
    return replace(raw, notes=(*notes, *raw.notes))


def _used(path: Path, arrays: Mapping[str, Array], reading: Reading) -> list[str]:
    """Return the names of the arrays that are used. A mask is used only if the run needs it."""
    found = roles(path, arrays)
    return [key for role, key in found.items() if MASK in reading.needs or not role.startswith(MASK)]


def load_arrays(path: Path) -> dict[str, Array]:
    """Load the arrays of a NumPy file, keyed by name. The array of an ``.npy`` file is called ``x``.

    Raises:
        DataError: If the file is not a NumPy file, is damaged, is too large or contains pickled objects.
    """
    try:
        return read_arrays(path)
    except ValueError as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path} contains pickled Python objects (dtype=object), which can execute code and are never "
                "loaded; save plain numbers in one array, for example np.save(file, np.stack(rows).astype(np.float32))"
            ) from error
        raise DataError(
            f"{path} is damaged or is not a NumPy file ({error}); save it again with np.save or np.savez"
        ) from error
    except (OSError, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error


def roles(path: Path | str, arrays: Mapping[str, Array]) -> dict[str, str]:
    """Determine which arrays contain the data, the labels and the conditions.

    Returns:
        A mapping from roles to array names. The roles are ``x`` (the data, always present), ``y`` (the labels), and
        ``c``, ``given`` and ``text`` (the conditions). The roles of test arrays end in ``_test``.

    Raises:
        DataError: If two arrays could have the same role, or if it is unclear which array contains the data.
    """

    def named(*tables: tuple[str, ...]) -> list[str]:
        return [key for key in arrays if any(key.lower() in table for table in tables)]

    found = {
        "x": named(ALL, TRAIN), "y": named(LABELS, TRAIN_LABELS), "x_test": named(TEST), "y_test": named(TEST_LABELS)
    }  # fmt: skip
    names = (*KNOWN.values(), MASK)
    told = {name: named((name, f"{name}_train", f"train_{name}")) for name in names}
    told |= {f"{name}_test": named((f"{name}_test", f"test_{name}")) for name in names}
    if not found["x"]:
        known = {key for keys in (*found.values(), *told.values()) for key in keys}
        found["x"] = [key for key in arrays if key not in known] or [k for keys in told.values() for k in keys]
        told = {role: [key for key in keys if key not in found["x"]] for role, keys in told.items()}
        if len(found["x"]) != 1:
            all_of = ", ".join(map(one_line, arrays)) or "none"
            raise DataError(
                f"{path}: it is unclear which array holds the data (arrays found: {all_of}); name the array of samples "
                "x, images or data, or use the names x_train and x_test"
            )
    if found["y"] == ["arr_1"] and _is_data(arrays["arr_1"], arrays[found["x"][0]]):
        found["x"] += found.pop("y")
    found |= told
    for role, keys in found.items():
        if len(keys) > 1:
            what = "labels" if "y" in role else "conditions" if role in told else "data"
            raise DataError(
                f"{path}: it is unclear which of {' and '.join(keys)} holds the {what}; save only one of them, or "
                "rename them to end in _train and _test"
            )
    chosen = {role: keys[0] for role, keys in found.items() if keys}
    if "x_test" in chosen and chosen["x"].lower() not in TRAIN:
        raise DataError(
            f"{path} has both {chosen['x']} and {chosen['x_test']}; if {chosen['x']} holds only the training data, "
            f"rename it to x_train; if it holds all data, remove {chosen['x_test']}"
        )
    return chosen


def _is_data(second: Array, first: Array) -> bool:
    """Return whether the second of two unnamed arrays contains data rather than labels."""
    return second.ndim > 1 and second.shape[1:] != (1,) and second.ndim == first.ndim


def _without_targets(path: Path, arrays: dict[str, Array]) -> tuple[dict[str, Array], list[str]]:
    """Drop all labels if some are numbers rather than classes. Return the remaining arrays and the notes."""
    found = roles(path, arrays)
    keys = [found[role] for role in ("y", "y_test") if role in found]
    if not any(arrays[key].dtype.kind == "f" and not _are_classes(arrays[key]) for key in keys):
        return arrays, []
    said = f"{' and '.join(keys)} {'hold' if keys[1:] else 'holds'} numbers, not classes"
    note = f"{said}; such labels are left out (to model these numbers as well, add them to the columns of the data)"
    return {key: a for key, a in arrays.items() if key not in keys}, [note]


def _are_classes(y: Array) -> bool:
    """Return whether an array contains one integer per sample, with few distinct values."""
    if y.ndim == 0 or y.shape not in ((len(y),), (len(y), 1)) or not np.array_equal(y, np.rint(y)):
        return False
    return len(np.unique(y)) <= min(CLASSES, max(2, len(y) / 2))


def raw_of(arrays: dict[str, Array], path: Path | str, reading: Reading = AS_IS) -> Raw:
    """Build a :class:`Raw` from named arrays, which may include labels, conditions and a test part.

    ``path`` is used only in messages.
    """
    found = roles(path, arrays)
    key = found["x"]
    arrays, masks = _padded(path, found, arrays) if MASK in reading.needs else (arrays, (None, None))
    kind, channels_last = layout_of(path, key, arrays[key], reading)
    train, complete = _filled(arrays[key]) if reading.empty == "keep" else (arrays[key], None)
    train = _checked(path, key, train, kind, channels_last)
    if complete is not None:
        complete = channels_first(complete, kind, channels_last)
    train_y = _labels(path, found["y"], arrays, len(train)) if "y" in found else None
    test, test_y = None, None
    if "x_test" in found:
        a, b = arrays[key], arrays[found["x_test"]]
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise DataError(
                f"{path}: {key} has shape {a.shape} and dtype {a.dtype}, but {found['x_test']} has shape {b.shape} and "
                f"dtype {b.dtype}; samples in both arrays must have the same shape and dtype"
            )
        test = _checked(path, found["x_test"], b, kind, channels_last)
        test_y = _labels(path, found["y_test"], arrays, len(test)) if "y_test" in found else None
    (train_y, test_y), classes = index_labels(path, train_y, test_y)
    known, notes = _known(path, found, arrays, train, test, channels_last, reading)
    shaped = [None if mask is None else channels_first(mask, kind, channels_last) for mask in masks]
    known = replace(known[0], mask=shaped[0]), replace(known[1], mask=shaped[1])
    return Raw(
        kind, train, test, train_y, test_y, classes, channels_last=channels_last, notes=notes, complete=complete,
        train_known=known[0], test_known=known[1],
    )  # fmt: skip


def _padded(
    path: Path | str, found: Mapping[str, str], arrays: dict[str, Array]
) -> tuple[dict[str, Array], tuple[Array | None, Array | None]]:
    """Set the padded values of the samples to 0.

    Also return the masks of the real values of the training samples and of the test samples, with the shape of the
    samples, or None without a mask.
    """
    masks: list[Array | None] = []
    arrays = dict(arrays)
    for part in ("", "_test"):
        if f"mask{part}" not in found:
            masks.append(None)
            continue
        key, x = found[f"mask{part}"], arrays[found[f"x{part}"]] if f"x{part}" in found else None
        mask = arrays[key]
        if x is None or mask.ndim == 0 or mask.ndim > x.ndim or mask.shape != x.shape[: mask.ndim]:
            theirs = () if x is None else x.shape
            raise DataError(
                f"{path}: array {key!r} has shape {mask.shape}, but the samples have shape {theirs}; a mask has one "
                "value for each value of a sample, or for each of its first axes, such as (N, n) for samples (N, n, d)"
            )
        if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
            raise DataError(f"{path}: array {key!r} must contain only true and false, or 1 and 0")
        whole = np.broadcast_to(mask.astype(np.bool_).reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)), x.shape)
        masks.append(whole)
        arrays[found[f"x{part}"]] = np.where(whole, x, np.zeros_like(x))
    if "x_test" in found and (masks[0] is None) != (masks[1] is None):
        raise DataError(f"{path}: only one of the two parts of the data has a mask; add mask_train and mask_test")
    return arrays, (masks[0], masks[1])


def _filled(x: Array) -> tuple[Array, Array | None]:
    """Replace each NaN with the mean of its column, and also return a mask of the values that were not NaN."""
    if x.dtype.kind != "f" or x.ndim == 0 or not np.isnan(x).any():
        return x, None
    known, finite = ~np.isnan(x), np.isfinite(x)
    total = np.where(finite, x, 0).sum(0, dtype=np.float64)
    mean = total / np.maximum(finite.sum(0), 1)
    return np.where(known, x, mean.astype(x.dtype)), known


def _known(
    path: Path | str,
    found: Mapping[str, str],
    arrays: Mapping[str, Array],
    train: Array,
    test: Array | None,
    channels_last: bool,
    reading: Reading,
) -> tuple[tuple[Known, Known], tuple[str, ...]]:
    """Return the conditions of the training samples and of the test samples, and notes on unused arrays."""
    parts = {"": train} if test is None else {"": train, "_test": test}
    values: list[dict[str, Array]] = [{}, {}]
    notes = []
    for role, name in KNOWN.items():
        keys = [found[name + part] for part in parts if name + part in found]
        if not keys:
            continue
        try:
            if len(keys) < len(parts):
                have, lack = ("training", "test") if name in found else ("test", "training")
                raise DataError(f"{path}: array {keys[0]!r} describes only the {have} samples; add an array for the "
                                f"{lack} samples")  # fmt: skip
            made = []
            for key, x in zip(keys, parts.values(), strict=True):
                value = arrays[key]
                if value.ndim == 0 or len(value) != len(x):
                    raise DataError(
                        f"{path}: array {key!r} has shape {value.shape}, but there are {len(x)} samples; it must have "
                        "one row per sample"
                    )
                made.append(_MAKE[role](f"{path}: array {key!r}", value, x.shape[1:], channels_last, reading))
            several = 2 if made[0][0] == "features" else 1  # texts may differ in length
            if made[1:] and (made[0][0] != made[1][0] or made[0][1].shape[several:] != made[1][1].shape[several:]):
                raise DataError(
                    f"{path}: array {keys[0]!r} has shape {arrays[keys[0]].shape}, but {keys[1]!r} has shape "
                    f"{arrays[keys[1]].shape}; the shapes may differ only in the number of samples"
                )
        except DataError as error:
            if role in reading.needs:
                raise
            listed = " and ".join(keys)
            said = str(error).removeprefix(f"{path}: ")
            notes.append(f"{listed} {'are' if keys[1:] else 'is'} not used as a condition: {said}")
            continue
        for store, (field, value) in zip(values, made, strict=False):
            store[field] = value
    train_known, test_known = (
        Known(v.get("vector"), (), v.get("image"), v.get("text"), v.get("features")) for v in values
    )
    return (train_known, test_known), tuple(notes)


def _numbers(where: str, c: Array, *_: object) -> tuple[str, Array]:
    """Return ``"vector"`` and the numbers of each sample as a float64 array ``(N, K)``."""
    if c.dtype.kind not in "biuf" or c.ndim > 2 or c.shape[1:] == (0,):
        raise DataError(f"{where} has dtype {c.dtype} and shape {c.shape}; it must hold numbers and have shape (N, K)")
    if np.isinf(c).any():
        raise DataError(f"{where} has infinite values; replace them, or use NaN for values that are unknown")
    return "vector", c.reshape(len(c), -1).astype(np.float64)


def _picture(where: str, x: Array, event: tuple[int, ...], channels_last: bool, reading: Reading) -> tuple[str, Array]:
    """Return ``"image"`` and the pictures, channels first. ``event`` is the shape of a sample."""
    ndim = len(event) + 1
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {x.dtype}, but must hold numbers")
    if x.dtype.kind == "f":
        if np.isinf(x).any():
            raise DataError(f"{where} has infinite values; replace them, or use NaN for values that are unknown")
        if x.size and np.isnan(x).all():
            raise DataError(f"{where} contains only NaN; fill in values, or leave the array out")
    if not x.size:
        raise DataError(f"{where} is empty (shape {x.shape}); leave the array out")
    if x.ndim == ndim - 1 and ndim > 2:
        x = x[:, None]  # pictures without a channel axis
    elif x.ndim == ndim > 2:
        last = channels_last or reading.layout == "last"
        if reading.layout == "auto":
            # A picture usually has the proportions of the sample.
            alike = [_proportional(x.shape[2:], event[1:]), _proportional(x.shape[1:-1], event[1:])]
            last = alike[1] if alike[0] != alike[1] else last
        x = np.moveaxis(x, -1, 1) if last else x
    if x.ndim != ndim:
        raise DataError(f"{where} has shape {x.shape}, but must have {ndim} axes, like the array of samples")
    return "image", x


def _proportional(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Return whether two spatial shapes have the same proportions."""
    return all(m * b[0] == n * a[0] for m, n in zip(a, b, strict=True))


def _texts(where: str, text: Array, *_: object) -> tuple[str, Array]:
    """Return ``"text"`` and the texts ``(N,)``, or ``"features"`` and the features of words ``(N, L, E)``."""
    if text.dtype.kind == "f" and text.ndim == 3 and text.size:
        if np.isinf(text).any():
            raise DataError(f"{where} has infinite values; write NaN where there is no word")
        return "features", text
    if text.dtype.kind != "U" or text.ndim != 1:
        raise DataError(
            f"{where} has dtype {text.dtype} and shape {text.shape}; it must hold strings and have shape (N,), or "
            "hold features of words and have shape (N, L, E)"
        )
    if not any(map(str.strip, text.tolist())):
        raise DataError(f"{where} has only empty texts; add texts, or leave the array out")
    return "text", text


_MAKE: Mapping[str, Callable[..., tuple[str, Array]]] = {"vector": _numbers, "image": _picture, "text": _texts}


def _labels(path: Path | str, key: str, arrays: dict[str, Array], n: int) -> Array:
    y = arrays[key]
    if y.shape not in ((n,), (n, 1)):
        raise DataError(
            f"{path}: label array {key!r} has shape {y.shape} for {n} samples; there must be one label per sample"
        )
    return y.reshape(n)


def layout_of(path: Path | str, key: str, x: Array, reading: Reading) -> tuple[str, bool]:
    """Return the kind of data in an array, and whether the channels are last."""
    where = f"{path}: array {key!r}"
    if x.dtype.kind not in "biuf":
        raise DataError(
            f"{where} has dtype {x.dtype}, but must hold real numbers; convert it, for example with .astype(np.float32)"
        )
    if x.ndim == 0 or x.size == 0:
        raise DataError(
            f"{where} is {'a single number' if x.ndim == 0 else f'empty (shape {x.shape})'}; it must have "
            "shape (N, ...) and hold at least one sample"
        )
    if x.ndim > 5:
        raise DataError(
            f"{where} has shape {x.shape}; arrays must have 1 to 5 dimensions, such as (N, D), (N, C, L), "
            "(N, C, H, W) or (N, C, D, H, W)"
        )
    if x.ndim < 3:
        return "vector", False
    event = x.shape[1:]
    if x.ndim == 3 and x.dtype.kind != "f" and not _traces(event):
        return "image", False  # (N, H, W) of bytes or counts, without a channel axis
    kind = {3: "signal", 4: "image", 5: "volume"}[x.ndim]
    if reading.layout != "auto":
        return kind, reading.layout == "last"
    # The channels are first, unless the last axis is short and the other axes are long. If both layouts are plausible,
    # reject the shape.
    if kind == "signal":
        last, either = event[1] <= 4 and event[0] >= 16, event[1] <= 4 < event[0] < 16
    else:
        coloured = event[-1] in COLOURS
        last = coloured and min(event[:-1]) >= SPACE
        either = coloured and not last and event[0] <= 4 and min(event[1:-1]) >= SPACE
    if either:
        raise DataError(
            f"{where} has samples of shape {event}, in which the first or the last axis could hold the channels; "
            "specify the layout",
            parameter="layout",
            value="first",
        )
    return kind, last


def _traces(event: tuple[int, ...]) -> bool:
    """Return whether an integer event is so long and narrow that it is probably a signal, not an image."""
    return min(event) < SPACE and max(event) >= 16 and max(event) >= 4 * min(event)


def _checked(path: Path | str, key: str, x: Array, kind: str, channels_last: bool) -> Array:
    """Check that all values are finite, and return the array as ``(N, *event)`` with channels first."""
    if x.dtype.kind == "f":
        x = x.astype(np.float64 if x.dtype.itemsize > 4 else np.float32, copy=False)
        bad = ~np.isfinite(x)
        if bad.any():
            row = int(bad.reshape(len(x), -1).any(1).argmax())
            raise DataError(
                f"{path}: array {key!r} has {int(bad.sum())} NaN or infinite value{'s' if bad.sum() > 1 else ''}, "
                f"the first in row {row}, counted from 0; drop such rows or fill in the values"
            )
    return channels_first(x, kind, channels_last)
