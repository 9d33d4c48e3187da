"""Read questions to a run from images, from NumPy files and from tables."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.errors import DataError, Problems, UsageError
from ..core.opened import read_bytes, reason
from ..core.text import one_line
from ..data.arrays import load_arrays
from ..data.folders import IMAGE_SUFFIXES, SMALL, pictures_in
from ..data.given import Sources
from ..data.pictures import read_pictures
from ..data.raw import AS_IS, Array, Reading
from ..data.table import LABELS, Sheet, place_columns, read_sheet
from .asked import Questions
from .plausible import warn_of_cells
from .run import Run

__all__ = ["read_arrays", "read_images", "read_table", "size_of"]


def read_images(run: Run, sources: Sources, given: Sequence[Path], shapes: Sequence[tuple[int, ...]]) -> Questions:
    """Read one question from each of the given images, and from each image in the given folders."""
    path = given[0]
    if not shapes:
        raise _no_picture(run, path, sources)
    if all(len(shape) != 3 for shape in shapes):
        raise DataError(
            f"{path} contains image data, but {run.info.name} has {run.info.kind}s of shape {run.info.shape}; use an "
            f".npy file{' or a table' if run.info.kind == 'vector' else ''}",
            parameter="given",
        )
    folder, paths = _files(given)
    expected = " or ".join(dict.fromkeys(map(size_of, shapes)))
    advice = f"resize the files to what the run expects, {expected}, or give the images of each size alone"
    needed = {shape[0] % 2 == 0 for shape in shapes if len(shape) == 3 and shape[0] <= 4}
    alpha = needed.pop() if len(needed) == 1 else None  # None if either kind of picture may fit
    pixels, fault = None, None
    notes: tuple[str, ...] = ()
    try:
        read, _, notes = read_pictures(folder, paths, advice=advice, alpha=alpha)
        pixels, notes = _channels(read, shapes, notes)
    except Problems as error:
        fault = error
    how, reading = "", AS_IS if run.config is None else run.config.reading
    if pixels is None and sources.operator and reading.size:
        pixels, changed = _resized(folder, paths, reading, shapes, alpha)
        notes = notes if pixels is None else changed  # nothing was resized if the images are refused
        how = f", resized to {reading.size} x {reading.size} as in training,"
    if pixels is None:
        if fault is not None:
            raise fault
        found = "".join(f" ({note})" for note in notes)
        raise DataError(
            f"{path if len(given) == 1 else folder}: the image{'s have' if len(paths) > 1 else ' has'} "
            f"{size_of(read.shape[1:])}{found}, but the run expects {expected}; resize or convert "
            f"{'them' if len(paths) > 1 else 'it'}",
            parameter="given",
        )
    top = 65535.0 if pixels.dtype == np.uint16 else 255.0
    low, high = run.info.low, run.info.high
    if sources.image and "image" not in run.needs:  # unless samples drift to them, pictures have a range of their own
        low, high = run.info.known.low, run.info.known.high  # type: ignore[assignment]
    image = torch.from_numpy(pixels.astype(np.float64))
    if (low, high) != (0.0, top):
        image = low + image * ((high - low) / top)
        if run.info.levels and tuple(image.shape[1:]) == run.info.shape and not sources.image:
            width = (high - low) / (run.info.levels - 1)
            image = low + width * ((image - low) / width).round()
    count = f"{len(paths)} images" if len(paths) > 1 else "the image"
    names = [p.relative_to(folder).with_suffix("").as_posix() for p in paths]
    twice = {name for name in names if names.count(name) > 1}
    names = [p.relative_to(folder).as_posix() if n in twice else n for n, p in zip(names, paths, strict=True)]
    where = f"from {len(given)} files or folders" if given[1:] else f"from {path}" if path.is_dir() else str(path)
    what = f"{count} {where}{how} of {_side(image.shape[1:])}" if len(paths) == 1 else (
        f"{count} of {_side(image.shape[1:])} {where}{how}"
    )  # fmt: skip
    if pixels.shape[1] == 3 and bool((pixels == pixels[:, :1]).all()):
        what += ", without colours"
    if how:
        _warn_of_large(run, str(paths[0]) if len(paths) == 1 else f"some of the {count} {where}", shapes)
    text = _texts(paths) if sources.text else ()
    return Questions(
        Condition(image=image), tuple(names), one_line(what), labels=tuple(names), text=text, files=tuple(paths),
        notes=notes,
    )  # fmt: skip


def _warn_of_large(run: Run, what: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """Warn that images were reduced to the size of samples, so that their answers are smaller than they are."""
    whole = _side(run.info.shape)
    small = dict.fromkeys(_side(shape) for shape in shapes if shape[1:] != run.info.shape[1:])
    advice = f"; to have an image enlarged, give it with {' or '.join(small)} pixels" if small else ""
    warnings.warn(
        f"{what} {'are' if what.startswith('some') else 'is'} larger than the samples of "
        f"{run.folder or 'this model'} and reduced to their size, so the answers have {whole} pixels, and not the size "
        f"of the given file{advice}",
        stacklevel=3,
    )


def _no_picture(run: Run, path: Path, sources: Sources) -> UsageError:
    told = [name for name in ("vector", "text") if getattr(sources, name)]
    where = {"vector": "numbers (a table, or an array c)", "text": "a text"}
    return UsageError(
        f"{path} contains image data, but {run.folder or 'this model'} was trained with another condition; pass "
        f"{' and '.join(where[name] for name in told)} instead",
        parameter="given",
    )


def _files(given: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Return the folder to which the names of the given images are relative, and all images, each of them once."""
    if given[1:]:  # without "..", because the answers are named after the images
        given = [Path(os.path.abspath(path)) for path in given]
    found: list[Path] = []
    for path in given:
        inside = pictures_in(path) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} contains no images ({', '.join(IMAGE_SUFFIXES)})", parameter="given")
        found += inside
    if not given[1:]:
        return (given[0] if given[0].is_dir() else given[0].parent), found
    return Path(os.path.commonpath([path if path.is_dir() else path.parent for path in given])), [*dict.fromkeys(found)]


