"""The command line: three lines from nothing to bits per dimension, and a clear word for whatever goes wrong."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import edit, older, signal_at
from shell import Shell

from scoresde import TrainConfig, fit, load
from scoresde import train as training
from scoresde.cli import main
from scoresde.core.files import read_json
from scoresde.core.registry import resolve
from scoresde.core.tables import SDES, SOLVERS
from scoresde.run.files import newest_checkpoint

COMMAND = [sys.executable, "-m", "scoresde"]


# -------------------------------------------------------------------------------------------------- what should work


def test_three_lines_in_an_empty_folder(shell: Shell, pictures: None) -> None:
    out = shell("train --sde vp --data digits --steps 3 --set network.channels=4 --threads 1")
    assert out == "runs/digits-vp\n"
    assert "1617 training and 180 test samples" in shell.err and "trained 3 steps" in shell.err
    run = Path("runs/digits-vp")
    assert {p.name for p in run.iterdir()} >= {"config.json", "data.json", "metrics.jsonl", "checkpoints", "samples"}

    out = shell("sample --solver ode --rtol 1e-2 --n 4")
    folder = run / "samples" / "ode-seed0"
    assert re.fullmatch(
        rf"{folder}/grid\.png  4 samples  NFE mean [\d.]+ max \d+  steps [\d.]+ accepted, [\d.]+ rejected  "
        r"[\d.]+ s  seed 0\n",
        out,
    )
    assert re.fullmatch(
        r"no run is named, so the newest is used: runs/digits-vp\n"
        r"drawing 4 samples from .*\(step 3\) with the ode solver\nsample  4/4  100 % .*\n",
        shell.err,
    )
    assert Image.open(folder / "grid.png").size >= (16, 16)
    with np.load(folder / "samples.npz") as arrays:
        assert arrays["x"].shape == (4, 1, 8, 8) and arrays["x"].dtype == np.uint8
        assert arrays["index"].tolist() == [0, 1, 2, 3]
    assert json.loads((folder / "samples.json").read_text())["n"] == 4

    out = shell("likelihood --limit 2 --rtol 1e-1")
    assert re.fullmatch(
        r"\d+\.\d{4} ± \d+\.\d{4} bits/dim  \(n = 2 of 180, test, NFE mean [\d.]+ max \d+\)(  NOT CONVERGED.*)?\n"
        r"check (passed|FAILED): solving 2 samples again changes the likelihoods by at most [\d.e-]+ bits/dim,? ?.*\n"
        r"uniform dequantisation, 1 draw, 1 rademacher probe with finite differences, coupled, rtol 0\.1, "
        r"t_min 1e-05, data scale 8\.5\n"
        rf"{run}/likelihood/likelihood\.png  [\d.]+ s  seed 0\n",
        out,
    )
    assert "likelihood  2/2  100 %" in shell.err
    shell("likelihood --limit 2 --rtol 1e-1 --quiet --no-check")
    assert shell.err == ""
    assert sorted(p.name for p in Path().iterdir()) == ["runs"]


def test_the_same_as_a_program(tmp_path: Path) -> None:
    line = "train --data moons --steps 2 --batch 8 --set network.width=8 --threads 1 --json --quiet".split()
    done = subprocess.run([*COMMAND, *line], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["run"] == "runs/moons-vp" and (tmp_path / "runs/moons-vp/config.json").exists()
    done = subprocess.run([*COMMAND, "trian"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and "did you mean 'train'" in done.stderr


def test_json(shell: Shell, digits: str) -> None:
    trained = shell.json("train --data moons --steps 2 --batch 8 --set network.width=8 --out m")
    assert trained.keys() == {"run", "step", "seconds"} and trained["run"] == "m" and trained["step"] == 2
    assert not Path("runs/moons-vp").exists()
    sampled = shell.json(f"sample {digits} --solver heun --steps 2 --n 3 --seed 5 --start 7")
    assert sampled.keys() == {
        "run", "step", "solver", "options", "n", "seed", "start", "label", "guidance", "denoise", "brownian",
        "path", "nfe_mean", "nfe_max",
        "accepted_mean", "rejected_mean", "failed", "seconds", "files",
    }  # fmt: skip
    assert sampled["options"] == {"steps": 2, "grid": "auto", "method": "heun", "frame": "straight"}
    assert sampled["nfe_mean"] == sampled["nfe_max"] == 5
    assert (sampled["n"], sampled["seed"], sampled["start"], sampled["failed"]) == (3, 5, 7, [])
    assert all(Path(f).is_file() for f in sampled["files"])  # type: ignore[attr-defined]
    told = shell.json(f"info {digits}")
    facts = {
        "run", "checkpoint", "step", "used_step", "parameters", "learned", "end", "last_loss", "training", "config",
        "averaged", "data", "environment",
    }  # fmt: skip
    assert told.keys() == facts and told["training"] is None
    assert told["step"] == 3 and told["data"]["levels"] == 17  # type: ignore[index]
    # What is left of the data where sampling starts: alpha(1) = exp(-(0.1 + 20)/4) on VP.
    assert told["end"] == pytest.approx({"alpha": math.exp(-5.025), "sigma": 1.0}, abs=1e-4)
    assert "at t_max     alpha 0.00657, sigma 1, alpha/sigma 0.0066" in shell(f"info {digits}")


@pytest.mark.parametrize(
    ("options", "nfe"),
    [
        ("--solver em --steps 3", 4),
        ("--solver pc --steps 3 --snr 0.1", 7),
        ("--solver heun --steps 3 --grid logsnr", 7),
        ("--solver ode --rtol 1e-2 --set solver.method=bosh3", None),
        ("--solver em --steps 3 --no-denoise", 3),
    ],
)
def test_every_solver(shell: Shell, digits: str, options: str, nfe: int | None) -> None:
    found = shell.json(f"sample {digits} {options} --n 2")
    assert nfe is None or found["nfe_max"] == nfe
    with np.load(found["files"][1]) as arrays:  # type: ignore[index]
        assert arrays["x"].shape == (2, 1, 8, 8)


def test_samples_are_numbered_and_never_overwritten(shell: Shell, moons: str) -> None:
    names = [Path(shell.json("sample --solver heun --steps 2 --n 2")["files"][0]).parent.name for _ in range(3)]  # type: ignore[index]
    assert names == ["heun-seed0", "heun-seed0-2", "heun-seed0-3"]
    shell("sample --solver heun --steps 2 --n 2 --out here/there --save npz")
    assert sorted(p.name for p in Path("here/there").iterdir()) == ["samples.json", "samples.npz"]


def test_samples_have_addresses(shell: Shell, moons: str) -> None:
    def x(line: str) -> np.ndarray:
        with np.load(shell.json(f"sample --solver em --steps 3 --save npz {line}")["files"][0]) as arrays:  # type: ignore[index]
            return arrays["x"]

    whole = x("--n 6")
    np.testing.assert_allclose(x("--n 6 --batch 4"), whole, atol=1e-4)
    np.testing.assert_allclose(x("--n 2 --start 3"), whole[3:5], atol=1e-4)
    assert np.abs(x("--n 6 --seed 1") - whole).max() > 0.1


def test_labels_and_guidance(shell: Shell, classes: str, copied: Callable[[str], str]) -> None:
    found = shell.json(f"sample {classes} --solver heun --steps 2 --n 2 --label 3 --guidance 2")
    assert (found["label"], found["guidance"]) == ("3", 2.0)
    plain = copied("digits")
    trained = ("'3'", plain, "without labels", "scoresde train --cond class")
    shell.refuses(f"sample {plain} --label 3 --guidance 2", 2, *trained)
    shell.refuses(f"sample {plain} --guidance 2", 2, "guidance 2 requires a condition", "--label")
    for label in ("10", "12", "-1", "x"):
        shell.refuses(f"sample {classes} --label {label}", 2, f"unknown class '{label}'", "0, 1, 2, 3, 4, 5, 6, 7, 8")
    shell.refuses(f"sample {copied('moons')} --label 0", 2, "without labels")


def test_dry_run(shell: Shell) -> None:
    line = "train --data moons --set network.width=8 --set clip=inf --set sde.beta_max=18 --dry-run --quiet"
    found = shell.json(line)
    assert found["config"]["clip"] is None, "infinity is no JSON"  # type: ignore[index]
    assert found["config"]["steps"] == 4000 and found["config"]["sde_options"] == {"beta_max": 18}  # type: ignore[index]
    out = shell(line)
    assert "parameters" in out and "minutes" in out and list(Path().iterdir()) == []


def test_info(shell: Shell, digits: str) -> None:
    out = shell("info")
    assert digits in out and "1617 training and 180 test" in out and "network      tiny {'channels': 4}" in out
    with (Path(digits) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    assert shell("info") == out
    (Path(digits) / "metrics.jsonl").unlink()
    assert shell.json("info")["last_loss"] is None


def test_another_path_and_straighter_ones(shell: Shell, moons: str) -> None:
    line = f"sample {moons} --n 3 --solver ode --rtol 1e-5 --dtype float64 --save npz"
    found = [shell.json(f"{line} {more}") for more in ("", "--path flow", "--path edm")]
    # One model, three paths: the same samples, up to where each of them starts and stops.
    x, there, elsewhere = (np.load(next(f for f in facts["files"] if f.endswith(".npz")))["x"] for facts in found)
    assert np.abs(there - x).max() < 1e-3 and np.abs(elsewhere - x).max() > 1e-3
    assert found[1]["path"] == "flow" and found[0]["path"] is None
    shell(f"sample {moons} --n 2 --path flo", code=2)
    assert "did you mean 'flow'" in shell.err

    facts = shell.json(f"reflow {moons} --pairs 24 --steps 2")
    assert facts["run"] == "runs/moons-reflow" and facts["pairs"] == 24 and 0 < facts["straightness"] < 1
    shell(f"sample {facts['run']} --n 2 --solver em", code=2)
    assert "needs the score" in shell.err
    assert "coupling     reflow" in shell(f"info {facts['run']}")
    shell(f"reflow {moons} --solver sde", code=2)
    assert "draws noise" in shell.err
    again = shell.json(f"reflow {moons} --pairs 24 --steps 2")
    assert again["run"] == "runs/moons-reflow-2", "nothing is overwritten"


def test_no_option_has_two_meanings(shell: Shell, moons: str) -> None:
    for line in ("--engine torchsde --method srk", "--solver em --engine torchsde", "--set solver.engine=torchsde"):
        shell.refuses(
            f"sample {moons} {line}",
            2,
            "torchsde is not an engine of the ode solver",
            "(on the command line: --solver torchsde)",
        )
    for line in ("--order cp", "--set solver.order=cp"):
        shell.refuses(
            f"sample {moons} --solver pc {line}", 2, "sequence", "(on the command line: --set solver.sequence=cp)"
        )
    shell.refuses(f"sample {moons} --solver multistep --order cp", 2, "order is 'cp'", "an integer")
    shell.refuses(f"sample {moons} --solver pc --order 2", 2, "no option 'order'", "multistep")
    for line in ("--set solver.sequence=cp", "--sequence cp"):
        found = shell.json(f"sample {moons} --solver pc --steps 2 --n 2 {line}")
        assert found["options"]["sequence"] == "cp"  # type: ignore[index]
    # A field whose name is taken by an option of the command is reached by --set alone.
    found = shell.json(f"sample {moons} --solver pc --steps 2 --n 2 --start 3 --set solver.start=yes")
    assert found["start"] == 3 and found["options"]["start"] is True  # type: ignore[index]


def test_python_m_and_version(shell: Shell) -> None:
    from scoresde import __version__

    assert shell("--version") == f"scoresde {__version__}, torch {torch.__version__}\n"
    assert shell("--help").startswith("Usage: scoresde")


# ----------------------------------------------------------------------------------------------------------- own SDE


def test_own_sde(shell: Shell, own: Path) -> None:
    shell("train --sde mysde:MySDE --data moons --steps 3 --batch 8 --set network.width=8 --quiet")
    assert own.exists()
    own.unlink()
    module = sys.modules.pop("mysde")

    for command in ("sample --n 2", "likelihood --limit 2", "train --resume runs/moons-mysde"):
        shell.refuses(command, 3, "mysde:MySDE", "--sde mysde:MySDE", "never imported")
    assert not own.exists() and "mysde" not in sys.modules, "a name from a file was imported"
    shell("info")
    assert not own.exists()

    shell("sample --n 2 --rtol 1e-1 --sde mysde:MySDE")
    assert own.exists()
    shell("likelihood --limit 2 --rtol 1e-1 --no-check --sde mysde:MySDE --quiet")
    shell("train --resume runs/moons-mysde --sde mysde:MySDE --steps 4 --quiet")
    run = load("runs/moons-mysde", sde=module.MySDE)
    assert run.step == 4 and run.model.domain.sde == module.MySDE()
    assert torch.isfinite(run.sample(2).x).all()

    shell.refuses("sample --sde vp", 3, "'mysde:MySDE' SDE, not with 'vp'")
    shell.refuses("sample --sde mysde:MySED", 2, "'mysde'", "did you mean 'MySDE'")
    shell.refuses("sample --sde mysdee:MySDE", 2, "no module 'mysdee'", os.getcwd())


@pytest.mark.parametrize("field", ["sde", "predict", "weighting", "t_sampler", "network_options"])
def test_a_run_that_names_code_is_not_obeyed(shell: Shell, moons: str, own: Path, field: str) -> None:
    older(moons)
    named = {"network": "mysde:MySDE"} if field == "network_options" else "mysde:MySDE"
    edit(Path(moons) / "config.json", lambda stored: {**stored, "config": {**stored["config"], field: named}})
    shell.refuses(f"train --resume {moons} --steps 4", 3, "mysde:MySDE", "not a built-in", "never imported")
    if field not in ("weighting", "t_sampler"):  # which play no part once the model is trained
        shell.refuses(f"sample {moons}", 3, "mysde:MySDE", "not a built-in", "never imported")
    assert not own.exists() and "mysde" not in sys.modules


NETWORK = """
import torch
from torch import nn

