"""The commands ``scoresde plot reverse``, ``score-field``, ``trajectories``, ``compass`` and ``loss-by-noise``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ...core.limits import COUNT, FRAMES, SEVERAL, Range
from ...core.registry import build
from ...core.tables import SOLVERS
from ..command import Whole, option, verb
from ..common import Conditioning, Session, SolverChoice, conditioning, session, solver_options
from .common import picture_option, report, target, write

if TYPE_CHECKING:
    from torch import Tensor

    from ...run.run import Run

__all__ = ["compass", "loss_by_noise", "reverse", "score_field", "trajectories"]


@verb(
    short_help="Plot samples as they emerge from noise.",
    epilog="Example:  scoresde plot reverse runs/digits-vp --solver em --steps 200 --n 6",
)
@solver_options("heun", "steps")
@option("--n", under="Samples", first=True, type=Whole(COUNT),
        help="Number of samples.  [default: 4, or 1000 for vectors]")  # fmt: skip
@option("--columns", under="Picture", first=True, type=Whole(FRAMES), default=9,
        help="Number of time points in the picture.")  # fmt: skip
@option("--frames", under="Picture", type=Whole(FRAMES), default=33, help="Minimum number of frames in the GIF.")
@option("--gif/--no-gif", under="Picture", first=True, default=True, help="Also write a GIF to the same folder.")
@conditioning()
@picture_option("RUN/plots/reverse.png")
@session(run=True, first=("seed",))
def reverse(
    solver: SolverChoice, n: int | None, columns: int, frames: int, gif: bool, condition: Conditioning,
    out: Path | None, session: Session,
) -> None:  # fmt: skip
    """Draw a picture and a GIF of samples from a RUN (default: the newest) emerging from noise.

    The picture shows the states x_t and, below them, the model's estimates x0_hat of the data. The times are equally
    spaced in sigma/(alpha + sigma).
    """
    built = solver.build()
    loaded = session.loaded
    file = target(out, session.folder / "plots" / "reverse.png")
    from ...study.figures import frames_between, undo, write_reverse

    count = n or (1000 if loaded.info.kind == "vector" else 4)
    session.say(f"drawing {count} sample{'s' * (count > 1)} from {session.whence} with the {solver.name} solver")
    times = frames_between(columns, frames if gif else columns)
    rich = loaded.config is not None and loaded.config.sources.rich
    asked = condition.all_of(loaded, count, session.seed) if rich else condition.of(loaded)
    found = undo(asked, count, built, times, seed=session.seed)
    files = write_reverse(asked, found, file, columns, gif)
    facts = {
        "run": str(loaded.folder), "solver": repr(built), "n": count, "seed": session.seed, **condition.facts,
        "nfe_mean": round(found.nfe, 2),
    }  # fmt: skip
    report(session, files, facts)


@verb(
    "score-field",
    short_help="Draw the learned score as arrows, for points in the plane.",
    epilog="Example:  scoresde plot score-field runs/8gaussians-vp --exact --times 0.05,0.2,0.5",
)
@option("--times", under="Picture", first=True,
        help="Times t to draw, one panel each.  [default: where the log-SNR is 6, 3, 0 and -3]")  # fmt: skip
@option("--exact", under="Picture", first=True, is_flag=True,
        help="Add the exact score, which is known only for 8gaussians.")  # fmt: skip
@conditioning(first=False)
@picture_option("RUN/plots/score-field.png")
@session(run=True)
def score_field(
    times: str | None, exact: bool, condition: Conditioning, out: Path | None, session: Session
) -> None:  # fmt: skip
    """Draw the learned score of a RUN (default: the newest) as arrows, for data that are points in the plane.

    The arrows are drawn over the density if it is known, and over noisy data otherwise. The length of an arrow is
    proportional to the fourth root of the norm of the score.
    """
    loaded = condition.of(session.loaded)
    file = target(out, session.folder / "plots" / "score-field.png")
    data = loaded.data()
    t = _times(loaded, times)
    from ...plot import score_fields
    from ...study.compass import score_grid

    found = score_grid(loaded, data, t, seed=session.seed)
    if exact and found.exact is None:
        raise UsageError(
            f"--exact: the exact score is known only for 8gaussians, not for {loaded.info.name}; use scoresde plot "
            "compass to compare the learned score with that of the training set"
        )
    known = {"exact": found.exact} if exact and found.exact is not None else {}
    log_snr = loaded.model.domain.sde.log_snr(t).tolist()
    # Adding 0 turns -0 into 0.
    labels = [f"t = {a:.3g},  log-SNR {round(b, 1) + 0:g}" for a, b in zip(t.tolist(), log_snr, strict=True)]
    figure = score_fields(
        found.x, found.y, {"learned": found.learned, **known}, labels, found.density,
        found.points if found.density is None else None,
    )  # fmt: skip
    facts = {"run": str(loaded.folder), "t": t.tolist(), "log_snr": log_snr, "seed": session.seed, **condition.facts}
    write(session, file, figure, facts)


@verb(
    short_help="Draw trajectories of the probability flow and of the reverse SDE.",
    epilog="Example:  scoresde plot trajectories runs/moons-vp --paths 12 --steps 500",
)
@solver_options("em", "steps", steps=200, what="Solver for the reverse SDE, such as em, heun-sde or sde.")
@option("--n", under="Samples", first=True, type=Whole(SEVERAL),
        help="Number of samples for estimating the shaded density.  [default: 200, or 1000 for vectors]")  # fmt: skip
@option("--paths", "lines", under="Picture", first=True, type=Whole(COUNT), default=7,
        help="Number of trajectories to draw.")  # fmt: skip
@picture_option("RUN/plots/trajectories.png")
@session(run=True)
def trajectories(solver: SolverChoice, n: int | None, lines: int, out: Path | None, session: Session) -> None:
    """Draw the trajectories of samples from a RUN (default: the newest) under the probability flow and the reverse SDE.

    The flow and the SDE start from the same noise. Their trajectories differ, but have the same distribution at each
    time. The picture shows one number per sample. For vectors with up to three coordinates, this is the first
    coordinate. For all other data, it is the projection onto the first principal axis of the data.
    """
    noisy = solver.build()
    if not noisy.stochastic:
        raise UsageError(
            f"--solver {solver.name} is not stochastic; use a stochastic solver, such as em, heun-sde, sde or ancestral"
        )
    loaded = session.loaded
    file = target(out, session.folder / "plots" / "trajectories.png")
    data = loaded.data()

    from ...data.rows import evenly
    from ...metrics import sliced_wasserstein
    from ...plot import trajectories as draw
    from ...study.figures import paths, projection

    axis, what = projection(loaded, data.train)
    n = n or (1000 if loaded.info.kind == "vector" else 200)
    session.say(
        f"drawing {n} samples from {session.whence}, once with the probability flow and once with {solver.name}"
    )
    asked = loaded.typical(n, session.seed)
    found = paths(asked, n, build("heun", SOLVERS, "solver"), noisy, axis, seed=session.seed)
    index = evenly(data.test)
    test = loaded.of_rows(data, index)
    real = test.codec.continuous.to_model(data.test[index].double(), test.condition).flatten(1).cpu() @ axis
    ends = {"flow": found.flow[-1], "sde": found.sde[-1]}
    facts = {
        "run": str(loaded.folder), "solver": repr(noisy), "n": n, "seed": session.seed, "projection": what,
        "w2_flow_sde": sliced_wasserstein(ends["flow"][:, None], ends["sde"][:, None], projections=1),
        "w2_data": {k: sliced_wasserstein(v[:, None], real[:, None], projections=1) for k, v in ends.items()},
    }  # fmt: skip
    titles = {"probability flow": found.flow, "reverse SDE, from the same noise": found.sde}
    write(session, file, draw(found.t, titles, lines, real, f"{what}, model units"), facts)


@verb(
    short_help="Compare the learned score with the exact score.",
    epilog="Example:  scoresde plot compass runs/8gaussians-vp --n 1000",
)
@option("--n", under="Samples", first=True, type=Whole(Range(2, 10_000)), default=256,
        help="Maximum number of held-out samples at each noise level.")  # fmt: skip
@option("--levels", under="Picture", first=True, type=Whole(Range(2, 10_000)), default=25,
        help="Number of noise levels.")  # fmt: skip
@conditioning(first=False)
@picture_option("RUN/plots/compass.png")
@session(run=True)
def compass(n: int, levels: int, condition: Conditioning, out: Path | None, session: Session) -> None:
    """Compare the score of a RUN (default: the newest) with the exact score, in direction and length.

    The scores are compared at noisy held-out samples. For 8gaussians, the exact score is the score of the known
    density. For all other data, it is the score of the noisy training set. This score minimises the training loss, but
    a model that generalises departs from it at low noise.
    """
    loaded = condition.of(session.loaded)
    file = target(out, session.folder / "plots" / "compass.png")
    data = loaded.data()
    from ...plot import compass as draw
    from ...study.compass import measure

    found = measure(loaded, data, n=n, levels=levels, seed=session.seed)
    figure = draw(
        found.log_snr, found.cosine, found.error, f"{loaded.info.name}, step {loaded.step:,}: against {found.against}",
        found.note,
    )  # fmt: skip
    rows = {
        "log_snr": found.log_snr.tolist(), "cosine": found.cosine[:, 1].tolist(), "error": found.error[:, 1].tolist(),
    }  # fmt: skip
    facts = {"run": str(loaded.folder), "against": found.against, "n": found.n, **rows}
    write(session, file, figure, {**facts, "seed": session.seed, **condition.facts})


@verb(
    "loss-by-noise",
    short_help="Plot the loss at each noise level.",
    epilog="Example:  scoresde plot loss-by-noise runs/digits-vp",
)
@option("--lines", under="Picture", first=True, type=Whole(FRAMES), default=5,
        help="Maximum number of times of the training to draw.")  # fmt: skip
@picture_option("RUN/plots/loss-by-noise.png")
@session(run=True)
def loss_by_noise(lines: int, out: Path | None, session: Session) -> None:
    """Plot the loss of a RUN (default: the newest) in ten intervals of the log-SNR, at several times of the training.

    If the run was validated, the losses are those of the averaged weights on the validation rows. Otherwise, they are
    means over training steps.
    """
    loaded = session.loaded
    file = target(out, session.folder / "plots" / "loss-by-noise.png")
    from ...plot import loss_by_noise as draw
    from ...study.figures import loss_by_noise as read

    found = read(loaded, lines)
    what = "validation loss" if found.validation else "training loss"
    losses = [[None if value != value else value for value in row] for row in found.losses.tolist()]
    facts = {
        "run": str(loaded.folder), "loss": what, "log_snr": found.edges.tolist(), "steps": found.steps,
        "losses": losses,
    }  # fmt: skip
    write(session, file, draw(found.edges, found.labels, found.losses, what), facts)


def _times(run: Run, text: str | None) -> Tensor:
    """Parse and check ``--times``, or return default times if ``text`` is ``None``."""
    import torch

    low, high = run.model.domain.interval("sample")
    if text is None:
        usual = torch.tensor([6.0, 3.0, 0.0, -3.0], dtype=torch.float64)
        return run.model.domain.sde.t_of_log_snr(usual).clamp(low, high)
    try:
        times = torch.tensor([float(part) for part in text.split(",") if part.strip()], dtype=torch.float64)
    except ValueError:
        raise UsageError(f"--times must be a list of numbers, such as 0.05,0.2,0.5, got {text!r}") from None
    if len(times) == 0 or not bool(((times >= low) & (times <= high)).all()):
        raise UsageError(f"--times must be between {low:g} and {high:g} for this model, got {text!r}")
    return times
