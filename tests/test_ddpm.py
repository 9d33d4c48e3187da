"""Published algorithms on chains, derived again from the papers with no code of ours, step by step on shared noise."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models import F64, OnNodes, normals, ring
from runs import assert_same, contents, signal_at

from scoresde import DDPM, SMLD, VPSDE, Eps, Guided, Multistep, Noise, RungeKutta, ScoreModel, TrainConfig, fit, load
from scoresde.cli import main
from scoresde.core.errors import Preempted, UsageError
from scoresde.nn import MLP, UNet
from scoresde.objective import loss as objective
from scoresde.objective.loss import denoising_loss
from scoresde.solvers import DDIM, Ancestral, MultistepSDE, sample
from scoresde.solvers.pc import PredictorCorrector, annealed_langevin
from scoresde.train import pictures as train_pictures

N = 50

SMALL = {"data": "moons", "steps": 3, "batch": 16, "network_options": {"width": 8, "blocks": 1}}

SLOW = (pytest.mark.slow,)


def network(outputs: int = 1) -> torch.nn.Module:
    """Some function of x and the label, far from zero."""
    torch.manual_seed(3)
    return stirred(MLP(dims=3, width=16, blocks=1, outputs=outputs))


def stirred(net: torch.nn.Module) -> torch.nn.Module:
    """Everything but the embedding random: a network starts with layers at 0, through which no label is seen."""
    for name, parameter in net.named_parameters():
        if "embedding" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.double().requires_grad_(False)


class Paper:
    """Ho et al. (2020), arXiv:2006.11239, from its formulas, in NumPy; t = 1 ... T as there."""

    def __init__(self, net: torch.nn.Module, steps: int) -> None:
        self.net, self.steps = net, steps
        self.beta = np.concatenate([[np.nan], np.linspace(1e-4, 0.02, steps) * 1000 / steps])  # beta[t], no beta[0]
        self.alpha = 1 - self.beta
        self.bar = np.concatenate([[1.0], np.cumprod(self.alpha[1:])])

    def raw(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        # Our networks are shown log(sigma/alpha)/4 for the time, which is sqrt((1 - bar)/bar) here.
        label = np.log((1 - self.bar[t]) / self.bar[t]) / 8
        return self.net(torch.from_numpy(x), torch.from_numpy(np.broadcast_to(label, len(x)).copy())).numpy()

    def loss(self, x0: np.ndarray, t: np.ndarray, eps: np.ndarray) -> np.ndarray:
        """Algorithm 1: |eps - eps_theta(sqrt(bar) x0 + sqrt(1 - bar) eps, t)|^2, mean over the elements."""
        bar = self.bar[t][:, None]
        return np.square(eps - self.raw(np.sqrt(bar) * x0 + np.sqrt(1 - bar) * eps, t)).mean(1)

    def sample(self, x: np.ndarray, z: list[np.ndarray], variance: str) -> list[np.ndarray]:
        """Algorithm 2: the states x_T ... x_0; z[i] is the noise of the i-th step."""
        states = [x]
        for i, t in enumerate(range(self.steps, 0, -1)):
            eps, v = np.split(np.concatenate([self.raw(x, np.array(t)), np.zeros_like(x)], 1)[:, :6], 2, axis=1)
            mean = (x - self.beta[t] / np.sqrt(1 - self.bar[t]) * eps) / np.sqrt(self.alpha[t])
            tilde = (1 - self.bar[t - 1]) / (1 - self.bar[t]) * self.beta[t]
            if variance == "learned":  # Nichol and Dhariwal (2021), eq. 15, with v from [-1, 1]
                share = (v + 1) / 2
                with np.errstate(divide="ignore"):
                    deviation = np.sqrt(np.exp(share * np.log(self.beta[t]) + (1 - share) * np.log(tilde)))
            else:
                deviation = np.sqrt({"beta": self.beta[t], "posterior": tilde}[variance])
            x = mean + deviation * z[i] if t > 1 else mean
            states.append(x)
        return states


@pytest.mark.parametrize("steps", [N, 1000])
def test_algorithm_1(steps):
    net = network()
    paper, model = Paper(net, steps), ScoreModel(net, DDPM(steps), Eps())
    t = np.array([1, 2, 3, steps // 7, steps // 2, steps - 1, steps])
    x0, eps = normals(7, 3), normals(7, 3, seed=1)
    ours = denoising_loss(model, x0, torch.from_numpy(t).double() / steps, eps)
    assert float((ours - torch.from_numpy(paper.loss(x0.numpy(), t, eps.numpy()))).abs().max()) < 1e-10


def test_algorithm_1_in_training(monkeypatch):
    """What `fit` minimises, at each step: the paper's loss of its batch, its noise and its nodes."""
    means = []

    def spy(model, x0, t, eps, *rest):
        losses = denoising_loss(model, x0, t, eps, *rest)
        index = t * N
        assert float((index - index.round()).abs().max()) < 1e-12 and 1 <= index.min() and index.max() < N + 0.5
        with torch.no_grad():
            expected = Paper(model.network, N).loss(x0.numpy(), index.round().long().numpy(), eps.numpy())
        assert np.abs(losses.detach().numpy() - expected).max() < 1e-10
        means.append((float(losses.detach().mean()), float(eps.square().mean())))
        return losses

    monkeypatch.setattr(objective, "denoising_loss", spy)
    config = TrainConfig(predict="eps", sde=DDPM(N), **{**SMALL, "steps": 3, "batch": 40})
    assert fit(config, save=False, quiet=True, dtype=F64).config.weighting == "native"
    assert len(means) == 3 and means[0][0] == pytest.approx(means[0][1])  # a network starts at 0
    assert means[2][0] != pytest.approx(means[2][1], rel=1e-4)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
