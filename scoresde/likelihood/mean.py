"""A mean likelihood to a stated standard error, from three levels of likelihoods.

Let U(x) be the negative log-likelihood of a picture x (or any row of data), as :class:`scoresde.Likelihood` computes it
with one random probe, and let e be the wanted standard error of its mean. Averaging U over n pictures takes
n = var(U)/e^2 of them. Most of this work is spent again and again on what all pictures share. The telescoping sum

    mu = mean_N F + mean_S1 [ b L - F ] + mean_S2 [ T - b L' ] + mean_S3 [ U' - T ]                              (1)

has the same expectation, and each of its terms varies less or costs less than U:

    L   the base level: twelve Adams-Bashforth steps (:mod:`scoresde.likelihood.adams`), new probes at each step;
    L'  the same steps with one probe for the whole trajectory;
    T   a solve at a loose tolerance, with the probe of L';
    U'  a solve at the tolerance of U, with the probe of L' and T;
    F   a regression of b L on features of the picture, without the network (:mod:`scoresde.likelihood.control`).

Redrawn probes make L less noisy, but noise that two levels do not share would remain in their difference. A fixed probe
has the same expectation, given the steps, so equation 1 may change from the one to the other between L and L'. The sets
S1 and S2 are disjoint, and S3 is a part of S2. The coefficient b is the regression of T on L' in S2, and F in S1 is
predicted from the other pictures of S1. The regression is only a control: its mean is corrected by S1, so it changes
the error of the figure and not the figure.

The bar. The variances of the terms add up (the small covariances of S2 and S3 are left out),

    se^2 = A + V1/n1 + V2/n2 + V3/n3,        V1 = var(b L - F),  V2 = var(T - b L'),  V3 = var(U' - T),          (2)
    A    = [ var(F) + 2 cov(F, b L - F) ]/N  for the mean of the population from which the N pictures were drawn,
    A    = var(F | x)/N                      for the mean of these N pictures,

where var(F | x) is due to the dequantisation. For these N pictures the bar is too large rather than too small, because
S1 is treated as if it had been drawn from a population. With the cost c_l of a picture at level l, the cheapest numbers
of pictures for an error e are (Giles 2015, eq. 1.4)

    n_l = sqrt(V_l/c_l) sum_k sqrt(V_k c_k) / (e^2 - A).                                                         (3)

The numbers. A scout of a few pictures shows how large the pilot has to be; the pilot is never larger than what the
scout suggests, and never larger than 256, 64 and 16 pictures. From the pilot, equation 3 gives the plan. If averaging U
costs less than the plan, U is averaged. The sets then grow, at most fourfold at a time, until se is at most e. The
pictures of each set are the first ones, or for S2 and S3 the last ones, of a fixed random order, so a smaller e keeps
the pictures of a larger one. The N pictures themselves limit the error: the mean of a population cannot be known better
than sd/sqrt(N).

Costs are numbers of forward passes. A pass with a backward pass counts as three, and a pair for a finite difference as
two.

References:
    Giles (2015), Multilevel Monte Carlo methods, Acta Numerica 24:259-328.
    Vihola (2018), Unbiased estimators and multilevel Monte Carlo, arXiv:1512.01022: randomised levels are no better.
    Angelopoulos et al. (2023), PPI++, arXiv:2311.01453: predictions of a cheap model as a control.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .method import Likelihood

__all__ = ["OF", "Control", "MeanLikelihood", "Plan", "Solved", "Terms", "telescoped"]

OF = ("population", "these")
PARTS = ("pictures", "correction", "tolerance")  # the parts of the bar, in the order of equation 2

Sizes = tuple[int, int, int]
Numbers = tuple[float, float, float]

SCOUT: Sizes = (64, 16, 16)
LEAST: Sizes = (64, 32, 16)
PILOT: Sizes = (256, 64, 16)
ROUND: Sizes = (16, 8, 8)  # sizes are multiples of these
FEWEST = 64  # pictures below which no levels are used
GROWTH = 4  # largest factor by which a set grows at once
MORE = 17 / 16  # smallest factor by which a set grows
SLACK = 1.1  # a data set is too small if its floor is above the bar by this factor, as far as the pilot can tell


@dataclass(frozen=True)
class Solved:
    """The results of one level for some pictures.

    Attributes:
        values: Negative log-likelihoods in bits per dimension, or log-likelihoods in nats, float64 ``(k,)``. A value is
            NaN if its solve failed.
        cost: Number of forward passes for each picture, float64 ``(k,)``.
    """

    values: Tensor
    cost: Tensor


Solve = Callable[[str, Tensor, Callable[[Tensor, Solved], object]], object]


class Control(Protocol):
    """A regression on features of the pictures, for the term F of equation 1."""

    def __call__(self, places: Tensor, values: Tensor) -> tuple[Tensor, float]:
        """Predict the values of all pictures.

        Args:
            places: The pictures of S1, int64 ``(k,)``.
            values: Their values, float64 ``(k,)``.

        Returns:
            The predictions, float64 ``(N,)``, where the prediction of a picture of S1 does not use its own value, and
            the variance of a prediction due to the dequantisation, var(F | x).
        """
        ...


@dataclass(frozen=True)
class Plan:
    """The numbers of pictures that are to be solved, and what they cost.

    Attributes:
        sizes: Number of pictures in S1, S2 and S3 (equation 1), or ``None`` if averaging U is cheaper.
        each: Number of forward passes for a picture of S1, S2 and S3.
        cost: Number of forward passes in all, with those of the pilot.
        plain: Number of pictures whose plain average has the same error, which may exceed those that there are.
        plain_each: Number of forward passes for each of these.
        count: Number of pictures N.
    """

    sizes: Sizes | None
    each: tuple[float, float, float]
    cost: float
    plain: int
    plain_each: float
    count: int

    @property
    def plain_cost(self) -> float:
        """Number of forward passes for the plain average."""
        return self.plain * self.plain_each

    def __str__(self) -> str:
        plain = f"{self.plain:,} pictures at {self.plain_each:.0f}, {_thousands(self.plain_cost)} in all"
        if self.sizes is None:
            return f"of {self.count:,} pictures, a plain average of {plain}"
        levels = [f"{n:,} at {c:.0f}" for n, c in zip(self.sizes, self.each, strict=True) if n]
        told = f"{levels[0]} and {levels[-1]}" if len(levels) == 2 else f"{levels[0]}, {levels[1]} and {levels[-1]}"
        return (
            f"of {self.count:,} pictures, {told} forward passes, {_thousands(self.cost)} in all "
            f"(a plain average: {plain})"
        )


def _thousands(cost: float) -> str:
    return f"{cost:,.0f}" if cost < 10_000 else f"{cost / 1000:,.0f} thousand"


@dataclass(frozen=True)
class Terms:
    """The terms of equation 1 and their variances, as estimated from the pictures solved so far.

    Attributes:
        mean: The figure.
        rest: A in equation 2.
        spread: V1, V2 and V3.
        sizes: Number of pictures in S1, S2 and S3.
        each: Mean number of forward passes for a picture of S1, S2 and S3.
        total: The variance of a plain likelihood over the pictures.
        slope: The coefficient b.
        explained: Share of the variance of b L that F explains.
        change: The term of S3, by which the figure changes at the tighter tolerance.
        count: Number of pictures N.
    """

    mean: float
    rest: float
    spread: tuple[float, float, float]
    sizes: Sizes
    each: tuple[float, float, float]
    total: float
    slope: float = 1.0
    explained: float = 0.0
    change: float = 0.0
    count: int = 0

    @property
    def floor(self) -> float:
        """The smallest standard error that all N pictures can give (for a population, sd/sqrt(N))."""
        return math.sqrt(self.rest + self.spread[0] / self.count)

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the standard error, which add up in quadrature (equation 2)."""
        shares = [v / n if n else math.inf if v else 0.0 for v, n in zip(self.spread, self.sizes, strict=True)]
        shares[0] += self.rest
        return {name: math.sqrt(share) for name, share in zip(PARTS, shares, strict=True)}

    @property
    def stderr(self) -> float:
        """The standard error of the figure (equation 2)."""
        return math.sqrt(sum(part**2 for part in self.parts.values()))

    def sizes_for(self, within: float, least: Sizes = LEAST) -> Sizes | None:
        """Return the cheapest numbers of pictures for the error ``within`` (equation 3), or ``None`` if there are none.

        Args:
            within: The wanted standard error.
            least: The smallest number for each level. A level without variance keeps its smallest number.
        """
        if not math.isfinite(sum(self.spread)):
            return None
        found = dict(enumerate(map(float, least)))
        free = [k for k in range(3) if self.spread[k] > 0]
        while free:
            left = within**2 - self.rest - sum(self.spread[k] / n for k, n in found.items() if k not in free and n)
            if left <= 0:
                return None
            total = sum(math.sqrt(self.spread[k] * self.each[k]) for k in free)
            asked = {k: math.sqrt(self.spread[k] / self.each[k]) * total / left for k in free}
            found |= {k: max(asked[k], least[k]) for k in free}
            low = [k for k in free if asked[k] < least[k]]
            if not low:
                break
            free = [k for k in free if k not in low]
        n1, n2, n3 = _rounded((found[0], found[1], found[2]))
        return n1, max(n2, n3), n3


