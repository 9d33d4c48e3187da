"""Exceptions that a user can act on, each with the exit code that the command line returns for it.

A message says what went wrong and where, quotes the value, and suggests what to try. The exit codes are 0 for success,
1 for an unexpected error, 2 for invalid usage, 3 for problems with data or checkpoints, 4 for numerical errors, 75
(``EX_TEMPFAIL``) if SIGTERM or SIGUSR1 stops the process, and 130 for Ctrl-C.
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
    """Base class of the errors and warnings that can carry a suggested fix.

    Args:
        message: What went wrong, in terms of the Python API.
        parameter: The parameter to set, or the function to call, to fix the problem. The command line shows the
            matching option or command.
        value: The value to use for that parameter.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.parameter, self.value = parameter, value


class ScoresdeError(Answered, Exception):
    """Base class of all errors that this package raises deliberately."""

    exit_code = 1


class UsageError(ScoresdeError, ValueError):
    """Raised for an invalid option, name or argument."""

    exit_code = 2


class DataError(ScoresdeError, ValueError):
    """Raised for a data set that is missing, unreadable or inconsistent."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """One problem with a data set.

    Attributes:
        message: What is wrong, and which data are affected, in terms of the Python API.
        answers: The parameters to set, each with the value that would fix the problem. The mapping is empty if only a
            change to the data would help.
    """

    message: str
    answers: Mapping[str, object] = field(default_factory=dict)


class Problems(DataError):
    """Raised to report all problems with a data set at once.

    Args:
        where: The file or folder that contains the data.
        problems: One or more problems.
        notes: Remarks for the user, one sentence each, that are not part of the message.
    """

    def __init__(self, where: object, problems: Sequence[Problem], notes: Sequence[str] = ()) -> None:
        self.where, self.problems, self.notes = where, tuple(problems), tuple(notes)
        ways = [", ".join(f"{name}={value!r}" for name, value in problem.answers.items()) for problem in problems]
        texts = [f"{p.message}{f' ({way})' * bool(way)}" for p, way in zip(problems, ways, strict=True)]
        super().__init__(self.listed(texts))

    def listed(self, texts: Sequence[str]) -> str:
        """Return an error message that lists the problems, each described by one of the ``texts``."""
        if len(texts) == 1:
            return f"{self.where}: {texts[0]}"
        return "\n".join([f"{self.where}: {len(texts)} problems", *(f"{i}. {t}" for i, t in enumerate(texts, 1))])


class CheckpointError(ScoresdeError, ValueError):
    """Raised for a run folder or checkpoint that is missing, damaged or in an unsupported format."""

    exit_code = 3


class NumericalError(ScoresdeError, ArithmeticError):
    """Raised if a value is NaN or infinite, or if a solver cannot continue."""

    exit_code = 4


class Preempted(Answered):
    """Raised if SIGTERM or SIGUSR1 arrives. The message says which finished work is kept.

    Like ``KeyboardInterrupt``, this class is not a subclass of ``Exception``, so code that catches errors does not
    catch it.
    """

    exit_code = 75


class Stopped(Answered, KeyboardInterrupt):
    """Raised if the user presses Ctrl-C. The message says which finished work is kept."""

    exit_code = 130


class Advice(Answered, UserWarning):
    """A warning that can carry a suggested fix."""
