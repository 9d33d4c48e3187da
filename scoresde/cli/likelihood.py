"""``scoresde likelihood``."""

from __future__ import annotations

import time

import click

from ..errors import DataError, NumericalError, UsageError
from .common import common_options, load_run, print_json, say, sde_option

__all__ = ["likelihood"]


@click.command(
    short_help="Score data under a run.",
    epilog="Example:  scoresde likelihood runs/photos --data photos_test/ --probes 4",
)
@click.argument("run", required=False)
@click.option("--data", help="Data to score.  [default: what the run was trained on]")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Part to score.")
@click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="Score so many (0: all).")
@click.option("--probes", type=click.IntRange(1), default=1, show_default=True, help="Hutchinson probes per sample.")
@click.option("--divergence", type=click.Choice(["auto", "exact", "hutchinson"]), default="auto", show_default=True,
              help="auto: exact up to 16 dimensions.")  # fmt: skip
@click.option("--rtol", type=click.FloatRange(0, min_open=True), default=1e-5, show_default=True,
              help="Relative tolerance.")  # fmt: skip
@click.option("--atol", type=click.FloatRange(0), help="Absolute tolerance.  [default: as rtol]")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Samples solved at once.")
@click.option("--labels", is_flag=True, help="Condition on the data's labels (a model trained with --cond class).")
@sde_option("The run's SDE, if it is your own: module:Class.", None)
@common_options
def likelihood(
    run: str | None, data: str | None, split: str, limit: int, probes: int, divergence: str, rtol: float,
    atol: float | None, batch: int, labels: bool, sde: str | None, seed: int, device: str, dtype: str,
    threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Exact likelihood of data under a trained RUN (default: the newest), in bits/dim or nats."""
    loaded = load_run(run, sde, device, threads, dtype)
    from ..data import load_data
    from ..progress import Progress
    from ..run import join

    dataset = load_data(data or loaded.config.data, loaded.config.seed, loaded.config.test_fraction)
    theirs, ours = dataset.info, loaded.info
    if (theirs.low, theirs.high, theirs.levels) != (ours.low, ours.high, ours.levels) and ours.levels is not None:
        kind = f"{theirs.levels} levels" if theirs.levels else "continuous values"
        raise DataError(
            f"{theirs.name} has {kind} in [{theirs.low:g}, {theirs.high:g}], the run was trained on "
            f"{ours.levels} levels in [{ours.low:g}, {ours.high:g}]: their bits/dim would not mean the same"
        )
    x, y = (dataset.test, dataset.test_labels) if split == "test" else (dataset.train, dataset.train_labels)
    total = len(x)
    x, y = (x[:limit], None if y is None else y[:limit]) if limit else (x, y)
    if labels and (y is None or theirs.classes != ours.classes):
        raise UsageError(
            f"--labels: {theirs.name} has the classes {', '.join(theirs.classes) or '(none)'}, the run was trained on "
            f"{', '.join(ours.classes) or '(none)'}"
        )
    say(quiet, f"scoring {len(x):,} of {total:,} {split} samples of {theirs.name} under {loaded.folder}")
    began = time.monotonic()
    pieces = []
    with Progress(len(x), "likelihood", quiet=quiet) as progress:
        for i in range(0, len(x), batch):
            part = slice(i, i + batch)
            scored = loaded.log_likelihood(
                x[part], labels=y[part] if labels and y is not None else None, divergence=divergence,
                probes=probes, rtol=rtol, atol=rtol if atol is None else atol, seed=seed, start=i, batch=batch,
            )  # fmt: skip
            pieces.append(scored)
            progress.update(len(x[part]), {pieces[-1].unit: pieces[-1].mean()})
    scores = join(pieces)
    nfe = scores.model.nfe.double()
    exact = divergence == "exact" or (divergence == "auto" and bool((scores.model.stderr == 0).all()))
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "unit": scores.unit, "mean": scores.mean(),
        "stderr": scores.stderr(), "n": int(scores.model.ok.sum()), "of": total, "split": split, "data": theirs.name,
        "dequantisation": "uniform" if ours.levels else "none", "divergence": "exact" if exact else "hutchinson",
        "probes": None if exact else probes, "rtol": rtol, "t_min": loaded.model.t_min,
        "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
        "failed": int((~scores.model.ok).sum()), "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        how = "exact divergence" if exact else f"{probes} probe{'s' if probes > 1 else ''}"
        dequantised = ", uniform dequantisation" if ours.levels else ""
        click.echo(
            f"{scores.mean():.4f} ± {scores.stderr():.4f} {scores.unit}  "
            f"(n = {facts['n']:,} of {total:,} {split} samples{dequantised}, {how}, "
            f"rtol {rtol:g}, NFE mean {facts['nfe_mean']:g} max {facts['nfe_max']})"
        )
    if scores.model.failures():
        raise NumericalError("; ".join(scores.model.failures()))
