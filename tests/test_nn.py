"""Networks: shapes of every kind, the label and the class matter, rows do not mix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scoresde.core.condition import Condition
from scoresde.core.errors import UsageError
from scoresde.nn import MLP, NoiseEmbedding, UNet
from scoresde.nn.doors import beside
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


# --------------------------------------------------------------------------------------------------------------- doors


NAN = float("nan")


def told() -> Condition:
    """Everything that may be known about four samples (2, 6, 4): the third row has an empty condition."""
    g = torch.Generator().manual_seed(3)
    vector, image = torch.randn(4, 3, generator=g), torch.randn(4, 2, 6, 4, generator=g)
    vector[1, 0], image[1, :, :3] = NAN, NAN
    tokens = torch.tensor([[1, 2, 3], [4, 0, -1], [-1, -1, -1], [3, 2, 1]])
    known = Condition(torch.tensor([0, 1, 3, 2]), vector, image, tokens, classes=3)
    return known.dropped(torch.tensor([False, False, True, False]))


SIZES = {"classes": 3, "vector": 3, "words": 5}
KINDS = {
    "mlp": lambda **more: MLP(dims=48, width=16, blocks=2, given=48, **{**SIZES, **more}),
    "unet": lambda **more: UNet(
        2, channels=8, multipliers=(1, 2), blocks=1, attention=(1,), given=2, **{**SIZES, **more}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_slot_matters_and_rows_do_not_mix(kind: str) -> None:
    network = randomised(KINDS[kind](), std=0.2).double()
    x = torch.randn(4, 2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c, known = torch.linspace(-1, 1, 4, dtype=torch.float64), told()
    out = network(x, c, known)
    assert out.shape == x.shape and bool(out.isfinite().all())
    changed = {
        "label": torch.tensor([1, 2, 3, 0]), "vector": known.vector + 1, "image": known.image + 1,
        "tokens": torch.tensor([[1, 3, 2], [4, 0, -1], [-1, -1, -1], [3, 2, 2]]),
    }  # fmt: skip
    for slot, value in changed.items():
        other = network(x, c, replace(known, **{slot: value}))
        moved = (other - out).flatten(1).abs().amax(1) > 1e-4
        # What is not given stays not given, and a text is more than a bag of words.
        assert moved.tolist() == [True, slot != "tokens", False, True], slot
    for index in ([3], [0, 2], [1, 3, 2]):
        rows = torch.tensor(index)
        alone = network(x[rows], c[rows], known.rows(rows))
        assert float((alone - out[rows]).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_condition_is_no_condition(kind: str) -> None:
    network = randomised(KINDS[kind](), std=0.2).double()
    x = torch.randn(4, 2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = torch.zeros(4, dtype=torch.float64)
    nothing = told().dropped(torch.ones(4, dtype=torch.bool))
    bare = Condition(label=torch.full((4,), 3), classes=3)
    torch.testing.assert_close(network(x, c, nothing), network(x, c, bare), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_words_and_their_lack(kind: str) -> None:
    network = randomised(KINDS[kind](words=0, features=7), std=0.2)
    x, c = torch.randn(2, 2, 6, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(2)
    features = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(2))
    out = network(x, c, Condition(tokens=features))
    longer = torch.cat([features, torch.full((2, 2, 7), NAN)], 1)  # padding says nothing
    torch.testing.assert_close(network(x, c, Condition(tokens=longer)), out)
    assert not torch.allclose(network(x, c, Condition(tokens=features + 1)), out, atol=1e-4)
    dropped = Condition(tokens=features).dropped(torch.tensor([True, False]))
    torch.testing.assert_close(network(x, c, dropped)[0], network(x, c)[0])
    with pytest.raises(UsageError, match=r"features \(B, L, 7\) as tokens, but the tokens have shape \(2, 3\)"):
        network(x, c, Condition(tokens=torch.zeros(2, 3, dtype=torch.int64)))


def test_a_small_image_is_enlarged_and_a_wrong_one_refused() -> None:
    x, image = torch.zeros(1, 1, 4, 6), torch.tensor([[[[1.0, 2.0], [3.0, NAN]]]])
    found = beside(x, image, 1)
    assert found.shape == (1, 3, 4, 6)
    torch.testing.assert_close(found[0, 1, ::3, ::5], torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    torch.testing.assert_close(found[0, 2, ::3, ::5], torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(UsageError, match=r"does not match the network \(channels: 1, "):
        beside(x, torch.zeros(1, 2, 4, 6), 1)
    network = UNet(1, channels=8, multipliers=(1,), vector=2)
    with pytest.raises(UsageError, match="has length 3, but the network was built for length 2"):
        network(x, torch.zeros(1), Condition(vector=torch.zeros(1, 3)))


@pytest.mark.parametrize("closed", ["enter", "embedding.vector"])
def test_numbers_enter_an_mlp_beside_x_and_in_the_embedding(closed: str) -> None:
    network = randomised(MLP(dims=2, width=16, blocks=2, given=3, vector=4), std=0.2)
    x, c = torch.zeros(2, 2), torch.zeros(2)
    vector = torch.tensor([[1.0, NAN, 2.0, -1.0]] * 2)
    with torch.no_grad():
        network.get_submodule(closed).weight[:, -8:] = 0  # the other way in remains
    for column in range(4):
        other = vector.clone()
        other[1, column] = 3.0
        out = network(x, c, Condition(vector=other))
        assert not torch.allclose(out[0], out[1], atol=1e-4), column
    with pytest.raises(UsageError, match="has length 3, but the network was built for length 4"):
        network(x, c, Condition(vector=vector[:, :3]))


def test_slots_say_what_a_network_uses() -> None:
    assert UNet(1, channels=8, multipliers=(1,), given=1).slots == ("image",)
    assert MLP(dims=2, classes=3, vector=2).slots == ("label", "vector") and MLP(dims=2).slots == ()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_doors_takes_part(kind: str) -> None:
    network = randomised(KINDS[kind](), std=0.2).requires_grad_(True)
    network(torch.randn(4, 2, 6, 4), torch.zeros(4), told()).square().mean().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().any())]
    assert idle == []
