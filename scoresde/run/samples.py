"""Write samples to files, along with a picture and the sampling settings, and read samples from files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from itertools import compress
from operator import not_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..core.errors import DataError, UsageError
from ..core.files import check_kinds, write_arrays, write_csv, write_json
from ..core.opened import reason
from ..core.optional import optional
from ..data import DataInfo, Dataset
from ..data.arrays import load_arrays, roles
from ..data.readers import read_path
from ..data.table import is_table, read_table
from .plausible import Units, in_data_units
from .questions import Asked, Questions, write_filled
from .run import Samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "kinds_of", "read_samples", "write_samples"]

KINDS = ("png", "files", "npz", "csv", "gif", "path")
SIGNIFICANT = 6  # significant digits of numbers in a filled table, unless its cells have more
DECIMALS = 400  # more decimals than any number has
STEPS = 30  # least number of steps in the standard deviation of a column, so that rounding does not matter
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def kinds_of(info: DataInfo, kinds: Sequence[str] | None = None) -> Sequence[str]:
    """Check and return the kinds of files to write for samples, or return the default kinds if ``kinds`` is ``None``.

    Raises:
        UsageError: If a kind is unknown, or does not suit the data: ``csv`` is for tables, and ``files`` is for
            images.
    """
    if kinds is None:
        return ("png", "npz", "csv") if info.kind == "vector" and info.names else ("png", "npz")
    if "csv" in check_kinds(kinds, KINDS) and info.kind != "vector":
        raise UsageError(
            f"'csv' is only for tables, but {info.name} has {info.kind}s of shape {info.shape}; use 'npz'",
            parameter="save",
        )
    if "files" in kinds and (info.kind != "image" or info.shape[0] > 4):
        raise UsageError(
            f"'files' is only for images with 1 to 4 channels, but {info.name} has {info.kind}s of shape {info.shape}; "
            "use 'npz'",
            parameter="save",
        )
    return kinds


def write_samples(
    folder: Path,
    samples: Samples,
    info: DataInfo,
    made: Mapping[str, Any],
    kinds: Sequence[str] | None = None,
    frames: tuple[Tensor, Tensor] | Callable[[], tuple[Tensor, Tensor]] | None = None,
    reference: Tensor | Callable[[], Tensor | None] | None = None,
    codec: Codec | None = None,
    asked: Asked | None = None,
) -> list[Path]:
    """Write samples in data units to files. Samples that failed are left out.

    The samples are written before any picture is drawn. A picture that cannot be drawn causes a warning instead of an
    error.

    For samples that answer questions (:mod:`scoresde.run.questions`), the array ``given`` contains the index of each
    sample's question, and ``answer`` its number among all answers to this question. ``filled.csv`` is the table of the
    questions with its empty cells filled, ``answers.png`` shows each question next to its answers, and the image files
    are named after the questions and the numbers of the answers.

    Args:
        folder: The folder to write to.
        samples: The samples. Their field ``x`` has shape ``(n, *event)``.
        info: The description of the data.
        made: The settings that produced the samples, as plain JSON values, for ``samples.json``.
        kinds: A selection of ``png`` (a grid of images, or a figure), ``files`` (a folder with one PNG per image, named
            after the sample's index), ``npz`` (the samples as array ``x``, their indices as array ``index``, and for
            padded rows the array ``mask``), ``csv`` (a table with named columns), ``gif`` (an animation of the
            sampling) and ``path`` (the states of the samples during sampling, as arrays ``t`` and ``x``). The default
            is ``png`` and ``npz``, and also ``csv`` if the data have named columns.
        frames: Times ``(F,)`` and states ``(F, n, *event)`` for ``gif`` and ``path`` (see
            :meth:`scoresde.run.run.Run.frames`), or a function that computes them after the samples are written.
        reference: Data ``(m, *event)`` to draw with the samples, if these are points, tables or signals. A function
            that returns the data or ``None`` is also accepted.
        codec: The codec of the run, which determines which columns may be written as integers.
        asked: The questions that the samples answer, or ``None``.

    Returns:
        The paths of the written files, with pictures first.
    """
    kinds = kinds_of(info, kinds)
    ok = samples.solution.ok.cpu()
    x = samples.x[ok]
    # Values known from a question are kept exactly, even if they are not levels.
    whole = samples.residual is None or bool((x == x.round()).all())
    if info.levels is not None and info.low >= 0 and info.high <= 255 and whole:
        x = x.to(torch.uint8)
    files, pictures = [], []
    index = ok.nonzero().flatten().numpy()
    first = 0 if asked is not None else int(made.get("start", 0))
    if "npz" in kinds:
        arrays = {"x": x.numpy(), "index": first + index}
        arrays |= {} if asked is None else {"given": index // asked.each, "answer": asked.start + index % asked.each}
        arrays |= {} if samples.mask is None else {"mask": samples.mask[ok].numpy()}
        files.append(write_arrays(folder / "samples.npz", arrays))
    if "csv" in kinds:
        names = info.names or tuple(f"x{i}" for i in range(x.shape[1]))
        if asked is not None and asked.questions.table is not None:
            filled, lines = folder / "filled.csv", _lines(x, codec, asked.questions)
            files.append(
                write_filled(filled, asked.questions, lines, index, asked.each, asked.cells, names, asked.start)
            )
        else:
            files.append(write_csv(folder / "samples.csv", names, _lines(x, codec)))
    write_json(folder / "samples.json", dict(made))
    kept = f"the samples are in {files[0]}" if files else ""
    if not len(x):
        return files
    if "png" in kinds and asked is not None:
        path = folder / "answers.png"
        with optional(str(path), kept):
            from ..plot import save_figure

            save_figure(path, _answers(samples, info, asked))
            pictures.append(path)
    elif "png" in kinds:
        path = folder / ("grid.png" if info.kind in ("image", "volume") else "samples.png")
        with optional(str(path), kept):
            from ..plot import samples_figure, save_figure, save_image_grid

            if info.kind in ("image", "volume"):
                save_image_grid(path, x.numpy(), info.low, info.high)
            else:
                behind = reference() if callable(reference) else reference
                save_figure(path, samples_figure(x, info.kind, info.low, info.high, behind, info.names))
            pictures.append(path)
    if "files" in kinds:
        with optional(str(folder / "files"), kept):
            from ..plot import save_images

            titles = [f"{first + i:06d}.png" for i in index]
            if asked is not None:
                titles = [f"{asked.questions.names[i // asked.each]}-{asked.number(i)}.png" for i in index]
            pictures.append(save_images(folder / "files", x.numpy(), titles, info.low, info.high))
    if frames is not None and {"gif", "path"} & set(kinds):
        with optional("the trajectory of the samples", kept):
            times, states = frames() if callable(frames) else frames
            states = states[:, ok] if info.wide else states[:, ok].float()
            if "path" in kinds:
                arrays = {"t": times.numpy(), "x": states.numpy(), "index": first + index}
                files.append(write_arrays(folder / "path.npz", arrays))
            if "gif" in kinds:
                from ..plot import animate, save_gif

                path = folder / "samples.gif"
                save_gif(path, animate(states, info.kind, info.low, info.high, info.names))
                pictures.append(path)
    return [*pictures, *files]


def _answers(samples: Samples, info: DataInfo, asked: Asked) -> Figure:
    from ..plot import answers_figure

    ok, n = samples.solution.ok.cpu(), len(asked.questions)
    x = samples.x.double()
    x[~ok] = torch.nan
    return answers_figure(
        x.reshape(n, asked.each, *x.shape[1:]), info.kind, info.low, info.high, given=asked.given, truth=asked.truth,
        labels=asked.questions.labels, title=asked.title, names=info.names, start=asked.start,
    )  # fmt: skip


def _lines(x: Tensor, codec: Codec | None, questions: Questions | None = None) -> Iterable[tuple[str, ...]]:
    """Return the rows of a table as text, without decimals in integer columns.

    Every digit is written, unless the rows fill the table in ``questions``: there, the cells determine the precision.
    """
    values = x.numpy()
    whole = ((values == np.rint(values)) & np.isfinite(values)).all(0)
    if codec is not None and values.dtype.kind == "f":
        levels = codec.levels
        counts = 0 if levels is None else getattr(levels, "count", 1)
        whole &= np.broadcast_to(np.asarray(counts) > 0, whole.shape)
    forms: Sequence[Callable[[np.floating], str]] = [_shortest] * values.shape[1]
    if questions is not None and questions.table is not None:
        sheet, spread = questions.table, _spread(values, codec)
        cells = [
            () if p is None else tuple(compress(sheet.column(p), map(not_, sheet.empty(p)))) for p in questions.places
        ]
        forms = [partial(_as_typed, *precision(typed), float(std)) for typed, std in zip(cells, spread, strict=True)]
    columns = [
        [str(v) for v in column.astype(np.int64)] if is_whole else [form(v) for v in column]
        for column, is_whole, form in zip(values.T, whole, forms, strict=True)
    ]
    return zip(*columns, strict=True)


def _spread(values: np.ndarray, codec: Codec | None) -> np.ndarray:
    """Return the standard deviation of each column of the training data or, if it is unknown, of the values."""
    scale = None if codec is None else getattr(codec.continuous, "scale", None)
    if isinstance(scale, Tensor):
        return np.broadcast_to(scale.cpu().double().numpy().reshape(-1), values.shape[1:])
    return np.asarray(values.astype(np.float64).std(0))


def precision(cells: Sequence[str]) -> tuple[int, int]:
    """Return the most decimals and the most significant digits that a number in ``cells`` is written with.

    The number of significant digits is at least 6. If there are no cells, the number of decimals is not limited.

    >>> precision(["21.3", "1.25e-1", "7"]), precision([])
    ((3, 6), (400, 6))
    """
    parts = [Decimal(cell).as_tuple() for cell in cells]
    decimals = max((-int(part.exponent) for part in parts), default=DECIMALS)
    return max(decimals, 0), max(SIGNIFICANT, *(len(part.digits) for part in parts)) if parts else SIGNIFICANT


def _as_typed(decimals: int, significant: int, spread: float, value: np.floating) -> str:
    """Format a value with a precision, but with steps that are small compared with the ``spread`` of the column."""
    number = float(value)
    if not math.isfinite(number) or number == 0:
        return _shortest(value)
    places = min(decimals, significant - 1 - math.floor(math.log10(abs(number))))
    least = math.ceil(math.log10(STEPS / spread)) if spread > 0 and math.isfinite(spread) else 0
    number = round(number, max(0, least, places)) + 0.0  # without the sign of -0.0
    return str(int(number)) if max(least, places) <= 0 and abs(number) < 1e16 else _shortest(np.float64(number))


def _shortest(value: np.floating) -> str:
    """Format a value with the fewest digits that identify it at its precision."""
    if 1e-4 <= abs(value) < 1e16:
        return np.format_float_positional(value, trim="0")
    return str(value)


def read_samples(path: Path, data: Dataset, units: Units = "auto") -> Tensor:
    """Read samples from a file written by this or another program, and convert them to data units.

    Args:
        path: An ``.npz`` or ``.npy`` file, a table, or a folder of images. In an ``.npz`` file, the array of samples is
            called ``x``, as written by ``scoresde sample``, or has a name that other programs use, such as ``arr_0``
            or ``samples``. Channels may be first or last.
        data: The data that the samples are compared with.
        units: The units of the samples (see :func:`scoresde.run.plausible.in_data_units`).

    Returns:
        Samples, shape ``(N, *event)``. If the data have levels, all values are levels.

    Raises:
        DataError: If the file does not contain samples, or its samples do not match the data.
    """
    x = in_data_units(_array(path, data.info), data, units, str(path))
    return x if data.info.wide or not x.is_floating_point() else x.float()  # dtype of the data


def _array(path: Path, info: DataInfo) -> Tensor:
    """Read samples in the shape of the data, and check that they are finite real numbers."""
    try:
        if path.suffix.lower() in PICKLES:
            raise DataError(
                f"{path} is a pickle, which can run code when loaded and is therefore rejected; save the samples with "
                "np.savez, as an array called x"
            )
        if path.is_dir():
            found = read_path(path)
            x = found.train if found.test is None else np.concatenate([found.train, found.test])
        elif is_table(path):
            x = _columns(path, info)
        else:
            arrays = load_arrays(path)
            chosen = roles(path, arrays)
            if "x_test" in chosen:
                raise DataError(
                    f"{path}: {chosen['x']} and {chosen['x_test']} are parts of a data set, not samples; save the "
                    "samples as an array called x"
                )
            x = arrays[chosen["x"]]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path} has samples of dtype {x.dtype}, but samples must be real numbers")
    x = _arranged(path, x, info)
    bad = ~np.isfinite(x).reshape(len(x), -1).all(1) if x.size else np.zeros(0, bool)
    if bad.any():
        raise DataError(
            f"{path}: NaN or infinite values in {int(bad.sum()):,} of {len(x):,} samples (the first at index "
            f"{int(bad.argmax())}); remove these samples"
        )
    return torch.from_numpy(np.ascontiguousarray(x))


def _arranged(path: Path, x: np.ndarray, info: DataInfo) -> np.ndarray:
    """Move or add the channel axis so that an array fits the shape of the data."""
    event = info.shape
    if x.shape[1:] == event and x.ndim:
        return x
    if event[0] == 1 and x.ndim and x.shape[1:] == event[1:]:
        return x[:, None]
    if len(event) > 1 and x.ndim == len(event) + 1 and (x.shape[-1], *x.shape[1:-1]) == event:
        return np.moveaxis(x, -1, 1)
    last = f" or, with channels last, {(*event[1:], event[0])}" if len(event) > 1 else ""
    raise DataError(f"{path} has samples of shape {x.shape[1:]}, but those of {info.name} have shape {event}{last}")


def _columns(path: Path, info: DataInfo) -> np.ndarray:
    """Read a table, and return its columns in the order of the data."""
    if info.kind != "vector":
        raise DataError(
            f"{path} is a table, but {info.name} has {info.kind}s of shape {info.shape}; save the samples as npz"
        )
    names = info.names or tuple(f"x{i}" for i in range(info.dims))
    found = read_table(path, keep=names)
    if found.names and (info.names or set(found.names) == set(names)):
        missing = [name for name in names if name not in found.names]
        others = [name for name in found.names if name not in names]
        if missing or others:
            told = [f"lacks the column{'s' * (len(missing) > 1)} {', '.join(missing[:5])}"] if missing else []
            told += [f"has the extra column{'s' * (len(others) > 1)} {', '.join(others[:5])}"] if others else []
            raise DataError(f"{path} {' and '.join(told)}; the columns of {info.name} are {', '.join(names[:20])}")
        return found.train[:, [found.names.index(name) for name in names]]
    return found.train
