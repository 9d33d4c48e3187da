"""``scoresde plot schedule`` and ``forward``: pictures of SDEs, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import UsageError
from ...tables import GRIDS, SDES
from ..common import common_options, prepare, sde_option, settings, verb
from .common import out_option, target, write

if TYPE_CHECKING:
    from ...sde import SDE

__all__ = ["forward", "schedule"]


@verb(
    short_help="Schedules of SDEs, in t and by noise level.",
    epilog="Example:  scoresde plot schedule --sde vp,ve,flow --set vp.beta_max=10",
)
@click.option("--sde", "sdes", default="vp,cosine,flow", show_default=True, metavar="NAMES",
              help=f"Of {', '.join(SDES)}, or module:Class.")  # fmt: skip
@click.option("--set", "assignments", multiple=True, metavar="SDE.NAME=VALUE", help="An option of one of them.")
@out_option
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
    from ...pictures import schedule_of
    from ...plot import schedules

    file = target(out, Path("schedule.png"))
    figure = schedules([schedule_of(name, sde, seed) for name, sde in built.items()])
    write(file, figure, as_json, {"sdes": {name: repr(sde) for name, sde in built.items()}, "seed": seed})


@verb(
    short_help="Data that dissolves, by the jump and step by step.",
    epilog="Example:  scoresde plot forward --data moons --sde flow --n 1000 --steps 6",
)
@click.option("--data", default="digits", show_default=True, help="digits, a 2-D toy, or a path: images, IDX, npz.")
@sde_option(f"{', '.join(SDES)}, or module:Class of your own.", "vp")
@click.option("--set", "assignments", multiple=True, metavar="sde.NAME=VALUE", help="An option of the SDE.")
@click.option("--n", type=click.IntRange(1), help="Number of samples.  [default: 6, or 1000 points]")
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Steps from data to noise.")
@click.option("--grid", default="uniform", show_default=True, help=f"Their times: auto, {', '.join(GRIDS)}.")
@out_option
@common_options
def forward(
    data: str, sde: str, assignments: tuple[str, ...], n: int | None, steps: int, grid: str, out: Path | None,
    seed: int, device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Data on its way to noise: by the jump x_t = alpha x_0 + sigma eps, and step by step. Needs no run."""
    prepare(device, threads)
    chosen = _sde(sde, settings(assignments, ("sde",))["sde"])
    from ...data import load_data
    from ...grids import make_grid
    from ...noise import Noise
    from ...pictures import column_labels, dissolve, shown, size_note
    from ...plot import strips

    dataset = load_data(data, seed)
    info, count = dataset.info, n or (1000 if dataset.info.kind == "vector" else 6)
    file = target(out, Path("forward.png"))
    times = make_grid(grid, chosen, steps, *chosen.times("train"))
    x0 = dataset.codec.continuous.to_model(dataset.test[:count].double())
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
        {title: shown(chosen, dataset.codec, x, times) for title, x in blocks.items()},
        ["data", *column_labels(times[1:])], info.kind, info.low, info.high,
        coloured_by=x0 if info.kind == "vector" else None, note=note + size_note(chosen, times),
    )  # fmt: skip
    facts = {"data": info.name, "sde": repr(chosen), "n": len(x0), "t": times.tolist(), "noise_std": spread}
    write(file, figure, as_json, {**facts, "seed": seed})


def _names(option: str, text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{option} {text!r}: name at least one of {', '.join(SDES)}")
    return names


def _sde(name: str, options: dict[str, Any]) -> SDE:
    from ...config import TrainConfig, build_sde

    return build_sde(TrainConfig(sde=name, sde_options=options))
