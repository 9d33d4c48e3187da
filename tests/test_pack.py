"""``scoresde data pack``: whatever it writes is read as the same data, split in the same way."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from packs import CROP, pictures, png, same
from PIL import Image
from shell import Shell

from scoresde import TrainConfig, fit, load_data
from scoresde.core.errors import DataError, Problems, UsageError
from scoresde.data import Reading, inplace
from scoresde.data import pack as module
from scoresde.data.pack import pack
from scoresde.data.packed import beside
from scoresde.data.rows import Stored

try:
    import pyarrow
except ImportError:
    pyarrow = None

FORMATS = ["a.zip", "a.tar", "shards", "a.npy", *(["a.parquet"] if pyarrow else [])]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "scoresde" / "index"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the size above which data stay in their files."""
    return lambda most=0: monkeypatch.setattr(inplace, "LARGE", most)


def how(name: str) -> Reading:
    return CROP if name.endswith(".npy") else Reading()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("parts", [("",), ("train", "train", "test")])
def test_packed_pictures_are_the_same_data(
    parts: tuple[str, ...], name: str, tmp_path: Path, small: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 3000)
    folder = pictures(tmp_path / "photos", parts=parts)
    memory = load_data(str(folder), reading=CROP)
    seen: list[tuple[int, int]] = []
    found = pack(folder, tmp_path / name, how(name), lambda done, of: seen.append((done, of)))
    assert found.path == tmp_path / name and found.count == 90 and all(file.is_file() for file in found.files)
    assert seen[-1] == (90, 90) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(found.files) == {"a.npy": 2}.get(name, len(found.files) if name == "shards" else 1)
    if name == "shards":
        assert len(found.files) > 3 and found.files[0].name == "000000.tar"
    read = load_data(str(found.path), reading=CROP)
    same(read, memory)
    assert [path.relative_to(found.path).as_posix() for path in read.files] == [
        path.relative_to(folder).as_posix() for path in memory.files
    ]
    small(0)
    stored = load_data(str(found.path), reading=CROP)
    assert isinstance(stored.train, Stored)
    same(stored, memory)
    same(load_data(str(found.path), reading=CROP), memory)
    # What was packed can be packed again, from its files.
    again = pack(found.path, tmp_path / "again.npy", CROP)
    same(load_data(str(again.path)), memory)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_data_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 12, odd=False)
    first = pack(folder, tmp_path / name)
    second = pack(folder, tmp_path / f"b{name}")
    for one, other in zip(first.files, second.files, strict=True):
        if one.suffix != ".npz":
            assert one.read_bytes() == other.read_bytes()


def test_one_class_is_not_taken_for_the_folder(tmp_path: Path) -> None:
    for i in range(30):
        path = tmp_path / "photos" / "cat" / ("a", "b")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i, 6, 6, 3))
    memory = load_data(str(tmp_path / "photos"))
    assert memory.info.classes == ("cat",)
    for name in ("cat.zip", "x.tar", "cat"):
        same(load_data(str(pack(tmp_path / "photos", tmp_path / name).path)), memory)


