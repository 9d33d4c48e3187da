"""Files that were damaged: byte by byte, in what they mean, and as data that somebody else wrote."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CRAFTED", "damage_bytes", "damage_meaning", "files_of"]


def files_of(folder: Path, *suffixes: str) -> list[Path]:
    """The files below a folder, those with one of these suffixes if there are any, in a fixed order."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return sorted(p for p in found if not suffixes or p.suffix in suffixes)


# ---------------------------------------------------------------------------------------------------------------- bytes


def damage_bytes(rng: random.Random, file: Path, other: Path) -> str:
    """Change some bytes of a file, perhaps with those of another; what was done."""
    data = bytearray(file.read_bytes())
    n = len(data)
    i = rng.randrange(n + 1)
    j = min(n, i + rng.choice((1, 2, 8, 100, 4096)))
    how = rng.choice(("flip", "flip", "digit", "digit", "insert", "delete", "truncate", "repeat", "zero", "splice",
                      "replace", "append"))  # fmt: skip
    if how == "flip":
        for _ in range(rng.choice((1, 1, 1, 3, 30))):
            if n:
                data[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif how == "digit":  # the change that every format of text survives
        digits = [k for k, byte in enumerate(data) if 48 <= byte <= 57]
        if digits:
            k = rng.choice(digits)
            data[k] = 48 + (data[k] - 48 + rng.randrange(1, 10)) % 10
    elif how == "insert":
        data[i:i] = rng.randbytes(rng.choice((1, 4, 100)))
    elif how == "delete":
        del data[i:j]
    elif how == "truncate":
        del data[i:]
    elif how == "repeat":
        data[i:i] = data[i:j]
    elif how == "zero":
        data[i:j] = bytes(j - i)
    elif how == "splice":
        data[i:j] = other.read_bytes()[i:j]
    elif how == "replace":
        data = bytearray(other.read_bytes())
    elif how == "append":
        data += rng.randbytes(rng.choice((1, 8, 1000)))
    file.write_bytes(data)
    return f"{how} at {i}"


# -------------------------------------------------------------------------------------------------------------- meaning

LEAVES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 10**12, 10**30, 1e-300, "", "vp", "ode", "x0", "flow", "best",
    "os:system", "module:Class", "scoresde.core.files:atomic", "../..", "/dev/zero", "\x1b[31mred", "two\nlines",
    "\udcff", "a" * 5000, [], {}, [[]], [1, 2, 3], {"a": 1}, ["os:system"], float("nan"), float("inf"), -float("inf"),
)  # fmt: skip


def damage_meaning(rng: random.Random, run: Path) -> str:
    """Change what a run folder says, or which files it has; what was done."""
    if rng.random() < 0.65:
        return _edit(rng, rng.choice(files_of(run, ".json")))
    return rng.choice(FOLDERS)(rng, run)


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value, as its container and its key there."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _nodes(value[key])


def _edit(rng: random.Random, file: Path) -> str:
    """Change one value or key in a JSON file."""
    content = json.loads(file.read_text())
    inside, key = rng.choice(list(_nodes(content)) or [([content], 0)])
    old = inside[key]
    how = rng.choice(("value", "value", "number", "delete", "rename", "double", "nest", "swap", "again", "text"))
    if how == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        inside[key] = rng.choice((old + 1, old - 1, old * 2, -old, old * 10, old / 3, float(old), str(old), 0, 10**400))
    elif how == "delete":
        del inside[key]
    elif how == "rename" and isinstance(inside, dict):
        inside[rng.choice((f"{key}s", "", "format", "\x1b[31m", "__class__"))] = inside.pop(key)
    elif how == "double" and isinstance(inside, list):
        inside.append(old)
    elif how == "nest":
        inside[key] = rng.choice(([old], {"value": old}, {str(key): old}))
    elif how == "swap":
        second, place = rng.choice(list(_nodes(content)))
        if second is inside:  # otherwise one could come to lie in itself
            inside[key], second[place] = second[place], old
    elif how == "value":
        inside[key] = rng.choice(LEAVES)
    text = json.dumps(content, indent=1)
    if how == "again" and isinstance(content, dict):  # a key twice: the last one counts, in most readers
        name = rng.choice(list(content) or ["x"])
        text = text.rstrip().removesuffix("}") + f", {json.dumps(name)}: {json.dumps(rng.choice(LEAVES))}}}"
    elif how == "text":
        text = rng.choice((
            "", "null", "[]", "{}", "1", '"text"', "[" * 50_000 + "]" * 50_000, '{"a":' * 50_000 + "1" + "}" * 50_000,
            text.replace("1", "9" * 5000, 1), "\ufeff" + text, text + "x", text * 2, f"[{text}]", "NaN",
        ))  # fmt: skip
    data = text.encode("utf-8", "surrogatepass")
    file.write_bytes(text.encode("utf-16") if rng.random() < 0.02 else data)
    return f"{how} {key!r} in {file.name}"


