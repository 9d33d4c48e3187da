"""Train a few tiny models in this process, or in all that were started together, and keep what came out.

python tests/trains.py STEPS FILE [NAME...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import TrainConfig, fit
from scoresde.core.parallel import ALONE, World, together, whole
from scoresde.data import Dataset
from scoresde.data.batch import Batches
from scoresde.objective.loss import Objective
from scoresde.run.spec import ModelSpec
from scoresde.train.prepare import begun, operator_of, parts, prepared
from scoresde.train.state import TrainState, steps

TINY: dict[str, Any] = {"batch": 32, "warmup": 3, "network_options": {"channels": 4}}
# The settings, the dtype and the number of parts in which each process evaluates its rows. In the cases whose name
# starts with "sharded", each of several processes has a part of the weights.
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
    "sharded": ({"cond": "class"}, torch.float64, 1),
    "sharded, accumulate": ({"coupling": "ot"}, torch.float32, 2),
}


def made(name: str, world: World = ALONE) -> tuple[TrainConfig, Dataset, ModelSpec, TrainState, Objective]:
    """What a case is made of."""
    options, dtype, _ = CASES[name]
    config = TrainConfig(**TINY, **options)
    data = config.load_data()
    config, model, spec = prepared(config, data, None, None, None)
    shard = "fsdp" if name.startswith("sharded") else "ddp"
    return config, data, spec, *begun(config, model, torch.device("cpu"), dtype, world, shard)


def moments(state: TrainState) -> dict[str, Tensor]:
    """The moments of the optimiser, and its numbers of updates."""
    found = state.optimiser.state_dict()["state"]
    return {f"{i}.{key}": whole(value) for i, part in found.items() for key, value in part.items()}


def trained(name: str, count: int, world: World = ALONE, folder: Path | None = None) -> dict[str, Any]:
    """The losses, the weights, the averages, the moments and the state of the time sampler after some steps."""
    config, data, spec, state, objective = made(name, world)
    train, _ = parts(data, spec, config, operator_of(config, data.info, None, None))
    batches = Batches(train, config.batch, config.seed, config.augmentation)
    state.model.train()
    state.divided = (world.size, CASES[name][2])
    losses = [
        record.loss
        for record in steps(
            state, objective, batches, count, seed=0, rate=lambda n: 2e-3 * min(1, (n + 1) / 3), clip=config.clip,
            world=world,
        )
    ]  # fmt: skip
    assert state.average is not None
    if folder is not None:
        state.save(folder, world=world)
    weights = {name: whole(value) for name, value in state.model.state_dict().items()}
    return {
        "losses": losses, "weights": weights, "averages": state.averaged(), "times": state.draw.state(),
        "moments": moments(state),
    }  # fmt: skip


class Own(nn.Module):
    """A network of one's own, with random buffers, and running statistics that count without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(4))
        self.gain = nn.Parameter(torch.ones(1))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.ModuleList([nn.Linear(6, 6)])[0])])
        self.normal, self.leave = nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor, c: Tensor, cond: object = None) -> Tensor:
        h = torch.cat([x, torch.sin(c[:, None] * self.frequencies)], 1)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.gain * self.leave(self.normal(h))
        return out


OWN = TrainConfig(data="moons", batch=8, decay="none", warmup=1, ema="0.9999,power:0.1", snapshots=2)


def own_network(shard: str) -> None:
    """Train, and go on, with a network that each process initialises otherwise."""
    for count in (2, 4):
        fit(replace(OWN, steps=count), network=Own(), out=f"own-{shard}", resume=count == 4, shard=shard, quiet=True)


def main() -> None:
    torch.set_num_threads(1)
    count, file, *names = sys.argv[1:]
    with together() as world:
        found = {
            name: trained(name, int(count), world, Path(name) if name.startswith("sharded") else None)
            for name in names or CASES
        }
        if world.main:
            torch.save(found, Path(file))
        for shard in ("ddp", "fsdp"):
            torch.manual_seed(world.rank)
            own_network(shard)


if __name__ == "__main__":
    main()
