"""Sample quality, measured by several metrics on the same features, and compared with the values for real data.

Samples are compared with *reference* data, which are either the held-out split or, as in published Fréchet distances,
the training split. The metrics (:mod:`scoresde.metrics`) depend on the number of rows and on the features, so a value
on its own means little. Each value is therefore shown next to a *floor*. To compute the floor, an equal number of real
rows from the other split is compared with the same reference by the same metric. If the value for the samples reaches
the floor, the metric cannot distinguish the samples from real data. A value below the floor suggests that some samples
are copies. If the other split has fewer rows than there are samples, the values for real data are not a floor for
biased metrics, and a note below the table of results says so.

The check for copies examines individual samples instead. It flags a sample that is closer to a training row than
held-out data would be. It uses pixels by default, because features are meant to ignore the details that distinguish two
similar images.

Samples and data are compared as they are stored in files, without dequantisation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import Advice, UsageError
from ..core.files import write_json
from ..core.limits import SEED, WHOLE, checked
from ..core.opened import file_digest
from ..core.optional import optional
from ..core.registry import options_of, resolve
from ..core.tables import METRICS
from ..core.text import one_line
from ..data import DataInfo, Dataset
from ..data.rows import Stored, evenly, thinned
from ..metrics import Copies, Measurement, Moments, Neighbourhoods, find_copies, frechet, jackknife, neighbourhoods
from ..metrics.copies import HELD_OUT
from ..metrics.neighbours import NEIGHBOURS
from ..model.estimate import Denoiser
from ..run.plausible import check_units
from ..sde.grids import default_grid
from ..solvers import Multistep, MultistepSDE, ProbabilityFlow, Solver
from .features import Extractor, Reference, read_features

__all__ = [
    "Evaluation",
    "Metric",
    "MetricRow",
    "compare",
    "described",
    "evaluate",
    "evaluate_features",
    "evaluation_table",
    "metrics_by_name",
    "plain_of",
    "resolved_options",
    "write_evaluation",
]  # fmt: skip

Metric = Callable[..., Measurement | Neighbourhoods | float]
SUSPECTS = 16
UNBIASED = ("kernel", "mmd")


@dataclass(frozen=True)
class MetricRow:
    """The values of one metric for samples and for real data.

    Attributes:
        metric: Name of the metric.
        samples: Value for the samples against the reference.
        real: Value for real rows against the same reference (the floor), or ``None`` if it was not computed.
    """

    metric: str
    samples: Measurement
    real: Measurement | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of an evaluation, with a description of the data and features that were used.

    Attributes:
        rows: The values of the metrics.
        copies: The result of the check for copies, or ``None`` if there was no check.
        reference: The statistics with which the samples were compared, and the name, hash and resizing of the features.
        n: Number of samples.
        n_real: Number of real rows used for the floor.
        copies_by: Name and hash of the features for detecting copies, or ``None`` if there was no check.
        origins: For each sample, the origin of the nearest training row: its file, or its position in the source (see
            :meth:`scoresde.data.Dataset.origin`). The tuple is empty if there was no check for copies.
    """

    rows: tuple[MetricRow, ...]
    copies: Copies | None
    reference: Reference
    n: int
    n_real: int
    copies_by: tuple[str, str] | None = None
    origins: tuple[int | Path, ...] = ()

    @property
    def features(self) -> int:
        """Number of features per row."""
        return len(self.reference.moments.mean)


def metrics_by_name(names: Sequence[str]) -> dict[str, Metric]:
    """Look up metrics by name.

    A name ``module:function`` refers to a user-defined function. Its arguments are the features of the samples,
    ``(N, d)``, and the features of the reference, ``(M, d)``. It must return a number or a
    :class:`~scoresde.metrics.Measurement`.

    Raises:
        UsageError: If a name is unknown.
    """
    return {name: resolve(name, METRICS, "metric", typed=True, function=True) for name in names}


