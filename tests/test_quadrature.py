"""The path between the steps, the rule along it, and their figure against the coupled solve."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from models import F64, FOUR, PUBLISHED, density, flow_log_prob, gaussian, normals, ring, small_network, watched

from scoresde import VPSDE, FlowMatching, GaussianMixture, Likelihood, SubVPSDE, log_likelihood
from scoresde.likelihood import quadrature
from scoresde.likelihood.clock import clock, r_of_clock
from scoresde.likelihood.divergence import PLACES
from scoresde.likelihood.quadrature import clenshaw_curtis
from scoresde.ode.dense import Knots


def knots(f, df, places):
    """A path through ``f`` with the knots ``places`` of one row."""
    r = torch.as_tensor(places, dtype=F64)
    found = Knots(float(r[0]), f(r[:1])[:, None], df(r[:1])[:, None])
    for one in r[1:]:
        found(torch.tensor([0]), one[None], f(one[None])[:, None], df(one[None])[:, None], 0.0)
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_dense_output_is_exact_for_its_degree(order):
    degree = 2 * order - 1
    coefficients = normals(degree + 1, seed=1).numpy()
    f, df = np.polynomial.Polynomial(coefficients), np.polynomial.Polynomial(coefficients).deriv()

    def of(p):
        return lambda r: torch.from_numpy(np.asarray(p(r.numpy())))

    path = knots(of(f), of(df), [0.0, 0.13, 0.2, 0.45, 0.6, 0.83, 1.0]).path(order)
    r = torch.linspace(0, 1, 41, dtype=F64)
    assert torch.allclose(path(torch.zeros(41, dtype=torch.int64), r)[:, 0], of(f)(r), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_dense_output_has_order_2m(order):
    errors = []
    for count in (12, 24):
        places = torch.linspace(0, 1, count + 1, dtype=F64)
        path = knots(lambda r: torch.sin(5 * r), lambda r: 5 * torch.cos(5 * r), places).path(order)
        r = torch.linspace(0, 1, 501, dtype=F64)
        errors.append(float((path(torch.zeros(501, dtype=torch.int64), r)[:, 0] - torch.sin(5 * r)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2 * order, abs=0.5)


def test_rows_with_few_knots_and_rows_with_many():
    # y = r^3 for both rows; the first has two knots, the second six.
    found = Knots(0.0, torch.zeros(2, 1, dtype=F64), torch.zeros(2, 1, dtype=F64))
    for step, r in enumerate((0.1, 0.3, 0.4, 0.8, 1.0)):
        rows = torch.tensor([0, 1] if step == 4 else [1])
        at = torch.full((len(rows),), r, dtype=F64)
        found(rows, at, at[:, None] ** 3, 3 * at[:, None] ** 2, 0.0)
    r = torch.linspace(0, 1, 11, dtype=F64)
    for row in (0, 1):
        assert torch.allclose(found.path()(torch.full((11,), row), r)[:, 0], r**3, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [2, 8, 16, 32])
def test_the_rule_is_exact_for_polynomials(n):
    u0, u1 = 0.01, 4.7
    u, weights = clenshaw_curtis(n, u0, u1)
    v = (2 * u - u0 - u1) / (u1 - u0)
    for degree in range(n + 1):
        exact = (u1 - u0) / 2 * (1 - (-1) ** (degree + 1)) / (degree + 1)
        assert float((weights * v**degree).sum()) == pytest.approx(exact, abs=1e-11)
    assert float(u[0]) == u0 and float(u[-1]) == u1
    # every second node of the rule with twice as many
    assert torch.allclose(clenshaw_curtis(2 * n, u0, u1)[0][::2], u, rtol=1e-12)


def test_the_clock_and_its_inverse():
    r = torch.cat([torch.linspace(0, 1, 21, dtype=F64), torch.tensor([1e-9, 1e-5], dtype=F64)])
    u = torch.tensor([clock(float(v)) for v in r], dtype=F64, requires_grad=True)
    back, rate = r_of_clock(u)
    assert torch.allclose(back, r, rtol=1e-13, atol=0)
    assert torch.allclose(torch.autograd.grad(back.sum(), u)[0], rate, rtol=1e-10)
    assert clock(0.5) == pytest.approx(clock(1.0) / 2) and clock(0.0) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_slope_integrates_to_the_path(name):
    # The residual is the check of the rule: the slope's integral is known.
    x = 0.3 + 0.5 * normals(4, 3)
    model, solved = gaussian(PUBLISHED[name], 3), {"method": "quadrature", "check": False}
    residuals = [float(density(model, x, rtol=tolerance, **solved).residual.max()) for tolerance in (1e-3, 1e-5, 1e-7)]
    for tolerance, residual in zip((1e-3, 1e-5, 1e-7), residuals, strict=True):
        assert residual <= 3 * tolerance * 3 * FOUR[name].prior_std  # the largest of |y| is about 3 prior_std at most
    assert all(a > b for a, b in pairwise(residuals))


def test_a_rule_that_is_too_coarse_is_a_failure_and_says_what_to_take(monkeypatch):
    # Narrow components: the posterior switches within a short stretch of the path.
    model = ring(VPSDE(), std=0.03)
    x = model.sample(6, torch.Generator().manual_seed(0)) + 0.05
    options = {"divergence": "exact", "rtol": 1e-6, "atol": 1e-6, "check": False}
    fine = density(model, x, method="quadrature", **options)
    monkeypatch.setattr(quadrature, "MOST", quadrature.FEWEST)
    coarse = density(model, x, method="quadrature", **options)
    assert int(coarse.divergences.max()) == 17 and int(fine.divergences.min()) > 17
    assert bool((coarse.residual > 100 * fine.residual).all())
    assert not bool(coarse.ok.any()) and bool(coarse.log_prob.isnan().all()) and bool(fine.ok.all())
    assert "use the 'coupled' method" in coarse.failures()[0]


@pytest.mark.parametrize(("sde", "tolerance"), [(FlowMatching(), 1e-5), (SubVPSDE(), 1e-7)], ids=str)
def test_a_row_that_succeeded_is_off_by_what_its_path_is(sde, tolerance):
    # With 128 nodes at most, and the square in (3), the quadrature added 14 and 7,316 tolerances of its own.
    model = ring(sde, std=0.01)
    x = model.sample(6, torch.Generator().manual_seed(1)) + 0.03 * normals(6, 2, seed=2)
    options = {"divergence": "exact", "check": False}
    found = density(model, x, method="quadrature", rtol=tolerance, **options)
    truth = flow_log_prob(model, x, density(model, x, rtol=1e-10, **options).z)
    assert bool(found.ok.all()) and int(found.divergences.max()) > 129
    assert float((found.log_prob - truth).abs().max()) / 2 <= 20 * tolerance


def test_rows_that_need_many_nodes_are_solved_a_few_at_a_time(monkeypatch):
    model = ring(SubVPSDE(), std=0.01)
    x = model.sample(8, torch.Generator().manual_seed(1)) + 0.02
    options = {"method": "quadrature", "divergence": "exact", "check": False}
    whole = density(model, x, **options)
    monkeypatch.setattr(quadrature, "HELD", 64 * 3)
    pieces, asked, integrals = density(model, x, **options), [], quadrature._Nodes.integrals
    assert torch.equal(whole.divergences, pieces.divergences)
    assert float((whole.log_prob - pieces.log_prob).abs().max()) < 1e-11

    def spy(self, rows, n):
        asked.append((len(rows), n))
        return integrals(self, rows, n)

    monkeypatch.setattr(quadrature._Nodes, "integrals", spy)
    density(model, x, **options)
    assert all(rows == 1 or rows * n <= 64 for rows, n in asked) and max(rows for rows, _ in asked) > 1


def test_quadrature_equals_the_coupled_solve_on_a_network():
    model, x = small_network(), normals(4, 3)
    options = {"divergence": "exact", "check": False}
    best = density(model, x, rtol=1e-6, **options)
    # The embedding of the noise is rough: both methods are off by more than their tolerance.
    for tolerance, allowed in ((1e-3, 3e-3), (1e-5, 3e-4)):
        coupled = density(model, x, rtol=tolerance, atol=tolerance, **options)
        found = density(model, x, method="quadrature", rtol=tolerance, atol=tolerance, **options)
        assert float((found.log_prob - best.log_prob).abs().max()) <= allowed
        assert float((found.log_prob - coupled.log_prob).abs().max()) <= 2 * allowed
        assert torch.allclose(found.z, best.z, atol=allowed)


def test_the_nodes_do_not_depend_on_the_batch_nor_on_the_pieces():
    model = GaussianMixture(VPSDE(), normals(5, 3), torch.full((5,), 0.2, dtype=F64))
    x = model.sample(7, torch.Generator().manual_seed(0))
    options = {"method": "quadrature", "divergence": "exact", "check": False}
    whole = density(model, x, **options)
    pieces = density(model, x, batch=2, **options)
    assert len(whole.divergences.unique()) > 1  # rows of several rules
    assert torch.equal(pieces.nfe, whole.nfe) and torch.equal(pieces.divergences, whole.divergences)
    assert float((pieces.log_prob - whole.log_prob).abs().max()) <= 1e-12


def test_no_more_states_at_once_than_allowed():
    model = watched(ring(VPSDE()))
    x = model.model.sample(3, torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_likelihood(model, x, Likelihood(method="quadrature"), batch=3)
    assert max(model.evaluations) == 3


def test_every_node_of_every_rule_has_probes_of_its_own(monkeypatch):
    places, evaluate = [], quadrature._Nodes._evaluate

    def spy(self, rows, u, place):
        places.append(place.tolist())
        return evaluate(self, rows, u, place)

    monkeypatch.setattr(quadrature._Nodes, "_evaluate", spy)
    how = Likelihood(method="quadrature", divergence="hutchinson", rtol=1e-9)
    model = ring(SubVPSDE(), std=0.01)
    how(model, (model.sample(3, torch.Generator().manual_seed(1)) + 0.03 * normals(6, 2, seed=2)[:3])[2:], check=False)
    found = [place for rule in places for place in rule]
    assert len(found) > 257 and len(set(found)) == len(found) and max(found) < PLACES
