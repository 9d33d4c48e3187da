"""Measurements of the samples to be drawn: how they are recognised, and how the samples are made to agree with them.

A conditional model is shown the measurement y of a sample x, but its samples agree with y only approximately.
:meth:`Seen.agreeing` removes the remaining difference. With a mask, the known values are copied into the samples after
these are rounded to levels. With any other linear operator A, each sample is moved by the shortest step that makes it
agree,

    x <- x + A^T (A A^T + b I)^-1 (y - A x),                                                                 (1)

with b = 0 where the operator has a closed form. Rounding to levels of width w then changes A x by at most w/2 for an
operator that averages. Clamping to the range of the data may change A x by more. The difference that remains is
reported for each sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..codec import Codec
from ..core.errors import CheckpointError, UsageError
from ..core.files import write_arrays
from ..core.noise import Noise
from ..core.opened import read_arrays, reason
from ..core.shapes import flat
from ..data import DataInfo
from ..operators import Blur, Linear, Mask, Masking, OneOf, Operator

__all__ = ["Seen", "keep_mask", "kept_mask", "measured", "tolerance", "understood"]

MASKS = "masks.npz"


@dataclass(frozen=True, eq=False)
class Seen:
    """The measurement of each sample.

    Attributes:
        operator: The operator, or ``None`` if it is unknown.
        y: The measurements, ``(n, *measured)`` in data units. If the operator is unknown, these are the pictures that
            the network is shown, ``(n, *event)``.
        truth: The samples that were measured, ``(n, *event)``, or ``None`` if they are unknown.
    """

    operator: Operator | None
    y: Tensor
    truth: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Tensor) -> Self:
        """Return the measurements of the rows ``index``, int64 ``(B,)``."""
        index = index.to(self.y.device)
        operator = None if self.operator is None else self.operator.rows(index)
        return type(self)(operator, self.y[index], None if self.truth is None else self.truth[index])

    @property
    def shown(self) -> Tensor:
        """The pictures that a network is shown, ``(n, *event)``, with NaN where nothing is known."""
        return self.y if self.operator is None else self.operator.shown(self.y)

    @property
    def hidden(self) -> Tensor | None:
        """The values that a mask hides, bool ``(n or 1, *event)``, or ``None`` if the operator is not a mask."""
        if not isinstance(self.operator, Masking):
            return None
        return ~self.operator.known(tuple(self.y.shape[1:])).expand(-1, *self.y.shape[1:])

    def agreeing(self, x: Tensor, codec: Codec, info: DataInfo) -> tuple[Tensor, Tensor | None]:
        """Return samples that agree with the measurements, rounded to the levels of the data.

        Args:
            x: Samples in data units before rounding, float64 ``(n, *event)``.
            codec: The map from data units to model units.
            info: Description of the data.

        Returns:
            The samples ``(n, *event)``, and the largest difference between the measurements of the samples and ``y``
            in each row, ``(n,)``, or ``None`` if the operator is not linear.
        """
        operator, y = self.operator, self.y.to(x)
        if not isinstance(operator, Linear):
            return _rounded(x, codec), None
        if isinstance(operator, Masking):
            known = operator.known(tuple(x.shape[1:])).to(x.device)
            x = torch.where(known, y, _rounded(x, codec))
        else:
            # Without a closed form, small singular values would magnify the rounding of y.
            exact = type(operator).solve is not Linear.solve and not isinstance(operator, Blur)
            b = 0.0 if exact else (tolerance(info) / 4) ** 2
            moved = x + operator.transpose(operator.solve(y - operator(x), 1.0, b))
            x = torch.where(x.isfinite(), moved, x)
            x = _rounded(x, codec)
        return x, flat(operator(x) - y).abs().amax(1)


def tolerance(info: DataInfo) -> float:
    """Return the largest difference that counts as agreement: half a level, or 1e-6 of the range of continuous data."""
    span = info.high - info.low
    return span / (info.levels - 1) / 2 if info.levels else 1e-6 * (span or 1.0)


def _rounded(x: Tensor, codec: Codec) -> Tensor:
    """Round ``x`` to the levels of the data, if there are any, and clamp it to their range."""
    return x if codec.levels is None else codec.levels.to_data(x)


def understood(image: Tensor, operator: Operator, noise: Noise) -> Seen:
    """Interpret an array as measurements, or as samples to be measured here, and return the measurements.

    An array with the shape of a measurement holds measurements. An array with the shape of a sample holds samples, with
    two exceptions. If it contains NaN, it holds the measurements by a mask, and NaN marks the missing values. If the
    model was trained with a choice of operators, it holds the pictures that the network is shown.

    Args:
        image: The array, ``(n, *shape)`` in data units.
        operator: The operator of the model, for samples of a known shape.
        noise: The random numbers for an operator that needs them, one row for each row of ``image``.

    Raises:
        UsageError: If the array has neither shape, or contains NaN although the operator is not a mask.
    """
    event, shape = operator.event or (), tuple(image.shape[1:])
    holes = image.is_floating_point() and bool(image.isnan().any())
    if holes and shape == event:
        masks = any(isinstance(choice, Masking) for choice in _choices(operator))
        if not masks:
            raise UsageError(
                f"the given values include {int(image.isnan().sum()):,} NaN, but this model was trained with the "
                f"operator {operator}, which hides no values; replace each NaN by a number",
                parameter="given",
            )
        known = ~image.isnan()
        return Seen(Mask(known).on(event), torch.where(known, image, 0))
    if isinstance(operator, OneOf):
        fitting = [c for c in operator.choices if c.measured == shape != event]
        if fitting:
            return Seen(fitting[0], image)
        if shape == event:
            return Seen(None, image)
    elif isinstance(operator, Masking) and shape == event:
        drawn = operator.drawn(noise)
        return Seen(drawn, drawn(image), image)
    elif shape == operator.measured:
        return Seen(operator, image)
    elif shape == event:
        return Seen(operator, operator(image.double()), image)
    shapes = sorted({str(c.measured) for c in _choices(operator)})
    raise UsageError(
        f"the given values have shape {shape} for each sample, but they must have the shape of a measurement by the "
        f"operator {operator}, {' or '.join(shapes)}, or of a sample, {event}",
        parameter="given",
    )


def measured(image: Tensor, operator: Operator, noise: Noise) -> Seen:
    """Measure samples ``image``, ``(n, *event)``. From a choice of operators, one is drawn for each row."""
    drawn = operator.drawn(noise)
    if isinstance(drawn, OneOf):
        return Seen(None, drawn.degrade(image.double()), image)
    return Seen(drawn, drawn(image.double()), image)


def keep_mask(folder: Path, operator: Operator) -> None:
    """Copy the masks that an operator read from files to a run folder, so that the run does not need these files."""
    masks = {choice.file: choice.mask.numpy() for choice in _choices(operator) if isinstance(choice, Mask)}
    if masks:
        write_arrays(folder / MASKS, {str(i): mask for i, mask in enumerate(masks.values())})


def kept_mask(folder: Path, operators: str, file: str) -> Tensor:
    """Read the mask that a run folder keeps for ``mask:FILE``.

    Args:
        folder: The run folder.
        operators: The operators of the run, as typed.
        file: The file from which the mask was read in training.

    Raises:
        CheckpointError: If the stored mask is missing or damaged.
    """
    parts = [operators] if operators.startswith("mask:") else operators.split("/")
    files = list(dict.fromkeys(part.partition(":")[2] for part in parts if part.startswith("mask:")))
    path = folder / MASKS
    try:
        return torch.from_numpy(read_arrays(path)[str(files.index(file))])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}; restore the file") from error


def _choices(operator: Operator) -> tuple[Operator, ...]:
    return operator.choices if isinstance(operator, OneOf) else (operator,)
