"""Files never choose code: a run that names a module, in any field, under every verb."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import older, unsigned
from shell import Shell

from scoresde import TrainConfig, fit, load, reflow
from scoresde.cli import cli
from scoresde.core.errors import CheckpointError, ScoresdeError
from scoresde.objective.times import Sqrt
from scoresde.objective.weighting import EpsWeight
from scoresde.solvers import RungeKutta

# Each field of a configuration, as it would be if a file could choose code; a table of options in several ways.
MAPPINGS = ("sde_options", "predict_options", "weighting_options", "t_sampler_options", "network_options")
NEEDED = ("sde", "sde_options", "predict", "predict_options", "network_options")  # to build the model
TO_TRAIN = ("weighting", "weighting_options", "t_sampler", "t_sampler_options")  # play no part once it is trained


def poisons(name: str) -> Iterator[tuple[str, Any]]:
    """Every field with the name in the place of what it holds, and the tables of options with it inside."""
    for field in fields(TrainConfig):
        if field.name == "typed":  # says who typed the names, and is not stored
            continue
        if field.name in MAPPINGS:
            options = {"sde_options": "beta_max", "predict_options": "data_std", "network_options": "width"}
            yield field.name, {options.get(field.name, "error"): name}
            yield field.name, {"deep": [{"er": name}]}
            yield field.name, {name: 1}
        else:
            yield field.name, name
    yield "network_options", {"network": name}


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the current folder that must not be imported, and a function that must not be called."""
    Path("trap.py").write_text('import pathlib\npathlib.Path("sprung").touch()\ndef trap(*a, **k): pass\n')
    ran: list[object] = []
    monkeypatch.setattr(os, "system", lambda *a, **k: ran.append(a))
    yield
    assert not Path("sprung").exists() and "trap" not in sys.modules, "a name from a file was imported"
    assert not ran, f"a name from a file was called: {ran}"


def poisoned(run: str, field: str, value: Any) -> None:
    path = Path(run) / "config.json"
    stored = unsigned(Path(run) / "config.json.good")
    stored["config"][field] = value
    if field in ("weighting", "t_sampler"):
        stored["config"][f"{field}_options"] = {"command": "id"}
    path.write_text(json.dumps(stored))


@pytest.fixture
def old(moons: str) -> str:
    """A run of format 1, whose configuration alone describes the model; the good one is kept beside it."""
    older(moons)
    shutil.copy(Path(moons) / "config.json", Path(moons) / "config.json.good")
    return moons


VERBS = {
    "sample": "sample {run} --n 2 --solver heun --steps 2",
    "likelihood": "likelihood {run} --limit 2 --steps 2 --no-check",
    "evaluate": "evaluate {run} --n 20 --steps 2 --metrics frechet",
    "bench": "bench {run} --solvers ddim --nfe 2 --n 4",
    "tune": "tune {run} --nfe 2 --rows 8",
    "plot reverse": "plot reverse {run} --n 2 --steps 2 --no-gif --columns 2",
    "plot trajectories": "plot trajectories {run} --n 2 --steps 2",
    "plot score-field": "plot score-field {run}",
    "plot compass": "plot compass {run} --n 2 --levels 2",
    "plot loss-by-noise": "plot loss-by-noise {run}",
    "reflow": "reflow {run} --pairs 4 --steps 1 --solver heun",
    "info": "info {run}",
    "page": "page {run} --no-weights",
    "interpolate": "interpolate {run} one.npy one.npy --n 2 --rtol 0.1",
    "train": "train --resume {run} --steps 4",
}
# The first two of these have tests of their own (test_settings.py, test_posthoc.py), and the others read no run.
RUNLESS = ("config", "ema", "classifier", "data", "list", "demo", "plot schedule", "plot forward")


