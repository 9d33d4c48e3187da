r"""SDEs whose alpha and sigma differ between the elements of an event (:attr:`scoresde.SDE.coords`).

:class:`Blur` destroys the fine detail of images before the coarse structure. In the basis of the discrete cosine
transform, blurring multiplies each coefficient by a number, so that blurring and adding noise is a path for each
coefficient (Rissanen et al. 2023; Hoogeboom and Salimans 2023). Train it with the space ``basis:dct``.

:class:`Parts` uses one path for the first elements of an event and another path for the rest, for example for positions
and features, or for two groups of columns of a table.

References:
    Rissanen, Heinonen and Solin (2023), Generative modelling with inverse heat dissipation, arXiv:2206.13397.
    Hoogeboom and Salimans (2023), Blurring diffusion models, arXiv:2209.05557.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from ..core.registry import build, name_of, options_of, parse_value
from ..core.tables import SDES
from .base import SDE

__all__ = ["Blur", "Parts", "Shaped"]

AUTO = "auto"


class Shaped(SDE):
    """Base class of SDEs that depend on the shape of an event.

    The field ``shape`` is the shape of an event in model units. If it is ``"auto"``, training replaces it with the
    shape of the data. Until then, the path cannot be evaluated.
    """

    shape: tuple[int, ...] | str

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of an event.

        Raises:
            UsageError: If ``shape`` is ``"auto"`` and has not been taken from the data yet.
        """
        if isinstance(self.shape, str):
            raise UsageError(
                f"{type(self).__name__}: shape is {self.shape!r}, but only training knows the shape of the data; set "
                "shape to the shape of an event, such as (1, 28, 28)",
                parameter="shape",
            )
        return self.shape

    def __post_init__(self) -> None:
        given: Any = self.shape
        if isinstance(given, str) and given != AUTO:  # as typed, such as "1,28,28"
            given = [int(n) if n.strip().isdigit() else 0 for n in given.split(",")]
        if not isinstance(given, str):
            sides = given if isinstance(given, Iterable) else (given,)
            object.__setattr__(self, "shape", tuple(int(n) for n in sides))
        super().__post_init__()

    def check(self) -> None:
        """Check the path if ``shape`` is known (see :meth:`SDE.check <scoresde.SDE.check>`)."""
        if self.shape == AUTO:
            return
        if not self.shape or min(self.event) < 1:
            raise UsageError(
                f"{type(self).__name__}: shape is {self.shape!r}; it must be the shape of an event, such as 1,28,28",
                parameter="shape",
            )
        super().check()


