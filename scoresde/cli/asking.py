"""The conditions of samples, as options of ``scoresde sample``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import UsageError
from ..core.limits import COUNT, FRACTION, NONNEGATIVE
from .command import Real, Whole, option
from .common import (
    Decorator,
    own_class,
    together,
)

if TYPE_CHECKING:
    from ..run.questions import Questions
    from ..run.run import Run

__all__ = ["Asking", "asking_options", "path_text", "told_beside_a_rule"]

N = 64  # default number of samples without questions


@dataclass(frozen=True)
class Asking:
    """The conditions of the samples, as given on the command line.

    Args:
        given: The files or folders with images or rows to condition on (the questions).
        each: Number of samples for each question, or ``None`` if the user did not set it.
        mask: A file with the mask for the samples in ``given``, or ``None``.
        operator: The operator that measures the samples in ``given``, or ``None`` to use the run's operator.
        text: One text for all questions, or one text for each question.
        seen: The operator of the measurements in ``given``, for a run that need not be trained with it, or ``None``.
        noise: The standard deviation of the noise of the measurements.
        rule: The rule by which measurements change the samples, or ``None``.
        near: The files or folders with samples to start from.
        at: The amount of noise that is added to these samples.
        classifier: The folder of a noisy classifier that guides the samples to a class, or ``None``.
    """

    given: tuple[Path, ...]
    each: int | None
    mask: Path | None
    operator: str | None
    text: tuple[str, ...]
    seen: str | None = None
    noise: float = 0.0
    rule: str | None = None
    near: tuple[Path, ...] = ()
    at: float | None = None
    classifier: Path | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and not self.given:
            raise UsageError(f"--mask {self.mask} requires --given, the file with the samples to mask")
        if self.seen is not None and not self.given:
            raise UsageError(f"--seen {self.seen} requires --given, the file with the measurements")
        if self.seen is not None and self.operator is not None:
            raise UsageError(
                f"--seen {self.seen} names the operator of the measurements, and --operator {self.operator} measures "
                "samples; use only one of them"
            )
        for name, value in (("--noise", self.noise or None), ("--rule", self.rule)):
            if value is not None and self.seen is None and self.mask is None:
                raise UsageError(f"{name} {value} requires --seen, the operator of the measurements")
        if self.at is not None and not self.near:
            raise UsageError(f"--at {self.at:g} requires --from, the samples to start from")
        if self.near and self.given:
            raise UsageError("--from and --given cannot be combined; use only one of them")

    def measures(self, run: Run) -> str | None:
        """Return the operator of the measurements, or ``None`` if the condition is one that the run was trained with.

        A mask is a measurement if the run was not trained with masks.
        """
        from ..operators import Masking, choices

        trained = run.operator is not None and any(isinstance(c, Masking) for c in choices(run.operator))
        rule = not trained or bool(self.noise) or self.rule is not None
        return "cells" if self.seen is None and self.mask is not None and rule else self.seen

    def named(self, run: Run) -> str | None:
        """Return the operator to tell the run, or ``None`` if it is clear from the shape of what is given."""
        from ..data.pictures import mask_from_file
        from ..operators import Masking, OneOf, parse

        if self.operator is not None or self.seen is None or not isinstance(run.operator, OneOf):
            return self.operator
        made = parse(self.seen, read_mask=mask_from_file).on(run.info.shape, run.info.low, run.info.high)
        return self.seen if isinstance(made, Masking) or made.measured != run.info.shape else None

    def by_rule(self, run: Run) -> bool:
        """Return whether a rule uses the measurements, because the network of the run was not trained with them."""
        from ..data.pictures import mask_from_file
        from ..operators import parse
        from ..run.seen import covers

        spec = self.measures(run)
        if spec is None or run.operator is None or self.noise or self.rule is not None:
            return spec is not None
        return not covers(run.operator, parse(spec, read_mask=mask_from_file).on(run.info.shape))

    @property
    def own(self) -> str | None:
        """The operator if it is a user-defined class, otherwise ``None``.

        If the run was trained with this class, the user must name the class again to load the run.
        """
        return own_class(self.operator or self.seen)

    def questions(self, run: Run) -> Questions | None:
        """Return the questions in the given file or in the texts, or ``None`` if there are no questions.

        A single text is a question only if ``each`` is given. Otherwise, it applies to all samples.
        """
        from ..core.condition import Condition
        from ..run.questions import Questions, read_questions

        if self.given:
            by_rule = self.by_rule(run)  # otherwise, the network uses everything that it was trained with
            seen = self.measures(run) if by_rule else None
            return read_questions(run, self.given, mask=self.mask, operator=self.named(run), seen=seen)
        if self.operator is not None and self.own is None:
            raise UsageError(f"--operator {self.operator} requires --given, the file with the samples to measure")
        if len(self.text) < 2 and self.each is None:
            return None
        names = tuple(f"text-{i}" for i in range(len(self.text)))
        return Questions(Condition(), names, f"{len(names)} texts", self.text, text=self.text) if names else None

    def counts(self, n: int | None, questions: Questions | None) -> tuple[int, int]:
        """Return the total number of samples, and the number of samples for each question."""
        if questions is None:
            if self.each is not None and n not in (None, self.each):
                raise UsageError(f"--n {n} contradicts --each {self.each}; leave out one of them")
            return self.each or n or N, self.each or n or N
        count = len(questions)
        each = self.each or (1 if n is None else max(1, n // count))
        if n not in (None, count * each):
            why = f"contradicts --each {each}" if self.each else "is not a multiple of the number of questions"
            raise UsageError(
                f"--n {n} {why}: with {count:,} question{'s' * (count > 1)} and {each:,} answer"
                f"{'s' * (each > 1)} per question, the number of samples is {count * each:,}; leave out --n, and use "
                "--each to set the number of answers per question"
            )
        return count * each, each

    def facts(self, run: Run, questions: Questions | None) -> dict[str, Any]:
        """Return the conditions as JSON-serialisable values, or an empty dict if there are none."""
        from ..core.opened import file_digest

        if questions is None and not self.text:
            return {}
        files = () if questions is None else questions.files
        seen = run.answered
        operator = None if seen is None or seen.operator is None else str(seen.operator)
        return {
            "given": path_text(self.given),
            "files": {str(path): file_digest(path) for path in files},
            "mask": None if self.mask is None else {str(self.mask): file_digest(self.mask)},
            "operator": operator, "text": list(self.text), "questions": 1 if questions is None else len(questions),
            **({} if run.rule is None else {"rule": run.rule, "noise": run.noise}),
        }  # fmt: skip


def asking_options() -> Decorator:
    """Add the options for conditions other than the class, and pass them to the command as ``asking``."""
    return together(
        "asking", Asking,
        option("--given", under="Conditioning", first=True, files=True, type=click.Path(path_type=Path), metavar="PATH",
               help="Conditions of the samples: one or several images or folders of images, an npy or npz file, or a "
                    "table whose empty cells are to be filled. Each image or row is one question. The run must have "
                    "been trained with --cond, unless --seen or --mask is given."),
        option("--each", under="Conditioning", first=True, type=Whole(COUNT), metavar="K",
               help="Number of samples for each question.  [default: 1]"),
        option("--mask", under="Conditioning", type=click.Path(path_type=Path), metavar="FILE",
               help="Mask of the missing parts of the --given samples: an image in which these parts are white, or "
                    "an npy file in which they are nonzero."),
        option("--operator", under="Conditioning", metavar="SPEC",
               help="Operator that measures the --given samples, such as pool:4 or module:Class.  [default: the "
                    "operator of the run]"),
        option("--text", under="Conditioning", multiple=True, metavar="TEXT",
               help="Text that describes all samples, for a run trained with --cond text. Repeat the option to pass "
                    "one text for each question."),
        option("--seen", under="Measurements", metavar="SPEC",
               help="Operator of the measurements in --given, such as pool:2. The run need not have been trained with "
                    "it."),
        option("--noise", under="Measurements", type=Real(NONNEGATIVE), default=0.0,
               help="Standard deviation of the noise of the measurements, in the units of the data."),
        option("--rule", under="Measurements", metavar="NAME",
               help="How measurements change the samples: moment, pseudoinverse or projection.  [default: moment. "
                    "No rule is needed if the run was trained with the operator and there is no noise]"),
        option("--from", "near", under="Measurements", files=True, type=click.Path(path_type=Path), metavar="PATH",
               help="Samples to start from, such as a sketch: images, folders of images, a table or an npy file."),
        option("--at", under="Measurements", type=Real(FRACTION), metavar="SHARE",
               help="Amount of noise that is added to the samples in --from, as sigma/(alpha + sigma).  "
                    "[default: 0.5]"),
        option("--classifier", under="Conditioning", type=click.Path(path_type=Path), metavar="FOLDER",
               help="Noisy classifier (scoresde classifier --noisy) that guides the samples to the class --label, with "
                    "the scale --guidance. The run need not have been trained with classes."),
    )  # fmt: skip


def path_text(paths: tuple[Path, ...]) -> str | list[str] | None:
    """Return a path as text, a list if there are several, and ``None`` if there are none."""
    return [str(path) for path in paths] if paths[1:] else str(paths[0]) if paths else None


def told_beside_a_rule(run: Run, asking: Asking, label: str | None) -> Questions | None:
    """Return the rest of the condition for a network that is told a class or a text, while a rule uses the measurement.

    A network that was trained with random cells has also seen samples without any known cell. Any other network has
    never seen a class or a text without the rest of its condition.
    """
    import torch

    from ..core.condition import Condition
    from ..run.questions import Questions

    sources = None if run.config is None else run.config.sources
    told = " and ".join([*([f"--label {label}"] if label is not None else []), *(["--text"] if asking.text else [])])
    if run.config is None or sources is None or not sources.rich or not told:
        return None
    parts = {
        "a class": sources.label and label is None, "numbers": sources.vector, "a picture": sources.image,
        "a text": sources.text and not asking.text,
        f"a measurement by {sources.operator}": bool(sources.operator) and not sources.gaps,
    }  # fmt: skip
    if lacking := " and ".join(what for what, lacks in parts.items() if lacks):
        raise UsageError(
            f"{told} cannot be combined with a rule: the network was trained with {run.config.cond} and has never seen "
            f"a condition without {lacking}, which the rule does not tell it; leave out {told}"
            + ", or leave out --seen, --noise and --rule, so that the network uses what is given"
            * bool(sources.operator)
        )
    if not sources.operator:
        return None
    return Questions(Condition(image=torch.full((1, *run.info.shape), torch.nan)), ("nothing",), "nothing")
