"""Convert SIGINT, SIGTERM and SIGUSR1 to exceptions, which are raised at once or when the current work is done.

The command line runs inside :class:`Interrupts`. The first signal raises :class:`~scoresde.core.errors.Preempted` (for
SIGTERM and SIGUSR1) or :class:`~scoresde.core.errors.Stopped` (for SIGINT) wherever the program happens to be. These
exceptions are not subclasses of ``Exception``, so code that catches errors does not catch them. There are three special
cases:

- Work that must not be interrupted runs in a :func:`held` block. The exception is raised at the end of the block.
- During training, the signal is remembered until the current step is done (:meth:`Interrupts.remember`).
- Nothing is raised during an import, because interrupting the import of a compiled module can leave it unusable. The
  exception is raised shortly afterwards.

Code that saves partial results calls :func:`keeps` to set the message, which says what is kept and how to continue. A
SIGINT that follows another signal raises its exception at once, whatever is running. When used as a library, the
package installs handlers only during training, and restores the previous handlers afterwards. Handlers are installed
only in the main thread, because Python does not deliver signals to other threads.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from .errors import Preempted, Stopped

__all__ = ["Interrupts", "Limit", "check", "ending", "held", "keeps"]

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
OVER = 1000  # added to the signal of a time limit
AGAIN = 0.05  # seconds until a postponed or swallowed exception is raised
PATIENCE = 200  # maximum number of times to wait for an import to finish

_entered: list[Interrupts] = []  # the handlers of the main thread, innermost last
_limit: Limit | None = None  # the time limit of this process
_own = threading.local()  # an event at which the work of a thread ends
elsewhere: Callable[[], int | None] | None = None  # the signal that another process of the same work has received


class Interrupts:
    """A context manager that converts signals to exceptions. Outside the main thread, it does nothing.

    Attributes:
        number: The signal that arrived, or ``None``.
        at_once: Whether to raise the exception at once, wherever the program is (except inside :func:`held`).
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = True
        self._raised = False
        self._held = self._waited = 0
        self._kept: tuple[str, str | None, object] = ("stopped before any work was finished", None, None)
        self._old: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._hook = sys.unraisablehook
            sys.unraisablehook = self._unraisable
            _entered.append(self)
            for number in NUMBERS:
                self._old[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if self not in _entered:
            return
        # The exception for the signal was lost if it turned into an ordinary error, or vanished, on its way here.
        lost = len(_entered) > 1 and (error is None or isinstance(error, Exception))
        waiting = self.number if lost or not self._raised else None
        if len(self._old) > len(NUMBERS):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()
        _entered.remove(self)
        sys.unraisablehook = self._hook
        if waiting is not None:  # the signal has not been dealt with, so pass it on to the restored handlers
            signal.raise_signal(waiting)

    def remember(self) -> None:
        """Stop raising exceptions automatically. The caller must then check :attr:`number` and raise :meth:`error`."""
        self.at_once = False

    def forget(self) -> None:
        """Undo :meth:`remember`, and discard a signal that arrived too late to matter."""
        self.at_once, self.number = True, None

    @property
    def code(self) -> int | None:
        """The signal that arrived, plus :data:`OVER` if the time limit sent it. Other processes can set it."""
        over = _limit is not None and _limit.over
        return None if self.number is None else self.number + OVER * over

    @code.setter
    def code(self, code: int) -> None:
        if _limit is not None:
            _limit.over = _limit.over or code >= OVER
        self.number = code % OVER

    def error(self, told: str = "", parameter: str | None = None, value: object = None) -> Preempted | Stopped:
        """Return the exception for the signal that arrived, with a message about what is kept."""
        assert self.number is not None
        self._raised = True
        if not told:
            told, parameter, value = f": {self._kept[0]}", *self._kept[1:]
        kind: type[Preempted | Stopped] = Stopped if self.number == signal.SIGINT else Preempted
        over = _limit is not None and _limit.over
        name = f"time limit {_limit.told}" if _limit is not None and over else signal.Signals(self.number).name
        return kind(f"{name}{told}", parameter=parameter, value=value)

    # ------------------------------------------------------------------------------------------------------- handlers

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None
        if not again or number == signal.SIGINT:
            self.number = number
        if again and number == signal.SIGINT:
            raise self.error()
        if not again and self.at_once and not self._held:
            self._raise(frame)

    def _raise(self, frame: FrameType | None) -> None:
        if _importing(frame) and self._waited < PATIENCE and self._later():
            self._waited += 1
            return
        raise self.error()

    def _later(self) -> bool:
        """Set a timer to raise the exception later. Return ``False`` if the system has no timers."""
        if not hasattr(signal, "setitimer"):
            return False
        if signal.SIGALRM not in self._old:
            self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
        return True

    def _again(self, _: int, frame: FrameType | None) -> None:
        if self.at_once and not self._held and self.number is not None:
            self._raise(frame)

    def _unraisable(self, found: sys.UnraisableHookArgs) -> None:
        """Raise an exception later if Python can only print it now, for example in a finaliser."""
        if isinstance(found.exc_value, Preempted | Stopped):
            self._later()
        else:
            self._hook(found)


class Limit:
    """A time limit for this process, at which it receives SIGUSR1.

    Args:
        seconds: The time from now.
        told: The limit as messages name it.
    """

    def __init__(self, seconds: float, told: str) -> None:
        global _limit
        _limit = self
        self.told, self.over = told, False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.over = True
        os.kill(os.getpid(), getattr(signal, "SIGUSR1", signal.SIGTERM))

    def cancel(self) -> None:
        """Lift the limit, because the work has ended."""
        global _limit
        _limit = None
        self._timer.cancel()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _current() -> Interrupts | None:
    here = _entered and threading.current_thread() is threading.main_thread()
    return _entered[-1] if here else None


@contextmanager
def held() -> Iterator[None]:
    """Delay signals until the end of the block, for short operations that must not be interrupted."""
    now = _current()
    if now is None or not now.at_once:
        yield
        return
    now._held += 1
    try:
        yield
    finally:
        now._held -= 1
        if now.number is not None and not (now._held or now._raised):
            raise now.error()


@contextmanager
def ending(event: threading.Event) -> Iterator[None]:
    """Let :func:`check` raise an exception in this thread once ``event`` is set, because its result is not needed."""
    _own.event = event
    try:
        yield
    finally:
        del _own.event


def check() -> None:
    """Raise the exception of a signal that other code has swallowed, or that another process has received.

    Long loops call this. In a thread of :func:`ending`, it raises an exception when the event is set.
    """
    event: threading.Event | None = getattr(_own, "event", None)
    if event is not None and event.is_set():
        raise Stopped("the result of this thread is not needed any more")
    now = _current()
    if now is None:
        return
    if now.number is None and elsewhere is not None and now.at_once:
        now.number = elsewhere()
    if now.at_once and now.number is not None and not now._held:
        raise now.error()


def keeps(what: str, parameter: str | None = None, value: object = None) -> None:
    """Set the message of the exception that the next signal raises.

    Args:
        what: A clause that says what is kept.
        parameter: The parameter or function with which to continue (see :class:`~scoresde.core.errors.Answered`).
        value: The value to use for that parameter.
    """
    for entered in _entered if _current() is not None else ():
        entered._kept = (what, parameter, value)
