"""Measure the overhead of solvers, without a network, on models that cost almost nothing.

    python experiments/overhead.py            # three minutes on one CPU core

Adaptive solvers: The flow of two Gaussians under VP is solved in the straight frame, at many tolerances. The solvers
are those of this library (with one step size per row), torchdiffeq (configured as in the torchdiffeq engine of this
library, so that the last step ends at the end time and the error norm is that of the worst sample) and SciPy. The table
shows two times, interpolated to a given rms error. These are the time spent outside the model (*free model*), which
would be the total time for a model that costs nothing, and the total time. A solver does the same work in every run.
For each interval between two calls of the model, the script therefore uses the shortest of several measured times, so
that the sum excludes other activity on the machine.
Fixed steps: The model is one Gaussian, and 100 steps of a solver are compared with the same method in a bare loop with
precomputed coefficients. Each time is the shortest of several runs.
Everything runs on one thread. The times depend on the machine, but the ratios are meaningful.

For the expected results, see docs/results.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from scoresde import VPSDE, GaussianMixture, Multistep, Noise
from scoresde.core.shapes import expand
from scoresde.model.estimate import Domain, Estimate
from scoresde.ode.engines import scipy, torchdiffeq
from scoresde.ode.integrate import integrate
from scoresde.sde.grids import make_grid
from scoresde.solvers import DDIM, EulerMaruyama, MultistepSDE

F64 = torch.float64
STD = 0.3
SHAPES = ((1024, 2), (64, 3072))
STEPS = 100
TARGETS = (1e-3, 1e-5)


@dataclass(frozen=True)
class Free:
    """The exact model of data from N(0, STD^2 I), which needs only two multiplications."""

    sde: VPSDE

    @property
    def domain(self) -> Domain:
        return Domain.of(self.sde)

    def __call__(self, x: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = self.sde.coefficients(t)
        total = alpha.square() * STD**2 + sigma.square()
        return Estimate(x, t, expand(alpha * STD**2 / total, x) * x, expand(sigma / total, x) * x, self.sde)

    def rows(self, index: Tensor) -> Free:
        return self


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest time of several runs."""
    best = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def adaptive(shape: tuple[int, int], repeats: int) -> None:
    sde, generator = VPSDE(), torch.Generator().manual_seed(0)
    means = torch.randn(2, shape[1], generator=generator, dtype=F64)
    model = GaussianMixture(sde, means, torch.full((2,), 0.15, dtype=F64))
    x = sde.perturb(model.sample(shape[0], generator), 1.0, torch.randn(shape, generator=generator, dtype=F64))
    ends = torch.tensor([1.0, 1e-3], dtype=F64)
    (r0, r1), scale = sde.ratio(ends).tolist(), sde.scale(ends)
    y, marks = x / scale[0], []

    def slope(y: Tensor, r: Tensor) -> Tensor:
        marks.append(time.perf_counter())
        estimate = model(expand(sde.scale(t := sde.t_of_ratio(r).clamp(1e-3, 1.0)), y) * y, t)
        k = estimate.eps - estimate.x0
        marks.append(time.perf_counter())
        return k

    def own(method: str) -> Callable[[float], Tensor]:
        return lambda tol: integrate(lambda s, r, _: slope(s, r), y, r0, r1, rtol=tol, atol=tol, method=method).y

    def engine(solve: Callable[..., Tensor], method: str = "auto") -> Callable[[float], Tensor]:
        return lambda tol: solve(lambda r, s: slope(s, torch.tensor(r, dtype=F64)), y, r0, r1, tol, tol, method)

    solvers = {
        "own, dopri5": own("dopri5"), "own, tsit5": own("tsit5"), "torchdiffeq, dopri5": engine(torchdiffeq),
        "SciPy, RK45": engine(scipy), "SciPy, DOP853": engine(scipy, "DOP853"),
    }  # fmt: skip
    exact, found = own("dopri5")(1e-11), {}
    for name, solve in solvers.items():
        errors, outside, whole = [], [], []
        for tolerance in [10.0**-k for k in range(2, 8)]:
            stretches = []
            for _ in range(repeats):
                marks[:] = [time.perf_counter()]
                solved = solve(tolerance)
                marks.append(time.perf_counter())
                stretches.append([end - start for start, end in pairwise(marks)])
            least = [min(times) for times in zip(*stretches, strict=True)]
            errors.append(float((solved - exact).square().mean().sqrt()))
            outside.append(sum(least[::2]))
            whole.append(sum(least))
        found[name] = [at_error(errors, times, target) for times in (outside, whole) for target in TARGETS]
    best_engine = [min(row[i] for name, row in found.items() if "own" not in name) for i in range(2 * len(TARGETS))]
    for name, row in found.items():
        cells = (f"{1e3 * f:.1f} ms ({f / b:.2f})" for f, b in zip(row, best_engine, strict=True))
        print(f"| {shape} | {name} | " + " | ".join(cells) + " |", flush=True)


