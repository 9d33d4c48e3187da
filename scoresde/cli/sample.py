"""The command ``scoresde sample``."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import NumericalError, UsageError
from ..core.limits import COUNT, FRAMES, WHOLE
from ..core.registry import options_of
from ..core.tables import SDES
from .command import Whole, option, verb
from .common import (
    Conditioning,
    Session,
    SolverChoice,
    conditioning,
    counted,
    in_list,
    out_option,
    session,
    solver_options,
)
from .work import Work, resume_option, work_in

if TYPE_CHECKING:
    from torch import Tensor

    from ..run.run import Run

__all__ = ["sample"]


@verb(
    short_help="Draw samples from a trained run.",
    epilog="Example:  scoresde sample runs/digits-vp --solver pc --steps 500 --snr 0.16 --n 100",
)
@solver_options("ode", "steps", "rtol")
@option("--n", under="Samples", first=True, type=Whole(COUNT), default=64, help="Number of samples.")
@option("--start", under="Samples", type=Whole(WHOLE), default=0, help="Index of the first sample.")
@option("--batch", under="Samples", type=Whole(COUNT), default=256, help="Maximum number of samples per batch.")
@option("--denoise/--no-denoise", under="Samples", default=True, help="Finish with a noise-free step.")
@option("--brownian", under="Samples", is_flag=True, help="Use noise that does not depend on the number of steps.")
@option("--path", under="Samples", metavar="NAME",
        help=f"Sample with a different SDE: {', '.join(SDES)}, or module:Class.")  # fmt: skip
@conditioning()
@option("--save", under="Files", first=True,
        help="Files to write: png (a sheet), files (a PNG for each image), npz, csv, gif, path (states as arrays).  "
             "[default: png,npz, plus csv if the data are a table]")  # fmt: skip
@option("--frames", under="Files", type=Whole(FRAMES), default=40, help="Number of frames in the GIF and path files.")
@out_option("RUN/samples/SOLVER-seedN")
@resume_option()
@session(run=True, first=("seed",))
def sample(
    solver: SolverChoice, n: int, start: int, batch: int, denoise: bool, brownian: bool, path: str | None,
    condition: Conditioning, save: str | None, frames: int, out: Path | None, resume: bool, session: Session,
) -> None:  # fmt: skip
    """Draw samples from a trained RUN (default: the newest), and print the path of the picture."""
    built = solver.build()
    run = session.loaded
    from ..core.parts import batch_kept
    from ..core.progress import Progress
    from ..run.samples import kinds_of, write_samples

    kinds = kinds_of(run.info, None if save is None else in_list(save))
    given = click.get_current_context().get_parameter_source("frames") is click.core.ParameterSource.COMMANDLINE
    if given and not {"gif", "path"} & set(kinds):
        raise UsageError(f"--frames {frames} requires --save gif or --save path; use --save {','.join(kinds)},gif")
    asked = condition.of(run).on(path)
    asked.model  # noqa: B018  # report an invalid condition before anything else
    record = bool({"gif", "path"} & set(kinds))
    # Create the folder first, so that no samples are lost if the folder cannot be written.
    default = session.folder / "samples" / f"{solver.short}-seed{session.seed}"

    def request() -> dict[str, Any]:
        return asked.sample_request(built, seed=session.seed, start=start, denoise=denoise, brownian=brownian)

    with work_in(session, out, default, resume, n, "samples", "samples.json", lambda: [request()]) as work:
        if work.finished is not None:
            _again(work, n, session)
            return
        session.say(f"drawing {n} sample{'s' * (n > 1)} from {session.whence} with the {solver.short} solver")
        began = time.monotonic()
        with Progress(n, "sample", quiet=session.quiet) as progress:
            samples = asked.sample(
                n, built, seed=session.seed, start=start, denoise=denoise, batch=batch, brownian=brownian,
                watch=counted(progress, batch_kept(work.parts) or batch), record=record, keep=work.parts,
            )  # fmt: skip
        solution = samples.solution
        nfe = solution.nfe.double()
        facts = {
            "run": str(session.folder), "step": run.step, "solver": solver.short, "options": options_of(built), "n": n,
            "seed": session.seed, "start": start, **condition.facts, "denoise": denoise, "brownian": brownian,
            "path": path,
            "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
            "accepted_mean": round(float(solution.accepted.double().mean()), 2),
            "rejected_mean": round(float(solution.rejected.double().mean()), 2),
            "failed": (~solution.ok).nonzero().flatten().tolist(), "seconds": round(time.monotonic() - began, 2),
        }  # fmt: skip
        more = {"failures": solution.failures(), "requests": [request()]}  # for a later call with the same request
        files = write_samples(
            work.folder, samples, run.info, {**facts, **more}, kinds, codec=run.codec,
            frames=None if solution.trajectory is None else lambda: run.frames(samples, frames),
            reference=(lambda: _behind(asked, session)) if run.info.kind == "vector" else None,
        )  # fmt: skip
        work.done()
        _report(session, work.folder, facts, files, solution.failures())


def _again(work: Work, n: int, session: Session) -> None:
    """Print the finished result of an earlier call."""
    assert work.finished is not None
    facts = {name: value for name, value in work.finished.items() if name not in ("requests", "failures")}
    if facts.get("n") != n:
        raise UsageError(
            f"{work.folder} already contains a finished result of {facts.get('n')} samples; to draw more samples, use "
            f"another folder and --start {facts.get('n')}",
            parameter="out",
        )
    session.say(f"the result in {work.folder} is already finished; there is nothing left to do")
    names = ("grid.png", "samples.png", "files", "samples.gif", "samples.npz", "samples.csv", "path.npz")
    files = [path for name in names if (path := work.folder / name).exists()]
    _report(session, work.folder, facts, files, work.finished["failures"])


def _report(session: Session, folder: Path, facts: dict[str, Any], files: list[Path], failures: list[str]) -> None:
    """Print the result, and raise an error if samples failed."""
    # Third-party integrators do not report how many steps they took.
    steps = f"steps {facts['accepted_mean']:g} accepted, {facts['rejected_mean']:g} rejected  "
    steps = steps if facts["accepted_mean"] else ""
    session.print(
        {**facts, "files": [str(f) for f in files]},
        f"{files[0] if files else folder}  {facts['n']} sample{'s' * (facts['n'] > 1)}  NFE mean {facts['nfe_mean']:g} "
        f"max {facts['nfe_max']}  {steps}{facts['seconds']:.1f} s  seed {facts['seed']}",
    )
    if failures:
        raise NumericalError("; ".join(failures) + f". The other samples are in {folder}.")


def _behind(run: Run, session: Session) -> Tensor | None:
    """Select at most 2,000 training rows for the figure, from the classes that the run is conditioned on.

    Return ``None`` if the data are no longer available.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the data do not matter here
            data = run.data()
        x, known = data.train, run.condition
        if known is not None and known.label is not None and data.train_labels is not None:
            x = x[torch.isin(data.train_labels, known.label.cpu())]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:2000]
        return x[order] if len(x) and tuple(x.shape[1:]) == run.info.shape else None
    except Exception as error:
        session.say(f"the figure does not show the data: {str(error).partition('. ')[0]}")
        return None
