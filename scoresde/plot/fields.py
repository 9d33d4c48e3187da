"""Arrow plots of scores in the plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import BLUE, INK, Array, canvas, finite, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["score_field", "score_fields"]


def score_field(ax: Axes | None, x_grid: Array, y_grid: Array, u: Array, v: Array, density: Array | None) -> Figure:
    """Draw a score as arrows over an image of the density.

    The norm of a score grows without bound away from the data, so the longest arrows would hide all others if drawn to
    scale. Therefore, the length of an arrow is proportional to the fourth root of the norm.

    Args:
        ax: Axes to draw on, or ``None`` for a new figure.
        x_grid: Evenly spaced x coordinates ``(X,)``.
        y_grid: Evenly spaced y coordinates ``(Y,)``.
        u: First component of the score, ``(Y, X)``.
        v: Second component of the score, ``(Y, X)``.
        density: Density ``(Y, X)``, or ``None`` for a white background.
    """
    xs, ys = finite(x_grid, "x_grid", 1), finite(y_grid, "y_grid", 1)
    us, vs = finite(u, "u", 2), finite(v, "v", 2)
    image = None if density is None else finite(density, "density", 2)
    shape = (len(ys), len(xs))
    seen = [a.shape for a in (us, vs, image) if a is not None]
    if min(shape) < 2 or any(s != shape for s in seen):
        raise UsageError(f"u, v and density must have shape (Y, X) = {shape}, with Y and X at least 2, got {seen}")
    figure, ax = canvas(ax, 4.6, 4.6)
    half_x, half_y = (xs[-1] - xs[0]) / (len(xs) - 1) / 2, (ys[-1] - ys[0]) / (len(ys) - 1) / 2
    extent = (xs[0] - half_x, xs[-1] + half_x, ys[0] - half_y, ys[-1] + half_y)
    if image is not None:
        # Leave out the darkest third of the colour map, so that dark arrows stand out everywhere.
        peak = max(float(image.max()), 1e-300)
        ax.imshow(image, "Blues", vmin=0, vmax=1.6 * peak, origin="lower", extent=extent, interpolation="bilinear")
    ky, kx = (max(1, math.ceil(size / 22)) for size in shape)
    thin = (slice(ky // 2, None, ky), slice(kx // 2, None, kx))
    a, b = us[thin], vs[thin]
    length = np.hypot(a, b)
    shrink = np.where(length > 0, np.maximum(length, 1e-300) ** -0.75, 0.0)
    spacing = min(kx * 2 * abs(half_x), ky * 2 * abs(half_y))
    longest = max(float(length.max()) ** 0.25, 1e-300)
    ax.quiver(
        xs[thin[1]], ys[thin[0]], a * shrink, b * shrink,
        angles="xy", scale_units="xy", scale=longest / (1.1 * spacing), pivot="mid",
        color=INK, width=0.0035, headwidth=4, headlength=4.5, headaxislength=4,
    )  # fmt: skip
    ax.set_xlim(extent[0], extent[1])
    ax.set_ylim(extent[2], extent[3])
    ax.set_aspect("equal")
    return figure


def score_fields(
    x_grid: Array,
    y_grid: Array,
    fields: Mapping[str, Array],
    columns: Sequence[str],
    density: Array | None = None,
    points: Array | None = None,
) -> Figure:
    """Draw one or more scores as arrows, with a row of panels for each score and a column for each time.

    If the density or points drawn from it are given, they are shown behind the arrows.

    Args:
        x_grid, y_grid: Evenly spaced x coordinates ``(X,)`` and y coordinates ``(Y,)``.
        fields: Scores ``(T, 2, Y, X)``, keyed by row title.
        columns: A label for each of the T times.
        density: Density ``(T, Y, X)``, or ``None`` if it is unknown.
        points: Points drawn from the density, ``(T, N, 2)``, or ``None`` for no points.
    """
    found = {title: finite(field, title, 4) for title, field in fields.items()}
    if not found or any(f.shape[:2] != (len(columns), 2) for f in found.values()):
        shapes = [f.shape for f in found.values()]
        raise UsageError(
            f"each field must have shape (T, 2, Y, X) with T = {len(columns)} (the number of columns), got {shapes}"
        )
    shades = None if density is None else finite(density, "density", 3)
    dots = None if points is None else finite(points, "points", 3)
    figure = new_figure(2.9 * len(columns), 3.05 * len(found) + 0.1)
    grid = figure.subplots(len(found), len(columns), squeeze=False)
    for k, (row, (title, field)) in enumerate(zip(grid, found.items(), strict=True)):
        for i, (ax, label) in enumerate(zip(row, columns, strict=True)):
            if dots is not None:
                ax.scatter(dots[i, :, 0], dots[i, :, 1], s=3, color=BLUE, alpha=0.25, linewidths=0, rasterized=True)
            score_field(ax, x_grid, y_grid, field[i, 0], field[i, 1], None if shades is None else shades[i])
            ax.set_xticks([])
            ax.set_yticks([])
            if k == 0:
                ax.set_title(label, fontsize=9, color=INK)
        row[0].set_ylabel(title, fontsize=9, color=INK)
    return figure
