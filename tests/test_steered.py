"""Steering by a function of the estimate, and limits on the estimate."""

from __future__ import annotations

import math

import pytest
import torch
from models import F64, normals, small_network

from scoresde import (
    DDPM,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Guided,
    Noise,
    Particles,
    ProbabilityFlow,
    Rescaled,
    Steered,
    Thresholded,
    convert,
    elbo,
    sample,
)
from scoresde.core.errors import UsageError
from scoresde.guidance.steered import informative
from scoresde.model.estimate import Domain

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=F64)
STDS = torch.tensor([0.2, 0.3, 0.4], dtype=F64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)


def mixture(sde, kept=(0, 1, 2)):
    kept = list(kept)
    return GaussianMixture(sde, MEANS[kept], STDS[kept], WEIGHTS[kept] / WEIGHTS[kept].sum())


def classifier(model):
    """The exact log p(c | x_t) of the class that holds the first two components."""

    def potential(estimate):
        joint = model._components(estimate.x, estimate.t)[3]
        return torch.logsumexp(joint[:, :2], 1) - torch.logsumexp(joint, 1)

    return potential


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), CosineSDE(), VESDE(sigma_max=20.0)])
def test_classifier_guidance_of_a_mixture_is_the_conditional_score(sde):
    model, truth = mixture(sde), mixture(sde, (0, 1))
    steered, x = Steered(model, classifier(model)), 2 * normals(50, 2)
    for t in (0.01, 0.1, 0.5, 0.9):
        found, exact = steered(x, t), truth(x, t)
        torch.testing.assert_close(found.score, exact.score, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.x0, exact.x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.twist(), classifier(model)(model(x, t)), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.plain, model(x, t).x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), CosineSDE()])
def test_near_the_prior_the_step_is_taken_at_a_slightly_lower_noise_level(sde):
    model, truth = mixture(sde), mixture(sde, (0, 1))
    steered, x = Steered(model, classifier(model)), normals(50, 2)
    for t in (sde.t_max, torch.tensor([sde.t_max, 0.5] * 25, dtype=F64)):
        found, exact = steered(x, t), truth(x, t)
        assert bool(found.x0.isfinite().all() and found.eps.isfinite().all())
        torch.testing.assert_close(found.x0, exact.x0, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.eps, exact.eps, rtol=0, atol=1e-4)


def test_the_states_near_the_prior():
    sde = FlowMatching()
    domain, x = Domain.of(sde), normals(3, 2)
    near, s, early = informative(domain, x, torch.tensor([1.0, 0.995, 0.5], dtype=F64))
    assert early.tolist() == [True, True, False] and float(s[2]) == 0.5
    alpha, sigma = sde.coefficients(s)
    torch.testing.assert_close((alpha / sigma)[:2], torch.full((2,), 0.01, dtype=F64), rtol=1e-6, atol=0)
    assert bool((near[0] == 0).all()) and bool((near[2] == x[2]).all())
    # The natural parameter alpha x / sigma^2 is kept.
    a, b = (float(c) for c in sde.coefficients(torch.tensor(0.995, dtype=F64)))
    torch.testing.assert_close(near[1] * (alpha / sigma.square())[1], x[1] * a / b**2, rtol=1e-6, atol=0)
    chain = DDPM()
    nodes = Domain(chain, chain.t_min, chain.t_max, chain.nodes)
    assert float(informative(nodes, x, torch.tensor(1.0, dtype=F64))[1]) in chain.nodes.tolist()


def test_any_function_and_any_scale():
    model, x = mixture(VPSDE()), normals(4, 2)
    up = Steered(model, lambda e: 3 * e.x0[:, 1])
    assert bool((up(x, 0.5).x0[:, 1] > model(x, 0.5).x0[:, 1]).all())
    alpha, sigma = VPSDE().coefficients(torch.tensor(0.5, dtype=F64))
    torch.testing.assert_close(alpha * up(x, 0.5).x0 + sigma * up(x, 0.5).eps, x, rtol=1e-12, atol=1e-12)
    one, two = (Steered(model, lambda e: 3 * e.x0[:, 1], scale)(x, 0.5).x0 - model(x, 0.5).x0 for scale in (1.0, 2.0))
    torch.testing.assert_close(two, 2 * one, rtol=1e-12, atol=1e-12)
    assert not up.domain.consistent and Steered(model, lambda e: e.x0[:, 0], 0.0).domain.consistent
    assert elbo(up, x, strata=4).whose == "reverse SDE of the steered model"
    with pytest.raises(UsageError, match=r"one number for each of the 4 rows, shape \(4,\), but .* shape \(4, 2\)"):
        Steered(model, lambda e: e.x0)(x, 0.5)
    assert not torch.is_grad_enabled() or not up(x, 0.5).x0.requires_grad


