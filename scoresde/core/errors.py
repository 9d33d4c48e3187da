"""Exceptions that a user can act on, each with the exit code the command line returns for it.

A message says what went wrong, where, with the value, and what to try. Codes: 0 success, 1 unexpected, 2 usage,
3 data or checkpoint, 4 numerical, 75 told to stop, with what was finished kept (``EX_TEMPFAIL``), 130 Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Advice",
    "Answered",
    "CheckpointError",
    "DataError",
    "NumericalError",
    "Preempted",
    "Problem",
    "Problems",
    "ScoresdeError",
    "Stopped",
    "UsageError",
]


class Answered(BaseException):
    """What is raised, or warned of, with what would put it right.

    Args:
        message: What went wrong, in the words of the library.
        parameter: The parameter, or function, that would put it right, and ``value`` what to give it, for the command
            line, which knows how that is typed.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.parameter, self.value = parameter, value


class ScoresdeError(Answered, Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class UsageError(ScoresdeError, ValueError):
    """An option, a name or an argument that cannot be right."""

    exit_code = 2


class DataError(ScoresdeError, ValueError):
    """A data set that is missing, unreadable or inconsistent."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """One of the things that are wrong with a data set.

    Attributes:
        message: What is wrong, and with which of the data, in the words of the library.
        answers: The parameters that would put it right, and what to give each; empty if the data must be changed.
    """

    message: str
    answers: Mapping[str, object] = field(default_factory=dict)


class Problems(DataError):
    """All that is wrong with a data set, at once.

    Args:
        where: The file or folder.
        problems: At least one.
        notes: What else a person should know, a sentence each; not part of the message.
    """

    def __init__(self, where: object, problems: Sequence[Problem], notes: Sequence[str] = ()) -> None:
        self.where, self.problems, self.notes = where, tuple(problems), tuple(notes)
        ways = [", ".join(f"{name}={value!r}" for name, value in problem.answers.items()) for problem in problems]
        texts = [f"{p.message}{f' ({way})' * bool(way)}" for p, way in zip(problems, ways, strict=True)]
        super().__init__(self.listed(texts))

    def listed(self, texts: Sequence[str]) -> str:
        """The message, with a text for each problem."""
        if len(texts) == 1:
            return f"{self.where}: {texts[0]}"
        return "\n".join([f"{self.where}: {len(texts)} problems", *(f"{i}. {t}" for i, t in enumerate(texts, 1))])


class CheckpointError(ScoresdeError, ValueError):
    """A run folder or checkpoint that is missing, damaged or from another format."""

    exit_code = 3


class NumericalError(ScoresdeError, ArithmeticError):
    """NaN, infinity, or a solver that could not go on."""

    exit_code = 4


class Preempted(Answered):
    """SIGTERM or SIGUSR1: what was finished is kept, and can be gone on from.

    Like Ctrl-C it is no ``Exception``: whoever catches errors must not take it for one and go on.
    """

    exit_code = 75


class Stopped(Answered, KeyboardInterrupt):
    """Ctrl-C: what was finished is kept, and can be gone on from."""

    exit_code = 130


class Advice(Answered, UserWarning):
    """A warning that says what would put it right."""
