"""The compass plot, which compares the learned score with the exact score at each noise level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import BLUE, GREY, INK, VERMILION, Array, finite, literal, new_figure, plain, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compass"]


def compass(log_snr: Array, cosine: Array, error: Array, title: str | None = None, note: str | None = None) -> Figure:
    """Plot how closely a learned score matches the exact score at each noise level, as a cosine and a relative error.

    Args:
        log_snr: Log-SNRs of the noise levels, ``(L,)``.
        cosine: Cosine of the angle between the two scores, ``(L, 3)``: the 10 % quantile over samples, the mean, and
            the 90 % quantile.
        error: Relative error ``|learned - exact| / |exact|``, ``(L, 3)``: the 10 % quantile over samples, the root mean
            square ``sqrt(mean |learned - exact|^2 / mean |exact|^2)``, and the 90 % quantile.
        title: Title above the figure.
        note: Line of text below the figure.
    """
    levels = finite(log_snr, "log_snr", 1)
    bands = {"cosine of the angle to the exact score": (finite(cosine, "cosine", 2), BLUE, "mean", "lower right")}
    bands["relative error"] = (finite(error, "error", 2), VERMILION, "root mean square", "lower left")
    if any(band.shape != (len(levels), 3) for band, *_ in bands.values()) or len(levels) < 2:
        raise UsageError(
            "cosine and error must have shape (L, 3), where L is the length of log_snr and must be at least 2, "
            f"got L = {len(levels)} and shapes {[band.shape for band, *_ in bands.values()]}"
        )
    figure = new_figure(8.6, 3.7)
    panels = figure.subplots(1, 2)
    for ax, (name, (band, colour, middle, corner)) in zip(panels, bands.items(), strict=True):
        ax.plot(levels, band[:, 1], color=colour, linewidth=1.6, label=middle)
        ax.fill_between(
            levels, band[:, 0], band[:, 2], color=colour, alpha=0.18, linewidth=0, label="10 % to 90 % of the samples"
        )
        ax.legend(loc=corner, fontsize=8, frameon=False)
        ax.set_xlim(levels.max(), levels.min())
        ax.set_xlabel("log-SNR  2 log(α/σ):  data  →  noise", fontsize=9, color=INK)
        ax.set_title(name, fontsize=10, color=INK, loc="left")
        ax.grid(color="#e5e5e5", linewidth=0.6)
        ax.set_axisbelow(True)
        tidy(ax)
    panels[0].set_ylim(min(0.0, 1.1 * float(np.asarray(plain(cosine)).min())), 1.03)
    panels[0].axhline(1, color=GREY, linewidth=0.8)
    panels[1].set_yscale("log")
    panels[1].axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    panels[1].annotate(
        "a score of zero", (0.99, 1), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", fontsize=8, color=INK,
    )  # fmt: skip
    if title is not None:
        figure.suptitle(literal(title), fontsize=10, color=INK, x=0.01, ha="left")
    if note is not None:
        figure.supxlabel(literal(note, 500), fontsize=8.5, color=INK, x=0.01, ha="left")
    return figure
