"""Paths whose alpha and sigma differ between coordinates: each coordinate is solved as its own path would be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from models import ALL, F64, FOUR, normals

from scoresde import SDE, VPSDE, Blur, GaussianMixture, Likelihood, Noise, Parts, ScoreModel, V
from scoresde.core.errors import UsageError
from scoresde.core.registry import resolve
from scoresde.core.tables import PARAMETRIZATIONS, SOLVERS, WEIGHTINGS
from scoresde.guidance.classifier_free import Guided
from scoresde.likelihood.elbo import elbo
from scoresde.model.convert import convert
from scoresde.nn import MLP
from scoresde.objective.loss import denoising_loss, end_terms
from scoresde.sde.check import check_event
from scoresde.sde.grids import default_grid
from scoresde.solvers import (
    Ancestral,
    EulerMaruyama,
    Multistep,
    MultistepSDE,
    PredictorCorrector,
    ProbabilityFlow,
    RungeKutta,
    StochasticHeun,
)  # fmt: skip
from scoresde.solvers.exponential import sde_dpm, unipc
from scoresde.solvers.level import level_of
from scoresde.train.reflow import straightness


def copies(path: SDE, count: int) -> SDE:
    """Return a path that has ``count`` coordinates, all of them on ``path``."""

    @dataclass(frozen=True)
    class Equal(SDE):
        coords = (count,)

        def alpha(self, t):
            value = path.alpha(t)
            return value if isinstance(value, float | int) else value.expand(len(t), count)

        def sigma(self, t):
            return path.sigma(t).expand(len(t), count)

        @property
        def prior_std(self):
            return torch.full((1, count), float(path.prior_std), dtype=F64)

    Equal.t_min, Equal.t_max, Equal.t_sample = path.t_min, path.t_max, path.t_sample
    Equal.default_grid = default_grid(path)
    return Equal()


@dataclass(frozen=True)
class Bands(SDE):
    """Log-SNRs from 12 to -18 that fall as t^p, with a power p for each of eight bands of two coordinates."""

    least: float = 0.6
    most: float = 1.6
    count: int = 16

    @property
    def coords(self):
        return (self.count,)

    def log_snrs(self, t):
        powers = torch.linspace(self.least, self.most, self.count // 2, dtype=t.dtype).repeat_interleave(2)
        return 12 - 30 * t**powers

    def alpha(self, t):
        return torch.sigmoid(self.log_snrs(t)).sqrt()

    def sigma(self, t):
        return torch.sigmoid(-self.log_snrs(t)).sqrt()


@dataclass(frozen=True)
class Band(SDE):
    """One of the bands, as a path with one alpha and one sigma."""

    power: float = 1.0

    def alpha(self, t):
        return torch.sigmoid(12 - 30 * t**self.power).sqrt()

    def sigma(self, t):
        return torch.sigmoid(30 * t**self.power - 12).sqrt()


def tangled(sde: SDE, dims: int = 16) -> GaussianMixture:
    """A Gaussian whose covariance has eigenvalues from 0.03 to 2 and no zeros."""
    axes = torch.linalg.qr(normals(dims, dims, seed=3))[0]
    covariance = axes @ torch.diag(torch.logspace(math.log10(0.03), math.log10(2), dims, dtype=F64)) @ axes.mT
    return GaussianMixture(sde, 0.5 * normals(1, dims, seed=4), covariances=((covariance + covariance.mT) / 2)[None])


def network(dims: int = 3) -> MLP:
    torch.manual_seed(0)
    net = MLP(dims=dims, width=16, blocks=1).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


NET = network()
SCALAR = {"edm", "dpm2s", "dpm3s", "dpm++2s", "dpm++3s", "singlestep", "er-sde", "original", "particles", "tuned"}


# ------------------------------------------------------------------------------------------ equal and independent bands


@pytest.mark.parametrize("name", [*FOUR, "user_cosine"])
def test_equal_coordinates_are_the_scalar_path(name):
    path = ALL[name]
    one, many = (ScoreModel(NET, sde, V()) for sde in (path, copies(path, 3)))
    x = normals(4, 3) * float(path.prior_std)
    for solver in sorted(set(SOLVERS) - SCALAR - {"torchsde", "phase"}):
        made = resolve(solver, SOLVERS, "solver")()
        made = made.within(6) or made
        a, b = made(one, x).x, made(many, x).x
        assert float((a - b).abs().max()) <= 1e-12 * float(a.abs().max()), solver


@pytest.mark.parametrize("name", [*FOUR, "user_cosine"])
def test_equal_coordinates_have_the_losses_and_likelihoods_of_the_scalar_path(name):
    path, x = ALL[name], normals(3, 3, seed=1)
    t = torch.linspace(0.1, 0.9, 3, dtype=F64)
    for predict in PARAMETRIZATIONS:
        one, many = (ScoreModel(NET, sde, resolve(predict, PARAMETRIZATIONS)()) for sde in (path, copies(path, 3)))
        for weighting in WEIGHTINGS:
            a, b = (denoising_loss(m, x, t, torch.ones_like(x), None, weighting) for m in (one, many))
            assert float((a / b - 1).detach().abs().max()) < 1e-12, (predict, weighting)
        a, b = (end_terms(m, x) for m in (one, many))
        assert float((a - b).detach().abs().max()) < 1e-12 * float(a.detach().abs().max())
    a, b = (Likelihood()(m, x).log_prob for m in (one, many))
    assert float((a - b).abs().max()) < 1e-9  # adaptive steps, whose sizes agree to rounding
    a, b = (elbo(m, x, strata=16).log_prob for m in (one, many))
    assert float((a - b).abs().max()) < 1e-12 * float(a.abs().max())


@dataclass(frozen=True)
class Column(Noise):
    """The noise of one of four coordinates."""

    column: int = 0

    def between(self, t, s, shape, step, dtype=torch.float32):
        return super().between(t, s, (4,), step, dtype)[:, self.column : self.column + 1]


@pytest.mark.parametrize(
    "solver",
    [
        Multistep(12), Multistep(12, "x0", 2, "midpoint"), unipc(12), RungeKutta(12, "heun", "t"), MultistepSDE(12),
        Ancestral(12),
    ],
)  # fmt: skip
def test_independent_coordinates_are_solved_alone(solver):
    bands, grid = Bands(count=4), tuple(torch.linspace(1, 1e-5, 13, dtype=F64).tolist())
    solver, x = replace(solver, grid=grid), normals(5, 4)
    spread = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=F64)
    together = solver(GaussianMixture(bands, torch.zeros(1, 4, dtype=F64), covariances=spread.square().diag()[None]), x)
    for k, power in enumerate((0.6, 0.6, 1.6, 1.6)):
        alone = GaussianMixture(Band(power), torch.zeros(1, 1, dtype=F64), spread[k : k + 1])
        found = solver(alone, x[:, k : k + 1], noise=Column(0, torch.arange(5), column=k)).x[:, 0]
        assert float((found - together.x[:, k]).abs().max()) < 1e-13, k


# ----------------------------------------------------------------------------------------------- a Gaussian, 16 numbers


def error_of(solver, model, x, exact):
    return float((solver(model, x).x - exact).square().mean().sqrt())


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda n: Multistep(n, order=1, grid="logsnr"), 1),
        (lambda n: Multistep(n, order=2, grid="logsnr"), 2),
        (lambda n: Multistep(n, order=3, grid="logsnr"), 3),
        (lambda n: unipc(n, grid="logsnr"), 3),
        (lambda n: RungeKutta(n, "heun", grid="logsnr"), 2),
    ],
)  # fmt: skip
def test_order_on_bands_with_a_full_covariance(make, order):
    model, x = tangled(Bands()), normals(8, 16)
    exact = Multistep(1500, order=4, grid="logsnr")(model, x).x
    coarse, fine = (error_of(make(n), model, x, exact) for n in (100, 200))
    assert abs(math.log2(coarse / fine) - order) < 0.15


def test_fourth_order_on_smooth_bands():
    # Where the powers differ, the ratio of a coordinate is not smooth in the clock at t = 0.
    @dataclass(frozen=True)
    class Curved(Bands):
        def log_snrs(self, t):
            return 12 - 30 * (t + torch.linspace(-0.4, 0.4, 16, dtype=t.dtype) * t * (1 - t))

    model, x = tangled(Curved()), normals(8, 16)
    exact = Multistep(1500, order=4, grid="logsnr")(model, x).x
    coarse, fine = (error_of(RungeKutta(n, "rk4", grid="logsnr"), model, x, exact) for n in (40, 80))
    assert abs(math.log2(coarse / fine) - 4) < 0.2


def less_prior(model, x, **options):
    """Return log p(x) of the flow, with the exact end of the path in the place of the prior, and the exact value."""
    found = Likelihood(**options)(model, x)
    sde = model.sde
    mine = found.log_prob - sde.prior.log_prob(found.z) + model.log_prob(found.z, sde.t_max)
    return mine, model.log_prob(x, sde.t_min), found


def test_log_density_on_bands_with_a_full_covariance():
    model = tangled(Bands())
    x = model.sample(6, torch.Generator().manual_seed(0))
    for rtol, bar in ((1e-7, 1e-3), (1e-8, 1e-4)):
        mine, exact, _ = less_prior(model, x, rtol=rtol, atol=rtol, divergence="exact")
        assert float((mine - exact).abs().max()) < bar


def test_bound_on_bands_with_a_full_covariance():
    model = tangled(Bands())
    x = model.sample(1, torch.Generator().manual_seed(1)).expand(200, -1)
    found = elbo(model, x, strata=256, noise=Noise.of(200))
    mean, error = float(found.log_prob.mean()), float(found.log_prob.std() / math.sqrt(200))
    # The bound is a density at t = 0: that of the data, blurred twice by the noise at t_min.
    assert error <= 0.1 and abs(mean - float(model.log_prob(x[:1]))) < 3 * error + 0.02


def divergence(x, model):
    """Return the KL divergence of the Gaussian with the moments of ``x`` from the model's Gaussian."""
    mean, c = model.means[0], model.covariances[0]
    m, s = x.mean(0), torch.cov(x.mT)
    white = torch.linalg.solve(c, s)
    return float((torch.trace(white) - len(c) - torch.logdet(white) + (m - mean) @ torch.linalg.solve(c, m - mean)) / 2)


