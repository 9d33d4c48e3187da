"""``scoresde reflow``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ..build import build, options_of
from ..tables import SOLVERS
from .common import common_options, load_run, print_json, say, sde_option, settings, verb

__all__ = ["reflow"]


@verb(
    short_help="Straighten a run's paths, so that a few steps follow them.",
    epilog="Example:  scoresde reflow runs/moons-flow --pairs 50000 --steps 10000",
)
@click.argument("run", required=False)
@click.option("--pairs", type=click.IntRange(1), default=20_000, show_default=True, help="Pairs of noise and sample.")
@click.option("--solver", default="ode", show_default=True, help="Solver of the flow that makes the pairs.")
@click.option("--rtol", type=click.FloatRange(0, min_open=True), help="Its tolerance.  [default: 0.0001 for ode]")
@click.option("--steps", type=click.IntRange(1), help="Training steps.  [default: the run's]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: the run's]")
@click.option("--weighting", help="Weighting of the loss, again if it is your own: module:Name.  [default: the run's]")
@click.option("--t-sampler", help="Training times, again if they are your own: module:Name.  [default: the run's]")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME-reflow]")
@click.option("--set", "assignments", multiple=True, metavar="solver.NAME=VALUE", help="Any other solver option.")
@sde_option("The run's SDE, if it is your own: module:Class.", None)
@common_options
def reflow(
    run: str | None, pairs: int, solver: str, rtol: float | None, steps: int | None, lr: float | None,
    weighting: str | None, t_sampler: str | None, out: Path | None, assignments: tuple[str, ...], sde: str | None,
    seed: int, device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train a RUN (default: the newest) further on pairs of noise and the samples its flow takes it to (Liu et al.
    2023): straighter paths, which a few Euler steps follow. Prints the new run folder.

    The rectified model has a flow and a likelihood but no score: stochastic solvers refuse it.
    """
    options: dict[str, Any] = settings(assignments, ("solver",))["solver"]
    if rtol is not None or solver == "ode":
        options = {"rtol": rtol or 1e-4, **options}
    built = build(solver, SOLVERS, "solver", typed=True, **options)
    loaded = load_run(run, sde, device, threads, dtype)
    from ..noise import Noise
    from ..rectified import reflow as straighten
    from ..rectified import straightness

    def bent(of: Any) -> float:
        return round(straightness(of.model, Noise.of(256, seed, device=of.device), of.info.shape, dtype=of.dtype), 4)

    say(quiet, f"drawing {pairs:,} pairs from {loaded.folder} (step {loaded.step:,}) with {solver}")
    began = time.monotonic()
    made = straighten(
        loaded, pairs=pairs, steps=steps or 0, lr=lr or 0.0, weighting=weighting, t_sampler=t_sampler, solver=built,
        seed=seed, out=out, device=loaded.device, quiet=quiet,
    )  # fmt: skip
    facts = {
        "run": str(made.folder), "from": str(loaded.folder), "pairs": pairs, "solver": solver,
        "options": options_of(built), "step": made.step, "straightness_before": bent(loaded),
        "straightness": bent(made), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    say(
        quiet,
        f"share of the squared speed across the way (0: straight): {facts['straightness_before']:g} before, "
        f"{facts['straightness']:g} now",
    )
    click.echo(str(made.folder))
