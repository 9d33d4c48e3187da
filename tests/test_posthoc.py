"""Averages computed after training, against averages kept during training, and the runs that are made of them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import edit, unsigned
from shell import Shell
from torch import Tensor

from scoresde import Run, TrainConfig, averaged, fit, load
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.files import read_tensors
from scoresde.run.files import newest_checkpoint
from scoresde.run.profiles import Power, coefficients
from scoresde.train.posthoc import averages
from scoresde.train.snapshots import planned, snapshots

SMALL = {"width": 16, "blocks": 1}
CONFIG = TrainConfig(
    data="moons", steps=320, batch=32, lr=0.01, network_options=SMALL, ema="0.9999,power:0.05,power:0.1", snapshots=32
)
PAIR = (Power(0.05), Power(0.1))
WIDTHS = (0.05, 0.08, 0.1, 0.15, 0.2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with snapshots, and beside it one that keeps the averages of all widths to the same weights."""
    root = tmp_path_factory.mktemp("kept")
    fit(CONFIG, out=root / "run", quiet=True)
    direct = replace(CONFIG, ema=tuple(map(Power, WIDTHS)), snapshots=0)  # type: ignore[arg-type]
    fit(direct, out=root / "direct", quiet=True)
    return root


@pytest.fixture
def run(kept: Path, shell: Shell) -> str:
    """The run with snapshots, in the folder of the shell."""
    shutil.copytree(kept / "run", "runs/moons")
    return "runs/moons"


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The relative difference of two sets of weights."""
    assert a.keys() == b.keys()
    x, y = (torch.cat([value.flatten().double() for _, value in sorted(c.items())]) for c in (a, b))
    return float((x - y).norm() / y.norm())


def walked(steps: int, widths: tuple[float, ...], taken: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Averages of weights that drift and jitter, at the end (J, D) and at the steps ``taken`` (N, J, D), in float64."""
    rng = np.random.default_rng(0)
    goal, jitter, decays = rng.normal(size=200), np.zeros(200), [Power(width) for width in widths]
    found, snaps = np.zeros((len(widths), 200)), []
    for n in range(1, steps + 1):
        jitter = 0.98 * jitter + 0.02 * rng.normal(size=200)
        weights = goal * (1 - math.exp(-4 * n / steps)) + jitter
        decay = np.array([profile(n) for profile in decays])[:, None]
        found = decay * found + (1 - decay) * weights
        if n in taken:
            snaps.append(found)
    return found, np.stack(snaps)


@pytest.mark.parametrize(("count", "narrow", "wide"), [(64, 1e-4, 5e-3), (16, 5e-3, 5e-3)])
def test_against_averages_kept_on_a_simulated_path(count: int, narrow: float, wide: float) -> None:
    steps = 6_400
    taken = planned(steps, count)
    direct, stored = walked(steps, WIDTHS, taken)
    for number, width in enumerate(WIDTHS):
        shares, _ = coefficients(taken, PAIR, Power(width))
        found = np.einsum("nj,njd->d", shares, stored[:, [0, 2]])
        error = np.linalg.norm(found - direct[number]) / np.linalg.norm(direct[number])
        assert error < (1e-12 if width in (0.05, 0.1) else narrow if width < 0.2 else wide), width


def test_against_averages_kept_in_a_training(kept: Path) -> None:
    groups = ["ema", "ema-1", "ema-2", "ema-3", "ema-4"]
    for average, group in zip(averages(kept / "run", WIDTHS), groups, strict=True):
        direct = read_tensors(newest_checkpoint(kept / "direct") / f"{group}.safetensors")
        assert average.step == 320
        assert average.error == coefficients(range(10, 321, 10), PAIR, Power(average.sigma_rel))[1]
        found = difference(average.weights, direct)
        assert found < (1e-6 if average.sigma_rel in (0.05, 0.1) else 1e-4 if average.sigma_rel < 0.2 else 1e-3)
        others = [read_tensors(newest_checkpoint(kept / "direct") / f"{g}.safetensors") for g in groups if g != group]
        assert (
            min(difference(other, direct) for other in others) > 30 * found
        )  # so that the bounds above mean something


