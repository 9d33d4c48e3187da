"""Pictures: from files of many kinds to one array, or all that keeps them from being one.

Every file is read before anything is refused, so that all problems are known at once. Files are not trusted: only five
image formats are opened, and whatever is wrong is reported with the name of the file. Nothing is rounded: where a
decoder would, the file is refused.

Of pictures of several kinds the least that holds them all is made: colour if one has colour, and an alpha channel if
one is transparent anywhere. An alpha channel that is opaque throughout says nothing and is dropped.

References:
    PNG (third edition, W3C 2025), 5.3 to 5.6 and 11.2.1, for the checksums and the header.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import DataError, Problem, Problems
from ..core.opened import read_bytes, reason
from ..core.shared import Shared
from ..core.text import one_line
from .folders import Classed, find_pictures, some
from .raw import AS_IS, Array, Raw, Reading

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_image_folder"]

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
# PIL's modes and what each is read as; 16-bit greys are handled apart.
MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
MODES |= {mode: "RGB" for mode in ("RGB", "RGBX", "CMYK", "YCbCr", "P")}
KEYED = {"1": "LA", "L": "LA", "RGB": "RGBA", "P": "RGBA"}  # with one colour, or some of a palette, transparent
ORIENTATION = 0x0112  # a tag of EXIF, and what puts a picture upright by its value
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
TURNED = [UPRIGHT[value] for value in (5, 6, 7, 8)]  # width and height are exchanged
BITS = 258  # the tag of TIFF
NAMED = 20  # files with a fault that are named
SUGGESTED = (32, 16, 8)  # sides of pictures whose networks train without a GPU
# What may be wrong with a file: of one, of several, and what to do.
FAULTS = {
    "unreadable": (
        "is not a readable image", "are not readable images",
        "replace such files, or leave them out",
    ),
    "frames": (
        "holds several frames", "hold several frames",
        "save each frame as a file of its own, or leave such files out",
    ),
    "deep": (
        "has colours of more than 8 bits", "have colours of more than 8 bits",
        "save such pictures with 8 bits, or all in a .npy array, or leave them out",
    ),
    "mode": (
        "has pixels of a kind that is not read", "have pixels of a kind that is not read",
        "convert such pictures to grey or RGB, or save all in a .npy array, or leave them out",
    ),
}  # fmt: skip
# How files begin that are often met under another suffix.
BEGINNINGS = {
    b"GIF8": "a GIF", b"%PDF": "a PDF", b"%!PS": "PostScript", b"PK": "a ZIP archive", b"\x1f\x8b": "a gzip file",
    b"<": "HTML, XML or SVG", b"8BPS": "a Photoshop file", b"\x93NUMPY": "a NumPy file",
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL": "JPEG XL", b"\0\0\0\x0cjP": "JPEG 2000",
}  # fmt: skip


def read_image_folder(folder: Path, reading: Reading = AS_IS) -> Raw:
    """Read the pictures in and below a folder.

    Raises:
        Problems: With all that keeps the folder from being read so.
    """
    found = find_pictures(folder, reading.older)
    files = found.train + found.test
    pile = _Pile(folder, [path for path, _ in files], reading)
    pile.read()
    kept = pile.kept
    n = bisect_left(kept, len(found.train))
    train, test = [files[i] for i in kept[:n]], [files[i] for i in kept[n:]]
    classes = tuple(sorted({name for _, name in train if name}))
    strangers = sorted({name for _, name in test if classes and name and name not in classes})
    problems = [*found.problems, *pile.problems()]
    if kept and not train:
        problems.append(Problem("none of the training pictures can be read"))
    elif strangers:
        problems.append(Problem(f"classes in the test split that training lacks: {some(strangers, 5)}"))
    if problems:
        raise Problems(folder, problems, found.notes)
    x = pile.pixels
    levels = (0, 65535, 65536) if x.dtype == np.uint16 else None
    return Raw(
        "image", x[:n], x[n:] if test else None, _indexes(train, classes), _indexes(test, classes), classes, levels,
        hashes=tuple(pile.hashes[i] for i in kept), files=tuple(files[i][0] for i in kept),
        notes=(*found.notes, *pile.notes(), *_copies(pile, train + test)),
    )  # fmt: skip


def _indexes(rows: Classed, classes: tuple[str, ...]) -> Array | None:
    """The class of each row by its number; ``None`` if there are none, or none of these."""
    if not (rows and classes and rows[0][1]):
        return None
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for _, name in rows], np.int64)


def _copies(pile: _Pile, rows: Classed) -> list[str]:
    """What is to be said of files that are equal byte for byte."""
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
    classes = f"; {apart:,} of them in another class" if apart else ""
    named = some([f"{pile.name(i)} of {pile.name(of)}" for i, of in copies[:3]], of=len(copies))
    return [f"{_number(len(copies))} with the same bytes as another: {named}{classes}"]


# ------------------------------------------------------------------------------------------------------------ one file


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


_NO_BOMBS = Shared(_bombs_are_errors)


class _Fault(Exception):
    """A file that cannot be used: the kind of its fault, and the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class _Picture:
    """A picture as it is shown.

    Attributes:
        size: Its width and height in the file, upright.
        pixels: ``(C, H, W)``, uint8, or uint16 for a 16-bit grey.
        opaque: An alpha channel without a hole was dropped.
    """

    size: tuple[int, int]
    pixels: Array
    opaque: bool


