"""Fill the empty cells of a table with one network, and compare the answers with the exact conditional distribution.

    python experiments/imputation.py                      # about a quarter of an hour of one CPU core
    python experiments/imputation.py --empty 0.2          # a fifth of the training cells are empty
    python experiments/imputation.py --quick              # a few steps on little data, to see that the script runs

The rows of the table are draws from a mixture of eight Gaussians in eight dimensions, the mixture of inference.py. The
network is trained with `--cond cells`, so it is asked for any of the 2^8 patterns of empty cells. For 20 patterns drawn
at random, each on 200 held-out rows with 19 answers, the table has

    hidden       the number of empty cells
    p            the p-value of a chi-square test, with ten bins, that the rank of the truth among its answers is
                 uniform, for one empty cell of each row. The goal is more than 5e-4 for every pattern.
    SW           the sliced Wasserstein distance of the 3,800 filled rows to as many rows that were filled by exact
                 draws
    real         the same distance between two sets of rows that were both filled by exact draws
    one row, SW  the distance of 1,000 answers for a single row to 1,000 exact draws, over the empty cells alone
    one row, real

and the last line has the ratios of the means. Goals: 2 or less for the filled rows, and no given cell has changed.

For comparison, the script fills the cells with the best linear imputation: draws from the conditional distribution of
a single Gaussian with the mean and the covariance of the mixture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from inference import mixture, seeded, single
from torch import Tensor

from scoresde import Condition, Dataset, GaussianMixture, Run, TrainConfig, fit
from scoresde.metrics import sliced_wasserstein
from scoresde.metrics.answers import ranks

DIMS = 8


def filled(joint: GaussianMixture, y: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """Fill rows by exact draws from a mixture. For ``y: (n, 8)``, NaN where empty, return ``(n, each, 8)``."""
    known = ~y[0].isnan()
    if not known.any():
        return joint.sample(len(y) * each, generator).reshape(len(y), each, DIMS)
    x = y[:, None].expand(-1, each, -1).clone()
    for i, row in enumerate(y):
        x[i, :, ~known] = joint.given(known, row).sample(each, generator)
    return x


def answers(run: Run, y: Tensor, each: int, seed: int) -> Tensor:
    """Let a model fill rows. For ``y: (n, 8)``, NaN where empty, return ``(n, each, 8)``."""
    bound = run.given(Condition(image=y.float()), each=each)
    return bound.sample(len(y) * each, seed=seed, batch=4000).x.double().reshape(len(y), each, DIMS)


def patterns(count: int) -> Tensor:
    """Draw different patterns of known cells, bool ``(count, 8)``, each with an empty cell."""
    index = torch.randperm(2**DIMS - 1, generator=seeded(7))[:count]  # the last pattern would have no empty cell
    return (index[:, None] >> torch.arange(DIMS)) % 2 == 1


def compare(
    name: str,
    fill: Callable[[Tensor, int, int], Tensor],
    joint: GaussianMixture,
    masks: Tensor,
    rows: int,
    many: int,
) -> None:
    """Print the table for one method, ``fill(y, each, seed)``."""
    print(
        f"\n{name}\n| pattern | hidden | p | SW | real | one row, SW | one row, real |\n|---|---|---|---|---|---|---|"
    )
    found, changed = [], 0
    for i, known in enumerate(masks):
        g = seeded(100 + i)
        truth = joint.sample(rows, g).float().double()
        y = torch.where(known, truth, torch.nan)
        ours, first, second = fill(y, 19, i), filled(joint, y, 19, g), filled(joint, y, 19, g)
        changed += int((ours != y[:, None])[..., known].sum())
        # One empty cell of each row.
        cell = (torch.rand(rows, DIMS, generator=g) * ~known).argmax(1, keepdim=True)
        p = ranks(truth.gather(1, cell), ours.gather(2, cell[:, None].expand(-1, 19, 1)), bins=10).p_value
        all_rows = [sliced_wasserstein(a.flatten(0, 1), first.flatten(0, 1)) for a in (ours, second)]
        ours, first, second = fill(y[:1], many, i), filled(joint, y[:1], many, g), filled(joint, y[:1], many, g)
        one_row = [sliced_wasserstein(a[0][:, ~known], first[0][:, ~known]) for a in (ours, second)]
        found.append([p, *all_rows, *one_row])
        shown = "".join("." if k else "x" for k in known.tolist())
        cells = " | ".join(f"{value:.3f}" for value in found[-1])
        print(f"| {shown} | {int((~known).sum())} | {cells} |", flush=True)
    table = torch.tensor(found)
    mean = table.mean(0)
    print(f"least p {float(table[:, 0].min()):.4f}; ", end="")
    print(f"SW / real {float(mean[1] / mean[2]):.2f}, for one row {float(mean[3] / mean[4]):.2f}; ", end="")
    print(f"given cells that have changed: {changed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=100_000, help="training rows")
    parser.add_argument("--empty", type=float, default=0.0, help="share of the training cells that are empty")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--width", type=int, default=256, help="width of the network")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of the network")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--sde", default="vp")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--patterns", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a few steps on little data, to see that the script runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    joint, masks = mixture(), patterns(2 if args.quick else args.patterns)
    rows, many = (20, 50) if args.quick else (200, 1000)
    one = single(joint)
    compare("single Gaussian", lambda y, each, seed: filled(one, y, each, seeded(seed)), joint, masks, rows, many)
    for seed in args.seeds:
        x = joint.sample(2_000 if args.quick else args.rows, seeded(1000 + seed)).float()
        x = torch.where(torch.rand(x.shape, generator=seeded(3000 + seed)) < args.empty, torch.nan, x)
        config = TrainConfig(
            cond="cells", cond_drop=0.0, seed=seed, lr=args.lr, steps=20 if args.quick else args.steps, sde=args.sde,
            network_options={"width": args.width, "blocks": args.blocks}, batch=args.batch,
        )  # fmt: skip
        began = time.process_time()
        run = fit(config, data=Dataset.of(x, joint.sample(1000, seeded(2000 + seed)).float()), save=False, quiet=True)
        seconds = time.process_time() - began
        name = f"network, seed {seed}: {run.step:,} steps, {seconds:.0f} CPU seconds"
        compare(name, lambda y, each, seed, run=run: answers(run, y, each, seed), joint, masks, rows, many)


if __name__ == "__main__":
    main()
