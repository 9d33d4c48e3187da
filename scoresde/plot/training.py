"""Training, as it went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import BLUE, INK, SKY, Array, Floats, canvas, legend_above, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["loss_curve"]


def loss_curve(steps: Array, losses: Array, ax: Axes | None = None) -> Figure:
    """The loss at each step in light, its running mean in dark.

    Args:
        steps: Step numbers ``(N,)``, ascending.
        losses: Losses ``(N,)``; one that is not finite leaves a gap. The axis is logarithmic when they are
            positive and span more than a decade.
        ax: Where to draw; a new figure when ``None``.
    """
    t = np.asarray(plain(steps), dtype=np.float64)
    y = np.asarray(plain(losses), dtype=np.float64)
    if t.ndim != 1 or t.shape != y.shape:
        raise UsageError(f"one loss for each step: got shapes {t.shape} and {y.shape}")
    y = np.where(np.isfinite(y), y, np.nan)
    known = y[~np.isnan(y)]
    figure, ax = canvas(ax, 5.6, 3.2)
    ax.plot(t, y, color=SKY, linewidth=0.8, alpha=0.55, label="each record")
    ax.plot(t, _running_mean(y, max(3, len(y) // 40)), color=BLUE, linewidth=1.6, label="running mean")
    if len(known) and known.min() > 0 and known.max() > 10 * known.min():
        ax.set_yscale("log")
    ax.set_xlabel("step", fontsize=9, color=INK)
    ax.set_ylabel("loss", fontsize=9, color=INK)
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.margins(x=0.01)
    legend_above(ax, ncols=2)
    return figure


def _running_mean(y: Floats, window: int) -> Floats:
    """Centred mean over ``window`` values, of those that exist: shorter at the ends, blind to NaN."""
    kernel = np.ones(window | 1)
    there = ~np.isnan(y)
    if len(y) == 0:
        return y
    half = window // 2
    total = np.convolve(np.where(there, y, 0.0), kernel)[half : half + len(y)]
    count = np.convolve(there.astype(np.float64), kernel)[half : half + len(y)]
    return np.where(there, total / np.maximum(count, 1.0), np.nan)
