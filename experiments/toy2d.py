"""Check the samples and likelihoods of several SDEs on eight Gaussians in the plane.

    python experiments/toy2d.py                     # vp, subvp, ve, flow, seeds 0 1 2
    python experiments/toy2d.py --sdes vp --seeds 0 --steps 2000

The data are eight Gaussians on a ring of radius 2, with standard deviation 0.2 (see `scoresde.data.eight_gaussians`).
For each run, the table shows:

    SW ratio   The sliced Wasserstein distance between 4,000 samples and 4,000 held-out points, averaged over 10 pairs
               of such sets, divided by the average distance for 50 pairs of sets of 4,000 real points. The ratio is 1
               for real data, and the goal is 1.5 or less. A single pair is not conclusive, so the script also prints
               the range of the ratio for single pairs of real sets.
    gap        The mean true log density of 2,000 held-out points minus their mean log-likelihood under the model, in
               nats. The gap is the Kullback-Leibler divergence up to sampling noise, and the goal is 0.1 or less.

Each run takes about a minute of training on two CPU cores. For the expected results, see docs/results.md.
"""

from __future__ import annotations

import argparse
import time

import torch

from scoresde import TrainConfig, fit, load_data
from scoresde.data import sample_toy
from scoresde.metrics import sliced_wasserstein


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdes", nargs="+", default=["vp", "subvp", "ve", "flow"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="training steps (0: the default of the preset)")
    parser.add_argument("--predict", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    points = 4000
    real = sample_toy("8gaussians", points * 110, seed=1234)
    held_out, pairs = real[: 10 * points].reshape(10, points, 2), real[10 * points :].reshape(50, 2, points, 2)
    distances = torch.tensor([sliced_wasserstein(a, b) for a, b in pairs])
    floor = float(distances.mean())
    print(f"sliced Wasserstein distance of real data: {floor:.4f} (mean over {len(pairs)} pairs of {points:,} points)")
    print(f"ratio for single pairs: {float(distances.min()) / floor:.2f} to {float(distances.max()) / floor:.2f}\n")
    print("| SDE | seed | steps | seconds | SW ratio | gap (nats) | NFE sample | NFE likelihood |")
    print("|---|---|---|---|---|---|---|---|")
    for sde in args.sdes:
        for seed in args.seeds:
            data = load_data("8gaussians", seed)
            began = time.monotonic()
            config = TrainConfig(data="8gaussians", sde=sde, seed=seed, steps=args.steps, predict=args.predict)
            run = fit(config, data=data, save=False, quiet=True)
            seconds = time.monotonic() - began
            samples = run.sample(10 * points, "ode", seed=seed + 1, batch=4096, denoise=False)
            sets = samples.x.reshape(10, points, 2)
            ratio = sum(sliced_wasserstein(a, b) for a, b in zip(sets, held_out, strict=True)) / 10 / floor
            scored = held_out[0, :2000]
            scores = run.log_likelihood(scored, batch=2048)
            assert data.log_density is not None
            gap = float(data.log_density(scored).mean()) - scores.mean()
            nfe = [float(n.double().mean()) for n in (samples.solution.nfe, scores.model.nfe)]
            row = f"| {sde} | {seed} | {run.step} | {seconds:.0f} | {ratio:.2f} | {gap:.3f} "
            print(row + f"| {nfe[0]:.0f} | {nfe[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
