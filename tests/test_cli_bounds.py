"""``scoresde likelihood --all-bounds``: the table that it prints and writes, what it costs, and how it is resumed."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import Shell

from scoresde import Likelihood, load, load_data
from scoresde.run import bounding

FAST = "--steps 2 --divergence difference --no-check --threads 1 --all-bounds --strata 3 --chain-steps 3"
COLUMNS = [f"bound_{key}" for key in ("flow", "k2", "k8", "truncated_normal", "elbo", "elbo_levels", "chain")]


def test_the_table_is_printed_and_written(shell: Shell, digits: str) -> None:
    out = shell(f"likelihood {digits} --limit 3 {FAST} --save csv,npz")
    lines = out.splitlines()
    assert lines[1].split() == "bound whose model bits/dim minus the flow evaluations".split()
    names = [re.split(r"  +", line)[:2] for line in lines[2:9]]
    assert names == [
        ["flow, uniform", "flow"], ["flow, K = 2", "flow"], ["flow, K = 8", "flow"],
        ["flow, truncated normal", "flow"], ["ELBO, uniform", "reverse SDE"], ["ELBO on the levels", "reverse SDE"],
        ["chain, T = 3, uniform", "chain"],
    ]  # fmt: skip
    assert "the rows are not ordered" in out and "K = 1 with the same probe" in out
    stored = json.loads(Path(digits, "likelihood", "likelihood.json").read_text())
    found = stored["sets"][0]
    rows = found["bounds"]["rows"]
    assert rows[0]["mean"] == pytest.approx(found["mean"]) and "against" not in rows[0]
    assert rows[0]["stderr_mean"] == pytest.approx(found["stderr_mean"]) and found["bounds"]["left_out"] == {}
    with np.load(f"{digits}/likelihood/likelihood.npz") as arrays:
        assert [name for name in arrays.files if name.startswith("bound_")] == COLUMNS
        bits = {name: -arrays[name] / 64 / np.log(2) for name in COLUMNS}
    for row, name in zip(rows, COLUMNS, strict=True):
        assert row["mean"] == pytest.approx(bits[name].mean()) and row["n"] == 3
    chain = bits["bound_chain"] - bits["bound_flow"]
    assert rows[6]["difference"] == pytest.approx(chain.mean())
    assert rows[6]["stderr_difference"] == pytest.approx(chain.std(ddof=1) / np.sqrt(3))
    assert all(stored["columns"][name] == "nats" for name in COLUMNS)
    with open(f"{digits}/likelihood/likelihood.csv", newline="", encoding="utf-8") as file:
        assert set(COLUMNS) <= set(next(csv.DictReader(file)))
    index = arrays_index(digits)
    run = load(digits)
    alone = run.all_bounds(
        load_data("digits").test[index], Likelihood(steps=2, divergence="difference"), strata=3, chain_steps=3,
        check=False,
    )  # fmt: skip
    expected = torch.from_numpy(bits["bound_elbo_levels"])
    torch.testing.assert_close(-alone["elbo_levels"].log_prob / 64 / np.log(2), expected)


def arrays_index(run: str) -> Any:
    with np.load(f"{run}/likelihood/likelihood.npz") as arrays:
        return arrays["index"]


def test_the_cost_is_said_before_the_work(shell: Shell, digits: str) -> None:
    shell(f"likelihood {digits} --limit 2 {FAST} --save csv")
    told = re.search(
        r"all bounds cost 10 solves of the flow of about (\d+) forward passes, and 3 \+ 3 \+ 3 evaluations: about "
        r"(\d+) forward passes per sample, (\d+) in all, which may take \d+ second", shell.err,
    )  # fmt: skip
    assert told is not None, shell.err
    assert [int(n) for n in told.groups()] == [16, 169, 338], "two steps of four pairs"
    assert told.start() < shell.err.index("computing all bounds: flow, K")
    shell(f"likelihood {digits} --limit 2 {FAST.replace('difference', 'hutchinson')} --probes 4 --save csv")
    assert "of the flow of about 72 forward passes" in shell.err, "8 evaluations, each with 4 backward passes"


def test_samples_that_fail_in_a_row_are_said(shell: Shell, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = bounding.elbo_on_levels

    def failing(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        found.reconstruction[1] = torch.nan
        return found

    monkeypatch.setattr(bounding, "elbo_on_levels", failing)
    for resumed in ("", " --resume"):
        assert "ELBO on the levels" in shell(f"likelihood {digits} --limit 3 {FAST} --out o{resumed}", 4)
        assert "ELBO on the levels: 1 of 3 samples failed, and are left out" in shell.err


def test_continuous_data_and_chains(shell: Shell, moons: str, tmp_path: Path) -> None:
    line = FAST.replace("--divergence difference", "")
    out = shell(f"likelihood {moons} --limit 3 {line} --save csv")
    assert "left out: ELBO on the levels, because the data are continuous, so there are no levels to decode\n" in out
    assert re.search(r"^ELBO +reverse SDE +-?\d+\.\d{4} ± ", out, re.M) and "uniform" not in out
    small = "--data moons --steps 2 --batch 8 --set network.width=8 --set network.blocks=1 --quiet --threads 1"
    shell(f"train --sde ddpm --set sde.steps=30 {small} --out chain")
    out = shell(f"likelihood chain --limit 3 {line.replace('--chain-steps 3', '')} --elbo --save csv")
    assert (
        "chain, T = 30" in out and "left out: ELBO, because the model was trained only at the nodes of a chain" in out
    )
    found = json.loads(Path("chain/likelihood/likelihood.json").read_text())["sets"][0]
    assert found["bounds"]["rows"][1]["mean"] == pytest.approx(found["elbo"]["mean"]), "the bound of --elbo"
    shell.refuses(f"likelihood chain --limit 3 {line}", 2, "--chain-steps", "30 nodes of its own")
    # Both at once: each run has its own rows, and columns that it lacks are empty.
    out = shell(f"likelihood {moons} chain --limit 3 {line.replace('--chain-steps 3', '')} --save csv --out both")
    with open("both/likelihood.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["bound_elbo"] == "nan" for row in rows] == [False] * 3 + [True] * 3
    assert out.count("the rows are not ordered") == 2 and f"{moons}: ELBO" in out


def test_options_that_do_not_go_together(shell: Shell, digits: str) -> None:
    shell.refuses(f"likelihood {digits} --chain-steps 10", 2, "chain_steps is 10", "add --all-bounds")
    shell.refuses(f"likelihood {digits} --all-bounds --importance 2", 2, "importance = 2")
    shell.refuses(f"likelihood {digits} --all-bounds --dequantisation none", 2, "'none'")
    shell.refuses(f"likelihood {digits} --all-bounds --chain-steps 1", 2, "--chain-steps", "x>=2")
    assert not list(Path(digits).glob("likelihood*"))


def test_an_interrupted_table_is_resumed(shell: Shell, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"likelihood {digits} --limit 3 {FAST} --save npz"
    shell(f"{line} --out whole")
    with monkeypatch.context() as patch:

        def failing(*_: object, **__: object) -> None:
            raise RuntimeError("the power is gone")

        patch.setattr(bounding, "bound", failing)
        shell(f"{line} --out o", 1)
    assert sorted(path.name for path in Path("o/parts/1").iterdir() if path.is_dir()) == [
        "elbo", "levels", "truncated", "weights",
    ]  # fmt: skip
    calls: list[int] = []
    real: Callable[..., Any] = bounding.elbo_on_levels
    monkeypatch.setattr(bounding, "elbo_on_levels", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    shell(f"{line} --out o --resume")
    assert calls == [] and not Path("o/parts").exists()
    with np.load("whole/likelihood.npz") as whole, np.load("o/likelihood.npz") as resumed:
        assert (
            whole.files == resumed.files
            and [
                k for k in whole.files if not np.array_equal(whole[k], resumed[k], equal_nan=whole[k].dtype.kind == "f")
            ]
            == []
        )
    first = shell(f"{line} --out o --resume")
    assert "already finished" in shell.err and "chain, T = 3, uniform" in first
    shell.refuses(f"{line.replace('--chain-steps 3', '--chain-steps 4')} --out o --resume", 2, "chain_steps 4 instead")