@pytest.mark.parametrize("steps", [N, pytest.param(1000, marks=SLOW)])
def test_algorithm_2(steps, variance):
    net = network(outputs=2 if variance == "learned" else 1)
    model = ScoreModel(net, DDPM(steps), Eps(), learn_variance=variance == "learned")
    noise = Noise.of(5, seed=9)
    z = [noise.normal((3,), i, "solver", F64).numpy() for i in range(steps)]
    start = noise.normal((3,), stream="prior", dtype=F64)
    states = np.stack(Paper(net, steps).sample(start.numpy(), z, variance), 1)
    solver = Ancestral(steps - 1, variance="auto" if variance == "learned" else variance)
    ours = sample(model, solver, (3,), noise, dtype=F64, record=True)
    size = np.abs(states).max()
    assert ours.nfe.tolist() == [steps] * 5 and size < 1e3
    for row in range(5):
        found = ours.trajectory.states(row).numpy()
        assert found.shape == (steps, 3) and np.abs(found - states[row, :-1]).max() < 1e-10 * size
    assert np.abs(ours.x.numpy() - states[:, -1]).max() < 1e-10 * size
    # and the variance is no matter of rounding
    other = Ancestral(steps - 1, variance="posterior" if variance == "beta" else "beta")
    assert float((sample(model, other, (3,), noise, dtype=F64).x - ours.x).abs().max()) > 1e-4


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_long_steps_have_the_variances_of_the_shorter_chain(variance):
    # Nichol and Dhariwal (2021), sec. 4: on a part of the nodes, beta_t = 1 - bar_t/bar_s and what follows from it.
    net = network(outputs=2)
    model = ScoreModel(net, DDPM(N), Eps(), learn_variance=True)
    paper, noise, x = Paper(net, N), Noise.of(4, 2), normals(4, 3)
    solved = Ancestral(1, variance=variance)(model, x, t0=40 / N, t1=25 / N, noise=noise).x
    eps, v = np.split(paper.raw(x.numpy(), np.array(40)), 2, axis=1)
    alpha = paper.bar[40] / paper.bar[25]
    beta, tilde = 1 - alpha, (1 - paper.bar[25]) / (1 - paper.bar[40]) * (1 - alpha)
    mean = (x.numpy() - beta / np.sqrt(1 - paper.bar[40]) * eps) / np.sqrt(alpha)
    share = {"posterior": 0.0, "beta": 1.0, "learned": (v + 1) / 2}[variance]
    expected = mean + np.sqrt(beta**share * tilde ** (1 - share)) * noise.normal((3,), 0, dtype=F64).numpy()
    assert np.abs(solved.numpy() - expected).max() < 1e-10


