"""Pictures of samples, scores and training, from arrays.

Every function returns a :class:`matplotlib.figure.Figure` and shows nothing. Figures are built directly, each
with its own Agg canvas, so that ``pyplot`` is never imported, no global state changes, no display is needed
and a figure is freed when its last reference goes. A function that takes ``ax`` draws there instead and
returns that figure.

Images are in data units, ``low`` black and ``high`` white; a pixel value v becomes the byte

    round(255 clip((v - low) / (high - low), 0, 1)),

and an RGBA image with colour c and opacity a is composited on white, a c + (1 - a). Files are written under a
temporary name and then renamed, so that a reader never meets half a picture.

The colours are those of Okabe and Ito, which stay apart under the common colour-vision deficiencies: blue for
samples, grey for the reference, vermilion for what needs the eye.

References:
    Okabe and Ito (2008), Color universal design: how to make figures that are friendly to colorblind people.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from .errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = [
    "forward_strip",
    "image_grid",
    "loss_curve",
    "samples_figure",
    "save_figure",
    "save_image_grid",
    "scatter",
    "score_field",
    "signals",
    "vectors",
]

Array: TypeAlias = "npt.ArrayLike | Tensor"
Floats: TypeAlias = npt.NDArray[np.float64]
Pixels: TypeAlias = npt.NDArray[np.uint8]

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, INK = "#999999", "#333333"
GAP = 224  # The grey between the images of a grid: visible beside black and beside white.
SHEET = 600  # A saved grid is at least this wide, in pixels.


# --- images -------------------------------------------------------------------------------------------------


def image_grid(
    x: Array, columns: int | None = None, low: float = -1.0, high: float = 1.0, pad: int = 1
) -> Pixels:
    """Lay images out row by row on one sheet.

    Args:
        x: Images ``(N, C, H, W)`` in data units. C = 1 is grey; 2 is grey and opacity, of which the grey is
            shown; 3 is RGB; 4 is RGBA, composited on white.
        columns: Images in a row; the smallest square that holds them all when ``None``.
        low: The value that is black, or transparent.
        high: The value that is white, or opaque.
        pad: Grey pixels between and around the images.

    Returns:
        The sheet, uint8 ``(rows (H + pad) + pad, columns (W + pad) + pad, 3)``.

    Raises:
        UsageError: If the shape is not that of images, a value is not finite, or an option is out of range.

    >>> image_grid(np.ones((6, 1, 8, 8))).shape
    (19, 28, 3)
    """
    values = _array(x, "x", 4)
    n, channels, height, width = values.shape
    if n == 0 or height == 0 or width == 0 or not 1 <= channels <= 4:
        raise UsageError(f"images have shape (N, C, H, W) with C from 1 to 4: got {values.shape}")
    if not high > low:
        raise UsageError(f"high is above low: got low {low} and high {high}")
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    if columns < 1 or pad < 0:
        raise UsageError(f"columns is at least 1 and pad at least 0: got {columns} and {pad}")

    unit = np.clip((values - low) / (high - low), 0.0, 1.0)
    if channels == 4:
        colour = unit[:, :3] * unit[:, 3:] + (1.0 - unit[:, 3:])
    elif channels == 3:
        colour = unit
    else:
        colour = np.broadcast_to(unit[:, :1], (n, 3, height, width))
    pixels = np.rint(255.0 * colour).astype(np.uint8).transpose(0, 2, 3, 1)

    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, 3), GAP, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top = pad + (i // columns) * (height + pad)
        left = pad + (i % columns) * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet


def save_image_grid(
    path: str | os.PathLike[str],
    x: Array,
    low: float,
    high: float,
    columns: int | None = None,
    magnify: int | None = None,
) -> None:
    """Write :func:`image_grid` as a PNG file.

    Args:
        path: Where; missing folders are made.
        x: Images ``(N, C, H, W)`` in data units.
        low: The value that is black.
        high: The value that is white.
        columns: Images in a row; a square when ``None``.
        magnify: Every pixel becomes a square of this side; when ``None``, the smallest that makes the sheet
            at least 600 pixels wide.
    """
    from PIL import Image

    sheet = image_grid(x, columns, low, high)
    factor = max(1, math.ceil(SHEET / sheet.shape[1])) if magnify is None else magnify
    if factor < 1:
        raise UsageError(f"magnify is at least 1: got {magnify}")
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)  # nearest neighbour: pixels stay pixels
    with _atomic(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def forward_strip(images: Sequence[Array], labels: Sequence[str]) -> Figure:
    """A row of pictures, for example one image on its way to noise.

    Args:
        images: Each ``(H, W)`` grey or ``(H, W, 3)``, uint8 as :func:`image_grid` returns, or floats
            in [0, 1].
        labels: A line above each.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UsageError(f"one label for each of at least one image: got {len(images)} and {len(labels)}")
    pictures = [np.asarray(_plain(image)) for image in images]
    figure = _figure(1.5 * len(pictures), 1.75)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        ax = figure.add_subplot(1, len(pictures), i + 1)
        _picture(ax, picture)
        ax.set_title(label, fontsize=9, color=INK)
    return figure


