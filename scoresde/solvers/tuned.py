r"""A solver whose times and weights are numbers that were fitted to a trained run.

In the straight frame, with z = x/(alpha + sigma), r = sigma/(alpha + sigma) and q = eps_hat - x0_hat, the probability
flow of any path is dz = q dr. A solver that evaluates the model once in each step, and that combines what it has seen
linearly, is therefore

    z_(i+1) = a_i z_0 + sum_(j <= i) b_ij q_j,        q_j = q(z_j, t_j),        i = 0, ..., n - 1,               (1)

with the evaluations at the times t_0 > t_1 > ... > t_(n-1), and the result z_n at the end of the path. Every
deterministic solver of this package with a fixed grid and one evaluation in each step (``ddim`` and ``multistep`` of
any variable and order, with or without the correction) is such a table of numbers, and :func:`unrolled` returns it. Its
sums over a row, sum_j b_ij, are then r_(i+1) - r_0, and a_i = 1. A fitted table (:mod:`scoresde.study.tune`) need not
keep to that: its rows and times only have to bring z_n close to the exact end of the flow of *one model*. With n steps
there are n - 1 free times and n (n + 3)/2 factors, 24 numbers for n = 5 and 74 for n = 10.

The numbers mean nothing for another number of steps, for other ends of the path or for a model with other weights,
another condition or another guidance scale. The solver itself rejects other ends, and a run rejects the rest
(:meth:`scoresde.Run.tuned`).

References:
    Shaul et al. (2024), arXiv:2403.01329: non-stationary solvers, the family (1).
    Frankel et al. (2025), arXiv:2502.17423: coefficients and times learned from a teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import STEPS, ranges
from ..core.noise import Noise
from ..core.shapes import add_scaled, time_dtype
from ..model.estimate import Counted, Denoiser, Domain, Estimate, Tally
from ..sde.base import SDE
from ..sde.check import check_scalar
from ..sde.grids import nearest_node
from .base import FixedStep, Solution, Solver, Watch, fixed_solution
from .trajectory import Step

__all__ = ["Tuned", "unrolled"]


@dataclass(frozen=True)
class Tuned(Solver):
    """A solver of the probability flow that was fitted to a run, with one evaluation per step.

    Only ``steps`` is chosen by the user. The other fields are read from the file ``tuned.json`` of the run, where the
    command ``tune`` has written them. Without them, the solver is not fitted yet and cannot be called.

    Args:
        steps: Number of steps n, one of those that were fitted.
        log_snr: The log-SNR at each evaluation after the first, n - 1 numbers.
        keep: The factor ``a_i`` on the first state in each step, n numbers.
        weights: The factors ``b_ij`` on the values of q, a row of i + 1 numbers for step i.
        ends: The times between which the solver was fitted, the time of the prior first.
    """

    limits = ranges(steps=STEPS)

    steps: int = 5
    log_snr: tuple[float, ...] = ()
    keep: tuple[float, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()
    ends: tuple[float, float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.steps
        for name in ("log_snr", "keep", "weights", "ends"):
            if not isinstance(getattr(self, name), tuple):
                raise UsageError(f"Tuned: {name} must be a tuple, got {getattr(self, name)!r}", parameter=name)
        sizes = len(self.log_snr), len(self.keep), tuple(map(len, self.weights))
        if sizes not in ((0, 0, ()), (n - 1, n, tuple(range(1, n + 1)))):
            raise UsageError(
                f"Tuned: {n} steps need {n - 1} values of log_snr, {n} of keep and rows of 1 to {n} weights, got "
                f"{sizes[0]}, {sizes[1]} and rows of {list(sizes[2])}"
            )
        numbers = (*self.log_snr, *self.keep, *(w for row in self.weights for w in row), *self.ends)
        if not all(math.isfinite(number) for number in numbers):
            raise UsageError("Tuned: all times and weights must be finite numbers")

    @property
    def fitted(self) -> bool:
        """Whether the solver has its times and weights."""
        return bool(self.keep)

    def within(self, nfe: int) -> Self | None:
        """Return the solver if it was fitted with exactly ``nfe`` evaluations, and ``None`` if with other ones.

        A solver that is not fitted yet is returned with ``nfe`` steps.
        """
        if not self.fitted:
            return replace(self, steps=nfe)
        return self if nfe == self.steps else None

    def times(self, domain: Domain) -> Tensor:
        """Return the times of the n evaluations and the end time, float64 ``(n + 1,)``.

        If the model is defined only at discrete nodes, every time is moved to the nearest node.
        """
        t = domain.sde.t_of_log_snr(torch.tensor(self.log_snr, dtype=torch.float64)).double()
        t = torch.cat(
            [t.new_tensor(self.ends[:1]), t.clamp(min(self.ends), max(self.ends)), t.new_tensor(self.ends[1:])]
        )
        return t if domain.nodes is None else domain.nodes.to(t)[nearest_node(t, domain.nodes.to(t))]

    def check(self, sde: SDE, t0: float, t1: float) -> None:
        """Reject a path or an interval for which the solver was not fitted.

        Raises:
            UsageError: If the solver is not fitted, if the ends differ, or if the path has separate coordinates.
        """
        if not self.fitted:
            raise UsageError(
                "the solver 'tuned' has no times and weights yet; fit it to a run with tune, and use it with that run",
                parameter="solver",
                value="multistep",
            )
        check_scalar(sde, "a fitted solver", "'multistep'", parameter="solver", value="multistep")
        if any(abs(now - then) > 1e-9 for now, then in zip((t0, t1), self.ends, strict=True)):
            raise UsageError(
                f"Tuned was fitted from t = {self.ends[0]:g} to {self.ends[1]:g}, but is used from t = {t0:g} to "
                f"{t1:g}; use 'multistep' between other times, or fit the solver again",
                parameter="solver",
                value="multistep",
            )

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        self.check(model.domain.sde, t0, t1)
        times = self.times(model.domain).to(x.device, time_dtype(x.device))
        scales = model.domain.sde.scale(times).tolist()
        counted, everyone = Counted(model, Tally(x)), torch.arange(len(x), device=x.device)
        z, values = x / scales[0], list[Tensor]()
        for i in range(self.steps):
            estimate = counted(x, times[i])
            values.append(estimate.eps - estimate.x0)
            x = scales[i + 1] * add_scaled(self.keep[i] * z, self.weights[i], values)  # equation (1)
            watch(Step(everyone, times[i + 1], x, done=(i + 1) / self.steps))
        return fixed_solution(x, counted.tally.total, self.steps)


def unrolled(solver: FixedStep, domain: Domain, t0: float, t1: float) -> Tuned:
    """Return the table of equation (1) for a solver with a fixed grid.

    The solver is run with a model that answers its j-th call with q_j = 1, and whose states are vectors of coefficients
    of z_0, q_0, ..., q_(n-1).

    Args:
        solver: A deterministic solver with one evaluation in each step.
        domain: The domain of the model, which sets the path and the nodes.
        t0, t1: The start and end times.

    Raises:
        UsageError: If the solver draws noise or needs several evaluations in a step.
    """
    if solver.stochastic or solver.evaluations != 1:
        raise UsageError(
            f"{type(solver).__name__} cannot be unrolled, because its steps draw noise or need several evaluations"
        )
    check_scalar(domain.sde, "unrolling a solver", "another path")
    spy = _Coefficients(replace(domain, support=None), [])
    start = torch.zeros(1, solver.steps + 1, dtype=torch.float64)
    start[0, 0] = domain.sde.scale(torch.tensor(t0, dtype=torch.float64))
    end = solver(spy, start, t0=t0, t1=t1).x
    times = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t, _ in spy.seen])
    ends = torch.cat([times[1:], times.new_tensor([t1])])
    states = torch.cat([x for _, x in spy.seen[1:]] + [end]) / domain.sde.scale(ends)[:, None]
    return Tuned(
        solver.steps,
        tuple(domain.sde.log_snr(times[1:]).tolist()),
        tuple(states[:, 0].tolist()),
        tuple(tuple(row[1 : i + 2].tolist()) for i, row in enumerate(states)),
        (t0, t1),
    )


@dataclass(frozen=True)
class _Coefficients:
    """A model whose states are coefficients ``(1, n + 1)``, and whose j-th answer is the j-th unit vector as q."""

    domain: Domain
    seen: list[tuple[float | Tensor, Tensor]]

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        self.seen.append((t, x))
        q = torch.zeros_like(x)
        q[0, len(self.seen)] = 1
        alpha, sigma = self.domain.sde.coefficients(torch.as_tensor(t, dtype=torch.float64))
        x0 = (x - sigma * q) / (alpha + sigma)  # solves eps - x0 = q and alpha x0 + sigma eps = x
        return Estimate(x, torch.as_tensor(t), x0, x0 + q, self.domain.sde)

    def rows(self, index: Tensor) -> _Coefficients:
        return self
