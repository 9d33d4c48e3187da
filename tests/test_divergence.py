"""The trace of the slope's Jacobian: exact, by probes, and what the probes say of their own error."""

from __future__ import annotations

import math

import pytest
import torch
from models import F64, density, full_covariance, normals, ring, small_network, watched
from scipy.stats import t as student

from scoresde import VPSDE, Noise, log_likelihood
from scoresde.core.errors import UsageError
from scoresde.likelihood.divergence import PLACES, Probes, slope_and_traces
from scoresde.likelihood.problem import Problem

MATRIX = normals(8, 8, seed=1)


def quadratic_forms(kind, count, noise, place=None):
    """``e^T M e`` for each row and probe, ``(B, K)``, by the package."""
    probes, y = Probes(kind, count, noise), torch.zeros(len(noise.indices), 8, dtype=F64)
    rows = torch.arange(len(y))
    return slope_and_traces(lambda v: v @ MATRIX.mT, y, probes.vectors(y, rows, place))[1]


def variance(kind):
    """The closed form of the variance of one probe's trace."""
    pairs = torch.triu(MATRIX + MATRIX.mT, 1).square().sum()
    return float(pairs if kind == "rademacher" else 2 * ((MATRIX + MATRIX.mT) / 2).square().sum())


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_variance_of_a_probe_in_closed_form(kind):
    forms = quadratic_forms(kind, 1, Noise.of(100_000, 1))
    assert float(forms.var()) == pytest.approx(variance(kind), rel=0.02)
    standard_error = math.sqrt(variance(kind) / 100_000)
    assert float(forms.mean()) == pytest.approx(float(MATRIX.trace()), abs=4 * standard_error)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_variance_falls_as_one_over_the_number_of_probes(kind):
    forms = quadratic_forms(kind, 16, Noise.of(10_000, 2))
    for count in (2, 4, 16):
        assert float(forms[:, :count].mean(1).var()) == pytest.approx(variance(kind) / count, rel=0.08)


def test_one_forward_pass_gives_slope_and_trace_of_any_function():
    asked = []

    def slope(y):
        asked.append(len(y))
        return torch.tanh(y @ MATRIX.mT)

    y = normals(5, 8, seed=2)
    value, traces = slope_and_traces(slope, y, None)
    jacobians = torch.stack([torch.func.jacrev(lambda v: torch.tanh(MATRIX @ v))(row) for row in y])
    assert torch.equal(value, torch.tanh(y @ MATRIX.mT)) and not value.requires_grad
    assert torch.allclose(traces[:, 0], jacobians.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12)
    e = normals(5, 8, seed=3)
    forms = slope_and_traces(slope, y, [e, 2 * e])[1]
    expected = torch.einsum("bi,bij,bj->b", e, jacobians, e)
    assert torch.allclose(forms, torch.stack([expected, 4 * expected], 1), rtol=1e-12)
    assert asked == [5, 5]


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_model_is_asked_as_often_as_counted(steps, divergence):
    for method in ("coupled",) if steps else ("coupled", "quadrature"):
        model = watched(ring(VPSDE()))
        x = model.model.sample(5, torch.Generator().manual_seed(0))
        options = {"divergence": divergence, "probes": 3, "steps": steps, "check": False}
        solved = density(model, x, method=method, **options)
        assert sum(model.evaluations) == int(solved.nfe.sum())
        assert bool((solved.divergences <= solved.nfe).all()) and int(solved.divergences.min()) > 0
        if steps:
            assert torch.equal(solved.divergences, solved.nfe)
        elif method == "coupled":  # two points before the first step; one stage of the six of each needs no divergence
            assert torch.equal(6 * (solved.nfe - solved.divergences), solved.nfe - 2)
        else:
            assert bool((solved.divergences < solved.nfe / 2).all())


# Gaussian probes of few dimensions are skewed, by 0.6 at D = 8: intervals of 4 of them cover 92.7 % of 20,000 trials.
@pytest.mark.parametrize(("probe", "dims", "count", "redraw"), [
    ("rademacher", 8, 4, False), ("rademacher", 8, 8, True), ("gaussian", 32, 4, True), ("gaussian", 32, 16, False),
])  # fmt: skip
def test_student_intervals_cover_the_truth(redraw, probe, dims, count):
    model = full_covariance(VPSDE(), dims)
    x = model.sample(1, torch.Generator().manual_seed(0)).expand(1000, dims).clone()
    options = {"steps": 6, "scheme": "heun", "check": False, "batch": 1000}
    truth = density(model, x[:1], divergence="exact", **options).log_prob
    noise = Noise.of(1000, 4)
    drawn = {"divergence": "hutchinson", "probes": count, "probe": probe, "redraw": redraw, "noise": noise}
    solved = density(model, x, **drawn, **options)
    half = student.ppf(0.975, count - 1) * solved.stderr_probes
    covered = float(((solved.log_prob - truth).abs() <= half).double().mean())
    assert 0.93 <= covered <= 0.97


