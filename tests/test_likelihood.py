"""Likelihood against closed forms with the model's own prior; probes, bits/dim and rows."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from models import (
    ALL,
    CHECKS,
    F64,
    FOUR,
    PUBLISHED,
    UserCosine,
    collinear,
    density,
    flow_log_prob,
    full_covariance,
    gaussian,
    latent,
    mixture_1d,
    normals,
    ring,
    small_network,
    watched,
)  # fmt: skip
from scipy.stats import norm

from scoresde import (
    EDM,
    VDMSDE,
    VPSDE,
    X0,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    Noise,
    ScoreModel,
    bits_per_dim,
    convert,
    elbo,
    log_likelihood,
)  # fmt: skip
from scoresde.core.errors import UsageError
from scoresde.likelihood.divergence import slope_and_differences, slope_and_traces
from scoresde.likelihood.memory import _Alive, default_budget, rows_within
from scoresde.model.estimate import Wrapped
from scoresde.nn import MLP, UNet

SIX = {**ALL, "cosine": CosineSDE()}


def gaussian_log_likelihood(sde, x, mean, std):
    """log p(x) of N(mean, std^2 I) pushed through the probability flow to the model's prior (closed form)."""
    low, high = (torch.tensor(t, dtype=F64) for t in sde.times("likelihood"))
    (a0, s0), (a1, s1) = sde.coefficients(low), sde.coefficients(high)
    v0, v1 = a0**2 * std**2 + s0**2, a1**2 * std**2 + s1**2
    z = a1 * mean + (x - a0 * mean) * torch.sqrt(v1 / v0)
    return sde.prior.log_prob(z) + x[0].numel() / 2 * torch.log(v1 / v0), z


@pytest.mark.parametrize("name", PUBLISHED)
def test_c13_gaussian(name):
    expected, x = CHECKS["C13"]["expected"][name], torch.tensor(CHECKS["C13"]["inputs"]["x"], dtype=F64)
    exact = torch.tensor(expected["logp_nats_with_prior"], dtype=F64)
    for tolerance, allowed in ((1e-5, 3e-4), (1e-8, 1e-5)):
        solved = log_likelihood(gaussian(PUBLISHED[name]), x, Likelihood(rtol=tolerance, atol=tolerance), check=False)
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
    for tolerance, allowed in ((1e-5, 1e-3), (1e-8, 1e-6)):
        solved = log_likelihood(model, x, Likelihood(rtol=tolerance, atol=tolerance), check=False)
        assert float((solved.log_prob - exact).abs().max()) <= allowed
    latent = torch.tensor(expected["likelihood"]["latent"], dtype=F64)
    assert torch.allclose(solved.z[:, 0], latent, rtol=1e-6)
    points = torch.tensor(CHECKS["C14"]["inputs"]["x"], dtype=F64)[:, None]
    for t, values in expected["score"].items():
        assert torch.allclose(model(points, float(t)).score[:, 0], torch.tensor(values, dtype=F64), rtol=1e-9)
    for t, values in expected["logp"].items():
        assert torch.allclose(model.log_prob(points, float(t)), torch.tensor(values, dtype=F64), rtol=1e-9)


METHODS = ("coupled", "quadrature")
EXACT = {"divergence": "exact", "check": False}


def closed_form(kind, sde):
    """An exact model, data, and the density of its flow in closed form with the prior of the model."""
    name, dims = kind.split("-")
    model = {
        "isotropic": lambda: gaussian(sde, int(dims)),
        "full": lambda: full_covariance(sde, int(dims)),
        "mixture": lambda: mixture_1d(sde),
        "collinear": lambda: collinear(sde, int(dims)),
    }[name]()
    x = model.sample(6, torch.Generator().manual_seed(0))
    if len(model.means) == 1:
        return model, x, flow_log_prob(model, x, latent(model, x))
    # The densities at both ends are known; the latent in between is that of a solve a hundred times as tight.
    z = density(model, x, rtol=1e-7, atol=1e-7, **EXACT).z
    return model, x, flow_log_prob(model, x, z)


def check_closed_form(name, kind, method):
    model, x, exact = closed_form(kind, SIX[name])
    solved = density(model, x, method=method, **EXACT)
    assert float((solved.log_prob - exact).abs().max()) <= 1e-3 * max(1, x.shape[1] / 16)
    assert bool((solved.stderr_probes == 0).all())
    if len(model.means) == 1:
        assert float((solved.z - latent(model, x)).abs().max()) <= 1e-3 * model.domain.sde.prior_std


