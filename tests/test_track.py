"""Trackers: they get what metrics.jsonl gets, and none of them can stop, delay or change a run."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from runs import signal_at
from shell import Shell

from scoresde import TrainConfig, fit
from scoresde.core.errors import Preempted, UsageError
from scoresde.core.files import read_lines
from scoresde.train import track
from scoresde.train.track import TensorBoard, Tracker, Trackers, chosen_trackers

TINY = TrainConfig(data="moons", steps=6, batch=8, network_options={"width": 4, "blocks": 1})


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracker is given up because the machine is busy."""
    monkeypatch.setattr(track, "PATIENCE", 120.0)


class Kept(Tracker):
    """Keeps what it is told, and on which thread."""

    def __init__(self, folder: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[int, str, Path]] = []
        self.closed = 0
        self.threads = set[int]()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))
        self.threads.add(threading.get_ident())

    def picture(self, step: int, name: str, path: Path) -> None:
        self.pictures.append((step, name, path))

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_gets_the_numbers_of_every_line(tmp_path: Path) -> None:
    kept = Kept()
    fit(replace(TINY, frechet_every=6), out=tmp_path / "r", quiet=True, track=kept)
    lines = read_lines(tmp_path / "r" / "metrics.jsonl")
    assert [step for step, _ in kept.lines] == [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line, (_, values) in zip(lines, kept.lines, strict=True):
        assert all(values[name] == line[name] for name in ("loss", "lr", "grad_norm", "seconds"))
        found = {f"loss_by_noise/{i}": mean for i, mean in enumerate(line["loss_by_noise"]) if mean is not None}
        assert {k: v for k, v in values.items() if "/" in k} == found and not any("rows" in k for k in values)
        assert values.get("frechet") == line.get("frechet")
    assert "frechet" in kept.lines[-1][1] and kept.closed == 1
    assert len(kept.threads) == 1 and threading.get_ident() not in kept.threads


@pytest.mark.usefixtures("pictures")
def test_a_tracker_gets_the_pictures(tmp_path: Path) -> None:
    kept = Kept()
    fit(replace(TINY, sample_every=3), out=tmp_path / "r", quiet=True, track=[kept])
    assert [(step, name) for step, name, _ in kept.pictures] == [(3, "samples"), (6, "samples"), (6, "loss")]
    assert all(path.is_file() for *_, path in kept.pictures)


class Fails(Kept):
    """Raises an error at its third line."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        super().log(step, values)
        if len(self.lines) == 3:
            raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("no\nserver"), OSError(errno.ENOSPC, "No space left on device"), SystemExit(3)], ids=repr
)
def test_a_tracker_that_raises_is_left_out(tmp_path: Path, error: BaseException) -> None:
    bad, good = Fails(error), Kept()
    with pytest.warns(UserWarning) as caught:
        run = fit(TINY, out=tmp_path / "r", quiet=True, track=[bad, good])
    said = [str(warning.message) for warning in caught if "tracker" in str(warning.message)]
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    assert said == [
        f"the tracker 'Fails' failed and gets no more records ({reason}); metrics.jsonl has them all"
    ]  # fmt: skip
    assert len(bad.lines) == 3 and not bad.closed
    assert run.step == 6 and len(good.lines) == len(read_lines(tmp_path / "r" / "metrics.jsonl")) == 6 and good.closed


class Hangs(Kept):
    """Does not return from its first call until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.reached = threading.Event(), threading.Event()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.reached.set()
        self.go_on.wait()
        super().log(step, values)


def test_a_tracker_that_hangs_delays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are taken while it hangs, its queue does not grow, and another tracker goes on."""
    monkeypatch.setattr(track, "PATIENCE", 0.05)
    monkeypatch.setattr(track, "LENGTH", 2)
    bad, good = Hangs(), Kept()

    class Slowly(Trackers):
        def log(self, step: int, line: Mapping[str, Any]) -> None:
            super().log(step, line)
            assert bad.reached.wait(120)  # so that the queue is that of a tracker which hangs
            while len(good.lines) < step:  # the other is as fast as the training
                threading.Event().wait(0.001)

        def close(self) -> None:
            self._lines[1].end()
            self._lines[1].wait(time.monotonic() + 120)
            super().close()

    monkeypatch.setattr("scoresde.train.loop.Trackers", Slowly)
    with pytest.warns(UserWarning, match="'Hangs' does not answer, so 5 of its records are missing; metrics.jsonl"):
        fit(TINY, out=tmp_path / "r", quiet=True, track=[bad, good])
    assert [step for step, _ in good.lines] == [1, 2, 3, 4, 5, 6] and good.closed == 1
    assert len(read_lines(tmp_path / "r" / "metrics.jsonl")) == 6 and bad.lines == []
    bad.go_on.set()


def test_a_slow_tracker_is_closed_after_its_last_record() -> None:
    slow = Hangs()
    trackers = Trackers([("slow", lambda: slow)])
    for step in range(5):
        trackers.log(step, {"step": step, "loss": 1.0})
    threading.Timer(0.05, slow.go_on.set).start()
    trackers.close()
    assert [step for step, _ in slow.lines] == [0, 1, 2, 3, 4] and slow.closed == 1


def test_what_did_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is full at the end: the tracker is closed all the same, and the rest is said to be missing."""
    monkeypatch.setattr(track, "LENGTH", 3)
    slow = Hangs()
    trackers = Trackers([("slow", lambda: slow)])
    trackers.log(0, {"loss": 1.0})
    assert slow.reached.wait(120)
    for step in range(1, 9):
        trackers.log(step, {"loss": 1.0})
    threading.Timer(0.05, slow.go_on.set).start()
    with pytest.warns(UserWarning, match="'slow' is too slow, so 5 of its records are missing"):
        trackers.close()
    assert [step for step, _ in slow.lines] == [0, 1, 2, 3] and slow.closed == 1


def test_a_tracker_that_cannot_be_created_or_closed_is_a_warning() -> None:
    def refuse() -> Tracker:
        raise ConnectionError("no server")

    class Open(Kept):
        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    for make, reason in ((refuse, "ConnectionError: no server"), (Open, "No space left on device")):
        with pytest.warns(UserWarning, match=f"'it' failed and gets no more records .*{reason}") as caught:
            trackers = Trackers([("it", make)])
            trackers.log(1, {"loss": 1.0})
            trackers.close()
        assert len(caught) == 1


def test_weights_do_not_depend_on_trackers(tmp_path: Path) -> None:
    tracked = fit(TINY, out=tmp_path / "a", quiet=True, track=Kept()).model.state_dict()
    plain = fit(TINY, out=tmp_path / "b", quiet=True).model.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in tracked.items())
    files = [sorted(str(p.relative_to(tmp_path / f)) for p in (tmp_path / f).rglob("*")) for f in "ab"]
    assert files[0] == files[1]
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


