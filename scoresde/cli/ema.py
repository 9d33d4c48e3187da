"""The command ``scoresde ema``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from ..core.limits import TRAINED
from .command import Whole, option, verb
from .common import Session, edited_option, in_list, out_option, session

__all__ = ["ema"]


@verb(
    short_help="Compute other averages of a run's weights.",
    epilog="Example, for a run trained with --ema 0.9999,power:0.05,power:0.1 --snapshots 64:\n"
    "  scoresde ema runs/photos --sigma-rel 0.08,0.15",
)
@click.argument("run", required=False)
@option("--sigma-rel", under="Average", first=True, required=True, metavar="WIDTHS",
        help="Widths of the averages relative to the number of training steps, from 0.05 to 0.20, such as 0.08 or "
             "0.05,0.1.")  # fmt: skip
@option("--step", under="Average", first=True, type=Whole(TRAINED),
        help="Training step of the snapshot at which the averages end.  [default: the last step]")  # fmt: skip
@out_option("RUN-ema-WIDTH", "Folder of the new run.")
@edited_option
@session(first=("json",), only=("json", "quiet"))
def ema(run: str | None, sigma_rel: str, step: int | None, out: Path | None, edited: bool, session: Session) -> None:
    """Compute averages of other widths from the snapshots of a RUN (default: the newest), after its training.

    The run must have been trained with power-function averages and snapshots (Karras et al. 2024, arXiv:2312.02696).
    Each average is written as a run of its own, which sample, likelihood and evaluate can use, and its folder is
    printed.
    """
    from ..run.files import find_run
    from ..train.posthoc import averages, write_averaged

    try:
        widths = [float(text) for text in in_list(sigma_rel)]
    except ValueError:
        raise UsageError(f"--sigma-rel {sigma_rel}: expected numbers such as 0.08 or 0.05,0.1") from None
    if not widths or len(set(widths)) < len(widths):
        raise UsageError(f"--sigma-rel {sigma_rel}: expected one or more different widths, such as 0.05,0.1")
    if out is not None and len(widths) > 1:
        raise UsageError(f"--out names a single folder, but --sigma-rel has {len(widths)} widths; leave out --out")
    folder = find_run(run, edited=edited)
    if run is None:
        session.say(f"no run is named, so the newest is used: {folder}")
    made: list[dict[str, Any]] = []
    for average in averages(folder, widths, step):
        place = out or folder.with_name(f"{folder.name}-ema-{average.sigma_rel:g}")
        with session.new_folder(place) as new:
            write_averaged(folder, average, new)
        session.say(
            f"{new}: width {average.sigma_rel:g}, step {average.step:,}; its profile differs from the exact one by "
            f"{100 * average.error:.2g} % (relative L2 error)"
        )
        made.append({
            "run": str(new), "sigma_rel": average.sigma_rel, "step": average.step, "profile_error": average.error,
        })  # fmt: skip
    session.print({"from": str(folder), "runs": made}, *(one["run"] for one in made))