from scoresde.model.parametrization import Eps


class Wide(nn.Module):
    def __init__(self, dims, classes=0, width=4):
        super().__init__()
        self.enter, self.leave, self.width = nn.Linear(dims + 1, width), nn.Linear(width, dims), width

    def forward(self, x, c, cond=None):
        return self.leave(torch.tanh(self.enter(torch.cat([x, c[:, None]], 1))))


class Half(Eps):
    pass
"""


def test_own_network_and_prediction(shell: Shell, moons: str) -> None:
    Path("parts.py").write_text(NETWORK)
    named = "--network parts:Wide --predict parts:Half"
    shell(f"train --data moons --steps 2 --batch 8 {named} --set network.width=6 --out r --quiet")
    sys.modules.pop("parts")
    for line in ("sample r --n 2", "evaluate r --n 30", "plot reverse r --n 4", "train --resume r"):
        shell.refuses(line, 3, "is not a built-in", "(on the command line: --")
    assert "parts" not in sys.modules, "a name from a file was imported"

    for line in (
        "sample r --n 2", "likelihood r --limit 2", "likelihood r runs/moons --limit 2", "plot reverse r --n 4",
        "bench r --nfe 2 --n 4", "reflow r --pairs 16 --steps 2 --out flow", "train --resume r --steps 3",
    ):  # fmt: skip
        shell(f"{line} {named} --quiet")
    for folder, step in (("r", 3), ("flow", 2)):
        run = load(folder, network="parts:Wide", parametrization="parts:Half")
        assert run.step == step and run.base.network.width == 6  # type: ignore[union-attr]
    module = sys.modules["parts"]
    again = load("r", network=module.Wide, parametrization=module.Half())
    assert torch.equal(again.sample(2).x, load("r", network="parts:Wide", parametrization=module.Half).sample(2).x)

    shell.refuses("sample r --predict parts:Half --network mlp", 3, "the 'parts:Wide' network, not with 'mlp'")
    shell.refuses("sample r --network parts:Wide --predict v", 3, "the 'parts:Half' prediction, not with 'v'")
    shell.refuses("train --resume r --network mlp --predict parts:Half", 2, "was trained with parts:Wide")
    shell.refuses("train --data moons --network parts:Wide --set network.blocks=2", 2, "no option 'blocks'")
    shell.refuses("train --data moons --network parts:Half", 2, "not a Module")
    for own in ("", "--network parts:Wide"):
        shell.refuses(f"train --data moons {own} --set network.dims=3", 2, "the network option 'dims' is determined by")
    assert "network      parts:Wide {'width': 6}" in shell("info r")


def test_a_network_given_as_an_object_is_named_later(shell: Shell) -> None:
    Path("given_net.py").write_text(NETWORK.replace("dims, classes=0", "dims=2"))
    sys.path.insert(0, os.getcwd())
    try:
        network = resolve("given_net:Wide", {}, typed=True)()
    finally:
        sys.path.remove(os.getcwd())
    fit(TrainConfig(data="moons", steps=2, batch=8), network=network, out="r", quiet=True)
    shell.refuses("sample r --n 2", 3, "trained with a network of your own")
    shell("sample r --n 2 --network given_net:Wide --quiet")
    fit(TrainConfig(data="moons", steps=2, batch=8, network_options={"width": 8}), out="built-in", quiet=True)
    shell("likelihood built-in r --limit 2 --network given_net:Wide --quiet")
    shell.refuses("train --resume r --steps 3", 3, "trained with a network of your own")
    shell("train --resume r --steps 3 --network given_net:Wide --quiet")
    assert load("r", network="given_net:Wide").step == 3


# --------------------------------------------------------------------------------------------------------- bad usage


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "trian",
            [
                "'trian'",
                "did you mean 'train'",
                "info, interpolate, likelihood, list, page, plot, reflow, sample, train, tune",
            ],
        ),
        ("train --stepps 4", ["--stepps", "--steps"]),
        ("sample --slover em", ["--slover", "--solver"]),
        ("train --sde vpp", ["'vpp'", "did you mean 'vp'", ", ".join(sorted(SDES)), "module:Name"]),
        ("train --preset smal", ["'smal'", "did you mean 'small'"]),
        ("train --predict epss", ["'epss'", "did you mean 'eps'"]),
        ("train --weighting nativ", ["'nativ'", "did you mean 'native'"]),
        ("train --steps 0", ["--steps", "0", ">=1"]),
        ("train --lr 0", ["--lr", "0.0", ">0"]),
        ("train --steps many", ["--steps", "many"]),
        ("train --set network.chanels=4", ["'chanels'", "did you mean 'channels'"]),
        ("train --set netwrok.channels=4", ["netwrok.channels=4", "network.NAME=VALUE"]),
        ("train --set clipp=4", ["'clipp'", "did you mean 'clip'"]),
        ("train --set clip", ["--set clip:", "NAME=VALUE"]),
        ("train --set clip=abc", ["clip is 'abc'", "a number"]),
        ("train --set clip=-1", ["clip is -1", "> 0"]),
        ("train --set seed=1.5", ["seed is 1.5", "an integer"]),
        ("train --set t_sampler=log", ["unknown time sampler 'log'", "sqrt, uniform"]),
        ("train --t-sampler lognorm", ["'lognorm'", "did you mean 'lognormal'"]),
        ("train --t-sampler mode --set t_sampler.s=1", ["no option 's'", "k, stratified"]),
        ("train --weighting p2 --set weighting.gama=1", ["no option 'gama'", "did you mean 'gamma'"]),
        ("train --weighting likelihood --t-sampler mode", ["LikelihoodWeight()", "uniform in t", "importance"]),
        ("train --set gamma=1", ["unknown setting 'gamma'"]),
        ("train --set test_fraction=0", ["test_fraction", "0"]),
        ("train --set sde.beta_max=abc", ["SDE 'vp'", "beta_max is 'abc'", "a number", "--set sde.beta_max=VALUE"]),
        ("train --set sde.beta_max=-4", ["VPSDE", "must be a number > 0"]),
        ("train --set sde.sigma_max=4", ["'sigma_max'", "beta_max, beta_min"]),
        ("train --set network.channels=abc", ["channels is 'abc'", "--set network.channels=VALUE"]),
        ("train --cond class --data moons", ["cond='class'", "moons", "no labels", "--cond none"]),
        ("train --device tpu", ["'tpu'", "--device cpu"]),
        ("train --resume runs/moons --lr 1", ["--lr", "runs/moons", "keeps its settings"]),
        ("train --resume runs/moons --set clip=2", ["--set", "keeps its settings"]),
        (
            "train --resume runs/moons --steps 2",
            ["has already been trained for 3 steps", "steps is 2", "(on the command line: --steps)"],
        ),
        (
            "train --out runs/moons --data moons",
            ["already contains a run", "(on the command line: scoresde train --resume runs/moons)"],
        ),
        ("train --clip abc", ["clip is 'abc'", "--set clip=VALUE"]),
        ("train --set learn_variance=2", ["learn_variance is 2", "yes or no"]),
        ("train --set network.channels=4.5", ["channels is 4.5", "an integer"]),
        ("train --set beta_max=4", ["unknown setting 'beta_max'", "did you mean sde.beta_max?"]),
        ("train --beta-mx 4", ["--beta-mx", "--beta-max"]),
        ("train --data-std 1", ["--set predict.data_std=VALUE or --set weighting.data_std=VALUE"]),
        ("train --sde ve --beta-max 4", ["'ve' has no option 'beta_max'", "vp, subvp"]),
        ("sample --n 0", ["--n", "0", ">=1"]),
        ("sample --snrr 0.2", ["--snrr", "--snr"]),
        ("sample --solver em --eta", ["--eta", "requires an argument"]),
        ("sample --solver em --eta abc", ["eta is 'abc'", "a number", "--set solver.eta=VALUE"]),
        ("sample --solver em --snr 0.2", ["'em' has no option 'snr'", "pc, ald, original"]),
        ("sample --solver pc --set solver.start=3", ["start is 3", "yes or no", "--set solver.start=VALUE"]),
        ("sample --solver em --set solver.steps=2.5", ["steps is 2.5", "an integer"]),
        ("sample --solver em --steps 4 --grid 1,0.5,0.001", ["--steps 4", "omit --steps"]),
        ("sample --set sovler.eta=3", ["did you mean --set solver.eta=3?"]),
        ("likelihood --draws two", ["draws is 'two'", "an integer", "--set likelihood.draws=VALUE"]),
        ("likelihood --redraw=3", ["redraw is 3", "yes or no"]),
        ("likelihood --no-redrw", ["--no-redrw", "--redraw"]),
        ("likelihood --method quadratur", ["'quadratur'", "coupled, quadrature", "--set likelihood.method=VALUE"]),
        ("sample --rtol 0", ["--rtol", "0.0", ">0"]),
        ("sample --set solver.rtol=0", ["rtol is 0", "1e-5"]),
        ("sample --solver oed", ["'oed'", "did you mean 'ode'", ", ".join(sorted(SOLVERS))]),
        ("sample --solver ode --steps 5", ["'ode'", "'steps'", "atol, engine, frame, max_nfe, method, rtol"]),
        ("sample --solver em --rtol 1e-3", ["'em'", "no option 'rtol'", "eta, grid, level, steps"]),
        ("sample --set steps=5", ["--set steps=5", "solver.NAME=VALUE"]),
        ("sample --solver em --grid sqr", ["'sqr'", "did you mean 'sqrt'", "karras, leading, linspace, logsnr"]),
        ("sample --save pgn", ["'pgn'", "png, files, npz"]),
        ("sample --dtype float16", ["float16", "float32"]),
        ("likelihood --rtol 0", ["--rtol", ">0"]),
        ("likelihood --probes 0", ["--probes", ">=1"]),
        ("likelihood --split val", ["val", "test"]),
        ("likelihood --label 3 --labels", ["--labels", "--label"]),
        ("likelihood --save csv,gif", ["'gif'", "png, csv, npz"]),
    ],
)
def test_usage_errors(shell: Shell, moons: str, line: str, words: list[str]) -> None:
    before = sorted(Path().rglob("*"))
    shell.refuses(line, 2, *words)
    assert sorted(Path().rglob("*")) == before, "something was written"


# ---------------------------------------------------------------------------------------------------------- bad data


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def images(folder: Path, *sizes: tuple[int, int]) -> None:
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.new("L", size, 10 * i).save(folder / f"{i}.png")


def bad_data(name: str, where: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    if name == "missing":
        return
    if name == "empty":
        (where / "bad").mkdir()
    elif name == "text.png":
        images(where / "bad", (4, 4), (4, 4), (4, 4))
        (where / "bad" / "notes.png").write_text("just text")
    elif name == "two sizes":
        images(where / "bad", (4, 4), (4, 4), (7, 5))
    elif name == "nan":
        x[4, 2] = np.nan
        np.save(where / "bad.npy", x)
    elif name == "objects":
        np.save(where / "bad.npy", np.array([Bomb(where / "ran"), None], dtype=object), allow_pickle=True)
    elif name == "pickle":
        (where / "bad.pkl").write_bytes(pickle.dumps(Bomb(where / "ran")))
    elif name == "pickle.npy":
        (where / "bad.npy").write_bytes(pickle.dumps(Bomb(where / "ran")))
    elif name == "torch":
        torch.save({"x": Bomb(where / "ran")}, where / "bad.pt")
    elif name == "npz":
        np.savez(where / "bad.npz", x=np.array([Bomb(where / "ran"), None], dtype=object))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("missing", "no/such/folder", ["no/such/folder", "8gaussians, 2spirals", ".npz"]),
        ("missing", "mooons", ["mooons", "Did you mean moons"]),
        ("empty", "bad", ["bad", "no images", ".png"]),
        ("text.png", "bad", ["bad: 1 of 4 files", "notes.png (text)"]),
        ("two sizes", "bad", ["7x5", "4x4", "2.png", "resize"]),
        ("nan", "bad.npy", ["bad.npy", "NaN", "row 4"]),
        ("objects", "bad.npy", ["bad.npy", "Python objects"]),
        ("pickle", "bad.pkl", ["bad.pkl", "unsupported file type"]),
        ("pickle.npy", "bad.npy", ["bad.npy", "Python objects"]),
        ("torch", "bad.pt", ["bad.pt", "unsupported file type"]),
        ("npz", "bad.npz", ["bad.npz", "Python objects"]),
    ],
)
def test_bad_data(shell: Shell, tmp_path: Path, name: str, data: str, words: list[str]) -> None:
    bad_data(name, tmp_path)
    shell.refuses(f"train --data {data} --steps 1", 3, *words)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs").exists()


def test_the_bombs_work() -> None:
    """When they are let off: else the tests above would show nothing."""
    with pickle.loads(pickle.dumps(Bomb(Path(os.devnull)))) as file:
        assert file.name == os.devnull


def test_misspelt_names_are_refused_before_the_data_are_read(shell: Shell) -> None:
    for line, words in (
        ("--sde vpp", "did you mean 'vp'"),
        ("--set sde.betamax=3", "did you mean 'beta_max'"),
        ("--predict epss", "did you mean 'eps'"),
        ("--weighting edn", "did you mean 'edm'"),
    ):
        shell.refuses(f"train --data nowhere.npz {line}", 2, words)


def test_a_resumed_run_counts_the_steps_it_has_done(shell: Shell, moons: str) -> None:
    shell(f"train --resume {moons} --steps 5")
    assert re.search(r"trained 2 steps in \d+ s, 5 in total\n", shell.err)


# ---------------------------------------------------------------------------------------------------------- bad runs


def test_no_run_yet(shell: Shell) -> None:
    for command in ("sample", "likelihood", "info"):
        shell.refuses(
            command, 3, "no run with a checkpoint", os.getcwd(), "(on the command line: scoresde train --sde vp)"
        )
        shell.refuses(f"{command} nothing", 3, "nothing is not a run folder")
    shell.refuses("train --resume nothing", 3, "nothing is not a run folder (there is no such folder")
    assert list(Path().iterdir()) == []


def test_a_truncated_checkpoint(shell: Shell, digits: str) -> None:
    checkpoints = sorted((Path(digits) / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    weights = checkpoints[1] / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    # There is an older one: it is taken, with a warning.
    assert shell.json(f"sample {digits} --solver heun --steps 2 --n 2")["step"] == 2
    warned = rf"warning: using the older checkpoint {checkpoints[0].name}: {weights} is \d+ bytes .*truncated\?.*\n"
    assert re.fullmatch(warned + r"drawing 2 samples .*\nsample  2/2 .*\n", shell.err)
    shell(f"train --resume {digits} --quiet")
    assert shell.json("info")["step"] == 3, "resumed from the older one"
    for checkpoint in (Path(digits) / "checkpoints").glob("step-*"):
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    for command in (f"sample {digits}", f"likelihood {digits}", f"info {digits}", f"train --resume {digits}"):
        shell.refuses(command, 3, digits, "no complete checkpoint", "truncated", str(weights))


def test_a_run_from_the_future(shell: Shell, digits: str) -> None:
    for name in ("config.json", "model.json", "state.json"):
        paths = [p for p in Path(digits).rglob(name)]
        before = {p: p.read_text() for p in paths}
        for path in paths:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
        verbs = ["sample", "likelihood", "train --resume", *(["info"] if name != "model.json" else [])]
        for command in (f"{verb} {digits}" for verb in verbs):
            shell.refuses(command, 3, digits, name, "format 3", "reads formats 1 to 2", "newer")
        for path, text in before.items():
            path.write_text(text)
    shell("info")


def test_a_pickle_in_the_place_of_weights(shell: Shell, digits: str, tmp_path: Path) -> None:
    import hashlib

    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    for checkpoint in (Path(digits) / "checkpoints").glob("step-*"):
        (checkpoint / "ema.safetensors").write_bytes(bomb)
    commands = (f"sample {digits}", f"likelihood {digits}", f"info {digits}", f"train --resume {digits} --steps 4")
    for command in commands:
        shell.refuses(command, 3, "ema.safetensors")
    for checkpoint in (Path(digits) / "checkpoints").glob("step-*"):  # and by somebody who mends the digest
        new = {"ema.safetensors": {"size": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}}
        edit(checkpoint / "state.json", lambda state, new=new: {**state, "files": {**state["files"], **new}})
    for command in commands:
        shell.refuses(command, 3, "ema.safetensors", "cannot be read as safetensors")
    Path("run.pkl").write_bytes(bomb)
    torch.save({"x": Bomb(tmp_path / "ran")}, "run.pt")
    for name in ("run.pkl", "run.pt"):
        for command in ("sample", "likelihood", "info", "train --resume"):
            shell.refuses(f"{command} {name}", 3, f"{name} is a file", "run folder")
    assert not (tmp_path / "ran").exists()


def test_folders_that_cannot_be_written(shell: Shell, moons: str) -> None:
    # Below a file: permissions do not bind root, and tests may run as root.
    Path("file.txt").write_text("text")
    shell.refuses("train --data moons --steps 1 --out file.txt/run", 3, "file.txt/run", "is a file", "--out")
    shell.refuses("sample --solver heun --steps 1 --n 1 --out file.txt/x", 3, "file.txt", "is a file", "--out")
    shell.refuses("sample --solver heun --steps 1 --n 1 --out file.txt/x/y", 3, "file.txt/x/y", "is a file")
    assert Path("file.txt").read_text() == "text"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    shell.refuses("train --data moons --steps 1 --out locked/run", 3, "locked/run", "Permission denied")


# ------------------------------------------------------------------------------------- numerical failures and signals


def test_a_loss_that_explodes(shell: Shell) -> None:
    line = "train --data moons --steps 6 --batch 8 --set network.width=8 --lr 1e30 --set clip=inf --quiet --out r"
    words = (
        "stopped at step 2",
        "t = ",
        "Try a smaller learning rate",
        "r is from an earlier step",
        "(on the command line: --lr 9e+28)",
    )
    message = shell.refuses(line, 4, *words)
    assert "loss inf" in message or "loss nan" in message
    checkpoint = newest_checkpoint(Path("r"))
    assert read_json(checkpoint / "state.json")["step"] == 1
    shell("info r")


def test_samples_that_fail_are_named_and_the_others_kept(shell: Shell, moons: str) -> None:
    shell("sample --n 3 --rtol 1e-6 --set solver.max_nfe=20", 4)
    assert "3 of 3 samples failed (0, 1, 2)" in shell.err and "Traceback" not in shell.err
    assert json.loads(Path(moons, "samples/ode-seed0/samples.json").read_text())["failed"] == [0, 1, 2]
    found = json.loads(shell("sample --n 3 --rtol 1e-6 --set solver.max_nfe=20 --json", 4))
    assert found["failed"] == [0, 1, 2]


def test_a_bug_is_called_one(shell: Shell, moons: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(training, "fit", broken)
    shell("train --data moons --quiet", 1)
    assert shell.err == "unexpected error: ZeroDivisionError: oops\n(use --debug to show the traceback)\n"
    with pytest.raises(ZeroDivisionError):
        main("train --data moons --quiet --debug".split())


def test_ctrl_c_is_130_and_leaves_a_checkpoint(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_at(monkeypatch, 3, signal.SIGINT)
    out = shell("train --data moons --steps 11 --batch 8 --set network.width=8 --out r", 130)
    assert out == "" and "after step 3: the checkpoint is saved in r" in shell.err
    assert (
        "stopped: SIGINT after step 3: the checkpoint is saved in r; continue with: scoresde train --resume r\n"
        in shell.err
    )
    assert read_json(newest_checkpoint(Path("r")) / "state.json")["step"] == 3


def test_sigterm_is_75_and_the_run_goes_on(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, 3, signal.SIGTERM)
        out = shell("train --data moons --steps 9 --batch 8 --set network.width=8 --out r", 75)
    message = r"stopped: SIGTERM after step 3: the checkpoint is saved in r; continue with: scoresde train --resume r\n"
    assert out == "" and re.search(message, shell.err) and "Traceback" not in shell.err
    assert read_json(newest_checkpoint(Path("r")) / "state.json")["step"] == 3
    assert shell("train --resume r --steps 6 --quiet") == "r\n"
    assert shell.json("info r")["step"] == 6


@pytest.mark.slow
def test_sigterm_reaches_a_program(shell: Shell, tmp_path: Path) -> None:
    line = "train --data moons --steps 100000 --batch 8 --set network.width=8 --set network.blocks=1 --out r".split()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *line, "--threads", "1"], cwd=tmp_path, **pipes) as p:
        deadline = time.monotonic() + 60
        while not (tmp_path / "r" / "metrics.jsonl").exists():
            assert p.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        p.send_signal(signal.SIGTERM)
        out, err = p.communicate(timeout=60)
    assert p.returncode == 75 and out == b""
    message = (
        r"stopped: SIGTERM after step (\d+): the checkpoint is saved in r; continue with: scoresde train --resume r\n"
    )
    told = re.search(message, err.decode())
    assert told and "Traceback" not in err.decode()
    step = int(told[1])
    assert read_json(newest_checkpoint(Path("r")) / "state.json")["step"] == step >= 500
    assert shell(f"train --resume r --steps {step + 3} --quiet") == "r\n"
    assert shell.json("info r")["step"] == step + 3
