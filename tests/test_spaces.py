"""Spaces: coordinates in which a path is stated, held against closed forms and against the published SDEs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoresde import SDE, VPSDE, Condition, Eps, FlowMatching, GaussianMixture, Likelihood, Noise, ScoreModel, sample
from scoresde.codec import (
    Affine,
    Basis,
    Codec,
    Composed,
    Levels,
    Log,
    Masked,
    Relative,
    Space,
    Symmetric,
    Whitened,
    ZeroMean,
    as_affine,
    digest,
    from_dict,
    parse_spaces,
    to_dict,
)
from scoresde.codec.basis import basis_matrix
from scoresde.codec.whitened import kernel_matrix
from scoresde.core.errors import CheckpointError, DataError, UsageError
from scoresde.core.registry import build
from scoresde.core.tables import SOLVERS
from scoresde.likelihood import elbo
from scoresde.likelihood.problem import Problem
from scoresde.model.estimate import Denoiser, Supported
from scoresde.ode.integrate import integrate
from scoresde.solvers import Ancestral, EulerMaruyama, MultistepSDE, ProbabilityFlow

F64 = torch.float64
TIGHT = Likelihood(rtol=1e-9)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def scores(
    codec: Codec, model: Denoiser, x: Tensor, condition: Condition | None = None, how: Likelihood = TIGHT
) -> Tensor:
    return how(model, x, None, codec, dtype=F64, check=False, condition=condition).log_prob


def gaussian(x: Tensor, var: Tensor | float, mean: Tensor | float = 0.0) -> Tensor:
    """The log density of independent Gaussians, summed over each row."""
    var = torch.as_tensor(var, dtype=F64).expand(x.shape)
    return -((x - mean).square() / var + torch.log(2 * math.pi * var)).flatten(1).sum(1) / 2


def points(count: int, n: int, d: int, seed: int = 0) -> Tensor:
    x = normals(count, n, d, seed=seed)
    return x - x.mean(1, keepdim=True)


# ------------------------------------------------------------------------------------------------------- the maps

MASK = torch.arange(5)[None, :, None] < torch.tensor([3, 4, 5])[:, None, None]
ROWS = Condition(mask=MASK.expand(3, 5, 2))
MAPS: dict[str, tuple[Codec, Callable[[], Tensor], Condition | None]] = {
    "relative": (Relative(), lambda: normals(3, 2, 4), Condition(image=normals(3, 2, 4, seed=1))),
    "dct": (Basis("dct"), lambda: normals(3, 2, 5, 3), None),
    "fft": (Basis("fft"), lambda: normals(3, 2, 4, 5), None),
    "haar": (Basis("haar"), lambda: normals(3, 1, 7, 6), None),
    "one": (Basis("haar"), lambda: normals(3, 1, 1, 1), None),
    "pca": (Basis("pca").fitted(normals(50, 4, 3)), lambda: normals(3, 4, 3), None),
    "exponential": (Whitened("exponential:0.3"), lambda: normals(3, 2, 6), None),
    "matrix": (Whitened([[2.0, 0.5], [0.5, 1.0]]), lambda: normals(3, 2), None),
    "points": (ZeroMean(), lambda: points(3, 5, 3), None),
    "columns": (ZeroMean(1), lambda: points(3, 5, 3).mT, None),
    "symmetric": (Symmetric(), lambda: normals(3, 4, 4) + normals(3, 4, 4).mT, None),
    "no diagonal": (
        Symmetric(False),
        lambda: (normals(3, 2, 4, 4) + normals(3, 2, 4, 4).mT) * (1 - torch.eye(4)),
        None,
    ),
    "masked": (Masked(), lambda: torch.where(ROWS.mask, normals(3, 5, 2), 0), ROWS),  # type: ignore[arg-type]
    "log": (Log(0.3, 2.0), lambda: normals(3, 4).exp(), None),
    "both": (Composed((Log(), Basis("dct"))), lambda: normals(3, 4).exp(), None),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_space_can_be_undone_shown_and_saved(name: str) -> None:
    codec, make, known = MAPS[name]
    x = make()
    m = codec.to_model(x, known)
    assert tuple(m.shape[1:]) == codec.model_shape(tuple(x.shape[1:]))
    torch.testing.assert_close(codec.to_data(m, known), x, rtol=1e-12, atol=1e-12)
    shown = codec.show(m, known)
    assert shown.shape == x.shape
    torch.testing.assert_close(codec.hide(shown, known), m, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(codec.show(2 * m + 1, known), 2 * shown + codec.show(torch.ones_like(m), known))
    codec.check(x, known)
    again = from_dict(to_dict(codec))
    assert again == codec and digest(again) == digest(codec)
    torch.testing.assert_close(again.to_model(x, known), m, rtol=0, atol=0)
    m32 = codec.to_model(x.float(), known)
    assert m32.dtype == torch.float32 and codec.to_data(m32, known).dtype == torch.float32


@pytest.mark.parametrize("name", ["relative", "dct", "fft", "haar", "pca", "exponential", "matrix", "log", "both"])
def test_log_det_is_the_determinant_of_the_map(name: str) -> None:
    codec, make, known = MAPS[name]
    x = make()
    jacobian = torch.autograd.functional.jacobian(lambda x: codec.to_model(x, known).flatten(1), x)
    size = x[0].numel()
    blocks = torch.stack([jacobian[i, :, i].reshape(size, size) for i in range(3)])
    found = torch.as_tensor(codec.log_det(x, known), dtype=F64).expand(3)
    torch.testing.assert_close(found, torch.linalg.slogdet(blocks)[1])


@pytest.mark.parametrize("name", ["points", "columns", "symmetric", "no diagonal"])
def test_an_embedding_keeps_lengths_and_has_the_dimensions_of_its_surface(name: str) -> None:
    codec, make, _ = MAPS[name]
    x = make()
    m = codec.to_model(x)
    torch.testing.assert_close(m.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    assert codec.dims(x) == m[0].numel() < x[0].numel()
    # A scale of the data counts on the surface only.
    scaled = Composed((Affine(0.0, 3.0), codec))
    torch.testing.assert_close(torch.as_tensor(scaled.log_det(x)), torch.tensor(-m[0].numel() * math.log(3.0)))


@pytest.mark.parametrize("kind", ["dct", "fft", "haar"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 28])
def test_a_basis_is_orthonormal_at_every_size(kind: str, n: int) -> None:
    matrix = basis_matrix(kind, n)
    assert matrix.shape == (n, n)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix[0], torch.full((n,), 1 / math.sqrt(n), dtype=F64)) if n & (n - 1) == 0 else None


def test_principal_components_are_uncorrelated_and_sorted() -> None:
    x = normals(4000, 2, 3) @ normals(3, 3, seed=1)
    m = Basis("pca").fitted(x).to_model(x).reshape(-1, 3)
    cov = torch.cov(m.T)
    assert (cov - cov.diag().diag()).abs().max() < 1e-2 * cov.max()
    assert (cov.diag().diff() < 0).all()


# ------------------------------------------------------------------------------------------------ published SDEs


@dataclass(frozen=True)
class MeanReverting(SDE):
    """IR-SDE: dx = theta (y - x) dt + lam sqrt(2 theta) dw, stated in z = x - y."""

    theta: float = 4.0
    lam: float = 0.5

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.theta * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.lam * torch.sqrt(-torch.expm1(-2 * self.theta * t))


def gaussian_score(x: Tensor, means: Tensor, cov: Tensor) -> Tensor:
    """The score of an equal mixture of Gaussians with one covariance."""
    off = x[:, None] - means
    pulled = torch.linalg.solve(cov, off.mT).mT
    share = torch.softmax(-(off * pulled).sum(2) / 2, 1)
    return -(share[..., None] * pulled).sum(1)


def test_euler_of_the_mean_reverting_sde_is_ours_relative_to_y() -> None:
    """The published drift theta (y - x), with the score of p_t(x | y), and the same noise: equal in every step."""
    sde, count, steps, eye = MeanReverting(), 6, 40, torch.eye(3, dtype=F64)
    y, mu, cov = normals(count, 3), normals(2, 3, seed=1), torch.eye(3, dtype=F64) * 0.2 + 0.05
    noise = Noise.of(count, 3)
    shift = Condition(image=y)
    codec = Composed((Relative(),))
    # Each row has data x_0 of its own distribution, a mixture around y, so that z_0 has the same one for all rows.
    model = GaussianMixture(sde, mu, covariances=cov.expand(2, 3, 3))
    times = torch.linspace(1.0, 0.05, steps + 1, dtype=F64)
    start = normals(count, 3, seed=2) * 0.5
    ours = EulerMaruyama(steps=steps, grid=tuple(times.tolist()), level="g")(
        model, start, t0=1.0, t1=0.05, noise=noise
    ).x
    x = codec.to_data(start, shift)
    torch.testing.assert_close(x, start + y, rtol=0, atol=0)
    for i in range(steps):
        t, h = float(times[i]), float(times[i] - times[i + 1])
        a = math.exp(-sde.theta * t)
        spread = sde.lam**2 * (1 - a**2)
        rows = [gaussian_score(x[j : j + 1], y[j] + a * mu, a**2 * cov + spread * eye) for j in range(count)]
        drift = sde.theta * (y - x) - 2 * sde.lam**2 * sde.theta * torch.cat(rows)
        x = x - h * drift + sde.lam * math.sqrt(2 * sde.theta * h) * noise.normal((3,), i, "solver", F64)
    torch.testing.assert_close(codec.to_data(ours, shift), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sde", [VPSDE(), MeanReverting(), FlowMatching()], ids=["vp", "own", "flow"])
def test_log_p_relative_to_y_is_that_of_the_conditional_gaussian(sde: SDE) -> None:
    y, x = normals(5, 3), normals(5, 3, seed=1)
    if isinstance(sde, MeanReverting):
        sde = MeanReverting(theta=20.0, lam=1.0)  # no data are left at the end
    model = GaussianMixture(sde, torch.full((1, 3), 0.3, dtype=F64), torch.full((1,), 0.4, dtype=F64))
    codec = Composed((Affine(1.0, 2.0), Relative()))
    found = scores(codec, model, x, Condition(image=y))
    # z ~ N(0.3, 0.4^2), x = 1 + 2 (y + z); the path begins at t_min, where z has a little noise
    a, s = (float(c) for c in sde.coefficients(torch.tensor(sde.t_min, dtype=F64)))
    z = (x - 1) / 2 - y
    prior = gaussian(z, (0.4 * a) ** 2 + s**2, 0.3 * a) - 3 * math.log(2)
    end = float(sde.coefficients(torch.tensor(sde.t_max, dtype=F64))[0])
    torch.testing.assert_close(found, prior, rtol=0, atol=1e-6 if end < 1e-6 else 0.05)


@pytest.mark.parametrize("missing", [None, Condition(), Condition(image=torch.zeros(2, 4))])
def test_a_missing_or_misshapen_y_is_named(missing: Condition | None) -> None:
    with pytest.raises(UsageError, match=r"^the space 'relative' needs .*y"):
        Relative().to_model(torch.zeros(2, 3), missing)


def test_unknown_values_of_y_count_as_0() -> None:
    y = Condition(image=torch.tensor([[1.0, torch.nan]]))
    assert Relative().to_model(torch.tensor([[3.0, 5.0]]), y).tolist() == [[2.0, 5.0]]


def test_preconditioned_euler_is_ours_on_whitened_coordinates() -> None:
    """dx = -beta x/2 dt + sqrt(beta) L dw: drift beta C score in reverse, with noise L z."""
    sde, n, count, steps = VPSDE(), 24, 5, 50
    c = kernel_matrix("exponential", 0.3, n)
    assert float(torch.linalg.cond(c)) > 60
    space = Whitened("exponential:0.3")
    lower = torch.linalg.cholesky(c)
    root = normals(n, n, seed=4) / math.sqrt(n)
    data = root @ root.T + 0.1 * torch.eye(n, dtype=F64)
    inverse = torch.linalg.inv(lower)
    model = GaussianMixture(sde, torch.zeros(1, n, dtype=F64), covariances=(inverse @ data @ inverse.T)[None])
    times = torch.linspace(1.0, 0.02, steps + 1, dtype=F64)
    noise, start = Noise.of(count, 1), normals(count, n, seed=2)
    ours = EulerMaruyama(steps=steps, grid=tuple(times.tolist()), level="g")(
        model, start, t0=1.0, t1=0.02, noise=noise
    ).x
    x = start @ lower.T
    for i in range(steps):
        t, h = times[i], float(times[i] - times[i + 1])
        beta = float(-2 * sde.drift_rate(t))
        a, s = sde.coefficients(t)
        score = -torch.linalg.solve(a**2 * data + s**2 * c, x.T).T
        z = noise.normal((n,), i, "solver", F64) @ lower.T
        x = x - h * (-beta / 2 * x - beta * score @ c) + math.sqrt(beta * h) * z
    torch.testing.assert_close(space.to_data(ours), x, rtol=0, atol=1e-12)
    # The log density, with the log-determinant of the space.
    x = normals(4, n, seed=7) @ torch.linalg.cholesky(data).T
    found = scores(space, model, x, how=Likelihood(rtol=1e-9, divergence="exact"))
    a, s = sde.coefficients(torch.tensor(sde.t_min, dtype=F64))
    # The model's density is that of the marginal at t_min.
    true = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=F64), a**2 * data + s**2 * c).log_prob(x)
    torch.testing.assert_close(found, true - prior_part(model, space.to_model(x)), rtol=0, atol=1e-6)


def prior_part(model: GaussianMixture, m: Tensor) -> Tensor:
    """How much log p loses because the prior is not exactly the end of the path: log p_T(z) - log prior(z)."""
    sde = model.domain.sde
    z = ProbabilityFlow(rtol=1e-11)(model, m, t0=sde.t_min, t1=sde.t_max).x
    return model.log_prob(z, sde.t_max) - sde.prior.log_prob(z)


# ---------------------------------------------------------------------------------------------------- dimensions


class Exact(nn.Module):
    """A network that sees and answers all numbers of the data, and knows the noise of a Gaussian mixture exactly."""

    def __init__(self, model: GaussianMixture) -> None:
        super().__init__()
        self.model, self.scale = model, nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Tensor:
        sde = self.model.domain.sde
        t = sde.t_of_log_snr(-8 * c)
        size = torch.hypot(*sde.coefficients(t)).reshape(-1, *[1] * (x.ndim - 1))
        return self.model(x * size, t).eps


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()], ids=["vp", "flow"])
def test_five_points_with_a_fixed_centre_have_twelve_dimensions(sde: SDE) -> None:
    means, space = points(3, 5, 3, seed=1), ZeroMean()
    spread = 0.3
    # The network sees 15 numbers: on the surface, a mixture of 15 numbers around centred means is that of 12.
    wide = GaussianMixture(sde, means, torch.full((3,), spread, dtype=F64))
    model = ScoreModel(Exact(wide), sde, Eps(), codec=space).double()
    narrow = GaussianMixture(sde, space.to_model(means), torch.full((3,), spread, dtype=F64))
    x = means[torch.arange(6) % 3] + spread * points(6, 5, 3, seed=2)
    low = model.domain.interval("likelihood")[0]
    a, s = (float(c) for c in sde.coefficients(torch.tensor(low, dtype=F64)))
    parts = torch.stack(
        [
            -(x - a * mean).square().flatten(1).sum(1) / (2 * (a**2 * spread**2 + s**2))
            - 6 * math.log(2 * math.pi * (a**2 * spread**2 + s**2))
            for mean in means
        ]
    )
    true = torch.logsumexp(parts, 0) - math.log(3)
    found = scores(space, narrow, x)
    lost = prior_part(narrow, space.to_model(x))
    torch.testing.assert_close(found, true - lost, rtol=0, atol=1e-6)
    if isinstance(sde, VPSDE):  # the label of a network is clamped near pure noise and near the data of flow matching
        torch.testing.assert_close(scores(space, model, x), found, rtol=0, atol=1e-5)
    z = sample(model, ProbabilityFlow(rtol=1e-6), space.model_shape((5, 3)), Noise.of(50, 2), dtype=F64).x
    y = space.to_data(z)
    assert y.shape == (50, 5, 3) and float(y.mean(1).abs().max()) < 1e-12


def test_counting_all_fifteen_numbers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: with 15 dimensions in the prior and in the scale, log p is off by 3/2 log(2 pi sigma(t_min)^2)."""
    sde, spread, x = VPSDE(), 0.3, 0.3 * points(4, 5, 3, seed=2)
    model = GaussianMixture(sde, torch.zeros(1, 4, 3, dtype=F64), torch.full((1,), spread, dtype=F64))
    how = Likelihood(rtol=1e-6)
    right = scores(ZeroMean(), model, x, how=how)
    monkeypatch.setattr(Problem, "counts", 15)
    assert (scores(ZeroMean(), model, x, how=how) - right).abs().min() > 1


