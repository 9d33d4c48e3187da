"""The interface of the solvers.

A solver is a frozen dataclass of its options, and is called as ``solver(model, x, t0=, t1=, noise=) -> Solution``. It
uses only the :class:`~scoresde.model.estimate.Denoiser` interface of a model. Each solver declares what it needs from
the model (such as a score). A model that does not meet these needs is rejected before the first evaluation. The rows of
a batch do not affect each other, unless the solver or one of its options couples them. A wrapper around the model
counts the evaluations.

Most solvers are subclasses of :class:`FixedStep`, and define only how to take one step on a fixed time grid. A
function that is passed to a solver as ``watch`` is called after every step. With ``record=True``, the solution contains
a :class:`Trajectory`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import COUNT, STEPS, Checked, check_number, checked, enough_memory, ranges
from ..core.noise import Noise
from ..core.parts import Packed, Parts, pieces
from ..core.shapes import select, sum_flat, time_dtype
from ..model.estimate import Counted, Denoiser, Tally
from ..ode.integrate import FAILED_NONFINITE, OK, blamed, failures
from ..sde.base import SDE
from ..sde.grids import GivenGrid, Grid, as_grid, make_grid
from .trajectory import Step, Trajectory

__all__ = ["FixedStep", "OnGrid", "Solution", "Solver", "Watch", "fixed_solution", "sample", "unwatched"]

Watch = Callable[[Step], object]


def unwatched(step: Step) -> None:
    """The default watcher, which does nothing. A solver given this watcher may skip building :class:`Step` objects."""


@dataclass(frozen=True)
class Solution:
    """The result of solving a batch of rows.

    Attributes:
        x: The final states, shape ``(B, *event)``.
        nfe: Number of network evaluations for each row, shape ``(B,)``. This is the sum of
            :attr:`~scoresde.Estimate.calls` over all evaluations of the model.
        accepted, rejected: Number of accepted or rejected steps of each row, shape ``(B,)``. A fixed-step solver never
            rejects a step.
        status: Status code of each row (a key of :data:`scoresde.ode.integrate.STATUS`), shape ``(B,)``. The code 0
            means success.
        trajectory: The recorded steps of all rows, or ``None`` if they were not recorded.
        ess: The effective number of particles of each row at the step where it was smallest, ``(B,)``, or ``None`` if
            the solver has no particles. A value near 1 means that all particles of the row descend from one particle.
    """

    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    trajectory: Trajectory | None = None
    ess: Tensor | None = None

    @property
    def ok(self) -> Tensor:
        """Whether each row succeeded, bool ``(B,)``."""
        return self.status == OK

    def failures(self) -> list[str]:
        """Return one line for each kind of failure. Each line states how many rows failed, which rows, and why."""
        return failures(self.status)

    def pack(self) -> Packed:
        """Return the solution as a dictionary of named tensors, from which :meth:`unpack` can rebuild it.

        The second result is an empty dictionary, because a solution contains only tensors.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "trajectory"}
        tensors = {name: value for name, value in own.items() if value is not None}
        recorded = {} if self.trajectory is None else self.trajectory.pack()
        return {**tensors, **{f"trajectory.{name}": value for name, value in recorded.items()}}, {}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], sde: SDE, device: torch.device) -> Solution:
        """Rebuild a solution on ``device`` from the tensors that :meth:`pack` returned.

        If the solution contains a trajectory, the trajectory is rebuilt with ``sde``, the path of the model.
        """
        own = {name: value.to(device) for name, value in tensors.items() if "." not in name}
        recorded = {name.partition(".")[2]: value for name, value in tensors.items() if "." in name}
        return cls(**own, trajectory=Trajectory.unpack(sde, recorded) if recorded else None)

    @classmethod
    def join(cls, pieces: list[Solution]) -> Solution:
        """Concatenate the solutions of several batches into one solution."""
        names = [f.name for f in fields(cls) if f.name != "trajectory" and getattr(pieces[0], f.name) is not None]
        tensors = {name: torch.cat([getattr(p, name) for p in pieces]) for name in names}
        trajectories = [p.trajectory for p in pieces if p.trajectory is not None]
        return cls(**tensors, trajectory=Trajectory.join(trajectories) if trajectories else None)


