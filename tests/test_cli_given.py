"""Asking a run from the command line: what is given comes back, what is asked is answered, and every file is named."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell

from scoresde import TrainConfig, fit, load, load_data
from scoresde import plot as plots
from scoresde.cli import main
from scoresde.core import parts
from scoresde.core.errors import UsageError
from scoresde.core.files import read_tensors
from scoresde.run import seen
from scoresde.train.reflow import reflow

SMALL: dict[str, Any] = {"steps": 3, "batch": 16}
UNET: dict[str, Any] = {**SMALL, "network_options": {"channels": 4}}
MLP: dict[str, Any] = {
    **SMALL, "steps": 100, "batch": 48, "lr": 5e-3, "ema": 0.9, "network_options": {"width": 8, "blocks": 1},
}  # fmt: skip
ASK = "--solver heun --steps 2"


def table(path: Path, rows: int = 60, gaps: bool = True) -> None:
    """A table of three numbers, the last a whole one, about somebody of an age."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("temp,hum,wind,age\n")
        for i in range(rows):
            cells = [f"{v:.2f}" for v in rng.normal(20, 5, 2)] + [str(rng.integers(0, 12))]
            if gaps and i % 5 == 0:
                cells[i % 3] = ""
            file.write(",".join([*cells, str(rng.integers(1, 9))]) + "\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of three steps for each kind of condition, and their data."""
    root, rng = tmp_path_factory.mktemp("asked"), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (60, 1, 8, 8)).astype(np.uint8)
    words = np.array([f"a {('red', 'green', 'blue')[i % 3]} thing" for i in range(60)])
    np.savez(root / "words.npz", x=pictures, text=words)
    np.savez(root / "pairs.npz", x=pictures, given=255 - pictures)
    theta = rng.normal(size=(60, 2))
    np.savez(root / "sims.npz", x=theta, c=np.c_[theta.sum(1), theta[:, 0] - 1, rng.normal(size=60)])
    table(root / "sensors.csv")
    np.save(root / "signals.npy", rng.normal(size=(60, 1, 16)).astype(np.float32))
    (root / "photos").mkdir()
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (10, 16, 3)).astype(np.uint8)).save(root / f"photos/{i}.png")
    for name, options in {
        "low": {**UNET, "cond": "pool:2"},
        "tasks": {**UNET, "cond": "half/pool:2/blur"},
        "holes": {**UNET, "cond": "class+cells"},
        "always": {**MLP, "data": str(root / "sims.npz"), "cond": "vector", "cond_drop": 0.0},
        "words": {**UNET, "data": str(root / "words.npz"), "cond": "text"},
        "pairs": {**UNET, "data": str(root / "pairs.npz"), "cond": "image"},
        "photos": {**UNET, "data": str(root / "photos"), "size": 8, "fit": "crop", "cond": "grey/pool:2"},
        "sims": {**MLP, "data": str(root / "sims.npz"), "cond": "vector"},
        "sensors": {**MLP, "data": str(root / "sensors.csv"), "cond": "vector:age+cells"},
        "signals": {**UNET, "data": str(root / "signals.npy"), "cond": "half:right"},
    }.items():
        fit(TrainConfig(**options), out=root / name, quiet=True)
    return root


@pytest.fixture
def of(runs: Path, shell: Shell) -> Callable[[str], str]:
    """Stand in an empty folder; ``of("low")`` puts a run there and returns its path ``runs/low``."""

    def copy(name: str) -> str:
        shutil.copytree(runs / name, Path("runs") / name)
        return f"runs/{name}"

    return copy


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was passed to the figure of answers."""
    found: list[dict[str, Any]] = []
    real = plots.answers_figure

    def watched(answers: Any, kind: str, low: float, high: float, **more: Any) -> Any:
        found.append({"answers": answers, "kind": kind, **more})
        return real(answers, kind, low, high, **more)

    monkeypatch.setattr(plots, "answers_figure", watched)
    return found


def digits(count: int = 2) -> torch.Tensor:
    return load_data("digits").test[:count].double()


def save(x: torch.Tensor, path: str) -> None:
    """Write a grey picture of 17 levels as a PNG."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((x.reshape(x.shape[-2:]) / 16 * 255).round().byte().numpy()).save(path)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(len(x), 1, 4, 2, 4, 2).mean((3, 5))


def result(facts: dict[str, Any], name: str = "samples.npz") -> Path:
    return next(Path(file) for file in facts["files"] if file.endswith(name))


