"""The command ``scoresde sample``."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import NumericalError, UsageError
from ..core.limits import COUNT, FRACTION, FRAMES, NONNEGATIVE, WHOLE
from ..core.registry import options_of
from ..core.tables import SDES, SOLVERS
from .command import Real, Whole, option, verb
from .common import (
    Conditioning,
    Decorator,
    Session,
    SolverChoice,
    conditioning,
    counted,
    in_list,
    out_option,
    own_class,
    session,
    solver_options,
    together,
)
from .work import Work, resume_option, work_in

if TYPE_CHECKING:
    from torch import Tensor

    from ..run.questions import Asked, Questions
    from ..run.run import Run, Samples

__all__ = ["sample"]

N = 64  # default number of samples without questions
NAMED = 10  # maximum number of samples that a message names


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
            "given": _path(self.given),
            "files": {str(path): file_digest(path) for path in files},
            "mask": None if self.mask is None else {str(self.mask): file_digest(self.mask)},
            "operator": operator, "text": list(self.text), "questions": 1 if questions is None else len(questions),
            **({} if run.rule is None else {"rule": run.rule, "noise": run.noise}),
        }  # fmt: skip


def _asking_options() -> Decorator:
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


@verb(
    short_help="Draw samples from a trained run.",
    epilog="Examples:\n  scoresde sample runs/digits-vp --solver pc --steps 500 --snr 0.16 --n 100\n"
    "  scoresde sample runs/photos --given small/ --each 16\n"
    "  scoresde sample runs/sensors --given gaps.csv",
)
@solver_options(
    "ode", "steps", "rtol", set_first=False,
    what=f"Solver: {', '.join(SOLVERS)}, or module:Class. With a condition, guidance or a measurement, the default is "
         "multistep.",
)  # fmt: skip
@option("--n", under="Samples", first=True, type=Whole(COUNT),
        help=f"Number of samples.  [default: {N}, or --each times the number of questions]")  # fmt: skip
@option("--start", under="Samples", type=Whole(WHOLE), default=0,
        help="Index of the first sample. With questions, number of the first answer to each of them.")  # fmt: skip
@option("--batch", under="Samples", type=Whole(COUNT), default=256, help="Maximum number of samples per batch.")
@option("--denoise/--no-denoise", under="Samples", default=True, help="Finish with a noise-free step.")
@option("--brownian", under="Samples", is_flag=True, help="Use noise that does not depend on the number of steps.")
@option("--path", under="Samples", metavar="NAME",
        help=f"Sample with a different SDE: {', '.join(SDES)}, or module:Class.")  # fmt: skip
@_asking_options()
@conditioning()
@option("--save", under="Files", first=True,
        help="Files to write: png (a picture of all samples), files (a PNG for each image), npz, csv, gif, path (the "
        "states at each frame as arrays).  "
             "[default: png,npz, plus csv if the data are a table]")  # fmt: skip
@option("--frames", under="Files", type=Whole(FRAMES), default=40, help="Number of frames in the GIF and path files.")
@out_option("RUN/samples/SOLVER-seedN")
@resume_option()
@session(run=True, first=(), operator=False)
def sample(
    solver: SolverChoice, n: int | None, start: int, batch: int, denoise: bool, brownian: bool, path: str | None,
    asking: Asking, condition: Conditioning, save: str | None, frames: int, out: Path | None, resume: bool,
    session: Session,
) -> None:  # fmt: skip
    """Draw samples from a trained RUN (default: the newest), and print the path to the picture or the filled table.

    With --given, the samples are answers to questions: each sample is conditioned on one of the given images or rows.
    """
    session = replace(session, operator=asking.own)
    if solver.named or set(solver.options) - {"steps"}:
        solver.build()  # report a wrong option before anything else
    run = session.loaded
    from ..core.parts import batch_kept, digest
    from ..core.progress import Progress
    from ..run.questions import Asked, complete
    from ..run.samples import kinds_of, write_samples

    kinds = kinds_of(run.info, None if save is None else in_list(save))
    typed = click.get_current_context().get_parameter_source("frames") is click.core.ParameterSource.COMMANDLINE
    if typed and not {"gif", "path"} & set(kinds):
        raise UsageError(f"--frames {frames} requires --save gif or --save path; use --save {','.join(kinds)},gif")
    questions = asking.questions(run)
    for note in () if questions is None else questions.notes:
        session.say(note)
    count, each = asking.counts(n, questions)
    if asking.classifier is not None:
        known_class, strength = condition.label, condition.guidance
        run, condition = _by_classifier(run, asking.classifier, condition, session)
    asked = _bound(run, asking, condition, questions, each, session).on(path)
    if asking.near:
        asked, count = _started(asked, asking, n, session)
    asked.model  # noqa: B018  # report an invalid condition before anything else
    solver = solver.for_run(asked)
    built = solver.build()
    # The numbers of answers start at `start`, so the samples of all questions start at the same multiple of it.
    first = start if questions is None else start * len(questions)
    if run.config is not None and run.config.sources.rich and asked.condition is None and asked.rule is None:
        ways = [way for way, there in (("--text", run.info.known.words), ("--given", True)) if there]
        session.say(f"no condition is given, so these are samples of the unconditional model; see {' and '.join(ways)}")
    if save is None and questions is not None and questions.table is not None and run.info.kind == "vector":
        kinds = tuple(dict.fromkeys((*kinds, "csv")))
    record = bool({"gif", "path"} & set(kinds))
    # Create the folder first, so that no samples are lost if the folder cannot be written.
    default = session.folder / "samples" / f"{solver.short}-seed{session.seed}"
    known = asking.facts(asked, questions)
    if questions is not None and complete(asked, questions):
        _unchanged(session, questions, known, out or default)
        return

    def request() -> dict[str, Any]:
        about = {**known, "each": each} if known else {}
        start_of = {} if asked.begin is None else {"from": digest(asked.begin)}
        return asked.sample_request(
            built, seed=session.seed, start=first, denoise=denoise, brownian=brownian, **_identity(about), **start_of
        )

    with work_in(session, out, default, resume, count, "samples", "samples.json", lambda: [request()]) as work:
        if work.finished is not None:
            _again(work, count, session)
            return
        session.say(f"drawing {count} sample{'s' * (count > 1)} from {session.whence} with the {solver.short} solver")
        began = time.monotonic()
        with Progress(count, "sample", quiet=session.quiet) as progress:
            samples = asked.sample(
                count, built, seed=session.seed, start=first, denoise=denoise, batch=batch, brownian=brownian,
                watch=counted(progress, batch_kept(work.parts) or batch), record=record, keep=work.parts,
            )  # fmt: skip
        solution = samples.solution
        nfe = solution.nfe.double()
        answers = None if questions is None else Asked(questions, each, asked.answered, run.info, start)
        facts = {
            "run": str(session.folder), "step": run.step, "solver": solver.short, "options": options_of(built),
            "n": count, "seed": session.seed, "start": start, **condition.facts, "denoise": denoise,
            "brownian": brownian, "path": path,
            **({} if asking.classifier is None else {"label": known_class, "guidance": strength,
                                                     "classifier": str(asking.classifier)}),
            **({"from": _path(asking.near), "at": asked.at} if asking.near else {}),
            "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
            "accepted_mean": round(float(solution.accepted.double().mean()), 2),
            "rejected_mean": round(float(solution.rejected.double().mean()), 2),
            **({} if solution.ess is None else {"ess_mean": round(float(solution.ess.mean()), 2),
                                                "ess_min": round(float(solution.ess.min()), 2)}),
            "failed": (~solution.ok).nonzero().flatten().tolist(), "seconds": round(time.monotonic() - began, 2),
            **({**known, "each": each, **_differing(samples, asked, answers, session)} if known else {}),
        }  # fmt: skip
        more = {"failures": solution.failures(), "requests": [request()]}  # for a later call with the same request
        files = write_samples(
            work.folder, samples, run.info, {**facts, **more}, kinds, codec=run.codec,
            frames=None if solution.trajectory is None else lambda: run.frames(samples, frames),
            reference=(lambda: _behind(asked, session)) if run.info.kind == "vector" else None, asked=answers,
        )  # fmt: skip
        work.done()
        _report(session, work.folder, facts, files, solution.failures())


def _unchanged(session: Session, questions: Questions, known: Mapping[str, Any], place: Path) -> None:
    """Write and report a table without empty cells as it is. No samples are drawn."""
    import numpy as np
    import torch

    from ..core.files import new_folder, write_json
    from ..run.questions import write_filled

    count = len(questions)
    with new_folder(place) as folder:
        known_cells = torch.ones(count, len(questions.places), dtype=torch.bool)
        every: list[tuple[str, ...]] = [()] * count
        file = write_filled(folder / "filled.csv", questions, every, np.arange(count), 1, known_cells, ())
        facts = {"run": str(session.folder), "n": 0, **known}
        write_json(folder / "samples.json", facts)
    session.print(
        {**facts, "files": [str(file)]}, f"{file}  {count:,} row{'s' * (count > 1)} without empty cells, unchanged"
    )


def _bound(
    run: Run, asking: Asking, condition: Conditioning, questions: Questions | None, each: int, session: Session
) -> Run:
    """Condition the run on the questions, texts and class, and print how the questions are interpreted."""
    from ..run.questions import ask, complete, understanding

    spec = asking.measures(run) if questions is not None else None
    if questions is not None and spec is not None:
        asked = _measured(run, asking, condition, questions, each, spec, session)
        if asked is not None:
            return condition.guide(asked)
    # A single text, or a class, applies to all samples.
    asked = ask(
        run, questions, text=() if questions is not None and questions.text == asking.text else asking.text,
        label=condition.label, operator=asking.named(run) if asking.given else None, each=each,
        seed=session.seed,
    )  # fmt: skip
    if questions is not None:
        told = understanding(asked, questions)
        if asked.seen is not None and asked.seen.operator is None:
            told += "; use --operator to degrade the samples first"
        if not complete(asked, questions):
            told += f"; {each:,} answer{'s' * (each > 1)}{' each' * (len(questions) > 1)}"
        session.say(f"given: {told}")
    return condition.guide(asked)


def _measured(
    run: Run, asking: Asking, condition: Conditioning, questions: Questions, each: int, spec: str, session: Session
) -> Run | None:
    """Return the run with measurements that a rule uses, or ``None`` if its network was trained with the operator."""
    from ..run.questions import ask, named_by_line, understanding

    if not asking.by_rule(run):
        session.say(f"{session.whence} was trained with {spec}, so its network uses the measurements")
        return None
    rule, image = asking.rule or "moment", questions.condition.image
    assert image is not None
    several = each if len(asking.text) > 1 else 1
    told = _told(run, asking, condition.label)
    base = ask(run, told, text=asking.text, label=condition.label, each=several, seed=session.seed)
    with named_by_line(questions):
        asked = base.measured(spec, image, asking.noise, rule, each=each, seed=session.seed)
    assert asked.measurement is not None
    added = "to which noise of {:g} is added" if asked.measurement.truth is not None else "with noise of {:g}"
    with_noise = f", {added.format(asking.noise)}" if asking.noise else ""
    session.say(
        f"given: {understanding(asked, questions)}{with_noise}; {each:,} answer{'s' * (each > 1)}"
        f"{' each' * (len(questions) > 1)}, by the rule {rule}"
    )
    return asked


def _told(run: Run, asking: Asking, label: str | None) -> Questions | None:
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


def _by_classifier(run: Run, folder: Path, condition: Conditioning, session: Session) -> tuple[Run, Conditioning]:
    """Return the run, steered by a classifier, and the rest of the conditioning."""
    from ..core.registry import closest
    from ..study.classifier import load_classifier

    if condition.against is not None or condition.interval is not None:
        raise UsageError("--classifier cannot be combined with --against or --guidance-interval; leave them out")
    judge = load_classifier(folder, run.device, edited=session.edited)
    names = judge.info.classes
    if condition.label is None:
        raise UsageError(f"--classifier {folder} requires --label, one of its classes: {', '.join(names[:20])}")
    by_index = condition.label.isdecimal() and len(condition.label) < 10 and int(condition.label) < len(names)
    label = names.index(condition.label) if condition.label in names else int(condition.label) if by_index else -1
    if label < 0:
        raise UsageError(f"unknown class {condition.label!r}; {closest(condition.label, names)}", parameter="label")
    if judge.info.shape != run.info.shape or str(judge.codec.continuous) != str(run.codec.continuous):
        raise UsageError(
            f"the classifier in {folder} was trained on {judge.info.name} with other units than {session.folder}; "
            "train it on the data of the run"
        )
    session.say(f"guided to the class {condition.label} by the classifier in {folder}, scale {condition.guidance:g}")
    steered = run.steered(judge.potential(label), condition.guidance)
    # A run that was trained with the class is also conditioned on it, as in the original work.
    known = condition.label if names[label] in run.info.classes and run.operator is None and _knows(run) else None
    return steered, replace(condition, label=known, guidance=1.0)


def _knows(run: Run) -> bool:
    """Return whether a run was trained with classes."""
    return run.config is not None and run.config.sources.label


def _started(run: Run, asking: Asking, n: int | None, session: Session) -> tuple[Run, int]:
    """Return the run that starts from samples in a file, and the number of samples to draw."""
    from ..run.questions import read_samples

    x, notes = read_samples(run, asking.near)
    for note in notes:
        session.say(note)
    whence = ", ".join(map(str, asking.near))
    if len(asking.text) > 1:
        raise UsageError("--from takes one --text for all samples, or none")
    each, at = asking.each or max(1, (n or 0) // len(x)), 0.5 if asking.at is None else asking.at
    if n not in (None, len(x) * each):
        raise UsageError(f"--n {n} is not a multiple of the {len(x):,} samples in {whence}; use --each instead")
    session.say(f"starting from {len(x):,} sample{'s' * (len(x) > 1)} of {whence} with {at:.0%} noise")
    return run.near(x, at, each=each), len(x) * each


def _path(paths: tuple[Path, ...]) -> str | list[str] | None:
    """Return a path as text, a list if there are several, and ``None`` if there are none."""
    return [str(path) for path in paths] if paths[1:] else str(paths[0]) if paths else None


def _identity(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that identify the questions, with files identified by their content."""
    from ..core.parts import digest

    if not known:
        return {}
    hashes = [*known["files"].values(), *(known["mask"] or {}).values()]
    named = ("operator", "text", "each", *(("rule", "noise") if "rule" in known else ()))
    return {"given": digest(*hashes) if hashes else None, **{k: known[k] for k in named}}


