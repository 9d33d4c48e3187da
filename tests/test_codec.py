"""Codecs: maps that can be undone, log-determinants against autograd, and files that name no code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde.codec import Affine, Codec, Composed, Levels, as_affine, digest, from_dict, to_dict
from scoresde.core.errors import CheckpointError, DataError, UsageError

LEVELS = [(0, 255, 256), (0, 16, 17), (-3, 4, 8), (0, 65535, 65536), (0, 1, 5)]


def affine(shift: Any, scale: Any) -> Affine:
    return Affine(torch.tensor(shift, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def centred(low: float, high: float, count: int) -> Composed:
    """Levels, and the map of their cells to [-1, 1)."""
    half = (high - low) / (count - 1) * count / 2
    return Composed((Levels(low, high, count), affine(low + half, half)))


@dataclass(frozen=True)
class Logit(Codec):
    """A curved map, m = log(x / (1 - x))."""

    def to_model(self, x: Tensor, condition: object = None, noise: Tensor | None = None) -> Tensor:
        return x.logit()

    def to_data(self, m: Tensor, condition: object = None) -> Tensor:
        return m.sigmoid()

    def log_det(self, x: Tensor, condition: object = None) -> Tensor:
        return -(x.log() + (1 - x).log()).flatten(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_trip_keeps_the_dtype(dtype: torch.dtype) -> None:
    codec = affine([1.0, -3.0], [2.0, 0.5])
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    m = codec.to_model(x)
    assert m.dtype == codec.to_data(m).dtype == dtype
    torch.testing.assert_close(codec.to_data(m), x)
    torch.testing.assert_close(codec.to_model(torch.tensor([[3.0, -2.5]])), torch.tensor([[1.0, 1.0]]))
    assert codec.to_model(torch.tensor([[3, -3]])).dtype == torch.float32


@pytest.mark.parametrize(
    "codec",
    [
        affine([[2.0], [5.0]], [[2.0], [5.0]]),
        Composed((affine(0.5, 4.0), affine(-0.5, [[0.3], [2.0]]))),
        Composed((affine(-9.0, 20.0), Logit(), affine(0.0, 3.0))),
        Composed(),
    ],
    ids=["affine", "two", "curved", "empty"],
)
def test_log_det_is_the_determinant_of_the_map(codec: Codec) -> None:
    x = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: codec.to_model(x).flatten(1), x)
    blocks = torch.stack([jacobian[i, :, i].reshape(8, 8) for i in range(3)])
    found = torch.as_tensor(codec.log_det(x), dtype=torch.float64).expand(3)
    torch.testing.assert_close(found, torch.linalg.slogdet(blocks)[1])
    torch.testing.assert_close(codec.to_data(codec.to_model(x)), x)
    assert codec.dims(x) == 8


@pytest.mark.parametrize(
    ("shift", "scale", "words"), [(0.0, 0.0, "positive"), (math.nan, 1.0, "finite"), (0.0, [1.0, -2.0], "positive")]
)
def test_what_is_not_an_affine_map(shift: Any, scale: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        affine(shift, scale)


def test_an_affine_map_of_plain_numbers() -> None:
    assert Affine(0.0, 256.0) == affine(0.0, 256.0)
    assert Affine([1, 2], (3, 4)) == affine([1.0, 2.0], [3.0, 4.0])
    assert from_dict(to_dict(Composed((Levels(0, 255, 256), Affine(0, 256))))).parts[1].scale.dtype == torch.float64
    x = torch.tensor([[0.0, 128.0]])
    assert Affine(0.0, 256.0).to_model(x).tolist() == [[0.0, 0.5]]
    with pytest.raises(DataError, match="positive"):
        Affine(0.0, 0)


@pytest.mark.parametrize(("low", "high", "count"), LEVELS)
def test_levels_come_back_from_anywhere_in_their_cell(low: float, high: float, count: int) -> None:
    codec = centred(low, high, count)
    width = (high - low) / (count - 1)
    assert codec.levels == Levels(low, high, count) and codec.levels.width == width
    x = (low + width * torch.arange(count, dtype=torch.float64))[:, None]
    for u in (0.0, 0.5, 1 - 2**-24):
        for dtype in (torch.float32, torch.float64):
            noise = torch.full((count, 1), u, dtype=dtype)
            assert torch.equal(codec.levels.to_data(codec.levels.to_model(x, noise=noise)).double(), x)
            m = codec.to_model(x, noise=noise)
            assert m.dtype == dtype and m.min() >= -1 and m.max() < 1
            if u == 0.5:  # on the edge of a cell, rounding may carry a value to the next one
                assert torch.equal(codec.to_data(m).double(), x)
    outside = torch.tensor([[low - 9.0], [high + 9.0]])
    assert codec.levels.to_data(outside).flatten().tolist() == [low, high]
    assert codec.log_det(x) == pytest.approx(math.log(width) - math.log(count * width / 2))


@pytest.mark.parametrize(("low", "high", "count"), [(0, 0, 2), (0, 1, 1), (1, 0, 2), (0, math.inf, 2)])
def test_what_are_no_levels(low: float, high: float, count: int) -> None:
    with pytest.raises(DataError, match="levels from"):
        Levels(low, high, count)


def test_parts_of_a_codec() -> None:
    levels, one, two = Levels(0.0, 7.0, 8), affine(0.0, 2.0), affine(1.0, 1.0)
    assert Composed((levels, one)).continuous == one and one.continuous == one
    assert Composed((levels, one, two)).continuous == Composed((one, two)) and Composed((one, two)).levels is None
    nested = Composed((Composed((levels, one)), two))
    assert nested == Composed((levels, one, two)) and nested.continuous == Composed((one, two))
    with pytest.raises(UsageError, match="must come first"):
        Composed((one, levels))
    with pytest.raises(UsageError, match=r"a chart requires a codec that only shifts and scales the data.*Logit"):
        as_affine(Composed((levels, Logit())), "a chart")


def test_a_codec_from_its_file() -> None:
    for codec in (affine(1.0, 2.0), centred(0, 16, 17), Composed((centred(0, 3, 4), affine([1.0], [2.0]))), Composed()):
        again = from_dict(to_dict(codec))
        assert to_dict(again) == to_dict(codec) and digest(again) == digest(codec)
    x = torch.tensor([[3.0]])
    assert torch.equal(from_dict(to_dict(centred(0, 16, 17))).to_model(x), centred(0, 16, 17).to_model(x))
    assert len({digest(affine(0.0, s)) for s in (1.0, 2.0, math.nextafter(1.0, 2.0))}) == 3


@pytest.mark.parametrize(
    "stored",
    [
        3,
        [3],
        [{"name": "affine"}],
        [{"name": "affine", "options": {"shift": 0.0}}],
        [{"name": "affine", "options": {"shift": 0.0, "scale": "x"}}],
        [{"name": "affine", "options": {"shift": 0.0, "scale": 0.0}}],
        [{"name": "levels", "options": {"low": 0, "high": 1, "count": 1}}],
        [{"name": "os:system", "options": {}}],
        [{"name": "afine", "options": {}}],
    ],
    ids=str,
)
def test_a_file_that_describes_no_codec(stored: Any) -> None:
    with pytest.raises(CheckpointError):
        from_dict(stored)
