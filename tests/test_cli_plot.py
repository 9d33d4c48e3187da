"""The pictures and the demonstration on the command line."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from shell import Shell

from scoresde import load
from scoresde.cli import cli
from scoresde.study.single_image import EXAMPLE, read_picture


def drawn(path: str) -> np.ndarray:
    """A picture that is not blank."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 5
    return pixels


# -------------------------------------------------------------------------------------------------------------- plot


def test_schedule_needs_no_run(shell: Shell, own: Path) -> None:
    assert shell("plot schedule --sde vp,ve --set vp.beta_max=10") == "schedule.png\n"
    assert drawn("schedule.png").shape[1] > 1000
    found = shell.json("plot schedule --sde mysde:MySDE,flow --out a/b.svg")
    assert found["files"] == ["a/b.svg"] and list(found["sdes"]) == ["mysde:MySDE", "flow"]  # type: ignore[call-overload]
    assert Path("a/b.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plot schedule --sde vp,vpp", ["'vpp'", "did you mean", "'vp'"]),
        ("plot schedule --sde ,", ["--sde", "name at least one"]),
        ("plot schedule --set ve.sigma_max=3", ["--set ve.sigma_max=3", "vp.NAME=VALUE"]),
        ("plot schedule --set vp.beta=3", ["'beta'", "beta_max"]),
        ("plot schedule --set vp.beta_max=abc", ["SDE 'vp': beta_max is 'abc'; it must be a number\n"]),
        ("plot schedule --out a.gif", ["--out a.gif", "cannot be written as .gif; choose from: pdf, png, svg\n"]),
        ("plot schedule --out png", ["cannot be written as a file without a suffix"]),
        ("plot forward --sde nope", ["'nope'", "vp"]),
        ("plot forward --grid nope", ["'nope'", "karras"]),
        ("plot nothing", ["unknown command 'nothing'", "schedule"]),
        ("plot reverse --solver nope", ["'nope'", "heun"]),
        ("plot reverse --solver ode --steps 4", ["'ode'", "steps"]),
        ("plot reverse --label 3", ["trained without labels"]),
        ("plot reverse --out a.jpg", ["a.jpg", "png"]),
        ("plot score-field --exact", ["moons", "8gaussians", "plot compass"]),
        ("plot score-field --times 0.1,x", ["0.1,x", "0.05,0.2,0.5"]),
        ("plot score-field --times 2", ["must be between 0.001 and 1"]),
        ("plot trajectories --solver heun", ["heun", "is not stochastic", "em"]),
        ("plot trajectories --solver ode", ["ode", "steps"]),
    ],
)
def test_usage_errors(shell: Shell, moons: str, line: str, words: list[str]) -> None:
    shell.refuses(line, 2, *words)
    assert sorted(p.name for p in Path().iterdir()) == ["runs"], "nothing is left of a refused command"


def test_score_fields_are_for_the_plane(shell: Shell, digits: str) -> None:
    shell.refuses("plot score-field", 2, "in the plane", "1 x 8 x 8", "plot compass")


@pytest.mark.parametrize("verb", ["reverse", "score-field", "trajectories", "compass", "loss-by-noise"])
def test_without_a_run_there_is_a_word(shell: Shell, verb: str) -> None:
    shell.refuses(f"plot {verb}", 3, "runs", "train")
    shell.refuses(f"plot {verb} runs/nothing", 3, "nothing")
    assert list(Path().iterdir()) == []


def test_data_that_is_not_there(shell: Shell) -> None:
    shell.refuses("plot forward --data moon", 3, "'moon'", "moons")


