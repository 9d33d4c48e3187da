"""Images on a sheet, pixel by pixel, and in a row.

Images are in data units, ``low`` black and ``high`` white; a pixel value v becomes the byte

    round(255 clip((v - low) / (high - low), 0, 1)),

and an RGBA image with colour c and opacity a is composited on white, a c + (1 - a).
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from ..core.files import atomic
from .base import Array, Pixels, finite

if TYPE_CHECKING:
    pass

__all__ = ["GAP", "image_grid", "save_image_grid"]

GAP = 224  # The grey between the images of a grid: visible beside black and beside white.
SHEET = 600  # A saved grid is at least this wide, in pixels.


def image_grid(x: Array, columns: int | None = None, low: float = -1.0, high: float = 1.0, pad: int = 1) -> Pixels:
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
    values = finite(x, "x", 4)
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
    with atomic(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
