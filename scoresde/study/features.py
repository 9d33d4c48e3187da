"""Features: what samples are compared by. An extractor turns events in data units into rows of numbers.

===================  ============================================================================
name                 features
===================  ============================================================================
``pixels``           the values themselves, in model units, flattened
``classifier``       the last hidden layer of a small classifier (:mod:`scoresde.study.classifier`)
``inception``        the 2,048 features of the network that published Fréchet distances use (FID)
``module:function``  your own: events ``(B, *event)`` in data units to ``(B, d)``
===================  ============================================================================

A distance between features means nothing without the features. So every extractor has a *hash*, of what it is: of its
weights, or for a function of the source file it is in (not of weights that it reads), together with options and the
transform of the data; and it states how it *resizes*. A :class:`Reference` holds the statistics of real data together
with both, and refuses to be compared with features of another extractor.

References:
    Heusel et al. (2017), arXiv:1706.08500: the Inception features.
    Parmar, Zhang and Zhu (2022), On aliased resizing and surprising subtleties in GAN evaluation, arXiv:2104.11222: why
    the way of resizing is part of the figure.
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

ENOUGH = 20  # training samples of a class, about, from which a classifier learns it

# The weights that torch-fidelity publishes; the name ends with the first digits of their SHA-256.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
FEATURES = ("auto", "pixels", "classifier[:FOLDER]", "inception[:FILE]", "FILE.npz", "module:function")
STORED = 2**24  # a reference keeps its features up to so many numbers, 64 MB; above, their moments alone


@dataclass(frozen=True, eq=False)
class Extractor:
    """A named map from events to features.

    Attributes:
        name: What it is, for people.
        hash: 16 hexadecimal digits that change when it does.
        resize: How it resizes its input, or ``"none"``.
        function: Events ``(B, *event)`` in data units to features ``(B, d)``.
    """

    name: str
    hash: str
    resize: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, batch: int = 64) -> Tensor:
        """Features ``(N, d)``, floating, on the CPU, of events ``(N, *event)`` in data units.

        Raises:
            UsageError: If the function returns something else.
        """
        found = []
        with torch.no_grad():
            for part in torch.split(x, batch):
                features = self.function(part)
                if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(part):
                    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                    raise UsageError(
                        f"features {self.name}: events {tuple(part.shape)} became {shape}; a function of features "
                        f"returns a tensor of shape ({len(part)}, d)"
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
        # By way of float64, so that a level becomes the same number whatever the dtype it comes in.
        lambda x: codec.continuous.to_model(x.double()).flatten(1).float(),
    )


def classifier_features(classifier: TrainedClassifier, info: DataInfo) -> Extractor:
    """The last hidden layer of a trained classifier, ``(B, *event)`` to ``(B, width)``.

    Raises:
        UsageError: If it was trained on data of another shape.
    """
    if classifier.info.shape != info.shape:
        raise UsageError(
            f"the classifier was trained on {classifier.info.name}, shape {classifier.info.shape}, and {info.name} has "
            f"shape {info.shape}; train one on it",
            parameter="train_classifier",
            value=info.source,
        )
    digest = _hash("classifier", classifier.digest, _units(classifier.codec))
    return Extractor("classifier", digest, "none", classifier.features)


def function_features(name: str) -> Extractor:
    """A function of the user's own, ``module:function``: events ``(B, *event)`` in data units to ``(B, d)``.

    Raises:
        UsageError: If there is no such function.
    """
    function = resolve(name, {}, "features", typed=True, function=True)
    try:
        source = read_bytes(inspect.getsourcefile(inspect.unwrap(function)) or "")
    except (TypeError, OSError):
        raise UsageError(
            f"features {name}: there is no source file, so it has no hash; name a function of a .py file"
        ) from None
    return Extractor(name, _hash("function", name, hashlib.sha256(source).hexdigest()), "its own", function)


def inception(info: DataInfo, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The pool features of Inception v3 as published Fréchet distances use them, ``(B, C, H, W)`` to ``(B, 2048)``.

    Args:
        info: The images; C is 1 or 3, and values become bytes over their range.
        weights: The file of torch-fidelity's weights; where torch.hub keeps it, if left out. Nothing is downloaded.
        device: Where to compute.

    Raises:
        UsageError: If the extra is not installed, there are no such weights, or the data are no images.
    """
    if info.kind != "image" or info.shape[0] not in (1, 3):
        raise UsageError(f"inception takes images of 1 or 3 channels; {info.name} is {info.kind} of shape {info.shape}")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise UsageError(
            f"features inception: {error.name} is not installed; pip install 'scoresde[fid]', or take other features "
            "(pixels, classifier, module:function)"
        ) from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION if weights is None else weights
    expected = INCEPTION.rpartition("-")[2].removesuffix(".pth")
    if not os.path.isfile(path):
        raise UsageError(
            f"features inception: no weights at {path}; download {INCEPTION_URL} to there, or give inception:FILE"
        )
    # Checked before it is read: only these weights give published figures, and the file may hold code.
    digest = file_digest(path)
    if not digest.startswith(expected):
        raise UsageError(
            f"features inception: {path} has the SHA-256 {digest[:8]}..., not {expected}...: these are other weights"
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
    """Features from an ``.npz`` file: arrays ``samples`` and ``reference``, each ``(N, d)``, and perhaps ``train``.

    Raises:
        DataError: If the file is none, or lacks one.
    """
    try:
        found = {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {reason(error)}") from None
    lacking = sorted({"samples", "reference"} - set(found))
    if lacking:
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(found)) or '(none)'}; features come as samples and reference, "
            "and train for the check for copies"
        )
    for name, array in found.items():
        if array.ndim != 2 or array.shape[1] != found["samples"].shape[1]:
            raise DataError(f"{path}: {name} has shape {tuple(array.shape)}; features have shape (N, d) with one d")
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
    """The extractor that a user named.

    Args:
        spec: ``pixels``, ``classifier``, ``classifier:FOLDER``, ``inception``, ``inception:FILE``, ``module:function``;
            ``auto`` is ``classifier`` for pictures and signals with labels, of which there are enough to learn them,
            if it does, and ``pixels`` for others.
        data: The data to compare with.
        folder: Where ``classifier`` is looked for; it is trained, and kept there, if there is none.
        device: Where to compute.
        told: Called with a line when something takes seconds.
        edited: Take the classifier's files as they are, though they were changed.

    Raises:
        UsageError: If there is no such extractor.
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
            told(f"training a classifier on the labels of {info.name} for its features")
        trained = train_classifier(data, device=device)
        if told is not None:
            told(f"the classifier names {trained.accuracy:.1%} of {trained.held_out:,} held-out samples rightly")
        guessed = max(data.info.trained or (1,)) / max(1, sum(data.info.trained))  # by the commonest class always
        if spec == "auto" and not trained.accuracy > guessed + 2 * trained.stderr:
            if told is not None:
                told(f"that is no better than a guess ({guessed:.1%}): comparing by pixels")
            return pixels(data.codec)
        if folder is not None:
            trained.save(folder)
        return classifier_features(trained, info)
    if not path:
        raise UsageError(f"no features {spec!r}; choose from: {', '.join(FEATURES)}")
    return function_features(spec)


@dataclass(frozen=True, eq=False)
class Reference:
    """The statistics of real data, to compare with again and again.

    Attributes:
        extractor, hash, resize: Of the :class:`Extractor` they were made with.
        data, split: What they are of: ``digits``, ``test``.
        moments: Mean ``(d,)`` and covariance ``(d, d)``.
        features: The features ``(M, d)``, if they are few enough to be kept.
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
        """The statistics of features ``(M, d)``."""
        kept = features if features.numel() <= STORED else None
        return cls(extractor.name, extractor.hash, extractor.resize, data, split, Moments.of(features), kept)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {"mean": self.moments.mean, "covariance": self.moments.covariance}
        kept = {} if self.features is None else {"features": self.features}
        facts = {name: getattr(self, name) for name in ("extractor", "hash", "resize", "data", "split")}
        write_tensors(path, tensors | kept, {**facts, "n": self.moments.n})

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: If it is something else.
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
                f"{path} holds no reference statistics ({error}); save some there first",
                parameter="save_reference",
                value=path,
            ) from None

    def check(self, extractor: Extractor) -> None:
        """Refuse features of another extractor.

        Raises:
            UsageError: If hash or resizing differ.
        """
        for what, theirs, ours in (("hash", self.hash, extractor.hash), ("resizing", self.resize, extractor.resize)):
            if theirs != ours:
                raise UsageError(
                    f"the reference was made with the features {self.extractor} of {what} {theirs!r}, the samples have "
                    f"{extractor.name} of {what} {ours!r}: their distance means nothing; take the features of the "
                    "reference, or make it again with these",
                    parameter="features",
                    value=self.extractor,
                )


def _units(codec: Codec) -> Any:
    """What features depend on of a codec; of a single part its options alone, as hashes always had them."""
    parts = to_dict(codec.continuous)
    return parts[0]["options"] if len(parts) == 1 else parts


def _hash(*parts: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
