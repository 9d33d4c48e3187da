"""Histograms of the likelihoods of several data sets in one plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import COLOURS, INK, Array, Floats, canvas, finite, legend_above, literal, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["likelihood_histogram"]


def likelihood_histogram(sets: Mapping[str, Array], unit: str, ax: Axes | None = None) -> Figure:
    """Draw a histogram for each data set, with a dashed line at the mean. The legend also states the means.

    All histograms have area 1 and the same bin width. The rule of Freedman and Diaconis (1981) gives a bin width for
    each data set. The smallest of them is used, unless there would be too few or too many bins.

    Args:
        sets: Values ``(n,)`` of at most seven data sets, keyed by name.
        unit: Unit of the values, for the axis label.
        ax: Axes to draw on, or ``None`` for a new figure.
    """
    values = {name: finite(v, name, 1) for name, v in sets.items()}
    if not values or len(values) > len(COLOURS) or any(len(v) == 0 for v in values.values()):
        sizes = {name: len(v) for name, v in values.items()}
        raise UsageError(
            f"a figure needs 1 to {len(COLOURS)} data sets, each with at least one value, got sizes {sizes}"
        )
    low, high = (float(f(np.concatenate(list(values.values())))) for f in (np.min, np.max))
    count = int(np.clip(np.ceil((high - low) / _bin_width(list(values.values()))), 12, 150)) if high > low else 12
    width = (high - low or 1.0) / count
    figure, ax = canvas(ax, 5.6, 3.2)
    for colour, (name, v) in zip(COLOURS, values.items(), strict=False):
        # All sets share one grid of bins. Leave out empty bins at the ends, so that no line runs along zero.
        first, last = (int((f(v) - low) / width) for f in (np.min, np.max))
        bins = list(low + width * np.arange(first, last + 2))
        bins[0], bins[-1] = min(bins[0], v.min()), max(bins[-1], v.max())  # despite rounding
        label = f"{literal(name, 40)}, mean {v.mean():.4g}"
        ax.hist(v, bins=bins, density=True, color=colour, alpha=0.3)
        ax.hist(v, bins=bins, density=True, color=colour, histtype="step", linewidth=1.3, label=label)
        ax.axvline(float(v.mean()), color=colour, linewidth=1.0, linestyle="--")
    ax.set_xlabel(unit, fontsize=9, color=INK)
    ax.set_yticks([])
    tidy(ax)
    ax.spines["left"].set_visible(False)
    legend_above(ax, ncols=min(len(values), 3))
    return figure


def _bin_width(sets: list[Floats]) -> float:
    """Return the smallest positive bin width ``2 IQR n^(-1/3)`` of the sets, or infinity if there is none."""
    widths = [2 * float(np.subtract(*np.percentile(v, [75, 25]))) / np.cbrt(len(v)) for v in sets]
    return min((w for w in widths if w > 0), default=np.inf)
