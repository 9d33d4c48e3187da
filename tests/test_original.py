"""The original's samplers against its own values: tables, single steps, exact moments; what it cannot do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from models import CHECKS, F64, PUBLISHED, gaussian, mixture_1d, normals, ring, watched

from scoresde import VPSDE, FlowMatching, Noise
from scoresde.core.errors import UsageError
from scoresde.core.registry import build
from scoresde.core.tables import SOLVERS
from scoresde.solvers import Original, PredictorCorrector, Solver, sample
from scoresde.solvers.original import CORRECTORS, LevelTables, discretise, level_index, predictor_weights

N = 1000
NAMES = {
    "euler_maruyama": "euler-maruyama",
    "reverse_diffusion": "reverse-diffusion",
    "ancestral_sampling": "ancestral",
}


def float64(values):
    return torch.tensor(values, dtype=F64)


def close(ours, expected, rel, floor=0.0):
    return bool(((ours - expected).abs() <= rel * expected.abs() + floor).all())


# ------------------------------------------------------------------------------------------------- tables and steps


def test_c03_tables():
    expected, vp, ve = CHECKS["C03"]["expected"], *(LevelTables.of(PUBLISHED[name], N) for name in ("vp", "ve"))
    ours = {
        "vp_discrete_betas": vp.betas,
        "vp_alphas_cumprod": vp.alphas_cumprod,
        "vp_sqrt_1m_alphas_cumprod": vp.sigmas,
        "ve_discrete_sigmas": ve.sigmas,
    }
    for name, table in ours.items():
        assert table.shape == (N,)
        chosen = table[expected["index"]]
        assert close(chosen, float64(expected[name]), 1e-12), name
        # 1 - beta cancels in the original's float32 at the first two levels.
        single, loose = float64(expected["ref_float32"][name]), 2 if "alphas" in name else 0
        assert close(chosen[loose:], single[loose:], 2e-6) and close(chosen[:loose], single[:loose], 1e-4), name
    assert torch.equal(vp.alphas, 1 - vp.betas) and torch.equal(ve.alphas, torch.ones(N, dtype=F64))
    assert torch.allclose(ve.betas.cumsum(0), ve.sigmas.square(), rtol=1e-12)


def test_c03_index():
    expected = CHECKS["C03"]["expected"]["pc_timestep_index"]
    for eps in (1e-3, 1e-5):
        index = level_index(VPSDE(), torch.linspace(1, eps, N, dtype=F64), N)
        assert index.tolist() == list(range(N - 1, -1, -1))
    index = level_index(VPSDE(), torch.linspace(1, 1e-3, 2000, dtype=F64), 2000)
    assert int((index != torch.arange(1999, -1, -1)).sum()) == expected["N2000_eps1e_3_mismatches"]
    assert expected["N2000_eps1e_3_missing_index"] not in index


@pytest.mark.parametrize("name", PUBLISHED)
def test_c04_forward_step(name):
    for row in CHECKS["C04"]["expected"][name]:
        t = float64(row["t"])
        assert name == "subvp" or int(level_index(PUBLISHED[name], t, N)) == row["index"]
        f, g = discretise(PUBLISHED[name], t, N)
        assert close(f, float64(row["f_over_x"]), 1e-5, 2e-8) and close(g, float64(row["G"]), 1e-5, 2e-8)


@pytest.mark.parametrize("predictor", NAMES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_c06_predictor_step(name, predictor):
    expected = CHECKS["C06"]["expected"][name][predictor]
    if isinstance(expected, str):  # the original raises, and so do we
        with pytest.raises(UsageError, match="ancestral"):
            Original(predictor=NAMES[predictor])(gaussian(PUBLISHED[name], 1), normals(1, 1))
        return
    for row in expected:
        keep, pull, spread = predictor_weights(NAMES[predictor], PUBLISHED[name], float64(row["t"]), N)
        assert close(keep - pull, float64(row["x_mean"]), 1e-5)  # x = 1, score = -1
        assert close(spread, float64(row["noise_coeff"]), 1e-5)


@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_c07_corrector_step(name, corrector):
    check, sde, t = CHECKS["C07"], PUBLISHED[name], float64(0.5)
    expected = check["expected"][name][corrector]
    x, z = (float64(check["inputs"][k]) for k in ("x", "z"))
    alpha, sigma = LevelTables.of(sde, N).alphas[level_index(sde, t, N)], sde.coefficients(t)[1]
    ours = Original(corrector=corrector, snr=0.16).correct(x, -x, z, sigma, alpha)
    assert close(ours, float64(expected["x"]), 1e-5)
    assert close(ours - math.sqrt(2 * expected["step_size"]) * z, float64(expected["x_mean"]), 1e-5)


# ------------------------------------------------------------------------------------------------- exact moments


@dataclass(frozen=True)
class OneAtATime(Noise):
    """Rows 0 and 1 draw zeros, and row 2 + k a single 1, as draw k of the solver or k - ``predictions`` of the rest."""

    predictions: int = 0

    def normal(self, shape, step=0, stream="solver", dtype=torch.float32):
        z = torch.zeros(len(self.indices), *shape, dtype=dtype)
        z[2 + step + (self.predictions if stream == "corrector" else 0)] = 1
        return z


def moments(solver: Solver, model, steps: int, corrections: int = 0, denoise: bool = False):
    """Mean and variance of a solver on a Gaussian, without Monte Carlo; and the variance of its last draw.

    Every step is affine in x and in its noise, so that the response to each draw, and to the start, says it all.
    """
    rows = 2 + steps * (1 + corrections)
    x = torch.zeros(rows, 1, dtype=F64)
    x[1] = model.domain.sde.prior_std
    y = solver(model, x, noise=OneAtATime(0, torch.arange(rows), predictions=steps)).x
    y = model(y, model.domain.sde.times("sample")[0]).x0[:, 0] if denoise else y[:, 0]
    answers = (y[1:] - y[0]).square()
    return float(y[0]), float(answers.sum()), float(answers[steps])


# Those of 100 steps: 1,000 differ in nothing but their number, and take a hundred times as long. With a corrector there
# are no others.
ALD = "pc_reverse_diffusion_ald_snr0.16_N1000"
ROWS = [
    pytest.param(name, row, marks=[pytest.mark.slow] if row.endswith("_N1000") and row != ALD else [])
    for name in PUBLISHED
    for row in CHECKS["C15"]["expected"][name]
    if "_N" in row
]


@pytest.mark.parametrize(("name", "row"), ROWS, ids=lambda v: v)
def test_c15_moments(name, row):
    expected = CHECKS["C15"]["expected"][name][row]
    label, _, count = row.rpartition("_N")
    steps, flow, ald = int(count), label == "probability_flow_discrete", "ald" in label
    solver = Original(
        steps=steps,
        predictor="reverse-diffusion" if flow or ald else NAMES[label],
        corrector="ald" if ald else "none",
        probability_flow=flow,
        mean=False,
    )
    model = gaussian(PUBLISHED[name], dims=1)
    mean, var, last = moments(solver, model, steps, int(ald))
    assert mean == pytest.approx(expected["mean"], abs=2e-5)
    assert var == pytest.approx(expected["var"], rel=1e-4)
    if not flow:  # x_mean is x without the last draw
        assert mean == pytest.approx(expected["xmean_mean"], abs=2e-5)
        assert var - last == pytest.approx(expected["xmean_var"], rel=1e-4)
    if steps == 100 and not flow:
        mean, var, last = moments(Original(steps, solver.predictor), model, steps)
        assert mean == pytest.approx(expected["xmean_mean"], abs=2e-5)
        assert var == pytest.approx(expected["xmean_var"], rel=1e-4) and last == 0


# Variance of the samples at N = 100: the original's x_mean, and ours of the same steps uniform in t with Tweedie's
# formula at the end. The table in docs/mathematics.md.
FIGURES = {
    ("euler-maruyama", "em"): {"vp": (0.2530, 0.2537), "subvp": (0.2551, 0.2541), "ve": (0.2530, 0.2505)},
    ("reverse-diffusion", "reverse-diffusion"): {
        "vp": (0.2562, 0.2650), "subvp": (0.2551, 0.2672), "ve": (0.2727, 0.2725),
    },
    ("ald", "pc"): {"vp": (0.2527, 0.2602), "subvp": (None, 0.2611), "ve": (0.2617, 0.2615)},
    ("ancestral", "ancestral"): {"vp": (0.2498, 0.2193), "subvp": (None, 0.2220), "ve": (0.2296, 0.2298)},
    ("flow", "ddim"): {"vp": (0.3637, 0.2362), "subvp": (0.2498, 0.2374), "ve": (0.3558, 0.2395)},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("pair", FIGURES, ids=lambda p: p[1])
def test_the_figures_of_the_manual(pair, name):
    theirs, ours = FIGURES[pair][name]
    model, corrections = gaussian(PUBLISHED[name], dims=1), int(pair[0] == "ald")
    if theirs is not None:
        predictor = "reverse-diffusion" if pair[0] in ("ald", "flow") else pair[0]
        solver = Original(100, predictor, "ald" if corrections else "none", probability_flow=pair[0] == "flow")
        mean, var, _ = moments(solver, model, 100, corrections)
        assert abs(mean - 0.3) < 0.004 and var == pytest.approx(theirs, abs=6e-5)
    solver = build(pair[1], SOLVERS, "solver", steps=100, grid="uniform")
    mean, var, _ = moments(solver, model, 100, corrections, denoise=True)
    assert abs(mean - 0.3) < 0.004 and var == pytest.approx(ours, abs=6e-5)


# ------------------------------------------------------------------------------------------------- the sampler


@pytest.mark.parametrize(
    ("name", "predictor", "corrector"),
    [
        ("vp", "ancestral", "none"),
        ("vp", "euler-maruyama", "ald"),
        ("subvp", "reverse-diffusion", "none"),
        ("ve", "reverse-diffusion", "langevin"),
    ],
)
def test_it_samples_a_mixture_in_few_steps(name, predictor, corrector):
    solved = sample(
        mixture_1d(PUBLISHED[name]), Original(100, predictor, corrector), (1,), Noise.of(3000, 1),
        denoise=False, batch=3000, dtype=F64,
    )  # fmt: skip
    assert bool(solved.ok.all()) and bool(torch.isfinite(solved.x).all())
    # Mean 0.05 and variance 0.5965; VE's reverse diffusion is several per cent wide with so few steps.
    assert float(solved.x.mean()) == pytest.approx(0.05, abs=0.06)
    assert float(solved.x.var()) == pytest.approx(0.5965, rel=0.1)


def test_corrector_then_predictor_at_the_times_of_the_original():
    model, seen = watched(ring(PUBLISHED["vp"])), []
    solver = Original(50, "reverse-diffusion", "ald", corrections=2)
    solved = solver(model, normals(3, 2), noise=Noise.of(3), watch=seen.append)
    nodes = torch.linspace(1, 1e-3, 50, dtype=F64)
    assert torch.equal(torch.cat(model.times), nodes.repeat_interleave(3))
    assert solved.nfe.tolist() == [150] * 3 and solved.accepted.tolist() == [50] * 3 and solver.evaluations == 3
    # The last update leaves from eps, and the state after it stands for the data.
    assert [float(step.t) for step in seen] == [*nodes[1:].tolist(), 0.0]
    assert seen[-1].done == 1 and torch.equal(seen[-1].x, solved.x)
    recorded = solver(model, normals(3, 2), noise=Noise.of(3), record=True)
    assert recorded.trajectory is not None
    shown = recorded.trajectory.at([1.0, 0.5, 1e-3, 0.0])
    assert bool(torch.isfinite(shown).all()) and torch.allclose(shown[-1], solved.x, rtol=1e-12)


def test_correctors_without_a_predictor_keep_their_noise():
    model, noise = ring(PUBLISHED["ve"]), Noise.of(4)
    x = 50 * normals(4, 2)
    ends = [Original(20, "none", "ald", mean=mean)(model, x, noise=noise) for mean in (True, False)]
    assert torch.equal(ends[0].x, ends[1].x) and ends[0].nfe.tolist() == [20] * 4


def test_only_the_norms_of_langevin_couple_the_samples():
    model, x = ring(PUBLISHED["ve"]), 50 * normals(6, 2)
    for corrector in CORRECTORS:
        solver = Original(20, "reverse-diffusion", corrector)
        together = solver(model, x, noise=Noise.of(6)).x[:2]
        alone = solver(model, x[:2], noise=Noise.of(2)).x
        assert torch.allclose(together, alone, rtol=1e-10) == (corrector != "langevin")


def test_the_probability_flow_draws_nothing():
    model, x = ring(PUBLISHED["ve"]), 50 * normals(4, 2)
    flow = Original(30, "reverse-diffusion", probability_flow=True)
    assert not flow.stochastic and not flow.needs_score
    assert torch.equal(flow(model, x, noise=Noise.of(4, 1)).x, flow(model, x, noise=Noise.of(4, 2)).x)
    corrected = Original(30, "reverse-diffusion", "ald", probability_flow=True)
    assert corrected.stochastic and corrected.needs_score and Original().stochastic and Original().needs_score


def test_a_brownian_path_is_followed():
    model, x = mixture_1d(PUBLISHED["vp"]), normals(16, 1)
    coarse, fine, other = (
        Original(n)(model, x, noise=Noise.of(16, seed, brownian=True)).x for n, seed in ((12, 0), (24, 0), (12, 1))
    )
    assert float((coarse - fine).abs().median()) < 0.3 * float((coarse - other).abs().median())


def test_float32_stays_float32():
    model, x = mixture_1d(PUBLISHED["ve"]), 50 * normals(64, 1)
    for solver in (Original(50), Original(50, "ancestral", "langevin")):
        single = solver(model, x.float(), noise=Noise.of(64)).x
        assert single.dtype == torch.float32
        assert float((single - solver(model, x, noise=Noise.of(64)).x).abs().median()) < 1e-4


def test_steps_for_a_number_of_evaluations():
    assert Original(1000, "euler-maruyama").within(77) == Original(77)
    pc = Original(1000, "reverse-diffusion", "langevin")
    assert pc.within(77) == Original(38, "reverse-diffusion", "langevin") and pc.within(3) is None


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("sde", "solver", "words"),
    [
        (FlowMatching(), Original(), ["FlowMatching", "one of the solvers 'pc'", "ancestral", "reverse-diffusion"]),
        (PUBLISHED["subvp"], Original(predictor="ancestral"), ["ancestral", "SubVPSDE", "the 'ancestral' solver"]),
        (PUBLISHED["subvp"], Original(corrector="langevin"), ["langevin", "SubVPSDE", "the 'pc' solver"]),
        (PUBLISHED["subvp"], Original(corrector="ald"), ["ald", "SubVPSDE", "the 'pc' solver"]),
        (PUBLISHED["vp"], Original(20, "ancestral"), ["20 steps", "beta_max/steps = 1", "the 'ancestral' solver"]),
        (PUBLISHED["vp"], Original(10, "reverse-diffusion"), ["beta_max/steps = 2", "the 'reverse-diffusion' solver"]),
        (
            PUBLISHED["vp"],
            Original(15, corrector="ald"),
            ["beta_max/steps = 1.33333", "more than 20", "the 'pc' solver"],
        ),
    ],
)
def test_what_the_original_cannot_do_is_said_before_the_first_evaluation(sde, solver, words):
    model = watched(ring(sde))
    with pytest.raises(UsageError) as error:
        solver(model, normals(2, 2))
    assert not model.times
    for word in words:
        assert word in str(error.value)


def test_other_ends_are_refused():
    model = watched(ring(PUBLISHED["vp"]))
    for ends in ({"t0": 0.5}, {"t1": 1e-5}, {"t1": 0.2}):
        with pytest.raises(UsageError, match=r"ends of the sampling interval of VPSDE, .*; got t0 = .*the 'pc'"):
            Original()(model, normals(2, 2), **ends)
    with pytest.raises(UsageError, match="ends of the sampling interval"):
        Original(probability_flow=True)(model, normals(2, 2), t0=1e-3, t1=1.0)
    assert not model.times


def test_euler_maruyama_needs_no_table_and_few_steps():
    assert bool(torch.isfinite(Original(10)(ring(PUBLISHED["vp"]), normals(4, 2)).x).all())
    assert PredictorCorrector(10)(ring(PUBLISHED["vp"]), normals(4, 2)).ok.all()  # what the refusals point to


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 1}, "steps is 1; .*>= 2"),
        ({"snr": 0.0}, "snr is 0.0"),
        ({"corrections": -1}, "corrections is -1"),
        ({"predictor": "em"}, "Original: unknown predictor 'em'; .*euler-maruyama"),
        ({"corrector": "annealed"}, "Original: unknown corrector 'annealed'; .*ald, langevin"),
        ({"predictor": "ancestral", "probability_flow": True}, "no probability flow.*the 'ddim' solver"),
        ({"predictor": "none"}, "no sample would move"),
        ({"predictor": "none", "corrector": "ald", "corrections": 0}, "no sample would move"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(UsageError, match=words):
        Original(**options)


def test_each_correction_draws_its_own_noise(monkeypatch):
    steps, normal = [], Noise.normal

    def spy(self, shape, step=0, stream="solver", dtype=torch.float32):
        if stream == "corrector":
            steps.append(step)
        return normal(self, shape, step, stream, dtype)

    monkeypatch.setattr(Noise, "normal", spy)
    Original(50, "reverse-diffusion", "ald", corrections=2)(ring(VPSDE()), normals(2, 2))
    assert len(steps) == len(set(steps)) == 100
