"""Damped Langevin dynamics in position and velocity, with models that know the position alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from models import ALL, F64, OnNodes, gaussian, normals, ring, small_network
from scipy.integrate import solve_ivp
from solving import marginal, prior, slopes
from torch import Tensor

from scoresde import DDPM, SDE, VPSDE, FlowMatching, GaussianMixture, Guided, Noise, convert, sample
from scoresde.core.errors import UsageError
from scoresde.model.estimate import Wrapped
from scoresde.solvers import Phase
from scoresde.solvers.phase import Damped, _lift, _weights, phase_score

PROCESSES = [Damped(), Damped(0.01), Damped(0.0, 0.0), Damped(1.0, 1.0)]
CLOCKS = torch.tensor([1e-4, 1e-2, 0.1, 0.5, 1.0, 2.0, 4.0], dtype=F64)


# -------------------------------------------------------------------------------------------------------------- process


def integrated(process: Damped, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance from the differential equations of the moments."""
    a, w = process.friction, 2.0
    c = a + 2 * w
    drift, noise = np.array([[-a, w], [-w, -c]]), np.diag([2 * a, 2 * c])

    def f(_, y):
        m, s = y[:2], y[2:].reshape(2, 2)
        return np.concatenate([drift @ m, (drift @ s + s @ drift.T + noise).ravel()])

    start = np.array([1.0, 0.0, 0.0, 0.0, 0.0, process.gamma])
    y = solve_ivp(f, (0, b), start, "DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    return y[:2], y[2:].reshape(2, 2)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_moments_solve_their_differential_equations(process):
    moments = process.moments(CLOCKS)
    for i, b in enumerate(CLOCKS.tolist()):
        mean, cov = integrated(process, b)
        assert np.abs(moments.mean[i].numpy() - mean).max() < 1e-10
        assert np.abs(moments.cov[i].numpy() - cov).max() < 1e-10


def test_cld_is_the_published_process():
    # Dockhorn et al.: dx = v/M b dt, dv = -x b dt - G v/M b dt + sqrt(2 G b) dw, with b = 4, 1/M = 4, G = 1, to t = 1.
    beta, inverse, friction = 4.0, 4.0, 1.0
    drift = beta * np.array([[0, inverse], [-1, -friction * inverse]])
    noise = np.diag([0, 2 * friction * beta])
    y = np.array([1, 0, 0, 0, 0, 0.04 / inverse])

    def f(_, y):
        s = y[2:].reshape(2, 2)
        return np.concatenate([drift @ y[:2], (drift @ s + s @ drift.T + noise).ravel()])

    y = solve_ivp(f, (0, 1), y, "DOP853", rtol=1e-12, atol=1e-15).y[:, -1]
    units = np.array([1, math.sqrt(inverse)])  # v in units of sqrt(M)
    found = Damped().moments(torch.tensor([beta], dtype=F64))
    assert np.abs(found.mean[0].numpy() - units * y[:2]).max() < 1e-10
    assert np.abs(found.cov[0].numpy() - y[2:].reshape(2, 2) * np.outer(units, units)).max() < 1e-10
    assert float(found.tau[0]) == pytest.approx(247.5, abs=0.1)


def test_the_critical_damping_of_psld_is_the_published_one():
    # Pandey and Mandt: (Gamma - nu)^2 = 4/M with 1/M = 4, Gamma = 0.01 and nu = 4.01.
    process = Phase(kind="psld").process
    assert process.friction + 2 * 2.0 == pytest.approx(4.01) and process.friction == 0.01


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_noise_level_is_that_of_all_that_u_says(process):
    moments = process.moments(CLOCKS)
    information = [float(m @ np.linalg.inv(s) @ m) for m, s in (integrated(process, b) for b in CLOCKS.tolist()[2:])]
    assert moments.tau[2:].tolist() == pytest.approx([i**-0.5 for i in information], rel=1e-7)
    assert float(((moments.reading * moments.mean).sum(1) * moments.tau - 1).abs().max()) < 1e-12


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_clock_inverts_the_noise_level(process):
    tau = torch.logspace(-12, 6, 400, dtype=F64)
    b = process.clock(tau)
    assert bool((b.diff() > 0).all())
    assert float((process.moments(b).tau / tau - 1).abs().max()) < 1e-11


# ---------------------------------------------------------------------------------------------------------------- score


@pytest.mark.parametrize("kind", ["cld", "psld"])
@pytest.mark.parametrize("name", ["vp", "ve", "flow", "subvp"])
def test_the_score_is_that_of_the_mixture_in_phase_space(name, kind):
    model, process = ring(ALL[name]), Phase(kind=kind).process
    for t in (0.02, 0.3, 0.6, 0.95):
        alpha, sigma = model.sde.coefficients(torch.tensor([t], dtype=F64))
        _, moments = process.on(alpha, sigma)
        m, s = moments.mean[0], moments.cov[0]
        # Each component is Gaussian in (x, v), with the covariance S + std^2 m m^T for each axis of the plane.
        cov = s + model.stds[0] ** 2 * torch.outer(m, m)
        u = (m[:, None] * model.sample(64, torch.Generator().manual_seed(0))[:, None]) + torch.einsum(
            "ij,bjd->bid", torch.linalg.cholesky(s), normals(64, 2, 2)
        )

        def log_density(u: Tensor, m: Tensor = m, cov: Tensor = cov, model: GaussianMixture = model) -> Tensor:
            off = u[:, None] - m[:, None] * model.means[:, None]
            form = torch.einsum("bkid,ij,bkjd->bk", off, torch.linalg.inv(cov), off)
            return torch.logsumexp(-form / 2, 1).sum()

        truth = torch.func.grad(log_density)(u)
        found = phase_score(model, u, t, process)
        assert float((found - truth).abs().max() / truth.abs().max()) < 1e-12
        rows = phase_score(model, u, torch.full((64,), t, dtype=F64), process)
        assert float((rows - found).abs().max() / truth.abs().max()) < 1e-12


# ---------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("spacing", ["few", "many"])
def test_steps_with_a_known_x0_keep_its_moments(process, spacing):
    tau = torch.logspace(3, -4, 8 if spacing == "few" else 2000, dtype=F64)
    b = process.clock(tau)
    moments = process.moments(b)
    pull, keep, kick = _weights(process, b, moments)
    mean = (keep @ moments.mean[:-1, :, None])[:, :, 0] + pull
    cov = keep @ moments.cov[:-1] @ keep.mT + kick @ kick.mT
    size = moments.cov[1:].diagonal(dim1=1, dim2=2).sqrt()
    assert float(((mean - moments.mean[1:]).abs() / size).max()) < 1e-8
    assert float(((cov - moments.cov[1:]).abs() / (size[:, :, None] * size[:, None, :])).max()) < 1e-8


@dataclass(frozen=True)
class Pairs(Noise):
    """Noise of 0, except that row 2 is 1 where the velocity is drawn, and row 3 + 2 k + j in component j of step k."""

    def normal(self, shape, step=0, stream="solver", dtype=torch.float32):
        z = torch.zeros(len(self.indices), *shape, dtype=dtype)
        if stream == "velocity":
            z[2] = 1
        return z

    def between(self, t, s, shape, step, dtype=torch.float32):
        z = torch.zeros(len(self.indices), *shape, dtype=dtype)
        for j in (0, 1):
            z[3 + 2 * step + j, j] = 1
        return z


def moments_of(solver: Phase, model: GaussianMixture, start: tuple[float, float]) -> tuple[float, float]:
    """The exact mean and variance at the end for 1-D Gaussian data, for which all steps are affine."""
    rows = 3 + 2 * solver.steps
    x = torch.zeros(rows, 1, dtype=F64)
    x[1] = 1
    end = solver(model, x, noise=Pairs(0, torch.arange(rows))).x[:, 0]
    gains = end[1:] - end[0]
    return float(end[0] + gains[0] * start[0]), float(gains[0] ** 2 * start[1] + gains[1:].square().sum())


@pytest.mark.parametrize("kind", ["cld", "psld"])
@pytest.mark.parametrize("name", ["vp", "ve", "flow", "subvp"])
def test_a_point_is_sampled_exactly_with_any_number_of_steps(name, kind):
    model = gaussian(ALL[name], dims=1, mean=0.3, std=0.0)
    low, high = model.domain.interval("sample")
    for steps in (1, 2, 17):
        mean, variance = moments_of(Phase(steps, kind), model, marginal(model, high))
        assert mean == pytest.approx(marginal(model, low)[0], abs=1e-9)
        assert variance == pytest.approx(marginal(model, low)[1], rel=1e-7)


@pytest.mark.parametrize("kind", ["cld", "psld"])
@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_weak_order(name, kind):
    model = gaussian(ALL[name], dims=1, mean=0.3, std=0.5)
    low, high = model.domain.interval("sample")
    truth, off = marginal(model, low)[1], []
    for steps in (200, 400):
        off.append(abs(moments_of(Phase(steps, kind, grid="logsnr"), model, marginal(model, high))[1] / truth - 1))
    assert off[1] < 0.06 and slopes(off)[0] == pytest.approx(1, abs=0.15)


def test_the_start_says_of_the_data_what_the_state_says():
    # A state in phase space drawn for x at t, and read back, is x. Its covariance given x_0 is S.
    for process in PROCESSES:
        for tau in (1e-3, 1.0, 100.0):
            _, moments = process.on(torch.ones(1, dtype=F64), torch.tensor([tau], dtype=F64))
            one, none = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
            kept, drawn = _lift(one, moments, tau, none), _lift(none, moments, tau, one)
            reading = tau * moments.reading[0]
            assert float(reading @ torch.cat(kept)) == pytest.approx(1, abs=1e-10)
            scale = float(reading.abs() @ torch.cat(drawn).abs())
            assert abs(float(reading @ torch.cat(drawn))) < 1e-10 * scale
            n, q = tau * torch.cat(kept), torch.cat(drawn)
            assert float((torch.outer(n, n) + torch.outer(q, q) - moments.cov[0]).abs().max()) < 1e-10


# -------------------------------------------------------------------------------------------------------------- samples


SLOWER = [("ve", "cld"), ("flow", "cld"), ("vp", "psld")]


@pytest.mark.parametrize(
    ("name", "kind"), [("vp", "cld"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOWER)]
)
def test_the_density_of_samples_is_that_of_the_mixture(name, kind):
    model = ring(ALL[name])
    truth = float(model.log_prob(model.sample(100_000, torch.Generator().manual_seed(0))).mean())
    found = sample(model, Phase(400, kind), (2,), Noise.of(2000), dtype=F64, batch=2000)
    assert float(model.log_prob(found.x).mean()) == pytest.approx(truth, abs=0.06)
    assert int(found.nfe[0]) == 401


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_row_alone_is_the_row_in_a_batch(dtype):
    model = ring(VPSDE())
    whole = sample(model, Phase(20), (2,), Noise.of(9, seed=4), dtype=dtype)
    for row in (0, 5, 8):
        alone = sample(model, Phase(20), (2,), Noise.of(1, seed=4, start=row), dtype=dtype)
        assert torch.equal(alone.x[0], whole.x[row])
    split = sample(model, Phase(20), (2,), Noise.of(9, seed=4), dtype=dtype, batch=2)
    assert torch.equal(split.x, whole.x)


def test_any_path_with_the_same_noise_levels_gives_the_same_samples():
    # Phase space knows noise levels only, so a path is no more than the labels of its times.
    model, times = ring(VPSDE()), torch.linspace(0.99, 0.01, 30, dtype=F64)
    other = convert(model, FlowMatching())
    levels = VPSDE().log_snr(times)
    theirs = FlowMatching().t_of_log_snr(levels)
    x, noise = prior("vp", 6, 2), Noise.of(6)
    (a0, _), (a1, _) = (FlowMatching().coefficients(t) for t in (theirs[0], theirs[-1]))
    (b0, _), (b1, _) = (VPSDE().coefficients(t) for t in (times[0], times[-1]))
    ours = Phase(grid=tuple(times.tolist()))(model, x, t0=0.99, t1=0.01, noise=noise).x
    grid = tuple(theirs.tolist())
    found = Phase(grid=grid)(other, x * a0 / b0, t0=grid[0], t1=grid[-1], noise=noise).x
    assert float((found / a1 - ours / b1).abs().max()) < 1e-8


def test_on_a_brownian_path_more_steps_refine_the_same_samples():
    model, x = gaussian(VPSDE(), dims=1), prior("vp", 30, 1)
    noise = Noise.of(30, brownian=True)
    ends = [Phase(n, grid="logsnr")(model, x, noise=noise).x for n in (10, 20, 40)]
    moved = [float((b - a).abs().median()) for a, b in pairwise(ends)]
    assert moved[0] > 1.3 * moved[1]


def test_chains_guided_models_and_conditions():
    chain = OnNodes(ring(DDPM(50)))
    asked = []

    @dataclass(frozen=True)
    class Asked(Wrapped):
        def __call__(self, x, t):
            asked.append(float(t))
            return self.model(x, t)

    found = sample(Asked(chain), Phase(10), (2,), Noise.of(3), dtype=F64)
    assert bool(found.ok.all()) and {round(50 * t, 9) % 1 for t in asked} == {0.0}
    network = small_network(classes=3)
    guided = Guided(network.given(1), network, 3.0)
    for model in (network.given(torch.tensor([0, 1, 2])), guided, convert(guided, FlowMatching())):
        assert bool(sample(model, Phase(5), (3,), Noise.of(3), dtype=F64).ok.all())
    assert sample(guided, Phase(5), (3,), Noise.of(3), dtype=F64).nfe.tolist() == [12, 12, 12]


def test_the_trajectory_is_on_the_path_of_the_model():
    model = gaussian(VPSDE(), dims=1)
    x = normals(4000, 1)
    found = Phase(60)(model, x, noise=Noise.of(4000), record=True)
    states = torch.stack([found.trajectory.states(i) for i in range(4000)])
    times = found.trajectory.times(0)
    for k in (15, 30, 50):
        mean, variance = marginal(model, float(times[k]))
        assert float(states[:, k].mean()) == pytest.approx(mean, abs=5 * (variance / 4000) ** 0.5)
        assert float(states[:, k].var()) == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("event", [(), (3,), (1, 4, 4)])
def test_any_shape_of_event(event):
    model = GaussianMixture(VPSDE(), torch.zeros(1, *event, dtype=F64), torch.ones(1, dtype=F64)) if event else None
    if model is None:
        model = replace(gaussian(VPSDE(), dims=1), means=torch.zeros(1, dtype=F64))
    assert sample(model, Phase(5), event, Noise.of(3), dtype=F64).x.shape == (3, *event)


# ------------------------------------------------------------------------------------------------------------- refusals


@dataclass(frozen=True)
class Coupled(Wrapped):
    @property
    def domain(self):
        return replace(self.model.domain, has_score=False)

    def __call__(self, x, t):
        return self.model(x, t)


class Bands(SDE):
    """A path with a noise level for each of two elements."""

    def __post_init__(self):
        pass

    def coefficients(self, t):
        t = t.reshape(-1, 1) * torch.tensor([1.0, 0.5], dtype=F64)
        return 1 - t, t

    def alpha(self, t):
        return self.coefficients(t)[0]

    def sigma(self, t):
        return self.coefficients(t)[1]


def test_what_it_refuses():
    model, x = ring(VPSDE()), normals(3, 2)
    with pytest.raises(UsageError, match="Phase needs the score"):
        Phase(5)(Coupled(model), x)
    with pytest.raises(UsageError, match="phase_score needs a model with a score"):
        phase_score(Coupled(model), normals(3, 2, 2), 0.5)
    with pytest.raises(UsageError, match="Phase runs from noise to data"):
        Phase(5)(model, x, t0=0.1, t1=0.9)
    with pytest.raises(UsageError, match="outside the model's domain"):
        Phase(5)(model, x, t0=1.5)
    with pytest.raises(UsageError, match=r"unknown kind 'clt'; did you mean 'cld'"):
        Phase(kind="clt")
    with pytest.raises(UsageError, match="Phase: gamma is 2"):
        Phase(gamma=2.0)
    with pytest.raises(UsageError, match="Bands has separate noise levels for the elements") as error:
        Phase(5, grid="uniform").stepper(replace(model, sde=Bands()), torch.linspace(1, 0.1, 6, dtype=F64), Noise.of(3))
    assert error.value.value == "sde"
