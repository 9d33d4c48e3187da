"""The data layer against files written by hand: what comes out is exactly what went in, or a DataError."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.core.errors import DataError, UsageError
from scoresde.data import NAMES, DataInfo, Reading, eight_gaussians, split
from scoresde.data import load_data as by_content
from scoresde.data.dataset import old_codec
from scoresde.data.tinted import hue, tinted
from scoresde.data.toys import DENSITIES, TOYS, sample_toy
from scoresde.metrics import kuiper

# What a file holds: of a few rows, a split by content may hold out none.
load_data = partial(by_content, split="rows")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(dataset_part: torch.Tensor) -> set[bytes]:
    """The samples as a set, for comparisons that ignore order."""
    return {bytes(x.contiguous().numpy().tobytes()) for x in dataset_part}


def write_images(
    folder: Path, n: int, size: tuple[int, ...] = (6, 4), suffix: str = ".png", seed: int = 0
) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = rng(seed).integers(0, 256, (n, *size), dtype=np.uint8)
    for i, x in enumerate(pixels):
        Image.fromarray(x).save(folder / f"{i:03d}{suffix}")
    return pixels


def idx_bytes(x: np.ndarray) -> bytes:
    return bytes([0, 0, 8, x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape) + x.tobytes()


# DataInfo


def test_info_survives_json_and_names_bad_keys() -> None:
    original = load_data("digits").info
    assert DataInfo.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    toy = load_data("moons").info
    assert DataInfo.from_dict(json.loads(json.dumps(toy.to_dict()))) == toy
    stored = original.to_dict()
    with pytest.raises(DataError, match=r"missing keys: \['kind'\]; unknown keys: \['colour'\]"):
        DataInfo.from_dict({k: v for k, v in stored.items() if k != "kind"} | {"colour": 1})
    for bad in ({"shape": "abc"}, {"kind": "sound"}, {"levels": 1}, {"low": None}):
        with pytest.raises(DataError, match="malformed"):
            DataInfo.from_dict(stored | bad)


def test_the_codec_of_an_older_description_is_the_one_that_is_found_today() -> None:
    for name in ("digits", "moons"):
        known = load_data(name)
        affine = known.codec.continuous
        stored = known.info.to_dict() | {"transform": {"shift": affine.shift.tolist(), "scale": affine.scale.tolist()}}
        assert old_codec(stored) == known.codec and DataInfo.from_dict(stored) == known.info
        with pytest.raises(DataError, match="missing keys"):
            old_codec(stored | {"transform": {"shift": 0.0}})
        for bad in (3, {"shift": [0.0] * 3, "scale": [1.0] * 3}, {"shift": 0.0, "scale": -1.0}):
            with pytest.raises(DataError, match=r"malformed|positive"):
                old_codec(stored | {"transform": bad})


def test_describe_says_what_was_found() -> None:
    text = load_data("digits").info.describe()
    for part in ("1617 training", "180 test", "1 x 8 x 8", "17 levels", "10 classes", "from 0 to 16"):
        assert part in text


# Splits, names, toys


def test_split_is_a_function_of_the_seed_and_disjoint() -> None:
    train, test = split(100, 0.1, seed=3)
    assert len(test) == 10 and sorted(torch.cat([train, test]).tolist()) == list(range(100))
    assert torch.equal(test, split(100, 0.1, seed=3)[1])
    assert not torch.equal(test, split(100, 0.1, seed=4)[1])
    assert len(split(5, 0.01, seed=0)[1]) == 1


def test_digits() -> None:
    d = load_data("digits", seed=1)
    assert d.train.dtype == torch.uint8 and d.train.shape == (1617, 1, 8, 8) and d.test.shape == (180, 1, 8, 8)
    assert d.info.levels == 17 and d.info.high == 16 and d.train.max() == 16
    assert d.train_labels is not None and d.test_labels is not None and d.info.classes == tuple("0123456789")
    counts = torch.cat([d.train_labels, d.test_labels]).bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    assert torch.equal(d.train, load_data("digits", seed=1).train)
    assert not torch.equal(d.train, load_data("digits", seed=2).train)


def test_digits_are_the_published_ones() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    d, truth = load_data("digits"), datasets.load_digits()
    train, test = split(1797, 0.1, 0)
    assert np.array_equal(d.train[:, 0].numpy(), truth.images[train])
    assert d.test_labels is not None and np.array_equal(d.test_labels.numpy(), truth.target[test])


def test_tinted_digits_have_the_greys_of_the_digits_and_uniform_hues() -> None:
    d, digits = load_data("tinted", seed=1), load_data("digits", seed=1)
    assert d.train.dtype == torch.float32 and d.train.shape == (1617, 3, 8, 8) and d.test.shape == (180, 3, 8, 8)
    assert d.info.levels is None and d.info.kind == "image" and d.info.low == 0 and 0.85 < d.info.high < 1
    assert d.train_labels is not None and torch.equal(d.train_labels, digits.train_labels)
    # The grey picture is that of the digit, whatever the hue, and every pixel has the same hue.
    w = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    grey = (w[:, None, None] * d.train.double()).sum(1, keepdim=True)
    torch.testing.assert_close(grey, digits.train * (0.75 / 16), atol=1e-7, rtol=0, check_dtype=False)
    bright = (d.train.double() / grey - 1)[grey.expand_as(d.train) > 0].reshape(-1)
    tint = (d.train.double() / grey - 1).nanmean((2, 3))
    assert bright.abs().max() < 0.3
    torch.testing.assert_close(tint @ w, torch.zeros(1617, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(tint.norm(dim=1), torch.full((1617,), 0.3, dtype=torch.float64), atol=1e-6, rtol=0)
    hues = torch.cat([hue(d.train), hue(d.test)])
    assert kuiper(hues)[1] > 0.05
    # They have nothing to do with the digits: the same hues with another seed of the split, in another order.
    again = load_data("tinted", seed=2)
    assert not torch.equal(again.train, d.train)
    torch.testing.assert_close(torch.cat([hue(again.train), hue(again.test)]).sort().values, hues.sort().values)
    for k in range(10):
        assert kuiper(hue(d.train[d.train_labels == k]))[1] > 1e-3


def test_the_hue_of_a_picture_is_read_back() -> None:
    grey = load_data("digits").train[:50].double() / 16
    told = 2 * math.pi * torch.rand(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - math.pi
    torch.testing.assert_close(hue(tinted(grey, told)), told, atol=1e-9, rtol=0)
    assert kuiper(hue(tinted(grey, told / 2)))[1] < 1e-6


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_standardised_and_seeded(name: str) -> None:
    d = load_data(name, seed=5)
    assert d.train.shape == (18000, 2) and d.test.shape == (2000, 2) and d.train.dtype == torch.float32
    m = d.codec.continuous.to_model(d.train)
    torch.testing.assert_close(m.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(m.std(0), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(d.codec.continuous.to_data(m), d.train, atol=1e-5, rtol=1e-5)
    assert d.train.abs().max() < 6 and (d.log_density is not None) == (name in DENSITIES)
    assert torch.equal(sample_toy(name, 100, 5), sample_toy(name, 100, 5))
    assert not torch.equal(sample_toy(name, 100, 5), sample_toy(name, 100, 6))


@pytest.mark.parametrize("name", DENSITIES)
def test_toy_density_integrates_to_one_and_matches_its_samples(name: str) -> None:
    density = DENSITIES[name]
    axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)[:-1] + 0.005  # midpoints
    p = density(torch.cartesian_prod(axis, axis)).exp()
    assert p.sum().item() * 0.01**2 == pytest.approx(1, abs=1e-6)
    entropy = -(torch.special.xlogy(p, p)).sum().item() * 0.01**2
    log_p = density(sample_toy(name, 50_000, 0))
    assert torch.isfinite(log_p).all() and log_p.shape == (50_000,)
    assert -log_p.mean().item() == pytest.approx(entropy, abs=0.02)


def test_toy_histogram_follows_the_density() -> None:
    x = sample_toy("checkerboard", 80_000, 1)
    square = torch.floor(x / 2).long() + 2
    counts = torch.zeros(4, 4).index_put((square[:, 0], square[:, 1]), torch.tensor(1.0), accumulate=True)
    filled = counts > 0
    assert filled.sum() == 8 and (counts[filled] - 10_000).abs().max() < 500
    means, std = eight_gaussians()
    distance = torch.cdist(sample_toy("8gaussians", 80_000, 1).double(), means).min(1)
    assert (distance.indices.bincount() - 10_000).abs().max() < 500
    assert distance.values.square().mean().item() == pytest.approx(2 * std**2, rel=0.02)
    assert torch.allclose(means.norm(dim=1), torch.tensor(2.0).double()) and eight_gaussians(3.0, 0.1)[1] == 0.1


def test_unknown_name_lists_near_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean swissroll") as error:
        load_data("swisroll")
    assert all(name in str(error.value) for name in NAMES) and "no data set, file or folder" in str(error.value)
    assert error.value.exit_code == 3
    for spec in ("", str(tmp_path / "nothing")):
        with pytest.raises(DataError, match="no data set, file or folder"):
            load_data(spec)
    with pytest.raises(UsageError, match="it must be a number > 0 and < 1"):
        load_data("moons", test_fraction=1.0)


def test_other_files_are_refused_with_what_can_be_read(tmp_path: Path) -> None:
    for name, content in (("table.doc", b"1,2\n"), ("empty", b""), ("x.pkl", pickle.dumps([1]))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"supported types.*\.npz"):
            load_data(str(tmp_path / name))


# IDX


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("pattern", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte"])
def test_idx_folder_reads_back_exactly(tmp_path: Path, zipped: bool, pattern: str) -> None:
    truth = {}
    for part, n in (("train", 12), ("t10k", 5)):
        x = rng(n).integers(0, 256, (n, 5, 3), dtype=np.uint8)
        y = (np.arange(n) % 3 + 4).astype(np.uint8)
        truth[part] = x, y
        for what, a in (("images", x), ("labels", y)):
            name, content = pattern.format(part, what, a.ndim), idx_bytes(a)
            (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    d = load_data(str(tmp_path))
    assert d.info.shape == (1, 5, 3) and d.info.levels == 256 and d.info.classes == ("4", "5", "6")
    assert np.array_equal(d.train[:, 0].numpy(), truth["train"][0])
    assert np.array_equal(d.test[:, 0].numpy(), truth["t10k"][0])
    assert d.train_labels is not None and np.array_equal(d.train_labels.numpy() + 4, truth["train"][1])
    assert d.test_labels is not None and d.test_labels.dtype == torch.int64


def test_single_idx_file_takes_the_labels_beside_it(tmp_path: Path) -> None:
    x, y = rng().integers(0, 256, (20, 2, 2), dtype=np.uint8), (np.arange(20) % 2).astype(np.uint8)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(idx_bytes(x)))
    assert load_data(str(images)).train_labels is None
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(y))
    d = load_data(str(images), seed=7)
    train, test = split(20, 0.1, 7)
    assert np.array_equal(d.train[:, 0].numpy(), x[train]) and np.array_equal(d.test[:, 0].numpy(), x[test])
    assert d.train_labels is not None and np.array_equal(d.train_labels.numpy(), y[train])


def test_damaged_idx_is_refused(tmp_path: Path) -> None:
    good = idx_bytes(np.zeros((4, 3, 3), np.uint8))
    path = tmp_path / "train-images-idx3-ubyte"
    damages = {
        "truncated or damaged": good[:-1],
        "truncated in its header": good[:9],
        "not an IDX file of images": b"<html>not found</html>",
        "instead of 00 00 08 03": idx_bytes(np.zeros(4, np.uint8)),
        "damaged or truncated gzip": gzip.compress(good)[:-12],
        r"contains more\. The file": good + b"more",
    }
    for message, content in damages.items():
        path.write_bytes(content)
        for spec in (path, tmp_path):
            with pytest.raises(DataError, match=message) as error:
                load_data(str(spec))
            assert path.name in str(error.value)
    path.write_bytes(good)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match=r"has 3 labels, but .* has 4 images"):
        load_data(str(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match="but no train-images"):
        load_data(str(tmp_path))


# Folders of images


def test_flat_folder_of_non_square_images(tmp_path: Path) -> None:
    pixels = write_images(tmp_path, 20, (6, 4, 3))
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    d = load_data(str(tmp_path))
    assert d.info.shape == (3, 6, 4) and d.info.kind == "image" and d.info.levels == 256
    assert d.train_labels is None and d.info.classes == ()
    assert d.train.shape == (18, 3, 6, 4) and d.test.shape == (2, 3, 6, 4)
    assert rows(d.train) | rows(d.test) == rows(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))


def test_class_folders_become_labels(tmp_path: Path) -> None:
    truth = {name: write_images(tmp_path / name, 10, seed=i) for i, name in enumerate(("dog", "cat", "10"))}
    d = load_data(str(tmp_path))
    assert d.info.classes == ("10", "cat", "dog") and d.info.shape == (1, 6, 4)
    assert d.train_labels is not None and d.test_labels is not None
    x, y = torch.cat([d.train, d.test]), torch.cat([d.train_labels, d.test_labels])
    for i, name in enumerate(d.info.classes):
        assert rows(x[y == i]) == rows(torch.from_numpy(truth[name][:, None]))


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "Test"])
def test_train_and_test_folders_are_splits(tmp_path: Path, held_out: str) -> None:
    for i, name in enumerate("ab"):
        write_images(tmp_path / "train" / name, 8, seed=i)
    truth = write_images(tmp_path / held_out / "b", 3, seed=9)
    if held_out == "test":
        write_images(tmp_path / "val" / "b", 5, seed=10)  # test wins
    d = load_data(str(tmp_path))
    assert d.info.classes == ("a", "b") and len(d.train) == 16
    assert rows(d.test) == rows(torch.from_numpy(truth[:, None]))
    assert d.test_labels is not None and d.test_labels.tolist() == [1, 1, 1]
    write_images(tmp_path / held_out / "c", 1)
    with pytest.raises(DataError, match="the test split has classes that the training split lacks: c"):
        load_data(str(tmp_path))


def test_flat_splits_and_a_train_folder_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 10)
    assert len(load_data(str(tmp_path)).test) == 1
    write_images(tmp_path / "test", 4)
    d = load_data(str(tmp_path))
    assert len(d.train) == 10 and len(d.test) == 4 and d.train_labels is None and d.test_labels is None


def test_ambiguous_folders_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "train", 3)
    write_images(tmp_path / "a" / "bus", 3)
    with pytest.raises(DataError, match="bus"):
        load_data(str(tmp_path / "a"))
    write_images(tmp_path / "b", 3)
    write_images(tmp_path / "b" / "cat", 3)
    with pytest.raises(DataError, match="both at the top level"):
        load_data(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3), ("YCbCr", 3)],
)
def test_image_modes(tmp_path: Path, mode: str, channels: int) -> None:
    suffix = ".tif" if mode in ("CMYK", "YCbCr") else ".png"
    for i in range(4):
        grey = Image.fromarray(rng(i).integers(0, 256, (4, 5), dtype=np.uint8))
        grey.convert("RGB" if mode in ("P", "YCbCr") else mode if mode != "CMYK" else "RGB").convert(mode).save(
            tmp_path / f"{i}{suffix}"
        )
    d = load_data(str(tmp_path))
    assert d.info.shape == (channels, 4, 5) and d.train.dtype == torch.uint8
    if mode == "1":
        assert set(d.train.unique().tolist()) <= {0, 255}


def test_rgba_values_and_transparent_palette(tmp_path: Path) -> None:
    pixels = write_images(tmp_path / "rgba", 4, (3, 3, 4))
    d = load_data(str(tmp_path / "rgba"))
    assert rows(d.train) | rows(d.test) == rows(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    (tmp_path / "p").mkdir()
    for i in range(3):
        image = Image.new("P", (2, 2), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 1), 1)
        image.save(tmp_path / "p" / f"{i}.png", transparency=0)
    x = load_data(str(tmp_path / "p")).train[0]
    assert x[:, 0, 0].tolist() == [10, 20, 30, 0] and x[:, 1, 1].tolist() == [40, 50, 60, 255]


def test_mixed_modes_are_promoted(tmp_path: Path) -> None:
    grey = write_images(tmp_path, 4, (2, 2))
    for i in range(4, 6):
        Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(tmp_path / f"{i}.PNG")
    d = load_data(str(tmp_path))
    assert d.info.shape == (3, 2, 2)
    truth = [np.repeat(g[None], 3, 0) for g in grey] + [np.full((3, 2, 2), i, np.uint8) for i in (4, 5)]
    assert rows(d.train) | rows(d.test) == {t.tobytes() for t in truth}
    Image.fromarray(np.full((2, 2, 2), 7, np.uint8), "LA").save(tmp_path / "6.png")
    d = load_data(str(tmp_path))
    assert d.info.shape == (4, 2, 2)
    truth = [np.concatenate([t, np.full((1, 2, 2), 255, np.uint8)]) for t in truth] + [np.full((4, 2, 2), 7, np.uint8)]
    assert rows(d.train) | rows(d.test) == {t.tobytes() for t in truth}


def test_sixteen_bit_greys(tmp_path: Path) -> None:
    pixels = rng().integers(0, 65536, (6, 3, 4), dtype=np.uint16)
    for i, x in enumerate(pixels):
        Image.fromarray(x).save(tmp_path / f"{i}.{'png' if i % 2 else 'tif'}")
    d = load_data(str(tmp_path))
    assert d.info.shape == (1, 3, 4) and d.info.levels == 65536 and d.info.high == 65535
    assert rows(d.train) | rows(d.test) == rows(torch.from_numpy(pixels.astype(np.int32)[:, None]))
    write_images(tmp_path, 1, (3, 4))
    with pytest.raises(DataError, match="8-bit and 16-bit"):
        load_data(str(tmp_path))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: shown after a quarter turn clockwise
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", exif=exif)
    assert load_data(str(tmp_path)).train[0, 0].tolist() == np.rot90(pixels, -1).tolist()


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".bmp", ".tiff"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}{suffix}")
    d = load_data(str(tmp_path))
    means = sorted(x.float().mean().item() for x in torch.cat([d.train, d.test]))
    assert means == pytest.approx([0, 60, 120], abs=2)


def test_images_of_two_sizes(tmp_path: Path) -> None:
    write_images(tmp_path, 3, (4, 5))
    Image.new("L", (7, 4)).save(tmp_path / "odd.png")
    with pytest.raises(DataError, match="resize") as error:
        load_data(str(tmp_path))
    assert "odd.png" in str(error.value) and "7x4" in str(error.value) and "5x4" in str(error.value)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_unreadable_images_name_the_file(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    whole = (tmp_path / "000.png").read_bytes()
    bad = tmp_path / "bad.png"
    damages = [
        (b"just text", "not a readable"),
        (whole[: len(whole) // 2], "not a readable"),
        (b"", "not a readable"),
    ]
    damages += [(png(12_000, 12_000), "decompression bomb"), (png(60_000, 60_000), "decompression bomb")]
    damages += [(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 6\n", "not a readable")]
    for content, message in damages:
        bad.write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            load_data(str(tmp_path))
        assert "bad.png" in str(error.value)


def test_stacks_of_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (3, 3), i) for i in range(4)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="4 frames"):
        load_data(str(tmp_path))


def test_empty_and_too_small_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.jpeg, \.webp"):
        load_data(str(tmp_path))
    write_images(tmp_path, 2)
    with pytest.raises(DataError, match="1 training and 1 test"):
        load_data(str(tmp_path))


# NumPy files


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path / "data.npz", **arrays)
    return str(path / "data.npz")


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "event"),
    [
        ((30,), "float32", "vector", (1,)),
        ((30, 4), "float64", "vector", (4,)),
        ((30, 6, 5), "uint8", "image", (1, 6, 5)),
        ((30, 3, 50), "float32", "signal", (3, 50)),
        ((30, 50, 3), "float16", "signal", (3, 50)),
        ((30, 50, 20), "float32", "signal", (50, 20)),
        ((30, 3, 6, 5), "uint8", "image", (3, 6, 5)),
        ((30, 9, 8, 3), "uint8", "image", (3, 9, 8)),
        ((30, 6, 5, 3), "uint8", "image", (6, 5, 3)),
        ((30, 3, 40), "uint8", "signal", (3, 40)),
        ((30, 2, 3, 4, 5), "uint8", "volume", (2, 3, 4, 5)),
        ((30, 8, 9, 8, 4), "float32", "volume", (4, 8, 9, 8)),
        ((30, 1, 4, 4), "float32", "image", (1, 4, 4)),
        ((30, 8, 9, 4), "float32", "image", (4, 8, 9)),
        ((30, 16, 4, 4), "float32", "image", (16, 4, 4)),
        ((30, 14, 8), "float32", "signal", (14, 8)),
        ((30, 16, 4), "float32", "signal", (4, 16)),
    ],
)
def test_npy_layouts(tmp_path: Path, shape: tuple[int, ...], dtype: str, kind: str, event: tuple[int, ...]) -> None:
    x = rng().integers(0, 256, shape).astype(dtype) if dtype == "uint8" else rng().normal(size=shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    d = load_data(str(tmp_path / "x.npy"), test_fraction=0.2)
    assert (d.info.kind, d.info.shape, d.info.name) == (kind, event, "x")
    assert d.train.dtype == (torch.uint8 if dtype == "uint8" else torch.float32) and d.test.shape == (
        6,
        *event,
    )
    assert d.info.levels == (256 if dtype == "uint8" else None)
    moved = np.moveaxis(x, -1, 1) if d.info.channels_last else x
    truth = moved.astype("uint8" if dtype == "uint8" else "float32").reshape(30, *event)
    assert np.array_equal(d.train.numpy(), truth[split(30, 0.2, 0)[0]])
    m = d.codec.continuous.to_model(d.train)
    assert m.dtype == torch.float32
    if kind == "image":
        assert m.min() >= -1 and m.max() <= 1
    torch.testing.assert_close(d.codec.continuous.to_data(m), d.train.float(), atol=1e-4, rtol=1e-5)


def test_signals_are_standardised_per_channel_and_decoded_to_their_units(tmp_path: Path) -> None:
    x = rng().normal([[1000.0], [-2.0]], [[50.0], [0.01]], (200, 2, 30))
    np.save(tmp_path / "x.npy", x)
    d = load_data(str(tmp_path / "x.npy"))
    assert d.codec.continuous.shift.shape == (2, 1)
    torch.testing.assert_close(d.codec.continuous.shift[:, 0], torch.tensor([1000, -2.0]).double(), rtol=5e-3, atol=0)
    torch.testing.assert_close(d.codec.continuous.scale[:, 0], torch.tensor([50, 0.01]).double(), rtol=5e-2, atol=0)
    m = d.codec.continuous.to_model(d.train)
    torch.testing.assert_close(m.std((0, 2)), torch.ones(2).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(d.codec.continuous.to_data(m), d.train)


def test_npz_keys_and_labels(tmp_path: Path) -> None:
    x, y = rng().normal(size=(20, 3)), np.arange(20) % 4
    for key, label in (
        ("x", "y"),
        ("images", "labels"),
        ("data", "label"),
        ("anything", "y"),
        ("x_train", "y_train"),
    ):
        d = load_data(save(tmp_path, **{key: x, label: y}))
        assert d.info.classes == ("0", "1", "2", "3") and d.train_labels is not None
        assert np.array_equal(d.train_labels.numpy(), y[split(20, 0.1, 0)[0]])
    d = load_data(save(tmp_path, x_train=x, x_test=x[:5] + 1, y_train=y, y_test=y[:5]))
    assert len(d.train) == 20 and np.allclose(d.test, x[:5] + 1) and d.test_labels is not None
    names = np.array(["owl", "ant", "owl", "bee"] * 5)
    d = load_data(save(tmp_path, x=x, y=names[:, None]))
    assert d.info.classes == ("ant", "bee", "owl") and d.train_labels is not None
    assert [d.info.classes[i] for i in d.train_labels] == names[split(20, 0.1, 0)[0]].tolist()


def test_bad_npz_contents(tmp_path: Path) -> None:
    x = rng().normal(size=(20, 3))
    cases: Sequence[tuple[dict[str, np.ndarray], str]] = [
        ({"a": x, "b": x}, "unclear which array holds the data"),
        ({"x": x, "y": np.arange(19)}, "has shape \\(19,\\) for 20 samples"),
        ({"x_train": x, "x_test": x[:, :2]}, "the same shape and dtype"),
        ({"x_train": x, "x_test": x.astype(int)}, "the same shape and dtype"),
        ({"x": np.float64(3)}, "single number"),
        ({"x": np.zeros((0, 3))}, "empty"),
        ({"x": x[:1]}, "0 training and 1 test"),
        ({"x": np.array(["a", "b"])}, "real numbers"),
        ({"x": x + 1j}, "real numbers"),
        ({"x": np.zeros((2, 2, 2, 2, 2, 2))}, "1 to 5 dimensions"),
        ({"x": np.full((9, 1, 4, 4), 3.0)}, "every value is 3"),
        ({"x": np.arange(40).reshape(20, 2) * 10**15}, "float64 cannot represent integers"),
        ({"x": x * 1e200}, "squares of the values overflow"),
    ]
    for arrays, message in cases:
        with pytest.raises(DataError, match=message):
            load_data(save(tmp_path, **arrays))
    for content in (b"", b"PK\x03\x04broken", b"\x93NUMPY\x01\x00"):
        (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"data\.npz"):
            load_data(str(tmp_path / "data.npz"))


def test_constant_features_are_named(tmp_path: Path) -> None:
    x = rng().normal(size=(30, 5))
    x[:, [1, 3]] = 0.1
    with pytest.raises(DataError, match=r"features 1, 3 .*drop"):
        load_data(save(tmp_path, x=x))
    signal = rng().normal(size=(30, 2, 40))
    signal[:, 1] = -7.3
    with pytest.raises(DataError, match="channel 1 "):
        load_data(save(tmp_path, x=signal))


def test_nan_and_infinity_are_refused(tmp_path: Path) -> None:
    x = rng().normal(size=(30, 5))
    x[4, 2], x[7, 0], x[9, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match=r"3 NaN or infinite values.*first in row 4"):
        load_data(save(tmp_path, x=x))


def test_integers_are_quantised(tmp_path: Path) -> None:
    counts = rng().integers(-2, 6, (40, 3))
    d = load_data(save(tmp_path, x=counts))
    assert d.info.kind == "vector" and (d.info.low, d.info.high, d.info.levels) == (-2, 5, 8)
    assert d.train.dtype == torch.int32 and (d.codec.levels.low, d.codec.levels.count) == (-2, 8)
    m = d.codec.to_model(d.train, noise=torch.rand(d.train.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(m.mean(0), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(m.std(0), torch.ones(3), atol=0.1, rtol=0)
    images = rng().integers(0, 4096, (40, 8, 8)).astype(">u2")
    images[0, 0, :2] = 0, 4095
    d = load_data(save(tmp_path, x=images))
    assert d.info.levels == 4096 and np.array_equal(d.train[:, 0].numpy(), images[split(40, 0.1, 0)[0]])
    assert load_data(save(tmp_path, x=images > 2000)).info.levels == 2


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_object_arrays_are_refused_and_run_nothing(tmp_path: Path) -> None:
    fuse = tmp_path / "ran"
    np.save(tmp_path / "x.npy", np.array([Bomb(fuse), None], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([Bomb(fuse), None], dtype=object))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb(fuse)))
    for name in ("x.npy", "x.npz", "raw.npy"):
        with pytest.raises(DataError, match="Python objects"):
            load_data(str(tmp_path / name))
    assert not fuse.exists()
    with pickle.loads((tmp_path / "raw.npy").read_bytes()):  # the bomb does work when it is let off
        assert fuse.exists()


def test_a_plain_file_comes_before_its_archive(tmp_path: Path) -> None:
    x = np.arange(12 * 6, dtype=np.uint8).reshape(12, 2, 3) + 7
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(x))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(x + 90)))
    data = load_data(str(tmp_path))
    assert int(torch.cat([data.train, data.test]).min()) == 7


def test_the_arms_of_the_pinwheel_turn_with_the_radius() -> None:
    # Five arms, each at the angle that its point would have without the turn of a quarter of e^r.
    x = sample_toy("pinwheel", 100_000, 0).double() / 2
    r, a = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    assert float(torch.exp(5j * (a - 0.25 * r.exp())).mean().abs()) > 0.8


def test_what_is_no_file_is_not_read_in_any_way() -> None:
    with pytest.raises(UsageError, match="digits is not read from a file, so size and fit would have no effect"):
        load_data("digits", reading=Reading(size=4, fit="crop"))
