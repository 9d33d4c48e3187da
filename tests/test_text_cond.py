"""Texts as conditions: the built-in captions, the encoder of words, and what a model does with them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import Condition, Dataset, TrainConfig, fit, load, load_data
from scoresde.core.errors import UsageError
from scoresde.data.captions import COLOURS, DIGITS, captioned
from scoresde.data.dataset import split
from scoresde.data.readers import read_digits
from scoresde.nn.doors import TextEncoder

SMALL = {"width": 64, "blocks": 2}


@pytest.fixture(scope="module")
def captions() -> Dataset:
    return load_data("captions")


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
    bags = [{tuple(sorted(set(text.split()) - {"left", "right"}) + [len(text)]) for text in part} for part in (train, test)]
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
    right = {}
    for name in ("order", "bag"):
        told, wanted = ((text, its) if name == "order" else ([" ".join(sorted(t.split())) for t in part] for part in (text, its)))
        config = TrainConfig(cond="text", steps=300, batch=128, lr=3e-3, network_options=SMALL)
        run = fit(config, data=Dataset.of(x, text=told), save=False, quiet=True)
        found = run.given(text=wanted).sample(100, "heun").x
        right[name] = float(((found - asked).abs() < 0.5).double().mean())
    assert right["order"] > 0.95 and right["bag"] < 0.7, right
