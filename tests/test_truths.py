"""Evaluating a run on a file of the user's: which rows are used, and which columns of a table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import Shell

from scoresde import Dataset, TrainConfig, fit, load, load_data
from scoresde.core.errors import DataError, UsageError
from scoresde.run.config import TrainConfig as Config
from scoresde.run.files import read_config
from scoresde.run.truths import read_truths

SMALL = {"steps": 2, "batch": 8, "network_options": {"width": 8, "blocks": 1}}
SHORT = "--n 96 --each 2 --steps 2 --out out --metrics psnr"


def rows(n: int, seed: int) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, 4))
    return z[:, :1] * [3, 5, 1] + z[:, 1:] + [20, 50, 5]


def write(path: str | Path, x: np.ndarray, names: str = "temp,hum,wind", times: bool = False, every: int = 0) -> None:
    """Write a table, with a column of times in front, and with an empty cell in every so manieth line."""
    lines = [f"time,{names}" if times else names]
    for i, row in enumerate(x):
        cells = [f"{v:.3f}" for v in row]
        if every and i % every == 0:
            cells[i % 3] = ""
        lines.append(",".join([f"2024-01-{i % 28 + 1:02d} 00:00"] * times + cells))
    Path(path).write_text("\n".join(filter(None, lines)) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables, and runs that were trained on one of them and on digits."""
    root = tmp_path_factory.mktemp("truths")
    write(root / "train.csv", rows(120, 0))
    write(root / "own.csv", rows(40, 1), times=True)
    digits = load_data("digits")
    np.savez(root / "pictures.npz", x=digits.train[:150].numpy(), y=digits.train_labels[:150].numpy() % 2)
    for name, options in {
        "cells": {"data": str(root / "train.csv"), "cond": "cells"},
        "plain": {"data": str(root / "train.csv")},
        "wind": {"data": str(root / "train.csv"), "cond": "vector:wind"},
        "pool": {"data": str(root / "pictures.npz"), "cond": "class+pool:2", "network_options": {"channels": 4}},
    }.items():
        fit(TrainConfig(**{**SMALL, **options}), out=root / "runs" / name, quiet=True)
    return root