def test_a_run_that_is_stopped_closes_its_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, more = Kept(), Kept()
    with monkeypatch.context() as patch:
        signal_at(patch, 3, 15)
        with pytest.raises(Preempted):
            fit(TINY, out=tmp_path / "r", quiet=True, track=kept)
    assert kept.closed == 1 and [step for step, _ in kept.lines] == [1, 2, 3]
    fit(TINY, out=tmp_path / "r", resume=True, quiet=True, track=more)
    assert [step for step, _ in more.lines] == [4, 5, 6]


# ------------------------------------------------------------------------------------------------------------- names

OWN = """
from pathlib import Path

class Mine:
    def __init__(self, folder, settings):
        self.file, self.told = Path(folder, "mine.txt"), [settings["data"]]
    def log(self, step, values): self.told.append(f"{step} {values['lr']:.3g}")
    def picture(self, step, name, path): self.told.append(name)
    def close(self): self.file.write_text(",".join(self.told))
"""
LINE = "train --data moons --steps 3 --batch 8 --set network.width=4 --set network.blocks=1 --quiet"


def test_a_class_of_ones_own_is_named_again_when_a_run_is_resumed(shell: Shell) -> None:
    Path("own.py").write_text(OWN)
    shell(f"{LINE} --decay none --set lr=1 --set warmup=1 --out r --track own:Mine")
    assert Path("r/mine.txt").read_text() == "moons,1 1,2 1,3 1"
    assert "own" not in Path("r/config.json").read_text()
    Path("r/mine.txt").unlink()
    shell("train --resume r --steps 4")
    assert not Path("r/mine.txt").exists()
    shell("train --resume r --steps 5 --track own:Mine")
    assert Path("r/mine.txt").read_text() == "moons,5 1"


