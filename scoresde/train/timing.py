"""The time and memory that training takes, estimated from a few steps, a part of a validation and a short picture.

Everything happens as in training, except that nothing is written. The memory of a CPU is the peak of the whole process,
which includes the data and the libraries. That of a GPU is the peak of what PyTorch has allocated.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.threads import one_thread
from ..data import Dataset
from ..data.batch import Batches
from ..model.network import ScoreModel
from ..run.config import TrainConfig
from ..run.profiles import Power
from ..run.run import Run, warn_of_prior
from ..run.spec import ModelSpec
from . import pictures
from .executing import executable, lanes_of
from .prepare import averaged_model, begun, measured, operator_of, parts
from .schedule import affordable, looks, older, previews
from .snapshots import planned, snapshots
from .state import TrainState, steps
from .validation import CHUNK, Validation

__all__ = ["Timing", "timed"]

HEADERS = 2**16  # bytes of a checkpoint or a snapshot, at most, besides the values of its tensors
TIMED = 3  # training steps that are timed, after one that is not


@dataclass(frozen=True)
class Timing:
    """The parts of the time that training takes, and the memory.

    Attributes:
        steps, validations, pictures: Number of training steps, of validations and of pictures.
        step, validation, picture: Duration of each of them, in seconds.
        memory: Peak of the memory, in bytes, or 0 if it is unknown.
        checkpoint: Size of a checkpoint on the disk, with all averages of the weights, in bytes.
        weights: Size of the averaged weights in use, in bytes.
        snapshots: Size of all snapshots of the averages, in bytes.
    """

    steps: int
    step: float
    validations: int
    validation: float
    pictures: int
    picture: float
    memory: int = 0
    checkpoint: int = 0
    weights: int = 0
    snapshots: int = 0

    @property
    def parts(self) -> dict[str, float]:
        """The duration of all training steps, of all validations and of all pictures, in seconds."""
        return {
            "steps": self.steps * self.step,
            "validation": self.validations * self.validation,
            "pictures": self.pictures * self.picture,
        }

    @property
    def seconds(self) -> float:
        """The sum of the parts, in seconds."""
        return sum(self.parts.values())

    def disk(self, keep: int) -> int:
        """Return the largest size of ``keep`` checkpoints, one being written, the best weights and the snapshots.

        The size is in bytes.
        """
        return (
            (keep + 1) * (self.checkpoint + HEADERS)
            + 2 * (self.weights + HEADERS) * (self.validations > 0)
            + self.snapshots
        )


def timed(
    config: TrainConfig,
    model: ScoreModel,
    spec: ModelSpec,
    data: Dataset,
    *,
    folder: Path | None = None,
    done: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Timing:
    """Estimate the time and memory of training. The model is trained for four steps, and nothing is saved.

    Args:
        config, model, spec: The results of :func:`scoresde.train.prepared`.
        data: The data.
        folder: The run folder, if the run is resumed.
        done: Number of steps that are done already.
        device, dtype: Device and precision of the training.
    """
    device = torch.device(device)
    data = data.described(data.info.known.told(config.sources))
    operator = operator_of(config, data.info, None, folder)
    info = measured(config, data, spec.codec, model, operator)
    warn_of_prior(model.domain, info)
    train, validating = parts(data, spec, config, operator)
    config = executable(config, model, train, device, dtype)
    state, objective = begun(config, model, device, dtype)
    lanes = lanes_of(config, model, train)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    batches = Batches(train, config.batch, config.seed, config.augmentation)
    model.train()
    running = steps(
        state, objective, batches, TIMED + 1, seed=config.seed, rate=lambda step: config.lr, clip=config.clip,
        lanes=lanes,
    )  # fmt: skip
    with one_thread() if lanes > 1 else nullcontext():
        next(running)
        began = time.monotonic()
        for _ in running:
            pass
        step = (time.monotonic() - began) / TIMED

    averaged, validations, validation = averaged_model(state), 0, 0.0
    if validating is not None:
        validations = looks(config.steps, config.validate_every or older(config.steps), done)
    if validations and validating is not None:
        source = Validation(validating, state.draw, objective, config.seed, dtype)
        validation = source.seconds(averaged, most=CHUNK)  # a whole part, as in training, because of the memory
    most = affordable(pictures.evaluations(info, model.domain.nodes), config.steps, config.batch)
    drawn = [n for n in previews(config.steps, config.sample_every, most) if n > done]
    run = Run(averaged, spec.codec, info, config, spec, operator=operator)
    picture = pictures.seconds(run, data) if drawn else 0.0
    taken = {*planned(config.steps, config.snapshots, done), *(() if folder is None else snapshots(folder))}
    return Timing(
        max(0, config.steps - done), step, validations, validation, len(drawn), picture, _peak(device),
        *_sizes(state, len(taken)),
    )  # fmt: skip


def _peak(device: torch.device) -> int:
    """Return the peak of the memory of this process so far, on its device, in bytes, or 0 if it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, ValueError):  # Linux; its other count, below, includes the program that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _sizes(state: TrainState, taken: int) -> tuple[int, int, int]:
    """Return the sizes of a checkpoint, of the averaged weights in use and of ``taken`` snapshots, in bytes."""

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    assert state.average is not None
    profiles, trained = state.average.profiles, state.average.trained.values()
    moments = [v for part in state.optimiser.state_dict()["state"].values() for v in part.values()]
    weights = size(state.averaged().values())
    checkpoint = size(state.learned.state_dict().values()) + size(v for v in moments if isinstance(v, Tensor))
    # A snapshot has the trained weights in float32, and a copy of the rest.
    each = weights - sum(value.numel() * (value.element_size() - 4) for value in trained)
    power = sum(isinstance(profile, Power) for profile in profiles)
    return checkpoint + len(profiles) * weights, weights, taken * (power * each + HEADERS)
