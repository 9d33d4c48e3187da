"""Networks of the original code: what they are shown, how they are read, and its losses, against its own values."""

from __future__ import annotations

import math

import pytest
import torch
from models import CHECKS, F64, PUBLISHED, OnNodes, normals, ring
from torch import nn

from scoresde import DDPM, SMLD, VESDE, VPSDE, FlowMatching, Noise, ScoreModel, TrainConfig, fit
from scoresde.core.errors import UsageError
from scoresde.core.shapes import expand
from scoresde.objective.loss import denoising_loss
from scoresde.run.foreign import OriginalEps, OriginalLevelEps, OriginalLevelScore, OriginalScore, original_loss
from scoresde.solvers import Ancestral, Original, sample
from scoresde.solvers.original import LevelTables

CONTINUOUS = {"vp": OriginalEps(), "subvp": OriginalEps(), "ve": OriginalScore()}
DISCRETE = {"vp": OriginalLevelEps(), "subvp": OriginalEps(), "ve": OriginalLevelScore()}
CHAINS = {"vp": DDPM(), "ve": SMLD()}


class Spy(nn.Module):
    """A network that returns ones, or ``factor`` times its input, and keeps what it was shown."""

    def __init__(self, factor=None):
        super().__init__()
        self.factor, self.shown = factor, None

    def forward(self, x, c, cond=None):
        self.shown = (x, c)
        return torch.ones_like(x) if self.factor is None else self.factor * x


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_c09_label_and_score(name, kind):
    expected = CHECKS["C09"]["expected"][f"{name}_{kind}"]
    spy = Spy()
    model = ScoreModel(spy, PUBLISHED[name], (CONTINUOUS if kind == "continuous" else DISCRETE)[name])
    x = normals(3, 2)
    estimate = model(x, 0.5)
    assert torch.allclose(estimate.score, torch.tensor(expected["score"], dtype=F64), rtol=1e-6)
    shown, label = spy.shown
    assert torch.equal(shown, x)  # nothing scales it
    assert torch.allclose(label, torch.tensor(expected["label_passed_to_network"], dtype=F64), rtol=1e-6)


@pytest.mark.parametrize("name", CHAINS)
def test_c09_on_the_chain(name):
    # t = 0.5 is the level 499 of 1000. There the network has the score of the original, at a label that it was trained
    # with: 499, and from the top 500, where the original's sampler asks the DDPM network at 499.5.
    expected = CHECKS["C09"]["expected"][f"{name}_discrete"]
    spy = Spy()
    model = ScoreModel(spy, CHAINS[name], DISCRETE[name])
    assert torch.allclose(model(normals(3, 2), 0.5).score, torch.tensor(expected["score"], dtype=F64), rtol=1e-6)
    assert float(spy.shown[1][0]) == pytest.approx(499 if name == "vp" else 500, abs=1e-9)
    # every level, and the sigma of the original's tables
    labels = DISCRETE[name].label(CHAINS[name], CHAINS[name].nodes)
    ascending = torch.arange(1000, dtype=F64)
    assert torch.allclose(labels, ascending if name == "vp" else ascending.flip(0), atol=1e-9)
    table = LevelTables.of(PUBLISHED[name], 1000).sigmas
    assert torch.allclose(CHAINS[name].coefficients(CHAINS[name].nodes)[1], table, rtol=1e-12)


@pytest.mark.parametrize("n", [100, 1000])
def test_levels_on_the_continuous_path_are_the_original_table(n):
    # score = -output/sigma_i with i = floor(t (N - 1))
    p, vp = OriginalLevelEps(n), VPSDE()
    t = torch.linspace(1e-3, 1, 41, dtype=F64)
    x = normals(41, 2)
    estimate = ScoreModel(Spy(), vp, p)(x, t)
    table = LevelTables.of(vp, n).sigmas[(t * (n - 1) + 1e-9).long()]
    assert torch.allclose(estimate.score, -1 / expand(table, x).expand(41, 2), rtol=1e-12)
    alpha, sigma = (expand(c, x) for c in vp.coefficients(t))
    assert torch.allclose(alpha * estimate.x0 + sigma * estimate.eps, x, rtol=1e-9)


