"""Folders of real pictures with all that is odd about them: each is read exactly, fitted, or named."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from scoresde.core.errors import DataError, Problems, UsageError
from scoresde.data import Reading, load_data
from scoresde.data import pictures as module
from scoresde.data.pictures import mask_from_file, read_image_folder, read_pictures
from scoresde.data.raw import Raw
from scoresde.data.readers import read_path

SKIP = Reading(on_bad="skip")


def noise(seed: int, *shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint16 if high > 256 else np.uint8)


def save(path: Path, x: np.ndarray | Image.Image, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (x if isinstance(x, Image.Image) else Image.fromarray(x)).save(path, **how)
    return path


def good(folder: Path, n: int = 4, shape: tuple[int, ...] = (6, 6, 3), suffix: str = ".png") -> list[np.ndarray]:
    pixels = [noise(i, *shape) for i in range(n)]
    for i, x in enumerate(pixels):
        save(folder / f"good{i}{suffix}", x)
    return pixels


def row(raw: Raw, name: str) -> np.ndarray:
    """The row of a file, by its name."""
    (i,) = [i for i, path in enumerate(raw.files) if path.name == name]
    return np.concatenate([raw.train, *([] if raw.test is None else [raw.test])])[i]


def problems(folder: Path, reading: Reading | None = None) -> Problems:
    with pytest.raises(Problems) as error:
        read_image_folder(folder, reading or Reading())
    return error.value


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(x: np.ndarray) -> bytes:
    """A PNG of 16 bits: ``(H, W)`` grey or ``(H, W, C)`` grey with alpha, colour, colour with alpha."""
    height, width = x.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if x.ndim == 2 else x.shape[2]]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in x)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(k, c) for k, c in parts)


def deep_tiff(x: np.ndarray) -> bytes:
    """An uncompressed TIFF of 16-bit colour, ``(H, W, 3)``."""
    height, width, channels = x.shape
    pixels, bits = x.astype("<u2").tobytes(), struct.pack(f"<{channels}H", *[16] * channels)
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8 + len(bits)), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(bits) + len(pixels)) + bits + pixels + table


# ------------------------------------------------------------------------------------------------------ sizes and fits


def test_all_sizes_are_counted_and_an_answer_is_given(tmp_path: Path) -> None:
    for i, (w, h) in enumerate([(40, 30)] * 3 + [(50, 50)] * 2 + [(33, 99)]):
        save(tmp_path / f"{i}.png", noise(i, h, w))
    (problem,) = problems(tmp_path).problems
    for words in (
        "3 different sizes, 33 to 50 pixels wide and 30 to 99 pixels high",
        "40x30 (3: 0.png), 50x50 (2: 3.png), 33x99 (1: 5.png)",
    ):
        assert words in problem.message
    assert problem.answers == {"size": 16, "fit": "crop"}, "a quarter of them has a side below 32"
    (tmp_path / "squares").mkdir()
    for i in (33, 40):
        save(tmp_path / "squares" / f"{i}.png", noise(i, i, i))
    (problem,) = problems(tmp_path / "squares").problems
    assert problem.answers == {"size": 32} and "fit" not in problem.message


def test_shapes_need_a_fit_and_squares_do_not(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 9, 9))
    save(tmp_path / "b.png", noise(1, 12, 12))
    assert read_image_folder(tmp_path, Reading(size=6)).train.shape == (2, 1, 6, 6)
    save(tmp_path / "c.png", noise(2, 9, 12))
    (problem,) = problems(tmp_path, Reading(size=6)).problems
    assert "1 image is not square: 12x9 (1: c.png)" in problem.message and problem.answers == {"fit": "crop"}
    assert read_image_folder(tmp_path, Reading(size=6, fit="pad")).train.shape == (3, 1, 6, 6)
    with pytest.raises(UsageError, match="fit is 'pad', but size is not set") as error:
        Reading(fit="pad")
    assert error.value.parameter == "size"


BARS = np.repeat([[10, 100, 200]], 4, axis=0).repeat(4, axis=1).astype(np.uint8)  # 12 wide, 4 high


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("depth", [1, 257])
def test_each_fit_does_what_it_says(tmp_path: Path, turned: bool, depth: int) -> None:
    bars = BARS.T if turned else BARS
    x = bars if depth == 1 else bars.astype(np.uint16) * depth
    save(tmp_path / "x.png", x)
    found = {}
    for fit in ("crop", "pad", "stretch"):
        (found[fit],) = read_image_folder(tmp_path, Reading(size=4, fit=fit)).train[:, 0].astype(float) / depth
        found[fit] = found[fit].T if turned else found[fit]
    assert (found["crop"] == 100).all()
    assert (found["pad"][[0, 1, 3]] == 0).sum() >= 8 and found["pad"].max() > 150, "black above and below"
    assert (found["pad"] > 0).any(axis=0).all(), "and not beside"
    assert (np.diff(found["stretch"], axis=1) >= 0).all() and np.ptp(found["stretch"], axis=0).max() == 0
    assert found["stretch"][0, 0] < 40 and found["stretch"][0, -1] > 180


def test_a_picture_of_the_size_keeps_every_pixel(tmp_path: Path) -> None:
    pixels = good(tmp_path)
    save(tmp_path / "large.png", noise(9, 24, 24, 3))
    for fit in ("", "crop", "pad", "stretch"):
        raw = read_image_folder(tmp_path, Reading(size=6, fit=fit))
        for i, x in enumerate(pixels):
            assert np.array_equal(row(raw, f"good{i}.png"), x.transpose(2, 0, 1))
        assert f"1 image resized to 6x6{f' ({fit})' * bool(fit)}" in raw.notes
    save(tmp_path / "small.png", noise(9, 5, 5, 3))
    assert (
        "2 images resized to 6x6, including 1 with a shorter side of less than 6 pixels"
        in read_image_folder(tmp_path, Reading(size=6)).notes
    )


def test_shrinking_averages_and_does_not_pick(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "a.png", board)
    save(tmp_path / "b.png", board.astype(np.uint16) * 257)
    eight = read_image_folder(tmp_path, Reading(size=8, on_bad="skip"))
    assert abs(eight.train.astype(float) - 127.5).max() < 8
    (tmp_path / "a.png").unlink()
    sixteen = read_image_folder(tmp_path, Reading(size=8))
    assert sixteen.train.dtype == np.uint16 and abs(sixteen.train / 257 - 127.5).max() < 8


def test_sixteen_bits_stay_sixteen_when_they_are_fitted(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for name in ("a.png", "b.tif"):
        save(tmp_path / name, ramp)
    raw = read_image_folder(tmp_path, Reading(size=32))
    truth = np.asarray(Image.fromarray(ramp.astype(np.float32)).resize((32, 32), Image.Resampling.LANCZOS))
    assert raw.levels == (0, 65535, 65536) and len(np.unique(raw.train)) > 900
    assert abs(raw.train.astype(float) - truth.clip(0, 65535)).max() <= 1


def test_a_jpeg_that_is_decoded_smaller_looks_the_same(tmp_path: Path) -> None:
    smooth = Image.fromarray(noise(0, 5, 7, 3)).resize((703, 501), Image.Resampling.BICUBIC)
    save(tmp_path / "a.jpg", smooth, quality=95)
    save(tmp_path / "b.png", Image.open(tmp_path / "a.jpg"))
    raw = read_image_folder(tmp_path, Reading(size=32, fit="crop"))
    jpeg, png = (row(raw, name).astype(float) for name in ("a.jpg", "b.png"))
    assert abs(jpeg - png).max() <= 2 and png.std() > 20


@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_pictures_are_fitted_upright(tmp_path: Path, size: int, orientation: int, suffix: str) -> None:
    corners = np.array([[250, 180], [110, 40]], np.uint8).repeat(16, 0).repeat(8, 1)  # 16 wide, 32 high
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", np.repeat(corners[..., None], 3, 2), exif=exif)
    with Image.open(path) as image:
        truth = np.asarray(ImageOps.exif_transpose(image))[..., 0].astype(float)
    reading = Reading(size=size, fit="stretch") if size else Reading()
    (shown,) = read_image_folder(tmp_path, reading).train.astype(float)
    assert shown.shape == ((3, size, size) if size else (3, *truth.shape))
    ends = np.ix_([0, -1], [0, -1])
    assert abs(shown[0][ends] - truth[ends]).max() < 16
    save(tmp_path / "b.png", noise(0, 20, 20))
    upright = "32x16" if orientation > 4 else "16x32"
    assert f"{upright} (1: a.{suffix})" in problems(tmp_path).problems[0].message


def test_extreme_shapes_are_fitted_too(tmp_path: Path) -> None:
    save(tmp_path / "wide.png", noise(0, 1, 500, 3))
    save(tmp_path / "high.png", noise(1, 500, 1, 3))
    for fit in ("crop", "pad", "stretch"):
        assert read_image_folder(tmp_path, Reading(size=8, fit=fit)).train.shape == (2, 3, 8, 8)


# -------------------------------------------------------------------------------------------------------- depth, alpha


def test_two_depths_are_refused_or_the_rarer_is_left_out(tmp_path: Path) -> None:
    good(tmp_path, 3, (6, 6))
    deep = save(tmp_path / "deep.png", noise(0, 6, 6, high=60_000))
    (problem,) = problems(tmp_path).problems
    assert "8-bit and 16-bit images (3 and 1; of the rarer kind: deep.png)" in problem.message
    assert problem.answers == {"on_bad": "skip"}
    raw = read_image_folder(tmp_path, SKIP)
    assert raw.train.dtype == np.uint8 and len(raw.train) == 3 and raw.levels is None
    assert "left out: 1 image with 16 bits per channel: deep.png" in raw.notes
    for i in range(3):
        save(tmp_path / f"more{i}.png", noise(i, 6, 6, high=60_000))
    raw = read_image_folder(tmp_path, SKIP)
    assert raw.train.dtype == np.uint16 and len(raw.train) == 4 and raw.levels == (0, 65535, 65536)
    assert np.array_equal(row(raw, "deep.png")[0], np.asarray(Image.open(deep)))
    assert "left out: 3 images with 8 bits per channel: good0.png, good1.png, good2.png" in raw.notes
    (tmp_path / "more0.png").unlink()  # as many of each: those of 8 bits are kept
    assert read_image_folder(tmp_path, SKIP).train.dtype == np.uint8


def test_the_size_of_what_is_left_out_does_not_count(tmp_path: Path) -> None:
    good(tmp_path, 3, (6, 6))
    save(tmp_path / "deep.png", noise(0, 9, 5, high=60_000))
    assert len(problems(tmp_path).problems) == 2
    assert len(read_image_folder(tmp_path, SKIP).train) == 3
    assert len(read_image_folder(tmp_path, Reading(size=4, on_bad="skip")).train) == 3


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_sixteen_bits_are_refused_by_name(tmp_path: Path, channels: int) -> None:
    good(tmp_path)
    (tmp_path / "deep.png").write_bytes(deep_png(noise(0, 6, 6, channels, high=60_000)))
    (problem,) = problems(tmp_path).problems
    assert "1 of 5 files has colours of more than 8 bits: deep.png;" in problem.message
    assert problem.answers == {"on_bad": "skip"}
    assert len(read_image_folder(tmp_path, SKIP).train) == 4


def test_so_are_those_of_tiff_and_greys_are_read(tmp_path: Path) -> None:
    x = noise(0, 6, 6, high=60_000)
    (tmp_path / "grey.png").write_bytes(deep_png(x))
    assert np.array_equal(read_image_folder(tmp_path).train[0, 0], x), "the writer of the test is right"
    colour = noise(1, 6, 6, 3, high=60_000)
    (tmp_path / "deep.tif").write_bytes(deep_tiff(colour))
    with Image.open(tmp_path / "deep.tif") as image:
        assert np.array_equal(np.asarray(image), colour >> 8), "Pillow rounds it without a word"
    assert "deep.tif" in problems(tmp_path).problems[0].message


def test_an_alpha_channel_without_a_hole_is_dropped(tmp_path: Path) -> None:
    pixels = good(tmp_path, 3)
    for i, x in enumerate(pixels):
        opaque = np.concatenate([x, np.full((6, 6, 1), 255, np.uint8)], 2)
        save(tmp_path / f"opaque{i}.png", opaque)
    raw = read_image_folder(tmp_path)
    assert raw.train.shape == (6, 3, 6, 6)
    for i, x in enumerate(pixels):
        assert np.array_equal(row(raw, f"opaque{i}.png"), x.transpose(2, 0, 1))
    assert "3 images with a fully opaque alpha channel, which is dropped" in raw.notes
    holes = noise(7, 6, 6, 4)
    save(tmp_path / "holes.png", holes)
    raw = read_image_folder(tmp_path)
    assert raw.train.shape == (7, 4, 6, 6) and np.array_equal(row(raw, "holes.png"), holes.transpose(2, 0, 1))
    assert (row(raw, "opaque0.png")[3] == 255).all() and (row(raw, "good0.png")[3] == 255).all()
    note = (
        "1 image with transparent parts (holes.png), so the last channel is alpha, which is opaque in the other images"
    )
    assert note in raw.notes
    advice = next(text for text in raw.notes if "also draws the alpha channel" in text)
    assert advice.endswith("to avoid this, remove the alpha channel from holes.png")
    (tmp_path / "all").mkdir()
    save(tmp_path / "all" / "holes.png", holes)
    notes = read_image_folder(tmp_path / "all").notes
    assert "1 image with transparent parts, so the last channel is alpha" in notes
    assert not any("to avoid this" in text for text in notes), "transparency in all images is no accident"


def test_an_alpha_channel_is_added_or_put_on_white_as_needed(tmp_path: Path) -> None:
    plain, holes = noise(1, 6, 6, 3), noise(2, 6, 6, 4)
    save(tmp_path / "plain.png", plain)
    save(tmp_path / "holes.png", holes)
    paths = [tmp_path / "plain.png", tmp_path / "holes.png"]
    with_it, _, notes = read_pictures(tmp_path, paths[:1], alpha=True)
    assert np.array_equal(with_it[0, :3], plain.transpose(2, 0, 1)) and (with_it[0, 3] == 255).all()
    assert notes == ("1 image without transparent parts (plain.png), used with an opaque alpha channel",)
    on_white, _, notes = read_pictures(tmp_path, paths, alpha=False)
    assert on_white.shape == (2, 3, 6, 6) and np.array_equal(on_white[0], plain.transpose(2, 0, 1))
    a = holes[..., 3:] / 255
    assert np.abs(on_white[1].transpose(1, 2, 0) - (holes[..., :3] * a + 255 * (1 - a))).max() <= 1
    assert len(notes) == 1 and "1 image with transparent parts (holes.png), composited on white" in notes[0]
    save(tmp_path / "deep.png", Image.fromarray(np.full((6, 6), 300, np.uint16)))
    deep, _, _ = read_pictures(tmp_path, [tmp_path / "deep.png"], alpha=True)
    assert deep.dtype == np.uint16 and (deep[0, 0] == 300).all() and (deep[0, 1] == 65535).all()
    square = Reading(size=4, fit="pad")
    save(tmp_path / "wide.png", np.dstack([np.full((6, 12, 3), 90), np.full((6, 12), 0)]).astype(np.uint8))
    wide, _, _ = read_pictures(tmp_path, [tmp_path / "wide.png"], square, alpha=False)
    assert (wide[0, :, [0, 3]] == 0).all() and (wide[0, :, 1:3] == 255).all(), "borders are black, as in training"


@pytest.mark.parametrize(
    ("mode", "key", "channels"),
    [("L", 7, 2), ("RGB", (7, 7, 7), 4), ("1", 0, 2), ("P", 0, 4), ("L", 9, 1), ("P", 9, 3)],
)
def test_a_transparent_colour_is_an_alpha_channel(tmp_path: Path, mode: str, key: object, channels: int) -> None:
    image = Image.new(mode, (2, 2), 7 if mode == "L" else (7, 7, 7) if mode == "RGB" else 0)
    if mode == "P":
        image.putpalette([7] * 3 + [200] * 3)
    image.putpixel((1, 1), (200, 200, 200) if mode == "RGB" else 200 if mode == "L" else 1)
    save(tmp_path / "a.png", image, transparency=key)
    (x,) = read_image_folder(tmp_path).train
    assert x.shape == (channels, 2, 2)
    if channels in (2, 4):
        assert x[-1].tolist() == [[0, 0], [0, 255]]


def test_padding_is_black_and_the_borders_of_what_is_transparent_are_too(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((2, 4, 4), (9, 9, 9, 128), np.uint8))
    save(tmp_path / "b.png", np.full((2, 4, 3), 9, np.uint8))
    raw = read_image_folder(tmp_path, Reading(size=4, fit="pad"))
    assert row(raw, "a.png")[:, 0, 0].tolist() == [0, 0, 0, 0] and row(raw, "a.png")[:, 1, 0].tolist() == [9, 9, 9, 128]
    assert row(raw, "b.png")[:, 0, 0].tolist() == [0, 0, 0, 255] and row(raw, "b.png")[:, 2, 0].tolist() == [
        9,
        9,
        9,
        255,
    ]


def test_grey_among_colour_is_said(tmp_path: Path) -> None:
    good(tmp_path, 2)
    save(tmp_path / "grey.png", noise(0, 6, 6))
    raw = read_image_folder(tmp_path)
    assert "1 grey and 2 colour images, which are all read as colour" in raw.notes
    assert np.array_equal(row(raw, "grey.png"), np.repeat(noise(0, 6, 6)[None], 3, 0))


def test_growing_takes_no_second_copy(tmp_path: Path) -> None:
    """The first picture of colour and the first with a hole come last, when all others are in the array."""
    n, side = 24, 96
    for i in range(n):
        save(tmp_path / f"{i:02d}.png", noise(0, side, side), compress_level=1)
    paths = [path for path, _ in module.find_pictures(tmp_path).train]
    save(paths[-1], noise(1, side, side, 3))
    tracemalloc.start()
    raw = read_image_folder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raw.train.shape == (n, 3, side, side) and peak < 1.6 * raw.train.nbytes


# ---------------------------------------------------------------------------------------------------------- bad files


def wrong_sum(data: bytes) -> bytes:
    """A PNG whose pixels have a wrong checksum, and are right."""
    start = data.index(b"IDAT")
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


def jpeg(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "JPEG")
    return buffer.getvalue()


def test_every_bad_file_is_found_before_anything_is_refused(tmp_path: Path) -> None:
    pixels = good(tmp_path, 4, (16, 16, 3))
    png, photo = (tmp_path / "good0.png").read_bytes(), jpeg(noise(0, 16, 16, 3))
    bad = {
        "cut.jpg": (photo[: len(photo) // 2], "runcated"), "cut2.jpg": (photo[:-20], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"), "tail.png": (png[:-12], "truncated"),
        "sum.png": (wrong_sum(png), "wrong checksum in chunk IDAT"), "empty.jpg": (b"", "empty"),
        "note.jpeg": (b"just text\n", "text"), "moving.png": (b"GIF89a" + bytes(20), "a GIF"),
        "page.jpg": (b"<!DOCTYPE html>", "HTML, XML or SVG"),
        "phone.jpg": (b"\0\0\0\x18ftypheic", "HEIC, AVIF or a video"),
        "noise.bmp": (bytes(range(128, 200)), "not in any of the formats PNG, JPEG, WEBP, BMP, TIFF"),
    }  # fmt: skip
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "nothing")
    (problem,) = problems(tmp_path).problems
    assert problem.message.startswith("12 of 16 files are not readable images: cut.jpg (Truncated File Read), ")
    assert all(name in problem.message for name in bad)
    assert "; replace or remove every such file" in problem.message
    assert problem.answers == {"on_bad": "skip"}
    raw = read_image_folder(tmp_path, SKIP)
    assert {x.tobytes() for x in raw.train} == {x.transpose(2, 0, 1).tobytes() for x in pixels}
    assert raw.notes[0].startswith("left out: 12 of 16 files are not readable images: cut.jpg (")
    assert len(read_image_folder(tmp_path, Reading(size=4, on_bad="skip")).train) == 4, "nor at another size"
    for name, (data, reason) in bad.items():
        alone = tmp_path / "alone" / name
        alone.parent.mkdir(exist_ok=True)
        alone.write_bytes(data)
        assert f"1 of 1 files is not a readable image: {name} (" in str(problems(alone.parent))
        assert reason in str(problems(alone.parent))
        alone.unlink()


def test_a_good_picture_with_a_wrong_suffix_is_read(tmp_path: Path) -> None:
    good(tmp_path, 2)
    data = (tmp_path / "good0.png").read_bytes()
    (tmp_path / "good0.png").rename(tmp_path / "called.jpg")
    assert np.array_equal(
        row(read_image_folder(tmp_path), "called.jpg"), np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    )


def test_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    real = open

    def checked(path: Path, *args: str) -> object:
        assert Path(path).name != "pipe.png", "this would never end"
        return real(path, *args)

    monkeypatch.setattr("builtins.open", checked)
    assert "pipe.png (it is a pipe, which is not supported" in str(problems(tmp_path))


def moving(path: Path) -> None:
    frames = [Image.new("L", (6, 6), 100 * i) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def floating(path: Path) -> None:
    save(path, np.zeros((6, 6), np.float32))


def beyond(path: Path) -> None:
    save(path, np.full((6, 6), 70_000, np.int32))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.tif", moving, "1 of 3 files has several frames: a.tif (3 frames)"),
        ("a.webp", moving, "1 of 3 files has several frames: a.webp (3 frames)"),
        ("a.png", moving, "1 of 3 files has several frames: a.png (3 frames)"),
        ("a.tif", floating, "has an unsupported pixel format: a.tif (floating-point numbers)"),
        (
            "a.tif",
            beyond,
            "format: a.tif (the values range from 70000 to 70000, which does not fit in 16 bits)",
        ),
    ],
)
def test_what_is_no_single_picture_of_levels_is_named(
    tmp_path: Path, name: str, write: Callable[[Path], None], words: str
) -> None:
    good(tmp_path, 2, (6, 6))
    write(tmp_path / name)
    (problem,) = problems(tmp_path).problems
    assert words in problem.message and problem.answers == {"on_bad": "skip"}
    raw = read_image_folder(tmp_path, SKIP)
    assert len(raw.train) == 2 and words in raw.notes[0]


def test_skipping_leaves_what_there_would_be_without_the_bad_files(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            good(tmp_path / part / name, 3, (4, 4))
            (tmp_path / part / name / "bad.png").write_bytes(b"")
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "bad.png").write_bytes(b"")
    raw = read_image_folder(tmp_path, SKIP)
    assert len(raw.train) == 6 and raw.test is not None and len(raw.test) == 6
    assert raw.classes == ("a", "b"), "a class without a readable picture is none"
    paths = [path.relative_to(tmp_path).parts for path in raw.files]
    assert [p[0] for p in paths] == ["train"] * 6 + ["test"] * 6
    assert raw.train_labels is not None and raw.test_labels is not None
    assert [p[1] for p in paths] == [raw.classes[i] for i in (*raw.train_labels, *raw.test_labels)]


def test_when_nothing_is_left_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    assert "there are no readable images. 1 of 1 files" in str(problems(tmp_path, SKIP))
    (tmp_path / "split" / "train").mkdir(parents=True)
    (tmp_path / "split" / "train" / "bad.png").write_bytes(b"")
    good(tmp_path / "split" / "test")
    assert "none of the training images can be read" in str(problems(tmp_path / "split", SKIP))


def test_a_class_of_the_test_part_alone_is_refused(tmp_path: Path) -> None:
    for folder in ("train/a", "test/a", "test/b"):
        good(tmp_path / folder, 2)
    assert "the test split has classes that the training split lacks: b" in str(problems(tmp_path))


def test_too_much_for_the_memory_is_a_problem_with_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path, 3, (40, 40))

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "np", SimpleNamespace(**{**vars(np), "empty": full}))
    (problem,) = problems(tmp_path).problems
    assert "reading 3 images would need 0.0 GB, more memory than is available" in problem.message
    assert problem.answers == {"size": 32}


def test_what_will_be_refused_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is only looked at may be larger than the memory."""
    stacks = []
    made = module._Stack.__init__

    def remember(stack: module._Stack, room: int) -> None:
        made(stack, room)
        stacks.append(stack)

    monkeypatch.setattr(module._Stack, "__init__", remember)
    good(tmp_path, 3)
    save(tmp_path / "other.png", noise(0, 7, 5))
    problems(tmp_path)
    assert [stack.pixels for stack in stacks] == [None, None] and len(stacks[0].at) == 4
    (tmp_path / "other.png").unlink()
    first, _ = module.find_pictures(tmp_path).train[0]
    first.write_bytes(b"")
    problems(tmp_path)
    assert stacks[2].pixels is None and len(stacks[2].at) == 2


