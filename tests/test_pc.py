"""Predictor-corrector samplers: any combination has the law of the data, and the steps are the published ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from models import ALL, F64, gaussian, normals, ring, watched
from solving import FEW_AND_ALL, marginal, moments

from scoresde import VESDE, VPSDE, Noise
from scoresde.core.errors import UsageError
from scoresde.core.registry import resolve
from scoresde.core.tables import SOLVERS
from scoresde.ode.integrate import FAILED_NONFINITE, OK
from scoresde.sde.grids import make_grid
from scoresde.solvers import PredictorCorrector, sample
from scoresde.solvers.langevin import norm_ratio
from scoresde.solvers.pc import PREDICTORS, annealed_langevin, reverse_diffusion


def law(model, x) -> tuple[float, float]:
    """Of the ring: the largest error of a mode's share, and the width of the modes over what it should be.

    The width is that of half the samples: a Langevin step with norms of each sample throws a few of them far.
    """
    nearest, mode = (x[:, None] - model.means).norm(dim=2).min(1)
    share = torch.bincount(mode, minlength=8) / len(x)
    return float((share - 1 / 8).abs().max()), float(nearest.median()) / (0.15 * math.sqrt(2 * math.log(2)))


# ----------------------------------------------------------------------------------------------------------------- law


CORRECTORS = {"annealed": {}, "langevin": {"norm": "batch"}, "none": {}}


# On VP all of them, on the flow all predictors with one corrector.
@pytest.mark.parametrize(
    ("name", "predictor", "corrector"),
    [
        pytest.param(n, p, c, marks=[] if n == "vp" or (n, c) == ("flow", "annealed") else pytest.mark.slow)
        for n in ("vp", "flow", "subvp", "ve", "user_cosine")
        for p in PREDICTORS
        if p != "none"
        for c in CORRECTORS
    ],
)
def test_any_predictor_and_corrector_has_the_law_of_the_ring(name, predictor, corrector):
    # Fifty steps: about right. A corrector helps a predictor that is off (reverse diffusion: 15 % too wide).
    n, model = 400, ring(ALL[name])
    solver = PredictorCorrector(50, predictor, corrector, grid="logsnr", **CORRECTORS[corrector])
    share, width = law(model, sample(model, solver, (2,), Noise.of(n, 3), dtype=F64, batch=n).x)
    assert share < 0.06 and 0.82 < width < 1.25


@pytest.mark.parametrize("sequence", ["pc", "cp"])
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_langevin_with_either_norm_and_in_either_order(name, norm, sequence):
    # In 64 dimensions |z|/|score| hardly varies, so that a step of each sample's own keeps its law.
    n, model = 40, gaussian(ALL[name], dims=64, std=0.5)
    solver = PredictorCorrector(60, "ancestral", "langevin", norm=norm, sequence=sequence, grid="logsnr")
    x = sample(model, solver, (64,), Noise.of(n, 3), dtype=F64, batch=n).x
    assert float(x.mean()) == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(64 * n))
    assert float(x.std()) == pytest.approx(0.5, rel=0.08)


def test_langevin_with_norms_of_each_sample_keeps_the_width_of_modes_in_the_plane():
    # Where the score is next to nothing, in the middle of a mode, |z|/|score| has no bound: unheld, 1.5 and more.
    n, model = 400, ring(VPSDE())
    solver = PredictorCorrector(60, "ddim", "langevin", grid="logsnr")
    assert law(model, sample(model, solver, (2,), Noise.of(n, 3), dtype=F64, batch=n).x)[1] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("snr", [0.16, 0.3])
@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("dims", [1, 2, 4, 16, 64, 3072])
def test_langevin_settles_at_the_spread_that_its_step_has(name, dims, snr):
    # Corrections alone at one time, from the marginal: V <- (1 - e/v)^2 V + 2e settles at v/(1 - e/2v), e < 2 snr^2 v.
    model = gaussian(ALL[name], dims=dims, mean=0.0)
    t = torch.tensor(0.5, dtype=F64)
    _, v = marginal(gaussian(ALL[name], dims=1, mean=0.0), 0.5)
    n = max(4, 4096 // dims)
    solver, x = PredictorCorrector(1, "none", "langevin", snr), math.sqrt(v) * normals(n, dims)
    for k in range(60):
        x = solver.correct(model, x, t, t - 1e-9, normals(n, dims, seed=k + 1), t)
    found, noise = float(x.std()) / math.sqrt(v), 3 / math.sqrt(2 * n * dims)
    assert 1 - noise < found < (1 + noise) * math.sqrt((1 + 2 / max(dims, 17)) / (1 - snr**2))


def test_the_ratio_of_norms_is_held_in_few_dimensions_and_left_alone_in_many():
    z, sigma = normals(3, 8), torch.tensor(0.7, dtype=F64)
    score = torch.stack([torch.zeros(8, dtype=F64), normals(8, seed=1), 1e9 * normals(8, seed=2)])
    assert norm_ratio(z, score, "sample", sigma).tolist() == pytest.approx([0.7] * 3)
    z, score = normals(3, 3072), 5 * normals(3, 3072, seed=1)
    assert torch.equal(norm_ratio(z, score, "sample", sigma), norm_ratio(z, score, "sample"))
    bad = torch.full((1, 3), math.nan, dtype=F64)
    assert bool(norm_ratio(normals(1, 3), bad, "sample", sigma).isnan().all())


@pytest.mark.parametrize("snr", [1.0, 3.0, 99.0])
def test_a_step_that_overshoots_is_refused(snr):
    for make in (lambda: PredictorCorrector(snr=snr), lambda: annealed_langevin(snr=snr)):
        with pytest.raises(UsageError, match="steps overshoot") as refused:
            make()
        assert refused.value.parameter == "snr"


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_annealed_langevin_dynamics_alone(name):
    # It finds the modes, and is slow to settle in them as its steps shrink with sigma.
    n, model = 400, ring(ALL[name])
    share, width = law(model, sample(model, annealed_langevin(80), (2,), Noise.of(n, 3), dtype=F64, batch=n).x)
    assert share < 0.06 and 0.9 < width < 1.75


@pytest.mark.parametrize("predictor", ["reverse-diffusion", "ancestral", "em"])
@pytest.mark.parametrize("name", FEW_AND_ALL)
def test_variance_is_right_to_the_first_order_of_a_step(name, predictor):
    # Exact moments on a Gaussian (see solving.py). A small snr, because a Langevin step leaves a bias of
    # e/(2 v), which does not fall as the steps grow in number.
    model = gaussian(ALL[name], dims=1, mean=0.3, std=0.5)
    low, high = model.domain.interval("sample")
    solver, off = PredictorCorrector(1, predictor, snr=0.02, grid="sqrt"), []
    for steps in (80, 160):
        made = replace(solver, steps=steps)
        mean, variance = moments(made, model, marginal(model, high), draws=2 * steps)
        off.append(abs(variance / marginal(model, low)[1] - 1))
        assert mean == pytest.approx(marginal(model, low)[0], abs=0.02)
    assert off[0] < 0.2 and off[1] < 0.7 * off[0]


# --------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("sequence", ["pc", "cp"])
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("corrector", ["annealed", "langevin"])
def test_steps_by_hand(corrector, norm, sequence):
    # Song et al. 2021, arXiv:2011.13456, alg. 2-5, reverse diffusion (eq. 46), two corrections, two steps.
    # On VP with beta(t) = 0.1 + 19.9 t: between two nodes 1 - beta_i = exp(-(B(t) - B(s))), B the integral of beta.
    # The two numbers of a sample are few: there the ratio is held to sigma. The 48 of the batch leave it as it is.
    model, x, noise, r = ring(VPSDE()), normals(24, 2), Noise.of(24, 3), 0.16
    start, times = x, make_grid("sqrt", VPSDE(), 2, 1.0, 1e-3)

    def total(t):
        return 0.1 * t + 9.95 * t**2

    def corrected(x, at, a, k):
        z, score = noise.normal((2,), k, "corrector", F64), model(x, at).score
        ratio = z.norm(dim=1, keepdim=True) / score.norm(dim=1, keepdim=True)
        if norm == "batch":
            ratio = z.norm(dim=1).mean() / score.norm(dim=1).mean()
        if corrector == "annealed" or norm == "sample":
            ratio = torch.sqrt(-torch.expm1(-total(at)))
        e = 2 * a**2 * (r * ratio) ** 2
        return x + e * score + torch.sqrt(2 * e) * z

    for i in range(2):
        t, s = times[i], times[i + 1]
        beta = -torch.expm1(total(s) - total(t))
        a = torch.sqrt(1 - beta)
        for part in sequence:
            if part == "p":
                z = noise.normal((2,), i, "solver", F64)
                x = (2 - a) * x + beta * model(x, t).score + torch.sqrt(beta) * z
            else:
                for j in range(2):
                    x = corrected(x, s if sequence == "pc" else t, a, 2 * i + j)
    solver = PredictorCorrector(2, "reverse-diffusion", corrector, r, 2, norm, sequence)
    assert float((solver(model, start, noise=noise).x - x).abs().max()) < 1e-10


def test_with_neither_predictor_nor_corrector_nothing_would_move():
    with pytest.raises(UsageError, match="no sample would move"):
        PredictorCorrector(4, "none", corrections=0)


@pytest.mark.parametrize(
    ("predictor", "corrections"), [(p, c) for p in PREDICTORS for c in (0, 1, 3) if (p, c) != ("none", 0)]
)
def test_cost(predictor, corrections):
    model = watched(ring(VPSDE()))
    solver = PredictorCorrector(4, predictor, corrections=corrections)
    solved = solver(model, normals(3, 2), noise=Noise.of(3))
    each = (predictor != "none") + corrections
    assert solver.evaluations == each and solved.nfe.tolist() == [4 * each] * 3 == [len(model.times)] * 3
    if predictor != "none":
        assert replace(solver, corrector="none").evaluations == 1


def test_names():
    assert resolve("reverse-diffusion", SOLVERS)() == reverse_diffusion() == PredictorCorrector(corrector="none")
    assert resolve("ald", SOLVERS)() == annealed_langevin()
    assert annealed_langevin().evaluations == 5 and reverse_diffusion(7).within(20).steps == 20


def test_a_predictor_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_predictor.py").write_text(
        "def halve(model, x, t, s, z):\n    e = model(x, t)\n"
        "    alpha, sigma = model.domain.sde.coefficients(s)\n    return alpha * e.x0 + sigma * e.eps + 0 * z\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_predictor

    model, x = ring(VPSDE()), normals(5, 2)
    ends = [
        PredictorCorrector(6, p, "none")(model, x, noise=Noise.of(5)).x
        for p in ("ddim", my_predictor.halve, "my_predictor:halve")
    ]
    assert torch.equal(ends[1], ends[2]) and float((ends[0] - ends[1]).abs().max()) < 1e-12


def test_norms_over_the_batch_couple_its_samples():
    model, x, noise = ring(VPSDE()), normals(40, 2), Noise.of(40)
    rows = torch.arange(20)
    for norm, coupled in (("sample", False), ("batch", True)):
        solver = PredictorCorrector(5, corrector="langevin", norm=norm)
        whole, part = solver(model, x, noise=noise).x[rows], solver(model, x[rows], noise=noise.rows(rows)).x
        assert (float((whole - part).abs().max()) > 1e-6) == coupled


def test_a_row_of_nan_is_reported_with_all_that_it_touched():
    # One row alone with its own norms; the whole batch with the batch's.
    x, noise = normals(4, 2), Noise.of(4)
    x[1] = torch.nan
    for norm, bad in (("sample", [1]), ("batch", [0, 1, 2, 3])):
        solved = PredictorCorrector(5, corrector="langevin", norm=norm)(ring(VPSDE()), x, noise=noise)
        assert [i for i, status in enumerate(solved.status.tolist()) if status == FAILED_NONFINITE] == bad
        assert [i for i, status in enumerate(solved.status.tolist()) if status == OK] == [
            i for i in range(4) if i not in bad
        ]


def test_on_ve_the_annealed_step_is_song_and_ermons():
    # Song and Ermon 2019, arXiv:1907.05600, alg. 1: step sizes in proportion to sigma^2; here e = 2 (snr sigma)^2.
    model, x, noise = ring(VESDE()), 50 * normals(4, 2), Noise.of(4)
    solver = annealed_langevin(1, corrections=1)
    t1 = torch.tensor(0.8, dtype=F64)
    e = 2 * (0.16 * VESDE().sigma(t1)) ** 2
    expected = x + e * model(x, t1).score + torch.sqrt(2 * e) * noise.normal((2,), 0, "corrector", F64)
    assert float((solver(model, x, t1=0.8, noise=noise).x - expected).abs().max()) < 1e-9


def test_options_that_cannot_be_are_refused():
    for options, words in (
        ({"snr": 0.0}, "snr"), ({"corrections": -1}, "corrections"), ({"corrector": "ula"}, "annealed, langevin"),
        ({"norm": "mean"}, "sample, batch"), ({"sequence": "ppc"}, "pc, cp"), ({"predictor": "euler"}, "predictor"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            PredictorCorrector(**options)


@pytest.mark.slow
def test_the_correction_and_not_the_predictor_bounds_the_order():
    # As documented: the bias of a Langevin step falls with the noise at which it is frozen, like N^(-4/5) on VP.
    model = gaussian(VPSDE(), dims=1)
    low, high = model.domain.interval("sample")
    for corrector, order in (("annealed", 0.7), ("none", 1.0)):
        off = []
        for steps in (640, 1280):
            made = PredictorCorrector(steps, corrector=corrector)
            off.append(moments(made, model, marginal(model, high), draws=2 * steps)[1] / marginal(model, low)[1] - 1)
        assert math.log2(abs(off[0] / off[1])) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("step", "found"), [(lambda *_: None, "NoneType"), (lambda model, x, *_: x[:1], r"shape \(1, 2\)")]
)
def test_a_predictor_of_ones_own_returns_the_state(step, found):
    with pytest.raises(UsageError, match=rf"predictor <lambda> must return a tensor of shape \(3, 2\), got {found}"):
        PredictorCorrector(steps=2, predictor=step)(ring(VPSDE()), normals(3, 2))
