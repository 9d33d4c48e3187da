"""Data sets under one model, beside each other: what ``scoresde likelihood`` reports and writes.

Two sets are compared by the probability that a sample of one is less probable to the model than a sample of the other
(the area under the curve of a detector of foreign data that looks at the likelihood alone):

    auroc = P( p(this) < p(first) ) + P( p(this) = p(first) ) / 2,                                           (1)

over all pairs of a sample of this set and one of the first. 0.5 says nothing, 1 separates. A likelihood is no detector
by itself: simpler images than the data are often more probable, and (1) is then below 0.5.

References:
    Nalisnick et al. (2019), Do deep generative models know what they don't know?, arXiv:1810.09136.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataError, UsageError
from ..core.files import write_arrays, write_csv, write_json
from ..core.optional import optional
from ..likelihood import Elbo, Likelihood, Scores
from ..metrics.ranks import share_above
from ..run.run import Run

__all__ = ["KINDS", "Chosen", "Scored", "choose", "write_scores"]

KINDS = ("png", "csv", "npz")


@dataclass(frozen=True, eq=False)
class Chosen:
    """Samples to score.

    Attributes:
        name: Of the data.
        split: ``train``, ``test`` or ``all``.
        total: Samples in that part.
        index: Which of them were chosen, int64, shape ``(n,)``.
        x: The samples in data units, shape ``(n, *event)``.
        label: Their classes, int64 ``(n,)``, if each is to be conditioned on its own.
    """

    name: str
    split: str
    total: int
    index: Tensor
    x: Tensor
    label: Tensor | None

    def scored(
        self,
        run: Run,
        likelihood: Likelihood,
        *,
        seed: int = 0,
        strata: int = 0,
        batch: int = 128,
        memory: int | None = None,
        check: bool = True,
        watch: Callable[[Scores], object] | None = None,
    ) -> Scored:
        """Score them.

        Args:
            run: A run, with what is bound to it.
            likelihood: How.
            seed: Of the draws.
            strata: Evaluations of the variational bound in a draw; 0 for no bound.
            batch, memory, check, watch: See :class:`scoresde.Likelihood`.
        """
        bound, begins = None, likelihood.t_min
        domain = run.model.domain
        if strata:
            dequantise = likelihood.dequantisation != "none"
            bound = run.elbo(
                self.x, strata=strata, dequantise=dequantise, t_min=likelihood.t_min, seed=seed, batch=batch
            )
        if domain.nodes is not None:
            begins = float(domain.nodes[0])
        elif begins is None:
            begins = domain.interval("likelihood")[0]
        scores = run.log_likelihood(
            self.x, likelihood, seed=seed, batch=batch, memory=memory, check=check, watch=watch
        )
        return Scored(self.name, self.split, self.total, self.index, scores, bound, begins)


def choose(run: Run, data: str | None, split: str, limit: int, seed: int, *, by_class: bool = False) -> Chosen:
    """The samples to score. Those of a smaller ``limit`` are the first ones of a larger, with the same draws.

    Args:
        run: The run.
        data: A name or a path; ``None`` for the run's own data.
        split: ``train``, ``test`` or ``all``.
        limit: How many, drawn at random; 0 for all.
        seed: Of the choice.
        by_class: Condition each sample on its class.

    Raises:
        DataError: If the run gives no probability to the data.
        UsageError: If they have other classes than the run.
    """
    dataset = run.data(data)
    theirs, ours = dataset.info, run.info
    parts = {"test": ["test"], "train": ["train"], "all": ["train", "test"]}[split]
    x = torch.cat([getattr(dataset, part) for part in parts])
    y = torch.cat([getattr(dataset, f"{part}_labels") for part in parts]) if theirs.classes else None
    if theirs.shape != ours.shape:
        raise DataError(
            f"{theirs.name} has samples of shape {theirs.shape}, the run was trained on {ours.name}, shape {ours.shape}"
        )
    total = len(x)
    index = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: limit or total]
    x = x[index]
    levels = run.codec.levels
    if levels is not None and not bool((levels.to_data(x) == x).all()):
        kind = f"{theirs.levels} levels" if theirs.levels else "continuous values"
        raise DataError(
            f"{theirs.name} has {kind} in [{theirs.low:g}, {theirs.high:g}], the run was trained on {ours.levels} "
            f"levels in [{ours.low:g}, {ours.high:g}] and gives no probability to other values"
        )
    if by_class and (y is None or theirs.classes != ours.classes):
        raise UsageError(
            f"{theirs.name} has the classes {', '.join(theirs.classes) or '(none)'}, the run was trained on "
            f"{', '.join(ours.classes) or '(none)'}",
            parameter="labels",
        )
    return Chosen(theirs.name, split, total, index, x, y[index] if by_class and y is not None else None)


@dataclass(frozen=True, eq=False)
class Scored:
    """A data set with its likelihoods.

    Attributes:
        name: Of the data.
        split: ``train``, ``test`` or ``all``.
        total: Samples in that part.
        index: Which of them were scored, int64, shape ``(n,)``.
        scores: By the probability flow.
        elbo: By the variational bound, if asked for.
        bound_t_min: Where its diffusion begins, or the lowest node of the chain.
    """

    name: str
    split: str
    total: int
    index: Tensor
    scores: Scores
    elbo: Elbo | None = None
    bound_t_min: float | None = None

    @property
    def bound(self) -> Tensor | None:
        """The variational bound of each sample in the unit of the scores, shape ``(n,)``."""
        if self.elbo is None:
            return None
        sign = 1 if self.scores.bits_per_dim is None else -1
        bound: Tensor = sign * self.elbo.log_prob.double() / self.scores.nats_per_unit
        return bound

    def auroc(self, first: Scored) -> float:
        """How well the likelihood tells this set from ``first``, (1); NaN if either has no sample that succeeded."""
        theirs, ours = (s.scores.log_prob[s.scores.model.ok].double().cpu() for s in (first, self))
        if not len(theirs) or not len(ours):
            return math.nan
        return share_above(theirs, ours)

    def summary(self, first: Scored) -> dict[str, Any]:
        """Plain values, for JSON; ``None`` for what there is no number of.

        Args:
            first: The set that this one is compared with; no comparison with itself.
        """
        scores, model = self.scores, self.scores.model
        nfe = model.nfe.double()
        facts = {
            "data": self.name, "split": self.split, "n": int(model.ok.sum()), "of": self.total,
            "failed": int((~model.ok).sum()), "unit": scores.unit, "mean": _number(scores.mean()),
            "stderr_mean": _number(scores.stderr_mean()), "stderr_probes": _number(scores.stderr_sample()),
            "change": _number(scores.change), "converged": scores.converged,
            "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()), **asdict(scores.how),
            "scale": scores.scale,
        }  # fmt: skip
        if scores.how.divergence == "exact":
            facts["probes"] = 0
        if self.elbo is not None:
            facts["elbo"] = self._elbo(self.elbo)
        if self is not first:
            facts["auroc"] = _number(self.auroc(first))
        return facts

    def _elbo(self, elbo: Elbo) -> dict[str, Any]:
        """Mean, error and terms of the bound over the samples for which it is finite; the terms add up to the mean.

        For a density in nats the mean is that of ``log p``, so that the terms, which bound ``-log p``, change sign.
        """
        bound = self.bound
        assert bound is not None
        good, sign = bound.isfinite(), -1 if self.scores.bits_per_dim is None else 1
        unit = sign * self.scores.nats_per_unit[good]
        terms = {
            name: _number(float((getattr(elbo, name)[good].double() / unit).mean()))
            for name in ("prior", "diffusion", "reconstruction")
        }
        steps = (elbo.steps[good].double() / unit[:, None]).mean(0)
        bound = bound[good]
        error = float(bound.std()) / math.sqrt(len(bound)) if len(bound) > 1 else math.nan
        return {
            "whose": elbo.whose, "mean": _number(float(bound.mean())), "stderr_mean": _number(error), **terms,
            "nfe": int(elbo.nfe.max()),
            "dequantisation": "none" if self.scores.bits_per_dim is None else "uniform", "t_min": self.bound_t_min,
            "steps": [_number(v) for v in steps.tolist()],
        }  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def write_scores(folder: Path, sets: Sequence[Scored], made: Mapping[str, Any], kinds: Sequence[str]) -> list[Path]:
    """Write one row for each sample, ``likelihood.json``, and last the histogram, which may fail.

    Args:
        folder: Where to.
        sets: The data sets, scored under one model.
        made: The summaries and how they came, plain JSON values.
        kinds: Any of :data:`KINDS`; the JSON is always written.

    Returns:
        The files written, the picture first.

    Raises:
        CheckpointError: If they cannot be written.
    """
    columns, files = _columns(sets), []
    if "csv" in kinds:
        rows = zip(*(c.tolist() for c in columns.values()), strict=True)
        files.append(write_csv(folder / "likelihood.csv", list(columns), rows))
    if "npz" in kinds:
        files.append(write_arrays(folder / "likelihood.npz", columns))
    files.append(write_json(folder / "likelihood.json", dict(made)))
    shown = {_label(s, sets): s.scores.values[s.scores.model.ok].cpu() for s in sets}
    shown = {name: values for name, values in shown.items() if len(values)}
    if "png" in kinds and shown:
        picture = folder / "likelihood.png"
        with optional(str(picture), f"the figures are in {files[0]}"):
            from ..plot import likelihood_histogram, save_figure

            save_figure(picture, likelihood_histogram(shown, sets[0].scores.unit))
            files.insert(0, picture)
    return files


def _label(scored: Scored, sets: Sequence[Scored]) -> str:
    """The name of a set, with its number if another one has it too."""
    same = [s for s in sets if s.name == scored.name]
    return scored.name if len(same) == 1 else f"{scored.name} ({sets.index(scored) + 1})"


def _columns(sets: Sequence[Scored]) -> dict[str, np.ndarray]:
    """One array for each column, all samples of all sets in their order."""
    found: dict[str, list[np.ndarray]] = {}
    for scored in sets:
        scores, model = scored.scores, scored.scores.model
        row = {
            "index": scored.index,
            "log_prob": scores.log_prob,
            "bits_per_dim": scores.bits_per_dim,
            "stderr_probes": scores.stderr_probes,
            "elbo": None if scored.elbo is None else scored.elbo.log_prob,
            "nfe": model.nfe,
            "change": model.change,
            "status": model.status,
        }
        found.setdefault("data", []).append(np.full(len(scored.index), _label(scored, sets)))
        for name, value in row.items():
            if value is not None:
                found.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}
