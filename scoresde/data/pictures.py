"""Read image files of many kinds into one array, or report every problem that prevents this.

Every file is read before anything is rejected, so that all problems are reported at once. Files are not trusted: only
five image formats are opened, and every problem is reported with the name of the file. A file is rejected if decoding
would round its values.

Images of different kinds are converted to a common pixel format, which has colour if any image has colour, and an alpha
channel if any image has transparent parts. A fully opaque alpha channel carries no information and is dropped.

References:
    PNG (third edition, W3C 2025), 5.3 to 5.6 and 11.2.1, for the checksums and the header.
"""

from __future__ import annotations

import io
import json
import math
import struct
import warnings
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataError, Problem, Problems
from ..core.opened import parse_json, read_bytes, reason
from ..core.shared import Shared
from ..core.text import one_line
from .arrays import load_arrays
from .folders import GIVEN, SMALL, TEXTS, Classed, Found, find_pictures, some
from .places import Folder, Place
from .raw import AS_IS, Array, Known, Raw, Reading, zeros

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Store", "decode", "mask_from_file", "read_image_folder", "read_pictures"]

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
# PIL's modes and the mode that each is converted to; 16-bit greys are handled separately.
MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
MODES |= {mode: "RGB" for mode in ("RGB", "RGBX", "CMYK", "YCbCr", "P")}
KEYED = {"1": "LA", "L": "LA", "RGB": "RGBA", "P": "RGBA"}  # converted to this if some colours are transparent
ORIENTATION = 0x0112  # an EXIF tag; UPRIGHT maps its value to the operation that turns an image upright
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
TURNED = [UPRIGHT[value] for value in (5, 6, 7, 8)]  # operations that swap width and height
BITS = 258  # the TIFF tag for bits per sample
NAMED = 20  # maximum number of files that a message names for each kind of fault
SUGGESTED = (32, 16, 8)  # suggested image sizes; networks for these sizes can be trained without a GPU
# Possible faults of a file: the text for one file, the text for several, and the remedy.
FAULTS = {
    "unreadable": (
        "is not a readable image", "are not readable images",
        "replace or remove every such file",
    ),
    "frames": (
        "has several frames", "have several frames",
        "save each frame as a separate file, or remove every such file",
    ),
    "deep": (
        "has colours of more than 8 bits", "have colours of more than 8 bits",
        "save such images with 8 bits, or save all images in one .npy array, or remove every such file",
    ),
    "mode": (
        "has an unsupported pixel format", "have an unsupported pixel format",
        "convert such images to grey or RGB, or save all images in one .npy array, or remove every such file",
    ),
}  # fmt: skip
# A function of the files, of a function that makes arrays, and of a function that says whether arrays are as expected,
# that returns remembered arrays or makes them.
Store = Callable[[list[Path], Callable[[], dict[str, Array]], Callable[[Mapping[str, Array]], bool]], dict[str, Array]]
# First bytes of files that often have the suffix of an image but are something else.
BEGINNINGS = {
    b"GIF8": "a GIF", b"%PDF": "a PDF", b"%!PS": "PostScript", b"PK": "a ZIP archive", b"\x1f\x8b": "a gzip file",
    b"<": "HTML, XML or SVG", b"8BPS": "a Photoshop file", b"\x93NUMPY": "a NumPy file",
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL": "JPEG XL", b"\0\0\0\x0cjP": "JPEG 2000",
}  # fmt: skip


