"""Samples that agree with a measurement, by rules."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from models import F64, normals, small_network

from scoresde import (
    VPSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    Measured,
    Multistep,
    Noise,
    Particles,
    ProbabilityFlow,
    Steered,
    convert,
    elbo,
    sample,
)
from scoresde.codec import Affine, Composed, Levels
from scoresde.core.errors import UsageError
from scoresde.guidance.measured import RULES, moment
from scoresde.operators import JPEG, Blur, Linear, Mask, Pool


def field(sde=None, length=8):
    """A Gaussian signal (1, L) with correlated neighbours."""
    i = torch.arange(length, dtype=F64)
    covariance = torch.exp(-(i[:, None] - i).abs() / 3)
    return GaussianMixture(sde or VPSDE(), torch.zeros(1, 1, length, dtype=F64), covariances=covariance[None])


ONE = torch.ones(1, dtype=F64)


def exact_moment(problem):
    return moment(problem, steps=20)


POOL, Y, NOISE = Pool(2).on((1, 8)), torch.tensor([[[1.0, -0.5, 0.3, 0.8]]], dtype=F64), 0.05


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()])
def test_moment_is_exact_for_a_gaussian(sde):
    model = field(sde)
    truth = model.seen(POOL, Y[0], NOISE)
    measured, x = Measured(model, POOL, Y, NOISE, exact_moment), normals(5, 1, 8)
    for t in (0.01, 0.2, 0.5, 0.9):
        found, exact = measured(x, t), truth(x, t)
        torch.testing.assert_close(found.x0, exact.x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.eps, exact.eps, rtol=1e-8, atol=1e-8)
    last = sde.t_max
    torch.testing.assert_close(measured(x, last).x0, truth(x, last).x0, rtol=0, atol=2e-3)
    few = sample(Measured(model, POOL, Y, NOISE), Multistep(steps=50), (1, 8), Noise.of(400), dtype=F64).x
    assert float((few.mean(0) - truth.means[0]).abs().max()) < 0.1  # kriging, with the error of 400 draws
    torch.testing.assert_close(few.flatten(1).T.cov(), truth.covariances[0], rtol=0, atol=0.1)


def test_a_stopped_row_leaves_the_others_alone():
    model, x = small_network(classes=0), normals(4, 3)
    operator = Mask(torch.tensor([[True, True, False]])).on((3,))
    measured = Measured(model, operator, torch.zeros(4, 3, dtype=F64), 0.01)
    whole = measured(x, 0.4)
    for i in range(4):
        row = torch.tensor([i])
        torch.testing.assert_close(measured.rows(row)(x[row], 0.4).x0[0], whole.x0[i], rtol=1e-10, atol=1e-12)

    # A wrong Jacobian, with negative curvature in the first two rows: these rows stop, and stay finite.
    @dataclass(frozen=True)
    class Wrong:
        domain: object

        def __call__(self, x, t):
            estimate = model(x, t)
            sign = torch.tensor([-50.0, -50.0, 1.0, 1.0], dtype=F64)[: len(x), None]
            return replace(estimate, x0=sign * x, eps=estimate.eps)

        def rows(self, index):
            return self

    found = Measured(Wrong(model.domain), operator, torch.ones(4, 3, dtype=F64), 0.01)(x, 0.4)
    assert bool(found.x0.isfinite().all())
    torch.testing.assert_close(found.x0[:2], -50 * x[:2])
    assert bool(((found.x0[2:, :2] - 1).abs() < (x[2:, :2] - 1).abs()).all())


@pytest.mark.parametrize("rule", list(RULES))
def test_answers_do_not_depend_on_the_batch(rule):
    model = small_network(classes=3)
    y = torch.cat([normals(7, 2), torch.zeros(7, 1, dtype=F64)], 1).repeat_interleave(3, 0)
    known = torch.tensor([[True, True, False]]).repeat(21, 1)
    known[::2, 1] = False
    measured = Measured(model.given(torch.arange(21) % 3), Mask(known).on((3,)), y, 0.1, rule)

    def draw(order, batch):
        return sample(measured.rows(order), Multistep(steps=8), (3,), Noise(0, order), batch=batch, dtype=F64).x

    everyone = torch.arange(21)
    whole = draw(everyone, 21)
    for batch in (1, 5):
        torch.testing.assert_close(draw(everyone, batch), whole, rtol=0, atol=1e-10)
    mixed = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draw(mixed, 21), whole[mixed], rtol=0, atol=1e-10)


def test_projection_agrees_exactly_and_the_others_in_the_end():
    model, operator = small_network(classes=0), Mask(torch.tensor([[True, True, False]])).on((3,))
    y = torch.tensor([[0.3, -0.2, 0.0]], dtype=F64)
    found = sample(Measured(model, operator, y, rule="projection"), Multistep(steps=10), (3,), Noise.of(5), dtype=F64)
    torch.testing.assert_close(found.x[:, :2], y[:, :2].expand(5, 2), rtol=0, atol=1e-12)


@dataclass(frozen=True, eq=False)
class Sums(Linear):
    """Running sums: an operator of a user's own, with one method."""

    def __call__(self, x):
        return x.cumsum(-1)[..., ::3]


