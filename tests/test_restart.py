"""Run folders that are cut off, fought for, copied and edited: nothing is lost, and nothing wrong is called right.

Processes are killed for good, by SIGKILL, in forks of this one and at known points.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same, contents, edit, killed
from shell import Shell
from torch import nn

from scoresde import TrainConfig, fit, load
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.files import read_json, read_lines, read_tensors
from scoresde.core.lock import locked
from scoresde.core.progress import Progress
from scoresde.nn import MLP
from scoresde.run.files import (
    checkpoints,
    find_run,
    load_weights,
    make_run_folder,
    newest_checkpoint,
    save_best,
    save_checkpoint,
)
from scoresde.train.reflow import reflow

SMALL = {"width": 8, "blocks": 1}
CONFIG = TrainConfig(data="(array)", steps=20, batch=16, lr=0.05, network_options=SMALL, validate_every=1)


def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(80, 3))


def train(out: Path, **given: object) -> object:
    config = given.pop("config", CONFIG)
    return fit(config, data=table(), out=out, quiet=True, **given)  # type: ignore[arg-type]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Training ends at a step as a process that is killed does, without a word."""
    real = Progress.update

    def update(self: Progress, n: int = 1, fields: object = None) -> None:
        real(self, n, fields)  # type: ignore[arg-type]
        if self.done == step:
            raise Killed

    monkeypatch.setattr(Progress, "update", update)


