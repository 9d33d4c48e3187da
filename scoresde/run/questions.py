"""Read questions from files. A question is a condition, in data units, on the samples to be drawn.

The samples that a run draws for a question are called its answers. A file or folder contains one or more questions:

    =======================  ==========================================================================================
    an image or a folder     one question for each image; a .txt file next to it has the text, if the run uses texts
    an .npy or .npz file     one question for each row of the arrays `given` (or `x`), `c`, `y` and `text`
    a table                  one question for each row; columns contain the numbers, the class, or cells to be filled
    =======================  ==========================================================================================

What is read depends on the condition that the run was trained with (``cond``). An array with the shape of a measurement
is used as a measurement. An array with the shape of a sample is used as the true sample, and the operator of the run
degrades it (:mod:`scoresde.run.seen`). The pixel values of an image file are mapped to the range of the data. If the
run was trained with images as a condition, they are mapped to the range of those images instead.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.errors import DataError, Problems, ScoresdeError, UsageError
from ..core.files import write_csv
from ..core.opened import read_bytes, reason
from ..core.text import one_line
from ..data import DataInfo
from ..data.arrays import load_arrays
from ..data.folders import IMAGE_SUFFIXES, pictures_in
from ..data.given import Sources
from ..data.pictures import TEXT, mask_from_file, read_pictures
from ..data.raw import AS_IS, Array, Reading
from ..data.table import LABELS, Sheet, is_table, place_columns, read_sheet
from ..guidance.measured import check_linear
from ..operators import Crop, Mask, Masking, Operator, choices, parse
from .plausible import FarCells, warn_of_cells
from .run import Run
from .seen import Seen

__all__ = ["Asked", "Questions", "ask", "read_questions", "read_samples", "understanding", "write_filled"]


@dataclass(frozen=True, eq=False)
class Questions:
    """The conditions on the samples to be drawn.

    Attributes:
        condition: The conditions, in data units, with one row for each question.
        names: The name of each question: the path of the image without its suffix, or the name of the file and the
            index of the row.
        what: A noun phrase that says what was read, such as "3 images of 14 x 14 from low".
        labels: A short text for each question, for figures, or an empty tuple.
        truth: The true samples, ``(n, *event)``, with one row for each question, or ``None`` if they are unknown or are
            part of the condition.
        text: The text of each question, or an empty tuple.
        table: The table that the questions were read from, or ``None``.
        places: For each value of a sample, the index of its column in the table, or ``None`` if the value has no
            column.
        files: The files that were read.
        notes: What was converted while reading, one sentence each.
    """

    condition: Condition
    names: tuple[str, ...]
    what: str
    labels: tuple[str, ...] = ()
    truth: Tensor | None = None
    text: tuple[str, ...] = ()
    table: Sheet | None = None
    places: tuple[int | None, ...] = field(default=(), repr=False)
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def ask(
    run: Run, questions: Questions | None, *, text: Sequence[str] = (), label: str | None = None,
    operator: str | None = None, each: int = 1, seed: int = 0,
) -> Run:  # fmt: skip
    """Return the run with the given questions, texts and class as its condition.

    Args:
        run: The run.
        questions: The questions that were read from a file, or ``None``.
        text: One text for all questions, or one text for each question.
        label: The class of all samples.
        operator: The operator with which to measure samples, instead of the run's operator.
        each: Number of samples for each question.
        seed: Seed for operators that draw random numbers.

    Raises:
        UsageError: If the run needs a part of the condition that is missing, or cannot use a part that was passed.
    """
    if questions is None and not text:
        return run.given(label)
    known = Condition() if questions is None else questions.condition
    texts = [*text] or ([] if questions is None else [*questions.text])
    if questions is not None and len(texts) not in (0, 1, len(questions)):
        raise UsageError(
            f"the number of texts is {len(texts)}, but the number of questions is {len(questions)}; pass one text for "
            "all questions, or one for each question",
            parameter="text",
        )
    if label is not None:
        if known.label is not None:
            raise UsageError(
                f"the class is given twice, as {label!r} and in {questions.what if questions else 'the condition'}; "
                "leave out one of them",
                parameter="label",
            )
        if not run.info.classes:
            return run.given(label)  # raises the error
        known = replace(known, label=torch.tensor([run.class_index(label)]))
    with named_by_line(questions):
        return run.given(known, text=texts or None, operator=operator, each=each, seed=seed)


@contextmanager
def named_by_line(questions: Questions | None) -> Iterator[None]:
    """Suppress warnings about the rows of a table, which :func:`read_questions` has named by their lines."""
    with warnings.catch_warnings():
        if questions is not None and questions.table is not None:
            warnings.simplefilter("ignore", FarCells)
        yield


def understanding(run: Run, questions: Questions) -> str:
    """Describe in words how a run that is conditioned on questions interpreted them."""
    seen, what = run.answered, questions.what
    if seen is None:
        return what
    several = len(questions) > 1
    they = "they are" if several else "it is"
    if seen.operator is None:
        trained = (
            "" if run.operator is None else f", because the run was trained with several operators ({run.operator})"
        )
        return f"{what}, shown to the model as {they}{trained}"
    title = seen.operator.title
    if seen.truth is not None:
        have = "have the shape of samples" if several else "has the shape of a sample"
        return f"{what}, which {have}, so {they} used as the truth and degraded here ({title})"
    if isinstance(seen.operator, Mask) and seen.hidden is not None:
        hidden = seen.hidden.expand(len(seen), *seen.hidden.shape[1:])[:: len(seen) // len(questions)]
        noun = "cells" if run.info.kind == "vector" else "values"
        if run.info.kind == "image" and bool((hidden == hidden[:, :1]).all()):
            hidden, noun = hidden[:, :1], "pixels"
        if not bool(hidden.any()):
            unchanged = " and the rows are returned unchanged" if complete(run, questions) else ""
            return f"{what}, without empty {noun}, so there is nothing to fill{unchanged}"
        return f"{what}, with {int(hidden.sum()):,} of {hidden.numel():,} {noun} to fill"
    return f"{what}, used as measurements ({title})" if several else f"{what}, used as a measurement ({title})"


def complete(run: Run, questions: Questions) -> bool:
    """Return whether the questions that a run is conditioned on are a table without cells to fill."""
    seen = run.answered
    if questions.table is None or None in questions.places or seen is None or not isinstance(seen.operator, Mask):
        return False
    return seen.truth is None and seen.hidden is not None and not bool(seen.hidden.any())


# ------------------------------------------------------------------------------------------------------------- reading


def read_questions(
    run: Run, path: Path | Sequence[Path], *, mask: Path | None = None, operator: str | None = None,
    seen: str | None = None,
) -> Questions:  # fmt: skip
    """Read questions from a file or folder, or from several files and folders of images.

    Args:
        run: The run that is to answer the questions.
        path: The file or folder, or several images and folders of images.
        mask: A file that marks the missing values of the samples (:func:`scoresde.data.pictures.mask_from_file`).
        operator: The operator with which to measure samples, instead of the run's operator.
        seen: The operator of the measurements in the file, for a run that was not trained with them. With it, the
            condition contains only measurements.

    Raises:
        UsageError: If the run was trained without a condition, or only with the class, or if the mask cannot be used.
        DataError: If the file cannot be read, or lacks a part of the condition that the run needs.
    """
    paths = list(dict.fromkeys([path] if isinstance(path, Path) else path))
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no file or folder {path}", parameter="given")
    sources = _sources(run) if seen is None else Sources(operator=seen)
    made = _operator(run, operator) if seen is None else _parsed(run, seen)
    if seen is not None and made is not None:
        check_linear(made)
    shapes = _shapes(run, sources, made)
    others = [p for p in paths if not p.is_dir() and p.suffix.lower() not in IMAGE_SUFFIXES]
    path = (others or paths)[0]
    if others and len(paths) > 1:
        raise DataError(
            f"{path} is one of {len(paths)} given files, but only images and folders of images can be given several at "
            "a time; pass this file alone, or join the files into one",
            parameter="given",
        )
    if not others:
        found = _pictures(run, sources, paths, shapes)
    elif is_table(path):
        found = _table(run, sources, path)
    elif path.suffix.lower() in (".npy", ".npz"):
        found = _arrays(run, sources, path, shapes)
    else:
        raise DataError(
            f"a condition cannot be read from {path}; use an image ({', '.join(IMAGE_SUFFIXES)}), a "
            "folder of images, an .npy or .npz file, or a .csv or .tsv table",
            parameter="given",
        )
    found = found if found.files else replace(found, files=(path,))
    return found if mask is None else _masked(run, found, mask, trained=seen is None)


def read_samples(run: Run, path: Path | Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
    """Read samples in data units, ``(n, *event)``, from images, a folder of images, a table or a NumPy file.

    Returns:
        The samples, and notes on what was converted while reading, one sentence each.

    Raises:
        DataError: If a file cannot be read, or its contents do not have the shape of the run's data.
    """
    try:
        found = read_questions(run, path, seen="cells")
    except ScoresdeError as error:
        error.parameter = "near"
        raise
    x = found.condition.image
    assert x is not None
    if bool(x.isnan().any()):
        files = ", ".join(map(str, found.files))
        raise DataError(f"{files} has missing values; fill them in first", parameter="near")
    return x, found.notes


def _sources(run: Run) -> Sources:
    sources = Sources() if run.config is None else run.config.sources
    if not sources.rich:
        only = "only with the class of each sample" if sources.label else "without a condition"
        instead = "pass the class as the label, or train" if sources.label else "train"
        raise UsageError(
            f"{run.folder or 'this model'} was trained {only}, so it cannot be conditioned on a file. If the file "
            f"contains measurements, name the operator that made them. Otherwise, {instead} with another cond, such as "
            "pool:2, hole, cells, image or vector",
            parameter="seen",
            value="cells" if run.info.kind == "vector" else "pool:2",
        )
    return sources


def _operator(run: Run, operator: str | None) -> Operator | None:
    return run.operator if operator is None or run.operator is None else _parsed(run, operator)


def _parsed(run: Run, operator: str) -> Operator:
    return parse(operator, read_mask=mask_from_file).on(run.info.shape, run.info.low, run.info.high)


def _shapes(run: Run, sources: Sources, operator: Operator | None) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that an image may have, starting with those of measurements."""
    if operator is not None:
        return tuple(dict.fromkeys([*(choice.measured for choice in choices(operator)), run.info.shape]))
    return (run.info.known.image,) if sources.image else ()