@pytest.mark.parametrize(
    ("solver", "bar"),
    [
        (ProbabilityFlow(rtol=1e-4), 0.025), (sde_dpm(100), 0.025), (EulerMaruyama(400), 0.025),
        (StochasticHeun(100), 0.025), (Ancestral(400), 0.04), (PredictorCorrector(200), 0.04),
    ],
)  # fmt: skip
def test_samples_on_bands_with_a_full_covariance(solver, bar):
    model, noise = tangled(Bands()), Noise.of(4000)
    x = solver(model, model.sde.prior.sample(noise, (16,), F64), noise=noise).x
    assert divergence(x, model) < bar  # 4,000 true draws: 0.019


# ---------------------------------------------------------------------------------------------------------- blur, parts


def test_blurring_in_the_cosine_basis():
    sde = Blur(shape=(1, 8, 8))
    spread = 1 / (1 + torch.arange(8, dtype=F64)[:, None] + torch.arange(8, dtype=F64))
    model = GaussianMixture(sde, torch.zeros(1, 1, 8, 8, dtype=F64), covariances=spread.square().flatten().diag()[None])
    noise = Noise.of(6000)
    x = Multistep(40)(model, sde.prior.sample(noise, (1, 8, 8), F64)).x
    assert float((x.var(0)[0] / spread.square()).log().abs().max()) < 0.1
    data = model.sample(1, torch.Generator().manual_seed(0))
    mine, exact, _ = less_prior(model, data, rtol=1e-7, atol=1e-7, divergence="exact")
    assert float((mine - exact).abs().max()) < 1e-4


