"""Statistics with standard errors, which are estimated by the delete-a-block jackknife.

The rows of each set are assigned at random to B blocks. Let theta be the statistic of all rows, theta_b the statistic
without block b of each set, and mean theta the average of theta_b over all blocks. Then

    stderr^2 = (B - 1) / B  sum_b (theta_b - mean theta)^2,                                          (1)
    bias     = (B - 1) (mean theta - theta).                                                         (2)

The standard error estimates how much the statistic would vary if all sets, including the reference, were drawn anew.
The bias is an estimate of the part of theta that falls as 1/N, so theta - bias extrapolates the statistic to
infinite data. The extrapolation is correct to order 1/N, but poor unless N is well above the number of features. With
B = 20, the relative uncertainty of the standard error itself is about 1/sqrt(2 (B - 1)) = 16 %.

A bootstrap would draw some rows more than once. Such duplicates, at distance zero from each other, would distort
nearest-neighbour metrics and unbiased kernel distances.

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
    """The value of a statistic, with its standard error and bias.

    Attributes:
        value: The statistic, computed from all rows.
        stderr: The standard error of the statistic, or NaN if it is unknown.
        bias: The estimated bias of the value relative to infinite data, to order 1/N, or NaN if it is unknown.
    """

    value: float
    stderr: float = math.nan
    bias: float = math.nan

    @property
    def extrapolated(self) -> float:
        """The value minus its estimated bias."""
        return self.value - self.bias

    def __str__(self) -> str:
        """Format the value and its standard error, both rounded to the second significant digit of the error."""
        if not (math.isfinite(self.value) and math.isfinite(self.stderr) and self.stderr > 0):
            return f"{self.value:.4g}"
        digits = 1 - math.floor(math.log10(self.stderr))
        if not -3 <= digits <= 6:
            return f"{self.value:.3e} ± {self.stderr:.1e}"
        return f"{self.value:.{max(0, digits)}f} ± {self.stderr:.{max(0, digits)}f}"


def deal(sizes: Sequence[int], blocks: int = BLOCKS, seed: int = 0) -> list[Tensor]:
    """Assign the rows of each set at random to blocks of nearly equal size.

    There are ``blocks`` blocks, or fewer if a set is so small that a block would have fewer than two rows. The result
    contains one int64 tensor ``(N,)`` per set, with the block index of each row.

    Raises:
        UsageError: If ``blocks`` is less than 2.
    """
    if blocks < 2:
        raise UsageError(f"the jackknife needs at least 2 blocks, got {blocks}")
    count = max(1, min(blocks, *(n // 2 for n in sizes)))
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) % count for n in sizes]


def from_blocks(value: float, without: Sequence[float]) -> Measurement:
    """Build a measurement from the ``value`` for all rows and the values ``without`` each block (equations 1 and 2)."""
    count = len(without)
    if count < 2:
        return Measurement(value)
    mean = math.fsum(without) / count
    variance = (count - 1) / count * math.fsum((theta - mean) ** 2 for theta in without)
    return Measurement(value, math.sqrt(variance), (count - 1) * (mean - value))


def jackknife(
    statistic: Callable[..., float], *sets: Tensor, blocks: int = BLOCKS, seed: int = 0, paired: bool = False
) -> Measurement:
    """Compute a statistic of one or more sets of samples, with its standard error and bias.

    Args:
        statistic: Function that takes the sets and returns a number.
        sets: Sets of samples, each of shape ``(N, *event)``; their sizes may differ.
        blocks: Number of blocks, B. The statistic is computed B + 1 times.
        seed: Seed for the random assignment of rows to blocks.
        paired: Whether row i of every set belongs to the same sample, such as two errors of one estimate. These rows
            are then in the same block. The sets must have equal sizes.

    >>> x = torch.arange(40.0)
    >>> jackknife(lambda x: float(x.mean()), x, blocks=20).value
    19.5
    """
    dealt = deal([len(x) for x in sets], blocks, seed)
    dealt = [(dealt[0] if paired else block).to(x.device) for block, x in zip(dealt, sets, strict=True)]
    count = 1 + int(dealt[0].max())
    value = float(statistic(*sets))
    if count < 2:
        return Measurement(value)
    without = [float(statistic(*(x[block != b] for x, block in zip(sets, dealt, strict=True)))) for b in range(count)]
    return from_blocks(value, without)