@pytest.mark.parametrize("reduce", ["mean", "half-sum"])
@pytest.mark.parametrize("likelihood", [False, True], ids=["std", "likelihood"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_c10_losses(name, likelihood, reduce):
    inputs, expected = CHECKS["C10"]["inputs"], CHECKS["C10"]["expected"]
    x0, z, u = (torch.tensor(inputs[k], dtype=F64) for k in ("x0", "z", "u"))
    model = ScoreModel(Spy(0.5), PUBLISHED[name], CONTINUOUS[name])
    ours = original_loss(model, x0, u * (1 - 1e-5) + 1e-5, z, likelihood=likelihood, reduce=reduce)
    key = f"{name}|{'likelihood' if likelihood else 'std'}|{reduce.replace('-', '_')}"
    assert ours.shape == (2,) and float(ours.mean()) == pytest.approx(expected[key], rel=1e-4)


def test_c10_discrete_losses():
    inputs, expected = CHECKS["C10"]["inputs"], CHECKS["C10"]["expected"]
    x0, z = (torch.tensor(inputs[k], dtype=F64) for k in ("x0", "z"))
    labels = torch.tensor([100.0, 800.0], dtype=F64)
    ddpm = ScoreModel(Spy(0.5), DDPM(), OriginalLevelEps())
    loss = original_loss(ddpm, x0, (labels + 1) / 1000, z)
    assert float(loss.mean()) == pytest.approx(expected["ddpm_discrete_mean_labels_100_800"], rel=1e-4)
    assert torch.allclose(ddpm.network.shown[1], labels, atol=1e-9)
    # It is the denoising loss of our own training.
    assert torch.allclose(loss, denoising_loss(ddpm, x0, (labels + 1) / 1000, z), rtol=1e-9)
    # Its SMLD counts the levels from the top: label 100 is the level 899 of 0 ... 999, at t = 0.9.
    smld = ScoreModel(Spy(0.5), SMLD(), OriginalLevelScore())
    t = 1 - labels / 1000
    loss = original_loss(smld, x0, t, z, reduce="half-sum")
    assert float(loss.mean()) == pytest.approx(expected["smld_discrete_half_sum_labels_100_800"], rel=1e-4)
    assert torch.equal(smld.network.shown[1], labels)
    assert torch.allclose(loss, 2 * denoising_loss(smld, x0, t, z, weighting="eps"), rtol=1e-9)


class Trained(nn.Module):
    """What a perfectly trained network of the original returns: it reads the noise level off the original's label."""

    def __init__(self, model, time, score):
        super().__init__()
        self.model, self.time, self.score = model, time, score

    def forward(self, x, c, cond=None):
        estimate = self.model(x, self.time(c).clamp(self.model.domain.t_min, self.model.domain.t_max))
        return estimate.score if self.score else estimate.eps


@pytest.mark.parametrize(
    ("sde", "p", "time"),
    [
        (VPSDE(), OriginalEps(), lambda c: c / 999),
        (VESDE(), OriginalScore(), lambda c: torch.log(c / 0.01) / math.log(5000)),
        (DDPM(), OriginalLevelEps(), lambda c: (c + 1) / 1000),
        (SMLD(), OriginalLevelScore(), lambda c: 1 - c / 1000),
    ],
    ids=["vp", "ve", "ddpm", "smld"],
)
def test_a_network_trained_there_is_used_here(sde, p, time):
    exact = OnNodes(ring(sde))
    model = ScoreModel(Trained(exact, time, isinstance(p, OriginalScore)), sde, p)
    solver, noise = Ancestral(30, "posterior"), Noise.of(16, 1)
    ours, theirs = (sample(m, solver, (2,), noise, dtype=F64).x for m in (model, exact))
    assert float((ours - theirs).abs().max()) < 1e-7
    if sde.nodes is None:
        steps = Original(20, "reverse-diffusion") if isinstance(sde, VESDE) else Original(30)
        ours, theirs = (sample(m, steps, (2,), noise, dtype=F64).x for m in (model, exact))
        assert float((ours - theirs).abs().max()) < 1e-7 * float(theirs.abs().max())


def test_it_is_named_on_the_command_line_and_trains():
    config = TrainConfig(
        data="moons", sde="ddpm", predict="scoresde.run.foreign:OriginalLevelEps", steps=2, batch=8,
        network_options={"width": 8, "blocks": 1},
    )  # fmt: skip
    run = fit(config, save=False, quiet=True)
    assert run.model.parametrization == OriginalLevelEps()


def test_what_has_no_table_is_refused():
    with pytest.raises(UsageError, match="not FlowMatching; use OriginalEps, or the 'ddpm' SDE"):
        ScoreModel(Spy(), FlowMatching(), OriginalLevelEps())
    with pytest.raises(UsageError, match=r"unknown reduction 'sum'; .*half-sum, mean"):
        original_loss(ring(VPSDE()), normals(2, 2), torch.tensor([0.1, 0.2]), normals(2, 2), reduce="sum")
