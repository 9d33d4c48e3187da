"""A small classifier that is trained on the labels of a data set and provides features for comparing samples.

The classifier can also be used to check the classes of samples. It is trained with the cross-entropy loss on the
training split in model units. During training, a small amount of Gaussian noise is added to every sample, so that the
features do not depend on individual pixels. The seed determines all random draws. The features are the values of the
last hidden layer, scaled to a mean square of 1 on the training split. The accuracy is measured on the held-out split,
and its standard error is binomial.

A *noisy* classifier is trained on samples with any amount of noise, to guide a model during sampling (classifier
guidance; Dhariwal and Nichol 2021, arXiv:2105.05233). It receives the states in the straight frame of any path,
y = (1 - r) x_0 + r eps, and their noise level r (:mod:`scoresde.sde.base`), so it does not depend on the path.

The weights are stored in ``classifier.safetensors``, and everything else in ``classifier.json``. Loading these files
does not execute code.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
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
from ..core.shapes import align, expand
from ..data import DataInfo, Dataset
from ..data.batch import Batch, Batches, Rows
from ..data.dataset import old_codec
from ..data.rows import pieces
from ..guidance.steered import Potential
from ..model.estimate import Estimate
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
        noisy: Whether to train on samples with any amount of noise. ``noise`` is then ignored.
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
    noisy: bool = False


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

    def potential(self, label: int) -> Potential:
        """Return the function log p(label | x_t), with which :meth:`scoresde.Run.steered` guides a model.

        Args:
            label: The index of the class.

        Raises:
            UsageError: If the classifier was not trained on noisy samples, or there is no such class.
        """
        if not self.config.noisy:
            raise UsageError(
                "a classifier that guides a model must have been trained on noisy samples, but this one was not; train "
                "it with noisy=True",
                parameter="noisy",
            )
        if not 0 <= label < len(self.info.classes):
            raise UsageError(f"there is no class {label}; the classifier has {len(self.info.classes)} classes")

        return ClassPotential(self.network, label)

    def _encode(self, x: Tensor) -> Tensor:
        scale, x = self.network.scale, x.double()
        half = torch.full_like(x, 0.5) if self.config.noisy else None
        m = self.codec.units.to_model(x) if half is None else self.codec.to_model(x, noise=half)
        return m.to(device=scale.device, dtype=scale.dtype)

    def save(self, folder: Path) -> list[Path]:
        """Write the classifier to two files in ``folder``, which is created if needed. Return their paths."""
        facts = {
            "format": FORMAT, "data": self.info.to_dict(), "codec": to_dict(self.codec), "config": asdict(self.config),
            "accuracy": self.accuracy, "held_out": self.held_out, "sha256": self.digest,
        }  # fmt: skip
        make_folder(folder)
        weights = write_tensors(folder / WEIGHTS, self.network.state_dict())
        known = facts | ({} if self.held_out else {"accuracy": None})
        return [weights, write_json(folder / FACTS, known, signed=True)]


@dataclass(frozen=True, eq=False)
class ClassPotential:
    """The function log p(label | x_t) of a noisy classifier."""

    network: Classifier
    label: int

    def __call__(self, estimate: Estimate) -> Tensor:
        """Return the log-probability of the class for each state, ``(B,)``."""
        alpha, sigma = estimate.sde.coefficients(estimate.t)
        scale, weight = alpha + sigma, self.network.scale
        y = (estimate.x / expand(scale, estimate.x)).to(weight.dtype)
        r = (sigma / scale).expand(len(y))
        found: Tensor = functional.log_softmax(self.network(y, r.to(weight)), 1)[:, self.label]
        return found.to(estimate.x)


class CrossEntropy(Objective):
    """The cross-entropy loss, in nats, for predicting the classes of noisy rows."""

    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        assert draws.condition is not None and draws.condition.label is not None
        if draws.t is None:
            return functional.cross_entropy(model(batch.x0 + draws.eps), draws.condition.label, reduction="none")
        y = torch.lerp(batch.x0, draws.eps, align(draws.t.to(batch.x0), batch.x0))
        return functional.cross_entropy(model(y, draws.t), draws.condition.label, reduction="none")


@dataclass(frozen=True)
class LevelDraw(NoiseDraw):
    """A :class:`~scoresde.objective.draw.Draw` of standard normal noise and of noise levels, uniform in [0, 1)."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Draws:
        drawn = super().__call__(batch, generator)
        return replace(drawn, t=torch.rand(len(batch), generator=generator, dtype=torch.float64))


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
        network = Classifier(info.shape, len(info.classes), config.width, levels=config.noisy)
    network.to(device=device, dtype=dtype)
    optimiser = torch.optim.Adam(network.parameters(), config.lr, fused=True)
    state = TrainState(network, optimiser, LevelDraw(1.0) if config.noisy else NoiseDraw(config.noise))
    # A noisy classifier sees what a model sees: levels that are spread over their cells.
    rows = Rows(data.train, data.codec if config.noisy else data.codec.continuous, labels, len(info.classes))
    # A batch larger than the data would only repeat rows. Only the default batch size is allowed to be larger.
    batches = Batches(rows, min(config.batch, max(len(rows), ClassifierConfig.batch)), config.seed)
    for record in steps(state, CrossEntropy(), batches, config.steps, seed=config.seed, rate=lambda n: config.lr):
        if on_step is not None:
            on_step(record.step, record.loss)
    network.eval().requires_grad_(False)
    trained = TrainedClassifier(network, info, data.codec, config, math.nan, 0)
    with torch.no_grad():
        squares = [trained.features(part).double().square().sum() for part in pieces(data.train, 1024)]
        network.scale.copy_((torch.stack(squares).sum() / (len(data.train) * config.width)).sqrt())
        if data.test_labels is None:
            return trained
        seen = torch.cat([trained(part).argmax(1).cpu() for part in pieces(data.test, 1024)])
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
        network = Classifier(info.shape, len(info.classes), config.width, levels=config.noisy)
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
    """Compute the SHA-256 digest of the weights (names, dtypes, shapes and bytes), sorted by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()