def _texts(paths: Sequence[Path]) -> tuple[str, ...]:
    """Read the .txt file next to each image, or return ``()`` if any is missing."""
    files = [path.with_suffix(".txt") for path in paths]
    if not all(file.is_file() for file in files):
        return ()
    try:
        return tuple(" ".join(read_bytes(file, SMALL).decode("utf-8-sig").split()) for file in files)
    except (OSError, ValueError) as error:
        raise DataError(f"the texts next to the images cannot be read: {reason(error)}", parameter="given") from None


def size_of(shape: Sequence[int]) -> str:
    channels = {1: "grey", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}
    kind = f" in {channels.get(shape[0], f'{shape[0]} channels')}" if len(shape) == 3 else ""
    return f"{_side(shape)} pixels{kind}"


def _side(shape: Sequence[int]) -> str:
    """Format the shape of a picture as width x height, and any other shape as the lengths of its axes."""
    return f"{shape[-1]} x {shape[-2]}" if len(shape) == 3 else " x ".join(map(str, shape))


def _channels(
    pixels: Array, shapes: Sequence[tuple[int, ...]], notes: tuple[str, ...]
) -> tuple[Array | None, tuple[str, ...]]:
    """Return images in grey or in colour, whichever fits one of the shapes, or ``None`` if neither fits.

    The second result are the notes, with a note on images that were converted here.
    """
    shape, count = pixels.shape[1:], f"{len(pixels):,} image{'s' * (len(pixels) > 1)}"
    if shape in shapes:
        return pixels, notes
    alpha = 1 - shape[0] % 2
    colours, rest = pixels[:, : shape[0] - alpha], pixels[:, shape[0] - alpha :]
    if colours.shape[1] == 1 and (3 + alpha, *shape[1:]) in shapes:
        colour = np.concatenate([colours.repeat(3, 1), rest], 1)
        return colour, (*notes, f"{count} in grey, used as colour as the run expects")
    if colours.shape[1] == 3 and bool((colours == colours[:, :1]).all()) and (1 + alpha, *shape[1:]) in shapes:
        grey = np.concatenate([colours[:, :1], rest], 1)
        return grey, (*notes, f"{count} in colour without any colours, used as grey as the run expects")
    return None, notes


def _resized(
    folder: Path, paths: Sequence[Path], reading: Reading, shapes: Sequence[tuple[int, ...]], alpha: bool | None
) -> tuple[Array | None, tuple[str, ...]]:  # fmt: skip
    """Read images and resize them as in training. The pixels are ``None`` if an image is too small or no shape fits.

    The second result are the notes on what was converted.
    """
    pixels, smallest, notes = read_pictures(folder, paths, Reading(size=reading.size, fit=reading.fit), alpha=alpha)
    return _channels(pixels, shapes, notes) if min(smallest) >= reading.size else (None, notes)


