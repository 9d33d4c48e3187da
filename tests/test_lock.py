"""One training in a folder, whatever became of the one before."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest

from scoresde.core.errors import CheckpointError
from scoresde.core.lock import LOCK, held_by, locked


def holder(folder: Path) -> tuple[int, int]:
    """A process that holds the lock of a folder, and a pipe whose end lets it go."""
    told, tell = os.pipe()
    wait, let = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(let)
            with locked(folder):
                os.write(tell, b".")
                os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(wait)
    assert os.read(told, 1) == b"."
    return pid, let


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    pid, let = holder(tmp_path)
    who = rf"process {pid} on {socket.gethostname()} \(since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\)"
    with pytest.raises(CheckpointError, match=rf"is in use: {who} is training there") as error, locked(tmp_path):
        pass
    assert error.value.exit_code == 3 and f"process {pid} " in str(held_by(tmp_path))
    os.close(let)
    os.waitpid(pid, 0)
    with locked(tmp_path):
        assert f"process {os.getpid()} " in str(held_by(tmp_path))
    assert held_by(tmp_path) is None and list(tmp_path.iterdir()) == [], "nothing is left of it"


def test_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    pid, _ = holder(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == pid, "it left its file"
    assert held_by(tmp_path) is None
    with locked(tmp_path):
        pass


def test_nobody_takes_a_killed_process_for_the_holder(tmp_path: Path) -> None:
    # It left its file, and the next holder has locked it but not yet written who it is.
    pid, _ = holder(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    left = (tmp_path / LOCK).read_text()
    with open(tmp_path / LOCK, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        now = left.replace(f'"pid": {pid}', f'"pid": {os.getpid()}').encode()
        writes = threading.Timer(0.05, os.pwrite, (file.fileno(), now.ljust(len(left)), 0))
        writes.start()
        assert f"process {os.getpid()} " in str(held_by(tmp_path))
        writes.join()
        os.pwrite(file.fileno(), left.encode().ljust(len(now)), 0)
        assert f"process {pid} " in str(held_by(tmp_path)), "it may be a process that cannot be seen from here"


def test_a_copy_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with locked(tmp_path / "copy"):
            pass


def test_two_threads_are_two(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def second() -> None:
        try:
            with locked(tmp_path):
                pass
        except CheckpointError as error:
            found.append(error)

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(found) == 1 and f"process {os.getpid()} " in str(found[0])


def test_of_many_at_once_one_has_it(tmp_path: Path) -> None:
    inside, most, ends = [], [], threading.Barrier(8)

    def enter() -> None:
        ends.wait()
        for _ in range(20):
            try:
                with locked(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except CheckpointError:
                pass

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most and set(most) == {1}


def test_a_lock_that_was_removed_in_between_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    real, calls = fcntl.flock, []

    def flock(file: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:  # its holder ends between the two
            (tmp_path / LOCK).unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path), pytest.raises(CheckpointError, match="is in use"), locked(tmp_path):
        pass


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.warns(UserWarning, match="cannot be locked.*No locks available") as caught, locked(tmp_path):
        pass
    assert len(caught) == 1 and held_by(tmp_path) is None


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_lock_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / LOCK
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero")}[kind]()
    with pytest.raises(CheckpointError, match=r"cannot write .*/\.lock"), locked(tmp_path):
        pass
    assert held_by(tmp_path) is None


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"), locked(tmp_path / "gone"):
        pass
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
