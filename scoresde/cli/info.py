"""The command ``scoresde info``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..core.errors import UsageError
from ..core.tables import SDES
from .command import verb
from .common import Session, edited_option, session

if TYPE_CHECKING:
    from ..run.config import TrainConfig
    from ..sde.reach import Reach

__all__ = ["info"]


@verb(short_help="Describe a run.")
@click.argument("run", required=False)
@edited_option
@session(first=("json",), only=("json",))
def info(run: str | None, edited: bool, session: Session) -> None:
    """Show the SDE, network, data, number of steps and last loss of a RUN (default: the newest).

    This also works for a run without a checkpoint.
    """
    from ..core.files import read_lines, read_object, read_tensors
    from ..core.lock import held_by
    from ..run.environment import in_words, sessions_of
    from ..run.files import checkpoints, chosen_checkpoint, find_run, newest_checkpoint, read_config

    folder = find_run(run, edited=edited)
    from ..data import DataInfo
    from ..run.config import TrainConfig

    trained, data = TrainConfig.from_dict(read_config(folder)), read_object(folder / "data.json")
    config, about = trained.to_dict(), DataInfo.from_dict(data)
    described, words = about.describe(), trained.told_in_words(about)
    begun = bool(checkpoints(folder))
    checkpoint = newest_checkpoint(folder, edited=edited) if begun else None
    used = chosen_checkpoint(folder, edited=edited) if begun else None
    losses = [line["loss"] for line in read_lines(folder / "metrics.jsonl") if isinstance(line.get("loss"), float)]
    averaged = {} if checkpoint is None else read_tensors(checkpoint / "ema.safetensors")
    holder = held_by(folder)
    prefix = "schedule."  # the prefix of the SDE's learned parameters
    learned = {k.removeprefix(prefix): float(v) for k, v in averaged.items() if k.startswith(prefix)}
    end = None if learned else _end(trained)  # the ends of a learned path are among its parameters
    facts: dict[str, Any] = {
        "run": str(folder),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "step": 0 if checkpoint is None else read_object(checkpoint / "state.json")["step"],
        "used_step": 0 if used is None else read_object(used / "state.json")["step"],
        "parameters": sum(v.numel() for v in averaged.values()) if averaged else None,
        "learned": learned,
        "end": None if end is None else {"alpha": end.alpha, "sigma": end.sigma},
        "last_loss": losses[-1] if losses else None,
        "training": holder,
        "environment": (sessions := sessions_of(folder)),
        "averaged": read_object(folder / "config.json").get("averaged"),
        "config": config,
        "data": data,
    }
    told = []
    for key in ("run", "checkpoint", "step", "used_step", "parameters", "last_loss"):
        value = "none yet" if facts[key] is None else facts[key]
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
        told.append(f"{key:12} {text}")
    if holder is not None or checkpoint is None:
        cut_off = "interrupted before its first checkpoint; it can be resumed or started again"
        told.append(f"{'training':12} {holder or cut_off}")
    if facts["averaged"] is not None:
        told.append(
            f"{'average':12} of width {facts['averaged']['sigma_rel']}, computed from {facts['averaged']['from']}"
        )
    told.append(f"{'sde':12} {config['sde']} {config['sde_options'] or ''}".rstrip())
    if end is not None:
        ratio = end.alpha / end.sigma
        told.append(f"{'at t_max':12} alpha {end.alpha:.3g}, sigma {end.sigma:.4g}, alpha/sigma {ratio:.2g}")
    if facts["learned"]:
        told.append(f"{'learned':12} {', '.join(f'{name} {value:.4g}' for name, value in facts['learned'].items())}")
    told.append(f"{'predict':12} {config['predict']} {config['predict_options'] or ''}".rstrip())
    options = dict(config["network_options"])
    named = options.pop("network", config["preset"])
    told.append(f"{'network':12} {named} {options or ''}".rstrip())
    space = ["space"] if trained.space_names else []
    shown = ("shift", "coupling", "cond", *space, "augment", "steps", "batch", "lr", "seed")
    for key in shown:
        told.append(f"{key:12} {config[key]}")
        told += [f"{'condition':12} {words}"] if key == "cond" and words else []
    usual = {"size": 0, "fit": "", "layout": "auto", "on_bad": "stop"}
    reading = [f"{key} {config[key]}" for key, value in usual.items() if config[key] != value]
    told += [f"{'read with':12} {', '.join(reading)}"] if reading else []
    told += [f"{'trained with':12} {in_words(sessions)}"] if sessions else []
    session.print(facts, *told, described)


def _end(config: TrainConfig) -> Reach | None:
    """Return the coefficients at the end of a built-in path, or ``None`` for a path of the user, which is not imported.

    The result is also ``None`` if the path cannot be built from the configuration, which is shown in any case.
    """
    from ..run.config import build_sde
    from ..sde.reach import Reach

    try:
        return Reach.of(build_sde(config)) if config.name("sde") in SDES else None
    except UsageError:
        return None
