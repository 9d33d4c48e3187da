"""Spaces on the command line, from a user's files in another folder: train, sample, likelihood, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell

from scoresde import Condition, Dataset, TrainConfig, fit, load
from scoresde.core.errors import CheckpointError, DataError, UsageError
from scoresde.run.questions import read_questions

ROWS = 120
OWN = """
import math
from dataclasses import dataclass
from pathlib import Path
from scoresde.codec import Space

Path("imported").touch()

@dataclass(frozen=True, eq=False, repr=False)
class Turned(Space):
    factor: float = 2.0
    def to_model(self, x, condition=None, noise=None): return self.factor * x.flip(-1)
    def to_data(self, m, condition=None): return m.flip(-1) / self.factor
    def log_det(self, x, condition=None): return x[0].numel() * math.log(self.factor)
"""


def sizes() -> np.ndarray:
    return np.arange(ROWS) % 3 + 3


def arrays(name: str) -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    if name == "pairs":
        y = r.normal(size=(ROWS, 1, 8)).astype(np.float32)
        return {"x": y + 0.3 * r.normal(size=y.shape).astype(np.float32) + 5, "given": y + 5}
    if name == "curves":
        return {"x": r.normal(size=(ROWS, 1, 8)).cumsum(2).astype(np.float32)}
    if name == "points":
        x = r.normal(size=(ROWS, 5, 2))
        return {"x": (x - x.mean(1, keepdims=True)).astype(np.float32)}
    mask = np.arange(5) < sizes()[:, None]
    x = np.where(mask[..., None], r.normal(size=(ROWS, 5, 2)), 0)
    x = x - x.sum(1, keepdims=True) / sizes()[:, None, None]
    return {"x": np.where(mask[..., None], x, np.nan).astype(np.float32), "mask": mask}  # padded with NaN


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("pairs", "curves", "points", "padded"):
        np.savez(tmp_path / "data" / f"{name}.npz", **arrays(name))
    np.save(tmp_path / "data" / "cov.npy", np.exp(-np.abs(np.subtract.outer(np.arange(8.0), np.arange(8.0))) / 2))
    return tmp_path


SMALL = "--set network.channels=4 --set network.multipliers=1 --set network.attention=9 --layout first"


@pytest.mark.parametrize(
    ("data", "space", "cond"),
    [
        ("pairs", "relative", "image"),
        ("curves", "basis:dct", "none"),
        ("curves", "whitened:../data/cov.npy", "none"),
        ("points", "zero-mean", "none"),
        ("padded", "masked+zero-mean", "none"),
    ],
)
def test_a_run_in_a_space(data: str, space: str, cond: str, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    train = f"train --data ../data/{data}.npz --space {space} --cond {cond} --batch 16 --quiet --out runs/a"
    shell(f"{train} --steps 20 {SMALL}")
    stored = json.loads(Path("runs/a/model.json").read_text())["codec"]
    assert [part["name"] for part in stored] == ["affine", *(part.partition(":")[0] for part in space.split("+"))]
    (away / "data" / "cov.npy").unlink()  # the matrix is stored with the run
    assert f"space        {space}" in shell("info runs/a")
    np.savez("q.npz", given=arrays("pairs")["given"][:3])
    given = " --given q.npz" if cond == "image" else " --n 3"
    drawn = []
    for solver in ("ode --rtol 1e-2", "ancestral --steps 4", "multistep --steps 4"):
        out = solver.split()[0]
        shell(f"sample runs/a{given} --solver {solver} --quiet --out {out}")
        drawn.append(np.load(f"{out}/samples.npz")["x"])
        assert np.isfinite(drawn[-1]).all() and drawn[-1].std() > 0.05
    for x in drawn:
        if "zero-mean" in space:
            assert np.abs(x.sum(1)).max() < 1e-4
        if data == "padded":
            assert set(np.unique((x != 0).all(2).sum(1))) <= {3, 4, 5} and bool((x == 0).any())
            with np.load("ode/samples.npz") as kept:
                assert np.array_equal(kept["mask"], kept["x"] != 0)
    shell(f"sample runs/a{given} --start 4 --solver heun --steps 3 --save npz,path --quiet --out seen")
    with np.load("seen/path.npz") as path, np.load("seen/samples.npz") as last:
        assert np.isfinite(path["x"]).all() and np.array_equal(path["x"][-1], last["x"])
        if data == "padded":
            assert (path["x"][:, ~last["mask"]] == 0).all()
    told = " --given" if cond == "image" else ""
    found = shell.json(f"likelihood runs/a{told} --limit 4 --rtol 1e-2 --no-check --elbo --quiet --save npz")
    assert np.isfinite(found["sets"][0]["mean"])  # type: ignore[index]
    if data == "padded":
        with np.load("runs/a/likelihood/likelihood.npz") as kept:
            assert np.isfinite(kept["log_prob"]).all()
    shell("train --resume runs/a --steps 24 --quiet")
    assert sorted(path.name for path in Path("runs/a/checkpoints").glob("step-*"))[-1] == "step-000000024"
    if cond == "image":
        shell.refuses("sample runs/a --n 2 --quiet", 2, "the space 'relative' needs y", "--given")
        shell.refuses("likelihood runs/a --limit 2 --quiet", 2, "the space 'relative' needs y")
    else:
        # Measured samples move in the coordinates of the data, which a space changes.
        np.savez("seen.npz", x=np.nan_to_num(arrays(data)["x"][:2]))
        shell.refuses("sample runs/a --seen blur --given seen.npz --quiet", 2, "stated in the space", "train without")
    capsys.readouterr()


def test_a_space_of_the_user_is_named_again(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("turned.py").write_text(OWN)
    shell = Shell(capsys)
    shell("train --data moons --space turned:Turned --steps 20 --batch 16 --quiet --out runs/own")
    assert Path("imported").exists()
    kept = json.loads(Path("runs/own/model.json").read_text())["codec"][-1]
    assert kept == {"name": "turned:Turned", "options": {"factor": 2.0}}
    shell("info runs/own")
    for line in ("sample runs/own --n 2", "likelihood runs/own --limit 2", "train --resume runs/own --steps 22"):
        shell.refuses(f"{line} --quiet", 3, "never imported", "--space turned:Turned")
        shell(f"{line} --quiet --space turned:Turned")
    shell.refuses("sample runs/own --n 2 --space turned:Other --quiet", 3, "trained with the spaces turned:Turned")
    shell.refuses("train --resume runs/own --space basis --steps 30", 2, "--space basis", "turned:Turned")
    with pytest.raises(CheckpointError, match="space="):
        load("runs/own")
    import turned  # type: ignore[import-not-found]

    for given in ("turned:Turned", turned.Turned, turned.Turned(2.0)):
        assert load("runs/own", space=given).sample(3, seed=1).x.shape == (3, 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--data moons --space dct", "unknown space 'dct'"),
        ("--data digits --space zero-mean", "continuous data"),
        ("--data moons --space zero-mean", "needs samples of points"),
        ("--data moons --space log", "positive data"),
        ("--data moons --space masked", "array 'mask'"),
        ("--data moons --space relative", "needs an image y for each row"),
        ("--data ../data/points.npz --space symmetric --layout first", "square matrices"),
        ("--data ../data/points.npz --space zero-mean:1 --layout first", "centre of row"),
        ("--data ../data/padded.npz --space masked+basis --layout first", "padded rows cannot be combined"),
        ("--data ../data/curves.npz --space whitened:gaussian:9", "singular"),
        ("--data digits --space basis --sde ddpm --set learn_variance=true", "learn_variance cannot be used"),
        ("--data moons --space nowhere:Mine", "no module 'nowhere'"),
    ],
)
def test_a_space_that_does_not_fit_is_one_line(
    line: str, words: str, away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(capsys)
    code = 3 if words in ("positive data", "centre of row") else 2  # data outside the space, or settings
    message = shell.refuses(f"train {line} --steps 2 --quiet --out runs/a", code, words)
    assert len(message) < 500
    assert not Path("runs/a/config.json").exists()


def test_pictures_to_drift_to_are_in_the_units_of_the_samples(away: Path) -> None:
    """y equals x in data units, so z = x - y is 0: the given pictures are not scaled by a range of their own."""
    y = torch.from_numpy(arrays("pairs")["given"])
    data = Dataset.of(3 * y + 2, given=Condition(image=3 * y + 2))
    run = fit(
        TrainConfig(space="relative", cond="image", steps=2, batch=8), data=data, save=False, quiet=True
    )  # fmt: skip
    known = run.given_rows(data, torch.arange(4))
    assert float(known.to_model(data.test[:4]).abs().max()) < 1e-5


def test_each_column_drifts_to_its_own_y(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The columns of a table have scales of their own, and so have the values to which they drift."""
    x = np.random.default_rng(0).normal(size=(200, 2)) * (1, 20) + (3, 100)
    np.savez("table.npz", x=x, given=x)
    Shell(capsys)("train --data table.npz --cond image --space relative --steps 2 --batch 8 --quiet --out runs/a")
    run = load("runs/a")
    assert isinstance(run.info.known.low, tuple)
    known = run.given_rows(run.data(), torch.arange(4))
    assert float(known.to_model(run.data().test[:4]).abs().max()) < 1e-5
    np.savez("q.npz", given=x[:2])
    Shell(capsys)("sample runs/a --given q.npz --quiet --out drawn")
    np.savez("wide.npz", x=x, given=np.ones((200, 3)))
    Shell(capsys).refuses(
        "train --data wide.npz --cond image --space relative --steps 2 --quiet --out runs/b", 2, "(2,)", "(3,)"
    )


