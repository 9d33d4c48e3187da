"""Plots of samples next to their nearest training rows, for visual inspection.

Images are drawn in pairs, with the sample above its nearest training row. A signal or vector is drawn in blue over its
nearest training row in grey. The columns of a table are standardised first. Pairs flagged by the check for copies have
a vermilion frame. Points in the plane are all drawn in a single panel, over the training data. A line joins each sample
to its nearest training row, and flagged samples are vermilion.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import (
    BLUE,
    GREY,
    INK,
    VERMILION,
    Array,
    Floats,
    canvas,
    column_names,
    finite,
    halves,
    legend_above,
    new_figure,
    plain,
    points_of,
    show_picture,
    tidy,
    window,
)
from .images import image_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["neighbour_sheet"]

COLUMNS = 8


def neighbour_sheet(
    samples: Array,
    nearest: Array,
    captions: Sequence[str],
    kind: str,
    low: float,
    high: float,
    flagged: Collection[int] = (),
    data: Array | None = None,
    names: Sequence[str] = (),
) -> Figure:
    """Draw each sample with its nearest training row.

    Args:
        samples: Samples, shape ``(N, *event)``, in data units.
        nearest: The nearest training row of each sample, with the same shape as ``samples``.
        captions: One caption per pair. Captions are not shown for points in the plane.
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        low: The image value to draw as black.
        high: The image value to draw as white.
        flagged: Indices of the pairs to mark as flagged.
        data: The training rows, shape ``(T, *event)``, or ``None``. They are drawn behind points in the plane, and
            their mean and standard deviation are used to standardise other vectors.
        names: Names of the two coordinates of points in the plane, for the axis labels.

    Raises:
        UsageError: If the shapes differ, or there is nothing to draw.
    """
    a, b = np.asarray(plain(samples)), np.asarray(plain(nearest))
    if a.shape != b.shape or len(a) != len(captions) or len(a) == 0:
        raise UsageError(
            "samples and nearest must have the same shape (N, *event), captions must have length N, and N must be at "
            f"least 1, got shapes {a.shape} and {b.shape} and len(captions) = {len(captions)}"
        )
    if kind == "vector" and a.shape[1:] == (2,):
        return _points(points_of(a, "samples"), points_of(b, "nearest"), flagged, data, names)
    if kind == "vector" and data is not None:
        known = finite(data, "data", 2)
        width = np.maximum(known.std(axis=0), 1e-12)
        a, b = (a - known.mean(axis=0)) / width, (b - known.mean(axis=0)) / width
    flat = kind in ("image", "volume")
    columns = min(COLUMNS, len(a))
    rows = math.ceil(len(a) / columns)
    height = 1.6
    if flat:
        shape = image_grid(a[:1], 1, low, high, pad=0).shape
        height = 2 * max(1.25 * shape[0] / shape[1], 0.25) + 0.25
    figure = new_figure(1.25 * columns, height * rows + 0.3)
    figure.suptitle("samples, each above its nearest training row" if flat else
                    "samples, with the nearest training row in grey", fontsize=9, color=INK)  # fmt: skip
    grid = figure.add_gridspec(rows, columns)
    for i, caption in enumerate(captions):
        cell = grid[i // columns, i % columns]
        colour = VERMILION if i in flagged else GREY
        if flat:
            both = cell.subgridspec(2, 1)
            panels = [figure.add_subplot(both[0]), figure.add_subplot(both[1])]
            sheet = image_grid(np.stack([a[i], b[i]]), 1, low, high, pad=0)  # one scale for both
            for panel, picture in zip(panels, np.split(sheet, 2), strict=True):
                show_picture(panel, picture)
        else:
            panels = [figure.add_subplot(cell)]
            _lines(panels[0], a[i], b[i])
        for panel in panels:
            _frame(panel, colour)
        panels[-1].set_xlabel(caption, fontsize=7, color=INK if i not in flagged else VERMILION)
    return figure


def _points(a: Floats, b: Floats, flagged: Collection[int], data: Array | None, names: Sequence[str]) -> Figure:
    """Draw samples, and lines to their nearest training rows, over the training data."""
    figure, ax = canvas(None, 4.5, 4.5)
    behind = b if data is None else points_of(data, "data")
    least, most = window(np.concatenate([behind, a, b]))
    ax.scatter(behind[:, 0], behind[:, 1], s=6, color=GREY, alpha=0.35, linewidths=0, label="training data")
    for i, (sample, nearest) in enumerate(zip(a, b, strict=True)):
        ax.plot(*np.stack([nearest, sample]).T, color=VERMILION if i in flagged else BLUE, linewidth=0.8)
    colours = [VERMILION if i in flagged else BLUE for i in range(len(a))]
    ax.scatter(a[:, 0], a[:, 1], s=16, c=colours, label="samples nearest to a training row")
    one, other = halves(most - least, names)
    if one == other:
        ax.set_aspect("equal")
    else:
        ax.set_box_aspect(1)
        ax.set(xlim=(least[0] - 0.1 * one, most[0] + 0.1 * one), ylim=(least[1] - 0.1 * other, most[1] + 0.1 * other))
    if len(names) == 2:
        first, second = column_names(names, 2, 40)
        ax.set_xlabel(first, fontsize=9, color=INK)
        ax.set_ylabel(second, fontsize=9, color=INK)
    tidy(ax)
    legend_above(ax, 2)
    return figure


def _lines(ax: Axes, sample: Array, nearest: Array) -> None:
    """Draw a sample and its nearest training row as lines, with the channels end to end."""
    ax.plot(np.ravel(nearest), color=GREY, linewidth=2.2, marker="o", markersize=2.5)
    ax.plot(np.ravel(sample), color=BLUE, linewidth=1.0, marker="o", markersize=1.5)
    tidy(ax)
    ax.set_xticks([])
    ax.set_yticks([])


def _frame(ax: Axes, colour: str) -> None:
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(colour)
        spine.set_linewidth(1.6 if colour == VERMILION else 0.6)
