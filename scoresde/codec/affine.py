"""The codec  m = (x - shift) / scale,  whose log-determinant is  -sum(log(scale))."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError, UsageError
from ..core.shapes import time_dtype
from .base import Codec, mask_of, summed

__all__ = ["Affine", "as_affine"]


@dataclass(frozen=True, eq=False, init=False)
class Affine(Codec):
    """The affine map between data units and model units, ``model = (data - shift) / scale``.

    Args:
        shift: The shift in data units: a number, or an array that broadcasts to an event, for example with shape
            ``(D,)`` or ``(C, 1)``.
        scale: The scale in data units: a positive number, or an array of positive numbers that broadcasts to an event.

    Numbers and lists are converted to float64 tensors. Tensors should be float64 as well.

    >>> Affine(0.5, [1.0, 2.0]).to_model(torch.tensor([[1.5, 4.5]]))
    tensor([[1., 2.]])
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor | Sequence[Any] | float, scale: Tensor | Sequence[Any] | float) -> None:
        for name, value in (("shift", shift), ("scale", scale)):
            tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            object.__setattr__(self, name, tensor)
        if not (bool(torch.isfinite(self.shift).all()) and bool(torch.isfinite(self.scale).all())):
            raise DataError("the shift and the scale of an affine codec must be finite")
        if not bool((self.scale > 0).all()):
            raise DataError(f"the scale of an affine codec must be positive, got {self.scale.min().item():g}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Affine:
        """Build the codec from plain numbers and lists, as read from JSON."""
        if set(options) != {"shift", "scale"}:
            raise DataError(f"an affine codec must have exactly the options shift and scale, got {sorted(options)}")
        return cls(options["shift"], options["scale"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Affine):
            return NotImplemented
        return torch.equal(self.shift, other.shift) and torch.equal(self.scale, other.scale)

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        """Convert ``x: (B, *event)`` to model units.

        The result has the dtype of ``x``, or float32 if ``x`` contains integers.
        """
        dtype = x.dtype if x.is_floating_point() else time_dtype(x.device)
        m = (x.to(dtype) - self.shift.to(x.device, dtype)) / self.scale.to(x.device, dtype)
        return m if x.is_floating_point() else m.float()

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        wide = time_dtype(m.device)
        return (m.to(wide) * self.scale.to(m.device, wide) + self.shift.to(m.device, wide)).to(m.dtype)

    def log_det(self, x: Tensor, condition: object = None) -> float | Tensor:
        if mask_of(condition, x) is None:
            return -self.log_scale(x.shape[1:])
        return -summed(self.scale.log(), x, condition)

    @property
    def log_factor(self) -> float | None:
        return -float(self.scale.log()) if self.scale.numel() == 1 else None

    def log_scale(self, shape: Sequence[int]) -> float:
        """Return the sum of ``log(scale)`` over the elements of an event of shape ``shape``, in nats."""
        return float(torch.broadcast_to(self.scale, tuple(shape)).log().sum())


def as_affine(codec: Codec, what: str) -> Affine:
    """Return the affine map that a codec applies to continuous values.

    Args:
        codec: The codec.
        what: The feature that requires an affine map, as the subject of the error message.

    Raises:
        UsageError: If the codec is not affine on continuous values.
    """
    found = codec.continuous
    if codec.space.parts:
        raise UsageError(
            f"{what} requires a codec that only shifts and scales the data, but the path is stated in the space "
            f"{' + '.join(map(str, codec.space.parts))}; train without a space"
        )
    if not isinstance(found, Affine):
        raise UsageError(f"{what} requires a codec that only shifts and scales the data, but the codec is {found}")
    return found
