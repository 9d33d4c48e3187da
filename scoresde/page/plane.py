"""The data of the eight figures for a model of points in the plane.

Everything is in the frame of :mod:`.frame`, in model units. The page converts to data units for its axes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Affine, as_affine
from ..core.errors import NumericalError, UsageError
from ..core.noise import Noise
from ..data import Dataset
from ..likelihood import Likelihood
from ..model.empirical import TrainingSet
from ..model.mixture import GaussianMixture
from ..run.run import Run
from ..solvers import RungeKutta
from ..study.compass import known_mixture, measure
from ..study.figures import undo
from .charts import Chart, chart, curve, even_ticks
from .data import Numbers, Packed, pack_bytes, pack_floats, pack_steps, unpack
from .frame import Frame
from .network import pack_network
from .table import Table, make_table, table_error
from .views import View, pack_paths, shares_of_data, solver_results, stacked, views_of

__all__ = ["figure_eight", "in_the_plane", "plane_parts"]

POINTS = 1000  # points of the forward process
PATHS, FRAMES = 384, 41  # recorded paths of the reverse process, in all, and the states of each
BETWEEN = 5  # steps of the slider from one recorded state to the next
COLOURS = 6
STATE = 2.0**-9  # step of recorded states in model units, less than a pixel
DRAWN, SHOWN = 512, 256  # samples with which the solvers are compared, and those that are drawn
COMPARED = {
    True: 256,
    False: 64,
}  # held-out points of the compass, by whether the exact score is that of a few Gaussians
GRID = {True: 49, False: 41}  # nodes of the density on each side, by whether the model is exact
ERRORS = (-4, 1)  # limits of the axis of relative errors, as powers of ten
MEMORISED = 300  # training points of the memorising model, beside which an exact page puts the truth

# Nodes of each table in z and in the log-SNR, by the largest number of views.
SIZES = ((1, 65, 33), (3, 49, 25), (99, 33, 25))


def in_the_plane(run: Run) -> bool:
    """Return whether all eight figures can be drawn: points in the plane, with the same noise in both coordinates."""
    units = isinstance(run.codec.continuous, Affine) and not run.codec.space.parts
    return tuple(run.info.shape) == (2,) and units and not run.model.domain.sde.coords


def plane_parts(run: Run, data: Dataset, seed: int, weights: bool) -> dict[str, Any]:
    """Compute the data of a page, by part.

    Args:
        run: A run of points in the plane, or an exact model as a run.
        data: The data of the run.
        seed: Seed for the noise.
        weights: Whether to include the weights of the network.
    """
    views = views_of(run)
    frame = Frame.of(views[0].run)
    sets, half = _sets(run, data, seed)
    own = sets[-1]
    x0, eps = (torch.from_numpy(unpack(own[name])).T for name in ("x0", "eps"))
    size, levels = next((size, levels) for most, size, levels in SIZES if len(views) <= most)
    tables = [make_table(Frame.of(view.run), half, size, levels) for view in views]
    error = table_error(tables[0], frame, x0, eps)
    exact = run.base if isinstance(run.base, GaussianMixture) else None
    mixture = exact or known_mixture(run.info, run.codec, run.model.domain.sde)
    units = as_affine(run.codec, "a page")
    about = {
        "low": frame.low, "high": frame.high, "half": half, "exact": exact is not None,
        "shift": units.shift.expand(2).tolist(), "scale": units.scale.expand(2).tolist(),
        "names": list(run.info.names) if len(run.info.names) == 2 else ["x₁", "x₂"],
        "views": [{"name": view.name, "label": view.label} for view in views], "between": BETWEEN,
        "table_error": {"rms": _short(error.rms), "most": _short(error.most), "count": error.count},
        "holes": sum(table.holes for table in tables), "nodes": sum(table.nodes for table in tables),
    }  # fmt: skip
    paths = pack_paths(run.model.domain.sde)
    return {
        "about": about,
        "forward": sets,
        "paths": paths,
        "schedules": shares_of_data(paths),
        "reverse": [_reverse(view, max(48, PATHS // len(views)), seed) for view in views],
        "table": [_table_json(table) for table in tables],
        "network": pack_network(frame) if weights and exact is None else None,
        "mixture": None if mixture is None else _mixture_json(mixture),
        "solvers": _solvers(run, data, seed),
        "density": _density(views[0].run, data, half),
        "compass": _compass(views[0].run, data, seed, exact),
    }


def figure_eight(count: int, noise: Noise) -> Tensor:
    """Return ``count`` points near a figure-8, float64 ``(count, 2)``, with a variance near 1 in each coordinate.

    The points go once around the curve, in order.
    """
    turn = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    curve = torch.stack([1.5 * turn.sin(), 1.4 * (2 * turn).sin()], 1)
    return curve + 0.06 * noise.normal((2,), 0, "dequantise", torch.float64)


def _sets(run: Run, data: Dataset, seed: int) -> tuple[list[dict[str, Any]], float]:
    """Return the sets of points of the forward process, and the half-width of the window that shows them."""
    kept = torch.arange(min(POINTS, len(data.test)))
    rows = run.codec.to_model(torch.as_tensor(data.test[kept]).double())
    noise = Noise.of(POINTS, seed)
    eps = noise.normal((2,), 0, "prior", torch.float64)
    eight = figure_eight(POINTS, noise)
    if data.test_labels is not None:
        colour = data.test_labels[kept] % COLOURS
    else:
        middle = rows - rows.mean(0)
        colour = ((torch.atan2(middle[:, 1], middle[:, 0]) / (2 * math.pi) % 1) * COLOURS).long().clamp(max=COLOURS - 1)
    around = torch.arange(POINTS) * COLOURS // POINTS
    furthest = float(torch.quantile(rows.abs().amax(1), 0.999))
    half = math.ceil(10 * max(3.4, 1.1 * furthest)) / 10
    sets = [("figure-8", eight, around), (run.info.name, rows, colour)]
    return [
        {
            "name": name, "x0": pack_steps(x.T.numpy(), STATE), "eps": pack_steps(eps[: len(x)].T.numpy(), STATE),
            "colour": pack_bytes(group.numpy() / 255),
        }
        for name, x, group in sets
    ], half  # fmt: skip


def _reverse(view: View, count: int, seed: int) -> dict[str, Any]:
    """Record paths of the probability flow, as states z of shape ``(2, paths, frames)`` from noise to data."""
    try:
        found = undo(view.run, count, RungeKutta(steps=64, method="heun"), FRAMES, seed=seed)
    except (NumericalError, UsageError) as error:
        return {"note": str(error)}
    z = view.run.codec.to_model(found.x.double()).transpose(0, 1)
    good = found.ok & torch.isfinite(z).flatten(1).all(1)
    if not bool(good.any()):
        return {"note": "the model returns numbers that are not finite for every sample"}
    log_snr = view.run.model.domain.sde.log_snr(found.t).clamp(-12, 12)
    states = pack_steps(z[good].permute(2, 0, 1).numpy(), STATE)
    return {"note": "", "failed": int((~good).sum()), "log_snr": log_snr.tolist(), "states": states}


def _table_json(table: Table) -> dict[str, Any]:
    return {"half": table.half, "low": table.low, "high": table.high, "values": table.packed}


def _mixture_json(mixture: GaussianMixture) -> dict[str, Any]:
    """Return an axis-parallel mixture in the plane as plain numbers: means, variances of the axes, and weights."""
    count = len(mixture.means)
    if mixture.covariances is None:
        assert mixture.stds is not None
        variances = mixture.stds.double().square()[:, None].expand(count, 2)
    else:
        variances = mixture.covariances.double().diagonal(dim1=1, dim2=2)
    weights = torch.full((count,), 1 / count, dtype=torch.float64) if mixture.weights is None else mixture.weights
    return {
        "means": mixture.means.double().tolist(), "variances": variances.tolist(), "weights": weights.tolist(),
    }  # fmt: skip


def _solvers(run: Run, data: Dataset, seed: int) -> dict[str, Any]:
    found = solver_results(run, data, DRAWN, SHOWN, seed)
    told = found.to_json()
    if found.ends:
        ends = run.codec.to_model(torch.from_numpy(stacked(found.ends)))
        told["ends"] = pack_steps(ends.permute(0, 2, 1).numpy(), STATE)
    return told


def _density(run: Run, data: Dataset, half: float) -> dict[str, Any]:
    """Compute log p and its error on a grid, as arrays ``(G, G)`` in nats per data unit.

    The numerical error is the change when the tolerance is ten times looser. The
    truth is the exact log density of the data, if it is known.
    """
    size = GRID[isinstance(run.base, GaussianMixture)]
    ticks = torch.linspace(-half, half, size, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).reshape(-1, 2)
    dtype = torch.float64 if isinstance(run.base, GaussianMixture) else run.dtype
    x = z.to(run.device, dtype)
    log_scale = as_affine(run.codec, "a page").log_scale((2,))
    try:
        fine, coarse = (
            Likelihood(rtol=rtol)(run.model, x, batch=len(x), check=False).log_prob.cpu().double() - log_scale
            for rtol in (1e-4, 1e-3)
        )
    except (NumericalError, UsageError) as error:
        return {"note": str(error)}
    known = torch.isfinite(fine) & torch.isfinite(coarse)
    nothing = torch.full_like(fine, torch.nan)
    holes = int((~known).sum())
    told = {
        "note": "", "holes": holes,
        "told": f"At {holes:,} of the {len(z):,} points of the map (orange) there is no finite log p." if holes else "",
        "log_prob": _nats(torch.where(known, fine, nothing), size),
        "change": pack_floats(torch.where(known, (fine - coarse).abs(), 0.0).clamp(max=9e3).reshape(size, size), True),
    }  # fmt: skip
    if data.log_density is not None:
        truth = data.log_density(run.codec.continuous.to_data(z))
        told["truth"] = _nats(torch.where(torch.isfinite(truth), truth.double(), nothing), size)
    return told


def _nats(values: Tensor, size: int) -> Packed:
    return pack_steps(values.clamp(min=-400).reshape(size, size).numpy(), 0.002)


def _compass(run: Run, data: Dataset, seed: int, exact: GaussianMixture | None) -> dict[str, Any]:
    """Compare the model's score with an exact score at each noise level (:mod:`scoresde.study.compass`).

    An exact model has no error. Its page shows the score of a few training points instead, that is, of a model that has
    memorised them.
    """
    asked = run
    if exact is not None:
        points = run.codec.to_model(torch.as_tensor(data.train[:MEMORISED]).double())
        asked = replace(run, base=TrainingSet(run.model.domain.sde, points))
    try:
        known = known_mixture(run.info, run.codec, run.model.domain.sde) is not None
        found = measure(asked, data, n=COMPARED[known], levels=21, seed=seed)
    except (NumericalError, UsageError) as error:
        return {"note": str(error)}
    curves: Numbers = torch.stack([found.cosine, found.error]).numpy()
    charts = _score_errors(found.log_snr.tolist(), curves)
    memorised = MEMORISED if exact is not None else 0
    return {"note": "", "against": found.against, "memorised": memorised, "charts": charts}


def _score_errors(log_snr: list[float], curves: Numbers) -> list[Chart]:
    """Describe the charts of the cosine and of the relative error, ``(2, levels, 3)``, over the log-SNR.

    Errors are drawn on a logarithmic axis. Those beyond its ends are drawn at the ends, and the title says so.
    """
    cosine, error = curves
    first, last = log_snr[0], log_snr[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log10(error)
    small, large = ERRORS
    cut = [f"{10**large}"] if (log > large).any() else []
    cut += [f"{10.0**small:g}"] if (log < small).any() else []
    title = "relative error" + (f" (cut at {' and '.join(cut)})" if cut else "")
    inner = [tick for tick in even_ticks(min(first, last), max(first, last), 5)
             if min(abs(tick[0] - first), abs(tick[0] - last)) > 1.8]  # fmt: skip
    named = [(value, f"log-SNR {text}" if text == "0" else text) for value, text in inner]
    ends = [*named, (first, "data"), (last, "noise")]
    lowest = float(np.nanmin(np.append(cosine, 0.0)))
    signs = [(value, text) for value, text in ((-1.0, "−1"), (0.0, "0"), (1.0, "1")) if value >= lowest]
    powers = [(-4.0, "10⁻⁴"), (-2.0, "0.01"), (0.0, "1")]

    def lines(values: Numbers, hue: int) -> list[dict[str, Any]]:
        outer = [curve(log_snr, values[:, q], hue, dash=2, width=1) for q in (0, 2)]
        return [*outer, curve(log_snr, values[:, 1], hue, width=2.5)]

    return [
        chart("cosine of the two scores", (first, last), (lowest, 1.03), lines(cosine, 0), ends, signs),
        chart(title, (first, last), ERRORS, lines(np.clip(log, *ERRORS), 1), ends, powers),
    ]


def _short(number: float) -> float | None:
    """Return the number with three digits, or ``None`` if it is NaN."""
    return None if math.isnan(number) else float(f"{number:.3g}")
