"""Answers against the truth: the two identities on an exact posterior, and what breaks them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde.core.errors import UsageError
from scoresde.core.noise import Noise
from scoresde.metrics.answers import coverage, difference, exact_gap, exact_loss, gap, psnr, ranks, seen, spread, ssim


def posterior(n: int = 4000, answers: int = 19, width: float = 1.0) -> tuple[Tensor, Tensor]:
    """A Gaussian truth whose mean is known, x = y + z, and draws y + width z', ``(n, 3)`` and ``(n, answers, 3)``."""
    y = Noise.of(n, 1).normal((3,), dtype=torch.float64)
    x = y + Noise.of(n, 2).normal((3,), dtype=torch.float64)
    return x, y[:, None] + width * Noise.of(n, 3).normal((answers, 3), dtype=torch.float64)


def test_exact_answers_satisfy_both_identities() -> None:
    truth, answers = posterior()
    found = gap(truth, answers, 1.0)
    assert exact_gap(19) == pytest.approx(10 * math.log10(1.9))
    assert abs(found.value - exact_gap(19)) < 3 * found.stderr < 0.2
    ratio = spread(truth, answers)
    assert abs(ratio.value - 1) < 3 * ratio.stderr < 0.1
    rank = ranks(truth, answers)
    assert rank.counts.sum() == 12_000 and len(rank.counts) == 20 and rank.p_value > 0.01 and rank.deviation < 0.15
    mean = psnr(truth, answers.mean(1), 2.0)
    assert mean.value == pytest.approx(10 * math.log10(4 / (1 + 1 / 19)), abs=4 * mean.stderr)
    one = psnr(truth, answers, 2.0)
    assert mean.value - one.value == pytest.approx(found.value)


@pytest.mark.parametrize("each", [1, 2, 8])
def test_the_mean_of_exact_answers_costs_what_is_told(each: int) -> None:
    truth, answers = posterior(answers=each)
    y = Noise.of(4000, 1).normal((3,), dtype=torch.float64)  # the posterior mean
    loss = difference("psnr", truth, y, answers.mean(1), 2.0)
    assert exact_loss(each) == pytest.approx(10 * math.log10((each + 1) / each))
    assert abs(loss.value - exact_loss(each)) < 3 * loss.stderr < 0.3
    assert exact_gap(each) == pytest.approx(exact_loss(1) - exact_loss(each))


@pytest.mark.parametrize(("width", "sign"), [(0.6, -1), (1.5, 1)])
def test_wrong_spreads_show(width: float, sign: int) -> None:
    truth, answers = posterior(width=width)
    found, ratio, rank = gap(truth, answers, 1.0), spread(truth, answers), ranks(truth, answers)
    assert sign * (found.value - exact_gap(19)) > 3 * found.stderr
    assert ratio.value == pytest.approx(width, rel=0.05) or width == 1.5
    assert sign * (ratio.value - 1) > 3 * ratio.stderr
    ends = rank.counts[[0, -1]].mean() / rank.counts.mean()
    assert (ends > 1.5 if sign < 0 else ends < 0.6) and rank.p_value < 1e-6 and rank.deviation > 0.3


def test_answers_from_the_prior_satisfy_them_too_but_their_psnr_tells() -> None:
    truth, exact = posterior()
    prior = math.sqrt(2) * Noise.of(4000, 9).normal((19, 3), dtype=torch.float64)
    found = gap(truth, prior, 1.0)
    assert abs(found.value - exact_gap(19)) < 3 * found.stderr and ranks(truth, prior).deviation < 0.15
    assert psnr(truth, prior.mean(1), 1.0).value < psnr(truth, exact.mean(1), 1.0).value - 2


def test_only_hidden_values_count() -> None:
    truth, answers = posterior(200)
    hidden = torch.tensor([True, False, True])
    broken = answers.clone()
    broken[:, :, 1] = 1e6
    for metric in (lambda a, h: psnr(truth, a, 1.0, h), lambda a, h: gap(truth, a, 1.0, h),
                   lambda a, h: spread(truth, a, h)):  # fmt: skip
        assert metric(broken, hidden) == metric(answers, hidden)
        assert metric(broken, None) != metric(answers, None)
    np.testing.assert_array_equal(ranks(truth, broken, hidden).counts, ranks(truth, answers, hidden).counts)
    assert ranks(truth, answers, hidden).counts.sum() == 400


