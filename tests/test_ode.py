"""The per-row driver on problems with known solutions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from models import F64
from scipy.integrate import RK23, RK45

from scoresde.errors import UsageError
from scoresde.ode import FAILED_LIMIT, FAILED_NONFINITE, FAILED_UNDERFLOW, OK, TABLEAUS, integrate

RATES = torch.linspace(0.5, 3.0, 6, dtype=F64)


def decay(y, t, index):
    return -RATES[index, None] * y


@pytest.mark.parametrize(("name", "scipys"), [("dopri5", RK45), ("bosh3", RK23)])
def test_tableaus_are_those_of_scipy(name, scipys):
    tableau = TABLEAUS[name]
    stages = len(scipys.B)
    for i, row in enumerate(scipys.A[:stages]):
        assert np.allclose([*tableau.a[i]], row[:i], rtol=1e-15)
    assert np.allclose(tableau.a[-1], scipys.B, rtol=1e-15)
    # The sign of the whole is a convention; sum(e) = 0 because both formulas are consistent.
    assert np.allclose(tableau.e, scipys.E, rtol=1e-12) or np.allclose(tableau.e, -scipys.E, rtol=1e-12)
    assert abs(sum(tableau.e)) < 1e-15


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
def test_error_follows_the_tolerance_both_ways(method, ends):
    y = torch.ones(6, 3, dtype=F64)
    exact = torch.exp(-RATES * (ends[1] - ends[0]))[:, None].expand(6, 3)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        solved = integrate(decay, y, *ends, rtol=tolerance, atol=tolerance, method=method)
        assert bool((solved.status == OK).all())
        errors.append(float(((solved.y - exact) / (1 + exact)).abs().max()))
        assert errors[-1] < 20 * tolerance
    assert errors[0] > 25 * errors[2]


@pytest.mark.parametrize(("method", "order"), [("dopri5", 5), ("bosh3", 3)])
def test_one_step_has_the_order_of_the_method(method, order, monkeypatch):
    # With a huge tolerance and a first step of the whole interval, the error of that step falls like h^(order + 1).
    monkeypatch.setattr("scoresde.ode._Attempt.first_step", lambda self, y, k, t0, t1, index: (np.full(len(y), abs(t1 - t0)), np.ones(len(y), dtype=bool)))

    def f(y, t, index):
        return y * torch.cos(t)[:, None]

    errors = []
    for h in (0.5, 0.25):  # of few binary digits, as steps are
        solved = integrate(f, torch.ones(1, 1, dtype=F64), 0.0, h, rtol=1e9, atol=1e9, method=method)
        assert int(solved.accepted) == 1
        errors.append(abs(float(solved.y) - math.exp(math.sin(h))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.35)


def test_counts_are_what_happened():
    calls = torch.zeros(6, dtype=torch.int64)

    def counted(y, t, index):
        calls[index] += 1
        return decay(y, t, index)

    solved = integrate(counted, torch.ones(6, 1, dtype=F64), 0.0, 5.0, rtol=1e-7, atol=1e-7)
    assert torch.equal(solved.nfe, calls)
    assert torch.equal(solved.nfe, 2 + 6 * (solved.accepted + solved.rejected))
    assert len(set(solved.nfe.tolist())) > 1  # rows leave when they are done


def test_a_step_does_not_grow_after_a_rejection():
    # A kick at t = 0.5 rejects steps; with growth right after, the next one would be rejected again and again.
    def f(y, t, index):
        return torch.where((t - 0.5).abs() < 0.01, 100.0, 0.0)[:, None].to(y) * torch.cos(1e3 * t)[:, None]

    solved = integrate(f, torch.zeros(1, 1, dtype=F64), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    assert int(solved.status) == OK and int(solved.rejected) < 0.7 * int(solved.accepted)


def test_never_outside_the_interval_and_both_ends_are_met():
    for ends in ((0.1, 0.9), (0.9, 0.1)):
        seen = []

        def f(y, t, index, seen=seen):
            seen.append(t.clone())
            return torch.cos(40 * t)[:, None] * y

        integrate(f, torch.ones(3, 1, dtype=F64), *ends, rtol=1e-3, atol=1e-3)
        times = torch.cat(seen)
        assert float(times.min()) == 0.1 and float(times.max()) == 0.9


def test_rows_are_independent_to_the_last_bit():
    def f(y, t, index):
        return torch.sin(30 * y * RATES[index, None]) - y

    y = torch.linspace(-1, 1, 12, dtype=F64).reshape(6, 2)
    together = integrate(f, y, 0.0, 3.0)
    for i in range(6):
        alone = integrate(lambda a, t, index, i=i: torch.sin(30 * a * RATES[i]) - a, y[i : i + 1], 0.0, 3.0)
        assert torch.equal(alone.y[0], together.y[i]) and int(alone.nfe) == int(together.nfe[i])


def test_a_failing_row_does_not_stop_the_others():
    def f(y, t, index):
        slope = decay(y, t, index)
        slope[(index == 1) & (t > 0.5)] = torch.nan
        return slope

    solved = integrate(f, torch.ones(6, 1, dtype=F64), 0.0, 1.0)
    assert solved.status.tolist() == [OK, FAILED_NONFINITE, OK, OK, OK, OK]
    assert torch.allclose(solved.y[2:, 0], torch.exp(-RATES[2:]), rtol=1e-4)


def test_a_pole_is_an_underflow_and_a_limit_is_a_limit():
    def pole(y, t, index):
        return y.square()  # y = 1 / (1 - t)

    solved = integrate(pole, torch.ones(1, 1, dtype=F64), 0.0, 2.0)
    assert int(solved.status) in (FAILED_UNDERFLOW, FAILED_NONFINITE)
    solved = integrate(decay, torch.ones(6, 1, dtype=F64), 0.0, 50.0, rtol=1e-9, atol=1e-9, max_nfe=100)
    assert int(solved.status[5]) == FAILED_LIMIT and int(solved.nfe.max()) <= 100


def test_the_worst_part_of_the_state_counts():
    # The second part moves fast and is tiny in the mean over all elements: alone it must still be right.
    def f(y, t, index):
        slope = torch.zeros_like(y)
        slope[:, -1] = torch.cos(50 * t)
        return slope

    y = torch.zeros(1, 1001, dtype=F64)
    both = integrate(f, y, 0.0, 1.0, rtol=1e-6, atol=1e-6, parts=lambda s: [s[:, :-1], s[:, -1:]])
    one = integrate(f, y, 0.0, 1.0, rtol=1e-6, atol=1e-6)
    exact = math.sin(50) / 50
    assert abs(float(both.y[0, -1]) - exact) < 2e-6 < abs(float(one.y[0, -1]) - exact)


def test_float32_warns_below_its_resolution_and_does_not_hang():
    def f(y, t, index):
        return torch.cos(6 * t)[:, None].float() - y

    with pytest.warns(UserWarning, match="float32"):
        solved = integrate(f, torch.ones(4, 2), 0.0, 1.0, rtol=1e-8, atol=1e-8)
    assert bool((solved.status == OK).all()) and int(solved.nfe.max()) < 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integrate(f, torch.ones(4, 2), 0.0, 1.0, rtol=1e-5)


def test_bad_options_are_refused():
    y = torch.ones(1, 1)
    with pytest.raises(UsageError, match="rtol"):
        integrate(decay, y, 0.0, 1.0, rtol=0.0)
    with pytest.raises(UsageError, match="dopri5"):
        integrate(decay, y, 0.0, 1.0, method="rk45")


def test_an_empty_interval_is_the_identity():
    y = torch.ones(2, 1)
    solved = integrate(decay, y, 0.5, 0.5)
    assert torch.equal(solved.y, y) and solved.nfe.tolist() == [0, 0]
