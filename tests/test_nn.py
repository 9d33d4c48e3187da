"""Networks: shapes of every kind, the label and the class matter, rows do not mix."""

from __future__ import annotations

import pytest
import torch

from scoresde.core.condition import Condition
from scoresde.nn import MLP, NoiseEmbedding, UNet
from scoresde.nn.unet import _ResBlock


def randomised(network, std=0.1):
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 8), (3, 17), (1, 8, 8), (3, 7, 5), (2, 28, 20), (1, 4, 6, 5)])
def test_unet_returns_the_shape_it_was_given(shape):
    channels, *space = shape
    network = randomised(UNet(channels, dims=len(space), channels=8, multipliers=(1, 2, 2), blocks=1, attention=(2,)))
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    out = network(x, torch.zeros(3))
    assert out.shape == x.shape and bool(torch.isfinite(out).all())


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: MLP(dims=6, width=16, blocks=2, classes=3), (2, 3)),
        (lambda: UNet(2, channels=8, multipliers=(1, 2), blocks=2, attention=(0, 1), classes=3), (2, 6, 4)),
    ],
    ids=["mlp", "unet"],
)
def test_label_and_class_matter_and_rows_do_not_mix(network, shape):
    network = randomised(network(), std=0.2)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    c, cond = torch.tensor([0.0, 0.5, -1.0, 0.0]), Condition(label=torch.tensor([0, 1, 2, 3]))
    other = Condition(label=torch.tensor([3, 2, 1, 0]))
    out = network(x, c, cond)
    assert not torch.allclose(out, network(x, c + 1, cond), atol=1e-4)
    assert not torch.allclose(out, network(x, c, other), atol=1e-4)
    for i in range(4):
        assert torch.allclose(network(x[i : i + 1], c[i : i + 1], cond.rows(torch.tensor([i])))[0], out[i], atol=1e-5)


def test_networks_start_at_zero():
    # The last layer is zero, so that training starts at the prediction of nothing, whatever the seed.
    for network, shape in ((MLP(dims=2), (2,)), (UNet(1, channels=8, multipliers=(1, 2)), (1, 8, 8))):
        assert float(network(torch.ones(2, *shape), torch.zeros(2)).abs().max()) == 0


def test_every_parameter_takes_part():
    network = UNet(1, channels=8, multipliers=(1, 2), blocks=1, attention=(1,), classes=2)
    randomised(network).requires_grad_(True)
    out = network(torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.2]), Condition(label=torch.tensor([0, 1])))
    out.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().any())] == []


def test_dropout_is_off_in_evaluation():
    network = MLP(dims=2, width=32, blocks=2, dropout=0.5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, c = torch.ones(2, 2), torch.zeros(2)
    assert not torch.equal(network(x, c), network(x, c))
    network.eval()
    assert torch.equal(network(x, c), network(x, c))


def test_a_block_that_has_learned_nothing_halves_the_power_of_its_input():
    x, c = torch.randn(2, 4, 3, 3), torch.randn(2, 8)
    torch.testing.assert_close(_ResBlock(2, 4, 4, 8, 0.0)(x, c), x / 2**0.5)


def test_the_frequencies_of_the_noise_label():
    # They are in no checkpoint, so that trained networks hang on these very numbers.
    found = NoiseEmbedding(8).frequencies
    assert [float(f) for f in found[[0, -1]]] == [0.5, 32.0] and len(found) == 16
