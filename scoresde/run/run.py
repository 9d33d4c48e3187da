"""Sampling and likelihoods with a trained model, in the units of its data.

A :class:`Run` combines a model with the units, levels and classes of its data. The condition, the guidance scale and
the path are bound to a run before it is used, as in

    run.given("cat").guided(2.0).on("flow").sample(16)
    run.measured("pool:2", low, noise=5.0).sample(16, "ancestral")

Each of these methods returns a new run. Whatever the order of the calls, the settings are applied in the order given,
guided, steered, limited, measured, on, near. :func:`load` loads a run from its folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..codec import Codec, Masked, Space, named_again, undefined
from ..core.condition import SLOTS, Condition
from ..core.errors import CheckpointError, DataError, NumericalError, UsageError
from ..core.files import read_object, read_tensors
from ..core.limits import (
    COUNT,
    FRACTION,
    FRAMES,
    NONNEGATIVE,
    QUANTILE,
    RTOL,
    SCALE,
    SEED,
    SEVERAL,
    STEPS,
    TIME,
    WHOLE,
    Range,
    checked,
    enough_memory,
)
from ..core.noise import Noise
from ..core.parts import Parts, digest, plain_request
from ..core.registry import READ, build, closest, name_of, options_of, resolve
from ..core.shapes import as_tensor, select
from ..core.tables import NETWORKS, OPERATORS, PARAMETRIZATIONS, SDES, SOLVERS
from ..data import DataInfo, Dataset
from ..data.dataset import ARRAY, old_codec
from ..data.pictures import mask_from_file
from ..guidance.classifier_free import ALL, Guided, check_interval
from ..guidance.measured import Measured, Rule
from ..guidance.steered import Potential, Rescaled, Steered, Thresholded
from ..likelihood import Elbo, Likelihood, Scores, elbo
from ..likelihood.chain import bound
from ..likelihood.elbo import whose
from ..model.convert import convert
from ..model.estimate import Denoiser, Domain, Supported
from ..model.network import ScoreModel
from ..model.parametrization import Parametrization
from ..operators import AddedNoise, Mask, OneOf, Operator, parse
from ..sde.base import SDE
from ..sde.reach import Reach
from ..solvers import Multistep, ProbabilityFlow, Solution, Solver, sample
from ..solvers.base import Watch
from .config import TrainConfig
from .files import checkpoint_at, chosen_checkpoint, find_run, load_weights, read_config
from .origin import data_of
from .plausible import warn_of_cells, warn_of_shown, warn_of_units
from .seen import Seen, covers, kept_mask, measured, understood
from .spec import ModelSpec

__all__ = ["Run", "Samples", "described", "load", "outline", "reach", "warn_of_prior"]

# Numbers of steps of ``multistep``, the default solver of a run to which something is bound
STEPS_GIVEN = 30  # for conditions and guidance, as in ``evaluate``
STEPS_STEERED = 50  # for steering and measurements


def reach(domain: Domain, info: DataInfo, spread: float | None = None) -> Reach:
    """Compare the distribution at the end of a model's path with the prior, for data described by ``info``."""
    return Reach.of(domain.sde, domain.t_max, spread or info.spread or 1.0, info.furthest)


def warn_of_prior(domain: Domain, info: DataInfo, spread: float | None = None) -> None:
    """Warn, with advice, if the end of the path does not match the prior (see :mod:`scoresde.sde.reach`)."""
    if (advice := reach(domain, info, spread).advice) is not None:
        warnings.warn(advice, stacklevel=4)  # skips the frame that checks the arguments


# Another condition of the same model, as in Run.given
Against = Condition | int | str | Sequence[int | str] | Tensor


