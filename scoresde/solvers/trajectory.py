"""Recorded trajectories: the state of every row after each of its steps.

In an adaptive solver, the steps of different rows end at different times. Between the recorded states, a row is
interpolated in the straight frame (:mod:`scoresde.sde.base`): y = x/(alpha + sigma) is interpolated as a function of
r = sigma/(alpha + sigma), because trajectories are only slightly curved in these variables. The interpolation is cubic
Hermite if the solver provides the slopes dy/dr, and linear otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import FRAMES, checked
from ..core.shapes import expand
from ..ode.dense import hermite
from ..sde.base import SDE
from ..sde.grids import Grid, make_grid

__all__ = ["Step", "Trajectory"]


@dataclass(frozen=True)
class Step:
    """What a watcher receives after a step.

    Attributes:
        index: Indices of the rows that moved, int64 ``(b,)``.
        t: The times of these rows after the step, shape ``()`` or ``(b,)``.
        x: The states of these rows after the step, shape ``(b, *event)``.
        slope: The derivative ``dy/dr`` at these states, with the same shape as ``x``, or ``None`` if the solver does
            not provide it.
        done: The fraction of the time interval that the slowest row has covered, from 0 to 1.
    """

    index: Tensor
    t: Tensor
    x: Tensor
    slope: Tensor | None = None
    done: float = 0.0


class Trajectory:
    """The recorded steps of a batch, on the CPU. ``len(trajectory)`` is the number of rows.

    >>> from scoresde import GaussianMixture, ProbabilityFlow, VPSDE
    >>> model = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))
    >>> solved = ProbabilityFlow(rtol=1e-3, atol=1e-3)(model, torch.randn(3, 2), record=True)
    >>> solved.trajectory.frames(10)[1].shape
    torch.Size([10, 3, 2])
    """

    def __init__(self, sde: SDE, rows: list[tuple[list[float], list[Tensor], list[Tensor | None]]]) -> None:
        self.sde = sde
        self._rows = rows
        self._final: Tensor | None = None

    @classmethod
    def start(cls, sde: SDE, x: Tensor, t0: float) -> Trajectory:
        """Create a trajectory that starts at time ``t0`` with the states ``x: (B, *event)``."""
        return cls(sde, [([t0], [row], [None]) for row in x.detach().cpu()])

    @classmethod
    def join(cls, pieces: Sequence[Trajectory]) -> Trajectory:
        """Concatenate the trajectories of several batches into one trajectory."""
        joined = cls(pieces[0].sde, [row for piece in pieces for row in piece._rows])
        if all(p._final is not None for p in pieces):
            joined._final = torch.cat([p._final for p in pieces if p._final is not None])
        return joined

    def pack(self) -> dict[str, Tensor]:
        """Return the trajectory as named tensors, from which :meth:`unpack` can rebuild it."""
        times, states, slopes = ([value for row in self._rows for value in row[k]] for k in range(3))
        found = {
            "counts": torch.tensor([len(row[0]) for row in self._rows]),
            "t": torch.tensor(times, dtype=torch.float64),
            "x": torch.stack(states),  # type: ignore[arg-type]
            "sloped": torch.tensor([slope is not None for slope in slopes]),
        }
        known = [slope for slope in slopes if isinstance(slope, Tensor)]
        found |= {"slope": torch.stack(known)} if known else {}
        return found if self._final is None else {**found, "final": self._final}

    @classmethod
    def unpack(cls, sde: SDE, found: Mapping[str, Tensor]) -> Trajectory:
        """Rebuild a trajectory from the tensors returned by :meth:`pack`."""
        known = iter(found.get("slope", ()))
        slopes = [next(known) if sloped else None for sloped in found["sloped"].tolist()]
        times, states = found["t"].tolist(), list(found["x"])
        ends = [0, *found["counts"].cumsum(0).tolist()]
        made = cls(sde, [(times[a:b], states[a:b], slopes[a:b]) for a, b in itertools.pairwise(ends)])
        made._final = found.get("final")
        return made

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, step: Step) -> None:
        """Append a step to the recorded steps of each row that moved."""
        times = step.t.expand(len(step.index)).tolist()
        states = step.x.detach().cpu()
        slopes = [None] * len(times) if step.slope is None else list(step.slope.detach().cpu())
        for i, t, x, slope in zip(step.index.tolist(), times, states, slopes, strict=True):
            for kept, new in zip(self._rows[i], (t, x, slope), strict=True):
                kept.append(new)

    def finish(self, x0: Tensor) -> None:
        """Store ``x0: (B, *event)``, the result of the final noise-free step."""
        self._final = x0.detach().cpu()

    def times(self, row: int) -> Tensor:
        """Return the start time of a row, followed by the time after each of its n steps, as float64 ``(n + 1,)``."""
        return torch.tensor(self._rows[row][0], dtype=torch.float64)

    def states(self, row: int) -> Tensor:
        """Return the initial state of a row, followed by its state after each of its n steps.

        The result has shape ``(n + 1, *event)``.
        """
        return torch.stack(self._rows[row][1])

    def step_sizes(self, row: int) -> Tensor:
        """Return the absolute change in t over each of a row's n steps, as a float64 tensor of shape ``(n,)``."""
        return torch.diff(self.times(row)).abs()

    def _ends(self) -> tuple[float, float]:
        """Return the start time of the rows and the furthest time that any row reached."""
        start, ends = self._rows[0][0][0], [row[0][-1] for row in self._rows]
        return start, min(ends) if min(ends) < start else max(ends)

    def at(self, times: Tensor | Sequence[float]) -> Tensor:
        """Return the states of all rows at the T given times, as a tensor of shape ``(T, B, *event)``.

        At times that a failed row did not reach, its last recorded state is held constant in the straight frame.

        Raises:
            UsageError: If a time is outside the interval that the trajectory covers.
        """
        asked = torch.as_tensor(times, dtype=torch.float64)
        start, end = self._ends()
        low, high = min(start, end), max(start, end)
        if bool(((asked < low - 1e-9) | (asked > high + 1e-9)).any()):
            raise UsageError(
                f"the trajectory runs from t = {start:g} to {end:g}, so all times must lie in this interval, got "
                f"{asked.tolist()}"
            )
        return torch.stack([self._row_at(row, asked) for row in range(len(self))], dim=1)

    def _row_at(self, row: int, asked: Tensor) -> Tensor:
        """Return the states of one row at the times ``asked``, interpolated in the straight frame."""
        t, x, slopes = self.times(row), self.states(row), self._rows[row][2]
        if len(t) == 1:
            return x.expand(len(asked), *x.shape[1:])
        falling = bool(t[-1] < t[0])
        # Each time lies in the interval [t_i, t_(i + 1)].
        order = -t if falling else t
        i = (torch.searchsorted(order, (-asked if falling else asked).clamp(order[0], order[-1])) - 1).clamp(
            0, len(t) - 2
        )
        r, y = self.sde.ratio(t), x / expand(self.sde.scale(t), x)
        at = self.sde.ratio(asked.clamp(float(t.min()), float(t.max())))
        u = expand((at - r[i]) / (r[i + 1] - r[i]), y[i])
        blend = (1 - u) * y[i] + u * y[i + 1]
        known = torch.tensor([slope is not None for slope in slopes])
        if bool(known.any()):
            zero = torch.zeros_like(x[0])
            k = torch.stack([zero if slope is None else slope for slope in slopes])
            value, lean = (
                [expand(w[:, j], blend) for j in (0, 1)] for w in hermite(at, torch.stack([r[i], r[i + 1]], 1))
            )
            curve = value[0] * y[i] + value[1] * y[i + 1] + lean[0] * k[i] + lean[1] * k[i + 1]
            blend = torch.where(expand(known[i] & known[i + 1], blend), curve, blend)
        return blend * expand(self.sde.scale(asked), blend)

    @checked(count=FRAMES)
    def frames(self, count: int = 40, grid: str | Grid = "auto") -> tuple[Tensor, Tensor]:
        """Return the states of all rows at ``count`` common times from start to end, for example for an animation.

        Args:
            count: Number of times, at least 2.
            grid: The spacing of the times (see :mod:`scoresde.sde.grids`), or ``auto`` for the SDE's default grid.

        Returns:
            The times, shape ``(count,)``, and the states, shape ``(count, B, *event)``. If sampling ended with a
            noise-free step, the last states are the result of this step.
        """
        if count < 2:
            raise UsageError(f"count must be at least 2, got {count}")
        start, end = self._ends()
        if start == end:
            raise UsageError("no row of this trajectory has moved, so there are no frames to show")
        times = make_grid(grid, self.sde, count - 1, start, end)
        shown = self.at(times)
        if self._final is not None:
            shown[-1] = self._final
        return times, shown