def _no_picture(run: Run, path: Path, sources: Sources) -> UsageError:
    told = [name for name in ("vector", "text") if getattr(sources, name)]
    where = {"vector": "numbers (a table, or an array c)", "text": "a text"}
    return UsageError(
        f"{path} contains image data, but {run.folder or 'this model'} was trained with another condition; pass "
        f"{' and '.join(where[name] for name in told)} instead",
        parameter="given",
    )


def _pictures(run: Run, sources: Sources, given: Sequence[Path], shapes: Sequence[tuple[int, ...]]) -> Questions:
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
    expected = " or ".join(dict.fromkeys(map(_size, shapes)))
    advice = f"resize the files to what the run expects, {expected}, or give the images of each size alone"
    pixels, fault = None, None
    notes: tuple[str, ...] = ()
    try:
        read, _, notes = read_pictures(folder, paths, advice=advice)
        pixels, notes = _channels(read, shapes, notes)
    except Problems as error:
        fault = error
    how, reading = "", AS_IS if run.config is None else run.config.reading
    if pixels is None and sources.operator and reading.size:
        pixels, notes = _resized(folder, paths, reading, shapes)
        how = f", resized to {reading.size} x {reading.size} as in training,"
    if pixels is None:
        if fault is not None:
            raise fault
        found = "".join(f" ({note})" for note in notes)
        raise DataError(
            f"{path if len(given) == 1 else folder}: the image{'s have' if len(paths) > 1 else ' has'} "
            f"{_size(read.shape[1:])}{found}, but the run expects {expected}; resize or convert "
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
    text = _texts(paths) if sources.text else ()
    return Questions(
        Condition(image=image), tuple(names), one_line(what), labels=tuple(names), text=text, files=tuple(paths),
        notes=notes,
    )  # fmt: skip


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
        return tuple(" ".join(read_bytes(file, TEXT).decode("utf-8-sig").split()) for file in files)
    except (OSError, ValueError) as error:
        raise DataError(f"the texts next to the images cannot be read: {reason(error)}", parameter="given") from None


def _size(shape: Sequence[int]) -> str:
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
    if shape[0] == 1 and (3, *shape[1:]) in shapes:
        return pixels.repeat(3, 1), (*notes, f"{count} in grey, used as colour as the run expects")
    if shape[0] == 3 and bool((pixels == pixels[:, :1]).all()) and (1, *shape[1:]) in shapes:
        return pixels[:, :1], (*notes, f"{count} in colour without any colours, used as grey as the run expects")
    return None, notes


def _resized(
    folder: Path, paths: Sequence[Path], reading: Reading, shapes: Sequence[tuple[int, ...]]
) -> tuple[Array | None, tuple[str, ...]]:  # fmt: skip
    """Read images and resize them as in training. The pixels are ``None`` if an image is too small or no shape fits.

    The second result are the notes on what was converted.
    """
    pixels, smallest, notes = read_pictures(folder, paths, Reading(size=reading.size, fit=reading.fit))
    return _channels(pixels, shapes, notes) if min(smallest) >= reading.size else (None, notes)


def _arrays(run: Run, sources: Sources, path: Path, shapes: Sequence[tuple[int, ...]]) -> Questions:
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


def _table(run: Run, sources: Sources, path: Path) -> Questions:
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


def _masked(run: Run, questions: Questions, file: Path, trained: bool) -> Questions:
    """Return the questions, with NaN in place of every value that the mask in ``file`` hides."""
    image = questions.condition.image
    masks = run.operator is None or any(isinstance(choice, Masking) for choice in choices(run.operator))
    if trained and not masks:
        raise UsageError(
            f"the mask {file} hides values, but {run.folder or 'this model'} was trained with the operator "
            f"{run.operator}, which hides none, so the mask cannot be used; to use masks of any kind, train with "
            "cond='cells'",
            parameter="mask",
        )
    if image is None or tuple(image.shape[1:]) != run.info.shape:
        raise UsageError(
            f"the mask {file} marks missing values of samples, but the condition ({questions.what}) contains "
            f"{'no samples' if image is None else _size(image.shape[1:])}; pass samples of {_size(run.info.shape)}",
            parameter="given",
        )
    operator = Mask(mask_from_file(str(file)), str(file)).on(run.info.shape)
    known = operator.known(run.info.shape)
    if len(known) not in (1, len(image)):
        raise UsageError(
            f"the mask {file} has {len(known)} rows, but the number of samples is {len(image)}; use a mask with one "
            "row for all samples, or with one row for each sample",
            parameter="mask",
        )
    if bool(known.all()):
        raise UsageError(
            f"the mask {file} hides nothing; mark the missing values with white pixels in an image, or with values "
            "other than 0 in an array",
            parameter="mask",
        )
    told = f"{questions.what} under the mask {file}"
    return replace(
        questions, condition=replace(questions.condition, image=torch.where(known, image, torch.nan)), what=told
    )


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, eq=False)
class Asked:
    """The questions that a run is conditioned on, and the number of answers (samples) to each question.

    Attributes:
        questions: The questions.
        each: Number of answers for each question. Sample i answers question ``i // each``.
        start: The number of the first answer to each question, if earlier ones were drawn before.
        seen: The measurements that the run is conditioned on, with one row for each sample or a single row for all
            samples, or ``None`` if there are no measurements.
        info: The description of the data of the run.
    """

    questions: Questions
    each: int
    seen: Seen | None
    info: DataInfo
    start: int = 0

    def number(self, i: int) -> int:
        """Return the number of sample ``i`` among all answers to its question."""
        return self.start + i % self.each

    @property
    def _first(self) -> Seen | None:
        """The measurements, with one row for each question or a single row for all questions."""
        count = len(self.questions)
        if self.seen is None or len(self.seen) == count:
            return self.seen
        return self.seen.rows(torch.arange(count) * self.each)

    @property
    def cells(self) -> Tensor | None:
        """A mask of the values known from the questions, bool ``(Q, *event)``, or ``None`` if no values are known."""
        seen = self._first
        if seen is None or (hidden := seen.hidden) is None:
            return None
        return ~hidden.expand(len(seen), *hidden.shape[1:])

    @property
    def truth(self) -> Tensor | None:
        """The true samples ``(Q, *event)``, with one row for each question, or ``None`` if they are unknown."""
        seen = self._first
        return self.questions.truth if seen is None or seen.truth is None else seen.truth

    @property
    def given(self) -> Tensor | None:
        """The measurements or images to show in figures, ``(Q, *shape)`` in data units, one row for each question.

        Missing values are NaN. The result is ``None`` if there are neither measurements nor images with as many axes as
        the samples.
        """
        seen, image = self._first, self.questions.condition.image
        if seen is not None:
            # Measurements with the axes of a picture are plotted as they are, and others as the network receives them.
            whole = isinstance(seen.operator, Masking | Crop) or self.info.kind == "vector"
            return seen.shown if whole or seen.y.ndim != len(self.info.shape) + 1 else seen.y
        if image is None or len(image.shape) != len(self.info.shape) + 1:
            return None
        known, info = self.info.known, self.info
        if isinstance(known.low, tuple) or isinstance(known.high, tuple):  # in the units of the samples
            return image
        return info.low + (image - known.low) * ((info.high - info.low) / (known.high - known.low))

    @property
    def title(self) -> str:
        """The kind of measurement, as a title for figures, or "" if it is unknown."""
        if self.seen is None or self.seen.operator is None:
            return ""
        cells = isinstance(self.seen.operator, Mask) and self.info.kind == "vector"
        return "cells missing" if cells else self.seen.operator.title


