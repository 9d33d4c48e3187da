"""Plots of one-dimensional sample trajectories from noise to data, for the probability flow and the reverse SDE.

From a given starting noise, the flow follows a single trajectory, whereas the reverse SDE has infinitely many possible
trajectories. At every time, the states of the flow and of the reverse SDE have the same distribution (Song et al. 2021,
arXiv:2011.13456, sec. 4.3 and fig. 2). The shading behind the trajectories shows this distribution, estimated from the
samples. The histograms to the left and right show the distributions at the first and last times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import BLUE, COLOURS, GREY, INK, Array, Floats, finite, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["trajectories"]

BINS = 90


def trajectories(
    t: Array,
    paths: Mapping[str, Array],
    shown: int = 7,
    data: Array | None = None,
    label: str = "x",
) -> Figure:
    """Draw sets of trajectories side by side, with histograms of their first and last states.

    Args:
        t: Times ``(T,)`` of the states, from noise to data.
        paths: Sets of trajectories ``(T, N)``, keyed by panel title. Trajectory i starts from the same noise in every
            set.
        shown: Number of trajectories to draw as lines. Trajectory i has the same colour in each panel. The shading is
            estimated from all trajectories.
        data: Values of the data ``(M,)``, drawn as a grey histogram behind the histogram of the last states.
        label: Label of the vertical axis.

    Raises:
        UsageError: If the shapes do not match.
    """
    times = finite(t, "t", 1)
    found = {title: finite(x, title, 2) for title, x in paths.items()}
    if not found or any(len(x) != len(times) or x.shape[1] < 2 for x in found.values()):
        raise UsageError(
            f"each set of paths must have shape (T, N) with T = {len(times)} times and N at least 2, "
            f"got shapes {[x.shape for x in found.values()]}"
        )
    real = None if data is None else finite(data, "data", 1)
    every = np.concatenate([x.ravel() for x in found.values()])
    middle, half = np.median(every), 1.1 * np.quantile(np.abs(every - np.median(every)), 0.999)
    edges = np.linspace(middle - half, middle + half, BINS + 1)

    figure = new_figure(5.4 * len(found), 3.7)
    ratios = [0.5, 3.6, 0.8] * len(found)
    grid = figure.subplots(1, 3 * len(found), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for i, (title, x) in enumerate(found.items()):
        start, panel, end = grid[3 * i : 3 * i + 3]
        _law(panel, times, x, edges)
        # Colour the trajectories in the order of their starting points.
        order = np.argsort(x[0, : max(shown, 1)])
        for k, row in enumerate(order):
            panel.plot(times, x[:, row], color=COLOURS[k % len(COLOURS)], linewidth=1.1)
        panel.set_xlim(times[0], times[-1])
        panel.set_ylim(edges[0], edges[-1])
        panel.set_title(title, fontsize=10, color=INK, loc="left")
        panel.set_xlabel("t:  noise  →  data", fontsize=9, color=INK)
        _histogram(start, x[0], edges, None)
        start.invert_xaxis()
        start.set_ylabel(label if i == 0 else "", fontsize=9, color=INK)
        _histogram(end, x[-1], edges, real)
    for ax in grid:
        tidy(ax)
        ax.tick_params(axis="y", left=False, labelleft=False)
        ax.spines["left"].set_visible(False)
    grid[0].tick_params(axis="y", labelleft=True)
    for ax in (*grid[0::3], *grid[2::3]):
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
    if real is not None:
        handles, labels = grid[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def _law(ax: Axes, times: Floats, x: Floats, edges: Floats) -> None:
    """Shade the density of the states at each time."""
    density = np.stack([np.histogram(row, edges)[0] for row in x]).astype(np.float64)
    # Divide by the maximum at each time, so that a narrow density is as dark as a wide one.
    density = _smooth(density) / np.maximum(_smooth(density).max(axis=1, keepdims=True), 1e-300)
    middles = (edges[1:] + edges[:-1]) / 2
    ax.pcolormesh(times, middles, density.T, cmap="Greys", vmin=0, vmax=2.2, shading="gouraud", rasterized=True)


def _smooth(density: Floats) -> Floats:
    """Smooth histograms with a Gaussian, because each bin contains few samples."""
    reach = np.arange(-6, 7)
    kernel = np.exp(-(reach**2) / (2 * 2.0**2))
    return np.apply_along_axis(np.convolve, 1, density, kernel / kernel.sum(), "same")


def _histogram(ax: Axes, x: Floats, edges: Floats, real: Floats | None) -> None:
    """Draw a horizontal histogram of ``x``, over a grey histogram of ``real`` if given."""
    bins = edges[::2]
    if real is not None:
        ax.hist(real, bins=list(bins), density=True, orientation="horizontal", color=GREY, alpha=0.5, label="data")
    ax.hist(
        x, bins=list(bins), density=True, orientation="horizontal", histtype="step", color=BLUE, lw=1.2, label="samples"
    )
