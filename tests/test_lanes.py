"""Threads that each compute a part of the gradient, and the default numbers of threads."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import Shell, stop_after
from torch import Tensor, nn

from scoresde import Likelihood, ScoreModel, TrainConfig, fit, load
from scoresde.cli.common import Session
from scoresde.core import threads
from scoresde.core.errors import Stopped
from scoresde.core.progress import Progress
from scoresde.core.signals import check
from scoresde.core.threads import (
    BACKWARD,
    LANE,
    UNIT,
    Crowd,
    default_threads,
    in_lanes,
    lanes,
    most_lanes,
    one_thread,
    rows_each,
    work,
)
from scoresde.nn import MLP, UNet
from scoresde.nn.checkpointing import recompute
from scoresde.nn.execution import Execution
from scoresde.train.lanes import Lanes, lanes_for

CONFIG = TrainConfig(data="moons", steps=4, batch=512, sample_every=10**4, decay="none")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights(config: TrainConfig, **named: object) -> list[Tensor]:
    return list(fit(config, quiet=True, **{"save": False, **named}).base.state_dict().values())  # type: ignore[arg-type]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_two_lanes_are_two_parts_bit_for_bit(two_threads: None) -> None:
    lanes = weights(CONFIG)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert same(lanes, weights(replace(CONFIG, accumulate=2)))
    assert not same(lanes, weights(CONFIG))


def test_lanes_take_the_parts_of_a_divided_batch(two_threads: None) -> None:
    lanes = weights(replace(CONFIG, accumulate=2, batch=1024))
    torch.set_num_threads(1)
    assert same(lanes, weights(replace(CONFIG, accumulate=4, batch=1024)))


def test_a_run_in_lanes_resumes_bit_for_bit(two_threads: None, tmp_path: Path) -> None:
    whole = weights(CONFIG, save=True, out=tmp_path / "whole")
    weights(replace(CONFIG, steps=2), save=True, out=tmp_path / "half")
    assert same(whole, weights(CONFIG, save=True, out=tmp_path / "half", resume=True))


def test_lanes_are_said(two_threads: None, capsys: pytest.CaptureFixture[str]) -> None:
    fit(replace(CONFIG, steps=1), save=False)
    assert "each of 2 threads evaluates 256 rows of a batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "amount", "cores", "lanes"),
    [(64, 1e12, 2, 2), (63, 1e12, 2, 1), (63, 1e12, 3, 3), (64, 1e12, 24, 16), (4, 1e12, 16, 4), (64, 1e12, 1, 1),
     (64, 2 * LANE, 8, 2), (64, 2 * LANE - 1, 8, 1), (1, 1e12, 8, 1)],
)  # fmt: skip
def test_the_number_of_lanes(rows: int, amount: float, cores: int, lanes: int) -> None:
    assert lanes_for(MLP(dims=2), rows, amount, cores) == lanes


class Own(MLP):
    """A network that may do anything when it is called."""


def test_networks_whose_calls_may_change_something_have_one_lane() -> None:
    again = UNet(channels_in=1, channels=8, multipliers=(1, 2), blocks=1)
    recompute(again)
    for network in (Own(dims=2), MLP(dims=2, dropout=0.1), again):
        assert lanes_for(network, 64, 1e12, 2) == 1
    assert lanes_for(UNet(channels_in=1, channels=8, multipliers=(1, 2), blocks=1), 64, 1e12, 2) == 2


def _part(value: float, wait: Callable[[], object] = lambda: None) -> Callable[[], tuple[Tensor, Tensor]]:
    def part() -> tuple[Tensor, Tensor]:
        wait()
        losses = PARAMETER * torch.tensor([value, value])
        return losses.mean(), losses

    return part


PARAMETER, UNUSED = nn.Parameter(torch.tensor(2.0, dtype=torch.float64)), nn.Parameter(torch.zeros(1))


def test_the_order_of_the_lanes_is_that_of_the_rows() -> None:
    PARAMETER.grad = UNUSED.grad = None
    done = threading.Event()
    first = _part(1.0, lambda: done.wait(60))

    def second() -> tuple[Tensor, Tensor]:
        found = _part(3.0)()
        done.set()  # the first lane ends last
        return found

    with Lanes(2, [PARAMETER, UNUSED]) as lanes:
        loss, losses = lanes.backward([first, second], 1)
        assert float(loss) == 4 and losses.tolist() == [2, 2, 6, 6] and not losses.requires_grad
        assert PARAMETER.grad is not None and float(PARAMETER.grad) == 2 and UNUSED.grad is None
        lanes.backward([_part(1.0), _part(3.0)], 4)
        assert float(PARAMETER.grad) == 2.5


def test_an_error_in_a_lane_waits_for_the_others() -> None:
    other, ended = threading.Event(), []

    def fails() -> tuple[Tensor, Tensor]:
        other.set()
        raise RuntimeError("out of memory")

    def slow() -> tuple[Tensor, Tensor]:
        other.wait(60)
        ended.append(True)
        return _part(1.0)()

    with Lanes(2, [PARAMETER]) as lanes, pytest.raises(RuntimeError, match="out of memory"):
        lanes.backward([fails, slow], 1)
    assert ended == [True]


def test_the_number_of_threads_is_restored(two_threads: None) -> None:
    with pytest.raises(ValueError), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == 2


# ------------------------------------------------------------------------------------------------------- rows in lanes


def test_lanes_yield_in_order_and_in_threads_of_their_own(two_threads: None) -> None:
    both = threading.Barrier(2)

    def call(item: int) -> tuple[int, int, bool, str]:
        both.wait(60)  # fails unless two calls run at once
        return item, torch.get_num_threads(), torch.is_grad_enabled(), threading.current_thread().name

    with lanes(2), torch.no_grad():
        found = list(in_lanes(call, range(4)))
        assert torch.get_num_threads() == 1
    assert [item for item, *_ in found] == [0, 1, 2, 3] and torch.get_num_threads() == 2
    assert {count for _, count, *_ in found} == {1} and not any(grad for _, _, grad, _ in found)
    assert len({name for *_, name in found}) == 2
    assert [name for *_, name in map(call, ())] == [] and list(in_lanes(str, [1, 2])) == ["1", "2"]


@pytest.mark.parametrize("ends", ["error", "caller"])
def test_calls_that_are_not_needed_end_at_their_next_check(two_threads: None, ends: str) -> None:
    begun, ended = threading.Event(), []

    def call(item: int) -> int:
        if item == 0:
            assert begun.wait(60)
            if ends == "error":
                raise RuntimeError("out of memory")
            return item
        begun.set()
        try:
            while True:
                check()
        except Stopped:
            ended.append(item)
            raise

    with lanes(2):
        found = in_lanes(call, range(50))
        if ends == "error":
            with pytest.raises(RuntimeError, match="out of memory"):
                list(found)
        else:
            assert next(found) == 0
            found.close()
    assert 1 in ended and len(ended) < 10  # most calls have not begun
    check()  # in this thread, nothing has ended


@pytest.mark.parametrize("asked", ["likelihood", "check", "elbo"])
def test_likelihoods_in_lanes_are_those_of_smaller_batches(two_threads: None, trained: Path, asked: str) -> None:
    run, x = load(trained / "moons"), torch.linspace(-1, 1, 20).reshape(10, 2)
    seen: list[tuple[str, int]] = []

    def call(batch: int) -> list[Tensor]:
        if asked == "elbo":
            return list(run.elbo(x, strata=2, batch=batch).pack()[0].values())
        found = run.log_likelihood(
            x, Likelihood(rtol=0.01, divergence="hutchinson"), batch=batch, check=asked == "check",
            watch=lambda part: seen.append((threading.current_thread().name, len(part.log_prob))),
        )  # fmt: skip
        return list(found.pack()[0].values())

    with lanes(2):
        found = call(6)
    torch.set_num_threads(1)
    assert asked == "elbo" or seen == [("MainThread", 3), ("MainThread", 3), ("MainThread", 3), ("MainThread", 1)]
    assert all(torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in zip(found, call(3), strict=True))


def test_rows_are_shared_by_the_lanes(two_threads: None) -> None:
    assert rows_each(10, 128) == 10
    with lanes(2):
        assert [rows_each(*sizes) for sizes in ((10, 128), (11, 128), (1000, 128), (1, 1), (1000, 1))] == [
            5,
            6,
            64,
            1,
            1,
        ]
    assert [most_lanes(rows, amount * LANE, 8) for rows, amount in ((24, 1.9), (24, 2), (3, 99), (24, math.inf))] == [
        1, 2, 3, 8
    ]  # fmt: skip


def test_runs_whose_calls_may_change_something_have_one_lane(two_threads: None, trained: Path) -> None:
    run = load(trained / "moons")
    assert run.lanes(10**6) == 2 and run.lanes(1) == 1
    assert run.steered(lambda estimate: estimate.x0.sum(1)).lanes(10**6) == 1
    base = run.base
    assert isinstance(base, ScoreModel)
    base.network = MLP(dims=2, dropout=0.5).eval()
    assert run.lanes(10**6) == 2  # which draws nothing here
    base.network = Own(dims=2)
    assert run.lanes(10**6) == 1
    base.network = MLP(dims=2)
    base.execution = Execution(compiled=True)
    assert run.lanes(10**6) == 1


def test_a_likelihood_in_lanes_stops_and_resumes(
    two_threads: None, shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "LANE", 0.0001)
    line = f"likelihood {moons} --limit 12 --batch 4 --rtol 0.3 --save npz --threads 2 --out"
    shell(f"{line} whole")
    assert "each of 2 threads computes up to 2 samples at once" in shell.err
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        shell(f"{line} half", 75)
    kept = len(list(Path("half/parts").rglob("*.safetensors")))
    assert 2 <= kept < 6 and torch.get_num_threads() == 2
    shell(f"{line} half --resume")
    with np.load("whole/likelihood.npz") as whole, np.load("half/likelihood.npz") as half:
        assert set(whole) == set(half)
        for name in whole:
            np.testing.assert_array_equal(whole[name], half[name])


def test_the_default_number_of_threads_at_its_edges() -> None:
    for amount, cores, expected in (
        (0.0, 8, 1), (UNIT, 8, 1), (2 * UNIT - 1, 8, 1), (2 * UNIT, 8, 2), (7.5 * UNIT, 8, 7), (1e15, 8, 8),
        (math.inf, 4, 4), (1e15, 1, 1),
    ):  # fmt: skip
        assert default_threads(amount, cores) == expected
        assert default_threads(amount / UNIT * BACKWARD, cores, BACKWARD) == expected


def test_work_counts_multiplications_and_additions() -> None:
    dense, x = nn.Linear(5, 7), torch.zeros(3, 5)
    assert work(dense, lambda: dense(x)) == 2 * 3 * 5 * 7
    conv, image = nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.zeros(2, 4, 5, 5)
    assert work(conv, lambda: conv(image)) == 2 * 2 * 6 * 25 * (2 * 9)
    assert not conv._forward_hooks
    from torch.utils.flop_counter import FlopCounterMode

    network = UNet(channels_in=1, channels=8, multipliers=(1, 2), blocks=1)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(3, 1, 8, 8), torch.zeros(3))
    assert work(network, lambda: network(torch.zeros(3, 1, 8, 8), torch.zeros(3))) == counter.get_total_flops()


def _session(**given: object) -> Session:
    plain: dict[str, object] = {"device": "cpu", "dtype": "float32", "threads": None, "json": False, "quiet": False}
    return Session(seed=0, **(plain | given))  # type: ignore[arg-type]


def test_commands_use_threads_by_the_work_of_a_call(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in threads.NAMES:
        monkeypatch.delenv(name, raising=False)
    run = fit(replace(CONFIG, steps=1), save=False, quiet=True)
    assert 1e5 < run.work < 1e7
    enough = math.ceil(2 * UNIT / run.work)
    _session().share_threads([run], enough)
    assert torch.get_num_threads() == 2 and not capsys.readouterr().err
    _session().share_threads([run], enough, backward=True)
    assert torch.get_num_threads() == 1 and "using 1 thread of 2" in capsys.readouterr().err
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    _session().share_threads([run], 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    _session(threads=2).share_threads([run], 1)
    assert torch.get_num_threads() == 2 and not capsys.readouterr().err  # the user has chosen
    _session().share_threads([run], enough - 1)
    assert torch.get_num_threads() == 1 and "using 1 thread of 2" in capsys.readouterr().err


def test_the_work_of_an_unknown_network_is_large() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor, c: Tensor, cond: None = None) -> Tensor:
            raise KeyError("label")

    run = fit(replace(CONFIG, steps=1), save=False, quiet=True)
    network = run.base.network  # type: ignore[attr-defined]
    run.base.network = Asks()  # type: ignore[attr-defined]
    assert run.work == math.inf and default_threads(run.work, 3) == 3
    run.base.network = network  # type: ignore[attr-defined]


def _crowd(monkeypatch: pytest.MonkeyPatch, interruptions: float, cores: int) -> list[str | None]:
    """What is told at 5, 15, 25 and 35 seconds, with so many interruptions a second."""
    now = [0.0]
    monkeypatch.setattr(threads.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(threads, "_interruptions", lambda: int(interruptions * now[0]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    crowd, told = Crowd(), []
    for second in (5, 15, 25, 35):
        now[0] = second
        told.append(crowd.told())
    return told


def test_shared_cores_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *rest = _crowd(monkeypatch, 200, 2)
    assert first is None and rest == [None, None] and second is not None
    assert "the 2 threads were interrupted 200 times a second" in second and "OMP_NUM_THREADS=1" in second


def test_free_cores_and_single_threads_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(_crowd(monkeypatch, 20, 2)) and not any(_crowd(monkeypatch, 500, 1))


def test_a_progress_line_tells_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = itertools.chain(["the cores are shared"], itertools.repeat(None))
    monkeypatch.setattr(Crowd, "told", lambda self: next(lines))
    for quiet, expected in ((False, 1), (True, 0)):
        with Progress(2, "count", quiet=quiet) as progress:
            progress.update()
            progress.update()
        assert capsys.readouterr().err.count("the cores are shared") == expected