def test_every_verb_is_here():
    found = {name for name in cli.commands if name != "plot"} | {f"plot {n}" for n in cli.commands["plot"].commands}
    assert found == {*VERBS, *RUNLESS}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_obeys_a_run(shell: Shell, old: str, trap: None, verb: str) -> None:
    line = VERBS[verb].format(run=old)
    np.save("one.npy", np.zeros((1, 2)))
    needed = () if verb == "info" else (*NEEDED, *TO_TRAIN) if verb in ("reflow", "train") else NEEDED
    # Every field where a verb has code of its own for them, with names from two sources where the field holds names;
    # elsewhere from one, and of the fields that play no part in a model, which leave the verb to do all its work, the
    # one that every verb reads.
    own = verb in ("sample", "reflow", "train")
    for both in zip(poisons("os:system"), poisons("trap:trap"), strict=True):
        if not own and verb != "info" and both[0][0] not in (*NEEDED, "data", "weighting"):
            continue
        for field, value in both if own and both[0][0] in (*NEEDED, *TO_TRAIN) else both[:1]:
            poisoned(old, field, value)
            with pytest.raises(SystemExit) as stop:
                shell_main(line)
            codes = (3,) if field in needed else (0,) if field in TO_TRAIN else (0, 2, 3)
            assert stop.value.code in codes, f"{verb} with {field} = {value}: exit {stop.value.code}"


def shell_main(line: str) -> None:
    from scoresde.cli import main

    main([*line.split(), "--json", *([] if line.startswith("info") else ["--quiet", "--threads", "1"])])


def test_python_does_not_either(old: str, trap: None) -> None:
    for name in ("os:system", "trap:trap"):
        for field, value in poisons(name):
            if field not in (*NEEDED, *TO_TRAIN):
                continue
            poisoned(old, field, value)
            if field in NEEDED:
                with pytest.raises(CheckpointError):
                    load(old)
                continue
            run = load(old)
            assert torch.isfinite(run.sample(2, RungeKutta(2)).x).all()
            for again in (run.config, replace(run.config, steps=7), replace(run.config, seed=1)):
                with pytest.raises(CheckpointError, match="never imported"):
                    fit(replace(again, steps=1), save=False, quiet=True)
            with pytest.raises(CheckpointError, match="never imported"):
                reflow(run, pairs=4, steps=1, save=False, quiet=True)


def leaves(stored: Any, value: str) -> Iterator[Any]:
    """``stored`` with each of its values in turn replaced by ``value``, at every depth."""
    if isinstance(stored, dict):
        for key in stored:
            yield {**stored, key: value}
            yield from ({**stored, key: inner} for inner in leaves(stored[key], value))
    elif isinstance(stored, list):
        for i in range(len(stored)):
            yield from ([*stored[:i], inner, *stored[i + 1 :]] for inner in leaves(stored[i], value))


def test_model_json_names_no_code(moons: str, trap: None) -> None:
    config, model = Path(moons) / "config.json", Path(moons) / "model.json"
    good = unsigned(config), unsigned(model)
    told = 0
    for name in ("os:system", "trap:trap"):
        for stored in leaves(good[1], name):
            # The configuration tells the same story, so that only the door is left to refuse it.
            spoiled = {**good[0]["config"]}
            for field, part in (("sde", "path"), ("predict", "parametrization"), ("network", "network")):
                if isinstance(stored[part], dict) and stored[part] != good[1][part]:
                    found = {field: stored[part]["name"], f"{field}_options": stored[part]["options"]}
                    spoiled |= found if field != "network" else {"network_options": {"network": stored[part]["name"]}}
            for text in (good[0]["config"], spoiled):
                config.write_text(json.dumps({**good[0], "config": text}))
                model.write_text(json.dumps(stored))
                with pytest.raises(SystemExit) as stop:
                    shell_main(f"train --resume {moons} --steps 3")
                assert stop.value.code in (0, 3)
                try:
                    load(moons)
                except ScoresdeError as error:
                    assert error.exit_code == 3
                    told += "never imported" in str(error)
    assert told >= 2 * 3  # in each of the three parts, by both names


