"""Folders of pictures, each split or class a folder of its own.

Files are not trusted: only five image formats are opened, and whatever is wrong is reported with the name of the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from .raw import AS_IS, Array, Raw, Reading

__all__ = ["IMAGE_SUFFIXES", "read_image_folder"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SPLITS = ("train", "test", "val", "valid")
# PIL's modes and what each is read as; 16-bit greys are handled apart.
MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
MODES |= {mode: "RGB" for mode in ("RGB", "RGBX", "CMYK", "YCbCr", "P")}


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


def read_image_folder(folder: Path, reading: Reading = AS_IS) -> Raw:
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
        raise DataError(f"{folder}: classes in the test split that training lacks: {', '.join(strangers[:5])}")
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
                raise DataError(f"8-bit and 16-bit images together: {paths[0]} and {path}: convert them to one depth")
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
            raise DataError(f"{path}: {x.min()} to {x.max()} is more than 16 bits: save the images as a .npy array")
        return x.astype(np.uint16)[None]
    if mode not in MODES.values():
        raise DataError(f"{path}: pixels of mode {mode!r} are not read: convert to grey or RGB, or save as .npy")
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
