"""Measurements that samples must agree with: how to recognise them, and how to make samples agree with them.

A conditional model receives the measurement as input, but its samples agree with it only approximately.
:meth:`Seen.agreeing` removes the difference. For a mask or a crop, the samples are rounded to levels, and the known
values are then copied into them. For any other linear operator A, each sample is moved by the smallest change that
makes it agree with its measurement,

    x <- x + A^T (A A^T + b I)^-1 (y - A x),                                                                 (1)

where b = 0 if the inverse has a closed form and A is not a blur. For a blur, and for operators without a closed form,
small singular values of A would magnify the rounding errors of y. For each row, values of b are therefore tried in
decreasing order until the row agrees. The codec spreads a level of width w over a cell that begins at the level, so w/2
is subtracted from the values before equation 1 is applied, and the results are rounded to the nearest level. If A
averages values, rounding changes A x by at most w/2, but clamping to the range of the data may change it by more. For
operators with b = 0, a row that no longer agrees is moved repeatedly from its clamped values x',

    x <- x' + D A^T (A D A^T)^-1 (y - A x'),                                                                 (2)

where D is diagonal, with 1 for values inside the range, and a small number for values at the ends of the range, which
would only be clamped again. The remaining difference of each row is returned with the samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..codec import Codec, Levels
from ..core.errors import CheckpointError, UsageError
from ..core.files import write_arrays
from ..core.noise import Noise
from ..core.opened import read_arrays, reason
from ..core.shapes import flat, select
from ..data import DataInfo
from ..operators import Blur, Cells, Crop, Linear, Mask, Masking, OneOf, Operator, choices

__all__ = ["MASKS", "Seen", "covers", "keep_mask", "kept_mask", "measured", "tolerance", "understood"]

MASKS = "masks.npz"
TRIES = 8  # number of values of b to try in equation 1
STRICTER = 100.0  # ratio of each value of b to the next value that is tried
TURNS = 20  # number of times that equation 2 is applied
FIXED = 1e-3  # the entry of D in equation 2 for values at the ends of the range


@dataclass(frozen=True, eq=False)
class Seen:
    """The measurement of each sample.

    Attributes:
        operator: The operator, or ``None`` if it is unknown.
        y: The measurements, ``(n, *measured)`` in data units. If the operator is unknown, these are the images that
            the network receives, ``(n, *event)``.
        truth: The samples that were measured, ``(n, *event)``, or ``None`` if they are unknown.
    """

    operator: Operator | None
    y: Tensor
    truth: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Tensor) -> Self:
        """Return the measurements of the rows at the int64 positions ``index: (B,)``."""
        index = index.to(self.y.device)
        operator = None if self.operator is None else self.operator.rows(index)
        return type(self)(operator, select(self.y, index), None if self.truth is None else select(self.truth, index))

    @property
    def shown(self) -> Tensor:
        """The images that the network receives, ``(n, *event)``, with NaN for unknown values."""
        return self.y if self.operator is None else self.operator.shown(self.y)

    @property
    def hidden(self) -> Tensor | None:
        """A mask of the unknown values, bool ``(n or 1, *event)``, or ``None`` if values are not measured one by one.

        For a mask or a crop, the hidden values are unknown. For any other operator, the result is ``None``. If
        ``operator`` is ``None``, values that are NaN in ``y`` are unknown, and a row without NaN is entirely unknown.
        In this case, the result is ``None`` if no row contains NaN.
        """
        if self.operator is None:
            missing = self.y.isnan()
            rows = missing.flatten(1).any(1)
            return missing | ~rows.reshape(-1, *[1] * (missing.ndim - 1)) if bool(rows.any()) else None
        if not isinstance(self.operator, Masking | Crop):
            return None
        return self.operator.hidden(self.operator.event or tuple(self.y.shape[1:]))

    def agreeing(self, x: Tensor, codec: Codec, info: DataInfo) -> tuple[Tensor, Tensor | None]:
        """Change samples so that they agree with the measurements, and round them to the levels of the data.

        Args:
            x: Samples in data units before rounding, float64 ``(n, *event)``.
            codec: The map from data units to model units.
            info: Description of the data.

        Returns:
            The samples, ``(n, *event)``, and for each sample the largest difference between its measurements and ``y``,
            ``(n,)``. The differences are ``None`` if the operator is not linear.
        """
        operator, y = self.operator, self.y.to(x)
        if not isinstance(operator, Linear):
            return _rounded(x, codec), None
        if isinstance(operator, Masking | Crop):
            known = ~self.hidden if self.hidden is not None else torch.ones_like(x, dtype=torch.bool)
            x = torch.where(known.to(x.device), operator.pinv(y), _rounded(x, codec))
            return x, flat(operator(x) - y).abs().amax(1)
        y, half, limit = y.expand(len(x), *y.shape[1:]), _half(codec, x), tolerance(info)
        found = _rounded(x, codec)
        residual = flat(operator(found) - y).abs().amax(1)
        todo = residual.isfinite().nonzero().flatten()
        exact = type(operator).solve is not Linear.solve and not isinstance(operator, Blur)
        for b in (0.0,) if exact else ((limit / 4) ** 2 / STRICTER**i for i in range(TRIES)):
            if not len(todo):
                break
            part = operator if len(todo) == len(x) else operator.rows(todo)
            start, goal = x[todo] - half, y[todo]
            moved = start + part.transpose(part.solve(goal - part(start), 1.0, b)) + half
            moved = _rounded(moved, codec)
            off = flat(part(moved) - goal).abs().amax(1)
            better = (off < residual[todo]) | (b == 0)
            found[todo[better]], residual[todo[better]] = moved[better], off[better]
            todo = todo[~(off <= limit)]
        if exact and len(todo) and isinstance(codec.levels, Levels):
            part = operator if len(todo) == len(x) else operator.rows(todo)
            moved = _rounded(_within(part, x[todo] - half, y[todo], codec.levels) + half, codec)
            off = flat(part(moved) - y[todo]).abs().amax(1)
            better = off < residual[todo]
            found[todo[better]], residual[todo[better]] = moved[better], off[better]
        return found, residual


def tolerance(info: DataInfo) -> float:
    """Return the tolerance for measurements: half the width of a level, or 1e-6 times the range of continuous data."""
    span = info.high - info.low
    return span / (info.levels - 1) / 2 if info.levels else 1e-6 * (span or 1.0)


def _within(operator: Linear, x: Tensor, y: Tensor, levels: Levels) -> Tensor:
    """Move ``x`` into the range of the levels, keeping its measurements close to ``y`` (equation 2)."""
    count = torch.as_tensor(levels.count, device=x.device)
    low, high = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (levels.low, levels.high))
    # A continuous column has a count of 0, and is not restricted to a range.
    low, high = torch.where(count > 0, low, -torch.inf), torch.where(count > 0, high, torch.inf)
    scale: Tensor | float = 1.0
    for _ in range(TURNS):
        x = x + scale * operator.transpose(operator.solve(y - operator(x), scale))
        free = (x > low) & (x < high)
        x, scale = torch.minimum(torch.maximum(x, low), high), torch.where(free, 1.0, FIXED).to(x.dtype)
    return x


def _half(codec: Codec, x: Tensor) -> Tensor:
    """Return half the width of the levels, or 0 for continuous values."""
    width = codec.levels.width if isinstance(codec.levels, Levels) else 0.0
    return torch.as_tensor(width, dtype=x.dtype, device=x.device) / 2


def _rounded(x: Tensor, codec: Codec) -> Tensor:
    """Convert ``x`` to levels (see :meth:`.Levels.to_data`), if the data have levels."""
    return x if codec.levels is None else codec.levels.to_data(x)


def understood(image: Tensor, operator: Operator, noise: Noise, *, named: bool = False) -> Seen:
    """Interpret an array as measurements, or as samples to be measured here, and return the measurements.

    An array with the shape of a measurement contains measurements, and an array with the shape of a sample contains
    samples. If measurements have the same shape as samples, these rules apply:

    - If the array contains NaN, it is a measurement by a mask, and NaN marks the missing values.
    - If the operator is a mask and the array contains no NaN, the array contains samples. The exception is the operator
      ``cells`` for tables and signals: the rows count as already complete, and are returned unchanged.
    - If the operator is not a mask (if it is ``blur``, for example), the array contains measurements.
    - If the model was trained with a choice of operators, one of which keeps the shape and is not a mask, the array
      contains the images that the network receives.

    If the caller named the operator, an array without NaN that has the shape of a sample contains samples, which are
    measured by that operator. If the array contains NaN and the operator is a mask, values that this mask hides are
    missing too.

    Args:
        image: The array, ``(n, *shape)`` in data units.
        operator: The operator of the model, or the operator named by the caller, set up for samples of a known shape.
        noise: The source of random numbers for operators that need them, with one row for each row of ``image``.
        named: Whether the caller named the operator.

    Raises:
        UsageError: If the array has the shape of neither a measurement nor a sample, if several operators are possible,
            if the array contains infinite values, or if it contains NaN although the operator hides no values.
    """
    event, shape = operator.event or (), tuple(image.shape[1:])
    image = image.double()  # float64 represents any level exactly
    if bool(image.isinf().any()):
        raise UsageError(
            "some of the given values are infinite; replace them, or use NaN for values that are unknown",
            parameter="given",
        )
    if bool(image.isnan().any()):
        masks = any(isinstance(choice, Masking) for choice in choices(operator))
        if not masks or shape != event:
            raise UsageError(
                f"NaN occurs in {int(image.isnan().sum()):,} of the {image.numel():,} given values, but "
                + (f"only samples of shape {event} may have missing values, and the shape here is {shape}" if masks else
                   f"the operator {operator} leaves no values out")
                + ", so replace NaN with numbers",
                parameter="given",
            )  # fmt: skip
        known = ~image.isnan()
        hides = operator.drawn(noise) if named else operator
        if named and isinstance(hides, Masking):
            known = known & hides.known(event)
        return Seen(Mask(known).on(event), torch.where(known, image, 0))
    if isinstance(operator, OneOf):
        fitting = [c for c in operator.choices if c.measured == shape != event]
        if len(fitting) > 1:
            raise UsageError(
                f"the given values have shape {shape} for each sample, which fits the measurements of "
                f"{' and '.join(map(str, fitting))}; name the operator that measured them",
                parameter="operator",
                value=str(fitting[0]),
            )
        if fitting:
            return Seen(fitting[0], image)
        if shape == event and any(c.measured == event and not isinstance(c, Masking) for c in operator.choices):
            return Seen(None, image)
        if shape == event:
            raise UsageError(
                f"the given values have the shape of a sample, {event}, and no missing values, so they cannot be "
                f"a measurement by {' or '.join(map(str, operator.choices))}; name the operator to measure them with",
                parameter="operator",
                value=str(operator.choices[0]),
            )
    elif isinstance(operator, Cells) and len(event) < 3 and shape == event and not named:
        return Seen(Mask(torch.ones_like(image, dtype=torch.bool)).on(event), image)
    elif isinstance(operator, Masking) and shape == event:
        drawn = operator.drawn(noise)
        return Seen(drawn, drawn(image), image)
    elif shape == operator.measured and not (named and shape == event):
        return Seen(operator, image)
    elif shape == event:
        drawn = operator.drawn(noise)
        return Seen(drawn, drawn(image), image)
    shapes = sorted({str(c.measured) for c in choices(operator)})
    raise UsageError(
        f"the given values have shape {shape} for each sample, but the shape must be {' or '.join(shapes)} (for "
        f"measurements by the operator {operator}) or {event} (for samples)",
        parameter="given",
    )


def measured(image: Tensor, operator: Operator, noise: Noise, complete: Tensor | None = None) -> Seen:
    """Measure true samples. If the operator is a choice of several, one of them is drawn for each row.

    Args:
        image: The samples, ``(n, *event)`` in data units.
        operator: The operator of the model, set up for samples of this shape.
        noise: The source of random numbers for each row.
        complete: A mask of the known values of the samples, bool ``(n, *event)``, or ``None`` if all values are known.
            An operator that is a mask also hides the unknown values. If the operator is a choice of several, the
            unknown values are NaN in the degraded samples.
    """
    drawn, image = operator.drawn(noise), image.double()
    if isinstance(drawn, OneOf):
        shown = drawn.degrade(image)
        return Seen(None, shown if complete is None else torch.where(complete, shown, torch.nan), image)
    if complete is not None and isinstance(drawn, Masking):
        event = tuple(image.shape[1:])
        drawn = Mask(drawn.known(event) & complete).on(event)
    return Seen(drawn, drawn(image), image)


def keep_mask(folder: Path, operator: Operator) -> None:
    """Store in a run folder the masks that an operator read from files, so that the files are no longer needed."""
    masks = {choice.file: choice.mask.numpy() for choice in choices(operator) if isinstance(choice, Mask)}
    if masks:
        write_arrays(folder / MASKS, {str(i): mask for i, mask in enumerate(masks.values())})


def kept_mask(folder: Path, operators: str, file: str) -> Tensor:
    """Read the mask for ``mask:FILE`` from the copy in a run folder.

    Args:
        folder: The run folder.
        operators: The operators of the run, as written in ``cond``.
        file: The file name in ``mask:FILE``.

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


def covers(trained: Operator, other: Operator) -> bool:
    """Return whether a model trained with the operator ``trained`` has seen measurements by ``other``.

    A model that was trained with random cells counts as having seen every mask.
    """
    return all(any(_same(mine, c) for mine in choices(trained)) for c in choices(other))


def _same(trained: Operator, other: Operator) -> bool:
    if isinstance(trained, Cells) and isinstance(other, Masking):
        return True
    if isinstance(trained, Cells) or isinstance(other, Cells):
        return False  # random cells have no mask of their own
    if isinstance(trained, Masking) and isinstance(other, Masking) and other.event is not None:
        masks = [operator.known(other.event) for operator in (trained, other)]
        return bool((masks[0] == masks[1]).all())
    return str(trained) == str(other)
