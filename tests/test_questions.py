"""Questions below the command line: rows, vocabularies, masks and cells are those that were meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import Condition, Dataset, TrainConfig, fit, load
from scoresde.core.errors import DataError, UsageError
from scoresde.core.noise import Noise
from scoresde.data.table import read_sheet
from scoresde.operators import Cells, Half, Hole, Mask, OneOf, Operator, Pool
from scoresde.run.questions import Questions, ask, read_questions, write_filled
from scoresde.run.run import Run
from scoresde.run.seen import covers


def texts(path: Path, words: list[str], seed: int = 0) -> None:
    """Pictures with texts of one to three words, of which the last is given."""
    x = np.random.default_rng(seed).integers(0, 256, (len(words), 1, 8, 8)).astype(np.uint8)
    np.savez(path, x=x, text=np.array([" ".join([*["a", "big"][: i % 3], word]) for i, word in enumerate(words)]))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("told")
    texts(path / "t.npz", ["red", "green", "blue"] * 12)
    config = TrainConfig(
        data=str(path / "t.npz"), cond="text", steps=2, batch=8, network_options={"channels": 4}
    )  # fmt: skip
    fit(config, out=path / "run", quiet=True)
    return load(path / "run")


def tokens(run: Run) -> list[list[int]]:
    assert run.condition is not None and run.condition.tokens is not None
    return [[t for t in row if t >= 0] for row in run.condition.tokens.tolist()]


def test_other_data_are_read_in_the_vocabulary_of_the_run(told: Run, tmp_path: Path) -> None:
    texts(tmp_path / "other.npz", ["blue", "amber", "red", "zinc"] * 10, seed=1)
    data = told.data(tmp_path / "other.npz")
    index = torch.arange(len(data.test))
    with np.load(tmp_path / "other.npz") as stored:
        words = [str(stored["text"][data.origin(len(data.train) + int(i))]) for i in index]
    with pytest.warns(UserWarning, match="did not occur"):
        want = tokens(told.given(text=words))
    assert tokens(told.given_rows(data, index)) == want and any(0 in row for row in want)
    # The same for a data set that the run did not read.
    own = Dataset.of(torch.cat([data.test] * 3), data.test, text=words * 3, test_text=words, split="rows")
    assert own.info.known.words != told.info.known.words
    assert tokens(told.given_rows(own, index)) == want


def test_grown_data_keep_the_vocabulary_of_training(told: Run, tmp_path: Path) -> None:
    texts(tmp_path / "t.npz", ["red", "green"] * 16)
    config = TrainConfig(data=str(tmp_path / "t.npz"), cond="text", steps=2, batch=8, network_options={"channels": 4})
    fit(config, out=tmp_path / "run", quiet=True)
    words = load(tmp_path / "run").info.known.words
    texts(tmp_path / "t.npz", ["red", "green"] * 16 + ["amber", "zinc"] * 4)
    with pytest.warns(UserWarning, match="grown"):
        data = load(tmp_path / "run").data()
    assert data.info.known.words == words and int(data.train_given.tokens.max()) <= len(words)  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="grown"):
        fit(TrainConfig(**{**vars(config), "steps": 4}), out=tmp_path / "run", resume=True, quiet=True)


def test_rows_of_all_data_are_counted_through_both_parts(told: Run) -> None:
    data = told.data()
    n = len(data.train)
    every = tokens(told.given_rows(data, torch.arange(n + len(data.test)), split="all"))
    assert every[:n] == tokens(told.given_rows(data, torch.arange(n), split="train"))
    assert every[n:] == tokens(told.given_rows(data, torch.arange(len(data.test))))
    x, y, known = data.every()
    assert torch.equal(x, torch.cat([data.train, data.test])) and y is None and known.vector is None


def test_parts_with_texts_of_different_lengths_are_joined() -> None:
    x = torch.arange(12.0).reshape(4, 3)
    data = Dataset.of(x[:3], x[3:], text=["a b c", "a", "b c"], test_text=["a"])
    known = data.every()[2].tokens
    assert known is not None and known.tolist()[0] == data.train_given.tokens.tolist()[0]  # type: ignore[union-attr]
    assert known.tolist()[3] == [*data.test_given.tokens[0].tolist(), -1, -1]  # type: ignore[union-attr, index]


def test_typical_conditions_repeat_the_held_out_rows(told: Run) -> None:
    data = told.data()
    m = len(data.test)
    want = tokens(told.given_rows(data, torch.arange(m)))
    assert tokens(told.typical(m + 2)) == [*want, *want[:2]]


HOLE = torch.ones(1, 1, 6, 6, dtype=torch.bool)
HOLE[..., 2:4, 2:4] = False


@pytest.mark.parametrize(
    ("trained", "other", "covered"),
    [
        (Cells(), Hole(), True), (Cells(), Mask(HOLE), True), (Cells(), Pool(2), False), (Hole(2), Mask(HOLE), True),
        (Hole(2), Hole(4), False), (Half(), Half("left"), False), (Half(), Half(), True), (Pool(2), Pool(3), False),
        (OneOf(choices=(Half(), Pool(2))), Pool(2), True), (OneOf(choices=(Half(), Pool(2))), Hole(), False),
        (OneOf(choices=(Half(), Pool(2))), OneOf(choices=(Pool(2), Half())), True),
    ],
)  # fmt: skip
def test_what_a_model_has_seen(trained: Operator, other: Operator, covered: bool) -> None:
    trained, other = (operator.on((1, 6, 6)).drawn(Noise.of(1)) for operator in (trained, other))
    assert covers(trained, other) == covered


def test_a_mask_may_lack_the_axis_of_channels() -> None:
    known = torch.eye(6, dtype=torch.bool)
    x = 1 + torch.arange(216.0).reshape(2, 3, 6, 6)
    assert torch.equal(Mask(known).on((3, 6, 6))(x), Mask(known[None]).on((3, 6, 6))(x))
    assert torch.equal(
        Mask(torch.tensor([True, False])).on((1, 2))(x[:1, :1, 0, :2]), x[:1, :1, 0, :2] * torch.tensor([1, 0])
    )
    with pytest.raises(UsageError, match="the mask has shape"):
        Mask(known).on((5,))


def test_cells_are_read_as_they_were_typed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a;b; c\n 1,50;;x\n-2;NA;y\n")
    sheet = read_sheet(path)
    assert sheet.names == ("a", "b", "c") and sheet.rows[0] == (" 1,50", "", "x") and sheet.commas
    assert sheet.empty(1) == [True, True] and sheet.empty(0) == [False, False]
    found = sheet.numbers([0, 1])
    assert found[:, 0].tolist() == [1.5, -2.0] and np.isnan(found[:, 1]).all()
    with pytest.raises(DataError, match=r"column 'c' has 'x' in line 2.*not a number"):
        sheet.numbers([0, 2])
    path.write_text("1,2\n3,\n")
    bare = read_sheet(path)
    assert bare.names == ("", "") and bare.lines == (1, 2) and not bare.commas


def test_a_filled_table_without_all_answers_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,b\n1,\n,3\n5,6\n")
    questions = Questions(Condition(), ("0", "1", "2"), "a table", table=read_sheet(path), places=(0, 1))
    known = torch.tensor([[True, False], [False, True], [True, True]])
    lines = [("1.0", "7.5"), ("9.25", "3.0"), ("5.0", "6.0")]
    out = tmp_path / "filled.csv"
    write_filled(out, questions, lines, np.arange(3), 1, known, ("a", "b"))
    assert out.read_text() == "question,b\n1,7.5\n9.25,3\n5,6\n"
    write_filled(out, questions, lines[:2], np.array([0, 2]), 1, known, ("a", "b"))
    assert out.read_text() == "question_,answer,question,b\n0,0,1,7.5\n2,0,5,6\n", "an answer failed"


def test_texts_beside_images_are_read(told: Run, tmp_path: Path) -> None:
    from PIL import Image

    for name in "ba":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a  red {name}\n")
    config = TrainConfig(data=told.config.data, cond="text+pool:2", steps=1, batch=8, network_options={"channels": 4})  # type: ignore[union-attr]
    run = fit(config, save=False, quiet=True)
    found = read_questions(run, tmp_path)
    assert found.text == ("a red a", "a red b") and found.names == ("a", "b")
    (tmp_path / "a.txt").unlink()
    assert read_questions(run, tmp_path).text == ()
    with pytest.raises(UsageError, match="lacks tokens"):
        ask(run, read_questions(run, tmp_path))


def test_texts_must_be_one_or_as_many_as_the_questions(told: Run) -> None:
    three = Questions(Condition(), ("0", "1", "2"), "three", text=("red", "green", "blue"))
    assert len(tokens(ask(told, three, each=2))) == 6
    assert tokens(ask(told, three, text=["red"]))[0] == tokens(told.given(text="red"))[0]
    with pytest.raises(UsageError, match="number of texts is 2, but the number of questions is 3"):
        ask(told, three, text=["red", "blue"])


def test_a_row_without_gaps_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1.50,\n5,6\n")
    questions = Questions(Condition(), ("0", "1"), "a table", table=read_sheet(path), places=(0, 1))
    lines = [("1.5", "7"), ("1.5", "8"), ("5.0", "6.0"), ("5.0", "6.0")]
    known = torch.tensor([[True, False], [True, True]])
    out = tmp_path / "filled.csv"
    write_filled(out, questions, lines, np.arange(4), 2, known, ("a", "b"))
    assert out.read_text() == "question,answer,a,b\n0,0,1.50,7\n0,1,1.50,8\n1,0,5,6\n"
    write_filled(out, questions, lines, np.arange(4), 2, torch.ones(2, 2, dtype=torch.bool), ("a", "b"))
    assert out.read_text() == path.read_text(), "a full table comes back as it is"