def test_a_steered_network_keeps_its_rows():
    model = small_network(classes=3)
    steered = Steered(model.given(torch.tensor([0, 1, 2])), lambda e: -(e.x0 - 0.5).square().sum(1))
    x, index = normals(3, 3), torch.tensor([2, 0])
    torch.testing.assert_close(steered.rows(index)(x[index], 0.5).x0, steered(x, 0.5).x0[index], rtol=1e-12, atol=1e-12)


def test_a_steered_flow_has_a_likelihood_by_differences_and_by_derivatives():
    from scoresde import Likelihood

    model, truth = mixture(VPSDE()), mixture(VPSDE(), (0, 1))
    steered, x = (
        convert(Steered(model, classifier(model)), FlowMatching()),
        truth.sample(5, torch.Generator().manual_seed(0)),
    )
    exact = truth.log_prob(x)
    for how in (Likelihood(divergence="exact"), Likelihood(divergence="difference", probes=2)):
        found = how(steered, x, check=False).log_prob.double()
        torch.testing.assert_close(found, exact, rtol=0, atol=0.05)


def test_particles_follow_any_function():
    # The potential is a class of the data, log p(c | x_0) = 0 or -inf up to smoothing: x0 below 1 in the second number.
    model = mixture(VPSDE())
    steered = Steered(model, lambda e: -20 * (e.x0[:, 1] - 1).clamp(min=0))
    found = sample(steered, Particles(steps=30, particles=8), (2,), Noise.of(200), dtype=F64)
    assert float((found.x[:, 1] > 1).double().mean()) < 0.02  # 30 % without
    assert abs(float((found.x[:, 0] > 0).double().mean()) - 0.5 / 0.7) < 0.1
    assert bool((found.ess >= 1).all()) and bool((found.ess <= 8).all())


def test_dynamic_thresholding():
    model = Guided(mixture(VPSDE(), (0,)), mixture(VPSDE()), 8.0)
    x, t = 3 * normals(6, 2), 0.3
    plain, limited = model(x, t), Thresholded(model, quantile=1.0, limit=1.0)(x, t)
    size = plain.x0.abs().amax(1).clamp(min=1)
    torch.testing.assert_close(limited.x0, plain.x0 / size[:, None], rtol=1e-12, atol=1e-12)
    alpha, sigma = VPSDE().coefficients(torch.tensor(t, dtype=F64))
    torch.testing.assert_close(alpha * limited.x0 + sigma * limited.eps, x, rtol=1e-12, atol=1e-12)
    wide = Thresholded(model, limit=1e6)(x, t)
    torch.testing.assert_close(wide.x0, plain.x0, rtol=1e-12, atol=0)
    assert not Thresholded(mixture(VPSDE())).domain.consistent


def test_rescaling_restores_the_contrast():
    cond = mixture(VPSDE(), (0,))
    guided, x, t = Guided(cond, mixture(VPSDE()), 8.0), 3 * normals(6, 2), 0.3
    full = Rescaled(guided, 1.0)(x, t)
    torch.testing.assert_close(full.x0.std(1), cond(x, t).x0.std(1), rtol=1e-9, atol=1e-12)
    none = Rescaled(guided, 0.0)(x, t)
    torch.testing.assert_close(none.x0, guided(x, t).x0, rtol=1e-12, atol=0)
    alpha, sigma = VPSDE().coefficients(torch.tensor(t, dtype=F64))
    torch.testing.assert_close(alpha * full.x0 + sigma * full.eps, x, rtol=1e-10, atol=1e-10)
    assert Rescaled(cond, 0.7)(x, t).x0.equal(cond(x, t).x0)  # nothing to compare with
    assert math.isfinite(float(full.x0.sum()))


def test_solvers_need_no_gradient_and_leave_none():
    model = mixture(VPSDE())
    found = ProbabilityFlow(rtol=1e-3)(Steered(model, classifier(model)), normals(5, 2))
    assert not found.x.requires_grad and bool(found.ok.all())
