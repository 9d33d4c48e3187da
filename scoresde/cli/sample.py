"""The command ``scoresde sample``."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import NumericalError, UsageError
from ..core.limits import COUNT, FRAMES, WHOLE
from ..core.parallel import sharing
from ..core.registry import options_of
from ..core.tables import SDES, SOLVERS
from .asking import Asking, N, asking_options, path_text, told_beside_a_rule
from .command import Whole, option, verb
from .common import (
    Conditioning,
    Session,
    SolverChoice,
    conditioning,
    counted,
    in_list,
    out_option,
    session,
    shares_rows,
    solver_options,
)
from .work import Work, resume_option, work_in

if TYPE_CHECKING:
    from torch import Tensor

    from ..run.questions import Asked, Questions
    from ..run.run import Run, Samples

__all__ = ["sample"]

NAMED = 10  # maximum number of samples that a message names


@verb(
    short_help="Draw samples from a trained run.",
    epilog="Examples:\n  scoresde sample runs/digits-vp --solver pc --steps 500 --snr 0.16 --n 100\n"
    "  scoresde sample runs/photos --given small/ --each 16\n"
    "  scoresde sample runs/sensors --given gaps.csv",
)
@solver_options(
    "ode", "steps", "rtol", set_first=False,
    what=f"Solver: {', '.join(SOLVERS)}, or module:Class. With a condition or guidance, the default is multistep. "
         "With a measurement, it is ancestral.",
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
@asking_options()
@conditioning()
@option("--save", under="Files", first=True,
        help="Files to write: png (a picture of all samples), files (a PNG for each image), npz, csv, gif, path (the "
        "states at each frame as arrays).  "
             "[default: png,npz, plus csv if the data are a table]")  # fmt: skip
@option("--frames", under="Files", type=Whole(FRAMES), default=40, help="Number of frames in the GIF and path files.")
@out_option("RUN/samples/SOLVER-seedN")
@resume_option()
@session(run=True, first=(), operator=False, processes=True, execution=True)
@shares_rows
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
    from ..run.questions import Asked, complete, left_empty
    from ..run.samples import kinds_of, write_samples
    from ..solvers import Tuned

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
    built = asked.fitted(solver.build())
    # The numbers of answers start at `start`, so the samples of all questions start at the same multiple of it.
    first = start if questions is None else start * len(questions)
    if run.config is not None and run.config.sources.rich and asked.condition is None and asked.rule is None:
        ways = [way for way, there in (("--text", run.info.known.words), ("--given", True)) if there]
        session.say(f"no condition is given, so these are samples of the unconditional model; see {' and '.join(ways)}")
    if save is None and questions is not None and questions.table is not None and run.info.kind == "vector":
        kinds = tuple(dict.fromkeys((*kinds, "csv")))
    tabular = questions is not None and questions.table is not None and "csv" in kinds  # filled.csv is written
    if tabular and (empty := left_empty(questions)):
        session.say(empty)
    record = bool({"gif", "path"} & set(kinds))
    # Create the folder first, so that no samples are lost if the folder cannot be written.
    default = session.folder / "samples" / f"{solver.short}-seed{session.seed}"
    known = asking.facts(asked, questions)
    if questions is not None and complete(asked, questions):
        if session.main:
            _unchanged(session, questions, known, out or default)
        return

    def request() -> dict[str, Any]:
        about = {**known, "each": each} if known else {}
        start_of = {} if asked.begin is None else {"from": digest(asked.begin)}
        return asked.sample_request(
            built, seed=session.seed, start=first, denoise=denoise, brownian=brownian, **_identity(about), **start_of
        )

    opened = work_in(session, out, default, resume, count, "samples", "samples.json", lambda: [request()])
    with sharing().leading(opened) as work:
        if work.finished is not None:
            _again(work, count, session)
            return
        session.say(
            f"drawing {count} sample{'s' * (count > 1)} from {session.whence} with the {solver.short} solver"
            f"{', which was fitted to this run' * isinstance(built, Tuned)}"
        )
        session.share_threads([run], min(count, batch))
        began = time.monotonic()
        with Progress(count, "sample", quiet=session.quiet) as progress:
            samples = asked.sample(
                count, built, seed=session.seed, start=first, denoise=denoise, batch=batch, brownian=brownian,
                watch=counted(progress, batch_kept(work.parts) or batch), record=record, keep=work.parts,
            )  # fmt: skip
        sharing().wait()
        if not session.main:  # the first process writes the samples
            return
        solution = samples.solution
        nfe = solution.nfe.double()
        answers = None if questions is None else Asked(questions, each, asked.answered, run.info, start)
        facts = {
            "run": str(session.folder), "step": run.step, "solver": solver.short, "options": options_of(built),
            "n": count, "seed": session.seed, "start": start, **condition.facts, "denoise": denoise,
            "brownian": brownian, "path": path,
            **({} if asking.classifier is None else {"label": known_class, "guidance": strength,
                                                     "classifier": str(asking.classifier)}),
            **({"from": path_text(asking.near), "at": asked.at} if asking.near else {}),
            **({"fitted": True} if isinstance(built, Tuned) else {}),
            "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
            "accepted_mean": round(float(solution.accepted.double().mean()), 2),
            "rejected_mean": round(float(solution.rejected.double().mean()), 2),
            **({} if solution.ess is None else {"ess_mean": round(float(solution.ess.mean()), 2),
                                                "ess_min": round(float(solution.ess.min()), 2)}),
            "failed": (~solution.ok).nonzero().flatten().tolist(), "seconds": round(time.monotonic() - began, 2),
            **({**known, "each": each, **_differing(samples, asked, answers, session)} if known else {}),
            **({"lines": answers.lines(solution.ok.cpu())} if answers is not None and tabular else {}),
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
        {**facts, "files": [str(file)]}, f"{file}  {count:,} row{'s' * (count > 1)} without cells to fill, unchanged"
    )


def _bound(
    run: Run, asking: Asking, condition: Conditioning, questions: Questions | None, each: int, session: Session
) -> Run:
    """Condition the run on the questions, texts and class, and print how the questions are interpreted."""
    from ..run.questions import ask, complete, understanding

    spec = asking.measures(run) if questions is not None else None
    if questions is not None and spec is not None:
        if (asked := _measured(run, asking, condition, questions, each, spec, session)) is not None:
            return asked
    # A single text, or a class, applies to all samples.
    asked = ask(
        run, questions, text=() if questions is not None and questions.text == asking.text else asking.text,
        label=condition.label, operator=asking.named(run) if asking.given else None, each=each,
        seed=session.seed,
    )  # fmt: skip
    guided = condition.guide(asked)
    guided.model  # noqa: B018  # report what the run cannot do before saying what will be drawn
    if questions is not None:
        told = understanding(asked, questions)
        if asked.seen is not None and asked.seen.operator is None:
            told += "; use --operator to degrade the samples first"
        if not complete(asked, questions):
            told += f"; {each:,} answer{'s' * (each > 1)}{' each' * (len(questions) > 1)}"
        session.say(f"given: {told}")
    return guided


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
    told = told_beside_a_rule(run, asking, condition.label)
    base = ask(run, told, text=asking.text, label=condition.label, each=several, seed=session.seed)
    with named_by_line(questions):
        asked = base.measured(spec, image, asking.noise, rule, each=each, seed=session.seed)
    assert asked.measurement is not None
    guided = condition.guide(asked)
    guided.model  # noqa: B018  # report what the run cannot do before saying what will be drawn
    added = "to which noise of {:g} is added" if asked.measurement.truth is not None else "with noise of {:g}"
    with_noise = f", {added.format(asking.noise)}" if asking.noise else ""
    session.say(
        f"given: {understanding(asked, questions)}{with_noise}; {each:,} answer{'s' * (each > 1)}"
        f"{' each' * (len(questions) > 1)}, by the rule {rule}"
    )
    return guided


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
    pictures, arrays = ("answers.png", "grid.png", "samples.png", "files", "samples.gif"), ("samples.npz", "path.npz")
    names = (*pictures, arrays[0], "samples.csv", "filled.csv", arrays[1])
    files = [path for name in names if (path := work.folder / name).exists()]
    _report(session, work.folder, facts, files, work.finished["failures"])


def _report(session: Session, folder: Path, facts: dict[str, Any], files: list[Path], failures: list[str]) -> None:
    """Print the result, and raise an error if any sample failed."""
    # Third-party integrators do not report how many steps they took.
    steps = f"steps {facts['accepted_mean']:g} accepted, {facts['rejected_mean']:g} rejected  "
    steps = steps if facts["accepted_mean"] else ""
    main = next((file for file in files if file.name == "filled.csv"), files[0] if files else folder)
    n = facts.get("lines")
    lines = "" if n is None else f"{n:,} row{'s' * (n != 1)}  "
    steps += "fitted  " if facts.get("fitted") else ""
    if "ess_mean" in facts:
        steps += f"effective particles mean {facts['ess_mean']:g} min {facts['ess_min']:g}  "
    session.print(
        {**facts, "files": [str(f) for f in files]},
        f"{main}  {lines}{facts['n']} sample{'s' * (facts['n'] > 1)}  NFE mean {facts['nfe_mean']:g} "
        f"max {facts['nfe_max']}  {steps}{facts['seconds']:.1f} s  seed {facts['seed']}",
    )
    if failures:
        raise NumericalError("; ".join(failures) + f". The other samples are in {folder}.")


def _behind(run: Run, session: Session) -> Tensor | None:
    """Return at most 2,000 training rows to draw behind the samples, or ``None`` if no rows are usable."""
    import torch

    from ..data.rows import part

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the data do not matter here
            data = run.data()
        x, known = data.train, run.condition
        if known is not None and known.label is not None and data.train_labels is not None:
            x = part(x, torch.isin(data.train_labels, known.label.cpu()))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:2000]
        return x[order] if len(x) and tuple(x.shape[1:]) == run.info.shape else None
    except Exception as error:
        session.say(f"the figure does not show the data: {str(error).partition('. ')[0]}")
        return None
