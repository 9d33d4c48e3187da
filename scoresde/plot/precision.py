"""Work-precision plots, which show the errors of solvers against the number of model evaluations on logarithmic axes.

There are up to three panels, with a line for each solver. The first panel shows the distance to the converged solution
(:mod:`scoresde.study.bench`). This distance falls with slope -k for a solver of order k, until it is limited by
rounding or by the error of the converged solution. The second panel shows the distance of the median sample, which a
few samples near borders between modes do not affect. The last panel shows the sliced W2 distance to held-out data. The
grey band shows the distances of real data to the held-out data, and the dotted line shows the distance of the converged
solution. Once a solver is at the dotted line, more evaluations do not improve the samples. Lines differ in marker and
colour, and also in dash pattern if there are more than seven solvers. Solvers that were fitted to the run have "fitted"
in their names, and thicker lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import COLOURS, GREY, INK, Array, Floats, canvas, literal, new_figure, plain, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["work_precision"]

MARKERS = "osD^vPX*<>p"
DASHES = ("-", "--", "-.")
TITLES = {1: "distance to the converged solution", 3: "the same, median sample", 2: "sliced W2 to held-out data"}


def work_precision(
    curves: Mapping[str, Array],
    floor: tuple[float, float] | None = None,
    converged: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Plot the distances to the converged solution and to data against the number of model evaluations.

    Args:
        curves: A curve of shape ``(K, 3)`` or ``(K, 4)`` for each solver, keyed by the solver's name. The columns are
            the number of evaluations, the distance to the converged solution, the sliced W2 distance to data and, if
            there is a fourth, the first distance of the median sample. NaN marks a missing value. A panel without any
            values is left out.
        floor: The lowest and highest sliced W2 distances of real data to the held-out data.
        converged: The sliced W2 distance of the converged solution to the held-out data.
        ax: Axes on which to draw only the first panel, or ``None`` for a new figure with all panels.

    Raises:
        UsageError: If a shape is wrong, or there is nothing to draw.
    """
    found = {literal(name): np.asarray(plain(points), dtype=np.float64) for name, points in curves.items()}
    wrong = {name: points.shape for name, points in found.items() if points.ndim != 2 or points.shape[1] not in (3, 4)}
    if wrong:
        raise UsageError(
            f"each curve must have shape (K, 3) or (K, 4), got {wrong}; the columns are evaluations, distance, sliced "
            "W2 and, if there is a fourth, the distance of the median sample"
        )
    columns = [c for c in TITLES if any(len(_shown(points, c)) for points in found.values())]
    if not columns:
        raise UsageError("there is nothing to draw, because no solver has a finite distance above 0")
    if ax is not None:
        figure, panels = canvas(ax, 0, 0)[0], [ax]
    else:
        figure = new_figure(0.6 + 3.9 * len(columns), 3.9)
        panels = list(figure.subplots(1, len(columns), squeeze=False)[0])
    for panel, column in zip(panels, columns, strict=False):
        _draw(panel, found, column)
        if column == 2 and floor is not None:
            panel.axhspan(*floor, color=GREY, alpha=0.35, linewidth=0, label="real data")
        if column == 2 and converged is not None:
            panel.axhline(converged, color=INK, linewidth=1.0, linestyle=":", label="converged")
    entries = {label: handle for p in panels for handle, label in zip(*p.get_legend_handles_labels(), strict=True)}
    ordered = [name for name in (*found, "real data", "converged") if name in entries]
    handles = [entries[name] for name in ordered]
    if ax is not None:
        ax.legend(handles, ordered, fontsize=8, frameon=False)
    else:
        columns_of_legend = -(-len(ordered) // -(-len(ordered) // 6))  # rows of equal length
        figure.legend(
            handles, ordered, loc="outside lower center", ncols=columns_of_legend, fontsize=8, frameon=False,
            handlelength=2.4, columnspacing=1.4,
        )  # fmt: skip
    return figure


def _shown(points: Floats, column: int) -> Floats:
    """Return the points that logarithmic axes can show, as pairs of evaluations and distance."""
    if column >= points.shape[1]:
        return points[:0, :2]
    pairs = points[:, [0, column]]
    return pairs[(np.isfinite(pairs) & (pairs > 0)).all(axis=1)]


def _draw(ax: Axes, found: Mapping[str, Floats], column: int) -> None:
    """Draw a line for each solver on logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    ax.set_xscale("log")
    ax.set_yscale("log")
    for i, (name, points) in enumerate(found.items()):
        pairs = _shown(points, column)
        if len(pairs):
            ax.plot(
                pairs[:, 0], pairs[:, 1], label=name, color=COLOURS[i % len(COLOURS)],
                linewidth=2.2 if "fitted" in name else 1.3,
                linestyle=DASHES[i // len(COLOURS) % len(DASHES)], marker=MARKERS[i % len(MARKERS)], markersize=5.5,
                markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
    values = np.concatenate([_shown(points, column)[:, 1] for points in found.values()])
    span = float(values.max() / values.min())
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    # Over a small range, ticks at 1, 2 and 5 would be too few, so use evenly spaced ticks instead.
    even = MaxNLocator(6, steps=[1, 2, 5, 10])
    ax.yaxis.set_major_locator(even if span < 5 else LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    ax.set_xlabel("evaluations of the model", fontsize=9, color=INK)
    ax.set_title(TITLES[column], fontsize=10, color=INK, loc="left")
    ax.grid(color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    tidy(ax)
