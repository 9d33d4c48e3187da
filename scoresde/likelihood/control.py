"""A regression of likelihoods on features of the data, as a control variate for their mean.

How improbable a picture is depends on how complex it is, and on how far it is from the training data. About 25 features
that need no network say so: moments of its values, absolute and squared differences of neighbouring pixels, the shares
of values below eight levels, three Mahalanobis distances to the training data (with three regularisations), the
distances to the nearest training rows, and two kernel densities of the training rows. For a network trained on digits,
they leave 35 % of the variance of a likelihood; the value of a single noisy evaluation of the network leaves more.

The regression is ridge regression on standardised features X: (n, K), with a free constant,

    f = m + X (X^T X + lambda I)^-1 X^T (y - m),        m = mean(y).                                         (1)

With the hat matrix  H = 1/n + X (X^T X + lambda I)^-1 X^T,  the error of the prediction of y_i from the other n - 1
values is (Allen 1974)

    y_i - f_(-i) = (y_i - f_i) / (1 - H_ii),                                                                (2)

and lambda is the one of a few values with the smallest sum of squares of equation 2. Features are limited to the range
that they have among the n pictures, so that no picture is predicted far outside it.

A regression that was fitted on training rows is off by 0.025 bits/dim for held-out rows. It is therefore only a
control (:mod:`scoresde.likelihood.mean`), whose mean cancels. If the features explain less than a tenth of the
variance, none are used.

References:
    Allen (1974), The relationship between variable selection and data augmentation and a method for prediction.
    Serra et al. (2020), arXiv:1909.11480: likelihoods follow the complexity of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.shapes import flat
from ..metrics.rows import nearest, slabs, squared_distances

__all__ = ["MOST", "Ridge", "features", "leave_one_out"]

MOST = 2000  # training rows used
LEVELS = 8
NEIGHBOURS = 5
SMALL = 16  # up to this many dimensions, the coordinates themselves are features
PENALTIES = tuple(10.0**k for k in range(-3, 4))
USEFUL = 0.1  # smallest share of the variance for which a regression is used


@dataclass(frozen=True)
class Ridge:
    """A regression on features, as a :class:`scoresde.likelihood.mean.Control`.

    Args:
        features: The features of all pictures, float64 ``(N, K)``.
        again: The features of the same pictures with another dequantisation, or ``None`` if they are not needed.
    """

    features: Tensor
    again: Tensor | None = None

    def __call__(self, places: Tensor, values: Tensor) -> tuple[Tensor, float]:
        """Predict the values of all pictures from those at ``places`` (see :class:`scoresde.likelihood.mean.Control`).

        The predictions are 0 if the features are not useful.
        """
        sets = self.features if self.again is None else torch.cat([self.features, self.again])
        found, own = leave_one_out(self.features[places], values, sets)
        residual = (values - own).square().mean() / values.var(correction=0)
        count = len(self.features)
        if not bool(residual < 1 - USEFUL):
            return torch.zeros(count, dtype=torch.float64), 0.0
        first, second = found[:count].clone(), found[count:]
        noise = float((first - second).square().mean() / 2) if self.again is not None else 0.0
        first[places] = own
        return first, noise


def leave_one_out(x: Tensor, y: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression (equation 1), and predict other rows and, without their own values, the fitted rows.

    Args:
        x: The features of the fitted rows, float64 ``(n, K)``.
        y: Their values, float64 ``(n,)``.
        others: The features of the other rows, float64 ``(m, K)``.

    Returns:
        The predictions of the other rows, ``(m,)``, and those of equation 2, ``(n,)``.
    """
    low, high = x.amin(0), x.amax(0)
    centre, scale = x.mean(0), x.std(0, correction=0)
    kept = scale > 1e-9 * (1 + centre.abs())
    if not bool(kept.any()):
        return torch.full((len(others),), float(y.mean()), dtype=y.dtype), _without(y, torch.zeros_like(y))
    z, w = (((v.clamp(low, high) - centre) / scale)[:, kept] for v in (x, others))
    left, singular, right = torch.linalg.svd(z, full_matrices=False)
    mean = y.mean()
    projected = left.T @ (y - mean)
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in PENALTIES:
        shrink = singular.square() / (singular.square() + penalty * len(y) / 100)
        fitted = mean + left @ (shrink * projected)
        hat = 1 / len(y) + (left.square() * shrink).sum(1)
        error = (y - fitted) / (1 - hat).clamp(min=1e-6)
        score = float(error.square().sum())
        if best is None or score < best[0]:
            weights = right.T @ (shrink / singular.clamp(min=1e-12) * projected)
            best = score, mean + w @ weights, y - error
    assert best is not None
    return best[1], best[2]


