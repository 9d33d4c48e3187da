"""How many threads compute a network, and a sign that they are in each other's way.

The threads that share a call of a network meet after each of its operations. If other processes use the cores as well,
each meeting waits for a thread that has lost its core, and the waiting threads use up CPU time: on two cores beside one
busy process, the network of the digits takes three to four times as long with two threads as with one. Alone, it gains
a tenth. Calls with little work should therefore have one thread, and the rule is

    threads = min(cores, max(1, floor(work / unit))),                                                         (1)

where the work of a call is its number of multiplications and additions. The unit is larger if each call is followed by
a backward pass, which loses more.

The alternative are lanes: threads that each compute rows of their own, with one thread for each operation. They meet
once a step in training (:mod:`scoresde.train.lanes`), and not at all in a likelihood, where each lane solves its own
ranges of rows (:func:`in_lanes`). Lanes gain more on an idle machine, and lose little beside a busy process.

Neither rule contains a clock, because results depend on the number of threads by rounding.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from .signals import ending

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "BACKWARD", "UNIT", "Crowd", "available", "chosen_by_user", "default_threads", "in_lanes", "lanes", "most_lanes",
    "one_thread", "rows_each", "work",
]  # fmt: skip

T = TypeVar("T")
S = TypeVar("S")
UNIT = 9e8  # work of a call for each thread
BACKWARD = 5e9  # the same if each call is followed by a backward pass
LANE = 1e8  # least work of a call in each lane
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
PATIENCE = 10.0  # seconds until interruptions are counted
OFTEN = 40.0  # interruptions per second


def work(network: nn.Module, call: Callable[[], object]) -> float:
    """Return the number of multiplications and additions in the convolutions and linear layers of a network in a call.

    Attention is left out. It is a small part of the networks of this package, and torch's own counter takes a second to
    import.
    """
    import torch

    counts: list[float] = []

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(out, torch.Tensor) and weight is not None and weight.ndim > 1:
            counts.append(2.0 * out.numel() * weight[0].numel())

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    hooks = [part.register_forward_hook(count) for part in network.modules() if isinstance(part, kinds)]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def default_threads(amount: float, cores: int, unit: float = UNIT) -> int:
    """Return the number of threads for calls with a certain amount of work (equation 1)."""
    return int(min(cores, max(1, amount / unit)))


def most_lanes(rows: int, amount: float, threads: int) -> int:
    """Return the largest number of lanes for calls with ``rows`` rows and a certain amount of work."""
    return int(min(threads, rows, max(1, amount / LANE)))


def chosen_by_user() -> bool:
    """Return whether the environment states a number of threads."""
    return any(os.environ.get(name) for name in NAMES)


_BEFORE: list[int] = []  # numbers of threads before each context below that is active
_LANES: list[int] = [1]  # numbers of lanes, those of the innermost context last


def available() -> int:
    """Return the number of threads of an operation outside :func:`one_thread`, even while that is active elsewhere."""
    import torch

    return max([torch.get_num_threads(), *_BEFORE])


@contextmanager
def one_thread() -> Iterator[None]:
    """Return a context manager in which each operation has one thread."""
    import torch

    before = available()
    _BEFORE.append(before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _BEFORE.remove(before)
        torch.set_num_threads(before)


@contextmanager
def lanes(count: int) -> Iterator[None]:
    """Return a context manager in which :func:`in_lanes` has ``count`` threads, and each operation has one."""
    if count == 1:
        yield
        return
    with one_thread():
        _LANES.append(count)
        try:
            yield
        finally:
            _LANES.pop()


def rows_each(rows: int, batch: int) -> int:
    """Return how many of ``rows`` rows each lane computes at once, if all lanes together compute up to ``batch``."""
    return max(1, -(-min(rows, batch) // _LANES[-1]))


def in_lanes(call: Callable[[T], S], items: Sequence[T]) -> Iterator[S]:
    """Yield ``call(item)`` for each item, in order. Inside :func:`lanes`, several items are computed at once.

    If the caller ends early, for example at a signal, the calls that have not finished end at their next
    :func:`scoresde.core.signals.check`.
    """
    if _LANES[-1] == 1 or len(items) < 2:
        yield from map(call, items)
        return
    import torch

    stop, grad = threading.Event(), torch.is_grad_enabled()

    def one(item: T) -> S:
        with ending(stop), torch.set_grad_enabled(grad):  # the mode belongs to a thread
            return call(item)

    with ThreadPoolExecutor(_LANES[-1], thread_name_prefix="lane") as pool:
        futures = [pool.submit(one, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


class Crowd:
    """Watches whether other processes take the cores from several threads of a call."""

    def __init__(self) -> None:
        self._began, self._before, self._told = time.monotonic(), _interruptions(), False

    def told(self) -> str | None:
        """Return a sentence that says so and what to do, once, if the threads have often been interrupted."""
        seconds = time.monotonic() - self._began
        if self._told or seconds < PATIENCE or "torch" not in sys.modules:
            return None
        import torch

        now, threads = _interruptions(), torch.get_num_threads()
        often = (now - self._before) / seconds
        self._began, self._before = time.monotonic(), now
        if threads == 1 or often < OFTEN:
            return None
        self._told = True
        return (
            f"the cores are shared with other processes: the {threads} threads were interrupted {often:.0f} times a "
            "second, and they wait for each other; stop, and repeat this with one thread (OMP_NUM_THREADS=1), or "
            "wait until the cores are free"
        )


def _interruptions() -> int:
    """Return how often this process has lost a core to another one."""
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
