"""Make a table of likelihoods in bits/dim with error bars, for SDEs with and without likelihood weighting.

    python experiments/nll_table.py                                      # the digits: half an hour on two CPU cores
    python experiments/nll_table.py --data fashion-mnist/ --steps 1000   # a folder with the IDX files
    python experiments/nll_table.py --runs runs                          # keeps the runs, and reuses existing ones

The table mirrors Table 2 of Song et al. (2021, arXiv:2011.13456) and Table 2 of Song, Durkan et al. (2021,
arXiv:2101.09258). It has VP, sub-VP and the straight path of flow matching, with the same network, data, budget and
seed. Each path is trained once with the library's default weighting, and once with likelihood weighting and
importance-sampled times. *Flow* is the negative log-likelihood of the probability flow on held-out data, uniformly
dequantised, with one probe. *Bound* is minus the variational bound of the SDE. The flow and the SDE are different
models, and neither figure bounds the other. The errors are standard errors of the mean. They include the variation due
to data, dequantisation and probes, but not the variation between training runs. *Change* is the mean difference, sample
by sample, that likelihood weighting makes to the flow's value. The rows with and without likelihood weighting use the
same samples and draws.

On a GPU, use a larger network and budget: `--steps 50000 --preset base --device cuda`.

Expected: see docs/results.md.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from scoresde import Likelihood, TrainConfig, fit, load, load_data

KINDS = {"default": {}, "likelihood": {"weighting": "likelihood", "t_sampler": "importance"}}


def mean(x):
    x = x[x.isfinite()].double()
    return f"{float(x.mean()):.4f} ± {float(x.std()) / math.sqrt(len(x)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=0, help="training steps (0: as in the preset)")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--n", type=int, default=1_000, help="largest number of held-out samples")
    parser.add_argument("--rtol", type=float, default=1e-4)
    parser.add_argument("--runs", type=Path, help="folder in which to keep the runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_data(args.data)
    x = data.test[: args.n]
    print(f"{data.info.name}: {len(x)} of {len(data.test)} held-out samples, rtol {args.rtol:g}\n")
    print("| SDE | weighting | flow, bits/dim | evaluations | bound, bits/dim | change |")
    print("|---|---|---|---|---|---|", flush=True)
    for sde in ("vp", "subvp", "flow"):
        found = {}
        for kind, options in KINDS.items():
            config = TrainConfig(data=args.data, sde=sde, steps=args.steps, preset=args.preset, **options)
            out = args.runs / f"{data.info.name}-{sde}-{kind}" if args.runs else None
            if out and (out / "config.json").exists():
                run = load(out, device=args.device)
                if run.step != run.config.steps or run.step != (args.steps or run.step):
                    raise SystemExit(f"{out} has {run.step:,} of {run.config.steps:,} steps, not the requested number")
            else:
                run = fit(config, data=data, out=out, save=out is not None, device=args.device)
            scores = run.log_likelihood(x, Likelihood(rtol=args.rtol, atol=args.rtol))
            bound = -run.elbo(x).log_prob.double() / (data.info.dims * math.log(2))
            found[kind] = scores.values
            change = mean(found["likelihood"] - found["default"]) if kind == "likelihood" else ""
            print(
                f"| {sde} | {kind} | {mean(scores.values)} | {float(scores.model.nfe.double().mean()):.0f} "
                f"| {mean(bound)} | {change} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
