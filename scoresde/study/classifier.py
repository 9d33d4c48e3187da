"""A small classifier that is trained on the labels of a data set and provides features for comparing samples.

The classifier can also be used to check the classes of samples. It is trained with the cross-entropy loss on the
training split in model units. During training, a small amount of Gaussian noise is added to every sample, so that the
features do not depend on individual pixels. The seed determines all random draws. The features are the values of the
last hidden layer, scaled to a mean square of 1 on the training split. The accuracy is measured on the held-out split,
and its standard error is binomial.

The weights are stored in ``classifier.safetensors``, and everything else in ``classifier.json``. Loading these files
does not execute code.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..codec import Codec, from_dict, to_dict
from ..core.errors import CheckpointError, DataError, UsageError
from ..core.files import (
    FORMAT,
    check_format,
    make_folder,
    read_object,
    read_tensors,
    was_changed,
    write_json,
    write_tensors,
)
from ..core.limits import COUNT, LR, SEED, TRAINED, Checked, Range, ranges
from ..data import DataInfo, Dataset
from ..data.batch import Batch, Batches, Rows
from ..data.dataset import old_codec
from ..nn import Classifier
from ..objective.draw import Draws, NoiseDraw
from ..objective.loss import Objective
from ..run.files import load_weights
from ..train.state import TrainState, keyed_rng, steps

__all__ = ["ClassifierConfig", "TrainedClassifier", "load_classifier", "train_classifier", "weights_digest"]

WEIGHTS, FACTS = "classifier.safetensors", "classifier.json"


@dataclass(frozen=True)
class ClassifierConfig(Checked):
    """Training settings of a classifier.

    Attributes:
        steps: Number of training steps.
        batch: Batch size, which is limited to the number of rows or to 128, whichever is larger.
        lr: Learning rate of Adam.
        noise: Standard deviation of the noise added to every sample, in model units.
        width: Number of features.
        seed: Seed for the weights, the batches and the noise.
    """

    limits = ranges(
        steps=TRAINED, batch=COUNT, lr=LR, noise=Range(0, 1e6), width=Range(1, 100_000), seed=SEED
    )  # fmt: skip

    steps: int = 600
    batch: int = 128
    lr: float = 2e-3
    noise: float = 0.1
    width: int = 64
    seed: int = 0


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A trained classifier that takes events in data units.

    Attributes:
        network: The network, in evaluation mode.
        info: Description of the training data.
        codec: The map from data units to the units of the network.
        config: The training settings.
        accuracy: Fraction of the held-out samples that are classified correctly, or NaN if these samples have no
            labels.
        held_out: Number of held-out samples with labels.
    """

    network: Classifier
    info: DataInfo
    codec: Codec
    config: ClassifierConfig
    accuracy: float
    held_out: int

    @property
    def stderr(self) -> float:
        """Standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.held_out) if self.held_out else math.nan

    @property
    def digest(self) -> str:
        """The SHA-256 digest of the weights, as 64 hexadecimal digits."""
        return weights_digest(self.network.state_dict())

    def features(self, x: Tensor) -> Tensor:
        """Compute the values of the last hidden layer, ``(B, width)``, for events ``(B, *event)`` in data units.

        The result has the dtype of the weights.
        """
        return self.network.features(self._encode(x))

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the logits ``(B, classes)`` for events ``(B, *event)`` in data units.

        The result has the dtype of the weights.
        """
        out: Tensor = self.network(self._encode(x))
        return out

    def _encode(self, x: Tensor) -> Tensor:
        scale = self.network.scale
        return self.codec.continuous.to_model(x.double()).to(device=scale.device, dtype=scale.dtype)

    def save(self, folder: Path) -> list[Path]:
        """Write the classifier to two files in ``folder``, and return the paths of the files.

        The folder is created if needed.
        """
        facts = {
            "format": FORMAT, "data": self.info.to_dict(), "codec": to_dict(self.codec), "config": asdict(self.config),
            "accuracy": self.accuracy, "held_out": self.held_out, "sha256": self.digest,
        }  # fmt: skip
        make_folder(folder)
        weights = write_tensors(folder / WEIGHTS, self.network.state_dict())
        known = facts | ({} if self.held_out else {"accuracy": None})
        return [weights, write_json(folder / FACTS, known, signed=True)]


class CrossEntropy(Objective):
    """The cross-entropy loss, in nats, for predicting the classes of noisy rows."""

    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        assert draws.condition is not None and draws.condition.label is not None
        return functional.cross_entropy(model(batch.x0 + draws.eps), draws.condition.label, reduction="none")