def test_names_are_checked_before_a_run_begins(shell: Shell, tmp_path: Path) -> None:
    shell.refuses(f"{LINE} --out r --track tensorbord", 2, "unknown tracker 'tensorbord'", "'tensorboard'")
    shell.refuses(f"{LINE} --out r --track missing:Class", 2, "no module 'missing'")
    assert not Path("r").exists()
    with pytest.raises(UsageError, match="3 is not a tracker; derive its class from"):
        fit(TINY, out=tmp_path / "r", track=[3])  # type: ignore[list-item]
    Path("own.py").write_text(OWN)
    with pytest.raises(UsageError, match="needs a run folder"):
        fit(TINY, save=False, track="own:Mine")
    assert chosen_trackers("") == [] == chosen_trackers([], saved=False)
    kept = Kept()
    fit(TINY, save=False, track=kept, quiet=True)
    assert kept.closed == 1 and [step for step, _ in kept.lines] == [1, 2, 3, 4, 5, 6]


# ------------------------------------------------------------------------------------------------------- TensorBoard


class Writer:
    """What of tensorboardX's writer is used."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, logdir: str, purge_step: int) -> None:
        self.logdir, self.purge_step = logdir, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, tuple[int, ...], int, str]] = []
        self.texts: list[str] = []
        self.closed = False
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
        self.images.append((name, pixels.shape, step, dataformats))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append(text)

    def close(self) -> None:
        self.closed = True


@pytest.mark.usefixtures("pictures")
def test_tensorboard_is_written_by_tensorboardx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorboardX")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    monkeypatch.setattr(track, "find_spec", lambda name: object())
    monkeypatch.setattr(Writer, "made", [])
    fit(TINY, out=tmp_path / "r", quiet=True, track="tensorboard")
    fit(replace(TINY, steps=8), out=tmp_path / "r", resume=True, quiet=True, track="tensorboard")
    first, second = Writer.made
    assert first.logdir == str(tmp_path / "r" / "tensorboard") and first.closed and second.closed
    assert (first.purge_step, second.purge_step) == (1, 7)  # steps that are done again replace the earlier ones
    lines = read_lines(tmp_path / "r" / "metrics.jsonl")
    both = [*first.scalars, *second.scalars]
    assert [(v, s) for n, v, s in both if n == "loss"] == [(line["loss"], line["step"]) for line in lines]
    assert [(name, shape[2], step) for name, shape, step, _ in first.images] == [("samples", 3, 6), ("loss", 3, 6)]
    assert "| batch | 8 |" in first.texts[0]


def test_tensorboard_says_what_to_install(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    shell.refuses(f"{LINE} --out r --track tensorboard", 2, "pip install 'scoresde[tensorboard]'")
    assert not Path("r").exists()


def test_event_files_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path, {"batch": 8})
    board.log(1, {"loss": 0.5})
    board.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes() and b"batch" in file.read_bytes()


def test_a_class_that_is_no_tracker_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"mine:Net is not a tracker; derive its class"):
        chosen_trackers("mine:Net")
