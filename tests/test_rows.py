"""Rows that stay in their files: the same batches as in memory, few bytes read, and an index that is never trusted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import Shell

from scoresde import TrainConfig, fit, load, load_data
from scoresde.core.errors import DataError
from scoresde.core.noise import keyed
from scoresde.data import Dataset, Reading, index, inplace
from scoresde.data.batch import Batches, Rows
from scoresde.data.rows import ArrayFile, Joined, Moments, Stored, Subset, evenly, part, pieces, thinned

RNG = np.random.default_rng(0)
ARRAYS = {
    "table": RNG.normal(size=(500, 3)),
    "signal": RNG.normal(size=(300, 2, 40)).astype("f4"),
    "colour": RNG.integers(0, 256, (400, 16, 16, 3), dtype=np.uint8),
    "grey": RNG.integers(0, 256, (400, 12, 12), dtype=np.uint8),
    "counts": RNG.integers(-3, 9, (200, 4)),
    "unlike": RNG.normal(size=(300, 8, 8, 3)) * [1, 20, 3] + 1e9,
    "true": RNG.integers(0, 2, (100, 3)) == 1,
    "half": RNG.normal(size=(200, 3)).astype(">f2"),
    "line": RNG.normal(size=300),
    "volume": RNG.normal(size=(60, 1, 4, 5, 6)).astype("f4"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scoresde" / "index"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the size above which data stay in their files."""
    return lambda most=0: monkeypatch.setattr(inplace, "LARGE", most)


def both(path: Path, small: Callable[..., None], **how: Any) -> tuple[Dataset, Dataset]:
    """The same data in memory and in their files."""
    small(2**30)
    memory = load_data(str(path), **how)
    small(0)
    stored = load_data(str(path), **how)
    assert isinstance(memory.train, torch.Tensor) and isinstance(stored.train, Stored)
    return memory, stored


def saved(path: Path, x: np.ndarray) -> Path:
    np.save(path, x)
    return path


def untimed(facts: Any) -> Any:
    """The facts without what is never the same twice."""
    if isinstance(facts, list):
        return [untimed(fact) for fact in facts]
    if not isinstance(facts, dict):
        return facts
    return {key: untimed(value) for key, value in facts.items() if "second" not in key and key != "files"}


def batches(data: Dataset, *steps: int, size: int = 16, seed: int = 3) -> list[torch.Tensor]:
    made = Batches(Rows(data.train, data.codec, data.train_labels, len(data.info.classes)), size, seed)
    return [made.at(step, keyed(seed, step), torch.float32).x0 for step in steps]


