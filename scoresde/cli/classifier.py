"""The command ``scoresde classifier``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.limits import COUNT, SHARE, TRAINED, Range
from .command import Real, Whole, option, verb
from .common import Session, out_option, reading_options, session

if TYPE_CHECKING:
    from ..data import Reading

__all__ = ["classifier"]


@verb(
    short_help="Train a small classifier for comparing or guiding samples.",
    epilog="Example:  scoresde classifier --data photos/ --out runs/photos/classifier",
)
@option("--data", under="Data", first=True, default="digits",
        help="Labelled data: digits, or the path to an image folder, an npz file or IDX files.")  # fmt: skip
@option("--test-fraction", under="Data", type=Real(SHARE), default=0.1,
        help="Fraction of the data to hold out if there is no test split.")  # fmt: skip
@reading_options()
@option("--steps", under="Training", first=True, type=Whole(TRAINED), default=600, help="Number of training steps.")
@option("--batch", under="Training", type=Whole(COUNT), default=128, help="Batch size.")
@option("--width", under="Training", first=True, type=Whole(Range(1, 100_000)), default=64, help="Number of features.")
@option("--noisy", under="Training", first=True, is_flag=True,
        help="Train on samples with any amount of noise, for scoresde sample --classifier.")  # fmt: skip
@out_option("runs/DATA-classifier")
@session()
def classifier(
    data: str, test_fraction: float, reading: Reading, steps: int, batch: int, width: int, noisy: bool,
    out: Path | None, session: Session,
) -> None:  # fmt: skip
    """Train a small classifier on the labels of a data set.

    The command prints the folder of the classifier and its accuracy on held-out data.

    To compare samples by the features of this classifier, use `scoresde evaluate --features classifier:FOLDER`. With
    --noisy, the classifier can also guide a run to a class: use `scoresde sample --classifier FOLDER --label CLASS`.
    """
    chosen = session.on
    from ..core.progress import Progress
    from ..data import load_data
    from ..study.classifier import ClassifierConfig, train_classifier

    dataset = load_data(data, session.seed, test_fraction, reading=reading)
    session.say(dataset.describe())
    config = ClassifierConfig(steps=steps, batch=batch, width=width, seed=session.seed, noisy=noisy)
    began = time.monotonic()
    with Progress(steps, "classifier", quiet=session.quiet) as progress:
        trained = train_classifier(
            dataset, config, device=chosen, dtype=session.floats,
            on_step=lambda step, loss: progress.update(1, {"loss": loss}),
        )  # fmt: skip
    with session.new_folder(out or Path("runs") / f"{dataset.info.name}-classifier") as folder:
        files = trained.save(folder)
    facts = {
        "folder": str(folder), "data": dataset.info.name, "accuracy": trained.accuracy, "stderr": trained.stderr,
        "held_out": trained.held_out, "sha256": trained.digest, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    session.print(
        {**facts, "files": [str(f) for f in files]},
        f"{folder}  accuracy {trained.accuracy:.4f} ± {trained.stderr:.4f} on {trained.held_out:,} held-out "
        f"samples  {facts['seconds']:.1f} s",
    )
