"""Trackers: other places to which the records of a training run go, such as TensorBoard.

``metrics.jsonl`` in the run folder always has all records. A tracker gets a copy of them, and cannot stop or delay the
training: its calls run on a thread of its own, from a queue of limited length.

- A tracker that raises an error, for example because the disk is full, is not called again, and there is one warning.
- If a tracker hangs, its queue fills up, and further records are dropped for it. After the last step, training waits
  for it for a few seconds, and then says how much was dropped.

A tracker is chosen by name each time that training starts or resumes. A run folder does not store it, because names
that are read from files never import code.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import UsageError
from ..core.registry import resolve
from ..core.tables import TRACKERS

__all__ = ["TensorBoard", "Track", "Tracker", "Trackers", "chosen_trackers"]

LENGTH = 1000  # maximum number of calls that wait for a tracker
PATIENCE = 5.0  # how long training waits for all trackers at the end, in seconds


class Tracker(ABC):
    """A place to which the records of a training run go. All methods are called on one thread, in order.

    A class that is chosen by name is created on the same thread, with two arguments: the run folder, and the settings
    of the run as plain values (``TrainConfig.to_dict``).
    """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers, such as ``loss``, ``lr`` and ``validation``, after a training step."""

    def picture(self, step: int, name: str, path: Path) -> None:  # noqa: B027  # optional
        """Record a picture, which is in the PNG file ``path``. By default, nothing is done."""

    def close(self) -> None:  # noqa: B027  # optional
        """Finish, after the last record. By default, nothing is done."""


Track = str | Tracker | Sequence[str | Tracker]


class TensorBoard(Tracker):
    """Event files for TensorBoard, in the folder ``tensorboard`` of the run, written by tensorboardX.

    When a run is resumed, steps that are done again replace those in the earlier files.

    Args:
        folder: The run folder.
        settings: The settings of the run.

    Raises:
        UsageError: If tensorboardX is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.check()
        self._folder, self._settings = folder / "tensorboard", settings
        self._writer: Any = None

    @staticmethod
    def check() -> None:
        """Check that tensorboardX is installed."""
        if find_spec("tensorboardX") is None:
            raise UsageError(
                "the tracker 'tensorboard' needs tensorboardX, which is not installed; run pip install "
                "'scoresde[tensorboard]'"
            )

    def _opened(self, step: int) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
            rows = [f"| {name} | {value} |" for name, value in self._settings.items()]
            self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]), step)
        return self._writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._opened(step).add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._opened(step).add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Line:
    """The queue and the thread of one tracker.

    Args:
        name: Name of the tracker, for messages.
        make: A function without arguments that returns the tracker.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self._make, self._calls = make, queue.Queue[tuple[str, tuple[Any, ...]]](LENGTH)
        self._dropped, self._off, self._ending = 0, False, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Create the tracker, and make its calls until it is closed or fails."""
        try:
            tracker = self._make()
            while not (self._ending and self._calls.empty()):
                method, arguments = self._calls.get()
                if method:
                    getattr(tracker, method)(*arguments)
            tracker.close()
        except (Exception, SystemExit) as error:
            self._error = error

    def call(self, method: str, *arguments: Any) -> None:
        """Append a call to the queue. It is dropped if the queue is full or the tracker has failed."""
        self._warn_of_error()
        if self._off:
            return
        try:
            self._calls.put_nowait((method, arguments))
        except queue.Full:
            self._dropped += 1

    def end(self) -> None:
        """Have the tracker closed once its queue is empty."""
        self._ending = True
        with suppress(queue.Full):  # the thread does not wait for a call then
            self._calls.put_nowait(("", ()))

    def wait(self, until: float) -> None:
        """Wait for the tracker until a time of the monotonic clock, and say whether anything was lost."""
        self._thread.join(max(0.0, until - time.monotonic()))
        self._warn_of_error()
        if not self._off and (self._dropped or self._thread.is_alive()):
            how = "does not answer" if self._thread.is_alive() else "is too slow"
            missing = self._dropped + self._calls.qsize()
            told = f"{missing:,} of its records are missing" if missing else "its last records may be missing"
            warnings.warn(f"the tracker {self.name!r} {how}, so {told}; metrics.jsonl has them all", stacklevel=2)

    def _warn_of_error(self) -> None:
        """Warn once that the tracker has failed."""
        if self._error is not None and not self._off:
            self._off = True
            reason = " ".join(f"{type(self._error).__name__}: {self._error}".split())
            warnings.warn(
                f"the tracker {self.name!r} failed and gets no more records ({reason}); metrics.jsonl has them all",
                stacklevel=2,
            )


class Trackers:
    """The trackers of a run. They are closed when the ``with`` block ends.

    Args:
        lines: Name of each tracker, and a function without arguments that returns it.
    """

    def __init__(self, lines: Iterable[tuple[str, Callable[[], Tracker]]] = ()) -> None:
        self._lines = [_Line(name, make) for name, make in lines]

    def log(self, step: int, line: Mapping[str, Any]) -> None:
        """Give the numbers in a line of ``metrics.jsonl`` to all trackers.

        The numbers of a list are called ``NAME/0``, ``NAME/1`` and so on. The step and counts of rows are left out.
        """
        if not self._lines:
            return
        values = {}
        for name, value in line.items():
            if name == "step" or "rows" in name:
                continue
            numbered = isinstance(value, list)
            for i, number in enumerate(value if numbered else [value]):
                if isinstance(number, int | float):
                    values[f"{name}/{i}" if numbered else name] = float(number)
        for tracker in self._lines:
            tracker.call("log", step, dict(values))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Give a picture to all trackers, if it was drawn."""
        for tracker in self._lines if path.is_file() else ():
            tracker.call("picture", step, name, path)

    def close(self) -> None:
        """Close all trackers, and wait for them for a few seconds."""
        until = time.monotonic() + PATIENCE
        for tracker in self._lines:
            tracker.end()
        for tracker in self._lines:
            tracker.wait(until)
        self._lines = []

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Maker = Callable[[Path | None, Mapping[str, Any]], Tracker]


def chosen_trackers(track: Track, *, saved: bool = True) -> list[tuple[str, Maker]]:
    """Return the name of each tracker, and a function of the run folder and the settings that returns the tracker.

    Args:
        track: As for :func:`scoresde.fit`.
        saved: Whether there is a run folder. Only trackers given as objects do without.

    Raises:
        UsageError: If a name is unknown, a class cannot be imported, or tensorboardX is not installed.
    """
    found: list[tuple[str, Maker]] = []
    for one in [track] if isinstance(track, str | Tracker) else track:
        if isinstance(one, str):
            names = [name for part in one.split(",") if (name := part.strip())]
            if names and not saved:
                raise UsageError(f"the tracker {names[0]!r} needs a run folder, so it cannot be used with save=False")
            made = [resolve(name, TRACKERS, "tracker", typed=True) for name in names]
            found += zip(names, made, strict=True)
            for name, kind in zip(names, made, strict=True):
                _check(kind, name)
            if TensorBoard in made:
                TensorBoard.check()
        else:
            _check(one, repr(one))
            found.append((type(one).__name__, partial(_itself, one)))
    return found


def _check(tracker: Any, name: str) -> None:
    if not all(callable(getattr(tracker, method, None)) for method in ("log", "picture", "close")):
        raise UsageError(
            f"{name} is not a tracker; derive its class from scoresde.train.track.Tracker", parameter="track"
        )


def _itself(tracker: Tracker, folder: Path | None, settings: Mapping[str, Any]) -> Tracker:
    return tracker
