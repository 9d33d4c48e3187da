"""Plots of the answers of a conditional model to several questions.

A question is a condition, such as a low-resolution image, and its answers are samples drawn under this condition.
Images are laid out in a sheet with one row for each question. From left to right, a row shows the given image, the
first answers, the mean and the standard deviation of all answers, and the truth if it is known. Pixels that were not
given are tinted. The given image is enlarged to the size of the answers without interpolation, so that its pixels
remain visible.

Signals are drawn in one row of panels for each question, with one panel for each of the first three channels. Tables
are drawn in one panel for each column. If there is only one question, it has at least 30 answers, and no values are
given, the distribution of the answers is drawn instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.errors import UsageError
from .base import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    VERMILION,
    Array,
    Floats,
    Pixels,
    column_names,
    literal,
    new_figure,
    plain,
    set_title,
    show_picture,
    tidy,
)
from .images import GAP, image_grid
from .samples import scatter, vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ANSWERS", "QUESTIONS", "TINT", "answers_figure"]

QUESTIONS = {"image": 8, "volume": 8, "signal": 6, "vector": 60}  # the largest number of questions to show
ANSWERS = 8  # the largest number of answers to show for a question
COLUMNS = 12  # the largest number of columns of a table to show
MANY = 30  # the smallest number of answers to a single question to draw as a distribution
TINT = (196, 216, 236)  # colour of pixels that were not given
HEAT = "magma"  # colour map of the deviation


def answers_figure(
    answers: Array,
    kind: str,
    low: float = -1.0,
    high: float = 1.0,
    *,
    given: Array | None = None,
    truth: Array | None = None,
    labels: Sequence[str] = (),
    title: str = "",
    names: Sequence[str] = (),
    start: int = 0,
) -> Figure:
    """Draw the condition of each question, the answers, their mean and standard deviation, and the truth.

    Args:
        answers: Samples ``(Q, K, *event)`` in data units: K answers to each of Q questions. An answer that contains a
            non-finite value counts as missing and is left out of the mean and the standard deviation.
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        low, high: The image values to draw as black and as white.
        given: The condition of each question, ``(Q, *shape)`` in data units, with NaN for values that were not given.
            For vectors, ``*shape`` must equal ``*event``. For other kinds, ``*shape`` must have as many axes as
            ``*event``, but the sizes may differ.
        truth: The true samples, ``(Q, *event)``, with NaN for the questions whose truth is unknown.
        labels: A short text for each question.
        title: A description of the questions, such as "pooled by 2".
        names: Names of the columns of vectors, or of the channels of signals.
        start: The number of the first answer, if earlier ones were drawn before.

    Raises:
        UsageError: If the shapes do not match.
    """
    x = np.asarray(plain(answers), dtype=np.float64)
    if x.ndim < 3 or 0 in x.shape:
        raise UsageError(f"answers must have shape (Q, K, *event), with no empty axis, got {x.shape}")
    if kind not in QUESTIONS:
        raise UsageError(f"kind must be 'image', 'volume', 'signal' or 'vector', got {kind!r}")
    told, true = (None if v is None else np.asarray(plain(v), dtype=np.float64) for v in (given, truth))
    for name, value, shape in (("given", told, None), ("truth", true, x.shape[2:])):
        if value is not None and (len(value) != len(x) or shape not in (None, value.shape[1:])):
            raise UsageError(
                f"{name} has shape {value.shape}, but answers has shape {x.shape}; for answers of shape "
                f"(Q, K, *event), pass {name} of shape {'(Q, *event)' if shape else '(Q, *shape)'}"
            )
    if told is not None and (told.ndim != x.ndim - 1 or (kind == "vector" and told.shape[1:] != x.shape[2:])):
        raise UsageError(
            f"given has shape {told.shape}, but answers has shape {x.shape}; for answers of shape (Q, K, *event), "
            "given must have shape (Q, *event) if the samples are vectors, and as many axes as (Q, *event) otherwise"
        )
    texts = [literal(label, 32) for label in labels] if len(labels) == len(x) else [str(i) for i in range(len(x))]
    bad = np.isnan(np.where(np.isfinite(x), 0.0, np.nan).reshape(*x.shape[:2], -1).sum(axis=2))
    x[bad] = np.nan
    if kind in ("image", "volume"):
        return _pictures(x, low, high, told, true, texts if labels else [], title, start)
    if kind == "signal":
        return _signals(x, told, true, texts, title, names)
    if len(x) == 1 and (~bad).sum() >= MANY and (told is None or bool(np.isnan(told).all())):
        return _distribution(x[0][~bad[0]], true, texts[0] if labels else "", title, names)
    return _table(x, told, true, texts, title, names)


# ------------------------------------------------------------------------------------------------------------ moments


def _moments(x: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the standard deviation of the answers ``(Q, K, *event)`` to each question.

    Missing answers are ignored. The mean is NaN without answers, and the deviation is NaN for fewer than two.
    """
    there = np.isfinite(x)
    count = there.sum(1)
    with np.errstate(all="ignore"):
        mean = np.where(there, x, 0).sum(1) / count
        variance = np.where(there, (x - mean[:, None]) ** 2, 0).sum(1) / (count - 1)
    return np.where(count > 0, mean, np.nan), np.where(count > 1, np.sqrt(np.maximum(variance, 0)), np.nan)


