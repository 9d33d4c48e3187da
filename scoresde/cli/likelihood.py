"""``scoresde likelihood``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError, NumericalError, UsageError
from .common import common_options, load_run, print_json, say, sde_option

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset
    from ..likelihood import Elbo
    from ..progress import Progress
    from ..run import Run
    from ..scores import Scores

__all__ = ["likelihood"]


@click.command(
    short_help="Score data under a run.",
    epilog="Example:  scoresde likelihood runs/photos --data photos_test/ --data paintings/ --probes 4 --elbo",
)
@click.argument("run", required=False)
@click.option("--data", multiple=True, help="Data to score, or several.  [default: what the run was trained on]")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Part to score.")
@click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="Score so many (0: all).")
@click.option("--dequantisation", type=click.Choice(["auto", "uniform", "truncated-normal", "none"]), default="auto",
              show_default=True, help="auto: uniform for data with levels.")  # fmt: skip
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Draws per sample, averaged.")
@click.option("--importance", type=click.IntRange(1), default=1, show_default=True,
              help="Samples of the importance-weighted bound in each draw.")  # fmt: skip
@click.option("--elbo", is_flag=True, help="The variational bound as well.")
@click.option("--method", type=click.Choice(["coupled", "quadrature"]), default="coupled", show_default=True,
              help="quadrature: cheaper for an exact divergence or many probes.")  # fmt: skip
@click.option("--divergence", type=click.Choice(["auto", "exact", "hutchinson"]), default="auto", show_default=True,
              help="auto: exact up to 16 dimensions.")  # fmt: skip
@click.option("--probes", type=click.IntRange(1), default=1, show_default=True, help="Hutchinson probes per sample.")
@click.option("--rtol", type=click.FloatRange(0, min_open=True), default=1e-5, show_default=True,
              help="Relative tolerance.")  # fmt: skip
@click.option("--atol", type=click.FloatRange(0), help="Absolute tolerance.  [default: as rtol]")
@click.option("--t-min", type=click.FloatRange(0, min_open=True), help="Time of the density.  [default: the run's]")
@click.option("--check/--no-check", default=True, show_default=True, help="Solve 16 samples again, ten times tighter.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Most samples at once.")
@click.option("--memory", type=click.IntRange(1), default=2048, show_default=True, help="Memory for them, MiB.")
@click.option("--labels", is_flag=True, help="Condition on the data's labels (a model trained with --cond class).")
@click.option("--save", default="png,csv", show_default=True, help="Files to write: png, csv, npz.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/likelihood]")
@sde_option("The run's SDE, if it is your own: module:Class.", None)
@common_options
def likelihood(
    run: str | None, data: tuple[str, ...], split: str, limit: int, dequantisation: str, draws: int, importance: int,
    elbo: bool, method: str, divergence: str, probes: int, rtol: float, atol: float | None, t_min: float | None,
    check: bool, batch: int, memory: int, labels: bool, save: str, out: Path | None, sde: str | None, seed: int,
    device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Likelihood of data under a trained RUN (default: the newest), in bits/dim or nats, with its error.

    Several data sets share one figure.
    """
    loaded = load_run(run, sde, device, threads, dtype)
    from ..data import load_data
    from ..gallery import numbered_folder
    from ..progress import Progress
    from ..scored import Scored, check_kinds, write_scores

    kinds = check_kinds([s.strip() for s in save.split(",") if s.strip()])
    chosen = [
        _part(loaded, load_data(name, loaded.config.seed, loaded.config.test_fraction), split, limit, labels)
        for name in data or (loaded.config.data,)
    ]
    options: dict[str, Any] = {
        "dequantisation": dequantisation, "draws": draws, "importance": importance, "method": method,
        "divergence": divergence, "probes": probes, "rtol": rtol, "atol": rtol if atol is None else atol,
        "t_min": t_min, "memory": memory * 2**20,
    }  # fmt: skip
    assert loaded.folder is not None
    folder = numbered_folder(*((out.parent, out.name) if out else (loaded.folder, "likelihood")))
    for dataset, x, _, total in chosen:
        say(quiet, f"scoring {len(x):,} of {total:,} {split} samples of {dataset.info.name} under {loaded.folder}")
    began, sets = time.monotonic(), []
    try:
        with Progress(sum(len(x) for _, x, _, _ in chosen), "likelihood", quiet=quiet) as progress:
            for dataset, x, y, total in chosen:
                scores, bound = _score(loaded, x, y, options, seed, batch, check, elbo, progress)
                sets.append(Scored(dataset.info.name, split, total, scores, bound))
    except BaseException:
        folder.rmdir()  # still empty
        raise
    summaries = [s.summary(sets[0]) for s in sets]
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "sets": summaries, "seed": seed,
        "dtype": dtype, "device": str(loaded.device), "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    files = write_scores(folder, sets, facts, kinds)
    if as_json:
        print_json({**facts, "files": [str(f) for f in files]})
    else:
        for found in summaries:
            click.echo(_line(found, len(sets) > 1))
        click.echo(f"{files[0]}  {sets[0].scores.how}")
    failures = [line for s in sets for line in s.scores.model.failures()]
    if failures:
        raise NumericalError("; ".join(failures))


