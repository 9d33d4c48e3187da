"""Readers: from a file or a folder to plain arrays, channels first, with nothing executed on the way.

A reader returns :class:`Raw`: the numbers as stored, their kind and their labels. What the numbers mean to a
model (range, levels, scaling, split) is decided in one place, :mod:`scoresde.data`. Files are not trusted:
pickled arrays are refused, only five image formats are opened, and whatever is wrong is reported with the
name of the file.

References:
    LeCun, Cortes and Burges, The MNIST database, for the IDX format.
    NumPy enhancement proposal 1, for ``.npy`` and ``.npz``.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "READABLE", "Raw", "raw_of", "read_digits", "read_path"]

Array = NDArray[Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
READABLE = (
    f"a folder of images ({', '.join(IMAGE_SUFFIXES)}), flat, with class folders, or with train/ and test/; "
    "a folder of IDX files (train-images-idx3-ubyte[.gz], ...) or one of them; a .npy or .npz file"
)
SPLITS = ("train", "test", "val", "valid")
# PIL's modes and what each is read as; 16-bit greys are handled apart.
MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
MODES |= {mode: "RGB" for mode in ("RGB", "RGBX", "CMYK", "YCbCr", "P")}

IDX_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class Raw:
    """What a reader found.

    Attributes:
        kind: ``"image"``, ``"signal"`` or ``"vector"``.
        train: All samples, or the training ones where the source has a split: ``(N, *event)``.
        test: The test samples where the source has a split, else None.
        train_labels: Class index of each sample, shape ``(N,)``, or None.
        test_labels: The same for ``test``.
        classes: Class names, in the order of the indexes.
        levels: Lowest value, highest value and number of levels where the format fixes them, else None.
        channels_last: The source had its channels last.
    """

    kind: str
    train: Array
    test: Array | None = None
    train_labels: Array | None = None
    test_labels: Array | None = None
    classes: tuple[str, ...] = ()
    levels: tuple[int, int, int] | None = None
    channels_last: bool = False


def read_path(path: Path) -> Raw:
    """Read the file or folder ``path`` in whichever of the known layouts it has."""
    try:
        if path.is_dir():
            files = {m[0]: m for p in path.iterdir() if (m := IDX_NAME.fullmatch(p.name))}
            return _read_idx_folder(path, files) if files else _read_image_folder(path)
        if path.suffix.lower() in (".npy", ".npz"):
            return _read_numpy(path)
        if "-ubyte" in path.name or _looks_like_idx(path):
            return _read_idx_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    raise DataError(f"{path}: not a kind of file that can be read. What can be read: {READABLE}")


def read_digits() -> Raw:
    """The 1,797 8x8 optical digits of UCI, 17 levels, shipped with the package: ``(1797, 1, 8, 8)`` uint8."""
    stored = resources.files("scoresde").joinpath("assets/digits.npz").read_bytes()
    with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    classes = tuple(str(i) for i in range(10))
    return Raw("image", images[:, None], train_labels=labels, classes=classes, levels=(0, 16, 17))


def _index_labels(path: Path | str, *parts: Array | None) -> tuple[list[Array | None], tuple[str, ...]]:
    """Replace label values by indexes into the sorted values found in all parts; return those as names."""
    found = [p for p in parts if p is not None]
    for p in found:
        if p.dtype.kind not in "biuU" and not (p.dtype.kind == "f" and np.array_equal(p, np.round(p))):
            raise DataError(
                f"{path}: labels are {p.dtype} and not class numbers or names: give integers or strings"
            )
    if not found:
        return list(parts), ()
    found = [p.astype(np.int64) if p.dtype.kind in "bf" else p for p in found]
    values = np.unique(np.concatenate(found))
    indexed = iter(np.searchsorted(values, p) for p in found)
    return [None if p is None else next(indexed) for p in parts], tuple(str(v) for v in values)


# IDX --------------------------------------------------------------------------------------------------------


def _open_idx(path: Path) -> IO[bytes] | gzip.GzipFile:
    """Open, decompressing when the content (whatever the name says) is gzip."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _looks_like_idx(path: Path) -> bool:
    try:
        with _open_idx(path) as file:
            return file.read(3) == b"\x00\x00\x08"
    except (OSError, EOFError, zlib.error):
        return False


