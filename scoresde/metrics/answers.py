"""Metrics that compare several answers to each question with the truth.

A conditional model answers a question (a low-resolution picture, a row with empty cells) with draws from the
distribution of what is missing. For each of N questions, let y be the question, x the truth and a_1, ..., a_K the
answers. If the answers are exact draws from the posterior, then x, a_1, ..., a_K are exchangeable given y. This has two
consequences, which can be checked without knowing the posterior. First,

    E |x - mean_k a_k|^2 = (1 + 1/K) V,     E |x - a_k|^2 = 2 V,     V = E |x - E[x | y]|^2,                  (1)

so the PSNR of the mean of K answers exceeds that of a single answer by  10 log10(2 / (1 + 1/K))  decibels. Second, the
rank of the truth among its answers is uniform on 0, ..., K. If a model is overconfident, the gap in PSNR is smaller,
and the ranks pile up at both ends. An underconfident model shows the opposite. Draws from the prior pass both checks as
well, so the PSNR itself must also be reported.

Standard errors come from a jackknife over the questions (:mod:`scoresde.metrics.measurement`).

References:
    Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based calibration, arXiv:1804.06788.
    Wang, Bovik, Sheikh and Simoncelli (2004), Image quality assessment: from error visibility to structural similarity.
    Fortin et al. (2014), Why should ensemble spread match the RMSE of the ensemble mean?: equation 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ..core.errors import UsageError
from ..core.noise import Noise
from .measurement import Measurement, jackknife

__all__ = ["Ranks", "exact_gap", "gap", "psnr", "ranks", "spread", "ssim"]

BINS = 20


def psnr(truth: Tensor, estimate: Tensor, span: float, hidden: Tensor | None = None) -> Measurement:
    """Compute the peak signal-to-noise ratio in decibels, from the squared error averaged over all questions.

    Args:
        truth: The true samples, ``(N, *event)``.
        estimate: One estimate of each sample, ``(N, *event)``, or several, ``(N, K, *event)``, whose squared errors are
            averaged.
        span: The largest possible difference between two values.
        hidden: A mask that is true for the values to compare, bool, broadcastable to ``(N, *event)``, or ``None`` for
            all values.
    """
    square, count = _squares(truth, estimate, hidden)
    return jackknife(lambda s, n: _decibels(float(s.sum() / n.sum()), span), square, count)


def gap(truth: Tensor, answers: Tensor, span: float, hidden: Tensor | None = None) -> Measurement:
    """Compute by how many decibels the PSNR of the mean of the answers exceeds that of a single answer.

    Args:
        truth, span, hidden: As for :func:`psnr`.
        answers: The answers, ``(N, K, *event)``. For exact answers, the gap is ``exact_gap(K)``.
    """
    one, count = _squares(truth, answers, hidden)
    mean, _ = _squares(truth, answers.double().mean(1), hidden)
    return jackknife(
        lambda a, b, n: _decibels(float(b.sum() / n.sum()), span) - _decibels(float(a.sum() / n.sum()), span),
        one, mean, count,
    )  # fmt: skip


def exact_gap(answers: int) -> float:
    """Return the expected :func:`gap` if all K answers are exact, ``10 log10(2 / (1 + 1/K))`` decibels.

    >>> round(exact_gap(16), 2)
    2.75
    """
    return 10 * math.log10(2 / (1 + 1 / answers))


def spread(truth: Tensor, answers: Tensor, hidden: Tensor | None = None) -> Measurement:
    """Compute the standard deviation of the answers relative to the error of their mean, which is 1 for exact answers.

    The ratio is ``sqrt((1 + 1/K) S / E)``, where S is the unbiased variance of the answers and E the squared error of
    their mean, both averaged over all values. A value below 1 means that the model is overconfident.

    Args:
        truth, hidden: As for :func:`psnr`.
        answers: The answers, ``(N, K, *event)``, with K at least 2.
    """
    several = answers.shape[1]
    if several < 2:
        raise UsageError(f"the spread needs at least two answers to each question, got {several}", parameter="each")
    mean, _ = _squares(truth, answers.double().mean(1), hidden)
    mask = torch.ones_like(truth, dtype=torch.bool) if hidden is None else hidden.expand(truth.shape)
    inside = (answers.double().var(1) * mask).flatten(1).sum(1)
    factor = 1 + 1 / several
    return jackknife(lambda s, e: math.sqrt(factor * float(s.sum() / e.sum())), inside, mean)


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of the truth among its answers.

    Attributes:
        counts: Number of values in each bin of ranks, int64 ``(bins,)``. For exact answers, all bins are equally
            likely.
        answers: Number of answers to each question, K. The ranks run from 0 to K.
        left_out: Number of values that were left out because all their answers are equal.
    """

    counts: npt.NDArray[np.int64]
    answers: int
    left_out: int = 0

    @property
    def deviation(self) -> float:
        """Largest relative deviation of a bin from its expected count, which is 0 for uniform ranks."""
        expected = self.counts.sum() / len(self.counts)
        return float(np.abs(self.counts / expected - 1).max()) if expected else math.nan

    @property
    def p_value(self) -> float:
        """P-value of a chi-square test of uniform ranks. It is valid only if each question has a single value."""
        from scipy.stats import chisquare

        return float(chisquare(self.counts).pvalue) if self.counts.sum() else math.nan