def samples(facts: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(result(facts)) as arrays:
        return dict(arrays)


# -------------------------------------------------------------------------------------------------------------- images


def test_low_resolution_images_are_answered_and_named(
    shell: Shell, of: Callable[[str], str], drawn: list[dict[str, Any]]
) -> None:
    run, x = of("low"), digits()
    low = pooled(x)
    save(low[0], "small/b.png")
    save(low[1], "small/deep/a.png")
    facts: Any = shell.json(f"sample {run} --given small --each 3 {ASK} --save png,npz,files --out o")
    assert "given: 2 images of 4 x 4 from small, used as measurements (pooled by 2); 3 answers each\n" in shell.err
    found = samples({"files": facts["files"]})
    assert facts["n"] == 6 and found["given"].tolist() == [0, 0, 0, 1, 1, 1] and found["x"].shape == (6, 1, 8, 8)
    files = sorted(p.relative_to("o/files").as_posix() for p in Path("o/files").rglob("*.png"))
    assert files == [f"{name}-{k}.png" for name in ("b", "deep/a") for k in range(3)]
    assert (np.asarray(Image.open("o/files/deep/a-1.png")) == (found["x"][4, 0] / 16 * 255).round()).all()

    assert facts["operator"] == "pool:2" and facts["each"] == 3 and facts["questions"] == 2
    assert facts["given"] == "small" and facts["mask"] is None and facts["text"] == []
    assert facts["files"] and json.loads(Path("o/samples.json").read_text())["tolerance"] == 0.5
    kept = json.loads(Path("o/samples.json").read_text())["files"]
    assert kept == {
        f"small/{n}": hashlib.sha256(Path(f"small/{n}").read_bytes()).hexdigest() for n in ("b.png", "deep/a.png")
    }

    (figure,) = drawn
    assert figure["title"] == "pooled by 2" and figure["truth"] is None and figure["labels"] == ("b", "deep/a")
    bytes_ = np.stack([np.asarray(Image.open(f"small/{name}.png")) for name in ("b", "deep/a")])[:, None]
    assert np.allclose(figure["given"], bytes_ / 255 * 16, rtol=0, atol=1e-12), "255 is the highest level"
    assert (figure["answers"].numpy().reshape(6, 1, 8, 8) == found["x"]).all() and figure["answers"].shape[:2] == (2, 3)


def test_answers_that_differ_after_clamping_are_counted_and_named(
    shell: Shell, of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, low = of("low"), pooled(digits())
    np.save("low.npy", low.numpy())
    facts: Any = shell.json(f"sample {run} --given low.npy --each 4 {ASK} --save npz")
    x = torch.from_numpy(samples(facts)["x"]).double()
    off = (pooled(x) - low.repeat_interleave(4, 0)).abs().flatten(1).amax(1)
    assert facts["differing"] == (off > 0.5).nonzero().flatten().tolist()
    assert facts["residual_max"] == pytest.approx(float(off.max()))
    most = float(off.max()) - 1e-6 if float(off.max()) else -1.0
    monkeypatch.setattr(seen, "tolerance", lambda info: most)
    facts = shell.json(f"sample {run} --given low.npy --each 4 {ASK} --save npz")
    assert facts["differing"] == (off > most).nonzero().flatten().tolist() != []
    first = facts["differing"][0]
    told = (
        f"for {len(facts['differing'])} of 8 answers, clamped to the range of the data, the measurement differs from "
        f"the given one by more than {most:.3g} (half a level)"
    )
    assert told in shell.err
    assert f"low-{first // 4} answer {first % 4} (by {off[first]:.3g})" in shell.err


def test_a_file_of_the_shape_of_a_sample_is_the_truth(
    shell: Shell, of: Callable[[str], str], drawn: list[dict[str, Any]]
) -> None:
    run, x = of("low"), digits(1)
    save(x[0], "full.png")
    shell(f"sample {run} --given full.png --n 3 {ASK}")
    assert "the image full.png of 8 x 8, which has the shape of a sample, so it is used as the truth and" in shell.err
    assert "degraded here (pooled by 2); 3 answers\n" in shell.err
    (figure,) = drawn
    assert torch.equal(figure["truth"].double(), x) and torch.equal(figure["given"], pooled(x))
    colour = np.asarray(Image.open("full.png").convert("RGB"))
    Image.fromarray(colour).save("colour.png")
    shell(f"sample {run} --given colour.png --n 3 {ASK}")
    assert torch.equal(drawn[1]["truth"], figure["truth"]), "a colour image of grey pixels is grey"
    assert (drawn[0]["answers"] == drawn[1]["answers"]).all()


def test_a_model_of_several_tasks_is_shown_a_picture_as_it_is_unless_one_is_named(
    shell: Shell, of: Callable[[str], str], drawn: list[dict[str, Any]]
) -> None:
    run, x = of("tasks"), digits(1)
    save(x[0], "full.png")
    save(pooled(x)[0], "low.png")
    shell(f"sample {run} --given full.png {ASK}")
    assert "shown to the model as it is, because the run was trained with several operators" in shell.err
    assert "use --operator to degrade the samples first" in shell.err and drawn[0]["truth"] is None
    facts: Any = shell.json(f"sample {run} --given full.png {ASK} --operator half --each 2")
    assert "used as the truth and degraded here (lower half missing)" in shell.err and facts["operator"] == "half:lower"
    assert (samples(facts)["x"][:, 0, :4] == x[0, 0, :4].numpy()).all() and facts["differing"] == []
    assert drawn[1]["title"] == "lower half missing" and drawn[1]["given"][0, 0, 4:].isnan().all()
    shell(f"sample {run} --given low.png {ASK}")
    assert "used as a measurement (pooled by 2)" in shell.err
    shell(f"sample {run} --given full.png {ASK} --operator blur")
    assert "used as the truth and degraded here (blurred by 1 pixel);" in shell.err
    shell(f"sample {run} --given full.png {ASK} --operator crop")
    assert "was trained to undo half:lower/pool:2/blur:1, not crop, so its samples may be poor" in shell.err
    shell.refuses(f"sample {run} --given full.png --operator crup", 2, "unknown operator 'crup'", "'crop'")


def test_what_a_mask_leaves_comes_back_to_the_bit(shell: Shell, of: Callable[[str], str]) -> None:
    run, x = of("holes"), digits()
    save(x[0], "p/a.png")
    save(x[1], "p/b.png")
    hole = np.zeros((8, 8), np.uint8)
    hole[2:5, 3:7] = 255
    Image.fromarray(hole).save("hole.png")
    facts: Any = shell.json(f"sample {run} --given p --mask hole.png --label 3 --each 3 {ASK}")
    assert (
        "2 images of 8 x 8 from p under the mask hole.png, with 24 of 128 pixels to fill; 3 answers each" in shell.err
    )
    found, known = samples(facts)["x"], hole == 0
    want = x.repeat_interleave(3, 0).numpy()
    assert (found[:, 0][:, known] == want[:, 0][:, known]).all() and (
        found[:, 0][:, ~known] != want[:, 0][:, ~known]
    ).any()
    assert facts["mask"] == {"hole.png": hashlib.sha256(Path("hole.png").read_bytes()).hexdigest()}
    assert facts["label"] == "3" and facts["differing"] == []
    np.save("hole.npy", hole)
    again: Any = shell.json(f"sample {run} --given p --mask hole.npy --label 3 --each 3 {ASK}")
    assert (samples(again)["x"] == found).all(), "what is not 0 is missing, as what is white"

    shell.refuses(f"sample {run} --mask hole.png", 2, "--mask hole.png", "requires --given")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("none.png")
    shell.refuses(f"sample {run} --given p --mask none.png --label 3", 2, "hides nothing", "white", "--mask")
    Image.fromarray(hole[:4]).save("half.png")
    shell.refuses(f"sample {run} --given p --mask half.png --label 3", 2, "8 x 4 pixels", "8 x 8 pixels", "--mask")
    shell.refuses(f"sample {run} --given p --mask lost.png --label 3", 3, "the mask lost.png cannot be read")
    save(pooled(x)[0], "low.png")
    low = of("low")
    assert "by the rule moment" in (shell(f"sample {low} --given p --mask hole.png --steps 2"), shell.err)[1]
    shell.refuses(
        f"sample {of('tasks')} --given low.png --mask hole.png", 2, "contains 4 x 4 pixels in grey",
        "pass samples of 8 x 8 pixels in grey",
    )  # fmt: skip


def test_photos_are_resized_as_in_training(shell: Shell, of: Callable[[str], str], runs: Path) -> None:
    run = of("photos")
    shell(f"sample {run} --given {runs}/photos/3.png --operator pool:2 {ASK}")
    assert "resized to 8 x 8 as in training, of 8 x 8, which has the shape of a sample, so it is used" in shell.err
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8)).save("grey.png")
    facts: Any = shell.json(f"sample {run} --given grey.png {ASK} --each 2")
    assert facts["operator"] == "grey" and "used as a measurement (grey)" in shell.err
    Image.fromarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)).save("tiny.png")
    message = shell.refuses(f"sample {run} --given tiny.png", 3, "tiny.png: the image has 7 x 5 pixels in colour")
    assert "the run expects 8 x 8 pixels in grey or 4 x 4 pixels in colour or 8 x 8 pixels in colour" in message