# Every path and every kind of data, by both methods on VP and the flow.
BOTH = [("vp", "full-8"), ("vp", "mixture-1"), ("flow", "full-8")]
ONE = [(name, "full-8") for name in SIX if name not in ("vp", "flow")] + [("vp", "isotropic-1"), ("vp", "collinear-8")]


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        *((*case, method) for case in BOTH for method in METHODS),
        *((*case, "quadrature") for case in ONE),
        *(pytest.param(*case, "coupled", marks=pytest.mark.slow) for case in ONE),
    ],
)
def test_closed_forms(name, kind, method):
    check_closed_form(name, kind, method)


@pytest.mark.parametrize(("name", "method", "kind"), [
    pytest.param("vp", "coupled", "full-64", marks=pytest.mark.slow), ("flow", "quadrature", "full-64"),
])  # fmt: skip
def test_closed_forms_in_64_dimensions(name, method, kind):
    check_closed_form(name, kind, method)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["isotropic-16", "isotropic-64", "full-32", "full-64"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIX)
def test_closed_forms_in_many_dimensions(name, method, kind):
    check_closed_form(name, kind, method)


@pytest.mark.parametrize(("name", "method"), [
    ("flow", "coupled"), ("vp", "quadrature"), pytest.param("vp", "coupled", marks=pytest.mark.slow),
    pytest.param("flow", "quadrature", marks=pytest.mark.slow),
])  # fmt: skip
def test_error_falls_with_the_tolerance_on_closed_forms(name, method):
    # The mean over three decades and two kinds. A single factor may be anything from 1 to 400: the error of a few rows
    # passes through zero, and the rule of the quadrature, often far better than asked for, doubles at once.
    factors = []
    for kind in ("full-8", "mixture-1"):
        model, x, exact = closed_form(kind, FOUR[name])
        loose, tight = (
            float((density(model, x, method=method, rtol=t, atol=t, **EXACT).log_prob - exact).abs().mean())
            for t in (1e-3, 1e-6)
        )
        factors.append(math.log(loose / tight) / 3)
    assert 4 <= math.exp(sum(factors) / len(factors)) <= 30


@pytest.mark.parametrize("name", FOUR)
def test_mixtures_by_quantiles(name):
    # In one dimension the flow keeps quantiles: F_1(z) = F_0(x), so that log p is known for any mixture.
    model = mixture_1d(FOUR[name])
    low, high = model.domain.sde.times("likelihood")
    x = torch.linspace(-1.6, 1.6, 33, dtype=F64)[:, None]
    solved = log_likelihood(model, x, Likelihood(rtol=1e-6, atol=1e-6), check=False)

    def cdf(y, t):
        alpha, sigma = (float(c) for c in model.domain.sde.coefficients(torch.tensor(t, dtype=F64)))
        std = torch.sqrt((alpha * model.stds) ** 2 + sigma**2)
        return (model.weights.numpy() * norm.cdf(y.numpy(), alpha * model.means[:, 0].numpy(), std.numpy())).sum(1)

    assert abs(cdf(x, low) - cdf(solved.z, high)).max() < 1e-5
    # log p(x) = log prior(z) + log p_low(x) - log p_high(z)
    exact = model.domain.sde.prior.log_prob(solved.z) + model.log_prob(x, low) - model.log_prob(solved.z, high)
    assert float((solved.log_prob - exact).abs().max()) < 2e-4


@pytest.mark.parametrize("name", [pytest.param("vp", marks=pytest.mark.slow), "flow"])
def test_full_covariance_and_its_probes(name):
    # The flow of one Gaussian is linear: along axis i of C it scales by sqrt(v_i(1) / v_i(0)).
    one = full_covariance(FOUR[name], 3)
    x = one.sample(8, torch.Generator().manual_seed(0))
    low, high = one.sde.times("likelihood")
    solved = log_likelihood(one, x, Likelihood(rtol=1e-6), check=False)
    exact = one.sde.prior.log_prob(solved.z) + one.log_prob(x, low) - one.log_prob(solved.z, high)
    assert float((solved.log_prob - exact).abs().max()) < 1e-4
    # A probe e, fixed along the path, is off by e^T K e - tr K with K = Q diag(log sqrt(v(1) / v(0))) Q^T.
    values, vectors = one.axes
    (a0, s0), (a1, s1) = (one.sde.coefficients(torch.tensor(t, dtype=F64)) for t in (low, high))
    gain = 0.5 * torch.log((a1**2 * values[0] + s1**2) / (a0**2 * values[0] + s0**2))
    k = vectors[0] @ torch.diag(gain) @ vectors[0].T
    noise = Noise.of(8, 2)
    options = {"divergence": "hutchinson", "redraw": False, "check": False}
    probed = density(one, x, rtol=1e-7, noise=noise, **options)
    e = noise.rademacher((3,), 0, "probe", F64)
    expected = exact + torch.einsum("bi,ij,bj->b", e, k, e) - torch.trace(k)
    assert float((probed.log_prob - expected).abs().max()) < 1e-4


