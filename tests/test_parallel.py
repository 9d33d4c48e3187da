"""Several processes give the results of one, stop together, and go on in another number."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import SIGKILL, SIGTERM, scoresde, start, when
from shell import Shell
from trains import CASES, OWN, Own, made, moments, trained

from scoresde import fit, load
from scoresde.core import parallel, signals
from scoresde.core.errors import Preempted, UsageError
from scoresde.core.files import read_tensors
from scoresde.core.parallel import ALONE, Agreement, World, divided, own_device, rank, ranks
from scoresde.core.signals import Interrupts, Limit
from scoresde.run.files import fault_of, newest_checkpoint
from scoresde.train.snapshots import snapshots


def test_rows_of_all_processes_are_all_rows() -> None:
    for count in (1, 7, 12):
        for size in (1, 2, 3, 5):
            parts = [range(count)[World(r, size).rows(count)] for r in range(size)]
            assert [i for part in parts for i in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_is_divided_evenly() -> None:
    divided(24, [("processes", 2), ("accumulate", 3)])
    with pytest.raises(UsageError, match=r"64 rows .* 2 \(processes\) x 3 \(accumulate\).*use a batch of 66") as error:
        divided(64, [("processes", 2), ("accumulate", 3)])
    assert (error.value.parameter, error.value.value) == ("batch", 66)
    with pytest.raises(UsageError, match="use a batch of 4"):
        divided(1, [("processes", 4)])


def test_one_process_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.together() as world:
        assert world is ALONE and not torch.distributed.is_initialized()
        x, module = torch.randn(3), torch.nn.Linear(2, 2)
        assert world.mean(x) is x and world.gather(x) is x and world.told(x) is x and world.shared(module) is module
        assert world.led(lambda: 3) == 3 and world.exchange(4) == [4] and world.stopped is None
        assert Agreement(world)(None) == (None, False) and Agreement(world)(SIGTERM, True) == (SIGTERM, True)


def test_the_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch, shell: Shell, moons: str) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert (rank(), ranks()) == (3, 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device(torch.device("cuda")) == torch.device("cuda:1")
    assert own_device(torch.device("cuda:0")) == torch.device("cuda:0")
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # a task that sees only its own GPU
    assert own_device(torch.device("cuda")) == torch.device("cuda:0")
    shell.refuses("info", 2, "torchrun has started 8 processes", "run info without torchrun")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE is 'two', but must be a whole number"):
        ranks()


def close(one: dict[str, Any], two: dict[str, Any], name: str) -> None:
    exact = CASES[name][1] == torch.float64
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-12 if exact else 1e-6)
    for part in ("weights", "averages", "times"):
        assert one[part].keys() == two[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=0, atol=1e-11 if exact else 1e-4, equal_nan=True)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    count = 6
    processes = start([str(Path(__file__).with_name("trains.py")), str(count), "two.pt"], 2, tmp_path)
    ones = {name: trained(name, count) for name in CASES}
    done = processes.wait()
    assert [code for code, _, _ in done] == [0, 0], done
    twos = torch.load(tmp_path / "two.pt")
    for name, one in ones.items():
        close(one, twos[name], name)
        assert all(map(math.isfinite, one["losses"])) and one["losses"][0] != one["losses"][-1]
    # What two processes saved in parts, one process reads as it was.
    for name in ("sharded", "sharded, accumulate"):
        checkpoint = tmp_path / name / "checkpoints" / f"step-{count:09d}"
        assert fault_of(checkpoint) is None and len(list((checkpoint / "shards").iterdir())) == 2
        assert not (checkpoint / "model.safetensors").exists()
        state = made(name)[3]
        state.load(checkpoint)
        assert state.step == count and state.divided == (1, 1)
        read = {"weights": state.model.state_dict(), "averages": state.averaged(), "moments": moments(state)}
        for part, found in read.items():
            assert found.keys() == twos[name][part].keys() and len(found) > 20
            assert all(torch.equal(value, twos[name][part][key]) for key, value in found.items()), part
        assert all(float(v) == count for key, v in read["moments"].items() if key.endswith(".step"))
        (checkpoint / "shards" / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"")
        assert "is 0 bytes long" in str(fault_of(checkpoint))

    # All start with the weights and buffers of the first, whatever they are, and each `fit` joins the same group.
    torch.manual_seed(0)
    first = Own()
    for shard in ("ddp", "fsdp"):
        run = load(tmp_path / f"own-{shard}", network=Own)
        assert run.step == 4 and torch.equal(run.base.network.frequencies, first.frequencies)  # type: ignore[attr-defined]
        assert int(run.base.network.normal.num_batches_tracked) == 4  # type: ignore[attr-defined]
        again = fit(replace(OWN, steps=5), network=Own(), out=tmp_path / f"own-{shard}", resume=True, quiet=True)
        taken = snapshots(tmp_path / f"own-{shard}")
        assert list(taken) == [1, 2, 4, 5] and len(read_tensors(taken[4])) == len(run.base.learned.state_dict())  # type: ignore[attr-defined]
        for step in (1, 2):  # in a resumed run, running statistics of ddp and fsdp differ
            others = read_tensors(snapshots(tmp_path / "own-ddp")[step])
            for key, value in read_tensors(taken[step]).items():
                torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)
        assert again.step == 5 and float(again.base.network.gain) != 1.0  # type: ignore[attr-defined]


LINE = "train --data moons --set network.width=16 --batch 32 --dtype float64 --device cpu --threads 1"


def test_a_signal_to_one_process_stops_both_and_one_goes_on(tmp_path: Path) -> None:
    """A run that two processes began, and one finished, equals that of one process."""
    line = f"{LINE} --steps 400 --set save_minutes=0"
    both = scoresde(f"{line} --out two", tmp_path)
    when(lambda: len(list(tmp_path.glob("two/checkpoints/step-*"))) > 0, both)
    both.send(1, SIGTERM)
    (code, out, err), (other, nothing, silent) = both.wait()
    assert (code, other, out, nothing, silent) == (75, 75, "", "", ""), (err, silent)
    assert "SIGTERM after step" in err and "continue with: scoresde train --resume two" in err
    step = int(newest_checkpoint(tmp_path / "two").name.removeprefix("step-"))
    assert 0 < step < 400 and f"after step {step}:" in err
    stored = json.loads((newest_checkpoint(tmp_path / "two") / "state.json").read_text())
    assert stored["divided"] == [2, 1]
    more = "train --resume two --threads 1 --dtype float64 --device cpu"
    alone = [scoresde(line, tmp_path, 1) for line in (f"{LINE} --steps 400 --out one", more)]
    assert [code for one in alone for code, _, _ in one.wait()] == [0, 0]
    one, two = (newest_checkpoint(tmp_path / name) for name in ("one", "two"))
    for part in ("model", "ema", "optim"):
        a, b = (read_tensors(folder / f"{part}.safetensors") for folder in (one, two))
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=0, atol=1e-11)


def test_two_processes_share_samples_and_likelihoods(tmp_path: Path, trained: Path) -> None:
    run = trained / "moons"
    draw = f"sample {run} --n 24 --batch 4 --solver em --steps 300 --threads 1 --device cpu --save npz"
    both = scoresde(f"{draw} --out two", tmp_path)
    when(lambda: len(list(tmp_path.glob("two/parts/*.safetensors"))) > 0, both)
    both.send(1, SIGKILL)
    codes = [code for code, _, _ in both.wait()]
    assert codes == [1, -SIGKILL]  # the code of the cause is the highest
    kept = {path.name for path in tmp_path.glob("two/parts/*.safetensors")}
    again = scoresde(f"{draw} --out two --resume", tmp_path)
    line = f"likelihood {run} --limit 12 --batch 4 --threads 1 --device cpu --save csv --out scores"
    score = scoresde(line, tmp_path)
    alone = scoresde(f"{draw} --out one", tmp_path, 1)
    done = again.wait() + score.wait() + alone.wait()
    assert [code for code, _, _ in done] == [0] * 5, done
    assert kept and not list(tmp_path.glob("two/parts"))
    one, two = (np.load(tmp_path / name / "samples.npz") for name in ("one", "two"))
    assert np.array_equal(two["index"], np.arange(24))
    assert all(np.array_equal(one[key], two[key]) for key in one.files)
    x = load(run, device="cpu").data().test[:12]
    expected = load(run, device="cpu").log_likelihood(x, batch=4)
    table = np.genfromtxt(tmp_path / "scores" / "likelihood.csv", delimiter=",", names=True)
    assert len(table) == 12 and np.isfinite(table[table.dtype.names[1]]).all() and len(expected.values) == 12


# ------------------------------------------------------------------------------------------------------------- signals


def test_a_signal_elsewhere_stops_long_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Preempted, match="SIGTERM"), Interrupts():
        signals.check()
        monkeypatch.setattr(signals, "elsewhere", lambda: int(SIGTERM))
        signals.check()


def test_a_process_tells_the_others_that_it_stops() -> None:
    told: dict[str, str] = {}

    class Store:
        def set(self, key: str, value: str) -> None:
            told[key] = value

        def check(self, keys: list[str]) -> bool:
            return all(key in told for key in keys)

        def get(self, key: str) -> bytes:
            return told[key].encode()

    world = World(1, 2, Store())
    with pytest.raises(Preempted), parallel.shared_rows(world):
        now = parallel.sharing()
        assert (now.rank, now.size, now.stopped) == (1, 2, None)
        raise Preempted("SIGTERM")
    assert World(0, 2, Store(), now.work).stopped == SIGTERM  # and later work is not stopped
    assert World(0, 2, Store(), now.work + 1).stopped is None
    assert parallel.sharing() is ALONE and signals.elsewhere is None


def test_a_time_limit_is_a_signal(shell: Shell) -> None:
    shell("train --data moons --set network.width=8 --batch 8 --steps 3 --out short --max-time 1h --quiet")
    assert signals._limit is None
    with pytest.raises(Preempted, match="time limit 1s: stopped before"), Interrupts():
        limit = Limit(0.01, "1s")
        while True:
            signals.check()
    limit.cancel()
    assert signals._limit is None
    # Another process of the same work learns of it by a number.
    with Interrupts() as interrupts:
        interrupts.remember()
        limit = Limit(3600, "1h")
        interrupts.code = int(SIGTERM) + signals.OVER
        assert interrupts.number == SIGTERM and "time limit 1h" in str(interrupts.error())
    limit.cancel()
    for wrong in ("5x", "0s", "3h-4m"):
        shell.refuses(f"train --data moons --max-time {wrong}", 2, "is not a duration", "3h50m")


def test_a_time_limit_in_training_keeps_the_checkpoint(shell: Shell) -> None:
    line = "train --data moons --set network.width=8 --batch 8 --steps 1000000 --out long --max-time 1s --quiet"
    shell(line, 75)
    found = re.fullmatch(
        r"stopped: time limit 1s after step (\d+): the checkpoint is saved in long; continue with: scoresde train "
        r"--resume long\n", shell.err,
    )  # fmt: skip
    assert found is not None and f"step-{int(found[1]):09}" == newest_checkpoint(Path("long")).name


def test_what_may_change_when_a_run_is_resumed(shell: Shell) -> None:
    shell("train --data moons --set network.width=8 --batch 8 --steps 4 --out r --accumulate 2 --keep 3 --quiet")
    config = json.loads(Path("r/config.json").read_text())["config"]
    assert (config["accumulate"], config["keep"]) == (2, 3)
    shell("train --resume r --steps 6 --accumulate 4 --keep 1 --set workers=0 --set recompute=yes --quiet")
    config = json.loads(Path("r/config.json").read_text())["config"]
    assert (config["accumulate"], config["keep"], config["recompute"]) == (4, 1, True)
    assert len([p for p in Path("r/checkpoints").iterdir() if p.name.startswith("step-")]) == 1
    shell.refuses("train --resume r --steps 8 --set clip=3", 2, "--set cannot be changed when a run is resumed")
    shell.refuses("train --data moons --batch 9 --accumulate 2 --steps 2 --out b", 2, "use a batch of 8", "--batch 8")
    assert not Path("b").exists()
    # An automatic batch is made to fit.
    shell("train --data moons --set network.width=8 --accumulate 7 --steps 1 --out c --quiet")
    assert json.loads(Path("c/config.json").read_text())["config"]["batch"] % 7 == 0