def _shown(title: str, x: Array, shown: int, every: int, what: str) -> str:
    more = f"the first {shown} of {every:,} {what}" if shown < every else ""
    return literal(", ".join(filter(None, (title, more))), 120)


# ------------------------------------------------------------------------------------------------------------- images


def _pictures(
    x: Floats, low: float, high: float, given: Floats | None, truth: Floats | None, labels: Sequence[str], title: str,
    start: int,
) -> Figure:  # fmt: skip
    mean, deviation = _moments(x)
    rows, columns = min(len(x), QUESTIONS["image"]), min(x.shape[1], ANSWERS)
    several, channels = x.shape[1] > 1, x.shape[2]
    first = ", channel 0" if channels not in (1, 3, 4) else ""
    groups: list[tuple[list[str], Pixels]] = []

    def add(names: list[str], pictures: Floats) -> None:
        groups.append((names, np.stack([np.stack([_pixels(p, low, high) for p in row]) for row in pictures])))

    if given is not None:
        size = x.shape[-2:]
        add(["given"], np.stack([_enlarged(_slice(p), size) for p in given[:rows]])[:, None])
    flat = np.stack([[_slice(p) for p in row] for row in x[:rows, :columns]])
    add([f"answer {start + k}" for k in range(columns)] if several else ["answer"], flat)
    if several:
        add(["mean"], np.stack([_slice(p) for p in mean[:rows]])[:, None])
        spread, most = _heat(np.stack([_slice(p) for p in deviation[:rows]]))
        groups.append((["deviation"], spread[:, None]))
    if truth is not None:
        add(["truth"], np.stack([_slice(p) for p in truth[:rows]])[:, None])

    sheet, centres = _sheet([pixels for _, pixels in groups])
    ticks = [name for names, _ in groups for name in names]
    width = max(4.0, min(1.05 * len(ticks) + 0.8, 13.0))
    figure = new_figure(width, min(width * sheet.shape[0] / sheet.shape[1], 11.0) + 0.75)
    ax = figure.add_subplot()
    show_picture(ax, sheet)
    ax.spines[:].set_visible(False)
    ax.set_xticks(centres, ticks, fontsize=8, color=INK)
    ax.tick_params(axis="x", top=False, labeltop=True, bottom=False, labelbottom=False, pad=1)
    if labels:
        pitch = (sheet.shape[0] - 1) / rows
        ax.set_yticks([(r + 0.5) * pitch for r in range(rows)], list(labels[:rows]), fontsize=8, color=INK)
        ax.tick_params(axis="y", left=False, pad=3)
    figure.suptitle(_shown(title + first, x, rows, len(x), "questions"), fontsize=10, color=INK, x=0.01, ha="left")
    if several:
        note = f"mean and deviation of {x.shape[1]:,} answers; the largest deviation (brightest) is {most:.3g}"
        figure.supxlabel(note, fontsize=8, color=INK, x=0.01, ha="left")
    return figure