def test_the_log_determinant_is_held_to_the_tolerance():
    # Left out of the error norm its error is ten times as large.
    model = ring(VPSDE())
    x = model.sample(32, torch.Generator().manual_seed(3))
    best = density(model, x, rtol=1e-7, atol=1e-8, **EXACT).log_prob
    assert float((density(model, x, rtol=1e-4, atol=1e-4, **EXACT).log_prob - best).abs().mean()) < 5e-4


def test_probes_estimate_the_exact_divergence_and_their_spread():
    model = ring(VPSDE())
    x = model.sample(1, torch.Generator().manual_seed(1)).expand(800, 2).clone()
    exact = float(density(model, x[:1], rtol=1e-3, **EXACT).log_prob)
    how = {"divergence": "hutchinson", "rtol": 1e-3, "noise": Noise.of(800, 1), "batch": 800, "check": False}
    one = density(model, x, **how)
    assert bool(one.stderr_probes.isnan().all())
    spread = float(one.log_prob.std())
    assert float(one.log_prob.mean()) == pytest.approx(exact, abs=4 * spread / math.sqrt(800))
    four = density(model, x, probes=4, **how)
    assert float(four.log_prob.std()) == pytest.approx(spread / 2, rel=0.12)
    assert float(four.stderr_probes.square().mean().sqrt()) == pytest.approx(spread / 2, rel=0.12)


def test_one_probe_is_exact_for_a_diagonal_jacobian():
    x = 0.3 + 0.5 * normals(5, 32)
    one = log_likelihood(gaussian(VPSDE(), 32), x, Likelihood(divergence="hutchinson", steps=3), check=False)
    all_of_them = log_likelihood(gaussian(VPSDE(), 32), x, Likelihood(divergence="exact", steps=3), check=False)
    assert torch.allclose(one.log_prob, all_of_them.log_prob, rtol=0, atol=1e-10)


def test_differences_have_the_traces_of_derivatives():
    # cubic in y: the error of a difference is h^2 times a constant, and that of the slope too
    weights, y, e = normals(4, 4, seed=1), normals(3, 4), normals(3, 4, seed=2)

    def slope(state):
        return (state @ weights) ** 3

    value, trace = slope_and_traces(slope, y, [e])
    errors = []
    for h in (1e-2, 5e-3):
        found, traces = slope_and_differences(slope, y, [e], torch.full((3, 1), h, dtype=F64))
        errors.append(torch.stack([(found - value).norm(), (traces - trace).norm()]))
    assert torch.allclose(errors[0] / errors[1], torch.full((2,), 4.0, dtype=F64), rtol=1e-6)
    # beside the slope, what is averaged like it
    beside = slope_and_differences(lambda s: torch.cat([s, s[:, :1] ** 2], 1), y, [e, -e], torch.ones(3, 1, dtype=F64))
    assert torch.allclose(beside[0][:, :4], y) and torch.allclose(beside[0][:, 4], y[:, 0] ** 2 + e[:, 0] ** 2)
    assert torch.allclose(beside[1], e.square().sum(1, keepdim=True).expand(3, 2))


@pytest.mark.parametrize(("dtype", "allowed", "options"), [
    pytest.param(F64, 1e-7, {"probe": "gaussian"}, marks=pytest.mark.slow),
    (F64, 1e-7, {"method": "quadrature", "redraw": False}),
    # a network is rough: where rounding moves the steps, it moves the figure by more than that
    (F64, 1e-8, {"steps": 6, "probe": "gaussian"}), (torch.float32, 1e-4, {"steps": 6, "probes": 2}),
], ids=str)  # fmt: skip
def test_differences_give_the_figure_of_derivatives(dtype, allowed, options):
    network = small_network().to(dtype)
    model, x = watched(network), normals(4, 3, dtype=dtype)
    common = {"rtol": 1e-4, "atol": 1e-4, "check": False, "noise": Noise.of(4, 2), **options}
    best = density(network, x, divergence="hutchinson", **common)
    found = density(model, x, divergence="difference", **common)
    # nats of 3 dimensions
    assert float((found.log_prob - best.log_prob).abs().max()) <= 3 * allowed
    assert torch.allclose(found.z, best.z, atol=allowed)
    # a pair for each probe; the stages without a divergence cost one
    assert int(found.nfe.sum()) == sum(model.evaluations)
    plain = best.nfe - best.divergences
    assert torch.equal(found.nfe, plain + 2 * common.get("probes", 1) * best.divergences)


@dataclass(frozen=True)
class NoBackward(Wrapped):
    """A model whose numbers come from outside of autograd."""

    def rows(self, index):
        return self

    def __call__(self, x, t):
        estimate = self.model(torch.from_numpy(x.numpy()), t)  # refused if a gradient is asked for
        return replace(estimate, eps=estimate.eps.detach(), x0=estimate.x0.detach())


