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

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.errors import DataError, ScoresdeError, UsageError
from ..data.folders import IMAGE_SUFFIXES
from ..data.given import Sources
from ..data.pictures import mask_from_file
from ..data.table import is_table
from ..guidance.measured import check_linear
from ..operators import Mask, Masking, Operator, choices, parse
from .asked import Asked, Questions, complete, left_empty, write_filled
from .plausible import FarCells
from .reading import read_arrays, read_images, read_table, size_of
from .run import Run

__all__ = [
    "Asked",
    "Questions",
    "ask",
    "complete",
    "left_empty",
    "read_questions",
    "read_samples",
    "understanding",
    "write_filled",
]


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
            where = " in the columns of the model" if left_empty(questions) else ""
            return f"{what}, without empty {noun}{where}, so there is nothing to fill{unchanged}"
        return f"{what}, with {int(hidden.sum()):,} of {hidden.numel():,} {noun} to fill"
    return f"{what}, used as measurements ({title})" if several else f"{what}, used as a measurement ({title})"


@contextmanager
def named_by_line(questions: Questions | None) -> Iterator[None]:
    """Suppress warnings about the rows of a table, which :func:`read_questions` has named by their lines."""
    with warnings.catch_warnings():
        if questions is not None and questions.table is not None:
            warnings.simplefilter("ignore", FarCells)
        yield


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
        found = read_images(run, sources, paths, shapes)
    elif is_table(path):
        found = read_table(run, sources, path)
    elif path.suffix.lower() in (".npy", ".npz"):
        found = read_arrays(run, sources, path, shapes)
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
            f"{'no samples' if image is None else size_of(image.shape[1:])}; pass samples of {size_of(run.info.shape)}",
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
