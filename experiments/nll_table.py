"""Print a table of likelihoods in bits/dim with error bars, for SDEs with and without likelihood weighting.

    python experiments/nll_table.py                                      # the digits: half an hour on two CPU cores
    python experiments/nll_table.py --data fashion-mnist/ --steps 1000   # a folder with the IDX files
    python experiments/nll_table.py --runs runs                          # keep the runs, or reuse them if they exist

The table mirrors Table 2 of Song et al. (2021, arXiv:2011.13456) and Table 2 of Song, Durkan et al. (2021,
arXiv:2101.09258). It compares VP, sub-VP and the straight path of flow matching, with the same network, data, budget
and seed. For each path, one model is trained with the library's default weighting, and one with likelihood weighting
and importance-sampled times. *Flow* is the negative log-likelihood of the probability flow on held-out data, uniformly
dequantised, with one probe. *Bound* is the negative variational bound of the SDE. The flow and the SDE are different
models, and neither value bounds the other. The errors are standard errors of the mean. They include the variation due
to data, dequantisation and probes, but not the variation between training runs. *Change* is the mean, over samples, of
the change of the flow's value due to likelihood weighting. The rows with and without likelihood weighting use the same
samples and draws.

On a GPU, use a larger network and budget: `--steps 50000 --preset base --device cuda`.

For the expected results, see docs/results.md.
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
    parser.add_argument("--steps", type=int, default=0, help="training steps (0: the default of the preset)")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--n", type=int, default=1_000, help="maximum number of held-out samples")
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
                    raise SystemExit(f"{out} has {run.step:,} of {run.config.steps:,} steps, not as many as requested")
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
