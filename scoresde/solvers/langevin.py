"""Langevin dynamics: the step that predictor-corrector samplers repair a marginal with.

    x <- x + e score + sqrt(2 e) z,      e = 2 a (snr size)^2                                                     (1)

leaves the density whose score it is alone as e falls to 0 (Song et al. 2021, arXiv:2011.13456, alg. 4-5). a is the
square of A = alpha(t)/alpha(s) or the original's table of it; size is sigma, or the ratio |z|/|score|, which for noise
is sigma.

On N(0, v) a step turns the variance V into (1 - e/v)^2 V + 2e, which settles at v/(1 - e/2v) where e < 2v, and else
grows without bound. With size sigma, and v >= sigma^2, that is at most v/(1 - snr^2): snr < 1 is stable on every path
and for all data, and snr >= 1 is refused.

The ratio of one sample has no bound: its score vanishes in the middle of a mode. Such an e(x) moreover settles at p/e,
of a variance (1 + 2/D) v in D dimensions. The ratio is therefore held to

    sigma/k <= |z|/|score| <= k sigma,      k = max(1, n/16)^2,                                                   (2)

n the number of numbers that the norms are taken over, D or that of the batch. Up to n = 16 the size is sigma; at the
3,072 of a small picture k is 36,864, and the ratio is what it is. The standard deviation of a mode is then too large by
at most (1 - snr^2)^(-1/2), the step's own, and above n = 16 by about (1 + 2/n)^(1/2) besides: measured, 1.006 and 1.001
at n = 1, 2 and 4 (VP and VE, snr 0.16; as published 576, 4.2, 1.6), 1.036 at 64 and 1.016 at 3,072, where it is as
published (experiments/edges.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, check_number
from ..core.shapes import dims, expand, flat

__all__ = ["check_corrector", "langevin_step", "norm_ratio"]

FEW = 16  # of (2)


def langevin_step(x: Tensor, score: Tensor, z: Tensor, a: Tensor, snr: float, size: Tensor) -> Tensor:
    """One step (1).

    Args:
        x, score, z: State, its score and normals, shape ``(B, *event)``.
        a, size: Shape ``()`` or ``(B,)``.
        snr: Signal-to-noise ratio.

    Returns:
        The state after it, shape ``(B, *event)``.
    """
    e = 2 * a * (snr * size).square()
    return x + expand(e, x) * score + expand(torch.sqrt(2 * e), x) * z


def norm_ratio(z: Tensor, score: Tensor, of: str, sigma: Tensor | None = None) -> Tensor:
    """``|z|/|score|`` of each ``sample``, ``(B,)``, or of the means over the ``batch``, ``()``.

    Args:
        z, score: Shape ``(B, *event)``.
        of: ``sample`` or ``batch``.
        sigma: Of the path, shape ``()`` or ``(B,)``, to hold the ratio to (2); ``None`` to leave it as published.
    """
    top, bottom = flat(z).norm(dim=1), flat(score).norm(dim=1)
    ratio: Tensor = top.mean() / bottom.mean() if of == "batch" else top / bottom
    if sigma is None:
        return ratio
    k, size = max(1.0, (z.numel() if of == "batch" else dims(z)) / FEW) ** 2, sigma.to(ratio)
    # a NaN stays one, and 0/0, where neither moves, is sigma
    ratio = torch.where((bottom == 0).all() if of == "batch" else bottom == 0, size, ratio)
    return torch.minimum(torch.maximum(ratio, size / k), k * size)


_SNR = Range(0, 100, above=True, hint="0.16, say")
_CORRECTIONS = Range(0, 10_000)


def check_corrector(snr: float, corrections: int, evaluations: int) -> None:
    """Refuse a corrector that cannot be, and a sampler of which nothing moves.

    Raises:
        UsageError: With the values.
    """
    check_number("snr", snr, _SNR)
    check_number("corrections", corrections, _CORRECTIONS, "int")
    if snr >= 1:
        raise UsageError(
            f"snr is {snr}; from 1 on a Langevin step overshoots and the samples grow without bound (the variance "
            "settles at 1/(1 - snr^2) times what it should be); 0.05 to 0.3 are usual",
            parameter="snr",
            value="0.16",
        )
    if not evaluations:
        raise UsageError("predictor and corrector are both none: nothing would move; take one of them")
