"""Plots of samples: points in the plane, signals, histograms of coordinates, and sheets of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    column_names,
    finite,
    halves,
    legend_above,
    new_figure,
    plain,
    points_of,
    set_title,
    show_picture,
    tidy,
    window,
)  # fmt: skip
from .images import image_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["samples_figure", "scatter", "signals", "vectors"]

SIGNALS, PANELS, COORDINATES = 8, 6, 12  # maximum numbers of signals, of channels and of coordinates in a figure


def scatter(
    x: Array,
    reference: Array | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    names: Sequence[str] = (),
    like: Array | None = None,
) -> Figure:
    """Draw points in the plane, over reference data in grey.

    Both axes have the same scale unless the range of one coordinate is much larger than that of the other. Extreme
    outliers lie outside the axes. Unless ``like`` is given, the figure states how many samples lie outside.

    Args:
        x: Points ``(N, 2)``.
        reference: Data ``(M, 2)`` to compare with.
        ax: Axes to draw on, or ``None`` for a new figure.
        title: Title above the axes.
        names: Names of the two coordinates.
        like: Points ``(K, 2)`` that determine the axis limits. The default is ``x`` and ``reference`` together.
    """
    points = points_of(x, "x")
    below = None if reference is None else points_of(reference, "reference")
    figure, ax = canvas(ax, 4.2, 4.2)
    if below is not None:
        dots(ax, below, GREY, "data")
    dots(ax, points, BLUE, "samples")

    every = points if below is None else np.concatenate((points, below))
    least, most = window(every if like is None else points_of(like, "like"))
    centre, half = (least + most) / 2, 1.08 * halves(most - least, names)  # a square window with a margin
    ax.set_xlim(centre[0] - half[0], centre[0] + half[0])
    ax.set_ylim(centre[1] - half[1], centre[1] + half[1])
    if half[0] == half[1]:
        ax.set_aspect("equal")
    else:
        ax.set_box_aspect(1)
    if len(names) == 2:
        first, second = column_names(names, 2, 40)
        ax.set_xlabel(first, fontsize=9, color=INK)
        ax.set_ylabel(second, fontsize=9, color=INK)
    if like is None:
        _outside(ax, int((np.abs(points - centre) > half).any(axis=1).sum()))
    if below is not None:
        legend_above(ax, ncols=2)
    set_title(ax, title)
    return figure


def _outside(ax: Axes, count: int) -> None:
    """Write in a corner how many samples lie outside the axes."""
    if count:
        ax.text(
            0.99, 0.98, f"{count:,} outside", transform=ax.transAxes, ha="right", va="top", fontsize=7, color=VERMILION
        )


def signals(
    x: Array,
    ax: Axes | None = None,
    title: str | None = None,
    names: Sequence[str] = (),
    like: Array | None = None,
) -> Figure:
    """Draw the first eight signals one below another, with a panel for each of the first six channels.

    All signals of a channel are drawn on the same scale. The tick labels next to each signal are in data units.

    Args:
        x: Signals ``(N, C, L)``.
        ax: Axes on which to draw only the first channel, or ``None`` for a new figure with all channels.
        title: Title above the figure.
        names: Names of the channels.
        like: Signals ``(K, C, L)`` whose range determines the scale of each channel. The default is ``x``.
    """
    values = _traces_of(x, "x")
    span = values[:SIGNALS] if like is None else _traces_of(like, "like")
    shown = values[:SIGNALS, :PANELS]
    if ax is not None:
        figure, panels = canvas(ax, 0, 0)[0], [ax]
    else:
        count = shown.shape[1]
        figure = new_figure(max(5.6, 2.8 * count), 0.8 + 0.55 * len(shown))
        panels = list(figure.subplots(1, count, squeeze=False)[0])
    _panels(panels, shown, span, names)
    if ax is not None or (shown.shape[1] == 1 and not names):
        set_title(panels[0], title)
    elif title is not None:
        figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def _traces_of(x: Array, name: str) -> Floats:
    values = finite(x, name, 3)
    if 0 in values.shape:
        raise UsageError(f"signals must have shape (N, C, L), with no empty axis, got {values.shape}")
    return values


def _panels(
    panels: Sequence[Axes], values: Floats, span: Floats, names: Sequence[str], colour: str | None = None, rows: int = 0
) -> None:
    """Draw signals ``(N, C, L)`` in one panel per channel, with the scale of the signals ``span``.

    Each panel has space for at least ``rows`` signals.
    """
    colours = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
    several = values.shape[1] > 1 or len(names) == span.shape[1]
    titles = column_names(names, span.shape[1], 32) if len(names) == span.shape[1] else [
        f"channel {c}" for c in range(span.shape[1])
    ]  # fmt: skip
    for c, panel in enumerate(panels):
        traces, low, high = values[:, c], float(span[:, c].min()), float(span[:, c].max())
        # The spacing is a little more than the range of this channel, so that signals never overlap.
        step = 1.15 * max(high - low, 1e-9)
        edge = 0.06 * step  # clip values far outside the span, so that no signal crosses its neighbours
        for i, trace in enumerate(np.clip(traces, low - edge, high + edge)):
            panel.plot(trace - i * step, color=colour or colours[c % len(colours)], linewidth=1.0)
            panel.annotate(
                f"no. {i}", (1.0, (low + high) / 2 - i * step), (2, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=7, color=GREY,
            )  # fmt: skip
        marks = _marks(low, high)
        heights = [(v - i * step, f"{v:.10g}") for i in range(len(traces)) for v in marks]
        panel.set_yticks([h for h, _ in heights], [label for _, label in heights])
        panel.set_xlim(0, max(values.shape[2] - 1, 1))
        panel.set_ylim(low - (max(len(traces), rows) - 1 + 0.08) * step, high + 0.08 * step)
        panel.set_xlabel("position", fontsize=9, color=INK)
        tidy(panel)
        panel.tick_params(axis="y", labelsize=7)
        if several and len(panels) == values.shape[1]:
            set_title(panel, titles[c])


def _marks(low: float, high: float) -> list[float]:
    """Return two or three round numbers from ``low`` to ``high``, or the limits if there are too few."""
    from matplotlib.ticker import MaxNLocator

    for most in (2, 3, 4):
        found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        inside = [float(v) for v in found if low <= v <= high]
        if len(inside) > 1:
            return inside[:3]
    return [low, high] if high > low else [low]


def vectors(x: Array, reference: Array | None = None, names: Sequence[str] = (), like: Array | None = None) -> Figure:
    """Draw histograms of the first twelve coordinates, each over a grey histogram of the reference with the same bins.

    If all values of a coordinate in the reference (or in ``x``, without a reference) are integers, no integer lies on a
    bin edge. Extreme outliers lie outside the bins. Unless ``like`` is given, each panel states how many samples lie
    outside.

    Args:
        x: Vectors ``(N, D)``.
        reference: Data ``(M, D)`` to compare with.
        names: Names of the coordinates.
        like: Vectors ``(K, D)`` that determine the range of the bins. The default is ``x`` and ``reference`` together.
    """
    values = finite(x, "x", 2)
    below = None if reference is None else finite(reference, "reference", 2)
    if 0 in values.shape or (below is not None and (len(below) == 0 or below.shape[1] != values.shape[1])):
        shape = None if below is None else below.shape
        raise UsageError(
            f"x and reference must be non-empty and have shapes (N, D) and (M, D), got {values.shape} and {shape}"
        )
    count = min(values.shape[1], COORDINATES)
    columns = min(count, 2 if count == 4 else 3 if count <= 6 else 4)
    rows = math.ceil(count / columns)
    figure = new_figure(max(2.3 * columns, 3.6), 1.7 * rows + 0.4)
    titles = column_names(names, values.shape[1])
    every = values if below is None else np.concatenate((values, below))
    least, most = window(every if like is None else finite(like, "like", 2))
    for d in range(count):
        ax = figure.add_subplot(rows, columns, d + 1)
        known = values[:, d] if below is None else below[:, d]
        edges, bar = _edges(known, float(least[d]), float(most[d]), len(values))
        looks: dict[str, dict[str, Any]] = {
            "data": {"color": GREY, "alpha": 0.45, "rwidth": bar},
            "samples": {"color": BLUE, "lw": 1.3, "histtype": "step"},
        }
        for label, v in (("data", below), ("samples", values)):
            if v is not None:  # normalise by all values, including those outside the bins
                weights = np.full(len(v), 1 / (len(v) * (edges[1] - edges[0])))
                ax.hist(v[:, d], edges, weights=weights, label=label, **looks[label])
        ax.set_xlim(edges[0], edges[-1])
        ax.locator_params(axis="x", nbins=4)
        ax.set_yticks([])
        tidy(ax)
        ax.spines["left"].set_visible(False)
        ax.set_title(titles[d], fontsize=9, color=INK)
        if like is None:
            _outside(ax, int(((values[:, d] < edges[0]) | (values[:, d] > edges[-1])).sum()))
    if values.shape[1] > count:
        text = f"the first {count} of {values.shape[1]:,} columns"
        figure.suptitle(text, fontsize=9, color=INK, x=0.01, ha="left")
    if below is not None:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _edges(values: Floats, least: float, most: float, count: int) -> tuple[list[float], float]:
    """Return the bin edges for a histogram of ``count`` values, and the width of the bars relative to the bins.

    If all ``values`` are integers, every bin covers the same number of integers.
    """
    bins = int(np.clip(math.sqrt(count), 10, 50))
    if (values == np.rint(values)).all() and max(abs(least), abs(most)) < 1e15:
        first, last = math.floor(least), math.ceil(most)
        step = 1 if last - first < 50 else math.ceil((last - first + 1) / bins)
        edges = first - 0.5 + step * np.arange(math.ceil((last - first + 1) / step) + 1)
        return edges.tolist(), 0.85 if step == 1 and len(edges) <= 26 else 1.0
    if least == most:
        least, most = least - 0.5, most + 0.5
    return np.linspace(least, most, bins + 1).tolist(), 1.0


def samples_figure(
    x: Array, kind: str, low: float, high: float, reference: Array | None = None, names: Sequence[str] = ()
) -> Figure:
    """Draw the standard figure for samples of a given kind. Any reference data are drawn next to or behind the samples.

    Args:
        x: Samples: images ``(N, C, H, W)``, volumes ``(N, C, D, H, W)``, signals ``(N, C, L)`` or vectors ``(N, D)``.
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``; vectors with two coordinates are drawn as points.
        low: The image value to draw as black.
        high: The image value to draw as white.
        reference: Data to compare with. The shape must equal the shape of ``x``, except for the number of rows.
        names: Names of the coordinates of vectors, or of the channels of signals.
    """
    if kind == "vector":
        values = finite(x, "x", 2)
        draw = scatter if values.shape[1] == 2 else vectors
        return draw(values, reference, names=names)
    if kind not in ("image", "volume", "signal"):
        raise UsageError(f"kind must be 'image', 'volume', 'signal' or 'vector', got {kind!r}")
    panels = [("samples", x)] if reference is None else [("samples", x), ("data", reference)]
    if kind == "signal":
        return signals(x, names=names) if reference is None else _signal_pair(x, reference, names)
    sheets = [image_grid(plain(images)[:64], None, low, high) for _, images in panels]
    aspect = max(sheet.shape[0] / sheet.shape[1] for sheet in sheets)
    figure = new_figure(4.2 * len(sheets), min(4.2 * aspect, 12) + 0.3)
    for i, ((title, _), sheet) in enumerate(zip(panels, sheets, strict=True)):
        ax = figure.add_subplot(1, len(panels), i + 1)
        show_picture(ax, sheet)
        set_title(ax, title)
    return figure


def _signal_pair(x: Array, reference: Array, names: Sequence[str]) -> Figure:
    """Draw signals and data on the same scales, side by side or one above the other."""
    both = {"samples": _traces_of(x, "x")[:SIGNALS], "data": _traces_of(reference, "reference")[:SIGNALS]}
    channels = min(both["samples"].shape[1], PANELS)
    rows = max(len(values) for values in both.values())
    span = np.concatenate(list(both.values()))
    beside = channels == 1
    figure = new_figure(10.0 if beside else max(5.6, 2.8 * channels), (0.9 + 0.55 * rows) * (1 if beside else 2))
    parts = figure.subfigures(1 if beside else 2, 2 if beside else 1, squeeze=False).ravel()
    for part, (title, values), colour in zip(parts, both.items(), (None, "#777777"), strict=True):
        panels = list(part.subplots(1, channels, squeeze=False)[0])
        named = names if channels == span.shape[1] else ()
        _panels(panels, values[:, :channels], span[:, :channels], named, colour, rows)
        if beside:
            set_title(panels[0], title)
        else:
            part.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def dots(ax: Axes, points: Floats, colour: str, label: str) -> None:
    """Draw points as dots. The more points there are, the smaller and more transparent the dots.

    The dots are rasterised to keep vector files small.
    """
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