# ------------------------------------------------------------------------------------------------- the same in two ways


@pytest.mark.parametrize("grid", ["auto", "sqrt", "logsnr"])
@pytest.mark.parametrize("sde", [DDPM(200), DDPM(200, "cosine"), SMLD(200), VPSDE()], ids=str)
def test_ddim_is_exponential_euler_and_ancestral_sampling(sde, grid):
    model = OnNodes(ring(sde))
    low, high = model.domain.interval("sample")
    x, noise = sde.prior_std * normals(8, 2), Noise.of(8, 4)

    def end(solver):
        return solver(model, x, t0=high, t1=low, noise=noise).x

    # eta = 0: the flow at first order in the log-SNR, in any of the variables
    for variable in ("x0", "eps", "straight"):
        exponential = end(Multistep(6, variable, 1, correct=False, grid=grid))
        assert float((end(DDIM(6, grid=grid)) - exponential).abs().max()) < 1e-10 * sde.prior_std
    # eta = 1: the posterior's variance, and the exponential step of the reverse SDE
    ancestral = end(Ancestral(6, variance="posterior", grid=grid))
    for other in (DDIM(6, eta=1.0, grid=grid), MultistepSDE(6, order=1, grid=grid), Ancestral(6, grid=grid)):
        assert float((end(other) - ancestral).abs().max()) < 1e-10 * sde.prior_std
    assert float((end(Ancestral(6, variance="beta", grid=grid)) - ancestral).abs().max()) > 1e-3


def song_and_ermon(score, x, sigmas, eps, steps, z):
    """Song and Ermon (2019), arXiv:1907.05600, alg. 1: the states after each level, sigma_1 the largest."""
    states, k = [], 0
    for sigma in sigmas:
        step = eps * sigma**2 / sigmas[-1] ** 2
        for _ in range(steps):
            x = x + step / 2 * score(x, sigma) + np.sqrt(step) * z[k]
            k += 1
        states.append(x)
    return states


def test_ald_on_the_levels_of_smld_is_algorithm_1_of_song_and_ermon():
    levels, repeats, eps = 10, 7, 2e-5
    sigmas = np.geomspace(1.0, 0.01, levels)  # theirs
    angle = np.arange(8) * np.pi / 4
    means = 1.3 * np.stack([np.cos(angle), np.sin(angle)], 1)

    def score(x, sigma):
        # of the ring of eight Gaussians of width 0.15, blurred by sigma
        residual = means - x[:, None]
        log = -np.square(residual).sum(2) / (2 * (0.15**2 + sigma**2))
        share = np.exp(log - log.max(1, keepdims=True))
        return ((share / share.sum(1, keepdims=True))[..., None] * residual).sum(1) / (0.15**2 + sigma**2)

    noise, x = Noise.of(6, 1), normals(6, 2)
    z = [noise.normal((2,), k, "corrector", F64).numpy() for k in range(levels * repeats)]
    expected = song_and_ermon(score, x.numpy(), sigmas, eps, repeats, z)
    model = OnNodes(ring(SMLD(levels, 0.01, 1.0)))
    solver = annealed_langevin(levels - 1, snr=math.sqrt(eps) / (2 * 0.01), corrections=repeats, start=True)
    solved = solver(model, x, noise=noise, record=True)
    assert solved.nfe.tolist() == [levels * repeats] * 6
    for row in range(6):
        found = solved.trajectory.states(row).numpy()[1:]  # the first is the start, before its corrections
        assert np.abs(found - np.stack(expected, 1)[row, 1:]).max() < 1e-10
    # without `start`, the first level is left out
    assert annealed_langevin(levels - 1, corrections=repeats)(model, x, noise=noise).nfe.tolist() == [63] * 6


