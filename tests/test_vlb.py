"""The variational bound against divergences, densities and probabilities that are known; what its gradient trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from models import F64, OnNodes, gaussian, normals, ring
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scoresde import DDPM, EDM, SMLD, VESDE, VPSDE, X0, Eps, FlowMatching, Noise, Parts, ScoreModel
from scoresde.core.errors import UsageError
from scoresde.core.shapes import expand
from scoresde.likelihood.chain import (
    HYBRID_WEIGHT,
    bound,
    decoder_nll,
    discretised_nll,
    even_nodes,
    prior_kl,
    step_kl,
    variance_loss,
)  # fmt: skip
from scoresde.model.estimate import Denoiser, Domain, Estimate, Wrapped
from scoresde.nn import MLP
from scoresde.objective.loss import denoising_loss
from scoresde.sde.grids import nearest_node
from scoresde.sde.marginal import forward_step, posterior

CHAINS = {"ddpm": DDPM(30), "cosine": DDPM(20, "cosine"), "given": DDPM(betas=(0.1, 0.3, 0.6)), "smld": SMLD(12)}


@dataclass(frozen=True)
class Fixed(Wrapped):
    """A model whose variance lies where one number for each node says, ``(N,)``."""

    fracs: Tensor

    @property
    def domain(self) -> Domain:
        return replace(self.model.domain, nodes=self.model.domain.sde.nodes)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        e = self.model(x, t)
        frac = self.fracs[nearest_node(torch.as_tensor(t, dtype=F64), self.domain.nodes)]
        return replace(e, frac=expand(frac, x).expand(x.shape))

    def rows(self, index: Tensor) -> Denoiser:
        return self


def normal(mean: float, std: float) -> Normal:
    """In float64; of plain numbers torch makes float32."""
    return Normal(torch.tensor(mean, dtype=F64), torch.tensor(std, dtype=F64))


def hermite(points: int = 24) -> tuple[Tensor, Tensor]:
    """Nodes and weights that integrate polynomials against N(0, 1)."""
    z, w = np.polynomial.hermite_e.hermegauss(points)
    return torch.from_numpy(z), torch.from_numpy(w / w.sum())


def right_fracs(chain, s0: float) -> Tensor:
    """Where the true variances of the steps down lie, for data N(mu, s0^2)."""
    alpha, sigma = chain.coefficients(chain.nodes)
    left = s0**2 * sigma**2 / (alpha**2 * s0**2 + sigma**2)  # Var(x_0 | x_t)
    a, _, v = posterior(chain, chain.nodes[1:], chain.nodes[:-1])
    up = forward_step(chain, chain.nodes[1:], chain.nodes[:-1])[1]
    steps = torch.log((v + a**2 * left[1:]) / v) / torch.log(up / v)
    low = torch.log(v[0])
    first = (torch.log(left[0]) - low) / (2 * torch.log(sigma[0]) - low)
    return torch.cat([first[None], steps])


# ------------------------------------------------------------------------------------------------------- single terms


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=[*CHAINS])
def test_a_step_is_the_divergence_of_two_gaussians(chain, variance):
    # q(x_s | x_t, x_0) and p(x_s | x_t) written out; torch knows their divergence.
    index = torch.tensor([1, 2, chain.steps // 2, chain.steps - 1])
    t, s = chain.nodes[index], chain.nodes[torch.tensor([0, 0, chain.steps // 2 - 1, 1])]
    t = torch.where(t > s, t, 1.0)
    x0, frac = normals(4, 3), normals(4, 3, seed=2)
    x = chain.perturb(x0, t, normals(4, 3, seed=1))
    estimate = replace(ring_3d(chain)(x, t), frac=frac if variance == "learned" else None)
    a, b, v = (expand(c, x) for c in posterior(chain, t, s))
    up = expand(forward_step(chain, t, s)[1], x)
    share = {"posterior": torch.zeros(()), "beta": torch.ones(()), "learned": frac}[variance]
    log_variance = share * up.log() + (1 - share) * v.log()  # Nichol and Dhariwal (2021), eq. 15
    q, p = Normal(a * x0 + b * x, v.sqrt()), Normal(a * estimate.x0 + b * x, torch.exp(log_variance / 2))
    assert torch.allclose(step_kl(estimate, x0, s, variance), kl_divergence(q, p).sum(1), rtol=1e-7, atol=1e-10)


def ring_3d(chain):
    return gaussian(chain, dims=3)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=[*CHAINS])
def test_the_prior_term_is_the_divergence_from_the_prior(chain):
    x0 = normals(5, 2, 3)
    alpha, sigma = chain.coefficients(chain.nodes[-1])
    expected = kl_divergence(Normal(alpha * x0, sigma), normal(0.0, chain.prior_std))
    assert torch.allclose(prior_kl(chain, x0), expected.sum((1, 2)), rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_the_decoder_is_a_gaussian_density(variance):
    chain, x0 = DDPM(30), normals(4, 3)
    beta = np.linspace(1e-4, 0.02, 30) * 1000 / 30
    bar = np.cumprod(1 - beta)
    tilde = (1 - bar[0]) / (1 - bar[1]) * beta[1]  # of the step above, as published code clips it
    frac = normals(4, 3, seed=3)
    share = {"posterior": 0.0, "beta": 1.0, "learned": frac}[variance]
    estimate = replace(gaussian(chain, dims=3)(x0 + 0.1, chain.nodes[0]), frac=frac if variance == "learned" else None)
    std = torch.exp((share * math.log(beta[0]) + (1 - share) * math.log(tilde)) / 2 * torch.ones(4, 3, dtype=F64))
    expected = -Normal(estimate.x0, std).log_prob(x0).sum(1)
    assert torch.allclose(decoder_nll(estimate, x0, chain.nodes, variance), expected, rtol=1e-9)


def test_the_discretised_decoder_is_a_distribution_over_the_levels():
    # Ho et al. (2020), eq. 13, for 17 levels from -1 to 1; the outermost bins are open.
    chain, width = DDPM(30), 2 / 16
    levels = torch.linspace(-1, 1, 17, dtype=F64)[:, None]
    for said in (-3.0, -1.0, -0.4, 0.03, 1.0, 40.0):
        estimate = Estimate(levels, chain.nodes[0], torch.full_like(levels, said), levels, chain)
        nll = discretised_nll(estimate, levels, chain.nodes, width, variance="beta")
        assert float(torch.exp(-nll).sum()) == pytest.approx(1, abs=1e-12) and bool(torch.isfinite(nll).all())
    # In the tails: the left half of the normal law has the digits that the right half loses.
    std = math.sqrt(1e-4 * 1000 / 30)
    estimate = Estimate(levels, chain.nodes[0], torch.full_like(levels, -0.4), levels, chain)
    nll = discretised_nll(estimate, levels, chain.nodes, width, variance="beta")[:, None]
    edges = [(levels + d * width / 2 + 0.4) / std for d in (-1, 1)]
    mirrored = torch.special.log_ndtr(-edges[0]) + torch.log1p(
        -torch.exp(torch.special.log_ndtr(-edges[1]) - torch.special.log_ndtr(-edges[0]))
    )
    assert torch.allclose(-nll[6:-1], mirrored[6:-1], rtol=1e-9)
    # A narrow bin has the mass density times width.
    fine = discretised_nll(estimate, levels, chain.nodes, 1e-5, -9.0, 9.0, "beta")
    density = decoder_nll(estimate, levels, chain.nodes, "beta")
    assert torch.allclose(fine, density - math.log(1e-5), atol=1e-5)
    # Two elements: probabilities multiply.
    pair = Estimate(levels.expand(17, 2), chain.nodes[0], torch.full((17, 2), -0.4, dtype=F64), levels, chain)
    double = discretised_nll(pair, levels.expand(17, 2), chain.nodes, width, variance="beta")
    assert torch.allclose(double, 2 * nll[:, 0])


# --------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("chain", CHAINS.values(), ids=[*CHAINS])
def test_the_bound_of_the_exact_model_is_the_density_but_for_the_prior(chain):
    """Gaussian data: with the true mean and variance p(x_s | x_t) is q(x_s | x_t), so that for every x_0

    L_T + sum L_i + L_0 = -log q(x_0) + E_q(x_T | x_0) log q(x_T)/p(x_T).

    All expectations are of polynomials of degree 2 in the noise, so that quadrature has no error.
    """
    mu, s0 = 0.3, 0.5
    model = Fixed(gaussian(chain, 1, mu, s0), right_fracs(chain, s0))
    z, w = hermite()
    for x in (-1.2, 0.3, 0.9):
        x0 = torch.full((len(z), 1), x, dtype=F64)

        def said(i, x0=x0):
            return model(chain.perturb(x0, chain.nodes[i], z[:, None]), chain.nodes[i])

        total = float(prior_kl(chain, x0)[0]) + float(w @ decoder_nll(said(0), x0, chain.nodes))
        for i in range(1, chain.steps):
            total += float(w @ step_kl(said(i), x0, chain.nodes[i - 1]))
        alpha, sigma = chain.coefficients(chain.nodes[-1])
        top = alpha * x + sigma * z
        marginal = Normal(alpha * mu, torch.sqrt(alpha**2 * s0**2 + sigma**2))
        prior = normal(0.0, chain.prior_std)
        gap = float(w @ (marginal.log_prob(top) - prior.log_prob(top)))
        assert total == pytest.approx(-float(normal(mu, s0).log_prob(x0[0, 0])) + gap, abs=1e-9)


@pytest.mark.parametrize("chain", [CHAINS["ddpm"], CHAINS["smld"]], ids=["ddpm", "smld"])
def test_the_bound_by_draws(chain):
    mu, s0, n = 0.3, 0.5, 4000
    model = Fixed(gaussian(chain, 2, mu, s0), right_fracs(chain, s0))
    x0 = torch.tensor([[0.8, -0.1]], dtype=F64).expand(n, 2)
    terms = bound(model, x0, Noise.of(n, 5))
    assert terms.steps.shape == (n, chain.steps - 1) and torch.equal(terms.prior, prior_kl(chain, x0))
    expected = -float(normal(mu, s0).log_prob(x0[0]).sum())
    spread = float(terms.total.std()) / math.sqrt(n)
    assert float(terms.total.mean()) == pytest.approx(expected, abs=4 * spread + 2e-3) and spread < 0.05
    # A variance that is not the true one costs something, with every name.
    for variance in ("posterior", "beta"):
        worse = bound(model, x0, Noise.of(n, 5), variance=variance)
        assert float(worse.total.mean()) > float(terms.total.mean()) + 0.02
        assert bool((worse.steps.mean(0) > terms.steps.mean(0) - 1e-3).all())
    # A row has its own draws, whatever the batch.
    some = torch.tensor([7, 3])
    part = bound(model, x0[some], Noise.of(n, 5).rows(some))
    assert torch.allclose(part.total, terms.total[some], rtol=1e-12)


def test_the_bound_with_levels_and_without_nodes():
    chain = DDPM(30)
    model = OnNodes(gaussian(chain, 2))
    x0 = torch.tensor([[0.5, -1.0], [1.0, 0.25]], dtype=F64)
    density, bins = bound(model, x0), bound(model, x0, bin_width=2 / 16)
    assert torch.equal(density.steps, bins.steps) and bool((bins.data > 0).all())
    lowest = model(chain.perturb(x0, chain.nodes[0], Noise.of(2).normal((2,), 0, "user", F64)), chain.nodes[0])
    assert torch.allclose(bins.data, discretised_nll(lowest, x0, chain.nodes, 2 / 16))
    with pytest.raises(UsageError, match=r"VPSDE, the path of this model, has no nodes; train with the 'ddpm' or"):
        bound(ring(VPSDE()), x0)


# ----------------------------------------------------------------------------- chains of models in continuous time


class Hermite(Noise):
    """Noise whose rows are the points of a quadrature rule, the same at every node: weighted sums are expectations."""

    def normal(self, shape, step=0, stream="solver", dtype=torch.float32):
        return hermite()[0][:, None].to(dtype)


def expected_terms(sde, nodes: Tensor, x: float, mu: float, s0: float) -> tuple[float, Tensor, float]:
    """The terms of the bound of x for data N(mu, s0^2): the exact denoiser is linear, so each has a closed form.

    x0_hat - x_0 = (sigma^2 (mu - x) + alpha s0^2 sigma eps) / V with V = alpha^2 s0^2 + sigma^2.
    """
    alpha, sigma = sde.coefficients(nodes)
    v = alpha**2 * s0**2 + sigma**2
    wrong = (sigma**4 * (mu - x) ** 2 + alpha**2 * s0**4 * sigma**2) / v**2
    snr = (alpha / sigma) ** 2
    steps = (snr[:-1] - snr[1:]) * wrong[1:] / 2
    w = sigma[0] ** 2
    prior = kl_divergence(Normal(alpha[-1] * x, sigma[-1]), normal(0.0, sde.prior_std))
    return float(prior), steps, float((wrong[0] / w + torch.log(2 * math.pi * w)) / 2)


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), VESDE(0.01, 20.0)], ids=["vp", "flow", "ve"])
def test_a_chain_of_a_continuous_gaussian_has_known_terms(sde):
    mu, s0, x = 0.3, 0.5, -0.4
    model, (z, w) = gaussian(sde, 1, mu, s0), hermite()
    nodes = even_nodes(model, 20)
    terms = bound(model, torch.full((len(z), 1), x, dtype=F64), Hermite.of(len(z)), nodes=nodes, decoder="beta")
    prior, steps, data = expected_terms(sde, nodes, x, mu, s0)
    assert float(w @ terms.prior) == pytest.approx(prior, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(w @ terms.steps, steps, rtol=1e-9, atol=1e-12)
    assert float(w @ terms.data) == pytest.approx(data, rel=1e-9)
    assert terms.nfe.unique().tolist() == [20]
    # by draws, as reports have them
    many = bound(model, torch.full((4000, 1), x, dtype=F64), Noise.of(4000, 2), nodes=nodes, decoder="beta").total
    error = float(many.std()) / math.sqrt(4000)
    assert float(many.mean()) == pytest.approx(prior + float(steps.sum()) + data, abs=4 * error)


def test_the_chain_converges_to_continuous_time_at_first_order():
    sde, mu, s0, x = VPSDE(), 0.3, 0.5, -0.4
    model, (z, w) = gaussian(sde, 1, mu, s0), hermite()
    x0 = torch.full((len(z), 1), x, dtype=F64)

    def total(count: int, decoder: str = "beta") -> float:
        return float(w @ bound(model, x0, Hermite.of(len(z)), nodes=even_nodes(model, count), decoder=decoder).total)

    # The limit: the sum of the steps is the integral of 1/2 SNR E (x_0 - x0_hat)^2 over the log-SNR.
    fine = even_nodes(model, 20_001)
    snr = sde.log_snr(fine)
    alpha, sigma = sde.coefficients(fine)
    wrong = (sigma**4 * (mu - x) ** 2 + alpha**2 * s0**4 * sigma**2) / (alpha**2 * s0**2 + sigma**2) ** 2
    prior, _, data = expected_terms(sde, fine, x, mu, s0)
    limit = prior + float(-torch.trapezoid(snr.exp() * wrong / 2, snr)) + data
    off = [total(count) - limit for count in (101, 201, 401, 801)]
    assert all(error > 0 for error in off) and off[-1] < 0.1
    assert [a / b for a, b in pairwise(off)] == pytest.approx([2.08, 2.04, 2.02], abs=0.01)
    # With the posterior's variance of a short step, the decoder is far too sure of itself.
    assert total(401, "posterior") > total(101, "posterior") + 1 > total(101) + 2


def test_nodes_even_in_the_log_snr():
    for sde in (VPSDE(), VESDE(0.01, 20.0)):
        model = gaussian(sde, 1)
        nodes = even_nodes(model, 30)
        assert (float(nodes[0]), float(nodes[-1])) == model.domain.interval("likelihood") and len(nodes) == 30
        gaps = sde.log_snr(nodes).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(29), rtol=1e-3, atol=0)
    steep = even_nodes(gaussian(FlowMatching(), 1), 10)  # no signal is left at t = 1
    assert float(steep[-1]) == 1.0 and bool((steep.diff() > 0).all())
    with pytest.raises(UsageError, match="differ between coordinates"):
        even_nodes(gaussian(Parts("vp", "flow", split=1, shape=(2,)), 2), 10)
    with pytest.raises(UsageError, match="count is 1; it must be an integer >= 2"):
        even_nodes(gaussian(VPSDE(), 1), 1)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([0.5], "at least two ascending"),
        ([0.5, 0.2, 1.0], "ascending"),
        ([0.1, 0.9], "end at 1"),
        ([0.0, 1.0], "begin"),
    ],
)
def test_nodes_that_make_no_chain_are_refused(nodes, words):
    with pytest.raises(UsageError, match=words):
        bound(gaussian(VPSDE(), 1), torch.zeros(1, 1, dtype=F64), nodes=torch.tensor(nodes, dtype=F64))


# --------------------------------------------------------------------------------------------------------- training


def learned(chain, parametrization, dims=3, dtype=F64):
    torch.manual_seed(0)
    net = MLP(dims=dims, width=8, blocks=1, outputs=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ScoreModel(net.to(dtype), chain, parametrization, learn_variance=True)


@pytest.mark.parametrize("weighting", ["native", "eps"])
@pytest.mark.parametrize("p", [Eps(), X0(), EDM(0.5)], ids=str)
@pytest.mark.parametrize("chain", [CHAINS["ddpm"], CHAINS["smld"]], ids=["ddpm", "smld"])
def test_the_hybrid_loss_trains_the_mean_as_if_the_variance_were_not_there(chain, p, weighting):
    model = learned(chain, p)
    t, x0, eps = chain.nodes[[0, 1, 5, chain.steps - 1]], normals(4, 3), normals(4, 3, seed=1)
    hybrid = denoising_loss(model, x0, t, eps, weighting=weighting)
    simple = without(model)
    plain = denoising_loss(simple, x0, t, eps, weighting=weighting)
    last = model.network.leave[-1].weight
    for row in range(4):
        g, h = (torch.autograd.grad(loss[row], last, retain_graph=True)[0] for loss in (hybrid, plain))
        # The first three outputs are the mean's, the others the variance's.
        assert torch.allclose(g[:3], h[:3], rtol=1e-12, atol=1e-15)
        assert float(g[3:].abs().max()) > 0 == float(h[3:].abs().max())
    estimate = model(chain.perturb(x0, t, eps), t)
    assert torch.allclose(hybrid - plain, HYBRID_WEIGHT * variance_loss(estimate, x0, chain.nodes), rtol=1e-8)
    assert HYBRID_WEIGHT == 0.001


def without(model):
    """The same network, whose second half nobody looks at."""

    class Half(torch.nn.Module):
        def forward(self, *args):
            return model.network(*args).chunk(2, dim=1)[0]

    return ScoreModel(Half(), model.domain.sde, model.parametrization)


def test_over_uniform_nodes_the_variance_loss_is_the_bound():
    # Each node once, on the same draws as `bound`: N terms of N L_i, in bits per dimension.
    chain = CHAINS["ddpm"]
    model, x0 = learned(chain, Eps()), normals(1, 3)
    noise = Noise.of(1, 8)
    eps = torch.cat([noise.normal((3,), i, "user", F64) for i in range(30)])
    every = x0.expand(30, 3)
    with torch.no_grad():
        losses = variance_loss(model(chain.perturb(every, chain.nodes, eps), chain.nodes), every, chain.nodes)
    terms = bound(model, x0, noise)
    assert float(losses.mean()) == pytest.approx(
        float((terms.steps.sum(1) + terms.data) / (3 * math.log(2))), rel=1e-10
    )
    assert torch.allclose(losses[1:] * 3 * math.log(2) / 30, terms.steps[0], rtol=1e-9)


def test_the_true_variance_is_found_by_training_it_alone():
    # Newton's method on one fraction for each node, from the middle; each term is convex in its own.
    chain, s0 = CHAINS["ddpm"], 0.5
    z, w = hermite(4)
    x, v = hermite(4)  # of the data
    x0 = (0.3 + s0 * x).repeat_interleave(4)[:, None]
    z, weight = z.repeat(4)[:, None], v.repeat_interleave(4) * w.repeat(4)
    fracs = torch.full((chain.steps,), 0.5, dtype=F64)
    for _ in range(12):
        fracs.requires_grad_()
        total = torch.zeros((), dtype=F64)
        for i, t in enumerate(chain.nodes):
            every = t.expand(len(z))
            estimate = Fixed(gaussian(chain, 1, 0.3, s0), fracs)(chain.perturb(x0, every, z), every)
            total = total + weight @ variance_loss(estimate, x0, chain.nodes) / (i + 1)
        (first,) = torch.autograd.grad(total, fracs, create_graph=True)
        second = torch.autograd.grad(first.sum(), fracs)[0]
        fracs = (fracs - first / second).detach()
    assert torch.allclose(fracs, right_fracs(chain, s0), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_images_and_rows(dtype):
    chain = CHAINS["cosine"]
    model = learned(chain, Eps(), dims=8, dtype=dtype)
    x0, eps = normals(20, 2, 2, 2, dtype=dtype), normals(20, 2, 2, 2, seed=1, dtype=dtype)
    # the MLP flattens events, and twice the channels of (2, 2, 2) are (4, 2, 2)
    assert model(x0, chain.nodes).frac.shape == (20, 2, 2, 2)
    whole = denoising_loss(model, x0, chain.nodes, eps)
    assert whole.shape == (20,) and whole.dtype == dtype and bool(torch.isfinite(whole).all())
    rows = torch.tensor([19, 0, 4])
    part = denoising_loss(model, x0[rows], chain.nodes[rows], eps[rows])
    assert torch.allclose(part, whole[rows], rtol=1e-12 if dtype == F64 else 1e-4)
    whole.mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
