"""Weightings: each is its published formula, whatever the network outputs, and right at both ends of the path."""

from __future__ import annotations

import math

import pytest
import torch
from models import ALL, F64, UserCosine
from torch import Tensor

from scoresde import EDM, EDMSDE, VDMSDE, VPSDE, X0, CosineSDE, Eps, FlowMatching, Score, V, Velocity
from scoresde.core.errors import UsageError
from scoresde.core.tables import WEIGHTINGS
from scoresde.objective import weighting as w
from scoresde.objective.weighting import check_weight, make_weighting, noise_factor

PARAMETRIZATIONS = [Eps(), X0(), V(), Score(), Velocity(), EDM(data_std=0.5)]
PATHS = {**ALL, "cosine": CosineSDE(), "edm": EDMSDE(), "vdm": VDMSDE()}
T = torch.linspace(0.02, 0.98, 25, dtype=F64)


def g_squared(sde, t: Tensor) -> Tensor:
    """g^2 = -sigma^2 dl/dt with l = log SNR, by automatic differentiation of the log-SNR alone."""
    rate = torch.func.jvp(lambda t: 2 * torch.log(sde.coefficients(t)[0] / sde.coefficients(t)[1]), (t,), (t * 0 + 1,))
    return -(sde.coefficients(t)[1] ** 2) * rate[1]


# The published form: a weight on the squared error of eps, x0 or the score, by the letters of the papers.
PUBLISHED = {
    "eps": ("eps", {}, lambda sde, t, snr, sigma: 1 + 0 * t),
    "x0": ("x0", {}, lambda sde, t, snr, sigma: 1 + 0 * t),
    "v": ("x0", {}, lambda sde, t, snr, sigma: snr + 1),
    "score": ("score", {}, lambda sde, t, snr, sigma: 1 + 0 * t),
    "likelihood": ("score", {}, lambda sde, t, snr, sigma: g_squared(sde, t)),
    "p2": ("eps", {"k": 0.7, "gamma": 0.5}, lambda sde, t, snr, sigma: 1 / (0.7 + snr) ** 0.5),
    "min-snr": ("x0", {"gamma": 3.0}, lambda sde, t, snr, sigma: snr.clamp(max=3.0)),
    "edm": ("x0", {"data_std": 0.4}, lambda sde, t, snr, sigma: (1 / snr + 0.16) / (snr**-0.5 * 0.4) ** 2),
    "sigmoid": (
        "x0",
        {"bias": -1.3},
        lambda sde, t, snr, sigma: math.exp(-1.3) * torch.sigmoid(snr.log() + 1.3) * g_squared(sde, t) / sigma**2,
    ),
}


def test_every_weighting_of_the_table_is_held_to_its_paper() -> None:
    assert set(PUBLISHED) | {"native"} == set(WEIGHTINGS)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("path", PATHS)
def test_the_loss_is_the_published_one(path, name) -> None:
    """w |F - target|^2 is the published weight on the published error, for a random guess of the data."""
    sde = PATHS[path]
    space, options, published = PUBLISHED[name]
    alpha, sigma = sde.coefficients(T)
    generator = torch.Generator().manual_seed(0)
    x0, eps, x0_hat = torch.randn(3, len(T), generator=generator, dtype=F64)
    eps_hat = (alpha * x0 + sigma * eps - alpha * x0_hat) / sigma
    theirs = {"eps": eps_hat - eps, "x0": x0_hat - x0, "score": -(eps_hat - eps) / sigma}[space]
    expected = published(sde, T, (alpha / sigma) ** 2, sigma) * theirs**2
    for p in PARAMETRIZATIONS:
        a, b = p.target(sde, T)
        error = a * (x0_hat - x0) + b * (eps_hat - eps)
        ours = make_weighting(name, options)(sde, p, T) * error**2
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0, msg=lambda text, p=p: f"{p}: {text}")


def test_native_is_plain_regression() -> None:
    assert torch.equal(w.Native()(VPSDE(), V(), T), torch.ones_like(T))


@pytest.mark.parametrize(
    "weighting", [w.X0Weight(), w.VWeight(), w.P2(), w.MinSNR(), w.EDMWeight(0.5), w.EpsWeight()], ids=str
)
def test_min_snr_and_its_like_see_the_snr_alone(weighting) -> None:
    """On another path, at the time of the same SNR, the weight on the noise is the same."""
    other = FlowMatching()
    t = other.t_of_log_snr(VPSDE().log_snr(T))
    torch.testing.assert_close(weighting.on_noise(VPSDE(), T), weighting.on_noise(other, t), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if n != "native"])
