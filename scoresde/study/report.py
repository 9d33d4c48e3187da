"""Likelihoods of data sets under one or more models, as reported and written by ``scoresde likelihood``.

Each additional data set ("this" in equation 1) is compared with the first data set. The result is the probability that
a sample of the additional set has a lower likelihood than a sample of the first. This probability is the area under the
ROC curve (AUROC) of an out-of-distribution detector that uses only the likelihood p,

    auroc = P( p(this) < p(first) ) + P( p(this) = p(first) ) / 2,                                           (1)

where P(condition) is the fraction of pairs that satisfy the condition, among all pairs of one sample from each set. A
value of 0.5 means that the likelihood does not distinguish the two sets, and a value of 1 means that it separates them
completely. The likelihood alone is not a good detector. Images that are simpler than the training data often have a
higher likelihood, and the AUROC is then below 0.5.

Two runs are compared on the same n samples with the same noise. Most of the variation between the samples, and most of
the error in the estimated likelihoods, is then common to both runs. This common part cancels in the difference d_i
between the two likelihoods of sample i. The reported values are

    difference = mean d_i,      stderr = std(d_i) / sqrt(n).                                                  (2)

The standard error of the difference is often far below the standard error of the mean likelihood under either run. The
randomness of training is not included. It can be measured only by training again with other seeds. The comparison is
fair only if both runs or neither run were trained on the samples.

References:
    Nalisnick et al. (2019), Do deep generative models know what they don't know?, arXiv:1810.09136.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import to_dict
from ..core.errors import DataError, UsageError
from ..core.files import write_arrays, write_csv, write_json
from ..core.optional import optional
from ..core.parts import digest
from ..core.shared import silence
from ..core.text import one_line
from ..data import Dataset
from ..data.dataset import joined
from ..data.given import Sources
from ..data.rows import part
from ..data.rows import pieces as in_pieces
from ..likelihood import Elbo, Likelihood, Scores
from ..likelihood.bounds import Bounds
from ..metrics.measurement import Measurement
from ..metrics.shares import share_above
from ..operators import choices
from ..run.run import Run

__all__ = [
    "KINDS", "Chosen", "Scored", "check_comparable", "choose", "cost_of_precision", "how_told", "paired", "trained_on",
    "unfair", "units", "write_scores",
]  # fmt: skip

KINDS = ("png", "csv", "npz")
UNITS = {
    "log_prob": "nats", "bits_per_dim": "bits/dim", "stderr_probes": "nats", "elbo": "nats", "change": "nats",
    "log_prob_without": "nats",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Chosen:
    """Samples whose likelihoods are to be computed.

    Attributes:
        name: Name of the data.
        split: ``train``, ``test`` or ``all``.
        total: Number of samples in the split.
        index: Indices of the chosen samples in the split, int64, shape ``(n,)``.
        x: The samples in data units, shape ``(n, *event)``.
        label: Class of each sample, int64 ``(n,)``, or ``None`` if the samples are not conditioned on their classes.
        row: Position of each sample in its source (see :class:`~scoresde.Dataset`), int64 ``(n,)``, or ``None`` if the
            positions are unknown.
        files: File of each sample, or an empty tuple if the samples are not stored in separate files.
        left: Number of rows of the data set outside the split. Rows with empty cells count as outside.
        source: The data set, and the index of each sample in the data set, int64 ``(n,)``. The indices of the test rows
            follow those of the training rows. The method :meth:`given` requires this attribute.
    """

    name: str
    split: str
    total: int
    index: Tensor
    x: Tensor
    label: Tensor | None
    row: Tensor | None = None
    files: tuple[Path, ...] = ()
    left: int = 0
    source: tuple[Dataset, Tensor] | None = None

    def given(self, run: Run, seed: int = 0) -> Run:
        """Condition a run on these samples, using every kind of condition that the run was trained with.

        Args:
            run: The run.
            seed: Seed for operators that draw random numbers.

        Raises:
            UsageError: If the run was trained without a condition, or if its condition includes linear measurements and
                the samples are continuous. The conditional density then does not exist.
        """
        assert self.source is not None
        sources = Sources() if run.config is None else run.config.sources
        if not (sources.rich or sources.label):
            raise UsageError(
                f"{run.folder} was trained without a condition, so it has no conditional likelihood; compute the "
                "likelihood without conditions, or train a run with a condition such as a class or a vector",
                parameter="cond",
            )
        linear = [] if run.operator is None else [c for c in choices(run.operator) if c.linear]
        codec = run.codec.levels
        if linear and (codec is None or not bool((torch.as_tensor(getattr(codec, "count", 1)) > 0).all())):
            raise UsageError(
                f"the samples of {self.name} have no density conditioned on measurements by {linear[0]}, because the "
                "measurements confine these continuous samples to a subspace; use data stored as levels, or compute "
                "the likelihood without conditions"
            )
        return run.given_rows(*self.source, split="all", seed=seed)

    def first(self, count: int) -> Chosen:
        """Return the first ``count`` samples. Their random numbers are the same as among all samples."""
        one = slice(count)
        return replace(
            self, index=self.index[one], x=self.x[one], label=None if self.label is None else self.label[one],
            row=None if self.row is None else self.row[one], files=self.files[one],
            source=None if self.source is None else (self.source[0], self.source[1][one]),
        )  # fmt: skip

    def padded(self, run: Run) -> Run:
        """Bind the masks of these samples to a run whose rows are padded. Any other run is returned unchanged."""
        if "mask" not in run.needs or (run.condition is not None and run.condition.mask is not None):
            return run
        assert self.source is not None
        data, index = self.source
        known = data.every()[2].mask
        if known is None:
            raise UsageError(
                f"{run.folder} was trained on padded rows, but {data.info.name} has no array 'mask'; add the masks",
                parameter="data",
            )
        return run.masked(known[index])

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-serialisable values that identify the samples."""
        labels = () if self.label is None else (self.label,)
        return {
            "data": self.name, "split": self.split, "n": len(self.x), "of": self.total,
            "rows": digest(self.index, self.x, *labels),
        }  # fmt: skip

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
        keep: Path | None = None,
        without: Run | None = None,
    ) -> Scored:
        """Compute the likelihoods of the samples.

        Args:
            run: The run, conditioned or not.
            likelihood: The settings of the likelihood computation.
            seed: Seed for the random draws.
            strata: Number of model evaluations per sample for the variational bound, or 0 for no bound.
            batch, memory, check, watch: See :meth:`scoresde.Likelihood.__call__`.
            keep: A folder in which each batch is saved as soon as it is finished. The bounds are saved in the subfolder
                ``elbo``, and the likelihoods without conditions in the subfolder ``without``.
            without: The same run without conditions, or ``None`` to skip the unconditional likelihoods, which are
                not checked for convergence.
        """
        bound, begins = None, likelihood.t_min
        run = self.padded(run)
        domain = run.model.domain
        if strata:
            dequantise = likelihood.dequantisation != "none"
            bound = run.elbo(
                self.x, strata=strata, dequantise=dequantise, t_min=likelihood.t_min, seed=seed, batch=batch,
                keep=None if keep is None else keep / "elbo",
            )  # fmt: skip
        if domain.nodes is not None:
            begins = float(domain.nodes[0])
        elif begins is None:
            begins = domain.interval("likelihood")[0]
        scores = run.log_likelihood(
            self.x, likelihood, seed=seed, batch=batch, memory=memory, check=check, watch=watch, keep=keep
        )
        plain = None
        if without is not None:
            without = self.padded(without)
            plain = without.log_likelihood(
                self.x, likelihood, seed=seed, batch=batch, memory=memory, check=False, watch=watch,
                keep=None if keep is None else keep / "without",
            )  # fmt: skip
        return Scored(
            self.name, self.split, self.total, self.index, scores, bound, begins, row=self.row, files=self.files,
            plain=plain,
        )  # fmt: skip

    def with_bounds(
        self,
        scored: Scored,
        run: Run,
        likelihood: Likelihood,
        *,
        seed: int,
        strata: int,
        chain_steps: int | None,
        batch: int,
        memory: int | None,
        told: Callable[[str], object],
        keep: Path,
    ) -> Scored:
        """Return ``scored``, the result of :meth:`scored` for the same arguments, with a table of all bounds.

        The finished batches in ``keep`` are not computed again, so the flow's row costs nothing.

        Args:
            scored: The samples with their likelihoods.
            run, likelihood, seed, strata, batch, memory, keep: See :meth:`scored`.
            chain_steps, told: See :meth:`scoresde.Run.all_bounds`.
        """
        bounds = self.padded(run).all_bounds(
            self.x, likelihood, strata=strata, chain_steps=chain_steps, seed=seed, batch=batch, memory=memory,
            check=False, told=told, keep=keep,
        )  # fmt: skip
        return replace(scored, bounds=bounds)


