"""Samples as files: a picture to look at, the numbers, and how they were made; and the numbers read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.files import check_kinds, write_arrays, write_json
from ..data import DataInfo, Dataset
from .run import Samples
from .units import Units, in_data_units

__all__ = ["KINDS", "read_samples", "write_samples"]

KINDS = ("png", "npz", "gif", "path")
DEFAULT = ("png", "npz")


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
        frames: Times ``(F,)`` and states ``(F, n, *event)`` for the last two (see :meth:`scoresde.run.run.Run.frames`).

    Returns:
        The files written.
    """
    check_kinds(kinds, KINDS)
    ok = samples.solution.ok.cpu()
    x = samples.x[ok]
    if info.levels is not None and info.low >= 0 and info.high <= 255:
        x = x.to(torch.uint8)
    files = []
    index = ok.nonzero().flatten().numpy()
    if "npz" in kinds:
        files.append(write_arrays(folder / "samples.npz", {"x": x.numpy(), "index": index}))
    if frames is not None and len(x):
        times, states = frames[0], frames[1][:, ok]
        if "path" in kinds:
            arrays = {"t": times.numpy(), "x": states.float().numpy(), "index": index}
            files.append(write_arrays(folder / "path.npz", arrays))
        if "gif" in kinds:
            from ..plot import animate, save_gif

            save_gif(folder / "samples.gif", animate(states, info.kind, info.low, info.high))
            files.append(folder / "samples.gif")
    if "png" in kinds and len(x):
        from ..plot import samples_figure, save_figure, save_image_grid

        path = folder / ("grid.png" if info.kind == "image" else "samples.png")
        if info.kind == "image":
            save_image_grid(path, x.numpy(), info.low, info.high)
        else:
            save_figure(path, samples_figure(x.numpy(), info.kind, info.low, info.high))
        files.insert(0, path)
    write_json(folder / "samples.json", dict(made))
    return files


def read_samples(path: Path, data: Dataset, units: Units = "auto") -> Tensor:
    """Samples from the array ``x`` of an ``.npz`` file, as ``scoresde sample`` writes it, in data units.

    Args:
        path: The file.
        data: What they are samples of.
        units: Of the samples (see :func:`scoresde.run.units.in_data_units`).

    Returns:
        Shape ``(N, *event)``; values between the levels of the data are taken to the level below.

    Raises:
        DataError: If the file is none, or its samples are not like the data.
    """
    info = data.info
    try:
        with np.load(path, allow_pickle=False) as file:
            if "x" not in file.files:
                raise DataError(f"{path} has the arrays {', '.join(file.files) or '(none)'}; samples are the array x")
            x = torch.from_numpy(file["x"])
    except (OSError, ValueError, TypeError, EOFError, AttributeError, BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {error}") from None
    if tuple(x.shape[1:]) != info.shape:
        raise DataError(f"{path} has samples of shape {tuple(x.shape[1:])}, {info.name} has shape {info.shape}")
    return in_data_units(x, data, units, str(path))