def _read_idx(path: Path, ndim: int) -> Array:
    """Read an IDX file of unsigned bytes with ``ndim`` dimensions: magic, big-endian sizes, payload."""
    header_size = 4 + 4 * ndim
    try:
        with _open_idx(path) as file:
            header = file.read(header_size)
            if header[:4] != bytes([0, 0, 8, ndim]):
                what = {1: "labels", 3: "images"}[ndim]
                raise DataError(
                    f"{path}: not an IDX file of {what}: it starts with bytes "
                    f"{header[:4].hex(' ') or '(none)'}, "
                    f"expected 00 00 08 {ndim:02x} ({ndim} dimensions of unsigned bytes)"
                )
            if len(header) < header_size:
                raise DataError(f"{path}: truncated inside its header: download it again")
            shape = struct.unpack(f">{ndim}I", header[4:])
            payload = file.read(math.prod(shape) + 1)  # no more than promised, whatever a .gz unpacks to
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated gzip file ({error}): download it again") from error
    if len(payload) != math.prod(shape):
        raise DataError(
            f"{path}: the header promises {'x'.join(map(str, shape))} = {math.prod(shape)} bytes and "
            f"{'more' if len(payload) > math.prod(shape) else len(payload)} "
            f"follow: the file is truncated or damaged, download it again"
        )
    return np.frombuffer(bytearray(payload), np.uint8).reshape(shape)


def _read_idx_pair(images: Path, labels: Path | None) -> tuple[Array, Array | None]:
    x = _read_idx(images, 3)
    y = None if labels is None else _read_idx(labels, 1)
    if labels is not None and y is not None and len(y) != len(x):
        raise DataError(
            f"{labels}: {len(y)} labels for the {len(x)} images of {images}: files of two data sets?"
        )
    return x[:, None], y


def _read_idx_folder(folder: Path, names: dict[str, re.Match[str]]) -> Raw:
    # Sorted in reverse so that of a file and its .gz the plain one wins.
    found = sorted(names.items(), reverse=True)
    role = {(m[1].lower() != "train", m[2].lower()): folder / name for name, m in found}
    if (False, "images") not in role:
        raise DataError(f"{folder}: IDX files {sorted(names)} but no train-images-idx3-ubyte[.gz] among them")
    x, y = _read_idx_pair(role[False, "images"], role.get((False, "labels")))
    test_x, test_y = None, None
    if (True, "images") in role:
        test_x, test_y = _read_idx_pair(role[True, "images"], role.get((True, "labels")))
    (y, test_y), classes = _index_labels(folder, y, test_y)
    return Raw("image", x, test_x, y, test_y, classes)


def _read_idx_file(path: Path) -> Raw:
    name = path.name.removesuffix(".gz")
    partner = name.replace("images", "labels").replace("idx3", "idx1")
    beside = [p for p in (path.with_name(partner), path.with_name(partner + ".gz")) if p.is_file()]
    x, y = _read_idx_pair(path, beside[0] if beside and partner != name else None)
    (y,), classes = _index_labels(path, y)
    return Raw("image", x, train_labels=y, classes=classes)


