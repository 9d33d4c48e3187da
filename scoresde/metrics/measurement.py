"""Measurements: a number with its standard error, and the delete-a-block jackknife, which works for any statistic.

The rows of each set are dealt at random into B blocks. If theta_b is the statistic without the b-th block of each set,

    stderr^2 = (B - 1) / B  sum_b (theta_b - mean theta)^2,                                          (1)
    bias     = (B - 1) (mean theta - theta).                                                         (2)

The error covers all the sets: it is the spread to expect if samples and reference were both drawn anew. The bias is the
part that falls as 1/N, so that theta - bias is the statistic extrapolated to infinite data. The extrapolation is
correct to order 1/N, and poor unless N is well above the number of features. With B = 20, the relative uncertainty of
the error itself is about 1/sqrt(2 (B - 1)) = 16 %.

A bootstrap would not work better: rows drawn twice are at distance zero, which nearest-neighbour metrics and unbiased
kernel distances mistake for structure.

References:
    Efron and Stein (1981), The jackknife estimate of variance, Annals of Statistics 9.
    Quenouille (1956), Notes on bias in estimation, Biometrika 43.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError

__all__ = ["BLOCKS", "Measurement", "deal", "from_blocks", "jackknife"]

BLOCKS = 20


@dataclass(frozen=True)
class Measurement:
    """A statistic of one or more sets of samples, with its error.

    Attributes:
        value: The statistic of all the rows.
        stderr: The standard error of the statistic, or NaN if it is unknown.
        bias: The value minus its limit for infinite data, to order 1/N, or NaN if it is unknown.
    """

    value: float
    stderr: float = math.nan
    bias: float = math.nan

    @property
    def extrapolated(self) -> float:
        """The value minus its bias."""
        return self.value - self.bias

    def __str__(self) -> str:
        """Format the value and its error, with two significant digits of the error."""
        if not (math.isfinite(self.value) and math.isfinite(self.stderr) and self.stderr > 0):
            return f"{self.value:.4g}"
        digits = 1 - math.floor(math.log10(self.stderr))
        if not -3 <= digits <= 6:
            return f"{self.value:.3e} ± {self.stderr:.1e}"
        return f"{self.value:.{max(0, digits)}f} ± {self.stderr:.{max(0, digits)}f}"


def deal(sizes: Sequence[int], blocks: int = BLOCKS, seed: int = 0) -> list[Tensor]:
    """Deal the rows of each set into blocks of nearly equal size, and return the block of each row, int64 ``(N,)``.

    There are ``blocks`` blocks, or fewer if a set is so small that a block would have fewer than two rows.

    Raises:
        UsageError: If there are fewer than 2 blocks.
    """
    if blocks < 2:
        raise UsageError(f"a jackknife needs at least 2 blocks: got {blocks}")
    count = max(1, min(blocks, *(n // 2 for n in sizes)))
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) % count for n in sizes]


def from_blocks(value: float, without: Sequence[float]) -> Measurement:
    """Make a measurement by (1) and (2) from the value for all rows and the values without each block."""
    count = len(without)
    if count < 2:
        return Measurement(value)
    mean = math.fsum(without) / count
    variance = (count - 1) / count * math.fsum((theta - mean) ** 2 for theta in without)
    return Measurement(value, math.sqrt(variance), (count - 1) * (mean - value))


def jackknife(statistic: Callable[..., float], *sets: Tensor, blocks: int = BLOCKS, seed: int = 0) -> Measurement:
    """Compute a statistic of one or more sets of samples, with its standard error and its bias.

    Args:
        statistic: Function that takes the sets and returns a number.
        sets: Sets of samples, each of shape ``(N, *event)``; their sizes may differ.
        blocks: Number of blocks, B. The statistic is computed B + 1 times.
        seed: Seed for dealing rows into blocks.

    >>> x = torch.arange(40.0)
    >>> jackknife(lambda x: float(x.mean()), x, blocks=20).value
    19.5
    """
    dealt = [block.to(x.device) for block, x in zip(deal([len(x) for x in sets], blocks, seed), sets, strict=True)]
    count = 1 + int(dealt[0].max())
    value = float(statistic(*sets))
    if count < 2:
        return Measurement(value)
    without = [float(statistic(*(x[block != b] for x, block in zip(sets, dealt, strict=True)))) for b in range(count)]
    return from_blocks(value, without)
