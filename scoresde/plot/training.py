"""Plots of the training and validation loss, over the steps and by noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import BLUE, INK, SKY, VERMILION, Array, Floats, canvas, finite, legend_above, literal, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["loss_by_noise", "loss_curve"]


def loss_curve(
    steps: Array,
    losses: Array,
    validation: tuple[Array, Array] | None = None,
    best: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Plot the training loss in light blue, its running mean in dark blue, and the validation loss in vermilion.

    Args:
        steps: Training steps ``(N,)``, in ascending order.
        losses: Training losses ``(N,)``. A non-finite loss leaves a gap. The loss axis is logarithmic if all losses
            are positive and span more than a decade.
        validation: Training steps ``(V,)``, and the validation losses ``(V,)`` of the averaged weights at these steps.
        best: The step at which the validation loss is lowest.
        ax: Axes to draw on, or ``None`` for a new figure.
    """
    t, y = _curve(steps, losses)
    held = None if validation is None or len(plain(validation[0])) == 0 else _curve(*validation)
    figure, ax = canvas(ax, 5.6, 3.2)
    ax.plot(t, y, color=SKY, linewidth=0.8, alpha=0.55, label="each record")
    ax.plot(t, _running_mean(y, max(3, len(y) // 40)), color=BLUE, linewidth=1.6, label="running mean")
    if held is not None:
        marker = "o" if len(held[0]) <= 40 else None
        ax.plot(*held, color=VERMILION, linewidth=1.4, label="validation", marker=marker, markersize=3)
        if best is not None:
            ax.axvline(best, color=INK, linewidth=0.8, linestyle=":", label=f"lowest, step {best:,}")
    every = np.concatenate([y] if held is None else [y, held[1]])
    known = every[~np.isnan(every)]
    if len(known) and known.min() > 0 and known.max() > 10 * known.min():
        ax.set_yscale("log")
    ax.set_xlabel("step", fontsize=9, color=INK)
    ax.set_ylabel("loss", fontsize=9, color=INK)
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.margins(x=0.01)
    legend_above(ax, ncols=4)
    return figure


def loss_by_noise(
    edges: Array, labels: Sequence[str], losses: Array, what: str = "loss", ax: Axes | None = None
) -> Figure:
    """Plot the loss in each interval of the log-SNR, at several times of the training, the last in dark blue.

    Args:
        edges: The ends of the K intervals, as ascending log-SNRs, ``(K + 1,)``.
        labels: A label for each of the T times, in order.
        losses: The loss in each interval at each time, ``(T, K)``. A non-finite loss leaves a gap. The loss axis is
            logarithmic if all losses are positive and span more than a decade.
        what: The label of the loss axis.
        ax: Axes to draw on, or ``None`` for a new figure.
    """
    ends, y = finite(edges, "edges", 1), np.asarray(plain(losses), dtype=np.float64)
    if len(ends) < 2 or y.shape != (len(labels), len(ends) - 1):
        raise UsageError(
            f"losses must have shape (T, K) for T labels and K + 1 edges, got shape {y.shape} for {len(labels)} labels "
            f"and {len(ends)} edges"
        )
    y = np.where(np.isfinite(y), y, np.nan)
    figure, ax = canvas(ax, 5.6, 3.4)
    middle = (ends[1:] + ends[:-1]) / 2
    for i, (label, row) in enumerate(zip(labels, y, strict=True)):
        last = i == len(labels) - 1
        ax.plot(
            middle, row, color=BLUE if last else _lightened(SKY, 0.7 * (1 - (i + 1) / len(labels))), marker="o",
            linewidth=1.8 if last else 1.3, markersize=3.5 if last else 2.5, label=literal(label),
        )  # fmt: skip
    known = y[~np.isnan(y)]
    if len(known) and known.min() > 0 and known.max() > 10 * known.min():
        ax.set_yscale("log")
    ax.set_xlim(ends[-1], ends[0])
    ax.set_xticks(ends, [f"{round(end, 1) + 0:g}" for end in ends], fontsize=8)
    ax.set_xlabel("log-SNR  2 log(α/σ):  data  →  noise", fontsize=9, color=INK)
    ax.set_ylabel(literal(what), fontsize=9, color=INK)
    ax.grid(color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    legend_above(ax, ncols=5 if max(map(len, labels)) < 10 else 3)
    return figure


def _lightened(colour: str, share: float) -> tuple[float, ...]:
    """Mix a colour with a share of white."""
    from matplotlib.colors import to_rgb

    return tuple(part + share * (1 - part) for part in to_rgb(colour))


def _curve(steps: Array, losses: Array) -> tuple[Floats, Floats]:
    """Convert steps and losses to arrays, with NaN where a loss is not finite."""
    t = np.asarray(plain(steps), dtype=np.float64)
    y = np.asarray(plain(losses), dtype=np.float64)
    if t.ndim != 1 or t.shape != y.shape:
        raise UsageError(f"expected one loss for each step, got shapes {t.shape} and {y.shape}")
    return t, np.where(np.isfinite(y), y, np.nan)


def _running_mean(y: Floats, window: int) -> Floats:
    """Return the centred running mean over about ``window`` values, ignoring NaN."""
    kernel = np.ones(window | 1)  # an odd width
    there = ~np.isnan(y)
    if len(y) == 0:
        return y
    half = window // 2
    total = np.convolve(np.where(there, y, 0.0), kernel)[half : half + len(y)]
    # Fewer values are averaged near the ends.
    count = np.convolve(there.astype(np.float64), kernel)[half : half + len(y)]
    return np.where(there, total / np.maximum(count, 1.0), np.nan)
