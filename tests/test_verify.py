"""A class that states alpha and sigma, held against the published drift and diffusion of its SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from models import F64

from scoresde import SDE, VESDE, VPSDE, FlowMatching, SubVPSDE, verify
from scoresde.core.errors import UsageError


def beta(t):
    return 0.1 + t * 19.9


def grown(t):
    return 0.1 * t + 19.9 * t**2 / 2


PUBLISHED = {
    "vp": (VPSDE(), lambda t: -beta(t) / 2, lambda t: beta(t).sqrt()),
    "subvp": (
        SubVPSDE(), lambda t: -beta(t) / 2, lambda t: torch.sqrt(beta(t) * (1 - torch.exp(-2 * grown(t)))),
    ),
    "ve": (VESDE(0.01, 50.0), lambda t: 0.0, lambda t: 0.01 * 5000**t * math.sqrt(2 * math.log(5000))),
    "flow": (FlowMatching(), lambda t: -1 / (1 - t), lambda t: torch.sqrt(2 * t / (1 - t))),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_coefficients_agree(name):
    sde, f, g = PUBLISHED[name]
    found = verify(sde, f, g)
    assert found.drift < 1e-9 and found.diffusion < 1e-9
    assert verify(sde, lambda x, t: f(t) * x, g).drift < 1e-9
    assert verify(sde, lambda x, t, y: f(t) * (x - y), g).drift < 1e-9


@dataclass(frozen=True)
class OUVE(SDE):
    """Towards y at the rate theta, as in sgmse, in the coordinates x - y."""

    theta: float = 1.5
    low: float = 0.05
    high: float = 0.5

    def alpha(self, t):
        return torch.exp(-self.theta * t)

    def sigma(self, t):
        k = math.log(self.high / self.low)
        var = (
            self.low**2 * k / (self.theta + k) * torch.exp(-2 * self.theta * t) * torch.expm1(2 * (self.theta + k) * t)
        )
        return var.sqrt()


def ouve_drift(x, t, y):
    return 1.5 * (y - x)


def ouve_diffusion(t):
    return 0.05 * 10**t * math.sqrt(2 * math.log(10))


def test_a_drift_to_a_condition():
    found = verify(OUVE(), ouve_drift, ouve_diffusion)
    assert max(found.drift, found.diffusion) < 1e-9
    with pytest.raises(UsageError, match=r"OUVE: at t = .*the published drift\(x, t, y\).*check which"):
        verify(OUVE(), lambda x, t, y: 1.5 * (2 * y - x), ouve_diffusion)


@dataclass(frozen=True)
class OUVP(SDE):
    """sgmse's OUVPSDE, with what its _std returns: (1 - e^(-s B))/s, the variance of its own sde()."""

    stiffness: float = 1.5
    root: bool = False

    def alpha(self, t):
        return torch.exp(-self.stiffness * grown(t) / 2)

    def sigma(self, t):
        found = -torch.expm1(-self.stiffness * grown(t)) / self.stiffness
        return found.sqrt() if self.root else found


def test_a_variance_for_a_deviation_is_refused():
    def drift(x, t, y):
        return 0.5 * 1.5 * beta(t) * (y - x)

    def diffusion(t):
        return beta(t).sqrt()

    assert verify(OUVP(root=True), drift, diffusion).diffusion < 1e-9
    first = (0.5 / 257) ** 2 * (1 - 1e-5) + 1e-5
    t = torch.tensor(first, dtype=F64)
    theirs, ours = float(diffusion(t)), float(OUVP().diffusion(t))
    with pytest.raises(UsageError, match="sigma looks like a variance") as error:
        verify(OUVP(), drift, diffusion)
    for value in (first, theirs, ours):
        assert f"{value:.6g}" in str(error.value)


@dataclass(frozen=True)
class LogGBM(SDE):
    """The standard deviation of score_sde_gbm, b0 t - (b1 - b0) t^2, which is negative from t = b0/(b1 - b0)."""

    def alpha(self, t):
        return 1.0

    def sigma(self, t):
        return 0.1 * t - 19.9 * t**2


class Careless(LogGBM):
    def __post_init__(self):
        pass


