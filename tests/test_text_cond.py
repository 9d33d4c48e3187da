"""Texts as conditions: the built-in captions, the encoder of words, and what a model does with them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoresde import Condition, Dataset, TrainConfig, fit, load, load_data
from scoresde.core.errors import UsageError
from scoresde.data.captions import COLOURS, DIGITS, captioned
from scoresde.data.dataset import split
from scoresde.data.readers import read_digits
from scoresde.nn.doors import TextEncoder, places
from scoresde.nn.unet import _Attention

SMALL = {"width": 64, "blocks": 2}


@pytest.fixture(scope="module")
def captions() -> Dataset:
    return load_data("captions")


def randomised(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)


def texts(data: Dataset, tokens: Tensor) -> list[str]:
    words = data.info.known.words
    return [" ".join(words[i - 1] for i in row if i > 0) for row in tokens.tolist()]


def shown(image: Tensor, known: dict[bytes, int]) -> tuple[str, int]:
    """The name and the index of the digit in a half of a picture ``(3, 8, 8)``, or a KeyError."""
    scaled = image.double() / 255
    for name, colour in COLOURS.items():
        palette = torch.tensor(colour, dtype=torch.float64)[:, None, None]
        grey = (16 * scaled.amax(0) / max(colour)).round()
        if float((255 * grey / 16 * palette - image).abs().max()) < 0.51:  # rounded to a level
            return name, known[grey.to(torch.uint8).numpy().tobytes()]
    raise AssertionError("the picture has none of the colours")


def test_a_caption_says_what_its_picture_shows(captions: Dataset) -> None:
    raw = read_digits()
    known = {image.tobytes(): i for i, image in enumerate(raw.train[:, 0])}
    used: list[set[int]] = []
    for x, tokens in ((captions.train[:300], captions.train_given.tokens), (captions.test, captions.test_given.tokens)):
        used.append(set())
        for image, text in zip(x, texts(captions, tokens[: len(x)]), strict=True):
            halves = [shown(half, known) for half in image.split(8, dim=2)]
            used[-1] |= {index for _, index in halves}
            names = [f"a {colour} {DIGITS[raw.train_labels[index]]}" for colour, index in halves]
            assert text in (f"{names[0]} left of {names[1]}", f"{names[1]} right of {names[0]}")
    train, test = (set(part.tolist()) for part in split(len(raw.train), 0.1, 0))
    assert used[0] <= train and used[1] <= test and not train & test and len(used[1]) > 150


def test_no_training_caption_has_the_words_of_a_test_caption(captions: Dataset) -> None:
    train, test = (texts(captions, known.tokens) for known in (captions.train_given, captions.test_given))
    assert len(captions.train) == len(train) == 9000 and len(captions.test) == len(test) == 1000
    sides = ("left", "right")
    bags = [{" ".join(sorted(w for w in text.split() if w not in sides)) for text in part} for part in (train, test)]
    assert not bags[0] & bags[1] and len(set(test)) > 300 and len(set(train)) > 2500
    for part in (train, test):
        assert 0.45 < sum("left" in text for text in part) / len(part) < 0.55
        words = [word for text in part for word in text.split()]
        for name in (*COLOURS, *DIGITS):
            share = words.count(name) / len(part)
            assert abs(share - (0.5 if name in COLOURS else 0.2)) < (0.05 if part is train else 0.15), name


def test_captions_are_the_same_whatever_the_seed(captions: Dataset) -> None:
    other = load_data("captions", seed=5, test_fraction=0.3)
    assert torch.equal(other.train, captions.train) and torch.equal(other.test, captions.test)
    assert torch.equal(other.train_given.tokens, captions.train_given.tokens)
    raw = captioned(read_digits(), *split(1797, 0.1, 0))
    assert raw.train_known.text[:2].tolist() == [
        "a blue zero right of a green one", "a red six left of a green nine",
    ]  # fmt: skip
    assert int(raw.train.astype(np.int64).sum()) == SUM
    info = captions.info
    assert (info.kind, info.shape, info.levels, info.classes) == ("image", (3, 8, 16), 256, ())
    assert "a text (18 different words)" in captions.describe()


SUM = 141_874_961


@pytest.mark.parametrize(
    ("shape", "preset"),
    [((3, 8, 16), "tiny"), ((1, 12, 12), "tiny"), ((1, 13, 13), "small"), ((1, 40, 40), "small"),
     ((1, 41, 41), "base"), ((1, 20, 80), "small"), ((1, 12, 12, 12), "tiny"), ((1, 13, 13, 13), "small"),
     ((1, 64), "tiny"), ((1, 65), "small")],
)  # fmt: skip
def test_the_network_suits_the_number_of_pixels(captions: Dataset, shape: tuple[int, ...], preset: str) -> None:
    kind = {1: "signal", 2: "image", 3: "volume"}[len(shape) - 1]
    info = replace(captions.info, shape=shape, kind=kind)
    assert TrainConfig(data="captions").resolved(info).preset == preset


@pytest.mark.parametrize("shape", [(64, 4, 8), (9, 5, 3), (64, 7), (24, 3, 4, 5), (3, 2, 2)])
def test_every_pixel_knows_its_place(shape: tuple[int, ...]) -> None:
    found = places(torch.zeros(2, *shape, dtype=torch.float64))
    assert found.shape == (1, *shape) and found.dtype == torch.float64
    used = 2 * (len(shape) - 1) * (shape[0] // (2 * (len(shape) - 1)))
    assert float((found.square().sum(1) - used).abs().max()) < 1e-4
    if used:
        flat = found[0].flatten(1).T
        assert float((torch.cdist(flat, flat) + 10 * torch.eye(len(flat))).min()) > 0.1
    # A place is a fraction of the side: the middle of an odd side is that of another one.
    if len(shape) == 2:
        middle = places(torch.zeros(1, shape[0], 3))[..., 1].double()
        assert float((found[..., shape[1] // 2] - middle).abs().max()) < 1e-5


def test_a_text_reaches_each_pixel_in_its_own_way() -> None:
    """Even a picture that is the same everywhere gets different values from a text, also far from its sides."""
    attention = _Attention(2, 16, text=8).double().requires_grad_(False)
    randomised(attention)
    encoded = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = torch.ones(1, 16, 4, 6, dtype=torch.float64)
    out = attention(flat, (encoded, torch.ones(1, 3).bool())).flatten(2)[0].T
    assert float((torch.cdist(out, out) + torch.eye(len(out))).min()) > 1e-3
    bare = _Attention(2, 16).double()  # without texts, as it always was
    randomised(bare)
    same = bare(flat).flatten(2)
    torch.testing.assert_close(same, same[..., :1].expand_as(same))


def points(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Points at +1 or -1 on each axis, which only the order of the words tells: "red green" is not "green red"."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "green", "blue", "black"])
    pairs = np.array([rng.permutation(4)[:2] for _ in range(count)])
    x = 2.0 * (pairs[:, :1] < pairs[:, 1:]) - 1 + 0.05 * rng.normal(size=(count, 1))
    return torch.from_numpy(x), [f"{a} before {b}" for a, b in words[pairs]]


def test_a_model_learns_the_order_of_words() -> None:
    x, text = points(2000, 0)
    asked, its = points(100, 1)
    config = TrainConfig(cond="text", steps=200, batch=128, lr=3e-3, network_options=SMALL)
    run = fit(config, data=Dataset.of(x, text=text), save=False, quiet=True)
    found = run.given(text=its).sample(100, "heun").x
    assert float(((found - asked).abs() < 0.5).double().mean()) > 0.9  # a bag of words would give 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained for a moment on captions of three words."""
    x, text = points(40, 0)
    made = tmp_path_factory.mktemp("text") / "run"
    fit(
        TrainConfig(cond="text", steps=2, batch=8, network_options=SMALL),
        data=Dataset.of(x, text=text),
        out=made,
        quiet=True,
    )
    return made


