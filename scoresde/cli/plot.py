"""``scoresde plot``: the pictures that explain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..build import build, closest
from ..errors import CheckpointError, NumericalError, UsageError
from ..tables import GRIDS, SDES, SOLVERS
from .common import (
    F,
    Group,
    common_options,
    label_number,
    load_run,
    prepare,
    print_json,
    say,
    sde_option,
    settings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..data import Dataset
    from ..run import Run
    from ..sde import SDE

__all__ = ["plot"]

FORMATS = ("png", "pdf", "svg")
X_T, X_0 = r"$x_t$", r"$\hat{x}_0(x_t, t)$"


@click.group(cls=Group)
def plot() -> None:
    """Pictures that explain: schedules, the way to noise and back, scores.

    \b
    scoresde plot schedule --sde vp,cosine,flow
    scoresde plot trajectories                    # of the newest run
    """


def _out(command: F) -> F:
    return click.option(
        "--out", type=click.Path(path_type=Path), metavar="FILE",
        help=f"File to write: {', '.join(FORMATS)}.  [default: RUN/plots/NAME.png]",
    )(command)  # fmt: skip


def _own_sde(command: F) -> F:
    return sde_option("The run's SDE, if it is your own: module:Class.", None)(command)


# ---------------------------------------------------------------------------------------------------- without a run


@plot.command(
    short_help="Schedules of SDEs, in t and by noise level.",
    epilog="Example:  scoresde plot schedule --sde vp,ve,flow --set vp.beta_max=10",
)
@click.option("--sde", "sdes", default="vp,cosine,flow", show_default=True, metavar="NAMES",
              help=f"Of {', '.join(SDES)}, or module:Class.")  # fmt: skip
@click.option("--set", "assignments", multiple=True, metavar="SDE.NAME=VALUE", help="An option of one of them.")
@_out
@common_options
def schedule(
    sdes: str, assignments: tuple[str, ...], out: Path | None, seed: int, device: str, dtype: str,
    threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Schedules of SDEs: alpha, sigma, beta and log-SNR in t, and, on the log-SNR axis that they share, alpha and
    sigma, where the steps of a solver go and which noise levels training draws. Needs no run.

    beta is -2 d log alpha/dt; g^2 is dotted where it differs, that is, unless the SDE preserves the variance.
    """
    names = _names("--sde", sdes)
    options = settings(assignments, tuple(names))
    prepare(device, threads)
    built = {name: _sde(name, options[name]) for name in names}
    from ..pictures import schedule_of
    from ..plot import schedules

    file = _target(out, Path("schedule.png"))
    figure = schedules([schedule_of(name, sde, seed) for name, sde in built.items()])
    _write(file, figure, as_json, {"sdes": {name: repr(sde) for name, sde in built.items()}, "seed": seed})


