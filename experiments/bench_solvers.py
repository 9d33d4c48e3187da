"""Compare the solvers of this and other libraries on a trained network, by their distance to the converged solution.

    make demo && scoresde tune demo/runs/digits-vp --nfe 5,6,8,10,20          # optional, several minutes
    python experiments/bench_solvers.py demo/runs/digits-vp                   # a few minutes on two CPU cores

All solvers use the same starting points (draws from the prior) and the same network, in float32. The distance is the
root mean square, over samples and pixels, of the difference from the probability flow solved at rtol 1e-6, in model
units and without a final denoising step. Solvers of other libraries (experiments/peers.py) are optional. The script
lists the libraries that are not installed, and leaves them out. Their solvers use the uniform log-SNR grid. The solvers
of this library use both that grid and the default grid of the SDE. The solvers that `scoresde tune` has fitted to the
run are marked as fitted. Times are in seconds for one batch with the largest number of evaluations, including the
network.

For the expected results, see docs/choosing-a-solver.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from peers import PEERS, missing
from torch import Tensor

from scoresde import Multistep, Noise, ProbabilityFlow, RungeKutta, load
from scoresde.core.errors import UsageError
from scoresde.model.estimate import Denoiser
from scoresde.sde.grids import default_grid
from scoresde.solvers import DDIM, EDMHeun, Solver

BUDGETS = (5, 6, 8, 10, 20)
COUNT = 128

OURS: dict[str, Callable[[str], Solver]] = {
    "ddim": lambda g: DDIM(grid=g),
    "heun": lambda g: RungeKutta(grid=g),
    "edm": lambda g: EDMHeun(grid=g),
    "dpm++2m": lambda g: Multistep(variable="x0", order=2, rule="midpoint", grid=g),
    "dpm++3m": lambda g: Multistep(variable="x0", order=3, grid=g),
    "unipc": lambda g: Multistep(variable="x0", order=2, rule="midpoint", correct=True, grid=g),
    "deis": lambda g: Multistep(variable="eps", order=3, grid=g),
    "multistep gauss, order 2": lambda g: Multistep(variable="gauss", order=2, grid=g),
    "multistep straight, order 3": lambda g: Multistep(order=3, grid=g),
    "multistep straight, order 2, correct": lambda g: Multistep(order=2, correct=True, grid=g),
    "multistep (the default)": lambda g: Multistep(grid=g),
}


def main() -> None:
    run = load(sys.argv[1] if len(sys.argv) > 1 else None)
    model: Denoiser = run.model
    low, high = model.domain.interval("sample")
    x = model.domain.sde.prior_std * Noise.of(COUNT, seed=1).normal(run.info.shape, stream="prior")
    solved = ProbabilityFlow(rtol=1e-6, atol=1e-6)(model, x)
    print(f"{run.folder}: {COUNT} samples, converged at {float(solved.nfe.double().mean()):.0f} evaluations")
    for line in missing():
        print(f"not installed: {line}")

    def row(name: str, solve: Callable[[int], Tensor | None]) -> None:
        cells, seconds = [], 0.0
        for n in BUDGETS:
            began = time.perf_counter()
            with torch.no_grad():
                end = solve(n)
            seconds = time.perf_counter() - began
            cells.append("" if end is None else f"{float((end - solved.x).square().mean().sqrt()):.4f}")
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)

    print("| solver | " + " | ".join(f"{n} evaluations" for n in BUDGETS) + " | seconds |")
    print("|---|" + "---|" * (len(BUDGETS) + 1))
    for grid in ("logsnr", "auto"):
        for name, make in OURS.items():

            def ours(n: int, make: Callable[[str], Solver] = make, grid: str = grid) -> Tensor | None:
                solver = make(grid).within(n)
                return None if solver is None else solver(model, x, t0=high, t1=low).x

            label = "log-SNR grid" if grid == "logsnr" else f"{default_grid(model.domain.sde)} grid"
            row(f"{name}, {label}", ours)

    def fitted(n: int, grid: bool = False) -> Tensor | None:
        try:
            solver = run.fitted(Multistep(n, grid="fitted")) if grid else run.tuned(n)
        except UsageError:  # not fitted for this number of evaluations
            return None
        return solver(model, x, t0=high, t1=low).x

    row("multistep, **fitted** grid", lambda n: fitted(n, grid=True))
    row("**fitted** (tuned)", fitted)
    for name, peer in PEERS.items():
        row(name, lambda n, peer=peer: peer(model, x, n))  # type: ignore[misc]
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        adaptive = ProbabilityFlow(rtol=tolerance, atol=tolerance)(model, x)
        error = float((adaptive.x - solved.x).square().mean().sqrt())
        print(f"ode --rtol {tolerance:g}: {float(adaptive.nfe.double().mean()):.0f} evaluations, {error:.4f}")


if __name__ == "__main__":
    main()
