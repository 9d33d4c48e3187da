"""From a density to the probability of a level: the truncated normal, the bounds, and where a path begins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import ALL, F64
from scipy.stats import kstest, truncnorm

from scoresde import VPSDE, Noise
from scoresde.likelihood.dequantise import TAU, log_mean_exp, start_time, truncated_normal


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0, 8.0])
def test_the_truncated_normal_has_its_distribution(tau):
    e, _ = truncated_normal(Noise.of(20_000, 3).uniform((1,), dtype=F64), tau)
    assert kstest(e[:, 0].numpy(), truncnorm(-tau, tau).cdf).pvalue > 0.01
    assert float(e.abs().max()) <= tau


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0, 8.0])
def test_its_log_density_is_the_stated_one(tau):
    e, log_q = truncated_normal(Noise.of(50, 4).uniform((2, 3), dtype=F64), tau)
    expected = truncnorm(-tau, tau).logpdf(e.numpy()).sum((1, 2))
    assert np.allclose(log_q.numpy(), expected, rtol=1e-9)
    # by the density of the inverse function, dF/de = 1/(de/du), which integrates to one over u
    u = torch.linspace(0.01, 0.99, 99, dtype=F64)[:, None].requires_grad_()
    e, log_q = truncated_normal(u, tau)
    slope = torch.autograd.grad(e.sum(), u)[0][:, 0]
    assert torch.allclose(log_q.exp() * slope, torch.ones(99, dtype=F64), rtol=1e-9)


def test_one_cut_for_all_elements_or_one_each():
    u = Noise.of(4, 5).uniform((2,), dtype=F64)
    both, log_both = truncated_normal(u, torch.tensor([0.5, 2.0], dtype=F64))
    one, log_one = truncated_normal(u[:, :1], 0.5)
    two, log_two = truncated_normal(u[:, 1:], 2.0)
    assert torch.equal(both, torch.cat([one, two], 1)) and torch.allclose(log_both, log_one + log_two)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_ends_of_the_uniform_stay_finite(u):
    for tau in (1e-6, 3.0, 100.0):
        e, log_q = truncated_normal(torch.full((1, 1), u, dtype=F64), tau)
        assert bool(torch.isfinite(e).all() and torch.isfinite(log_q).all()) and float(e.abs()) <= tau


def test_log_mean_exp():
    log_w = torch.tensor([[0.0, 800.0], [math.log(3), 800.0]], dtype=F64)
    assert torch.allclose(log_mean_exp(log_w), torch.tensor([math.log(2), 800.0], dtype=F64))


def test_more_draws_tighten_the_bound_on_a_known_probability():
    # p is N(0, 1) and the cell [0, 1): E log p(u) <= E log mean_k p(u_k) <= log P, by quadrature and by draws.
    u = Noise.of(50_000, 6).uniform((16,), dtype=F64).T
    log_w = -u.square() / 2 - math.log(2 * math.pi) / 2
    exact = math.log(0.5 * math.erf(1 / math.sqrt(2)))
    bounds = [float(log_mean_exp(log_w[:count]).mean()) for count in (1, 4, 16)]
    assert bounds[0] == pytest.approx(-1 / 6 - math.log(2 * math.pi) / 2, abs=4 * 0.15 / math.sqrt(50_000))
    assert bounds[0] < bounds[1] < bounds[2] < exact + 1e-3
    # Delta method: the gap is var(w)/(2 K mean(w)^2)
    gap = float(log_w.exp().var() / log_w.exp().mean().square()) / 2
    assert exact - bounds[2] == pytest.approx(gap / 16, rel=0.25)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [2 / 16, 2 / 256])
def test_the_path_begins_where_half_a_cell_is_tau_wide(name, width):
    sde = ALL[name]
    t = torch.tensor(start_time(sde, sde.t_min, width), dtype=F64)
    alpha, sigma = sde.coefficients(t)
    widest = width / 2 / float(sigma / alpha)
    if float(t) > sde.t_min * (1 + 1e-9):
        assert widest == pytest.approx(TAU, rel=1e-6)
    else:
        assert widest <= TAU * (1 + 1e-6)
    assert start_time(sde, 0.5, width) == 0.5


def test_it_begins_later_for_wider_cells():
    assert start_time(VPSDE(), 1e-5, 2 / 16) > start_time(VPSDE(), 1e-5, 2 / 256) > 1e-5
