"""Is a row that is marked ok right? Random paths, data, solvers and tolerances, each against truth.

    python experiments/sweep.py --cases 1000 --seed 0     # about ten minutes on one CPU core
    python experiments/sweep.py --seed 0 --case 417       # the whole story of one case

A case is a function of (seed, number): a path and its parameters (all of the table, shifted ones, and four of a user's
own), a Gaussian or a mixture of 1 to 64 dimensions with spreads from 0.01 to 10, a solver with its options, its steps
or tolerance, float32 or float64, and where it may, the direction. Data are in model units, starts are draws from the
exact p_t, so that the prior's misfit plays no part. What a row may be off by:

*Adaptive solvers* (``ode``), against the flow of a Gaussian in closed form,  x(t) = m(t) + sqrt(V(t)/V(t0)) (x(t0) -
m(t0))  along each axis, or of a mixture by SciPy's DOP853 at 1e-11 with formulas of its own (NumPy): 10 tolerances,
each as large as the flow makes it. An error made on the way is carried to the end by the flow, and next to the border
between two modes that is a factor of thousands for every method. The factor is known: with u the direction of the error
found, the adjoint  d lambda/d phi = -J^T lambda,  lambda(end) = u, says what an error at any time contributes to it, so

    |error| <= 10 max_t |lambda(t)| sqrt(D) (atol + rtol max|y(t)|)                                         (1)

in the frame whose local error the solver holds to its tolerance. lambda(end) = 1: without amplification (1) is 10
tolerances. Engines with one norm for the batch get the root of the number of rows besides.

*Fixed steps*: 10 times the error that the next halving predicts,  |x_N - x_2N| 2^p/(2^p - 1),  p the order. With too
few steps neither N nor 2N says anything: where it fails the steps are doubled on, up to 32 times; if the prediction
then holds the row is *late*, else it is a violation. The order seen is the median of log2(error N/error 2N).

*Stochastic solvers* on Gaussians along the axes, where each step is affine in the state and the noise. A batch of
impulses (one row for the start, one for each draw) gives the exact mean and spread of the samples without any chance,
and these are held to the same rule of halving. Correctors with a step of (snr sigma)^2 have a spread that is wrong by
up to snr^2 for any number of steps. ``original`` ends at t = 0 from t_sample, and may be off by what lies between.
``adaptive-sde``, ``torchsde`` and the corrector ``langevin`` are not affine: 512 rows, 5 standard errors, and 10
tolerances, or the rule of halving.

*Likelihoods*, exact divergence: closed form for Gaussians, DOP853 and the densities of both ends for mixtures. Adaptive:
10 rtol nats per dimension, as large as the flow makes it: an error of the path at t changes log p by
grad_y log p(t) - a closed form too - times the error. Fixed steps: by halving.

Rounding adds, in float32, 2e-6 times max_t |lambda(t)| |y(t)|: sixteen roundings at the worst time, carried to the end.
In float64 the same with 1e-10, the accuracy of the reference.
"""

from __future__ import annotations

import argparse
import math
import time
import traceback
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property

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
from scoresde.solvers import DDIM, EDMHeun, MultistepSDE, Original, PredictorCorrector, Singlestep

F64 = torch.float64
ROWS, FACTOR, DOUBLINGS = 16, 10.0, 5
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-10}

# ---------------------------------------------------------------------------------------------------------------- paths


@dataclass(frozen=True)
class OwnCosine(SDE):
    """A quarter of a circle."""

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class Powers(SDE):
    """alpha = (1 - t)^p, sigma = t^q: rates that are infinite at the ends where p or q are below 1."""

    p: float
    q: float

    def alpha(self, t):
        return (1 - t) ** self.p

    def sigma(self, t):
        return t**self.q


@dataclass(frozen=True)
class Steep(SDE):
    """alpha = exp(-k t^2/2), sigma^2 = 1 - alpha^2, without an inverse of its own."""

    k: float

    def alpha(self, t):
        return torch.exp(-self.k * t**2 / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.k * t**2))


