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
from ..core.registry import options_of
from ..core.tables import METRICS
from .command import Whole, option, verb
from .common import Session, SolverChoice, counted, in_list, out_option, reading_options, session, solver_options

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset, Reading
    from ..solvers import Solver
    from ..study.features import Extractor

__all__ = ["evaluate"]

ALL = ",".join((*METRICS, "copies"))


@verb(
    short_help="Compare samples with data.",
    epilog="Examples:\n  scoresde evaluate runs/digits-vp\n"
    "  scoresde evaluate runs/photos --features inception --against train --n 50000 --limit 0\n"
    "  scoresde evaluate --samples theirs.npz --data photos/ --metrics frechet,copies",
)
@option("--samples", under="Data", first=True, type=click.Path(path_type=Path),
        help="Use samples from a file (npz, npy, csv) or a folder, instead of drawing them.")  # fmt: skip
@option("--units", under="Data", default="auto", metavar="LOW,HIGH",
        help="Units of the samples: auto, data, model, or the two values, such as 0,1, that correspond to the lowest "
             "and the highest value in the data.")  # fmt: skip
@option("--data", under="Data", first=True, help="Data to compare with.  [default: the run's own data]")
@reading_options()
@option("--against", under="Data", type=click.Choice(["test", "train"]), default="test",
        help="Split of the data to compare with.")  # fmt: skip
@option("--limit", under="Data", type=Whole(WHOLE), default=10_000,
        help="Maximum number of data rows to compare with (0: all).")  # fmt: skip
@option("--features", under="Metrics", first=True, default="auto",
        help="Features to compare: auto, pixels, classifier[:FOLDER], inception[:FILE], module:function, or an .npz "
             "file of features.")  # fmt: skip
@option("--metrics", under="Metrics", first=True, default=ALL,
        help="Metrics to compute: any of the default ones, or module:function.")  # fmt: skip
@option("--copies-by", under="Metrics", default="pixels", help="Features for the check for copies.")
@option("--n", under="Samples", first=True, type=Whole(SEVERAL), default=500, help="Number of samples to draw.")
@option("--batch", under="Samples", type=Whole(COUNT), default=256, help="Maximum number of samples per batch.")
@solver_options("multistep", "steps", "rtol", first=("solver", "steps"), unless={"multistep": {"steps": 30}})
@option("--reference", under="Files", type=click.Path(path_type=Path), help="Compare with the statistics in this file.")
@option("--save-reference", under="Files", type=click.Path(path_type=Path),
        help="Save the statistics of the data to this file.")  # fmt: skip
@out_option("RUN/evaluation")
@session(run=True, first=())
def evaluate(
    samples: Path | None, units: str, data: str | None, reading: Reading, against: str, limit: int, features: str,
    metrics: str, copies_by: str, n: int, batch: int, solver: SolverChoice, reference: Path | None,
    save_reference: Path | None, out: Path | None, session: Session,
) -> None:  # fmt: skip
    """Measure the quality of samples from a trained RUN (default: the newest).

    The command prints each metric with its standard error, next to the value for real data. It also reports whether
    samples are copies of training data.
    """
    built = solver.build()
    from ..run.plausible import in_data_units, read_units

    read_units(units)
    if units != "auto" and samples is None and data is None:
        raise UsageError(f"--units {units} requires --samples or --data; the units of a run's own samples are known")
    names = in_list(metrics)
    if not names:
        raise UsageError(f"--metrics is empty; choose from: {ALL}")
    began = time.monotonic()
    chosen = session.on
    facts: dict[str, Any]
    from ..core.files import new_folder
    from ..study.evaluate import described, evaluate_features, evaluation_table, metrics_by_name, write_evaluation
    from ..study.evaluate import evaluate as measure
    from ..study.features import Reference, extractor_by_name

    wanted, copies = metrics_by_name([name for name in names if name != "copies"]), "copies" in names
    known = None if reference is None else Reference.load(reference)  # before drawing samples, which takes a long time
    with ExitStack() as stack:  # an error or a signal deletes the folder if it is empty
        if Path(features).suffix == ".npz":
            if session.run or samples or data or reference or save_reference:
                raise UsageError(
                    f"--features {features} provides both the samples and the reference; omit RUN, --samples, --data, "
                    "--reference and --save-reference"
                )
            folder = stack.enter_context(new_folder(out or Path("evaluation")))
            found, facts, pictures = evaluate_features(Path(features), wanted, copies=copies), {"file": features}, None
        else:
            source = _source(session, samples, units, data, reading)

            def extractor(spec: str) -> Extractor:
                return extractor_by_name(
                    spec, source.data, folder=source.classifier, device=chosen, told=session.say, edited=session.edited
                )

            folder = stack.enter_context(new_folder(out or source.home / "evaluation"))
            by = extractor(features)
            if known is not None:
                known.check(by)
            x, facts = source.samples, {"samples": str(samples), "units": units}
            if x is None:
                x, facts = _draw(session, n, built, solver, batch)
                known_as = session.loaded.config.data if session.loaded.config is not None else None
                if data not in (None, known_as):
                    x = in_data_units(x, source.data, units, f"the samples of {session.folder}")
            session.say(f"comparing {len(x):,} samples with {source.data.info.name}")
            found = measure(
                x, source.data, by, wanted, against=against, reference=known,
                copies=(by if copies_by == features else extractor(copies_by)) if copies else None,
                limit=limit, seed=session.seed, check=False,
                on_metric=lambda row: session.say(f"{row.metric:10} {row.samples}"),
            )  # fmt: skip
            pictures = (source.data.info, x, source.data.train)
            facts |= {"data": source.data.info.source, "against": found.reference.split, "limit": limit}
            facts["seed"] = session.seed
        if save_reference is not None:
            found.reference.save(save_reference)
        facts["seconds"] = round(time.monotonic() - began, 1)
        files = write_evaluation(folder, found, facts, pictures)
    labels = f"\nlabels: {facts['labels']}" if facts.get("labels") else ""
    session.print(
        {**facts, **described(found), "files": [str(f) for f in files]},
        f"{evaluation_table(found)}{labels}\n\n{files[0]}  {facts['seconds']:.1f} s  seed {session.seed}",
    )