def write_filled(
    path: Path, questions: Questions, lines: Iterable[Sequence[str]], index: Array, each: int, known: Tensor | None,
    names: Sequence[str], start: int = 0,
) -> Path:  # fmt: skip
    """Write the table of the questions with its unknown cells filled in.

    The new table has one row for each answer, but a question without unknown cells has a single row. Known cells, and
    columns that the model does not use, are copied exactly. Unless every question has exactly one row, two columns are
    added: the index of the question, and the number of the answer among all answers to that question.

    Args:
        path: The file to write.
        questions: The questions, which were read from a table.
        lines: The values of each answer as text.
        index: The index of each answer among all samples, counting failed ones, int64 ``(m,)``.
        each: Number of answers for each question.
        known: A mask of the values that are known from the questions, bool ``(Q, D)``, or ``None`` if no values are
            known.
        names: The name of each value. If the table has no column for a value, a column with this name is added.
        start: The number of the first answer to each question.
    """
    sheet, n = questions.table, len(questions)
    assert sheet is not None
    more = [i for i, place in enumerate(questions.places) if place is None]
    whole = [False] * n if known is None or more else known.all(1).tolist()
    numbered, rows, before = (each > 1 and not all(whole)) or len(index) < n or start > 0, [], -1
    for answer, line in zip(index.tolist(), lines, strict=True):
        question = answer // each
        if whole[question] and question == before:
            continue
        before = question
        cells = list(sheet.rows[question])
        for i, place in enumerate(questions.places):
            if place is not None and (known is None or not bool(known[question, i])):
                cells[place] = line[i].replace(".", ",") if sheet.commas else line[i]
        cells += [line[i].replace(".", ",") if sheet.commas else line[i] for i in more]
        rows.append([str(question), str(start + answer % each), *cells] if numbered else cells)
    header: list[str] = []
    if any(sheet.names):
        header = [*sheet.names, *(names[i] for i in more)]
        taken = set(header)
        header = [*(_free(name, taken) for name in ("question", "answer")), *header] if numbered else header
    return write_csv(path, header, rows, sheet.separator)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
