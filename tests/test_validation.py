"""Validation: the same rows, times and noise each time, the best weights kept, and used only if that is no chance."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from runs import contents, signal_at
from torch import Tensor, nn

from scoresde import Likelihood, TrainConfig, fit, load
from scoresde.core.errors import Preempted, UsageError
from scoresde.core.files import read_lines, read_tensors
from scoresde.data import Dataset, load_data
from scoresde.data.batch import Batch, Rows
from scoresde.objective.draw import Draw, Draws
from scoresde.objective.loss import Objective
from scoresde.run.files import BEST, save_best
from scoresde.run.spec import ModelSpec
from scoresde.train.loop import previews
from scoresde.train.prepare import parts
from scoresde.train.reflow import reflow
from scoresde.train.validation import Best, Validation, sentence

SMALL = {"width": 8, "blocks": 1}
CONFIG = TrainConfig(steps=8, batch=16, network_options=SMALL, validate_every=1)


def table(n: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2))


WIDE = TrainConfig(steps=120, batch=64, lr=1e-2, validate_every=6, network_options={"width": 128, "blocks": 1})


def many() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(80, 12))


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide network on a few points in many dimensions, which it learns by heart."""
    folder = tmp_path_factory.mktemp("overfitted") / "r"
    fit(WIDE, data=many(), out=folder, quiet=True)
    return folder


def test_the_paired_difference_decides() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    best = Best(10, losses, {})
    told = best.against(losses + torch.tensor([1.0, 1.1, 0.9, 1.0]), 40)
    assert told["used"] == "best" and told["difference"] == pytest.approx(1.0)
    assert told["stderr"] == pytest.approx(np.std([1.0, 1.1, 0.9, 1.0], ddof=1) / 2)
    noisy = best.against(losses + torch.tensor([4.0, -3.0, 4.0, -1.0]), 40)  # the same mean, by chance
    assert noisy["difference"] == pytest.approx(1.0) and noisy["used"] == "last" and "chance" in sentence(noisy)
    for errors, used in ((1.9, "last"), (2.1, "best")):  # of the mean
        difference = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()
        difference += errors * difference.std() / 2
        assert best.against(losses + difference, 40)["used"] == used
    assert best.against(losses, 10)["used"] == "last" and "the last weights are the best" in sentence(
        best.against(losses, 10)
    )
    alone = Best(1, losses[:1], {}).against(losses[1:2], 2)
    assert alone["used"] == "last" and alone["stderr"] is None and "a single row" in sentence(alone)


def test_the_losses_are_of_the_same_draws_each_time(tmp_path: Path) -> None:
    fit(CONFIG, data=table(), out=tmp_path / "a", quiet=True)
    fit(CONFIG, data=table(), out=tmp_path / "b", quiet=True)
    seen = [
        [line["validation"] for line in read_lines(tmp_path / n / "metrics.jsonl") if "validation" in line]
        for n in "ab"
    ]
    assert seen[0] == seen[1] and len(seen[0]) == 8 and all(math.isfinite(v) for v in seen[0])


class Itself:
    """An objective whose loss is the first number of a row, as the draws have it."""

    ends = staticmethod(lambda model, batch: None)

    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        assert torch.equal(draws.eps, batch.x0)
        return batch.x0[:, 0]


def drawn(batch: Batch, generator: torch.Generator) -> Draws:
    return Draws(batch.x0, weight=torch.linspace(0, 2, len(batch)))


def test_the_losses_are_weighted_and_of_each_row(tmp_path: Path) -> None:
    data = Dataset.of(table())
    held = Validation(Rows(data.test, data.codec), cast(Draw, drawn), cast(Objective, Itself()), 0, torch.float64)
    x0, network = data.codec.to_model(data.test.double()), nn.Linear(1, 1)
    copies = len(held.batch) // len(x0)
    assert copies > 1
    weights = torch.linspace(0, 2, copies * len(x0)).reshape(copies, -1).mean(0)
    torch.testing.assert_close(held.losses(network), weights.double() * x0[:, 0], atol=1e-6, rtol=0)
    for step in (4, 3):  # what is best after the step of the checkpoint is, and what came after it is not
        held.best = None
        save_best(tmp_path, 4, {"ema": network.state_dict()})
        held.resume(tmp_path, step, lambda weights: network)
        assert (held.best is not None) == (step == 4)


def test_validation_rows_are_not_trained_on() -> None:
    data = Dataset.of(table())
    train, validating = parts(data, cast(ModelSpec, SimpleNamespace(codec=data.codec, classes=0)), CONFIG, None)
    assert validating is not None and len(train) + len(validating) == len(data.train) and len(validating) > 2
    assert not {tuple(r) for r in train.x.tolist()} & {tuple(r) for r in validating.x.tolist()}
    assert torch.equal(validating.x, data.train[data.validates])
    assert fit(replace(CONFIG, batch=400), data=data, save=False, quiet=True).config.batch == len(train)


