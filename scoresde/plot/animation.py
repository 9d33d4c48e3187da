"""Animations of sampling, from noise to data, as GIF files.

The frames have shape ``(F, N, *event)`` and are in data units, as returned by :meth:`scoresde.run.run.Run.frames`. Each
frame is drawn like the still plots of :mod:`scoresde.plot`, with the same axes in all frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..core.errors import UsageError
from ..core.files import atomic
from .base import Array, Pixels, finite, halves, new_figure, plain, set_title, show_picture, tidy, window
from .images import image_grid
from .samples import scatter, signals, vectors
from .strips import sectors

__all__ = ["animate", "animate_pair", "save_gif"]


def animate(frames: Array, kind: str, low: float, high: float, names: Sequence[str] = ()) -> list[Pixels]:
    """Draw every frame of an animation.

    Args:
        frames: Frames of shape ``(F, N, *event)`` in data units, where the event is an image ``(C, H, W)``, a volume
            ``(C, D, H, W)``, a signal ``(C, L)`` or a vector ``(D,)``.
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        low, high: The image values to draw as black and as white.
        names: Names of the coordinates of vectors, or of the channels of signals.

    Returns:
        One picture per frame, each uint8 ``(height, width, 3)``. All pictures have the same size.
    """
    values = np.asarray(plain(frames), dtype=np.float64)
    if kind in ("image", "volume"):
        sheets = [image_grid(x[:64], None, low, high) for x in values]
        factor = max(1, 400 // sheets[0].shape[1])
        return [sheet.repeat(factor, axis=0).repeat(factor, axis=1) for sheet in sheets]
    if kind not in ("signal", "vector"):
        raise UsageError(f"kind must be 'image', 'volume', 'signal' or 'vector', got {kind!r}")
    pictures = []
    # The axes fit the last frame, with a margin. Noise that is wider than the data starts outside the axes.
    last = finite(values[-1], "frames", values.ndim - 1)
    if kind == "vector":
        least, most = window(last)
        margin = 0.25 * (most - least) + 1e-9
        last = np.stack([least - margin, most + margin])
    for x in values:
        if kind == "signal":
            figure = signals(x[:6], names=names, like=last[:6])
        elif x.shape[1] == 2:
            figure = scatter(x, names=names, like=last)
        else:
            figure = vectors(x, names=names, like=last)
        figure.set_dpi(80)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]
    return pictures


def animate_pair(
    left: Array, right: Array, titles: Sequence[tuple[str, str]], kind: str, low: float, high: float
) -> list[Pixels]:
    """Draw two animations side by side, frame by frame, with a title above each of them.

    Only the first channel of signals and the first two coordinates of vectors are drawn. The colour of a point shows
    its direction from the centre in the last frame of the left animation.

    Args:
        left, right: Frames of shape ``(F, N, *event)`` in data units, where the event is an image ``(C, H, W)``, a
            volume ``(C, D, H, W)``, a signal ``(C, L)`` or a vector ``(D,)``.
        titles: For each frame, the left and the right title.
        kind: ``"image"``, ``"volume"``, ``"signal"`` or ``"vector"``.
        low, high: The image values to draw as black and as white.

    Returns:
        One picture per frame, each uint8 ``(height, width, 3)``. All pictures have the same size.
    """
    pair = [np.nan_to_num(np.asarray(plain(x), dtype=np.float64)) for x in (left, right)]
    if pair[0].shape != pair[1].shape or len(pair[0]) != len(titles):
        raise UsageError(
            "both animations must have the same shape (F, N, *event), and titles must have length F, "
            f"got shapes {[x.shape for x in pair]} and len(titles) = {len(titles)}"
        )
    if kind not in ("image", "volume", "signal", "vector") or (kind == "vector" and pair[0].shape[2] < 2):
        raise UsageError(
            "kind must be 'image', 'volume', 'signal' or 'vector', and vectors must have at least 2 coordinates, "
            f"got {kind!r} with events of shape {pair[0].shape[2:]}"
        )
    flat = kind in ("image", "volume")
    if flat:
        sheet = image_grid(pair[0][0][:64], None, low, high)
        height = 3.2 * sheet.shape[0] / sheet.shape[1]
    else:
        height = 3.2
        last = pair[0][-1].reshape(len(pair[0][-1]), -1)[:, :2]
        least, most = window(last)
        centre, half = np.median(last, axis=0), 1.5 * halves(most - least)
        colours = sectors((last - centre) / half)
    pictures = []
    for k, names in enumerate(titles):
        figure = new_figure(6.6, height + 0.45)
        figure.set_layout_engine("constrained", h_pad=0.09)  # extra space above the titles, for letters with a hat
        for ax, x, name in zip(figure.subplots(1, 2), pair, names, strict=True):
            tidy(ax)
            if flat:
                show_picture(ax, image_grid(x[k][:64], None, low, high))
            elif kind == "signal":
                signals(x[k][:6], ax, like=pair[0][-1][:6])
            else:
                ax.scatter(x[k][:, 0], x[k][:, 1], s=5, c=colours, alpha=0.75, linewidths=0)
                ax.set(xlim=centre[0] + half[0] * np.array([-1, 1]), ylim=centre[1] + half[1] * np.array([-1, 1]))
                ax.set_box_aspect(1)
            set_title(ax, name)
        figure.set_dpi(80)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]
    return pictures


def save_gif(path: str | os.PathLike[str], pictures: Sequence[Pixels], seconds: float = 3.0, hold: float = 1.5) -> None:
    """Write pictures as a GIF that loops forever.

    Args:
        path: File to write. Missing folders are created.
        pictures: The frames, each uint8 ``(height, width, 3)``.
        seconds: Approximate total duration of all frames except the last, in seconds.
        hold: Duration of the last frame, in seconds.
    """
    from PIL import Image

    if len(pictures) < 2:
        raise UsageError(f"an animation needs at least 2 pictures, got {len(pictures)}")
    images = [Image.fromarray(p) for p in pictures]
    each = max(20, round(1000 * seconds / len(images)))
    durations = [each] * (len(images) - 1) + [round(1000 * hold)]
    with atomic(path) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
        )
