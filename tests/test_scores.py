"""Likelihoods in the units of the data, against probabilities and densities that are known."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import (
    SDE,
    VPSDE,
    Domain,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    LogLikelihood,
    Noise,
    Scores,
    convert,
)
from scoresde.codec import Affine, Codec, Composed, Levels, as_affine
from scoresde.core.errors import UsageError
from scoresde.likelihood.data import _stderr, join
from scoresde.likelihood.dequantise import log_mean_exp, start_time
from scoresde.model.estimate import Estimate

TIGHT = {"rtol": 1e-5, "check": False}


def score(model: GaussianMixture, codec: Codec, x: Tensor, noise: Noise, **options: Any) -> Scores:
    """Data scored in double precision, with the options of the likelihood and of the call in one table."""
    names = {f.name for f in dataclasses.fields(Likelihood)}
    how = Likelihood(**{k: v for k, v in options.items() if k in names})
    rest = {k: v for k, v in options.items() if k not in names}
    return how(model, x, noise, codec, dtype=torch.float64, **rest)


def levels(count: int, shift: float | None = None, scale: float | None = None) -> Composed:
    """Whole numbers from 0 on, mapped to [-1, 1) if nothing else is said."""
    shift, scale = (count / 2 if v is None else v for v in (shift, scale))
    affine = Affine(*(torch.tensor(v, dtype=torch.float64) for v in (shift, scale)))
    return Composed((Levels(0.0, count - 1.0, count), affine))


def normal(dims: int, mean: float, std: float, sde: SDE | None = None) -> GaussianMixture:
    means, stds = torch.full((1, dims), mean).double(), torch.tensor([std]).double()
    return GaussianMixture(VPSDE() if sde is None else sde, means, stds)


def cells(x: Tensor, mean: float, std: float) -> Tensor:
    """``log P`` of whole numbers ``(n, D)`` under N(mean, std^2), the mass of each cell [x, x + 1); ``(n,)``."""
    edge = (torch.stack([x, x + 1]).double() - mean) / std
    return (torch.special.ndtr(edge[1]) - torch.special.ndtr(edge[0])).log().sum(1)


def at_no_tolerance(self: Likelihood, model: GaussianMixture, x: Tensor, *_: object, **__: object) -> LogLikelihood:
    """What the solver would find at no tolerance but for the prior: the model's density at ``t_min``."""
    n, zero = len(x), torch.zeros(len(x)).double()
    found = model.log_prob(x, self.t_min)
    return LogLikelihood(
        found, zero, torch.zeros_like(x), zero.long() + 1, zero.long(), zero, zero / 0, torch.zeros(n).long()
    )


@pytest.fixture
def solved_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is about dequantisation and not about the solver."""
    monkeypatch.setattr(Likelihood, "solve", at_no_tolerance)


# ------------------------------------------------------------------------------------------------------ accounting


def accounted(codec: Codec, log_prob: Tensor, dims: int) -> Scores:
    """What ``score`` makes of densities of a model, which are put in the place of the solver's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Likelihood, "solve", lambda *a, **k: solved(log_prob.tolist()))
        n = len(log_prob)
        return score(normal(1, 0.0, 1.0), codec, torch.zeros(n, dims), Noise.of(n), check=False)


@pytest.mark.parametrize(("shift", "scale"), [(128.0, 128.0), (0.0, 255.0), (120.7, 64.2)])
def test_uniform_data_of_256_levels_is_8_bits(shift: float, scale: float) -> None:
    # Uniform on the 256 cells, each as long as 1/scale in model units: the density is scale/256 in each dimension.
    codec = levels(256, shift, scale)
    scores = accounted(codec, torch.full((3,), 48 * math.log(scale / 256), dtype=torch.float64), 48)
    assert scores.unit == "bits/dim" and scores.bits_per_dim is not None
    torch.testing.assert_close(scores.bits_per_dim, torch.full((3,), 8.0).double(), rtol=0, atol=1e-12)
    assert f"{scores.mean():.6f}" == "8.000000"
    assert scores.scale == pytest.approx(scale)


