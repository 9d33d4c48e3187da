"""Rows by content: the split against its own formula, and what has become of data against the truth."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.core.errors import DataError, UsageError
from scoresde.data import Dataset, load_data
from scoresde.data.content import MOST, Identity, _more, contents, ends, held_out, known_again


def rows(part: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in part.flatten(1).tolist()}


def table(n: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3))


def test_equal_values_are_equal_rows_whatever_their_type() -> None:
    x = np.array([[0.0, 1.0], [2.0, 3.0], [0.5, -1.0]])
    for other in (x.astype(">f8"), x.astype("f4"), np.asfortranarray(x), np.array([[-0.0, 1.0], [2, 3], [0.5, -1]])):
        assert contents(other) == contents(x)
    assert contents(x[:2].astype(int)) == contents(x[:2]) and contents(x[:2].astype("u1")) == contents(x[:2])
    one, other = np.array([[np.nan]]), np.frombuffer(b"\x01\x00\x00\x00\x00\x00\xf8\xff", "<f8")[None]
    assert contents(one) == contents(other) != contents(np.array([[0.0]]))
    assert len({*contents(x), *contents(x, ["a", "b", "c"]), *contents(x, ["b", "a", "c"])}) == 8  # c is the same twice


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_share_held_out_and_the_validation_share(seed: int) -> None:
    found = held_out(contents(table(20_000)), seed, 0.2)
    train, validates, test = found
    assert abs(len(test) - 4_000) < 4 * np.sqrt(20_000 * 0.2 * 0.8)
    assert abs(len(validates) - 800) < 4 * np.sqrt(16_000 * 0.05)
    assert sorted([*train, *test]) == list(range(20_000)) and validates.max() < len(train)


def test_validation_is_bounded_and_empty_data_have_none() -> None:
    assert len(held_out([i.to_bytes(16, "little") for i in range(60_000)], 0, 0.1)[1]) == MOST
    assert [len(part) for part in held_out([], 0, 0.1)] == [0, 0, 0]


def test_no_row_crosses_the_split_when_data_grow_or_are_sorted() -> None:
    x = table()
    before = Dataset.of(x)
    more = np.concatenate([table(50, seed=1), x[np.lexsort(x.T)]])
    after = Dataset.of(more)
    assert not rows(before.train) & rows(after.test) and not rows(before.test) & rows(after.train)
    assert not rows(Dataset.of(x, seed=1).test) <= rows(before.test)  # another seed, another split


def test_a_few_rows_many_times_have_a_test_part() -> None:
    x = np.repeat(table(6), 20, axis=0)
    data = Dataset.of(x)
    assert 2 <= len(data.test) <= 30 and data.known_again == len(data.test)
    assert f"test samples that equal a training sample: {len(data.test)}" in data.describe()
    assert not Dataset.of(table()).known_again


def test_equal_rows_are_told_apart_by_their_label() -> None:
    x = np.zeros((200, 1)) + np.arange(200)[:, None] % 2
    one, other = (Dataset.of(x, classes=np.arange(200) % k) for k in (2, 4))
    assert one.identity is not None and other.identity is not None
    assert one.identity.compared(other.identity)[0] == "other"
    assert known_again(contents(x[:2], ["a", "b"]), contents(x[:2], ["b", "a"])) == 0


def test_copies_of_a_file_share_a_side() -> None:
    files = [bytes([i % 40]) * 8 for i in range(400)]
    train, _, test = held_out(files, 0, 0.3, copies_apart=False)
    assert len(test) and not {files[i] for i in train} & {files[i] for i in test}


def test_an_empty_test_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 test samples") as caught:
        Dataset.of(table(8), test_fraction=1e-9)
    assert caught.value.parameter == "test_fraction"


def test_what_has_become_of_data() -> None:
    x = contents(np.repeat(table(30), 2, axis=0))
    same = Identity.of(x)
    assert same.compared(Identity.of(list(x))) == ("same", 0, 0)
    assert same.compared(Identity.of(x[::-1])) == ("re-sorted", 0, 0)
    assert same.compared(Identity.of([*x, x[0]])) == ("grown", 1, 0)
    assert same.compared(Identity.of(x[3:])) == ("shrunk", 0, 3)
    assert same.compared(Identity.of([*x[3:], b"0" * 16])) == ("other", 1, 3)
    assert same.compared(Identity.of(x, own_test=1))[0] == "other"  # the same row on another side
    assert replace(same, large=True).compared(same)[0] == "other"  # the data of a run that hashed large files


def test_earlier_runs_know_large_files_by_size_and_ends(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"x" * 200_000)
    other.write_bytes(b"x" * 200_000)
    rows, whole = Identity.of(contents(table(5))), ends([path])
    known = Identity(np.array([whole], np.uint64), whole, large=True)
    assert known.compared(replace(rows, files=ends([other])))[0] == "same"  # whatever its name
    assert known.joined(replace(rows, files=ends([other]))) is known
    for change in (b"y" + b"x" * 199_999, b"x" * 199_999 + b"y", b"x" * 200_001):
        other.write_bytes(change)
        assert known.compared(replace(rows, files=ends([other])))[0] == "other"


def test_copies_are_counted() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        these, those = (np.sort(rng.integers(0, 6, rng.integers(0, 9))).astype(np.uint64) for _ in range(2))
        assert _more(these, those) == (Counter(these.tolist()) - Counter(those.tolist())).total()


def test_toys_and_digits_keep_their_permutation() -> None:
    digits = load_data("digits")
    assert (digits.info.n_train, digits.info.n_test, digits.identity) == (1617, 180, None)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    everything = load_data("digits", split="rows")
    assert torch.equal(digits.test, everything.test) and len(order[:180]) == len(digits.test)


def test_rows_of_two_states_are_each_counted_once() -> None:
    x = contents(table(20))
    one = Identity.of([*x[:10], x[0]])
    assert one.joined(Identity.of(x[:5])) is one and one.joined(grown := Identity.of([*x, x[0]])) is grown
    both = one.joined(Identity.of(x[5:]))
    assert both.compared(Identity.of([*x, x[0]])) == ("re-sorted", 0, 0)


def test_classes_are_not_taken_for_held_out_samples() -> None:
    with pytest.raises(UsageError, match="pass the labels as the argument classes"):
        Dataset.of(table(30), np.arange(30) % 2)


@pytest.mark.parametrize("classes", [(), ("a", "b")])
def test_rows_without_values_are_forgotten(classes):
    # Earlier versions counted them as samples, in the training part and in a test part of the source.
    x = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    names = ["a", "b", "a", "a"] if classes else None
    rows = contents(x, names)
    before = Identity.of(rows, own_test=1)
    kept = [rows[0], rows[2]]
    assert before.compared(Identity.of(kept))[0] == "shrunk"
    after = before.without_empty((2,), classes)
    assert after.compared(Identity.of(kept)) == ("re-sorted", 0, 0)
    assert after.without_empty((2,), classes) is after
