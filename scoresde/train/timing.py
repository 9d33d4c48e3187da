"""How long training will take, estimated from a few steps, a part of a validation and a picture of a few steps."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import Dataset
from ..data.batch import Batches
from ..model.network import ScoreModel
from ..run.config import TrainConfig
from ..run.run import Run, warn_of_prior
from ..run.spec import ModelSpec
from . import pictures
from .executing import executable, lanes_of
from .lanes import one_thread
from .prepare import averaged_model, begun, measured, operator_of, parts
from .schedule import affordable, looks, older, previews
from .state import steps
from .validation import Validation

__all__ = ["Timing", "timed"]

TIMED = 4  # training steps that are timed, after one that is not


@dataclass(frozen=True)
class Timing:
    """The parts of the time that training takes.

    Attributes:
        steps, validations, pictures: Number of training steps, of validations and of pictures.
        step, validation, picture: Duration of each of them, in seconds.
    """

    steps: int
    step: float
    validations: int
    validation: float
    pictures: int
    picture: float

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
    """Estimate how long training will take. The model is trained for five steps, and nothing is saved.

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
        validation = source.seconds(averaged, most=4 * config.batch)
    most = affordable(pictures.evaluations(info, model.domain.nodes), config.steps, config.batch)
    drawn = [n for n in previews(config.steps, config.sample_every, most) if n > done]
    run = Run(averaged, spec.codec, info, config, spec, operator=operator)
    picture = pictures.seconds(run, data) if drawn else 0.0
    return Timing(max(0, config.steps - done), step, validations, validation, len(drawn), picture)
