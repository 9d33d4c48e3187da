"""Blocks that are computed again give the same gradients, with dropout too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from scoresde import TrainConfig, fit
from scoresde.nn import MLP, UNet
from scoresde.nn.checkpointing import blocks_of, recompute
from scoresde.nn.dropout import drawing_from
from scoresde.train.state import keyed_rng


def networks() -> list[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    unet = UNet(dims=2, channels_in=1, channels=8, multipliers=(1, 2), blocks=1, attention=(1,), dropout=0.2)
    mlp = MLP(dims=3, width=16, blocks=2, dropout=0.2)
    for network in (unet, mlp):
        for parameter in network.parameters():  # zero-initialised outputs would hide the rest
            nn.init.normal_(parameter, std=0.2)
    return [(unet, torch.randn(4, 1, 8, 8)), (mlp, torch.randn(5, 3))]


def gradients(network: nn.Module, x: Tensor, seed: int) -> list[Tensor]:
    network.zero_grad()
    with keyed_rng(seed, 0, "cpu", network):
        network(x, torch.zeros(len(x))).square().sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_are_the_same_bit_for_bit(which: int) -> None:
    network, x = networks()[which]
    plain = copy.deepcopy(network)
    recompute(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    for seed in (0, 1):
        one, two = gradients(plain, x, seed), gradients(network, x, seed)
        assert len(one) == len(two) > 10 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(gradients(network, x, 0)[0], gradients(network, x, 1)[0])  # there is dropout
    # A copy has weights of its own.
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not any(bool(g.any()) for g in gradients(other, x, 0)) and gradients(network, x, 0)[0].any()


@pytest.mark.parametrize("which", [0, 1])
def test_the_blocks_keep_only_their_inputs(which: int) -> None:
    network, x = networks()[which]
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            network(x.requires_grad_(), torch.zeros(len(x)))
        return sum(sizes)

    before = kept()
    recompute(network)
    assert kept() < 0.6 * before
    network.eval()
    assert kept() > 0.9 * before  # only training computes twice


def test_no_block_is_left_out() -> None:
    network = networks()[0][0]
    found = list(blocks_of(network))
    assert len(found) == len(set(found)) >= 8
    inside = {id(p) for block in found for p in block.parameters()}
    assert sum(p.numel() for p in network.parameters() if id(p) in inside) > 0.8 * sum(
        p.numel() for p in network.parameters()
    )


def test_a_run_is_trained_the_same() -> None:
    config = TrainConfig(steps=3, batch=8, network_options={"channels": 4, "dropout": 0.1})
    one, two = (
        fit(TrainConfig(**{**config.to_dict(), "recompute": again}), save=False, quiet=True) for again in (False, True)
    )
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(a, b)


def test_a_generator_of_the_step_is_left_where_it_was() -> None:
    network, x = networks()[1]
    recompute(network)
    generator = torch.Generator().manual_seed(3)
    with drawing_from(network, generator):
        out = network(x, torch.zeros(len(x)))
        after = generator.get_state()
        out.sum().backward()
    assert torch.equal(generator.get_state(), after)