@pytest.mark.parametrize("kind", ["image", "signal", "vector"])
def test_forward_shows_any_kind_of_data(shell: Shell, kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = {"image": (40, 1, 6, 5), "signal": (40, 2, 12), "vector": (400, 2)}[kind]
    np.save("x.npy", rng.normal(size=shape).astype(np.float32))
    found = shell.json("plot forward --data x.npy --sde flow --steps 3 --n 4")
    assert found["files"] == ["forward.png"] and found["n"] == 4
    times = found["t"]
    assert isinstance(times, list) and len(times) == 4 and times[0] < 1e-4 and times[-1] == 1
    assert all(0.5 < value < 1.5 for value in found["noise_std"].values())  # type: ignore[attr-defined]
    drawn("forward.png")


def test_forward_takes_another_grid_and_sde(shell: Shell) -> None:
    found = shell.json("plot forward --sde ve --set sde.sigma_max=10 --n 1 --steps 2 --grid logsnr --seed 4")
    assert found["sde"] == "VESDE(sigma_min=0.01, sigma_max=10.0)" and found["seed"] == 4


def test_reverse_writes_a_strip_and_a_gif(shell: Shell, digits: str) -> None:
    found = shell.json(f"plot reverse {digits} --n 2 --steps 2 --columns 3 --frames 5")
    assert found["files"] == [f"{digits}/plots/reverse.png", f"{digits}/plots/reverse.gif"]
    assert found["nfe_mean"] == 4 and "steps=2" in str(found["solver"])
    drawn(f"{digits}/plots/reverse.png")
    with Image.open(f"{digits}/plots/reverse.gif") as moving:
        assert moving.n_frames == 5  # type: ignore[attr-defined]
    out = shell(f"plot reverse {digits} --n 2 --solver ddim --steps 2 --columns 3 --no-gif --out a.png")
    assert out == "a.png\n" and not Path("a.gif").exists()


def test_pictures_of_points(shell: Shell, moons: str) -> None:
    assert shell("plot reverse --n 30 --steps 2 --columns 3 --no-gif") == f"{moons}/plots/reverse.png\n"
    found = shell.json("plot score-field --times 0.05,0.5")
    assert found["t"] == [0.05, 0.5] and found["files"] == [f"{moons}/plots/score-field.png"]
    found = shell.json("plot trajectories --n 20 --steps 3 --paths 3 --out t.png")
    assert found["files"] == ["t.png"] and found["projection"] == "first coordinate"
    assert 0 < found["w2_flow_sde"] < 10  # type: ignore[operator]
    found = shell.json("plot compass --n 8 --levels 4 --out c.png")
    assert len(found["cosine"]) == len(found["error"]) == len(found["log_snr"]) == 4  # type: ignore[arg-type]
    assert "18,000 training samples" in str(found["against"])
    for file in (f"{moons}/plots/reverse.png", f"{moons}/plots/score-field.png", "t.png", "c.png"):
        drawn(file)


def test_trajectories_and_compass_of_images(shell: Shell, digits: str) -> None:
    found = shell.json("plot trajectories --n 4 --steps 3")
    assert found["projection"] == "first principal axis"
    found = shell.json("plot compass --n 4 --levels 3")
    assert "1,617 training samples" in str(found["against"]) and found["n"] == 4


def test_the_exact_score_below_the_learned_one(shell: Shell) -> None:
    shell("train --data 8gaussians --steps 2 --batch 8 --set network.width=8 --set network.blocks=1 --quiet")
    one = shell.json("plot score-field --out a.png")
    both = shell.json("plot score-field --out b.png --exact")
    assert one["log_snr"] == both["log_snr"] == pytest.approx([6, 3, 0, -3])
    assert drawn("b.png").shape[0] > 1.7 * drawn("a.png").shape[0]
    assert "density" in str(shell.json("plot compass --n 4 --levels 3")["against"])


def test_a_picture_that_cannot_be_written(shell: Shell, moons: str) -> None:
    Path("taken").write_text("a file")
    shell.refuses("plot compass --n 2 --levels 2 --out taken/c.png", 3, "taken/c.png", "--out")


# -------------------------------------------------------------------------------------------------------------- demo


def test_a_single_image_becomes_a_run(shell: Shell) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save("cat.png")
    line = "demo single-image cat.png --size 16 --steps 1 --columns 3 --frames 3"
    found = shell.json(line)
    assert "training on one picture, cat.png at 16 x 11 pixels" in shell.err
    assert found["shape"] == [3, 11, 16] and found["step"] == 1 and found["rms_error"] > 0  # type: ignore[operator]
    folder = str(found["run"])
    assert folder == "runs/single-image"
    for file in found["files"]:  # type: ignore[attr-defined]
        assert Path(file).parent == Path(folder, "plots") and Path(file).exists()
    drawn(f"{folder}/plots/denoising.png")
    # A run like any other.
    assert load(folder).info.shape == (3, 11, 16)
    shell(f"sample {folder} --n 2 --solver heun --steps 2")
    shell(f"plot compass {folder} --n 2 --levels 3")
    assert json.loads(Path(folder, "data.json").read_text())["n_train"] == 64


def test_the_lighthouse_is_in_the_package(shell: Shell) -> None:
    picture = read_picture(EXAMPLE, 64)
    assert picture.shape == (3, 64, 64)
    red, green, blue = picture.astype(float)
    tower = (slice(35, 38), slice(18, 20))  # a red band
    assert red[tower].min() > green[tower].max() + 80
    assert blue[:5].mean() > red[:5].mean(), "the sky is blue at the top"
    found = shell.json("demo single-image --size 8 --steps 1 --columns 2 --frames 2 --out x --quiet")
    assert found["picture"] == str(EXAMPLE) and shell.err == ""


def test_pictures_are_turned_laid_on_white_and_kept_if_small(tmp_path: Path) -> None:
    clear = np.zeros((12, 9, 4), dtype=np.uint8)
    clear[:6] = [255, 0, 0, 255]
    Image.fromarray(clear).save(tmp_path / "clear.png")
    picture = read_picture(tmp_path / "clear.png", 64)
    assert picture.shape == (3, 12, 9)
    assert picture[:, 0, 0].tolist() == [255, 0, 0] and picture[:, 11, 0].tolist() == [255, 255, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    Image.fromarray(clear[..., :3]).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", 64).shape == (3, 9, 12)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", ["none.png does not exist"]),
        ("text.png", ["not a readable picture"]),
        ("thin.png", ["32 x 1", "8"]),
    ],
)
def test_bad_pictures(shell: Shell, name: str, words: list[str]) -> None:
    Path("text.png").write_text("words")
    Image.new("RGB", (640, 16)).save("thin.png")
    shell.refuses(f"demo single-image {name} --size 32", 3, *words)
    assert not Path("runs").exists()


