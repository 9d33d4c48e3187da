r"""Exponential multistep solvers of orders 1 to 6, with one evaluation per step.

Each solver approximates a quantity q (a combination of the model's estimates) by a polynomial, and integrates all other
terms exactly. Dividing the state x by a norm N(t), and replacing the time t by another time variable, the clock c(t),
turns the probability flow of any path into

    d(x/N) = q dc                       variable     N                    q                            c
                                        x0           sigma                x0_hat                       alpha/sigma
                                        eps          alpha                eps_hat                      sigma/alpha
                                        straight     alpha + sigma        eps_hat - x0_hat             sigma/N
                                        v, gauss     hypot(alpha, sigma)  (alpha eps - sigma x0)/N     atan(sigma/alpha)

A step from t to s that interpolates the last k values q_j of q with Lagrange polynomials L_j is therefore

    x_s = (N_s/N_t) x_t + N_s sum_j w_j q_j,      w_j = int_{c(t)}^{c(s)} L_j dc,                                 (1)

where the subscripts t and s denote values at these times. For ``x0``, ``eps`` and ``gauss``, the polynomials are
functions of l = log(alpha/sigma). For ``straight`` and ``v``, they are functions of the clock c itself, so the solvers
with these two variables are Adams-Bashforth methods with variable steps, whose coefficients are finite over the whole
path. For data from N(0, I), ``v`` and ``gauss`` are exact, because q is 0.

Several combinations of a variable and an order are published methods: DDIM (``x0``, ``eps`` or ``straight``, order 1),
DPM-Solver++ 2M (``x0``, order 2) and DEIS in log-rho (``eps``, orders 2 to 4). The published DPM-Solver++ 3M halves a
divided difference and is therefore only second order, whereas equation (1) with k = 3 is third order.

With ``correct``, each step is repeated with the value of q at the end of the step, which the next step needs anyway.
The correction raises the order by one without an extra evaluation. The resulting method is UniPC. The function B(h) of
that method matters only if the polynomial interpolates two values. It then determines the integral of u dc over the
step, where u = (l - l_t)/h and h = l_s - l_t. With the rule ``exact``, this integral is exact. It is replaced by
half of c(s) - c(t) with ``midpoint`` (published as B2), and by h/2 times the value of dc/dl at s with ``bh1``.

In the first k - 1 steps, fewer than k values of q are known, so the order is lower. The error of the first step, which
is of order h^2, limits the overall order to 2. On VP, sub-VP and VE, q hardly changes at the start, so this limit does
not apply.

The reverse SDE with the noise level eta(t) = tau g(t), where g is the diffusion coefficient and tau is constant over a
step, has steps of the same form. With standard normals z, these steps are

    x0:   x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + sigma_s int (1 + tau^2) e^(l - tau^2 (l_s - l)) x0_hat dl
                + sigma_s sqrt(1 - e^(-2 tau^2 h)) z,                                                             (2)
    eps:  x_s = (alpha_s/alpha_t) x_t - alpha_s int (1 + tau^2) e^(-l) eps_hat dl
                + alpha_s tau sqrt(e^(-2 l_t) - e^(-2 l_s)) z.                                                    (3)

With tau = 1, equation (2) at order 1 is ancestral sampling with the posterior of Ho et al. (2020), arXiv:2006.11239,
eq. 6-7, and at order 2 it is DPM-Solver++ 2M-SDE. With ``correct``, equation (2) is SA-Solver, and with the ``er``
noise level, it is ER-SDE. Equation (3) at order 1 is SDE-DPM-Solver. With tau = 0, equations (2) and (3) reduce to
equation (1).

Where alpha = 0, the log-SNR is minus infinity and the clock of ``eps`` is infinite. A node with alpha = 0 is therefore
used only by the step that starts there, x_s = alpha_s x0_hat + sigma_s eps_hat, which is first order and does not
involve a division by alpha. For ``x0``, ``eps`` and ``gauss``, a step that is more than twice as long in log-SNR as the
previous step (such as the last step of a grid that is uniform in t) is also first order, because extrapolating a
polynomial that far increases the error. A correction with a weight above 3 hypot(alpha_s, sigma_s) is skipped, because
it would amplify errors.

References:
    Song, Meng and Ermon (2021), arXiv:2010.02502: DDIM.
    Lu et al. (2022), arXiv:2211.01095: DPM-Solver++ and its SDE variants.
    Zhang and Chen (2023), arXiv:2204.13902: DEIS.
    Zhao et al. (2023), arXiv:2302.04867: UniPC.
    Xue et al. (2023), arXiv:2305.14267: SA-Solver.
    Cui et al. (2023), arXiv:2309.06169: ER-SDE.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from ..core.noise import Noise
from ..core.shapes import add_scaled
from ..model.estimate import Denoiser, Estimate
from ..sde.base import SDE, informative
from .base import FixedStep
from .level import Level, check_level, ratios

__all__ = [
    "VARIABLES",
    "Multistep",
    "MultistepSDE",
    "Variable",
    "deis",
    "dpmpp_2m",
    "dpmpp_3m",
    "er_sde",
    "log_ratio",
    "sa_solver",
    "sde_dpm",
    "unipc",
    "weights",
]  # fmt: skip

Floats = npt.NDArray[np.float64]
Node = tuple[float, float]  # (alpha, sigma)

RULES = ("exact", "midpoint", "bh1")

# On any step of a sensible grid, 24 Gauss-Legendre nodes integrate exp times a polynomial to within rounding error.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True)
class Variable:
    """One row of the table in the module docstring, with its entries as functions of alpha and sigma."""

    norm: Callable[[float, float], float]
    clock: Callable[[float, float], float]
    q: Callable[[Estimate, Any, Any], Tensor]  # alpha and sigma may be tensors here
    log_ratio: Callable[[float], float]  # l as a function of the argument of the polynomials
    slope: Callable[[Floats], Floats] | None = None  # dc/dl as a function of l, if l is the argument of the polynomials

    def node(self, alpha: float, sigma: float) -> float:
        """Return the argument of the polynomials (l or the clock) at the node ``(alpha, sigma)``."""
        return log_ratio(alpha, sigma) if self.slope else self.clock(alpha, sigma)


VARIABLES = {
    "x0": Variable(
        norm=lambda alpha, sigma: sigma,
        clock=lambda alpha, sigma: alpha / sigma,
        q=lambda e, alpha, sigma: e.x0,
        log_ratio=lambda lam: lam,
        slope=np.exp,
    ),
    "eps": Variable(
        norm=lambda alpha, sigma: alpha,
        clock=lambda alpha, sigma: sigma / alpha,
        q=lambda e, alpha, sigma: e.eps,
        log_ratio=lambda lam: lam,
        slope=lambda lam: -np.exp(-lam),
    ),
    "straight": Variable(
        norm=lambda alpha, sigma: alpha + sigma,
        clock=lambda alpha, sigma: sigma / (alpha + sigma),
        q=lambda e, alpha, sigma: e.eps - e.x0,
        log_ratio=lambda r: math.log1p(-r) - math.log(r),
    ),
    "v": Variable(
        norm=math.hypot,
        clock=lambda alpha, sigma: math.atan2(sigma, alpha),
        q=lambda e, alpha, sigma: (alpha * e.eps - sigma * e.x0) / _hypot(alpha, sigma),
        log_ratio=lambda phi: -math.log(math.tan(phi)),
    ),
    "gauss": Variable(
        norm=math.hypot,
        clock=lambda alpha, sigma: math.atan2(sigma, alpha),
        q=lambda e, alpha, sigma: (alpha * e.eps - sigma * e.x0) / _hypot(alpha, sigma),
        log_ratio=lambda lam: lam,
        slope=lambda lam: -0.5 / np.cosh(lam),
    ),
}


def _hypot(alpha: Any, sigma: Any) -> Any:
    return torch.hypot(alpha, sigma) if isinstance(alpha, Tensor) else math.hypot(alpha, sigma)


def log_ratio(alpha: float, sigma: float) -> float:
    """Return ``l = log(alpha/sigma)``, which is ``-inf`` if no signal is left and ``inf`` if there is no noise."""
    if not informative(alpha, sigma):
        return -math.inf
    return math.log(alpha / sigma) if sigma > 0 else math.inf


def weights(
    slope: Callable[[Floats], Floats] | None, span: float, nodes: list[float], interval: tuple[float, float], rule: str
) -> list[float]:
    """Return the weights ``w_j`` of equation (1).

    Args:
        slope: The derivative dc/dl as a function of l, or ``None`` if the polynomials are functions of the clock c. For
            equations (2) and (3), the factor on q replaces dc/dl.
        span: The change in the clock c over the step. For equations (2) and (3), the integral of ``slope``.
        nodes: The nodes of the polynomials, from the newest to the oldest.
        interval: The values of l or c at the start and the end of the step.
        rule: How the polynomials are integrated (see :class:`Multistep`).

    Returns:
        The weights, from the newest node to the oldest. Older nodes are left out if they coincide or if the step is
        too long to extrapolate from them, so there can be fewer weights than nodes.
    """
    start, end = interval
    # Where rounding keeps the clock from advancing, several nodes coincide, and only the newest of them is used.
    known = next((j for j in range(1, len(nodes)) if nodes[j] == nodes[j - 1]), len(nodes))
    nodes = nodes[:known] if span else nodes[:1]
    if len(nodes) == 1 or (slope is not None and abs(end - start) > 2.01 * abs(nodes[0] - nodes[1])):
        return [span]
    if len(nodes) == 2 and rule != "exact":
        # q = q_0 + (q_1 - q_0) (l - l_0)/(l_1 - l_0), and the integral of u dc is approximate, with u = (l - start)/h.
        h = end - start
        half = span / 2 if slope is None or rule == "midpoint" else h / 2 * float(slope(np.array(end)))
        second = (half * h + (start - nodes[0]) * span) / (nodes[1] - nodes[0])
        return [span - second, second]
    at = (start + end) / 2 + (end - start) / 2 * _NODES
    dc = (end - start) / 2 * _WEIGHTS * (1.0 if slope is None else slope(at))
    dc *= span / dc.sum()  # removes the quadrature error, about 1e-16, from the constant term
    found = []
    for j, node in enumerate(nodes):
        lagrange = np.ones_like(at)
        for i, other in enumerate(nodes):
            if i != j:
                lagrange *= (at - other) / (node - other)
        found.append(float((lagrange * dc).sum()))
    return found


@dataclass(frozen=True)
class _Step:
    """The coefficients of a step ``x <- keep x + sum_j weights_j q_j + spread z``.

    A correction repeats the step with the weights ``again``. With ``jump``, the step is instead
    ``x <- weights_0 x0_hat + keep eps_hat + spread z``, which is also valid where alpha or sigma is 0.
    """

    keep: float
    weights: tuple[float, ...]
    spread: float
    jump: bool = False
    again: tuple[float, ...] = ()


@lru_cache(maxsize=4096)  # a path with coordinates has one plan for each distinct coordinate
def _plan(
    name: str, order: int, rule: str, correct: bool, taper: bool, path: tuple[Node, ...], taus: tuple[float, ...]
) -> tuple[_Step, ...]:
    """Return the coefficients of all steps between the nodes of ``path``."""
    variable, plan, nodes = VARIABLES[name], [], list[float]()
    for left, ((here, there), tau) in zip(range(len(taus), 0, -1), zip(pairwise(path), taus, strict=True), strict=True):
        start, end = variable.node(*here), variable.node(*there)
        if not (math.isfinite(start) and math.isfinite(end)):
            keep, spread = (there[1], 0.0) if tau == 0 else (0.0, there[1])
            plan.append(_Step(keep, (there[0],), spread, jump=True))
            nodes = []
            continue
        nodes = [start, *nodes][:order]
        used = nodes[:left] if taper else nodes
        keep, norm, span, slope, spread = _integrand(name, here, there, tau)
        found = weights(slope, span, used, (start, end), rule)
        again = weights(slope, span, [end, *used], (start, end), rule) if correct else []
        if again and max(abs(norm * w) for w in again) > 3 * math.hypot(*there):
            again = [0.0, *found]
        plan.append(_Step(keep, tuple(norm * w for w in found), spread, again=tuple(norm * w for w in again)))
    return tuple(plan)


def _integrand(
    name: str, here: Node, there: Node, tau: float
) -> tuple[float, float, float, Callable[[Floats], Floats] | None, float]:
    """Return the terms of a step (equations 1 to 3): the factor on x, N, ``span``, ``slope``, and the factor on z.

    ``slope`` is the factor on q as a function of l, or ``None`` if the polynomials are functions of c. ``span`` is the
    integral of this factor over the step.
    """
    variable = VARIABLES[name]
    norm, span = variable.norm(*there), variable.clock(*there) - variable.clock(*here)
    keep, growth = norm / variable.norm(*here), 1 + tau**2
    if tau == 0:
        return keep, norm, span, variable.slope, 0.0
    start, end = log_ratio(*here), log_ratio(*there)
    if name == "x0":
        h = end - start
        return (
            keep * math.exp(-(tau**2) * h),
            norm,
            -there[0] / there[1] * math.expm1(-growth * h),
            lambda at: growth * np.exp(at - tau**2 * (end - at)),
            norm * math.sqrt(-math.expm1(-2 * tau**2 * h)),
        )
    spread = norm * tau * math.sqrt(math.exp(-2 * start) - math.exp(-2 * end))
    return keep, norm, growth * span, lambda at: -growth * np.exp(-at), spread


@dataclass(frozen=True)
class _Exponential(FixedStep):
    """Base class of the solvers that take the steps of equations (1) to (3)."""

    limits = ranges(order=Range(1, 6))

    variable: str = "x0"
    order: int | None = None
    rule: str = "exact"
    correct: bool | None = None
    taper: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable not in VARIABLES:
            raise UsageError(f"unknown variable {self.variable!r}; choose from: {', '.join(VARIABLES)}")
        if self.rule not in RULES:
            raise UsageError(f"unknown rule {self.rule!r}; choose from: {', '.join(RULES)}")

    def choice(self, steps: int) -> tuple[int, bool, bool]:
        """Return the order, whether to correct, and whether to taper, given the number of steps."""
        taper = self.variable == "x0" and not self.stochastic and steps < 15 if self.taper is None else self.taper
        if self.order is not None:
            return self.order, bool(self.correct), taper
        order = 3 if steps < 8 else 2 if steps < 25 else 3 if steps < 40 else 4
        return order, steps >= 8 if self.correct is None else self.correct, taper

    @abstractmethod
    def taus(self, sde: SDE, times: Tensor) -> tuple[float, ...]:
        """Return tau, the ratio ``eta(t)/g(t)``, for each step of the grid ``times``."""

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        variable = VARIABLES[self.variable]
        coefficients = model.domain.sde.coefficients(times.cpu())
        order, correct, taper = self.choice(len(times) - 1)
        taus = self.taus(model.domain.sde, times.cpu())
        if model.domain.sde.coords:
            return self._by_coordinate(model, times, noise, coefficients, (order, self.rule, correct, taper), taus)
        path = tuple(zip(*(c.tolist() for c in coefficients), strict=True))
        plan = _plan(self.variable, order, self.rule, correct, taper, path, taus)
        clock = times.tolist()
        values: list[Tensor] = []  # previous values of q, from the newest to the oldest
        before: tuple[Tensor, list[Tensor], Tensor | None] | None = None  # the previous step, which is corrected next

        def advance(i: int, x: Tensor) -> Tensor:
            nonlocal values, before
            step, estimate = plan[i], model(x, times[i])
            z = noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype) if step.spread > 0 else None
            q = variable.q(estimate, *path[i])
            if before is not None:
                start, old, z_old = before
                x = _add(plan[i - 1].keep * start, plan[i - 1].again, (q, *old), plan[i - 1].spread, z_old)
            if step.jump:
                values, before = [], None
                return _add(step.keep * estimate.eps, step.weights, (estimate.x0,), step.spread, z)
            values = [q, *values][:order]
            before = (x, values, z) if correct else None
            return _add(step.keep * x, step.weights, values, step.spread, z)

        return advance

    def _by_coordinate(
        self,
        model: Denoiser,
        times: Tensor,
        noise: Noise,
        coefficients: tuple[Tensor, Tensor],
        rules: tuple[int, str, bool, bool],
        taus: tuple[float, ...],
    ) -> Callable[[int, Tensor], Tensor]:
        """Build the stepper for a path whose coefficients, each ``(n + 1, *coords)``, differ between coordinates.

        Each coordinate has its own plan, whose polynomials are functions of its own clock. The steps are those that a
        scalar path with its alpha and sigma would have, so independent coordinates are solved independently.
        """
        variable, (order, _, correct, _), clock = VARIABLES[self.variable], rules, times.tolist()
        paths = torch.stack(coefficients, -1).flatten(1, -2).transpose(0, 1).flatten(1)  # (coordinates, 2 (n + 1))
        distinct, where = torch.unique(paths, dim=0, return_inverse=True)
        where = where.reshape(1, *coefficients[0].shape[1:])
        plans = [
            _plan(self.variable, *rules, tuple((row[i], row[i + 1]) for i in range(0, len(row), 2)), taus)
            for row in distinct.tolist()
        ]
        columns, steps = list(zip(*plans, strict=True)), list[_Steps]()
        values: list[Tensor] = []
        before: tuple[Tensor, list[Tensor], Tensor | None] | None = None

        def advance(i: int, x: Tensor) -> Tensor:
            nonlocal values, before
            steps.append(_Steps.gather(columns[i], where, x))
            step, estimate = steps[i], model(x, times[i])
            z = noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype) if step.noisy else None
            q = variable.q(estimate, *(c[i : i + 1].to(x) for c in coefficients))
            if before is not None:
                start, old, z_old = before
                x = torch.where(steps[i - 1].corrects, steps[i - 1].take(start, (q, *old), z_old, again=True), x)
            jump = step.jump_x0 * estimate.x0 + step.jump_eps * estimate.eps
            values = [q, *values][:order]
            before = (x, values, z) if correct else None
            return step.take(x, values, z) + jump

        return advance


@dataclass(frozen=True)
class _Steps:
    """The coefficients of one step of all coordinates, each a tensor of shape ``(1, *coords)``.

    A coordinate with a jump has ``keep`` = 0 and only zeros in ``weights``, and takes the step
    ``x <- jump_x0 x0_hat + jump_eps eps_hat + spread z``. In all other coordinates, the last two factors are 0.

    Attributes:
        again: The weights of the correction.
        corrects: Which coordinates are corrected, bool ``(1, *coords)``.
    """

    keep: Tensor
    weights: tuple[Tensor, ...]
    spread: Tensor
    again: tuple[Tensor, ...]
    corrects: Tensor
    jump_x0: Tensor
    jump_eps: Tensor

    @classmethod
    def gather(cls, steps: Sequence[_Step], where: Tensor, like: Tensor) -> _Steps:
        """Build the tensors for one step.

        Args:
            steps: The step of each distinct coordinate.
            where: The index in ``steps`` of each coordinate, int64 ``(1, *coords)``.
            like: A tensor with the device and dtype of the state.
        """

        def table(numbers: Sequence[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64)[where].to(like)

        def column(lists: Sequence[tuple[float, ...]]) -> tuple[Tensor, ...]:
            most = max(map(len, lists))
            return tuple(table([part[j] if j < len(part) else 0.0 for part in lists]) for j in range(most))

        return cls(
            keep=table([0.0 if s.jump else s.keep for s in steps]),
            weights=column([() if s.jump else s.weights for s in steps]),
            spread=table([s.spread for s in steps]),
            again=column([s.again for s in steps]),
            corrects=torch.tensor([bool(s.again) for s in steps])[where].to(like.device),
            jump_x0=table([s.weights[0] if s.jump else 0.0 for s in steps]),
            jump_eps=table([s.keep if s.jump else 0.0 for s in steps]),
        )

    @property
    def noisy(self) -> bool:
        """Whether the step draws noise in any coordinate."""
        return bool((self.spread > 0).any())

    def take(self, x: Tensor, values: Sequence[Tensor], z: Tensor | None, again: bool = False) -> Tensor:
        """Take the step from ``x: (B, *event)``, or repeat it with the weights of the correction."""
        x = self.keep * x
        for weight, value in zip(self.again if again else self.weights, values, strict=False):
            x = x + weight * value
        return x if z is None else x + self.spread * z


def _add(x: Tensor, weights: tuple[float, ...], values: Sequence[Tensor], spread: float, z: Tensor | None) -> Tensor:
    """Return ``x + sum_j weights_j values_j + spread z``."""
    x = add_scaled(x, weights, values)
    return x if z is None else torch.add(x, z, alpha=spread)


@dataclass(frozen=True)
class Multistep(_Exponential):
    """Exponential Adams-Bashforth solver for the probability flow, with one evaluation per step.

    Args:
        steps: Number of steps.
        variable: The quantity approximated by a polynomial: ``x0``, ``eps``, ``straight``, ``v`` or ``gauss``.
        order: Number of values that the polynomial interpolates. The first steps use fewer values, because fewer are
            known. By default, the order is 3 for fewer than 8 steps, 2 for 8 to 24, 3 for 25 to 39, and 4 for 40 or
            more.
        rule: How the polynomial is integrated: ``exact``, ``midpoint`` (as in DPM-Solver++ and in the ``bh2`` variant
            of UniPC) or ``bh1``. With more or fewer values than two, the polynomial is integrated exactly.
        correct: Whether to repeat each step, now that the value at its end is known. The correction raises the order
            of accuracy to ``order + 1`` without an extra evaluation. By default, steps are corrected if ``order`` is
            not given and there are at least 8 steps.
        taper: Whether to lower the order to 1 over the last steps, as in published code. By default, the order is
            lowered only for ``x0`` with fewer than 15 steps, where this reduced the measured error.
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    variable: str = "straight"

    def taus(self, sde: SDE, times: Tensor) -> tuple[float, ...]:
        """Return 0 for each of the n steps between ``times: (n + 1,)``, because the solver adds no noise."""
        return (0.0,) * (len(times) - 1)


