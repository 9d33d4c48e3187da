"""The values shown in the pictures of ``scoresde plot``, computed from models, data and SDEs.

States are divided by their typical size at time t and drawn in data units,

    shown = decode(x_t / sqrt(alpha^2 + sigma^2)).                                                              (1)

The divisor is 1 if the SDE preserves the variance. For other SDEs, whose states may grow to a size of 50 or shrink to
0.7, the division makes it possible to draw all states on the same axes. The columns of a picture are equally spaced
between data and noise in r = sigma/(alpha + sigma), the time variable of the straight frame (:mod:`scoresde.sde.base`).
In this variable, states change about as fast near the data as near the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..core.condition import Condition
from ..core.errors import DataError, NumericalError
from ..core.files import read_lines, read_object
from ..core.limits import COUNT, FRAMES, SEED, checked
from ..core.noise import Noise
from ..core.optional import optional
from ..core.registry import build
from ..core.shapes import expand, flat
from ..core.tables import PARAMETRIZATIONS
from ..data import DataInfo
from ..data.rows import Stored
from ..objective.times import Setting, make_times
from ..objective.weighting import make_weighting
from ..plot.schedules import Schedule
from ..run.config import TrainConfig
from ..run.run import Run
from ..sde.base import SDE
from ..sde.grids import make_grid, snap
from ..sde.marginal import forward_step
from ..solvers import Solver
from ..solvers.trajectory import Trajectory
from ..train.levels import edges_of

__all__ = [
    "Dissolved", "LossByNoise", "Paths", "Undone", "column_labels", "dissolve", "even_times", "frames_between",
    "loss_by_noise", "paths", "projection", "schedules_of", "shown", "size_note", "training_log_snr", "undo",
    "write_reverse",
]  # fmt: skip

POINTS = 513  # number of points on each curve of a schedule
STEPS = 250  # number of steps in the histogram of a solver's steps
DRAWS = 100_000  # number of random training times


@dataclass(frozen=True, eq=False)
class LossByNoise:
    """The loss by noise level at several times of a training run.

    Attributes:
        edges: The ends of the ten intervals, as ascending log-SNRs, ``(11,)``.
        steps: The training step of each of the T times: that of the validation, or the last one of a part of the run.
        losses: The loss in each interval at each time, ``(T, 10)``. It is NaN where there were no rows.
        validation: Whether the losses are those of the validation rows, and not of training.
    """

    edges: Tensor
    steps: tuple[int, ...]
    losses: Tensor
    validation: bool

    @property
    def labels(self) -> list[str]:
        """A label for each time."""
        return [f"{'' if self.validation else 'to '}step {step:,}" for step in self.steps]


def loss_by_noise(run: Run, times: int = 5) -> LossByNoise:
    """Read the losses by noise level that training has recorded in the folder of a run.

    If the run was validated, they are the validation losses at several steps, from the first to the last validation.
    Otherwise, they are means over the training losses in several parts of the run.

    Args:
        run: The run.
        times: Maximum number of times.

    Raises:
        DataError: If there are no such records, because the run was trained before they existed.
    """
    lines = [] if run.folder is None else read_lines(run.folder / "metrics.jsonl")
    lines = [line for line in lines if "loss_by_noise" in line]
    if not lines and run.folder is not None and (averaged := read_object(run.folder / "config.json").get("averaged")):
        raise DataError(
            f"{run.folder} is an average of the weights of {averaged['from']}, so it has no records of its own; plot "
            "that run"
        )
    if not lines:
        raise DataError(
            f"{run.folder or 'the run'} has no losses by noise level, because it was trained before they were "
            "recorded; train it for more steps, or train another run"
        )
    looks = [line for line in lines if "validation_by_noise" in line]
    groups = [[line] for line in looks]
    if looks:
        groups = [groups[i] for i in _spread(len(groups), times)]
    else:
        ends = [0, *(i + 1 for i in _spread(len(lines), times + 1)[1:])]
        groups = [lines[a:b] for a, b in pairwise(ends)] if len(lines) > 1 else [lines]
    name, count = ("validation_by_noise", "validation_rows_by_noise") if looks else ("loss_by_noise", "rows_by_noise")
    losses = []
    for group in groups:
        counts = np.array([line[count] for line in group], dtype=np.float64)
        means = np.array([[0.0 if mean is None else mean for mean in line[name]] for line in group])
        with np.errstate(invalid="ignore"):
            losses.append((counts * means).sum(0) / counts.sum(0))
    steps = tuple(int(group[-1]["step"]) for group in groups)
    return LossByNoise(edges_of(run.base.domain), steps, torch.from_numpy(np.stack(losses)), bool(looks))


def _spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers from 0 to ``count - 1``, with both ends, and closest at the start."""
    return sorted({round(number) - 1 for number in np.geomspace(1, count, min(most, count)).tolist()})