@plot.command(
    short_help="Data that dissolves, by the jump and step by step.",
    epilog="Example:  scoresde plot forward --data moons --sde flow --n 1000 --steps 6",
)
@click.option("--data", default="digits", show_default=True, help="digits, a 2-D toy, or a path: images, IDX, npz.")
@sde_option(f"{', '.join(SDES)}, or module:Class of your own.", "vp")
@click.option("--set", "assignments", multiple=True, metavar="sde.NAME=VALUE", help="An option of the SDE.")
@click.option("--n", type=click.IntRange(1), help="Number of samples.  [default: 6, or 1000 points]")
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Steps from data to noise.")
@click.option("--grid", default="uniform", show_default=True, help=f"Their times: auto, {', '.join(GRIDS)}.")
@_out
@common_options
def forward(
    data: str, sde: str, assignments: tuple[str, ...], n: int | None, steps: int, grid: str, out: Path | None,
    seed: int, device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Data on its way to noise: by the jump x_t = alpha x_0 + sigma eps, and step by step. Needs no run."""
    prepare(device, threads)
    chosen = _sde(sde, settings(assignments, ("sde",))["sde"])
    from ..data import load_data
    from ..grids import make_grid
    from ..noise import Noise
    from ..pictures import dissolve, shown
    from ..plot import strips

    dataset = load_data(data, seed)
    info, count = dataset.info, n or (1000 if dataset.info.kind == "vector" else 6)
    file = _target(out, Path("forward.png"))
    times = make_grid(grid, chosen, steps, *chosen.times("train"))
    x0 = info.transform.encode(dataset.test[:count].double())
    found = dissolve(chosen, x0, times, Noise.of(len(x0), seed))
    spread = {"jump": float(found.spread[0].mean()), "chain": float(found.spread[1].mean())}
    blocks = {
        r"one jump:  $x_t = \alpha_t x_0 + \sigma_t \varepsilon$,  the same $\varepsilon$ in all columns": found.jump,
        r"step by step:  $x_t = A x_s + S z$,  a new $z$ at each step;  "
        r"$A = \alpha_t/\alpha_s$,  $S^2 = \sigma_t^2 - A^2 \sigma_s^2$": found.chain,
    }
    note = (
        r"Both have the same law at each t. Standard deviation of the noise $(x_t - \alpha_t x_0)/\sigma_t$ here: "
        f"{spread['jump']:.3f} by the jump, {spread['chain']:.3f} step by step."
    )
    figure = strips(
        {title: shown(chosen, info, x, times) for title, x in blocks.items()},
        ["data", *_labels(times[1:])], info.kind, info.low, info.high,
        coloured_by=x0 if info.kind == "vector" else None, note=note + _scaled(chosen, times),
    )  # fmt: skip
    facts = {"data": info.name, "sde": repr(chosen), "n": len(x0), "t": times.tolist(), "noise_std": spread}
    _write(file, figure, as_json, {**facts, "seed": seed})


# ------------------------------------------------------------------------------------------------------- with a run


@plot.command(
    short_help="Samples on their way, and what the model takes them for.",
    epilog="Example:  scoresde plot reverse runs/digits-vp --solver em --steps 200 --n 6",
)
@click.argument("run", required=False)
@click.option("--solver", default="heun", show_default=True, help=f"{', '.join(SOLVERS)}, or module:Class.")
@click.option("--steps", type=click.IntRange(1), help="Steps of a fixed-step solver.")
@click.option("--n", type=click.IntRange(1), help="Number of samples.  [default: 4, or 1000 points]")
@click.option("--columns", type=click.IntRange(2), default=9, show_default=True, help="Times in the picture.")
@click.option("--frames", type=click.IntRange(2), default=32, show_default=True, help="Frames of the GIF.")
@click.option("--gif/--no-gif", default=True, show_default=True, help="Write a GIF beside the picture.")
@click.option("--label", help="Class to draw, by name or number (a model trained with --cond class).")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale.")
@_out
@_own_sde
@common_options
def reverse(
    run: str | None, solver: str, steps: int | None, n: int | None, columns: int, frames: int, gif: bool,
    label: str | None, guidance: float, out: Path | None, sde: str | None, seed: int, device: str, dtype: str,
    threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Samples of a RUN (default: the newest) on their way from noise: the states x_t, and below them the data x0_hat
    that the model sees in them. Equal distances between the columns in sigma/(alpha + sigma). And a GIF of both.
    """
    built = build(solver, SOLVERS, "solver", **({} if steps is None else {"steps": steps}))
    loaded = load_run(run, sde, device, threads, dtype)
    file = _target(out, _plots(loaded) / "reverse.png")
    number = None if label is None else label_number(loaded, label)
    from ..pictures import undo
    from ..plot import animate_pair, save_gif, strips

    info = loaded.info
    count = n or (1000 if info.kind == "vector" else 4)
    say(quiet, f"sampling {count} with {solver} from {loaded.folder} (step {loaded.step:,})")
    fine = undo(loaded, count, built, max(frames if gif else 0, columns), seed=seed, labels=number, guidance=guidance)
    found = undo(loaded, count, built, columns, seed=seed, labels=number, guidance=guidance) if gif else fine
    _finite(found.x, found.x0)
    titles = [f"the state {X_T}", f"the data that the model sees in it, {X_0}"]
    figure = strips(
        dict(zip(titles, (found.x, found.x0), strict=True)), _labels(found.t), info.kind, info.low, info.high,
        coloured_by=found.x0[-1] if info.kind == "vector" else None,
        note=_scaled(loaded.model.sde, found.t).strip() or None,
    )  # fmt: skip
    files = []
    if gif:
        names = [(f"{X_T}   t = {t:.2f}", X_0) for t in fine.t.tolist()]
        moving = file.with_suffix(".gif")
        _saved(moving, lambda: save_gif(moving, animate_pair(fine.x, fine.x0, names, info.kind, info.low, info.high)))
        files.append(str(moving))
    facts = {"solver": repr(built), "n": count, "nfe_mean": round(found.nfe, 2), "label": label, "guidance": guidance}
    _write(file, figure, as_json, {"run": str(loaded.folder), **facts, "t": found.t.tolist(), "seed": seed}, files)


@plot.command(
    "score-field",
    short_help="The learned score in the plane, as arrows.",
    epilog="Example:  scoresde plot score-field runs/8gaussians-vp --exact --times 0.05,0.2,0.5",
)
@click.argument("run", required=False)
@click.option("--times", help="Times t of the panels.  [default: where the log-SNR is 6, 3, 0, -3]")
@click.option("--exact", is_flag=True, help="The exact score below it, where it is known (8gaussians).")
@_out
@_own_sde
@common_options
def score_field(
    run: str | None, times: str | None, exact: bool, out: Path | None, sde: str | None, seed: int, device: str,
    dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """The score that a RUN (default: the newest) on data in the plane has learned, as arrows, over the density where
    it is known and over the data with noise elsewhere. An arrow's length goes as the fourth root of the score's.
    """
    loaded = load_run(run, sde, device, threads, dtype)
    file = _target(out, _plots(loaded) / "score-field.png")
    data = _data(loaded)
    t = _times(loaded, times)
    from ..compass import score_grid
    from ..plot import score_fields

    found = score_grid(loaded, data, t, seed=seed)
    if exact and found.exact is None:
        raise UsageError(
            f"--exact: the exact score of {loaded.info.name} is not known, that of 8gaussians is; plot compass "
            "compares with the score of the training set"
        )
    known = {"exact": found.exact} if exact and found.exact is not None else {}
    log_snr = loaded.model.sde.log_snr(t).tolist()
    labels = [f"t = {a:.3g},  log-SNR {b:.1f}" for a, b in zip(t.tolist(), log_snr, strict=True)]
    figure = score_fields(
        found.x, found.y, {"learned": found.learned, **known}, labels, found.density,
        found.points if found.density is None else None,
    )  # fmt: skip
    _write(file, figure, as_json, {"run": str(loaded.folder), "t": t.tolist(), "log_snr": log_snr, "seed": seed})


@plot.command(
    short_help="Paths of the flow and of the reverse SDE from the same noise.",
    epilog="Example:  scoresde plot trajectories runs/moons-vp --paths 12 --steps 500",
)
@click.argument("run", required=False)
@click.option("--solver", default="em", show_default=True, help="Of the reverse SDE: em, heun-sde, sde, ...")
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Steps of the reverse SDE.")
@click.option("--n", type=click.IntRange(2), default=1000, show_default=True, help="Samples that make the shade.")
@click.option("--paths", "lines", type=click.IntRange(1), default=7, show_default=True, help="Paths that are drawn.")
@_out
@_own_sde
@common_options
def trajectories(
    run: str | None, solver: str, steps: int, n: int, lines: int, out: Path | None, sde: str | None, seed: int,
    device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Samples of a RUN (default: the newest) on their way by the probability flow and by the reverse SDE, from the same
    noise: other paths, the same law at each time. One number of each sample is drawn: the first coordinate of vectors,
    of anything else the first principal axis of the data.
    """
    noisy = build(solver, SOLVERS, "solver", steps=steps)
    if not noisy.stochastic:
        raise UsageError(f"--solver {solver} draws no noise; the reverse SDE takes em, heun-sde, sde, ancestral, ...")
    loaded = load_run(run, sde, device, threads, dtype)
    file = _target(out, _plots(loaded) / "trajectories.png")
    data = _data(loaded)
    from ..metrics import sliced_wasserstein
    from ..pictures import paths, projection
    from ..plot import trajectories as draw

    axis, what = projection(loaded, data.train)
    say(quiet, f"sampling {n} twice from {loaded.folder} (step {loaded.step:,})")
    found = paths(loaded, n, build("heun", SOLVERS, "solver"), noisy, axis, seed=seed)
    _finite(found.flow, found.sde)
    real = loaded.info.transform.encode(data.test.double()).flatten(1) @ axis
    ends = {"flow": found.flow[-1], "sde": found.sde[-1]}
    facts = {
        "run": str(loaded.folder), "solver": repr(noisy), "n": n, "seed": seed, "projection": what,
        "w2_flow_sde": sliced_wasserstein(ends["flow"][:, None], ends["sde"][:, None], projections=1),
        "w2_data": {k: sliced_wasserstein(v[:, None], real[:, None], projections=1) for k, v in ends.items()},
    }  # fmt: skip
    titles = {"probability flow: one path for each noise": found.flow, "reverse SDE, from the same noise": found.sde}
    _write(file, draw(found.t, titles, lines, real, f"{what}, model units"), as_json, facts)


@plot.command(
    short_help="The learned score against the exact one, by noise level.",
    epilog="Example:  scoresde plot compass runs/8gaussians-vp --n 1000",
)
@click.argument("run", required=False)
@click.option("--n", type=click.IntRange(2), default=256, show_default=True, help="Held-out samples at each level.")
@click.option("--levels", type=click.IntRange(2), default=25, show_default=True, help="Noise levels.")
@_out
@_own_sde
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
    file = _target(out, _plots(loaded) / "compass.png")
    data = _data(loaded)
    from ..compass import measure
    from ..plot import compass as draw

    found = measure(loaded, data, n=n, levels=levels, seed=seed)
    figure = draw(
        found.log_snr, found.cosine, found.error, f"{loaded.info.name}, step {loaded.step:,}: against {found.against}",
        found.note,
    )  # fmt: skip
    rows = {
        "log_snr": found.log_snr.tolist(), "cosine": found.cosine[:, 1].tolist(), "error": found.error[:, 1].tolist(),
    }  # fmt: skip
    facts = {"run": str(loaded.folder), "against": found.against, "n": min(n, len(data.test)), **rows}
    _write(file, figure, as_json, {**facts, "seed": seed})


# ----------------------------------------------------------------------------------------------------------- helpers


def _names(option: str, text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{option} {text!r}: name at least one of {', '.join(SDES)}")
    return names


def _sde(name: str, options: dict[str, Any]) -> SDE:
    from ..config import TrainConfig, build_sde

    return build_sde(TrainConfig(sde=name, sde_options=options))


def _data(run: Run) -> Dataset:
    """The data of a run."""
    from ..data import load_data

    return load_data(run.config.data, run.config.seed, run.config.test_fraction)


def _times(run: Run, text: str | None) -> Tensor:
    """Times in the model's interval, by number or by the usual noise levels."""
    import torch

    from ..solvers.base import sampling_interval

    low, high = sampling_interval(run.model)
    if text is None:
        return run.model.sde.t_of_log_snr(torch.tensor([6.0, 3.0, 0.0, -3.0], dtype=torch.float64)).clamp(low, high)
    try:
        times = torch.tensor([float(part) for part in text.split(",") if part.strip()], dtype=torch.float64)
    except ValueError:
        raise UsageError(f"--times {text!r}: it takes numbers, such as 0.05,0.2,0.5") from None
    if len(times) == 0 or not bool(((times >= low) & (times <= high)).all()):
        raise UsageError(f"--times {text!r}: the times of this model lie between {low:g} and {high:g}")
    return times


def _labels(t: Tensor) -> list[str]:
    return [f"t = {s:.2f}" if s >= 0.01 else f"t = {s:.1g}" for s in t.tolist()]


def _scaled(sde: SDE, t: Tensor) -> str:
    """A sentence where what is drawn is not x_t itself."""
    import torch

    size = torch.hypot(*sde.coefficients(t))
    if bool(((size - 1).abs() < 0.01).all()):
        return ""
    return r" States are divided by $(\alpha_t^2 + \sigma_t^2)^{1/2}$."


def _finite(*states: Tensor) -> None:
    import torch

    bad = sum(int((~torch.isfinite(x)).any(0).reshape(x.shape[1], -1).any(1).sum()) for x in states)
    if bad:
        raise NumericalError(f"{bad} of the samples are not finite: nothing to draw; train longer, or another solver")


def _plots(run: Run) -> Path:
    assert run.folder is not None
    return run.folder / "plots"


def _target(out: Path | None, default: Path) -> Path:
    """The file to write, refused before anything is computed."""
    file = out or default
    suffix = file.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"--out {file}: a picture is a file in one of {', '.join(FORMATS)}; {closest(suffix, FORMATS)}"
        )
    return file


def _saved(file: Path, save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        raise CheckpointError(
            f"cannot write {file}: {error.strerror or error}; choose a file you may write to with --out"
        ) from None


def _write(file: Path, figure: Figure, as_json: bool, facts: dict[str, Any], others: list[str] | None = None) -> None:
    """Write the picture and say where it is."""
    from ..plot import save_figure

    _saved(file, lambda: save_figure(file, figure))
    files = [str(file), *(others or [])]
    if as_json:
        print_json({**facts, "files": files})
    else:
        click.echo("\n".join(files))
