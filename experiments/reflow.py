"""Measure how few Euler steps a rectified flow needs after reflow.

    python experiments/reflow.py              # about five minutes on one CPU core

The data are a checkerboard in the plane, and the path is the straight path. The script trains a flow, draws 40,000
pairs from it, and continues training on these pairs. For each flow and number of Euler steps, the table shows the
sliced W2 distance between 20,000 samples and as many new data points. It also shows the fraction of the squared speed
that is off the chord between the ends of a trajectory (0 for straight trajectories). The line above the table gives the
distance between two sets of data points, which is a lower limit for samples. The line below the table gives the
distance for the first flow divided by that for the last flow (*times nearer*).

The goal is a factor of at least 3 with 2 and with 4 steps. For the expected results, see docs/results.md.
"""

from __future__ import annotations

import argparse
import time

import torch

from scoresde import Noise, Run, TrainConfig, fit, load_data, reflow, straightness
from scoresde.data.toys import sample_toy
from scoresde.metrics import sliced_wasserstein
from scoresde.solvers.flow import euler

STEPS = (1, 2, 4, 8, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="checkerboard")
    parser.add_argument("--steps", type=int, default=4_000, help="training steps of the first flow")
    parser.add_argument("--further", type=int, default=4_000, help="training steps of each further flow")
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--n", type=int, default=20_000, help="number of samples to compare")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    data = load_data(args.data, args.seed)
    real, other = (sample_toy(args.data, args.n, 1_000 + i) for i in (0, 1))
    print(f"distance between two sets of {args.n:,} data points: {sliced_wasserstein(real, other):.4f}")
    heads = " | ".join(f"{n} step{'s' if n > 1 else ''}" for n in STEPS)
    print(f"| flow | {heads} | squared speed off the chord | seconds |\n|---|{'---|' * (len(STEPS) + 2)}", flush=True)

    def row(name: str, run: Run, seconds: float) -> list[float]:
        found = [
            sliced_wasserstein(run.sample(args.n, euler(n), denoise=False, seed=7, batch=5_000).x, real) for n in STEPS
        ]
        bent = straightness(run.model, Noise.of(2_000, 7), (2,))
        print(f"| {name} | {' | '.join(f'{d:.4f}' for d in found)} | {bent:.3f} | {seconds:.0f} |", flush=True)
        return found

    began = time.monotonic()
    config = TrainConfig(data=args.data, sde="flow", steps=args.steps, seed=args.seed)
    run = fit(config, data=data, save=False, quiet=True)
    before = row("first", run, time.monotonic() - began)
    for i in range(args.rounds):
        began = time.monotonic()
        run = reflow(run, pairs=args.pairs, steps=args.further, seed=i + 1, data=data, save=False, quiet=True)
        after = row(f"{'once' if i == 0 else 'twice'} rectified", run, time.monotonic() - began)
    print("times nearer:", ", ".join(f"{a / b:.1f} at {n}" for n, a, b in zip(STEPS, before, after, strict=True)))


if __name__ == "__main__":
    main()
