"""Predictor-corrector sampling: a step of the reverse SDE, then Langevin steps that correct the distribution.

The methods are alg. 1-5 of Song et al. (2021), arXiv:2011.13456. A predictor is any one-step solver, such as those in
:mod:`scoresde.solvers.stochastic`. A corrector is a step of Langevin dynamics at a fixed time, which leaves the
marginal at that time unchanged in the limit of a small step size e. With  A = alpha(t)/alpha(s)  for the predictor step
from t to s, and standard normals z, a corrector step is

    x <- x + e score + sqrt(2 e) z      with

    ``annealed``   e = 2 A^2 (snr sigma)^2                     annealed Langevin dynamics (alg. 4-5 with sigma; Song and
                                                               Ermon 2019, arXiv:1907.05600, alg. 1)
    ``langevin``   e = 2 A^2 (snr |z| / |score|)^2             as published, with the means of the norms over the batch
                                                               (``norm="batch"``), or with the norms of each sample.

The two correctors agree where |z|/|score| equals sigma, as it nearly does for pure noise. Means over the batch couple
the samples of the batch. With the norms of each sample, the step size e(x) depends on x, and the samples converge not
to the marginal p, but to a density proportional to p/e, which favours regions with large scores. Moreover, the ratio
|z|/|score| is unbounded in the middle of a mode, where the score vanishes. The ratio is therefore limited to a range
around sigma, which becomes narrower as the number of dimensions falls (equation (2) of
:mod:`scoresde.solvers.langevin`). If a sample has at most 16 elements, ``langevin`` with the norms of each sample is
the same as ``annealed``. In many dimensions, the ratio hardly varies, and the limits have no effect.

The predictors have order 1, and a corrector lowers the order of the sampler below 1. The corrector's step size e does
not shrink as the number of steps grows. For a Gaussian marginal with variance v, the variance of the samples is too
large by a fraction of e/2v = (snr sigma)^2/v. This bias falls as the noise level falls, provided
that the n remaining corrections can remove the larger bias from earlier levels. Each correction removes the fraction
4 (snr sigma)^2/v of this larger bias. On the straight path with N uniform steps, n e/v is of order N sigma^3, so the
corrections can no longer remove the bias once sigma is of order N^(-1/3), and the error is of order N^(-2/3). On VP
with the default grid, the order of n e/v lies between N sigma^(5/2) and N sigma^3, and the error is between the orders
N^(-4/5) and N^(-2/3). The measured exponents are 0.66 for the straight path and 0.77 for VP (experiments/edges.py).

With ``sequence="pc"``, a step predicts from t to s and then corrects at s. With ``sequence="cp"``, it corrects at t and
then predicts, as in the original code.

Annealed Langevin dynamics uses the corrector without a predictor. With the L noise levels sigma_i of
:class:`~scoresde.SMLD`, and with ``start``, which also corrects at the first level, the method is algorithm 1 of Song
and Ermon (2019). In the notation of that paper, T is ``corrections``, and the step sizes are

    alpha_i = eps sigma_i^2/sigma_L^2 = 2 e,      that is,  snr = sqrt(eps)/(2 sigma_L),

where sigma_L is the lowest level. The published values eps = 2e-5 and sigma_L = 0.01 correspond to snr = 0.2236.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.noise import Noise
from ..core.registry import closest, resolve
from ..core.shapes import align, expand
from ..model.estimate import Denoiser
from ..sde.base import SDE
from ..sde.grids import leaps
from .base import FixedStep
from .langevin import check_corrector, langevin_step, norm_ratio
from .level import auto_level
from .stochastic import ancestral_step, ddim_step, euler_step, forward_step, reverse_diffusion_step

__all__ = ["PREDICTORS", "PredictorCorrector", "annealed_langevin", "reverse_diffusion"]

Predictor = Callable[[Denoiser, Tensor, Tensor, Tensor, Tensor], Tensor]  # (model, x, t, s, z) -> x at s

PREDICTORS: dict[str, Predictor] = {
    "reverse-diffusion": reverse_diffusion_step,
    "ancestral": ancestral_step,
    "em": lambda model, x, t, s, z: euler_step(model, x, t, s, z, auto_level(model.domain.sde, t)),
    "ddim": lambda model, x, t, s, z: ddim_step(model, x, t, s, None, 0.0),
    "none": lambda model, x, t, s, z: x,
}
_EULERS = ("reverse-diffusion", "em")  # predictors that do not converge on grids with leaps
CORRECTORS = ("annealed", "langevin", "none")


@dataclass(frozen=True)
class PredictorCorrector(FixedStep):
    """Predictor-corrector sampler, which corrects each predictor step with Langevin steps.

    Args:
        steps: Number of predictor steps.
        predictor: ``reverse-diffusion``, ``ancestral``, ``em``, ``ddim``, ``none``, or your own function
            ``(model, x, t, s, z) -> x`` (or its name, ``module:function``), which must evaluate the model once.
        corrector: ``annealed``, ``langevin`` or ``none``.
        snr: Signal-to-noise ratio of the corrector, which must be below 1. The corrector makes the variance too large
            by a factor of up to 1/(1 - snr^2).
        corrections: Number of Langevin steps at each node, with one evaluation each.
        norm: How the ``langevin`` corrector computes norms: ``sample`` (for each sample separately) or ``batch`` (as
            means over the batch, as in the original code). Means over the batch couple the samples in the batch.
        sequence: ``pc`` (predict, then correct), or ``cp`` (correct, then predict, as in the original code).
        start: Whether to correct at the first node as well, before the first step (only with the ``pc`` sequence).
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    steps: int = 500
    predictor: str | Predictor = "reverse-diffusion"
    corrector: str = "annealed"
    snr: float = 0.16
    corrections: int = 1
    norm: str = "sample"
    sequence: str = "pc"
    start: bool = False

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, known in (
            ("corrector", self.corrector, CORRECTORS),
            ("norm", self.norm, ("sample", "batch")),
            ("sequence", self.sequence, ("pc", "cp")),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}; choose from: {', '.join(known)}")
        if self.start and self.sequence == "cp":
            raise UsageError(
                "start cannot be used with the 'cp' sequence, which always corrects before the first step; omit start"
            )
        self._predictor()
        check_corrector(self.snr, self.corrections, self.evaluations)

    def _predictor(self) -> Predictor:
        if callable(self.predictor):
            return self.predictor
        if self.predictor not in PREDICTORS and ":" not in self.predictor:
            raise UsageError(f"unknown predictor {self.predictor!r}; {closest(self.predictor, PREDICTORS)}")
        found: Predictor = PREDICTORS.get(self.predictor) or resolve(
            self.predictor, {}, "predictor", typed=True, function=True
        )
        return found

    @property
    def _corrections(self) -> int:
        return 0 if self.corrector == "none" else self.corrections

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return (self.predictor != "none") + self._corrections

    def within(self, nfe: int) -> Self | None:
        """Return a copy of this solver with as many steps as ``nfe`` evaluations allow.

        The result is ``None`` if the evaluations do not suffice for one step, or if the grid is a tuple of times.
        """
        return super().within(max(0, nfe - self._corrections * self.start))

    def uses_rates(self, sde: SDE) -> bool:
        # On a path that ends at alpha = 0, the reverse diffusion steps are Euler steps.
        return self.predictor == "em" or (self.predictor == "reverse-diffusion" and not sde.finite_g)

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        predict, clock = self._predictor(), times.tolist()
        leap = leaps(model.domain.sde, times) if self.predictor in _EULERS else (False,) * self.steps

        def corrected(x: Tensor, i: int, visit: int, at: Tensor) -> Tensor:
            for j in range(self._corrections):
                z = noise.normal(tuple(x.shape[1:]), visit * self._corrections + j, "corrector", x.dtype)
                x = self.correct(model, x, times[i], times[i + 1], z, at)
            return x

        def advance(i: int, x: Tensor) -> Tensor:
            t, s = times[i], times[i + 1]
            if self.start and i == 0:
                x = corrected(x, 0, 0, t)
            for part in self.sequence:
                if part == "p":
                    z = noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype)
                    stepped = (ancestral_step if leap[i] else predict)(model, x, t, s, z)
                    if not isinstance(stepped, Tensor) or stepped.shape != x.shape:
                        found = (
                            f"shape {tuple(stepped.shape)}" if isinstance(stepped, Tensor) else type(stepped).__name__
                        )
                        raise UsageError(
                            f"the predictor {getattr(self.predictor, '__name__', self.predictor)} must return a tensor "
                            f"of shape {tuple(x.shape)}, got {found}"
                        )
                    x = stepped
                else:
                    x = corrected(x, i, i + self.start, s if self.sequence == "pc" else t)
            return x

        return advance

    def correct(self, model: Denoiser, x: Tensor, t: Tensor, s: Tensor, z: Tensor, at: Tensor) -> Tensor:
        """Take a Langevin step at the time ``at``: the start ``t`` or the end ``s`` of the predictor step.

        ``x`` and ``z`` have shape ``(B, *event)``.
        """
        if bool((model.domain.sde.coefficients(at)[1] == 0).all()):
            return x  # there is no noise, so the score is undefined
        a, _ = forward_step(model.domain.sde, t, s)
        score = model(x, at).score
        annealed = self.corrector == "annealed"
        sigma = model.domain.sde.coefficients(at)[1]
        if annealed:
            size = sigma
        elif model.domain.sde.coords:  # the ratio in units of each coordinate's noise
            ratio = norm_ratio(z, expand(sigma, x) * score, self.norm, torch.ones_like(at))
            size = align(ratio.reshape(-1), sigma) * sigma
        else:
            size = norm_ratio(z, score, self.norm, sigma)
        return langevin_step(x, score, z, a.square(), self.snr, size)


def reverse_diffusion(steps: int = 500, grid: str = "auto") -> PredictorCorrector:
    """The reverse diffusion predictor (Song et al. 2021, arXiv:2011.13456, eq. 46) without a corrector."""
    return PredictorCorrector(steps, "reverse-diffusion", "none", grid=grid)


def annealed_langevin(
    steps: int = 200, snr: float = 0.16, corrections: int = 5, start: bool = False, grid: str = "auto"
) -> PredictorCorrector:
    """Annealed Langevin dynamics (Song and Ermon 2019, arXiv:1907.05600, alg. 1), without a predictor.

    For the published algorithm with L noise levels, use ``start=True`` and L - 1 steps.
    """
    return PredictorCorrector(steps, "none", "annealed", snr, corrections, start=start, grid=grid)
