"""Strip plots of samples over time, with time running from left to right.

A strip plot has one or more blocks, one below another. A block shows states of shape ``(T, N, *event)``, with a column
for each of the T times. Images are arranged in a sheet, in which each of the N rows shows one image at all times. For
points and signals, there is one panel for each time. Each point has the same colour at all times, so that mixing is
visible. The colour shows in which direction the point lies from the centre of all points at a chosen time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import COLOURS, GREY, INK, Array, Floats, halves, new_figure, plain, show_picture, tidy
from .images import image_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["sectors", "strips"]

SECTORS = (*COLOURS, GREY)  # a colour for each of eight directions
TITLE = 0.55  # inches above a block, for its title and the labels of its columns


def sectors(points: Array) -> list[str]:
    """Choose a colour for each of the points ``(N, 2)``, according to its direction from the mean of all points."""
    x = np.asarray(plain(points), dtype=np.float64)
    x = x - x.mean(axis=0)
    eighth = np.rint(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    return [SECTORS[i] for i in eighth]


def strips(
    blocks: Mapping[str, Array],
    columns: Sequence[str],
    kind: str,
    low: float = -1.0,
    high: float = 1.0,
    coloured_by: Array | None = None,
    note: str | None = None,
) -> Figure:
    """Draw blocks of samples over time.

    Only the first channel of signals and the first two coordinates of vectors are drawn.

    Args:
        blocks: States ``(T, N, *event)`` in data units, keyed by block title. The event is an image ``(C, H, W)``, a
            volume ``(C, D, H, W)``, a signal ``(C, L)`` or a vector ``(D,)``.
        columns: A label for each of the T columns.
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        low, high: The image values to draw as black and as white.
        coloured_by: Vectors ``(N, D)``, whose directions from their mean determine the colours of the N points. The
            default is the last states of the first block.
        note: Line of text below the figure.

    Raises:
        UsageError: If the shapes do not match.
    """
    states = {title: np.asarray(plain(x), dtype=np.float64) for title, x in blocks.items()}
    axes = {"image": 5, "volume": 6, "signal": 4, "vector": 3}
    if kind not in axes:
        raise UsageError(f"kind must be 'image', 'volume', 'signal' or 'vector', got {kind!r}")
    shapes = [x.shape for x in states.values()]
    if not shapes or any(len(s) != axes[kind] or s[0] != len(columns) or 0 in s for s in shapes):
        raise UsageError(
            f"each block must have shape (T, N, *event) with T = {len(columns)} (the number of columns), got {shapes}"
        )
    if kind in ("image", "volume"):
        return _image_strips(states, columns, low, high, note)
    if kind == "signal":
        return _signal_strips(states, columns, note)
    chosen = next(iter(states.values()))[-1] if coloured_by is None else np.asarray(plain(coloured_by))
    return _point_strips(states, columns, chosen, note)


def _blocks(
    width: float, titles: Sequence[str], heights: Sequence[float], note: str | None
) -> tuple[Figure, list[SubFigure]]:
    """Create a figure with a titled subfigure for each block, and with the note at the bottom.

    The ``heights`` are in inches and do not include titles and labels.
    """
    below = 0.0 if note is None else 0.25
    tall = [height + TITLE + (below if i == len(heights) - 1 else 0.0) for i, height in enumerate(heights)]
    figure = new_figure(width, sum(tall))
    parts = list(figure.subfigures(len(titles), 1, height_ratios=tall, squeeze=False)[:, 0])
    for part, title in zip(parts, titles, strict=True):
        part.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    if note is not None:
        parts[-1].supxlabel(note, fontsize=9, color=INK, x=0.01, ha="left")
    return figure, parts


def _image_strips(
    states: Mapping[str, Floats], columns: Sequence[str], low: float, high: float, note: str | None
) -> Figure:
    """Draw a sheet of pixels for each block, with a column for each time."""
    # Each row shows one image at all times.
    rows = [np.nan_to_num(x.swapaxes(0, 1).reshape(-1, *x.shape[2:])) for x in states.values()]
    sheets = [image_grid(x, len(columns), low, high) for x in rows]
    width = max(5.0, min(0.95 * len(columns), 13.0))
    figure, parts = _blocks(width, list(states), [width * s.shape[0] / s.shape[1] for s in sheets], note)
    for part, sheet in zip(parts, sheets, strict=True):
        ax = part.add_subplot()
        show_picture(ax, sheet)
        ax.spines[:].set_visible(False)
        pitch = (sheet.shape[1] - 1) / len(columns)
        ax.set_xticks([(k + 0.5) * pitch for k in range(len(columns))], list(columns), fontsize=8, color=INK)
        ax.tick_params(axis="x", top=False, labeltop=True, bottom=False, labelbottom=False, pad=1)
    return figure


def _panels(
    states: Mapping[str, Floats], columns: Sequence[str], size: float, note: str | None
) -> tuple[Figure, dict[str, list[Axes]]]:
    """Create a row of panels without ticks for each block."""
    figure, parts = _blocks(size * len(columns), list(states), [size] * len(states), note)
    rows = {}
    for title, part in zip(states, parts, strict=True):
        rows[title] = list(part.subplots(1, len(columns), squeeze=False, sharex=True, sharey=True)[0])
        for ax, label in zip(rows[title], columns, strict=True):
            tidy(ax)
            ax.spines[:].set_visible(True)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(label, fontsize=8, color=INK, pad=3)
    return figure, rows


def _point_strips(
    states: Mapping[str, Floats], columns: Sequence[str], coloured_by: Floats, note: str | None
) -> Figure:
    """Draw points with the same axes in all panels. A point has the same colour in each panel."""
    if any(x.shape[2] < 2 for x in states.values()):
        raise UsageError(
            "vectors must have at least 2 coordinates, got 1; plot a single coordinate as trajectories instead"
        )
    figure, rows = _panels(states, columns, 1.35, note)
    every = np.concatenate([x[..., :2].reshape(-1, 2) for x in states.values()])
    centre = np.median(every, axis=0)
    half = 1.15 * halves(2 * np.quantile(np.abs(every - centre), 0.995, axis=0))
    by = coloured_by[:, :2] - np.mean(coloured_by[:, :2], axis=0)
    colours = sectors(by / halves(np.ptp(by, axis=0)))
    size = 2 + 8 * min(1.0, 200 / len(colours))
    for title, x in states.items():
        for ax, points in zip(rows[title], x, strict=True):
            ax.scatter(points[:, 0], points[:, 1], s=size, c=colours, alpha=0.7, linewidths=0, rasterized=True)
            ax.set_xlim(centre[0] - half[0], centre[0] + half[0])
            ax.set_ylim(centre[1] - half[1], centre[1] + half[1])
            ax.set_box_aspect(1)
    return figure


def _signal_strips(states: Mapping[str, Floats], columns: Sequence[str], note: str | None) -> Figure:
    """Draw the first channel of signals, one below another, with the same axes throughout a block."""
    figure, rows = _panels(states, columns, 1.5, note)
    step = 1.1 * max(float(np.ptp(x[:, :, 0], axis=2).max()) for x in states.values()) + 1e-9
    for title, x in states.items():
        for ax, traces in zip(rows[title], x[:, :, 0], strict=True):
            for i, trace in enumerate(traces):
                ax.plot(trace - i * step, color=COLOURS[i % len(COLOURS)], linewidth=0.8)
    return figure
