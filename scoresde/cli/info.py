"""``scoresde info``."""

from __future__ import annotations

import math
from typing import Any

import click

from .common import print_json, verb

__all__ = ["info"]


@verb(short_help="Say what a run is.")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(run: str | None, as_json: bool) -> None:
    """What a RUN is (default: the newest): SDE, network, data, steps, last loss."""
    from ..checkpoint import find_run, newest_checkpoint, read_config
    from ..files import read_json, read_lines, read_tensors

    folder = find_run(run)
    from ..config import TrainConfig
    from ..data import DataInfo

    config, data = TrainConfig.from_dict(read_config(folder)).to_dict(), read_json(folder / "data.json")
    described = DataInfo.from_dict(data).describe()
    checkpoint = newest_checkpoint(folder)
    lines = read_lines(folder / "metrics.jsonl")
    averaged = read_tensors(checkpoint / "ema.safetensors")
    prefix = "schedule."  # what of the path was learned
    facts: dict[str, Any] = {
        "run": str(folder),
        "checkpoint": str(checkpoint),
        "step": read_json(checkpoint / "state.json")["step"],
        "parameters": sum(v.numel() for v in averaged.values()),
        "learned": {k.removeprefix(prefix): float(v) for k, v in averaged.items() if k.startswith(prefix)},
        "last_loss": lines[-1]["loss"] if lines else math.nan,
        "config": config,
        "data": data,
    }
    if as_json:
        print_json(facts)
        return
    for key in ("run", "checkpoint", "step", "parameters", "last_loss"):
        value = facts[key]
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
        click.echo(f"{key:12} {text}")
    click.echo(f"{'sde':12} {config['sde']} {config['sde_options'] or ''}".rstrip())
    if facts["learned"]:
        click.echo(f"{'learned':12} {', '.join(f'{name} {value:.4g}' for name, value in facts['learned'].items())}")
    click.echo(f"{'predict':12} {config['predict']} {config['predict_options'] or ''}".rstrip())
    click.echo(f"{'network':12} {config['preset']} {config['network_options'] or ''}".rstrip())
    for key in ("shift", "coupling", "cond", "steps", "batch", "lr", "seed"):
        click.echo(f"{key:12} {config[key]}")
    click.echo(described)
