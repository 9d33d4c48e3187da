"""Questions to a run, their answers, and the table in which the answers fill the empty cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.files import write_csv
from ..core.text import one_line
from ..data import DataInfo
from ..data.raw import Array
from ..data.table import Sheet
from ..operators import Crop, Mask, Masking
from .run import Run
from .seen import Seen

__all__ = ["Asked", "Questions", "complete", "left_empty", "write_filled"]

NAMED = 10  # the largest number of columns that a message names


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

    def lines(self, ok: Tensor) -> int:
        """Return the number of rows of the filled table, if the samples with ``ok``, bool ``(n,)``, succeeded."""
        index = ok.nonzero().flatten().numpy()
        return sum(_written(index, self.each, _whole(self.questions, self.cells)))

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


def complete(run: Run, questions: Questions) -> bool:
    """Return whether the questions that a run is conditioned on are a table without cells to fill."""
    seen = run.answered
    if questions.table is None or None in questions.places or seen is None or not isinstance(seen.operator, Mask):
        return False
    return seen.truth is None and seen.hidden is not None and not bool(seen.hidden.any())


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
    whole = _whole(questions, known)
    numbered, rows = (each > 1 and not all(whole)) or len(index) < n or start > 0, []
    for answer, line, written in zip(index.tolist(), lines, _written(index, each, whole), strict=True):
        question = answer // each
        if not written:
            continue
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


def _whole(questions: Questions, known: Tensor | None) -> list[bool]:
    """Return for each question whether it has no unknown cells."""
    if known is None or None in questions.places:
        return [False] * len(questions)
    return known.all(1).tolist()


def _written(index: Array, each: int, whole: Sequence[bool]) -> list[bool]:
    """Return for each answer whether it has a row in the filled table: a question without unknown cells has one row."""
    of = [answer // each for answer in index.tolist()]
    return [not (whole[this] and this == before) for before, this in zip([-1, *of], of, strict=False)]


def left_empty(questions: Questions | None) -> str:
    """Return a sentence that says which empty cells of a table are not filled, or "" if there are none.

    They are in columns that are not part of a sample: those that the model does not know, and those of the condition.
    """
    sheet = None if questions is None else questions.table
    if questions is None or sheet is None:
        return ""
    others = [i for i in range(len(sheet.names)) if i not in questions.places]
    found = {i: count for i in others if (count := int(sum(sheet.empty(i))))}
    if not found:
        return ""
    names = [f"{one_line(sheet.names[i]) or f'column {i + 1}'} ({count:,})" for i, count in found.items()]
    total = sum(found.values())
    return (
        f"{total:,} empty cell{'s' * (total > 1)} stay{'s' * (total == 1)} empty, in columns that the model does not "
        f"fill: {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if names[NAMED:] else ''}"
    )


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
