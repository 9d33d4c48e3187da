"""All bounds of a run on the likelihood of the same data, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ..codec import undefined
from ..core.errors import UsageError
from ..core.limits import COUNT, SEED, STEPS, WHOLE, Range, checked
from ..core.noise import Noise
from ..core.parts import pieces
from ..core.threads import rows_each
from ..likelihood import Elbo, Likelihood, Scores
from ..likelihood.bounds import Bounds, Row
from ..likelihood.chain import bound, even_nodes
from ..likelihood.data import begins
from ..likelihood.elbo import whose
from ..likelihood.levels import decode_from, elbo_on_levels
from ..likelihood.weights import weights
from .scoring import Scoring

__all__ = ["CHAIN", "WEIGHTED", "Bounding"]

WEIGHTED = (2, 8)  # the numbers of dequantisations of the importance-weighted bounds
CHAIN = 1000  # the default number of nodes for a model that has none

# The rows of the table.
FLOW, IMPORTANCE, TRUNCATED = "flow", "flow, K = 2 and 8", "flow, truncated normal"
CONTINUOUS, LEVELS, CHAINED = "ELBO", "ELBO on the levels", "chain"


class Bounding(Scoring):
    """A run under which data have several bounds."""

    @checked(strata=STEPS, chain_steps=Range(2, STEPS.high), seed=SEED, start=WHOLE, batch=COUNT, memory=WHOLE)
    def all_bounds(
        self,
        x: Tensor | npt.ArrayLike,
        likelihood: Likelihood | None = None,
        *,
        strata: int = 64,
        chain_steps: int | None = None,
        seed: int = 0,
        start: int = 0,
        batch: int = 256,
        memory: int | None = None,
        check: bool = True,
        watch: Callable[[Scores], object] | None = None,
        told: Callable[[str], object] | None = None,
        keep: str | Path | None = None,
    ) -> Bounds:
        """Compute all bounds of the network on the log-likelihood of data (:mod:`scoresde.likelihood.bounds`).

        The rows of the table are, as far as they exist for the data and the model: the flow, with uniform
        dequantisation, with K = 2 and 8 importance weights, and with truncated normal noise; the reverse SDE, with
        uniform dequantisation and on the levels; and a chain, with uniform dequantisation.

        Args:
            x: Data in data units, shape ``(n, *event)``.
            likelihood: The settings of the flow's rows, with one draw and one weight (default: ``Likelihood()``).
            strata: See :func:`scoresde.elbo`.
            chain_steps: Number of nodes T of the chain, even in the log-SNR (default: 1000). A model with nodes is a
                chain already, so the number must not be given for it.
            seed, start, batch, memory, check, watch, keep: See :meth:`log_likelihood`. The arguments ``check`` and
                ``watch`` apply to the row of the flow.
            told: A function that is called with the name of each row before the row is computed.

        Raises:
            DataError: If :meth:`checked` rejects the data.
            UsageError: If an option is invalid, or ``keep`` contains results computed with other settings or data.
        """
        how = likelihood or Likelihood()
        left_out = self.bounds_left_out(how, chain_steps)
        x = self._in_space(self.checked(x))
        folder = None if keep is None else Path(keep)
        asked = _Asked(self, x, how, strata, chain_steps, seed, start, batch, memory, folder)
        tell = (lambda name: None) if told is None else told
        tell(FLOW)
        scores = self.log_likelihood(
            x, how, seed=seed, start=start, batch=batch, memory=memory, check=check, watch=watch, keep=keep
        )
        first, others = asked.flow(scores), []
        for name, compute in (
            (IMPORTANCE, asked.importance), (TRUNCATED, asked.truncated), (CONTINUOUS, asked.continuous),
            (LEVELS, asked.levels), (CHAINED, asked.chain),
        ):  # fmt: skip
            if name not in left_out:
                tell(name)
                others += compute()
        others = [
            row if row.base is not None else replace(row, base=first.log_prob, against=first.name) for row in others
        ]
        return Bounds((first, *others), left_out, scores.unit, scores.nats_per_unit)

    def bounds_left_out(self, likelihood: Likelihood, chain_steps: int | None = None) -> dict[str, str]:
        """Return the reason why a row of :meth:`all_bounds` is left out, keyed by its name. Nothing is evaluated.

        Raises:
            UsageError: If an option does not go with a table of all bounds.
        """
        how, domain, levels = likelihood, self.model.domain, self.codec.levels is not None
        if how.draws > 1 or how.importance > 1 or how.dequantisation not in ("auto", "uniform" if levels else "none"):
            raise UsageError(
                f"the table of all bounds has rows for each kind of dequantisation and several numbers of weights, so "
                f"leave these options as they are; got draws = {how.draws}, importance = {how.importance} and "
                f"dequantisation = {how.dequantisation!r}"
            )
        if chain_steps is not None and domain.nodes is not None:
            raise UsageError(
                f"chain_steps is {chain_steps:,}, but the model is a chain with {len(domain.nodes):,} nodes of its "
                "own; leave chain_steps out",
                parameter="chain_steps",
            )
        found: dict[str, str] = {}
        if not levels:
            found |= dict.fromkeys((IMPORTANCE, TRUNCATED), "the data are continuous, so nothing is dequantised")
            found[LEVELS] = "the data are continuous, so there are no levels to decode"
        else:
            found |= _refusal(TRUNCATED, lambda: begins(self.model, self.codec, "truncated-normal"))
            found |= _refusal(LEVELS, lambda: decode_from(self.model, self.codec))
        if domain.nodes is not None:
            nodes = "the model was trained only at the nodes of a chain, whose bound is in the table"
            found |= dict.fromkeys((CONTINUOUS, LEVELS), nodes)
        if not domain.has_score:
            pairs = "the model was trained on coupled (data, noise) pairs, so it has no score"
            found |= dict.fromkeys((CONTINUOUS, LEVELS, CHAINED), pairs)
        elif domain.nodes is None:
            found |= _refusal(CHAINED, lambda: even_nodes(self.model, chain_steps or CHAIN))
        return found


@dataclass(frozen=True)
class _Asked:
    """What a table is asked for, with a method for each of its rows. See :meth:`Bounding.all_bounds`."""

    run: Bounding
    x: Tensor
    how: Likelihood
    strata: int
    chain_steps: int | None
    seed: int
    start: int
    batch: int
    memory: int | None
    keep: Path | None

    @property
    def noise(self) -> Noise:
        """The noise addresses of the samples."""
        return Noise.of(len(self.x), self.seed, self.start, self.run.device)

    @property
    def uniform(self) -> str:
        """What the names of rows with uniform dequantisation say about it."""
        return "" if self.run.codec.levels is None else ", uniform"

    def folder(self, name: str) -> Path | None:
        """Return the folder for the parts of a row, or ``None`` if they are not kept."""
        return None if self.keep is None else self.keep / name

    def flow(self, scores: Scores, key: str = "flow", name: str = FLOW) -> Row:
        """Return the row of the flow for likelihoods that have been computed."""
        name = name + self.uniform if name == FLOW else name
        log_prob = torch.where(scores.model.ok, scores.log_prob.double(), torch.nan)
        return Row(key, name, whose(self.run.model, "flow"), str(scores.how), log_prob, scores.model.nfe)

    def truncated(self) -> list[Row]:
        """Compute the row of the flow with truncated normal noise."""
        scores = self.run.log_likelihood(
            self.x, replace(self.how, dequantisation="truncated-normal", t_min=None), seed=self.seed, start=self.start,
            batch=self.batch, memory=self.memory, check=False, keep=self.folder("truncated"),
        )  # fmt: skip
        return [self.flow(scores, "truncated_normal", TRUNCATED)]

    def importance(self) -> list[Row]:
        """Compute the rows of the flow with importance weights."""
        run, how = self.run, replace(self.how, importance=max(WEIGHTED))
        request = run.score_request(how, seed=self.seed, start=self.start, weights=True)
        found = weights(
            how, run._bound(len(self.x)), run.codec, self.x, self.noise, dtype=run.dtype, batch=self.batch,
            memory=self.memory, parts=run._parts_of(self.x, self.folder("weights"), request, self.start),
            condition=run.condition,
        )  # fmt: skip
        dims = torch.as_tensor(run.codec.dims(self.x, run.condition))
        how = how.resolved(run.model, int(dims.max()), run.codec)
        one, model = found.log_prob(1), whose(run.model, "flow")
        return [
            Row(f"k{k}", f"flow, K = {k}", model, str(replace(how, importance=k)), found.log_prob(k),
                found.evaluations(k), one, "K = 1 with the same probe")
            for k in WEIGHTED
        ]  # fmt: skip

    def elbo(self) -> Elbo:
        """Compute the variational bounds of the run, which are those of a chain if the model has nodes."""
        return self.run.elbo(
            self.x, dequantise=self.how.dequantisation != "none", strata=self.strata, t_min=self.how.t_min,
            seed=self.seed, start=self.start, batch=self.batch, keep=self.folder("elbo"),
        )  # fmt: skip

    def continuous(self) -> list[Row]:
        """Compute the row of the reverse SDE with uniform dequantisation."""
        t_min = begins(self.run.model) if self.how.t_min is None else self.how.t_min
        return [_row("elbo", CONTINUOUS + self.uniform, f"{self.strata} strata, t_min {t_min:.3g}", self.elbo())]

    def levels(self) -> list[Row]:
        """Compute the row of the reverse SDE on the levels."""
        run, noise = self.run, self.noise
        model = run._bound(len(self.x))

        def solve(rows: Tensor, batch: int) -> Elbo:
            own = model.rows(rows), run.codec.rows(rows), self.x[rows.cpu()].cpu()
            return elbo_on_levels(*own, strata=self.strata, noise=noise.rows(rows), batch=batch, dtype=run.dtype)

        terms = self._terms({"levels": self.strata}, self.folder("levels"), solve)
        how = f"{self.strata} strata, softmax decoder, t_min {decode_from(run.model, run.codec):.3g}"
        return [_row("elbo_levels", LEVELS, how, terms)]

    def chain(self) -> list[Row]:
        """Compute the row of a chain: that of the model's own nodes, or of nodes even in the log-SNR."""
        run, own = self.run, self.run.model.domain.nodes
        nodes = even_nodes(run.model, self.chain_steps or CHAIN) if own is None else own
        terms = self._chained(nodes) if own is None else self.elbo()
        kind = "even in the log-SNR, posterior variance," if own is None else "of the model,"
        how = f"T = {len(nodes):,} nodes {kind} from t = {float(nodes[0]):.3g}"
        return [_row("chain", f"chain, T = {len(nodes):,}{self.uniform}", how, terms)]

    def _chained(self, nodes: Tensor) -> Elbo:
        """Compute the bounds of the chain with the nodes ``nodes: (T,)`` for a model without nodes."""
        run, noise = self.run, self.noise
        model = run._bound(len(self.x))
        u = noise.uniform(run.info.shape, stream="dequantise", dtype=torch.float64)
        log_det = run.codec.log_det(self.x, run.condition)
        if log_det is None:
            raise undefined(run.codec, self.x, run.condition)
        encoded, chained = run.to_model(self.x, u), whose(model, "chain")

        def solve(rows: Tensor, batch: int) -> Elbo:
            terms = bound(model.rows(rows), encoded[rows], noise.rows(rows), nodes=nodes, decoder="beta")
            nan = torch.full_like(terms.prior, torch.nan)
            return Elbo(terms.prior, terms.steps, terms.data, nan, terms.nfe, chained)

        terms = self._terms({"chain_steps": len(nodes)}, self.folder("chain"), solve)
        return replace(terms, reconstruction=terms.reconstruction - log_det)

    def _terms(self, asked: Mapping[str, Any], keep: Path | None, solve: Callable[[Tensor, int], Elbo]) -> Elbo:
        """Compute the bounds of ranges of samples by ``solve(rows, batch)``, and join them."""
        request = self.run.request({**asked, "seed": self.seed, "start": self.start})
        parts = self.run._parts_of(self.x, keep, request, self.start)
        batch = rows_each(len(self.x), self.batch)
        batch = batch if parts is None else parts.batch(batch)

        def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Elbo:
            return Elbo.unpack(tensors, facts, self.run.device)

        noise = self.noise
        ranges = torch.split(torch.arange(len(self.x), device=self.run.device), batch)
        found = pieces(ranges, lambda rows: solve(rows, batch), Elbo.pack, unpack, parts, noise.indices)
        return Elbo.join(found)


def _row(key: str, name: str, how: str, terms: Elbo) -> Row:
    """Return the row of a variational bound."""
    return Row(key, name, terms.whose, how, terms.log_prob.double(), terms.nfe)


def _refusal(name: str, check: Callable[[], object]) -> dict[str, str]:
    """Return the message of the error that ``check`` raises, keyed by ``name``, or nothing if it raises none."""
    try:
        check()
    except UsageError as error:
        return {name: str(error)}
    return {}