@pytest.fixture
def here(trained: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a copy of the folder."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def read(name: str, data: str, told: Callable[[str], None] = lambda text: None) -> tuple[Dataset, bool]:
    run = load(f"runs/{name}")
    assert run.folder is not None
    config = Config.from_dict(read_config(run.folder))
    return read_truths(run.folder, config, run.info, run.codec, data, told=told)


def test_all_rows_of_a_file_are_asked_about_by_the_names_of_its_columns(here: Path) -> None:
    told: list[str] = []
    data, whole = read("cells", "own.csv", told.append)
    own = load("runs/cells").data()
    expected = torch.tensor(rows(40, 1).round(3), dtype=torch.float32)
    assert whole and told == ["not part of the data of the model, and left out: column 'time'"]
    torch.testing.assert_close(data.test, expected)
    assert torch.equal(data.train, own.train) and torch.equal(data.trains, own.trains)
    assert (data.info.name, data.info.source, data.info.n_test) == ("own", "own.csv", 40)
    write("turned.csv", rows(40, 1)[:, [2, 0, 1]], "wind,temp,hum")
    write("bare.csv", rows(40, 1), "")
    for other in ("turned.csv", "bare.csv"):
        torch.testing.assert_close(read("cells", other)[0].test, expected)
    write("one.csv", rows(40, 1)[:1], times=True)  # neither a part to hold out nor a deviation
    torch.testing.assert_close(read("cells", "one.csv")[0].test, expected[:1])


def test_numbers_of_the_condition_are_found_by_name_too(here: Path) -> None:
    write("turned.csv", rows(40, 1)[:, [2, 0, 1]], "wind,temp,hum", times=True)
    data, whole = read("wind", "turned.csv")
    expected = torch.tensor(rows(40, 1).round(3))
    torch.testing.assert_close(data.test.double(), expected[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(data.test_given.vector, expected[:, 2:])
    assert whole


def test_rows_whose_truth_is_unknown_are_left_out(here: Path) -> None:
    told: list[str] = []
    write("gaps.csv", rows(40, 1), every=4)
    assert len(read("cells", "gaps.csv", told.append)[0].test) == 30
    assert told == ["rows of gaps.csv with empty cells, which are left out because the truth is unknown: 10 of 40"]
    write("gaps.csv", rows(40, 1), every=1)
    with pytest.raises(DataError, match=r"every one of the 40 rows has empty cells"):
        read("cells", "gaps.csv")
    write("lacks.csv", rows(40, 1)[:, :2], "temp,hum")
    with pytest.raises(DataError, match=r"lacks.csv lacks the column wind; add it, or rename columns"):
        read("cells", "lacks.csv")
    write("four.csv", np.c_[rows(9, 1), rows(9, 1)[:, 0]], "")
    with pytest.raises(DataError, match=r"lacks the columns temp, hum, wind, and the 4 columns .* have no names"):
        read("cells", "four.csv")


def test_the_data_of_the_run_stay_divided_wherever_they_are(here: Path) -> None:
    held_out = load("runs/cells").data().test
    shutil.copy("train.csv", "copy.csv")
    lines = Path("train.csv").read_text().splitlines()
    Path("most.csv").write_text("\n".join([lines[0], *reversed(lines[20:])]) + "\n")
    for name in (str(here / "train.csv"), "copy.csv"):
        data, whole = read("cells", name)
        assert not whole and torch.equal(data.test, held_out)
    with pytest.warns(UserWarning, match="these data lack 19 of the rows"):
        data, whole = read("cells", "most.csv")
    theirs = {tuple(row) for row in held_out.tolist()}
    assert not whole and 0 < len(data.test) < 20 and {tuple(row) for row in data.test.tolist()} <= theirs
    Path("few.csv").write_text("\n".join(lines[:30]) + "\n")
    with pytest.warns(UserWarning, match=r"cells was trained on \d\d of the 29 rows of few.csv"):
        data, whole = read("cells", "few.csv")
    assert whole and len(data.test) == 29


def test_data_with_parts_of_their_own_keep_them(here: Path) -> None:
    np.savez("parts.npz", x_train=rows(30, 2), x_test=rows(7, 3))
    data, whole = read("plain", "parts.npz")
    assert not whole and len(data.train) == 30 and len(data.test) == 7
    assert not read("pool", "digits")[1]


def test_without_the_data_of_the_run_there_are_no_training_rows(here: Path, shell: Shell) -> None:
    write("mine.csv", rows(60, 4))
    fit(TrainConfig(data="mine.csv", cond="cells", **SMALL), out=Path("runs/gone"), quiet=True)
    Path("mine.csv").unlink()
    with pytest.warns(UserWarning, match="nothing is compared with its training rows: the data of runs/gone are"):
        data, whole = read("gone", "own.csv")
    assert whole and len(data.train) == 0 and len(data.test) == 40
    facts = shell.json(f"evaluate runs/gone --data own.csv --given test {SHORT},frechet,copies")
    assert facts["copies"] is None and facts["metrics"]["frechet"]["real"] is None
    assert facts["answers"]["training_rows"] == facts["answers"]["baselines"] == {}


def test_classes_and_levels(here: Path) -> None:
    digits = load_data("digits")
    x, y = digits.test[:6].numpy(), np.array([1, 1, 0, 1, 0, 0])
    np.savez("asks.npz", x=x, y=y)
    data, whole = read("pool", "asks.npz")
    assert whole and data.test_labels is not None and data.test_labels.tolist() == y.tolist()
    np.savez("asks.npz", x=x, y=y + 7)
    with pytest.raises(UsageError, match="classes that the run was not trained on: 7, 8"):
        read("pool", "asks.npz")
    np.savez("asks.npz", x=x + 0.5, y=y)
    with pytest.raises(DataError, match=r"values from 0.5 to 16.5, but the run was trained on 256 levels from"):
        read("pool", "asks.npz")
    np.savez("asks.npz", x=x[:, :, :4, :4], y=y)
    with pytest.raises(DataError, match=r"has shape \(1, 4, 4\), but the run was trained on data with shape"):
        read("pool", "asks.npz")


# ------------------------------------------------------------------------------------------------------- command line


def test_evaluate_asks_about_every_row_of_a_file(here: Path, shell: Shell) -> None:
    write("turned.csv", rows(40, 1)[:, [2, 0, 1]], "wind,temp,hum")
    line = f"evaluate runs/cells --given test {SHORT}"
    found = [shell.json(f"{line} --data {name}") for name in ("own.csv", "turned.csv")]
    assert "drawing 2 answers for each of 40 rows of turned (all rows)" in shell.err
    assert found[0]["answers"] == found[1]["answers"] and found[0]["answers"]["questions"] == 40
    assert set(found[0]["answers"]["baselines"]) == {"column means", "linear regression"}
    facts = shell.json("evaluate runs/cells --data own.csv --n 96 --steps 2 --metrics frechet,copies --out out")
    assert facts["reference"] == {"data": "own", "split": "test", "n": 40} and facts["n_real"] == 96
    write("other.csv", rows(1, 1))
    shell(f"evaluate runs/cells --data other.csv --given test {SHORT} --seed 1")
    assert "2 answers for 1 row of other" in shell.err and "2 answers to 1 question;" in shell.out


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--given train", 2, ("--given train: own.csv is not divided", "write --given test")),
        ("--part train --metrics frechet", 2, ("--part train: own.csv is not divided", "omit --part")),
    ],
)
def test_evaluate_refuses_parts_that_there_are_not(
    here: Path, shell: Shell, line: str, code: int, words: tuple[str, ...]
) -> None:
    shell.refuses(f"evaluate runs/cells --data own.csv --n 40 --steps 2 {line}", code, *words)


def test_a_mask_that_hides_nothing_leaves_nothing_to_compare(here: Path, shell: Shell) -> None:
    write("one.csv", rows(1, 1))
    run, (data, _) = load("runs/cells"), read("cells", "one.csv")
    hidden = [int(run.given_rows(data, torch.tensor([0]), seed=seed).seen.hidden.sum()) for seed in range(20)]
    line = f"evaluate runs/cells --data one.csv --given test {SHORT} --seed {hidden.index(0)}"
    shell.refuses(line, 2, "no value is hidden in 1 question", "ask about more rows")


def test_other_verbs_read_the_same_columns_and_say_when_rows_are_too_few(here: Path, shell: Shell) -> None:
    write("turned.csv", rows(40, 1)[:, [2, 0, 1]], "wind,temp,hum")
    both = [shell.json(f"likelihood runs/plain --data {name} --save csv") for name in ("own.csv", "turned.csv")]
    assert both[0]["sets"][0]["mean"] == both[1]["sets"][0]["mean"]
    write("few.csv", rows(2, 1))
    message = shell.refuses("likelihood runs/plain --data few.csv", 3, "few.csv yields", "as in training, so add rows")
    assert "scoresde train" not in message and "test_fraction" not in message


def test_limit_says_what_it_limits(shell: Shell) -> None:
    text = " ".join(shell("evaluate --help-all").split())
    assert "at most this many rows of the data, drawn at random (0: with all rows). With --given, also the" in text
