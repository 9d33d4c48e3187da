"""Guidance by another model, in an interval of noise levels, and mixtures of models."""

from __future__ import annotations

import math

import pytest
import torch
from models import F64, normals, small_network, watched

from scoresde import (
    EDMSDE,
    VPSDE,
    FlowMatching,
    GaussianMixture,
    Guided,
    Likelihood,
    Mixed,
    Multistep,
    Noise,
    ProbabilityFlow,
    convert,
    elbo,
    sample,
)
from scoresde.core.errors import UsageError


def gaussian(std, dims=1):
    return GaussianMixture(VPSDE(), torch.zeros(1, dims, dtype=F64), torch.tensor([std], dtype=F64))


def level(sde, t):
    alpha, sigma = sde.coefficients(torch.tensor(t, dtype=F64))
    return float(sigma / alpha)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_outside_the_interval_only_the_model_is_asked(scale):
    model, against = watched(gaussian(1.0)), watched(gaussian(2.0))
    guided = Guided(model, against, scale, (level(VPSDE(), 0.2), level(VPSDE(), 0.6)))
    for t, inside in ((0.1, False), (0.4, True), (0.9, False)):
        before = len(against.times)
        x = normals(3, 1)
        found = guided(x, t)
        assert (len(against.times) > before) is inside
        full = Guided(gaussian(1.0), gaussian(2.0), scale)(x, t)
        torch.testing.assert_close(found.eps, full.eps if inside else gaussian(1.0)(x, t).eps, rtol=1e-12, atol=0)
        assert found.calls == (2 if inside else 1)


def test_rows_at_different_times_are_guided_on_their_own():
    model = small_network(classes=3)
    labels, t = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0.1, 0.9, 0.4, 0.5, 0.05], dtype=F64)
    sde = model.domain.sde
    guided = Guided(model.given(labels), model.given(3), 3.0, (level(sde, 0.3), level(sde, 0.6)))
    x = normals(5, 3)
    found = guided(x, t)
    assert found.calls.tolist() == [1, 1, 2, 2, 1]
    for i in range(5):
        one = guided.rows(torch.tensor([i]))(x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(one.x0[0], found.x0[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.eps[0], found.eps[i], rtol=1e-12, atol=1e-12)


def test_answers_with_an_interval_do_not_depend_on_the_batch():
    model, interval = small_network(classes=3), (0.1, 1.0)
    labels = torch.arange(7) % 3
    guided = Guided(model.given(labels.repeat_interleave(3)), model.given(3), 2.0, interval)

    def draw(order, batch):
        noise = Noise(0, order)
        return sample(guided.rows(order), ProbabilityFlow(rtol=1e-2), (3,), noise, batch=batch, dtype=F64)

    everyone = torch.arange(21)
    whole = draw(everyone, 21)
    for batch in (1, 5):
        other = draw(everyone, batch)
        torch.testing.assert_close(other.x, whole.x, rtol=0, atol=1e-12)
        assert torch.equal(other.nfe, whole.nfe)
    mixed = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draw(mixed, 21).x, whole.x[mixed], rtol=0, atol=1e-12)


def test_an_interval_costs_fewer_networks():
    model, solver, x = small_network(classes=3), Multistep(steps=20), normals(2, 3)
    full = solver(Guided(model.given(1), model.given(3), 2.0), x)
    part = solver(Guided(model.given(1), model.given(3), 2.0, (0.0, 1.0)), x)
    assert full.nfe.tolist() == [40, 40] and 20 < int(part.nfe[0]) < 40


@pytest.mark.parametrize(("scale", "s2"), [(2.0, 1.2), (3.0, 1.5), (0.5, 2.0)])
def test_a_gaussian_guided_by_another_ends_at_the_geometric_mean(scale, s2):
    # The flow ends at s1^w s2^(1 - w), which is not the deviation of the tilted density (Sum of log-slopes).
    s1 = 1.0
    guided = Guided(gaussian(s1), gaussian(s2), scale)
    x = torch.tensor([[1.0]], dtype=F64)
    end = ProbabilityFlow(rtol=1e-8)(guided, x).x
    alpha, sigma = VPSDE().coefficients(torch.tensor(VPSDE().t_min, dtype=F64))
    assert abs(float(end) - s1**scale * s2 ** (1 - scale)) < 5e-4
    assert float(alpha) > 0.999 and float(sigma) < 0.02


def test_the_density_of_a_guided_flow_integrates_to_one():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]], dtype=F64)
    three = GaussianMixture(VPSDE(), means, torch.full((3,), 0.5, dtype=F64))
    one = GaussianMixture(VPSDE(), means[:1], torch.full((1,), 0.5, dtype=F64))
    guided = Guided(one, three, 2.0)
    axis = torch.linspace(-6, 4, 41, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    density = Likelihood(divergence="exact", rtol=1e-4)(guided, grid, check=False).log_prob.double().exp()
    assert abs(float(density.sum()) * (10 / 40) ** 2 - 1) < 1e-3


def test_the_bound_of_a_guided_gaussian_is_below_the_density_of_its_reverse_sde():
    guided, sde = Guided(gaussian(1.0), gaussian(2.0), 3.0), VPSDE()
    # The drift is linear in x, so the reverse SDE keeps a Gaussian, whose variance follows from small steps.
    times = torch.linspace(1.0, sde.t_min, 50_001, dtype=F64)
    t, h, one = times[:-1], times[:-1] - times[1:], torch.ones(50_000, 1, dtype=F64)
    slope, diffusion = sde.drift(one, t)[:, 0], sde.diffusion(t)
    gain = 1 - h * (slope - diffusion.square() * guided(one, t).score[:, 0])
    variance = 1.0
    for a, b in zip(gain.tolist(), (h * diffusion.square()).tolist(), strict=True):
        variance = a * a * variance + b
    std = math.sqrt(variance)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None] * std
    exact = -x[:, 0].square() / (2 * variance) - math.log(std * math.sqrt(2 * math.pi))
    found = elbo(guided, x, strata=8192)
    assert found.whose == "reverse SDE of the guided model"
    distance = exact - found.log_prob.double()  # by 100,000 strata: 0.62 0.43 0.32 0.24 0.21 0.23 0.29 0.42 0.59
    assert bool((distance > 0.1).all()) and bool((distance < 0.8).all())
    # It bounds neither the density of the flow nor the tilted density, which are narrower or wider.
    flow = Likelihood(divergence="exact")(guided, x, check=False).log_prob.double()
    assert bool((found.log_prob.double() > flow).any())


