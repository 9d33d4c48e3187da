"""Measure the order of convergence of every deterministic solver on several paths, and compare it with the claims.

    python experiments/orders.py              # about a minute on one CPU core

The problem is the mixture of few_steps.py with the exact model, in float64, with 256 starting points drawn from p_t at
the start of the path. The paths are VP, sub-VP, VE, a user-defined cosine path and flow matching. Solvers use a grid
that is uniform in log-SNR, and the error is the distance to the exact flow (the adaptive solver at rtol 1e-12). For VP
and VE, the measured order is the log2 ratio of the median errors at 128 and 256 steps. For the other paths, on which
the log-SNR spans twice as much or alpha is 0 at the start, it is measured at 256 and 512 steps. For adaptive solvers,
the measured order is the slope of the median error against the evaluations per sample, between rtol 1e-4 and 1e-6.

The table uses the median because the rms is dominated by the few points near a boundary between modes, where the
measured order is about 0.2.

The claimed order of a multistep solver is k for k values in the polynomial, and k + 1 with a corrector. The expected
result is that measured orders are within 0.15 of the claim, up to order 3 and for rk4. The other solvers of order 4
take their first steps at lower orders, and have measured orders of 3.5 to 3.9. On VE, the error of the first step,
which is h^2 times the slope of the model's values at sigma = 50, is visible once errors are below 1e-7 (with
sigma_max = 5000, the measured orders reach 4). The measured orders of adaptive solvers exceed the claimed orders,
because of the step-size control.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from few_steps import problem

from scoresde import SDE, VESDE, VPSDE, FlowMatching, Multistep, ProbabilityFlow, RungeKutta, SubVPSDE
from scoresde.solvers import DDIM, EDMHeun, Singlestep

F64 = torch.float64


@dataclass(frozen=True)
class Cosine(SDE):
    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


PATHS = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE(), "cosine": Cosine(), "flow": FlowMatching()}


def multistep(variable: str, order: int, rule: str = "exact", correct: bool = False) -> Multistep:
    return Multistep(1, variable, order, rule, correct)


SOLVERS = {
    "euler": (1, RungeKutta(method="euler", frame="t")),
    "ddim": (1, DDIM()),
    "heun": (2, RungeKutta(method="heun")),
    "midpoint": (2, RungeKutta(method="midpoint")),
    "edm": (2, EDMHeun()),
    "rk4": (4, RungeKutta(method="rk4")),
    "dpm2s": (2, Singlestep(1, "eps", 2)),
    "dpm++2s": (2, Singlestep(1, "x0", 2)),
    "dpm3s": (3, Singlestep(1, "eps", 3, "exact")),
    "dpm++3s": (3, Singlestep(1, "x0", 3, "exact")),
    "dpm++2m": (2, multistep("x0", 2, "midpoint")),
    "dpm++3m": (3, multistep("x0", 3)),
    "deis, order 2": (2, multistep("eps", 2)),
    "deis, order 3": (3, multistep("eps", 3)),
    "deis, order 4": (4, multistep("eps", 4)),
    "multistep straight, order 2": (2, multistep("straight", 2)),
    "multistep straight, order 3": (3, multistep("straight", 3)),
    "multistep straight, order 4": (4, multistep("straight", 4)),
    "multistep v, order 2": (2, multistep("v", 2)),
    "multistep v, order 3": (3, multistep("v", 3)),
    "multistep gauss, order 2": (2, multistep("gauss", 2)),
    "multistep gauss, order 3": (3, multistep("gauss", 3)),
    "unipc, order 2, bh1": (3, multistep("x0", 2, "bh1", True)),
    "unipc, order 2, bh2": (3, multistep("x0", 2, "midpoint", True)),
    "unipc, order 2, exact": (3, multistep("x0", 2, "exact", True)),
    "unipc, order 3": (4, multistep("x0", 3, "midpoint", True)),
    "unipc on eps, order 3": (4, multistep("eps", 3, "midpoint", True)),
    "multistep straight, order 2, correct": (3, multistep("straight", 2, "exact", True)),
}
ADAPTIVE = {"bosh3": 3, "dopri5": 5, "tsit5": 5}


def slopes(sde: SDE) -> dict[str, float]:
    """Measure the order of every solver on a path."""
    generator = torch.Generator().manual_seed(0)
    model = replace(problem(), sde=sde)
    x0 = model.sample(256, generator)
    start = sde.perturb(x0, sde.t_max, torch.randn(x0.shape, generator=generator, dtype=F64))
    exact = ProbabilityFlow(rtol=1e-12, atol=1e-12)(model, start).x

    def error(solver) -> tuple[float, float]:
        solved = solver(model, start)
        return float((solved.x - exact).norm(dim=1).median()), float(solved.nfe.double().mean())

    found, steps = {}, 128 if isinstance(sde, VPSDE | VESDE) else 256
    for name, (_, solver) in SOLVERS.items():
        (e0, _), (e1, _) = (error(replace(solver, steps=n, grid="logsnr")) for n in (steps, 2 * steps))
        found[name] = math.log2(e0 / e1)
    for name in ADAPTIVE:
        (e0, n0), (e1, n1) = (error(ProbabilityFlow(rtol=r, atol=r, method=name)) for r in (1e-4, 1e-6))
        found[name] = math.log(e0 / e1) / math.log(n1 / n0)
    return found


def main() -> None:
    torch.set_num_threads(1)
    measured = {path: slopes(sde) for path, sde in PATHS.items()}
    print(f"| solver | claimed order | {' | '.join(PATHS)} |")
    print("|---|---|" + "---|" * len(PATHS))
    for name, order in ({n: k for n, (k, _) in SOLVERS.items()} | ADAPTIVE).items():
        print(f"| {name} | {order} | " + " | ".join(f"{measured[path][name]:.2f}" for path in PATHS) + " |")


if __name__ == "__main__":
    main()
