"""What is written: whole or not at all, for those who may read it, and known again if it was changed."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.core import files
from scoresde.core.errors import CheckpointError
from scoresde.core.files import (
    append_line,
    atomic,
    clear_leftovers,
    living,
    make_folder,
    new_folder,
    read_json,
    read_lines,
    read_metadata,
    read_object,
    read_tensors,
    was_changed,
    write_arrays,
    write_csv,
    write_json,
    write_lines,
    write_tensors,
)
from scoresde.plot import save_gif, save_image_grid
from scoresde.plot.base import save_figure

TENSORS = {"a": torch.arange(4.0), "b": torch.ones(0), "c": torch.tensor(3, dtype=torch.int8), "d": torch.tensor(True)}


def figure(path: Path) -> None:
    from matplotlib.figure import Figure

    save_figure(path, Figure((1, 1)))


WRITES: dict[str, Callable[[Path], object]] = {
    "x.json": lambda path: write_json(path, {"a": 1}, signed=True),
    "x.jsonl": lambda path: write_lines(path, [{"step": 1}]),
    "y.jsonl": lambda path: append_line(path, {"step": 1}),
    "x.csv": lambda path: write_csv(path, ["a"], [[1]]),
    "x.npz": lambda path: write_arrays(path, {"x": np.arange(9)}),
    "x.safetensors": lambda path: write_tensors(path, TENSORS),
    "x.png": figure,
    "y.png": lambda path: save_image_grid(path, np.zeros((2, 1, 8, 8)), 0, 1),
    "x.gif": lambda path: save_gif(path, [np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)]),
}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize("name", WRITES)
def test_files_are_readable_under_the_umask(tmp_path: Path, umask: None, name: str) -> None:
    WRITES[name](tmp_path / "made" / name if "y.jsonl" != name else tmp_path / name)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


# ---------------------------------------------------------------------------------------------------------- interrupted


def dead() -> int:
    """The number of a process that is no more."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    gone = dead()
    assert not living(gone) and living(os.getpid()) and living(os.getppid())
    (tmp_path / "below").mkdir()
    left = [f".x.json.tmp-{gone}", f".x.json.tmp-{gone}-3", f".new\nline.tmp-{os.getpid()}-999999"]
    kept = [f".x.json.tmp-{os.getppid()}-0", ".x.json.tmp", "x.json.tmp-1", f".tmp-{gone}", f".x.tmp-{gone}.bak"]
    for name in left + kept:
        (tmp_path / name).touch()
    (tmp_path / f".step-1.tmp-{gone}-1").mkdir()
    (tmp_path / f".step-1.tmp-{gone}-1" / "file").touch()
    (tmp_path / "below" / f".x.tmp-{gone}").touch()
    write_json(tmp_path / "y.json", 1)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "below", "y.json"])
    assert os.listdir(tmp_path / "below"), "which is of another write"
    clear_leftovers(tmp_path, below=True)
    assert os.listdir(tmp_path / "below") == []