@dataclass(frozen=True)
class MultistepSDE(_Exponential):
    """Exponential multistep solver for the reverse SDE, with one evaluation per step.

    Args:
        steps: Number of steps.
        variable: The quantity approximated by a polynomial: ``x0`` or ``eps``.
        order: Number of values that the polynomial interpolates. The first steps use fewer values, because fewer are
            known.
        rule: How the polynomial is integrated: ``exact``, ``midpoint`` (as in DPM-Solver++ 2M-SDE) or ``bh1``. With
            more or fewer values than two, the polynomial is integrated exactly.
        correct: Whether to take each step twice, with the same noise. The second time, q at the end of the step is
            known. By default, steps are taken once.
        taper: Whether to lower the order to 1 over the last steps. By default, the order is not lowered.
        eta: Scale factor for the noise level. With the ``g`` level, 1 gives Anderson's reverse SDE. With any level, 0
            gives the probability flow.
        level: The noise level: ``auto``, ``g``, ``sigma``, ``er`` or a function (see :mod:`scoresde.solvers.level`).
            The default, ``g``, is integrated exactly, even where it is infinite. Any other level is approximated on
            each step by a constant multiple of g that agrees with the level at the midpoint of the step.
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    steps: int = 50
    order: int = 2
    rule: str = "midpoint"
    eta: float = 1.0
    level: Level = "g"

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable not in ("x0", "eps"):
            raise UsageError(f"the variable must be 'x0' or 'eps' for the reverse SDE, got {self.variable!r}")
        check_level(self.level, self.eta)

    def taus(self, sde: SDE, times: Tensor) -> tuple[float, ...]:
        """Return ``eta(t)/g(t)`` in the middle (in log-SNR) of each of the n steps between ``times: (n + 1,)``."""
        return ratios(sde, self.level, self.eta, times)


def dpmpp_2m(steps: int = 20, grid: str = "auto") -> Multistep:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, alg. 2)."""
    return Multistep(steps, "x0", 2, "midpoint", grid=grid)