@dataclass(frozen=True)
class Blur(Shaped):
    """The blurring path: coefficient k of the discrete cosine transform has ``alpha_k = cos(pi t/2) d_k(t)``.

    The blur keeps the fraction ``d_k = (1 - least) exp(-w_k^2 b^2/2) + least`` of the coefficient, where w_k is its
    angular frequency, pi sqrt(i^2/H^2 + j^2/W^2) for an image of H x W pixels. The blur's standard deviation b grows as
    ``b(t) = width L sin(pi t/2)^2`` pixels, where L is the length of the longest side. All coefficients have the noise
    ``sigma = sin(pi t/2)`` (Hoogeboom and Salimans 2023, arXiv:2209.05557).

    Args:
        width: The standard deviation of the blur at t = 1, as a fraction of the longest side. The default is the
            published value, 20 of 32 pixels.
        least: The fraction of each coefficient that the blur keeps, however strong it is.
        shape: The shape of an event, ``(C, H, W)`` or ``(C, T)``; ``auto`` to take it from the data.
    """

    limits = ranges(width=Range(0, 1e6), least=Range(1e-12, 1))

    width: float = 0.625
    least: float = 0.001
    shape: tuple[int, ...] | str = AUTO

    default_grid = "uniform"
    stated_in = "basis:dct"

    @property
    def coords(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of one channel of the coefficients."""
        return () if self.shape == AUTO else (1, *self.event[1:])

    def _frequency(self, t: Tensor) -> Tensor:
        """Return the squared angular frequency of each coefficient, shape ``(1, *coords)``."""
        square = torch.zeros((1, *self.coords), dtype=t.dtype, device=t.device)
        for axis, n in enumerate(self.event[1:]):
            angles = torch.arange(n, dtype=t.dtype, device=t.device) * (math.pi / n)
            square = square + angles.square().reshape(
                1, 1, *(n if i == axis else 1 for i in range(len(self.event) - 1))
            )
        return square

    def alpha(self, t: Tensor) -> Tensor:
        blur = self.width * max(self.event[1:]) * torch.sin(t * (math.pi / 2)).square()
        kept = (1 - self.least) * torch.exp(-self._frequency(t) * blur.square() / 2) + self.least
        return torch.cos(t * (math.pi / 2)) * kept

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2)).expand(len(t), *self.coords)

    def check(self) -> None:
        """Check the shape, and then the path (see :meth:`SDE.check <scoresde.SDE.check>`)."""
        if isinstance(self.shape, tuple) and len(self.shape) not in (2, 3):
            raise UsageError(
                "Blur needs images (C, H, W) or signals (C, T), whose shape begins with the number of channels; got "
                f"the shape {self.shape}",
                parameter="shape",
            )
        super().check()


@dataclass(frozen=True)
class Parts(Shaped):
    """One path for the first ``split`` entries along the first axis of an event, and another path for the rest.

    Args:
        first, second: The two paths: the name of a built-in path, a name followed by values of its fields
            (``"ve,sigma_max=10"``), or an SDE.
        split: The number of entries along the first axis of an event (columns, or channels) that follow ``first``.
        shape: The shape of an event; ``auto`` to take it from the data.
    """

    limits = ranges(split=Range(1, 10**9))

    first: str | SDE = "vp"
    second: str | SDE = "ve"
    split: int = 1
    shape: tuple[int, ...] | str = AUTO

    def __post_init__(self) -> None:
        parts = []
        for name in ("first", "second"):
            given = getattr(self, name)
            made = given if isinstance(given, SDE) else _named(given)
            if isinstance(given, SDE) and name_of(given, SDES) in SDES:  # as it is stored
                usual = options_of(type(given)())
                changed = [f"{k}={v}" for k, v in options_of(given).items() if v != usual[k]]
                object.__setattr__(self, name, ",".join([name_of(given, SDES), *changed]))
            if made.coords or made.nodes is not None or isinstance(made, Shaped):
                raise UsageError(
                    f"Parts: {name} is {given!r}, but it must be a path in continuous time with one alpha and one "
                    "sigma, such as vp, ve or flow",
                    parameter=name,
                )
            parts.append(made)
        object.__setattr__(self, "_paths", tuple(parts))
        super().__post_init__()

    @property
    def paths(self) -> tuple[SDE, SDE]:
        """The two paths."""
        found: tuple[SDE, SDE] = self.__dict__["_paths"]
        return found

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """The later of the two paths' ``t_min``."""
        return max(path.t_min for path in self.paths)

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """The earlier of the two paths' ``t_max``."""
        return min(path.t_max for path in self.paths)

    @property
    def t_sample(self) -> float:  # type: ignore[override]
        """The later of the two times at which sampling stops."""
        return max(path.t_min if path.t_sample is None else path.t_sample for path in self.paths)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """Whether both paths are smooth."""
        return all(path.smooth for path in self.paths)

    @property
    def coords(self) -> tuple[int, ...]:  # type: ignore[override]
        """One number for each entry along the first axis of an event."""
        return () if self.shape == AUTO else (self.event[0], *[1] * (len(self.event) - 1))

    def check(self) -> None:
        """Check the split, and then the path (see :meth:`SDE.check <scoresde.SDE.check>`)."""
        if isinstance(self.shape, tuple) and self.shape and not self.split < self.shape[0]:
            raise UsageError(
                f"Parts: split is {self.split}, but an event has only {self.shape[0]} entries along its first axis; "
                "at least one must be left for the second path",
                parameter="split",
            )
        super().check()

    def _join(self, values: list[Tensor | float], t: Tensor) -> Tensor:
        n, rest = self.event[0], self.coords[1:]
        sizes = (self.split, n - self.split)
        parts = [self._tensor(v, t).expand(len(t), size, *rest) for v, size in zip(values, sizes, strict=True)]
        return torch.cat(parts, 1)

    def alpha(self, t: Tensor) -> Tensor:
        return self._join([path.alpha(t) for path in self.paths], t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._join([path.sigma(t) for path in self.paths], t)

    @property
    def prior_std(self) -> Tensor:
        # Each prior is scaled by the same factor as sigma, because the two paths may end at different times.
        shape, ends = (1, *[1] * len(self.coords)), torch.zeros(1)
        stds = []
        for path in self.paths:
            t = torch.tensor([self.t_max, path.t_max], dtype=torch.float64)
            ours, own = path.coefficients(t)[1]
            stds.append((path.prior_std * ours / own).reshape(shape))
        return self._join(stds, ends)

    @property
    def stated_in(self) -> str:  # type: ignore[override]
        """The space in which one of the two paths is stated."""
        return next((path.stated_in for path in self.paths if path.stated_in), "")


def _named(given: str) -> SDE:
    """Build a built-in SDE from its name, or from its name followed by values of fields, as in ``ve,sigma_max=10``."""
    name, *fields = given.split(",")
    options = {}
    for part in fields:
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(
                f"Parts: {part!r} is not a value of a field; after the name of a path, write field=value, such as "
                "ve,sigma_max=10"
            )
        options[key.strip()] = parse_value(value)
    made: SDE = build(name, SDES, "SDE", options)
    return made
