"""The training state, its checkpoints and the optimiser step.

The result of step n depends only on the state before the step and on the pair ``(seed, n)``. This pair determines the
batch, the times, the noise, the dequantisation, the dropped parts of conditions, and the dropout masks. A run that is
stopped and resumed therefore continues as if it had never stopped, although no generator state is saved. The results
are bitwise identical on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, NumericalError
from ..core.files import read_object, read_tensors
from ..core.noise import keyed
from ..data.batch import Batches
from ..model.network import ScoreModel
from ..nn.dropout import drawing_from, draws_by_dropout
from ..objective.draw import Draw, Draws
from ..objective.loss import Objective
from ..run.files import bare_names, load_weights, matching, save_checkpoint
from .averages import EMA

__all__ = ["Record", "TrainState", "keyed_rng", "steps"]


@dataclass
class TrainState:
    """The state that training changes.

    Attributes:
        model: The module that the objective evaluates.
        optimiser: The optimiser for the learned parameters.
        draw: An object that draws times and noise. It may adapt to the losses, and its state is part of a checkpoint.
        average: The moving average of the weights, or ``None`` if the weights are not averaged.
        step: Number of completed steps.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    draw: Draw
    average: EMA | None = None
    step: int = 0

    @property
    def learned(self) -> nn.Module:
        """The module with all learned parameters: for a score model, the network and any learned probability path."""
        return self.model.learned if isinstance(self.model, ScoreModel) else self.model

    @property
    def network(self) -> nn.Module:
        """The network of the model."""
        return self.model.network if isinstance(self.model, ScoreModel) else self.model

    def save(self, folder: Path, keep: int = 2) -> Path:
        """Write a checkpoint into the run folder ``folder`` atomically, and return the path of the checkpoint.

        In the checkpoint, the optimiser moments are keyed by parameter name. Only the newest ``keep`` checkpoints are
        kept.
        """
        bare = bare_names(self.learned)
        names = [bare.get(name, name) for name, _ in self.learned.named_parameters()]
        moments = {
            f"{names[i]}.{key}": value
            for i, state in self.optimiser.state_dict()["state"].items()
            for key, value in state.items()
        }
        tensors = {"model": {bare[name]: value for name, value in self.learned.state_dict().items()}, "optim": moments}
        facts = {}
        if self.average is not None:
            tensors["ema"], facts["ema_updates"] = self.averaged(), self.average.updates
        if learned := self.draw.state():
            tensors["times"] = learned
        return save_checkpoint(folder, self.step, tensors, facts, keep)

    def averaged(self) -> dict[str, Tensor]:
        """Return the averaged weights, keyed by name without the prefixes of wrappers, as in a checkpoint."""
        assert self.average is not None
        bare = bare_names(self.learned)
        return {bare[name]: value for name, value in self.average.state_dict().items()}

    def load(self, checkpoint: Path) -> None:
        """Load the state that :meth:`save` wrote into the folder ``checkpoint``.

        Raises:
            CheckpointError: If the checkpoint belongs to another model, is damaged, or has no optimiser moments.
        """
        state = read_object(checkpoint / "state.json")
        load_weights(self.learned, read_tensors(checkpoint / "model.safetensors"), checkpoint)
        if self.average is not None:
            kept = self.average.state
            found = read_tensors(checkpoint / "ema.safetensors")
            now = matching(kept, found)
            found = {now[name]: value for name, value in found.items()}
            if {name: value.shape for name, value in found.items()} != {n: value.shape for n, value in kept.items()}:
                raise CheckpointError(
                    f"the averaged weights in {checkpoint} belong to a different network; use the network of the run"
                )
            self.average.state = {name: value.to(kept[name].device) for name, value in found.items()}
            updates = state.get("ema_updates")
            if type(updates) is not int or updates < 0:
                raise CheckpointError(
                    f"{checkpoint / 'state.json'}: ema_updates must be a non-negative integer, got {updates!r}; is the "
                    "file damaged?"
                )
            self.average.updates = updates
        if self.draw.state():
            self.draw.load(read_tensors(checkpoint / "times.safetensors"))
        moments, step = self._moments(checkpoint), int(state["step"])
        if step and not moments:
            raise CheckpointError(
                f"{checkpoint} has no optimiser state, so training cannot resume from it; is it damaged?"
            )
        self.optimiser.load_state_dict({
            "state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]
        })  # fmt: skip
        self.step = step

    def _moments(self, checkpoint: Path) -> dict[int, dict[str, Tensor]]:
        """Read the optimiser moments, keyed by parameter index."""
        bare = bare_names(self.learned)
        number = {bare.get(name, name): i for i, (name, _) in enumerate(self.learned.named_parameters())}
        # Checkpoints of format 1 key the moments by parameter index, and checkpoints of format 2 by parameter name.
        stored = read_tensors(checkpoint / "optim.safetensors")
        now = matching(number, {name.rpartition(".")[0] for name in stored})
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in stored.items():
            parameter, _, key = name.rpartition(".")
            parameter = now[parameter]
            if parameter not in number and not parameter.isdigit():
                raise CheckpointError(
                    f"{checkpoint} has optimiser moments for {parameter!r}, which is not in the model"
                )
            found.setdefault(number[parameter] if parameter in number else int(parameter), {})[key] = value
        return found