@pytest.mark.parametrize("name", ["my-mod:f", "1mod:f", "m\u00fcn:f", "a b:f", " trap:trap", "trap:trap "])
def test_a_module_need_not_have_the_name_of_one(old: str, trap: None, name: str) -> None:
    module = Path(f"{name.partition(':')[0].strip()}.py")
    module.write_text('import pathlib\npathlib.Path("sprung").touch()\ndef f(*a, **k): pass\n')
    stored = unsigned(Path(old) / "config.json.good")
    stored["config"] |= {"t_sampler": "importance", "t_sampler_options": {"error": name}}
    (Path(old) / "config.json").write_text(json.dumps(stored))
    run = load(old)
    for act in (lambda: reflow(run, pairs=4, steps=1, save=False, quiet=True), lambda: fit(run.config, save=False)):
        with pytest.raises(CheckpointError, match="never imported"):
            act()


def test_data_json_names_no_code(moons: str, trap: None) -> None:
    path = Path(moons) / "data.json"
    good = unsigned(path)
    for name in ("os:system", "trap:trap"):
        for field in good:
            path.write_text(json.dumps({**good, field: name}))
            try:
                load(moons).sample(2, "heun")
            except ScoresdeError as error:
                assert error.exit_code == 3


@dataclass(frozen=True)
class Heavy(EpsWeight):
    """A weighting of the user's."""


def by_hand(sde, parametrization, t):
    return torch.full_like(t, 2.0)


@dataclass(frozen=True)
class Early(Sqrt):
    """Times of the user's."""


OWN = TrainConfig(data="moons", steps=2, batch=8, network_options={"width": 8, "blocks": 1})


@pytest.mark.parametrize(
    ("field", "thing"),
    [
        pytest.param("weighting", Heavy(), marks=pytest.mark.slow),
        ("weighting", by_hand),
        ("t_sampler", Early(stratified=False)),
    ],
)
def test_what_is_ones_own_is_named_again_to_train_on(tmp_path: Path, field: str, thing: Any) -> None:
    """A run that was trained with it loads and samples by itself."""
    run = fit(replace(OWN, **{field: thing}), out=tmp_path / "r", quiet=True)
    again = load(tmp_path / "r")
    assert torch.equal(again.sample(3, "heun").x, run.sample(3, "heun").x)
    assert again.config.name(field) == f"{__name__}:{getattr(thing, '__qualname__', type(thing).__qualname__)}"
    assert again.config.to_dict() == run.config.to_dict()
    further = replace(again.config, steps=4)
    with pytest.raises(CheckpointError, match="never imported"):
        fit(further, out=tmp_path / "r", resume=True, quiet=True)
    for named in (replace(further, **{field: thing}), further.named(**{field: thing})):
        assert fit(replace(named, steps=4), out=tmp_path / "r", resume=True, quiet=True).step == 4
    if not isinstance(thing, Early):  # a name keeps its options
        named = further.named(**{field: again.config.name(field)})
        assert fit(named, out=tmp_path / "r", resume=True, quiet=True).step == 4
    assert reflow(again, pairs=4, steps=1, save=False, quiet=True, **{field: thing}).step == 1


def test_on_the_command_line_too(shell: Shell, tmp_path: Path) -> None:
    Path("mine.py").write_text("import torch\ndef weight(sde, p, t): return torch.full_like(t, 2.0)\n")
    shell("train --data moons --weighting mine:weight --steps 2 --batch 8 --set network.width=8 --out r --quiet")
    sys.modules.pop("mine")
    shell("sample r --n 2 --solver heun --steps 2")
    assert "mine" not in sys.modules
    shell.refuses("train --resume r --steps 4", 3, "mine:weight", "never imported", "--weighting mine:weight")
    shell.refuses("reflow r --pairs 4 --steps 1", 3, "mine:weight", "never imported", "--weighting mine:weight")
    shell.refuses("train --resume r --steps 4 --weighting mine:other", 2, "trained with mine:weight")
    assert "mine" not in sys.modules
    shell("train --resume r --steps 4 --weighting mine:weight --quiet")
    shell("reflow r --pairs 4 --steps 1 --weighting mine:weight --quiet")
    shell("reflow r --pairs 4 --steps 1 --weighting eps --quiet --out r2")