def test_one_path_beside_another():
    sde = Parts("vp", "ve,sigma_max=20", split=6, shape=(16,))
    model, noise = tangled(sde), Noise.of(4000)
    assert float((sde.prior.std.flatten() - torch.tensor([1.0] * 6 + [20.0] * 10)).abs().max()) < 1e-12
    x = Multistep(60)(model, sde.prior.sample(noise, (16,), F64)).x
    assert divergence(x, model) < 0.025
    mine, exact, _ = less_prior(
        model, model.sample(4, torch.Generator().manual_seed(0)), rtol=1e-8, atol=1e-8, divergence="exact"
    )
    assert float((mine - exact).abs().max()) < 1e-5


# ------------------------------------------------------------------------------------------------------------ the clock


def test_the_clock_is_one_number_and_its_inverse_is_exact():
    for sde in (Bands(), Blur(shape=(1, 8, 8)), Parts("vp", "flow", split=2, shape=(5,))):
        t = torch.linspace(sde.t_min, sde.t_max, 301, dtype=F64)[1:-1]
        assert sde.log_snr(t).shape == sde.ratio(t).shape == t.shape
        back = sde.t_of_log_snr(sde.log_snr(t))
        # Where the clock hardly moves, rounding moves the time more.
        assert float((sde.log_snr(back) - sde.log_snr(t)).abs().max()) < 1e-9
        assert float((sde.t_of_ratio(sde.ratio(t)) - t).abs().max()) < 1e-6
        assert sde.t_of_log_snr(torch.tensor([1e3, -1e3], dtype=F64)).tolist() == [sde.t_min, sde.t_max]
        step = 1e-6
        own = [s / (a + s) for a, s in (sde.coefficients(t + h) for h in (-step, step))]
        rate = (own[1] - own[0]) / (sde.ratio(t + step) - sde.ratio(t - step)).reshape(-1, *[1] * len(sde.coords))
        speed = sde.speed(t)
        assert float(((rate - speed).abs() / (1 + speed))[5:-5].max()) < 1e-3


