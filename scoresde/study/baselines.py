"""Simple estimates of the truth, with which the answers of a conditional model are compared.

An estimate is one sample for each question, which needs no network. The estimates say what a network adds:

    =========================  ==========================================================================
    estimate                   how it is computed
    =========================  ==========================================================================
    `shown to the network`     A^+ y, or another estimate that the network is shown of a measurement y = A x
    `... interpolation`        for `pool`: linear, bicubic or trilinear interpolation of the measurement
    `training mean`            the mean of the training rows; for tables, `column means`
    `linear regression`        for tables: the best linear estimate from the known numbers (equation 1)
    =========================  ==========================================================================

The linear regression uses the mean m and the covariance C of the training rows, in which the numbers of the condition
are further columns. If k are the known numbers of a row and u the unknown ones, it estimates

    x_u = m_u + C_uk C_kk^+ (x_k - m_k),                                                                      (1)

which is the conditional mean if the rows are jointly Gaussian. For data with levels, estimates are not rounded.
Interpolated pictures are clamped to the range of the levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ..data import Dataset
from ..data.rows import thinned
from ..operators import Masking, Pool

if TYPE_CHECKING:
    from .answers import Answers

__all__ = ["estimates", "linear_regression"]

MODES = ("linear", "bicubic", "trilinear")  # by the number of spatial axes
COLUMNS = 200  # the largest number of columns, with those of the condition, for a linear regression
ROWS = 256  # questions that are solved at once
RANK = 1e-10  # eigenvalues of the correlations below this share of the largest one are taken for 0


def estimates(answers: Answers, data: Dataset) -> dict[str, Tensor]:
    """Compute the estimates that apply to a set of questions.

    Args:
        answers: The answers, whose questions are rows of ``data``.
        data: The data set. Without training rows, the estimates that need them are left out.

    Returns:
        The estimates, float64 ``(N, *event)`` in data units, keyed by name. The values that a question shows are not
        necessarily repeated.
    """
    found: dict[str, Tensor] = {}
    seen, info = answers.seen, answers.info
    operator = None if seen is None else seen.operator
    shown = None if seen is None else seen.shown.cpu().double()
    if seen is not None and shown is not None and not bool(shown.isnan().any()):  # NaN marks what is not shown
        found["shown to the network"] = shown
        if isinstance(operator, Pool):
            mode = MODES[len(info.shape) - 2]
            x = functional.interpolate(seen.y.cpu().double(), size=info.shape[1:], mode=mode)
            found[f"{mode} interpolation"] = x if info.levels is None else x.clamp(info.low, info.high)
    rows = thinned(data.trained)  # of rows that stay in their files, a sample has the mean of all
    if not len(rows):
        return found
    # Unknown values of training rows are stored as the means of their columns, so they do not change the means.
    mean = rows.mean(0, dtype=torch.float64)
    table = info.kind == "vector"
    found["column means" if table else "training mean"] = mean.expand(answers.truth.shape)
    if table and (seen is None or isinstance(operator, Masking)) and (line := _regression(answers, data)) is not None:
        found["linear regression"] = line
    return found


def _regression(answers: Answers, data: Dataset) -> Tensor | None:
    """Return the estimates of the linear regression, or ``None`` if there are too few rows or too many columns."""
    kept = data.trains & data.whole
    x, truth = data.train[kept].double(), answers.truth.double()
    known = torch.zeros_like(truth, dtype=torch.bool)
    if answers.seen is not None and answers.seen.hidden is not None:
        known = ~answers.seen.hidden.cpu().expand(truth.shape)
    given, asked = data.train_given.vector, answers.numbers
    if given is not None and asked is not None:
        x, truth = torch.cat([x, given[kept].double()], 1), torch.cat([truth, asked.double()], 1)
        known = torch.cat([known, ~asked.isnan()], 1)
        x = x[~x.isnan().any(1)]
    if not bool(known.any()) or not x.shape[1] < len(x) or x.shape[1] > COLUMNS:
        return None
    return linear_regression(x, truth, known)[:, : answers.truth.shape[1]]


def linear_regression(rows: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """Estimate the unknown numbers of each row from its known numbers (equation 1).

    Args:
        rows: Complete rows, float64 ``(n, D)``, whose mean and covariance are used.
        x: The rows to complete, ``(N, D)``. Their unknown numbers are ignored.
        known: A mask of the known numbers, bool ``(N, D)``.

    Returns:
        The rows with their unknown numbers estimated, float64 ``(N, D)``.
    """
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    standard = (rows - mean) / scale
    correlation = standard.mT @ standard / len(rows)
    z = torch.where(known, (x.double() - mean) / scale, 0)
    found = []
    for part, there in zip(torch.split(z, ROWS), torch.split(known.double(), ROWS), strict=True):
        among = correlation * there[:, :, None] * there[:, None, :]  # zeros in place of unknown numbers
        weights = torch.linalg.pinv(among, rtol=RANK, hermitian=True) @ part[..., None]
        found.append(torch.where(there > 0, part, (correlation @ weights)[..., 0]))
    return torch.cat(found) * scale + mean
