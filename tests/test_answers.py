"""Answers against the truth: the two identities on an exact posterior, and what breaks them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde.core.errors import UsageError
from scoresde.core.noise import Noise
from scoresde.metrics.answers import exact_gap, gap, psnr, ranks, spread, ssim


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


def test_ties_are_broken_at_random_and_constant_answers_left_out() -> None:
    truth = torch.randint(0, 3, (5000, 2), generator=torch.Generator().manual_seed(0)).double()
    answers = torch.randint(0, 3, (5000, 4, 2), generator=torch.Generator().manual_seed(1)).double()
    answers[:, :, 1] = 7
    found = ranks(truth, answers)
    assert found.left_out >= 5000 and found.deviation < 0.15
    assert found.p_value < 1  # the answers that happen to be equal are the same for the truth
    with pytest.raises(UsageError, match="5 ranks among 4 answers cannot be divided into 2 bins"):
        ranks(truth, answers, bins=2)


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
