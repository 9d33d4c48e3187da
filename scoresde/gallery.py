"""Samples as files: a picture to look at, the numbers, and how they were made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import write_json
from .data import DataInfo
from .errors import CheckpointError, UsageError
from .run import Samples

__all__ = ["KINDS", "check_kinds", "numbered_folder", "write_samples"]

KINDS = ("png", "npz", "gif", "path")
DEFAULT = ("png", "npz")


def check_kinds(kinds: Sequence[str]) -> Sequence[str]:
    """Return ``kinds`` if each is in :data:`KINDS`.

    Raises:
        UsageError: With the first that is not.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"cannot save {kind!r}; choose from: {', '.join(KINDS)}")
    return kinds


def numbered_folder(parent: Path, name: str) -> Path:
    """Make ``parent/name``, or ``parent/name-2`` and so on if that is taken: nothing is overwritten."""
    folder, n = parent / name, 2
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                folder, n = parent / f"{name}-{n}", n + 1
    except OSError as error:
        reason = f"{parent} is a file" if parent.is_file() else error.strerror or error
        raise CheckpointError(f"cannot write {folder}: {reason}; choose a folder you may write to with --out") from None


def write_samples(
    folder: Path,
    samples: Samples,
    info: DataInfo,
    made: Mapping[str, Any],
    kinds: Sequence[str] = DEFAULT,
    frames: tuple[Tensor, Tensor] | None = None,
) -> list[Path]:
    """Write the samples that succeeded, in data units.

    Args:
        folder: Where to.
        samples: The samples, ``x`` of shape ``(n, *event)``.
        info: What is known of the data.
        made: How the samples were made, plain JSON values, for ``samples.json``.
        kinds: ``png`` (a sheet of images, or a figure), ``npz`` (array ``x`` and the index of each sample), ``gif``
            (the samples on their way) and ``path`` (the same as arrays ``t`` and ``x``).
        frames: Times ``(F,)`` and states ``(F, n, *event)`` for the last two (see :meth:`scoresde.run.Run.frames`).

    Returns:
        The files written.
    """
    check_kinds(kinds)
    ok = samples.solution.ok.cpu()
    x = samples.x[ok]
    if info.levels is not None and info.low >= 0 and info.high <= 255:
        x = x.to(torch.uint8)
    files = []
    index = ok.nonzero().flatten().numpy()
    if "npz" in kinds:
        files.append(_save_arrays(folder / "samples.npz", x=x.numpy(), index=index))
    if frames is not None and len(x):
        times, states = frames[0], frames[1][:, ok]
        if "path" in kinds:
            arrays = {"t": times.numpy(), "x": states.float().numpy(), "index": index}
            files.append(_save_arrays(folder / "path.npz", **arrays))
        if "gif" in kinds:
            from .animation import animate, save_gif

            save_gif(folder / "samples.gif", animate(states, info.kind, info.low, info.high))
            files.append(folder / "samples.gif")
    if "png" in kinds and len(x):
        from .plot import samples_figure, save_figure, save_image_grid

        path = folder / ("grid.png" if info.kind == "image" else "samples.png")
        if info.kind == "image":
            save_image_grid(path, x.numpy(), info.low, info.high)
        else:
            save_figure(path, samples_figure(x.numpy(), info.kind, info.low, info.high))
        files.insert(0, path)
    write_json(folder / "samples.json", dict(made))
    return files


def _save_arrays(path: Path, **arrays: Any) -> Path:
    """Write arrays under a temporary name, then rename."""
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    return path