def _part(
    loaded: Run, dataset: Dataset, split: str, limit: int, labels: bool
) -> tuple[Dataset, Tensor, Tensor | None, int]:
    """The samples to score, their labels if these are wanted, and how many there would be."""
    theirs, ours = dataset.info, loaded.info
    if (theirs.low, theirs.high, theirs.levels) != (ours.low, ours.high, ours.levels) and ours.levels is not None:
        kind = f"{theirs.levels} levels" if theirs.levels else "continuous values"
        raise DataError(
            f"{theirs.name} has {kind} in [{theirs.low:g}, {theirs.high:g}], the run was trained on "
            f"{ours.levels} levels in [{ours.low:g}, {ours.high:g}]: their bits/dim would not mean the same"
        )
    x, y = (dataset.test, dataset.test_labels) if split == "test" else (dataset.train, dataset.train_labels)
    if labels and (y is None or theirs.classes != ours.classes):
        raise UsageError(
            f"--labels: {theirs.name} has the classes {', '.join(theirs.classes) or '(none)'}, the run was trained on "
            f"{', '.join(ours.classes) or '(none)'}"
        )
    count = limit or len(x)
    return dataset, x[:count], y[:count] if labels and y is not None else None, len(x)


def _score(
    loaded: Run, x: Tensor, y: Tensor | None, options: dict[str, Any], seed: int, batch: int, check: bool, elbo: bool,
    progress: Progress,
) -> tuple[Scores, Elbo | None]:  # fmt: skip
    """One data set, batch by batch; convergence is checked on the first batch."""
    from ..likelihood import Elbo
    from ..scores import join

    pieces, bounds = [], []
    for i in range(0, len(x), batch):
        part = x[i : i + batch]
        labels = None if y is None else y[i : i + batch]
        same: dict[str, Any] = {"labels": labels, "seed": seed, "start": i, "batch": batch}
        pieces.append(loaded.log_likelihood(part, check=check and i == 0, **same, **options))
        if elbo:
            bounds.append(loaded.elbo(part, **same))
        progress.update(len(part), {pieces[-1].unit: pieces[-1].mean()})
    return join(pieces), Elbo.join(bounds) if elbo else None


def _line(found: dict[str, Any], several: bool) -> str:
    """What a person reads of a set."""
    name = f"{found['data']}: " if several else ""
    unit = found["unit"]
    text = f"{name}{found['mean']:.4f} ± {found['stderr_mean']:.4f} {unit}  (n = {found['n']:,} of {found['of']:,} "
    text += f"{found['split']} samples, NFE mean {found['nfe_mean']:g} max {found['nfe_max']}"
    if found["probes"] > 1:
        text += f", ± {found['stderr_probes']:.4f} per sample from the probes"
    if "auroc" in found:
        text += f", AUROC {found['auroc']:.3f}"
    text += ")"
    if "elbo" in found:
        bound = found["elbo"]
        text += (
            f"\n{name}{bound['mean']:.4f} ± {bound['stderr_mean']:.4f} {unit} by the variational bound of the "
            f"SDE (prior {bound['prior']:.4f}, diffusion {bound['diffusion']:.4f}, reconstruction "
            f"{bound['reconstruction']:.4f})"
        )
    return text
