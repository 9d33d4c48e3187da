"""Rectified flow: straighten the trajectories of a trained model, so that a few solver steps suffice.

The flow of a model maps each noise vector z to a sample x. Reflow trains a second flow on such pairs (z, x). The
trajectories of the second flow are straighter, because the pairs are connected by trajectories of the first flow, which
do not cross (Liu et al. 2023, arXiv:2209.03003, sec. 2.2, thm. 3.6). On a straight trajectory, a single Euler step is
exact. Every probability path of this package is straight in the variables  y = x/(alpha + sigma)  and
r = sigma/(alpha + sigma)  (:mod:`scoresde.sde.base`), so reflow works for VP as well as for flow matching. The
straightness of a flow from (r_0, y_0) to (r_1, y_1) is measured by

    S = E int |dy/dr - (y_1 - y_0)/(r_1 - r_0)|^2 dr  /  E int |dy/dr|^2 dr,                                    (1)

which is S(Z) of Liu et al. (sec. 3.2) divided by the mean squared speed. S is 0 for straight trajectories and 1 for
trajectories that end where they began.

A rectified model is trained on coupled noise and data, so it does not provide a score.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import NumericalError, UsageError
from ..core.files import taken
from ..core.limits import COUNT, LR, SEED, STEPS, TRAINED, checked, enough_memory
from ..core.noise import Noise
from ..core.progress import Progress
from ..core.shapes import at, expand, sum_flat, time_dtype
from ..core.text import printable
from ..data import Dataset
from ..model.estimate import Denoiser
from ..objective.coupling import Pairs
from ..objective.times import TimeSampler
from ..objective.weighting import Weight
from ..ode.fixed import rule_step
from ..run.run import Run
from ..sde.check import check_scalar
from ..solvers import ProbabilityFlow, Solver
from ..solvers.flow import slope
from .loop import fit
from .prepare import prepared

__all__ = ["draw_pairs", "reflow", "straightness"]

_STREAM = 2**40  # sample index of the first pair, far from the indices of ordinary samples


@checked(count=COUNT, seed=SEED, batch=COUNT)
def draw_pairs(
    run: Run,
    count: int,
    solver: Solver | None = None,
    *,
    seed: int = 0,
    batch: int = 512,
    quiet: bool = False,
) -> Pairs:
    """Draw noise, and pair it with the samples to which the flow of a run maps it.

    Args:
        run: A trained run, with or without a condition.
        count: Number of pairs.
        solver: A solver for the probability flow (default: ``ProbabilityFlow(rtol=1e-4)``).
        seed: Seed of the noise.
        batch: Number of samples drawn at once.
        quiet: Whether to hide the progress output.

    Raises:
        UsageError: If the solver draws noise, so that the starting noise alone does not determine a sample.
        NumericalError: If the solver fails for a sample.
    """
    solver = ProbabilityFlow(1e-4) if solver is None else solver
    if solver.stochastic:
        raise UsageError(
            f"{type(solver).__name__} draws noise at each step, so the starting noise alone does not determine a "
            "sample; use a solver for the probability flow, such as ode, heun or multistep"
        )
    size = 4 * math.prod(run.info.shape) * torch.finfo(run.dtype).bits // 8  # samples and noise, and a copy of both
    enough_memory(count * size, f"{count:,} pairs of {run.info.dims:,} numbers", "pairs")
    x0, eps = [], []
    with Progress(count, "pairs", quiet=quiet) as progress:
        for start in range(0, count, batch):
            n = min(batch, count - start)
            part = run.rows(torch.arange(start, start + n))
            samples = part.sample(n, solver, seed=seed, start=_STREAM + start, batch=batch)
            if samples.solution.failures():
                raise NumericalError(f"cannot draw pairs from this model: {'; '.join(samples.solution.failures())}")
            noise = Noise.of(n, seed, _STREAM + start, run.device)
            x0.append(samples.solution.x.cpu())
            eps.append(noise.normal(run.codec.model_shape(run.info.shape), stream="prior", dtype=run.dtype).cpu())
            progress.update(n)
    return Pairs(torch.cat(x0), torch.cat(eps), None if run.condition is None else run.condition.expand(count))


@checked(pairs=COUNT, steps=replace(TRAINED, low=0), lr=replace(LR, above=False), seed=SEED)
def reflow(
    run: Run,
    *,
    pairs: int = 20_000,
    steps: int = 0,
    lr: float = 0.0,
    weighting: str | Weight | None = None,
    t_sampler: str | TimeSampler | None = None,
    solver: Solver | None = None,
    seed: int = 0,
    data: Dataset | None = None,
    out: str | Path | None = None,
    save: bool = True,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> Run:
    """Draw pairs from a run, and continue training its network on them.

    Args:
        run: A trained run, which may already be rectified.
        pairs: Number of pairs.
        steps, lr: Number of training steps and learning rate. For a value of 0, the run's value is used.
        weighting, t_sampler: Weighting and time sampler for the training, by name or as objects (default: the weighting
            and time sampler of the run, if they are built-ins). A name that appears only in the run's files is never
            imported.
        solver, seed: The solver for the pairs and the seed of their noise (see :func:`draw_pairs`).
        data: The run's data set, which is needed only if :meth:`Run.data` cannot load it. Only its labels and
            conditions are used, because the samples come from the pairs.
        out: The run folder (default: ``runs/NAME-reflow``, with a number appended if that name is taken).
        save: Whether to write a run folder.
        device: The device to train on.
        quiet: Whether to hide the progress output.

    Returns:
        The rectified run.

    Raises:
        UsageError: If the run has no training configuration, if its path is a discrete chain, or if a setting is
            invalid.
    """
    if run.config is None:
        raise UsageError(
            "reflow needs a run that was trained by this package, but this run has no training configuration"
        )
    if run.config.padded:
        raise UsageError("reflow does not support padded rows, the space 'masked'; train without this space")
    check_scalar(run.base.domain.sde, "reflow", "a run on a path with one alpha and one sigma, such as 'flow'")
    data = run.data() if data is None else data
    asked = run
    if run.config.sources.rich:
        rows = data.whole.nonzero().flatten()
        asked = run.given_rows(data, rows[torch.arange(pairs) % len(rows)], split="train", seed=seed)
    elif run.config.sources.label and run.config.cond_drop < 1 and data.train_labels is not None:
        asked = run.given(data.train_labels[torch.arange(pairs) % len(data.train_labels)])  # in the data's proportions
    named = {"weighting": weighting, "t_sampler": t_sampler}
    config = run.config.named(**{field: value for field, value in named.items() if value is not None})
    config = replace(
        config, coupling="reflow", augment="none", steps=steps or run.config.steps, lr=lr or run.config.lr, warmup=0
    )
    prepared(config, data, start=run)  # rejects invalid settings before the pairs are drawn
    drawn = draw_pairs(asked, pairs, solver, seed=seed, quiet=quiet)
    if out is None and save:
        name, n = f"{(run.folder or Path(data.info.name)).name}-reflow", 2
        out = Path("runs") / name  # created when training begins, not before
        while out.exists():
            out, n = Path("runs") / f"{name}-{n}", n + 1
        if out.name != name and not quiet:
            print(printable(taken(out.with_name(name), out)), file=sys.stderr)
    return fit(
        config, data=data, pairs=drawn, start=run, out=out, save=save, device=device, dtype=run.dtype, quiet=quiet
    )


@checked(steps=STEPS)
def straightness(
    model: Denoiser, noise: Noise, shape: tuple[int, ...], *, steps: int = 64, dtype: torch.dtype = torch.float32
) -> float:
    """Return a measure, from 0 to 1, of how much a model's trajectories deviate from straight lines (S of equation 1).

    Args:
        model: Any denoiser.
        noise: The noise at which the trajectories start, with ``noise.indices`` of shape ``(B,)``.
        shape: The event shape.
        steps: Number of Heun steps, equally spaced in r.
        dtype: The dtype of the state.

    >>> from scoresde import FlowMatching, GaussianMixture
    >>> point = GaussianMixture(FlowMatching(), torch.ones(1, 2), torch.zeros(1))
    >>> round(straightness(point, Noise.of(8), (2,)), 6)
    0.0
    """
    sde, (low, high) = model.domain.sde, model.domain.interval("sample")
    check_scalar(sde, "straightness", "a path with one alpha and one sigma, such as 'flow'")
    ends = torch.tensor([high, low], dtype=time_dtype(noise.indices.device), device=noise.indices.device)
    r, scale = sde.ratio(ends), sde.scale(ends)
    x = sde.prior.sample(noise, shape, dtype)
    y, h = x / expand(at(scale, 0), x), float(r[1] - r[0]) / steps
    first, slopes = y, []
    with torch.no_grad():
        for i in range(steps):

            def f(c: float, y: Tensor, i: int = i) -> Tensor:
                k = slope(model, y, sde.t_of_ratio(r[0] + h * (i + c)).clamp(low, high))
                if c == 0:
                    slopes.append(k)
                return k

            y = rule_step("heun", f, y, h)
    chord = (y - first) / float(r[1] - r[0])
    bend, speed = (sum(float(sum_flat(v.square()).sum()) for v in vs) for vs in ([k - chord for k in slopes], slopes))
    return bend / speed
