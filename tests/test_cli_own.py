"""SDEs of the page "Your own SDE in 15 lines", from a user's file in another folder, on the command line.

The classes are read from the page itself, so that what is tested is what a reader copies.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import Shell

from scoresde import load, verify
from scoresde.core.errors import CheckpointError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-sde.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
CLASSES = [block for block in BLOCKS if "(SDE):" in block]
NAMES = re.findall(r"^class (\w+)\(SDE\):", "\n".join(CLASSES), re.M)
HEAD = "from pathlib import Path\nfrom dataclasses import dataclass\n\nimport torch\nfrom scoresde import SDE\n"
MORE = """
Path("imported").touch()


@dataclass(frozen=True)
class Rising(Bands):
    def sigma(self, t):
        return super().sigma(t) * torch.exp(-30 * t * (torch.arange(8) == 7))


@dataclass(frozen=True)
class Columns(SDE):
    coords = (3,)

    def alpha(self, t):
        return torch.exp(-5 * t * torch.tensor([1.0, 2.0]))

    def sigma(self, t):
        return torch.sqrt(t)


@dataclass(frozen=True)
class Whole(Bands):
    coords = 8


@dataclass(frozen=True)
class Named(SDE):
    name: float = 5.0
    kind: str = "a"
    what: str = "b"
    table: str = "c"
    typed: str = "d"

    def alpha(self, t):
        return torch.exp(-self.name * t)

    def sigma(self, t):
        return torch.sqrt(t)


@dataclass(frozen=True)
class Same(SDE):
    theta: float = 1.0
    noise: float = 1.0

    def alpha(self, t):
        return torch.exp(-9 * t)

    def sigma(self, t):
        return torch.sqrt(t)
