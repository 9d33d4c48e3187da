"""How far, how fast, and when it ends, where there is no terminal."""

from __future__ import annotations

import io
import re

import pytest

from scoresde.core import progress as module
from scoresde.core.progress import Progress


class Clock:
    """A clock that moves when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_plain_lines_every_ten_seconds_and_one_at_the_end(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(100, "train", stream=out) as progress:
        for _ in range(100):
            clock.now += 0.25
            progress.update(1, {"loss": 0.12345})
    lines = out.getvalue().splitlines()
    assert lines == [
        "train  40/100  40 %  loss 0.123  4.0 it/s  eta 0:15",
        "train  80/100  80 %  loss 0.123  4.0 it/s  eta 0:05",
        "train  100/100  100 %  loss 0.123  4.0 it/s  in 0:25",
    ]
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_a_resumed_loop_states_an_honest_rate(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(5000, "train", stream=out, initial=4000) as progress:
        clock.now += 20
        progress.update(500)
    first = out.getvalue().splitlines()[0]
    assert first == "train  4,500/5,000  90 %  25 it/s  eta 0:20"


def test_slow_loops_and_long_ones(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(3000, "sample", stream=out) as progress:
        clock.now += 12.5
        progress.update(5)
    assert "2.5 s/it" in out.getvalue() and "eta 2:04:48" in out.getvalue()


def test_the_last_line_is_printed_once(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(2, "count", stream=out) as progress:
        clock.now += 11
        progress.update()
        clock.now += 11
        progress.update()
    assert [re.split(r"\s\s+", line)[1] for line in out.getvalue().splitlines()] == ["1/2", "2/2"]


def test_a_loop_that_breaks_off_says_where(clock: Clock) -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), Progress(10, "train", stream=out) as progress:
        clock.now += 1
        progress.update(4)
        raise RuntimeError
    assert out.getvalue().startswith("train  4/10  40 %") and "eta" in out.getvalue()


def test_nothing_done_prints_nothing(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(10, "train", stream=out, initial=10):
        pass
    assert out.getvalue() == ""


def test_quiet_prints_nothing_and_still_counts(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(10, "train", quiet=True, stream=out, every=0) as progress:
        clock.now += 100
        progress.update(10, {"loss": 1.0})
        progress.note("hello")
    assert out.getvalue() == "" and progress.done == 10


def test_notes_are_lines_of_their_own() -> None:
    out = io.StringIO()
    with Progress(10, "train", stream=out) as progress:
        progress.note("stopped after step 3")
    assert out.getvalue() == "stopped after step 3\n"


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Progress(4, "train", stream=out) as progress:
        progress.update(4, {"loss": 0.5})
        progress.note("a note")
    text = out.getvalue()
    assert "\r" in text and "train" in text and "4/4" in text and "loss 0.5" in text and "a note\n" in text


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, "train") as progress:
        progress.update()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("train  1/1")
