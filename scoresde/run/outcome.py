"""The figures at the end of a training run: its losses and which weights are used.

The loss of a single step is that of one batch at random times and noise levels. The figure of a run is therefore the
mean over the logged steps of the last tenth of the run,

    loss = mean of the loss at the logged steps k > 0.9 K,                                                       (1)

where K is the last step. The validation loss is that of the weights in use, on the validation rows, with fixed times
and noise.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.files import read_lines, read_object
from .files import CHOICE, checkpoints, chosen_checkpoint

__all__ = ["Outcome", "outcome"]

LAST = 0.9  # where the last tenth of a run begins


@dataclass(frozen=True)
class Outcome:
    """The figures of a run.

    Attributes:
        step: Number of training steps done.
        loss: The training loss of equation 1, or NaN if no step was logged.
        validation: The validation loss of the weights in use, or NaN if there is no validation.
        used_step: The step of the weights in use.
        used: Which weights are in use: ``best`` or ``last``.
        weights: A digest of the averaged weights in use, or "" if there is no checkpoint.
    """

    step: int = 0
    loss: float = math.nan
    validation: float = math.nan
    used_step: int = 0
    used: str = "last"
    weights: str = ""


def outcome(folder: Path, *, edited: bool = False) -> Outcome:
    """Read the figures of a run, which may be unfinished.

    Args:
        folder: The run folder.
        edited: Whether to accept files that were changed after they were written.

    Raises:
        CheckpointError: If a file of the run is damaged.
    """
    lines = [line for line in read_lines(folder / "metrics.jsonl") if isinstance(line.get("loss"), float)]
    last = max((line["step"] for line in lines), default=0)
    losses = [line["loss"] for line in lines if line["step"] > LAST * last]
    loss = math.fsum(losses) / len(losses) if losses else math.nan
    if not checkpoints(folder):
        return Outcome(int(last), loss)
    state = read_object(chosen_checkpoint(folder, edited=edited) / "state.json")
    step, weights = int(state["step"]), str(state["files"].get("ema.safetensors", {}).get("sha256", ""))
    done = max(step, *(int(path.name.removeprefix("step-")) for path in checkpoints(folder)))
    if not os.path.lexists(folder / CHOICE):
        return Outcome(done, loss, math.nan, step, "last", weights)
    choice = read_object(folder / CHOICE)
    used = str(choice.get("used"))
    validation = choice.get(f"{used}_loss")
    if not isinstance(validation, int | float):
        raise CheckpointError(f"{folder / CHOICE} has no loss of the weights in use; is the file damaged?")
    return Outcome(done, loss, float(validation), step, used, weights)