def test_pictures_of_the_data_are_given_as_they_are(
    shell: Shell, of: Callable[[str], str], runs: Path, drawn: list[dict[str, Any]]
) -> None:
    run = of("pairs")
    with np.load(runs / "pairs.npz") as arrays:
        x, given = arrays["x"][:2], arrays["given"][:2]
    np.savez("q.npz", x=x, given=given)
    shell(f"sample {run} --given q.npz {ASK} --each 2")
    assert "given: 2 rows of shape 8 x 8 from q.npz; 2 answers each" in shell.err
    assert (drawn[0]["given"].numpy() == given).all() and (drawn[0]["truth"].numpy() == x).all()
    for i in range(2):
        Path("f").mkdir(exist_ok=True)
        Image.fromarray(given[i, 0]).save(f"f/{i}.png")
    shell(f"sample {run} --given f {ASK} --each 2")
    assert torch.equal(drawn[1]["answers"], drawn[0]["answers"]) and drawn[1]["truth"] is None


def test_signals(shell: Shell, of: Callable[[str], str], runs: Path, drawn: list[dict[str, Any]]) -> None:
    run, x = of("signals"), np.load(runs / "signals.npy")[:2]
    np.save("s.npy", x)
    facts: Any = shell.json(f"sample {run} --given s.npy --each 2 {ASK}")
    found = samples(facts)["x"]
    assert (found[:, 0, :8] == x.repeat(2, 0)[:, 0, :8]).all() and drawn[0]["title"] == "right half missing"
    np.save("one.npy", x[0, 0])
    shell(f"sample {run} --given one.npy --each 2 {ASK}")
    assert torch.equal(drawn[1]["answers"][0], drawn[0]["answers"][0]), "a row may lack its axes of length 1"


# -------------------------------------------------------------------------------------------------------------- tables

GAPS = """id,temp,hum,wind,age,note
s0,  20.10,,7,3,"good, old"
s1,,+18.5,,4.0,
s2,21.4,19,5,2,new
"""


def rows(path: str | Path, separator: str = ",") -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file, delimiter=separator))


def test_empty_cells_are_filled_and_the_others_stay_as_they_were_typed(
    shell: Shell, of: Callable[[str], str], drawn: list[dict[str, Any]]
) -> None:
    run = of("sensors")
    Path("gaps.csv").write_text(GAPS)
    facts: Any = shell.json(f"sample {run} --given gaps.csv {ASK} --out o")
    assert "given: 3 rows of gaps.csv (known: age), with 3 of 9 cells to fill; 1 answer each\n" in shell.err
    assert "1 empty cell stays empty, in columns that the model does not fill: note (1)\n" in shell.err
    typed, filled = rows("gaps.csv"), rows("o/filled.csv")
    assert filled[0] == typed[0] and len(filled) == 4
    for i, (before, after) in enumerate(zip(typed[1:], filled[1:], strict=True)):
        for j, (cell, now) in enumerate(zip(before, after, strict=True)):
            assert (cell == now) == ((i, j) not in ((0, 2), (1, 1), (1, 3))), (i, j)
    x = samples(facts)["x"]
    assert [float(filled[1][2]), float(filled[2][1])] == pytest.approx([x[0, 1], x[1, 0]], abs=0.051)
    assert max(len(filled[1][2]), len(filled[2][1])) <= 6, "no more digits than the data have"
    assert filled[2][3] == str(int(x[1, 2])), "a column of whole numbers is filled with whole numbers"
    assert x[2].tolist() == np.float32([21.4, 19, 5]).tolist() and facts["differing"] == []
    assert drawn[0]["title"] == "cells missing" and drawn[0]["given"].isnan().sum() == 3

    shell(f"sample {run} --given gaps.csv {ASK} --each 2 --out several")
    assert shell.out.startswith("several/filled.csv  5 rows  6 samples  ")
    assert json.loads(Path("several/samples.json").read_text())["lines"] == 5
    shell(f"sample {run} --given gaps.csv {ASK} --each 2 --out several --resume")
    assert shell.out.startswith("several/filled.csv  5 rows  6 samples  ")
    several = rows("several/filled.csv")
    assert several[0] == ["question", "answer", *typed[0]] and len(several) == 6
    assert [row[:2] for row in several[1:]] == [[*at] for at in ("00", "01", "10", "11", "20")], "a full row, once"
    assert several[1][2:4] == ["s0", "  20.10"] and several[1][4] != several[2][4]


