"""Other people's integrators behind our call: torchdiffeq and SciPy for the flow, torchsde for the reverse SDE.

For cross-checks, for their methods (dopri8, Radau, LSODA, stochastic Runge-Kutta), and because a reader may trust them
more. They advance the whole batch with one step, so that a sample's result depends on its neighbours to within the
tolerance, and every row reports the same count. Guards: torchdiffeq is made to land on the end of the interval and to
measure the worst sample (by default it steps over the end, to times where there is no model, and averages the batch);
torchsde gets a Brownian motion with the step of the grid (its default costs a thousand times more).

References:
    Chen (2018), torchdiffeq, https://github.com/rtqichen/torchdiffeq.
    Li et al. (2020), Scalable gradients for SDEs, arXiv:2001.01328 (torchsde).
    Virtanen et al. (2020), SciPy 1.0, https://doi.org/10.1038/s41592-019-0686-2.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NumericalError, UsageError
from ..estimate import Counted, Denoiser, Tally
from ..grids import make_grid
from ..noise import Noise
from ..shapes import expand, flat, rms_flat, time_dtype
from .base import Solution, Solver, Watch, fixed_solution
from .level import auto_level
from .trajectory import Step

__all__ = ["ENGINES", "TorchSDE"]

Slope = Callable[[float, Tensor], Tensor]  # dy/dr of the whole batch at one r


def torchdiffeq(f: Slope, y: Tensor, r0: float, r1: float, rtol: float, atol: float, method: str) -> Tensor:
    """Solve with torchdiffeq (default method: dopri5); shape of ``y``."""
    from torchdiffeq import odeint
    from torchdiffeq._impl.odeint import SOLVERS

    method = "dopri5" if method == "auto" else method
    adaptive = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
    if method not in adaptive:
        others = ", ".join(m for m in SOLVERS if m in adaptive)
        raise UsageError(f"torchdiffeq has no adaptive method {method!r}; choose from: {others}")
    low, high = min(r0, r1), max(r0, r1)
    ends = torch.tensor([r0, r1], dtype=time_dtype(y.device), device=y.device)
    options = {
        "step_t": ends[1:],  # land there instead of interpolating back from beyond
        "first_step": 0.01 * (high - low),  # the heuristic first step may leave the interval
        "norm": lambda e: rms_flat(e).max(),  # the worst sample, not the mean of the batch
    }
    try:
        solved = odeint(
            lambda r, s: f(min(max(float(r), low), high), s),
            y,
            ends,
            rtol=rtol,
            atol=atol,
            method=method,
            options=options,
        )
    except AssertionError as error:
        raise NumericalError(
            f"torchdiffeq gave up: {error}; try a larger rtol, or the engine own", parameter="engine", value="own"
        ) from None
    out: Tensor = solved[-1]
    return out


def scipy(f: Slope, y: Tensor, r0: float, r1: float, rtol: float, atol: float, method: str) -> Tensor:
    """Solve with ``scipy.integrate.solve_ivp`` on the CPU in float64 (default method: RK45); shape of ``y``."""
    from scipy.integrate import solve_ivp

    method = "RK45" if method == "auto" else method
    known = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
    if method not in known:
        raise UsageError(f"SciPy has no method {method!r}; choose from: {', '.join(known)}")

    def slope(r: float, flat: object) -> object:
        state = torch.as_tensor(flat).reshape(y.shape).to(y)
        return f(r, state).flatten().double().cpu().numpy()

    solved = solve_ivp(slope, (r0, r1), y.flatten().double().cpu().numpy(), method, rtol=rtol, atol=atol)
    if not solved.success:
        raise NumericalError(
            f"SciPy gave up: {solved.message}; try a larger rtol, or the engine own", parameter="engine", value="own"
        )
    return torch.as_tensor(solved.y[:, -1]).reshape(y.shape).to(y)


ENGINES = {"torchdiffeq": torchdiffeq, "scipy": scipy}


@dataclass(frozen=True)
class TorchSDE(Solver):
    """The reverse SDE by torchsde, on its own grid of equal steps in t.

    Its random numbers come from one generator for each batch, seeded by the seed and the first sample: a batch is
    reproducible, a sample alone is not. ``reversible_heun`` is refused, because it diverges on the reverse SDE.

    Args:
        steps: Number of steps.
        method: ``euler``, ``milstein`` (equal to euler: the noise is additive), ``srk`` (ten evaluations a step).
        eta: Factor on the noise level of the reverse SDE.
    """

    steps: int = 200
    method: str = "srk"
    eta: float = 1.0

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        known = ("euler", "milstein", "srk")
        if self.method not in known:
            raise UsageError(f"torchsde's method {self.method!r} cannot be used; choose from: {', '.join(known)}")
        if not self.eta > 0:
            raise UsageError(f"eta is {self.eta}; it must be > 0 (the solver ode has no noise)")

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        import torchsde

        if noise.brownian:
            raise UsageError("torchsde makes its own Brownian motion, which knows no samples; use the solver sde or em")
        sde, shape = model.domain.sde, x.shape
        make_grid("uniform", sde, self.steps, t0, t1)  # refuses what is no grid; torchsde knows no nodes
        eta, counted = self.eta, Counted(model, Tally(x))

        class Reverse(torch.nn.Module):
            sde_type, noise_type = "ito", "diagonal"

            def time(self, s: Tensor) -> Tensor:
                # torchsde runs forward in s = t0 - t; rounding must not leave the model's domain.
                return (t0 - s.to(time_dtype(x.device))).clamp(t1, t0)

            def f(self, s: Tensor, y: Tensor) -> Tensor:
                t = self.time(s)
                estimate = counted(y.reshape(shape), t)
                level = eta * auto_level(sde, t)
                return flat(expand(level.square() / 2, x) * estimate.score - estimate.velocity)

            def g(self, s: Tensor, y: Tensor) -> Tensor:
                return (eta * auto_level(sde, self.time(s))).to(y.dtype).expand_as(y)

        start = flat(x)
        # One word of the first row's address, so that no two batches share their Brownian motion.
        entropy = int(noise.uniform((1,), stream="solver", dtype=torch.float64)[0, 0] * 2**24)
        s = torch.tensor([0.0, t0 - t1], dtype=x.dtype, device=x.device)
        step = (t0 - t1) / self.steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bm = torchsde.BrownianInterval(
                t0=s[0], t1=s[1], size=start.shape, dtype=x.dtype, device=x.device, dt=step,
                entropy=entropy, levy_area_approximation="space-time" if self.method == "srk" else "none",
            )  # fmt: skip
            solved = torchsde.sdeint(Reverse(), start, s, bm=bm, method=self.method, dt=step)
        end = solved[-1].reshape(shape)
        watch(Step(torch.arange(len(x), device=x.device), torch.tensor(t1, dtype=time_dtype(x.device)), end, done=1.0))
        return fixed_solution(end, counted.tally.total, self.steps)
