"""JPEG: a picture is compressed and decompressed, which adds block and ringing artefacts. JPEG is not linear in x."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from .base import Operator

__all__ = ["JPEG"]


@dataclass(frozen=True, eq=False)
class JPEG(Operator):
    """JPEG compression.

    The values are rounded to 256 levels from ``low`` to ``high``, and the pictures are compressed with Pillow.

    Args:
        quality: The JPEG quality, from 1 to 100.
        low, high: Lowest and highest value of the samples, in data units.
    """

    limits = ranges(quality=Range(1, 100))

    quality: int = 10
    low: float = field(default=0.0, repr=False)
    high: float = field(default=255.0, repr=False)

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        if len(event) != 3 or event[0] not in (1, 3):
            raise UsageError(
                f"jpeg needs pictures with 1 or 3 channels, but the samples have shape {tuple(event)}; use another "
                "operator",
                parameter="cond",
            )
        return replace(self, event=tuple(event), low=low, high=high)

    def __call__(self, x: Tensor) -> Tensor:
        from PIL import Image

        scale = 255 / (self.high - self.low)
        bytes_ = ((x.double() - self.low) * scale).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        found = np.empty_like(bytes_)
        for i, picture in enumerate(bytes_):
            file = io.BytesIO()
            colour = len(picture) == 3
            Image.fromarray(picture.transpose(1, 2, 0) if colour else picture[0]).save(
                file, "jpeg", quality=self.quality
            )
            read = np.asarray(Image.open(file))
            found[i] = read.transpose(2, 0, 1) if colour else read[None]
        return torch.from_numpy(found).to(x) / scale + self.low

    def pinv(self, y: Tensor) -> Tensor:
        return y

    @property
    def title(self) -> str:
        """A short description for figures."""
        return f"JPEG of quality {self.quality}"
