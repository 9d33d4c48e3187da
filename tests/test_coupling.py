"""Couplings: permutations of least cost, of the torch generator alone, within the classes."""

from __future__ import annotations

import itertools

import pytest
import torch
from models import F64, normals, ring

from scoresde import Condition, FlowMatching, TrainConfig, fit
from scoresde.core.errors import UsageError
from scoresde.data import load_data
from scoresde.objective.coupling import Pairs, check_coupling, optimal_transport
from scoresde.run.config import TrainConfig as Config
from scoresde.solvers import EulerMaruyama
from scoresde.train import prepared


def cost(x, eps):
    return float((x - eps).square().sum())


def test_it_is_the_cheapest_of_all_permutations():
    for seed in range(5):
        x, eps = normals(5, 3, seed=seed), normals(5, 3, seed=100 + seed)
        best = min(cost(x, eps[list(p)]) for p in itertools.permutations(range(5)))
        assert cost(x, optimal_transport(x, eps)) == pytest.approx(best, rel=1e-12)


def test_every_draw_of_noise_is_used_once_and_the_cost_falls_as_measured():
    # flow_checks.json, ot: a batch of 256 of a 2-D mixture, mean cost 3.52 to 0.314 there (its mixture is another one)
    generator = torch.Generator().manual_seed(0)
    x = ring(FlowMatching()).sample(256, generator)
    eps = torch.randn(256, 2, generator=generator, dtype=F64)
    dealt = optimal_transport(x, eps)
    assert torch.equal(dealt.sort(0).values, eps.sort(0).values) and torch.equal(dealt, optimal_transport(x, eps))
    assert cost(x, dealt) < 0.15 * cost(x, eps)


def test_noise_changes_hands_within_a_class_only():
    labels = torch.arange(40) % 3
    # The classes are far apart: without labels the noise would be dealt by class.
    x, eps = normals(40, 2) + 9 * labels[:, None], normals(40, 2, seed=1)
    dealt = optimal_transport(x, eps, labels)
    for c in range(3):
        assert torch.equal(dealt[labels == c].sort(0).values, eps[labels == c].sort(0).values)
    assert not torch.equal(dealt, optimal_transport(x, eps))


def test_images_are_dealt_out_whole():
    x, eps = normals(6, 1, 4, 4), normals(6, 1, 4, 4, seed=1)
    dealt = optimal_transport(x, eps)
    assert all(any(torch.equal(d, e) for e in eps) for d in dealt)


@pytest.mark.parametrize(
    ("weighting", "predict", "nodes", "reason"),
    [
        ("likelihood", "velocity", False, "the 'likelihood' weighting cannot be used"),
        ("native", "score", False, "cannot predict a score"),
        ("native", "eps", True, "discrete chain"),
    ],
)
def test_what_needs_a_score_goes_with_no_coupling(weighting, predict, nodes, reason):
    check_coupling("independent", weighting, predict, nodes)
    with pytest.raises(UsageError, match=reason):
        check_coupling("ot", weighting, predict, nodes)


def test_an_unknown_coupling_lists_those_there_are():
    data = load_data("moons")
    with pytest.raises(UsageError, match="independent, ot, reflow"):
        prepared(Config(data="moons", coupling="optimal"), data)


def test_a_coupled_run_says_so_and_refuses_what_needs_a_score(tmp_path):
    tiny = {"data": "moons", "steps": 2, "batch": 16, "network_options": {"width": 8, "blocks": 1}}
    run = fit(TrainConfig(sde="flow", coupling="ot", **tiny), out=tmp_path / "ot", quiet=True)
    plain = fit(TrainConfig(sde="flow", **tiny), save=False, quiet=True)
    weights = [torch.cat([p.flatten() for p in r.model.parameters()]) for r in (run, plain)]
    assert plain.model.domain.has_score and not run.model.domain.has_score and not torch.equal(*weights)
    with pytest.raises(UsageError, match="needs the score"):
        run.sample(4, EulerMaruyama(4))
    assert run.sample(4, "ode").solution.ok.all()


def test_pairs_bring_what_is_known_of_their_rows():
    eps = torch.arange(8.0).reshape(4, 2)
    pairs = Pairs(torch.zeros(4, 2), eps, Condition(label=torch.tensor([3, 1, 2, 0]), classes=4))
    batch = pairs(torch.tensor([2, 0]), torch.Generator(), torch.float32)
    assert batch.condition.label.tolist() == [2, 3] and torch.equal(batch.eps, eps[[2, 0]])
