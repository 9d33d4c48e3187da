"""Coordinates relative to a condition y, z = x - y, in which a drift to y is a scalar path.

A process that takes x_0 to y, such as the mean-reverting SDE and OUVE (Luo et al. 2023, arXiv:2301.11699; Richter et
al. 2022, arXiv:2208.05830), BBED (arXiv:2302.14748), I2SB (Liu et al. 2023, arXiv:2302.05872) and ResShift
(arXiv:2307.12348),

    x_t = y + alpha (x_0 - y) + sigma eps,                                                                     (1)

is exactly the path  z_t = alpha z_0 + sigma eps  of z = x - y. The shift has the log-determinant 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import UsageError
from .base import mask_of
from .space import Space

__all__ = ["Relative"]


@dataclass(frozen=True, eq=False, repr=False)
class Relative(Space):
    """The difference z = x - y from the image y of a row's condition, so that noise is drawn around y.

    y is what the network is shown, in model units: the picture of ``cond='image'``, or the measurement of an operator
    such as ``pool:2``. Values of y that are unknown (NaN) count as 0.
    """

    needs: ClassVar[tuple[str, ...]] = ("image",)
    masks: ClassVar[bool] = True
    rigid: ClassVar[bool] = True

    def require(self, condition: object) -> None:
        if getattr(condition, "image", None) is None:
            raise UsageError(
                "the space 'relative' needs y, the image of each row's condition; pass it, as in "
                "run.given(Condition(image=y))",
                parameter="given",
            )

    def _y(self, condition: object, m: Tensor) -> Tensor:
        self.require(condition)
        image: Tensor = condition.image  # type: ignore[attr-defined]
        if image.shape[1:] != m.shape[1:] or len(image) not in (1, len(m)):
            raise UsageError(
                f"the space 'relative' needs images y of the shape of the samples, {tuple(m.shape[1:])}, one for each "
                f"row or one for all, but {len(image)} of shape {tuple(image.shape[1:])} are given for {len(m)} rows",
                parameter="given",
            )
        image = image.to(m)
        return torch.where(image.isnan(), 0, image)

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        z, mask = x - self._y(condition, x), mask_of(condition, x)
        return z if mask is None else torch.where(mask, z, 0)  # padded numbers stay 0

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        return m + self._y(condition, m)

    def log_det(self, x: Tensor, condition: object = None) -> float:
        return 0.0