def test_five_kinds_of_problems_are_one_error(tmp_path: Path) -> None:
    good(tmp_path / "a", 3)
    save(tmp_path / "a" / "deep.png", noise(0, 6, 6, high=60_000))
    (tmp_path / "a" / "colour.png").write_bytes(deep_png(noise(0, 6, 6, 3, high=60_000)))
    (tmp_path / "a" / "bad.jpg").write_bytes(b"")
    moving(tmp_path / "a" / "moving.webp")
    save(tmp_path / "a" / "b" / "large.png", noise(0, 9, 8))
    save(tmp_path / "loose.png", noise(0, 6, 6))
    error = problems(tmp_path)
    lines = str(error).splitlines()
    assert lines[0] == f"{tmp_path}: 6 problems" and len(lines) == 7
    for line, (words, answers) in zip(
        lines[1:],
        [
            ("at the top level (1: loose.png)", {}), ("not a readable image: a/bad.jpg (empty)", {"on_bad": "skip"}),
            ("several frames: a/moving.webp", {"on_bad": "skip"}), ("8 bits: a/colour.png", {"on_bad": "skip"}),
            ("8-bit and 16-bit images (5 and 1; of the rarer kind: a/deep.png)", {"on_bad": "skip"}),
            ("2 different sizes", {"size": 8, "fit": "crop"}),
        ],
        strict=True,
    ):  # fmt: skip
        number = int(line[0])
        assert words in line and line.startswith(f"{number}. ") and error.problems[number - 1].answers == answers
    assert isinstance(error, DataError) and error.exit_code == 3


