"""Deterministic solvers: Runge-Kutta methods for the probability flow.

With  y = x / (alpha + sigma)  and  r = sigma / (alpha + sigma),  every path is straight (:mod:`scoresde.sde.base`), and
the probability-flow ODE of Song et al. (2021), arXiv:2011.13456, eq. 13, is

    dy/dr = eps_hat(x_t, t) - x0_hat(x_t, t).                                                     frame "straight"

The right-hand side contains neither the coefficients f and g of the SDE nor derivatives of alpha and sigma, and it is
finite at both ends of the path. In two other frames (choices of the variables), the same flow is

    dx/dt = alpha' x0_hat + sigma' eps_hat,                                                       frame "t"
    d(x/alpha) / d(sigma/alpha) = eps_hat.                                                        frame "ve"

The solvers in this module integrate these equations in either direction. If alpha and sigma differ between coordinates,
r is the clock of the path, and the right-hand side of the first equation is multiplied by each coordinate's speed
(:meth:`scoresde.SDE.speed`). The frame "ve" then does not exist, because its clock differs between coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import NumericalError, UsageError
from ..core.limits import EVALUATIONS, ranges
from ..core.noise import Noise
from ..core.shapes import at, expand, time_dtype
from ..model.estimate import Counted, Denoiser, Tally
from ..ode.engines import ENGINES
from ..ode.fixed import RULES, rule_step
from ..ode.integrate import TABLEAUS, check_tolerances, integrate
from ..sde.base import SDE, informative
from ..sde.check import check_scalar
from ..sde.grids import leaps
from .base import FixedStep, Solution, Solver, Watch, fixed_solution, unwatched
from .trajectory import Step

__all__ = ["FRAMES", "ProbabilityFlow", "RungeKutta", "euler", "heun", "rk4", "slope"]


def slope(model: Denoiser, y: Tensor, t: Tensor) -> Tensor:
    """Return ``dy/dr`` at the state ``y: (B, *event)`` and the time ``t: ()`` or ``t: (B,)``."""
    sde = model.domain.sde
    estimate = model(expand(sde.scale(t), y) * y, t)
    found = estimate.eps - estimate.x0
    return expand(sde.speed(t), y) * found if sde.coords else found


@dataclass(frozen=True)
class Frame:
    """A change of variables for the flow: the state is divided by a scale, and a clock replaces the time.

    Attributes:
        scale, clock: Functions ``(sde, t)`` that return the scale and the clock at the times t. Each result has the
            same shape as t.
        time: A function ``(sde, value)`` that returns the time t at which the clock equals ``value``.
        slope: A function ``(model, state, t)`` that returns the derivative of the scaled state with respect to the
            clock.
    """

    scale: Callable[[SDE, Tensor], Tensor]
    clock: Callable[[SDE, Tensor], Tensor]
    time: Callable[[SDE, Tensor], Tensor]
    slope: Callable[[Denoiser, Tensor, Tensor], Tensor]


def _ve_clock(sde: SDE, t: Tensor) -> Tensor:
    alpha, sigma = sde.coefficients(t)
    return torch.where(informative(alpha, sigma), sigma / alpha, torch.inf)


FRAMES = {
    "straight": Frame(
        scale=lambda sde, t: sde.scale(t),
        clock=lambda sde, t: sde.ratio(t),
        time=lambda sde, r: sde.t_of_ratio(r),
        slope=slope,
    ),
    "t": Frame(
        scale=lambda sde, t: torch.ones_like(t),
        clock=lambda sde, t: t,
        time=lambda sde, t: t,
        slope=lambda model, x, t: model(x, t).velocity,
    ),
    "ve": Frame(
        scale=lambda sde, t: sde.coefficients(t)[0],
        clock=_ve_clock,
        time=lambda sde, s: sde.t_of_log_snr(-2 * torch.log(s)).clamp(sde.t_min, sde.t_max),
        slope=lambda model, y, t: model(expand(model.domain.sde.coefficients(t)[0], y) * y, t).eps,
    ),
}


def _frame(name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise UsageError(f"unknown frame {name!r}; choose from: {', '.join(names)}")


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """Adaptive Runge-Kutta solver for the probability flow, with a separate step size for each sample.

    Args:
        rtol: Relative tolerance for the local error of a sample, measured in the chosen frame.
        atol: Absolute tolerance, or ``None`` to use the value of ``rtol``.
        method: The Runge-Kutta method, or ``auto`` for the engine's default. The ``own`` engine has ``dopri5`` and
            ``tsit5`` (order 5) and ``bosh3`` (order 3). For other engines, see the documentation of the library.
        max_nfe: Maximum number of evaluations per sample.
        engine: The integrator: ``own`` (this package's integrator), ``torchdiffeq`` or ``scipy``.
        frame: The frame in which the flow is integrated: ``straight`` or ``t``. The original code uses ``t``, that is,
            it integrates the velocity over time.
    """

    limits = ranges(max_nfe=EVALUATIONS)

    rtol: float = 1e-5
    atol: float | None = None
    method: str = "auto"
    max_nfe: int = 10_000
    engine: str = "own"
    frame: str = "straight"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerances(self.rtol, self.atol)
        if self.engine not in ("own", *ENGINES):
            raise UsageError(f"unknown engine {self.engine!r}; choose from: own, {', '.join(ENGINES)}")
        if self.engine == "own" and self.method not in ("auto", *TABLEAUS):
            raise UsageError(f"unknown Runge-Kutta method {self.method!r}; choose from: {', '.join(TABLEAUS)}")
        _frame(self.frame, ("straight", "t"))

    def uses_rates(self, sde: SDE) -> bool:
        return self.frame == "t"

    @property
    def absolute(self) -> float:
        """The absolute tolerance: ``atol``, or ``rtol`` if ``atol`` is ``None``."""
        return self.rtol if self.atol is None else self.atol

    @property
    def scheme(self) -> str:
        """The name of the Runge-Kutta method. For the ``own`` engine, ``auto`` is replaced by ``dopri5``."""
        return "dopri5" if self.engine == "own" and self.method == "auto" else self.method

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        sde, frame = model.domain.sde, FRAMES[self.frame]
        if self.frame == "t" and not sde.smooth:
            # Many nodes lie between the stages of a step, and the error estimate of the step misses them. On a DDPM
            # chain with 709 noise levels, the errors of some rows were 50 times a tolerance of 4e-5, and 7,000 times a
            # tolerance of 1e-7.
            raise UsageError(
                f"ProbabilityFlow: the velocity of {type(sde).__name__} jumps at each node, so the error of a step in "
                "t cannot be estimated; use the 'straight' frame, in which the flow has no such jumps",
                parameter="frame",
                value="straight",
            )
        ends = torch.tensor([t0, t1], dtype=time_dtype(x.device), device=x.device)
        scale, clock = frame.scale(sde, ends), frame.clock(sde, ends)
        c0, c1 = float(clock[0]), float(clock[1])

        def time(c: Tensor) -> Tensor:
            return frame.time(sde, c).clamp(min(t0, t1), max(t0, t1))

        counted = Counted(model, Tally(x))

        def f(y: Tensor, c: Tensor, index: Tensor) -> Tensor:
            return frame.slope(counted if len(index) == len(x) else counted.rows(index), y, time(c))

        def on_step(index: Tensor, c: Tensor, y: Tensor, k: Tensor, done: float) -> None:
            t = torch.where(c == c1, ends[1], time(c))
            watch(Step(index, t, y * expand(frame.scale(sde, t), y), k if self.frame == "straight" else None, done))

        y = x / expand(at(scale, 0), x)
        if self.engine != "own":
            solution = self._by_engine(f, y, (c0, c1), at(scale, 1), counted.tally)
            # The engines do not report their steps, so only the end is shown.
            watch(Step(torch.arange(len(x), device=x.device), ends[1], solution.x, done=1.0))
            return solution
        shown, counts = None if watch is unwatched else on_step, torch.as_tensor(model.domain.dims(x))
        result = integrate(
            f, y, c0, c1, rtol=self.rtol, atol=self.absolute, method=self.scheme, max_nfe=self.max_nfe, on_step=shown,
            counts=None if model.domain.support is None else counts,
        )  # fmt: skip
        end, nfe = result.y * expand(at(scale, 1), x), result.nfe + counted.tally.more
        return Solution(end, nfe, result.accepted, result.rejected, result.status)

    def _by_engine(
        self,
        f: Callable[[Tensor, Tensor, Tensor], Tensor],
        y: Tensor,
        ends: tuple[float, float],
        scale: Tensor,
        tally: Tally,
    ) -> Solution:
        """Solve with a third-party engine, which uses one step size for the whole batch."""
        everyone = torch.arange(len(y), device=y.device)

        def slope_at(c: float, state: Tensor) -> Tensor:
            if tally.evaluations >= self.max_nfe:
                raise NumericalError(
                    f"the {self.engine!r} engine exceeded the maximum number of evaluations, max_nfe = "
                    f"{self.max_nfe:,}; try a larger rtol or max_nfe",
                    parameter="rtol",
                    value=f"{10 * self.rtol:g}",
                )
            return f(state, torch.full((len(y),), c, dtype=time_dtype(y.device), device=y.device), everyone)

        solved = ENGINES[self.engine](slope_at, y, *ends, self.rtol, self.absolute, self.method)
        return fixed_solution(solved * expand(scale, y), tally.total, 0)


@dataclass(frozen=True)
class RungeKutta(FixedStep):
    """Runge-Kutta solver for the probability flow on a fixed grid.

    Args:
        steps: Number of steps.
        method: The Runge-Kutta method: ``euler`` (order 1, one evaluation per step), ``midpoint`` or ``heun`` (order 2,
            two evaluations per step), or ``rk4`` (order 4, four evaluations per step).
        frame: The frame in which the flow is integrated: ``straight``, ``t`` or ``ve``. In the ``straight`` and ``ve``
            frames, Euler's method is DDIM. The ``ve`` frame cannot be used if alpha = 0 at either end of the time
            interval.
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    steps: int = 32
    method: str = "heun"
    frame: str = "straight"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in RULES:
            raise UsageError(f"unknown Runge-Kutta method {self.method!r}; choose from: {', '.join(RULES)}")
        _frame(self.frame, tuple(FRAMES))

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return len(RULES[self.method].c)

    def uses_rates(self, sde: SDE) -> bool:
        return self.frame == "t"

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        sde, frame = model.domain.sde, FRAMES[self.frame]
        if self.frame == "ve":
            check_scalar(sde, "the 've' frame", "the 'straight' frame", parameter="frame", value="straight")
        frames = [FRAMES["straight"] if leap and self.frame == "t" else frame for leap in leaps(sde, times)]
        clocks = {f: f.clock(sde, times) for f in {frame, *frames}}
        scales = {f: f.scale(sde, times) for f in {frame, *frames}}
        if not bool(torch.isfinite(clocks[frame]).all()):
            raise UsageError(
                "the 've' frame cannot be used on this path, because sigma/alpha is infinite where alpha = 0; use the "
                "'straight' frame"
            )
        sizes = [float(clocks[f][i + 1] - clocks[f][i]) for i, f in enumerate(frames)]

        def advance(i: int, x: Tensor) -> Tensor:
            frame = frames[i]
            clock, scale = clocks[frame], scales[frame]

            def f(c: float, y: Tensor) -> Tensor:
                t = times[i + int(c)] if c in (0, 1) else frame.time(sde, clock[i] + c * sizes[i])
                return frame.slope(model, y, t)

            y = rule_step(self.method, f, x / expand(at(scale, i), x), sizes[i])
            return expand(at(scale, i + 1), x) * y

        return advance


def euler(steps: int = 100, frame: str = "t", grid: str = "auto") -> RungeKutta:
    """Euler's method for the probability flow: order 1, one evaluation per step."""
    return RungeKutta(steps, "euler", frame, grid=grid)


def heun(steps: int = 32, frame: str = "straight", grid: str = "auto") -> RungeKutta:
    """Heun's method for the probability flow: order 2, two evaluations per step."""
    return RungeKutta(steps, "heun", frame, grid=grid)


def rk4(steps: int = 16, frame: str = "straight", grid: str = "auto") -> RungeKutta:
    """The classical Runge-Kutta method for the probability flow: order 4, four evaluations per step."""
    return RungeKutta(steps, "rk4", frame, grid=grid)