def read_image_folder(folder: Path | Place, reading: Reading = AS_IS, store: Store | None = None) -> Raw:
    """Read the images in and below a folder or an archive.

    Args:
        folder: The folder or the archive.
        reading: Options for reading the files.
        store: A function that returns remembered facts about the images, or makes them. If it is given, the pixels are
            not kept, and the samples of the result have the right shape and dtype but are all 0.

    Raises:
        Problems: If the images cannot be read. The error lists every problem.
    """
    place = folder if isinstance(folder, Place) else Folder(folder)
    folder, found = place.path, find_pictures(place, reading.older)
    files = found.train + found.test
    pile = _Pile(place, [path for path, _ in files], reading, keep=store is None)
    if store is None:
        pile.read()
    else:
        pile.recall(store)
    kept = pile.kept
    n = bisect_left(kept, len(found.train))
    train, test = [files[i] for i in kept[:n]], [files[i] for i in kept[n:]]
    classes = tuple(sorted({name for _, name in train if name}))
    strangers = sorted({name for _, name in test if classes and name and name not in classes})
    problems = [*found.problems, *pile.problems()]
    if kept and not train:
        problems.append(Problem("none of the training images can be read"))
    elif strangers:
        problems.append(
            Problem(
                f"the test split has classes that the training split lacks: {some(strangers, 5)}; add training "
                "images of these classes, or remove their test images"
            )
        )
    known, faults, left_out = _known(found, [path for path, _ in (*train, *test)], place, reading, store is None)
    problems += faults
    if problems:
        raise Problems(folder, problems, found.notes)
    x = pile.pixels
    advice = []
    if 0 < len(pile.holes) < len(kept):
        advice.append(
            "a model of these images also draws the alpha channel, and every image given to it needs one (if it has "
            "none, an opaque one is added); to avoid this, remove the alpha channel from "
            + some(sorted(map(pile.name, pile.holes)), NAMED)
        )
    levels = (0, 65535, 65536) if x.dtype == np.uint16 else None
    return Raw(
        "image", x[:n], x[n:] if test else None, _indexes(train, classes), _indexes(test, classes), classes, levels,
        hashes=tuple(pile.hashes[i] for i in kept), files=tuple(files[i][0] for i in kept),
        notes=(*found.notes, *pile.notes(), *advice, *left_out, *_copies(pile, train + test)),
        train_known=known.rows(np.arange(n)), test_known=known.rows(np.arange(n, len(kept))),
    )  # fmt: skip


def _known(
    found: Found, paths: Sequence[Path], place: Place, reading: Reading, keep: bool
) -> tuple[Known, list[Problem], tuple[str, ...]]:
    """Return the conditions of the images, the problems, and notes on conditions that are left out."""
    if not paths:
        return Known(), [], ()
    image, text, notes, folder = None, None, [], place.path
    faults: dict[str, list[Problem]] = {"image": [], "text": []}
    if found.given:
        without = [path.relative_to(folder).as_posix() for path in paths if path not in found.given]
        if without:
            faults["image"].append(
                Problem(
                    f"{_number(len(without))} {'has' if len(without) == 1 else 'have'} no image in {GIVEN}/ "
                    f"({some(without)}); add the missing images to {GIVEN}/, or remove the images that have none"
                )
            )
        elif not keep:
            faults["image"].append(
                Problem("the images are too large to be read into memory, but conditions must be; use smaller images")
            )
        else:
            pile = _Pile(place, [found.given[path] for path in paths], replace(reading, on_bad="stop"))
            pile.read()
            # Skipping a file here would leave a sample without its condition.
            faults["image"] = [
                Problem(p.message, {name: value for name, value in p.answers.items() if name != "on_bad"})
                for p in pile.problems()
            ]
            image = None if faults["image"] else pile.pixels
    if found.texts:
        texts = []
        for path in paths:
            try:
                texts.append(" ".join(_text(place, found.texts.get(path)).split()))
            except (OSError, ValueError) as error:
                file = found.texts[path].relative_to(folder).as_posix()
                faults["text"].append(Problem(f"{file} cannot be read: {reason(error)}"))
        if not any(texts) and not faults["text"]:
            faults["text"].append(
                Problem("the .txt files next to the images are empty; add texts, or remove the files")
            )
        text = None if faults["text"] else np.array(texts, dtype=str)
    problems = []
    for name, several in faults.items():
        if name in reading.needs:
            problems += several
        elif several:
            what = f"the images in {GIVEN}/" if name == "image" else "the texts next to the images"
            more = f" (and {len(several) - 1} more problem{'s' * (len(several) > 2)})" if several[1:] else ""
            notes.append(f"{what} are not used as a condition: {several[0].message}{more}")
    return Known(image=image, text=text), problems, tuple(notes)


