"""Conditions and batches by hand: rows, what is not given, and networks that were not written for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from scoresde import VPSDE, Eps, ScoreModel
from scoresde.codec import Affine
from scoresde.core.condition import SLOTS, Condition
from scoresde.core.errors import UsageError
from scoresde.data.batch import Batch
from scoresde.nn import MLP


def full() -> Condition:
    """Three rows with every slot, where the picture is the same for all."""
    return Condition(
        label=torch.tensor([2, 0, 1]),
        vector=torch.arange(6.0).reshape(3, 2),
        image=torch.ones(1, 1, 2, 2),
        tokens=torch.tensor([[5, 6], [7, 8], [9, -1]]),
        classes=3,
    )


def same(one: Condition, other: Condition) -> bool:
    values = [(getattr(one, name), getattr(other, name)) for name in SLOTS]
    return one.classes == other.classes and all(
        a is b is None or (a is not None and b is not None and torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)))
        for a, b in values
    )


def test_rows_of_a_condition() -> None:
    index = torch.tensor([2, 0])
    some = full().rows(index)
    assert some.label is not None and some.label.tolist() == [1, 2] and len(some) == 2 == len(some.expand(2))
    assert some.image is not None and some.image.shape == (1, 1, 2, 2)  # one for all stays one
    assert some.expand(2).image.shape == (2, 1, 2, 2)
    assert len(Condition()) == 1 and len(Condition(label=torch.tensor([1])).expand(4)) == 4
    with pytest.raises(UsageError, match="number of classes is unknown"):
        Condition(label=torch.tensor([1])).dropped(torch.tensor([True]))
    with pytest.raises(UsageError, match="the condition has 3 rows for 2 samples"):
        full().expand(2)
    with pytest.raises(UsageError, match=r"one row per sample, or a single row; got .*'label': 2, 'vector': 3"):
        Condition(label=torch.tensor([0, 1]), vector=torch.zeros(3, 1))


def test_what_is_dropped_says_so_in_its_own_value() -> None:
    hidden = full().dropped(torch.tensor([False, True, False]))
    assert hidden.label.tolist() == [2, 3, 1] and hidden.tokens.tolist() == [[5, 6], [-1, -1], [9, -1]]
    assert hidden.vector.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert hidden.image.isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert same(full().dropped(torch.zeros(3, dtype=torch.bool)), full().expand(3))


def test_compilers_take_a_condition_apart() -> None:
    leaves, spec = _pytree.tree_flatten(full())
    assert len(leaves) == 4 and same(_pytree.tree_unflatten(leaves, spec), full())
    assert _pytree.tree_map(lambda value: 0, full()).label == 0
    asked = (torch.ones(3, 2), torch.zeros(3), Condition(label=torch.tensor([0, 1, 0]), classes=2))
    exported = torch.export.export(MLP(dims=2, width=8, blocks=1, classes=2), asked)
    assert exported.module()(*asked).shape == (3, 2)


def test_rows_of_a_batch() -> None:
    x0, eps = torch.arange(6.0).reshape(3, 2), torch.ones(3, 2)
    batch = Batch(x0, full(), weight=x0 > 1, eps=eps)
    some = batch.rows(torch.tensor([1]))
    assert len(batch) == 3 and len(some) == 1 and some.x0.tolist() == [[2, 3]] and some.weight.tolist() == [[1, 1]]
    assert some.condition.label.tolist() == [0] and some.eps.shape == (1, 2)
    bare = Batch(x0).rows(torch.tensor([0, 2])).to("cpu")
    assert (bare.condition, bare.weight, bare.eps) == (None, None, None) and len(bare) == 2


class Old(nn.Module):
    """A network from before conditions, whose third argument was the class."""

    def forward(self, x: Tensor, c: Tensor, cond: Tensor) -> Tensor:
        return x + nn.functional.one_hot(cond, 2)


class Narrow(nn.Module):
    def forward(self, x: Tensor, c: Tensor, cond: Condition | None) -> Tensor:
        return x[:, :1]


class Deep(nn.Module):
    def forward(self, x: Tensor, c: Tensor, cond: Condition | None) -> Tensor:
        raise TypeError("a fault of its own")


def test_a_network_that_cannot_be_asked_is_told_what_it_gets() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(UsageError, match=r"Old cannot use its third argument, a scoresde\.Condition.* is cond\.label"):
        ScoreModel(Old(), VPSDE(), Eps(), classes=2)(x, 0.5)
    with pytest.raises(
        UsageError, match=r"Narrow returns a tensor of shape \(3, 1\) for an input of .*; .* must have shape \(3, 2\)$"
    ):
        ScoreModel(Narrow(), VPSDE(), Eps())(x, 0.5)
    with pytest.raises(TypeError, match="a fault of its own"):
        ScoreModel(Deep(), VPSDE(), Eps(), classes=2)(x, 0.5)


class Turned(Affine):
    """A codec whose model units have another order than the data."""

    def show(self, m: Tensor, condition: object = None) -> Tensor:
        return m.flip(1)

    def hide(self, x: Tensor, condition: object = None) -> Tensor:
        return x.flip(1)


class Weighted(nn.Module):
    def forward(self, x: Tensor, c: Tensor, cond: Condition | None) -> Tensor:
        return x * torch.tensor([1.0, 10.0])


def test_a_network_sees_and_answers_the_shape_of_the_data() -> None:
    codec = Turned(torch.zeros(()).double(), torch.ones(()).double())
    x = torch.tensor([[1.0, 2.0]])
    assert ScoreModel(Weighted(), VPSDE(), Eps(), codec=codec)(x, 0.5).eps.tolist() == [[10.0, 2.0]]
