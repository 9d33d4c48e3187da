"""Several seeds of one model: a table of their figures, and every run like one trained by itself."""

from __future__ import annotations

import json
import math
import re
import signal
import statistics
from pathlib import Path

import numpy as np
import pytest
from runs import assert_same, contents, signal_at
from shell import Shell

from scoresde import TrainConfig, fit
from scoresde.core.files import read_lines
from scoresde.run.outcome import outcome
from scoresde.train.seeds import spread

LINE = "train --data x.npy --batch 16 --set network.width=8 --set network.blocks=1 --set validate_every=5"


@pytest.fixture(autouse=True)
def _data(shell: Shell) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(200, 2)))


def test_the_spread_of_figures() -> None:
    values = [1.0, 2.5, 4.0, 0.25]
    found = spread([*values, math.nan])
    assert found.n == 4 and found.mean == statistics.mean(values)
    assert found.sd == pytest.approx(statistics.stdev(values)) and found.stderr == pytest.approx(found.sd / 2)
    assert math.isnan(spread([1.0]).sd) and spread([1.0]).mean == 1.0 and math.isnan(spread([]).mean)


def test_the_outcome_of_a_run(tmp_path: Path) -> None:
    fit(TrainConfig(data="x.npy", batch=16, steps=20, validate_every=5), out=tmp_path / "a", quiet=True)
    found, lines = outcome(tmp_path / "a"), list(read_lines(tmp_path / "a" / "metrics.jsonl"))
    assert found.loss == pytest.approx(statistics.mean(line["loss"] for line in lines if line["step"] > 18))
    choice = json.loads((tmp_path / "a" / "validation.json").read_text())
    assert found.validation == choice[f"{choice['used']}_loss"] and found.step == 20
    assert found.used_step == (choice["best_step"] if choice["used"] == "best" else 20)
    (tmp_path / "a" / "validation.json").unlink()
    assert math.isnan(outcome(tmp_path / "a").validation) and outcome(tmp_path / "a").used_step == 20


def test_each_seed_is_a_run_of_its_own(shell: Shell) -> None:
    facts = shell.json(f"{LINE} --steps 6 --seeds 2,0 --quiet")
    assert [run["run"] for run in facts["runs"]] == ["runs/x-vp-seed2", "runs/x-vp-seed0"]  # type: ignore[attr-defined]
    shell(f"{LINE} --steps 6 --seed 2 --out alone --quiet")
    assert_same(contents(Path("alone")), contents(Path("runs/x-vp-seed2")))
    losses = [run["validation"] for run in facts["runs"]]  # type: ignore[attr-defined]
    assert facts["spread"]["validation"] == pytest.approx(  # type: ignore[index]
        {
            "n": 2,
            "mean": statistics.mean(losses),
            "sd": statistics.stdev(losses),
            "stderr": abs(losses[0] - losses[1]) / 2,
        }
    )
    text = Path("runs/x-vp-seeds.txt").read_text()
    assert re.search(rf"^2 .* {losses[0]:.5g} .* runs/x-vp-seed2$", text, re.M) and "\nstderr " in text
    stored = json.loads(Path("runs/x-vp-seeds.json").read_text())
    assert stored["runs"] == facts["runs"] and stored["request"]["batch"] == 16