def _text(place: Place, file: Path | None) -> str:
    """Return the text in a file next to an image, which may be JSON, or "" if there is no file."""
    if file is None:
        return ""
    data = place.read(file, SMALL)
    if file.suffix.lower() != ".json":
        return data.decode("utf-8-sig")
    found = parse_json(data)
    return next(str(found[key]) for key in TEXTS if isinstance(found.get(key), str))


def read_pictures(
    folder: Path, paths: Sequence[Path], reading: Reading = AS_IS, advice: str = "", alpha: bool | None = None
) -> tuple[Array, tuple[int, int], tuple[str, ...]]:
    """Read the images at ``paths``, in that order.

    Args:
        folder: The folder to which file names in messages are relative.
        paths: The files.
        reading: Options for reading the files.
        advice: What to do about images of different sizes, for callers that offer no ``size``.
        alpha: Whether the pixels have an alpha channel. If true, images without transparent parts get an opaque one. If
            false, images with transparent parts are composited on white. With ``None``, there is an alpha channel if
            any image has transparent parts.

    Returns:
        The pixels ``(N, C, H, W)``, uint8 or uint16, the smallest width and height of the images before resizing, and
        notes on what was converted, one sentence each.

    Raises:
        Problems: If an image cannot be read, or if the images differ in size or bit depth.
    """
    pile = _Pile(Folder(folder), paths, reading, advice, alpha)
    pile.read()
    if problems := pile.problems():
        raise Problems(folder, problems)
    widths, heights = zip(*pile.main.sizes, strict=True)
    return pile.pixels, (min(widths), min(heights)), tuple(pile.notes())


def mask_from_file(path: str) -> Tensor:
    """Read a mask from an image or from the first array of a NumPy file.

    A value is missing where the image is closer to white than to black, or where the array is not zero.

    Returns:
        A boolean mask that is true where values are known. Its shape is ``(1, H, W)`` for an image, and that of the
        array for a NumPy file.

    Raises:
        DataError: If the file cannot be read.
    """
    file = Path(path)
    if file.suffix.lower() in (".npy", ".npz"):
        arrays = load_arrays(file)
        return torch.from_numpy(np.asarray(next(iter(arrays.values())) == 0))
    try:
        pixels = _decoded(read_bytes(file), AS_IS).pixels
    except (OSError, MemoryError) as error:
        raise DataError(f"the mask {path} cannot be read: {reason(error)}") from error
    except _Fault as error:
        what = FAULTS[error.kind][0] + (f" ({error})" if str(error) else "")
        raise DataError(f"the mask {path} {what}; save it as an 8-bit black-and-white image") from error
    half = (65535 if pixels.dtype == np.uint16 else 255) / 2
    colours = pixels[:1] if len(pixels) < 3 else pixels[:3]
    return torch.from_numpy(colours.mean(0, keepdims=True) < half)


def decode(data: bytes, reading: Reading = AS_IS, channels: int = 0) -> Array:
    """Decode the bytes of an image file to pixels ``(C, H, W)``, uint8 or uint16.

    Args:
        data: The bytes.
        reading: Options for reading the file.
        channels: Number of channels of the result: grey becomes colour, and an opaque alpha channel is added. With 0,
            the image keeps its own channels.

    Raises:
        ValueError: If the bytes are not an image that can be used. The message says why.
    """
    try:
        x = _decoded(data, reading).pixels
    except _Fault as error:
        raise ValueError(FAULTS[error.kind][0] + (f" ({error})" if str(error) else "")) from error
    if channels in (0, len(x)):
        return x
    if _common(channels, len(x)) != channels:
        raise ValueError(f"has {len(x)} channels, but there should be {channels}")
    out = np.empty((channels, *x.shape[1:]), x.dtype)
    _promote(x, out)
    return out


def _indexes(rows: Classed, classes: tuple[str, ...]) -> Array | None:
    """Return the class index of each row, or ``None`` if there are no rows or no classes."""
    if not (rows and classes and rows[0][1]):
        return None
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for _, name in rows], np.int64)


