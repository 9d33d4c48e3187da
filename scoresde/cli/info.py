"""``scoresde info``."""

from __future__ import annotations

import math
from typing import Any

import click

from .command import verb
from .common import Session, session

__all__ = ["info"]


@verb(short_help="Say what a run is.")
@click.argument("run", required=False)
@session(first=("json",), only=("json",))
def info(run: str | None, session: Session) -> None:
    """What a RUN is (default: the newest): SDE, network, data, steps, last loss."""
    from ..core.files import read_json, read_lines, read_tensors
    from ..run.files import chosen_checkpoint, find_run, newest_checkpoint, read_config

    folder = find_run(run)
    from ..data import DataInfo
    from ..run.config import TrainConfig

    config, data = TrainConfig.from_dict(read_config(folder)).to_dict(), read_json(folder / "data.json")
    described = DataInfo.from_dict(data).describe()
    checkpoint, used = newest_checkpoint(folder), chosen_checkpoint(folder)
    lines = read_lines(folder / "metrics.jsonl")
    averaged = read_tensors(checkpoint / "ema.safetensors")
    prefix = "schedule."  # what of the path was learned
    facts: dict[str, Any] = {
        "run": str(folder),
        "checkpoint": str(checkpoint),
        "step": read_json(checkpoint / "state.json")["step"],
        "used_step": read_json(used / "state.json")["step"],
        "parameters": sum(v.numel() for v in averaged.values()),
        "learned": {k.removeprefix(prefix): float(v) for k, v in averaged.items() if k.startswith(prefix)},
        "last_loss": lines[-1]["loss"] if lines else math.nan,
        "config": config,
        "data": data,
    }
    told = []
    for key in ("run", "checkpoint", "step", "used_step", "parameters", "last_loss"):
        value = facts[key]
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
        told.append(f"{key:12} {text}")
    told.append(f"{'sde':12} {config['sde']} {config['sde_options'] or ''}".rstrip())
    if facts["learned"]:
        told.append(f"{'learned':12} {', '.join(f'{name} {value:.4g}' for name, value in facts['learned'].items())}")
    told.append(f"{'predict':12} {config['predict']} {config['predict_options'] or ''}".rstrip())
    told.append(f"{'network':12} {config['preset']} {config['network_options'] or ''}".rstrip())
    shown = ("shift", "coupling", "cond", "augment", "steps", "batch", "lr", "seed")
    told += [f"{key:12} {config[key]}" for key in shown]
    usual = {"size": 0, "fit": "", "layout": "auto", "on_bad": "stop"}
    reading = [f"{key} {config[key]}" for key, value in usual.items() if config[key] != value]
    told += [f"{'read with':12} {', '.join(reading)}"] if reading else []
    session.print(facts, *told, described)