def _slice(picture: Floats) -> Floats:
    """Return the middle slice of a volume ``(C, D, H, W)``, or an image ``(C, H, W)`` unchanged."""
    return picture[:, picture.shape[1] // 2] if picture.ndim == 4 else picture


def _enlarged(picture: Floats, size: tuple[int, ...]) -> Floats:
    """Resize an image ``(C, h, w)`` by repeating or dropping pixels."""
    for axis, side in zip((1, 2), size, strict=True):
        index = ((np.arange(side) + 0.5) * picture.shape[axis] / side).astype(int)
        picture = np.take(picture, index, axis)
    return picture


def _pixels(picture: Floats, low: float, high: float) -> Pixels:
    """Convert an image ``(C, H, W)`` to RGB bytes ``(H, W, 3)``, and tint the pixels that contain NaN."""
    colours = picture if len(picture) in (1, 3, 4) else picture[:1]
    unknown = np.isnan(colours).any(0)
    drawn = image_grid(np.where(np.isnan(colours), low, colours)[None], 1, low, high, pad=0)
    drawn[unknown] = TINT
    return drawn


def _heat(deviation: Floats) -> tuple[Pixels, float]:
    """Convert standard deviations ``(R, C, H, W)`` to colours, and return the largest deviation as well."""
    from matplotlib import colormaps

    value = np.sqrt(np.square(deviation).mean(1))  # combine the channels
    most = float(np.nanmax(value)) if np.isfinite(value).any() else 0.0
    unit = np.nan_to_num(value) / (most or 1.0)
    drawn = np.rint(255 * colormaps[HEAT](unit)[..., :3]).astype(np.uint8)
    drawn[np.isnan(value)] = TINT
    return drawn, most


def _sheet(groups: Sequence[Pixels]) -> tuple[Pixels, list[float]]:
    """Arrange groups of pictures ``(R, K, H, W, 3)`` on a sheet, and return the centres of the columns as well."""
    rows, _, height, width = groups[0].shape[:4]
    wide = max(2, width // 6)
    total = sum(g.shape[1] * (width + 1) for g in groups) + wide * (len(groups) - 1) + 1
    sheet = np.full((rows * (height + 1) + 1, total, 3), 255, np.uint8)
    centres, left = [], 0
    for group in groups:
        sheet[:, left : left + group.shape[1] * (width + 1) + 1] = GAP
        for k in range(group.shape[1]):
            for r in range(rows):
                top = 1 + r * (height + 1)
                sheet[top : top + height, left + 1 : left + 1 + width] = group[r, k]
            centres.append(left + (width + 1) / 2)
            left += width + 1
        left += wide
    return sheet, centres


# ------------------------------------------------------------------------------------------------------------ signals


def _signals(
    x: Floats, given: Floats | None, truth: Floats | None, labels: Sequence[str], title: str, names: Sequence[str]
) -> Figure:
    """Draw a row of panels for each question, with one panel per channel (at most three)."""
    mean, _ = _moments(x)
    rows, channels = min(len(x), QUESTIONS["signal"]), min(x.shape[2], 3)
    figure = new_figure(max(6.0, 3.6 * channels), 1.35 * rows + 0.9)
    panels = figure.subplots(rows, channels, squeeze=False, sharex=True)
    columns = (
        column_names(names, x.shape[2], 32) if len(names) == x.shape[2] else [f"channel {c}" for c in range(channels)]
    )
    length = x.shape[-1]
    place = np.arange(length)
    for r in range(rows):
        for c in range(channels):
            ax: Axes = panels[r, c]
            tidy(ax)
            if truth is not None:
                ax.plot(place, truth[r, c], color=GREY, linewidth=2.4, label="truth")
            for k in range(min(x.shape[1], ANSWERS)):
                ax.plot(place, x[r, k, c], color=BLUE, linewidth=0.7, alpha=0.55, label="answers" if k == 0 else None)
            if x.shape[1] > 1:
                ax.plot(place, mean[r, c], color=INK, linewidth=1.1, label=f"mean of {x.shape[1]:,}")
            if given is not None and c < given.shape[1]:
                blocks = given.shape[2]
                centre = (np.arange(blocks) + 0.5) * length / blocks - 0.5
                ax.plot(centre, given[r, c], ".", color=VERMILION, markersize=4.5, label="given")
            if c == 0:
                label = f"question {r}" if labels[r] == str(r) else labels[r]
                ax.set_ylabel(label, fontsize=8, color=INK)
            if r == 0 and (channels > 1 or len(names) == x.shape[2]):
                set_title(ax, columns[c])
            if r == rows - 1:
                ax.set_xlabel("position", fontsize=9, color=INK)
            ax.set_xlim(-0.5, length - 0.5)
    _legend(figure, panels[0, 0])
    figure.suptitle(_shown(title, x, rows, len(x), "questions"), fontsize=10, color=INK, x=0.01, ha="left")
    return figure


# ------------------------------------------------------------------------------------------------------------- tables


def _table(
    x: Floats, given: Floats | None, truth: Floats | None, labels: Sequence[str], title: str, names: Sequence[str]
) -> Figure:
    """Draw a panel for each column of a table, with the questions from left to right."""
    mean, deviation = _moments(x)
    rows, count = min(len(x), QUESTIONS["vector"]), min(x.shape[2], COLUMNS)
    across = min(count, 2 if count <= 4 else 3)
    down = math.ceil(count / across)
    figure = new_figure(max(4.2 * across, 5.0), 1.5 * down + 0.9)
    panels = figure.subplots(down, across, squeeze=False, sharex=True)
    titles = column_names(names, x.shape[2], 40)
    place: npt.NDArray[Any] = np.arange(rows)
    shown = min(x.shape[1], ANSWERS)
    legend: dict[str, Any] = {}
    for d, ax in enumerate(panels.ravel()):
        if d >= count:
            ax.set_visible(False)
            continue
        tidy(ax)
        known = np.zeros(rows, bool) if given is None else np.isfinite(given[:rows, d])
        hidden = ~known
        if given is not None and known.any():
            legend["given"] = ax.plot(place[known], given[:rows, d][known], ".", color=GREY, markersize=5)[0]
        if hidden.any():
            if x.shape[1] > 1:
                spread = np.nan_to_num(deviation[:rows, d][hidden])
                legend["mean and deviation"] = ax.errorbar(
                    place[hidden], mean[:rows, d][hidden], spread, fmt="_", color=INK, markersize=7, linewidth=1.0
                )
            for k in range(shown):
                (line,) = ax.plot(place[hidden], x[:rows, k, d][hidden], ".", color=BLUE, markersize=4, alpha=0.6)
                legend["answers" if x.shape[1] > 1 else "answer"] = line
            if truth is not None and np.isfinite(truth[:rows, d][hidden]).any():
                (line,) = ax.plot(
                    place[hidden], truth[:rows, d][hidden], "o", color=ORANGE, fillstyle="none", markersize=6
                )
                legend["truth"] = line
        set_title(ax, titles[d])
        ax.set_xlim(-0.5, rows - 0.5)
        if rows <= 12 and max(map(len, labels)) <= 4:
            ax.set_xticks(place, list(labels[:rows]))
        else:
            ax.locator_params(axis="x", integer=True, nbins=6)
    for ax in panels[-1]:
        ax.set_xlabel("question", fontsize=9, color=INK)
    more = _shown(title, x, rows, len(x), "questions")
    more += f", the first {count} of {x.shape[2]:,} columns" if count < x.shape[2] else ""
    figure.suptitle(more, fontsize=10, color=INK, x=0.01, ha="left")
    if legend:
        figure.legend(
            list(legend.values()),
            list(legend),
            loc="outside lower center",
            ncols=len(legend),
            fontsize=8,
            frameon=False,
        )
    return figure


def _distribution(x: Floats, truth: Floats | None, label: str, title: str, names: Sequence[str]) -> Figure:
    """Draw the distribution of the answers ``(K, D)`` to one question, and mark the truth."""
    figure = scatter(x, names=names) if x.shape[1] == 2 else vectors(x, names=names)
    axes = figure.axes
    if truth is not None and bool(np.isfinite(truth).all()):
        for d, ax in enumerate(axes):
            ax.axvline(float(truth[0, d]), color=ORANGE, linewidth=1.4, label="truth")
        if x.shape[1] == 2:
            axes[0].axhline(float(truth[0, 1]), color=ORANGE, linewidth=1.4)
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=len(texts), fontsize=8, frameon=False)
    shown = literal(": ".join(filter(None, (title, label))), 100)
    figure.suptitle(
        f"{len(x):,} answer{'s' * (len(x) > 1)}{': ' * bool(shown)}{shown}", fontsize=10, color=INK, x=0.01, ha="left"
    )
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    handles, texts = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, texts, loc="outside lower center", ncols=len(texts), fontsize=8, frameon=False)
