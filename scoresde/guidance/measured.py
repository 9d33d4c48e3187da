"""Samples that agree with a measurement, drawn with a model that was not trained for it.

A measurement  y = A x_0 + noise  with a linear operator A moves the estimate of the data. Given the state x_t, the data
are assumed to be Gaussian, with mean x0_hat and a covariance C. The mean given the measurement is then

    x0 = x0_hat + C A^T v,        (noise^2 I + A C A^T) v = y - A x0_hat.                                     (1)

With gamma = sigma^2/alpha and the Jacobian J = d x0_hat / d x_t, Tweedie's second-order formula gives C = gamma J. The
rules differ in how they use it:

    moment          C = gamma J in both places. The linear system is solved by a few steps of conjugate gradients
                    (Rozet et al. 2024, arXiv:2405.13712). If the data are Gaussian, it is exact after as many steps
                    as there are measured numbers, and close to that after a few.
    pseudoinverse   C = r^2 I inside the bracket, with r^2 = (1/s^2 + alpha^2/sigma^2)^-1, where s is the standard
                    deviation of the data, and C = gamma J outside (Song et al. 2023, "PiGDM", eq. 7).
    projection      C = I and noise = 0:  x0 = x0_hat + A^+ (y - A x0_hat)  (Wang et al. 2023, arXiv:2212.00490).
                    It needs no derivative, and ignores the noise of the measurement.

A is written in data units, so it is composed with the codec's map to data units. If the data have levels, the model
describes values that are spread over cells [k, k + w). A x_0 is then compared with y + A (w/2), and A diag(w^2/12) A^T
is added to the covariance of the noise, because the position in the cell is not known.

The Jacobian of an exact model is symmetric and positive, that of a network need not be. The conjugate gradients for a
row therefore stop where the curvature of equation 1 falls below half of the noise, or far below its typical value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..codec import Codec, Composed, Levels
from ..codec.affine import Affine, as_affine
from ..core.errors import UsageError
from ..core.limits import NONNEGATIVE, POSITIVE, Checked, ranges
from ..core.registry import closest
from ..core.shapes import align, expand, select, sum_flat, time_dtype
from ..model.estimate import Domain, Estimate, Wrapped
from ..operators import Linear, Masking, Operator
from ..sde.check import check_scalar
from .steered import detached, steer, twisted

FLAT = 1e-3  # the smallest curvature of equation 1, relative to that of the rule "pseudoinverse"

__all__ = ["RULES", "Measured", "Problem", "Rule", "check_linear", "moment", "projection", "pseudoinverse"]


@dataclass(frozen=True, eq=False)
class Problem:
    """The linear problem that a rule solves: how to change the estimate of the data so that it agrees with y.

    All values are those of the batch, B rows. Changes of the estimate are in model units, and measurements are in data
    units.

    Attributes:
        estimate: The estimate of the model without the measurement.
        residual: ``y - A x0_hat``, ``(B, *measured)``.
        gamma: The ratio sigma^2/alpha, ``()`` or ``(B,)``.
        vjp: A function that returns ``J^T u`` for ``u: (B, *event)``.
        operator: The operator A.
        scale: The factor from model units to data units, which broadcasts to an event.
        noise: The standard deviation of the noise of the measurement.
        rounding: The variance of the position in a cell, w^2/12, which broadcasts to an event. 0 for continuous data.
        data_std: The standard deviation of the data in model units.
    """

    estimate: Estimate
    residual: Tensor
    gamma: Tensor
    vjp: Callable[[Tensor], Tensor]
    operator: Linear
    scale: Tensor
    noise: float
    rounding: Tensor
    data_std: float

    def back(self, v: Tensor) -> Tensor:
        """Return ``A^T v`` in model units, ``(B, *event)``, for ``v: (B, *measured)``."""
        return self.scale * self.operator.transpose(v)

    def pulled(self, v: Tensor) -> Tensor:
        """Return ``gamma J^T A^T v`` in model units, ``(B, *event)``, for ``v: (B, *measured)``."""
        u = self.vjp(self.back(v))
        return expand(self.gamma, u) * u

    def solve(self, r: Tensor) -> Tensor:
        """Solve equation 1 for v, if the right-hand side is ``r`` and C = :attr:`variance` I, ``(B, *measured)``."""
        return self.operator.solve(r, self._prior, self.noise**2)

    def simple(self, v: Tensor) -> Tensor:
        """Return ``(noise^2 I + A C A^T) v`` with C = :attr:`variance` I, ``(B, *measured)``."""
        return self.noise**2 * v + self.operator(self._prior * self.operator.transpose(v))

    @property
    def _prior(self) -> Tensor:
        return expand(self.variance, self.estimate.x0) * self.scale.square() + self.rounding

    @property
    def variance(self) -> Tensor:
        """The variance r^2 of the data given the state, if the data are N(0, ``data_std``^2 I), ``()`` or ``(B,)``."""
        alpha, sigma = self.estimate.sde.coefficients(self.estimate.t)
        s = self.data_std
        return (s * sigma).square() / ((s * alpha).square() + sigma.square())


Rule = Callable[[Problem], Tensor]


def projection(problem: Problem) -> Tensor:
    """Return the smallest change that makes the estimate agree with the measurement, ``(B, *event)``."""
    v = problem.operator.solve(problem.residual, problem.scale.square().expand_as(problem.estimate.x0), 0.0)
    return problem.back(v)


def pseudoinverse(problem: Problem) -> Tensor:
    """Return the change of equation 1 with a multiple of the identity inside the bracket, ``(B, *event)``."""
    return problem.pulled(problem.solve(problem.residual))


def moment(problem: Problem, steps: int = 5) -> Tensor:
    """Return the change of equation 1 with C = gamma J, ``(B, *event)``.

    Args:
        problem: The linear problem.
        steps: Number of steps of conjugate gradients. Each of them takes one backward pass.
    """
    noise = problem.noise**2
    v, residual = torch.zeros_like(problem.residual), problem.residual
    # The matrix of the rule "pseudoinverse" is the preconditioner, so columns may have any units.
    z = problem.solve(residual)
    p, size = z, sum_flat(residual * z)
    goal = torch.finfo(p.dtype).eps ** 2 * size  # a residual as small as rounding allows
    active = size > goal
    for _ in range(steps):
        back = problem.operator.transpose(p)
        known = noise * p + problem.operator(problem.rounding * back)
        u = problem.vjp(problem.scale * back)
        product = known + problem.operator(problem.scale * (expand(problem.gamma, u) * u))
        curvature, floor = sum_flat(p * product), sum_flat(p * known)
        least = torch.maximum(floor / 2, FLAT * sum_flat(p * problem.simple(p)))
        active = active & (curvature > least) & (curvature > 0)
        if not bool(active.any()):
            break
        # The divisors of stopped rows are 1, so that derivatives of the result are finite, too.
        step = align(torch.where(active, size, 0.0) / torch.where(active, curvature, 1.0), p)
        v, residual = v + step * p, residual - step * product
        z = problem.solve(residual)
        new = sum_flat(residual * z)
        p = torch.where(align(active, p), z + align(new / torch.where(active, size, 1.0), p) * p, p)
        size = torch.where(active, new, size)
        active = active & (size > goal)
    return problem.pulled(v)


RULES: dict[str, Rule] = {"moment": moment, "pseudoinverse": pseudoinverse, "projection": projection}


@dataclass(frozen=True, eq=False)
class Measured(Checked, Wrapped):
    """A model whose samples agree with a measurement, for any linear operator and any solver.

    Args:
        model: The model, which need not know the operator.
        operator: A linear operator in data units, set up for the shape of the samples (:meth:`.Operator.on`).
        y: The measurements in data units, with one row for each sample or one row for all samples,
            ``(B or 1, *measured)``.
        noise: The standard deviation of the noise of the measurements, in data units.
        rule: ``moment``, ``pseudoinverse`` or ``projection``, or a function of a :class:`Problem` that returns the
            change of the estimate.
        codec: The map from data units to model units (default: they are the same).
        data_std: The standard deviation of the data in model units, which ``pseudoinverse`` uses.

    Raises:
        UsageError: If the operator is not linear, if the codec is not affine, or if the rule needs a score that the
            model does not have.

    >>> from scoresde import GaussianMixture, VPSDE
    >>> from scoresde.operators import Pool
    >>> model = GaussianMixture(VPSDE(), torch.zeros(1, 1, 2), torch.ones(1))
    >>> both = Measured(model, Pool(2).on((1, 2)), torch.ones(1, 1, 1), noise=0.1)
    >>> bool((both(torch.zeros(1, 1, 2), 0.5).x0 > 0.9).all())
    True
    """

    limits = ranges(noise=NONNEGATIVE, data_std=POSITIVE)

    operator: Operator
    y: Tensor
    noise: float = 0.0
    rule: str | Rule = "moment"
    codec: Codec = field(default_factory=Composed)
    data_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_linear(self.operator)
        instead = "a run on such a path, or train with the operator as a condition"
        check_scalar(self.model.domain.sde, "a rule for measurements", instead)
        if tuple(self.y.shape[1:]) != self.operator.measured:
            raise UsageError(
                f"the measurements have shape {tuple(self.y.shape[1:])} for each sample, but those by the operator "
                f"{self.operator} have shape {self.operator.measured}",
                parameter="given",
            )
        if isinstance(self.operator, Masking):  # what is hidden may be anything
            object.__setattr__(self, "y", self.operator(self.y.nan_to_num()))
        if isinstance(self.rule, str) and self.rule not in RULES:
            raise UsageError(f"unknown rule {self.rule!r}; {closest(self.rule, RULES)}", parameter="rule")
        if not self.model.domain.has_score and self.rule not in ("projection", projection):
            raise UsageError(
                f"the rule {_name(self.rule)!r} takes the covariance of the data from the score, but a model trained "
                "on coupled (data, noise) pairs has no score; use the rule 'projection'",
                parameter="rule",
                value="projection",
            )
        _affine(self.codec)

    @cached_property
    def domain(self) -> Domain:
        """The domain of the model. The estimates at different noise levels belong to no common distribution."""
        return replace(self.model.domain, consistent=False, kind="measured model", twisted=True)

    def rows(self, index: Tensor) -> Measured:
        """Return the model and the measurements restricted to the rows ``index: (B',)`` of a batch."""
        model, codec = self.model.rows(index), self.codec.rows(index)
        return replace(
            self,
            model=model,
            codec=codec,
            operator=self.operator.rows(index),
            y=select(self.y, index.to(self.y.device)),
        )

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        kept: list[Problem] = []
        rule = RULES[self.rule] if isinstance(self.rule, str) else self.rule

        def change(estimate: Estimate, state: Tensor, gamma: Tensor) -> Tensor:
            vjp = partial(_vjp, estimate.x0, state, x.requires_grad)
            kept.append(self._problem(estimate, gamma, vjp))
            with torch.set_grad_enabled(x.requires_grad):
                return rule(kept[0])

        found = steer(self.model, x, t, change)
        # The twist needs no derivatives, so nothing keeps the graph of the network alive.
        last = kept.pop()
        last = replace(last, estimate=detached(last.estimate), residual=last.residual.detach(), vjp=torch.zeros_like)
        return twisted(found, lambda: self._log_likelihood(last))

    def _problem(self, estimate: Estimate, gamma: Tensor, vjp: Callable[[Tensor], Tensor]) -> Problem:
        assert isinstance(self.operator, Linear)
        x0, affine = estimate.x0, _affine(self.codec)
        wide = time_dtype(x0.device)
        half, rounding = self._cells(x0)
        # The difference of two large numbers, such as a temperature in kelvin, is computed in float64.
        measured = self.operator(affine.to_data(x0.to(wide)) - half.to(wide))
        residual = (self.y.to(measured) - measured).to(x0.dtype)
        return Problem(
            estimate, residual, gamma, vjp, self.operator, affine.scale.to(x0), self.noise, rounding, self.data_std
        )

    def _cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return half the width of a level and the variance of the position in its cell, w/2 and w^2/12."""
        levels = self.codec.levels
        width = torch.as_tensor(levels.width if isinstance(levels, Levels) else 0.0).to(x)
        return width / 2, width.square() / 12

    @staticmethod
    def _log_likelihood(problem: Problem) -> Tensor:
        """Return ``log p(y | x_t)`` up to a constant, for data given the state that are N(x0_hat, r^2 I), ``(B,)``."""
        with torch.no_grad():
            return -sum_flat(problem.residual * problem.solve(problem.residual)) / 2


def check_linear(operator: Operator) -> None:
    """Reject an operator that is not linear, because no rule can use its measurements."""
    if not isinstance(operator, Linear):
        raise UsageError(
            f"the operator {operator} is not linear, so a model that was not trained with it cannot use its "
            f"measurements; train with cond='{operator}', or use a linear operator, such as pool:2",
            parameter="seen",
        )


def _vjp(x0: Tensor, state: Tensor, graph: bool, u: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(x0, state, u, retain_graph=True, create_graph=graph)
    return found


def _affine(codec: Codec) -> Affine:
    if codec.continuous == Composed():  # data units are model units
        return Affine(0.0, 1.0)
    return as_affine(codec, "measuring samples of a model")


def _name(rule: str | Rule) -> str:
    return rule if isinstance(rule, str) else getattr(rule, "__name__", type(rule).__name__)