@dataclass(frozen=True)
class Samples:
    """Samples in data units.

    Attributes:
        x: The samples, shape ``(n, *event)``. If the data have levels, all values are levels, except known values that
            were bound by :meth:`Run.given`, which are returned exactly as given.
        solution: The result of the solver: its statistics, and the samples in model units.
        residual: For each sample, the largest difference between its own measurements and those bound to the run, in
            data units, shape ``(n,)``. ``None`` if no measurements are bound or the operator is not linear.
        condition: The condition with which the samples were drawn, or ``None``.
    """

    x: Tensor
    solution: Solution
    residual: Tensor | None = None
    condition: Condition | None = None

    @property
    def mask(self) -> Tensor | None:
        """Which values of the samples are real, bool ``(n, *event)``, or ``None`` if the rows are not padded."""
        mask = None if self.condition is None else self.condition.mask
        return None if mask is None else mask.cpu().expand(self.x.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A model with the units of its data and the settings that are bound to it.

    Args:
        base: The model as it was trained, or any other denoiser.
        codec: The map from data units to model units.
        info: The description of the data.
        config: The configuration of the training run, or ``None`` for a model that was not trained by this package.
        spec: The specification from which the model can be rebuilt, or ``None`` if it is unknown.
        step: Number of training steps completed.
        folder: The run folder, or ``None``.
        device, dtype: Device and precision of the solver states. The defaults are the device and precision of the
            weights.
        condition: The condition on the samples, bound by :meth:`given`.
        scale: The guidance scale, bound by :meth:`guided`.
        against: The model to move away from, bound by :meth:`guided`, or ``None`` for the model without a condition.
        interval: The noise levels at which the model is guided, bound by :meth:`guided`.
        potential: The function whose gradient steers the samples, bound by :meth:`steered`, or ``None``.
        strength: The factor of this gradient, bound by :meth:`steered`.
        rescale: The weight of the estimate with the contrast of the unguided model, bound by :meth:`limited`.
        threshold: The quantile of the estimate that is limited to the range of the data, bound by :meth:`limited`, or
            ``None``.
        path: The path on which to sample, bound by :meth:`on`, or ``None`` for the model's own path.
        changed_data: Whether to accept the run's data even if they have changed. If false, missing rows or different
            data raise an error.
        told: Whether to suppress the warning about a prior that does not match the path.
        operator: The operator in ``cond``, set up for these data, or ``None``. Its measurements are part of the
            model's condition.
        seen: The measurements that the samples must agree with, bound by :meth:`given`.
        measurement: The measurements that a rule uses, bound by :meth:`measured`.
        rule: How measurements change the estimates of a model that was not trained with them, bound by
            :meth:`measured`, or ``None``.
        noise: The standard deviation of the noise of the measurements, bound by :meth:`measured`.
        begin: The data from which sampling starts, in the units of the data's own codec, ``(n, *event)``, bound by
            :meth:`near`, or ``None``.
        at: The amount of noise that is added to these data, bound by :meth:`near`.
    """

    base: Denoiser
    codec: Codec
    info: DataInfo
    config: TrainConfig | None = None
    spec: ModelSpec | None = None
    step: int = 0
    folder: Path | None = None
    device: torch.device = None  # type: ignore[assignment]  # filled in below
    dtype: torch.dtype = None  # type: ignore[assignment]
    condition: Condition | None = None
    scale: float = 1.0
    against: Run | Denoiser | Against | None = None
    interval: tuple[float, float] = ALL
    potential: Potential | None = None
    strength: float = 1.0
    rescale: float = 0.0
    threshold: float | None = None
    path: SDE | None = None
    changed_data: bool = False
    told: bool = False
    operator: Operator | None = None
    seen: Seen | None = None
    measurement: Seen | None = None
    rule: str | Rule | None = None
    noise: float = 0.0
    begin: Tensor | None = None
    at: float = 1.0

    def __post_init__(self) -> None:
        weights = next(self.base.parameters(), None) if isinstance(self.base, nn.Module) else None
        if self.device is None:
            object.__setattr__(self, "device", torch.device("cpu") if weights is None else weights.device)
        if self.dtype is None:
            object.__setattr__(self, "dtype", torch.float32 if weights is None else weights.dtype)

    def __repr__(self) -> str:
        sde = type(self.base.domain.sde).__name__
        shape = " x ".join(map(str, self.info.shape))
        bound = [] if self.condition is None else [f"given {self._names()}"]
        bound += [] if self.scale == 1.0 else [f"guided {self.scale:g}"]
        bound += [] if self.potential is None else ["steered"]
        bound += [f"rescaled by {self.rescale:g}"] if self.rescale else []
        bound += [] if self.threshold is None else [f"limited at the quantile {self.threshold:g}"]
        bound += [] if self.measurement is None else [f"measured by {self.measurement.operator}"]
        bound += [] if self.path is None else [f"on {self.path!r}"]
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [
            f"Run {self.folder or '(not saved)'}: {type(self.base).__name__} on {sde}, step {self.step:,}",
            f"{self.info.kind}s of {self.info.name}, {shape}, {dtype} on {self.device}",
            *([", ".join(bound)] if bound else []),
            *([short] if (short := reach(self.base.domain, self.info, self._spread).short) else []),
        ]
        return "\n".join(lines)

    @property
    def _spread(self) -> float:
        """The root mean square of the data in model units, or 1 if it is unknown."""
        options = {} if self.config is None else self.config.predict_options
        return self.info.spread or float(options.get("data_std", 1.0))

    def _names(self) -> str:
        """Describe the bound condition in words."""
        assert self.condition is not None
        known = self.condition
        shapes = {name: getattr(known, name).shape for name in SLOTS[1:] if getattr(known, name) is not None}
        words = [f"{name} of shape {tuple(shape)}" for name, shape in shapes.items()]
        words += [] if known.mask is None else ["masks"]
        if known.label is None:
            return ", ".join(words)
        classes, label = (*self.info.classes, "none"), known.label
        found = [classes[i] if i < len(classes) else str(i) for i in label[:5].tolist()]
        more = f", ... ({len(label)} rows)" if len(label) > 5 else ""
        return ", ".join([*found, *words]) + more

    # ------------------------------------------------------------------------------------------------------- binding

    def given(
        self,
        known: Condition | int | str | Sequence[int | str] | Tensor | npt.ArrayLike | None = None,
        *,
        text: str | Sequence[str] | None = None,
        operator: str | Operator | None = None,
        each: int = 1,
        seed: int = 0,
    ) -> Run:
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
    ) -> Run:
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
                rest = torch.ones_like(data.test, dtype=torch.bool)
                complete = torch.cat([data.complete, rest])[index]
            seen = measured(x[index], chosen, Noise.of(len(index), seed), complete)
        return self._given(condition, seen, each)

    def of_rows(self, data: Dataset, index: Tensor, *, split: str = "test", seed: int = 0) -> Run:
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
                f"the data have classes that {self.folder or 'this model'} was not trained on: {_listed(strange)}; "
                f"leave out these classes, or rename them to classes of the run: {_listed(self.info.classes)}",
                parameter="label",
            )
        return torch.tensor([ours[name] for name in classes], dtype=torch.int64)

    def typical(self, n: int, seed: int = 0) -> Run:
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

    def _given(self, condition: Condition, seen: Seen | None, each: int) -> Run:
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

    def _trained_here(self, what: str) -> TrainConfig:
        if self.config is None:
            raise UsageError(f"{what} taken from rows of a data set requires a run trained by this package")
        return self.config

    @property
    def _dropped(self) -> float | None:
        """The fraction of conditions dropped in training, or ``None`` if it is unknown or there are no conditions."""
        if self.config is None or not isinstance(self.base, ScoreModel):
            return None
        return self.config.cond_drop if self.base.classes > 0 or self.config.sources.rich else None

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
                    f"on: {_listed(seen)}",
                    parameter="label",
                    value=seen[0] if seen else None,
                )

    def _never_without(self, what: str) -> UsageError:
        """Return the error for ``what``, which needs a model that was also trained without conditions."""
        if not (isinstance(self.base, ScoreModel) and self.base.classes and self.info.classes):
            return UsageError(
                f"{self.folder or 'this model'} was trained with cond_drop=0, so every training sample had its "
                f"condition, and {what} is not possible; pass a condition without guidance, or train with "
                "cond_drop=0.1",
                parameter="cond_drop",
                value=0.1,
            )
        return UsageError(
            f"{self.folder or 'this model'} was trained with cond_drop=0, so every training sample had its label, and "
            f"{what} is not possible; pass one of its classes ({_listed(self.info.classes)}) without guidance, or "
            "train with cond_drop=0.1",
            parameter="cond_drop",
            value=0.1,
        )

    @checked(n=COUNT)
    def example_labels(self, n: int) -> Tensor | None:
        """Return a label for each of ``n`` samples if the run cannot be used without labels, or ``None`` if it can.

        The classes occur in the proportions of the training data, or equally often if the proportions are unknown. A
        larger ``n`` appends labels without changing the earlier ones.

        Returns:
            Class indices, int64 ``(n,)``.
        """
        if self._dropped != 0 or not isinstance(self.base, ScoreModel) or not self.base.classes:
            return None
        counts = self.info.trained if len(self.info.trained) == self.base.classes else ()
        shares = torch.tensor(counts if sum(counts) else [1] * self.base.classes, dtype=torch.float64).cumsum(0)
        # Multiples of the golden ratio, modulo 1, fill [0, 1) evenly for any n.
        u = ((torch.arange(n, dtype=torch.float64) + 0.5) * (math.sqrt(5) - 1) / 2) % 1
        return torch.searchsorted(shares, u * shares[-1], right=True)

    def class_index(self, name: str) -> int:
        """Return the index of the class called ``name``. An index written as text is also accepted.

        Raises:
            UsageError: If there is no such class.
        """
        names = list(self.info.classes)
        if name in names:
            return names.index(name)
        if name.isdecimal() and len(name) < 10 and int(name) < len(names):
            return int(name)
        raise UsageError(f"unknown class {name!r}; {closest(name, names)}", parameter="label")

    @checked(scale=SCALE, interval=Range(0, infinite=True))
    def guided(
        self,
        scale: float,
        against: Run | Denoiser | Against | None = None,
        interval: tuple[float, float] = ALL,
    ) -> Run:
        """Return the run with guidance: its estimates move away from those of another model.

        Args:
            scale: The strength of the guidance. Scale 1 means the model itself, and scale 0 the model ``against``.
            against: The model to move away from. ``None`` means this model without its condition (classifier-free
                guidance), and a class or a condition means this model with that condition. A run may be the same run at
                an earlier step (``load(folder, step=400)``). Any other denoiser is used as it is.
            interval: The lowest and the highest noise level sigma/alpha at which the model is guided.

        Raises:
            UsageError: If ``against`` is a run with different units, or a class that the model does not have, or if the
                interval is invalid.
        """
        check_interval(interval)
        run = replace(self, scale=float(scale), against=against, interval=(interval[0], interval[1]))
        run._against()  # reports a model that cannot be used
        return run

    def _against(self) -> Denoiser:
        """Return the model to move away from. Steering, measurements and a path are applied to the guided model."""
        against = self.against
        if against is None:
            return self._without
        if isinstance(against, Run):
            mine, theirs = (run.codec.continuous for run in (self, against))
            if against.info.shape != self.info.shape or _identity(mine) != _identity(theirs):
                raise UsageError(
                    f"a run can only be guided by a run with the same units, but {against.folder or 'the other run'} "
                    f"was trained on {against.info.name} in other units; train both runs on the same data",
                    parameter="against",
                )
            return against._plain.model
        if not isinstance(against, Condition | int | str | Tensor | Sequence | np.ndarray):
            return against
        bare = replace(self._plain, scale=1.0, against=None, interval=ALL)
        if self.condition is not None and not isinstance(against, Condition):
            label = self._labelled(against).label  # the rest of the condition stays
            assert label is not None and isinstance(self.base, ScoreModel)
            self._check_trained(label)
            return self.base.given(replace(self.condition, label=label.to(self.device)))
        return replace(bare, seen=None).given(against).model

    @property
    def _plain(self) -> Run:
        """The run with its condition and its guidance, but without any other setting that is bound to it."""
        return replace(
            self, potential=None, rescale=0.0, threshold=None, measurement=None, rule=None, noise=0.0, path=None,
            begin=None, told=True,
        )  # fmt: skip

    @checked(scale=Range(-1e6, 1e6))
    def steered(self, potential: Potential | None, scale: float = 1.0) -> Run:
        """Return the run with steering: its samples follow the gradient of a function (:class:`scoresde.Steered`).

        Args:
            potential: A function of an :class:`~scoresde.Estimate` in model units, which returns one number for
                each row, ``(B,)``: the log-likelihood of what is wanted. ``None`` removes the steering.
            scale: The factor by which the gradient is multiplied.
        """
        return replace(self, potential=potential, strength=float(scale))

    @checked(rescale=FRACTION, threshold=QUANTILE)
    def limited(self, rescale: float = 0.0, threshold: float | None = None) -> Run:
        """Return the run whose guided or steered estimates keep the contrast and the range of the data.

        A large scale of the guidance gives samples with too much contrast and with saturated values. If both limits are
        set, estimates are rescaled first.

        Args:
            rescale: The weight, 0 to 1, of an estimate with the standard deviation of that without guidance and
                steering (:class:`scoresde.Rescaled`). 0 changes nothing.
            threshold: The quantile, above 0 and up to 1, of the absolute values of an estimate that is scaled down to
                the range of the data (:class:`scoresde.Thresholded`). ``None`` sets no limit.

        Raises:
            UsageError: If ``threshold`` is set, but the data are not pictures, volumes or signals, whose values have a
                common range.
        """
        if threshold is not None and self.info.kind == "vector":
            raise UsageError(
                f"a threshold limits the values of pictures and signals to their range, but {self.info.name} has "
                "vectors, whose values have no common range; leave out the threshold",
                parameter="threshold",
            )
        return replace(self, rescale=float(rescale), threshold=threshold)

    @property
    def _extreme(self) -> float:
        """The largest absolute value of the data in model units."""
        info, width = self.info, 0.0
        if info.levels:
            width = (info.high - info.low) / (info.levels - 1)  # a level is the lower end of its cell
        ends = torch.tensor([info.low, info.high + width], dtype=torch.float64).reshape(2, *[1] * len(info.shape))
        return float(self.codec.continuous.to_model(ends.expand(2, *info.shape), None).abs().max())

    @checked(noise=NONNEGATIVE, each=COUNT, seed=SEED)
    def measured(
        self,
        operator: str | Operator,
        y: Tensor | npt.ArrayLike,
        noise: float = 0.0,
        rule: str | Rule = "moment",
        *,
        each: int = 1,
        seed: int = 0,
    ) -> Run:
        """Return the run whose samples agree with measurements that the model was not trained with.

        Args:
            operator: A linear operator, such as ``"pool:2"``.
            y: The measurements in data units, ``(n, *measured)``. An array with the shape of samples contains the true
                samples, which are measured here, or samples with NaN for missing values
                (:func:`scoresde.run.seen.understood`).
            noise: The standard deviation of the noise of the measurements, in data units. With 0, the samples agree
                with the measurements as far as the levels and the range of the data allow.
            rule: ``moment``, ``pseudoinverse``, ``projection``, or a function (:mod:`scoresde.guidance.measured`).
            each: Number of samples for each measurement. Sample i belongs to measurement ``i // each``.
            seed: Seed for operators that draw random numbers, and for the noise of measurements made here.

        Raises:
            UsageError: If the operator is not linear, if the measurements do not fit it, or if the model has no score
                and the rule needs one.
        """
        made = parse(operator, read_mask=mask_from_file) if isinstance(operator, str) else operator
        made = made.on(self.info.shape, self.info.low, self.info.high)
        image = as_tensor(y)
        seen = understood(image, made, Noise.of(len(image), seed))
        if seen.truth is not None and noise > 0:
            drawn = Noise.of(len(image), seed).normal(tuple(seen.y.shape[1:]), 1, "condition", torch.float64)
            drawn = drawn if seen.hidden is None else torch.where(seen.hidden, 0.0, drawn)
            seen = replace(seen, y=seen.y + noise * drawn)
        if seen.truth is None and noise < (self.info.high - self.info.low) / 8:
            warn_of_shown(seen.shown, self.codec, self.info, 5)
        index = torch.arange(len(seen) * each) // each
        known = seen.rows(index) if each > 1 else seen
        run = replace(self, measurement=known, rule=rule, noise=float(noise))
        run._measured(run.base)  # reports an operator or a rule that cannot be used
        return run

    def _measured(self, model: Denoiser) -> Denoiser:
        """Return a model whose samples agree with the bound measurements."""
        known = self.measurement
        assert known is not None and known.operator is not None and self.rule is not None
        y = known.y.to(self.device)
        return Measured(model, known.operator, y, self.noise, self.rule, self.codec, self._spread)

    @property
    def answered(self) -> Seen | None:
        """The bound measurements, whether a rule or the network uses them, or ``None``."""
        return self.seen if self.measurement is None else self.measurement

    def on(self, path: str | SDE | None) -> Run:
        """Return the run on another path, restricted to the noise levels of the model (see :func:`scoresde.convert`).

        Args:
            path: The SDE of the path, as a name in :data:`scoresde.core.tables.SDES`, as ``module:Class``, or as an
                object. ``None`` means the model's own path.
        """
        return replace(self, path=None if path is None else build(path, SDES, "SDE", typed=True, kind=SDE))

    @checked(at=FRACTION, each=COUNT)
    def near(self, x: Tensor | npt.ArrayLike | None, at: float = 0.5, *, each: int = 1) -> Run:
        """Return the run whose samples resemble given data (SDEdit; Meng et al. 2022, arXiv:2108.01073).

        Sampling starts from the data with noise, and not from the prior.

        Args:
            x: The data in data units, ``(n, *event)``. ``None`` removes them.
            at: The amount of noise, as the fraction sigma/(alpha + sigma). The closer it is to 0, the closer the
                samples are to the data. With 1, sampling starts from almost pure noise.
            each: Number of samples for each row of ``x``. Sample i belongs to row ``i // each``.

        Raises:
            DataError: If the data do not have the shape of the run's data, or are not finite.
        """
        if x is None:
            return replace(self, begin=None, at=1.0)
        # The data are stated in the space of the path when sampling starts, because a condition may be bound later.
        middle = torch.full(as_tensor(x).shape, 0.5, dtype=torch.float64)
        x = self.checked(x, dequantise=False).cpu().double()
        begin = (
            self.codec.own.to_model(x, self.condition, middle).to(self.device, self.dtype).repeat_interleave(each, 0)
        )
        return replace(self, begin=begin, at=float(at))

    def _middle(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Convert data to model units. Each level is mapped to the middle of its cell."""
        x = self._in_space(self.checked(x, dequantise=False))
        return self.to_model(x, torch.full(x.shape, 0.5, dtype=torch.float64))

    def _in_space(self, x: Tensor) -> Tensor:
        """Return data ``x: (n, *event)`` in data units, after checking that the path can be stated at these data."""
        if self.codec.space.parts:
            self.codec.require(self.condition)
            self.codec.check(x.cpu().double(), None if self.condition is None else self.condition.to("cpu"))
        return x

    def rows(self, index: Tensor) -> Run:
        """Return the run for the rows at the int64 positions ``index: (B,)`` of everything that is bound to it."""
        known = None if self.condition is None else self.condition.rows(index)
        seen, measurement = (None if s is None else s.rows(index) for s in (self.seen, self.measurement))
        begin = None if self.begin is None else select(self.begin, index.to(self.begin.device))
        against = self.against
        if isinstance(against, Tensor):
            against = select(against, index)
        elif isinstance(against, Sequence) and not isinstance(against, str):
            against = [against[i] for i in index.tolist()]
        elif against is not None and not isinstance(against, int | str):
            against = against.rows(index)
        return replace(
            self, codec=self.codec.rows(index), condition=known, seen=seen, measurement=measurement, begin=begin,
            against=against,
        )  # fmt: skip

    @property
    def _without(self) -> Denoiser:
        """The model with its condition dropped, as in training."""
        nothing = None if self.config is None else self.config.nothing(self.info)
        if self.condition is not None and self.condition.mask is not None:  # a mask is never dropped
            nothing = replace(nothing or Condition(), mask=self.condition.mask)
        if nothing is None or not isinstance(self.base, ScoreModel):
            return self.base
        return self.base.given(nothing.to(self.device).to_dtype(self.dtype))

    @cached_property
    def model(self) -> Denoiser:
        """The model with all bound settings applied, as it is passed to solvers and likelihoods."""
        model = self._without
        if self.condition is not None and isinstance(self.base, ScoreModel):
            model = self.base.given(self.condition)
        labelled = isinstance(self.base, ScoreModel) and self.base.classes > 0
        if self._dropped == 0 and (self.condition is None or (labelled and self.condition.label is None)):
            raise self._never_without("leaving out the label" if labelled else "leaving out the condition")
        if self.scale != 1.0 and self.against is not None:
            model = Guided(model, self._against(), self.scale, self.interval)
        elif self.scale != 1.0:
            if self.condition is None:
                raise UsageError(
                    f"guidance {self.scale:g} requires a condition, as in run.given(label).guided({self.scale:g})",
                    parameter="label",
                )
            if self._dropped == 0:
                raise self._never_without(f"guidance {self.scale:g}")
            model = Guided(model, self._against(), self.scale, self.interval)
        if self.potential is not None:
            model = Steered(model, self.potential, self.strength)
        if self.rescale:
            if self.scale == 1.0 and self.potential is None:
                raise UsageError(
                    f"rescale={self.rescale:g} restores the contrast of the model without guidance, so it has no "
                    "effect on a run that is neither guided nor steered; set a scale of guidance, or leave it out",
                    parameter="guidance",
                    value=2,
                )
            model = Rescaled(model, self.rescale)
        if self.threshold is not None:
            model = Thresholded(model, self.threshold, self._extreme)
        if self.rule is not None:
            model = self._measured(model)
        model = model if self.path is None else convert(model, self.path)
        support = self.codec.support(self.condition)
        return model if support is None else Supported(model, support)

    @property
    def needs(self) -> frozenset[str]:
        """What the space of the run needs of each row's condition: ``image``, ``mask``, both or nothing."""
        return frozenset(need for part in self.codec.space.parts for need in getattr(part, "needs", ()))

    @property
    def _masked(self) -> Masked | None:
        """The space of padded rows, or ``None`` if the rows are not padded."""
        return next((part for part in self.codec.space.parts if isinstance(part, Masked)), None)

    def masked(self, mask: Tensor | npt.ArrayLike | None = None, *, n: int = 0, start: int = 0) -> Run:
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

    def _whole(self, mask: Tensor) -> Tensor:
        """Return a mask ``(n, ...)`` as bool ``(n, *event)``. It may lack the last axes of a sample."""
        event, given = self.info.shape, tuple(mask.shape[1:])
        if mask.ndim == 0 or given != event[: len(given)] or not bool(((mask == 0) | (mask == 1)).all()):
            raise UsageError(
                f"a mask must be true or false for each value of a sample, (n, {', '.join(map(str, event))}), or for "
                f"its first axes, but got {mask.dtype} of shape {tuple(mask.shape)}",
                parameter="given",
            )
        whole = mask.bool().reshape(*mask.shape, *[1] * (len(event) - len(given)))
        return whole.expand(len(mask), *event)

    def _bound(self, count: int) -> Denoiser:
        """Check that the condition and the measurements fit ``count`` rows, and return the model."""
        self.codec.require(self.condition)
        if self.condition is not None:
            self.condition.expand(count)  # raises if the number of rows differs
        if self.measurement is not None and len(self.measurement) not in (1, count):
            raise UsageError(
                f"the number of measurements is {len(self.measurement):,}, but the number of samples is {count:,}; "
                "pass one measurement for all samples or one for each sample, or bind them with measured(..., each=K)"
            )
        return self.model

    # ------------------------------------------------------------------------------------------------------- keeping

    def request(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return what results depend on, as plain JSON values.

        This includes the model, the settings bound to it, and the settings in ``asked``, but no condition with several
        rows.
        """
        known = self.condition
        one = None if known is None or len(known) > 1 else digest(*_tensors(known))
        label = None if known is None or one is None or known.label is None else known.label.tolist()
        try:
            spec = self.spec if isinstance(self.base, ScoreModel) else None
            made_of = outline(self.base) if spec is None else json.dumps(spec.to_dict(), sort_keys=True)
        except UsageError:  # a user-defined codec has no name
            made_of = repr(self.base)
        facts = {
            "step": self.step, "model": digest(made_of, repr(self.codec)), "weights": digest(*_tensors(self.base)),
            "label": label, "condition": one, "guidance": self.scale, "path": None if self.path is None else self.path,
            "dtype": str(self.dtype).removeprefix("torch."), "device": self.device.type,
        }  # fmt: skip
        if self.scale != 1.0 and self.against is not None:
            facts["against"] = _identity(self._against())
        if tuple(self.interval) != ALL:
            facts["interval"] = [str(end) for end in self.interval]
        if self.potential is not None:
            facts |= {"potential": _identity(self.potential), "strength": self.strength}
        if self.rescale:
            facts["rescale"] = self.rescale
        if self.threshold is not None:
            facts["threshold"] = self.threshold
        if self.measurement is not None:
            facts |= {"measured": str(self.measurement.operator), "noise": self.noise, "rule": outline(self.rule)}
            facts["y"] = digest(*_tensors(self.measurement)) if len(self.measurement) == 1 else None
        if self.begin is not None:
            facts |= {"at": self.at, "begin": digest(self.begin) if len(self.begin) == 1 else None}
        return plain_request({**facts, **asked})

    def sample_request(self, solver: Solver, **asked: Any) -> dict[str, Any]:
        """Return what samples depend on, in the form of :meth:`request`."""
        options = {f"solver.{name}": value for name, value in options_of(solver).items()}
        name = name_of(solver, SOLVERS)
        name = name.rpartition(":")[2] if name.startswith("scoresde.") else name
        return self.request({"solver": name, **options, **asked})

    def score_request(self, likelihood: Likelihood, **asked: Any) -> dict[str, Any]:
        """Return what likelihoods depend on, in the form of :meth:`request`."""
        return self.request({**asdict(likelihood), **asked})

    @property
    def told_digest(self) -> str | None:
        """A digest of the bound condition, including all of its rows, or ``None`` if no condition is bound."""
        return None if self.condition is None else digest(*_tensors(self.condition))

    def _known_of(self, index: Tensor) -> list[Tensor]:
        """Return the conditions and measurements of the rows at ``index``, except those that all rows share."""
        known = [] if self.condition is None or len(self.condition) == 1 else _tensors(self.condition.rows(index))
        if self.measurement is not None and len(self.measurement) > 1:
            known += _tensors(self.measurement.rows(index))
        if self.begin is not None and len(self.begin) > 1:
            known += [self.begin[index]]
        return known

    def _parts_of(self, x: Tensor, keep: str | Path | None, asked: dict[str, Any], start: int) -> Parts | None:
        """Return the store for results computed from ``x``, or ``None`` if ``keep`` is ``None``."""
        if keep is None:
            return None

        def inputs(index: Tensor) -> list[Tensor]:
            return [x[(index - start).cpu()], *self._known_of(index - start)]

        return Parts(Path(keep), asked, inputs)

    # ---------------------------------------------------------------------------------------------------------- data

    def data(self, data: str | Path | None = None) -> Dataset:
        """Load the data of the run, or other data given by name or path, and split them as in training.

        Raises:
            UsageError: If the run was not trained by this package.
            DataError: If the data are missing or unreadable.
        """
        if self.config is None:
            raise UsageError(
                "this run was not trained by this package, so its data are unknown; load them with load_data"
            )
        if data is not None and not isinstance(data, str | Path):
            raise UsageError(
                f"data must be a name or a path, got {type(data).__name__}; use Dataset.of to turn an array into a "
                "data set"
            )
        place = None if data is None else str(data)
        if self.folder is not None:
            return data_of(self.folder, self.config, place, changed=self.changed_data)
        if place is None and self.config.data == ARRAY:
            raise DataError(
                "this run was trained on an array, which is not stored with the run; save the array as an .npy file, "
                "and pass its path"
            )
        return self.config.load_data(place)

    def to_model(self, x: Tensor | npt.ArrayLike, u: Tensor | None = None) -> Tensor:
        """Convert data to model units, on the run's device and in its precision.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            u: Uniform numbers in [0, 1) that spread levels over their cells, with the same shape as ``x``.
        """
        noise = None if u is None else u.cpu().double()
        found = self.codec.to_model(as_tensor(x).cpu().double(), self.condition, noise)
        return found.to(device=self.device, dtype=self.dtype)

    def to_data(self, m: Tensor) -> Tensor:
        """Convert ``m: (n, *event)`` from model units to data units, on the CPU.

        If the data have levels, the values are rounded to levels. The result has the dtype of ``m``, or float64 if
        the data need this precision.
        """
        return self.codec.to_data(m.cpu().double() if self.info.wide else m.cpu(), self.condition)

    # --------------------------------------------------------------------------------------------------------- using

    @property
    def default_solver(self) -> Solver:
        """The solver that draws the samples if none is named.

        It is ``ode``, which solves the flow to a tolerance, for a run to which neither a condition nor guidance,
        steering or measurements are bound. Otherwise, it is ``multistep``, because the flow is less smooth, so that a
        solver with adaptive steps becomes slow: with 50 steps for steering and measurements, and with 30 for the rest.
        Both numbers are enough where they were measured (see the manual, on measuring and on evaluation).
        """
        if self.potential is not None or self.rule is not None:
            return Multistep(STEPS_STEERED)
        return ProbabilityFlow() if self.condition is None and self.scale == 1.0 else Multistep(STEPS_GIVEN)

    @checked(n=COUNT, seed=SEED, start=WHOLE, batch=COUNT)
    def sample(
        self,
        n: int,
        solver: str | Solver | None = None,
        *,
        seed: int = 0,
        start: int = 0,
        denoise: bool = True,
        brownian: bool = False,
        batch: int = 256,
        watch: Watch | None = None,
        record: bool = False,
        keep: str | Path | None = None,
    ) -> Samples:
        """Draw the samples with indices ``start`` to ``start + n - 1``, in data units.

        Args:
            n: Number of samples. A condition with more than one row must have ``n`` rows.
            solver: A name in :data:`scoresde.core.tables.SOLVERS`, or a solver (default: :attr:`default_solver`).
            seed, start: Random seed, and index of the first sample. For each seed, the sample with a given index is the
                same in every call.
            denoise: Whether to end with a noise-free step (see :func:`scoresde.sample`).
            brownian: Whether the noise of a stochastic solver comes from one Brownian path per sample, which does not
                depend on the number of steps.
            batch: Number of samples drawn at once.
            watch: A function that is called with a :class:`~scoresde.solvers.Step` in model units after each step of
                each batch.
            record: Whether to record every step for :meth:`frames`.
            keep: A folder in which each batch is saved as soon as it is complete (:mod:`scoresde.core.parts`). Batches
                that are already there are not computed again. The folder may be removed once the samples are returned.

        Raises:
            UsageError: If an option is invalid, or ``keep`` contains samples drawn with other settings.
        """
        # Memory for the states, for the model's final output, and for the samples in data units.
        size = 3 * math.prod(self.info.shape) * torch.finfo(self.dtype).bits // 8
        enough_memory(n * size, f"{n:,} samples of {self.info.dims:,} numbers", "n")
        if (masked := self.masked(n=n, start=start)) is not self:  # a mask for each sample, as often as in training
            return masked.sample(
                n, solver, seed=seed, start=start, denoise=denoise, brownian=brownian, batch=batch, watch=watch,
                record=record, keep=keep,
            )  # fmt: skip
        chosen = self.default_solver if solver is None else solver
        built: Solver = build(chosen, SOLVERS, "solver", typed=True, kind=Solver)
        if brownian and not built.stochastic:
            raise UsageError(f"{type(built).__name__} draws no noise; brownian requires a stochastic solver")
        model = self._bound(n)
        if not self.told:
            warn_of_prior(model.domain, self.info, self._spread)
        begin, t0 = self.begin, None
        if begin is not None:
            self._bound(n)
            self.codec.space.check(begin, self.condition)
            begin = self.codec.space.to_model(begin, self.condition)
            low, high = model.domain.interval("sample")
            r = torch.tensor(self.at, dtype=torch.float64)
            t0 = min(float(model.domain.sde.t_of_ratio(r)), high)
            if model.domain.nodes is not None:
                nodes = model.domain.nodes
                t0 = float(nodes[(nodes - t0).abs().argmin()])
            if t0 <= low:
                least = float(model.domain.sde.ratio(torch.tensor(low, dtype=torch.float64)))
                raise UsageError(
                    f"at={self.at:g} is not above the noise level {least:.2g} at which sampling stops, so the samples "
                    "would equal the data; use a larger value",
                    parameter="at",
                    value=0.3,
                )
            if len(begin) not in (1, n):
                raise UsageError(
                    f"the samples start from {len(begin):,} rows of data, but the number of samples is {n:,}; pass one "
                    "row for all samples or one for each sample, or bind them with near(..., each=K)"
                )
        parts = None
        if keep is not None:
            asked = self.sample_request(built, seed=seed, start=start, denoise=denoise, brownian=brownian)
            parts = Parts(Path(keep), {**asked, "record": record}, lambda index: self._known_of(index - start))
        solution = sample(
            model,
            built,
            self.codec.model_shape(self.info.shape),
            Noise.of(n, seed, start, self.device, brownian=brownian),
            denoise=denoise,
            batch=batch,
            dtype=self.dtype,
            watch=watch,
            record=record,
            parts=parts,
            data=begin,
            t0=t0,
        )
        known = self.seen if self.measurement is None else self.measurement if self.noise == 0 else None
        if known is None:
            return Samples(self.to_data(solution.x), solution, condition=self.condition)
        exact = self.codec.continuous.to_data(solution.x.cpu().double(), self.condition)
        x, residual = known.agreeing(exact, self.codec, self.info)
        return Samples(x if self.info.wide else x.to(solution.x.dtype), solution, residual, self.condition)

    @checked(rtol=RTOL, batch=COUNT)
    def encode(self, x: Tensor | npt.ArrayLike, *, rtol: float = 1e-5, batch: int = 256) -> Tensor:
        """Follow the probability flow from data to noise, and return the noise, float ``(n, *event)``.

        If a model is exact, the noise of data is a sample from the prior. :meth:`decode` is the inverse.

        Args:
            x: Data in data units, ``(n, *event)``.
            rtol: Relative tolerance of the solver.
            batch: Number of rows solved at once.

        Raises:
            DataError: If the data do not have the shape of the run's data, or are not finite.
            NumericalError: If the solver fails.
        """
        low, high = self.model.domain.interval("sample")
        return self._flow(self._middle(x), low, high, rtol, batch)

    @checked(rtol=RTOL, batch=COUNT)
    def decode(self, z: Tensor, *, rtol: float = 1e-5, batch: int = 256) -> Tensor:
        """Follow the probability flow from noise to data, and return the data in data units, ``(n, *event)``.

        The arguments are those of :meth:`encode`. ``decode(encode(x))`` returns ``x`` up to the error of the solver,
        and exactly if the data have levels and this error is less than half a level.
        """
        low, high = self.model.domain.interval("sample")
        return self.to_data(self._flow(z.to(self.device, self.dtype), high, low, rtol, batch))

    @checked(n=SEVERAL, rtol=RTOL)
    def interpolate(
        self, a: Tensor | npt.ArrayLike, b: Tensor | npt.ArrayLike, n: int = 9, *, rtol: float = 1e-5
    ) -> Tensor:
        """Return ``n`` steps from one row of data to another, on an arc between their noise, ``(n, *event)``.

        The arc keeps the norm of the noise (spherical interpolation; Song, Meng and Ermon 2021, arXiv:2010.02502,
        eq. 67). The first and the last step are the rows themselves, up to the error of the solver.

        Args:
            a, b: The rows, ``(*event)`` in data units.
            n: Number of steps, including both rows.
            rtol: Relative tolerance of the solver.
        """
        z = self.encode(torch.stack([as_tensor(a), as_tensor(b)]), rtol=rtol).double()
        first, last = z.flatten(1)
        cosine = (first @ last / (first.norm() * last.norm())).clamp(-1, 1)
        angle, share = torch.acos(cosine), torch.linspace(0, 1, n, dtype=torch.float64, device=z.device)[:, None]
        if float(angle) < 1e-6:
            arc = first + share * (last - first)
        else:
            arc = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)
        return self.decode(arc.reshape(n, *z.shape[1:]), rtol=rtol)

    def _flow(self, x: Tensor, t0: float, t1: float, rtol: float, batch: int) -> Tensor:
        """Move states along the probability flow from ``t0`` to ``t1``."""
        if self._bound(len(x)).domain.nodes is not None:
            raise UsageError(
                "the flow of a discrete chain cannot be followed exactly; convert the run first, as in run.on('vp')"
            )
        found = []
        for index in torch.split(torch.arange(len(x), device=self.device), batch):
            solved = ProbabilityFlow(rtol=rtol)(self.model.rows(index), x[index], t0=t0, t1=t1)
            if not bool(solved.ok.all()):
                raise NumericalError("; ".join(solved.failures()))
            found.append(solved.x)
        return torch.cat(found)

    @checked(count=FRAMES)
    def frames(self, samples: Samples, count: int = 40) -> tuple[Tensor, Tensor]:
        """Return recorded states, from the noise to the samples, as the frames of an animation.

        Args:
            samples: Samples drawn with ``record=True``.
            count: Number of frames.

        Returns:
            Times, shape ``(count,)``, and states in data units, shape ``(count, n, *event)``. The last state equals the
            samples.
        """
        trajectory = samples.solution.trajectory
        if trajectory is None:
            raise UsageError("these samples have no trajectory; draw them with record=True")
        times, states = trajectory.frames(count)
        states = states.double() if self.info.wide else states
        shown = torch.stack([self.codec.continuous.to_data(state, samples.condition) for state in states])
        shown[-1] = samples.x
        return times, shown

    @checked(seed=SEED, start=WHOLE, batch=COUNT, memory=WHOLE)
    def log_likelihood(
        self,
        x: Tensor | npt.ArrayLike,
        likelihood: Likelihood | None = None,
        *,
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
        memory: int | None = None,
        check: bool = True,
        watch: Callable[[Scores], object] | None = None,
        keep: str | Path | None = None,
    ) -> Scores:
        """Compute the log-likelihood of data under the probability flow.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            likelihood: The method and its settings (default: ``Likelihood()``).
            seed, start: Random seed, and index of the first sample. They determine the random numbers for
                dequantisation and for probes.
            batch, memory, check, watch: See :meth:`scoresde.Likelihood.__call__`.
            keep: A folder in which each batch is saved, as in :meth:`sample`.

        Raises:
            DataError: If :meth:`checked` rejects the data.
            UsageError: If ``keep`` contains results computed with other settings or data.
        """
        how = likelihood or Likelihood()
        x = self._in_space(self.checked(x, dequantise=how.dequantisation != "none"))
        warn_of_units(x, self.codec, self.info, stacklevel=4)
        noise = Noise.of(len(x), seed, start, self.device)
        parts = self._parts_of(x, keep, self.score_request(how, seed=seed, start=start), start)
        return how(
            self._bound(len(x)), x, noise, self.codec, batch=batch, memory=memory, check=check, watch=watch,
            dtype=self.dtype, parts=parts, condition=self.condition,
        )  # fmt: skip

    @checked(strata=STEPS, draws=STEPS, t_min=TIME, seed=SEED, start=WHOLE, batch=COUNT)
    def elbo(
        self,
        x: Tensor | npt.ArrayLike,
        *,
        dequantise: bool = True,
        strata: int = 64,
        draws: int = 1,
        t_min: float | None = None,
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
        keep: str | Path | None = None,
    ) -> Elbo:
        """Compute a variational lower bound on the log-likelihood of data.

        The bound applies to the density of samples generated by the model's reverse SDE. For a guided model, this is
        neither the density of its flow nor the density proportional to ``p(x) p(condition | x)^scale``. The result
        names the density that is bounded.

        Data stored as levels are dequantised with the same random numbers as in :meth:`log_likelihood`. For
        a model with nodes, the bound is that of its discrete chain, estimated from one noisy state per node
        (:func:`scoresde.likelihood.chain.bound`), and ``reconstruction`` contains the decoder term.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            dequantise: Whether to dequantise data stored as levels. If false, the bound applies to a density.
            strata, draws, t_min: See :func:`scoresde.elbo`. A chain ignores these options.
            batch: Number of states evaluated at once.
            seed, start: Random seed, and index of the first sample. They determine all random numbers.
            keep: A folder in which the bounds of each batch of samples are saved, as in :meth:`sample`.

        Raises:
            DataError: If :meth:`checked` rejects the data.
            UsageError: If ``keep`` contains results computed with other settings or data.
        """
        x = self._in_space(self.checked(x, dequantise=dequantise))
        warn_of_units(x, self.codec, self.info, stacklevel=4)
        noise = Noise.of(len(x), seed, start, self.device)
        if dequantise:
            u, codec = noise.uniform(self.info.shape, stream="dequantise", dtype=torch.float64), self.codec
        else:
            u, codec = torch.full(x.shape, 0.5).double(), self.codec.continuous  # the middle of a cell
        model = self._bound(len(x))
        log_det = codec.log_det(x, self.condition)
        if log_det is None:
            raise undefined(codec, x, self.condition)
        encoded = self.to_model(x, u)
        asked = {"strata": strata, "draws": draws, "t_min": t_min, "dequantise": dequantise}
        parts = self._parts_of(x, keep, self.request({**asked, "seed": seed, "start": start}), start)
        batch = batch if parts is None else parts.batch(batch)

        def solved(rows: Tensor) -> Elbo:
            own = (model.rows(rows), encoded[rows])
            if model.domain.nodes is None:
                return elbo(*own, strata=strata, draws=draws, t_min=t_min, noise=noise.rows(rows), batch=batch)
            chain = bound(*own, noise.rows(rows))
            nan = torch.full_like(chain.prior, torch.nan)
            return Elbo(chain.prior, chain.steps, chain.data, nan, chain.nfe, whose(model, "chain"))

        def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Elbo:
            return Elbo.unpack(tensors, facts, self.device)

        pieces = []
        for rows in torch.split(torch.arange(len(x), device=self.device), max(1, batch)):
            solve = partial(solved, rows)
            pieces.append(solve() if parts is None else parts.piece(noise.indices[rows], solve, Elbo.pack, unpack))
        terms = Elbo.join(pieces)
        # -log p(x) = -log p(m) - log_det, and the last term belongs to the decoder
        return replace(terms, reconstruction=terms.reconstruction - log_det)

    def checked(self, x: Tensor | npt.ArrayLike, name: str = "", *, dequantise: bool = True) -> Tensor:
        """Return data as a tensor, after checking that the model assigns a probability or a density to them.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            name: The name of the data, for messages.
            dequantise: Whether to require that all values are levels, if the run's data have levels. If false, all
                finite values are accepted, because each has a density.

        Raises:
            DataError: If the shape differs from that of the run's data, or a value is not finite or not a level of the
                run's data.
        """
        x, info, whose = as_tensor(x), self.info, f"the samples of {name} have" if name else "the samples have"
        if tuple(x.shape[1:]) != info.shape:
            raise DataError(
                f"{whose} shape {tuple(x.shape[1:])}, but those of {info.name}, which the model was trained on, have "
                f"shape {info.shape}"
            )
        where, levels = name or "the data", self.codec.levels
        mask = None if self.condition is None else self.condition.mask
        if x.is_floating_point() and not bool(x.isfinite().all()):
            bad = (~x.isfinite()).flatten(1).any(1).nonzero().flatten()
            raise DataError(
                f"{where}: NaN or infinite values in {len(bad):,} of {len(x):,} samples (the first at index "
                f"{int(bad[0])}); remove these samples"
            )
        if levels is None or not dequantise:
            return x
        off = levels.to_data(x) != x
        off = off if mask is None else off & mask.to(off.device)
        if bool(off.any()):
            raise DataError(
                f"{where}: the values range from {float(x.min()):g} to {float(x.max()):g}, and {float(x[off][0]):g} is "
                f"not a level of {info.name}, which the model was trained on ("
                f"{f'{info.levels} ' if info.levels else ''}levels in [{info.low:g}, {info.high:g}]); the model "
                "assigns no probability to other values"
            )
        return x


def _tensors(thing: object) -> list[Tensor]:
    """Return all tensors in a model, or in a dataclass such as a condition, in a fixed order."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, nn.Module):
        return list(thing.state_dict().values())
    return [t for f in fields(thing) for t in _tensors(getattr(thing, f.name))] if is_dataclass(thing) else []


def _identity(thing: object) -> str:
    return digest(outline(thing), *_tensors(thing))


def outline(thing: object) -> str:
    """Describe what a model, a function or a setting is, except for its tensors, in the same words in each process."""
    if isinstance(thing, Tensor):
        return f"tensor {tuple(thing.shape)}"
    if isinstance(thing, nn.Module):
        return re.sub(r"\s+", " ", repr(thing))
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(outline, thing))})"
    if is_dataclass(thing) and not isinstance(thing, type):
        inside = ", ".join(f"{f.name}={outline(getattr(thing, f.name))}" for f in fields(thing) if f.init)
        return f"{type(thing).__module__}.{type(thing).__qualname__}({inside})"
    if isinstance(thing, FunctionType):
        code, cells = thing.__code__, thing.__closure__ or ()
        inside = outline([cell.cell_contents for cell in cells])
        return f"{thing.__module__}.{thing.__qualname__} {code.co_code.hex()} {code.co_names} {inside}"
    return repr(thing)