def test_a_text_of_any_length_is_read_to_its_end(folder: Path) -> None:
    run = load(folder)
    randomised(run.base)
    long = " before ".join(["red", "green", "blue", "black"] * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound = [run.given(text=f"{long} before {last}") for last in ("red", "green")]
    assert [one.condition.tokens.shape for one in bound] == [(1, 241), (1, 241)]
    x, t = torch.randn(3, 1, generator=torch.Generator().manual_seed(0)), 0.5
    one, other = (run.model(x, t).x0 for run in bound)
    assert float((one - other).abs().min()) > 1e-5  # the last of 241 words
    both = run.given(text=[f"{long} before red", "red before green"]).model(x[:2], t).x0  # beside a short text
    torch.testing.assert_close(both[0], one[0])
    torch.testing.assert_close(both[1], run.given(text="red before green").model(x[1:2], t).x0[0])


def test_unknown_words_are_named_with_a_hint(folder: Path) -> None:
    run = load(folder)
    with pytest.warns(UserWarning, match=r"2 words that did not occur in the training texts: .*'gren' \(did you mean "
                      r"'green' or 'red'\), 'xylophone'$"):  # fmt: skip
        bound = run.given(text=["red before gren", "Red xylophone green"])
    words = run.info.known.words
    red, green, before = (words.index(word) + 1 for word in ("red", "green", "before"))
    assert bound.condition.tokens.tolist() == [[red, before, 0], [red, 0, green]]
    for bad in (torch.zeros(1, 3, 7), torch.zeros(1, 3)):
        with pytest.raises(UsageError, match=r"trained on words; pass a text, or integers of shape \(n, L\)"):
            run.given(Condition(tokens=bad))
    for bad in ([[0, -2]], [[1, len(words) + 1]]):
        with pytest.raises(UsageError, match=rf"valid indices are 1 to {len(words)} for words in the voc"):
            run.given(Condition(tokens=torch.tensor(bad)))
    with pytest.raises(UsageError, match="was trained without texts; to use texts, train with cond='text'"):
        fit(TrainConfig(data="moons", steps=1, batch=8), save=False, quiet=True).given(text="red")


def test_features_of_another_encoder(tmp_path: Path) -> None:
    """Words as one-hot features in a file, where the order is told by the place in the text alone."""
    x, text = points(2000, 0)
    asked, its = points(100, 1)

    def features(texts: list[str]) -> np.ndarray:
        names = ["red", "green", "blue", "black"]
        known = np.full((len(texts), 3, 8), np.nan, np.float32)
        for i, one in enumerate(texts):
            first, _, last = one.split()
            known[i, :2] = 0.0
            known[i, 0, names.index(first)] = known[i, 1, 4 + names.index(last)] = 1.0
        return known

    np.savez(tmp_path / "points.npz", x=x.numpy(), text=features(text))
    data = str(tmp_path / "points.npz")
    config = TrainConfig(data, cond="text", steps=150, batch=128, lr=3e-3, network_options=SMALL)
    out = tmp_path / "run"
    fit(config, out=out, quiet=True)
    run = load(out)
    assert run.info.known.features == 8 and "a text as features of size 8" in run.info.known.describe()
    found = run.given(Condition(tokens=torch.from_numpy(features(its)))).sample(100, "heun").x
    assert float(((found - asked).abs() < 0.5).double().mean()) > 0.95
    for bad in (torch.zeros(1, 3, 7), torch.zeros(1, 3), torch.zeros(1, 3, 8, dtype=torch.int64)):
        with pytest.raises(UsageError, match=r"pass floats of shape \(n, L, 8\), with NaN where there is no word"):
            run.given(Condition(tokens=bad))


def test_the_encoder_tells_places_and_rows_apart() -> None:
    encoder = TextEncoder(32, words=10).double()
    tokens = torch.tensor([[3, 1, 4], [4, 1, 3], [3, 1, -1]])
    encoder.requires_grad_(False)
    encoded, known = encoder(tokens)
    assert known.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert float((encoded[0, 1] - encoded[1, 1]).abs().max()) > 1e-3  # the same word between other words
    assert float((encoded[0, 0] - encoded[1, 2]).abs().max()) > 1e-3  # the same word in another place
    torch.testing.assert_close(encoded[2, :2], encoder(tokens[2:, :2])[0][0])
    torch.testing.assert_close(encoded[0], encoder(tokens[:1])[0][0])
