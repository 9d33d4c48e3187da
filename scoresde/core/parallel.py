"""Several processes that train one model together, or that share the rows of one result.

``torchrun`` starts W processes and tells each of them its rank r = 0, ..., W - 1, in environment variables. Every
process draws the same global batch of B rows, as a function of the seed and the step, and uses the rows

    r B/W, r B/W + 1, ..., (r + 1) B/W - 1                                                                      (1)

of it. The mean over all rows is the mean over the processes of their means, because each has as many rows, so the
averaged gradients (``DistributedDataParallel``) are those of one process, up to rounding. Only the process of rank 0
writes files and messages.

Signals reach a process at any time, but all processes have to stop after the same step. In each step, they therefore
exchange the signals that they have received so far, without waiting for the result, which they read one step later
(:class:`Agreement`). Work without a common step, such as drawing samples, asks a shared store (:meth:`World.stop`).

This is the only module that imports ``torch.distributed``. A single process needs no process group, and its results do
not depend on this module.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import signals
from .errors import CheckpointError, Preempted, ScoresdeError, Stopped, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "ALONE", "Agreement", "Lost", "World", "clip_gradients", "divided", "divided_like", "own_device", "own_part",
    "rank", "ranks", "read_shards", "shared_rows", "sharing", "together", "whole", "write_shards",
]  # fmt: skip

T = TypeVar("T")

START = timedelta(minutes=10)  # until all processes have come
PATIENCE = timedelta(hours=12)  # while rank 0 validates, draws or writes, the others wait
STOPPED = "scoresde/stopped"
LOST = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}  # the errors of lost connections
WORDS = ("gloo", "NCCL", "Connection closed", "Connection reset")  # and words in others


class Lost(ScoresdeError):
    """Another process of the same training or computation has ended.

    The exit code is low, because ``srun`` returns the highest one, which should be that of the cause.
    """

    exit_code = 1


def ranks() -> int:
    """Return the number of processes that ``torchrun`` has started, or 1."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return the rank of this process, or 0 if it was not started by ``torchrun``."""
    return _number("RANK", 0)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit():
        raise UsageError(
            f"the environment variable {name} is {value!r}, but must be a whole number, as torchrun sets it"
        )
    return int(value)


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: with several processes on a machine, each has a GPU of its own."""
    if device.type != "cuda" or device.index is not None or ranks() < 2:
        return device
    import torch

    # A task may see only its own GPU.
    return torch.device("cuda", _number("LOCAL_RANK", 0) % max(1, torch.cuda.device_count()))


@dataclass(frozen=True)
class World:
    """The processes that work together, seen from one of them.

    Attributes:
        rank: The rank of this process.
        size: The number of processes.
    """

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, repr=False)
    work: int = 0  # how many times rows have been shared before, so that a signal is not taken for a later one

    @property
    def main(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1

    def rows(self, count: int) -> slice:
        """Return the positions of this process's rows in a global batch (equation 1), or in any range of rows.

        If ``count`` is not divisible by the number of processes, the first ones have one row more.
        """
        least, more = divmod(count, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def shared(self, module: nn.Module, *, unused: bool = False) -> nn.Module:
        """Return a module whose backward pass averages the gradients over the processes.

        All processes start with the weights of rank 0.

        Args:
            module: The module, whose forward pass returns the loss.
            unused: Whether some steps may leave some parameters unused. Finding these takes time in each step.
        """
        if not self.several or any(map(_is_sharded, module.modules())):
            return module
        from torch.nn.parallel import DistributedDataParallel

        with _told("wrapping the model"):
            return DistributedDataParallel(module, find_unused_parameters=unused)

    def align(self, module: nn.Module) -> None:
        """Replace the parameters and buffers of a module by those of rank 0."""
        if self.several:
            import torch.distributed as dist

            with _told("sending the weights"):
                for value in (*module.parameters(), *module.buffers()):
                    dist.broadcast(value.detach(), src=0)

    def locally(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the backward pass of a :meth:`shared` module only adds to its own gradients."""
        if not self.several:
            return nullcontext()
        return module.no_sync() if hasattr(module, "no_sync") else _unsynchronised(module)  # type: ignore[operator]

    def shard(self, network: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Divide the parameters of a network among the processes (``fully_shard``, FSDP2).

        Each of its ``blocks`` is gathered when it is needed, and the rest with the network itself. From then on, the
        parameters, their gradients, moments and averages are ``DTensor``, of which each process has a part.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        with _told("dividing the network"):
            mesh = init_device_mesh(next(network.parameters()).device.type, (self.size,))
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, on its device. The processes do not wait for the device."""
        if not self.several:
            return values
        import torch.distributed as dist

        found = values.clone()
        with _told("averaging over the processes"):
            dist.all_reduce(found)
        return found / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """Join the rows ``(B/W, ...)`` of all processes in the order of their ranks. All have as many rows."""
        if not self.several:
            return rows
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(rows) for _ in range(self.size)]
        with _told("gathering rows"):
            dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    def told(self, thing: T) -> T:
        """Return the ``thing`` of rank 0, in all processes."""
        if not self.several:
            return thing
        import torch.distributed as dist

        self.wait()
        box = [thing]
        with _told("waiting for rank 0"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def led(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the process of rank 0 only, and return its result, or raise its error, in all processes."""
        if not self.several:
            return work()
        done: T | Exception | None = None
        if self.main:
            try:
                done = work()
            except Exception as error:
                error.common = True  # type: ignore[attr-defined]  # all processes raise it, and one prints it
                done = error
        done = self.told(done)
        if isinstance(done, Exception):
            raise done
        return done  # type: ignore[return-value]

    @contextmanager
    def leading(self, block: AbstractContextManager[T]) -> Iterator[T]:
        """Enter a block in the process of rank 0 only, and yield its result, or raise its error, in all processes."""
        with ExitStack() as stack:
            yield self.led(lambda: stack.enter_context(block))

    def exchange(self, things: T) -> list[T]:
        """Return the ``things`` of all processes, in the order of their ranks."""
        if not self.several:
            return [things]
        import torch.distributed as dist

        self.wait()
        found: list[Any] = [None] * self.size
        with _told("exchanging results"):
            dist.all_gather_object(found, things)
        return found

    def wait(self) -> None:
        """Wait until all processes have come here. A signal ends the wait, if it would end other work."""
        if self.several:
            import torch.distributed as dist

            with _told("waiting for the other processes"):
                work = dist.barrier(async_op=True)
                while not work.is_completed():  # Python handles no signal within a call of torch
                    signals.check()
                    time.sleep(0.005)
                work.wait()

    def same(self, what: str, value: str) -> None:
        """Check that ``value`` is the same in all processes.

        Raises:
            UsageError: If it is not. The message names ``what``.
        """
        found = self.exchange(value)
        if len(set(found)) > 1:
            other = next(i for i, v in enumerate(found) if v != found[0])
            error = UsageError(
                f"process {other} of {self.size} has other {what} than process 0; all processes must have the same"
            )
            error.common = True  # type: ignore[attr-defined]
            raise error

    def stop(self, number: int) -> None:
        """Tell the other processes that this one has received the signal ``number``."""
        if self.store is not None:
            with suppress(RuntimeError):
                self.store.set(f"{STOPPED}/{self.work}", str(number))

    @property
    def stopped(self) -> int | None:
        """The signal that a process has received and told with :meth:`stop`, or ``None``."""
        if self.store is None:
            return None
        key = f"{STOPPED}/{self.work}"
        with _told("asking whether to stop"):
            return int(self.store.get(key)) if self.store.check([key]) else None


ALONE = World()
_together: list[World] = []  # the world of this process, once it has been joined
_shared = count()  # how many times rows were shared
_sharing: list[World] = []  # the processes that share the rows of results, innermost last


def sharing() -> World:
    """Return the processes that share the rows of results at present (:func:`shared_rows`)."""
    return _sharing[-1] if _sharing else ALONE


@contextmanager
def shared_rows(world: World) -> Iterator[None]:
    """Let the processes share the rows of all results that are computed in the block.

    All of them must compute the same results in the same order. A signal to one of them stops all.
    """
    world = replace(world, work=next(_shared))
    _sharing.append(world)
    asked = signals.elsewhere
    signals.elsewhere = (lambda: world.stopped) if world.several else asked
    try:
        yield
    except (Preempted, Stopped) as stop:
        world.stop(int(signal.SIGINT if isinstance(stop, Stopped) else signal.SIGTERM))
        raise
    finally:
        _sharing.pop()
        signals.elsewhere = asked


@contextmanager
def together(device: torch.device | str = "cpu") -> Iterator[World]:
    """Join the processes that ``torchrun`` has started, for as long as the block runs.

    Without ``torchrun``, the world has one process, and nothing is started. Otherwise, the process group is started by
    the first call and ends with the process. If the caller has already started a process group, it is used and left as
    it is.

    Args:
        device: The device of this process, which determines how tensors are exchanged.

    Raises:
        Lost: If another process does not come, or ends in the meantime.
    """
    if not _together and ranks() < 2:
        yield ALONE
        return
    world = _together[0] if _together else _joined(device)
    with warnings.catch_warnings():
        # These concern only the speed, of 1 x 1 convolutions in another memory format and of networks of one's own.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        if not world.main:
            warnings.simplefilter("ignore")
        with _told("computing"):
            yield world


def _joined(device: torch.device | str) -> World:
    """Start the process group, or use that of the caller, and return the world."""
    import torch.distributed as dist

    if not dist.is_available():
        raise UsageError("this build of torch has no torch.distributed, so it cannot train in several processes")
    store = None
    if not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise UsageError(
                f"WORLD_SIZE is {ranks()}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; "
                "start the processes with torchrun, or set these variables in each of them"
            )
        backend = "cpu:gloo,cuda:nccl" if str(device).startswith("cuda") else "gloo"
        with _told("starting the process group"):
            found = dist.rendezvous("env://", timeout=START)  # type: ignore[attr-defined]
            store, number, size = next(found)
            dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
        atexit.register(_leave)
    _together.append(World(dist.get_rank(), dist.get_world_size(), store))
    return _together[0]


def _leave() -> None:
    import torch.distributed as dist

    with suppress(RuntimeError, ValueError, AssertionError):
        dist.destroy_process_group()


# The parts of a DTensor are rows: part r of W has the rows r C, ..., (r + 1) C - 1 of n, with C = ceil(n/W), as far as
# there are any. The functions below exchange them with plain collectives, because those of DTensor.full_tensor
# corrupted the memory in one of ten trainings on CPUs (torch 2.13, gloo).


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of which each process has a part as a whole. All processes must call this together."""
    if not hasattr(tensor, "placements"):
        return tensor
    import torch
    import torch.distributed as dist

    part, size = tensor.to_local(), tensor.device_mesh.size()  # type: ignore[attr-defined]
    rows = -(-len(tensor) // size)
    padded = part.new_zeros(rows, *tensor.shape[1:])
    padded[: len(part)] = part.detach()
    found = [torch.empty_like(padded) for _ in range(size)]
    with _told("gathering the weights"):
        dist.all_gather(found, padded)
    return torch.cat(found)[: len(tensor)]


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process has, which is all of it unless it is divided."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "placements") else tensor  # type: ignore[attr-defined]
    return part


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor, which all processes have as a whole, on the device of ``other`` and divided like it."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "placements") or hasattr(tensor, "placements"):
        return tensor
    from torch.distributed.tensor import DTensor

    mesh = other.device_mesh  # type: ignore[attr-defined]
    rows = -(-len(tensor) // mesh.size())
    start = mesh.get_local_rank() * rows
    part = tensor[start : start + rows].contiguous()
    return DTensor.from_local(
        part,
        mesh,
        other.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def clip_gradients(parameters: Sequence[Tensor], most: float, world: World) -> Tensor:
    """Scale the gradients of all parameters down to a norm of ``most``, and return their norm before, ``()``."""
    import torch

    found = [p.grad for p in parameters if p.grad is not None]
    if not any(hasattr(grad, "placements") for grad in found):
        return torch.nn.utils.clip_grad_norm_(parameters, most)
    parts = [grad.to_local() for grad in found]  # type: ignore[attr-defined]
    square = torch.stack([torch.linalg.vector_norm(part).square() for part in parts]).sum()
    norm = (world.size * world.mean(square)).sqrt()
    torch._foreach_mul_(parts, torch.clamp(most / (norm + 1e-6), max=1.0))
    return norm


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the parts of all processes to safetensors files in a folder. All processes must call this together."""
    from torch.distributed import checkpoint

    with _told("writing the parts of the state"), _failures(f"{folder} cannot be written"):
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)  # type: ignore[attr-defined]
        checkpoint.save(dict(tensors), storage_writer=writer)  # type: ignore[attr-defined]


