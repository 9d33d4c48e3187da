"""Every command in the manual and the README is run, at a small size, in the order of its page.

A page begins in a folder with what its commands speak of: pictures of cats and dogs, samples of somebody, trained runs
by the names used, modules of one's own. Numbers that set how long a command takes are replaced (:func:`small`).
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from models import gaussian, normals
from PIL import Image

from scoresde import VPSDE, TrainConfig, fit
from scoresde.cli import cli, main
from scoresde.core.registry import resolve
from scoresde.core.tables import PRESETS, SOLVERS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(page for folder in ("", "mathematics", "notebooks") for page in sorted((ROOT / "docs" / folder).glob("*.md"))),
]
# What a command needs that is not here, or why it is expected to fail.
NEEDS = {
    "inception": "torch-fidelity and its weights", "--n 50000": "a call that was interrupted",
    "scoresde tune": "a network whose flow bends", "--solver tuned": "a fit", "--grid fitted": "a fit",
}  # fmt: skip
REFUSED = {"--snr 1 ": 2}


def mymodule() -> str:
    """The blocks of the page on extending in which the classes and functions are defined that its commands name."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    named = set(re.findall(r"mymodule:(\w+)", text))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    return "\n".join(b for b in blocks if named & set(re.findall(r"^(?:class|def) (\w+)", b, re.M)))


def commands(page: Path) -> list[str]:
    """The commands of a page: lines after ``$`` in its code blocks, continued lines joined, comments and pipes cut."""
    found, block = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            block = None if block is not None else []
        elif block is not None:
            whole = f"{block.pop()} {line.lstrip('> ')}" if block and block[-1].endswith(" \\") else line
            block.append(whole.replace(" \\ ", " "))
            if not whole.endswith("\\") and (match := re.match(r"\$ (scoresde .*)", block[-1])):
                found.append(re.split(r"\s#|\s\|\s", match.group(1))[0].strip())
    return [line for line in found if "..." not in line]


# By verb: what an option is set to where a command has it, and what is added where it does not.
SMALL = {
    "train": {"--steps": 2, "--batch": 8, "--size": 8},
    "sample": {"--n": 4, "--steps": 5, "--frames": 3, "--each": 2},
    "likelihood": {"--limit": 3, "--probes": 2, "--importance": 2, "--chain-steps": 3},
    "evaluate": {"--n": 30, "--limit": 30, "--steps": 2, "--each": 3},
    "bench": {"--nfe": "2,3"},
    "tune": {"--nfe": "2,3", "--rows": 8},
    "plot": {"--n": 20},
}
ADDED = {
    "train": {"--steps": 2, "--batch": 8},
    "sample": {"--n": 4},
    "likelihood": {"--limit": 3, "--rtol": 0.1},
    "evaluate": {"--n": 30, "--limit": 30, "--features": "pixels"},
    "bench": {"--nfe": "2,3", "--n": 4},
    "tune": {"--nfe": "2,3", "--rows": 8},
    "reflow": {"--pairs": 16, "--steps": 2},
    "classifier": {"--steps": 2},
}


