"""How a network is computed in training: its precision, memory layout and threads, where these are left open."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ..core.errors import UsageError
from ..core.noise import keyed
from ..core.parallel import ALONE, World
from ..core.threads import available, work
from ..data.batch import Batches, Rows
from ..model.network import ScoreModel
from ..nn.execution import Execution, faster_with_channels_last, precision_on
from ..objective.coupling import Pairs
from ..run.config import TrainConfig
from .lanes import lanes_for
from .prepare import begun

__all__ = ["executable", "lanes_of"]


def executable(
    config: TrainConfig, model: ScoreModel, rows: Rows | Pairs, device: torch.device, dtype: torch.dtype,
    world: World = ALONE, shard: str = "ddp",
) -> TrainConfig:  # fmt: skip
    """Return the configuration with a precision and a memory layout that suit the device, where it leaves them open.

    Args:
        config, model, rows: The resolved configuration, the model and the training rows.
        device, dtype, world, shard: Where and how the model will be trained (:func:`scoresde.train.fit`).

    Raises:
        UsageError: If the precision does not suit the weights, or the layout does not suit the processes.
    """
    config, layout = replace(config, precision=precision_on(device, dtype, config.precision)), config.channels_last
    if shard == "fsdp" and world.several and layout != "no":
        if layout == "yes":
            raise UsageError(
                "a network that is divided among processes cannot be computed with channels last; use shard='ddp'",
                parameter="channels_last",
                value="no",
            )
        return replace(config, channels_last="no")
    if layout == "auto":
        size = config.batch // (world.size * config.accumulate)
        last = world.led(lambda: _Trial(config, model, rows, size, device, dtype).faster_with_channels_last())
        config = replace(config, channels_last="yes" if last else "no")
    return config


def lanes_of(config: TrainConfig, model: ScoreModel, rows: Rows | Pairs, world: World = ALONE) -> int:
    """Return the number of threads that each compute a part of the gradient (:mod:`scoresde.train.lanes`).

    This is 1 if there are several processes, or if the model is on a GPU or compiled.
    """
    one = next(model.parameters())
    if world.several or one.device.type != "cpu" or config.compile or available() == 1:
        return 1
    count, trial = config.batch // config.accumulate, min(config.batch, 2)
    amount = _Trial(config, model, rows, trial, one.device, one.dtype).work() * count / trial
    return lanes_for(model.network, count, amount, available())


class _Trial:
    """The first step of a training run, with a copy of the model and a batch of ``size`` rows."""

    def __init__(
        self, config: TrainConfig, model: ScoreModel, rows: Rows | Pairs, size: int, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        plain = replace(config, compile=False, channels_last="no", accumulate=1, recompute=False)
        state, self.objective = begun(plain, copy.deepcopy(model), device, dtype)
        assert isinstance(state.model, ScoreModel)
        self.model, self.device = state.model.train(), device
        generator = keyed(config.seed, 0)
        batch = Batches(rows, size, config.seed, config.augmentation).at(0, generator, dtype)
        self.batch, self.draws = batch.to(device), state.draw(batch, generator).to(device)

    def work(self) -> float:
        """Return the work of a forward pass."""
        with torch.no_grad():
            return work(self.model, lambda: self.objective(self.model, self.batch, self.draws))

    def faster_with_channels_last(self) -> bool:
        """Return whether the gradient is computed faster with channels last."""

        def step(execution: Execution) -> None:
            self.model.execution = replace(execution, precision=self.model.execution.precision)
            torch.autograd.backward(self.objective(self.model, self.batch, self.draws).mean())
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return faster_with_channels_last(self.model.network, step)