def choose(
    run: Run, data: str | None, split: str, limit: int, seed: int, *, by_class: bool = False, dequantise: bool = True
) -> Chosen:
    """Choose the samples whose likelihoods are to be computed.

    A larger ``limit`` keeps the samples of a smaller one and appends others. The random numbers for the likelihood of a
    sample therefore do not depend on ``limit``.

    Args:
        run: The run.
        data: Name or path of the data, or ``None`` for the run's own data.
        split: ``train``, ``test`` or ``all``.
        limit: Maximum number of samples, drawn at random, or 0 for all samples.
        seed: Seed for choosing the samples.
        by_class: Whether to condition each sample on its class.
        dequantise: Whether data stored as levels will be dequantised.

    Raises:
        DataError: If the run cannot compute a likelihood for the data.
        UsageError: If ``by_class`` is set but the classes of the data differ from those of the run.
    """
    dataset = run.data(data)
    theirs, ours = dataset.info, run.info
    # The split "train" contains only the rows used for training. The validation rows are only in the split "all".
    # A row with empty cells has no likelihood.
    rows = dataset.trains & dataset.whole if split == "train" else dataset.whole
    known = None if dataset.train_labels is None else dataset.train_labels[rows]
    pieces = [] if split == "test" else [(part(dataset.train, rows), known)]
    pieces += [] if split == "train" else [(dataset.test, dataset.test_labels)]
    labels = [y for _, y in pieces if y is not None]
    found = pieces[0][0] if len(pieces) == 1 else joined(pieces[0][0], pieces[1][0])
    y = torch.cat(labels) if len(labels) == len(pieces) else None
    total = len(found)
    index = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: limit or total]
    x = run.checked(found[index], theirs.name, dequantise=dequantise)
    if by_class and (y is None or theirs.classes != ours.classes):
        theirs_are, ours_are = (", ".join(map(one_line, info.classes)) or "none" for info in (theirs, ours))
        raise UsageError(
            f"the classes of {theirs.name} ({theirs_are}) differ from the classes of the run ({ours_are}); do not "
            "condition the samples on their own classes",
            parameter="labels",
        )
    if data is not None and split != "train":
        _warn_of_trained(run, theirs.name, x)
    which = torch.arange(len(dataset.train) + len(dataset.test))
    parts = [which[: len(dataset.train)][rows], which[len(dataset.train) :]]
    which = torch.cat(parts[split == "test" : 1 if split == "train" else 2])[index]
    return Chosen(
        theirs.name, split, total, index, x, y[index] if by_class and y is not None else None,
        None if dataset.rows is None else dataset.rows[which],
        tuple(dataset.files[i] for i in which.tolist()) if dataset.files else (),
        len(dataset.train) + len(dataset.test) - total, (dataset, which),
    )  # fmt: skip


