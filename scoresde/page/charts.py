"""Charts that do not move: the curves of figures 6, 7 and 8 with their axes, as numbers that the script draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

__all__ = ["Chart", "chart", "curve", "decades", "even_ticks", "short"]

Chart: TypeAlias = dict[str, Any]
Ticks: TypeAlias = Sequence[tuple[float, str]]


def chart(
    title: str,
    x: tuple[float, float],
    y: tuple[float, float],
    lines: Sequence[dict[str, Any]],
    xticks: Ticks = (),
    yticks: Ticks = (),
    band: Sequence[float] | None = None,
) -> Chart:
    """Describe a chart with the limits ``x`` and ``y``. A band of real data is drawn behind the lines."""
    ends = {"x": x, "y": y, "band": band}
    return {"title": title, "lines": lines, "xticks": xticks, "yticks": yticks} | ends


def curve(
    xs: Iterable[float],
    ys: Iterable[float],
    hue: int,
    *,
    name: str = "",
    dash: int = 0,
    width: float = 1.5,
    marks: bool = False,
    legend: bool = False,
) -> dict[str, Any]:
    """Describe a line. The colour ``hue`` and the pattern ``dash`` are numbers in the lists of the script."""
    places = {"xs": [_rounded(v) for v in xs], "ys": [_rounded(v) for v in ys]}
    return places | {"name": name, "hue": hue, "dash": dash, "width": width, "marks": marks, "legend": legend}


def even_ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """Return about ``count`` round numbers between two numbers, with their texts.

    >>> even_ticks(-9.2, 10.0, 5)
    [(-5.0, '−5'), (0.0, '0'), (5.0, '5'), (10.0, '10')]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(k * power for k in (1, 2, 5, 10) if k * power >= rough)
    return [
        (float(f"{k * size:.6g}"), short(k * size, 6))
        for k in range(math.ceil(low / size), math.floor(high / size + 1e-9) + 1)
    ]


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """Return the numbers 1, 2 and 5 times a power of ten between ``10**low`` and ``10**high``, at their logarithms.

    >>> decades(-0.5, 1.0)
    [(-0.30103, '0.5'), (0.0, '1'), (0.30103, '2'), (0.69897, '5'), (1.0, '10')]
    """
    numbers = [k * 10.0**power for power in range(math.floor(low), math.floor(high) + 1) for k in (1, 2, 5)]
    return [(float(f"{math.log10(n):.6g}"), short(n, 1)) for n in numbers if low <= math.log10(n) <= high]


def short(value: float, digits: int) -> str:
    """Return a number with at most ``digits`` significant digits, without an exponent, as the script writes it.

    >>> short(0.000012345, 2), short(-1234.5, 2)
    ('0.000012', '−1200')
    """
    rounded = float(f"{value:.{digits}g}")
    text = f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}" if rounded else "0"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def _rounded(value: float) -> float | None:
    """Return the number with six digits, or ``None``, a gap of the line, if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
