"""Discrete chains against published tables, Bayes' rule and the SDEs that they go to; nodes and who visits them."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from models import ALL, CHECKS, F64, OnNodes, gaussian, normals, ring, watched

from scoresde import (
    DDPM,
    SDE,
    SMLD,
    VDMSDE,
    VESDE,
    VPSDE,
    Eps,
    FlowMatching,
    GaussianMixture,
    Likelihood,
    Multistep,
    Noise,
    ProbabilityFlow,
    RungeKutta,
    ScoreModel,
    Shifted,
    convert,
    fit,
)
from scoresde.core.errors import UsageError
from scoresde.core.registry import construct, fields_of, options_of, resolve
from scoresde.core.tables import SOLVERS
from scoresde.nn import MLP
from scoresde.objective.loss import denoising_loss
from scoresde.run.config import TrainConfig, build_sde
from scoresde.sde.grids import GRIDS, make_grid, nearest_node, snap
from scoresde.sde.marginal import forward_step, posterior
from scoresde.solvers import DDIM, AdaptiveSDE, Ancestral, MultistepSDE, sample
from scoresde.solvers.base import grid_of

CHAINS = {
    "linear": DDPM(),
    "scaled-linear": DDPM(200, "scaled-linear"),
    "cosine": DDPM(100, "cosine"),
    "given": DDPM(betas=(0.1, 0.05, 0.3, 0.2, 0.9)),
    "short": DDPM(30),
    "smld": SMLD(),
    "ncsn": SMLD(10, 0.01, 1.0),
}
MEMBERS = [*CHAINS.values()]


def chain_of(network=None, sde=None, **options):
    torch.manual_seed(0)
    return ScoreModel(network or MLP(dims=2, width=8, blocks=1), sde or DDPM(50), Eps(), **options).double()


# ----------------------------------------------------------------------------------------------------------- the tables


def published(schedule: str, n: int) -> np.ndarray:
    """The betas, from the papers' formulas."""
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, n) * 1000 / n
    if schedule == "scaled-linear":
        return np.linspace(0.00085**0.5, 0.012**0.5, n) ** 2 * 1000 / n
    f = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


@pytest.mark.parametrize("n", [50, 1000, 4000])
@pytest.mark.parametrize("schedule", ["linear", "scaled-linear", "cosine"])
def test_the_nodes_have_the_products_of_the_published_betas(schedule, n):
    chain, betas = DDPM(n, schedule), published(schedule, n)
    assert np.allclose(chain.beta.numpy(), betas, rtol=1e-9)
    bar = torch.from_numpy(np.cumprod(1 - betas))
    alpha, sigma = chain.coefficients(chain.nodes)
    assert chain.nodes.tolist() == [(i + 1) / n for i in range(n)]
    assert torch.allclose(alpha.square(), bar, rtol=1e-9, atol=0)
    assert torch.allclose(sigma.square(), 1 - bar, rtol=1e-9, atol=0)
    assert chain.prior_std == 1.0 and (chain.t_min, chain.t_max) == (1 / n, 1.0)


def test_c03_the_default_chains_are_the_original_tables():
    expected = CHECKS["C03"]["expected"]
    for chain, names in (
        (DDPM(), {"vp_alphas_cumprod": 0, "vp_sqrt_1m_alphas_cumprod": 1}),
        (SMLD(), {"ve_discrete_sigmas": 1}),
    ):
        tables = [c[expected["index"]] for c in chain.coefficients(chain.nodes)]
        tables[0] = tables[0].square()
        for name, which in names.items():
            assert torch.allclose(tables[which], torch.tensor(expected[name], dtype=F64), rtol=1e-12, atol=0), name
    assert torch.allclose(DDPM().beta[expected["index"]], torch.tensor(expected["vp_discrete_betas"], dtype=F64))


