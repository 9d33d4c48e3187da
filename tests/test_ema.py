"""The moving average: the share that each update has in it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from scoresde.run.profiles import Decay, Power, Profile
from scoresde.train.averages import EMA


def averaged(decay: float, weights: Iterable[float], start: float = 0.0) -> list[float]:
    """The average after each of a series of weights."""
    module, found = nn.Linear(1, 1, bias=False, dtype=torch.float64), []
    nn.init.constant_(module.weight, start)
    ema = EMA(module, decay)
    for weight in weights:
        nn.init.constant_(module.weight, weight)
        ema.update()
        found.append(float(ema.state_dict()["weight"]))
    return found


def test_in_the_warm_up_the_past_has_the_weights_of_a_power_law() -> None:
    # With d = (1 + n)/(10 + n) the products telescope: update k of n has the share C(k + 9, 8)/C(n + 10, 9), about the
    # eighth power of k/n, and the start has what is left of one, 10/C(n + 10, 9).
    history = [math.sin(k) for k in range(1, 41)]
    found = averaged(0.9999, history, start=5.0)
    for n in (1, 2, 7, 40):
        total = math.comb(n + 10, 9)
        shares = [math.comb(k + 9, 8) / total for k in range(1, n + 1)]
        assert sum(shares) + 10 / total == pytest.approx(1)
        expected = 5 * 10 / total + sum(share * w for share, w in zip(shares, history, strict=False))
        assert found[n - 1] == pytest.approx(expected, rel=1e-12)


def test_beyond_the_warm_up_a_weight_fades_at_the_rate_of_the_decay() -> None:
    # 0.9 is reached with update 80; a single weight of 1 then counts a tenth, and a tenth less with each update.
    found = averaged(0.9, [0.0] * 100 + [1.0] + [0.0] * 6)
    assert found[100:] == pytest.approx([0.1 * 0.9**k for k in range(7)], rel=1e-12)


def test_a_short_run_forgets_its_start():
    # The trap of a fixed decay of 0.9999: after 100 updates 99 % of the average is still the random start.
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1e6)
    ema = EMA(module, 0.9999)
    nn.init.constant_(module.weight, 0.0)
    for _ in range(100):
        ema.update()
    assert abs(float(ema.state_dict()["weight"])) < 1e-3 * 1e6


def test_tied_weights_are_averaged_under_every_name():
    module = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    module[1].weight = module[0].weight
    nn.init.constant_(module[0].weight, 0.0)
    ema = EMA(module, 0.5)
    nn.init.constant_(module[0].weight, 1.0)
    ema.update()
    decay = 2 / 11
    assert [float(v) for v in ema.state_dict().values()] == pytest.approx([1 - decay] * 2)


def test_buffers_are_copied():
    module = nn.BatchNorm1d(2)
    ema = EMA(module)
    module(torch.randn(8, 2) + 3)
    ema.update()
    assert torch.equal(ema.state_dict()["running_mean"], module.running_mean)
    assert int(ema.state_dict()["num_batches_tracked"]) == 1


PROFILES = (Decay(0.9999), Power(0.05), Power(0.1), Decay(0.5))


def lerped(module: nn.Module, profiles: tuple[Profile, ...], walk: int, skipped: tuple[int, ...]) -> list[list[Tensor]]:
    """The averages of a random walk of the weights, computed with one lerp_ for each parameter."""
    found = [[p.detach().clone() for p in module.parameters()] for _ in profiles]
    with torch.no_grad():
        for n in range(1, walk + 1):
            if n not in skipped:
                stir(module, n)
            for profile, averages in zip(profiles, found, strict=True):
                for average, value in zip(averages, module.parameters(), strict=True):
                    weight = torch.tensor(0.0 if n in skipped else 1 - profile(n), dtype=average.dtype)
                    average.lerp_(value, weight)
    return found


def stir(module: nn.Module, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for value in module.parameters():
        value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype))


@pytest.mark.parametrize("skipped", [(), (3, 4, 20)])
def test_one_call_for_all_weights_has_the_bits_of_one_for_each(skipped: tuple[int, ...]) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(37, 64), nn.Linear(64, 5, dtype=torch.float64), nn.Conv2d(3, 8, 3))

    module = made()
    ema = EMA(module, *PROFILES)
    with torch.no_grad():
        for n in range(1, 41):
            if n not in skipped:
                stir(module, n)
            ema.update(skip=torch.tensor(float(n in skipped)))
    for number, averages in enumerate(lerped(made(), PROFILES, 40, skipped)):
        for average, value in zip(averages, ema.state_dict(number).values(), strict=True):
            assert torch.equal(average, value)
    assert ema.updates == 40 and not torch.equal(*(ema.state_dict(i)["0.weight"] for i in (1, 2)))


def test_a_power_average_has_the_share_of_each_step_in_its_density() -> None:
    # The share of step k of n is the integral of the density from k - 1 to k, so the last share is 1 - (1 - 1/n)^(g+1).
    module, profile = nn.Linear(1, 1, bias=False, dtype=torch.float64), Power(0.1)
    ema, history = EMA(module, profile), [math.sin(3 * k) for k in range(1, 31)]
    for weight in history:
        nn.init.constant_(module.weight, weight)
        ema.update()
    power = profile.gamma + 1
    shares = [(k / 30) ** power - ((k - 1) / 30) ** power for k in range(1, 31)]
    expected = sum(share * weight for share, weight in zip(shares, history, strict=True))
    assert float(ema.state_dict()["weight"]) == pytest.approx(expected, rel=1e-12)


def test_weights_that_are_skipped_do_not_reach_the_buffers_either() -> None:
    module = nn.BatchNorm1d(2)
    ema = EMA(module, *PROFILES)
    module(torch.ones(8, 2))
    before = ema.state_dict(1)["running_mean"].clone()
    ema.update(skip=torch.ones(()))
    assert torch.equal(ema.state_dict(1)["running_mean"], before)
    ema.update(skip=torch.zeros(()))
    for number in range(len(PROFILES)):
        assert torch.equal(ema.state_dict(number)["running_mean"], module.running_mean)
