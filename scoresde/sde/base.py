r"""The interface of linear SDEs, which are defined by their Gaussian probability paths.

A linear SDE  dx = f(t) x dt + g(t) dw  turns a data point x_0 into

    x_t = alpha(t) x_0 + sigma(t) eps,      eps ~ N(0, I).                                    (1)

The functions alpha and sigma determine the SDE completely. Each subclass of :class:`SDE` implements both functions. The
base class computes the coefficients

    f = alpha'/alpha,      g^2 = 2 sigma (sigma' - f sigma)                                   (2)

from these functions by forward-mode automatic differentiation. Time runs from 0 (data) to 1 (prior).

In the *straight frame*, every path becomes a straight line from x_0 to eps. Dividing x by s and using r instead of t as
the time variable turns equation (1) into

    y = (1 - r) x_0 + r eps,      where      s = alpha + sigma,      r = sigma / s,      y = x / s,       (3)

and the probability flow becomes dy/dr = eps_hat - x0_hat, where x0_hat and eps_hat are a model's estimates of the data
and the noise. The right-hand side contains no f, g, alpha' or sigma', and is finite at both ends of every path. By
default, the ``ode``, ``heun`` and ``rk4`` solvers and the likelihood computation work in this frame. The log-SNR
2 log(alpha/sigma)  is a monotone function of r, so it can serve as the time variable as well.

Alpha and sigma may differ between the elements of an event (:attr:`SDE.coords`), for example between the bands of an
image or the columns of a table. Each coordinate k then follows its own path, with its own equations (1) to (3). Two
roles, which coincide on all other paths, are then distinct. The *coefficients* (alpha, sigma, f, g, rates and scales)
are used in the arithmetic of a step, and have one value for each coordinate. The *clock* (the log-SNR and r) chooses
times, and has one value for each t, a mean over the coordinates (:mod:`scoresde.sde.clock`). With the clock's r as the
time variable, the probability flow of coordinate k is  dy_k/dr = (dr_k/dr) (eps_hat - x0_hat)  (:meth:`SDE.speed`).

References:
    Song et al. (2021), Score-based generative modeling through SDEs, arXiv:2011.13456: linear SDEs and their flow.
    Kingma et al. (2021), Variational diffusion models, arXiv:2107.00630: the log-SNR determines a path up to its
    scale (sec. 3, 5.1).
    Lipman et al. (2023), Flow matching, arXiv:2210.02747: the conditional optimal-transport path (eq. 20-23).

Concrete SDEs are defined in :mod:`scoresde.sde.continuous` and :mod:`scoresde.sde.chains`.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.limits import POSITIVE, Checked, check_number
from ..core.noise import Noise
from ..core.shapes import align, as_time, dims, expand, sum_flat, time_dtype
from .check import check_path
from .clock import mean_ratio, rate_of_mean, solve_decreasing

__all__ = ["SDE", "Prior", "informative"]


@overload
def informative(alpha: Tensor, sigma: Tensor) -> Tensor: ...
@overload
def informative(alpha: float, sigma: float) -> bool: ...
def informative(alpha: Any, sigma: Any) -> Any:
    """Return whether a noisy state still contains any signal, that is, whether alpha > 1e-6 sigma.

    Where no signal is left, ``alpha`` may be a rounding error instead of 0. For example, cos(pi/2) evaluates to 6e-17.
    If the coefficients are tensors, they are compared element by element, and the result has the same shape as
    ``alpha``.
    """
    return alpha > 1e-6 * sigma


@dataclass(frozen=True, eq=False)
class Prior:
    """The Gaussian ``N(0, std^2)`` at the end of a path, from which sampling starts. All elements are independent.

    Args:
        std: Standard deviation of the Gaussian: a number, or a tensor ``(1, *coords)`` that broadcasts to a batch.
    """

    std: float | Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.std, Tensor):
            check_number("std", self.std, POSITIVE, where="Prior: ")

    def sample(self, noise: Noise, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw one state for each of the B indices in ``noise.indices``, shape ``(B, *shape)``."""
        z = noise.normal(shape, stream="prior", dtype=dtype)
        return (self.std.to(z) if isinstance(self.std, Tensor) else self.std) * z

    def log_prob(self, z: Tensor, count: int | Tensor | None = None) -> Tensor:
        """Return the log density, in nats, of each state in ``z: (B, *event)``. The result has shape ``(B,)``.

        ``count`` is the number of dimensions, one number or ``(B,)``, if not all numbers in ``z`` are real (the others
        must be 0).
        """
        if isinstance(self.std, Tensor):
            std = self.std.to(z)
            volume = sum_flat((std * math.sqrt(2 * math.pi)).log().expand(1, *z.shape[1:]))
            return -sum_flat((z / std).square()) / 2 - volume
        count = dims(z) if count is None else count.to(z.dtype) if isinstance(count, Tensor) else count
        return -sum_flat(z.square()) / (2 * self.std**2) - count * math.log(self.std * math.sqrt(2 * math.pi))


