"""Conditions that a model was never trained on are refused, wherever they could be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import edit
from shell import Shell

from scoresde import Condition, Likelihood, Run, RungeKutta, load, load_data
from scoresde.core.errors import DataError, UsageError
from scoresde.study.bench import bench
from scoresde.study.compass import measure
from scoresde.train.reflow import reflow

FAST = RungeKutta(steps=1)


def dropping(run: Run, drop: float, trained: tuple[int, ...] = ()) -> Run:
    """The run as if it had been trained otherwise."""
    assert run.config is not None
    return replace(run, config=replace(run.config, cond_drop=drop), info=replace(run.info, trained=trained))


@pytest.fixture(scope="module")
def classes(trained: Path) -> Run:
    return load(trained / "classes")


@pytest.fixture(scope="module")
def always(classes: Run) -> Run:
    """A run that saw a label with every sample."""
    return dropping(classes, 0.0)


X = load_data("digits").test[:3]
ASKED: dict[str, Callable[[Run], Any]] = {
    "sample": lambda run: run.sample(3, FAST),
    "likelihood": lambda run: run.log_likelihood(X, Likelihood(steps=1), check=False),
    "elbo": lambda run: run.elbo(X, strata=1),
    "bench": lambda run: bench(run, {"heun": FAST}, (2,), n=2),
    "compass": lambda run: measure(run, load_data("digits"), n=2, levels=2),
    "model": lambda run: run.model,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=list(ASKED))
def test_without_dropped_labels_nothing_is_known_without_one(always: Run, ask: Callable[[Run], Any]) -> None:
    nothing = Condition()
    for run, what in (
        (always, "leaving out the label"),
        (always.given(None), "leaving out the label"),
        (always.given(nothing), "leaving out the label"),
        (always.on("flow"), "leaving out the label"),
        (always.given(3).guided(3.0), "guidance 3"),
        (always.guided(0.0).given(3), "guidance 0"),
    ):
        with pytest.raises(UsageError, match=f"cond_drop=0, so .*, and {what} is not possible; .*\\(0, 1") as e:
            ask(run)
        assert (e.value.parameter, e.value.value) == ("cond_drop", 0.1)


def test_what_stands_for_no_label_is_none(always: Run, classes: Run) -> None:
    for known in (10, [3, 10], torch.tensor([10, 1, 2])):
        with pytest.raises(UsageError, match=r"had its label, and label 10 \(none\) is not possible"):
            always.given(known)
        classes.given(known)


def test_with_a_label_all_is_well(always: Run) -> None:
    for ask in (ASKED["sample"], ASKED["likelihood"], ASKED["elbo"]):
        ask(always.given([1, 2, 3]))
        ask(always.given("4").guided(1.0))
    assert measure(always.given(3), load_data("digits"), n=2, levels=2).n == 2


def test_where_all_labels_were_dropped_none_is_known(classes: Run) -> None:
    never = dropping(classes, 1.0)
    for known in (3, "3", [10, 3], torch.tensor([3])):
        with pytest.raises(UsageError, match=r"cond_drop=1, which drops every label.*did not learn class '3'") as e:
            never.given(known)
        assert (e.value.parameter, e.value.value) == ("cond_drop", 0.1)
    for run in (never, never.given(10), never.given(None)):
        assert run.sample(2, FAST).x.shape == (2, 1, 8, 8)
    with pytest.raises(UsageError, match="requires a condition"):
        never.guided(2.0).sample(1)


def test_a_class_without_training_samples_is_refused_by_name(classes: Run) -> None:
    run = dropping(classes, 0.1, trained=(5, 5, 0, 5, 5, 5, 5, 5, 5, 0))
    for known in (2, "2", [1, 2], torch.tensor([10, 2, 1]), Condition(label=torch.tensor([2]))):
        with pytest.raises(UsageError, match=r"not trained on any samples of class '2'.* trained on: 0, 1, 3, 4, 5"):
            run.given(known)
    assert run.given([0, 1, 8, 10]).sample(4, FAST).x.shape[0] == 4
    dropping(classes, 0.1).given(2)  # an older run does not say
    dropping(classes, 0.1, trained=(1, 0)).given(2)


def test_runs_without_classes_are_not_asked(trained: Path) -> None:
    for drop in (0.0, 1.0):
        run = dropping(load(trained / "moons"), drop)
        assert run.sample(2, FAST).x.shape == (2, 2) and run.example_labels(3) is None
    assert replace(load(trained / "classes"), config=None).sample(2, FAST).x.shape[0] == 2  # nobody knows


def test_example_labels_are_those_of_the_training_data(classes: Run, always: Run) -> None:
    assert classes.example_labels(5) is None and dropping(classes, 1.0).example_labels(5) is None
    even = always.example_labels(1000)
    assert even is not None and even.dtype == torch.int64
    assert (even.bincount(minlength=10) - 100).abs().max() <= 3
    assert torch.equal(always.example_labels(7), even[:7])
    uneven = dropping(classes, 0.0, trained=(600, 0, 300, 100, 0, 0, 0, 0, 0, 0)).example_labels(1000)
    counts = uneven.bincount(minlength=10)
    assert (counts - torch.tensor([600, 0, 300, 100, *[0] * 6])).abs().max() <= 3 and counts[1] == 0
    assert always.given(even[:3]).sample(3, FAST).x.shape[0] == 3
    assert (uneven[:20].bincount(minlength=4)[:4] > 0).tolist() == [True, False, True, True], "not one after the other"


def test_the_compass_of_a_class_compares_with_its_own_data(classes: Run) -> None:
    data = load_data("digits")
    ones = int((data.test_labels == 1).sum())
    found = measure(classes.given(1), data, n=1000, levels=2)
    assert found.n == ones and f"{int((data.train_labels == 1).sum())} training samples" in found.against
    assert measure(classes, data, n=30, levels=2).n == 30
    assert measure(classes.given(10), data, n=30, levels=2).n == 30
    none = replace(data, test_labels=torch.zeros_like(data.test_labels))
    with pytest.raises(DataError, match=r"and held-out samples of the given class, but .* for training and 0 held out"):
        measure(classes.given(1), none, n=3, levels=2)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_reflow_asks_for_what_was_trained(classes: Run, drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = dropping(classes, drop), load_data("digits")
    seen = []
    real = Run.sample
    monkeypatch.setattr(Run, "sample", lambda self, *a, **k: seen.append(self.condition) or real(self, *a, **k))
    reflow(run, pairs=3, steps=1, solver=FAST, data=data, save=False, quiet=True)
    label = None if seen[0] is None else seen[0].label.tolist()
    assert label == (data.train_labels[:3].tolist() if drop == 0 else None)


# ------------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def folder(shell: Shell, copied: Callable[[str], str]) -> str:
    """A run folder that says cond_drop = 0."""
    path = copied("classes")
    edit(f"{path}/config.json", lambda stored: {**stored, "config": {**stored["config"], "cond_drop": 0.0}})
    return path


REFUSED = [
    "sample {} --n 2",
    "sample {} --n 2 --label 3 --guidance 2",
    "likelihood {} --limit 2",
    "likelihood {} --limit 2 --labels --guidance 2",
    "bench {} --n 2 --guidance 2",
    "plot reverse {}",
    "plot compass {}",
]


@pytest.mark.parametrize("line", REFUSED)
def test_the_command_line_refuses_and_says_how_to_train(shell: Shell, folder: str, line: str) -> None:
    before = sorted(Path(folder).rglob("*"))
    shell.refuses(line.format(folder), 2, "cond_drop=0", "(on the command line: scoresde train --cond-drop 0.1)")
    assert sorted(Path(folder).rglob("*")) == before, "nothing is left behind"


ANSWERED = [
    "sample {} --n 2 --label 3 --solver heun --steps 1",
    "likelihood {} --limit 2 --labels --rtol 0.5 --no-check",
    "likelihood {} --limit 2 --label 3 --rtol 0.5 --no-check",
    "bench {} --n 4 --solvers heun --nfe 2",
    "bench {} --n 4 --solvers heun --nfe 2 --label 3",
    "plot reverse {} --n 2 --label 3 --steps 2 --columns 2 --no-gif",
    "plot trajectories {} --n 3 --steps 1",
    "plot compass {} --n 2 --levels 2 --label 3",
    "reflow {} --pairs 4 --steps 1 --solver heun",
]


@pytest.mark.parametrize("line", ANSWERED)
def test_the_command_line_answers_what_was_trained(
    shell: Shell, folder: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scoresde.study import bench as benches
    from scoresde.train import loop
    from scoresde.train import reflow as straight

    monkeypatch.setattr(benches, "_at", lambda solver, tolerance: RungeKutta(steps=2))
    monkeypatch.setattr(loop, "sample_sheet", lambda *given: None)
    monkeypatch.setattr(straight, "straightness", partial(straight.straightness, steps=1))
    shell(f"{line.format(folder)} --quiet --threads 1")


def test_evaluate_draws_all_classes(shell: Shell, folder: str) -> None:
    found = shell.json(f"evaluate {folder} --n 30 --steps 2 --features pixels --metrics frechet --quiet --threads 1")
    assert found["labels"] == "in the proportions of the training data" and found["n"] == 30
    out = shell(f"evaluate {folder} --n 30 --steps 2 --features pixels --metrics frechet --quiet --threads 1")
    assert "\nlabels: in the proportions of the training data\n" in out


def test_labels_of_samples_to_score_are_checked_too(shell: Shell, folder: str) -> None:
    counts = [10] * 10
    counts[7] = 0
    edit(f"{folder}/data.json", lambda stored: {**stored, "trained": counts})
    shell.refuses(f"likelihood {folder} --limit 40 --labels", 2, "any samples of class '7'")
    assert not list(Path(folder).glob("likelihood*"))
    np.savez("y.npz", x=load_data("digits").test[:20].numpy().astype(np.int64), y=np.arange(20) % 10)
    shell.refuses(f"likelihood {folder} --data y.npz --split all --labels", 2, "any samples of class '7'")
