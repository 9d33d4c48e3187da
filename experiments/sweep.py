"""Check on random paths, data, solvers and tolerances that rows marked ok are accurate, by comparison with references.

    python experiments/sweep.py --cases 1000 --seed 0     # about ten minutes on one CPU core
    python experiments/sweep.py --seed 0 --case 417       # all details of one case

A case is determined by a seed and an index. It consists of a path with its parameters (a built-in path, a shifted path
or one of four user-defined paths), a Gaussian or a mixture in 1 to 64 dimensions with standard deviations from 0.01 to
10, a solver with its options and its number of steps or tolerance, a dtype (float32 or float64), and for deterministic
solvers a direction. Data are in model units. Starting points are drawn from the exact p_t, so that a mismatch of the
prior has no effect. The allowed error of a row depends on the kind of solver.

*Adaptive solvers* (``ode``). For a Gaussian, the reference is the flow in closed form along each axis,

    x(t) = m(t) + sqrt(V(t)/V(t0)) (x(t0) - m(t0)),

where m(t) and V(t) are the mean and the variance. For a mixture, it is the flow as solved by SciPy's DOP853 at rtol
1e-11, with separate formulas in NumPy. The allowed error is 10 tolerances, magnified as the flow magnifies errors. The
flow carries every error to the end, and next to the boundary between two modes it magnifies errors by a factor of
thousands, whatever the method. This factor can be computed. If u is the direction of the observed error, the adjoint
equation d lambda/d phi = -J^T lambda with lambda(end) = u gives the contribution of an error at any time, so that

    |error| <= 10 max_t |lambda(t)| sqrt(D) (atol + rtol max|y(t)|)                                         (1)

in the frame in which the solver keeps its local error within the tolerance. Here D is the number of dimensions, J is
the Jacobian of the flow's velocity, and phi is the angle of (alpha, sigma). Without magnification, |lambda| is 1, and
the bound of equation 1 is 10 tolerances. For engines with one error norm for the whole batch, the bound is multiplied
by the square root of the number of rows.

*Fixed steps*. The allowed error is 10 times the error |x_N - x_2N| 2^p/(2^p - 1) that is predicted by halving the step
size, where p is the order. With too few steps, the results with N and 2N steps say little about the error. If a row
exceeds its allowed error, the number of steps is therefore doubled, up to 32 times the initial number. A case is *late*
if its errors are within the allowed errors only after doublings, and a violation if they never are. A row next to a
boundary may stay in the wrong mode with both N and 2N steps. Its allowed error is the median allowed error of all rows,
magnified by lambda as above. The observed order is log2 of the ratio of the median errors with N and with 2N steps.

*Stochastic solvers*. The data are a Gaussian with a diagonal covariance, for which each step is affine in the state and
the noise. A batch of impulses (one row for the starting point, and one for each draw) gives the exact mean and standard
deviation of the samples, without sampling error. The rule of halving applies to them, with an axis in place of a row.
Correctors with a step of (snr sigma)^2 have a standard deviation that is wrong by up to snr^2 for any number of steps.
The ``ald`` solver is a corrector alone. It lags behind the path by an error that does not follow a power of the number
of steps until that number is very large. It is therefore compared with its own recursion on a Gaussian, derived here
from the published step. The ``original`` solver continues from t_sample to t = 0, and its allowed error includes the
difference between the marginals at these times. The solvers ``adaptive-sde`` and ``torchsde`` and the ``langevin``
corrector are not affine. They are judged by 512 rows. The allowed error is 5 standard errors plus 10 tolerances for
``adaptive-sde``, or plus the error allowed by the rule of halving for ``torchsde``. For ``langevin``, whose error need
not decrease with the number of steps, it is 5 standard errors plus 0.05 plus twice the error of the ``annealed``
corrector.

*Likelihoods*, with the exact divergence. For Gaussians, the reference is the closed form. For mixtures, it is computed
from DOP853 and the densities at both ends. For adaptive solvers, the allowed error is 10 rtol nats per dimension, plus
the effect on log p of an error of 10 tolerances in the trajectory, computed from the gradient of log p with respect to
y(t). For fixed steps, it is given by the rule of halving.

Rounding adds 2e-6 max_t |lambda(t)| |y(t)| in float32, which is the effect of sixteen roundings at the worst time,
carried to the end. In float64, 1e-10 max_t |lambda(t)| |y(t)| is added for the accuracy of the reference.
"""

from __future__ import annotations

import argparse
import math
import time
import traceback
import warnings
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp

from scoresde import (
    EDMSDE,
    SDE,
    SMLD,
    VDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    Multistep,
    Noise,
    ProbabilityFlow,
    RungeKutta,
    SubVPSDE,
    log_likelihood,
)
from scoresde.core.errors import NumericalError, UsageError
from scoresde.core.registry import resolve
from scoresde.core.tables import SOLVERS
from scoresde.sde import DDPM, Shifted
from scoresde.sde.grids import make_grid
from scoresde.solvers import DDIM, EDMHeun, MultistepSDE, Original, PredictorCorrector, Singlestep

F64 = torch.float64
ROWS, FACTOR, DOUBLINGS = 16, 10.0, 5
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-10}

# ---------------------------------------------------------------------------------------------------------------- paths


