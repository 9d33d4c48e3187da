"""Archives of pictures: read like the folder they were made of, never unpacked, and never trusted."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packs import CROP, pictures, png, same
from PIL import Image

from scoresde import load_data
from scoresde.core.errors import DataError, Problems
from scoresde.data import Reading, inplace
from scoresde.data.decoded import PictureFiles
from scoresde.data.places import Folder, Member, Tree, archive_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "scoresde" / "index"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the size above which data stay in their files."""
    return lambda most=0: monkeypatch.setattr(inplace, "LARGE", most)


def zipped(folder: Path, out: Path, above: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(out, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, above + path.relative_to(folder).as_posix())
    return out


def tarred(folder: Path, out: Path, above: str = "", mode: Any = "w") -> Path:
    with tarfile.open(out, mode) as archive:
        archive.add(folder, above or ".")
    return out


def sharded(folder: Path, out: Path, n: int = 3) -> Path:
    out.mkdir()
    archives = [tarfile.open(out / f"{i:06}.tar", "w") for i in range(n)]
    for i, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        archives[i % n].add(path, path.relative_to(folder).as_posix())
    for archive in archives:
        archive.close()
    return out


MADE = {
    "deflated": lambda folder, out: zipped(folder, out / "a.zip"),
    "stored": lambda folder, out: zipped(folder, out / "A.ZIP", method=zipfile.ZIP_STORED),
    "zip of the folder": lambda folder, out: zipped(folder, out / "a.zip", "photos/"),
    "tar": lambda folder, out: tarred(folder, out / "a.tar"),
    "tar of the folder": lambda folder, out: tarred(folder, out / "a.tar", "photos"),
    "shards": lambda folder, out: sharded(folder, out / "shards"),
}


# ---------------------------------------------------------------------------------------------------- like the folder


@pytest.mark.parametrize("how", MADE)
def test_an_archive_is_its_folder(how: str, tmp_path: Path, small: Callable[..., None]) -> None:
    folder = pictures(tmp_path / "photos")
    memory = load_data(str(folder), reading=CROP)
    archive = MADE[how](folder, tmp_path)
    read = load_data(str(archive), reading=CROP)
    same(read, memory)
    assert isinstance(read.train, torch.Tensor)
    assert [path.name for path in read.files] == [path.name for path in memory.files]
    assert str(read.origin(0)).startswith(str(archive))
    small(0)
    stored, again = (load_data(str(archive), reading=CROP) for _ in range(2))
    assert isinstance(stored.train.rows, PictureFiles)
    same(stored, memory)
    same(again, memory)
    assert [note for note in stored.notes if note not in again.notes] == []
    assert set(read.notes) < set(stored.notes) == set(again.notes)


@pytest.mark.parametrize("parts", [("",), ("train", "train", "test"), ("training", "val")])
def test_a_large_folder_is_decoded_on_demand(
    parts: tuple[str, ...], tmp_path: Path, small: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = pictures(tmp_path / "photos", parts=parts)
    memory = load_data(str(folder), reading=CROP)
    small((memory.train.nbytes + memory.test.nbytes) // 8)  # judged by the first, which may be grey
    stored = load_data(str(folder), reading=CROP)
    assert isinstance(stored.train.rows, PictureFiles) and stored.info.shape == (4, 6, 6)
    same(stored, memory)
    small(10 * memory.train.nbytes)
    assert isinstance(load_data(str(folder), reading=CROP).train, torch.Tensor)
    small(0)
    assert len(list(cache.iterdir())) == 1
    read, real = [], Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, file, most=None: read.append(file) or real(self, file, most))
    again = load_data(str(folder), reading=CROP)
    assert len(read) == 1  # the first, to know how large they are
    assert torch.equal(again.train[:5], memory.train[:5]) and len(read) == 6
    load_data(str(folder), reading=Reading(size=4, fit="crop"))
    assert len(read) > 90 and len(list(cache.iterdir())) == 2


def test_a_change_is_noticed(tmp_path: Path, small: Callable[..., None]) -> None:
    folder = pictures(tmp_path / "photos", odd=False)
    small(0)
    first = load_data(str(folder))
    file = first.files[0]
    file.write_bytes(png(1234, 5, 5, 3))
    with pytest.raises(DataError, match=r"now has the shape \(3, 5, 5\).*it has changed"):
        first.train[:1]
    file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"is not a readable image \(text\); it has changed"):
        first.train[:1]
    with pytest.raises(Problems, match="1 of 90 files is not a readable image"):
        load_data(str(folder))
    file.write_bytes(png(1234, 6, 6, 4))
    with pytest.raises(DataError, match="has 4 channels, but there should be 3"):
        first.train[:1]
    file.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        first.train[:1]
    archive = zipped(folder, tmp_path / "a.zip")
    data = load_data(str(archive))
    os.utime(archive, (1, 1))
    with pytest.raises(DataError, match="the archive has changed since it was opened"):
        data.train[:1]


def test_bad_pictures_are_left_out_in_place(tmp_path: Path, small: Callable[..., None]) -> None:
    folder = pictures(tmp_path / "photos", odd=False)
    (folder / "cat" / "bad.png").write_bytes(b"no picture")
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(folder / "cat" / "deep.png")
    skip = Reading(on_bad="skip")
    memory = load_data(str(folder), reading=skip)
    small(0)
    for place in (folder, tarred(folder, tmp_path / "a.tar")):
        stored = load_data(str(place), reading=skip)
        same(stored, memory)
        assert set(memory.notes) < set(stored.notes)
        with pytest.raises(Problems) as error:
            load_data(str(place))
        assert len(error.value.problems) == 2


def test_deep_grey_pictures_keep_their_levels(tmp_path: Path, small: Callable[..., None]) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    for i in range(40):
        x = np.random.default_rng(i).integers(0, 65536, (5, 5), dtype=np.uint16)
        Image.fromarray(x).save(folder / f"{i}.png")
    memory = load_data(str(folder))
    small(0)
    stored = load_data(str(folder))
    same(stored, memory)
    assert stored.info.levels == 65536 and stored.train.dtype == torch.int32


def test_texts_and_given_pictures(tmp_path: Path, small: Callable[..., None]) -> None:
    folder = pictures(tmp_path / "photos", 40, odd=False)
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"number {i % 4}")
        given = folder / "given" / path.relative_to(folder)
        given.parent.mkdir(parents=True, exist_ok=True)
        given.write_bytes(path.read_bytes())
    memory, read = load_data(str(folder)), load_data(str(zipped(folder, tmp_path / "a.zip")))
    same(read, memory)
    assert torch.equal(read.train_given.tokens, memory.train_given.tokens)
    assert torch.equal(read.train_given.image, memory.train_given.image)
    small(0)
    stored = load_data(str(folder))
    same(stored, memory)
    assert torch.equal(stored.train_given.tokens, memory.train_given.tokens) and stored.train_given.image is None
    assert any("too large to be read into memory, but conditions must be" in note for note in stored.notes)
    with pytest.raises(DataError, match="conditions must be"):
        load_data(str(folder), reading=Reading(needs=("image",)))


