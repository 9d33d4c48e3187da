"""Metrics that compare several answers to each question with the truth.

A conditional model answers a question (a low-resolution picture, a row with empty cells) with draws from the
distribution of the missing values. For each of N questions, let y be the question, x the truth and a_1, ..., a_K the
answers. If the answers are exact draws from the posterior, then x, a_1, ..., a_K are exchangeable given y. This has two
consequences, which can be checked without knowing the posterior. First,

    E |x - mean_k a_k|^2 = (1 + 1/K) V,     E |x - a_k|^2 = 2 V,     V = E |x - E[x | y]|^2,                  (1)

so the PSNR of the mean of K answers exceeds that of a single answer by  10 log10(2 / (1 + 1/K))  decibels, and is
10 log10(1 + 1/K)  decibels below that of the posterior mean E[x | y], whose error is V. Second, the
rank of the truth among the answers is uniform on 0, ..., K. If a model is overconfident, the gap in PSNR is smaller,
and the ranks pile up at both ends. An underconfident model shows the opposite. Draws from the prior pass both checks as
well, so the PSNR itself must also be reported.

A value for which the truth and all answers are equal, such as a pixel that is always black, has no rank and is left
out. This rule treats the truth and the answers alike, so the ranks of the other values are still exactly uniform.
Leaving out every value for which the *answers* are equal would break this symmetry: a rare bright pixel would be left
out if it occurred in the truth, but kept if it occurred in an answer, so the highest rank would occur too rarely.

Standard errors come from a jackknife over the questions (:mod:`scoresde.metrics.measurement`).

References:
    Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based calibration, arXiv:1804.06788.
    Wang, Bovik, Sheikh and Simoncelli (2004), Image quality assessment: from error visibility to structural similarity.
    Fortin et al. (2014), Why should ensemble spread match the RMSE of the ensemble mean?: equation 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ..core.errors import UsageError
from ..core.noise import Noise
from .measurement import Measurement, jackknife

__all__ = [
    "Ranks",
    "bins_of",
    "coverage",
    "difference",
    "exact_gap",
    "exact_loss",
    "gap",
    "psnr",
    "ranks",
    "seen",
    "spread",
    "ssim",
]

BINS = 20
FEWEST = 5  # the smallest expected number of values in a bin for which the chi-square test is reliable


def psnr(truth: Tensor, estimate: Tensor, span: float, hidden: Tensor | None = None) -> Measurement:
    """Compute the peak signal-to-noise ratio in decibels, from the squared error averaged over all compared values.

    Args:
        truth: The true samples, ``(N, *event)``.
        estimate: One estimate of each sample, ``(N, *event)``, or several, ``(N, K, *event)``, whose squared errors are
            averaged.
        span: The largest possible difference between two values.
        hidden: Boolean mask of the values to compare, broadcastable to ``(N, *event)``. ``None`` means all values.
    """
    square, count = _squares(truth, estimate, hidden)
    return jackknife(lambda s, n: _decibels(float(s.sum() / n.sum()), span), square, count, paired=True)


def gap(truth: Tensor, answers: Tensor, span: float, hidden: Tensor | None = None) -> Measurement:
    """Compute the PSNR of the mean of the answers minus the PSNR of a single answer, in decibels.

    For exact answers, the expected gap is ``exact_gap(K)``.

    Args:
        truth, span, hidden: See :func:`psnr`.
        answers: The answers, ``(N, K, *event)``.
    """
    return difference("psnr", truth, answers.double().mean(1), answers, span, hidden)


def difference(
    metric: str, truth: Tensor, first: Tensor, second: Tensor, span: float, hidden: Tensor | None = None
) -> Measurement:
    """Compute the PSNR or the structural similarity of one estimate minus that of another estimate of the same samples.

    The error is that of the difference: whatever makes a sample difficult for both estimates cancels.

    Args:
        metric: ``psnr`` (the difference is in decibels) or ``ssim``.
        truth, span, hidden: See :func:`psnr`.
        first, second: The estimates, each ``(N, *event)`` or ``(N, K, *event)``.
    """
    if metric not in ("psnr", "ssim"):
        raise UsageError(f"a difference is computed for psnr or ssim, got {metric!r}", parameter="metric")
    if metric == "ssim":
        (a, count), (b, _) = (_similarities(truth, x, span, hidden) for x in (first, second))
        return jackknife(lambda a, b, n: float((a.sum() - b.sum()) / n.sum()), a, b, count, paired=True)
    (a, count), (b, _) = (_squares(truth, x, hidden) for x in (first, second))
    return jackknife(
        lambda a, b, n: _decibels(float(a.sum() / n.sum()), span) - _decibels(float(b.sum() / n.sum()), span),
        a, b, count, paired=True,
    )  # fmt: skip


def exact_gap(answers: int) -> float:
    """Return the expected :func:`gap` of exact answers in decibels, ``10 log10(2 / (1 + 1/K))`` with K = ``answers``.

    >>> round(exact_gap(16), 2)
    2.75
    """
    return 10 * math.log10(2 / (1 + 1 / answers))


def exact_loss(answers: int) -> float:
    """Return how far the PSNR of the mean of exact answers is below that of the posterior mean, in decibels.

    The expected value is ``10 log10(1 + 1/K)`` with K = ``answers`` (equation 1).

    >>> round(exact_loss(8), 2)
    0.51
    """
    return 10 * math.log10(1 + 1 / answers)


def spread(truth: Tensor, answers: Tensor, hidden: Tensor | None = None) -> Measurement:
    """Compute the ratio of the spread of the answers to the error of their mean.

    The ratio is ``sqrt((1 + 1/K) S / E)``, where S is the unbiased variance of the answers and E is the squared error
    of their mean, both averaged over the compared values. Apart from sampling errors, it is 1 for exact answers. A
    ratio below 1 means that the model is overconfident.

    Args:
        truth, hidden: See :func:`psnr`.
        answers: The answers, ``(N, K, *event)``, with K at least 2.
    """
    several = answers.shape[1]
    if several < 2:
        raise UsageError(
            f"the spread needs at least two answers to each question, got {several}; generate more",
            parameter="each",
        )
    mean, _ = _squares(truth, answers.double().mean(1), hidden)
    mask = _mask(truth, hidden)
    inside = (answers.double().var(1) * mask).flatten(1).sum(1)
    factor = 1 + 1 / several
    return jackknife(lambda s, e: math.sqrt(factor * float(s.sum() / e.sum())), inside, mean, paired=True)


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of the true values among the answers.

    Attributes:
        counts: Number of values whose rank lies in each bin, int64 ``(bins,)``. For exact answers, all bins are equally
            likely.
        answers: Number K of answers to each question. The ranks run from 0 to K.
        left_out: Number of values that were left out because the truth and all answers are equal.
        stderr: Standard errors of :attr:`relative` from a jackknife over the questions, ``(bins,)``.
        most: Largest number of ranked values for any one question.
    """

    counts: npt.NDArray[np.int64]
    answers: int
    left_out: int
    stderr: npt.NDArray[np.float64]
    most: int

    @property
    def relative(self) -> npt.NDArray[np.float64]:
        """The counts divided by the count that is expected if the ranks are uniform, ``(bins,)``."""
        return _relative(self.counts)

    @property
    def deviation(self) -> float:
        """The largest relative deviation of a bin's count from the expected count."""
        return float(np.abs(self.relative - 1).max())

    @property
    def measured(self) -> Measurement:
        """The :attr:`deviation`, with the standard error of the relative count in the bin that deviates most."""
        worst = np.abs(self.relative - 1)
        if np.isnan(worst).any():
            return Measurement(math.nan)
        return Measurement(float(worst.max()), float(self.stderr[worst.argmax()]))

    @property
    def band(self) -> float:
        """The 95% quantile of :attr:`deviation` for exact answers, assuming normally distributed errors."""
        sure = 0.95 ** (1 / len(self.counts))  # probability that a single bin stays within the band
        return float(NormalDist().inv_cdf((1 + sure) / 2) * self.stderr.mean())

    @property
    def p_value(self) -> float:
        """P-value of a chi-square test of uniform ranks. It is valid if :attr:`doubt` is empty."""
        from scipy.stats import chisquare

        return float(chisquare(self.counts).pvalue) if self.counts.sum() else math.nan

    @property
    def doubt(self) -> str:
        """The reason why the :attr:`p_value` is not valid, or an empty string if it is valid."""
        expected = self.counts.sum() / len(self.counts)
        if self.most > 1:
            return f"up to {self.most:,} values of the same question are ranked, and they are not independent"
        if len(self.counts) < 2 or expected < FEWEST:
            return f"there are too few values ({self.counts.sum():,}) for {len(self.counts)} bins of ranks"
        return ""