@checked(limit=WHOLE, seed=SEED)
def evaluate(
    x: Tensor,
    data: Dataset,
    extractor: Extractor,
    metrics: Mapping[str, Metric],
    *,
    against: str = "test",
    reference: Reference | None = None,
    copies: Extractor | None = None,
    limit: int = 10_000,
    seed: int = 0,
    check: bool = True,
    on_metric: Callable[[MetricRow], None] | None = None,
) -> Evaluation:
    """Compute metrics that compare features of samples and data, and check the samples for copies of training rows.

    Args:
        x: Samples in data units, ``(N, *event)``.
        data: The data that the model was trained on, including the held-out split.
        extractor: The feature extractor for the metrics.
        metrics: Metrics, keyed by name (see :func:`metrics_by_name`).
        against: The split to compare with, ``"test"`` or ``"train"``. The floor is computed from the other split.
        reference: Statistics to compare with instead of the statistics of the split ``against``.
        copies: The feature extractor for the check for copies, or ``None`` for no check. If there are too few held-out
            rows, the check is skipped with a warning.
        limit: Maximum number of reference rows, drawn at random, or 0 for all rows.
        seed: Seed for choosing the rows.
        check: Whether to reject samples whose units seem to differ from those of the data
            (:mod:`scoresde.run.plausible`).
        on_metric: Called with each row of the result.

    Raises:
        DataError: If ``check`` is set and the units of the samples seem to differ from those of the data.
        UsageError: If an option is invalid, or the reference was computed with other features.
    """
    splits = {"test": data.test, "train": data.train}
    if against not in splits:
        raise UsageError(f"unknown split {against!r}; choose from: test, train")
    if check:
        check_units(x, data)
    if reference is None:
        reference = Reference.of(extractor(_choose(splits[against], limit, seed)), extractor, data.info.name, against)
    reference.check(extractor)
    other = "train" if reference.split == "test" else "test"
    real = _choose(splits[other], len(x), seed + 1)
    rows = compare(
        extractor(x), reference, metrics, real=extractor(real) if len(real) > 1 else None, on_metric=on_metric
    )
    if copies is not None and len(data.test) < HELD_OUT:
        warnings.warn(
            Advice(
                f"the check for copies was skipped: it requires at least {HELD_OUT} held-out rows, but "
                f"{data.info.name} has {len(data.test)}; hold out more rows when training",
                parameter="test_fraction",
                value=0.2,
            ),
            stacklevel=2,
        )
        copies = None
    if copies is not None and not len(data.train):
        warnings.warn("the check for copies was skipped: there are no training rows to compare with", stacklevel=2)
        copies = None
    at = evenly(data.train)  # all training rows, or a sample of those that stay in their files
    found = None
    if copies is not None:
        found = find_copies(copies(x), copies(thinned(data.train)), copies(thinned(data.test)))
        found = replace(found, nearest=at[found.nearest.cpu()].to(found.nearest.device))
    by = None if copies is None else (copies.name, copies.hash)
    origins = () if found is None else tuple(data.origin(i) for i in found.nearest.tolist())
    return Evaluation(rows, found, reference, len(x), len(real), by, origins)


def evaluate_features(path: Path, metrics: Mapping[str, Metric], *, copies: bool = True) -> Evaluation:
    """Compare samples with data, using features from a file (see :func:`~scoresde.study.features.read_features`).

    Args:
        path: An ``.npz`` file with the arrays ``samples`` and ``reference``, each ``(N, d)``, and optionally ``train``.
            The check for copies uses ``train`` as training rows and ``reference`` as held-out data.
        metrics: Metrics, keyed by name.
        copies: Whether to check for copies. The check requires the array ``train``.
    """
    found = read_features(path)
    samples, rows, train = found["samples"], found["reference"], found.get("train")
    if copies and train is None:
        warnings.warn(f"the check for copies was skipped: {path} has no array 'train'", stacklevel=2)
    digest = file_digest(path)[:16]
    reference = Reference.of(rows, Extractor(path.name, digest, "unknown", lambda x: x), path.name, "reference")
    real = None if train is None else _choose(train, len(samples), 1)
    compared = compare(samples, reference, metrics, real=real)
    near = find_copies(samples, train, rows) if copies and train is not None else None
    origins = () if near is None else tuple(near.nearest.tolist())
    by = None if near is None else (path.name, digest)
    return Evaluation(compared, near, reference, len(samples), 0 if real is None else len(real), by, origins)


def compare(
    x: Tensor,
    reference: Reference,
    metrics: Mapping[str, Metric],
    *,
    real: Tensor | None = None,
    on_metric: Callable[[MetricRow], None] | None = None,
) -> tuple[MetricRow, ...]:
    """Compute metrics from the features of samples and of a reference.

    Args:
        x: Features of the samples, ``(N, d)``.
        reference: The statistics to compare with.
        metrics: Metrics, keyed by name.
        real: Features of real rows for the floor, ``(R, d)``, or ``None`` for no floor.
        on_metric: Called with each row.

    Raises:
        UsageError: If a metric requires the features of the reference, but the reference has only their moments.
    """
    rows: list[MetricRow] = []
    for name, metric in metrics.items():
        against: Tensor | Moments = reference.moments
        if reference.features is not None:
            against = reference.features
        elif metric is not frechet:
            raise UsageError(
                f"the metric {name!r} requires the features of the reference, but the reference has only their moments "
                "because the features were too large to save; use the metric 'frechet', or compare with the data",
                parameter="metrics",
                value="frechet",
            )
        if not _enough(metric, x, against) and len(metrics) > 1:
            warnings.warn(
                f"the metric {name!r} was skipped: it requires more than {NEIGHBOURS} samples and more than "
                f"{NEIGHBOURS} reference rows, got {len(x):,} and {reference.moments.n:,}",
                stacklevel=2,
            )
            continue
        samples = _measure(name, metric, x, against)
        floor = {} if real is None or not _enough(metric, real) else _measure(name, metric, real, against)
        for key, value in samples.items():
            rows.append(MetricRow(key, value, floor.get(key)))
            if on_metric is not None:
                on_metric(rows[-1])
    return tuple(rows)


