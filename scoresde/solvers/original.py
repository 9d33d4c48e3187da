r"""The samplers of Song et al. (2021), arXiv:2011.13456, discretised as in the original code, to reproduce that paper.

Our other solvers use A, S and sigma of the continuous path, on any grid. The original code uses tables of N = ``steps``
levels, which it reads at i = floor(t (N - 1)/T) (for VE, a_i = 1 and sigma_{-1} = 0):

    VP   beta_i = linspace(beta_min/N, beta_max/N, N),   a_i = 1 - beta_i,   sigma_i^2 = 1 - a_0 ... a_i
    VE   sigma_i = sigma_min (sigma_max/sigma_min)^(i/(N - 1)),   beta_i = sigma_i^2 - sigma_{i-1}^2.             (1)

One step up is  x + f x + G z  with  f = sqrt(a_i) - 1  and  G^2 = beta_i  (eq. 8 and 10). Sub-VP has no tables, and its
step up is an Euler step with  f = f(t)/N  and  G^2 = g(t)^2/N.  All predictors have the form

    x <- x_mean + n z,      x_mean = k x + p score,                                                               (2)

    =====================  ===========  ===============  ==================================  =======================
    predictor              k            p                n                                   for
    =====================  ===========  ===============  ==================================  =======================
    ``euler-maruyama``     1 - f(t)/N   g(t)^2/N         g(t)/sqrt(N)                        eq. 6, all three
    ``reverse-diffusion``  1 - f        G^2              G                                   eq. 46, all three
    ``ancestral``          1/sqrt(a_i)  beta_i k         G, VE: G sigma_{i-1}/sigma_i        eq. 4 and 47, VP and VE
    =====================  ===========  ===============  ==================================  =======================

The probability flow has the same form with p/2 and n = 0. The correctors (alg. 4 and 5, only for VP and VE) are
x <- x + e score + sqrt(2 e) z  with

    ``langevin``   e = 2 a_i (snr mean|z| / mean|score|)^2, with means over the batch;
    ``ald``        e = 2 a_i (snr sigma(t))^2.

The times are linspace(T, eps, N). At each time, the corrector steps come first, then the predictor step. There are
therefore N updates rather than N - 1. The last update starts at eps, and the x_mean of this update is the sample. A
step always has length 1/N, although the times are (T - eps)/(N - 1) apart. For T = 1, these two lengths are equal only
if eps = 1/N, as with the published N = 1000 and eps = 1e-3. docs/mathematics.md describes how the difference affects
the moments.

The scores are those of the model, with sigma(t) of the continuous path. In the original code, the output of a network
that was trained on discrete levels is divided by the sigma_i of (1). This solver does not do so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from ..core.noise import Noise
from ..core.registry import closest
from ..core.shapes import expand, time_dtype
from ..model.estimate import Counted, Denoiser, Tally
from ..sde.base import SDE
from ..sde.continuous import VESDE, VPSDE, SubVPSDE
from .base import Solution, Solver, Watch, fixed_solution
from .langevin import check_corrector, langevin_step, norm_ratio
from .trajectory import Step

__all__ = ["LevelTables", "Original", "discretise", "level_index", "predictor_weights"]

PREDICTORS = ("euler-maruyama", "reverse-diffusion", "ancestral", "none")
CORRECTORS = ("langevin", "ald", "none")


@dataclass(frozen=True)
class LevelTables:
    """The tables of N noise levels, from the lowest level up, each float64 with shape ``(N,)``.

    Attributes:
        alphas: ``a_i``, the fraction of the variance that a step up keeps: ``1 - beta_i`` for VP, and 1 for VE.
        betas: ``beta_i``, the variance of the noise that a step up adds.
        sigmas: ``sigma_i``, the standard deviation of the total noise at a level.

    >>> levels = LevelTables.of(VPSDE(), 1000)
    >>> [round(float(b), 6) for b in levels.betas[[0, 999]]], round(float(levels.alphas_cumprod[999]), 9)
    ([0.0001, 0.02], 4.0358e-05)
    """

    alphas: Tensor
    betas: Tensor
    sigmas: Tensor

    @classmethod
    def of(cls, sde: VPSDE | VESDE, count: int) -> LevelTables:
        """Build the tables of an SDE with ``count`` levels."""
        if isinstance(sde, VPSDE):
            betas = torch.linspace(sde.beta_min / count, sde.beta_max / count, count, dtype=torch.float64)
            return cls(1 - betas, betas, torch.sqrt(1 - (1 - betas).cumprod(0)))
        ends = math.log(sde.sigma_min), math.log(sde.highest)
        sigmas = torch.linspace(*ends, count, dtype=torch.float64).exp()
        steps = torch.diff(sigmas.square(), prepend=sigmas.new_zeros(1))
        return cls(torch.ones_like(sigmas), steps, sigmas)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The products ``a_0 ... a_i``, the fraction of the data's variance that is left at a level, shape ``(N,)``."""
        return self.alphas.cumprod(0)


