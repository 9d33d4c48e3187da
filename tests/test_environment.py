"""Where a run was trained is recorded in each session, never at the cost of the run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import assert_same, contents
from shell import Shell

import scoresde
from scoresde import TrainConfig, fit, load
from scoresde.run import environment
from scoresde.run.environment import in_words, session_of, sessions_of

CONFIG = TrainConfig(data="moons", steps=2, batch=8, decay="none", warmup=1, network_options={"width": 8, "blocks": 1})


def test_each_session_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/scoresde", "train", "--data", "a b"])
    fit(replace(CONFIG, seed=4), out=tmp_path / "a", quiet=True, dtype=torch.float64)
    monkeypatch.setattr("sys.argv", ["/somewhere/mine.py"])
    torch.set_num_threads(2)
    fit(replace(CONFIG, seed=4, steps=4), out=tmp_path / "a", quiet=True, resume=True, dtype=torch.float64)
    first, second = sessions_of(tmp_path / "a")
    assert (first["step"], second["step"], first["seed"], first["dtype"]) == (0, 2, 4, "float64")
    assert (first["threads"], second["threads"], first["processes"]) == (1, 2, 1)
    assert (first["command"], second["command"]) == ("scoresde train --data 'a b'", "mine.py")
    assert first["torch"] == torch.__version__ and first["scoresde"] == scoresde.__version__ and first["cpus"] >= 1
    assert first["code"] == second["code"] and len(first["code"]) == 12
    assert in_words([first, second]).endswith("2 threads, float64, 2 sessions") and in_words([]) == ""
    assert not (tmp_path / "nothing").exists() and sessions_of(tmp_path) == []


def test_a_run_does_not_need_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("scoresde.train.loop.session_of", fails)
        with pytest.warns(UserWarning, match=r"env\.json was not created \(OSError: disk full\)"):
            fit(CONFIG, out=tmp_path / "a", quiet=True)
    fit(CONFIG, out=tmp_path / "b", quiet=True)
    assert_same(contents(tmp_path / "a"), contents(tmp_path / "b"))
    assert not (tmp_path / "a" / "env.json").exists() and load(tmp_path / "a").step == 2
    (tmp_path / "b" / "env.json").write_text("{")
    with pytest.warns(UserWarning, match="the environment of the run is left out"):
        assert sessions_of(tmp_path / "b") == []
    with pytest.warns(UserWarning, match="the environment"):
        fit(replace(CONFIG, steps=3), out=tmp_path / "b", quiet=True, resume=True)
    assert [session["step"] for session in sessions_of(tmp_path / "b")] == [2]


def test_no_secret_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    words = ["x.py", "--api-key", "hunter2", "--wandb-token=hunter2", "--steps", "3"]
    monkeypatch.setattr("sys.argv", words)
    found = session_of(torch.device("cpu"), torch.float32)
    assert "hunter2" not in json.dumps(found)
    assert found["command"] == "x.py --api-key '***' '--wandb-token=***' --steps 3"
    monkeypatch.setattr("sys.argv", ["x.py", *(["photo.png"] * 1000)])
    assert len(session_of(torch.device("cpu"), torch.float32)["command"].split()) == 202


def test_the_commit_is_that_of_git(tmp_path: Path) -> None:
    def git(*words: str, at: Path = tmp_path / "a") -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
        return subprocess.run(["git", *who, *words], cwd=at, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "a").mkdir()
    assert environment._commit(tmp_path / "a") is None
    git("init")
    assert environment._commit(tmp_path / "a") is None, "there is no commit yet"
    git("commit", "--allow-empty", "-m", "x")
    head = git("rev-parse", "HEAD")
    assert environment._commit(tmp_path / "a") == head
    git("worktree", "add", "-b", "other", str(tmp_path / "b"))
    assert environment._commit(tmp_path / "b") == head
    git("pack-refs", "--all")
    assert environment._commit(tmp_path / "a") == environment._commit(tmp_path / "b") == head
    git("checkout", "--detach")
    assert environment._commit(tmp_path / "a") == head


def test_info_prints_a_line(shell: Shell, copied: Callable[[str], str]) -> None:
    run = copied("moons")
    assert f"trained with scoresde {scoresde.__version__}" in shell(f"info {run}")
    assert shell.json(f"info {run}")["environment"][0]["seed"] == 0  # type: ignore[index]
    (Path(run) / "env.json").unlink()
    assert "trained with" not in shell(f"info {run}") and shell.json(f"info {run}")["environment"] == []
