"""What is known at ``(x_t, t)``, and the contract that solvers rely on.

A denoiser estimates data and noise, which satisfy  alpha x0_hat + sigma eps_hat = x_t.  Score and velocity follow from
the two (Tweedie's formula and the path's derivative):

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

# What a step down may have for a variance (see Estimate.share).
VARIANCES = ("auto", "posterior", "beta", "learned")


@dataclass(frozen=True)
class Estimate:
    """All that is known at ``(x_t, t)``.

    Attributes:
        x: The noisy batch, shape ``(B, *event)``.
        t: The time, shape ``()`` or ``(B,)``.
        x0, eps: The estimated data and noise, shape of ``x``; ``alpha x0 + sigma eps = x``.
        sde: The path they belong to.
        frac: The learned variance as a fraction (see :meth:`share`), shape of ``x``; ``None`` if the model has none.
        calls: How many networks were asked for this answer, for each row: one number, or int64 ``(B,)``.
    """

    x: Tensor
    t: Tensor
    x0: Tensor
    eps: Tensor
    sde: SDE
    frac: Tensor | None = None
    calls: int | Tensor = 1

    def share(self, variance: str = "auto") -> Tensor:
        """The fraction f in the variance ``S^2 (sigma_s^2/sigma_t^2)^(1 - f)`` of a step down to any s.

        See :mod:`scoresde.sde.marginal`, (3).

        Args:
            variance: ``posterior`` (f = 0), ``beta`` (f = 1), ``learned`` (:attr:`frac`), or ``auto``: learned if the
                model learned it, else the posterior's.

        Returns:
            Shape ``()``, or that of ``x`` if it was learned.

        Raises:
            UsageError: If it is ``learned`` and the model did not learn it.
        """
        if variance in ("auto", "learned") and self.frac is not None:
            return self.frac
        if variance == "learned":
            raise UsageError(
                "the variance is 'learned', but this model did not learn it; train with learn_variance=True, or take "
                "the variance posterior or beta",
                parameter="variance",
                value="posterior",
            )
        return self.x.new_ones(()) if variance == "beta" else self.x.new_zeros(())

    @property
    def score(self) -> Tensor:
        """``grad log p_t(x)``, shape of ``x``."""
        return -self.eps / expand(self.sde.coefficients(self.t)[1], self.x)

    @property
    def velocity(self) -> Tensor:
        """``dx/dt`` of the probability flow, shape of ``x``."""
        d_alpha, d_sigma = self.sde.rates(self.t)
        return expand(d_alpha, self.x) * self.x0 + expand(d_sigma, self.x) * self.eps


@dataclass(frozen=True, eq=False)
class Domain:
    """Where a model may be asked, and what its answers are.

    Attributes:
        sde: The path.
        t_min, t_max: The times at which it may be asked; no solver asks elsewhere.
        nodes: The times that a discrete model knows, rising, shape ``(N,)``, or ``None``.
        has_score: Whether ``-eps_hat/sigma`` is the score of a density. Not where data and noise were paired in
            training (the flow is still right).
        consistent: Whether the estimates at all levels belong to one law. Not for a guided model: its flow and its
            reverse SDE have different laws, and a variational bound is one of the reverse SDE.
    """

    sde: SDE
    t_min: float
    t_max: float
    nodes: Tensor | None = None
    has_score: bool = True
    consistent: bool = True

    @classmethod
    def of(cls, sde: SDE) -> Domain:
        """The whole of a path, with a score everywhere."""
        return cls(sde, sde.t_min, sde.t_max)

    def interval(self, use: str) -> tuple[float, float]:
        """The SDE's interval of t for ``use``, within the domain: ``"train"``, ``"sample"`` or ``"likelihood"``.

        Sampling goes from node to node.
        """
        low, high = self.sde.times(use)
        low, high = max(low, self.t_min), min(high, self.t_max)
        if self.nodes is None or use != "sample":
            return low, high
        inside = self.nodes[(self.nodes > low - 1e-9) & (self.nodes < high + 1e-9)].tolist()
        if len(inside) < 2:
            raise UsageError(
                f"the model has {len(inside)} of its nodes between t = {low:g} and {high:g}; sampling needs two of them"
            )
        return max(low, inside[0]), min(high, inside[-1])


class Denoiser(Protocol):
    """The only thing that solvers, the likelihood and guidance know of a model."""

    @property
    def domain(self) -> Domain:
        """Where the model may be asked, and what its answers are."""
        ...

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        """Estimate data and noise: ``x`` has shape ``(B, *event)``, ``t`` shape ``()`` or ``(B,)``."""
        ...

    def rows(self, index: Tensor) -> Denoiser:
        """The same model for the rows ``index``, shape ``(B',)``, of a batch: conditioning keeps its row."""
        ...


@dataclass(frozen=True)
class Wrapped:
    """A denoiser made of another: derive a frozen dataclass from it and write ``__call__``.

    Every field that has rows (another denoiser, a condition, noise) is cut to them by :meth:`rows`, so that a subclass
    stays what it is, with all of its fields.

    Args:
        model: The denoiser that is asked.
    """

    model: Denoiser

    @property
    def domain(self) -> Domain:
        """That of the model."""
        return self.model.domain

    def rows(self, index: Tensor) -> Self:
        """The same for the rows ``index``, shape ``(B',)``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.rows(index) for name, value in values.items() if hasattr(value, "rows")})


class Tally:
    """How many networks were asked, by :attr:`Estimate.calls`.

    Attributes:
        evaluations: How often the model was asked, whatever the rows.
        more: What an evaluation cost beyond one network, added up for each row: 0, or int64 ``(B,)``.
    """

    def __init__(self, x: Tensor) -> None:
        """For a batch ``x`` of shape ``(B, *event)``."""
        self.evaluations = 0
        self.more: int | Tensor = 0
        self._none = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def add(self, calls: int | Tensor, rows: Tensor | None = None) -> None:
        """Count an evaluation of all rows, or of ``rows``, int64 ``(b,)``; ``calls`` is one number or one for each."""
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
        """Networks asked in evaluations of all rows, one number or int64 ``(B,)``."""
        return self.evaluations + self.more


@dataclass(frozen=True)
class Counted(Wrapped):
    """A denoiser whose calls are counted.

    Args:
        tally: Where.
        index: Which rows of the tally's batch are asked, int64 ``(b,)``; ``None`` for all.
    """

    tally: Tally
    index: Tensor | None = None

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        self.tally.add(estimate.calls, self.index)
        return estimate

    def rows(self, index: Tensor) -> Self:
        """The same for the rows ``index``, shape ``(B',)``, which count where they did."""
        places = index if self.index is None else self.index[index]
        return replace(self, model=self.model.rows(index), index=places)
