"""Two threads at once are as reproducible as one alone, and leave the process as it was."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from scoresde import Likelihood, TrainConfig, fit, load
from scoresde.core.shared import silence
from scoresde.nn import MLP
from scoresde.nn.dropout import Dropout, drawing_from
from scoresde.train.state import keyed_rng

CONFIG = TrainConfig(data="moons", steps=4, batch=8)


class Foreign(MLP):
    """A network of one's own, whose dropout is torch's."""

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        return nn.functional.dropout(super().forward(x, *rest), 0.5, self.training)


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What the calls return, each in a thread of its own."""
    found: list[object] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after a few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def weights(network: nn.Module, seed: int) -> Tensor:
    run = fit(CONFIG, network=network, save=False, quiet=True)
    assert run.step == 4 and seed >= 0
    return torch.cat([value.flatten() for value in run.base.state_dict().values()])


def test_dropout_of_two_trainings_that_are_in_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(seed: int) -> MLP:
        torch.manual_seed(seed)
        return MLP(2, 8, 2, dropout=0.5)

    alone = [weights(network(seed), seed) for seed in (0, 1)]
    both, meeting = [network(0), network(1)], threading.Barrier(2)

    def wait(module: nn.Module, _: object) -> None:
        if module.training:
            meeting.wait(20)

    for one in both:  # each waits in the middle of its network until the other one is there too
        one.blocks[1].register_forward_pre_hook(wait)
    before = torch.manual_seed(5).get_state()
    found = at_once(*(lambda n=n: weights(n, 0) for n in both))
    assert [torch.equal(a, b) for a, b in zip(alone, found, strict=True)] == [True, True]  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_of_ones_own_has_the_global_generator_to_itself(restless: None) -> None:
    def network(seed: int) -> Foreign:
        torch.manual_seed(seed)
        return Foreign(2, 8, 1)

    alone = [weights(network(seed), seed) for seed in (0, 1)]
    both = [network(0), network(1)]
    before = torch.manual_seed(5).get_state()
    found = at_once(*(lambda n=n: weights(n, 0) for n in both))
    assert [torch.equal(a, b) for a, b in zip(alone, found, strict=True)] == [True, True]  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_are_those_of_the_seed(restless: None) -> None:
    def made(seed: int) -> Tensor:
        with keyed_rng(seed, -1, "cpu"):
            first = torch.rand(1)
            for _ in range(200):
                torch.rand(1)
            return torch.cat([first, torch.rand(3)])

    alone = [made(seed) for seed in range(4)]
    found = at_once(*(lambda s=s: made(s) for s in range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_dropout_is_that_of_torch(dtype: torch.dtype) -> None:
    x, dropout = torch.randn(64, 3, dtype=dtype), Dropout(0.3)
    torch.manual_seed(7)
    expected = nn.functional.dropout(x, 0.3)
    with drawing_from(dropout, torch.Generator().manual_seed(7)):
        assert torch.equal(dropout(x), expected)
    assert dropout.generator is None


def test_sampling_and_scoring(trained: object) -> None:
    run = load(f"{trained}/moons")
    x = torch.linspace(-1, 1, 8).reshape(4, 2)

    def asked(seed: int) -> Tensor:
        scores = run.log_likelihood(x, Likelihood(steps=2), seed=seed, check=False)
        return torch.cat([run.sample(4, "sde", seed=seed).x.flatten(), scores.log_prob])

    alone = [asked(seed) for seed in (0, 1)]
    found = at_once(*(lambda s=s: asked(s) for s in (0, 1)))
    assert [torch.equal(a, b) for a, b in zip(alone, found, strict=True)] == [True, True]  # type: ignore[arg-type]


def test_settings_of_the_process_are_restored_by_the_last_thread() -> None:
    """The first to enter leaves first: saved and restored by each alone, the filter would stay."""
    first, second = threading.Event(), threading.Event()
    before = list(warnings.filters)

    def early() -> None:
        with silence:
            first.set()
            second.wait(20)

    def late() -> list[object]:
        first.wait(20)
        with silence:
            second.set()
            thread.join(20)
            return list(warnings.filters)

    thread = threading.Thread(target=early)
    thread.start()
    assert late()[0] == ("ignore", None, Warning, None, 0)
    assert warnings.filters == before
