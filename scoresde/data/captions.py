"""Pictures with captions. Each picture ``(3, 8, 16)`` shows two of the bundled digits side by side, in colour.

A caption is a text such as "a red three left of a green seven", or, for the same picture, "a green seven right of a red
three". The same words in another order can describe another picture, so a model has to use the order of the words to
find out which digit has which colour and which digit is on the left.

The training part and the test part share no digit images. They share no captions either: no training caption has the
same two digits and the same two colours as a test caption, in any order. The samples are the same on every machine.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..core.noise import Noise
from .raw import Array, Known, Raw

__all__ = ["COLOURS", "DIGITS", "captioned"]

# The colours as red, green and blue from 0 to 1. Their hues are 0, 120, 220 and 50 degrees.
COLOURS = {"red": (1.0, 0.2, 0.2), "green": (0.2, 0.8, 0.2), "blue": (0.2, 0.47, 1.0), "yellow": (1.0, 0.87, 0.2)}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, TEST = 9_000, 1_000  # number of samples
HELD_OUT = 55  # number of sets of two digits and two colours, out of 550, that occur only in the test part


def captioned(digits: Raw, train: Tensor, test: Tensor) -> Raw:
    """Make pictures with captions from grey digits.

    Args:
        digits: The bundled digits, ``(N, 1, 8, 8)``, with levels from 0 to 16 and labels from 0 to 9.
        train: Indexes of the digits to use in training pictures, int64 ``(n,)``.
        test: Indexes of the digits to use in test pictures, int64 ``(m,)``.

    Returns:
        :data:`TRAIN` training pictures and :data:`TEST` test pictures, uint8 ``(3, 8, 16)``, each with a caption.
    """
    scenes = np.array(list(product(range(10), range(4), range(10), range(4))))  # digit and colour, left and right
    sets = np.concatenate([np.sort(scenes[:, ::2], 1), np.sort(scenes[:, 1::2], 1)], 1) @ (1000, 100, 10, 1)
    known = np.unique(sets)
    order = np.argsort(Noise.of(len(known)).uniform((), stream="user").numpy(), stable=True)
    held = np.isin(sets, known[order[:HELD_OUT]])
    x, text = _part(digits, train, scenes[~held], Noise.of(TRAIN, seed=1))
    test_x, test_text = _part(digits, test, scenes[held], Noise.of(TEST, seed=2))
    return Raw("image", x, test_x, train_known=Known(text=text), test_known=Known(text=test_text))


def _part(digits: Raw, index: Tensor, scenes: Array, noise: Noise) -> tuple[Array, Array]:
    """Draw a random scene for each row of ``noise``, and return the pictures and the captions."""
    assert digits.train_labels is not None
    grey, labels = digits.train[index.numpy(), 0] / 16, digits.train_labels[index.numpy()]
    u = noise.uniform((4,), stream="user", dtype=torch.float64).numpy()
    drawn = scenes[(u[:, 0] * len(scenes)).astype(int)]
    palette = np.array(list(COLOURS.values()))
    halves = []
    for side in range(2):
        digit, colour = drawn[:, 2 * side], palette[drawn[:, 2 * side + 1]]
        choices = [np.flatnonzero(labels == k) for k in range(10)]
        image = [choices[k][int(v * len(choices[k]))] for k, v in zip(digit, u[:, 1 + side], strict=True)]
        halves.append(grey[image][:, None] * colour[:, :, None, None])
    x = np.round(255 * np.concatenate(halves, 3)).astype(np.uint8)
    text = [_caption(scene, bool(v < 0.5)) for scene, v in zip(drawn.tolist(), u[:, 3], strict=True)]
    return x, np.array(text)


def _caption(scene: list[int], from_left: bool) -> str:
    """Describe a scene, starting with the left digit if ``from_left`` is true, else with the right digit."""
    names = tuple(COLOURS)
    left, right = (f"a {names[colour]} {DIGITS[digit]}" for digit, colour in (scene[:2], scene[2:]))
    return f"{left} left of {right}" if from_left else f"{right} right of {left}"