def _differing(samples: Samples, run: Run, answers: Asked | None, session: Session) -> dict[str, Any]:
    """Report and record answers whose measurements differ too much from the given measurements."""
    from ..run.seen import tolerance

    if run.noise and run.measurement is not None and run.measurement.operator is not None:
        fine = samples.solution.ok.cpu()
        seen = run.measurement if len(run.measurement) == 1 else run.measurement.rows(fine.nonzero().flatten())
        off = seen.operator(samples.x[fine].double()) - seen.y  # type: ignore[misc]
        count = off.numel() if seen.hidden is None else int((~seen.hidden).expand_as(off).sum())
        rms = math.sqrt(float(off.square().sum()) / max(1, count))
        session.say(f"A x - y has a root mean square of {rms:.3g}, and the noise of y is {run.noise:.3g}")
        return {"rms_residual": rms}
    if samples.residual is None:
        return {}
    most = tolerance(run.info)
    index = (samples.residual > most * (1 + 1e-9)).nonzero().flatten().tolist()
    if index and answers is not None:
        half = "half a level" if run.info.levels else "1e-6 of the range"
        named = [
            f"{answers.questions.names[i // answers.each]} answer {answers.number(i)} (by {samples.residual[i]:.3g})"
            for i in index[:NAMED]
        ]
        more = f" and {len(index) - NAMED:,} more" if index[NAMED:] else ""
        session.say(
            f"for {len(index):,} of {len(samples.residual):,} answers, clamped to the range of the data, the "
            f"measurement differs from the given one by more than {most:.3g} ({half}): {', '.join(named)}{more}"
        )
    return {"tolerance": most, "residual_max": _highest(samples.residual), "differing": index}


