"""Noise: the measurement is the sample plus Gaussian noise,  y = x + s z,  with z standard normal.

The measurement is affine in x, but random.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import POSITIVE, ranges
from ..core.noise import Noise
from .base import Operator

__all__ = ["AddedNoise"]


@dataclass(frozen=True, eq=False)
class AddedNoise(Operator):
    """Added Gaussian noise.

    Args:
        sigma: Standard deviation of the noise, in data units.
        z: Standard normal numbers, ``(B, *event)``, or ``None`` until they are drawn.
    """

    limits = ranges(sigma=POSITIVE)

    sigma: float = 1.0
    z: Tensor | None = field(default=None, repr=False)

    def drawn(self, noise: Noise, step: int = 0) -> Self:
        return replace(self, z=noise.normal(self._event, step, "condition"))

    def __call__(self, x: Tensor) -> Tensor:
        if self.z is None:
            raise UsageError("the noise has not been drawn; call operator.on(shape).drawn(noise) first")
        return x + self.sigma * self.z.to(x)

    def pinv(self, y: Tensor) -> Tensor:
        return y

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of a measurement, without the batch axis. It equals the shape of a sample."""
        return self._event

    @property
    def title(self) -> str:
        """A short description for figures."""
        return f"noise of {self.sigma:g}"
