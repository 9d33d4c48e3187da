"""The command ``scoresde evaluate``."""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import DataError, NumericalError, UsageError
from ..core.limits import COUNT, SEVERAL, WHOLE
from ..core.parallel import sharing
from ..core.registry import options_of
from ..core.tables import ANSWERS, METRICS
from .command import Whole, option, verb
from .common import (
    Session,
    SolverChoice,
    counted,
    in_list,
    out_option,
    own_class,
    reading_options,
    session,
    shares_rows,
    solver_options,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset, Reading
    from ..solvers import Solution, Solver
    from ..study.answers import Judgement
    from ..study.features import Extractor

__all__ = ["evaluate"]

ALL = ",".join((*METRICS, "copies"))


@verb(
    short_help="Compare samples with data.",
    epilog="Examples:\n  scoresde evaluate runs/digits-vp\n"
    "  scoresde evaluate runs/photos --features inception --part train --n 50000 --limit 0\n"
    "  scoresde evaluate --samples theirs.npz --data photos/ --metrics frechet,copies\n"
    "  scoresde evaluate runs/photos-pool --given test --each 8",
)
@option("--samples", under="Data", first=True, type=click.Path(path_type=Path),
        help="Use the samples in a file (npz, npy, csv) or a folder instead of drawing samples.")  # fmt: skip
@option("--units", under="Data", default="auto", metavar="LOW,HIGH",
        help="Units of the samples: auto, data, model, or the sample values, such as 0,1, that correspond to the "
             "lowest and the highest data value.")  # fmt: skip
@option("--data", under="Data", first=True,
        help="Data to compare with: all rows of a file or folder, or a part of it if it has a train and a test part.  "
             "[default: the part of the run's own data that was held out]")  # fmt: skip
@reading_options()
@option("--part", under="Data", type=click.Choice(["test", "train"]),
        help="Part of the data to compare with.  [default: the part in --given, or test]")  # fmt: skip
@option("--against", under="Data", hidden=True)
@option("--limit", under="Data", type=Whole(WHOLE), default=10_000,
        help="Compare with at most this many rows of the data, drawn at random (0: with all rows). With --given, also "
             "the maximum number of rows to condition on.")  # fmt: skip
@option("--features", under="Metrics", first=True, default="auto",
        help="Features to compare: auto, pixels, classifier[:FOLDER], inception[:FILE], module:function, or an .npz "
             "file of features.")  # fmt: skip
@option("--metrics", under="Metrics", first=True,
        help=f"Metrics to compute: any of {ALL}, or module:function; with --given, also any of {','.join(ANSWERS)}.  "
             "[default: all in the first list; with --given, all in the second list]")  # fmt: skip
@option("--copies-by", under="Metrics", default="pixels",
        help="Features used to detect copies of training data.")  # fmt: skip
@option(
    "--given",
    under="Conditioning",
    first=True,
    metavar="SPLIT",
    help="Condition the run on rows of this split (test or train), and compare the samples (answers) with these rows.",
)
@option(
    "--each",
    under="Conditioning",
    first=True,
    type=Whole(COUNT),
    help="Number of answers for each row. The number of rows is at most --n divided by --each.  [default: 8]",
)
@option("--operator", under="Conditioning", metavar="NAME",
        help="Operator that measures the rows.  [default: the operator of the run]")  # fmt: skip
@option("--n", under="Samples", first=True, type=Whole(SEVERAL), default=500, help="Number of samples to draw.")
@option("--batch", under="Samples", type=Whole(COUNT), default=256, help="Maximum number of samples per batch.")
@solver_options("multistep", "steps", "rtol", first=("solver",), set_first=False, unless={"multistep": {"steps": 30}})
@option("--reference", under="Files", type=click.Path(path_type=Path),
        help="Compare with the data statistics in this file.")  # fmt: skip
@option("--save-reference", under="Files", type=click.Path(path_type=Path),
        help="Save the statistics of the data to this file.")  # fmt: skip
@out_option("RUN/evaluation")
@session(run=True, first=(), operator=False, processes=True)
@shares_rows
def evaluate(
    samples: Path | None, units: str, data: str | None, reading: Reading, part: str | None, against: str | None,
    limit: int, features: str, metrics: str | None, copies_by: str, given: str | None, each: int | None,
    operator: str | None, n: int, batch: int, solver: SolverChoice, reference: Path | None,
    save_reference: Path | None, out: Path | None, session: Session,
) -> None:  # fmt: skip
    """Measure the quality of samples from a trained RUN (default: the newest).

    The command prints each metric with its standard error, next to the value for real data. It also reports samples
    that appear to be copies of training data.

    With --given, the run is conditioned on rows of the data. Several samples (answers) are drawn for each row and
    compared with the row itself.
    """
    if against is not None:
        raise UsageError(f"--against {against} is now written --part {against}; --against names a model in sample")
    built = solver.build()
    from ..run.plausible import in_data_units, read_units

    read_units(units)
    if units != "auto" and samples is None and data is None:
        raise UsageError(f"--units {units} requires --samples or --data; the units of a run's own samples are known")
    asks = None if given is None else _Asks(given, 8 if each is None else each, operator, limit)
    session = replace(session, operator=own_class(operator))
    usual = ",".join(ANSWERS) if asks is not None else ALL
    names = in_list(usual if metrics is None else metrics)
    if not names:
        raise UsageError(f"--metrics is empty; choose from: {usual}")
    if asks is None:
        for flag, value in (("--each", each), ("--operator", operator)):
            if value is not None:
                raise UsageError(f"{flag} {value} is only for the answers of a conditional run; add --given test")
    else:
        asks.check(names, n, samples, features)
        for flag, file in (("--reference", reference), ("--save-reference", save_reference)):
            if file is not None and set(names) <= set(ANSWERS):
                raise UsageError(
                    f"{flag} {file} requires a metric that compares features, as in --metrics psnr,frechet"
                )
    of_answers = [name for name in names if name in ANSWERS]
    if asks is None and of_answers:
        raise UsageError(
            f"the metric {of_answers[0]!r} compares the answers of a conditional run with the truth; add --given test, "
            "or leave out the metric",
            parameter="given",
            value="test",
        )
    names = [name for name in names if name not in ANSWERS]
    began = time.monotonic()
    chosen = session.on
    facts: dict[str, Any]
    from ..study.answers import answers_table, described_answers, write_calibration
    from ..study.evaluate import described, evaluate_features, evaluation_table, metrics_by_name, write_evaluation
    from ..study.evaluate import evaluate as measure
    from ..study.features import Reference, extractor_by_name

    wanted, copies = metrics_by_name([name for name in names if name != "copies"]), "copies" in names
    known = None if reference is None else Reference.load(reference)  # before drawing samples, which takes a long time
    found, judged, pictures, facts = None, None, None, {}
    with ExitStack() as stack:  # an error or a signal deletes the folder if it is empty
        if Path(features).suffix == ".npz":
            if session.run or samples or data or reference or save_reference:
                raise UsageError(
                    f"--features {features} provides both the samples and the reference; omit RUN, --samples, --data, "
                    "--reference and --save-reference"
                )
            folder = stack.enter_context(sharing().leading(session.new_folder(out or Path("evaluation"))))
            if not session.main:
                return
            found, facts = evaluate_features(Path(features), wanted, copies=copies), {"file": features}
        else:
            source = _source(session, samples, units, data, reading)
            for flag, name in (("--part", part), ("--given", given)):
                if source.whole and name == "train":
                    raise UsageError(
                        f"{flag} train: {data} is not divided into a training and a test part, so all of its rows are "
                        + ("used; write --given test" if flag == "--given" else "compared with; omit --part")
                    )

            def extractor(spec: str) -> Extractor:
                return extractor_by_name(
                    spec, source.data, folder=source.classifier, device=chosen, told=session.say, edited=session.edited
                )

            folder = stack.enter_context(sharing().leading(session.new_folder(out or source.home / "evaluation")))
            by = extractor(features) if names else None
            if known is not None and by is not None:
                known.check(by)
            x, facts = source.samples, {"samples": str(samples), "units": units}
            if asks is not None:
                x, facts, judged = asks.answered(
                    session,
                    source.data,
                    n,
                    built,
                    solver,
                    batch,
                    of_answers if metrics is not None else None,
                    "all rows" if source.whole else asks.split,
                )
            elif x is None:
                x, facts = _draw(session, source.data, n, built, solver, batch)
            if not session.main:  # the samples are drawn, and the first process compares them
                return
            if by is not None:
                known_as = None
                if samples is None and session.loaded.config is not None:
                    known_as = session.loaded.config.data
                if samples is None and data not in (None, known_as):
                    theirs = replace(source.data, train=source.data.test) if source.whole else source.data
                    x = in_data_units(x, theirs, units, f"the samples of {session.folder}")
                session.say(f"comparing {len(x):,} samples with {source.data.info.name}")
                found = measure(
                    x, source.data, by, wanted, against=part or given or "test", reference=known,
                    copies=(by if copies_by == features else extractor(copies_by)) if copies else None,
                    limit=limit, seed=session.seed, check=False,
                    on_metric=lambda row: session.say(f"{row.metric:10} {row.samples}"),
                )  # fmt: skip
                pictures = (source.data.info, x, source.data.train)
                facts |= {"against": found.reference.split}
            facts |= {"data": source.data.info.source, "limit": limit, "seed": session.seed}
        if save_reference is not None and found is not None:
            found.reference.save(save_reference)
        facts["seconds"] = round(time.monotonic() - began, 1)
        told = {} if judged is None else {"answers": described_answers(judged)}
        files = [] if found is None else write_evaluation(folder, found, {**facts, **told}, pictures)
        told |= {} if found is None else described(found)
        if judged is not None:
            files = [*write_calibration(folder, judged, {**facts, **told}), *files[:-1]]
    labels = "".join(f"\n{key}: {facts[key]}" for key in ("labels", "conditions") if facts.get(key))
    fitted = "fitted  " if facts.get("fitted") else ""
    asked_of = "" if asks is None else asks.some(facts["rows"], facts["rows_available"])
    tables = [] if judged is None else [f"{answers_table(judged)}{asked_of}"]
    tables += [] if found is None else [f"{evaluation_table(found)}{labels}{'' if tables else asked_of}"]
    session.print(
        {**facts, **told, "files": [str(f) for f in files]},
        "\n\n".join([*tables, f"{files[0]}  {fitted}{facts['seconds']:.1f} s  seed {session.seed}"]),
    )


@dataclass(frozen=True)
class _Asks:
    """The options for ``--given``, which conditions a run on rows of the data (the questions).

    Args:
        split: The split that contains the rows, ``test`` or ``train``.
        each: Number of answers to each question.
        operator: The operator that measures the rows, or ``None`` to use the run's operator.
        limit: Maximum number of questions, or 0 for no limit.
    """

    split: str
    each: int
    operator: str | None
    limit: int

    def check(self, names: list[str], n: int, samples: Path | None, features: str) -> None:
        """Reject invalid or contradictory options."""
        from ..study.answers import check_metrics

        if self.split not in ("test", "train"):
            raise UsageError(
                f"--given must be test or train, got {self.split!r}; to use the rows of a file, add --data FILE "
                "--given test"
            )
        for flag, value in (("--samples", samples), ("--features", features if features.endswith(".npz") else None)):
            if value is not None:
                raise UsageError(f"{flag} {value} provides the samples, but --given draws them; use one of the two")
        check_metrics([name for name in names if name in ANSWERS], self.each)
        if n < self.each:
            raise UsageError(f"--n {n} is less than --each {self.each}; use --n {100 * self.each}")

    def answered(
        self, session: Session, data: Dataset, n: int, built: Solver, solver: SolverChoice, batch: int,
        metrics: list[str] | None, part: str,
    ) -> tuple[Tensor, dict[str, Any], Judgement | None]:  # fmt: skip
        """Draw answers in data units, and compare the answers with the rows on which they are conditioned.

        The text ``part`` says which rows of the data these are.
        ``metrics=None`` selects all metrics that can be computed, and an empty list selects none.
        """
        from ..core.progress import Progress
        from ..study.answers import ask, check_metrics, judge, questions, training_rows
        from ..study.baselines import estimates

        run, seed = session.loaded, session.seed
        check_metrics(metrics or (), self.each, run)  # before drawing answers, which takes a long time
        most = n // self.each
        rows = questions(data, self.split, min(most, self.limit or most), seed)
        available = len(questions(data, self.split))
        count = len(rows) * self.each
        of_rows = f"each of {len(rows):,} rows" if len(rows) > 1 else "1 row"
        of_rows += f" (out of {available:,})" if len(rows) < available else ""
        session.say(
            f"drawing {self.each} answer{'s' * (self.each > 1)} for {of_rows} of {data.info.name} ({part}) from "
            f"{session.whence} with the {solver.name} solver{_fitted(built)}"
        )
        with Progress(count, "answer", quiet=session.quiet) as progress:
            found = ask(
                run, data, rows, split=self.split, each=self.each, solver=built, operator=self.operator, seed=seed,
                batch=batch, watch=counted(progress, batch),
            )  # fmt: skip
        judged = None
        if metrics is None or metrics:
            judged = judge(found, metrics, training=training_rows(data), others=estimates(found, data), seed=seed)
        assert found.solution is not None
        shown = None if found.seen is None else str(found.seen.operator or self.operator or run.operator)
        facts = _facts(session, built, solver, found.solution)
        facts |= {
            "given": self.split, "each": self.each, "operator": shown, "questions_failed": found.failed,
            "rows": len(rows), "rows_available": available,
        }  # fmt: skip
        return found.x.flatten(0, 1), facts, judged

    def some(self, rows: int, available: int) -> str:
        """Return a line that says how to use all rows, or "" if all of them are used."""
        if rows == available:
            return ""
        limit = " --limit 0" * (0 < self.limit < available)
        return f"\n{rows:,} of {available:,} rows; --n {self.each * available}{limit} asks about all of them"


@dataclass(frozen=True, eq=False)
class _Source:
    """The data to compare samples with, and the samples if they come from a file.

    If ``whole`` is set, all rows of the named data are test rows, and the training rows are those of the run.
    """

    data: Dataset
    home: Path
    classifier: Path | None
    samples: Tensor | None
    whole: bool = False


def _source(session: Session, samples: Path | None, units: str, data: str | None, reading: Reading) -> _Source:
    """Load the data, and load the samples if they come from a file."""
    from ..data import load_data
    from ..data.raw import AS_IS
    from ..run.config import TrainConfig
    from ..run.files import read_config
    from ..run.origin import data_of
    from ..run.run import described
    from ..run.samples import read_samples
    from ..run.truths import read_truths

    if samples is not None and data is not None and session.run is None:  # no run is needed
        dataset = load_data(data, reading=reading)
        for note in dataset.notes:
            session.say(note)
        return _Source(dataset, samples.parent, None, read_samples(samples, dataset, units))
    if reading != AS_IS:
        raise UsageError("the run determines how files are read; omit --size, --fit, --layout and --on-bad")
    folder = session.found
    loaded = None if samples is not None else session.loaded
    config = TrainConfig.from_dict(read_config(folder))
    # The codec comes from the run, so that features and model units do not change if rows are added to the data.
    info, spec = described(folder, config)
    if data is None:
        dataset, whole = data_of(folder, config, changed=session.changed_data), False
    else:
        dataset, whole = read_truths(
            folder, config, info, spec.codec, data, changed=session.changed_data, told=session.say
        )
    theirs = dataset.info
    if loaded is not None and (theirs.shape, theirs.levels) != (loaded.info.shape, loaded.info.levels):
        raise DataError(
            f"{theirs.name} has shape {theirs.shape} and {theirs.levels or 'no'} levels, but the run was trained on "
            f"data with shape {loaded.info.shape} and {loaded.info.levels or 'no'} levels, so its samples cannot be "
            "compared with these data; use data of the same shape with the same number of levels"
        )
    if (theirs.shape, theirs.levels) == (info.shape, info.levels):
        dataset = replace(dataset, codec=spec.codec.own)
    compared = replace(dataset, train=dataset.test) if whole else dataset  # samples have the units of these rows
    given = None if samples is None else read_samples(samples, compared, units)
    return _Source(dataset, folder, folder / "classifier" if data is None else None, given, whole)


def _draw(
    session: Session, data: Dataset, n: int, built: Solver, solver: SolverChoice, batch: int
) -> tuple[Tensor, dict[str, Any]]:
    """Draw samples. Return those that succeeded, in data units, and a record of how they were drawn."""
    import torch

    from ..core.progress import Progress

    run = session.loaded
    rich = run.config is not None and run.config.sources.rich
    labels = None if rich else run.example_labels(n)
    # Held-out rows serve as conditions, so that the samples are distributed like the data.
    asked = run.given_rows(data, torch.arange(n) % len(data.test), seed=session.seed) if rich else run.given(labels)
    built = asked.fitted(built)
    session.say(f"drawing {n} samples from {session.whence} with the {solver.name} solver{_fitted(built)}")
    session.share_threads([run], min(n, batch))
    with Progress(n, "sample", quiet=session.quiet) as progress:
        drawn = asked.sample(n, built, seed=session.seed, batch=batch, watch=counted(progress, batch))
    ok = drawn.solution.ok.cpu()
    if int(ok.sum()) < 2:
        raise NumericalError("; ".join(drawn.solution.failures()))
    if not bool(ok.all()):
        warnings.warn(f"{'; '.join(drawn.solution.failures())}; failed samples are left out", stacklevel=1)
    by_class = run.config is not None and run.config.cond == "class"
    unlabelled = "none, so the samples are those of the model without labels" if by_class else None
    return drawn.x[ok], {
        **_facts(session, built, solver, drawn.solution),
        "labels": unlabelled if labels is None else "in the proportions of the training data",
        **({"conditions": "those of held-out rows"} if rich else {}),
    }


def _fitted(built: Solver) -> str:
    """Return what to add to the name of a solver that was fitted to the run."""
    from ..solvers import Tuned

    return ", which was fitted to this run" * isinstance(built, Tuned)


def _facts(session: Session, built: Solver, solver: SolverChoice, solution: Solution) -> dict[str, Any]:
    """Return a record of how samples were drawn."""
    from ..study.evaluate import resolved_options

    told = {"fitted": True} if _fitted(built) else {}
    run, nfe = session.loaded, solution.nfe
    return {
        "run": str(run.folder), "step": run.step, "solver": solver.name, **told, "options": options_of(built),
        "resolved": resolved_options(built, run.base), "denoise": True,
        "nfe_mean": round(float(nfe.double().mean()), 2), "nfe_max": int(nfe.max()),
        "failed": int((~solution.ok).sum()), "dtype": session.dtype, "device": str(run.device),
        "weights": run.request({})["weights"],
    }  # fmt: skip