def read_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Read what :func:`write_shards` wrote, in any number of processes, into tensors of the same names and shapes.

    Only safetensors files are read, so no code is executed.
    """
    from torch.distributed import checkpoint

    alone = not _together
    with warnings.catch_warnings(), _failures(f"{folder} cannot be read"):
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        reader = checkpoint.HuggingFaceStorageReader(str(folder))  # type: ignore[attr-defined]
        checkpoint.load(dict(into), storage_reader=reader, no_dist=alone)  # type: ignore[attr-defined]


@contextmanager
def _failures(told: str) -> Iterator[None]:
    """Turn a failure to write or read parts, which is not an ``Exception``, into an error that says what failed."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as found:
        cause = next((str(error) for error, _ in found.failures.values()), str(found))
        raise CheckpointError(f"{told}: {cause.strip().splitlines()[-1][:300]}") from None


def _is_sharded(module: nn.Module) -> bool:
    return hasattr(module, "set_requires_gradient_sync")


@contextmanager
def _unsynchronised(module: nn.Module) -> Iterator[None]:
    parts = [part for part in module.modules() if _is_sharded(part)]
    for part in parts:
        part.set_requires_gradient_sync(False)  # type: ignore[operator]
    try:
        yield
    finally:
        for part in parts:
            part.set_requires_gradient_sync(True)  # type: ignore[operator]


