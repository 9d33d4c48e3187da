"""Samples as they are: points in the plane, signals, histograms of coordinates, sheets of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Array,
    Floats,
    canvas,
    finite,
    legend_above,
    new_figure,
    plain,
    points_of,
    set_title,
    show_picture,
    tidy,
)  # fmt: skip
from .images import image_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["samples_figure", "scatter", "signals", "vectors"]


def scatter(x: Array, reference: Array | None = None, ax: Axes | None = None, title: str | None = None) -> Figure:
    """Points in the plane, over the reference in grey.

    Args:
        x: Points ``(N, 2)``.
        reference: What they should look like, ``(M, 2)``; both share the limits of their union.
        ax: Where to draw; a new figure when ``None``.
        title: A line above.
    """
    points = points_of(x, "x")
    below = None if reference is None else points_of(reference, "reference")
    figure, ax = canvas(ax, 4.2, 4.2)
    if below is not None:
        dots(ax, below, GREY, "reference")
    dots(ax, points, BLUE, "samples")

    every = points if below is None else np.concatenate((points, below))
    least, most = every.min(axis=0), every.max(axis=0)
    centre = (least + most) / 2
    half = 0.54 * max(float((most - least).max()), 1e-9)  # a square window with a margin
    ax.set_xlim(centre[0] - half, centre[0] + half)
    ax.set_ylim(centre[1] - half, centre[1] + half)
    ax.set_aspect("equal")
    if below is not None:
        legend_above(ax, ncols=2)
    set_title(ax, title)
    return figure


def signals(x: Array, ax: Axes | None = None, title: str | None = None) -> Figure:
    """The first eight signals one above the other, a panel for each of the first six channels, each on its own scale.

    Args:
        x: Signals ``(N, C, L)``.
        ax: Where to draw the first channel alone; a new figure when ``None``.
        title: A line above.
    """
    values = finite(x, "x", 3)
    if 0 in values.shape:
        raise UsageError(f"signals have shape (N, C, L): got {values.shape}")
    shown = values[:8, :6]
    if ax is not None:
        figure, panels = canvas(ax, 0, 0)[0], [ax]
    else:
        count = shown.shape[1]
        figure = new_figure(max(5.6, 2.8 * count), 0.8 + 0.55 * len(shown))
        panels = list(figure.subplots(1, count, squeeze=False)[0])
    for c, (panel, colour) in enumerate(zip(panels, (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY), strict=False)):
        traces = shown[:, c]
        # Rows are one range of this channel apart, so that an offset or a large neighbour hides nothing.
        step = 1.15 * max(float(np.ptp(traces)), 1e-9)
        for i, trace in enumerate(traces):
            panel.plot(trace - i * step, color=colour, linewidth=1.0)
        centres = [float(trace.mean()) - i * step for i, trace in enumerate(traces)]
        panel.set_yticks(centres, [str(i) for i in range(len(traces))])
        panel.set_xlim(0, max(values.shape[2] - 1, 1))
        low, high = float(traces.min()), float(traces.max())
        name = "" if values.shape[1] == 1 else f"channel {c}: "
        panel.set_xlabel(f"position   ({name}{low:.3g} to {high:.3g})", fontsize=9, color=INK)
        panel.tick_params(axis="y", length=0)
        tidy(panel)
        panel.spines["left"].set_visible(False)
    set_title(panels[0], title)
    return figure


def vectors(x: Array, reference: Array | None = None) -> Figure:
    """Histograms of the first six coordinates, each over that of the reference in grey.

    Args:
        x: Vectors ``(N, D)``.
        reference: What they should look like, ``(M, D)``.
    """
    values = finite(x, "x", 2)
    below = None if reference is None else finite(reference, "reference", 2)
    if 0 in values.shape or (below is not None and (len(below) == 0 or below.shape[1] != values.shape[1])):
        shape = None if below is None else below.shape
        raise UsageError(f"vectors have shape (N, D), the reference (M, D): got {values.shape} and {shape}")
    count = min(values.shape[1], 6)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = new_figure(max(2.3 * columns, 3.6), 1.7 * rows + 0.4)
    for d in range(count):
        ax = figure.add_subplot(rows, columns, d + 1)
        every = values[:, d] if below is None else np.concatenate((values[:, d], below[:, d]))
        least, most = float(every.min()), float(every.max())
        if least == most:
            least, most = least - 0.5, most + 0.5
        bins = np.linspace(least, most, int(np.clip(math.sqrt(len(values)), 10, 50)) + 1)
        if below is not None:
            ax.hist(below[:, d], bins=list(bins), density=True, color=GREY, alpha=0.45, label="reference")
        ax.hist(values[:, d], bins=list(bins), density=True, histtype="step", color=BLUE, lw=1.3, label="samples")
        ax.set_yticks([])
        tidy(ax)
        ax.spines["left"].set_visible(False)
        ax.set_title(f"x[{d}]", fontsize=9, color=INK)
    if below is not None:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def samples_figure(x: Array, kind: str, low: float, high: float, reference: Array | None = None) -> Figure:
    """The usual picture of samples of one kind, beside or over a reference.

    Args:
        x: Samples: images ``(N, C, H, W)``, signals ``(N, C, L)`` or vectors ``(N, D)``.
        kind: ``"image"``, ``"signal"`` or ``"vector"``; vectors of two coordinates are drawn as points.
        low: The value of an image that is black.
        high: The value of an image that is white.
        reference: Data of the same shape but for N.
    """
    if kind == "vector":
        values = finite(x, "x", 2)
        return scatter(values, reference) if values.shape[1] == 2 else vectors(values, reference)
    if kind not in ("image", "signal"):
        raise UsageError(f"no picture for the kind {kind!r}: use 'image', 'signal' or 'vector'")
    panels = [("samples", x)] if reference is None else [("samples", x), ("reference", reference)]
    if kind == "image":
        sheets = [image_grid(plain(images)[:64], None, low, high) for _, images in panels]
        aspect = max(sheet.shape[0] / sheet.shape[1] for sheet in sheets)
        figure = new_figure(4.2 * len(sheets), min(4.2 * aspect, 12) + 0.3)
    else:
        figure = new_figure(5.0 * len(panels), 0.9 + 0.55 * min(8, max(len(plain(a)) for _, a in panels)))
    for i, (title, values_or_images) in enumerate(panels):
        ax = figure.add_subplot(1, len(panels), i + 1)
        if kind == "image":
            show_picture(ax, sheets[i])
            set_title(ax, title)
        else:
            signals(values_or_images, ax, title)
    return figure


def dots(ax: Axes, points: Floats, colour: str, label: str) -> None:
    """Smaller and fainter dots the more there are; a bitmap even in a vector file, which so stays small."""
    crowd = min(1.0, 300 / len(points))
    size, alpha = 4 + 9 * crowd, 0.4 + 0.4 * crowd
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=size,
        alpha=alpha,
        color=colour,
        label=label,
        linewidths=0,
        rasterized=True,
    )
