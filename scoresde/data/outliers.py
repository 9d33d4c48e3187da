"""Find numbers that lie far outside the other numbers of their column, as typing errors often do.

For the numbers on one side of the median, let d_1 >= d_2 >= ... be their distances from the median. If these fall off
like a power (the heaviest tails that data usually have), the weighted logarithmic spacings

    E_i = i log(d_i / d_{i+1})                                                                               (1)

are independent and exponentially distributed, all with the same mean. In lighter tails, such as that of a normal
distribution, the outer spacings are smaller than the inner ones. The m outermost numbers are called far out if

    E_m > K (P^(-1/K) - 1) (E_{m+1} + ... + E_{m+K}) / K                                                     (2)

which a power tail exceeds with probability P, whatever its exponent, and if d_m is also several times larger than
d_{m+1} and than the median distance. A column with heavy tails is therefore measured by its own tails. Numbers such as
-999, by which many programs mark missing values, are far out however often they occur.

References:
    Rényi (1953), On the theory of order statistics, for the spacings of an exponential distribution.
    Hill (1975), A simple general approach to inference about the tail of a distribution, for equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .raw import Array, Raw

__all__ = ["Outliers", "far_out", "outliers_of"]

P = 1e-3
GAP = 3.0  # lowest ratio of d_m to d_{m+1}
WIDE = 6.0  # lowest ratio of d_m to the median distance
SPACINGS = (10, 200)  # fewest and most spacings to compare with, K
SHARE = 0.01  # largest share of the numbers that may be far out, unless they mark missing values
MOST = (3, 1000)  # bounds on the number that corresponds to this share
MARKS = np.array([s * c for c in (99, 999, 9999, 99999, 999999, 99.9, 999.9, 9999.9) for s in (1, -1)])


@dataclass(frozen=True, eq=False)
class Outliers:
    """The numbers of one column or channel that lie far outside the others.

    Attributes:
        name: The column or channel, such as "column 'age'", or "" if there is only one.
        rows: The row of each number, counted from 0, int64 ``(k,)``. The furthest comes first.
        values: The numbers, float64 ``(k,)``.
        low, high: The range of the other numbers.
        lines: The line of each number in the file, or empty if the data are not lines of a table.
    """

    name: str
    rows: Array
    values: Array
    low: float
    high: float
    lines: tuple[int, ...] = ()

    @property
    def short(self) -> str:
        """The first number and its place, such as "213000 of column 'age' in line 12"."""
        of = f" of {self.name}" if self.name else ""
        where = f"line {self.lines[0]}" if self.lines else f"row {self.rows[0]} (counted from 0)"
        return f"{self.values[0]:.10g}{of} in {where}"

    def __str__(self) -> str:
        places = [*(self.lines or self.rows.tolist())][1:]
        noun = ("line" if self.lines else "row") + "s" * (len(places) > 1)
        more = f" and {len(places):,} more ({noun} {', '.join(map(str, places[:5]))}{', ...' * bool(places[5:])})"
        marks = bool(np.isin(self.values, MARKS).all())
        why = "if they mark missing values, leave the cells empty" if marks else "check for typing errors"
        told = (
            f"the value{'s' * bool(places)} {self.short}{more * bool(places)} {'are' if places else 'is'} far outside"
        )
        return f"{told} the others ({self.low:.6g} to {self.high:.6g}); {why}"


def outliers_of(raw: Raw) -> tuple[Outliers, ...]:
    """Return the numbers of the training samples, and of their conditions, that lie far outside the others.

    Integers are examined only in tables, vectors and signals, because those of pictures have a known range.
    """
    found = []
    x, known = raw.train, raw.complete
    if x.dtype.kind == "f" or (raw.kind in ("vector", "signal") and x.dtype.kind in "iu"):
        one = "feature" if raw.kind == "vector" else "channel"
        for i in range(x.shape[1]):
            there = None if known is None else known[:, i]
            name = f"column {raw.names[i]!r}" if raw.names else f"{one} {i}" if x.shape[1] > 1 else ""
            found.append(_of(x[:, i], there, name, raw.lines))
    vector = raw.train_known.vector
    if vector is not None and vector.dtype.kind in "iuf":
        names = raw.train_known.names or [str(i) for i in range(vector.shape[1])]
        for i, name in enumerate(names):
            found.append(_of(vector[:, i], None, f"column {name!r} of the condition", raw.lines))
    return tuple(one for one in found if one is not None)


def _of(x: Array, known: Array | None, name: str, lines: Sequence[int]) -> Outliers | None:
    """Describe the outliers among the values ``x: (N, *space)`` of a column or channel, if there are any."""
    values = x.reshape(-1).astype(np.float64)
    there = ~np.isnan(values) if known is None else known.reshape(-1) & ~np.isnan(values)
    places = np.flatnonzero(there)
    values = values[places]
    index = far_out(values)
    if not len(index):
        return None
    rest = np.delete(values, index)
    rows = places[index] // max(1, x[:1].size)
    at = tuple(lines[row] for row in rows) if len(lines) else ()
    return Outliers(name, rows, values[index], float(rest.min()), float(rest.max()), at)


def far_out(x: Array) -> Array:
    """Return the positions of the numbers in the float64 array ``x: (n,)`` that lie far outside the others.

    The result is an int64 array, with the furthest number first. It is empty if there are too few numbers to judge.

    >>> far_out(np.append(np.linspace(20, 30, 200), [250.0])).tolist()
    [200]
    >>> far_out(np.tan(np.linspace(-1.57, 1.57, 400))).tolist()  # heavy tails
    []
    """
    if len(x) < 2:
        return np.empty(0, np.int64)
    marks = np.isin(x, MARKS)
    if marks.any() and not marks.all():
        rest = x[~marks]
        middle = np.median(rest)
        marks &= np.abs(x - middle) > GAP * np.abs(rest - middle).max()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rest = np.flatnonzero(~marks) if not marks.all() else np.arange(len(x))
        middle = np.median(x[rest])
        sides = [rest[_side(side)] for side in (x[rest] - middle, middle - x[rest])]
        found = np.concatenate([*sides, np.flatnonzero(marks) if not marks.all() else rest[:0]])
        return found[np.argsort(-np.abs(x[found] - middle), kind="stable")]


def _side(d: Array) -> Array:
    """Return the positions of the distances ``d: (n,)`` that are far out. Numbers on the other side are negative."""
    n = int((d > 0).sum())
    most = min(max(MOST[0], int(SHARE * len(d))), MOST[1])
    spacings = min(max(SPACINGS[0], n // 10), SPACINGS[1])
    if n < most + spacings + 1:
        most, spacings = 1, min(n - 2, SPACINGS[0])
        if spacings < 3:
            return np.empty(0, np.int64)
    index = np.argpartition(-d, most + spacings)[: most + spacings + 1]
    index = index[np.argsort(-d[index], kind="stable")]
    top = d[index]
    e = np.arange(1, len(top)) * np.log(top[:-1] / top[1:])
    mean = np.convolve(e[1:], np.ones(spacings), "valid") / spacings  # of the spacings that follow each of the first
    limit = spacings * (P ** (-1 / spacings) - 1) * mean
    far = (e[:most] > limit) & (top[:most] > GAP * top[1 : most + 1]) & (top[:most] > WIDE * np.median(d[d > 0]))
    return index[: int(far.nonzero()[0].max()) + 1] if far.any() else index[:0]