def test_between_the_nodes_log_alpha_and_log_sigma_are_straight():
    for chain, part in ((CHAINS["given"], 0), (CHAINS["ncsn"], 1)):
        for s, t in pairwise(chain.nodes.tolist()):
            ends = [chain.coefficients(torch.tensor(u, dtype=F64))[part].log() for u in (s, t)]
            between = torch.linspace(s, t, 7, dtype=F64)
            straight = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, 7, dtype=F64)
            assert torch.allclose(chain.coefficients(between)[part].log(), straight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chain", MEMBERS, ids=[*CHAINS])
def test_closed_forms_are_the_derivatives_and_the_inverse(chain):
    t = torch.cat([chain.nodes, torch.linspace(chain.t_min, 1, 1003, dtype=F64)])
    # The derivative of expm1 is made as expm1 + 1, which leaves 1e-16 of the sigma' that vanishes with alpha^2.
    for closed, derived in zip(chain.rates(t), SDE.rates(chain, t), strict=True):
        assert torch.allclose(closed, derived, rtol=1e-12, atol=1e-13)
    assert torch.allclose(chain.diffusion_squared(t), SDE.diffusion_squared(chain, t), rtol=1e-8)
    assert float((chain.t_of_log_snr(SDE.log_snr(chain, t)) - t).abs().max()) < 1e-11
    assert float((SDE.t_of_log_snr(chain, SDE.log_snr(chain, t)) - t).abs().max()) < 1e-11


@pytest.mark.parametrize("n", [2, 7, 49, 1000, 10_000])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_slope_at_a_node_is_that_of_the_step_to_it(n, dtype):
    # Rounding puts many nodes a bit above i/N, into the next interval: g^2 = -N log(1 - beta_i) must not notice.
    chain = DDPM(n, "cosine")
    found, expected = chain.diffusion_squared(chain.nodes.to(dtype)).to(F64), -n * torch.log1p(-chain.beta)
    # log alpha of the table in the dtype of t: a difference of two that are 1e-7 or 1e-16 off, over 1/n
    size = torch.finfo(dtype).eps * n * chain._table.abs()[1:]
    assert bool(((found - expected).abs() <= 4 * size + 1e-12 * expected).all())


def test_float32_keeps_its_digits_near_the_data():
    chain = DDPM()
    ours = chain.sigma(chain.nodes.float())
    assert torch.allclose(ours.double(), chain.sigma(chain.nodes), rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("chain", MEMBERS, ids=[*CHAINS])
def test_a_chain_is_written_to_json_and_read_again(chain):
    config = TrainConfig(sde=chain)
    read = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert read.sde in ("ddpm", "smld")
    again = build_sde(read)
    assert again == chain and torch.equal(again.coefficients(chain.nodes)[1], chain.coefficients(chain.nodes)[1])
    assert construct(type(chain), "SDE", "chain", options_of(chain)) == chain and hash(again) == hash(chain)
    assert dataclasses.replace(chain) == chain


def test_given_betas_give_the_steps():
    chain = DDPM(betas=[0.1, 0.2, 0.4])
    assert chain.steps == 3 and chain.betas == (0.1, 0.2, 0.4) and chain.t_min == 1 / 3
    assert float(chain.alpha(chain.nodes[-1])) ** 2 == pytest.approx(0.9 * 0.8 * 0.6, rel=1e-14)
    assert DDPM(40, start=0.01, end=0.3).beta[[0, 39]].tolist() == pytest.approx([0.01, 0.3])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDPM(20), ["beta is 1 at step 20 of 20", "more than 20", "cosine"]),
        (lambda: DDPM(schedule="cosin"), ["'cosin'", "did you mean 'cosine'", "linear, scaled-linear"]),
        (lambda: DDPM(1), ["steps is 1", ">= 2"]),
        (lambda: DDPM(steps=10.5), ["steps is 10.5"]),
        (lambda: DDPM(betas=(0.1, 0.0, 0.2)), ["beta is 0 at step 2 of 3"]),
        (lambda: DDPM(betas=(1.0, 0.1)), ["beta is 1 at step 1 of 2"]),
        (lambda: DDPM(betas=(0.1, 1.0, 1.0)), ["beta is 1 at step 2 of 3"]),
        (lambda: DDPM(20, zero_snr=True, start=0.01, end=2.0), ["end is 2.0"]),
        (lambda: DDPM(betas=(0.1, 0.2), end=0.3), ["given betas cannot be combined with start=None and end=0.3"]),
        (lambda: DDPM(schedule="cosine", start=1e-4), ["the 'cosine' schedule cannot be combined with start=0.0001"]),
        (lambda: SMLD(sigma_min=2.0, sigma_max=1.0), ["sigma_min is 2.0 and sigma_max is 1.0"]),
        (lambda: SMLD(steps=0), ["SMLD: steps is 0"]),
    ],
)
def test_what_is_no_chain_is_refused(make, words):
    with pytest.raises(UsageError) as error:
        make()
    for word in words:
        assert word in str(error.value)


