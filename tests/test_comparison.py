"""Data sets beside each other: ranks by hand, sums that add up, files that say what they hold."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import Elbo, LogLikelihood, load, load_data
from scoresde.codec import Composed, Levels
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.files import check_kinds
from scoresde.likelihood import Likelihood, Scores
from scoresde.study.report import (
    KINDS,
    Chosen,
    Scored,
    _titles,
    check_comparable,
    paired,
    trained_on,
    unfair,
    write_scores,
)

DIMS = 4
BITS = DIMS * math.log(2)


def scored(
    bits: list[float], name: str = "a", *, density: bool = False, failed: tuple[int, ...] = (), elbo: Elbo | None = None
) -> Scored:
    """Scores of given bits per dimension, or of minus so many nats as a density."""
    values = torch.tensor(bits, dtype=torch.float64)
    n, zero = len(bits), torch.zeros(len(bits), dtype=torch.int64)
    status = zero.clone()
    status[list(failed)] = 1
    log_prob = torch.where(status > 0, torch.nan, -values * (1 if density else BITS))
    change = torch.full((n,), torch.nan).double()
    change[0] = 0.01
    model = LogLikelihood(log_prob, log_prob * 0, torch.zeros(n, DIMS), zero + 50, zero + 50, change, change, status)
    how = Likelihood(divergence="hutchinson", probes=2, t_min=1e-5, dequantisation="uniform")
    scores = Scores(log_prob, None if density else -log_prob / BITS, log_prob * 0 + 0.3, model, how, 1.0, zero + DIMS)
    return Scored(name, "test", 100, torch.arange(n) + 5, scores, elbo)


def terms(prior: list[float], diffusion: list[float], reconstruction: list[float]) -> Elbo:
    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Elbo(
        tensor(prior),
        tensor(diffusion)[:, None] * tensor([0.25, 0.75]),
        tensor(reconstruction),
        tensor(prior) / 0,
        torch.full((len(prior),), 64),
    )


def test_auroc_by_hand() -> None:
    first, other = scored([1.0, 2.0, 3.0]), scored([2.0, 2.5, 0.5, 4.0])
    # of 12 pairs the other is worse in 1 (2.0), 2 (2.5), 0 (0.5) and 3 (4.0), and 2.0 has one equal
    assert other.auroc(first) == pytest.approx((1 + 2 + 0 + 3 + 0.5) / 12)
    assert first.auroc(other) == pytest.approx(1 - 6.5 / 12)
    assert first.auroc(first) == 0.5
    assert scored([9.0]).auroc(first) == 1.0 and scored([0.0]).auroc(first) == 0.0


def test_auroc_has_one_sense_for_bits_and_nats_and_leaves_failures_out() -> None:
    first, other = scored([1.0, 2.0, 3.0], density=True), scored([2.0, 2.5, 0.5, 4.0], density=True)
    assert other.auroc(first) == pytest.approx(6.5 / 12)
    assert scored([9.0, 0.0], failed=(1,)).auroc(scored([1.0, 2.0])) == 1.0
    nothing = scored([1.0], failed=(0,))
    assert math.isnan(nothing.auroc(first)) and math.isnan(first.auroc(nothing))
    assert nothing.summary(first)["auroc"] is None


def test_a_summary_has_the_figure_its_errors_and_what_it_depends_on() -> None:
    first = scored([1.0, 2.0, 6.0, 7.0], failed=(3,))
    found = first.summary(first)
    assert (found["n"], found["failed"], found["of"], found["data"], found["split"]) == (3, 1, 100, "a", "test")
    assert (found["unit"], found["mean"]) == ("bits/dim", pytest.approx(3.0))
    assert found["stderr_mean"] == pytest.approx(math.sqrt(7) / math.sqrt(3))
    assert found["stderr_probes"] == pytest.approx(0.3 / BITS)
    assert found["change"] == pytest.approx(0.01 / BITS) and found["converged"] is True
    assert (found["dequantisation"], found["draws"], found["importance"], found["probes"]) == ("uniform", 1, 1, 2)
    assert "auroc" not in found and "elbo" not in found
    json.dumps(found, allow_nan=False)
    lone = scored([1.0], failed=(0,))
    json.dumps(lone.summary(first), allow_nan=False)
    assert lone.summary(lone)["mean"] is None


@pytest.mark.parametrize("density", [False, True])
def test_terms_of_the_bound_add_up_to_it(density: bool) -> None:
    bound = terms([0.1, 0.2, 0.3], [4.0, 5.0, math.nan], [-1.0, 2.0, 0.0])
    it = scored([1.0, 2.0, 3.0], density=density, elbo=bound)
    found = it.summary(it)["elbo"]
    # -log p <= 3.1 and 7.2 nats; the third is not finite and is left out
    total = (3.1 + 7.2) / 2
    assert found["mean"] == pytest.approx(-total if density else total / BITS)
    assert found["stderr_mean"] == pytest.approx(4.1 / 2 / (1 if density else BITS))
    assert found["prior"] + found["diffusion"] + found["reconstruction"] == pytest.approx(found["mean"])
    assert found["prior"] == pytest.approx(-0.15 if density else 0.15 / BITS)
    assert (found["nfe"], found["dequantisation"]) == (64, "none" if density else "uniform")


def test_files_have_a_row_for_each_sample(tmp_path: Path) -> None:
    bound = terms([0.0] * 3, [4.0, 5.0, 6.0], [0.0] * 3)
    sets = [scored([1.0, 2.0, 3.0], elbo=bound, failed=(1,)), scored([5.0, 6.0, 7.0], "b", elbo=bound)]
    files = write_scores(tmp_path, sets, {"run": "r"}, ["png", "csv", "npz"])
    assert [f.name for f in files] == ["likelihood.png", "likelihood.csv", "likelihood.npz", "likelihood.json"]
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files), "nothing temporary is left"
    with (tmp_path / "likelihood.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "data", "index", "log_prob", "bits_per_dim", "stderr_probes", "elbo", "nfe", "change", "status",
    ]  # fmt: skip
    assert [r["data"] for r in rows] == ["a"] * 3 + ["b"] * 3 and [r["index"] for r in rows] == ["5", "6", "7"] * 2
    assert float(rows[3]["bits_per_dim"]) == pytest.approx(5.0)
    assert float(rows[3]["log_prob"]) == pytest.approx(-5 * BITS) and float(rows[4]["elbo"]) == -5.0
    assert (rows[1]["status"], rows[1]["bits_per_dim"]) == ("1", "nan")
    with np.load(tmp_path / "likelihood.npz", allow_pickle=False) as arrays:
        assert arrays.files == list(rows[0])
        np.testing.assert_array_equal(arrays["nfe"], 50)
        np.testing.assert_allclose(arrays["log_prob"], [float(r["log_prob"]) for r in rows])
    assert json.loads((tmp_path / "likelihood.json").read_text()) == {"run": "r"}


def test_sets_of_one_name_are_told_apart_and_densities_have_no_bits(tmp_path: Path) -> None:
    sets = [scored([1.0, 2.0], density=True), scored([3.0], density=True)]
    write_scores(tmp_path, sets, {}, ["npz"])
    with np.load(tmp_path / "likelihood.npz") as arrays:
        assert arrays["data"].tolist() == ["a (1)", "a (1)", "a (2)"]
        assert "bits_per_dim" not in arrays.files and "elbo" not in arrays.files


# ------------------------------------------------------------------------------------------------------- several runs


def test_the_paired_difference_against_numpy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    a += 5
    b += 3 + a
    found = paired(torch.tensor(b), torch.tensor(a))
    assert found.value == pytest.approx((b - a).mean(), rel=1e-12)
    assert found.stderr == pytest.approx(np.std(b - a, ddof=1) / math.sqrt(50), rel=1e-12)
    assert found.stderr < 0.9 * math.hypot(np.std(a), np.std(b)) / math.sqrt(50), "what both share cancels"
    assert (paired(torch.tensor([1.0]), torch.tensor([3.0])).value, len(b)) == (-2.0, 50)
    assert math.isnan(paired(torch.tensor([1.0]), torch.tensor([3.0])).stderr)
    assert math.isnan(paired(torch.tensor([math.nan]), torch.tensor([3.0])).value)
    with pytest.raises(UsageError, match="got 2 and 1"):
        paired(torch.zeros(2), torch.zeros(1))


def test_failed_rows_are_left_out_pairwise() -> None:
    first, other = scored([1.0, 2.0, 4.0, 9.0], failed=(1,)), scored([2.0, 7.0, 7.0, 8.0], failed=(3,))
    found = replace(other, run="b").summary(replace(other, run="b"), replace(first, run="a"))
    assert (found["run"], found["against"], found["paired"], found["n"]) == ("b", "a", 2, 3)
    assert (found["difference"], found["stderr_difference"]) == (pytest.approx(2.0), pytest.approx(1.0))
    assert "difference" not in first.summary(first, first) and "against" not in first.summary(first)
    nothing = scored([1.0] * 4, failed=(0, 1, 2, 3)).summary(other, first)
    assert nothing["difference"] is None and nothing["stderr_difference"] is None and nothing["paired"] == 0
    json.dumps(nothing, allow_nan=False)


def test_bounds_are_compared_too() -> None:
    sets = [
        scored([1.0, 2.0], density=True, elbo=terms([0.0] * 2, diffusion, [0.0] * 2))
        for diffusion in ([4.0, 5.0], [5.0, 8.0])
    ]
    assert sets[1].summary(sets[0], sets[0])["elbo"]["difference"] == pytest.approx(-2.0)
    assert sets[1].summary(sets[0], sets[0])["elbo"]["stderr_difference"] == pytest.approx(1.0)


def test_differences_are_of_the_same_samples_in_one_unit() -> None:
    with pytest.raises(UsageError, match="likelihoods in bits/dim cannot be paired with likelihoods in nats"):
        scored([1.0, 2.0]).difference(scored([1.0, 2.0], density=True))
    other = scored([1.0, 2.0])
    with pytest.raises(UsageError, match="likelihoods of different samples cannot be paired"):
        other.difference(replace(other, index=other.index.flip(0)))


def test_runs_have_their_names_in_files(tmp_path: Path) -> None:
    sets = [replace(scored([1.0, 2.0]), run=run) for run in ("runs/a", "runs/b")]
    assert _titles(sets) == ["runs/a", "runs/b"]
    both = [replace(scored([1.0], name), run=run) for name in ("x", "y") for run in ("runs/a", "runs/b")]
    assert _titles(both) == ["runs/a: x", "runs/b: x", "runs/a: y", "runs/b: y"]
    assert _titles([sets[0], scored([1.0])][:1]) == ["runs/a"]
    twice = [replace(scored([1.0]), run="runs/a"), replace(scored([1.0]), run="runs/a")]
    assert len(set(_titles(twice))) == 2
    write_scores(tmp_path, both, {}, ["npz", "png"])
    with np.load(tmp_path / "likelihood.npz") as arrays:
        assert arrays["run"].tolist() == ["runs/a", "runs/b"] * 2 and arrays["data"].tolist() == ["x", "x", "y", "y"]


def test_runs_on_other_data_are_not_compared(trained: Path, tmp_path: Path) -> None:
    digits, classes, moons = (load(trained / name) for name in ("digits", "classes", "moons"))
    check_comparable(classes, digits)
    with pytest.raises(UsageError, match=r"differ in shape: \(2,\) and \(1, 8, 8\)"):
        check_comparable(moons, digits)
    with pytest.raises(UsageError, match="differ in classes: none and 0, 1"):
        check_comparable(replace(digits, info=replace(digits.info, classes=())), classes, by_class=True)
    other = replace(digits, codec=Composed((Levels(0, 255, 256), digits.codec.continuous)))
    with pytest.raises(UsageError, match="differ in levels"):
        check_comparable(other, digits)
    with pytest.raises(UsageError, match="differ in levels: none and 17 in"):
        check_comparable(replace(digits, codec=digits.codec.continuous), digits)
    a, b = (replace(moons, info=replace(moons.info, names=names)) for names in (("u", "v"), ("v", "u")))
    with pytest.raises(UsageError, match="differ in columns: v, u and u, v"):
        check_comparable(b, a)
    check_comparable(a, moons)  # a run that is older than names


def test_rows_that_another_run_was_trained_on(trained: Path) -> None:
    run, data = load(trained / "digits"), load_data("digits")
    x = torch.cat([data.train[5:8], data.test[:4]]).float()
    assert trained_on(run, x).tolist() == [True] * 3 + [False] * 4
    other = replace(run, config=replace(run.config, seed=1))
    split = load_data("digits", seed=1)
    known = {row.numpy().tobytes() for row in split.train}
    expected = sum(row.numpy().tobytes() in known for row in data.test[:50])
    chosen = Chosen("digits", "test", 180, torch.arange(50), data.test[:50], None)
    assert 30 < expected < 50
    assert unfair(run, run, chosen) is None
    told = unfair(other, run, chosen)
    assert told is not None and f"was trained on {expected} of these 50 samples" in told and "(seed 1 versus 0)" in told
    train = Chosen("digits", "train", 1617, torch.arange(50), data.train[:50], None)
    told = unfair(other, run, train)
    assert told is not None and "was not trained on" in told
    assert unfair(other, run, replace(chosen, split="all")) is None
    gone = replace(other, config=replace(other.config, data="nowhere.npz"))
    assert trained_on(gone, x) is None
    assert "cannot be read, so this run may have been trained" in str(unfair(gone, run, chosen))
    fresh = Chosen("digits", "test", 3, torch.arange(3), 16 - data.test[:3], None)
    assert unfair(other, run, fresh) is None


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot save 'gif'; choose from: png, csv, npz"):
        check_kinds(["csv", "gif"], KINDS)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*likelihood\.csv: .*file is a file"):
        write_scores(tmp_path / "file", [scored([1.0])], {}, ["csv"])
    # nothing to draw
    files = write_scores(tmp_path, [scored([1.0], failed=(0,))], {}, ["png"])
    assert [f.name for f in files] == ["likelihood.json"]
