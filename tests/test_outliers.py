"""Typing errors in tables: found where they are, and not seen in heavy tails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shell import Shell

from scoresde import Dataset, load_data
from scoresde.core.errors import DataError, Problems
from scoresde.data import Reading, look
from scoresde.data.outliers import far_out
from scoresde.data.table import read_sheet, read_table

KEEP = Reading(empty="keep")


def sensors(path: Path, cells: dict[tuple[int, int], str] = {}, n: int = 400, end: str = "") -> str:  # noqa: B006
    """Write n lines of three columns, with other ``cells`` in given lines (as an editor counts them) and columns."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(20, 4, n), rng.normal(60, 5, n), rng.poisson(4, n)], 1)
    lines = [["temp", "humid", "count"], *([f"{a:.1f}", f"{b:.2f}", f"{c:.0f}"] for a, b, c in x)]
    for (line, column), cell in cells.items():
        lines[line - 1][column] = cell
    path.write_text("".join(",".join(line) + "\n" for line in lines) + end)
    return str(path)


TAILS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(20, 4, n),
    "uniform": lambda rng, n: rng.random(n),
    "student": lambda rng, n: rng.standard_t(2, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 3, n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "counts": lambda rng, n: rng.poisson(0.05, n).astype(float),
    "many zeros": lambda rng, n: np.where(rng.random(n) < 0.9, 0, rng.lognormal(0, 1.5, n)),
    "rare flag": lambda rng, n: (rng.random(n) < 0.002) * 10.0,
    "two modes": lambda rng, n: np.where(rng.random(n) < 0.05, rng.normal(100, 5, n), rng.normal(0, 1, n)),
}


@pytest.mark.parametrize("name", TAILS)
def test_tails_are_no_typing_errors(name: str) -> None:
    rng = np.random.default_rng(0)
    found = [len(far_out(TAILS[name](rng, n))) for n in (200, 1000) for _ in range(100)]
    assert sum(map(bool, found)) <= 3  # 0.1 % of columns with the tail of a power, and fewer of all others


def test_pareto_tails_are_found_at_the_stated_rate() -> None:
    rng = np.random.default_rng(1)
    found = sum(bool(len(far_out(rng.standard_cauchy(1000)))) for _ in range(1000))
    assert 1 <= found <= 25  # two sides, and several m for each: about 1 %


@pytest.mark.parametrize("factor", [10, 1e4])
@pytest.mark.parametrize("name", ["normal", "uniform", "counts"])
def test_a_number_that_is_too_large_is_found(name: str, factor: float) -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(20):
        x = TAILS[name](rng, 1000)
        at = int(np.argmax(np.abs(x) > np.median(np.abs(x))))
        x[at] *= factor
        hits += far_out(x).tolist() == [at]
    assert hits >= 10


def test_marks_of_missing_values_are_found_however_many() -> None:
    x = np.random.default_rng(0).normal(20, 4, 500)
    x[::3] = -999
    assert sorted(far_out(x)) == [*range(0, 500, 3)]
    assert not len(far_out(np.where(x == -999, 999.0, x * 500)))  # among numbers of their size
    assert not len(far_out(np.full(50, 99.0))) and not len(far_out(np.array([1.0, 1e9])))


def test_inspect_names_column_line_and_value_once_per_column(shell: Shell) -> None:
    sensors(Path("t.csv"), {(12, 0): "213000", (14, 0): "999.9", (20, 1): "611", (30, 2): "-999", (31, 2): "-999"})
    shell("data inspect t.csv --cond cells")
    out = shell.out
    assert "column 'temp' in line 12 and 1 more (line 14) are far outside the others (" in out and "213000" in out
    assert "the value 611 of column 'humid' in line 20 is far outside" in out and "check for typing errors" in out
    assert "-999 of column 'count' in line 30 and 1 more" in out and "leave the cells empty" in out
    assert out.count("far outside") == 3 and "warning" not in shell.err
    assert len(shell.json("data inspect t.csv")["notes"]) == 3