# ------------------------------------------------------------------------------------------------------ as in memory


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_its_file_is_the_array_in_memory(name: str, tmp_path: Path, small: Callable[..., None]) -> None:
    memory, stored = both(saved(tmp_path / "x.npy", ARRAYS[name]), small)
    assert stored.info == memory.info
    for ours, theirs in ((stored.train, memory.train), (stored.test, memory.test)):
        assert (ours.shape, ours.dtype, ours.ndim, len(ours)) == (theirs.shape, theirs.dtype, theirs.ndim, len(theirs))
        assert torch.equal(ours[torch.arange(len(ours))], theirs)
    assert torch.equal(stored.validates, memory.validates) and torch.equal(stored.rows, memory.rows)
    assert stored.identity.compared(memory.identity)[0] == "same" and stored.known_again == memory.known_again
    for ours, theirs in zip(batches(stored, 0, 7), batches(memory, 0, 7), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    if memory.info.levels == 256:  # nothing to estimate
        assert stored.codec == memory.codec
        assert all(map(torch.equal, batches(stored, 0, 10**6), batches(memory, 0, 10**6)))


def test_the_layout_is_as_asked(tmp_path: Path, small: Callable[..., None]) -> None:
    path = saved(tmp_path / "x.npy", ARRAYS["signal"])
    memory, stored = both(path, small, reading=Reading(layout="last", size=4))
    assert stored.info == memory.info and stored.info.shape == (40, 2)
    assert [note for note in stored.notes if note not in memory.notes] == [
        "the rows of x.npy stay in the file, because they take more than 0 GiB"
    ]


def test_every_way_to_index(tmp_path: Path, small: Callable[..., None]) -> None:
    memory, stored = both(saved(tmp_path / "x.npy", ARRAYS["counts"]), small)
    x, rows = memory.train, stored.train
    mask = torch.arange(len(x)) % 3 == 1
    for at in (torch.tensor([5, 0, 5, -1]), mask, slice(2, 90, 7), slice(None, None, -3), slice(0, 0), mask[:0].long()):
        expected = x.flip(0)[::3] if isinstance(at, slice) and at.step == -3 else x[at]
        assert torch.equal(rows[at], expected)
    assert torch.equal(rows[3], x[3]) and torch.equal(rows[-1], x[-1])
    for out in (len(x), -len(x) - 1):
        with pytest.raises(IndexError, match="does not exist"):
            rows[out]
    some = part(part(rows, mask), torch.tensor([4, 1]))
    assert isinstance(some, Subset) and not isinstance(some.rows, Subset)
    assert torch.equal(some[:], part(part(x, mask), torch.tensor([4, 1])))
    every, _, _ = stored.every()
    assert isinstance(every, Joined) and torch.equal(every[:], memory.every()[0])
    assert torch.equal(every[torch.tensor([len(x) + 1, 0])], memory.every()[0][[len(x) + 1, 0]])
    assert torch.equal(torch.cat([*pieces(rows, 7)]), x) and torch.equal(torch.cat([*pieces(rows)]), x)
    assert torch.equal(stored.trained[:], memory.trained) and torch.equal(stored.filled[:], memory.filled)


def test_a_sample_is_evenly_spread(tmp_path: Path, small: Callable[..., None]) -> None:
    memory, stored = both(saved(tmp_path / "x.npy", ARRAYS["counts"]), small)
    assert thinned(memory.train, 8) is memory.train
    at = evenly(stored.train, 80)
    assert len(at) == 20 and int(at[0]) == 0 and int(at[-1]) == len(stored.train) - 1
    assert int(at.diff().max()) - int(at.diff().min()) <= 1
    assert torch.equal(thinned(stored.train, 80), memory.train[at])
    assert len(thinned(stored.train, 1)) == 16


def test_moments_of_pieces() -> None:
    x = RNG.normal(size=(1000, 3)) * [1, 1e-3, 5] + [0, 1e4, -2]
    found = Moments.of(x[:100], (0,)) + Moments.of(x[100:101], (0,)) + Moments.of(x[101:], (0,))
    assert found.count == 1000
    np.testing.assert_allclose(found.mean[0], x.mean(0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(found.std[0], x.std(0), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:.*far outside the others")
def test_typing_errors_are_named_by_their_rows(tmp_path: Path, small: Callable[..., None]) -> None:
    x = RNG.normal(size=(400, 2))
    x[123, 1] = 1e6
    memory, stored = both(saved(tmp_path / "x.npy", x), small)
    assert list(map(str, stored.unusual)) == list(map(str, memory.unusual)) and "row 123" in str(stored.unusual[0])


# -------------------------------------------------------------------------------------------------------- what is read


def test_a_late_step_reads_no_more_than_the_first(
    tmp_path: Path, small: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stored = both(saved(tmp_path / "x.npy", ARRAYS["colour"]), small)
    read, real = [], ArrayFile.read

    def counted(self: ArrayFile, at: np.ndarray) -> np.ndarray:
        read.append(len(at))
        return real(self, at)

    monkeypatch.setattr(ArrayFile, "read", counted)
    for step in (0, 10**6):
        batches(stored, step)
    assert read == [16, 16]


def test_one_pass_is_enough(
    tmp_path: Path, small: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = saved(tmp_path / "x.npy", ARRAYS["table"])
    _, first = both(path, small)
    assert len(list(cache.iterdir())) == 2  # the pass over all rows, and the moments of the training rows
    passed = []
    monkeypatch.setattr(inplace, "surveyed", lambda *_: passed.append(1))
    monkeypatch.setattr("scoresde.data.units._moments", lambda *_: passed.append(1))
    again = load_data(str(path))
    assert again.info == first.info and again.codec == first.codec and torch.equal(again.rows, first.rows)
    assert not passed
    with pytest.raises(TypeError):  # another split has other training rows, whose moments are not known
        load_data(str(path), seed=1)
    assert len(passed) == 1


@pytest.mark.parametrize("damage", ["cut", "other", "shape", "flat", "object", "empty"])
def test_a_damaged_index_is_made_again(damage: str, tmp_path: Path, small: Callable[..., None], cache: Path) -> None:
    path = saved(tmp_path / "x.npy", ARRAYS["table"])
    _, first = both(path, small)
    for file in cache.iterdir():
        with np.load(file) as arrays:
            found = dict(arrays)
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-40])
        elif damage == "empty":
            file.write_bytes(b"")
        else:
            name = "keys" if "keys" in found else "std"
            changed = {
                "other": {
                    "about": np.array(str(found["about"]).replace("x.npy", "y.npy")),
                    name: found[name][::-1] * 2,
                },
                "shape": {name: found[name][:-1] if name == "keys" else np.array(["a"])},
                "flat": {name: found[name].reshape(-1)},
                "object": {name: np.array([None, {}], dtype=object)},
            }[damage]
            np.savez(file.with_suffix(""), allow_pickle=True, **{**found, **changed})
    again = load_data(str(path))
    assert again.info == first.info and again.codec == first.codec and torch.equal(again.rows, first.rows)


def test_changed_data_are_read_again(tmp_path: Path, small: Callable[..., None]) -> None:
    path = saved(tmp_path / "x.npy", ARRAYS["table"])
    _, first = both(path, small)
    before = os.stat(path)
    saved(path, ARRAYS["table"][::-1] * 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    memory, stored = both(path, small)
    assert stored.info == memory.info != first.info
    with pytest.raises(DataError, match=r"x\.npy has changed since it was opened"):
        first.train[:2]
    path.unlink()
    with pytest.raises(DataError, match=r"x\.npy cannot be read: No such file"):
        stored.train[:2]


@pytest.mark.parametrize("place", ["file", "none"])
def test_an_index_that_cannot_be_kept_is_a_note(
    place: str, tmp_path: Path, small: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "file":
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home folder")))
    _, stored = both(saved(tmp_path / "x.npy", ARRAYS["table"]), small)
    (note,) = [note for note in stored.notes if "read in full again" in note]
    assert ("taken is a file" if place == "file" else "no home folder") in note


def test_the_index_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index.folder() == tmp_path / "cache" / "scoresde" / "index"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert index.folder() == Path.home() / ".cache" / "scoresde" / "index"


# ------------------------------------------------------------------------------------------------------------ refused


def test_what_cannot_stay_in_its_file(tmp_path: Path, small: Callable[..., None]) -> None:
    small(0)
    x = np.ones((9, 2))
    x[4, 1] = np.nan
    x[7] = np.inf
    with pytest.raises(DataError, match=r"array 'x' has 3 NaN or infinite values, the first in row 4"):
        load_data(str(saved(tmp_path / "nan.npy", x)))
    with pytest.raises(DataError, match=r"column by column.*np\.ascontiguousarray"):
        load_data(str(saved(tmp_path / "columns.npy", np.asfortranarray(ARRAYS["table"]))))
    whole = saved(tmp_path / "cut.npy", ARRAYS["table"]).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"needs 12,000 bytes, but 11,992 bytes follow"):
        load_data(str(tmp_path / "cut.npy"))
    (tmp_path / "no.npy").write_bytes(b"\x93NUMPY\x09\x00" + whole[8:])
    with pytest.raises(DataError, match="is damaged or is not a NumPy file"):
        load_data(str(tmp_path / "no.npy"))
    np.save(tmp_path / "object.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled Python objects"):
        load_data(str(tmp_path / "object.npy"))
    with pytest.raises(DataError, match="must have shape"):
        load_data(str(saved(tmp_path / "empty.npy", np.empty((0, 3)))))
    with pytest.raises(DataError, match="constants have no density"):
        load_data(str(saved(tmp_path / "same.npy", np.stack([np.ones(50), np.arange(50) / 7], 1))))


# ------------------------------------------------------------------------------------------------------------- in use


def test_training_in_files_is_training_in_memory(tmp_path: Path, small: Callable[..., None]) -> None:
    path = saved(tmp_path / "x.npy", RNG.integers(0, 256, (300, 1, 8, 8), dtype=np.uint8))
    config = TrainConfig(data=str(path), steps=6, batch=8, preset="tiny", validate_every=3)
    small(2**30)
    memory = fit(config, out=tmp_path / "memory", quiet=True)
    small(0)
    stored = fit(config, out=tmp_path / "stored", quiet=True)
    for ours, theirs in zip(stored.base.parameters(), memory.base.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert stored.info == memory.info
    # A run that was trained in memory goes on with rows in files, as if it had never stopped.
    config = replace(config, warmup=3, decay="none")
    small(2**30)
    whole = fit(replace(config, steps=10), out=tmp_path / "whole", quiet=True)
    fit(config, out=tmp_path / "parts", quiet=True)
    small(0)
    parts = fit(replace(config, steps=10), out=tmp_path / "parts", resume=True, quiet=True)
    for ours, theirs in zip(parts.base.parameters(), whole.base.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_commands_on_rows_in_files(
    shell: Shell, small: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.save("x.npy", RNG.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8))
    small(0)
    most = []
    real = Stored.__getitem__

    def counted(self: Stored, at: Any) -> torch.Tensor:
        found = real(self, at)
        most.append(len(found))
        return found

    shell("train --data x.npy --steps 4 --preset tiny --out run --set batch=8")
    assert "distance to the nearest training sample" in shell.err
    first = [
        "likelihood run --limit 4 --set likelihood.rtol=1e-1",
        "evaluate run --n 8 --steps 2 --limit 20",
        "bench run --n 8 --nfe 4 --solvers ode",
    ]
    stored = [shell.json(line) for line in first]
    small(2**30)
    memory = [shell.json(line) for line in first]
    for ours, theirs in zip(stored, memory, strict=True):
        assert untimed(ours) == untimed(theirs)
    small(0)
    monkeypatch.setattr(Stored, "__getitem__", counted)
    load("run").sample(2)
    shell("likelihood run --limit 4 --set likelihood.rtol=1e-1")
    assert most and max(most) <= 4
    shell.refuses("plot compass run", 3, "stay in their files")