def test_a_table_without_gaps_comes_back_unless_an_operator_is_named(
    shell: Shell, of: Callable[[str], str], drawn: list[dict[str, Any]]
) -> None:
    run = of("sensors")
    table(Path("whole.csv"), 12, gaps=False)
    lines = Path("whole.csv").read_text().replace(",", ";").replace(".", ",")
    Path("comma.csv").write_text(lines)
    shell(f"sample {run} --given comma.csv {ASK} --out same")
    assert "comma.csv (known: age), without empty cells, so there is nothing to fill" in shell.err
    assert rows("same/filled.csv", ";") == rows("comma.csv", ";") and not drawn and "drawing" not in shell.err
    shell(f"sample {run} --given comma.csv {ASK} --each 3 --out once")
    assert rows("once/filled.csv", ";") == rows("comma.csv", ";") and "answer" not in shell.err
    shell(f"sample {run} --given comma.csv {ASK} --operator cells --out o")
    assert "which have the shape of samples, so they are used as the truth and degraded here (cells" in shell.err
    typed, filled = rows("comma.csv", ";"), rows("o/filled.csv", ";")
    given = drawn[0]["given"]
    for i in range(12):
        for j in range(3):
            if not given[i, j].isnan():
                assert filled[1 + i][j] == typed[1 + i][j]
            else:
                assert filled[1 + i][j] != typed[1 + i][j] and "." not in filled[1 + i][j]
    assert 0 < int(given.isnan().sum()) < 36 and drawn[0]["truth"].shape == (12, 3)
    load_data("o/filled.csv")  # read again as a table
    Path("gaps.csv").write_text(GAPS)
    facts: Any = shell.json(f"sample {run} --given gaps.csv {ASK} --operator cells:1 --out more")
    assert "with 9 of 9 cells to fill" in shell.err and samples(facts)["x"].shape == (3, 3)


def test_empty_cells_that_stay_empty_are_named(shell: Shell, of: Callable[[str], str]) -> None:
    run = of("sensors")
    Path("more.csv").write_text("id,temp,hum,wind,age,note,\n,20,19,7,3,,\n,21,19,7,,x,\n")
    shell(f"sample {run} --given more.csv {ASK} --out o")
    told = (
        "6 empty cells stay empty, in columns that the model does not fill: id (2), age (1), note (1), column 7 (2)\n"
    )
    assert told in shell.err and "without empty cells in the columns of the model" in shell.err
    assert shell.out == "o/filled.csv  2 rows without cells to fill, unchanged\n"
    assert rows("o/filled.csv") == rows("more.csv")
    Path("gaps.csv").write_text(GAPS)
    shell(f"sample {run} --given gaps.csv {ASK} --out x --save npz")
    assert "stays empty" not in shell.err and shell.out.startswith("x/samples.npz  3 samples  ")
    Path("full.csv").write_text("temp,hum,wind,age\n20,,7,3\n")
    shell(f"sample {run} --given full.csv {ASK} --out y")
    assert "empty, in columns" not in shell.err and shell.out.startswith("y/filled.csv  1 row  1 sample  ")


def test_tables_that_do_not_fit_are_refused(shell: Shell, of: Callable[[str], str]) -> None:
    run = of("sensors")
    for text, words in {
        "temp,hum,wind\n1,,3\n": ["lacks the column age", "temp, hum, wind"],
        "temp,wind,age\n1,,3\n": ["lacks the column hum", "empty cells"],
        "Temp,hum,wind,age\n1,,2,3\n": ["lacks the column temp;", "rename Temp to temp"],
        "temp,hum,wind,age\n1,,warm,3\n1,2,3,4\n": ["'warm' in line 2", "correct the cell, or leave it empty"],
        "temp,hum,wind,age\n1,,1e999,3\n": ["column 'wind'", "an infinite number"],
    }.items():
        Path("q.csv").write_text(text)
        shell.refuses(f"sample {run} --given q.csv", 3, *words)
    save(digits(1)[0], "p.png")
    shell.refuses(f"sample {run} --given p.png", 3, "contains image data", "vectors of shape (3,)", "a table")
    low = of("low")
    shell.refuses(f"sample {low} --given q.csv", 3, "is a table", "images of shape (1, 8, 8)")


