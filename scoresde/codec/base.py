"""The interface of codecs, which map between data units and model units (values of order one).

With  m = to_model(x),  the densities of x and m differ by the Jacobian determinant of the map,

    log p(x) = log p(m) + log_det(x),        log_det(x) = log |dm/dx|.                                        (1)

The dimension D of a row (:meth:`Codec.dims`) is the dimension of the space on which the density of the row is defined.
It may differ from the number of values stored for the row. Codecs can be composed: :class:`Composed` applies several
codecs in order, starting from the data, and adds their log-determinants.

A network takes and returns arrays with the shape of the data. If a codec changes the shape, for example by projecting
onto a subspace, ``show`` maps model units linearly to the shape of the data, and ``hide`` inverts ``show``.

A *space* (:mod:`scoresde.codec.space`) is a codec that follows the data's own codec, and in whose coordinates the path
is stated. If the rows of a space lie on a subspace, their densities are densities per surface measure, and a factor s
common to all numbers contributes  -D log s  with the dimension D of the surface.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import CheckpointError, ScoresdeError, UsageError
from ..core.registry import moved, name_of, options_of, resolve
from ..core.shapes import dims
from ..core.tables import CODECS

__all__ = ["Codec", "Composed", "Unbuilt", "digest", "from_dict", "mask_of", "summed", "to_dict", "undefined"]


def mask_of(condition: object, x: Tensor) -> Tensor | None:
    """Return the mask of the real values in ``x: (B, *event)``, bool ``(B or 1, *event)``, or ``None``."""
    mask: Tensor | None = getattr(condition, "mask", None)
    return None if mask is None else mask.to(x.device)


def summed(terms: Tensor, x: Tensor, condition: object) -> Tensor:
    """Sum ``terms``, which broadcast to ``x: (B, *event)``, over the real values of each row. Return ``(B,)``."""
    terms, mask = terms.to(x.device).expand(x.shape), mask_of(condition, x)
    return (terms if mask is None else torch.where(mask, terms, 0)).flatten(1).sum(1)


class Codec(ABC):
    """A map between data units and model units. To write a codec, subclass this class as a frozen dataclass.

    In all methods, ``condition`` contains the conditions of the rows. Most codecs ignore this argument.

    Attributes:
        is_space: Whether the codec is a space, in whose coordinates the path is stated.
        subspace: Whether the rows lie on a subspace, so that they have fewer dimensions than numbers.
    """

    is_space: ClassVar[bool] = False
    subspace: ClassVar[bool] = False

    @abstractmethod
    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        """Convert data ``(B, *event)`` to model units.

        Args:
            x: The data, in data units.
            condition: The conditions of the rows.
            noise: Uniform random numbers in [0, 1), with the same shape as ``x``, for stochastic codecs. Without noise,
                the result is deterministic.
        """

    @abstractmethod
    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        """Convert ``m: (B, *event)`` to data units.

        The result has the dtype of ``m``. It is computed in float64 or, on devices without float64 (MPS), in float32.
        """

    @abstractmethod
    def log_det(self, x: Tensor, condition: object = None) -> float | Tensor | None:
        """Return ``log |dm/dx|`` in nats, as one number for all rows or as ``(B,)``, or ``None`` if it is undefined."""

    def dims(self, x: Tensor, condition: object = None) -> int | Tensor:
        """Return the dimension D of each row of ``x: (B, *event)``: one number for all rows, or int64 ``(B,)``."""
        return dims(x)

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an event in model units, given its ``shape`` in data units."""
        return shape

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        """Convert ``m: (B, *event)`` to a network input with the shape of the data. The conversion is linear."""
        return m

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        """Convert a network output ``(B, *event)`` to model units. This is the inverse of :meth:`show`."""
        return x

    def support(self, condition: object = None, before: Tensor | None = None) -> Tensor | None:
        """Return which numbers of each row in model units are real, bool ``(B or 1, *event)``, or ``None`` if all are.

        ``before`` is the same for the units that the codec starts from.
        """
        return before

    def require(self, condition: object) -> None:  # noqa: B027  # most codecs need nothing
        """Check that ``condition`` has everything that the codec needs, and raise a :class:`UsageError` if not."""

    def check(self, x: Tensor, condition: object = None) -> None:  # noqa: B027  # most are defined everywhere
        """Raise a :class:`DataError` if rows ``x: (B, *event)`` are outside the set on which the codec is defined."""

    @property
    def log_factor(self) -> float | None:
        """The ``log`` of the factor by which the codec multiplies all numbers, or ``None`` if it does anything else."""
        return None

    @property
    def own(self) -> Codec:
        """The codec of the data: all parts that are not spaces."""
        return self

    @property
    def space(self) -> Composed:
        """The spaces in whose coordinates the path is stated, which follow :attr:`own`. Usually there are none."""
        return Composed()

    @property
    def units(self) -> Codec:
        """The map from continuous data to values of order one in the shape of the data, without levels and spaces."""
        return self.own.continuous

    def rows(self, index: Tensor) -> Codec:
        """Return the codec for the rows selected by ``index``, int64 ``(B',)``."""
        return self

    @property
    def levels(self) -> Codec | None:
        """The part of the codec that converts discrete levels to continuous values, or ``None`` if there is none."""
        return None

    @property
    def continuous(self) -> Codec:
        """The codec without :attr:`levels`, which maps continuous values to continuous values."""
        return self


