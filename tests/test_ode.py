"""The per-row driver on problems with known solutions."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import F64
from scipy.integrate import RK23, RK45

from scoresde import FlowMatching
from scoresde.core.errors import UsageError
from scoresde.ode.dense import Knots
from scoresde.ode.integrate import FAILED_LIMIT, FAILED_NONFINITE, FAILED_UNDERFLOW, OK, TABLEAUS, coarse, integrate

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from estimates import steps_of
from sweep import Law

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


@pytest.mark.parametrize(("method", "passes"), [("dopri5", 1), ("tsit5", 0), ("bosh3", 0)])
def test_an_integral_needs_no_slope_at_passing_stages(method, passes):
    # the second part of the state is the integral of the first, which it does not act on
    calls = []

    def f(y, t, index):
        calls.append("f")
        return torch.cat([decay(y[:, :1], t, index), y[:, :1]], dim=1)

    def passing(y, t, index):
        calls.append("passing")
        return torch.cat([decay(y[:, :1], t, index), torch.full_like(y[:, :1], 7.0)], dim=1)

    start = torch.tensor([[1.0, 0.0]], dtype=F64).expand(6, 2)
    whole = integrate(f, start, 0.0, 2.0, method=method)
    calls.clear()
    found = integrate(f, start, 0.0, 2.0, method=method, passing=passing)
    assert torch.equal(found.y, whole.y) and torch.equal(found.nfe, whole.nfe)
    rounds = int((found.accepted + found.rejected).max())
    assert sum(TABLEAUS[method].passing) == passes and calls.count("passing") == passes * rounds


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
    def whole(self, y, k, t0, t1, index):
        return np.full(len(y), abs(t1 - t0)), np.ones(len(y), dtype=bool)

    monkeypatch.setattr("scoresde.ode.integrate._Attempt.first_step", whole)

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
    # Each jump of the slope rejects steps; with growth right after, the next one would be rejected again and again.
    def f(y, t, index):
        return torch.sign(torch.sin(40 * t))[:, None].to(y)

    solved = integrate(f, torch.zeros(1, 1, dtype=F64), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    assert int(solved.status) == OK and 0 < int(solved.rejected) < 1.2 * int(solved.accepted)


def test_the_steps_are_those_of_the_formulas():
    # One row by hand: with size = 1 + max(|y|, |y_new|), err is the larger of rms(h sum_i e_i k_i / size) / rtol and
    # rms(h sum_i g_i k_i / size)^(3/2) / rtol, and h <- 0.9 h err^(-.7/5) before^(.4/5).
    tolerance, tableau, stops = 1e-6, TABLEAUS["dopri5"], [0.0]

    def slope(y, t):
        return np.array([y[1], -y[0]]) * (1 + t)

    def f(y, t, index):
        return torch.stack([y[:, 1], -y[:, 0]], dim=1) * (1 + t)[:, None]

    y = torch.tensor([[1.0, 0.5]], dtype=F64)
    solved = integrate(f, y, 0.0, 2.0, rtol=tolerance, atol=tolerance, on_step=lambda i, t, *_: stops.append(float(t)))
    assert int(solved.rejected) == 0
    state, before, sizes = y[0].numpy(), 1.0, np.diff(stops)
    for i, (t, h) in enumerate(zip(stops[:-2], sizes[:-2], strict=False)):
        k = []
        for c, weights in zip(tableau.c, tableau.a, strict=True):
            stage = state + h * sum((w * s for w, s in zip(weights, k, strict=False)), np.zeros(2))
            k.append(slope(stage, t + c * h))
        size = 1 + np.maximum(abs(state), abs(stage))
        first, second = (np.sqrt(np.mean((h * np.dot(weights, k) / size) ** 2)) for weights in (tableau.e, tableau.g))
        error = max(first, second**1.5) / tolerance
        assert error <= 1
        then = h * np.clip(0.9 * error ** (-0.7 / 5) * before ** (0.4 / 5), 0.2, 10)
        assert 0 <= 1 - sizes[i + 1] / then < 2**-6  # cut to seven digits
        state, before = stage, error
    assert len(sizes) > 10


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_no_step_passes_that_is_far_off(method, monkeypatch):
    # Samples that turn towards one of several modes within a step: one estimate lets some pass that are wrong by 23 or
    # by 67 tolerances.
    monkeypatch.setitem(TABLEAUS, "with one", replace(TABLEAUS[method], g=()))
    rng = np.random.default_rng(1)
    law = Law.draw(rng, 2, False, False)
    model, x = law.model(FlowMatching()), torch.from_numpy(law.start(rng, 32, 0.0, 1.0))

    def f(y, t):
        estimate = model(y, t)
        return estimate.eps - estimate.x0

    assert max(steps_of(f, x, model.sde, 1e-4, method)[0]) < 2
    assert max(steps_of(f, x, model.sde, 1e-4, "with one")[0]) > 20


def test_step_sizes_are_cut_to_seven_digits():
    h = np.random.default_rng(0).uniform(1e-9, 1e3, 1000) ** 3
    mantissa, exponent = np.frexp(h)
    assert np.array_equal(coarse(h), np.ldexp(np.trunc(128 * mantissa) / 128, exponent))
    assert np.array_equal(coarse(coarse(h)), coarse(h)) and np.array_equal(coarse(-h), -coarse(h))


@pytest.mark.parametrize("ends", [(1.0, 1e-3), (1e-3, 1.0), (0.1, 0.1 + 1e-9), (3e5, 3e5 + 0.7), (-0.3, 0.3)])
@pytest.mark.parametrize("method", TABLEAUS)
def test_rounding_leads_nowhere_outside(method, ends):
    # Nothing clamps the times: t + c h, rounded, must not pass the end of an interval that is short or close to 0.
    seen = []

    def f(y, t, index):
        seen.append(t.clone())
        return torch.sin(y * (index[:, None] + 1) * 7 / (ends[1] - ends[0]))

    solved = integrate(f, torch.linspace(0, 1, 50, dtype=F64)[:, None], *ends, rtol=1e-4, atol=1e-4, method=method)
    assert bool((solved.status == OK).all())
    times = torch.cat(seen)
    assert float(times.min()) == min(ends) and float(times.max()) == max(ends)


def test_f_may_keep_what_it_is_given_and_return_it():
    # dy/dt = y, answered with the very tensor of the question; nothing writes into it later.
    kept = []

    def f(y, t, index):
        kept.append((y, y.clone(), t, t.clone(), index, index.clone()))
        return y

    y = torch.tensor([[1.0], [30.0], [1e-9]], dtype=F64)
    solved = integrate(f, y, 0.0, 1.0, rtol=1e-8, atol=1e-8)
    assert torch.allclose(solved.y, y * math.e, rtol=1e-7, atol=1e-8)
    assert all(torch.equal(a, b) for call in kept for a, b in zip(call[::2], call[1::2], strict=True))


def test_rows_are_told_who_they_are():
    # Each row has a rate and a size of its own, which f looks up by the index; they arrive in another order.
    rates = torch.tensor([5.0, 0.1, 40.0, 1.0, 0.0], dtype=F64)

    def f(y, t, index):
        assert index.dtype == torch.int64 and len(index) == len(y) == len(t)
        return -rates[index, None] * y

    y = torch.arange(1.0, 6.0, dtype=F64)[:, None].repeat(1, 3)
    solved = integrate(f, y, 0.0, 1.0, rtol=1e-7, atol=1e-9)
    assert torch.allclose(solved.y, y * torch.exp(-rates)[:, None], rtol=1e-5, atol=1e-8)
    assert solved.nfe.dtype == torch.int64 and len(set(solved.nfe.tolist())) > 2


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
def test_events_of_any_shape(shape):
    y = torch.rand(4, *shape, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.5
    solved = integrate(lambda y, t, index: -y.square(), y, 0.0, 1.0, rtol=1e-8, atol=1e-8)
    assert torch.allclose(solved.y, y / (1 + y), rtol=1e-7)


def test_a_device_without_float64_gets_float32_times(monkeypatch):
    monkeypatch.setattr("scoresde.ode.integrate.time_dtype", lambda device: torch.float32)
    seen, shown = [], []

    def f(y, t, index):
        seen.append(t)
        return -y * t[:, None]

    y = torch.ones(3, 2)
    solved = integrate(f, y, 1.0, 0.0, on_step=lambda index, t, *_: shown.append(t))
    assert {t.dtype for t in seen + shown} == {torch.float32} and solved.y.dtype == torch.float32
    assert torch.allclose(solved.y, torch.full_like(y, math.exp(0.5)), rtol=1e-4)


def test_a_model_with_parameters_leaves_no_graph():
    weight = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))
    solved = integrate(lambda y, t, index: -weight * y, torch.ones(2, 1, dtype=F64, requires_grad=True), 0.0, 1.0)
    assert not solved.y.requires_grad and torch.allclose(solved.y, torch.full_like(solved.y, math.exp(-1)), rtol=1e-4)


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

    y = torch.zeros(1, 10_001, dtype=F64)
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


def test_a_path_between_knots_uses_those_on_both_sides():
    u = torch.linspace(0, 2, 11, dtype=F64)
    y, slope = torch.sin(3 * u)[:, None], 3 * torch.cos(3 * u)[:, None]
    knots = Knots(0.0, y[:1], slope[:1])
    for i in range(1, 11):
        knots(torch.tensor([0]), u[i : i + 1], y[i : i + 1], slope[i : i + 1], i / 10)
    asked = torch.linspace(0.6, 1.4, 41, dtype=F64)
    found = knots.path()(torch.zeros(41, dtype=torch.int64), asked)[:, 0]
    assert float((found - torch.sin(3 * asked)).abs().max()) < 2e-7