# --------------------------------------------------------------------------------------------------- steps up and down


@pytest.mark.parametrize("chain", MEMBERS, ids=[*CHAINS])
def test_steps_from_node_to_node_compose_to_the_jump(chain):
    # Ho et al. 2020, eq. 2 applied i times is eq. 4; from the data: alpha = 1, sigma = 0, the first step is the jump.
    alpha, sigma = (c.tolist() for c in chain.coefficients(chain.nodes))
    a, variance = alpha[0], sigma[0] ** 2
    for i in range(1, chain.steps):
        step, noise = forward_step(chain, chain.nodes[i], chain.nodes[i - 1])
        if isinstance(chain, DDPM):
            assert float(step) ** 2 == pytest.approx(1 - float(chain.beta[i]), rel=1e-10)
            assert float(noise) == pytest.approx(float(chain.beta[i]), rel=1e-6)
        a, variance = a * float(step), variance * float(step) ** 2 + float(noise)
        assert a == pytest.approx(alpha[i], rel=1e-10) and variance == pytest.approx(sigma[i] ** 2, rel=1e-9)


@pytest.mark.parametrize("sde", [*MEMBERS, *ALL.values()], ids=[*CHAINS, *ALL])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.9, 0.8), (0.5, 0.1), (0.1, 0.01)])
def test_the_posterior_is_bayes_rule(sde, t, s):
    # q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0): precisions add up, and so do precision times mean.
    t, s = torch.tensor(t, dtype=F64), torch.tensor(s, dtype=F64)
    step, noise = forward_step(sde, t, s)
    alpha, sigma = sde.coefficients(s)
    precision = 1 / sigma**2 + step**2 / noise
    a, b, v = posterior(sde, t, s)
    assert float(v) == pytest.approx(float(1 / precision), rel=1e-9)
    assert float(a) == pytest.approx(float(alpha / sigma**2 / precision), rel=1e-9)
    assert float(b) == pytest.approx(float(step / noise / precision), rel=1e-9, abs=1e-15)


def test_the_posterior_of_ddpm_is_the_published_one():
    # Ho et al. 2020, eq. 7, between all neighbours.
    chain, betas = DDPM(), published("linear", 1000)
    bar = np.cumprod(1 - betas)
    a, b, v = (c.numpy() for c in posterior(chain, chain.nodes[1:], chain.nodes[:-1]))
    assert np.allclose(a, np.sqrt(bar[:-1]) * betas[1:] / (1 - bar[1:]), rtol=1e-8)
    assert np.allclose(b, np.sqrt(1 - betas[1:]) * (1 - bar[:-1]) / (1 - bar[1:]), rtol=1e-8)
    assert np.allclose(v, (1 - bar[:-1]) / (1 - bar[1:]) * betas[1:], rtol=1e-8)


# --------------------------------------------------------------------------------------------------------- the bridge


def orders(errors: list[float]) -> list[float]:
    """Of the error's fall from N = 100 to 1000 to 10000."""
    return [math.log10(a / b) for a, b in pairwise(errors)]