@dataclass(frozen=True)
class Growing(SDE):
    """alpha = exp(-t), sigma = s t: neither alpha + sigma nor alpha^2 + sigma^2 is constant."""

    s: float

    def alpha(self, t):
        return torch.exp(-t)

    def sigma(self, t):
        return self.s * t


def log_uniform(rng, low, high) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def path_of(rng) -> tuple[str, SDE]:
    """A path of some kind, with parameters."""

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


PATHS = (
    "vp", "subvp", "ve", "cosine", "flow", "edm", "vdm", "ddpm", "smld", "shifted", "own cosine", "powers", "steep",
    "growing",
)  # fmt: skip

# ----------------------------------------------------------------------------------------------------------------- truth


@dataclass
class Law:
    """A mixture of Gaussians and its flow, in NumPy, on the circle: alpha = cos(phi), sigma = sin(phi).

    Args:
        means: ``(K, D)``.
        values: Eigenvalues of the covariances, ``(K, D)`` or ``(K, 1)``.
        vectors: Eigenvectors ``(K, D, D)``, or ``None``: the axes.
        weights: ``(K,)``.
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
        """The library's, which shares nothing with this but the numbers."""
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
        """dy/dphi = cos(phi) eps_hat - sin(phi) x0_hat, ``(B, D)``."""
        alpha, sigma = math.cos(phi), math.sin(phi)
        residual, variance, r, _ = self._parts(y, alpha, sigma)
        r = (r / r.sum(1, keepdims=True))[..., None]
        # (alpha sigma - sigma alpha l) residual/V - sigma mu, summed over the components
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
        """Draws from p_t."""
        k = rng.choice(len(self.weights), rows, p=self.weights)
        z = rng.normal(size=(rows, self.means.shape[1])) * np.sqrt(self.values[k])
        z = z if self.vectors is None else np.einsum("bde,be->bd", self.vectors[k], z)
        return alpha * (self.means[k] + z) + sigma * rng.normal(size=z.shape)

    def push(self, v: np.ndarray, alpha: float, sigma: float, back: float = 1.0) -> np.ndarray:
        """Of one Gaussian: x times V^(1/2) along each axis, or with ``back`` = -1 divided by it."""
        turned = self._turn(v[:, None])
        return self._turn(turned * (alpha**2 * self.values + sigma**2) ** (back / 2), back=True)[:, 0]


@dataclass
class Flow:
    """The flow of a law from one (alpha, sigma) to another for some starts, and what happens to errors on it."""

    law: Law
    x: np.ndarray
    here: tuple[float, float]
    there: tuple[float, float]

    @cached_property
    def path(self):
        """DOP853 on the circle, with dense output."""
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
        """phi ``(n,)``, |lambda| ``(n, B)`` and y ``(n, B, D)`` along the way, lambda = u of length 1 at the end."""
        shape, knots = self.x.shape, self.path.t[::-1]
        smallest, reach = math.sqrt(self.law.values.min()), 1 + np.abs(self.law.means).max()

        def pull(phi, y, lam):  # J is symmetric; by differences much shorter than any structure of p_t
            size = np.linalg.norm(lam, axis=1, keepdims=True)
            variance = (math.cos(phi) * smallest) ** 2 + math.sin(phi) ** 2
            h = 1e-3 * variance / reach
            step = h * lam / size
            return (self.law.velocity(phi, y + step) - self.law.velocity(phi, y - step)) * size / (2 * h)

        lam, sizes = u / np.linalg.norm(u, axis=1, keepdims=True).clip(1e-300), [np.ones(len(u))]
        states = [self.path.sol(knots[0]).reshape(shape)]
        for late, early in zip(knots[:-1], knots[1:], strict=True):
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


# ----------------------------------------------------------------------------------------------------------------- cases

