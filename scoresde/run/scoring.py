"""Likelihoods of data under a run, and their variational bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ..codec import undefined
from ..core.errors import DataError, UsageError
from ..core.limits import (
    COUNT,
    POSITIVE,
    SEED,
    STEPS,
    TIME,
    WHOLE,
    checked,
)
from ..core.noise import Noise
from ..core.parts import Parts, pieces
from ..core.shared import silence
from ..core.threads import available, most_lanes, rows_each
from ..likelihood import Elbo, Likelihood, MeanLikelihood, Scores, elbo
from ..likelihood.chain import bound
from ..likelihood.control import MOST
from ..likelihood.elbo import whose
from ..likelihood.telescope import Progress, check_options, mean_likelihood
from ..model.network import ScoreModel
from ..nn.execution import shareable
from .plausible import warn_of_units
from .sampling import Sampling

__all__ = ["Scoring"]


class Scoring(Sampling):
    """A run under which data have a likelihood."""

    def lanes(self, rows: int) -> int:
        """Return how many threads can each compute some of ``rows`` rows (:func:`scoresde.core.threads.lanes`).

        This is 1 on a GPU, and for models whose calls may change something that the threads would share.
        """
        base = self.base
        if self.device.type != "cpu" or not isinstance(base, ScoreModel) or not self.model.domain.consistent:
            return 1
        if base.execution.compiled or not shareable(base.network, training=False):
            return 1
        return most_lanes(rows, self.work * rows, available())

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

    @checked(within=POSITIVE, seed=SEED, start=WHOLE, batch=COUNT, memory=WHOLE)
    def mean_likelihood(
        self,
        x: Tensor | npt.ArrayLike,
        within: float,
        likelihood: Likelihood | None = None,
        *,
        of: str = "population",
        features: bool = True,
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
        memory: int | None = None,
        watch: Callable[[Progress], object] | None = None,
        keep: str | Path | None = None,
    ) -> MeanLikelihood:
        """Estimate the mean log-likelihood of data to a stated standard error (:mod:`scoresde.likelihood.mean`).

        The result is the mean that :meth:`log_likelihood` has for these options, in bits/dim or, for continuous data,
        in nats. Most samples are solved in a few steps, some are solved twice to correct the error of the few steps,
        and the numbers of both are chosen so that the error is ``within``. Nothing is said about single samples.

        Args:
            x: Data in data units, shape ``(n, *event)``. The samples that are solved are chosen at random among them.
            within: The wanted standard error of the mean, in the unit of the result.
            likelihood: The method and its settings (default: ``Likelihood()``).
            of: ``population`` for the mean of the distribution from which the data were drawn, or ``these`` for the
                mean of these data.
            features: Whether to use a regression on features of the data, which makes the error smaller
                (:mod:`scoresde.likelihood.control`). The features include distances to training rows, if these can be
                read.
            seed, start, batch, memory: See :meth:`log_likelihood`.
            watch: Function to call after each batch.
            keep: A folder in which each batch is saved, as in :meth:`sample`.

        Raises:
            DataError: If :meth:`checked` rejects the data.
            UsageError: If an option is not suitable, or ``keep`` contains results computed with other settings or data.
        """
        how = likelihood or Likelihood()
        check_options(how, within, of)
        x = self._in_space(self.checked(x, dequantise=how.dequantisation != "none"))
        warn_of_units(x, self.codec, self.info, stacklevel=4)
        asked = self.score_request(how, seed=seed, start=start, of=of, n=len(x))

        def parts(level: str, order: Tensor) -> Parts | None:
            if keep is None:
                return None

            def inputs(places: Tensor) -> list[Tensor]:
                rows = order[places.cpu()]
                return [x[rows], *self._known_of(rows.to(self.device))]

            return Parts(Path(keep) / level, {**asked, "level": level}, inputs)

        return mean_likelihood(
            how, self._bound(len(x)), self.codec, x, Noise.of(len(x), seed, start, self.device), within, of=of,
            control=features, train=self._training_rows() if features else None, dtype=self.dtype, batch=batch,
            memory=memory, watch=watch, parts=parts, condition=self.condition,
        )  # fmt: skip

    def _training_rows(self) -> Tensor | None:
        """Return some of the training rows in model units, or ``None`` if they cannot be read or need conditions."""
        if self.config is None or self.needs:
            return None
        try:
            with silence:
                found = self.data().filled
        except (DataError, UsageError):
            return None
        index = torch.linspace(0, len(found) - 1, min(MOST, len(found)), dtype=torch.float64).round().long()
        rows = found[index]
        return self.codec.to_model(rows.double(), None, noise=torch.full(rows.shape, 0.5, dtype=torch.float64))

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
        batch = rows_each(len(x), batch)
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

        ranges = torch.split(torch.arange(len(x), device=self.device), max(1, batch))
        terms = Elbo.join(pieces(ranges, solved, Elbo.pack, unpack, parts, noise.indices))
        # -log p(x) = -log p(m) - log_det, and the last term belongs to the decoder
        return replace(terms, reconstruction=terms.reconstruction - log_det)
