"""Paths and exact models that several test files share; what solvers share is in ``solving``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde import (
    EDM,
    SDE,
    VESDE,
    VPSDE,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    LogLikelihood,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
)
from scoresde.core.shapes import expand
from scoresde.model.estimate import Denoiser, Domain, Estimate, Wrapped
from scoresde.nn import MLP

REFERENCE = json.loads((Path(__file__).parent / "reference" / "score_sde.json").read_text())
CHECKS = REFERENCE["checks"]
F64 = torch.float64


@dataclass(frozen=True)
class UserCosine(SDE):
    """A user's SDE: alpha and sigma, nothing else."""

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class UserVE(SDE):
    """A user's SDE with a constant alpha, returned as a plain number."""

    top: float = 10.0

    def alpha(self, t):
        return 1

    def sigma(self, t):
        return self.top * t


PUBLISHED = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
FOUR = {**PUBLISHED, "flow": FlowMatching()}
ALL = {**FOUR, "user_cosine": UserCosine(), "user_ve": UserVE()}


def ring(sde: SDE, std: float = 0.15, radius: float = 1.3) -> GaussianMixture:
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    return GaussianMixture(sde, radius * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), std, dtype=F64))


def mixture_1d(sde: SDE) -> GaussianMixture:
    expected = CHECKS["C14"]["expected"]
    means, stds, weights = (torch.tensor(expected[k], dtype=F64) for k in ("means", "stds", "weights"))
    return GaussianMixture(sde, means[:, None], stds, weights)


def skewed(sde: SDE) -> GaussianMixture:
    """Three Gaussians in three dimensions with covariances of their own."""
    root = normals(3, 3, 3, seed=5) * 0.3
    return GaussianMixture(
        sde,
        means=normals(3, 3, seed=6),
        covariances=root @ root.mT + 0.01 * torch.eye(3, dtype=F64),
        weights=torch.tensor([0.2, 0.3, 0.5], dtype=F64),
    )


def gaussian(sde: SDE, dims: int = 4, mean: float = 0.3, std: float = 0.5) -> GaussianMixture:
    return GaussianMixture(sde, torch.full((1, dims), mean, dtype=F64), torch.tensor([std], dtype=F64))


def gaussian_flow(model: GaussianMixture, z: Tensor, t0: float, t1: float) -> Tensor:
    """The probability flow of one Gaussian in closed form: x - alpha mu is scaled by the marginal's std."""
    (a0, s0), (a1, s1) = (model.domain.sde.coefficients(torch.tensor(t, dtype=F64)) for t in (t0, t1))
    v0, v1 = (a0 * model.stds[0]) ** 2 + s0**2, (a1 * model.stds[0]) ** 2 + s1**2
    return a1 * model.means[0] + (z - a0 * model.means[0]) * torch.sqrt(v1 / v0)


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dop853(model: Denoiser, x: Tensor, t0: float, t1: float, tolerance: float = 1e-11) -> Tensor:
    """The probability flow in its own time t, solved as one system with SciPy: the oracle for our solvers."""

    def f(t: float, y: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(y).reshape(x.shape), torch.tensor(t, dtype=F64)).velocity.flatten().numpy()

    solved = solve_ivp(f, (t0, t1), x.flatten().numpy(), "DOP853", rtol=tolerance, atol=tolerance)
    assert solved.success
    return torch.from_numpy(solved.y[:, -1]).reshape(x.shape)


@dataclass(frozen=True)
class Watched(Wrapped):
    """A denoiser that notes every time it is asked at, and how many rows were asked."""

    times: list
    evaluations: list

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        self.times.append(torch.as_tensor(t).reshape(-1))
        self.evaluations.append(len(x))
        return self.model(x, t)


