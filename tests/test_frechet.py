"""The Fréchet distance during training: what is compared, that nothing depends on it, and that it may fail."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import Shell
from torch import Tensor

from scoresde import RungeKutta, TrainConfig, fit, load
from scoresde.core.files import read_lines
from scoresde.data import Dataset
from scoresde.metrics import frechet
from scoresde.study.classifier import ClassifierConfig, train_classifier
from scoresde.train.frechet import Frechet, pixels

POINTS = TrainConfig(data="moons", steps=5, batch=32, frechet_every=2, network_options={"width": 8, "blocks": 1})
FEW = ClassifierConfig(steps=30, width=4, batch=16)


def test_the_distance_is_that_of_samples_to_held_out_rows(tmp_path: Path) -> None:
    fit(POINTS, out=tmp_path / "r", quiet=True)
    lines = read_lines(tmp_path / "r" / "metrics.jsonl")
    assert [line["step"] for line in lines if "frechet" in line] == [2, 4, 5]
    run = load(tmp_path / "r")
    data = run.data()
    x = run.sample(1000, RungeKutta(steps=16)).x
    units = run.codec.units
    rows = data.test[torch.linspace(0, len(data.test) - 1, 1000, dtype=torch.float64).round().long()]
    expected = frechet(units.to_model(x.double()).float(), units.to_model(rows.double()).float())
    assert lines[-1]["frechet"] == pytest.approx(expected.value, rel=1e-6)
    assert lines[-1]["frechet_error"] == pytest.approx(expected.stderr, rel=1e-6)


def test_nothing_depends_on_it(tmp_path: Path) -> None:
    looked = fit(POINTS, out=tmp_path / "a", quiet=True).model.state_dict()
    plain = fit(replace(POINTS, frechet_every=0), out=tmp_path / "b", quiet=True).model.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in looked.items())
    fields = {"seconds", "frechet", "frechet_error"}
    lines = [
        [{k: v for k, v in line.items() if k not in fields} for line in read_lines(tmp_path / f / "metrics.jsonl")]
        for f in "ab"
    ]
    assert lines[0] == lines[1] and all("frechet" not in line for line in read_lines(tmp_path / "b" / "metrics.jsonl"))


def test_few_held_out_rows_are_all_used() -> None:
    data = TrainConfig(data="moons").load_data()
    assert Frechet(data, pixels(data)).reference.shape == (1000, 2)
    assert len(Frechet(replace(data, test=data.test[:30]), pixels(data)).reference) == 30


def test_the_features_may_be_given(tmp_path: Path) -> None:
    seen: list[tuple[Path | None, torch.Size]] = []

    def features(data: Dataset, folder: Path | None) -> object:
        def first(x: Tensor) -> Tensor:
            seen.append((folder, x.shape))
            return x[:, :1].double()

        return first

    fit(POINTS, out=tmp_path / "r", quiet=True, features=features)  # type: ignore[arg-type]
    assert seen == [(tmp_path / "r", torch.Size([1000, 2]))] * 4


def test_a_failure_is_a_warning(tmp_path: Path) -> None:
    def refuse(data: Dataset, folder: Path | None) -> object:
        raise ValueError("no features")

    with pytest.warns(UserWarning, match="the comparison by the Fréchet distance was not created.*no features"):
        fit(POINTS, out=tmp_path / "a", quiet=True, features=refuse)  # type: ignore[arg-type]
    calls = iter([True])

    def once(data: Dataset, folder: Path | None) -> object:
        return lambda x: x.double() if next(calls, False) else x / torch.zeros(3)

    with pytest.warns(UserWarning, match="the Fréchet distance at step . was not created") as caught:
        run = fit(POINTS, out=tmp_path / "b", quiet=True, features=once)  # type: ignore[arg-type]
    assert run.step == 5 and len(caught) == 3 and len(read_lines(tmp_path / "b" / "metrics.jsonl")) == 5


def test_the_command_line_uses_the_features_of_evaluate(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.train.frechet.MOST", 20)
    monkeypatch.setattr("scoresde.study.features.train_classifier", partial(train_classifier, config=FEW))
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = np.clip(100 * y[:, None, None, None] + rng.integers(0, 100, (200, 1, 8, 8)), 0, 255).astype(np.uint8)
    np.savez("a.npz", x=x, y=y)
    shell(
        "train --data a.npz --steps 2 --batch 8 --set network.channels=4 --set frechet_every=2 --out r "
        "--set sample_every=2"
    )
    assert "training a classifier on the labels" in shell.err and Path("r/classifier/classifier.json").is_file()
    assert read_lines(Path("r/metrics.jsonl"))[-1]["frechet"] > 0
    shell("train --resume r --steps 4 --set frechet_every=1")
    assert "training a classifier" not in shell.err
    assert ["frechet" in line for line in read_lines(Path("r/metrics.jsonl"))] == [False, True, True, True]
