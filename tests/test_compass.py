"""Exact scores are exact, and the compass knows a right score from a wrong one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import VESDE, VPSDE, Estimate, FlowMatching, GaussianMixture, load, load_data
from scoresde.codec import as_affine
from scoresde.core.errors import UsageError
from scoresde.model import empirical as module
from scoresde.model.empirical import TrainingSet
from scoresde.study.compass import exact_score, known_mixture, measure, score_grid


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_the_score_of_a_set_is_the_softmax_over_its_points(sde, t, generator, monkeypatch):
    points = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    alpha, sigma = sde.coefficients(torch.tensor(t, dtype=torch.float64))
    r = torch.softmax(-(x[:, None] - alpha * points).square().sum(-1) / (2 * sigma**2), 1)
    expected = r @ points
    for chunk in (10**6, 24, 1):  # all points at once, two at a time, one at a time
        monkeypatch.setattr(module, "CHUNK", chunk)
        found = TrainingSet(sde, points)(x, t)
        torch.testing.assert_close(found.x0, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x, rtol=1e-9, atol=1e-9)


def test_a_wide_set_is_a_mixture(generator, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 12)
    points = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    x, t = torch.randn(3, 2, dtype=torch.float64, generator=generator), torch.tensor([0.1, 0.4, 0.8])
    mixture = GaussianMixture(VPSDE(), points, torch.full((5,), 0.3, dtype=torch.float64))
    found, expected = TrainingSet(VPSDE(), points, 0.3)(x, t), mixture(x, t)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-11, atol=1e-11)
    assert found.x.shape == (3, 2) and torch.equal(found.t, t)


def test_the_toy_is_its_mixture_in_model_units():
    data = load_data("8gaussians")
    mixture = known_mixture(data.info, data.codec, VPSDE())
    assert mixture is not None and data.log_density is not None
    x = data.test[:50].double()
    expected = data.log_density(x) + as_affine(data.codec, "a density").log_scale((2,))
    torch.testing.assert_close(mixture.log_prob(data.codec.continuous.to_model(x)), expected, rtol=1e-10, atol=1e-10)
    assert known_mixture(load_data("moons").info, data.codec, VPSDE()) is None


def test_levels_are_cells_of_their_variance():
    data = load_data("digits")
    exact, against, note = exact_score(data.info, data.codec, VPSDE(), data.train)
    assert isinstance(exact, TrainingSet) and "1,617 training samples" in against and note is not None
    cell = 2 / 17  # 17 levels on [-1, 1)
    assert exact.std == pytest.approx(cell / 12**0.5)
    model = data.codec.to_model(data.train[:1].expand(4000, -1, -1, -1), noise=torch.rand(4000, 1, 8, 8)).flatten(1)
    torch.testing.assert_close(model.mean(0), exact.points[0].flatten().float(), rtol=0, atol=0.004)
    assert float(model.std(0).mean()) == pytest.approx(exact.std, rel=0.02)


# ----------------------------------------------------------------------------------------------------------- compass


class Known(nn.Module):
    """The exact score of the toy, bent as asked."""

    def __init__(self, run, bend):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.domain = run.model.domain
        data = load_data("8gaussians")
        self.exact, self.bend = known_mixture(data.info, data.codec, run.model.domain.sde), bend

    def forward(self, x: Tensor, t: Tensor) -> Estimate:
        found = self.exact(x, t)
        return replace(found, eps=self.bend(found.eps))


@pytest.mark.parametrize(
    ("bend", "cosine", "error"),
    [
        pytest.param(lambda e: e, 1.0, 0.0, marks=pytest.mark.slow),
        pytest.param(lambda e: 0.5 * e, 1.0, 0.5, marks=pytest.mark.slow),
        (lambda e: -e, -1.0, 2.0),
        (lambda e: torch.stack([-e[:, 1], e[:, 0]], 1), 0.0, 2**0.5),
    ],
    ids=["exact", "half", "backwards", "sideways"],
)
def test_the_compass_points(trained: Path, bend, cosine, error):
    run = load(trained / "moons")
    data = load_data("8gaussians")
    run = replace(run, base=Known(run, bend), dtype=torch.float64, info=data.info, codec=data.codec)
    found = measure(run, data, n=20, levels=5)
    assert found.note is None and "density" in found.against
    torch.testing.assert_close(found.cosine, torch.full((5, 3), cosine, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.error, torch.full((5, 3), error, dtype=torch.float64), rtol=0, atol=1e-9)
    low, high = run.model.domain.sde.log_snr(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()
    torch.testing.assert_close(found.log_snr, torch.linspace(low, high, 5, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_the_score_on_the_grid_is_the_gradient_of_what_is_drawn(trained: Path):
    data = load_data("8gaussians")
    run = load(trained / "moons", dtype=torch.float64)
    run = replace(run, base=Known(run, lambda e: e), info=data.info, codec=data.codec)
    t = torch.tensor([0.02, 0.4], dtype=torch.float64)
    found = score_grid(run, data, t, size=5)
    assert found.exact is not None and found.density is not None
    torch.testing.assert_close(found.learned, found.exact, rtol=1e-9, atol=1e-9)
    mixture = known_mixture(data.info, data.codec, run.model.domain.sde)
    for k, s in enumerate(t):
        size = float(torch.hypot(*run.model.domain.sde.coefficients(s)))
        drawn = torch.stack(torch.meshgrid(found.x, found.y, indexing="xy"), -1).reshape(-1, 2).requires_grad_()
        log_density = mixture.log_prob(data.codec.continuous.to_model(drawn) * size, s)
        (slope,) = torch.autograd.grad(log_density.sum(), drawn)
        # Row j, column i is the point (x_i, y_j).
        torch.testing.assert_close(found.exact[k].reshape(2, -1).T, slope, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.density[k].flatten(), log_density.detach().exp(), rtol=1e-9, atol=1e-12)


def test_what_has_no_score_or_no_plane_is_refused(trained: Path):
    run, data = load(trained / "moons"), load_data("moons")
    run.base.domain = replace(run.base.domain, has_score=False)
    with pytest.raises(UsageError, match="no score to compare"):
        measure(run, data)
    with pytest.raises(UsageError, match="no score to draw"):
        score_grid(run, data, torch.tensor([0.1]))
    digits = load(trained / "digits")
    with pytest.raises(UsageError, match="in the plane, but digits contains images of shape 1 x 8 x 8"):
        score_grid(digits, load_data("digits"), torch.tensor([0.1]))
