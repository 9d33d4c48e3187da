"""Data sets beside each other: ranks by hand, sums that add up, files that say what they hold."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import Elbo, LogLikelihood
from scoresde.core.errors import CheckpointError, UsageError
from scoresde.core.files import check_kinds
from scoresde.likelihood import Likelihood, Scores
from scoresde.study.report import KINDS, Scored, write_scores

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


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot save 'gif'; choose from: png, csv, npz"):
        check_kinds(["csv", "gif"], KINDS)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*likelihood\.csv: .*file is a file"):
        write_scores(tmp_path / "file", [scored([1.0])], {}, ["csv"])
    # nothing to draw
    files = write_scores(tmp_path, [scored([1.0], failed=(0,))], {}, ["png"])
    assert [f.name for f in files] == ["likelihood.json"]