def _copies(pile: _Pile, rows: Classed) -> list[str]:
    """Return a note on files that have identical bytes, or an empty list if all files differ."""
    first: dict[bytes, int] = {}
    copies: list[tuple[int, int]] = []
    apart = 0
    for row, i in enumerate(pile.kept):
        of = first.setdefault(pile.hashes[i], row)
        if of != row:
            copies.append((i, pile.kept[of]))
            ours, theirs = rows[row][1], rows[of][1]
            apart += bool(ours and theirs and ours != theirs)
    if not copies:
        return []
    classes = f"; copies in another class: {apart:,}" if apart else ""
    named = some([f"{pile.name(i)} (copy of {pile.name(of)})" for i, of in copies[:3]], of=len(copies))
    has = "has" if len(copies) == 1 else "have"
    return [f"{_number(len(copies))} {has} the same bytes as another image: {named}{classes}"]


# ------------------------------------------------------------------------------------------------------------ one file


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


_NO_BOMBS = Shared(_bombs_are_errors)


class _Fault(Exception):
    """The error for a file that cannot be used. Its ``kind`` is a key of :data:`FAULTS`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class _Picture:
    """A decoded image.

    Attributes:
        size: Width and height of the upright image before resizing.
        pixels: Pixels ``(C, H, W)``, uint8, or uint16 for a 16-bit grey image.
        opaque: Whether a fully opaque alpha channel was dropped.
        clear: Whether the image has transparent parts.
    """

    size: tuple[int, int]
    pixels: Array
    opaque: bool
    clear: bool


def _decoded(data: bytes, reading: Reading, on_white: bool = False) -> _Picture:
    """Decode the bytes of an image file. With ``on_white``, composite an image with transparent parts on white."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return _picture(image, data, reading, on_white)
    except _Fault:
        raise
    except UnidentifiedImageError as error:
        raise _Fault("unreadable", _what(data)) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _Fault("unreadable", f"a possible decompression bomb: {error}") from error
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise _Fault("unreadable", f"{error}".partition("\n")[0] or type(error).__name__) from error


def _picture(image: Image.Image, data: bytes, reading: Reading, on_white: bool) -> _Picture:
    from PIL import Image as Images

    # A second image in a JPEG (MPO) is a preview; in other formats it is data that would be lost.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise _Fault("frames", f"{frames} frames")
    if image.format == "PNG" and not reading.older:
        _check_sums(data)
    sixteen = image.mode == "I" or image.mode.startswith("I;16")
    if not (sixteen or reading.older) and image.mode != "F" and _bits(image, data) > 8:
        raise _Fault("deep", "")
    width, height = image.size
    if width * height > (Images.MAX_IMAGE_PIXELS or math.inf):  # Pillow only warns of less than twice as many
        raise _Fault("unreadable", f"a possible decompression bomb: {width * height:,} pixels")
    part = (float(width), float(height))  # the rest, to the right and below, is padding of the decoder
    if reading.size:  # a JPEG can be decoded at a half, a quarter or an eighth of its size
        drafted = image.draft(None, (2 * reading.size, 2 * reading.size))
        part = part if drafted is None else drafted[1][2:]
    image.load()  # turns a TIFF upright, and removes the tag
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    opaque = False
    if sixteen:
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise _Fault(
                "mode", f"the values range from {levels.min()} to {levels.max()}, which does not fit in 16 bits"
            )
        image = Images.fromarray(levels.astype(np.uint16))
    else:
        mode = MODES.get(image.mode)
        if "transparency" in image.info and (image.mode == "P" or not reading.older):
            mode = KEYED.get(image.mode, mode)
        if mode is None:
            raise _Fault("mode", "floating-point numbers" if image.mode == "F" else f"mode {image.mode}")
        image = image if mode == image.mode else image.convert(mode)
        if mode.endswith("A") and not reading.older and image.getchannel("A").getextrema() == (255, 255):
            image, opaque = image.convert(mode.removesuffix("A")), True
    clear = image.mode in ("LA", "RGBA")
    if clear and on_white:  # before resizing, so that borders stay black and hidden colours do not spread
        white = Images.new("RGBA", image.size, "white")
        image = Images.alpha_composite(white, image.convert("RGBA")).convert(image.mode.removesuffix("A"))
    if reading.size and (reading.fit or width == height):
        image = _squared(image, part, reading.size, reading.fit)
    if turn is not None:
        image = image.transpose(Images.Transpose[turn])
    x = np.asarray(image)
    size = (height, width) if turn in TURNED else (width, height)
    return _Picture(size, x[None] if x.ndim == 2 else x.transpose(2, 0, 1), opaque, clear)