"""


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``work`` with the user's file ``own.py``, and a folder ``data`` with data."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("own.py").write_text("\n\n".join([HEAD, *CLASSES, MORE]))
    x = rng.normal(size=(120, 2))
    np.savez(tmp_path / "data" / "moons.npz", x=x, given=x + 0.5 * rng.normal(size=x.shape))
    x = rng.normal(size=(120, 3, 2))
    np.savez(tmp_path / "data" / "triangles.npz", x=x - x.mean(1, keepdims=True))
    np.savez(tmp_path / "data" / "curves.npz", x=rng.normal(size=(120, 1, 16)).cumsum(2))
    return tmp_path


TINY = "--preset mlp --set network.width=16 --set network.blocks=1 --batch 16 --quiet"
RUNS = {
    "Reverting": "--data ../data/moons.npz --cond image --space relative",
    "Bands": "--data digits --space basis:dct",
    "Polynomial": "--data ../data/triangles.npz --space zero-mean --layout first",
    "Fields": "--data ../data/curves.npz --space whitened:exponential:0.3 --layout first",
}


def test_the_page_and_the_experiment_have_the_same_classes() -> None:
    assert sorted(NAMES) == sorted(RUNS)
    script = (ROOT / "experiments" / "own_sde.py").read_text(encoding="utf-8")
    for block in CLASSES:
        assert block.strip() in script, block
        assert len([line for line in block.strip().splitlines() if line.strip()]) <= 15
    published = [block for block in BLOCKS if "verify(" in block]
    assert sum(block.count("verify(") for block in published) >= len(RUNS)
    space = {"verify": verify}
    exec("\n".join([HEAD, "import math", *CLASSES, *published]), space)


@pytest.mark.parametrize("name", RUNS)
def test_a_class_of_the_page(name: str, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    shell(f"train --sde own:{name} {RUNS[name]} {TINY} --steps 20 --out runs/a")
    stored = json.loads(Path("runs/a/model.json").read_text())["path"]
    assert stored["name"] == f"own:{name}"
    np.savez("q.npz", given=np.load(away / "data" / "moons.npz")["given"][:3])
    asked = "--given q.npz" if name == "Reverting" else "--n 3"
    for solver in ("ode --rtol 1e-2", "ancestral --steps 4", "multistep --steps 4"):
        out = solver.split()[0]
        shell(f"sample runs/a --sde own:{name} {asked} --solver {solver} --quiet --out {out}")
        drawn = np.load(f"{out}/samples.npz")["x"]
        assert len(drawn) == 3 and np.isfinite(drawn).all() and drawn.std() > 0.05
        if name == "Polynomial":
            assert np.abs(drawn.sum(1)).max() < 1e-4
    phase = f"sample runs/a --sde own:{name} {asked} --solver phase --steps 4 --quiet --out phase"
    if name == "Bands":  # what needs one noise level for all elements of a sample
        shell.refuses(phase, 2, "Bands", "--solver sde")
        for solver in ("edm", "singlestep", "original"):
            shell.refuses(f"sample runs/a --sde own:Bands --n 2 --quiet --solver {solver}", 2, "Bands", "--solver")
        reflow = "reflow runs/a --sde own:Bands --pairs 16 --steps 2 --quiet --out runs/straight"
        shell.refuses(reflow, 2, "reflow requires one alpha and one sigma")
        assert not Path("runs/straight").exists()
    else:
        shell(f"{phase} --set solver.kind=psld")
    given = "--given" if name == "Reverting" else ""
    line = f"likelihood runs/a --sde own:{name} {given} --limit 3 --rtol 1e-1 --no-check --quiet"
    assert np.isfinite(shell.json(line)["sets"][0]["mean"])  # type: ignore[index]
    shell(f"train --resume runs/a --sde own:{name} --steps 24 --quiet")
    assert sorted(path.name for path in Path("runs/a/checkpoints").glob("step-*"))[-1] == "step-000000024"
    # Nothing that a file names is imported.
    sys.modules.pop("own")
    Path("imported").unlink()
    for verb in (f"sample runs/a {asked}", f"likelihood runs/a {given} --limit 2", "train --resume runs/a --steps 30"):
        shell.refuses(f"{verb} --quiet", 3, f"'own:{name}'", "never imported", f"--sde own:{name}")
    shell("info runs/a")
    with pytest.raises(CheckpointError, match="never imported"):
        load("runs/a")
    assert not Path("imported").exists() and "own" not in sys.modules


def test_a_run_is_loaded_with_its_class_and_with_no_other(
    away: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell(capsys)
    shell(f"train --sde own:Reverting --set sde.theta=7 {RUNS['Reverting']} {TINY} --steps 4 --out ../runs/a")
    # From another folder, to which the file was moved under another name.
    (away / "else").mkdir()
    Path("own.py").rename(away / "else" / "mine.py")
    monkeypatch.chdir(away / "else")
    sys.modules.pop("own")
    y = torch.from_numpy(np.load(away / "data" / "moons.npz")["given"][:2])
    np.savez("q.npz", given=y.numpy())
    shell("sample ../runs/a --sde mine:Reverting --given q.npz --solver heun --steps 3 --quiet --out drawn")
    kept = np.load("drawn/samples.npz")["x"]
    import mine  # type: ignore[import-not-found]

    for given in ("mine:Reverting", mine.Reverting, mine.Reverting(7.0)):
        run = load("../runs/a", sde=given)
        assert run.model.domain.sde.theta == 7.0  # type: ignore[attr-defined]
        drawn = run.given(known := run.given_rows(run.data(), torch.arange(1)).condition).sample(1, "heun").x
        assert known is not None and drawn.shape == (1, 2)
    assert np.isfinite(kept).all()
    # Its fields fit, but it is another path.
    shell.refuses("sample ../runs/a --sde mine:Same --given q.npz --quiet", 3, "own:Reverting", "mine:Same")
    with pytest.raises(CheckpointError, match="trained with the 'own:Reverting' SDE, not with 'mine:Same'"):
        load("../runs/a", sde=mine.Same)
    shell.refuses("train --resume ../runs/a --sde mine:Same --steps 9 --quiet", 2, "own:Reverting", "mine:Same")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--sde own:Bands --data moons", r"coords = (1, 8, 8), which do not broadcast to events of shape (2,)"),
        ("--sde own:Columns --data moons", "Columns.alpha(t) has shape (257, 2)"),
        ("--sde own:Whole --data digits", "coords must be a tuple of positive integers"),
        ("--sde own:Rising --data digits", "in coordinate (0, 7, 7)"),
        ("--sde own:Reverting --data ../data/moons.npz --space relative", "needs an image y for each row"),
        ("--sde own:Reverting --data moons --cond image --space relative", "data that have images"),
        ("--sde own:Polynomial --data moons --space zero-mean", "needs samples of points"),
        ("--sde own:Fields --data ../data/curves.npz --space symmetric", "square matrices"),
        ("--sde own:Missing --data moons", "no attribute 'Missing'"),
        ("--sde own:HEAD --data moons", "no attribute 'HEAD'"),
    ],
)
def test_what_does_not_fit_is_one_line(line: str, words: str, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = Shell(capsys).refuses(f"train {line} --steps 2 --quiet --out runs/a", 2, words)
    assert len(message) < 450
    assert not Path("runs/a/config.json").exists()


def test_fields_of_any_name(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    options = " ".join(f"--set sde.{key}={value}" for key, value in {"name": 6, "kind": "x", "typed": "y"}.items())
    shell(f"train --sde own:Named {options} --data moons {TINY} --steps 2 --out runs/a")
    shell("sample runs/a --sde own:Named --n 2 --solver heun --steps 3 --quiet")
    assert load("runs/a", sde="own:Named").model.domain.sde.kind == "x"  # type: ignore[attr-defined]


def test_y_is_missing(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    shell(f"train --sde own:Reverting {RUNS['Reverting']} {TINY} --steps 2 --out runs/a")
    for verb in ("sample runs/a --n 2", "likelihood runs/a --limit 2"):
        shell.refuses(f"{verb} --sde own:Reverting --quiet", 2, "the space 'relative' needs y", "--given")
    np.savez("wide.npz", given=np.zeros((2, 3)))
    shell.refuses("sample runs/a --sde own:Reverting --given wide.npz --quiet", 3, "wide.npz")


def test_pictures_of_paths_with_coordinates(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    shell(f"train --sde own:Bands {RUNS['Bands']} {TINY} --steps 2 --out runs/a")
    shell("plot reverse runs/a --sde own:Bands --n 2 --frames 3 --no-gif --out a.png --quiet")
    shell("plot trajectories runs/a --sde own:Bands --n 4 --steps 4 --out b.png --quiet")
    for sde, data in (("own:Bands", "digits"), ("blur", "digits"), ("parts", "moons")):
        shell(f"plot forward --sde {sde} --data {data} --n 8 --steps 3 --out {data}.png --quiet")
    shell.refuses("plot forward --sde own:Bands --data moons --quiet", 2, "do not broadcast to events of shape (2,)")
    shell("plot schedule --sde own:Bands --out d.png --quiet")  # three of its coordinates
    shell.refuses("plot schedule --sde parts --quiet", 2, "shape is 'auto'")
    shell(f"train --sde parts --data moons {TINY} --steps 2 --out runs/parts")
    shell("plot score-field runs/parts --out c.png --quiet")
