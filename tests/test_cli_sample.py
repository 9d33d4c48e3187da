"""``scoresde sample`` with files of one's own: several at once, more answers later, default solvers, and limits."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell

from scoresde import Condition, Guided, Rescaled, Steered, Thresholded, TrainConfig, fit, load, load_data
from scoresde.core.errors import UsageError
from scoresde.solvers import Ancestral, Multistep, Particles, ProbabilityFlow

UNET: dict[str, Any] = {"steps": 2, "batch": 8, "network_options": {"channels": 4}}
MLP: dict[str, Any] = {"steps": 20, "batch": 16, "network_options": {"width": 8, "blocks": 1}}
RUNS: dict[str, dict[str, Any]] = {
    "plain": UNET, "classes": {**UNET, "cond": "class"}, "low": {**UNET, "cond": "pool:2"},
    "both": {**UNET, "cond": "class+pool:2"}, "holes": {**UNET, "cond": "class+cells"},
    "words": {**UNET, "cond": "text"},
    "photos": UNET, "table": {**MLP, "cond": "cells"}, "chain": {**UNET, "cond": "class", "sde": "ddpm"},
}  # fmt: skip
FAST = "--solver multistep --steps 3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("sampled"), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    np.savez(root / "words.npz", x=pictures[:, :1], text=np.array(["red", "blue"] * 20))
    np.savez(root / "photos.npz", x=pictures)
    with (root / "table.csv").open("w") as file:
        file.write("a,b\n" + "".join(f"{rng.normal():.3f},{rng.normal():.3f}\n" for _ in range(60)))
    data = {"words": "words.npz", "photos": "photos.npz", "table": "table.csv"}
    for name, options in RUNS.items():
        own = {"data": str(root / data[name])} if name in data else {}
        fit(TrainConfig(**options, **own), out=root / name, quiet=True)
    return root


@pytest.fixture
def here(runs: Path, shell: Shell) -> Path:
    for name in RUNS:
        shutil.copytree(runs / name, Path("runs") / name)
    for i, x in enumerate(load_data("digits").test[:4].double()):
        for folder, values in (("low", x.reshape(4, 2, 4, 2).mean((1, 3))), ("full", x.reshape(8, 8))):
            Path(folder).mkdir(exist_ok=True)
            Image.fromarray((values / 16 * 255).round().byte().numpy()).save(f"{folder}/{i}.png")
    return Path("runs")


def arrays(folder: str) -> dict[str, np.ndarray]:
    with np.load(Path(folder) / "samples.npz") as found:
        return dict(found)


def files(folder: str) -> list[str]:
    return sorted(p.relative_to(f"{folder}/files").as_posix() for p in Path(folder, "files").rglob("*.png"))


# ------------------------------------------------------------------------------------------------------- several files


def test_a_list_of_files_is_one_question_each(here: Path, shell: Shell) -> None:
    line = f"{FAST} --save npz,files"
    facts: Any = shell.json(f"sample runs/low --given low/0.png low/1.png low/2.png {line} --out list")
    assert "given: 3 images of 4 x 4 from 3 files or folders, used as measurements" in shell.err
    assert facts["given"] == ["low/0.png", "low/1.png", "low/2.png"] and files("list") == [
        "0-0.png",
        "1-0.png",
        "2-0.png",
    ]
    shell(f"sample runs/low --given low/0.png --given low/1.png --given low/2.png {line} --out again")
    shell(f"sample --given low/0.png low/1.png runs/low --given low/2.png {line} --out mixed")
    for other in ("again", "mixed"):
        assert (arrays(other)["x"] == arrays("list")["x"]).all() and files(other) == files("list")
    shutil.copytree("low", "more/low")
    shell(f"sample runs/low --given low --given more {line} --out folders")
    assert files("folders") == sorted(f"{f}low/{i}-0.png" for f in ("", "more/") for i in range(4))
    shell(f"sample runs/low --given low low/0.png {line} --out once")
    assert len(files("once")) == 4, "each image is one question, however often it is named"


def test_files_elsewhere_are_answered_in_the_folder_of_the_samples(here: Path, shell: Shell) -> None:
    Path("deep/er").mkdir(parents=True)
    shutil.copy("low/0.png", "deep/b.png")
    shutil.copy("low/1.png", "a.png")
    given = f"--given deep/er/../b.png --given {Path('a.png').resolve()}"
    shell(f"sample runs/low {given} {FAST} --save npz,files --out o")
    assert files("o") == ["a-0.png", "deep/b-0.png"]


def test_what_cannot_be_given_together_is_refused(here: Path, shell: Shell) -> None:
    np.save("q.npy", np.zeros((1, 1, 4, 4)))
    told = "q.npy is one of 2 given files, but only images and folders of images can be given several at a time"
    shell.refuses(f"sample runs/low --given low/0.png q.npy {FAST}", 3, told, "join the files into one")
    shell(f"sample runs/low --given low full {FAST}", 2)
    assert "unexpected extra argument (full); to pass several files or folders, repeat --given before each" in shell.err
    shell(f"sample runs/low runs/plain {FAST}", 2)
    assert "repeat" not in shell.err
    shell(f"sample runs/plain --from full/0.png full/1.png --at 0.5 --each 2 {FAST} --out o --save npz")
    assert len(arrays("o")["x"]) == 4


def test_likelihood_takes_a_list_of_files_too(here: Path, shell: Shell) -> None:
    x = load_data("digits").test[:20].numpy()
    np.save("a.npy", x)
    np.save("b.npy", x)
    facts: Any = shell.json("likelihood runs/plain --data a.npy b.npy --split all --rtol 1 --no-check --save csv")
    assert len(facts["sets"]) == 2


def test_sizes_that_differ_are_resized_by_hand(here: Path, shell: Shell) -> None:
    Image.open("full/0.png").resize((9, 9)).save("low/9.png")
    for line, expected in (
        ("runs/low --given low", "4 x 4 pixels in grey or 8 x 8 pixels in grey"),
        ("runs/plain --from low", "8 x 8 pixels in grey"),
    ):
        message = shell.refuses(f"sample {line} {FAST}", 3, "the images have 2 different sizes", "9x9 (1: 9.png)")
        assert f"resize the files to what the run expects, {expected}, or give the images of each size alone" in message
        assert "size=" not in message and "--size" not in message


def test_images_that_are_converted_are_counted(here: Path, shell: Shell) -> None:
    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
    Path("p").mkdir()
    colours.save("p/a.png")
    colours.convert("RGBA").save("p/b.png")
    Image.open("full/0.png").save("p/c.png")
    converted = (
        "1 grey and 2 colour images, which are all read as colour\n",
        "1 image with a fully opaque alpha channel",
    )
    for line in ("--given p --seen crop", "--from p"):
        shell(f"sample runs/photos {line} {FAST}")
        assert all(words in shell.err for words in converted)
    shell("interpolate runs/photos p/a.png p/c.png --n 2 --rtol 1")
    assert "p/c.png: 1 image in grey, used as colour as the run expects" in shell.err
    Image.open("full/0.png").convert("RGB").save("grey.png")
    shell(f"sample runs/plain --given grey.png --seen pool:2 {FAST}")
    assert "1 image in colour without any colours, used as grey as the run expects" in shell.err
    colours.putalpha(100)
    colours.save("see-through.png")
    for line in ("--given see-through.png --seen crop", "--from see-through.png"):
        shell(f"sample runs/photos {line} {FAST}")
        assert "1 image with transparent parts (see-through.png), composited on white" in shell.err


# ------------------------------------------------------------------------------------------------- more answers later


def test_more_answers_are_numbered_on(here: Path, shell: Shell) -> None:
    line = f"sample runs/low --given low/0.png low/1.png --each 2 {FAST} --save npz,files"
    shell(f"{line},png --out first")
    facts: Any = shell.json(f"{line} --out more --start 2")
    shell(f"{line} --out last --start 4")
    assert facts["start"] == 2
    assert files("more") == [f"{i}-{k}.png" for i in (0, 1) for k in (2, 3)] and "1-5.png" in files("last")
    found = [arrays(folder) for folder in ("first", "more", "last")]
    assert [f["answer"].tolist() for f in found] == [[0, 1] * 2, [2, 3] * 2, [4, 5] * 2]
    assert all(f["given"].tolist() == [0, 0, 1, 1] for f in found)
    everything = np.concatenate([f["x"] for f in found]).reshape(12, -1)
    assert len(np.unique(everything, axis=0)) == 12, "no answer is drawn twice"
    run = load("runs/low").given(Condition(image=torch.from_numpy(np.stack(
        [np.asarray(Image.open(f"low/{i}.png"), dtype=np.float64)[None] / 255 * 16 for i in range(2)]
    ))), each=2)  # fmt: skip
    assert np.array_equal(run.sample(4, Multistep(steps=3), start=4).x.numpy(), found[1]["x"])


def test_more_answers_fill_more_lines(here: Path, shell: Shell) -> None:
    Path("gaps.csv").write_text("a,b\n0.1,\n,0.2\n")
    shell(f"sample runs/table --given gaps.csv {FAST} --start 3 --out o")
    with open("o/filled.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["question"], row["answer"]) for row in rows] == [("0", "3"), ("1", "3")]


def test_samples_without_questions_are_numbered_on(here: Path, shell: Shell) -> None:
    shell(f"sample runs/plain --n 2 --start 5 {FAST} --save npz,path --frames 2 --out o")
    assert arrays("o")["index"].tolist() == [5, 6]
    with np.load("o/path.npz") as found:
        assert found["index"].tolist() == [5, 6]
    shell.refuses(f"sample runs/plain --n 3 --start 5 {FAST} --save npz --out o --resume", 2, "and --start 7")


# ------------------------------------------------------------------------------------------------------ the newest run


def test_every_command_says_that_it_took_the_newest_run(here: Path, shell: Shell) -> None:
    for name in RUNS:
        if name != "plain":
            shutil.rmtree(here / name)
    told = "no run is named, so the newest is used: runs/plain\n"
    for line in (
        f"sample --n 2 {FAST}", "likelihood --limit 2 --rtol 1 --no-check",
        "interpolate full/0.png full/1.png --n 2 --rtol 1",
        "plot reverse --steps 2 --n 1 --no-gif", "evaluate --n 8 --steps 2 --metrics sliced --features pixels",
        "bench --solvers heun --nfe 4 --n 8",
    ):  # fmt: skip
        shell(line)
        assert shell.err.count(told) == 1, (line, shell.err)
    shell(f"sample runs/plain --n 2 {FAST}")
    assert "no run is named" not in shell.err
    shell(f"sample --n 2 {FAST} --quiet")
    assert "no run is named" not in shell.err


# ----------------------------------------------------------------------------------------------------- default solvers


def test_conditions_and_measurements_are_solved_in_fixed_steps(here: Path, shell: Shell) -> None:
    given: Any = shell.json("sample runs/low --given low/0.png")
    assert (given["solver"], given["options"]["steps"], given["nfe_max"]) == ("multistep", 30, 31)
    named: Any = shell.json("sample runs/low --given low/0.png --rtol 0.1")
    assert named["solver"] == "ode" and "multistep" in shell("sample --help")
    fewer: Any = shell.json("sample runs/classes --label 3 --n 2 --steps 4")
    assert (fewer["solver"], fewer["nfe_max"]) == ("multistep", 5)
    assert shell.json("sample runs/classes --n 2 --rtol 0.1")["solver"] == "ode"
    shell.refuses("sample runs/classes --n 2 --steps 4", 2, "steps")


def test_the_default_solver_of_a_run_in_python(here: Path) -> None:
    run, x = load("runs/classes"), load_data("digits").test[:1].double()
    assert isinstance(run.default_solver, ProbabilityFlow) and isinstance(run.near(x).default_solver, ProbabilityFlow)
    assert run.given("3").default_solver == run.given("3").guided(2.0).default_solver == Multistep(30)
    measured, steered = run.measured("pool:2", x), run.steered(lambda e: -e.x0.square().sum((1, 2, 3)))
    assert measured.default_solver == Ancestral(50) and steered.default_solver == Multistep(50)
    assert torch.equal(measured.sample(1).x, measured.sample(1, Ancestral(50)).x)
    chain = load("runs/chain").given("3")
    assert bool(chain.sample(1).solution.ok.all())


# -------------------------------------------------------------------------------------------------------------- limits


def test_limits_are_what_the_library_does(here: Path, shell: Shell) -> None:
    line = f"sample runs/classes --label 3 --guidance 4 --n 2 {FAST}"
    plain: Any = shell.json(f"{line} --out plain")
    facts: Any = shell.json(f"{line} --rescale 0.7 --threshold 0.9 --out limited")
    assert facts["rescale"] == 0.7 and facts["threshold"] == 0.9 and "rescale" not in plain
    run = load("runs/classes")
    bound = run.limited(0.7, 0.9).given("3").guided(4.0)
    model = Thresholded(Rescaled(Guided(run.given("3").model, run.given(None).model, 4.0), 0.7), 0.9, 1.0)
    want = replace(run, base=model).sample(2, Multistep(steps=3)).x
    assert np.array_equal(arrays("limited")["x"], want.numpy()) and torch.equal(
        bound.sample(2, Multistep(steps=3)).x, want
    )
    assert not np.array_equal(arrays("limited")["x"], arrays("plain")["x"])
    shell.refuses(f"{line} --rescale 0.7 --threshold 0.8 --out limited --resume", 2, "threshold 0.8 instead of")
    shell.refuses(f"{line} --out limited --resume", 2, "does not match")
    assert "rescaled by 0.7, limited at the quantile 0.9" in repr(bound)
    assert torch.equal(bound.limited().sample(2, Multistep(steps=3)).x, run.given("3").guided(4.0).sample(
        2, Multistep(steps=3)).x)  # fmt: skip


def test_limits_of_a_steered_and_of_a_measured_run(here: Path) -> None:
    run, x = load("runs/plain"), load_data("digits").test[:1].double()

    def bright(estimate: Any) -> torch.Tensor:
        return 50 * estimate.x0.mean((1, 2, 3))

    steered = run.steered(bright).limited(rescale=1.0)
    inner = Rescaled(Steered(run.model, bright), 1.0)
    assert torch.equal(steered.sample(2, Multistep(3)).x, replace(run, base=inner).sample(2, Multistep(3)).x)
    with pytest.raises(UsageError, match="has neither"):
        steered.sample(2, Particles(2, particles=2))
    measured = run.limited(threshold=0.9).measured("pool:2", x, noise=1.0)
    assert bool(measured.sample(2, Particles(2, particles=2)).solution.ok.all())
    assert measured.model.domain.kind == "measured model" and not measured.model.domain.consistent


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("runs/plain --rescale 0.7", "rescale=0.7 restores the contrast of the model without guidance"),
        ("runs/classes --label 3 --rescale 0.7", "neither guided nor steered"),
        ("runs/table --threshold 0.9", "has vectors, whose values have no common range; leave out the threshold"),
        ("runs/classes --label 3 --guidance 2 --threshold 0", "0.0 is not in the range x>0"),
        ("runs/classes --label 3 --guidance 2 --rescale 2", "it must be"),
        ("runs/plain --threshold 0.9 --solver particles", "has neither"),
    ],
)
def test_limits_that_have_no_meaning_are_refused(here: Path, shell: Shell, line: str, words: str) -> None:
    shell(f"sample {line} --n 2", 2)
    assert words in " ".join(shell.err.split())


# -------------------------------------------------------------------------------------------------- a class and a rule


def test_a_class_beside_a_rule(here: Path, shell: Shell) -> None:
    line = f"--given low/0.png --seen pool:2 --rule projection --label 3 {FAST} --save npz"
    told = "--label 3 cannot be combined with a rule: the network was trained with class+pool:2"
    message = shell.refuses(f"sample runs/both {line}", 2, told, "leave out --label 3")
    assert "a condition without a measurement by pool:2, which the rule does not tell it" in message
    shell(f"sample runs/words {line.replace('--label 3', '--text red')}")
    # A network that was trained with random cells has also seen a class without any cell.
    facts: Any = shell.json(f"sample runs/holes {line}")
    assert facts["label"] == "3" and facts["rule"] == "projection" and facts["operator"] == "pool:2"
    run = load("runs/holes")
    y = torch.from_numpy(np.asarray(Image.open("low/0.png"), dtype=np.float64))[None, None] / 255 * 16
    blank = Condition(label=torch.tensor([3]), image=torch.full((1, 1, 8, 8), torch.nan))
    want = run.given(blank).measured("pool:2", y, rule="projection").sample(1, Multistep(steps=3)).x
    found = next(Path(file) for file in facts["files"] if file.endswith("npz"))
    assert np.array_equal(arrays(str(found.parent))["x"], want.numpy())
