"""Find the data of a run again, and compare them with the data that the run was trained on.

A run stores a hash of each row (:class:`scoresde.data.content.Identity`) in ``rows.npz``. When the data are read again,
the hashes show whether the data are unchanged, re-sorted, grown, shrunk, or different. The first three cases are
accepted, because the content of a row decides whether it is a training or a test row. The last two are rejected. If the
run was trained with conditions, data whose conditions have changed are rejected as well. The data of an older run,
which has no hashes, are compared with the description in ``data.json`` (row counts, range, levels, classes and so on).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.errors import Advice, DataError, Problems
from ..core.files import read_object, write_arrays
from ..core.opened import read_arrays, reason
from ..data import NAMES, DataInfo, Dataset, Reading, load_data
from ..data.content import Identity
from ..data.dataset import ARRAY, there
from .config import TrainConfig

__all__ = [
    "FILE", "UNITS", "became", "beside", "data_of", "found", "keep_identity", "kept_identity", "placed", "read_again",
    "reading_of",
]  # fmt: skip

FILE = "rows.npz"
# These properties of the data must not change when a run is resumed, even if rows are added.
UNITS = ("kind", "shape", "levels", "classes", "names")


def placed(config: TrainConfig) -> TrainConfig:
    """Return a copy of the configuration in which the path of the data, if there is one, is absolute."""
    path = os.path.expanduser(config.data)
    if config.data in NAMES or not os.path.exists(path):
        return config
    return replace(config, data=os.path.realpath(path))


def found(folder: Path, config: TrainConfig) -> str:
    """Return the name or the current path of a run's data.

    The data are looked up first at their original path, and then at the path that was stored relative to the run
    folder, in case the data and the run folder were moved together. If the original path is relative, as in older runs,
    the data are finally looked up relative to each folder above the run folder.
    """
    data = config.data
    if data in NAMES or os.path.exists(os.path.expanduser(data)):
        return data
    beside = read_object(folder / "config.json").get("data_beside")
    places = [folder / beside] if isinstance(beside, str) else []
    if not Path(data).is_absolute():
        places += [above / data for above in folder.resolve().parents]
    return next((str(place) for place in places if os.path.exists(place)), data)


def beside(folder: Path, config: TrainConfig) -> str | None:
    """Return the path of the data relative to the run folder, or ``None`` if there is no such path."""
    if config.data in NAMES or not os.path.exists(config.data):
        return None
    try:
        return os.path.relpath(os.path.realpath(config.data), os.path.realpath(folder))
    except ValueError:  # on another drive
        return None


def keep_identity(folder: Path, data: Dataset, conditions: bool = False) -> None:
    """Write the identity of the data (the hashes of their rows), merged with any identity from earlier training.

    Nothing is written for data that are not split by content, because they have no identity.

    Args:
        folder: The run folder.
        data: The data.
        conditions: Whether the run is trained with the conditions of the data. If so, hashes that include the
            conditions are kept as well.
    """
    before, known = kept_identity(folder), data.identity
    if known is None:
        return
    if not conditions:
        known = replace(known, told=None)
    known = known if before is None else before.joined(known)
    if known is not before:
        arrays = {"hashes": known.hashes, "order": np.uint64(known.order), "large": np.bool_(known.large)}
        if known.told is not None:
            arrays["told"] = known.told
        write_arrays(folder / FILE, arrays)


def kept_identity(folder: Path) -> Identity | None:
    """Read the identity that :func:`keep_identity` wrote, or return ``None`` if there is none."""
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    try:
        file = read_arrays(path)
        conditions = file["told"].astype(np.uint64) if "told" in file else None
        return Identity(file["hashes"].astype(np.uint64), int(file["order"]), bool(file["large"]), conditions)
    except Exception as error:  # a damaged file can raise almost anything
        raise DataError(
            f"{path} cannot be read: {reason(error)}; restore the file, or remove it to continue without it"
        ) from None


def data_of(folder: Path, config: TrainConfig, data: str | None = None, *, changed: bool = False) -> Dataset:
    """Load the data of a run, or other data, split them as in training, and compare them with the training data.

    Args:
        folder: The run folder.
        config: The configuration of the run.
        data: The name or path of other data, or ``None`` for the run's own data.
        changed: Whether to accept the run's data even if they have changed.

    Raises:
        DataError: If the data are missing or unreadable, or if the run's own data have lost or changed rows since
            training and ``changed`` is false.
    """
    dataset = read_again(folder, config, data)
    became(folder, dataset, changed=changed, named=data is not None)
    return dataset


def read_again(folder: Path, config: TrainConfig, data: str | None = None) -> Dataset:
    """Read the data of a run, or other data, with the run's settings. Changes since training are not reported.

    ``data`` is the name or the path of other data. Conditions are encoded as in training: the words of a text are
    numbered according to the run's vocabulary.

    A run without hashes may be older than the current rules for detecting axes and finding pictures. If these rules do
    not reproduce the shape and the numbers of rows that the run recorded, the older rules are used instead.
    """
    known = DataInfo.from_dict(read_object(folder / "data.json"))
    try:
        return _read_again(folder, config, data, known).told_as(known.known)
    except DataError as error:
        if data is None or error.parameter != "test_fraction":
            raise
        # The fraction is a setting of the run, which cannot be changed for other data.
        raise DataError(
            f"{str(error).partition(';')[0]}; the rows of {data} are divided as in training, so add rows, or divide "
            "them into a training and a test part yourself"
        ) from None


def _read_again(folder: Path, config: TrainConfig, data: str | None, known: DataInfo) -> Dataset:
    source = data or found(folder, config)
    if data is None and source not in NAMES and not there(Path(source)):
        if source == ARRAY:
            raise DataError(
                f"{folder} was trained on an array, which is not stored with the run; save the array as an .npy file "
                "and pass its path, or, to resume training in Python, pass the array again",
                parameter="data",
            )
        raise DataError(
            f"the data of {folder} are missing: {source} does not exist, and they are not in the same place "
            "relative to the run folder either; pass their current path",
            parameter="data",
        )
    reading = reading_of(config, known) if data is not None else config.reading
    if (folder / FILE).is_file() or source in NAMES:
        return load_data(source, config.seed, config.test_fraction, reading=reading, split=config.split)
    layout = config.layout if config.layout != "auto" else "last" if known.channels_last else "first"
    older = replace(reading, layout=layout, older=True)
    try:
        dataset = load_data(source, config.seed, config.test_fraction, reading=reading, split=config.split)
        now = dataset.info
        if (now.shape, now.n_train, now.n_test) == (known.shape, known.n_train, known.n_test) or data is not None:
            return dataset
    except DataError as error:
        if error.parameter != "layout" and not isinstance(error, Problems):
            raise
    return load_data(source, config.seed, config.test_fraction, reading=older, split=config.split)


def reading_of(config: TrainConfig, known: DataInfo) -> Reading:
    """Return the settings for reading other data than those of a run, whose columns are found by their names.

    Args:
        config: The configuration of the run.
        known: The description of the data of the run.
    """
    return replace(config.reading, only=known.names)


def became(folder: Path, data: Dataset, *, changed: bool = False, named: bool = False) -> str:
    """Compare ``data`` with the data that a run was trained on, and report differences as a warning or an error.

    Args:
        folder: The run folder.
        data: The current data.
        changed: Whether to warn instead of raising an error.
        named: Whether these data were chosen explicitly. If so, differences cause at most a warning.

    Returns:
        The result of the comparison: ``same``, ``re-sorted`` (the same rows in another order), ``grown`` (rows were
        added), ``shrunk`` (rows are missing) or ``other``. For a run without hashes, the result is ``same`` or
        ``other``, or ``unknown`` if the data were chosen explicitly.

    Raises:
        DataError: If rows are missing or the data are different, unless ``changed`` or ``named`` is true.
    """
    known, info = kept_identity(folder), DataInfo.from_dict(read_object(folder / "data.json"))
    if known is None:
        return _by_description(folder, info, data.info, changed=changed, named=named)
    if data.identity is None:  # built-in data, chosen in place of the run's data
        state, new, missing = "other", 0, 0
    else:
        some = known.without_empty(info.shape, info.classes)  # rows without values are no longer samples
        state, new, missing = some.compared(data.identity)
        state = "same" if state == "re-sorted" and some is not known else state
    split = "rows are split by their content, so the rows that were held out in training are still held out"
    told = {
        "re-sorted": f"the order of the data of {folder} has changed since training; {split}",
        "grown": f"the data of {folder} have grown by {new:,} row{'s' * (new != 1)} since training; {split}",
    }
    retold = 0 if data.identity is None or named else known.retold(data.identity)
    if retold and state in ("same", *told):
        _refuse(
            f"{data.info.source} has changed since {folder} was trained on it: the conditions of "
            f"{retold:,} of the {len(known.hashes):,} rows are different",
            changed,
        )
    if state in told:
        warnings.warn(told[state], stacklevel=3)
    elif state != "same" and not named:
        gone = f"{missing:,} of the {len(known.hashes):,} rows used for training and testing can no longer be found"
        what = gone if state == "shrunk" else "the data are different" if known.large or not missing else (
            f"{gone}, and there {'is' if new == 1 else 'are'} {new:,} new row{'s' * (new != 1)}"
        )  # fmt: skip
        _refuse(f"{data.info.source} has changed since {folder} was trained on it: {what}", changed)
    elif state == "shrunk" or (state == "other" and 0 < missing < len(known.hashes) / 2):
        more = f" and contain {new:,} new row{'s' * (new != 1)}" if new else ""
        warnings.warn(
            f"these data lack {missing:,} of the rows of the run {folder}{more}; {split}",
            stacklevel=3,
        )
    return state


def _by_description(folder: Path, known: DataInfo, now: DataInfo, *, changed: bool, named: bool) -> str:
    """Compare the current description of the data, ``now``, with the one from training, ``known``."""
    if named:
        return "unknown"
    for name in ("n_train", "n_test", "low", "high", *UNITS):
        was, today = (np.float32(v) if isinstance(v := getattr(i, name), float) else v for i in (known, now))
        if was != today:
            _refuse(
                f"{now.source} has changed since {folder} was trained on it ({name} was {was} and is now {today}), and "
                "the run has no rows.npz to identify its rows, so rows used for training may count as held out",
                changed,
            )
            return "other"
    return "same"


def _refuse(told: str, changed: bool) -> None:
    if not changed:
        advice = "Restore the data, or accept the change with changed_data"
        raise DataError(f"{told}. {advice}", parameter="changed_data")
    warnings.warn(Advice(f"{told}. The data are used as they are"), stacklevel=4)