@dataclass(frozen=True)
class Composed(Codec):
    """Several codecs, applied one after the other.

    Args:
        parts: The codecs. The first codec is applied to the data, and the last one returns model units. If there are no
            codecs, data units and model units are the same.
    """

    parts: tuple[Codec, ...] = ()

    def __post_init__(self) -> None:
        flat: list[Codec] = []
        for part in self.parts:
            flat += part.parts if isinstance(part, Composed) else [part]
        if any(part.levels is not None for part in flat[1:]):
            raise UsageError("the codec that converts discrete levels to continuous values must come first")
        object.__setattr__(self, "parts", tuple(flat))

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        for part in self.parts:
            x = part.to_model(x, condition, noise)
        return x

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        for part in reversed(self.parts):
            m = part.to_data(m, condition)
        mask = mask_of(condition, m) if any(part.is_space for part in self.parts) else None
        return m if mask is None else torch.where(mask, m, 0)

    def log_det(self, x: Tensor, condition: object = None) -> float | Tensor | None:
        total: float | Tensor = 0.0
        surface: Any = self.dims(x, condition) if any(part.subspace for part in self.parts) else None
        surface = surface.double() if isinstance(surface, Tensor) else surface
        for part in self.parts:
            factor = None if surface is None else part.log_factor
            found = part.log_det(x, condition) if factor is None or surface is None else factor * surface
            if found is None:
                return None
            total = total + found
            x = part.to_model(x, condition)
        return total

    def dims(self, x: Tensor, condition: object = None) -> int | Tensor:
        if not self.parts:
            return super().dims(x, condition)
        support = self.support(condition)
        if support is not None:
            return support.flatten(1).sum(1).to(x.device).expand(len(x))
        for part in self.parts[:-1]:
            x = part.to_model(x, condition)
        return self.parts[-1].dims(x, condition)

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in self.parts:
            shape = part.model_shape(shape)
        return shape

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        for part in reversed(self.parts):
            m = part.show(m, condition)
        return m

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        for part in self.parts:
            x = part.hide(x, condition)
        return x

    def support(self, condition: object = None, before: Tensor | None = None) -> Tensor | None:
        for part in self.parts:
            before = part.support(condition, before)
        return before

    def require(self, condition: object) -> None:
        for part in self.parts:
            part.require(condition)

    def check(self, x: Tensor, condition: object = None) -> None:
        for part in self.parts:
            part.check(x, condition)
            x = part.to_model(x, condition)

    def rows(self, index: Tensor) -> Composed:
        return Composed(tuple(part.rows(index) for part in self.parts))

    @property
    def levels(self) -> Codec | None:
        return self.parts[0].levels if self.parts else None

    @property
    def continuous(self) -> Codec:
        if self.levels is None:
            return self
        return _joined(self.parts[1:])

    @property
    def own(self) -> Codec:
        return _joined(tuple(part for part in self.parts if not part.is_space)) if self.space.parts else self

    @property
    def space(self) -> Composed:
        return Composed(tuple(part for part in self.parts if part.is_space))


