"""Time grids, which determine the times that a solver visits.

A grid is an object that is called as ``grid(sde, steps, t0, t1)`` and returns float64 times from ``t0`` to ``t1``. The
times decrease if ``t0`` is larger than ``t1``. The function :func:`make_grid` also accepts the name of a grid, and sets
the first and the last time to exactly ``t0`` and ``t1``. Most grids are uniform in a monotone function of t:

    ``uniform``   t itself
    ``sqrt``      sqrt(t), because the noise level of VP grows like sqrt(t) near the data
    ``logsnr``    the log-SNR 2 log(alpha/sigma) (Lu et al. 2022, arXiv:2206.00927)
    ``karras``    (sigma/alpha)^(1/rho) (Karras et al. 2022, arXiv:2206.00364, eq. 5)

The ``linspace``, ``leading`` and ``trailing`` grids visit some of the nodes i/N of a discrete model with N noise
levels. They use the three spacings that are common in DDPM samplers (Lin et al. 2024, arXiv:2305.08891, tab. 2). A list
of times can also be used as a grid. The grid ``fitted`` is computed from the trajectories of a run
(:mod:`scoresde.study.shortest`) and stored with it.

A model on a chain (:mod:`scoresde.sde.chains`) is trained only at the nodes of the chain. For such a model, the times
of every grid are moved to the nearest nodes. In training, :func:`snap` moves each random time to a node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import STEPS, Checked, Range, check_number, ranges
from ..core.registry import build
from ..core.tables import GRIDS
from .base import SDE, informative
from .chains import DDPM, SMLD
from .continuous import EDMSDE, VDMSDE, VESDE, FlowMatching
from .modified import Shifted, Stretch

__all__ = [
    "Discrete", "FittedGrid", "GivenGrid", "Grid", "Karras", "LogSNR", "SqrtT", "UniformGrid", "as_grid",
    "default_grid", "leaps", "make_grid", "nearest_node", "snap",
]  # fmt: skip


# The default grids of the SDE classes whose default is not sqrt. For VE, the logsnr grid is uniform in t, and it works
# better than the grid of Karras et al. (docs/choosing-a-solver.md). On a chain with N nodes, a uniform grid with N - 1
# steps visits every node.
_SUITED: dict[type[SDE], str] = {
    VESDE: "logsnr", FlowMatching: "uniform", EDMSDE: "uniform", VDMSDE: "uniform", DDPM: "uniform", SMLD: "uniform",
}  # fmt: skip


def default_grid(sde: SDE) -> str:
    """Return the name of an SDE's default grid. A custom SDE can set the class attribute ``default_grid``.

    >>> from scoresde import VPSDE
    >>> default_grid(FlowMatching()), default_grid(Shifted(VPSDE(), 3.0))  # a shifted path keeps the default grid
    ('uniform', 'sqrt')
    """
    if isinstance(sde, Shifted | Stretch):
        return default_grid(sde.path)
    listed = next((_SUITED[kind] for kind in type(sde).__mro__ if kind in _SUITED), "sqrt")
    return str(getattr(sde, "default_grid", listed))


_EMPTY = -20.0  # the log-SNR at which grids begin if no signal is left at the end of the path


class Grid(Checked, ABC):
    """Base class of time grids. To define a grid, subclass this as a frozen dataclass and implement ``__call__``."""

    @abstractmethod
    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        """Return the ``steps + 1`` times of the grid, from ``t0`` to ``t1``, as a float64 tensor."""


def finite_log_snr(sde: SDE, t: Tensor) -> Tensor:
    """Return the log-SNR at ``t``, with extreme values replaced. The result has the same shape as ``t``.

    A log-SNR below -60 is replaced by -20, and a log-SNR above 60 is replaced by 20.
    """
    found = sde.log_snr(t)
    return torch.where(found.abs() > 60, found.clamp(_EMPTY, -_EMPTY), found)


def _ends(sde: SDE, t0: float, t1: float) -> Tensor:
    """Return the two log-SNRs between which a grid from ``t0`` to ``t1`` is built."""
    t = torch.tensor([t0, t1], dtype=torch.float64)
    left = informative(*(c.detach() for c in sde.coefficients(t))).reshape(2, -1).any(1)
    return torch.where(left, finite_log_snr(sde, t), _EMPTY)  # no steps are wasted where no signal is left


def leaps(sde: SDE, times: Tensor) -> tuple[bool, ...]:
    """Return, for each step of a grid, whether almost no signal is left during the whole step.

    The result has one value for each of the n steps between ``times: (n + 1,)``. The value is true for a step that
    begins where no signal is left and ends at a log-SNR below -18. A grid that is uniform in a function of the noise
    level crosses this region in a single step, however many steps the grid has. Euler and Heun steps in t would not
    converge there, so solvers use a different rule for such a step.
    """
    none = ~informative(*sde.coefficients(times[:-1])).reshape(len(times) - 1, -1).any(1)
    return tuple((none & (sde.log_snr(times[1:]) < _EMPTY + 2)).tolist())


def _between(ends: Tensor, steps: int) -> Tensor:
    return torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class UniformGrid(Grid):
    """A grid that is uniform in t."""

    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        return torch.linspace(t0, t1, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class SqrtT(Grid):
    """A grid that is uniform in sqrt(t)."""

    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        return torch.linspace(t0**0.5, t1**0.5, steps + 1, dtype=torch.float64).square()


@dataclass(frozen=True)
class LogSNR(Grid):
    """A grid that is uniform in the log-SNR."""

    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        return sde.t_of_log_snr(_between(_ends(sde, t0, t1), steps))


@dataclass(frozen=True)
class Karras(Grid):
    """A grid that is uniform in (sigma/alpha)^(1/rho).

    Args:
        rho: The exponent. A value of 7 places most times near the data, and 1 makes the grid uniform in sigma/alpha.
    """

    limits = ranges(rho=Range(0, 1e6, above=True))

    rho: float = 7.0

    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        roots = torch.exp(-_ends(sde, t0, t1) / (2 * self.rho))
        return sde.t_of_log_snr(-2 * self.rho * torch.log(_between(roots, steps)))


@dataclass(frozen=True)
class Discrete(Grid):
    """A grid on the nodes i/N of a discrete model, for i = 1, ..., N.

    Let n be the index of the last node and k the number of steps. Then ``linspace`` rounds k + 1 equally spaced
    positions to nodes, ``trailing`` goes down from node n in strides of n/k, and ``leading`` goes up from node 1 in
    strides of n//k. As published, ``leading`` never visits the last node, although sampling starts there. Here,
    the first step starts at the last node instead.

    Args:
        spacing: ``linspace``, ``leading`` or ``trailing``.
        nodes: N, the number of noise levels. On a chain, this value is ignored, and N is the chain's number of levels.
    """

    limits = ranges(nodes=Range(2, 10**6))

    spacing: str = "trailing"
    nodes: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spacing not in ("linspace", "leading", "trailing"):
            raise UsageError(f"unknown spacing {self.spacing!r}; choose from: linspace, leading, trailing")

    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        count = self.nodes if sde.nodes is None else len(sde.nodes)
        low, high = max(1, round(min(t0, t1) * count)), round(max(t0, t1) * count)
        if high - low < steps:
            raise UsageError(f"{steps} steps do not fit between nodes {low} and {high} of {count}; use fewer steps")
        k = torch.arange(steps + 1, dtype=torch.float64)
        if self.spacing == "linspace":
            index = high - (high - low) * k / steps
        elif self.spacing == "trailing":
            index = high - high * k / steps
        else:
            index = 1 + (steps - k) * (high // steps)
        times = index.round().clamp(low, high) / count
        return times if t0 > t1 else times.flip(0)


def leading(nodes: int = 1000) -> Discrete:
    """Build a :class:`Discrete` grid with ``leading`` spacing."""
    return Discrete("leading", nodes)


def trailing(nodes: int = 1000) -> Discrete:
    """Build a :class:`Discrete` grid with ``trailing`` spacing."""
    return Discrete("trailing", nodes)


def linspace(nodes: int = 1000) -> Discrete:
    """Build a :class:`Discrete` grid with ``linspace`` spacing."""
    return Discrete("linspace", nodes)


@dataclass(frozen=True)
class GivenGrid(Grid):
    """A grid that consists of given times. The number of steps is one less than the number of times.

    Args:
        times: The times, from ``t0`` to ``t1``. They must be strictly monotone.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.times) < 2:
            raise UsageError(f"a time grid must have at least two times, for example 1,0.001; got {self.times}")

    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        times = torch.tensor(self.times, dtype=torch.float64)
        if abs(times[0] - t0) > 1e-9 or abs(times[-1] - t1) > 1e-9:
            raise UsageError(
                f"the given time grid goes from t = {self.times[0]:g} to {self.times[-1]:g}, but the solver goes "
                f"from t = {t0:g} to {t1:g}; change the ends of the grid, or t0 and t1, so that they agree"
            )
        return times


