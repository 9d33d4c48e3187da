"""``scoresde likelihood``."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError, NumericalError, UsageError
from .common import common_options, label_number, load_run, print_json, say, sde_option, verb

if TYPE_CHECKING:
    from torch import Tensor

    from ..comparison import Scored
    from ..data import DataInfo
    from ..progress import Progress
    from ..run import Run

__all__ = ["likelihood"]


@verb(
    short_help="Score data under a run.",
    epilog="\b\nExamples:\n  scoresde likelihood runs/photos --probes 4 --elbo\n"
    "  scoresde likelihood runs/photos --data photos_test/ --data paintings/ --limit 500",
)
@click.argument("run", required=False)
@click.option("--data", multiple=True, help="Data to score, or several.  [default: what the run was trained on]")
@click.option("--split", type=click.Choice(["test", "train", "all"]), default="test", show_default=True,
              help="Part of the data to score.")  # fmt: skip
@click.option("--limit", type=click.IntRange(0), default=1000, show_default=True,
              help="Score so many, drawn at random (0: all).")  # fmt: skip
@click.option("--dequantisation", type=click.Choice(["auto", "uniform", "truncated-normal", "none"]), default="auto",
              show_default=True, help="auto: uniform for data with levels.")  # fmt: skip
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Draws per sample, averaged.")
@click.option("--importance", type=click.IntRange(1), default=1, show_default=True,
              help="Samples of the importance-weighted bound in each draw.")  # fmt: skip
@click.option("--elbo", is_flag=True, help="The variational bound as well, another model's figure.")
@click.option("--strata", type=click.IntRange(1), default=64, show_default=True, help="Evaluations of the bound.")
@click.option("--method", type=click.Choice(["coupled", "quadrature"]), default="coupled", show_default=True,
              help="quadrature: cheaper for an exact divergence or many probes.")  # fmt: skip
@click.option("--divergence", type=click.Choice(["auto", "exact", "hutchinson", "difference"]), default="auto",
              show_default=True, help="difference: no backward passes; auto: exact up to 16 dimensions.")  # fmt: skip
@click.option("--probes", type=click.IntRange(1), default=1, show_default=True, help="Probes per sample.")
@click.option("--probe", type=click.Choice(["rademacher", "gaussian"]), default="rademacher", show_default=True,
              help="Their distribution.")  # fmt: skip
@click.option("--redraw/--no-redraw", default=True, show_default=True, help="New probes on the way, or the same.")
@click.option("--rtol", type=click.FloatRange(0, min_open=True), default=1e-5, show_default=True,
              help="Relative tolerance.")  # fmt: skip
@click.option("--atol", type=click.FloatRange(0), help="Absolute tolerance.  [default: as rtol]")
@click.option("--steps", type=click.IntRange(1), help="So many fixed steps instead of a tolerance.")
@click.option("--scheme", help="dopri5, tsit5, bosh3; with --steps euler, heun, rk4.  [default: dopri5; rk4]")
@click.option("--t-min", type=click.FloatRange(0, min_open=True), help="Time of the density.  [default: the run's]")
@click.option("--check/--no-check", default=True, show_default=True,
              help="Solve 16 samples again, more accurately, and warn if they change.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Most samples at once.")
@click.option("--memory", type=click.IntRange(1), help="Memory for them, MiB.  [default: 2048; half of a GPU's]")
@click.option("--labels", is_flag=True, help="Condition on the data's labels (a run trained with --cond class).")
@click.option("--label", help="Condition all on one class, by name or number.")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Scale of classifier-free guidance.")
@click.option("--save", default="png,csv", show_default=True, help="Files to write: png, csv, npz.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/likelihood]")
@sde_option("The run's SDE, if it is your own: module:Class.", None)
@common_options
def likelihood(
    run: str | None, data: tuple[str, ...], split: str, limit: int, dequantisation: str, draws: int, importance: int,
    elbo: bool, strata: int, method: str, divergence: str, probes: int, probe: str, redraw: bool, rtol: float,
    atol: float | None, steps: int | None, scheme: str | None, t_min: float | None, check: bool, batch: int,
    memory: int | None, labels: bool, label: str | None, guidance: float, save: str, out: Path | None, sde: str | None,
    seed: int, device: str, dtype: str, threads: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Likelihood of data under a trained RUN (default: the newest), in bits/dim or nats, with its error.

    Several data sets share one figure.
    """
    if labels and label is not None:
        raise UsageError("--labels conditions each sample on its own class, --label all on one: give one of them")
    from ..comparison import check_kinds, write_scores
    from ..gallery import numbered_folder
    from ..likelihood.memory import default_budget
    from ..progress import Progress

    kinds = check_kinds([s.strip() for s in save.split(",") if s.strip()])
    loaded = load_run(run, sde, device, threads, dtype)
    one = None if label is None else label_number(loaded, label)
    chosen = [_chosen(loaded, name, split, limit, seed, labels, one) for name in data or (loaded.config.data,)]
    # What the figure depends on, then what it does not.
    options: dict[str, Any] = {
        "dequantisation": dequantisation, "draws": draws, "importance": importance, "method": method,
        "divergence": divergence, "probes": probes, "probe": probe, "redraw": redraw, "rtol": rtol,
        "atol": rtol if atol is None else atol, "scheme": scheme, "steps": steps, "t_min": t_min,
        "memory": default_budget(loaded.device) if memory is None else memory * 2**20,
    }  # fmt: skip
    shared: dict[str, Any] = {"guidance": guidance, "seed": seed, "batch": batch}
    assert loaded.folder is not None
    folder = numbered_folder(*((out.parent, out.name) if out else (loaded.folder, "likelihood")))
    for part in chosen:
        name = part.info.name
        say(quiet, f"scoring {len(part.x):,} of {part.total:,} samples of {name} ({split}) under {loaded.folder}")
    began = time.monotonic()
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            Progress(sum(len(part.x) for part in chosen), "likelihood", quiet=quiet) as progress,
        ):
            warnings.simplefilter("always")
            sets = [_score(loaded, part, options, shared, check, strata if elbo else 0, progress) for part in chosen]
    except BaseException:
        folder.rmdir()  # still empty
        raise
    for text in dict.fromkeys(str(w.message) for w in caught):  # after the bar, each once
        click.echo(f"warning: {text}", err=True)
    summaries = [s.summary(sets[0]) for s in sets]
    facts = {
        "run": str(loaded.folder), "step": loaded.step, "sets": summaries,
        "condition": "labels" if labels else label, "guidance": guidance, "seed": seed,
        "dtype": dtype, "device": str(loaded.device), "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip
    files = write_scores(folder, sets, facts, kinds)
    if as_json:
        print_json({**facts, "files": [str(f) for f in files]})
    else:
        for found in summaries:
            click.echo(_lines(found, len(sets) > 1, loaded.model.nodes is not None))
        click.echo(f"{sets[0].scores.how}\n{files[0]}  {facts['seconds']:.1f} s  seed {seed}")
    failures = [f"{s.name}: {line}" for s in sets for line in s.scores.model.failures()]
    if failures:
        raise NumericalError("; ".join(failures))


@dataclass(frozen=True, eq=False)
class _Part:
    """Samples to score, in data units, their rows in the split, and what to condition on: labels, or one for all."""

    info: DataInfo
    split: str
    total: int
    index: Tensor
    x: Tensor
    labels: Tensor | None
    label: int | None


def _chosen(loaded: Run, name: str, split: str, limit: int, seed: int, labels: bool, label: int | None) -> _Part:
    """The samples to score. Those of a smaller ``limit`` are the first ones of a larger, with the same draws."""
    import torch

    from ..data import load_data

    dataset = load_data(name, loaded.config.seed, loaded.config.test_fraction)
    theirs, ours = dataset.info, loaded.info
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
    if ours.levels is not None and not bool((ours.quantise(x) == x).all()):
        kind = f"{theirs.levels} levels" if theirs.levels else "continuous values"
        raise DataError(
            f"{theirs.name} has {kind} in [{theirs.low:g}, {theirs.high:g}], the run was trained on {ours.levels} "
            f"levels in [{ours.low:g}, {ours.high:g}] and gives no probability to other values"
        )
    if labels and (y is None or theirs.classes != ours.classes):
        raise UsageError(
            f"--labels: {theirs.name} has the classes {', '.join(theirs.classes) or '(none)'}, the run was trained on "
            f"{', '.join(ours.classes) or '(none)'}"
        )
    return _Part(theirs, split, total, index, x, y[index] if labels and y is not None else None, label)


def _score(
    loaded: Run, part: _Part, options: dict[str, Any], shared: dict[str, Any], check: bool, strata: int,
    progress: Progress,
) -> Scored:  # fmt: skip
    """One data set, batch by batch; convergence is checked on the first batch."""
    from ..comparison import Scored
    from ..likelihood import Elbo
    from ..likelihood.frame import beginning
    from ..scores import join

    pieces, bounds = [], []
    for i in range(0, len(part.x), shared["batch"]):
        rows = slice(i, i + shared["batch"])
        labels = part.label if part.labels is None else part.labels[rows]
        same = {"labels": labels, "start": i, **shared}
        if strata:
            dequantise = options["dequantisation"] != "none"
            bounds.append(
                loaded.elbo(part.x[rows], strata=strata, dequantise=dequantise, t_min=options["t_min"], **same)
            )
        pieces.append(loaded.log_likelihood(part.x[rows], check=check and i == 0, **same, **options))
        progress.update(len(part.x[rows]), {pieces[-1].unit: pieces[-1].mean()})
    bound = Elbo.join(bounds) if bounds else None
    begins = beginning(loaded.model) if options["t_min"] is None else options["t_min"]
    if loaded.model.nodes is not None:
        begins = float(loaded.model.nodes[0])
    return Scored(part.info.name, part.split, part.total, part.index, join(pieces), bound, begins)


def _lines(found: dict[str, Any], several: bool, chain: bool) -> str:
    """What a person reads of a set."""
    name = f"{found['data']}: " if several else ""
    text = f"{name}{_figure(found)}  (n = {found['n']:,} of {found['of']:,}, {found['split']}"
    if found["stderr_probes"]:
        text += f", ± {found['stderr_probes']:.4f} each from the probes"
    text += f", NFE mean {found['nfe_mean']:g} max {found['nfe_max']}"
    if found.get("auroc") is not None:
        text += f", AUROC {found['auroc']:.3f}"
    text += ")"
    if found["converged"] is False:
        change = found["change"]
        text += "  NOT CONVERGED: "
        text += "a checked sample cannot be solved again" if change is None else f"changes by up to {change:.3g}"
    if "elbo" in found:
        bound = found["elbo"]
        terms = ", ".join(f"{term} {bound[term]:.4f}" for term in ("prior", "diffusion", "reconstruction"))
        figure, whose = _figure({**bound, "unit": found["unit"]}), "chain" if chain else "reverse SDE"
        text += f"\n{name}{figure} by the variational bound of the {whose}  ({terms})"
    return text


def _figure(found: dict[str, Any]) -> str:
    """``1.9020 ± 0.0388 bits/dim``."""
    if found["mean"] is None:
        return "no figure"
    error = "" if found["stderr_mean"] is None else f" ± {found['stderr_mean']:.4f}"
    return f"{found['mean']:.4f}{error} {found['unit']}"
