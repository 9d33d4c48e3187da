"""A table of bounds on the log-likelihood of the same data under one network.

One network defines several models, and each of them has bounds of its own:

    flow            the probability flow, exact for a density (:mod:`scoresde.likelihood`), and a bound on the
                    probability of discrete levels for each kind of dequantisation (``dequantise`` and ``weights``)
    reverse SDE     the variational bound in continuous time (``elbo``), and on the levels themselves (``levels``)
    chain           the variational bound for T nodes (``chain``)

The rows of a table are computed for the same data with the same dequantisation, so most of the variation between the
samples is common to all of them. Each row is therefore compared with the flow sample by sample,

    difference = mean d_i,      stderr = std(d_i) / sqrt(n),      d_i = row_i - flow_i.                           (1)

The importance-weighted bounds for K dequantisations have one fixed probe, and are compared with K = 1 of the same
probe, whose noise then cancels as well.

The rows are not ordered. A bound says something about one model only. Of two bounds on the same model, the one with the
higher likelihood is tighter, but the flow, the reverse SDE and the chain are three models, which agree only for an
exact score and infinitely many nodes. It is not known which of them has the highest likelihood, or how far a bound is
from its own model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Bounds", "Row", "table"]


@dataclass(frozen=True, eq=False)
class Row:
    """A bound for each of n samples.

    Attributes:
        key: A short name, such as ``k8``, for files.
        name: The name in the table.
        whose: The model to which the bound applies: ``flow``, ``reverse SDE`` or ``chain``, followed by the kind of the
            model if it is guided or steered.
        how: The settings, in words.
        log_prob: The bound on the log probability (for continuous data, the log density) in nats, float64 ``(n,)``. It
            is NaN for samples that failed.
        nfe: Number of network evaluations for each sample, int64 ``(n,)``.
        base: What the row is compared with (equation 1), in the form of ``log_prob``, or ``None`` for no comparison.
        against: The name of ``base``.
    """

    key: str
    name: str
    whose: str
    how: str
    log_prob: Tensor
    nfe: Tensor
    base: Tensor | None = None
    against: str = ""


@dataclass(frozen=True, eq=False)
class Bounds:
    """The bounds of one network on the log-likelihood of n samples.

    Attributes:
        rows: The rows of the table, beginning with the flow.
        left_out: The reason why a bound is left out, keyed by its name.
        unit: The unit of the figures: ``bits/dim`` or ``nats``.
        nats_per_unit: Number of nats in one unit for each sample, float64 ``(n,)``.
    """

    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    unit: str
    nats_per_unit: Tensor

    def __str__(self) -> str:
        return "\n".join(table(self.summary(), self.unit, self.left_out))

    def __getitem__(self, key: str) -> Row:
        """Return the row with the short name ``key``, such as ``k8``."""
        found = {row.key: row for row in self.rows}
        return found[key]

    def values(self, row: Row) -> Tensor:
        """Return the figures of a row, float64 ``(n,)``: bits/dim, or log densities in nats."""
        return self._in_units(row.log_prob)

    def summary(self) -> list[dict[str, Any]]:
        """Return the table as JSON-serialisable values, with one dictionary for each row, and ``None`` for no value."""
        found = []
        for row in self.rows:
            values = self.values(row)
            facts = {
                "bound": row.name, "key": row.key, "whose": row.whose, "how": row.how,
                "n": int(values.isfinite().sum()), "of": len(values), **_mean("mean", "stderr_mean", values),
                "nfe_mean": round(float(row.nfe.double().mean()), 2), "nfe_max": int(row.nfe.max()),
            }  # fmt: skip
            if row.base is not None:
                difference = values - self._in_units(row.base)
                facts |= {"against": row.against, **_mean("difference", "stderr_difference", difference)}
            found.append(facts)
        return found

    def failures(self) -> list[str]:
        """Return a sentence for each row after the flow's in which samples have failed."""
        return _failed(self.summary()[1:])

    def _in_units(self, log_prob: Tensor) -> Tensor:
        sign = -1 if self.unit == "bits/dim" else 1
        return sign * log_prob.double() / self.nats_per_unit


def _failed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{row['bound']}: {row['of'] - row['n']:,} of {row['of']:,} samples failed, and are left out"
        for row in rows
        if row.get("of", row["n"]) != row["n"]
    ]


def _mean(name: str, error: str, values: Tensor) -> dict[str, float | None]:
    """Return the mean and its standard error over the finite ones of ``values: (n,)``, keyed by the two names."""
    values = values[values.isfinite()]
    mean = float(values.mean()) if len(values) else None
    return {name: mean, error: float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None}


def table(rows: Sequence[Mapping[str, Any]], unit: str, left_out: Mapping[str, str]) -> list[str]:
    """Format the rows of :meth:`Bounds.summary` as the lines of a table, with what has to be said below it.

    Args:
        rows: The rows.
        unit: The unit of the figures.
        left_out: The reason why a bound is left out, keyed by its name.
    """
    head = ("bound", "whose model", unit, "minus the flow", "evaluations")
    cells = [head, *(_cells(row) for row in rows)]
    wide = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["  ".join(text.ljust(n) for text, n in zip(line, wide, strict=True)).rstrip() for line in cells]
    own = [row for row in rows if row.get("against") not in (None, rows[0]["bound"])]
    if own:
        lines.append(f"{' and '.join(row['bound'] for row in own)}: compared with {own[0]['against']}")
    lines += [f"left out: {name}, because {why}" for name, why in left_out.items()]
    models = list(dict.fromkeys(row["whose"] for row in rows))
    if len(models) > 1:
        lines.append(
            f"the rows are not ordered: {', '.join(models[:-1])} and {models[-1]} are different models of one network, "
            "and a bound on one of them does not bound another"
        )
    return lines + _failed(rows)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a row of the table as text."""
    figure, less = (
        "" if row.get(name) is None else f"{row[name]:{sign}.4f}" + (f" ± {row[error]:.4f}" if row[error] else "")
        for name, error, sign in (("mean", "stderr_mean", ""), ("difference", "stderr_difference", "+"))
    )
    return row["bound"], row["whose"], figure or "no result", less, f"{row['nfe_mean']:,.0f}"
