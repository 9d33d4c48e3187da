"""The moving average: the share that each update has in it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from scoresde.train.averages import EMA


def averaged(decay: float, weights: Iterable[float], start: float = 0.0) -> list[float]:
    """The average after each of a series of weights."""
    module, found = nn.Linear(1, 1, bias=False, dtype=torch.float64), []
    nn.init.constant_(module.weight, start)
    ema = EMA(module, decay)
    for weight in weights:
        nn.init.constant_(module.weight, weight)
        ema.update(module)
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
    ema = EMA(module, decay=0.9999)
    nn.init.constant_(module.weight, 0.0)
    for _ in range(100):
        ema.update(module)
    assert abs(float(ema.state_dict()["weight"])) < 1e-3 * 1e6


def test_tied_weights_are_averaged_under_every_name():
    module = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    module[1].weight = module[0].weight
    nn.init.constant_(module[0].weight, 0.0)
    ema = EMA(module, decay=0.5)
    nn.init.constant_(module[0].weight, 1.0)
    ema.update(module)
    decay = 2 / 11
    assert [float(v) for v in ema.state_dict().values()] == pytest.approx([1 - decay] * 2)


def test_buffers_are_copied():
    module = nn.BatchNorm1d(2)
    ema = EMA(module)
    module(torch.randn(8, 2) + 3)
    ema.update(module)
    assert torch.equal(ema.state_dict()["running_mean"], module.running_mean)
    assert int(ema.state_dict()["num_batches_tracked"]) == 1