def _squared(image: Image.Image, part: tuple[float, float], side: int, fit: str) -> Image.Image:
    """Resize the upper left ``part`` (width, height) of an image to a square of ``side`` x ``side`` pixels."""
    from PIL import Image as Images

    width, height = part
    box = (0.0, 0.0, width, height)
    inner = (side, side)
    if fit == "crop":
        left, top = max(0, width - height) / 2, max(0, height - width) / 2
        box = (left, top, width - left, height - top)
    elif fit == "pad":
        scale = side / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk = image.resize(inner, Images.Resampling.LANCZOS, box)
    if inner == (side, side):
        return shrunk
    square = Images.new(image.mode, (side, side))  # black, and transparent where the image has an alpha channel
    square.paste(shrunk, ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the number of bits per channel in the file."""
    # Pillow does not report this number, and reduces colours to 8 bits.
    if image.format == "PNG":
        return data[24]  # in the header, after width and height
    stored = getattr(image, "tag_v2", {}).get(BITS, 8)
    return max(stored) if isinstance(stored, tuple) else int(stored)


def _check_sums(data: bytes) -> None:
    """Verify the checksum of each chunk of a PNG file."""
    # Pillow does not verify the chunks that contain the pixels.
    at = 8
    while True:
        head = data[at : at + 8]
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        end = at + 8 + length
        if not kind or end + 4 > len(data):
            raise _Fault("unreadable", "the file is truncated")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _Fault("unreadable", f"wrong checksum in chunk {kind.decode('ascii', 'replace')}")
        if kind == b"IEND":
            return
        at = end + 4


def _what(data: bytes) -> str:
    """Guess the type of a file that is not a supported image."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or a video"
    known = [what for beginning, what in BEGINNINGS.items() if data.startswith(beginning)]
    start = data[:64]
    text = all(byte >= 32 or byte in b"\t\n\r" for byte in start) and start.isascii()
    return known[0] if known else "text" if text else f"not in any of the formats {', '.join(IMAGE_FORMATS)}"


# ----------------------------------------------------------------------------------------------------------- all files


class _Stack:
    """All images of one bit depth, in one array with enough channels for every image.

    Attributes:
        at: File index of each image.
        sizes: File indexes, keyed by width and height.
        shapes: Height and width of the pixels of the images.
        channels: Number of images, keyed by number of channels.
        pixels: Pixels ``(room, C, H, W)``, of which the first ``len(at)`` rows are in use, or ``None`` if not kept.
        short: Size in bytes of the array if it did not fit in memory, else 0.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.at: list[int] = []
        self.sizes: dict[tuple[int, int], list[int]] = {}
        self.channels: Counter[int] = Counter()
        self.shapes: set[tuple[int, int]] = set()
        self.pixels: Array | None = None
        self.short = 0

    def add(self, file: int, picture: _Picture, keep: bool) -> None:
        """Count an image and store its pixels. If ``keep`` is false or sizes differ, discard all stored pixels."""
        x, row = picture.pixels, len(self.at)
        self.at.append(file)
        self.sizes.setdefault(picture.size, []).append(file)
        self.channels[len(x)] += 1
        self.shapes.add((x.shape[1], x.shape[2]))
        if keep and row == 0:
            self.pixels = self._room(x.shape, x.dtype)
        if self.pixels is None or not keep or x.shape[1:] != self.pixels.shape[2:]:
            self.pixels = None
            return
        channels = _common(self.pixels.shape[1], len(x))
        if channels != self.pixels.shape[1]:
            grown = self._room((channels, *x.shape[1:]), x.dtype)
            if grown is not None:
                _promote(self.pixels[:row], grown[:row])
            self.pixels = grown
        if self.pixels is not None:
            _promote(x, self.pixels[row])

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of the pixels, if all images have the same."""
        return self.shapes.copy().pop()

    def _room(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array | None:
        try:
            return np.empty((self.room, *shape), dtype)
        except MemoryError:
            self.short = self.room * int(np.prod(shape)) * dtype.itemsize
            return None


def _common(a: int, b: int) -> int:
    """Return the number of channels needed to store both ``a``-channel and ``b``-channel images."""
    return (3 if max(a, b) > 2 else 1) + (a % 2 == 0 or b % 2 == 0)


def _promote(x: Array, out: Array) -> None:
    """Copy images ``(..., C, H, W)`` to ``out``, converting grey to RGB and adding opaque alpha where needed."""
    have, want = x.shape[-3], out.shape[-3]
    if have == want:
        out[...] = x
        return
    alpha = want % 2 == 0
    out[..., : want - alpha, :, :] = x[..., : have - (have % 2 == 0), :, :]
    if alpha:
        out[..., -1:, :, :] = x[..., -1:, :, :] if have % 2 == 0 else np.iinfo(x.dtype).max


class _Pile:
    """Image files to read, in the order of the rows. File names in messages are relative to the path of ``place``.

    ``alpha`` says whether the rows have an alpha channel, as in :func:`read_pictures`. The pixels are kept only if
    ``keep`` is true.
    """

    def __init__(
        self, place: Place, paths: Sequence[Path], reading: Reading, advice: str = "", alpha: bool | None = None,
        keep: bool = True,
    ) -> None:  # fmt: skip
        self.place, self.paths, self.reading, self.advice, self.alpha = place, paths, reading, advice, alpha
        self.folder, self.keep = place.path, keep
        self.recalled: Mapping[str, Array] = {}
        self.hashes: list[bytes] = []
        self.faults: dict[str, list[tuple[int, str]]] = {}
        self.depths = {8: _Stack(len(paths)), 16: _Stack(len(paths))}
        self.opaque = 0
        self.clear: list[int] = []

    def read(self) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise DataError(
                f"{self.folder}: reading images requires Pillow; install it with pip install pillow"
            ) from error
        side, stop = self.reading.size, self.reading.on_bad == "stop"
        with _NO_BOMBS:
            for i, path in enumerate(self.paths):
                data = b""
                try:
                    data = self.place.read(path)
                    picture = _decoded(data, self.reading, self.alpha is False)
                    fits = not side or picture.pixels.shape[1:] == (side, side)
                    # Allocate no memory for a folder that will be rejected.
                    self.depths[8 * picture.pixels.itemsize].add(
                        i, picture, keep=self.keep and fits and not (stop and self.faults)
                    )
                    self.opaque += picture.opaque
                    self.clear += [i] * picture.clear
                except _Fault as fault:
                    self.faults.setdefault(fault.kind, []).append((i, str(fault)))
                except (OSError, MemoryError) as error:
                    self.faults.setdefault("unreadable", []).append((i, reason(error)))
                self.hashes.append(blake2b(data, digest_size=8).digest())

    def recall(self, store: Store) -> None:
        """Read all files to learn about them without keeping their pixels, unless this is remembered."""

        def made() -> dict[str, Array]:
            self.read()
            if problems := self.problems():
                raise Problems(self.folder, problems, self.notes())
            return {
                "hashes": np.frombuffer(b"".join(self.hashes), np.uint8).reshape(-1, 8),
                "kept": np.array(self.kept, np.int64), "holes": np.array(self.holes, np.int64),
                "event": np.array([self.channels, *self.main.side]), "deep": np.array(self.main is self.depths[16]),
                "notes": np.array(json.dumps(self.notes())),
            }  # fmt: skip

        self.recalled = store([*self.paths], made, self._fits)
        self.hashes = [bytes(one) for one in self.recalled["hashes"]]

    def _fits(self, found: Mapping[str, Array]) -> bool:
        """Return whether arrays have the names, shapes and dtypes of those that :meth:`recall` remembers."""
        shapes = {name: (x.ndim, x.dtype.kind) for name, x in found.items()}
        return shapes == {
            "hashes": (2, "u"), "kept": (1, "i"), "holes": (1, "i"), "event": (1, "i"), "deep": (0, "b"),
            "notes": (0, "U"),
        } and found["hashes"].shape == (len(self.paths), 8)  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- results

    @property
    def main(self) -> _Stack:
        """The images with the more common bit depth."""
        return self.depths[16 if len(self.depths[16].at) > len(self.depths[8].at) else 8]

    @property
    def kept(self) -> list[int]:
        """Indexes of the files that become rows."""
        return list(map(int, self.recalled["kept"])) if self.recalled else self.main.at

    @property
    def channels(self) -> int:
        """Number of channels of the rows."""
        found = reduce(_common, self.main.channels)
        return found + (bool(self.alpha) and found % 2)

    @property
    def pixels(self) -> Array:
        """The rows, ``(N, C, H, W)``, or zeros that take no memory if the pixels were not kept."""
        if self.recalled:
            dtype = np.uint16 if self.recalled["deep"] else np.uint8
            return zeros(len(self.kept), tuple(self.recalled["event"].tolist()), np.dtype(dtype))
        assert self.main.pixels is not None
        x = self.main.pixels[: len(self.main.at)]
        if self.alpha and x.shape[1] % 2:
            x = np.empty((len(x), x.shape[1] + 1, *x.shape[2:]), x.dtype)
            _promote(self.main.pixels[: len(x)], x)
        return x

    @property
    def holes(self) -> list[int]:
        """Indexes of the rows' files that have transparent parts."""
        if self.recalled:
            return list(map(int, self.recalled["holes"]))
        kept = set(self.kept)
        return [i for i in self.clear if i in kept]

    def name(self, file: int) -> str:
        return one_line(self.paths[file].relative_to(self.folder).as_posix())

    # -------------------------------------------------------------------------------------------------------- messages

    def problems(self) -> list[Problem]:
        """Return the problems that prevent the images from becoming rows of one array."""
        if self.reading.on_bad == "skip":
            if self.paths and not self.kept:
                why = ". ".join(self._left_out())
                return [Problem(f"there are no readable images. {why}")]
            return self._shapes([self.main])
        found = [f"{text}; {FAULTS[kind][2]}" for kind, text in self._faulty()]
        eight, sixteen = (self.depths[bits].at for bits in (8, 16))
        if eight and sixteen:
            rarer = eight if len(eight) < len(sixteen) else sixteen
            found.append(
                f"there are both 8-bit and 16-bit images ({len(eight):,} and {len(sixteen):,}; of the rarer kind: "
                f"{self._named(rarer)}); all images must have the same levels, so convert them to one bit depth, or "
                "leave out the rarer kind"
            )
        return [*(Problem(text, {"on_bad": "skip"}) for text in found), *self._shapes(list(self.depths.values()))]

    def notes(self) -> list[str]:
        """Return notes on the images that were changed or left out."""
        if self.recalled:
            return list(map(str, json.loads(str(self.recalled["notes"]))))
        found = [f"left out: {text}" for text in self._left_out()]
        grey, colour = (sum(self.main.channels[c] for c in channels) for channels in ((1, 2), (3, 4)))
        if grey and colour:
            found.append(f"{grey:,} grey and {colour:,} colour images, which are all read as colour")
        holes = self.holes
        solid = sorted(set(self.kept).difference(holes))
        if holes and self.alpha is False:
            found.append(
                f"{_number(len(holes))} with transparent parts ({self._named(holes)}), composited on white, because no "
                "alpha channel is needed"
            )
        elif solid and self.alpha:
            found.append(f"{_number(len(solid))} without transparent parts ({self._named(solid)}), used with an opaque "
                         "alpha channel")  # fmt: skip
        elif holes and solid:
            found.append(
                f"{_number(len(holes))} with transparent parts ({self._named(holes)}), so the last channel is alpha, "
                "which is opaque in the other images"
            )
        elif holes:
            found.append(f"{_number(len(holes))} with transparent parts, so the last channel is alpha")
        elif self.opaque:
            found.append(f"{_number(self.opaque)} with a fully opaque alpha channel, which is dropped")
        side = self.reading.size
        other = {size: len(files) for size, files in self.main.sizes.items() if size != (side, side)}
        if side and other:
            grown = sum(n for (w, h), n in other.items() if min(w, h) < side)
            how = f" ({self.reading.fit})" if self.reading.fit else ""
            smaller = f", including {grown:,} with a shorter side of less than {side} pixels" if grown else ""
            found.append(f"{_number(sum(other.values()))} resized to {side}x{side}{how}{smaller}")
        return found

    def _faulty(self) -> list[tuple[str, str]]:
        """Return each kind of fault that occurs, with a sentence about the affected files."""
        found = []
        for kind, (one, several, _) in FAULTS.items():
            files = self.faults.get(kind, [])
            if files:
                named = some(sorted(f"{self.name(i)}{f' ({reason})' * bool(reason)}" for i, reason in files), NAMED)
                is_so = one if len(files) == 1 else several
                found.append((kind, f"{len(files):,} of {len(self.paths):,} files {is_so}: {named}"))
        return found

    def _left_out(self) -> list[str]:
        """Return a sentence for each kind of file that is left out."""
        rarer = [(bits, stack.at) for bits, stack in self.depths.items() if stack is not self.main and stack.at]
        depth = [f"{_number(len(at))} with {bits} bits per channel: {self._named(at)}" for bits, at in rarer]
        return [*(text for _, text in self._faulty()), *depth]

    def _shapes(self, stacks: Sequence[_Stack]) -> list[Problem]:
        """Return the problems with the sizes of the images and with the memory that they need."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for stack in stacks:
            for size, files in stack.sizes.items():
                sizes.setdefault(size, []).extend(files)
        apart = {size: files for size, files in sizes.items() if size[0] != size[1]}
        fit = {"fit": "crop"} if apart else {}
        missing = sum(stack.short for stack in stacks)
        much = f"reading {_number(len(self.kept))} would need {missing / 1e9:,.1f} GB, more memory than is available"
        if self.reading.size:
            if not apart or self.reading.fit:
                return [Problem(f"{much}; choose a smaller size")] if missing else []
            count = sum(map(len, apart.values()))
            text = f"{_number(count)} {'is' if count == 1 else 'are'} not square: {self._sized(apart)}"
            return [Problem(f"{text}; choose whether to crop, pad or stretch images that are not square", fit)]
        shorts = sorted(min(size) for size, files in sizes.items() for _ in files)
        short = shorts[len(shorts) // 4] if shorts else 0  # three quarters of the images are at least this large
        answers = {"size": next((side for side in SUGGESTED if side <= short), SUGGESTED[-1]), **fit}
        how = ", and whether to crop, pad or stretch images that are not square" if apart else ""
        if len(sizes) > 1:
            widths, heights = zip(*sizes, strict=True)
            span = f"{min(widths)} to {max(widths)} pixels wide and {min(heights)} to {max(heights)} pixels high"
            text = f"the images have {len(sizes):,} different sizes, {span}: {self._sized(sizes)}"
            if self.advice:
                return [Problem(f"{text}; {self.advice}")]
            return [Problem(f"{text}; resize the files, or choose one size for all images{how}", answers)]
        if missing:
            return [Problem(f"{much}; choose a smaller size{how}", answers)]
        return []

    def _named(self, files: Sequence[int]) -> str:
        return some(sorted(self.name(i) for i in files))

    def _sized(self, sizes: Mapping[tuple[int, int], Sequence[int]]) -> str:
        """Summarise files by size, with the number of files and one name: ``40x30 (12: a.jpg), 5x4 (3: b.png)``."""
        most_first = sorted(sizes.items(), key=lambda of: -len(of[1]))
        return some([f"{w}x{h} ({len(at):,}: {min(map(self.name, at))})" for (w, h), at in most_first], 5)


def _number(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"
