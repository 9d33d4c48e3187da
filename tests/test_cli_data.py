"""``scoresde data inspect``: everything that is wrong at once, with the flags that answer it, which then do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import Shell

from scoresde.cli import main


@pytest.fixture
def mixed(shell: Shell) -> str:
    """A folder with much of what is odd, in classes, some of it deep below them."""
    rng = np.random.default_rng(0)
    for i in range(60):
        size = [(8, 8), (12, 9), (9, 30), (40, 40)][i % 4]
        x = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        path = Path("photos") / ["cat", "dog/2019", "dog/2020/summer"][i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (Image.fromarray(x).convert("L") if i % 5 == 0 else Image.fromarray(x)).save(path)
    Image.fromarray(rng.integers(0, 60_000, (9, 9), dtype=np.uint16)).save("photos/cat/deep.png")
    frames = [Image.new("L", (9, 9), 100 * i) for i in range(2)]
    frames[0].save("photos/dog/stack.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((9, 9), np.float32)).save("photos/dog/float.tiff")
    whole = Path("photos/cat/0.png").read_bytes()
    for name, content in (("half.png", whole[:90]), ("empty.jpg", b""), ("text.jpg", b"no picture")):
        Path("photos/cat", name).write_bytes(content)
    frames[0].save("photos/dog/still.gif")
    Path("photos/cat/copy.png").write_bytes(whole)
    return "photos"


def test_all_problems_at_once_and_the_flags_that_answer_them(shell: Shell, mixed: str) -> None:
    out = shell(f"data inspect {mixed}", 3)
    assert shell.err == ""
    lines = out.splitlines()
    assert lines[0] == "photos: 5 problems" and [line[:3] for line in lines[1:6]] == [f"{i}. " for i in range(1, 6)]
    for line, words, flags in zip(
        lines[1:],
        [
            "3 of 67 files are not readable images: cat/empty.jpg (empty), cat/half.png (the file is truncated), "
            "cat/text.jpg (text)",
            "1 of 67 files has several frames: dog/stack.tif (2 frames)",
            "1 of 67 files has an unsupported pixel format: dog/float.tiff (floating-point numbers)",
            "there are both 8-bit and 16-bit images (61 and 1; of the rarer kind: cat/deep.png)",
            "the images have 5 different sizes, 8 to 40 pixels wide and 8 to 40 pixels high: 8x8 (16: ",
        ],
        ["--on-bad skip"] * 4 + ["--size 8 --fit crop"],
        strict=False,
    ):
        assert words in line and line.endswith(f"(on the command line: {flags})")
    command = "scoresde train --data photos --on-bad skip --size 8 --fit crop"
    assert lines[6:] == ["other files are left out: 1 .gif (dog/still.gif)", f"train with: {command}"]
    shell(f"data inspect {command.partition('--data ')[2]}")


def test_train_runs_the_same_look(shell: Shell, mixed: str) -> None:
    listed = shell(f"data inspect {mixed}", 3).splitlines()
    assert shell(f"train --data {mixed}", 3) == ""
    told = shell.err.splitlines()
    assert told[0] == f"error: {listed[0]}" and told[1:6] == listed[1:6]
    assert told[6:] == ["all at once: --on-bad skip --size 8 --fit crop"]
    assert not Path("runs").exists()


def test_with_the_flags_it_says_what_is_there(shell: Shell, mixed: str) -> None:
    out = shell(f"data inspect {mixed} --on-bad skip --size 8 --fit crop")
    for words in (
        "image of shape 3 x 8 x 8", "values from 0 to 255, 256 levels", "2 classes: cat, dog",
        "other files are left out: 1 .gif (dog/still.gif)", "left out: 3 of 67 files are not readable",
        "1 image with 16 bits per channel: cat/deep.png", "13 grey and 48 colour images", "45 images resized to 8x8",
        "1 image has the same bytes as another image", "training + test samples per class: cat (",
        "note: for fewer than 5,000 images, consider --augment",
    ):  # fmt: skip
        assert words in out
    assert out.splitlines()[-1] == "train with: scoresde train --data photos --size 8 --fit crop --on-bad skip"
    assert shell.err == "" and not Path("runs").exists()


def test_then_train_takes_them_and_says_the_same(shell: Shell, mixed: str) -> None:
    flags = f"--data {mixed} --on-bad skip --size 8 --fit crop"
    shell(f"train {flags} --steps 1 --batch 4 --set network.channels=4 --out run")
    assert "45 images resized to 8x8 (crop)" in shell.err and "left out: 1 .gif" in shell.err
    stored = shell.json("info run")["config"]
    assert isinstance(stored, dict)
    assert (stored["size"], stored["fit"], stored["on_bad"], stored["layout"]) == (8, "crop", "skip", "auto")
    assert json.loads(Path("run/data.json").read_text())["shape"] == [3, 8, 8]
    shell("train --resume run --steps 2")  # reads the folder as the run did
    shell.refuses("train --resume run --size 16", 2, "--size cannot be changed when a run is resumed")
    shell.refuses("train --resume run --on-bad stop", 2, "--on-bad cannot be changed when a run is resumed")


def test_json(shell: Shell, mixed: str) -> None:
    shell(f"data inspect {mixed} --json", 3)
    found = json.loads(shell.out)
    assert found.keys() == {"data", "problems", "notes", "command", "found"} and found["found"] == {}
    assert [p["options"] for p in found["problems"]] == ["--on-bad skip"] * 4 + ["--size 8 --fit crop"]
    assert found["problems"][4]["answers"] == {"size": 8, "fit": "crop"}
    found = shell.json(f"data inspect {mixed} --on-bad skip --size 8 --fit pad")
    assert found["problems"] == [] and found["command"] == (
        "scoresde train --data photos --size 8 --fit pad --on-bad skip"
    )
    counts = found["found"]["class_counts"]  # type: ignore[index]
    assert {name: sum(n) for name, n in counts.items()} == {"cat": 21, "dog": 40}
    assert found["found"]["shape"] == [3, 8, 8] and len(found["notes"]) == 8  # type: ignore[index, arg-type]


def test_what_no_option_answers_is_said(shell: Shell, mixed: str) -> None:
    Path(mixed, "loose.png").write_bytes(Path(mixed, "cat/0.png").read_bytes())
    out = shell(f"data inspect {mixed} --on-bad skip --size 8 --fit crop", 3)
    assert out.startswith("photos: 1 problem\n1. there are images both at the top level (1: loose.png)")
    assert out.splitlines()[-1] == "change the data to fix the problems that no option solves"


def test_a_fit_needs_a_size(shell: Shell, mixed: str) -> None:
    for line in (f"data inspect {mixed}", f"train --data {mixed}"):
        shell.refuses(f"{line} --fit pad", 2, "fit is 'pad', but size is not set", "(on the command line: --size 64)")


@pytest.mark.parametrize("name", ["digits", "moons", "x.npy"])
def test_whatever_train_takes_is_inspected(shell: Shell, name: str) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(200, 3)))
    out = shell(f"data inspect {name}")
    assert "training and" in out and out.splitlines()[-1] == f"train with: scoresde train --data {name}"
    assert ("--augment" in out) == (name == "digits")


def test_other_data_and_none(shell: Shell) -> None:
    np.save("bad.npy", np.full((9, 3), np.inf))
    assert "bad.npy: 1 problem\n1. " in shell("data inspect bad.npy", 3) and "NaN or infinite" in shell.out
    assert "no data set, file or folder" in shell("data inspect nowhere", 3)


def test_large_pictures_are_said_to_be_slow(shell: Shell) -> None:
    Path("large").mkdir()
    for i in range(30):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 48), dtype=np.uint8)).save(f"large/{i}.png")
    assert "use --size 32 to shrink them" in shell("data inspect large")
    assert "to shrink them" not in shell("data inspect large --size 32")


def test_a_path_with_a_space_is_quoted(shell: Shell) -> None:
    Path("my photos").mkdir()
    for i in range(30):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8)).save(f"my photos/{i}.png")
    with pytest.raises(SystemExit):
        main(["data", "inspect", "my photos", "--size", "8"])
    assert shell.capsys.readouterr().out.endswith("scoresde train --data 'my photos' --size 8\n")