def test_named_columns_are_the_numbers(
    shell: Shell, of: Callable[[str], str], runs: Path, drawn: list[dict[str, Any]]
) -> None:
    run = of("sims")
    with np.load(runs / "sims.npz") as arrays:
        x, c = arrays["x"][:3], arrays["c"][:3]
    text = ["c1,c0,who,c2", *(f"{v[1]!r},{v[0]!r},me,{v[2]!r}" for v in c.tolist())]
    Path("q.csv").write_text("\n".join(text) + "\n")
    facts: Any = shell.json(f"sample {run} --given q.csv {ASK} --out o")
    assert "3 rows of q.csv (known: c0, c1, c2); 1 answer each" in shell.err
    np.savez("q.npz", x=x, c=c)
    again: Any = shell.json(f"sample {run} --given q.npz {ASK}")
    assert (samples(again)["x"] == samples(facts)["x"]).all(), "in whatever order the columns are"
    assert drawn[0]["truth"] is None and (drawn[1]["truth"].numpy() == x).all()
    assert drawn[1]["labels"][0] == f"c0 {c[0, 0]:.3g}, c1 {c[0, 1]:.3g}, c2 {c[0, 2]:.3g}"
    filled = rows("o/filled.csv")
    assert filled[0] == ["c1", "c0", "who", "c2", "x0", "x1"] and filled[1][:4] == rows("q.csv")[1]
    assert [float(cell) for cell in filled[1][4:]] == pytest.approx(samples(facts)["x"][0].tolist(), rel=1e-5)
    np.save("c.npy", c[0])
    one: Any = shell.json(f"sample {run} --given c.npy --each 40 {ASK}")
    assert one["n"] == 40 and drawn[2]["truth"] is None
    alike = load(run).given(torch_condition(c[:1]), each=40).sample(40, solver(), seed=0).x.numpy()
    assert np.abs(samples(one)["x"] - alike).max() < 1e-6
    save(digits(1)[0], "p.png")
    shell.refuses(f"sample {run} --given p.png", 2, "contains image data", "pass numbers (a table, or an array c)")
    np.save("short.npy", c[:, :2])
    shell.refuses(f"sample {run} --given short.npy", 3, "x (3, 2)", "of shape (n, 3) with the numbers c0, c1, c2")


def torch_condition(c: np.ndarray) -> Any:
    from scoresde import Condition

    return Condition(vector=torch.from_numpy(c))


def solver() -> Any:
    from scoresde import RungeKutta

    return RungeKutta(2)


# ----------------------------------------------------------------------------------------------------- texts, counting


def test_texts(shell: Shell, of: Callable[[str], str], drawn: list[dict[str, Any]]) -> None:
    run = of("words")
    facts: Any = shell.json(f"sample {run} --text red {ASK}")
    assert facts["n"] == 64 and facts["text"] == ["red"] and drawn == [], "one text is not a sheet of questions"
    facts = shell.json(f"sample {run} --text red --text blew --each 2 {ASK}")
    assert facts["n"] == 4 and samples(facts)["given"].tolist() == [0, 0, 1, 1]
    assert (
        "1 word that did not occur in the training texts" in shell.err and "'blew' (did you mean 'blue')" in shell.err
    )
    assert drawn[0]["labels"] == ("red", "blew") and drawn[0]["given"] is None
    np.savez("q.npz", text=np.array(["a red thing", "a green thing"]))
    facts = shell.json(f"sample {run} --given q.npz --each 3 {ASK}")
    assert facts["n"] == 6 and drawn[1]["labels"] == ("a red thing", "a green thing")
    save(digits(1)[0], "p.png")
    shell.refuses(f"sample {run} --given p.png", 2, "contains image data", "pass a text")
    shell.refuses(f"sample {of('low')} --text red", 2, "was trained without texts", "--cond text")
    shell(f"sample {run} --n 2 {ASK}")
    assert "no condition is given, so these are samples of the unconditional model; see --text and --given" in shell.err


def test_how_many_samples(shell: Shell, of: Callable[[str], str]) -> None:
    run = of("low")
    np.save("low.npy", pooled(digits(3)).numpy())
    for options, n in (("", 3), ("--each 2", 6), ("--n 12", 12), ("--n 6 --each 2", 6)):
        assert shell.json(f"sample {run} --given low.npy {options} {ASK} --save npz")["n"] == n
    for options, words in {
        "--n 4": ["--n 4 is not a multiple", "3 questions", "number of samples is 3", "--each"],
        "--n 5 --each 2": [
            "--n 5 contradicts --each 2",
            "with 3 questions and 2 answers per question, the number of samples is 6",
        ],
    }.items():
        shell.refuses(f"sample {run} --given low.npy {options}", 2, *words)
    shell.refuses(f"sample {run} --n 5 --each 2", 2, "--n 5 contradicts --each 2")
    assert shell.json(f"sample {run} --each 5 {ASK} --save npz")["n"] == 5
    assert not any(Path("runs/low/samples").glob("*/parts"))


def test_everything_that_a_run_was_told_must_be_given(shell: Shell, of: Callable[[str], str], digits_run: str) -> None:
    run, x = of("holes"), digits(1)
    save(x[0], "p.png")
    shell.refuses(
        f"sample {run} --given p.png",
        2,
        "needs the fields label, image, but this one lacks label",
        "(on the command line: --label)",
    )
    shell.refuses(f"sample {run} --label 3", 2, "lacks image", "(on the command line: --given)")
    np.savez("q.npz", x=x.numpy(), y=np.array([3]))
    shell.refuses(f"sample {run} --given q.npz --label 4", 2, "the class is given twice", "'4'", "--label")
    facts: Any = shell.json(f"sample {run} --given q.npz {ASK}")
    again: Any = shell.json(f"sample {run} --given p.png --label 3 {ASK}")
    assert (samples(facts)["x"] == samples(again)["x"]).all(), "an array y holds the classes"
    shell.refuses(
        f"sample {digits_run} --given p.png", 2, "was trained without a condition", "name the operator that made them"
    )
    shell.refuses(f"sample {run} --given lost.png", 3, "there is no file or folder lost.png")
    shell.refuses(f"sample {run} --operator hole", 2, "requires --given")
    Path("empty").mkdir()
    shell.refuses(f"sample {run} --given empty", 3, "empty contains no images")
    Path("a.txt").write_text("red")
    shell.refuses(f"sample {run} --given a.txt", 3, "a condition cannot be read from a.txt")
    always = of("always")
    shell.refuses(
        f"sample {always} --n 2", 2, "cannot be used without its condition; give a condition", "line: --given)"
    )


@pytest.fixture
def digits_run(copied: Callable[[str], str]) -> str:
    return copied("digits")


# -------------------------------------------------------------------------------------------------------------- resume