def dpmpp_3m(steps: int = 20, grid: str = "auto") -> Multistep:
    """DPM-Solver++ 3M in a form that, unlike the published one, is third order."""
    return Multistep(steps, "x0", 3, grid=grid)


def deis(steps: int = 20, order: int = 3, grid: str = "auto") -> Multistep:
    """DEIS in log-rho (Zhang and Chen 2023, arXiv:2204.13902, sec. 3): an exponential Adams-Bashforth method on eps."""
    return Multistep(steps, "eps", order, grid=grid)


def unipc(steps: int = 20, order: int = 2, variable: str = "x0", variant: str = "bh2", grid: str = "auto") -> Multistep:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867, alg. 5-6): a multistep solver with a corrector.

    The corrector raises the order of accuracy to ``order + 1``. The option ``variant`` is ``bh1``, ``bh2`` or
    ``exact``. The variant ``exact`` computes what the published variant ``vary_coeff`` is meant to compute.
    """
    if variant not in ("bh1", "bh2", "exact"):
        raise UsageError(f"unknown UniPC variant {variant!r}; choose from: bh1, bh2, exact")
    return Multistep(steps, variable, order, "midpoint" if variant == "bh2" else variant, correct=True, grid=grid)


def sde_dpm(steps: int = 100, eta: float = 1.0, grid: str = "auto") -> MultistepSDE:
    """SDE-DPM-Solver-1 (Lu et al. 2022, arXiv:2211.01095, sec. 6): a first-order solver on eps."""
    return MultistepSDE(steps, "eps", 1, eta=eta, grid=grid)


def sa_solver(steps: int = 20, order: int = 2, eta: float = 1.0, grid: str = "auto") -> MultistepSDE:
    """SA-Solver (Xue et al. 2023, arXiv:2305.14267, alg. 1): a stochastic Adams method with a corrector."""
    return MultistepSDE(steps, "x0", order, "exact", True, eta=eta, grid=grid)


def er_sde(steps: int = 20, order: int = 2, correct: bool = True, eta: float = 1.0, grid: str = "auto") -> MultistepSDE:
    """Multistep solver with the noise level of ER-SDE (Cui et al. 2023, arXiv:2309.06169).

    This noise level becomes small near the data. Steps are corrected by default. For the published ER-SDE-3, use
    ``order=3`` and ``correct=False``.
    """
    return MultistepSDE(steps, "x0", order, "midpoint", correct, eta=eta, level="er", grid=grid)
