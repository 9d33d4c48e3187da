"""Guidance, steering, limits, measurements by a rule, paths and starts of a run, and the model that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.limits import (
    COUNT,
    FRACTION,
    NONNEGATIVE,
    QUANTILE,
    SCALE,
    SEED,
    Range,
    checked,
)
from ..core.noise import Noise
from ..core.registry import build
from ..core.shapes import as_tensor, select
from ..core.tables import SDES
from ..data.pictures import mask_from_file
from ..guidance.classifier_free import ALL, Guided, check_interval
from ..guidance.measured import Measured, Rule
from ..guidance.steered import Potential, Rescaled, Steered, Thresholded
from ..model.convert import convert
from ..model.estimate import Denoiser, Supported
from ..model.network import ScoreModel
from ..operators import Operator, parse
from ..sde.base import SDE
from .bound import Against
from .conditioning import Conditioned
from .identity import identity
from .plausible import warn_of_shown
from .seen import Seen, understood

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Steerable"]


class Steerable(Conditioned):
    """A run whose model can be changed."""

    @checked(scale=SCALE, interval=Range(0, infinite=True))
    def guided(
        self,
        scale: float,
        against: Run | Denoiser | Against | None = None,
        interval: tuple[float, float] = ALL,
    ) -> Self:
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
        if isinstance(against, Steerable):
            mine, theirs = (run.codec.continuous for run in (self, against))
            if against.info.shape != self.info.shape or identity(mine) != identity(theirs):
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
    def _plain(self) -> Self:
        """The run with its condition and its guidance, but without any other setting that is bound to it."""
        return replace(
            self, potential=None, rescale=0.0, threshold=None, measurement=None, rule=None, noise=0.0, path=None,
            begin=None, told=True,
        )  # fmt: skip

    @checked(scale=Range(-1e6, 1e6))
    def steered(self, potential: Potential | None, scale: float = 1.0) -> Self:
        """Return the run with steering: its samples follow the gradient of a function (:class:`scoresde.Steered`).

        Args:
            potential: A function of an :class:`~scoresde.Estimate` in model units, which returns one number for
                each row, ``(B,)``: the log-likelihood of what is wanted. ``None`` removes the steering.
            scale: The factor by which the gradient is multiplied.
        """
        return replace(self, potential=potential, strength=float(scale))

    @checked(rescale=FRACTION, threshold=QUANTILE)
    def limited(self, rescale: float = 0.0, threshold: float | None = None) -> Self:
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
    ) -> Self:
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

    def on(self, path: str | SDE | None) -> Self:
        """Return the run on another path, restricted to the noise levels of the model (see :func:`scoresde.convert`).

        Args:
            path: The SDE of the path, as a name in :data:`scoresde.core.tables.SDES`, as ``module:Class``, or as an
                object. ``None`` means the model's own path.
        """
        return replace(self, path=None if path is None else build(path, SDES, "SDE", typed=True, kind=SDE))

    @checked(at=FRACTION, each=COUNT)
    def near(self, x: Tensor | npt.ArrayLike | None, at: float = 0.5, *, each: int = 1) -> Self:
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

    def rows(self, index: Tensor) -> Self:
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
            if labelled and not (self.config is not None and self.config.sources.rich and self.condition is None):
                raise self._never_without("leaving out the label")
            raise self._needs_condition()
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
