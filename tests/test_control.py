"""The regression on features: leaving one out, and when it is not used."""

from __future__ import annotations

import pytest
import torch

from scoresde.likelihood import control
from scoresde.likelihood.control import Ridge, features, leave_one_out

F64 = torch.float64


def made(n=60, k=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=generator, dtype=F64)
    return x, x @ torch.linspace(-1, 1, k, dtype=F64) + 0.3 * torch.randn(n, generator=generator, dtype=F64)


def test_leaving_one_out_is_fitting_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PENALTIES", (10.0,))
    x, y = made()
    found, own = leave_one_out(x, y, x[:7])
    z = (x - x.mean(0)) / x.std(0, correction=0)
    one = torch.cat([torch.ones(len(z), 1, dtype=F64), z], 1)
    penalty = torch.diag(torch.tensor([0.0, *[10.0 * len(y) / 100] * x.shape[1]], dtype=F64))
    for i in (0, 13, 59):
        rest = torch.arange(len(y)) != i
        weights = torch.linalg.solve(one[rest].T @ one[rest] + penalty, one[rest].T @ y[rest])
        assert float(own[i]) == pytest.approx(float(one[i] @ weights), rel=1e-9)
    weights = torch.linalg.solve(one.T @ one + penalty, one.T @ y)
    assert torch.allclose(found, one[:7] @ weights, rtol=1e-9)


def test_a_picture_far_outside_is_predicted_within_the_range_of_the_others() -> None:
    x, y = made()
    far = leave_one_out(x, y, 1e6 * torch.ones(1, 5, dtype=F64))[0]
    assert float(far.abs()) < 10


def test_useless_features_are_not_used() -> None:
    x, y = made(100)
    places = torch.arange(40, 100)
    found, noise = Ridge(x)(places, y[places])
    assert noise == 0 and float((found[:40] - y[:40]).var()) < 0.5 * float(y.var())
    random = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert bool((Ridge(x)(places, random)[0] == 0).all())
    same = torch.ones(100, 3, dtype=F64)  # features that are the same for all
    assert bool((Ridge(same)(places, y[places])[0] == 0).all())


def test_the_noise_of_the_dequantisation_is_measured() -> None:
    x, y = made(2000)
    again = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    _, noise = Ridge(x, again)(torch.arange(200), y[:200])
    slopes = torch.linspace(-1, 1, 5, dtype=F64)
    assert noise == pytest.approx(float((0.1 * slopes).square().sum()) / 2, rel=0.2)


@pytest.mark.parametrize("event", [(2,), (30,), (1, 8, 8), (3, 4, 4), (2, 16)], ids=str)
def test_features_of_any_shape(event: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, train = (torch.randn(n, *event, generator=generator) for n in (20, 50))
    alone, beside = features(x), features(x, train)
    assert len(alone) == 20 and beside.shape[1] == alone.shape[1] + 10
    assert bool(beside.isfinite().all()) and beside.dtype == F64
    again = features(torch.cat([x[:10], train[:1], x[10:]]), torch.cat([train, train[:1]]))
    assert bool(again.isfinite().all()), "a training row among the pictures"


def test_features_tell_how_improbable_a_picture_is() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = 1 + torch.rand(400, 1, 1, 1, generator=generator)
    x = scale * torch.randn(400, 1, 8, 8, generator=generator)
    log_prob = -x.flatten(1).square().sum(1).double() / 2
    own = leave_one_out(features(x)[:200], log_prob[:200], features(x))[1]
    assert float((own - log_prob[:200]).var() / log_prob[:200].var()) < 0.02
