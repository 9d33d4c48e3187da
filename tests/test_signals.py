"""Signals in every verb: the right exit code, what was finished is kept and named, nothing half done, no traceback."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Shell

from scoresde import TrainConfig, fit
from scoresde.cli import main
from scoresde.core import files, signals
from scoresde.core.errors import Preempted, Stopped
from scoresde.core.files import atomic, new_folder
from scoresde.core.optional import optional
from scoresde.core.progress import Progress
from scoresde.core.signals import Interrupts, held, keeps
from scoresde.run.files import newest_checkpoint
from scoresde.train import loop

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75}
COMMAND = [sys.executable, "-m", "scoresde"]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Whatever a test does, handlers, hooks and timers are as before."""
    before = [signal.getsignal(n) for n in (*NUMBERS, signal.SIGALRM)], sys.unraisablehook, warnings.showwarning
    yield
    assert signal.setitimer(signal.ITIMER_REAL, 0) == (0.0, 0.0)
    after = [signal.getsignal(n) for n in (*NUMBERS, signal.SIGALRM)], sys.unraisablehook, warnings.showwarning
    assert after == before


# ---------------------------------------------------------------------------------------------------------- mechanism


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_an_exception_that_nobody_takes_for_an_error(number: signal.Signals) -> None:
    kind = Stopped if number == signal.SIGINT else Preempted
    with pytest.raises(kind, match=f"{number.name}: stopped before any work was finished") as stop, Interrupts():
        try:
            with optional("a picture"):
                send(number)
        except Exception:
            pytest.fail("taken for an error")
    assert stop.value.exit_code == CODES[number]  # type: ignore[attr-defined]


def test_what_is_held_is_finished_first(tmp_path: Path) -> None:
    seen = []
    with pytest.raises(Preempted), Interrupts():
        with held():
            send(signal.SIGTERM)
            seen.append("the block")
        seen.append("what follows")
    assert seen == ["the block"]
    with pytest.raises(Preempted), Interrupts(), atomic(tmp_path / "file") as temporary:
        send(signal.SIGTERM)
        temporary.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "whole"


def test_an_error_inside_does_not_lose_the_signal() -> None:
    with pytest.raises(Preempted), Interrupts(), held():
        send(signal.SIGTERM)
        raise OSError("disk full")


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(Stopped), Interrupts() as interrupts:
        interrupts.remember()
        send(signal.SIGINT)
        send(signal.SIGTERM)  # which changes nothing any more
        assert interrupts.number == signal.SIGINT
        send(signal.SIGINT)
        pytest.fail("it waited")


def test_a_signal_in_a_finaliser_is_raised_after_it() -> None:
    class Thing:
        def __del__(self) -> None:
            send(signal.SIGTERM)
            time.sleep(0)

    with pytest.raises(Preempted), Interrupts():
        thing = Thing()
        del thing
        gc.collect()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            pass


def test_a_signal_that_was_swallowed_is_raised_by_the_next_step() -> None:
    with pytest.raises(Preempted), Interrupts(), Progress(9, "test", quiet=True) as progress:
        try:
            send(signal.SIGTERM)
        except BaseException:
            gc.collect()
        progress.update()
        pytest.fail("forgotten")


