"""A look at data: all problems, or what the data are, as training would find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoresde import TrainConfig
from scoresde.core.errors import Problem, Problems, UsageError
from scoresde.data import Look, Reading, look


def folder(root: Path, sides: tuple[int, ...] = (6,), n: int = 20) -> str:
    for name in "ab":
        for i in range(n):
            side = sides[i % len(sides)]
            x = np.random.default_rng([i, ord(name)]).integers(0, 256, (side, side, 3), dtype=np.uint8)
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(root / name / f"{i}.png")
    return str(root)


def test_a_look_finds_what_training_reads(tmp_path: Path) -> None:
    path = folder(tmp_path)
    found, trained = look(path), TrainConfig(data=path).load_data()
    assert found.dataset is not None and found.dataset.info == trained.info
    assert not found.problems and found.answers == {}
    assert found.classes.keys() == {"a", "b"} and [sum(found.classes[name]) for name in "ab"] == [20, 20]
    parts = [sum(part) for part in zip(*found.classes.values(), strict=True)]
    assert parts == [trained.info.n_train, trained.info.n_test]
    facts = found.facts()
    assert facts["shape"] == [3, 6, 6] and facts["levels"] == 256 and found.notes == trained.notes


def test_the_answers_of_all_problems_together_are_enough(tmp_path: Path) -> None:
    path = folder(tmp_path, (6, 9))
    (tmp_path / "a" / "bad.jpg").write_bytes(b"")
    (tmp_path / "a" / "x.gif").write_bytes(b"")
    Image.new("RGB", (8, 5), 9).save(tmp_path / "a" / "wide.png")
    found = look(path)
    assert len(found.problems) == 2 and found.notes == ("other files are left out: 1 .gif (a/x.gif)",)
    assert found.dataset is None and found.facts() == {} == found.classes
    assert found.answers == {"on_bad": "skip", "size": 8, "fit": "crop"}
    again = look(path, reading=Reading(**found.answers))  # type: ignore[arg-type]
    assert not again.problems and again.dataset is not None and again.dataset.info.shape == (3, 8, 8)
    with pytest.raises(Problems) as error:
        TrainConfig(data=path).load_data()
    assert error.value.problems == found.problems


def test_what_no_parameter_answers_leaves_no_answer() -> None:
    assert Look((Problem("a", {"size": 8}), Problem("b")), None).answers is None


def test_other_data_have_one_problem_at_most(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((9, 3), np.nan))
    (problem,) = look(str(tmp_path / "x.npy")).problems
    assert "27 NaN or infinite values" in problem.message
    (problem,) = look(str(tmp_path / "nothing")).problems
    assert "no data set, file or folder" in problem.message and not problem.answers
    np.save(tmp_path / "y.npy", np.zeros((40, 8, 4, 3)) + np.arange(40)[:, None, None, None])
    found = look(str(tmp_path / "y.npy"))
    assert [p.answers for p in found.problems] in ([], [{"layout": "first"}])
    assert look("moons").problems == () and look("moons").classes == {}


def test_a_usage_that_cannot_be_is_no_problem_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="but size is not set"):
        look(folder(tmp_path), reading=Reading(fit="crop"))
    with pytest.raises(UsageError, match="test_fraction is 2; it must be a number > 0 and < 1"):
        look("moons", test_fraction=2)


def test_one_problem_is_a_sentence_and_several_are_a_list() -> None:
    one, two = Problem("a is b"), Problem("c is d", {"size": 3})
    assert str(Problems("x", [one])) == "x: a is b"
    assert str(Problems("x", [one, two])) == "x: 2 problems\n1. a is b\n2. c is d (size=3)"
    assert Problems("x", [one, two]).listed(["e", "f"]) == "x: 2 problems\n1. e\n2. f"
