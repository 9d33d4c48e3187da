"""A path whose ends are learned: by the variational bound, with its gradient, through checkpoint and average."""

from __future__ import annotations

import math

import pytest
import torch
from models import F64, normals

from scoresde import EDM, VDMSDE, ScoreModel, Shifted, TrainConfig, fit, load
from scoresde.core.errors import UsageError
from scoresde.core.files import read_tensors
from scoresde.data import load_data
from scoresde.nn import MLP
from scoresde.objective.loss import denoising_loss, end_terms
from scoresde.run.files import newest_checkpoint
from scoresde.train import prepared

TINY = TrainConfig(
    data="moons", sde="vdm", sde_options={"learn": True}, steps=6, batch=32, lr=0.05,
    network_options={"width": 8, "blocks": 1},
)  # fmt: skip


def test_the_bound_of_an_exact_model_is_the_entropy_of_the_data_whatever_the_ends():
    # Data N(0, s^2): the best estimate leaves E|eps - eps_hat|^2 = alpha^2 s^2/(alpha^2 s^2 + sigma^2) per dimension.
    std = 0.7
    for ends in ((16.0, -12.0), (12.0, -10.0)):
        sde = VDMSDE(*ends)
        t = torch.linspace(sde.t_min, sde.t_max, 40_001, dtype=F64)
        alpha, sigma = sde.coefficients(t)
        left = (alpha * std).square() / ((alpha * std).square() + sigma.square())
        middle = torch.trapezoid(left * (ends[0] - ends[1]), t)
        # end_terms needs x^2 alone, and E x^2 = s^2
        model = ScoreModel(MLP(dims=1, width=8, blocks=1), sde, EDM())
        bound = middle + end_terms(model, torch.full((1, 1), std, dtype=F64))
        assert float(bound) == pytest.approx(1 + math.log(2 * math.pi * std**2), abs=2e-4)


def test_the_gradient_of_the_ends_is_that_of_the_whole_bound():
    torch.manual_seed(0)
    network = MLP(dims=3, width=16, blocks=1).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, eps, t = normals(64, 3), normals(64, 3, seed=1), torch.linspace(0.01, 0.99, 64, dtype=F64)

    def bound(sde):
        model = ScoreModel(network, sde, EDM())
        return (denoising_loss(model, x, t, eps, weighting="likelihood") + end_terms(model, x)).mean()

    learned = VDMSDE(11.0, -4.0, learn=True)
    for end in learned.parameters().values():
        end.data = end.data.double()
    bound(learned).backward()
    for name, other in (("log_snr_max", {"log_snr_min": -4.0}), ("log_snr_min", {"log_snr_max": 11.0})):
        at, h = {"log_snr_max": 11.0, "log_snr_min": -4.0}[name], 1e-5
        up, down = (float(bound(VDMSDE(**other, **{name: at + d})).detach()) for d in (h, -h))
        assert float(learned.parameters()[name].grad) == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_learned_ends_are_trained_averaged_saved_and_loaded(tmp_path):
    run = fit(TINY, out=tmp_path / "run", quiet=True)
    sde = run.model.domain.sde
    ends = {name: float(end) for name, end in sde.parameters().items()}
    assert ends["log_snr_max"] != 13.3 and ends["log_snr_min"] != -5.0
    stored = read_tensors(newest_checkpoint(tmp_path / "run") / "ema.safetensors")
    assert float(stored["schedule.log_snr_max"]) == ends["log_snr_max"]
    again = load(tmp_path / "run")
    assert {name: float(end) for name, end in again.model.domain.sde.parameters().items()} == ends
    t = torch.tensor(0.0, dtype=F64)
    assert float(again.model.domain.sde.log_snr(t)) == ends["log_snr_max"]
    a, b = (r.sample(4, "multistep").x for r in (run, again))
    assert torch.equal(a, b)
    moved = fit(again.config, out=tmp_path / "run", resume=True, quiet=True)
    assert {name: float(end) for name, end in moved.model.domain.sde.parameters().items()} == ends


def test_the_ends_are_learned_by_the_bound_or_not_at_all():
    data = load_data("moons")
    assert prepared(TINY, data)[0].weighting == "likelihood"
    with pytest.raises(UsageError, match="only the 'likelihood' weighting"):
        prepared(TrainConfig(data="moons", sde="vdm", sde_options={"learn": True}, weighting="eps"), data)
    plain = prepared(TrainConfig(data="moons", sde="vdm"), data)
    assert plain[0].weighting == "native" and not plain[1].sde.parameters()


def test_what_a_shifted_path_learns_is_what_the_path_learns():
    assert sorted(Shifted(VDMSDE(learn=True), 2.0).parameters()) == ["log_snr_max", "log_snr_min"]


@pytest.mark.filterwarnings("error")
def test_learned_ends_are_checked_without_a_warning():
    VDMSDE(learn=True).check()
