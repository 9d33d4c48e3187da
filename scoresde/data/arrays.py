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
    kind, channels_last = _layout(path, key, arrays[key])
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


def _layout(path: Path | str, key: str, x: Array) -> tuple[str, bool]:
    """Decide by rank, dtype and sizes what an array holds: its kind, and whether its channels are last."""
    where = f"{path}: array {key!r}"
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {x.dtype}: real numbers are expected, convert with astype(np.float32)")
    if x.ndim == 0 or x.size == 0:
        raise DataError(
            f"{where} is {'a single number' if x.ndim == 0 else f'empty, shape {x.shape}'}: (N, ...) needed"
        )
    if x.ndim in (1, 2):
        return "vector", False
    if x.ndim == 3:
        if x.dtype.kind != "f":
            return "image", False
        return "signal", x.shape[2] < x.shape[1] and x.shape[2] <= 16
    if x.ndim == 4:
        return "image", x.shape[3] <= 4 < x.shape[1]
    raise DataError(f"{where} has shape {x.shape}: 1 to 4 dimensions are read, (N, D), (N, C, L) or (N, C, H, W)")


def _checked(path: Path | str, key: str, x: Array, kind: str, channels_last: bool) -> Array:
    """Bring an array to ``(N, *event)``, channels first, floats as finite float32."""
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=False)
        bad = ~np.isfinite(x)
        if bad.any():
            row = int(bad.reshape(len(x), -1).any(1).argmax())
            raise DataError(
                f"{path}: array {key!r} has {int(bad.sum())} values that are NaN or infinite (in float32), "
                f"the first in row {row}: drop those rows or fill them in"
            )
    if x.ndim == 1:
        x = x[:, None]
    if kind == "image" and x.ndim == 3:
        x = x[:, None]
    return np.moveaxis(x, -1, 1) if channels_last else x