LENGTHS = (100, 1000, 10_000)
PAIRS = {"ddpm": (DDPM, VPSDE()), "smld": (SMLD, VESDE())}


def errors_of(kind: str, what: str) -> list[float]:
    """How far chains of 100, 1000 and 10000 levels are from the SDE that they go to (see docs/mathematics.md)."""
    make, sde = PAIRS[kind]
    model, noisy = ring(sde), torch.linspace(0.1, 1, 10, dtype=F64)
    x0, z = normals(10, 2), normals(10, 2, seed=1)
    found = []
    for n in LENGTHS:
        chain = make(n)
        if what == "marginals":
            ours, theirs = chain.coefficients(noisy), sde.coefficients(noisy)
        elif what == "posterior":
            ends = torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64)
            ours, theirs = posterior(chain, *ends), posterior(sde, *ends)
        elif what == "step":
            # One ancestral step, in units of its length, is the reverse SDE: f x - g^2 score, and g^2.
            t, s = noisy[5], noisy[5] - 1 / n
            x, (a, b, v) = sde.perturb(x0, t, z), posterior(chain, t, s)
            moved = n * (x - a * ring(chain)(x, t).x0 - b * x)
            g2 = sde.diffusion_squared(t)
            ours, theirs = (moved, n * v), (sde.drift(x, t) - g2 * model(x, t).score, g2)
        else:
            # The denoising loss of one network, for the same draws.
            torch.manual_seed(0)
            net = MLP(dims=2, width=16, blocks=1)
            torch.nn.init.normal_(net.leave[-1].weight, std=0.3)
            ours, theirs = (
                (denoising_loss(ScoreModel(net, path, Eps()).double(), x0, noisy, z),) for path in (chain, sde)
            )
        pairs = [(o.detach(), t.detach()) for o, t in zip(ours, theirs, strict=True)]
        found.append(max(float((o - t).abs().max() / t.abs().max()) for o, t in pairs))
    return found


@pytest.mark.parametrize("what", ["marginals", "posterior", "step", "loss"])
@pytest.mark.parametrize("kind", PAIRS)
def test_the_chain_goes_to_its_sde_with_order_one(kind, what):
    errors = errors_of(kind, what)
    assert errors[2] < 4e-3
    for order in orders(errors):
        assert order == pytest.approx(1, abs=0.06)


def ancestral_moments(n: int, mu: float, s0: float) -> tuple[float, float, float]:
    """Of Gaussian data sampled with all n levels, mean and variance at the lowest, and the right variance there.

    Every step is affine, so that they follow from a, b, v and the gain of x0_hat.
    """
    chain = DDPM(n)
    alpha, sigma = chain.coefficients(chain.nodes)
    gain = alpha * s0**2 / (alpha**2 * s0**2 + sigma**2)  # x0_hat = mu + gain (x - alpha mu)
    a, b, v = posterior(chain, chain.nodes[1:], chain.nodes[:-1])
    slope, shift = (a * gain[1:] + b).tolist(), (a * (1 - gain[1:] * alpha[1:]) * mu).tolist()
    mean, variance, added = 0.0, 1.0, v.tolist()
    for i in range(n - 2, -1, -1):
        mean, variance = slope[i] * mean + shift[i], slope[i] ** 2 * variance + added[i]
    return mean, variance, float((alpha[0] * s0) ** 2 + sigma[0] ** 2)


def test_ancestral_sampling_of_longer_chains_goes_to_the_data():
    errors = []
    for n in LENGTHS:
        _, variance, right = ancestral_moments(n, 0.3, 0.5)
        errors.append(abs(variance / right - 1))
    first, second = orders(errors)
    assert errors[2] < 2e-3 and first == pytest.approx(1, abs=0.2) and second == pytest.approx(1, abs=0.05)
    # and the solver has these moments
    x = Ancestral(49)(gaussian(DDPM(50), 1, 0.3, 0.5), normals(20_000, 1), noise=Noise.of(20_000)).x
    mean, variance, _ = ancestral_moments(50, 0.3, 0.5)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 20_000))
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 20_000))


