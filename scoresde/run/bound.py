"""What a run consists of: a model, the units of its data, and the settings that are bound to it.

:class:`scoresde.Run` inherits from the classes of this module and of those that follow it: ``conditioning``,
``steering``, ``keeping``, ``sampling`` and ``scoring``. Each of them adds methods for one idea.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..codec import Codec, Masked
from ..core.condition import SLOTS, Condition
from ..core.errors import DataError, UsageError
from ..core.limits import (
    COUNT,
    checked,
)
from ..core.registry import closest
from ..core.shapes import as_tensor
from ..core.threads import work
from ..data import DataInfo, Dataset
from ..data.dataset import ARRAY
from ..data.given import Sources
from ..guidance.classifier_free import ALL
from ..guidance.measured import Rule
from ..guidance.steered import Potential
from ..model.estimate import Denoiser, Domain
from ..model.network import ScoreModel
from ..nn.execution import LAYOUTS, Execution, lay_out, precision_on
from ..operators import Masking, Operator
from ..sde.base import SDE
from ..sde.reach import Reach
from .config import TrainConfig
from .origin import data_of
from .seen import Seen, covers
from .spec import ModelSpec

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Against", "Bound", "listed", "reach"]


def reach(domain: Domain, info: DataInfo, spread: float | None = None) -> Reach:
    """Compare the distribution at the end of a model's path with the prior, for data described by ``info``."""
    return Reach.of(domain.sde, domain.t_max, spread or info.spread or 1.0, info.furthest)


# Another condition of the same model, as in Run.given
Against = Condition | int | str | Sequence[int | str] | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Bound:
    """The fields of a run, which are described in :class:`scoresde.Run`, and what follows from them alone."""

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

    @property
    def _dropped(self) -> float | None:
        """The fraction of conditions dropped in training, or ``None`` if it is unknown or there are no conditions."""
        if self.config is None or not isinstance(self.base, ScoreModel):
            return None
        return self.config.cond_drop if self.base.classes > 0 or self.config.sources.rich else None

    def _trained_here(self, what: str) -> TrainConfig:
        if self.config is None:
            raise UsageError(f"{what} taken from rows of a data set requires a run trained by this package")
        return self.config

    def _never_without(self, what: str) -> UsageError:
        """Return the error for ``what``, which needs a model that was also trained without conditions."""
        labelled = isinstance(self.base, ScoreModel) and self.base.classes and self.info.classes
        known, ways = ("label", f"one of its classes ({listed(self.info.classes)})") if labelled else (
            "condition", "a condition"
        )  # fmt: skip
        return UsageError(
            f"{self.folder or 'this model'} was trained with cond_drop=0, so every training sample had its {known}, "
            f"and {what} is not possible; pass {ways}{' without guidance' * what.startswith('guidance')}, or train "
            "with cond_drop=0.1",
            parameter="cond_drop",
            value=0.1,
        )

    def _needs_condition(self) -> UsageError:
        """Return the error for the use of a run without its condition, which was never left out in training."""
        who = self.folder or "this model"
        sources = Sources() if self.config is None else self.config.sources
        why = f"{who} was trained with cond_drop=0, so it cannot be used without its condition"
        known = self.measurement
        if known is None or known.operator is None:
            only_text = sources.text and not (sources.vector or sources.image or sources.operator)
            return UsageError(
                f"{why}; give a condition, or train with cond_drop=0.1", parameter="text" if only_text else "given"
            )
        if self.operator is not None and covers(self.operator, known.operator):
            rule = "a measurement with noise or with a rule"
        else:
            name = "a hole (a mask)" if isinstance(known.operator, Masking) else f"a measurement by {known.operator}"
            rule = f"{name}, with which it was not trained,"
        instead = f", or give only a measurement by {sources.operator}, without noise and rule" * bool(sources.operator)
        return UsageError(
            f"{why}, and {rule} needs the condition to be left out; train with cond_drop=0.1{instead}",
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

    @property
    def execution(self) -> Execution:
        """How the network is computed."""
        return self.base.execution if isinstance(self.base, ScoreModel) else Execution()

    @cached_property
    def work(self) -> float:
        """Multiplications and additions of the network for one row, or infinity for an unknown network."""
        base = self.base
        x = torch.zeros(1, *self.info.shape, device=self.device, dtype=self.dtype)
        try:
            with torch.no_grad():
                network, known = base.network, base._known(None, x)  # type: ignore[attr-defined]
                return work(network, lambda: network(x, x.new_zeros(1), known))
        except Exception:  # not a network, or one that always needs a condition
            return math.inf

    def executed(self, precision: str = "auto", compile: bool | None = None, channels_last: str = "auto") -> Self:
        """Return the run with its network computed in another way. The weights stay the same.

        Args:
            precision, compile, channels_last: See :func:`scoresde.load`. With ``auto`` or ``None``, they stay as they
                are.
        """
        if not isinstance(self.base, ScoreModel):
            raise UsageError("only a run with a network can be computed in another precision or layout")
        if channels_last not in LAYOUTS:
            raise UsageError(f"unknown channels_last {channels_last!r}; {closest(channels_last, LAYOUTS)}")
        now, one = self.base.execution, next(self.base.parameters())
        asked = now.precision if precision == "auto" else precision_on(one.device, one.dtype, precision)
        last = now.channels_last if channels_last == "auto" else channels_last == "yes"
        # The weights are shared unless they are laid out in another way.
        base = copy.copy(self.base) if last == now.channels_last else copy.deepcopy(self.base)
        base.execution = Execution(asked, now.compiled if compile is None else compile, last)
        base.domain = replace(base.domain, rounded=asked == "bf16")
        lay_out(base.network, last)
        return replace(self, base=base)

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

    @property
    def needs(self) -> frozenset[str]:
        """What the space of the run needs of each row's condition: ``image``, ``mask``, both or nothing."""
        return frozenset(need for part in self.codec.space.parts for need in getattr(part, "needs", ()))

    @property
    def _masked(self) -> Masked | None:
        """The space of padded rows, or ``None`` if the rows are not padded."""
        return next((part for part in self.codec.space.parts if isinstance(part, Masked)), None)

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


def listed(names: Sequence[str], most: int = 10) -> str:
    """Join the first ``most`` names with commas."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
