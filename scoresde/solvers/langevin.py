"""Langevin steps, with which predictor-corrector samplers correct the distribution of their samples.

In the limit of small e, the Langevin step with standard normals z,

    x <- x + e score + sqrt(2 e) z,      e = 2 a (snr size)^2,                                                    (1)

leaves a density unchanged if score is the score of that density (Song et al. 2021, arXiv:2011.13456, alg. 4-5). For a
predictor step from t to s, a is the square of alpha(t)/alpha(s), but the ``original`` solver reads a from a table
instead. The factor snr is an option of the sampler. The size is either sigma or the ratio |z|/|score|, which is about
sigma for pure noise.

If the density is N(0, v), a step changes a variance V to (1 - e/v)^2 V + 2e. If e < 2v, repeated steps converge to the
variance v/(1 - e/2v); otherwise, the variance grows without bound. With size = sigma and v >= sigma^2, the limit is at
most v/(1 - snr^2). Any snr < 1 is therefore stable on every path and for all data, and snr >= 1 is rejected.

The ratio |z|/|score| of an individual sample is unbounded, because the score vanishes in the middle of a mode. In
addition, if the step size e(x) depends on x, the samples converge not to the density p, but to a density proportional
to p/e. For p = N(0, v) in D dimensions, this density has the variance (1 + 2/D) v. The ratio is therefore limited to

    sigma/k <= |z|/|score| <= k sigma,      k = max(1, n/16)^2,                                                   (2)

where n is the number of elements over which the norms are taken: D, or the number of elements in the whole batch. For
n <= 16, the size is sigma. For the n = 3,072 elements of a small image, k is 36,864, so the limits have no effect. With
the limits, the step itself makes the standard deviation of a mode too large by a factor of at most (1 - snr^2)^(-1/2),
and for n > 16, there is another factor of about (1 + 2/n)^(1/2). With snr = 0.16 and n = 1, 2 or 4, the measured factor
is 1.006 on VP and 1.001 on VE. Without the limits, it is 576 for n = 1, 4.2 for n = 2 and 1.6 for n = 4. With or
without the limits, it is 1.036 for n = 64 and 1.016 for n = 3,072 (experiments/edges.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, check_number
from ..core.shapes import dims, expand, flat

__all__ = ["check_corrector", "langevin_step", "norm_ratio"]

FEW = 16  # the constant 16 in equation (2)


def langevin_step(x: Tensor, score: Tensor, z: Tensor, a: Tensor, snr: float, size: Tensor) -> Tensor:
    """Take one Langevin step, as in equation (1).

    Args:
        x, score, z: The state, the score at the state, and standard normals, each of shape ``(B, *event)``.
        a, size: The values of a and size in equation (1), each of shape ``()`` or ``(B,)``.
        snr: The signal-to-noise ratio snr in equation (1).

    Returns:
        The state after the step, shape ``(B, *event)``.
    """
    e = 2 * a * (snr * size).square()
    return x + expand(e, x) * score + expand(torch.sqrt(2 * e), x) * z


def norm_ratio(z: Tensor, score: Tensor, of: str, sigma: Tensor | None = None) -> Tensor:
    """Return ``|z|/|score|`` for each sample, or the ratio of the means of ``|z|`` and ``|score|`` over the batch.

    Args:
        z, score: Standard normals and the score, each of shape ``(B, *event)``.
        of: ``sample`` for the ratio of each sample, or ``batch`` for the ratio of the two means.
        sigma: The noise level sigma of the path, shape ``()`` or ``(B,)``. The ratio is limited to the range in
            equation (2). ``None`` leaves the ratio unlimited, as published.

    Returns:
        The ratio, shape ``(B,)`` for ``sample`` and ``()`` for ``batch``.
    """
    top, bottom = flat(z).norm(dim=1), flat(score).norm(dim=1)
    ratio: Tensor = top.mean() / bottom.mean() if of == "batch" else top / bottom
    if sigma is None:
        return ratio
    k, size = max(1.0, (z.numel() if of == "batch" else dims(z)) / FEW) ** 2, sigma.to(ratio)
    # NaN remains NaN. Where the score is 0, sigma replaces the ratio.
    ratio = torch.where((bottom == 0).all() if of == "batch" else bottom == 0, size, ratio)
    return torch.minimum(torch.maximum(ratio, size / k), k * size)


_SNR = Range(0, 100, above=True, hint="for example 0.16")
_CORRECTIONS = Range(0, 10_000)


def check_corrector(snr: float, corrections: int, evaluations: int) -> None:
    """Check the options of a corrector.

    Args:
        snr: The signal-to-noise ratio.
        corrections: Number of Langevin steps at each node.
        evaluations: Number of model evaluations per step. It is 0 if the sampler has no predictor and no corrector.

    Raises:
        UsageError: If an option is invalid, or if ``evaluations`` is 0.
    """
    check_number("snr", snr, _SNR)
    check_number("corrections", corrections, _CORRECTIONS, "int")
    if snr >= 1:
        raise UsageError(
            f"snr must be below 1, got {snr}; at 1 or above, Langevin steps overshoot and the samples can diverge. "
            "Even below 1, the variance can be up to 1/(1 - snr^2) times the correct value. Typical values of snr are "
            "0.05 to 0.3",
            parameter="snr",
            value="0.16",
        )
    if not evaluations:
        raise UsageError(
            "there are no predictor steps and no corrector steps, so no sample would move; choose a predictor, or a "
            "corrector with at least one correction"
        )