@dataclass(frozen=True)
class Record:
    """The result of a training step.

    Attributes:
        step: Number of completed steps, including this one.
        loss: The value of the loss that the step minimises.
        grad_norm: Norm of the gradient before clipping.
        lr: The learning rate of the step.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float


def steps(
    state: TrainState,
    objective: Objective,
    batches: Batches,
    until: int,
    *,
    seed: int,
    rate: Callable[[int], float],
    clip: float = math.inf,
) -> Iterator[Record]:
    """Run training steps. Each step changes ``state`` and yields a record. The state may be saved between steps.

    Args:
        state: The current state of training.
        objective: The loss to minimise.
        batches: The batches for all steps.
        until: Total number of completed steps at which to stop.
        seed: Seed of all random draws.
        rate: A function that returns the learning rate of step n, counted from 0.
        clip: Maximum norm of the gradient. A larger gradient is scaled down to this norm.

    Raises:
        NumericalError: If the loss or its gradient is not finite. The weights, the average and the step number then
            stay as they were after the previous step.
    """
    parameters = list(state.learned.parameters())
    device, dtype = parameters[0].device, parameters[0].dtype
    while state.step < until:
        generator = keyed(seed, state.step)
        batch = batches.at(state.step, generator, dtype)
        draws = state.draw(batch, generator).to(device)
        batch = batch.to(device)
        lr = rate(state.step)
        for group in state.optimiser.param_groups:
            group["lr"] = lr
        with keyed_rng(seed, state.step, device, state.network):
            losses = objective(state.model, batch, draws)
        loss = (losses if draws.weight is None else draws.weight.to(losses) * losses).mean()
        ends = objective.ends(state.model, batch)
        if ends is not None:
            loss = loss + ends.mean()
        state.optimiser.zero_grad()
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and bool(torch.isfinite(norm))):
            told = _diagnosis(state.step + 1, losses.detach(), draws, float(norm), lr)
            raise NumericalError(told, parameter="lr", value=f"{lr / 10:.1g}")
        state.optimiser.step()
        state.draw.update(draws, losses.detach())
        if state.average is not None:
            state.average.update(state.learned)
        state.step += 1
        yield Record(state.step, value, float(norm), lr)


_GLOBAL = threading.RLock()  # guards the generator that all threads of a process share


@contextmanager
def keyed_rng(seed: int, n: int, device: torch.device | str, network: nn.Module | None = None) -> Iterator[None]:
    """Return a context manager that seeds dropout and weight initialisation as a function of ``seed`` and ``n``.

    The networks of this package draw dropout masks from a separate generator. Initial weights and custom networks use
    the global generator of torch, which is seeded when the ``with`` block starts and restored when the block ends. Only
    one thread at a time can run such a block, but threads that use the global generator elsewhere can still interfere.
    """
    device, state = torch.device(device), keyed(seed, n, "dropout").initial_seed()
    if network is not None and draws_by_dropout(network):
        with drawing_from(network, torch.Generator(device).manual_seed(state)):
            yield
        return
    cuda = [device] if device.type == "cuda" else []
    with _GLOBAL, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(state)
        for one in cuda:  # torch.manual_seed would permanently change the generators of all devices
            with torch.cuda.device(one):
                torch.cuda.manual_seed(state)
        yield


def _diagnosis(step: int, losses: Tensor, draws: Draws, norm: float, lr: float) -> str:
    worst = int(torch.nan_to_num(losses, nan=torch.inf).argmax())
    where = "" if draws.t is None else f" at t = {float(draws.t[worst]):.3g}"
    return (
        f"training stopped at step {step} because the loss or its gradient is not finite (loss "
        f"{float(losses.mean()):.4g}, gradient norm {norm:.4g}); the worst row{where} has loss "
        f"{float(losses[worst]):.4g}. Try a smaller learning rate (this step used {lr:g}) or a longer warm-up, or look "
        "for extreme values in the data."
    )