def read_arrays(run: Run, sources: Sources, path: Path, shapes: Sequence[tuple[int, ...]]) -> Questions:
    """Read one question from each row of the arrays in a NumPy file."""
    arrays = load_arrays(path)
    lower = {key.lower(): array for key, array in arrays.items()}
    only = next(iter(arrays.values())) if len(arrays) == 1 else None
    condition, truth, told = Condition(), None, []
    text: tuple[str, ...] = ()
    if shapes:
        image = _first(_arranged(a, s) for a in (lower.get("given"), lower.get("x"), only) for s in shapes)
        if image is None:
            raise _misses(
                run, path, arrays, f"an array 'given' or 'x' with rows of shape {' or '.join(map(str, shapes))}"
            )
        condition = replace(condition, image=_finite(path, image))
        told.append(f"shape {_side(image.shape[1:])}")
    if sources.vector:
        count = len(run.info.known.vector)
        vector = _first(_arranged(a, (count,)) for a in (lower.get("c"), None if shapes else lower.get("x"), only))
        if vector is None:
            names = ", ".join(run.info.known.vector[:10])
            raise _misses(run, path, arrays, f"an array c of shape (n, {count}) with the numbers {names}")
        condition = replace(condition, vector=_finite(path, vector))
        told.append(f"{count} number{'s' * (count > 1)}")
    if sources.label and "y" in lower:
        label = [run.class_index(str(v)) for v in lower["y"].reshape(-1).tolist()]
        condition = replace(condition, label=torch.tensor(label))
    if sources.text and "text" in lower:
        words = lower["text"]
        if words.dtype.kind == "U":
            text = tuple(map(str, words.reshape(-1)))
        else:
            condition = replace(condition, tokens=torch.from_numpy(words.astype(np.float32)))
    if not sources.operator and "x" in lower and only is None:
        x = _arranged(lower["x"], run.info.shape)
        truth = None if x is None else torch.from_numpy(x.astype(np.float64))
    n = max(len(condition), len(text))
    if truth is not None and len(truth) != n:
        truth = None
    labels: tuple[str, ...] = text
    if condition.vector is not None and len(run.info.known.vector) <= 4:
        labels = tuple(
            ", ".join(f"{name} {value:.3g}" for name, value in zip(run.info.known.vector, row, strict=True))
            for row in condition.vector.expand(n, -1).tolist()
        )
    return Questions(
        condition, tuple(f"{path.stem}-{i}" if n > 1 else path.stem for i in range(n)),
        one_line(f"{n:,} row{'s' * (n > 1)} of {' and '.join(told) or 'texts'} from {path}"), labels, truth, text,
    )  # fmt: skip


def _first(found: Iterable[Array | None]) -> Array | None:
    return next((array for array in found if array is not None), None)


def _misses(run: Run, path: Path, arrays: dict[str, Array], needed: str) -> DataError:
    held = ", ".join(f"{one_line(name)} {array.shape}" for name, array in arrays.items()) or "nothing"
    return DataError(f"{path} contains {held}, but {run.folder or 'this model'} needs {needed}", parameter="given")


