"""Measure the errors of samples and likelihoods with exact models, without a network or training.

    python experiments/exact.py         # about a minute on one CPU core

1. Sampling. For eight Gaussians on a ring (radius 1.3, standard deviation 0.15) and 1,024 latents in float64, the
   adaptive solver at rtol 1e-3 to 1e-7 is compared with the same solver at rtol 1e-12 (which the tests compare with
   SciPy's DOP853). The table shows the evaluations per sample and the rms, median and largest error.
2. Likelihood. The second table shows the mean and the largest absolute error of log p at rtol 1e-5, compared with the
   closed form with the model's prior.
3. Offset. The second table also shows the log density of the model at t_min, with its prior, minus the log density of
   the data. This offset limits the accuracy that any solver can reach, and is largest for VE.

For the expected results, see docs/results.md.
"""

from __future__ import annotations

import math

import torch

from scoresde import (
    VESDE,
    VPSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    ProbabilityFlow,
    SubVPSDE,
    log_likelihood,
)

F64 = torch.float64
SDES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "flow": FlowMatching()}


def ring(sde):
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    return GaussianMixture(sde, 1.3 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), 0.15, dtype=F64))


def mixture(sde):
    means, stds = torch.tensor([[-1.0], [0.5]], dtype=F64), torch.tensor([0.2, 0.4], dtype=F64)
    return GaussianMixture(sde, means, stds, torch.tensor([0.3, 0.7], dtype=F64))


def gaussian(sde, dims):
    return GaussianMixture(sde, torch.full((1, dims), 0.3, dtype=F64), torch.tensor([0.5], dtype=F64))


def gaussian_log_prob(model, x):
    """Compute the log density of a model of one Gaussian, with the model's prior, in closed form."""
    low, high = (torch.tensor(t, dtype=F64) for t in model.domain.sde.times("likelihood"))
    (a0, s0), (a1, s1) = model.domain.sde.coefficients(low), model.domain.sde.coefficients(high)
    v0, v1 = a0**2 * 0.25 + s0**2, a1**2 * 0.25 + s1**2
    z = a1 * 0.3 + (x - a0 * 0.3) * torch.sqrt(v1 / v0)
    return model.domain.sde.prior.log_prob(z) + x[0].numel() / 2 * torch.log(v1 / v0)


def mixture_log_prob(model, x):
    """Compute log p = log prior(z) + log p_low(x) - log p_high(z) for a mixture, where the flow maps x to z."""
    low, high = model.domain.sde.times("likelihood")
    z = ProbabilityFlow(rtol=1e-12, atol=1e-12)(model, x, t0=low, t1=high).x
    return model.domain.sde.prior.log_prob(z) + model.log_prob(x, low) - model.log_prob(z, high)


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1024, 2, generator=generator, dtype=F64)

    print("| SDE | rtol | evaluations | rms error | median | largest |")
    print("|---|---|---|---|---|---|")
    for name, sde in SDES.items():
        model, z = ring(sde), sde.prior_std * latents
        exact = ProbabilityFlow(rtol=1e-12, atol=1e-12)(model, z).x
        for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
            solved = ProbabilityFlow(rtol=tolerance, atol=tolerance)(model, z)
            error = (solved.x - exact).norm(dim=1)
            row = [error.square().mean().sqrt(), error.median(), error.max()]
            nfe = float(solved.nfe.double().mean())
            print(f"| {name} | {tolerance:.0e} | {nfe:.1f} | " + " | ".join(f"{float(e):.1e}" for e in row) + " |")

    print("\n| SDE | data | D | evaluations | mean error (nats) | largest | mean offset | largest |")
    print("|---|---|---|---|---|---|---|---|")
    for name, sde in SDES.items():
        cases = [("Gaussian", gaussian(sde, d), gaussian_log_prob) for d in (1, 4, 64)]
        cases += [("mixture", mixture(sde), mixture_log_prob), ("ring", ring(sde), mixture_log_prob)]
        for label, model, closed_form in cases:
            x = model.sample(256, torch.Generator().manual_seed(1))
            solved = log_likelihood(model, x, Likelihood(divergence="exact", rtol=1e-5))
            exact = closed_form(model, x)
            error, offset = (solved.log_prob - exact).abs(), exact - model.log_prob(x)
            row = f"| {name} | {label} | {x.shape[1]} | {float(solved.nfe.double().mean()):.0f} "
            row += f"| {float(error.mean()):.1e} | {float(error.max()):.1e} "
            print(row + f"| {float(offset.mean()):+.1e} | {float(offset.abs().max()):.1e} |")


if __name__ == "__main__":
    main()
