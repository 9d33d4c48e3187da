"""Check that guided samples of the digits show the requested class.

    python experiments/guidance.py             # about three minutes on two CPU cores
    python experiments/guidance.py --run runs/digits-vp-class

The script trains (or loads) a class-conditional model of the 8x8 digits, and draws 100 samples of each class at several
guidance scales. A small classifier trained on the real digits then classifies the samples. The guidance is
classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598). The goal is an agreement of 90 % or more at scale 2.
For the expected results, see docs/results.md.
"""

from __future__ import annotations

import argparse

import torch

from scoresde import TrainConfig, fit, load, load_data
from scoresde.metrics import frechet_distance
from scoresde.study.classifier import train_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a trained run (default: train a new run)")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--each", type=int, default=100, help="number of samples of each class")
    args = parser.parse_args()

    data = load_data("digits")
    judge = train_classifier(data)
    print(f"classifier: {judge.accuracy:.1%} correct on {judge.held_out} held-out digits\n")
    run = load(args.run) if args.run else fit(TrainConfig(data="digits", cond="class"), save=False)
    labels = torch.arange(10).repeat_interleave(args.each)
    real = judge.features(data.train)

    print("| guidance | agreement | worst class | Frechet distance (classifier features) |")
    print("|---|---|---|---|")
    for scale in args.scales:
        x = run.given(labels).guided(scale).sample(len(labels), "heun").x
        agrees = (judge(x).argmax(1) == labels).double().reshape(10, -1)
        distance = frechet_distance(judge.features(x), real)
        worst = int(agrees.mean(1).argmin())
        print(f"| {scale:g} | {agrees.mean():.1%} | {worst}: {agrees[worst].mean():.0%} | {distance:.2f} |", flush=True)


if __name__ == "__main__":
    main()