# Folders of images ------------------------------------------------------------------------------------------


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _images_in(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def _classed(folder: Path) -> list[tuple[Path, str]]:
    """Every image of a split with the name of its class folder, or with "" where the folder is flat."""
    flat = [(p, "") for p in _images_in(folder)]
    inside = [(p, sub.name) for sub in _visible(folder) if sub.is_dir() for p in _images_in(sub)]
    if flat and inside:
        raise DataError(
            f"{folder}: images both directly in it ({flat[0][0].name}) and in class folders "
            f"({inside[0][1]}/): move the former into a class folder, or elsewhere"
        )
    if not (flat or inside):
        raise DataError(
            f"{folder}: no images in it nor in its folders; suffixes looked for: {', '.join(IMAGE_SUFFIXES)}"
        )
    # File names are often sorted by content: shuffle once, always the same way, so that the first rows are
    # a fair sample of the whole.
    rows = flat or inside
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def _read_image_folder(folder: Path) -> Raw:
    subfolders = {p.name.lower(): p for p in _visible(folder) if p.is_dir()}
    test: list[tuple[Path, str]] = []
    if "train" in subfolders:
        others = [p.name for name, p in subfolders.items() if name not in SPLITS and _images_in(p)]
        if others:
            raise DataError(
                f"{folder}: has train/, read as a split, beside folders of images {', '.join(others[:5])}: "
                "rename train/ if it is a class, or move the others"
            )
        train = _classed(subfolders["train"])
        held_out = next((subfolders[name] for name in SPLITS[1:] if name in subfolders), None)
        test = _classed(held_out) if held_out else []
    else:
        train = _classed(folder)
    classes = tuple(sorted({name for _, name in train if name}))
    index = {name: i for i, name in enumerate(classes)}
    strangers = sorted({name for _, name in test if classes and name and name not in index})
    if strangers:
        raise DataError(
            f"{folder}: classes in the test split that training lacks: {', '.join(strangers[:5])}"
        )
    x, n = _read_images([path for path, _ in train + test]), len(train)
    y = np.array([index[name] for _, name in train], np.int64) if classes else None
    labelled = bool(classes and test and test[0][1])
    test_y = np.array([index[name] for _, name in test], np.int64) if labelled else None
    levels = (0, 65535, 65536) if x.dtype == np.uint16 else None
    return Raw("image", x[:n], x[n:] if test else None, y, test_y, classes, levels)


def _read_images(paths: Sequence[Path]) -> Array:
    """Read images of one size into ``(N, C, H, W)``, promoting all to the least mode that holds every one."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{paths[0]}: reading images needs Pillow: pip install pillow") from error
    out = np.empty((0, 0, 0, 0), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for i, path in enumerate(paths):
            x = _read_image(path)
            if i == 0:
                out = np.empty((len(paths), *x.shape), x.dtype)
            if x.shape[1:] != out.shape[2:]:
                (h0, w0), (h, w) = out.shape[2:], x.shape[1:]
                raise DataError(
                    f"images of two sizes: {paths[0]} is {w0}x{h0}, {path} is {w}x{h} (width x height): "
                    "resize or crop all to one size first"
                )
            if x.dtype != out.dtype:
                raise DataError(
                    f"8-bit and 16-bit images together: {paths[0]} and {path}: convert them to one depth"
                )
            channels = _common(out.shape[1], len(x))
            if channels != out.shape[1]:
                grown = np.empty((len(paths), channels, *out.shape[2:]), out.dtype)
                grown[:i] = _promote(out[:i], channels)
                out = grown
            out[i] = _promote(x, channels)
    return out


def _common(a: int, b: int) -> int:
    """Channels that hold both: colour if either has colour, alpha if either has alpha."""
    return (3 if max(a, b) > 2 else 1) + (a % 2 == 0 or b % 2 == 0)


def _promote(x: Array, channels: int) -> Array:
    """Repeat grey into colour and append an opaque alpha as needed: ``(..., C, H, W)`` to ``channels``."""
    have = x.shape[-3]
    if have == channels:
        return x
    alpha = x[..., -1:, :, :] if have % 2 == 0 else np.full_like(x[..., :1, :, :], 255)
    colour = x[..., : have - (have % 2 == 0), :, :]
    colour = np.repeat(colour, 3, axis=-3) if channels > 2 and colour.shape[-3] == 1 else colour
    return np.concatenate([colour, alpha], axis=-3) if channels % 2 == 0 else colour


def _read_image(path: Path) -> Array:
    """Read one image as ``(C, H, W)``, uint8, or uint16 for a 16-bit grey."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            # A second picture in a JPEG (MPO) is a preview; in other formats it is data that would be lost.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            ImageOps.exif_transpose(image, in_place=True)
            mode = MODES.get(image.mode, image.mode)
            if image.mode == "P" and "transparency" in image.info:
                mode = "RGBA"
            x = np.asarray(image if mode == image.mode else image.convert(mode))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: refused as a possible decompression bomb: {error}") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise DataError(f"{path}: not a readable image ({error}): remove or replace the file") from error
    if frames > 1:
        raise DataError(f"{path}: holds {frames} frames: save each as a file of its own")
    if mode == "I" or mode.startswith("I;16"):
        if x.min() < 0 or x.max() > 65535:
            raise DataError(
                f"{path}: {x.min()} to {x.max()} is more than 16 bits: save the images as a .npy array"
            )
        return x.astype(np.uint16)[None]
    if mode not in MODES.values():
        raise DataError(
            f"{path}: pixels of mode {mode!r} are not read: convert to grey or RGB, or save as .npy"
        )
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


# NumPy files ------------------------------------------------------------------------------------------------


def _read_numpy(path: Path) -> Raw:
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
    return raw_of(arrays, path)


def raw_of(arrays: dict[str, Array], path: Path | str) -> Raw:
    """What arrays by name hold: the data, perhaps with labels and a split of their own; ``path`` is for messages."""
    label_keys = [k for k in ("y_train", "y", "labels", "label") if k in arrays]
    data_keys = [k for k in arrays if k not in (*label_keys, "y_test")]
    known = [k for k in ("x_train", "x", "images", "data") if k in arrays]
    if not known and len(data_keys) != 1:
        raise DataError(
            f"{path}: arrays {list(arrays)}: name the data x, images, data or x_train (with x_test)"
        )
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
    (train_y, test_y), classes = _index_labels(path, train_y, test_y)
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
        raise DataError(
            f"{where} has dtype {x.dtype}: real numbers are expected, convert with astype(np.float32)"
        )
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
    raise DataError(
        f"{where} has shape {x.shape}: 1 to 4 dimensions are read, (N, D), (N, C, L) or (N, C, H, W)"
    )


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
