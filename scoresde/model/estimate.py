"""The estimate of a denoiser at ``(x_t, t)``, and the interface that solvers rely on.

A denoiser estimates the data and the noise. The two estimates satisfy  alpha x0_hat + sigma eps_hat = x_t.  The score
follows from them by Tweedie's formula, and the velocity from the time derivative of the path:

    score = -eps_hat / sigma,        velocity = alpha' x0_hat + sigma' eps_hat.                             (1)

References:
    Vincent (2011), A connection between score matching and denoising autoencoders: the score of a Gaussian path.
    Song et al. (2021), arXiv:2011.13456, eq. 13: the velocity of the probability flow.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.shapes import expand
from ..sde.base import SDE

__all__ = [
    "VARIANCES", "Counted", "Denoiser", "Domain", "Estimate", "Tally",
    "Wrapped",
]  # fmt: skip

# The choices for the variance of a step down (see Estimate.share).
VARIANCES = ("auto", "posterior", "beta", "learned")


@dataclass(frozen=True)
class Estimate:
    """A model's estimate of data and noise at ``(x_t, t)``.

    Attributes:
        x: The noisy batch, shape ``(B, *event)``.
        t: The time, shape ``()`` or ``(B,)``.
        x0, eps: The estimated data and noise, same shape as ``x``; they satisfy ``alpha x0 + sigma eps = x``.
        sde: The path that the estimate belongs to.
        frac: The learned variance as a fraction (see :meth:`share`), same shape as ``x``, or ``None`` if the model did
            not learn the variance.
        calls: The number of network evaluations per row that this estimate took: one number, or int64 ``(B,)``.
    """

    x: Tensor
    t: Tensor
    x0: Tensor
    eps: Tensor
    sde: SDE
    frac: Tensor | None = None
    calls: int | Tensor = 1

    def share(self, variance: str = "auto") -> Tensor:
        """Return the fraction f in the variance ``S^2 (sigma_s^2/sigma_t^2)^(1 - f)`` of a step down to any s.

        See equation (3) of :mod:`scoresde.sde.marginal`.

        Args:
            variance: ``posterior`` (f = 0), ``beta`` (f = 1), ``learned`` (:attr:`frac`), or ``auto``, which means
                ``learned`` if the model learned the variance and ``posterior`` otherwise.

        Returns:
            The fraction, with shape ``()``, or with the same shape as ``x`` if it was learned.

        Raises:
            UsageError: If ``variance`` is ``learned`` but the model did not learn it.
        """
        if variance in ("auto", "learned") and self.frac is not None:
            return self.frac
        if variance == "learned":
            raise UsageError(
                "the variance is 'learned', but this model did not learn it; train with learn_variance=True, or use "
                "the variance posterior or beta",
                parameter="variance",
                value="posterior",
            )
        return self.x.new_ones(()) if variance == "beta" else self.x.new_zeros(())

    @property
    def score(self) -> Tensor:
        """The score ``grad log p_t(x)``, with the same shape as ``x``."""
        return -self.eps / expand(self.sde.coefficients(self.t)[1], self.x)

    @property
    def velocity(self) -> Tensor:
        """The velocity ``dx/dt`` of the probability flow, with the same shape as ``x``."""
        d_alpha, d_sigma = self.sde.rates(self.t)
        return expand(d_alpha, self.x) * self.x0 + expand(d_sigma, self.x) * self.eps


@dataclass(frozen=True, eq=False)
class Domain:
    """The times at which a model can be evaluated, and the properties of its estimates.

    Attributes:
        sde: The path.
        t_min, t_max: The times between which the model can be evaluated; no solver leaves this interval.
        nodes: The times that a discrete model supports, in rising order, shape ``(N,)``, or ``None`` if time is
            continuous.
        has_score: Whether ``-eps_hat/sigma`` is the score of a density. It is not if data and noise were paired in
            training, although the flow is still correct in that case.
        consistent: Whether the estimates at all noise levels belong to one distribution. The estimates of a guided
            model do not: the flow and the reverse SDE then lead to different distributions, and a variational bound is
            valid only for the reverse SDE.
    """

    sde: SDE
    t_min: float
    t_max: float
    nodes: Tensor | None = None
    has_score: bool = True
    consistent: bool = True

    @classmethod
    def of(cls, sde: SDE) -> Domain:
        """Build the domain of a model that covers a whole path and has a score."""
        return cls(sde, sde.t_min, sde.t_max)

    def interval(self, use: str) -> tuple[float, float]:
        """Return the SDE's interval of t for ``use``, restricted to the domain.

        ``use`` is ``"train"``, ``"sample"`` or ``"likelihood"``. If the model has nodes, sampling starts and ends at
        nodes.
        """
        low, high = self.sde.times(use)
        low, high = max(low, self.t_min), min(high, self.t_max)
        if self.nodes is None or use != "sample":
            return low, high
        inside = self.nodes[(self.nodes > low - 1e-9) & (self.nodes < high + 1e-9)].tolist()
        if len(inside) < 2:
            raise UsageError(
                f"sampling needs at least two nodes, but the number of nodes of the model between t = {low:g} and "
                f"{high:g} is {len(inside)}"
            )
        return max(low, inside[0]), min(high, inside[-1])


class Denoiser(Protocol):
    """The interface of a model. Solvers, the likelihood and guidance use nothing else of a model."""

    @property
    def domain(self) -> Domain:
        """The times at which the model can be evaluated, and the properties of its estimates."""
        ...

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        """Estimate data and noise at ``x``, shape ``(B, *event)``, and ``t``, shape ``()`` or ``(B,)``."""
        ...

    def rows(self, index: Tensor) -> Denoiser:
        """Return the model for the rows ``index``, shape ``(B',)``, of a batch, with the conditions of these rows."""
        ...


@dataclass(frozen=True)
class Wrapped:
    """Base of a denoiser that wraps another one.

    To write a wrapper, subclass this as a frozen dataclass and implement ``__call__``. :meth:`rows` calls ``rows`` on
    every field that has this method (another denoiser, a condition, noise), and returns an object of the same class
    with all other fields unchanged.

    Args:
        model: The wrapped denoiser.
    """

    model: Denoiser

    @property
    def domain(self) -> Domain:
        """The domain of the wrapped model."""
        return self.model.domain

    def rows(self, index: Tensor) -> Self:
        """Return the denoiser for the rows ``index``, shape ``(B',)``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.rows(index) for name, value in values.items() if hasattr(value, "rows")})


class Tally:
    """A counter of network evaluations, which adds up :attr:`Estimate.calls`.

    Attributes:
        evaluations: Number of times that the model was evaluated, regardless of how many rows each evaluation had.
        more: Number of network evaluations beyond one per evaluation of the model, for each row: 0, or int64 ``(B,)``.
    """

    def __init__(self, x: Tensor) -> None:
        """Start counting for a batch ``x`` of shape ``(B, *event)``."""
        self.evaluations = 0
        self.more: int | Tensor = 0
        self._none = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def add(self, calls: int | Tensor, rows: Tensor | None = None) -> None:
        """Count an evaluation of all rows, or of ``rows``, int64 ``(b,)``, with ``calls`` for all rows or per row."""
        self.evaluations += 1
        if isinstance(calls, int) and calls == 1:
            return
        more = torch.as_tensor(calls - 1, device=self._none.device)
        if rows is None:
            self.more = self.more + more + self._none
        else:
            self.more = (self.more + self._none).index_add_(0, rows, more.expand(len(rows)))

    @property
    def total(self) -> int | Tensor:
        """Network evaluations per row, as one number or int64 ``(B,)``. Valid only if each evaluation had all rows."""
        return self.evaluations + self.more


@dataclass(frozen=True)
class Counted(Wrapped):
    """A denoiser whose calls are counted.

    Args:
        tally: The tally in which calls are counted.
        index: The rows of the tally's batch that are evaluated, int64 ``(b,)``, or ``None`` for all rows.
    """

    tally: Tally
    index: Tensor | None = None

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        self.tally.add(estimate.calls, self.index)
        return estimate

    def rows(self, index: Tensor) -> Self:
        """Return the denoiser for the rows ``index``, shape ``(B',)``, which keep their positions in the tally."""
        places = index if self.index is None else self.index[index]
        return replace(self, model=self.model.rows(index), index=places)