def _highest(values: Tensor) -> float | None:
    finite = values[values.isfinite()]
    return float(finite.max()) if len(finite) else None


def _again(work: Work, n: int, session: Session) -> None:
    """Print the finished result of an earlier call."""
    assert work.finished is not None
    facts = {name: value for name, value in work.finished.items() if name not in ("requests", "failures")}
    if facts.get("n") != n:
        raise UsageError(
            f"{work.folder} already contains a finished result of {facts.get('n')} samples; to draw more samples, use "
            f"another folder and --start {(facts.get('start') or 0) + (facts.get('n') or 0)}",
            parameter="out",
        )
    session.say(f"the result in {work.folder} is already finished; there is nothing left to do")
    names = (
        "answers.png",
        "grid.png",
        "samples.png",
        "files",
        "samples.gif",
        "samples.npz",
        "samples.csv",
        "filled.csv",
        "path.npz",
    )
    files = [path for name in names if (path := work.folder / name).exists()]
    _report(session, work.folder, facts, files, work.finished["failures"])


def _report(session: Session, folder: Path, facts: dict[str, Any], files: list[Path], failures: list[str]) -> None:
    """Print the result, and raise an error if any sample failed."""
    # Third-party integrators do not report how many steps they took.
    steps = f"steps {facts['accepted_mean']:g} accepted, {facts['rejected_mean']:g} rejected  "
    steps = steps if facts["accepted_mean"] else ""
    main = next((file for file in files if file.name == "filled.csv"), files[0] if files else folder)
    if "ess_mean" in facts:
        steps += f"effective particles mean {facts['ess_mean']:g} min {facts['ess_min']:g}  "
    session.print(
        {**facts, "files": [str(f) for f in files]},
        f"{main}  {facts['n']} sample{'s' * (facts['n'] > 1)}  NFE mean {facts['nfe_mean']:g} "
        f"max {facts['nfe_max']}  {steps}{facts['seconds']:.1f} s  seed {facts['seed']}",
    )
    if failures:
        raise NumericalError("; ".join(failures) + f". The other samples are in {folder}.")


def _behind(run: Run, session: Session) -> Tensor | None:
    """Return at most 2,000 training rows to draw behind the samples, or ``None`` if no rows are usable."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the data do not matter here
            data = run.data()
        x, known = data.train, run.condition
        if known is not None and known.label is not None and data.train_labels is not None:
            x = x[torch.isin(data.train_labels, known.label.cpu())]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:2000]
        return x[order] if len(x) and tuple(x.shape[1:]) == run.info.shape else None
    except Exception as error:
        session.say(f"the figure does not show the data: {str(error).partition('. ')[0]}")
        return None