@pytest.mark.parametrize("operator", [Sums(), Blur(1.0), Mask(torch.arange(8)[None, None] % 2 == 0)])
@pytest.mark.parametrize("rule", ["pseudoinverse", "moment", exact_moment])
def test_units_of_unlike_scales_against_the_closed_form(operator, rule):
    # Each column has units of its own. The rule "pseudoinverse" is exact if the columns are independent.
    scale, shift = torch.logspace(-1, 2, 8, dtype=F64)[None], torch.linspace(-5, 300, 8, dtype=F64)[None]
    codec, operator = Affine(shift, scale), operator.on((1, 8))
    model = GaussianMixture(VPSDE(), torch.zeros(1, 1, 8, dtype=F64), ONE) if rule == "pseudoinverse" else field()
    y = operator(codec.to_data(model.sample(1, torch.Generator().manual_seed(0))))
    measured, truth = Measured(model, operator, y, 0.3, rule, codec), posterior(model, operator, y, 0.3, codec)
    x = normals(3, 1, 8)
    for t in (0.02, 0.4, 0.9):
        close = 5e-3 if rule == "moment" else 1e-3  # the default takes five steps for three to eight numbers
        torch.testing.assert_close(measured(x, t).x0, truth(x, t).x0, rtol=close, atol=close)


def posterior(model, operator, y, noise, codec):
    """The exact posterior in model units."""
    shift = operator(codec.shift[None].expand(1, 1, 8))
    return model.seen(lambda m: operator(codec.scale * m), (y - shift)[0], noise)


def test_levels_are_compared_in_the_middle_of_their_cells():
    # Values 0 to 255 in steps of 17, spread over their cells: the pool of the spread values is w/2 higher on average.
    codec = Composed((Levels(0.0, 255.0, 16), Affine(127.5, 127.5)))
    model, pool = field(), Pool(2).on((1, 8))
    y = torch.tensor([[[34.0, 119.0, 204.0, 255.0]]], dtype=F64)
    measured = Measured(model, pool, y, 0.0, exact_moment, codec)
    found = sample(measured, ProbabilityFlow(rtol=1e-4), (1, 8), Noise.of(64), dtype=F64).x
    levels = codec.continuous.to_data(found)
    off = pool(levels) - (y + 17 / 2)
    # Each pooled value is the mean of two positions in cells, so its deviation is at most 17/sqrt(24) = 3.5.
    assert float(off.mean().abs()) < 1.5 and 1.0 < float(off.std()) < 5.0


def test_what_is_refused():
    model = field()
    with pytest.raises(UsageError, match=r"jpeg.* is not linear"):
        Measured(model, JPEG(10), Y)
    with pytest.raises(UsageError, match="unknown rule 'momnet'"):
        Measured(model, POOL, Y, rule="momnet")
    coupled = convert(model, FlowMatching())
    object.__setattr__(coupled, "domain", replace(coupled.domain, has_score=False))
    with pytest.raises(UsageError, match=r"'moment' takes the covariance of the data from the score.*'projection'"):
        Measured(coupled, POOL, Y)
    assert Measured(coupled, POOL, Y, rule="projection")(normals(1, 1, 8), 0.5).x0.shape == (1, 1, 8)
    with pytest.raises(UsageError, match="noise"):
        Measured(model, POOL, Y, -1.0)


