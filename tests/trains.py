"""Train a few tiny models in this process, or in all that were started together, and keep what came out.

python tests/trains.py STEPS FILE [NAME...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import TrainConfig
from scoresde.core.parallel import ALONE, World, together
from scoresde.data.batch import Batches
from scoresde.train.prepare import begun, operator_of, parts, prepared
from scoresde.train.state import steps

TINY: dict[str, Any] = {"batch": 32, "warmup": 3, "network_options": {"channels": 4}}
# The settings, the dtype and the number of parts in which each process evaluates its rows.
CASES: dict[str, tuple[dict[str, Any], torch.dtype, int]] = {
    "float32": ({}, torch.float32, 1),
    "float64": ({}, torch.float64, 1),
    "accumulate": ({}, torch.float64, 4),
    "learned times": ({"t_sampler": "loss-second-moment"}, torch.float64, 1),
    "importance": ({"t_sampler": "importance", "weighting": "likelihood"}, torch.float64, 2),
    "transport": ({"coupling": "ot"}, torch.float64, 2),
    "classes": ({"cond": "class"}, torch.float64, 1),
    "images": ({"cond": "pool:2"}, torch.float64, 4),
    "augmented": ({"augment": "flip,shift"}, torch.float64, 1),
}


def trained(name: str, count: int, world: World = ALONE) -> dict[str, Any]:
    """The losses, the weights, the averages and the state of the time sampler after some steps."""
    options, dtype, accumulate = CASES[name]
    config = TrainConfig(**TINY, **options)
    data = config.load_data()
    config, model, spec = prepared(config, data, None, None, None)
    state, objective = begun(config, model, torch.device("cpu"), dtype)
    train, _ = parts(data, spec, config, operator_of(config, data.info, None, None))
    batches = Batches(train, config.batch, config.seed, config.augmentation)
    model.train()
    losses = [
        record.loss
        for record in steps(
            state, objective, batches, count, seed=0, rate=lambda n: 2e-3 * min(1, (n + 1) / 3), clip=config.clip,
            accumulate=accumulate, world=world,
        )
    ]  # fmt: skip
    assert state.average is not None
    weights: dict[str, Tensor] = model.state_dict()
    return {"losses": losses, "weights": weights, "averages": state.averaged(), "times": state.draw.state()}


def main() -> None:
    torch.set_num_threads(1)
    count, file, *names = sys.argv[1:]
    with together() as world:
        found = {name: trained(name, int(count), world) for name in names or CASES}
        if world.main:
            torch.save(found, Path(file))


if __name__ == "__main__":
    main()
