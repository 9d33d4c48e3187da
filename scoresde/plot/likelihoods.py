"""Likelihoods of several data sets, beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .base import COLOURS, INK, Array, canvas, finite, legend_above, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["likelihood_histogram"]


def likelihood_histogram(sets: Mapping[str, Array], unit: str, ax: Axes | None = None) -> Figure:
    """A histogram for each data set, with a line at its mean.

    Args:
        sets: Values ``(n,)`` by name, at most seven; every histogram has the area 1.
        unit: What the values are in, for the axis.
        ax: Where to draw; a new figure when ``None``.
    """
    values = {name: finite(v, name, 1) for name, v in sets.items()}
    if not values or len(values) > len(COLOURS) or any(len(v) == 0 for v in values.values()):
        sizes = {name: len(v) for name, v in values.items()}
        raise UsageError(f"a figure shows 1 to {len(COLOURS)} data sets, each with a value: got {sizes}")
    every = np.concatenate(list(values.values()))
    low, high = float(every.min()), float(every.max())
    margin = 0.02 * (high - low) or 0.5
    bins = np.linspace(low - margin, high + margin, int(np.clip(np.sqrt(len(every)) * 2, 12, 60)) + 1)
    figure, ax = canvas(ax, 5.6, 3.2)
    for colour, (name, v) in zip(COLOURS, values.items(), strict=False):
        ax.hist(v, bins=list(bins), density=True, color=colour, alpha=0.3)
        ax.hist(v, bins=list(bins), density=True, color=colour, histtype="step", linewidth=1.3, label=name)
        ax.axvline(float(v.mean()), color=colour, linewidth=1.0, linestyle="--")
    ax.set_xlabel(unit, fontsize=9, color=INK)
    ax.set_yticks([])
    tidy(ax)
    ax.spines["left"].set_visible(False)
    legend_above(ax, ncols=min(len(values), 4))
    return figure
