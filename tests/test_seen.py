"""Runs with conditions and measurements against exact posteriors, against each other, and after saving and loading."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_same, contents, edit
from shell import Shell
from torch import Tensor, nn

from scoresde import VPSDE, Dataset, Eps, Likelihood, Run, ScoreModel, TrainConfig, fit, load, load_data
from scoresde.codec import Affine, Composed, Levels
from scoresde.core.condition import SLOTS, Condition
from scoresde.core.errors import CheckpointError, DataError, UsageError
from scoresde.core.files import read_lines
from scoresde.core.noise import Noise
from scoresde.data import DataInfo
from scoresde.data.batch import Batch, Batches, Rows
from scoresde.likelihood.chain import variance_loss
from scoresde.nn import Labelled
from scoresde.objective.draw import PathDraw
from scoresde.objective.loss import Denoising, denoising_loss, end_terms
from scoresde.objective.weighting import Native
from scoresde.operators import Blur, Cells, Crop, Grey, Half, Hole, Linear, Mask, Operator, Pool, parse
from scoresde.run.seen import Seen, tolerance, understood
from scoresde.solvers import Ancestral, ProbabilityFlow, RungeKutta, sample
from scoresde.train import validation
from scoresde.train.loop import prepared
from scoresde.train.reflow import draw_pairs, reflow
from scoresde.train.resume import kept_pairs

F64 = torch.float64
MLP = {"width": 16, "blocks": 1}
UNET = {"channels": 4}
HEUN = RungeKutta(steps=3)
WORDS = "a red three left of the green seven under two blue dogs".split()


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch the validation rows with fewer draws, which takes most of the time of so short a training."""
    monkeypatch.setattr(validation, "DRAWS", 16)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def captions(n: int) -> list[str]:
    return [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + i % 5)) for i in range(n)]


def everything(event: tuple[int, ...], n: int = 120, levels: bool = False) -> Dataset:
    """Samples of one shape with all four kinds of condition."""
    r = rng()
    x = r.integers(0, 256, (n, *event)).astype(np.uint8) if levels else r.normal(size=(n, *event)).astype(np.float32)
    known = Condition(vector=torch.from_numpy(r.normal(3, 2, (n, 2))), image=torch.from_numpy(r.random((n, *event))))
    return Dataset.of(x, classes=[("cat", "dog", "eel")[i % 3] for i in range(n)], given=known, text=captions(n))


def lively(run: Run, seed: int = 1) -> Run:
    """Give a run weights that depend on everything, because many weights start at 0."""
    generator = torch.Generator().manual_seed(seed)
    for p in run.base.learned.parameters():
        scale = 0.3 if p.ndim < 2 else 1 / math.sqrt(p[0].numel())
        p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) * scale)
    return run


def trained(cond: str, data: Dataset, dtype: torch.dtype = F64, **options: Any) -> Run:
    settings = {"steps": 1, "batch": 8, "network_options": MLP if data.info.kind == "vector" else UNET} | options
    run = fit(TrainConfig(cond=cond, **settings), data=data, save=False, quiet=True, dtype=dtype)
    return lively(run)


# ----------------------------------------------------------------------------------------------------------------- rows


ALL = "class+vector+image+text"


@pytest.mark.parametrize(
    ("cond", "event"),
    [("class", (3,)), ("vector", (3,)), ("image", (3,)), ("text", (3,)), (ALL, (3,)), (ALL, (1, 4, 4))],
    ids=["class", "vector", "image", "text", "all", "unet"],
)
def test_an_answer_depends_on_its_own_question_only(cond: str, event: tuple[int, ...]) -> None:
    data = everything(event)
    run = trained(cond, data)
    asked = run.given_rows(data, torch.arange(7) * 8, split="train", each=3)
    assert asked.condition is not None and len(asked.condition) == 21
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    label = asked.condition.label
    for solver in (ProbabilityFlow(1e-2), HEUN, Ancestral(3)):
        draw = partial(asked.sample, 21, solver, seed=3)
        whole = draw().solution.x
        assert whole.dtype == F64 and bool(whole.isfinite().all())
        others: dict[object, Tensor] = {n: draw(batch=n).solution.x for n in (1, 5)}
        noise = Noise.of(21, 3).rows(order)
        others["permuted"] = sample(asked.model.rows(order), solver, event, noise, dtype=F64).x[order.argsort()]
        for name, x in others.items():
            assert float((x - whole).abs().max()) < 1e-12, (type(solver).__name__, name)
        first = asked.rows(torch.arange(3)).sample(3, solver, seed=3).solution.x
        assert float((first - whole[:3]).abs().max()) < 1e-12
        # The same noise gives another sample for another question.
        next_one = (torch.arange(21) + 3) % 21
        other = asked.rows(next_one).sample(21, solver, seed=3).solution.x
        differs = torch.ones(21, dtype=torch.bool) if cond != "class" else label != label[next_one]
        assert int(differs.sum()) > 6 and float((other - whole).flatten(1).norm(dim=1)[differs].min()) > 1e-6


def test_a_short_text_is_the_same_beside_a_long_one() -> None:
    data = everything((3,))
    run = trained("text", data)
    asked = run.given(text=["red", "a red three left of the green seven", "dogs"])
    whole = asked.sample(3, HEUN).solution.x
    alone = [run.given(text=t).sample(1, HEUN, start=i).solution.x for i, t in enumerate(("red",))]
    assert float((alone[0] - whole[:1]).abs().max()) < 1e-12
    again = run.given(text="dogs").sample(1, HEUN, start=2).solution.x
    assert float((again - whole[2:]).abs().max()) < 1e-12
    with pytest.warns(
        UserWarning, match=r"1 word that did not occur in the training texts: 'gren' \(did you mean 'green'"
    ):
        run.given(text="a gren dog".replace("dog", "dogs"))


def test_sample_i_answers_question_i_over_each() -> None:
    data = everything((3,))
    run = trained("class+vector+text", data)
    index = torch.tensor([5, 0, 9])
    asked = run.given_rows(data, index, split="train", each=4)
    assert asked.condition is not None and data.train_labels is not None
    assert torch.equal(asked.condition.label, data.train_labels[index].repeat_interleave(4))
    told = data.info.known.to_model(data.train_given.rows(index)).vector
    assert torch.equal(asked.condition.vector, told.repeat_interleave(4, 0).double())
    one = run.given_rows(data, index[:1], split="train", each=4)
    assert len(one.condition) == 1 or len(one.condition) == 4
    assert one.sample(4, HEUN).x.shape == (4, 3)
    with pytest.raises(UsageError, match="each must be at least 1"):
        run.given_rows(data, index, each=0)
    with pytest.raises(UsageError, match="unknown split 'some'"):
        run.given_rows(data, index, split="some")
    with pytest.raises(UsageError, match="12 rows for 5 samples"):
        asked.sample(5)


# -------------------------------------------------------------------------------------------------------- what is asked