def level_index(sde: SDE, t: Tensor, count: int) -> Tensor:
    """Return the index ``floor(t (N - 1)/T)`` into tables of N = ``count`` levels, int64, shaped like ``t``."""
    return (t * (count - 1) / sde.t_max + 1e-9).long()  # because rounding can turn 1000 into 1000 - 1e-13


def discretise(sde: VPSDE | SubVPSDE | VESDE, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ``f`` and ``G`` of one of ``count`` steps up, ``x + f x + G z``, each with the same shape as ``t``."""
    if isinstance(sde, SubVPSDE):
        return sde.drift_rate(t) / count, sde.diffusion(t) / math.sqrt(count)
    levels, i = LevelTables.of(sde, count), level_index(sde, t, count)
    return levels.alphas[i].sqrt() - 1, levels.betas[i].sqrt()


def predictor_weights(
    predictor: str, sde: VPSDE | SubVPSDE | VESDE, t: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``k``, ``p`` and ``n`` of a predictor, equation (2), each with the same shape as ``t``."""
    if predictor == "euler-maruyama":
        g = sde.diffusion(t) / math.sqrt(count)
        return 1 - sde.drift_rate(t) / count, g.square(), g
    f, g = discretise(sde, t, count)
    if predictor == "reverse-diffusion":
        return 1 - f, g.square(), g
    keep, spread = 1 / (1 + f), g
    if isinstance(sde, VESDE):
        levels, i = LevelTables.of(sde, count), level_index(sde, t, count)
        # The posterior of a level given the level above it. Below the lowest level, there is no noise.
        spread = g * torch.sqrt(1 - levels.betas / levels.sigmas.square())[i]
    return keep, g.square() * keep, spread


@dataclass(frozen=True)
class Original(Solver):
    """The predictor-corrector sampler of the original code, with the same tables, order, step length and last step.

    The solver runs over the whole interval ``sde.times("sample")`` and supports VP, sub-VP and VE, with the
    combinations of options that the original code offers. For anything else, use the solvers on the continuous path
    (``pc``, ``ancestral``, ``reverse-diffusion``, ``em``). The paper samples VE with ``reverse-diffusion`` and
    ``langevin``, VP and sub-VP with ``euler-maruyama`` alone, and DDPM with ``ancestral``, all at N = 1000. The sample
    does not include the noise of the last step, so no other noise-free step follows.

    With ``langevin``, a sample depends on its batch, because the norms are means over the batch. If the whole batch has
    only a few elements, the ratio of these means is unbounded, as in the original code. In that case, use ``ald`` or
    the solver ``pc``.

    Args:
        steps: N, the number of noise levels, of times and of updates (at least 2).
        predictor: ``euler-maruyama``, ``reverse-diffusion``, ``ancestral`` or ``none``.
        corrector: ``langevin``, ``ald`` or ``none``.
        snr: Signal-to-noise ratio of the corrector.
        corrections: Number of Langevin steps before each predictor step.
        probability_flow: Whether to use the probability-flow form of the predictor, without noise.
        mean: Whether to return the ``x_mean`` of the last step, as the original code does to remove noise. Without a
            predictor, there is no ``x_mean``, and the noise remains.
    """

    limits = ranges(steps=Range(2, 10**6, hint="the number of times from T to eps; 1000 as published", seconds=1e-4))

    steps: int = 1000
    predictor: str = "euler-maruyama"
    corrector: str = "none"
    snr: float = 0.16
    corrections: int = 1
    probability_flow: bool = False
    mean: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, known in (
            ("predictor", self.predictor, PREDICTORS),
            ("corrector", self.corrector, CORRECTORS),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r} of the solver original; {closest(value, known)}")
        if self.probability_flow and self.predictor == "ancestral":
            raise UsageError(
                "the original code has no probability flow for the predictor ancestral; use the predictor "
                "reverse-diffusion, or the solver ddim",
                parameter="solver",
                value="ddim",
            )
        check_corrector(self.snr, self.corrections, self.evaluations)

    @property
    def needs_score(self) -> bool:  # type: ignore[override]
        """Whether the score is needed, which is the case if the solver draws noise."""
        return self.stochastic

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the solver draws noise. It does, except for the probability flow without a corrector."""
        return not self.probability_flow or self._corrections > 0

    @property
    def denoises(self) -> bool:  # type: ignore[override]
        """Whether the solver ends with ``x_mean``."""
        return self.mean and self.predictor != "none"

    @property
    def _corrections(self) -> int:
        return 0 if self.corrector == "none" else self.corrections

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return (self.predictor != "none") + self._corrections

    def within(self, nfe: int) -> Self | None:
        """Return this solver with as many steps as ``nfe`` evaluations allow, or ``None`` if they allow less than 2."""
        steps = nfe // self.evaluations
        return replace(self, steps=steps) if steps > 1 else None

    def solve(self, model: Denoiser, x: Tensor, t0: float, t1: float, noise: Noise, watch: Watch) -> Solution:
        sde, count, shape = self._suited(model.domain.sde, t0, t1), self.steps, tuple(x.shape[1:])
        everyone, counted = torch.arange(len(x), device=x.device), Counted(model, Tally(x))
        nodes = torch.linspace(t0, t1, count, dtype=torch.float64)
        clock = [*nodes.tolist(), 0.0]  # the last update starts at eps, and its result is the sample, at t = 0

        def here(table: Tensor) -> Tensor:
            return table.to(device=x.device, dtype=time_dtype(x.device))

        def score(x: Tensor, t: Tensor) -> Tensor:
            return counted(x, t).score

        times, sigmas, alphas = here(nodes), here(sde.coefficients(nodes)[1]), here(self._alphas(sde, nodes))
        if self.predictor != "none":
            keep, pull, spread = (here(w) for w in predictor_weights(self.predictor, sde, nodes, count))
        for i, t in enumerate(times):
            for j in range(self._corrections):
                z = noise.normal(shape, i * self._corrections + j, "corrector", x.dtype)
                x = self.correct(x, score(x, t), z, sigmas[i], alphas[i])
            if self.predictor != "none":
                pulled = expand(pull[i] / 2 if self.probability_flow else pull[i], x) * score(x, t)
                x = expand(keep[i], x) * x + pulled
                if not self.probability_flow and not (self.mean and i == count - 1):
                    x = x + expand(spread[i], x) * noise.between(clock[i], clock[i + 1], shape, i, x.dtype)
            watch(Step(everyone, times.new_tensor(clock[i + 1]), x, done=(i + 1) / count))
        return fixed_solution(x, counted.tally.total, count)

    def correct(self, x: Tensor, score: Tensor, z: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
        """Do one corrector step.

        Args:
            x, score, z: The state, the score at the state, and standard normals, shape ``(B, *event)``.
            sigma, alpha: ``sigma(t)`` of the path and ``a_i`` of the level at t, shape ``()``.
        """
        size = sigma if self.corrector == "ald" else norm_ratio(z, score, "batch")
        return langevin_step(x, score, z, alpha, self.snr, size)

    def _alphas(self, sde: VPSDE | SubVPSDE | VESDE, nodes: Tensor) -> Tensor:
        """Return ``a_i`` at the times ``nodes``, or 1 for sub-VP, which has no tables and no corrector to use them."""
        if isinstance(sde, SubVPSDE):
            return torch.ones_like(nodes)
        return LevelTables.of(sde, self.steps).alphas[level_index(sde, nodes, self.steps)]

    def _suited(self, sde: SDE, t0: float, t1: float) -> VPSDE | SubVPSDE | VESDE:
        """Return the SDE if the original code can sample it with these options over this interval.

        Raises:
            UsageError: If the original code cannot do so.
        """
        name = type(sde).__name__
        if not isinstance(sde, VPSDE | SubVPSDE | VESDE):
            raise UsageError(
                f"Original: the original code supports VPSDE, SubVPSDE and VESDE, not {name}; use one of the solvers "
                "pc, ancestral, reverse-diffusion and em, which support any path",
                parameter="solver",
                value="pc",
            )
        if isinstance(sde, SubVPSDE) and self.predictor == "ancestral":
            raise UsageError(
                f"Original: the original code has the predictor ancestral only for VPSDE and VESDE, not for {name}; "
                "use the solver ancestral, which follows the continuous path, or the predictor reverse-diffusion",
                parameter="solver",
                value="ancestral",
            )
        if isinstance(sde, SubVPSDE) and self._corrections:
            raise UsageError(
                f"Original: in the original code, the corrector {self.corrector} fails for {name}, which has no table "
                "of alphas; use the solver pc, which corrects on the continuous path, or the corrector none",
                parameter="solver",
                value="pc",
            )
        tabled = self.predictor in ("reverse-diffusion", "ancestral") or self._corrections > 0
        if isinstance(sde, VPSDE) and tabled and max(sde.beta_min, sde.beta_max) >= self.steps:
            ours = "pc" if self._corrections else self.predictor
            raise UsageError(
                f"Original: with {self.steps} steps, the table of betas reaches beta_max/N = "
                f"{max(sde.beta_min, sde.beta_max) / self.steps:g}, but 1 - beta must be above 0; use more than "
                f"{max(sde.beta_min, sde.beta_max):g} steps, or the solver {ours}, whose steps are always finite",
                parameter="solver",
                value=ours,
            )
        low, high = sde.times("sample")
        if max(abs(t0 - high), abs(t1 - low)) > 1e-12:
            raise UsageError(
                f"Original: the original code covers the whole sampling interval of {name}, from t = {high:g} to "
                f"{low:g}; got t0 = {t0:g} and t1 = {t1:g}. For other ends, use the solver pc, ancestral or "
                "reverse-diffusion",
                parameter="solver",
                value="pc",
            )
        return sde