def _up(n: float, step: int) -> int:
    return -(-math.ceil(n - 1e-9) // step) * step


@dataclass(frozen=True)
class MeanLikelihood:
    """A mean likelihood with its standard error and the parts of this error.

    Attributes:
        mean: The mean, in ``unit``. It is the figure of the data from which the pictures were drawn, or of these
            pictures (see ``of``).
        stderr: One standard error of ``mean``.
        within: The standard error that was asked for.
        unit: ``bits/dim`` or ``nats``.
        of: What the mean belongs to: the ``population`` from which the pictures were drawn, or ``these`` pictures.
        count: Number of pictures N.
        parts: The parts of ``stderr``, which add up in quadrature: ``pictures`` (their number, their dequantisation and
            the probes of the base level), ``correction`` and ``tolerance``.
        sizes: Number of pictures solved in each level: ``base``, ``correction`` and ``tolerance``, or ``plain``.
        plan: The plan after the pilot.
        cost: Number of forward passes. One with a backward pass counts as three.
        floor: The smallest standard error that all N pictures can give, as estimated.
        change: The mean change at the tighter tolerance, which is a part of ``mean``.
        slope: The coefficient of the base level.
        explained: Share of the variance of the base level that the features of the pictures explain.
        failed: Number of solves that failed. They are left out.
        how: The options of the likelihood whose mean this is, with each ``auto`` replaced by the actual choice.
    """

    mean: float
    stderr: float
    within: float
    unit: str
    of: str
    count: int
    parts: dict[str, float]
    sizes: dict[str, int]
    plan: Plan | None
    cost: float
    floor: float
    change: float
    slope: float
    explained: float
    failed: int
    how: Likelihood | None = None

    @property
    def reached(self) -> bool:
        """Whether ``stderr`` is at most ``within``."""
        return self.stderr <= self.within

    def __str__(self) -> str:
        missed = "" if self.reached else f", {self.within:g} not reached"
        how = "" if self.how is None else f" ({self.how})"
        return f"{self.mean:.4f} ± {self.stderr:.4f} {self.unit}{missed}{how}"


Watch = Callable[[Terms, Plan | None, float], object]


def telescoped(
    solve: Solve,
    count: int,
    within: float,
    *,
    unit: str = "bits/dim",
    of: str = "population",
    control: Control | None = None,
    tolerance: bool = True,
    sizes: Sizes | None = None,
    watch: Watch | None = None,
) -> MeanLikelihood:
    """Estimate a mean to the standard error ``within`` (equations 1 to 3).

    Args:
        solve: Function of the name of a level, of the places of some pictures, int64 ``(k,)``, and of a function to
            call with the places and the results of each batch. The levels are ``base`` (L), ``fixed`` (L'), ``rough``
            (T), ``fine`` (U') and ``plain`` (U). The pictures 0 to N-1 must be in random order.
        count: Number of pictures N.
        within: The wanted standard error, in the unit of the values.
        unit: The unit of the values.
        of: The mean to estimate: that of the ``population`` or of ``these`` pictures.
        control: The regression on features, or ``None`` for F = 0.
        tolerance: Whether U' differs from T.
        sizes: Fixed numbers of pictures for the three levels, for experiments, or ``None`` to choose them.
        watch: Function to call after each batch, and after the pilot, with the terms, the plan (``None`` before it is
            made) and the number of forward passes so far.
    """
    work = _Work(solve, count, control, of, tolerance, watch)
    if sizes is not None:
        work.grow(sizes)
        return work.told(within, unit)
    if count >= FEWEST:
        most = (count // 2, count // 4, count // 4)
        work.grow(_least(SCOUT, most))
        asked = work.terms.sizes_for(within) or PILOT
        work.grow(_least(PILOT, most, _most(asked, LEAST)))
        work.plan = work.planned(within)
        work.tell()
    while not work.done(within):
        plan = work.planned(within)
        if plan.sizes is None:
            work.grow_plain(min(max(plan.plain, FEWEST), GROWTH * max(work.plain, FEWEST), count))
        else:
            work.grow(_least(plan.sizes, _times(work.sizes, GROWTH)))
    return work.told(within, unit)


def _least(*sizes: Numbers) -> Sizes:
    a, b, c = (math.floor(min(each)) for each in zip(*sizes, strict=True))
    return a, b, c


def _most(*sizes: Sizes) -> Sizes:
    a, b, c = (max(each) for each in zip(*sizes, strict=True))
    return a, b, c


def _times(sizes: Sizes, factor: float) -> Numbers:
    a, b, c = (n * factor for n in sizes)
    return a, b, c


def _rounded(sizes: Numbers) -> Sizes:
    a, b, c = (_up(n, step) for n, step in zip(sizes, ROUND, strict=True))
    return a, b, c


@dataclass
class _Work:
    """The results so far. Pictures that were not solved are NaN."""

    solve: Solve
    count: int
    control: Control | None
    of: str
    tolerance: bool
    watch: Watch | None
    plan: Plan | None = None
    sizes: Sizes = (0, 0, 0)
    plain: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    costs: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for level in ("base", "fixed", "rough", "fine", "plain"):
            self.values[level] = torch.full((self.count,), torch.nan, dtype=torch.float64)
            self.costs[level] = torch.zeros(self.count, dtype=torch.float64)

    @property
    def cost(self) -> float:
        """Number of forward passes so far."""
        return float(sum(costs.sum() for costs in self.costs.values()))

    @property
    def failed(self) -> int:
        """Number of solves that failed."""
        return sum(int(((self.costs[k] > 0) & self.values[k].isnan()).sum()) for k in self.values)

    def fill(self, level: str, first: int, last: int) -> None:
        """Solve the pictures ``first`` to ``last - 1`` in a level."""

        def found(places: Tensor, solved: Solved) -> None:
            self.values[level][places] = solved.values
            self.costs[level][places] = solved.cost
            self.tell()

        if last > first:
            self.solve(level, torch.arange(first, last), found)

    def tell(self) -> None:
        """Call the watch."""
        if self.watch is not None:
            self.watch(self.terms, self.plan, self.cost)

    def grow(self, sizes: Sizes) -> None:
        """Extend S1 from the front and S2 and S3 from the back of the order."""
        n1, n2, n3 = _most(sizes, self.sizes)
        n3 = n3 if self.tolerance else 0
        now, end = self.sizes, self.count
        self.fill("base", now[0], n1)
        for level, n, before in (("fixed", n2, now[1]), ("rough", n2, now[1]), ("fine", n3, now[2])):
            self.fill(level, end - n, end - before)
        self.sizes = n1, n2, n3

    def grow_plain(self, n: int) -> None:
        """Extend the pictures of the plain average."""
        self.fill("plain", self.plain, n)
        self.plain = n

    @property
    def terms(self) -> Terms:
        """The terms of equation 1."""
        if self.plain:
            return self._plain()
        base, fixed, rough, fine = (self.values[k] for k in ("base", "fixed", "rough", "fine"))
        first, second, third = ~base.isnan(), ~(fixed + rough).isnan(), ~(fine + rough).isnan()
        b = _slope(fixed[second], rough[second])
        y, offset = b * base[first], rough[second] - b * fixed[second]
        change = fine[third] - rough[third]
        f, noise = torch.zeros(self.count, dtype=torch.float64), 0.0
        if self.control is not None and len(y) > 2:
            f, noise = self.control(first.nonzero().flatten(), y)
        r = y - f[first]
        shared = _variance(f) + 2 * _covariance(f[first], r) if self.of == "population" else noise
        total = _variance(y)
        return Terms(
            mean=sum(float(part.mean()) for part in (f, r, offset, change) if len(part)),
            rest=max(0.0, shared) / self.count,
            spread=(_variance(r), _variance(offset, 2), _variance(change) if self.tolerance else 0.0),
            sizes=(len(y), len(offset), len(change)),
            each=(self._each("base"), self._each("fixed") + self._each("rough"), self._each("fine")),
            total=total,
            slope=b,
            explained=max(0.0, 1 - _variance(r) / total) if math.isfinite(total) and total > 0 else 0.0,
            change=float(change.mean()) if len(change) else 0.0,
            count=self.count,
        )

    def _plain(self) -> Terms:
        values = self.values["plain"]
        own = values[~values.isnan()]
        mean, variance = float(own.mean()) if len(own) else math.nan, _variance(own)
        each = (self._each("plain"), 0.0, 0.0)
        return Terms(mean, 0.0, (variance, 0.0, 0.0), (len(own), 0, 0), each, variance, count=self.count)

    def _each(self, level: str) -> float:
        """Return the mean number of forward passes for a picture in a level."""
        costs = self.costs[level][self.costs[level] > 0]
        return float(costs.mean()) if len(costs) else 0.0

    def planned(self, within: float) -> Plan:
        """Choose between levels and a plain average, whichever is cheaper from here."""
        terms = self.terms
        if self.count < FEWEST:
            return Plan(None, terms.each, self.cost, self.count, terms.each[0], self.count)
        if self.plain:
            n = max(self._plain_size(terms, within), math.ceil(self.plain * MORE))
            return Plan(None, terms.each, self.cost, n, terms.each[0], self.count)
        plain, each = self._plain_size(terms, within), terms.each[2] or self._each("rough")
        levels, more = self._larger(terms, within), math.inf
        if levels is not None:
            more = sum(max(0, n - now) * c for n, now, c in zip(levels, self.sizes, terms.each, strict=True))
        if levels is not None and (more <= plain * each or plain > self.count):
            return Plan(levels, terms.each, self.cost + more, plain, each, self.count)
        # If the bar is out of reach, all pictures give the smallest error.
        return Plan(None, terms.each, self.cost + min(plain, self.count) * each, plain, each, self.count)

    def _plain_size(self, terms: Terms, within: float) -> int:
        return math.ceil(terms.total / within**2) if math.isfinite(terms.total) else self.count

    def _larger(self, terms: Terms, within: float) -> Sizes | None:
        """Return sizes with which the bar should hold, larger than now unless it holds, or ``None``."""
        asked = terms.sizes_for(within)
        if asked is None:
            return None
        sizes = _most(asked, self.sizes)
        if sizes == self.sizes and terms.stderr > within:
            sizes = _rounded(_times(self.sizes, MORE))
        sizes = sizes if self.tolerance else (*sizes[:2], 0)
        return sizes if sizes[0] + sizes[1] <= self.count and sizes[2] <= sizes[1] else None

    def done(self, within: float) -> bool:
        """Return whether the bar holds, or cannot be reached."""
        holds = self.terms.stderr <= within
        if self.plain:
            return self.plain >= self.count or (holds and self.plain >= FEWEST)
        return self.plan is not None and (holds or self.terms.floor > SLACK * within)

    def told(self, within: float, unit: str) -> MeanLikelihood:
        """Return the figure."""
        terms = self.terms
        names = ("base", "correction", "tolerance") if not self.plain else ("plain",)
        return MeanLikelihood(
            terms.mean, terms.stderr, within, unit, self.of, self.count, terms.parts,
            dict(zip(names, terms.sizes, strict=False)), self.plan, self.cost, terms.floor, terms.change,
            terms.slope, terms.explained, self.failed,
        )  # fmt: skip


def _slope(x: Tensor, y: Tensor) -> float:
    """Return the slope of the regression of ``y`` on ``x``, each ``(k,)``, or 1 if it is undefined."""
    variance = _variance(x)
    return _covariance(x, y) / variance if len(x) > 2 and variance > 0 else 1.0


def _variance(x: Tensor, fitted: int = 1) -> float:
    """Return the variance of ``x: (k,)`` about its mean, where ``fitted`` coefficients were estimated from it."""
    if len(x) <= fitted:
        return math.inf
    return float((x - x.mean()).square().sum()) / (len(x) - fitted)


def _covariance(x: Tensor, y: Tensor) -> float:
    if len(x) < 2:
        return 0.0
    return float(((x - x.mean()) * (y - y.mean())).sum()) / (len(x) - 1)
