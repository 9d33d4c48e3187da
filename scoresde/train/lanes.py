"""Threads that each compute the gradient of their own part of a batch, and meet once a step.

    gradient = (g_1 + ... + g_L)/L,        g_l = gradient of the mean loss of the rows in part l.             (1)

The parts are summed in this order, so the result does not depend on which thread is first. It is bit for bit that of
``accumulate`` = L with one thread. On two cores, two lanes are 1.1 to 1.8 times as fast as one thread, and 0.9 to 1.3
times as fast as two threads that share each operation. Beside a busy process they lose much less
(``python experiments/threads.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn

from ..core.threads import most_lanes
from ..nn.execution import shareable

__all__ = ["Lanes", "lanes_for"]


def lanes_for(network: nn.Module, rows: int, amount: float, threads: int) -> int:
    """Return the number of lanes: the largest divisor of the number of rows that the threads and the work allow.

    A network that threads cannot share (:func:`scoresde.nn.execution.shareable`) has one lane.

    Args:
        network: The network.
        rows: Number of rows that are evaluated at once.
        amount: The work of a forward pass of these rows (:func:`scoresde.core.threads.work`).
        threads: Number of threads.
    """
    most = most_lanes(rows, amount, threads) if shareable(network, training=True) else 1
    return next((count for count in range(most, 1, -1) if rows % count == 0), 1)


class Lanes:
    """Threads for the parts of a batch.

    Args:
        count: Number of threads.
        parameters: The parameters whose gradients are computed.
    """

    def __init__(self, count: int, parameters: Sequence[nn.Parameter]) -> None:
        self.count, self.parameters = count, list(parameters)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane") if count > 1 else None

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def backward(self, parts: Sequence[Callable[[], tuple[Tensor, Tensor]]], divisor: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of the mean loss, divided by ``divisor``, to the gradients of the parameters (equation 1).

        Args:
            parts: For each lane, a function that returns a loss, ``()``, and the losses of its rows, ``(B/L,)``.
            divisor: What the gradient is divided by.

        Returns:
            The mean loss ``()`` and the losses of all rows ``(B,)``, without their graph.
        """
        assert self._pool is not None
        divisor *= len(parts)

        def gradient(part: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
            loss, losses = part()
            return (
                loss.detach(),
                losses.detach(),
                torch.autograd.grad(loss / divisor, self.parameters, allow_unused=True),
            )

        futures = [self._pool.submit(gradient, part) for part in parts]
        wait(futures)  # also if one fails, because the others still use the weights
        found = [future.result() for future in futures]
        for parameter, *gradients in zip(self.parameters, *(each for _, _, each in found), strict=True):
            for one in gradients:
                if one is not None:
                    parameter.grad = one if parameter.grad is None else parameter.grad.add_(one)
        return torch.stack([loss for loss, _, _ in found]).mean(), torch.cat([losses for _, losses, _ in found])
