"""ScoreModel, labels and guidance."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import pytest
import torch
from models import F64, normals, ring, small_network, watched

from scoresde import (
    EDM,
    VPSDE,
    Domain,
    Eps,
    FlowMatching,
    Guided,
    Likelihood,
    Noise,
    ProbabilityFlow,
    ScoreModel,
    convert,
    elbo,
)
from scoresde.codec import Affine
from scoresde.core.errors import UsageError
from scoresde.core.registry import build, options_of
from scoresde.core.tables import SOLVERS
from scoresde.model.estimate import Wrapped
from scoresde.nn import MLP
from scoresde.solvers import AdaptiveSDE


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
    with pytest.raises(UsageError, match="condition has 2 rows for 4 samples"):
        model.given(torch.tensor([0, 1]))(normals(4, 2), 0.5)
    with pytest.raises(UsageError, match="cond='class'"):
        ScoreModel(MLP(dims=2), VPSDE(), Eps()).given(0)


# ----------------------------------------------------------------------------------------------------------- contracts


@dataclass(frozen=True)
class Loud(Guided):
    """A subclass with a field of its own, as a user may write one."""

    extra: float = 1.0

    def __call__(self, x, t):
        estimate = super().__call__(x, t)
        return replace(estimate, eps=self.extra * estimate.eps)


def test_a_subclass_of_a_wrapper_survives_the_choice_of_rows():
    model = small_network(classes=3)
    labels, index = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 1])
    loud = Loud(model.given(labels), model.given(3), 2.0, extra=3.0)
    some = loud.rows(index)
    assert type(some) is Loud and some.extra == 3.0 and some.model.condition.label.tolist() == [2, 1]
    assert some.against.condition.label.tolist() == [3]  # one for all stays one for all
    x = normals(4, 3)
    torch.testing.assert_close(some(x[index], 0.5).eps, loud(x, 0.5).eps[index], rtol=1e-12, atol=0)


def test_a_domain_says_what_guidance_does_to_a_model():
    model = small_network(classes=3)
    for scale, consistent in ((0.0, True), (0.5, False), (1.0, True), (2.0, False)):
        guided = Guided(model.given(1), model.given(3), scale)
        assert guided.domain.consistent is consistent and guided.domain.has_score
        assert convert(guided, FlowMatching()).domain.consistent is consistent
    assert Domain.of(VPSDE()).consistent


@dataclass(frozen=True)
class Costly(Wrapped):
    """A model that asks three networks for some rows below t = 1/2, and one for the others."""

    costly: torch.Tensor

    def __call__(self, x, t):
        estimate = self.model(x, t)
        below = torch.as_tensor(t, dtype=F64).expand(len(x)) < 0.5
        return replace(estimate, calls=torch.where(self.costly & below, 3, 1))

    def rows(self, index):
        return replace(self, model=self.model.rows(index), costly=self.costly[index])


COUNTED = [
    "ode", "heun", "rk4", "edm", "ddim", "multistep", "dpm2s", "sde", "em", "adaptive-sde", "pc", "torchsde",
    "original",
]  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_networks_are_counted_and_not_calls(name):
    solver, model, x = build(name, SOLVERS, typed=True), ring(VPSDE()), normals(4, 2)
    if "steps" in options_of(solver):
        solver = replace(solver, steps=50 if name == "original" else 12)
    if name == "adaptive-sde":
        solver = replace(solver, rtol=0.3, atol=0.3)
    once = solver(model, x)
    two = Guided(model, ring(VPSDE()), 1.5)
    assert two(x, 0.5).calls == 2
    assert torch.equal(solver(Guided(model, model, 1.0), x).nfe, once.nfe)
    assert torch.equal(solver(two, x).nfe, 2 * once.nfe)  # the same answers: both are the ring
    # Rows count their own: what is asked below t = 1/2 costs three times as much for rows 1 and 3.
    asked = watched(model)
    nfe = solver(Costly(asked, torch.tensor([False, True, False, True])), x).nfe
    assert torch.equal(nfe[[0, 2]], once.nfe[[0, 2]])
    if name not in ("ode", "adaptive-sde"):
        late = sum(int((t < 0.5).sum()) for t in asked.times)
        assert nfe[[1, 3]].tolist() == [int(once.nfe[0]) + 2 * late] * 2
    else:
        assert bool((nfe[[1, 3]] > once.nfe[[1, 3]]).all()) and bool((nfe < 3 * once.nfe).all())


def test_the_likelihood_and_its_bound_count_networks_too():
    model, x = ring(VPSDE()), ring(VPSDE()).sample(3, torch.Generator().manual_seed(0))
    guided = Guided(model, ring(VPSDE()), 1.5)
    for options in (
        {"rtol": 1e-3}, {"method": "quadrature"}, {"steps": 5}, {"divergence": "difference", "probes": 2, "rtol": 1e-3},
    ):  # fmt: skip
        once, twice = (Likelihood(**options)(m, x, check=False) for m in (model, guided))
        torch.testing.assert_close(twice.log_prob, once.log_prob, rtol=1e-3, atol=1e-3)
        if "divergence" not in options and "method" not in options:
            assert torch.equal(twice.nfe, 2 * once.nfe)
        assert bool((twice.nfe > once.nfe).all())
    assert elbo(guided, x, strata=8).nfe.tolist() == [16] * 3 and elbo(model, x, strata=8).nfe.tolist() == [8] * 3


def test_a_bound_says_whose_it_is():
    model, x = ring(VPSDE()), torch.zeros(2, 2, dtype=F64)
    guided = Guided(model, ring(VPSDE()), 1.5)
    assert elbo(model, x).whose == elbo(Guided(model, model, 1.0), x).whose == "reverse SDE"
    assert elbo(guided, x).whose == "reverse SDE of the guided model"
    torch.testing.assert_close(elbo(guided, x, batch=7).log_prob, elbo(guided, x).log_prob, rtol=1e-12, atol=0)


def test_one_meaning_of_rtol():
    # A tolerance for both: with the old absolute one of 1e-5 the error stayed at 4e-7.
    model, z = ring(VPSDE()), normals(4, 2)
    exact = ProbabilityFlow(rtol=1e-11)(model, z).x
    assert float((ProbabilityFlow(rtol=1e-9)(model, z).x - exact).abs().max()) < 1e-8
    plain = ProbabilityFlow(rtol=1e-4)(model, z).x
    assert torch.equal(plain, ProbabilityFlow(rtol=1e-4, atol=1e-4)(model, z).x)
    assert not torch.equal(plain, ProbabilityFlow(rtol=1e-4, atol=1e-2)(model, z).x)
    x = model.sample(2, torch.Generator().manual_seed(0))
    both = [Likelihood(rtol=1e-3, atol=atol)(model, x, check=False).log_prob for atol in (None, 1e-3)]
    assert torch.equal(*both)
    noise = Noise.of(4)
    both = [AdaptiveSDE(rtol=0.4, atol=atol)(model, z, noise=noise).x for atol in (None, 0.4)]
    assert torch.equal(*both)


def test_a_likelihood_is_its_own_record():
    model, x = ring(VPSDE()), torch.zeros(2, 2, dtype=F64)
    asked = Likelihood(rtol=1e-3)
    codec = Affine(*torch.tensor([[0.0], [2.0]]).double())
    scores = asked(model, x, Noise.of(2), codec)
    made = scores.how
    assert (made.divergence, made.atol, made.scheme, made.dequantisation) == ("exact", 1e-3, "dopri5", "none")
    assert made.t_min == VPSDE().t_min and "auto" not in dataclasses.astuple(made)
    again = made(model, x, Noise.of(2), codec)
    assert torch.equal(again.log_prob, scores.log_prob) and again.how == made


def test_numpy_is_as_good_as_a_tensor():
    model, x = ring(VPSDE()), normals(3, 2)
    how = Likelihood(steps=3)
    assert torch.equal(how(model, x.numpy(), check=False).log_prob, how(model, x, check=False).log_prob)
    assert torch.equal(elbo(model, x.numpy()).log_prob, elbo(model, x).log_prob)
