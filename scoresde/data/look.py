"""Check data before training: report every problem or, if there are none, describe the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import DataError, Problem, Problems
from .dataset import Dataset, loaded
from .raw import AS_IS, Reading

__all__ = ["Look", "look"]


@dataclass(frozen=True, eq=False)
class Look:
    """The result of checking a data set.

    Attributes:
        problems: Every problem that prevents the data from being read. Empty if the data were read.
        dataset: The data, or ``None`` if they were not read.
        notes: Notes on what was left out or changed, and on values far outside the others, one sentence each.
    """

    problems: tuple[Problem, ...]
    dataset: Dataset | None
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> Mapping[str, object] | None:
        """Parameter values that fix all problems, keyed by name, or ``None`` if a problem has no known fix."""
        if not all(problem.answers for problem in self.problems):
            return None
        return {name: value for problem in self.problems for name, value in problem.answers.items()}

    @property
    def classes(self) -> dict[str, tuple[int, int]]:
        """The numbers of training and test samples of each class, keyed by class. Empty if there are no labels."""
        if self.dataset is None or self.dataset.train_labels is None:
            return {}
        names, held_out = self.dataset.info.classes, self.dataset.test_labels
        counts = [
            [0] * len(names) if labels is None else torch.bincount(labels, minlength=len(names)).tolist()
            for labels in (self.dataset.train_labels, held_out)
        ]
        return {name: (n, m) for name, n, m in zip(names, *counts, strict=True)}

    def facts(self) -> dict[str, Any]:
        """Return a description of the data as plain JSON values, or an empty dict if the data were not read."""
        if self.dataset is None:
            return {}
        return self.dataset.info.to_dict() | {"class_counts": self.classes}


def look(data: str, *, reading: Reading = AS_IS, seed: int = 0, test_fraction: float = 0.1) -> Look:
    """Read data in the same way as training does, and report all problems at once.

    Args:
        data: A name or a path (see :func:`scoresde.load_data`).
        reading: Options for files that can be read in more than one way.
        seed, test_fraction: Options for the split (see :func:`scoresde.load_data`).

    >>> look("digits").problems, look("digits").classes["0"]
    ((), (161, 17))
    """
    try:
        dataset = loaded(data, seed, test_fraction, reading)
        return Look((), dataset, (*dataset.notes, *map(str, dataset.unusual)))
    except Problems as error:
        return Look(error.problems, None, error.notes)
    except DataError as error:
        return Look((Problem(str(error), {} if error.parameter is None else {error.parameter: error.value}),), None)