# --------------------------------------------------------------------------------------------------------------- nodes


@pytest.mark.parametrize("n", [2, 7, 50, 1000])
def test_uniform_times_become_uniform_nodes(n):
    nodes = DDPM(n, "cosine").nodes
    u = (torch.arange(20 * n, dtype=F64) + 0.37) / (20 * n)
    t = nodes[0] + (1 - nodes[0]) * u
    counts = torch.bincount(nearest_node(snap(t, nodes), nodes), minlength=n)
    assert counts.tolist() == [20] * n and set(snap(t, nodes).tolist()) == set(nodes.tolist())
    assert torch.equal(snap(nodes[[0, -1]], nodes), nodes[[0, -1]])
    assert snap(t, None) is t


def test_training_draws_every_node_as_often(monkeypatch):
    from scoresde import fit
    from scoresde.objective import loss as module

    seen = []

    def spy(model, x0, t, *rest):
        seen.append(t)
        return denoising_loss(model, x0, t, *rest)

    monkeypatch.setattr(module, "denoising_loss", spy)
    config = TrainConfig(data="moons", sde=DDPM(30), steps=4, batch=60, network_options={"width": 8, "blocks": 1})
    run = fit(config, save=False, quiet=True)
    for t in seen:
        assert torch.bincount(nearest_node(t, run.model.domain.nodes), minlength=30).tolist() == [2] * 30


@pytest.mark.parametrize("grid", [*(g for g in GRIDS if g != "fitted"), "auto"])
def test_fixed_grids_visit_nodes_only(grid):
    model = watched(OnNodes(ring(DDPM(200))))
    solver = DDIM(6, grid=grid)
    assert bool(solver(model, normals(3, 2)).ok.all())
    asked = torch.stack([t[0] for t in model.times]) * 200
    assert float((asked - asked.round()).abs().max()) < 1e-12 and asked[0] == 200
    assert len(set(asked.round().tolist())) == 6
    times = grid_of(grid, model, 6, 1.0, 1 / 200)
    free = make_grid(grid, model.domain.sde, 6, 1.0, 1 / 200)
    assert float((times - free).abs().max()) <= 0.5 / 200 + 1e-12 and times[-1] == 1 / 200
    back = grid_of(grid, model, 6, 1 / 200, 1.0)
    assert set((back * 200).round().tolist()) <= set(range(1, 201))


@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
def test_the_discrete_spacings_take_the_number_of_levels_from_the_chain(name):
    times = make_grid(name, DDPM(50), 10, 1.0, 0.02)
    assert float((times * 50 - (times * 50).round()).abs().max()) < 1e-12
    expected = {"trailing": [50, 45, 40], "leading": [50, 46, 41], "linspace": [50, 45, 40]}[name]
    assert (times[:3] * 50).round().tolist() == expected


@pytest.mark.parametrize("n", [50, 1000])
def test_one_step_less_than_there_are_levels_visits_every_node(n):
    chain = DDPM(n)
    times = grid_of("auto", OnNodes(ring(chain)), n - 1, 1.0, 1 / n)
    assert torch.equal(times.flip(0), chain.nodes)


@pytest.mark.parametrize("grid", ["uniform", "sqrt", "logsnr", "karras"])
def test_too_many_steps_are_refused_with_the_number_that_fits(grid):
    model = OnNodes(ring(DDPM(40)))
    words = r"on node \d+ of 40; use at most (\d+) steps with this grid \(between .* can have up to 39"
    with pytest.raises(UsageError, match=words) as error:
        grid_of(grid, model, 60, 1.0, 1 / 40)
    most = int(str(error.value).split("at most ")[1].split()[0])
    assert len(set(grid_of(grid, model, most, 1.0, 1 / 40).tolist())) == most + 1
    with pytest.raises(UsageError):
        grid_of(grid, model, most + 1, 1.0, 1 / 40)
    assert most == 39 if grid == "uniform" else most < 39


