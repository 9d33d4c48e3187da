"""Show that samples converge as the number of steps grows, if their noise comes from a Brownian path.

    python experiments/brownian.py      # a few minutes on one CPU core

The problem is the mixture of experiments/few_steps.py with its 2,048 starting points, in float64. The number of steps
is repeatedly doubled, from 20 to 320. The table shows the median and the rms of the distance by which samples move at
each doubling. With noise from a Brownian path (``Noise.of(..., brownian=True)``, or ``--brownian``), a larger number of
steps refines the same noise, and the samples converge. The rms is dominated by the few samples that end in a different
mode. With plain noise, a different number of steps means different noise, and therefore different samples.

For the expected results, see docs/results.md.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from few_steps import END, problem, starts

from scoresde import EulerMaruyama, Noise
from scoresde.solvers import MultistepSDE, StochasticHeun

STEPS = (20, 40, 80, 160, 320)
SOLVERS = {
    "`sde` on the log-SNR grid": MultistepSDE(grid="logsnr"),
    "`sde`": MultistepSDE(),
    "`em`": EulerMaruyama(),
    "`heun-sde`": StochasticHeun(),
}


def main() -> None:
    torch.set_num_threads(1)
    model = problem()
    start = starts(model)
    print("| solver | noise | " + " | ".join(f"{a} to {b}" for a, b in pairwise(STEPS)) + " |")
    print("|---|---|" + "---|" * (len(STEPS) - 1))
    for brownian in (True, False):
        noise = Noise.of(len(start), 0, brownian=brownian)
        for name, solver in SOLVERS.items():
            ends = [replace(solver, steps=n)(model, start, t1=END, noise=noise).x for n in STEPS]
            moved = [(b - a).norm(dim=1) for a, b in pairwise(ends)]
            cells = [f"{float(m.median()):.4f} / {float(m.square().mean().sqrt()):.3f}" for m in moved]
            print(f"| {name} | {'path' if brownian else 'plain'} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