CASES: dict[str, tuple[Codec, Callable[[Tensor], Tensor]]] = {
    "dct": (Basis("dct"), lambda m: Basis("dct").to_data(m)),
    "fft": (Basis("fft"), lambda m: Basis("fft").to_data(m)),
    "haar": (Basis("haar"), lambda m: Basis("haar").to_data(m)),
}


@pytest.mark.parametrize("kind", CASES)
def test_log_p_in_a_basis_is_that_of_the_gaussian(kind: str) -> None:
    space, undo = CASES[kind]
    var = torch.linspace(0.1, 1.5, 9, dtype=F64)
    sde = VPSDE()
    model = GaussianMixture(sde, torch.zeros(1, 1, 3, 3, dtype=F64), covariances=var.diag()[None])
    x = undo(normals(4, 1, 3, 3) * var.sqrt().reshape(1, 3, 3))
    a, s = (float(c) for c in sde.coefficients(torch.tensor(sde.t_min, dtype=F64)))
    basis = torch.kron(basis_matrix(kind, 3), basis_matrix(kind, 3))  # x = basis^T m
    cov = basis.T @ (a**2 * var + s**2).diag() @ basis
    true = torch.distributions.MultivariateNormal(torch.zeros(9, dtype=F64), cov).log_prob(x.flatten(1))
    lost = prior_part(model, space.to_model(x))
    torch.testing.assert_close(scores(space, model, x), true - lost, rtol=0, atol=1e-6)


