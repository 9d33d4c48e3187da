"""Samples of a run, its default solver, and the ways between data and noise."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy.typing as npt
import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.errors import NumericalError, UsageError
from ..core.limits import (
    COUNT,
    FRAMES,
    RTOL,
    SEED,
    SEVERAL,
    STEPS,
    WHOLE,
    checked,
    enough_memory,
)
from ..core.noise import Noise
from ..core.parts import Parts
from ..core.registry import build
from ..core.shapes import as_tensor
from ..core.tables import SOLVERS
from ..data import DataInfo
from ..model.estimate import Domain
from ..sde.grids import FittedGrid, as_grid
from ..solvers import Ancestral, Multistep, ProbabilityFlow, Solution, Solver, Tuned, sample
from ..solvers.base import OnGrid, Watch
from .bound import reach
from .fitted import Fits
from .keeping import Kept

__all__ = ["Samples", "Sampling", "warn_of_prior"]


# Numbers of steps of the default solver of a run to which something is bound
STEPS_GIVEN = 30  # for conditions and guidance, as in ``evaluate``
STEPS_STEERED = 50  # for steering and measurements


def warn_of_prior(domain: Domain, info: DataInfo, spread: float | None = None) -> None:
    """Warn, with advice, if the end of the path does not match the prior (see :mod:`scoresde.sde.reach`)."""
    if (advice := reach(domain, info, spread).advice) is not None:
        warnings.warn(advice, stacklevel=4)  # skips the frame that checks the arguments


@dataclass(frozen=True)
class Samples:
    """Samples in data units.

    Attributes:
        x: The samples, shape ``(n, *event)``. If the data have levels, all values are levels, except known values that
            were bound by :meth:`.Run.given`, which are returned exactly as given.
        solution: The result of the solver: its statistics, and the samples in model units.
        residual: For each sample, the largest difference between its own measurements and those bound to the run, in
            data units, shape ``(n,)``. ``None`` if no measurements are bound or the operator is not linear.
        condition: The condition with which the samples were drawn, or ``None``.
    """

    x: Tensor
    solution: Solution
    residual: Tensor | None = None
    condition: Condition | None = None

    @property
    def mask(self) -> Tensor | None:
        """Which values of the samples are real, bool ``(n, *event)``, or ``None`` if the rows are not padded."""
        mask = None if self.condition is None else self.condition.mask
        return None if mask is None else mask.cpu().expand(self.x.shape)


class Sampling(Kept):
    """A run that can be sampled."""

    @property
    def default_solver(self) -> Solver:
        """The solver that draws the samples if none is named.

        It is ``ode``, which solves the flow to a tolerance, for a run to which neither a condition nor guidance,
        steering or measurements are bound. Otherwise, the flow is less smooth, so that a solver with adaptive steps
        becomes slow. For measurements, it is ``ancestral`` with 50 steps, whose noise makes up for some of the errors
        of the rule, unless the model has no score. It is ``multistep`` with 50 steps for the rest of these and for
        steering, and with 30 steps for conditions and guidance. These numbers are enough where they were measured (see
        the manual, on measuring and on evaluation).
        """
        if self.rule is not None and self.base.domain.has_score:
            return Ancestral(STEPS_STEERED)
        if self.potential is not None or self.rule is not None:
            return Multistep(STEPS_STEERED)
        return ProbabilityFlow() if self.condition is None and self.scale == 1.0 else Multistep(STEPS_GIVEN)

    @checked(steps=STEPS)
    def tuned(self, steps: int) -> Tuned:
        """Return the solver with ``steps`` steps that was fitted to this run with the command ``tune``.

        Args:
            steps: Number of steps, one of those that were fitted.

        Raises:
            UsageError: If no solver with this number of steps was fitted to the run, or if the weights, the path, the
                ends, the condition or the guidance are not those to which it was fitted.
            CheckpointError: If the file ``tuned.json`` of the run is damaged.
        """
        return self.fits.at(steps).solver

    def fitted(self, solver: Solver) -> Solver:
        """Return a solver with the numbers that were fitted to this run, if it needs any.

        A :class:`~scoresde.solvers.Tuned` solver without numbers is replaced by :meth:`tuned`, and the grid ``fitted``
        by its times. Any other solver is returned as it is.

        Raises:
            UsageError, CheckpointError: As in :meth:`tuned`, also if a ``Tuned`` solver has the numbers of another run.
        """
        if isinstance(solver, Tuned):
            own = self.tuned(solver.steps)
            if solver.fitted and solver != own:
                raise UsageError(
                    f"this solver with {solver.steps} steps was not fitted to {self.folder or 'this run'}; use "
                    f"run.tuned({solver.steps}) of the run that draws the samples",
                    parameter="solver",
                    value="multistep",
                )
            return own
        if isinstance(solver, OnGrid) and isinstance(as_grid(solver.grid), FittedGrid):
            found = self.fits.at(solver.steps)
            return replace(solver, grid=found.times(self.model.domain.sde))
        return solver

    @property
    def fits(self) -> Fits:
        """All solvers that were fitted to this run, with their errors. The errors raised are those of :meth:`tuned`."""
        found = Fits.read(self.folder)
        found.check(self)
        return found

    @checked(n=COUNT, seed=SEED, start=WHOLE, batch=COUNT)
    def sample(
        self,
        n: int,
        solver: str | Solver | None = None,
        *,
        seed: int = 0,
        start: int = 0,
        denoise: bool = True,
        brownian: bool = False,
        batch: int = 256,
        watch: Watch | None = None,
        record: bool = False,
        keep: str | Path | None = None,
    ) -> Samples:
        """Draw the samples with indices ``start`` to ``start + n - 1``, in data units.

        Args:
            n: Number of samples. A condition with more than one row must have ``n`` rows.
            solver: A name in :data:`scoresde.core.tables.SOLVERS`, or a solver (default: :attr:`default_solver`).
            seed, start: Random seed, and index of the first sample. For each seed, the sample with a given index is the
                same in every call.
            denoise: Whether to end with a noise-free step (see :func:`scoresde.sample`).
            brownian: Whether the noise of a stochastic solver comes from one Brownian path per sample, which does not
                depend on the number of steps.
            batch: Number of samples drawn at once.
            watch: A function that is called with a :class:`~scoresde.solvers.Step` in model units after each step of
                each batch.
            record: Whether to record every step for :meth:`frames`.
            keep: A folder in which each batch is saved as soon as it is complete (:mod:`scoresde.core.parts`). Batches
                that are already there are not computed again. The folder may be removed once the samples are returned.

        Raises:
            UsageError: If an option is invalid, or ``keep`` contains samples drawn with other settings.
        """
        # Memory for the states, for the model's final output, and for the samples in data units.
        size = 3 * math.prod(self.info.shape) * torch.finfo(self.dtype).bits // 8
        enough_memory(n * size, f"{n:,} samples of {self.info.dims:,} numbers", "n")
        if (masked := self.masked(n=n, start=start)) is not self:  # a mask for each sample, as often as in training
            return masked.sample(
                n, solver, seed=seed, start=start, denoise=denoise, brownian=brownian, batch=batch, watch=watch,
                record=record, keep=keep,
            )  # fmt: skip
        chosen = self.default_solver if solver is None else solver
        built: Solver = self.fitted(build(chosen, SOLVERS, "solver", typed=True, kind=Solver))
        if brownian and not built.stochastic:
            raise UsageError(f"{type(built).__name__} draws no noise; brownian requires a stochastic solver")
        model = self._bound(n)
        if not self.told:
            warn_of_prior(model.domain, self.info, self._spread)
        begin, t0 = self.begin, None
        if begin is not None:
            self._bound(n)
            self.codec.space.check(begin, self.condition)
            begin = self.codec.space.to_model(begin, self.condition)
            low, high = model.domain.interval("sample")
            r = torch.tensor(self.at, dtype=torch.float64)
            t0 = min(float(model.domain.sde.t_of_ratio(r)), high)
            if model.domain.nodes is not None:
                nodes = model.domain.nodes
                t0 = float(nodes[(nodes - t0).abs().argmin()])
            if t0 <= low:
                least = float(model.domain.sde.ratio(torch.tensor(low, dtype=torch.float64)))
                raise UsageError(
                    f"at={self.at:g} is not above the noise level {least:.2g} at which sampling stops, so the samples "
                    "would equal the data; use a larger value",
                    parameter="at",
                    value=0.3,
                )
            if len(begin) not in (1, n):
                raise UsageError(
                    f"the samples start from {len(begin):,} rows of data, but the number of samples is {n:,}; pass one "
                    "row for all samples or one for each sample, or bind them with near(..., each=K)"
                )
        parts = None
        if keep is not None:
            asked = self.sample_request(built, seed=seed, start=start, denoise=denoise, brownian=brownian)
            parts = Parts(Path(keep), {**asked, "record": record}, lambda index: self._known_of(index - start))
        solution = sample(
            model,
            built,
            self.codec.model_shape(self.info.shape),
            Noise.of(n, seed, start, self.device, brownian=brownian),
            denoise=denoise,
            batch=batch,
            dtype=self.dtype,
            watch=watch,
            record=record,
            parts=parts,
            data=begin,
            t0=t0,
        )
        known = self.seen if self.measurement is None else self.measurement if self.noise == 0 else None
        if known is None:
            return Samples(self.to_data(solution.x), solution, condition=self.condition)
        exact = self.codec.continuous.to_data(solution.x.cpu().double(), self.condition)
        x, residual = known.agreeing(exact, self.codec, self.info)
        return Samples(x if self.info.wide else x.to(solution.x.dtype), solution, residual, self.condition)

    @checked(rtol=RTOL, batch=COUNT)
    def encode(self, x: Tensor | npt.ArrayLike, *, rtol: float = 1e-5, batch: int = 256) -> Tensor:
        """Follow the probability flow from data to noise, and return the noise, float ``(n, *event)``.

        If a model is exact, the noise of data is a sample from the prior. :meth:`decode` is the inverse.

        Args:
            x: Data in data units, ``(n, *event)``.
            rtol: Relative tolerance of the solver.
            batch: Number of rows solved at once.

        Raises:
            DataError: If the data do not have the shape of the run's data, or are not finite.
            NumericalError: If the solver fails.
        """
        low, high = self.model.domain.interval("sample")
        return self._flow(self._middle(x), low, high, rtol, batch)

    @checked(rtol=RTOL, batch=COUNT)
    def decode(self, z: Tensor, *, rtol: float = 1e-5, batch: int = 256) -> Tensor:
        """Follow the probability flow from noise to data, and return the data in data units, ``(n, *event)``.

        The arguments are those of :meth:`encode`. ``decode(encode(x))`` returns ``x`` up to the error of the solver,
        and exactly if the data have levels and this error is less than half a level.
        """
        low, high = self.model.domain.interval("sample")
        return self.to_data(self._flow(z.to(self.device, self.dtype), high, low, rtol, batch))

    @checked(n=SEVERAL, rtol=RTOL)
    def interpolate(
        self, a: Tensor | npt.ArrayLike, b: Tensor | npt.ArrayLike, n: int = 9, *, rtol: float = 1e-5
    ) -> Tensor:
        """Return ``n`` steps from one row of data to another, on an arc between their noise, ``(n, *event)``.

        The arc keeps the norm of the noise (spherical interpolation; Song, Meng and Ermon 2021, arXiv:2010.02502,
        eq. 67). The first and the last step are the rows themselves, up to the error of the solver.

        Args:
            a, b: The rows, ``(*event)`` in data units.
            n: Number of steps, including both rows.
            rtol: Relative tolerance of the solver.
        """
        z = self.encode(torch.stack([as_tensor(a), as_tensor(b)]), rtol=rtol).double()
        first, last = z.flatten(1)
        cosine = (first @ last / (first.norm() * last.norm())).clamp(-1, 1)
        angle, share = torch.acos(cosine), torch.linspace(0, 1, n, dtype=torch.float64, device=z.device)[:, None]
        if float(angle) < 1e-6:
            arc = first + share * (last - first)
        else:
            arc = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)
        return self.decode(arc.reshape(n, *z.shape[1:]), rtol=rtol)

    def _flow(self, x: Tensor, t0: float, t1: float, rtol: float, batch: int) -> Tensor:
        """Move states along the probability flow from ``t0`` to ``t1``."""
        if self._bound(len(x)).domain.nodes is not None:
            raise UsageError(
                "the flow of a discrete chain cannot be followed exactly; convert the run first, as in run.on('vp')"
            )
        found = []
        for index in torch.split(torch.arange(len(x), device=self.device), batch):
            solved = ProbabilityFlow(rtol=rtol)(self.model.rows(index), x[index], t0=t0, t1=t1)
            if not bool(solved.ok.all()):
                raise NumericalError("; ".join(solved.failures()))
            found.append(solved.x)
        return torch.cat(found)

    @checked(count=FRAMES)
    def frames(self, samples: Samples, count: int = 40) -> tuple[Tensor, Tensor]:
        """Return recorded states, from the noise to the samples, as the frames of an animation.

        Args:
            samples: Samples drawn with ``record=True``.
            count: Number of frames.

        Returns:
            Times, shape ``(count,)``, and states in data units, shape ``(count, n, *event)``. The last state equals the
            samples.
        """
        trajectory = samples.solution.trajectory
        if trajectory is None:
            raise UsageError("these samples have no trajectory; draw them with record=True")
        times, states = trajectory.frames(count)
        states = states.double() if self.info.wide else states
        shown = torch.stack([self.codec.continuous.to_data(state, samples.condition) for state in states])
        shown[-1] = samples.x
        return times, shown