def _without(y: Tensor, hat: Tensor) -> Tensor:
    """Return the mean of the other values, for each value of ``y: (n,)``."""
    n = len(y)
    return (y.sum() - y) / max(1, n - 1) + hat


def features(x: Tensor, train: Tensor | None = None) -> Tensor:
    """Compute features of the rows of ``x``.

    Args:
        x: Rows in model units, shape ``(N, *event)``.
        train: Training rows in model units, shape ``(M, *event)``, or ``None`` if they are unknown.

    Returns:
        The features, float64 ``(N, K)``.
    """
    rows = flat(x).double()
    low, high = float(rows.min()), float(rows.max())
    levels = torch.linspace(low, high, LEVELS + 2, dtype=torch.float64)[1:-1]
    columns = [
        torch.cat([_own(part.double(), levels) for part in torch.split(x, _size(rows.shape[1]))]),
        *([rows, rows.square()] if rows.shape[1] <= SMALL else []),
    ]
    if train is not None and len(train) > NEIGHBOURS + 1:
        columns += _beside(rows, flat(train).double())
    return torch.cat(columns, dim=1)


def _size(dims: int) -> int:
    return max(1, 2**22 // dims)


def _own(x: Tensor, levels: Tensor) -> Tensor:
    """Return the features of rows ``x: (n, *event)`` that need no other rows, shape ``(n, k)``."""
    rows = flat(x)
    mean, power = rows.mean(1), rows.square().mean(1)
    found = [mean, mean.square(), power, power.sqrt(), rows.abs().mean(1)]
    for axis in range(2, x.ndim):  # neighbouring pixels, or neighbouring times of a series
        step = x.diff(dim=axis)
        if step.numel():
            found += [flat(step).abs().mean(1), flat(step).square().mean(1)]
    found += [(rows < level).double().mean(1) for level in levels]
    return torch.stack(found, dim=1)


def _beside(rows: Tensor, train: Tensor) -> Iterator[Tensor]:
    """Yield features of ``rows: (N, D)`` relative to training rows ``(M, D)``, each of shape ``(N, k)``."""
    dims, centre = rows.shape[1], train.mean(0)
    # Mahalanobis distances d^T (C + s I)^-1 d, from the singular values of the training rows
    _, singular, axes = torch.linalg.svd(train - centre, full_matrices=False)
    variances = singular.square() / len(train)
    along = ((rows - centre) @ axes.T).square()
    across = ((rows - centre).square().sum(1) - along.sum(1)).clamp(min=0)
    for share in (1e-3, 1e-2, 1e-1):
        s = share * float(variances.sum()) / dims + 1e-12
        distance = (along / (variances + s)).sum(1) + across / s
        yield torch.stack([distance / dims, (distance / dims).sqrt()], dim=1)
    # the nearest training rows, and two kernel densities whose widths follow from their mutual distances
    few = train[: min(len(train), 500)]
    own = nearest(few, few, 1, same=True)[0].square().mean() / dims + 1e-12
    found = nearest(rows, train, NEIGHBOURS)[0]
    yield torch.stack([found[:, 0], found.mean(1)], dim=1) / math.sqrt(dims)
    for width in (1.0, 4.0):
        density = [
            torch.logsumexp(-squared_distances(rows[part] - centre, train - centre) / (2 * width * own), dim=1)
            for part in slabs(len(rows), len(train))
        ]
        yield torch.cat(density)[:, None] / dims
