"""Sheets of images, drawn pixel by pixel.

Images are in data units, with ``low`` drawn as black and ``high`` as white. A pixel value v becomes the byte

    round(255 clip((v - low) / (high - low), 0, 1)).

An RGBA image with colour c and opacity a, both in [0, 1], is composited on white, which gives a c + (1 - a). If the
channels are not colours, they are drawn as grey images side by side. Only the middle slice of a volume is drawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import UsageError
from ..core.files import atomic
from .base import Array, Floats, Pixels, finite, plain

__all__ = ["CHANNELS", "GAP", "image_grid", "save_image_grid", "save_images"]

GAP = 224  # Grey level between the images of a grid, visible next to both black and white.
SHEET = 600  # Minimum width of a saved grid, in pixels.
CHANNELS = 6  # the maximum number of channels to show side by side


def image_grid(x: Array, columns: int | None = None, low: float = -1.0, high: float = 1.0, pad: int = 1) -> Pixels:
    """Arrange images row by row on one sheet.

    Args:
        x: Images ``(N, C, H, W)`` in data units, or volumes ``(N, C, D, H, W)``, of which only slice ``D // 2`` is
            drawn. One channel is drawn as grey, three as RGB, and four as RGBA composited on white. With any other
            number of channels, the first six are drawn as grey images side by side, each scaled to the middle 99 % of
            the channel's values in ``x``.
        columns: Number of images per row. The default is ``ceil(sqrt(N))``. If channels are drawn side by side, the
            default makes the sheet roughly square in pixels.
        low: The value to draw as black, or as transparent in an alpha channel.
        high: The value to draw as white, or as opaque in an alpha channel.
        pad: Width of the grey lines between and around the images, in pixels.

    Returns:
        The sheet, uint8 ``(rows (H + pad) + pad, columns (W' + pad) + pad, 3)``, where ``W'`` is W, or
        ``C' (W + 1) + 1`` for C' channels side by side.

    Raises:
        UsageError: If ``x`` does not have the shape of images, a value is not finite, or an option is out of range.

    >>> image_grid(np.ones((6, 1, 8, 8))).shape
    (19, 28, 3)
    >>> image_grid(np.ones((6, 5, 8, 8)), columns=1).shape
    (55, 48, 3)
    """
    values = finite(x, "x", 5 if plain(x).ndim == 5 else 4)
    if 0 in values.shape:
        raise UsageError(
            f"images must have shape (N, C, H, W) and volumes (N, C, D, H, W), with no empty axis, got {values.shape}"
        )
    if values.ndim == 5:
        values = values[:, :, values.shape[2] // 2]
    n, channels, height, _ = values.shape
    if not high > low:
        raise UsageError(f"high must be greater than low, got low = {low} and high = {high}")
    if (columns is not None and columns < 1) or pad < 0:
        raise UsageError(f"columns must be at least 1 and pad at least 0, got columns = {columns} and pad = {pad}")

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


def save_images(
    folder: str | os.PathLike[str], x: Array, names: Sequence[str], low: float = -1.0, high: float = 1.0
) -> Path:
    """Write each image to a separate PNG file, without resizing.

    Args:
        folder: Folder to write to. It is created if needed.
        x: Images ``(N, C, H, W)`` in data units: grey, grey with alpha, RGB or RGBA.
        names: File names, one for each image.
        low, high: The values to draw as black and as white. With 0 and 255, bytes are written unchanged.

    Returns:
        The folder.
    """
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scaled = (np.asarray(x, dtype=np.float64) - low) * (255 / (high - low))
    pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    for name, image in zip(names, pixels.transpose(0, 2, 3, 1), strict=True):
        with atomic(folder / name) as temporary:
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG")
    return folder


def _side_by_side(values: Floats) -> Floats:
    """Draw the channels of images side by side in grey images ``(N, 1, H, C (W + 1) + 1)``."""
    n, channels, height, width = values.shape
    # Scale each channel separately.
    least, most = np.quantile(values, [0.005, 0.995], axis=(0, 2, 3), keepdims=True)
    flat = most <= least
    unit = np.clip((values - least) / np.where(flat, 1.0, most - least), 0.0, 1.0)
    unit = np.where(flat, 0.5, unit)
    # Draw a grey line to the left of each channel, and to the right of the last.
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
    """Arrange images on a sheet with :func:`image_grid`, and write the sheet to a PNG file.

    Args:
        path: File to write. Missing folders are created.
        x: Images ``(N, C, H, W)``, or volumes ``(N, C, D, H, W)``, in data units.
        low: The value to draw as black.
        high: The value to draw as white.
        columns: Number of images per row, or ``None`` for the default of :func:`image_grid`.
        magnify: Integer factor by which to enlarge the sheet. The default is the smallest factor that makes the sheet
            at least 600 pixels wide.
    """
    from PIL import Image

    sheet = image_grid(x, columns, low, high)
    factor = max(1, math.ceil(SHEET / sheet.shape[1])) if magnify is None else magnify
    if factor < 1:
        raise UsageError(f"magnify must be at least 1, got {magnify}")
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)  # nearest neighbour: pixels stay pixels
    with atomic(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