@dataclass(frozen=True)
class FittedGrid(Grid):
    """The grid with the smallest local errors, which belongs to a run and was fitted to it with ``tune``.

    A run replaces this grid by its times (:meth:`scoresde.Run.fitted`) before a solver uses it.
    """

    def __call__(self, sde: SDE, steps: int, t0: float, t1: float) -> Tensor:
        raise UsageError(
            "the grid 'fitted' belongs to a run, but this solver is not used with a run; fit the grid to a run with "
            "tune, and use it with that run, or choose another grid",
            parameter="grid",
            value="auto",
        )


def as_grid(grid: str | Grid | Sequence[float]) -> Grid | None:
    """Convert a name, a string of times (``"1,0.5,0.001"``), a sequence of times or a grid object to a grid.

    The result is ``None`` for the name ``auto``.

    Raises:
        UsageError: If the argument is not a known name, a valid list of times or a grid object. If a name is unknown,
            the message lists the known names.
    """
    if isinstance(grid, str) and grid == "auto":
        return None
    if isinstance(grid, str) and "," in grid:
        try:
            grid = [float(part) for part in grid.split(",")]
        except ValueError:
            raise UsageError(
                f"the time grid {grid!r} is not a list of numbers; give a list such as 1,0.5,0.1,0.001"
            ) from None
    if isinstance(grid, Sequence) and not isinstance(grid, str):
        return GivenGrid(tuple(float(t) for t in grid))
    built = build(grid, GRIDS, "time grid", typed=True)
    if not callable(built):
        raise UsageError(f"a time grid must be a name, a list of times or a Grid; got {built!r}")
    return built  # type: ignore[no-any-return]


