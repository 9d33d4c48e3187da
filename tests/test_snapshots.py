"""Snapshots of averages during training: when, how large, and what a stopped run makes of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from runs import assert_same, contents, killed
from shell import Shell
from torch import nn

from scoresde import Run, TrainConfig, fit
from scoresde.core.files import read_metadata, read_tensors
from scoresde.train import prepared
from scoresde.train import snapshots as module
from scoresde.train.prepare import begun
from scoresde.train.snapshots import needed, planned, snapshots

SMALL = {"width": 8, "blocks": 1}
CONFIG = TrainConfig(
    data="(array)", steps=20, batch=16, lr=0.05, network_options=SMALL, ema="0.9999,power:0.05,power:0.1", snapshots=6
)
STEPS = [4, 7, 10, 14, 17, 20]


def train(out: Path, **given: Any) -> Run:
    config = given.pop("config", CONFIG)
    data = np.random.default_rng(0).normal(size=(80, 3))
    return fit(config, data=data, out=out, quiet=given.pop("quiet", True), **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def same(folder: Path, whole: Path) -> None:
    """The checkpoints with all averages, and the snapshots, bit for bit."""
    found = contents(folder)
    assert {name.partition("/")[0] for name in found} == {"ema", "ema-1", "ema-2", "model", "optim"}
    assert_same(found, contents(whole))
    assert list(snapshots(folder)) == list(snapshots(whole))
    for step, path in snapshots(whole).items():
        assert_same(read_tensors(snapshots(folder)[step]), read_tensors(path))
    left = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    assert left == sorted(p.relative_to(whole) for p in whole.rglob("*"))


def test_the_last_snapshot_is_at_the_end() -> None:
    for steps in (1, 7, 64, 100, 20_001):
        for count in (1, 3, 64, 10**9):
            found = planned(steps, count)
            assert found[-1] == steps and len(found) == min(steps, count) and found[0] > 0
            gaps = np.diff([0, *found])
            assert gaps.max() - gaps.min() <= 1
            assert planned(steps, count, done=steps // 2) == [step for step in found if step > steps // 2]
    assert planned(100, 0) == []


def test_a_snapshot_is_the_averages_of_its_step(whole: Path) -> None:
    assert list(snapshots(whole)) == STEPS
    last, found = snapshots(whole)[20], contents(whole)
    facts, tensors = read_metadata(last), read_tensors(last)
    assert facts["profiles"] == ["power:0.05", "power:0.1"] and facts["step"] == 20 and facts["copied"] == []
    for profile, group in (("power:0.05", "ema-1"), ("power:0.1", "ema-2")):
        stored = {name: value for name, value in tensors.items() if name.startswith(profile)}
        assert len(stored) == len(tensors) / 2
        for name, value in stored.items():
            assert torch.equal(value, found[f"{group}/{name.partition('/')[2]}"])
    first = read_tensors(snapshots(whole)[4])
    assert not torch.equal(first["power:0.1/enter.weight"], tensors["power:0.1/enter.weight"])


def test_the_averages_change_neither_each_other_nor_the_weights(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "plain", config=replace(CONFIG, ema=0.9999, snapshots=0))
    plain, several = contents(tmp_path / "plain"), contents(whole)
    assert_same(plain, {name: several[name] for name in plain})
    assert not (tmp_path / "plain" / "ema").exists()


@pytest.mark.parametrize("at", [3, 6, 9, 12, 15, 17, 19])
def test_killed_and_gone_on(tmp_path: Path, whole: Path, at: int) -> None:
    folder = tmp_path / "run"
    assert killed(lambda: train(folder), at)
    train(folder, resume=(folder / "config.json").exists())
    same(folder, whole)


@pytest.mark.slow
def test_killed_at_every_rename(tmp_path: Path, whole: Path) -> None:
    at = 1
    while killed(lambda: train(tmp_path / "run"), at):
        train(tmp_path / "run", resume=(tmp_path / "run" / "config.json").exists())
        same(tmp_path / "run", whole)
        shutil.rmtree(tmp_path / "run")
        at += 1
    assert at > 30


def test_snapshots_of_steps_that_are_repeated_otherwise_are_removed(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000000020")  # the checkpoint before it is of step 16
    train(folder, resume=True, config=replace(CONFIG, steps=18))
    assert list(snapshots(folder)) == [4, 7, 10, 14, 18]
    assert_same(read_tensors(snapshots(folder)[14]), read_tensors(snapshots(whole)[14]))


def test_a_longer_run_keeps_its_snapshots(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    train(folder, resume=True, config=replace(CONFIG, steps=30), quiet=False)
    assert list(snapshots(folder)) == [*STEPS, 25, 30]
    assert "2 snapshots of 2 averages of" in capsys.readouterr().err.replace("(there are 6 of earlier steps)", "")
    train(folder, resume=True, config=replace(CONFIG, steps=33, snapshots=0))
    assert list(snapshots(folder)) == [*STEPS, 25, 30]


def test_a_run_that_is_begun_again_has_only_its_own_snapshots(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "ema" / "notes.txt").write_text("mine")
    train(folder, config=replace(CONFIG, snapshots=2))
    assert list(snapshots(folder)) == [10, 20] and (folder / "ema" / "notes.txt").exists()


class Usage(NamedTuple):
    """What shutil.disk_usage says."""

    total: int
    used: int
    free: int


def test_the_disk_space_is_told_and_must_be_there(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "train --data moons --steps 12 --batch 8 --set network.width=8 --ema 0.99,power:0.05,power:0.1 --out run"
    shell(f"{line} --snapshots 12")
    size = sum(value.nbytes for path in snapshots(tmp_path / "run").values() for value in read_tensors(path).values())
    weights = f"{size / (4 * 2 * 12) / 1e3:.3g} k weights"
    assert f"12 snapshots of 2 averages of {weights} will take {size / 1e3:.3g} kB in run/ema" in shell.err
    assert "averages of width 0.05 to 0.20 can be computed from them, with an error" in shell.err
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - size // 2, size // 2))
    told = shell.refuses(f"{line} --snapshots 12", 2, "of the disk is free; take fewer", "--set snapshots=5")
    assert f"would take {size / 1e3:.3g} kB in run/ema" in told and not (tmp_path / "run").exists()
    shell(f"{line} --snapshots 5 --quiet")
    assert "snapshots" not in shell.err


def test_buffers_are_stored_as_they_are(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.normal = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor, c: torch.Tensor, cond: object = None) -> torch.Tensor:
            out: torch.Tensor = self.normal(self.inner(torch.cat([x, c[:, None]], 1)))
            return out

    run = train(tmp_path / "run", network=Net(), config=replace(CONFIG, network_options={}))
    facts, tensors = (read(snapshots(tmp_path / "run")[20]) for read in (read_metadata, read_tensors))
    assert facts["copied"] == ["normal.num_batches_tracked", "normal.running_mean", "normal.running_var"]
    assert (
        int(tensors["power:0.1/normal.num_batches_tracked"]) == 20 == int(run.base.network.normal.num_batches_tracked)
    )  # type: ignore[attr-defined]


def test_a_prediction_of_the_error_is_made_for_what_will_be_there(tmp_path: Path) -> None:
    config, model, _ = prepared(replace(CONFIG, data="moons", steps=640, snapshots=64), CONFIG.load_data("moons"))
    state, _ = begun(config, model, torch.device("cpu"), torch.float32)
    assert "64 snapshots of 2 averages" in (told := needed(tmp_path, config, state))
    assert told.endswith("an error of the profile of at most 0.17 %")