def test_the_constant_of_256_levels_on_a_cube_of_side_2_is_7() -> None:
    scores = accounted(levels(256), torch.tensor([-30.0]).double(), 12)
    assert float(scores.values) == pytest.approx(30 / 12 / math.log(2) + 7, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- rescaling


@dataclass(frozen=True)
class Times(SDE):
    """A path whose states, and so alpha and sigma, are ``factor`` times as large."""

    path: SDE = field(default_factory=VPSDE)
    factor: float = 1.0
    data_scale: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return self.factor * self.path.coefficients(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.factor * self.path.coefficients(t)[1]

    @property
    def prior_std(self) -> float:
        return self.factor * self.path.prior_std


@dataclass(frozen=True)
class Rescaled:
    """A model asked in states that are ``factor`` times as large."""

    model: GaussianMixture
    sde: Times

    @property
    def domain(self) -> Domain:
        return dataclasses.replace(self.model.domain, sde=self.sde)

    def rows(self, index: Tensor) -> Rescaled:
        return self

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        inner = self.model(x / self.sde.factor, t)
        return Estimate(x, inner.t, inner.x0, inner.eps, self.sde)


def pair(codec: Codec) -> GaussianMixture:
    """A mixture that is the same in data units, whatever the codec: N(60, 25^2)/4 + 3 N(180, 15^2)/4 per pixel."""
    means = codec.continuous.to_model(torch.tensor([[60.0] * 2, [180.0] * 2]).double())
    stds = torch.tensor([25.0, 15.0]).double() / as_affine(codec, "a mixture").scale
    return GaussianMixture(VPSDE(), means, stds, torch.tensor([0.25, 0.75]).double())


def test_bits_per_dim_do_not_change_when_data_alpha_and_sigma_are_rescaled_together() -> None:
    codec = levels(256)
    x = torch.tensor([[40.0, 66.0], [150.0, 200.0]])
    model, noise = pair(codec), Noise.of(2, seed=4)
    adaptive, fixed = ({"rtol": 1e-3, "atol": 1e-3, "check": False}, {"steps": 3, "check": False})
    for factor, options in ((3.0, adaptive), (0.01, fixed), (255.0, fixed)):
        expected = score(model, codec, x, noise, **options).values
        # the state at t_min in larger units, because the data are, or because the path makes it so
        affine = as_affine(codec, "a scale")
        larger = Composed((codec.parts[0], Affine(affine.shift, affine.scale / factor)))
        for other, sde in ((larger, Times(factor=factor)), (codec, Times(factor=factor, data_scale=factor))):
            found = score(Rescaled(model, sde), other, x, noise, **options)
            torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-6)


def test_one_sde_gives_the_same_bits_per_dim_on_every_scale_of_the_data() -> None:
    # 0..256 to [0, 1], to [-1, 1], and standardised by mean 150 and standard deviation 55: stated to 0.01 bits/dim.
    # What is left is the blur of t_min, a noise of 1e-3 in model units, and what the prior does not know of the data.
    scales = {"[0, 1]": (0.0, 256.0), "[-1, 1]": (128.0, 128.0), "standardised": (150.0, 55.0)}
    x = torch.tensor([[40.0, 66.0], [171.0, 200.0], [60.0, 180.0]])
    found: list[Tensor] = []
    for shift, scale in scales.values():
        codec = levels(256, shift, scale)
        scores = score(pair(codec), codec, x, Noise.of(3), check=False)
        found.append(scores.values)
        assert scores.scale == pytest.approx(scale)
    spread = torch.stack(found).amax(0) - torch.stack(found).amin(0)
    assert float(spread.max()) < 0.01, spread
    assert float(spread.max()) > 1e-7, "three scales that are one"


# ------------------------------------------------------------------------------------------------------ dequantisation


def discretised(n: int, dims: int, mean: float, std: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (mean + std * torch.randn(n, dims, generator=generator, dtype=torch.float64)).floor().clamp(0, 31)


def in_levels(codec: Codec, mean: float, std: float) -> GaussianMixture:
    """N(mean, std^2), in levels, in the model units of ``codec``."""
    affine = as_affine(codec, "a normal")
    scale = float(affine.scale)
    return normal(2, (mean - float(affine.shift)) / scale, std / scale)


@pytest.mark.usefixtures("solved_exactly")
def test_uniform_dequantisation_bounds_the_probability_and_importance_weights_tighten_it() -> None:
    # A model one level wide: its density falls by much within a cell, and the bound is loose.
    codec, (mean, std), n = levels(32), (15.3, 0.8), 1000
    x = discretised(n, 2, mean, std)
    truth = cells(x, mean, std)
    # E log p(x + u) = -log(sqrt(2 pi) std) - (d^2 + d + 1/3)/(2 std^2), d = x - mean, in every dimension
    d = x - mean
    expected = (-math.log(math.sqrt(2 * math.pi) * std) - (d.square() + d + 1 / 3) / (2 * std**2)).sum(1)
    model = in_levels(codec, mean, std)

    def figure(**options: int) -> tuple[float, float]:
        scores = score(model, codec, x, Noise.of(n), **options)
        gap = (truth - scores.log_prob) / (2 * math.log(2))
        return float(gap.mean()), float(gap.std()) / math.sqrt(n)

    plain, error = figure(draws=4)
    known = float((truth - expected).mean()) / (2 * math.log(2))
    assert 0.05 < known < 0.3
    assert abs(plain - known) < 4 * error, "the average of many draws is the integral over the cell"
    tight, error = figure(importance=8)
    tighter, error = figure(importance=64)
    assert plain > 3 * tight > 3 * (tighter + 0.001) > 0, (plain, tight, tighter)
    assert abs(tighter) < 0.01 and tighter > -3 * error, (tighter, error)


@pytest.mark.usefixtures("solved_exactly")
def test_truncated_normal_dequantisation_bounds_the_probability_closely_for_a_model_of_bare_levels() -> None:
    # All mass in the middles of the cells: at t0 a normal with a sixth of a cell around each, which is what q is.
    codec, weights, n = levels(4), torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), 4000
    middles = torch.arange(4).double()[:, None] + 0.5
    model = GaussianMixture(VPSDE(), codec.continuous.to_model(middles), torch.full((4,), 1e-6).double(), weights)
    x = torch.arange(4.0)[:, None].repeat(n // 4, 1)
    scores = score(model, codec, x, Noise.of(n), dequantisation="truncated-normal")
    assert scores.how.t_min == pytest.approx(start_time(VPSDE(), 1e-5, 0.5)) and scores.how.t_min > 1e-4
    assert scores.unit == "bits/dim"
    edges = (torch.stack([x, x + 1]).double() - middles.T) * 6
    truth = -((torch.special.ndtr(edges[1]) - torch.special.ndtr(edges[0])) @ weights).log2()
    gap = scores.values - truth
    error = float(gap.std()) / math.sqrt(n)
    assert -3 * error < float(gap.mean()) < 2e-3, (gap.mean(), error)
    assert float((truth + weights.log2().repeat(n // 4)).abs().max()) < 5e-3, "the probabilities are the weights"
    assert score(model, codec, x, Noise.of(n)).mean() > scores.mean() + 1, "uniform is far off"


@pytest.mark.usefixtures("solved_exactly")
def test_truncated_normal_dequantisation_bounds_the_probability_of_a_smooth_model() -> None:
    codec, (mean, std), n = levels(32), (15.3, 1.5), 1000
    x = discretised(n, 2, mean, std)
    model = in_levels(codec, mean, std)
    scores = score(model, codec, x, Noise.of(n), dequantisation="truncated-normal", check=False)
    # The model at t0 is blurred by a sixth of a cell, which is its distribution then.
    gap = (cells(x, mean, math.hypot(std, 1 / 6)) - scores.log_prob) / (2 * math.log(2))
    error = float(gap.std()) / math.sqrt(n)
    assert float(gap.mean()) > 3 * error, (gap.mean(), error)
    assert 0.3 < float(gap.mean()) < 0.7, "looser than uniform, as documented"


def test_a_converted_model_has_the_same_figure_by_a_truncated_normal() -> None:
    codec = levels(32)
    model, x = in_levels(codec, 15.3, 1.0), torch.tensor([[14.0, 16.0], [15.0, 17.0]]).double()
    own, other = (
        score(m, codec, x, Noise.of(2), dequantisation="truncated-normal", **TIGHT)
        for m in (model, convert(model, FlowMatching()))
    )
    assert own.how.t_min > model.domain.t_min
    torch.testing.assert_close(other.log_prob, own.log_prob, rtol=0, atol=1e-5)


def test_no_dequantisation_gives_the_density_of_the_levels() -> None:
    codec = levels(32)
    model, x = in_levels(codec, 15.3, 3.0), torch.tensor([[14.0, 19.0], [3.0, 15.0]])
    scores = score(model, codec, x, Noise.of(2), dequantisation="none", **TIGHT)
    assert scores.unit == "nats" and scores.bits_per_dim is None
    truth = torch.distributions.Normal(15.3, 3.0).log_prob(x + 0.5).sum(1).double()  # the middle of the cell
    torch.testing.assert_close(scores.log_prob, truth, rtol=0, atol=1e-3)  # t_min and the prior
    assert str(scores.how).startswith("no dequantisation, exact divergence")


def test_draws_are_averaged_and_importance_samples_weighed() -> None:
    codec = levels(32)
    model, noise = in_levels(codec, 15.3, 1.0), Noise.of(3, seed=2, start=5)
    x = torch.tensor([[14.0, 16.0], [15.0, 15.0], [17.0, 12.0]]).double()

    def log_w(address: int) -> Tensor:
        u = noise.uniform((2,), address, "dequantise", torch.float64)
        return model.log_prob(codec.continuous.to_model(x + u), model.domain.t_min) + 2 * math.log(1 / 16)

    for draws, importance in ((1, 1), (2, 3)):
        scores = score(model, codec, x, noise, draws=draws, importance=importance, **TIGHT)
        groups = [
            log_mean_exp(torch.stack([log_w(r * importance + k) for k in range(importance)])) for r in range(draws)
        ]
        torch.testing.assert_close(scores.log_prob, torch.stack(groups).mean(0), rtol=0, atol=5e-4)
        assert (scores.how.draws, scores.how.importance) == (draws, importance)
        assert scores.how.redraw == (importance == 1)
        if importance == 1:
            alone = scores.model.nfe
    assert (scores.model.nfe > 5 * alone).all(), "evaluations are those of all draws"


def test_importance_weights_share_their_probes() -> None:
    # log mean exp of independent noise would be too large; with a shared probe the figure is what an exact trace gives,
    # but for a noise of mean 0. A mixture, whose Jacobian is not diagonal, and one probe.
    codec = levels(32)
    corners = torch.tensor([[-0.3, 0.1, 0.2], [0.2, -0.2, -0.1], [0.1, 0.3, -0.3]]).double()
    model = GaussianMixture(VPSDE(), corners, torch.tensor([0.1, 0.12, 0.15]).double())
    x, noise = torch.tensor([[14.0, 16.0, 17.0]]).repeat(200, 1), Noise.of(200)
    common: dict[str, Any] = {"importance": 4, "steps": 12, "check": False}
    exact = score(model, codec, x, noise, divergence="exact", **common)
    rough = score(model, codec, x, noise, divergence="hutchinson", **common)
    off = rough.log_prob - exact.log_prob
    assert float(off.std()) > 0.03, "no noise, no test"
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(200)
    assert (exact.stderr_probes == 0).all() and rough.stderr_probes.isnan().all()


# -------------------------------------------------------------------------------------------------------------- errors


def solved(log_prob: list[float], stderr: float = 0.0, change: float = math.nan, status: int = 0) -> LogLikelihood:
    n = len(log_prob)
    one, count = torch.ones(n).double(), torch.ones(n).long()
    found = torch.tensor(log_prob, dtype=torch.float64)
    return LogLikelihood(
        found, stderr * one, torch.zeros(n, 4), 7 * count, count, one / 0, change * one, status * count
    )


def test_the_errors_of_independent_draws_fall_and_of_shared_probes_do_not() -> None:
    four = [solved([-1.0, -2.0], 0.2)] * 4
    torch.testing.assert_close(_stderr(four, torch.zeros(4, 1, 2)), torch.full((2,), 0.1).double())
    torch.testing.assert_close(_stderr(four, torch.zeros(1, 4, 2)), torch.full((2,), 0.2).double())
    # the one that carries the weight carries the error
    mixed = [solved([0.0], 0.2), solved([0.0], 5.0)]
    log_w = torch.tensor([[[0.0], [-50.0]]])
    torch.testing.assert_close(_stderr(mixed, log_w), torch.full((1,), 0.2).double())


def made(model: LogLikelihood, bits: bool = True) -> Scores:
    how = Likelihood(divergence="hutchinson", probes=2, t_min=1e-5, dequantisation="uniform")
    values = -model.log_prob / (4 * math.log(2)) if bits else None
    return Scores(model.log_prob, values, model.stderr_probes, model, how, 1.0, torch.full((len(model.log_prob),), 4))


def test_the_two_standard_errors_are_kept_apart() -> None:
    scores = made(solved([-4.0, -6.0, -11.0, -7.0], 0.3))
    unit = 4 * math.log(2)
    assert scores.mean() == pytest.approx(7 / unit)
    assert scores.stderr_mean() == pytest.approx(math.sqrt(26 / 3) / 2 / unit)  # (9 + 1 + 16 + 0)/3, over sqrt(4)
    assert scores.stderr_sample() == pytest.approx(0.3 / unit)
    nats = made(solved([-4.0, -6.0, -11.0, -7.0], 0.3), bits=False)
    assert (nats.mean(), nats.unit) == (-7, "nats") and nats.stderr_sample() == pytest.approx(0.3)
    assert math.isnan(made(solved([-4.0])).stderr_mean())
    both = join([made(solved([-1.0])), made(solved([-2.0, -3.0]))])
    assert both.log_prob.tolist() == [-1.0, -2.0, -3.0] and both.bits_per_dim is not None and both.unit == "bits/dim"


@pytest.mark.parametrize("bits", [True, False])
def test_convergence_is_judged_in_bits_per_dimension(bits: bool) -> None:
    # 4 dimensions: 0.01 bits/dim are 0.0277 nats
    assert made(solved([-1.0], change=0.027), bits).converged is True
    assert made(solved([-1.0], change=0.029), bits).converged is False
    unchecked = made(solved([-1.0]), bits)
    assert unchecked.converged is None and math.isnan(unchecked.change)
    assert made(solved([-1.0], change=0.029), bits).change == pytest.approx(0.029 / (4 * math.log(2) if bits else 1))


@pytest.mark.parametrize("bits", [True, False])
def test_the_share_of_the_integration_is_that_of_the_mean_change(bits: bool) -> None:
    model = solved([-4.0, -6.0, -11.0, -7.0])
    scores = made(dataclasses.replace(model, change=torch.tensor([0.3, math.nan, -0.1, 0.1]).double()), bits)
    unit = 4 * math.log(2) if bits else -1  # bits/dim fall where the log-likelihood rises
    assert scores.change == pytest.approx(0.3 / abs(unit)) and scores.checked == 3
    assert scores.shift == pytest.approx(-0.1 / unit)
    assert scores.share == pytest.approx(0.1 / (math.sqrt(26 / 3) / 2))
    unchecked = made(model, bits)
    assert math.isnan(unchecked.shift) and math.isnan(unchecked.share)


def test_eight_euler_steps_are_loud() -> None:
    codec = levels(32)
    model, x = in_levels(codec, 15.3, 1.0), torch.tensor([[14.0, 16.0], [15.0, 15.0]])
    with pytest.warns(UserWarning, match=r"HAS NOT CONVERGED.*the number of steps is doubled to 16.*more steps"):
        scores = score(model, codec, x, Noise.of(2), steps=8, scheme="euler")
    assert scores.converged is False and scores.change > 0.01
    assert "8 steps with euler" in str(scores.how) and "rtol" not in str(scores.how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = score(model, codec, x, Noise.of(2), steps=30, scheme="rk4")
    assert fine.converged is True


def test_what_a_figure_depends_on_in_words() -> None:
    how = made(solved([-1.0])).how
    assert str(how) == "uniform dequantisation, 1 draw, 2 rademacher probes, coupled, rtol 0.0001, t_min 1e-05"
    assert made(solved([-1.0])).depends_on() == f"{how}, data scale 1"
    other = dataclasses.replace(how, draws=2, importance=8, redraw=False, probes=1, scheme="tsit5")
    assert str(other) == (
        "uniform dequantisation, 2 draws of the importance-weighted bound with K = 8, 1 rademacher probe, fixed "
        "along the trajectory, coupled, rtol 0.0001 with tsit5, t_min 1e-05"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dequantisation": "unifrom"}, "unknown dequantisation 'unifrom'; choose from: auto, uniform"),
        ({"draws": 0}, "draws is 0"),
        ({"importance": 0}, "importance is 0"),
        ({"dequantisation": "none", "importance": 2}, "needs dequantisation"),
        ({"method": "both"}, "coupled, quadrature"),
        ({"scheme": "euler"}, "unknown scheme 'euler' for adaptive steps"),
        ({"scheme": "dopri5", "steps": 4}, "unknown scheme 'dopri5' for fixed steps"),
        ({"t_min": 1.5}, "t_min is 1.5"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], words: str) -> None:
    codec = levels(32)
    with pytest.raises(UsageError, match=words):
        score(in_levels(codec, 15.0, 2.0), codec, torch.zeros(2, 2), Noise.of(2), **options)
    continuous = codec.continuous
    with pytest.raises(UsageError, match="continuous data need no dequantisation"):
        score(in_levels(codec, 15.0, 2.0), continuous, torch.zeros(2, 2), Noise.of(2), dequantisation="uniform")