def train_classifier(
    data: Dataset,
    config: ClassifierConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainedClassifier:
    """Train a classifier on the labels of a data set.

    Args:
        data: The data, with labels of shape ``(n,)``.
        config: The training settings. With the default settings, training on the digits takes a few seconds.
        device, dtype: Device and floating-point type of the network.
        on_step: Called after each step with the number of completed steps and the loss in nats.

    Raises:
        UsageError: If the data have no labels, or fewer than two classes.
    """
    config = config or ClassifierConfig()
    info, labels = data.info, data.train_labels
    if labels is None or len(info.classes) < 2:
        raise UsageError(
            f"a classifier requires labels with at least 2 classes, but {info.name} has "
            f"{'no labels' if labels is None else len(info.classes)}"
        )
    with keyed_rng(config.seed, -1, "cpu"):
        network = Classifier(info.shape, len(info.classes), config.width)
    network.to(device=device, dtype=dtype)
    optimiser = torch.optim.Adam(network.parameters(), config.lr)
    state = TrainState(network, optimiser, NoiseDraw(config.noise))
    rows = Rows(data.train, data.codec.continuous, labels, len(info.classes))
    # A batch larger than the data would only repeat rows. Only the default batch size is allowed to be larger.
    batches = Batches(rows, min(config.batch, max(len(rows), ClassifierConfig.batch)), config.seed)
    for record in steps(state, CrossEntropy(), batches, config.steps, seed=config.seed, rate=lambda n: config.lr):
        if on_step is not None:
            on_step(record.step, record.loss)
    network.eval().requires_grad_(False)
    trained = TrainedClassifier(network, info, data.codec, config, math.nan, 0)
    with torch.no_grad():
        squares = [trained.features(part).double().square().sum() for part in torch.split(data.train, 1024)]
        network.scale.copy_((torch.stack(squares).sum() / (len(data.train) * config.width)).sqrt())
        if data.test_labels is None:
            return trained
        seen = torch.cat([trained(part).argmax(1).cpu() for part in torch.split(data.test, 1024)])
    accuracy = float((seen == data.test_labels).double().mean())
    return TrainedClassifier(network, info, data.codec, config, accuracy, len(data.test_labels))


def load_classifier(folder: Path, device: torch.device | str = "cpu", *, edited: bool = False) -> TrainedClassifier:
    """Load a classifier written by :meth:`TrainedClassifier.save`, without executing code from the folder.

    Args:
        folder: The folder of the classifier.
        device: Device of the network.
        edited: Whether to accept ``classifier.json`` even if it was edited after it was written.

    Raises:
        CheckpointError: If the folder does not contain a classifier, if its files are damaged, or if
            ``classifier.json`` was edited and ``edited`` is not set.
    """
    path = folder / FACTS
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} does not contain a classifier ({FACTS} is missing); train a classifier and save it there",
            parameter="train_classifier",
        )
    if not edited and was_changed(path):
        raise CheckpointError(
            f"{path} was changed after it was written (its content does not match its checksum); restore the original, "
            "or confirm that it was edited on purpose",
            parameter="edited",
        )
    facts = read_object(path)
    check_format(path, facts)
    try:
        info, config = DataInfo.from_dict(facts["data"]), ClassifierConfig(**facts["config"])
        codec = from_dict(facts["codec"]) if "codec" in facts else old_codec(facts["data"])  # format 1
        accuracy, held_out, digest = facts["accuracy"], int(facts["held_out"]), facts["sha256"]
        accuracy = math.nan if accuracy is None else float(accuracy)
        network = Classifier(info.shape, len(info.classes), config.width)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, DataError, UsageError) as error:
        raise CheckpointError(f"{path} does not describe a classifier: {error}") from None
    tensors = read_tensors(folder / WEIGHTS)
    if not tensors:
        raise CheckpointError(f"{folder / WEIGHTS} does not contain any weights; the file may be damaged")
    load_weights(network.to(next(iter(tensors.values())).dtype), tensors, folder / WEIGHTS)
    network.to(device).eval().requires_grad_(False)
    trained = TrainedClassifier(network, info, codec, config, accuracy, held_out)
    if trained.digest != digest:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not match the SHA-256 digest in {FACTS}; the file may be damaged"
        )
    return trained


def weights_digest(tensors: Mapping[str, Any]) -> str:
    """Compute the SHA-256 digest of the names, dtypes, shapes and bytes of the weights, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()
