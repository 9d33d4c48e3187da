"""The command ``scoresde page``, which writes a page with figures that move."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ..core.errors import UsageError
from ..core.limits import Range
from .command import Real, option, verb
from .common import Session, session

__all__ = ["page"]


@verb(
    short_help="Write a page whose figures move and explain a run.",
    epilog="Example:  scoresde page runs/moons-vp --out moons.html",
)
@option("--data", under="Model", first=True, metavar="NAME",
        help="Instead of a run, use the exact score of a distribution: 8gaussians.")  # fmt: skip
@option("--path", under="Model", first=True, metavar="NAME", help="Path of the exact score.  [default: vp]")
@option("--weights/--no-weights", under="Page", first=True, default=True,
        help="Include the weights of a small network in half precision, so that the compass evaluates it.")  # fmt: skip
@option("--budget", under="Page", type=Real(Range(0.1, 100)), metavar="MB",
        help="Largest size of the page in megabytes.  [default: 1.5 for points in the plane, otherwise 2]")  # fmt: skip
@option("--out", under="Files", first=True, type=click.Path(path_type=Path), metavar="FILE",
        help="File to write.  [default: RUN/page.html, or NAME.html with --data]")  # fmt: skip
@session(run=True, first=("seed",))
def page(
    data: str | None, path: str | None, weights: bool, budget: float | None, out: Path | None, session: Session
) -> None:  # fmt: skip
    """Write one HTML file with figures that move, drawn from a RUN (default: the newest) or from an exact score.

    The page shows how diffusion works on the model of the run: how noise destroys the data, how the model brings them
    back, its score, the ODE and the SDE, schedules, solvers and the density. It has eight figures for points in the
    plane, and four for pictures, signals and other vectors. It needs neither a network nor a server.
    """
    if data is not None and session.run is not None:
        raise UsageError("--data makes a page without a run; leave out either --data or the run")
    if data is None and path is not None:
        raise UsageError("--path chooses the path of an exact score; use it together with --data 8gaussians")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: a page is an HTML file; choose a name that ends with .html")
    began = time.monotonic()
    if data is None:
        loaded = session.loaded
        from ..page import make_page

        session.say(f"drawing figures of {session.whence}")
        made = make_page(loaded, seed=session.seed, weights=weights, budget=budget)
        file = made.write(out or session.folder / "page.html")
    else:
        session.on  # noqa: B018  # sets the threads
        from ..page import exact_page

        made = exact_page(data, path or "vp", seed=session.seed, budget=budget)
        file = made.write(out or Path(f"{data}.html"))
    seconds = round(time.monotonic() - began, 2)
    facts = {
        "run": None if data else str(session.folder), "data": data, **made.facts, "seed": session.seed,
        "seconds": seconds, "files": [str(file)],
    }  # fmt: skip
    error = made.facts["table_error"]
    if error is not None and error["rms"] is not None:
        session.say(
            f"the table in the page is {error['rms']} model units from the model (root mean square; 99 % of "
            f"{error['count']:,} points are within {error['most']})"
        )
    if made.facts["holes"]:
        session.say(
            f"the model returned no finite number at {made.facts['holes']:,} nodes of the table; they are blank"
        )
    session.print(facts, f"{file}  {made.facts['bytes'] / 1e6:.2f} MB  {seconds:.1f} s")