@dataclass(frozen=True)
class OwnCosine(SDE):
    """A path along a quarter circle: alpha = cos(pi t/2), sigma = sin(pi t/2)."""

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class Powers(SDE):
    """A path whose rates are infinite at the ends if p or q is below 1: alpha = (1 - t)^p, sigma = t^q."""

    p: float
    q: float

    def alpha(self, t):
        return (1 - t) ** self.p

    def sigma(self, t):
        return t**self.q


@dataclass(frozen=True)
class Steep(SDE):
    """A path without a closed-form inverse: alpha = exp(-k t^2/2), sigma^2 = 1 - alpha^2."""

    k: float

    def alpha(self, t):
        return torch.exp(-self.k * t**2 / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.k * t**2))


@dataclass(frozen=True)
class Growing(SDE):
    """A path on which neither alpha + sigma nor alpha^2 + sigma^2 is constant: alpha = exp(-t), sigma = s t."""

    s: float

    def alpha(self, t):
        return torch.exp(-t)

    def sigma(self, t):
        return self.s * t


PATHS = (
    "vp", "subvp", "ve", "cosine", "flow", "edm", "vdm", "ddpm", "smld", "shifted", "own cosine", "powers", "steep",
    "growing",
)  # fmt: skip


def log_uniform(rng, low, high) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def path_of(rng) -> tuple[str, SDE]:
    """Draw the kind of a path and its parameters."""

    def one(kind):
        if kind in ("vp", "subvp"):
            made = VPSDE if kind == "vp" else SubVPSDE
            return made(log_uniform(rng, 0.01, 1), log_uniform(rng, 8, 400))
        if kind == "ve":
            return VESDE(log_uniform(rng, 1e-3, 0.1), log_uniform(rng, 5, 500))
        if kind == "cosine":
            return CosineSDE(float(rng.choice([0.0, 0.008, log_uniform(rng, 1e-4, 0.2)])))
        if kind == "edm":
            return EDMSDE(log_uniform(rng, 5e-4, 0.05), log_uniform(rng, 5, 200), float(rng.uniform(1, 12)))
        if kind == "vdm":
            return VDMSDE(float(rng.uniform(5, 16)), -float(rng.uniform(4, 14)))
        if kind == "ddpm":
            return DDPM(int(rng.integers(100, 1001)), str(rng.choice(["linear", "scaled-linear", "cosine"])))
        if kind == "smld":
            return SMLD(int(rng.integers(100, 1001)), log_uniform(rng, 2e-3, 0.1), log_uniform(rng, 5, 200))
        if kind == "shifted":
            return Shifted(one(str(rng.choice(["vp", "flow", "cosine", "ve"]))), log_uniform(rng, 0.1, 10))
        if kind == "powers":
            return Powers(log_uniform(rng, 0.6, 3), log_uniform(rng, 0.6, 3))
        return {"flow": FlowMatching, "own cosine": OwnCosine}.get(kind, lambda: None)() or (
            Steep(log_uniform(rng, 5, 300)) if kind == "steep" else Growing(log_uniform(rng, 0.5, 50))
        )

    kind = str(rng.choice(PATHS))
    return kind, one(kind)


# ---------------------------------------------------------------------------------------------------------------- truth


