"""Read other data than those that a run was trained on, to evaluate the run on all of their rows.

The rows of a user's own file are neither divided nor scaled by their own statistics: all of them are test rows, in the
units of the run. The training rows are those of the run. They are what samples may be copies of, and what a model that
ignores its condition would answer with. Data are divided as in training if they have a test part of their own, if they
are one of the named data sets, or if they are the data of the run, because some of these rows were trained on.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codec import Affine, Codec
from ..core.errors import DataError, UsageError
from ..core.shared import silence
from ..core.text import one_line
from ..data import NAMES, DataInfo, Dataset
from ..data.dataset import identified, there
from ..data.raw import Array, Raw
from ..data.readers import read_path
from ..data.rows import Stored, pieces, tensor_of
from .config import TrainConfig
from .origin import data_of, found, kept_identity, reading_of

__all__ = ["read_truths"]

MOST = 0.5  # share of the rows of a run above which a file that contains them counts as the data of the run


def read_truths(
    folder: Path, config: TrainConfig, info: DataInfo, codec: Codec, data: str, *, changed: bool = False,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[Dataset, bool]:  # fmt: skip
    """Read data to evaluate a run on.

    Args:
        folder: The run folder.
        config: The configuration of the run.
        info: The description of the data of the run.
        codec: The run's map from data units to model units.
        data: The name or the path of the data. In a table, the columns of the run are found by their names, and other
            columns are left out. Rows with empty cells are left out, because their truth is unknown.
        changed: Whether to accept the run's own data even if they have changed.
        told: Called with each message about what was read.

    Returns:
        The data set, and whether all rows of the data are its test rows. If so, its training rows are those of the run,
        or empty, with a warning, if the run's data cannot be read.

    Raises:
        DataError: If the data cannot be read, have no complete row, or do not have the shape of the run's data.
        UsageError: If the run was trained with classes as a condition, and the data have other classes.
    """
    path = Path(os.path.expanduser(data))
    own = found(folder, config)
    if data in NAMES or not data or not there(path) or os.path.realpath(path) == os.path.realpath(own):
        return data_of(folder, config, data, changed=changed), False
    raw = read_path(path, reading_of(config, info))
    if raw.test is not None or _is_own(folder, raw):
        return data_of(folder, config, data, changed=changed), False
    for note in raw.notes:
        told(note)
    _check_shape(raw, info, codec, data)
    count = len(raw.train)
    kept = np.arange(count) if raw.complete is None else np.flatnonzero(raw.complete.reshape(count, -1).all(1))
    if not len(kept):
        raise DataError(
            f"{data}: every one of the {count:,} rows has empty cells, so no truth is known to compare with; add "
            "complete rows"
        )
    if len(kept) < count:
        left = f"{count - len(kept):,} of {count:,}"
        told(f"rows of {data} with empty cells, which are left out because the truth is unknown: {left}")
    base = _trained(folder, config, info)
    x = tensor_of(raw.train[kept], info.wide)
    _warn_of_trained(folder, x, base.trained, data)
    name = os.path.basename(os.path.realpath(path))
    labels = None if raw.train_labels is None else raw.train_labels[kept]
    return replace(
        base,
        info=replace(info, name=name if path.is_dir() else name.partition(".")[0], source=data, n_test=len(x)),
        codec=codec, test=x, test_labels=None if labels is None else _labels(labels, raw, config, info, data),
        test_given=info.known.condition(raw.train_known.rows(kept)), identity=None, known_again=0, notes=raw.notes,
        rows=None if base.rows is None else base.rows[: len(base.train)], files=base.files[: len(base.train)],
        log_density=None,
    ), True  # fmt: skip


def _is_own(folder: Path, raw: Raw) -> bool:
    """Return whether data contain most of the rows that a run was trained and tested on."""
    known = kept_identity(folder)
    if known is None:
        return False
    now, _ = identified(raw)
    if known.large or now.large:
        return known.compared(now)[0] == "same"
    return bool(np.isin(known.hashes, now.hashes).mean() > MOST)


def _check_shape(raw: Raw, info: DataInfo, codec: Codec, data: str) -> None:
    """Reject data that do not have the shape of the run's data, and pictures with other levels."""
    shape = tuple(raw.train.shape[1:])
    if shape != info.shape:
        raise DataError(
            f"{data} has shape {shape}, but the run was trained on data with shape {info.shape}, so its samples cannot "
            "be compared with these data; use data of the same shape"
        )
    levels = codec.levels
    if levels is None or raw.kind == "vector":
        return
    for part in np.array_split(raw.train, max(1, raw.train.size >> 22)):
        x = torch.from_numpy(np.ascontiguousarray(part, np.float64))
        if bool((levels.to_data(x) != x).any()):
            raise DataError(
                f"{data} has values from {raw.train.min():g} to {raw.train.max():g}, but the run was trained on "
                f"{info.levels} levels from {info.low:g} to {info.high:g}, so its samples cannot be compared with "
                "these data; use data with the same levels"
            )


def _trained(folder: Path, config: TrainConfig, info: DataInfo) -> Dataset:
    """Return the data of a run, or a data set without rows if they cannot be read."""
    try:
        with silence:  # what has become of them is not the question here
            return data_of(folder, config)
    except DataError as error:
        warnings.warn(
            f"the run's own data cannot be read, so nothing is compared with its training rows: {error}", stacklevel=3
        )
    nothing = torch.empty(0, *info.shape)
    return Dataset(info, Affine(0.0, 1.0), nothing, nothing)


def _warn_of_trained(folder: Path, x: Tensor, trained: Tensor | Stored, data: str) -> None:
    """Warn of rows that equal a training row."""
    known = {(row.double() + 0.0).numpy().tobytes() for piece in pieces(trained) for row in piece}
    count = sum((row.double() + 0.0).numpy().tobytes() in known for row in x)
    if count:
        warnings.warn(
            f"{folder} was trained on {count:,} of the {len(x):,} rows of {data}, or on identical rows", stacklevel=3
        )


def _labels(labels: Array, raw: Raw, config: TrainConfig, info: DataInfo, data: str) -> Tensor | None:
    """Return the indices of the classes among those of the run, or ``None`` if the run does not use other classes."""
    strange = [name for name in raw.classes if name not in info.classes]
    if not strange:
        return torch.tensor([info.classes.index(raw.classes[i]) for i in labels], dtype=torch.int64)
    if not config.sources.label:
        return None
    raise UsageError(
        f"{data} has classes that the run was not trained on: {', '.join(map(one_line, strange[:10]))}; leave them "
        f"out, or rename them to classes of the run: {', '.join(map(one_line, info.classes[:10]))}"
    )
