"""Signals that end a program: SIGINT, SIGTERM and SIGUSR1 become exceptions, at once or when what is at hand is done.

A command line enters :class:`Interrupts`. Its first signal raises :class:`~scoresde.core.errors.Preempted` (SIGTERM and
SIGUSR1) or :class:`~scoresde.core.errors.Stopped` (SIGINT) wherever the program happens to be. They are no
``Exception``, so that nobody who catches errors takes one for an error. There are three reservations:

- what must not be left half done is inside :func:`held`, at whose end the signal is raised;
- training asks to have it remembered until the step is done (:meth:`Interrupts.remember`);
- in an import nothing is raised, because compiled modules do not survive that: it is tried again shortly after.

What is kept, and how to go on, is said by whoever keeps it (:func:`keeps`). A second SIGINT is raised at once,
whatever is going on. In a library none of this happens by itself, but for training, which restores the handlers that
it found; and nothing happens outside the main thread, where Python does not deliver signals.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from .errors import Preempted, Stopped

__all__ = ["Interrupts", "check", "held", "keeps"]

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
AGAIN = 0.05  # seconds until a signal is raised again that could not be raised, or was swallowed
PATIENCE = 200  # how often an import is waited for

_entered: list[Interrupts] = []  # the innermost last; of the main thread alone


class Interrupts:
    """Handlers of the signals while it is entered; in another thread than the main one, none.

    Attributes:
        number: The signal that came, or ``None``.
        at_once: Whether it is raised wherever the program is, but for :func:`held`.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = True
        self._raised = False
        self._held = self._waited = 0
        self._kept: tuple[str, str | None, object] = ("nothing was finished", None, None)
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
        # What was raised and became an ordinary error, or nothing, on its way here was lost.
        lost = len(_entered) > 1 and (error is None or isinstance(error, Exception))
        waiting = self.number if lost or not self._raised else None
        if len(self._old) > len(NUMBERS):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()
        _entered.remove(self)
        sys.unraisablehook = self._hook
        if waiting is not None:  # and nobody has asked: it is whose handlers these are now
            signal.raise_signal(waiting)

    def remember(self) -> None:
        """Raise nothing from now on: whoever calls this asks for :attr:`number`, and raises :meth:`error`."""
        self.at_once = False

    def forget(self) -> None:
        """Take back :meth:`remember`, and a signal that made no difference any more."""
        self.at_once, self.number = True, None

    def error(self, told: str = "", parameter: str | None = None, value: object = None) -> Preempted | Stopped:
        """What the signal that came is raised as, with what is kept."""
        assert self.number is not None
        self._raised = True
        if not told:
            told, parameter, value = f": {self._kept[0]}", *self._kept[1:]
        kind: type[Preempted | Stopped] = Stopped if self.number == signal.SIGINT else Preempted
        return kind(f"{signal.Signals(self.number).name}{told}", parameter=parameter, value=value)

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
        """Have the signal raised again after a moment; False where there is no timer."""
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
        """A signal that was raised in a finaliser, where Python prints and forgets it, is raised again."""
        if isinstance(found.exc_value, Preempted | Stopped):
            self._later()
        else:
            self._hook(found)


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
    """Let a signal wait until the block is done: for what is short, and must not be left half done."""
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


def check() -> None:
    """Raise the signal that came, if somebody swallowed it when it was raised at once: for long loops."""
    now = _current()
    if now is not None and now.at_once and now.number is not None and not now._held:
        raise now.error()


def keeps(what: str, parameter: str | None = None, value: object = None) -> None:
    """Say what is kept should a signal come from now on, and what goes on from there, as in an error's arguments."""
    for entered in _entered if _current() is not None else ():
        entered._kept = (what, parameter, value)