# --------------------------------------------------------------------------------------------------- hashes and copies


def test_each_row_has_the_hash_of_the_bytes_of_its_file(tmp_path: Path) -> None:
    for part, n in (("train", 5), ("test", 3)):
        good(tmp_path / part, n, (4, 4, 3))
    (tmp_path / "train" / "bad.png").write_bytes(b"")
    raw = read_image_folder(tmp_path, SKIP)
    assert len(raw.files) == len(raw.hashes) == 8 and raw.test is not None
    for path, hashed, x in zip(raw.files, raw.hashes, [*raw.train, *raw.test], strict=True):
        assert hashed == hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
        assert np.array_equal(np.asarray(Image.open(path)).transpose(2, 0, 1), x)


def test_copies_are_counted_and_named(tmp_path: Path) -> None:
    good(tmp_path / "cat", 3)
    good(tmp_path / "dog", 1, (6, 6, 3), ".bmp")
    assert not any("same bytes" in note for note in read_image_folder(tmp_path).notes)
    for name in ("cat/again.png", "cat/once more.png", "dog/copy.png"):
        (tmp_path / name).write_bytes((tmp_path / "cat/good1.png").read_bytes())
    (note,) = [note for note in read_image_folder(tmp_path).notes if "same bytes" in note]
    assert note.startswith("3 images have the same bytes as another image: ") and note.endswith(
        "; copies in another class: 1"
    )
    assert note.count(" of ") >= 3


