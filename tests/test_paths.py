"""Shifted paths against their formulas; models asked on other paths against the path they come from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from models import ALL, F64, FOUR, dop853, normals, ring, watched

from scoresde import (
    DDPM,
    EDMSDE,
    SMLD,
    VDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Guided,
    Likelihood,
    Noise,
    ProbabilityFlow,
    Shifted,
    convert,
    log_likelihood,
    sample,
)
from scoresde.core.errors import UsageError
from scoresde.sde.modified import Stretch
from scoresde.solvers import Multistep, MultistepSDE

T = torch.linspace(0.01, 0.99, 99, dtype=F64)
PATHS = {**ALL, "cosine": CosineSDE(), "vdm": VDMSDE()}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_moves_the_log_snr_and_nothing_else(name, shift):
    path = PATHS[name]
    moved = Shifted(path, shift)
    assert torch.allclose(moved.log_snr(T), path.log_snr(T) - 2 * math.log(shift), atol=1e-12)
    (alpha, sigma), (a, s) = path.coefficients(T), moved.coefficients(T)
    assert torch.allclose(2 * torch.log(a / s), moved.log_snr(T), atol=1e-10)
    assert torch.allclose(path.size(a, s), path.size(alpha, sigma), rtol=1e-12)
    assert torch.allclose(moved.t_of_log_snr(moved.log_snr(T)), T, atol=1e-8)


def test_a_shift_of_the_straight_path_is_that_of_sd3():
    # t' = s t / (1 + (s - 1) t), Esser et al. (2024), eq. 23; the path itself stays straight.
    t = torch.linspace(0, 1, 11, dtype=F64)
    moved = 3 * t / (1 + 2 * t)
    alpha, sigma = Shifted(FlowMatching(), 3.0).coefficients(t)
    assert torch.allclose(sigma, moved, atol=1e-15) and torch.allclose(alpha, 1 - moved, atol=1e-15)


def test_a_shift_keeps_what_the_path_keeps():
    alpha, sigma = Shifted(VPSDE(), 2.0).coefficients(T)
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones_like(T), atol=1e-14)
    alpha, sigma = Shifted(VESDE(), 2.0).coefficients(T)
    assert torch.equal(alpha, torch.ones_like(T)) and torch.allclose(sigma, 2 * VESDE().sigma(T))
    assert Shifted(VESDE(), 2.0).prior_std == pytest.approx(100.0)
    assert Shifted(VPSDE(), 2.0).prior_std == pytest.approx(1.0, abs=1e-4)


def test_solvers_run_on_a_shifted_path():
    model, x = ring(Shifted(FlowMatching(), 3.0)), normals(6, 2)
    solved = ProbabilityFlow(1e-7)(model, x)
    assert float((solved.x - dop853(model, x, 1.0, 1e-5, 1e-9)).abs().max()) < 1e-5


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_is_a_number_above_0(shift):
    with pytest.raises(UsageError, match=r"shift is .*a number >= 1e-06"):
        Shifted(VPSDE(), shift)


# ---------------------------------------------------------------------------------------------------- other paths


@pytest.mark.parametrize("source", FOUR)
@pytest.mark.parametrize("target", [*FOUR, "cosine"])
def test_the_estimates_on_another_path_are_those_of_the_exact_model_there(source, target):
    path = PATHS[target]
    asked, exact = convert(ring(FOUR[source]), path), ring(path)
    x = normals(32, 2)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        t = asked.domain.t_min + share * (asked.domain.t_max - asked.domain.t_min)
        mine, theirs = asked(x, t), exact(x, t)
        for name in ("x0", "eps", "score", "velocity"):
            a, b = getattr(mine, name), getattr(theirs, name)
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-8 * (1 + float(b.abs().max()))), (name, t)


def test_a_vp_model_on_the_straight_path_gives_the_same_samples_for_fewer_evaluations():
    # flow_and_solvers.md, B4.8: r from 0.993471 to 0.010377, start 0.993493 z.
    vp = ring(VPSDE())
    flow = convert(vp, FlowMatching())
    assert flow.domain.t_max == pytest.approx(0.993471, abs=1e-6)
    assert flow.sde.times("sample")[0] == pytest.approx(0.010377, abs=1e-6)
    assert flow.sde.prior_std == pytest.approx(0.993493, abs=1e-6)
    z = normals(128, 2)
    ends = [m.sde.coefficients(torch.tensor(m.sde.times("sample")[0], dtype=F64))[0] for m in (vp, flow)]
    exact = dop853(vp, z, 1.0, 1e-3) / ends[0]
    found = {}
    for tolerance in (1e-4, 1e-6, 1e-8):
        for name, model, frame in (("vp in t", vp, "t"), ("flow in t", flow, "t"), ("straight", vp, "straight")):
            solved = ProbabilityFlow(tolerance, tolerance, frame=frame)(model, z * model.domain.sde.prior_std)
            error = (solved.x / ends[model is flow] - exact).square().mean().sqrt()
            found[name, tolerance] = float(solved.nfe.double().mean()), float(error)
        # the straight frame of VP is the straight path
        assert found["flow in t", tolerance] == pytest.approx(found["straight", tolerance], rel=1e-6)
        assert found["flow in t", tolerance][1] < 30 * tolerance
        # A third fewer at 1e-4, a tenth at 1e-8, where the error is a quarter as well.
        assert found["flow in t", tolerance][0] < 0.95 * found["vp in t", tolerance][0]


@pytest.mark.parametrize("target", ["subvp", "ve", "flow", "cosine"])
def test_exponential_solvers_take_the_same_steps_on_another_path(target):
    vp, noise = ring(VPSDE()), Noise.of(16)
    other = convert(vp, PATHS[target])
    # the same noise levels, as times of either path
    high, low = (
        float(vp.sde.t_of_log_snr(other.sde.log_snr(torch.tensor(t, dtype=F64))).clamp(max=1.0))
        for t in (other.domain.t_max, 0.1)
    )
    z = normals(16, 2)
    for solver in (Multistep(6, order=2, grid="logsnr"), MultistepSDE(6, grid="logsnr")):
        a = solver(other, z, t0=other.domain.t_max, t1=0.1, noise=noise).x
        ends = (vp.sde, high), (other.sde, other.domain.t_max)
        scale = [float(sde.scale(torch.tensor(t, dtype=F64))) for sde, t in ends]
        b = solver(vp, z * scale[0] / scale[1], t0=high, t1=low, noise=noise).x
        scale = [float(m.domain.sde.scale(torch.tensor(t, dtype=F64))) for m, t in ((vp, low), (other, 0.1))]
        assert torch.allclose(a * scale[0] / scale[1], b, atol=1e-8)


def test_outside_the_shared_noise_levels_the_ranges_are_named():
    flow = convert(ring(VPSDE()), FlowMatching())
    x = normals(4, 2)
    with pytest.raises(UsageError, match=r"the log-SNR range -10\.05 to 13\.81, and FlowMatching covers -inf to"):
        flow(x, 0.999)
    with pytest.raises(UsageError, match="outside the model's domain"):
        ProbabilityFlow()(flow, x, t0=1.0)
    with pytest.raises(UsageError, match="these ranges do not overlap"):
        convert(ring(VESDE(1e-4, 1e-2)), VESDE(1.0, 50.0))


def test_a_converted_model_is_never_asked_outside_the_models_domain():
    model = watched(ring(VPSDE()))
    for target in ("subvp", "ve", "flow"):
        other = convert(model, FOUR[target])
        sample(other, ProbabilityFlow(1e-3, 1e-3), (2,), Noise.of(8), dtype=F64)
    times = torch.cat(model.times)
    assert float(times.min()) >= 1e-5 and float(times.max()) <= 1.0


def test_conditioning_keeps_its_row_on_another_path():
    means = normals(3, 1, 2)
    each = [GaussianMixture(VPSDE(), m, torch.tensor([0.2], dtype=F64)) for m in means]
    guided = convert(Guided(each[0], each[1], 2.0), FlowMatching())
    x = normals(5, 2)
    e = guided(x, 0.5)
    assert torch.allclose(guided.rows(torch.tensor([3]))(x[3:4], 0.5).x0, e.x0[3:4])


def test_there_and_back_is_the_model_itself():
    vp = ring(VPSDE())
    back = convert(convert(vp, FlowMatching()), VPSDE())
    x, t = normals(8, 2), 0.4
    assert torch.allclose(back(x, t).x0, vp(x, t).x0, atol=1e-9)
    assert back.sde.prior_std == pytest.approx(1.0, abs=1e-9)


def test_a_stretch_is_the_path_it_is_part_of():
    part = Stretch(VPSDE(), 1.0, 0.1, 0.9)
    for name in ("coefficients", "rates", "diffusion_squared", "log_snr", "scale"):
        mine, theirs = getattr(part, name)(T), getattr(VPSDE(), name)(T)
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), name
    assert part.times("sample") == (0.1, 0.9) and part.times("likelihood") == (0.1, 0.9)
    assert replace(part, t_sample=0.2).times("sample") == (0.2, 0.9)


@pytest.mark.parametrize("target", [pytest.param("flow", marks=pytest.mark.slow), "edm", "ddpm"])
def test_the_likelihood_is_the_same_on_every_path(target):
    path = {**PATHS, "edm": EDMSDE(1e-4, 200.0), "ddpm": DDPM(steps=100_000)}[target]
    vp = ring(VPSDE())
    other = convert(vp, path)
    x = vp.sample(3, torch.Generator().manual_seed(0))
    a, b = (log_likelihood(m, x, Likelihood(rtol=1e-6), check=False) for m in (vp, other))
    # `ddpm` begins at 1e-5 as VP does, and a table of 100,000 levels is off by as much.
    assert float((a.log_prob - b.log_prob).abs().max()) < (2e-4 if target == "ddpm" else 1e-5)
    if target != "ddpm":
        assert torch.allclose(a.z, b.z / other.sde.prior_std, atol=1e-5)


def test_two_conversions_are_one():
    model = ring(SMLD(50, sigma_min=0.1))
    twice, once = convert(convert(model, FlowMatching()), VPSDE()), convert(model, VPSDE())
    assert twice.sde.data_scale == pytest.approx(once.sde.data_scale, rel=1e-6) != 1
