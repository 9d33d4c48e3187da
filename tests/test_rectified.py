"""Rectified flow: pairs that belong together, and paths that get straighter."""

from __future__ import annotations

import pytest
import torch
from models import F64, gaussian, ring

from scoresde import (
    VPSDE,
    FlowMatching,
    GaussianMixture,
    Noise,
    ProbabilityFlow,
    Run,
    TrainConfig,
    fit,
    load,
    straightness,
)
from scoresde.core.errors import UsageError
from scoresde.core.files import read_tensors
from scoresde.data import load_data
from scoresde.solvers import EulerMaruyama
from scoresde.train.reflow import draw_pairs, reflow

TINY = TrainConfig(data="moons", sde="flow", steps=3, batch=16, network_options={"width": 8, "blocks": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A teacher."""
    return fit(TINY, out=tmp_path_factory.mktemp("teacher") / "run", quiet=True)


def test_one_gaussian_in_closed_form():
    # Data N(0, s^2): y_r = y_1 sqrt(v_r / v_1), v_r = (1 - r)^2 s^2 + r^2, so that (1) is an integral over r.
    for std in (0.2, 1.0):
        r = torch.linspace(1, 1e-5, 20_001, dtype=F64)
        root = ((1 - r).square() * std**2 + r.square()).sqrt()
        speed = torch.trapezoid((torch.gradient(root, spacing=(r,))[0]).square(), r)
        chord = (root[-1] - root[0]) / (r[-1] - r[0])
        expected = 1 - float(chord.square() * (r[-1] - r[0]) / speed)
        model = gaussian(FlowMatching(), mean=0.0, std=std)
        assert straightness(model, Noise.of(64), (4,), steps=400, dtype=F64) == pytest.approx(expected, rel=0.02)


def test_it_does_not_depend_on_the_path():
    a, b = (straightness(ring(sde), Noise.of(128), (2,), dtype=F64) for sde in (FlowMatching(), VPSDE()))
    assert a == pytest.approx(b, rel=0.03)  # VP starts at r = 0.9935


def test_a_pair_is_the_noise_and_the_sample_it_came_from(run):
    pairs = draw_pairs(run, 5, batch=2, quiet=True)
    low = run.model.domain.sde.times("sample")[0]
    solved = ProbabilityFlow(1e-4, 1e-4)(run.model, pairs.eps)
    assert torch.allclose(run.model(solved.x, low).x0, pairs.x0, atol=1e-5)
    assert not torch.equal(pairs.eps, draw_pairs(run, 5, seed=1, quiet=True).eps)
    with pytest.raises(UsageError, match="draws noise at each step"):
        draw_pairs(run, 5, EulerMaruyama(3))


def test_a_rectified_run_keeps_its_pairs_starts_from_the_weights_and_resumes(run, tmp_path):
    straight = reflow(run, pairs=32, steps=4, out=tmp_path / "straight", quiet=True)
    again = load(tmp_path / "straight")
    assert not again.model.domain.has_score and again.config.coupling == "reflow" and again.config.steps == 4
    kept = read_tensors(tmp_path / "straight" / "pairs.safetensors")
    assert torch.equal(kept["x0"], draw_pairs(run, 32, quiet=True).x0)
    # A few small steps from the teacher's weights, not from other ones.
    apart = [(a - b).abs().max() for a, b in zip(straight.model.parameters(), run.model.parameters(), strict=True)]
    assert 0 < float(max(apart)) < 0.05
    longer = fit(again.config, out=tmp_path / "straight", resume=True, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(longer.model.parameters(), straight.model.parameters(), strict=True))


def test_labels_go_with_their_pairs(tmp_path):
    tiny = TrainConfig(sde="flow", steps=2, batch=8, network_options={"channels": 4}, cond="class")
    run = fit(tiny, save=False, quiet=True)
    data = load_data("digits")
    pairs = draw_pairs(run.given(data.train_labels[:3]), 3, batch=2, quiet=True)
    alone = run.given(int(data.train_labels[1])).sample(1, ProbabilityFlow(1e-4), start=2**40 + 1)
    assert torch.allclose(pairs.x0[1:2], alone.solution.x, atol=1e-5)
    assert reflow(run, pairs=8, steps=2, data=data, save=False, quiet=True).model.classes == 10


def test_the_coupling_reflow_needs_pairs(tmp_path):
    with pytest.raises(UsageError, match="must be used together"):
        fit(TrainConfig(coupling="reflow"), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_straight_where_there_is_one_point():
    point = GaussianMixture(VPSDE(), torch.ones(1, 2, dtype=F64), torch.zeros(1, dtype=F64))
    assert straightness(point, Noise.of(8), (2,), dtype=F64) < 1e-12
