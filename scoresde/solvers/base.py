"""What a solver is: options in, ``solver(model, x, t0=, t1=, noise=) -> Solution`` out.

A solver is a frozen dataclass of its options and sees a model only as a :class:`~scoresde.estimate.Denoiser`. It
states what it needs (a score, say) and is refused before the first evaluation where the model has none. Rows do not
mix, noise comes with an address, and evaluations are counted where the call happens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..estimate import Denoiser
from ..grids import make_grid
from ..noise import Noise
from ..ode import FAILED_NONFINITE, OK, failures
from ..shapes import sum_flat

__all__ = ["Solution", "Solver", "fixed_solution", "sample"]


@dataclass(frozen=True)
class Solution:
    """A batch of solved rows; every count has shape ``(B,)``.

    Attributes:
        x: Where the rows ended, shape ``(B, *event)``.
        nfe: Evaluations of the model per row.
        accepted, rejected: Steps per row (a fixed-step solver rejects none).
        status: Per row, a key of :data:`scoresde.ode.STATUS`; 0 is success.
    """

    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor

    @property
    def ok(self) -> Tensor:
        """Which rows succeeded, bool ``(B,)``."""
        return self.status == OK

    def failures(self) -> list[str]:
        """One line for each kind of failure: how many rows, which, and why."""
        return failures(self.status)

    @classmethod
    def join(cls, pieces: list[Solution]) -> Solution:
        """Put the pieces of a chunked batch together again."""
        return cls(*(torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(cls)))


class Solver(ABC):
    """Moves rows from ``t0`` to ``t1`` along a model's path.

    Attributes:
        needs_score: Whether the solver uses the score (a coupled model has none).
        stochastic: Whether it draws noise.
    """

    needs_score: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False

    @abstractmethod
    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise) -> Solution:
        """Solve from ``x``, shape ``(B, *event)``, with everything checked."""

    def __call__(
        self,
        model: Denoiser,
        x: Tensor,
        *,
        t0: float | None = None,
        t1: float | None = None,
        noise: Noise | None = None,
    ) -> Solution:
        """Move ``x`` from ``t0`` to ``t1``.

        Args:
            model: Any denoiser.
            x: State at ``t0`` in model units, shape ``(B, *event)``.
            t0, t1: By default from the prior (``model.t_max``) to the SDE's sampling end; deterministic solvers go
                either way.
            noise: The random numbers of the rows (default: samples 0 to B-1 of seed 0).

        Raises:
            UsageError: Before the first evaluation, if the model or the interval does not suit the solver.
        """
        low, high = sampling_interval(model)
        t0, t1 = high if t0 is None else t0, low if t1 is None else t1
        name = type(self).__name__
        for label, t in (("t0", t0), ("t1", t1)):
            if not model.t_min <= t <= model.t_max:
                raise UsageError(f"{name}: {label} = {t} is outside the model's domain [{model.t_min}, {model.t_max}]")
        if self.needs_score and model.coupled:
            raise UsageError(
                f"{name} needs the score, and a model trained on coupled (data, noise) pairs has none; "
                "use a solver of the flow: ode, heun"
            )
        if self.stochastic and t1 > t0:
            raise UsageError(f"{name} goes from noise to data, t0 > t1; got t0 = {t0}, t1 = {t1}")
        if not x.is_floating_point():
            raise UsageError(f"{name}: the state must be floating point, got {x.dtype}")
        noise = Noise.of(len(x), device=x.device) if noise is None else noise
        if noise.indices.device != x.device:
            raise UsageError(f"{name}: the noise is on {noise.indices.device}, the state on {x.device}")
        if len(noise.indices) != len(x):
            raise UsageError(f"{name}: noise for {len(noise.indices)} samples, but the state has {len(x)} rows")
        with torch.no_grad():
            return self.solve(model, x, t0, t1, noise)


def sampling_interval(model: Denoiser) -> tuple[float, float]:
    """Where sampling of this model ends and starts: the SDE's interval within the model's domain."""
    low, high = model.sde.times("sample")
    return max(low, model.t_min), min(high, model.t_max)


def grid_of(name: str, model: Denoiser, steps: int, t0: float, t1: float) -> Tensor:
    """The times of a fixed-step solver, float64 ``(steps + 1,)`` on the CPU; ``auto`` is the SDE's own grid."""
    return make_grid(model.sde.default_grid if name == "auto" else name, model.sde, steps, t0, t1)


def fixed_solution(x: Tensor, nfe: int, steps: int) -> Solution:
    """The solution of a fixed-step solver: the same counts for all rows, and a finite check for each."""

    def each(count: int) -> Tensor:
        return torch.full((len(x),), count, dtype=torch.int64, device=x.device)

    status = torch.where(_finite_rows(x), OK, FAILED_NONFINITE)
    return Solution(x, each(nfe), each(steps), each(0), status)


def _finite_rows(x: Tensor) -> Tensor:
    """Which rows are finite, bool ``(B,)``."""
    return torch.isfinite(sum_flat(x * 0))


def sample(
    model: Denoiser,
    solver: Solver,
    shape: tuple[int, ...],
    noise: Noise,
    *,
    denoise: bool = True,
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] | None = None,
) -> Solution:
    """Draw samples: prior, solver, and a last noise-free step.

    Sample i depends on ``(noise.seed, i)`` alone, whatever the batch.

    Args:
        model: The denoiser; its conditioning has one row per sample, or one for all.
        solver: Any solver.
        shape: The event shape.
        noise: The random numbers of the samples, ``noise.indices`` of shape ``(B,)``.
        denoise: Replace ``x`` at the end by ``x0_hat`` (Tweedie's formula), one more evaluation. Without it the
            samples keep the noise ``sigma`` at the sampling end.
        batch: Rows solved at once.
        dtype: Of the state.
        on_batch: Called with the number of rows after each batch.

    Returns:
        The samples in model units, with their statistics.
    """
    low, high = sampling_interval(model)
    device = noise.indices.device
    pieces = []
    for index in torch.split(torch.arange(len(noise.indices), device=device), batch):
        rows, draws = model.rows(index), noise.rows(index)
        x = model.sde.prior_std * draws.normal(shape, stream="prior", dtype=dtype)
        piece = solver(rows, x, t0=high, t1=low, noise=draws)
        if denoise:
            with torch.no_grad():
                x0 = rows(piece.x, low).x0
            lost = (piece.status == OK) & ~_finite_rows(x0)
            status = torch.where(lost, FAILED_NONFINITE, piece.status)
            piece = Solution(x0, piece.nfe + 1, piece.accepted, piece.rejected, status)
        pieces.append(piece)
        if on_batch is not None:
            on_batch(len(index))
    return Solution.join(pieces)