def test_pictures_of_a_file_to_drift_to_have_the_levels_of_the_samples(
    away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.savez("pictures.npz", x=y, given=y)
    network = "--set network.channels=4 --set network.multipliers=1 --set network.attention=9"
    Shell(capsys)(
        f"train --data pictures.npz --cond image --space relative --steps 2 --batch 8 {network} --quiet --out runs/a"
    )
    Image.fromarray(y[0, 0]).save("y.png")
    asked = read_questions(load("runs/a"), Path("y.png"))
    assert np.array_equal(asked.condition.image[0].numpy(), y[0].astype(float))


def test_a_bound_condition_moves_with_the_rows(away: Path) -> None:
    data = arrays("padded")
    made = Dataset.of(np.nan_to_num(data["x"]), given=Condition(mask=torch.from_numpy(data["mask"])), layout="first")
    network = {"channels": 4, "multipliers": (1,), "attention": ()}
    config = TrainConfig(space="masked+zero-mean", steps=2, batch=8, network_options=network)
    run = fit(config, data=made, save=False, quiet=True, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([3, 5, 4])[:, None]
    drawn = run.masked(mask).sample(3, "ancestral", seed=4)
    assert torch.equal((drawn.x != 0).all(2), mask)
    alone = run.masked(mask[1:2]).sample(1, "ancestral", seed=4, start=1)
    torch.testing.assert_close(alone.x[0], drawn.x[1], rtol=1e-9, atol=1e-9)
    assert torch.equal(run.sample(2, seed=1, start=3).x != 0, run.sample(5, seed=1).x[3:] != 0)
    near = run.near(made.test[:1], 0.3).masked(made.test_given.mask[:1])  # type: ignore[index]
    assert near.sample(1, "heun").x.shape == (1, 5, 2)
    with pytest.raises(UsageError, match="needs the mask of each row"):
        run.log_likelihood(made.test[:2])
    with pytest.raises(DataError, match="centre of row 0"):
        run.masked(mask[:1]).log_likelihood(torch.ones(1, 5, 2))
    with pytest.raises(UsageError, match="a mask must be true or false"):
        run.masked(torch.ones(2, 4))
    assert torch.equal(run.masked(mask).given().condition.mask, mask[..., None].expand(3, 5, 2))  # type: ignore[union-attr]
    plain = fit(TrainConfig(data="moons", steps=2, batch=8), save=False, quiet=True)
    assert plain.masked(mask) is plain
    with pytest.raises(UsageError, match="without padded rows"):
        plain.given(Condition(mask=torch.ones(2, 2)))