def test_an_interrupted_call_goes_on_to_the_bit(
    shell: Shell, of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = of("low")
    for i, x in enumerate(pooled(digits(3))):
        save(x, f"q/{i}.png")
    line = f"sample {run} --given q --each 4 --batch 4 {ASK} --save npz"
    shell(f"{line} --out whole")
    real, written = parts.write_tensors, []

    def write(*args: Any) -> Path:
        written.append(real(*args))
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_tensors", write)
        shell(f"{line} --out o", 75)
    assert "8 of 12 samples are saved in o; continue with: scoresde sample --out o --resume" in shell.err
    save(pooled(digits(1))[0].flip(2), "other/0.png")
    save(pooled(digits(1))[0].flip(1), "other/1.png")
    save(pooled(digits(1))[0], "other/2.png")
    shell.refuses(f"{line} --out o --resume".replace("q ", "other "), 2, "rows 0 to 3) was computed from different")
    shell(f"{line} --out o --resume")
    assert "resuming: 8 of 12 samples" in shell.err
    with np.load("whole/samples.npz") as whole, np.load("o/samples.npz") as again:
        assert whole["given"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert all((whole[name] == again[name]).all() for name in ("x", "index", "given"))
    shell(f"{line} --out o --resume")
    assert "the result in o is already finished" in shell.err
    shell.refuses(f"{line} --out o --resume".replace("q ", "other "), 2, "does not match the results in o: given ")
    shell.refuses(f"{line} --out o --resume".replace("--each 4", "--n 12 --each 4 --operator crop"), 2, "operator crop")
    os.rename("q", "moved")
    shell(f"{line} --out o --resume".replace("q ", "moved "))
    assert "already finished" in shell.err, "the names of the files do not matter"


# ---------------------------------------------------------------------------------------------------------- likelihood


def test_likelihood_given_and_its_gain(shell: Shell, of: Callable[[str], str]) -> None:
    run = of("sims")
    facts: Any = shell.json(f"likelihood {run} --given --split all --limit 8 --rtol 1e-4 --no-check --out o")
    out = shell(f"likelihood {run} --given --limit 4 --rtol 1e-3 --no-check")
    assert " nats given the conditions  (n = 4" in out and "nats gained over log p(x), sample by sample" in out
    table_ = rows("o/likelihood.csv")
    column = {name: i for i, name in enumerate(table_[0])}
    with_, without = (
        np.array([float(row[column[name]]) for row in table_[1:]]) for name in ("log_prob", "log_prob_without")
    )
    (found,) = facts["sets"]
    assert found["mean"] == pytest.approx(with_.mean()) and found["gain"]["mean_without"] == pytest.approx(
        without.mean()
    )
    assert found["gain"]["mean"] == pytest.approx((with_ - without).mean()) and facts["condition"] == "given"
    assert found["gain"]["stderr"] == pytest.approx((with_ - without).std(ddof=1) / 8**0.5)

    loaded = load(run)
    data = loaded.data()
    x = torch.cat([data.train, data.test])
    c = torch.cat([data.train_given.vector, data.test_given.vector])  # type: ignore[list-item]
    index = [int(row[column["index"]]) for row in table_[1:]]
    from scoresde import Condition, Likelihood

    how = Likelihood(rtol=1e-4)
    told = loaded.given(Condition(vector=c[index])).log_likelihood(x[index], how, check=False)
    assert np.abs(told.log_prob.numpy() - with_).max() < 1e-4, "each row has its own condition"
    assert np.abs(with_ - without).max() > 0.01
    other = loaded.given(Condition(vector=c[index].flip(0))).log_likelihood(x[index], how, check=False)
    assert np.abs(other.log_prob.numpy() - with_).max() > 0.01, "the condition matters"
    plain = loaded.log_likelihood(x[index], how, check=False)
    assert np.abs(plain.log_prob.numpy() - without).max() < 1e-4


def test_a_mean_to_a_stated_error_belongs_to_its_condition(shell: Shell, of: Callable[[str], str]) -> None:
    run = load(of("sims"))
    data = run.data()
    for name, order in (("one", 1), ("two", -1)):
        c = torch.cat([data.train_given.vector, data.test_given.vector])  # type: ignore[list-item]
        np.savez(f"{name}.npz", x=torch.cat([data.train, data.test]).numpy(), c=c.numpy()[::order])
    line = f"likelihood {run.folder} --given --within 9 --limit 8 --rtol 0.3 --threads 1 --out o"
    facts: Any = shell.json(f"{line} --data one.npz --quiet")
    assert facts["condition"] == "given"
    shell(f"{line} --data one.npz --resume")
    assert "already finished" in shell.err
    shell.refuses(f"{line} --data two.npz --resume", 2, "does not match the results in o")


def test_likelihood_given_is_refused_where_there_is_none(
    shell: Shell, of: Callable[[str], str], digits_run: str
) -> None:
    sensors = of("sensors")
    shell.refuses(
        f"likelihood {sensors} --given", 2, "have no density conditioned on measurements by cells", "continuous"
    )
    shell.refuses(f"likelihood {digits_run} --given", 2, "was trained without a condition", "--cond")
    np.save("plain.npy", np.zeros((20, 8, 8), np.uint8))
    shell.refuses(f"likelihood {of('holes')} --given --data plain.npy", 2, "but plain has no labels")
    shell.refuses(f"likelihood {sensors} --given --labels", 2, "leave out --labels")
    shell.refuses(f"likelihood {sensors} --given --label 3", 2, "leave out --label")
    always = of("always")
    out = shell(f"likelihood {always} --given --limit 2 --rtol 1e-1 --no-check")
    assert "gained" not in out and "nats given the conditions" in out
    assert "the comparison with log p(x) is left out: runs/always has no unconditional likelihood" in shell.err
    shell(f"likelihood {sensors} --split all --limit 0 --rtol 1e-1 --no-check --save csv")
    assert len(rows("runs/sensors/likelihood/likelihood.csv")) == 1 + 48, "rows with empty cells have no likelihood"


# ------------------------------------------------------------------------------------------------------ other commands


@pytest.mark.parametrize("name", ["low", "words", "always", "sensors"])
def test_other_commands_use_the_conditions_of_held_out_rows(shell: Shell, of: Callable[[str], str], name: str) -> None:
    run = of(name)
    if name in ("always", "sensors"):  # on a U-Net, these take seconds
        assert "real data" in shell(f"bench {run} --solvers heun --nfe 4 --n 8")
        assert shell.json(f"reflow {run} --pairs 20 --steps 2 --rtol 1e-1 --out made")["run"] == "made"
    else:
        reflow(load(run), pairs=20, steps=2, solver=solver(), out="made", quiet=True)
    shell(f"plot reverse {run} --steps 2 --n 3 --columns 2 --no-gif")
    shell(f"plot trajectories {run} --steps 4 --n 4 --paths 2")
    shell("train --resume made --steps 3 --quiet")
    before, after = load(run), load("made")
    assert after.config is not None and before.config is not None and after.config.cond == before.config.cond
    if name == "always":
        shell.refuses(f"plot compass {run}", 2, "cannot be used without its condition", "cond_drop=0.1")
    else:
        shell(f"plot compass {run} --n 4 --levels 2")


def test_pairs_keep_the_condition_of_their_row(of: Callable[[str], str]) -> None:
    run = load(of("sims"))
    made = reflow(run, pairs=70, steps=2, out="made", quiet=True)
    stored, data = read_tensors(Path("made/pairs.safetensors")), run.data()
    want = run.given_rows(data, torch.arange(70) % len(data.train), split="train")
    assert torch.equal(stored["vector"], want.condition.vector) and "labels" not in stored  # type: ignore[union-attr]
    x = want.sample(70, "ode", seed=0, start=2**40).solution.x
    assert made.config is not None and stored["x0"].shape == x.shape


# --------------------------------------------------------------------------------------------------------------- train

OWN = """
from dataclasses import dataclass
from pathlib import Path
from scoresde.operators import Linear

Path("imported").touch()

@dataclass(frozen=True, eq=False)
class Means(Linear):
    def __call__(self, x): return x.mean(-1)
"""


def test_an_operator_of_ones_own(shell: Shell, tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    Path("myop.py").write_text(OWN)
    save(digits(1)[0], "p.png")
    shell("train --cond myop:Means --steps 2 --batch 8 --set network.channels=4 --out r --quiet")
    Path("imported").unlink()
    sys.modules.pop("myop")
    message = shell.refuses("train --resume r --steps 3", 2, "the operator myop:Means", "names read from files")
    assert message.endswith("(on the command line: --cond myop:Means)\n")
    shell.refuses("sample r --given p.png", 3, "'myop:Means'", "(on the command line: --operator myop:Means)")
    shell.refuses("train --resume r --steps 3 --cond pool:2", 2, "was trained with myop:Means")
    assert "myop:Means" in shell("info r") and not Path("imported").exists(), "a file chooses no code"
    shell("train --resume r --steps 3 --cond myop:Means --quiet")
    shell(f"sample r --given p.png --operator myop:Means --each 2 {ASK}")
    assert drawn[0]["given"].shape == (1, 1, 8, 8) and drawn[0]["title"] == "myop:Means"
    for line in (
        "likelihood r --given --limit 2 --rtol 1e-1 --no-check",
        "plot reverse r --steps 2 --n 1 --no-gif",
    ):
        shell.refuses(line, 3, "(on the command line: --operator myop:Means)")
        shell(f"{line} --operator myop:Means")
    made = reflow(
        load("r", operator="myop:Means"), pairs=8, steps=2, solver=solver(), out="made", quiet=True
    )  # fmt: skip
    assert made.operator is not None and load("made", operator="myop:Means").operator is not None


def test_a_run_keeps_its_mask(shell: Shell) -> None:
    hole = np.zeros((8, 8), np.uint8)
    hole[:, :3] = 255
    Image.fromarray(hole).save("hole.png")
    x = digits(1)
    save(x[0], "p.png")
    shell("train --cond mask:hole.png --steps 2 --batch 8 --set network.channels=4 --out r --quiet")
    Path("hole.png").unlink()
    shell("train --resume r --steps 3 --quiet")
    facts: Any = shell.json(f"sample r --given p.png --each 2 {ASK}")
    assert (samples(facts)["x"][:, 0, :, 3:] == x[0, 0, :, 3:].numpy()).all()
    assert "masked by hole.png" in shell.err
    told = "condition    the measurement of the sample (mask:hole.png); dropped in training with probability 0.1"
    assert told in shell("info r")


def test_cond_is_named_by_every_error(shell: Shell) -> None:
    for cond, words in {
        "clas": ["unknown cond 'clas'", "'class'", "(on the command line: --cond)"],
        "poool:2": ["unknown operator 'poool'", "'pool'", "(on the command line: --cond)"],
        "pool:x": ["size is 'x'", "an integer", "(on the command line: --cond)"],
        "pool:2+blur": ["two operators", "(on the command line: --cond pool:2/blur)"],
        "class+class": ["twice", "(on the command line: --cond)"],
        "grey": ["3 channels, but the number of channels is 1", "(on the command line: --cond)"],
        "pool:3": ["divisible by 3", "(on the command line: --cond)"],
        "vector": ["requires a vector", "digits has none", "(on the command line: --cond none)"],
        "no:Such": ["no module 'no'", "(on the command line: --cond)"],
    }.items():
        shell.refuses(f"train --cond {cond} --steps 2", 2, *words)
    table(Path("t.csv"))
    shell.refuses(
        "train --data t.csv --cond vector:agee+cells", 3, "no column 'agee'", "'age'", "(on the command line: --cond)"
    )
    shell.refuses("train --data t.csv", 3, "empty cells", "(on the command line: --cond cells)")
    assert not Path("runs").exists()


def test_dry_run_and_info_say_what_a_model_is_told(shell: Shell, of: Callable[[str], str]) -> None:
    table(Path("t.csv"))
    line = "train --data t.csv --cond vector:age+cells --batch 8 --set network.width=8 --dry-run --quiet"
    told = "a number (age), the measurement of the sample (cells missing); dropped in training with probability 0.1"
    assert shell.json(line)["told"] == told and f"condition        {told}\n" in shell(line)
    assert f"condition    {told}\n" in shell(f"info {of('sensors')}")
    assert "condition" not in shell("train --batch 8 --set network.channels=4 --dry-run --quiet")
    assert "the class (10 classes), the measurement of the sample (cells missing)" in shell(f"info {of('holes')}")


def test_inspect_reads_data_as_they_will_be_trained_on(shell: Shell, runs: Path) -> None:
    table(Path("t.csv"))
    shell("data inspect t.csv", 3)
    out = shell("data inspect t.csv --cond vector:age+cells")
    assert "conditions besides the class: a number (age)" in out
    assert out.endswith("train with: scoresde train --data t.csv --cond vector:age+cells\n")
    shell("data inspect t.csv --json", 3)
    problem = json.loads(shell.out)
    assert problem["command"] == "scoresde train --data t.csv --cond cells"
    for name, word in (("words.npz", "--cond text"), ("pairs.npz", "--cond image"), ("sims.npz", "--cond vector")):
        assert f"only with {word}" in shell(f"data inspect {runs / name}")
    assert "only with" not in shell(f"data inspect {runs / 'words.npz'} --cond text")


def test_list_says_how_operators_are_typed(shell: Shell) -> None:
    from scoresde.core.tables import OPERATORS

    found: Any = shell.json("list operators")
    entries = {entry["name"]: entry for entry in found["entries"]}
    assert list(entries) == list(OPERATORS)
    assert {name: entries[name]["typed"] for name in ("mask", "pool", "grey", "half")} == {
        "mask": "mask:FILE", "pool": "pool[:SIZE]", "grey": "grey", "half": "half[:WHICH]",
    }  # fmt: skip
    assert entries["pool"]["options"] == {"size": 2} and entries["jpeg"]["options"] == {"quality": 10}
    assert not any(entry["needs"] for entry in entries.values())
    out = shell("list operators")
    assert "pool[:SIZE]" in out and "size=2" in out and "event" not in out


def test_help_lists_what_can_be_told_in_plain_words(shell: Shell) -> None:
    from scoresde.core.tables import OPERATORS

    text = " ".join(shell("train --help").split())
    for word in ("class", "vector", "image", "text", "module:Class", *OPERATORS):
        assert word in text[text.index("--cond") : text.index("--sde")], word
    text = shell("sample --help")
    assert all(flag in text for flag in ("--given", "--each", "--label"))
    assert all(flag in shell("sample --help-all") for flag in ("--mask", "--operator", "--text"))


def test_quiet_says_nothing(shell: Shell, of: Callable[[str], str]) -> None:
    np.save("low.npy", pooled(digits(1)).numpy())
    shell(f"sample {of('low')} --given low.npy {ASK} --quiet")
    assert shell.err == ""


def test_a_text_of_several_words(of: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    run = of("words")
    with pytest.raises(SystemExit) as stop:
        main(["sample", run, "--text", "a red thing", *ASK.split(), "--n", "2"])
    assert stop.value.code == 0 and "warning" not in capsys.readouterr().err


def test_far_cells_are_named_by_their_lines(shell: Shell, of: Callable[[str], str]) -> None:
    run = of("sensors")
    Path("far.csv").write_text("temp,hum,wind,age\n\n20,18,,3\n2000,18,,3\n,,990,3000\n,,,\n")
    shell(f"sample {run} --given far.csv {ASK} --out o")
    told = [line for line in shell.err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 2 and all(line.startswith("warning: far.csv: ") for line in told)
    assert "2 given values are far from" in told[0] and "typing errors" in told[0]
    assert "2000 of temp in line 4 (" in told[0] and "990 of wind in line 5 (" in told[0]
    assert "value 3000 of age in line 5 is" in told[1] and "a typing error" in told[1]
    assert "given: 4 rows of far.csv" in shell.err and len(rows("o/filled.csv")) == 5


def test_a_metric_that_does_not_suit_the_data_is_refused_before_anything_is_drawn(
    shell: Shell, of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import scoresde.study.answers as answers

    run = of("sensors")
    facts: Any = shell.json(f"evaluate {run} --given test --each 2 --n 2 --seed 1")
    assert facts["answers"]["skipped"]["ssim"].startswith("it compares pictures")
    assert "2 answers for 1 row (out of 2) of sensors" in shell.err
    shell(f"evaluate {run} --given test --each 2 --n 2 --seed 1 --metrics spread --out again")
    assert "2 answers to 1 question;" in shell.out
    monkeypatch.setattr(answers, "ask", lambda *_, **__: pytest.fail("answers were drawn"))
    shell.refuses(f"evaluate {run} --given test --metrics psnr,ssim", 2, "'ssim' cannot be computed", "pictures")
    found = load(run)
    with pytest.raises(UsageError, match="it compares pictures"):
        answers.evaluate_answers(found, found.data(), torch.arange(4), metrics=["ssim"])


def test_pictures_networks_name_what_was_typed(shell: Shell) -> None:
    shell.refuses("train --data moons --preset small", 2, "the preset 'small' does not accept vectors", "--preset mlp")
    shell.refuses("train --data moons --network unet", 2, "the 'unet' network does not accept vectors", "--network mlp")


def test_info_without_a_checkpoint_has_no_parameters(shell: Shell, of: Callable[[str], str]) -> None:
    shutil.copytree(of("sensors"), "young")
    shutil.rmtree("young/checkpoints")
    shell("info young")
    assert "parameters   none yet" in shell.out
    assert shell.json("info young")["parameters"] is None
