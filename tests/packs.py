"""Folders of small pictures, and whether two data sets are the same in all that training sees."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scoresde.core.noise import keyed
from scoresde.data import Dataset, Reading
from scoresde.data.batch import Batches, Rows

CROP = Reading(size=6, fit="crop")


def png(seed: int, *shape: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def pictures(folder: Path, n: int = 90, parts: tuple[str, ...] = ("",), odd: bool = True) -> Path:
    """Pictures in classes, a few of them grey, transparent, of another size or equal to another."""
    for i in range(n):
        shape = (6, 6, 3) if not odd or i % 7 else ((6, 6), (6, 6, 4), (9, 7, 3))[i // 7 % 3]
        path = folder / parts[i % len(parts)] / ("cat", "dog/2019", "dog/2020/summer")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i if i != 5 else 4, *shape))
    return folder


def same(ours: Dataset, theirs: Dataset) -> None:
    """The same rows in the same order, split and described in the same way."""
    for x, y in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert x.dtype == y.dtype and torch.equal(x[torch.arange(len(x))], y[torch.arange(len(y))])
    for name in ("train_labels", "test_labels", "validates"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None and b is None) or torch.equal(a, b)
    assert ours.identity.compared(theirs.identity) == ("same", 0, 0) and ours.codec == theirs.codec
    for name in ("kind", "shape", "classes", "n_train", "n_test", "levels", "trained"):
        assert getattr(ours.info, name) == getattr(theirs.info, name)
    one, other = (Batches(Rows(data.train, data.codec, data.train_labels, 2), 8, 1) for data in (ours, theirs))
    for step in (0, 5, 10**6):
        a, b = (of.at(step, keyed(1, step), torch.float32) for of in (one, other))
        assert torch.equal(a.x0, b.x0)
        assert (a.condition is None and b.condition is None) or torch.equal(a.condition.label, b.condition.label)