def test_log_p_of_positive_data_is_lognormal() -> None:
    sde, space = FlowMatching(), Log([0.3, -1.0], [0.5, 2.0])
    model = GaussianMixture(sde, torch.zeros(1, 2, dtype=F64), torch.full((1,), 0.7, dtype=F64))
    x = space.to_data(0.7 * normals(5, 2))
    a, s = (float(c) for c in sde.coefficients(torch.tensor(sde.t_min, dtype=F64)))
    spread = math.hypot(0.7 * a, s)  # of the model's marginal at t_min
    mean, std = torch.tensor([0.3, -1.0], dtype=F64), spread * torch.tensor([0.5, 2.0], dtype=F64)
    true = torch.distributions.LogNormal(mean, std).log_prob(x).sum(1)
    torch.testing.assert_close(scores(space, model, x), true, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"positive data, but a value is -1"):
        space.check(torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize("diagonal", [True, False])
def test_log_p_of_symmetric_matrices_counts_their_surface(diagonal: bool) -> None:
    """Symmetric noise of variance v has variance v on the diagonal and v/2 off it."""
    sde, space, n, v = VPSDE(), Symmetric(diagonal), 4, 0.25
    k = space.model_shape((n, n))[0]
    assert k == (10 if diagonal else 6)
    model = GaussianMixture(sde, torch.zeros(1, k, dtype=F64), torch.full((1,), math.sqrt(v), dtype=F64))
    x = space.to_data(math.sqrt(v) * normals(4, k))
    a, s = (float(c) for c in sde.coefficients(torch.tensor(sde.t_min, dtype=F64)))
    var = a**2 * v + s**2
    on, off = x.diagonal(dim1=1, dim2=2), x[:, *torch.triu_indices(n, n, 1)]
    # In the entries x_ij (i <= j) the density is N(0, v) N(0, v/2); per surface measure, each off-diagonal entry
    # stretches by sqrt(2).
    true = gaussian(off, var / 2) - off.shape[1] * math.log(2) / 2 + (gaussian(on, var) if diagonal else 0)
    lost = prior_part(model, space.to_model(x))
    torch.testing.assert_close(scores(space, model, x), true - lost, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- padded rows

SIZES = torch.tensor([3, 4, 5, 3, 5])
PADDED = (torch.arange(5) < SIZES[:, None])[..., None].expand(5, 5, 2)
SPREAD = 0.4


def padded_points() -> Tensor:
    x = torch.where(PADDED, SPREAD * normals(5, 5, 2, seed=3), 0)
    centre = x.sum(1, keepdim=True) / SIZES[:, None, None]
    return torch.where(PADDED, x - centre, 0)


def padded_model(sde: SDE, space: Codec, known: Condition) -> Supported:
    """A mixture that differs only in the first coordinate, which every row has, so it is not linear."""
    means = torch.zeros(2, 4, 2, dtype=F64)
    means[0, 0, 0], means[1, 0, 0] = 0.5, -0.5
    support = space.support(known)
    assert support is not None
    return Supported(GaussianMixture(sde, means, torch.full((2,), SPREAD, dtype=F64)), support)


def padded_truth(x: Tensor, a: float, s: float) -> Tensor:
    """Each row in its own (n_i - 1) d dimensions: only the first Helmert coordinate, along (1, -1, 0, ...), differs."""
    var = a**2 * SPREAD**2 + s**2
    first = (x[:, 0, 0] - x[:, 1, 0]) / math.sqrt(2)
    rest = x.square().flatten(1).sum(1) - first.square()
    dims = (SIZES - 1) * 2
    mixed = torch.logsumexp(torch.stack([-(first - a * m).square() / (2 * var) for m in (0.5, -0.5)]), 0) - math.log(2)
    return mixed - rest / (2 * var) - dims / 2 * math.log(2 * math.pi * var)


SPACE = Composed((Masked(), ZeroMean()))
KNOWN = Condition(mask=PADDED)


@pytest.mark.parametrize("method", ["coupled", "quadrature"])
def test_padded_rows_have_their_own_dimensions(method: str) -> None:
    sde, x = VPSDE(), padded_points()
    assert SPACE.dims(x, KNOWN).tolist() == [4, 6, 8, 4, 8]
    SPACE.check(x, KNOWN)
    torch.testing.assert_close(SPACE.to_data(SPACE.to_model(x, KNOWN), KNOWN), x)
    model = padded_model(sde, SPACE, KNOWN)
    how = Likelihood(rtol=1e-9, method=method)
    found = how(model, x, None, SPACE, dtype=F64, check=False, condition=KNOWN)
    a, s = (float(c) for c in sde.coefficients(torch.tensor(sde.t_min, dtype=F64)))
    m = SPACE.to_model(x, KNOWN)
    z = ProbabilityFlow(rtol=1e-11)(model, m, t0=sde.t_min, t1=1.0).x
    end, noise = (float(c) for c in sde.coefficients(torch.tensor(1.0, dtype=F64)))
    lost = padded_truth(SPACE.to_data(z, KNOWN), end, noise) - sde.prior.log_prob(z, SPACE.dims(x, KNOWN))
    torch.testing.assert_close(found.log_prob, padded_truth(x, a, s) - lost, rtol=0, atol=1e-6)
    assert found.dims.tolist() == [4, 6, 8, 4, 8]
    assert bool((found.model.z[~SPACE.support(KNOWN)] == 0).all())  # type: ignore[operator,index]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_leaves_padded_numbers_at_0(name: str) -> None:
    if name in ("original", "particles", "torchsde", "tuned"):  # which need a published path, a measurement and a run
        pytest.importorskip("torchsde") if name == "torchsde" else pytest.skip("needs another model")
    made: Any = build(name, SOLVERS, "solver")
    made = replace(made, steps=6) if hasattr(made, "steps") else replace(made, rtol=0.05)
    support = SPACE.support(KNOWN)
    assert support is not None
    states: list[Tensor] = []
    model = padded_model(VPSDE(), SPACE, KNOWN)
    found = sample(
        model, made, (4, 2), Noise.of(5, 1), dtype=F64, watch=lambda step: states.append(step.x), denoise=False
    )
    assert bool((found.x[~support] == 0).all()) and bool((found.x[support] != 0).all())
    for x in states:
        assert len(x) < 5 or bool((x[~support] == 0).all())


def test_points_may_be_padded_anywhere_in_a_row() -> None:
    order = torch.tensor([4, 2, 0, 3, 1])
    x, known = padded_points(), Condition(mask=PADDED[:, order])
    torch.testing.assert_close(SPACE.to_model(x[:, order], known).square().sum((1, 2)), x.square().sum((1, 2)))
    torch.testing.assert_close(SPACE.to_data(SPACE.to_model(x[:, order], known), known), x[:, order])


@pytest.mark.parametrize(
    "solver",
    [ProbabilityFlow(rtol=1e-5), Ancestral(steps=20), MultistepSDE(steps=15), EulerMaruyama(steps=30)],
    ids=["ode", "ancestral", "multistep", "em"],
)
def test_a_padded_row_alone_is_the_row_of_a_batch(solver: Any) -> None:
    model, noise = padded_model(VPSDE(), SPACE, KNOWN), Noise.of(5, 9)
    whole = sample(model, solver, (4, 2), noise, dtype=F64)
    support = SPACE.support(KNOWN)
    assert support is not None and bool((whole.x[~support] == 0).all()) and bool((whole.x[support] != 0).all())
    for i in range(5):
        index = torch.tensor([i])
        alone = sample(model.rows(index), solver, (4, 2), noise.rows(index), dtype=F64)
        assert torch.equal(alone.x[0], whole.x[i]) and torch.equal(alone.nfe[0], whole.nfe[i])


@pytest.mark.parametrize("method", ["coupled", "quadrature"])
def test_the_likelihood_of_a_padded_row_alone_is_that_in_a_batch(method: str) -> None:
    x, model = padded_points(), padded_model(VPSDE(), SPACE, KNOWN)
    how = Likelihood(rtol=1e-5, method=method)
    whole = scores(SPACE, model, x, KNOWN, how)
    for i in range(5):
        index = torch.tensor([i])
        assert torch.equal(scores(SPACE, model.rows(index), x[i : i + 1], KNOWN.rows(index), how)[0], whole[i])


def test_padding_more_changes_no_likelihood_and_no_step() -> None:
    """A row of three points has the same error norm, steps and density in an array of three points and of five."""
    index = torch.tensor([0, 3])
    x = padded_points()[index]
    short = Condition(mask=PADDED[index][:, :3])
    tight = Likelihood(rtol=1e-5)
    means = torch.zeros(2, 2, 2, dtype=F64)
    means[0, 0, 0], means[1, 0, 0] = 0.5, -0.5
    small = GaussianMixture(VPSDE(), means, torch.full((2,), SPREAD, dtype=F64))
    one = tight(padded_model(VPSDE(), SPACE, KNOWN).rows(index), x, None, SPACE, dtype=F64, check=False,
                condition=KNOWN.rows(index))  # fmt: skip
    two = tight(small, x[:, :3], None, SPACE, dtype=F64, check=False, condition=short)
    torch.testing.assert_close(one.log_prob, two.log_prob, rtol=0, atol=1e-9)
    assert one.model.nfe.tolist() == two.model.nfe.tolist()


def test_the_error_norm_of_an_ode_counts_real_numbers() -> None:
    def f(y: Tensor, t: Tensor, index: Tensor) -> Tensor:
        return -y * (1 + 3 * torch.sin(9 * t))[:, None]

    y = normals(3, 2)
    wide = torch.cat([y, torch.zeros(3, 14, dtype=F64)], 1)
    short = integrate(f, y, 0.0, 1.0, rtol=1e-6, atol=1e-6)
    padded = integrate(f, wide, 0.0, 1.0, rtol=1e-6, atol=1e-6, counts=torch.full((3,), 2))
    assert torch.equal(padded.nfe, short.nfe)
    torch.testing.assert_close(padded.y[:, :2], short.y, rtol=1e-12, atol=1e-12)
    assert not torch.equal(integrate(f, wide, 0.0, 1.0, rtol=1e-6, atol=1e-6).nfe, short.nfe)


def test_the_bound_of_padded_rows_counts_real_numbers() -> None:
    sde, x = VPSDE(), padded_points()
    m = SPACE.to_model(x, KNOWN)
    found = elbo(padded_model(sde, SPACE, KNOWN), m, strata=256, draws=16)
    a, s = (float(c) for c in sde.coefficients(torch.tensor(sde.t_min, dtype=F64)))
    gap = (padded_truth(x, a, s) - found.log_prob) / found.stderr
    assert gap.abs().max() < 4.5


def test_log_dets_of_levels_and_scales_count_real_values() -> None:
    x = torch.randint(0, 4, (3, 5, 2)).double()
    x = torch.where(ROWS.mask, x, 0)  # type: ignore[arg-type]
    scale = torch.tensor([2.0, 3.0], dtype=F64)
    codec = Composed((Levels(0.0, 6.0, 4), Affine(torch.zeros(2).double(), scale), Masked()))
    real = torch.tensor([3, 4, 5])
    expected = 2 * real * math.log(2.0) - real * (math.log(2.0) + math.log(3.0))
    torch.testing.assert_close(codec.log_det(x, ROWS), expected.double())
    back = codec.to_data(codec.to_model(2 * x, ROWS, torch.full_like(x, 0.5)), ROWS)
    torch.testing.assert_close(back, 2 * x)


def test_masks_for_samples_occur_as_often_as_in_training() -> None:
    space = Masked().fitted(torch.zeros(5, 5, 2), KNOWN)
    found = space.example(torch.arange(2000))[:, :, 0].sum(1).bincount(minlength=6)
    assert (found[3:] / 2000 - torch.tensor([0.4, 0.2, 0.4])).abs().max() < 0.01
    assert torch.equal(space.example(torch.tensor([7]))[0], space.example(torch.arange(9))[7])


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dct", "unknown space 'dct'.*choose from: basis"),
        ("basis:sine", "unknown basis 'sine'"),
        ("whitened:exponential", "needs a positive length"),
        ("whitened:foo:1", "unknown covariance 'foo:1'"),
        ("masked+basis", "padded rows cannot be combined with the space 'basis:dct'"),
        ("log:3", "'log' has no options"),
        ("zero-mean:x", "must be an integer"),
        ("collections:OrderedDict", "not a space"),
    ],
)
def test_what_is_no_space(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_spaces(text)


def test_a_name_from_a_file_is_never_imported() -> None:
    with pytest.raises(CheckpointError, match="never imported"):
        parse_spaces("collections:OrderedDict", typed=())
    assert str(parse_spaces("whitened:exponential:0.3+log")[0]) == "whitened:exponential:0.3"


@pytest.mark.parametrize(
    ("space", "shape", "words"),
    [
        (ZeroMean(), (5,), "needs samples of points"),
        (ZeroMean(), (1, 3), "at least two points.*zero-mean:1"),
        (Symmetric(), (3, 4), "square matrices"),
        (Basis("dct", 2), (5,), "axes is 2"),
        (Basis("pca"), (1, 40, 40), "up to 1,024"),
    ],
)
def test_a_space_that_does_not_fit(space: Space, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        space.model_shape(shape)


def test_rows_outside_a_space_are_named() -> None:
    with pytest.raises(DataError, match=r"centre of row 1 is 1 from it"):
        ZeroMean().check(torch.stack([points(1, 4, 2)[0], points(1, 4, 2)[0] + 1]))
    with pytest.raises(DataError, match=r"row 0 is off by"):
        Symmetric().check(torch.arange(4.0).reshape(1, 2, 2))
    with pytest.raises(DataError, match=r"diagonal of 0"):
        Symmetric(False).check(torch.eye(2)[None])


def test_a_singular_or_crooked_covariance_is_refused(tmp_path: Path) -> None:
    for matrix, words in ((torch.ones(3, 3), "singular"), (torch.tensor([[1.0, 2], [0, 1]]), "symmetric"),
                          (torch.ones(2, 3), "square")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            Whitened(matrix)
    with pytest.raises(UsageError, match="singular"):
        Whitened("gaussian:5").to_model(torch.zeros(1, 64))
    np.save(tmp_path / "c.npy", np.diag([1.0, 4.0]))
    space = parse_spaces(f"whitened:{tmp_path / 'c.npy'}")[0].fitted(torch.zeros(2, 2))
    assert space.to_model(torch.tensor([[1.0, 4.0]])).tolist() == [[1.0, 2.0]]
    assert to_dict(space)[0]["options"] == {"covariance": [[1.0, 0.0], [0.0, 4.0]]}
    with pytest.raises(DataError, match="cannot be read"):
        parse_spaces(f"whitened:{tmp_path / 'none.npy'}")[0].fitted(torch.zeros(2, 2))


@dataclass(frozen=True, eq=False, repr=False)
class Folded(Space):
    """A space without a log-determinant."""

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        return x.abs()

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        return m

    def log_det(self, x: Tensor, condition: object = None) -> None:
        return None


def test_a_space_without_a_log_determinant_has_no_likelihood() -> None:
    model = GaussianMixture(VPSDE(), torch.zeros(1, 2, dtype=F64), torch.ones(1, dtype=F64))
    with pytest.raises(UsageError, match=r"no likelihood, because the space .*Folded has no log-determinant"):
        scores(Composed((Affine(0.0, 1.0), Folded())), model, torch.zeros(1, 2))


def test_what_needs_an_affine_codec_names_the_space() -> None:
    with pytest.raises(UsageError, match=r"a feature requires .* stated in the space basis:dct"):
        as_affine(Composed((Affine(0.0, 1.0), Basis())), "a feature")


def test_padding_stays_zero_beside_a_known_signal():
    mask = torch.tensor([[True, True, False]])
    known = Condition(mask=mask, image=torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64))
    x = torch.tensor([[1.5, 2.25, 0.0]], dtype=torch.float64)
    for text in ("masked+relative", "relative+masked"):
        assert Composed(parse_spaces(text)).to_model(x, known).tolist() == [[0.5, 0.25, 0.0]]


@pytest.mark.parametrize("text", ["log+symmetric", "log+zero-mean", "whitened:exponential:0.3+symmetric"])
def test_a_space_that_bends_cannot_come_before_one_of_fewer_dimensions(text):
    with pytest.raises(UsageError, match="does not keep distances"):
        parse_spaces(text)