def test_given_times_and_ends_must_suit_the_nodes():
    model = OnNodes(ring(DDPM(40)))
    assert (grid_of((1.0, 0.51, 0.3, 0.025), model, 3, 1.0, 0.025) * 40).round().tolist() == [40, 20, 12, 1]
    with pytest.raises(UsageError, match="on node 20 of 40; give times farther apart"):
        DDIM(grid=(1.0, 0.505, 0.5, 0.025))(model, normals(2, 2))
    with pytest.raises(UsageError, match=r"t = 0\.51 is not a node .* nearest node, t = 0\.5 \(node 20 of 40\)"):
        DDIM(3)(model, normals(2, 2), t0=0.51)
    with pytest.raises(UsageError, match=r"not a node .* 0\.025 \(node 1 of 40\)"):
        DDIM(3)(model, normals(2, 2), t1=0.03)
    # A model that knows all times is not held to any.
    assert bool(DDIM(60, grid="sqrt")(model.model, normals(2, 2), t1=0.03).ok.all())


def test_adaptive_solvers_go_between_the_nodes_and_know_the_same_flow():
    # In the straight frame nothing but the label sees t, so that the flow of DDPM(40) is that of any other path.
    chain, z = DDPM(40), normals(8, 2)
    model = OnNodes(ring(chain))
    asked = watched(model)
    solved = ProbabilityFlow(rtol=1e-8, atol=1e-8)(asked, z).x
    t = torch.cat(asked.times) * 40
    assert float((t - t.round()).abs().max()) > 0.3 and float(t.min()) >= 1 - 1e-9
    # Both keep the variance, so that the state is the same where the log-SNR is.
    vp = VPSDE(beta_max=40.0)
    start, end = vp.t_of_log_snr(chain.log_snr(torch.tensor([1.0, 1 / 40], dtype=F64))).tolist()
    other = ProbabilityFlow(rtol=1e-8, atol=1e-8)(ring(vp), z, t0=start, t1=end).x
    assert float((solved - other).abs().max()) < 1e-6
    assert bool(AdaptiveSDE(rtol=0.1, atol=0.1)(model, z[:4], noise=Noise.of(4)).ok.all())


def test_the_model_of_a_chain_knows_its_nodes():
    model = chain_of()
    assert torch.equal(model.domain.nodes, DDPM(50).nodes) and (model.domain.t_min, model.domain.t_max) == (0.02, 1.0)
    assert ScoreModel(MLP(2, 8, 1), VPSDE(), Eps()).domain.nodes is None and VPSDE().nodes is None
    # Where an eps-network says nothing of the data, the chain ends at the node below.
    dark = ScoreModel(MLP(2, 8, 1), DDPM(betas=(0.1, 0.5, 0.9, 1 - 1e-14)), Eps())
    assert dark.domain.nodes.tolist() == [0.25, 0.5, 0.75] and dark.domain.t_max == 0.75
    assert bool(Ancestral(2)(dark.double(), normals(3, 2)).ok.all())


@pytest.mark.parametrize("solver", [Multistep(9), DDIM(9, eta=0.5), Ancestral(9), MultistepSDE(9), RungeKutta(9)])
@pytest.mark.parametrize("chain", [DDPM(50), DDPM(50, "cosine"), SMLD(50)], ids=str)
def test_solvers_run_on_chains(solver, chain):
    model = OnNodes(ring(chain, std=0.3))
    x = sample(model, solver, (2,), Noise.of(400, 1), dtype=F64, batch=400).x
    distance = (x[:, None] - ring(chain).means).norm(dim=2).amin(1)
    assert float(distance.median()) < 0.8


# --------------------------------------------------------------------------------------------------------- other paths


