"""The frame in which a page draws states, so that one table of estimates serves every path.

A state is divided by its typical size, and the noise level is an angle:

    z = x_t / sqrt(alpha^2 + sigma^2) = c x_0 + s eps,     c^2 = sigmoid(log-SNR),     s^2 = 1 - c^2.            (1)

In this frame all paths of Gaussian noise are the same, and differ only in the time at which they reach each log-SNR.
The estimate x0_hat(z, log-SNR) depends on neither the size nor the clock of a path. Sliders move evenly in
r = s/(c + s), the time variable of the straight frame (:mod:`scoresde.sde.base`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.estimate import Denoiser
from ..run.run import Run

__all__ = ["Frame", "angle", "even"]

FURTHEST = 12.0  # the largest |log-SNR| of a page, because the log-SNR is infinite where alpha or sigma is 0


def angle(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients c and s of equation (1), each with the shape of ``log_snr``."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def even(low: float, high: float, count: int) -> Tensor:
    """Return ``count`` log-SNRs from ``low`` to ``high``, evenly spaced in r, as a float64 tensor ``(count,)``."""
    ends = torch.tensor([low, high], dtype=torch.float64)
    first, last = torch.sigmoid(-ends / 2).tolist()
    r = torch.linspace(first, last, count, dtype=torch.float64)
    found = 2 * (torch.log1p(-r) - r.log())
    found[0], found[-1] = low, high
    return found


@dataclass(frozen=True)
class Frame:
    """A model, evaluated in the frame of equation (1).

    Attributes:
        model: The model, with any condition bound to all rows.
        run: The run that the model belongs to, for its device and dtype.
        low, high: The log-SNR at the noisy end and at the data end of the model's times for sampling.
    """

    model: Denoiser
    run: Run
    low: float
    high: float

    @classmethod
    def of(cls, run: Run) -> Frame:
        """Build the frame of a run's model."""
        model, sde = run.model, run.model.domain.sde
        ends = sde.log_snr(torch.tensor(model.domain.interval("sample"), dtype=torch.float64)).detach()
        high, low = ends.clamp(-FURTHEST, FURTHEST).tolist()
        return cls(model, run, low, high)

    def times(self, log_snr: Tensor) -> Tensor:
        """Return the times, float64, at which the path has the log-SNRs ``log_snr``, with the same shape."""
        first, last = self.model.domain.interval("sample")
        return self.model.domain.sde.t_of_log_snr(log_snr.double()).detach().clamp(first, last)

    def x0(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Estimate the data, float64 ``(B, *event)`` on the CPU, at ``z: (B, *event)``.

        The argument ``log_snr`` has the shape ``()``, or ``(B,)``.
        """
        t = self.times(log_snr)
        alpha, sigma = self.model.domain.sde.coefficients(t)
        size = torch.hypot(alpha, sigma).detach()
        x = z.double() * (size.reshape(-1, *[1] * (z.ndim - 1)) if size.ndim else size)
        with torch.no_grad():
            found = self.model(x.to(self.run.device, self.run.dtype), t.to(self.run.device)).x0
        return found.cpu().double()
