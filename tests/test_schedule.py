"""How often training validates and draws, how long that takes, and that a finished run says so at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import edit
from shell import Shell

from scoresde import TrainConfig, fit, load
from scoresde.core.errors import UsageError
from scoresde.core.files import read_lines
from scoresde.data import Dataset
from scoresde.run import origin
from scoresde.train import finished, pictures, prepared, timed, timing, validation
from scoresde.train.loop import previews
from scoresde.train.pictures import evaluations
from scoresde.train.schedule import affordable, interval, looks
from scoresde.train.validation import evaluations as validated

SMALL = {"width": 8, "blocks": 1}
CONFIG = TrainConfig(steps=40, batch=16, network_options=SMALL)


def table(n: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 2))


@pytest.mark.parametrize("batch", [1, 8, 128])
@pytest.mark.parametrize("count", [1, 37, 1023, 2000])
def test_validation_and_pictures_never_take_more_than_a_fifth(count: int, batch: int) -> None:
    cost = validated(count)
    assert cost % count == 0
    for steps in (1, 2, 30, 100, 999, 5000, 100_000):
        every, training = interval(cost, steps, batch), 3 * batch * steps
        when = [n for n in range(1, steps + 1) if every <= steps and (n % every == 0 or n == steps)]
        assert len(when) == looks(steps, every) <= 20
        assert 5 * cost * len(when) <= training
        assert when or 5 * cost > training, "one validation is possible"
        for done in (0, 1, every, steps // 2, steps):
            assert looks(steps, every, done) == len([n for n in when if n > done])
        shown = previews(steps, most=affordable(cost, steps, batch))
        assert steps in shown and (shown == {steps} or 5 * cost * len(shown) <= training)


def test_the_budgets_of_the_presets_are_looked_at_twenty_times() -> None:
    for steps, batch, rows in ((4_000, 512, 2_000), (2_000, 64, 2_000), (5_000, 32, 37), (100_000, 128, 2_000)):
        assert looks(steps, interval(validated(rows), steps, batch)) == 20


def test_a_new_run_states_its_interval_and_an_older_one_keeps_its_own(tmp_path: Path) -> None:
    data = Dataset.of(table())
    cost = validated(data.info.n_validation)
    config = replace(CONFIG, steps=100, batch=32)
    run = fit(config, data=data, out=tmp_path / "new", quiet=True)
    assert run.config.validate_every == interval(cost, 100, 32) > 5

    def seen(folder: Path) -> list[int]:
        return [line["step"] for line in read_lines(folder / "metrics.jsonl") if "validation" in line]

    every = run.config.validate_every
    assert seen(tmp_path / "new") == sorted({*range(every, 101, every), 100})
    fit(replace(config, steps=120), data=data, out=tmp_path / "new", resume=True, quiet=True)
    assert load(tmp_path / "new").config.validate_every == every and seen(tmp_path / "new")[-1] == 120

    older = tmp_path / "older"
    fit(replace(config, validate_every=5), data=data, out=older, quiet=True)
    edit(
        older / "config.json", lambda s: s | {"config": {k: v for k, v in s["config"].items() if k != "validate_every"}}
    )
    fit(replace(config, steps=120), data=data, out=older, resume=True, quiet=True)
    assert seen(older) == [*range(5, 101, 5), 102, 108, 114, 120]  # as ever: at each twentieth of the run
    assert load(older).config.validate_every == 0


def test_a_run_that_is_too_short_is_not_validated_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    short = replace(CONFIG, steps=4, batch=8)
    fit(short, data=table(), save=False)
    told = capsys.readouterr().err
    assert "validation: none, because the number of training steps (4) is less than validate_every" in told
    run = fit(replace(short, validate_every=2), data=table(), save=False)
    told = capsys.readouterr().err
    assert "validation: " in told and "validation: none" not in told and run.config.validate_every == 2
    with pytest.raises(UsageError, match=r"validate_every is -1.*0 means as often as suits"):
        replace(short, validate_every=-1)


def test_less_validation_changes_no_weights(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=10)
    one, other = (fit(replace(config, validate_every=n), data=table(), save=False, quiet=True) for n in (1, 1000))
    for a, b in zip(one.base.learned.parameters(), other.base.learned.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_estimate_counts_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts evaluations, the estimate is what training takes."""
    count = 0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return float(count)

    data = Dataset.of(table())
    config, model, spec = prepared(replace(CONFIG, steps=400, batch=64), data)
    model.network.register_forward_pre_hook(lambda _, given: add(len(given[0])))

    def add(n: int) -> None:
        nonlocal count
        count += n

    for module in (timing, pictures, validation):
        monkeypatch.setattr(module, "time", Clock)
    found = timed(config, model, spec, data)
    assert (found.steps, found.step) == (400, 64)
    assert found.validations == looks(400, config.validate_every) > 0
    assert found.validation == validated(data.info.n_validation)
    assert found.picture == evaluations(data.info, None) == 1024 * 33
    assert found.pictures == len(previews(400, most=affordable(1024 * 33, 400, 64)))
    assert (
        found.seconds
        == sum(found.parts.values())
        == (400 * 64 + found.validations * found.validation + found.pictures * found.picture)
    )
    assert found.parts["validation"] <= found.parts["steps"] * 3 / 5
    later = timed(config, model, spec, data, done=399)
    assert (later.steps, later.validations, later.pictures) == (1, 1, 1)


