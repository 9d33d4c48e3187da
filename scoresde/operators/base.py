"""Operators, which describe how a sample x is measured. All values are in data units.

A linear operator A has four methods. ``__call__`` computes the measurement,

    y = A x,                                                                                                  (1)

``transpose`` computes  A^T y,  and ``solve`` solves the linear systems that arise if a measurement has Gaussian noise,

    solve(r, a, b) = (A diag(a) A^T + b I)^-1 r,                                                              (2)

where ``a`` is the prior variance of each value of x and ``b`` is the variance of the noise. If b is 0 and the matrix is
singular, ``solve`` applies the pseudo-inverse of the matrix. ``pinv`` applies the pseudo-inverse of A,

    A^+ y = A^T (A A^T)^+ y,        A A^+ A = A.                                                              (3)

To write a linear operator, subclass :class:`Linear` as a frozen dataclass and implement ``__call__``. By default, the
transpose is computed by automatic differentiation, and equations 2 and 3 are evaluated with conjugate gradients. An
operator for which equation 2 has a closed form should override ``solve``.

The same operator degrades the training data of a conditional model, and is later used to make the model's samples agree
with a measurement (:mod:`scoresde.run.seen`). The network does not need to know the operator, because it is always
shown an estimate with the shape of the data (:meth:`Operator.shown`), which is ``A^+ y`` in most cases.

References:
    Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems, J. Res. NBS 49: the method
    used for equation 2, and its least-squares variant (CGLS), used for equation 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Checked
from ..core.noise import Noise
from ..core.registry import name_of
from ..core.shapes import align, select, sum_flat
from ..core.tables import OPERATORS

__all__ = ["Linear", "Operator", "conjugate_gradients"]

Number = float | Tensor


@dataclass(frozen=True, eq=False)
class Operator(Checked, ABC):
    """Base class of all operators. To write a linear operator, subclass :class:`Linear` instead.

    Args:
        event: Shape of a sample, without the batch axis, or ``None`` until :meth:`on` sets it.
    """

    linear: ClassVar[bool] = False

    event: tuple[int, ...] | None = field(default=None, kw_only=True)

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Measure samples ``x: (B, *event)`` in data units. The measurements have shape ``(B, *measured)``."""

    @abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """Return an estimate of the samples, ``(B, *event)``, from their measurements ``y: (B, *measured)``."""

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        """Return a copy of the operator that is set up for samples of a given shape and range.

        Args:
            event: Shape of a sample, without the batch axis.
            low, high: Lowest and highest value of the samples, in data units. Only operators that encode pictures as
                bytes use these values.

        Raises:
            UsageError: If the operator does not apply to samples of this shape.
        """
        return replace(self, event=tuple(event))

    def drawn(self, noise: Noise, step: int = 0) -> Operator:
        """Return a copy of the operator whose random values are drawn independently for each row of ``noise``.

        Args:
            noise: The source of random numbers for each row. Operators use its stream "condition". A choice of several
                operators also uses the stream "task", to choose one of them.
            step: The training step, or 0 outside training.
        """
        return self

    def shown(self, y: Tensor) -> Tensor:
        """Return the estimates, ``(B, *event)``, that a network is shown for measurements ``y: (B, *measured)``.

        By default, the estimates are those of :meth:`pinv`. Operators that hide values override this method, and mark
        the hidden values with NaN.
        """
        return self.pinv(y)

    def degrade(self, x: Tensor) -> Tensor:
        """Measure samples ``x: (B, *event)``, and return the estimates, ``(B, *event)``, that a network is shown."""
        return self.shown(self(x))

    def hidden(self, event: tuple[int, ...]) -> Tensor:
        """Return a boolean mask, ``(B or 1, *event)``, of the values of a sample that a measurement leaves open.

        A mask or a crop leaves open only the values that it hides. Any other operator mixes or changes values, so it
        leaves all of them open.

        Args:
            event: Shape of a sample, without the batch axis.
        """
        return torch.ones(1, *event, dtype=torch.bool)

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of a measurement, without the batch axis."""
        return tuple(self(torch.zeros(1, *self._event)).shape[1:])

    def rows(self, index: Tensor) -> Self:
        """Return a copy of the operator for the rows ``index: (B',)`` of a batch.

        Fields that are tensors must have one row for each sample, or a single row for all samples.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {n: select(v, index.to(v.device)) for n, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **chosen)

    def __str__(self) -> str:
        """Return the operator as a user would type it, such as ``pool:2``."""
        options = [getattr(self, f.name) for f in fields(self) if f.init and f.name != "event" and f.repr]
        shown = [_typed(value) for value in options if value]  # 0 and "" mean that the operator decides
        return ":".join([name_of(self, OPERATORS), *shown])

    @property
    def title(self) -> str:
        """A short description for figures, such as "pooled by 2"."""
        return str(self)

    @property
    def _event(self) -> tuple[int, ...]:
        if self.event is None:
            raise UsageError(
                f"{type(self).__name__} needs the shape of the samples; call operator.on(shape) first, with a shape "
                "such as (channels, height, width)"
            )
        return self.event

    def _space(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of the spatial axes, and reject vectors, which have none."""
        if len(event) < 2:
            raise UsageError(
                f"the operator {self} needs pictures, signals or volumes, but the samples are vectors of shape {event}",
                parameter="cond",
                value="cells",
            )
        return tuple(event[1:])


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """A measurement that is linear in the sample: ``y = A x``."""

    linear: ClassVar[bool] = True

    def transpose(self, y: Tensor) -> Tensor:
        """Return ``A^T y``, shape ``(B, *event)``, for ``y: (B, *measured)``."""
        with torch.enable_grad():
            x = torch.zeros(len(y), *self._event, dtype=y.dtype, device=y.device, requires_grad=True)
            at_zero = self(x)
            # Because A is linear, the gradient of <A x, y> with respect to x is A^T y at every x.
            (found,) = torch.autograd.grad(at_zero, x, y, create_graph=y.requires_grad)
        return found

    def solve(self, r: Tensor, a: Number, b: Number = 0.0) -> Tensor:
        """Return ``(A diag(a) A^T + b I)^-1 r`` (equation 2), which has the same shape as ``r``.

        Args:
            r: The right-hand side, ``(B, *measured)``.
            a: The prior variances: a positive number, or a tensor that broadcasts to ``(B, *event)``.
            b: The variance of the noise: a non-negative number, or a tensor that broadcasts to the shape of ``r``. If
                ``b`` is the number 0, the pseudo-inverse of the matrix ``A diag(a) A^T`` is applied.
        """
        if isinstance(b, Tensor) or b > 0:
            return conjugate_gradients(lambda v: self(a * self.transpose(v)) + b * v, r)
        # With B = A diag(a)^(1/2), the pseudo-inverse of B B^T is (B^T)^+ B^+.
        root = torch.as_tensor(a, dtype=r.dtype, device=r.device).sqrt()

        def forth(x: Tensor) -> Tensor:
            return self(root * x)

        def back(y: Tensor) -> Tensor:
            return root * self.transpose(y)

        inside = _least_squares(forth, back, r, torch.zeros_like(back(r)))
        return _least_squares(back, forth, inside, torch.zeros_like(r))

    def pinv(self, y: Tensor) -> Tensor:
        """Return ``A^+ y`` (equation 3), shape ``(B, *event)``, for ``y: (B, *measured)``."""
        if type(self).solve is not Linear.solve:
            return self.transpose(self.solve(y, 1.0, 0.0))
        return _least_squares(self, self.transpose, y, torch.zeros_like(self.transpose(y)))


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], r: Tensor, steps: int = 0) -> Tensor:
    """Solve ``matrix(u) = r`` for each row of ``r``. The matrix must be symmetric and positive definite.

    The iteration for a row stops once its residual is as small as rounding allows. Rows do not affect each other.

    Args:
        matrix: A function that multiplies ``u: (B, *shape)`` by the matrix. The result has the same shape.
        r: The right-hand side, ``(B, *shape)``.
        steps: Maximum number of steps, or 0 for ten times the number of unknowns.

    Returns:
        The solution u, with the shape of ``r``.
    """
    u, residual, p = torch.zeros_like(r), r, r
    size = _dot(r, r)
    goal = torch.finfo(r.dtype).eps ** 2 * size
    for _ in range(steps or 10 * max(1, r[0].numel())):
        product = matrix(p)
        curvature = _dot(p, product)
        active = (size > goal) & (curvature > 0)
        if not bool(active.any()):
            break
        step = align(torch.where(active, size / curvature, 0), r)
        u, residual = u + step * p, residual - step * product
        new = _dot(residual, residual)
        p = torch.where(align(active, r), residual + align(new / size, r) * p, p)
        size = torch.where(active, new, size)
    return u


def _least_squares(forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], y: Tensor, x: Tensor) -> Tensor:
    """Return the x of smallest norm that minimises ``|B x - y|`` for each row, by conjugate gradients (CGLS).

    The functions ``forth`` and ``back`` multiply by B and by B^T. The starting point ``x`` must be zero.
    """
    residual, s = y, back(y)
    p, size = s, _dot(s, s)
    goal = (8 * torch.finfo(y.dtype).eps) ** 2 * size
    for _ in range(10 * max(1, min(x[0].numel(), y[0].numel()))):
        q = forth(p)
        curvature = _dot(q, q)
        active = (size > goal) & (curvature > 0)
        if not bool(active.any()):
            break
        step = torch.where(active, size / curvature, 0)
        x, residual = x + align(step, x) * p, residual - align(step, y) * q
        s = back(residual)
        new = _dot(s, s)
        p = torch.where(align(active, x), s + align(new / size, x) * p, p)
        size = torch.where(active, new, size)
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row of ``a`` with the same row of ``b``."""
    return sum_flat(a * b)


def _typed(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
