"""The paths against the published formulas, 40-digit values and each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from models import ALL, CHECKS, F64, FOUR, PUBLISHED, gaussian, gaussian_flow, normals, ring

from scoresde import (
    EDMSDE,
    SDE,
    VDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    Multistep,
    Noise,
    ProbabilityFlow,
    SubVPSDE,
    log_likelihood,
    sample,
)
from scoresde.core.errors import UsageError
from scoresde.core.registry import resolve
from scoresde.core.tables import SOLVERS
from scoresde.sde.grids import make_grid
from scoresde.solvers.level import auto_level

T = torch.linspace(1e-5, 1 - 1e-9, 1001, dtype=F64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_c01_marginals_float64(name):
    for row in CHECKS["C01"]["expected"][name]:
        mean, std = PUBLISHED[name].marginal(torch.ones(1, 3, dtype=F64), row["t"])
        assert torch.allclose(mean, torch.tensor(row["mean_coeff"], dtype=F64), rtol=1e-12, atol=0)
        assert float(std) == pytest.approx(row["std"], rel=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_float32_cancellation_in_the_marginal_std(name):
    # The defect of the original: 1 - exp(-B) in float32 is 0.6 % (VP) and 1.2 % (sub-VP) off at t = 1e-5.
    for row in CHECKS["C01"]["expected"][name]:
        alpha, sigma = PUBLISHED[name].coefficients(torch.tensor(row["t"], dtype=torch.float32))
        assert float(alpha) == pytest.approx(row["mean_coeff"], rel=1e-6)
        assert float(sigma) == pytest.approx(row["std"], rel=1e-6)


def test_float32_cancellation_is_real():
    t = torch.tensor(1e-5)
    naive = torch.sqrt(1 - torch.exp(-VPSDE().integral(t)))
    assert abs(float(naive) / CHECKS["C01"]["expected"]["vp"][0]["std"] - 1) > 5e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_c02_drift_and_diffusion(name):
    for row in CHECKS["C02"]["expected"][name]:
        drift = PUBLISHED[name].drift(torch.ones(2, 3, dtype=F64), row["t"])
        assert torch.allclose(drift, torch.tensor(row["drift_over_x"], dtype=F64), rtol=1e-12, atol=1e-15)
        assert float(PUBLISHED[name].diffusion(row["t"])) == pytest.approx(row["diffusion"], rel=1e-12)


@dataclass(frozen=True)
class Steep(SDE):
    """A user's path on which nothing of the data is left, in floating point, long before t = 1."""

    rate: float = 400.0

    def alpha(self, t):
        return torch.exp(-self.rate * t.square() / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.rate * t.square()))


STEEP = [*(kind(beta_max=b) for kind in (VPSDE, SubVPSDE) for b in (100.0, 150.0, 400.0, 1e4)), Steep(), Steep(5e3)]


