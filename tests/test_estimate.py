"""The 2 x 2 system: every parametrisation of the same truth gives the same estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from models import ALL, CHECKS, F64, PUBLISHED, normals

from scoresde import (
    EDM,
    SDE,
    VESDE,
    VPSDE,
    X0,
    Eps,
    Estimate,
    FlowMatching,
    Likelihood,
    Noise,
    Score,
    ScoreModel,
    V,
    Velocity,
    elbo,
    sample,
)  # fmt: skip
from scoresde.core.errors import UsageError
from scoresde.core.registry import fields_of, resolve
from scoresde.core.shapes import expand
from scoresde.core.tables import SOLVERS
from scoresde.nn import MLP
from scoresde.objective.loss import denoising_loss

PARAMETRIZATIONS = [Eps(), X0(), V(), Score(), Velocity(), EDM(), EDM(data_std=0.4)]


def truth(sde, dtype=F64, high=0.99):
    t = torch.linspace(max(sde.t_min, 0.01), high, 16, dtype=F64)
    x0, eps = normals(16, 5, dtype=dtype), normals(16, 5, seed=1, dtype=dtype)
    return t, x0, eps, sde.perturb(x0, t, eps)


@pytest.mark.parametrize("p", PARAMETRIZATIONS, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_round_trip(name, p):
    sde = ALL[name]
    t, x0, eps, x = truth(sde)
    a, b = p.target(sde, t)
    estimate = p.solve(sde, x, t, expand(a, x) * x0 + expand(b, x) * eps)
    assert torch.allclose(estimate.x0, x0, rtol=0, atol=1e-9)
    assert torch.allclose(estimate.eps, eps, rtol=0, atol=1e-9)
    alpha, sigma = sde.coefficients(t)
    assert torch.allclose(expand(alpha, x) * estimate.x0 + expand(sigma, x) * estimate.eps, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("p", [V(), Velocity(), EDM()], ids=str)
def test_float32_is_exact_enough_on_the_straight_path_up_to_both_ends(p):
    sde = FlowMatching()
    t = torch.tensor([1e-5, 1e-3, 0.5, 0.999, 1.0], dtype=F64)
    x0, eps = normals(5, 4, dtype=torch.float32), normals(5, 4, seed=1, dtype=torch.float32)
    a, b = p.target(sde, t)
    x = sde.perturb(x0, t, eps)
    estimate = p.solve(sde, x, t, expand(a, x) * x0 + expand(b, x) * eps)
    assert bool(torch.isfinite(estimate.x0).all()) and bool(torch.isfinite(estimate.velocity).all())
    assert torch.allclose(estimate.x0, x0, rtol=0, atol=2e-6)


def test_edm_target_is_the_published_preconditioning():
    # Karras et al. 2022, tab. 1, on the path alpha = 1: D = c_skip x + c_out F.
    sde, s = ALL["user_ve"], 0.5
    t, x0, eps, x = truth(sde)
    sigma = sde.coefficients(t)[1]
    c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / torch.sqrt(sigma**2 + s**2)
    p = EDM(data_std=s)
    f = (x0 - expand(c_skip, x) * x) / expand(c_out, x)
    a, b = p.target(sde, t)
    assert torch.allclose(expand(a, x) * x0 + expand(b, x) * eps, f, rtol=1e-10, atol=1e-12)
    assert torch.allclose(p.input_scale(sde, t), 1 / torch.sqrt(sigma**2 + s**2), rtol=1e-12)
    assert torch.allclose(p.label(sde, t), sigma.log() / 4, rtol=1e-12, atol=1e-14)


def test_the_label_ends_where_training_still_draws():
    # A step from alpha = 0 must not ask at a label of its own: of 1,000 uniform times two or three share it.
    sde = FlowMatching()
    t = torch.linspace(0, 1, 1_001, dtype=F64)[1:]
    label = Velocity().label(sde, t)
    assert float(label[-1]) == 1.5 and 2 <= int((label == label[-1]).sum()) <= 3
    within = torch.logit(t) < 6  # sigma = e^6 alpha
    torch.testing.assert_close(label[within], torch.logit(t)[within] / 4, rtol=1e-12, atol=1e-14)
    # Paths that keep some of the data end where they end.
    wide = VESDE(sigma_max=5000.0)
    assert float(Velocity().label(wide, torch.tensor([1.0], dtype=F64))) == pytest.approx(math.log(5000) / 4, rel=1e-6)
    for other, end in ((VPSDE(), 0.25 * math.log(math.expm1(10.05) ** 0.5)), (VESDE(), math.log(50) / 4)):
        label = Velocity().label(other, torch.tensor([other.t_max], dtype=F64))
        torch.testing.assert_close(float(label), end, rtol=1e-6, atol=0)


def test_edm_target_has_unit_variance_for_data_of_its_std():
    for sde in ALL.values():
        t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=F64)
        a, b = EDM(data_std=0.4).target(sde, t)
        assert torch.allclose((0.4 * a) ** 2 + b**2, torch.ones_like(t), rtol=1e-10)


@pytest.mark.parametrize("name", PUBLISHED)
def test_c05_reverse_sde_and_probability_flow_coefficients(name):
    # For the score s(x, t) = -x: velocity = (f + g^2/2) x, and with eta = g the reverse drift is (f + g^2) x.
    sde, x = PUBLISHED[name], torch.ones(1, 1, dtype=F64)
    for row in CHECKS["C05"]["expected"][name]:
        t = torch.tensor(row["t"], dtype=F64)
        alpha, sigma = sde.coefficients(t)
        eps = sigma * x
        estimate = Estimate(x, t, (x - sigma * eps) / alpha, eps, sde)
        g = sde.diffusion(t)
        scale = max(1.0, row["diffusion"] ** 2)
        assert float(estimate.velocity) == pytest.approx(row["pf_ode_drift_over_x"], rel=1e-12, abs=1e-12 * scale)
        reverse = float(estimate.velocity - g**2 / 2 * estimate.score)
        assert reverse == pytest.approx(row["reverse_sde_drift_over_x"], rel=1e-12, abs=1e-12 * scale)
        assert float(g) == pytest.approx(row["diffusion"], rel=1e-12)


def test_velocity_is_the_sde_form_of_the_probability_flow():
    # f x - g^2 score / 2, wherever f and g are finite.
    for sde in ALL.values():
        t, x0, eps, x = truth(sde, high=0.9)
        estimate = Estimate(x, t, x0, eps, sde)
        other = sde.drift(x, t) - expand(sde.diffusion_squared(t) / 2, x) * estimate.score
        assert torch.allclose(estimate.velocity, other, rtol=1e-9, atol=1e-9)


def test_a_score_network_is_scaled_and_weighted_as_published():
    # score_sde divides the output by sigma and weights by sigma^2: the loss is then |raw + eps|^2, of unit size.
    class One(torch.nn.Module):
        def forward(self, x, c, cond=None):
            return torch.ones_like(x)

    sde = VPSDE()
    model = ScoreModel(One(), sde, Score())
    t, x0, eps, x = truth(sde)
    losses = denoising_loss(model, x0, t, eps, weighting=Score.weighting)
    assert torch.allclose(losses, (1 + eps).square().mean(1), rtol=1e-10)
    assert torch.allclose(model(x, t).score, expand(1 / sde.sigma(t), x).expand_as(x), rtol=1e-9)


def test_eps_and_score_networks_are_not_asked_where_nothing_of_the_data_is_left():
    network = MLP(dims=2, width=8, blocks=1)
    for p, t_max in ((Eps(), 0.999), (Score(), 0.999), (V(), 1.0), (Velocity(), 1.0), (X0(), 1.0), (EDM(), 1.0)):
        assert ScoreModel(network, FlowMatching(), p).domain.t_max == t_max
        assert ScoreModel(network, VPSDE(), p).domain.t_max == 1.0


# ------------------------------------------------------------------------------------------------- down to no noise


class _From(SDE):
    """What paths of these tests share: where they begin."""

    t_min = 0.0


@dataclass(frozen=True)
class Sine(_From):
    """Noise that begins like t."""

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class Root(_From):
    """Noise that begins like the root of t, at an infinite rate."""

    def alpha(self, t):
        return torch.sqrt(1 - 0.999 * t)

    def sigma(self, t):
        return torch.sqrt(0.999 * t)


@dataclass(frozen=True)
class Growing(_From):
    """Nothing is shrunk."""

    def alpha(self, t):
        return 1.0

    def sigma(self, t):
        return 20 * t


class Rough(torch.nn.Module):
    """A network that is right nowhere."""

    def forward(self, x, c, cond=None):
        return 0.3 * torch.sin(x) + 0.1 * c[:, None]


STEPPING = [
    n
    for n in SOLVERS
    if "steps" in fields_of(resolve(n, SOLVERS)) and n not in ("torchsde", "original", "particles", "tuned")
]


@pytest.mark.parametrize("sde", [Sine(), Root(), Growing()], ids=repr)
@pytest.mark.parametrize("predict", [Eps(), X0(), V(), Score(), Velocity(), EDM()], ids=repr)
def test_a_path_down_to_no_noise_is_finite_whatever_is_predicted(sde, predict):
    model = ScoreModel(Rough(), sde, predict)
    low = model.domain.t_min
    assert low == 0 or float(sde.log_snr(torch.tensor(low, dtype=F64))) == pytest.approx(2 * math.log(1e5))
    assert (low == 0) is not (isinstance(predict, X0 | Score) or (isinstance(predict, Velocity) and sde == Root()))
    for name in STEPPING:
        found = sample(model, resolve(name, SOLVERS)(steps=3), (2,), Noise.of(4))
        assert bool(found.ok.all()), name
    x = normals(4, 2).float()
    for t in model.domain.interval("train"):
        assert bool(denoising_loss(model, x, torch.full((4,), t, dtype=F64), x.flip(0)).isfinite().all())
    for how in (Likelihood(steps=4), Likelihood(steps=4, divergence="difference")):
        assert bool(how(model, x, check=False).log_prob.isfinite().all())
    if low == 0:
        with pytest.raises(UsageError, match=r"has no noise at t = 0; use a larger t_min"):
            elbo(model, x)
    assert bool(elbo(model, x, t_min=max(low, 1e-5)).log_prob.isfinite().all())


@pytest.mark.parametrize("t_min", [1e-300, 1e-30])
def test_noise_that_no_arithmetic_tells_from_none_is_refused(t_min):
    @dataclass(frozen=True)
    class Tiny(Growing):
        pass

    Tiny.t_min = t_min
    with pytest.raises(UsageError, match="set t_min = 1e-5"):
        Tiny()