def ranks(truth: Tensor, answers: Tensor, hidden: Tensor | None = None, bins: int = 0, seed: int = 0) -> Ranks:
    """Count the ranks of the true values among the answers, with ties broken at random.

    Values for which the truth and all answers are equal carry no information and are left out.

    Args:
        truth, hidden: See :func:`psnr`.
        answers: The answers, ``(N, K, *event)``.
        bins: Number of bins of equal size into which the K + 1 ranks are divided, or 0 for ``bins_of(K)`` bins.
        seed: Seed for breaking ties.

    Raises:
        UsageError: If ``bins`` does not divide K + 1.
    """
    several = answers.shape[1]
    bins = bins or bins_of(several)
    if (several + 1) % bins:
        raise UsageError(
            f"the {several + 1} ranks among {several} answers cannot be divided into {bins} bins of equal size; use "
            f"{bins - 1} or {2 * bins - 1} answers, or another number of bins",
            parameter="each",
        )
    below, equal, counted = _ranked(truth, answers, hidden)
    u = Noise.of(len(truth), seed).uniform(tuple(truth.shape[1:]), stream="user", dtype=torch.float64).to(below.device)
    rank = below + (u * (equal + 1)).floor().long()
    place = (rank * bins // (several + 1)).flatten(1)
    table = torch.zeros(len(truth), bins, dtype=torch.int64, device=below.device)
    table.scatter_add_(1, place, counted.flatten(1).long())  # the counts of each question
    errors = [jackknife(lambda t, b=b: float(_relative(t.sum(0).numpy())[b]), table.cpu()).stderr for b in range(bins)]
    left = int((_mask(truth, hidden).to(below.device) & ~counted).sum())
    return Ranks(table.sum(0).cpu().numpy(), several, left, np.array(errors), int(table.sum(1).max()))


def bins_of(answers: int, values: float = math.inf) -> int:
    """Return the default number of bins for :func:`ranks` if there are K = ``answers`` answers to each question.

    All bins contain the same number of ranks. The candidates are the divisors of K + 1 from 2 to 20 and, if none of
    these is at least 5, the smallest divisor above 20. The result is the largest candidate for which at least five of
    the ``values`` ranked values are expected in each bin. If there is no such candidate, it is the largest candidate.

    >>> bins_of(19), bins_of(16), bins_of(22), bins_of(39, 60)
    (20, 17, 23, 10)
    """
    divisors = [n for n in range(2, answers + 2) if (answers + 1) % n == 0]
    usual = max((n for n in divisors if n <= BINS), default=0)
    usual = usual if usual >= FEWEST else min((n for n in divisors if n > BINS), default=usual)
    return max((n for n in divisors if n <= usual and values >= FEWEST * n), default=usual or 1)


def coverage(truth: Tensor, answers: Tensor, level: float, hidden: Tensor | None = None) -> Measurement:
    """Compute how often a central interval of the answers contains the truth.

    The K answers divide the line into K + 1 cells, which are equally probable for exact answers. If only a fraction of
    the truth's cell lies inside the interval, the truth is counted as that fraction. For exact answers, the expected
    coverage is then ``level`` for any K. As in :func:`ranks`, values for which the truth and all answers are equal are
    left out.

    Args:
        truth, hidden: See :func:`psnr`.
        answers: The answers, ``(N, K, *event)``.
        level: The probability, between 0 and 1, that the interval contains the truth if the answers are exact.
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval must be between 0 and 1, got {level:g}")
    below, equal, counted = _ranked(truth, answers, hidden)
    cells = answers.shape[1] + 1
    low, high = below / cells, (below + equal + 1) / cells
    part = (high.clamp(max=(1 + level) / 2) - low.clamp(min=(1 - level) / 2)).clamp(min=0) / (high - low)
    inside = torch.where(counted, part.double(), 0).flatten(1).sum(1)
    count = counted.flatten(1).sum(1).double()
    return jackknife(lambda s, n: float(s.sum() / n.sum()), inside, count, paired=True)


def seen(residual: Tensor, tolerance: float) -> Measurement:
    """Compute the fraction of answers that agree with the given measurements.

    Args:
        residual: For each answer, the largest difference between its measurements and the given ones, ``(N, K)``.
        tolerance: The largest difference that counts as agreement.
    """
    # Rounding errors may raise a difference of exactly half a quantisation level above the tolerance.
    agree = (residual <= tolerance * (1 + 1e-9)).double()
    return jackknife(lambda s: float(s.mean()), agree)


def ssim(truth: Tensor, estimate: Tensor, span: float, hidden: Tensor | None = None) -> Measurement:
    """Compute the mean structural similarity of pictures, with Gaussian windows of standard deviation 1.5.

    The windows are 11 pixels wide along each axis or, for a smaller picture, as wide as the largest odd number of
    pixels that fits. Only windows that lie inside the picture count, as in the implementation by Wang et al.

    Args:
        truth: The true pictures, ``(N, C, H, W)``. Signals, ``(N, C, L)``, and volumes, ``(N, C, D, H, W)``, are also
            accepted.
        estimate: One estimate of each picture, ``(N, C, H, W)``, or several, ``(N, K, C, H, W)``, whose similarities to
            the true picture are averaged.
        span: The largest possible difference between two values.
        hidden: Boolean mask of the pixels at which a window may be centred, broadcastable to ``(N, C, H, W)``. ``None``
            means all pixels.
    """
    total, count = _similarities(truth, estimate, span, hidden)
    return jackknife(lambda s, n: float(s.sum() / n.sum()), total, count, paired=True)


def _similarities(truth: Tensor, estimate: Tensor, span: float, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of the similarities and the number of compared windows for each picture (see :func:`ssim`).

    The similarities are averaged over the answers to a question.
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

    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    a = flat(truth)
    mean_a = local(a)
    var_a = local(a * a) - mean_a**2

    def similarity(x: Tensor) -> Tensor:
        b = flat(x)
        mean_b = local(b)
        var_b, both = local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
        found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        return found.reshape(*truth.shape[:2], *found.shape[2:])

    middle = tuple(slice(size // 2, side - size // 2) for side in truth.shape[2:])
    mask = _mask(truth, hidden)[(slice(None), slice(None), *middle)].to(truth.device)
    several = _several(truth, estimate)
    total = sum(torch.where(mask, similarity(x), 0).flatten(1).sum(1) for x in several.unbind(1)) / several.shape[1]
    assert isinstance(total, Tensor)
    return total, mask.flatten(1).sum(1).double()


def _several(truth: Tensor, estimate: Tensor) -> Tensor:
    """Check estimates ``(N, *event)`` or ``(N, K, *event)``, and return them as ``(N, K, *event)``."""
    several = estimate if estimate.ndim > truth.ndim else estimate.unsqueeze(1)
    if several.shape[2:] != truth.shape[1:] or len(several) != len(truth):
        raise UsageError(
            f"the answers have shape {tuple(estimate.shape)}, but the truth has shape {tuple(truth.shape)}; for a "
            "truth of shape (N, *event), pass answers of shape (N, *event) or (N, K, *event)"
        )
    return several


def _mask(truth: Tensor, hidden: Tensor | None) -> Tensor:
    """Return a mask with the shape of ``truth`` that is true for the values to compare."""
    return torch.ones_like(truth, dtype=torch.bool) if hidden is None else hidden.expand(truth.shape)


def _ranked(truth: Tensor, answers: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each true value how many answers are below it, how many are equal, and whether it has a rank."""
    x = truth.unsqueeze(1)
    below, equal = (answers < x).sum(1), (answers == x).sum(1)
    return below, equal, _mask(truth, hidden).to(below.device) & (equal < answers.shape[1])


def _relative(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the counts divided by their mean, or NaN if all counts are 0."""
    total = counts.sum()
    return counts * (len(counts) / total) if total else np.full(len(counts), np.nan)


def _squares(truth: Tensor, estimate: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of squared errors and the number of compared values for each question.

    The squared errors are averaged over the answers to a question.
    """
    several = _several(truth, estimate)
    mask = _mask(truth, hidden)
    square = (several.double() - truth.double().unsqueeze(1)).square().mean(1)
    return torch.where(mask, square, 0).flatten(1).sum(1), mask.flatten(1).sum(1).double()


def _decibels(square: float, span: float) -> float:
    return math.inf if square == 0 else 10 * math.log10(span**2 / square)