def ranks(truth: Tensor, answers: Tensor, hidden: Tensor | None = None, bins: int = 0, seed: int = 0) -> Ranks:
    """Compute the rank of each true value among its answers, with ties broken at random.

    Values whose answers are all equal carry no information and are left out.

    Args:
        truth, hidden: As for :func:`psnr`.
        answers: The answers, ``(N, K, *event)``.
        bins: Number of bins of equal size for the K + 1 ranks, or 0 for the largest divisor of K + 1 that is at most
            20.
        seed: Seed for breaking ties.

    Raises:
        UsageError: If ``bins`` does not divide K + 1.
    """
    several = answers.shape[1]
    bins = bins or max(n for n in range(1, BINS + 1) if (several + 1) % n == 0)
    if (several + 1) % bins:
        raise UsageError(
            f"the {several + 1} ranks among {several} answers cannot be divided into {bins} bins of equal size; use "
            f"{bins - 1} or {2 * bins - 1} answers, or another number of bins",
            parameter="each",
        )
    x = truth.unsqueeze(1)
    below, equal = (answers < x).sum(1), (answers == x).sum(1)
    u = Noise.of(len(truth), seed).uniform(tuple(truth.shape[1:]), stream="user", dtype=torch.float64).to(below.device)
    rank = below + (u * (equal + 1)).floor().long()
    varied = (answers != answers[:, :1]).any(1)
    mask = torch.ones_like(varied) if hidden is None else hidden.expand(varied.shape).to(varied.device)
    counts = torch.bincount(rank[varied & mask] * bins // (several + 1), minlength=bins)
    return Ranks(counts.cpu().numpy(), several, int((mask & ~varied).sum()))


def ssim(truth: Tensor, estimate: Tensor, span: float) -> Measurement:
    """Compute the mean structural similarity of pictures, with Gaussian windows of standard deviation 1.5.

    The windows are 11 pixels wide along each axis or, for a smaller picture, as wide as the largest odd number of
    pixels that fits. Only windows that lie inside the picture count, as in the authors' implementation.

    Args:
        truth: The true pictures, ``(N, C, H, W)``, signals, ``(N, C, L)``, or volumes, ``(N, C, D, H, W)``.
        estimate: One estimate of each, with the same shape.
        span: The largest possible difference between two values.
    """
    dims = truth.ndim - 2
    if dims < 1:
        raise UsageError("ssim compares pictures, signals or volumes, not vectors; use psnr for vectors")
    size = min(11, *(side - 1 + side % 2 for side in truth.shape[2:]))
    i = torch.arange(size, dtype=torch.float64, device=truth.device) - size // 2
    line = torch.exp(-((i / 1.5) ** 2) / 2)
    line = line / line.sum()
    window = line
    for _ in range(dims - 1):
        window = window[..., None] * line
    kernel, conv = window[None, None], (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]

    def local(x: Tensor) -> Tensor:
        return conv(x, kernel)

    def flat(x: Tensor) -> Tensor:
        return x.double().flatten(0, 1).unsqueeze(1)

    a, b = flat(truth), flat(estimate)
    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    both = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    each = found.flatten(1).mean(1).reshape(len(truth), -1).mean(1)
    return jackknife(lambda s: float(s.mean()), each)


def _squares(truth: Tensor, estimate: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each question's squared error, summed over values and averaged over answers, and its number of values."""
    several = estimate if estimate.ndim > truth.ndim else estimate.unsqueeze(1)
    if several.shape[2:] != truth.shape[1:] or len(several) != len(truth):
        raise UsageError(
            f"the answers have shape {tuple(estimate.shape)}, but the truth has shape {tuple(truth.shape)}; for a "
            "truth of shape (N, *event), pass answers of shape (N, *event) or (N, K, *event)"
        )
    mask = torch.ones_like(truth, dtype=torch.bool) if hidden is None else hidden.expand(truth.shape)
    square = (several.double() - truth.double().unsqueeze(1)).square().mean(1)
    return torch.where(mask, square, 0).flatten(1).sum(1), mask.flatten(1).sum(1).double()


def _decibels(square: float, span: float) -> float:
    return math.inf if square == 0 else 10 * math.log10(span**2 / square)