class Solver(Checked, ABC):
    """The base class of all solvers. A solver moves the rows of a batch from one time to another.

    Attributes:
        needs_score: Whether the solver uses the score, which a model trained on coupled (data, noise) pairs does not
            have.
        stochastic: Whether the solver draws noise.
        denoises: Whether the solver itself ends with a noise-free step, so that :func:`sample` does not add another.
    """

    needs_score: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    denoises: ClassVar[bool] = False

    @abstractmethod
    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        """Move the state ``x: (B, *event)`` from ``t0`` to ``t1``, and call ``watch`` after each step.

        The arguments have already been checked by :meth:`__call__`.
        """

    def within(self, nfe: int) -> Self | None:
        """Return a copy of this solver with as many steps as ``nfe`` evaluations allow.

        The result is ``None`` if the number of steps cannot be chosen.
        """
        return None

    def uses_rates(self, sde: SDE) -> bool:
        """Return whether the first step uses the rates alpha' and sigma', which can be infinite where a path ends."""
        return False

    def _check_rates(self, sde: SDE, t0: float) -> None:
        if not self.uses_rates(sde):
            return
        # The largest in absolute value, or NaN, of all coordinates.
        found = [rate.flatten() for rate in sde.rates(torch.tensor(t0, dtype=torch.float64))]
        rates = [float(rate[rate.abs().argmax()]) for rate in found]
        if not all(math.isfinite(rate) for rate in rates):
            raise UsageError(
                f"{type(self).__name__} needs finite derivatives alpha' and sigma' at the start time, but those of "
                f"{type(sde).__name__} are {rates[0]:g} and {rates[1]:g} at t = {t0:g}; use the "
                + ("'sde' or the 'ancestral' solver" if self.stochastic else "'straight' frame or the 'ddim' solver")
                + ", neither of which uses these derivatives",
                parameter="solver",
                value="sde" if self.stochastic else "ddim",
            )

    def __call__(
        self,
        model: Denoiser,
        x: Tensor,
        *,
        t0: float | None = None,
        t1: float | None = None,
        noise: Noise | None = None,
        watch: Watch | None = None,
        record: bool = False,
    ) -> Solution:
        """Move ``x`` from ``t0`` to ``t1``, and return the solution.

        Args:
            model: The model, which can be any denoiser.
            x: The state at ``t0`` in model units, shape ``(B, *event)``.
            t0, t1: Start and end times. By default, the solver runs from the prior (``domain.t_max``) to the time at
                which sampling stops. Deterministic solvers can run in either direction.
            noise: The source of random numbers. By default, row i uses the random numbers of sample i with seed 0.
            watch: A function called with a :class:`~scoresde.solvers.trajectory.Step` after each step.
            record: Whether to record every step in ``solution.trajectory``.

        Raises:
            UsageError: If the solver cannot be used with this model, state or interval. The error is raised before the
                first evaluation.
        """
        domain = model.domain
        low, high = domain.interval("sample")
        t0, t1 = high if t0 is None else t0, low if t1 is None else t1
        name = type(self).__name__
        for label, t in (("t0", t0), ("t1", t1)):
            check_number(label, t, where=f"{name}: ")
            if not domain.t_min <= t <= domain.t_max:
                raise UsageError(
                    f"{name}: {label} = {t} is outside the model's domain [{domain.t_min}, {domain.t_max}]; choose a "
                    "time in this interval"
                )
        if self.needs_score and not domain.has_score:
            raise UsageError(
                f"{name} needs the score, but a model trained on coupled (data, noise) pairs has no score; "
                "use a probability-flow solver, such as 'ode', 'multistep' or 'heun'"
            )
        if self.stochastic and t1 > t0:
            raise UsageError(
                f"{name} runs from noise to data, so t0 must be greater than t1; got t0 = {t0} and t1 = {t1}"
            )
        if not x.is_floating_point():
            raise UsageError(
                f"{name}: the state must have a floating-point dtype, got {x.dtype}; convert it to float32"
            )
        self._check_rates(domain.sde, t0)
        noise = Noise.of(len(x), device=x.device) if noise is None else noise
        if domain.support is not None:  # padded numbers are 0 in the states, the noise and the estimates
            x, noise = torch.where(domain.support.to(x.device), x, 0), noise.within(domain.support)
        if noise.indices.device != x.device:
            raise UsageError(
                f"{name}: the noise is on device {noise.indices.device}, but the state is on {x.device}; create both "
                "on the same device"
            )
        if len(noise.indices) != len(x):
            raise UsageError(
                f"{name}: the noise and the state must have the same number of rows, got {len(noise.indices)} and "
                f"{len(x)}; create the noise with one index for each row of the state"
            )
        trajectory = Trajectory.start(model.domain.sde, x, t0) if record else None
        watchers = [w for w in (watch, trajectory and trajectory.append) if w]
        with torch.no_grad():
            everyone = (lambda step: [w(step) for w in watchers]) if watchers else unwatched
            solution = self.solve(model, x, t0, t1, noise, everyone)
            solution = replace(solution, status=blamed(solution.status, lambda: model.domain.sde.finite(t0, t1)))
        return replace(solution, trajectory=trajectory)


