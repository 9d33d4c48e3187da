"""Parts: an interrupted call goes on, is the same to the bit, and refuses to mix two requests."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import Shell, stop_after

from scoresde import Likelihood, load
from scoresde.core.errors import UsageError
from scoresde.core.parts import Parts, batch_kept, digest, rows_kept
from scoresde.likelihood import data as likelihood_data
from scoresde.solvers import base

SAMPLE = "sample M --n 10 --batch 4 --solver pc --steps 2"
SCORE = "likelihood M --limit 10 --batch 4 --rtol 0.3 --elbo --strata 2"


@pytest.fixture
def halted(shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``halted(line, 2)`` stops a command after two parts; returns what was said."""

    def halt(line: str, count: int, number: signal.Signals = signal.SIGTERM) -> str:
        with monkeypatch.context() as patch:
            stop_after(patch, count, number)
            shell(line.replace("M", moons), 130 if number == signal.SIGINT else 75)
        return shell.err

    return halt


def solved(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """Grows with each call of a function."""
    calls: list[int] = []
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    return calls


def same(a: str, b: str) -> bool:
    x, y = np.load(a), np.load(b)
    return x.files == y.files and all(np.array_equal(x[name], y[name]) for name in x.files)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_samples_go_on_to_the_bit(
    shell: Shell, moons: str, halted: Callable[..., str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    line = f"{SAMPLE} --save npz,path".replace("M", moons)
    shell(f"{line} --out whole")
    told = halted(f"{line} --out o", 2, number)
    assert (
        f"stopped: {number.name}: 8 of 10 samples are saved in o; continue with: scoresde sample --out o --resume"
        in told
    )
    assert sorted(p.name for p in Path("o/parts").iterdir()) == [
        "000000-000003.safetensors", "000004-000007.safetensors",
    ]  # fmt: skip
    calls = solved(monkeypatch, base, "fixed_solution")
    shell(f"{line.replace('--batch 4', '--batch 3')} --out o --resume")  # in ranges of the size that is there
    assert len(calls) <= 1 and "resuming: 8 of 10 samples" in shell.err
    assert same("whole/samples.npz", "o/samples.npz") and same("whole/path.npz", "o/path.npz")
    assert sorted(p.name for p in Path("o").iterdir()) == ["path.npz", "samples.json", "samples.npz"]


def test_likelihoods_go_on_to_the_bit(
    shell: Shell, moons: str, halted: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{SCORE} --save csv --data moons --data moons".replace("M", moons)
    shell(f"{line} --out whole")
    assert "4 of 20 scores are saved in o" in halted(f"{line} --out o", 4)  # three bounds, and then a score
    calls = solved(monkeypatch, likelihood_data, "piece")
    shell(f"{line} --out o --resume")
    assert len(calls) == 5 and Path("whole/likelihood.csv").read_bytes() == Path("o/likelihood.csv").read_bytes()
    assert not Path("o/parts").exists()


def test_parts_outlive_a_full_disk_at_the_end(shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoresde.core.errors import CheckpointError
    from scoresde.run import samples

    line = f"{SAMPLE} --save npz --out o".replace("M", moons)

    def full(*_: object) -> None:
        raise CheckpointError("cannot write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(samples, "write_arrays", full)
        shell.refuses(line, 3, "No space left")
    assert "10 of 10 samples are saved in o; use --resume to continue" in shell.err
    shell(f"{line} --resume")
    assert Path("o/samples.npz").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--seed 3", ["seed 3 instead of seed 0"]),
        ("--start 2", ["start 2 instead of start 0"]),
        ("--steps 3", ["solver.steps 3 instead of solver.steps 2"]),
        ("--solver sde", ["solver sde instead of solver pc"]),
        ("--no-denoise", ["denoise false instead of denoise true"]),
        ("--dtype float64", ["dtype float64 instead of dtype float32"]),
        ("--save path", ["record true instead of record false"]),
    ],
)
def test_another_request_is_refused(
    shell: Shell, moons: str, halted: Callable[..., str], change: str, words: list[str]
) -> None:
    halted(f"{SAMPLE} --out o", 1)
    shell.refuses(
        f"{SAMPLE} --out o --resume {change}".replace("M", moons), 2, "does not match the parts in o/parts", *words
    )
    assert rows_kept(Path("o/parts")) == 4


def test_another_model_is_refused(shell: Shell, moons: str, halted: Callable[..., str]) -> None:
    halted(f"{SAMPLE} --out o", 1)
    shell(f"train --resume {moons} --steps 4 --quiet")
    shell.refuses(f"{SAMPLE} --out o --resume".replace("M", moons), 2, "step 4 instead of step 3", "weights")


def test_other_data_are_refused(shell: Shell, moons: str, halted: Callable[..., str]) -> None:
    np.save("a.npy", np.linspace(-1, 1, 40, dtype=np.float32).reshape(20, 2))
    line = "likelihood M --data a.npy --split all --limit 8 --batch 4 --rtol 0.3 --no-check --save csv --out o"
    halted(line, 1)
    np.save("a.npy", np.linspace(-1, 2, 40, dtype=np.float32).reshape(20, 2))
    shell.refuses(f"{line} --resume".replace("M", moons), 2, "(rows 0 to 3) was computed from different data")


@pytest.mark.parametrize("where", [20, b'seed\\": 0', -3], ids=["header", "request", "numbers"])
def test_a_damaged_part_is_done_again(shell: Shell, moons: str, halted: Callable[..., str], where: int | bytes) -> None:
    line = f"{SAMPLE} --save npz".replace("M", moons)
    shell(f"{line} --out whole")
    halted(f"{line} --out o", 2)
    part = Path("o/parts/000000-000003.safetensors")
    content = bytearray(part.read_bytes())
    if isinstance(where, bytes):
        assert where in content
        where = content.index(where) + len(where) - 1
    content[where] ^= 1
    part.write_bytes(content)
    shell(f"{line} --out o --resume")
    assert "000000-000003.safetensors is damaged, so rows 0 to 3 are computed again" in shell.err
    assert same("whole/samples.npz", "o/samples.npz")


def test_a_range_that_was_shorter_is_done_again(shell: Shell, moons: str, halted: Callable[..., str]) -> None:
    """More samples may follow, and are those of one call; the last range of the first call is not whole."""
    line = f"{SAMPLE} --save npz".replace("M", moons)
    shell(f"{line} --out whole --n 13")
    halted(f"{line} --out o", 3)
    shell(f"{line} --out o --n 13 --resume")
    assert same("whole/samples.npz", "o/samples.npz")


def test_a_finished_result_is_told_again(shell: Shell, moons: str) -> None:
    for line in (f"{SAMPLE} --save npz --out s".replace("M", moons), f"{SCORE} --save csv --out l".replace("M", moons)):
        first = shell(line)
        assert shell(f"{line} --resume") == first and "is already finished; there is nothing left to do" in shell.err
        shell.refuses(f"{line} --resume --seed 1", 2, "does not match the results in", "seed 1 instead of seed 0")
    shell.refuses(
        f"{SAMPLE} --out s --resume --n 20".replace("M", moons), 2, "s already contains a finished result of 10 samples"
    )


def test_without_out_it_is_the_folder_of_the_same_command(shell: Shell, moons: str, halted: Callable[..., str]) -> None:
    line = f"{SAMPLE} --save npz".replace("M", moons)
    shell(line)
    halted(line, 1)  # into a second folder
    assert "ode" not in shell(f"{line} --resume") and "resuming: 4 of 10" in shell.err
    assert Path(moons, "samples/pc-seed0-2/samples.npz").is_file()
    assert not Path(moons, "samples/pc-seed0-3").exists()


def test_nothing_to_go_on_from_is_said(shell: Shell, moons: str) -> None:
    line = f"{SAMPLE} --save npz --out o --resume".replace("M", moons)
    Path("o").mkdir()  # of a call that was killed before its first part
    shell(line)
    assert (
        "o does not contain anything to resume; starting from the beginning" in shell.err
        and Path("o/samples.npz").is_file()
    )
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    shell.refuses(line.replace("--out o", "--out mine"), 2, "mine contains files, but neither parts nor a result")
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.tex"]


# ------------------------------------------------------------------------------------------------------------ library


def test_the_library_keeps_what_it_is_told_to(trained: Path, tmp_path: Path) -> None:
    run, keep = load(trained / "classes").given([0, 1, 2, 3, 4]), tmp_path / "k"
    first = run.sample(5, "heun", batch=2, keep=keep)
    assert rows_kept(keep) == 5 and batch_kept(keep) == 2
    (keep / "000002-000003.safetensors").unlink()  # another process might do this one
    again = run.sample(5, "heun", batch=5, keep=keep)
    assert torch.equal(first.x, again.x) and torch.equal(first.solution.nfe, again.solution.nfe)
    with pytest.raises(UsageError, match=r"rows 0 to 1\) was computed"):  # each row has a class of its own
        load(trained / "classes").given([9, 1, 2, 3, 4]).sample(5, "heun", batch=2, keep=keep)


def test_scores_are_read_as_they_were(trained: Path, tmp_path: Path) -> None:
    run, x = load(trained / "moons"), torch.linspace(-1, 1, 10).reshape(5, 2)
    how = Likelihood(rtol=0.3, divergence="hutchinson", probes=2)
    first, again = (run.log_likelihood(x, how, batch=2, check=False, keep=tmp_path) for _ in range(2))
    for name in ("log_prob", "stderr_probes", "dims"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.model.z, again.model.z)
    assert (first.how, first.scale, first.bits_per_dim) == (again.how, again.scale, again.bits_per_dim)


def test_ranges_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    kept = Parts(tmp_path, {"seed": 0})

    def fail() -> torch.Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        kept.piece(torch.arange(3), fail, lambda x: ({"x": x}, {}), lambda tensors, _: tensors["x"])
    assert list(tmp_path.iterdir()) == []


def test_digests_tell_tensors_apart() -> None:
    a = torch.arange(6.0)
    assert digest(a) == digest(a.clone()) == digest(a.reshape(2, 3).T.contiguous().T.reshape(6))
    assert len({digest(a), digest(a.double()), digest(a.reshape(2, 3)), digest(a + 0.1), digest("a"), digest()}) == 6
    assert digest(torch.ones(1).expand(1)) == digest(torch.tensor(1.0).expand(1))
