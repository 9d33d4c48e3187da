"""The interface of denoisers, and the estimates that they return.

A denoiser estimates the data and the noise in a state, such that  alpha x0_hat + sigma eps_hat = x_t.  The score
follows from the two estimates by Tweedie's formula, and the velocity from the time derivative of the path:

    score = -eps_hat / sigma,        velocity = alpha' x0_hat + sigma' eps_hat.                             (1)

References:
    Vincent (2011), A connection between score matching and denoising autoencoders: the score of a Gaussian path.
    Song et al. (2021), arXiv:2011.13456, eq. 13: the velocity of the probability flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.shapes import dims, each, expand, select
from ..sde.base import SDE
from ..sde.check import check_scalar

__all__ = [
    "VARIANCES",
    "Counted",
    "Denoiser",
    "Domain",
    "Estimate",
    "Supported",
    "Tally",
    "Wrapped",
]  # fmt: skip

# The choices for the variance of a reverse step (see Estimate.share).
VARIANCES = ("auto", "posterior", "beta", "learned")


@dataclass(frozen=True)
class Estimate:
    """A model's estimate of the data and the noise at ``(x_t, t)``.

    Attributes:
        x: The batch of noisy states, shape ``(B, *event)``.
        t: The time of all rows, shape ``()``, or of each row, shape ``(B,)``.
        x0, eps: The estimated data and noise, same shape as ``x``. They satisfy ``alpha x0 + sigma eps = x``.
        sde: The path on which the estimate was made.
        frac: The learned variance as a fraction (see :meth:`share`), same shape as ``x``, or ``None`` if the model did
            not learn the variance.
        calls: The number of network evaluations per row that this estimate took, either one number for all rows or
            int64 ``(B,)``.
        plain: For a guided or steered model, the data that the model estimates without guidance, same shape as ``x``.
            ``None`` for any other model, including :class:`~scoresde.Mixed`.
        twist: For a steered model, a function without arguments that returns the log-likelihood of the goal (such as a
            measurement) for each row, ``(B,)``, up to a constant that all states at this time share.
    """

    x: Tensor
    t: Tensor
    x0: Tensor
    eps: Tensor
    sde: SDE
    frac: Tensor | None = None
    calls: int | Tensor = 1
    plain: Tensor | None = None
    twist: Callable[[], Tensor] | None = None

    def share(self, variance: str = "auto") -> Tensor:
        """Return the fraction f in the variance ``S^2 (sigma_s^2/sigma_t^2)^(1 - f)`` of a reverse step from t to s.

        The fraction does not depend on s (see equation (3) of :mod:`scoresde.sde.marginal`).

        Args:
            variance: ``posterior`` (f = 0), ``beta`` (f = 1), ``learned`` (:attr:`frac`), or ``auto``, which means
                ``learned`` if the model learned the variance and ``posterior`` otherwise.

        Returns:
            The fraction, with shape ``()``, or with the same shape as ``x`` if it was learned.

        Raises:
            UsageError: If ``variance`` is ``learned``, but the model did not learn the variance.
        """
        if variance in ("auto", "learned") and self.frac is not None:
            return self.frac
        if variance == "learned":
            raise UsageError(
                "variance is 'learned', but this model did not learn it; train with learn_variance=True, or set "
                "variance to 'posterior' or 'beta'",
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
        t_min, t_max: The times between which the model can be evaluated. No solver leaves this interval.
        nodes: The times that a discrete model supports, in ascending order, shape ``(N,)``, or ``None`` if time is
            continuous.
        has_score: Whether ``-eps_hat/sigma`` is the score of a density. This is false if data and noise were paired in
            training. The flow of such a model is still correct.
        consistent: Whether the estimates at all noise levels belong to a single distribution. This is false for guided
            models. The flow and the reverse SDE of a guided model lead to different distributions, and a variational
            bound is valid only for the reverse SDE. This flag does not change any numbers. If it is false, variational
            bounds are labelled as bounds for a guided model.
        kind: What kind of model this is, for messages: ``model``, ``guided model``, ``steered model`` and so on.
        twisted: Whether every estimate has a ``twist``.
        support: Which numbers of each row are real, bool ``(B, *event)`` or ``(1, *event)``, or ``None`` if all are.
            The other numbers of the states, the noise and the estimates are 0, and do not count as dimensions.
        rounded: Whether the estimates are rounded to fewer digits than the states have, as by a network in bfloat16.
            Finite differences of such estimates are not accurate.
    """

    sde: SDE
    t_min: float
    t_max: float
    nodes: Tensor | None = None
    has_score: bool = True
    consistent: bool = True
    kind: str = "model"
    twisted: bool = False
    support: Tensor | None = None
    rounded: bool = False

    def dims(self, x: Tensor) -> int | Tensor:
        """Return the dimension of each row of ``x: (B, *event)``: one number for all rows, or int64 ``(B,)``."""
        return dims(x) if self.support is None else self.support.flatten(1).sum(1).to(x.device).expand(len(x))

    @classmethod
    def of(cls, sde: SDE) -> Domain:
        """Build the domain of a model that has a score and can be evaluated on the whole path."""
        return cls(sde, sde.t_min, sde.t_max)

    def interval(self, use: str) -> tuple[float, float]:
        """Return the smallest and the largest t for one use of the model.

        The argument ``use`` is ``"train"``, ``"sample"`` or ``"likelihood"``. If the model has nodes, sampling starts
        and ends at nodes.

        Raises:
            UsageError: If ``use`` is unknown, or if it is ``"sample"`` and the model has fewer than two suitable nodes.
        """
        low, high = self.sde.times(use)
        low, high = max(low, self.t_min), min(high, self.t_max)
        if self.nodes is None or use != "sample":
            return low, high
        inside = self.nodes[(self.nodes > low - 1e-9) & (self.nodes < high + 1e-9)].tolist()
        if len(inside) < 2:
            raise UsageError(
                f"sampling requires at least two nodes, but between t = {low:g} and t = {high:g}, the model has only "
                f"{len(inside)}; use a wider interval, or a chain with more nodes"
            )
        return max(low, inside[0]), min(high, inside[-1])


