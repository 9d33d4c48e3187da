"""Compare damped Langevin dynamics (`phase`) with the reverse SDE (`sde`) at equal evaluations, on a trained run.

    make demo && python experiments/phase.py demo/runs/digits-vp      # 15 minutes on one CPU core
    python experiments/phase.py RUN --n 500 --nfe 50,100 --seed 1

Nothing is trained for `phase`: both solvers use the same network, which was trained on positions alone. Each budget
includes the evaluation of the final noise-free step. The table shows the Frechet distance of the samples to the
training data and its jackknife error, as `scoresde evaluate --part train --metrics frechet` computes them, in the
features of the classifier that this command trains on the labels. The value for held-out data is printed first.

For the expected results, see docs/mathematics/sde-solvers.md.
"""

from __future__ import annotations

import argparse

import torch

from scoresde import load
from scoresde.core.errors import UsageError
from scoresde.metrics import Measurement, frechet
from scoresde.solvers import MultistepSDE, Phase
from scoresde.study.classifier import train_classifier
from scoresde.study.evaluate import evaluate
from scoresde.study.features import classifier_features

SOLVERS = {"`sde`": MultistepSDE(), "`phase`": Phase()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run with labelled data, such as the digits")
    parser.add_argument("--n", type=int, default=1000, help="number of samples")
    parser.add_argument("--nfe", default="50,100,200,400", help="numbers of evaluations")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    budgets = [int(nfe) for nfe in args.nfe.split(",")]
    if min(budgets) < 2:
        parser.error(f"--nfe {args.nfe}: the last evaluation is the noise-free step, so at least 2 are needed")

    torch.set_num_threads(1)
    run = load(args.run)
    if not run.base.domain.has_score:
        raise UsageError(f"{args.run}: this model was trained on coupled pairs and has no score; use another run")
    data = run.data()
    judge = train_classifier(data)
    features = classifier_features(judge, data.info)

    def cell(measured: Measurement | None) -> str:
        return "-" if measured is None else f"{measured.value:.3f} ± {measured.stderr:.3f}"

    first = True
    for name, solver in SOLVERS.items():
        cells = []
        for nfe in budgets:
            made = solver.within(nfe - 1)
            assert made is not None
            samples = run.sample(args.n, made, seed=args.seed)
            assert int(samples.solution.nfe.max()) == nfe
            found = evaluate(samples.x, data, features, {"frechet": frechet}, against="train", limit=0).rows[0]
            if first:
                print(f"classifier: {judge.accuracy:.1%} correct; held-out data: {cell(found.real)}\n")
                print("| solver | " + " | ".join(f"{n} evaluations" for n in budgets) + " |")
                print("|---|" + "---|" * len(budgets), flush=True)
                first = False
            cells.append(cell(found.samples))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