def test_two_may_write_the_same_file(tmp_path: Path) -> None:
    with atomic(tmp_path / "x") as one, atomic(tmp_path / "x") as other:
        one.write_text("one")
        other.write_text("other")
        write_json(tmp_path / "y", 1)
    assert (tmp_path / "x").read_text() == "one" and sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("old", "new"):
        with atomic(tmp_path / "best") as made:
            made.mkdir()
            (made / "x").write_text(text)
    assert os.listdir(tmp_path) == ["best"] and (tmp_path / "best/x").read_text() == "new"
    os.rename(tmp_path / "best", tmp_path / f".best.old-{dead()}-0")  # it was killed between the two
    clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["best"] and (tmp_path / "best/x").read_text() == "new"

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="Input/output"), atomic(tmp_path / "best") as made:
        made.mkdir()
        (made / "x").write_text("newer")
    assert os.listdir(tmp_path) == ["best"] and (tmp_path / "best/x").read_text() == "new"


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("when", ["write", "fsync"])
def test_a_disk_that_is_full(tmp_path: Path, name: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if when == "fsync":

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
        if name == "y.jsonl":
            pytest.skip("a log is not flushed to the disk")
    else:  # /dev/full takes a few bytes into a buffer, as a disk does
        path = tmp_path / name
        if name == "y.jsonl":
            path.symlink_to("/dev/full")
            monkeypatch.setattr(files, "regular", lambda path: 0)
        else:
            monkeypatch.setattr(files, "clear_leftovers", lambda folder: Full.take(folder, name))
            monkeypatch.setattr(files, "_remove", lambda path: path.unlink(missing_ok=True))
            if name == "x.safetensors":
                pytest.skip("it is not written through the link")
    with pytest.raises(CheckpointError, match=rf"cannot write .*{name}: No space left on device; free some space"):
        WRITES[name](tmp_path / name)
    assert os.listdir(tmp_path) == ([name] if name == "y.jsonl" else [])


class Full:
    """The temporary names that are next in a folder lead to a device that is always full."""

    @staticmethod
    def take(folder: Path, name: str) -> None:
        for temporary in [t for t in files._writing if t.startswith(f".{name}.tmp-")]:
            (folder / temporary).symlink_to("/dev/full")


def test_a_line_that_did_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    import signal

    path = tmp_path / "x.jsonl"
    append_line(path, {"step": 1})
    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limit[1]))
        with pytest.raises(CheckpointError, match=r"x\.jsonl: File too large"):
            append_line(path, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", WRITES)
def test_what_is_there_of_another_kind_is_not_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.symlink_to("/dev/null")
    with pytest.raises(CheckpointError, match=r"cannot write .*device"):
        WRITES[name](path)
    assert path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"cannot write .*pipe"):
        WRITES[name](path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*(director|folder)"):
        WRITES[name](path)


def test_names_that_cannot_be(tmp_path: Path) -> None:
    for name in ("a\0b", "n" * 5000):
        for make in (write_of("x"), make_folder, folder_of):
            with pytest.raises(CheckpointError, match=r"zero byte|too long; choose a shorter name"):
                make(tmp_path / name)
    for path in (Path("."), Path("/")):
        with pytest.raises(CheckpointError, match="it is a folder"):
            write_json(path, 1)


def write_of(text: str) -> Callable[[Path], object]:
    return lambda path: write_json(path, text)


def folder_of(path: Path) -> None:
    with new_folder(path):
        pass


# -------------------------------------------------------------------------------------------------------------- changed


def test_a_changed_digit_is_seen(tmp_path: Path) -> None:
    content = {"b": (1, 2.5), "a": {"x": [None, True, "é\u202e"]}, 3: math.inf}
    path = write_json(tmp_path / "x.json", content, signed=True)
    assert not was_changed(path)
    assert read_json(path) == {"b": [1, 2.5], "a": {"x": [None, True, "é\u202e"]}, "3": math.inf}
    text = path.read_text()
    for at, digit in enumerate(text):
        if digit.isdigit():
            path.write_text(text[:at] + str((int(digit) + 1) % 10) + text[at + 1 :])
            try:
                assert was_changed(path), text[at - 9 : at + 9]
            except CheckpointError:  # it is no JSON any more
                continue
    path.write_text(json.dumps(dict(reversed(json.loads(text).items()))))
    assert not was_changed(path), "spacing and order say nothing"
    path.write_text('{"a": 1}')
    assert not was_changed(path), "it is from before there were any"
    path.write_text('{"a": 1, "format": 99, "checksum": "of another kind"}')
    assert not was_changed(path), "a newer version may count otherwise, and is refused by its number"


def test_changed_tensors_are_seen(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "x.safetensors", TENSORS, {"n": 12, "name": "digits", "spread": math.inf})
    found = read_tensors(path)
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    assert read_metadata(path) == {"format": files.FORMAT, "n": 12, "name": "digits", "spread": math.inf}
    good = path.read_bytes()
    for old, new in ((b"digits", b"digitz"), (b"12", b"13"), (good[-20:], bytes([*good[-20:-1], 0]))):
        assert good.count(old) == 1 and old != new
        path.write_bytes(good.replace(old, new))
        with pytest.raises(CheckpointError, match="was changed after it was written"):
            read_tensors(path)
    write_tensors(path, TENSORS, signed=False)
    assert read_tensors(path).keys() == TENSORS.keys()


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    for content in ([], 3, None, "x"):
        write_json(tmp_path / "x.json", content)
        with pytest.raises(CheckpointError, match=r"x\.json contains .* instead of a JSON object"):
            read_object(tmp_path / "x.json")


# ---------------------------------------------------------------------------------------------------------------- lines


def test_damaged_lines_are_counted_and_those_after_them_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = [{"step": i, "loss": i / 3} for i in range(4)]
    bad = [b'{"step": 1, "lo', b"[1]", b"7", b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b"\xff", b"null"]
    lines = [json.dumps(line).encode() for line in good]
    path.write_bytes(b"\n".join([lines[0], *bad, lines[1], b"", lines[2], lines[3] + b"\r"]))
    with pytest.warns(UserWarning, match=r"x\.jsonl: skipped 8 damaged lines") as caught:
        assert read_lines(path) == good
    assert len(caught) == 1


def test_a_line_after_one_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_line(path, {"step": 1})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_lines(path) == [{"step": 1}], "a machine went down here, which is no damage"
    append_line(path, {"step": 3})
    with pytest.warns(UserWarning, match="skipped 1 damaged line"):
        assert read_lines(path) == [{"step": 1}, {"step": 3}]


def test_names_that_no_file_can_hold_are_written_out(tmp_path: Path) -> None:
    assert write_csv(tmp_path / "x.csv", ["a\ud800"], [["é"]]).read_text(encoding="utf-8") == "a\\ud800\né\n"


def test_a_new_folder_without_a_file_in_it_goes_away_with_an_error(tmp_path: Path) -> None:
    def work(write: bool) -> None:
        with new_folder(tmp_path / "above" / "it" / "a") as folder:
            (folder / "parts" / "1").mkdir(parents=True)
            if write:
                (folder / "parts" / "1" / "x").write_text("kept")
            raise KeyError

    for write in (False, True):
        with pytest.raises(KeyError):
            work(write)
        assert (tmp_path / "above" / "it" / "a").exists() == (tmp_path / "above").exists() == write
    with pytest.raises(KeyError), files.atomic(tmp_path / "other" / "it" / "x"):
        raise KeyError
    assert not (tmp_path / "other").exists()
