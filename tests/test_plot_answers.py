"""Sheets of answers: every pixel, line and point is where it belongs, and shows what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scoresde.core.errors import UsageError
from scoresde.plot import answers_figure
from scoresde.plot.answers import HEAT, TINT


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sheet(figure: Figure) -> tuple[np.ndarray, dict[str, int]]:
    """The sheet of pixels, and the first pixel of each named column."""
    (ax,) = figure.axes
    pixels = np.asarray(ax.images[0].get_array())
    side = 4
    names = [label.get_text() for label in ax.get_xticklabels()]
    return pixels, {name: round(x + 0.5 - side / 2) for name, x in zip(names, ax.get_xticks(), strict=True)}


def block(pixels: np.ndarray, row: int, left: int) -> np.ndarray:
    return pixels[1 + 5 * row : 5 + 5 * row, left : left + 4]


def test_each_picture_is_in_its_row_and_column(rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (2, 3, 1, 4, 4)).astype(float)
    low, truth = rng.integers(0, 256, (2, 1, 2, 2)).astype(float), rng.integers(0, 256, (2, 1, 4, 4)).astype(float)
    figure = answers_figure(
        torch.from_numpy(x), "image", 0, 255, given=low, truth=truth, labels=["cat", "a$b"], title="pooled by 2"
    )
    pixels, columns = sheet(figure)
    assert list(columns) == ["given", "answer 0", "answer 1", "answer 2", "mean", "deviation", "truth"]
    for r in range(2):
        for k in range(3):
            assert (block(pixels, r, columns[f"answer {k}"]) == x[r, k, 0, :, :, None]).all()
        assert (block(pixels, r, columns["given"]) == low[r, 0].repeat(2, 0).repeat(2, 1)[..., None]).all()
        assert (block(pixels, r, columns["truth"]) == truth[r, 0, :, :, None]).all()
        assert (block(pixels, r, columns["mean"]) == np.rint(x[r].mean(0))[0, :, :, None]).all()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", r"a\$b"]
    assert figure.get_suptitle() == "pooled by 2" and "of 3 answers" in figure.get_supxlabel()


def test_the_deviation_is_that_of_all_answers_on_one_scale(rng: np.random.Generator) -> None:
    from matplotlib import colormaps

    x = rng.normal(size=(2, 11, 1, 4, 4))
    x[1] *= 3
    figure = answers_figure(x, "image", -9, 9)
    pixels, columns = sheet(figure)
    assert [name for name in columns if name.startswith("answer")][-1] == "answer 7", "eight of eleven are shown"
    deviation = x.std(1, ddof=1)[:, 0]
    drawn = np.rint(255 * colormaps[HEAT](deviation / deviation.max())[..., :3])
    for r in range(2):
        assert (block(pixels, r, columns["deviation"]) == drawn[r]).all()
        assert (block(pixels, r, columns["mean"])[..., 0] == np.rint(255 * (x[r].mean(0)[0] + 9) / 18)).all()
    assert f"{deviation.max():.3g}" in figure.get_supxlabel()


def test_what_is_not_known_is_tinted_and_a_missing_answer_is_left_out(rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (1, 3, 3, 4, 4)).astype(float)
    given = x[:, 0].copy()
    given[..., :2] = np.nan
    x[0, 1, 2, 3, 3] = np.nan
    pixels, columns = sheet(answers_figure(x, "image", 0, 255, given=given))
    left = block(pixels, 0, columns["given"])
    assert (left[:, :2] == TINT).all() and (left[:, 2:] == given[0, :, :, 2:].transpose(1, 2, 0)).all()
    assert (block(pixels, 0, columns["answer 1"]) == TINT).all()
    assert (block(pixels, 0, columns["mean"]) == np.rint(x[0, [0, 2]].mean(0)).transpose(1, 2, 0)).all()


def test_one_answer_has_neither_mean_nor_deviation() -> None:
    figure = answers_figure(np.zeros((2, 1, 1, 4, 4)), "image", 0, 1)
    assert list(sheet(figure)[1]) == ["answer"] and figure.get_supxlabel() == ""
    volume = np.zeros((1, 2, 1, 3, 4, 4))
    volume[:, :, :, 1] = 1  # the middle slice
    pixels, columns = sheet(answers_figure(volume, "volume", 0, 1))
    assert (block(pixels, 0, columns["answer 0"]) == 255).all()


def test_many_questions_are_cut_and_the_title_says_so() -> None:
    figure = answers_figure(np.zeros((9, 1, 5, 4, 4)), "image", 0, 1, title="hole")
    assert figure.get_suptitle() == "hole, channel 0, the first 8 of 9 questions"


def lines(ax: Axes) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for line in ax.get_lines():
        found.setdefault(str(line.get_label()), []).append(np.stack(line.get_data()))
    return found


def test_signals(rng: np.random.Generator) -> None:
    x, truth = rng.normal(size=(2, 3, 1, 8)), rng.normal(size=(2, 1, 8))
    low = rng.normal(size=(2, 1, 4))
    figure = answers_figure(x, "signal", given=low, truth=truth, title="pooled by 2")
    drawn = [lines(ax) for ax in figure.axes]
    for r in range(2):
        assert (drawn[r]["truth"][0][1] == truth[r, 0]).all()
        assert (drawn[r]["mean of 3"][0][1] == x[r].mean(0)[0]).all()
        assert (drawn[r]["answers"][0][1] == x[r, 0, 0]).all()
        assert drawn[r]["given"][0][0].tolist() == [0.5, 2.5, 4.5, 6.5], "in the middle of the blocks"
        assert (drawn[r]["given"][0][1] == low[r, 0]).all()
        assert figure.axes[r].get_ylabel() == f"question {r}"


def test_tables_show_known_and_filled_cells_apart(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 5, 2))
    given = np.full((4, 2), np.nan)
    given[[0, 2], 0] = 7.0
    x[[0, 2], :, 0] = 7.0
    truth = rng.normal(size=(4, 2))
    figure = answers_figure(x, "vector", given=given, truth=truth, names=["age", "dose"], title="cells missing")
    first, second = figure.axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("age", "dose")
    points = [np.stack(line.get_data()) for line in first.get_lines()]
    known = next(p for p in points if p.shape[1] == 2 and (p[1] == 7.0).all())
    assert known[0].tolist() == [0, 2]
    rest = [p for p in points if p is not known]
    assert all(p[0].tolist() == [1, 3] for p in rest), "nothing is filled where a cell is known"
    assert any((p[1] == x[[1, 3]].mean(1)[:, 0]).all() for p in rest)
    assert any((p[1] == truth[[1, 3], 0]).all() for p in rest)
    assert any((p[1] == x[[1, 3], 4, 0]).all() for p in rest)
    (bars,) = first.collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert np.allclose(ends[:, 1] - ends[:, 0], 2 * x[[1, 3], :, 0].std(1, ddof=1))
    (legend,) = figure.legends
    assert {t.get_text() for t in legend.get_texts()} == {"given", "mean and deviation", "answers", "truth"}


@pytest.mark.parametrize("dims", [2, 3])
def test_one_question_with_many_answers_is_a_distribution(rng: np.random.Generator, dims: int) -> None:
    x, truth = rng.normal(size=(1, 40, dims)), np.arange(dims)[None] / 10
    x[0, 3] = np.nan
    figure = answers_figure(x, "vector", truth=truth, labels=["c0 1.5"])
    assert figure.get_suptitle() == "39 answers: c0 1.5"
    assert len(figure.axes) == (1 if dims == 2 else 3)
    at = [
        line.get_xdata()[0]
        for ax in figure.axes
        for line in ax.get_lines()
        if line.get_xdata()[0] == line.get_xdata()[1]
    ]
    assert at == (truth[0, :1] if dims == 2 else truth[0]).tolist()
    if dims == 2:
        assert len(figure.axes[0].collections[0].get_offsets()) == 39


def test_shapes_that_do_not_match_are_refused() -> None:
    x = np.zeros((2, 3, 1, 4, 4))
    with pytest.raises(UsageError, match=r"\(Q, K, \*event\)"):
        answers_figure(np.zeros((2, 3)), "vector")
    with pytest.raises(UsageError, match="kind must be"):
        answers_figure(x, "picture")
    for wrong in ({"given": np.zeros((3, 1, 4, 4))}, {"truth": np.zeros((2, 1, 4, 5))}, {"given": np.zeros((2, 4))}):
        with pytest.raises(UsageError, match="has shape"):
            answers_figure(x, "image", **wrong)
    with pytest.raises(UsageError, match="given has shape"):
        answers_figure(np.zeros((2, 3, 4)), "vector", given=np.zeros((2, 3)))
