"""The reverse SDE with a step size of its own for each sample (Jolicoeur-Martineau et al. 2021, arXiv:2105.14080).

A step of size h = t - s compares Euler-Maruyama with stochastic Heun on the same noise (drift f and eta(t) as in
:mod:`scoresde.solvers.stochastic`),

    x'  = x - h f(x, t) + eta(t) sqrt(h) z
    x'' = x - h (f(x, t) + f(x', s)) / 2 + sqrt(h (eta(t)^2 + eta(s)^2) / 2) z
    err = rms( (x' - x'') / max(atol, rtol max(|x|, |x''|)) ),

accepts x'' where err <= 1, and goes on with  h <- 0.9 h err^(-0.9)  (alg. 1). Four things differ from the publication.
The noise is a Brownian path for each sample, so that a rejected step is done again with the same path: fresh noise
after a rejection would favour quiet draws. Because the path is rough, h is cut to seven binary digits, so that rounding
does not move the end of a step. f(x, t) is kept after a rejection, which then costs one evaluation. And the
tolerance goes by the states before and after the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UsageError
from ..estimate import Denoiser
from ..noise import Noise
from ..ode import FAILED_LIMIT, FAILED_NONFINITE, FAILED_UNDERFLOW, OK, coarse
from ..shapes import expand, rms_flat, sum_flat, time_dtype
from .base import Solution, Solver, Watch
from .level import Level, check_level, level_of
from .stochastic import drift, drift_weights
from .trajectory import Step

__all__ = ["AdaptiveSDE"]

_SMALLEST = 8 / 2**20  # what the Brownian path resolves


@dataclass(frozen=True)
class AdaptiveSDE(Solver):
    """The reverse SDE to a tolerance, with steps of its own for each sample: two evaluations a step, one if rejected.

    Args:
        rtol, atol: Tolerances on the error of a step.
        eta: Factor on the noise level.
        level: The noise level (see :mod:`scoresde.solvers.level`).
        first: Size of the first step.
        max_nfe: Largest number of evaluations of a sample.
    """

    rtol: float = 0.02
    atol: float = 0.02
    eta: float = 1.0
    level: Level = "auto"
    first: float = 0.01
    max_nfe: int = 10_000

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        if not self.rtol > 0 or not self.atol >= 0 or not self.first > 0:
            raise UsageError(
                f"rtol is {self.rtol}, atol {self.atol} and first {self.first}; take rtol > 0, atol >= 0, first > 0"
            )
        check_level(self.level, self.eta)

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        clock, shape, count = time_dtype(x.device), tuple(x.shape[1:]), len(x)
        index = torch.arange(count, device=x.device)
        nfe, accepted, rejected, status = index.new_zeros(4, count).unbind()
        result = Solution(x.clone(), nfe, accepted, rejected, status)
        t = torch.full((count,), t0, dtype=clock, device=x.device)
        h = torch.full_like(t, min(self.first, t0 - t1))
        rows, draws, w = model, noise, noise.path(t, shape)
        f, fresh = torch.zeros_like(x), torch.ones_like(index, dtype=torch.bool)

        while len(index):
            h = torch.from_numpy(coarse(h.numpy()))
            last = t - t1 - h < _SMALLEST
            s = torch.where(last, torch.full_like(t, t1), t - h)
            h = t - s
            here, there = (level_of(model.sde, self.level, self.eta, at) for at in (t, s))
            if bool(fresh.any()):
                which = fresh.nonzero().flatten()
                weights = drift_weights(model.sde, t[which], here[which])
                f[which] = drift(rows.rows(which)(x[which], t[which]), *weights)
                result.nfe[index[which]] += 1
            w_s = draws.path(s, shape)
            dw = (w_s - w).to(x.dtype)
            euler = x - expand(h, x) * f + expand(here, x) * dw
            f_s = drift(rows(euler, s), *drift_weights(model.sde, s, there))
            # Where sigma = 0 there is no score, and the step is Euler-Maruyama's.
            f_s = torch.where(expand(model.sde.coefficients(s)[1] == 0, x).bool(), f, f_s)
            heun = x - expand(h / 2, x) * (f + f_s) + expand(((here**2 + there**2) / 2).sqrt(), x) * dw
            result.nfe[index] += 1

            allowed = torch.clamp(self.rtol * torch.maximum(x.abs(), heun.abs()), min=self.atol)
            error = rms_flat((euler - heun) / allowed).to(clock)
            error = torch.where(torch.isfinite(error), error, torch.full_like(error, torch.inf))
            accept = error <= 1
            result.accepted[index] += accept
            result.rejected[index] += ~accept
            x = torch.where(expand(accept, x).bool(), heun, x)
            t, w, fresh = torch.where(accept, s, t), torch.where(expand(accept, w).bool(), w_s, w), accept
            h = h * (0.9 * error.clamp(min=1e-10) ** -0.9).clamp(0.2, 5.0)
            if bool(accept.any()):
                done = float(((t0 - t) / (t0 - t1)).min())
                watch(Step(index[accept], t[accept], x[accept], done=done))

            status = torch.zeros_like(index)
            status[result.nfe[index] + 2 > self.max_nfe] = FAILED_LIMIT
            status[~accept & (h < _SMALLEST)] = FAILED_UNDERFLOW
            status[~torch.isfinite(sum_flat(f * 0 + f_s * 0))] = FAILED_NONFINITE
            arrived = accept & last
            status[arrived & (status != FAILED_NONFINITE)] = OK
            leave = arrived | (status != OK)
            h = h.clamp(min=_SMALLEST)
            if bool(leave.any()):
                result.x[index[leave]] = x[leave]
                result.status[index[leave]] = status[leave]
                stay = (~leave).nonzero().flatten()
                index, x, t, h, w, f, fresh = (v[stay] for v in (index, x, t, h, w, f, fresh))
                rows, draws = model.rows(index), replace(noise, indices=noise.indices[index])
        return result
