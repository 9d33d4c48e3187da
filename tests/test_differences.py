"""What differs between two runs, and what that means for their figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import edit, older
from shell import Shell

from scoresde import TrainConfig, fit
from scoresde.core.errors import CheckpointError
from scoresde.run.differences import ROUNDING, Comparison, compare
from scoresde.train.posthoc import averages, write_averaged

ROWS = np.random.default_rng(0).normal(size=(100, 2))
CONFIG = TrainConfig(data="x.npy", steps=4, batch=8, network_options={"width": 8, "blocks": 1}, validate_every=2)


def train(name: str, data: np.ndarray = ROWS, file: str = "x.npy", **changes: Any) -> str:
    if not Path(file).exists():
        np.save(file, data)
    options = {k: changes.pop(k) for k in ("dtype",) if k in changes}
    fit(replace(CONFIG, data=file, **changes), out=f"runs/{name}", quiet=True, **options)
    return name


def differing(found: Comparison) -> dict[str, list[str]]:
    return {g.name: [d.what for d in g.differences] for g in found.groups if g.differences}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train("a")


def test_equal_runs_have_equal_weights() -> None:
    shutil.copy("x.npy", "copy.npy")
    found = compare("a", train("b", file="copy.npy", keep=3, save_minutes=1.0))
    assert differing(found) == {} and found.same_weights and "equal bit for bit" in found.verdict
    ignored = [d.what for d in found.ignored]
    assert ignored[:4] == ["folder", "keep", "save_minutes", "path of the data"]
    assert "ignored, because it does not change the weights: folder, keep" in found.text()
    assert "\n  keep  " in found.text(everything=True) and "copy.npy" in found.text(everything=True)


def test_two_seeds() -> None:
    found = compare("a", train("b", seed=1))
    assert found.causes == {"settings": ["seed"]} and "differ only in their seeds" in found.verdict
    assert differing(found)["data"] and differing(found)["model"] == ["units"], "other rows are held out"
    notes = {d.what: d.note for d in found.results}
    assert notes["validation loss"] == "on other rows" and notes["training loss, last tenth"] == ""
    assert found.text().index("\nsettings") < found.text().index("\ndata"), "the cause comes first"


def test_rows_that_differ() -> None:
    found = compare("a", train("fewer", ROWS[:-3], "fewer.npy"))
    (rows,) = [d for d in found.groups[0].differences if d.what == "rows that the other run lacks"]
    assert (rows.first, rows.second) == ("3 of 100", "0 of 97")
    assert found.causes == {"data": ["rows that the other run lacks"]}
    changed = ROWS.copy()
    changed[5] += 1
    (rows,) = [d for d in compare("a", train("c", changed, "c.npy")).groups[0].differences if "lacks" in d.what]
    assert (rows.first, rows.second) == ("1 of 100", "1 of 100")
    assert compare("a", train("d", ROWS[::-1], "d.npy")).causes == {"data": ["order of the rows"]}


def test_models_and_settings_with_their_defaults() -> None:
    train("ve", sde="ve", lr=0.5)
    found = compare("a", "ve")
    assert differing(found)["model"] == ["sde"] and {"lr"} <= set(differing(found)["settings"])
    assert found.groups[1].differences[0].first == "vp (beta_min 0.1, beta_max 20)"
    assert all("not comparable" in d.note for d in found.results if "loss" in d.what)
    (beta,) = compare("a", train("b", sde_options={"beta_max": 18.0})).groups[1].differences
    assert (beta.what, beta.first, beta.second) == ("sde beta_max", 20.0, 18.0)
    train("snr3", weighting="min-snr", weighting_options={"gamma": 3.0})
    found = compare("snr3", train("snr5", weighting="min-snr"))
    assert differing(found) == {"settings": ["weighting gamma"]} and found.groups[2].differences[0].second == 5.0
    wide = train("wide", network_options={"width": 16, "blocks": 1})
    assert differing(compare("a", wide)) == {"model": ["network width"]}


def test_steps_and_choice_of_weights() -> None:
    found = compare("a", train("b", steps=6))
    assert differing(found)["training"] == ["steps done"] and "steps" in differing(found)["settings"]


def test_averages_of_the_weights() -> None:
    train("b", ema="0.9999,power:0.05,power:0.1", snapshots=4)
    found = compare("a", "b")
    assert differing(found) == {} and found.same_weights, "only the first average is used"
    assert {"snapshots", "averages that are not used"} <= {d.what for d in found.ignored}
    assert differing(compare("a", train("c", ema="0.99"))) == {"settings": ["ema"]}
    out = Path("runs/b-ema")
    out.mkdir()
    write_averaged(Path("runs/b"), averages(Path("runs/b"), [0.08])[0], out)
    found = compare("b", "b-ema")
    assert found.causes == {"settings": ["average of another width"]} and not found.same_weights
    (average,) = found.groups[2].differences
    assert (average.first, average.second) == (None, "width 0.08 from b")
    assert "average of another width" in found.verdict


def test_blocks_that_are_computed_again() -> None:
    recompute = compare("a", train("b", recompute=True)).groups[2].differences
    assert [d.what for d in recompute] == ["recompute"] and ROUNDING in recompute[0].note


def test_the_environment() -> None:
    train("b")
    edit("runs/b/env.json", lambda stored: {"sessions": [{**stored["sessions"][0], "threads": 7}] * 2})
    found = compare("runs/a", "runs/b")
    assert found.causes == {"environment": ["threads"]} and found.same_weights
    assert "differ by rounding" in replace(found, same_weights=False).verdict
    assert "number of sessions" in [d.what for d in found.ignored]
    edit(
        "runs/b/env.json",
        lambda stored: {"sessions": [{**stored["sessions"][0], "threads": n} for n in (1, 2)]},
    )
    (threads,) = compare("a", "b").groups[-1].differences
    assert (threads.first, threads.second) == (1, "1 then 2")
    edit("runs/b/env.json", lambda s: {"sessions": [{**s["sessions"][0], "code": "0" * 12, "commit": None}]})
    (code,) = compare("a", "b").groups[-1].differences
    assert code.what == "source code of scoresde" and code.second == "0" * 12 and "commit" in code.first
    assert "rounding" not in replace(compare("a", "b"), same_weights=False).verdict
    assert differing(compare("a", train("double", dtype=torch.float64))) == {"environment": ["dtype"]}


def test_runs_of_earlier_versions(copied: Callable[[str], str]) -> None:
    one, other = copied("moons"), copied("moons", "old")
    older(other)
    (Path(other) / "env.json").unlink()
    edit(Path(other) / "config.json", lambda s: {**s, "config": {k: v for k, v in s["config"].items() if k != "keep"}})
    found = compare(one, other)
    assert not found.causes and "it was not recorded for runs/old; runs/moons was trained with scoresde" in found.text()
    for name in ("env.json", "rows.npz"):
        Path("runs/a", name).unlink()
    train("b", seed=1)
    found = compare("a", "b")
    assert "the content cannot be compared, because runs/a has no hashes of the rows" in found.text()
    train("c")
    verdict = replace(compare("a", "c"), same_weights=False).verdict
    assert "nothing that was recorded explains" in verdict and "data and environment" in verdict


def test_the_likelihood_and_unfinished_runs() -> None:
    folder = Path("runs/a/likelihood")
    folder.mkdir()
    (folder / "likelihood.json").write_text('{"sets": [{"mean": 1.5, "stderr_mean": 0.25, "unit": "nats"}]}')
    shutil.copytree("runs/a", "runs/b")
    shutil.rmtree("runs/b/checkpoints")
    (Path("runs/b/likelihood/likelihood.json")).write_text("{")
    found = compare("a", "b")
    assert found.same_weights is None
    (likelihood,) = [d for d in found.results if d.what == "likelihood"]
    assert (likelihood.first, likelihood.second) == ("1.5000 ± 0.2500 nats", None)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        compare("a", "missing")


def test_the_command(shell: Shell) -> None:
    train("b", seed=1)
    text = shell("config diff a runs/b")
    assert text.startswith("A: runs/a\nB: runs/b\nthe runs differ only in their seeds")
    facts = shell.json("config diff a b")
    assert facts["groups"]["settings"]["differences"][0] | {"note": ""} == {  # type: ignore[index]
        "what": "seed", "first": 0, "second": 1, "note": "",
    }  # fmt: skip
    assert "\nignored\n" in shell("config diff a b --all")
    shell.refuses("config diff a nowhere", 3, "nowhere is not a run folder")
    config = json.loads(Path("runs/b/config.json").read_text())
    config["config"]["seed"] = 2
    Path("runs/b/config.json").write_text(json.dumps(config))
    shell.refuses("config diff a b", 3, "was changed after training", "--edited")
    assert "seed" in shell("config diff a b --edited")
