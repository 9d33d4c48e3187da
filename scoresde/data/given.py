"""The conditions of the samples: their sources, their statistics, and their conversion to the input of a model.

The option ``cond`` lists the sources of a model's condition, joined by ``+``:

    =================  ====================================================================================
    source             what it adds to the condition of a sample
    =================  ====================================================================================
    `class`            the class of the sample
    `vector`           numbers: the array ``c`` of an ``.npz`` file, or named columns, ``vector:age,dose``
    `image`            another picture or signal: the array ``given``, or the pictures in a folder ``given/``
    `text`             a text: the array ``text``, or a ``.txt`` file next to each picture
    an operator        the measurement of the sample by this operator; examples: ``pool:2``, ``grey/hole``
    =================  ====================================================================================

Numbers are standardised, and pictures are mapped to [-1, 1]. Each word is replaced by its index in the vocabulary of
the training texts. :class:`CondInfo` contains the statistics for these conversions and the vocabulary. It is stored
with a run. A missing number or pixel is stored as NaN, and a missing word as -1.
"""

from __future__ import annotations

import math
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
from ..core.text import one_line
from .raw import Array, Known

__all__ = ["CondInfo", "Sources"]

WORDS = 50_000  # maximum number of words in a vocabulary
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Sources:
    """The sources of a model's condition, as listed in ``cond``.

    Attributes:
        label: Whether the condition contains the class.
        vector: Whether the condition contains numbers.
        columns: The table columns that contain these numbers. Empty if the numbers do not come from a table.
        image: Whether the condition contains another picture.
        text: Whether the condition contains a text.
        operator: The operator whose measurement of the sample is part of the condition, or "" if there is no operator.
    """

    label: bool = False
    vector: bool = False
    columns: tuple[str, ...] = ()
    image: bool = False
    text: bool = False
    operator: str = ""

    @classmethod
    def of(cls, cond: str) -> Sources:
        """Parse the option ``cond``, such as ``class+vector`` or ``pool:2``.

        Raises:
            UsageError: If a source is unknown or listed twice, if there are two operators, or if an operator is listed
                together with ``image``.

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
                columns = tuple(c.strip() for c in rest.split(",") if c.strip())
                twice = [c for c in dict.fromkeys(columns) if columns.count(c) > 1]
                if twice:
                    raise UsageError(f"cond={cond!r} lists column {twice[0]!r} twice; list it once", parameter="cond")
                found = replace(found, vector=True, columns=columns)
            elif name == "image" and not rest:
                found = replace(found, image=True)
            elif name == "text" and not rest:
                found = replace(found, text=True)
            elif name.partition("/")[0] in OPERATORS or rest:
                if found.operator:
                    raise UsageError(
                        f"cond={cond!r} has two operators, but a model is shown only one measurement of each "
                        f"sample; to train one model for both, join them with a slash: {found.operator}/{part}",
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
                f"cond={cond!r} lists both image, which means the pictures in the data, and the operator "
                f"{found.operator}, but a model is shown only one picture for each sample; leave out one of the two",
                parameter="cond",
            )
        return found

    @property
    def rich(self) -> bool:
        """Whether the condition contains anything besides the class."""
        return self.vector or self.image or self.text or bool(self.operator)

    @property
    def needs(self) -> tuple[str, ...]:
        """The kinds of condition, besides the class, that must be readable (``Reading.needs``)."""
        return tuple(name for name in ("vector", "image", "text") if getattr(self, name))

    @property
    def gaps(self) -> bool:
        """Whether the operator can hide individual cells, which allows training on samples with empty cells."""
        parts = [] if self.operator.startswith("mask:") else self.operator.split("/")
        return any(part.partition(":")[0] == "cells" for part in parts)


@dataclass(frozen=True)
class CondInfo:
    """Description of the conditions of the samples in a data set.

    Attributes:
        vector: Names of the numbers in the condition.
        shift, scale: Mean and standard deviation of each number over the training rows, for standardisation.
        image: Shape of each picture in the conditions, ``(C, *space)``, or empty if there are no pictures.
        low, high: Lowest and highest value of the pictures, or 0 and 255 for uint8. This range is mapped to [-1, 1].
            Each is one number, or one for each of the C channels if they have separate ranges.
        words: The vocabulary. Word i has the index i + 1. All words outside the vocabulary have the index 0.
        features: Number of features of each word if the texts are stored as features, else 0.
    """

    vector: tuple[str, ...] = ()
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    image: tuple[int, ...] = ()
    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0
    words: tuple[str, ...] = ()
    features: int = 0

    @classmethod
    def of(cls, known: Known) -> CondInfo:
        """Describe the conditions of the training rows, and compute the statistics and the vocabulary."""
        found = cls()
        if known.vector is not None:
            v = known.vector.astype(np.float64)
            there = ~np.isnan(v)
            count = np.maximum(there.sum(0), 1)
            with np.errstate(over="ignore", invalid="ignore"):
                mean = np.where(there, v, 0).sum(0) / count
                std = np.sqrt(np.where(there, (v - mean) ** 2, 0).sum(0) / count)
            if not (np.isfinite(mean) & np.isfinite(std)).all():
                raise DataError(
                    "the squares of the numbers in the condition overflow; divide these numbers by a constant"
                )
            varied = np.where(there, v, np.inf).min(0) < np.where(there, v, -np.inf).max(0)
            std = np.where(varied & (std > 0), std, 1.0)
            names = known.names or tuple(f"c{i}" for i in range(v.shape[1]))
            found = replace(found, vector=names, shift=tuple(mean.tolist()), scale=tuple(std.tolist()))
        if known.image is not None:
            x = known.image
            if x.dtype.kind == "f":
                x = x[~np.isnan(x)]
            low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
            low, high = (0.0, 255.0) if x.dtype == np.uint8 else (low, high if high > low else low + 1)
            found = replace(found, image=tuple(known.image.shape[1:]), low=low, high=high)
        if known.text is not None:
            counts = Counter(word for text in known.text.tolist() for word in _words(text))
            common = [word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:WORDS]]
            if not common:
                raise DataError("the texts of the training samples contain no words; add words, or remove the texts")
            found = replace(found, words=tuple(sorted(common)))
        if known.features is not None:
            found = replace(found, features=known.features.shape[2])
        return found

    def describe(self) -> str:
        """Describe the conditions in a few words, or return "" if there are none."""
        parts = []
        if self.vector:
            more = ", ..." if len(self.vector) > 10 else ""
            some = "a number" if len(self.vector) == 1 else f"{len(self.vector)} numbers"
            parts.append(f"{some} ({', '.join(map(one_line, self.vector[:10]))}{more})")
        if self.image:
            parts.append(f"a picture of shape {' x '.join(map(str, self.image))}")
        if self.words:
            parts.append(f"a text ({len(self.words):,} different words)")
        if self.features:
            parts.append(f"a text as features of size {self.features}")
        return ", ".join(parts)

    def told(self, sources: Sources) -> CondInfo:
        """Return the description of only those conditions that ``sources`` lists."""
        found = self if sources.vector else replace(self, vector=(), shift=(), scale=())
        found = found if sources.image else replace(found, image=(), low=_NOTHING.low, high=_NOTHING.high)
        return found if sources.text else replace(found, words=(), features=0)

    def translated(self, known: Condition, other: CondInfo) -> Condition:
        """Convert the word indices of a condition from the vocabulary of ``other`` to the vocabulary of this object."""
        if known.tokens is None or known.tokens.ndim != 2 or self.words == other.words:
            return known
        index = {word: i + 1 for i, word in enumerate(self.words)}
        table = torch.tensor([0, *(index.get(word, 0) for word in other.words), -1])  # -1 is the last entry
        return replace(known, tokens=table[known.tokens])

    def condition(self, known: Known) -> Condition:
        """Convert the conditions of some rows to tensors, in data units."""
        return Condition(
            vector=None if known.vector is None else torch.from_numpy(np.ascontiguousarray(known.vector, np.float64)),
            image=None if known.image is None else _plain(known.image),
            tokens=self.tokens(known.text.tolist()) if known.text is not None
            else None if known.features is None else torch.from_numpy(np.ascontiguousarray(known.features, np.float32)),
            mask=None if known.mask is None else torch.from_numpy(np.array(known.mask, np.bool_)),
        )  # fmt: skip

    def to_model(self, known: Condition) -> Condition:
        """Convert a condition to model units, in float32: standardise numbers, and map pictures to [-1, 1].

        Raises:
            UsageError: If a condition does not have the shape that the model requires, or if tokens are invalid.
        """
        vector, image = known.vector, known.image
        if vector is not None and self.vector:
            if vector.ndim != 2 or vector.shape[1] != len(self.vector):
                raise UsageError(
                    f"the condition has numbers of shape {tuple(vector.shape)}, but the model was trained on "
                    f"{len(self.vector)} numbers for each sample: {', '.join(self.vector[:10])}; pass an "
                    f"array of shape (n, {len(self.vector)})"
                )
            shift, scale = (vector.new_tensor(v, dtype=torch.float64) for v in (self.shift, self.scale))
            vector = ((vector.double() - shift) / scale).float()
        if image is not None and self.image:
            if tuple(image.shape[1:2]) != self.image[:1] or image.ndim != len(self.image) + 1:
                raise UsageError(
                    f"the condition has pictures of shape {tuple(image.shape[1:])}, but the model was trained on "
                    f"pictures of shape {self.image}; pass pictures with the same number of axes and channels"
                )
            shape = (-1, *[1] * (image.ndim - 2))
            low, high = (image.new_tensor(v, dtype=torch.float64).reshape(shape) for v in (self.low, self.high))
            image = ((image.double() - low) * (2 / (high - low)) - 1).float()
        if known.tokens is not None and (self.words or self.features):
            self._check_tokens(known.tokens)
        return replace(known, vector=vector, image=image)

    def _check_tokens(self, tokens: Tensor) -> None:
        """Check that the tokens are indices into the vocabulary, or features of the right shape."""
        if not self.words:
            if tokens.ndim != 3 or tokens.shape[2] != self.features or not tokens.is_floating_point():
                raise UsageError(
                    f"the condition has tokens of shape {tuple(tokens.shape)} ({tokens.dtype}), but the model was "
                    f"trained on features of words; pass floats of shape (n, L, {self.features}), with NaN where there "
                    "is no word"
                )
            return
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise UsageError(
                f"the condition has tokens of shape {tuple(tokens.shape)} ({tokens.dtype}), but the model was trained "
                "on words; pass a text, or integers of shape (n, L), with -1 where there is no word"
            )
        low, high = (int(v) for v in tokens.aminmax()) if tokens.numel() else (0, 0)
        if low < -1 or high > len(self.words):
            raise UsageError(
                f"the condition has word indices from {low} to {high}, but the only valid indices are 1 to "
                f"{len(self.words)} for words in the vocabulary, 0 for an unknown word and -1 for no word; pass a text "
                "instead"
            )

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the word indices of texts as an int64 tensor ``(n, L)``, with -1 after the end of each text.

        L is the number of words in the longest text. A word that is not in the vocabulary has the index 0.
        """
        index = {word: i + 1 for i, word in enumerate(self.words)}
        rows = [[index.get(word, 0) for word in _words(text)] for text in texts]
        length = max(1, max(map(len, rows), default=1))
        return torch.tensor([row + [-1] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(-1, length)

    def unknown(self, text: str) -> dict[str, str]:
        """Return suggestions for the words in ``text`` that are not in the vocabulary, keyed by word."""
        known = set(self.words)
        return {word: closest(word, known).partition("?")[0] for word in _words(text) if word not in known}

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON values, leaving out fields that have their default values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value != getattr(_NOTHING, name)
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> CondInfo:
        """Restore a description from the output of :meth:`to_dict`.

        Raises:
            DataError: If a key is unknown or a value is malformed.
        """
        if not isinstance(stored, Mapping):
            raise DataError(f"malformed description of the conditions: expected a JSON object, got {stored!r:.40}")
        unknown = sorted(set(stored) - set(vars(_NOTHING)))
        if unknown:
            raise DataError(f"malformed description of the conditions: unknown keys {unknown}")
        try:
            found = cls(
                vector=tuple(str(name) for name in stored.get("vector", ())),
                shift=tuple(float(v) for v in stored.get("shift", ())),
                scale=tuple(float(v) for v in stored.get("scale", ())),
                image=tuple(int(n) for n in stored.get("image", ())),
                low=_number_or_more(stored.get("low", 0.0)),
                high=_number_or_more(stored.get("high", 1.0)),
                words=tuple(str(word) for word in stored.get("words", ())),
                features=int(stored.get("features", 0)),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"malformed description of the conditions: {error}") from error
        lows, highs = np.atleast_1d(found.low).tolist(), np.atleast_1d(found.high).tolist()
        numbers = (*found.shift, *found.scale, *lows, *highs)
        if (
            not len(found.vector) == len(found.shift) == len(found.scale)
            or not all(map(math.isfinite, numbers))
            or len(lows) != len(highs)
            or len(lows) not in (1, *found.image[:1])
            or min((*found.scale, *(high - low for low, high in zip(lows, highs, strict=True)))) <= 0
            or min((*found.image, 1)) < 1
            or found.features < 0
        ):
            raise DataError(
                "malformed description of the conditions: vector, shift and scale must have the same length, all "
                "numbers must be finite, scale and image must be positive, low and high must be one number or one for "
                "each channel, low must be less than high, and features must not be negative"
            )
        return found


_NOTHING = CondInfo()


def _number_or_more(value: Any) -> float | tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else float(value)


def _plain(x: Array) -> Tensor:
    """Convert an array to a tensor of uint8, 32-bit or 64-bit numbers."""
    if x.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(x, np.float64 if x.dtype.itemsize > 4 else np.float32))
    small, wide = x.dtype in (np.uint8, np.bool_), x.dtype.itemsize > 4 or x.dtype == np.uint32
    return torch.from_numpy(np.ascontiguousarray(x, np.uint8 if small else np.int64 if wide else np.int32))


def _words(text: str) -> list[str]:
    """Split a text into words and punctuation marks, in lower case."""
    return _WORD.findall(text.lower())
