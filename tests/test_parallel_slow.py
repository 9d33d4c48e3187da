"""Runs of one and two processes that are killed at any time continue bit for bit, and in another number to rounding.

FUZZ_SEED=7 FUZZ_PAIR_KILLS=40 pytest tests/test_parallel_slow.py -m slow -s
"""

from __future__ import annotations

import os
import random
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import SIGKILL, SIGTERM, Processes, scoresde, scoresde_in_place, start, when
from safetensors.torch import load_file
from torch import Tensor

from scoresde import load_data
from scoresde.run.files import newest_checkpoint

SEED = os.environ.get("FUZZ_SEED", "0")
KILLS = int(os.environ.get("FUZZ_PAIR_KILLS", "10"))

pytestmark = pytest.mark.slow

LINE = "train --preset tiny --set network.channels=4 --batch 16 --steps 40 --set save_minutes=0 --quiet"
HERE = "--threads 1 --device cpu"
# Each pair of settings occurs in one of these rows, except that only several processes can divide the weights, and that
# importance sampling belongs to the likelihood weighting, which models trained with optimal transport do not have.
ROWS = [
    (1, "0", "low-discrepancy", "independent", 1, "ddp", 0),
    (1, "0.1", "loss-second-moment", "ot", 1, "ddp", 0),
    (1, "0.1", "low-discrepancy", "ot", 2, "ddp", 0),
    (1, "0", "importance", "independent", 2, "ddp", 2),
    (2, "0", "low-discrepancy", "ot", 1, "ddp", 0),
    (2, "0.1", "loss-second-moment", "independent", 2, "ddp", 0),
    (2, "0.1", "importance", "independent", 1, "ddp", 0),
    (2, "0", "loss-second-moment", "ot", 2, "ddp", 0),
    (2, "0.1", "low-discrepancy", "independent", 1, "ddp", 0),
    (2, "0.1", "low-discrepancy", "ot", 1, "fsdp", 2),
    (2, "0", "importance", "independent", 2, "fsdp", 0),
    (2, "0", "loss-second-moment", "independent", 1, "fsdp", 2),
]


def state(folder: Path) -> dict[str, Tensor]:
    checkpoint = newest_checkpoint(folder)
    files = sorted(checkpoint.rglob("*.safetensors"))
    return {f"{f.stem} {name}": v for f in files for name, v in load_file(f).items()}


def finished(processes: Processes) -> None:
    done = processes.wait()
    assert all(code == 0 for code, _, _ in done), done


def done_steps(folder: Path) -> int:
    found = [int(path.name[5:]) for path in folder.glob("checkpoints/step-*") if path.name[5:].isdigit()]
    return max(found, default=0)


def in_save(run: Path, processes: Processes) -> bool:
    """Whether a checkpoint is being written, or there is nothing left to kill."""
    return any(p.poll() is not None for p in processes.started) or any((run / "checkpoints").glob("*.tmp*"))


def settings(dropout: str, sampler: str, coupling: str, accumulate: int) -> str:
    more = f"--set network.dropout={dropout} --t-sampler {sampler} --coupling {coupling} --set accumulate={accumulate}"
    return f"{more} --weighting likelihood" if sampler == "importance" else more


@pytest.mark.parametrize(("size", "dropout", "sampler", "coupling", "accumulate", "shard", "workers"), ROWS)
def test_half_a_kill_and_the_other_half(
    tmp_path: Path, size: int, dropout: str, sampler: str, coupling: str, accumulate: int, shard: str, workers: int
) -> None:
    x = load_data("digits").train
    np.save(tmp_path / "digits.npy", (x * 15).to(torch.uint8).numpy())  # files have 256 levels
    more = f"--data digits.npy --shard {shard} --set workers={workers}"
    line = f"{LINE} {settings(dropout, sampler, coupling, accumulate)} {more} {HERE}"
    started = scoresde_in_place if workers else scoresde
    finished(started(f"{line} --out whole", tmp_path, size))
    halves = started(f"{line} --out halves", tmp_path, size)
    when(lambda: done_steps(tmp_path / "halves") >= 18, halves)
    halves.kill()
    halves.wait()
    assert 18 <= done_steps(tmp_path / "halves") < 40
    finished(started(f"train --resume halves --shard {shard} --quiet {HERE}", tmp_path, size))
    one, two = state(tmp_path / "whole"), state(tmp_path / "halves")
    assert one.keys() == two.keys() and len(one) > 100
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


