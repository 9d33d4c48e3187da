"""Does a sample show the class that was asked for? Digits, classifier-free guidance.

    python experiments/guidance.py             # about three minutes on two CPU cores
    python experiments/guidance.py --run runs/digits-vp-class

Trains (or loads) a class-conditional model of the 8x8 digits, draws 100 samples of each class at several guidance
scales, and asks a small classifier, trained on the real digits, what it sees. Ho and Salimans (2022),
arXiv:2207.12598. Expected: see docs/results.md (goal: 90 % or more at scale 2).
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from scoresde import TrainConfig, fit, load, load_data
from scoresde.metrics import frechet_distance


def train_classifier(data, seed=0):
    """A small convolutional network and its accuracy on held-out digits."""
    torch.manual_seed(seed)
    features = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(),
    )  # fmt: skip
    network = nn.Sequential(features, nn.Dropout(0.3), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(600):
        i = torch.randint(len(data.train), (128,))
        x = data.info.transform.encode(data.train[i])
        loss = nn.functional.cross_entropy(network(x + 0.1 * torch.randn(x.shape)), data.train_labels[i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().requires_grad_(False)
    seen = network(data.info.transform.encode(data.test)).argmax(1)
    return network, features.eval(), float((seen == data.test_labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a trained run; without it one is trained")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--each", type=int, default=100, help="samples of each class")
    args = parser.parse_args()

    data = load_data("digits")
    classifier, features, accuracy = train_classifier(data)
    print(f"classifier: {accuracy:.1%} of {len(data.test)} held-out digits\n")
    run = load(args.run) if args.run else fit(TrainConfig(data="digits", cond="class"), save=False)
    labels = torch.arange(10).repeat_interleave(args.each)
    real = features(run.info.transform.encode(data.train))

    print("| guidance | agreement | worst class | Frechet distance (classifier features) |")
    print("|---|---|---|---|")
    for scale in args.scales:
        x = run.sample(len(labels), "heun", labels=labels, guidance=scale).x
        encoded = run.info.transform.encode(x).float()
        agrees = (classifier(encoded).argmax(1) == labels).double().reshape(10, -1)
        distance = frechet_distance(features(encoded), real)
        worst = int(agrees.mean(1).argmin())
        print(f"| {scale:g} | {agrees.mean():.1%} | {worst}: {agrees[worst].mean():.0%} | {distance:.2f} |", flush=True)


if __name__ == "__main__":
    main()
