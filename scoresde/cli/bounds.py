"""The table of all bounds that ``scoresde likelihood --all-bounds`` prints, and what it will cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.limits import duration

if TYPE_CHECKING:
    from ..likelihood import Likelihood, Scores
    from ..run.run import Run
    from ..study.report import Chosen

__all__ = ["PILOT", "bounds_table", "cost_of_bounds"]

PILOT = 16  # samples whose likelihoods are computed to estimate the cost


def cost_of_bounds(
    run: Run, few: Chosen, n: int, how: Likelihood, *, strata: int, chain_steps: int | None, seed: int
) -> str:  # fmt: skip
    """Estimate what all bounds will cost, from the likelihoods of a few samples, and describe it in words.

    The unit is a forward pass of the network. A pass that is followed by a backward pass counts as three.

    Args:
        run: The run, conditioned on the few samples.
        few: The few samples.
        n: Number of samples for which the bounds will be computed.
        how, strata, chain_steps, seed: See :meth:`scoresde.Run.all_bounds`.
    """
    from ..run.bounding import CHAIN, CHAINED, CONTINUOUS, IMPORTANCE, LEVELS, TRUNCATED, WEIGHTED

    left_out = run.bounds_left_out(how, chain_steps)
    run, began = few.padded(run), time.monotonic()
    scores = run.log_likelihood(few.x, how, seed=seed, check=False)
    each = _passes(scores)
    seconds = (time.monotonic() - began) / (len(few.x) * each)
    solves = 1 + max(WEIGHTED) * (IMPORTANCE not in left_out) + (TRUNCATED not in left_out)
    nodes = run.model.domain.nodes
    steps = [strata] * ((CONTINUOUS not in left_out) + (LEVELS not in left_out))
    steps += [] if CHAINED in left_out else [(chain_steps or CHAIN) if nodes is None else len(nodes)]
    total = solves * each + sum(steps)
    words = f"{solves} solve{'s' * (solves > 1)} of the flow of about {each:,.0f} forward passes"
    words += f", and {' + '.join(f'{count:,}' for count in steps)} evaluations" if steps else ""
    return (
        f"all bounds cost {words}: about {total:,.0f} forward passes per sample, {total * n:,.0f} in all, which may "
        f"take {duration(total * n * seconds)}"
    )


def _passes(scores: Scores) -> float:
    """Return the mean cost of a sample's solve in forward passes."""
    backward = {"exact": int(scores.dims.max()), "difference": 0}.get(scores.how.divergence, scores.how.probes)
    return float((scores.model.nfe + 2 * backward * scores.model.divergences).double().mean())


def bounds_table(found: Mapping[str, Any], name: str) -> list[str]:
    """Format the table of all bounds in the summary of a data set. Each line begins with ``name``."""
    from ..likelihood.bounds import table

    bounds = found.get("bounds")
    if bounds is None:
        return []
    return [name + line for line in table(bounds["rows"], found["unit"], bounds["left_out"])]