def test_an_average_that_ends_earlier(kept: Path, tmp_path: Path) -> None:
    # With a constant learning rate, the first half of a run is a run of half the length.
    config = replace(CONFIG, decay="none", warmup=10)
    fit(config, out=tmp_path / "run", quiet=True)
    fit(replace(config, steps=160, snapshots=0, ema="power:0.08"), out=tmp_path / "half", quiet=True)
    (average,) = averages(tmp_path / "run", [0.08], step=160)
    assert average.step == 160
    direct = read_tensors(newest_checkpoint(tmp_path / "half") / "ema.safetensors")
    assert difference(average.weights, direct) < 5e-3
    with pytest.raises(UsageError, match="no snapshot from step 165") as error:
        averages(tmp_path / "run", [0.08], step=165)
    assert error.value.parameter == "step" and error.value.value == 160


def test_in_python(kept: Path) -> None:
    run = load(kept / "run").guided(1.0)
    other = averaged(run, 0.15)
    assert isinstance(other, Run) and other.step == 320 and other.folder == run.folder
    (average,) = averages(kept / "run", [0.15])
    for name, value in other.base.learned.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(value, average.weights[name])
    assert torch.equal(averaged(kept / "run", 0.15).sample(3).x, other.sample(3).x)
    assert not torch.equal(run.sample(3).x, other.sample(3).x)
    with pytest.raises(UsageError, match="need a run with a folder"):
        averaged(replace(run, folder=None), 0.1)


def test_a_run_is_made_of_an_average(shell: Shell, run: str) -> None:
    before = sorted(Path(run).rglob("*"))
    facts = shell.json(f"ema {run} --sigma-rel 0.08,0.1")
    assert [one["run"] for one in facts["runs"]] == ["runs/moons-ema-0.08", "runs/moons-ema-0.1"]  # type: ignore[attr-defined]
    assert "runs/moons-ema-0.08: width 0.08, step 320; its profile differs from the exact one by 0.076 %" in shell.err
    made, exact = (load(f"runs/moons-ema-{width}") for width in ("0.08", "0.1"))
    assert sorted(Path(run).rglob("*")) == before
    kept = read_tensors(newest_checkpoint(Path(run)) / "ema-2.safetensors")
    for name, value in exact.base.learned.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, kept[name], rtol=1e-6, atol=1e-7)
    assert made.step == 320 and torch.equal(made.sample(4).x, averaged(run, 0.08).sample(4).x)
    assert not list(Path("runs/moons-ema-0.08").rglob("optim.safetensors"))
    shell("sample runs/moons-ema-0.08 --n 2 --steps 3 --solver heun")
    shell("likelihood runs/moons-ema-0.08 --limit 2 --rtol 0.1 --no-check")
    shell("evaluate runs/moons-ema-0.08 --n 8 --limit 20 --metrics sliced --solver heun --steps 2")
    told = shell("info runs/moons-ema-0.08")
    assert "step         320" in told and "average      of width 0.08, computed from moons" in told
    assert shell.json("info runs/moons")["averaged"] is None
    assert shell.json(f"ema {run} --sigma-rel 0.08 --quiet")["runs"][0]["run"] == "runs/moons-ema-0.08-2"  # type: ignore[index]
    assert shell(f"ema {run} --sigma-rel 0.2 --step 160 --out other") == "other\n" and load("other").step == 160


