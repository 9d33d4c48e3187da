"""The loss is denoising score matching: value, gradient, floor."""

from __future__ import annotations

import math

import pytest
import torch
from models import ALL, CHECKS, F64, PUBLISHED, normals
from torch import nn

from scoresde import EDM, VPSDE, X0, Eps, Score, ScoreModel, V, Velocity
from scoresde.core.errors import UsageError
from scoresde.core.shapes import expand
from scoresde.nn import MLP
from scoresde.objective.loss import denoising_loss
from scoresde.objective.times import LowDiscrepancy, Setting

PARAMETRIZATIONS = [Eps(), X0(), V(), Score(), Velocity(), EDM(data_std=0.5)]


def model_of(sde, p, dims=3):
    torch.manual_seed(0)
    network = MLP(dims=dims, width=8, blocks=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return ScoreModel(network, sde, p).double()


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("p", PARAMETRIZATIONS, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_score_matching_is_noise_prediction_in_value_and_gradient(name, p):
    """sigma^2 |score + eps/sigma|^2 = |eps_hat - eps|^2 = our loss with weighting `eps`, whatever the output."""
    sde = ALL[name]
    model = model_of(sde, p)
    t = torch.linspace(0.05, 0.95, 12, dtype=F64)
    x0, eps = normals(12, 3), normals(12, 3, seed=1)
    x = sde.perturb(x0, t, eps)
    alpha, sigma = (expand(c, x) for c in sde.coefficients(t))
    estimate = model(x, t)
    grad_log_p = -(x - alpha * x0) / sigma**2
    score_matching = (sigma**2 * (estimate.score - grad_log_p) ** 2).mean(1)
    noise_prediction = (estimate.eps - eps).square().mean(1)
    ours = denoising_loss(model, x0, t, eps, weighting="eps")
    assert torch.allclose(score_matching, noise_prediction, rtol=1e-9)
    assert torch.allclose(ours, noise_prediction, rtol=1e-9)
    expected = gradients(model, score_matching.mean())
    assert torch.allclose(gradients(model, ours.mean()), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("p", PARAMETRIZATIONS, ids=str)
def test_likelihood_weighting_is_g_squared(p):
    sde = VPSDE()
    model = model_of(sde, p)
    t = torch.linspace(0.05, 0.95, 12, dtype=F64)
    x0, eps = normals(12, 3), normals(12, 3, seed=1)
    sigma = expand(sde.coefficients(t)[1], x0)
    error = (model(sde.perturb(x0, t, eps), t).score + eps / sigma).square().mean(1)
    ours = denoising_loss(model, x0, t, eps, weighting="likelihood")
    assert torch.allclose(ours, sde.diffusion_squared(t) * error, rtol=1e-9)


def test_native_weighting_is_the_regression_of_the_output():
    sde, p = VPSDE(), V()
    model = model_of(sde, p)
    t, x0, eps = torch.linspace(0.1, 0.9, 4, dtype=F64), normals(4, 3), normals(4, 3, seed=1)
    alpha, sigma = (expand(c, x0) for c in sde.coefficients(t))
    output = model.output(sde.perturb(x0, t, eps), t)
    assert torch.allclose(denoising_loss(model, x0, t, eps), (output - (alpha * eps - sigma * x0)).square().mean(1))


class ExactEps(nn.Module):
    """The optimal eps-network for N(mu, s0^2): it reads the noise level off its label."""

    def __init__(self, sde, mu, s0):
        super().__init__()
        self.sde, self.mu, self.s0 = sde, mu, s0

    def forward(self, x, c, cond=None):
        t = self.sde.t_of_log_snr(-8 * c)
        alpha, sigma = (expand(k, x) for k in self.sde.coefficients(t))
        x = x * torch.hypot(alpha, sigma)  # undo the input scale
        return sigma * (x - alpha * self.mu) / (alpha**2 * self.s0**2 + sigma**2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_c11_loss_floor(name):
    check, sde, n = CHECKS["C11"], PUBLISHED[name], 400_000
    model = ScoreModel(ExactEps(sde, check["inputs"]["mu"], check["inputs"]["s0"]), sde, Eps())
    generator = torch.Generator().manual_seed(0)
    x0 = 0.3 + 0.5 * torch.randn(n, 1, generator=generator, dtype=F64)
    eps = torch.randn(n, 1, generator=generator, dtype=F64)
    expected = check["expected"][name]

    t, _ = LowDiscrepancy().over(Setting(sde, 1e-5, 1.0)).draw(n, generator)
    losses = denoising_loss(model, x0, t, eps)
    error = float(losses.std()) / math.sqrt(n)
    assert float(losses.mean()) == pytest.approx(expected["min_std_weighted_per_dim"], abs=3 * error)

    # log-uniform times, re-weighted to uniform ones: with uniform times the estimate is far too noisy near 0
    u = torch.rand(n, generator=generator, dtype=F64)
    t = torch.exp(math.log(1e-5) * (1 - u))
    losses = denoising_loss(model, x0, t, eps, weighting="likelihood") * t * -math.log(1e-5)
    error = float(losses.std()) / math.sqrt(n)
    assert float(losses.mean()) == pytest.approx(expected["min_likelihood_weighted_per_dim"], abs=3 * error)


def test_unknown_names_are_refused():
    model = model_of(VPSDE(), Eps())
    with pytest.raises(UsageError, match="likelihood"):
        denoising_loss(model, normals(2, 3), torch.full((2,), 0.5), normals(2, 3), weighting="likelyhood")