ORDERS = {
    "euler": 1, "heun": 2, "rk4": 4, "edm": 2, "ddim": 1, "dpm++2m": 2, "dpm++3m": 3, "deis": 3, "unipc": 3,
    "dpm2s": 2, "dpm3s": 3, "dpm++2s": 2, "dpm++3s": 3,
}  # fmt: skip
AFFINE = ("sde", "ancestral", "sde-dpm", "sa", "er-sde", "em", "heun-sde", "reverse-diffusion", "pc", "ald", "original")
BY_CHANCE = ("adaptive-sde", "torchsde", "pc-langevin")
LIKELIHOODS = ("coupled", "quadrature", "fixed likelihood")
KINDS = (*SOLVERS, "pc-langevin", *LIKELIHOODS, *LIKELIHOODS, "ode", "ode", "ode")


@dataclass
class Case:
    """A case by its number; everything else is drawn from it."""

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
        self.steps = int(log_uniform(rng, 8, 128))
        self.rtol = log_uniform(rng, 1e-5 if self.dtype == torch.float32 else 1e-8, 1e-2)
        self.solver, self.order = self._solver()
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
            order_seen = 2 if order is None else order + bool(correct)
            return Multistep(n, pick("x0", "eps", "straight", "v", "gauss"), order, "exact", correct, grid=grid), order_seen
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
            return resolve(name, SOLVERS)(pick(0.02, 0.05, 0.1), max_nfe=4000), 0
        if name == "torchsde":
            return resolve(name, SOLVERS)(n, pick("euler", "srk")), 1
        return resolve(name, SOLVERS)(n, grid=grid), ORDERS.get(name, 1)

    def __str__(self) -> str:
        law, (a0, s0), (a1, s1) = self.law, self.here, self.there
        kind = "axes" if law.vectors is None and law.values.shape[1] > 1 else "full" if law.vectors is not None else "round"
        return (
            f"case {self.index}: {self.name} {self.solver}\n    on {self.sde}, t {self.t0:g} to {self.t1:g}, (alpha, sigma) "
            f"({a0:.3g}, {s0:.3g}) to ({a1:.3g}, {s1:.3g}), {str(self.dtype)[6:]}\n    data: {len(law.means)} {kind} "
            f"component(s) of {law.means.shape[1]} dimensions, spreads {math.sqrt(law.values.min()):.3g} to "
            f"{math.sqrt(law.values.max()):.3g}, means up to {np.abs(law.means).max():.3g}"
        )

    # ------------------------------------------------------------------------------------------------------------ checks

    def run(self) -> Verdict:
        if self.name in LIKELIHOODS:
            return self.likelihood()
        if self.name in BY_CHANCE:
            return self.by_chance()
        return self.affine() if self.stochastic else self.flow()

    def solved(self, solver, flow: Flow):
        x = torch.from_numpy(flow.x).to(self.dtype)
        out = solver(self.model, x, t0=self.t0, t1=self.t1)
        return out, out.x.double().numpy() / math.hypot(*self.there)

    def flow(self) -> Verdict:
        """A deterministic solver, row by row, on the circle."""
        x = self.law.start(self.rng, ROWS, *self.here)
        x = torch.from_numpy(x).to(self.dtype).double().numpy()
        flow = Flow(self.law, x, self.here, self.there)
        truth, ok = flow.end / math.hypot(*self.there), np.ones(ROWS, bool)
        if self.order:
            errors, found = [], None
            for k in range(DOUBLINGS + 1):
                solver = replace(self.solver, steps=self.steps << k) if k else self.solver
                if found is None:
                    out, found = self.solved(solver, flow)
                    ok = out.ok.numpy()
                finer, y = self.solved(replace(self.solver, steps=self.steps << (k + 1)), flow)
                error, predicted = np.linalg.norm(found - truth, axis=1), np.linalg.norm(found - y, axis=1)
                predicted = predicted * 2**self.order / (2**self.order - 1)
                errors.append(error)
                ratio = self.ratio(flow, found - truth, error, FACTOR * predicted)
                if k == 0:
                    first = out
                    next_error = np.linalg.norm(y - truth, axis=1)
                if not (ratio[ok] > 1).any() or self.steps << (k + 2) > 2048:
                    break
                found, ok = y, finer.ok.numpy()
            seen = np.log2(np.median(errors[0]) / max(np.median(next_error), 1e-300))
            clear = np.median(next_error) > 1e-9 if self.dtype == F64 else np.median(next_error) > 1e-4
            return Verdict(first.ok.numpy(), ratio, first.failures(), k, float(seen) if clear else math.nan, errors)
        out, y = self.solved(self.solver, flow)
        error, dims = np.linalg.norm(y - truth, axis=1), truth.shape[1]
        tolerance = math.sqrt(dims) * FACTOR * (1 if self.solver.engine == "own" else math.sqrt(ROWS))

        def allowed(states, scale):  # of (1), for lambda = 1
            return tolerance * self.rtol_of * (1 / scale + np.abs(states).max(-1))

        end = np.array(self.frame(math.atan2(self.there[1], self.there[0])))
        ratio = self.ratio(flow, y - truth, error, allowed(truth, end), allowed)
        return Verdict(out.ok.numpy(), ratio, out.failures(), 0, math.nan, [error])

    @property
    def rtol_of(self) -> float:
        return self.solver.rtol

    def frame(self, phi: float) -> float:
        """What a unit of the frame's state is on the circle, inverted: the state is y times this."""
        if getattr(self.solver, "frame", "straight") == "straight":
            return 1 / (math.cos(phi) + math.sin(phi))
        t = self.sde.t_of_log_snr(torch.tensor(2 * math.log(max(1 / math.tan(phi), 1e-300)), dtype=F64))
        return math.hypot(*self.at(float(t.clamp(self.sde.t_min, self.sde.t_max))))

    def ratio(self, flow: Flow, off, error, allowed, on_the_way=None) -> np.ndarray:
        """Error by what is allowed, for each row; the adjoint is asked only where it matters."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(error == 0, 0.0, error / allowed)
        bad = np.flatnonzero(np.nan_to_num(ratio, nan=0.0) > 1)
        if not len(bad):
            return ratio
        part = Flow(flow.law, flow.x[bad], flow.here, flow.there)
        phi, sizes, states = part.adjoint(np.nan_to_num(off[bad]))
        floor = ROUNDING[self.dtype] * (sizes * np.linalg.norm(states, axis=2)).max(0)
        if on_the_way is not None:
            scale = np.array([self.frame(p) for p in phi])[:, None]
            allowed = allowed.copy()
            allowed[bad] = (sizes * on_the_way(states, scale)).max(0)
        ratio[bad] = error[bad] / (allowed[bad] + floor)
        return ratio

    def affine(self) -> Verdict:
        """Mean and spread of an affine solver's samples, exactly, by impulses."""
        law, first, errors = self.law, None, []
        mean, spread = self.there[0] * law.means[0], np.sqrt(self.there[0] ** 2 * law.values[0] + self.there[1] ** 2)
        bias, snr = 0.0, getattr(self.solver, "snr", 0.0) if getattr(self.solver, "corrector", "none") != "none" else 0.0
        target = mean, spread
        if self.name == "original":
            target = law.means[0], np.sqrt(law.values[0])
            bias = np.maximum(np.abs(mean - target[0]) / target[1], np.abs(spread / target[1] - 1)).max() * 2
            bias += 2 * self.t1
        bias += snr**2
        rounding = 1e-9 if self.dtype == F64 else 1e-6 * (np.abs(law.means).max() + 1) / min(target[1].min(), 1)
        for k in range(DOUBLINGS + 1):
            if first is None:
                out, now = self.moments(self.solver if not k else replace(self.solver, steps=self.steps << k))
                first = out
            finer, then = self.moments(replace(self.solver, steps=self.solver.steps << (k + 1)))
            error = max(np.abs(now[0] - target[0]).max(), 0) if False else _off(now, target)
            predicted = 2 * _off(now, then, target[1])
            errors.append(error)
            ratio = error / (FACTOR * predicted + bias + rounding * math.sqrt(self.solver.steps << k))
            if k == 0:
                seen = math.log2(error / max(_off(then, target), 1e-300)) if 0 < error < math.inf else math.nan
                clear = _off(then, target) > 1e-3
            if not ratio > 1 or self.solver.steps << (k + 2) > 1024:
                break
            now = then
        return Verdict(np.array([bool(first.all())]), np.array([ratio]), [], k, seen if clear else math.nan, errors)

    def moments(self, solver):
        dims, sde = self.law.means.shape[1], self.sde
        draws = (solver.steps + 1) * 12
        probe = Impulses.of(draws)
        means = torch.from_numpy(self.here[0] * self.law.means)
        start = np.sqrt(self.here[0] ** 2 * self.law.values + self.here[1] ** 2)
        x = means.repeat(draws + 2, 1)
        x[1] += torch.from_numpy(start[0])
        # A first run says which draws are made, so that there is a row for each and no more.
        solver(self.model, x[:1].to(self.dtype), t0=self.t0, t1=self.t1, noise=probe.only(0))
        count = len(probe.order)
        x, noise = x[: count + 2], probe.only(count + 2)
        out = solver(self.model, x.to(self.dtype), t0=self.t0, t1=self.t1, noise=noise)
        y = out.x.double().numpy()
        assert y.shape == (count + 2, dims) and sde is self.sde
        with np.errstate(over="ignore", invalid="ignore"):
            return out.ok.numpy(), (y[0], np.sqrt(((y[1:] - y[0]) ** 2).sum(0)))

    def by_chance(self) -> Verdict:
        """Mean and spread of 512 samples."""
        rows, law = 512, self.law
        x = torch.from_numpy(law.start(self.rng, rows, *self.here)).to(self.dtype)
        mean, spread = self.there[0] * law.means[0], np.sqrt(self.there[0] ** 2 * law.values[0] + self.there[1] ** 2)

        def moments(solver):
            out = solver(self.model, x, t0=self.t0, t1=self.t1, noise=Noise.of(rows, self.index))
            y = out.x.double().numpy()[out.ok.numpy()]
            return out, (y.mean(0), y.std(0)) if len(y) > 1 else None

        out, now = moments(self.solver)
        if now is None:
            return Verdict(out.ok.numpy(), np.zeros(rows), out.failures(), 0, math.nan, [])
        chance = 5 * spread / math.sqrt(len(x) / 1.0)
        off = np.maximum(np.abs(now[0] - mean), np.abs(now[1] - spread))
        if self.name == "adaptive-sde":
            allowed = FACTOR * self.solver.rtol * np.maximum(1, np.abs(mean) + spread)
        else:
            _, then = moments(replace(self.solver, steps=4 * self.solver.steps))
            allowed = FACTOR * np.maximum(np.abs(now[0] - then[0]), np.abs(now[1] - then[1]))
            if self.name == "pc-langevin":  # two wrong spreads may differ by much: no more than the corrector's bias
                allowed = np.minimum(allowed, spread) + 0.05 * spread
        ratio = float((off / (allowed + chance)).max())
        return Verdict(out.ok.numpy(), np.full(rows, ratio), out.failures(), 0, math.nan, [now, (mean, spread)])

    def likelihood(self) -> Verdict:
        """log p, row by row, in nats per dimension."""
        rows, law = ROWS // 2, self.law
        x = torch.from_numpy(law.start(self.rng, rows, *self.here)).to(self.dtype)
        flow = Flow(law, x.double().numpy(), self.here, self.there)
        z, dims = flow.end, x.shape[1]
        std = self.sde.prior_std
        prior = -(z**2).sum(1) / (2 * std**2) - dims * math.log(std * math.sqrt(2 * math.pi))
        truth = prior + law.log_prob(flow.x, *self.here) - law.log_prob(z, *self.there)

        def solve(how):
            out = log_likelihood(self.model, x, how, check=False)
            return out, out.log_prob.double().numpy()

        errors = []
        if self.order:
            found = first = None
            for k in range(DOUBLINGS + 1):
                if found is None:
                    first, found = solve(self.solver)
                _, finer = solve(replace(self.solver, steps=self.steps << (k + 1)))
                error = np.abs(found - truth) / dims
                predicted = np.abs(found - finer) / dims * 2**self.order / (2**self.order - 1)
                errors.append(error)
                ratio = self.log_ratio(flow, error, FACTOR * predicted)
                if k == 0:
                    next_error = np.abs(finer - truth) / dims
                if not (ratio[np.isfinite(found)] > 1).any() or self.steps << (k + 2) > 1024:
                    break
                found = finer
            seen = np.log2(np.median(errors[0]) / max(np.median(next_error), 1e-300))
            clear = np.median(next_error) > (1e-9 if self.dtype == F64 else 1e-4)
            return Verdict(first.ok.numpy(), ratio, first.failures(), k, float(seen) if clear else math.nan, errors)
        out, found = solve(self.solver)
        error = np.abs(found - truth) / dims
        ratio = self.log_ratio(flow, error, np.full(rows, FACTOR * self.solver.rtol), self.solver.rtol)
        return Verdict(out.ok.numpy(), ratio, out.failures(), 0, math.nan, [error])

    def log_ratio(self, flow: Flow, error, allowed, rtol=None) -> np.ndarray:
        """Error of log p by what is allowed: the adjoint is the gradient of log p, known in closed form up to z."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(error == 0, 0.0, error / allowed)
        bad = np.flatnonzero(np.nan_to_num(ratio, nan=0.0) > 1)
        if not len(bad):
            return ratio
        part = Flow(flow.law, flow.x[bad], flow.here, flow.there)
        z, std = part.end, self.sde.prior_std
        # log p(x) = log p_t(y(t)) + c(z), c = log prior(z) - log p_T(z): the gradient at y(t) is the score there, and
        # what c's gradient at z becomes on the way back.
        last = -z / std**2 - flow.law.score(z, *self.there)
        unit = np.linalg.norm(last, axis=1) * math.hypot(*self.there)
        phi, sizes, states = part.adjoint(last)
        scores = np.array([np.linalg.norm(flow.law.score(y, math.cos(p), math.sin(p)), axis=1) for p, y in zip(phi, states, strict=True)])
        dims = states.shape[2]
        slope = (scores + sizes * unit) / dims
        allowed = allowed + ROUNDING[self.dtype] * (1 + (slope * np.linalg.norm(states, axis=2)).max(0).repeat(1)) if len(bad) == len(error) else allowed.copy()
        if len(bad) != len(error):
            allowed[bad] += ROUNDING[self.dtype] * (1 + (slope * np.linalg.norm(states, axis=2)).max(0))
        if rtol is not None:
            scale = (np.cos(phi) + np.sin(phi))[:, None]
            local = math.sqrt(dims) * rtol * (scale + np.abs(states).max(-1))
            allowed[bad] += FACTOR * (slope * local).max(0)
        ratio[bad] = error[bad] / allowed[bad]
        return ratio


def _off(found, target, spread=None) -> float:
    """The larger of the errors of mean and spread, in units of the spread."""
    unit = target[1] if spread is None else spread
    off = float(max((np.abs(found[0] - target[0]) / unit).max(), (np.abs(found[1] - target[1]) / unit).max()))
    return off if math.isfinite(off) else math.inf


@dataclass(frozen=True)
class Impulses(Noise):
    """Noise that is 0, but for draw number k in row k + 2, which is 1; draws are numbered as they come."""

    order: dict = field(default_factory=dict)

    @classmethod
    def of(cls, count: int) -> Impulses:
        return cls(0, torch.arange(1))

    def only(self, rows: int) -> Impulses:
        return replace(self, indices=torch.arange(rows or 1), order=self.order)

    def rows(self, index):
        return replace(self, indices=self.indices[index], order=self.order)

    def normal(self, shape, step=0, stream="solver", dtype=torch.float32):
        k = self.order.setdefault((stream, int(step)), len(self.order))
        z = torch.zeros(len(self.indices), *shape, dtype=dtype)
        z[self.indices == k + 2] = 1
        return z


@dataclass
class Verdict:
    """What came of a case.

    Attributes:
        ok: What the solver said of each row.
        ratio: Error by what is allowed, for each row, at the last number of steps.
        failures: What it said of the others.
        doublings: How often the steps were doubled until the prediction held.
        seen: The order seen at the first doubling, NaN where rounding hides it.
        errors: For the story.
    """

    ok: np.ndarray
    ratio: np.ndarray
    failures: list[str]
    doublings: int
    seen: float
    errors: list

    @property
    def worst(self) -> float:
        ok = self.ok if len(self.ok) == len(self.ratio) else np.ones(len(self.ratio), bool)
        return float(np.nan_to_num(self.ratio[ok], nan=math.inf).max(initial=0.0))


def attempt(seed: int, index: int) -> tuple[Case | None, Verdict | None, str]:
    """A case, its verdict, or what was raised."""
    case = None
    try:
        case = Case(seed, index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return case, case.run(), ""
    except UsageError as error:
        return case, None, f"refused: {error}"
    except NumericalError as error:
        return case, None, f"gave up: {error}"
    except Exception:
        return case, None, "EXCEPTION " + traceback.format_exc(limit=-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="one case only, with all there is to say of it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.case is not None:
        case, verdict, raised = attempt(args.seed, args.case)
        print(case, raised or "", sep="\n")
        if verdict:
            np.set_printoptions(precision=3, linewidth=140)
            print(f"ok {verdict.ok}\nratio {verdict.ratio}\ndoublings {verdict.doublings}, order seen {verdict.seen:.2f}")
            print(*verdict.failures, *verdict.errors, sep="\n")
        return
    table, wrong, late, raised_by, took = defaultdict(list), [], [], Counter(), []
    examples = {}
    for index in range(args.first, args.first + args.cases):
        began = time.perf_counter()
        case, verdict, raised = attempt(args.seed, index)
        took.append((time.perf_counter() - began, index))
        if verdict is None:
            key = raised.strip().splitlines()[-1][:100] if raised.startswith("EXC") else " ".join(raised.split()[:9])
            key = f"{case.name if case else '?'}: {key}"
            raised_by[key] += 1
            examples.setdefault(key, (index, case, raised))
        else:
            for key in (case.name, f"path {case.path}"):
                table[key].append((case, verdict))
            if verdict.worst > 1:
                wrong.append((case, verdict))
            elif verdict.doublings:
                late.append(index)
        if verdict is not None and verdict.worst > 1:
            print(f"VIOLATION {verdict.worst:.2g} x allowed, order seen {verdict.seen:.2f}\n  {case}", flush=True)
    print("\n| | cases | rows ok | failed | late | order seen | worst, float64 | worst, float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for key in sorted(table, key=lambda k: (k.startswith("path"), k)):
        found = table[key]
        ok, total = sum(int(v.ok.sum()) for _, v in found), sum(len(v.ok) for _, v in found)
        seen = [v.seen for _, v in found if math.isfinite(v.seen)]
        worst = {d: [v.worst for c, v in found if c.dtype == d] for d in (F64, torch.float32)}
        orders = f"{np.median(seen):.2f}" if seen and not key.startswith("path") else "-"
        print(
            f"| {key} | {len(found)} | {ok} | {total - ok} | {sum(v.doublings > 0 for _, v in found)} | {orders} | "
            + " | ".join(f"{max(w):.2g}" if w else "-" for w in worst.values()) + " |"
        )
    reasons = Counter()
    for found in (table[k] for k in table if not k.startswith("path")):
        for case, verdict in found:
            for line in verdict.failures:
                reasons[f"{case.name}, {str(case.dtype)[6:]}: {line.split(': ', 1)[1]}"] += int(line.split()[0])
    print("\nFailed rows:", *(f"  {n} {why}" for why, n in reasons.most_common()), sep="\n")
    print("\nRefused, given up or raised:")
    for key, n in raised_by.most_common():
        index, case, raised = examples[key]
        print(f"  {n} x {key} (case {index})")
        if raised.startswith("EXC"):
            print(raised, case)
    print(f"\n{args.cases} cases of seed {args.seed}, {sum(t for t, _ in took):.0f} s; {len(wrong)} violations in cases", end=" ")
    print(*(c.index for c, _ in wrong) or ["-"], f"; {len(late)} late; slowest", *(f"{i} ({t:.1f} s)" for t, i in sorted(took)[-5:]))


if __name__ == "__main__":
    main()
