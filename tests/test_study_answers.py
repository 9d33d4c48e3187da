"""Answers of conditional models against the truth, where the exact answers are known, and the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell
from torch import Tensor, nn

from scoresde import VPSDE, X0, Dataset, Noise, Run, ScoreModel, TrainConfig, fit, load
from scoresde.codec import Affine
from scoresde.core.condition import Condition
from scoresde.core.errors import NumericalError, UsageError
from scoresde.metrics import exact_gap, frechet_distance
from scoresde.operators import JPEG, Half, Pool
from scoresde.run.seen import Seen
from scoresde.solvers import Multistep
from scoresde.study.answers import (
    Answers,
    answers_table,
    ask,
    described_answers,
    evaluate_answers,
    judge,
    questions,
    training_rows,
    write_calibration,
)
from scoresde.study.features import pixels

QUICK = Multistep(steps=12)
F64 = torch.float64

# ------------------------------------------------------------------------------------------------------ exact models


class Exact(nn.Module):
    """The exact network for jointly Gaussian rows, which predicts x0 for VP.

    The rows are N(mean, covariance) in model units. The network is told ``A x + noise`` as a vector, or some of the
    values of x as an image with NaN for those that are missing. The answers of a model with another ``width`` have that
    many times the right standard deviation, and those with a ``shift`` are off by as many.
    """

    slots = ("vector", "image")

    def __init__(self, mean: Tensor, covariance: Tensor, noise: float = 1e-4, width: float = 1.0) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=F64))
        self.mean, self.precision, self.noise, self.width = mean, torch.linalg.inv(covariance), noise, width

    def posterior(self, cond: Condition) -> tuple[Tensor, Tensor]:
        """Mean ``(B, D)`` and precision ``(B, D, D)`` of x given what is told."""
        told = cond.vector if cond.image is None else cond.image
        known = (~told.isnan()).double() / self.noise**2
        precision = self.precision + torch.diag_embed(known)
        right = (self.precision @ self.mean) + known * told.double().nan_to_num(0)
        return torch.linalg.solve(precision, right[..., None])[..., 0], precision / self.width**2

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Tensor:
        if cond is None:
            raise AssertionError("this network is always told something")
        mean, precision = self.posterior(cond)
        ratio = torch.exp(4 * c)[:, None]  # sigma / alpha
        alpha = torch.rsqrt(1 + ratio**2)
        eye = torch.eye(x.shape[1], dtype=F64)
        # x0 given x_t = alpha x0 + sigma eps: precisions add.
        away = torch.linalg.solve(precision * ratio[..., None] ** 2 + eye, (x / alpha - mean)[..., None])[..., 0]
        return mean + away


def gaussian_run(data: Dataset, mean: Tensor, covariance: Tensor, cond: str, **options: float) -> Run:
    """A run of the exact model for rows that are N(mean, covariance) in data units."""
    affine = data.codec.continuous
    assert isinstance(affine, Affine)
    network = Exact(
        (mean - affine.shift) / affine.scale, covariance / (affine.scale[:, None] * affine.scale), **options
    )
    config = TrainConfig(cond=cond, cond_drop=0.0)
    base = ScoreModel(network, VPSDE(), X0())
    return Run(base, data.codec, data.info, config, operator=config.operator_for(data.info), told=True)


COVARIANCE = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.5], [0.0, 0.5, 2.0]], dtype=F64)
SCALE = torch.tensor([1.0, 30.0, 0.2], dtype=F64)  # columns with units of their own
MEAN = torch.tensor([5.0, -100.0, 0.0], dtype=F64)


@pytest.fixture(scope="module")
def table() -> Dataset:
    """Rows of three correlated columns in very different units."""
    x = Noise.of(6000, 0).normal((3,), dtype=F64) @ torch.linalg.cholesky(COVARIANCE).mT * SCALE + MEAN
    return Dataset.of(x[:3000], test=x[3000:], name="table")


def cells_run(table: Dataset, **options: float) -> Run:
    return gaussian_run(table, MEAN, COVARIANCE * SCALE[:, None] * SCALE, "cells", **options)


NOISE = 0.5


@pytest.fixture(scope="module")
def simulations() -> Dataset:
    """Two parameters, and a simulated measurement of each with noise of standard deviation 0.5 (prior: 1)."""
    theta = Noise.of(5000, 0).normal((2,), dtype=F64)
    c = theta + NOISE * Noise.of(5000, 1).normal((2,), dtype=F64)
    parts = {"given": Condition(vector=c[:2000]), "test_given": Condition(vector=c[2000:])}
    return Dataset.of(theta[:2000], test=theta[2000:], name="simulations", **parts)


def simulation_run(data: Dataset, **options: float) -> Run:
    """The exact posterior of the parameters: the measurement, standardised, is a noisy value of the parameter."""
    run = gaussian_run(data, torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), "vector", noise=NOISE, **options)
    affine, known = data.codec.continuous, data.info.known
    network = run.base.network
    shift, scale = (torch.tensor(v, dtype=F64) for v in (known.shift, known.scale))
    told = network.posterior

    def posterior(cond: Condition) -> tuple[Tensor, Tensor]:
        c = (cond.vector.double() * scale + shift - affine.shift) / affine.scale  # in the units of the parameters
        return told(Condition(vector=c))

    network.noise = NOISE / affine.scale
    network.posterior = posterior
    return run


# ----------------------------------------------------------------------------------------------- exact answers pass


def test_an_exact_posterior_of_parameters_passes_every_test(simulations: Dataset) -> None:
    run, rows = simulation_run(simulations), questions(simulations, "test", 1500, seed=1)
    found = evaluate_answers(run, simulations, rows, each=9, solver=QUICK)
    assert (found.questions, found.each, found.hidden) == (1500, 9, False)
    assert set(found.skipped) == {"ssim", "seen"} and "linear operator" in found.skipped["seen"]
    assert found.exact_gap == exact_gap(9) == pytest.approx(10 * math.log10(1.8))
    assert abs(found.gap.value - found.exact_gap) < 3 * found.gap.stderr < 0.4
    assert abs(found.spread.value - 1) < 3 * found.spread.stderr < 0.1
    # The variance of theta given c is 0.25/1.25; in units of the standard deviation of theta, which is about 1.
    scale = simulations.codec.continuous.scale
    variance = float((0.2 / scale**2).mean())
    for name, factor in (("psnr_one", 2), ("psnr_mean", 1 + 1 / 9)):
        value = getattr(found, name)
        assert abs(value.value + 10 * math.log10(factor * variance)) < 3 * value.stderr < 0.5, name
    # Training rows are draws from the prior, whose variance is 1.
    expected = -10 * math.log10(2 * float((1 / scale**2).mean()))
    assert found.ignorant["psnr_one"].value == pytest.approx(expected, abs=0.3)
    assert [column.name for column in found.columns] == ["x0", "x1"]
    for column in found.columns:
        assert column.ranks.counts.sum() == 1500 and column.ranks.doubt == "" and column.ranks.p_value > 0.01
        assert column.ranks.deviation < 2 * column.ranks.band
        for level, share in column.coverage.items():
            assert abs(share.value - level) < 4 * share.stderr < 0.08
    assert found.ranks.counts.sum() == 3000 and "not independent" in found.ranks.doubt
    assert found.unit == "the standard deviation of each column"


@pytest.mark.parametrize(("width", "sign"), [(0.6, -1), (1.6, 1)])
def test_a_model_that_is_too_sure_or_too_unsure_is_found(simulations: Dataset, width: float, sign: int) -> None:
    rows = questions(simulations, "test", 800)
    found = evaluate_answers(simulation_run(simulations, width=width), simulations, rows, each=9, solver=QUICK)
    assert sign * (found.spread.value - 1) > 5 * found.spread.stderr
    assert sign * (found.gap.value - found.exact_gap) > 5 * found.gap.stderr
    assert found.ranks.deviation > 3 * found.ranks.band
    for column in found.columns:
        assert column.ranks.p_value < 1e-4
        assert all(
            sign * (column.coverage[level].value - level) > 3 * column.coverage[level].stderr for level in (0.5, 0.8)
        )
        ends = column.ranks.relative[[0, -1]].mean()
        assert ends > 1.4 if sign < 0 else ends < 0.7


def test_training_rows_as_answers_pass_all_but_the_psnr(simulations: Dataset) -> None:
    truth = simulations.test[:1500]
    x = simulations.train[torch.randint(2000, (1500, 9), generator=torch.Generator().manual_seed(0))]
    found = judge(Answers(truth, x, simulations.info, simulations.codec), training=simulations.train)
    assert abs(found.spread.value - 1) < 4 * found.spread.stderr and all(c.ranks.p_value > 1e-3 for c in found.columns)
    assert found.psnr_mean.value == pytest.approx(found.ignorant["psnr_mean"].value, abs=0.2)
    exact = evaluate_answers(simulation_run(simulations), simulations, torch.arange(1500), each=9, solver=QUICK)
    assert exact.psnr_mean.value > found.psnr_mean.value + 6


def test_only_hidden_cells_are_judged_and_each_column_in_its_own_units(table: Dataset) -> None:
    run, rows = cells_run(table), questions(table, "test", 1200)
    drawn = ask(run, table, rows, each=9, solver=QUICK)
    hidden = drawn.seen.hidden
    assert hidden.shape == drawn.truth.shape and 0.4 < hidden.double().mean() < 0.6
    known = ~hidden[:, None].expand(drawn.x.shape)
    assert torch.equal(drawn.x[known], drawn.truth[:, None].expand(drawn.x.shape)[known])
    found = judge(drawn, training=table.train)
    assert found.ignorant["psnr_one"].value == pytest.approx(-10 * math.log10(2), abs=0.3)  # each column has variance 1
    assert found.hidden and set(found.skipped) == {"ssim"}
    assert found.seen.value == 1 and found.largest == 0
    assert abs(found.gap.value - found.exact_gap) < 3 * found.gap.stderr < 1.0
    assert abs(found.spread.value - 1) < 3 * found.spread.stderr < 0.15
    for i, column in enumerate(found.columns):
        assert column.ranks.counts.sum() == hidden[:, i].sum() and column.ranks.p_value > 1e-3
        assert abs(column.coverage[0.8].value - 0.8) < 4 * column.coverage[0.8].stderr
    # Known cells count for nothing, and hidden cells for all: also in the PSNR, whose exact value is the mean variance.
    network = run.base.network
    shown = (drawn.seen.shown - table.codec.continuous.shift) / table.codec.continuous.scale
    _, precision = network.posterior(Condition(image=shown))
    variance = float(torch.linalg.inv(precision).diagonal(dim1=1, dim2=2)[hidden].mean())
    assert abs(found.psnr_one.value + 10 * math.log10(2 * variance)) < 3 * found.psnr_one.stderr < 0.8
    # A column in larger units has no more weight.
    wide = replace(drawn, truth=drawn.truth * 1.0, x=drawn.x.clone())
    wide.x[:, :, 1] = torch.where(hidden[:, None, 1], wide.x[:, :, 1] + 30, wide.x[:, :, 1])  # one deviation
    narrow = replace(drawn, x=drawn.x.clone())
    narrow.x[:, :, 0] = torch.where(hidden[:, None, 0], narrow.x[:, :, 0] + 1, narrow.x[:, :, 0])  # one deviation
    worse = [judge(a, ["psnr"]).psnr_one.value for a in (wide, narrow)]
    assert worse[0] == pytest.approx(worse[1], abs=0.4) and max(worse) < found.psnr_one.value - 0.5


def test_an_unsure_imputation_shows_in_the_columns(table: Dataset) -> None:
    found = evaluate_answers(cells_run(table, width=1.8), table, questions(table, "test", 600), each=9, solver=QUICK)
    assert found.spread.value > 1.3 and all(column.ranks.relative[0] < 0.8 for column in found.columns)
    assert found.seen.value == 1  # what is known is pasted


def test_another_operator_asks_other_questions(table: Dataset) -> None:
    run, rows = cells_run(table), torch.arange(300)
    rare = ask(run, table, rows, each=2, solver=QUICK, operator="cells:0.1")
    assert 0.05 < rare.seen.hidden.double().mean() < 0.15
    with pytest.raises(UsageError, match="trained without an operator"):
        ask(replace(run, operator=None), table, rows, each=2, operator="cells")


# ----------------------------------------------------------------------------------------------------------- pictures


def pictures(n: int = 600, each: int = 8, width: float = 1.0) -> tuple[Answers, Tensor, float]:
    """Pictures of a Gaussian field, pooled by 2, with exact answers; all pictures; and the mean posterior variance."""
    i = torch.arange(64)
    row, col = i // 8, i % 8
    distance = ((row[:, None] - row) ** 2 + (col[:, None] - col) ** 2).double()
    covariance = torch.exp(-distance / 8) + 0.05 * torch.eye(64, dtype=F64)
    flat_x = Noise.of(n + 500, 0).normal((64,), dtype=F64) @ torch.linalg.cholesky(covariance).mT
    x = flat_x.reshape(-1, 1, 8, 8)
    data = Dataset.of(x[n:], test=x[:n], name="field")
    operator = Pool(2).on((1, 8, 8))
    matrix = operator(torch.eye(64, dtype=F64).reshape(64, 1, 8, 8)).flatten(1).mT
    gain = covariance @ matrix.mT @ torch.linalg.inv(matrix @ covariance @ matrix.mT)
    rest = covariance - gain @ matrix @ covariance
    values, vectors = torch.linalg.eigh(rest)
    root = vectors * values.clamp(min=0).sqrt()
    mean = operator(x[:n]).flatten(1) @ gain.mT
    answers = mean[:, None] + width * Noise.of(n, 7).normal((each, 64), dtype=F64) @ root.mT
    answers = answers.reshape(n, each, 1, 8, 8)
    found = Answers(x[:n], answers, data.info, data.codec, Seen(operator, operator(x[:n])))
    return found, data.train.double(), float(rest.diagonal().mean())


def test_exact_pictures() -> None:
    answers, training, variance = pictures()
    found = judge(answers, training=training)
    assert found.skipped == {} and not found.hidden and found.columns == ()
    span = answers.info.high - answers.info.low
    for name, factor in (("psnr_one", 2), ("psnr_mean", 1 + 1 / 8)):
        value = getattr(found, name)
        assert abs(value.value - 10 * math.log10(span**2 / (factor * variance))) < 4 * value.stderr < 0.3, name
    assert abs(found.gap.value - found.exact_gap) < 4 * found.gap.stderr < 0.2
    assert found.seen.value == 1 and found.largest < 1e-6
    assert found.ranks.deviation < 1.5 * found.ranks.band < 0.2 and "not independent" in found.ranks.doubt
    assert 0 < found.ssim_one.value < found.ssim_mean.value < 1
    assert found.ignorant["ssim_one"].value < found.ssim_one.value - 0.2
    assert found.unit == f"the range of the data ({answers.info.low:g} to {answers.info.high:g})"
    unsure = judge(pictures(width=1.5)[0])
    assert unsure.spread.value == pytest.approx(1.5, abs=0.2) and unsure.spread.value > found.spread.value + 0.2
    assert unsure.seen.value == 1


def test_answers_that_do_not_agree_with_the_measurement_are_counted() -> None:
    answers, _, _ = pictures(100, 4)
    x = answers.x.clone()
    x[3, 1, 0, 2, 5] += 0.4
    x[50, 0, 0, 0, 0] -= 0.2
    found = judge(replace(answers, x=x), ["seen"])
    assert found.seen.value == pytest.approx(398 / 400) and found.largest == pytest.approx(0.1)
    assert found.psnr_one is None and found.ranks is None and found.coverage == {}
    with pytest.raises(UsageError, match=r"'seen' cannot be computed: it requires a linear operator, but jpeg:10"):
        judge(replace(answers, seen=Seen(JPEG(10).on((1, 8, 8)), answers.truth)), ["seen"])
    with pytest.raises(UsageError, match="'seen' cannot be computed: the answers are not conditioned on measurements"):
        judge(replace(answers, seen=None), ["psnr", "seen"])
    with pytest.raises(UsageError, match="by several operators; choose one"):
        judge(replace(answers, seen=Seen(None, answers.truth)), ["seen"])
    assert "seen" in judge(replace(answers, seen=None)).skipped


def test_only_the_hidden_half_of_a_picture_is_judged() -> None:
    answers, training, _ = pictures(200, 4)
    operator = Half().on((1, 8, 8))
    known = operator.known((1, 8, 8))[0]
    seen = Seen(operator, operator(answers.truth))
    pasted = torch.where(known, answers.truth[:, None], answers.x)
    found = judge(replace(answers, x=pasted, seen=seen), training=training)
    assert found.hidden and found.seen.value == 1
    # The same figures from the lower half alone: the known half is not compared.
    spoilt = judge(replace(answers, x=torch.where(known, 1e3, answers.x), seen=seen), ["psnr", "ranks", "spread"])
    for name in ("psnr_one", "psnr_mean", "gap", "spread"):
        assert getattr(spoilt, name) == getattr(found, name), name
    np.testing.assert_array_equal(spoilt.ranks.counts, found.ranks.counts)
    assert found.ranks.counts.sum() + found.ranks.left_out == 200 * 32


def test_a_choice_of_operators_hides_what_is_missing_from_the_picture() -> None:
    shown = torch.zeros(3, 1, 2, 2)
    shown[1, 0, 0] = torch.nan
    seen = Seen(None, shown)
    assert seen.hidden.flatten(1).tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    assert Seen(None, shown[:1]).hidden is None and Seen(Pool(2).on((1, 2, 2)), shown).hidden is None


def test_one_answer_has_a_psnr_and_no_spread() -> None:
    answers, _, _ = pictures(50, 4)
    one = replace(answers, x=answers.x[:, :1])
    found = judge(one)
    assert found.gap is None and found.psnr_one == found.psnr_mean and set(found.skipped) == {"ranks", "spread"}
    with pytest.raises(UsageError, match="'ranks' requires at least two answers to each question, got each=1"):
        judge(one, ["ranks"])
    with pytest.raises(UsageError, match="unknown metric 'pnsr'; did you mean 'psnr'"):
        judge(answers, ["pnsr"])


# ---------------------------------------------------------------------------------------------------------- questions


def test_questions_are_drawn_by_the_seed(table: Dataset) -> None:
    few, more = questions(table, "test", 10, seed=3), questions(table, "test", 50, seed=3)
    assert torch.equal(few, more[:10]) and len(set(more.tolist())) == 50
    assert not torch.equal(few, questions(table, "test", 10, seed=4))
    assert sorted(questions(table).tolist()) == list(range(3000))
    with pytest.raises(UsageError, match="unknown split 'all'"):
        questions(table, "all")


def test_incomplete_and_validation_rows_are_no_questions(table: Dataset) -> None:
    complete = torch.ones(table.train.shape, dtype=torch.bool)
    complete[:1000, 1] = False
    some = replace(table, complete=complete, validates=torch.arange(900, 1500))
    assert sorted(questions(some, "train").tolist()) == list(range(1500, 3000))
    assert torch.equal(training_rows(some), table.train[1500:])


def test_rows_are_asked_about_what_belongs_to_them(simulations: Dataset) -> None:
    run, rows = simulation_run(simulations, width=1e-3), torch.tensor([7, 3, 11])
    for split, x, told in (
        ("test", simulations.test, simulations.test_given),
        ("train", simulations.train, simulations.train_given),
    ):
        found = ask(run, simulations, rows, split=split, each=2, solver=QUICK)
        assert torch.equal(found.truth, x[rows]) and torch.equal(found.rows, rows) and found.split == split
        expected = told.vector[rows] / (1 + NOISE**2)  # the mean of the posterior, at which these answers are
        torch.testing.assert_close(found.x.double(), expected[:, None].expand(-1, 2, -1), atol=5e-3, rtol=0)
    again = ask(run, simulations, rows, each=2, solver=QUICK, batch=1)
    torch.testing.assert_close(again.x, ask(run, simulations, rows, each=2, solver=QUICK, batch=6).x)


def test_questions_with_a_failed_answer_are_left_out(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    run = cells_run(table)
    sampled = Run.sample

    def failing(self: Run, n: int, *args: object, **options: object) -> object:
        drawn = sampled(self, n, *args, **options)
        status, x = drawn.solution.status.clone(), drawn.x.clone()
        status[bad], x[bad] = 2, torch.nan
        return replace(drawn, x=x, solution=replace(drawn.solution, status=status))

    monkeypatch.setattr(Run, "sample", failing)
    bad = torch.tensor([5])
    with pytest.warns(UserWarning, match="at least one answer failed: 1 of 4"):
        found = ask(run, table, torch.arange(4), each=3, solver=QUICK)
    assert found.failed == 1 and found.rows.tolist() == [0, 2, 3] and found.x.isfinite().all()
    assert torch.equal(found.truth, table.test[[0, 2, 3]])
    assert len(found.seen) == 3 and judge(found, ["seen"]).seen.value == 1
    bad = torch.arange(12)
    with pytest.raises(NumericalError):
        ask(run, table, torch.arange(4), each=3, solver=QUICK)


def test_refusals(table: Dataset, simulations: Dataset) -> None:
    plain = replace(cells_run(table), config=TrainConfig(cond="none"), operator=None)
    with pytest.raises(UsageError, match="without conditions, so it cannot be conditioned on rows of data") as error:
        ask(plain, table, torch.arange(3))
    assert error.value.parameter == "cond"
    with pytest.raises(UsageError, match="there are no questions"):
        ask(cells_run(table), table, torch.arange(0))
    with pytest.raises(UsageError, match="'spread' requires at least two answers"):
        evaluate_answers(cells_run(table), table, torch.arange(3), each=1, metrics=["spread"])
    with pytest.raises(UsageError, match="lacks vector"):
        ask(simulation_run(simulations), replace(simulations, test_given=Condition()), torch.arange(3))


# ------------------------------------------------------------------------------------- what is told about other data


def test_words_and_classes_of_other_data_are_recognised_by_their_names() -> None:
    x = Noise.of(40, 0).normal((2,), dtype=F64)
    texts = ["a red cat", "a blue dog"] * 20
    names = np.array(["cat", "dog"] * 20)
    one = Dataset.of(x, text=texts, classes=names, name="one")
    texts_test = ["the red dog", "zebra cat"] * 10
    other = Dataset.of(x[:20], test=x[20:], text=["a zebra", "the red dog and a cat"] * 10, test_text=texts_test,
                       classes=np.array(["dog"] * 20), test_classes=np.array(["dog"] * 20), name="other")  # fmt: skip
    assert one.info.known.words == ("a", "blue", "cat", "dog", "red")

    class Told(nn.Module):
        slots = ("label", "tokens")

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Tensor:
            return x

    base = ScoreModel(Told(), VPSDE(), X0(), classes=2)
    run = Run(base, one.codec, one.info, TrainConfig(cond="class+text"))
    condition = run.given_rows(other, torch.tensor([0, 1])).condition
    assert other.info.classes == ("dog",) and condition.label.tolist() == [1, 1]
    assert condition.tokens.tolist() == [[0, 5, 4], [0, 3, -1]]
    with pytest.raises(UsageError, match="other has no labels"):
        run.given_rows(replace(other, test_labels=None), torch.tensor([0]))


# ------------------------------------------------------------------------------------------------------------ reports


def test_the_table_and_the_json(simulations: Dataset, tmp_path: Path) -> None:
    found = evaluate_answers(simulation_run(simulations), simulations, torch.arange(200), each=9, solver=QUICK)
    lines = answers_table(found).splitlines()
    assert lines[0].split() == ["answers", "exact", "training", "rows"]
    assert [line.split("  ")[0] for line in lines[1:9]] == [
        "psnr of one", "psnr of mean", "", "spread", "ranks", "within 50%", "within 80%", "within 95%",
    ]  # fmt: skip
    assert lines[3].split()[0] == "gap" and f"{found.exact_gap:.2f}" in lines[3] and lines[1].count("±") == 2
    assert [line.split("  ")[0] for line in lines[10:13]] == ["without a network", "column means", "linear regression"]
    assert lines[14].split() == ["ranks", "p", "within", "50%", "within", "80%", "within", "95%"]
    assert lines[15].startswith("x0") and lines[16].startswith("x1") and lines[15].count("±") == 4
    assert "best - 3.01" in lines[1] and "best - 0.46" in lines[2] and f"{found.exact_loss:.2f}" == "0.46"
    text = "\n".join(lines)
    assert "best: the psnr of the posterior mean; the mean of 9 exact answers is 0.46 dB below it" in text
    assert "and that of 36 is 0.12 dB below it" in text
    assert "9 answers to each of 200 questions" in text and "no p-value, because up to 2 values" in text
    assert "not computed: ssim, because it compares pictures, but simulations contains vectors" in text
    facts = json.loads(json.dumps(described_answers(found), allow_nan=False))
    assert facts["psnr_one"]["value"] == found.psnr_one.value and facts["ssim_one"] is None
    assert facts["columns"]["x1"]["p_value"] == found.columns[1].ranks.p_value and facts["ranks"]["p_value"] is None
    assert facts["columns"]["x0"]["coverage"]["0.95"]["value"] == found.columns[0].coverage[0.95].value
    assert sum(facts["ranks"]["counts"]) == 400 and facts["exact_gap"] == found.exact_gap
    assert facts["exact_loss"] == found.exact_loss == pytest.approx(10 * math.log10(10 / 9))
    files = write_calibration(tmp_path, found, {"answers": facts})
    assert [f.name for f in files] == ["calibration.png", "evaluation.json"]
    assert json.loads(files[1].read_text())["answers"] == facts and min(Image.open(files[0]).size) > 300


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and tiny runs that are told something."""
    folder = tmp_path_factory.mktemp("conditional")
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(400, 2))
    np.savez(folder / "sims.npz", x=theta, c=theta @ rng.normal(size=(2, 3)) + rng.normal(size=(400, 3)))
    small, points = {"steps": 2, "batch": 8}, {"network_options": {"width": 8, "blocks": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        unet = {"network_options": {"channels": 4}}
        for name, config in {
            "pool": TrainConfig(cond="pool:2", cond_drop=0.0, **unet, **small),
            "jpeg": TrainConfig(cond="jpeg:20", **unet, **small),
            "several": TrainConfig(cond="half/pool:2", **unet, **small),
            "sims": TrainConfig(data="sims.npz", cond="vector", **points, **small),
            "classes": TrainConfig(cond="class", **unet, **small),
            "plain": TrainConfig(**unet, **small),
        }.items():
            fit(config, out=Path("runs") / name, quiet=True)
    return folder


@pytest.fixture
def at(runs: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """``at("pool")``: the options of a short evaluation of a run, in a folder that nothing is written to."""
    monkeypatch.chdir(runs)
    return lambda name: f"evaluate runs/{name} --n 48 --each 4 --steps 2 --out {tmp_path / 'out'}"


def test_evaluate_asks_a_run(at: Callable[[str], str], shell: Shell, tmp_path: Path) -> None:
    out = shell(f"{at('pool')} --given test")
    for word in ("psnr of one", "psnr of mean", "  gap", "ssim of one", "seen", "spread", "ranks", "within 95%"):
        assert f"\n{word}" in out, word
    assert "4 answers to each of 12 questions" in out and "copies" not in out and "\nfrechet" not in out
    folder = tmp_path / "out"
    assert f"\n{folder}/calibration.png  " in out and (folder / "calibration.png").is_file()
    facts = json.loads((folder / "evaluation.json").read_text())
    assert facts["given"] == "test" and facts["each"] == 4 and facts["operator"] == "pool:2" and "metrics" not in facts
    # The same in Python.
    run = load("runs/pool")
    data = run.data()
    rows = questions(data, "test", 12, seed=0)
    found = evaluate_answers(run, data, rows, each=4, solver=Multistep(steps=2))
    assert described_answers(found) == facts["answers"]
    drawn = run.given_rows(data, rows, each=4).sample(48, Multistep(steps=2))
    assert found.seen.value == float((drawn.residual <= 0.5).double().mean())
    assert found.largest == float(drawn.residual.max())


def test_evaluate_compares_the_answers_with_data_too(at: Callable[[str], str], shell: Shell, tmp_path: Path) -> None:
    facts = shell.json(f"{at('pool')} --given train --metrics psnr,ranks,frechet,copies --features pixels")
    assert facts["against"] == "train" and facts["reference"]["split"] == "train" and facts["n"] == 48
    assert facts["answers"]["questions"] == 12 and facts["answers"]["ssim_one"] is None
    assert facts["metrics"]["frechet"]["samples"]["value"] > 0 and facts["copies"] is not None
    names = [Path(f).name for f in facts["files"]]
    assert names == ["calibration.png", "evaluation.json", "neighbours.png"]
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored["answers"] == facts["answers"] and stored["metrics"] == facts["metrics"]
    only = shell.json(f"{at('pool')} --given test --metrics frechet --features pixels --limit 6")
    assert only["n"] == 24 and "answers" not in only and only["reference"]["n"] == 6  # six questions


def test_evaluate_judges_each_parameter(at: Callable[[str], str], shell: Shell) -> None:
    out = shell(f"{at('sims')} --given test --n 160")
    held_out = len(load("runs/sims").data().test)
    assert held_out < 40 and f"4 answers to each of {held_out} questions" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("x0 ", "x1 "))] == ["x0", "x1"]
    assert "not computed: seen, because the answers are not conditioned on measurements" in out


def test_evaluate_says_how_many_rows_are_left(at: Callable[[str], str], shell: Shell) -> None:
    rows = len(load("runs/sims").data().test)
    out = shell(f"{at('sims')} --given test")  # --n 48 --each 4
    assert f"\n12 of {rows} rows; --n {4 * rows} asks about all of them\n" in out
    assert f"each of 12 rows (out of {rows}) of sims (test)" in shell.err
    out = shell(f"{at('sims')} --given test --limit 5 --out five")
    assert f"\n5 of {rows} rows; --n {4 * rows} --limit 0 asks about all of them\n" in out
    facts = shell.json(f"{at('sims')} --given test --out six --metrics frechet --features pixels --limit 6")
    assert (facts["rows"], facts["rows_available"]) == (6, rows)
    out = shell(f"{at('sims')} --given test --out every --n {4 * rows}")
    assert "asks about all" not in out and "out of" not in shell.err


def test_evaluate_asks_about_classes_and_several_operators(at: Callable[[str], str], shell: Shell) -> None:
    facts = shell.json(f"{at('classes')} --given test")
    assert facts["answers"]["psnr_one"] and "seen" in facts["answers"]["skipped"] and facts["operator"] is None
    facts = shell.json(f"{at('several')} --given test")
    assert facts["answers"]["only_hidden"] and "choose one of them" in facts["answers"]["skipped"]["seen"]
    assert facts["operator"] == "half:lower/pool:2"
    half = shell.json(f"{at('several')} --given test --operator half")
    assert half["answers"]["seen"]["value"] == 1 and half["answers"]["largest_difference"] == 0
    pool = shell.json(f"{at('several')} --given test --operator pool:2 --metrics seen,psnr")
    assert not pool["answers"]["only_hidden"] and pool["operator"] == "pool:2" and pool["answers"]["seen"]


@pytest.mark.parametrize("name", ["pool", "jpeg", "sims"])
def test_without_questions_a_run_is_told_the_conditions_of_held_out_rows(
    at: Callable[[str], str], shell: Shell, tmp_path: Path, name: str
) -> None:
    line = f"evaluate runs/{name} --n 24 --steps 2 --metrics frechet --features pixels --out {tmp_path / 'out'}"
    assert "\nconditions: those of held-out rows\n" in shell(line)
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    run = load(f"runs/{name}")
    data = run.data()
    x = run.given_rows(data, torch.arange(24) % len(data.test)).sample(24, Multistep(steps=2)).x
    expected = frechet_distance(pixels(data.codec)(x), pixels(data.codec)(data.test))
    assert facts["metrics"]["frechet"]["samples"]["value"] == pytest.approx(expected, rel=1e-6)
    assert facts["labels"] is None and "answers" not in facts


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("plain", "--given test", ("trained without conditions", "scoresde train --cond class")),
        ("pool", "--given photos.npz", ("--given must be test or train, got 'photos.npz'", "--data FILE --given test")),
        ("pool", "--given test --each 1 --metrics ranks", ("'ranks' requires at least two answers", "--each 8")),
        ("pool", "--given test --each 1 --metrics psnr,spread", ("'spread' requires at least two answers",)),
        ("pool", "--given test --each 50", ("--n 48 is less than --each 50; use --n 5000",)),
        ("jpeg", "--given test --metrics seen", ("it requires a linear operator, but jpeg:20 is not linear",)),
        ("sims", "--given test --metrics ssim", ("it compares pictures, but sims contains vectors",)),
        ("sims", "--given test --operator half", ("trained without an operator",)),
        ("pool", "--given test --metrics pnsr", ("unknown metric 'pnsr'",)),
        ("pool", "--given test --metrics ,", ("--metrics is empty; choose from: psnr",)),
        ("pool", "--metrics psnr", ("compares the answers of a conditional run with the truth", "add --given test")),
        ("pool", "--metrics frechet", ("--each 4 is only for the answers of a conditional run",)),
        ("pool", "--given test --save-reference r.safetensors", ("requires a metric that compares features",)),
        ("pool", "--given test --samples sims.npz", ("--samples sims.npz provides the samples",)),
    ],
)  # fmt: skip
def test_evaluate_refuses_questions(
    at: Callable[[str], str], shell: Shell, tmp_path: Path, name: str, options: str, words: tuple[str, ...]
) -> None:
    line = at(name)
    line = line.replace(" --each 4", "") if "--each" in options or options == "--metrics psnr" else line
    shell.refuses(f"{line} {options}", 2, *words)
    assert not (tmp_path / "out").exists()
