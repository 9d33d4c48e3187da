"""Thread-safe changes to process-wide settings for the duration of a block.

Python's warning filters and the flags of torch's backends belong to the whole process. If every thread saved, changed
and restored them, one thread could save a value that another thread had set temporarily, and later restore it for good.
With :class:`Shared`, the first thread to enter changes the setting, and the last thread to leave restores it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Shared", "silence"]


class Shared:
    """A context manager that opens an inner context on the first entry and closes it on the last exit.

    Args:
        make: A function that returns the inner context manager.

    >>> @contextmanager
    ... def inner():
    ...     print("in")
    ...     yield
    ...     print("out")
    >>> both = Shared(inner)
    >>> with both, both:
    ...     print("between")
    in
    between
    out
    """

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make, self._lock, self._count = make, threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._count:
                self._open = self._make()
                self._open.__enter__()
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._open.__exit__(None, None, None)


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


silence = Shared(_silent)  # suppresses all warnings
