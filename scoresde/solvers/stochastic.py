"""Stochastic one-step solvers for the reverse SDE on a fixed grid.

For any noise level eta(t) >= 0 (:mod:`scoresde.solvers.level`), the SDE

    dx = (velocity - eta^2/2 score) dt + eta dw,      run from t = 1 down to 0,                                 (1)

has the marginals of the path. For eta = 0, it is the probability flow. For eta = g, it is the reverse SDE of Anderson
(1982), which is eq. 6 of Song et al. (2021), arXiv:2011.13456. With the drift f(x, t) of equation (1), h = t - s,
v = h (eta(t)^2 + eta(s)^2) / 2  and standard normals z, a step from t down to s is

    Euler-Maruyama     x <- x - h f(x, t) + eta(t) sqrt(h) z
    stochastic Heun    x' = x - h f(x, t) + sqrt(v) z,    x <- x - h (f(x, t) + f(x', s)) / 2 + sqrt(v) z.

A step up, which follows the path itself from s to t, is x_t = A x_s + S z, with

    A = alpha(t)/alpha(s),      S^2 = sigma(t)^2 - A^2 sigma(s)^2.

A and S are computed from the continuous coefficients, so all quantities are finite for any number of steps. There are
three kinds of steps back down:

    reverse diffusion  x <- (2 - A) x + S^2 score + S z                                      (Song et al. 2021, eq. 46)
    DDIM               x <- alpha(s) x0_hat + sqrt(sigma(s)^2 - n^2) eps_hat + n z,
                       n = eta S sigma(s)/sigma(t)           (Song, Meng and Ermon 2021, arXiv:2010.02502, eq. 12, 16)
    ancestral          x <- a x0_hat + b x + S (sigma(s)/sigma(t))^(1 - c) z                    (Ho et al. 2020, alg. 2)

Here, a and b are the coefficients of the posterior in equation (2) of :mod:`scoresde.sde.marginal`. The fraction c,
which that module calls f, determines how much noise is added: the noise has the variance of the posterior for c = 0,
and that of the step up for c = 1. As in the paper, the eta of DDIM multiplies the standard deviation of the noise in
ancestral sampling with c = 0, so eta = 1 is ancestral sampling. Only at 0 and 1 does this eta mean the same as the
factor eta(t)/g in equation (1). docs/mathematics/solvers.md shows how to convert other values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Range, ranges
from ..core.noise import Noise
from ..core.registry import closest
from ..core.shapes import align, all_rows, at, expand
from ..model.estimate import VARIANCES, Denoiser, Estimate
from ..sde.base import SDE
from ..sde.grids import leaps
from ..sde.marginal import forward_step, posterior
from .base import FixedStep
from .level import Level, auto_level, check_level, level_of

__all__ = [
    "DDIM", "Ancestral", "EulerMaruyama", "StochasticHeun", "ancestral_step", "ddim_step", "drift", "drift_weights",
    "euler_step", "forward_step", "reverse_diffusion_step",
]  # fmt: skip


_DATA = 0.5  # the standard deviation of the Gaussian data for which _check_growth checks the steps


def drift_weights(sde: SDE, t: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients ``a`` and ``b`` of the drift ``a x0_hat + b eps_hat`` for the noise level ``level``.

    Each coefficient has the same shape as ``t``.
    """
    # velocity = alpha' x0_hat + sigma' eps_hat, score = -eps_hat / sigma
    a, d_sigma = sde.rates(t)
    sigma = sde.coefficients(t)[1]
    return a, d_sigma + align(level, sigma).square() / (2 * sigma)


def drift(estimate: Estimate, a: Tensor, b: Tensor) -> Tensor:
    """Return ``a x0_hat + b eps_hat``, with the shape of the state. ``a`` and ``b`` have shape ``()`` or ``(B,)``."""
    return expand(a, estimate.x) * estimate.x0 + expand(b, estimate.x) * estimate.eps


def euler_step(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, z: Tensor, level: Tensor) -> Tensor:
    """Take an Euler-Maruyama step from ``t`` down to ``s``, with standard normals ``z`` of the same shape as ``x``."""
    h = t - s
    slope = drift(model(x, t), *drift_weights(model.domain.sde, t, level))
    return x - expand(h, x) * slope + expand(level * align(h, level).sqrt(), x) * z


