"""The training state, its checkpoints and the optimiser step.

The result of step n depends only on the state before the step and on the pair ``(seed, n)``. This pair determines the
batch, the times, the noise, the dequantisation, the dropped parts of conditions, and the dropout masks. A run that is
stopped and resumed therefore continues as if it had never stopped, although no generator state is saved. The results
are bitwise identical on the same machine with the same number of threads. The number of processes changes nothing but
rounding and the dropout masks.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, NumericalError, UsageError
from ..core.files import read_object, read_tensors
from ..core.noise import keyed
from ..core.opened import out_of_memory
from ..core.parallel import ALONE, World, clip_gradients, divided, divided_like, read_shards, whole
from ..core.shapes import laid_out
from ..data.batch import Batch, Batches
from ..model.network import ScoreModel
from ..nn.dropout import drawing_from, draws_by_dropout
from ..objective.draw import Draw, Draws
from ..objective.loss import Objective
from ..run.files import bare_names, load_weights, matching, save_checkpoint
from .averages import EMA
from .lanes import Lanes

__all__ = ["Late", "Record", "TrainState", "keyed_rng", "steps"]


@dataclass
class TrainState:
    """The state that training changes.

    Attributes:
        model: The module that the objective evaluates.
        optimiser: The optimiser for the learned parameters.
        draw: An object that draws times and noise. It may adapt to the losses, and its state is part of a checkpoint.
        average: The moving averages of the weights, or ``None`` if the weights are not averaged.
        step: Number of completed steps.
        divided: The number of processes, and the number of parts in which each of them evaluates its rows. The dropout
            masks depend on both.
        short: Whether memory ran out with fewer parts.
        undivided: If each process has only a part of the weights, a copy of the model that is whole, whose weights are
            irrelevant. Otherwise, ``None``.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    draw: Draw
    average: EMA | None = None
    step: int = 0
    divided: tuple[int, int] = (1, 1)
    short: bool = False
    undivided: ScoreModel | None = None

    @property
    def learned(self) -> nn.Module:
        """The module with all learned parameters: for a score model, the network and any learned probability path."""
        return self.model.learned if isinstance(self.model, ScoreModel) else self.model

    @property
    def network(self) -> nn.Module:
        """The network of the model."""
        return self.model.network if isinstance(self.model, ScoreModel) else self.model

    def save(self, folder: Path, keep: int = 2, world: World = ALONE) -> Path:
        """Write a checkpoint into the run folder ``folder`` atomically, and return the path of the checkpoint.

        In the checkpoint, the optimiser moments are keyed by parameter name. Only the newest ``keep`` checkpoints are
        kept.

        If each process has only a part of the weights, all processes of ``world`` must call this together. They write
        their parts of the weights and moments to files of their own, and only the averages are written as a whole.
        """
        bare = bare_names(self.learned)
        names = [bare.get(name, name) for name, _ in self.learned.named_parameters()]
        moments = {
            f"{names[i]}.{key}": value
            for i, state in self.optimiser.state_dict()["state"].items()
            for key, value in state.items()
        }
        tensors = {"model": {bare[name]: value for name, value in self.learned.state_dict().items()}, "optim": moments}
        facts: dict[str, Any] = {"divided": list(self.divided)} if self.divided != (1, 1) else {}
        if self.short:
            facts["short"] = True
        shards = {}
        if self.undivided is not None:
            scalars = {name: whole(value) for name, value in tensors["model"].items() if not value.ndim}
            shards = {f"{group}.{name}": v for group, part in tensors.items() for name, v in part.items() if v.ndim}
            facts["updates"] = {name: float(value) for name, value in moments.items() if not value.ndim}
            tensors = {"scalars": scalars} if scalars else {}
        if self.average is not None:
            tensors |= {group: self.averaged(number) for number, group in enumerate(_groups(self.average))}
            facts["ema_updates"] = self.average.updates
        if learned := self.draw.state():
            tensors["times"] = learned
        return save_checkpoint(folder, self.step, tensors, facts, keep, shards=shards, world=world)

    def averaged(self, number: int = 0) -> dict[str, Tensor]:
        """Return the averaged weights, keyed by name without the prefixes of wrappers, as in a checkpoint.

        The average ``number`` is counted from 0, and the first is the one that is used.

        If each process has only a part of the weights, all processes must call this together.
        """
        assert self.average is not None
        bare = bare_names(self.learned)
        return {bare[name]: whole(value) for name, value in self.average.state_dict(number).items()}

    def load(self, checkpoint: Path) -> None:
        """Load the state that :meth:`save` wrote into the folder ``checkpoint``, in any number of processes.

        Raises:
            CheckpointError: If the checkpoint belongs to another model, is damaged, or has no optimiser moments.
        """
        state = read_object(checkpoint / "state.json")
        weights, stored = self._stored(checkpoint, state)
        present = self.learned.state_dict()
        now = matching(present, weights)
        weights = {n: _placed(v, present[now[n]]) if now[n] in present else v for n, v in weights.items()}
        load_weights(self.learned, weights, checkpoint)
        if self.average is not None:
            for number, group in enumerate(_groups(self.average)):
                self._load_average(checkpoint / f"{group}.safetensors", number)
            updates = state.get("ema_updates")
            if type(updates) is not int or updates < 0:
                raise CheckpointError(
                    f"{checkpoint / 'state.json'}: ema_updates must be a non-negative integer, got {updates!r}; is the "
                    "file damaged?"
                )
            self.average.updates = updates
        if self.draw.state():
            self.draw.load(read_tensors(checkpoint / "times.safetensors"))
        moments, step = self._moments(checkpoint, stored), int(state["step"])
        if step and not moments:
            raise CheckpointError(
                f"{checkpoint} has no optimiser state, so training cannot resume from it; is it damaged?"
            )
        self.optimiser.load_state_dict({
            "state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]
        })  # fmt: skip
        self.step = step

    def _load_average(self, path: Path, number: int) -> None:
        """Load the averaged weights of one profile."""
        assert self.average is not None
        kept, found = self.average.states[number], read_tensors(path)
        now = matching(kept, found)
        found = {now[name]: value for name, value in found.items()}
        if {name: value.shape for name, value in found.items()} != {n: value.shape for n, value in kept.items()}:
            raise CheckpointError(
                f"the averaged weights in {path.parent} belong to a different network; use the network of the run"
            )
        self.average.states[number] = {name: _placed(value, kept[name]) for name, value in found.items()}

    def _stored(self, checkpoint: Path, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read the weights and the optimiser moments, keyed by name."""
        shards = checkpoint / "shards"
        if not shards.is_dir():
            return read_tensors(checkpoint / "model.safetensors"), read_tensors(checkpoint / "optim.safetensors")
        counts = state.get("updates")
        if not isinstance(counts, dict) or not all(isinstance(count, float | int) for count in counts.values()):
            raise CheckpointError(f"{checkpoint / 'state.json'} does not state the updates of the optimiser")
        bare = bare_names(self.learned)
        weights = {bare[name]: torch.zeros_like(value) for name, value in self.learned.state_dict().items()}
        moments = {
            f"{name.rpartition('.')[0]}.{key}": torch.zeros_like(weights[name.rpartition(".")[0]])
            for name in counts
            for key in ("exp_avg", "exp_avg_sq")
            if name.rpartition(".")[0] in weights
        }
        into = {f"model.{n}": v for n, v in weights.items()} | {f"optim.{n}": v for n, v in moments.items()}
        read_shards(shards, {name: value for name, value in into.items() if value.ndim})
        scalars = checkpoint / "scalars.safetensors"
        weights |= read_tensors(scalars) if scalars.exists() else {}
        return weights, moments | {name: torch.tensor(float(count)) for name, count in counts.items()}

    def _moments(self, checkpoint: Path, stored: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Return the optimiser moments, keyed by parameter index."""
        bare = bare_names(self.learned)
        number = {bare.get(name, name): i for i, (name, _) in enumerate(self.learned.named_parameters())}
        parameters = list(self.learned.parameters())
        # Checkpoints of format 1 key the moments by parameter index, and checkpoints of format 2 by parameter name.
        now = matching(number, {name.rpartition(".")[0] for name in stored})
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in stored.items():
            parameter, _, key = name.rpartition(".")
            parameter = now[parameter]
            if parameter not in number and not parameter.isdigit():
                raise CheckpointError(
                    f"{checkpoint} has optimiser moments for {parameter!r}, which is not in the model"
                )
            index = number[parameter] if parameter in number else int(parameter)
            divides = value.ndim and not hasattr(value, "placements") and index < len(parameters)
            found.setdefault(index, {})[key] = _placed(value, parameters[index]) if divides else value
        return found


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """Return a tensor on the device of ``like``, divided and laid out like it."""
    value = divided_like(value, like)
    return value if hasattr(like, "placements") or value.shape != like.shape else laid_out(value, like)


def _groups(average: EMA) -> list[str]:
    """Return the names of the files of a checkpoint, one for each average."""
    return ["ema", *(f"ema-{number}" for number in range(1, len(average.profiles)))]


class Record:
    """The result of a training step, which may still be on its way from the device.

    Its numbers are read when they are needed. Reading them one step later does not make the device wait.

    Attributes:
        step: Number of completed steps, including this one.
        lr: The learning rate of the step.
    """

    def __init__(self, step: int, lr: float, values: Tensor, failed: Callable[[Record], NumericalError]) -> None:
        self.step, self.lr = step, lr
        self._values, self._failed = Late(values), failed

    @property
    def loss(self) -> float:
        """The value of the loss that the step minimises."""
        return self._values.read()[0]

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""
        return self._values.read()[1]

    def check(self) -> None:
        """Check the loss and the norm.

        Raises:
            NumericalError: If one of them is not finite. The state of training is then that before the step.
        """
        if not all(map(math.isfinite, self._values.read())):
            raise self._failed(self)


class Late:
    """Numbers that are copied from the device in the background.

    Args:
        values: The numbers ``(n,)``.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._numbers = values, list[float]()
        self._copied: torch.cuda.Event | None = None
        if values.device.type == "cuda" and torch.cuda.is_available():
            self._values = values.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """Wait for the numbers, and return them."""
        if not self._numbers:
            if self._copied is not None:
                self._copied.synchronize()
            self._numbers = self._values.tolist()
        return self._numbers


class _Losses(nn.Module):
    """The loss of a step as a module, so that its backward pass can average the gradients over several processes."""

    def __init__(self, state: TrainState, objective: Objective) -> None:
        super().__init__()
        self.learned, self.model, self.objective = state.learned, state.model, objective

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()``, and the loss of each row without its weight ``(B,)``."""
        losses = self.objective(self.model, batch, draws)
        loss = (losses if draws.weight is None else draws.weight.to(losses) * losses).mean()
        ends = self.objective.ends(self.model, batch)
        return (loss if ends is None else loss + ends.mean()), losses


def steps(
    state: TrainState,
    objective: Objective,
    batches: Batches,
    until: int,
    *,
    seed: int,
    rate: Callable[[int], float],
    clip: float = math.inf,
    world: World = ALONE,
    lanes: int = 1,
    watch: Callable[[Draws, Tensor, Tensor], None] | None = None,
) -> Iterator[Record]:
    """Run training steps. Each step changes ``state`` and yields a record. The state may be saved between steps.

    The batch and all random draws, except dropout, are those of the global batch, whatever the number of processes and
    of parts. Each process evaluates its own rows (:mod:`scoresde.core.parallel`), in as many parts as
    ``state.divided`` says. If a single process runs out of memory, the parts become half as large, with a warning.

    A step with a fused optimiser does not wait for the device: the update is skipped there if the loss or the norm of
    the gradient is not finite, and so are all later ones. The error is raised after the next step, or by
    :meth:`Record.check`, which must be called before the state is saved. (Time samplers that learn, and optimal
    transport, do wait.) Buffers of a network, such as running statistics, are not protected.

    Args:
        state: The current state of training.
        objective: The loss to minimise.
        batches: The batches for all steps.
        until: Total number of completed steps at which to stop.
        seed: Seed of all random draws.
        rate: A function that returns the learning rate of step n, counted from 0.
        clip: Maximum norm of the gradient. A larger gradient is scaled down to this norm.
        world: The processes that train together.
        lanes: Number of threads that each evaluate a part of the rows (:mod:`scoresde.train.lanes`), in a single
            process.
        watch: Called in each step with the draws for the rows of this process (``B/W`` of them, on the CPU), the loss
            of each row without its weight ``(B/W,)`` and their mean loss ``()``, both on the device. It must not wait
            for the device.

    Raises:
        NumericalError: If the loss or its gradient is not finite. The weights, the average and the step number then
            stay as they were after the previous step.
        UsageError: If the batch cannot be divided evenly.
    """
    divided(batches.size, [("processes", world.size), ("accumulate", state.divided[1])])
    parameters = list(state.learned.parameters())
    device, dtype = parameters[0].device, parameters[0].dtype
    built_in = type(state.network).__module__.startswith(f"{__name__.partition('.')[0]}.")
    module = world.shared(_Losses(state, objective), unused=not built_in)
    fused = all(group.get("fused") for group in state.optimiser.param_groups)
    threads = Lanes(1 if world.several else lanes, parameters)
    failed = torch.zeros((), dtype=torch.float32, device=device)  # becomes 1 at the first failure, and stays 1
    last: Record | None = None
    while state.step < until:
        generator = keyed(seed, state.step)
        batch = batches.at(state.step, generator, dtype)
        draws = state.draw(batch, generator)
        lr = rate(state.step)
        for group in state.optimiser.param_groups:
            group["lr"] = lr
        while True:
            try:
                loss, losses = _backward(module, batch, draws, state, seed, device, world, threads)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if world.several:
                    more = 2 * state.divided[1]
                    raise UsageError(
                        f"memory ran out; evaluate the rows of each process in more parts (accumulate={more}), or "
                        "compute its blocks again in the backward pass (recompute=True)",
                        parameter="accumulate",
                        value=more,
                    ) from error
                if state.divided[1] == len(batch):
                    raise
            _halve(state, len(batch))  # after the block, because the error keeps the activations alive
        if watch is not None:
            own = draws.rows(torch.arange(len(batch))[world.rows(len(batch))]) if world.several else draws
            watch(own, losses, loss)
        for parameter in parameters:
            if parameter.grad is not None and not hasattr(parameter, "placements"):
                parameter.grad = laid_out(parameter.grad, parameter)
        norm = clip_gradients(parameters, clip, world)
        loss = world.mean(loss)
        failed = torch.maximum(failed, (~(loss.isfinite() & norm.isfinite())).to(failed))
        before = _Before(state.step, 0 if state.average is None else state.average.updates)
        record = Record(
            state.step + 1, lr, torch.stack([loss, norm.to(loss)]), partial(before.failure, state, draws, losses, world)
        )
        learns = bool(state.draw.state())
        if learns or not fused:
            record.check()
        if fused:
            state.optimiser.found_inf = failed  # type: ignore[attr-defined]  # the update is then skipped
        state.optimiser.step()
        if state.average is not None:
            state.average.update(skip=failed)
        state.step += 1
        if learns or not world.several:
            state.draw.update(draws, world.gather(losses))
        if last is not None:
            last.check()
        yield record
        last = record
    if last is not None:
        last.check()


def _backward(
    module: nn.Module, batch: Batch, draws: Draws, state: TrainState, seed: int, device: torch.device, world: World,
    lanes: Lanes,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the gradient of the loss, and return the loss ``()`` and the losses of this process's rows ``(B/W,)``."""
    parts = state.divided[1]
    state.optimiser.zero_grad()
    values, found = [], []
    for number, rows in enumerate(_own_rows(len(batch), world, parts)):
        own, drawn = (batch, draws) if rows is None else (batch.rows(rows), draws.rows(rows))
        apart = world.locally(module) if number < parts - 1 else nullcontext()
        with apart, keyed_rng(seed, state.step, device, state.network, world.rank, number):
            own, drawn = own.to(device), drawn.to(device)
            if lanes.count > 1 and len(own) % lanes.count == 0:
                pieces = torch.arange(len(own)).chunk(lanes.count)
                calls = [partial(module, own.rows(piece), drawn.rows(piece)) for piece in pieces]
                loss, losses = lanes.backward(calls, parts)
            else:
                loss, losses = module(own, drawn)
                torch.autograd.backward(loss / parts if parts > 1 else loss)
        values.append(loss.detach())
        found.append(losses.detach())
    return torch.stack(values).mean(), torch.cat(found)


def _halve(state: TrainState, count: int) -> None:
    """Divide the rows of a batch into at least twice as many parts."""
    parts = next(n for n in range(2 * state.divided[1], 2 * count + 1) if count % n == 0 or n >= count)
    parts = min(parts, count)
    state.optimiser.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    state.divided, state.short = (state.divided[0], parts), True
    told = f"memory ran out, so the {count:,} rows of a batch are now evaluated in {parts} parts; the batch and the"
    warnings.warn(f"{told} result stay the same, except for dropout", stacklevel=4)


def _own_rows(count: int, world: World, accumulate: int) -> list[Tensor | None]:
    """Return the rows of each part that this process evaluates. ``None`` means all rows of the batch."""
    if not world.several and accumulate == 1:
        return [None]
    return list(torch.arange(count)[world.rows(count)].chunk(accumulate))


@dataclass(frozen=True)
class _Before:
    """What is counted outside the device, before a step."""

    step: int
    updates: int

    def failure(self, state: TrainState, draws: Draws, losses: Tensor, world: World, record: Record) -> NumericalError:
        """Set the counters of ``state`` back to those before the step, and return the error that explains it."""
        state.step = self.step
        if state.average is not None:
            state.average.updates = self.updates
        told = _diagnosis(record, world.gather(losses), draws)
        return NumericalError(told, parameter="lr", value=f"{record.lr / 10:.1g}")


_GLOBAL = threading.RLock()  # guards the generator that all threads of a process share


@contextmanager
def keyed_rng(
    seed: int, n: int, device: torch.device | str, network: nn.Module | None = None, rank: int = 0, part: int = 0
) -> Iterator[None]:
    """Return a context manager that seeds dropout and weight initialisation as a function of ``seed`` and ``n``.

    Processes of different ``rank``, and the parts of a batch with different numbers ``part``, have different masks.

    The networks of this package draw dropout masks from a separate generator. Initial weights and custom networks use
    the global generator of torch, which is seeded when the ``with`` block starts and restored when the block ends. Only
    one thread at a time can run such a block, but threads that use the global generator elsewhere can still interfere.
    """
    if rank or part:
        seed = keyed(seed, (rank << 32) + part, "rank").initial_seed()
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


def _diagnosis(record: Record, losses: Tensor, draws: Draws) -> str:
    losses = losses.cpu()
    worst = int(torch.nan_to_num(losses, nan=torch.inf).argmax())
    where = "" if draws.t is None else f" at t = {float(draws.t[worst]):.3g}"
    return (
        f"training stopped at step {record.step} because the loss or its gradient is not finite (loss "
        f"{float(losses.mean()):.4g}, gradient norm {record.grad_norm:.4g}); the worst row{where} has loss "
        f"{float(losses[worst]):.4g}. Try a smaller learning rate (this step used {record.lr:g}) or a longer warm-up, "
        "or look for extreme values in the data."
    )
