"""Test methods at their numerical limits, against closed forms or solutions with much smaller tolerances.

    python experiments/edges.py               # about three minutes on one CPU core
    python experiments/edges.py orders        # one of: langevin steep quadrature orders rough

langevin: Corrector steps alone, at t = 1/2, starting from the marginal for data from N(0, 0.5^2). The table shows the
ratio of the standard deviation to its correct value, both with the norms of each sample as published and with the norms
as limited in this library, and the bound from scoresde/solvers/langevin.py.
steep: VP, sub-VP, cosine and a user-defined path, on most of which the data vanish long before t = 1. The table shows
the largest errors of the adaptive flow and of the likelihood, for a Gaussian.
quadrature: A ring of eight narrow Gaussians. The table shows the largest error of the log density over the successful
rows, per dimension and in units of the tolerance, and the number of evaluations of the divergence.
orders: The observed order from the median error, between 128 and 256 steps and between 256 and 512 steps, on the
default grid of each path. The lines below the table show the order from the error of pc's final variance, between N and
2N steps.
rough: The adaptive flow of a network with random weights. For one row, the table shows the final error, the largest
error of a single step compared with the exact flow from the start of that step, both in units of the tolerance, and the
largest factor by which the flow magnifies the error of a step until the end. The network is used with its default
frequencies of the noise label, which go up to 32, and with all frequencies limited to 2.

For the expected results, see docs/design.md (Engines) and docs/choosing-a-solver.md (Order of convergence).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from few_steps import problem
from orders import SOLVERS as DETERMINISTIC

from scoresde import (
    EDM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    ProbabilityFlow,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
)
from scoresde.nn import MLP
from scoresde.sde.grids import make_grid
from scoresde.solvers import PredictorCorrector
from scoresde.solvers.langevin import langevin_step, norm_ratio
from scoresde.solvers.stochastic import reverse_diffusion_step

F64 = torch.float64


@dataclass(frozen=True)
class Steep(SDE):
    """A user-defined path on which the data vanish early."""

    rate: float = 400.0

    def alpha(self, t):
        return torch.exp(-self.rate * t.square() / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.rate * t.square()))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(sde: SDE, dims: int, mean: float = 0.3) -> GaussianMixture:
    return GaussianMixture(sde, torch.full((1, dims), mean, dtype=F64), torch.tensor([0.5], dtype=F64))


def ring(sde: SDE, std: float) -> GaussianMixture:
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    return GaussianMixture(sde, 1.3 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), std, dtype=F64))


def langevin() -> None:
    print("| path | snr | D | norms as published | limited norms | bound |\n|---|---|---|---|---|---|")
    for name, sde in (("VP", VPSDE()), ("VE", VESDE())):
        t = torch.tensor(0.5, dtype=F64)
        alpha, sigma = sde.coefficients(t)
        v = float((alpha * 0.5) ** 2 + sigma**2)
        for snr in (0.05, 0.16, 0.3, 0.7):
            for dims in (1, 2, 4, 16, 64, 3072):
                n, found = max(8, 20000 // dims), []
                for held in (None, sigma):
                    x = math.sqrt(v) * normals(n, dims)
                    for k in range(150 if dims < 3072 else 40):
                        z, score = normals(n, dims, seed=k + 1), -x / v
                        size = norm_ratio(z, score, "sample", held)
                        x = langevin_step(x, score, z, torch.ones((), dtype=F64), snr, size)
                    found.append(float(x.std()) / math.sqrt(v))
                bound = math.sqrt((1 + 2 / max(dims, 17)) / (1 - snr**2))
                print(f"| {name} | {snr} | {dims} | {found[0]:.3g} | {found[1]:.3f} | {bound:.3f} |", flush=True)


def steep() -> None:
    print("| path | error of ode, rtol 1e-6 | error of log p per dimension |\n|---|---|---|")
    paths = [kind(0.1, b) for kind in (VPSDE, SubVPSDE) for b in (20.0, 100.0, 150.0, 200.0, 400.0, 1000.0, 5000.0)]
    for sde in [*paths, CosineSDE(), Steep(), Steep(5000.0)]:
        model, z, low = gaussian(sde, 2), normals(8, 2), sde.times("sample")[0]
        (a0, s0), (a1, s1) = (sde.coefficients(torch.tensor(t, dtype=F64)) for t in (sde.t_max, low))
        gain = torch.sqrt(((a1 / 2) ** 2 + s1**2) / ((a0 / 2) ** 2 + s0**2))
        solved = ProbabilityFlow(rtol=1e-6)(model, z)
        error = float((solved.x - a1 * 0.3 - (z - a0 * 0.3) * gain).abs().max())
        scored = log_likelihood(model, z, Likelihood(rtol=1e-6), check=False)
        ends = model.log_prob(z, sde.t_min) - model.log_prob(scored.z, sde.t_max) + sde.prior.log_prob(scored.z)
        off = float((scored.log_prob - ends).abs().max()) / 2
        ok = bool(solved.ok.all() and scored.ok.all())
        print(f"| {sde} | {error:.1e} | {off:.1e}{'' if ok else ' (rows failed)'} |", flush=True)


def quadrature() -> None:
    print("| path, width | rtol | coupled | divergences | quadrature | divergences | failed |")
    print("|---|---|---|---|---|---|---|")
    for sde in (VPSDE(), SubVPSDE(), FlowMatching()):
        for std in (0.15, 0.03, 0.01):
            model = ring(sde, std)
            x = model.sample(12, torch.Generator().manual_seed(1)) + 0.03 * normals(12, 2, seed=2)
            low, high = sde.times("likelihood")
            z = log_likelihood(model, x, Likelihood(rtol=1e-10), check=False).z
            truth = sde.prior.log_prob(z) + model.log_prob(x, low) - model.log_prob(z, high)
            for rtol in (1e-3, 1e-5, 1e-7):
                row, failed = "", 0
                for method in ("coupled", "quadrature"):
                    found = log_likelihood(model, x, Likelihood(method, "exact", rtol=rtol), check=False)
                    off = float((found.log_prob - truth)[found.ok].abs().max()) / 2 / rtol
                    row += f" {off:.1f} | {float(found.divergences.double().mean()):.0f} |"
                    failed = int((~found.ok).sum())
                print(f"| {type(sde).__name__}, {std} | {rtol:.0e} |{row} {failed} |", flush=True)


def variance(solver: PredictorCorrector, model: GaussianMixture) -> float:
    """Compute the relative error of the final variance of one-dimensional data, starting from the exact variance.

    There is no sampling error, because each step is affine.
    """
    sde = model.domain.sde
    low, high = model.domain.interval("sample")
    times = make_grid(solver.grid, sde, solver.steps, high, low)
    alpha, sigma = sde.coefficients(times)
    right = (alpha / 2).square() + sigma.square()
    found = float(right[0])
    x, z = torch.tensor([[[0.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]], dtype=F64)
    for i in range(solver.steps):
        moved = reverse_diffusion_step(model, x, times[i], times[i + 1], z)
        e = 2 * float(alpha[i] / alpha[i + 1] * solver.snr * sigma[i + 1]) ** 2
        found = float(moved[1] - moved[0]) ** 2 * found + float(moved[2] - moved[0]) ** 2
        found = (1 - e / float(right[i + 1])) ** 2 * found + 2 * e
    return found / float(right[-1]) - 1


def orders() -> None:
    paths = {"VP": VPSDE(), "VE": VESDE(), "EDM": EDMSDE(), "cosine": CosineSDE(), "flow": FlowMatching()}
    print(f"| solver | claimed order | {' | '.join(paths)} |\n|---|---|{'---|' * len(paths)}")
    cells: dict[str, list[str]] = {name: [] for name in DETERMINISTIC}
    for sde in paths.values():
        model, generator = replace(problem(), sde=sde), torch.Generator().manual_seed(0)
        x0 = model.sample(64, generator)
        z = sde.perturb(x0, sde.t_max, torch.randn(x0.shape, generator=generator, dtype=F64))
        exact = ProbabilityFlow(rtol=1e-11)(model, z).x
        for name, (_, solver) in DETERMINISTIC.items():
            made = [replace(solver, steps=n, grid="auto") for n in (128, 256, 512)]
            e = [float((s(model, z).x - exact).norm(dim=1).median()) for s in made]
            cells[name].append(f"{math.log2(e[0] / e[1]):.2f}, {math.log2(e[1] / e[2]):.2f}")
    for name, row in cells.items():
        print(f"| {name} | {DETERMINISTIC[name][0]} | {' | '.join(row)} |", flush=True)
    steps = (640, 1280, 2560, 5120)
    for name in ("VP", "flow", "VE"):
        found = [variance(PredictorCorrector(n), gaussian(paths[name], 1)) for n in steps]
        slopes = [math.log2(abs(a / b)) for a, b in pairwise(found)]
        print(f"pc on {name}: " + ", ".join(f"{n}: {v:+.1e}" for n, v in zip(steps, found, strict=True)), end="; ")
        print("order " + ", ".join(f"{s:.2f}" for s in slopes), flush=True)


def rough() -> None:
    print("| path | std of the weights | highest frequency | rtol | steps | final error | worst step | magnified by |")
    print("|---|---|---|---|---|---|---|---|")
    for sde in (VPSDE(), FlowMatching()):
        for std, top in ((0.05, 32), (0.15, 32), (0.25, 32), (0.25, 2)):
            torch.manual_seed(0)
            network = MLP(dims=3, width=32, blocks=2).requires_grad_(False)
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=std)
            for module in network.modules():
                if hasattr(module, "frequencies"):
                    module.frequencies.clamp_(max=top)
            model, z = ScoreModel(network, sde, EDM()).double().eval(), normals(1, 3, seed=0)
            low, exact = sde.times("sample")[0], ProbabilityFlow(rtol=1e-9, max_nfe=10**6)
            end = exact(model, z).x[0]
            for rtol in (1e-5, 1e-7) if top == 2 else (1e-5,):
                solved = ProbabilityFlow(rtol=rtol)(model, z, record=True)
                assert solved.trajectory is not None
                t, x = solved.trajectory.times(0), solved.trajectory.states(0)
                scale, ends, worst, gain = sde.scale(t), [end], 0.0, 0.0
                for j in range(len(t) - 1):
                    there = exact(model, x[j : j + 1], t0=float(t[j]), t1=float(t[j + 1])).x[0]
                    off, y = (x[j + 1] - there) / scale[j + 1], (x[j + 1] / scale[j + 1]).abs()
                    worst = max(worst, float((off / (rtol * (1 + y))).square().mean().sqrt()))
                    last = j + 2 == len(t)
                    ends.append(x[j + 1] if last else exact(model, x[j + 1 : j + 2], t0=float(t[j + 1]), t1=low).x[0])
                    moved = (ends[-1] - ends[-2]) / scale[-1]
                    gain = max(gain, float(moved.norm() / off.norm().clamp(min=1e-12)))
                off = (solved.x[0] - end) / scale[-1]
                total = float((off / (rtol * (1 + (end / scale[-1]).abs()))).square().mean().sqrt())
                row = f"{total:.1f} | {worst:.1f} | {gain:.2f}"
                print(f"| {type(sde).__name__} | {std} | {top} | {rtol:.0e} | {len(t) - 1} | {row} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    parts = {f.__name__: f for f in (langevin, steep, quadrature, orders, rough)}
    for name in sys.argv[1:] or parts:
        print(f"\n{name}\n")
        parts[name]()


if __name__ == "__main__":
    main()
