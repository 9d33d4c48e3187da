"""The data of a page for pictures, signals and vectors, as recorded frames.

A page of such a run has the figures 1, 2, 6 and 7. The states are recorded as they are drawn, that is, divided by their
typical size and in data units (:mod:`scoresde.study.figures`), so every space and every path can be shown. Pictures are
bytes, signals are numbers, and vectors are projected onto the two directions in which the data vary most. Large
pictures are drawn smaller, long signals with fewer points, and both with fewer samples, so that the page stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import NumericalError, UsageError
from ..core.noise import Noise
from ..core.shapes import flat
from ..data import Dataset
from ..run.run import Run
from ..solvers import RungeKutta
from ..study.figures import dissolve, shown, undo
from .data import Numbers, Packed, pack_bytes, pack_steps
from .frame import Frame, even
from .views import View, pack_paths, shares_of_data, solver_results, stacked, views_of

__all__ = ["frame_parts"]

SIDE, LENGTH = 64, 256  # the largest picture and the longest signal that are drawn as they are
NUMBERS = 240_000  # numbers of one recorded block: frames x samples x numbers of a sample
PROJECTED = 300  # vectors that are drawn
STEPS = 24  # Heun steps of the recorded paths


@dataclass(frozen=True)
class Drawing:
    """How samples in data units are drawn.

    Attributes:
        kind: ``image``, ``signal`` or ``points``.
        reduced: A function from samples ``(n, *event)`` in data units, float64, to what is drawn.
        pack: A function that packs what is drawn.
        samples, frames: Number of samples and of frames that are recorded.
        window: The limits of both axes, for signals and points.
        told: A sentence about what was left out, or an empty string.
    """

    kind: str
    reduced: Callable[[Tensor], Tensor]
    pack: Callable[[Numbers], Packed]
    samples: int
    frames: int
    window: tuple[tuple[float, float], tuple[float, float]]
    told: str

    def block(self, states: Tensor) -> Packed:
        """Pack states ``(T, n, *event)`` in data units."""
        count, n = states.shape[:2]
        drawn = self.reduced(states.flatten(0, 1).double())
        return self.pack(drawn.reshape(count, n, *drawn.shape[1:]).numpy())


def frame_parts(run: Run, data: Dataset, seed: int) -> dict[str, Any]:
    """Compute the data of a page, by part. The arguments are those of :func:`scoresde.page.plane.plane_parts`."""
    views = views_of(run)
    drawing = _drawing(run, data, len(views))
    frame = Frame.of(views[0].run)
    about = {
        "low": frame.low, "high": frame.high, "exact": False, "shown": drawing.told, "window": drawing.window,
        "between": 1,
        "views": [{"name": view.name, "label": view.label} for view in views],
    }  # fmt: skip
    each = max(2, drawing.samples // (1 + len(views) // 4))
    paths = pack_paths(run.model.domain.sde)
    return {
        "about": about | {"kind": drawing.kind},
        "forward": _forward(run, data, drawing, frame, seed),
        "paths": paths,
        "schedules": shares_of_data(paths),
        "reverse": [_reverse(view, drawing, each, seed) for view in views],
        "solvers": _solvers(run, data, drawing, seed),
    }


def _drawing(run: Run, data: Dataset, views: int) -> Drawing:
    """Choose how the samples of a run are drawn."""
    info = run.info
    if info.kind == "vector":
        return _projected(data)
    shape = info.shape
    if info.kind == "signal":
        stride = math.ceil(shape[-1] / LENGTH)
        rows = torch.as_tensor(data.test[:200]).double()
        low, high = float(rows.min()), float(rows.max())
        spare = 0.1 * (high - low) or 1.0
        size = shape[0] * math.ceil(shape[-1] / stride)
        told = f"Every {stride}th point of a signal is drawn." if stride > 1 else ""
        samples, frames = _counts(size, views)
        return Drawing(
            "signal", lambda x: x[..., ::stride], lambda v: pack_steps(v, (high - low) / 500), samples, frames,
            ((0.0, 1.0), (low - spare, high + spare)), told,
        )  # fmt: skip
    pool = math.ceil(max(shape[-2:]) / SIDE)
    width = (info.high - info.low) or 1.0

    def reduced(x: Tensor) -> Tensor:
        x = x[:, :, x.shape[2] // 2] if x.ndim == 5 else x  # the middle slice of a volume
        x = (x - info.low) / width
        x = x if x.shape[1] in (1, 3) else x[:, :1]
        return torch.nn.functional.avg_pool2d(x, pool, ceil_mode=True) if pool > 1 else x

    notes = [f"Pictures are drawn at 1/{pool} of their size."] if pool > 1 else []
    notes += ["The middle slice of each volume is drawn."] if info.kind == "volume" else []
    notes += [] if shape[0] in (1, 3) else ["The first channel is drawn."]
    size = reduced(torch.zeros(1, *shape, dtype=torch.float64)).numel()
    samples, frames = _counts(size, views)
    return Drawing("image", reduced, pack_bytes, samples, frames, ((0, 1), (0, 1)), " ".join(notes))


def _counts(size: int, views: int) -> tuple[int, int]:
    """Return the numbers of samples and of frames to record for samples of ``size`` numbers."""
    numbers = NUMBERS // (1 + views // 4)
    for samples, frames in ((12, 33), (12, 25), (8, 25), (6, 21), (4, 17), (3, 13)):
        if samples * frames * size <= numbers:
            return samples, frames
    return 2, 11


def _projected(data: Dataset) -> Drawing:
    """Draw vectors in the plane of their first two principal axes, or numbers one below the other."""
    rows = flat(torch.as_tensor(data.train[:4000]).double())
    middle, scale = rows.mean(0), rows.std(0).clamp(min=1e-12)
    if rows.shape[1] == 1:

        def reduced(x: Tensor) -> Tensor:
            place = torch.linspace(-1, 1, PROJECTED, dtype=torch.float64)
            return torch.stack([x[:, 0], place.repeat(math.ceil(len(x) / PROJECTED))[: len(x)]], 1)

        told = "The height of a point has no meaning."
    else:
        axes = torch.linalg.svd((rows - middle) / scale, full_matrices=False).Vh[:2]

        def reduced(x: Tensor) -> Tensor:
            found: Tensor = (flat(x) - middle) / scale @ axes.T
            return found

        told = "Vectors are drawn in the plane of their first two principal axes, in standard deviations."
    drawn = reduced(rows[:PROJECTED])
    low, high = drawn.amin(0), drawn.amax(0)
    spare = 0.15 * (high - low) + 1e-9
    limits = torch.stack([low - spare, high + spare], 1).tolist()
    window = ((limits[0][0], limits[0][1]), (limits[1][0], limits[1][1]))
    step = float((high - low).max()) / 1000 or 1.0
    return Drawing("points", reduced, lambda v: pack_steps(v, step), PROJECTED, 25, window, told)


def _forward(run: Run, data: Dataset, drawing: Drawing, frame: Frame, seed: int) -> dict[str, Any]:
    """Record data turning into noise, with the same noise in all frames."""
    count = min(drawing.samples, len(data.test))
    index = torch.arange(count)
    known = run.of_rows(data, index)
    noise = Noise.of(count, seed)
    u = noise.uniform(run.info.shape, stream="dequantise", dtype=torch.float64)
    x0 = known.codec.to_model(torch.as_tensor(data.test[index]).double(), known.condition, u)
    log_snr = even(frame.high, frame.low, drawing.frames)
    t = frame.times(log_snr)
    sde = run.model.domain.sde
    found = shown(sde, run.codec, dissolve(sde, x0, t, noise).jump, t, known.condition)
    return {"log_snr": log_snr.tolist(), "frames": drawing.block(found)}


def _reverse(view: View, drawing: Drawing, count: int, seed: int) -> dict[str, Any]:
    """Record samples on their way along the flow, and the model's estimates of the data in them."""
    try:
        found = undo(view.run.typical(count, seed) if view.label is None else view.run, count,
                     RungeKutta(steps=STEPS, method="heun"), drawing.frames, seed=seed)  # fmt: skip
    except (NumericalError, UsageError) as error:
        return {"note": str(error)}
    good = found.ok & torch.isfinite(found.x).transpose(0, 1).flatten(1).all(1)
    if not bool(good.any()):
        return {"note": "the model returns numbers that are not finite for every sample"}
    log_snr = view.run.model.domain.sde.log_snr(found.t).clamp(-12, 12)
    return {
        "note": "", "failed": int((~good).sum()), "log_snr": log_snr.tolist(),
        "states": drawing.block(found.x[:, good]), "estimates": drawing.block(found.x0[:, good]),
    }  # fmt: skip


def _solvers(run: Run, data: Dataset, drawing: Drawing, seed: int) -> dict[str, Any]:
    few = drawing.samples if drawing.kind == "points" else min(drawing.samples, 9)
    found = solver_results(run, data, max(few, 64 if run.info.dims <= 256 else 16), few, seed)
    told = found.to_json()
    if found.ends:
        told["ends"] = drawing.block(torch.from_numpy(stacked(found.ends)))
    return told
