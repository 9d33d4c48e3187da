"""Pictures come last, and cost nothing when they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from shell import Shell

from scoresde.core.optional import optional


@pytest.mark.parametrize("error", [OSError("disk full"), ImportError("no backend"), ValueError("a\nb"), SystemExit(3)])
def test_what_fails_is_a_warning(error: BaseException) -> None:
    with pytest.warns(UserWarning) as caught, optional("a.png", "the rest is kept"):
        raise error
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    assert str(caught[0].message) == f"a.png was not created ({reason}); the rest is kept"


def test_an_interrupt_is_no_failure() -> None:
    with pytest.raises(KeyboardInterrupt), optional("a.png"):
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("error")
def test_what_works_says_nothing() -> None:
    with optional("a.png"):
        pass


CALLS = {
    "sample runs/moons --n 4 --solver heun --steps 2 --save png,npz,csv,gif,path --frames 2": [
        "samples/heun-seed0/samples.npz", "samples/heun-seed0/samples.csv", "samples/heun-seed0/samples.json",
    ],
    "likelihood runs/moons --limit 2 --no-check": ["likelihood/likelihood.csv"],
    "evaluate runs/moons --n 4 --steps 2 --metrics frechet,copies": ["evaluation/evaluation.json"],
    "bench runs/moons --solvers heun --nfe 4 --n 4": ["bench/bench.csv", "bench/bench.json"],
}  # fmt: skip


@pytest.mark.parametrize("line", CALLS, ids=lambda line: line.split()[0])
def test_no_picture_loses_a_result(shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("no room for a picture")

    monkeypatch.setattr(Figure, "savefig", full)
    monkeypatch.setattr(Image.Image, "save", full)
    shell(f"{line} --quiet")
    assert "warning: " in shell.err and "was not created (RuntimeError: no room for a picture)" in shell.err
    for name in CALLS[line]:
        assert (Path(moons) / name).is_file()
        assert not list((Path(moons) / name).parent.glob("*.png")), "no half picture"


def test_a_sheet_of_images_that_fails_keeps_the_samples(
    shell: Shell, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full)
    out = shell(f"sample {digits} --n 2 --solver heun --steps 2 --quiet")
    assert out.startswith(f"{digits}/samples/heun-seed0/samples.npz") and "grid.png was not created" in shell.err
    assert (Path(digits) / "samples/heun-seed0/samples.json").is_file()
