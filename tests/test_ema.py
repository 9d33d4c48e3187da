"""The moving average against its own recursion."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scoresde.ema import EMA


def test_recursion_with_warm_up():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 5.0)
    ema, expected = EMA(module, decay=0.9), 5.0
    for n in range(1, 200):
        nn.init.constant_(module.weight, float(n))
        ema.update(module)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert float(ema.state_dict()["weight"]) == pytest.approx(expected, rel=1e-5)


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