def make_grid(
    grid: str | Grid | Sequence[float], sde: SDE, steps: int, t0: float, t1: float, nodes: Tensor | None = None
) -> Tensor:
    """Return the strictly monotone times of a grid from ``t0`` to ``t1``, float64 ``(steps + 1,)``.

    Args:
        grid: The name of a grid, a grid object, the times themselves, or ``auto`` for the SDE's default grid.
        sde: The path.
        steps: The number of steps. If the times themselves are given, this number is ignored.
        t0, t1: The first and the last time.
        nodes: The times that a discrete model supports, in ascending order, shape ``(N,)``. If they are given, each
            time of the grid is moved to the nearest node.

    Raises:
        UsageError: If the grid is unknown, the number of steps is invalid, the times are not strictly monotone, ``t0``
            or ``t1`` is not a node, or two times would be moved to the same node.
    """
    check_number("steps", steps, STEPS, "int")
    made = as_grid(grid) or as_grid(default_grid(sde))
    assert made is not None
    times = made(sde, steps, t0, t1).cpu().clone()
    times[0], times[-1] = t0, t1
    wrong = (~((times[1:] - times[:-1]) * (t1 - t0) > 0)).nonzero().flatten()  # includes NaN
    if len(wrong):
        i = int(wrong[0])
        raise UsageError(
            f"the time grid {made} with steps={len(times) - 1} from t = {t0:g} to {t1:g} must be strictly monotone, "
            f"but time {i} is {float(times[i]):.6g} and time {i + 1} is {float(times[i + 1]):.6g}; "
            "use fewer steps or another grid"
        )
    return times if nodes is None else _on_nodes(times, nodes, made, sde)


def nearest_node(t: Tensor, nodes: Tensor) -> Tensor:
    """Return, for each time in ``t``, the index of the nearest node. The result is int64 and has the shape of ``t``.

    The nodes in ``nodes: (N,)`` must be in ascending order.
    """
    nodes = nodes.to(t)
    return torch.bucketize(t.contiguous(), (nodes[1:] + nodes[:-1]) / 2)


def snap(t: Tensor, nodes: Tensor | None) -> Tensor:
    """Move each of the times ``t`` to a node. The result has the same shape as ``t``.

    The interval ``[nodes[0], nodes[-1]]`` is divided into N cells of equal length, one for each of the N nodes, and all
    times in a cell are moved to the node of the cell. If the times are uniformly distributed over the interval, each
    node therefore has probability 1/N (Ho et al. 2020, arXiv:2006.11239, alg. 1). If ``nodes`` is ``None``, the times
    are returned unchanged.

    >>> snap(torch.tensor([0.25, 0.43, 0.44, 1.0]), torch.tensor([0.25, 0.5, 0.75, 1.0]))
    tensor([0.2500, 0.2500, 0.5000, 1.0000])
    """
    if nodes is None:
        return t
    nodes = nodes.to(t)
    cell = (t - nodes[0]) / (nodes[-1] - nodes[0]) * len(nodes)
    return nodes[cell.floor().long().clamp(0, len(nodes) - 1)]


def _on_nodes(times: Tensor, nodes: Tensor, grid: Grid, sde: SDE) -> Tensor:
    """Move the times of a grid to the nearest nodes. The ends must be nodes, and no two times may share a node."""
    index = nearest_node(times, nodes)
    moved, steps = nodes[index], len(times) - 1
    for end in (0, -1):
        if abs(float(times[end] - moved[end])) > 1e-9:
            raise UsageError(
                f"t = {float(times[end]):.6g} is not a node of this discrete model; use the nearest node, "
                f"t = {float(moved[end]):.9g} (node {int(index[end]) + 1} of {len(nodes)})"
            )
    if bool((index.diff() == 0).any()):
        ends = float(times[0]), float(times[-1])
        fit = (k for k in range(steps - 1, 0, -1) if bool((nearest_node(grid(sde, k, *ends), nodes).diff() != 0).all()))
        i = int((index.diff() == 0).nonzero()[0])
        most = 0 if isinstance(grid, GivenGrid) else next(fit, 0)
        raise UsageError(
            f"the time grid {grid} with {steps} steps places both t = {float(times[i]):.6g} and "
            f"t = {float(times[i + 1]):.6g} on node {int(index[i]) + 1} of {len(nodes)}; "
            + (f"use at most {most} step{'s' * (most > 1)} with this grid" if most else "give times farther apart")
            + f" (between these ends, a uniform grid can have up to {abs(int(index[0] - index[-1]))} steps)"
        )
    return moved