def _joined(parts: tuple[Codec, ...]) -> Codec:
    return parts[0] if len(parts) == 1 else Composed(parts)


def undefined(codec: Codec, x: Tensor, condition: object = None) -> UsageError:
    """Return the error for data ``x`` whose codec has no log-determinant. The message names the part that has none."""
    part: object = codec
    for part in codec.parts if isinstance(codec, Composed) else ():
        if part.log_det(x, condition) is None:
            break
        x = part.to_model(x, condition)
    what = f"the space {part}" if getattr(part, "is_space", False) else f"the codec of the data, {part},"
    return UsageError(
        f"there is no likelihood, because {what} has no log-determinant; use a codec whose log_det is defined"
    )


@dataclass(frozen=True)
class Unbuilt(Codec):
    """A codec that a file names but that is not built in, until the user names its class again.

    Args:
        name: The name of the class, ``module:Class``.
        options: The options of the codec.
    """

    name: str
    options: Mapping[str, Any]

    is_space: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.name

    def missing(self) -> CheckpointError:
        """Return the error that asks for the class."""
        return CheckpointError(
            f"the run refers to the space {self.name!r}, which is not a built-in; for safety, names read from files "
            "are never imported, so pass the name again, or pass the object (space=)",
            parameter="space",
            value=self.name,
        )

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        raise self.missing()

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        raise self.missing()

    def log_det(self, x: Tensor, condition: object = None) -> float | Tensor | None:
        raise self.missing()


# ---------------------------------------------------------------------------------------------------------------- files


def to_dict(codec: Codec) -> list[dict[str, Any]]:
    """Return the name and the options of each part of a codec, as plain JSON values.

    Raises:
        UsageError: If a part is neither a built-in codec nor a space. No other codec can be loaded again.
    """
    if isinstance(codec, Composed):
        return [entry for part in codec.parts for entry in to_dict(part)]
    if isinstance(codec, Unbuilt):
        return [{"name": codec.name, "options": dict(codec.options)}]
    if name_of(codec, CODECS) not in CODECS and not codec.is_space:
        raise UsageError(
            f"{type(codec).__name__} is not a built-in codec, so a saved run that uses it could not be loaded again; "
            "train without a run folder (save=False)",
            parameter="save",
        )
    options = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in options_of(codec).items()}
    try:
        json.dumps(options)
    except (TypeError, ValueError):
        raise UsageError(
            f"the options of the space {name_of(codec, CODECS)} must be numbers, texts, lists or tensors, so that they "
            "can be saved with the run",
            parameter="space",
        ) from None
    return [{"name": name_of(codec, CODECS), "options": options}]


def from_dict(stored: Sequence[Mapping[str, Any]], *, unbuilt: bool = False) -> Codec:
    """Build a codec from the values that :func:`to_dict` returns.

    Args:
        stored: The values.
        unbuilt: Whether a codec that is not built in becomes :class:`Unbuilt`. No class is imported in either case.

    Raises:
        CheckpointError: If the values do not describe a codec.
    """
    try:
        parts: list[Codec] = [_part(moved(str(part["name"])), dict(part["options"]), unbuilt) for part in stored]
        return parts[0] if len(parts) == 1 else Composed(tuple(parts))
    except CheckpointError:
        raise
    except (ScoresdeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"the stored codec is malformed: {error}") from None


def _part(name: str, options: Mapping[str, Any], unbuilt: bool) -> Codec:
    if unbuilt and name not in CODECS and ":" in name:
        return Unbuilt(name, options)
    made: Codec = resolve(name, CODECS, "codec").from_options(options)
    return made


def digest(codec: Codec) -> str:
    """Return a digest of a codec, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(to_dict(codec), sort_keys=True).encode()).hexdigest()[:16]
