"""The space in whose coordinates a path is stated, fitted to the training data, and training rows in these coordinates.

The space follows the data's own codec. Some spaces need another affine map than that of the data: a separate shift for
each point would move the centre of a row, and a shift would make positive data negative.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..codec import Affine, Codec, Composed, Relative, Space
from ..codec.space import real_values
from ..core.condition import Condition
from ..core.errors import DataError, UsageError
from ..core.noise import Noise
from ..data import Dataset
from ..operators import Operator
from ..run.config import TrainConfig

__all__ = ["aligned", "conditions", "model_rows", "stated"]

NUMBERS = 2**24  # largest number of values to which a space is fitted
CHUNK = 2**22  # number of values that are checked at once
STEP = 2**32 - 2  # step index for an operator's random numbers, not used in training or validation


def stated(config: TrainConfig, data: Dataset, operator: Operator | None) -> Codec:
    """Return the codec of the data, followed by the space in ``config``, which is fitted to the training rows.

    Raises:
        UsageError: If the space does not suit the data, the condition or another setting.
        DataError: If a row of the data is outside the space.
    """
    spaces = config.spaces
    if not spaces:
        return data.codec
    _check_settings(config, data, spaces)
    index = data.trains.nonzero().flatten()
    index = index[:: max(1, -(-len(index) * data.info.dims // NUMBERS))]
    own = Composed((*([data.codec.levels] if data.codec.levels else []), _affine(spaces, data, index)))
    known = conditions(config, data, index, own.continuous, operator)
    m, fitted = _middle(own, data.train[index].double()), []
    try:
        for space in spaces:
            shape = space.model_shape(tuple(m.shape[1:]))
            space = space.fitted(m, known)
            space.check(m, known)
            m = space.to_model(m, known)
            if tuple(m.shape[1:]) != shape:
                raise UsageError(
                    f"the space {space} states rows of shape {tuple(m.shape[1:])}, but model_shape says {shape}"
                )
            fitted.append(space)
    except UsageError as error:
        error.parameter = "space"
        raise
    if not bool(m.isfinite().all()):
        raise DataError(f"{data.info.source}: some rows are not finite in the space {' + '.join(map(str, fitted))}")
    codec = Composed((*own.parts, *fitted))
    size = max(1, CHUNK // data.info.dims)
    for x, given in ((data.train, data.train_given), (data.test, data.test_given)):
        for rows in torch.split(torch.arange(len(x)), size):
            part = given.rows(rows) if len(given) > 1 else given
            if not any(space.needs == ("image",) for space in spaces):  # y is defined for every row
                codec.space.check(
                    _middle(own, x[rows].double()), replace(part, mask=part.mask if config.padded else None)
                )
    return codec


def _check_settings(config: TrainConfig, data: Dataset, spaces: tuple[Space, ...]) -> None:
    """Reject settings and data that cannot be combined with a space."""
    name, sources = config.space if isinstance(config.space, str) else str(config.space), config.sources
    needs = {need for space in spaces for need in space.needs}
    if "image" in needs and not (sources.operator or (sources.image and data.train_given.image is not None)):
        raise UsageError(
            f"the space {name!r} needs an image y for each row, of the shape of the samples; train with cond='image' "
            "and data that have images, or with an operator, such as cond='pool:2'",
            parameter="cond",
            value="image",
        )
    if "mask" in needs and data.train_given.mask is None:
        raise UsageError(
            f"the space {name!r} needs an array 'mask' of an .npz file, (N, ...), which is true for real values, but "
            f"{data.info.name} has none",
            parameter="space",
            value="none",
        )
    if data.complete is not None:
        raise UsageError(
            f"{data.info.source} has unknown values, but only complete rows can be stated in the space {name!r}; fill "
            "in the values, or train without a space",
            parameter="space",
            value="none",
        )
    whole = next((space for space in spaces if not space.levels_too), None)
    if whole is not None and data.codec.levels is not None:
        raise UsageError(
            f"the space {str(whole)!r} needs continuous data, because levels are spread over cells that leave the "
            f"space, but {data.info.name} has integer values; convert them to floating-point numbers",
            parameter="space",
            value="none",
        )
    cures = {
        "learn_variance": (config.learn_variance, "false"),
        "augment": (config.augmentation is not None and "mask" in needs, "none"),
        "coupling": (config.coupling != "independent" and "mask" in needs, "independent"),
    }
    for setting, (wrong, cure) in cures.items():
        if wrong:
            raise UsageError(
                f"{setting} cannot be used with the space {name!r}; set it to {cure}", parameter=setting, value=cure
            )


def _affine(spaces: tuple[Space, ...], data: Dataset, index: Tensor) -> Affine:
    """Return the affine map that precedes the spaces."""
    found = data.codec.continuous
    if not isinstance(found, Affine):
        raise UsageError(
            f"a space follows an affine map, but the codec of {data.info.name} is {found}", parameter="space"
        )
    x = data.train[index].double()
    x = x if data.codec.levels is None else data.codec.levels.to_model(x, noise=torch.full_like(x, 0.5))
    mask = data.train_given.mask
    values = real_values(x, None if mask is None else mask[index])
    for space in spaces:
        found = space.affine(found, values)
    return found


def _middle(codec: Codec, x: Tensor) -> Tensor:
    """Convert data to model units. Each level is mapped to the middle of its cell."""
    return codec.to_model(x, noise=torch.full(x.shape, 0.5, dtype=x.dtype))


def aligned(config: TrainConfig, data: Dataset) -> Dataset:
    """Return the data with given pictures in the units of the samples, for a path that drifts from samples to pictures.

    The samples have one shift and scale, or one for each channel or column. If the space does not depend on pictures,
    the data are returned unchanged.
    """
    spaces = config.spaces
    shown = config.sources.image and data.info.known.image
    if not any(isinstance(space, Relative) for space in spaces) or not shown:
        return data
    affine = _affine(spaces, data, torch.arange(min(len(data.train), 4096)))
    scale = affine.scale.double() + torch.zeros_like(affine.shift, dtype=torch.float64)
    shift = affine.shift.double().expand(scale.shape)
    channels = data.info.known.image[:1]
    if scale.numel() not in (1, *channels) or (scale.ndim and scale.shape[0] != scale.numel()):
        raise UsageError(
            f"the space 'relative' needs images y of the shape of the samples, {data.info.shape}, but those of "
            f"{data.info.source} have the shape {data.info.known.image}",
            parameter="space",
        )
    low, high = ((shift + part * scale).flatten().tolist() for part in (-1, 1))
    one = scale.numel() == 1
    known = replace(data.info.known, low=low[0] if one else tuple(low), high=high[0] if one else tuple(high))
    return data.described(known)


def conditions(
    config: TrainConfig, data: Dataset, index: Tensor, units: Codec, operator: Operator | None
) -> Condition | None:
    """Return the conditions of training rows on which a space can depend, in model units.

    Args:
        config: The configuration.
        data: The data.
        index: The indices of the rows, int64 ``(n,)``.
        units: The map from data to values of order one.
        operator: The operator whose measurements the network is shown, or ``None``.
    """
    given = config.told(data.train_given)
    known = None if given is None else data.info.known.to_model(given.rows(index))
    if operator is None:
        return known
    shown = operator.drawn(Noise.of(len(index), config.seed % 2**64), STEP).degrade(data.train[index].double())
    return replace(known or Condition(), image=units.to_model(shown).float())


def model_rows(
    config: TrainConfig, data: Dataset, index: Tensor, codec: Codec, operator: Operator | None
) -> tuple[Tensor, Tensor | None]:
    """Return training rows in model units, each level in the middle of its cell, and which numbers are real."""
    x, dtype = data.train[index], torch.float64 if data.info.wide else torch.float32
    noise = torch.full(x.shape, 0.5, dtype=dtype)
    known = conditions(config, data, index, codec.units, operator) if codec.space.parts else None
    return codec.to_model(x, known, noise), codec.support(known)
