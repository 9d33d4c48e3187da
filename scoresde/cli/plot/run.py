"""``scoresde plot reverse``, ``score-field``, ``trajectories`` and ``compass``: pictures of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...build import build
from ...errors import UsageError
from ...tables import SOLVERS
from ..common import common_options, load_run, say, verb
from .common import out_option, own_sde, report, target, write

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Dataset
    from ...run import Run

__all__ = ["compass", "reverse", "score_field", "trajectories"]


@verb(
    short_help="Samples on their way, and what the model takes them for.",
    epilog="Example:  scoresde plot reverse runs/digits-vp --solver em --steps 200 --n 6",
)
@click.argument("run", required=False)
@click.option("--solver", default="heun", show_default=True, help=f"{', '.join(SOLVERS)}, or module:Class.")
@click.option("--steps", type=click.IntRange(1), help="Steps of a fixed-step solver.")
@click.option("--n", type=click.IntRange(1), help="Number of samples.  [default: 4, or 1000 points]")
@click.option("--columns", type=click.IntRange(2), default=9, show_default=True, help="Times in the picture.")
@click.option("--frames", type=click.IntRange(2), default=33, show_default=True, help="Frames of the GIF, at least.")
@click.option("--gif/--no-gif", default=True, show_default=True, help="Write a GIF beside the picture.")
@click.option("--label", help="Class to draw, by name or number (a model trained with --cond class).")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale.")
@out_option
@own_sde
@common_options
def reverse(
    run: str | None, solver: str, steps: int | None, n: int | None, columns: int, frames: int, gif: bool,
    label: str | None, guidance: float, out: Path | None, sde: str | None, seed: int, device: str, dtype: str,
    threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Samples of a RUN (default: the newest) on their way from noise: the states x_t, and below them the data x0_hat
    that the model sees in them. Equal distances between the columns in sigma/(alpha + sigma). And a GIF of both.
    """
    built = build(solver, SOLVERS, "solver", typed=True, **({} if steps is None else {"steps": steps}))
    loaded = load_run(run, sde, device, threads, dtype)
    file = target(out, _plots(loaded) / "reverse.png")
    from ...pictures import frames_between, undo, write_reverse

    count = n or (1000 if loaded.info.kind == "vector" else 4)
    say(quiet, f"sampling {count} with {solver} from {loaded.folder} (step {loaded.step:,})")
    times = frames_between(columns, frames if gif else columns)
    found = undo(loaded.given(label).guided(guidance), count, built, times, seed=seed)
    files = write_reverse(loaded, found, file, columns, gif)
    facts = {
        "run": str(loaded.folder), "solver": repr(built), "n": count, "seed": seed, "label": label,
        "guidance": guidance, "nfe_mean": round(found.nfe, 2),
    }  # fmt: skip
    report(files, as_json, facts)


