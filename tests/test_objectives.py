"""Which objectives are the same, shown by their gradients; the tables of docs/objectives.md are these.

The loss of a recipe (path, prediction, weighting, time sampler) is an integral over the log-SNR l,

    int p(l) w |F - target|^2 dl,

so two recipes are the same up to a constant if, at every l, the gradients of the integrand with respect to x0_hat are
proportional, with the same factor. The density p(l) is taken from the sampler's quantile, by bisection and differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from models import ALL, F64, normals
from torch import Tensor, nn

from scoresde import (
    EDM,
    EDMSDE,
    SDE,
    VDMSDE,
    VESDE,
    VPSDE,
    X0,
    CosineSDE,
    Eps,
    FlowMatching,
    Parametrization,
    Score,
    ScoreModel,
    SubVPSDE,
    V,
    Velocity,
)
from scoresde.core.shapes import expand, mean_flat
from scoresde.nn import MLP
from scoresde.objective import weighting as w
from scoresde.objective.loss import denoising_loss
from scoresde.objective.times import (
    Importance,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    LowDiscrepancy,
    Mode,
    Setting,
    Times,
    TimeSampler,
)
from scoresde.objective.weighting import Native, Weight

PAGE = Path(__file__).parent.parent / "docs" / "objectives.md"

PATHS: dict[str, SDE] = {**ALL, "cosine": CosineSDE(), "edm": EDMSDE(), "vdm": VDMSDE()}
CONSTANT_BETA = VPSDE(8.0, 8.0)
VP, FLOW, VE, VDM = VPSDE(), FlowMatching(), VESDE(), VDMSDE()
# VDM between the ends of VP, and their distance in log-SNR
ENDS = VP.log_snr(torch.tensor([1e-5, 1.0], dtype=F64)).tolist()
LIKE_VP, RANGE = VDMSDE(*ENDS), ENDS[0] - ENDS[1]
TRIG = CosineSDE(0.0)


@dataclass(frozen=True)
class Recipe:
    """A path, what the network outputs, the weighting, and where times are drawn."""

    sde: SDE
    predict: Parametrization = field(default_factory=EDM)
    weighting: Weight = field(default_factory=Native)
    sampler: TimeSampler = field(default_factory=LowDiscrepancy)

    def times(self) -> Times:
        low, high = self.sde.times("train")
        high = min(high, self.predict.legal_t_max(self.sde))
        return self.sampler.over(Setting(self.sde, low, high, self.predict, self.weighting))


@dataclass(frozen=True)
class Shifted(TimeSampler):
    """The shift of Esser et al. (2024), arXiv:2403.03206, eq. 23, as they write it."""

    sampler: TimeSampler = field(default_factory=LogitNormal)
    factor: float = 3.0

    def quantile(self, u: Tensor, domain: Setting) -> Tensor:
        # They shift a draw from (0, 1); the domain is cut off only then.
        t = self.sampler.quantile(u, Setting(domain.sde, 0.0, 1.0))
        return self.factor * t / (1 + (self.factor - 1) * t)


@dataclass(frozen=True)
class Learned(TimeSampler):
    """loss-second-moment, after some losses."""

    emphasis = False

    def quantile(self, u: Tensor, domain: Setting) -> Tensor:
        return self.over(domain).quantile(u)

    def over(self, domain: Setting) -> Times:
        times = LossSecondMoment(bins=4, history=1).over(domain)
        middles = (times.edges[1:] + times.edges[:-1]) / 2  # type: ignore[attr-defined]
        times.update(middles, torch.tensor([9.0, 3.0, 1.0, 2.0]))
        return times


@dataclass(frozen=True)
class Row:
    """A line of the table: left = constant * right."""

    left: str
    right: str
    where: str
    constant: str
    pairs: list[tuple[Recipe, Recipe, float]]

    def markdown(self) -> str:
        return f"| {self.left} | {self.right} | {self.where} | {self.constant} |"


def on(paths: list[SDE], left: tuple, right: tuple, constant: float | Callable[[SDE], float] = 1.0) -> list:
    """The same (prediction, weighting) pairs on several paths, all with uniform times."""
    factor = constant if callable(constant) else lambda sde: constant
    return [(Recipe(sde, *left), Recipe(sde, *right), factor(sde)) for sde in paths]


ANY = list(PATHS.values())
UNIT = [VP, PATHS["cosine"], TRIG, VDM]  # alpha^2 + sigma^2 = 1
ANY_OUTPUT = EDM(0.7)


def span(sde: SDE) -> float:
    """The range of the log-SNR per unit of time, where that is constant."""
    return float(sde.log_snr(torch.zeros((), dtype=F64)) - sde.log_snr(torch.ones((), dtype=F64)))


SAME_TIMES = [
    Row("predict `eps`, `native`", "`eps`", "any path", "1", on(ANY, (Eps(), Native()), (ANY_OUTPUT, w.EpsWeight()))),
    Row("predict `x0`, `native`", "`x0`", "any path", "1", on(ANY, (X0(), Native()), (ANY_OUTPUT, w.X0Weight()))),
    Row("predict `score`, `native`", "`score`", "any path", "1",
        on(ANY, (Score(), Native()), (ANY_OUTPUT, w.ScoreWeight()))),
    Row("predict `edm`, `native`", "`edm`, same `data_std`", "any path", "1",
        on(ANY, (EDM(0.4), Native()), (V(), w.EDMWeight(0.4)))),
    Row("predict `v`, `native`", "`v`", "$\\alpha^2 + \\sigma^2 = 1$: `vp`, `cosine`, `vdm`", "1",
        on(UNIT, (V(), Native()), (ANY_OUTPUT, w.VWeight()))),
    Row("`v`", "`edm`, `data_std` 1", "any path", "1", on(ANY, (ANY_OUTPUT, w.VWeight()), (X0(), w.EDMWeight(1.0)))),
    Row("predict `velocity`, `native`", "predict `v`, `native`", "`cosine`, `offset` 0", "$(\\pi/2)^2$",
        on([TRIG], (Velocity(), Native()), (V(), Native()), (math.pi / 2) ** 2)),
    Row("predict `velocity`, `native`", "`p2`, `k` 1, `gamma` 1", "`vdm`", "$R^2/4$",
        on([VDM], (Velocity(), Native()), (Eps(), w.P2(1.0, 1.0)), lambda sde: span(sde) ** 2 / 4)),
    Row("predict `velocity`, `native`", "`x0`", "`ve`", "$R^2/4$",
        on([VE], (Velocity(), Native()), (Eps(), w.X0Weight()), lambda sde: span(sde) ** 2 / 4)),
    Row("predict `velocity`, `native`", "`likelihood`", "`vp`, constant $\\beta$", "$\\beta/4$",
        on([CONSTANT_BETA], (Velocity(), Native()), (Eps(), w.LikelihoodWeight()), 8.0 / 4)),
    Row("`likelihood`", "`score`", "`vp`, constant $\\beta$", "$\\beta$",
        on([CONSTANT_BETA], (V(), w.LikelihoodWeight()), (Eps(), w.ScoreWeight()), 8.0)),
    Row("`likelihood`", "`eps`", "`vdm`, `ve`", "$R$",
        on([VDM, VE], (V(), w.LikelihoodWeight()), (Eps(), w.EpsWeight()), span)),
    Row("`sigmoid`, `bias` $b$", "`p2`, `k` $e^b$, `gamma` 1", "`vdm`, `ve`", "$R\\, e^b$",
        on([VDM, VE], (V(), w.Sigmoid(-1.5)), (Eps(), w.P2(math.exp(-1.5), 1.0)),
           lambda sde: span(sde) * math.exp(-1.5))),
    Row("`sigmoid`, `bias` $\\to \\infty$", "`likelihood`", "any path", "1",
        on(ANY, (V(), w.Sigmoid(60.0)), (EDM(), w.LikelihoodWeight()))),
    Row("`p2`, `gamma` 0", "`eps`", "any path", "1", on(ANY, (X0(), w.P2(1.0, 0.0)), (V(), w.EpsWeight()))),
    Row("`p2`, `k` 0, `gamma` 1", "`x0`", "any path", "1", on(ANY, (V(), w.P2(0.0, 1.0)), (Eps(), w.X0Weight()))),
    Row("`min-snr`, `gamma` $\\infty$", "`eps`", "any path", "1",
        on(ANY, (X0(), w.MinSNR(math.inf)), (V(), w.EpsWeight()))),
    Row("`min-snr`, `gamma` $\\gamma$ below all SNRs", "`x0`", "`vp`, `ve`, `edm`, `vdm`", "$\\gamma$",
        on([VP, VE, PATHS["edm"], VDM], (V(), w.MinSNR(1e-6)), (Eps(), w.X0Weight()), 1e-6)),
    Row("`edm`, `data_std` $\\to \\infty$", "`eps`", "any path", "1",
        on(ANY, (V(), w.EDMWeight(1e9)), (X0(), w.EpsWeight()))),
    Row("`edm`, `data_std` $s \\to 0$", "`x0`", "any path", "$1/s^2$",
        on(ANY, (V(), w.EDMWeight(1e-9)), (Eps(), w.X0Weight()), 1e18)),
]  # fmt: skip


def mixed(left: Recipe, right: Recipe, constant: float = 1.0) -> tuple[Recipe, Recipe, float]:
    return left, right, constant


PER_SNR = [w.EpsWeight(), w.X0Weight(), w.VWeight(), w.P2(0.5, 0.7), w.MinSNR(), w.EDMWeight(0.5)]
WIDE = LogNormal(0.0, 1e6)

OTHER_TIMES = [
    Row("`likelihood`", "`likelihood` on another path", "any two paths", "1",
        [mixed(Recipe(VP, V(), w.LikelihoodWeight()), Recipe(sde, Velocity(), w.LikelihoodWeight()))
         for sde in (FLOW, VE, TRIG, PATHS["edm"], VDM)]),
    Row("`sigmoid`", "`sigmoid` on another path", "any two paths", "1",
        [mixed(Recipe(VP, V(), w.Sigmoid(-2.0)), Recipe(sde, Velocity(), w.Sigmoid(-2.0)))
         for sde in (FLOW, VE, TRIG, PATHS["edm"], VDM)]),
    Row("`likelihood` on `vp`", "`eps` on `vdm` with the ends of `vp`", "", "$R$",
        [mixed(Recipe(VP, V(), w.LikelihoodWeight()), Recipe(LIKE_VP, Eps(), w.EpsWeight()), RANGE)]),
    Row("`likelihood`", "`eps`, `lognormal` with `std` $\\to \\infty$", "any path, `vp` for one", "$R$",
        [mixed(Recipe(VP, V(), w.LikelihoodWeight()), Recipe(VP, V(), w.EpsWeight(), WIDE), RANGE)]),
    Row("`likelihood`, `importance`", "`likelihood`, `low-discrepancy`", "any path", "1",
        [mixed(Recipe(sde, V(), w.LikelihoodWeight(), Importance()), Recipe(sde, V(), w.LikelihoodWeight()))
         for sde in (VP, VE, SubVPSDE(), PATHS["edm"])]),
    Row("any weighting, `loss-second-moment`", "the same, `low-discrepancy`", "any path", "1",
        [mixed(Recipe(sde, V(), weight, Learned()), Recipe(sde, V(), weight))
         for sde in (VP, FLOW) for weight in (Native(), w.LikelihoodWeight(), w.MinSNR())]),
    Row("`eps`, `x0`, `v`, `p2`, `min-snr` or `edm`, `lognormal`", "the same on another path", "any two paths", "1",
        [mixed(Recipe(PATHS["edm"], EDM(), weight, LogNormal()), Recipe(sde, Velocity(), weight, LogNormal()))
         for sde in (VP, FLOW, VESDE(0.002, 80.0)) for weight in PER_SNR]),
    Row("any weighting, `lognormal` with $m$, $s$", "the same, `logit-normal` with $m$, $s$", "`flow`", "1",
        [mixed(Recipe(FLOW, Velocity(), weight, LogNormal(-0.4, 0.8)),
               Recipe(FLOW, Velocity(), weight, LogitNormal(-0.4, 0.8))) for weight in (Native(), w.EDMWeight(0.5))]),
    Row("any weighting, `logit-normal` with $m$, $s$, shifted by $k$",
        "the same, `logit-normal` with $m + \\log k$, $s$", "`flow`", "1",
        [mixed(Recipe(FLOW, Velocity(), Native(), Shifted(LogitNormal(0.1, 0.9), 3.0)),
               Recipe(FLOW, Velocity(), Native(), LogitNormal(0.1 + math.log(3), 0.9)))]),
    Row("predict `v`, `native`, on `cosine`, `offset` 0", "predict `velocity`, `native`, on `flow`", "", "$2/\\pi$",
        [mixed(Recipe(TRIG, V()), Recipe(FLOW, Velocity()), 2 / math.pi)]),
    Row("any weighting, `lognormal` with `std` $\\to \\infty$", "the same, `low-discrepancy`", "`ve`, `vdm`", "1",
        [mixed(Recipe(sde, V(), Native(), WIDE), Recipe(sde, V(), Native())) for sde in (VE, VDM)]),
    Row("any weighting, `mode` with `k` 0", "the same, `low-discrepancy`", "any path", "1",
        [mixed(Recipe(VP, V(), Native(), Mode(0.0)), Recipe(VP, V(), Native()))]),
]  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the measure


def density(times: Times, log_snr: Tensor) -> Tensor:
    """p(l) of the times' log-SNR, where it has the values ``log_snr``: du/dl by differences of fourth order."""
    sde = times.setting.sde

    def level(u: Tensor) -> Tensor:
        return sde.log_snr(times.quantile(u))

    low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
    for _ in range(60):
        middle = (low + high) / 2
        above = level(middle) > log_snr
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    u = (low + high) / 2
    h = 1e-3 * torch.minimum(u, 1 - u)
    slope = (8 * (level(u - h) - level(u + h)) - (level(u - 2 * h) - level(u + 2 * h))) / (12 * h)
    return 1 / slope


