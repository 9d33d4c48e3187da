"""The variational bound against closed forms: equal for an exact score, a bound for the SDE, none for the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from models import ALL, F64, PUBLISHED, Louder, gaussian, normals, small_network, watched
from scipy.integrate import solve_ivp

from scoresde import VPSDE, FlowMatching, GaussianMixture, Noise, convert, elbo, log_likelihood
from scoresde.core.errors import UsageError
from scoresde.model.estimate import Wrapped

STD = 0.5


def marginals(sde):
    """alpha and sigma where the likelihood begins and ends."""
    return [tuple(float(c) for c in sde.coefficients(torch.tensor(t, dtype=F64))) for t in sde.times("likelihood")]


def cross_entropy(variance, second_moment):
    """``E[-log N(y; 0, variance)]`` for one element with ``E y^2 = second_moment``."""
    return (math.log(2 * math.pi * variance) + second_moment / variance) / 2


def many(model, value, rows=2000, **options):
    """The bound of the same data ``value`` in every row: its mean and standard error."""
    bounds = -elbo(model, torch.full((rows, 1), value, dtype=F64), batch=200_000, **options).log_prob
    return float(bounds.mean()), float(bounds.std()) / math.sqrt(rows)


def exact_bound(sde, x):
    """``E[-log q_0(x_0)] - log alpha_0 + E[log q_1(x_1) - log prior(x_1)]``, given x: the chain of an exact score.

    The forward chain given x and the reverse chain then have the same transitions, and what is left are the ends:
    the marginals q_0 at t_min, in units of the data, and q_1 at t_max, for which the model has its prior.
    """
    (a0, s0), (a1, s1) = marginals(sde)
    first = cross_entropy((a0 * STD) ** 2 + s0**2, (a0 * x) ** 2 + s0**2) - math.log(a0)
    second = (a1 * x) ** 2 + s1**2
    return first - cross_entropy((a1 * STD) ** 2 + s1**2, second) + cross_entropy(sde.prior_std**2, second)


def mean_bound(sde, factor):
    """The mean of the bound over N(0, STD^2): that of the exact score, e*, and E |(factor - 1) e*|^2 dl/2 for the rest.

    The cross term vanishes, because e* is the mean of eps given x_t. E e*^2 = sigma^2/(alpha^2 STD^2 + sigma^2), and
    int dl/(1 + STD^2 exp l) = l - log(1 + STD^2 exp l).
    """
    l0, l1 = (2 * math.log(alpha / sigma) for alpha, sigma in marginals(sde))
    rest = [level - math.log1p(STD**2 * math.exp(level)) for level in (l0, l1)]
    return exact_bound(sde, STD) + (factor - 1) ** 2 / 2 * (rest[0] - rest[1])


@cache
def sde_nll(sde, factor):
    """Mean negative log-likelihood, over N(0, STD^2), of the reverse SDE whose score is ``factor`` times the exact one.

    Its variance solves  dv/dt = 2 f v - g^2 + 2 g^2 k v  from the prior's at t_max, with the score -k x; the decoder
    then adds sigma^2 at t_min, and the data are the result over alpha.
    """

    def rate(t, v):
        at = torch.tensor(t, dtype=F64)
        (alpha, sigma), f, g2 = sde.coefficients(at), sde.drift_rate(at), sde.diffusion_squared(at)
        k = factor / ((alpha * STD) ** 2 + sigma**2)
        return [float(2 * f * v[0] - g2 + 2 * g2 * k * v[0])]

    low, high = sde.times("likelihood")
    # in log t, where the variance settles late
    solved = solve_ivp(
        lambda s, v: [math.exp(s) * rate(math.exp(s), v)[0]],
        (math.log(high), math.log(low)), [sde.prior_std**2], "LSODA", rtol=1e-7, atol=1e-9,
    )  # fmt: skip
    assert solved.success
    a0, s0 = marginals(sde)[0]
    return cross_entropy((solved.y[0, -1] + s0**2) / a0**2, STD**2)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "flow"])
def test_an_exact_score_leaves_the_ends_only(name):
    for x in (0.2, 1.1):
        mean, error = many(gaussian(ALL[name], 1, 0.0, STD), x)
        assert mean == pytest.approx(exact_bound(ALL[name], x), abs=4 * error)
        assert error < 0.03
    # Where nothing of the data is left at t_max, and nothing hidden at t_min, that is the density itself.
    if name in ("vp", "subvp", "flow"):
        assert exact_bound(ALL[name], 0.2) == pytest.approx(cross_entropy(STD**2, 0.2**2), abs=2e-3)


@pytest.mark.parametrize(("name", "factor"), [*((name, 0.8) for name in PUBLISHED), ("vp", 1.1)])
def test_a_wrong_score_leaves_a_bound_for_the_sde(name, factor):
    # The bound is quadratic in x, so that its mean over N(0, STD^2) is that over x = -STD and STD.
    sde = PUBLISHED[name]
    mean, error = many(Louder(gaussian(sde, 1, 0.0, STD), factor), STD, 4000)
    assert mean == pytest.approx(mean_bound(sde, factor), abs=4 * error)
    assert mean_bound(sde, factor) >= sde_nll(sde, factor)
    assert sde_nll(sde, factor) > sde_nll(sde, 1.0) + 1e-4


def test_the_published_score_has_the_entropy_of_the_data():
    assert sde_nll(VPSDE(), 1.0) == pytest.approx(cross_entropy(STD**2, STD**2), abs=1e-3)


def test_it_does_not_bound_the_flow():
    model = Louder(gaussian(VPSDE(), 1, 0.0, STD), 1.1)
    x = torch.tensor([[-STD], [STD]], dtype=F64)
    flow = -float(log_likelihood(model, x, check=False).log_prob.mean())
    bound, error = many(model, STD, 8000)
    assert flow == pytest.approx(1.223, abs=1e-3)
    assert mean_bound(VPSDE(), 1.1) == pytest.approx(0.783, abs=1e-3)
    assert bound == pytest.approx(mean_bound(VPSDE(), 1.1), abs=4 * error)
    assert sde_nll(VPSDE(), 1.1) < bound < flow


@pytest.mark.parametrize("strata", [1, 3, 16])
def test_it_is_unbiased_whatever_the_number_of_strata(strata):
    x, rows = 0.7, 8000 if strata == 1 else 4000
    mean, error = many(gaussian(VPSDE(), 1, 0.0, STD), x, rows, strata=strata, noise=Noise.of(rows, 9))
    assert mean == pytest.approx(exact_bound(VPSDE(), x), abs=4 * error)


def test_strata_make_it_more_exact():
    errors = [many(gaussian(VPSDE(), 1, 0.0, STD), 0.7, 1000, strata=n, draws=64 // n)[1] for n in (1, 8, 64)]
    assert errors[0] > errors[1] > errors[2]


def test_the_standard_error_is_that_over_seeds():
    model, x = Louder(gaussian(VPSDE(), 4), 1.2), torch.full((2000, 4), 0.6, dtype=F64)
    result = elbo(model, x, strata=4, draws=5, batch=100_000)
    assert float(result.stderr.square().mean().sqrt()) == pytest.approx(float(result.log_prob.std()), rel=0.06)
    assert bool(elbo(model, x[:2], strata=2).stderr.isnan().all())


def test_rows_do_not_depend_on_the_batch_and_calls_are_counted():
    model = watched(small_network(dims=3).requires_grad_(False))
    x, noise = normals(5, 3), Noise.of(5, 2)
    whole = elbo(model, x, strata=4, draws=2, noise=noise, batch=40)
    assert sum(model.evaluations) == int(whole.nfe.sum()) == 40
    rows = torch.tensor([3, 1])
    part = elbo(model, x[rows], strata=4, draws=2, noise=noise.rows(rows), batch=7)
    assert torch.allclose(part.log_prob, whole.log_prob[rows], rtol=1e-12)
    assert torch.allclose(part.stderr, whole.stderr[rows], rtol=1e-10)
    assert torch.equal(whole.log_prob, -(whole.prior + whole.diffusion + whole.reconstruction))


@pytest.mark.parametrize("event", [(), (2, 3)])
def test_any_event_shape(event):
    model = GaussianMixture(VPSDE(), torch.zeros(1, *event, dtype=F64), torch.tensor([STD], dtype=F64))
    dims = max(1, math.prod(event))
    bounds = -elbo(model, torch.full((2000, *event), 0.3, dtype=F64), batch=200_000).log_prob
    error = float(bounds.std()) / math.sqrt(2000)
    assert float(bounds.mean()) == pytest.approx(dims * exact_bound(VPSDE(), 0.3), abs=4 * error)


def test_a_converted_model_has_the_same_bound():
    model, x = gaussian(VPSDE(), 3), normals(4, 3)
    straight = convert(model, FlowMatching())
    # the same noise levels between the same ends, so that even the draws are the same
    a, b = elbo(model, x, strata=256), elbo(straight, x, strata=256)
    assert torch.allclose(a.log_prob, b.log_prob, atol=1e-8)


@dataclass(frozen=True)
class Paired(Wrapped):
    @property
    def domain(self):
        return replace(self.model.domain, has_score=False)

    def __call__(self, x, t):
        return self.model(x, t)


def test_what_has_no_bound_is_refused():
    model = gaussian(VPSDE(), 2)
    with pytest.raises(UsageError, match="no score"):
        elbo(Paired(model), torch.zeros(1, 2))
    for options in ({"strata": 0}, {"draws": 0}, {"batch": 0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            elbo(model, torch.zeros(1, 2), **options)
    with pytest.raises(UsageError, match="must not be empty"):
        elbo(model, torch.zeros(0, 2))
    with pytest.raises(UsageError, match="the same number of rows; got 3 and 1"):
        elbo(model, torch.zeros(1, 2), noise=Noise.of(3))
