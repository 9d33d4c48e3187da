"""``scoresde classifier``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .common import common_options, dtype_of, prepare, print_json, say, verb

__all__ = ["classifier"]


@verb(
    short_help="Train a small classifier, for its features.",
    epilog="Example:  scoresde classifier --data photos/ --out runs/photos/classifier",
)
@click.option("--data", default="digits", show_default=True, help="digits, or a path: images, IDX, npz, with labels.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: runs/DATA-classifier]")
@click.option("--steps", type=click.IntRange(1), default=600, show_default=True, help="Training steps.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Batch size.")
@click.option("--width", type=click.IntRange(1), default=64, show_default=True, help="Number of features.")
@click.option("--test-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1,
              show_default=True, help="Share held out, where the data has no test part.")  # fmt: skip
@common_options
def classifier(
    data: str, out: Path | None, steps: int, batch: int, width: int, test_fraction: float, seed: int, device: str,
    dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train a small classifier on the labels of a data set; prints its folder and its accuracy on held-out data.

    `scoresde evaluate --features classifier:FOLDER` compares samples by its features.
    """
    chosen = prepare(device, threads)
    from ..classifier import ClassifierConfig, train_classifier
    from ..data import load_data
    from ..files import new_folder
    from ..progress import Progress

    dataset = load_data(data, seed, test_fraction)
    say(quiet, dataset.info.describe())
    config = ClassifierConfig(steps=steps, batch=batch, width=width, seed=seed)
    began = time.monotonic()
    with Progress(steps, "classifier", quiet=quiet) as progress:
        trained = train_classifier(
            dataset, config, device=chosen, dtype=dtype_of(dtype),
            on_step=lambda step, loss: progress.update(1, {"loss": loss}),
        )  # fmt: skip
    with new_folder(out or Path("runs") / f"{dataset.info.name}-classifier") as folder:
        files = trained.save(folder)
    facts = {
        "folder": str(folder), "data": dataset.info.name, "accuracy": trained.accuracy, "stderr": trained.stderr,
        "held_out": trained.held_out, "sha256": trained.digest, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    if as_json:
        print_json({**facts, "files": [str(f) for f in files]})
    else:
        click.echo(
            f"{folder}  accuracy {trained.accuracy:.4f} ± {trained.stderr:.4f} on {trained.held_out:,} held-out "
            f"samples  {facts['seconds']:.1f} s"
        )
