"""Check the mean likelihood to a stated error: coverage, cost and its base level.

    python experiments/mean_likelihood.py mixture              # an exact mixture with a known entropy: ten minutes
    python experiments/mean_likelihood.py digits RUN           # a run on the digits, such as that of make demo
    python experiments/mean_likelihood.py mixture --sets 20    # a quick look

For the mixture (203 Gaussians of width 0.4 around digits, D = 64, VP), each data set has 10,000 new pictures, and the
truth is the entropy of the mixture. All errors are in bits/dim. The script prints

1. the error of the tolerances;
2. the mean of the base level with redrawn and with fixed probes;
3. sets with fixed numbers of pictures: rms z, which should be 1, and the mean error;
4. sets with the stopping rule at 0.005: how many of them are within two standard errors of the truth, and the cost.

For the run, all levels of 900 pictures (720 training and 180 test rows) are computed once. It prints

5. the residual of the correction, and the share of the variance that the features explain;
6. arithmetic: data sets of 10,000 drawn from 300 of these pictures, with the regression fitted on the 600 others;
   coverage, mean error, cost and the ratio of the cost and the plan;
7. end to end: 20 seeds at 0.0115 with N = 900 real pictures, each with its own dequantisation and probes, beside two
   full passes.

For the expected results, see docs/results.md.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from scoresde import VPSDE, GaussianMixture, Likelihood, Noise, load, load_data
from scoresde.codec import Affine
from scoresde.core.shapes import as_time
from scoresde.likelihood.control import features, leave_one_out
from scoresde.likelihood.mean import Solved, telescoped
from scoresde.likelihood.telescope import levels_of, mean_likelihood
from scoresde.model.estimate import Estimate

F64 = torch.float64
N = 10_000
WITHIN = 0.005


class Isotropic(GaussianMixture):
    """A mixture of Gaussians of one width with equal weights, computed by two matrix products."""

    def __call__(self, x, t):
        alpha, sigma = (c.to(x.dtype).reshape(-1, 1) for c in self.sde.coefficients(as_time(t, x)))
        means, own = self.means.to(x), float(self.stds[0]) ** 2
        variance = alpha.square() * own + sigma.square()
        logits = (alpha * (x @ means.T) - alpha.square() / 2 * means.square().sum(1)) / variance
        mean = torch.softmax(logits, 1) @ means
        residual = (x - alpha * mean) / variance
        return Estimate(x, as_time(t, x), mean + alpha * own * residual, sigma * residual, self.sde)


def mixture():
    data = load_data("digits")
    means = data.codec.continuous.to_model(data.train[::8].double()).flatten(1).float()
    return Isotropic(VPSDE(), means, torch.full((len(means),), 0.4))


def told(x):
    return f"{float(x.mean()):+.5f} ± {float(x.std()) / math.sqrt(len(x)):.5f}"


def coverage(name, errors, stderrs, costs, plans=None):
    errors, stderrs = torch.tensor(errors, dtype=F64), torch.tensor(stderrs, dtype=F64)
    z = errors / stderrs
    text = f"{name}: mean error {told(errors)}, rms z {float(z.square().mean().sqrt()):.3f}, "
    text += f"{int((z.abs() <= 2).sum())} of {len(z)} within two errors, cost {sum(costs) / len(costs):,.0f} "
    text += f"({min(costs):,.0f} to {max(costs):,.0f}), largest bar {float(stderrs.max()):.5f}"
    if plans:
        ratio = torch.tensor(costs, dtype=F64) / torch.tensor(plans, dtype=F64)
        inside = float(((ratio >= 0.8) & (ratio <= 1.25)).double().mean())
        text += f", cost/plan median {float(ratio.median()):.2f}, within 0.8 to 1.25 in {inside:.0%}"
    print(text, flush=True)


def on_the_mixture(sets, only):
    model, how = mixture(), Likelihood(divergence="difference")
    dims = model.means.shape[1]
    unit = -dims * math.log(2)  # nats to bits/dim
    start = model.domain.sde.times("likelihood")[0]
    truth = sum(
        float(model.log_prob(model.sample(20_000, torch.Generator().manual_seed(k)).double(), start).mean())
        for k in range(-20, 0)
    ) / (20 * unit)  # fmt: skip
    if only in (None, "tolerance"):
        x, noise = model.sample(3000, torch.Generator().manual_seed(0)), Noise.of(3000, 1)
        tight = Likelihood(divergence="difference", rtol=1e-5, redraw=False)(model, x, noise, check=False)
        for rtol in (1e-2, 1e-3, 1e-4):
            found = Likelihood(divergence="difference", rtol=rtol, redraw=False)(model, x, noise, check=False)
            error = (found.log_prob - tight.log_prob).double() / unit
            print(f"rtol {rtol:.0e}: {told(error)} against 1e-5, {float(found.nfe.double().mean()):.0f} evaluations")
    if only in (None, "probes"):
        x, rows = model.sample(1000, torch.Generator().manual_seed(0)), []
        level = levels_of(how.resolved(model, dims))
        for seed in range(20):
            noise = Noise.of(len(x), seed)
            one, other = (level[k](model, x, noise, check=False).log_prob.double() for k in ("base", "fixed"))
            rows.append((one - other) / unit)
        print(f"base level, redrawn minus fixed probes: {told(torch.stack(rows).mean(0))} (1,000 rows x 20 probes)")
    for key, name, fixed, control, count in (
        ("fixed", "fixed numbers", (1152, 112, 48), False, sets),
        ("stopping", "stopping rule, no features", None, False, sets // 2),
        ("features", "stopping rule, features", None, True, sets // 2),
    ):
        if only not in (None, key):
            continue
        errors, stderrs, costs, plans, began = [], [], [], [], time.process_time()
        for seed in range(count):
            generator = torch.Generator().manual_seed(1000 + seed)
            x, train = model.sample(N, generator), model.sample(500, generator)
            found = mean_likelihood(
                how, model, Affine(0.0, 1.0), x, Noise.of(N, seed), WITHIN * -unit, control=control, train=train,
                sizes=fixed, batch=1024,
            )  # fmt: skip
            errors.append(found.mean / unit - truth)
            stderrs.append(found.stderr / -unit)
            costs.append(found.cost)
            plans += [] if found.plan is None else [found.plan.cost]
        coverage(name, errors, stderrs, costs, plans)
        print(f"  {time.process_time() - began:.0f} s of one core", flush=True)


def table(run, how):
    """Return the values and the costs of all levels for 900 pictures, and their features."""
    data = run.data()
    x = torch.cat([data.train[:720], data.test[:180]]).float()
    levels, found = levels_of(how.resolved(run.model, run.info.dims, run.codec)), {}
    for name, level in levels.items():
        if name == "plain":
            continue
        scores = run.log_likelihood(x, level, check=False, seed=3)
        found[name] = scores.values.double(), scores.model.nfe.double()
    u = Noise.of(len(x), 3).uniform(run.info.shape, stream="dequantise", dtype=F64)
    return x, found, features(run.to_model(x, u), run._middle(data.trained))


def arithmetic(found, columns, seeds):
    order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    fitted, rest = order[:600], order[600:]
    values = {name: value for name, (value, _) in found.items()}
    predicted = leave_one_out(columns[fitted], values["base"][fitted], columns)[0]
    truth = float(values["fine"][rest].mean()) + float((values["base"] - values["fixed"])[rest].mean())
    for control in (True, False):
        errors, stderrs, costs, plans = [], [], [], []
        for seed in range(seeds):
            rows = rest[torch.randint(len(rest), (N,), generator=torch.Generator().manual_seed(seed))]

            def solve(level, places, watch, rows=rows):
                of = rows[places]
                cost = found[level][1][of]
                watch(places, Solved(values[level][of], cost))

            def fixed(places, y, rows=rows):
                return predicted[rows], 0.0

            got = telescoped(solve, N, WITHIN, control=fixed if control else None)
            # The noise of a picture is realised once, so the expectations of L and L' differ by a known number.
            errors.append(got.mean - truth + (1 - got.slope) * float((values["base"] - values["fixed"])[rest].mean()))
            stderrs.append(got.stderr)
            costs.append(got.cost)
            plans.append(got.plan.cost)
        coverage(f"arithmetic, {'features' if control else 'no features'}", errors, stderrs, costs, plans)


def on_the_digits(run, seeds, only):
    how = Likelihood(divergence="difference")
    if only in (None, "arithmetic"):
        x, found, columns = table(run, how)
        values = {name: value for name, (value, _) in found.items()}
        for name, (value, cost) in found.items():
            print(f"{name}: {float(value.mean()):.4f}, variance {float(value.var()):.4f}, {float(cost.mean()):.0f}")
        t, low = values["rough"], values["fixed"]
        b = float(torch.cov(torch.stack([low, t]))[0, 1] / low.var())
        print(f"slope {b:.3f}, variance of the correction {float((t - b * low).var()):.6f}", end=", ")
        print(f"tolerance {told(values['fine'] - t)}, its variance {float((values['fine'] - t).var()):.2e}")
        for n in (128, 256, 900):
            y = values["base"][:: 900 // n][:n]
            own = leave_one_out(columns[:: 900 // n][:n], y, columns[:1])[1]
            print(f"features leave {float((y - own).square().mean() / y.var()):.3f} of the variance (n = {n})")
        arithmetic(found, columns, 400)
    if only in (None, "whole"):
        data = run.data()
        x = torch.cat([data.train[:720], data.test[:180]]).float()
        full = [
            run.log_likelihood(x, Likelihood(divergence="difference", rtol=1e-3), check=False, seed=100 + k)
            for k in range(2)
        ]
        truth = torch.stack([scores.values.double() for scores in full]).mean(0)
        noise = (full[0].values - full[1].values).double()
        own = float(noise.std()) / 2 / math.sqrt(len(x))  # the error of the mean of two passes, for these pictures
        print(f"full passes: {float(truth.mean()):.4f} ± {own:.4f} (these pictures)", flush=True)
        errors, stderrs, costs, plans = [], [], [], []
        for seed in range(seeds):
            # The truth is that of these pictures, so the error of the figure is smaller than that of the population.
            got = run.mean_likelihood(x, 0.0115, how, seed=seed)
            errors.append(got.mean - float(truth.mean()))
            stderrs.append(got.stderr)
            costs.append(got.cost)
            plans.append(got.plan.cost)
            print(f"  {got}, {got.cost:,.0f}, {got.sizes}", flush=True)
        coverage("end to end at 0.0115", errors, stderrs, costs, plans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mixture", "digits"])
    parser.add_argument("run", nargs="?", help="a run trained on the digits")
    parser.add_argument("--sets", type=int, default=200, help="number of data sets with fixed numbers")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds end to end")
    parser.add_argument("--only", help="one of tolerance, probes, fixed, stopping, features; or arithmetic, whole")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "mixture":
        return on_the_mixture(args.sets, args.only)
    if args.run is None:
        parser.error("digits requires a run, for example demo/runs/digits-vp")
    on_the_digits(load(args.run), args.seeds, args.only)


if __name__ == "__main__":
    main()