def test_train_warns_in_one_line(shell: Shell) -> None:
    sensors(Path("one.csv"), {(12, 0): "213000"})
    shell("train --data one.csv --dry-run")
    told = [line for line in shell.err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "one.csv: the value 213000 of column 'temp' in line 12" in told[0]
    sensors(Path("two.csv"), {(12, 0): "213000", (20, 1): "611"})
    shell("train --data two.csv --dry-run")
    told = [line for line in shell.err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "2 values in 2 columns" in told[0] and "scoresde data inspect two.csv" in told[0]


def test_empty_cells_do_not_hide_an_outlier(tmp_path: Path) -> None:
    holes = {(line, 0): "" for line in range(40, 200)}
    with pytest.warns(UserWarning, match="value 2130 of column 'temp' in line 12"):
        load_data(sensors(tmp_path / "t.csv", {(12, 0): "2130", **holes}), reading=KEEP)


def test_numbers_of_the_condition_are_examined(tmp_path: Path) -> None:
    path = sensors(tmp_path / "t.csv", {(12, 1): "6000"})
    with pytest.warns(UserWarning, match="value 6000 of column 'humid' of the condition in line 12"):
        load_data(path, reading=Reading(columns=("humid",)))


def test_clean_data_are_read_in_silence(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_data(sensors(tmp_path / "t.csv")).unusual == ()


# ----------------------------------------------------------------------------------------------------------- empty rows


def test_rows_without_values_are_left_out_of_training_and_said(tmp_path: Path) -> None:
    path = sensors(tmp_path / "t.csv", {(9, 0): "", (9, 1): "", (9, 2): ""}, end=",,\n,,\n\n \n")
    for reading in (KEEP, Reading()):
        data = load_data(path, reading=reading)
        assert len(data.train) + len(data.test) == 399 and data.complete is None
        assert "3 lines (9, 402, 403) have no values and are left out" in data.describe()
    (tmp_path / "id.csv").write_text(
        "id,a,b\n" + "".join(f"{i},{i % 7 + 0.5},{i % 5 + 0.25}\n" for i in range(60)) + "60,,\n"
    )
    data = load_data(str(tmp_path / "id.csv"), reading=Reading(columns=("id",), empty="keep"))
    assert len(data.train) + len(data.test) == 60
    assert "line 62 has no values and is left out" in data.notes


def test_arrays_without_values_are_left_out_and_the_rest_keep_their_places() -> None:
    x = np.random.default_rng(0).normal(size=(80, 3))
    x[10:20, 1] = np.nan
    x[5] = np.nan
    data = Dataset.of(x)
    assert "1 sample has no values and is left out" in data.notes and data.rows is not None
    assert sorted(data.rows.tolist()) == [i for i in range(80) if i != 5]
    for i, row in enumerate(data.train.tolist()):
        there = ~np.isnan(x[data.rows[i]])
        assert np.array(row)[there] == pytest.approx(x[data.rows[i]][there], rel=1e-6)


def test_a_sheet_keeps_rows_without_values(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,\n,\n,\n\n")
    sheet = read_sheet(path)
    assert sheet.rows == (("1", ""), ("", ""), ("", "")) and sheet.lines == (2, 3, 4)
    path.write_text("a,b\n,\n")
    assert read_sheet(path).rows == (("", ""),)
    with pytest.raises(DataError, match="has column names, but no row below them has a value"):
        read_table(path)


# ------------------------------------------------------------------------------------------------------------- problems


def test_every_problem_of_a_table_is_counted(tmp_path: Path) -> None:
    path = sensors(tmp_path / "t.csv", {(12, 0): "1O", (13, 1): "", (14, 2): "many", (15, 2): ""})
    found = look(path)
    assert len(found.problems) == 3 and found.answers is None
    assert "'1O' in line 12" in found.problems[0].message and "'many' in line 14" in found.problems[1].message
    assert "2 empty cells in 2 columns" in found.problems[2].message
    assert dict(found.problems[2].answers) == {"cond": "cells"}
    kept = look(path, reading=KEEP)
    assert len(kept.problems) == 2, "cells may be empty here"
    with pytest.raises(Problems, match=r"t\.csv: 3 problems\n1\. column 'temp'"):
        load_data(path)
    with pytest.raises(DataError, match=r"there is no value in column 'humid' \(leave out the column\)"):
        load_data(sensors(tmp_path / "e.csv", {(i, 1): "" for i in range(2, 402)}), reading=KEEP)
    with pytest.raises(DataError, match=r"line 5 has 4 cells.*12,5, counts as two cells"):
        load_data(sensors(tmp_path / "c.csv", {(5, 0): "12,5"}))


def test_a_word_among_targets_is_no_class(tmp_path: Path) -> None:
    path, rng = tmp_path / "t.csv", np.random.default_rng(0)
    rows = [f"{a:.2f},{b:.3f}" for a, b in rng.normal(size=(60, 2))]
    path.write_text("x1,target\n" + "\n".join([*rows, "0.1,1O", ""]))
    with pytest.raises(DataError, match="column 'target' has '1O' in line 62, which is not a number"):
        read_table(path)
    rows = [f"{a:.2f},{i % 3}" for i, a in enumerate(rng.normal(size=90))]
    path.write_text("x1,label\n" + "\n".join([*rows, "0.1,O", ""]))
    assert "classes of a single line, which may be typing errors: 'O' (line 92)" in read_table(path).notes[-1]
