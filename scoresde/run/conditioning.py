"""Conditions of a run: classes, numbers, pictures, texts and measurements that its network was trained with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.condition import SLOTS, Condition
from ..core.errors import UsageError
from ..core.noise import Noise
from ..core.shapes import as_tensor
from ..data import Dataset
from ..data.pictures import mask_from_file
from ..model.network import ScoreModel
from ..operators import AddedNoise, Mask, Operator, parse
from .bound import Bound, listed
from .plausible import warn_of_cells, warn_of_shown
from .seen import Seen, covers, measured, understood

__all__ = ["Conditioned"]


class Conditioned(Bound):
    """A run that can be conditioned."""

    def given(
        self,
        known: Condition | int | str | Sequence[int | str] | Tensor | npt.ArrayLike | None = None,
        *,
        text: str | Sequence[str] | None = None,
        operator: str | Operator | None = None,
        each: int = 1,
        seed: int = 0,
    ) -> Self:
        """Return the run with a condition on its samples. If no arguments are passed, return it without a condition.

        Args:
            known: The condition. It is one class for all samples, as an index or a name; one class per sample, shape
                ``(n,)``, where an index equal to the number of classes means no label; or a
                :class:`~scoresde.Condition` in data units. For a model that was trained with an operator, the ``image``
                of a :class:`~scoresde.Condition` contains measurements, or samples that are measured here
                (:func:`scoresde.run.seen.understood`). NaN marks missing values.
            text: One text for all samples, or a sequence with one text per sample.
            operator: The operator with which to measure the samples in ``image``, instead of the run's operator.
            each: Number of samples for each row of the condition. Sample i belongs to row ``i // each``.
            seed: Seed for operators that draw random numbers.

        Raises:
            UsageError: If the model was trained without such a condition, has no such class, or was not trained on any
                samples of that class.
        """
        if known is None and text is None:
            if operator is not None:
                raise UsageError(
                    f"the operator {operator} has nothing to measure; pass the samples or the measurements, as in "
                    "given(Condition(image=x), operator=...)",
                    parameter="operator",
                )
            mask = None if self.condition is None else self.condition.mask
            return replace(self, condition=None if mask is None else Condition(mask=mask), seen=None)
        if isinstance(known, Condition) and known.image is None and operator is not None:
            raise UsageError(
                f"the operator {operator} measures samples, but the condition has no image; pass samples as its image",
                parameter="operator",
            )
        condition = self._labelled(known)
        if text is not None:
            condition = replace(condition, tokens=self._tokens([text] if isinstance(text, str) else list(text)))
        seen = None
        if operator is not None and condition.image is None:
            raise UsageError(
                f"the operator {operator} has nothing to measure, because the condition has no image; add one, or "
                "leave out the operator",
                parameter="operator",
            )
        if condition.image is not None and (operator is not None or self.operator is not None):
            seen = self._understood(as_tensor(condition.image), operator, seed)
        return self._given(condition, seen, each)

    def given_rows(
        self,
        data: Dataset,
        index: Tensor,
        *,
        split: str = "test",
        operator: str | Operator | None = None,
        each: int = 1,
        seed: int = 0,
    ) -> Self:
        """Return the run conditioned on rows of a data set. Each row provides every part of the model's condition.

        Args:
            data: The data set. Its class and word indices are converted to those of the run.
            index: The indices of the rows, int64 ``(n,)``.
            split: The part of the data that ``index`` refers to: ``test``, ``train``, or ``all`` for the training rows
                followed by the test rows.
            operator: The operator with which to measure the rows, instead of the run's operator. If the run was trained
                with several operators, this can be one of them.
            each: Number of samples for each row. Sample i belongs to row ``i // each``.
            seed: Seed for operators that draw random numbers.

        Raises:
            UsageError: If the run was trained without conditions, or the data lack a part of its condition.
        """
        parts = {
            "test": (data.test, data.test_labels, data.test_given),
            "train": (data.train, data.train_labels, data.train_given),
        }  # fmt: skip
        if split not in (*parts, "all"):
            raise UsageError(f"unknown split {split!r}; choose from: test, train, all", parameter="split")
        x, y, known = parts.get(split) or data.every()
        config = self._trained_here("a condition")
        if config.cond == "none" and not config.padded:
            raise UsageError(
                f"{self.folder or 'this model'} was trained without conditions, so it cannot be conditioned on rows "
                "of data; train with cond='class', or with another condition",
                parameter="cond",
                value="class",
            )
        known = self.info.known.translated(known, data.info.known)
        condition = config.told(known.rows(index)) or Condition()
        if config.sources.label:
            if y is None:
                raise UsageError(
                    f"{self.folder or 'this model'} was trained with cond={config.cond!r}, but {data.info.name} has no "
                    "labels; use data with labels",
                    parameter="given",
                )
            condition = replace(condition, label=self._as_ours(data.info.classes)[y[index]])
        seen, chosen = None, self.operator if operator is None else self._other(operator)
        if chosen is not None:
            complete = None
            if data.complete is not None and split != "test":
                rest = torch.ones(data.test.shape, dtype=torch.bool)
                complete = torch.cat([data.complete, rest])[index]
            seen = measured(x[index], chosen, Noise.of(len(index), seed), complete)
        return self._given(condition, seen, each)

    def _other(self, operator: str | Operator) -> Operator:
        """Set up another operator for the run's data, to use instead of the run's own."""
        if self.operator is None:
            raise UsageError(
                f"{self.folder or 'this model'} was trained without an operator, so it cannot use a measurement by "
                f"{operator}; train with cond='{operator}'",
                parameter="cond",
            )
        own = parse(operator, read_mask=mask_from_file) if isinstance(operator, str) else operator
        return own.on(self.info.shape, self.info.low, self.info.high)

    def _as_ours(self, classes: tuple[str, ...]) -> Tensor:
        """Return the indices of ``classes`` among the classes of the run."""
        ours = {name: i for i, name in enumerate(self.info.classes)}
        strange = [name for name in classes if name not in ours]
        if strange:
            raise UsageError(
                f"the data have classes that {self.folder or 'this model'} was not trained on: {listed(strange)}; "
                f"leave out these classes, or rename them to classes of the run: {listed(self.info.classes)}",
                parameter="label",
            )
        return torch.tensor([ours[name] for name in classes], dtype=torch.int64)

    def typical(self, n: int, seed: int = 0) -> Self:
        """Return the run with conditions for ``n`` samples, so that the samples are distributed like the data.

        If the condition has parts other than the class, the conditions are those of the held-out rows, in order,
        repeated if there are more samples than rows. If the run uses only the class and cannot be used without it, the
        classes occur in the proportions of the training data. Any other run is returned without a condition.

        Args:
            n: Number of samples.
            seed: Seed for operators that draw random numbers.

        Raises:
            DataError: If the data of the run are missing or unreadable.
        """
        if self.config is None or not self.config.sources.rich:
            return self.given(self.example_labels(n))
        data = self.data()
        return self.given_rows(data, torch.arange(n) % len(data.test), seed=seed)

    def of_rows(self, data: Dataset, index: Tensor, *, split: str = "test", seed: int = 0) -> Self:
        """Return the run with those parts of the conditions of some rows that its space needs, and no others.

        The arguments are those of :meth:`given_rows`. If the space of the run depends on an image, the whole condition
        is bound.
        """
        needs = self.needs
        if "image" in needs:
            return self if self.condition is not None else self.given_rows(data, index, split=split, seed=seed)
        if "mask" not in needs:
            return self
        known = {"test": data.test_given, "train": data.train_given}.get(split) or data.every()[2]
        if known.mask is None:
            raise UsageError(
                f"the space 'masked' needs the mask of each row, but {data.info.name} has no array 'mask'",
                parameter="data",
            )
        return self.masked(known.mask[index])

    def masked(self, mask: Tensor | npt.ArrayLike | None = None, *, n: int = 0, start: int = 0) -> Self:
        """Return the run with a mask for each sample. A run whose rows are not padded is returned unchanged.

        Args:
            mask: The mask, bool ``(n, *event)`` or ``(1, *event)``, which is true for real values. ``None`` leaves
                masks that are already bound, or else chooses masks as often as they occur in the training data.
            n: Number of samples for which to choose masks.
            start: Index of the first sample.
        """
        space, known = self._masked, self.condition or Condition()
        if space is None or (mask is None and known.mask is not None):
            return self
        chosen = space.example(torch.arange(start, start + n)) if mask is None else self._whole(as_tensor(mask))
        return replace(self, condition=replace(known, mask=chosen.to(self.device)))

    def _given(self, condition: Condition, seen: Seen | None, each: int) -> Self:
        """Bind a condition in data units to the run. Measurements in ``seen`` replace the image of the condition."""
        if not isinstance(self.base, ScoreModel):
            raise UsageError(f"{type(self.base).__name__} is not a ScoreModel, so it does not accept a condition")
        if each < 1:
            raise UsageError(f"each must be at least 1, got {each}", parameter="each")
        if seen is not None and seen.truth is None and not isinstance(seen.operator, AddedNoise):
            warn_of_shown(seen.shown, self.codec, self.info)
        numbers = condition.vector
        condition = self.info.known.to_model(condition if seen is None else replace(condition, image=None))
        if numbers is not None and condition.vector is not None:
            warn_of_cells(as_tensor(numbers), condition.vector, self.info.known.vector)
        if seen is not None:
            condition = replace(condition, image=self.codec.units.to_model(seen.shown.cpu().double()))
        self._check_told(condition)
        if condition.mask is not None and self._masked is None:
            raise UsageError(
                f"{self.folder or 'this model'} was trained without padded rows, so its samples have no mask; train "
                "with space='masked'",
                parameter="space",
                value="masked",
            )
        if condition.mask is not None:
            condition = replace(condition, mask=self._whole(condition.mask))
        condition = self.base.given(condition.to(self.device).to_dtype(self.dtype)).condition
        if condition.label is not None:
            self._check_trained(condition.label)
        self._check_values(condition)
        if each > 1:
            index = torch.arange(len(condition) * each) // each
            condition, seen = condition.rows(index), None if seen is None else seen.rows(index)
        if condition.mask is None and self.condition is not None:  # masks that are bound stay
            condition = replace(condition, mask=self.condition.mask)
        return replace(self, condition=condition, seen=seen)

    def _labelled(
        self, known: Condition | int | str | Sequence[int | str] | Tensor | npt.ArrayLike | None
    ) -> Condition:
        """Convert ``known`` to a condition whose labels are class indices."""
        trained = isinstance(self.base, ScoreModel) and bool(self.base.classes)
        if isinstance(known, Condition):
            values = (known.label, known.vector, known.image, known.tokens, known.mask)
            label, vector, image, tokens, mask = (None if value is None else as_tensor(value) for value in values)
            known = Condition(label, vector, image, tokens, known.classes, mask)
        if known is None or (isinstance(known, Condition) and known.label is None):
            return known or Condition()
        if not trained:
            what = f"label {known!r}" if isinstance(known, str | int) else "a label for each sample"
            if self.config is not None and self.config.sources.rich and not isinstance(known, Condition):
                raise UsageError(
                    f"{self.folder or 'this model'} was trained with cond={self.config.cond!r}, without labels; "
                    "pass its condition by name, as in given(Condition(image=x)) or given(text=...)",
                    parameter="given",
                )
            raise UsageError(
                f"{self.folder or 'this model'} was trained without labels; to use {what}, train with cond='class'",
                parameter="cond",
                value="class",
            )
        if isinstance(known, np.ndarray) and known.dtype.kind in "UOT":
            known = known.tolist()
        if isinstance(known, str):
            known = [known]
        if isinstance(known, Sequence):
            known = [self.class_index(one) if isinstance(one, str) else one for one in known]
        assert isinstance(self.base, ScoreModel)
        return self.base.given(known).condition

    def _tokens(self, texts: list[str]) -> Tensor:
        """Return the word indices of texts, and warn about words that did not occur in training."""
        told = self.info.known
        if told.features:
            raise UsageError(
                f"{self.folder or 'this model'} was trained on text features of shape (L, {told.features}) from an "
                "external encoder, so it cannot encode texts; encode them with the same encoder, and pass the features "
                "as the field 'tokens' of the condition",
                parameter="given",
            )
        if not told.words:
            raise UsageError(
                f"{self.folder or 'this model'} was trained without texts; to use texts, train with cond='text'",
                parameter="cond",
                value="text",
            )
        unknown = {word: hint for text in texts for word, hint in told.unknown(text).items()}
        if unknown:
            named = ", ".join(f"{word!r} ({hint})" if hint.startswith("did") else repr(word)
                              for word, hint in list(unknown.items())[:5])  # fmt: skip
            warnings.warn(
                f"the model cannot interpret {len(unknown)} word{'s' * (len(unknown) > 1)} that did not occur in "
                f"the training texts: {named}",
                stacklevel=3,
            )
        return told.tokens(texts)

    def _understood(self, image: Tensor, operator: str | Operator | None, seed: int) -> Seen:
        """Return the measurements in ``image``, or measure ``image`` if it contains samples."""
        made = self.operator if operator is None else self._other(operator)
        assert made is not None
        seen = understood(image, made, Noise.of(len(image), seed), named=operator is not None)
        if self.operator is not None and seen.operator is not None and not covers(self.operator, seen.operator):
            masked = isinstance(seen.operator, Mask)
            warnings.warn(
                f"{self.folder or 'this model'} was trained to undo {self.operator}, not "
                f"{'this mask' if masked else made}, so its samples may be poor"
                + "; to use masks of any kind, train with cond='cells'"
                * masked,
                stacklevel=3,
            )
        return seen

    def _check_told(self, condition: Condition) -> None:
        """Check that a condition has every part that the run was trained with."""
        if self.config is None or not self.config.sources.rich:
            return
        sources = self.config.sources
        needed = {
            "label": sources.label, "vector": sources.vector, "image": sources.image or bool(sources.operator),
            "tokens": sources.text,
        }  # fmt: skip
        lacking = [name for name, needs in needed.items() if needs and getattr(condition, name) is None]
        if lacking:
            option = {"label": "label", "tokens": "given" if self.info.known.features else "text"}
            raise UsageError(
                f"{self.folder or 'this model'} was trained with cond={self.config.cond!r}, so a condition needs the "
                f"fields {', '.join(name for name, needs in needed.items() if needs)}, but this one lacks "
                f"{' and '.join(lacking)}",
                parameter=option.get(lacking[0], "given"),
            )

    def _check_values(self, condition: Condition) -> None:
        """Check that the model learned to use the condition, and that no value is infinite."""
        given = [name for name in SLOTS[1:] if getattr(condition, name) is not None]
        if given and self._dropped == 1:
            raise UsageError(
                f"{self.folder or 'this model'} was trained with cond_drop=1, which drops every condition, so it did "
                f"not learn to use {' and '.join(given)}; train with cond_drop=0.1",
                parameter="cond_drop",
                value=0.1,
            )
        for name in given:
            value = getattr(condition, name)
            if value.is_floating_point() and bool(value.isinf().any()):
                raise UsageError(
                    f"the {name} of the condition has infinite values; replace them, or use NaN for values that are "
                    "unknown",
                    parameter="given",
                )

    def _check_trained(self, label: Tensor) -> None:
        """Check that every label occurred in training."""
        assert isinstance(self.base, ScoreModel)
        classes, who = self.base.classes, self.folder or "this model"
        for k in sorted(set(label.tolist())):
            name = f"class {self.info.classes[k]!r}" if k < min(classes, len(self.info.classes)) else f"label {k}"
            if k < classes and self._dropped == 1:
                raise UsageError(
                    f"{who} was trained with cond_drop=1, which drops every label, so it did not learn {name}; leave "
                    "out the label, or train with cond_drop=0.1",
                    parameter="cond_drop",
                    value=0.1,
                )
            if k == classes and self._dropped == 0:
                raise self._never_without(f"label {k} (none)")
            if k < classes and len(self.info.trained) == classes and not self.info.trained[k]:
                seen = [c for c, n in zip(self.info.classes, self.info.trained, strict=False) if n]
                raise UsageError(
                    f"{who} was not trained on any samples of {name}; choose one of the classes that it was trained "
                    f"on: {listed(seen)}",
                    parameter="label",
                    value=seen[0] if seen else None,
                )
