"""Networks of one's own: how they are called, what they return, and those that take f(x, t)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import DDPM, VPSDE, Condition, Eps, FlowMatching, RungeKutta, ScoreModel, TrainConfig, fit, load
from scoresde.core.errors import UsageError
from scoresde.nn import MLP, Labelled
from scoresde.nn.labelled import check_network
from scoresde.run.foreign import OriginalEps


class Pair(nn.Module):
    """A network f(x, t) as many are written."""

    def __init__(self, column: bool = False) -> None:
        super().__init__()
        self.line, self.column = nn.Linear(3, 2), column
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(t.detach())
        return self.line(torch.cat([x, t if self.column else t[:, None]], 1))


class Answers(nn.Module):
    """A network that returns what it is given to return."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Any:
        return self.make(x)


class Alone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Many(nn.Module):
    def forward(self, x: Tensor, t: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return x


class Keyword(nn.Module):
    def forward(self, x: Tensor, t: Tensor, *, cond: Condition | None = None) -> Tensor:
        return x


class Called(nn.Module):
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return x


# ------------------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda x: x[:, 0],
            r"Answers returns a tensor of shape \(4,\) for an input of shape \(4, 1\); .* must have shape \(4, 1\)$",
        ),
        (lambda x: x[:1], r"a tensor of shape \(1, 1\) for an input of shape \(4, 1\)"),
        (lambda x: x.T, r"a tensor of shape \(1, 4\)"),
        (lambda x: x.sum(), r"a tensor of shape \(\)"),
        (
            lambda x: torch.cat([x, x], 1),
            r"\(4, 2\) for an input of shape \(4, 1\).*unless the model learns the variance \(learn_variance=True\)",
        ),
        (lambda x: (x, x), r"type tuple \(length 2\), not a tensor of shape \(4, 1\); return only the tensor"),
        (lambda x: {"sample": x}, "returns an object of type dict, not"),
        (lambda x: None, "returns an object of type NoneType, not"),
        (lambda x: x.numpy(), "returns an object of type ndarray, not"),
        (
            lambda x: x.long(),
            "returns a torch.int64 tensor for a torch.float32 input; the output must have a real floating-point",
        ),
        (lambda x: x + 0j, "returns a torch.complex64 tensor"),
        (lambda x: torch.empty(4, 1, device="meta"), "returns a tensor on meta for an input on cpu"),
    ],
)
def test_an_output_that_is_none_is_refused_at_the_first_call(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ScoreModel(Answers(make), VPSDE(), Eps())(torch.zeros(4, 1), 0.5)


def test_an_output_comes_in_the_precision_of_the_states() -> None:
    x = torch.ones(3, 2)
    for dtype in (torch.bfloat16, torch.float64):
        model = ScoreModel(Answers(lambda x, d=dtype: x.to(d)), VPSDE(), Eps())
        assert model.output(x, torch.tensor(0.5)).dtype == model(x, 0.5).x0.dtype == torch.float32


def test_a_learned_variance_has_a_shape_of_its_own() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(
        UsageError, match=r"\(3, 2\) for an input of shape \(3, 2\); .* \(3, 4\), because a network that learns the"
    ):
        ScoreModel(Answers(lambda x: x), DDPM(40), Eps(), learn_variance=True)(x, 0.5)


@pytest.mark.parametrize("dims", [1, 2])
def test_training_sampling_and_loading_refuse_a_shape_that_would_broadcast(dims: int, tmp_path: Path) -> None:
    # (B,) against (B, 1), and (B, 1) against (B, 2)
    narrow = Answers(lambda x: x[:, 0] if dims == 1 else x[:, :1])
    narrow.weight = nn.Parameter(torch.ones(()))
    config = TrainConfig(data="mine", steps=1, batch=4)
    data = torch.randn(40, dims, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match=rf"must have shape \(4, {dims}\)"):
        fit(config, data=data, network=narrow, save=False, quiet=True)
    fine = Answers(lambda x: x * fine.weight)
    fine.weight = nn.Parameter(torch.ones(()))
    fit(config, data=data, network=fine, out=tmp_path / "r", quiet=True)
    with pytest.raises(UsageError, match=rf"must have shape \(3, {dims}\)"):
        load(tmp_path / "r", network=narrow).sample(3, RungeKutta(steps=1))


# ---------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrapped", ["plain", "scripted", "traced", "compiled", "parallel", "called", "keyword"])
def test_two_arguments_are_told_of_the_wrapper(wrapped: str) -> None:
    pair = Pair()
    network = {
        "plain": lambda: pair,
        "scripted": lambda: torch.jit.script(nn.Bilinear(2, 1, 2)),
        "traced": lambda: torch.jit.trace(nn.Bilinear(2, 1, 2), (torch.zeros(1, 2), torch.zeros(1, 1))),
        "compiled": lambda: torch.compile(pair),
        "parallel": lambda: nn.DataParallel(pair),
        "called": Called,
        "keyword": Keyword,
    }[wrapped]()
    with pytest.raises(UsageError, match=r"takes \(.*; wrap it as scoresde\.nn\.Labelled\(network\), or add a third"):
        ScoreModel(network, VPSDE(), Eps())
    ScoreModel(Labelled(network), VPSDE(), Eps())


def test_other_numbers_of_arguments() -> None:
    for network in (Alone(), Many(), nn.Sequential(nn.Linear(2, 2))):
        with pytest.raises(UsageError, match=r"called as network\(x, c, cond\), but \w+ takes \(.*\).*; define"):
            check_network(network)
        with pytest.raises(UsageError, match=r"Labelled calls its network as network\(x, c\), but \w+ takes"):
            Labelled(network)
    with pytest.raises(UsageError, match=r"the network MLP is a class; pass an instance, MLP\(\.\.\.\)"):
        check_network(MLP)
    with pytest.raises(UsageError, match=r"the network must be a torch\.nn\.Module; got"):
        Labelled(lambda x, t: x)  # type: ignore[arg-type]
    for network in (MLP(2), torch.compile(MLP(2)), nn.DataParallel(MLP(2))):
        check_network(network, classes=3)


def test_a_network_of_any_arguments_is_asked() -> None:
    class Any_(nn.Module):
        def forward(self, *given: Tensor, **more: Tensor) -> Tensor:
            return given[0]

    assert ScoreModel(Any_(), VPSDE(), Eps())(torch.ones(1, 2), 0.5).eps.tolist() == [[1.0, 1.0]]


# ----------------------------------------------------------------------------------------------------------- Labelled


def test_the_label_takes_the_place_of_a_time() -> None:
    x, t = torch.randn(3, 2), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for embed, wanted in ((None, lambda c: c), ((0, 999), lambda c: 999 * (c + 5) / 10), (torch.exp, torch.exp)):
        pair = Pair()
        ScoreModel(Labelled(pair, embed), VPSDE(), Eps())(x, t)
        torch.testing.assert_close(pair.seen[0], wanted(Eps().label(VPSDE(), t).float()))
    pair = Pair(column=True)
    ScoreModel(Labelled(pair, lambda c: c[:, None]), VPSDE(), Eps())(x, t)
    assert pair.seen[0].shape == (3, 1)
    pair = Pair()
    ScoreModel(Labelled(pair), VPSDE(), OriginalEps())(x, t)
    torch.testing.assert_close(pair.seen[0], 999 * t.float())  # what weights from elsewhere know


@pytest.mark.parametrize("embed", [(1, 1), (0, float("inf")), (0, 1, 2), 999, ("a", 1), "no"])
def test_numbers_that_span_nothing(embed: Any) -> None:
    with pytest.raises(UsageError, match=f"two different numbers.*, got {re.escape(repr(embed))}$"):
        Labelled(Pair(), embed)


def test_a_wrapped_network_is_trained_saved_and_loaded_and_told_no_class(tmp_path: Path) -> None:
    config = TrainConfig(data="moons", steps=2, batch=8)
    embedding = nn.Linear(1, 1)

    def network() -> Labelled:
        return Labelled(Pair(column=True), nn.Sequential(nn.Unflatten(0, (-1, 1)), embedding))

    before = embedding.weight.clone()
    run = fit(config, network=network(), out=tmp_path / "r", quiet=True)
    assert not torch.equal(embedding.weight, before), "an embedding that is a module is trained"
    again = load(tmp_path / "r", network=network())
    assert torch.equal(run.sample(3, RungeKutta(steps=2)).x, again.sample(3, RungeKutta(steps=2)).x)
    with pytest.raises(UsageError, match="not a class or any other condition") as caught:
        fit(TrainConfig(cond="class"), network=Labelled(Pair()), save=False)
    assert (caught.value.parameter, caught.value.value) == ("cond", "none")
    told = ScoreModel(Labelled(Pair()), FlowMatching(), Eps()).given(Condition(vector=torch.zeros(1, 1)))
    with pytest.raises(UsageError, match="or any other condition"):
        told(torch.zeros(3, 2), 0.5)
