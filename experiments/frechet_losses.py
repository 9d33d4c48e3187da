"""Measure how much five mistakes that have nothing to do with the model worsen the Frechet distance.

    make demo && python experiments/frechet_losses.py demo/runs/digits-vp      # a few minutes on one CPU core
    python experiments/frechet_losses.py RUN --only grid        # or noise, averages, levels, count

Every row of the table compares two sets of samples from the same run. Both sets are drawn from the same starting
points, and they differ in one respect only. The Frechet distance of each set to the same training images is measured in
the features of the classifier that `scoresde evaluate` trains on the labels. The loss is the increase in distance
caused by the mistake, given as the mean and the standard error over seeds.

noise: The samples keep the noise of the last time instead of ending with x0_hat (`--no-denoise`), with and without
rounding to levels.
grid: The grid is uniform in t instead of the default grid of the path, with 10 evaluations.
averages: The weights are those of the last training step instead of their moving average.
levels: The samples are not rounded to the levels of the data, or dequantisation noise is added to the training images.
count: The number of samples is ten times smaller.
"""

from __future__ import annotations

import argparse

import torch

from scoresde import Multistep, load, load_data
from scoresde.core.files import read_tensors
from scoresde.metrics import frechet_distance
from scoresde.run.files import load_weights, newest_checkpoint
from scoresde.study.classifier import train_classifier

WAYS = ("noise", "grid", "averages", "levels", "count")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()

    run = load(args.run)
    data = load_data(run.config.data)
    judge = train_classifier(data)
    train = data.train[: 10 * args.n]
    real = judge.features(train)
    print(f"classifier: {judge.accuracy:.1%} correct on {judge.held_out} held-out images; reference: {len(real):,}")

    last = load(args.run)
    checkpoint = newest_checkpoint(last.folder)
    load_weights(last.model.network, read_tensors(checkpoint / "model.safetensors"), checkpoint)

    def drawn(run=run, n=args.n, steps=args.steps, denoise=True, rounded=True, seed=0, grid="auto"):
        samples = run.sample(n, Multistep(steps, grid=grid), seed=seed, denoise=denoise)
        return samples.x if rounded else run.codec.continuous.to_data(samples.solution.x)

    def distance(x, reference=real):
        return frechet_distance(judge.features(x), reference)

    width = (run.info.high - run.info.low) / (run.info.levels - 1)

    def noisy(seed):
        u = torch.rand(train.shape, generator=torch.Generator().manual_seed(seed))
        return judge.features(train + u * width)

    rows = {
        "noise": [
            ("the samples keep the noise of the last time", lambda s: distance(drawn(denoise=False, seed=s))),
            ("the samples keep this noise and are not rounded",
             lambda s: distance(drawn(denoise=False, rounded=False, seed=s))),
        ],
        "grid": [("10 evaluations, grid uniform in t", lambda s: distance(drawn(steps=10, grid="uniform", seed=s)))],
        "averages": [("the weights are those of the last step", lambda s: distance(drawn(run=last, seed=s)))],
        "levels": [
            ("the samples are not rounded", lambda s: distance(drawn(rounded=False, seed=s))),
            ("the reference has dequantisation noise", lambda s: distance(drawn(seed=s), noisy(s))),
        ],
        "count": [(f"there are only {args.n // 10:,} samples", lambda s: distance(drawn(n=args.n // 10, seed=s)))],
    }  # fmt: skip
    few = torch.tensor([distance(drawn(steps=10, seed=s)) for s in range(args.seeds)])
    right = torch.tensor([distance(drawn(seed=s)) for s in range(args.seeds)])
    print(f"distance without mistakes: {right.mean():.3f}, or {few.mean():.3f} with 10 evaluations\n")
    print("| name | mistake | distance | loss |\n|---|---|---|---|")
    for way in [args.only] if args.only else WAYS:
        for what, wrong in rows[way]:
            found = torch.tensor([wrong(s) for s in range(args.seeds)])
            loss = found - (few if way == "grid" else right)
            error = loss.std() / args.seeds**0.5
            print(f"| {way} | {what} | {found.mean():.3f} | {loss.mean():+.3f} ± {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