def test_products_of_gaussians_have_the_sum_of_their_precisions():
    # With weights (-1, 1, 1), the score at t -> 0 is that of p1 p2 / p.
    mixed = Mixed((gaussian(2.0), gaussian(1.0), gaussian(0.5)), (-1.0, 1.0, 1.0))
    x, t = torch.ones(1, 1, dtype=F64), VPSDE().t_min
    assert abs(float(mixed(x, t).score) + (1 / 1 + 1 / 0.25 - 1 / 4)) < 1e-2
    assert mixed(x, 0.5).calls == 3 and not mixed.domain.consistent
    assert Mixed((gaussian(2.0), gaussian(1.0)), (1.0, 0.0)).domain.consistent
    assert elbo(mixed, x, strata=8).whose == "reverse SDE of the mixture of models"
    with pytest.raises(UsageError, match=r"must sum to 1, but 1, 1 sum to 2"):
        Mixed((gaussian(1.0), gaussian(2.0)), (1.0, 1.0))
    with pytest.raises(UsageError, match=r"number of models is 1 and the number of weights is 2"):
        Mixed((gaussian(1.0),), (0.5, 0.5))


def test_a_mixture_takes_the_rows_of_each_model():
    model = small_network(classes=3)
    mixed = Mixed((model.given(3), model.given(torch.tensor([0, 1, 2])), model.given(1)), (-1.0, 1.0, 1.0))
    x, index = normals(3, 3), torch.tensor([2, 0])
    torch.testing.assert_close(mixed.rows(index)(x[index], 0.5).x0, mixed(x, 0.5).x0[index], rtol=1e-12, atol=1e-12)


def test_other_paths_and_wrong_intervals_are_refused():
    with pytest.raises(UsageError, match="requires two models on the same path"):
        _ = Guided(gaussian(1.0), convert(gaussian(1.0), EDMSDE()), 2.0).domain
    for interval in ((1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(UsageError, match="interval"):
            Guided(gaussian(1.0), gaussian(2.0), 2.0, interval)
    assert Guided(gaussian(1.0), gaussian(2.0), 1.0, (0.0, 1.0)).domain.consistent
    assert not Guided(gaussian(1.0), gaussian(2.0), 0.0, (0.0, 1.0)).domain.consistent
    assert convert(Guided(gaussian(1.0), gaussian(2.0), 2.0), FlowMatching()).domain.kind == "guided model"
