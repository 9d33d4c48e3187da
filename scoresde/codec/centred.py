"""Points whose centre is fixed at 0, as coordinates of one point fewer.

Sets of points, such as the atoms of a molecule, are often described up to a shift. Rows with sum_i x_i = 0 lie on a
subspace of (n - 1) d dimensions, and noise on it is white noise whose mean is removed (Hoogeboom et al. 2022,
arXiv:2203.17003, sec. 3.1). The Helmert matrix is an orthonormal basis of this subspace,

    m_j = (x_1 + ... + x_j - j x_{j+1}) / sqrt(j (j + 1)),      j = 1, ..., n - 1,                              (1)

so white noise in m is this noise, and densities are densities per surface measure. For padded rows, each row has the
Helmert matrix of its own points, and (n_i - 1) d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import DataError, UsageError
from .affine import Affine
from .base import mask_of
from .space import Space, one_scale

__all__ = ["ZeroMean"]

OFF = 1e-4  # largest distance of the centre from 0, relative to the root mean square of the row


@dataclass(frozen=True, eq=False, repr=False)
class ZeroMean(Space):
    """Points whose centre is 0, as n - 1 points (the Helmert basis).

    Args:
        axis: The axis of a sample along which the points are counted: 0 for points ``(n, d)``, and 1 for ``(d, n)``.
    """

    masks: ClassVar[bool] = True
    rigid: ClassVar[bool] = True
    subspace: ClassVar[bool] = True
    levels_too: ClassVar[bool] = False

    axis: int = 0

    def affine(self, affine: Affine, values: Tensor) -> Affine:
        return one_scale(values)  # another shift or scale for each point would move the centre

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not 0 <= self.axis < len(shape) or len(shape) < 2:
            raise UsageError(
                f"the space 'zero-mean' needs samples of points, (n, d) or (d, n), but axis {self.axis} of samples of "
                f"shape {shape} cannot count the points; pass the axis, as in zero-mean:1",
                parameter="space",
            )
        if shape[self.axis] < 2:
            raise UsageError(
                f"the space 'zero-mean' needs at least two points, but axis {self.axis} of samples of shape {shape} "
                f"has {shape[self.axis]}; pass the axis of the points, as in zero-mean:{1 - min(self.axis, 1)}",
                parameter="space",
                value=f"zero-mean:{1 - min(self.axis, 1)}",
            )
        return (*shape[: self.axis], shape[self.axis] - 1, *shape[self.axis + 1 :])

    def _points(self, condition: object, x: Tensor) -> Tensor | None:
        """Return which points are real, bool ``(B or 1, n)``, or ``None`` if all are."""
        mask = mask_of(condition, x)
        return None if mask is None else mask.movedim(self.axis + 1, 1).flatten(2).any(2)

    @staticmethod
    def _order(points: Tensor, like: Tensor) -> Tensor:
        """Return the index that moves the real points of each row to the front, ``(B, n, ...)``."""
        order = (~points).long().argsort(dim=1, stable=True)
        return order.reshape(*order.shape, *[1] * (like.ndim - 2)).expand(len(like), -1, *like.shape[2:])

    @staticmethod
    def _steps(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return j and sqrt(j (j + 1)) for j = 1, 2, ..., for each entry of axis 1 of ``x``."""
        j = torch.arange(1, x.shape[1] + 1, dtype=torch.float64, device=x.device)
        j = j.reshape(-1, *[1] * (x.ndim - 2))
        return j.to(x), (j * (j + 1)).sqrt().to(x)

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        self.model_shape(tuple(x.shape[1:]))
        points, x = self._points(condition, x), x.movedim(self.axis + 1, 1)
        if points is not None:
            x = torch.gather(x, 1, self._order(points, x))
        j, length = self._steps(x[:, 1:])
        m = (x.cumsum(1)[:, :-1] - j * x[:, 1:]) / length
        if points is not None:
            m = torch.where(self._real(points, m), m, 0)
        return m.movedim(1, self.axis + 1)

    @staticmethod
    def _real(points: Tensor, m: Tensor) -> Tensor:
        """Return which coordinates of ``m: (B, n - 1, ...)`` are real."""
        real = torch.arange(m.shape[1], device=points.device) < points.sum(1, keepdim=True) - 1
        return real.reshape(len(points), -1, *[1] * (m.ndim - 2))

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        mask, m = mask_of(condition, m), m.movedim(self.axis + 1, 1)
        j, length = self._steps(m)
        a = m / length
        # The transpose of equation 1: point r gets the sum of a_j over j >= r, minus (r - 1) a_{r-1}.
        later = a.flip(1).cumsum(1).flip(1)
        nothing = torch.zeros_like(m[:, :1])
        x = torch.cat([later, nothing], 1) - torch.cat([nothing, j * a], 1)
        if mask is not None:
            points = mask.movedim(self.axis + 1, 1).flatten(2).any(2)
            x = torch.zeros_like(x).scatter(1, self._order(points, x), x)
            x = torch.where(points.reshape(*points.shape, *[1] * (x.ndim - 2)), x, 0)
        return x.movedim(1, self.axis + 1)

    def log_det(self, x: Tensor, condition: object = None) -> float:
        return 0.0

    def support(self, condition: object = None, before: Tensor | None = None) -> Tensor | None:
        if before is None:
            return None
        points = before.movedim(self.axis + 1, 1)
        real = self._real(points.flatten(2).any(2), points[:, 1:]).expand(-1, -1, *points.shape[2:])
        return real.movedim(1, self.axis + 1)

    def dims(self, x: Tensor, condition: object = None) -> int:
        return x[:1].numel() // x.shape[self.axis + 1] * (x.shape[self.axis + 1] - 1)

    def check(self, x: Tensor, condition: object = None) -> None:
        mask, x = mask_of(condition, x), x.double()
        points = x.movedim(self.axis + 1, 1)
        count: Tensor | int = points.shape[1]
        if mask is not None:
            real = mask.movedim(self.axis + 1, 1).flatten(2)
            if bool((real.any(2) != real.all(2)).any()):
                raise DataError("the mask must be the same for all coordinates of a point")
            count = real.any(2).sum(1)
            if bool((count < 2).any()):
                raise DataError(
                    f"row {int((count < 2).nonzero()[0])} has fewer than two real points, so there is nothing left "
                    "when the centre is fixed; remove such rows"
                )
            count = count[:, None]
            points = torch.where(mask.movedim(self.axis + 1, 1), points, 0)
        centre = points.flatten(2).sum(1) / count
        size = points.flatten(1).square().mean(1).sqrt()
        off = centre.abs().amax(1) > OFF * size
        if bool(off.any()):
            i = int(off.nonzero()[0])
            raise DataError(
                f"the space 'zero-mean' needs points whose centre is 0, but the centre of row {i} is "
                f"{float(centre[i].abs().max()):.3g} from it (in {int(off.sum()):,} of {len(x):,} rows the distance is "
                "too large); subtract the centre of each row, or name the axis of the points, as in zero-mean:1"
            )

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        return self.to_data(m, condition)

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        return self.to_model(x, condition)
