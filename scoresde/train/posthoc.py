"""Averages of other widths, computed after training from the snapshots of a run (:mod:`.snapshots`).

The equations are in :mod:`scoresde.run.profiles`. The sums over the snapshots are computed in float64, and one snapshot
is read at a time.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import CheckpointError, UsageError
from ..core.files import FORMAT, atomic, read_metadata, read_object, read_tensors, write_json
from ..core.limits import Range, check_number
from ..model.network import ScoreModel
from ..run.config import TrainConfig
from ..run.files import load_weights, read_config, save_checkpoint
from ..run.origin import FILE, beside, found
from ..run.profiles import WIDTHS, Power, coefficients, profiles_of
from ..run.run import Run, load
from ..run.seen import MASKS
from .snapshots import FOLDER, snapshots

__all__ = ["Average", "averaged", "averages", "write_averaged"]

WIDTH = Range(
    *WIDTHS,
    hint="a narrower average differs little from the last weights, and a wider one cannot be computed from the "
    "snapshots: at 0.3, the error of its profile would be 51 %",
)


@dataclass(frozen=True, eq=False)
class Average:
    """A moving average of the weights of a run.

    Attributes:
        sigma_rel: The width of its profile.
        step: The training step at which it ends.
        error: The relative error of its profile (:func:`scoresde.run.profiles.coefficients`).
        weights: The averaged weights and the copied buffers, keyed by name.
    """

    sigma_rel: float
    step: int
    error: float
    weights: dict[str, Tensor]


def averages(folder: Path, widths: Sequence[float], step: int | None = None) -> list[Average]:
    """Compute averages of the given widths from the snapshots of the run in ``folder``.

    Args:
        folder: The run folder.
        widths: The widths sigma_rel, from 0.05 to 0.20.
        step: The training step at which the averages end, which must be that of a snapshot (default: the last step).

    Raises:
        UsageError: If a width or the step is invalid.
        CheckpointError: If the run has no snapshots, they are damaged, or the last one is not at the end of the run.
    """
    targets = [Power(check_number("sigma_rel", width, WIDTH)) for width in widths]
    config, stored = TrainConfig.from_dict(read_config(folder)), snapshots(folder)
    steps = _up_to(folder, config, list(stored), step)
    profiles = [profile for profile in profiles_of(config.ema) if isinstance(profile, Power)]
    combined = [coefficients(steps, profiles, target) for target in targets]
    sums: list[dict[str, Tensor]] = [{} for _ in targets]
    for number, at in enumerate(steps):
        path = stored[at]
        copied, tensors = _read(path, at, profiles)
        for (shares, _), total in zip(combined, sums, strict=True):
            for profile, share in zip(profiles, shares[number].tolist(), strict=True):
                for name, value in tensors[profile].items():
                    if name in copied:
                        total[name] = value
                    elif number == 0 and profile == profiles[0]:
                        total[name] = share * value.double()
                    elif name in total and total[name].shape == value.shape:
                        total[name].add_(value.double(), alpha=share)
                    else:
                        raise CheckpointError(f"{path} belongs to another network than the snapshots before it")
    return [
        Average(target.sigma_rel, steps[-1], error, {name: _single(value) for name, value in total.items()})
        for target, (_, error), total in zip(targets, combined, sums, strict=True)
    ]


def _single(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.float64 else value


def _up_to(folder: Path, config: TrainConfig, steps: list[int], step: int | None) -> list[int]:
    """Return the steps of the snapshots that are used."""
    if not steps:
        raise CheckpointError(
            f"{folder} has no snapshots, from which averages of other widths are computed; train with "
            "ema='0.9999,power:0.05,power:0.1' and snapshots=64"
        )
    end = config.steps if step is None else step
    if end in steps:
        return steps[: steps.index(end) + 1]
    before = max((s for s in steps if s < end), default=steps[0])
    if step is None:
        raise CheckpointError(
            f"the last snapshot of {folder} is from step {steps[-1]:,}, but the run has {end:,} steps; compute "
            f"the average at step {steps[-1]:,}, or resume the training if it is not finished",
            parameter="step",
            value=steps[-1],
        )
    raise UsageError(
        f"{folder} has no snapshot from step {end:,}, and an average can end only at a snapshot; the nearest before it "
        f"is from step {before:,}",
        parameter="step",
        value=before,
    )


def _read(path: Path, step: int, profiles: Sequence[Power]) -> tuple[set[str], dict[Power, dict[str, Tensor]]]:
    """Read a snapshot: the names of its buffers, and the weights of each profile."""
    facts, tensors = read_metadata(path), read_tensors(path)
    if facts.get("step") != step or facts.get("profiles") != [str(profile) for profile in profiles]:
        raise CheckpointError(
            f"{path} contains {facts.get('profiles')} of step {facts.get('step')}, not those in its name and in "
            "config.json; is it a copy?"
        )
    found = {
        profile: {n.partition("/")[2]: v for n, v in tensors.items() if n.partition("/")[0] == str(profile)}
        for profile in profiles
    }
    return set(facts.get("copied", ())), found


def averaged(run: Run | str | Path | None, sigma_rel: float, *, step: int | None = None) -> Run:
    """Return a run with another average of the weights, computed from the snapshots that its training has stored.

    Karras et al. 2024 (arXiv:2312.02696) find that the best width depends on the network, the data and the guidance,
    and can be a tenth or a fifth of the length of the training. It can be chosen afterwards if the run was trained with
    power-function averages and with snapshots (``TrainConfig(ema="0.9999,power:0.05,power:0.1", snapshots=64)``).

    Args:
        run: A run, a run folder, a name under ``runs/``, or ``None`` for the newest run. The settings bound to a run
            are kept.
        sigma_rel: The width of the average: the standard deviation of its profile, relative to the number of training
            steps, from 0.05 to 0.20.
        step: The training step at which the average ends, which must be that of a snapshot (default: the last step).

    Raises:
        UsageError: If the width or the step is invalid.
        CheckpointError: If the run has no snapshots, they are damaged, or the last one is not at the end of the run.
    """
    run = run if isinstance(run, Run) else load(run)
    if run.folder is None or not isinstance(run.base, ScoreModel):
        raise UsageError("averages of other widths need a run with a folder, in which its training stored snapshots")
    (average,) = averages(run.folder, [sigma_rel], step)
    model = copy.deepcopy(run.base)
    load_weights(model.learned, average.weights, run.folder / FOLDER)
    return replace(run, base=model, step=average.step)


def write_averaged(folder: Path, average: Average, out: Path) -> None:
    """Write an average as a run of its own, which can be used like any other but not trained further.

    Args:
        folder: The folder of the run from which the average was computed.
        average: The average.
        out: The new folder, which exists and is empty.
    """
    for name in (FILE, MASKS):
        if (folder / name).is_file():
            with atomic(out / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    for name in ("model.json", "data.json"):
        write_json(out / name, read_object(folder / name), signed=True)
    facts = {"from": folder.name, "sigma_rel": average.sigma_rel, "error": average.error}
    save_checkpoint(out, average.step, {"ema": average.weights}, {"averaged": facts})
    config = read_object(folder / "config.json")
    trained = TrainConfig.from_dict(read_config(folder))
    placed = beside(out, replace(trained, data=found(folder, trained)))
    write_json(out / "config.json", {**config, "format": FORMAT, "averaged": facts, "data_beside": placed}, signed=True)
