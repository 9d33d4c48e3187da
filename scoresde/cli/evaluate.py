"""``scoresde evaluate``."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..build import build, options_of
from ..errors import DataError, NumericalError, UsageError
from ..tables import METRICS, SOLVERS
from .common import common_options, load_run, prepare, print_json, say, sde_option, settings, verb
from .sample import _meter

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset
    from ..features import Extractor
    from ..run import Run
    from ..solvers import Solver

__all__ = ["evaluate"]

ALL = ",".join((*METRICS, "copies"))


@verb(
    short_help="Compare samples with data.",
    epilog="\b\nExamples:\n  scoresde evaluate runs/digits-vp\n"
    "  scoresde evaluate runs/photos --features inception --against train --n 50000 --limit 0\n"
    "  scoresde evaluate --samples theirs.npz --data photos/ --metrics frechet,copies",
)
@click.argument("run", required=False)
@click.option("--samples", type=click.Path(path_type=Path), help="An .npz of samples (array x) to take instead.")
@click.option("--data", help="Data to compare with.  [default: what the run was trained on]")
@click.option("--against", type=click.Choice(["test", "train"]), default="test", show_default=True,
              help="Part of the data to compare with.")  # fmt: skip
@click.option("--features", default="auto", show_default=True,
              help="pixels, classifier[:FOLDER], inception[:FILE], module:function, an .npz of features.")  # fmt: skip
@click.option("--metrics", default=ALL, show_default=True, help="Any of these, or module:function.")
@click.option("--n", type=click.IntRange(2), default=500, show_default=True, help="Number of samples to draw.")
@click.option("--solver", help=f"{', '.join(SOLVERS)}, or module:Class.  [default: multistep, with 30 steps]")
@click.option("--steps", type=click.IntRange(1), help="Steps of a fixed-step solver.")
@click.option("--rtol", type=click.FloatRange(0, min_open=True), help="Tolerance of an adaptive solver.")
@click.option("--set", "assignments", multiple=True, metavar="solver.NAME=VALUE", help="Any other solver option.")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Samples solved at once.")
@click.option("--limit", type=click.IntRange(0), default=10_000, show_default=True,
              help="Compare with so many rows at most (0: all).")  # fmt: skip
@click.option("--copies-by", default="pixels", show_default=True, help="Features in which copies are looked for.")
@click.option("--reference", type=click.Path(path_type=Path), help="Compare with the statistics in this file.")
@click.option("--save-reference", type=click.Path(path_type=Path), help="Keep the statistics of the data in this file.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/evaluation]")
@sde_option("The run's SDE, if it is your own: module:Class.", None)
@common_options
def evaluate(
    run: str | None, samples: Path | None, data: str | None, against: str, features: str, metrics: str, n: int,
    solver: str | None, steps: int | None, rtol: float | None, assignments: tuple[str, ...], batch: int, limit: int,
    copies_by: str, reference: Path | None, save_reference: Path | None, out: Path | None, sde: str | None, seed: int,
    device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """How good are the samples of a trained RUN (default: the newest)? Prints each metric with its error, beside what
    real data reach, and whether samples are copies of training data.
    """
    typed = {name: v for name, v in (("steps", steps), ("rtol", rtol)) if v is not None}
    if solver is None:
        solver, typed = "multistep", {"steps": 30} | typed
    built = build(solver, SOLVERS, "solver", typed=True, **typed, **settings(assignments, ("solver",))["solver"])
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--metrics is empty; it takes any of {ALL}")
    began = time.monotonic()
    chosen = prepare(device, threads)
    facts: dict[str, Any]
    from ..evaluate import described, evaluate_features, metrics_by_name, table, write_evaluation
    from ..evaluate import evaluate as measure
    from ..features import Reference, extractor_by_name
    from ..files import new_folder

    wanted, copies = metrics_by_name([name for name in names if name != "copies"]), "copies" in names
    known = None if reference is None else Reference.load(reference)  # before the samples, which take longer
    if Path(features).suffix == ".npz":
        if run or samples or data or reference or save_reference:
            raise UsageError(f"--features {features} holds samples and reference: leave out RUN and the other sources")
        with new_folder(out or Path("evaluation")) as folder:
            found, facts, pictures = evaluate_features(Path(features), wanted, copies=copies), {"file": features}, None
    else:
        source = _source(run, samples, data, sde, device, threads, dtype)

        def extractor(spec: str) -> Extractor:
            return extractor_by_name(
                spec, source.data, folder=source.classifier, device=chosen, told=lambda text: say(quiet, text)
            )

        with new_folder(out or source.home / "evaluation") as folder:
            by = extractor(features)
            if known is not None:
                known.check(by)
            x, facts = source.samples, {"samples": str(samples)}
            if x is None:
                x, facts = _draw(source, n, built, solver, seed, batch, quiet)
            say(quiet, f"comparing {len(x):,} samples with {source.data.info.name}")
            found = measure(
                x, source.data, by, wanted, against=against, reference=known,
                copies=(by if copies_by == features else extractor(copies_by)) if copies else None,
                limit=limit, seed=seed, on_metric=lambda row: say(quiet, f"{row.metric:10} {row.samples}"),
            )  # fmt: skip
        pictures = (source.data.info, x, source.data.train)
        facts |= {"data": source.data.info.source, "against": found.reference.split, "limit": limit, "seed": seed}
    if save_reference is not None:
        found.reference.save(save_reference)
    facts["seconds"] = round(time.monotonic() - began, 1)
    files = write_evaluation(folder, found, facts, pictures)
    if as_json:
        print_json({**facts, **described(found), "files": [str(f) for f in files]})
    else:
        click.echo(f"{table(found)}\n\n{files[0]}  {facts['seconds']:.1f} s  seed {seed}")


@dataclass(frozen=True, eq=False)
class _Source:
    """Where samples and data come from: a run, or a file of samples."""

    data: Dataset
    home: Path
    classifier: Path | None
    run: Run | None
    samples: Tensor | None


def _source(
    run: str | None, samples: Path | None, data: str | None, sde: str | None, device: str, threads: int | None,
    dtype: str,
) -> _Source:
    """The data, and the run or the samples. Samples from a file need no model, and with --data no run either."""
    from ..checkpoint import find_run, read_config
    from ..config import TrainConfig
    from ..data import load_data
    from ..gallery import read_samples

    if samples is not None and data is not None and run is None:
        dataset = load_data(data)
        return _Source(dataset, samples.parent, None, None, read_samples(samples, dataset))
    folder = find_run(run)
    loaded = None if samples is not None else load_run(run, sde, device, threads, dtype)
    config = TrainConfig.from_dict(read_config(folder))
    dataset = config.load_data(data)
    theirs = dataset.info
    if loaded is not None and (theirs.shape, theirs.levels) != (loaded.info.shape, loaded.info.levels):
        raise DataError(
            f"{theirs.name} has shape {theirs.shape} and {theirs.levels or 'no'} levels, the run was trained on shape "
            f"{loaded.info.shape} and {loaded.info.levels or 'no'} levels: they cannot be compared"
        )
    given = None if samples is None else read_samples(samples, dataset)
    return _Source(dataset, folder, folder / "classifier" if data is None else None, loaded, given)


def _draw(
    source: _Source, n: int, built: Solver, name: str, seed: int, batch: int, quiet: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Samples of the run that succeeded, in data units, and how they were made."""
    from ..progress import Progress

    run = source.run
    assert run is not None
    say(quiet, f"sampling {n} with {name} from {run.folder} (step {run.step:,})")
    with Progress(n, "sample", quiet=quiet) as progress:
        drawn = run.sample(n, built, seed=seed, batch=batch, watch=_meter(progress, batch))
    ok = drawn.solution.ok.cpu()
    if int(ok.sum()) < 2:
        raise NumericalError("; ".join(drawn.solution.failures()))
    if not bool(ok.all()):
        reason = drawn.solution.failures()[0]
        warnings.warn(f"{int((~ok).sum())} samples failed and are left out: {reason}", stacklevel=1)
    return drawn.x[ok], {
        "run": str(run.folder), "step": run.step, "solver": name, "options": options_of(built),
        "nfe_mean": round(float(drawn.solution.nfe.double().mean()), 2), "failed": int((~ok).sum()),
    }  # fmt: skip
