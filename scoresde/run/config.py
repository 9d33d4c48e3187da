"""The configuration of a training run, as a frozen dataclass.

Before training, the configuration is resolved: choices left open are set to suit the data
(:meth:`TrainConfig.resolved`). The result is printed, saved as ``config.json``, and read back by :func:`scoresde.load`.

A configuration may refer to the SDE and other objects by name. The field ``typed`` records which names come from the
user rather than from a file, because only those may import a user's own code (:mod:`scoresde.core.registry`). In a
configuration created in Python, all names come from the user. In one read from a file, none do, and
``dataclasses.replace`` does not change this. To continue training with a class of your own, add its name to ``typed``,
or replace the name with an instance of the class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..codec import Codec, Space, names_of, parse_spaces, space_text
from ..core.condition import SLOTS, Condition
from ..core.errors import CheckpointError, UsageError
from ..core.limits import COUNT, FRACTION, LR, SEED, SHARE, TRAINED, Range, check_fields, ranges
from ..core.registry import READ, Typed, closest, construct, fields_of, moved, name_of, options_of, resolve
from ..core.tables import NETWORKS, OPERATORS, PARAMETRIZATIONS, PRESETS, RATES, SDES, TIME_SAMPLERS, WEIGHTINGS
from ..data import DataInfo, Dataset, Reading, load_data
from ..data.augment import Augmentation
from ..data.given import Sources
from ..data.pictures import mask_from_file
from ..model.parametrization import Parametrization
from ..nn.execution import LAYOUTS, PRECISIONS
from ..nn.labelled import Labelled
from ..objective.coupling import check_coupling
from ..objective.times import TimeSampler
from ..operators import Operator, choices, parse
from ..sde.bands import Shaped
from ..sde.base import SDE
from ..sde.grids import default_grid
from ..sde.modified import SHIFT, Shifted
from .profiles import EXAMPLE, Power, Profile, profiles_of, profiles_text
from .spec import ModelSpec, Part, make_path

__all__ = ["TrainConfig", "build_sde", "plain", "stored_fields"]

# The default prediction for each path whose default is not `edm`.
_PREDICT = {"flow": "velocity"}

# The number of steps, the batch size and the learning rate of each preset. The last two presets are meant for a GPU.
_BUDGET: dict[str, tuple[int, int, float]] = {
    "mlp": (4_000, 512, 2e-3),
    "tiny": (2_000, 64, 2e-3),
    "small": (5_000, 32, 1e-3),
    "base": (100_000, 128, 2e-4),
    "ddpm++": (500_000, 128, 2e-4),
}


_HINT = "0 means the preset's default"
_OR_0 = dataclasses.replace(COUNT, low=0, hint=_HINT)
_RARELY = dataclasses.replace(COUNT, low=0, hint="0 means as often as suits the length of the run")

_PICTURES = 10_000  # maximum number of times that samples are drawn during training

AUTO = "auto"  # determined from the data

# For each field that accepts a name or an object: the type of the object, and the table of names.
_OBJECTS: dict[str, type] = {
    "sde": SDE, "predict": Parametrization, "t_sampler": TimeSampler, "space": Space,
    "weighting": Callable,  # type: ignore[dict-item]
}  # fmt: skip
_TABLES = {"sde": SDES, "predict": PARAMETRIZATIONS, "weighting": WEIGHTINGS, "t_sampler": TIME_SAMPLERS}


def stored_fields() -> tuple[dataclasses.Field[Any], ...]:
    """Return the dataclass fields of :class:`TrainConfig` whose values are stored with a run."""
    return tuple(f for f in dataclasses.fields(TrainConfig) if f.name != "typed")


@dataclass(frozen=True)
class TrainConfig:
    """The complete configuration of a training run.

    Args:
        data: The name of a built-in data set, or a path (see :func:`scoresde.load_data`).
        sde: The SDE: a name in :data:`scoresde.core.tables.SDES`, ``module:Name``, an :class:`~scoresde.SDE`, or an SDE
            class.
        sde_options: The values of the SDE's fields, if ``sde`` is a name or a class.
        shift: Factor by which sigma/alpha is multiplied at every t (:class:`scoresde.sde.modified.Shifted`); 1 leaves
            the SDE unchanged.
        predict: What the network outputs: a name in :data:`scoresde.core.tables.PARAMETRIZATIONS`, ``auto``, or a
            :class:`~scoresde.Parametrization`.
        predict_options: The values of the parametrisation's fields, if ``predict`` is a name.
        weighting: How the loss is weighted: a name in :data:`scoresde.core.tables.WEIGHTINGS` (see
            :mod:`scoresde.objective.weighting`), ``auto`` (``likelihood`` for a learned path, and otherwise the default
            weighting of the parametrisation), or a weighting object.
        weighting_options: The values of the weighting's fields, if ``weighting`` is a name.
        t_sampler: The distribution of training times: a name in :data:`scoresde.core.tables.TIME_SAMPLERS` (see
            :mod:`scoresde.objective.times`), a sampler object, or ``auto``. With ``auto``, the sampler is ``sqrt`` if
            the weighting is ``native`` and the default grid of the SDE is ``sqrt``. It is ``lognormal`` for EDM's path
            with EDM's loss. In all other cases, it is ``low-discrepancy``, because most weightings are defined for
            uniform times.
        t_sampler_options: The values of the time sampler's fields, if ``t_sampler`` is a name.
        coupling: How noise is paired with data: ``independent``, ``ot`` or ``reflow`` (see
            :mod:`scoresde.objective.coupling`).
        preset: A network size in :data:`scoresde.core.tables.PRESETS`, or ``auto`` (chosen to suit the data).
        network_options: Options of the network that override the options in the preset. The entry ``network``, if
            present, names the network to use instead of the preset's.
        learn_variance: Whether the network also learns the variance of the reverse steps of a chain (``ddpm`` or
            ``smld``), with the hybrid loss of :mod:`scoresde.likelihood.chain`.
        augment: How images are augmented in training: ``none``, ``all``, or any of ``flip``, ``vflip``, ``scale`` and
            ``shift``, separated by commas (:mod:`scoresde.data.augment`). The network receives the parameters of each
            augmentation as input, so that samples look like the original data.
        cond: The sources of the model's condition: ``none``, or any of ``class``, ``vector``, ``image``, ``text`` and
            an operator, joined by ``+`` (:mod:`scoresde.data.given`).
        space: The space in whose coordinates the path is stated: ``none``, or names in
            :data:`scoresde.core.tables.SPACES` or ``module:Class``, joined by ``+``, each optionally with the value of
            its first option, as in ``log+basis:dct``; or a :class:`scoresde.codec.Space`.
        cond_drop: Probability of dropping the whole condition of a row, for classifier-free guidance.
        steps, batch, lr: Number of training steps, batch size and learning rate; 0 means the preset's default.
        warmup: Number of steps over which the learning rate rises; 0 means a twentieth of ``steps``, but at most
            5,000.
        decay: How the learning rate decays: a name in :data:`scoresde.core.tables.RATES` (see
            :mod:`scoresde.train.rates`), or ``none``, which means ``constant``.
        decay_options: The values of the decay's fields.
        weight_decay: Decay of the weights of the network towards zero, in addition to the gradient of the loss: each
            step multiplies all of them, biases and gains included, by 1 - lr * weight_decay (AdamW; Loshchilov and
            Hutter 2019, arXiv:1711.05101). 0 is Adam.
        clip: Maximum norm of the gradient; larger gradients are scaled down to this norm.
        ema: The moving averages of the weights: the maximum decay of an exponential average, or several averages
            separated by commas, such as ``0.9999,power:0.05,power:0.1``, where ``power:0.05`` is a power-function
            average of relative width 0.05 (:mod:`scoresde.run.profiles`). The first is the one that is used.
        snapshots: How many times, at equal intervals up to the last step, the power-function averages are stored, from
            which averages of other widths are computed after training (:func:`scoresde.averaged`); 0 means never.
        seed: Seed for the data split, the initial weights, the batches and the noise.
        test_fraction: Fraction of the rows to hold out, if the data have no split of their own.
        split: How the held-out rows are chosen: ``content`` or ``rows`` (see :func:`scoresde.load_data`). Runs made
            before this field was added used ``rows``.
        size, fit, layout, on_bad: Settings for reading files (:class:`scoresde.data.Reading`).
        frechet_every: Number of steps between Fréchet distances of samples (:mod:`scoresde.train.frechet`), which take
            about 33,000 evaluations of the network each time; 0 means that none are computed.
        sample_every: Number of steps between pictures of samples; 0 means pictures after 1, 2, 5, 10, 20, 50 and 100 %
            of the run, or only the last of these, so that pictures take at most a fifth as long as the training steps.
        validate_every: Number of steps between validations, if the data have a validation part; the last step is also
            validated, and there is no validation if the number is larger than ``steps``. 0 means twenty times at most,
            so that validation takes at most a fifth as long as the training steps.
        save_minutes: Maximum time between checkpoints, in minutes. A checkpoint is also saved after each fifth of the
            run.
        accumulate: Number of parts in which each process evaluates its rows of the batch, one after the other, to save
            memory. The batch stays the same.
        recompute: Whether each block of the network is computed again in the backward pass, to save more memory, at the
            cost of another forward pass (:mod:`scoresde.nn.checkpointing`).
        keep: Number of checkpoints to keep. To guide a model by an earlier version of itself
            (:meth:`scoresde.Run.guided`), keep 5 or more.
        workers: Number of threads that read the next batches ahead, for data that stay in their files. It does not
            change any result.
        precision: How the network is computed: ``float32`` (or rather the precision of the weights), ``bf16``, or
            ``auto`` (``bf16`` on a GPU that computes with it, and otherwise ``float32``). Weights, paths and losses
            keep their own precision (:mod:`scoresde.nn.execution`).
        compile: Whether the network is compiled by ``torch.compile``.
        channels_last: Whether the channels of a pixel are neighbours in memory: ``no``, ``yes``, or ``auto`` (whatever
            is faster in a few trial steps at the start). A measured choice differs from run to run, and results depend
            on it by rounding, so it is stored and kept when the run is resumed.
        typed: Which names come from the user rather than from a file: all (true), none (false), or the listed names.
            This field is not stored.
    """

    limits: ClassVar[Mapping[str, Range]] = ranges(
        shift=SHIFT, cond_drop=FRACTION, ema=FRACTION, test_fraction=SHARE, seed=SEED,
        steps=dataclasses.replace(TRAINED, low=0, hint=_HINT), batch=_OR_0, warmup=_OR_0,
        sample_every=_RARELY, validate_every=_RARELY,
        lr=dataclasses.replace(LR, above=False, hint=_HINT), save_minutes=Range(0, infinite=True), keep=COUNT,
        workers=Range(0, 64),
        accumulate=COUNT, snapshots=dataclasses.replace(COUNT, low=0),
        clip=Range(0, above=True, infinite=True, hint="inf disables clipping"),
        weight_decay=Range(0, 1e6), frechet_every=dataclasses.replace(COUNT, low=0, hint="0 means never"),
    )  # fmt: skip

    data: str = "digits"
    sde: str | SDE = "vp"
    sde_options: Mapping[str, Any] = field(default_factory=dict)
    shift: float = 1.0
    predict: str | Parametrization = "auto"
    predict_options: Mapping[str, Any] = field(default_factory=dict)
    weighting: str | Callable[..., Any] = "auto"
    weighting_options: Mapping[str, Any] = field(default_factory=dict)
    t_sampler: str | TimeSampler = "auto"
    t_sampler_options: Mapping[str, Any] = field(default_factory=dict)
    coupling: str = "independent"
    preset: str = "auto"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    learn_variance: bool = False
    augment: str = "none"
    cond: str = "none"
    space: str | Space = "none"
    cond_drop: float = 0.1
    steps: int = 0
    batch: int = 0
    lr: float = 0.0
    warmup: int = 0
    decay: str = "cosine"
    decay_options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float | str = 0.9999
    snapshots: int = 0
    seed: int = 0
    test_fraction: float = 0.1
    split: str = "content"
    size: int = 0
    fit: str = ""
    layout: str = "auto"
    on_bad: str = "stop"
    sample_every: int = 0
    validate_every: int = 0
    frechet_every: int = 0
    save_minutes: float = 10.0
    keep: int = 2
    workers: int = 0
    accumulate: int = 1
    recompute: bool = False
    precision: str = "auto"
    compile: bool = False
    channels_last: str = "no"
    typed: Typed = field(default=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.sde, type) and issubclass(self.sde, SDE):
            made = construct(self.sde, "SDE", self.sde.__name__, self.sde_options, typed=self.typed)
            object.__setattr__(self, "sde", made)
        if AUTO in (getattr(self.sde, "sigma_max", None), getattr(self.sde, "shape", None)):
            # it will be determined from the data
            object.__setattr__(self, "sde_options", options_of(self.sde))
            object.__setattr__(self, "sde", self.name("sde"))
        if isinstance(self.sde, Shifted):  # stored as its shift and its path
            object.__setattr__(self, "shift", self.shift * self.sde.shift)
            object.__setattr__(self, "sde", self.sde.path)
        for name in ("augment", "cond", "decay", "space"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, "none")
        object.__setattr__(self, "ema", profiles_text(self.ema))
        for name in _TABLES:
            if not isinstance(getattr(self, name), str):  # an object contains its options
                object.__setattr__(self, f"{name}_options", {})
        check_fields(self, "")
        for f in stored_fields():
            value, kind = getattr(self, f.name), Mapping if f.default is dataclasses.MISSING else type(f.default)
            kinds = (str, _OBJECTS[f.name]) if f.name in _OBJECTS else (kind,)
            if kind in (str, Mapping) and not isinstance(value, kinds):
                noun = f"a {'name' if f.name in _OBJECTS else 'string'}" if kind is str else "a mapping of options"
                raise UsageError(f"{f.name} is {value!r}; it must be {noun}", parameter=f.name)
        object.__setattr__(self, "augment", str(self.augmentation or "none"))
        self.reading  # noqa: B018  # this rejects invalid values
        self.sources  # noqa: B018  # this rejects invalid values
        if self.snapshots and not any(isinstance(profile, Power) for profile in self.profiles):
            raise UsageError(
                f"snapshots is {self.snapshots}, but ema={self.ema!r} has no power-function average to store; use, for "
                f"example, ema={EXAMPLE!r}",
                parameter="ema",
                value=EXAMPLE,
            )
        choices_of = {
            "decay": (*RATES, "none"), "split": ("content", "rows"), "precision": PRECISIONS,
            "channels_last": LAYOUTS,
        }  # fmt: skip
        for name, valid in choices_of.items():
            if getattr(self, name) not in valid:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; {closest(getattr(self, name), valid)}")
        if self.preset != "auto" and self.preset not in PRESETS:
            raise UsageError(f"unknown preset {self.preset!r}; {closest(self.preset, ['auto', *PRESETS])}")

    def fitted(self, highest: Callable[[], float]) -> TrainConfig:
        """Return the configuration, with ``sigma_max`` set to suit the data if it is ``auto``.

        Args:
            highest: A function without arguments that returns the noise level needed at the end of the path, in model
                units (see :func:`scoresde.sde.reach.sigma_for`). It is called only if ``sigma_max`` is ``auto``.
        """
        if self.sde_options.get("sigma_max") != AUTO:
            return self
        lowest = getattr(build_sde(self), "sigma_min", 0.0)
        options = {**self.sde_options, "sigma_max": max(highest() / min(1.0, self.shift), 10 * lowest)}
        return dataclasses.replace(self, sde_options=options)

    def _check_stated(self, sde: SDE) -> None:
        """Check that the space is the one in which the path has its meaning."""
        name, _, kind = sde.stated_in.partition(":")
        of_kind = not kind or any(getattr(space, "kind", kind) == kind for space in self.spaces)
        if name and not (name in self.space_names and of_kind):
            why = {
                "relative": "the data drift towards a known signal, which is given by the condition 'image' or an "
                "operator such as 'pool:2'",
                "basis": "it blurs by frequency",
            }.get(name, "its alpha and sigma are those of other coordinates")
            raise UsageError(
                f"the path {self.name('sde')!r} is stated in the space {sde.stated_in!r}, because {why}; the space is "
                f"{self.space!r}",
                parameter="space",
                value=sde.stated_in,
            )

    def shaped(self, shape: tuple[int, ...]) -> TrainConfig:
        """Return the configuration, with the field ``shape`` of the SDE set to ``shape`` if it has one and it is auto.

        Args:
            shape: The shape of an event in model units.
        """
        given = self.sde_options.get("shape", AUTO)
        if given != AUTO or not isinstance(self.sde, str) or not isinstance(build_sde(self), Shaped):
            return self
        return dataclasses.replace(self, sde_options={**self.sde_options, "shape": list(shape)})

    def resolved(self, info: DataInfo, data_std: float = 1.0, operator: Operator | None = None) -> TrainConfig:
        """Return a copy of the configuration in which choices left open are set to suit the data.

        The fields ``preset``, ``predict``, ``weighting`` and ``t_sampler`` are set if they are ``auto``, and the fields
        ``steps``, ``batch``, ``lr`` and ``warmup`` if they are 0. The batch size is limited to the number of training
        rows that are not used for validation.

        Args:
            info: The description of the data.
            data_std: The root mean square of the data in model units.
            operator: The operator in ``cond``, if it has already been built for these data. If ``None``, it is
                built here, to check that it suits the data.

        Raises:
            UsageError: If the configuration does not suit the data.
        """
        preset = self.preset if self.preset != "auto" else _preset_for(info)
        if self.sources.label and not info.classes:
            raise UsageError(
                f"cond='class' requires labels, but {info.name} has no labels; labels are read from class folders, a "
                "label file or an array y",
                parameter="cond",
                value="none",
            )
        self._check_sources(info)
        if operator is None:
            self.operator_for(info)
        steps, batch, lr = _BUDGET[preset]
        if self.sample_every and (pictures := (self.steps or steps) // self.sample_every) > _PICTURES:
            raise UsageError(
                f"sample_every={self.sample_every} would draw samples {pictures:,} times in "
                f"{self.steps or steps:,} training steps; the limit is {_PICTURES:,}",
                parameter="sample_every",
                value=-(-(self.steps or steps) // _PICTURES),
            )
        path, predict, weighting = (self.name(field) for field in ("sde", "predict", "weighting"))
        options = dict(self.predict_options)
        if predict == "auto":
            predict = _PREDICT.get(path, "edm")
        if predict == "edm" and isinstance(self.predict, str):
            options.setdefault("data_std", max(round(data_std, 4), 1e-4))
        steps, sde = self.steps or steps, build_sde(self)
        if weighting == "auto":
            known = self.predict if self.predict != "auto" else predict
            kind = resolve(known, PARAMETRIZATIONS, "prediction", typed=self.typed) if isinstance(known, str) else known
            weighting = "likelihood" if sde.parameters() else kind.weighting
        if sde.parameters() and weighting != "likelihood":
            raise UsageError(
                f"the {weighting!r} weighting cannot train a learned path, because the ends of the path are trained on "
                "the variational bound, and only the 'likelihood' weighting matches this bound; use 'likelihood', or "
                "leave out the option 'learn'",
                parameter="weighting",
                value="likelihood",
            )
        self._check_stated(sde)
        check_coupling(self.coupling, weighting, predict, sde.nodes is not None)
        if self.augmentation is not None and (info.kind != "image" or self.coupling == "reflow"):
            given = (
                f"{info.name} contains {info.kind}s, not images"
                if info.kind != "image"
                else "coupling='reflow' trains on stored pairs of noise and samples"
            )
            raise UsageError(
                f"augment={self.augment!r} cannot be used, because {given}",
                parameter="augment",
                value="none",
            )
        weighting_options = dict(self.weighting_options)
        if weighting == "edm" and isinstance(self.weighting, str):
            weighting_options.setdefault("data_std", round(data_std, 4))
        sampler = "low-discrepancy"
        if weighting == "native" and default_grid(sde) == "sqrt":
            sampler = "sqrt"
        elif path == "edm" and (weighting == "edm" or (weighting, predict) == ("native", "edm")):
            sampler = "lognormal"
        return dataclasses.replace(
            self,
            preset=preset,
            predict=predict if self.predict == "auto" else self.predict,
            weighting=weighting if self.weighting == "auto" else self.weighting,
            weighting_options=weighting_options,
            t_sampler=sampler if self.t_sampler == "auto" else self.t_sampler,
            predict_options=options,
            steps=steps,
            batch=min(self.batch or batch, info.n_train - info.n_validation),
            lr=self.lr or lr,
            warmup=self.warmup or max(1, min(steps // 20, 5000)),
        )

    def _check_sources(self, info: DataInfo) -> None:
        """Check that the condition suits the data and the coupling."""
        sources, known = self.sources, info.known
        lacking = {
            "vector": (sources.vector and not known.vector, "an array called c in an .npz file, or columns of a table, "
                       "as in cond='vector:age,dose'"),
            "image": (sources.image and not known.image, "an array called 'given' in an .npz file, or images "
                      "with the same names in a folder given/"),
            "text": (sources.text and not (known.words or known.features), "an array called text in an .npz file, or a "
                     ".txt file next to each image"),
        }  # fmt: skip
        for name, (missing, where) in lacking.items():
            if missing:
                told = f"only {known.describe()}" if known.describe() else "none"
                raise UsageError(
                    f"cond={self.cond!r} requires {'an' if name == 'image' else 'a'} {name} for each sample, but "
                    f"{info.name} has {told}; {name}s are read from {where}",
                    parameter="cond",
                    value="none",
                )
        if sources.columns and known.vector != sources.columns:
            raise UsageError(
                f"cond={self.cond!r} names columns, but the numbers that {info.name} provides for the condition are "
                f"called {', '.join(known.vector[:10])}; columns can be named only for a table, so use cond='vector'",
                parameter="cond",
                value=self.cond.replace(f"vector:{','.join(sources.columns)}", "vector"),
            )
        if sources.rich and self.coupling == "ot":
            raise UsageError(
                f"coupling='ot' cannot be used with cond={self.cond!r}: noise is exchanged between rows with different "
                "conditions, so the noise of a row would reveal its condition, and samples for a given condition would "
                "be wrong (Cheng and Schwing 2025, arXiv:2503.10636); use coupling='independent'",
                parameter="coupling",
                value="independent",
            )

    def operator_for(self, info: DataInfo, read_mask: Callable[[str], Tensor] | None = None) -> Operator | None:
        """Return the operator in ``cond``, set up for the data in ``info``, or ``None`` if ``cond`` names no operator.

        Args:
            info: The description of the data.
            read_mask: A function that returns the mask for the file in ``mask:FILE``. By default, the file is read.

        Raises:
            UsageError: If the operator cannot be applied to the data.
        """
        made = self.operator(read_mask)
        return None if made is None else made.on(info.shape, info.low, info.high)

    def operator(self, read_mask: Callable[[str], Tensor] | None = None) -> Operator | None:
        """Return the operator in ``cond``, not yet set up for the shape of the samples (see :meth:`operator_for`).

        The result is ``None`` if ``cond`` names no operator.

        Raises:
            UsageError: If the operator is unknown or has an invalid option.
        """
        if not self.sources.operator:
            return None
        try:
            return parse(self.sources.operator, typed=self.typed, read_mask=read_mask or mask_from_file)
        except UsageError as error:
            error.parameter = error.value = None
            if not isinstance(error, CheckpointError):
                error.parameter = "cond"
            raise

    @property
    def own_operators(self) -> list[str]:
        """The operators in ``cond`` that are not built in, as ``module:Class``."""
        parts = [] if self.sources.operator.startswith("mask:") else self.sources.operator.split("/")
        return [part for part in parts if part and part.partition(":")[0] not in OPERATORS]

    def told_in_words(self, info: DataInfo) -> str:
        """Describe the condition of a sample in words, or return "" for a model without a condition.

        Args:
            info: The description of the data.
        """
        sources, known = self.sources, info.known
        parts = [f"the class ({len(info.classes)} classes)"] if sources.label else []
        if sources.vector:
            names = ", ".join(known.vector[:10]) + (", ..." if known.vector[10:] else "")
            parts.append(f"{len(known.vector)} numbers ({names})" if known.vector[1:] else f"a number ({names})")
        if sources.image:
            parts.append(f"an image of shape {' x '.join(map(str, known.image))}")
        if sources.text:
            parts.append(f"a text ({len(known.words):,} different words)" if known.words else "the features of a text")
        if sources.operator:
            typed = self.typed is True or set(self.own_operators) <= set(self.typed or ())
            titles = sources.operator
            if typed and not titles.startswith("mask:") and "/mask:" not in titles:  # the file may be gone
                made = self.operator_for(info)
                titles = titles if made is None else " or ".join(choice.title for choice in choices(made))
            parts.append(f"the measurement of the sample ({titles})")
        if not parts:
            return ""
        return (
            f"{', '.join(parts)}; dropped in training with probability {self.cond_drop:.3g}"
            if self.cond_drop
            else ", ".join(parts)
        )

    def told(self, given: Condition) -> Condition | None:
        """Return the parts of ``given`` that ``cond`` lists (vector, image, text), or ``None`` if there are none."""
        sources = self.sources
        mask = given.mask if self.padded else None
        if not (sources.vector or sources.image or sources.text or mask is not None):
            return None
        return Condition(
            vector=given.vector if sources.vector else None,
            image=given.image if sources.image else None,
            tokens=given.tokens if sources.text else None,
            mask=mask,
        )

    def spec(self, info: DataInfo, codec: Codec, network: bool = True) -> ModelSpec:
        """Return the specification of the model. The configuration must have been resolved (see :meth:`resolved`).

        Args:
            info: The description of the data.
            codec: The map from data units to model units.
            network: Whether to describe the network; false if the network was passed as an object.

        Raises:
            UsageError: If the network does not suit the data.
        """
        classes = len(info.classes) if self.sources.label else 0
        path, predict = (Part(self.name(field), getattr(self, f"{field}_options")) for field in ("sde", "predict"))
        return ModelSpec(
            path, self.shift, predict, self._network(info, classes) if network else None, codec, classes,
            coupled=self.coupling != "independent", learn_variance=self.learn_variance,
        )  # fmt: skip

    def _network(self, info: DataInfo, classes: int) -> Part:
        """Describe the network that the preset, the data and ``network_options`` specify."""
        preset, given = dict(PRESETS[self.preset]), dict(self.network_options)
        its, name = preset.pop("network"), self.network
        given.pop("network", None)
        options = {**(preset if name == its else {}), **given}
        fields = fields_of(resolve(name, NETWORKS, "network", typed=self.typed))
        from_data = {"dims": info.dims, "channels_in": info.shape[0], "classes": classes}
        from_data["outputs"] = 2 if self.learn_variance else 1
        from_data["augments"] = 0 if self.augmentation is None else self.augmentation.numbers
        from_data |= self._doors(info, "channels_in" in fields)
        if fixed := {"dims", "channels_in", "classes"} & fields.keys() & self.network_options.keys():
            name = min(fixed)
            raise UsageError(
                f"the network option {name!r} is determined by the data; leave out this option", parameter=name
            )
        if "channels_in" in fields:
            from_data["dims"] = len(info.shape) - 1
            if info.kind == "vector":
                by = "network" if "network" in self.network_options else "preset"
                what = f"the {name!r} network" if by == "network" else f"the network of the preset {self.preset!r}"
                raise UsageError(
                    f"{what} does not accept vectors, but {info.name} contains vectors; use 'mlp'",
                    parameter=by,
                    value="mlp",
                )
        return Part(name, {**{k: v for k, v in from_data.items() if k in fields}, **options})

    def _doors(self, info: DataInfo, channels: bool) -> dict[str, int]:
        """Return the size of each network input for a part of the condition.

        For images, this is the number of channels if ``channels`` is true, else the number of elements.
        """
        sources, known = self.sources, info.known
        image = info.shape if sources.operator else known.image if sources.image else ()
        return {
            "vector": len(known.vector) if sources.vector else 0,
            "given": (image[0] if channels else math.prod(image)) if image else 0,
            "words": len(known.words) + 1 if sources.text and known.words else 0,
            "features": known.features if sources.text and not known.words else 0,
        }

    def nothing(self, info: DataInfo) -> Condition | None:
        """Return a condition whose values are all missing, or ``None`` if ``cond`` lists nothing besides the class.

        In training, a network receives this condition for each row whose whole condition is dropped. The condition has
        a single row, which applies to all samples.
        """
        sources, known = self.sources, info.known
        if not sources.rich:
            return None
        image = info.shape if sources.operator else known.image if sources.image else ()
        tokens = torch.full((1, 1), -1) if known.words else torch.full((1, 1, known.features), torch.nan)
        return Condition(
            vector=torch.full((1, len(known.vector)), torch.nan) if sources.vector else None,
            image=torch.full((1, *image), torch.nan) if image else None,
            tokens=tokens if sources.text else None,
        )

    def check_network(self, network: nn.Module) -> None:
        """Reject a network that does not accept the condition, or the augmentation parameters, as input.

        Raises:
            UsageError: If the network lacks such an input; the message says which input it needs.
        """
        sources = self.sources
        needs = {
            "label": sources.label, "vector": sources.vector, "image": sources.image or bool(sources.operator),
            "tokens": sources.text,
        }  # fmt: skip
        has = () if isinstance(network, Labelled) else getattr(network, "slots", SLOTS)
        lacking = [name for name, needed in needs.items() if needed and name not in has]
        if lacking:
            what = " and ".join(f"cond.{name}" for name in lacking)
            raise UsageError(
                f"cond={self.cond!r} requires a network that uses {what}, but {type(network).__name__} does not; build "
                "the network for this condition, or, for a network of your own, define forward(self, x, c, cond=None)",
                parameter="cond",
                value="none",
            )
        if self.augmentation is None:
            return
        needed, has = self.augmentation.numbers, getattr(network, "augments", 0)
        if has != needed:
            raise UsageError(
                f"augment={self.augment!r} requires a network with augments = {needed}, but {type(network).__name__} "
                f"has augments = {has}; without the augmentation parameters as input, the network would generate "
                f"samples that look like the augmented data. Set the attribute augments = {needed}, and let the "
                f"network accept an argument augment of shape (B, {needed}), as in network(x, c, cond, augment); a "
                "missing augment must mean zeros",
                parameter="augment",
                value="none",
            )

    def check_spec(self, spec: ModelSpec, folder: Path) -> None:
        """Check that ``spec``, read from a run folder, agrees with this configuration, read from the same folder.

        Raises:
            CheckpointError: If the two files disagree; the message states the first difference.
        """
        ours: list[tuple[str, str, Mapping[str, Any], Part]] = [("sde", self.name("sde"), self.sde_options, spec.path)]
        ours += [("predict", self.name("predict"), self.predict_options, spec.parametrization)]
        if spec.network is not None:
            its = dict(self.network_options)
            if self.augmentation is not None:
                its["augments"] = self.augmentation.numbers
            ours += [("network", str(its.pop("network", spec.network.name)), its, spec.network)]
        flags = {
            "shift": (self.shift, spec.shift),
            "coupling": (self.coupling != "independent", spec.coupled),
            "learn_variance": (self.learn_variance, spec.learn_variance),
            "cond": (self.sources.label, spec.classes > 0),
            "space": (self.space_names, names_of(spec.codec)),
        }
        for where, (config, model) in flags.items():
            if config != model:
                raise CheckpointError(
                    f"{folder}: config.json and model.json disagree on {where} ({config!r} and {model!r}); one of the "
                    "two files was changed after training"
                )
        for where, name, options, part in ours:
            known = plain(part.options)
            differing = {k: v for k, v in plain(options).items() if k not in known or v != known[k]}
            if name != part.name or differing:
                told = f"{where} {name!r}" + (f" with {differing}" if differing else "")
                raise CheckpointError(
                    f"{folder}: config.json has {told}, but model.json has {part.name!r} with {known}; one of the two "
                    "files was changed after training"
                )

    def typed_names(self) -> Typed:
        """Return the names in this configuration that come from the user rather than from a file."""
        if not isinstance(self.typed, bool):
            return self.typed
        return tuple(_strings(self.to_dict())) if self.typed else READ

    def load_data(self, data: str | None = None) -> Dataset:
        """Load the data of the run, or other data given by name or path. The data are read and split as in training.

        Raises:
            DataError: If the data are missing or unreadable.
        """
        return load_data(
            data or self.data, self.seed, self.test_fraction, reading=self.reading, split=self.split
        )  # fmt: skip

    @property
    def augmentation(self) -> Augmentation | None:
        """The augmentation of the training images, or ``None``."""
        return Augmentation.of(self.augment)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The profiles of the moving averages of the weights."""
        return profiles_of(self.ema)

    @property
    def reading(self) -> Reading:
        """The settings for reading files."""
        sources = self.sources
        return Reading(
            self.size, self.fit, self.layout, self.on_bad, columns=sources.columns,
            empty="keep" if sources.gaps else "stop", needs=(*sources.needs, *(["mask"] if self.padded else [])),
        )  # fmt: skip

    @property
    def padded(self) -> bool:
        """Whether the rows are padded, so that the mask of each row is part of its condition."""
        return "masked" in self.space_names

    @property
    def space_names(self) -> tuple[str, ...]:
        """The names of the spaces in whose coordinates the path is stated."""
        return names_of(self.space)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces, not yet fitted to data."""
        return parse_spaces(self.space, typed=self.typed) if isinstance(self.space, str) else (self.space,)

    @property
    def sources(self) -> Sources:
        """The sources of the model's condition, as listed in ``cond``."""
        return Sources.of(self.cond)

    @property
    def network(self) -> str:
        """The name of the network, or "" if neither the preset nor ``network_options`` determines it yet."""
        known = PRESETS.get(self.preset, {"network": ""})
        return str(self.network_options.get("network", known["network"]))

    def name(self, field: str) -> str:
        """Return the value of the field ``sde``, ``predict``, ``weighting`` or ``t_sampler`` as a name."""
        value = getattr(self, field)
        return value if isinstance(value, str) else name_of(value, _TABLES[field])

    def named(self, **given: Any) -> TrainConfig:
        """Return a copy of the configuration with some of its fields replaced by a name or by an object.

        The fields ``sde``, ``predict``, ``weighting`` and ``t_sampler`` can be set. If a field is set to its
        current name, its options are kept. Otherwise, its options are reset to the defaults. The network cannot be
        changed. ``network`` must be its current name, which is then treated as a name that the user gave.
        """
        changes = {name: value for name, value in given.items() if name != "network"}
        for name, value in changes.copy().items():
            if value != self.name(name):
                changes[f"{name}_options"] = {}
        if not isinstance(self.typed, bool):
            changes["typed"] = (*self.typed, *(v for v in given.values() if isinstance(v, str)))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the stored fields as plain JSON values, with each object replaced by its name and its fields."""
        plain = {f.name: getattr(self, f.name) for f in stored_fields()}
        for name in _TABLES:
            if not isinstance(plain[name], str):
                plain[name], plain[f"{name}_options"] = self.name(name), options_of(plain[name])
        plain["space"] = self.space if isinstance(self.space, str) else space_text(self.space)
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrainConfig:
        """Rebuild a configuration from the result of :meth:`to_dict`. All names in it count as read from a file.

        Raises:
            CheckpointError: If a field is unknown or invalid.
        """
        known = {f.name for f in stored_fields()}
        for name in plain:
            if name not in known:
                raise CheckpointError(f"config.json has an unknown field {name!r}; {closest(name, known)}")
        try:
            # Runs made before these fields existed were split by rows, and trained in float32.
            return cls(
                **{"split": "rows", "precision": "float32"} | {name: _today(value) for name, value in plain.items()},
                typed=READ,
            )
        except UsageError as error:
            raise CheckpointError(f"config.json: {error}") from None


def _today(value: Any) -> Any:
    """Replace outdated names in plain JSON values with the current names."""
    if isinstance(value, str):
        return moved(value)
    if isinstance(value, Mapping):
        return {k: _today(v) for k, v in value.items()}
    return [_today(v) for v in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Convert a value to the form that it would have after being written to JSON and read back."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in plain values, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.items()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _preset_for(info: DataInfo) -> str:
    if info.kind == "vector":
        return "mlp"
    if info.kind == "signal":
        return "tiny" if info.shape[1] <= 64 else "small"
    side = math.prod(info.shape[1:]) ** (1 / (len(info.shape) - 1))  # of a square or cube with as many pixels
    return "tiny" if side < 12.5 else "small" if side < 40.5 else "base"


def build_sde(config: TrainConfig) -> SDE:
    """Build the SDE of a configuration, with a placeholder for each option that is still ``auto``.

    Raises:
        UsageError: If the name is unknown or does not name an SDE.
    """
    given = None if isinstance(config.sde, str) else config.sde
    options = dict(config.sde_options)
    if options.get("sigma_max") == AUTO:
        options["sigma_max"] = 50.0
    return make_path(Part(config.name("sde"), options), config.shift, given, typed=config.typed)