def small(line: str) -> list[str]:
    """The words of a command with smaller numbers."""
    places = {"RUN": "runs/photos", "NEW": "runs/new"}
    words = [places.get(word, word) for word in shlex.split(line)[1:]]
    resumed = words[0] in ("train", "sample") and "--resume" in words
    for option, most in SMALL.get(words[0], {}).items():
        if option in words:
            words[words.index(option) + 1] = str(4 if resumed else most)
    for option, value in ADDED.get(words[0], {}).items():
        asks = option == "--n" and words[0] == "sample" and {"--given", "--text", "--from"} & set(words)
        known = option == "--features" and "--save-reference" in words
        if option not in words and not (resumed or asks or known):
            words += [option, str(value)]
    if "exact" in words and "--limit" in words:  # one backward pass for each dimension
        words[words.index("--limit") + 1] = "1"
    return words


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of."""
    folder = tmp_path_factory.mktemp("manual")
    rng = np.random.default_rng(0)
    for place in ("photos", "photos_test", "paintings"):
        for i in range(100):
            file = folder / place / ("cats", "dogs")[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    for place in ("captioned", "pairs", "pairs/given"):
        (folder / place).mkdir()
        for i in range(60):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / place / f"{i}.png")
    for i in range(60):
        (folder / "captioned" / f"{i}.txt").write_text(("a black cat", "a white dog")[i % 2])
    for name, size in (("sketch", (8, 8, 3)), ("photo", (8, 8, 3)), ("low", (4, 4, 3)), ("hole", (8, 8))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{name}.png")
    np.savez(folder / "measured.npz", c=np.array([[0.5, -1.0, 0.0]]))
    (folder / "sensors_holes.csv").write_text("a,b,c,age\n0.5,,1.5,2\n,-1.0,,3\n")
    (folder / "mymodule.py").write_text(mymodule())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny = {"steps": 2, "batch": 8}
        fit(TrainConfig(data="photos", cond="class", network_options={"channels": 4}, **tiny), out=Path("runs/photos"))
        for name in ("small", "large", "a", "b", "digits-vp"):
            fit(TrainConfig(data="digits", network_options={"channels": 4}, **tiny), out=Path("runs") / name)
        for name in ("moons-vp", "first"):
            data = "moons" if name == "moons-vp" else "8gaussians"
            fit(TrainConfig(data=data, network_options={"width": 8, "blocks": 1}, **tiny), out=Path("runs") / name)
        np.savez("theirs.npz", x=rng.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8))
        np.savez("three.npz", x=rng.normal(size=(300, 2)), y=np.arange(300) % 3)
        np.save("traces.npy", rng.normal(size=(60, 2, 16)))
        np.save("six.npy", rng.normal(size=(6, 2)).repeat(50, 0))
        _asked(rng, tiny)
        _stated()
        _own()
    return folder


def _stated() -> None:
    """Files for the page on spaces, whose blocks write some of them."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=(60, 1, 8))
    np.savez("pairs.npz", x=y + rng.normal(size=y.shape), given=y)
    np.savez("noisy.npz", given=y[:2])
    Path("prices.csv").write_text("\n".join(["a,b", *(f"{a:.3f},{b:.3f}" for a, b in np.exp(y[:, 0, :2]))]))
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "spaces.md").read_text(encoding="utf-8"), re.M | re.S
    )
    Path("myspace.py").write_text(next(block for block in blocks if "class Mirrored" in block))
    exec(next(block for block in blocks if "molecules.npz" in block), {})


def _own() -> None:
    """The user's file of the page on SDEs of one's own, and the data of its commands."""
    text = (ROOT / "docs" / "own-sde.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    Path("own.py").write_text("\n\n".join(block for block in blocks if "(SDE):" in block or "from scoresde" in block))
    exec(next(block for block in blocks if "tones.npz" in block).replace("4000", "60"), {})
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 2))
    np.savez("copies.npz", x=x, given=x + rng.normal(size=x.shape))
    np.savez("asked.npz", given=x[:2])
    x = rng.normal(size=(60, 3, 2))
    np.savez("triangles.npz", x=x - x.mean(1, keepdims=True))
    np.savez("curves.npz", x=rng.normal(size=(60, 1, 16)).cumsum(2))