@dataclass(frozen=True)
class Poisoned(Wrapped):
    """A denoiser that says NaN for the rows ``bad``, bool ``(B,)``, below t = 1/2."""

    bad: Tensor

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        e = self.model(x, t)
        wrong = expand(self.bad & (torch.as_tensor(t) < 0.5), x)
        return replace(e, x0=e.x0.masked_fill(wrong, torch.nan), eps=e.eps.masked_fill(wrong, torch.nan))

    def rows(self, index: Tensor) -> Poisoned:
        return replace(self, model=self.model.rows(index), bad=self.bad[index])


@dataclass(frozen=True)
class OnNodes(Wrapped):
    """A denoiser that knows the nodes of its chain only, as a trained one does."""

    @property
    def domain(self) -> Domain:
        return replace(self.model.domain, nodes=self.model.domain.sde.nodes)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        return self.model(x, t)


def watched(model: Denoiser) -> Watched:
    return Watched(model, [], [])


def full_covariance(sde: SDE, dims: int) -> GaussianMixture:
    """One Gaussian whose axes are not those of the coordinates, with standard deviations from 0.1 to 0.9."""
    root = normals(dims, dims, seed=5) * 0.4 / math.sqrt(dims)
    covariance = root @ root.mT + 0.02 * torch.eye(dims, dtype=F64)
    return GaussianMixture(sde, 0.3 * normals(1, dims, seed=6), covariances=covariance[None])


def collinear(sde: SDE, dims: int = 8) -> GaussianMixture:
    """Two Gaussians on a line: one coordinate with two modes, the others Gaussian."""
    axis = torch.nn.functional.normalize(normals(1, dims), dim=1)
    return GaussianMixture(sde, torch.cat([-0.8 * axis, 0.8 * axis]), torch.full((2,), 0.3, dtype=F64))


def latent(model: GaussianMixture, x: Tensor) -> Tensor:
    """Where the flow of one Gaussian ends: along each axis it scales by the ratio of the standard deviations."""
    low, high = model.domain.sde.times("likelihood")
    (a0, s0), (a1, s1) = (model.domain.sde.coefficients(torch.tensor(t, dtype=F64)) for t in (low, high))
    values, vectors = model.axes
    gain = torch.sqrt((a1**2 * values[0] + s1**2) / (a0**2 * values[0] + s0**2))
    away = x - a0 * model.means[0]
    away = away * gain if vectors is None else ((away @ vectors[0]) * gain) @ vectors[0].mT
    return a1 * model.means[0] + away


def flow_log_prob(model: GaussianMixture, x: Tensor, z: Tensor) -> Tensor:
    """``log prior(z) + log p_low(x) - log p_high(z)``: the density of an exact model's flow that takes x to z."""
    low, high = model.domain.sde.times("likelihood")
    return model.domain.sde.prior.log_prob(z) + model.log_prob(x, low) - model.log_prob(z, high)


@dataclass(frozen=True)
class Louder(Wrapped):
    """A denoiser whose score is too large by a factor."""

    factor: float

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        estimate = self.model(x, t)
        alpha, sigma = (expand(c, x) for c in self.domain.sde.coefficients(estimate.t))
        eps = self.factor * estimate.eps
        return Estimate(x, estimate.t, (x - sigma * eps) / alpha, eps, self.domain.sde)


def small_network(dims: int = 3, classes: int = 0, seed: int = 0) -> ScoreModel:
    """A network with weights at random, in float64: a flow that is nobody's closed form."""
    torch.manual_seed(seed)
    network = MLP(dims=dims, width=8, blocks=1, classes=classes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return ScoreModel(network, UserCosine(), EDM(), classes=classes).double().eval()


def density(model: Denoiser, x: Tensor, **options: object) -> LogLikelihood:
    """``log_likelihood`` with the options of the likelihood and of the call in one table."""
    names = {f.name for f in fields(Likelihood)}
    how = Likelihood(**{k: v for k, v in options.items() if k in names})
    return log_likelihood(model, x, how, **{k: v for k, v in options.items() if k not in names})