def _delete(rng: random.Random, run: Path) -> str:
    file = rng.choice(files_of(run))
    file.unlink()
    return f"delete {file.name}"


def _rename(rng: random.Random, run: Path) -> str:
    file = rng.choice(files_of(run))
    file.rename(
        file.with_name(rng.choice((f"{file.name}.bak", f".{file.name}", file.name.upper(), f"{file.stem}.txt")))
    )
    return f"rename {file.name}"


def _folder(rng: random.Random, run: Path) -> str:
    file = rng.choice(files_of(run))
    file.unlink()
    file.mkdir()
    return f"a folder in the place of {file.name}"


def _special(rng: random.Random, run: Path) -> str:
    file = rng.choice(files_of(run))
    file.unlink()
    what = rng.choice(("fifo", "loop", "dangling", "null", "zero", "parent"))
    if what == "fifo":
        os.mkfifo(file)
    else:
        targets = {"loop": file.name, "dangling": "nothing", "null": "/dev/null", "zero": "/dev/zero", "parent": ".."}
        file.symlink_to(targets[what])
    return f"{what} in the place of {file.name}"


def _empty(rng: random.Random, run: Path) -> str:
    file = rng.choice(files_of(run))
    file.write_bytes(b"")
    return f"empty {file.name}"


def _extra(rng: random.Random, run: Path) -> str:
    """A copy of a checkpoint, or what an interrupted write leaves, under a name that might be taken for one."""
    steps = sorted((run / "checkpoints").glob("step-*"))
    name = rng.choice((
        "step-best", "step-60.bak", "step-000000099", "step-", "step-x", "step-999999999999999999999", "old",
        "copy of 4", ".step-000000009.tmp-1", "step-000000004 (copy)", "STEP-000000009", "step--00000001", "step-1e9",
    ))  # fmt: skip
    target = run / "checkpoints" / name
    if rng.random() < 0.5:
        shutil.copytree(rng.choice(steps), target, dirs_exist_ok=True)
    elif rng.random() < 0.5:
        target.mkdir(exist_ok=True)
    elif not target.exists():
        target.write_text("a file")
    return f"extra {name}"


def _latest(rng: random.Random, run: Path) -> str:
    text = rng.choice(("", "step-000000001\n", "nothing", "best", "../..", "/dev/zero", "\x1b[31m", "\0", "x" * 10**6))
    (run / "checkpoints" / "LATEST").write_text(text)
    return f"LATEST says {text[:20]!r}"


def _exchange(rng: random.Random, run: Path) -> str:
    """Two files of one name, or of one kind, change places."""
    a = rng.choice(files_of(run))
    others = [p for p in files_of(run) if p != a and (p.name == a.name or p.suffix == a.suffix)]
    if others:
        b = rng.choice(others)
        first = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(first)
        return f"exchange {a.relative_to(run)} and {b.relative_to(run)}"
    return "nothing"


