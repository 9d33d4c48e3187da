"""The pictures that training draws: a few samples at several steps, and the curve of the loss."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import NumericalError
from ..core.files import read_lines
from ..data import Dataset
from ..run.run import Run
from ..solvers import RungeKutta

__all__ = ["few_samples", "loss_figure", "previews", "sample_sheet"]


def previews(total: int, every: int = 0) -> set[int]:
    """Return the steps after which samples are plotted: all multiples of ``every``, and the last step, ``total``.

    If ``every`` is 0, samples are plotted after 1, 2, 5, 10, 20, 50 and 100 % of the ``total`` steps instead.
    """
    if every:
        return {*range(every, total + 1, every), total}
    return {max(1, math.ceil(total * percent / 100)) for percent in (1, 2, 5, 10, 20, 50, 100)}


def few_samples(run: Run, data: Dataset) -> Tensor:
    """Draw a few samples in data units, always from the same noise and under the same conditions."""
    info, nodes = run.info, run.base.domain.nodes
    n = {"image": 36, "volume": 4, "signal": 8, "vector": 1024}[info.kind]
    n = 9 if info.kind == "image" and info.dims > 4096 else n  # a few large images fill the figure, and each is slow
    solver = RungeKutta(steps=16 if nodes is None else min(16, len(nodes) - 1))
    if run.config is not None and run.config.sources.rich:
        bound = run.given_rows(data, torch.arange(n) % len(data.test))
    else:
        bound = run.given(run.example_labels(n))
    x = replace(bound, told=True).sample(n, solver).x
    if not bool(torch.isfinite(x).all()):
        raise NumericalError("some samples are not finite")
    return x


def sample_sheet(folder: Path, run: Run, data: Dataset) -> Tensor:
    """Save a figure of a few samples, and return the samples."""
    from ..plot import samples_figure, save_figure, save_image_grid

    info, path, x = run.info, folder / f"step-{run.step:06d}.png", few_samples(run, data)
    if info.kind in ("image", "volume"):
        save_image_grid(path, x.numpy(), info.low, info.high)
    else:
        behind = data.filled[: max(8, len(x))]
        save_figure(path, samples_figure(x, info.kind, info.low, info.high, behind, info.names))
    return x


def loss_figure(folder: Path, best: int | None) -> None:
    import numpy as np

    from ..plot import loss_curve, save_figure

    lines = read_lines(folder / "metrics.jsonl")
    if len(lines) > 1:
        lines = [line for line in lines if isinstance(line.get("loss"), float)]
        steps, losses = (np.array([line[key] for line in lines], dtype=float) for key in ("step", "loss"))
        looks = [(line["step"], line["validation"]) for line in lines if "validation" in line]
        validation = None if not looks else (np.array([s for s, _ in looks]), np.array([v for _, v in looks]))
        save_figure(folder / "plots" / "loss.png", loss_curve(steps, losses, validation, best))