def at_error(errors: list[float], times: list[float], target: float) -> float:
    """Interpolate the time at which the error is ``target``, linearly in the logarithms, between two tolerances."""
    points = list(zip(errors, times, strict=True))
    for (e0, t0), (e1, t1) in pairwise(points):
        if e0 >= target >= e1:
            u = math.log(e0 / target) / math.log(e0 / e1)
            return math.exp((1 - u) * math.log(t0) + u * math.log(t1))
    return math.nan


def fixed(shape: tuple[int, int]) -> None:
    sde = VPSDE()
    model, x = Free(sde), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    noise, times = Noise.of(len(x)), make_grid("sqrt", sde, STEPS, 1.0, 1e-3)
    alpha, sigma = (c.tolist() for c in sde.coefficients(times))
    g2, f = sde.diffusion_squared(times).tolist(), sde.drift_rate(times).tolist()
    t = times.tolist()

    def bare_ddim() -> None:
        y = x
        for i in range(STEPS):
            e = model(y, times[i])
            y = alpha[i + 1] * e.x0 + sigma[i + 1] * e.eps

    def bare_multistep() -> None:
        y, before = x, None
        for i in range(STEPS):
            e = model(y, times[i])
            q = e.eps - e.x0
            y = 0.99 * y + 0.01 * q if before is None else 0.99 * y + 0.015 * q - 0.005 * before
            before = q

    def bare_em() -> None:
        y = x
        for i in range(STEPS):
            e = model(y, times[i])
            h = t[i] - t[i + 1]
            z = noise.normal(tuple(x.shape[1:]), i)
            y = y - h * (f[i] * y + g2[i] / sigma[i] * e.eps) + math.sqrt(g2[i] * h) * z

    for name, ours, bare in (
        ("ddim", DDIM(STEPS), bare_ddim),
        ("multistep, order 1 against ddim", Multistep(STEPS, order=1), bare_ddim),
        ("multistep, order 2", Multistep(STEPS, order=2), bare_multistep),
        ("em", EulerMaruyama(STEPS), bare_em),
        ("sde, order 1 against em", MultistepSDE(STEPS, order=1), bare_em),
    ):
        a, b = seconds(lambda s=ours: s(model, x, noise=noise)), seconds(bare)
        print(f"| {shape} | {name} | {1e6 * a / STEPS:.0f} | {1e6 * b / STEPS:.0f} | {a / b:.2f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    heads = [f"{what}, rms {target:g}" for what in ("free model", "with the model") for target in TARGETS]
    print("| state | engine | " + " | ".join(heads) + " |\n|---|---|" + "---|" * len(heads))
    for shape, repeats in zip(SHAPES, (15, 5), strict=True):
        adaptive(shape, repeats)
    print("\n| state | fixed steps | us per step | bare loop | ratio |\n|---|---|---|---|---|")
    for shape in SHAPES:
        fixed(shape)


if __name__ == "__main__":
    main()