# From the second checkpoint on, the first process (or each) can write only small files, as if the disk were full.
FULL = """
import resource, sys
from scoresde.core.parallel import rank
from scoresde.train import loop
saved, calls = loop._saved, []
def full(*args):
    calls.append(1)
    if len(calls) == 2 and rank() in {ranks}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    saved(*args)
loop._saved = full
from scoresde.cli import main
main()
"""


@pytest.mark.parametrize(("shard", "ranks"), [("ddp", (0,)), ("fsdp", (0,)), ("fsdp", (1,)), ("fsdp", (0, 1))])
def test_a_full_disk_loses_nothing(tmp_path: Path, shard: str, ranks: tuple[int, ...]) -> None:
    line = f"{LINE.replace('save_minutes=0', 'save_minutes=60')} --data digits --shard {shard} {HERE}"
    finished(scoresde(f"{line} --out whole", tmp_path, 2))
    ended = start(["-c", FULL.replace("{ranks}", repr(ranks)), *line.split(), "--out", "run"], 2, tmp_path).wait()
    assert all(code in (1, 3) for code, _, _ in ended) and 3 in {code for code, _, _ in ended}, ended
    told = "".join(err for _, _, err in ended)
    assert "File too large" in told and "Traceback" not in told
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000000008"]
    finished(scoresde(f"train --resume run --shard {shard} --quiet {HERE}", tmp_path, 2))
    one, two = state(tmp_path / "whole"), state(tmp_path / "run")
    assert one.keys() == two.keys() and all(torch.equal(two[name], value) for name, value in one.items())
    assert not list((tmp_path / "run").rglob("*.tmp*"))


def test_two_then_one_then_two(tmp_path: Path) -> None:
    line = f"{LINE} --data digits --dtype float64 {HERE}"
    finished(scoresde(f"{line} --out whole", tmp_path, 1))
    for number, size in enumerate((2, 1, 2)):
        on = "train --resume parts --quiet --dtype float64" if number else f"{line.replace(HERE, '')} --out parts"
        processes = scoresde(f"{on} {HERE}", tmp_path, size)
        if number < 2:
            when(lambda least=12 * (number + 1): done_steps(tmp_path / "parts") >= least, processes)  # type: ignore[misc]
            processes.send(size - 1, SIGTERM)
            assert {code for code, _, _ in processes.wait()} == {75}
        else:
            finished(processes)
    one, two = state(tmp_path / "whole"), state(tmp_path / "parts")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-11, msg=name)


def test_kills_of_one_or_both_of_two(tmp_path: Path) -> None:
    """Random kills, a tenth of them in a save: nothing is lost, and the end is that of an uninterrupted run."""
    rng = random.Random(f"{SEED} pairs")
    finished(scoresde(f"{LINE} --data digits {HERE} --out whole", tmp_path, 2))
    expected = state(tmp_path / "whole")
    began, kills, runs, seconds = time.monotonic(), 0, 0, 12.0
    while kills < KILLS:
        run = tmp_path / f"run-{runs}"
        runs += 1
        while True:
            there = (run / "config.json").exists() and done_steps(run) > 0
            line = f"train --resume {run} --quiet {HERE}" if there else f"{LINE} --data digits {HERE} --out {run}"
            start = time.monotonic()
            processes = scoresde(line, tmp_path, 2)
            if kills >= KILLS:
                finished(processes)
                break
            if kills % 10 == 9:  # while a checkpoint is written
                when(partial(in_save, run, processes), processes)
            else:
                until = start + rng.uniform(0.2 * seconds, 1.2 * seconds)
                while time.monotonic() < until and all(p.poll() is None for p in processes.started):
                    time.sleep(0.01)
            if all(p.poll() == 0 for p in processes.started):
                processes.wait()
                break
            victims = rng.choice(([0], [1], [0, 1]))
            for rank in victims:
                processes.send(rank, SIGKILL)
            kills += 1
            codes = [code for code, _, _ in processes.wait()]
            assert all(code in (0, 1, 75, -SIGKILL) for code in codes), codes
        found = state(run)
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), run
        assert not list(run.rglob("*.tmp*"))
        shutil.rmtree(run)
    print(f"{kills} kills in {runs} runs, {time.monotonic() - began:.0f} s")
