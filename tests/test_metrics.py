"""Metrics against closed forms, and against independent implementations: SciPy's, or loops over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu, wasserstein_distance

from scoresde.core.errors import UsageError
from scoresde.metrics import (
    Moments,
    copies,
    find_copies,
    frechet,
    frechet_distance,
    jackknife,
    kernel_distance,
    median_distance,
    mmd,
    nearest_line,
    neighbourhoods,
    rows,
    sliced,
    sliced_wasserstein,
)
from scoresde.metrics.measurement import deal
from scoresde.metrics.rows import nearest, squared_distances


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
    assert sliced_wasserstein(x, y, projections=1) == pytest.approx(math.sqrt(1.0**2 + (2.0 - 1.0) ** 2), abs=0.02)


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


@pytest.mark.parametrize(("n", "m"), [(7, 5), (2, 9), (30, 40)])
def test_frechet_of_fewer_rows_than_features_is_that_of_their_moments(n, m):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 80, generator=generator, dtype=torch.float64) * 3 + 1 for k in (n, m))
    # Of moments, eigenvalues that are 0 but for rounding are rooted: half of the digits are left.
    assert frechet_distance(x, y + 2) == pytest.approx(Moments.of(x).distance(Moments.of(y + 2)), rel=1e-7)


def test_frechet_symmetry_zero_permutation_and_rotation():
    x, y = normal(60, 6, seed=1), 1.5 * normal(80, 6, seed=2) + 0.3
    a = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(a, rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x.flip(0), y) == pytest.approx(a, rel=1e-10)
    q, _ = torch.linalg.qr(normal(6, 6, seed=3))
    assert frechet_distance(x @ q, y @ q) == pytest.approx(a, rel=1e-10)


# --- rows and pairs -----------------------------------------------------------------------------------------


def test_nearest_against_a_tree_whatever_the_slabs(monkeypatch):
    x, y = normal(57, 5, seed=1) + 100, normal(83, 5, seed=2) + 100
    expected = cKDTree(y.numpy()).query(x.numpy(), k=4)
    own = cKDTree(y.numpy()).query(y.numpy(), k=4)  # the nearest of a row is itself
    for budget in (2**24, 500):
        monkeypatch.setattr(rows, "BUDGET", budget)
        distances, indices = nearest(x, y, 4)
        np.testing.assert_allclose(distances, expected[0], rtol=1e-10)
        assert (indices.numpy() == expected[1]).all()
        distances, indices = nearest(y, y, 3, same=True)
        np.testing.assert_allclose(distances, own[0][:, 1:], rtol=1e-10)
        assert (indices.numpy() == own[1][:, 1:]).all()


def test_a_copy_has_the_distance_zero_and_a_duplicate_is_a_neighbour():
    y = 1e3 * normal(30, 7, seed=1) + 1e6
    y[4] = y[9]
    distances, indices = nearest(y[[4, 20]], y, 2)
    assert distances[0].tolist() == [0, 0] and set(indices[0].tolist()) == {4, 9}
    assert distances[1, 0] == 0 < distances[1, 1]
    assert nearest(y, y, 1, same=True)[0][9] == 0
    np.testing.assert_allclose(squared_distances(y, y).sqrt(), cdist(y.numpy(), y.numpy()), rtol=1e-7, atol=0.1)


def test_more_neighbours_than_rows_are_refused():
    with pytest.raises(UsageError, match="k must be between 1 and 3, the number of rows that can be neighbours, got 4"):
        nearest(normal(4, 2), normal(4, 2), 4, same=True)


# --- the jackknife ------------------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_its_textbook_error():
    # Blocks of one row: the jackknife of a mean is exactly s / sqrt(n); of two means, the two in quadrature.
    x, y = normal(40, seed=1), 3 * normal(40, seed=2)
    blocks = deal([40], blocks=20)[0]
    means = torch.stack([x[blocks == b].mean() for b in range(20)])
    found = jackknife(lambda a: float(a.mean()), x)
    assert found.value == pytest.approx(float(x.mean()))
    assert found.stderr == pytest.approx(float(means.std() / math.sqrt(20)), rel=1e-12)
    assert found.bias == pytest.approx(0, abs=1e-12)
    both = [jackknife(lambda a, b: float(a.mean() - b.mean()), x, y, seed=s).stderr ** 2 for s in range(200)]
    expected = float(x.var() / 40 + y.var() / 40)
    assert sum(both) / 200 == pytest.approx(expected, rel=0.05)


def test_the_jackknife_finds_the_bias_of_a_variance():
    # Dividing by n makes the variance too small by sigma^2 / n; the jackknife removes all of that, for blocks of one.
    x = normal(20, seed=3)
    found = jackknife(lambda a: float(a.var(correction=0)), torch.cat([x, x]).sort().values[::2], blocks=10)
    assert found.bias < 0
    many = [jackknife(lambda a: float(a.var(correction=0)), normal(40, seed=s), blocks=20) for s in range(300)]
    assert sum(m.extrapolated for m in many) / 300 == pytest.approx(1, abs=0.03)
    assert sum(m.value for m in many) / 300 == pytest.approx(1 - 1 / 40, abs=0.03)


def test_blocks_are_of_equal_size_and_depend_on_the_seed_alone():
    a, b = deal([101, 60], blocks=20)
    assert a.bincount().tolist() == [6] + [5] * 19 and b.bincount().tolist() == [3] * 20
    assert torch.equal(deal([101], blocks=20)[0], a) and not torch.equal(deal([101], seed=1)[0], a)
    assert [int(block.max()) for block in deal([9, 100])] == [3, 3]  # two rows a block at least
    with pytest.raises(UsageError, match="at least 2 blocks"):
        deal([10], blocks=1)
    assert math.isnan(jackknife(lambda a: 1.0, normal(3)).stderr)


def test_a_measurement_shows_two_digits_of_its_error():
    shown = {(1.23456, 0.0123): "1.235 ± 0.012", (123.456, 12.3): "123 ± 12", (0.5, math.nan): "0.5",
             (1.5e-9, 2.1e-10): "1.500e-09 ± 2.1e-10"}  # fmt: skip
    for (value, stderr), text in shown.items():
        assert str(type(jackknife(lambda a: 0.0, normal(4)))(value, stderr)) == text


# --- Fréchet with its error ---------------------------------------------------------------------------------


def test_moments_of_the_reference_serve_as_well_as_its_rows():
    x, y = normal(60, 4, seed=1), 2 * normal(90, 4, seed=2)
    whole, moments = frechet(x, y), frechet(x, Moments.of(y))
    assert moments.value == pytest.approx(whole.value, rel=1e-12) and whole.value == frechet_distance(x, y)
    assert 0 < moments.stderr != whole.stderr
    with pytest.raises(UsageError, match="both sets must have the same number of features, got 5 and 4"):
        frechet(normal(10, 5), Moments.of(y))


def test_the_error_and_the_bias_of_the_frechet_distance_are_right():
    # Two Gaussians a distance 0.5 apart in each of 6 axes: 6 x 0.25, plus a bias that falls as 1/N.
    measured = [frechet(normal(150, 6, seed=s) + 0.5, normal(150, 6, seed=5000 + s)) for s in range(60)]
    values, errors = (torch.tensor([getattr(m, n) for m in measured]) for n in ("value", "stderr"))
    assert 0.8 < float(errors.square().mean().sqrt() / values.std()) < 1.3
    mean, spread = float(values.mean()), float(values.std()) / math.sqrt(60)
    assert mean - 1.5 > 3 * spread
    assert sum(m.extrapolated for m in measured) / 60 == pytest.approx(1.5, abs=3 * spread)


# --- kernel distances ---------------------------------------------------------------------------------------


def by_loops(x, y, kernel):
    """Unbiased MMD^2 from the definition: means over pairs of different rows."""
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("budget", [2**24, 60])
def test_kernel_distance_and_mmd_against_loops(monkeypatch, budget):
    monkeypatch.setattr(rows, "BUDGET", budget)
    x, y = normal(23, 5, seed=1) @ normal(5, 5, seed=2), normal(31, 5, seed=3) + 0.4
    a, b = x.numpy(), y.numpy()
    assert kernel_distance(x, y).value == pytest.approx(by_loops(a, b, lambda p, q: (p @ q / 5 + 1) ** 3), rel=1e-10)
    widths = (0.7, 3.0)

    def gaussian(p, q):
        return np.mean([np.exp(-np.sum((p - q) ** 2) / (2 * h * h)) for h in widths])

    assert mmd(x, y, bandwidths=widths).value == pytest.approx(by_loops(a, b, gaussian), rel=1e-10)


def test_the_median_heuristic_against_scipy():
    x, y = normal(40, 3, seed=1), normal(41, 3, seed=2) + 1
    both = np.concatenate([x, y])
    pairs = cdist(both, both)[np.triu_indices(81, 1)]
    assert median_distance(x, y) == pytest.approx(np.median(pairs), rel=0.01)
    assert mmd(x, y).value == mmd(x, y, bandwidths=[median_distance(x, y)]).value
    far = normal(3000, 2)
    assert median_distance(far, far, limit=100) == pytest.approx(median_distance(far, far, limit=1500), rel=0.1)


@pytest.mark.parametrize("metric", [kernel_distance, lambda x, y: mmd(x, y, bandwidths=[2.0])])
def test_the_kernel_jackknife_is_the_jackknife(metric):
    x, y = normal(50, 4, seed=1), normal(75, 4, seed=2) + 0.3
    fast, slow = metric(x, y), jackknife(lambda a, b: metric(a, b).value, x, y)
    assert fast.value == pytest.approx(slow.value, rel=1e-10)
    assert fast.stderr == pytest.approx(slow.stderr, rel=1e-8)
    assert fast.bias == pytest.approx(0, abs=0.2 * fast.stderr)


@pytest.mark.parametrize("metric", [kernel_distance, lambda x, y: mmd(x, y, bandwidths=[2.5])])
def test_kernel_distances_are_unbiased(metric):
    draws = [metric(normal(40, 6, seed=s), normal(30, 6, seed=9000 + s)) for s in range(200)]
    values = torch.tensor([d.value for d in draws])
    assert abs(float(values.mean())) < 2 * float(values.std()) / math.sqrt(200)
    assert (values < 0).any() and (values > 0).any()
    # Degenerate: the jackknife's variance is at most twice the true one, on average.
    ratio = float(torch.tensor([d.stderr for d in draws]).square().mean().sqrt() / values.std())
    assert 0.9 < ratio < 1.8


def test_the_error_of_the_kernel_distance_is_right_away_from_zero():
    draws = [kernel_distance(normal(80, 4, seed=s) + 0.7, normal(80, 4, seed=9000 + s)) for s in range(100)]
    values, errors = (torch.tensor([getattr(d, n) for d in draws]) for n in ("value", "stderr"))
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1.05, abs=0.25)
    # E (x.x'/d + 1)^3 for Gaussians is a polynomial of the means; between means m and 0, with v = m.m/d and d = 4:
    # E over pairs of (u + 1)^3 with u = x.x'/d:  E u = v,  E u^2 = v^2 + 2 v/d + 1/d,
    # E u^3 = v^3 + 6 v^2/d + 3 v/d + 6 v/d^2;  u has v = 0 between the rest.
    v, d = 0.49, 4
    third = v**3 + 6 * v**2 / d + 3 * v / d + 6 * v / d**2
    expected = third + 3 * (v**2 + 2 * v / d) + 3 * v
    cross = 3 * (v / d)  # E u^2 between the two sets is v/d + 1/d
    assert float(values.mean()) == pytest.approx(expected - 2 * cross, abs=3 * float(values.std()) / 10)


# --- neighbourhoods -----------------------------------------------------------------------------------------


def prdc_by_loops(x, y, k):
    """Precision, recall, density and coverage from their definitions."""
    xx, yy, xy = np.sort(cdist(x, x)), np.sort(cdist(y, y)), cdist(x, y)
    r_x, r_y = xx[:, k], yy[:, k]  # column 0 is the row itself
    inside = xy <= r_y
    return (
        inside.any(1).mean(), (xy <= r_x[:, None]).any(0).mean(), inside.sum() / (k * len(x)), inside.any(0).mean()
    )  # fmt: skip


def four(found):
    return [getattr(found, name) for name in ("precision", "recall", "density", "coverage")]


@pytest.mark.parametrize(("k", "budget"), [(1, 2**24), (3, 300), (5, 2**24)])
def test_neighbourhoods_against_loops(monkeypatch, k, budget):
    monkeypatch.setattr(rows, "BUDGET", budget)
    x, y = 0.8 * normal(50, 3, seed=1) + 0.5, normal(64, 3, seed=2)
    found = neighbourhoods(x, y, k=k)
    expected = prdc_by_loops(x.numpy(), y.numpy(), k)
    assert [m.value for m in four(found)] == pytest.approx(expected, rel=1e-12)
    in_x, in_y = deal([50, 64])
    without = np.array([prdc_by_loops(x[in_x != b].numpy(), y[in_y != b].numpy(), k) for b in range(20)])
    expected = np.sqrt(19 * without.var(axis=0))
    assert [m.stderr for m in four(found)] == pytest.approx(expected, rel=1e-9)


def test_neighbourhoods_in_closed_cases():
    line = torch.arange(10.0)[:, None]
    same = neighbourhoods(line, line, k=2)
    assert [m.value for m in four(same)] == [1, 1, pytest.approx(10 * 3 / 20), 1]
    apart = neighbourhoods(line + 100, line, k=2)
    assert [m.value for m in four(apart)] == [0, 0, 0, 0]
    # Two clusters of the reference, one of which the samples have: half is covered, and all are precise.
    samples = normal(200, 2, seed=1)
    both = torch.cat([normal(100, 2, seed=2), normal(100, 2, seed=3) + 100])
    found = neighbourhoods(samples, both)
    assert found.precision.value > 0.9 and found.density.value > 0.8
    assert found.recall.value == pytest.approx(0.5, abs=0.06) and found.coverage.value == pytest.approx(0.5, abs=0.06)
    # An outlier in the reference makes everything between precise; density hardly moves.
    outlier = torch.cat([normal(99, 2, seed=2), torch.full((1, 2), 1e3).double()])
    far = neighbourhoods(normal(100, 2, seed=4) + 500, outlier)
    assert far.precision.value == 1 and far.density.value == pytest.approx(1 / 5)


def test_density_is_one_and_coverage_its_combinatorial_value_for_equal_distributions():
    n, m, k = 40, 60, 5
    draws = ((normal(n, 3, seed=s).exp(), normal(m, 3, seed=5000 + s).exp()) for s in range(150))
    found = [neighbourhoods(x, y, blocks=2) for x, y in draws]
    density = torch.tensor([f.density.value for f in found])
    coverage = torch.tensor([f.coverage.value for f in found])
    missed = math.prod((m - 1 - i) / (n + m - 1 - i) for i in range(k))  # the k nearest of a point are all real
    for values, expected in ((density, 1.0), (coverage, 1 - missed)):
        assert float(values.mean()) == pytest.approx(expected, abs=3 * float(values.std()) / math.sqrt(150))


def test_neighbourhoods_of_small_sets():
    assert math.isnan(neighbourhoods(normal(6, 2), normal(6, 2, seed=1)).recall.stderr)
    with pytest.raises(UsageError, match="got k = 5 for sets of 5 and 9 rows"):
        neighbourhoods(normal(5, 2), normal(9, 2))


def test_sliced_with_its_error():
    x, y = normal(80, 3, seed=1) + 1, normal(60, 3, seed=2)
    found = sliced(x, y)
    assert found.value == sliced_wasserstein(x, y) and math.isnan(found.bias)
    measured = [jackknife(lambda a, b: sliced_wasserstein(a, b, projections=16), normal(60, 2, seed=s) + 1,
                          normal(60, 2, seed=900 + s)) for s in range(40)]  # fmt: skip
    values, errors = (torch.tensor([getattr(m, n) for m in measured]) for n in ("value", "stderr"))
    assert 0.7 < float(errors.square().mean().sqrt() / values.std()) < 1.4


# --- copies -------------------------------------------------------------------------------------------------


def test_a_planted_copy_is_flagged_and_nothing_else():
    x, train, held_out = normal(200, 6, seed=1), normal(300, 6, seed=2), normal(100, 6, seed=3)
    clean = find_copies(x, train, held_out)
    assert len(clean.flagged) == 0 and clean.exact == 0
    x[17], x[90] = train[250], train[31] + 1e-4
    found = find_copies(x, train, held_out)
    assert found.flagged.tolist() == [17, 90] and found.nearest[[17, 90]].tolist() == [250, 31]
    assert found.exact == 1 and found.p_value[17] == 0 and found.suspects[:2].tolist() == [17, 90]
    assert sorted(found.suspects.tolist()) == list(range(200))


def test_the_ratio_and_the_neighbours_against_scipy():
    x, train, held_out = normal(30, 3, seed=1), normal(80, 3, seed=2), normal(40, 3, seed=3)
    found = find_copies(x, train, held_out, k=3)
    tree = cKDTree(train.numpy())
    distance, index = tree.query(x.numpy())
    around = tree.query(train.numpy(), k=4)[0]
    assert (found.nearest.numpy() == index).all()
    np.testing.assert_allclose(found.ratio, distance / around[index, 3], rtol=1e-9)
    assert found.authenticity.value == pytest.approx((distance > around[index, 1]).mean())
    held_distance, held_index = tree.query(held_out.numpy())
    assert found.authenticity_held_out.value == pytest.approx((held_distance > around[held_index, 1]).mean())
    u = mannwhitneyu(held_distance, distance).statistic / (30 * 40)
    assert found.closer.value == pytest.approx(u, rel=1e-12)


def test_held_out_data_raise_no_flag():
    """Fresh data in place of samples, of several shapes and dimensions: a flag in about one trial of a hundred."""
    flags = 0
    for s in range(60):
        d = (1, 2, 5, 20)[s % 4]
        spread = torch.exp(normal(360, 1, seed=s)) if s % 3 == 0 else 1.0  # crowded and empty regions
        z = spread * normal(360, d, seed=1000 + s)
        found = find_copies(z[:120], z[120:280], z[280:])
        flags += len(found.flagged) > 0
        assert found.closer.value == pytest.approx(0.5, abs=5 * found.closer.stderr)
    assert flags <= 3


def test_p_values_of_new_data_are_uniform_where_they_are_small():
    small, count = 0, 0
    for s in range(40):
        z = normal(500, 3, seed=s)
        found = find_copies(z[:200], z[200:400], z[400:])
        small, count = small + int((found.p_value < 0.02).sum()), count + 200
    assert small / count == pytest.approx(0.02, abs=0.006)


def test_a_copy_of_a_repeated_training_row_is_found():
    train = normal(200, 4, seed=1)
    train[1] = train[2] = train[0]
    x = normal(50, 4, seed=2)
    x[7], x[8] = train[0], train[0] + 1e-5
    found = find_copies(x, train, normal(60, 4, seed=3))
    assert found.flagged.tolist() == [7, 8]


def test_copies_prove_nothing_where_real_data_repeat():
    train, held_out, x = normal(100, 2, seed=1), normal(50, 2, seed=2), normal(60, 2, seed=3)
    held_out[3], x[5] = train[10], train[20]
    found = find_copies(x, train, held_out)
    assert len(found.flagged) == 0 and (found.exact, found.exact_held_out) == (1, 1)
    assert float(found.p_value[5]) == pytest.approx(2 / 51)


def test_one_line_on_the_nearest_training_samples_against_scipy():
    x, train, held_out = normal(30, 3, seed=1), normal(800, 3, seed=2), normal(40, 3, seed=3)
    line = nearest_line(x.reshape(30, 1, 3), train.reshape(800, 1, 3), held_out.reshape(40, 1, 3), lambda z: 2 * z)
    tree = cKDTree(2 * train.numpy())
    ours, theirs = (float(torch.tensor(tree.query(2 * z.numpy())[0]).median()) for z in (x, held_out))
    assert line == (
        f"distance to the nearest training sample: {ours:.3g} for samples, {theirs:.3g} for held-out samples "
        "(medians of 30 and 40); samples closer than new data would be: none"
    )
    x[3] = train[17]
    x[4, 0] = torch.nan
    x[5] = train[90] + 1e-5
    line = nearest_line(x, train, held_out)
    assert "(medians of 29 and 40); exact copies: 1 among samples, 0 among held-out samples; " in line
    assert line.endswith("samples closer than new data would be: 2")


def test_the_line_says_what_few_rows_allow():
    x, train = normal(5, 3, seed=1), normal(50, 3, seed=2)
    few = nearest_line(x, train, normal(4, 3, seed=3))
    assert few.endswith("for held-out samples (medians of 5 and 4)")
    assert nearest_line(x, train, train[:0]).endswith("for samples (medians of 5)")
    assert "2 training samples (got 0 and 50)" in nearest_line(x * torch.nan, train, train)
    assert "exact copies: 5 among samples, 5 among held-out samples" in nearest_line(train[:5], train[:7], train[:5])


def test_the_line_is_that_of_large_data_looked_at_in_part(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (600, 1, 40, 40), generator=generator, dtype=torch.uint8)
    held_out = torch.randint(0, 256, (50, 1, 40, 40), generator=generator, dtype=torch.uint8)
    x = torch.randint(0, 256, (30, 1, 40, 40), generator=generator).float()
    x[2] = train[400]  # a copy is found by the numbers that are looked at, and measured by all
    x[3] = train[401]
    x[3, 0, 0, 1] += 1  # which is not among those
    line = nearest_line(x, train, held_out)
    assert "exact copies: 1 among samples, 0 among held-out samples; samples closer than new data would be: 2" in line
    true = cdist(x.flatten(1), train.flatten(1)).min(1)
    assert float(line.split(": ")[1].split()[0]) == pytest.approx(float(np.median(true)), rel=0.02)
    monkeypatch.setattr(copies, "READ", 200 * 1600)
    assert "against one in 3 training samples)" in nearest_line(x, train, held_out)
    assert "exact copies" not in nearest_line(x, train, held_out)  # no. 400 is not among them


def test_copies_refuse():
    x = normal(30, 3)
    with pytest.raises(UsageError, match="the same shape"):
        find_copies(x, normal(30, 4), x)
    with pytest.raises(UsageError, match="19 held-out and 30 training rows"):
        find_copies(x, x, x[:19])
    with pytest.raises(UsageError, match="level"):
        find_copies(x, x, x, level=0)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric", [sliced_wasserstein, frechet_distance, frechet, sliced, kernel_distance, mmd, neighbourhoods]
)
def test_refusals(metric):
    x = normal(10, 4)
    with pytest.raises(UsageError, match="shape"):
        metric(x, normal(10, 5))
    with pytest.raises(UsageError, match="y must have at least 2 rows, got 1"):
        metric(x, x[:1])
    bad = x.clone()
    bad[3, 1], bad[3, 2], bad[7, 0] = math.nan, math.inf, -math.inf
    with pytest.raises(UsageError, match=r"x has non-finite values \(3 in total, the first in row 3"):
        metric(bad, x)
    with pytest.raises(UsageError, match="y has non-finite values"):
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
        with pytest.raises(UsageError, match=r"p is (0\.5|nan)"):
            sliced_wasserstein(x, x, p=p)
    with pytest.raises(UsageError, match="flatten"):
        frechet_distance(x.reshape(10, 2, 2), x.reshape(10, 2, 2))
    with pytest.raises(UsageError, match="degree"):
        kernel_distance(x, x, degree=0)
    for widths in ([], [0.0], [-1.0, 2.0]):
        with pytest.raises(UsageError, match="one or more positive numbers"):
            mmd(x, x, bandwidths=widths)
    with pytest.raises(UsageError, match="the median row distance"):
        mmd(torch.ones(10, 2), torch.ones(10, 2))


def test_a_set_is_at_no_distance_from_itself_and_never_below():
    assert min(frechet_distance(normal(30, 64, seed=s), normal(30, 64, seed=s)) for s in range(6)) >= 0


def test_the_length_of_a_kernel_is_that_of_the_whole_set_and_not_of_its_head():
    x = torch.arange(4000.0)[:, None]
    assert median_distance(x, x, limit=1000) == pytest.approx(1172, rel=0.01)