# --- points, signals, vectors -------------------------------------------------------------------------------


def scatter(
    x: Array, reference: Array | None = None, ax: Axes | None = None, title: str | None = None
) -> Figure:
    """Points in the plane, over the reference in grey.

    Args:
        x: Points ``(N, 2)``.
        reference: What they should look like, ``(M, 2)``; both share the limits of their union.
        ax: Where to draw; a new figure when ``None``.
        title: A line above.
    """
    points = _points(x, "x")
    below = None if reference is None else _points(reference, "reference")
    figure, ax = _canvas(ax, 4.2, 4.2)
    if below is not None:
        _dots(ax, below, GREY, "reference")
    _dots(ax, points, BLUE, "samples")

    every = points if below is None else np.concatenate((points, below))
    least, most = every.min(axis=0), every.max(axis=0)
    centre = (least + most) / 2
    half = 0.54 * max(float((most - least).max()), 1e-9)  # a square window with a margin
    ax.set_xlim(centre[0] - half, centre[0] + half)
    ax.set_ylim(centre[1] - half, centre[1] + half)
    ax.set_aspect("equal")
    if below is not None:
        _legend(ax, ncols=2)
    _title(ax, title)
    return figure


def signals(x: Array, ax: Axes | None = None, title: str | None = None) -> Figure:
    """The first eight signals one above the other, a panel for each of the first six channels, each on its own scale.

    Args:
        x: Signals ``(N, C, L)``.
        ax: Where to draw the first channel alone; a new figure when ``None``.
        title: A line above.
    """
    values = _array(x, "x", 3)
    if 0 in values.shape:
        raise UsageError(f"signals have shape (N, C, L): got {values.shape}")
    shown = values[:8, :6]
    if ax is not None:
        figure, panels = _canvas(ax, 0, 0)[0], [ax]
    else:
        count = shown.shape[1]
        figure = _figure(max(5.6, 2.8 * count), 0.8 + 0.55 * len(shown))
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
        _tidy(panel)
        panel.spines["left"].set_visible(False)
    _title(panels[0], title)
    return figure


