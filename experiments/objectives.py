"""Plot the effective weights of published objectives, and measure the benefit of importance sampling.

    python experiments/objectives.py                                  # the table and docs/images/objectives.png
    python experiments/objectives.py --figure "" --batches 100        # only the table, faster

The table is for the likelihood-weighted loss of an exact model of eight Gaussians (radius 2, standard deviation 0.2, in
model units), with batches drawn as in training. For each time sampler, it shows the standard deviation of the mean loss
of a batch of 128, divided by the expected loss. `loss-second-moment` is measured after 400 batches. The figure shows,
for published recipes, the weight of the squared error of the predicted noise per unit of log-SNR. Each curve is scaled
to a maximum of 1 for log-SNRs between -10 and 10.

The script takes about two minutes on one CPU core. For the expected results, see docs/objectives.md.
"""

from __future__ import annotations

import argparse
import math

import torch

from scoresde import EDM, EDMSDE, VPSDE, CosineSDE, Eps, FlowMatching, GaussianMixture, SubVPSDE, Velocity
from scoresde.data import eight_gaussians
from scoresde.objective.times import (
    Importance,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    LowDiscrepancy,
    Setting,
    independent,
)
from scoresde.objective.weighting import LikelihoodWeight, MinSNR, Native, Sigmoid, noise_factor

PATHS = {
    "vp": VPSDE(), "subvp": SubVPSDE(), "flow": FlowMatching(), "cosine": CosineSDE(), "edm": EDMSDE(),
}  # fmt: skip
SAMPLERS = {
    "`uniform`": independent(),
    "`low-discrepancy`": LowDiscrepancy(),
    "`loss-second-moment`": LossSecondMoment(),
    "`importance`": Importance(),
    "`importance`, `error` edm": Importance(error="edm"),
}
RECIPES = {
    "DDPM": (VPSDE(), Eps(), Native(), LowDiscrepancy()),
    "DDPM, min-SNR 5": (VPSDE(), Eps(), MinSNR(), LowDiscrepancy()),
    "likelihood": (VPSDE(), EDM(), LikelihoodWeight(), LowDiscrepancy()),
    "EDM": (EDMSDE(), EDM(0.5), Native(), LogNormal()),
    "flow matching": (FlowMatching(), Velocity(), Native(), LowDiscrepancy()),
    "SD3": (FlowMatching(), Velocity(), Native(), LogitNormal()),
    "sigmoid, bias 0": (CosineSDE(0.0), Velocity(), Sigmoid(), LowDiscrepancy()),
}


def scatter(sde, sampler, batches: int, size: int = 128) -> float:
    """Compute the standard deviation of the exact model's batch losses, divided by the mean of these losses."""
    weighting, prediction = LikelihoodWeight(), EDM()
    means, std = eight_gaussians()
    model = GaussianMixture(sde, means, torch.full((len(means),), std, dtype=torch.float64))
    times = sampler.over(Setting(sde, *sde.times("train"), prediction, weighting))
    generator = torch.Generator().manual_seed(0)
    losses = []
    warm = 400 if times.state() else 0
    for _ in range(warm + batches):
        t, importance = times.draw(size, generator)
        index = torch.randint(len(means), (size,), generator=generator)
        x0 = means[index] + std * torch.randn(size, 2, generator=generator, dtype=torch.float64)
        eps = torch.randn(size, 2, generator=generator, dtype=torch.float64)
        # EDM's |F - target|^2, computed from the error of the predicted noise, which vanishes with alpha.
        factor = noise_factor(sde, prediction, t)
        error = (model(sde.perturb(x0, t, eps), t).eps - eps).square().mean(1)
        loss = weighting(sde, prediction, t) / factor * error
        times.update(t, loss)
        losses.append(float((importance * loss).mean()))
    values = torch.tensor(losses[warm:], dtype=torch.float64)
    return float(values.std() / values.mean())


def curve(sde, prediction, weighting, sampler) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the log-SNR and the effective weight per unit of log-SNR at 2,000 quantiles of the sampler."""
    times = sampler.over(Setting(sde, *sde.times("train"), prediction, weighting))
    u = torch.sigmoid(torch.linspace(-14, 14, 2001, dtype=torch.float64))
    log_snr = sde.log_snr(times.quantile(u))
    middle = (log_snr[1:] + log_snr[:-1]) / 2
    t = sde.t_of_log_snr(middle)
    on_noise = weighting(sde, prediction, t) / noise_factor(sde, prediction, t)
    return middle, on_noise * u.diff() / -log_snr.diff()


def figure(path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = ["#0072B2", "#56B4E9", "#333333", "#D55E00", "#009E73", "#E69F00", "#CC79A7"]
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, recipe), colour in zip(RECIPES.items(), colours, strict=True):
        log_snr, weight = curve(*recipe)
        inside = log_snr.abs() <= 10
        style = "--" if name in ("likelihood", "DDPM, min-SNR 5") else "-"
        ax.plot(log_snr[inside], weight[inside] / weight[inside].max(), style, color=colour, label=name, lw=1.6)
    ax.set(yscale="log", ylim=(1e-4, 2), xlim=(10, -10))
    ax.set(xlabel="log-SNR (data left, noise right)", ylabel="weight per unit of log-SNR")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower center")
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)
    print(f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--figure", default="docs/images/objectives.png", help="path of the figure (empty: no figure)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| time sampler | {' | '.join(f'`{p}`' for p in PATHS)} |\n|---|{'---|' * len(PATHS)}")
    for name, sampler in SAMPLERS.items():
        row = [scatter(sde, sampler, args.batches) for sde in PATHS.values()]
        print(f"| {name} | {' | '.join(f'{r:.3f}' if math.isfinite(r) else '-' for r in row)} |", flush=True)
    if args.figure:
        figure(args.figure)


if __name__ == "__main__":
    main()
