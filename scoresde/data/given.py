"""What is known about each sample besides the sample itself, and how it becomes the condition of a model.

The option ``cond`` lists what a model is told about a sample, joined by ``+``:

    =================  ====================================================================================
    source             what the model is told
    =================  ====================================================================================
    `class`            the class of the sample
    `vector`           numbers: the array ``c`` of an ``.npz`` file, or named columns, ``vector:age,dose``
    `image`            another picture or signal: the array ``given``, or the pictures in a folder ``given/``
    `text`             a text: the array ``text``, or a ``.txt`` file beside each picture
    an operator        what the operator leaves of the sample, such as ``pool:2`` or ``grey/hole``
    =================  ====================================================================================

Numbers are standardised, and pictures are mapped to [-1, 1]. Words are numbered by the vocabulary of the training
texts. :class:`CondInfo` holds what this needs, and is stored with a run. A value that is not given is NaN, or -1 for a
word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.errors import DataError, UsageError
from ..core.registry import closest
from ..core.tables import OPERATORS
from .raw import Known

__all__ = ["CondInfo", "Sources"]

WORDS = 50_000  # size of the largest vocabulary
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Sources:
    """What a model is told about each sample, as listed in ``cond``.

    Attributes:
        label: Whether the class is told.
        vector: Whether numbers are told.
        columns: The columns of a table that hold these numbers. Empty for numbers that are stored apart.
        image: Whether another picture is told.
        text: Whether a text is told.
        operator: The operator whose measurement of the sample is told, or "".
    """

    label: bool = False
    vector: bool = False
    columns: tuple[str, ...] = ()
    image: bool = False
    text: bool = False
    operator: str = ""

    @classmethod
    def of(cls, cond: str) -> Sources:
        """Read the option ``cond``, such as ``class+vector`` or ``pool:2``.

        Raises:
            UsageError: If a source is unknown or listed twice, or if two sources are pictures.

        >>> Sources.of("class+pool:2").operator
        'pool:2'
        """
        found = cls()
        if cond == "none":
            return found
        for part in cond.split("+"):
            name, _, rest = part.strip().partition(":")
            before = found
            if name == "class" and not rest:
                found = replace(found, label=True)
            elif name == "vector":
                found = replace(found, vector=True, columns=tuple(c.strip() for c in rest.split(",") if c.strip()))
            elif name == "image" and not rest:
                found = replace(found, image=True)
            elif name == "text" and not rest:
                found = replace(found, text=True)
            elif name.partition("/")[0] in OPERATORS or rest:
                if found.operator:
                    raise UsageError(
                        f"cond={cond!r} has two operators, but a model is shown one picture of each sample; to train "
                        f"one model for both, join them by a slash: {found.operator}/{part}",
                        parameter="cond",
                        value=f"{found.operator}/{part}",
                    )
                found = replace(found, operator=part.strip())
            else:
                raise UsageError(
                    f"unknown cond {part!r}; {closest(part, ('none', 'class', 'vector', 'image', 'text', *OPERATORS))}",
                    parameter="cond",
                )
            if found == before:
                raise UsageError(f"cond={cond!r} lists {part!r} twice; list it once", parameter="cond")
        if found.image and found.operator:
            raise UsageError(
                f"cond={cond!r} has two pictures, that of the data and that of the operator {found.operator}; a model "
                "is shown one of them, so leave out the other",
                parameter="cond",
            )
        return found

    @property
    def rich(self) -> bool:
        """Whether a model is told more than the class."""
        return self.vector or self.image or self.text or bool(self.operator)


@dataclass(frozen=True)
class CondInfo:
    """Description of what is known about each sample of a data set.

    Attributes:
        vector: Names of the numbers.
        shift, scale: Mean and standard deviation of each number over the training rows. Numbers are standardised by
            them.
        image: Shape of the picture, ``(C, *space)``; empty without pictures.
        low, high: Lowest and highest value of the pictures. Pictures are mapped from this range to [-1, 1].
        words: The vocabulary. Word i has the index i + 1, and the index 0 means a word that is not in the vocabulary.
        features: Size of the features of a word, if texts are stored as features ``(L, features)``.
    """

    vector: tuple[str, ...] = ()
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    image: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0
    words: tuple[str, ...] = ()
    features: int = 0

    @classmethod
    def of(cls, known: Known) -> CondInfo:
        """Describe what is known about the training rows."""
        found = cls()
        if known.vector is not None:
            v = known.vector.astype(np.float64)
            with np.errstate(all="ignore"):
                mean, std = np.nanmean(v, 0), np.nanstd(v, 0)
            mean, std = np.where(np.isfinite(mean), mean, 0.0), np.where(std > 0, std, 1.0)
            names = known.names or tuple(f"c{i}" for i in range(v.shape[1]))
            found = replace(found, vector=names, shift=tuple(mean.tolist()), scale=tuple(std.tolist()))
        if known.image is not None:
            bytes_ = known.image.dtype == np.uint8
            low, high = (0.0, 255.0) if bytes_ else (float(np.nanmin(known.image)), float(np.nanmax(known.image)))
            high = high if high > low else low + 1
            found = replace(found, image=tuple(known.image.shape[1:]), low=low, high=high)
        if known.text is not None:
            counts = Counter(word for text in known.text.tolist() for word in _words(text))
            common = [word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:WORDS]]
            if not common:
                raise DataError("the texts have no words")
            found = replace(found, words=tuple(sorted(common)))
        if known.features is not None:
            found = replace(found, features=known.features.shape[2])
        return found

    def describe(self) -> str:
        """Describe what is known in a few words, or return "" if nothing is."""
        parts = []
        if self.vector:
            more = ", ..." if len(self.vector) > 10 else ""
            some = "a number" if len(self.vector) == 1 else f"{len(self.vector)} numbers"
            parts.append(f"{some} ({', '.join(self.vector[:10])}{more})")
        if self.image:
            parts.append(f"a picture of shape {' x '.join(map(str, self.image))}")
        if self.words:
            parts.append(f"a text ({len(self.words):,} different words)")
        if self.features:
            parts.append(f"a text as features of size {self.features}")
        return ", ".join(parts)

    def condition(self, known: Known) -> Condition:
        """Convert what is known about some rows to tensors, in data units."""
        return Condition(
            vector=None if known.vector is None else torch.from_numpy(np.ascontiguousarray(known.vector, np.float64)),
            image=None if known.image is None else torch.from_numpy(np.ascontiguousarray(known.image)),
            tokens=self.tokens(known.text.tolist()) if known.text is not None
            else None if known.features is None else torch.from_numpy(np.ascontiguousarray(known.features, np.float32)),
        )  # fmt: skip

    def to_model(self, known: Condition) -> Condition:
        """Standardise a condition: numbers by their mean and deviation, pictures to [-1, 1], each in float32.

        Raises:
            UsageError: If the condition does not have the shapes of the training data.
        """
        vector, image = known.vector, known.image
        if vector is not None:
            if vector.ndim != 2 or vector.shape[1] != len(self.vector):
                raise UsageError(
                    f"the condition has numbers of shape {tuple(vector.shape)}, but the model was trained on "
                    f"{len(self.vector)} numbers for each sample: {', '.join(self.vector[:10]) or '(none)'}; pass an "
                    f"array of shape (n, {len(self.vector)})"
                )
            shift, scale = (vector.new_tensor(v, dtype=torch.float64) for v in (self.shift, self.scale))
            vector = ((vector.double() - shift) / scale).float()
        if image is not None and self.image:
            if tuple(image.shape[1:2]) != self.image[:1] or image.ndim != len(self.image) + 1:
                raise UsageError(
                    f"the condition has pictures of shape {tuple(image.shape[1:])}, but the model was trained on "
                    f"pictures of shape {self.image}"
                )
            image = ((image.double() - self.low) * (2 / (self.high - self.low)) - 1).float()
        return replace(known, vector=vector, image=image)

    def again(self, tokens: Tensor, theirs: CondInfo) -> Tensor:
        """Return word indices ``(n, L)`` in the vocabulary ``theirs`` as indices in this vocabulary."""
        if theirs.words == self.words or tokens.is_floating_point():
            return tokens
        index = {word: i + 1 for i, word in enumerate(self.words)}
        # The last entry is the index -1, which means that there is no word.
        moved = torch.tensor([0, *(index.get(word, 0) for word in theirs.words), -1], dtype=torch.int64)
        return moved.to(tokens.device)[tokens]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the word indices of texts, int64 ``(n, L)``, with -1 after the end of each text.

        L is the length of the longest text; no text is cut. A word that is not in the vocabulary has the index 0.
        """
        index = {word: i + 1 for i, word in enumerate(self.words)}
        rows = [[index.get(word, 0) for word in _words(text)] for text in texts]
        length = max(1, max(map(len, rows), default=1))
        return torch.tensor([row + [-1] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(-1, length)

    def unknown(self, text: str) -> dict[str, str]:
        """Return the words of a text that are not in the vocabulary, each with a hint."""
        known = set(self.words)
        return {word: closest(word, known).partition("?")[0] for word in _words(text) if word not in known}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without what is not used."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value != getattr(_NOTHING, name)
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> CondInfo:
        """Rebuild a description from :meth:`to_dict`.

        Raises:
            DataError: If a key is unknown or a value is malformed.
        """
        unknown = sorted(set(stored) - set(vars(_NOTHING)))
        if unknown:
            raise DataError(f"malformed description of the conditions: unknown keys {unknown}")
        try:
            found = cls(
                vector=tuple(str(name) for name in stored.get("vector", ())),
                shift=tuple(float(v) for v in stored.get("shift", ())),
                scale=tuple(float(v) for v in stored.get("scale", ())),
                image=tuple(int(n) for n in stored.get("image", ())),
                low=float(stored.get("low", 0.0)),
                high=float(stored.get("high", 1.0)),
                words=tuple(str(word) for word in stored.get("words", ())),
                features=int(stored.get("features", 0)),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"malformed description of the conditions: {error}") from error
        if not len(found.vector) == len(found.shift) == len(found.scale) or not found.low < found.high:
            raise DataError("malformed description of the conditions: its parts contradict each other")
        return found


_NOTHING = CondInfo()


def _words(text: str) -> list[str]:
    """Split a text into words and punctuation marks, in lower case."""
    return _WORD.findall(text.lower())