def vectors(x: Array, reference: Array | None = None) -> Figure:
    """Histograms of the first six coordinates, each over that of the reference in grey.

    Args:
        x: Vectors ``(N, D)``.
        reference: What they should look like, ``(M, D)``.
    """
    values = _array(x, "x", 2)
    below = None if reference is None else _array(reference, "reference", 2)
    if 0 in values.shape or (below is not None and (len(below) == 0 or below.shape[1] != values.shape[1])):
        shape = None if below is None else below.shape
        raise UsageError(f"vectors have shape (N, D), the reference (M, D): got {values.shape} and {shape}")
    count = min(values.shape[1], 6)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = _figure(max(2.3 * columns, 3.6), 1.7 * rows + 0.4)
    for d in range(count):
        ax = figure.add_subplot(rows, columns, d + 1)
        every = values[:, d] if below is None else np.concatenate((values[:, d], below[:, d]))
        least, most = float(every.min()), float(every.max())
        if least == most:
            least, most = least - 0.5, most + 0.5
        bins = np.linspace(least, most, int(np.clip(math.sqrt(len(values)), 10, 50)) + 1)
        if below is not None:
            ax.hist(below[:, d], bins=list(bins), density=True, color=GREY, alpha=0.45, label="reference")
        ax.hist(
            values[:, d], bins=list(bins), density=True, histtype="step", color=BLUE, lw=1.3, label="samples"
        )
        ax.set_yticks([])
        _tidy(ax)
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
        values = _array(x, "x", 2)
        return scatter(values, reference) if values.shape[1] == 2 else vectors(values, reference)
    if kind not in ("image", "signal"):
        raise UsageError(f"no picture for the kind {kind!r}: use 'image', 'signal' or 'vector'")
    panels = [("samples", x)] if reference is None else [("samples", x), ("reference", reference)]
    if kind == "image":
        sheets = [image_grid(_plain(images)[:64], None, low, high) for _, images in panels]
        aspect = max(sheet.shape[0] / sheet.shape[1] for sheet in sheets)
        figure = _figure(4.2 * len(sheets), min(4.2 * aspect, 12) + 0.3)
    else:
        figure = _figure(5.0 * len(panels), 0.9 + 0.55 * min(8, max(len(_plain(a)) for _, a in panels)))
    for i, (title, values_or_images) in enumerate(panels):
        ax = figure.add_subplot(1, len(panels), i + 1)
        if kind == "image":
            _picture(ax, sheets[i])
            _title(ax, title)
        else:
            signals(values_or_images, ax, title)
    return figure


# --- training and scores ------------------------------------------------------------------------------------