@dataclass(frozen=True, eq=False)
class _Source:
    """The samples and data to compare, from a run or from a file of samples."""

    data: Dataset
    home: Path
    classifier: Path | None
    samples: Tensor | None


def _source(session: Session, samples: Path | None, units: str, data: str | None, reading: Reading) -> _Source:
    """Load the data, and load the samples if they come from a file.

    Samples from a file do not require a model and, if --data is given, they do not require a run.
    """
    from ..data import load_data
    from ..data.raw import AS_IS
    from ..run.config import TrainConfig
    from ..run.files import find_run, read_config
    from ..run.origin import data_of
    from ..run.run import described
    from ..run.samples import read_samples

    if samples is not None and data is not None and session.run is None:
        dataset = load_data(data, reading=reading)
        for note in dataset.notes:
            session.say(note)
        return _Source(dataset, samples.parent, None, read_samples(samples, dataset, units))
    if reading != AS_IS:
        raise UsageError("the run determines how files are read; omit --size, --fit, --layout and --on-bad")
    folder = find_run(session.run, edited=session.edited)
    loaded = None if samples is not None else session.loaded
    config = TrainConfig.from_dict(read_config(folder))
    dataset = data_of(folder, config, data, changed=session.changed_data)
    theirs = dataset.info
    if loaded is not None and (theirs.shape, theirs.levels) != (loaded.info.shape, loaded.info.levels):
        raise DataError(
            f"{theirs.name} has shape {theirs.shape} and {theirs.levels or 'no'} levels, but the run was trained on "
            f"data with shape {loaded.info.shape} and {loaded.info.levels or 'no'} levels, so its samples cannot be "
            "compared with these data"
        )
    # The codec comes from the run, so that features and model units do not change if rows are added to the data.
    info, spec = described(folder, config)
    if (theirs.shape, theirs.levels) == (info.shape, info.levels):
        dataset = replace(dataset, codec=spec.codec)
    given = None if samples is None else read_samples(samples, dataset, units)
    return _Source(dataset, folder, folder / "classifier" if data is None else None, given)


def _draw(session: Session, n: int, built: Solver, solver: SolverChoice, batch: int) -> tuple[Tensor, dict[str, Any]]:
    """Draw samples from the run, and return the successful ones in data units with a record of how they were drawn."""
    from ..core.progress import Progress
    from ..study.evaluate import resolved_options

    run = session.loaded
    labels = run.example_labels(n)
    asked = run.given(labels)
    session.say(f"drawing {n} samples from {session.whence} with the {solver.name} solver")
    with Progress(n, "sample", quiet=session.quiet) as progress:
        drawn = asked.sample(n, built, seed=session.seed, batch=batch, watch=counted(progress, batch))
    ok = drawn.solution.ok.cpu()
    if int(ok.sum()) < 2:
        raise NumericalError("; ".join(drawn.solution.failures()))
    if not bool(ok.all()):
        warnings.warn(f"{'; '.join(drawn.solution.failures())}; failed samples are left out", stacklevel=1)
    nfe, by_class = drawn.solution.nfe, run.config is not None and run.config.cond == "class"
    unlabelled = "none, so the samples are those of the model without labels" if by_class else None
    return drawn.x[ok], {
        "run": str(run.folder), "step": run.step, "solver": solver.name, "options": options_of(built),
        "resolved": resolved_options(built, asked.model), "denoise": True,
        "nfe_mean": round(float(nfe.double().mean()), 2), "nfe_max": int(nfe.max()), "failed": int((~ok).sum()),
        "labels": unlabelled if labels is None else "in the proportions of the training data",
        "dtype": session.dtype, "device": str(run.device), "weights": run.request({})["weights"],
    }  # fmt: skip