def test_few_evaluations_invert_the_clock_and_a_row_does_not_depend_on_the_others(monkeypatch):
    for sde in (Bands(), Blur(shape=(1, 8, 8)), Parts("vp", "flow", split=2, shape=(5,))):
        levels = sde.log_snr(torch.linspace(sde.t_min, sde.t_max, 301, dtype=F64)[1:-1])
        log_snr, calls = type(sde).log_snr, []
        monkeypatch.setattr(type(sde), "log_snr", lambda self, t: (calls.append(t), log_snr(self, t))[1])  # noqa: B023
        found = sde.t_of_log_snr(levels)
        assert len(calls) <= 16
        assert all(torch.equal(sde.t_of_log_snr(levels[i : i + 1]), found[i : i + 1]) for i in range(0, 299, 23))
        monkeypatch.undo()


def test_rows_do_not_depend_on_their_batch_and_guidance_follows_the_clock():
    sde = Bands(count=4)
    model, other = (
        GaussianMixture(sde, m * torch.ones(1, 4, dtype=F64), torch.full((1,), 0.5, dtype=F64)) for m in (0.5, -0.5)
    )
    guided = Guided(model, other, 2.0, (0.05, 3.0))
    noise = Noise.of(5)
    x = sde.prior.sample(noise, (4,), F64)
    for solver in (ProbabilityFlow(), MultistepSDE(12), PredictorCorrector(12, corrector="langevin")):
        together = solver(guided, x, noise=noise).x
        alone = solver(guided, x[3:4], noise=noise.rows(torch.tensor([3]))).x
        assert float((together[3:4] - alone).abs().max()) < 1e-12
    times = sde.t_of_log_snr(torch.tensor([-2 * math.log(s) for s in (0.04, 0.06, 2.9, 3.1)], dtype=F64))
    assert [int(guided(x, t).calls) for t in times] == [1, 2, 2, 1]


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_requires_a_scalar_path_is_refused_by_name():
    sde = Bands(count=4)
    model, x = GaussianMixture(sde, torch.zeros(1, 4, dtype=F64), torch.ones(1, dtype=F64)), normals(2, 4)
    for name in ("edm", "dpm2s", "dpm++3s", "singlestep"):
        with pytest.raises(UsageError, match="differ between coordinates"):
            resolve(name, SOLVERS, "solver")()(model, x)
    with pytest.raises(UsageError, match="'g', got 'er'"):
        MultistepSDE(level="er")(model, x)
    with pytest.raises(UsageError, match="the 've' frame"):
        RungeKutta(frame="ve")(model, x)
    with pytest.raises(UsageError, match="straightness"):
        straightness(model, Noise.of(2), (4,))
    with pytest.raises(UsageError, match="in all coordinates at once"):
        convert(model, VPSDE())


