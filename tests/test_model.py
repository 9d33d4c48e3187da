"""ScoreModel, labels and guidance."""

from __future__ import annotations

import pytest
import torch
from models import F64, normals

from scoresde import EDM, VPSDE, Eps, Guided, ScoreModel
from scoresde.errors import UsageError
from scoresde.nn import MLP


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = MLP(dims=2, width=16, blocks=1, classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ScoreModel(network, VPSDE(), EDM(), classes=3).double().eval().requires_grad_(False)


def test_the_network_sees_a_scaled_input_and_the_label_and_no_time():
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x, c, cond=None):
            seen.update(x=x, c=c, cond=cond)
            return torch.zeros_like(x)

    sde, x = VPSDE(), normals(4, 2)
    t = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=F64)
    ScoreModel(Spy(), sde, Eps())(x, t)
    alpha, sigma = sde.coefficients(t)
    assert torch.allclose(seen["x"], x / torch.sqrt(alpha**2 + sigma**2)[:, None])
    assert torch.allclose(seen["c"], torch.log(sigma / alpha) / 4)
    assert seen["cond"] is None


def test_a_scalar_time_is_the_same_time_for_all_rows(model):
    x = normals(4, 2)
    a, b = model(x, 0.3), model(x, torch.full((4,), 0.3, dtype=F64))
    assert torch.allclose(a.x0, b.x0, rtol=1e-12) and torch.allclose(a.score, b.score, rtol=1e-12)
    assert torch.allclose(a.velocity, b.velocity, rtol=1e-12)


def test_without_a_label_the_model_is_given_none(model):
    x = normals(4, 2)
    assert torch.equal(model(x, 0.3).eps, model.given(3)(x, 0.3).eps)
    assert not torch.allclose(model(x, 0.3).eps, model.given(0)(x, 0.3).eps)


def test_rows_keep_their_labels(model):
    x, labels = normals(4, 2), torch.tensor([0, 1, 2, 3])
    whole = model.given(labels)(x, 0.3).eps
    index = torch.tensor([3, 1])
    assert torch.allclose(model.given(labels).rows(index)(x[index], 0.3).eps, whole[index], rtol=1e-12)
    for i in range(4):
        assert torch.allclose(model.given(i)(x[i : i + 1], 0.3).eps[0], whole[i], rtol=1e-12)
    assert model.given(1).rows(index)(x[index], 0.3).eps.shape == (2, 2)  # one label for all stays one


def test_guidance_is_an_affine_mixture(model):
    x = normals(4, 2)
    cond, uncond = model.given(1), model.given(3)
    c, u = cond(x, 0.4), uncond(x, 0.4)
    assert torch.allclose(Guided(cond, uncond, 1.0)(x, 0.4).eps, c.eps)
    assert torch.allclose(Guided(cond, uncond, 0.0)(x, 0.4).eps, u.eps)
    strong = Guided(cond, uncond, 3.0)(x, 0.4)
    assert torch.allclose(strong.score, u.score + 3 * (c.score - u.score))
    alpha, sigma = VPSDE().coefficients(torch.tensor(0.4, dtype=F64))
    assert torch.allclose(alpha * strong.x0 + sigma * strong.eps, x)


def test_labels_that_cannot_be_are_refused(model):
    for wrong in (-1, 4, torch.tensor([0, 9])):
        with pytest.raises(UsageError, match="classes"):
            model.given(wrong)
    with pytest.raises(UsageError, match="2 labels for 4"):
        model.given(torch.tensor([0, 1]))(normals(4, 2), 0.5)
    with pytest.raises(UsageError, match="--cond class"):
        ScoreModel(MLP(dims=2), VPSDE(), Eps()).given(0)