def test_the_density_and_the_bound_of_a_measured_model_are_named():
    model, pool = field(length=2), Mask(torch.tensor([[[True, False]]])).on((1, 2))
    y = torch.tensor([[[0.7, 0.0]]], dtype=F64)
    measured, truth = Measured(model, pool, y, 0.3, exact_moment), model.seen(pool, y[0], 0.3)
    x = truth.sample(2, torch.Generator().manual_seed(0))
    assert elbo(measured, x, strata=4).whose == "reverse SDE of the measured model"
    how = Likelihood(divergence="exact", rtol=1e-4)
    exact = how(truth, x, check=False).log_prob
    torch.testing.assert_close(how(measured, x, check=False).log_prob, exact, rtol=0, atol=1e-2)
    rough = Likelihood(divergence="difference", probes=4, rtol=1e-3)(measured, x, check=False)
    assert bool(((rough.log_prob.double() - exact).abs() < 5 * rough.stderr_probes + 0.02).all())


def test_particles_choose_the_right_mode():
    # Two clusters that a single path cannot tell apart early: y fits the second, rarer one.
    means = torch.tensor([[-1.0, 0.3], [1.0, -0.3]], dtype=F64)
    model = GaussianMixture(VPSDE(), means, torch.full((2,), 0.15, dtype=F64), torch.tensor([0.9, 0.1], dtype=F64))
    operator, y = Mask(torch.tensor([[False, True]])).on((2,)), torch.tensor([[0.0, -0.05]], dtype=F64)
    truth = model.seen(operator, y[0], 0.1)
    found = sample(Measured(model, operator, y, 0.1), Particles(40, particles=16), (2,), Noise.of(300), dtype=F64)
    share = float((found.x[:, 0] > 0).double().mean())
    assert abs(share - float(truth.weights[1])) < 0.1
    assert found.nfe.tolist() == [41 * 16 + 1] * 300 and bool(found.ok.all())


def test_a_table_of_unlike_columns_with_the_rules_as_they_are():
    # Scales from 0.01 to 1000, eight of nine columns known without noise: the ninth follows from its neighbour.
    i = torch.arange(9, dtype=F64)
    model = GaussianMixture(
        VPSDE(), torch.zeros(1, 9, dtype=F64), covariances=torch.exp(-(i[:, None] - i).abs() / 3)[None]
    )
    scale, known = torch.logspace(-2, 3, 9, dtype=F64), (torch.arange(9) != 8)[None]
    operator = Mask(known).on((9,))
    m = model.sample(1, torch.Generator().manual_seed(0))
    codec = Affine(torch.zeros(9, dtype=F64), scale)
    y, truth = operator(scale * m), model.given(known[0], m[0])
    found = sample(
        Measured(model, operator, y, 0.0, codec=codec), Multistep(steps=50), (9,), Noise.of(400), dtype=F64
    ).x
    assert float((found[:, :8] - m[:, :8]).abs().max()) < 1e-2
    assert abs(float(found[:, 8].mean() - truth.means)) < 0.1
    assert abs(float(found[:, 8].std()) - float(truth.covariances.sqrt())) < 0.06


def test_hidden_entries_may_be_anything_and_shapes_are_checked():
    model, operator = small_network(classes=0), Mask(torch.tensor([[True, True, False]])).on((3,))
    x = normals(1, 3)
    clean, odd = (torch.tensor([[0.3, -0.2, last]], dtype=F64) for last in (0.0, 900.0))
    for other in (odd, torch.tensor([[0.3, -0.2, torch.nan]], dtype=F64)):
        torch.testing.assert_close(
            Measured(model, operator, other, 0.1)(x, 0.4).x0, Measured(model, operator, clean, 0.1)(x, 0.4).x0
        )
    with pytest.raises(UsageError, match=r"have shape \(2,\) for each sample, but those by the operator .* \(3,\)"):
        Measured(model, operator, torch.zeros(1, 2, dtype=F64))


def test_a_function_and_a_measurement_at_once():
    model = field()
    both = Measured(Steered(model, lambda e: -e.x0.square().sum((1, 2))), POOL, Y, 0.5)
    x = normals(2, 1, 8)
    found = both(x, 0.4)
    torch.testing.assert_close(found.plain, model(x, 0.4).x0, rtol=1e-9, atol=1e-9)
    inner = Steered(model, lambda e: -e.x0.square().sum((1, 2)))(x, 0.4).twist()
    alone = found.twist() - inner
    assert bool((alone <= 0).all()) and bool((inner < 0).all())


def test_a_posterior_in_single_precision_without_noise():
    narrow = GaussianMixture(VPSDE(), torch.zeros(1, 1, 8), covariances=field().covariances.float())
    truth = narrow.seen(POOL, Y[0].float())
    assert bool(truth.sample(3, torch.Generator().manual_seed(0)).isfinite().all())