def _arranged(x: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Rearrange an array to the shape ``(N, *shape)``, or return ``None`` if it does not fit.

    The axis of a single row or a single channel may be missing, and channels may come last.
    """
    if x is None or x.dtype.kind not in "biuf":
        return None
    if x.shape[1:] == shape and x.ndim:
        return x
    if x.shape == shape:
        return x[None]
    if shape[0] == 1 and x.ndim and x.shape[1:] == shape[1:]:
        return x[:, None]
    if shape[0] == 1 and x.shape == shape[1:]:
        return x[None, None]
    if len(shape) > 1 and x.ndim == len(shape) + 1 and (x.shape[-1], *x.shape[1:-1]) == shape:
        return np.moveaxis(x, -1, 1)
    if len(shape) > 1 and x.ndim == len(shape) and (x.shape[-1], *x.shape[:-1]) == shape:
        return np.moveaxis(x, -1, 0)[None]
    return None


def _finite(path: Path, values: Array) -> Tensor:
    """Check that no value is infinite, and return the values as float64."""
    found = torch.from_numpy(np.ascontiguousarray(values, np.float64))
    if bool(found.isinf().any()):
        raise DataError(
            f"{path} has infinite values; replace them, or write NaN for values that are unknown", parameter="given"
        )
    return found


def read_table(run: Run, sources: Sources, path: Path) -> Questions:
    """Read one question from each line of a table."""
    sheet, info, told = read_sheet(path), run.info, []
    if info.kind != "vector" and not sources.vector:
        raise DataError(
            f"{path} is a table, but {info.name} has {info.kind}s of shape {info.shape}; use an image or an .npy file",
            parameter="given",
        )
    condition, truth, labels = Condition(), None, []
    others = _columns_of(sheet, sources, run) if sources.vector else []
    places = _places(sheet, run, others)
    if sources.operator:
        missing = [name for name, place in zip(_data_names(run), places, strict=True) if place is None]
        if missing:
            raise DataError(
                f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(one_line, missing[:10]))}; "
                + _remedy(sheet, missing),
                parameter="given",
            )
        condition = replace(condition, image=torch.from_numpy(sheet.numbers(p for p in places if p is not None)))
    elif None not in places:
        x = sheet.numbers(p for p in places if p is not None)
        truth = None if np.isnan(x).any() else torch.from_numpy(x)
    if sources.vector:
        condition = replace(condition, vector=torch.from_numpy(sheet.numbers(others)))
        names = [sheet.names[place] for place in others]
        told = [name for name in names if name]
        labels = [
            ", ".join(f"{n} {row[p].strip() or '?'}".strip() for n, p in zip(names, others, strict=True))
            for row in sheet.rows
        ]
    if sources.label:
        used = {*others, *(p for p in places if p is not None)}
        place = next((i for i, n in enumerate(sheet.names) if n.lower() in LABELS and i not in used), None)
        if place is not None:
            cells, gaps = sheet.column(place), sheet.empty(place)
            index = [len(info.classes) if gap else run.class_index(c) for c, gap in zip(cells, gaps, strict=True)]
            condition, told = replace(condition, label=torch.tensor(index)), [*told, sheet.names[place]]
    _warn_of_far(run, sheet, condition)
    n = len(sheet.rows)
    about = f" (known: {', '.join(map(one_line, told[:10]))})" if told else ""
    what = f"{n:,} row{'s' * (n > 1)} of {path}{about}"
    names_of = tuple(f"{path.name.partition('.')[0]}-{i}" for i in range(n))
    return Questions(condition, names_of, one_line(what), tuple(labels), truth, (), sheet, tuple(places))


def _warn_of_far(run: Run, sheet: Sheet, condition: Condition) -> None:
    """Warn of cells far from the training data, named by their lines in the file."""
    x, vector, info = condition.image, condition.vector, run.info
    file: dict[str, Any] = {"lines": sheet.lines, "source": str(sheet.path)}
    if x is not None:
        warn_of_cells(x, run.codec.continuous.to_model(x), info.names, **file)
    if vector is not None:
        model = info.known.to_model(Condition(vector=vector)).vector
        assert model is not None
        warn_of_cells(vector, model, info.known.vector, **file)


def _remedy(sheet: Sheet, missing: Sequence[str]) -> str:
    """Return advice on how to add the columns that a table lacks."""
    if not any(sheet.names):
        return "the table has no line with the names of its columns, so add one at the top"
    other = {name.strip().lower(): name for name in sheet.names}
    alike = {name: other[name.lower()] for name in missing if name.lower() in other}
    if alike:
        return "rename " + ", ".join(f"{one_line(old)} to {one_line(new)}" for new, old in alike.items())
    return f"add {'them' if missing[1:] else 'it'} with empty cells, which will be filled"


def _data_names(run: Run) -> tuple[str, ...]:
    return run.info.names or tuple(f"x{i}" for i in range(run.info.dims))


def _columns_of(sheet: Sheet, sources: Sources, run: Run) -> list[int]:
    """Return the indices of the columns that contain the numbers of the condition."""
    wanted, count = run.info.known.vector, len(run.info.known.vector)
    if all(name in sheet.names for name in wanted):
        return [sheet.names.index(name) for name in wanted]
    if not sources.columns and len(sheet.names) == count:  # numbers without names in training
        return list(range(count))
    lacking = [name for name in wanted if name not in sheet.names]
    raise DataError(
        f"{sheet.path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(map(one_line, lacking[:10]))}, which the "
        f"run needs; add {'them' if lacking[1:] else 'it'}, or rename columns (column names in the table: "
        f"{', '.join(filter(None, map(one_line, sheet.names[:20]))) or 'there are none'})",
        parameter="given",
    )


def _places(sheet: Sheet, run: Run, taken: Sequence[int]) -> list[int | None]:
    """Return the column index of each value of a sample, or ``None`` for a value without a column."""
    names = _data_names(run)
    if run.info.kind != "vector":
        return []
    unnamed = not run.info.names and not set(names) & set(sheet.names)
    return place_columns([""] * len(sheet.names) if unnamed else sheet.names, names, taken)