FOLDERS: tuple[Callable[[random.Random, Path], str], ...] = (
    _delete, _rename, _folder, _special, _empty, _extra, _extra, _latest, _exchange,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- data of other people


def _npy(header: bytes, payload: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + payload


def _described(descr: str = "'<f8'", shape: str = "(3, 2)", order: str = "False", more: str = "") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}\n".encode()


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _png(width: int, height: int, data: bytes | None = None, depth: int = 8, colour: int = 0) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = zlib.compress(bytes(10**6)) if data is None else zlib.compress(data)
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def _saved(array: Any, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def _normal() -> Any:
    return np.random.default_rng(0).normal(size=(99, 2))


ZEROS = 256 * 2**20  # what a bomb unpacks to, from a thousandth


def _bomb(data: bytes = b"") -> bytes:
    """Gzip of ``data`` and very many zeros."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(2**20)
    return b"".join([pack.compress(data), *(pack.compress(block) for _ in range(ZEROS // 2**20)), pack.flush()])


def _zip_bomb() -> bytes:
    return _zip({"x.npy": _npy(_described("'|u1'", f"({ZEROS // 64}, 8, 8)"), bytes(ZEROS))})


def _pictures(home: Path) -> list[Path]:
    return files_of(home / "photos", ".png")


def _write(name: str, make: Callable[[], bytes]) -> Callable[[Path], str]:
    def write(home: Path) -> str:
        (home / name).write_bytes(make())
        return name

    return write


_array, _table = partial(_write, "points.npy"), partial(_write, "table.csv")
_images = partial(_write, "idx/train-images-idx3-ubyte")


def _npz(members: Callable[[], dict[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], str]:
    return _write("labelled.npz", lambda: _zip(members(), method))


def _photo(make: Callable[[], bytes]) -> Callable[[Path], str]:
    def write(home: Path) -> str:
        _pictures(home)[0].write_bytes(make())
        return "photos"

    return write


def _named(name: str | bytes, kind: str = "folder") -> Callable[[Path], str]:
    """A class, or a picture, or something else of this name among the pictures."""

    def make(home: Path) -> str:
        target = os.path.join(os.fsencode(home / "photos"), os.fsencode(name))
        picture = _pictures(home)[0]
        if kind == "folder":
            os.mkdir(target)
            for i in range(6):
                with open(os.path.join(target, f"{i}.png".encode()), "wb") as file:
                    file.write(picture.read_bytes())
        elif kind == "file":
            with open(target, "wb") as file:
                file.write(picture.read_bytes())
        elif kind == "fifo":
            os.mkfifo(target)
        elif kind == "empty":
            os.mkdir(target)
        else:
            os.symlink(kind, target)
        return "photos"

    return make


def _deep(home: Path) -> str:
    folder = home / "photos" / "cat" / "/".join("d" * 300)
    folder.mkdir(parents=True)
    shutil.copy(_pictures(home)[0], folder / "deep.png")
    return "photos"


def _header(header: str) -> Callable[[Path], str]:
    def write(home: Path) -> str:
        lines = (home / "table.csv").read_text().splitlines()
        (home / "table.csv").write_bytes("\n".join([header, *lines[1:]]).encode("utf-8", "surrogateescape") + b"\n")
        return "table.csv"

    return write


def _rows(change: Callable[[list[str]], list[str]]) -> Callable[[Path], str]:
    def write(home: Path) -> str:
        lines = (home / "table.csv").read_text().splitlines()
        (home / "table.csv").write_text("\n".join(change(lines)) + "\n")
        return "table.csv"

    return write


def _column(lines: list[str], name: str, values: tuple[str, ...]) -> list[str]:
    return [f"{line},{values[i % len(values)] if i else name}" for i, line in enumerate(lines)]


def _idx(shape: tuple[int, ...], payload: bytes = b"", magic: bytes = b"\0\0\x08\x03") -> bytes:
    return magic + struct.pack(f">{len(shape)}I", *shape) + payload


CRAFTED: dict[str, Callable[[Path], str]] = {
    "npy: more numbers than memory": _array(lambda: _npy(_described(shape="(1000000000, 1000000)"))),
    "npy: more numbers than the file": _array(lambda: _npy(_described(shape="(100000000, 2)"), bytes(64))),
    "npy: product overflows": _array(lambda: _npy(_described(shape=f"({2**62}, {2**62})"), bytes(64))),
    "npy: negative shape": _array(lambda: _npy(_described(shape="(-3, 2)"), bytes(48))),
    "npy: no rows": _array(lambda: _npy(_described(shape="(0, 2)"))),
    "npy: no axis": _array(lambda: _npy(_described(shape="()"), bytes(8))),
    "npy: forty axes": _array(lambda: _npy(_described(shape=str((1,) * 40)), bytes(8))),
    "npy: objects": _array(lambda: _saved(np.array([{}, []], dtype=object), True)),
    "npy: code for a type": _array(lambda: _npy(_described("__import__('os').system('touch x')"))),
    "npy: text": _array(lambda: _saved(np.array([["a", "b"]] * 9))),
    "npy: dates": _array(lambda: _saved(np.zeros((9, 2), "M8[s]"))),
    "npy: complex": _array(lambda: _saved(np.zeros((9, 2), complex))),
    "npy: fields": _array(lambda: _saved(np.zeros(9, [("a", float), ("b", int)]))),
    "npy: half": _array(lambda: _saved(_normal().astype("f2"))),
    "npy: big-endian": _array(lambda: _saved(_normal().astype(">f8"))),
    "npy: long double": _array(lambda: _saved(np.zeros((99, 2), np.longdouble))),
    "npy: not finite": _array(lambda: _saved(np.array([[np.nan, np.inf]] * 99))),
    "npy: huge": _array(lambda: _saved(np.array([[1e308, -1e308], [1.0, 2.0]] * 60))),
    "npy: denormal": _array(lambda: _saved(np.array([[5e-324, 0.0], [0.0, 5e-324]] * 60))),
    "npy: constant": _array(lambda: _saved(np.ones((99, 2)))),
    "npy: one row": _array(lambda: _saved(np.ones((1, 2)))),
    "npy: unsigned 64": _array(lambda: _saved(np.full((99, 2), 2**64 - 1, np.uint64))),
    "npy: deep header": _array(lambda: _npy(_described(shape="(" * 9000 + ")" * 9000), version=(2, 0))),
    "npy: long header": _array(lambda: _npy(_described() + b" " * 70_000, version=(2, 0))),
    "npy: version 9": _array(lambda: _npy(_described(), bytes(48), (9, 9))),
    "npy: extra key": _array(lambda: _npy(_described(more=", 'x': 1"), bytes(48))),
    "npy: header of the size of a word": _array(lambda: b"\x93NUMPY\x02\0\xff\xff\xff\xff{"),
    "npy: trailing bytes": _array(lambda: _saved(np.eye(2)) + b"more"),
    "npz: bomb": _write("labelled.npz", _zip_bomb),
    "npz: no members": _npz(lambda: {}),
    "npz: no arrays": _npz(lambda: {"readme.txt": b"hello"}),
    "npz: a name with control characters": _npz(lambda: {"\x1b[31mx.npy": _saved(np.ones((9, 2)))}),
    "npz: a name twice": _npz(lambda: {"x.npy": _saved(np.ones((9, 2))), "x": _saved(np.ones(3))}),
    "npz: a path": _npz(lambda: {"../../x.npy": _saved(np.ones((9, 2)))}),
    "npz: in itself": _npz(lambda: {"x.npz": _zip({"x.npy": _saved(np.ones((9, 2)))})}),
    "npz: labels of another length": _npz(lambda: {"x.npy": _saved(np.ones((9, 8, 8))), "y.npy": _saved(np.ones(5))}),
    "npz: a promise in it": _npz(lambda: {"x.npy": _npy(_described(shape="(1000000000, 1000000)"))}),
    "npz: another compression": _npz(lambda: {"x.npy": _saved(_normal())}, zipfile.ZIP_LZMA),
    "npz: ten thousand members": _npz(lambda: {f"{i}.npy": b"" for i in range(10_000)}),
    "csv: empty": _table(lambda: b""),
    "csv: a header alone": _table(lambda: b"a,b,c\n"),
    "csv: one row": _table(lambda: b"a,b,c\n1,2,3\n"),
    "csv: NULs": _table(lambda: b"a,b\n1,\0\0\n" * 20),
    "csv: binary": _table(lambda: random.Random(0).randbytes(5000)),
    "csv: UTF-16": _table(lambda: "a,b\n1,2\n".encode("utf-16")),
    "csv: one line of very many": _table(lambda: b"1," * 200_000 + b"1\n"),
    "csv: a cell of very many": _table(lambda: b"a,b\n" + b"1" * 300_000 + b",2\n"),
    "csv: a quote that never ends": _table(lambda: b'a,b\n1,"2\n' + b"1,2\n" * 50_000),
    "csv: carriage returns": _rows(lambda lines: ["\r".join(lines)]),
    "csv: not finite": _rows(lambda lines: [*lines, "nan,inf,-1e999"]),
    "csv: a short row": _rows(lambda lines: [*lines, "1,2"]),
    "csv: a long row": _rows(lambda lines: [*lines, "1,2,3,4"]),
    "csv: words": _rows(lambda lines: [*lines, "one,two,three"]),
    "csv: escapes in a cell": _rows(lambda lines: [*lines, "\x1b[31mred,\x07,1"]),
    "csv: a column of escapes": _rows(lambda lines: _column(lines, "kind", ("\x1b[31ma", "b\x07"))),
    "csv: column of one value": _rows(lambda lines: [f"{line},7" for line in lines]),
    "csv: hexadecimal, underscores, foreign digits": _rows(lambda lines: [*lines, "0x10,1_000,٣"]),
    "csv: escapes in a name": _header("\x1b[31mwidth,he\x07ight,count\x08"),
    "csv: names twice": _header("a,a,a"),
    "csv: names of nothing": _header(",,"),
    "csv: names of formulas": _header("=1+1,$x^$,$\\frac{1$"),
    "csv: bytes in a name": _header("w\udcffidth,height,count"),
    "csv: a name of a megabyte": _header(f"{'a' * 100_000},b,c"),
    "csv.gz: bomb": _write("table.csv.gz", lambda: _bomb(b"a,b\n1,2\n")),
    "csv.gz: a line of zeros": _write("table.csv.gz", lambda: _bomb(b"1,2\n" * 50)),
    "csv.gz: not gzip": _write("table.csv.gz", lambda: b"a,b\n1,2\n"),
    "csv.gz: empty": _write("table.csv.gz", lambda: gzip.compress(b"")),
    "csv.gz: two members": _write("table.csv.gz", lambda: gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n" * 40)),
    "csv.gz: gzip in gzip": _write("table.csv.gz", lambda: gzip.compress(gzip.compress(b"a,b\n1,2\n"))),
    "idx: more than memory": _images(lambda: _idx((2**32 - 1, 2**16, 2**16))),
    "idx: no pictures": _images(lambda: _idx((0, 8, 8))),
    "idx: pictures of no size": _images(lambda: _idx((24, 0, 8))),
    "idx: another type": _images(lambda: _idx((24, 8, 8), bytes(24 * 64), b"\0\0\x0d\x03")),
    "idx: bomb": _write("idx/train-labels-idx1-ubyte.gz", lambda: _bomb(_idx((24,), b"", b"\0\0\x08\x01"))),
    "idx: bomb of pictures": _images(lambda: _bomb(_idx((2**22, 8, 8)))),
    "png: a bomb": _photo(lambda: _png(60_000, 60_000)),
    "png: wide": _photo(lambda: _png(2**31 - 1, 1)),
    "png: of no size": _photo(lambda: _png(0, 8)),
    "png: sixteen bits": _photo(lambda: _png(8, 8, bytes(8 * 17), 16)),
    "png: colour": _photo(lambda: _png(8, 8, bytes(8 * 25), 8, 2)),
    "png: other size": _photo(lambda: _png(9, 7, bytes(7 * 10))),
    "png: no data": _photo(lambda: _png(8, 8, b"")),
    "png: empty": _photo(lambda: b""),
    "png: a page": _photo(lambda: b"<html>not found</html>"),
    "photos: a class with escapes": _named("\x1b[31mred"),
    "photos: a class of two lines": _named("two\nlines"),
    "photos: a class of bytes": _named(b"\xff\xfe"),
    "photos: a class turned round": _named("\u202eabc"),
    "photos: a class of a formula": _named("$x^$"),
    "photos: a file with escapes": _named("\x1b[31m.txt", "file"),
    "photos: a picture with escapes": _named("cat/\x1b[2J.png", "file"),
    "photos: a picture of bytes": _named(b"cat/\xff.png", "file"),
    "photos: a FIFO": _named("cat/fifo.png", "fifo"),
    "photos: a loop": _named("cat/loop", "."),
    "photos: a loop of folders": _named("cat/up", "../.."),
    "photos: a dangling link": _named("cat/x.png", "nothing"),
    "photos: a device": _named("cat/zero.png", "/dev/zero"),
    "photos: an empty class": _named("empty", "empty"),
    "photos: very deep": _deep,
}  # fmt: skip