def test_a_condition_must_have_every_part_of_cond() -> None:
    data = everything((3,))
    run = trained("class+vector+text", data)
    full = Condition(label=torch.tensor([1]), vector=torch.zeros(1, 2), tokens=torch.zeros(1, 1).long())
    assert run.given(full).sample(2, HEUN).x.shape == (2, 3)
    for name in ("label", "vector", "tokens"):
        with pytest.raises(UsageError, match=rf"needs the fields label, vector, tokens, but this one lacks {name}"):
            run.given(replace(full, **{name: None}))
    with pytest.raises(UsageError, match=r"not trained to use the field 'image'.*cond='image'"):
        run.given(replace(full, image=torch.zeros(1, 3)))
    with pytest.raises(UsageError, match="2 numbers for each sample"):
        run.given(replace(full, vector=torch.zeros(1, 3)))
    with pytest.raises(UsageError, match="vector of the condition has infinite values"):
        run.given(replace(full, vector=torch.tensor([[0, math.inf]])))
    with pytest.raises(UsageError, match=r"word indices from 99 to 99, but the only valid"):
        run.given(replace(full, tokens=torch.tensor([[99]])))
    with pytest.raises(UsageError, match="label 7 is not one of the 3 classes"):
        run.given(replace(full, label=torch.tensor([7])))
    for known in ("cat", torch.zeros(4, 2), [0, 1]):
        with pytest.raises(UsageError, match="without labels; pass its condition by name, as in given"):
            trained("vector", data).given(known)
    with pytest.raises(UsageError, match=r"must be an integer tensor of shape \(B,\); got dtype torch.float32"):
        run.given(replace(full, label=torch.tensor([1.0])))
    arrays = Condition(label=np.array([1]), vector=np.zeros((1, 2)), tokens=np.zeros((1, 1), int))  # type: ignore[arg-type]
    assert torch.equal(run.given(arrays).sample(2, HEUN).x, run.given(full).sample(2, HEUN).x)
    with pytest.raises(UsageError, match="trained without texts"):
        trained("vector", data).given(Condition(vector=torch.zeros(1, 2)), text="red")
    with pytest.raises(UsageError, match="trained without an operator"):
        trained("vector", data).given(Condition(vector=torch.zeros(1, 2), image=torch.zeros(1, 3)), operator="cells")
    for known in (None, Condition(vector=torch.zeros(1, 2))):
        with pytest.raises(UsageError, match="the operator cells"):
            run.given(known, operator="cells")
    assert run.given(full).given().condition is None


def test_rows_of_other_data_keep_the_words_and_the_classes_of_the_run() -> None:
    data = everything((3,))
    run = trained("class+text", data)
    x = rng(5).normal(size=(60, 3))
    other = Dataset.of(x, classes=[("eel", "dog")[i % 2] for i in range(60)], text=["the zebra ate red dogs"] * 60)
    assert other.info.known.words != data.info.known.words and other.info.classes == ("dog", "eel")
    asked = run.given_rows(other, torch.arange(4))
    words = ("", *data.info.known.words)
    assert [[words[i] for i in row] for row in asked.condition.tokens.tolist()] == [["the", "", "", "red", "dogs"]] * 4
    names = [other.info.classes[i] for i in other.test_labels[:4].tolist()]
    assert [run.info.classes[i] for i in asked.condition.label.tolist()] == names
    strange = Dataset.of(x, classes=[("eel", "fox")[i % 2] for i in range(60)], text=captions(60))
    with pytest.raises(UsageError, match=r"classes that .* was not trained on: fox"):
        run.given_rows(strange, torch.arange(4))
    for labels in ("class", "class+text"):
        with pytest.raises(UsageError, match="has no labels"):
            trained(labels, data).given_rows(Dataset.of(x, text=captions(60)), torch.arange(4))
    with pytest.raises(UsageError, match="lacks tokens"):
        run.given_rows(Dataset.of(x, classes=[("eel", "dog")[i % 2] for i in range(60)]), torch.arange(4))


# ------------------------------------------------------------------------------------------------------------- dropping


class Watching(nn.Module):
    """A user's own network that uses the label and the image, and notes what it is shown."""

    def __init__(self, dims: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, dims)
        self.first, self.second = nn.Linear(2 * dims, dims), nn.Linear(dims, dims)
        self.seen: list[Condition | None] = []

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Tensor:
        self.seen.append(cond)
        known = ~cond.image.isnan()
        image = torch.cat([torch.where(known, cond.image, 0), known.to(x.dtype)], 1)
        return self.second(torch.tanh(x + c[:, None] + self.first(image) + self.table(cond.label)))


def test_a_network_of_ones_own_uses_the_fields_of_the_condition() -> None:
    data = everything((3,))
    for dtype in (torch.float32, F64):
        network = Watching()
        config = TrainConfig(cond="class+image", steps=30, batch=32, cond_drop=0.4)
        run = fit(config, data=data, network=network, save=False, quiet=True, dtype=dtype)
        shown = [c for c in network.seen if c is not None and len(c) == 32]
        assert len(shown) >= 30 and all(c.image.dtype == dtype and c.vector is None is c.tokens for c in shown)
        dropped = torch.cat([c.image.isnan().all(1) for c in shown])
        assert torch.equal(dropped, torch.cat([c.label == 3 for c in shown]))  # the whole condition or nothing
        assert abs(float(dropped.float().mean()) - 0.4) < 0.06
        asked = run.given_rows(data, torch.arange(3))
        assert asked.sample(3, HEUN).x.shape == (3, 3)
        # Without a condition, the network sees what it saw where a condition was dropped.
        run.base.network.seen.clear()
        run.sample(2, HEUN)
        asked.guided(2.0).sample(3, HEUN)
        assert run.base.network.seen and None not in run.base.network.seen
        assert {c.image.dtype for c in run.base.network.seen} == {dtype}
        nothing = [c for c in run.base.network.seen if bool(c.image.isnan().all())]
        assert {len(c) for c in nothing} == {2, 3} and all(bool((c.label == 3).all()) for c in nothing)


