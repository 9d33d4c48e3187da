r"""Damped Langevin dynamics: the reverse of an SDE in position and velocity, for any model of the position alone.

Give every element of a sample x a velocity v with the mass M, and let  u = (x, v/sqrt(M)),  so that both parts come to
rest as N(0, 1). The forward process of critically damped Langevin diffusion (CLD) and of its generalisation (PSLD) is

    du = A u db + sqrt(Q) dw,      A = [[-a, w], [-w, -c]],      Q = diag(2 a, 2 c),      c = a + 2 w,              (1)

with the frictions a of the position and c of the velocity, and the frequency  w = 1/sqrt(M).  The damping is critical,
so  A = -k + w [[1, 1], [-1, -1]]  with  k = (a + c)/2,  where the square of the last matrix is 0, and

    E(b) = exp(A b) = e^(-k b) (1 + w b [[1, 1], [-1, -1]]).                                                        (2)

A process that starts at x_0, with a velocity from N(0, gamma M), is Gaussian:

    u_b = m x_0 + N(0, S),      m = E (1, 0)^T,      S = gamma E (0, 1)^T (0, 1) E^T + int_0^b E(s) Q E(s)^T ds.    (3)

What u says about x_0 is therefore what a single number says,

    y = tau m^T S^-1 u = x_0/tau + eps,      tau = (m^T S^-1 m)^(-1/2),      eps ~ N(0, 1),                         (4)

so the optimal denoiser of u is the denoiser of x at the noise level tau, and the score of u needs no other network:

    score(u) = -S^-1 (u - m x0_hat),      where x0_hat is the model's estimate at  x_t = sigma(t) y,  sigma/alpha = tau.

The rest of u is pure noise: with  n = tau m  and  J = [[0, -1], [1, 0]],

    u = n y + q z,      q = sqrt(det S) J S^-1 n,      z = (J n)^T u / sqrt(det S),      z ~ N(0, 1),               (5)

where z is independent of x_0 and eps. In these terms, the score is  -S^-1 n eps_hat - z J n / sqrt(det S).

The clock b of the process is set by the path of the model: b(t) is where  tau(b) = sigma(t)/alpha(t).  Phase space thus
covers exactly the noise levels of the path, from the largest down, on any path, grid and chain. Equation (5) turns a
state x_t into one in phase space, and equation (4) leads back. Both are exact. With  h = b(t) - b(s),  E = E(h)  and
the covariance R of the noise that is added over h (the integral in equation 3), a step from t down to s is

    q(u_s | u_t, x_0) = N(C (S_s^-1 m_s x_0 + E^T R^-1 u_t), C),      C = (S_s^-1 + E^T R^-1 E)^-1,                 (6)

with x0_hat in place of x_0, as in ancestral sampling. It is of weak order 1, and takes one evaluation.

References:
    Dockhorn, Vahdat and Kreis (2022), Score-based generative modeling with critically-damped Langevin diffusion,
    arXiv:2112.07068: CLD, a = 0. The published configurations have 1/M = 4 and gamma = 0.04.
    Pandey and Mandt (2023), A complete recipe for diffusion generative models, arXiv:2303.01748: PSLD. The published
    configurations have the same M and gamma (called kappa), and a = 0.01 among others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.limits import Checked, Range, ranges
from ..core.noise import Noise
from ..core.registry import closest
from ..core.shapes import as_time, expand
from ..model.estimate import Denoiser
from ..sde.base import SDE, informative
from .base import FixedStep

__all__ = ["KINDS", "Damped", "Phase", "phase_score"]

KINDS = {"cld": 0.0, "psld": 0.01}  # the friction a of the position
FREQUENCY = 2.0  # w, for the mass M = 1/4 of both papers
FORGOTTEN = 60.0  # where k b is this large, nothing is left of the data, because e^(-k b) is below 1e-26
VELOCITY = "velocity"  # the stream of z, when a state becomes one in phase space


@dataclass(frozen=True)
class Damped(Checked):
    """The process of equation (1), with its moments in closed form.

    Clocks b are float64 tensors of shape ``(n,)``.

    Args:
        friction: The friction a of the position.
        gamma: The variance of the velocity at the data, as a fraction of its stationary variance M.
    """

    limits = ranges(friction=Range(0, 100), gamma=Range(0, 1))

    friction: float = 0.0
    gamma: float = 0.04

    @property
    def rate(self) -> float:
        """The rate k at which the state forgets its start."""
        return self.friction + FREQUENCY

    def growth(self, h: Tensor) -> Tensor:
        """Return E over clock intervals ``h``, equation (2), as a tensor of shape ``(n, 2, 2)``."""
        wh = FREQUENCY * h
        return torch.exp(-self.rate * h)[:, None, None] * _matrix(1 + wh, wh, -wh, 1 - wh)

    def spread(self, h: Tensor) -> Tensor:
        """Return the covariance of the noise added over clock intervals ``h``, as a tensor of shape ``(n, 2, 2)``."""
        a, k, w = self.friction, self.rate, FREQUENCY
        c = a + 2 * w
        # The integrals of s^j e^(-2 k s) from 0 to h. No difference of nearly equal numbers is taken for small h.
        order = torch.arange(1.0, 4.0, dtype=torch.float64)[:, None]
        factorials = torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64)
        i0, i1, i2 = factorials * torch.special.gammainc(order, 2 * k * h) / (2 * k) ** order
        across = 4 * w**2 * (i1 - k * i2)
        return _matrix(
            2 * a * i0 + 4 * a * w * i1 + 4 * k * w**2 * i2,
            across, across,
            2 * c * i0 - 4 * c * w * i1 + 4 * k * w**2 * i2,
        )  # fmt: skip

    def moments(self, b: Tensor) -> Moments:
        """Return the moments of u at clocks ``b`` given x_0, equation (3)."""
        grown, noise = self.growth(b), self.spread(b)
        m, e = grown[:, :, 0], grown[:, :, 1]
        # With S = noise + gamma e e^T, both terms below are positive, whereas det S would be a difference for small b.
        turned = torch.stack((e[:, 1], -e[:, 0]), 1)  # adj(e e^T) = turned turned^T
        adjugate = _adjugate(noise)
        det = _det(noise) + self.gamma * _form(e, adjugate, e)
        scale = torch.exp(-2 * self.rate * b)  # det E = turned^T m
        row = (adjugate @ m[:, :, None])[:, :, 0] + self.gamma * scale[:, None] * turned  # adj(S) m
        information = (_form(m, adjugate, m) + self.gamma * scale.square()) / det
        cov = noise + self.gamma * e[:, :, None] * e[:, None, :]
        return Moments(m, cov, _adjugate(cov) / det[:, None, None], row / det[:, None], information.rsqrt(), det)

    def clock(self, tau: Tensor) -> Tensor:
        """Return the clocks b at which u has the noise levels ``tau``, both of shape ``(n,)``.

        The noise level increases with b, because u only loses information about x_0. It is inverted by bisection.
        """
        low, high = torch.full_like(tau, -90.0), torch.full_like(tau, FORGOTTEN / self.rate).log()
        for _ in range(70):
            middle = (low + high) / 2
            below = self.moments(middle.exp()).tau < tau
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).exp()

    def on(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Moments]:
        """Return the clocks ``(n,)`` at which u is as noisy as a path with the coefficients ``alpha`` and ``sigma``.

        The second result is the moments of u there. Where the path has no signal left, neither has u. Where it has no
        noise left, the moments are not used, and belong to some other clock.
        """
        blank, clean = ~informative(alpha, sigma), sigma == 0
        b = self.clock(torch.where(blank | clean, 1.0, sigma / alpha))
        b = torch.where(blank, FORGOTTEN / self.rate, b)
        return b, self.moments(b)


@dataclass(frozen=True)
class Moments:
    """The moments of u given x_0 at n clocks, float64.

    Attributes:
        mean: m, shape ``(n, 2)``.
        cov: S, shape ``(n, 2, 2)``.
        precision: The inverse of S, shape ``(n, 2, 2)``.
        row: ``S^-1 m``, shape ``(n, 2)``.
        tau: The noise level of equation (4), shape ``(n,)``.
        det: The determinant of S, shape ``(n,)``.
    """

    mean: Tensor
    cov: Tensor
    precision: Tensor
    row: Tensor
    tau: Tensor
    det: Tensor

    @property
    def reading(self) -> Tensor:
        """The weights with which y is read from u, equation (4), shape ``(n, 2)``."""
        return self.tau[:, None] * self.row

    @property
    def rest(self) -> Tensor:
        """The weights with which the pure noise z is read from u, equation (5), shape ``(n, 2)``."""
        turned = torch.stack((-self.mean[:, 1], self.mean[:, 0]), 1)
        return (self.tau / self.det.sqrt())[:, None] * turned


@dataclass(frozen=True)
class Phase(FixedStep):
    """Damped Langevin dynamics in position and velocity, with a model that was trained on the position alone.

    The solver starts at the largest noise level of the model, or at any ``t0``, where it draws a velocity for the
    given state. Steps and trajectories show the state on the path of the model, ``(B, *event)``.

    Args:
        steps: Number of steps.
        kind: The process: ``cld`` (only the velocity receives noise) or ``psld`` (the position receives a little too).
        gamma: The variance of the velocity at the data, as a fraction of its stationary variance, from 0 to 1.
        grid: See :class:`~scoresde.solvers.base.FixedStep`.

    >>> from scoresde import GaussianMixture, Noise, VPSDE
    >>> model = GaussianMixture(VPSDE(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.2]))
    >>> Phase(steps=10)(model, torch.zeros(3, 1), noise=Noise.of(3)).x.shape
    torch.Size([3, 1])
    """

    limits = ranges(gamma=Range(0, 1))

    steps: int = 200
    kind: str = "cld"
    gamma: float = 0.04

    needs_score = True
    stochastic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise UsageError(f"Phase: unknown kind {self.kind!r}; {closest(self.kind, KINDS)}", parameter="kind")

    @property
    def process(self) -> Damped:
        """The process in phase space."""
        return Damped(KINDS[self.kind], self.gamma)

    def stepper(self, model: Denoiser, times: Tensor, noise: Noise) -> Callable[[int, Tensor], Tensor]:
        alpha, sigma = scalar_coefficients(model.domain.sde, times.cpu())
        b, moments = self.process.on(alpha, sigma)
        pulls, keeps, kicks = (w.tolist() for w in _weights(self.process, b, moments))
        shows = (sigma[:, None] * moments.reading).tolist()
        clean, clock, scale = (sigma == 0).tolist(), times.tolist(), alpha.tolist()
        u: tuple[Tensor, Tensor]

        def advance(i: int, x: Tensor) -> Tensor:
            nonlocal u
            event = tuple(x.shape[1:])
            if i == 0:
                u = _lift(x, moments, float(sigma[0]), noise.normal(event, 0, VELOCITY, x.dtype))
            x0 = model(x, times[i]).x0
            if clean[i + 1]:  # no noise is left at the end of the last step
                return torch.mul(x0, scale[i + 1])
            z = noise.between(clock[i], clock[i + 1], (2, *event), i, x.dtype).unbind(1)
            x, v = (pulls[i][j] * x0 + _dot(keeps[i][j], u) + _dot(kicks[i][j], z) for j in (0, 1))
            u = x, v
            return _dot(shows[i + 1], u)

        return advance


def phase_score(model: Denoiser, u: Tensor, t: float | Tensor, process: Damped | None = None) -> Tensor:
    """Return the score of the state in phase space, from the model of the position alone.

    Args:
        model: Any denoiser that has a score.
        u: The positions and the velocities divided by sqrt(M), shape ``(B, 2, *event)``.
        t: The time at which the path of the model has the noise level of u, shape ``()`` or ``(B,)``.
        process: The process (default: CLD).

    Returns:
        The gradient of the log density of u, with the same shape as ``u``.

    Raises:
        UsageError: If the model has no score, or if its path has separate coefficients for each element of a sample.
    """
    if not model.domain.has_score:
        raise UsageError("phase_score needs a model with a score, but this one was trained on coupled pairs")
    t = as_time(t, u)
    alpha, sigma = scalar_coefficients(model.domain.sde, t.detach().cpu().double().reshape(-1))
    _, moments = (Damped() if process is None else process).on(alpha, sigma)

    def each(a: Tensor) -> Tensor:  # a coefficient of each row, or of all rows
        return expand(a, u[:, 0])

    def along(row: Tensor) -> Tensor:
        return each(row[:, 0]) * u[:, 0] + each(row[:, 1]) * u[:, 1]

    eps = model(along(sigma[:, None] * moments.reading), t).eps
    z = along(moments.rest)
    return -torch.stack([each(moments.reading[:, i]) * eps + each(moments.rest[:, i]) * z for i in (0, 1)], 1)


def scalar_coefficients(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at times ``t: (n,)``, and reject a path whose coefficients vary within a sample.

    One noise level tau of phase space is then no single time of the path.
    """
    alpha, sigma = (c.detach().double() for c in sde.coefficients(t))
    if alpha.ndim > 1 or sigma.ndim > 1:
        raise UsageError(
            f"Phase: {type(sde).__name__} has separate noise levels for the elements of a sample, but the noise of "
            "phase space has the same level for all of them; use another solver, such as 'sde'",
            parameter="solver",
            value="sde",
        )
    return alpha, sigma