@pytest.mark.parametrize("sde", [FlowMatching(), CosineSDE(), CosineSDE(0.0), UserCosine()], ids=str)
def test_where_no_data_are_left_the_weight_is_its_limit(sde, name) -> None:
    """alpha = 0: SNR = 0, g infinite. The factor on the loss is finite, and is where it was going."""
    weight = make_weighting(name)
    for p in (X0(), V(), Velocity(), EDM(data_std=0.5)):
        end = weight(sde, p, torch.tensor([1.0], dtype=F64))
        near = weight(sde, p, 1 - torch.tensor([1e-6, 1e-7], dtype=F64))
        assert torch.isfinite(end).all() and torch.isfinite(near).all(), p
        torch.testing.assert_close(end[0], near[1], rtol=1e-5, atol=1e-5)
        assert abs(end[0] - near[1]) <= abs(end[0] - near[0]) + 1e-9, p


@pytest.mark.parametrize("name", ["eps", "min-snr", "p2"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_eps_networks_have_finite_weights_at_snr_0(name, dtype) -> None:
    """kohya's division by SNR = 0: min(SNR, gamma)/SNR is 1 there, and the noise is asked for with weight 1."""
    assert float(make_weighting(name)(FlowMatching(), Eps(), torch.ones((), dtype=dtype))) == pytest.approx(1)


@pytest.mark.parametrize(("name", "p"), [("x0", X0()), ("min-snr", X0()), ("eps", Eps()), ("p2", Eps()), ("v", V())])
def test_where_no_noise_is_yet_the_weight_is_its_limit(name, p) -> None:
    weight = make_weighting(name)
    zero, near = weight(FlowMatching(), p, torch.tensor([0.0, 1e-7], dtype=F64))
    assert math.isfinite(zero) and float(zero) == pytest.approx(float(near), rel=1e-5, abs=1e-12)


def test_the_speed_of_the_log_snr_is_g_squared_over_sigma_squared() -> None:
    for sde in PATHS.values():
        expected = g_squared(sde, T) / sde.coefficients(T)[1] ** 2
        torch.testing.assert_close(w.log_snr_speed(sde, T), expected, rtol=1e-9, atol=0)


def test_the_factor_of_the_noise_error() -> None:
    # Salimans and Ho (2022): |v_hat - v|^2 = |eps_hat - eps|^2/alpha^2 on a path with alpha^2 + sigma^2 = 1
    alpha = VPSDE().coefficients(T)[0]
    torch.testing.assert_close(noise_factor(VPSDE(), V(), T), alpha**2, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------------------ names, refusals


def by_hand(sde, parametrization, t: Tensor) -> Tensor:
    return 2 * torch.ones_like(t)


def test_a_function_is_a_weighting() -> None:
    made = make_weighting("test_weighting:by_hand", typed=True)
    assert float(made(VPSDE(), Eps(), T)[0]) == 2
    with pytest.raises(UsageError, match="is a function and has no options"):
        make_weighting("test_weighting:by_hand", {"gamma": 2}, typed=True)
    assert make_weighting(by_hand) is by_hand
    assert make_weighting("test_weighting:Twice", {"factor": 3.0}, typed=True)(VPSDE(), Eps(), T)[0] == 3


class Twice(w.Weighting):
    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def on_noise(self, sde, t: Tensor) -> Tensor:
        return self.factor * torch.ones_like(t)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minsnr", {}, "did you mean 'min-snr'"),
        ("min-snr", {"gama": 1}, "no option 'gama'; did you mean 'gamma'"),
        ("min-snr", {"gamma": 0}, "gamma is 0; it must be a number > 0"),
        ("p2", {"k": -1}, "k is -1; it must be a number >= 0"),
        ("p2", {"gamma": math.nan}, "gamma is nan"),
        ("edm", {"data_std": 0}, "data_std is 0"),
    ],
)
def test_wrong_names_and_options(name, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        make_weighting(name, options, typed=True)


def test_weights_that_cannot_be_trained_with() -> None:
    sde = FlowMatching()
    for name in WEIGHTINGS:
        check_weight(make_weighting(name), sde, Velocity(), 1e-5, 1.0)
    bad = {
        "is -1 at t = ": lambda sde, p, t: -torch.ones_like(t),
        "is nan at t = ": lambda sde, p, t: torch.full_like(t, math.nan),
        "is inf at t = 1 ": lambda sde, p, t: 1 / (1 - t),
        r"returns a tensor of shape \(\)": lambda sde, p, t: torch.tensor(1.0),
        "returns float": lambda sde, p, t: 1.0,
        # The data's error weighs infinitely much where there is no noise.
        "e.* at t = 0 ": lambda sde, p, t: w.EpsWeight()(sde, X0(), t),
    }
    for message, weight in bad.items():
        with pytest.raises(UsageError, match=message):
            check_weight(weight, sde, Velocity(), 0.0, 1.0)


def test_a_weighting_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(UsageError, match="weighting scoresde:VPSDE is not callable"):
        make_weighting("scoresde:VPSDE", typed=True)