def _warn_of_trained(run: Run, name: str, x: Tensor) -> None:
    """Warn if the run was trained on any of the samples ``x`` of the data set ``name``."""
    with silence:  # no warnings about changes in the run's own data
        found = trained_on(run, x)
    if found is not None and bool(found.any()):
        warnings.warn(
            f"{run.folder} was trained on {int(found.sum()):,} of these {len(x):,} samples of {name}, "
            "or on identical samples",
            stacklevel=3,
        )


def cost_of_precision(few: Chosen, run: Run, likelihood: Likelihood, **named: Any) -> dict[str, Any]:
    """Return what a network of low precision changes in the likelihoods of a few samples, and on average.

    The likelihoods are computed twice with the same probes: once as the run computes its network, and once in the
    precision of its weights.

    Args:
        few: The samples.
        run: The run, conditioned on these samples or not.
        likelihood: The settings.
        named: Further arguments of :meth:`Chosen.scored`.

    Returns:
        The precision, the number of samples, the unit, the mean change, its standard error and the largest change.
    """
    how = replace(likelihood, redraw=False)
    low, full = (few.scored(one, how, check=False, **named) for one in (run, run.executed(precision="float32")))
    cost, off = low.difference(full), (_solved(low) - _solved(full)).abs()
    off = off[off.isfinite()]
    return {
        "precision": run.execution.precision, "n": len(off), "unit": low.scores.unit,
        "mean": _number(cost.value), "stderr": _number(cost.stderr),
        "largest": float(off.max()) if len(off) else None,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- several runs


def check_comparable(run: Run, first: Run, *, by_class: bool = False) -> None:
    """Reject two runs whose likelihoods are not comparable.

    Args:
        run, first: The two runs.
        by_class: Whether each sample is conditioned on its class.

    Raises:
        UsageError: If the data of the runs differ in shape, levels or columns, or if ``by_class`` is set and the data
            differ in their classes.
    """
    for name, of in (
        ("shape", lambda r: r.info.shape),
        ("levels", lambda r: None if r.codec.levels is None else to_dict(r.codec.levels)),
        ("columns", lambda r: r.info.names),
        ("classes", lambda r: r.info.classes if by_class else ()),
    ):
        theirs, ours = of(run), of(first)
        if theirs != ours and not (name == "columns" and not (theirs and ours)):
            raise UsageError(
                f"{run.folder} and {first.folder} cannot be compared because their data differ in {name}: "
                f"{_told(run, name)} and {_told(first, name)}; choose runs whose data have the same {name}"
            )


def _told(run: Run, name: str) -> str:
    info = run.info
    if name == "levels":
        return f"{info.levels} in [{info.low:g}, {info.high:g}]" if run.codec.levels is not None else "none"
    if name == "shape":
        return str(info.shape)
    return ", ".join(map(one_line, info.names if name == "columns" else info.classes)) or "none"


def paired(this: Tensor, first: Tensor) -> Measurement:
    """Return the mean and the standard error of ``this - first`` (equation 2).

    Both arguments have shape ``(n,)``. Samples for which either value is not finite are left out.
    """
    if this.shape != first.shape:
        raise UsageError(f"a paired difference requires equal numbers of samples, got {len(this)} and {len(first)}")
    d = this.double().cpu() - first.double().cpu()
    d = d[d.isfinite()]
    if not len(d):
        return Measurement(math.nan)
    return Measurement(float(d.mean()), float(d.std()) / math.sqrt(len(d)) if len(d) > 1 else math.nan)


def trained_on(run: Run, x: Tensor) -> Tensor | None:
    """Find the samples that are identical to a training row of a run.

    Args:
        run: The run.
        x: Samples in data units, shape ``(n, *event)``.

    Returns:
        A boolean mask ``(n,)``, or ``None`` if the data of the run can no longer be read.
    """
    try:
        train = run.data().trained
    except (DataError, UsageError):
        return None
    known = {one for piece in in_pieces(train) for one in _hashes(piece)}
    return torch.tensor([h in known for h in _hashes(x)], dtype=torch.bool)


def _hashes(x: Tensor) -> list[bytes]:
    """Hash the values of each row, independently of their dtype."""
    return [hashlib.blake2b((row.double() + 0.0).numpy().tobytes(), digest_size=16).digest() for row in x.cpu()]


def unfair(run: Run, first: Run, chosen: Chosen) -> str | None:
    """Return the reason why a comparison of two runs is unfair, or ``None`` if it is fair.

    A comparison is unfair if some of the samples were used to train only one of the runs.

    Args:
        run: The run that is compared with ``first``.
        first: The run from whose split the samples were chosen.
        chosen: The samples.
    """
    if chosen.split == "all" or run.config is None or first.config is None:
        return None
    fields = ("data", "seed", "test_fraction", "split", "size", "fit", "layout", "on_bad")
    other = [name for name in fields if getattr(run.config, name) != getattr(first.config, name)]
    if not other:
        return None
    why = ", ".join(f"{name} {getattr(run.config, name)!r} versus {getattr(first.config, name)!r}" for name in other)
    found, n = trained_on(run, chosen.x), len(chosen.x)
    if found is None:
        return (
            f"the comparison may be unfair: the data of {run.folder} cannot be read, so this run may have been trained "
            f"on these samples ({why})"
        )
    theirs = int(found.sum())
    if chosen.split == "test" and theirs:
        return (
            f"the comparison is unfair: {run.folder} was trained on {theirs:,} of these {n:,} samples, which "
            f"{first.folder} holds out ({why})"
        )
    if chosen.split == "train" and theirs < n:
        return (
            f"the comparison is unfair: {run.folder} was not trained on {n - theirs:,} of these {n:,} samples, but "
            f"{first.folder} was ({why})"
        )
    return None


@dataclass(frozen=True, eq=False)
class Scored:
    """Samples of a data set, with their likelihoods.

    Attributes:
        name: Name of the data.
        split: ``train``, ``test`` or ``all``.
        total: Number of samples in the split.
        index: Indices of the samples in the split, int64, shape ``(n,)``.
        scores: Likelihoods under the probability flow.
        elbo: Variational bounds, or ``None`` if they were not requested.
        bound_t_min: Lower limit of the time integral in the bound. For a discrete chain, the chain's lowest node.
        run: Folder of the run that computed the likelihoods, or ``None`` if there is only one run.
        row, files: Position of each sample in its source, int64 ``(n,)``, and the file of each sample (see
            :class:`Chosen`).
        plain: Likelihoods without conditions, or ``None`` if they were not requested.
        bounds: The table of all bounds, or ``None`` if it was not requested.
    """

    name: str
    split: str
    total: int
    index: Tensor
    scores: Scores
    elbo: Elbo | None = None
    bound_t_min: float | None = None
    run: str | None = None
    row: Tensor | None = None
    files: tuple[Path, ...] = ()
    plain: Scores | None = None
    bounds: Bounds | None = None

    @property
    def gain(self) -> Measurement | None:
        """The mean of log p(x | c) - log p(x), in the unit of the scores, or ``None`` if log p(x) was not computed.

        Here, c is the condition of sample x. A positive value means that the conditions carry information about the
        samples.
        """
        if self.plain is None:
            return None
        both = [torch.where(s.model.ok, s.log_prob.double(), torch.nan) for s in (self.scores, self.plain)]
        return paired(*(log_prob / self.scores.nats_per_unit.abs() for log_prob in both))

    @property
    def bound(self) -> Tensor | None:
        """The bound for each sample, ``(n,)``, in the unit of the scores, or ``None`` if no bounds were requested."""
        if self.elbo is None:
            return None
        sign = 1 if self.scores.bits_per_dim is None else -1
        bound: Tensor = sign * self.elbo.log_prob.double() / self.scores.nats_per_unit
        return bound

    def auroc(self, first: Scored) -> float:
        """Return the AUROC of this set against ``first`` (equation 1), or NaN if all samples in either set failed."""
        theirs, ours = (s.scores.log_prob[s.scores.model.ok].double().cpu() for s in (first, self))
        if not len(theirs) or not len(ours):
            return math.nan
        return share_above(theirs, ours)

    def difference(self, other: Scored) -> Measurement:
        """Return the paired difference between the likelihoods of the same samples under two runs (equation 2).

        The difference is in the unit of the scores.

        Raises:
            UsageError: If the samples or the units differ.
        """
        if self.scores.unit != other.scores.unit:
            raise UsageError(
                f"likelihoods in {self.scores.unit} cannot be paired with likelihoods in {other.scores.unit}; "
                "compute both in the same unit"
            )
        if not torch.equal(self.index, other.index):
            raise UsageError(
                f"likelihoods of different samples cannot be paired: the indices of the {len(self.index)} samples and "
                f"of the {len(other.index)} samples differ; compute both likelihoods for the same samples"
            )
        return paired(_solved(self), _solved(other))

    def summary(self, first: Scored, other: Scored | None = None) -> dict[str, Any]:
        """Return the results as JSON-serialisable values, with ``None`` for missing values.

        Args:
            first: The set to compare this set with (equation 1). Pass this set itself for no comparison.
            other: The likelihoods of the same samples under another run, for a comparison of the runs (equation 2), or
                ``None`` for no such comparison.
        """
        scores, model = self.scores, self.scores.model
        nfe = model.nfe.double()
        facts = {
            "data": self.name, "split": self.split, "n": int(model.ok.sum()), "of": self.total,
            "failed": int((~model.ok).sum()), "unit": scores.unit, "mean": _number(scores.mean()),
            "stderr_mean": _number(scores.stderr_mean()), "stderr_probes": _number(scores.stderr_sample()),
            "change": _number(scores.change), "converged": scores.converged, "checked": scores.checked,
            "shift": _number(scores.shift), "share": _number(scores.share),
            "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()), **asdict(scores.how),
            "scale": scores.scale,
        }  # fmt: skip
        if scores.how.divergence == "exact":
            facts["probes"] = 0
        if self.elbo is not None:
            facts["elbo"] = self._elbo(self.elbo)
        if self.bounds is not None:
            facts["bounds"] = {"rows": self.bounds.summary(), "left_out": dict(self.bounds.left_out)}
        if self.gain is not None and self.plain is not None:
            facts["gain"] = {
                "mean": _number(self.gain.value), "stderr": _number(self.gain.stderr),
                "mean_without": _number(self.plain.mean()),
            }  # fmt: skip
        if self.run is not None:
            facts = {"run": self.run, **facts}
        if self is not first:
            facts["auroc"] = _number(self.auroc(first))
        if other is not None and other is not self:
            both = (_solved(self) - _solved(other)).isfinite()
            facts |= {"against": other.run, "paired": int(both.sum()), **_difference(self.difference(other))}
            if self.bound is not None and other.bound is not None:
                both = (self.bound - other.bound).isfinite()
                facts["elbo"] |= {"paired": int(both.sum()), **_difference(paired(self.bound, other.bound))}
        return facts

    def _elbo(self, elbo: Elbo) -> dict[str, Any]:
        """Return the means of the bound and of its terms over the samples with a finite bound.

        The means of the terms add up to the mean of the bound.
        """
        bound = self.bound
        assert bound is not None
        # The terms bound -log p. Densities in nats are reported as log p, so the signs of their terms are reversed.
        good, sign = bound.isfinite(), -1 if self.scores.bits_per_dim is None else 1
        unit = sign * self.scores.nats_per_unit[good]
        terms = {
            name: _number(float((getattr(elbo, name)[good].double() / unit).mean()))
            for name in ("prior", "diffusion", "reconstruction")
        }
        # The diffusion term of each stratum, or of each step of a chain, in order from data to noise.
        steps = (elbo.steps[good].double() / unit[:, None]).mean(0)
        bound = bound[good]
        error = float(bound.std()) / math.sqrt(len(bound)) if len(bound) > 1 else math.nan
        return {
            "whose": elbo.whose, "mean": _number(float(bound.mean())), "stderr_mean": _number(error), **terms,
            "nfe": int(elbo.nfe.max()),
            "dequantisation": "none" if self.scores.bits_per_dim is None else "uniform", "t_min": self.bound_t_min,
            "steps": [_number(v) for v in steps.tolist()],
        }  # fmt: skip


def how_told(summary: Mapping[str, Any]) -> str:
    """Describe the likelihood settings in ``summary``, in the same form as :meth:`scoresde.Scores.depends_on`."""
    how = Likelihood(**{f.name: summary[f.name] for f in fields(Likelihood)} | {"probes": max(1, summary["probes"])})
    return f"{how}, data scale {summary['scale']:g}"


def _solved(scored: Scored) -> Tensor:
    """Return the likelihoods in the unit of the scores, with NaN for samples that failed."""
    scores = scored.scores
    return torch.where(scores.model.ok, scores.values.double(), torch.nan)


def _difference(found: Measurement) -> dict[str, float | None]:
    return {"difference": _number(found.value), "stderr_difference": _number(found.stderr)}


def _number(value: float) -> float | None:
    """Replace NaN and infinity, which JSON cannot represent, with ``None``."""
    return value if math.isfinite(value) else None


def write_scores(folder: Path, sets: Sequence[Scored], made: Mapping[str, Any], kinds: Sequence[str]) -> list[Path]:
    """Write the likelihoods as tables (one row per sample), the summaries as JSON, and a histogram as a picture.

    The histogram is written last. If it cannot be drawn, a warning is issued.

    Args:
        folder: Folder to write to.
        sets: The samples and their likelihoods, with one item for each pair of a data set and a run.
        made: The summaries and settings to write to ``likelihood.json``, as JSON-serialisable values.
        kinds: The kinds of files to write, from :data:`KINDS`. The JSON file is always written.

    Returns:
        The paths to the files, starting with the histogram if there is one.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    columns, files = _columns(sets), []
    if "csv" in kinds:
        rows = zip(*(c.tolist() for c in columns.values()), strict=True)
        files.append(write_csv(folder / "likelihood.csv", list(columns), rows))
    if "npz" in kinds:
        files.append(write_arrays(folder / "likelihood.npz", columns))
    files.append(write_json(folder / "likelihood.json", dict(made)))
    shown = {name: s.scores.values[s.scores.model.ok].cpu() for name, s in zip(_titles(sets), sets, strict=True)}
    shown = {name: values for name, values in shown.items() if len(values)}
    if "png" in kinds and shown:
        picture = folder / "likelihood.png"
        with optional(str(picture), f"the numbers are in {files[0]}"):
            from ..plot import likelihood_histogram, save_figure

            save_figure(picture, likelihood_histogram(shown, sets[0].scores.unit))
            files.insert(0, picture)
    return files


def units(sets: Sequence[Scored]) -> dict[str, str]:
    """Return the units of the columns in the tables of :func:`write_scores`, keyed by column.

    Columns without a unit are omitted. These units do not apply to :meth:`Scored.summary`, where entries of the same
    names are in bits/dim for data stored as levels, and in nats otherwise.
    """
    there = {
        "bits_per_dim": any(s.scores.bits_per_dim is not None for s in sets),
        "elbo": any(s.elbo is not None for s in sets),
        "log_prob_without": any(s.plain is not None for s in sets),
    }
    known = {name: unit for name, unit in UNITS.items() if there.get(name, True)}
    return known | dict.fromkeys(_bound_columns(sets), "nats")


def _bound_columns(sets: Sequence[Scored]) -> list[str]:
    """Return the columns for the rows of the tables of all bounds."""
    return list(dict.fromkeys(f"bound_{row.key}" for s in sets if s.bounds is not None for row in s.bounds.rows))


def _label(scored: Scored, sets: Sequence[Scored]) -> str:
    """Return the name of a set, with a number if another set of the same run has the same name."""
    peers = [s for s in sets if s.run == scored.run]
    same = [s for s in peers if s.name == scored.name]
    return scored.name if len(same) == 1 else f"{scored.name} ({peers.index(scored) + 1})"


def _titles(sets: Sequence[Scored]) -> list[str]:
    """Return a unique title for each set."""
    several = len([s for s in sets if s.run == sets[0].run]) > 1
    names = [s.run if s.run and not several else ": ".join(filter(None, (s.run, _label(s, sets)))) for s in sets]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _columns(sets: Sequence[Scored]) -> dict[str, np.ndarray]:
    """Return the columns of the table of likelihoods, keyed by name, for the samples of all sets."""
    found: dict[str, list[np.ndarray]] = {}
    for scored in sets:
        scores, model = scored.scores, scored.scores.model
        row = {
            "index": scored.index,
            "row": scored.row,
            "log_prob": scores.log_prob,
            "bits_per_dim": scores.bits_per_dim,
            "stderr_probes": scores.stderr_probes,
            "elbo": None if scored.elbo is None else scored.elbo.log_prob,
            "log_prob_without": None if scored.plain is None else scored.plain.log_prob,
            "nfe": model.nfe,
            "change": model.change,
            "status": model.status,
        }
        rows = {} if scored.bounds is None else {f"bound_{one.key}": one.log_prob for one in scored.bounds.rows}
        missing = torch.full_like(scores.log_prob.double(), torch.nan)
        row |= {name: rows.get(name, missing) for name in _bound_columns(sets)}
        if scored.run is not None:
            found.setdefault("run", []).append(np.full(len(scored.index), scored.run))
        found.setdefault("data", []).append(np.full(len(scored.index), _label(scored, sets)))
        for key, value in row.items():
            if value is None and key == "row" and any(other.row is not None for other in sets):
                value = torch.full_like(scored.index, -1)
            if value is not None:
                found.setdefault(key, []).append(value.cpu().numpy())
            if key == "row" and any(other.files for other in sets):
                files = [str(path) for path in scored.files] or [""] * len(scored.index)
                found.setdefault("path", []).append(np.array(files))
    return {name: np.concatenate(parts) for name, parts in found.items()}