def test_the_root_of_an_archive(tmp_path: Path) -> None:
    for i, (names, root) in enumerate([
        (["cat/1.png", "dog/2.png"], ""),
        (["photos/cat/1.png", "photos/dog/2.png", "__MACOSX/photos/._1.png", ".DS_Store"], "photos"),
        (["cat/1.png", "cat/2.png"], ""),  # a single class
        (["photos/1.png", "notes.txt"], ""),
        (["./cat/1.png", "dog//2.png"], ""),
    ]):  # fmt: skip
        path = tmp_path / f"x{i}.tar"
        with tarfile.open(path, "w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 3
                archive.addfile(info, io.BytesIO(b"abc"))
        assert archive_of(path).path == (path / root if root else path)
    path = tmp_path / "cat.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", b"abc")
    assert archive_of(path).path == path / "cat"  # the folder that was packed, by its name
    assert archive_of(path).read(path / "cat" / "1.png") == b"abc"


# -------------------------------------------------------------------------------------------------------- not trusted


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as error:
        load_data(str(path))
    for word in words:
        assert word in str(error.value), str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["../up.png", "/etc/x.png", "cat/../../x.png", "a\0b.png"])
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tar: the name of the member .* leads out of the archive"):
        Tree(tmp_path / "a.tar").add(tmp_path / "a.tar", name, Member(0, 0, 0, 0))
    if "\0" in name:
        return
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    refuses(tmp_path / "a.tar", repr(name), "leads out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    refuses(tmp_path / "a.zip", repr(name), "leads out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "a.zip"]