def _decoded(data: bytes, reading: Reading) -> _Picture:
    """The picture in the bytes of a file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return _picture(image, data, reading)
    except _Fault:
        raise
    except UnidentifiedImageError as error:
        raise _Fault("unreadable", _what(data)) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _Fault("unreadable", f"a possible decompression bomb: {error}") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise _Fault("unreadable", f"{error}".partition("\n")[0] or type(error).__name__) from error


def _picture(image: Image.Image, data: bytes, reading: Reading) -> _Picture:
    from PIL import Image as Images

    # A second picture in a JPEG (MPO) is a preview; in other formats it is data that would be lost.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise _Fault("frames", f"{frames} frames")
    if image.format == "PNG" and not reading.older:
        _check_sums(data)
    sixteen = image.mode == "I" or image.mode.startswith("I;16")
    if not (sixteen or reading.older) and image.mode != "F" and _bits(image, data) > 8:
        raise _Fault("deep", "")
    width, height = image.size
    part = (float(width), float(height))  # the rest, to the right and below, is what a decoder filled up
    if reading.size:  # a JPEG is decoded at a half, a quarter or an eighth
        drafted = image.draft(None, (2 * reading.size, 2 * reading.size))
        part = part if drafted is None else drafted[1][2:]
    image.load()  # turns a TIFF, and takes the tag away
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    opaque = False
    if sixteen:
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise _Fault("mode", f"{levels.min()} to {levels.max()}, more than 16 bits")
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
    if reading.size and (reading.fit or width == height):
        image = _squared(image, part, reading.size, reading.fit)
    if turn is not None:
        image = image.transpose(Images.Transpose[turn])
    x = np.asarray(image)
    size = (height, width) if turn in TURNED else (width, height)
    return _Picture(size, x[None] if x.ndim == 2 else x.transpose(2, 0, 1), opaque)


def _squared(image: Image.Image, part: tuple[float, float], side: int, fit: str) -> Image.Image:
    """The upper left part of a picture as a square of ``side`` pixels, smoothed as it shrinks."""
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
    square = Images.new(image.mode, (side, side))  # black, and transparent where the picture has an alpha channel
    square.paste(shrunk, ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits of each channel as they are stored; Pillow gives 8 of any colour."""
    if image.format == "PNG":
        return data[24]  # in the header, behind width and height
    stored = getattr(image, "tag_v2", {}).get(BITS, 8)
    return max(stored) if isinstance(stored, tuple) else int(stored)


def _check_sums(data: bytes) -> None:
    """Hold each chunk of a PNG to its checksum, which Pillow does not do for those with the pixels."""
    at = 8
    while True:
        head = data[at : at + 8]
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        end = at + 8 + length
        if not kind or end + 4 > len(data):
            raise _Fault("unreadable", "the file is truncated")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _Fault("unreadable", f"a wrong checksum in its chunk {kind.decode('ascii', 'replace')}")
        if kind == b"IEND":
            return
        at = end + 4


