"""The command ``scoresde sample``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import NumericalError, UsageError
from ..core.limits import COUNT, FRAMES, WHOLE
from ..core.registry import options_of
from ..core.tables import SDES
from .command import Whole, option, verb
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
        given: A file or folder with images or rows to condition on (the questions), or ``None``.
        each: Number of samples for each question, or ``None`` if the user did not set it.
        mask: A file with the mask of the samples in ``given``, or ``None``.
        operator: The operator that measures the samples in ``given``, or ``None`` to use the run's operator.
        text: One text for all questions, or one text for each question.
    """

    given: Path | None
    each: int | None
    mask: Path | None
    operator: str | None
    text: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.mask is not None and self.given is None:
            raise UsageError(f"--mask {self.mask} requires --given, the file with the samples to mask")

    @property
    def own(self) -> str | None:
        """The operator if it is a user-defined class, otherwise ``None``.

        If the run was trained with this class, the user must name the class again to load the run.
        """
        return own_class(self.operator)

    def questions(self, run: Run) -> Questions | None:
        """Return the questions, which come from a file or from the texts, or ``None`` if there are none.

        A single text is a question only if ``each`` is given. Otherwise, it applies to all samples.
        """
        from ..core.condition import Condition
        from ..run.questions import Questions, read_questions

        if self.given is not None:
            return read_questions(run, self.given, mask=self.mask, operator=self.operator)
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
        operator = None if run.seen is None or run.seen.operator is None else str(run.seen.operator)
        return {
            "given": None if self.given is None else str(self.given),
            "files": {str(path): file_digest(path) for path in files},
            "mask": None if self.mask is None else {str(self.mask): file_digest(self.mask)},
            "operator": operator, "text": list(self.text), "questions": 1 if questions is None else len(questions),
        }  # fmt: skip


def _asking_options() -> Decorator:
    """Add the options for all conditions except the class, and pass their values to the command as ``asking``."""
    return together(
        "asking", Asking,
        option("--given", under="Conditioning", first=True, type=click.Path(path_type=Path), metavar="PATH",
               help="Conditions of the samples: an image, a folder of images, an npy or npz file, or a table whose "
                    "empty cells are to be filled. Each image or row is one question. The run must have been trained "
                    "with --cond."),
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
    )  # fmt: skip


@verb(
    short_help="Draw samples from a trained run.",
    epilog="Examples:\n  scoresde sample runs/digits-vp --solver pc --steps 500 --snr 0.16 --n 100\n"
    "  scoresde sample runs/photos --given small/ --each 16\n"
    "  scoresde sample runs/sensors --given gaps.csv",
)
@solver_options("ode", "steps", "rtol", set_first=False)
@option("--n", under="Samples", first=True, type=Whole(COUNT),
        help=f"Number of samples.  [default: {N}, or --each times the number of questions]")  # fmt: skip
@option("--start", under="Samples", type=Whole(WHOLE), default=0, help="Index of the first sample.")
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
    """Draw samples from a trained RUN (default: the newest), and print the path of the picture or of the filled table.

    With --given, the samples are answers to questions: each sample is conditioned on one of the given images or rows.
    """
    built = solver.build()
    session = replace(session, operator=asking.own)
    run = session.loaded
    from ..core.parts import batch_kept
    from ..core.progress import Progress
    from ..run.questions import Asked
    from ..run.samples import kinds_of, write_samples

    kinds = kinds_of(run.info, None if save is None else in_list(save))
    typed = click.get_current_context().get_parameter_source("frames") is click.core.ParameterSource.COMMANDLINE
    if typed and not {"gif", "path"} & set(kinds):
        raise UsageError(f"--frames {frames} requires --save gif or --save path; use --save {','.join(kinds)},gif")
    questions = asking.questions(run)
    count, each = asking.counts(n, questions)
    asked = _bound(run, asking, condition, questions, each, session).on(path)
    asked.model  # noqa: B018  # report an invalid condition before anything else
    if run.config is not None and run.config.sources.rich and asked.condition is None:
        ways = [way for way, there in (("--text", run.info.known.words), ("--given", True)) if there]
        session.say(f"no condition is given, so these are samples of the unconditional model; see {' and '.join(ways)}")
    if save is None and questions is not None and questions.table is not None and run.info.kind == "vector":
        kinds = tuple(dict.fromkeys((*kinds, "csv")))
    record = bool({"gif", "path"} & set(kinds))
    # Create the folder first, so that no samples are lost if the folder cannot be written.
    default = session.folder / "samples" / f"{solver.short}-seed{session.seed}"
    known = asking.facts(asked, questions)

    def request() -> dict[str, Any]:
        about = {**known, "each": each} if known else {}
        return asked.sample_request(
            built, seed=session.seed, start=start, denoise=denoise, brownian=brownian, **_identity(about)
        )

    with work_in(session, out, default, resume, count, "samples", "samples.json", lambda: [request()]) as work:
        if work.finished is not None:
            _again(work, count, session)
            return
        session.say(f"drawing {count} sample{'s' * (count > 1)} from {session.whence} with the {solver.short} solver")
        began = time.monotonic()
        with Progress(count, "sample", quiet=session.quiet) as progress:
            samples = asked.sample(
                count, built, seed=session.seed, start=start, denoise=denoise, batch=batch, brownian=brownian,
                watch=counted(progress, batch_kept(work.parts) or batch), record=record, keep=work.parts,
            )  # fmt: skip
        solution = samples.solution
        nfe = solution.nfe.double()
        answers = None if questions is None else Asked(questions, each, asked.seen, run.info)
        facts = {
            "run": str(session.folder), "step": run.step, "solver": solver.short, "options": options_of(built),
            "n": count, "seed": session.seed, "start": start, **condition.facts, "denoise": denoise,
            "brownian": brownian, "path": path,
            "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
            "accepted_mean": round(float(solution.accepted.double().mean()), 2),
            "rejected_mean": round(float(solution.rejected.double().mean()), 2),
            "failed": (~solution.ok).nonzero().flatten().tolist(), "seconds": round(time.monotonic() - began, 2),
            **({**known, "each": each, **_differing(samples, run, answers, session)} if known else {}),
        }  # fmt: skip
        more = {"failures": solution.failures(), "requests": [request()]}  # for a later call with the same request
        files = write_samples(
            work.folder, samples, run.info, {**facts, **more}, kinds, codec=run.codec,
            frames=None if solution.trajectory is None else lambda: run.frames(samples, frames),
            reference=(lambda: _behind(asked, session)) if run.info.kind == "vector" else None, asked=answers,
        )  # fmt: skip
        work.done()
        _report(session, work.folder, facts, files, solution.failures())