def _enough(metric: Metric, *sets: Tensor | Moments) -> bool:
    """Return whether every set has enough rows for the metric."""
    return metric is not neighbourhoods or all(len(rows) > NEIGHBOURS for rows in sets if isinstance(rows, Tensor))


def _measure(name: str, metric: Metric, x: Tensor, y: Tensor | Moments) -> dict[str, Measurement]:
    """Compute a metric, and return its values and standard errors, keyed by name."""
    found = metric(x, y)
    if isinstance(found, Neighbourhoods):
        return {f.name: getattr(found, f.name) for f in fields(found)}
    if isinstance(found, Measurement):
        return {name: found}
    assert isinstance(y, Tensor)
    try:
        float(found)
    except (TypeError, ValueError):
        raise UsageError(f"the metric {name!r} must return a number or a Measurement, got {found!r}") from None
    return {name: jackknife(lambda a, b: float(metric(a, b)), x, y)}  # type: ignore[arg-type]


def _choose(x: Tensor | Stored, limit: int, seed: int) -> Tensor:
    """Draw at most ``limit`` rows without replacement, or return all rows if ``limit`` is 0.

    Of rows that stay in their files, an evenly thinned sample stands for all.
    """
    if not limit or len(x) <= limit:
        return thinned(x)
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:limit]]


# ----------------------------------------------------------------------------------------------------------- reports


def evaluation_table(found: Evaluation) -> str:
    """Format the results of an evaluation as text."""
    reference, copies = found.reference, found.copies
    head = ("", "samples", "real data")
    lines = [head] if found.rows else []
    for row in found.rows:
        lines.append((row.metric, str(row.samples), "-" if row.real is None else str(row.real)))
        if row.metric == "frechet":
            values = ["-" if m is None else str(_without_bias(m)) for m in (row.samples, row.real)]
            lines.append(("  without bias", values[0], values[1]))
    if copies is not None:
        lines.append(("closer", str(copies.closer), "0.5"))
        lines.append(("authenticity", str(copies.authenticity), str(copies.authenticity_held_out)))
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(3)]
    text = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines]
    text.append("")
    text.append(
        f"{found.n:,} samples against {reference.moments.n:,} rows of {reference.data} ({reference.split}); "
        f"real data: {found.n_real:,} rows of the other split" if found.n_real else
        f"{found.n:,} samples against {reference.moments.n:,} rows of {reference.data} ({reference.split})"
    )  # fmt: skip
    biased = [row.metric for row in found.rows if row.metric not in UNBIASED and row.real is not None]
    if biased and found.n_real < found.n:
        text.append(
            f"there are fewer real rows than samples, so the values for real data are not a floor for "
            f"{', '.join(biased)}; to obtain a floor, compare at most {found.n_real:,} samples"
        )
    text.append(
        f"features: {reference.extractor} ({found.features} per row), hash {reference.hash}, resizing "
        f"{reference.resize}"
    )
    if copies is not None:
        text.append(_verdict(found, copies))
    return "\n".join(text)


def _without_bias(measured: Measurement) -> Measurement:
    """Return the value extrapolated to infinitely many rows, with the standard error of the original value."""
    # The extrapolated value is the mean of the jackknife's pseudo-values B theta - (B - 1) theta_b, where theta is the
    # original value, and theta_b is the value without block b of the B blocks. The standard error of this mean equals
    # the standard error of theta.
    return Measurement(measured.extrapolated, measured.stderr)


def _verdict(found: Evaluation, copies: Copies) -> str:
    """Summarise the check for copies in one line."""
    flagged = copies.flagged.tolist()
    by = "" if found.copies_by is None else f" by {found.copies_by[0]}"
    exact = f"exact copies: {copies.exact} (among held-out data: {copies.exact_held_out})"
    if not flagged:
        return f"copies{by}: no sample is closer to training data than held-out data would be; {exact}"
    shown = ", ".join(f"{i} (nearest: {_named(found.origins[i])})" for i in flagged[:5])
    more = f" and {len(flagged) - 5} more" if len(flagged) > 5 else ""
    return f"copies{by}: {len(flagged)} flagged: sample {shown}{more}; {exact}"