@pytest.mark.parametrize("chain", [DDPM(40), SMLD(40)], ids=str)
def test_a_shifted_chain_keeps_its_nodes(chain):
    moved = Shifted(chain, 2.0)
    assert torch.equal(moved.nodes, chain.nodes) and moved.t_min == chain.t_min
    assert torch.allclose(moved.log_snr(chain.nodes), chain.log_snr(chain.nodes) - 2 * math.log(2), rtol=1e-10)
    step, noise = forward_step(moved, chain.nodes[9], chain.nodes[8])
    alpha, sigma = moved.coefficients(chain.nodes[8:10])
    assert float(step**2 * sigma[0] ** 2 + noise) == pytest.approx(float(sigma[1] ** 2)) and step == alpha[1] / alpha[0]
    if isinstance(chain, SMLD):
        assert torch.allclose(moved.sigma(chain.nodes), 2 * chain.sigma(chain.nodes))
        assert moved.prior_std == pytest.approx(100)
    model = ScoreModel(MLP(2, 8, 1), moved, Eps()).double()
    assert bool(Ancestral(39)(model, normals(3, 2)).ok.all())


def test_a_chain_on_another_path_goes_from_node_to_node():
    # DDIM knows the noise levels of its nodes only: the same samples on the straight path, through the same nodes.
    chain = DDPM(40)
    model, straight = OnNodes(ring(chain)), convert(OnNodes(ring(chain)), FlowMatching())
    nodes = straight.domain.nodes
    assert len(nodes) == 40
    assert torch.allclose(straight.domain.sde.log_snr(nodes), chain.log_snr(chain.nodes), rtol=1e-10)
    noise = Noise.of(16, 2)
    ours = sample(straight, DDIM(grid=tuple(nodes.flip(0).tolist())), (2,), noise, dtype=F64)
    theirs = sample(model, DDIM(39), (2,), noise, dtype=F64)
    assert float((ours.x - theirs.x).abs().max()) < 1e-9
    asked = watched(straight)
    assert bool(DDIM(6)(asked, normals(3, 2)).ok.all())
    assert all(float((nodes - t).abs().min()) < 1e-12 for t in asked.times)