def test_ties_are_broken_at_random_and_values_that_are_all_equal_are_left_out() -> None:
    values = torch.randint(0, 3, (20_000, 5, 2), generator=torch.Generator().manual_seed(0)).double()
    values[:, :, 1] = 7
    truth, answers = values[:, 0], values[:, 1:]
    found = ranks(truth, answers)
    same = int((values == values[:, :1]).all(1)[:, 0].sum())
    assert found.left_out == 20_000 + same and found.counts.sum() == 20_000 - same and found.most == 1
    assert found.p_value > 0.01 and found.deviation < 0.05
    answers = answers.clone()
    answers[:, :, 1] = 6  # answers that are certain, and wrong
    assert ranks(truth, answers).counts[-1] > 20_000 and coverage(truth, answers, 0.9).value < 0.83
    with pytest.raises(UsageError, match="5 ranks among 4 answers cannot be divided into 2 bins"):
        ranks(truth, answers, bins=2)


@pytest.mark.parametrize("rare", [0.02, 0.1])
def test_ranks_of_exact_answers_are_uniform_where_most_values_are_black(rare: float) -> None:
    u = torch.rand(2, 60_000, 20, 1, generator=torch.Generator().manual_seed(0))
    values = torch.where(u[0] < rare, u[1], 0)  # the truth and its answers, exchangeable
    found = ranks(values[:, 0], values[:, 1:])
    assert found.left_out > 1000 and len(found.counts) == 20 and found.doubt == ""
    assert found.p_value > 0.01 and np.abs(found.relative - 1).max() < 0.12
    # To leave out what the answers agree about, whatever the truth, makes the highest rank too rare.
    varied = (values[:, 1:] != values[:, 1:2]).any(1).flatten()
    assert ranks(values[varied, 0], values[varied, 1:]).relative[-1] < 0.8
    for level in (0.5, 0.9):
        share = coverage(values[:, 0], values[:, 1:], level)
        assert abs(share.value - level) < 4 * share.stderr < 0.04


def test_the_errors_of_ranks_are_those_of_repetitions() -> None:
    relative, errors, beyond = [], [], []
    for seed in range(60):
        y = Noise.of(400, 3 * seed).normal((1,), dtype=torch.float64)
        x = y + Noise.of(400, 3 * seed + 1).normal((1,), dtype=torch.float64)
        answers = y[:, None] + Noise.of(400, 3 * seed + 2).normal((7, 1), dtype=torch.float64)
        found = ranks(x.expand(-1, 6), answers.expand(-1, -1, 6))  # the six values of a question are one
        assert found.counts.sum() == 2400 and found.most == 6 and "not independent" in found.doubt
        relative.append(found.relative)
        errors.append(found.stderr)
        beyond.append(found.deviation > found.band)
    scatter, error = np.std(relative, axis=0).mean(), np.mean(errors)
    assert scatter == pytest.approx(math.sqrt(7 / 400), rel=0.15)  # as of 400 values, not of 2,400
    assert error == pytest.approx(scatter, rel=0.15)
    assert sum(beyond) <= 8  # 3 are expected
    assert found.band == pytest.approx(2.73 * error, rel=0.2)  # P(|z| < 2.73) = 0.95^(1/8)
    assert found.measured.value == found.deviation and found.measured.stderr in found.stderr


def test_few_values_have_no_p_value() -> None:
    truth, answers = posterior(30)
    found = ranks(truth[:, :1], answers[..., :1])
    assert found.most == 1 and "too few values (30) for 20 bins" in found.doubt
    assert ranks(truth[:, :1], answers[..., :1], bins=5).doubt == ""
    nothing = ranks(truth, answers, torch.tensor(False))
    assert math.isnan(nothing.deviation) and math.isnan(nothing.p_value) and nothing.doubt


@pytest.mark.parametrize("several", [3, 8, 19])
def test_coverage_of_exact_answers_is_the_level(several: int) -> None:
    truth, answers = posterior(8000, several)
    _, narrow = posterior(8000, several, width=0.5)
    _, wide = posterior(8000, several, width=2.0)
    for level in (0.5, 0.8, 0.95):
        found = coverage(truth, answers, level)
        assert abs(found.value - level) < 4 * found.stderr < 0.03
        assert coverage(truth, narrow, level).value < level - 6 * found.stderr
        assert coverage(truth, wide, level).value > level + 4 * found.stderr
    with pytest.raises(UsageError, match="between 0 and 1, got 50"):
        coverage(truth, answers, 50)


def test_coverage_by_hand() -> None:
    answers = torch.tensor([[1.0, 2.0, 3.0]]).expand(4, 3)[..., None]  # cells of 1/4
    truth = torch.tensor([[0.0], [1.5], [2.5], [9.0]])
    one = [coverage(truth[i : i + 1], answers[i : i + 1], 0.75).value for i in range(4)]
    assert one == pytest.approx([0.5, 1, 1, 0.5]) and coverage(truth, answers, 0.75).value == pytest.approx(0.75)
    tied = coverage(torch.tensor([[1.0]]), answers[:1], 0.75)  # below or above the first answer, each as probable
    assert tied.value == pytest.approx(0.75)
    assert coverage(truth, answers, 0.75, torch.tensor([[True], [False], [False], [False]])).value == pytest.approx(0.5)


