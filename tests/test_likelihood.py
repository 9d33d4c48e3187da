"""Likelihood against closed forms with the model's own prior; probes, bits/dim and rows."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from models import ALL, CHECKS, F64, FOUR, PUBLISHED, UserCosine, gaussian, mixture_1d, normals, ring, skewed, watched
from scipy.stats import norm

from scoresde import EDM, VPSDE, GaussianMixture, Noise, ScoreModel, bits_per_dim, log_likelihood
from scoresde.errors import UsageError
from scoresde.nn import MLP


def gaussian_log_likelihood(sde, x, mean, std):
    """log p(x) of N(mean, std^2 I) pushed through the probability flow to the model's prior (closed form)."""
    low, high = (torch.tensor(t, dtype=F64) for t in sde.times("likelihood"))
    (a0, s0), (a1, s1) = sde.coefficients(low), sde.coefficients(high)
    v0, v1 = a0**2 * std**2 + s0**2, a1**2 * std**2 + s1**2
    z = a1 * mean + (x - a0 * mean) * torch.sqrt(v1 / v0)
    return sde.prior_log_prob(z) + x[0].numel() / 2 * torch.log(v1 / v0), z


@pytest.mark.parametrize("name", PUBLISHED)
def test_c13_gaussian(name):
    expected, x = CHECKS["C13"]["expected"][name], torch.tensor(CHECKS["C13"]["inputs"]["x"], dtype=F64)
    exact = torch.tensor(expected["logp_nats_with_prior"], dtype=F64)
    for tolerance, allowed in ((1e-5, 3e-4), (1e-9, 1e-5)):
        solved = log_likelihood(gaussian(PUBLISHED[name]), x, rtol=tolerance, atol=tolerance)
        assert float((solved.log_prob - exact).abs().max()) <= allowed
    assert torch.allclose(solved.z, torch.tensor(expected["latent"], dtype=F64), rtol=1e-6, atol=1e-6)
    for offset, key in ((8, "bpd_scale01"), (7, "bpd_scale_pm1")):
        # 256 levels mapped to [0, 1) or [-1, 1): cells of 1/256 or 2/256
        bits = bits_per_dim(solved.log_prob, 4, -4 * offset * math.log(2))
        assert torch.allclose(bits, torch.tensor(expected[key], dtype=F64), atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_c14_mixture(name):
    expected, model = CHECKS["C14"]["expected"][name], mixture_1d(PUBLISHED[name])
    x = torch.tensor(expected["likelihood"]["x"], dtype=F64)[:, None]
    exact = torch.tensor(expected["likelihood"]["logp_nats_with_prior"], dtype=F64)
    for tolerance, allowed in ((1e-5, 1e-3), (1e-10, 1e-6)):
        solved = log_likelihood(model, x, rtol=tolerance, atol=tolerance)
        assert float((solved.log_prob - exact).abs().max()) <= allowed
    latent = torch.tensor(expected["likelihood"]["latent"], dtype=F64)
    assert torch.allclose(solved.z[:, 0], latent, rtol=1e-6)
    points = torch.tensor(CHECKS["C14"]["inputs"]["x"], dtype=F64)[:, None]
    for t, values in expected["score"].items():
        assert torch.allclose(model(points, float(t)).score[:, 0], torch.tensor(values, dtype=F64), rtol=1e-9)
    for t, values in expected["logp"].items():
        assert torch.allclose(model.log_prob(points, float(t)), torch.tensor(values, dtype=F64), rtol=1e-9)


@pytest.mark.parametrize("dims", [1, 4, 64])
@pytest.mark.parametrize("name", ALL)
def test_gaussians_in_any_dimension(name, dims):
    sde = ALL[name]
    x = 0.3 + 0.5 * normals(6, dims)
    exact, z = gaussian_log_likelihood(sde, x, 0.3, 0.5)
    solved = log_likelihood(gaussian(sde, dims), x, divergence="exact", rtol=1e-5, atol=1e-5)
    assert float((solved.log_prob - exact).abs().max()) <= 1e-3 * max(1, dims / 16)
    assert float((solved.z - z).abs().max()) <= 1e-3 * sde.prior_std
    assert bool((solved.stderr_probes == 0).all())


@pytest.mark.parametrize("name", FOUR)
def test_mixtures_by_quantiles(name):
    # In one dimension the flow keeps quantiles: F_1(z) = F_0(x), so that log p is known for any mixture.
    model = mixture_1d(FOUR[name])
    low, high = model.sde.times("likelihood")
    x = torch.linspace(-1.6, 1.6, 33, dtype=F64)[:, None]
    solved = log_likelihood(model, x, rtol=1e-6, atol=1e-6)

    def cdf(y, t):
        alpha, sigma = (float(c) for c in model.sde.coefficients(torch.tensor(t, dtype=F64)))
        std = torch.sqrt((alpha * model.stds) ** 2 + sigma**2)
        return (model.weights.numpy() * norm.cdf(y.numpy(), alpha * model.means[:, 0].numpy(), std.numpy())).sum(1)

    assert abs(cdf(x, low) - cdf(solved.z, high)).max() < 1e-5
    # log p(x) = log prior(z) + log p_low(x) - log p_high(z)
    exact = model.sde.prior_log_prob(solved.z) + model.log_prob(x, low) - model.log_prob(solved.z, high)
    assert float((solved.log_prob - exact).abs().max()) < 2e-4


@pytest.mark.parametrize("name", FOUR)
def test_collinear_mixture_in_many_dimensions(name):
    # Two Gaussians on a line in 8 dimensions: one mixture coordinate, seven Gaussian ones.
    axis = torch.nn.functional.normalize(normals(1, 8), dim=1)
    model = GaussianMixture(FOUR[name], torch.cat([-0.8 * axis, 0.8 * axis]), torch.full((2,), 0.3, dtype=F64))
    x = model.sample(8, torch.Generator().manual_seed(0))
    solved = log_likelihood(model, x, divergence="exact")
    low, high = model.sde.times("likelihood")
    exact = model.sde.prior_log_prob(solved.z) + model.log_prob(x, low) - model.log_prob(solved.z, high)
    assert float((solved.log_prob - exact).abs().max()) <= 1e-3


@pytest.mark.parametrize("name", FOUR)
def test_full_covariance_and_its_probes(name):
    # The flow of one Gaussian is linear: along axis i of C it scales by sqrt(v_i(1) / v_i(0)).
    model = skewed(FOUR[name])
    one = GaussianMixture(FOUR[name], model.means[:1], covariances=model.covariances[:1])
    x = one.sample(8, torch.Generator().manual_seed(0))
    low, high = one.sde.times("likelihood")
    solved = log_likelihood(one, x, rtol=1e-7, atol=1e-7)
    exact = one.sde.prior_log_prob(solved.z) + one.log_prob(x, low) - one.log_prob(solved.z, high)
    assert float((solved.log_prob - exact).abs().max()) < 1e-4
    # A probe e, fixed along the path, is off by e^T K e - tr K with K = Q diag(log sqrt(v(1) / v(0))) Q^T.
    values, vectors = one.axes
    (a0, s0), (a1, s1) = (one.sde.coefficients(torch.tensor(t, dtype=F64)) for t in (low, high))
    gain = 0.5 * torch.log((a1**2 * values[0] + s1**2) / (a0**2 * values[0] + s0**2))
    k = vectors[0] @ torch.diag(gain) @ vectors[0].T
    noise = Noise.of(8, 2)
    probed = log_likelihood(one, x, divergence="hutchinson", redraw=False, noise=noise, rtol=1e-8, atol=1e-8)
    e = noise.rademacher((3,), 0, "probe", F64)
    expected = exact + torch.einsum("bi,ij,bj->b", e, k, e) - torch.trace(k)
    assert float((probed.log_prob - expected).abs().max()) < 1e-4


def test_error_falls_with_the_tolerance():
    model = ring(VPSDE())
    x = model.sample(64, torch.Generator().manual_seed(0))
    best = log_likelihood(model, x, rtol=1e-10, atol=1e-10).log_prob
    errors = [
        float((log_likelihood(model, x, rtol=t, atol=t).log_prob - best).abs().mean()) for t in (1e-3, 1e-4, 1e-5, 1e-6)
    ]
    for a, b in pairwise(errors):
        assert 3 < a / b < 40
    assert errors[2] < 1e-3


def test_the_log_determinant_is_held_to_the_tolerance():
    # Left out of the error norm its error is ten times as large.
    model = ring(VPSDE())
    x = model.sample(128, torch.Generator().manual_seed(3))
    best = log_likelihood(model, x, rtol=1e-9, atol=1e-9).log_prob
    assert float((log_likelihood(model, x, rtol=1e-4, atol=1e-4).log_prob - best).abs().mean()) < 5e-4


def test_probes_estimate_the_exact_divergence_and_their_spread():
    model = ring(VPSDE())
    x = model.sample(1, torch.Generator().manual_seed(1)).expand(800, 2).clone()
    exact = float(log_likelihood(model, x[:1], divergence="exact").log_prob)
    one = log_likelihood(model, x, divergence="hutchinson", noise=Noise.of(800, 1), batch=800)
    assert bool(one.stderr_probes.isnan().all())
    spread = float(one.log_prob.std())
    assert float(one.log_prob.mean()) == pytest.approx(exact, abs=4 * spread / math.sqrt(800))
    four = log_likelihood(model, x, divergence="hutchinson", probes=4, noise=Noise.of(800, 1), batch=800)
    assert float(four.log_prob.std()) == pytest.approx(spread / 2, rel=0.12)
    assert float(four.stderr_probes.square().mean().sqrt()) == pytest.approx(spread / 2, rel=0.12)


def test_one_probe_is_exact_for_a_diagonal_jacobian():
    x = 0.3 + 0.5 * normals(5, 32)
    one = log_likelihood(gaussian(VPSDE(), 32), x, divergence="hutchinson", steps=8, check=False)
    all_of_them = log_likelihood(gaussian(VPSDE(), 32), x, divergence="exact", steps=8, check=False)
    assert torch.allclose(one.log_prob, all_of_them.log_prob, rtol=0, atol=1e-10)


def test_rows_and_probes_do_not_depend_on_the_batch():
    model = ring(VPSDE())
    x = model.sample(1024, torch.Generator().manual_seed(0))
    noise = Noise.of(1024, 3)
    kwargs = {"divergence": "hutchinson", "probes": 2, "rtol": 1e-3, "atol": 1e-3}
    whole = log_likelihood(model, x, noise=noise, batch=1024, **kwargs)
    for rows in (torch.arange(16), torch.tensor([700])):
        part = log_likelihood(model, x[rows], noise=noise.rows(rows), **kwargs)
        assert float((part.log_prob - whole.log_prob[rows]).abs().max()) <= 1e-12
        assert torch.equal(part.nfe, whole.nfe[rows])


def test_a_conditional_batch_equals_each_row_alone():
    torch.manual_seed(0)
    network = MLP(dims=2, width=16, blocks=2, classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = ScoreModel(network, UserCosine(), EDM(), classes=3).double().eval().requires_grad_(False)
    labels, x = torch.tensor([0, 2, 1, 1]), normals(4, 2)
    together = log_likelihood(model.given(labels), x, rtol=1e-4)
    for i in range(4):
        alone = log_likelihood(model.given(labels[i : i + 1]), x[i : i + 1], rtol=1e-4)
        assert float(alone.log_prob) == pytest.approx(float(together.log_prob[i]), abs=1e-8)


@pytest.mark.parametrize("event", [(), (3,), (2, 5), (1, 4, 6)])
def test_any_event_shape_not_only_images(event):
    model = GaussianMixture(VPSDE(), torch.full((1, *event), 0.3, dtype=F64), torch.tensor([0.5], dtype=F64))
    x = torch.full((2, *event), 0.8, dtype=F64)
    exact, _ = gaussian_log_likelihood(model.sde, x, 0.3, 0.5)
    assert float((log_likelihood(model, x).log_prob - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_no_call_outside_the_domain(name):
    model = watched(ring(ALL[name]))
    solved = log_likelihood(model, model.model.sample(16, torch.Generator().manual_seed(0)), check=False)
    times = torch.cat(model.times)
    assert float(times.min()) >= 1e-5 and float(times.max()) <= 1.0
    assert int(solved.nfe.sum()) == sum(model.evaluations)


def test_uniform_data_on_256_levels_have_8_bits():
    # log2 p = -1 per dimension on [-1, 1) with cells of 2/256, and 0 on [0, 1) with cells of 1/256.
    d = 5
    bits = bits_per_dim(torch.tensor([-d * math.log(2.0)], dtype=F64), d, d * math.log(2 / 256))
    assert float(bits) == pytest.approx(8, abs=1e-12)
    bits = bits_per_dim(torch.tensor([0.0], dtype=F64), d, d * math.log(1 / 256))
    assert float(bits) == pytest.approx(8, abs=1e-12)


def test_bits_do_not_depend_on_the_scale_of_the_data():
    # The same data and path in units c times as large: alpha x0 + sigma eps with sigma scaled along.
    x = 0.3 + 0.5 * normals(8, 3)
    base = log_likelihood(gaussian(ALL["user_ve"], 3), x, rtol=1e-8, atol=1e-8)
    c = 4.0
    scaled = GaussianMixture(type(ALL["user_ve"])(top=40.0), torch.full((1, 3), 1.2, dtype=F64), torch.tensor([2.0]))
    other = log_likelihood(scaled, c * x, rtol=1e-8, atol=1e-8)
    a = bits_per_dim(base.log_prob, 3, 3 * math.log(2 / 256))
    b = bits_per_dim(other.log_prob, 3, 3 * math.log(c * 2 / 256))
    assert torch.allclose(a, b, atol=1e-6)


def test_bad_options_are_refused():
    model, x = ring(VPSDE()), torch.zeros(2, 2)
    for options, words in (
        ({"divergence": "skilling"}, "hutchinson"),
        ({"probes": 0}, "probes"),
        ({"rtol": 0.0}, "rtol"),
        ({"method": "rk45"}, "quadrature"),
        ({"scheme": "rk4"}, "dopri5"),
        ({"scheme": "dopri5", "steps": 4}, "heun"),
        ({"method": "quadrature", "steps": 4}, "coupled"),
        ({"differentiable": True}, "give steps"),
        ({"probe": "cauchy"}, "gaussian"),
        ({"t_min": 1.5}, "begins in"),
        ({"noise": Noise.of(3)}, "3 rows"),
    ):
        with pytest.raises(UsageError, match=words):
            log_likelihood(model, x, **options)
