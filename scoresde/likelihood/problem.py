"""A batch of data and the model's flow in the straight frame  y = x/s,  r = sigma/s,  s = alpha + sigma.

The flow is  dy/dr = eps_hat - x0_hat  (:mod:`scoresde.sde.base`). It is integrated over the variable u of
:mod:`scoresde.likelihood.clock`, with the slope

    f = dy/du = (eps_hat - x0_hat) dr/du.                                                                    (1)

If alpha and sigma differ between coordinates, r is the clock of the path, and coordinate k is multiplied by its speed
dr_k/dr (:meth:`scoresde.SDE.speed`).

The states are flattened to shape ``(P, D)``, and each state comes with the index of the row to which it belongs.

The power. An error e in the state changes the log density by  score . e,  and the score of y is  -eps_hat/r.  Near the
data, errors that are small in units of y are therefore large in nats. For this reason, the tolerance applies not only
to y, but also to the integral of the power

    f . score / D,      score = -eps_hat r/(r^2 + q^2),      q = 0.003,                                      (2)

which is in nats per dimension and needs no extra pass through the network. Near the data, the constant q limits the
effect of rounding errors and of an irregular eps_hat.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.shapes import at, dims, expand, flat, time_dtype
from ..model.estimate import Counted, Denoiser, Tally
from .clock import clock, r_of_clock
from .divergence import SHORTEST, Probes, slope_and_differences, slope_and_traces

__all__ = ["Problem"]

SMALL = 0.003  # q in equation 2


@dataclass(frozen=True)
class Problem:
    """The data, the model and the interval of a likelihood computation.

    Args:
        model: The denoiser. Its conditioning has one row per sample, or one row for all samples.
        x: The states at ``t0`` in model units, shape ``(B, *event)``.
        t0: The time at which the trajectory begins, or ``None`` for the beginning of the model's domain.
        graph: Whether to keep the graph of the whole computation.
    """

    model: Denoiser
    x: Tensor
    t0: float | None = None
    graph: bool = False

    @cached_property
    def counted(self) -> Counted:
        """The model, wrapped to count its calls."""
        return Counted(self.model, Tally(self.x))

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The times at which the trajectory begins and ends."""
        low, high = self.model.domain.interval("likelihood")
        t0 = low if self.t0 is None else self.t0
        if not low <= t0 < high:
            raise UsageError(f"t_min is {t0}; for this model, it must be at least {low:g} and less than {high:g}")
        return t0, high

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor(self.ends, dtype=time_dtype(self.x.device), device=self.x.device)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The values of u at the beginning and the end of the trajectory."""
        r = self.model.domain.sde.ratio(self._ends)
        return clock(float(r[0])), clock(min(float(r[1]), 1.0))  # r in float32 can be rounded up

    @cached_property
    def scales(self) -> Tensor:
        """The scale s at the beginning and the end of the trajectory, shape ``(2,)`` or ``(2, *coords)``."""
        return self.model.domain.sde.scale(self._ends)

    @property
    def dims(self) -> int:
        """Number of elements D of an event."""
        return dims(self.x)

    @cached_property
    def counts(self) -> int | Tensor:
        """Number of dimensions of each row: D, or int64 ``(B,)`` for padded rows."""
        return self.model.domain.dims(self.x)

    def per(self, rows: Tensor) -> int | Tensor:
        """Number of dimensions of the rows ``rows: (P,)``: D, or ``(P, 1)`` for padded rows."""
        return self.counts if isinstance(self.counts, int) else self.counts[rows][:, None]

    @cached_property
    def start(self) -> Tensor:
        """The states y at the beginning of the trajectory, shape ``(B, D)``."""
        return flat(self.x * expand(self.unit / at(self.scales, 0), self.x))

    @property
    def unit(self) -> float | Tensor:
        """The factor that converts ``x`` to states on the path at ``t0``.

        This is ``data_scale`` if the trajectory starts at the beginning of the model's domain, and 1 otherwise.
        """
        return self.model.domain.sde.data_scale if self.ends[0] == self.model.domain.interval("likelihood")[0] else 1.0

    def field(self, y: Tensor, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slope ``(P, D)`` of equation 1 and the power ``(P, 1)`` of equation 2.

        Args:
            y: The states, shape ``(P, D)``.
            u: The values of u, shape ``(P,)``.
            rows: Indices of the rows to which the states belong, shape ``(P,)``.
        """
        r, rate = r_of_clock(u)
        t = self.model.domain.sde.t_of_ratio(r.clamp(max=1)).clamp(*self.ends)
        shaped = y.reshape(-1, *self.x.shape[1:])
        everyone = len(rows) == len(self.x) and bool((rows == torch.arange(len(rows), device=rows.device)).all())
        model, sde = self.counted if everyone else self.counted.rows(rows), self.model.domain.sde
        estimate = model(expand(sde.scale(t), shaped) * shaped, t)
        eps, change = flat(estimate.eps), estimate.eps - estimate.x0
        if sde.coords:
            change = expand(sde.speed(t), shaped) * change
            alpha, sigma = sde.coefficients(t)
            own = flat(expand(sigma / (alpha + sigma), shaped).expand_as(shaped))
            slope = flat(change) * rate.to(y.dtype)[:, None]
            power = eps.detach() * slope.detach() * own / (own.square() + SMALL**2)
            return slope, -power.mean(1, keepdim=True)
        slope = flat(change) * rate.to(y.dtype)[:, None]
        # f . score / D
        inverse = (r / (r.square() + SMALL**2)).to(y.dtype)[:, None]
        work = (eps.detach() * slope.detach()).mean(1, keepdim=True)
        if not isinstance(self.counts, int):
            work = work * (self.dims / self.counts[rows].to(y.dtype))[:, None]
        return slope, -work * inverse

    def with_traces(
        self, y: Tensor, u: Tensor, rows: Tensor, probes: Probes, place: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slope ``(P, D)``, the traces ``(P, K)`` of its Jacobian, and the power ``(P, 1)``.

        For the first three arguments, see :meth:`field`. The argument ``probes`` contains the probes of all rows of the
        batch. The argument ``place`` contains the positions along the trajectory for which the probes are drawn (see
        :meth:`Probes.vectors <scoresde.likelihood.divergence.Probes.vectors>`).
        """
        vectors = probes.vectors(y, rows, place)
        if probes.width and vectors is not None:
            twice = u.repeat(2), rows.repeat(2)
            h = (probes.width * (r_of_clock(u)[0] + SHORTEST)).to(y.dtype)[:, None]
            both, traces = slope_and_differences(lambda state: torch.cat(self.field(state, *twice), 1), y, vectors, h)
            return both[:, :-1], traces, both[:, -1:]
        powers = []

        def slope(state: Tensor) -> Tensor:
            value, power = self.field(state, u, rows)
            powers.append(power)
            return value

        value, traces = slope_and_traces(slope, y, vectors, self.graph)
        return value, traces, powers[0]

    def finish(self, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents ``(B, *event)`` and the log densities ``(B, K)``.

        They are computed from the final states ``y: (B, D)`` and the log-determinants ``log_det: (B, K)``.
        """
        z = y.reshape(self.x.shape) * expand(at(self.scales, 1), self.x)
        # log p(x) = log prior(z) + log-det + D log(s1/s0)
        if self.model.domain.sde.coords:  # the sum over the coordinates
            each = (self.unit * at(self.scales, 1) / at(self.scales, 0)).log()
            growth = each.expand(1, *self.x.shape[1:]).sum().to(y.dtype)
        else:
            counts = self.counts if isinstance(self.counts, int) else self.counts.to(self.scales.dtype)[:, None]
            growth = (counts * (self.unit * self.scales[1] / self.scales[0]).log()).to(y.dtype)
        return z, self.model.domain.sde.prior.log_prob(z, self.counts)[:, None] + log_det + growth
