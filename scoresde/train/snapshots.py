"""Snapshots of the power-function averages, from which averages of other widths are computed after training.

A run with ``snapshots=64`` stores its power-function averages 64 times, at equal intervals and after the last step:

    ema/step-000000313.safetensors   ema/step-000000625.safetensors   ...   ema/step-000020000.safetensors

Each file contains all of these averages, in float32. It is written before the checkpoint of the same step, and a
resumed run removes the snapshots of later steps than that of its checkpoint, because it writes them again. Whenever a
run is stopped, none is therefore missing, and none belongs to weights that are no longer those of the run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..core.errors import UsageError
from ..core.files import cannot_write, write_tensors
from ..core.parallel import ALONE, World
from ..run.config import TrainConfig
from ..run.files import bare_names
from ..run.profiles import WIDTHS, Power, coefficients
from .averages import EMA
from .state import TrainState

__all__ = ["FOLDER", "clear_snapshots", "needed", "planned", "snapshots", "take"]

FOLDER = "ema"
NAME = re.compile(r"step-([0-9]{9,})\.safetensors")


def planned(steps: int, count: int, done: int = 0) -> list[int]:
    """Return the steps after which a snapshot is taken: ``count`` at equal intervals, of which the last is ``steps``.

    Steps up to ``done`` are left out.

    >>> planned(100, 3), planned(2, 3), planned(100, 3, done=50), planned(100, 0)
    ([34, 67, 100], [1, 2], [67, 100], [])
    """
    count = min(count, steps)
    return sorted({step for k in range(1, count + 1) if (step := -(-steps * k // count)) > done})


def snapshots(folder: Path) -> dict[int, Path]:
    """Return the snapshots of a run, keyed by step, in ascending order."""
    found = {int(match[1]): path for path in (folder / FOLDER).glob("*") if (match := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def clear_snapshots(folder: Path, after: int = 0) -> None:
    """Remove the snapshots of steps later than ``after``."""
    for step, path in snapshots(folder).items():
        if step > after:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error) from None


def take(folder: Path, state: TrainState, world: World = ALONE) -> None:
    """Write a snapshot of the power-function averages.

    If each process has only a part of the weights, all processes of ``world`` must call this together.
    """
    assert state.average is not None
    stored = _stored(state.average)
    bare = bare_names(state.learned)
    copied = sorted(bare[name] for name in state.average.states[0] if name not in state.average.trained)
    tensors = {}
    for number, profile in stored.items():
        for name, value in state.averaged(number).items():
            tensors[f"{profile}/{name}"] = value if name in copied else value.float()
    if world.main:
        facts = {"step": state.step, "profiles": [str(profile) for profile in stored.values()], "copied": copied}
        write_tensors(folder / FOLDER / f"step-{state.step:09d}.safetensors", tensors, facts)


def _stored(average: EMA) -> dict[int, Power]:
    return {number: profile for number, profile in enumerate(average.profiles) if isinstance(profile, Power)}


def needed(folder: Path, config: TrainConfig, state: TrainState) -> str:
    """Say how much disk space the snapshots still to be taken need, and how precise averages of other widths will be.

    Raises:
        UsageError: If there is not as much free space.
    """
    assert state.average is not None
    power = list(_stored(state.average).values())
    weights = sum(value.numel() for value in state.average.trained.values())
    each = 4 * weights * len(power)
    there, more = list(snapshots(folder)), planned(config.steps, config.snapshots, state.step)
    what = f"{_count(len(more), 'snapshot')} of {_count(len(power), 'average')} of {_short(weights)} weights"
    size, free = len(more) * each, shutil.disk_usage(folder).free
    if size > free:
        raise UsageError(
            f"{what} would take {_bytes(size)} in {folder / FOLDER}, but only {_bytes(free)} of the disk is free; take "
            "fewer, or choose a folder on another disk",
            parameter="snapshots",
            value=int(0.9 * free / each) if not there else None,
        )
    before = f" (there are {len(there):,} of earlier steps)" if there else ""
    error = _worst({*there, *more}, power)
    return (
        f"{what} will take {_bytes(size)} in {folder / FOLDER}{before}; averages of width "
        f"{WIDTHS[0]} to {WIDTHS[1]:.2f} can be computed from them, with an error of the profile of at most "
        f"{100 * error:.2g} %"
    )


def _worst(steps: Collection[int], power: list[Power]) -> float:
    """Return the largest error of the profiles that can be computed."""
    return max(coefficients(sorted(steps), power, Power(width))[1] for width in np.linspace(*WIDTHS, 16).tolist())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _short(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"