@dataclass
class Law:
    """A mixture of K Gaussians in D dimensions and its flow on the circle alpha = cos(phi), sigma = sin(phi), in NumPy.

    Args:
        means: Means of the components, ``(K, D)``.
        values: Eigenvalues of the covariances, ``(K, D)`` or ``(K, 1)``.
        vectors: Eigenvectors of the covariances, ``(K, D, D)``, or ``None`` for the coordinate axes.
        weights: Weights of the components, ``(K,)``.
    """

    means: np.ndarray
    values: np.ndarray
    vectors: np.ndarray | None
    weights: np.ndarray

    @classmethod
    def draw(cls, rng, dims: int, single: bool, along_axes: bool) -> Law:
        spread = lambda *shape: np.exp(rng.uniform(math.log(0.01), math.log(10), shape))  # noqa: E731
        count = 1 if single or rng.random() < 0.4 else int(rng.integers(2, 7))
        means = rng.normal(size=(count, dims)) * log_uniform(rng, 0.1, 3)
        full = along_axes or (rng.random() < 0.5 and (count == 1 or dims <= 16))
        stds = spread(count, dims if full else 1)
        vectors = None
        if full and not along_axes:
            vectors = np.stack([np.linalg.qr(rng.normal(size=(dims, dims)))[0] for _ in range(count)])
        weights = rng.dirichlet(np.full(count, 3.0))
        return cls(means, stds**2, vectors, weights)

    def model(self, sde: SDE) -> GaussianMixture:
        """Return the library's model of the same mixture. It shares only the parameters with this class."""
        means, weights = torch.from_numpy(self.means), torch.from_numpy(self.weights)
        if self.values.shape[1] == 1 and self.means.shape[1] > 1:
            return GaussianMixture(sde, means, torch.from_numpy(self.values[:, 0]).sqrt(), weights)
        vectors = np.eye(self.means.shape[1])[None] if self.vectors is None else self.vectors
        covariances = torch.from_numpy((vectors * self.values[:, None]) @ np.swapaxes(vectors, 1, 2))
        return GaussianMixture(sde, means, None, weights, covariances)

    def _turn(self, v: np.ndarray, back: bool = False) -> np.ndarray:
        if self.vectors is None:
            return v
        return np.einsum("bke,kde->bkd" if back else "bkd,kde->bke", v, self.vectors)

    def _parts(self, y, alpha, sigma):
        residual = self._turn(y[:, None] - alpha * self.means)
        variance = alpha**2 * self.values + sigma**2
        volume = np.log(2 * math.pi * variance).sum(-1) * (residual.shape[-1] / variance.shape[-1])
        joint = np.log(self.weights) - ((residual**2 / variance).sum(-1) + volume) / 2
        top = joint.max(1, keepdims=True)
        return residual, variance, np.exp(joint - top), top[:, 0]

    def velocity(self, phi: float, y: np.ndarray) -> np.ndarray:
        """Compute dy/dphi = cos(phi) eps_hat - sin(phi) x0_hat, ``(B, D)``."""
        alpha, sigma = math.cos(phi), math.sin(phi)
        residual, variance, r, _ = self._parts(y, alpha, sigma)
        r = (r / r.sum(1, keepdims=True))[..., None]
        # The sum over components of (alpha sigma - sigma alpha l) residual/V - sigma mu, where l are the eigenvalues.
        moved = self._turn((1 - self.values) * residual / variance, back=True)
        return (r * (alpha * sigma * moved - sigma * self.means)).sum(1)

    def log_prob(self, x, alpha, sigma) -> np.ndarray:
        _, _, r, top = self._parts(x, alpha, sigma)
        return top + np.log(r.sum(1))

    def score(self, x, alpha, sigma) -> np.ndarray:
        residual, variance, r, _ = self._parts(x, alpha, sigma)
        r = (r / r.sum(1, keepdims=True))[..., None]
        return -(r * self._turn(residual / variance, back=True)).sum(1)

    def start(self, rng, rows: int, alpha: float, sigma: float) -> np.ndarray:
        """Draw starting points from p_t, ``(rows, D)``."""
        k = rng.choice(len(self.weights), rows, p=self.weights)
        z = rng.normal(size=(rows, self.means.shape[1])) * np.sqrt(self.values[k])
        z = z if self.vectors is None else np.einsum("bde,be->bd", self.vectors[k], z)
        return alpha * (self.means[k] + z) + sigma * rng.normal(size=z.shape)

    def push(self, v: np.ndarray, alpha: float, sigma: float, back: float = 1.0) -> np.ndarray:
        """Multiply ``v`` by the standard deviation of one Gaussian along each axis, or divide if ``back`` is -1."""
        turned = self._turn(v[:, None])
        return self._turn(turned * (alpha**2 * self.values + sigma**2) ** (back / 2), back=True)[:, 0]


