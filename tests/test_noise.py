"""Numbers with an address: known answers, independence of the batch, and the right distribution."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from scoresde import Noise
from scoresde.core.errors import UsageError
from scoresde.core.noise import philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of the Random123 distribution (Salmon et al. 2011) for philox4x32-10
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert tuple(int(w) for w in philox(tuple(torch.tensor(c) for c in counter), key)) == expected


@pytest.mark.parametrize("draw", ["normal", "uniform", "rademacher"])
def test_a_row_keeps_its_numbers_in_any_batch(draw):
    whole = getattr(Noise.of(1000, seed=5), draw)((3, 5), step=7)
    some = torch.tensor([999, 3, 500])
    assert torch.equal(getattr(Noise(5, some), draw)((3, 5), step=7), whole[some])
    assert torch.equal(getattr(Noise.of(1000, 5).rows(some), draw)((3, 5), step=7), whole[some])
    assert torch.equal(getattr(Noise.of(10, 5, start=990), draw)((3, 5), step=7), whole[990:])


def test_every_part_of_the_address_matters():
    base = Noise.of(4, seed=1).normal((6,))
    for other in (
        Noise.of(4, seed=2).normal((6,)),
        Noise.of(4, seed=1 + 2**33).normal((6,)),
        Noise.of(4, seed=1, start=4).normal((6,)),
        Noise.of(4, seed=1, start=2**33).normal((6,)),
        Noise.of(4, seed=1).normal((6,), step=1),
        Noise.of(4, seed=1).normal((6,), stream="prior"),
    ):
        assert not bool((base == other).any())


def test_distributions():
    noise = Noise.of(2000, seed=3)
    z = noise.normal((50,), dtype=torch.float64).flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(noise.uniform((50,), dtype=torch.float64).flatten().numpy(), "uniform").pvalue > 1e-3
    signs = noise.rademacher((50,)).flatten()
    assert set(signs.tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 0.015
    u = noise.uniform((50,))
    assert float(u.max()) < 1 and float(u.min()) >= 0
    # neighbours in the event, in the batch and in the step are uncorrelated
    x = z.reshape(2000, 50)
    later = noise.normal((50,), step=1, dtype=torch.float64)
    for a, b in ((x[:, :-1], x[:, 1:]), (x[:-1], x[1:]), (x, later)):
        assert abs(float((a * b).mean())) < 0.015


def test_bad_addresses_are_refused():
    with pytest.raises(UsageError, match="seed"):
        Noise.of(2, seed=-1)
    with pytest.raises(UsageError, match="int64"):
        Noise(0, torch.zeros(2))
    with pytest.raises(UsageError, match="solver"):
        Noise.of(2).normal((3,), stream="sampler")
    with pytest.raises(UsageError, match="step"):
        Noise.of(2).normal((3,), step=2**32)


def test_brownian_path():
    noise = Noise.of(20_000, seed=2, brownian=True)
    times = [0.0, 0.001, 0.1, 1 / 3, 0.5, 0.8125, 1.0]
    w = torch.stack([noise.path(t, (1,))[:, 0] for t in times])
    assert bool((w[0] == 0).all())
    # Cov(W(s), W(t)) = min(s, t)
    expected = torch.minimum(torch.tensor(times)[:, None], torch.tensor(times)[None]).double()
    assert float((w @ w.T / 20_000 - expected).abs().max()) < 0.025
    assert stats.kstest((w[3] / math.sqrt(1 / 3)).numpy(), "norm").pvalue > 1e-3
    # the same whoever asks, and a step's normals are its increment
    some = torch.tensor([7, 19_999])
    assert torch.equal(noise.rows(some).path(0.1, (1,))[:, 0], w[2][some])
    z = noise.between(0.5, 0.1, (1,), step=3, dtype=torch.float64)[:, 0]
    assert torch.allclose(z, (w[2] - w[4]) / math.sqrt(0.4))
    assert float(z.std()) == pytest.approx(1, abs=0.02)


def test_plain_noise_goes_by_the_step():
    noise = Noise.of(5, seed=2)
    assert torch.equal(noise.between(0.5, 0.1, (3,), step=4), noise.normal((3,), step=4))


def test_steps_below_the_resolution_of_the_path_are_refused():
    with pytest.raises(UsageError, match="resolves"):
        Noise.of(2, brownian=True).between(0.5, 0.500001, (1,), 0)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        Noise.of(2, brownian=True).between(1.5, 0.5, (1,), 0)


@pytest.mark.parametrize("event", [(), (3,), (2, 2)])
def test_a_path_at_times_of_the_rows_is_the_path_of_each_row(event):
    # Whoever asks, and for whatever others: bit for bit.
    noise = Noise.of(7, seed=5, brownian=True)
    times = torch.tensor([0.0, 1.0, 0.5, 1 / 3, 0.999999, 0.123456789, 2**-20], dtype=torch.float64)
    together = noise.path(times, event)
    assert together.shape == (7, *event) and together.dtype == torch.float64
    for row, t in enumerate(times.tolist()):
        index = torch.tensor([row])
        assert torch.equal(together[row], noise.rows(index).path(t, event)[0])
        assert torch.equal(together[row], noise.path(t, event)[row])
        assert torch.equal(together[index], noise.rows(index).path(times[index], event))


def test_a_path_is_what_it_was_when_it_is_asked_again():
    noise = Noise.of(4, seed=5, brownian=True)
    fine = {t: noise.path(t, (2,)) for t in torch.linspace(0, 1, 33).tolist()}
    for t in (0.25, 0.5, 0.75):
        assert torch.equal(noise.path(t, (2,)), fine[t])
    # Refining between two times leaves them alone, and an increment is the sum of its parts.
    parts = sum(noise.path(b, (2,)) - noise.path(a, (2,)) for a, b in ((0.25, 0.3), (0.3, 0.41), (0.41, 0.75)))
    assert torch.allclose(parts, fine[0.75] - fine[0.25], rtol=0, atol=1e-14)


def test_increments_of_a_path_are_independent_normals():
    noise = Noise.of(6000, seed=8, brownian=True)
    nodes = [0.07, 0.11, 0.35, 0.351, 0.9]
    w = torch.stack([noise.path(t, (1,))[:, 0] for t in nodes])
    steps = torch.diff(w, dim=0) / torch.diff(torch.tensor(nodes, dtype=torch.float64)).sqrt()[:, None]
    assert float((steps @ steps.T / 6000 - torch.eye(4)).abs().max()) < 0.06
    for step in steps:
        assert stats.kstest(step.numpy(), "norm").pvalue > 1e-3


def test_a_path_belongs_to_its_sample_its_seed_and_its_place_in_the_event():
    base = Noise.of(2, seed=5, brownian=True).path(0.3, (3,))
    assert not torch.equal(Noise.of(2, seed=6, brownian=True).path(0.3, (3,)), base)
    assert torch.equal(Noise.of(1, seed=5, start=1, brownian=True).path(0.3, (3,))[0], base[1])
    assert len(set(base.flatten().tolist())) == 6
