"""Kuiper's test of whether angles are uniform on the circle.

For N angles, let F(u) be the fraction of them that lie within u turns after an arbitrary starting point. The statistic

    V = max_u (F(u) - u) + max_u (u - F(u))                                                                  (1)

does not depend on the starting point. The p-value is the probability that N independent, uniform angles have a
statistic V' larger than V. In the limit of many angles, it is

    P(V' > V) = 2 sum_{j >= 1} (4 j^2 z^2 - 1) exp(-2 j^2 z^2),    z = (sqrt(N) + 0.155 + 0.24/sqrt(N)) V.    (2)

This definition of z is due to Stephens. It makes the p-value accurate to within a few percent for N >= 8.

References:
    Kuiper (1960), Tests concerning random points on a circle, Indagationes Mathematicae 63.
    Stephens (1965), The goodness-of-fit statistic V_N, Biometrika 52; and (1970), J. R. Stat. Soc. B 32: equation 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import UsageError

__all__ = ["kuiper"]

TERMS = 100  # number of terms of the series in equation 2
LEAST = 0.4  # below this z, the p-value is 1 to within 2e-11, and the series converges slowly


def kuiper(angles: Tensor) -> tuple[float, float]:
    """Test whether independent angles are uniform on the circle.

    Args:
        angles: The angles in radians, ``(N,)``. Angles that differ by full turns are equivalent.

    Returns:
        The statistic V (equation 1) and its p-value (equation 2).

    Raises:
        UsageError: If there are no angles, or some are not finite.

    >>> statistic, p = kuiper(torch.arange(100) * (2 * math.pi / 100))
    >>> round(statistic, 3), round(p, 3)
    (0.01, 1.0)
    """
    if angles.ndim != 1 or not len(angles) or not bool(angles.isfinite().all()):
        raise UsageError(
            f"Kuiper's test needs one or more finite angles, in a tensor of shape (N,), got shape {tuple(angles.shape)}"
            + ("" if bool(angles.isfinite().all()) else " with values that are not finite")
        )
    turns = (angles.double() / (2 * math.pi)).remainder(1).sort().values
    n = len(turns)
    steps = torch.arange(n + 1, dtype=torch.float64, device=turns.device) / n
    statistic = float((steps[1:] - turns).max() + (turns - steps[:-1]).max())
    z = (math.sqrt(n) + 0.155 + 0.24 / math.sqrt(n)) * statistic
    if z < LEAST:
        return statistic, 1.0
    squares = [(j * z) ** 2 for j in range(1, TERMS + 1)]
    return statistic, min(1.0, 2 * sum((4 * s - 1) * math.exp(-2 * s) for s in squares))
