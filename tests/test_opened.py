"""What is read: regular files, as much as memory holds, and never more than is there."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoresde.core.errors import CheckpointError, DataError, ScoresdeError
from scoresde.core.files import read_json, read_lines, read_metadata, read_object, read_tensors
from scoresde.core.opened import FREE, gunzipped, out_of_memory, parse_json, read_arrays, read_bytes, reason, regular
from scoresde.data import load_data
from scoresde.data.arrays import load_arrays
from scoresde.run.origin import kept_identity
from scoresde.study.features import read_features
from scoresde.study.single_image import read_picture

MADE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "socket": lambda path: _bound(path),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}


def _bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("kind", MADE)
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket has a short name
    real = open

    def checked(path: object, *args: str) -> object:
        assert "x." not in str(path), "this may never end"
        return real(path, *args)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", checked)
    for name in ("x.csv", "x.npy", "x.npz", "x.json", "x.safetensors", "x.png", "x.jsonl", "rows.npz", "x.csv.gz"):
        MADE[kind](Path(name))
    reads: list[tuple[Callable[[Path], object], str]] = [
        (read_json, "x.json"), (read_object, "x.json"), (read_tensors, "x.safetensors"),
        (read_metadata, "x.safetensors"), (load_arrays, "x.npz"), (read_features, "x.npz"), (read_picture_of, "x.png"),
        (lambda path: load_data(str(path)), "x.csv"), (lambda path: load_data(str(path)), "x.csv.gz"),
        (lambda path: load_data(str(path)), "x.npy"), (lambda path: kept_identity(path.parent), "rows.npz"),
    ]  # fmt: skip
    if kind != "link to nothing":
        reads.append((read_lines, "x.jsonl"))
    for read, name in reads:
        with pytest.raises(ScoresdeError) as error:
            read(Path(name))
        assert error.value.exit_code == 3 and name.partition(".")[0] in str(error.value)


def read_picture_of(path: Path) -> object:
    return read_picture(path, 64)


def test_a_name_that_cannot_be(tmp_path: Path) -> None:
    for name in ("a\0b", "n" * 5000):
        with pytest.raises(OSError, match=r"zero byte|too long"):
            regular(tmp_path / name)
        with pytest.raises(CheckpointError, match=r"zero byte|too long"):
            read_json(tmp_path / name)
        with pytest.raises(DataError):
            load_data(str(tmp_path / name))


def test_more_than_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.truncate(2**43)
    with pytest.raises(OSError, match=r"needs 8\.796 TB of memory, but only"):
        read_bytes(path)
    with pytest.raises(DataError, match=r"x\.csv cannot be read: it needs 8\.796 TB of memory"):
        load_data(str(path))
    with pytest.raises(CheckpointError, match="files of this kind may not exceed"):
        read_json(path)


# ------------------------------------------------------------------------------------------------------------- archives


def test_a_gzip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.core.opened.FREE", 10_000)
    assert gunzipped(gzip.compress(bytes(5000))) == bytes(5000), "within what is free"
    fair = bytes(np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8))
    assert gunzipped(gzip.compress(fair)) == fair, "or what is packed as data are"
    bomb = gzip.compress(bytes(1_000_000))
    (tmp_path / "x.csv.gz").write_bytes(bomb)
    head = struct.pack(">4B3I", 0, 0, 8, 3, 1000, 1000, 1)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(1_000_000)))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError, match=r"unpacks from .*may unpack to at most"):
            load_data(str(path))


def test_an_archive_bomb(tmp_path: Path) -> None:
    """Archives say how large their members are, so that none needs to be unpacked."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (FREE + 1,)})
        for _ in range(FREE // 2**24):
            file.write(bytes(2**24))
    words = (
        r"to 268\.4 MB, but a file of this size may unpack to at most 268\.4 MB; if you trust the file, unpack it first"
    )
    with pytest.raises(DataError, match=words):
        load_data(str(path))


@pytest.mark.parametrize("shape", [(10**12, 10**6), (2**62,), (-3, 2), (7, 2)])
def test_an_array_that_promises_more_than_there_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file.write(bytes(48))
    (tmp_path / "x.npy").write_bytes(file.getvalue())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", file.getvalue())
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="but 48 bytes follow"):
            load_data(str(tmp_path / name))


def test_a_member_that_says_it_is_smaller_is_damaged(tmp_path: Path) -> None:
    """Its checksum is that of all bytes, which nobody would have read."""
    np.savez(tmp_path / "x.npz", x=np.arange(60_000.0).reshape(30_000, 2))
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data.replace(b"(30000, 2)", b"(20000, 2)"))
    with pytest.raises(ValueError, match="needs 320,000 bytes, but 480,000 bytes follow"):
        read_arrays(tmp_path / "x.npz")


def test_pictures_of_too_many_pixels(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    import zlib

    data[16:24] = struct.pack(">2I", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "x.png").write_bytes(data)
    for read in (lambda: load_data(str(tmp_path)), lambda: read_picture(tmp_path / "x.png", 64)):
        with pytest.raises(DataError, match=r"x\.png.*10000000000 pixels"):
            read()


def test_a_program_that_pillow_would_start(tmp_path: Path) -> None:
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n")
    with pytest.raises(DataError, match=r"x\.eps is not a readable picture; use one of the formats PNG"):
        read_picture(tmp_path / "x.eps", 64)


# ----------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 50_000 + "]" * 50_000, "nested too deeply"),
        ('{"a":' * 50_000, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        (f'{{"step": {"9" * 40}}}', "40 digits"),
        (f'{{"step": {"9" * 5000}}}', "5000 digits"),
        ("", "Expecting value"),
        ("{", "Expecting property"),
        ("\ufeff{}", "BOM"),
    ],
    ids=range(8),
)
def test_json_that_is_none(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"x\.json cannot be read: .*{why}"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match=r"x\.json cannot be read: .*utf-8"):
        read_json(tmp_path / "x.json")


def test_json_that_is_some() -> None:
    values = {"a": [1, -(2**63), 2**63 - 1, 0.1, None, True, "\u1234"], "b": {"c": [[[]]]}}
    assert parse_json(json.dumps(values)) == values


def test_a_header_of_safetensors_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    deep = b'{"a":' * 50_000
    for data in (struct.pack("<Q", 2**60) + b"{}", b"", struct.pack("<Q", len(deep)) + deep, b"\xff" * 100):
        path.write_bytes(data)
        for read in (read_tensors, read_metadata):
            with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read as safetensors"):
                read(path)


def test_reasons() -> None:
    assert reason(OSError(28, "No space left on device", "x")) == "No space left on device"
    assert reason(MemoryError()) == "it needs more memory than is available"
    assert reason(RecursionError("maximum")) == "it is nested too deeply"
    assert reason(ValueError("a\n b")) == "a b" and reason(KeyError()) == "KeyError"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_memory_that_is_not_there_is_told_in_one_line(error: Exception) -> None:
    assert out_of_memory(error) and reason(error) == "it needs more memory than is available"
    assert not out_of_memory(RuntimeError("allocate")) and not out_of_memory(ValueError("out of memory"))
