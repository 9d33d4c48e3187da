"""Langevin dynamics: the step that predictor-corrector samplers repair a marginal with.

    x <- x + e score + sqrt(2 e) z,      e = 2 a (snr size)^2                                                     (1)

leaves the density whose score it is alone as e falls to 0 (Song et al. 2021, arXiv:2011.13456, alg. 4-5). a is the
square of A = alpha(t)/alpha(s) or the original's table of it; size is sigma, or the ratio |z|/|score|, which for noise
is sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, check_number
from ..core.shapes import expand, flat

__all__ = ["check_corrector", "langevin_step", "norm_ratio"]


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


def norm_ratio(z: Tensor, score: Tensor, of: str) -> Tensor:
    """``|z|/|score|`` of each ``sample``, shape ``(B,)``, or of the means over the ``batch``, shape ``()``."""
    top, bottom = flat(z).norm(dim=1), flat(score).norm(dim=1)
    ratio: Tensor = top.mean() / bottom.mean() if of == "batch" else top / bottom
    return ratio


_SNR = Range(0, 100, above=True, hint="0.16, say")
_CORRECTIONS = Range(0, 10_000)


def check_corrector(snr: float, corrections: int, evaluations: int) -> None:
    """Refuse a corrector that cannot be, and a sampler of which nothing moves.

    Raises:
        UsageError: With the values.
    """
    check_number("snr", snr, _SNR)
    check_number("corrections", corrections, _CORRECTIONS, "int")
    if not evaluations:
        raise UsageError("predictor and corrector are both none: nothing would move; take one of them")
