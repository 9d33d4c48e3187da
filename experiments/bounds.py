"""Compare the table of all bounds with the truth, where it is known, and print the table of a trained run.

    python experiments/bounds.py mixture              # half a minute on one CPU core
    python experiments/bounds.py lattice              # ten seconds
    python experiments/bounds.py RUN [--limit 180]    # with rtol 1e-3 and finite differences, as in docs/reporting.md

mixture: Three Gaussians on a line, exact scores, three SDEs. The table shows the mean of each row minus the mean of the
true log density, in nats, with the paired standard error. The chain's row is shown for 250, 500 and 1,000 nodes.
lattice: Nine levels with the probabilities of a Gaussian, and the exact model of these levels. The table shows the
bound on the levels minus the negative log probability, in nats, next to the same difference by numerical integration:
what the softmax loses to the exact decoder, and what is left of the data at the prior.
RUN: The table of ``scoresde likelihood RUN --all-bounds``.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from torch.distributions import Normal

from scoresde import VESDE, VPSDE, FlowMatching, GaussianMixture, Likelihood, Noise, elbo, load, log_likelihood
from scoresde.codec import Affine, Composed, Levels
from scoresde.likelihood.chain import bound, even_nodes
from scoresde.likelihood.levels import decode_from, elbo_on_levels

F64 = torch.float64
SDES = {"vp": VPSDE(), "flow": FlowMatching(), "ve": VESDE(0.01, 20.0)}


def mixture() -> None:
    """Print the rows of an exact mixture against the truth."""
    means, stds = torch.tensor([[-1.0], [0.2], [0.9]], dtype=F64), torch.tensor([0.3, 0.1, 0.4], dtype=F64)
    print("sde   row             minus the truth (nats)")
    for name, sde in SDES.items():
        model = GaussianMixture(sde, means, stds)
        x = model.sample(20_000, torch.Generator().manual_seed(0))
        truth = model.log_prob(x)
        rows = {
            "flow": log_likelihood(model, x[:4000], Likelihood(rtol=1e-5), batch=4000, check=False).log_prob,
            "ELBO": elbo(model, x, strata=256, batch=200_000).log_prob,
        }
        for count in (250, 500, 1000):
            found = bound(model, x[:4000], nodes=even_nodes(model, count), decoder="beta")
            rows[f"chain, T = {count:,}"] = -found.total
        for row, values in rows.items():
            off = values - truth[: len(values)]
            print(f"{name:4}  {row:15} {float(off.mean()):+.5f} ± {float(off.std()) / math.sqrt(len(off)):.5f}")


def lattice(count: int = 9, rows: int = 20_000) -> None:
    """Print the bound on levels whose probabilities are known."""
    codec = Composed((Levels(0.0, count - 1.0, count), Affine(count / 2, count / 2)))
    centres = (torch.arange(count, dtype=F64) + 0.5 - count / 2) / (count / 2)
    mass = torch.softmax(-(centres - 0.2).square() / (2 * 0.35**2), 0)
    entropy = -float(mass @ mass.log())
    x = torch.multinomial(mass, rows, replacement=True, generator=torch.Generator().manual_seed(0)).to(F64)[:, None]
    print("sde   half a cell    bound minus -log P    by integration, mean over the levels (nats)")
    for name, sde in SDES.items():
        model = GaussianMixture(sde, centres[:, None], torch.zeros(count, dtype=F64), mass)
        for tau in (3.0, 1.0):
            t = decode_from(model, codec)
            if tau != 3.0:
                t = float(sde.t_of_log_snr(torch.tensor(-2 * math.log(1 / count / tau), dtype=F64)))
            terms = elbo_on_levels(model, codec, x, strata=64, t_min=t, noise=Noise.of(rows), batch=200_000, dtype=F64)
            off = -terms.log_prob + mass.log()[x.long()[:, 0]]
            error = float(off.std()) / math.sqrt(rows)
            expected = float(mass @ integrated(sde, centres, mass, t)) - entropy
            print(f"{name:4}  {tau:g} deviations   {float(off.mean()):+.5f} ± {error:.5f}    {expected:+.5f}")


def integrated(sde, centres: torch.Tensor, mass: torch.Tensor, t_min: float) -> torch.Tensor:
    """Return the expectation of the bound for each level, by integration over the states at both ends."""
    z = torch.linspace(-9, 9, 36_001, dtype=F64)
    w = torch.softmax(-z.square() / 2, 0)
    found = []
    for k in range(len(centres)):
        total = -mass[k].log()
        for t, top in ((t_min, False), (sde.t_max, True)):
            alpha, sigma = sde.coefficients(torch.tensor(t, dtype=F64))
            state = alpha * centres[k] + sigma * z
            each = Normal(alpha * centres[:, None], sigma).log_prob(state)
            joint = each + mass.log()[:, None]
            if top:
                prior = Normal(torch.zeros((), dtype=F64), torch.tensor(sde.prior_std, dtype=F64)).log_prob(state)
                total = total + w @ (torch.logsumexp(joint, 0) - prior)
            else:
                total = total + w @ (torch.log_softmax(joint, 0)[k] - torch.log_softmax(each, 0)[k])
        found.append(total)
    return torch.stack(found)


def run(folder: str, limit: int) -> None:
    """Print the table of a trained run."""
    found = load(folder)
    x = found.data().test[:limit]
    how = Likelihood(rtol=1e-3, divergence="difference")
    print(found.all_bounds(x, how, batch=128, told=lambda row: print(f"computing {row}", file=sys.stderr)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="mixture|lattice|RUN")
    parser.add_argument("--limit", type=int, default=180, help="number of held-out samples of a run")
    asked = parser.parse_args()
    if asked.what == "mixture":
        mixture()
    elif asked.what == "lattice":
        lattice()
    else:
        run(asked.what, asked.limit)


if __name__ == "__main__":
    main()