class Killed(BaseException):
    """As if by SIGKILL."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def goes_on(folder: Path) -> None:
    """Resume a training, or begin it again if there is nothing to resume."""
    if (folder / "config.json").exists():
        train(folder, resume=True)
    else:
        train(folder)


def same(folder: Path, whole: Path) -> None:
    assert_same(contents(folder), contents(whole))
    assert (folder / "validation.json").read_text() == (whole / "validation.json").read_text()
    assert_same(load(folder).model.state_dict(), load(whole).model.state_dict())
    lines = [[(line["step"], line["loss"]) for line in read_lines(f / "metrics.jsonl")] for f in (folder, whole)]
    assert lines[0] == lines[1]
    left = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    assert left == sorted(p.relative_to(whole) for p in whole.rglob("*")), "something was left behind"


@pytest.mark.parametrize("at", [1, 2, 4, 5, 8, 13, 21, 27, 30])
def test_killed_and_gone_on(tmp_path: Path, whole: Path, at: int) -> None:
    assert killed(lambda: train(tmp_path / "run"), at)
    goes_on(tmp_path / "run")
    same(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_at_every_rename(tmp_path: Path, whole: Path) -> None:
    at = 0
    while killed(lambda: train(tmp_path / "run"), at := at + 1):
        if at % 3 == 0:  # and again while it goes on
            killed(lambda: goes_on(tmp_path / "run"), 1 + at % 7)
        goes_on(tmp_path / "run")
        same(tmp_path / "run", whole)
        shutil.rmtree(tmp_path / "run")
    assert at > 30


def test_a_run_cut_off_before_its_first_checkpoint(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for resume in (True, False):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            stop_at(patch, 3)
            train(run)
        assert (run / "config.json").exists() and not checkpoints(run)
        with pytest.raises(CheckpointError, match="no checkpoint yet; resume its training, or start it again"):
            load(run)
        fit(CONFIG, data=table(), out=run, resume=resume)
        told = capsys.readouterr().err
        assert (
            f"{run} has no checkpoint yet, so training starts at step 0 with the settings of the run" in told
        ) == resume
        same(run, whole)
        shutil.rmtree(run)


def test_it_may_begin_again_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead start left is replaced; what a person put there stays."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 3)
        train(run)
    assert (run / "checkpoints/best").exists() and (run / "rows.npz").exists()
    for name in ("notes.txt", "samples/mine.png", "checkpoints/step-best", "pairs.safetensors", "validation.json"):
        (run / name).write_text("x")
    fit(replace(CONFIG, sde="flow", data="moons", steps=2), out=run, quiet=True)
    assert load(run).config.sde == "flow" and len(read_lines(run / "metrics.jsonl")) == 2
    for name in ("notes.txt", "samples/mine.png", "checkpoints/step-best"):
        assert (run / name).read_text() == "x"
    for name in ("rows.npz", "pairs.safetensors", "validation.json", "checkpoints/best"):
        assert not (run / name).exists(), name
    with pytest.raises(UsageError, match="already contains a run"):
        train(run)


def test_a_folder_without_settings_holds_no_run(shell: Shell) -> None:
    make_run_folder("cut", "")
    shell.refuses("info cut", 3, "it has no config.json, because training stopped before its first step")
    shell.refuses("train --resume cut", 3, "train again with the same output folder")
    shell("train --data moons --steps 2 --batch 8 --set network.width=8 --out cut --quiet")
    for path in Path("cut/checkpoints").glob("step-*"):
        shutil.rmtree(path)
    out = shell("info cut")
    assert "checkpoint   none yet" in out and "interrupted before its first checkpoint" in out
    with locked(Path("cut")):
        assert f"training     process {os.getpid()} on" in shell("info cut")
    shell("train --resume cut --quiet")
    assert "training  " not in shell("info cut")


def test_the_newest_run_is_one_with_a_checkpoint(shell: Shell) -> None:
    Path("runs").mkdir()
    Path("runs/file").touch()
    make_run_folder("runs/cut", "")
    make_run_folder("runs/begun", "")
    Path("runs/begun/config.json").write_text("{}")
    Path("runs/begun/checkpoints/step-best").mkdir()
    with pytest.raises(CheckpointError, match=r"no run with a checkpoint in .* \(runs without a checkpoint: begun\)"):
        find_run(None)
    shell("train --data moons --steps 2 --batch 8 --set network.width=8 --quiet")
    os.utime("runs/begun/checkpoints", (2**31, 2**31))
    assert find_run(None) == Path("runs/moons-vp")


def test_a_rectified_run_keeps_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = fit(replace(CONFIG, data="moons", steps=2), out=tmp_path / "teacher", quiet=True)
    whole = reflow(teacher, pairs=32, steps=10, out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        real = Progress.update

        def update(self: Progress, n: int = 1, fields: object = None) -> None:
            real(self, n, fields)  # type: ignore[arg-type]
            if self.total == 10:
                raise Killed

        patch.setattr(Progress, "update", update)
        reflow(teacher, pairs=32, steps=10, out=tmp_path / "run", quiet=True)
    again = fit(whole.config, out=tmp_path / "run", resume=True, quiet=True)
    assert_same(again.model.state_dict(), whole.model.state_dict())
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor its starting weights"):
        fit(whole.config, out=tmp_path / "run", resume=True, quiet=True)


# ---------------------------------------------------------------------------------------------------------- two at once


def test_two_trainings_in_one_folder(tmp_path: Path, whole: Path, shell: Shell) -> None:
    shutil.copytree(whole, "held")
    make_run_folder("new", "")
    for folder in ("held", "new"):
        with locked(Path(folder)):
            before = {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
            words = rf"{folder} is in use: process {os.getpid()} on .* is training there"
            with pytest.raises(CheckpointError, match=words):
                train(Path(folder), resume=folder == "held")
            assert {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()} == before
        assert not (Path(folder) / ".lock").exists()
    line = "train --data moons --steps 2 --batch 8 --set network.width=8 --out new --quiet"
    with locked(Path("new")):
        shell.refuses(line, 3, "new is in use: process")
        load("held").sample(2, "heun")  # readers need no lock
    shell(line)
    with locked(Path("new")):  # and with a checkpoint in it
        shell.refuses(line, 3, "new is in use: process")
    shell.refuses(line, 2, "already contains a run")


def test_a_disk_that_is_full_leaves_no_empty_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(os, "replace", full)
    for name in ("new", "above/new", "there"):
        with pytest.raises(CheckpointError, match="No space left"):
            train(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["there"], "what was there is not ours to remove"


def test_two_that_begin_together_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "exists", lambda path: False)  # as both saw it
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert [make_run_folder(None, "x").name for _ in range(3)] == ["x", "x-2", "x-3"]


# ------------------------------------------------------------------------------------------------------ best and copies


def test_the_best_of_a_checkpoint_outlives_a_better_one(tmp_path: Path) -> None:
    """A run that is killed between the two goes on from the checkpoint, and with its best."""
    weights = {"ema": {"w": torch.zeros(2)}}
    (tmp_path / "checkpoints").mkdir()

    def held() -> dict[str, int]:
        found = (tmp_path / "checkpoints").glob("best*")
        return {p.name: json.loads((p / "state.json").read_text())["step"] for p in found}

    save_best(tmp_path, 3, weights)
    save_best(tmp_path, 4, weights)
    assert held() == {"best": 4}, "no checkpoint, no use for those before"
    save_checkpoint(tmp_path, 5, weights, {})
    save_best(tmp_path, 6, weights)
    save_best(tmp_path, 7, weights)
    assert held() == {"best": 7, "best-before": 4}
    save_checkpoint(tmp_path, 8, weights, {})
    assert held() == {"best": 7}


def test_copies_are_left_alone(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = newest_checkpoint(run)
    copies = ["step-best", "step-60.bak", f"{newest.name} (copy)", f"{newest.name}.tmp", "step-99", "step-", "mine"]
    for name in copies:
        shutil.copytree(newest, run / "checkpoints" / name)
    copies += ["step-0000000020", "step-000000001", "step-000000098", "step-999999999999999999999"]  # of other steps
    for name in copies[-4:]:
        shutil.copytree(newest, run / "checkpoints" / name)
    (run / "checkpoints" / "step-000000099").touch()  # no folder
    high, low = ["step-999999999999999999999", "step-000000098"], ["step-000000001"]
    assert [p.name for p in checkpoints(run)] == [*high, "step-000000020", "step-000000016", *low]
    with pytest.warns(
        UserWarning,
        match=r"using the older checkpoint step-000000020: .*step-9{21} contains step 20, not the step in its",
    ):
        assert newest_checkpoint(run).name == "step-000000020"
        train(run, resume=True, config=replace(CONFIG, steps=30))
    with pytest.warns(UserWarning, match="contains step 20"):
        assert load(run).step in (30, json.loads((run / "validation.json").read_text())["best_step"])
    for name in copies:
        assert (run / "checkpoints" / name / "model.safetensors").is_file(), name
    assert [p.name for p in checkpoints(run)] == [*high, "step-000000030", "step-000000024", *low]


# --------------------------------------------------------------------------------------------------------------- edited


@pytest.mark.parametrize("name", ["config.json", "model.json", "data.json", "validation.json"])
def test_a_changed_digit_is_refused(shell: Shell, whole: Path, name: str) -> None:
    shutil.copytree(whole, "run")
    path = Path("run") / name
    text = path.read_text()
    start = text.index("\n", max(0, text.find('"format"')))  # whose number is looked at first
    at = next(i for i, c in enumerate(text) if i > start and c.isdigit() and text[i - 1] in " .")
    path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")
    with pytest.raises(CheckpointError, match=rf"{name} in run was changed after training") as error:
        load("run")
    assert error.value.parameter == "edited"
    for line in ("info", "sample", "likelihood", "evaluate", "bench", "train --resume", "reflow", "plot reverse"):
        shell.refuses(f"{line} run", 3, name, "run", "on the command line: --edited")


def test_a_change_made_on_purpose(shell: Shell, moons: str) -> None:
    before = load(moons).sample(3, "heun").x
    for name in ("config.json", "model.json"):
        path = Path(moons) / name
        path.write_text(path.read_text().replace('"beta_max": 20.0', '"beta_max": 19.0'))
    with pytest.warns(UserWarning, match=r"model\.json in .* changed after training; using the changed content"):
        run = load(moons, edited=True)
    assert run.model.domain.sde.beta_max == 19.0 and not torch.equal(run.sample(3, "heun").x, before)
    shell(f"sample {moons} --edited --n 2 --solver heun --steps 2")
    assert "using the changed content" in shell.err
    shell(f"train --resume {moons} --steps 6 --edited --quiet")
    shell(f"info {moons}")
    assert "using the changed content" not in shell.err, "it was signed again"


def test_a_changed_state_is_no_checkpoint(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    newest, older = checkpoints(tmp_path / "run")
    for checkpoint in (newest, older):
        path = checkpoint / "state.json"
        path.write_text(path.read_text().replace('"ema_updates": ', '"ema_updates": 1'))
    with pytest.raises(CheckpointError, match=r"no complete checkpoint.*was changed after it was written") as error:
        newest_checkpoint(tmp_path / "run")
    assert error.value.parameter == "edited"
    assert newest_checkpoint(tmp_path / "run", edited=True) == newest


def test_older_runs_have_no_checksums(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.json"):
        edit(path, dict)
    assert_same(load(tmp_path / "run").model.state_dict(), load(whole).model.state_dict())
    train(tmp_path / "run", resume=True, config=replace(CONFIG, steps=21))
    assert "checksum" in json.loads((tmp_path / "run/config.json").read_text())
    assert "checksum" not in json.loads((tmp_path / "run/data.json").read_text()), "which is never written again"


# -------------------------------------------------------------------------------------------------------------- wrapped


def wrapped(network: nn.Module) -> dict[str, nn.Module]:
    compiled = torch.compile(network, backend="eager")
    return {"compile": compiled, "parallel": nn.DataParallel(network), "both": nn.DataParallel(compiled)}


@pytest.mark.parametrize("how", ["compile", "parallel", "both"])
def test_a_wrapped_network_is_saved_and_resumed_by_plain_names(tmp_path: Path, how: str) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return MLP(dims=3, width=8, blocks=1)

    plain = train(tmp_path / "plain", network=network(), config=replace(CONFIG, steps=6))
    train(tmp_path / "run", network=wrapped(network())[how], config=replace(CONFIG, steps=3))
    assert set(contents(tmp_path / "run")) == set(contents(tmp_path / "plain"))
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for folder, net in (("run", wrapped(network())[how]), ("other", network())):  # its moments, too
        train(tmp_path / folder, network=net, resume=True, config=replace(CONFIG, steps=6))
        assert set(contents(tmp_path / folder)) == set(contents(tmp_path / "plain"))
    assert_same(contents(tmp_path / "run"), contents(tmp_path / "other"))
    assert plain is not None
    load(tmp_path / "run", network=network())
    load(tmp_path / "plain", network=wrapped(network())[how])


def test_a_checkpoint_under_wrapped_names_goes_on(tmp_path: Path) -> None:
    """As older versions wrote them."""
    short, run = replace(CONFIG, steps=3), tmp_path / "run"
    network = {"network": MLP(dims=3, width=8, blocks=1)}
    train(tmp_path / "plain", config=short, network=copy.deepcopy(network["network"]))
    shutil.copytree(tmp_path / "plain", run)
    newest = newest_checkpoint(run)
    state = read_json(newest / "state.json")
    groups = {f.stem: read_tensors(f) for f in newest.glob("*.safetensors")}
    wrapped_names = {g: {f"_orig_mod.{name}": v for name, v in found.items()} for g, found in groups.items()}
    save_checkpoint(run, 3, wrapped_names, {"ema_updates": state["ema_updates"]})
    for folder in ("plain", "run"):
        train(tmp_path / folder, config=CONFIG, resume=True, network=copy.deepcopy(network["network"]))
    assert_same(contents(run), contents(tmp_path / "plain"))


def test_weights_under_wrapped_names(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3))
    values = {"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)}
    for prefix in ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."):
        with torch.no_grad():
            module[0].weight.zero_()
        load_weights(module, {prefix + name: value for name, value in values.items()}, tmp_path)
        assert torch.equal(module[0].weight, values["0.weight"])
    with pytest.raises(CheckpointError, match="only in"):
        load_weights(module, {f"modules.{name}": value for name, value in values.items()}, tmp_path)
