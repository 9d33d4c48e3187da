"""Checkpoints are whole or not there, and reading them trusts nothing."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.files import FORMAT, append_line, read_json, read_lines, read_tensors, write_json
from scoresde.run.files import (
    find_run,
    load_weights,
    make_run_folder,
    newest_checkpoint,
    read_config,
    save_checkpoint,
)

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([1, 2])}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    groups = {"model": {k: v + step for k, v in WEIGHTS.items()}, "ema": WEIGHTS}
    return save_checkpoint(folder, step, groups, {"extra": step / 3}, keep)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path == tmp_path / "checkpoints" / "step-000000012" == newest_checkpoint(tmp_path)
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step-000000012\n"
    state = read_json(path / "state.json")
    assert (state["format"], state["step"], state["extra"]) == (FORMAT, 12, 4.0)
    assert set(state["files"]) == {"model.safetensors", "ema.safetensors"}
    found = read_tensors(path / "model.safetensors")
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(found[name], value + 12) and found[name].dtype == value.dtype


def test_tensors_that_share_memory_or_are_strided_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    path = save_checkpoint(tmp_path, 1, {"model": {"t": base.T, "row": base[1]}}, {})
    found = read_tensors(path / "model.safetensors")
    assert torch.equal(found["t"], base.T) and torch.equal(found["row"], base[1])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000):
        save(tmp_path, step)
    assert names(tmp_path) == ["LATEST", "step-000000100", "step-000001000"]
    save(tmp_path, 1001, keep=1)
    assert names(tmp_path) == ["LATEST", "step-000001001"]


@pytest.mark.parametrize("broken", ["replace", "save_file", "second save_file", "fsync", "no space"])
def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    import safetensors.torch

    save(tmp_path, 1)
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    calls = []
    real = safetensors.torch.save_file

    def fail(*args: object, **options: object) -> None:
        calls.append(args)
        if broken == "second save_file" and len(calls) == 1:
            return real(*args, **options)
        if broken == "no space":
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if broken in ("replace", "fsync"):
            patch.setattr(os, broken, fail)
        else:
            patch.setattr(safetensors.torch, "save_file", fail)
        words = r"cannot write [^ ]*/step-000000002[^ ]*: .*No space left on device.*choose a folder"
        with pytest.raises(CheckpointError, match=words):
            save(tmp_path, 2)
    assert calls, "the fault was never met"
    assert newest_checkpoint(tmp_path).name == "step-000000001"
    assert not (tmp_path / "checkpoints" / "step-000000002").exists()
    assert {p: p.read_bytes() for p in before} == before
    save(tmp_path, 3)  # and the next one cleans up
    assert names(tmp_path) == ["LATEST", "step-000000001", "step-000000003"]


def test_a_kill_between_the_two_renames_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = os.replace

    def kill(source: Path, target: Path) -> None:
        if Path(target).name == "LATEST":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert newest_checkpoint(tmp_path).name == "step-000000002"  # LATEST is for people; readers check the files


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "SHA-256": lambda c: flip(c / "ema.safetensors"),
    "truncated": lambda c: halve(c / "ema.safetensors"),
    "missing": lambda c: (c / "model.safetensors").unlink(),
    "cannot be read": lambda c: (c / "state.json").write_text('{"format": 1, "st'),
    "state.json is missing": lambda c: (c / "state.json").unlink(),
    "format 99": lambda c: (c / "state.json").write_text(json.dumps({"format": 99})),
    "damaged": lambda c: (c / "state.json").write_text(json.dumps({"format": FORMAT})),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_found_and_the_older_one_taken(tmp_path: Path, message: str) -> None:
    save(tmp_path, 1)
    DAMAGE[message](save(tmp_path, 2))
    with pytest.warns(UserWarning, match=message) as caught:
        assert newest_checkpoint(tmp_path).name == "step-000000001"
    assert "step-000000001" in str(caught[0].message) and "step-000000002" in str(caught[0].message)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000000001")
    with pytest.raises(CheckpointError, match=message):
        newest_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        newest_checkpoint(tmp_path)


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_read_tensors_reads_safetensors_and_nothing_else(tmp_path: Path) -> None:
    fuse = tmp_path / "ran"
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Bomb(fuse)))
    torch.save({"x": Bomb(fuse)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"")
    for name in "abcd":
        with pytest.raises(CheckpointError, match=f"{name}.safetensors"):
            read_tensors(tmp_path / f"{name}.safetensors")
    assert not fuse.exists()


def test_weights_must_fit(tmp_path: Path) -> None:
    module, source = nn.Linear(2, 3), tmp_path / "ema.safetensors"
    good = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    load_weights(module, good, source)
    assert torch.equal(module.weight, good["weight"])
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: 'bias' is only in the network"):
        load_weights(module, {"weight": good["weight"]}, source)
    with pytest.raises(CheckpointError, match="'more' is only in the file"):
        load_weights(module, {**good, "more": torch.ones(1)}, source)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(2, 2\), but the network expects \(3, 2\)"):
        load_weights(module, {**good, "weight": torch.ones(2, 2)}, source)


# JSON


def test_json_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1 / 3, 1e-308, 5e-324, 1.7976931348623157e308, -0.0, 2**63 - 1, math.inf]
    write_json(tmp_path / "x.json", {"numbers": numbers})
    found = read_json(tmp_path / "x.json")["numbers"]
    assert found == numbers and [math.copysign(1, v) for v in found] == [math.copysign(1, v) for v in numbers]
    write_json(tmp_path / "nan.json", math.nan)
    assert math.isnan(read_json(tmp_path / "nan.json"))
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_a_json_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "x.json", 1)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"x\.json: Input/output error"):
        write_json(tmp_path / "x.json", 2)
    assert read_json(tmp_path / "x.json") == 1


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    lines = [{"step": i, "loss": i / 3} for i in range(3)]
    for line in lines:
        append_line(path, line)
    assert read_lines(path) == lines
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # the machine went down here
    assert read_lines(path) == lines


def test_config_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_config(tmp_path)
    write_json(tmp_path / "config.json", {"format": FORMAT, "config": {"sde": "vp"}})
    assert read_config(tmp_path) == {"sde": "vp"}
    for content, message in (({"format": 3, "config": {}}, "format 3.*reads formats 1 to 2"), ([], "format None")):
        write_json(tmp_path / "config.json", content)
        with pytest.raises(CheckpointError, match=message):
            read_config(tmp_path)
    write_json(tmp_path / "config.json", {"format": FORMAT})
    with pytest.raises(CheckpointError, match="no configuration"):
        read_config(tmp_path)


# Run folders


def make(path: Path, step: int = 1) -> Path:
    path.mkdir(parents=True)
    write_json(path / "config.json", {"format": FORMAT, "config": {}})
    save(path, step)
    return path


def test_find_run_takes_the_newest_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no run with a checkpoint in .*runs; train one first"):
        find_run(None)
    for i, name in enumerate(("b", "c", "a")):
        os.utime(make(Path("runs") / name) / "checkpoints", (1000 + i, 1000 + i))
    assert find_run(None) == Path("runs/a")
    os.utime("runs/b/checkpoints", (2000, 2000))
    assert find_run(None) == Path("runs/b")
    Path("runs/unborn").mkdir()  # started a moment ago: no checkpoint, so not what "the newest" can mean
    write_json(Path("runs/unborn/config.json"), {})
    assert find_run(None) == Path("runs/b")


def test_find_run_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("runs/x"))
    assert find_run("x") == find_run("runs/x") == find_run(Path("runs/x")) == Path("runs/x")
    assert find_run(tmp_path / "runs" / "x") == tmp_path / "runs" / "x"
    with pytest.raises(CheckpointError, match=r"nothing is not a run folder \(there is.*the runs under runs/ are: x"):
        find_run("nothing")
    Path("empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty is not a run folder \(it has no config.json\)"):
        find_run("empty")
    Path("file.pt").touch()
    with pytest.raises(CheckpointError, match=r"file\.pt is a file"):
        find_run("file.pt")


def test_run_folders_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(make_run_folder(None, "moons-vp")) for _ in range(3)] == [
        "runs/moons-vp", "runs/moons-vp-2", "runs/moons-vp-3",
    ]  # fmt: skip
    make(Path("mine"))
    with pytest.raises(UsageError, match="mine already contains a run"):
        make_run_folder("mine", "x")
    Path("file.txt").touch()
    with pytest.raises(CheckpointError, match=r"cannot write file\.txt/run/checkpoints: file\.txt is a file"):
        make_run_folder("file.txt/run", "x")
