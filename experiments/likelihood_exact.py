"""Measure the error and the standard error of likelihoods against their cost in evaluations and seconds.

    python experiments/likelihood_exact.py                        # exact models: a few minutes on one CPU core
    make demo && python experiments/likelihood_exact.py demo/runs/digits-vp        # also a trained network

1. Exact models with the exact divergence, in float64. The models are a ring of Gaussians in the plane, a Gaussian with
   a full covariance matrix in 16 dimensions, and a mixture in 64 dimensions centred on 203 of the built-in digits
   (standard deviation 0.4, where the digits lie in [-1, 1]). For the coupled and the quadrature method and for three
   tolerances, the table shows the root mean square error per sample, the number of evaluations, the number of
   evaluations that include the divergence, and the time in seconds. The reference is the closed form at the latent that
   the flow reaches at rtol 1e-10.
2. Probes, for the mixture of digits and for the network. The table shows the root mean square distance, per sample, to
   the value with the exact divergence, for K = 1, 2, 4, 8 and 16 probes at rtol 1e-4. The probes are either fixed along
   the trajectory or redrawn. The error estimated from the probes themselves is given for comparison.
3. The network, compared with a reimplementation of the scheme of the original code. In that scheme, drift and
   divergence come from two separate evaluations, the same probe is used along the whole trajectory, and SciPy's RK45
   solves the whole batch as one system in the time of the SDE, with a default tolerance of 1e-5. *Error* is the
   distance to the converged value with the same probe. *Standard error* is the distance to the value with the exact
   divergence. *Cost* is the number of forward passes of the network per sample, where a pass with a vector-Jacobian
   product counts as 3 and a pair of evaluations for a finite difference counts as 2.

All times are measured one after another, in one process on one thread. For the expected results, see docs/results.md.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from scipy.integrate import solve_ivp

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    Noise,
    ProbabilityFlow,
    SubVPSDE,
    load,
    load_data,
)

F64 = torch.float64
SDES = {
    "vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "cosine": CosineSDE(), "edm": EDMSDE(), "flow": FlowMatching(),
}  # fmt: skip
TOLERANCES = (1e-3, 1e-4, 1e-5)
COUNTS = (1, 2, 4, 8, 16)


def ring(sde):
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    return GaussianMixture(sde, 1.3 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), 0.15, dtype=F64))


def full_covariance(sde, dims=16):
    # The variances along random axes range from 0.01 to 1.
    axes = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(0), dtype=F64))[0]
    covariance = axes @ torch.diag(torch.logspace(-2, 0, dims, dtype=F64)) @ axes.T
    return GaussianMixture(sde, torch.full((1, dims), 0.3, dtype=F64), covariances=covariance[None])


def digits(sde):
    data = load_data("digits")
    means = data.codec.continuous.to_model(data.train[::8].double()).flatten(1)
    return GaussianMixture(sde, means, torch.full((len(means),), 0.4, dtype=F64))


def mixture_log_prob(model, x):
    """Compute log p = log prior(z) + log p_low(x) - log p_high(z), where the flow maps x to z."""
    low, high = model.domain.sde.times("likelihood")
    z = ProbabilityFlow(rtol=1e-10, atol=1e-10)(model, x, t0=low, t1=high).x
    return model.domain.sde.prior.log_prob(z) + model.log_prob(x, low) - model.log_prob(z, high)


def rms(x):
    return float(x.double().square().mean().sqrt())


def bits(nats, dims):
    return nats / (dims * math.log(2))


def timed(model, x, likelihood, noise=None):
    began = time.perf_counter()
    result = likelihood(model, x, noise, check=False)
    return result, time.perf_counter() - began


def exact_models(n):
    print("| SDE | data | method | rtol | error (bits/dim) | evaluations | with divergence | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, sde in SDES.items():
        for label, make in (("ring, D = 2", ring), ("Gaussian, D = 16", full_covariance), ("digits, D = 64", digits)):
            model = make(sde)
            x = model.sample(n, torch.Generator().manual_seed(1))
            best = mixture_log_prob(model, x)
            for method in ("coupled", "quadrature"):
                for rtol in TOLERANCES:
                    got, seconds = timed(model, x, Likelihood(method=method, divergence="exact", rtol=rtol))
                    error, nfe = rms(bits(got.log_prob - best, x.shape[1])), got.nfe.double().mean()
                    print(
                        f"| {name} | {label} | {method} | {rtol:.0e} | {error:.1e} | {float(nfe):.0f} "
                        f"| {float(got.divergences.double().mean()):.0f} | {seconds:.2f} |",
                        flush=True,
                    )


def probes(label, model, x, best):
    """Print the distance to the reference ``best`` in bits/dim for each number of probes."""
    dims, noise = x[0].numel(), Noise.of(len(x), 1)
    for title, options in (
        ("coupled, fixed", {"redraw": False}),
        ("coupled, redrawn", {}),
        ("quadrature, redrawn", {"method": "quadrature"}),
    ):
        for count in COUNTS:
            how = Likelihood(divergence="hutchinson", probes=count, rtol=1e-4, **options)
            got, seconds = timed(model, x, how, noise)
            error = rms(bits(got.log_prob.double() - best, dims))
            own = "-" if count == 1 else f"{rms(bits(got.stderr_probes, dims)):.4f}"
            print(
                f"| {label} | {title} | {count} | {error:.4f} | {own} | {float(got.nfe.double().mean()):.0f} "
                f"| {float(got.divergences.double().mean()):.0f} | {seconds:.1f} |",
                flush=True,
            )


def original(model, x, e, rtol):
    """Compute log p by the original scheme, and the number of evaluations.

    Each evaluation is one forward pass, and one forward pass that is differentiated.
    """
    sde, shape = model.domain.sde, x.shape
    low, high = sde.times("likelihood")

    def drift(y, t):
        f, g = sde.drift(y, t), sde.diffusion(t)
        return f - g.square().to(y.dtype).reshape(-1, *[1] * (y.ndim - 1)) * model(y, t).score / 2

    def ode(t, state):
        y = torch.tensor(state[: x.numel()], dtype=x.dtype).reshape(shape)
        time_of = torch.full((len(x),), t, dtype=x.dtype)
        with torch.no_grad():
            slope = drift(y, time_of)
        with torch.enable_grad():
            y.requires_grad_()
            trace = (torch.autograd.grad(drift(y, time_of), y, e)[0] * e).flatten(1).sum(1)
        return np.concatenate([slope.flatten().double().numpy(), trace.double().numpy()])

    start = np.concatenate([x.flatten().double().numpy(), np.zeros(len(x))])
    solved = solve_ivp(ode, (low, high), start, method="RK45", rtol=rtol, atol=rtol)
    z = torch.from_numpy(solved.y[: x.numel(), -1]).reshape(shape)
    return sde.prior.log_prob(z) + torch.from_numpy(solved.y[x.numel() :, -1]), solved.nfev


def beside_the_original(run, n):
    if not run.model.domain.sde.finite_g:
        raise SystemExit("the original scheme requires a drift that is finite up to t_max; pass a VP, sub-VP or VE run")
    data, dims = run.data(), run.info.dims
    x = run.to_model(data.test[:n], Noise.of(n).uniform(run.info.shape, stream="dequantise", dtype=F64))
    double = load(run.folder, dtype=F64).model
    noise = Noise.of(n, 1)
    e = noise.rademacher((dims,), 0, "probe", run.dtype).reshape(x.shape)
    tight = Likelihood(divergence="hutchinson", redraw=False, rtol=1e-7)
    converged = tight(double, x.double(), noise, check=False).log_prob
    # The exact divergence needs 64 passes, so the method that evaluates it less often is used.
    exact = Likelihood(divergence="exact", method="quadrature", rtol=1e-5)
    truth = exact(run.model, x, check=False).log_prob.double()

    print("\n| method | rtol | error (bits/dim) | standard error | evaluations | cost | seconds |")
    print("|---|---|---|---|---|---|---|")

    def row(name, rtol, same_probe, log_prob, nfe, cost, seconds):
        ok = log_prob.isfinite()
        name += "" if bool(ok.all()) else f", {int((~ok).sum())} of {len(ok)} failed"
        error = "-" if same_probe is None else f"{rms(bits((same_probe - converged)[ok], dims)):.1e}"
        spread = rms(bits((log_prob.double() - truth)[ok], dims))
        print(f"| {name} | {rtol:.0e} | {error} | {spread:.4f} | {nfe:.0f} | {cost:.0f} | {seconds:.1f} |", flush=True)

    for rtol in (1e-3, 1e-4, 1e-5):
        began = time.perf_counter()
        log_prob, nfe = original(run.model, x, e, rtol)
        row("original's scheme", rtol, log_prob, log_prob, nfe, 4 * nfe, time.perf_counter() - began)
    for rtol in (1e-2, 1e-3, 1e-4, 3e-5, 1e-5):
        for title, options in (
            ("coupled", {"redraw": False}),
            ("coupled, redrawn", {}),
            ("coupled, differences", {"redraw": False, "divergence": "difference"}),
            ("coupled, differences, redrawn (the default)", {"divergence": "difference"}),
            ("quadrature", {"method": "quadrature", "redraw": False}),
            ("quadrature, redrawn", {"method": "quadrature"}),
        ):
            options = {"divergence": "hutchinson", **options}
            got, seconds = timed(run.model, x, Likelihood(rtol=rtol, **options), noise)
            nfe, with_divergence = float(got.nfe.double().mean()), float(got.divergences.double().mean())
            same = got.log_prob.double() if "redraw" in options else None
            cost = nfe if options["divergence"] == "difference" else nfe + 2 * with_divergence
            row(title, rtol, same, got.log_prob, nfe, cost, seconds)
    print()
    return x, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run trained on the digits")
    parser.add_argument("--n", type=int, default=32, help="number of samples")
    parser.add_argument("--only", choices=["exact", "probes", "original"], help="print only this table")
    args = parser.parse_args()
    if args.only == "original" and not args.run:
        parser.error("--only original requires a run on the digits, for example demo/runs/digits-vp")
    torch.set_num_threads(1)

    if args.only in (None, "exact"):
        exact_models(args.n)
    network = None
    if args.run and args.only in (None, "probes", "original"):
        run = load(args.run)
        network = run.model, *beside_the_original(run, args.n)
    if args.only in (None, "probes"):
        print("\n| model | probes | K | error (bits/dim) | own estimate | evaluations | with divergence | seconds |")
        print("|---|---|---|---|---|---|---|---|")
        model = digits(VPSDE())
        x = model.sample(args.n, torch.Generator().manual_seed(1))
        best = mixture_log_prob(model, x)
        probes("mixture, D = 64", model, x, best)
        if network:
            probes("network, D = 64", *network)


if __name__ == "__main__":
    main()
