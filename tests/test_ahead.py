"""Batches that are read ahead: the same bytes whatever the number of threads, and errors where they belong."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import TrainConfig, fit, load_data
from scoresde.core.errors import DataError, UsageError
from scoresde.core.noise import keyed
from scoresde.data import Dataset, inplace
from scoresde.data.ahead import Ahead
from scoresde.data.batch import Batches, Rows
from scoresde.data.rows import ArrayFile


@pytest.fixture(autouse=True)
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Dataset]:
    """A data set that stays in its file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inplace, "LARGE", 0)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (150, 1, 8, 8), dtype=np.uint8))
    return lambda: load_data(str(tmp_path / "x.npy"))


def of(data: Dataset, workers: int, size: int = 16) -> Batches:
    return Batches(Rows(data.train, data.codec), size, 3, workers=workers)


def batch(batches: Batches, step: int) -> torch.Tensor:
    generator = keyed(3, step)
    found = batches.at(step, generator, torch.float32).x0
    return torch.cat([found.flatten(), torch.rand(3, generator=generator)])  # and what is drawn after it


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_workers(stored: Callable[[], Dataset], workers: int) -> None:
    data = stored()
    plain, ahead = of(data, 0), of(data, workers)
    for step in [*range(25), 10**6, 10**6 + 1, 4, 4, 7]:  # over the ends of passes, late, back, twice, and with a gap
        assert torch.equal(batch(ahead, step), batch(plain, step)), step
    assert isinstance(ahead.source.x, Ahead) and isinstance(plain.source.x, type(data.train))
    assert len(ahead.source.x.pending) <= workers + 2
    for at in (slice(3, 9), 5, torch.tensor([1, 4])):
        assert torch.equal(ahead.source.x[at], data.train[at])
    ahead.source.x.expect(3, ahead.index)  # rows that are read ahead are returned only for their own positions
    assert torch.equal(ahead.source.x[torch.arange(16)], data.train[:16]) and len(ahead._orders) <= 2
    assert ahead.source.x.shape == data.train.shape and ahead.source.x.dtype == data.train.dtype


def test_batches_larger_than_the_data(stored: Callable[[], Dataset]) -> None:
    data = stored()
    plain, ahead = of(data, 0, 400), of(data, 2, 400)  # a batch spans several passes
    assert all(torch.equal(batch(ahead, step), batch(plain, step)) for step in range(4))


def test_rows_are_read_while_others_are_used(stored: Callable[[], Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    read, real, enough = [], ArrayFile.read, threading.Event()

    def counted(self: ArrayFile, index: np.ndarray) -> np.ndarray:
        read.append(threading.current_thread().name)
        if len(read) >= 4:
            enough.set()
        return real(self, index)

    batches = of(stored(), 2)
    monkeypatch.setattr(ArrayFile, "read", counted)
    batch(batches, 0)
    assert enough.wait(30)  # nothing asked for steps 1, 2 and 3
    assert all(name.startswith("rows") for name in read)
    batch(batches, 1)
    batch(batches, 2)
    batch(batches, 3)
    batches.source.x._pool.shutdown()
    assert len(read) == 3 + 4  # each step once, and the steps to come


def test_an_error_comes_at_its_step(stored: Callable[[], Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    data, real = stored(), ArrayFile.read
    batches = of(data, 2)
    bad = int(data.train.index[batches.index(2)[0]])

    def fails(self: ArrayFile, index: np.ndarray) -> np.ndarray:
        if bad in index:
            raise DataError("row 7 is bad")
        return real(self, index)

    monkeypatch.setattr(ArrayFile, "read", fails)
    batch(batches, 0)
    batch(batches, 1)
    with pytest.raises(DataError, match="row 7 is bad"):
        batch(batches, 2)


def test_no_thread_is_left(stored: Callable[[], Dataset]) -> None:
    batches = of(stored(), 3)
    batch(batches, 0)
    pool = batches.source.x._pool
    del batches
    gc.collect()
    for thread in pool._threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in pool._threads)


def test_training_with_workers(stored: Callable[[], Dataset], tmp_path: Path) -> None:
    config = TrainConfig(data=str(tmp_path / "x.npy"), steps=6, batch=8, preset="tiny", warmup=2, decay="none")
    plain = fit(config, out=tmp_path / "plain", quiet=True)
    fit(replace(config, steps=3, workers=2), out=tmp_path / "ahead", quiet=True)
    ahead = fit(replace(config, workers=1), out=tmp_path / "ahead", resume=True, quiet=True)
    for ours, theirs in zip(ahead.base.parameters(), plain.base.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UsageError, match="workers"):
        replace(config, workers=-1)


def test_rows_in_memory_need_no_workers() -> None:
    data = Dataset.of(np.random.default_rng(0).normal(size=(90, 2)))
    assert of(data, 2)._ahead is None and torch.equal(batch(of(data, 2), 3), batch(of(data, 0), 3))