def _asked(rng: np.random.Generator, tiny: dict) -> None:
    """Runs that are told something about their samples, and files to ask them with."""
    sides = {"small/a.png": 2, "small/b.png": 2, "photo.png": 8} | {f"captions/{i}.png": 8 for i in range(40)}
    for name, side in sides.items():
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(name)
        if name.startswith("captions"):
            Path(name).with_suffix(".txt").write_text("a red three left of a green seven")
    hole = np.zeros((8, 8), np.uint8)
    hole[2:6, 2:6] = 255
    Image.fromarray(hole).save("hole.png")
    theta = rng.normal(size=(60, 2))
    np.savez("simulations.npz", x=theta, c=theta @ rng.normal(size=(2, 3)))
    Path("observed.csv").write_text("c0,c1,c2\n0.1,0.2,0.3\n")
    lines = [",".join(f"{v:.2f}" for v in row) for row in rng.normal(size=(60, 4))]
    Path("sensors.csv").write_text("\n".join(["a,b,c,age", *lines, ",1.5,0.3,2"]) + "\n")
    Path("gaps.csv").write_text("a,b,c,age\n1,,2,3\n,,0.5,1\n")
    unet, mlp = {"channels": 4}, {"width": 8, "blocks": 1}
    for name, data, cond, network in (
        ("restore", "photos", "grey/hole/pool:4", unet), ("captions", "captions", "text", unet),
        ("inference", "simulations.npz", "vector", mlp), ("sensors", "sensors.csv", "vector:age+cells", mlp),
    ):  # fmt: skip
        fit(TrainConfig(data=data, cond=cond, network_options=network, **tiny), out=Path("runs") / name)


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.stem)
def test_commands(page: Path, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    home = tmp_path / "home"
    shutil.copytree(stage, home)
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    for name, options in PRESETS.items():
        tiny = {"width": 8} if name == "mlp" else {"channels": 4, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
        monkeypatch.setitem(PRESETS, name, {**options, **tiny})
    failed = []
    for line in commands(page):
        if any(word in line for word in NEEDS):
            continue
        fresh = "train" in line and "--resume" not in line
        for taken in re.findall(r"--out (\S+)", line.replace("NEW", "runs/new")) if fresh else ():
            shutil.rmtree(taken, ignore_errors=True)  # a run of that name is there for the pages that only use it
        with pytest.raises(SystemExit) as stop:
            main(small(line))
        said = capsys.readouterr().err
        expected = next((code for text, code in REFUSED.items() if text in f"{line} "), 0)
        if stop.value.code != expected:
            failed.append(f"{line}\n  as {' '.join(small(line))}\n  exit code {stop.value.code}: {said[-400:]}")
    assert not failed, "\n".join(failed)


def test_commands_within_sentences_and_tables_have_the_options_they_name() -> None:
    wrong = []
    for page in PAGES:
        for line in re.findall(r"`(scoresde [a-z][^`]*)`", page.read_text(encoding="utf-8")):
            words, command = shlex.split(line.replace("\n", " "))[1:], cli
            context = click.Context(cli, **cli.context_settings)
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                name = words.pop(0)
                if (found := command.get_command(context, name)) is None:
                    break
                command = found
            else:
                try:
                    command.make_context("scoresde", words, parent=context)
                except click.exceptions.NoSuchOption as error:
                    wrong.append(f"{page.name}: {line}: {error.message}")
                except (click.exceptions.UsageError, click.exceptions.Exit):
                    pass  # a placeholder such as RUN
                continue
            if name.islower() and "..." not in line:
                wrong.append(f"{page.name}: {line}: no command {name}")
    assert not wrong, "\n".join(wrong)


def test_commands_are_found() -> None:
    assert sum(len(commands(p)) for p in PAGES) > 100
    assert "scoresde sample --solver ode --rtol 1e-5" in commands(ROOT / "README.md")


def test_the_tables_of_solvers_say_what_the_code_does() -> None:
    """Names, classes, evaluations in a step, and whether the score is used: docs/mathematics/solvers.md."""
    text = (ROOT / "docs" / "mathematics" / "solvers.md").read_text(encoding="utf-8")
    told = {}
    for line in re.findall(r"^\| `.*\|$", text, re.M):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7:
            names, found, _, _, cost, score, _ = cells
            each = cost.split(", ") if "," in names else [cost]
            for i, name in enumerate(re.findall(r"`(.*?)`", names)):
                told[name] = (re.split(r"[~.`]", found)[-2], each[i % len(each)], score)
    assert set(told) == set(SOLVERS)
    model = gaussian(VPSDE(), dims=2)
    for name, (found, cost, score) in told.items():
        solver = resolve(name, SOLVERS, "solver")()
        assert type(solver).__name__ == found, name
        assert score not in ("yes", "no") or (score == "yes") == solver.needs_score, name
        if cost[0].isdigit() and hasattr(solver, "steps"):
            few, more = (replace(solver, steps=n) for n in (8, 12))
            nfe = [int(s(model, normals(2, 2)).nfe.max()) for s in (few, more)]
            assert nfe[1] - nfe[0] == 4 * int(re.match(r"\d+", cost)[0]), f"{name}: {nfe}"
