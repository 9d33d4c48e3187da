"""Metrics against closed forms, and against an independent matrix square root."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from scoresde.errors import UsageError
from scoresde.metrics import frechet_distance, sliced_wasserstein


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: torch.Tensor, root: torch.Tensor, seed: int, n: int = 200) -> torch.Tensor:
    """Rows whose sample mean and sample covariance are exactly ``mean`` and ``root @ root.T``."""
    z = normal(n, len(mean), seed=seed)
    z = z - z.mean(dim=0)
    q, _ = torch.linalg.qr(z)
    return mean + math.sqrt(n - 1) * q @ root.T


# --- sliced Wasserstein -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_one_dimensional_shift(p):
    x = normal(101, 1)
    assert sliced_wasserstein(x, x - 2.5, p=p, projections=3) == pytest.approx(2.5, rel=1e-12)


def test_one_dimensional_scale():
    x = normal(1000, 1)
    expected = 0.7 * float(x.square().mean().sqrt())  # W2(x, 1.7 x) = 0.7 rms(x)
    assert sliced_wasserstein(x, 1.7 * x, projections=3) == pytest.approx(expected, rel=1e-12)


def test_one_dimensional_normals_approach_the_closed_form():
    x, y = normal(200_000, 1, seed=1), 1.0 + 2.0 * normal(200_000, 1, seed=2)
    assert sliced_wasserstein(x, y, projections=1) == pytest.approx(
        math.sqrt(1.0**2 + (2.0 - 1.0) ** 2), abs=0.02
    )


@pytest.mark.parametrize("d", [2, 8, 48])
def test_shift_is_divided_by_root_d(d):
    x = normal(50, d)
    m = normal(d, seed=3)
    measured = sliced_wasserstein(x, x + m, projections=20_000)
    # E[(u.m)^2] = |m|^2 / d with relative deviation at most sqrt(2 / projections).
    assert measured == pytest.approx(float(m.norm()) / math.sqrt(d), rel=0.03)


def test_shifted_normals_sampled_independently():
    d, m = 4, torch.tensor([2.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    x, y = normal(5000, d, seed=1), normal(5000, d, seed=2) + m
    assert sliced_wasserstein(x, y, projections=1000) == pytest.approx(3.0 / math.sqrt(d), rel=0.05)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 14), (12, 5), (31, 17)])
def test_unequal_sizes_against_scipy(n, m):
    x, y = normal(n, 1, seed=1), normal(m, 1, seed=2) + 0.5
    expected = wasserstein_distance(x.ravel().numpy(), y.ravel().numpy())
    assert sliced_wasserstein(x, y, p=1, projections=2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_repeating_rows_changes_nothing(p):
    x, y = normal(9, 3, seed=1), normal(6, 3, seed=2)
    a = sliced_wasserstein(x, y, p=p)
    assert sliced_wasserstein(x.repeat(4, 1), y, p=p) == pytest.approx(a, rel=1e-12)
    assert sliced_wasserstein(x, y.repeat(3, 1), p=p) == pytest.approx(a, rel=1e-12)
    assert sliced_wasserstein(x, x.repeat(5, 1), p=p) == pytest.approx(0, abs=1e-13)


def test_sliced_symmetry_zero_and_permutation():
    x, y = normal(40, 2, 3, 3, seed=1), normal(30, 2, 3, 3, seed=2)
    a = sliced_wasserstein(x, y)
    assert a > 0
    assert sliced_wasserstein(y, x) == pytest.approx(a, rel=1e-12)
    assert sliced_wasserstein(x, x) == 0
    shuffled = x[torch.randperm(40, generator=torch.Generator().manual_seed(5))]
    assert sliced_wasserstein(shuffled, y) == pytest.approx(a, rel=1e-12)
    assert sliced_wasserstein(x.flatten(1), y.flatten(1)) == a


def test_seed_decides_and_the_global_generator_is_left_alone():
    x, y = normal(20, 5, seed=1), normal(20, 5, seed=2)
    state = torch.get_rng_state()
    once, again, other = (sliced_wasserstein(x, y, projections=10, seed=seed) for seed in (1, 1, 2))
    assert once == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_float32_is_computed_in_float64():
    x = (normal(1000, 1) + 1e4).float()
    assert sliced_wasserstein(x, x + 1, projections=1) == pytest.approx(
        float((x + 1 - x).double().square().mean().sqrt()), rel=1e-9
    )


# --- Fréchet ------------------------------------------------------------------------------------------------


def test_frechet_commuting_covariances():
    m1, m2 = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, -1.0]).double()
    s1, s2 = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.1, 0.5]).double()
    x, y = with_moments(m1, s1.diag(), seed=1), with_moments(m2, s2.diag(), seed=2)
    expected = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_frechet_non_commuting_covariances_in_the_plane():
    # tr (S1 S2)^{1/2} in two dimensions is sqrt(tr(S1 S2) + 2 sqrt(det S1 det S2)).
    r1 = torch.tensor([[2.0, 0.0], [0.5, 1.0]]).double()
    r2 = torch.tensor([[1.0, -0.9], [0.0, 0.3]]).double()
    s1, s2 = r1 @ r1.T, r2 @ r2.T
    assert not torch.allclose(s1 @ s2, s2 @ s1)
    cross = math.sqrt(float((s1 @ s2).trace()) + 2 * math.sqrt(float(s1.det() * s2.det())))
    zero = torch.zeros(2).double()
    measured = frechet_distance(with_moments(zero, r1, seed=1), with_moments(zero + 1, r2, seed=2))
    assert measured == pytest.approx(2 + float(s1.trace() + s2.trace()) - 2 * cross, rel=1e-10)


@pytest.mark.parametrize("d", [1, 3, 16])
def test_frechet_against_scipy(d):
    x, y = normal(300, d, seed=1) @ normal(d, d, seed=2), normal(200, d, seed=3) @ normal(d, d, seed=4) + 1
    s1, s2 = np.cov(x.numpy().T).reshape(d, d), np.cov(y.numpy().T).reshape(d, d)
    mean = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    expected = mean + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_singular_covariances():
    # Two lines in R^3 at an angle: S_i = v_i v_i^T gives tr (S1 S2)^{1/2} = |v1.v2|.
    t = normal(50, 1)
    t = (t - t.mean()) / t.std()
    v1, v2 = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.0, 1.0, -3.0]).double()
    expected = float(v1 @ v1 + v2 @ v2 - 2 * (v1 @ v2).abs())
    assert frechet_distance(t * v1, t * v2) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(t * v1, t * v1) == pytest.approx(0, abs=1e-12)
    few = normal(5, 40)  # fewer rows than features
    assert frechet_distance(few, few + 0.5) == pytest.approx(40 * 0.25, rel=1e-9)
    constant = torch.ones(10, 3)
    assert frechet_distance(constant, constant + 2) == pytest.approx(12)


def test_frechet_symmetry_zero_permutation_and_rotation():
    x, y = normal(60, 6, seed=1), 1.5 * normal(80, 6, seed=2) + 0.3
    a = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(a, rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x.flip(0), y) == pytest.approx(a, rel=1e-10)
    q, _ = torch.linalg.qr(normal(6, 6, seed=3))
    assert frechet_distance(x @ q, y @ q) == pytest.approx(a, rel=1e-10)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [sliced_wasserstein, frechet_distance])
def test_refusals(metric):
    x = normal(10, 4)
    with pytest.raises(UsageError, match="shape"):
        metric(x, normal(10, 5))
    with pytest.raises(UsageError, match="y has 1 rows"):
        metric(x, x[:1])
    bad = x.clone()
    bad[3, 1], bad[3, 2], bad[7, 0] = math.nan, math.inf, -math.inf
    with pytest.raises(UsageError, match="x has 3 values that are not finite, the first in row 3"):
        metric(bad, x)
    with pytest.raises(UsageError, match="y has 3 values"):
        metric(x, bad)
    with pytest.raises(UsageError):
        metric(x[:, 0], x[:, 0])
    with pytest.raises(UsageError):
        metric(x[:, :0], x[:, :0])


def test_refused_options():
    x = normal(10, 4)
    with pytest.raises(UsageError, match="projections"):
        sliced_wasserstein(x, x, projections=0)
    for p in (0.5, math.nan):
        with pytest.raises(UsageError, match="order p"):
            sliced_wasserstein(x, x, p=p)
    with pytest.raises(UsageError, match="flatten"):
        frechet_distance(x.reshape(10, 2, 2), x.reshape(10, 2, 2))