def test_an_error_is_reported_only_where_it_is_known():
    model, x = full_covariance(VPSDE(), 4), normals(3, 4)
    options = {"steps": 2, "check": False}
    assert bool(density(model, x, divergence="hutchinson", **options).stderr_probes.isnan().all())
    assert bool((density(model, x, divergence="exact", probes=5, **options).stderr_probes == 0).all())
    several = density(model, x, divergence="hutchinson", probes=2, **options)
    assert bool((several.stderr_probes > 0).all())


@pytest.mark.parametrize("method", ["coupled", "quadrature"])
def test_new_probes_on_the_way_are_unbiased_and_spread_less(method):
    model, rows = small_network(dims=6), 200
    x = normals(1, 6).expand(rows, 6).clone()
    options = {"method": method, "rtol": 1e-3, "atol": 1e-3, "batch": rows, "check": False}
    exact = float(density(model, x[:1], divergence="exact", **options).log_prob)
    spread = {}
    for redraw in (True, False):
        solved = density(model, x, divergence="hutchinson", redraw=redraw, noise=Noise.of(rows, 7), **options).log_prob
        spread[redraw] = float(solved.std())
        # the two solves take other steps: 1e-3 for their own errors
        assert float(solved.mean()) == pytest.approx(exact, abs=4 * spread[redraw] / math.sqrt(rows) + 1e-3)
    assert spread[True] < 0.7 * spread[False]


def test_a_probe_is_the_same_within_a_step_and_new_in_the_next():
    probes, y, rows = Probes("rademacher", 2, Noise.of(3)), torch.zeros(3, 64, dtype=F64), torch.arange(3)

    def drawn(place, **changes):
        return torch.stack(list(Probes(**{**vars(probes), **changes}).vectors(y, rows, place)))

    here, there = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 2])
    assert torch.equal(drawn(here), drawn(here))
    same = (drawn(here) == drawn(there)).all(2).all(0)
    assert same.tolist() == [False, True, True]
    # Fixed probes are those of the beginning, and another draw begins where the probes of this one end.
    assert torch.equal(drawn(here, fixed=True), drawn(None))
    assert torch.equal(drawn(here, first=1)[0], drawn(here)[1])
    assert not torch.equal(drawn(here, first=2)[0], drawn(here)[1])
    assert torch.equal(drawn(here + PLACES), drawn(here))


def test_steps_of_a_solve_have_probes_of_their_own():
    model, seen = ring(VPSDE()), []

    class Noted(Probes):
        def vectors(self, y, rows, place=None):
            found = list(super().vectors(y, rows, place))
            seen.append(found[0].clone())
            return iter(found)

    from scoresde.likelihood.coupled import by_fixed_steps

    x = torch.zeros(1, 2, dtype=F64).expand(64, 2).clone()
    by_fixed_steps(Problem(model, x), Noted("rademacher", 1, Noise.of(64)), "rk4", 3)
    assert len(seen) == 12
    assert all(torch.equal(seen[i], seen[4 * (i // 4)]) for i in range(12))
    assert not torch.equal(seen[0], seen[4]) and not torch.equal(seen[4], seen[8])


def test_other_draws_are_independent_and_free_of_the_batch():
    model, x = full_covariance(VPSDE(), 6), normals(6, 6)
    options = {"divergence": "hutchinson", "probes": 2, "steps": 3, "check": False}
    noise = Noise.of(6, 5)
    first, second = (density(model, x, noise=noise, draw=d, **options) for d in (0, 1))
    assert bool((first.log_prob != second.log_prob).all())
    order = torch.tensor([4, 0, 5, 2])
    for method in ("coupled", "quadrature"):
        loose = {**options, "steps": None, "rtol": 1e-3, "atol": 1e-3, "method": method}
        whole = density(model, x, noise=noise, draw=1, **loose)
        part = density(model, x[order], noise=noise.rows(order), draw=1, batch=3, **loose)
        assert float((part.log_prob - whole.log_prob[order]).abs().max()) <= 1e-12
        assert torch.equal(part.nfe, whole.nfe[order])


def test_addresses_beyond_32_bits_are_refused():
    with pytest.raises(UsageError, match="the product of draw and probes"):
        log_likelihood(ring(VPSDE()), torch.zeros(1, 2), draw=2**18, check=False)
    with pytest.raises(UsageError, match="the product of draw and probes"):
        log_likelihood(ring(VPSDE()), torch.zeros(1, 2), draw=-1, check=False)
