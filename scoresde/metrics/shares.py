"""A rank statistic that compares two sets of numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["share_above"]


def share_above(x: Tensor, y: Tensor) -> float:
    """Estimate ``P(x > y) + P(x = y) / 2`` over all pairs of values of ``x: (N,)`` and ``y: (M,)``.

    This is the statistic of Mann and Whitney (1947), divided by N M.

    >>> share_above(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    ordered = y.sort().values
    below, not_above = (torch.searchsorted(ordered, x, right=right).double() for right in (False, True))
    return float((below + not_above).mean() / (2 * len(ordered)))
