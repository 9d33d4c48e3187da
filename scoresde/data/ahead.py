"""Read the rows of the next batches while the current one is used.

The rows of a batch are a function of the seed and the step (:mod:`.batch`), so they can be read before they are needed,
by any number of threads and in any order, without a change in any result. Only reading and decoding are done ahead.
Everything that draws random numbers stays where it is.

The workers are threads, not processes. Reading a file, decompressing it and decoding a picture mostly run outside
Python's lock, and threads need no copies of the data, cannot be left behind when training is stopped, and report an
error at the step whose rows they could not read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .raw import Array
from .rows import Stored

__all__ = ["Ahead"]


class Ahead(Stored):
    """Stored rows of which those of the next steps are read ahead.

    Args:
        rows: The rows.
        workers: Number of threads. As many steps are read ahead, and one more.
    """

    def __init__(self, rows: Stored, workers: int) -> None:
        self.rows, self.workers = rows, workers
        self.step = -1
        self.pending: dict[int, tuple[Tensor, Future[Tensor]]] = {}
        self._pool = ThreadPoolExecutor(workers, "rows")
        # Threads that are still reading do not keep the process from ending for longer than one batch.
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    @property
    def wide(self) -> bool:  # type: ignore[override]
        return self.rows.wide

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def event(self) -> tuple[int, ...]:
        return self.rows.event

    @property
    def values(self) -> np.dtype[np.generic]:
        return self.rows.values

    def widened(self, wide: bool) -> Stored:
        return self.rows.widened(wide)

    def read(self, index: Array) -> Array:
        return self.rows.read(index)

    def expect(self, step: int, at: Callable[[int], Tensor]) -> None:
        """Begin to read the rows of ``step`` and of the steps after it.

        Args:
            step: The step whose rows are needed next.
            at: A function that returns the positions of the rows of a step, int64 ``(B,)``.
        """
        self.step, wanted = step, range(step, step + self.workers + 2)
        for other in [n for n in self.pending if n not in wanted]:
            self.pending.pop(other)[1].cancel()
        for n in wanted:
            if n not in self.pending:
                index = at(n)
                self.pending[n] = index, self._pool.submit(self.rows.__getitem__, index)

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        """Return rows ``(B, *event)``, which may have been read already. See :class:`~scoresde.data.rows.Stored`."""
        expected = self.pending.get(self.step)
        if expected is None or not isinstance(index, Tensor) or not torch.equal(expected[0], index):
            return self.rows[index]
        return self.pending.pop(self.step)[1].result()