def test_conditions_are_packed(tmp_path: Path, small: Callable[..., None]) -> None:
    folder = pictures(tmp_path / "photos", 40, odd=False)
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"number {i % 4}")
    memory = load_data(str(folder))
    for name in FORMATS:
        read = load_data(str(pack(folder, tmp_path / name).path))
        same(read, memory)
        assert torch.equal(read.train_given.tokens, memory.train_given.tokens)
        assert torch.equal(read.test_given.tokens, memory.test_given.tokens)
    with tarfile.open(tmp_path / "a.tar") as archive:  # the files of a sample are neighbours
        names = [Path(name).with_suffix("") for name in archive.getnames()]
    assert names[::2] == names[1::2]
    for path in sorted(folder.rglob("*.png")):
        given = folder / "given" / path.relative_to(folder)
        given.parent.mkdir(parents=True, exist_ok=True)
        given.write_bytes(path.read_bytes())
    read = load_data(str(pack(folder, tmp_path / "given.zip").path))
    assert torch.equal(read.train_given.image, load_data(str(folder)).train_given.image)
    with pytest.raises(DataError, match=r"given pictures.*\.zip or \.tar"):
        pack(folder, tmp_path / "given.npy")


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_a_run_goes_on_with_packed_data(parts: tuple[str, ...], tmp_path: Path, small: Callable[..., None]) -> None:
    folder = pictures(tmp_path / "photos", 120, parts, odd=False)
    config = TrainConfig(data=str(folder), cond="class", steps=8, batch=8, preset="tiny", warmup=3, decay="none")
    whole = fit(config, out=tmp_path / "whole", quiet=True)
    fit(replace(config, steps=4), out=tmp_path / "parts", quiet=True)
    small(0)
    for steps, name in ((6, "a.tar"), (8, "a.npy")):
        data = str(pack(folder, tmp_path / name).path)
        parts_of = fit(replace(config, data=data, steps=steps), out=tmp_path / "parts", resume=True, quiet=True)
    for ours, theirs in zip(parts_of.base.parameters(), whole.base.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --------------------------------------------------------------------------------------------------- tables and arrays


@pytest.mark.parametrize("kind", ["csv", "npz", "parts", "deep"])
def test_rows_of_numbers_are_packed(kind: str, tmp_path: Path, small: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / f"x.{'csv' if kind == 'csv' else 'npz'}"
    if kind == "csv":
        rows = [f"{rng.normal():.6f},{rng.integers(9)},{'ab'[rng.integers(2)]}" for _ in range(300)]
        path.write_text("\n".join(["height,count,label", *rows]))
    elif kind == "npz":
        np.savez(path, x=rng.integers(0, 99, (200, 6, 6, 3)).astype(np.uint8), y=rng.integers(0, 3, 200))
    elif kind == "parts":
        np.savez(path, x_train=rng.normal(size=(90, 3)), x_test=rng.normal(size=(20, 3)), y_train=np.arange(90) % 4)
    else:
        np.savez(path, x=rng.normal(size=(90, 2, 30)) + 1e9, text=np.array([f"a {i}" for i in range(90)]))
    memory = load_data(str(path))
    found = pack(path, tmp_path / "a.npy")
    read = load_data(str(found.path))
    small(0)
    stored = load_data(str(found.path))
    for data in (read, stored):
        assert data.identity.compared(memory.identity) == ("same", 0, 0)
        for name in ("kind", "shape", "classes", "names", "n_train", "n_test", "levels", "trained", "wide", "known"):
            assert getattr(data.info, name) == getattr(memory.info, name), name
        for name in ("train", "test"):
            x, y = getattr(data, name), getattr(memory, name)
            assert x.dtype == y.dtype and torch.equal(x[torch.arange(len(x))], y)
        assert (data.train_labels is None) == (memory.train_labels is None)
        assert data.train_labels is None or torch.equal(data.train_labels, memory.train_labels)
        assert torch.equal(data.rows, memory.rows)
    assert isinstance(stored.train, Stored) and str(stored.codec)[:20] == str(memory.codec)[:20]


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_the_file_beside_an_array_belongs_to_it(tmp_path: Path, small: Callable[..., None]) -> None:
    folder = pictures(tmp_path / "photos", odd=False)
    path = pack(folder, tmp_path / "a.npy").path
    x, file = np.load(path), beside(path)
    whole = file.read_bytes()
    for most in (2**30, 0):
        small(most)
        np.save(path, x[::-1])
        with pytest.raises(DataError, match=r"a\.keys\.npz describes another array than a\.npy"):
            load_data(str(path))
        np.save(path, x[:-1])
        with pytest.raises(DataError, match=r"a\.keys\.npz.*it describes 90 rows, but the array has 89"):
            load_data(str(path))
        np.save(path, x)
        file.write_bytes(whole[:-60])
        with pytest.raises(DataError, match=r"a\.keys\.npz.*cannot be used.*pack the data again"):
            load_data(str(path))
        for name, value, words in (
            ("hashes", np.zeros((89, 8), np.uint8), "hashes of shape"),
            ("labels", np.full(90, 7), "labels"),
            ("labels", np.full(90, -1), "labels"),
            ("about", np.frombuffer(b"[]", np.uint8), "cannot be used"),
            ("about", np.frombuffer(b"{" * 10**5, np.uint8), "cannot be used"),
            ("hashes", np.array([None, {}], dtype=object), "cannot be used"),
        ):
            file.write_bytes(whole)
            with np.load(file) as arrays:
                found = dict(arrays)
            np.savez(file.with_suffix(""), allow_pickle=True, **{**found, name: value})
            with pytest.raises(DataError, match=words):
                load_data(str(path))
        file.write_bytes(whole)
        load_data(str(path))


def test_what_is_not_packed(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos")
    for out, words in ((tmp_path / "a.rar", "no format for the suffix '.rar'"), (folder, "already exists")):
        with pytest.raises(UsageError, match=words):
            pack(folder, out)
    with pytest.raises(UsageError, match="size and fit would have no effect"):
        pack(folder, tmp_path / "a.zip", CROP)
    with pytest.raises(Problems, match="different sizes"):
        pack(folder, tmp_path / "a.npy")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(90, 2)))
    with pytest.raises(DataError, match="does not hold picture files"):
        pack(tmp_path / "x.npy", tmp_path / "a.zip")
    (folder / "top.png").write_bytes(png(0, 6, 6, 3))
    with pytest.raises(Problems, match="images both at the top level"):
        pack(folder, tmp_path / "a.tar")
    with pytest.raises(DataError, match="missing values"):
        np.save(tmp_path / "x.npy", np.array([[1.0, 2], [np.nan, 3], [4, 5]] * 9))
        pack(tmp_path / "x.npy", tmp_path / "a.npy", Reading(empty="keep"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "x.npy"]


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_left_of_what_failed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "photos", 20, odd=False)

    def stop(done: int, of: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match="No space left"):
        pack(folder, tmp_path / name, watch=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


# ---------------------------------------------------------------------------------------------------------- WebDataset


def shard(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for i, files in enumerate(samples):
            for suffix, data in files.items():
                archive.addfile(module._info(f"{i:06}.{suffix}", data), module.BytesIO(data))
    return path


def test_classes_and_texts_of_webdataset(tmp_path: Path) -> None:
    samples = [{"png": png(i, 6, 6, 3), "cls": str(i % 3).encode()} for i in range(60)]
    data = load_data(str(shard(tmp_path / "cls.tar", samples)))
    assert data.info.classes == ("0", "1", "2")
    every = torch.cat([data.train_labels, data.test_labels])
    assert all(int(y) == int(path.stem) % 3 for y, path in zip(every, data.files, strict=True))
    full = [
        {"png": one["png"], "json": json.dumps({"label": i % 3, "caption": f"a {'bc'[i % 2]}"}).encode()}
        for i, one in enumerate(samples)
    ]
    other = load_data(str(shard(tmp_path / "json.tar", full)))
    assert torch.equal(other.train_labels, data.train_labels) and other.info.known.words == ("a", "b", "c")
    assert other.identity.compared(data.identity) == ("same", 0, 0)
    again = load_data(str(pack(tmp_path / "json.tar", tmp_path / "a.zip").path))
    assert torch.equal(again.train_labels, data.train_labels)
    assert torch.equal(again.train_given.tokens, other.train_given.tokens)
    del samples[7]["cls"]
    with pytest.raises(Problems, match=r"some images have a file with their class.*000007\.png"):
        load_data(str(shard(tmp_path / "some.tar", samples)))
    samples[7]["cls"] = b" "
    with pytest.raises(Problems, match=r"000007\.cls is empty"):
        load_data(str(shard(tmp_path / "empty.tar", samples)))
    full[3]["json"] = b"{"
    with pytest.raises(Problems, match=r"000003\.json cannot be read"):
        load_data(str(shard(tmp_path / "bad.tar", full)))


# ---------------------------------------------------------------------------------------------------- the command line


def test_the_command(shell: Shell) -> None:
    pictures(Path("photos"), 60)
    out = shell("data pack photos a.zip")
    assert out.splitlines()[0].startswith("a.zip: 60 samples") and out.endswith("train --data a.zip\n")
    assert zipfile.ZipFile("a.zip").testzip() is None
    facts = shell.json("data pack photos a.npy --size 6 --fit crop --quiet")
    assert facts["rows"] == 60 and facts["files"] == ["a.npy", "a.keys.npz"] and shell.err == ""
    assert facts["bytes"] == Path("a.npy").stat().st_size + Path("a.keys.npz").stat().st_size
    shell.refuses("data pack photos a.zip", 2, "a.zip already exists")
    shell.refuses("data pack photos b.zip --size 6", 2, "size would have no effect")
    shell.refuses("data pack nothing b.zip", 3, "nothing")
    assert "51 training and 9 test samples from a.npy" in shell("data inspect a.npy")
    Image.fromarray(np.zeros((6, 6), np.float32)).save("photos/cat/bad.tiff")
    shell.refuses("data pack photos b.npy --size 6 --fit crop", 3, "bad.tiff")
    assert not Path("b.npy").exists()