@dataclass
class Flow:
    """The flow of a mixture from one (alpha, sigma) to another, for given starting points, and its effect on errors."""

    law: Law
    x: np.ndarray
    here: tuple[float, float]
    there: tuple[float, float]

    @cached_property
    def path(self):
        """The solution of DOP853 on the circle, with dense output."""
        shape = self.x.shape
        phi = [math.atan2(s, a) for a, s in (self.here, self.there)]
        start = (self.x / math.hypot(*self.here)).ravel()

        def f(p, y):
            return self.law.velocity(p, y.reshape(shape)).ravel()

        return solve_ivp(f, phi, start, "DOP853", rtol=1e-11, atol=1e-12, dense_output=True)

    @cached_property
    def end(self) -> np.ndarray:
        if len(self.law.means) == 1:
            start = self.law.push(self.x - self.here[0] * self.law.means, *self.here, back=-1.0)
            return self.there[0] * self.law.means + self.law.push(start, *self.there)
        return self.path.y[:, -1].reshape(self.x.shape) * math.hypot(*self.there)

    def adjoint(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return phi ``(n,)``, |lambda| ``(n, B)`` and y ``(n, B, D)`` along the trajectory; lambda ends at u/|u|."""
        shape, knots = self.x.shape, self.path.t[::-1]
        smallest, reach = math.sqrt(self.law.values.min()), 1 + np.abs(self.law.means).max()

        def pull(phi, y, lam):  # J is symmetric; the finite differences are much shorter than any structure of p_t
            size = np.linalg.norm(lam, axis=1, keepdims=True).clip(1e-300)
            variance = (math.cos(phi) * smallest) ** 2 + math.sin(phi) ** 2
            h = 1e-3 * variance / reach
            step = h * lam / size
            return (self.law.velocity(phi, y + step) - self.law.velocity(phi, y - step)) * size / (2 * h)

        lam, sizes = u / np.linalg.norm(u, axis=1, keepdims=True).clip(1e-300), [np.ones(len(u))]
        states = [self.path.sol(knots[0]).reshape(shape)]
        for late, early in pairwise(knots):
            h, middle = late - early, (late + early) / 2
            y0, y1, y2 = states[-1], self.path.sol(middle).reshape(shape), self.path.sol(early).reshape(shape)
            k1 = pull(late, y0, lam)
            k2 = pull(middle, y1, lam + h / 2 * k1)
            k3 = pull(middle, y1, lam + h / 2 * k2)
            k4 = pull(early, y2, lam + h * k3)
            lam = lam + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            sizes.append(np.linalg.norm(lam, axis=1))
            states.append(y2)
        return knots, np.array(sizes), np.array(states)


# ---------------------------------------------------------------------------------------------------------------- cases

ORDERS = {
    "euler": 1, "heun": 2, "rk4": 4, "edm": 2, "ddim": 1, "dpm++2m": 2, "dpm++3m": 3, "deis": 3, "unipc": 3,
    "dpm2s": 2, "dpm3s": 3, "dpm++2s": 2, "dpm++3s": 3,
}  # fmt: skip
AFFINE = ("sde", "ancestral", "sde-dpm", "sa", "er-sde", "em", "heun-sde", "reverse-diffusion", "pc", "ald", "original")
BY_CHANCE = ("adaptive-sde", "torchsde", "phase", "pc-langevin")
LIKELIHOODS = ("coupled", "quadrature", "fixed likelihood")
FIXED = tuple(name for name in SOLVERS if name != "tuned")  # a fitted solver belongs to one run
KINDS = (*FIXED, "pc-langevin", *LIKELIHOODS, *LIKELIHOODS, "ode", "ode", "ode")


@dataclass
class Case:
    """A random case, determined by ``seed`` and ``index``."""

    seed: int
    index: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, self.index])
        self.rng = rng
        self.name = str(rng.choice(KINDS))
        self.dtype = torch.float32 if rng.random() < 0.4 else F64
        self.path, self.sde = path_of(rng)
        while self.name == "original" and not isinstance(self.sde, VPSDE | SubVPSDE | VESDE):
            self.path, self.sde = path_of(rng)
        most = 64 if self.name in ("torchsde", "fixed likelihood") else 128
        self.steps = int(log_uniform(rng, 8, most))
        self.rtol = log_uniform(rng, 1e-5 if self.dtype == torch.float32 else 1e-8, 1e-2)
        self.solver, self.order = self._solver()
        if self.order == 1 and self.name not in (*BY_CHANCE, "original"):
            self.solver = replace(self.solver, steps=3 * self.solver.steps)
        self.stochastic = getattr(self.solver, "stochastic", False)
        dims = int(rng.choice([1, 2, 3, 4, 8, 16, 32, 64]))
        dims = min(dims, 16 if self.name in BY_CHANCE or self.name in LIKELIHOODS else 64)
        self.law = Law.draw(rng, dims, self.stochastic, self.stochastic)
        use = "likelihood" if self.name in LIKELIHOODS else "sample"
        low, high = self.sde.times(use)
        back = self.name in LIKELIHOODS or (not self.stochastic and rng.random() < 0.25)
        self.t0, self.t1 = (low, high) if back else (high, low)
        self.here, self.there = self.at(self.t0), self.at(self.t1)
        self.model = self.law.model(self.sde)

    def at(self, t: float) -> tuple[float, float]:
        alpha, sigma = self.sde.coefficients(torch.tensor(t, dtype=F64))
        return float(alpha), float(sigma)

    def _solver(self):
        rng, n, name = self.rng, self.steps, self.name
        pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
        grid = pick("auto", "auto", "auto", "uniform", "sqrt", "logsnr", "karras")
        level = pick("auto", "auto", "g", "sigma", "er")
        if name == "ode":
            frame, engine = pick("straight", "straight", "straight", "t"), pick(*["own"] * 8, "torchdiffeq", "scipy")
            method = pick("auto", "dopri5", "tsit5", "bosh3") if engine == "own" else "auto"
            rtol = max(self.rtol, 1e-6) if method == "bosh3" else self.rtol
            return ProbabilityFlow(rtol, method=method, engine=engine, frame=frame), 0
        if name in ("coupled", "quadrature"):
            return Likelihood(name, "exact", rtol=max(self.rtol, 1e-7)), 0
        if name == "fixed likelihood":
            scheme, order = pick(("heun", 2), ("rk4", 4), ("midpoint", 2))
            return Likelihood(divergence="exact", steps=n, scheme=scheme), order
        if name in ("euler", "heun", "rk4"):
            frame = pick("straight", "straight", "t", "ve")
            return RungeKutta(n, name, frame, grid=grid), ORDERS[name]
        if name == "edm":
            churn = pick(0.0, 0.0, 10.0, 40.0)
            return EDMHeun(n, churn, grid=pick("karras", grid)), 1 if churn else 2
        if name == "ddim":
            return DDIM(n, pick(0.0, 0.0, 0.5, 1.0), grid=grid), 1
        if name == "multistep":
            order, correct = pick(None, 1, 2, 3, 4, 6), pick(None, False, True)
            variable = pick("x0", "eps", "straight", "v", "gauss")
            claimed = 2 if order is None else order + bool(correct)
            return Multistep(n, variable, order, "exact", correct, grid=grid), claimed
        if name == "singlestep":
            order = pick(1, 2, 3)
            rule = pick("midpoint", "exact", "bh1")
            return Singlestep(n, pick("x0", "eps", "straight", "v", "gauss"), order, rule, grid=grid), order
        if name == "sde":
            return MultistepSDE(
                n, pick("x0", "eps"), pick(1, 2, 3), pick("midpoint", "exact"), pick(False, True),
                eta=pick(0.5, 1.0), level=level, grid=grid,
            ), 1  # fmt: skip
        if name in ("em", "heun-sde"):
            return resolve(name, SOLVERS)(n, pick(0.5, 1.0), pick("auto", "auto", "sigma"), grid=grid), 1
        if name == "ancestral":
            return resolve(name, SOLVERS)(n, pick("posterior", "beta"), grid=grid), 1
        if name == "pc":
            predictor = pick("reverse-diffusion", "ancestral", "em", "ddim")
            return PredictorCorrector(n, predictor, sequence=pick("pc", "cp"), grid=grid), 1
        if name == "pc-langevin":
            return PredictorCorrector(n, pick("reverse-diffusion", "ancestral"), "langevin", grid=grid), 1
        if name == "original":
            predictor = pick("euler-maruyama", "reverse-diffusion")
            n = max(n, 32 if self.path == "ve" else int(self.sde.beta_max) + 1)
            return Original(n, predictor, pick("none", "none", "ald") if self.path != "subvp" else "none"), 1
        if name == "adaptive-sde":
            return resolve(name, SOLVERS)(log_uniform(rng, 5e-3, 0.1), max_nfe=4000), 0
        if name == "torchsde":
            return resolve(name, SOLVERS)(n, pick("euler", "srk")), 1
        return resolve(name, SOLVERS)(n, grid=grid), ORDERS.get(name, 1)

    def __str__(self) -> str:
        law, (a0, s0), (a1, s1) = self.law, self.here, self.there
        low, high, reach = math.sqrt(law.values.min()), math.sqrt(law.values.max()), np.abs(law.means).max()
        kind = "full" if law.vectors is not None else "axes" if law.values.shape[1] > 1 else "round"
        return (
            f"case {self.index}: {self.name} {self.solver}\n    on {self.sde}, t {self.t0:g} to {self.t1:g}, "
            f"(alpha, sigma) ({a0:.3g}, {s0:.3g}) to ({a1:.3g}, {s1:.3g}), {str(self.dtype)[6:]}\n"
            f"    data: {len(law.means)} {kind} component(s) of {law.means.shape[1]} dimensions, spreads "
            f"{low:.3g} to {high:.3g}, means up to {reach:.3g}"
        )

    # ----------------------------------------------------------------------------------------------------------- checks

    def run(self) -> Verdict:
        """Compare the result of the solver with the reference."""
        if self.name in LIKELIHOODS:
            return self.likelihood()
        if self.name in BY_CHANCE:
            return self.by_chance()
        return self.affine() if self.stochastic else self.flow()

    def halved(self, solve, distance, truth, widen, size, most: int) -> Verdict:
        """Judge a solver with fixed steps by the rule of halving (see the module docstring).

        Args:
            solve: A function that returns the result and the solution for a number of steps.
            distance: A function that returns the array of distances between two results.
            truth: The true result.
            widen: A function that returns the allowed errors, including rounding, for a result, its errors and the
                allowed errors so far.
            size: The allowed error above which a row cannot be judged.
            most: The maximum number of steps.
        """
        steps, factor, errors = self.solver.steps, 2**self.order / (2**self.order - 1), []
        now, first = solve(steps)
        for k in range(DOUBLINGS + 1):
            finer, _ = solve(steps << (k + 1))
            error = distance(now, truth)
            errors.append(error)
            allowed = widen(now, error, FACTOR * factor * distance(now, finer))
            if k == 0:
                seen = self.order_seen(error, distance(finer, truth))
            if not (error > allowed).any() or steps << (k + 2) > most:
                break
            now = finer
        return Verdict(first.ok.numpy(), error, allowed, size, first.failures(), k, seen, errors)

    def order_seen(self, error, finer) -> float:
        """Return log2 of the ratio of the median errors, or NaN if rounding dominates the errors."""
        a, b = np.median(error), np.median(finer)
        return float(np.log2(a / b)) if b > (1e-9 if self.dtype == F64 else 1e-3) and math.isfinite(a) else math.nan

    def flow(self) -> Verdict:
        """Judge a deterministic solver by each row, in the units of the circle."""
        start = torch.from_numpy(self.law.start(self.rng, ROWS, *self.here)).to(self.dtype)
        flow = Flow(self.law, start.double().numpy(), self.here, self.there)
        size, dims = math.hypot(*self.there), start.shape[1]
        truth = flow.end / size
        spread = np.linalg.norm(truth - truth.mean(0), axis=1).mean()

        def solved(solver, **watching):
            out = solver(self.model, start, t0=self.t0, t1=self.t1, **watching)
            return out.x.double().numpy() / size, out

        def distance(a, b):
            return np.linalg.norm(a - b, axis=1)

        if self.order:
            return self.halved(
                lambda n: solved(replace(self.solver, steps=n)), distance, truth,
                lambda y, error, allowed: self.widened(flow, y - truth, error, allowed), spread, 2048,
            )  # fmt: skip
        y, out = solved(self.solver)
        tolerance = FACTOR * self.solver.rtol * math.sqrt(dims * (1 if self.solver.engine == "own" else ROWS))

        def on_the_way(states, scale):  # the bound of equation 1 for |lambda| = 1
            return tolerance * (1 / scale + np.abs(states).max(-1))

        error = distance(y, truth)
        allowed = on_the_way(truth, self.frame(math.atan2(*self.there[::-1])))
        allowed = self.widened(flow, y - truth, error, allowed, on_the_way)
        return Verdict(out.ok.numpy(), error, allowed, spread, out.failures(), 0, math.nan, [error])

    def frame(self, phi: float) -> float:
        """Return the factor that converts the state on the circle at ``phi`` to the frame of the solver."""
        if self.solver.frame == "straight":
            return 1 / (math.cos(phi) + math.sin(phi))
        t = self.sde.t_of_log_snr(torch.tensor(2 * math.log(max(1 / math.tan(phi), 1e-300)), dtype=F64))
        return math.hypot(*self.at(float(t.clamp(self.sde.t_min, self.sde.t_max))))

    def widened(self, flow: Flow, off, error, allowed, on_the_way=None) -> np.ndarray:
        """Return ``allowed``, increased by magnification and rounding for the rows that exceed it."""
        bad = np.flatnonzero(error > allowed)
        if not len(bad):
            return allowed
        phi, sizes, states = Flow(flow.law, flow.x[bad], flow.here, flow.there).adjoint(off[bad])
        allowed, typical = allowed.copy(), np.median(allowed)
        if on_the_way is None:
            allowed[bad] = np.maximum(allowed[bad], sizes.max(0) * typical)
        else:
            allowed[bad] = (sizes * on_the_way(states, np.array([self.frame(p) for p in phi])[:, None])).max(0)
        allowed[bad] += ROUNDING[self.dtype] * (sizes * np.linalg.norm(states, axis=2)).max(0)
        return allowed

    def affine(self) -> Verdict:
        """Judge an affine solver by the exact mean and standard deviation of its samples, computed with impulses."""
        law, (alpha, sigma) = self.law, self.there
        mean, spread = alpha * law.means[0], np.sqrt(alpha**2 * law.values[0] + sigma**2)
        bias = getattr(self.solver, "snr", 0.0) ** 2 if getattr(self.solver, "corrector", "none") != "none" else 0.0
        if self.name == "original":
            data = law.means[0], np.sqrt(law.values[0])
            bias = bias + 2 * self.t1 + 2 * np.maximum(np.abs((mean - data[0]) / data[1]), np.abs(spread / data[1] - 1))
            mean, spread = data
        lost = 1e-9 if self.dtype == F64 else 1e-6 * (np.abs(law.means).max() + 1) / np.minimum(spread, 1)

        def distance(a, b):  # the larger of the errors of mean and standard deviation, relative to the latter
            off = np.maximum(np.abs(a[0] - b[0]), np.abs(a[1] - b[1])) / spread
            return np.where(np.isfinite(off), off, np.inf)

        if self.name == "ald":
            truth = self.langevin()
            spread = np.maximum(spread, truth[1])
            now, out = self.moments(self.solver)
            error, allowed = distance(now, truth), np.full(len(spread), 1e-9) + lost * math.sqrt(self.solver.steps)
            return Verdict(out.ok.numpy(), error, allowed, 1.0, out.failures(), 0, math.nan, [error])

        return self.halved(
            lambda n: self.moments(replace(self.solver, steps=n)), distance, (mean, spread),
            lambda _, error, allowed: allowed + bias + lost * math.sqrt(self.solver.steps), 1.0, 1024,
        )  # fmt: skip

    def langevin(self):
        """Return the theoretical mean and standard deviation of annealed Langevin dynamics.

        The step at each node except the first is x <- x + e score + sqrt(2 e) z with e = 2 (A snr sigma)^2, where A is
        the alpha of the previous node divided by that of the node, and z is the noise.
        """
        law, solver = self.law, self.solver
        times = make_grid(solver.grid, self.sde, solver.steps, self.t0, self.t1)
        path = [self.at(t) for t in times.tolist()]
        mean, variance = path[0][0] * law.means[0], path[0][0] ** 2 * law.values[0] + path[0][1] ** 2
        for (before, _), (alpha, sigma) in pairwise(path):
            e = 2 * (before / alpha * solver.snr * sigma) ** 2
            v = alpha**2 * law.values[0] + sigma**2
            for _ in range(solver.corrections):
                mean = mean + e / v * (alpha * law.means[0] - mean)
                variance = (1 - e / v) ** 2 * variance + 2 * e
        return mean, np.sqrt(variance)

    def moments(self, solver):
        """Return the mean and the standard deviation of the samples, ``(D,)`` each, and a solution with the status."""
        mean = torch.from_numpy(self.here[0] * self.law.means)
        spread = torch.from_numpy(np.sqrt(self.here[0] ** 2 * self.law.values + self.here[1] ** 2))
        noise, times = Impulses.of(1), {"t0": self.t0, "t1": self.t1}
        solver(self.model, mean.to(self.dtype), **times, noise=noise)  # this call records the draws
        count = len(noise.order) + 2
        x = mean.repeat(count, 1)
        x[1] += spread[0]
        out = solver(self.model, x.to(self.dtype), **times, noise=replace(noise, indices=torch.arange(count)))
        y = out.x.double().numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            found = y[0], np.sqrt(((y[1:] - y[0]) ** 2).sum(0))
        return found, replace(out, status=out.status[:1].expand(mean.shape[1]))

    def by_chance(self) -> Verdict:
        """Judge a solver by the mean and the standard deviation of 512 samples."""
        rows, law, (alpha, sigma) = 512, self.law, self.there
        x = torch.from_numpy(law.start(self.rng, rows, *self.here)).to(self.dtype)
        truth = alpha * law.means[0], np.sqrt(alpha**2 * law.values[0] + sigma**2)

        def moments(solver):
            out = solver(self.model, x, t0=self.t0, t1=self.t1, noise=Noise.of(rows, self.index))
            y = out.x.double().numpy()[out.ok.numpy()]
            return (y.mean(0), y.std(0)) if len(y) > 1 else truth, out

        def distance(a, b):
            return np.maximum(np.abs(a[0] - b[0]), np.abs(a[1] - b[1])) / truth[1]

        now, out = moments(self.solver)
        if self.name == "adaptive-sde":
            allowed = FACTOR * self.solver.rtol * np.maximum(1, np.abs(truth[0]) + truth[1]) / truth[1]
        elif self.name == "pc-langevin":
            allowed = 0.05 + 2 * distance(moments(replace(self.solver, corrector="annealed"))[0], truth)
        else:
            allowed = FACTOR * distance(now, moments(replace(self.solver, steps=2 * self.solver.steps))[0])
        error, allowed = distance(now, truth), allowed + 5 / math.sqrt(rows)
        ok = np.full(len(error), bool(out.ok.any()))
        return Verdict(ok, error, allowed, 1.0, out.failures(), 0, math.nan, [now, truth])

    def likelihood(self) -> Verdict:
        """Judge a likelihood by the log p of each row, in nats per dimension."""
        law, std = self.law, self.sde.prior_std
        x = torch.from_numpy(law.start(self.rng, ROWS // 2, *self.here)).to(self.dtype)
        flow = Flow(law, x.double().numpy(), self.here, self.there)
        z, dims = flow.end, x.shape[1]
        prior = -(z**2).sum(1) / (2 * std**2) - dims * math.log(std * math.sqrt(2 * math.pi))
        truth = prior + law.log_prob(flow.x, *self.here) - law.log_prob(z, *self.there)

        def solved(how):
            out = log_likelihood(self.model, x, how, check=False)
            return out.log_prob.double().numpy(), out

        def distance(a, b):
            return np.abs(a - b) / dims

        if self.order:
            return self.halved(
                lambda n: solved(replace(self.solver, steps=n)), distance, truth,
                lambda _, error, allowed: self.log_widened(flow, error, allowed), 1.0, 512,
            )  # fmt: skip
        found, out = solved(self.solver)
        error, rtol = distance(found, truth), self.solver.rtol
        allowed = self.log_widened(flow, error, np.full(len(x), FACTOR * rtol), rtol)
        return Verdict(out.ok.numpy(), error, allowed, 1.0, out.failures(), 0, math.nan, [error])

    def log_widened(self, flow: Flow, error, allowed, rtol: float = 0.0) -> np.ndarray:
        """Return ``allowed``, increased for the rows that exceed it by the effect of trajectory errors and rounding.

        The result log p is log p_t(y(t)) + c(z) with c = log prior - log p_T, where z is the end of the trajectory. Its
        gradient at y(t) is therefore the score at y(t) plus the gradient of c at z, carried back to t by the adjoint.
        """
        bad = np.flatnonzero(error > allowed)
        if not len(bad):
            return allowed
        part, size = Flow(flow.law, flow.x[bad], flow.here, flow.there), math.hypot(*self.there)
        last = -part.end / self.sde.prior_std**2 - flow.law.score(part.end, *self.there)
        phi, sizes, states = part.adjoint(last)
        scores = np.array([flow.law.score(y, math.cos(p), math.sin(p)) for p, y in zip(phi, states, strict=True)])
        dims = states.shape[2]
        slope = (np.linalg.norm(scores, axis=2) + sizes * size * np.linalg.norm(last, axis=1)) / dims
        local = math.sqrt(dims) * rtol * ((np.cos(phi) + np.sin(phi))[:, None] + np.abs(states).max(-1))
        allowed = allowed.copy()
        allowed[bad] += FACTOR * (slope * local).max(0)
        allowed[bad] += ROUNDING[self.dtype] * (1 + (slope * np.linalg.norm(states, axis=2)).max(0))
        return allowed

    def local_errors(self) -> list[str]:
        """Describe each step of the ``ode`` solver for the row with the largest error, with its error in tolerances."""
        start = torch.from_numpy(Case(self.seed, self.index)._start()).to(self.dtype)
        flow = Flow(self.law, start.double().numpy(), self.here, self.there)
        out = self.solver(self.model, start, t0=self.t0, t1=self.t1)
        row = int(np.argmax(np.linalg.norm(out.x.double().numpy() - flow.end, axis=1)))
        t, x, lines = self.t0, flow.x[row : row + 1], []

        def look(step):
            nonlocal t, x
            s, y = float(step.t), step.x.double().numpy()
            scale = 1 / sum(self.at(s)) if self.solver.frame == "straight" else 1.0
            off = (y - Flow(self.law, x, self.at(t), self.at(s)).end) * scale
            off = off / (self.solver.rtol * (1 + np.abs(y * scale)))
            lines.append(f"  row {row}, t {t:.6g} to {s:.6g}: {np.sqrt((off**2).mean()):.2g} tolerances")
            t, x = s, y

        self.solver(self.model, start[row : row + 1], t0=self.t0, t1=self.t1, watch=look)
        return lines

    def _start(self):
        return self.law.start(self.rng, ROWS, *self.here)


@dataclass(frozen=True)
class Impulses(Noise):
    """Noise that is 1 in row k + 2 of draw k and 0 elsewhere. Draws are numbered in the order of the calls."""

    order: dict = field(default_factory=dict)

    def normal(self, shape, step=0, stream="solver", dtype=torch.float32):
        k = self.order.setdefault((stream, int(step)), len(self.order))
        z = torch.zeros(len(self.indices), *shape, dtype=dtype)
        z[self.indices == k + 2] = 1
        return z


@dataclass
class Verdict:
    """The result of a case.

    Attributes:
        ok: Whether the solver marked each row as ok.
        error, allowed: The error and the allowed error of each row, at the last number of steps.
        size: The size of the data, in the units of the errors.
        failures: The solver's messages about failed rows.
        doublings: How often the number of steps was doubled before all errors were within the allowed errors.
        seen: The observed order at the first doubling, or NaN if it is hidden by rounding.
        story: Additional details to print.
    """

    ok: np.ndarray
    error: np.ndarray
    allowed: np.ndarray
    size: float
    failures: list[str]
    doublings: int
    seen: float
    story: list

    @property
    def worst(self) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(self.error == 0, 0.0, self.error / self.allowed)[self.ok]
        return float(np.nan_to_num(ratio, nan=math.inf).max(initial=0.0))

    @property
    def blunt(self) -> int:
        """The number of rows that cannot be judged, because the allowed error exceeds the size of the data."""
        return int((self.ok & (self.allowed > self.size)).sum())


def attempt(seed: int, index: int) -> tuple[Case | None, Verdict | None, str]:
    """Run a case, and return the case, its verdict, and a description of any error that was raised."""
    case = None
    try:
        case = Case(seed, index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return case, case.run(), ""
    except UsageError as error:
        return case, None, f"rejected: {error}"
    except NumericalError as error:
        return case, None, f"gave up: {error}"
    except Exception:
        return case, None, "EXCEPTION " + traceback.format_exc(limit=-3)


def one(seed: int, index: int) -> None:
    """Print all details of a case."""
    np.set_printoptions(precision=3, linewidth=120, threshold=64)
    case, verdict, raised = attempt(seed, index)
    print(case, raised, sep="\n")
    if verdict is not None:
        print(f"worst {verdict.worst:.3g} x allowed, {verdict.doublings} doublings, observed order {verdict.seen:.2f}")
        print("error  ", verdict.error, "\nallowed", verdict.allowed, "\nok     ", verdict.ok)
        print(*verdict.failures, *verdict.story, sep="\n")
        if case.name == "ode" and case.solver.engine == "own":
            print(*case.local_errors(), sep="\n")


def report(found: list, raised: list) -> None:
    """Print the table of all cases, then the failed rows and the errors that were raised."""
    groups = defaultdict(list)
    for case, verdict in found:
        groups[case.name].append((case, verdict))
        groups[f"path {case.path}"].append((case, verdict))
    print("\n| | cases | rows ok | failed | not judged | late | observed order | worst, float64 | worst, float32 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key in sorted(groups, key=lambda k: (k.startswith("path"), k)):
        verdicts = [v for _, v in groups[key]]
        ok, rows = (sum(int(count(v)) for v in verdicts) for count in (lambda v: v.ok.sum(), lambda v: len(v.ok)))
        seen = [v.seen for v in verdicts if math.isfinite(v.seen)]
        worst = [max((v.worst for c, v in groups[key] if c.dtype == d), default=math.nan) for d in (F64, torch.float32)]
        order = f"{np.median(seen):.2f}" if seen and not key.startswith("path") else "-"
        print(
            f"| {key} | {len(verdicts)} | {ok} | {rows - ok} | {sum(v.blunt for v in verdicts)} "
            f"| {sum(v.doublings > 0 for v in verdicts)} | {order} | {worst[0]:.2g} | {worst[1]:.2g} |"
        )
    print("\nFailed rows:")
    for case, verdict in found:
        for line in verdict.failures:
            print(f"  case {case.index}, {case.name} on {case.path}, {str(case.dtype)[6:]}: {line}")
    print("\nCases that were rejected, gave up or raised an exception:")
    for index, case, why in raised:
        print(f"  case {index}: {case.name if case else '?'} {why if why.startswith('EXC') else why[:160]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--case", type=int, help="run only the case with this index, and print all its details")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.case is not None:
        return one(args.seed, args.case)
    found, raised, took, began = [], [], [], time.perf_counter()
    for index in range(args.first, args.first + args.cases):
        at = time.perf_counter()
        try:
            case, verdict, why = attempt(args.seed, index)
        except KeyboardInterrupt:  # report the cases that are done
            break
        took.append((time.perf_counter() - at, index))
        if verdict is None:
            raised.append((index, case, why))
            continue
        found.append((case, verdict))
        if verdict.worst > 1:
            print(f"VIOLATION {verdict.worst:.2g} x allowed, {case}", flush=True)
    report(found, raised)
    wrong = [c.index for c, v in found if v.worst > 1]
    slow = ", ".join(f"{index} ({seconds:.0f} s)" for seconds, index in sorted(took)[-5:])
    print(f"\n{len(took)} cases of seed {args.seed} in {time.perf_counter() - began:.0f} s; the slowest were {slow}")
    print(f"{len(wrong)} violations: {wrong}; {sum(w.startswith('EXC') for *_, w in raised)} exceptions")
    print(f"late: {[c.index for c, v in found if v.doublings and v.worst <= 1]}")


if __name__ == "__main__":
    main()