def test_the_start_of_a_corrector():
    assert annealed_langevin(start=True).within(20).steps == 3 and annealed_langevin().within(20).steps == 4
    assert annealed_langevin(start=True).within(4) is None and annealed_langevin(start=True).within(9) is None
    assert annealed_langevin(start=True).within(10).steps == 1
    with pytest.raises(UsageError, match="the 'cp' sequence, which always corrects"):
        PredictorCorrector(start=True, sequence="cp")


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_variance_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="unknown variance 'larned'; did you mean 'learned'"):
        Ancestral(variance="larned")
    with pytest.raises(UsageError, match="this model did not learn it; train with learn_variance=True"):
        Ancestral(3, variance="learned")(ring(VPSDE()), normals(2, 2))
    with pytest.raises(UsageError, match=r"VPSDE has no nodes.*the 'ddpm' or 'smld' SDE"):
        ScoreModel(network(2), VPSDE(), Eps(), learn_variance=True)
    plain = ScoreModel(network(), DDPM(N), Eps(), learn_variance=True)
    with pytest.raises(
        UsageError, match=r"a tensor of shape \(2, 3\) for an input of shape \(2, 3\); .* twice as many channels"
    ):
        plain(normals(2, 3), 0.5)


def test_the_share_of_the_variance():
    model = ScoreModel(network(2), DDPM(N), Eps(), learn_variance=True)
    x = normals(4, 3)
    estimate = model(x, 0.5)
    raw = network(2)(x, torch.full((4,), float(-DDPM(N).log_snr(torch.tensor(0.5, dtype=F64)) / 8), dtype=F64))
    assert torch.allclose(estimate.frac, (raw[:, 3:] + 1) / 2) and torch.allclose(estimate.eps, raw[:, :3])
    assert estimate.share() is estimate.frac is estimate.share("learned")
    assert (float(estimate.share("posterior")), float(estimate.share("beta"))) == (0.0, 1.0)
    known = dataclasses.replace(estimate, frac=None)
    assert float(known.share()) == 0.0


def test_guidance_keeps_the_variance_of_the_conditional_model():
    torch.manual_seed(0)
    net = stirred(MLP(dims=3, width=8, blocks=1, classes=2, outputs=2))
    model = ScoreModel(net, DDPM(N), Eps(), classes=2, learn_variance=True)
    cond, uncond = model.given(torch.tensor([0, 1, 1, 0])), model.given(2)
    x = normals(4, 3)
    guided = Guided(cond, uncond, 3.0)
    assert torch.equal(guided(x, 0.5).frac, cond(x, 0.5).frac) and guided.domain.nodes is not None
    assert not torch.equal(guided(x, 0.5).frac, uncond(x, 0.5).frac)
    rows = torch.tensor([2, 0])
    assert torch.allclose(guided.rows(rows)(x[rows], 0.5).frac, cond(x, 0.5).frac[rows])
    assert bool(Ancestral(9)(guided, x, noise=Noise.of(4)).ok.all())


# ------------------------------------------------------------------------------------------------- from end to end

