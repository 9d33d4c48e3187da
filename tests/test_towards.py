"""SDEs whose data drift towards a known signal: the published processes, stated in z = x - y."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import F64, normals
from scipy.special import expi

from scoresde import BBED, OUVE, Bridge, GaussianMixture, Likelihood, MeanReverting, Noise
from scoresde.core.errors import UsageError
from scoresde.sde.grids import make_grid
from scoresde.solvers import Ancestral, EulerMaruyama, MultistepSDE, PredictorCorrector, ProbabilityFlow

PATHS = {"mean-reverting": MeanReverting(), "ouve": OUVE(), "bbed": BBED(), "bridge": Bridge(0.8)}
T = torch.linspace(1e-5, 0.999, 801, dtype=F64)


def published(name: str, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the mean's factor on x_0, the standard deviation, the drift rate towards y and g, as published."""
    s = t.numpy()
    if name == "mean-reverting":
        theta, integral = 0.1 + 10.4 * s, 0.1 * s + 5.2 * s**2
        std = 0.392 * np.sqrt(1 - np.exp(-2 * integral))
        found = np.exp(-integral), std, theta, np.sqrt(2 * theta) * 0.392
    elif name == "ouve":  # sgmse: exp_interp and _std
        log = math.log(10)
        std = np.sqrt(0.05**2 * np.exp(-3 * s) * (np.exp(2 * (1.5 + log) * s) - 1) * log / (1.5 + log))
        found = np.exp(-1.5 * s), std, 1.5 + 0 * s, 0.05 * 10**s * math.sqrt(2 * log)
    elif name == "bbed":
        k, c = 2.6, 0.52
        ei = expi(2 * (s - 1) * math.log(k)) - expi(-2 * math.log(k))
        std = (1 - s) * c * np.sqrt((k ** (2 * s) - 1 + s) / (1 - s) + math.log(k ** (2 * k**2)) * ei)
        found = 1 - s, std, 1 / (1 - s), c * k**s
    else:  # I2SB with a constant beta: the variance S^2 s (1 - s) of a bridge pinned at both ends
        found = 1 - s, 0.8 * np.sqrt(s * (1 - s)), 1 / (1 - s), 0.8 + 0 * s
    return tuple(torch.from_numpy(np.broadcast_to(v, s.shape).copy()) for v in found)


@pytest.mark.parametrize("name", PATHS)
def test_mean_deviation_drift_and_diffusion_are_the_published_ones(name):
    sde, (mean, std, rate, g) = PATHS[name], published(name, T)
    alpha, sigma = sde.coefficients(T)
    assert float((alpha - mean).abs().max()) < 1e-14
    assert float((sigma - std).abs().max()) < 1e-13  # the published forms cancel near t = 0
    assert float((sde.drift_rate(T) / -rate - 1).abs().max()) < 1e-12
    assert float((sde.diffusion(T) / g - 1).abs().max()) < 1e-12


@pytest.mark.parametrize("name", PATHS)
def test_simulating_the_published_process_gives_the_stated_moments(name):
    sde, y, x0, count, steps, end = PATHS[name], 0.7, -0.4, 20_000, 500, 0.5
    x, t = torch.full((count,), x0, dtype=F64), torch.linspace(0, end, steps + 1, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    _, _, rate, g = published(name, (t[1:] + t[:-1]) / 2)
    for i in range(steps):
        h = t[i + 1] - t[i]
        z = torch.randn(count, generator=generator, dtype=F64)
        x = x + h * rate[i] * (y - x) + g[i] * h.sqrt() * z
    alpha, sigma = (float(c) for c in sde.coefficients(t[-1]))
    error = float(x.std()) / math.sqrt(count)
    assert abs(float(x.mean()) - (y + alpha * (x0 - y))) < 3 * error
    assert abs(float(x.std()) - sigma) < 3 * error / math.sqrt(2)


def known(name: str) -> GaussianMixture:
    """Return the exact model of z = x - y for one y, where (x, y) is a Gaussian and y is a noisy copy of x."""
    root = normals(4, 4, seed=2) / 2
    covariance, noise = root @ root.mT + 0.05 * torch.eye(4, dtype=F64), 0.3**2 * torch.eye(4, dtype=F64)
    y = normals(1, 4, seed=3)
    gain = covariance @ torch.linalg.inv(covariance + noise)
    rest = covariance - gain @ covariance
    return GaussianMixture(PATHS[name], y @ gain.mT - y, covariances=((rest + rest.mT) / 2)[None])


@pytest.mark.parametrize("name", PATHS)
def test_euler_steps_of_the_published_reverse_process_are_ours(name):
    model, sde, noise = known(name), PATHS[name], Noise.of(6)
    y = normals(1, 4, seed=3)
    low, high = model.domain.interval("sample")
    times = make_grid("uniform", sde, 40, high, low)
    z = sde.prior.sample(noise, (4,), F64)
    ours = EulerMaruyama(40, level="g", grid="uniform")(model, z, noise=noise).x + y
    x, (_, std, rate, g) = z + y, published(name, times)
    for i in range(40):
        t, s, h = float(times[i]), float(times[i + 1]), times[i] - times[i + 1]
        # dx = [ rate (y - x) - g^2 score ] dt + g dw, where the score is that of p_t(x | y)
        score = -model(x - y, t).eps / std[i]
        x = x - h * (rate[i] * (y - x) - g[i] ** 2 * score) + g[i] * h.sqrt() * noise.between(t, s, (4,), i, F64)
    assert float((x - ours).abs().max()) < 1e-12


@pytest.mark.parametrize("name", PATHS)
def test_log_density_given_the_known_signal(name):
    model, sde = known(name), PATHS[name]
    x = model.sample(4, torch.Generator().manual_seed(0))
    found = Likelihood(rtol=1e-8, atol=1e-8, divergence="exact")(model, x)
    exact = model.log_prob(x, sde.t_min)
    less = found.log_prob - sde.prior.log_prob(found.z) + model.log_prob(found.z, sde.t_max)
    assert float((less - exact).abs().max()) < 1e-6
    # What the prior costs: OUVE begins with a noticeable part of the difference between data and signal.
    cost = float((found.log_prob - exact).abs().max())
    assert cost > 0.1 if name == "ouve" else cost < 0.1


def divergence(x, model):
    mean, c = model.means[0], model.covariances[0]
    m, s = x.mean(0), torch.cov(x.mT)
    white = torch.linalg.solve(c, s)
    return float((torch.trace(white) - len(c) - torch.logdet(white) + (m - mean) @ torch.linalg.solve(c, m - mean)) / 2)


@pytest.mark.parametrize(
    "solver",
    [ProbabilityFlow(rtol=1e-4), MultistepSDE(60), PredictorCorrector(200), Ancestral(400)],
    ids=["ode", "sde", "pc", "ancestral"],
)
@pytest.mark.parametrize("name", ["mean-reverting", "bbed", "bridge"])
def test_samples_given_the_known_signal(name, solver):
    model, noise = known(name), Noise.of(6000)
    x = solver(model, model.sde.prior.sample(noise, (4,), F64), noise=noise).x
    assert divergence(x, model) < 0.004  # 6,000 true draws: 0.0012


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OUVE(sigma_min=1.0), "sigma_min < sigma_max"),
        (lambda: BBED(k=0.5), "k is"),
        (lambda: MeanReverting(noise=0.0), "noise is"),
        (lambda: MeanReverting(theta_min=0.0, theta_max=0.0), "theta_max is"),
    ],
)
def test_bad_parameters_are_named(make, words):
    with pytest.raises(UsageError, match=words):
        make()
