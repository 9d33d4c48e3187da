"""Adams-Bashforth steps of the likelihood: exact where they should be, of second order, and differentiable."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from models import F64, density, normals, ring

from scoresde import VESDE, VPSDE, FlowMatching, Noise
from scoresde.likelihood.adams import POWER, adams_step, places


def test_a_slope_that_is_linear_in_u_is_integrated_exactly():
    u = [0.0, 0.3, 1.0, 1.1]
    grid = [torch.tensor([v, 2 * v], dtype=F64) for v in u]
    for i in (1, 2):
        slope, before = 2 * grid[i] * torch.tensor([1, 2.0]), 2 * grid[i - 1] * torch.tensor([1, 2.0])
        found = adams_step(grid[i].square(), slope, before, u[i + 1] - u[i], u[i] - u[i - 1])
        assert torch.allclose(found, grid[i + 1].square(), atol=1e-14)
    first = adams_step(grid[1], torch.ones(2, dtype=F64), None, 0.5, 0.0)
    assert torch.allclose(first, grid[1] + 0.5), "the first step is Euler's"


def test_the_steps_grow_from_the_data_to_the_prior():
    ends = places(12)
    assert ends[0] == 0 and ends[-1] == 1 and ends[6] == pytest.approx(0.5**POWER)
    sizes = [b - a for a, b in pairwise(ends)]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()], ids=repr)
def test_the_order_is_two(sde):
    model, x = ring(sde), ring(sde).sample(32, torch.Generator().manual_seed(0))
    options = {"divergence": "exact", "check": False}
    best = density(model, x, rtol=1e-9, atol=1e-9, **options).log_prob
    errors = [
        float((density(model, x, scheme="adams", steps=n, **options).log_prob - best).square().mean().sqrt())
        for n in (200, 400)
    ]
    assert 3.4 < errors[0] / errors[1] < 4.8 and errors[1] < 0.01


def test_twelve_steps_cost_twelve_pairs_and_no_row_depends_on_the_batch():
    model, x, noise = ring(VPSDE()), normals(6, 2), Noise.of(6, 3)
    options = {"scheme": "adams", "steps": 12, "divergence": "difference", "check": False}
    whole = density(model, x, noise=noise, **options)
    assert whole.nfe.tolist() == [24] * 6 and whole.divergences.tolist() == [12] * 6
    order = torch.tensor([4, 0, 5])
    part = density(model, x[order], noise=noise.rows(order), batch=2, **options)
    assert float((part.log_prob - whole.log_prob[order]).abs().max()) < 1e-12
    fixed = density(model, x, noise=noise, redraw=False, **options)
    assert bool((fixed.log_prob != whole.log_prob).any())


def test_the_gradient_is_that_of_the_value():
    model, x = ring(VPSDE()), normals(3, 2).requires_grad_()
    options = {"scheme": "adams", "steps": 5, "divergence": "exact"}
    (grad,) = torch.autograd.grad(density(model, x, differentiable=True, **options).log_prob.sum(), x)
    h, away = 1e-5, torch.zeros(3, 2, dtype=F64)
    away[:, 0] = 1e-5
    high, low = (density(model, (x + s * away).detach(), check=False, **options).log_prob for s in (1, -1))
    assert torch.allclose(grad[:, 0], (high - low) / (2 * h), rtol=1e-5, atol=1e-7)
