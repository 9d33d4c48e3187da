"""A folder with small data and a small trained run on each: what commands are tried on, copied for each case."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from pathlib import Path

import forks
import numpy as np
import pytest
from PIL import Image

from scoresde import TrainConfig, fit

__all__ = ["CONFIGS", "copied", "empty", "make_data", "make_stock"]

MLP = {"width": 8, "blocks": 1}
CONFIGS = {
    "photos": TrainConfig(data="photos", steps=4, batch=8, cond="class", network_options={"channels": 4}),
    "points": TrainConfig(data="points.npy", steps=4, batch=8, network_options=MLP),
    "table": TrainConfig(data="table.csv", steps=4, batch=8, network_options=MLP),
}


def make_data(folder: Path) -> None:
    """Pictures of two classes, points, labelled pictures in an array, a table, and digits as MNIST has them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8), dtype=np.uint8)
    labels = np.arange(24, dtype=np.uint8) % 2
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / "photos" / ("cat", "dog")[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    points = rng.normal(size=(120, 2))
    np.save(folder / "points.npy", points)
    np.savez_compressed(folder / "labelled.npz", x=images[:, None], y=labels)
    counts = rng.integers(0, 5, 120)
    rows = [f"{a:.6f},{b:.6f},{n}" for (a, b), n in zip(points, counts, strict=True)]
    text = "\n".join(["width,height,count", *rows]) + "\n"
    (folder / "table.csv").write_text(text, encoding="utf-8")
    (folder / "table.tsv").write_text(text.replace(",", "\t"), encoding="utf-8")
    (folder / "table.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    idx = folder / "idx"
    idx.mkdir()
    header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
    (idx / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (idx / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + labels.tobytes(), mtime=0)
    )
    for suffix in ("jpg", "bmp", "tif", "webp", "gif"):
        file = folder / "kinds" / suffix / f"a.{suffix}"
        file.parent.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(images[i]).resize((12, 12)).save(file.with_stem(f"{suffix}{i}"))
    (folder / "afile").write_text("a file\n")


def make_stock(folder: Path) -> Path:
    """Make the data, and train a run on each of three."""
    make_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, config in CONFIGS.items():
            fit(config, out=Path("runs") / name, quiet=True)
    return folder


def empty(folder: Path) -> Path:
    """A folder with nothing in it."""
    folder.mkdir()
    return folder


def copied(stock: Path, home: Path, special: bool = False) -> Path:
    """A copy that belongs to whoever the forks are; ``special``: with what is no file beside it."""
    shutil.copytree(stock, home, symlinks=True)
    if special:
        os.mkfifo(home / "fifo")
        (home / "loop").symlink_to("loop")
        (home / "locked").mkdir()
    forks.handed(home)
    if special:
        (home / "locked").chmod(0o555)
    return home
