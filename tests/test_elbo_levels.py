"""The bound on discrete levels against sums over all levels and integrals by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from models import F64, gaussian, normals
from torch import Tensor
from torch.distributions import Normal

from scoresde import VESDE, VPSDE, FlowMatching, GaussianMixture, Noise, Parts, elbo
from scoresde.codec import Affine, Basis, Composed, Levels
from scoresde.core.errors import UsageError
from scoresde.likelihood.dequantise import TAU
from scoresde.likelihood.levels import decode_from, elbo_on_levels, softmax_nll

COUNT = 9
CODEC = Composed((Levels(0.0, 8.0, COUNT), Affine(4.5, 4.5)))
CENTRES = (torch.arange(COUNT, dtype=F64) + 0.5 - 4.5) / 4.5
MASS = torch.softmax(-(CENTRES - 0.2).square() / (2 * 0.35**2), 0)  # a Gaussian on a lattice


def lattice(sde) -> GaussianMixture:
    """The exact model of the levels with the probabilities ``MASS``."""
    return GaussianMixture(sde, CENTRES[:, None], torch.zeros(COUNT, dtype=F64), MASS)


def coefficients(sde, t: float) -> tuple[float, float]:
    alpha, sigma = sde.coefficients(torch.tensor(t, dtype=F64))
    return float(alpha), float(sigma)


def truth(sde, t_min: float) -> Tensor:
    """The expectation of the bound for each level, by integrals over the two ends on a fine grid.

    The score is exact, so the two ends are what is left of -log P(k): the reverse chain has the transitions of the
    forward one, and is started from the prior instead of q_T, and ended by the softmax instead of the posterior of k.
    """
    z = torch.linspace(-9, 9, 36_001, dtype=F64)
    w = torch.exp(-z.square() / 2)
    w /= w.sum()
    found = []
    for k in range(COUNT):
        alpha, sigma = coefficients(sde, t_min)
        state = alpha * CENTRES[k] + sigma * z
        each = Normal(alpha * CENTRES[:, None], torch.tensor(sigma, dtype=F64)).log_prob(state)  # (COUNT, points)
        posterior = torch.log_softmax(each + MASS.log()[:, None], 0)[k]
        decoded = torch.log_softmax(each, 0)[k]
        alpha, sigma = coefficients(sde, sde.t_max)
        state = alpha * CENTRES[k] + sigma * z
        top = torch.logsumexp(Normal(alpha * CENTRES[:, None], torch.tensor(sigma, dtype=F64)).log_prob(state)
                              + MASS.log()[:, None], 0)  # fmt: skip
        prior = Normal(torch.zeros((), dtype=F64), torch.tensor(sde.prior_std, dtype=F64)).log_prob(state)
        found.append(-MASS[k].log() + w @ (top - prior) + w @ (posterior - decoded))
    return torch.stack(found)


@pytest.mark.parametrize("std", [0.05, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("count", [2, 5, 256])
def test_the_decoder_is_a_softmax_over_all_levels(count: int, std: float) -> None:
    spacing = 0.7
    index = torch.randint(0, count, (200, 3), generator=torch.Generator().manual_seed(0)).to(F64)
    off = std * normals(200, 3) * 3  # also states that lie beyond other levels, or outside all of them
    said = softmax_nll(off, index, torch.tensor(spacing, dtype=F64), torch.tensor(count), std)
    centres = spacing * torch.arange(count, dtype=F64)
    states = spacing * index + off
    each = -(states[..., None] - centres).square() / (2 * std**2)
    expected = -torch.log_softmax(each, -1).gather(-1, index.long()[..., None])[..., 0].sum(1)
    torch.testing.assert_close(said, expected, rtol=1e-10, atol=1e-12)


def test_levels_of_their_own_for_each_column() -> None:
    # 3 levels, 1 level (which is certain) and 200 levels.
    count, spacing = torch.tensor([3, 1, 200]), torch.tensor([0.5, 1.0, 0.01], dtype=F64)
    index = torch.tensor([[2.0, 0.0, 100.0]], dtype=F64)
    off, std = torch.tensor([[-0.3, 2.0, 0.004]], dtype=F64), 0.2
    expected = 0.0
    for k, h, n, d in zip(index[0], spacing, count, off[0], strict=True):
        each = -((k * h + d) - h * torch.arange(int(n), dtype=F64)).square() / (2 * std**2)
        expected -= float(torch.log_softmax(each, 0)[int(k)])
    assert float(softmax_nll(off, index, spacing, count, std)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t_min", [None, 0.3])
@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), VESDE(0.01, 20.0)], ids=["vp", "flow", "ve"])
def test_with_the_exact_score_only_the_two_ends_are_left(sde, t_min: float | None) -> None:
    model, rows = lattice(sde), 2000
    start = decode_from(model, CODEC) if t_min is None else t_min
    expected = truth(sde, start)
    for k in (0, 4, 7):
        x = torch.full((rows, 1), float(k), dtype=F64)
        terms = elbo_on_levels(
            model, CODEC, x, strata=16, t_min=t_min, noise=Noise.of(rows, 4), batch=100_000, dtype=F64
        )
        nll = -terms.log_prob
        error = float(nll.std()) / math.sqrt(rows)
        assert error < 0.06 and float(nll.mean()) == pytest.approx(float(expected[k]), abs=4 * error), k
    # It is a bound on the probability, whose mean is the entropy of the levels.
    entropy = -float(MASS @ MASS.log())
    assert float(MASS @ expected) >= entropy
    if t_min is None and not isinstance(sde, VESDE):
        assert float(MASS @ expected) == pytest.approx(entropy, abs=0.02), "and at the default time a tight one"


def test_levels_are_decoded_where_half_a_cell_is_three_standard_deviations() -> None:
    model = lattice(VPSDE())
    alpha, sigma = coefficients(VPSDE(), decode_from(model, CODEC))
    assert TAU * sigma / alpha == pytest.approx(0.5 / 4.5, rel=1e-5)
    late = GaussianMixture(VESDE(0.5, 20.0), CENTRES[:, None], torch.zeros(COUNT, dtype=F64), MASS)
    assert decode_from(late, CODEC) == late.domain.interval("likelihood")[0]


def test_the_diffusion_term_has_the_draws_of_the_continuous_bound() -> None:
    model, x = gaussian(VPSDE(), 1), torch.arange(COUNT, dtype=F64)[:, None]
    options = {"strata": 8, "draws": 2, "noise": Noise.of(COUNT, 3)}
    one = elbo_on_levels(model, CODEC, x, dtype=F64, **options)
    other = elbo(model, CENTRES[:, None], t_min=decode_from(model, CODEC), **options)
    assert torch.equal(one.steps, other.steps) and torch.equal(one.prior, other.prior)
    assert one.nfe.tolist() == [16] * COUNT
    some = torch.tensor([5, 1])
    options["noise"] = options["noise"].rows(some)
    part = elbo_on_levels(model, CODEC, x[some], dtype=F64, batch=3, **options)
    torch.testing.assert_close(part.log_prob, one.log_prob[some], rtol=1e-12, atol=0)


def test_data_that_have_no_levels_are_refused() -> None:
    model, x = gaussian(VPSDE(), 2), torch.zeros(1, 2, dtype=F64)
    mixed = Composed((Levels([0.0, 0.0], [8.0, 8.0], [9, 0]), Affine(4.5, 4.5)))
    for codec, words in (
        (Affine(0.0, 1.0), "these data are continuous"),
        (mixed, "some columns are continuous"),
        (Composed((Levels(0.0, 8.0, 9), Affine(4.5, 4.5), Basis("dct"))), "only shifts and scales"),
    ):
        with pytest.raises(UsageError, match=words):
            elbo_on_levels(model, codec, x)
    uneven = gaussian(Parts("vp", "flow", split=1, shape=(2,)), 2)
    with pytest.raises(UsageError, match="differ between coordinates"):
        decode_from(uneven, CODEC)
