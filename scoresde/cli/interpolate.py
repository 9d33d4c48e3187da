"""The command ``scoresde interpolate``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ..core.errors import UsageError
from ..core.limits import RTOL, Range
from .command import Real, Whole, option, verb
from .common import Session, out_option, session

__all__ = ["interpolate"]


@verb(
    short_help="Morph one sample into another along the flow.",
    epilog="Example:  scoresde interpolate runs/digits-vp three.png eight.png --n 9",
)
@option("--n", under="Samples", first=True, type=Whole(Range(2, 1000)), default=9,
        help="Number of points on the way, including the two samples.")  # fmt: skip
@option("--rtol", under="Samples", first=True, type=Real(RTOL), default=1e-5, help="Relative tolerance of the solver.")
@out_option("RUN/interpolated")
@session(run=True, several=True, metavar="[RUN] FIRST LAST")
def interpolate(n: int, rtol: float, out: Path | None, session: Session) -> None:
    """Morph the sample in the file FIRST into the one in LAST with a RUN (default: the newest).

    The flow of the model maps both samples to noise. The command moves from one noise to the other on an arc and maps
    each step back to a sample (Song, Meng and Ermon 2021, arXiv:2010.02502). It prints the path of the picture. The
    first and the last step are the two samples again.
    """
    names = [name for name in (session.run, *session.others) if name is not None]
    *run, first, last = names if len(names) > 1 else ("", "")
    if not first or not last or len(run) > 1 or Path(first).is_dir() or Path(last).is_dir():
        raise UsageError("interpolate takes two files with one sample each, and optionally a run before them")
    session = replace(session, run=run[0] if run else None, others=())
    loaded = session.loaded

    from ..core.files import make_folder, write_arrays
    from ..core.optional import optional
    from ..run.questions import read_samples

    ends = []
    for name in (first, last):
        found, notes = read_samples(loaded, Path(name))
        ends.append(found)
        for note in notes:
            session.say(f"{name}: {note}")
    for name, found in zip((first, last), ends, strict=True):
        if len(found) != 1:
            raise UsageError(f"{name} has {len(found):,} samples, but interpolate takes files with one sample each")
    folder = make_folder(session.folder / "interpolated" if out is None else out)
    began = time.monotonic()
    x = loaded.interpolate(ends[0][0], ends[1][0], n, rtol=rtol)
    files = [write_arrays(folder / "interpolated.npz", {"x": x.numpy()})]
    off = max(float((x[i].double() - end[0]).abs().max()) for i, end in zip((0, -1), ends, strict=True))
    info, path = loaded.info, folder / "interpolated.png"
    with optional(str(path), f"the samples are in {files[0]}"):
        from ..plot import samples_figure, save_figure, save_image_grid

        if info.kind in ("image", "volume"):
            save_image_grid(path, x.numpy(), info.low, info.high, columns=n)
        else:
            save_figure(path, samples_figure(x, info.kind, info.low, info.high, None, info.names))
        files.insert(0, path)
    seconds = round(time.monotonic() - began, 2)
    facts = {
        "run": str(session.folder), "step": loaded.step, "first": first, "last": last, "n": n, "rtol": rtol,
        "difference": off, "seconds": seconds, "files": [str(path) for path in files],
    }  # fmt: skip
    session.say(f"the first and the last step differ from the two samples by at most {off:.3g}")
    session.print(facts, f"{files[0]}  {seconds:.1f} s")
