"""``scoresde demo``: something to look at, from nothing."""

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
    """Demonstrations that train something small and show it."""


@demo.command(
    "single-image",
    short_help="Train on one picture and watch it come out of noise.",
    epilog="Example:  scoresde demo single-image cat.jpg --size 48",
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@option("--size", under="Training", first=True, type=click.IntRange(8, 256), default=64,
        help="Pixels on the long side.")  # fmt: skip
@option("--steps", under="Training", first=True, type=Whole(TRAINED),
        help="Training steps.  [default: enough for 64 pixels]")  # fmt: skip
@sde_option
@option("--columns", under="Picture", first=True, type=Whole(FRAMES), default=9, help="Noise levels in the strip.")
@option("--frames", under="Picture", first=True, type=Whole(FRAMES), default=33,
        help="Frames of the GIF, at least.")  # fmt: skip
@out_option("runs/single-image", "Run folder.")
@session()
def single_image(
    file: Path | None, size: int, steps: int | None, sde: str, columns: int, frames: int, out: Path | None,
    session: Session,
) -> None:  # fmt: skip
    """Train on one picture, FILE or a lighthouse, and show it coming out of noise: the states x_t, what the network
    takes them for, and a GIF of both. A few minutes on a CPU. The run is like any other: scoresde sample draws from it.
    """
    chosen = session.on
    from ..core.optional import optional
    from ..core.registry import build
    from ..data import load_data
    from ..run.files import make_run_folder
    from ..study.figures import frames_between, undo, write_reverse
    from ..study.single_image import EXAMPLE, picture_config, read_picture, save_picture
    from ..train import fit

    picture = read_picture(file or EXAMPLE, size)
    with _begun(lambda: make_run_folder(out, "single-image")) as folder:
        config = picture_config(save_picture(folder, picture), sde, steps, session.seed)
        data = load_data(config.data)
        shape = f"{picture.shape[2]} x {picture.shape[1]}"
        session.say(f"training on one picture, {(file or EXAMPLE).name} at {shape} pixels, for {config.steps:,} steps")
        began = time.monotonic()
        run = fit(config, data=data, out=folder, device=chosen, dtype=session.precision, quiet=session.quiet)
    seconds = time.monotonic() - began
    session.say("drawing a sample, and the picture that the network sees in it on the way")
    found = undo(run, 1, build("heun", SOLVERS, "solver"), frames_between(columns, frames), seed=session.seed)
    files: list[Path] = []
    with optional("the picture of the sample on its way", f"the run is in {folder}"):
        files = write_reverse(run, found, folder / "plots" / "denoising.png", columns)
    error = float((found.x0[-1, 0] - data.test[0].double()).square().mean().sqrt())
    facts = {
        "run": str(folder), "picture": str(file or EXAMPLE), "shape": list(picture.shape), "step": run.step,
        "seconds": round(seconds, 1), "rms_error": round(error, 3), "files": [str(f) for f in files],
    }  # fmt: skip
    session.say(f"trained in {seconds:.0f} s; the sample is {error:.1f} levels of 255 from the picture (rms)")
    session.say(f"draw more with: scoresde sample {folder}")
    session.print(facts, *map(str, files or [folder]))


@contextmanager
def _begun(make: Callable[[], Path]) -> Iterator[Path]:
    """The folder of a new run with its data, which go again if there will be no checkpoint."""
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
                    with suppress(OSError):  # which holds what is not of this run
                        path.rmdir()
        raise