def integrand(recipe: Recipe, log_snr: Tensor, x0: Tensor, eps: Tensor, x0_hat: Tensor, with_p: bool) -> Tensor:
    """``p(l) w |F - target|^2`` where the log-SNR is ``log_snr``, for given data, noise and guess; all ``(n,)``."""
    sde, times = recipe.sde, recipe.times()
    t = sde.t_of_log_snr(log_snr)
    alpha, sigma = sde.coefficients(t)
    eps_hat = (alpha * x0 + sigma * eps - alpha * x0_hat) / sigma
    a, b = recipe.predict.target(sde, t)
    error = a * x0_hat + b * eps_hat - (a * x0 + b * eps)
    loss = recipe.weighting(sde, recipe.predict, t) * error.square()
    return loss * times.weight(t) * (density(times, log_snr) if with_p else 1.0)


def levels_of(*recipes: Recipe) -> Tensor:
    """Log-SNRs inside of all domains."""
    ends = torch.stack([r.sde.log_snr(r.times().setting.ends) for r in recipes])
    high, low = min(float(ends[:, 0].min()) - 0.5, 12.0), max(float(ends[:, 1].max()) + 0.5, -9.0)
    return torch.linspace(high, low, 23, dtype=F64)


def ratios(left: Recipe, right: Recipe) -> Tensor:
    """Of the gradients with respect to x0_hat, at 23 log-SNRs."""
    log_snr = levels_of(left, right)
    x0, eps, guess = normals(3, len(log_snr))
    with_p = (left.sde, left.sampler) != (right.sde, right.sampler)
    found = []
    for recipe in (left, right):
        x0_hat = guess.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(integrand(recipe, log_snr, x0, eps, x0_hat, with_p).sum(), x0_hat)
        found.append(gradient)
    return found[0] / found[1]


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("row", SAME_TIMES, ids=lambda row: f"{row.left}: {row.right}, {row.where}")
def test_the_same_gradient_at_the_same_times(row: Row) -> None:
    for left, right, constant in row.pairs:
        torch.testing.assert_close(ratios(left, right), torch.full((23,), constant, dtype=F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("row", OTHER_TIMES, ids=lambda row: f"{row.left}: {row.right}, {row.where}")
def test_the_same_gradient_at_the_same_noise_level(row: Row) -> None:
    """To 1e-6 up to one constant, which is stated for the full domain; its ends cut it by 1e-4 or less."""
    for left, right, constant in row.pairs:
        found = ratios(left, right)
        torch.testing.assert_close(found / found.mean(), torch.ones_like(found), rtol=1e-6, atol=0)
        assert float(found.mean()) == pytest.approx(constant, rel=1e-4)


def test_what_is_not_the_same_is_told_apart() -> None:
    for left, right in (
        (Recipe(VP, Eps(), w.EpsWeight()), Recipe(VP, Eps(), w.LikelihoodWeight())),
        (Recipe(PATHS["edm"], V(), Native()), Recipe(PATHS["edm"], V(), w.VWeight())),
        (Recipe(FLOW, V(), w.EpsWeight(), LogNormal()), Recipe(FLOW, V(), w.EpsWeight(), LogitNormal())),
        (Recipe(VP, V(), w.EpsWeight(), LogNormal()), Recipe(VP, V(), w.EpsWeight())),
    ):
        found = ratios(left, right)
        assert float(found.max() / found.min()) > 1.5


SPACES = {
    "x0": lambda e, sde, t, x0, eps, a, s: (e.x0 - x0).square(),
    "eps": lambda e, sde, t, x0, eps, a, s: (e.eps - eps).square(),
    "score": lambda e, sde, t, x0, eps, a, s: (e.score + eps / s).square(),
    "v": lambda e, sde, t, x0, eps, a, s: ((a / s) ** 2 + 1) * (e.x0 - x0).square(),
    "likelihood": lambda e, sde, t, x0, eps, a, s: expand(sde.diffusion_squared(t), x0) * (e.score + eps / s).square(),
    "min-snr": lambda e, sde, t, x0, eps, a, s: ((a / s) ** 2).clamp(max=5.0) * (e.x0 - x0).square(),
    "edm": lambda e, sde, t, x0, eps, a, s: ((s / a) ** 2 + 1) / (s / a) ** 2 * (e.x0 - x0).square(),
}


# Every space on a path where alpha and sigma both move; the one that knows the diffusion on all of them.
@pytest.mark.parametrize(
    ("path", "space"),
    [
        (path, space) if path == "subvp" or space == "likelihood" else pytest.param(path, space, marks=pytest.mark.slow)
        for path in ("vp", "subvp", "ve", "flow", "edm")
        for space in SPACES
    ],
)
def test_the_same_network_gradient_in_whatever_space_the_loss_is_written(path: str, space: str) -> None:
    sde = PATHS[path]
    t = torch.linspace(0.05, 0.95, 8, dtype=F64)
    x0, eps = normals(8, 3), normals(8, 3, seed=1)
    alpha, sigma = (expand(c, x0) for c in sde.coefficients(t))
    for predict in (Eps(), X0(), V(), Score(), Velocity(), EDM(0.5)):
        torch.manual_seed(0)
        network = MLP(dims=3, width=8, blocks=1)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
        model = ScoreModel(network, sde, predict).double()
        written = SPACES[space](model(sde.perturb(x0, t, eps), t), sde, t, x0, eps, alpha, sigma)
        weights = list(network.parameters())
        theirs = torch.autograd.grad(mean_flat(written).sum(), weights)
        ours = torch.autograd.grad(denoising_loss(model, x0, t, eps, weighting=space).sum(), weights)
        size = max(float(g.abs().max()) for g in theirs)
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-9 * size)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 1.0), (0.5, 0.4)])
def test_sampler_equivalences_by_their_quantiles(mean: float, std: float) -> None:
    u = torch.linspace(1e-4, 1 - 1e-4, 400, dtype=F64)
    domain = Setting(FLOW, 1e-5, 1 - 1e-5)
    same = [LogNormal(mean, std), LogitNormal(mean, std)]
    torch.testing.assert_close(*(s.quantile(u, domain) for s in same), rtol=1e-10, atol=0)
    # SD3's shift, and that it moves the log-SNR by -2 log k
    whole = Setting(FLOW, 0.0, 1.0)
    for factor in (0.5, 3.0):
        plain, shifted = LogitNormal(mean, std), Shifted(LogitNormal(mean, std), factor)
        moved = LogitNormal(mean + math.log(factor), std)
        torch.testing.assert_close(shifted.quantile(u, whole), moved.quantile(u, whole), rtol=1e-10, atol=0)
        offset = FLOW.log_snr(shifted.quantile(u, whole)) - FLOW.log_snr(plain.quantile(u, whole))
        torch.testing.assert_close(offset, torch.full_like(u, -2 * math.log(factor)), rtol=1e-8, atol=1e-10)
    # The same noise levels on every path, and the importance of the likelihood is the flat limit
    ratios = []
    for sde in (VESDE(0.002, 80.0), EDMSDE()):
        t = LogNormal(mean, std).quantile(u, Setting(sde, 0.0, 1.0))
        ratios.append(sde.log_snr(t))
    torch.testing.assert_close(*ratios, rtol=1e-9, atol=1e-9)
    domain = Setting(VP, 1e-5, 1.0, V(), w.LikelihoodWeight())
    flat, importance = LogNormal(0.0, 1e6).quantile(u, domain), Importance().over(domain).quantile(u)
    torch.testing.assert_close(flat, importance, rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------------- published recipes


def normal(log_snr: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((log_snr - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def ddpm(log_snr: Tensor) -> Tensor:
    """1/(-l') of VP: alpha^2 = e^-B = sigmoid(l), g^2 = beta, beta^2 = beta_min^2 + 2 (beta_max - beta_min) B."""
    integral = torch.nn.functional.softplus(-log_snr)
    return torch.sigmoid(-log_snr) / torch.sqrt(0.1**2 + 2 * 19.9 * integral)


@dataclass(frozen=True)
class Published:
    """A recipe and its weight per unit of log-SNR on the error of the noise, from the paper."""

    name: str
    how: str
    formula: str
    recipe: Recipe
    weight: Callable[[Tensor], Tensor]

    def markdown(self) -> str:
        return f"| {self.name} | {self.how} | {self.formula} |"


PUBLISHED = [
    Published("DDPM (Ho et al. 2020)", "`vp`, predict `eps`", "$1/(-\\lambda') = \\sigma^2/\\beta$",
              Recipe(VP, Eps()), ddpm),
    Published("iDDPM (Nichol and Dhariwal 2021)", "`cosine`, `offset` 0, predict `eps`",
              "$\\mathrm{sech}(\\lambda/2)/(2 \\pi)$",
              Recipe(TRIG, Eps()), lambda s: 1 / (2 * math.pi * torch.cosh(s / 2))),
    Published("VE score matching (Song et al. 2021)", "`ve`, predict `score`, weighting `eps`", "$1/R$",
              Recipe(VE, Score(), w.EpsWeight()), lambda s: 0 * s + 1 / (2 * math.log(5000))),
    Published("likelihood (Song, Durkan et al. 2021; VDM)", "any path, weighting `likelihood`", "$1$",
              Recipe(VP, EDM(), w.LikelihoodWeight()), lambda s: 0 * s + 1),
    Published("v-prediction (Salimans and Ho 2022)", "`cosine`, `offset` 0, predict `v`", "$e^{-\\lambda/2}/\\pi$",
              Recipe(TRIG, V()), lambda s: torch.exp(-s / 2) / math.pi),
    Published("EDM (Karras et al. 2022)", "`edm`, predict `edm` with `data_std` $s$, `lognormal`",
              "$(1 + e^{-\\lambda}/s^2)\\, N(\\lambda; 2.4, 2.4^2)$",
              Recipe(PATHS["edm"], EDM(0.5), Native(), LogNormal()),
              lambda s: (1 + torch.exp(-s) / 0.25) * normal(s, 2.4, 2.4)),
    Published("P2 (Choi et al. 2022)", "`vp`, weighting `p2`", "DDPM's times $(k + e^\\lambda)^{-\\gamma}$",
              Recipe(VP, Eps(), w.P2(1.0, 1.0)), lambda s: ddpm(s) / (1 + torch.exp(s))),
    Published("flow matching (Lipman et al. 2023)", "`flow`, predict `velocity`", "$e^{-\\lambda/2}/2$",
              Recipe(FLOW, Velocity()), lambda s: torch.exp(-s / 2) / 2),
    Published("min-SNR (Hang et al. 2023)", "`vp`, weighting `min-snr`",
              "DDPM's times $\\min(1, \\gamma e^{-\\lambda})$",
              Recipe(VP, X0(), w.MinSNR(5.0)), lambda s: ddpm(s) * torch.exp(-s).mul(5).clamp(max=1)),
    Published("VDM++ (Kingma and Gao 2023), SiD2 (Hoogeboom et al. 2024)", "any path, weighting `sigmoid`",
              "$\\mathrm{sigmoid}(b - \\lambda)$",
              Recipe(TRIG, V(), w.Sigmoid(-3.0)), lambda s: torch.sigmoid(-3 - s)),
    Published("SD3 (Esser et al. 2024)", "`flow`, predict `velocity`, `logit-normal`",
              "$(1 + e^{-\\lambda/2})^2\\, N(\\lambda; -2m, (2s)^2)$",
              Recipe(FLOW, Velocity(), Native(), LogitNormal()),
              lambda s: (1 + torch.exp(-s / 2)) ** 2 * normal(s, 0.0, 2.0)),
]  # fmt: skip


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p.name)
def test_the_effective_weight_of_published_recipes(published: Published) -> None:
    """``w p/(-l')`` on ``|eps_hat - eps|^2``, by differences of the quantile, against the paper's function of l."""
    recipe = published.recipe
    log_snr = levels_of(recipe)
    times, t = recipe.times(), recipe.sde.t_of_log_snr(log_snr)
    on_noise = recipe.weighting(recipe.sde, recipe.predict, t) / w.noise_factor(recipe.sde, recipe.predict, t)
    found = on_noise * density(times, log_snr)
    expected = published.weight(log_snr)
    torch.testing.assert_close(found / found.mean(), expected / expected.mean(), rtol=1e-6, atol=0)
    # The ends of the domain are a matter of 1e-5, and 1e-3 for eps and score where alpha = 0.
    assert float(found.mean() / expected.mean()) == pytest.approx(1, rel=2e-3)


def test_the_page_has_these_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for rows in (SAME_TIMES[:12], SAME_TIMES[12:], OTHER_TIMES, PUBLISHED):  # as the page splits them
        text = "\n".join(row.markdown() for row in rows)
        assert text in page, f"docs/objectives.md should have the lines\n{text}"