def reverse_diffusion_step(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """Take a reverse diffusion step from ``t`` to ``s``. ``x`` and ``z`` have shape ``(B, *event)``."""
    if not model.domain.sde.finite_g:
        # Near alpha = 0, no step up is small (A = 0 for the first step on any grid), so the reverse diffusion step does
        # not converge. An Euler step with a finite noise level does converge.
        return euler_step(model, x, t, s, z, auto_level(model.domain.sde, t))
    a, variance = forward_step(model.domain.sde, t, s)
    score = model(x, t).score
    return expand(2 - a, x) * x + expand(variance, x) * score + expand(variance.sqrt(), x) * z


def ddim_step(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, z: Tensor | None, eta: float) -> Tensor:
    """Take a DDIM step from ``t`` to ``s``, without noise if ``z`` is ``None``.

    ``x`` and ``z`` have shape ``(B, *event)``.
    """
    estimate = model(x, t)
    if z is None:
        return model.domain.sde.perturb(estimate.x0, s, estimate.eps)
    alpha, sigma = model.domain.sde.coefficients(s)
    _, variance = forward_step(model.domain.sde, t, s)
    n = eta * variance.sqrt() * sigma / model.domain.sde.coefficients(t)[1]
    kept = (sigma.square() - n.square()).clamp(min=0).sqrt()
    return expand(alpha, x) * estimate.x0 + expand(kept, x) * estimate.eps + expand(n, x) * z


def ancestral_step(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """Take a step of ancestral sampling, which is DDIM with eta = 1. ``x`` and ``z`` have shape ``(B, *event)``."""
    return ddim_step(model, x, t, s, z, 1.0)


def _pull(sde: SDE, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``(a x0_hat + b eps_hat)/x`` for data from ``N(0, _DATA^2)``. It does not depend on x."""
    alpha, sigma = sde.coefficients(t)
    data = (_DATA * alpha).square()
    return (a * data / alpha.clamp(min=1e-300) + b * sigma) / (data + sigma.square())


def _check_growth(
    solver: EulerMaruyama | StochasticHeun, sde: SDE, times: Tensor, gain: Tensor, kick: Tensor, leap: tuple[bool, ...]
) -> None:
    """Check that the steps do not overshoot on data from ``N(0, _DATA^2)``.

    For such data, a step is ``x <- gain x + kick z``. Steps with ``leap`` are assumed to keep the variance of x.
    """
    if gain.ndim > 1:
        return  # the path has separate coefficients for each element of a sample
    alpha, sigma = (c.detach() for c in sde.coefficients(times[[0, -1]]))
    start, right = ((_DATA * alpha).square() + sigma.square()).tolist()
    variance = start
    for g, k, exact in zip(gain.detach().tolist(), kick.detach().tolist(), leap, strict=True):
        variance = variance if exact else min(g * g * variance + k * k, 1e300)
    if variance > 1e4 * max(start, right):
        raise UsageError(
            f"{type(solver).__name__}: with eta = {solver.eta:g} and steps = {solver.steps}, the steps overshoot. For "
            f"data with the distribution N(0, {_DATA}^2), the standard deviation of the samples would be too large by "
            f"a factor of {math.sqrt(variance / right):.2g}; use more steps, a smaller eta, or the 'sde' solver, whose "
            "steps are stable",
            parameter="eta",
        )


@dataclass(frozen=True)
class EulerMaruyama(FixedStep):
    """Euler-Maruyama method for the reverse SDE: weak order 1, one evaluation per step.

    Args:
        steps: Number of steps.
        eta: Scale factor for the noise level. With the ``g`` level, 1 gives Anderson's reverse SDE. With any level, 0
            gives Euler's method for the probability flow.
        level: The noise level: ``auto``, ``g``, ``sigma``, ``er`` or a function (see :mod:`scoresde.solvers.level`).
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    steps: int = 500
    eta: float = 1.0
    level: Level = "auto"

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self.level, self.eta)

    def uses_rates(self, sde: SDE) -> bool:
        return True

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        clock, h = times.tolist(), times[:-1] - times[1:]
        levels = level_of(model.domain.sde, self.level, self.eta, times[:-1])
        a, b = drift_weights(model.domain.sde, times[:-1], levels)
        spread = levels * align(h, levels).sqrt()
        slopes = align(h, levels) * _pull(model.domain.sde, times[:-1], a, b)
        leap = leaps(model.domain.sde, times)
        _check_growth(self, model.domain.sde, times, 1 - slopes, spread, leap)

        def advance(i: int, x: Tensor) -> Tensor:
            z = noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype)
            if leap[i]:
                return ddim_step(model, x, times[i], times[i + 1], z, min(self.eta, 1.0))
            # x - h f + eta sqrt(h) z
            estimate = model(x, times[i])
            return x - drift(estimate, at(a, i) * h[i], at(b, i) * h[i]) + expand(at(spread, i), x) * z

        return advance


@dataclass(frozen=True)
class StochasticHeun(FixedStep):
    """Stochastic Heun method for the reverse SDE: weak order 2, two evaluations per step.

    Args:
        steps: Number of steps.
        eta: Scale factor for the noise level. With the ``g`` level, 1 gives Anderson's reverse SDE. With any level, 0
            gives Heun's method for the probability flow.
        level: The noise level: ``auto``, ``g``, ``sigma``, ``er`` or a function (see :mod:`scoresde.solvers.level`).
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    steps: int = 100
    eta: float = 1.0
    level: Level = "auto"

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self.level, self.eta)

    @property
    def evaluations(self) -> int:
        """Number of model evaluations per step."""
        return 2

    def uses_rates(self, sde: SDE) -> bool:
        return True

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        clock, sigma = times.tolist(), model.domain.sde.coefficients(times)[1]
        silent = all_rows(sigma == 0)  # the score is undefined there, and g may be too (if sigma grows like sqrt(t))
        heard = torch.where(torch.tensor(silent, device=times.device), times[0], times)
        levels = level_of(model.domain.sde, self.level, self.eta, heard)
        a, b = drift_weights(model.domain.sde, heard, levels)
        levels = torch.where(align(heard == times, levels), levels, 0.0)
        h, pull = align(times[:-1] - times[1:], levels), _pull(model.domain.sde, times, a, b)
        first, second = h * pull[:-1], h * pull[1:].nan_to_num(posinf=0.0)
        kick = torch.sqrt(h * (levels[:-1].square() + levels[1:].square()) / 2) * (1 - second / 2)
        leap = leaps(model.domain.sde, times)
        _check_growth(self, model.domain.sde, times, 1 - (first + second * (1 - first)) / 2, kick, leap)

        def advance(i: int, x: Tensor) -> Tensor:
            t, s = times[i], times[i + 1]
            z = noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype)
            if leap[i]:
                return ddim_step(model, x, t, s, z, min(self.eta, 1.0))
            h = t - s
            spread = expand(torch.sqrt(h * (at(levels, i).square() + at(levels, i + 1).square()) / 2), x) * z
            first = drift(model(x, t), at(a, i), at(b, i))
            if silent[i + 1]:
                return x - expand(h, x) * first + spread
            second = drift(model(x - expand(h, x) * first + spread, s), at(a, i + 1), at(b, i + 1))
            return x - expand(h / 2, x) * (first + second) + spread

        return advance


@dataclass(frozen=True)
class DDIM(FixedStep):
    """DDIM (Song, Meng and Ermon 2021, arXiv:2010.02502): order 1, one evaluation per step.

    With ``eta`` = 0, DDIM solves the probability flow, and can do so in either direction.

    Args:
        steps: Number of steps.
        eta: The eta of the paper, from 0 to 1. The standard deviation of the noise is eta times that of ancestral
            sampling.
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    limits = ranges(eta=Range(0, 1, hint="0 means no noise, and 1 means ancestral sampling"))

    steps: int = 50
    eta: float = 0.0

    @property
    def needs_score(self) -> bool:  # type: ignore[override]
        """Whether the solver needs the score, which it does only if it draws noise."""
        return self.eta > 0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the solver draws noise, which it does only if ``eta`` > 0."""
        return self.eta > 0

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        clock = times.tolist()

        def advance(i: int, x: Tensor) -> Tensor:
            z = noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype) if self.eta else None
            return ddim_step(model, x, times[i], times[i + 1], z, self.eta)

        return advance


@dataclass(frozen=True)
class Ancestral(FixedStep):
    """Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, alg. 2) on any path and grid.

    Each step costs one evaluation. On :class:`~scoresde.DDPM` with N noise levels, N - 1 steps on the default grid,
    followed by the noise-free step of :func:`scoresde.sample`, reproduce the published algorithm with T = N.

    Args:
        steps: Number of steps.
        variance: Variance of the noise: ``posterior`` (beta tilde in the paper), ``beta`` (the variance of the forward
            step), ``learned`` (a variance between these two, predicted by the model), or ``auto`` (``learned`` if the
            model predicts the variance, and ``posterior`` otherwise).
        grid: See :class:`~scoresde.solvers.base.FixedStep`.
    """

    steps: int = 200
    variance: str = "auto"

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance not in VARIANCES:
            raise UsageError(f"unknown variance {self.variance!r}; {closest(self.variance, VARIANCES)}")

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        sde, clock, t, s = model.domain.sde, times.tolist(), times[:-1], times[1:]
        a, b, _ = posterior(sde, t, s)
        up = forward_step(sde, t, s)[1].sqrt()
        ratio = sde.coefficients(s)[1] / sde.coefficients(t)[1]
        last = all_rows(ratio == 0)  # a step to sigma = 0 ends at x0_hat

        def advance(i: int, x: Tensor) -> Tensor:
            estimate = model(x, t[i])
            mean = expand(at(a, i), x) * estimate.x0 + expand(at(b, i), x) * x
            spread = expand(at(up, i), x) * expand(at(ratio, i), x) ** (1 - estimate.share(self.variance))
            if last[i]:
                return mean
            return mean + spread * noise.between(clock[i], clock[i + 1], tuple(x.shape[1:]), i, x.dtype)

        return advance
