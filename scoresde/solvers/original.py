r"""The samplers of Song et al. (2021), arXiv:2011.13456, discretised as in the original code to reproduce its results.

The other solvers use the coefficients of the continuous path, on any grid. The original code instead uses tables for
N = ``steps`` noise levels, which it reads at the index i = floor(t (N - 1)/T), where T is the largest time. With
a_i = 1 and sigma_{-1} = 0 for VE, the tables are

    VP   beta_i = linspace(beta_min/N, beta_max/N, N),   a_i = 1 - beta_i,   sigma_i^2 = 1 - a_0 ... a_i
    VE   sigma_i = sigma_min (sigma_max/sigma_min)^(i/(N - 1)),   beta_i = sigma_i^2 - sigma_{i-1}^2.             (1)

A step up to a higher noise level is  x + f x + G z  with  f = sqrt(a_i) - 1,  G^2 = beta_i  and standard normals z
(eq. 8 and 10 of the paper). Sub-VP has no tables, and its step up is an Euler step with  f = f(t)/N  and
G^2 = g(t)^2/N,  where f(t) and g(t) are the drift and diffusion coefficients of the SDE. All predictors have the form

    x <- x_mean + n z,      x_mean = k x + p score,                                                               (2)

    =====================  ===========  ===============  ==================================  =======================
    predictor              k            p                n                                   equation, SDEs
    =====================  ===========  ===============  ==================================  =======================
    ``euler-maruyama``     1 - f(t)/N   g(t)^2/N         g(t)/sqrt(N)                        eq. 6, all three
    ``reverse-diffusion``  1 - f        G^2              G                                   eq. 46, all three
    ``ancestral``          1/sqrt(a_i)  beta_i k         G (VP), G sigma_{i-1}/sigma_i (VE)  eq. 4 and 47, VP and VE
    =====================  ===========  ===============  ==================================  =======================

The probability flow has the same form with p/2 instead of p, and with n = 0. The correctors (alg. 4 and 5, only for VP
and VE) are  x <- x + e score + sqrt(2 e) z  with

    ``langevin``   e = 2 a_i (snr mean|z| / mean|score|)^2, with means over the batch;
    ``ald``        e = 2 a_i (snr sigma(t))^2.

The times are linspace(T, eps, N), where eps is the smallest time. There is one update at each time (the corrector
steps, then the predictor step), so there are N updates, although there are only N - 1 intervals. The last update starts
at eps, and the sample is the x_mean of this update. A predictor step always has the length 1/N, although the times are
(T - eps)/(N - 1) apart. For T = 1, these two lengths are equal only if eps = 1/N, as with the published N = 1000 and
eps = 1e-3. docs/mathematics/sde-solvers.md shows how the difference affects the variance of the samples.

The model computes the scores with sigma(t) of the continuous path. For a network that was trained on discrete noise
levels, the original code instead divides the output of the network by sigma_i from equation (1).
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
    """The tables of equation (1) for N noise levels, from the lowest to the highest.

    Each table is a float64 tensor of shape ``(N,)``.

    Attributes:
        alphas: ``a_i``, the square of the factor on x in a step up: ``1 - beta_i`` for VP, and 1 for VE.
        betas: ``beta_i``, the variance of the noise that a step up adds.
        sigmas: ``sigma_i``, the standard deviation of the total noise at level i.

    >>> levels = LevelTables.of(VPSDE(), 1000)
    >>> [round(float(b), 6) for b in levels.betas[[0, 999]]], round(float(levels.alphas_cumprod[999]), 9)
    ([0.0001, 0.02], 4.0358e-05)
    """

    alphas: Tensor
    betas: Tensor
    sigmas: Tensor

    @classmethod
    def of(cls, sde: VPSDE | VESDE, count: int) -> LevelTables:
        """Build the tables for ``count`` noise levels of an SDE."""
        if isinstance(sde, VPSDE):
            betas = torch.linspace(sde.beta_min / count, sde.beta_max / count, count, dtype=torch.float64)
            return cls(1 - betas, betas, torch.sqrt(1 - (1 - betas).cumprod(0)))
        ends = math.log(sde.sigma_min), math.log(sde.highest)
        sigmas = torch.linspace(*ends, count, dtype=torch.float64).exp()
        steps = torch.diff(sigmas.square(), prepend=sigmas.new_zeros(1))
        return cls(torch.ones_like(sigmas), steps, sigmas)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The products ``a_0 ... a_i``, shape ``(N,)``: the squared coefficient of the data at each level."""
        return self.alphas.cumprod(0)


