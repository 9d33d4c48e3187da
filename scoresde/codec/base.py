"""The interface of codecs, which map between data units and model units (values of order one).

With  m = to_model(x),  the densities of x and m differ by the Jacobian determinant of the map,

    log p(x) = log p(m) + log_det(x),        log_det(x) = log |dm/dx|.                                        (1)

The dimension D of a row (:meth:`Codec.dims`) is the dimension of the space on which the density of the row is defined.
It may differ from the number of values stored for the row. Codecs can be composed: :class:`Composed` applies several
codecs in order, starting from the data, and adds their log-determinants.

A network takes and returns arrays with the shape of the data. If a codec changes the shape, for example by projecting
onto a subspace, ``show`` maps model units linearly to the shape of the data, and ``hide`` inverts ``show``.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.errors import CheckpointError, ScoresdeError, UsageError
from ..core.registry import name_of, options_of, resolve
from ..core.shapes import dims
from ..core.tables import CODECS

__all__ = ["Codec", "Composed", "digest", "from_dict", "to_dict"]


class Codec(ABC):
    """A map between data units and model units. To write a codec, subclass this class as a frozen dataclass.

    In all methods, ``condition`` contains the conditions of the rows. Most codecs ignore this argument.
    """

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

    def show(self, m: Tensor) -> Tensor:
        """Convert ``m: (B, *event)`` to a network input with the shape of the data. The conversion is linear."""
        return m

    def hide(self, x: Tensor) -> Tensor:
        """Convert a network output ``(B, *event)`` to model units. This is the inverse of :meth:`show`."""
        return x

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
        return m

    def log_det(self, x: Tensor, condition: object = None) -> float | Tensor | None:
        total: float | Tensor = 0.0
        for part in self.parts:
            found = part.log_det(x, condition)
            if found is None:
                return None
            total = total + found
            x = part.to_model(x, condition)
        return total

    def dims(self, x: Tensor, condition: object = None) -> int | Tensor:
        if not self.parts:
            return super().dims(x, condition)
        for part in self.parts[:-1]:
            x = part.to_model(x, condition)
        return self.parts[-1].dims(x, condition)

    def model_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in self.parts:
            shape = part.model_shape(shape)
        return shape

    def show(self, m: Tensor) -> Tensor:
        for part in reversed(self.parts):
            m = part.show(m)
        return m

    def hide(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.hide(x)
        return x

    def rows(self, index: Tensor) -> Composed:
        return Composed(tuple(part.rows(index) for part in self.parts))

    @property
    def levels(self) -> Codec | None:
        return self.parts[0].levels if self.parts else None

    @property
    def continuous(self) -> Codec:
        if self.levels is None:
            return self
        rest = self.parts[1:]
        return rest[0] if len(rest) == 1 else Composed(rest)


# ---------------------------------------------------------------------------------------------------------------- files


def to_dict(codec: Codec) -> list[dict[str, Any]]:
    """Return the name and the options of each part of a codec, as plain JSON values.

    Raises:
        UsageError: If a part is not a built-in codec. Only built-in codecs can be loaded again.
    """
    if isinstance(codec, Composed):
        return [entry for part in codec.parts for entry in to_dict(part)]
    if name_of(codec, CODECS) not in CODECS:
        raise UsageError(
            f"{type(codec).__name__} is not a built-in codec, so a saved run that uses it could not be loaded again; "
            "train without a run folder (save=False)",
            parameter="save",
        )
    options = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in options_of(codec).items()}
    return [{"name": name_of(codec, CODECS), "options": options}]


def from_dict(stored: Sequence[Mapping[str, Any]]) -> Codec:
    """Build a codec from the values that :func:`to_dict` returns. Only built-in codecs are supported.

    Raises:
        CheckpointError: If the values do not describe a codec.
    """
    try:
        parts = [resolve(str(part["name"]), CODECS, "codec").from_options(dict(part["options"])) for part in stored]
        return parts[0] if len(parts) == 1 else Composed(tuple(parts))
    except CheckpointError:
        raise
    except (ScoresdeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"the stored codec is malformed: {error}") from None


def digest(codec: Codec) -> str:
    """Return a digest of a codec, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(to_dict(codec), sort_keys=True).encode()).hexdigest()[:16]