def test_an_import_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled modules do not survive an exception in the middle of theirs."""
    (tmp_path / "waited_for.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.12)\ndone = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Preempted), Interrupts():
        assert importlib.import_module("waited_for").done
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            pass


def test_what_came_in_an_import_waits_for_the_step_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with Interrupts() as interrupts:
        monkeypatch.setattr(signals, "_importing", lambda _: True)
        send(signal.SIGTERM)
        monkeypatch.setattr(signals, "_importing", lambda _: False)
        interrupts.remember()
        time.sleep(0.12)
        assert interrupts.number == signal.SIGTERM
        interrupts.forget()


def test_what_nobody_asked_for_is_passed_on() -> None:
    with pytest.raises(Preempted), Interrupts():
        with Interrupts() as inner:
            inner.remember()
            send(signal.SIGTERM)
        pytest.fail("forgotten")


def test_new_folder_is_removed_or_named(tmp_path: Path) -> None:
    with (
        pytest.raises(Preempted, match="SIGTERM: stopped before any work was finished"),
        Interrupts(),
        new_folder(tmp_path / "a"),
    ):
        send(signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(Preempted, match=f"SIGTERM: the finished work is in {tmp_path}/a"), Interrupts(),
        new_folder(tmp_path / "a") as folder,
    ):  # fmt: skip
        (folder / "file").touch()
        send(signal.SIGTERM)


def test_a_signal_while_the_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if self.name == "a":
            send(signal.SIGTERM)

    monkeypatch.setattr(files.Path, "mkdir", mkdir)
    with pytest.raises(Preempted), Interrupts(), new_folder(tmp_path / "a"):
        pytest.fail("it went on")
    assert list(tmp_path.iterdir()) == []


def test_outside_of_it_nothing_is_touched(tmp_path: Path) -> None:
    keeps("nothing")
    # A shell takes the handler from what it runs in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with held(), new_folder(tmp_path / "a"), pytest.raises(KeyboardInterrupt) as stop:
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(stop.value, Stopped)


# -------------------------------------------------------------------------------------------------------------- verbs

# Every verb, and a function that it calls on its way.
VERBS = {
    "train": ("train --data moons --steps 9 --out o", "scoresde.train.loop:prepared"),
    "sample": ("sample M --n 8 --out o", "scoresde.solvers.base:Solution.join"),
    "sample-figure": ("sample M --n 8 --out o", "scoresde.plot:samples_figure"),
    "likelihood": ("likelihood M --limit 3 --rtol 0.3 --out o", "scoresde.likelihood.data:join"),
    "evaluate": ("evaluate M --n 8 --out o", "scoresde.study.evaluate:evaluate"),
    "bench": ("bench M --n 4 --nfe 2 --solvers heun --out o", "scoresde.study.bench:bench"),
    "bench-files": ("bench M --n 4 --nfe 2 --solvers heun --out o", "scoresde.study.bench:write_bench"),
    "classifier": ("classifier --steps 2 --out o", "scoresde.study.classifier:train_classifier"),
    "reflow": ("reflow M --pairs 4 --steps 2 --out o", "scoresde.train.reflow:draw_pairs"),
    "reflow-fit": ("reflow M --pairs 4 --steps 2", "scoresde.train.reflow:fit"),
    "plot": ("plot schedule --sde vp --out o.png", "scoresde.plot:schedules"),
    "data": ("data inspect digits", "scoresde.data:look"),
    "info": ("info M", "scoresde.core.files:read_lines"),
    "demo": ("demo single-image --steps 2 --size 8 --out o", "scoresde.train.loop:prepared"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_every_verb(
    shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch, verb: str, number: signal.Signals
) -> None:
    line, place = VERBS[verb]
    module, _, name = place.partition(":")
    where = importlib.import_module(module)
    for part in name.split(".")[:-1]:
        where = getattr(where, part)
    real: Callable[..., Any] = getattr(where, name.split(".")[-1])
    sent = []

    def called(*args: Any, **kwargs: Any) -> Any:
        sent.append(1)
        send(number)
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name.split(".")[-1], called)
    out = shell(line.replace("M", moons), CODES[number])
    assert sent and out == ""
    assert shell.err.rstrip().splitlines()[-1].startswith(f"stopped: {number.name}: ")
    assert "Traceback" not in shell.err
    left = [p for p in Path().rglob("*") if Path("runs/moons") not in (p, *p.parents) and p.name != "runs"]
    assert all(p.name in ("o", "parts", "samples.npz", "samples.json") or "parts" in p.parts for p in left), left
    assert "--resume" in shell.err if left else "before any work was finished" in shell.err


@pytest.mark.usefixtures("pictures")
def test_a_signal_during_the_picture_has_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "sample_sheet", lambda *_: send(signal.SIGTERM))
    small = {"width": 8, "blocks": 1}
    config = TrainConfig(data="moons", steps=100, batch=8, network_options=small, sample_every=1)
    with pytest.raises(Preempted, match="SIGTERM after step 1: the checkpoint is saved"):
        fit(config, out=tmp_path / "r", quiet=True)
    assert newest_checkpoint(tmp_path / "r").name == "step-000000001"


@pytest.mark.parametrize("kept", [False, True])
def test_an_error_that_a_signal_was_made_into(
    shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Compiled code that is interrupted in a call back to Python may raise what it likes."""
    real = Progress.__exit__

    def swallow(self: Progress, *args: Any) -> None:
        real(self, *args)
        try:
            send(signal.SIGTERM)
        except BaseException:
            raise ValueError("could not determine the shape") from None

    if kept:
        monkeypatch.setattr(Progress, "__exit__", swallow)
    else:
        monkeypatch.setattr(loop, "prepared", lambda *_: swallow(Progress(1, "test", quiet=True), None, None, None))
    line = f"sample {moons} --n 4 --out o" if kept else "train --data moons --steps 2 --quiet --out o"
    assert shell(line, 75) == "" and "shape" not in shell.err
    assert ("4 of 4 samples are saved in o; continue with: scoresde sample --out o --resume" in shell.err) == kept


def test_the_command_line_restores_what_it_found(shell: Shell) -> None:
    shell("list solvers")
    with pytest.raises(SystemExit):
        main(["no-such-verb"])  # the fixture above compares


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.05, 0.2, 0.6, 1.2, 2.0, 3.0])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n.name)
def test_a_program_at_any_moment(shell: Shell, moons: str, number: signal.Signals, after: float) -> None:
    line = f"sample {moons} --n 100000 --batch 50 --solver heun --steps 200 --threads 1 --out o".split()
    with subprocess.Popen([*COMMAND, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        time.sleep(after)
        program.send_signal(number)
        out, err = (text.decode() for text in program.communicate(timeout=60))
    if after > 0.1:  # before that Python itself may not have begun
        assert out == "" and "Traceback" not in err and "ignored" not in err
        assert program.returncode == CODES[number] and number.name in err.rstrip().splitlines()[-1]
    assert not Path("o").exists() or "--resume" in err


def test_threads_have_no_handlers() -> None:
    import threading

    def run() -> None:
        with Interrupts():
            found.append([signal.getsignal(n) for n in NUMBERS])
            with held():
                torch.zeros(1)

    found: list[object] = []
    before = [signal.getsignal(n) for n in NUMBERS]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]
