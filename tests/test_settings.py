"""Settings in files: what a run or a person wrote is read, written again, and trains the same model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import assert_same, contents, edit
from shell import Shell

from scoresde import VESDE, TrainConfig, fit, load
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.registry import fields_of, resolve
from scoresde.run.settings import PARTS, nested, read_settings, settings_json, settings_text

SMALL = {"width": 8, "blocks": 1}
CONFIGS = [
    TrainConfig(),
    TrainConfig(data="moons", sde=VESDE(sigma_max=30.0), clip=math.inf, cond_drop=1e-5, network_options=SMALL),
    TrainConfig(
        sde="flow", predict="edm", predict_options={"data_std": 0.5}, weighting="min-snr", cond="hole/pool:4",
        weighting_options={"gamma": 3.0}, network_options={"network": "mlp"}, recompute=True, space="log+basis:dct",
    ),
    TrainConfig(data='a "quoted" ü\n\x7f path', network_options={"network": "unet", "multipliers": [1, 2]}, seed=2**40),
]  # fmt: skip


def test_no_part_has_an_option_called_name() -> None:
    for table in PARTS.values():
        assert all("name" not in fields_of(resolve(key, table)) for key in table)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_written_is_read_again(config: TrainConfig, everything: bool, tmp_path: Path) -> None:
    stated = nested(config, dtype="float64", everything=everything)
    (tmp_path / "a.toml").write_text(settings_text(stated), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(settings_json(stated), allow_nan=False))
    for name in ("a.toml", "a.json"):
        read = read_settings(tmp_path / name)
        assert json.dumps(read.config.to_dict()) == json.dumps(config.to_dict()) and read.dtype == "float64"
    assert len(nested(TrainConfig(), everything=True)) > 30 and nested(TrainConfig()) == {"data": "digits", "sde": "vp"}


@pytest.mark.parametrize(
    "text",
    [
        'sde = "ve"\n"sde.sigma_max" = 30.0\n"network.width" = 8',
        'network.width = 8\nsde.name = "ve"\nsde.sigma-max = 30.0',
        '[sde]\nname = "ve"\nsigma_max = 30.0\n[network]\nwidth = 8',
        'sde = "ve"\n[sde_options]\nsigma_max = 30.0\n[network-options]\nwidth = 8',
    ],
)  # fmt: skip
def test_options_are_stated_with_dots_or_in_tables(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    expected = {"sde": "ve", "sde_options": {"sigma_max": 30.0}, "network_options": {"width": 8}}
    assert read_settings(path).values == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("beta_max = 3", r"a\.toml: unknown setting 'beta_max'; did you mean sde\.beta_max\?"),
        ("stepss = 3", "unknown setting 'stepss'; did you mean 'steps'"),
        ("sde.grid.x = 3\nnet.x = 1", "unknown setting 'net'"),
        ('steps = "many"', "steps is 'many'; it must be an int"),
        ('sde.name = "ve"\n[sde_options]\na = 1\n[sde-options]\na = 2', r"sde\.a is stated twice"),
        ('preset = "tinny"', "unknown preset 'tinny'; did you mean 'tiny'"),
        ("typed = true", "unknown setting 'typed'"),
        ("network = 3", r"a\.toml: network is 3; it must be a name"),
        ('[network]\nname = ["unet"]', r"network is \['unet'\]; it must be a name"),
        ('"network.network" = true', "network is True; it must be a name"),
        ('dtype = "float16"', "dtype is 'float16'; it must be one of float32, float64"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UsageError, match=told):
        read_settings(tmp_path / "a.toml")


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 3")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"a\.yaml cannot be read as settings.*TOML .*JSON"):
        read_settings(tmp_path / "a.yaml")
    with pytest.raises(CheckpointError, match=r"a\.json contains no settings"):
        read_settings(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"there is no file .*b\.toml"):
        read_settings(tmp_path / "b.toml")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        read_settings(tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------- train again


@pytest.mark.parametrize("how", ["folder", "file", "toml", "json"])
def test_the_settings_of_a_run_train_it_again_bit_for_bit(shell: Shell, how: str) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(100, 2)))
    line = "--data x.npy --sde cosine --set network.width=8 --set network.blocks=1 --batch 200 --seed 3 --dtype float64"
    shell(f"train {line} --steps 3 --out runs/a --quiet")
    source = {"folder": "runs/a", "file": "runs/a/config.json", "toml": "a.toml", "json": "b.json"}[how]
    if how in ("toml", "json"):
        Path(source).write_text(shell(f"config show runs/a{' --json' * (how == 'json')}"))
    shell(f"train --config {source} --out runs/b --quiet")
    assert_same(contents(Path("runs/a")), contents(Path("runs/b")))
    stored = [json.loads(Path(f"runs/{name}/config.json").read_text()) for name in "ab"]
    assert stored[0]["config"] == stored[1]["config"] and stored[1]["dtype"] == "float64"
    assert stored[0]["config"]["batch"] < 100, "an automatic choice is in the settings"


def test_what_was_chosen_for_other_settings_is_chosen_again(shell: Shell) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(100, 2)))
    small = "--set network.width=8 --set network.blocks=1"
    shell(f"train --data x.npy {small} --batch 16 --steps 400 --out a --quiet --set validate_every=390")
    chosen = ("warmup", "validate_every", "predict", "weighting", "t_sampler")

    def config(more: str) -> list[object]:
        found = dict(shell.json(f"train --config a --dry-run {more}")["config"])  # type: ignore[call-overload]
        return [found[name] for name in chosen]

    first = config("--quiet")
    assert first[:2] == [20, 390] and config("--steps 400 --batch 16 --sde vp --quiet") == first
    shorter = config("--steps 40")
    assert "warmup, validate_every: chosen again, because steps differs from a\n" in shell.err
    assert shorter[0] == 2 and shorter[1] != 390 and shorter[2:] == first[2:]
    assert config("--steps 40 --set warmup=7 --set validate_every=9")[:2] == [7, 9]
    assert config("--batch 8 --quiet")[0] == 20 and config("--batch 8 --quiet")[1] != 390
    line = f"train --data x.npy {small} --batch 16 --steps 400 --dry-run --quiet --sde ddpm"
    fresh = dict(shell.json(line)["config"])  # type: ignore[call-overload]
    assert config("--sde ddpm")[2:] == [fresh[name] for name in chosen[2:]] != first[2:]
    assert "predict, weighting, t_sampler: chosen again, because sde differs from a\n" in shell.err
    assert config("--sde ddpm --predict score")[2] == "score"
    shell("config show a")
    Path("a.toml").write_text(shell.out)
    assert shell.json("train --config a.toml --steps 40 --dry-run --quiet")["config"]["warmup"] == 20  # type: ignore[index]


def test_data_that_moved_with_their_run_are_found(shell: Shell) -> None:
    Path("old").mkdir()
    np.save("old/x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    fit(TrainConfig(data="old/x.npy", steps=2, batch=8, network_options=SMALL), out="old/run", quiet=True)
    shutil.move("old", "new")
    assert read_settings("new/run").config.data == "new/run/../x.npy"
    shell("train --config new/run --out again --quiet")
    assert_same(contents(Path("new/run")), contents(Path("again")))


def test_what_is_typed_wins_over_the_file_and_the_file_over_defaults(shell: Shell) -> None:
    Path("a.toml").write_text(
        'data = "moons"\nsteps = 7\nseed = 5\nclip = 2.0\nlr = 0.5\ncond_drop = 0.3\ndtype = "float64"\n'
        '[sde]\nname = "ve"\nsigma_max = 30.0\n[network]\nwidth = 8\n'
    )
    line = "train --config a.toml --dry-run --quiet --batch 8"

    def config(more: str = "") -> dict[str, object]:
        return dict(shell.json(f"{line} {more}")["config"])  # type: ignore[call-overload]

    found = config()
    assert [found[n] for n in ("data", "steps", "seed", "clip", "lr", "batch", "cond_drop")] == [
        "moons", 7, 5, 2.0, 0.5, 8, 0.3,
    ]  # fmt: skip
    assert found["sde"] == "ve" and found["sde_options"] == {"sigma_max": 30.0}
    assert config("--steps 9 --set clip=3 --seed 0 --cond-drop 0.1") | {"steps": 9, "clip": 3.0, "seed": 0} == config(
        "--steps 9 --set clip=3 --seed 0 --cond-drop 0.1"
    )
    assert config("--cond-drop 0.1")["cond_drop"] == 0.1, "a typed default is typed"
    assert config("--set sde.sigma_min=0.02")["sde_options"] == {"sigma_max": 30.0, "sigma_min": 0.02}
    assert config("--sde ve")["sde_options"] == {"sigma_max": 30.0}
    assert config("--sde vp")["sde_options"] == {}, "the options belong to the other SDE"
    assert config("--set network.blocks=1")["network_options"] == {"width": 8, "blocks": 1}
    shell.refuses(f"{line} --beta-max 3", 2, "beta_max")
    shell.refuses("train --resume runs/a --config a.toml", 2, "--config", "cannot be changed when a run is resumed")


def test_a_name_in_a_file_is_never_imported(shell: Shell, own: Path) -> None:
    Path("a.toml").write_text('data = "moons"\nsteps = 2\nsde = "mysde:MySDE"\nnetwork.width = 8\n')
    line = "train --config a.toml --batch 8 --out runs/a --quiet"
    shell.refuses(line, 3, "mysde:MySDE", "never imported", "--sde mysde:MySDE")
    assert not own.exists() and not Path("runs").exists()
    shell("config show a.toml")
    assert not own.exists()
    shell(f"{line} --sde mysde:MySDE")
    assert own.exists() and load("runs/a", sde="mysde:MySDE").config.sde == "mysde:MySDE"
    own.unlink()
    for name, text in (
        ("cond", 'cond = "mysde:MySDE"'), ("space", 'space = "mysde:MySDE"'),
        ("weighting", 'weighting = "mysde:MySDE"'),
        ("predict", 'predict = "mysde:MySDE"'), ("t_sampler", 't_sampler = "mysde:MySDE"'),
        ("network", 'network = "mysde:MySDE"'), ("option", '[sde]\nbeta_max = "mysde:MySDE"'),
    ):  # fmt: skip
        Path("b.toml").write_text(text)
        shell("train --config b.toml --data moons --steps 2 --quiet", 3)
        assert "mysde:MySDE" in shell.err and not own.exists(), name


def test_a_network_that_was_an_object_must_be_named(shell: Shell, copied: Callable[[str], str]) -> None:
    run = Path(copied("moons"))
    edit(run / "model.json", lambda stored: {**stored, "network": None})
    shell.refuses(f"train --config {run} --edited --out a", 2, "a network of your own", "--network")
    shell(f"train --config {run} --edited --network mlp --out a --quiet")


def test_show_prints_what_differs_from_the_defaults(shell: Shell, moons: str) -> None:
    text = shell(f"config show {moons}")
    assert 'data = "moons"' in text and "steps = 3" in text and "keep" not in text and "[network]" in text
    assert "keep = 2" in shell(f"config show {moons} --all")
    assert shell.json(f"config show {moons}")["network"] == {"width": 8, "blocks": 1}
    shell("config show")
    assert moons in shell.err
    edit(Path(moons) / "config.json", lambda stored: {**stored, "config": {**stored["config"], "seed": 9}})
    assert "seed = 9" in shell(f"config show {moons}"), "a file without a checksum is accepted"


def test_an_older_run_is_split_as_it_was(copied: Callable[[str], str]) -> None:
    run = Path(copied("moons"))

    def before(stored: dict[str, object]) -> dict[str, object]:
        return {**stored, "config": {k: v for k, v in stored["config"].items() if k != "split"}}  # type: ignore[attr-defined]

    edit(run / "config.json", before)
    assert read_settings(run).config.split == "rows"
    assert nested(read_settings(run).config)["split"] == "rows"
    assert replace(read_settings(run).config, split="content").steps == 3