def test_a_run_made_of_an_average_is_not_trained_further(shell: Shell, run: str) -> None:
    shell(f"ema {run} --sigma-rel 0.08")
    shell("train --resume runs/moons-ema-0.08")
    assert "has completed all its steps" in shell.err
    shell("train --resume runs/moons-ema-0.08 --steps 400", 3)
    assert "contains an average of the weights of another run, " in shell.err and "18000 training" not in shell.err
    shell("plot loss-by-noise runs/moons-ema-0.08", 3)
    assert "has no records of its own; plot that run" in shell.err


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--sigma-rel 0.3", 2, "sigma_rel is 0.3; it must be a number >= 0.05 and <= 0.2"),
        ("--sigma-rel 0.04", 2, "sigma_rel is 0.04"), ("--sigma-rel nan", 2, "sigma_rel is nan"),
        ("--sigma-rel a", 2, "expected numbers such as 0.08"), ("--sigma-rel ,", 2, "one or more different widths"),
        ("--sigma-rel 0.1,0.1", 2, "one or more different widths"),
        ("--sigma-rel 0.1,0.2 --out x", 2, "--out names a single folder, but --sigma-rel has 2 widths"),
        ("--sigma-rel 0.1 --step 319", 2, "the nearest before it is from step 310 (on the command line: --step 310)"),
    ],
)  # fmt: skip
def test_what_is_refused(shell: Shell, run: str, line: str, code: int, words: str) -> None:
    shell.refuses(f"ema {run} {line}", code, words)
    assert sorted(path.name for path in Path().glob("*")) == ["runs"] and len(list(Path("runs").glob("*"))) == 1


def test_snapshots_must_be_there_and_reach_the_end(shell: Shell, run: str) -> None:
    shell("train --data moons --steps 4 --batch 8 --set network.width=8 --out runs/none")
    shell.refuses("ema runs/none --sigma-rel 0.1", 3, "has no snapshots", "snapshots=64")
    list(snapshots(Path(run)).values())[-1].unlink()
    shell.refuses(f"ema {run} --sigma-rel 0.1", 3, "from step 310", "has 320 steps; compute the average at step 310",
                  "(on the command line: --step 310)")  # fmt: skip
    shell(f"ema {run} --sigma-rel 0.1 --step 310")


def test_damaged_snapshots(run: str) -> None:
    paths = list(snapshots(Path(run)).values())
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[:-4] + b"abcd")
    with pytest.raises(CheckpointError, match="changed after it was written"):
        averages(Path(run), [0.1])
    paths[3].write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        averages(Path(run), [0.1])
    shutil.copy(paths[4], paths[3])
    with pytest.raises(CheckpointError, match="is it a copy"):
        averages(Path(run), [0.1])
    paths[3].unlink()  # one that is missing in the middle costs precision only
    (average,) = averages(Path(run), [0.08])
    assert 7.6e-4 < average.error < 1e-3


def test_names_in_the_files_are_copied_and_not_imported(shell: Shell, run: str) -> None:
    config = Path(run) / "config.json"
    edit(config, lambda stored: {**stored, "config": {**stored["config"], "weighting": "os:system"}})
    shell(f"ema {run} --sigma-rel 0.1")
    assert unsigned("runs/moons-ema-0.1/config.json")["config"]["weighting"] == "os:system"
    assert json.loads(Path("runs/moons-ema-0.1/config.json").read_text())["averaged"]["sigma_rel"] == 0.1


def test_the_files_of_a_run_on_files(shell: Shell) -> None:
    """The hashes of the rows come along, and the data are found when all folders move together."""
    np.save("points.npy", np.random.default_rng(0).normal(size=(80, 3)))
    shell(
        "train --data points.npy --steps 8 --batch 8 --set network.width=8 --ema power:0.1 --snapshots 8 --out runs/a"
    )
    shell("ema runs/a --sigma-rel 0.15 --out deep/er")
    assert unsigned("deep/er/config.json")["data_beside"] == "../../points.npy"
    shell("likelihood deep/er --limit 2 --rtol 0.1 --no-check")
    facts: Any = unsigned("deep/er/config.json")
    assert (
        facts["averaged"]["from"] == "a"
        and (Path("deep/er") / "rows.npz").read_bytes() == Path("runs/a/rows.npz").read_bytes()
    )
