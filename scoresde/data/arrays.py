"""Arrays by name, from a NumPy file or from memory: which one is the data, and which of its axes are the channels.

References:
    NumPy enhancement proposal 1, for ``.npy`` and ``.npz``.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from .raw import AS_IS, Array, Raw, Reading, index_labels

__all__ = ["raw_of", "read_numpy"]

COLOURS = (1, 3, 4)  # channels of a picture
SPACE = 8  # the least height and width of a picture whose channels are last


def read_numpy(path: Path, reading: Reading = AS_IS) -> Raw:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            one = isinstance(loaded, np.ndarray)
            arrays = {"x": loaded} if one else {key: loaded[key] for key in loaded.files}
        if not all(isinstance(a, np.ndarray) for a in arrays.values()):
            raise ValueError("it holds members that are no arrays")
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path}: holds Python objects (dtype=object, a pickle), which can run code and are never "
                "loaded: save plain numbers of one shape, np.save(file, np.stack(rows).astype(np.float32))"
            ) from error
        raise DataError(f"{path}: damaged or not a NumPy file ({error})") from error
    return raw_of(arrays, path, reading)


def raw_of(arrays: dict[str, Array], path: Path | str, reading: Reading = AS_IS) -> Raw:
    """What arrays by name hold: the data, perhaps with labels and a split of their own; ``path`` is for messages."""
    label_keys = [k for k in ("y_train", "y", "labels", "label") if k in arrays]
    data_keys = [k for k in arrays if k not in (*label_keys, "y_test")]
    known = [k for k in ("x_train", "x", "images", "data") if k in arrays]
    if not known and len(data_keys) != 1:
        raise DataError(f"{path}: arrays {list(arrays)}: name the data x, images, data or x_train (with x_test)")
    key = known[0] if known else data_keys[0]
    kind, channels_last = _layout(path, key, arrays[key], reading)
    train = _checked(path, key, arrays[key], kind, channels_last)
    train_y = _labels(path, label_keys[0], arrays, len(train)) if label_keys else None
    test, test_y = None, None
    if key == "x_train" and "x_test" in arrays:
        a, b = arrays["x_train"], arrays["x_test"]
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise DataError(
                f"{path}: x_train is {a.shape} {a.dtype}, x_test is {b.shape} {b.dtype}: both need one "
                "event shape and dtype"
            )
        test = _checked(path, "x_test", b, kind, channels_last)
        test_y = _labels(path, "y_test", arrays, len(test)) if "y_test" in arrays else None
    (train_y, test_y), classes = index_labels(path, train_y, test_y)
    return Raw(kind, train, test, train_y, test_y, classes, channels_last=channels_last)


def _labels(path: Path | str, key: str, arrays: dict[str, Array], n: int) -> Array:
    y = arrays[key]
    if y.shape not in ((n,), (n, 1)):
        raise DataError(f"{path}: array {key!r} of labels is {y.shape} for {n} samples: one label per sample")
    return y.reshape(n)


def _layout(path: Path | str, key: str, x: Array, reading: Reading) -> tuple[str, bool]:
    """Decide by rank, dtype and sizes what an array holds: its kind, and whether its channels are last.

    Channels first is the rule. They are last where the last axis has 1, 3 or 4 channels, as pictures have, and all
    others are at least :data:`SPACE` long; of a signal, where the last axis is at most 4 and the first at least 16.
    """
    where = f"{path}: array {key!r}"
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {x.dtype}: real numbers are expected, convert with astype(np.float32)")
    if x.ndim == 0 or x.size == 0:
        raise DataError(
            f"{where} is {'a single number' if x.ndim == 0 else f'empty, shape {x.shape}'}: (N, ...) needed"
        )
    if x.ndim > 5:
        raise DataError(
            f"{where} has shape {x.shape}: 1 to 5 dimensions are read, (N, D), (N, C, L), (N, C, H, W) or "
            "(N, C, D, H, W)"
        )
    if x.ndim < 3:
        return "vector", False
    event = x.shape[1:]
    if x.ndim == 3 and x.dtype.kind != "f" and reading.layout == "auto" and not _traces(event):
        return "image", False  # (N, H, W) of bytes or counts
    kind = {3: "signal", 4: "image", 5: "volume"}[x.ndim]
    if reading.layout != "auto":
        return kind, reading.layout == "last"
    if kind == "signal":
        last, either = event[1] <= 4 and event[0] >= 16, event[1] <= 4 < event[0] < 16
    else:
        coloured = event[-1] in COLOURS
        last = coloured and min(event[:-1]) >= SPACE
        either = coloured and not last and event[0] <= 4 and min(event[1:-1]) >= SPACE
    if either:
        raise DataError(
            f"{where} has events of shape {event}, whose channels could be the first axis or the last: say which",
            parameter="layout",
            value="first",
        )
    return kind, last


def _traces(event: tuple[int, ...]) -> bool:
    """Whether whole numbers of this shape are channels of a signal rather than a picture, which is not so thin."""
    return min(event) < SPACE and max(event) >= 16 and max(event) >= 4 * min(event)


def _checked(path: Path | str, key: str, x: Array, kind: str, channels_last: bool) -> Array:
    """Bring an array to ``(N, *event)``, channels first, of finite numbers."""
    if x.dtype.kind == "f":
        x = x.astype(np.float64 if x.dtype.itemsize > 4 else np.float32, copy=False)
        bad = ~np.isfinite(x)
        if bad.any():
            row = int(bad.reshape(len(x), -1).any(1).argmax())
            raise DataError(
                f"{path}: array {key!r} has {int(bad.sum())} values that are NaN or infinite, the first in row {row}: "
                "drop those rows or fill them in"
            )
    if x.ndim == 1:
        x = x[:, None]
    if kind == "image" and x.ndim == 3:
        x = x[:, None]
    return np.moveaxis(x, -1, 1) if channels_last else x