MOONS = TrainConfig(sde="ddpm", sde_options={"steps": N}, predict="eps", **SMALL)
RUNS = {
    "ddpm": MOONS,
    "learned": dataclasses.replace(MOONS, learn_variance=True),
    "smld": dataclasses.replace(
        MOONS, sde="smld", sde_options={"steps": 12, "sigma_max": 5.0}, predict="score", learn_variance=True
    ),
    "given": dataclasses.replace(MOONS, sde_options={"betas": [0.1, 0.2, 0.5, 0.9]}, sample_every=1),
    "digits": TrainConfig(
        sde="ddpm", sde_options={"schedule": "cosine", "steps": 20}, steps=2, batch=8, network_options={"channels": 4},
        learn_variance=True, cond="class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["smld", "given", "digits"])
def test_train_save_load_sample(name, tmp_path, request, monkeypatch):
    config = RUNS[name]
    if name == "given":  # shorter than the 16 steps of the pictures during training, which are two elsewhere
        request.getfixturevalue("pictures")
        monkeypatch.setattr(train_pictures, "RungeKutta", RungeKutta)
    run = fit(config, out=tmp_path / "r", quiet=True)
    if name == "given":
        assert len(list((tmp_path / "r" / "samples").iterdir())) == config.steps
    again = load(tmp_path / "r")
    assert again.model.domain.sde == run.model.domain.sde and again.config == run.config
    assert again.model.learn_variance == config.learn_variance
    steps = again.model.domain.sde.steps
    for variance in ("auto", "beta", "posterior"):
        ours, theirs = (r.sample(3, Ancestral(steps - 1, variance)).x for r in (run, again))
        assert bool(torch.isfinite(ours).all()) and torch.equal(ours, theirs)
    if config.learn_variance:
        assert torch.equal(again.sample(3, Ancestral(steps - 1, "learned")).x, again.sample(3, Ancestral(steps - 1)).x)
    assert bool(again.sample(3).solution.ok.all())  # by the probability flow, between the nodes
    if name == "digits":
        assert bool(again.given(3).guided(2.0).sample(2, Ancestral(5)).solution.ok.all())
        assert isinstance(again.model.network, UNet) and again.model.network.leave[-1].out_channels == 2


@pytest.mark.parametrize("name", [pytest.param("ddpm", marks=SLOW), "learned"])
def test_a_resumed_chain_is_the_same_to_the_last_bit(name, tmp_path, monkeypatch):
    import signal

    fit(RUNS[name], out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGTERM)
        with pytest.raises(Preempted):
            fit(RUNS[name], out=tmp_path / "parts", quiet=True)
    fit(RUNS[name], out=tmp_path / "parts", resume=True, quiet=True)
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    with pytest.raises(UsageError, match="has learn_variance = "):
        other = dataclasses.replace(RUNS[name], learn_variance=not RUNS[name].learn_variance)
        fit(other, out=tmp_path / "parts", resume=True, quiet=True)


def test_the_learned_variance_moves_in_training(monkeypatch):
    config = dataclasses.replace(RUNS["learned"], steps=30, lr=5e-3)
    run = fit(config, save=False, quiet=True)
    estimate = run.model(torch.randn(200, 2), 0.1)
    assert float((estimate.frac - 0.5).abs().mean()) > 1e-3


def test_what_cannot_learn_its_variance_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"learn_variance: VPSDE has no nodes"):
        fit(TrainConfig(data="moons", learn_variance=True), out="r", quiet=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="learn_variance is 1; it must be true or false"):
        TrainConfig(learn_variance=1)
    with pytest.raises(UsageError, match="cond_drop is True; it must be a number"):
        TrainConfig(cond_drop=True)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def shell(line: str, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        out, err = capsys.readouterr()
        assert stop.value.code == code, err
        return out + err

    small = "--data moons --steps 2 --batch 8 --set network.width=8 --set network.blocks=1 --quiet"
    shell(f"train --sde ddpm --set sde.steps=30 --set learn_variance=true {small} --out r")
    stored = json.loads(Path("r/config.json").read_text())["config"]
    assert stored["learn_variance"] is True and stored["sde"] == "ddpm" and stored["predict"] == "edm"
    shell("sample r --solver ancestral --steps 29 --n 4 --quiet --set solver.variance=beta")
    assert "use at most 29 steps" in shell("sample r --solver ancestral --steps 30 --n 4 --quiet", 2)
    assert "VPSDE has no nodes" in shell(f"train --set learn_variance=true {small} --out v", 2)
    shell(f"train --sde smld --set sde.steps=12 {small} --out s")
    shell("sample s --solver ald --steps 11 --snr 0.2 --n 4 --quiet --set solver.start=true")
    assert "variational" not in shell("likelihood s --limit 4 --quiet")