class SDE(Checked, ABC):
    """A linear SDE, defined by its Gaussian path ``x_t = alpha(t) x_0 + sigma(t) eps``.

    To define a path, subclass this as a frozen dataclass and implement ``alpha`` and ``sigma`` with torch functions.
    Times are passed as tensors of shape ``()`` or ``(B,)``, usually float64. A constant coefficient may be returned as
    a plain number. Training, likelihood computation and sampling with any solver other than ``original`` then work
    without further code.

    If alpha and sigma differ between the elements of an event, define the attribute or property ``coords``. Times are
    then passed with shape ``(B, 1, ..., 1)``, one axis for each axis of ``coords`` in addition to the first, and the
    results must broadcast to ``(B, *coords)``. A coefficient then has shape ``(B, *coords)``, or ``(1, *coords)`` for a
    time of shape ``()``. The log-SNR, the ratio and their inverses are means over the coordinates, with one value for
    each time, and only serve to choose times.

    Attributes:
        coords: The shape over which alpha and sigma differ, with one axis for each axis of an event. It must broadcast
            to the shape of an event in model units: for example, ``(D,)`` for a table and ``(1, H, W)`` for images. The
            default, ``()``, means that alpha and sigma are the same for all elements.
        t_min, t_max: The ends of the valid range of t. Training draws t from this range, and the likelihood computation
            integrates over it.
        t_sample: The time at which sampling stops (default: ``t_min``).
        data_scale: The factor that converts data in model units to states at ``t_min``. It differs from 1 only on the
            path of a converted model.
        more_noise: A pair: the name of the field that controls the amount of noise at ``t_max``, and a value of this
            field that gives enough noise. Warnings about too little noise suggest this value
            (:mod:`scoresde.sde.reach`). The default, ``None``, means that no field controls the noise.
        stated_in: The space in which the path is stated (:mod:`scoresde.codec`), if it has no meaning in the
            coordinates of the data. Training then requires this space. The default is ``""``.
        smooth: Whether ``alpha`` and ``sigma`` have continuous derivatives. If not, step sizes in t cannot be chosen
            from error estimates. Solvers that step in r, the time variable of the straight frame
            (:mod:`scoresde.sde.base`), are not affected.

    Example:
        >>> import math
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Cosine(SDE):
        ...     def alpha(self, t):
        ...         return torch.cos(math.pi / 2 * t)
        ...     def sigma(self, t):
        ...         return torch.sin(math.pi / 2 * t)
        >>> float(Cosine().diffusion(torch.tensor(0.5)) ** 2)  # pi tan(pi t / 2)
        3.14159...
    """

    coords: ClassVar[tuple[int, ...]] = ()
    t_min: float = 1e-5
    t_max: float = 1.0
    t_sample: float | None = None
    data_scale: float | Tensor = 1.0
    more_noise: ClassVar[tuple[str, object] | None] = None
    stated_in: ClassVar[str] = ""
    smooth: bool = True

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor | float:
        """Return the coefficient of the data at ``t``: a tensor shaped like ``t``, or a constant number."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor | float:
        """Return the standard deviation of the noise at ``t``: a tensor shaped like ``t``, or a constant number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()

    # ------------------------------------------------------------------- coefficients: used in the arithmetic of a step

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``alpha(t)`` and ``sigma(t)``, each as a tensor with the dtype of ``t``.

        Each has the same shape as ``t``, or the shape ``(B, *coords)`` if they differ between coordinates. Where other
        methods return coefficients with the shape of ``t``, they return them with the shape ``(B, *coords)`` then.
        """
        if not self.coords:
            return self._tensor(self.alpha(t), t), self._tensor(self.sigma(t), t)
        t = t.reshape(-1, *[1] * len(self.coords))
        shape = (len(t), *self.coords)
        return self._tensor(self.alpha(t), t).expand(shape), self._tensor(self.sigma(t), t).expand(shape)

    @staticmethod
    def _tensor(value: Tensor | float, t: Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.as_tensor(value, dtype=t.dtype, device=t.device).expand(t.shape)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the time derivatives ``alpha'(t)`` and ``sigma'(t)``, each with the same shape as ``t``."""
        _quiet()
        rates: tuple[Tensor, Tensor] = torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[1]
        return rates

    def drift_rate(self, t: Tensor) -> Tensor:
        """Return the drift rate ``f(t) = alpha'/alpha``.

        The result has the same shape as ``t``, and is infinite where alpha is 0.
        """
        return self.rates(t)[0] / self.coefficients(t)[0]

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """Return the squared diffusion coefficient ``g(t)^2 = 2 sigma (sigma' - f sigma)``.

        The result has the same shape as ``t``, and is infinite where alpha is 0.
        """
        (alpha, sigma), (d_alpha, d_sigma) = self.coefficients(t), self.rates(t)
        return 2 * sigma * (d_sigma - d_alpha / alpha * sigma)

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Return the drift ``f(t) x`` of the forward SDE, with the same shape as ``x``."""
        return expand(self.drift_rate(as_time(t, x)), x) * x

    def diffusion(self, t: float | Tensor) -> Tensor:
        """Return the diffusion coefficient ``g(t)`` of the forward SDE, with the same shape as ``t``."""
        t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
        # g^2 >= 0, but rounding can produce a value such as -1e-17 where the noise does not grow.
        return self.diffusion_squared(t).clamp(min=0).sqrt()

    @property
    def finite_g(self) -> bool:
        """Whether g is finite up to ``t_max``, that is, whether any signal is left there."""
        alpha, sigma = self.coefficients(torch.tensor(self.t_max, dtype=torch.float64))
        return bool(informative(alpha.detach(), sigma.detach()).all())

    def marginal(self, x0: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of ``x_t`` given ``x_0``.

        The mean has the same shape as ``x0``, and the standard deviation has the same shape as ``t``.
        """
        alpha, sigma = self.coefficients(as_time(t, x0))
        return expand(alpha, x0) * x0, sigma

    def perturb(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """Return the noisy data ``x_t = alpha x_0 + sigma eps`` at time ``t``, with the same shape as ``x0``."""
        alpha, sigma = self.coefficients(as_time(t, x0))
        return expand(alpha, x0) * x0 + expand(sigma, x0) * eps

    @property
    def prior_std(self) -> float | Tensor:
        """The standard deviation of the Gaussian that approximates the distribution of ``x_t`` at ``t_max``.

        This is a number, or a float64 tensor ``(1, *coords)`` if alpha and sigma differ between coordinates.
        """
        sigma = self.coefficients(torch.tensor(self.t_max, dtype=torch.float64))[1].detach()
        return sigma if self.coords else float(sigma)

    @property
    def prior(self) -> Prior:
        """The Gaussian with standard deviation :attr:`prior_std`, from which sampling starts."""
        return Prior(self.prior_std)

    def scale(self, t: Tensor) -> Tensor:
        """Return the scale ``s = alpha + sigma`` of the straight frame, with the same shape as ``t``."""
        alpha, sigma = self.coefficients(t)
        return alpha + sigma

    def size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the quantity that a shift of the log-SNR preserves (see :mod:`scoresde.sde.modified`).

        The default is the square root of ``alpha^2 + sigma^2``, which is constant on a variance-preserving path.
        Override this method if the path keeps another function of alpha and sigma constant. That function must be
        homogeneous of degree 1. The result has the same shape as ``alpha``.
        """
        return torch.hypot(alpha, sigma)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the path that are learned together with the network, keyed by name.

        The default is an empty dictionary, because most paths have no learned parameters.
        """
        return {}

    # ------------------------------------------------------------------- time variables: used only to choose t

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR ``2 log(alpha/sigma)``, with the same shape as ``t``.

        The log-SNR decreases from the data to the prior. If alpha and sigma differ between coordinates, this is the
        log-SNR of the clock, ``2 log((1 - r)/r)``, with one value for each time.
        """
        alpha, sigma = self.coefficients(t)
        if self.coords:
            r, rest = mean_ratio(alpha, sigma)
            return (2 * (torch.log(rest) - torch.log(r))).reshape(t.shape)
        return 2 * (torch.log(alpha) - torch.log(sigma))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the path has the log-SNR ``log_snr``, with the same shape as ``log_snr``.

        By default, the time is found by bisection to full precision, which works for any monotone log-SNR. The result
        is then float64 and lies in ``[t_min, t_max]``. Override this method if the inverse has a closed form. The
        result of an override need not lie in this interval.
        """
        target = log_snr.to(time_dtype(log_snr.device))
        if self.coords:  # an evaluation of the clock costs more, so fewer are made
            return solve_decreasing(self.log_snr, target.flatten(), self.t_min, self.t_max).reshape(target.shape)
        low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
        for _ in range(64):
            middle = (low + high) / 2
            above = self.log_snr(middle) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2

    def ratio(self, t: Tensor) -> Tensor:
        """Return the time variable ``r = sigma / (alpha + sigma)`` of the straight frame, with the same shape as ``t``.

        The variable r increases from near 0 at the data to near 1 at the prior. If alpha and sigma differ between
        coordinates, this is the clock's r, with one value for each time.
        """
        alpha, sigma = self.coefficients(t)
        return mean_ratio(alpha, sigma)[0].reshape(t.shape) if self.coords else sigma / (alpha + sigma)

    def t_of_ratio(self, r: Tensor) -> Tensor:
        """Return the time at which :meth:`ratio` equals ``r``, with the same shape as ``r``.

        The time is clamped to ``[t_min, t_max]``. The ratios at ``t_min`` and ``t_max`` are mapped to exactly these
        times. On a steep path, r rounds to 1 well before ``t_max``, but r = 1 is still mapped to ``t_max``.
        """
        t = self.t_of_log_snr(2 * (torch.log1p(-r) - torch.log(r))).clamp(self.t_min, self.t_max)
        first, last = self.ratio(r.new_tensor([self.t_min, self.t_max])).detach()
        return torch.where(r >= last, self.t_max, torch.where(r <= first, self.t_min, t))

    def speed(self, t: Tensor) -> Tensor:
        """Return ``dr_k/dr``, the speed of each coordinate's ratio r_k relative to the clock's r.

        The result has the same shape as the coefficients. Without separate coordinates, it is 1.
        """
        if not self.coords:
            return torch.ones_like(t)
        (alpha, sigma), (d_alpha, d_sigma) = self.coefficients(t), self.rates(t)
        size = alpha + sigma
        r, rates = sigma / size, (alpha * d_sigma - d_alpha * sigma) / size.square()
        return rates / align(rate_of_mean(r, rates, mean_ratio(alpha, sigma)[0]), r)

    @property
    def nodes(self) -> Tensor | None:
        """The nodes of a chain in ascending order, float64 ``(N,)``, or ``None`` if time is continuous."""
        return None

    def times(self, use: str) -> tuple[float, float]:
        """Return the smallest and the largest t that training, sampling or the likelihood computation uses.

        The argument ``use`` is ``"train"``, ``"sample"`` or ``"likelihood"``.
        """
        if use not in ("train", "sample", "likelihood"):
            raise UsageError(f"unknown use {use!r}; choose from: train, sample, likelihood")
        if use == "sample" and self.t_sample is not None:
            return self.t_sample, self.t_max
        return self.t_min, self.t_max

    # ------------------------------------------------------------------- self-check

    def finite(self, t0: float, t1: float) -> bool:
        """Return whether the path can be evaluated numerically from ``t0`` to ``t1``.

        The coefficients must be finite, and t must remain finite when it is converted to r and back. The time
        derivatives of alpha and sigma may be infinite, but not NaN. If a solver fails and this method returns false,
        the cause is the path, not the model.
        """
        t = torch.linspace(t0, t1, 1025, dtype=torch.float64)
        values = *self.coefficients(t), self.t_of_ratio(self.ratio(t))
        return all(bool(v.isfinite().all()) for v in values) and not any(bool(v.isnan().any()) for v in self.rates(t))

    def check(self) -> None:
        """Check that alpha and sigma have the correct shape and valid values, and that the log-SNR decreases with t.

        The values of alpha and sigma must be finite and at least 0, and sigma must be above 0 for t > 0.

        Raises:
            UsageError: If the path is not valid. If a value is not valid, the message names the first offending t.
        """
        check_path(self)


@cache
def _quiet() -> None:
    """Import what forward-mode differentiation needs. PyTorch warns of a function that it uses itself there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