def test_a_network_that_cannot_use_the_condition_is_refused_before_training(tmp_path: Path) -> None:
    from scoresde.nn import MLP as Network

    data = everything((3,))
    cases: list[tuple[str, nn.Module, str]] = [
        ("vector", Labelled(nn.Bilinear(3, 1, 3), embed=lambda c: c[:, None]), "cond.vector"),
        ("vector", Network(dims=3, classes=3), "cond.vector"),
        ("class+cells", Network(dims=3, classes=3), "cond.image"),
        ("class+text", Network(dims=3, vector=2), "cond.label and cond.tokens"),
    ]
    for cond, network, what in cases:
        with pytest.raises(UsageError, match=rf"requires a network that uses {what}, but "):
            fit(TrainConfig(cond=cond, steps=1), data=data, network=network, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cond", ["vector", "image", "text", "cells", "class+vector"])
def test_what_is_dropped_never_or_always(cond: str) -> None:
    data = everything((3,))
    never, always = (trained(cond, data, cond_drop=drop) for drop in (0.0, 1.0))
    index = torch.arange(3)
    assert never.given_rows(data, index).sample(3, HEUN).x.shape == (3, 3)
    for use in (lambda: never.sample(2, HEUN), lambda: never.given_rows(data, index).guided(2.0).sample(3, HEUN)):
        with pytest.raises(UsageError, match=r"trained with cond_drop=0, so (it cannot be|every training sample had)"):
            use()
    assert never.example_labels(3) is None or cond == "class+vector"
    assert always.sample(2, HEUN).x.shape == (2, 3)
    with pytest.raises(UsageError, match="trained with cond_drop=1, which drops every"):
        always.given_rows(data, index)


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_a_row_loses_its_whole_condition(drop: float) -> None:
    data = everything((3,))
    config, _, spec = prepared(TrainConfig(cond="class+vector+image+text", steps=1), data)
    source = Rows(data.train, spec.codec, data.train_labels, 3, config.told(data.train_given), data.info.known)
    batch = source(torch.arange(50).repeat(20), torch.Generator().manual_seed(0), torch.float32)
    known = PathDraw(_Half(), drop=drop)(batch, torch.Generator().manual_seed(1)).condition
    gone = [known.label == 3, known.vector.isnan().all(1), known.image.isnan().all(1), (known.tokens == -1).all(1)]
    assert all(torch.equal(gone[0], other) for other in gone)
    assert abs(float(gone[0].double().mean()) - drop) < 0.05
    kept = ~gone[0]
    for name in SLOTS:
        assert torch.equal(getattr(known, name)[kept], getattr(batch.condition, name)[kept])


class _Half:
    """The time 1/2 for every row."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return torch.full((count,), 0.5, dtype=F64), None


@pytest.mark.parametrize("event", [(3,), (1, 8, 8)], ids=["mlp", "unet"])
def test_guidance_moves_away_from_the_model_without_its_condition(event: tuple[int, ...]) -> None:
    data = everything(event)
    for cond in ("class+vector", "image", "text", "cells"):
        run = trained(cond, data)
        asked = run.given_rows(data, torch.arange(3))
        x, t = Noise.of(3).normal(event, dtype=F64), torch.full((3,), 0.4, dtype=F64)
        with_, without = asked.model(x, t).x0, run.base(x, t).x0
        assert float((with_ - without).abs().max()) > 1e-3
        dropped = run.base.given(asked.condition.dropped(torch.ones(3, dtype=torch.bool)))
        torch.testing.assert_close(dropped(x, t).x0, without, atol=1e-12, rtol=0)
        for scale in (0.0, 0.5, 3.0):
            expected = without + scale * (with_ - without)
            torch.testing.assert_close(asked.guided(scale).model(x, t).x0, expected, atol=1e-11, rtol=0)
        torch.testing.assert_close(run.model(x, t).x0, without, atol=1e-12, rtol=0)
        with pytest.raises(UsageError, match="guidance 2 requires a condition"):
            _ = run.guided(2.0).model


# ----------------------------------------------------------------------------------------------------- exact posteriors


class Exact(nn.Module):
    """The exact noise of Gaussian data in model units: some values are in ``cond.image``, or the mean is linear in
    ``cond.vector``."""

    def __init__(self, mean: Tensor, covariance: Tensor, matrix: Tensor | None = None) -> None:
        super().__init__()
        self.mean, self.covariance, self.matrix = mean, covariance, matrix
        self.unused = nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Tensor:
        ratio = torch.exp(4 * c)  # sigma / alpha
        alpha, sigma = torch.rsqrt(1 + ratio**2)[:, None], (ratio * torch.rsqrt(1 + ratio**2))[:, None]
        m, s = self.mean.expand(len(x), -1), self.covariance.expand(len(x), -1, -1)
        if self.matrix is not None:
            m = m + cond.vector @ self.matrix.T
        elif cond is not None and cond.image is not None:
            known = ~cond.image.isnan()
            a = torch.diag_embed(known.to(x.dtype))
            gain = s @ a @ torch.linalg.pinv(a @ s @ a)
            m = m + (gain @ (torch.where(known, cond.image, 0) - m * known)[:, :, None])[:, :, 0]
            s = s - gain @ a @ s
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        total = alpha[:, :, None] ** 2 * s + sigma[:, :, None] ** 2 * eye
        return sigma * torch.linalg.solve(total, (x - alpha * m)[:, :, None])[:, :, 0]


def exact(cond: str, mean: Tensor, covariance: Tensor, data: Dataset, matrix: Tensor | None = None) -> Run:
    """A run of an exact model in the units of ``data``; mean and covariance are in data units."""
    affine = data.codec.continuous
    shift, scale = affine.shift.flatten(), affine.scale.flatten()
    network = Exact((mean - shift) / scale, covariance / scale / scale[:, None], matrix)
    config = TrainConfig(cond=cond).resolved(data.info)
    model = ScoreModel(network, VPSDE(), Eps()).requires_grad_(False)
    return Run(model, data.codec, data.info, config, dtype=F64, operator=config.operator_for(data.info), told=True)


def gaussian(dims: int = 4, n: int = 3000) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance in data units of very different size, and draws, float64."""
    root = Noise.of(1, 5).normal((dims, dims), dtype=F64)[0] / 2
    scale = 10.0 ** torch.arange(dims, dtype=F64)
    root = (root + torch.eye(dims, dtype=F64)) * scale[:, None]
    mean = 3 * scale
    return mean, root @ root.T, mean + Noise.of(n, 6).normal((dims,), dtype=F64) @ root.T


def test_empty_cells_are_drawn_from_their_posterior() -> None:
    mean, covariance, x = gaussian()
    run = exact("cells", mean, covariance, Dataset.of(x))
    row = x[7].clone()
    row[[0, 2]] = math.nan
    drawn = run.given(Condition(image=row[None]), each=4000).sample(4000, RungeKutta(steps=20))
    assert torch.equal(drawn.x[:, [1, 3]], x[7, [1, 3]].expand(4000, 2)) and drawn.residual is not None
    h, k = [0, 2], [1, 3]
    gain = covariance[h][:, k] @ torch.linalg.inv(covariance[k][:, k])
    m = mean[h] + gain @ (x[7, k] - mean[k])
    s = covariance[h][:, h] - gain @ covariance[k][:, h]
    found, std = drawn.x[:, h].double(), s.diag().sqrt()
    assert float(((found.mean(0) - m) / std).abs().max()) < 4 / math.sqrt(4000)
    assert float((found.T.cov() / std / std[:, None] - s / std / std[:, None]).abs().max()) < 0.08
    # nothing known, and everything known
    nothing = run.given(Condition(image=torch.full((1, 4), math.nan, dtype=F64)), each=4000).sample(4000, HEUN)
    assert float(((nothing.x.double().mean(0) - mean) / covariance.diag().sqrt()).abs().max()) < 0.08
    masked = run.given(Condition(image=x[:5]), operator=Mask(torch.ones(4, dtype=torch.bool)))
    assert torch.equal(masked.sample(5, HEUN).x, x[:5])


def conditional() -> tuple[Run, Tensor, Tensor, Tensor, Tensor]:
    """A run for x | c ~ N(m + W c, S), and c, W, m and S in data units."""
    mean, covariance, noise = gaussian(3)
    c = Noise.of(len(noise), 8).normal((2,), dtype=F64) * torch.tensor([5.0, 0.1]) + torch.tensor([100.0, -3])
    w = torch.tensor([[0.3, 2], [1, -50], [20, 0]], dtype=F64)
    data = Dataset.of(noise + (c - torch.tensor([100.0, -3])) @ w.T, given=Condition(vector=c))
    known, scale = data.info.known, data.codec.continuous.scale.flatten()
    at = torch.tensor(known.shift, dtype=F64) - torch.tensor([100.0, -3], dtype=F64)
    matrix = w * torch.tensor(known.scale, dtype=F64) / scale[:, None]
    run = exact("vector", mean + w @ at, covariance, data, matrix)
    return run, c, w, mean, covariance


def test_samples_given_numbers_have_the_right_mean() -> None:
    run, c, w, mean, covariance = conditional()
    asked = run.given(Condition(vector=c[:3]), each=2000)
    x = asked.sample(6000, RungeKutta(steps=16)).x.double().reshape(3, 2000, 3)
    expected = mean + (c[:3] - torch.tensor([100.0, -3], dtype=F64)) @ w.T
    assert float(((x.mean(1) - expected) / covariance.diag().sqrt()).abs().max()) < 0.1
    assert float((x.std(1) / covariance.diag().sqrt() - 1).abs().max()) < 0.08


def test_the_likelihood_given_numbers_is_that_of_the_conditional_density() -> None:
    run, c, w, mean, covariance = conditional()
    # of the size of the data, so that the prior at the end of the path is the same to rounding
    x = mean + (c[:6] - torch.tensor([100.0, -3], dtype=F64)) @ w.T + gaussian(3)[2][10:16] - mean
    centre = mean + (c[:6] - torch.tensor([100.0, -3], dtype=F64)) @ w.T
    truth = torch.distributions.MultivariateNormal(centre, covariance).log_prob(x)
    scores = run.given(Condition(vector=c[:6])).log_likelihood(x.numpy(), Likelihood(divergence="exact", rtol=1e-6))
    assert float((scores.log_prob - truth).abs().max()) < 0.02
    wrong = run.given(Condition(vector=c[6:12])).log_likelihood(x.numpy(), Likelihood(divergence="exact", rtol=1e-6))
    assert float((wrong.log_prob - truth).abs().max()) > 0.5
    with pytest.raises(UsageError, match="5 rows for 6 samples"):
        run.given(Condition(vector=c[:5])).log_likelihood(x.numpy())
    bound = run.given(Condition(vector=c[:6])).elbo(x.numpy(), strata=32, draws=60)
    assert bool(((bound.log_prob - truth).abs() < 4 * bound.stderr + 0.05).all()) and float(bound.stderr.max()) < 0.3


# ------------------------------------------------------------------------------------------------------- agreeing


def masks(event: tuple[int, ...]) -> list[Operator]:
    """Masks that apply to samples of a shape."""
    generator = torch.Generator().manual_seed(2)
    found: list[Operator] = [Mask(torch.rand(event, generator=generator) < 0.5), Cells(), Cells(0.8)]
    if len(event) > 1:
        found += [Hole(), Half("left"), Mask(torch.rand(1, *event[1:], generator=generator) < 0.5), Crop()]
    return found


def tables(n: int = 60) -> dict[str, np.ndarray]:
    """Samples of every dtype and kind of values."""
    r = rng()
    return {
        "bytes": r.integers(0, 256, (n, 3, 8, 8)).astype(np.uint8),
        "floats": r.normal(3, 0.1, (n, 1, 8, 8)).astype(np.float32),
        "doubles": 1e6 + r.normal(size=(n, 4)),
        "singles": r.normal(3, 0.1, (n, 4)).astype(np.float32),
        "counts": r.integers(-3, 9, (n, 4)),
        "long": 2**40 + r.integers(0, 2**30, (n, 4)),
        "traces": r.normal(size=(n, 2, 32)).astype(np.float32),
        "volumes": r.integers(0, 256, (n, 1, 4, 4, 4)).astype(np.uint8),
        "bools": r.random((n, 1, 8, 8)) < 0.5,
    }


@pytest.mark.filterwarnings("ignore:this model was trained to undo cells")
@pytest.mark.parametrize("kind", list(tables()))
def test_what_is_known_comes_back_bit_for_bit(kind: str) -> None:
    x = tables()[kind]
    data = Dataset.of(x)
    run = trained("cells", data, dtype=torch.float32)
    truth = data.test[:3] if len(data.test) > 2 else data.train[:3]
    for operator in masks(data.info.shape):
        asked = run.given(Condition(image=truth), operator=operator, each=2, seed=4)
        drawn = asked.sample(6, RungeKutta(steps=2), seed=1)
        hidden = asked.seen.hidden.expand(6, *data.info.shape)
        expected = truth.repeat_interleave(2, 0)
        assert 0 < int(hidden.sum()) < hidden.numel()
        stored = expected.to(drawn.x.dtype)
        assert torch.equal(stored.to(truth.dtype), expected), "the dtype of samples holds the data"
        assert torch.equal(drawn.x[~hidden], stored[~hidden])
        assert not torch.equal(drawn.x[hidden], stored[hidden])
        assert drawn.residual.tolist() == [0.0] * 6
        levels = data.codec.levels
        if levels is not None:
            assert torch.equal(levels.to_data(drawn.x.double()), drawn.x.double())
    # NaN marks what is missing
    holes = truth.double()
    holes[:, 0] = math.nan
    again = run.given(Condition(image=holes)).sample(3, RungeKutta(steps=2)).x
    assert torch.equal(again[:, 1:], truth[:, 1:].to(again.dtype)) and not bool(again.isnan().any())


def test_a_table_with_levels_in_some_columns(tmp_path: Path) -> None:
    rows = [f"{rng(i).integers(0, 5)},{rng(i).normal():.4f},{rng(i).integers(100, 103)}" for i in range(80)]
    (tmp_path / "t.csv").write_text("\n".join(["n,x,m", *rows]) + "\n")
    data = load_data(str(tmp_path / "t.csv"))
    run = trained("cells", data, dtype=torch.float32)
    drawn = run.given(Condition(image=data.test[:4]), operator="cells:0.6", each=5)
    x, hidden = drawn.sample(20, HEUN).x, drawn.seen.hidden
    truth = data.test[:4].repeat_interleave(5, 0)
    assert torch.equal(x[~hidden], truth[~hidden])
    between = data.test[:2].clone()
    between[:, 0] += 0.25  # no level of the column, but what is known is known
    kept = run.given(Condition(image=between), operator=Mask(torch.tensor([True, False, True])))
    assert torch.equal(kept.sample(2, HEUN).x[:, [0, 2]], between[:, [0, 2]])
    whole = x[:, [0, 2]]
    assert torch.equal(whole, whole.round()) and bool((x[:, 0] >= 0).all() & (x[:, 0] <= 4).all())
    assert not torch.equal(x[:, 1], x[:, 1].round())


@dataclass(frozen=True, eq=False)
class Differences(Linear):
    """A user's own operator: differences of neighbouring values of a picture, halved."""

    def __call__(self, x: Tensor) -> Tensor:
        return (x[..., 1:] - x[..., :-1]) / 2


MEASURING = [Pool(2), Pool(4), Grey(), Crop(4), Crop(), Blur(0.7), Blur(3.0), Differences()]


def dense(operator: Linear, event: tuple[int, ...]) -> Tensor:
    dims = math.prod(event)
    return operator(torch.eye(dims, dtype=F64).reshape(dims, *event)).flatten(1).T


@pytest.mark.parametrize("operator", MEASURING, ids=str)
def test_samples_agree_with_a_measurement_to_half_a_level(operator: Linear) -> None:
    event = (3, 8, 8)
    a = operator.on(event)
    info = DataInfo("a", "a", "image", event, 0, 255, 256, (), 9, 9)
    codec = Composed((Levels(0, 255, 256), Affine(128.0, 128.0)))
    r = rng()
    truth = torch.from_numpy(r.integers(110, 146, (40, *event))).double()
    seen = Seen(a, a(truth), truth)
    x = torch.from_numpy(r.uniform(90, 170, (40, *event)))  # far from the ends of the range
    found, residual = seen.agreeing(x, codec, info)
    assert torch.equal(found, found.round()) and tolerance(info) == 0.5
    assert bool(((found > 0) & (found < 255)).all()), "nothing is clamped"
    torch.testing.assert_close(residual, (a(found) - a(truth)).abs().flatten(1).amax(1))
    assert float(residual.max()) <= 0.5 + 1e-3
    assert abs(float((a(found) - a(truth)).mean())) < 0.02, "rounding has no bias"
    # The shortest step: (I - A^+ A) x + A^+ y, to the nearest level; level k is spread over [k, k + 1).
    if type(operator).solve is not Linear.solve and not isinstance(operator, Blur):
        matrix = dense(a, event)
        back = torch.linalg.pinv(matrix)
        centred = x.flatten(1) - 0.5
        expected = centred + (seen.y.flatten(1) - centred @ matrix.T) @ back.T
        assert float((found.flatten(1) - expected).abs().max()) <= 0.5 + 1e-3


@pytest.mark.parametrize("operator", MEASURING, ids=str)
def test_continuous_samples_agree_to_a_millionth_of_their_range(operator: Linear) -> None:
    event = (3, 8, 8)
    a = operator.on(event)
    info = DataInfo("a", "a", "image", event, -4, 6, None, (), 9, 9)
    truth, x = (Noise.of(20, seed).normal(event, dtype=F64) for seed in (1, 2))
    found, residual = Seen(a, a(truth)).agreeing(x, Affine(1.0, 5.0), info)
    assert tolerance(info) == pytest.approx(1e-5)
    assert float(residual.max()) <= 1e-5 and float((a(found) - a(truth)).abs().max()) <= 1e-5
    if isinstance(operator, Crop):
        assert torch.equal(a(found), a(truth))


def test_rows_beyond_the_range_are_those_that_disagree() -> None:
    event = (1, 4, 4)
    a = Pool(2).on(event)
    info = DataInfo("a", "a", "image", event, 0, 255, 256, (), 9, 9)
    codec = Composed((Levels(0, 255, 256), Affine(128.0, 128.0)))
    x = torch.full((2, *event), 128.0, dtype=F64)
    x[1, 0, 0, 0] = 255.9
    y = torch.full((2, 1, 2, 2), 128.0, dtype=F64)
    y[1, 0, 0, 0] = 256.5  # no picture has this mean
    found, residual = Seen(a, y).agreeing(x, codec, info)
    assert (residual > tolerance(info)).tolist() == [False, True]
    assert residual[1] == 1.5 and bool((found[1, 0, :2, :2] == 255).all())


@pytest.mark.parametrize(("operator", "event"), [(Pool(2), (1, 8, 8)), (Pool(4), (1, 8, 8)), (Grey(), (3, 8, 8))])
def test_samples_agree_within_the_range_too(operator: Linear, event: tuple[int, ...]) -> None:
    a = operator.on(event)
    info = DataInfo("a", "a", "image", event, 0, 255, 256, (), 9, 9)
    codec = Composed((Levels(0, 255, 256), Affine(128.0, 128.0)))
    r = rng()
    # Most pixels are at the ends of the range, as in pictures of clothes on black.
    truth = torch.from_numpy(r.integers(-300, 500, (60, *event)).clip(0, 255)).double()
    truth[:20] = 0
    x = truth + torch.from_numpy(r.normal(0, 20, (60, *event)))
    found, residual = Seen(a, a(truth), truth).agreeing(x, codec, info)
    assert torch.equal(found, found.round()) and bool(((found >= 0) & (found <= 255)).all())
    torch.testing.assert_close(residual, (a(found) - a(truth)).abs().flatten(1).amax(1))
    assert float(residual.max()) <= 0.5 + 1e-3
    assert float(found[:20].max()) == 0, "only a black picture has a black measurement"
    assert float((found - truth).square().mean()) < float((x - truth).square().mean())
    # No row affects another.
    alone = Seen(a, a(truth[30:31]), truth[30:31]).agreeing(x[30:31], codec, info)[0]
    assert torch.equal(alone, found[30:31])


def test_columns_without_levels_have_no_range() -> None:
    event = (2, 8)
    a = Pool(2).on(event)
    info = DataInfo("a", "a", "signal", event, 0, 9, None, (), 9, 9)
    levels = Levels(torch.zeros(2, 1), torch.tensor([[9.0], [0.0]]), torch.tensor([[10], [0]]))
    truth = torch.zeros(1, *event, dtype=F64)
    truth[:, 1] = 50
    x = truth + Noise.of(1, 3).normal(event, dtype=F64)
    found, _ = Seen(a, a(truth), truth).agreeing(x, Composed((levels, Affine(0.0, 1.0))), info)
    assert float(found[:, 0].abs().max()) == 0
    torch.testing.assert_close(a(found)[:, 1], a(truth)[:, 1])
    assert not torch.equal(found[:, 1], truth[:, 1])


def test_a_run_that_is_shown_a_measurement(tmp_path: Path) -> None:
    data = everything((3, 8, 8), levels=True)
    run = trained("pool:2", data, dtype=torch.float32)
    truth = data.train[:3]
    low = Pool(2)(truth.double())
    asked, same = run.given(Condition(image=truth), each=2), run.given(Condition(image=low), each=2)
    assert torch.equal(asked.condition.image, same.condition.image)
    a, b = (r.sample(6, HEUN) for r in (asked, same))
    assert torch.equal(a.x, b.x)
    measured = (Pool(2)(a.x.double()) - low.repeat_interleave(2, 0)).abs().flatten(1).amax(1)
    torch.testing.assert_close(a.residual, measured)
    assert torch.equal(a.x, a.x.round()) and a.x.min() >= 0 and a.x.max() <= 255
    shown = run.codec.continuous.to_model(low.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(asked.condition.image[::2].double(), shown, atol=1e-6, rtol=0)
    torch.testing.assert_close(run.given_rows(data, torch.arange(3), split="train").condition.image.double(), shown,
                               atol=1e-6, rtol=0)  # fmt: skip
    one = run.given(Condition(image=low[:1]))
    assert one.rows(torch.arange(4)).sample(4, HEUN).x.shape == one.sample(4, HEUN).x.shape == (4, 3, 8, 8)
    for bad, message in (
        (torch.zeros(1, 3, 5, 5), r"must be \(3, 4, 4\) \(for measurements by the operator pool:2\) or \(3, 8, 8\)"),
        (torch.full((1, 3, 4, 4), math.nan), "NaN occurs in 48 of the 48 given values.*leaves no values out"),
        (torch.full((1, 3, 8, 8), math.inf), "infinite"),
    ):
        with pytest.raises(UsageError, match=message):
            run.given(Condition(image=bad))


def test_what_a_given_picture_means() -> None:
    noise = Noise.of(2)
    many = parse("pool:2/hole/grey").on((3, 8, 8), 0, 255)
    x, nan = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    nan[:, :, 2:4] = math.nan
    assert understood(Pool(2)(x), many, noise).operator is many.choices[0]
    assert understood(Grey()(x), many, noise).operator is many.choices[2]
    holes = understood(nan, many, noise)
    assert isinstance(holes.operator, Mask) and torch.equal(holes.hidden, nan.isnan())
    assert torch.equal(holes.shown.nan_to_num(9), nan.double().nan_to_num(9))
    with pytest.raises(UsageError, match="cannot be a measurement by pool:2 or hole or grey; name the operator"):
        understood(x, many, noise)
    blurred = parse("pool:2/blur").on((3, 8, 8), 0, 255)
    assert understood(x, blurred, noise).operator is None  # shown as it is
    blur = Blur().on((3, 8, 8))
    assert torch.equal(understood(x, blur, noise).y, x.double())
    named = understood(x, blur, noise, named=True)
    assert torch.equal(named.y, blur(x.double())) and torch.equal(named.truth, x.double())
    rows, cells = torch.rand(2, 3), parse("cells:1").on((3,))
    assert not understood(rows, cells, noise).hidden.any() and understood(rows, cells, noise, named=True).hidden.all()
    traces, gaps = torch.rand(2, 1, 16), parse("cells").on((1, 16))  # a signal can mark its gaps, as a row can
    assert not understood(traces, gaps, noise).hidden.any() and understood(traces, gaps, noise, named=True).hidden.any()
    pictures = torch.rand(2, 1, 8, 8)  # a picture cannot
    assert understood(pictures, parse("cells").on((1, 8, 8)), noise).hidden.any()
    rows[0, 1] = math.nan
    assert torch.equal(understood(rows, cells, noise).hidden, rows.isnan())
    assert understood(rows, cells, noise, named=True).hidden.all()
    with pytest.raises(UsageError, match="which fits the measurements of pool:2 and crop; name the operator"):
        understood(torch.rand(2, 1, 4, 4), parse("pool:2/crop").on((1, 8, 8)), noise)
    with pytest.raises(UsageError, match=r"only samples of shape \(3, 8, 8\) may have missing values"):
        understood(Pool(2)(nan), many, noise)
    with pytest.raises(UsageError, match="given values, but the operator blur:1 leaves no values out"):
        understood(nan, Blur().on((3, 8, 8)), noise)
    hole = understood(x, Hole().on((3, 8, 8)), noise)
    assert torch.equal(hole.truth, x.double()) and torch.equal(hole.shown.isnan(), hole.hidden.expand(2, 3, 8, 8))
    long = torch.tensor([[2**40 + 1, 3], [5, 2**52 + 1]])
    told = understood(long, Mask(torch.tensor([True, False])).on((2,)), Noise.of(2))
    assert told.shown[:, 0].tolist() == [2**40 + 1, 5]


def test_empty_cells_of_training_rows_are_never_shown_as_known() -> None:
    x = rng().normal(size=(200, 4))
    x[rng(1).random((200, 4)) < 0.3] = np.nan
    data = Dataset.of(x)
    for cond in ("cells", "cells:0.2/noise:0.1"):
        run = trained(cond, data)
        asked = run.given_rows(data, torch.arange(len(data.train)), split="train")
        shown = ~asked.condition.image.isnan()
        assert not bool((shown & ~data.complete).any()) and int(shown.sum()) > 50
        batches = Batches(Rows(data.train, data.codec, complete=data.complete, operator=run.operator), 64, 0)
        batch = batches.at(3, torch.Generator().manual_seed(0), F64)
        assert not bool((~batch.condition.image.isnan() & (batch.weight == 0)).any())
        assert torch.equal(batch.weight, data.complete[batches.index(3)].double())
    # The scale of the data is that of their known values.
    config, *_ = prepared(TrainConfig(cond="cells", steps=1), data)
    assert config.predict_options["data_std"] == pytest.approx(1, abs=0.01)
    # A model that is not told what is missing would learn the means that stand for empty cells.
    for other in ("none", "vector"):
        with pytest.raises(DataError, match=r"values of the training samples are missing.*cond='cells'"):
            fit(TrainConfig(cond=other, steps=1), data=Dataset.of(x, given=Condition(vector=torch.zeros(200, 1))),
                save=False, quiet=True)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- weights


def test_an_element_without_weight_adds_nothing_to_any_loss() -> None:
    data = everything((4,))
    weight = (Noise.of(16, 3).uniform((4,)) < 0.6).double()
    x0, eps, t = Noise.of(16, 1).normal((4,), dtype=F64), Noise.of(16, 2).normal((4,), dtype=F64), None
    for options in ({}, {"sde": "vdm", "sde_options": {"learn": True}},
                    {"sde": "ddpm", "sde_options": {"steps": 40}, "learn_variance": True, "predict": "v"}):  # fmt: skip
        model = trained("cells", data, **options).base
        nodes = model.domain.nodes
        t = torch.linspace(0.01, 0.99, 16, dtype=F64) if nodes is None else nodes[torch.arange(16) * 2]
        loss = partial(denoising_loss, model, x0, t, eps, None, "native" if nodes is not None else "likelihood")
        # the losses are sums over elements
        parts = torch.stack([loss(torch.eye(4, dtype=F64)[k].expand(16, 4)) for k in range(4)])
        torch.testing.assert_close(parts.sum(0), loss(None), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close((parts * weight.T).sum(0), loss(weight), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(loss(torch.ones(16, 4, dtype=F64)), loss(None), atol=1e-12, rtol=1e-12)
        if nodes is not None:
            estimate = model(x0 + eps, t)
            moved = torch.where(weight > 0, x0, 77.0)
            a, b = (variance_loss(estimate, x, nodes, weight) for x in (x0, moved))
            assert torch.equal(a, b)
        if model.sde.parameters():
            parts = torch.stack([end_terms(model, x0, torch.eye(4, dtype=F64)[k].expand(16, 4)) for k in range(4)])
            torch.testing.assert_close(parts.sum(0), end_terms(model, x0))
            torch.testing.assert_close((parts * weight.T).sum(0), end_terms(model, x0, weight))
            ends = Denoising(Native()).ends(model, Batch(x0, weight=weight))
            assert torch.equal(ends, end_terms(model, x0, weight))
            none = end_terms(model, x0, torch.zeros(16, 4, dtype=F64))
            assert none.tolist() == [0.0] * 16


@pytest.mark.parametrize("sde", [{}, {"sde": "vdm", "sde_options": {"learn": True}},
                                 {"sde": "ddpm", "sde_options": {"steps": 40}, "learn_variance": True, "predict": "v"}],
                         ids=["vp", "vdm", "ddpm"])  # fmt: skip
def test_training_ignores_what_stands_in_an_empty_cell(sde: dict[str, Any]) -> None:
    x = rng().normal(size=(200, 3))
    x[rng(1).random((200, 3)) < 0.3] = np.nan
    data = Dataset.of(x)
    # The network is shown the noisy value of an empty cell, but no gradient comes from its loss.
    model = trained("cells", data, **sde).base.requires_grad_(True)
    batch = Rows(data.train, data.codec, complete=data.complete)(torch.arange(32), torch.Generator(), F64)
    assert isinstance(batch, Batch) and batch.weight is not None
    output = model.network.leave[-1]
    times = model.domain.nodes
    t = torch.full((32,), 0.5, dtype=F64) if times is None else times[20].expand(32)
    only = (torch.arange(3) == 1).double().expand(32, 3) * batch.weight
    loss = denoising_loss(model, batch.x0, t, torch.zeros(32, 3, dtype=F64), None, "native", only)
    loss.sum().backward()
    grads = output.weight.grad.reshape(-1, 3, output.weight.shape[1])
    assert float(grads[:, 1].abs().max()) > 0 and float(grads[:, [0, 2]].abs().max()) == 0


# ---------------------------------------------------------------------------------------------- saved, loaded, resumed

OWN = """
from dataclasses import dataclass
from pathlib import Path
from scoresde.operators import Linear

Path(__file__).with_name("imported").touch()

@dataclass(frozen=True, eq=False)
class First(Linear):
    def __call__(self, x):
        return x[:, :1]
"""

KINDS: dict[str, tuple[int, ...]] = {
    "class": (3,), "vector": (3,), "image": (1, 8, 8), "text": (3,), "class+vector+image+text": (3,),
    "cells": (3,), "pool:2": (1, 8, 8), "grey/hole/pool:4/jpeg:10/noise:3": (3, 8, 8), "class+blur:2": (2, 16),
    "mask:some/mask.png": (1, 8, 8), "text+own_operator:First": (3,), "own_operator:First/cells": (3,),
}  # fmt: skip


def stored(folder: Path, cond: str) -> str:
    """Write data, with every kind of condition, and a mask and a module to a folder; return the path of the data."""
    data = everything(KINDS[cond], 90, levels=len(KINDS[cond]) == 3)
    whole = torch.cat([data.train, data.test]).numpy()
    given = [
        torch.cat([getattr(d, s) for d in (data.train_given, data.test_given)]).numpy() for s in ("vector", "image")
    ]
    labels = torch.cat([data.train_labels, data.test_labels]).numpy()
    np.savez(folder / "data.npz", x=whole, y=labels, c=given[0], given=given[1], text=np.array(captions(90)))
    (folder / "some").mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:6] = 255
    Image.fromarray(mask).save(folder / "some" / "mask.png")
    (folder / "own_operator.py").write_text(OWN)
    return str(folder / "data.npz")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("cond", list(KINDS))
def test_a_run_is_the_same_after_saving_loading_and_resuming(
    cond: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "own_operator:First" if "own" in cond else None
    options = MLP if len(KINDS[cond]) == 1 else UNET
    config = TrainConfig(
        data=stored(here, cond), cond=cond, steps=6, batch=8, warmup=1, decay="none", network_options=options,
        validate_every=1,
    )  # fmt: skip
    whole = fit(config, out=here / "whole", quiet=True)
    fit(replace(config, steps=3), out=here / "parts", quiet=True)
    # From here on, the run has to do without the mask, and without importing anything that it was not given.
    (here / "some" / "mask.png").unlink()
    sys.modules.pop("own_operator", None)
    (here / "imported").unlink(missing_ok=True)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    if own is not None:
        with pytest.raises(CheckpointError, match=r"refers to the operator 'own_operator:First'.*never imported"):
            load(here / "whole")
        with pytest.raises(UsageError, match="cannot be loaded with the operator other:First"):
            load(here / "whole", operator="other:First")
        assert not (here / "imported").exists()
        with pytest.raises(CheckpointError, match=r"refers to the operator 'own_operator:First'"):
            fit(TrainConfig.from_dict(read_config_of(here / "parts")), out=here / "parts", resume=True, quiet=True)
        assert not (here / "imported").exists()
        monkeypatch.chdir(here)
    resumed = fit(
        replace(load(here / "parts", operator=own).config, steps=6, typed=() if own is None else (own,)),
        out=here / "parts", resume=True, quiet=True,
    )  # fmt: skip
    assert_same(contents(here / "whole"), contents(here / "parts"))
    lines = [[(line["step"], line["loss"]) for line in read_lines(here / name / "metrics.jsonl")]
             for name in ("whole", "parts")]  # fmt: skip
    assert lines[0] == lines[1]
    again = load(here / "whole", operator=own)
    assert again.info == whole.info and again.config.cond == cond
    data = again.data()
    draws = [
        r.given_rows(data, torch.arange(3), seed=2).sample(3, RungeKutta(steps=2)) for r in (whole, again, resumed)
    ]
    for other in draws[1:]:
        assert torch.equal(draws[0].x, other.x) and bool(draws[0].x.isfinite().all())
    assert str(again.operator) == str(whole.operator)
    if own is not None or "mask" in cond:
        straight = reflow(again, pairs=12, steps=1, data=data, save=False, quiet=True, solver=RungeKutta(steps=1))
        assert straight.operator is again.operator and straight.info.known == again.info.known
    if "mask" in cond:
        assert torch.equal(again.operator.mask, whole.operator.mask) and int((~again.operator.mask).sum()) == 15


def read_config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["config"]
    return found


def test_an_operator_of_ones_own_is_passed_as_name_class_or_object(here: Path) -> None:
    config = TrainConfig(data=stored(here, "text+own_operator:First"), cond="own_operator:First", steps=1, batch=8,
                         network_options=MLP)  # fmt: skip
    run = fit(config, out=here / "run", quiet=True)
    kind = type(run.operator)
    x = run.data().test[:2]
    drawn = [load(here / "run", operator=own).given(Condition(image=x[:, :1])).sample(2, HEUN)
             for own in ("own_operator:First", kind, kind())]  # fmt: skip
    assert all(torch.equal(drawn[0].x, d.x) and torch.equal(d.x[:, :1], x[:, :1]) for d in drawn)
    fit(replace(config, cond="cells"), out=here / "plain", quiet=True)
    for name, own, message in (
        (
            "run",
            Cells(),
            r"trained with the operator own_operator:First, so it cannot be loaded with the operator cells",
        ),
        ("plain", kind(), r"trained with the operator cells, so .* own_operator:First; leave out the operator"),
        ("plain", "cells", "leave out the operator"),
    ):
        with pytest.raises(UsageError, match=message):
            load(here / name, operator=own)


def test_a_run_without_conditions_cannot_be_loaded_with_an_operator(copied: Callable[[str], str]) -> None:
    with pytest.raises(UsageError, match="trained without an operator"):
        load(copied("moons"), operator=Cells())


def test_a_run_from_before_there_were_conditions_is_loaded(copied: Callable[[str], str]) -> None:
    for name in ("moons", "classes"):
        folder = Path(copied(name))
        before = load(folder)
        edit(folder / "data.json", lambda facts: {k: v for k, v in facts.items() if k != "known"})
        after = load(folder, edited=True)
        assert after.info == before.info
        label = 3 if name == "classes" else None
        assert torch.equal(*(r.given(label).sample(2, HEUN).x for r in (before, after)))
        config = replace(after.config, steps=4)
        assert fit(config, out=folder, resume=True, quiet=True, edited=True).step >= 3


def test_data_that_have_grown_keep_the_units_and_the_words_of_the_run(here: Path) -> None:
    x = rng().normal(size=(90, 3))
    told = {"c": 5 + rng(1).normal(size=(90, 2)), "text": np.array(captions(90))}
    np.savez("data.npz", x=x, **told)
    config = TrainConfig(data="data.npz", cond="vector+text", steps=4, batch=8, warmup=1, decay="none",
                         network_options=MLP)  # fmt: skip
    run = fit(config, out="run", quiet=True)
    more = rng(2).normal(size=(30, 3))
    np.savez("data.npz", x=np.concatenate([x, more]), c=np.concatenate([told["c"], 99 + rng(3).normal(size=(30, 2))]),
             text=np.array([*captions(90), *["an aardvark saw zebras"] * 30]))  # fmt: skip
    with pytest.warns(UserWarning, match="have grown by 30 rows"):
        grown = fit(replace(run.config, steps=6), out="run", resume=True, quiet=True)
    assert grown.info.known == run.info.known == load("run").info.known
    data = load("run").config.load_data()
    assert "aardvark" in data.info.known.words and load("run").data().info.known == run.info.known
    index = torch.arange(len(data.train))
    asked = grown.given_rows(data, index, split="train").condition
    order = data.rows[: len(data.train)]
    old = (order < 90).nonzero().flatten()
    expected = run.info.known.tokens([captions(90)[i] for i in order[old].tolist()])
    assert torch.equal(asked.tokens[old][:, : expected.shape[1]], expected)
    assert set(asked.tokens[order >= 90].flatten().tolist()) <= {0, -1}
    assert float(asked.vector[order >= 90].mean()) > 50
    # What is known about the samples cannot be left out or changed to something else.
    both = np.concatenate([x, more])
    for lacking in ({"text": np.array(captions(120))}, {"c": both[:, :1], "text": np.array(captions(120))}):
        np.savez("data.npz", x=both, **lacking)
        with pytest.raises((DataError, UsageError), match=r"numbers = |the conditions of"):
            fit(replace(run.config, steps=8), out="run", resume=True, quiet=True)


# --------------------------------------------------------------------------------------------------------------- reflow


@pytest.mark.parametrize("cond", ["class", "class+vector", "text", "image", "cells", "none"])
def test_reflow_pairs_every_sample_with_its_condition(cond: str, tmp_path: Path) -> None:
    data = everything((3,))
    run = trained(cond, data, dtype=torch.float32, cond_drop=0.0 if cond != "none" else 0.1)
    made = reflow(run, pairs=70, steps=3, data=data, out=tmp_path / "run", quiet=True, solver=HEUN)
    pairs = kept_pairs(tmp_path / "run" / "pairs.safetensors", None, 3)
    index = torch.arange(70) % len(data.train)
    asked = run.given_rows(data, index, split="train") if cond != "none" else run
    expected = draw_pairs(asked, 70, HEUN, quiet=True)
    assert torch.equal(pairs.x0, expected.x0) and torch.equal(pairs.eps, expected.eps)
    if cond == "none":
        assert pairs.condition is None
    else:
        for name in SLOTS:
            a, b = (getattr(p.condition, name) for p in (pairs, expected))
            assert a is b is None or torch.equal(a.nan_to_num(9), b.nan_to_num(9)), name
    assert made.info.known == run.info.known
    again = fit(
        replace(load(tmp_path / "run").config, steps=4), data=data, out=tmp_path / "run", resume=True, quiet=True
    )
    assert again.step == 4
    if cond not in ("none", "class"):
        assert made.given_rows(data, torch.arange(2)).sample(2, HEUN).x.shape == (2, 3)


def test_the_command_measures_straightness_with_conditions(shell: Shell) -> None:
    x = rng().normal(size=(90, 3))
    np.savez("data.npz", x=x, c=x[:, :1])
    config = TrainConfig(data="data.npz", cond="vector", cond_drop=0.0, steps=2, batch=8, network_options=MLP)
    fit(config, out="run", quiet=True)
    found = shell.json("reflow run --pairs 20 --steps 1 --solver heun --set solver.steps=2")
    assert 0 < float(str(found["straightness"])) < 1.5
    assert load(str(found["run"])).info.known.vector == ("c0",)


# ---------------------------------------------------------------------------------------------- runs without conditions

# The losses of the version before there were conditions; other random numbers would change the second decimal.
BEFORE: dict[str, tuple[list[float], dict[str, Any]]] = {
    "moons": ([1.11076, 1.08329, 0.95373, 1.02021], {"data": "moons", "network_options": MLP}),
    "digits": ([0.98915, 0.97685, 1.0205, 0.99163], {"network_options": UNET}),
    "class": ([0.98915, 0.97746, 1.02089, 0.99446], {"network_options": UNET, "cond": "class"}),
}


@pytest.mark.parametrize("name", list(BEFORE))
def test_training_without_conditions_draws_what_it_always_drew(name: str, tmp_path: Path) -> None:
    expected, options = BEFORE[name]
    fit(TrainConfig(steps=4, batch=32 if name == "moons" else 16, **options), out=tmp_path / "run", quiet=True)
    losses = [line["loss"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert losses == pytest.approx(expected, abs=1e-4)
