"""An adaptive solver for the reverse SDE (Jolicoeur-Martineau et al. 2021, arXiv:2105.14080).

For a step from t down to s, of size h = t - s, the solver compares the result x' of an Euler-Maruyama step with the
result x'' of a stochastic Heun step. Both use the drift f and the noise level eta(t) of
:mod:`scoresde.solvers.stochastic` and the same standard normals z:

    x'  = x - h f(x, t) + eta(t) sqrt(h) z
    x'' = x - h (f(x, t) + f(x', s)) / 2 + sqrt(h (eta(t)^2 + eta(s)^2) / 2) z
    err = rms( (x' - x'') / max(atol, rtol max(|x|, |x''|)) ),

where rms is the root mean square over the elements of a sample. If err <= 1, the step is accepted and ends at x''. The
next step size is 0.9 h err^(-0.9) (alg. 1). Each sample has its own step size. The implementation differs from the
paper in five ways. First, each sample has its own Brownian path, and a rejected step is repeated on the same path,
because drawing new noise after a rejection would favour noise that causes small errors. Second, h is truncated to seven
significant bits, so that rounding cannot shift the end of a step. (Even a slight shift would change the noise, because
the Brownian path is rough.) Third, f(x, t) is kept after a rejection, so a retry costs only one evaluation. Fourth, the
tolerance depends on the states before and after the step. Fifth, the step size changes by at most a factor of 5 from
one step to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.limits import EVALUATIONS, Range, ranges
from ..core.noise import Noise
from ..core.shapes import dims, expand, rms_flat, sum_flat, to_device
from ..model.estimate import Counted, Denoiser, Tally
from ..ode.integrate import (
    FAILED_LIMIT,
    FAILED_NONFINITE,
    FAILED_UNDERFLOW,
    OK,
    Bools,
    Floats,
    Ints,
    check_tolerances,
    coarse,
)
from ..sde.base import SDE
from .base import Solution, Solver, Watch
from .level import Level, check_level, level_of
from .stochastic import drift, drift_weights
from .trajectory import Step

__all__ = ["AdaptiveSDE"]

_SMALLEST = 8 / 2**20  # the smallest step size: eight cells of the Brownian path


@dataclass(frozen=True)
class AdaptiveSDE(Solver):
    """Adaptive solver for the reverse SDE, with a separate step size for each sample.

    A step costs two evaluations, and each retry after a rejected step costs one more.

    Args:
        rtol: Relative tolerance for the error of a step.
        atol: Absolute tolerance, or ``None`` to use the value of ``rtol``.
        eta: Scale factor for the noise level.
        level: The noise level: ``auto``, ``g``, ``sigma``, ``er`` or a function (see :mod:`scoresde.solvers.level`).
        first: Size of the first step, as a change in t.
        max_nfe: Maximum number of evaluations per sample.
    """

    limits = ranges(first=Range(0, 1e6, above=True), max_nfe=EVALUATIONS)

    rtol: float = 0.02
    atol: float | None = None
    eta: float = 1.0
    level: Level = "auto"
    first: float = 0.01
    max_nfe: int = 10_000

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerances(self.rtol, self.atol)
        check_level(self.level, self.eta)

    def uses_rates(self, sde: SDE) -> bool:
        return True

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        tally = Tally(x)
        rows = _Rows.start(Counted(model, tally), x, noise, t0, min(self.first, t0 - t1))
        end, counts = x.clone(), np.zeros((4, len(x)), dtype=np.int64)
        nfe, accepted, rejected, status = counts
        while len(rows.t):
            index, s = rows.index, rows.plan(t1)
            nfe[index] += 1 + rows.fresh
            heun, w_s, error = self._attempt(rows, to_device(s, x))
            accept = error <= 1
            accepted[index] += accept
            rejected[index] += ~accept
            rows.go(accept, heun, s, w_s, error)
            if accept.any():
                at = to_device(np.flatnonzero(accept), x)
                done = float((t0 - rows.t.max()) / (t0 - t1))
                watch(Step(to_device(index[accept], x), to_device(rows.t[accept], x), rows.x[at], done=done))

            arrived = accept & (rows.t == t1)
            code = np.where(nfe[index] + 2 > self.max_nfe, FAILED_LIMIT, OK)
            code[~accept & (rows.h < _SMALLEST)] = FAILED_UNDERFLOW
            code[np.isnan(error)] = FAILED_NONFINITE
            code[arrived] = OK
            leave = arrived | (code != OK)
            if leave.any():
                out, at = index[leave], to_device(np.flatnonzero(leave), x)
                status[out], end[to_device(out, x)] = code[leave], rows.x[at]
                rows = rows.keep(np.flatnonzero(~leave))
        found = to_device(counts, x)
        return Solution(end, found[0] + tally.more, found[1], found[2], found[3])

    def _attempt(self, rows: _Rows, s: Tensor) -> tuple[Tensor, Tensor, Floats]:
        """Try a step of each row to its time in ``s``. Return x'', the Brownian path at ``s``, and err.

        If a drift is not finite, err is NaN.
        """
        model, x, t = rows.model, rows.x, to_device(rows.t, rows.x)
        h, w_s = t - s, rows.noise.path(s, tuple(x.shape[1:]))
        here, there = (level_of(model.domain.sde, self.level, self.eta, at) for at in (t, s))
        if rows.fresh.any():
            which = to_device(np.flatnonzero(rows.fresh), x)
            weights = drift_weights(model.domain.sde, t[which], here[which])
            rows.f[which] = drift(model.rows(which)(x[which], t[which]), *weights)
        f, dw = rows.f, (w_s - rows.w).to(x.dtype)
        euler = x - expand(h, x) * f + expand(here, x) * dw
        f_s = drift(model(euler, s), *drift_weights(model.domain.sde, s, there))
        # The score is undefined where sigma = 0, so a step that ends there is a plain Euler-Maruyama step.
        f_s = torch.where(expand(model.domain.sde.coefficients(s)[1] == 0, x), f, f_s)
        heun = x - expand(h / 2, x) * (f + f_s) + expand(((here**2 + there**2) / 2).sqrt(), x) * dw
        atol = self.rtol if self.atol is None else self.atol
        allowed = torch.clamp(self.rtol * torch.maximum(x.abs(), heun.abs()), min=atol)
        error = rms_flat((euler - heun) / allowed)
        if model.domain.support is not None:  # the root mean square over the real elements
            error = error * (dims(x) / torch.as_tensor(model.domain.dims(x)).to(error)).sqrt()
        finite = torch.isfinite(sum_flat(f * 0 + f_s * 0))
        error = torch.where(finite, error.nan_to_num(nan=torch.inf, posinf=torch.inf), torch.nan)
        return heun, w_s, error.cpu().double().numpy()


@dataclass
class _Rows:
    """The rows that are still being solved. Their times and step sizes are float64 arrays on the host.

    Attributes:
        model, noise: The model and the source of random numbers for these rows.
        index: The positions of the rows in the batch.
        x, w, f: The state, the Brownian path, and the drift of each row at its current time.
        t, h: The current time and the next step size of each row.
        fresh: Whether the drift of each row still has to be evaluated.
    """

    model: Denoiser
    noise: Noise
    index: Ints
    x: Tensor
    w: Tensor
    f: Tensor
    t: Floats
    h: Floats
    fresh: Bools

    @classmethod
    def start(cls, model: Denoiser, x: Tensor, noise: Noise, t0: float, h: float) -> _Rows:
        """Create the rows of a batch at time ``t0``, with the step size ``h``."""
        count, w = len(x), noise.path(t0, tuple(x.shape[1:]))
        t, h_, fresh = np.full(count, t0), np.full(count, h), np.ones(count, dtype=bool)
        return cls(model, noise, np.arange(count), x, w, torch.zeros_like(x), t, h_, fresh)

    def plan(self, t1: float) -> Floats:
        """Return the time at which the next step of each row ends."""
        h = coarse(self.h)
        return np.where(self.t - t1 - h < _SMALLEST, t1, self.t - h)

    def go(self, accept: Bools, x: Tensor, s: Floats, w: Tensor, error: Floats) -> None:
        """Advance the accepted rows to their times in ``s``, and choose the next step size of every row."""
        self.h = (self.t - s) * np.clip(0.9 * np.fmax(error, 1e-10) ** -0.9, 0.2, 5.0)
        moved = to_device(accept, x)
        self.x, self.w = torch.where(expand(moved, x), x, self.x), torch.where(expand(moved, w), w, self.w)
        self.t, self.fresh = np.where(accept, s, self.t), accept

    def keep(self, stay: Ints) -> _Rows:
        """Return only the rows at positions ``stay``."""
        at = to_device(stay, self.x)
        x, w, f = self.x[at], self.w[at], self.f[at]
        return _Rows(
            self.model.rows(at), self.noise.rows(at), self.index[stay], x, w, f,
            self.t[stay], self.h[stay], self.fresh[stay],
        )  # fmt: skip