@pytest.mark.parametrize("sde", [*ALL.values(), *STEEP], ids=str)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_clock_and_its_inverse_meet_at_both_ends_and_beyond(sde, dtype):
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=F64)
    r = sde.ratio(ends).to(dtype)
    assert sde.t_of_ratio(r)[1] == sde.t_max and sde.finite(sde.t_min, sde.t_max)
    beyond = sde.t_of_ratio(torch.tensor([0.0, 1.0], dtype=dtype))
    assert torch.allclose(beyond.to(F64), ends, rtol=torch.finfo(dtype).eps, atol=0)
    t = torch.linspace(sde.t_min, sde.t_max, 101, dtype=F64)
    found = sde.t_of_ratio(sde.ratio(t).to(dtype))
    assert bool((found.diff() >= 0).all())
    # where r tells times apart, it does so to rounding; where it has come to 1, it cannot
    assert torch.allclose(sde.ratio(found.to(F64)), sde.ratio(t), rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("sde", STEEP[:-2], ids=str)
def test_the_log_snr_of_a_steep_path_is_finite_and_comes_back(sde):
    t = torch.linspace(0.01, 1, 101, dtype=F64)
    assert bool(sde.log_snr(t).isfinite().all())
    assert torch.allclose(sde.t_of_log_snr(sde.log_snr(t)), t, rtol=1e-12)
    beyond = sde.t_of_log_snr(torch.tensor([-math.inf, math.inf], dtype=F64)).clamp(max=1)
    assert beyond.tolist() == pytest.approx([1, 0], abs=1e-9)
    assert bool(sde.drift_rate(t).isfinite().all()) and bool(sde.diffusion(t).isfinite().all())


def test_a_path_whose_noise_does_not_grow_at_first_comes_back_from_no_noise():
    assert float(VPSDE(beta_min=0.0).t_of_log_snr(torch.tensor(math.inf, dtype=F64))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sde", STEEP, ids=str)
def test_the_flow_of_a_steep_path_is_solved_to_the_closed_form(sde):
    model, low, z = gaussian(sde, dims=2), sde.times("sample")[0], normals(4, 2)
    found = ProbabilityFlow(rtol=1e-6)(model, z)
    assert bool(found.ok.all())
    assert torch.allclose(found.x, gaussian_flow(model, z, 1.0, low), atol=1e-4)
    scored = log_likelihood(model, z, Likelihood(rtol=1e-6), check=False)
    assert torch.allclose(scored.log_prob, model.log_prob(z, sde.t_min), atol=1e-4)


@pytest.mark.parametrize("sde", [VPSDE(beta_max=400.0), SubVPSDE(beta_max=1e4), Steep()], ids=str)
@pytest.mark.parametrize("name", ["multistep", "singlestep", "dpm++3s", "er-sde", "ancestral", "pc"])
def test_every_solver_comes_through_where_nothing_of_the_data_is_left(sde, name):
    # Most of 400 steps lie where alpha is 0 or next to it; what is left suffices for a rough law.
    model, solver, n = gaussian(sde, dims=2), resolve(name, SOLVERS)(steps=400), 100
    found = sample(model, solver, (2,), Noise.of(n), dtype=F64, batch=n)
    assert bool(found.ok.all()), found.failures()
    assert float(found.x.std()) == pytest.approx(0.5, rel=0.25)


@dataclass(frozen=True)
class Lost(Steep):
    """A user's path with an inverse of its own that is wrong at the noisy end."""

    def t_of_log_snr(self, log_snr):
        return torch.where(log_snr < -20, torch.nan, SDE.t_of_log_snr(self, log_snr))


def test_a_path_that_is_no_number_is_blamed_for_it_and_not_the_model():
    model, z = gaussian(Lost(), dims=2), normals(2, 2)
    found = ProbabilityFlow()(model, z, t0=0.4)
    assert not bool(found.ok.any()) and "the path, not the model, is NaN" in found.failures()[0]
    scored = log_likelihood(model, z, check=False)
    assert not bool(scored.ok.any()) and "the path, not the model, is NaN" in scored.failures()[0]


MORE = {"cosine": CosineSDE(), "trigonometric": CosineSDE(offset=0.0), "edm": EDMSDE(), "vdm": VDMSDE()}


@pytest.mark.parametrize("sde", [*FOUR.values(), *MORE.values()], ids=str)
def test_rates_in_closed_form_are_the_derivatives(sde):
    # Automatic differentiation of VDM's sigmoid cancels near the data; the others agree to rounding.
    rtol = 1e-9 if isinstance(sde, VDMSDE) else 1e-12
    for closed, derived in zip(sde.rates(T), SDE.rates(sde, T), strict=True):
        assert torch.allclose(closed, derived, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("sde", MORE.values(), ids=str)
def test_the_times_of_a_log_snr_in_closed_form(sde):
    assert float((sde.t_of_log_snr(SDE.log_snr(sde, T)) - T).abs().max()) < 1e-12
    assert float((SDE.t_of_log_snr(sde, SDE.log_snr(sde, T)) - T).abs().max()) < 1e-9


def test_the_cosine_path_is_the_published_one():
    # Nichol and Dhariwal 2021, eq. 17: alpha_bar = f(t)/f(0), f = cos((t + s)/(1 + s) pi/2)^2, s = 0.008.
    f = torch.cos((T + 0.008) / 1.008 * math.pi / 2) ** 2
    bar = f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    alpha, sigma = CosineSDE().coefficients(T)
    assert torch.allclose(alpha**2, bar, rtol=1e-12, atol=1e-15)
    assert torch.allclose(sigma**2, 1 - bar, rtol=1e-9, atol=1e-15)
    # In float32 near the data, where 1 - bar has no digit left.
    early = torch.tensor(1e-5)
    assert float(CosineSDE().sigma(early)) == pytest.approx(float(CosineSDE().sigma(early.double())), rel=1e-6)
    assert torch.allclose(CosineSDE(offset=0.0).sigma(T), torch.sin(math.pi / 2 * T), rtol=1e-12)


def test_edm_levels_are_those_of_its_sampler():
    # Karras et al. 2022, eq. 5 with 18 levels from 80 to 0.002.
    i = torch.arange(18, dtype=F64) / 17
    levels = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = make_grid("auto", EDMSDE(), 17, 1.0, 1e-5)
    assert torch.allclose(EDMSDE().sigma(1 - i), levels, rtol=1e-12)
    assert torch.allclose(EDMSDE().sigma(times)[:-1], levels[:-1], rtol=1e-3)  # it ends at t = 1e-5, not 0


def test_vdm_is_linear_in_log_snr_and_keeps_the_variance():
    alpha, sigma = VDMSDE().coefficients(T)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(T), rtol=1e-14)
    assert torch.allclose(2 * torch.log(alpha / sigma), 13.3 - 18.3 * T, rtol=1e-12)


@pytest.mark.parametrize(
    "sde", [pytest.param(sde, marks=pytest.mark.slow if sde == CosineSDE(offset=0.0) else ()) for sde in MORE.values()],
    ids=str,
)  # fmt: skip
def test_the_other_paths_are_sampled_and_scored(sde):
    # The ring, encoded to the prior's end and back, and its likelihood; the prior's own error is small on all of them.
    model, x = ring(sde), ring(sde).sample(16, torch.Generator().manual_seed(0))
    low, high = sde.times("sample")
    flow = ProbabilityFlow(rtol=1e-6, atol=1e-6)
    back = flow(model, flow(model, x, t0=low, t1=high).x, t0=high, t1=low).x
    assert float((back - x).abs().max()) < 1e-4
    error = log_likelihood(model, x, Likelihood(rtol=1e-5, atol=1e-5), check=False).log_prob - model.log_prob(x)
    assert float(error.abs().mean()) < 1e-2
    for steps in (8, 40):
        x0 = sample(model, Multistep(steps), (2,), Noise.of(400, 1), dtype=F64).x
        near = (x0[:, None] - model.means).norm(dim=2).amin(1).square().mean().sqrt() / math.sqrt(2)
        assert float(near) == pytest.approx(0.15, rel=0.4 if steps == 8 else 0.1)


def test_derived_drift_and_diffusion_are_the_closed_forms():
    vp, beta = FOUR["vp"], 0.1 + T * 19.9
    assert torch.allclose(vp.drift_rate(T), -beta / 2, rtol=1e-12, atol=0)
    assert torch.allclose(vp.diffusion_squared(T), beta, rtol=1e-12, atol=0)
    sub = FOUR["subvp"]
    assert torch.allclose(sub.diffusion_squared(T), -beta * torch.expm1(-2 * vp.integral(T)), rtol=1e-12, atol=0)
    ve = FOUR["ve"]
    sigma = 0.01 * (50 / 0.01) ** T
    assert torch.allclose(ve.diffusion_squared(T), sigma**2 * 2 * math.log(5000), rtol=1e-12, atol=0)
    assert bool((ve.drift_rate(T) == 0).all())
    flow = FOUR["flow"]
    assert torch.allclose(flow.drift_rate(T), -1 / (1 - T), rtol=1e-12, atol=0)
    assert torch.allclose(flow.diffusion_squared(T), 2 * T / (1 - T), rtol=1e-12, atol=0)
    cosine = ALL["user_cosine"]
    assert torch.allclose(cosine.diffusion_squared(T), math.pi * torch.tan(math.pi / 2 * T), rtol=1e-8, atol=0)


def test_c08_prior_log_prob():
    z = torch.tensor([CHECKS["C08"]["inputs"]["z"]], dtype=F64)
    for name, sde in PUBLISHED.items():
        assert float(sde.prior.log_prob(z)) == pytest.approx(CHECKS["C08"]["expected"][name], rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_clocks_invert(name):
    sde = ALL[name]
    t = torch.linspace(sde.t_min, sde.t_max, 501, dtype=F64)
    assert torch.allclose(sde.t_of_log_snr(sde.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    assert torch.allclose(sde.t_of_ratio(sde.ratio(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FOUR)
def test_closed_form_inverse_equals_bisection(name):
    sde = FOUR[name]
    t = torch.linspace(sde.t_min, sde.t_max, 201, dtype=F64)[:-1]
    assert torch.allclose(SDE.t_of_log_snr(sde, sde.log_snr(t)), t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_straight_frame(name):
    # y = x / (alpha + sigma) is (1 - r) x0 + r eps.
    sde = ALL[name]
    t = torch.linspace(sde.t_min, sde.t_max, 7, dtype=F64)
    x0, eps = normals(7, 3, seed=1), normals(7, 3, seed=2)
    y = sde.perturb(x0, t, eps) / sde.scale(t)[:, None]
    r = sde.ratio(t)[:, None]
    assert torch.allclose(y, (1 - r) * x0 + r * eps, rtol=1e-12, atol=1e-13)


def test_intervals():
    assert [FOUR[n].times("sample")[0] for n in FOUR] == [1e-3, 1e-3, 1e-5, 1e-5]
    for sde in ALL.values():
        assert sde.times("train") == sde.times("likelihood") == (1e-5, 1.0)
    assert FlowMatching().prior_std == 1 and VPSDE().prior_std == 1 and VESDE().prior_std == pytest.approx(50)


def test_a_use_of_the_times_that_there_is_none_is_refused():
    with pytest.raises(UsageError, match="likelihood"):
        VPSDE().times("sampel")


def test_default_noise_level_is_g_where_g_is_finite():
    t = torch.tensor([0.2, 0.9], dtype=F64)
    assert torch.equal(auto_level(VPSDE(), t), VPSDE().diffusion(t))
    assert torch.allclose(auto_level(FlowMatching(), torch.tensor(1.0, dtype=F64)), torch.tensor(2.0, dtype=F64).sqrt())


@pytest.mark.parametrize("event", [(), (2,), (3, 5), (1, 4, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_event_shape_not_only_images(event, dtype):
    # The defect of the original: coefficients are reshaped for 4-D batches, and a (8, 2) batch becomes (8, 1, 8, 2).
    sde, t = VPSDE(), torch.linspace(0.1, 0.9, 8, dtype=F64)
    x0, eps = normals(8, *event, dtype=dtype), normals(8, *event, seed=1, dtype=dtype)
    x = sde.perturb(x0, t, eps)
    assert x.shape == x0.shape and x.dtype == dtype and sde.drift(x0, t).shape == x0.shape
    for i in range(8):
        alpha, sigma = (float(c) for c in sde.coefficients(t[i]))
        assert torch.allclose(x[i], alpha * x0[i] + sigma * eps[i], atol=1e-6)


def test_coefficients_never_broadcast_along_the_event():
    with pytest.raises(UsageError, match=r"\(B,\)"):
        VPSDE().perturb(torch.zeros(4, 4), torch.zeros(4, 4) + 0.5, torch.zeros(4, 4))
    with pytest.raises(UsageError, match="batch of shape"):
        VPSDE().perturb(torch.zeros(4, 3), torch.full((3,), 0.5), torch.zeros(4, 3))


def broken(alpha, sigma):
    @dataclass(frozen=True)
    class Broken(SDE):
        def alpha(self, t):
            return alpha(t)

        def sigma(self, t):
            return sigma(t)

    return Broken


@pytest.mark.parametrize(
    ("alpha", "sigma", "words"),
    [
        (lambda t: 1.0, lambda t: 1.1 - t, "log-SNR"),
        (lambda t: 1 - t, lambda t: torch.log(t), "Broken.sigma"),
        (lambda t: 1 / (0.5 - t).clamp(min=0), lambda t: t, "Broken.alpha"),
        (lambda t: (1 - t).sum(), lambda t: t, "shape"),
        (lambda t: 1 - t, lambda t: 0.0, "> 0"),
    ],
)
def test_a_path_that_is_none_is_refused_at_construction(alpha, sigma, words):
    with pytest.raises(UsageError, match=words):
        broken(alpha, sigma)()


def test_a_path_that_is_not_written_for_tensors_is_named():
    with pytest.raises(UsageError, match=r"Broken\(\)\.alpha\(t\) failed.*torch\.cos"):
        broken(lambda t: math.cos(t), lambda t: t)()


def test_the_offending_time_is_named():
    with pytest.raises(UsageError, match=r"between t = 0\.[56]"):
        broken(lambda t: 1.0, lambda t: torch.minimum(t, torch.tensor(0.55, dtype=t.dtype)))()


def test_parameters_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match=r"sigma_min is 50.0 and sigma_max is 0.01"):
        VESDE(sigma_min=50.0, sigma_max=0.01)


def test_vp_marginals_are_those_of_the_simulated_forward_sde():
    # dx = f x dt + g dw, Euler-Maruyama with fine steps, from a point: mean alpha, std sigma.
    generator = torch.Generator().manual_seed(0)
    for sde in (VPSDE(), FOUR["subvp"]):
        x = torch.full((20_000, 1), 0.7, dtype=F64)
        times = torch.linspace(0, 0.5, 401, dtype=F64)
        for t, s in zip(times[:-1] + 1e-9, times[1:], strict=True):
            z = torch.randn(x.shape, generator=generator, dtype=F64)
            x = x + sde.drift(x, t) * (s - t) + sde.diffusion(t) * torch.sqrt(s - t) * z
        alpha, sigma = sde.coefficients(torch.tensor(0.5, dtype=F64))
        assert float(x.mean()) == pytest.approx(0.7 * float(alpha), abs=0.02)
        assert float(x.std()) == pytest.approx(float(sigma), rel=0.02)


def test_frozen_dataclasses_print_as_they_are_built():
    assert repr(VPSDE(beta_max=18.0)) == "VPSDE(beta_min=0.1, beta_max=18.0)"
    assert eval(repr(VESDE(sigma_max=90.0))) == VESDE(sigma_max=90.0)
    assert isinstance(GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1)).sde, SDE)
