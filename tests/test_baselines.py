"""Estimates without a network, against their closed forms."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from test_study_answers import QUICK, cells_run, simulation_run, simulations, table  # noqa: F401
from torch import Tensor
from torch.nn import functional

from scoresde import Dataset, Noise, load_data
from scoresde.core.errors import UsageError
from scoresde.metrics import difference, psnr, ssim
from scoresde.metrics.measurement import deal
from scoresde.operators import AddedNoise, Half, Mask, Operator, Pool
from scoresde.run.seen import Seen
from scoresde.study.answers import Answers, answers_table, ask, described_answers, judge, questions, training_rows
from scoresde.study.baselines import estimates, linear_regression

F64 = torch.float64
SHOWN, MEAN, LINE = "shown to the network", "training mean", "linear regression"


def asked(data: Dataset, operator: Operator, n: int = 20) -> Answers:
    """Answers that are the truth, to questions about pictures."""
    truth = data.test[:n].double()
    operator = operator.on(data.info.shape, data.info.low, data.info.high).drawn(Noise.of(n, 0))
    return Answers(truth, truth[:, None].repeat(1, 2, *[1] * (truth.ndim - 1)), data.info, data.codec,
                   Seen(operator, operator(truth), truth), torch.arange(n))  # fmt: skip


def test_linear_regression_is_least_squares_for_every_pattern() -> None:
    x = Noise.of(300, 0).normal((4,), dtype=F64) @ Noise.of(4, 1).normal((4,), dtype=F64) * 100 + 7
    rows, asks = x[:200], x[200:]
    known = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    found = linear_regression(rows, torch.where(known, asks, torch.nan), known)
    assert torch.equal(known, found.isclose(asks, rtol=1e-12, atol=1e-9) & known)  # known values stay
    for i, there in enumerate(known):
        inputs = torch.cat([rows[:, there], torch.ones(200, 1, dtype=F64)], 1)
        line = torch.linalg.lstsq(inputs, rows[:, ~there]).solution
        expected = torch.cat([asks[i, there], torch.ones(1, dtype=F64)]) @ line
        torch.testing.assert_close(found[i, ~there], expected, rtol=1e-8, atol=1e-8)


def test_linear_regression_of_columns_that_repeat_or_are_constant() -> None:
    x = Noise.of(50, 0).normal((1,), dtype=F64)
    rows = torch.cat([x, 2 * x, torch.ones_like(x)], 1)
    known = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    found = linear_regression(rows, torch.tensor([[3.0, 0, 1], [3, 6, 0], [0, 0, 0]]), known)
    expected = torch.stack([torch.tensor([3.0, 6, 1]), torch.tensor([3.0, 6, 1]), rows.mean(0)]).double()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["cells", "vector"])
def test_for_gaussian_rows_nothing_beats_linear_regression(
    kind: str, table: Dataset, simulations: Dataset  # noqa: F811
) -> None:  # fmt: skip
    data = table if kind == "cells" else simulations
    run = cells_run(table) if kind == "cells" else simulation_run(simulations)
    found = ask(run, data, questions(data, "test", 400), each=9, solver=QUICK)
    judged = judge(found, ["psnr"], training=training_rows(data), others=estimates(found, data))
    assert list(judged.baselines) == ["column means", LINE] and judged.baselines[LINE].keys() == {"psnr"}
    line, means = (judged.baselines[name]["psnr"] for name in (LINE, "column means"))
    # The mean of K exact answers has (1 + 1/K) times the error of the posterior mean, which is linear here.
    expected = judged.psnr_mean.value + 10 * torch.log10(torch.tensor(1 + 1 / 9)).item()
    assert line.value == pytest.approx(expected, abs=0.25) and line.value > means.value + 0.5
    ahead = judged.ahead[LINE]["psnr"]
    assert ahead.value < 0 and re.search(rf"\n{LINE}  {line} +{ahead}\n", answers_table(judged))
    assert re.search(rf"\ncolumn means +{means} +\+?{judged.ahead['column means']['psnr']}\n", answers_table(judged))
    assert re.search(r"\nwithout a network  psnr +mean minus it\n", answers_table(judged))
    assert described_answers(judged)["baselines"][LINE]["psnr"]["value"] == line.value


def test_differences_are_paired() -> None:
    """The error of the difference is that of a jackknife over the questions, not that of two independent figures."""
    data = load_data("digits")
    found = asked(data, Pool(2), 60)
    found = replace(found, x=found.x + 2 * Noise.of(60, 3).normal((2, 1, 8, 8), dtype=F64))
    others = estimates(found, data)
    judged = judge(found, ["psnr", "ssim"], others=others)
    assert judged.ahead.keys() == judged.baselines.keys() == others.keys()
    block = deal([60])[0]
    for metric, measure in (("psnr", psnr), ("ssim", ssim)):
        own = getattr(judged, f"{metric}_mean")
        for name, x in others.items():
            ahead, alone = judged.ahead[name][metric], judged.baselines[name][metric]
            assert ahead.value == pytest.approx(own.value - alone.value)
            kept = [block != b for b in range(20)]
            parts = [measure(found.truth[k], found.x.mean(1)[k], 16.0).value
                     - measure(found.truth[k], x[k], 16.0).value for k in kept]  # fmt: skip
            spread = torch.tensor(parts, dtype=F64).var(correction=0) * 19
            assert ahead.stderr == pytest.approx(spread.sqrt().item())
        assert judged.ahead[SHOWN]["ssim"].stderr < judged.baselines[SHOWN]["ssim"].stderr
    facts = described_answers(judged)["mean_minus_baselines"]
    assert facts[SHOWN]["psnr"]["stderr"] == judged.ahead[SHOWN]["psnr"].stderr
    assert judge(found, ["ranks"], others=others).ahead == {}
    with pytest.raises(UsageError, match="got 'mse'"):
        difference("mse", found.truth, found.truth, found.truth, 1.0)


def test_pictures_are_compared_with_what_is_shown_and_with_interpolation() -> None:
    data = load_data("digits")
    found = asked(data, Pool(2))
    low = functional.avg_pool2d(found.truth, 2)
    others = estimates(found, data)
    assert list(others) == [SHOWN, "bicubic interpolation", MEAN]
    torch.testing.assert_close(others[SHOWN], low.repeat_interleave(2, 2).repeat_interleave(2, 3))
    bicubic = functional.interpolate(low, size=(8, 8), mode="bicubic")
    assert float(bicubic.min()) < 0
    torch.testing.assert_close(others["bicubic interpolation"], bicubic.clamp(0, 16))
    torch.testing.assert_close(others[MEAN][3], data.trained.double().mean(0))
    judged = judge(found, others=others)
    error = (others[SHOWN] - found.truth).square().mean()
    assert judged.baselines[SHOWN]["psnr"].value == pytest.approx(10 * torch.log10(256 / error).item())
    assert judged.baselines[SHOWN]["ssim"].value > judged.baselines[MEAN]["ssim"].value
    assert judge(found, ["ranks"], others=others).baselines == {}  # nothing that they have was asked for
    assert "without a network" not in answers_table(judge(found, ["ranks"], others=others))


def test_which_estimates_there_are() -> None:
    data = load_data("digits")
    assert list(estimates(asked(data, Half()), data)) == [MEAN]  # nothing is shown of what is hidden
    assert list(estimates(asked(data, AddedNoise(2.0)), data)) == [SHOWN, MEAN]
    signals = Dataset.of(Noise.of(50, 0).normal((2, 8)), name="signals")
    assert list(estimates(asked(signals, Pool(2), 3), signals)) == [SHOWN, "linear interpolation", MEAN]
    alone = replace(data, train=data.train[:0], validates=None)
    assert list(estimates(asked(data, Pool(2)), alone)) == [SHOWN, "bicubic interpolation"]


def test_incomplete_rows_count_for_the_means_and_not_for_the_regression() -> None:
    x: Tensor = Noise.of(90, 0).normal((2,), dtype=F64)
    x[:, 1] += 2 * x[:, 0]
    holes = x[:80].clone()
    holes[::3, 1] = torch.nan
    data = Dataset.of(holes, test=x[80:], name="holes")
    mask = Mask(torch.tensor([[True, False]])).on((2,))
    truth = data.test.double()
    found = Answers(truth, truth[:, None].repeat(1, 2, 1), data.info, data.codec, Seen(mask, mask(truth), truth))
    others = estimates(found, data)
    assert list(others) == ["column means", LINE]
    inside = ~data.complete[data.trains][:, 1]
    assert bool(inside.any())
    complete = data.train[data.trains & data.whole].double()
    line = linear_regression(complete, truth, torch.tensor([[True, False]]).expand(10, 2))
    torch.testing.assert_close(others[LINE], line)
    few = replace(data, train=data.train[:2], complete=data.complete[:2], validates=None)
    assert list(estimates(found, few)) == ["column means"]
