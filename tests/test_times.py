"""Time samplers: each has its published density, importance changes no expectation, and what is learned is kept."""

from __future__ import annotations

import math

import pytest
import torch
from models import ALL, CHECKS, F64
from scipy import integrate, stats

from scoresde import (
    DDPM,
    EDM,
    EDMSDE,
    VDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Eps,
    FlowMatching,
    SubVPSDE,
    TrainConfig,
    Velocity,
    load_data,
)
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.tables import TIME_SAMPLERS
from scoresde.objective import weighting as w
from scoresde.objective.times import (
    Importance,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    LowDiscrepancy,
    Mode,
    Setting,
    Sqrt,
    TimeSampler,
    independent,
    make_times,
)
from scoresde.sde.grids import snap

PATHS = {**ALL, "cosine": CosineSDE(), "edm": EDMSDE(), "vdm": VDMSDE()}
SAMPLERS = [
    independent(), LowDiscrepancy(), Sqrt(), LogNormal(), LogitNormal(), Mode(), Importance(), LossSecondMoment(),
]  # fmt: skip
LEVELS = torch.linspace(0.002, 0.998, 250, dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def domain(sde, weighting=None, parametrization=None) -> Setting:
    return Setting(sde, *sde.times("train"), parametrization or Velocity(), weighting or w.LikelihoodWeight())


def free(sde, low: float = 1e-5, high: float = 1.0) -> Setting:
    """A domain with nothing said of the loss."""
    return Setting(sde, low, high)


# ------------------------------------------------------------------------------------------------------------- density

# The distribution functions of the papers: of t, or of log(sigma/alpha).
CDFS = {
    "uniform": (independent(), lambda t, ratio: t),
    "low-discrepancy": (LowDiscrepancy(), lambda t, ratio: t),
    "sqrt": (Sqrt(), lambda t, ratio: t**0.5),
    "lognormal": (LogNormal(), lambda t, ratio: stats.norm.cdf(ratio, -1.2, 1.2)),
    "lognormal-edm2": (LogNormal(-0.4, 1.0), lambda t, ratio: stats.norm.cdf(ratio, -0.4, 1.0)),
    "logit-normal": (LogitNormal(), lambda t, ratio: stats.norm.cdf(torch.logit(t).numpy())),
    "logit-normal-far": (LogitNormal(2.0, 0.3), lambda t, ratio: stats.norm.cdf(torch.logit(t).numpy(), 2.0, 0.3)),
}


@pytest.mark.parametrize("name", CDFS)
@pytest.mark.parametrize("path", ["vp", "ve", "flow", "edm", "user_cosine"])
def test_the_quantile_inverts_the_published_distribution_function(path, name) -> None:
    sampler, cdf = CDFS[name]
    sde = PATHS[path]
    where = free(sde, 0.001, 0.9)
    t = sampler.quantile(LEVELS, where)

    def share(t):
        return torch.as_tensor(cdf(t, (-sde.log_snr(t) / 2).numpy()))

    low, high = share(where.ends)
    torch.testing.assert_close((share(t) - low) / (high - low), LEVELS, rtol=1e-8, atol=1e-10)


def test_mode_has_the_density_of_its_map() -> None:
    """Esser et al., eq. 20: t = 1 - u - k (cos^2(pi u/2) - 1 + u) of a uniform u; the law is that of their t."""
    u = torch.rand(200_000, generator=generator(), dtype=F64)
    for k in (-1.0, -0.3, 0.0, 0.81, 1.29, 2 / (math.pi - 2)):
        theirs = 1 - u - k * (torch.cos(math.pi / 2 * u).square() - 1 + u)
        ours, _ = Mode(k).over(free(FlowMatching(), 0.0)).draw(200_000, generator(1))
        assert stats.ks_2samp(theirs.numpy(), ours.numpy()).statistic < 0.006
        assert (Mode(k).quantile(LEVELS, free(FlowMatching())).diff() >= 0).all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_draws_follow_the_quantile(sampler) -> None:
    """Independent draws pass the Kolmogorov test; stratified ones have exactly one in each cell."""
    where = domain(VPSDE(), w.LikelihoodWeight() if not sampler.emphasis else w.Native(), EDM())
    at_work = sampler.over(where)
    grid = at_work.quantile(torch.linspace(1e-9, 1 - 1e-9, 20_001, dtype=F64))
    count = 500
    t, _ = at_work.draw(count, generator())
    u = torch.searchsorted(grid, t) / 20_000
    if sampler.stratified:
        assert (u - (torch.arange(count) + 0.5) / count).abs().max() < 0.5 / count + 1e-4
    else:
        assert stats.kstest(u.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_draws_are_float64_in_the_domain_and_the_generators(path, sampler) -> None:
    where = domain(PATHS[path], w.Native() if sampler.emphasis else w.LikelihoodWeight())
    at_work = sampler.over(where)
    t, weight = at_work.draw(64, generator(3))
    assert t.dtype == weight.dtype == F64 and t.shape == weight.shape == (64,) and t.device.type == "cpu"
    assert where.low <= float(t.min()) and float(t.max()) <= where.high and len(t.unique()) == 64
    assert torch.isfinite(weight).all() and (weight > 0).all()
    assert torch.equal(at_work.draw(64, generator(3))[0], t)
    assert not torch.equal(at_work.draw(64, generator(4))[0], t)
    if sampler.emphasis or isinstance(sampler, LowDiscrepancy):
        assert torch.equal(weight, torch.ones_like(t))


def test_a_cell_end_at_zero_or_one_is_in_the_domain() -> None:
    """u = 0 is drawn once in 2^53 times, and u = 1 never; the quantiles there are the ends."""
    for sampler in SAMPLERS:
        where = domain(VPSDE(), w.Native() if sampler.emphasis else w.LikelihoodWeight())
        ends = sampler.over(where).quantile(torch.tensor([0.0, 1.0], dtype=F64)).clamp(where.low, where.high)
        torch.testing.assert_close(ends, where.ends, rtol=1e-6, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- closed forms


def test_importance_of_the_likelihood_is_uniform_in_log_snr() -> None:
    """int g^2/sigma^2 dt is the range of the log-SNR: 23.864 for VP and 37.679 for sub-VP, as published."""
    for sde, published in ((VPSDE(), 23.864472365469528), (SubVPSDE(), 37.67894573193406)):
        total = Importance().over(domain(sde)).total
        assert total == pytest.approx(published, rel=1e-12)
        integral = integrate.quad(
            lambda s, sde=sde: float(w.log_snr_speed(sde, torch.tensor(math.exp(s), dtype=F64))) * math.exp(s),
            math.log(1e-5), 0.0, epsabs=1e-10, epsrel=1e-12,
        )[0]  # fmt: skip
        assert total == pytest.approx(integral, rel=1e-10)


def test_importance_of_vp_in_closed_form() -> None:
    """p = beta/(1 - e^-B)/Z has the distribution function log(e^B - 1), up to its ends (Song, Durkan et al. 2021)."""
    sde = VPSDE()
    at_work = Importance().over(domain(sde))
    t = at_work.quantile(LEVELS)
    cdf = torch.log(torch.expm1(sde.integral(torch.tensor([1e-5, 1.0, *t.tolist()], dtype=F64))))
    torch.testing.assert_close((cdf[2:] - cdf[0]) / (cdf[1] - cdf[0]), LEVELS, rtol=1e-10, atol=1e-12)
    # The weight is Z/w, and with it the loss weighs the noise error alike at all times.
    torch.testing.assert_close(at_work.weight(t) * w.log_snr_speed(sde, t) * (1 - 1e-5), at_work.total + 0 * t)


@pytest.mark.parametrize(
    "weighting", [w.LikelihoodWeight(), w.ScoreWeight(), w.MinSNR(), w.X0Weight(), w.Sigmoid(1.0)], ids=str
)
@pytest.mark.parametrize("path", ["vp", "ve", "edm", "user_ve"])
def test_the_tabulated_density_is_the_weight(path, weighting) -> None:
    """du/dt = w/int w, by differences of the quantile; here w is the weight on the residual of EDM."""
    sde = PATHS[path]
    at_work = Importance(error="edm").over(domain(sde, weighting, EDM(0.7)))
    u, h = LEVELS[5:-5:12], 2e-4
    ends = at_work.quantile(torch.stack([u - h, u + h]))
    p = 2 * h / (ends[1] - ends[0])
    t = at_work.quantile(u)
    alpha, sigma = sde.coefficients(t)
    expected = weighting.on_noise(sde, t) * alpha**2 / (alpha**2 + sigma**2)
    torch.testing.assert_close(p, expected / at_work.total, rtol=2e-3, atol=0)


# ------------------------------------------------------------------------------------------------------------ unbiased


def seen(at_work, rounds: int = 40, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    draws = [at_work.draw(count, generator(i)) for i in range(rounds)]
    return torch.cat([t for t, _ in draws]), torch.cat([weight for _, weight in draws])


@pytest.mark.parametrize("sampler", [Importance(), Importance(error="edm"), LossSecondMoment()], ids=str)
@pytest.mark.parametrize("path", ["vp", "ve", "flow", "vdm"])
def test_importance_changes_no_expectation(path, sampler) -> None:
    """E_p f(t)/(p (high - low)) = E_uniform f(t), for an f that has nothing to do with p."""
    at_work = sampler.over(domain(PATHS[path]))
    if isinstance(sampler, LossSecondMoment):
        t, _ = at_work.draw(1000, generator(9))
        at_work.update(t, 0.01 / t + t)
        assert float(at_work.probabilities().max()) > 2 * float(at_work.probabilities().min())
    t, weight = seen(at_work)
    for f, mean in ((lambda t: 1 + 0 * t, 1.0), (lambda t: t, 0.5), (lambda t: torch.cos(7 * t), math.sin(7) / 7)):
        found = weight * f(t)
        # 40 stratified batches: their means scatter less than independent draws would
        error = float(found.reshape(40, -1).mean(1).std()) / 40**0.5
        assert float(found.mean()) == pytest.approx(mean, abs=5 * error + 1e-4)


@pytest.mark.parametrize("sampler", [LowDiscrepancy(), Importance(), LossSecondMoment(history=1)], ids=str)
def test_on_a_chain_the_nodes_are_weighted_to_be_alike(sampler) -> None:
    """Draws are moved to nodes after they are weighted: each node counts 1/N, with more bins than nodes too."""
    chain = DDPM(steps=20, start=0.005, end=0.4)
    at_work = sampler.over(domain(chain, parametrization=Eps()))
    t, _ = at_work.draw(1000, generator())
    at_work.update(t, 1 / snap(t, chain.nodes))
    t, weight = seen(at_work)
    node = (snap(t, chain.nodes) * 20).round().long() - 1
    share = torch.zeros(20, dtype=F64).index_add(0, node, weight) / len(t)
    torch.testing.assert_close(share, torch.full((20,), 0.05, dtype=F64), rtol=0.02, atol=0)


@pytest.mark.parametrize("path", ["vp", "subvp", "flow", "cosine"])
def test_importance_lowers_the_variance_of_the_likelihood_loss(path) -> None:
    """For Gaussian data, whose noise error m = E |eps_hat - eps|^2 is known: the loss is w m times chi-squared."""
    sde = PATHS[path]
    where = domain(sde)

    def losses(sampler, count: int) -> torch.Tensor:
        t, weight = sampler.over(where).draw(count, generator())
        alpha, sigma = sde.coefficients(t)
        chi = torch.randn(count, generator=generator(1), dtype=F64).square()
        return weight * w.log_snr_speed(sde, t) * alpha**2 / (alpha**2 + sigma**2) * chi

    uniform, mine, best = (losses(s, 100_000) for s in (independent(), Importance(), Importance(error="edm")))
    assert float(mine.std()) < 0.2 * float(uniform.std())
    assert float(best.std()) < float(mine.std())


def test_importance_where_the_log_snr_is_infinite() -> None:
    """On the straight path int g^2/sigma^2 dt diverges at t = 1: times end at the log-SNR -20."""
    at_work = Importance().over(domain(FlowMatching()))
    top = 1 / (1 + math.exp(-10))
    assert at_work.total == pytest.approx(20 + 2 * math.log(99_999), rel=1e-12)
    assert float(at_work.quantile(torch.ones((), dtype=F64))) == pytest.approx(top, rel=1e-12)
    assert at_work.span == pytest.approx(top - 1e-5, rel=1e-12)


# ----------------------------------------------------------------------------------------------------- learning losses


def test_losses_decide_after_every_bin_has_its_own() -> None:
    """Nichol and Dhariwal: p ~ sqrt(E L^2) with a thousandth of it uniform; until then all bins alike."""
    at_work = LossSecondMoment(bins=4, history=3).over(free(FlowMatching(), 0.0))
    quarters = (torch.arange(4, dtype=F64) + 0.5) / 4
    assert torch.equal(at_work.edges, torch.linspace(0, 1, 5, dtype=F64))
    for i in range(3):
        torch.testing.assert_close(at_work.probabilities(), torch.full((4,), 0.25, dtype=F64))
        at_work.update(quarters, torch.tensor([100.0, 1.0, 2.0, 3.0]) * (i + 1))
    # rms of 1, 2, 3 is sqrt(14/3), a common factor
    rms = torch.tensor([100.0, 1.0, 2.0, 3.0], dtype=F64)
    torch.testing.assert_close(at_work.probabilities(), 0.999 * rms / rms.sum() + 0.001 / 4)
    for _ in range(3):  # the last three push the others out
        at_work.update(quarters, torch.tensor([4.0, 3.0, 2.0, 1.0]))
    p = 0.999 * torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64) + 0.001 / 4
    torch.testing.assert_close(at_work.probabilities(), p)
    torch.testing.assert_close(at_work.weight(quarters), 0.25 / p)
    t, _ = at_work.draw(10_000, generator())
    torch.testing.assert_close(torch.histc(t, 4, 0, 1) / 10_000, p, atol=2e-4, rtol=0)


def test_bins_of_unequal_width_are_drawn_by_what_they_add() -> None:
    """The bins of VP are cells of sqrt(t). With L = 1/t the best density in t is ~ 1/t."""
    at_work = LossSecondMoment(bins=32, history=200).over(domain(VPSDE()))
    t = at_work.edges[:-1, None] + at_work.edges.diff()[:, None] * torch.linspace(0.0025, 0.9975, 200, dtype=F64)
    at_work.update(t.flatten(), 1 / t.flatten())
    p = at_work.probabilities() / at_work.edges.diff()
    middle = (at_work.edges[:-1] * at_work.edges[1:]).sqrt()
    constant = (p * middle)[2:]
    assert float(constant.max() / constant.min()) < 1.1


def test_losses_of_one_batch_are_taken_in_order() -> None:
    at_work = LossSecondMoment(bins=2, history=2).over(free(FlowMatching(), 0.0))
    at_work.update(torch.tensor([0.1, 0.9, 0.2, 0.3], dtype=F64), torch.tensor([1.0, 5.0, 2.0, 3.0]))
    expected = torch.tensor([[2.0, 3.0], [5.0, math.nan]], dtype=F64)
    torch.testing.assert_close(at_work.state()["losses"], expected, equal_nan=True)


def test_what_was_learned_is_saved_and_loaded_bit_for_bit() -> None:
    where = domain(VPSDE())
    sampler = LossSecondMoment(bins=8)
    one, other = sampler.over(where), sampler.over(where)
    for i in range(30):
        for at_work in (one, other):
            t, _ = at_work.draw(16, generator(i))
            at_work.update(t, (1 / t).to(torch.float32))
        if i in (0, 7, 20):
            other = sampler.over(where)
            other.load({k: v.clone() for k, v in one.state().items()})
        a, b = one.draw(16, generator(100 + i)), other.draw(16, generator(100 + i))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.allclose(one.probabilities(), torch.full((8,), 1 / 8, dtype=F64))
    for wrong in ({}, {"losses": torch.zeros(8, 9)}):
        with pytest.raises(CheckpointError, match=r"shape \(8, 10\)"):
            other.load(wrong)


def test_losses_that_are_all_zero_change_nothing() -> None:
    at_work = LossSecondMoment(bins=2, history=1).over(free(FlowMatching()))
    at_work.update(torch.tensor([0.2, 0.8], dtype=F64), torch.zeros(2))
    assert torch.equal(at_work.probabilities(), torch.full((2,), 0.5, dtype=F64))


# --------------------------------------------------------------------------------------------- names, pairs, refusals


def test_names_and_options() -> None:
    where = free(VPSDE())
    for name in TIME_SAMPLERS:
        assert isinstance(make_times(name, {}, domain(VPSDE(), w.EpsWeight())).sampler, TimeSampler)
    assert make_times("lognormal", {"mean": -0.4}, where).sampler == LogNormal(-0.4)
    assert make_times("sqrt", {"stratified": False}, where).sampler == Sqrt(stratified=False)
    assert make_times(Sqrt(), {}, where).sampler == Sqrt()
    for name, options, message in (
        ("gamma", {}, "unknown time sampler 'gamma'; .*low-discrepancy"),
        ("mode", {"s": 1}, "no option 's'; choose from: k, stratified"),
        ("uniform", {"stratified": True}, "no option"),
        ("scoresde.sde.continuous:VPSDE", {}, "not a time sampler; it must be a frozen dataclass"),
        ("mode", {"k": 2.0}, "k is 2.0; it must be a number >= -1 and"),
        ("lognormal", {"std": 0.0}, "std is 0.0; it must be a number > 0"),
        ("loss-second-moment", {"bins": 1}, "bins is 1; it must be"),
        ("loss-second-moment", {"uniform": 0}, "uniform is 0"),
        ("importance", {"error": "epss"}, "unknown prediction 'epss'; did you mean 'eps'"),
    ):
        with pytest.raises(UsageError, match=message):
            make_times(name, options, where, typed=True)


@pytest.mark.parametrize("weighting", [w.LikelihoodWeight(), w.Sigmoid()], ids=str)
def test_a_weight_per_log_snr_wants_uniform_times(weighting) -> None:
    for sampler in SAMPLERS:
        if sampler.emphasis:
            with pytest.raises(UsageError, match="defined for times uniform in t"):
                sampler.over(domain(VDMSDE(), weighting))
        else:
            sampler.over(domain(VDMSDE(), weighting))


@pytest.mark.parametrize("weighting", [w.X0Weight(), w.EDMWeight(), w.VWeight(), w.Native()], ids=str)
def test_importance_that_would_raise_the_variance_is_refused(weighting) -> None:
    """Their weight on the noise is largest at t = 1, where there is hardly a noise error to weigh."""
    where = domain(VPSDE(), weighting, EDM())
    with pytest.raises(UsageError, match=r"mean square of the loss is .* times as large as .*error='edm'"):
        Importance().over(where)
    Importance(error="edm").over(where)


def test_a_distribution_outside_of_the_domain_is_refused() -> None:
    # log(sigma/alpha) of VP ends at 5.025
    with pytest.raises(UsageError, match=r"the mean of LogNormal.* lies 4\.15 standard deviations outside"):
        LogNormal(mean=10.0).over(free(VPSDE()))
    with pytest.raises(UsageError, match=r"the mean of LogitNormal.* lies 18\.5 standard deviations outside"):
        LogitNormal(mean=-30.0).over(free(VPSDE()))
    LogNormal(mean=0.0, std=1e6).over(free(VPSDE()))  # wide is not far
    with pytest.raises(UsageError, match=r"between 0 and 1, but the time interval is 1e-05 to 2"):
        LogitNormal().over(free(VPSDE(), high=2.0))


def test_a_path_that_is_learned_has_no_density_of_its_own() -> None:
    learned = VDMSDE(learn=True)
    with pytest.raises(UsageError, match="does not support a learned path"):
        Importance().over(domain(learned))
    for sampler in (LowDiscrepancy(), LossSecondMoment()):
        t, weight = sampler.over(domain(learned)).draw(4, generator())
        assert not t.requires_grad and not weight.requires_grad


def test_a_weighting_that_is_0_everywhere_is_no_density() -> None:
    with pytest.raises(UsageError, match="whose integral over t is positive and finite"):
        Importance().over(domain(VPSDE(), lambda sde, p, t: 0 * t))


def test_auto() -> None:
    """The sampler that suits: see TrainConfig."""
    info = load_data("moons").info
    for options, expected in (
        ({}, "sqrt"),
        ({"weighting": "eps"}, "low-discrepancy"),
        ({"weighting": "likelihood"}, "low-discrepancy"),
        ({"predict": "score"}, "low-discrepancy"),
        ({"sde": "flow"}, "low-discrepancy"),
        ({"sde": "edm"}, "lognormal"),
        ({"sde": EDMSDE(sigma_max=20.0)}, "lognormal"),
        ({"sde": "edm", "weighting": "edm", "predict": "x0"}, "lognormal"),
        ({"sde": "edm", "predict": "eps"}, "low-discrepancy"),
        ({"sde": "edm", "t_sampler": "mode"}, "mode"),
    ):
        assert TrainConfig(data="moons", **options).resolved(info).t_sampler == expected
    assert TrainConfig(data="moons", predict="score").resolved(info).weighting == "eps"
    config = TrainConfig(data="moons", weighting="edm").resolved(info, data_std=0.7)
    assert config.weighting_options == {"data_std": 0.7} == config.predict_options


def test_the_loss_floor_of_the_published_paths_with_importance() -> None:
    """The likelihood-weighted loss of C11, to which uniform times converge too slowly to be compared."""
    check, n = CHECKS["C11"], 200_000
    mu, s0 = check["inputs"]["mu"], check["inputs"]["s0"]
    x0 = mu + s0 * torch.randn(n, generator=generator(), dtype=F64)
    eps = torch.randn(n, generator=generator(1), dtype=F64)
    for name, sde in (("vp", VPSDE()), ("subvp", SubVPSDE()), ("ve", VESDE())):
        t, weight = Importance().over(domain(sde, parametrization=Eps())).draw(n, generator(2))
        alpha, sigma = sde.coefficients(t)
        eps_hat = sigma * (alpha * x0 + sigma * eps - alpha * mu) / (alpha**2 * s0**2 + sigma**2)
        losses = weight * w.LikelihoodWeight()(sde, Eps(), t) * (eps_hat - eps) ** 2
        expected = check["expected"][name]["min_likelihood_weighted_per_dim"]
        assert float(losses.mean()) == pytest.approx(expected, abs=4 * float(losses.std()) / math.sqrt(n))
        assert float(losses.std()) / math.sqrt(n) < 0.01 * expected
