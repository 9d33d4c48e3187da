"""Images on a sheet, pixel by pixel, and in a row.

Images are in data units, ``low`` black and ``high`` white; a pixel value v becomes the byte

    round(255 clip((v - low) / (high - low), 0, 1)),

and an RGBA image with colour c and opacity a is composited on white, a c + (1 - a). Channels that are no colours are
grey pictures side by side. Of a volume the slice in the middle is shown.
"""

from __future__ import annotations

import math
import os

import numpy as np

from ..core.errors import UsageError
from ..core.files import atomic
from .base import Array, Floats, Pixels, finite, plain

__all__ = ["CHANNELS", "GAP", "image_grid", "save_image_grid"]

GAP = 224  # The grey between the images of a grid: visible beside black and beside white.
SHEET = 600  # A saved grid is at least this wide, in pixels.
CHANNELS = 6  # of an image that are shown side by side


def image_grid(x: Array, columns: int | None = None, low: float = -1.0, high: float = 1.0, pad: int = 1) -> Pixels:
    """Lay images out row by row on one sheet.

    Args:
        x: Images ``(N, C, H, W)`` in data units, or volumes ``(N, C, D, H, W)``, of which the slice ``D // 2`` is
            shown. C = 1 is grey, 3 is RGB, and 4 is RGBA, composited on white. Any other number of channels are grey
            pictures side by side, the first six of them, each on a scale of its own: the middle 99 % of its values
            here.
        columns: Images in a row; the smallest square that holds them all when ``None``, or, of channels side by side,
            about a square of pixels.
        low: The value that is black, or transparent.
        high: The value that is white, or opaque.
        pad: Grey pixels between and around the images.

    Returns:
        The sheet, uint8 ``(rows (H + pad) + pad, columns (W' + pad) + pad, 3)``, where ``W'`` is W, or
        ``C' (W + 1) + 1`` for C' channels side by side.

    Raises:
        UsageError: If the shape is not that of images, a value is not finite, or an option is out of range.

    >>> image_grid(np.ones((6, 1, 8, 8))).shape
    (19, 28, 3)
    >>> image_grid(np.ones((6, 5, 8, 8)), columns=1).shape
    (55, 48, 3)
    """
    values = finite(x, "x", 5 if plain(x).ndim == 5 else 4)
    if 0 in values.shape:
        raise UsageError(f"images have shape (N, C, H, W), volumes (N, C, D, H, W), none of them 0: got {values.shape}")
    if values.ndim == 5:
        values = values[:, :, values.shape[2] // 2]
    n, channels, height, _ = values.shape
    if not high > low:
        raise UsageError(f"high is above low: got low {low} and high {high}")
    if (columns is not None and columns < 1) or pad < 0:
        raise UsageError(f"columns is at least 1 and pad at least 0: got {columns} and {pad}")

    if channels in (1, 3, 4):
        colour = np.clip((values - low) / (high - low), 0.0, 1.0)
        if channels == 4:
            colour = colour[:, :3] * colour[:, 3:] + (1.0 - colour[:, 3:])
    else:
        colour = _side_by_side(values[:, :CHANNELS])
    colour = np.broadcast_to(colour, (n, 3, *colour.shape[2:]))
    pixels = np.rint(255.0 * colour).astype(np.uint8).transpose(0, 2, 3, 1)

    width = pixels.shape[2]
    if columns is None:
        wide = width / height if channels not in (1, 3, 4) else 1.0
        columns = max(1, math.ceil(math.sqrt(n / wide)))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, 3), GAP, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top = pad + (i // columns) * (height + pad)
        left = pad + (i % columns) * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _side_by_side(values: Floats) -> Floats:
    """Channels ``(N, C, H, W)`` as grey pictures in [0, 1] in a row, ``(N, 1, H, C (W + 1) + 1)``, each channel on its
    own scale and with a pixel at its sides, so that channels are nearer to each other than images are.
    """
    n, channels, height, width = values.shape
    least, most = np.quantile(values, [0.005, 0.995], axis=(0, 2, 3), keepdims=True)
    flat = most <= least
    unit = np.clip((values - least) / np.where(flat, 1.0, most - least), 0.0, 1.0)
    unit = np.where(flat, 0.5, unit)
    row = np.pad(unit.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=GAP / 255)
    row = row.reshape(n, 1, height, channels * (width + 1))
    return np.pad(row, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=GAP / 255)


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
        x: Images ``(N, C, H, W)``, or volumes ``(N, C, D, H, W)``, in data units.
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
    with atomic(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
