"""Kuiper's test against published critical values, and against draws."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.core.errors import UsageError
from scoresde.core.noise import Noise
from scoresde.metrics import kuiper


def angles(n: int, seed: int) -> torch.Tensor:
    return 2 * math.pi * Noise.of(1, seed).uniform((n,), dtype=torch.float64)[0]


@pytest.mark.parametrize(("z", "p"), [(1.620, 0.10), (1.747, 0.05), (1.862, 0.025), (2.001, 0.01)])
def test_the_p_values_are_those_of_stephens(z: float, p: float) -> None:
    # Stephens (1970), table 1A: percentage points of V (sqrt(N) + 0.155 + 0.24/sqrt(N)) for any N.
    n = 400
    v = z / (math.sqrt(n) + 0.155 + 0.24 / math.sqrt(n))
    # Evenly spaced angles from 0 to 1 - v turns: F exceeds u by v at the last one, and u never exceeds F.
    found = kuiper(2 * math.pi * torch.linspace(0, 1 - v, n, dtype=torch.float64))
    assert found[0] == pytest.approx(v, rel=1e-9) and found[1] == pytest.approx(p, rel=5e-3)


def test_the_statistic_by_hand() -> None:
    # Turns 0.1, 0.2 and 0.6: F - u is at most 2/3 - 0.2, and u - F is at most 0.1 before the first.
    statistic, _ = kuiper(2 * math.pi * torch.tensor([0.6, 0.1, 0.2], dtype=torch.float64))
    assert statistic == pytest.approx(2 / 3 - 0.2 + 0.1)


def test_uniform_angles_have_uniform_p_values() -> None:
    p = torch.tensor([kuiper(angles(50, seed))[1] for seed in range(1000)])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert float((p < level).double().mean()) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 1000))


def test_the_starting_point_makes_no_difference() -> None:
    x = angles(30, 1)
    first = kuiper(x)
    for turn in (0.3, 2.0, -7.0):
        assert kuiper(x + turn) == pytest.approx(first, abs=1e-12)


def test_angles_that_are_not_uniform_fail() -> None:
    x = angles(200, 2)
    assert kuiper(x)[1] > 0.01
    assert kuiper(x + 0.5 * x.cos())[1] < 1e-3  # denser on one side
    assert kuiper(x / 2)[1] < 1e-12  # half of the circle
    assert kuiper(torch.zeros(200))[1] < 1e-12


def test_bad_angles_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"shape \(2, 2\)"):
        kuiper(torch.zeros(2, 2))
    with pytest.raises(UsageError, match="shape \\(0,\\)"):
        kuiper(torch.zeros(0))
    with pytest.raises(UsageError, match="not finite"):
        kuiper(torch.tensor([0.0, math.nan]))
