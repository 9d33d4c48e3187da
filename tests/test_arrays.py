"""Arrays by name: which is the data, which the labels, and what is refused because it could be either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scoresde.core.errors import DataError
from scoresde.data.arrays import read_numpy, roles

X = np.random.default_rng(0).normal(size=(20, 3))
Y = np.arange(20) % 3


def saved(folder: Path, **arrays: object) -> Path:
    path = folder / "a.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("x", ["x", "X", "images", "data", "samples", "features", "arr_0", "x_train", "train_images"])
@pytest.mark.parametrize("y", ["y", "labels", "target", "arr_1", "y_train", "train_labels"])
def test_the_usual_names(tmp_path: Path, x: str, y: str) -> None:
    found = read_numpy(saved(tmp_path, **{x: X, y: Y}))
    assert np.array_equal(found.train, X.astype(np.float32)) or np.array_equal(found.train, X)
    assert found.train_labels.tolist() == Y.tolist() and found.classes == ("0", "1", "2") and found.notes == ()


def test_a_file_with_both_parts(tmp_path: Path) -> None:
    for names in (("x_train", "y_train", "x_test", "y_test"),
                  ("train_images", "train_labels", "test_images", "test_labels")):  # fmt: skip
        path = saved(tmp_path, **dict(zip(names, (X[:15], Y[:15], X[15:], Y[15:]), strict=True)), val_images=X)
        found = read_numpy(path)
        assert len(found.train) == 15 and len(found.test) == 5 and found.test_labels.tolist() == Y[15:].tolist()
        assert found.notes == ("the array val_images is left out",)


def test_samples_as_they_are_published(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images, Y)
    found = read_numpy(tmp_path / "a.npz")
    assert found.kind == "image" and np.array_equal(found.train, images.transpose(0, 3, 1, 2))
    assert found.train_labels.tolist() == Y.tolist()
    np.savez(tmp_path / "a.npz", images, images[:4])
    with pytest.raises(DataError, match="which of arr_0 and arr_1 holds the data"):
        read_numpy(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X, "images": X}, "which of x and images holds the data"),
        ({"x": X, "X": X}, "which of x and X holds the data"),
        ({"x": X, "x_train": X}, "which of x and x_train holds the data"),
        ({"x": X, "y": Y, "labels": Y}, "which of y and labels holds the labels"),
        ({"x": X, "x_test": X}, "has both x and x_test; if x holds only the training data, rename it to x_train"),
        ({"mu": X, "sigma": X}, r"unclear which array holds the data \(arrays found: mu, sigma\)"),
        ({"y": Y}, r"unclear which array holds the data \(arrays found: y\)"),
    ],
)
def test_what_could_be_either_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_numpy(saved(tmp_path, **arrays))


def test_one_array_needs_no_name(tmp_path: Path) -> None:
    assert roles("a", {"mine": X, "y": Y}) == {"x": "mine", "y": "y"}
    found = read_numpy(saved(tmp_path, x=X, index=Y, mu=X))
    assert found.train.shape == (20, 3) and found.notes == ("the arrays index, mu are left out",)


@pytest.mark.parametrize(
    "y", [np.linspace(0, 1, 20), X, np.arange(20.0), np.full(20, np.nan), np.float64(3)],
    ids=["one", "several", "whole but many", "missing", "a number"],
)  # fmt: skip
def test_targets_that_are_no_classes_are_left_out(tmp_path: Path, y: np.ndarray) -> None:
    found = read_numpy(saved(tmp_path, x=X, y=y))
    assert found.train_labels is None and found.train.shape == (20, 3)
    assert found.notes[0].startswith("y holds numbers, not classes; such labels are left out")
    both = read_numpy(saved(tmp_path, x_train=X, x_test=X, y_train=Y, y_test=np.linspace(0, 1, 20)))
    assert both.train_labels is None and both.test_labels is None
    assert both.notes[0].startswith("y_train and y_test hold numbers")


def test_floats_that_are_classes(tmp_path: Path) -> None:
    assert read_numpy(saved(tmp_path, x=X, y=Y.astype(float)[:, None])).classes == ("0", "1", "2")
    with pytest.raises(DataError, match=r"has shape \(20, 3\) for 20 samples"):
        read_numpy(saved(tmp_path, x=X, y=np.eye(3, dtype=int)[Y]))