def test_a_negative_deviation_is_refused_by_the_class_itself():
    with pytest.raises(UsageError, match=r"LogGBM\.sigma\(t\) is -[0-9.e-]+ at t = 0\.00\d+; it must be .* > 0"):
        LogGBM()
    with pytest.raises(UsageError, match=r"Careless\.sigma\(t\) is -"):  # which does not check itself
        verify(Careless(), lambda t: 0.0, lambda t: beta(t).sqrt())


WRONG = {
    "a variance": (lambda f: f, lambda g: lambda t: g(t) ** 2, "diffusion looks like g^2: a variance"),
    "a negative diffusion": (lambda f: f, lambda g: lambda t: -g(t), "opposite sign"),
    "a reversed drift": (lambda f: lambda t: -f(t), lambda g: g, "drift f(t) is .* opposite sign"),
    "half of the drift": (lambda f: lambda t: f(t) / 2, lambda g: g, "is 0.5 times the other one"),
    "a factor": (lambda f: f, lambda g: lambda t: math.sqrt(2) * g(t), "is 1.41421 times the other one"),
    "another term": (lambda f: lambda t: f(t) - t, lambda g: g, "check which of the two"),
    "not a number": (lambda f: f, lambda g: lambda t: g(t) * math.nan, "is nan, but"),
    "late": (lambda f: f, lambda g: lambda t: torch.where(t > 0.5, 1.001, 1.0) * g(t), "at t = 0.50"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_guessed(wrong):
    drift, diffusion, told = WRONG[wrong]
    sde, f, g = PUBLISHED["vp"]
    with pytest.raises(UsageError, match=told.replace("g^2", r"g\^2").replace("f(t)", r"f\(t\)")):
        verify(sde, drift(f), diffusion(g))


def test_rounding_errors_of_a_drift_that_is_zero_are_none():
    @dataclass(frozen=True)
    class Still(SDE):
        def alpha(self, t):
            return torch.cos(3 * t) ** 2 + torch.sin(3 * t) ** 2  # whose derivative is 1e-16

        def sigma(self, t):
            return t

    assert bool((Still().drift_rate(torch.linspace(0.1, 1, 50, dtype=F64)) != 0).any())
    assert verify(Still(), lambda t: 0.0, lambda t: torch.sqrt(2 * t)).drift == 0.0


def test_a_smaller_difference_than_asked_for_is_accepted():
    sde, f, g = PUBLISHED["vp"]
    close = verify(sde, f, lambda t: g(t) * (1 + 3e-7))
    assert close.diffusion == pytest.approx(3e-7, rel=1e-3)
    with pytest.raises(UsageError, match="1 times"):
        verify(sde, f, lambda t: g(t) * (1 + 3e-7), rtol=1e-8)


@pytest.mark.parametrize("drift", [lambda: 0.0, lambda a, b, c, d: 0.0, lambda t: torch.zeros(3)])
def test_functions_of_another_kind_are_refused(drift):
    with pytest.raises(UsageError, match=r"the published drift (has|returned)"):
        verify(VPSDE(), drift, lambda t: 1.0)


def test_coefficients_of_each_element():
    # Paths whose alpha and sigma differ over an event return (n, *event), and the comparison is element by element.
    rates = torch.tensor([1.0, 2.0, 3.0], dtype=F64)

    class Each(SDE):
        def alpha(self, t):
            return torch.exp(-rates * t.reshape(-1, 1))

        def sigma(self, t):
            return torch.sqrt(-torch.expm1(-2 * rates * t.reshape(-1, 1)))

        def __post_init__(self):
            pass

        def check(self):
            pass

    def g(t):
        return torch.sqrt(2 * rates).expand(len(t), 3)

    found = verify(Each(), lambda t: -rates, g)
    assert max(found.drift, found.diffusion) < 1e-9
    assert verify(Each(), lambda x, t: -rates * x, lambda t: torch.sqrt(2 * rates + 0 * t)).drift < 1e-9
    with pytest.raises(UsageError, match=r"in element \(1,\)"):
        verify(Each(), lambda t: -rates, lambda t: g(t) * torch.tensor([1.0, 1.1, 1.0], dtype=F64))