def test_a_reading_that_changes_nothing_is_said(tmp_path: Path) -> None:
    good(tmp_path / "a", 3)
    assert (
        "layout applies only to arrays, and has no effect here"
        in read_path(tmp_path / "a", Reading(layout="last")).notes
    )
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    assert any("size and fit apply only to folders" in n for n in read_path(tmp_path / "x.npy", Reading(size=8)).notes)
    assert not read_path(tmp_path / "x.npy").notes


def test_a_folder_becomes_a_data_set_with_its_notes(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"{i}.png", noise(i, 6 + i % 2, 6, 3))
    data = load_data(str(tmp_path), reading=Reading(size=6, fit="crop"))
    assert data.info.shape == (3, 6, 6) and data.train.dtype == torch.uint8 and len(data.train) + len(data.test) == 30
    assert "15 images resized to 6x6 (crop)" in data.notes


def test_a_folder_is_read_for_an_older_run_as_it_was_then(tmp_path: Path) -> None:
    """What that run passed over would otherwise count as held out, and what it read have another shape."""
    older = Reading(older=True)
    good(tmp_path / "a", 2, (6, 6, 3))
    opaque = np.concatenate([noise(5, 6, 6, 3), np.full((6, 6, 1), 255, np.uint8)], 2)
    save(tmp_path / "a" / "opaque.png", opaque)
    good(tmp_path / "a" / "deeper", 3)
    (tmp_path / "a" / "deep.png").write_bytes(deep_png(noise(6, 6, 6, 3, high=60_000)))
    save(tmp_path / "testing" / "keyed.png", Image.new("RGB", (6, 6), (7, 7, 7)), transparency=(7, 7, 7))
    raw = read_image_folder(tmp_path, older)
    assert raw.train.shape == (5, 4, 6, 6) and raw.classes == ("a", "testing") and raw.test is None
    assert np.array_equal(row(raw, "deep.png")[:3], noise(6, 6, 6, 3, high=60_000).transpose(2, 0, 1) >> 8)
    assert (raw.train[:, 3] == 255).all()
    good(tmp_path / "split" / "train", 2)
    good(tmp_path / "split", 1)
    assert len(read_image_folder(tmp_path / "split", older).train) == 2
    good(tmp_path / "flat", 2)
    good(tmp_path / "flat" / "b" / "c", 2)
    assert len(read_image_folder(tmp_path / "flat", older).train) == 2


def test_a_mask_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    floats, frames, text = tmp_path / "f.tif", tmp_path / "t.tif", tmp_path / "x.png"
    Image.fromarray(np.ones((4, 4), np.float32)).save(floats)
    Image.new("L", (4, 4)).save(frames, save_all=True, append_images=[Image.new("L", (4, 4))])
    text.write_text("hello")
    for path, why in {floats: "pixel format", frames: "several frames", text: "is not a readable image"}.items():
        with pytest.raises(DataError, match=rf"the mask {path} .*{why} \(.+\); save it as an 8-bit"):
            mask_from_file(str(path))
