"""Particles: a sampler that is exact in the limit of many particles and many steps, for any model that is steered.

A single path cannot undo an early decision for the wrong mode. Here, each sample has P particles of its own, which
follow the reverse SDE of the steered model. A particle is weighted by how well it agrees with what the model is steered
towards, and by how much the steering has changed its path (twisted sequential Monte Carlo; Wu et al. 2023,
arXiv:2306.17775, alg. 1). With the ancestral steps of equation (3) of :mod:`scoresde.sde.marginal`,

    p(x_s | x_t) = N(a x0_hat + b x_t, v I)      of the model itself,
    q(x_s | x_t) = N(a x0_steered + b x_t, v I)  of the steered model,

and the twist L_t(x_t), which approximates the likelihood of the wish given the state, a step from t to s multiplies
the weight of a particle by

    w = p(x_s | x_t) L_s(x_s) / (q(x_s | x_t) L_t(x_t)).                                                      (1)

If the effective number of particles, 1 / sum of the squared normalised weights, falls below half of P, the particles of
the row are resampled (systematic resampling). At the end, one particle of each row is drawn. The random numbers of a
row depend only on its index, the particle and the step, so a sample does not depend on the batch.

References:
    Wu et al. (2023), Practical and asymptotically exact conditional sampling in diffusion models, arXiv:2306.17775.
    Kitagawa (1996), Monte Carlo filter and smoother for non-Gaussian nonlinear state space models: the resampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from ..core.noise import Noise
from ..core.shapes import sum_flat
from ..model.estimate import Counted, Denoiser, Estimate, Tally
from ..sde.check import check_scalar
from ..sde.marginal import posterior
from .base import OnGrid, Solution, Watch, fixed_solution
from .trajectory import Step

__all__ = ["Particles"]

STATES = 1024  # approximate number of particles that are moved at once, because their steps need derivatives
STREAM, RESAMPLE = "particles", "resample"  # the streams of the steps and of the resampling


@dataclass(frozen=True)
class Particles(OnGrid):
    """Twisted sequential Monte Carlo with P particles for each sample.

    The model must be steered: a measurement (:meth:`.Run.measured`) or a function (:meth:`.Run.steered`). The result
    has the effective number of particles of each row, :attr:`.Solution.ess`.

    Args:
        steps: Number of steps. Each of them takes ``particles`` evaluations for each row.
        particles: Number of particles of each row, P.
        grid: See :class:`~scoresde.solvers.base.OnGrid`.
    """

    limits = ranges(particles=Range(1, 10**5))

    steps: int = 100
    particles: int = 16

    needs_score = True
    stochastic = True

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step and row."""
        return self.particles

    def within(self, nfe: int) -> Self | None:
        """Return a copy with as many steps as ``nfe`` evaluations allow, of which the last state takes one."""
        return super().within(nfe - self.particles)

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        if not model.domain.twisted:
            raise UsageError(
                "the solver 'particles' weights its particles by a measurement or a potential, but this model has "
                "neither; bind one with run.measured or run.steered, or use another solver, such as 'sde'",
                parameter="seen",
                value="pool:2",
            )
        if noise.brownian:
            raise UsageError("particles have no Brownian path, because they are resampled; leave out brownian")
        pieces = []
        for index in torch.split(torch.arange(len(x), device=x.device), max(1, STATES // self.particles)):

            def numbered(step: Step, index: Tensor = index) -> object:
                return watch(replace(step, index=index[step.index]))

            pieces.append(self._solve(model.rows(index), x[index], t0, t1, noise.rows(index), numbered))
        return Solution.join(pieces)

    def _solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        """Solve rows that have at most about ``STATES`` particles."""
        sde, rows, count = model.domain.sde, len(x), self.particles
        check_scalar(sde, "the 'particles' solver", "the 'ancestral' solver", parameter="solver", value="ancestral")
        event = tuple(x.shape[1:])
        times = self.times(model, x, t0, t1, noise)
        owner = torch.arange(rows, device=x.device).repeat_interleave(count)
        everyone = torch.arange(rows, device=x.device)
        tally = Tally(x.new_empty(rows * count))
        counted = Counted(model.rows(owner), tally)
        a, b, v = (weights.tolist() for weights in posterior(sde, times[:-1], times[1:]))

        x = self._start(model, x, t0, noise)
        estimate = counted(x, times[0])
        twist = _twist(estimate)
        weights = twist.reshape(rows, count)
        ess = x.new_full((rows,), float(count))
        for i in range(len(times) - 1):
            weights, chosen, now = self._resampled(weights, noise, i)
            ess = torch.minimum(ess, now)
            index = (everyone[:, None] * count + chosen).flatten()
            assert estimate.plain is not None
            x0, plain, x, before = (value[index] for value in (estimate.x0, estimate.plain, x, twist))
            z = noise.normal((count, *event), i, STREAM, x.dtype).reshape(x.shape)
            shift, spread = a[i] * (x0 - plain), v[i] ** 0.5
            x = a[i] * x0 + b[i] * x + spread * z
            estimate = counted(x, times[i + 1])
            twist = _twist(estimate)
            change = twist - before
            if spread > 0:
                # log p - log q, equation 1, with x_s = mean of q + spread z
                change = change - sum_flat(shift * z) / spread - sum_flat(shift.square()) / (2 * spread**2)
            weights = weights + change.reshape(rows, count)
            watch(Step(everyone, times[i + 1], x[::count], done=(i + 1) / (len(times) - 1)))
        shares = torch.softmax(weights.double().nan_to_num(nan=-torch.inf), 1)
        ess = torch.minimum(ess, _effective(shares).to(ess))
        u = noise.uniform((1,), len(times), RESAMPLE, torch.float64)
        best = (shares.cumsum(1) < u).sum(1).clamp(max=count - 1)
        solved = fixed_solution(x[everyone * count + best], 0, len(times) - 1)
        return replace(solved, nfe=_per_row(tally.total, rows, count, x.device), ess=ess)

    def _start(self, model: Denoiser, x: Tensor, t0: float, noise: Noise) -> Tensor:
        """Return the particles at ``t0``: draws from the prior where sampling starts, and else copies of ``x``."""
        event, count = tuple(x.shape[1:]), self.particles
        if t0 < model.domain.interval("sample")[1]:
            return x.repeat_interleave(count, 0)
        drawn = model.domain.sde.prior.std * noise.normal((count, *event), 2**31, STREAM, x.dtype)
        drawn[:, 0] = x
        return drawn.reshape(-1, *event)

    def _resampled(self, weights: Tensor, noise: Noise, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Resample the particles of each row whose effective number of particles is below P/2.

        Args:
            weights: The log weights, ``(B, P)``.
            noise: The source of one uniform number for each row.
            step: The step.

        Returns:
            The new log weights, ``(B, P)``; the chosen particles, int64 ``(B, P)``; and the effective number of
            particles before the resampling, ``(B,)``.
        """
        shares = torch.softmax(weights.double().nan_to_num(nan=-torch.inf), 1)
        now, count = _effective(shares), self.particles
        u = (noise.uniform((1,), step, RESAMPLE, torch.float64) + torch.arange(count, device=shares.device)) / count
        chosen = torch.searchsorted(shares.cumsum(1), u).clamp(max=count - 1)
        few = (now < count / 2)[:, None]
        own = torch.arange(count, device=shares.device).expand(len(shares), count)
        return torch.where(few, 0.0, weights), torch.where(few, chosen, own), now.to(weights)


def _twist(estimate: Estimate) -> Tensor:
    assert estimate.twist is not None
    return estimate.twist()


def _effective(shares: Tensor) -> Tensor:
    """Return the effective number of particles of each row, ``(B,)``, from normalised weights ``(B, P)``."""
    return 1 / shares.square().sum(1)


def _per_row(total: int | Tensor, rows: int, count: int, device: torch.device) -> Tensor:
    """Add up the evaluations of the particles of each row, int64 ``(B,)``."""
    each = torch.as_tensor(total, dtype=torch.int64, device=device).expand(rows * count)
    return each.reshape(rows, count).sum(1)
