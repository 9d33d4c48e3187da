"""The command ``scoresde reflow``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..core.limits import COUNT, LR, TRAINED
from ..core.registry import options_of
from .command import Real, Whole, option, verb
from .common import Session, SolverChoice, out_option, session, solver_options

__all__ = ["reflow"]


@verb(
    short_help="Straighten a run's trajectories so that samples need only a few steps.",
    epilog="Example:  scoresde reflow runs/moons-flow --pairs 50000 --steps 10000",
)
@option("--pairs", under="Training", first=True, type=Whole(COUNT), default=20_000,
        help="Number of (noise, sample) pairs.")  # fmt: skip
@option("--steps", under="Training", first=True, type=Whole(TRAINED),
        help="Number of training steps.  [default: as in the run]")  # fmt: skip
@option("--lr", under="Training", first=True, type=Real(LR),
        help="Learning rate.  [default: as in the run]")  # fmt: skip
@option("--weighting", under="Training", metavar="NAME",
        help="Weighting of the loss. If the run's weighting is not built in, repeat its module:Name.  [default: as in "
             "the run]")  # fmt: skip
@option("--t-sampler", under="Training", metavar="NAME",
        help="Sampler of training times. If the run's sampler is not built in, repeat its module:Name.  [default: as "
             "in the run]")  # fmt: skip
@solver_options("ode", "rtol", unless={"ode": {"rtol": 1e-4}}, what="Solver for the flow that generates the pairs.",
                rtol="Relative tolerance of the solver.")  # fmt: skip
@out_option("runs/NAME-reflow", "Folder of the new run.")
@session(run=True)
def reflow(
    pairs: int, steps: int | None, lr: float | None, weighting: str | None, t_sampler: str | None,
    solver: SolverChoice, out: Path | None, session: Session,
) -> None:  # fmt: skip
    """Straighten the trajectories of a RUN (default: the newest) so that a few Euler steps can follow them.

    The command trains the model further on pairs (noise, sample), in which the model's flow maps the noise to the
    sample (Liu et al. 2023). It prints the folder of the new run.

    The new model has a flow and a likelihood but no score, so stochastic solvers cannot be used with it.
    """
    built = solver.build()
    run = session.loaded

    from ..core.noise import Noise
    from ..train.reflow import reflow as straighten
    from ..train.reflow import straightness

    def bent(of: Any) -> float:
        noise = Noise.of(256, session.seed, device=of.device)
        return round(
            straightness(
                of.typical(256, session.seed).model, noise, of.codec.model_shape(of.info.shape), dtype=of.dtype
            ),
            4,
        )

    session.say(f"drawing {pairs:,} pairs from {session.whence} with the {solver.name} solver")
    began = time.monotonic()
    made = straighten(
        run, pairs=pairs, steps=steps or 0, lr=lr or 0.0, weighting=weighting, t_sampler=t_sampler, solver=built,
        seed=session.seed, out=out, device=run.device, quiet=session.quiet,
    )  # fmt: skip
    facts = {
        "run": str(made.folder), "from": str(session.folder), "pairs": pairs, "solver": solver.name,
        "options": options_of(built), "step": made.step, "straightness_before": bent(run),
        "straightness": bent(made), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    session.say(
        f"fraction of the squared speed that is not along the chord (0 for straight trajectories): "
        f"{facts['straightness_before']:g} before, {facts['straightness']:g} after"
    )
    session.print(facts, str(made.folder))