@verb(
    "score-field",
    short_help="The learned score in the plane, as arrows.",
    epilog="Example:  scoresde plot score-field runs/8gaussians-vp --exact --times 0.05,0.2,0.5",
)
@click.argument("run", required=False)
@click.option("--times", help="Times t of the panels.  [default: where the log-SNR is 6, 3, 0, -3]")
@click.option("--exact", is_flag=True, help="The exact score below it, where it is known (8gaussians).")
@out_option
@own_sde
@common_options
def score_field(
    run: str | None, times: str | None, exact: bool, out: Path | None, sde: str | None, seed: int, device: str,
    dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """The score that a RUN (default: the newest) on data in the plane has learned, as arrows, over the density where
    it is known and over the data with noise elsewhere. An arrow's length goes as the fourth root of the score's.
    """
    loaded = load_run(run, sde, device, threads, dtype)
    file = target(out, _plots(loaded) / "score-field.png")
    data = _data(loaded)
    t = _times(loaded, times)
    from ...compass import score_grid
    from ...plot import score_fields

    found = score_grid(loaded, data, t, seed=seed)
    if exact and found.exact is None:
        raise UsageError(
            f"--exact: the exact score of {loaded.info.name} is not known, that of 8gaussians is; plot compass "
            "compares with the score of the training set"
        )
    known = {"exact": found.exact} if exact and found.exact is not None else {}
    log_snr = loaded.model.domain.sde.log_snr(t).tolist()
    # Adding 0 makes a 0 of -0.
    labels = [f"t = {a:.3g},  log-SNR {round(b, 1) + 0:g}" for a, b in zip(t.tolist(), log_snr, strict=True)]
    figure = score_fields(
        found.x, found.y, {"learned": found.learned, **known}, labels, found.density,
        found.points if found.density is None else None,
    )  # fmt: skip
    write(file, figure, as_json, {"run": str(loaded.folder), "t": t.tolist(), "log_snr": log_snr, "seed": seed})


@verb(
    short_help="Paths of the flow and of the reverse SDE from the same noise.",
    epilog="Example:  scoresde plot trajectories runs/moons-vp --paths 12 --steps 500",
)
@click.argument("run", required=False)
@click.option("--solver", default="em", show_default=True, help="Of the reverse SDE: em, heun-sde, sde, ...")
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True, help="Steps of the reverse SDE.")
@click.option("--n", type=click.IntRange(2), help="Samples that make the shade.  [default: 200, or 1000 vectors]")
@click.option("--paths", "lines", type=click.IntRange(1), default=7, show_default=True, help="Paths that are drawn.")
@out_option
@own_sde
@common_options
def trajectories(
    run: str | None, solver: str, steps: int, n: int | None, lines: int, out: Path | None, sde: str | None, seed: int,
    device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Samples of a RUN (default: the newest) on their way by the probability flow and by the reverse SDE, from the same
    noise: other paths, the same law at each time. One number of each sample is drawn: the first coordinate of vectors,
    of anything else the first principal axis of the data.
    """
    noisy = build(solver, SOLVERS, "solver", typed=True, steps=steps)
    if not noisy.stochastic:
        raise UsageError(f"--solver {solver} draws no noise; the reverse SDE takes em, heun-sde, sde, ancestral, ...")
    loaded = load_run(run, sde, device, threads, dtype)
    file = target(out, _plots(loaded) / "trajectories.png")
    data = _data(loaded)
    from ...metrics import sliced_wasserstein
    from ...pictures import paths, projection
    from ...plot import trajectories as draw

    axis, what = projection(loaded, data.train)
    n = n or (1000 if loaded.info.kind == "vector" else 200)
    say(quiet, f"sampling {n} twice from {loaded.folder} (step {loaded.step:,})")
    found = paths(loaded, n, build("heun", SOLVERS, "solver"), noisy, axis, seed=seed)
    real = loaded.codec.continuous.to_model(data.test.double()).flatten(1) @ axis
    ends = {"flow": found.flow[-1], "sde": found.sde[-1]}
    facts = {
        "run": str(loaded.folder), "solver": repr(noisy), "n": n, "seed": seed, "projection": what,
        "w2_flow_sde": sliced_wasserstein(ends["flow"][:, None], ends["sde"][:, None], projections=1),
        "w2_data": {k: sliced_wasserstein(v[:, None], real[:, None], projections=1) for k, v in ends.items()},
    }  # fmt: skip
    titles = {"probability flow: one path for each noise": found.flow, "reverse SDE, from the same noise": found.sde}
    write(file, draw(found.t, titles, lines, real, f"{what}, model units"), as_json, facts)


@verb(
    short_help="The learned score against the exact one, by noise level.",
    epilog="Example:  scoresde plot compass runs/8gaussians-vp --n 1000",
)
@click.argument("run", required=False)
@click.option("--n", type=click.IntRange(2), default=256, show_default=True, help="Held-out samples at each level.")
@click.option("--levels", type=click.IntRange(2), default=25, show_default=True, help="Noise levels.")
@out_option
@own_sde
@common_options
def compass(
    run: str | None, n: int, levels: int, out: Path | None, sde: str | None, seed: int, device: str, dtype: str,
    threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Does the score of a RUN (default: the newest) point where the exact one does, and is it as long? At held-out
    samples with noise. The exact score is that of the density for 8gaussians, and for all other data that of the
    training set, the minimiser of the training loss, from which a model that generalises departs at low noise.
    """
    loaded = load_run(run, sde, device, threads, dtype)
    file = target(out, _plots(loaded) / "compass.png")
    data = _data(loaded)
    from ...compass import measure
    from ...plot import compass as draw

    found = measure(loaded, data, n=n, levels=levels, seed=seed)
    figure = draw(
        found.log_snr, found.cosine, found.error, f"{loaded.info.name}, step {loaded.step:,}: against {found.against}",
        found.note,
    )  # fmt: skip
    rows = {
        "log_snr": found.log_snr.tolist(), "cosine": found.cosine[:, 1].tolist(), "error": found.error[:, 1].tolist(),
    }  # fmt: skip
    facts = {"run": str(loaded.folder), "against": found.against, "n": min(n, len(data.test)), **rows}
    write(file, figure, as_json, {**facts, "seed": seed})


def _data(run: Run) -> Dataset:
    """The data of a run."""
    return run.data()


def _times(run: Run, text: str | None) -> Tensor:
    """Times in the model's interval, by number or by the usual noise levels."""
    import torch

    low, high = run.model.domain.interval("sample")
    if text is None:
        usual = torch.tensor([6.0, 3.0, 0.0, -3.0], dtype=torch.float64)
        return run.model.domain.sde.t_of_log_snr(usual).clamp(low, high)
    try:
        times = torch.tensor([float(part) for part in text.split(",") if part.strip()], dtype=torch.float64)
    except ValueError:
        raise UsageError(f"--times {text!r}: it takes numbers, such as 0.05,0.2,0.5") from None
    if len(times) == 0 or not bool(((times >= low) & (times <= high)).all()):
        raise UsageError(f"--times {text!r}: the times of this model lie between {low:g} and {high:g}")
    return times


def _plots(run: Run) -> Path:
    """Where a run's pictures are."""
    assert run.folder is not None
    return run.folder / "plots"
