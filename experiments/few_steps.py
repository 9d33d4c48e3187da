"""What a few evaluations buy: solver x evaluations on a mixture with a known flow.

    python experiments/few_steps.py           # about a minute on one CPU core

Problem: six Gaussians in the plane with covariances of their own (weights 0.28 to 0.06, widths 0.05 to 0.35), VP from
t = 1 to 1e-3, 2,048 starts drawn from p_1, float64, exact model. Deterministic solvers: rms and median distance to the
exact flow (the adaptive solver at 1e-11); the rms is ruled by the few points near a boundary between modes. Stochastic
solvers: sliced Wasserstein distance to as many exact draws from p at t = 1e-3, with that of two exact draws as floor.

Expected: see docs/choosing-a-solver.md.
"""

from __future__ import annotations

import torch

from scoresde import VPSDE, GaussianMixture, Noise, ProbabilityFlow, RungeKutta
from scoresde.metrics import sliced_wasserstein
from scoresde.solvers import EulerMaruyama, Multistep, MultistepSDE

F64 = torch.float64
WEIGHTS = [0.28, 0.22, 0.18, 0.14, 0.12, 0.06]
MEANS = [[-1.0, -0.6], [0.9, -0.8], [0.2, 1.1], [-0.7, 0.7], [1.2, 0.5], [0.0, -0.1]]
AXES = [(0.3, 0.1, 0.5), (0.12, 0.25, -0.3), (0.35, 0.08, 0.0), (0.1, 0.1, 0.0), (0.06, 0.28, 0.8), (0.05, 0.05, 0.0)]
BUDGETS = (5, 10, 20, 50)
END = 1e-3


def problem() -> GaussianMixture:
    std1, std2, angle = torch.tensor(AXES, dtype=F64).T
    cos, sin = angle.cos(), angle.sin()
    q = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    covariances = q @ torch.diag_embed(torch.stack([std1, std2], 1) ** 2) @ q.mT
    weights, means = torch.tensor(WEIGHTS, dtype=F64), torch.tensor(MEANS, dtype=F64)
    return GaussianMixture(VPSDE(), means, weights=weights, covariances=covariances)


def deterministic(model: GaussianMixture, start: torch.Tensor) -> None:
    exact = ProbabilityFlow(rtol=1e-11, atol=1e-11)(model, start, t1=END).x

    def error(solver) -> str:
        e = (solver(model, start, t1=END).x - exact).norm(dim=1)
        return f"{float(e.square().mean().sqrt()):.4f} / {float(e.median()):.5f}"

    print("| grid | solver | " + " | ".join(f"{n} evaluations" for n in BUDGETS) + " |")
    print("|---|---|" + "---|" * len(BUDGETS))
    rows = [("ddim", "x0", 1, "exact", False), ("dpm++2m", "x0", 2, "midpoint", False)]
    rows += [(f"deis, order {k}", "eps", k, "exact", False) for k in (2, 3, 4)]
    rows += [(f"multistep straight, order {k}", "straight", k, "exact", False) for k in (2, 3, 4)]
    rows += [(f"multistep v, order {k}", "v", k, "exact", False) for k in (2, 3)]
    rows += [(f"multistep straight, order {k}, correct", "straight", k, "exact", True) for k in (2, 3)]
    for grid in ("logsnr", "sqrt"):
        for name, variable, order, rule, correct in rows:
            cells = [error(Multistep(n, variable, order, rule, correct, grid=grid)) for n in BUDGETS]
            print(f"| {grid} | {name} | " + " | ".join(cells) + " |", flush=True)
        cells = ["" if n % 2 else error(RungeKutta(n // 2, grid=grid)) for n in BUDGETS]
        print(f"| {grid} | heun | " + " | ".join(cells) + " |")

    print("\n| rtol | evaluations | rms / median |")
    print("|---|---|---|")
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        solver = ProbabilityFlow(rtol=tolerance, atol=tolerance)
        nfe = float(solver(model, start, t1=END).nfe.double().mean())
        print(f"| {tolerance:.0e} | {nfe:.1f} | {error(solver)} |")


def stochastic(model: GaussianMixture, start: torch.Tensor, generator: torch.Generator) -> None:
    def draw() -> torch.Tensor:
        x0 = model.sample(len(start), generator)
        return model.sde.perturb(x0, END, torch.randn(x0.shape, generator=generator, dtype=F64))

    floors = [sliced_wasserstein(draw(), draw()) for _ in range(10)]
    print(f"\ntwo exact draws: {sum(floors) / 10:.4f} (from {min(floors):.4f} to {max(floors):.4f})\n")
    print("| grid | solver | " + " | ".join(f"{n} evaluations" for n in BUDGETS) + " |")
    print("|---|---|" + "---|" * len(BUDGETS))
    for grid in ("logsnr", "sqrt"):
        for name, make in (
            ("em", lambda n, g: EulerMaruyama(n, grid=g)),
            ("ancestral", lambda n, g: MultistepSDE(n, order=1, grid=g)),
            ("sde (2M-SDE)", lambda n, g: MultistepSDE(n, grid=g)),
            ("sde, order 2, exact", lambda n, g: MultistepSDE(n, rule="exact", grid=g)),
            ("sde, eta 0.5", lambda n, g: MultistepSDE(n, eta=0.5, grid=g)),
        ):
            cells = []
            for n in BUDGETS:
                distances = [
                    sliced_wasserstein(make(n, grid)(model, start, t1=END, noise=Noise.of(len(start), s)).x, draw())
                    for s in range(4)
                ]
                cells.append(f"{sum(distances) / 4:.4f}")
            print(f"| {grid} | {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = problem()
    x0 = model.sample(2048, generator)
    start = model.sde.perturb(x0, 1.0, torch.randn(x0.shape, generator=generator, dtype=F64))
    deterministic(model, start)
    stochastic(model, start, generator)


if __name__ == "__main__":
    main()
