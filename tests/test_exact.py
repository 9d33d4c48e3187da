"""The exact mixture against autodiff of its own density, and against sampling."""

from __future__ import annotations

import pytest
import torch
from models import ALL, F64, mixture_1d, normals, ring, skewed

from scoresde import VPSDE, GaussianMixture
from scoresde.core.errors import UsageError


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("t", [0.01, 0.3, 0.95])
def test_score_is_the_gradient_of_the_log_density(name, t):
    for model, dims in ((ring(ALL[name]), 2), (mixture_1d(ALL[name]), 1), (skewed(ALL[name]), 3)):
        x = normals(16, dims).requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
        estimate = model(x.detach(), t)
        assert torch.allclose(estimate.score, gradient, rtol=1e-9, atol=1e-10)
        alpha, sigma = ALL[name].coefficients(torch.tensor(t, dtype=F64))
        assert torch.allclose(alpha * estimate.x0 + sigma * estimate.eps, x.detach(), rtol=1e-9, atol=1e-9)


def test_density_of_the_data():
    model = mixture_1d(VPSDE())
    x = torch.linspace(-5, 5, 4001, dtype=F64)[:, None]
    assert float(torch.trapezoid(model.log_prob(x).exp(), x[:, 0])) == pytest.approx(1, abs=1e-9)
    drawn = model.sample(100_000, torch.Generator().manual_seed(0))
    mean = float((model.weights[:, None] * model.means).sum())
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.01)
    assert float((drawn < -0.4).double().mean()) == pytest.approx(0.3, abs=0.02)


def test_x0_is_the_posterior_mean():
    # By brute force: average data points, weighted by how well they explain x.
    model, t = mixture_1d(VPSDE()), torch.tensor(0.3, dtype=F64)
    alpha, sigma = model.domain.sde.coefficients(t)
    grid = torch.linspace(-4, 4, 20_001, dtype=F64)[:, None]
    for x in (-0.7, 0.1, 0.6):
        weight = model.log_prob(grid) - (x - alpha * grid[:, 0]) ** 2 / (2 * sigma**2)
        brute = float((torch.softmax(weight, 0) * grid[:, 0]).sum())
        assert float(model(torch.tensor([[x]], dtype=F64), t).x0) == pytest.approx(brute, abs=1e-9)


def test_a_width_of_zero_is_the_score_of_a_finite_set():
    points = normals(5, 3)
    model = GaussianMixture(VPSDE(), points, torch.zeros(5, dtype=F64))
    # At t_min nothing but the nearest point is left.
    x = VPSDE().perturb(points[2:3], 1e-5, normals(1, 3, seed=1))
    assert torch.allclose(model(x, 1e-5).x0, points[2:3], atol=1e-12)


def test_covariances():
    model = skewed(VPSDE())
    # p_t of one component is N(alpha mu, alpha^2 C + sigma^2 I)
    one = GaussianMixture(VPSDE(), model.means[:1], covariances=model.covariances[:1])
    t = torch.tensor(0.4, dtype=F64)
    alpha, sigma = one.sde.coefficients(t)
    exact = torch.distributions.MultivariateNormal(
        alpha * one.means[0], alpha**2 * one.covariances[0] + sigma**2 * torch.eye(3, dtype=F64)
    )
    x = normals(8, 3, seed=1)
    assert torch.allclose(one.log_prob(x, 0.4), exact.log_prob(x), rtol=1e-10)
    drawn = one.sample(100_000, torch.Generator().manual_seed(0))
    assert torch.allclose(torch.cov(drawn.T), one.covariances[0], atol=0.01)
    # isotropic covariances are stds
    a = GaussianMixture(VPSDE(), model.means, torch.full((3,), 0.4, dtype=F64))
    b = GaussianMixture(VPSDE(), model.means, covariances=0.16 * torch.eye(3, dtype=F64).expand(3, 3, 3))
    assert torch.allclose(a(x, 0.4).eps, b(x, 0.4).eps, rtol=1e-10)
    assert torch.allclose(a(x, 0.4).x0, b(x, 0.4).x0, rtol=1e-10)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="stds"):
        GaussianMixture(VPSDE(), torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(UsageError, match="must sum to 1"):
        GaussianMixture(VPSDE(), torch.zeros(2, 3), torch.ones(2), torch.tensor([0.5, 0.6]))
    with pytest.raises(UsageError, match="covariances of shape"):
        GaussianMixture(VPSDE(), torch.zeros(2, 3), covariances=torch.ones(2, 3))
    with pytest.raises(UsageError, match="either"):
        GaussianMixture(VPSDE(), torch.zeros(2, 3))
    with pytest.raises(UsageError, match="eigenvalue"):
        GaussianMixture(VPSDE(), torch.zeros(1, 2), covariances=torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))


@pytest.mark.parametrize("known", [(False, True, False), (True, False, True), (False, False, False)])
def test_the_rest_of_an_event_given_some_of_it(known):
    # By brute force: p(h | y) = p(h, y) / p(y), with p(y) from a sum over a grid of h.
    model, mask = skewed(VPSDE()), torch.tensor(known)
    values = torch.where(mask, torch.tensor([0.4, -0.2, 0.1], dtype=F64), torch.nan)
    rest = model.given(mask, values)
    side = torch.linspace(-6, 6, {1: 4001, 2: 401, 3: 61}[int((~mask).sum())], dtype=F64)
    h = torch.cartesian_prod(*[side] * int((~mask).sum())).reshape(-1, int((~mask).sum()))
    joint = values.expand(len(h), 3).clone()
    joint[:, ~mask] = h
    log_joint = model.log_prob(joint)
    total = torch.logsumexp(log_joint, 0) + h.shape[1] * torch.log(side[1] - side[0])
    assert torch.allclose(rest.log_prob(h), log_joint - total, rtol=0, atol=1e-6)
    assert float(rest.weights.sum()) == pytest.approx(1, abs=1e-12)


def test_isotropic_components_given_some_of_an_event():
    means = normals(4, 2, 3)
    stds, weights = torch.tensor([0.2, 0.3, 0.5, 0.4], dtype=F64), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    narrow = GaussianMixture(VPSDE(), means, stds, weights)
    wide = GaussianMixture(
        VPSDE(), means, None, weights, stds.square()[:, None, None] * torch.eye(6, dtype=F64).expand(4, 6, 6)
    )
    known, values = torch.tensor([[True, False, True], [False, False, True]]), normals(2, 3, seed=1)
    h = normals(8, 3, seed=2)
    one, other = narrow.given(known, values), wide.given(known, values)
    assert one.covariances is None and torch.allclose(one.log_prob(h), other.log_prob(h), rtol=1e-12)


def test_what_a_mixture_cannot_be_given_is_refused():
    model, values = skewed(VPSDE()), torch.zeros(3)
    with pytest.raises(UsageError, match=r"known has shape \(2,\), but the events of the mixture have shape \(3,\)"):
        model.given(torch.ones(2).bool(), values)
    with pytest.raises(UsageError, match="at least one must be unknown"):
        model.given(torch.ones(3).bool(), values)
    points = GaussianMixture(VPSDE(), torch.zeros(2, 3), torch.tensor([1.0, 0.0]))
    with pytest.raises(UsageError, match="singular covariance in component 1"):
        points.given(torch.tensor([True, False, False]), values)