@dataclasses.dataclass(frozen=True)
class Short(SDE):
    """A path with the default search for the time of a log-SNR, from 6 to -2."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(6 - 8 * t).sqrt()

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(8 * t - 6).sqrt()


def test_nodes_that_another_path_does_not_reach_are_left_out():
    chain = DDPM(40)
    nodes = convert(OnNodes(ring(chain)), Short()).domain.nodes
    levels = chain.log_snr(chain.nodes)
    assert len(nodes) == int(((levels < 6) & (levels > -2)).sum()) == len(nodes.unique())
    pure = DDPM(40, zero_snr=True)  # its last node is noise alone, and so is the end of the straight path
    assert convert(OnNodes(ring(pure)), FlowMatching()).domain.nodes[-1] == 1


def test_where_the_other_path_is_shorter_sampling_starts_at_the_last_shared_node():
    model = convert(OnNodes(ring(DDPM(1000))), VPSDE(beta_max=15.0))
    low, high = model.domain.interval("sample")
    # at the other end VP stops at t = 0.001, a little above the lowest node
    assert high < 1 and high == model.domain.nodes[-1] and model.domain.nodes[0] < 1e-3 < low == model.domain.nodes[1]
    assert len(model.domain.nodes) < 1000 and bool(sample(model, DDIM(10), (2,), Noise.of(4), dtype=F64).ok.all())
    with pytest.raises(UsageError, match=r"at least two nodes, but between .*, the model has only 1"):
        convert(OnNodes(ring(DDPM(betas=(0.01, 0.98)))), VDMSDE(5.0, 4.0)).domain.interval("sample")


def test_a_learned_variance_belongs_to_its_own_path():
    model = chain_of(MLP(dims=2, width=8, blocks=1, outputs=2), learn_variance=True)
    x = normals(3, 2)
    assert model(x, 0.5).frac is not None and convert(model, FlowMatching())(x, 0.5).frac is None
    with pytest.raises(UsageError, match="a model trained on coupled data and noise has no stochastic reverse steps"):
        chain_of(MLP(dims=2, width=8, blocks=1, outputs=2), learn_variance=True, coupled=True)


# ---------------------------------------------------------------------------------------------- nothing left at the end


RESCALED = [DDPM(20, zero_snr=True), DDPM(betas=(0.1, 0.3, 0.6, 1.0)), DDPM(20, "scaled-linear", zero_snr=True)]


def test_rescaling_is_that_of_algorithm_1():
    # Lin et al. 2024, arXiv:2305.08891, alg. 1, on the square roots of the products
    root = torch.cumprod(1 - DDPM().beta, 0).sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    chain = DDPM(zero_snr=True)
    assert torch.allclose(chain.alpha(chain.nodes), expected, atol=1e-12)
    assert float(chain.beta[-1]) == 1 and float(chain.alpha(chain.nodes[-1])) == 0 and not chain.finite_g
    given = DDPM(betas=tuple(chain.beta.tolist()))
    assert torch.equal(given.alpha(chain.nodes), chain.alpha(chain.nodes))


@pytest.mark.parametrize("chain", RESCALED, ids=["linear", "given", "scaled"])
def test_a_chain_that_ends_in_noise_is_a_path(chain):
    t = torch.linspace(chain.t_min, 1, 2003, dtype=F64)
    assert all(bool(c.isfinite().all()) for c in (*chain.coefficients(t), *chain.rates(t)))
    assert float((chain.t_of_log_snr(chain.log_snr(t)) - t).abs().max()) < 1e-12
    middle, h = (t[1:] + t[:-1]) / 2, 1e-7
    up, down = chain.coefficients(middle + h), chain.coefficients(middle - h)
    for rate, above, below in zip(chain.rates(middle), up, down, strict=True):
        difference = (above - below) / (2 * h)
        smooth = (middle * chain.steps % 1 - 0.5).abs() < 0.49  # between nodes
        assert float((rate - difference)[smooth].abs().max()) < 1e-5
    assert float(chain.rates(torch.tensor(1.0, dtype=F64))[0]) == pytest.approx(
        -chain.steps * float(chain.alpha(chain.nodes[-2])), rel=1e-12
    )


OTHERS = ("original", "edm", "ald", "torchsde", "adaptive-sde", "particles", "tuned")


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in OTHERS])
def test_every_solver_begins_where_nothing_is_left(solver):
    model = OnNodes(GaussianMixture(DDPM(20, zero_snr=True), torch.zeros(1, 1, dtype=F64), torch.ones(1, dtype=F64)))
    factory = resolve(solver, SOLVERS)
    steps = {"steps": 19} if "steps" in fields_of(factory) else {}
    found = sample(model, factory(**steps), (1,), Noise.of(500), dtype=F64)
    assert bool(found.ok.all()) and abs(float(found.x.std()) - 1) < 0.2


@pytest.mark.parametrize("predict", ["x0", "v", "velocity", "edm"])
def test_it_trains_and_samples(predict):
    config = TrainConfig(
        data="moons", sde=DDPM(20, zero_snr=True), predict=predict, steps=2, batch=16, learn_variance=predict == "v",
        network_options={"width": 8, "blocks": 1},
    )  # fmt: skip
    run = fit(config, save=False, quiet=True)
    assert run.base.domain.t_max == 1.0
    x = run.sample(4, DDIM(10)).x
    assert bool(x.isfinite().all()) and bool(run.elbo(x).log_prob.isfinite().all())
    assert bool(run.log_likelihood(x, Likelihood(steps=5), check=False).log_prob.isfinite().all())


@pytest.mark.parametrize("predict", ["eps", "score"])
def test_the_noise_alone_says_nothing_there(predict):
    with pytest.raises(UsageError, match=r"no signal is left \(alpha = 0\).*Predict v, x0") as error:
        fit(TrainConfig(data="moons", sde=DDPM(20, zero_snr=True), predict=predict, steps=1), save=False, quiet=True)
    assert (error.value.parameter, error.value.value) == ("predict", "v")
