"""Measure the accuracy of solvers with few evaluations, on a mixture with a known flow.

    python experiments/few_steps.py           # about 15 minutes on one CPU core

The problem is a mixture of six Gaussians in the plane with different covariances (weights from 0.06 to 0.28, standard
deviations from 0.05 to 0.35), for VP from t = 1 to 1e-3, in float64, with the exact model. For deterministic solvers,
the table shows the rms and the median distance to the exact flow (the adaptive solver at rtol 1e-11) for 2,048 starting
points drawn from p_t at t = 1. The rms is dominated by the few points near a boundary between modes. For stochastic
solvers, the table shows the sliced Wasserstein distance between 16,384 samples and as many exact draws from p_t at
t = 1e-3, averaged over three seeds. The distance between two sets of exact draws is a lower limit for what a solver can
achieve. experiments/peers.py runs samplers of other libraries from the same starting points.

For the expected results, see docs/choosing-a-solver.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde import VPSDE, GaussianMixture, Multistep, Noise, ProbabilityFlow, RungeKutta
from scoresde.metrics import sliced_wasserstein
from scoresde.solvers import (
    DDIM,
    AdaptiveSDE,
    EDMHeun,
    EulerMaruyama,
    MultistepSDE,
    PredictorCorrector,
    Singlestep,
    Solver,
    StochasticHeun,
)

F64 = torch.float64
WEIGHTS = [0.28, 0.22, 0.18, 0.14, 0.12, 0.06]
MEANS = [[-1.0, -0.6], [0.9, -0.8], [0.2, 1.1], [-0.7, 0.7], [1.2, 0.5], [0.0, -0.1]]
AXES = [(0.3, 0.1, 0.5), (0.12, 0.25, -0.3), (0.35, 0.08, 0.0), (0.1, 0.1, 0.0), (0.06, 0.28, 0.8), (0.05, 0.05, 0.0)]
BUDGETS = (5, 10, 20, 50)
END = 1e-3

# Each solver, as a function of its grid. `within` then sets the number of steps that the budget allows.
DETERMINISTIC: dict[str, Callable[[str], Solver]] = {
    "ddim": lambda g: DDIM(grid=g),
    "euler (velocity in t)": lambda g: RungeKutta(method="euler", frame="t", grid=g),
    "heun": lambda g: RungeKutta(grid=g),
    "edm (heun in the VE frame)": lambda g: EDMHeun(grid=g),
    "rk4": lambda g: RungeKutta(method="rk4", grid=g),
    "dpm2s": lambda g: Singlestep(variable="eps", grid=g),
    "dpm3s": lambda g: Singlestep(variable="eps", order=3, grid=g),
    "dpm++2s": lambda g: Singlestep(grid=g),
    "dpm++2m": lambda g: Multistep(variable="x0", order=2, rule="midpoint", grid=g),
    "dpm++3m": lambda g: Multistep(variable="x0", order=3, grid=g),
    "unipc (bh2, order 2)": lambda g: Multistep(variable="x0", order=2, rule="midpoint", correct=True, grid=g),
    "deis, order 2": lambda g: Multistep(variable="eps", order=2, grid=g),
    "deis, order 3": lambda g: Multistep(variable="eps", order=3, grid=g),
    "deis, order 4": lambda g: Multistep(variable="eps", order=4, grid=g),
    "multistep v, order 3": lambda g: Multistep(variable="v", order=3, grid=g),
    "multistep gauss, order 2": lambda g: Multistep(variable="gauss", order=2, grid=g),
    "multistep gauss, order 4, correct": lambda g: Multistep(variable="gauss", order=4, correct=True, grid=g),
    "multistep straight, order 3": lambda g: Multistep(order=3, grid=g),
    "multistep straight, order 2, correct": lambda g: Multistep(order=2, correct=True, grid=g),
    "multistep straight, order 3, correct": lambda g: Multistep(order=3, correct=True, grid=g),
    "multistep straight, order 4, correct": lambda g: Multistep(order=4, correct=True, grid=g),
    "**multistep** (the default)": lambda g: Multistep(grid=g),
}
STOCHASTIC: dict[str, Callable[[str], Solver]] = {
    "em": lambda g: EulerMaruyama(grid=g),
    "em, eta 0.5": lambda g: EulerMaruyama(eta=0.5, grid=g),
    "heun-sde": lambda g: StochasticHeun(grid=g),
    "ancestral (ddim, eta 1)": lambda g: MultistepSDE(order=1, grid=g),
    "reverse-diffusion": lambda g: PredictorCorrector(corrector="none", grid=g),
    "pc": lambda g: PredictorCorrector(grid=g),
    "sde (2M-SDE)": lambda g: MultistepSDE(grid=g),
    "sde, eta 0.5": lambda g: MultistepSDE(eta=0.5, grid=g),
    "sa (order 2, correct)": lambda g: MultistepSDE(rule="exact", correct=True, grid=g),
    "ER-SDE-3": lambda g: MultistepSDE(order=3, level="er", grid=g),
    "**er-sde**": lambda g: MultistepSDE(level="er", correct=True, grid=g),
}


def axes() -> tuple[Tensor, Tensor]:
    """Return the standard deviations ``(K, 2)`` of K Gaussians along their axes, and the axes ``(K, 2, 2)``."""
    std1, std2, angle = torch.tensor(AXES, dtype=F64).T
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([std1, std2], 1), torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def problem() -> GaussianMixture:
    std, q = axes()
    covariances = q @ torch.diag_embed(std**2) @ q.mT
    weights, means = torch.tensor(WEIGHTS, dtype=F64), torch.tensor(MEANS, dtype=F64)
    return GaussianMixture(VPSDE(), means, weights=weights, covariances=covariances)


def starts(model: GaussianMixture, count: int = 2048, seed: int = 20240) -> Tensor:
    """Draw starting points from p_t at t = 1, float64 ``(count, 2)``."""
    std, q = axes()
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(torch.tensor(WEIGHTS, dtype=F64), count, replacement=True, generator=generator)
    z = torch.randn(count, 2, generator=generator, dtype=F64)
    x0 = model.means[k] + torch.einsum("nij,nj->ni", (q * std[:, None])[k], z)
    return model.domain.sde.perturb(x0, 1.0, torch.randn(count, 2, generator=generator, dtype=F64))


def table(rows: dict[str, Callable[[str], Solver]], cell: Callable[[Solver], str]) -> None:
    print("| grid | solver | " + " | ".join(f"{n} evaluations" for n in BUDGETS) + " |")
    print("|---|---|" + "---|" * len(BUDGETS))
    for grid in ("logsnr", "sqrt"):
        for name, make in rows.items():
            solvers = [make(grid).within(n) for n in BUDGETS]
            cells = ["" if s is None else cell(s) for s in solvers]
            print(f"| {grid} | {name} | " + " | ".join(cells) + " |", flush=True)


def deterministic(model: GaussianMixture) -> None:
    start = starts(model)
    exact = ProbabilityFlow(rtol=1e-11, atol=1e-11)(model, start, t1=END).x

    def error(solver: Solver) -> str:
        e = (solver(model, start, t1=END).x - exact).norm(dim=1)
        return f"{float(e.square().mean().sqrt()):.4f} / {float(e.median()):.5f}"

    table(DETERMINISTIC, error)
    print("\n| rtol | evaluations | rms / median |\n|---|---|---|")
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        solver = ProbabilityFlow(rtol=tolerance, atol=tolerance)
        nfe = float(solver(model, start, t1=END).nfe.double().mean())
        print(f"| {tolerance:.0e} | {nfe:.1f} | {error(solver)} |")


def stochastic(model: GaussianMixture, count: int = 16384, seeds: int = 3) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(t: float) -> Tensor:
        x0 = model.sample(count, generator)
        return model.domain.sde.perturb(x0, t, torch.randn(x0.shape, generator=generator, dtype=F64))

    begun, targets = [draw(1.0) for _ in range(seeds)], [draw(END) for _ in range(seeds)]
    floors = [sliced_wasserstein(draw(END), target) for target in targets for _ in range(4)]

    def distance(solver: Solver) -> str:
        found = [
            sliced_wasserstein(solver(model, start, t1=END, noise=Noise.of(count, seed)).x, target)
            for seed, (start, target) in enumerate(zip(begun, targets, strict=True))
        ]
        return f"{sum(found) / seeds:.4f}"

    print(f"\ntwo sets of exact draws: {sum(floors) / len(floors):.4f} (from {min(floors):.4f} to {max(floors):.4f})\n")
    table(STOCHASTIC, distance)
    print("\n| adaptive-sde, rtol | evaluations | distance |\n|---|---|---|")
    for tolerance in (0.2, 0.05, 0.02):
        adaptive = AdaptiveSDE(rtol=tolerance, atol=tolerance)
        nfe = float(adaptive(model, begun[0], t1=END, noise=Noise.of(count)).nfe.double().mean())
        print(f"| {tolerance:g} | {nfe:.1f} | {distance(adaptive)} |")


def main() -> None:
    torch.set_num_threads(1)
    deterministic(problem())
    stochastic(problem())


if __name__ == "__main__":
    main()