def shown(sde: SDE, codec: Codec, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
    """Convert states ``(T, N, *event)`` at times ``(T,)`` to the plot units of equation 1, in float64.

    ``condition`` contains the conditions of the N rows.
    """
    alpha, sigma = sde.coefficients(t.double())
    scaled = x.double() / _over(torch.hypot(alpha, sigma), x.double())
    return torch.stack([codec.continuous.to_data(states, condition) for states in scaled])


def _over(table: Tensor, x: Tensor) -> Tensor:
    """Append axes to coefficients at T times, so that they multiply states ``x: (T, N, *event)``."""
    return expand(table[:, None] if table.ndim > 1 else table, x)


def even_times(sde: SDE, count: int, start: float, end: float) -> Tensor:
    """Return a float64 tensor of ``count`` times from ``start`` to ``end``, equally spaced in sigma/(alpha + sigma)."""
    first, last = sde.ratio(torch.tensor([start, end], dtype=torch.float64)).tolist()
    t = sde.t_of_ratio(torch.linspace(first, last, count, dtype=torch.float64))
    t[0], t[-1] = start, end
    return t


def column_labels(t: Tensor) -> list[str]:
    """Return a label such as ``t = 0.25`` for each time in the tensor ``t``."""
    return [f"t = {s:.2f}" if s >= 0.01 else f"t = {s:.1g}" for s in t.tolist()]


def size_note(sde: SDE, t: Tensor) -> str:
    """Return a sentence about the scaling in equation 1, for the caption of a picture.

    The result is an empty string if the scaling has no effect at any time in the tensor ``t``.
    """
    same = bool(((torch.hypot(*sde.coefficients(t.double())) - 1).abs() < 0.01).all())
    return "" if same else r" States are divided by $(\alpha_t^2 + \sigma_t^2)^{1/2}$."


def _finite(*states: Tensor) -> None:
    """Reject states ``(T, n, *event)`` that contain non-finite values, which cannot be drawn."""
    bad = max(int((~torch.isfinite(x)).transpose(0, 1).flatten(1).any(1).sum()) for x in states)
    if bad:
        raise NumericalError(
            f"the picture cannot be drawn because it contains {bad} sample{'s' * (bad > 1)} with values that are not "
            "finite; train longer, or try another solver"
        )


# ---------------------------------------------------------------------------------------------------------- schedule


def schedules_of(name: str, sde: SDE, seed: int = 0) -> list[Schedule]:
    """Compute the curves that :func:`scoresde.plot.schedules` draws for an SDE.

    If alpha and sigma differ between coordinates, the result has an entry for each of three coordinates: those with the
    highest, the median and the lowest log-SNR in the middle of the path. Otherwise, it has one entry.
    """
    whole = _schedule(name, sde, seed)
    if not sde.coords:
        return [whole]
    alpha, sigma, beta, g2 = (torch.as_tensor(c).flatten(1) for c in (whole.alpha, whole.sigma, whole.beta, whole.g2))
    order = (alpha / (alpha + sigma))[POINTS // 2].argsort(descending=True).tolist()
    curves = []
    for i in dict.fromkeys((order[0], order[len(order) // 2], order[-1])):
        place = tuple(int(k) for k in np.unravel_index(i, sde.coords))
        columns = {"alpha": alpha[:, i], "sigma": sigma[:, i], "beta": beta[:, i], "g2": g2[:, i]}
        log_snr = 2 * (alpha[:, i].log() - sigma[:, i].log())
        curves.append(replace(whole, name=f"{name} {place}", log_snr=log_snr, **columns))
    return curves


def _schedule(name: str, sde: SDE, seed: int) -> Schedule:
    low, high = sde.times("train")
    # The times grow quadratically, because the noise level changes fastest near the data.
    t = low + (high - low) * torch.linspace(0, 1, POINTS, dtype=torch.float64).square()
    t[-1] = high
    alpha, sigma = sde.coefficients(t)
    start, end = reversed(sde.times("sample"))
    nodes = sde.log_snr(make_grid("auto", sde, STEPS, start, end))
    beta = -2 * sde.drift_rate(t)
    training = training_log_snr(sde, DRAWS, seed)
    return Schedule(name, t, alpha, sigma, sde.log_snr(t), beta, sde.diffusion_squared(t), nodes, training)


@checked(count=COUNT, seed=SEED)
def training_log_snr(sde: SDE, count: int, seed: int = 0) -> Tensor:
    """Return the log-SNR at ``count`` random times, drawn as in training with the default settings for ``sde``."""
    info = DataInfo("points", "points", "vector", (2,), -1.0, 1.0, None, (), 2, 1)
    config = TrainConfig(sde=sde, space=sde.stated_in or "none").resolved(info)
    parametrization = build(config.predict, PARAMETRIZATIONS, "prediction", config.predict_options, typed=True)
    weighting = make_weighting(config.weighting, config.weighting_options, True)
    low, high = sde.times("train")
    low, high = max(low, parametrization.legal_t_min(sde)), min(high, parametrization.legal_t_max(sde))
    domain = Setting(sde, low, high, parametrization, weighting)
    times = make_times(config.t_sampler, config.t_sampler_options, domain, True)
    return sde.log_snr(snap(times.draw(count, torch.Generator().manual_seed(seed))[0], sde.nodes))


# ----------------------------------------------------------------------------------------------------------- forward


@dataclass(frozen=True)
class Dissolved:
    """Data turning into noise, computed in two ways that give the same distribution at each time.

    Attributes:
        t: Times, float64 ``(T,)``.
        jump: The states ``x_t = alpha x_0 + sigma eps``, with the same noise eps at all times, ``(T, N, *event)`` in
            model units.
        chain: The states ``x_t = A x_s + S z``, computed from one time s to the next time t with new noise z at each
            step, ``(T, N, *event)`` in model units. The coefficients A and S follow from the SDE.
        spread: Root mean square of ``(x_t - alpha x_0) / sigma`` over the N samples and all their elements, ``(2, T)``.
            Row 0 is for ``jump``, and row 1 is for ``chain``. Apart from sampling errors, all values are 1.
    """

    t: Tensor
    jump: Tensor
    chain: Tensor
    spread: Tensor


def dissolve(sde: SDE, x0: Tensor, t: Sequence[float] | Tensor, noise: Noise) -> Dissolved:
    """Turn data into noise in two ways: directly for each time, and step by step from one time to the next.

    Args:
        sde: The SDE.
        x0: Data in model units, ``(N, *event)``.
        t: Increasing times, ``(T,)``.
        noise: The random numbers for the N samples.
    """
    times, shape = torch.as_tensor(t, dtype=torch.float64), tuple(x0.shape[1:])
    eps = noise.normal(shape, 0, "prior", x0.dtype)
    jump = torch.stack([sde.perturb(x0, s, eps) for s in times])
    states = [jump[0]]
    (alpha, sigma), draws = sde.coefficients(times), []
    for i, (s, u) in enumerate(pairwise(times)):
        a, variance = forward_step(sde, u, s)
        draws.append(noise.normal(shape, i, "solver", x0.dtype))
        states.append(expand(a, x0) * states[-1] + expand(variance.sqrt(), x0) * draws[-1])
    chain = torch.stack(states)
    residuals = [(x - _over(alpha, x) * x0) / _over(sigma, x) for x in (jump, chain)]
    return Dissolved(times, jump, chain, torch.stack([flat(r).square().mean(1).sqrt() for r in residuals]))


# ----------------------------------------------------------------------------------------------------------- reverse


@dataclass(frozen=True)
class Undone:
    """Trajectories of samples from noise to data, with the model's estimates of the data at each time.

    Attributes:
        t: Decreasing times, float64 ``(T,)``.
        x: The states, ``(T, n, *event)``, in the plot units of equation 1.
        x0: The model's estimates of the data, ``x0_hat(x_t, t)``, ``(T, n, *event)`` in data units.
        nfe: Mean number of model evaluations per sample, excluding those for the estimates.
        ok: Which samples succeeded, bool ``(n,)``. The state of a sample that failed stays where it was last.
    """

    t: Tensor
    x: Tensor
    x0: Tensor
    nfe: float
    ok: Tensor


@checked(n=COUNT, count=COUNT, seed=SEED)
def undo(run: Run, n: int, solver: Solver, count: int, *, seed: int = 0) -> Undone:
    """Draw ``n`` samples, and compute their states and the model's estimates of the data at ``count`` times."""
    run = run.masked(n=n)
    samples = run.sample(n, solver, seed=seed, denoise=False, batch=n, record=True)
    model, trajectory = run.model, samples.solution.trajectory
    assert trajectory is not None
    low, high = model.domain.interval("sample")
    t = even_times(model.domain.sde, count, high, low)
    states = trajectory.at(t)
    with torch.no_grad():
        x0 = torch.stack([model(x.to(run.device), s.to(run.device)).x0.cpu() for x, s in zip(states, t, strict=True)])
    guessed = torch.stack([run.codec.continuous.to_data(one, run.condition) for one in x0.double()])
    drawn, nfe = (
        shown(model.domain.sde, run.codec, states, t, run.condition),
        float(samples.solution.nfe.double().mean()),
    )
    return Undone(t, drawn, guessed, nfe, samples.solution.ok.cpu())


def frames_between(columns: int, frames: int) -> int:
    """Return the number of time points to compute for a picture with ``columns`` columns.

    This is the smallest number, ``frames`` or more, for which the columns can be spaced evenly from the first time
    point to the last.

    >>> frames_between(9, 40), frames_between(9, 2)
    (41, 9)
    """
    return (columns - 1) * max(1, math.ceil((frames - 1) / (columns - 1))) + 1


def write_reverse(run: Run, found: Undone, file: Path, columns: int, gif: bool = True) -> list[Path]:
    """Write a picture of ``columns`` time points to ``file`` and, if ``gif`` is set, a GIF of all time points.

    The GIF is written to the same folder. The number of time points must come from :func:`frames_between`. If the GIF
    cannot be drawn, a warning is issued.

    Returns:
        The paths to the files.

    Raises:
        NumericalError: If a state or an estimate of the data is not finite.
    """
    from ..plot import animate_pair, save_figure, save_gif, strips

    _finite(found.x, found.x0)
    info, state, data = run.info, r"$x_t$", r"$\hat{x}_0(x_t, t)$"
    some = slice(None, None, (len(found.t) - 1) // (columns - 1))
    blocks = {f"the state {state}": found.x[some], f"the model's estimate of the data, {data}": found.x0[some]}
    figure = strips(
        blocks, column_labels(found.t[some]), info.kind, info.low, info.high,
        coloured_by=found.x0[-1] if info.kind == "vector" else None,
        note=size_note(run.model.domain.sde, found.t).strip() or None,
    )  # fmt: skip
    save_figure(file, figure)
    if not gif:
        return [file]
    titles = [(f"{state},  {label}", data) for label in column_labels(found.t)]
    files, moving = [file], file.with_suffix(".gif")
    with optional(str(moving), f"the picture is {file}"):
        save_gif(moving, animate_pair(found.x, found.x0, titles, info.kind, info.low, info.high))
        files.append(moving)
    return files


# ------------------------------------------------------------------------------------------------------ trajectories


def projection(run: Run, train: Tensor | Stored) -> tuple[Tensor, str]:
    """Return the direction onto which trajectories are projected, and the name of the direction.

    The direction is a float64 unit vector ``(D,)`` in model units. If D is at most 3, it is the first coordinate axis.
    Otherwise, it is the direction in which the training data ``train``, ``(M, *event)`` in data units, vary most. If
    the path is stated in a space, it is the first coordinate of that space.
    """
    dims = math.prod(run.codec.model_shape(run.info.shape))
    if dims <= 3 or run.codec.space.parts:
        return torch.eye(dims, dtype=torch.float64)[0], "first coordinate"
    rows = flat(run.codec.continuous.to_model(train[:4000].double()))
    return torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[0], "first principal axis"


@dataclass(frozen=True)
class Paths:
    """Trajectories of the probability flow and of the reverse SDE from the same noise, projected onto one direction.

    Attributes:
        t: Decreasing times, float64 ``(T,)``.
        flow: Projections of x_t / sqrt(alpha^2 + sigma^2) for the probability flow, ``(T, n)``, in model units.
        sde: The same projections for the reverse SDE, ``(T, n)``. Column i starts from the same noise as column i of
            ``flow``.
    """

    t: Tensor
    flow: Tensor
    sde: Tensor


@checked(n=COUNT, seed=SEED, frames=FRAMES)
def paths(run: Run, n: int, flow: Solver, noisy: Solver, axis: Tensor, *, seed: int = 0, frames: int = 240) -> Paths:
    """Draw ``n`` samples with each of two solvers, and project their trajectories onto the direction ``axis``."""
    low, high = run.model.domain.interval("sample")
    times = make_grid("auto", run.model.domain.sde, frames - 1, high, low)
    alpha, sigma = run.model.domain.sde.coefficients(times)

    def follow(trajectory: Trajectory | None) -> Tensor:
        assert trajectory is not None
        states = trajectory.at(times).double()
        return (states / _over(torch.hypot(alpha, sigma), states)).flatten(2) @ axis

    both = [run.sample(n, s, seed=seed, denoise=False, record=True).solution.trajectory for s in (flow, noisy)]
    found = Paths(times, follow(both[0]), follow(both[1]))
    _finite(found.flow, found.sde)
    return found
