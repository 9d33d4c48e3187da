"""Tables: every number as it was written, and nothing guessed at."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from scoresde import load_data
from scoresde.core.errors import DataError
from scoresde.data.raw import Raw
from scoresde.data.readers import read_path
from scoresde.data.table import read_table


def table(folder: Path, text: str | bytes, name: str = "table.csv", keep: tuple[str, ...] = ()) -> Raw:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, keep=keep)


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2.5\n-3,4e2\n",
        "a;b\r\n1;2.5\r\n-3;4e2\r\n\r\n",
        "\ufeffa\tb\n1\t2.5\n-3\t4e2",
        '"a","b"\n"1"," 2.5"\n"-3","4e2"\n',
        "# a,b\n1,2.5\n\n-3,4e2\n,\n",
        "a,b,\n1,2.5,\n-3,4e2,\n",
        "a;b\n1;2,5\n-3;4e2\n",
        "a\rb\r".replace("\r", ",", 1) + "1,2.5\r-3,4e2\r",
        ",a,b\n0,1,2.5\n1,-3,4e2\n2,0,0\n",
    ],
    ids=["commas", "semicolons", "tabs", "quotes", "savetxt", "last comma", "decimal comma", "old lines", "index"],
)
def test_numbers_are_read_as_they_are_written(tmp_path: Path, text: str) -> None:
    for content in (text.encode(), gzip.compress(text.encode())):
        found = table(tmp_path, content)
        assert found.kind == "vector" and found.names == ("a", "b") and found.whole == (True, False)
        assert found.train.dtype == np.float64 and found.train[:2].tolist() == [[1, 2.5], [-3, 400]]
        assert found.train_labels is None and found.files == (tmp_path / "table.csv",)


def test_a_table_without_names(tmp_path: Path) -> None:
    found = table(tmp_path, "5.1,3\n4.9,2\n")
    assert found.names == () and found.whole == (False, True) and found.train.tolist() == [[5.1, 3], [4.9, 2]]
    assert table(tmp_path, "1,5;2,5\n3,5;4,5\n").train.tolist() == [[1.5, 2.5], [3.5, 4.5]], "two columns, not three"
    # A number that is missing, or a class, is no name.
    with pytest.raises(DataError, match="1 empty cell, the first in line 1, column 2"):
        table(tmp_path, "5.1,?\n4.9,2\n")
    told = r"column 2 has 'setosa' in line 1 \(2 such cells\), which is not a number.*name it label"
    with pytest.raises(DataError, match=told):
        table(tmp_path, "5.1,setosa\n4.9,virginica\n")
    named = table(tmp_path, "name,2019\n1,2\n3,4\n")
    assert named.names == ("name", "2019") and "although 1 of its cells is a number" in named.notes[0]


def test_numbers_are_kept_exactly(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)) * [1e-9, 1, 1e12]
    found = table(tmp_path, "a,b,c\n" + "\n".join(",".join(map(repr, row)) for row in x.tolist()))
    assert (found.train == x).all()
    big = table(tmp_path, f"a,b\n{2**53 + 1},1\n{-(2**62)},2\n")
    assert big.train.dtype == np.int64 and big.train[:, 0].tolist() == [2**53 + 1, -(2**62)]
    for text in (f"a,b\n{2**53 + 1},1.5\n1,2\n", f"a,b\n{2**64},1\n1,2\n", f"a,b\n{'1' * 5000},1\n1,2\n"):
        told = r"column 'a' has '\d+(\.\.\.)?' in line 2, which has more digits than can be stored"
        with pytest.raises(DataError, match=told):
            table(tmp_path, text)


@pytest.mark.parametrize("name", ["y", "Label", "labels", "CLASS", "target"])
def test_the_column_of_classes(tmp_path: Path, name: str) -> None:
    found = table(tmp_path, f"a,{name},b\n1,v,2\n3,s,4\n5,v,6\n")
    assert found.names == ("a", "b") and found.train.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert found.classes == ("s", "v") and found.train_labels.tolist() == [1, 0, 1]
    assert found.notes == (f"column {name!r} holds the class of each line",)
    whole = table(tmp_path, f"a,{name}\n1,10\n3,2\n5,10.0\n7,2\n")
    assert whole.classes == ("2", "10") and whole.train_labels.tolist() == [1, 0, 1, 0] and whole.names == ("a",)
    kept = table(tmp_path, f"a,{name}\n1,10\n3,2\n5,10\n7,2\n", keep=(name,))
    assert kept.train_labels is None and kept.names == ("a", name)


def test_a_target_is_one_more_column(tmp_path: Path) -> None:
    for text, reason in (
        ("a,y\n1,0.5\n2,1\n", "numbers that are not integers"),
        ("x,y\n1,1\n3,0\n5,1\n7,0\n", "may be a coordinate (there is a column x)"),
        ("a,y\n" + "".join(f"{3 * i % 7},{i}\n" for i in range(10)), "has 10 distinct values in 10 lines"),
        ("a,y\n" + "".join(f"0.5,{i % 101}\n" for i in range(400)), "has 101 distinct values in 400 lines"),
    ):
        found = table(tmp_path, text)
        assert found.train_labels is None and found.train.shape[1] == 2
        assert any(reason in note and "'y'" in note for note in found.notes)


def test_classes_that_cannot_be(tmp_path: Path) -> None:
    for text, words in (
        ("label,class,a\ns,1,1\nv,0,2\ns,1,3\nv,0,4\n", "which of column 'label' and column 'class' holds the classes"),
        ("a,label\n1,Ann\n2,Bob\n", "a different value in each of 2 lines, such as 'Ann'"),
        ("label\ns\ns\nv\n", "but there are no columns of numbers"),
        ("a,label\n1,s\n2,\n3,s\n", "1 empty cell, the first in line 3, column 'label'"),
    ):
        with pytest.raises(DataError, match=words):
            table(tmp_path, text)
    assert table(tmp_path, "a,label\n1,none\n2,crack\n3,none\n").classes == ("crack", "none")


@pytest.mark.parametrize("mark", ["", "NA", "NaN", "null", "?", "-", " n/a "])
def test_an_empty_cell_is_refused_with_its_line_and_column(tmp_path: Path, mark: str) -> None:
    with pytest.raises(DataError) as error:
        table(tmp_path, f'age,height,"in\nche s"\n1,2,3\n"4",{mark},6\n7,8,\n')
    assert "2 empty cells in 2 columns (column 'height', column 'in che s')" in str(error.value)
    assert "the first in line 4, column 'height'" in str(error.value) and "write numbers" in str(error.value)
    with pytest.raises(DataError, match="1 empty cell, the first in line 3, column 'x'"):
        table(tmp_path, "x\n1\n\n2\n")


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ('"1,234"', "thousands"), ("1_000", "thousands"), ("12 %", "percentage"), ("2020-01-31", "date"),
        ("31/01/2020", "date"), ("12:30", "time"), ("inf", "infinite"), ("1e999", "beyond the range"),
        ('"1,5"', "decimal comma"), ("true", "write 1 or 0"), ("$12", "currency"), ("setosa", "name it label"),
        ("0x10", "not a number"), ("١٢", "not a number"), ("1.2.3", "not a number"), ("--1", "not a number"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_a_way_out(tmp_path: Path, cell: str, hint: str) -> None:
    shown = cell.strip('"')
    with pytest.raises(DataError) as error:
        table(tmp_path, f"a,b,c\n1,2,3\n4,{cell},{cell}\n7,{cell},9\n")
    message = str(error.value)
    assert f"column 'b' has {shown!r} in line 3 (2 such cells)" in message and hint in message
    assert f"column 'c' has {shown!r} in line 3" in message, "every column at once"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (',,\n"",\n', "is empty"),
        ("a,b\n", "no rows below"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cell, but the first line has 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells"),
        ("a,b,a\n1,2,3\n", r"several columns have the same name \('a'\)"),
        ("a,,b\n1,2,3\n", "column 2 has no name"),
        (",a\n5,1\n7,2\n", "column 1 has no name"),
        ('a,b\n1,"2\n', "line 2 is not valid CSV"),
        ("a b\n1 2\n", "separated by spaces"),
        ("a,b\n1,é\n".encode("latin-1"), "byte 0xe9 in line 2 is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"a,b\n1,\0\n", "NUL bytes"),
        (b"\x1f\x8b\x08damaged", "gzip"),
        ("a;b\n1,500;2\n2,250;3\n", r"'1,500' in line 2 could mean 1500 or 1\.500"),
        ("a;b\n1,5;2\n2.5;3\n", r"'1,5' in line 2 has a decimal comma, but '2\.5' in line 3 has a decimal point"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        table(tmp_path, text)
    assert "table.csv" in str(error.value)


def test_what_is_decided_is_said(tmp_path: Path) -> None:
    assert "numbers the lines, so it is left out" in table(tmp_path, "Unnamed: 0,a\n1,5\n2,5\n3,6\n").notes[0]
    named = table(tmp_path, "id,a\n1,5\n2,5\n3,6\n")
    assert named.names == ("id", "a") and "column 'id' numbers the lines" in named.notes[0]
    assert "column 1 numbers the lines" in table(tmp_path, "0,5\n1,5\n2,6\n").notes[0]
    assert "numbers with a decimal comma: 3 (such as 1,5)" in table(tmp_path, "a;b\n1,5;2\n2,5;3,25\n").notes[0]
    assert table(tmp_path, "a,b\n1,2\n5,3\n").notes == ()


def test_tables_are_data(tmp_path: Path) -> None:
    rows = "".join(f"{i * i % 97},{i % 3 + 0.5}\n" for i in range(60))
    for name in ("wine.CSV", "wine.tsv", "wine.csv.gz"):
        text = f"a,b\n{rows}".replace(",", "\t" if name.endswith("tsv") else ",").encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        data = load_data(str(tmp_path / name))
        assert data.info.name == "wine" and data.info.shape == (2,)
        assert len(data.train) + len(data.test) == 60
    with pytest.raises(DataError, match=r"pass the file itself: .*wine\.CSV \(one of 3 such files\)"):
        read_path(tmp_path)
    for name, told in (("a.xlsx", "spreadsheet"), ("a.feather", "another format"), ("a.rar", "archive")):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(DataError, match=f"{told}.*CSV or TSV"):
            read_path(tmp_path / name)


def test_whole_numbers_with_a_decimal_point_are_said(tmp_path: Path) -> None:
    found = table(tmp_path, "age,n,h\n52.0,1,1.5\n33.0,2,1.7\n41.0,5,2.0\n")
    assert found.whole == (False, True, False)
    assert [n for n in found.notes if "decimal point" in n and "column 'age';" in n] and "'h'" not in found.notes[-1]
