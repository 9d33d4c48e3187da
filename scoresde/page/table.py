"""A table of a model's estimates in the plane, and how far the table is from the model.

A page draws fields and clouds of hundreds of points many times a second, which a network in a browser cannot do. A
table of x0_hat over z and the log-SNR can. The estimate is stored and not the score, because it is bounded: it is a
mean of data. Between the nodes the table is trilinear. The error that the page prints is measured at states
z = c x_0 + s eps of real data, at log-SNRs spread evenly over those of the table, so none of them is a node by design.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Numbers, Packed, pack_steps, unpack
from .frame import Frame, angle

__all__ = ["Table", "TableError", "make_table", "noisy", "table_error"]

STEP = 2.0**-11  # of x0_hat in model units, a tenth of the error of interpolation


@dataclass(frozen=True)
class Table:
    """A packed table of estimates.

    Attributes:
        packed: The estimates, ``(2, L, G, G)``: coordinate of the estimate, log-SNR, second and first coordinate of z.
        half: The grid of z covers ``[-half, half]`` in both coordinates.
        low, high: The first and the last of the L log-SNRs, which are evenly spaced.
        holes: Number of nodes at which the model returned a number that is not finite.
        nodes: Number of nodes.
    """

    packed: Packed
    half: float
    low: float
    high: float
    holes: int
    nodes: int

    def __call__(self, z: Numbers, log_snr: Numbers) -> Numbers:
        """Interpolate the estimates, ``(N, 2)``, at ``z: (N, 2)`` and ``log_snr: (N,)``, as the page does."""
        values = unpack(self.packed)
        _, levels, size, _ = values.shape
        found = np.zeros((len(z), 2))
        at = [
            (log_snr - self.low) / (self.high - self.low) * (levels - 1),
            (z[:, 1] + self.half) / (2 * self.half) * (size - 1),
            (z[:, 0] + self.half) / (2 * self.half) * (size - 1),
        ]
        last = [levels - 1, size - 1, size - 1]
        at = [np.clip(a, 0, most) for a, most in zip(at, last, strict=True)]
        base = [np.minimum(a.astype(int), most - 1) for a, most in zip(at, last, strict=True)]
        rest = [a - b for a, b in zip(at, base, strict=True)]
        for corner in range(8):
            moved = [corner >> k & 1 for k in (2, 1, 0)]
            weight = np.prod([f if m else 1 - f for f, m in zip(rest, moved, strict=True)], axis=0)
            level, y, x = (b + m for b, m in zip(base, moved, strict=True))
            # A corner without weight may be a hole.
            found += np.where(weight > 0, weight * values[:, level, y, x], 0.0).T
        return found


def make_table(frame: Frame, half: float, size: int, levels: int) -> Table:
    """Evaluate a model in the plane on a grid of ``size`` x ``size`` states at ``levels`` log-SNRs."""
    ticks = torch.linspace(-half, half, size, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).reshape(-1, 2)
    log_snr = torch.linspace(frame.low, frame.high, levels, dtype=torch.float64)
    found = torch.stack([frame.x0(z, level).T.reshape(2, size, size) for level in log_snr], 1).numpy()
    holes = int((~np.isfinite(found)).any(0).sum())
    return Table(pack_steps(found, STEP), half, frame.low, frame.high, holes, levels * size**2)


@dataclass(frozen=True)
class TableError:
    """The distance between the table and the model, in model units, over N noisy data.

    Attributes:
        rms: Root mean square of the distance.
        most: The distance that 99 % of the points do not exceed.
        count: Number of points at which both are finite.
    """

    rms: float
    most: float
    count: int


def noisy(frame: Frame, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states ``(N, 2)`` and the log-SNRs ``(N,)`` at which the table is checked: row i at the i-th level."""
    share = (torch.arange(len(x0), dtype=torch.float64) + 0.5) / len(x0)
    log_snr = frame.low + share * (frame.high - frame.low)
    c, s = angle(log_snr)
    return c[:, None] * x0 + s[:, None] * eps, log_snr


def table_error(table: Table, frame: Frame, x0: Tensor, eps: Tensor) -> TableError:
    """Measure the error of a table at data ``x0: (N, 2)``, in model units, with the noise ``eps: (N, 2)``."""
    z, log_snr = noisy(frame, x0, eps)
    truth = frame.x0(z, log_snr).numpy()
    gap = np.linalg.norm(table(z.numpy(), log_snr.numpy()) - truth, axis=1)
    gap = gap[np.isfinite(gap)]
    if not len(gap):
        return TableError(float("nan"), float("nan"), 0)
    return TableError(float(np.sqrt(np.mean(gap**2))), float(np.quantile(gap, 0.99)), len(gap))
