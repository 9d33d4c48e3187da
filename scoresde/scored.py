"""Scored data sets: their summary, and the files of ``scoresde likelihood``.

Two sets under one model are compared by the probability that a sample of one is less probable to the model than a
sample of the other (the area under the curve of an out-of-distribution detector that looks at the likelihood alone):

    auroc = P( value of this set > value of the first set ) + P( equal ) / 2.                                (1)

0.5 says nothing, 1 separates. A likelihood is no detector by itself: simpler images than the data are often more
probable (Nalisnick et al. 2019, arXiv:1810.09136).
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import write_json
from .errors import CheckpointError, UsageError
from .likelihood import Elbo
from .scores import Scores

__all__ = ["KINDS", "Scored", "check_kinds", "write_scores"]

KINDS = ("png", "csv", "npz")


@dataclass(frozen=True)
class Scored:
    """A data set with its likelihoods.

    Attributes:
        name: Of the data.
        split: ``train`` or ``test``.
        total: Samples in that part.
        scores: By the probability flow.
        elbo: By the variational bound, if asked for.
    """

    name: str
    split: str
    total: int
    scores: Scores
    elbo: Elbo | None = None

    @property
    def bound(self) -> Tensor | None:
        """The variational bound of each sample in the unit of the scores, shape ``(n,)``."""
        if self.elbo is None:
            return None
        sign = 1 if self.scores.bits_per_dim is None else -1
        return sign * self.elbo.log_prob.double() / self.scores.nats_per_unit

    def auroc(self, first: Scored) -> float:
        """How well the likelihood tells this set from ``first``, (1)."""
        a, b = (s.scores.values[s.scores.model.ok].double().cpu() for s in (first, self))
        sign = -1 if self.scores.bits_per_dim is None else 1  # nats rise where bits fall
        order, below = torch.searchsorted, (sign * a).sort().values
        count = order(below, sign * b).double() + order(below, sign * b, right=True).double()
        return float(count.mean()) / (2 * len(a))

    def summary(self, first: Scored) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        scores, model = self.scores, self.scores.model
        nfe, checked = model.nfe.double(), model.change[~model.change.isnan()]
        facts = {
            "data": self.name, "split": self.split, "n": int(model.ok.sum()), "of": self.total, "unit": scores.unit,
            "mean": scores.mean(), "stderr_mean": scores.stderr_mean(), "stderr_probes": scores.stderr_sample(),
            "nfe_mean": round(float(nfe.mean()), 2), "nfe_max": int(nfe.max()),
            "change": float(checked.max()) / scores.nats_per_unit if len(checked) else math.nan,
            "failed": int((~model.ok).sum()), **asdict(scores.how),
        }  # fmt: skip
        bound = self.bound
        if self.elbo is not None and bound is not None:
            terms = {
                name: float(getattr(self.elbo, name).double().mean()) / scores.nats_per_unit
                for name in ("prior", "diffusion", "reconstruction")
            }
            error = float(bound.std()) / math.sqrt(len(bound)) if len(bound) > 1 else math.nan
            facts["elbo"] = {"mean": float(bound.mean()), "stderr_mean": error, **terms}
        if self is not first:
            facts["auroc"] = self.auroc(first)
        return facts


def check_kinds(kinds: Sequence[str]) -> list[str]:
    """Refuse files that are none of :data:`KINDS`."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--save {kind}: choose from {', '.join(KINDS)}")
    return list(kinds)


def write_scores(folder: Path, sets: Sequence[Scored], made: Mapping[str, Any], kinds: Sequence[str]) -> list[Path]:
    """Write the figure, one row for each sample, and ``likelihood.json`` (how it came).

    Returns:
        The files written, the picture first.
    """
    columns = _columns(sets)
    files = []
    if "png" in kinds:
        from .plot import likelihood_histogram, save_figure

        shown = {_label(s, sets): s.scores.values[s.scores.model.ok].cpu() for s in sets}
        shown = {name: v for name, v in shown.items() if len(v)}
        if shown:
            save_figure(folder / "likelihood.png", likelihood_histogram(shown, sets[0].scores.unit))
            files.append(folder / "likelihood.png")
    try:
        if "csv" in kinds:
            files.append(_write_csv(folder / "likelihood.csv", columns))
        if "npz" in kinds:
            path, temporary = folder / "likelihood.npz", folder / f".likelihood.tmp-{os.getpid()}.npz"
            np.savez(temporary, **columns)  # type: ignore[arg-type]
            os.replace(temporary, path)
            files.append(path)
    except OSError as error:
        raise CheckpointError(f"cannot write to {folder}: {error.strerror or error}") from None
    write_json(folder / "likelihood.json", dict(made))
    return [*files, folder / "likelihood.json"]


def _label(scored: Scored, sets: Sequence[Scored]) -> str:
    """The name of a set, with its number if another one has it too."""
    same = [s for s in sets if s.name == scored.name]
    return scored.name if len(same) == 1 else f"{scored.name} ({sets.index(scored) + 1})"


def _columns(sets: Sequence[Scored]) -> dict[str, np.ndarray]:
    """One array for each column, all samples of all sets."""
    found: dict[str, list[np.ndarray]] = {}
    for scored in sets:
        scores, model, count = scored.scores, scored.scores.model, len(scored.scores.log_prob)
        row: dict[str, Any] = {
            "data": np.full(count, _label(scored, sets)),
            "index": np.arange(count),
            "value": scores.values,
            "log_prob": scores.log_prob,
            "stderr_probes": scores.stderr_probes,
            "nfe": model.nfe,
            "change": model.change,
            "status": model.status,
        }
        if scored.bound is not None:
            row["elbo"] = scored.bound
        for name, value in row.items():
            found.setdefault(name, []).append(value.cpu().numpy() if isinstance(value, Tensor) else value)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _write_csv(path: Path, columns: Mapping[str, np.ndarray]) -> Path:
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}.csv")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(c.tolist() for c in columns.values()), strict=True))
    os.replace(temporary, path)
    return path