def test_differences_need_no_backward_pass():
    model = small_network()
    x = normals(4, 3)
    found = log_likelihood(NoBackward(model), x, Likelihood(divergence="difference", steps=4), memory=2**24)
    best = log_likelihood(model, x, Likelihood(divergence="hutchinson", steps=4))
    assert torch.allclose(found.log_prob, best.log_prob, rtol=0, atol=1e-6)
    assert torch.allclose(found.change, best.change, rtol=0, atol=1e-6)


def test_the_check_takes_narrower_differences(monkeypatch):
    # With w = 0.3 a difference spans much of a component: the check tells, though the tolerance is met.
    model, x = ring(VPSDE()), ring(VPSDE()).sample(4, torch.Generator().manual_seed(0))
    options = {"divergence": "difference", "rtol": 1e-4, "atol": 1e-4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(density(model, x, **options).change.max()) < 1e-3
    monkeypatch.setattr("scoresde.likelihood.method.width", lambda dtype: 0.3)
    with pytest.warns(UserWarning, match="half as wide.*or the 'hutchinson' divergence"):
        assert float(density(model, x, **options).change.max()) > 0.02


@pytest.mark.parametrize("method", ["coupled", "quadrature"])
def test_many_differences(method):
    # The limit is on points of the path: as many probes as one likes.
    x = 0.3 + 0.5 * normals(2, 6)
    options = {"rtol": 1e-3, "atol": 1e-3, "check": False, "method": method, "max_nfe": 150}
    found = density(gaussian(VPSDE(), 6), x, divergence="difference", probes=12, **options)
    assert bool(found.ok.all()) and int(found.nfe.max()) > 150
    exact = density(gaussian(VPSDE(), 6), x, divergence="exact", **options)
    assert torch.allclose(found.log_prob, exact.log_prob, rtol=0, atol=1e-3)  # signs are exact for a diagonal Jacobian


@pytest.mark.parametrize("name", ["vp", pytest.param("flow", marks=pytest.mark.slow)])
def test_narrow_data_are_held_to_the_tolerance_with_probes_as_well(name):
    # A pixel that is always black has the width of its cell: 2/256/sqrt(12) for 256 levels.
    model = gaussian(FOUR[name], 20, std=0.0023)
    x = 0.3 + 0.0023 * normals(8, 20)
    truth = gaussian_log_likelihood(model.domain.sde, x, 0.3, 0.0023)[0]
    for divergence in ("hutchinson", "difference"):
        for tolerance in (1e-3, 1e-5):
            options = {"divergence": divergence, "rtol": tolerance, "atol": tolerance, "check": False}
            assert float((density(model, x, **options).log_prob - truth).abs().max()) / 20 <= 10 * tolerance


def test_a_gpu_does_not_round_convolutions():
    seen = []

    class Asked(Wrapped):
        def rows(self, index):
            return self

        def __call__(self, x, t):
            seen.append(torch.backends.cudnn.allow_tf32)
            return self.model(x, t)

    before = torch.backends.cudnn.allow_tf32
    log_likelihood(Asked(gaussian(VPSDE(), 2)), normals(1, 2), Likelihood(rtol=1e-2), check=False)
    assert seen and not any(seen) and torch.backends.cudnn.allow_tf32 == before


def test_what_is_alive_without_a_backward_pass():
    # four tensors of 1000 numbers, of which three live at once; views and values in place share theirs
    def work(x):
        a = x.expand(1000).clone()
        b = a + 1
        c = (a * b).view(10, 100).mul_(2)
        del a, b
        return c + 1

    x = torch.zeros(1, dtype=F64)
    with _Alive() as alive:
        out = work(x)
    assert alive.most in (3 * 8000, 3 * 8000 + 8) and alive.now in (8000, 8008)
    del out
    assert alive.now <= 8
    model, x = small_network(), normals(2, 3)
    assert rows_within(2**24, model, x, backward=False) > rows_within(2**24, model, x)


@pytest.mark.parametrize("divergence", ["hutchinson", "difference"])
def test_rows_and_probes_do_not_depend_on_the_batch(divergence):
    model = ring(VPSDE())
    x = model.sample(128, torch.Generator().manual_seed(0))
    noise = Noise.of(128, 3)
    kwargs = {"divergence": divergence, "probes": 2, "rtol": 1e-2, "atol": 1e-2, "check": False}
    whole = density(model, x, noise=noise, batch=128, **kwargs)
    for rows in (torch.arange(16), torch.tensor([70])):
        part = density(model, x[rows], noise=noise.rows(rows), **kwargs)
        # a difference divides the rounding of the model by 2h, 1e-6 or so
        allowed = 1e-12 if divergence == "hutchinson" else 1e-9
        assert float((part.log_prob - whole.log_prob[rows]).abs().max()) <= allowed
        assert torch.equal(part.nfe, whole.nfe[rows])


def test_a_conditional_batch_equals_each_row_alone():
    torch.manual_seed(0)
    network = MLP(dims=2, width=16, blocks=2, classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = ScoreModel(network, UserCosine(), EDM(), classes=3).double().eval().requires_grad_(False)
    labels, x = torch.tensor([0, 2, 1]), normals(3, 2)
    together = log_likelihood(model.given(labels), x, Likelihood(rtol=1e-2), check=False)
    for i in range(3):
        alone = log_likelihood(model.given(labels[i : i + 1]), x[i : i + 1], Likelihood(rtol=1e-2), check=False)
        assert float(alone.log_prob) == pytest.approx(float(together.log_prob[i]), abs=1e-8)


@pytest.mark.parametrize("event", [(), (3,), (2, 5), (1, 4, 6)])
def test_any_event_shape_not_only_images(event):
    model = GaussianMixture(VPSDE(), torch.full((1, *event), 0.3, dtype=F64), torch.tensor([0.5], dtype=F64))
    x = torch.full((2, *event), 0.8, dtype=F64)
    exact, _ = gaussian_log_likelihood(model.domain.sde, x, 0.3, 0.5)
    assert float((density(model, x, **EXACT).log_prob - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
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
    base = log_likelihood(gaussian(ALL["user_ve"], 3), x, Likelihood(rtol=1e-6), check=False)
    c = 4.0
    scaled = GaussianMixture(type(ALL["user_ve"])(top=40.0), torch.full((1, 3), 1.2, dtype=F64), torch.tensor([2.0]))
    other = log_likelihood(scaled, c * x, Likelihood(rtol=1e-6), check=False)
    a = bits_per_dim(base.log_prob, 3, 3 * math.log(2 / 256))
    b = bits_per_dim(other.log_prob, 3, 3 * math.log(c * 2 / 256))
    assert torch.allclose(a, b, atol=1e-4)


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
        ({"differentiable": True}, "set steps"),
        ({"probe": "cauchy"}, "gaussian"),
        ({"t_min": 1.5}, "t_min is 1.5; for this model, it must be at least"),
        ({"steps": 0}, "steps is 0; it must be an integer >= 1"),
        ({"batch": 0}, "batch"),
        ({"noise": Noise.of(3)}, "the same number of rows; got 3 and"),
    ):
        with pytest.raises(UsageError, match=words):
            density(model, x, **options)


@pytest.mark.parametrize("shape", [(0, 2), ()])
def test_no_data_are_refused(shape):
    with pytest.raises(UsageError, match="must not be empty"):
        log_likelihood(ring(VPSDE()), torch.zeros(shape))


# ------------------------------------------------------------------------------------------------------ fixed steps


@pytest.mark.parametrize(("name", "scheme", "order", "steps"), [
    ("vp", "euler", 1, 64),
    pytest.param("vp", "heun", 2, 64, marks=pytest.mark.slow),
    pytest.param("vp", "rk4", 4, 32, marks=pytest.mark.slow), ("ve", "rk4", 4, 32), ("flow", "heun", 2, 64),
])  # fmt: skip
def test_fixed_steps_have_their_order(name, scheme, order, steps):
    model = full_covariance(FOUR[name], 3)
    x = model.sample(4, torch.Generator().manual_seed(0))
    exact = flow_log_prob(model, x, latent(model, x))
    errors = [
        float((log_likelihood(model, x, Likelihood(steps=n, scheme=scheme), check=False).log_prob - exact).abs().mean())
        for n in (steps, 2 * steps)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("divergence", ["exact", pytest.param("hutchinson", marks=pytest.mark.slow)])
def test_eight_euler_steps_are_no_figure_and_say_so(divergence):
    model = ring(VPSDE())
    x = model.sample(20, torch.Generator().manual_seed(0))
    options = {"divergence": divergence, "probes": 2, "rtol": 1e-4}
    with pytest.warns(UserWarning, match=r"HAS NOT CONVERGED.*doubled to 16.*use more steps, or adaptive steps"):
        coarse = density(model, x, steps=8, scheme="euler", **options)
    assert int((~coarse.change.isnan()).sum()) == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = density(model, x, **options)
        quadrature = density(model, x, method="quadrature", **options)
        unchecked = log_likelihood(model, x, Likelihood(steps=8, scheme="euler"), check=False)
    for solved in (fine, quadrature):
        checked = solved.change[~solved.change.isnan()]
        assert len(checked) == 16 and float(checked.max()) < 0.01 * 2 * math.log(2)
    assert bool(unchecked.change.isnan().all())


def test_the_divergence_suits_the_dimension_the_network_and_gradients():
    how = Likelihood()
    small, large = (GaussianMixture(VPSDE(), torch.zeros(1, n), torch.ones(1)) for n in (16, 17))
    assert how.resolved(small, 16).divergence == "exact" and how.resolved(large, 17).divergence == "difference"
    assert how.resolved(large, 17, differentiable=True).divergence == "hutchinson"

    class Rounded(Wrapped):
        @property
        def domain(self):
            return replace(self.model.domain, rounded=True)

    assert how.resolved(Rounded(large), 17).divergence == "hutchinson"
    assert Likelihood(divergence="difference").resolved(Rounded(large), 17).divergence == "difference"


def test_the_change_is_that_of_the_tighter_solve():
    model = ring(VPSDE())
    x = model.sample(3, torch.Generator().manual_seed(0))
    loose, tight = (log_likelihood(model, x, Likelihood(rtol=t, atol=t), check=False).log_prob for t in (1e-4, 1e-5))
    change = log_likelihood(model, x, Likelihood(rtol=1e-4, atol=1e-4)).change
    assert torch.allclose(change, tight - loose, rtol=1e-9) and bool((change < 0).any()), "with its sign"


def test_single_precision_is_compared_with_a_looser_solve_where_it_resolves_no_tighter_one():
    model = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    x = torch.tensor([[0.3, -1.2]])
    own, loose = (log_likelihood(model, x, Likelihood(rtol=t, atol=t), check=False).log_prob for t in (1e-6, 1e-5))
    assert torch.equal(log_likelihood(model, x, Likelihood(rtol=1e-6, atol=1e-6)).change, loose - own)


def test_a_row_that_cannot_be_solved_more_tightly_has_not_converged():
    model = ring(VPSDE())
    x = model.sample(3, torch.Generator().manual_seed(0))
    most = int(log_likelihood(model, x, check=False).nfe.max())
    with pytest.warns(UserWarning, match="up to inf nats"):
        solved = log_likelihood(model, x, Likelihood(max_nfe=most))
    assert bool(solved.ok.all()) and bool(solved.change.isinf().any())


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ("name", "scheme", "steps", "allowed"),
    [pytest.param("vp", "rk4", 24, 1e-3, marks=pytest.mark.slow), ("flow", "heun", 48, 1e-2)],
)
def test_the_gradient_in_the_data_is_the_score_of_the_flow(name, scheme, steps, allowed):
    # z = z0 + A (x - m) for a Gaussian, so that d log p/dx = -A^T z / prior_std^2: by autograd of the closed form
    model = full_covariance(FOUR[name], 3)
    x = model.sample(4, torch.Generator().manual_seed(0)).requires_grad_()
    solved = log_likelihood(model, x, Likelihood(steps=steps, scheme=scheme), differentiable=True, check=False)
    found = torch.autograd.grad(solved.log_prob.sum(), x)[0]
    expected = torch.autograd.grad(flow_log_prob(model, x, latent(model, x)).sum(), x)[0]
    assert float((found - expected).norm() / expected.norm()) < allowed


@pytest.mark.parametrize(
    ("scheme", "divergence"),
    [("euler", "exact"), ("euler", "hutchinson"), ("euler", "difference"), ("rk4", "hutchinson")],
)
def test_the_gradient_in_the_parameters_is_that_of_the_value(scheme, divergence):
    model = small_network(dims=2)
    x = normals(3, 2).requires_grad_()
    options = {"divergence": divergence, "probes": 2, "steps": 2, "scheme": scheme, "check": False}

    def value(graph=False):
        return density(model, x, differentiable=graph, **options).log_prob.sum()

    value(graph=True).backward()
    weights = [p for p in model.parameters() if p.grad is not None and p.numel() > 1]
    assert len(weights) > 3
    for tensor in (x, weights[0], weights[-1]):
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        # the rounding of differences is larger by 1e6
        h, allowed = (1e-3, 1e-5) if divergence == "difference" else (1e-5, 1e-6)
        with torch.no_grad():
            tensor += h * direction
            above = value()
            tensor -= 2 * h * direction
            below = value()
            tensor += h * direction
        slope = float((above - below) / (2 * h))
        assert float((tensor.grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=allowed)


def test_a_differentiable_solve_asks_the_model_twice_as_often_and_gives_the_same_value():
    network = small_network(dims=2)
    model, x = watched(network), normals(3, 2).requires_grad_()
    options = {"steps": 4, "scheme": "rk4", "check": False}
    plain = density(model, x, **options)
    assert not plain.log_prob.requires_grad  # nothing to be differentiated by mistake
    assert sum(model.evaluations) == int(plain.nfe.sum())
    model.evaluations.clear()
    solved = density(model, x, differentiable=True, **options)
    assert torch.equal(solved.log_prob, plain.log_prob) and torch.equal(solved.nfe, plain.nfe)
    solved.log_prob.sum().backward()
    # once more each on the way back, and once to find the parameters
    assert len(model.evaluations) == 2 * 16 + 1


# ----------------------------------------------------------------------------------------------------------- memory


class Kept:
    """Bytes of the tensors that autograd holds: now, and at most; weights are not counted."""

    def __init__(self, weights):
        self.weights = {w.untyped_storage().data_ptr() for w in weights}
        self.held, self.now, self.peak = {}, 0, 0

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self.weights:
            return tensor.detach(), None
        if not self.held.get(place):
            self.now += size
            self.peak = max(self.peak, self.now)
        self.held[place] = self.held.get(place, 0) + 1
        ticket = object.__new__(_Ticket)
        ticket.kept, ticket.place, ticket.size = self, place, size
        return tensor.detach(), ticket


class _Ticket:
    def __del__(self):
        self.kept.held[self.place] -= 1
        if not self.kept.held[self.place]:
            self.kept.now -= self.size


@pytest.mark.parametrize(("how", "probes"), [("coupled", 3), ("quadrature", 1), ("differentiable", 3)])
def test_what_autograd_keeps_stays_within_the_budget(how, probes):
    torch.manual_seed(0)
    network = UNet(1, channels=8, multipliers=(1, 2), blocks=1)
    model, x = ScoreModel(network, VPSDE(), EDM()).double().eval(), 0.5 * normals(6, 1, 8, 8)
    graph = how == "differentiable"
    options = {"probes": probes, "divergence": "hutchinson", "check": False, "rtol": 0.1, "atol": 0.1}
    if graph:
        options |= {"steps": 1, "scheme": "rk4", "differentiable": True, "rtol": 1e-5}
    else:
        options["method"] = how
    passes, budget = probes if graph else 0, 1
    with pytest.raises(UsageError, match="MiB") as refused:
        rows_within(budget, model, x, passes)
    need = float(str(refused.value).split("about ")[1].split(" MiB")[0].replace(",", ""))
    budget = int(3 * (need + 0.5) * 2**20)  # the message has whole MiB
    assert 3 <= rows_within(budget, model, x, passes) < 6
    assert rows_within(4 * budget, model, x, passes) >= 4 * rows_within(budget, model, x, passes)
    kept = Kept(model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda pair: pair[0]):
        solved = density(model, x.requires_grad_(graph), memory=budget, **options)
        if graph:
            solved.log_prob.sum().backward()
    # All is freed again, and what is kept at most is a good part of the budget.
    assert kept.now == 0 and budget / 8 < kept.peak < budget


@pytest.mark.parametrize("method", ["coupled", pytest.param("quadrature", marks=pytest.mark.slow)])
def test_what_differences_keep_alive_stays_within_the_budget(method):
    torch.manual_seed(0)
    network = UNet(1, channels=8, multipliers=(1, 2), blocks=1)
    model, x = ScoreModel(network, VPSDE(), EDM()).double().eval().requires_grad_(False), 0.5 * normals(12, 1, 8, 8)
    budget = 2**21
    rows = rows_within(budget, model, x, backward=False)
    assert 2 <= rows < len(x)
    options = {"divergence": "difference", "check": False, "rtol": 0.1, "atol": 0.1, "memory": budget}
    with _Alive() as alive:
        density(model, x, method=method, **options)
    assert budget / 8 < alive.most < budget


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"one sample needs about .* MiB, more than the memory budget of"):
        log_likelihood(small_network(), normals(2, 3), memory=100)


# -------------------------------------------------------------------------------------------------------- any model


def test_a_converted_model_has_the_same_likelihood_by_quadrature():
    # By the coupled solve: test_paths.py.
    model = ring(VPSDE())
    x = model.sample(4, torch.Generator().manual_seed(0))
    both = model, convert(model, FlowMatching())
    own, other = (density(m, x, method="quadrature", rtol=1e-6, **EXACT) for m in both)
    assert float((other.log_prob - own.log_prob).abs().max()) < 1e-5


@dataclass(frozen=True)
class Broken(Wrapped):
    """Gives NaN for data above 100."""

    def __call__(self, x, t):
        estimate = self.model(x, t)
        bad = (x.abs() > 100).any(1, keepdim=True)
        return replace(estimate, eps=torch.where(bad, torch.nan, estimate.eps))

    def rows(self, index):
        return Broken(self.model.rows(index))


@pytest.mark.parametrize("options", [{}, {"method": "quadrature"}, {"steps": 6}])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_row_that_fails_leaves_the_others_as_they_are(options, divergence):
    model = Broken(ring(VPSDE()))
    x = model.model.sample(5, torch.Generator().manual_seed(0))
    broken = x.clone()
    broken[2] = 1e3
    options = {**options, "divergence": divergence, "check": False}
    clean, solved = density(model, x, **options), density(model, broken, **options)
    others = torch.tensor([0, 1, 3, 4])
    assert solved.ok.tolist() == [True, True, False, True, True]
    assert bool(solved.log_prob[2].isnan()) and "NaN" in solved.failures()[0]
    assert torch.equal(solved.log_prob[others], clean.log_prob[others])
    assert torch.equal(solved.z[others], clean.z[others])


def test_a_row_out_of_evaluations_has_no_figure():
    for method in ("coupled", "quadrature"):
        solved = log_likelihood(ring(VPSDE()), torch.zeros(2, 2, dtype=F64), Likelihood(method=method, max_nfe=20))
        assert bool(solved.log_prob.isnan().all()) and not bool(solved.ok.any())


def test_another_beginning():
    # The density of x_t at t = 0.2, for one Gaussian.
    model = gaussian(VPSDE(), 3)
    x, low = 0.4 * normals(4, 3), 0.2
    solved = log_likelihood(model, x, Likelihood(t_min=low, rtol=1e-8, atol=1e-8))
    exact = model.domain.sde.prior.log_prob(solved.z) + model.log_prob(x, low) - model.log_prob(solved.z, 1.0)
    assert torch.allclose(solved.log_prob, exact, atol=1e-6)


def test_another_beginning_of_a_converted_model():
    # x is the state of the new path there: the unit of the old one counts where the model begins only.
    model = gaussian(VPSDE(), 3)
    other = convert(model, FlowMatching())
    x, low = 0.4 * normals(4, 3), 0.2
    solved = log_likelihood(other, x, Likelihood(t_min=low, rtol=1e-7), check=False)
    alpha, sigma = (float(c) for c in other.sde.coefficients(torch.tensor(low, dtype=F64)))
    clock = float(model.domain.sde.t_of_log_snr(torch.tensor(2 * math.log(alpha / sigma), dtype=F64)))
    unit = float(model.domain.sde.coefficients(torch.tensor(clock, dtype=F64))[0]) / alpha
    own = log_likelihood(model, unit * x, Likelihood(t_min=clock, rtol=1e-7), check=False)
    assert torch.allclose(solved.log_prob, own.log_prob + 3 * math.log(unit), atol=1e-6)


class _BadSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.where(torch.arange(len(grad))[:, None] == 0, torch.nan, grad)


@dataclass(frozen=True)
class BrokenSlope(Wrapped):
    """Finite values, whose derivative is NaN in the first row."""

    def __call__(self, x, t):
        estimate = self.model(x, t)
        return replace(estimate, eps=_BadSlope.apply(estimate.eps))

    def rows(self, index):
        return BrokenSlope(self.model.rows(index))


@pytest.mark.parametrize(
    "options", [{"rtol": 1e-2}, {"method": "quadrature"}, pytest.param({"steps": 6}, marks=pytest.mark.slow)]
)
def test_a_divergence_that_is_no_number_is_a_failure(options):
    model = BrokenSlope(ring(VPSDE()))
    x = model.model.sample(3, torch.Generator().manual_seed(0))
    solved = density(model, x, divergence="hutchinson", check=False, batch=1, **options)
    assert not bool(solved.ok.any()), "each batch of one has a first row"
    solved = density(model, x, divergence="hutchinson", check=False, **{"steps": 6})
    assert solved.ok.tolist() == [False, True, True]


def test_learned_ends_are_not_followed_and_leave_no_graph():
    model = ScoreModel(MLP(2, width=8, blocks=1), VDMSDE(learn=True), X0())
    x = torch.zeros(2, 2)
    solved = log_likelihood(model, x, Likelihood(rtol=1e-2, atol=1e-2), check=False)
    assert not solved.log_prob.requires_grad and not solved.z.requires_grad
    assert not elbo(model, x, strata=4).log_prob.requires_grad
    with pytest.raises(UsageError, match="learned ends"):
        log_likelihood(model, x, Likelihood(steps=4), differentiable=True)


def test_a_differentiable_solve_is_checked_only_if_asked_for():
    model = gaussian(VPSDE(), 2)
    x = 0.4 * normals(2, 2)
    solved = log_likelihood(model, x, Likelihood(steps=3, scheme="euler"), differentiable=True)
    assert bool(solved.change.isnan().all())
    with pytest.warns(UserWarning, match="NOT CONVERGED"):
        log_likelihood(model, x, Likelihood(steps=3, scheme="euler"), differentiable=True, check=True)


def test_the_default_budget_is_a_size():
    assert default_budget(torch.device("cpu")) == 2**31