class Denoiser(Protocol):
    """The interface of a model. Solvers, guidance and the likelihood computation rely only on these members."""

    @property
    def domain(self) -> Domain:
        """The times at which the model can be evaluated, and the properties of its estimates."""
        ...

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        """Estimate the data and the noise at ``x``, shape ``(B, *event)``, and ``t``, shape ``()`` or ``(B,)``."""
        ...

    def rows(self, index: Tensor) -> Denoiser:
        """Return the model, with its conditions, restricted to the rows ``index: (B',)`` of a batch."""
        ...


@dataclass(frozen=True)
class Wrapped:
    """Base class of denoisers that wrap another denoiser.

    To write a wrapper, subclass this as a frozen dataclass and implement ``__call__``. The method :meth:`rows` calls
    ``rows`` on every field that has this method (such as another denoiser, a condition or noise), and returns an object
    of the same class with all other fields unchanged.

    Args:
        model: The wrapped denoiser.
    """

    model: Denoiser

    @property
    def domain(self) -> Domain:
        """The domain of the wrapped model."""
        return self.model.domain

    def rows(self, index: Tensor) -> Self:
        """Return the denoiser restricted to the rows ``index: (B',)`` of a batch."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.rows(index) for name, value in values.items() if hasattr(value, "rows")})


@dataclass(frozen=True)
class Supported(Wrapped):
    """A denoiser of padded rows. All padded numbers of its states and estimates are exactly 0.

    Args:
        support: Which numbers of each row are real, bool ``(B, *event)`` or ``(1, *event)``.
    """

    support: Tensor

    def __post_init__(self) -> None:
        check_scalar(self.model.domain.sde, "padded rows (the space 'masked')", "another path", parameter="sde")

    @property
    def domain(self) -> Domain:
        """The domain of the wrapped model, with the support of the rows."""
        return replace(self.model.domain, support=self.support)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        support = self.support.to(x.device)
        x = torch.where(support, x, 0)
        found = self.model(x, t)
        x0, eps, frac, plain = each(
            lambda value: torch.where(support, value, 0), found.x0, found.eps, found.frac, found.plain
        )
        assert x0 is not None and eps is not None
        return replace(found, x=x, x0=x0, eps=eps, frac=frac, plain=plain)

    def rows(self, index: Tensor) -> Self:
        return replace(self, model=self.model.rows(index), support=select(self.support, index.to(self.support.device)))


class Tally:
    """A counter that adds up the network evaluations (:attr:`Estimate.calls`) of each row of a batch.

    Attributes:
        evaluations: The number of model evaluations, whether of all rows or only some.
        more: The number of network evaluations of each row beyond one per model evaluation, either 0 for all rows or
            int64 ``(B,)``.
    """

    def __init__(self, x: Tensor) -> None:
        """Start counting for a batch ``x`` of shape ``(B, *event)``."""
        self.evaluations = 0
        self.more: int | Tensor = 0
        self._none = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def add(self, calls: int | Tensor, rows: Tensor | None = None) -> None:
        """Count one model evaluation.

        Args:
            calls: The number of network evaluations per row, either one number for all rows or one for each evaluated
                row, int64 ``(b,)``.
            rows: The evaluated rows, int64 ``(b,)``, or ``None`` for all rows.
        """
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
        """The number of network evaluations per row, either one number for all rows or int64 ``(B,)``.

        This number is correct only if every model evaluation included all rows.
        """
        return self.evaluations + self.more


@dataclass(frozen=True)
class Counted(Wrapped):
    """A denoiser whose network evaluations are counted.

    Args:
        tally: The counter of network evaluations.
        index: The position of each row in the counter's batch, int64 ``(b,)``, or ``None`` for the whole batch.
    """

    tally: Tally
    index: Tensor | None = None

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        self.tally.add(estimate.calls, self.index)
        return estimate

    def rows(self, index: Tensor) -> Self:
        """Return the denoiser restricted to some of its rows, ``index: (B',)``.

        The evaluations of each row are still counted at the row's original position in the batch.
        """
        places = index if self.index is None else self.index[index]
        return replace(self, model=self.model.rows(index), index=places)