def test_members_that_are_no_files(tmp_path: Path) -> None:
    for kind, what in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.FIFOTYPE, "not a regular file")):
        info = tarfile.TarInfo("x.png")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(info)
        refuses(tmp_path / "a.tar", "'x.png'", what, "data pack")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x.png"))
        archive.addfile(tarfile.TarInfo("./x.png"))
    refuses(tmp_path / "a.tar", "two members called './x.png'")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
        archive.addfile(tarfile.TarInfo("x/y.png"))
    refuses(tmp_path / "a.tar", "'x/y.png' is used both as a file and as a folder")


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.data.places.MOST", 3)
    refuses(tarred(pictures(tmp_path / "p", 4), tmp_path / "a.tar"), "more than 3 members")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_a_compressed_tar_says_what_to_do(mode: str, name: str, tmp_path: Path) -> None:
    refuses(tarred(pictures(tmp_path / "p", 4), tmp_path / name, mode=mode), "compressed as a whole", "data pack")


def test_archives_that_were_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(bytes(700))
    whole = tmp_path / "a.tar"
    with tarfile.open(whole, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i in range(3):
            archive.add(folder / f"{i}.png", f"{i}.png")
    data = whole.read_bytes()
    assert data[:5] == b"0.png" and data[1536:1541] == b"1.png"
    for cut, words in {
        3 * 1536: ("ends after the member '2.png' without an end mark",),
        2 * 1536 + 600: ("was cut off in the member '2.png'",),
        2 * 1536 + 100: ("damaged after the member '1.png'",),
        2 * 1536: ("ends after the member '1.png'",),
        100: ("is damaged, or is not a tar archive",),
        0: ("is not a tar archive",),
    }.items():
        whole.write_bytes(data[:cut])
        refuses(whole, *words)
    whole.write_bytes(data[:1536] + b"zzzz" + data[1540:])  # the checksum of a header is wrong
    refuses(whole, "damaged after the member '0.png'")
    path = zipped(folder, tmp_path / "a.zip")
    data = path.read_bytes()
    for cut in (len(data) - 10, len(data) // 2, 4, 0):
        path.write_bytes(data[:cut])
        refuses(path, "is damaged or is not a zip archive")


def test_damaged_and_encrypted_members(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 40, odd=False)
    path = zipped(folder, tmp_path / "a.zip")
    whole, place = path.read_bytes(), archive_of(path)
    file, member = next((file, one) for file, one in place.tree.members.items())
    name = file.relative_to(path).as_posix()
    at = member.start + 30 + len(name) + 5
    for change, words in (
        (whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :], "damaged"),
        (whole[: member.start] + b"XX" + whole[member.start + 2 :], "a header is missing"),
    ):
        path.write_bytes(change)
        refuses(path, name, words, "1 of 40 files is not a readable image")
    central = whole.rindex(b"PK\x01\x02")
    path.write_bytes(whole[: central + 8] + struct.pack("<H", 1) + whole[central + 10 :])
    refuses(path, "is encrypted", "data pack")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(next(folder.rglob("*.png")), "x.png")
    refuses(path, "'x.png' is compressed by an unsupported method")


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.core.opened.FREE", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(10**7))
    refuses(path, "x.png", "it unpacks from")
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 900)  # a size that is a lie
    path.write_bytes(bytes(data))
    refuses(path, "x.png", "the size or the checksum is wrong")
    tracemalloc.start()
    with pytest.raises(OSError, match="the size or the checksum"):
        archive_of(path).read(path / "x.png")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_a_checksum_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x.bmp", b"abc")
    path.write_bytes(path.read_bytes().replace(b"abc", b"abd"))
    with pytest.raises(OSError, match="the size or the checksum is wrong"):
        archive_of(path).read(path / "x.bmp")


@pytest.mark.parametrize("name", ["hashes", "kept", "notes", "event"])
def test_a_damaged_index_of_pictures_is_made_again(
    name: str, tmp_path: Path, small: Callable[..., None], cache: Path
) -> None:
    folder = pictures(tmp_path / "photos")
    memory = load_data(str(folder), reading=CROP)
    small(0)
    load_data(str(folder), reading=CROP)
    (file,) = cache.iterdir()
    with np.load(file) as arrays:
        found = dict(arrays)
    found[name] = found[name][:-1] if name == "hashes" else np.array(7.5)
    np.savez(file.with_suffix(""), **found)
    same(load_data(str(folder), reading=CROP), memory)
