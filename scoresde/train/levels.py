"""The loss at each noise level, in ten intervals of the log-SNR.

One number for the loss hides where the errors are: it is a mean over noise levels, which differ in difficulty, in their
weight and in when they are learned. The interval of log-SNR on which a model is trained is therefore divided into ten
of equal width. Where the log-SNR is infinite, the interval ends at +-15, and the outermost intervals include whatever
is beyond. In one set of rows, let m_k be the mean loss of the c_k rows in interval k. Then

    loss = sum_k c_k m_k / sum_k c_k.                                                                           (1)

The losses include the weights of the draws, so that each m_k is what its rows add to the loss that training minimises.

The losses of the training steps stay on the device, and are added there. Only the host knows the times before they are
copied, so it finds the intervals, and no step waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.shapes import moved, time_dtype
from ..model.estimate import Domain
from ..objective.draw import Draws
from .state import Late

__all__ = ["COUNT", "FURTHEST", "ByLevel", "Levels", "edges_of"]

COUNT = 10  # number of intervals
FURTHEST = 15.0  # the largest log-SNR that bounds an interval


@torch.no_grad()
def edges_of(domain: Domain) -> Tensor:
    """Return the 11 ends of the intervals, as ascending log-SNRs, float64 ``(11,)``, on the CPU."""
    low, high = domain.interval("train")
    ends = domain.sde.log_snr(_beside(domain, [high, low])).clamp(-FURTHEST, FURTHEST)
    return torch.linspace(float(ends[0]), float(ends[1]), COUNT + 1, dtype=torch.float64)


def _beside(domain: Domain, values: list[float]) -> Tensor:
    """Return numbers as a float64 tensor on the device of a learned path, or on the CPU."""
    device = next((value.device for value in domain.sde.parameters().values()), torch.device("cpu"))
    return torch.tensor(values, dtype=time_dtype(device), device=device)


@dataclass(frozen=True, eq=False)
class ByLevel:
    """Losses by noise level, of one set of rows.

    Attributes:
        counts: Number of rows in each interval, from the noisiest to the cleanest, int64 ``(10,)``, on the CPU.
        sums: The sums of their losses ``(10,)``, possibly still on their way from the device.
    """

    counts: Tensor
    sums: Late

    @property
    def means(self) -> list[float | None]:
        """The mean loss in each interval, from the noisiest to the cleanest. It is ``None`` where there are no rows."""
        return [total / n if n else None for total, n in zip(self.sums.read(), self.counts.tolist(), strict=True)]


class Levels:
    """The intervals, and the losses of the training steps since they were last taken.

    The times between the intervals are those of the path at the start. If the path is learned, they do not follow it.

    Args:
        domain: Where the model is trained.
        device: The device of the losses in training.
    """

    def __init__(self, domain: Domain, device: torch.device | str = "cpu") -> None:
        with torch.no_grad():
            inner = domain.sde.t_of_log_snr(_beside(domain, edges_of(domain)[1:-1].tolist()))
        self._times = inner.double().cpu().flip(0)  # ascending, from clean to noisy
        self._device = torch.device(device)
        self._clear()

    def _clear(self) -> None:
        self._counts = torch.zeros(COUNT, dtype=torch.int64)
        self._sums = torch.zeros(COUNT, dtype=time_dtype(self._device), device=self._device)

    def _at(self, t: Tensor) -> Tensor:
        """Return the number of the interval of each time ``(B,)``, int64 ``(B,)``."""
        return COUNT - 1 - torch.bucketize(t.to(self._times), self._times)

    def of(self, t: Tensor, losses: Tensor) -> ByLevel:
        """Return the losses ``(B,)`` at the times ``t: (B,)`` by noise level. Both are on the CPU."""
        at = self._at(t)
        sums = torch.zeros(COUNT, dtype=torch.float64).index_add_(0, at, losses.double())
        return ByLevel(torch.bincount(at, minlength=COUNT), Late(sums))

    def add(self, draws: Draws, losses: Tensor, loss: Tensor) -> None:
        """Add the losses of rows of a training step, without waiting for the device.

        Args:
            draws: The draws for the rows, on the CPU.
            losses: The loss of each row without its weight ``(B,)``, on the device.
            loss: The mean loss of the rows ``()``, on the device, including the ends of a learned path. These do not
                depend on the noise level, so every row gets their mean.
        """
        if draws.t is None:
            return
        at = self._at(draws.t)
        self._counts += torch.bincount(at, minlength=COUNT)
        weighed = losses if draws.weight is None else moved(draws.weight, self._device).to(losses) * losses
        weighed = weighed.to(self._sums)
        self._sums.index_add_(0, moved(at, self._device), weighed + (loss - weighed.mean()))

    def take(self) -> ByLevel:
        """Return the losses of the training steps since the last call, and start again."""
        taken = ByLevel(self._counts, Late(self._sums))
        self._clear()
        return taken