def _bound(
    run: Run, asking: Asking, condition: Conditioning, questions: Questions | None, each: int, session: Session
) -> Run:
    """Condition the run on the questions, texts and class, and print how the questions were interpreted."""
    from ..run.questions import ask, understanding

    # A single text, or a class, applies to all samples.
    asked = ask(
        run, questions, text=() if questions is not None and questions.text == asking.text else asking.text,
        label=condition.label, operator=asking.operator if asking.given is not None else None, each=each,
        seed=session.seed,
    )  # fmt: skip
    if questions is not None:
        told = understanding(asked, questions)
        if asked.seen is not None and asked.seen.operator is None:
            told += "; use --operator to degrade the samples first"
        session.say(f"given: {told}; {each:,} answer{'s' * (each > 1)}{' each' * (len(questions) > 1)}")
    return asked.guided(condition.guidance)


def _identity(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that identify the questions. Files are identified by their content, not by their names."""
    from ..core.parts import digest

    if not known:
        return {}
    hashes = [*known["files"].values(), *(known["mask"] or {}).values()]
    return {"given": digest(*hashes) if hashes else None, **{k: known[k] for k in ("operator", "text", "each")}}


def _differing(samples: Samples, run: Run, answers: Asked | None, session: Session) -> dict[str, Any]:
    """Find and report the samples whose measurements differ from the given measurements by more than the tolerance.

    Return a record of these samples.
    """
    from ..run.seen import tolerance

    if samples.residual is None:
        return {}
    most = tolerance(run.info)
    index = (samples.residual > most * (1 + 1e-9)).nonzero().flatten().tolist()
    if index and answers is not None:
        half = "half a level" if run.info.levels else "1e-6 of the range"
        named = [
            f"{answers.questions.names[i // answers.each]} answer {i % answers.each} (by {samples.residual[i]:.3g})"
            for i in index[:NAMED]
        ]
        more = f" and {len(index) - NAMED:,} more" if index[NAMED:] else ""
        session.say(
            f"for {len(index):,} of {len(samples.residual):,} answers, the measurement differs from the given one by "
            f"more than {most:.3g} ({half}) after the answer is clamped to the range of the data: {', '.join(named)}"
            f"{more}"
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
            f"another folder and --start {facts.get('n')}",
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
    session.print(
        {**facts, "files": [str(f) for f in files]},
        f"{main}  {facts['n']} sample{'s' * (facts['n'] > 1)}  NFE mean {facts['nfe_mean']:g} "
        f"max {facts['nfe_max']}  {steps}{facts['seconds']:.1f} s  seed {facts['seed']}",
    )
    if failures:
        raise NumericalError("; ".join(failures) + f". The other samples are in {folder}.")


def _behind(run: Run, session: Session) -> Tensor | None:
    """Select at most 2,000 training rows for the figure, from the classes that the run is conditioned on.

    Return ``None`` if the data are no longer available or do not match the run.
    """
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