def test_conversion_between_paths_with_the_same_levels():
    @dataclass(frozen=True)
    class Straight(Bands):
        """The same noise levels, with alpha + sigma = 1."""

        def alpha(self, t):
            return 1 / (1 + torch.exp(-self.log_snrs(t) / 2))

        def sigma(self, t):
            return 1 / (1 + torch.exp(self.log_snrs(t) / 2))

    model = tangled(Bands())
    moved = convert(model, Straight())
    x = model.sde.prior.sample(Noise.of(4), (16,), F64)
    ends = torch.tensor([1.0], dtype=F64)
    scaled = x * Straight().scale(ends) / Bands().scale(ends)
    a, b = Multistep(60, order=3)(model, x).x, Multistep(60, order=3)(moved, scaled).x
    assert float((a / Bands().scale(torch.tensor([1e-5], dtype=F64)) - b).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: replace(Bands(count=4), count=0), "tuple of positive integers"),
        (lambda: Blur(shape=(4,)), "number of channels"),
        (lambda: Blur(shape="8x8"), r"Blur needs images"),
        (lambda: Parts(shape=(4, 0)), r"shape is \(4, 0\)"),
        (lambda: Blur().log_snr(torch.ones(1)), "set shape"),
        (lambda: Parts(split=3, shape=(3,)), "only 3 entries"),
        (lambda: Parts(first="ddpm"), "continuous time"),
        (lambda: Parts(second="ve,sigma_max"), "field=value"),
        (lambda: check_event(Bands(count=4), (5,)), r"coords = \(4,\)"),
        (lambda: check_event(Bands(count=4), (4, 1)), "one number for each axis"),
    ],
)
def test_bad_coordinates_are_named(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_a_coordinate_that_rises_or_is_not_finite_is_named():
    @dataclass(frozen=True)
    class Rising(Bands):
        def log_snrs(self, t):
            return super().log_snrs(t) + torch.tensor([0.0, 0.0, 0.0, 60.0]) * t

    with pytest.raises(UsageError, match=r"increases between t = .* in coordinate \(3,\)"):
        Rising(count=4)

    @dataclass(frozen=True)
    class Infinite(Bands):
        def sigma(self, t):
            return super().sigma(t) / torch.tensor([1.0, 0.0, 1.0, 1.0])

    with pytest.raises(UsageError, match=r"Infinite.sigma\(t\) is inf at t = .* in coordinate \(1,\)"):
        Infinite(count=4)

    @dataclass(frozen=True)
    class Wrong(Bands):
        def alpha(self, t):
            return torch.ones(len(t), 3)

    with pytest.raises(UsageError, match=r"must broadcast to \(257, 4\)"):
        Wrong(count=4)


@dataclass(frozen=True)
class Early(SDE):
    """Two coordinates, the second of which is pure noise from t = 0.5 on."""

    coords = (2,)
    smooth = False

    def alpha(self, t):
        return torch.cat([1 - t, (1 - 2 * t).clamp(min=0)], 1)

    def sigma(self, t):
        return torch.cat([t, (2 * t).clamp(max=1)], 1)


def test_a_coordinate_whose_signal_is_gone_early():
    model = GaussianMixture(Early(), torch.zeros(1, 2, dtype=F64), torch.full((1,), 0.5, dtype=F64))
    x = torch.tensor([[0.3, -0.2]], dtype=F64)
    found = elbo(model, x.expand(100, -1), strata=64, noise=Noise.of(100)).log_prob
    assert abs(float(found.mean() - model.log_prob(x))) < 4 * float(found.std()) / 10 + 0.02
    likelihood = Likelihood(divergence="exact", rtol=1e-5)(model, x).log_prob
    assert abs(float(likelihood - model.log_prob(x))) < 1e-3


def test_the_prior_of_parts_is_that_of_their_common_end():
    sde = Parts("bbed", "ve,sigma_max=20", split=1, shape=(2,))
    assert sde.t_max == 0.999 and sde.stated_in == "relative"
    assert float((sde.prior.std - sde.coefficients(torch.tensor(0.999, dtype=F64))[1]).abs().max()) < 1e-12


def test_a_level_that_is_negative_in_one_coordinate_is_named():
    with pytest.raises(UsageError, match=r"finite and >= 0, got -1 at t = 0\.5"):
        level_of(Bands(count=2), lambda sde, t: torch.tensor([[-1.0, 1.0]]).expand(len(t), 2), 1.0, torch.tensor([0.5]))
