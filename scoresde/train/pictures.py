"""The pictures that training draws: a few samples at several steps, and the curve of the loss."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import NumericalError
from ..core.files import read_lines
from ..data import DataInfo, Dataset
from ..run.run import Run
from ..solvers import RungeKutta

__all__ = ["drawn", "evaluations", "few_samples", "loss_figure", "sample_sheet", "seconds", "sheet_path", "solver_of"]


def evaluations(info: DataInfo, nodes: Tensor | None) -> int:
    """Return the number of evaluations that one picture takes, counting each sample on its own."""
    return _count(info) * _calls(solver_of(nodes))


def _count(info: DataInfo) -> int:
    n = {"image": 36, "volume": 4, "signal": 8, "vector": 1024}[info.kind]
    return 9 if info.kind == "image" and info.dims > 4096 else n  # a few large images fill the figure, and each is slow


def solver_of(nodes: Tensor | None, steps: int = 16) -> RungeKutta:
    """Return the solver of the pictures, with fewer steps for a chain with few ``nodes: (N,)``."""
    return RungeKutta(steps=steps if nodes is None else min(steps, len(nodes) - 1))


def _calls(solver: RungeKutta) -> int:
    return solver.steps * solver.evaluations + 1  # the last one removes the noise that is left


def few_samples(run: Run, data: Dataset) -> Tensor:
    """Draw a few samples in data units, always from the same noise and under the same conditions.

    Raises:
        NumericalError: If some of the samples are not finite.
    """
    return drawn(run, data, _count(run.info), solver_of(run.base.domain.nodes))


def drawn(run: Run, data: Dataset, n: int, solver: RungeKutta) -> Tensor:
    """Draw ``n`` samples in data units, ``(n, *event)``, under the conditions of held-out rows if there are any.

    Raises:
        NumericalError: If some of the samples are not finite.
    """
    x = _drawn(run, data, n, solver)
    if not bool(torch.isfinite(x).all()):
        raise NumericalError("some samples are not finite")
    return x


def _drawn(run: Run, data: Dataset, n: int, solver: RungeKutta) -> Tensor:
    if run.config is not None and run.config.sources.rich:
        bound = run.given_rows(data, torch.arange(n) % len(data.test))
    else:
        bound = run.given(run.example_labels(n))
    return replace(bound, told=True).sample(n, solver).x


def sheet_path(folder: Path, step: int) -> Path:
    """Return the file of the figure of samples at a step, in a run folder."""
    return folder / "samples" / f"step-{step:06d}.png"


def sample_sheet(path: Path, run: Run, data: Dataset) -> Tensor:
    """Save a figure of a few samples in a file, and return the samples."""
    x = few_samples(run, data)
    _save(path, x, run.info, data)
    return x


def _save(path: Path, x: Tensor, info: DataInfo, data: Dataset) -> None:
    from ..plot import samples_figure, save_figure, save_image_grid

    if info.kind in ("image", "volume"):
        save_image_grid(path, x.numpy(), info.low, info.high)
    else:
        behind = data.filled[: max(8, len(x))]
        save_figure(path, samples_figure(x, info.kind, info.low, info.high, behind, info.names))


def seconds(run: Run, data: Dataset) -> float:
    """Measure how long one picture takes, in seconds. The samples are drawn in two steps of the solver, and scaled."""
    full = solver_of(run.base.domain.nodes)
    short = solver_of(run.base.domain.nodes, 2)
    began = time.monotonic()
    x = _drawn(run, data, _count(run.info), short)
    took = (time.monotonic() - began) * _calls(full) / _calls(short)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first.png", "second.png"):  # the first picture also imports the library that draws it
            began = time.monotonic()
            _save(Path(folder) / name, x, run.info, data)
    return took + time.monotonic() - began


def loss_figure(folder: Path, best: int | None) -> Path | None:
    """Draw the training and validation losses of a run, mark the step ``best``, if there is one, and return the file.

    Fewer than two records are too few for a figure.
    """
    import numpy as np

    from ..plot import loss_curve, save_figure

    lines = read_lines(folder / "metrics.jsonl")
    if len(lines) < 2:
        return None
    lines = [line for line in lines if isinstance(line.get("loss"), float)]
    steps, losses = (np.array([line[key] for line in lines], dtype=float) for key in ("step", "loss"))
    looks = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    validation = None if not looks else (np.array([s for s, _ in looks]), np.array([v for _, v in looks]))
    path = folder / "plots" / "loss.png"
    save_figure(path, loss_curve(steps, losses, validation, best))
    return path
