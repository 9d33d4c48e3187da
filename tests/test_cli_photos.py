"""Photos that are given to a run on the command line: holes, alpha channels and sizes that it was not trained with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import Shell

from scoresde import TrainConfig, fit

FAST = "--steps 2 --save npz"


def save(path: str, height: int, width: int, channels: int, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that enlarge photos and were never trained without their condition, and their photos.

    One of the photos of the run ``mixed`` has transparent parts.
    """
    root = tmp_path_factory.mktemp("photos")
    for name in ("plain", "mixed"):
        (root / name).mkdir()
        for i in range(20):
            save(str(root / name / f"{i}.png"), 8, 8, 4 if (name, i) == ("mixed", 7) else 3, seed=i)
        small = TrainConfig(
            data=str(root / name), size=8, fit="crop", cond="pool:2", cond_drop=0.0, steps=2, batch=8,
            network_options={"channels": 4},
        )  # fmt: skip
        fit(small, out=root / "runs" / name, quiet=True)
    return root


@pytest.fixture
def here(made: Path, shell: Shell) -> None:
    """A folder with copies of the runs and photos."""
    shutil.copytree(made, ".", dirs_exist_ok=True)


def test_a_run_that_always_had_its_condition_refuses_at_once(here: None, shell: Shell) -> None:
    save("full.png", 8, 8, 3)
    hole = np.zeros((8, 8), np.uint8)
    hole[2:5, 3:7] = 255
    Image.fromarray(hole).save("hole.png")
    why = "was trained with cond_drop=0, so it cannot be used without its condition"
    instead = "give only a measurement by pool:2"
    for line, words in {
        "--given full.png --mask hole.png": ["a hole (a mask), with which it was not trained, needs the", instead],
        "--given full.png --seen half": ["a hole (a mask)", instead],
        "--given full.png --seen crop": ["a measurement by crop, with which it was not trained, needs", instead],
        "--given full.png --seen pool:2 --noise 9": ["a measurement with noise or with a rule needs", instead],
    }.items():
        shell.refuses(
            f"sample runs/plain {line}", 2, why, *words, "(on the command line: scoresde train --cond-drop 0.1)"
        )
        assert "given: " not in shell.err and "without guidance" not in shell.err
    message = shell.refuses("sample runs/plain --n 5", 2, f"{why}; give a condition", "(on the command line: --given)")
    assert "guidance" not in message
    shell.refuses(
        "sample runs/plain --given full.png --guidance 2", 2, "guidance 2 is not possible", "without guidance"
    )
    assert "given: " not in shell.err
    shell.refuses("sample runs/plain --from full.png", 2, why)
    assert "starting from" not in shell.err
    assert not list(Path("runs/plain/samples").glob("multistep*")), "nothing is left behind"


def test_alpha_channels_are_made_to_fit_the_run(here: None, shell: Shell) -> None:
    for name, side, channels in (("low", 4, 3), ("full", 8, 3), ("clear", 4, 4), ("whole", 8, 4)):
        save(f"{name}.png", side, side, channels)
    Image.open("low.png").convert("L").save("grey.png")
    for name in ("clear", "whole"):
        shell(f"sample runs/plain --given {name}.png {FAST}")
        assert f"1 image with transparent parts ({name}.png), composited on white" in shell.err
    for name in ("low", "full", "grey"):
        shell(f"sample runs/mixed --given {name}.png {FAST} --out {name}")
        assert f"1 image without transparent parts ({name}.png), used with an opaque alpha channel" in shell.err
    with np.load("low/samples.npz") as arrays:
        assert arrays["x"].shape == (1, 4, 8, 8)
    assert "1 image in grey, used as colour" in shell.err
    out = shell("data inspect mixed")
    assert "1 image with transparent parts (7.png)" in out and "remove the alpha channel from 7.png" in out


def test_the_size_of_a_photo_is_told_plainly(here: None, shell: Shell) -> None:
    save("odd.png", 6, 6, 3)
    message = shell.refuses(
        "sample runs/plain --given odd.png", 3, "odd.png: the image has 6 x 6 pixels in colour, but"
    )
    assert "resized to" not in message and "on the command line" not in message
    save("big.png", 16, 16, 3)
    shell(f"sample runs/plain --given big.png {FAST}")
    assert "warning: big.png is larger than the samples of runs/plain and reduced to their size" in shell.err
    assert "so the answers have 8 x 8 pixels" in shell.err
    assert "to have an image enlarged, give it with 4 x 4 pixels" in shell.err
    shell(f"sample runs/plain --given plain {FAST}")
    assert "warning" not in shell.err
