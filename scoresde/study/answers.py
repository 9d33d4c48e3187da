"""A comparison of the answers of a conditional model with the truth.

A question is a condition taken from one row of the data, such as the row's class, a vector, a low-resolution version of
the row, or its non-empty cells. The row itself is the truth, and the answers are samples that the model draws under
this condition. For each question, the metrics of :mod:`scoresde.metrics.answers` compare K answers with the truth. That
module explains which values to expect for exact answers, which are draws from the true conditional distribution. If a
mask marks values as missing, only these values are compared.

Errors of pictures are measured relative to the range of the data. Columns of a table, channels of a signal and picture
channels with different units are divided by their standard deviations, so that a PSNR of 0 dB means a root-mean-square
error as large as the standard deviation.

The PSNR and the structural similarity of the answers are reported next to those of *training rows*. These rows are
drawn at random for each question, and serve as answers that ignore the question. Because they are drawn from the
distribution of all rows, they pass every test of calibration, although they are useless as answers. The PSNR and the
structural similarity of simple estimates (:mod:`.baselines`) say what the network adds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec import Affine, Codec
from ..core.errors import NumericalError, UsageError
from ..core.files import write_json
from ..core.limits import COUNT, SEED, WHOLE, checked
from ..core.optional import optional
from ..core.registry import closest
from ..core.shapes import flat
from ..core.tables import ANSWERS
from ..core.text import one_line
from ..data import DataInfo, Dataset
from ..data.rows import part, thinned
from ..metrics import (
    Measurement,
    Ranks,
    coverage,
    difference,
    exact_gap,
    exact_loss,
    gap,
    psnr,
    ranks,
    seen,
    spread,
    ssim,
)
from ..metrics.answers import bins_of
from ..operators import Linear, Operator
from ..run.plausible import warn_of_units
from ..run.run import Run
from ..run.seen import Seen, tolerance
from ..solvers import Multistep, Solution, Solver
from ..solvers.base import Watch
from .baselines import estimates
from .evaluate import plain_of

__all__ = [
    "Answers",
    "Column",
    "Judgement",
    "answers_table",
    "ask",
    "check_metrics",
    "described_answers",
    "evaluate_answers",
    "judge",
    "questions",
    "training_rows",
    "write_calibration",
]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHOWN = (0.5, 0.8, 0.95)  # the levels in the table
COLUMNS = 50  # the largest number of columns that are judged one by one
LINES = 20  # the largest number of columns in the table
MORE = 4  # times as many answers, for which the expected loss is told too
CURVES = 6  # the largest number of columns in the figure
PAIRED = ("ranks", "spread")  # metrics that need two answers to each question


@dataclass(frozen=True, eq=False)
class Answers:
    """K answers to each of N questions, together with the truth.

    Attributes:
        truth: The true samples, ``(N, *event)`` in data units.
        x: The answers, ``(N, K, *event)`` in data units.
        info: Description of the data.
        codec: The map from data units to model units. Its scales are used to compare values with different units.
        seen: The measurements on which the answers are conditioned, or ``None`` if there are no measurements.
        rows: For each question, the index of its row in the split, int64 ``(N,)``.
        split: The split that the rows belong to.
        failed: Number of questions that were left out because at least one of their answers failed.
        solution: The solver's result for all answers, including those to the questions that were left out, or ``None``
            if it is not available.
        numbers: The numbers of the condition, ``(N, K)`` in data units with NaN where a number is missing, or ``None``
            if the condition has no numbers.
    """

    truth: Tensor
    x: Tensor
    info: DataInfo
    codec: Codec
    seen: Seen | None = None
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    split: str = "test"
    failed: int = 0
    solution: Solution | None = None
    numbers: Tensor | None = None

    @property
    def each(self) -> int:
        """Number of answers to each question, K."""
        return self.x.shape[1]

    @property
    def scale(self) -> Tensor | None:
        """The scales by which values are divided for a comparison, or ``None`` if all values share one range."""
        return _scale(self.info, self.codec)

    def reason_against(self, metric: str) -> str:
        """Return the reason why a metric of :data:`scoresde.core.tables.ANSWERS` cannot be computed.

        The result is an empty string if the metric can be computed.
        """
        if metric in PAIRED and self.each < 2:
            return "it requires at least two answers to each question"
        if reason := _unsuited(metric, self.info, self.codec):
            return reason
        if metric == "seen":
            if self.seen is None:
                return "the answers are not conditioned on measurements by a linear operator such as pool:2"
            if self.seen.operator is None:
                return "the questions were measured by several operators; choose one of them as the operator"
            if not isinstance(self.seen.operator, Linear):
                return f"it requires a linear operator, but {self.seen.operator} is not linear"
        return ""


def _scale(info: DataInfo, codec: Codec) -> Tensor | None:
    affine = codec.continuous
    own = info.kind in ("vector", "signal")
    return affine.scale if isinstance(affine, Affine) and (own or affine.scale.numel() > 1) else None


def _unsuited(metric: str, info: DataInfo, codec: Codec) -> str:
    """Return the reason why a metric cannot be computed for a kind of data, or "" if it can."""
    if metric != "ssim":
        return ""
    if info.kind not in ("image", "volume"):
        return f"it compares pictures, but {info.name} contains {info.kind}s"
    return "" if _scale(info, codec) is None else f"the channels of {info.name} have different units"


@dataclass(frozen=True, eq=False)
class Column:
    """The calibration of one column of a table.

    Attributes:
        name: The name of the column.
        ranks: The ranks of the true values among the answers.
        coverage: For each level, the fraction of true values that lie in the central interval of the answers at this
            level.
    """

    name: str
    ranks: Ranks
    coverage: Mapping[float, Measurement]


@dataclass(frozen=True, eq=False)
class Judgement:
    """The quality of the answers to a set of questions. Attributes that were not computed are ``None`` or empty.

    Attributes:
        questions: Number of questions.
        each: Number of answers to each question, K.
        hidden: Whether only values hidden by a mask are compared.
        unit: A description of the unit in which values are compared.
        psnr_one, psnr_mean: The PSNR of a single answer, and the PSNR of the mean of all answers to a question. The
            mean is not rounded to levels. The expected loss of exact answers is :attr:`exact_loss`.
        gap: The difference ``psnr_mean - psnr_one``. The expected value for exact answers is :attr:`exact_gap`.
        ssim_one, ssim_mean: The structural similarity between the truth and a single answer, and between the truth and
            the mean of all answers to a question.
        seen: The share of answers that agree with the given measurements.
        largest: The largest difference between the measurements of an answer and the given measurements.
        ranks: The ranks of all compared true values among the answers.
        coverage: For each level, the fraction of true values that lie in the central interval of the answers at this
            level.
        columns: The calibration of each column of a table.
        spread: The ratio of the spread of the answers to the error of their mean. Apart from sampling errors, the ratio
            is 1 for exact answers.
        ignorant: The PSNR and the structural similarity of training rows that serve as answers. The keys are the names
            of the corresponding attributes, such as ``psnr_one``.
        baselines: The PSNR and the structural similarity (``psnr`` and ``ssim``) of estimates that need no network,
            keyed by estimate.
        ahead: The PSNR and the structural similarity of the mean of all answers to a question minus those of the
            estimates in ``baselines``, with the error of the difference, keyed by estimate.
        skipped: The reasons why metrics could not be computed, keyed by metric.
    """

    questions: int
    each: int
    hidden: bool
    unit: str
    psnr_one: Measurement | None = None
    psnr_mean: Measurement | None = None
    gap: Measurement | None = None
    ssim_one: Measurement | None = None
    ssim_mean: Measurement | None = None
    seen: Measurement | None = None
    largest: float | None = None
    ranks: Ranks | None = None
    coverage: Mapping[float, Measurement] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    spread: Measurement | None = None
    ignorant: Mapping[str, Measurement] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Measurement]] = field(default_factory=dict)
    ahead: Mapping[str, Mapping[str, Measurement]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def exact_gap(self) -> float:
        """The expected :attr:`gap` for exact answers, in decibels."""
        return exact_gap(self.each)

    @property
    def exact_loss(self) -> float:
        """The expected loss of the mean of exact answers against the posterior mean, in decibels."""
        return exact_loss(self.each)


@checked(limit=WHOLE, seed=SEED)
def questions(data: Dataset, split: str = "test", limit: int = 0, seed: int = 0) -> Tensor:
    """Choose rows of a data set as questions, and return their indices, int64 ``(n,)``.

    In the training split, rows with empty cells and rows that are used only to choose between checkpoints are left out.

    Args:
        data: The data set.
        split: ``test`` or ``train``.
        limit: Maximum number of rows, drawn at random, or 0 for all rows. A larger limit keeps the rows of a smaller
            one and appends others.
        seed: Seed for choosing the rows.
    """
    if split not in ("test", "train"):
        raise UsageError(f"unknown split {split!r}; choose from: test, train", parameter="given", value="test")
    allowed = torch.arange(len(data.test))
    if split == "train":
        allowed = _usable(data).nonzero().flatten()
    order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed))
    return allowed[order[: limit or len(order)]]


def training_rows(data: Dataset) -> Tensor:
    """Return the rows ``(n, *event)`` that are used for training and have no empty cells.

    Of rows that stay in their files, an evenly thinned sample is returned.
    """
    return thinned(part(data.train, _usable(data)))


def _usable(data: Dataset) -> Tensor:
    """Return a mask of the rows that are used for training and have no empty cells."""
    return data.trains if data.complete is None else data.trains & data.complete.flatten(1).all(1)


@checked(each=COUNT, seed=SEED, batch=COUNT)
def ask(
    run: Run,
    data: Dataset,
    rows: Tensor,
    *,
    split: str = "test",
    each: int = 8,
    solver: str | Solver | None = None,
    operator: str | Operator | None = None,
    seed: int = 0,
    batch: int = 256,
    watch: Watch | None = None,
) -> Answers:
    """Condition a run on rows of a data set, and draw several answers for each row.

    Args:
        run: A conditional run, with the guidance and the path to use already set.
        data: The data set.
        rows: Indices of the rows to use as questions, int64 ``(N,)``, as returned by :func:`questions`.
        split: The split that the rows belong to.
        each: Number of answers to each question, K.
        solver: The solver, or its name (default: ``multistep`` with 30 steps).
        operator: The operator that measures the rows (default: the run's operator).
        seed: Seed for all random numbers.
        batch: Maximum number of answers per batch.
        watch: Called after each step of each batch.

    Raises:
        UsageError: If ``rows`` is empty, the run was trained without a condition, or the data do not contain every part
            of the run's condition.
        NumericalError: If every question has at least one answer that failed.
    """
    if not len(rows):
        raise UsageError("there are no questions; choose at least one row")
    truth = (data.test if split == "test" else data.train)[rows]
    warn_of_units(truth, run.codec, run.info, stacklevel=5)
    asked = run.given_rows(data, rows, split=split, operator=operator, each=each, seed=seed)
    drawn = asked.sample(len(rows) * each, solver or Multistep(steps=30), seed=seed, batch=batch, watch=watch)
    fine = drawn.solution.ok.cpu().reshape(-1, each).all(1)
    if not bool(fine.any()):
        raise NumericalError("; ".join(drawn.solution.failures()))
    if not bool(fine.all()):
        warnings.warn(
            f"questions left out because at least one answer failed: {int((~fine).sum())} of {len(rows):,} "
            f"({drawn.solution.failures()[0]})",
            stacklevel=4,
        )
    kept = fine.nonzero().flatten()
    x = drawn.x.reshape(len(rows), each, *truth.shape[1:])[kept]
    measured = None if asked.seen is None else asked.seen.rows(kept * each)
    known = (data.test_given if split == "test" else data.train_given).vector
    numbers = None if known is None or run.config is None or not run.config.sources.vector else known[rows[kept]]
    return Answers(
        truth[kept], x, run.info, run.codec, measured, rows[kept], split, len(rows) - len(kept), drawn.solution, numbers
    )


def evaluate_answers(
    run: Run,
    data: Dataset,
    rows: Tensor,
    *,
    split: str = "test",
    each: int = 8,
    solver: str | Solver | None = None,
    operator: str | Operator | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    batch: int = 256,
    watch: Watch | None = None,
) -> Judgement:
    """Condition a run on rows of a data set, draw several answers for each row, and compare the answers with the row.

    Args:
        run, data, rows, split, each, solver, operator, seed, batch, watch: As for :func:`ask`.
        metrics: As for :func:`judge`.
    """
    check_metrics(metrics or (), each, run)
    found = ask(
        run, data, rows, split=split, each=each, solver=solver, operator=operator, seed=seed, batch=batch, watch=watch
    )
    return judge(found, metrics, training=training_rows(data), others=estimates(found, data), seed=seed)


def check_metrics(metrics: Sequence[str], each: int, run: Run | None = None) -> None:
    """Reject unknown metrics, and metrics that cannot be computed, before any answer is drawn.

    Raises:
        UsageError: If a metric is unknown, requires more than ``each`` answers to a question, or does not suit the data
            of the run.
    """
    for name in metrics:
        if name not in ANSWERS:
            raise UsageError(f"unknown metric {name!r}; {closest(name, ANSWERS)}", parameter="metrics")
        if name in PAIRED and each < 2:
            raise UsageError(
                f"the metric {name!r} requires at least two answers to each question, got each={each}",
                parameter="each",
                value=8,
            )
        if run is not None and (reason := _unsuited(name, run.info, run.codec)):
            raise UsageError(f"the metric {name!r} cannot be computed: {reason}", parameter="metrics")


@checked(seed=SEED)
def judge(
    answers: Answers, metrics: Sequence[str] | None = None, *, training: Tensor | None = None,
    others: Mapping[str, Tensor] | None = None, seed: int = 0,
) -> Judgement:  # fmt: skip
    """Compare answers with the truth.

    Args:
        answers: The answers and the truth.
        metrics: Names in :data:`scoresde.core.tables.ANSWERS`, or ``None`` for all metrics that can be computed.
        training: Training rows ``(T, *event)`` to use as answers that ignore the question, or ``None`` to leave these
            out.
        others: Other estimates of the truth, ``(N, *event)`` in data units, keyed by name (:mod:`.baselines`).
        seed: Seed for breaking ties between ranks, and for choosing training rows.

    Raises:
        UsageError: If a metric is unknown, or cannot be computed for these answers, or if a mask hides no value of any
            question.
    """
    check_metrics(metrics or (), answers.each)
    reasons = {name: reason for name in metrics or ANSWERS if (reason := answers.reason_against(name))}
    if reasons and metrics is not None:
        name, reason = next(iter(reasons.items()))
        raise UsageError(f"the metric {name!r} cannot be computed: {reason}", parameter="metrics")
    wanted = [name for name in metrics or ANSWERS if name not in reasons]
    info, scale, several = answers.info, answers.scale, answers.each
    truth, x = answers.truth.double(), answers.x.double()
    hidden = None if answers.seen is None else answers.seen.hidden
    hidden = None if hidden is None else hidden.cpu().expand(truth.shape)
    if hidden is not None and not bool(hidden.any()):
        raise UsageError(
            f"no value is hidden in {_count(len(truth), 'question')}, so there is nothing to compare; ask about more "
            "rows, or choose another seed"
        )
    unit = (
        "the standard deviation of each column" if info.kind == "vector" else "the standard deviation of each channel"
    )
    if scale is None:
        span, unit = info.high - info.low or 1.0, f"the range of the data ({info.low:g} to {info.high:g})"
    else:
        span, truth, x = 1.0, truth / scale, x / scale
    estimated = {name: x.double() if scale is None else x.double() / scale for name, x in (others or {}).items()}
    random = None if training is None else _ignorant(training, len(truth), several, seed)
    if random is not None and scale is not None:
        random = random / scale
    found: dict[str, Any] = {}
    ignorant: dict[str, Measurement] = {}
    baselines: dict[str, dict[str, Measurement]] = {key: {} for key in estimated}
    ahead: dict[str, dict[str, Measurement]] = {key: {} for key in estimated}
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        if name in wanted:
            compare = partial(measure, truth, span=span, hidden=hidden)
            for values, into in ((x, found), (random, ignorant)):
                if values is not None:
                    into[f"{name}_one"], into[f"{name}_mean"] = compare(values), compare(values.mean(1))
            for key, values in estimated.items():
                baselines[key][name] = compare(values)
                ahead[key][name] = difference(name, truth, x.mean(1), values, span, hidden)
    if "psnr" in wanted and several > 1:
        found["gap"] = gap(truth, x, span, hidden)
    if "seen" in wanted:
        residual = _residual(answers)
        found |= {"seen": seen(residual, tolerance(info)), "largest": float(residual.max())}
    if "spread" in wanted:
        found["spread"] = spread(truth, x, hidden)
    if "ranks" in wanted:
        found |= {"ranks": _ranks(truth, x, hidden, seed), "coverage": _coverage(truth, x, hidden)}
        if info.kind == "vector" and info.dims <= COLUMNS:
            found["columns"] = tuple(_column(info, truth, x, hidden, seed, i) for i in range(info.dims))
    return Judgement(
        len(truth), several, hidden is not None, unit, ignorant=ignorant, skipped=reasons,
        baselines={key: values for key, values in baselines.items() if values},
        ahead={key: values for key, values in ahead.items() if values}, **found,
    )  # fmt: skip


def _ignorant(training: Tensor, count: int, each: int, seed: int) -> Tensor | None:
    """Draw K different training rows for each question (K = ``each``), or return ``None`` if there are too few."""
    if len(training) < max(2, each):
        return None
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    place = torch.arange(count * each).reshape(count, each) % len(order)
    return training[order[place]].double()


def _residual(answers: Answers) -> Tensor:
    """Return, for each answer, the largest absolute difference from the given measurements, ``(N, K)``."""
    assert answers.seen is not None and isinstance(answers.seen.operator, Linear)
    operator, y = answers.seen.operator, answers.seen.y.cpu().double()
    found = [flat(operator(x) - y).abs().amax(1) for x in answers.x.double().unbind(1)]
    return torch.stack(found, 1)


def _ranks(truth: Tensor, x: Tensor, hidden: Tensor | None, seed: int) -> Ranks:
    return ranks(truth, x, hidden, bins_of(x.shape[1], len(truth)), seed)


def _coverage(truth: Tensor, x: Tensor, hidden: Tensor | None) -> dict[float, Measurement]:
    return {level: coverage(truth, x, level, hidden) for level in LEVELS}


def _column(info: DataInfo, truth: Tensor, x: Tensor, hidden: Tensor | None, seed: int, i: int) -> Column:
    part = (truth[:, i : i + 1], x[:, :, i : i + 1], None if hidden is None else hidden[:, i : i + 1])
    count = len(truth) if hidden is None else int(hidden[:, i].sum())
    counted = ranks(*part, bins_of(x.shape[1], count), seed + i + 1)
    return Column(info.names[i] if info.names else f"x{i}", counted, _coverage(*part))


# ----------------------------------------------------------------------------------------------------------- reports


def answers_table(found: Judgement) -> str:
    """Format a judgement as text, with one line per metric.

    The columns contain the values for the answers, for exact answers and for training rows.
    """
    exact = {
        "psnr_one": f"best - {exact_loss(1):.2f}", "psnr_mean": f"best - {found.exact_loss:.2f}",
        "gap": f"{found.exact_gap:.2f}", "seen": "1", "spread": "1",
    }  # fmt: skip
    names = {
        "psnr_one": "psnr of one", "psnr_mean": "psnr of mean", "gap": "  gap", "ssim_one": "ssim of one",
        "ssim_mean": "ssim of mean", "seen": "seen", "spread": "spread",
    }  # fmt: skip
    lines: list[tuple[str, ...]] = [("", "answers", "exact", "training rows" if found.ignorant else "")]
    for key, name in names.items():
        value = getattr(found, key)
        if value is not None:
            other = found.ignorant.get(key)
            lines.append((name, str(value), exact.get(key, "-"), "" if other is None else str(other)))
    if found.ranks is not None:
        lines.append(("ranks", str(found.ranks.measured), f"below {found.ranks.band:.2g}", ""))
        lines += [(f"within {level:.0%}", str(found.coverage[level]), f"{level:g}", "") for level in SHOWN]
    text = _aligned(lines)
    if found.baselines:
        both = [name for name in ("psnr", "ssim") if any(name in values for values in found.baselines.values())]
        lines = [("without a network", *(cell for m in both for cell in (m, "mean minus it")))]
        for name, values in found.baselines.items():
            pairs = ((values[m], found.ahead.get(name, {}).get(m)) for m in both)
            lines.append((name, *(cell for value, ahead in pairs for cell in (str(value), _signed(ahead)))))
        text += ["", *_aligned(lines)]
    if len(found.columns) > 1:
        lines = [("", "ranks", "p", *(f"within {level:.0%}" for level in SHOWN))]
        for column in found.columns[:LINES]:
            p = "-" if column.ranks.doubt else f"{column.ranks.p_value:.2g}"
            within = (str(column.coverage[level]) for level in SHOWN)
            lines.append((one_line(column.name), str(column.ranks.measured), p, *within))
        text += ["", *_aligned(lines)]
        if len(found.columns) > LINES:
            text.append(f"... and {len(found.columns) - LINES} more columns")
    what = "; only the hidden values are compared" if found.hidden else ""
    each = "each of " if found.questions > 1 else ""
    text += ["", f"{_count(found.each, 'answer')} to {each}{_count(found.questions, 'question')}{what}"]
    if found.psnr_one is not None:
        text.append(f"psnr in decibels, relative to {found.unit}")
        more = MORE * found.each
        text.append(
            f"best: the psnr of the posterior mean; the mean of {_count(found.each, 'exact answer')} is "
            f"{found.exact_loss:.2f} dB below it, and that of {more:,} is {exact_loss(more):.2f} dB below it"
        )
    if found.largest is not None:
        text.append(f"largest difference from a measurement: {found.largest:.3g}")
    if found.ranks is not None:
        text.append(_told_of_ranks(found.ranks))
    text += [f"not computed: {name}, because {reason}" for name, reason in found.skipped.items()]
    return "\n".join(text)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _signed(found: Measurement | None) -> str:
    """Format a difference, with its sign."""
    return "-" if found is None else f"{'+' * (found.value > 0)}{found}"


def _told_of_ranks(found: Ranks) -> str:
    """Summarise the ranks in one line."""
    left = f", without {found.left_out:,} for which the truth and all answers are equal" if found.left_out else ""
    p = f"no p-value, because {found.doubt}" if found.doubt else f"p = {found.p_value:.2g} (chi-square)"
    return f"ranks of {found.counts.sum():,} values in {len(found.counts)} bins{left}: {p}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Format a table as lines of text with left-aligned columns."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:<{n}}" for cell, n in zip(line, widths, strict=True)).rstrip() for line in lines]


def described_answers(found: Judgement) -> dict[str, Any]:
    """Return a judgement as JSON-serialisable values, with ``None`` for values that were not computed."""
    singles = ("psnr_one", "psnr_mean", "gap", "ssim_one", "ssim_mean", "seen", "spread")
    return {
        "questions": found.questions, "each": found.each, "only_hidden": found.hidden, "unit": found.unit,
        **{name: None if (value := getattr(found, name)) is None else plain_of(value) for name in singles},
        "exact_gap": found.exact_gap if found.gap is not None else None,
        "exact_loss": found.exact_loss if found.psnr_mean is not None else None,
        "largest_difference": found.largest,
        "ranks": None if found.ranks is None else _plain_ranks(found.ranks),
        "coverage": _plain_coverage(found.coverage),
        "columns": {c.name: {**_plain_ranks(c.ranks), "coverage": _plain_coverage(c.coverage)} for c in found.columns},
        "training_rows": {name: plain_of(value) for name, value in found.ignorant.items()},
        "baselines": {
            name: {metric: plain_of(value) for metric, value in values.items()}
            for name, values in found.baselines.items()
        },
        "mean_minus_baselines": {
            name: {metric: plain_of(value) for metric, value in values.items()}
            for name, values in found.ahead.items()
        },
        "skipped": dict(found.skipped),
    }  # fmt: skip


def _plain_ranks(found: Ranks) -> dict[str, Any]:
    return {
        "counts": found.counts.tolist(), "stderr": [None if e != e else e for e in found.stderr.tolist()],
        "deviation": plain_of(found.measured), "exact_below": None if found.band != found.band else found.band,
        "left_out": found.left_out, "p_value": None if found.doubt else found.p_value,
        "no_p_value_because": found.doubt or None,
    }  # fmt: skip


def _plain_coverage(found: Mapping[float, Measurement]) -> dict[str, Any]:
    return {f"{level:g}": plain_of(value) for level, value in found.items()}


def write_calibration(folder: Path, found: Judgement, facts: Mapping[str, Any]) -> list[Path]:
    """Write ``evaluation.json`` and, if there are ranks, ``calibration.png``.

    The picture shows the ranks and the coverage. If the data are a table with two to six columns, each column is shown
    separately. Otherwise, all values are shown together. If the picture cannot be drawn, a warning is issued.

    Args:
        folder: Folder to write to.
        found: The judgement.
        facts: The contents of ``evaluation.json``, as JSON-serialisable values.

    Returns:
        The paths to the files, starting with the picture if there is one.
    """
    files = [write_json(folder / "evaluation.json", dict(facts))]
    if found.ranks is None or not found.ranks.counts.sum():
        return files
    picture = folder / "calibration.png"
    with optional(str(picture), f"the numbers are in {files[0]}"):
        from ..plot import calibration, save_figure

        all_values = Column("all values", found.ranks, found.coverage)
        shown = found.columns if 1 < len(found.columns) <= CURVES else (all_values,)
        shown = tuple(column for column in shown if column.ranks.counts.sum())
        figure = calibration(
            {c.name: (c.ranks.relative, c.ranks.stderr) for c in shown},
            {c.name: ([v.value for v in c.coverage.values()], [v.stderr for v in c.coverage.values()]) for c in shown},
            LEVELS,
        )
        save_figure(picture, figure)
        files.insert(0, picture)
    return files
