"""Features for comparing samples. An extractor turns events in data units into rows of numbers.

===================  ============================================================================
name                 features
===================  ============================================================================
``pixels``           the values of the event in model units, flattened
``classifier``       the last hidden layer of a small classifier (:mod:`scoresde.study.classifier`)
``inception``        the 2,048 features of the network that published Fréchet distances use (FID)
``module:function``  your own function, from events ``(B, *event)`` in data units to ``(B, d)``
===================  ============================================================================

The value of a distance depends on the features. Every extractor therefore has a *hash* of its weights, its options and
the transform of the data. For a function, the hash covers the source file that defines it, but not any weights that it
reads. An extractor also states how it *resizes* its input. A :class:`Reference` holds the statistics of real data
together with the hash and the resizing, and rejects features of another extractor.

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

ENOUGH = 20  # rough number of training samples that a classifier needs per class

# The weights that torch-fidelity publishes; the name ends with the first digits of their SHA-256.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
FEATURES = ("auto", "pixels", "classifier[:FOLDER]", "inception[:FILE]", "FILE.npz", "module:function")
# A reference of at most this many numbers (64 MB) keeps its features; a larger reference keeps only moments.
STORED = 2**24


@dataclass(frozen=True, eq=False)
class Extractor:
    """A named map from events to features.

    Attributes:
        name: Name of the features to show to users.
        hash: 16 hexadecimal digits that change whenever the extractor changes.
        resize: The way the extractor resizes its input, or ``"none"``.
        function: The map from events ``(B, *event)`` in data units to features ``(B, d)``.
    """

    name: str
    hash: str
    resize: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, batch: int = 64) -> Tensor:
        """Compute features ``(N, d)`` of events ``(N, *event)`` in data units, as floating-point numbers on the CPU.

        Raises:
            UsageError: If the function does not return such features.
        """
        found = []
        with torch.no_grad():
            for part in torch.split(x, batch):
                features = self.function(part)
                if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(part):
                    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                    raise UsageError(
                        f"features {self.name}: events {tuple(part.shape)} became {shape}; a feature function must "
                        f"return a tensor of shape ({len(part)}, d)"
                    )
                found.append(features.detach().cpu())
        features = torch.cat(found)
        return features if features.is_floating_point() else features.double()


def pixels(codec: Codec) -> Extractor:
    """The values of an event ``(B, *event)`` in model units, flattened to ``(B, D)``, float32."""
    return Extractor(
        "pixels",
        _hash("pixels", _units(codec)),
        "none",
        # Converting to float64 first gives a level the same value for every input dtype.
        lambda x: codec.continuous.to_model(x.double()).flatten(1).float(),
    )


def classifier_features(classifier: TrainedClassifier, info: DataInfo) -> Extractor:
    """The last hidden layer of a trained classifier, ``(B, *event)`` to ``(B, width)``.

    Raises:
        UsageError: If the classifier was trained on data of another shape.
    """
    if classifier.info.shape != info.shape:
        raise UsageError(
            f"the classifier was trained on {classifier.info.name}, shape {classifier.info.shape}, but {info.name} has "
            f"shape {info.shape}; train another classifier on these data",
            parameter="train_classifier",
            value=info.source,
        )
    digest = _hash("classifier", classifier.digest, _units(classifier.codec))
    return Extractor("classifier", digest, "none", classifier.features)


def function_features(name: str) -> Extractor:
    """Features from a user-defined ``module:function``, which maps events ``(B, *event)`` in data units to ``(B, d)``.

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
    """The pool features of Inception v3 that published Fréchet distances use, ``(B, C, H, W)`` to ``(B, 2048)``.

    Args:
        info: Description of the images. C must be 1 or 3. Values are scaled from their range to bytes.
        weights: The file of torch-fidelity's weights. The default is the path at which torch.hub stores this file.
            Nothing is downloaded.
        device: Device to compute on.

    Raises:
        UsageError: If the extra ``fid`` is not installed, the weights are missing or are different weights, or the data
            are not images of 1 or 3 channels.
    """
    if info.kind != "image" or info.shape[0] not in (1, 3):
        raise UsageError(
            f"inception needs images of 1 or 3 channels; {info.name} has {info.kind}s of shape {info.shape}"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise UsageError(
            f"features inception: {error.name} is not installed; pip install 'scoresde[fid]', or use other features "
            "(pixels, classifier, module:function)"
        ) from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION if weights is None else weights
    expected = INCEPTION.rpartition("-")[2].removesuffix(".pth")
    if not os.path.isfile(path):
        raise UsageError(
            f"features inception: there are no weights at {path}; download {INCEPTION_URL} to this path, or use "
            "inception:FILE"
        )
    # Check the file before loading it: it may hold code, and only these weights give comparable values.
    digest = file_digest(path)
    if not digest.startswith(expected):
        raise UsageError(
            f"features inception: {path} has the SHA-256 {digest[:8]}..., not {expected}...; these are different "
            "weights"
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
    """Read features from an ``.npz`` file.

    The file has the arrays ``samples`` and ``reference``, and optionally ``train``, each of shape ``(N, d)``.

    Raises:
        DataError: If the file cannot be read, lacks an array, or has an array of another shape.
    """
    try:
        found = {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {reason(error)}") from None
    lacking = sorted({"samples", "reference"} - set(found))
    if lacking:
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(found)) or '(none)'}; it needs the arrays samples and reference, "
            "and train for the check for copies"
        )
    for name, array in found.items():
        if array.ndim != 2 or array.shape[1] != found["samples"].shape[1]:
            raise DataError(
                f"{path}: {name} has shape {tuple(array.shape)}; features need shape (N, d) with the same d for all "
                "arrays"
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
            ``module:function``. ``auto`` is ``classifier`` for labelled images and signals, if there are enough samples
            per class and the classifier is better than chance; otherwise it is ``pixels``.
        data: The data to compare with.
        folder: The folder of the classifier. If the folder holds no classifier, a classifier is trained and saved
            there.
        device: Device to compute on.
        told: Called with messages about the training of a classifier, which takes seconds.
        edited: Accept the classifier's files even if they were edited.

    Raises:
        UsageError: If the name is unknown.
    """
    info, (kind, _, path) = data.info, spec.partition(":")
    if spec == "auto":
        enough = data.train_labels is not None and len(data.train) >= ENOUGH * len(info.classes) > ENOUGH
        kind = "classifier" if enough and info.kind != "vector" else "pixels"
    if kind == "pixels" and not path:
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
            told(f"the classifier is right for {trained.accuracy:.1%} of {trained.held_out:,} held-out samples")
        # the accuracy of always guessing the commonest class
        guessed = max(data.info.trained or (1,)) / max(1, sum(data.info.trained))
        if spec == "auto" and not trained.accuracy > guessed + 2 * trained.stderr:
            if told is not None:
                told(f"this is no better than chance ({guessed:.1%}), so pixels are compared instead")
            return pixels(data.codec)
        if folder is not None:
            trained.save(folder)
        return classifier_features(trained, info)
    if not path:
        raise UsageError(f"unknown features {spec!r}; choose from: {', '.join(FEATURES)}")
    return function_features(spec)


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real data, which can be saved and compared with repeatedly.

    Attributes:
        extractor, hash, resize: Name, hash and resizing of the :class:`Extractor` that made the features.
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
        """Read a file written by :meth:`save`.

        Raises:
            CheckpointError: If the file holds no reference statistics.
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
                f"{path} holds no reference statistics ({error}); save them there first",
                parameter="save_reference",
                value=path,
            ) from None

    def check(self, extractor: Extractor) -> None:
        """Reject features of another extractor.

        Raises:
            UsageError: If the hash or the resizing differs.
        """
        for what, theirs, ours in (("hash", self.hash, extractor.hash), ("resizing", self.resize, extractor.resize)):
            if theirs != ours:
                raise UsageError(
                    f"the reference was made with features {self.extractor} ({what} {theirs!r}), but the samples have "
                    f"features {extractor.name} ({what} {ours!r}), so a distance would be meaningless; use the "
                    "features of the reference, or make the reference again",
                    parameter="features",
                    value=self.extractor,
                )


def _units(codec: Codec) -> Any:
    """The part of a codec that features depend on.

    For a codec with a single part, only the options of the part are returned, so that old hashes stay valid.
    """
    parts = to_dict(codec.continuous)
    return parts[0]["options"] if len(parts) == 1 else parts


def _hash(*parts: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