@dataclass(frozen=True)
class OnGrid(Solver):
    """The base class of solvers with a fixed time grid.

    Args:
        steps: Number of steps.
        grid: The time grid: the name of a grid in :mod:`scoresde.sde.grids`, a grid object, a tuple of times (which
            also determines the number of steps), or ``auto`` for the SDE's default grid.
    """

    limits = ranges(steps=STEPS)

    steps: int = 20
    grid: str | Grid | tuple[float, ...] = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        made = as_grid(self.grid)  # an unknown name is rejected here, not in the middle of a run
        if isinstance(made, GivenGrid):
            object.__setattr__(self, "steps", len(made.times) - 1)

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return 1

    def within(self, nfe: int) -> Self | None:
        """Return a copy of this solver with as many steps as ``nfe`` evaluations allow.

        The result is ``None`` if ``nfe`` is too small for one step, or if the grid is a tuple of times.
        """
        steps = nfe // self.evaluations
        return replace(self, steps=steps) if steps and not isinstance(as_grid(self.grid), GivenGrid) else None

    def times(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Tensor:
        """Return the time grid from ``t0`` to ``t1``, ``(steps + 1,)``, on the device of the state ``x``."""
        times = grid_of(self.grid, model, self.steps, t0, t1).to(device=x.device, dtype=time_dtype(x.device))
        if noise.brownian and self.stochastic:
            noise.check(times)
        return times


@dataclass(frozen=True)
class FixedStep(OnGrid):
    """The base class of solvers that take one step after another on a fixed time grid.

    To write such a solver, define a frozen dataclass that inherits from this class, and implement :meth:`stepper`. The
    solver then has the options of :class:`OnGrid`.
    """

    @abstractmethod
    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        """Build the function that takes one step.

        Args:
            model: The model to evaluate, wrapped so that its calls are counted.
            times: The time grid, shape ``(steps + 1,)``, on the device of the state.
            noise: The source of random numbers.

        Returns:
            A function ``advance(i, x)`` that moves ``x``, shape ``(B, *event)``, from ``times[i]`` to ``times[i + 1]``.
            It is called once for each i, in ascending order, and may keep state between calls.
        """

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        times = self.times(model, x, t0, t1, noise)
        counted, everyone = Counted(model, Tally(x)), torch.arange(len(x), device=x.device)
        advance, steps = self.stepper(counted, times, noise), len(times) - 1
        for i in range(steps):
            x = advance(i, x)
            watch(Step(everyone, times[i + 1], x, done=(i + 1) / steps))
        return fixed_solution(x, counted.tally.total, steps)


def grid_of(grid: str | Grid | tuple[float, ...], model: Denoiser, steps: int, t0: float, t1: float) -> Tensor:
    """Return the time grid of a fixed-step solver as a float64 tensor of shape ``(steps + 1,)`` on the CPU.

    If the model is defined only at discrete nodes, every time in the grid is one of these nodes.
    """
    return make_grid(grid, model.domain.sde, steps, t0, t1, model.domain.nodes)


def fixed_solution(x: Tensor, nfe: int | Tensor, steps: int) -> Solution:
    """Return the solution of a fixed-step solver, given its final states ``x: (B, *event)``.

    Rows of ``x`` with non-finite values are marked as failed.
    """

    def each(count: int | Tensor) -> Tensor:
        return torch.as_tensor(count, dtype=torch.int64, device=x.device).expand(len(x)).clone()

    status = torch.where(_finite_rows(x), OK, FAILED_NONFINITE)
    return Solution(x, each(nfe), each(steps), each(0), status)


def _finite_rows(x: Tensor) -> Tensor:
    """Return whether each row of ``x`` contains only finite values."""
    return torch.isfinite(sum_flat(x * 0))


@checked(batch=COUNT)
def sample(
    model: Denoiser,
    solver: Solver,
    shape: tuple[int, ...],
    noise: Noise,
    *,
    denoise: bool = True,
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
    watch: Watch | None = None,
    record: bool = False,
    parts: Parts | None = None,
    data: Tensor | None = None,
    t0: float | None = None,
) -> Solution:
    """Draw samples from the prior, run the solver on them, and finish with a noise-free step.

    Samples do not depend on each other, unless the solver couples the samples of a batch. The random numbers for a
    sample are determined by ``noise.seed`` and by the sample's index in ``noise.indices``.

    Args:
        model: The model. Its conditions have one row per sample, or one row for all samples.
        solver: The solver.
        shape: The shape of a sample.
        noise: The source of random numbers. One sample is drawn for each of ``noise.indices``, shape ``(B,)``.
        denoise: Whether to replace the final ``x`` with ``x0_hat`` (Tweedie's formula), at the cost of one more
            evaluation. Otherwise, the samples retain noise of standard deviation ``sigma(t)``, where t is the time at
            which sampling stops.
        batch: Number of samples solved at once.
        dtype: Data type of the state.
        watch: A function called with a :class:`~scoresde.solvers.trajectory.Step` after each step of each batch. The
            ``index`` of a step numbers the rows among all samples, not within the batch.
        record: Whether to record every step in ``solution.trajectory``.
        parts: A store in which each batch of samples is saved as soon as it is solved. Batches that are already in the
            store are read from it, not solved again. ``None`` saves nothing.
        data: If given, the solver starts from these data in model units, with noise added as at time ``t0``, shape
            ``(B, *shape)`` or ``(1, *shape)``. Samples then resemble the data (SDEdit; Meng et al. 2022,
            arXiv:2108.01073).
        t0: The time at which the solver starts (default: that of the prior).

    Returns:
        The solution. Its ``x`` contains the samples in model units.
    """
    low, high = model.domain.interval("sample")
    high = high if t0 is None else t0
    device, count = noise.indices.device, len(noise.indices)
    # Each state is stored twice, in its batch and in the result. If the steps of a fixed-step solver are recorded, the
    # states of all steps are stored instead.
    states = getattr(solver, "steps", 1) if record else 2
    size = count * math.prod(shape) * torch.finfo(dtype).bits // 8
    enough_memory(states * size, f"{count:,} samples of {math.prod(shape):,} numbers{' at each step' * record}", "n")

    def solved(index: Tensor) -> Solution:
        rows = model.rows(index)
        draws = noise.rows(index).within(rows.domain.support)
        x = model.domain.sde.prior.sample(draws, shape, dtype)
        if data is not None:
            eps = draws.normal(shape, stream="prior", dtype=dtype)
            x = model.domain.sde.perturb(select(data, index).to(x), torch.tensor(high, dtype=torch.float64), eps)
        piece = solver(rows, x, t0=high, t1=low, noise=draws, watch=_numbered(watch, index), record=record)
        if denoise and not solver.denoises:
            with torch.no_grad():
                last = rows(piece.x, low)
            x0 = last.x0
            lost = (piece.status == OK) & ~_finite_rows(x0)
            status = torch.where(lost, FAILED_NONFINITE, piece.status)
            if piece.trajectory is not None:
                piece.trajectory.finish(x0)
            piece = replace(piece, x=x0, nfe=piece.nfe + last.calls, status=status)
        return piece

    def unpack(tensors: Mapping[str, Tensor], _: object) -> Solution:
        return Solution.unpack(tensors, model.domain.sde, device)

    batch = batch if parts is None else parts.batch(batch)
    ranges = torch.split(torch.arange(len(noise.indices), device=device), batch)
    return Solution.join(list(pieces(ranges, solved, Solution.pack, unpack, parts, noise.indices)))


def _numbered(watch: Watch | None, index: Tensor) -> Watch | None:
    """Wrap ``watch`` so that the rows of a step are numbered among all samples, not within the batch."""
    return None if watch is None else lambda step: watch(replace(step, index=index[step.index]))
