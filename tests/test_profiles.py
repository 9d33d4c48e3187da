"""The profiles of averages: their widths, and the combination of stored averages, against high precision."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mpmath
import numpy as np
import pytest

from scoresde import TrainConfig
from scoresde.core.errors import UsageError
from scoresde.run.profiles import Decay, Power, coefficients, profiles_of

PAIR = [Power(0.05), Power(0.1)]
UNEVEN = [7, 30, 31, 64, 100, 250, 256, 300, 420, 555, 600, 601, 700, 888, 990, 1000]


@pytest.mark.parametrize(("width", "published"), [(0.05, 16.97), (0.1, 6.94)])
def test_the_exponents_are_those_of_the_paper(width: float, published: float) -> None:
    assert Power(width).gamma == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.13, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_density(width: float) -> None:
    gamma = mpmath.mpf(Power(width).gamma)
    mean, square = (
        mpmath.quad(lambda u, n=n: (gamma + 1) * u ** (gamma + n), [0, 0.5, 1])  # type: ignore[misc]
        for n in (1, 2)
    )
    assert float(mpmath.sqrt(square - mean**2)) == pytest.approx(width, rel=1e-11)


def solved(steps: Sequence[int], profiles: Sequence[Power], target: Power) -> tuple[list[float], float]:
    """The least-squares combination from the inner products of all pairs of profiles, with 60 digits."""
    with mpmath.workdps(60):
        gammas = [mpmath.mpf(profile.gamma) for profile in profiles]
        stored = [(mpmath.mpf(step) / steps[-1], gamma) for step in steps for gamma in gammas]

        def inner(a: tuple, b: tuple) -> mpmath.mpf:
            (s, p), (t, q), low = a, b, min(a[0], b[0])
            return (p + 1) * (q + 1) * (low / s) ** p * (low / t) ** q * low / (s * t * (p + q + 1))

        end = (mpmath.mpf(1), mpmath.mpf(target.gamma))
        matrix = mpmath.matrix(len(stored))
        for i, one in enumerate(stored):
            for j, other in enumerate(stored[: i + 1]):
                matrix[i, j] = matrix[j, i] = inner(one, other)
        given = mpmath.matrix([inner(one, end) for one in stored])
        found = mpmath.lu_solve(matrix, given)
        squares = inner(end, end) - sum(x * b for x, b in zip(found, given, strict=True))
        return [float(x) for x in found], float(mpmath.sqrt(abs(squares) / inner(end, end)))


@pytest.mark.parametrize(
    ("steps", "profiles", "width"),
    [
        (UNEVEN, PAIR, 0.08), (UNEVEN, PAIR, 0.2), (UNEVEN, [Power(0.1)], 0.15), (UNEVEN, PAIR, 0.05),
        (range(625, 20_001, 625), PAIR, 0.15), (UNEVEN[:8], [*PAIR, Power(0.2)], 0.07), ([12], PAIR, 0.08),
        pytest.param(range(313, 20_033, 313), PAIR, 0.2, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_coefficients_against_high_precision(steps: Sequence[int], profiles: Sequence[Power], width: float) -> None:
    found, error = coefficients(steps, profiles, Power(width))
    expected, relative = solved(steps, profiles, Power(width))
    assert found.shape == (len(steps), len(profiles))
    assert np.abs(found.ravel() - expected).max() < 1e-10
    assert error == pytest.approx(relative, rel=1e-6, abs=1e-7)


def test_a_stored_average_is_itself() -> None:
    for number, profile in enumerate(PAIR):
        found, error = coefficients(UNEVEN, PAIR, profile)
        expected = np.zeros_like(found)
        expected[-1, number] = 1
        assert np.abs(found - expected).max() < 1e-12 and error < 1e-7


def test_the_error_falls_with_the_square_of_the_number_of_snapshots() -> None:
    errors = [coefficients(range(1, n + 1), PAIR, Power(0.15))[1] for n in (16, 32, 64, 128)]
    assert errors[2] == pytest.approx(5.8e-4, rel=0.01)
    assert all(3.8 < a / b < 4.1 for a, b in pairwise(errors))


@pytest.mark.parametrize("steps", [[], [0, 1], [3, 2], [2, 2]])
def test_steps_must_ascend(steps: list[int]) -> None:
    with pytest.raises(UsageError, match="positive and in ascending order"):
        coefficients(steps, PAIR, Power(0.1))


# ------------------------------------------------------------------------------------------------- the configuration


def test_averages_in_a_configuration() -> None:
    several = "0.9999,power:0.05,power:0.1"
    assert TrainConfig().ema == 0.9999 and TrainConfig().profiles == (Decay(0.9999),)
    assert TrainConfig(ema="0.99").ema == 0.99 and TrainConfig(ema="power:.1").ema == "power:0.1"
    for given in (several, " 0.9999 , power:.05,power: 0.10", (0.9999, "power:0.05", Power(0.1))):
        assert TrainConfig(ema=given).ema == several  # type: ignore[arg-type]
    config = TrainConfig(ema=several, snapshots=64)
    assert config.profiles == (Decay(0.9999), *PAIR) == profiles_of(several)
    assert TrainConfig.from_dict(config.to_dict()).profiles == config.profiles


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0.9,pow:0.1", "'pow:0.1' is not an average; it must be a decay"), ("", "'' is not an average"),
        ("0.9,", "'' is not an average"), ("0.9,power:", "'power:' is not"), ("nan", "'nan' is not"),
        ("power:0.3", "sigma_rel is 0.3; it must be a number >= 0.01 and <= 0.28"), ("0.9,2", "decay is 2.0; it must"),
        ("0.9,0.9", "contains an average twice"), ("power:0.1,power:.10", "contains an average twice"),
    ],
)  # fmt: skip
def test_averages_that_do_not_exist(given: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(ema=given)
    assert words in str(error.value) and "\n" not in str(error.value) and error.value.parameter == "ema"


def test_snapshots_need_a_power_function() -> None:
    with pytest.raises(UsageError, match=r"ema=0\.9999 has no power-function average to store"):
        TrainConfig(snapshots=64)
