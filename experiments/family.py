"""Compare score matching with flow matching, and linear with cosine chains, with the same data, network and budget.

    python experiments/family.py              # about 15 minutes on two CPU cores
    python experiments/family.py --runs runs  # keep the four runs, or reuse them if they exist

The data are the built-in digits, and the U-Net and the training budget are those of `make demo`. The first table
compares a VP model trained by score matching with a model on the straight path trained by flow matching, both with the
same adaptive solver at two tolerances. It shows the Frechet distance to the training digits in the features of a small
classifier, the bits/dim of the held-out digits, and the numbers of evaluations. The second table compares the linear
with the cosine schedule (Nichol and Dhariwal 2021) of discrete chains with 1,000 noise levels (Ho et al. 2020). Samples
are drawn with 10, 50 and all 999 ancestral steps, and with 10 and 50 steps of the deterministic multistep solver.

The errors of the Frechet distance come from a jackknife over samples and data. The errors of bits/dim are standard
errors of the mean over the held-out digits. For the expected results, see docs/results.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scoresde import Likelihood, Multistep, ProbabilityFlow, TrainConfig, fit, load, load_data
from scoresde.metrics import frechet
from scoresde.solvers import Ancestral
from scoresde.study.classifier import train_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder in which to keep the four runs")
    parser.add_argument("--steps", type=int, default=0, help="training steps (0: the default of the preset)")
    parser.add_argument("--n", type=int, default=1_000, help="number of samples from each model")
    parser.add_argument("--only", choices=["matching", "chains"], help="print only this table")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    data = load_data("digits")
    classifier = train_classifier(data)
    print(f"classifier: {classifier.accuracy:.1%} correct on {classifier.held_out} held-out digits")
    with torch.no_grad():
        real, held_out = classifier.features(data.train), classifier.features(data.test)
    print(f"Frechet distance of the held-out digits to the training digits: {frechet(held_out, real)}\n")

    def trained(name, **config):
        out = args.runs / f"family-{name}" if args.runs else None
        if out and (out / "config.json").exists():
            return load(out)
        return fit(TrainConfig(steps=args.steps, **config), data=data, out=out, save=out is not None)

    def quality(x):
        with torch.no_grad():
            return str(frechet(classifier.features(x), real))

    if args.only != "chains":
        matching(args.n, trained, quality, data)
    if args.only != "matching":
        chains(args.n, trained, quality)


def matching(n, trained, quality, data):
    """Compare score matching with flow matching."""
    print("| trained by | rtol | Frechet distance | evaluations | bits/dim | evaluations |\n|---|---|---|---|---|---|")
    for name, words in (("vp", "score matching (`vp`)"), ("flow", "flow matching (`flow`)")):
        run = trained(name, sde=name)
        for rtol in (1e-3, 1e-5):
            samples = run.sample(n, ProbabilityFlow(rtol, rtol))
            scores = run.log_likelihood(data.test, Likelihood(rtol=rtol, atol=rtol))
            nfe = [float(v.double().mean()) for v in (samples.solution.nfe, scores.model.nfe)]
            print(
                f"| {words} | {rtol:g} | {quality(samples.x)} | {nfe[0]:.1f} | "
                f"{scores.mean():.3f} ± {scores.stderr_mean():.3f} | {nfe[1]:.1f} |",
                flush=True,
            )


def chains(n, trained, quality):
    """Compare chains with the linear and with the cosine schedule."""
    print("\n| schedule | solver | 10 steps | 50 steps | all 999 |\n|---|---|---|---|---|")
    for schedule in ("linear", "cosine"):
        run = trained(f"ddpm-{schedule}", sde="ddpm", sde_options={"schedule": schedule})
        # The deterministic solver converges with far fewer than 999 steps.
        for words, solver, budgets in (("ancestral", Ancestral, (10, 50, 999)), ("multistep", Multistep, (10, 50))):
            cells = [quality(run.sample(n, solver(steps)).x) for steps in budgets]
            print(f"| {schedule} | {words} | {' | '.join(cells + ['-'] * (3 - len(cells)))} |", flush=True)


if __name__ == "__main__":
    main()
