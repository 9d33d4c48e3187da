"""A measurement of the samples to be drawn: how a file is understood, and how samples are made to agree with it.

A conditional model is shown the measurement, but its samples agree with it only approximately. :meth:`Seen.agreeing`
removes the rest. With a mask, known values are copied, after the samples are rounded to levels. With another linear
operator A, each sample moves by the shortest step to agreement,

    x <- x + A^T (A A^T + b I)^-1 (y - A x),                                                                 (1)

with b = 0 where the operator has a closed form. Rounding to levels of width w then changes A x by at most w/2 for an
operator that averages, and clamping to the range of the data may change it by more: such rows are counted.
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
from ..operators import Blur, Cells, Linear, Mask, Masking, OneOf, Operator, choices

__all__ = ["Seen", "covers", "keep_mask", "kept_mask", "measured", "tolerance", "understood"]

MASKS = "masks.npz"


@dataclass(frozen=True, eq=False)
class Seen:
    """What is measured of each sample.

    Attributes:
        operator: The operator, or ``None`` if only the picture that the network is shown is known.
        y: The measurements, ``(n, *measured)`` in data units, or the pictures that the network is shown.
        truth: The samples that were measured, ``(n, *event)``, if they are known.
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
        """Which values are unknown, bool ``(n or 1, *event)``, if the operator is a mask, otherwise ``None``."""
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
    """Decide what a picture, signal or row of a table means: a measurement, or a sample that is yet to be measured.

    An array with the shape of a measurement is a measurement. An array with the shape of a sample is the truth, and is
    measured here. For a mask, whose measurement has the shape of a sample, NaN marks missing values; without any NaN,
    the array is the truth.

    Args:
        image: The array, ``(n, *shape)`` in data units.
        operator: The operator of the model, for samples of a known shape.
        noise: The random numbers of an operator that draws, one row for each row of ``image``.

    Raises:
        UsageError: If the array has neither shape.
    """
    event, shape = operator.event or (), tuple(image.shape[1:])
    holes = image.is_floating_point() and bool(image.isnan().any())
    if holes and shape == event:
        masks = any(isinstance(choice, Masking) for choice in choices(operator))
        if not masks:
            raise UsageError(
                f"the values to start from include {int(image.isnan().sum()):,} NaN, but this model was trained with "
                f"the operator {operator}, which leaves no values out; fill them in",
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
    shapes = sorted({str(c.measured) for c in choices(operator)})
    raise UsageError(
        f"the given values have shape {shape} for each sample; the operator {operator} measures {' or '.join(shapes)}, "
        f"and samples have shape {event}",
        parameter="given",
    )


def measured(image: Tensor, operator: Operator, noise: Noise) -> Seen:
    """Measure true samples ``image``, ``(n, *event)``; an operator that is a choice draws one for each row."""
    drawn = operator.drawn(noise)
    if isinstance(drawn, OneOf):
        return Seen(None, drawn.degrade(image.double()), image)
    return Seen(drawn, drawn(image.double()), image)


def keep_mask(folder: Path, operator: Operator) -> None:
    """Write the masks of an operator that were read from files to a run folder, which then needs no other file."""
    masks = {choice.file: choice.mask.numpy() for choice in choices(operator) if isinstance(choice, Mask)}
    if masks:
        write_arrays(folder / MASKS, {str(i): mask for i, mask in enumerate(masks.values())})


def kept_mask(folder: Path, operators: str, file: str) -> Tensor:
    """Read the mask that a run folder keeps for ``mask:FILE``.

    Args:
        folder: The run folder.
        operators: The operators of the run, as typed.
        file: The file from which the mask was read in training.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    parts = [operators] if operators.startswith("mask:") else operators.split("/")
    files = list(dict.fromkeys(part.partition(":")[2] for part in parts if part.startswith("mask:")))
    path = folder / MASKS
    try:
        return torch.from_numpy(read_arrays(path)[str(files.index(file))])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}; restore it") from error


def covers(trained: Operator, other: Operator) -> bool:
    """Whether a model that was trained with an operator has seen measurements by another operator.

    A model that was trained with random cells has seen any mask.
    """
    return all(any(_same(mine, c) for mine in choices(trained)) for c in choices(other))


def _same(trained: Operator, other: Operator) -> bool:
    if isinstance(trained, Cells) and isinstance(other, Masking):
        return True
    if isinstance(trained, Masking) and isinstance(other, Masking) and other.event is not None:
        masks = [operator.known(other.event) for operator in (trained, other)]
        return bool((masks[0] == masks[1]).all())
    return str(trained) == str(other)