def test_the_share_of_answers_that_agree() -> None:
    residual = torch.tensor([[0.0, 0.5, 0.6], [0.5, 0.5 + 1e-12, 0.1]])
    assert seen(residual, 0.5).value == pytest.approx(5 / 6)
    assert seen(residual, 0.0).value == pytest.approx(1 / 6)
    many = (torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)) > 0.3).double()
    assert seen(many, 0.5).stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 8000), rel=0.5)


def test_structural_similarity_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(6, 2, 16, 13, generator=g, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(a.shape, generator=g, dtype=torch.float64)).clamp(0, 1)
    assert ssim(a, a, 1.0).value == pytest.approx(1, abs=1e-12)
    i = np.arange(11) - 5
    line = np.exp(-((i / 1.5) ** 2) / 2)
    w = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(a.numpy().reshape(-1, 16, 13), b.numpy().reshape(-1, 16, 13), strict=True):
        for r in range(6):
            for c in range(3):
                p, q = x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, pq = (w * p * p).sum() - mp**2, (w * q * q).sum() - mq**2, (w * p * q).sum() - mp * mq
                values.append((2 * mp * mq + 1e-4) * (2 * pq + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(a, b, 1.0).value == pytest.approx(float(np.mean(values)), abs=1e-10)
    assert ssim(a * 255, b * 255, 255.0).value == pytest.approx(float(np.mean(values)), abs=1e-10)
    both = ssim(a, torch.stack([a, b], 1), 1.0)  # of two answers
    assert both.value == pytest.approx((1 + float(np.mean(values))) / 2, abs=1e-10)
    hidden = torch.zeros(16, 13, dtype=torch.bool)
    hidden[8, 6] = hidden[0, 0] = True  # the corner is not the centre of a window
    at = [v for i, v in enumerate(values) if i % 18 == 10]  # row 3 of 6, column 1 of 3
    assert len(at) == 12 and ssim(a, b, 1.0, hidden).value == pytest.approx(float(np.mean(at)), abs=1e-10)
    small = ssim(a[..., :4, :3], b[..., :4, :3], 1.0)
    assert 0 < small.value < 1 and math.isfinite(small.stderr)
    assert ssim(a[..., 0], b[..., 0], 1.0).value < 1
    with pytest.raises(UsageError, match="not vectors"):
        ssim(a[:, 0, :, 0], b[:, 0, :, 0], 1.0)


def test_shapes_that_do_not_belong_together() -> None:
    truth, answers = posterior(50)
    with pytest.raises(UsageError, match=r"the answers have shape \(50, 19, 2\)"):
        psnr(truth, answers[..., :2], 1.0)
    with pytest.raises(UsageError, match="at least two answers"):
        spread(truth, answers[:, :1])
    assert psnr(truth, truth, 1.0).value == math.inf


def test_the_errors_of_paired_sums_are_those_of_repetitions() -> None:
    """The two errors of a question belong together, and so do its error and its number of hidden values."""
    found: dict[str, list[tuple[float, float]]] = {"gap": [], "spread": [], "psnr": [], "coverage": []}
    for seed in range(80):
        noise = [Noise.of(200, 4 * seed + i) for i in range(4)]
        size = noise[0].normal((1,), dtype=torch.float64).exp()  # questions differ in how uncertain they are
        truth = size * noise[1].normal((4,), dtype=torch.float64)
        answers = size[:, None] * noise[2].normal((3, 4), dtype=torch.float64)
        hidden = noise[3].uniform((4,), dtype=torch.float64) < noise[3].uniform((1,), 1, dtype=torch.float64)
        for name, one in (
            ("gap", gap(truth, answers, 1.0)), ("spread", spread(truth, answers)),
            ("psnr", psnr(truth, answers, 1.0, hidden)), ("coverage", coverage(truth, answers, 0.5, hidden)),
        ):  # fmt: skip
            found[name].append((one.value, one.stderr))
    for name, pairs in found.items():
        values, errors = np.array(pairs).T
        assert errors.mean() == pytest.approx(values.std(), rel=0.25), name


def test_questions_without_hidden_values_do_not_break_the_errors() -> None:
    truth, answers = posterior(6, 3)
    hidden = torch.zeros(6, 3, dtype=torch.bool)
    hidden[1] = True
    found = psnr(truth, answers, 1.0, hidden)
    assert found.value == psnr(truth[1:2], answers[1:2], 1.0).value
    assert math.isnan(psnr(truth, answers, 1.0, torch.tensor(False)).value)