def _lift(x: Tensor, moments: Moments, sigma: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state in phase space, equation (5), that says of x_0 what ``x`` says at the first clock."""
    n, row = moments.tau[0] * moments.mean[0], moments.reading[0]
    q = moments.det[0].sqrt() * torch.stack((-row[1], row[0]))
    return float(n[0] / sigma) * x + float(q[0]) * z, float(n[1] / sigma) * x + float(q[1]) * z


def _weights(process: Damped, b: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the coefficients of the n steps of equation (6),  u <- pull x0_hat + keep u + kick z.

    Their shapes are ``(n, 2)``, ``(n, 2, 2)`` and ``(n, 2, 2)``.
    """
    h = b[:-1] - b[1:]
    noise = process.spread(h)
    back = process.growth(h).mT @ _adjugate(noise) / _det(noise)[:, None, None]
    # From a state without signal to another, there is no clock between them. The second is drawn anew.
    back = torch.where((h > 0)[:, None, None], back, 0.0)
    precision = moments.precision[1:] + back @ process.growth(h)
    det = _det(precision)
    cov = _adjugate(precision) / det[:, None, None]
    # The velocity comes first, so that on a Brownian path its noise is that of the velocity alone.
    v = cov[:, 1, 1].sqrt()
    kick = _matrix(1 / (det.sqrt() * v), cov[:, 0, 1] / v, torch.zeros_like(v), v)
    return (cov @ moments.row[1:, :, None])[:, :, 0], cov @ back, kick


def _dot(row: Sequence[float], u: Sequence[Tensor]) -> Tensor:
    """Return the product of a row and the pair ``u``, element by element, so that no sample depends on another."""
    return row[0] * u[0] + row[1] * u[1]


def _matrix(xx: Tensor, xv: Tensor, vx: Tensor, vv: Tensor) -> Tensor:
    """Return n matrices ``(n, 2, 2)`` from their elements, each of shape ``(n,)``."""
    return torch.stack((xx, xv, vx, vv), -1).reshape(-1, 2, 2)


def _adjugate(a: Tensor) -> Tensor:
    return _matrix(a[:, 1, 1], -a[:, 0, 1], -a[:, 1, 0], a[:, 0, 0])


def _det(a: Tensor) -> Tensor:
    return a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0]


def _form(left: Tensor, a: Tensor, right: Tensor) -> Tensor:
    """Return ``left^T a right`` for n pairs of vectors ``(n, 2)``."""
    return (left[:, :, None] * a * right[:, None, :]).sum((1, 2))
