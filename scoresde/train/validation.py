"""The choice of the final weights by the validation loss.

The validation loss is the loss of the averaged weights on training samples that are set aside for validation. It is
computed at regular intervals (:mod:`.schedule`), always for the same rows, times and noise, so that the losses differ
only because of the weights. The checkpoint with the lowest loss is kept in addition to the last checkpoint. Its weights
are used only if its mean loss is lower than that of the last weights by more than two standard errors. The standard
error is that of the mean difference between the two losses of each row. Without this condition, the minimum of many
noisy losses could be mistaken for an improvement. The test rows are not used for this choice.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.files import FORMAT, read_object, read_tensors, write_json
from ..core.noise import Noise, keyed
from ..data.batch import Batch, Rows, finished
from ..objective.draw import Draw, Draws
from ..objective.loss import Objective
from ..run.files import BEFORE, BEST, CHOICE, fault_of, save_best

__all__ = ["Best", "Validation", "evaluations", "sentence"]

DRAWS = 1024  # minimum number of (time, noise) pairs
EACH = 64  # maximum number of such pairs per row, even if this gives fewer than DRAWS
ERRORS = 2.0  # number of standard errors by which the best weights must be better than the last weights
CHUNK = 256  # rows evaluated at once
STEP = 2**32 - 1  # step index for an operator's random numbers, larger than the index of any training step


def evaluations(count: int) -> int:
    """Return the number of evaluations that one validation on ``count`` rows takes, a multiple of ``count``."""
    return count * max(1, min(EACH, math.ceil(DRAWS / count)))


@dataclass(frozen=True, eq=False)
class Best:
    """The weights with the lowest validation loss so far.

    Attributes:
        step: The training step of the weights.
        losses: The loss of each row, float64 ``(n,)``.
        weights: The averaged weights, by name.
    """

    step: int
    losses: Tensor
    weights: Mapping[str, Tensor]

    def against(self, losses: Tensor, step: int) -> dict[str, Any]:
        """Decide between the best weights and the last weights, and return the comparison and the decision.

        The tensor ``losses: (n,)`` contains the loss of each row for the last weights, and ``step`` is the training
        step of these weights. The result contains only plain values.
        """
        difference = losses - self.losses
        error = float(difference.std()) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
        mean = float(difference.mean())
        return {
            "rows": len(losses), "best_step": self.step, "best_loss": float(self.losses.mean()), "last_step": step,
            "last_loss": float(losses.mean()), "difference": mean, "stderr": error if math.isfinite(error) else None,
            "used": "best" if step != self.step and mean > ERRORS * error else "last",
        }  # fmt: skip


class Validation:
    """Fixed rows, times and noise for validation, and the weights with the lowest loss on them so far.

    Attributes:
        draws: The times and the noise of the m evaluations.
        best: The weights with the lowest loss so far, or ``None`` before the first validation.
        latest: The loss of each evaluation in the latest validation, float64 ``(m,)``, on the CPU, or ``None``.

    Args:
        source: The validation rows.
        draw: The object that draws times and noise in training. Its state must be the state before the first step.
        objective: The loss that training minimises.
        seed: Seed of the draws.
        dtype: The dtype of the data in model units.
    """

    def __init__(self, source: Rows, draw: Draw, objective: Objective, seed: int, dtype: torch.dtype) -> None:
        self.count, self.objective = len(source), objective
        # The copies follow each other as 0, 1, ..., n - 1, 0, 1, ..., so times that are spread over a batch are also
        # spread over the copies of each row.
        copies = evaluations(self.count) // self.count
        generator = keyed(seed, 0, "validation")
        self.batch: Batch = source(torch.arange(self.count).repeat(copies), generator, dtype)
        self.batch = finished(self.batch, source, Noise.of(len(self.batch), seed % 2**64), STEP)
        self.draws: Draws = draw(self.batch, generator)
        self.best: Best | None = None
        self.latest: Tensor | None = None

    @torch.no_grad()
    def losses(self, model: nn.Module) -> Tensor:
        """Return the validation loss of each of the n rows, as a float64 tensor ``(n,)`` on the CPU.

        If there are few rows, each row is evaluated at several times with different noise, and its loss is the mean.
        """
        found = [self._part(model, rows) for rows in torch.split(torch.arange(len(self.batch)), CHUNK)]
        self.latest = torch.cat(found)
        return self.latest.reshape(-1, self.count).mean(0)

    def _part(self, model: nn.Module, rows: Tensor) -> Tensor:
        device = next(model.parameters()).device
        batch, draws = self.batch.rows(rows).to(device), self.draws.rows(rows).to(device)
        loss = self.objective(model, batch, draws)
        loss = loss if draws.weight is None else draws.weight.to(loss) * loss
        ends = self.objective.ends(model, batch)
        return (loss if ends is None else loss + ends).double().cpu()

    @torch.no_grad()
    def seconds(self, model: nn.Module, most: int) -> float:
        """Measure how long :meth:`losses` takes, in seconds. At most ``most`` evaluations are timed, and scaled."""
        few = min(len(self.batch), CHUNK, most)
        began = time.monotonic()
        self._part(model, torch.arange(few))
        return (time.monotonic() - began) * len(self.batch) / few

    def look(self, model: nn.Module, weights: Mapping[str, Tensor], step: int, folder: Path | None) -> Tensor:
        """Return the validation loss of each row for ``model``, and keep ``weights`` if they are the best so far.

        The tensors in ``weights`` are the weights of ``model`` after ``step`` steps, keyed by name.
        """
        losses = self.losses(model)
        if self.best is None or float(losses.mean()) < float(self.best.losses.mean()):
            self.best = Best(step, losses, {name: value.detach().clone() for name, value in weights.items()})
            if folder is not None:
                save_best(folder, step, {"ema": self.best.weights})
        return losses

    def resume(
        self, folder: Path, step: int, built: Callable[[Mapping[str, Tensor]], nn.Module], *, edited: bool = False
    ) -> None:
        """Restore the best weights of a run that is resumed after ``step`` steps.

        The losses are computed again, because the rows may have been reordered or extended in the meantime. The
        function ``built`` builds a model from the weights.
        """
        best, before = (folder / "checkpoints" / name for name in (BEST, BEFORE))
        if before.is_dir() and not best.exists():  # the replacement was interrupted
            os.rename(before, best)
        for kept in (best, before):
            if not kept.is_dir():
                continue
            fault = fault_of(kept, edited=edited)
            if fault is not None:
                warnings.warn(
                    f"the best weights so far cannot be used, so training continues without them: {fault}",
                    stacklevel=2,
                )
                continue
            done = int(read_object(kept / "state.json")["step"])
            if done <= step:
                weights = read_tensors(kept / "ema.safetensors")
                self.best = Best(done, self.losses(built(weights)), weights)
                return

    def choose(self, losses: Tensor, step: int, folder: Path | None) -> dict[str, Any]:
        """Decide between the best weights and the last weights, and return the comparison and the decision.

        The tensor ``losses: (n,)`` contains the loss of each row for the last weights, and ``step`` is the training
        step of these weights. If ``folder`` is given, the result is also written into it.
        """
        assert self.best is not None
        told = self.best.against(losses, step)
        if folder is not None:
            write_json(folder / CHOICE, {"format": FORMAT, **told}, signed=True)
        return told


def sentence(told: Mapping[str, Any]) -> str:
    """Return a sentence that explains the choice of weights, for printing after training.

    The argument ``told`` is the result of :meth:`Validation.choose`.
    """
    best, last = f"step {told['best_step']:,}", f"step {told['last_step']:,}"
    if told["rows"] == 1:
        return f"validation: a single row is not enough to compare weights; the last weights are used ({last})"
    if told["best_step"] == told["last_step"]:
        return f"validation: the last weights are the best and are used ({last}, loss {told['last_loss']:.4g})"
    difference = f"from {best} to {last} the loss rises by {told['difference']:.2g} ± {told['stderr']:.2g}"
    if told["used"] == "best":
        return f"validation: {difference}; the model overfits, so the weights of {best} are used"
    return f"validation: {difference}, which may be chance; the last weights are used"