@pytest.mark.usefixtures("pictures")
def test_the_dry_run_prints_the_parts_and_their_sum(shell: Shell) -> None:
    np.save("x.npy", table())
    line = "train --data x.npy --steps 300 --batch 32 --set network.width=8 --dry-run --quiet"
    found = shell.json(line)
    assert found["validations"] > 0 and found["pictures"] == 1 and found["seconds_per_validation"] > 0
    assert sum(found["minutes"].values()) == pytest.approx(found["estimated_minutes"], abs=0.2)
    rows = shell(line).splitlines()[-6:]
    assert [row.split()[0] for row in rows] == ["memory", "disk", "time", "steps", "validation", "pictures"]
    assert 2**26 < found["peak_memory"] < 2**36 and "the peak of the whole process" in rows[0]
    assert sorted(p.name for p in Path().iterdir()) == ["x.npy"]
    shell(line.replace(" --dry-run", " --out runs/x"))
    kept = sum(path.stat().st_size for path in Path("runs/x/checkpoints/step-000000300").iterdir())
    assert 0 < found["checkpoint_bytes"] <= kept <= found["checkpoint_bytes"] + 2**16, "apart from headers"
    assert found["disk_bytes"] > 3 * found["checkpoint_bytes"]
    resumed = shell.json("train --resume runs/x --steps 400 --dry-run --quiet")
    assert resumed["config"]["validate_every"] == found["config"]["validate_every"]
    assert shell("train --resume runs/x --dry-run") and "nothing left to do" in shell.err


@pytest.mark.usefixtures("pictures")
def test_a_finished_run_says_so_before_its_data_are_read(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", table())
    line = "train --data x.npy --batch 16 --set network.width=8 --set validate_every=1 --out runs/x --quiet"
    shell(f"{line} --steps 6")
    before = {path: path.read_bytes() for path in Path("runs/x").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(origin, "load_data", None)
        patch.setattr(TrainConfig, "load_data", None)
        for more in ("", " --steps 6"):
            found = shell.json(f"train --resume runs/x{more}")
            assert (found["run"], found["step"]) == ("runs/x", load("runs/x").step)
            told = "runs/x has completed all its steps (6), so there is nothing left to do; use a larger --steps"
            assert told in shell.err
        shell.refuses("train --resume runs/x --steps 5", 2, "already been trained for 6 steps", "--steps")
    assert before == {path: path.read_bytes() for path in Path("runs/x").rglob("*") if path.is_file()}
    shutil.copytree("runs/x", "runs/y")
    shell("train --resume runs/y --steps 8")
    assert "trained 2 steps" in shell.err and json.loads(Path("runs/y/validation.json").read_text())["last_step"] == 8


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("lost", ["validation.json", "plots/loss.png", None])
def test_a_run_that_was_stopped_after_its_last_step_is_not_finished(tmp_path: Path, lost: str | None) -> None:
    folder, config = tmp_path / "r", replace(CONFIG, steps=6, validate_every=1)
    run = fit(config, data=table(), out=folder, quiet=True)
    if lost is None:  # of an extension, the checkpoint alone was written
        edit(folder / "validation.json", lambda told: told | {"last_step": 3})
    else:
        assert finished(folder, run.config)
        (folder / lost).unlink()
    assert not finished(folder, run.config)
    fit(config, data=table(), out=folder, resume=True, quiet=True)
    assert finished(folder, run.config)