def level_index(sde: SDE, t: Tensor, count: int) -> Tensor:
    """Return the table index ``floor(t (N - 1)/T)`` for each time t, as an int64 tensor. N is ``count``."""
    return (t * (count - 1) / sde.t_max + 1e-9).long()  # 1e-9 because rounding can turn 1000 into 1000 - 1e-13


def discretise(sde: VPSDE | SubVPSDE | VESDE, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the coefficients ``f`` and ``G`` of a step to the next of ``count`` noise levels, for each time in ``t``.

    Each coefficient has the same shape as ``t``.
    """
    if isinstance(sde, SubVPSDE):
        return sde.drift_rate(t) / count, sde.diffusion(t) / math.sqrt(count)
    levels, i = LevelTables.of(sde, count), level_index(sde, t, count)
    return levels.alphas[i].sqrt() - 1, levels.betas[i].sqrt()


def predictor_weights(
    predictor: str, sde: VPSDE | SubVPSDE | VESDE, t: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the coefficients ``k``, ``p`` and ``n`` of equation (2), each of the same shape as ``t``."""
    if predictor == "euler-maruyama":
        g = sde.diffusion(t) / math.sqrt(count)
        return 1 - sde.drift_rate(t) / count, g.square(), g
    f, g = discretise(sde, t, count)
    if predictor == "reverse-diffusion":
        return 1 - f, g.square(), g
    keep, spread = 1 / (1 + f), g
    if isinstance(sde, VESDE):
        levels, i = LevelTables.of(sde, count), level_index(sde, t, count)
        # The spread of the posterior of a level given the level above it. Below the lowest level, there is no noise.
        spread = g * torch.sqrt(1 - levels.betas / levels.sigmas.square())[i]
    return keep, g.square() * keep, spread


@dataclass(frozen=True)
class Original(Solver):
    """The predictor-corrector sampler of the original code, with the same tables, update order and step length.

    The solver runs over the whole interval ``sde.times("sample")`` and supports VP, sub-VP and VE, with the
    combinations of options that the original code offers. For anything else, use the solvers on the continuous path
    (``pc``, ``ancestral``, ``reverse-diffusion`` and ``em``). The paper samples VE with ``reverse-diffusion`` and
    ``langevin``, VP and sub-VP with ``euler-maruyama`` alone, and DDPM with ``ancestral``, all with N = 1000. By
    default, the last update adds no noise, so :func:`scoresde.sample` does not add a noise-free step.

    With ``langevin``, a sample depends on its batch, because the step size depends on the mean norms of the noise and
    the score over the batch. As in the original code, the ratio of these means can become arbitrarily large if the
    batch has only a few elements in total. For such a batch, use ``ald`` or the ``pc`` solver.

    Args:
        steps: Number of noise levels, which is also the number of times and of updates (at least 2).
        predictor: ``euler-maruyama``, ``reverse-diffusion``, ``ancestral`` or ``none``.
        corrector: ``langevin``, ``ald`` or ``none``.
        snr: Signal-to-noise ratio of the corrector.
        corrections: Number of Langevin steps before each predictor step.
        probability_flow: Whether to use the probability-flow form of the predictor, which adds no noise.
        mean: Whether to omit the noise of the last predictor step, as the original code does. Without a predictor, this
            option has no effect, and the noise of the corrector remains.
    """

    limits = ranges(steps=Range(2, 10**6, hint="the number of noise levels, which is 1000 in the paper", seconds=1e-4))

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
                raise UsageError(f"Original: unknown {name} {value!r}; {closest(value, known)}")
        if self.probability_flow and self.predictor == "ancestral":
            raise UsageError(
                "Original: the 'ancestral' predictor has no probability flow in the original code; use the "
                "'reverse-diffusion' predictor or the 'ddim' solver",
                parameter="solver",
                value="ddim",
            )
        check_corrector(self.snr, self.corrections, self.evaluations)

    @property
    def needs_score(self) -> bool:  # type: ignore[override]
        """Whether the solver needs the score, which it does whenever it draws noise."""
        return self.stochastic

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the solver draws noise. Only the probability flow without a corrector draws none."""
        return not self.probability_flow or self._corrections > 0

    @property
    def denoises(self) -> bool:  # type: ignore[override]
        """Whether the last update adds no noise."""
        return self.mean and self.predictor != "none"

    @property
    def _corrections(self) -> int:
        return 0 if self.corrector == "none" else self.corrections

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return (self.predictor != "none") + self._corrections

    def within(self, nfe: int) -> Self | None:
        """Return a copy of this solver with as many steps as ``nfe`` evaluations allow.

        The result is ``None`` if ``nfe`` evaluations allow fewer than 2 steps.
        """
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
        """Take one corrector step.

        Args:
            x, score, z: The state, the score at the state, and standard normals, each of shape ``(B, *event)``.
            sigma, alpha: The noise level ``sigma(t)`` of the path, and the table entry ``a_i`` for time t, each of
                shape ``()``.
        """
        size = sigma if self.corrector == "ald" else norm_ratio(z, score, "batch")
        return langevin_step(x, score, z, alpha, self.snr, size)

    def _alphas(self, sde: VPSDE | SubVPSDE | VESDE, nodes: Tensor) -> Tensor:
        """Return ``a_i`` at the times ``nodes``, or ones for sub-VP, which does not use ``a_i``."""
        if isinstance(sde, SubVPSDE):
            return torch.ones_like(nodes)
        return LevelTables.of(sde, self.steps).alphas[level_index(sde, nodes, self.steps)]

    def _suited(self, sde: SDE, t0: float, t1: float) -> VPSDE | SubVPSDE | VESDE:
        """Check that the original code supports ``sde``, these options and this interval, and return ``sde``."""
        name = type(sde).__name__
        if not isinstance(sde, VPSDE | SubVPSDE | VESDE):
            raise UsageError(
                f"Original: the SDE must be VPSDE, SubVPSDE or VESDE, as in the original code, got {name}; use one "
                "of the solvers 'pc', 'ancestral', 'reverse-diffusion' and 'em', which support any path",
                parameter="solver",
                value="pc",
            )
        if isinstance(sde, SubVPSDE) and self.predictor == "ancestral":
            raise UsageError(
                f"Original: in the original code, the 'ancestral' predictor supports only VPSDE and VESDE, not {name}; "
                "use the 'ancestral' solver, which uses the continuous path, or the 'reverse-diffusion' predictor",
                parameter="solver",
                value="ancestral",
            )
        if isinstance(sde, SubVPSDE) and self._corrections:
            raise UsageError(
                f"Original: in the original code, the {self.corrector!r} corrector fails for {name}, which has no "
                "table of alphas; use the 'pc' solver, which uses the continuous path, or set the corrector to 'none'",
                parameter="solver",
                value="pc",
            )
        tabled = self.predictor in ("reverse-diffusion", "ancestral") or self._corrections > 0
        if isinstance(sde, VPSDE) and tabled and max(sde.beta_min, sde.beta_max) >= self.steps:
            ours = "pc" if self._corrections else self.predictor
            raise UsageError(
                f"Original: with {self.steps} steps, the largest beta in the table is beta_max/steps = "
                f"{max(sde.beta_min, sde.beta_max) / self.steps:g}, but it must be below 1; use more than "
                f"{max(sde.beta_min, sde.beta_max):g} steps, or the {ours!r} solver, whose steps are always finite",
                parameter="solver",
                value=ours,
            )
        low, high = sde.times("sample")
        if max(abs(t0 - high), abs(t1 - low)) > 1e-12:
            raise UsageError(
                f"Original: t0 and t1 must be the ends of the sampling interval of {name}, {high:g} and {low:g}, as in "
                f"the original code; got t0 = {t0:g} and t1 = {t1:g}. For other intervals, use the 'pc', 'ancestral' "
                "or 'reverse-diffusion' solver",
                parameter="solver",
                value="pc",
            )
        return sde
