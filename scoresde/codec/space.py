"""Spaces: codecs in whose coordinates a path is stated.

A space follows the data's own codec (levels and an affine map). In its coordinates m, the path is a scalar Gaussian
path ``alpha m_0 + sigma eps``, with white noise, so every solver, loss and likelihood works on it without change. In
the data, the same path can drift to a condition, or have correlated noise, a fixed centre or padded rows.

To write a space, subclass :class:`Space` as a frozen dataclass of plain options, and implement ``to_model``,
``to_data`` and ``log_det``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.registry import name_of, options_of
from ..core.tables import CODECS
from .affine import Affine
from .base import Codec

__all__ = ["Space", "matrix_times", "one_scale", "real_values"]


class Space(Codec):
    """A codec in whose coordinates a path is stated. It follows the data's own codec.

    Attributes:
        needs: What the space needs of a row's condition: ``"image"`` or ``"mask"``.
        masks: Whether the space can be combined with padded rows, so that it never mixes real and padded numbers.
        levels_too: Whether the space accepts data that are stored as levels.
        rigid: Whether the space keeps distances, so that it can come before a space of fewer dimensions.
    """

    is_space: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    masks: ClassVar[bool] = False
    levels_too: ClassVar[bool] = True
    rigid: ClassVar[bool] = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Build the space from plain numbers, texts and lists, as read from JSON."""
        return cls(**options)

    def fitted(self, m: Tensor, condition: object = None) -> Self:
        """Return the space with the options that are computed from training rows.

        Args:
            m: Training rows in the units that the space starts from, ``(n, *event)``.
            condition: The conditions of these rows.
        """
        return self

    def affine(self, affine: Affine, values: Tensor) -> Affine:
        """Return the affine map that precedes the space: ``affine``, the map of the data, or another one.

        Args:
            affine: The shift and scale of the data.
            values: The real values of training rows, in data units, ``(n,)``.
        """
        return affine

    def __str__(self) -> str:
        return name_of(self, CODECS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={_short(v)}' for k, v in options_of(self).items())})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return repr(self) == repr(other)  # tensors are represented by digests

    __hash__ = None  # type: ignore[assignment]


def _short(value: object) -> str:
    """Describe an option. The digest of a tensor is 16 hexadecimal digits."""
    if not isinstance(value, Tensor):
        return repr(value)
    found = hashlib.sha256(value.double().contiguous().numpy().tobytes()).hexdigest()[:16]
    return f"<{' x '.join(map(str, value.shape)) or 'number'}, {found}>"


def one_scale(values: Tensor) -> Affine:
    """Return the affine map that only divides by the root mean square of ``values: (n,)``."""
    scale = values.double().square().mean().sqrt() if len(values) else torch.ones(()).double()
    return Affine(0.0, torch.where(scale > 0, scale, 1.0))


def real_values(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the real values in ``x: (B, *event)``, as a tensor of one axis."""
    return x.flatten() if mask is None else x[mask.expand(x.shape)]


def matrix_times(matrix: Tensor, x: Tensor, axes: int) -> Tensor:
    """Multiply the last axis of ``x``, or its last two axes as one vector, by ``matrix: (k, k)``."""
    flat = x.flatten(-2) if axes == 2 else x
    return (flat @ matrix.to(x).T).reshape(x.shape)


def check_axes(space: str, axes: int, event: tuple[int, ...]) -> None:
    """Reject a number of axes that is not 1 or 2, or larger than that of the event."""
    if axes not in (1, 2) or axes > len(event):
        raise UsageError(
            f"the space {space} works on the last axes of a sample, with axes = 1 or 2, but axes is {axes} for samples "
            f"of shape {event}",
            parameter="space",
        )