def _named(origin: int | Path) -> str:
    return f"row {origin}" if isinstance(origin, int) else one_line(str(origin))


def _nearest(origin: int | Path) -> dict[str, Any]:
    """Return the position or the file of a training row as a JSON-serialisable dict."""
    return {"training_row": origin} if isinstance(origin, int) else {"training_file": str(origin)}


def write_evaluation(
    folder: Path,
    found: Evaluation,
    made: Mapping[str, Any],
    pictures: tuple[DataInfo, Tensor, Tensor | Stored] | None = None,
) -> list[Path]:
    """Write ``evaluation.json`` and, if ``pictures`` is given and there was a check for copies, ``neighbours.png``.

    The picture shows the most suspicious samples with their nearest training rows. If the picture cannot be drawn, a
    warning is issued.

    Args:
        folder: Folder to write to.
        found: The results.
        made: The settings of the evaluation as JSON-serialisable values.
        pictures: The description of the data, the samples ``(N, *event)`` and the training rows ``(T, *event)``, or
            ``None`` for no picture.

    Returns:
        The paths to the files, starting with the picture if there is one.
    """
    files = [write_json(folder / "evaluation.json", {**made, **described(found)})]
    if pictures is None or found.copies is None:
        return files
    picture, (info, x, train), copies = folder / "neighbours.png", pictures, found.copies
    with optional(str(picture), f"the numbers are in {files[0]}"):
        from ..plot import neighbour_sheet, save_figure

        shown, flagged = copies.suspects[:SUSPECTS], set(copies.flagged.tolist())
        captions = [f"no. {i}  ratio {float(copies.ratio[i]):.2f}" for i in shown.tolist()]
        framed = [place for place, i in enumerate(shown.tolist()) if i in flagged]
        figure = neighbour_sheet(
            x[shown], train[copies.nearest[shown]], captions, info.kind, info.low, info.high, flagged=framed,
            data=thinned(train) if info.kind == "vector" else None, names=info.names,
        )  # fmt: skip
        save_figure(picture, figure)
        files.insert(0, picture)
    return files


def described(found: Evaluation) -> dict[str, Any]:
    """Return the results of an evaluation as JSON-serialisable values, with ``None`` for non-finite numbers."""
    reference, copies = found.reference, found.copies
    facts: dict[str, Any] = {
        "metrics": {
            row.metric: {"samples": plain_of(row.samples), "real": None if row.real is None else plain_of(row.real)}
            for row in found.rows
        },
        "n": found.n,
        "n_real": found.n_real,
        "reference": {"data": reference.data, "split": reference.split, "n": reference.moments.n},
        "features": {
            "name": reference.extractor, "hash": reference.hash, "resize": reference.resize, "count": found.features,
        },
        "copies": None,
    }  # fmt: skip
    if copies is not None:
        suspects = copies.suspects[:SUSPECTS].tolist()
        facts["copies"] = {
            "features": None if found.copies_by is None else dict(zip(("name", "hash"), found.copies_by, strict=True)),
            "level": copies.level, "flagged": copies.flagged.tolist(), "closer": plain_of(copies.closer),
            "authenticity": plain_of(copies.authenticity),
            "authenticity_held_out": plain_of(copies.authenticity_held_out),
            "exact": copies.exact, "exact_held_out": copies.exact_held_out,
            "suspects": [
                {
                    "sample": i, **_nearest(found.origins[i]), "distance": float(copies.distance[i]),
                    "ratio": float(copies.ratio[i]), "p_value": float(copies.p_value[i]),
                }
                for i in suspects
            ],
        }  # fmt: skip
    return facts


def resolved_options(solver: Solver, model: Denoiser) -> dict[str, Any]:
    """Return the options of a solver, with automatic settings replaced by the values that the solver chooses.

    An automatic setting is ``auto`` or ``None``. The settings concerned are the grid of any solver; the order,
    correction and tapering of a multistep solver; and the method and absolute tolerance of the probability flow.
    """
    found = options_of(solver)
    if found.get("grid") == "auto":
        found["grid"] = default_grid(model.domain.sde)
    if isinstance(solver, Multistep | MultistepSDE):
        found["order"], found["correct"], found["taper"] = solver.choice(solver.steps)
    if isinstance(solver, ProbabilityFlow):
        found["atol"], found["method"] = solver.absolute, solver.scheme
    return found


def plain_of(measured: Measurement) -> dict[str, float | None]:
    """Return a measurement as JSON-serialisable values, with ``None`` for numbers that are not finite."""
    return {name: value if np.isfinite(value) else None for name, value in asdict(measured).items()}
