"""Code shared by all plots: colours, figures without pyplot, checks of arrays, and atomic file writes.

Each figure is created directly, with its own Agg canvas and without ``pyplot``. No global state changes, no display is
needed, and a figure is freed when its last reference is dropped. Files are written under a temporary name and then
renamed, so that a reader never sees a partial file.

The colours are those of Okabe and Ito, which remain distinct under common colour-vision deficiencies. Samples are
blue, reference data are grey, and anything that needs attention is vermilion.

References:
    Okabe and Ito (2008), Color universal design: how to make figures that are friendly to colorblind people.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ..core.errors import UsageError
from ..core.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = [
    "BLUE", "COLOURS", "GREEN", "GREY", "INK", "ORANGE", "PURPLE", "SKY", "VERMILION", "Array", "Floats", "Pixels",
    "atomic", "canvas", "column_names", "finite", "halves", "legend_above", "literal", "new_figure", "plain",
    "points_of", "save_figure", "set_title", "show_picture", "tidy", "window",
]  # fmt: skip

Array: TypeAlias = "npt.ArrayLike | Tensor"
Floats: TypeAlias = npt.NDArray[np.float64]
Pixels: TypeAlias = npt.NDArray[np.uint8]

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, INK = "#999999", "#333333"
UNLIKE = (20.0, 3.0)  # largest ratio of widths for which two coordinates share a scale: without names, with names
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)  # line colours, in order of use


# --- arrays -------------------------------------------------------------------------------------------------


def plain(x: Array) -> npt.NDArray[Any]:
    """Convert an array-like object to a NumPy array.

    A tensor may be on any device and may require gradients.
    """
    if hasattr(x, "detach"):
        tensor = cast("Tensor", x).detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(x)


def finite(x: Array, name: str, ndim: int) -> Floats:
    """Convert an array to float64, and check that it has ``ndim`` axes and only finite values."""
    values = np.asarray(plain(x), dtype=np.float64)
    if values.ndim != ndim:
        raise UsageError(f"{name} must be {ndim}-dimensional, got shape {values.shape}")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise UsageError(f"cannot draw {name}, because it has non-finite values ({bad:,} of {values.size:,})")
    return values


def points_of(x: Array, name: str) -> Floats:
    points = finite(x, name, 2)
    if len(points) == 0 or points.shape[1] != 2:
        raise UsageError(f"{name} must have shape (N, 2), with N at least 1, got {points.shape}")
    return points


def window(values: Floats) -> tuple[Floats, Floats]:
    """Return the lowest and the highest value to show in each column of ``values``, as two arrays ``(D,)``.

    The shape of ``values`` is ``(N, D)``. Outliers are ignored. Let R be the range of the middle 98 % of a column. A
    value in the column is an outlier if its distance from R exceeds the width of R, unless this width is 0.
    """
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    width = np.where(high > low, high - low, np.inf)
    inside = (values >= low - width) & (values <= high + width)
    return np.where(inside, values, np.inf).min(axis=0), np.where(inside, values, -np.inf).max(axis=0)


def halves(widths: Floats, names: Sequence[str] = ()) -> Floats:
    """Compute the half-widths ``(2,)`` of a plot window for two coordinates whose ranges have the given widths.

    Both coordinates get the same scale unless the ratio of the widths exceeds a limit. The limit is lower for
    coordinates with names, because these are columns of a table and may have different units.
    """
    most, least = float(widths.max()), float(widths.min())
    if least > 0 and most > (UNLIKE[1] if len(names) else UNLIKE[0]) * least:
        return widths / 2
    return np.full(2, max(most, 1e-9) / 2)


# --- words --------------------------------------------------------------------------------------------------


def literal(text: str, length: int = 200) -> str:
    """Escape text so that Matplotlib draws it literally, and shorten it to one line of about ``length`` characters.

    Without escaping, a dollar sign would start a formula, and a name that starts with an underscore would be omitted
    from legends.
    """
    line = " ".join(text.split())
    line = line if len(line) <= length else f"{line[: length - 3]}..."
    return (f" {line}" if line.startswith("_") else line).replace("$", r"\$")


def column_names(names: Sequence[str], count: int, length: int = 24) -> list[str]:
    """Return ``count`` column titles: ``names``, or x0, x1, ... if the number of names differs from ``count``."""
    return [literal(name, length) for name in names] if len(names) == count else [f"x{i}" for i in range(count)]


# --- figures ------------------------------------------------------------------------------------------------


def _import() -> None:
    """Import Matplotlib, even if ``MPLBACKEND`` names an unknown backend."""
    with _IMPORTING:
        _import_without_backend()


_IMPORTING = Lock()  # a failed import removes the modules for all threads


def _import_without_backend() -> None:
    try:
        import_module("matplotlib")
    except ValueError:
        # An unknown backend makes the import fail, although the figures of this package do not use it.
        asked = os.environ.pop("MPLBACKEND", None)
        if asked is None:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # modules imported before the failure
        try:
            import_module("matplotlib")
        finally:
            os.environ["MPLBACKEND"] = asked


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of the given size in inches, with its own canvas."""
    _import()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def canvas(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return the figure and axes to draw on: the given axes, or those of a new figure of the given size in inches."""
    if ax is None:
        figure = new_figure(width, height)
        ax = figure.add_subplot()
    else:
        figure = ax.figure.figure  # the whole figure, even if the axes are in a subfigure
    tidy(ax)
    return figure, ax


def tidy(ax: Axes) -> None:
    ax.tick_params(labelsize=8, colors=INK, width=0.6, length=3)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_offset_text().set(fontsize=8, color=INK)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.6)
        spine.set_color(GREY)


def set_title(ax: Axes, title: str | None) -> None:
    if title is not None:
        ax.set_title(title, fontsize=10, color=INK, loc="left")


def legend_above(ax: Axes, ncols: int) -> None:
    """Add a legend with opaque markers at the top right, above the axes."""
    legend = ax.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=ncols, fontsize=8, frameon=False,
        borderaxespad=0.2, handletextpad=0.4, columnspacing=1.2, markerscale=2,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def show_picture(ax: Axes, picture: npt.NDArray[Any]) -> None:
    """Show a picture without interpolation, in a thin frame."""
    white = 255 if picture.dtype == np.uint8 else 1
    ax.imshow(picture, interpolation="nearest", cmap="gray", vmin=0, vmax=white)  # RGB ignores cmap and limits
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.6)
        spine.set_color(GREY)


# --- files --------------------------------------------------------------------------------------------------


def save_figure(path: str | os.PathLike[str], fig: Figure, dpi: float = 120) -> None:
    """Write a figure in the format given by the suffix of ``path``, or as PNG if there is no suffix.

    Missing folders are created.
    """
    with atomic(path) as temporary:
        fig.savefig(temporary, dpi=dpi, format=Path(path).suffix.lstrip(".").lower() or "png")
