"""The command ``scoresde demo``, which trains a small model and shows what the model generates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from ..core.limits import FRAMES, TRAINED
from ..core.signals import held
from ..core.tables import SOLVERS
from .command import Group, Whole, option
from .common import Session, out_option, sde_option, session

__all__ = ["demo"]


@click.group(cls=Group)
def demo() -> None:
    """Run a demonstration that trains a small model."""


@demo.command(
    "single-image",
    short_help="Train on one picture and show how it emerges from noise.",
    epilog="Example:  scoresde demo single-image cat.jpg --size 48",
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@option("--size", under="Training", first=True, type=click.IntRange(8, 256), default=64,
        help="Maximum number of pixels on the long side.")  # fmt: skip
@option("--steps", under="Training", first=True, type=Whole(TRAINED),
        help="Number of training steps.  [default: enough for a picture of 64 x 64 pixels]")  # fmt: skip
@sde_option
@option("--columns", under="Picture", first=True, type=Whole(FRAMES), default=9,
        help="Number of time points in the strip.")  # fmt: skip
@option("--frames", under="Picture", first=True, type=Whole(FRAMES), default=33,
        help="Minimum number of frames in the GIF.")  # fmt: skip
@out_option("runs/single-image", "Folder of the new run.")
@session()
def single_image(
    file: Path | None, size: int, steps: int | None, sde: str, columns: int, frames: int, out: Path | None,
    session: Session,
) -> None:  # fmt: skip
    """Train on one picture (FILE, or a built-in picture of a lighthouse) and show how it emerges from noise.

    The command writes a strip and a GIF, which show the states x_t and the network's estimates of the picture. Training
    takes a few minutes on a CPU. The result is an ordinary run, so `scoresde sample` can draw samples from it.
    """
    chosen = session.on
    from ..core.files import taken
    from ..core.optional import optional
    from ..core.registry import build
    from ..data import load_data
    from ..run.files import make_run_folder
    from ..study.figures import frames_between, undo, write_reverse
    from ..study.single_image import EXAMPLE, picture_config, read_picture, save_picture
    from ..train import fit

    picture = read_picture(file or EXAMPLE, size)
    with _begun(lambda: make_run_folder(out, "single-image")) as folder:
        if out is None and folder.name != "single-image":
            session.say(taken(folder.with_name("single-image"), folder))
        config = picture_config(save_picture(folder, picture), sde, steps, session.seed)
        data = load_data(config.data)
        shape = f"{picture.shape[2]} x {picture.shape[1]}"
        session.say(f"training on one picture, {(file or EXAMPLE).name} at {shape} pixels, for {config.steps:,} steps")
        began = time.monotonic()
        run = fit(config, data=data, out=folder, device=chosen, dtype=session.floats, quiet=session.quiet)
    seconds = time.monotonic() - began
    session.say("drawing a sample and the network's estimates of the picture")
    found = undo(run, 1, build("heun", SOLVERS, "solver"), frames_between(columns, frames), seed=session.seed)
    files: list[Path] = []
    with optional("the picture of the sample and the estimates", f"the run is in {folder}"):
        files = write_reverse(run, found, folder / "plots" / "denoising.png", columns)
    error = float((found.x0[-1, 0] - data.test[0].double()).square().mean().sqrt())
    facts = {
        "run": str(folder), "picture": str(file or EXAMPLE), "shape": list(picture.shape), "step": run.step,
        "seconds": round(seconds, 1), "rms_error": round(error, 3), "files": [str(f) for f in files],
    }  # fmt: skip
    session.say(f"trained in {seconds:.0f} s; the RMS error of the sample is {error:.1f} on a scale from 0 to 255")
    session.say(f"to draw more samples, run: scoresde sample {folder}")
    session.print(facts, *map(str, files or [folder]))


@contextmanager
def _begun(make: Callable[[], Path]) -> Iterator[Path]:
    """Create a run folder, and delete it if the ``with`` block fails before the first checkpoint."""
    folder = None
    try:
        with held():
            folder = make()
        yield folder
    except BaseException:
        with held():
            if folder is not None and not any((folder / "checkpoints").glob("step-*")):
                (folder / "picture.npz").unlink(missing_ok=True)
                for path in (*(folder / name for name in ("checkpoints", "samples", "plots")), folder):
                    with suppress(OSError):  # the folder contains files that do not belong to this run
                        path.rmdir()
        raise
