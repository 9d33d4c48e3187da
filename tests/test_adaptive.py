"""The adaptive SDE solver: the right law, a step of its own for each sample, one path whatever is rejected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from models import ALL, F64, Poisoned, gaussian, normals, ring, watched
from solving import prior

from scoresde import VESDE, VPSDE, Noise
from scoresde.core.errors import UsageError
from scoresde.metrics import sliced_wasserstein
from scoresde.model.estimate import Estimate, Wrapped
from scoresde.ode.integrate import FAILED_LIMIT, FAILED_NONFINITE, FAILED_UNDERFLOW, OK
from scoresde.solvers import AdaptiveSDE, sample

# ----------------------------------------------------------------------------------------------------------------- law


@pytest.mark.parametrize("name", ["vp", pytest.param("ve", marks=pytest.mark.slow), "flow"])
def test_moments_of_a_gaussian(name):
    n, model = 60, gaussian(ALL[name], dims=32)
    solved = AdaptiveSDE(rtol=0.1, atol=0.1)(model, prior(name, n, 32), noise=Noise.of(n, 3))
    assert bool(solved.ok.all())
    assert float(solved.x.mean()) == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(32 * n))
    assert float(solved.x.std()) == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"eta": 0.5}, {"level": "sigma"}], ids=str
)
def test_the_ring_at_any_noise_level(options):
    n, model = 200, ring(VPSDE())
    solver = AdaptiveSDE(rtol=0.1, atol=0.1, **options)
    x = sample(model, solver, (2,), Noise.of(n, 3), dtype=F64, batch=n).x
    floor = sliced_wasserstein(*(model.sample(n, torch.Generator().manual_seed(k)) for k in (1, 2)))
    want = model.sample(n, torch.Generator().manual_seed(3))
    assert sliced_wasserstein(x, want) < 2 * floor


def test_a_smaller_tolerance_costs_more_and_errs_less():
    # On one path: against the solution at the smallest tolerance.
    model, z, noise = ring(VPSDE(), std=0.3), normals(12, 2), Noise.of(12, 3)
    solved = [AdaptiveSDE(rtol=r, atol=r)(model, z, noise=noise) for r in (0.5, 0.2, 0.07)]
    nfe = [float(s.nfe.double().mean()) for s in solved]
    assert nfe[0] < nfe[1] < nfe[2]
    off = [float((s.x - solved[2].x).norm(dim=1).median()) for s in solved[:2]]
    assert off[1] < off[0]


# ------------------------------------------------------------------------------------------------------ steps and path


def test_the_first_step_is_the_published_one():
    # Jolicoeur-Martineau et al. 2021, arXiv:2105.14080, alg. 1, with one path for both rules: Euler-Maruyama x', Heun's
    # x'', err = rms((x' - x'')/max(atol, rtol max(|x|, |x''|))) and h <- 0.9 h err^-0.9, within a factor of 5.
    model, x, noise, h, tol = ring(VPSDE()), normals(6, 2), Noise.of(6, 3), 1 / 128, 0.02  # few binary digits
    solved = AdaptiveSDE(rtol=tol, atol=tol, first=h)(model, x, t1=0.9, noise=noise, record=True)
    w = noise.path(1 - h, (2,)) - noise.path(1.0, (2,))
    t, s = (torch.tensor(v, dtype=F64) for v in (1.0, 1 - h))
    beta = [0.1 + 19.9 * v for v in (1.0, 1 - h)]

    def drift(at, x, b):
        return -b / 2 * x - b * model(x, at).score  # f x - g^2 score

    first = drift(t, x, beta[0])
    euler = x - h * first + math.sqrt(beta[0]) * w
    heun = x - h / 2 * (first + drift(s, euler, beta[1])) + math.sqrt(sum(beta) / 2) * w
    allowed = torch.clamp(tol * torch.maximum(x.abs(), heun.abs()), min=tol)
    err = ((euler - heun) / allowed).square().mean(1).sqrt()
    then = h * (0.9 * err**-0.9).clamp(0.2, 5)
    assert bool((err <= 1).any())
    for row in (err <= 1).nonzero().flatten().tolist():
        times, states = solved.trajectory.times(row), solved.trajectory.states(row)
        assert float(times[1]) == 1 - h and float((states[1] - heun[row]).abs().max()) < 1e-10
        # The next step is this long, unless it was rejected.
        assert float(times[1] - times[2]) <= float(then[row]) * (1 + 1e-6)


@dataclass(frozen=True)
class Nothing(Wrapped):
    """A model on VE that says eps = 0: what is left of the reverse SDE is its noise."""

    def __call__(self, x, t):
        return Estimate(x, torch.as_tensor(t, dtype=F64), x, torch.zeros_like(x), self.domain.sde)


def test_a_rejected_step_is_done_again_on_the_same_path():
    # Without drift an accepted step adds sqrt((g_t^2 + g_s^2)/2) (W(s) - W(t)), so that the end tells which W it was.
    # Fresh noise after a rejection, which large |W| provoke, would favour small ones.
    model, n = Nothing(ring(VESDE())), 28
    noise = Noise.of(n, 5)
    solved = AdaptiveSDE(rtol=0.1, atol=0.1, first=0.3)(model, torch.zeros(n, 2, dtype=F64), noise=noise, record=True)
    assert float(solved.rejected.double().mean()) > 1
    for row in range(0, n, 7):
        times = solved.trajectory.times(row)
        level = VESDE().diffusion(times).square()
        path = torch.stack([noise.rows(torch.tensor([row])).path(float(t), (2,))[0] for t in times])
        sizes = torch.sqrt((level[1:] + level[:-1]) / 2)
        expected = (sizes[:, None] * torch.diff(path, dim=0)).sum(0)
        assert torch.allclose(solved.x[row], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [pytest.param("vp", marks=pytest.mark.slow), "flow"])
def test_a_sample_alone_is_the_sample_in_a_batch(name):
    model, z, noise = ring(ALL[name]), prior(name, 8, 2), Noise.of(8, 3)
    solver = AdaptiveSDE(rtol=0.15, atol=0.15)
    batch = solver(model, z, noise=noise)
    assert len(set(batch.nfe.tolist())) > 1
    for row in (0, 5):
        index = torch.tensor([row])
        alone = solver(model, z[index], noise=noise.rows(index))
        assert float((alone.x[0] - batch.x[row]).abs().max()) < 1e-12
        for count in ("nfe", "accepted", "rejected", "status"):
            assert int(getattr(alone, count)) == int(getattr(batch, count)[row])


def test_rounding_does_not_choose_another_sample():
    # What another batch size, device or BLAS does to the last digit.
    model, z, noise = ring(VPSDE()), normals(8, 2), Noise.of(8, 3)
    solver = AdaptiveSDE(rtol=0.3, atol=0.3)
    one, other = (solver(model, x, noise=noise) for x in (z, z * (1 + 1e-13)))
    assert torch.equal(one.nfe, other.nfe) and float((one.x - other.x).abs().max()) < 1e-8


def test_evaluations_are_counted_for_each_sample():
    # Two a step; a rejected one keeps the first, and costs one.
    model, z = watched(ring(VPSDE())), normals(16, 2)
    solved = AdaptiveSDE(rtol=0.2, atol=0.2, first=0.2)(model, z, noise=Noise.of(16, 3))
    assert int(solved.rejected.sum()) > 0
    assert torch.equal(solved.nfe, 2 * solved.accepted + solved.rejected)
    assert int(solved.nfe.sum()) == sum(model.evaluations)


@pytest.mark.parametrize("name", [pytest.param("vp", marks=pytest.mark.slow), "ve", "flow"])
def test_it_arrives_and_stays_in_the_domain(name):
    model = watched(ring(ALL[name]))
    low, high = model.domain.interval("sample")
    solved = AdaptiveSDE(rtol=0.3, atol=0.3)(model, prior(name, 8, 2), noise=Noise.of(8), record=True)
    assert bool(solved.ok.all())
    asked = torch.cat([t for t in model.times])
    assert float(asked.min()) >= low and float(asked.max()) == high
    for row in range(8):
        times = solved.trajectory.times(row)
        assert float(times[0]) == high and float(times[-1]) == low and bool((torch.diff(times) < 0).all())


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_limit_is_a_limit():
    solved = AdaptiveSDE(max_nfe=40)(ring(VPSDE()), normals(6, 2), noise=Noise.of(6, 3))
    assert solved.status.tolist() == [FAILED_LIMIT] * 6
    assert int(solved.nfe.max()) <= 40 and bool(torch.isfinite(solved.x).all())
    assert "limit on evaluations" in solved.failures()[0]


def test_a_tolerance_below_the_path_is_an_underflow():
    solved = AdaptiveSDE(rtol=1e-9, atol=1e-9)(ring(VPSDE()), normals(4, 2), noise=Noise.of(4, 3))
    assert solved.status.tolist() == [FAILED_UNDERFLOW] * 4
    assert bool(torch.isfinite(solved.x).all())


def test_a_row_of_nan_stops_and_the_others_go_on():
    model, z, noise = ring(VPSDE()), normals(5, 2), Noise.of(5, 3)
    solver = AdaptiveSDE(rtol=0.3, atol=0.3)
    solved = solver(Poisoned(model, torch.arange(5) == 2), z, noise=noise)
    assert solved.status.tolist() == [OK, OK, FAILED_NONFINITE, OK, OK]
    others = torch.tensor([0, 1, 3, 4])
    assert float((solved.x - solver(model, z, noise=noise).x)[others].abs().max()) < 1e-12


def test_an_interval_may_be_any_part_of_the_way():
    model, z, noise = ring(VPSDE()), normals(8, 2), Noise.of(8, 3)
    solved = AdaptiveSDE(rtol=0.1, atol=0.1, first=0.5)(model, z, t0=0.6, t1=0.55, noise=noise, record=True)
    assert bool(solved.ok.all())
    for row in range(8):
        assert float(solved.trajectory.step_sizes(row).sum()) == pytest.approx(0.05, abs=1e-12)


def test_options_that_cannot_be_are_refused():
    for options, words in (
        ({"rtol": 0.0}, "rtol"), ({"atol": -1.0}, "atol"), ({"first": 0.0}, "first"), ({"eta": -1.0}, "eta"),
        ({"level": "score"}, "auto"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            AdaptiveSDE(**options)
    with pytest.raises(UsageError, match="from noise to data"):
        AdaptiveSDE()(ring(VPSDE()), normals(2, 2), t0=0.1, t1=0.9)
