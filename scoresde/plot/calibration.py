"""Plots of the calibration of a conditional model: the ranks of the truth among the answers, and the coverage.

The left panel shows how often each rank occurs, relative to the frequency of equally likely ranks. The right panel
shows the fraction of true values inside a central interval of the answers, against the level of the interval. The error
bars show two standard errors. For exact answers, both plots follow the dashed lines to within the error bars. If the
answers differ too little from one another, the ranks pile up at both ends, and the coverage lies below the diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import COLOURS, GREY, INK, Array, Floats, finite, legend_above, literal, new_figure, plain, set_title, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration"]


def calibration(
    ranks: Mapping[str, tuple[Array, Array]],
    coverage: Mapping[str, tuple[Array, Array]],
    levels: Array,
) -> Figure:
    """Plot the ranks of the truth and the coverage of central intervals, for one or several sets of values.

    Args:
        ranks: For each set, keyed by name, the frequency of ranks in each bin, relative to uniform ranks, and its
            standard error (NaN if unknown), each ``(bins,)``. At most seven sets can be drawn.
        coverage: For each set, keyed by name, the fraction of true values inside the interval at each level, and its
            standard error, each ``(L,)``.
        levels: The levels of the intervals, ``(L,)``, between 0 and 1.
    """
    known = finite(levels, "levels", 1)
    if not 1 <= len(ranks) <= len(COLOURS) or list(ranks) != list(coverage):
        raise UsageError(
            f"ranks and coverage must have the same keys (1 to {len(COLOURS)} of them), got {list(ranks)} and "
            f"{list(coverage)}"
        )
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for ax in (left, right):
        tidy(ax)
    left.axhline(1.0, color=GREY, linewidth=1.0, linestyle="--", zorder=0)
    right.plot([0, 1], [0, 1], color=GREY, linewidth=1.0, linestyle="--", zorder=0)
    highest = 1.5
    for i, (colour, name) in enumerate(zip(COLOURS, ranks, strict=False)):
        counts, errors = _pair(ranks[name], f"the ranks of {name}")
        edges = np.linspace(0, 1, len(counts) + 1)
        label = literal(name, 24)
        if len(ranks) == 1:
            left.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, alpha=0.35)
        left.stairs(counts, edges, baseline=None, color=colour, linewidth=1.3, label=label)
        # Bars of several sets stand side by side.
        place = (edges[:-1] + edges[1:]) / 2 + (i - (len(ranks) - 1) / 2) * 0.5 / len(ranks) * np.diff(edges)
        _bars(left, place, counts, errors, colour)
        highest = max(highest, float((counts + 2 * np.nan_to_num(errors)).max()))
        share, errors = _pair(coverage[name], f"the coverage of {name}")
        if len(share) != len(known):
            raise UsageError(
                f"the coverage of {name} has {len(share)} values for {len(known)} levels; pass one value for each level"
            )
        right.plot(known, share, color=colour, linewidth=1.3, marker="o", markersize=3, label=label)
        _bars(right, known, share, errors, colour)
    left.set_xlim(0, 1)
    left.set_ylim(0, 1.05 * highest)
    left.set_xlabel("rank of the truth among the answers, from lowest to highest", fontsize=9, color=INK)
    set_title(left, "frequency of each rank, relative to uniform ranks" if len(ranks) == 1 else None)
    right.set_xlim(0, 1)
    right.set_ylim(0, 1)
    right.set_aspect("equal")
    right.set_xlabel("level of the central interval", fontsize=9, color=INK)
    right.set_ylabel("truth inside", fontsize=9, color=INK)
    if len(ranks) > 1:
        left.set_ylabel("frequency of each rank", fontsize=9, color=INK)
        legend_above(left, ncols=min(len(ranks), 4))
    return figure


def _pair(values: tuple[Array, Array], name: str) -> tuple[Floats, Floats]:
    """Convert values and their standard errors to arrays, and check that the shapes match."""
    first, errors = finite(values[0], name, 1), np.asarray(plain(values[1]), dtype=np.float64)
    if errors.shape != first.shape or not len(first):
        raise UsageError(
            f"pass one standard error for each value of {name}, got shapes {first.shape} and {errors.shape}"
        )
    return first, errors


def _bars(ax: Axes, x: Floats, y: Floats, errors: Floats, colour: str) -> None:
    """Draw error bars of two standard errors where the standard error is known."""
    there = np.isfinite(errors)
    if there.any():
        ax.errorbar(x[there], y[there], 2 * errors[there], fmt="none", ecolor=colour, elinewidth=0.8)