@pytest.mark.usefixtures("pictures")
def test_the_same_command_continues(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{LINE} --steps 8 --out runs/a --quiet --seeds"
    shell(f"{line} 0,1")
    before = contents(Path("runs/a-seed0")), contents(Path("runs/a-seed1"))
    Path("runs").rename("whole")
    shell(f"{line} 0")
    with monkeypatch.context() as patch:
        signal_at(patch, 5, signal.SIGTERM)
        shell(f"{line} 0,1", 75)
    assert "runs/a-seed1; 1 of 2 seeds are finished, and the same command continues\n" in shell.err
    assert json.loads(Path("runs/a-seeds.json").read_text())["runs"][0]["seed"] == 0
    shell(f"{line} 0,1".replace("--quiet ", ""))
    assert "runs/a-seed0 is finished" in shell.err and "runs/a-seed1 is resumed" in shell.err
    for seed, expected in enumerate(before):
        assert_same(contents(Path(f"runs/a-seed{seed}")), expected)
    shell(line.replace("--steps 8", "--steps 10") + " 0,1,3")  # another seed, and more steps
    assert {run["step"] for run in json.loads(Path("runs/a-seeds.json").read_text())["runs"]} == {10}


@pytest.mark.usefixtures("pictures")
def test_more_steps_that_are_stopped_at_once(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{LINE} --out runs/a --quiet --seeds 0,1"
    shell(f"{line} --steps 6")
    with monkeypatch.context() as patch:
        signal_at(patch, 7, signal.SIGTERM)
        shell(f"{line} --steps 9", 75)
    assert "0 of 2 seeds are finished" in shell.err
    assert json.loads(Path("runs/a-seeds.json").read_text())["runs"] == [], "figures of fewer steps do not remain"
    shell(f"{line} --steps 9")
    assert [run["step"] for run in rows()] == [9, 9]


def rows() -> list[dict[str, int]]:
    return list(json.loads(Path("runs/a-seeds.json").read_text())["runs"])


@pytest.mark.usefixtures("pictures")
def test_all_runs_of_a_table_have_the_same_number_of_steps(shell: Shell) -> None:
    line = f"{LINE} --out runs/a --quiet"
    shell(f"{line} --seeds 0,1 --steps 6")
    shell(f"{line} --seeds 3")
    assert [(run["seed"], run["step"]) for run in rows()] == [(0, 6), (1, 6), (3, 6)], "other rows are kept"
    shell.refuses(f"{line} --seeds 0 --steps 9", 2, "runs/a-seed1 has 6 steps", "9 are asked for", "other seeds")
    shell.refuses(f"{line} --seeds 7 --steps 9", 2, "runs/a-seed1 has 6 steps")
    assert len(rows()) == 3, "the table remains if a repeated command is refused"
    shell("train --resume runs/a-seed1 --steps 9 --quiet")
    shell.refuses(f"{line} --seeds 0,1,3", 2, "a-seed0 has 6 steps, runs/a-seed1 has 9 steps", "--steps 9")
    shell(f"{line} --seeds 3,1,0 --steps 9")
    assert [(run["seed"], run["step"]) for run in rows()] == [(0, 9), (1, 9), (3, 9)]


def test_edited_runs_are_accepted_if_this_is_confirmed(shell: Shell) -> None:
    line = f"{LINE} --out runs/a --quiet --seeds 0,1"
    shell(f"{line} --steps 4")
    file = Path("runs/a-seed0/config.json")
    file.write_text(file.read_text().replace('"keep": 2', '"keep": 5'))
    shell.refuses(f"{line} --steps 6", 3, "was changed after training", "--edited")
    shell(f"{line} --steps 6 --edited")
    assert [run["step"] for run in rows()] == [6, 6]


@pytest.mark.parametrize("out", [".", "/", "..", "runs/.."])
def test_a_path_without_a_name_is_refused(shell: Shell, out: str) -> None:
    shell.refuses(f"{LINE} --steps 2 --seeds 0,1 --out {out}", 2, "cannot begin with", "--out")
    assert [path.name for path in Path().iterdir()] == ["x.npy"]


def test_other_settings_are_refused(shell: Shell) -> None:
    line = f"{LINE} --steps 2 --out runs/a --quiet"
    shell(f"{line} --seeds 0")
    shell.refuses(f"{line} --seeds 0 --lr 0.5", 2, "lr 0.5 instead of lr 0.0", "--out")
    shell.refuses(f"{line} --seeds 0 --dtype float64", 2, "float64")
    shell(f"{line} --seed 1 --out runs/b-seed1")
    shell.refuses(f"{line} --seeds 1 --out runs/b", 2, "runs/b-seed1 already contains a run of another command")
    assert not Path("runs/b-seeds.json").exists()
    shell.refuses(f"{line} --seeds 0 --cond class --out runs/c", 2, "class")
    assert not [path for path in Path("runs").iterdir() if path.name.startswith("c")], "nothing is left"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--seeds 0,1 --seed 2", ("--seeds 0,1 cannot be combined with --seed",)), ("--seeds 0,a", ("--seeds", "0,a")),
        ("--seeds 0,1 --set seed=4", ("--set seed=4",)), ("--seeds 0,1 --shard fsdp", ("--shard",)),
        ("--seeds 0,0", ("twice",)), ("--seeds 1 --resume runs/a", ("--resume", "repeat the command")),
        ("--seeds 99999999999999999999", ("--seeds",)), ("--seeds ,", ("--seeds",)), ("--seeds -1", ("--seeds",)),
    ],
)  # fmt: skip
def test_lists_that_are_refused(shell: Shell, options: str, words: tuple[str, ...]) -> None:
    shell.refuses(f"{LINE} {options}", 2, *words)


def test_several_processes_are_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shell.refuses(f"{LINE} --seeds 0,1", 2, "in one process")


def test_a_dry_run_counts_the_seeds(shell: Shell) -> None:
    one = shell.json(f"{LINE} --steps 100 --dry-run --quiet")
    two = shell.json(f"{LINE} --steps 100 --seeds 4,5 --dry-run --quiet")
    assert (one["runs"], two["runs"]) == (1, 2) and two["config"]["seed"] == 4  # type: ignore[index]
    assert two["disk_bytes"] == 2 * one["disk_bytes"] > 0  # type: ignore[operator]
    assert "2 seeds:" in shell(f"{LINE} --steps 100 --seeds 4,5 --dry-run --quiet")
    assert sorted(path.name for path in Path().iterdir()) == ["x.npy"]


@pytest.mark.parametrize("more", ["", " --ema 0.999,power:0.05,power:0.1", " --dtype float64"])
def test_a_dry_run_counts_all_averages_and_snapshots(shell: Shell, more: str) -> None:
    line = f"{LINE} --steps 20 --quiet{more}"

    def told(line: str) -> int:
        return int(str(shell.json(f"{line} --dry-run")["disk_bytes"]))

    def written(folder: str) -> int:
        return sum(path.stat().st_size for path in Path("a", folder).rglob("*") if path.is_file())

    checkpoint, all_of_it = told(f"{line} --keep 3") - told(f"{line} --keep 2"), told(f"{line} --keep 2")
    taken = " --set snapshots=4" * ("power" in more)
    snapshots = told(line + taken) - all_of_it
    shell(f"{line}{taken} --out a")
    assert written("checkpoints/step-000000020") <= checkpoint and written("ema") <= snapshots
    assert written("checkpoints") + 2 * written("checkpoints/step-000000020") <= all_of_it
    if taken:
        resumed = told("train --resume a --steps 24 --quiet")
        assert snapshots > 0 and resumed > all_of_it + snapshots, "those that are there count as well"
