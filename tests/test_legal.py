"""What may be combined with what: each wrapper with solvers, likelihoods, bounds and coupled models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from models import F64, normals, small_network

from scoresde import (
    DDPM,
    EDM,
    FlowMatching,
    Guided,
    Likelihood,
    Measured,
    Mixed,
    Noise,
    Particles,
    Rescaled,
    ScoreModel,
    Steered,
    Thresholded,
    convert,
    elbo,
    sample,
)
from scoresde.core.errors import UsageError
from scoresde.core.registry import build
from scoresde.core.tables import SOLVERS
from scoresde.likelihood.chain import bound
from scoresde.model.estimate import Wrapped
from scoresde.nn import MLP
from scoresde.operators import Mask

MASK = Mask(torch.tensor([[True, True, False]])).on((3,))
Y = torch.tensor([[0.3, -0.2, 0.0]], dtype=F64)


def wrapped(kind, model):
    """The wrapper, by name, around a model with classes."""
    one = model.given(1)
    return {
        "given": lambda: one,
        "guided": lambda: Guided(one, model.given(2), 2.0),
        "guided by 1": lambda: Guided(one, model.given(2), 1.0),
        "interval": lambda: Guided(one, model.given(2), 2.0, (0.0, 1.0)),
        "mixed": lambda: Mixed((model.given(3), one, model.given(2)), (-1.0, 1.0, 1.0)),
        "measured": lambda: Measured(one, MASK, Y, 0.1),
        "projection": lambda: Measured(one, MASK, Y, 0.1, "projection"),
        "steered": lambda: Steered(one, lambda e: -e.x0.square().sum(1)),
        "thresholded": lambda: Thresholded(one),
        "rescaled": lambda: Rescaled(Guided(one, model.given(2), 2.0)),
    }[kind]()


NAMES = {
    "given": "", "guided": "guided model", "guided by 1": "", "interval": "guided model",
    "mixed": "mixture of models", "measured": "measured model", "projection": "measured model",
    "steered": "steered model", "thresholded": "thresholded model", "rescaled": "guided model",
}  # fmt: skip


def chain():
    """A model on a discrete chain of 20 nodes."""
    torch.manual_seed(0)
    network = MLP(dims=3, width=8, blocks=1, classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return (
        ScoreModel(network, DDPM(steps=20, schedule="cosine"), EDM(), classes=3).double().eval().requires_grad_(False)
    )


@dataclass(frozen=True)
class Coupled(Wrapped):
    """A model as if it had been trained on coupled pairs, so that it has no score."""

    @property
    def domain(self):
        return replace(self.model.domain, has_score=False)

    def __call__(self, x, t):
        return self.model(x, t)


@pytest.mark.parametrize("kind", list(NAMES))
@pytest.mark.parametrize("name", ["heun", "multistep", "sde", "ancestral", "em"])
def test_solvers(kind, name):
    solver = replace(build(name, SOLVERS, typed=True), steps=30 if name == "em" else 5)
    model = wrapped(kind, small_network(classes=3))
    assert bool(sample(model, solver, (3,), Noise.of(2), dtype=F64).ok.all())
    assert bool(sample(convert(model, FlowMatching()), solver, (3,), Noise.of(2), dtype=F64).ok.all())


@pytest.mark.parametrize("kind", list(NAMES))
def test_the_likelihood_of_the_flow(kind):
    model, x = wrapped(kind, small_network(classes=3)), normals(1, 3) / 2
    exact = Likelihood(divergence="exact", rtol=1e-2)(model, x, check=False)
    assert bool(exact.ok.all())
    rough = Likelihood(divergence="difference", rtol=1e-2)(convert(model, FlowMatching()), x, check=False)
    assert bool(rough.ok.all())


@pytest.mark.parametrize(("kind", "name"), NAMES.items())
def test_the_bound_says_whose_it_is(kind, name):
    model, x = wrapped(kind, small_network(classes=3)), normals(2, 3)
    expected = "reverse SDE" + (f" of the {name}" if name else "")
    assert elbo(model, x, strata=2).whose == expected
    assert model.domain.consistent is (not name)
    discrete = wrapped(kind, chain())
    found = bound(discrete, x, Noise.of(2))
    assert bool(torch.isfinite(found.steps).all())


@pytest.mark.parametrize("kind", list(NAMES))
def test_a_model_without_a_score(kind):
    model = Coupled(small_network(classes=3).given(1))
    against = Coupled(small_network(classes=3).given(2))
    makes = {
        "given": lambda: model, "guided": lambda: Guided(model, against, 2.0),
        "guided by 1": lambda: Guided(model, against, 1.0), "interval": lambda: Guided(model, against, 2.0, (0.0, 1.0)),
        "mixed": lambda: Mixed((model, against), (2.0, -1.0)), "thresholded": lambda: Thresholded(model),
        "projection": lambda: Measured(model, MASK, Y, 0.1, "projection"),
        "rescaled": lambda: Rescaled(Guided(model, against, 2.0)),
    }  # fmt: skip
    solver = replace(build("heun", SOLVERS, typed=True), steps=3)
    if kind in makes:
        assert bool(sample(makes[kind](), solver, (3,), Noise.of(2), dtype=F64).ok.all())
        with pytest.raises(UsageError, match="needs the score"):
            sample(makes[kind](), build("sde", SOLVERS, typed=True), (3,), Noise.of(2), dtype=F64)
        return
    with pytest.raises(UsageError, match="has no score"):
        if kind == "measured":
            Measured(model, MASK, Y, 0.1)
        else:
            sample(Steered(model, lambda e: e.x0.sum(1)), solver, (3,), Noise.of(2), dtype=F64)


@pytest.mark.parametrize("kind", list(NAMES))
def test_particles_need_something_to_weight_by(kind):
    model = wrapped(kind, small_network(classes=3))
    solver = Particles(3, particles=2)
    if model.domain.twisted:
        assert kind in ("measured", "projection", "steered")
        assert bool(sample(model, solver, (3,), Noise.of(2), dtype=F64).ok.all())
    else:
        with pytest.raises(UsageError, match="neither"):
            sample(model, solver, (3,), Noise.of(2), dtype=F64)
