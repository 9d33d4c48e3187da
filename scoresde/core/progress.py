"""A progress line for long loops. It shows the number of finished steps, the rate and the remaining time.

On a terminal, the line is a tqdm bar. Anywhere else (a log file, a batch queue, a notebook server), a bar would print
thousands of carriage returns, so plain lines are printed instead, one every ten seconds and one at the end::

    train  1,200/4,000  30 %  loss 0.123  45 it/s  eta 1:02
    train  4,000/4,000  100 %  loss 0.0871  45 it/s  in 1:29

If ``n0`` of ``N`` steps are done when this process starts, and ``n`` are done ``s`` seconds later, then

    rate = (n - n0) / s,    eta = (N - n) / rate.

All durations come from :func:`time.monotonic`, which is not affected by changes to the system clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from .signals import check
from .threads import Crowd

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """A context manager that reports the progress of a loop of known length.

    Args:
        total: Number of steps in the whole loop.
        label: One word for the activity, such as ``"train"`` or ``"sample"``.
        quiet: Whether to suppress all output.
        stream: The stream to write to (default: standard error).
        every: Minimum number of seconds between two plain lines. This does not affect the bar on a terminal.
        initial: Number of steps that an earlier process completed. They do not count towards the rate.

    >>> with Progress(3, "count", stream=sys.stdout) as progress:
    ...     for _ in range(3):
    ...         progress.update()  # doctest: +ELLIPSIS
    count  3/3  100 %  ...
    """

    def __init__(
        self,
        total: int,
        label: str,
        quiet: bool = False,
        stream: TextIO | None = None,
        every: float = 10.0,
        *,
        initial: int = 0,
    ) -> None:
        self.total = total
        self.label = label
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self.every = every
        self.initial = initial
        self.done = initial
        self._fields: dict[str, float] = {}
        self._bar: tqdm[None] | None = None
        self._start = self._printed_at = time.monotonic()
        self._printed_done = -1
        self._crowd = Crowd()

    def __enter__(self) -> Self:
        self._start = self._printed_at = time.monotonic()
        if not self.quiet and self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, initial=self.initial, desc=self.label, file=self.stream, dynamic_ncols=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif not self.quiet and self.done > self.initial and self.done != self._printed_done:
            self._print_line(final=self.done >= self.total)

    def update(self, n: int = 1, fields: Mapping[str, float] | None = None) -> None:
        """Advance the count by ``n`` steps, and show ``fields``, such as ``{"loss": 0.12}``, next to the count."""
        self.done += n
        check()  # all long loops call this method
        if (crowded := self._crowd.told()) is not None:
            self.note(crowded)
        if self.quiet:
            return
        if fields is not None:
            self._fields = dict(fields)
        if self._bar is not None:
            if fields is not None:
                self._bar.set_postfix_str(self._field_text(), refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._printed_at >= self.every:
            self._print_line(final=self.done >= self.total)

    def expect(self, total: int) -> None:
        """Change the number of steps in the whole loop, once it is known or known better."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total

    def note(self, text: str) -> None:
        """Print ``text`` on a separate line, above the bar if there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def _field_text(self) -> str:
        return "  ".join(f"{name} {value:.3g}" for name, value in self._fields.items())

    def _print_line(self, *, final: bool) -> None:
        now = time.monotonic()
        seconds = now - self._start
        rate = (self.done - self.initial) / seconds if seconds > 0 else 0.0
        parts = [self.label, f"{self.done:,}/{self.total:,}"]
        if self.total > 0:
            parts.append(f"{100 * self.done // self.total} %")
        if self._fields:
            parts.append(self._field_text())
        if rate > 0:
            parts.append(_rate_text(rate))
            parts.append(f"in {_clock(seconds)}" if final else f"eta {_clock((self.total - self.done) / rate)}")
        print("  ".join(parts), file=self.stream, flush=True)
        self._printed_at = now
        self._printed_done = self.done


def _rate_text(rate: float) -> str:
    """Format a rate as steps per second, or as seconds per step if the rate is below 1."""
    if rate < 1:
        return f"{1 / rate:.1f} s/it"
    return f"{rate:.1f} it/s" if rate < 10 else f"{rate:,.0f} it/s"


def _clock(seconds: float) -> str:
    """Format a duration in seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