def test_a_model_that_overfits_uses_its_best_weights(overfitted: Path, tmp_path: Path) -> None:
    told = json.loads((overfitted / "validation.json").read_text())
    loaded = load(overfitted)
    assert told["used"] == "best" and loaded.step == told["best_step"] < 120 and "overfits" in sentence(told)
    best = read_tensors(overfitted / "checkpoints" / BEST / "ema.safetensors")
    assert all(torch.equal(best[k], v) for k, v in loaded.base.learned.state_dict().items())
    lines = [line for line in read_lines(overfitted / "metrics.jsonl") if "validation" in line]
    assert min(lines, key=lambda line: line["validation"])["step"] == loaded.step
    shutil.copytree(overfitted, tmp_path / "r")
    (tmp_path / "r" / "validation.json").unlink()
    last, test = load(tmp_path / "r"), Dataset.of(many()).test
    how = Likelihood(rtol=1e-3)
    assert last.step == 120 and last.log_likelihood(test, how).mean() < loaded.log_likelihood(test, how).mean()


def test_without_a_folder_the_best_weights_are_used_too(overfitted: Path) -> None:
    run = fit(WIDE, data=many(), save=False, quiet=True)
    assert torch.equal(run.sample(4, "euler").x, load(overfitted).sample(4, "euler").x)


def test_damaged_best_weights_are_passed_over(overfitted: Path, tmp_path: Path) -> None:
    shutil.copytree(overfitted, tmp_path / "r")
    (tmp_path / "r" / "checkpoints" / BEST / "ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="instead of the best weights"):
        assert load(tmp_path / "r").step == 120


def test_a_resumed_run_chooses_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, steps=20)
    fit(config, data=table(), out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        signal_at(patch, 11, 15)
        fit(config, data=table(), out=tmp_path / "cut", quiet=True)
    fit(config, data=table(), out=tmp_path / "cut", resume=True, quiet=True)
    one, other = ((tmp_path / n / "validation.json").read_text() for n in ("whole", "cut"))
    assert one == other
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("change", [lambda x: x[::-1], lambda x: np.concatenate([x[:1] + 0.1, x])])
def test_the_best_weights_outlive_other_orders_and_more_rows(
    overfitted: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    shutil.copytree(overfitted, tmp_path / "r")
    grown = change(many())
    before = json.loads((tmp_path / "r" / "validation.json").read_text())
    with pytest.warns(UserWarning, match="order of the data|grown"):
        run = fit(replace(WIDE, steps=120), data=grown, out=tmp_path / "r", resume=True, quiet=True)
    assert run.step == before["best_step"] == json.loads((tmp_path / "r" / "validation.json").read_text())["best_step"]


def test_a_reflow_run_is_not_validated_by_another_loss(tmp_path: Path) -> None:
    run = fit(replace(CONFIG, sde="flow"), data=table(), out=tmp_path / "first", quiet=True)
    straight = reflow(run, pairs=32, steps=4, data=Dataset.of(table()), out=tmp_path / "r", quiet=True)
    fit(replace(straight.config, steps=10), data=table(), out=tmp_path / "r", resume=True, quiet=True)
    assert not (tmp_path / "r" / "validation.json").exists() and not (tmp_path / "r" / "checkpoints" / BEST).exists()


def test_a_run_goes_on_with_what_the_data_decided_at_first(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", table(60))
    config = TrainConfig(data=str(tmp_path / "x.npy"), steps=2, network_options=SMALL)
    first = fit(config, out=tmp_path / "r", quiet=True)
    np.save(tmp_path / "x.npy", np.concatenate([table(60), table(40, seed=4)]))
    with pytest.warns(UserWarning, match="grown"):
        again = fit(replace(config, steps=3), out=tmp_path / "r", resume=True, quiet=True)
    assert again.config.batch == first.config.batch and again.config.predict_options == first.config.predict_options


def test_data_that_were_split_otherwise_are_not_split_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", table())
    path = str(tmp_path / "x.npy")
    with pytest.raises(UsageError, match=r"seed 0.*seed 1"):
        fit(replace(CONFIG, seed=1), data=load_data(path), save=False, quiet=True)
    fit(CONFIG, data=load_data(path, test_fraction=0.4), out=tmp_path / "r", quiet=True)
    assert torch.equal(load(tmp_path / "r").data().test, load_data(path, test_fraction=0.4).test)


def test_a_class_whose_only_row_validates_was_never_trained() -> None:
    data = Dataset.of(table(), classes=np.arange(200) % 3)
    assert sum(data.info.trained) == len(data.train) - data.info.n_validation == len(data.trained)


def test_a_run_cannot_be_resumed_without_a_folder() -> None:
    with pytest.raises(UsageError, match="save=False"):
        fit(CONFIG, data=table(), save=False, resume=True)


def test_what_is_said_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    fit(CONFIG, data=table(), save=False)
    assert "validation: " in capsys.readouterr().err
    fit(CONFIG, data=table(12, seed=6), save=False)
    assert "too few to spare any" in capsys.readouterr().err
    fit(replace(CONFIG, data="moons"), save=False)  # toys and digits have none
    assert "validation" not in capsys.readouterr().err


def test_when_samples_are_shown() -> None:
    assert previews(1000) == {10, 20, 50, 100, 200, 500, 1000} and previews(3) == {1, 2, 3}
    assert previews(10, 4) == {4, 8, 10}