def _what(data: bytes) -> str:
    """What a file is that is none of the pictures that are read."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or a film"
    known = [what for beginning, what in BEGINNINGS.items() if data.startswith(beginning)]
    start = data[:64]
    text = all(byte >= 32 or byte in b"\t\n\r" for byte in start) and start.isascii()
    return known[0] if known else "text" if text else f"in none of the formats {', '.join(IMAGE_FORMATS)}"


# ----------------------------------------------------------------------------------------------------------- all files


class _Stack:
    """Pictures of one depth in one array, of as many channels as the richest of them needs.

    Attributes:
        at: Which of the files they are.
        sizes: Which of the files have each width and height.
        channels: How many have each number of channels.
        pixels: ``(at least len(at), C, H, W)``; ``None`` if they are of several sizes, and nothing is kept.
        short: Bytes that were needed and not there.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.at: list[int] = []
        self.sizes: dict[tuple[int, int], list[int]] = {}
        self.channels: Counter[int] = Counter()
        self.pixels: Array | None = None
        self.short = 0

    def add(self, file: int, picture: _Picture, keep: bool) -> None:
        """Count a picture, and with ``keep`` store it if it has the shape of the others."""
        x, row = picture.pixels, len(self.at)
        self.at.append(file)
        self.sizes.setdefault(picture.size, []).append(file)
        self.channels[len(x)] += 1
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

    def _room(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array | None:
        try:
            return np.empty((self.room, *shape), dtype)
        except MemoryError:
            self.short = self.room * int(np.prod(shape)) * dtype.itemsize
            return None


def _common(a: int, b: int) -> int:
    """Channels that hold both: colour if either has colour, alpha if either has alpha."""
    return (3 if max(a, b) > 2 else 1) + (a % 2 == 0 or b % 2 == 0)


def _promote(x: Array, out: Array) -> None:
    """Write pictures ``(..., C, H, W)`` into more channels: grey into each colour, and an opaque alpha."""
    have, want = x.shape[-3], out.shape[-3]
    if have == want:
        out[...] = x
        return
    alpha = want % 2 == 0
    out[..., : want - alpha, :, :] = x[..., : have - (have % 2 == 0), :, :]
    if alpha:
        out[..., -1:, :, :] = x[..., -1:, :, :] if have % 2 == 0 else 255


class _Pile:
    """All pictures of a folder: what can be read of them, and what cannot.

    Args:
        folder: For names.
        paths: In the order of the rows.
        reading: How they are to be read.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], reading: Reading) -> None:
        self.folder, self.paths, self.reading = folder, paths, reading
        self.hashes: list[bytes] = []
        self.faults: dict[str, list[tuple[int, str]]] = {}
        self.depths = {8: _Stack(len(paths)), 16: _Stack(len(paths))}
        self.opaque = 0

    def read(self) -> None:
        """Read every file."""
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise DataError(f"{self.folder}: reading images needs Pillow: pip install pillow") from error
        side, stop = self.reading.size, self.reading.on_bad == "stop"
        with _NO_BOMBS:
            for i, path in enumerate(self.paths):
                data = b""
                try:
                    data = read_bytes(path)
                    picture = _decoded(data, self.reading)
                    fits = not side or picture.pixels.shape[1:] == (side, side)
                    # What will be refused takes no memory.
                    self.depths[8 * picture.pixels.itemsize].add(i, picture, keep=fits and not (stop and self.faults))
                    self.opaque += picture.opaque
                except _Fault as fault:
                    self.faults.setdefault(fault.kind, []).append((i, str(fault)))
                except (OSError, MemoryError) as error:
                    self.faults.setdefault("unreadable", []).append((i, reason(error)))
                self.hashes.append(blake2b(data, digest_size=8).digest())

    # ------------------------------------------------------------------------------------------------- what was found

    @property
    def main(self) -> _Stack:
        """The pictures of the depth that most have."""
        return self.depths[16 if len(self.depths[16].at) > len(self.depths[8].at) else 8]

    @property
    def kept(self) -> list[int]:
        """Which files become rows."""
        return self.main.at

    @property
    def pixels(self) -> Array:
        """``(N, C, H, W)``, the rows."""
        assert self.main.pixels is not None
        return self.main.pixels[: len(self.main.at)]

    def name(self, file: int) -> str:
        return one_line(self.paths[file].relative_to(self.folder).as_posix())

    # ----------------------------------------------------------------------------------------------- what is said of it

    def problems(self) -> list[Problem]:
        """What keeps the pictures from being rows."""
        if self.reading.on_bad == "skip":
            if self.paths and not self.kept:
                why = ". ".join(self._left_out())
                return [Problem(f"none of the {len(self.paths):,} files can be read as a picture. {why}")]
            return self._shapes([self.main])
        found = [f"{text}; {FAULTS[kind][2]}" for kind, text in self._faulty()]
        eight, sixteen = (self.depths[bits].at for bits in (8, 16))
        if eight and sixteen:
            rarer = eight if len(eight) < len(sixteen) else sixteen
            found.append(
                f"8-bit and 16-bit images together: {len(eight):,} and {len(sixteen):,} ({self._named(rarer)}), and a "
                "likelihood counts levels; convert all to one depth, or leave the rarer out"
            )
        return [*(Problem(text, {"on_bad": "skip"}) for text in found), *self._shapes(list(self.depths.values()))]

    def notes(self) -> list[str]:
        """What was done to the pictures."""
        found = [f"left out: {text}" for text in self._left_out()]
        grey, colour = (sum(self.main.channels[c] for c in channels) for channels in ((1, 2), (3, 4)))
        if grey and colour:
            found.append(f"{grey:,} grey and {colour:,} colour pictures: all are read as colour")
        holes = self.main.channels[2] + self.main.channels[4]
        if holes:
            others = ", opaque in the others" if holes < len(self.kept) else ""
            found.append(f"{_number(holes)} with transparent parts: the last channel is alpha{others}")
        elif self.opaque:
            found.append(f"{_number(self.opaque)} with an alpha channel that is opaque throughout, which is dropped")
        side = self.reading.size
        other = {size: len(files) for size, files in self.main.sizes.items() if size != (side, side)}
        if side and other:
            grown = sum(n for (w, h), n in other.items() if min(w, h) < side)
            how = f" ({self.reading.fit})" if self.reading.fit else ""
            smaller = f"; {grown:,} of them had a side below that" if grown else ""
            found.append(f"{_number(sum(other.values()))} brought to {side}x{side}{how}{smaller}")
        return found

    def _faulty(self) -> list[tuple[str, str]]:
        """For each kind of fault among the files, the kind and a sentence."""
        found = []
        for kind, (one, several, _) in FAULTS.items():
            files = self.faults.get(kind, [])
            if files:
                named = some(sorted(f"{self.name(i)}{f' ({reason})' * bool(reason)}" for i, reason in files), NAMED)
                is_so = one if len(files) == 1 else several
                found.append((kind, f"{len(files):,} of {len(self.paths):,} files {is_so}: {named}"))
        return found

    def _left_out(self) -> list[str]:
        """A sentence for each kind of file that becomes no row."""
        rarer = [(bits, stack.at) for bits, stack in self.depths.items() if stack is not self.main and stack.at]
        depth = [f"{_number(len(at))} of {bits} bits: {self._named(at)}" for bits, at in rarer]
        return [*(text for _, text in self._faulty()), *depth]

    def _shapes(self, stacks: Sequence[_Stack]) -> list[Problem]:
        """What keeps pictures from being of one size."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for stack in stacks:
            for size, files in stack.sizes.items():
                sizes.setdefault(size, []).extend(files)
        apart = {size: files for size, files in sizes.items() if size[0] != size[1]}
        fit = {"fit": "crop"} if apart else {}
        missing = sum(stack.short for stack in stacks)
        much = f"{_number(len(self.kept))} of this size take {missing / 1e9:,.1f} GB, more than there is"
        if self.reading.size:
            if not apart or self.reading.fit:
                return [Problem(f"{much}; read them at a smaller one")] if missing else []
            count = sum(map(len, apart.values()))
            text = f"{_number(count)} {'is' if count == 1 else 'are'} not square: {self._sized(apart)}"
            return [Problem(f"{text}; say how they fit: crop, pad or stretch", fit)]
        shorts = sorted(min(size) for size, files in sizes.items() for _ in files)
        short = shorts[len(shorts) // 4] if shorts else 0  # three quarters of the pictures have as much
        answers = {"size": next((side for side in SUGGESTED if side <= short), SUGGESTED[-1]), **fit}
        how = ", and say how others than squares fit: crop, pad or stretch" if apart else ""
        if len(sizes) > 1:
            widths, heights = zip(*sizes, strict=True)
            span = f"from {min(widths)} to {max(widths)} wide and {min(heights)} to {max(heights)} high"
            text = f"images of {len(sizes):,} sizes, {span}: {self._sized(sizes)}"
            return [Problem(f"{text}; resize them, or read all at one size{how}", answers)]
        if missing:
            return [Problem(f"{much}; read them at a smaller one{how}", answers)]
        return []

    def _named(self, files: Sequence[int]) -> str:
        return some(sorted(self.name(i) for i in files))

    def _sized(self, sizes: Mapping[tuple[int, int], Sequence[int]]) -> str:
        """``40x30 (12: a.jpg), 5x4 (3: b.png)``: width and height, how many there are, and one of them."""
        most_first = sorted(sizes.items(), key=lambda of: -len(of[1]))
        return some([f"{w}x{h} ({len(at):,}: {min(map(self.name, at))})" for (w, h), at in most_first], 5)


def _number(number: int) -> str:
    return f"{number:,} picture{'' if number == 1 else 's'}"