def _listed(names: Sequence[str], most: int = 10) -> str:
    """Join the first ``most`` names with commas."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def load(
    run: str | Path | None = None,
    *,
    sde: SDE | type[SDE] | str | None = None,
    network: nn.Module | Callable[..., nn.Module] | str | None = None,
    parametrization: Parametrization | Callable[..., Parametrization] | str | None = None,
    operator: Operator | type[Operator] | str | None = None,
    space: Space | type[Space] | str | None = None,
    step: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    changed_data: bool = False,
    edited: bool = False,
) -> Run:
    """Load a trained run. No code is loaded from the folder.

    Args:
        run: A run folder, a name under ``runs/``, or ``None`` for the newest run.
        sde: The SDE of the run, its class, or ``"module:Name"``. Required if the SDE is not built in.
        network: The network of the run, its class, or ``"module:Name"``. Required if the network is not built in.
        parametrization: The parametrisation of the run, its class, or ``"module:Name"``. Required if the
            parametrisation is not built in.
        operator: The operator in the run's ``cond``, its class, or ``"module:Name"``. Required if the operator
            is not built in.
        space: The space of the run, its class, or ``"module:Name"``. Required if the space is not built in.
        step: The training step of the checkpoint to load (default: the best checkpoint if training selected it, and
            otherwise the newest).
        device, dtype: Device and precision of the computation.
        changed_data: See :class:`Run`.
        edited: Whether to accept, with a warning, files of the run that were changed after they were written.

    Raises:
        CheckpointError: If the folder is not a run folder, is damaged, or requires a class that was not passed.
    """
    folder = find_run(run, edited=edited)

    given: list[Any] = [sde, network, parametrization]
    for i, (table, what) in enumerate(((SDES, "SDE"), (NETWORKS, "network"), (PARAMETRIZATIONS, "prediction"))):
        if isinstance(given[i], str):
            given[i] = resolve(given[i], table, what, typed=True)
    config = TrainConfig.from_dict(read_config(folder))
    info, spec = described(folder, config)
    checkpoint = (
        chosen_checkpoint(folder, edited=edited) if step is None else checkpoint_at(folder, step, edited=edited)
    )
    state = read_object(checkpoint / "state.json")
    try:
        spec = replace(spec, codec=named_again(spec.codec, space))
        model = spec.build(*given)
    except (UsageError, CheckpointError) as error:
        raise CheckpointError(f"{folder}: {error}", parameter=error.parameter, value=error.value) from None
    source = checkpoint / "ema.safetensors"
    load_weights(model.learned, read_tensors(source), source)
    model.to(device=device, dtype=dtype)
    model.eval().requires_grad_(False)
    made = _operator(folder, config, info, operator)
    return Run(
        model, spec.codec, info, config, spec, int(state["step"]), folder, changed_data=changed_data, operator=made
    )


def _operator(
    folder: Path, config: TrainConfig, info: DataInfo, own: Operator | type[Operator] | str | None
) -> Operator | None:
    """Return the operator of a run, with ``own`` as the part that is not built in."""
    asked, kept = config.sources.operator, partial(kept_mask, folder, config.sources.operator)
    if own is None:
        return config.operator_for(info, kept)
    name = own if isinstance(own, str) else name_of(own, OPERATORS)
    parts = [asked] if asked.startswith("mask:") else asked.split("/")
    if name not in parts or name in OPERATORS:
        trained = f"with the operator {asked}" if asked else "without an operator"
        raise UsageError(
            f"{folder} was trained {trained}, so it cannot be loaded with the operator {name}"
            + ("; leave out the operator" if all(part.partition(":")[0] in OPERATORS for part in parts) else ""),
            parameter="operator",
        )
    if isinstance(own, str):
        return replace(config, typed=(own,)).operator_for(info, kept)
    own = own() if isinstance(own, type) else own
    choices = tuple(own if part == name else parse(part, typed=READ, read_mask=kept) for part in parts)
    whole = choices[0] if len(choices) == 1 else OneOf(choices)
    return whole.on(info.shape, info.low, info.high)


def described(folder: Path, config: TrainConfig) -> tuple[DataInfo, ModelSpec]:
    """Read the descriptions of a run's data and of its model.

    A run in format 1 has no ``model.json``. Its codec is an affine map stored in ``data.json``, and its configuration
    specifies the model.

    Raises:
        CheckpointError: If the files are missing or damaged, or contradict each other.
    """
    stored = read_object(folder / "data.json")
    try:
        info = DataInfo.from_dict(stored)
        path = folder / "model.json"
        if not os.path.lexists(path) and "transform" not in stored:
            raise CheckpointError(f"{path} is missing, but the model cannot be rebuilt without it; restore the file")
        spec = ModelSpec.read(path) if os.path.lexists(path) else config.spec(info, old_codec(stored))
    except (DataError, UsageError) as error:
        raise CheckpointError(f"{folder}: {error}", parameter=error.parameter, value=error.value) from None
    config.check_spec(spec, folder)
    return info, spec
