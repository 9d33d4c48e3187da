"""Feature extractors for comparing samples with data.

An extractor maps each event (one sample, or one row of the data) in data units to a feature vector.

===================  ============================================================================
name                 features
===================  ============================================================================
``pixels``           the values of the event in model units, flattened
``classifier``       the last hidden layer of a small classifier (:mod:`scoresde.study.classifier`)
``inception``        the 2,048 features of the network that published Fréchet distances use (FID)
``module:function``  a user-defined map from events ``(B, *event)`` in data units to ``(B, d)``
===================  ============================================================================

Distances between samples and data depend on the features. Every extractor therefore has a *hash* of its weights, its
options and the map from data units to model units. For a function, the hash covers the source file that defines the
function, but not any weights that the function reads. An extractor also records how it *resizes* its input. A
:class:`Reference` contains the statistics of real data together with the hash and the resizing, and rejects features
from any other extractor.

References:
    Heusel et al. (2017), arXiv:1706.08500: the Inception features.
    Parmar, Zhang and Zhu (2022), On aliased resizing and surprising subtleties in GAN evaluation, arXiv:2104.11222: why
    a Fréchet distance depends on how images are resized.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec import Codec, to_dict
from ..core.errors import CheckpointError, DataError, UsageError
from ..core.files import read_metadata, read_tensors, write_tensors
from ..core.opened import file_digest, read_arrays, read_bytes, reason
from ..core.registry import resolve
from ..data import DataInfo, Dataset
from ..metrics import Moments
from .classifier import TrainedClassifier, load_classifier, train_classifier

__all__ = [
    "Extractor", "Reference", "classifier_features", "extractor_by_name", "function_features", "inception", "pixels",
    "read_features",
]  # fmt: skip

ENOUGH = 20  # approximate number of training samples per class that a classifier requires

# The file of weights published by torch-fidelity. Its name ends with the first digits of its SHA-256 digest.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
FEATURES = ("auto", "pixels", "classifier[:FOLDER]", "inception[:FILE]", "FILE.npz", "module:function")
# A reference of at most this many numbers (64 MB) keeps its features; a larger reference keeps only moments.
STORED = 2**24


@dataclass(frozen=True, eq=False)
class Extractor:
    """A named map from events to features.

    Attributes:
        name: Name of the features, as shown to users.
        hash: Sixteen hexadecimal digits that change whenever the extractor changes.
        resize: Description of how the extractor resizes its input, or ``"none"``.
        function: The map from events ``(B, *event)`` in data units to features ``(B, d)``.
    """

    name: str
    hash: str
    resize: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, batch: int = 64) -> Tensor:
        """Compute the features ``(N, d)`` of events ``(N, *event)`` in data units.

        The features are floating-point numbers on the CPU. Events are processed in batches of at most ``batch``.

        Raises:
            UsageError: If the function does not return a tensor with one row of features per event.
        """
        found = []
        with torch.no_grad():
            for part in torch.split(x, batch):
                features = self.function(part)
                if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(part):
                    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                    raise UsageError(
                        f"features {self.name}: for events of shape {tuple(part.shape)}, the function must return a "
                        f"tensor of shape ({len(part)}, d), got {shape}"
                    )
                found.append(features.detach().cpu())
        features = torch.cat(found)
        return features if features.is_floating_point() else features.double()


def pixels(codec: Codec) -> Extractor:
    """Build an extractor that converts events ``(B, *event)`` to model units and returns them as float32 ``(B, D)``."""
    return Extractor(
        "pixels",
        _hash("pixels", _units(codec)),
        "none",
        # Converting to float64 first gives a level the same value for every input dtype.
        lambda x: codec.units.to_model(x.double()).flatten(1).float(),
    )


def classifier_features(classifier: TrainedClassifier, info: DataInfo) -> Extractor:
    """Build an extractor whose features, ``(B, width)``, are the last hidden layer of a trained classifier.

    Raises:
        UsageError: If the classifier was trained on data of a different shape.
    """
    if classifier.info.shape != info.shape:
        raise UsageError(
            f"the classifier was trained on {classifier.info.name} with shape {classifier.info.shape}, but {info.name} "
            f"has shape {info.shape}; train another classifier on these data",
            parameter="train_classifier",
            value=info.source,
        )
    digest = _hash("classifier", classifier.digest, _units(classifier.codec))
    return Extractor("classifier", digest, "none", classifier.features)


def function_features(name: str) -> Extractor:
    """Build an extractor from the user-defined function ``module:function``.

    The function maps events ``(B, *event)`` in data units to features ``(B, d)``.

    Raises:
        UsageError: If the function does not exist, or has no source file.
    """
    function = resolve(name, {}, "features", typed=True, function=True)
    try:
        source = read_bytes(inspect.getsourcefile(inspect.unwrap(function)) or "")
    except (TypeError, OSError):
        raise UsageError(
            f"features {name}: the function has no source file to hash; use a function from a .py file"
        ) from None
    return Extractor(name, _hash("function", name, hashlib.sha256(source).hexdigest()), "its own", function)


def inception(info: DataInfo, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """Build an extractor that maps images ``(B, C, H, W)`` to the pool features of Inception v3, ``(B, 2048)``.

    These are the features that published Fréchet distances use.

    Args:
        info: Description of the images, which must have 1 or 3 channels. Values are scaled from the data range to
            bytes.
        weights: The weights file published by torch-fidelity (default: the copy in the torch.hub folder). Nothing is
            downloaded.
        device: Device to compute on.

    Raises:
        UsageError: If the extra ``fid`` is not installed, the weights file is missing or contains other weights, or the
            data are not images with 1 or 3 channels.
    """
    if info.kind != "image" or info.shape[0] not in (1, 3):
        raise UsageError(
            f"Inception features: the data must be images with 1 or 3 channels, but {info.name} contains {info.kind}s "
            f"of shape {info.shape}; use other features, such as pixels"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Inception features: {error.name} is not installed; run pip install 'scoresde[fid]', or use other "
            "features (pixels, classifier or module:function)"
        ) from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION if weights is None else weights
    expected = INCEPTION.rpartition("-")[2].removesuffix(".pth")
    if not os.path.isfile(path):
        raise UsageError(
            f"Inception features: {path} does not exist; download {INCEPTION_URL} to this path, or use inception:FILE "
            "with the path to the weights"
        )
    # Check the file before loading it, because it could contain code, and because only these weights give comparable
    # values.
    digest = file_digest(path)
    if not digest.startswith(expected):
        raise UsageError(
            f"Inception features: {path} does not contain the expected weights; its SHA-256 digest must begin with "
            f"{expected}, got {digest[:8]}; download the file again"
        )
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    network = network.to(device).eval()

    def function(x: Tensor) -> Tensor:
        unit = (x.double() - info.low) / (info.high - info.low)
        image = (255 * unit).round().clamp(0, 255).to(torch.uint8)
        found: Tensor = network(image.expand(-1, 3, -1, -1).to(device))[0]
        return found

    return Extractor("inception", _hash("inception", digest), "bilinear 299 (TensorFlow 1)", function)


def read_features(path: Path) -> dict[str, Tensor]:
    """Read features from an ``.npz`` file, and return them keyed by array name.

    The file must contain the arrays ``samples`` and ``reference``, and may contain ``train``. Each array has shape
    ``(N, d)``, where d is the same for all arrays.

    Raises:
        DataError: If the file cannot be read, a required array is missing, or an array has the wrong shape.
    """
    try:
        found = {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {reason(error)}") from None
    lacking = sorted({"samples", "reference"} - set(found))
    if lacking:
        raise DataError(
            f"{path} must contain the arrays 'samples' and 'reference', and may contain 'train' for the check for "
            f"copies, got {', '.join(map(repr, sorted(found))) or 'no arrays'}"
        )
    for name, array in found.items():
        if array.ndim != 2 or array.shape[1] != found["samples"].shape[1]:
            raise DataError(
                f"{path}: features must have shape (N, d) with the same d for all arrays, but the array {name!r} has "
                f"shape {tuple(array.shape)}"
            )
    return found


def extractor_by_name(
    spec: str,
    data: Dataset,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    told: Callable[[str], None] | None = None,
    edited: bool = False,
) -> Extractor:
    """Build the extractor with the given name.

    Args:
        spec: ``pixels``, ``classifier``, ``classifier:FOLDER``, ``inception``, ``inception:FILE`` or
            ``module:function``. The name ``auto`` selects ``classifier`` if the data are labelled images, volumes or
            signals, there are enough samples per class, and the classifier is better than chance. Otherwise, it selects
            ``pixels``.
        data: The data to compare with.
        folder: The folder of the classifier. If the folder does not contain a classifier, one is trained and saved
            there. If ``folder`` is ``None``, a classifier is trained but not saved.
        device: Device to compute on.
        told: Called with each message about training a classifier.
        edited: Whether to accept a classifier even if its file ``classifier.json`` was edited.

    Raises:
        UsageError: If the name is unknown.
    """
    info, (kind, _, path) = data.info, spec.partition(":")
    if spec == "auto":
        enough = data.train_labels is not None and len(data.train) >= ENOUGH * len(info.classes) > ENOUGH
        # Without labels of held-out samples, nothing would say whether the classifier is better than chance.
        kind = "classifier" if enough and data.test_labels is not None and info.kind != "vector" else "pixels"
    elif kind in ("auto", "pixels") and kind != spec:
        raise UsageError(f"features {spec!r}: {kind} takes nothing after a colon; use {kind}", parameter="features")
    if kind == "pixels":
        return pixels(data.codec)
    if kind == "inception":
        return inception(info, Path(path) if path else None, device)
    if kind == "classifier":
        if path or (folder is not None and (folder / "classifier.json").is_file()):
            found = load_classifier(Path(path) if path else folder or Path(), device, edited=edited)
            return classifier_features(found, info)
        if told is not None:
            told(f"training a classifier on the labels of {info.name} to use its features")
        trained = train_classifier(data, device=device)
        if told is not None:
            told(f"the classifier is correct for {trained.accuracy:.1%} of {trained.held_out:,} held-out samples")
        # the accuracy of always predicting the most common class
        guessed = max(data.info.trained or (1,)) / max(1, sum(data.info.trained))
        if spec == "auto" and not trained.accuracy > guessed + 2 * trained.stderr:
            if told is not None:
                told(f"the classifier is not better than chance ({guessed:.1%}), so pixels are compared instead")
            return pixels(data.codec)
        if folder is not None:
            trained.save(folder)
        return classifier_features(trained, info)
    if not path:
        raise UsageError(f"unknown features {spec!r}; choose from: {', '.join(FEATURES)}")
    return function_features(spec)


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the features of real data, which can be saved and used for several comparisons.

    Attributes:
        extractor, hash, resize: Name, hash and resizing of the :class:`Extractor` that computed the features.
        data, split: Name and split of the data, such as ``digits`` and ``test``.
        moments: Mean ``(d,)`` and covariance ``(d, d)`` of the features.
        features: The features ``(M, d)``, or ``None`` if they are too large to save.
    """

    extractor: str
    hash: str
    resize: str
    data: str
    split: str
    moments: Moments
    features: Tensor | None

    @classmethod
    def of(cls, features: Tensor, extractor: Extractor, data: str, split: str) -> Reference:
        """Compute the statistics of features ``(M, d)``."""
        kept = features if features.numel() <= STORED else None
        return cls(extractor.name, extractor.hash, extractor.resize, data, split, Moments.of(features), kept)

    def save(self, path: Path) -> None:
        """Write the statistics to a safetensors file."""
        tensors = {"mean": self.moments.mean, "covariance": self.moments.covariance}
        kept = {} if self.features is None else {"features": self.features}
        facts = {name: getattr(self, name) for name in ("extractor", "hash", "resize", "data", "split")}
        write_tensors(path, tensors | kept, {**facts, "n": self.moments.n})

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Load reference statistics from a file written by :meth:`save`.

        Raises:
            CheckpointError: If the file does not contain reference statistics.
        """
        facts, tensors = read_metadata(path), read_tensors(path)
        try:
            return cls(
                extractor=str(facts["extractor"]), hash=str(facts["hash"]), resize=str(facts["resize"]),
                data=str(facts["data"]), split=str(facts["split"]),
                moments=Moments(int(facts["n"]), tensors["mean"], tensors["covariance"]),
                features=tensors.get("features"),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{path} does not contain reference statistics ({error}); save reference statistics there first",
                parameter="save_reference",
                value=path,
            ) from None

    def check(self, extractor: Extractor) -> None:
        """Reject any extractor other than the one that computed the statistics.

        Raises:
            UsageError: If the hash or the resizing differs.
        """
        for what, theirs, ours in (("hash", self.hash, extractor.hash), ("resizing", self.resize, extractor.resize)):
            if theirs != ours:
                raise UsageError(
                    f"the reference was computed with the features {self.extractor} ({what} {theirs!r}), but the "
                    f"features of the samples are {extractor.name} ({what} {ours!r}), so a distance would be "
                    "meaningless; use the features of the reference, or compute the reference again",
                    parameter="features",
                    value=self.extractor,
                )


def _units(codec: Codec) -> Any:
    """Return the parts of a codec that affect features, as JSON-serialisable values."""
    parts = to_dict(codec.units)
    # A single part is reduced to its options, so that old hashes stay valid.
    return parts[0]["options"] if len(parts) == 1 else parts


def _hash(*parts: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 digest of JSON-serialisable values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