class Agreement:
    """Let all processes learn of a signal to one of them, and of the wish of the first, after the same step.

    Each call starts an exchange on the CPU without waiting for it, and returns the result of the previous call. A
    signal is therefore known to all processes one call later.

    Args:
        world: The processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked: tuple[Any, Tensor] | None = None

    def __call__(self, number: int | None, wish: bool = False) -> tuple[int | None, bool]:
        """Exchange signals and wishes.

        Args:
            number: The signal that this process has received, or ``None``.
            wish: Whether this process wishes to save a checkpoint.

        Returns:
            The signal and the wish that are known to all processes.
        """
        if not self.world.several:
            return number, wish
        import torch
        import torch.distributed as dist

        known = self._read()
        told = torch.tensor([number or 0, int(wish)])
        with _told("exchanging signals"):
            self._asked = dist.all_reduce(told, dist.ReduceOp.MAX, async_op=True), told
        return known

    def last(self) -> tuple[int | None, bool]:
        """Return the result of the last exchange."""
        return self._read()

    def _read(self) -> tuple[int | None, bool]:
        if self._asked is None:
            return None, False
        work, told = self._asked
        self._asked = None
        with _told("exchanging signals"):
            work.wait()
        found, wish = told.tolist()
        return found or None, bool(wish)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Turn the error of a lost connection into one that says what happened, and leave other errors as they are."""
    try:
        yield
    except RuntimeError as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, ScoresdeError) or not (kinds & LOST or any(word in str(error) for word in WORDS)):
            raise
        first = str(error).strip().splitlines()[0][:200]
        raise Lost(
            f"the connection to another process was lost while {doing}; see its message for the reason ({first})"
        ) from None


def divided(count: int, parts: Sequence[tuple[str, int]]) -> None:
    """Check that a batch can be divided evenly.

    Args:
        count: The number of rows in the batch.
        parts: What the batch is divided by, with the numbers, such as ``[("processes", 2), ("accumulate", 4)]``.

    Raises:
        UsageError: If it cannot. The mean over the parts would not be the mean over the rows.
    """
    product = 1
    for _, number in parts:
        product *= number
    if count % product:
        told = " x ".join(f"{number} ({name})" for name, number in parts if number > 1)
        near = max(product, round(count / product) * product)
        raise UsageError(
            f"a batch of {count:,} rows cannot be divided evenly by {told}, so the mean over the parts would not be "
            f"the mean over the rows; use a batch of {near:,}",
            parameter="batch",
            value=near,
        )
