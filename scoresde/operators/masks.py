"""Masks: some values are known, and the others are missing. In ``y = A x``, the missing values are 0.

A is a diagonal matrix of zeros and ones, so it is its own transpose and its own pseudo-inverse, and equation 2 of
:mod:`scoresde.operators.base` is a division. A mask may hide whole pixels (in all channels at once) or individual
values (such as cells of a table).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import FRACTION, WHOLE, ranges
from ..core.noise import Noise
from ..core.registry import closest
from .base import Linear, Number

__all__ = ["Cells", "Half", "Hole", "Mask", "Masking"]

HALVES = ("lower", "upper", "left", "right")


@dataclass(frozen=True, eq=False)
class Masking(Linear):
    """Base class of operators that hide some of the values. A subclass implements :meth:`known`."""

    @abstractmethod
    def known(self, event: tuple[int, ...]) -> Tensor:
        """Return a boolean mask that is true where values are known. Its shape broadcasts to ``(B, *event)``."""

    def hidden(self, event: tuple[int, ...]) -> Tensor:
        known = self.known(event)
        return ~known.expand(len(known), *event)

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of a measurement, without the batch axis. It equals the shape of a sample."""
        return self._event

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self._known(x), x, 0)

    def transpose(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, r: Tensor, a: Number, b: Number = 0.0) -> Tensor:
        known = self._known(r)
        matrix = torch.where(known, torch.as_tensor(a, dtype=r.dtype, device=r.device), 0) + b  # diagonal
        return torch.where(matrix > 0, r / matrix, 0)

    def pinv(self, y: Tensor) -> Tensor:
        return self(y)

    def shown(self, y: Tensor) -> Tensor:
        return torch.where(self._known(y), y, torch.nan)

    def _known(self, x: Tensor) -> Tensor:
        return self.known(tuple(x.shape[1:])).to(x.device)


@dataclass(frozen=True, eq=False)
class Mask(Masking):
    """A mask given as a tensor or read from a file.

    Args:
        mask: A boolean mask that is true where values are known. Its shape must broadcast to ``(B, *event)``. A mask
            without a batch axis applies to all samples, and a mask without a channel axis applies to all channels.
        file: The file that the mask was read from, if any.

    >>> Mask(torch.tensor([True, False]))(torch.ones(3, 2))[0]
    tensor([1., 0.])
    """

    mask: Tensor = field(repr=False)
    file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mask, Tensor) or self.mask.dtype != torch.bool:
            raise UsageError(
                "a mask must be a boolean tensor that is true where values are known, "
                f"got {getattr(self.mask, 'dtype', type(self.mask).__name__)}"
            )

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        mask = self.mask[None] if 0 < self.mask.ndim == len(event) - 1 else self.mask  # the same for all channels
        mask = mask if mask.ndim > len(event) else mask[None]
        if mask.ndim != len(event) + 1 or any(n not in (1, m) for n, m in zip(mask.shape[1:], event, strict=True)):
            found, needed = f"shape {tuple(self.mask.shape)}", f"shape {tuple(event)}"
            if len(event) == 3 and self.mask.ndim in (3, 4) and self.mask.shape[-3] in (1, event[0]):
                found, needed = (f"{shape[-1]} x {shape[-2]} pixels" for shape in (self.mask.shape, event))
            raise UsageError(
                f"the mask has {found}, but the samples have {needed}; use a mask of the same size", parameter="mask"
            )
        return replace(self, mask=mask, event=tuple(event))

    def known(self, event: tuple[int, ...]) -> Tensor:
        return self.mask if self.mask.ndim > len(event) else self.mask[None]

    @property
    def title(self) -> str:
        """A short description for figures."""
        return f"masked by {self.file}" if self.file else "masked"


@dataclass(frozen=True, eq=False)
class Hole(Masking):
    """A mask that hides the centre of a picture, signal or volume.

    Args:
        size: Side of the hole in pixels; 0 means about 3/7 of each side of the sample.
    """

    limits = ranges(size=WHOLE)

    size: int = 0

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        if self.size >= min(self._space(event)):
            raise UsageError(
                f"hole:{self.size} needs sides longer than {self.size} px, but the samples have shape "
                f"{tuple(event)}; use a smaller hole",
                parameter="cond",
            )
        return super().on(event)

    def known(self, event: tuple[int, ...]) -> Tensor:
        space = self._space(event)
        missing = torch.ones((), dtype=torch.bool)
        for axis, side in enumerate(space):
            hole = self.size or max(1, round(3 * side / 7))
            hole += (side - hole) % 2 if not self.size else 0  # so that the hole is in the centre
            first = (side - hole) // 2
            inside = (torch.arange(side) >= first) & (torch.arange(side) < first + hole)
            missing = missing & inside.reshape(-1, *[1] * (len(space) - axis - 1))
        return ~missing[None, None]

    @property
    def title(self) -> str:
        """A short description for figures."""
        return "hole" if not self.size else f"hole of {self.size} pixel{'s' * (self.size > 1)}"


@dataclass(frozen=True, eq=False)
class Half(Masking):
    """A mask that hides one half of a picture, signal or volume.

    Args:
        which: The missing half: ``lower``, ``upper``, ``left`` or ``right``. In a signal, ``left`` and ``upper``
            mean the first half, and ``right`` and ``lower`` the second half.
    """

    which: str = "lower"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.which not in HALVES:
            raise UsageError(f"unknown half {self.which!r}; {closest(self.which, HALVES)}", parameter="cond")

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        self._space(event)
        return super().on(event)

    def known(self, event: tuple[int, ...]) -> Tensor:
        space = self._space(event)
        across = self.which in ("left", "right") or len(space) == 1
        axis = len(space) - 1 if across else len(space) - 2
        side = space[axis]
        # If the size is odd, the middle row or column is known.
        index = torch.arange(side)
        early = self.which in ("upper", "left")
        known = index >= side // 2 if early else index < side - side // 2
        return known.reshape(1, 1, *(side if i == axis else 1 for i in range(len(space))))

    @property
    def title(self) -> str:
        """A short description for figures."""
        return f"{self.which} half missing"


@dataclass(frozen=True, eq=False)
class Cells(Masking):
    """A mask that hides values at random: cells of a table, values of a signal, or pixels of a picture.

    Args:
        share: Probability that a value is missing. If ``share`` is 0, a separate probability is drawn for each row,
            uniformly between 0 and 1, so that any fraction of the values may be missing.
        mask: A boolean mask that is true where values are known, or ``None`` until the mask is drawn. The shape of the
            mask broadcasts to ``(B, *event)``.
    """

    limits = ranges(share=FRACTION)

    share: float = 0.0
    mask: Tensor | None = field(default=None, repr=False)

    def drawn(self, noise: Noise, step: int = 0) -> Self:
        event = self._event
        # The pixels of a picture or a volume are missing in all channels at once.
        shape = event if len(event) < 3 else (1, *event[1:])
        u = noise.uniform((1 + torch.Size(shape).numel(),), step, "condition")
        share = u[:, :1] if self.share == 0 else torch.full_like(u[:, :1], self.share)
        return replace(self, mask=(u[:, 1:] >= share).reshape(-1, *shape))

    def known(self, event: tuple[int, ...]) -> Tensor:
        if self.mask is None:
            raise UsageError("the missing cells have not been drawn; call operator.on(shape).drawn(noise) first")
        return self.mask

    @property
    def title(self) -> str:
        """A short description for figures."""
        return "cells missing"