def loss_curve(steps: Array, losses: Array, ax: Axes | None = None) -> Figure:
    """The loss at each step in light, its running mean in dark.

    Args:
        steps: Step numbers ``(N,)``, ascending.
        losses: Losses ``(N,)``; one that is not finite leaves a gap. The axis is logarithmic when they are
            positive and span more than a decade.
        ax: Where to draw; a new figure when ``None``.
    """
    t = np.asarray(_plain(steps), dtype=np.float64)
    y = np.asarray(_plain(losses), dtype=np.float64)
    if t.ndim != 1 or t.shape != y.shape:
        raise UsageError(f"one loss for each step: got shapes {t.shape} and {y.shape}")
    y = np.where(np.isfinite(y), y, np.nan)
    known = y[~np.isnan(y)]
    figure, ax = _canvas(ax, 5.6, 3.2)
    ax.plot(t, y, color=SKY, linewidth=0.8, alpha=0.55, label="each record")
    ax.plot(t, _running_mean(y, max(3, len(y) // 40)), color=BLUE, linewidth=1.6, label="running mean")
    if len(known) and known.min() > 0 and known.max() > 10 * known.min():
        ax.set_yscale("log")
    ax.set_xlabel("step", fontsize=9, color=INK)
    ax.set_ylabel("loss", fontsize=9, color=INK)
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.margins(x=0.01)
    _legend(ax, ncols=2)
    return figure


def score_field(
    ax: Axes | None, x_grid: Array, y_grid: Array, u: Array, v: Array, density: Array | None
) -> Figure:
    """Arrows of a score over an image of the density it belongs to.

    A score grows without bound away from the data, so that arrows of true length would hide all others: an
    arrow points along (u, v) and its length is proportional to the fourth root of |(u, v)|.

    Args:
        ax: Where to draw; a new figure when ``None``.
        x_grid: Abscissas ``(X,)``, evenly spaced.
        y_grid: Ordinates ``(Y,)``, evenly spaced.
        u: First component of the score ``(Y, X)``.
        v: Second component ``(Y, X)``.
        density: Density ``(Y, X)``, or ``None`` for white.
    """
    xs, ys = _array(x_grid, "x_grid", 1), _array(y_grid, "y_grid", 1)
    us, vs = _array(u, "u", 2), _array(v, "v", 2)
    image = None if density is None else _array(density, "density", 2)
    shape = (len(ys), len(xs))
    seen = [a.shape for a in (us, vs, image) if a is not None]
    if min(shape) < 2 or any(s != shape for s in seen):
        raise UsageError(f"u, v and density have the shape (Y, X) = {shape}, at least (2, 2): got {seen}")
    figure, ax = _canvas(ax, 4.6, 4.6)
    half_x, half_y = (xs[-1] - xs[0]) / (len(xs) - 1) / 2, (ys[-1] - ys[0]) / (len(ys) - 1) / 2
    extent = (xs[0] - half_x, xs[-1] + half_x, ys[0] - half_y, ys[-1] + half_y)
    if image is not None:
        # The darkest third of the map is left out, so that dark arrows are read everywhere.
        peak = max(float(image.max()), 1e-300)
        ax.imshow(
            image, "Blues", vmin=0, vmax=1.6 * peak, origin="lower", extent=extent, interpolation="bilinear"
        )
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


# --- files --------------------------------------------------------------------------------------------------


def save_figure(path: str | os.PathLike[str], fig: Figure, dpi: float = 120) -> None:
    """Write a figure in the format that ``path`` ends in, PNG without one; missing folders are made."""
    with _atomic(path) as temporary:
        fig.savefig(temporary, dpi=dpi, format=Path(path).suffix.lstrip(".").lower() or "png")


@contextmanager
def _atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it on success and removed on failure."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# --- helpers ------------------------------------------------------------------------------------------------


def _plain(x: Array) -> npt.NDArray[Any]:
    """A NumPy array from anything array-like; a tensor may be on any device and carry a graph."""
    if hasattr(x, "detach"):
        tensor = cast("Tensor", x).detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(x)


def _array(x: Array, name: str, ndim: int) -> Floats:
    """Finite float64 values with ``ndim`` axes."""
    values = np.asarray(_plain(x), dtype=np.float64)
    if values.ndim != ndim:
        raise UsageError(f"{name} has {ndim} axes: got shape {values.shape}")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise UsageError(f"{name} has {bad:,} of {values.size:,} values that are not finite: nothing to draw")
    return values


def _points(x: Array, name: str) -> Floats:
    points = _array(x, name, 2)
    if len(points) == 0 or points.shape[1] != 2:
        raise UsageError(f"{name} are points of shape (N, 2): got {points.shape}")
    return points


def _running_mean(y: Floats, window: int) -> Floats:
    """Centred mean over ``window`` values, of those that exist: shorter at the ends, blind to NaN."""
    kernel = np.ones(window | 1)
    there = ~np.isnan(y)
    if len(y) == 0:
        return y
    half = window // 2
    total = np.convolve(np.where(there, y, 0.0), kernel)[half : half + len(y)]
    count = np.convolve(there.astype(np.float64), kernel)[half : half + len(y)]
    return np.where(there, total / np.maximum(count, 1.0), np.nan)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _canvas(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """The axes to draw on and the figure they are on: the caller's, or new ones."""
    if ax is None:
        figure = _figure(width, height)
        ax = figure.add_subplot()
    else:
        figure = ax.figure.figure  # a subfigure's figure is the whole
    _tidy(ax)
    return figure, ax


def _tidy(ax: Axes) -> None:
    ax.tick_params(labelsize=8, colors=INK, width=0.6, length=3)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.6)
        spine.set_color(GREY)


def _title(ax: Axes, title: str | None) -> None:
    if title is not None:
        ax.set_title(title, fontsize=10, color=INK, loc="left")


def _legend(ax: Axes, ncols: int) -> None:
    """A legend above the data, on the right, where it hides nothing; its keys are opaque."""
    legend = ax.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=ncols, fontsize=8, frameon=False,
        borderaxespad=0.2, handletextpad=0.4, columnspacing=1.2, markerscale=2,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _dots(ax: Axes, points: Floats, colour: str, label: str) -> None:
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


def _picture(ax: Axes, picture: npt.NDArray[Any]) -> None:
    """Pixels as they are, in a thin frame."""
    white = 255 if picture.dtype == np.uint8 else 1
    ax.imshow(picture, interpolation="nearest", cmap="gray", vmin=0, vmax=white)  # RGB ignores the last three
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.6)
        spine.set_color(GREY)
