"""Plots of SDE schedules against time and against the log-SNR.

The time variable of an SDE is a convention. Two SDEs with the same alpha and sigma as functions of the log-SNR differ
only in the time at which they reach each noise level. The top row shows the schedules as functions of time t, as each
SDE defines them. The bottom row compares the SDEs at equal noise levels. It shows alpha, sigma, and the distributions
of solver steps and training times over the log-SNR, which decreases from data on the left to noise on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .base import COLOURS, INK, Array, Floats, finite, literal, new_figure, plain, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Schedule", "schedules"]

LOG_SNR = "log-SNR  2 log(α/σ)"
WIDEST = (-14.0, 18.0)  # limits of the log-SNR axis, because the log-SNR is infinite where alpha or sigma is 0
RATES = (1e-2, 1e3)  # limits for drawing beta and g^2, which may be infinite at t = 1


@dataclass(frozen=True)
class Schedule:
    """The curves to draw for one SDE, as one-dimensional arrays.

    Attributes:
        name: Name for the legend.
        t: Times in ascending order, shape ``(T,)``.
        alpha, sigma, log_snr: The coefficients alpha and sigma and the log-SNR at the times ``t``, each of shape
            ``(T,)``.
        beta: The rate ``-2 d log alpha / dt``, shape ``(T,)``.
        g2: The squared diffusion coefficient ``g^2``, shape ``(T,)``. It equals ``beta`` for variance-preserving SDEs.
        nodes: The log-SNR at the S + 1 nodes of a solver's time grid, shape ``(S + 1,)``.
        training: The log-SNR at randomly drawn training times, shape ``(K,)``.
    """

    name: str
    t: Array
    alpha: Array
    sigma: Array
    log_snr: Array
    beta: Array
    g2: Array
    nodes: Array
    training: Array


def schedules(curves: Sequence[Schedule]) -> Figure:
    """Plot SDE schedules against time (top row) and against the log-SNR (bottom row).

    Lines get thinner from one SDE to the next, so that coinciding lines remain visible.

    Args:
        curves: The curves of one or more SDEs.
    """
    if not curves:
        raise UsageError("there is no schedule to draw; pass at least one Schedule")
    figure = new_figure(13.2, 6.0)
    (alpha, sigma, beta, clock), (scale, size, steps, training) = figure.subplots(2, 4)
    known = np.concatenate([_ends(curve) for curve in curves])
    most, least = min(known.max() + 0.5, WIDEST[1]), max(known.min() - 0.5, WIDEST[0])
    exploding = max(float(finite(c.sigma, "sigma", 1).max()) for c in curves) > 2
    for i, curve in enumerate(curves):
        t, a, s, levels = (finite(x, curve.name, 1) for x in (curve.t, curve.alpha, curve.sigma, _bounded(curve)))
        look = {
            "color": COLOURS[i % len(COLOURS)],
            "linewidth": max(3.6 - 0.6 * i, 1.2),
            "label": literal(curve.name),
        }
        alpha.plot(t, a, **look)
        sigma.plot(t, s, **look)
        clock.plot(t, levels, **look)
        scale.plot(levels, a, **look)
        size.plot(levels, s, **look)
        rate, noise = (np.asarray(plain(x), dtype=np.float64) for x in (curve.beta, curve.g2))
        beta.plot(t, _within(rate), **look)
        if not np.allclose(rate, noise, rtol=1e-3, equal_nan=True):
            beta.plot(t, _within(noise), **{**look, "linestyle": (0, (1, 1.2)), "linewidth": 1.6, "label": None})
        steps.plot(*_share(curve), **look)
        draws = np.clip(np.asarray(plain(curve.training), dtype=np.float64), least - 1, most + 1)
        edges = np.linspace(least, most, 73)
        heights = np.histogram(draws, edges)[0] / (len(draws) * (edges[1] - edges[0]))
        training.stairs(heights, edges, **{**look, "linewidth": max(2.6 - 0.4 * i, 1.2)})

    titles = {
        alpha: "α: what is left of the data", sigma: "σ: the noise", beta: "β = −2 d log α/dt  (g² dotted)",
        clock: LOG_SNR, scale: "α, over noise levels", size: "σ, over noise levels",
        steps: "steps of a solver, on the SDE's own grid", training: "noise levels of training",
    }  # fmt: skip
    for ax, title in titles.items():
        ax.set_title(title, fontsize=9.5, color=INK, loc="left")
        ax.grid(color="#e5e5e5", linewidth=0.6)
        ax.set_axisbelow(True)
        tidy(ax)
    for ax in (alpha, sigma, beta, clock):
        ax.set_xlabel("t", fontsize=9, color=INK)
        ax.set_xlim(0, 1)
    for ax in (scale, size, steps, training):
        ax.set_xlabel(f"{LOG_SNR}:  data  →  noise", fontsize=9, color=INK)
        ax.set_xlim(most, least)
    for ax in (sigma, size):
        if exploding:
            ax.set_yscale("log")
            ax.set_ylim(1e-3, None)
    clock.set_ylim(least, most)
    beta.set_yscale("log")
    for ax in (steps, training):
        ax.set_ylim(0, None)
        ax.set_ylabel("fraction per unit of log-SNR", fontsize=9, color=INK)
    handles, labels = alpha.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    return figure


def _bounded(curve: Schedule) -> Floats:
    """Return the log-SNR clipped to [-60, 60]."""
    return np.clip(np.asarray(plain(curve.log_snr), dtype=np.float64), -60, 60)  # it may be infinite


def _ends(curve: Schedule) -> Floats:
    levels = np.asarray(plain(curve.log_snr), dtype=np.float64)
    return levels[np.isfinite(levels)][[0, -1]]


def _within(rate: Floats) -> Floats:
    """Replace values outside the limits :data:`RATES` with NaN."""
    return np.where((rate >= RATES[0]) & (rate <= RATES[1]), rate, np.nan)


def _share(curve: Schedule) -> tuple[Floats, Floats]:
    """For each solver step, return the midpoint in log-SNR and the fraction of steps per unit of log-SNR there.

    Steps that start or end at an infinite log-SNR are left out.
    """
    nodes = np.asarray(plain(curve.nodes), dtype=np.float64)
    steps = len(nodes) - 1
    nodes = nodes[np.isfinite(nodes)]
    return (nodes[1:] + nodes[:-1]) / 2, 1 / (steps * np.abs(np.diff(nodes)))