# ----------------------------------------------------------------------------------------------------------- gallery


def test_the_commands_of_the_gallery_are_ones_and_the_page_shows_what_they_make() -> None:
    """They run when the manual is built; here they are only parsed."""
    docs = Path(__file__).parents[1] / "docs"
    spec = importlib.util.spec_from_file_location("gallery", docs / "gallery.py")
    assert spec is not None and spec.loader is not None
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    page = (docs / "gallery.md").read_text()
    assert re.findall(r"{made-by} (.*)", page) and set(re.findall(r"{made-by} (.*)", page)) == set(gallery.COMMANDS)
    made = set()
    for line in (line for lines in gallery.COMMANDS.values() for line in lines):
        program, *words = line.split()
        command = cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        parsed = command.make_context(program, words).params
        if command.name not in ("train", "single-image"):
            made.add(str(parsed["out"]))
    shown = {*re.findall(r"_gallery/([\w-]+\.png)", page), *re.findall(r'<iframe src="(pages/[\w-]+\.html)"', page)}
    assert shown == made


def test_every_verb_of_the_groups_is_here() -> None:
    assert set(cli.commands["plot"].commands) == {  # type: ignore[attr-defined]
        "schedule", "forward", "reverse", "score-field", "trajectories", "compass", "loss-by-noise",
    }  # fmt: skip
    assert set(cli.commands["demo"].commands) == {"single-image"}  # type: ignore[attr-defined]
