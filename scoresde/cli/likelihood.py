"""``scoresde likelihood``."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import click

from ..errors import NumericalError, UsageError
from .common import common_options, load_run, print_json, say, sde_option, verb

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
    from ..comparison import check_kinds, choose, write_scores
    from ..files import new_folder
    from ..likelihood import Likelihood
    from ..likelihood.memory import default_budget
    from ..progress import Progress

    kinds = check_kinds([s.strip() for s in save.split(",") if s.strip()])
    how = Likelihood(
        method=method, divergence=divergence, probes=probes, probe=probe, redraw=redraw, rtol=rtol, atol=atol,
        scheme=scheme or "auto", steps=steps, t_min=t_min, dequantisation=dequantisation, draws=draws,
        importance=importance,
    )  # fmt: skip
    loaded = load_run(run, sde, device, threads, dtype)
    asked = loaded.given(label).guided(1.0 if labels else guidance)
    asked.model  # noqa: B018  # what cannot be bound is said before the data are read
    chosen = [choose(loaded, name, split, limit, seed, by_class=labels) for name in data or (None,)]
    assert loaded.folder is not None
    for part in chosen:
        say(quiet, f"scoring {len(part.x):,} of {part.total:,} samples of {part.name} ({split}) under {loaded.folder}")
    began = time.monotonic()
    with (
        new_folder(out or loaded.folder / "likelihood") as folder,
        warnings.catch_warnings(record=True) as caught,
        Progress(sum(len(part.x) for part in chosen), "likelihood", quiet=quiet) as progress,
    ):
        warnings.simplefilter("always")
        sets = []
        for part in chosen:
            model = asked if part.label is None else loaded.given(part.label).guided(guidance)
            sets.append(
                part.scored(
                    model, how, seed=seed, batch=batch, check=check, strata=strata if elbo else 0,
                    memory=default_budget(loaded.device) if memory is None else memory * 2**20,
                    watch=lambda piece: progress.update(len(piece.log_prob), {piece.unit: piece.mean()}),
                )
            )  # fmt: skip
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
            click.echo(_lines(found, len(sets) > 1))
        click.echo(f"{sets[0].scores.depends_on()}\n{files[0]}  {facts['seconds']:.1f} s  seed {seed}")
    failures = [f"{s.name}: {line}" for s in sets for line in s.scores.model.failures()]
    if failures:
        raise NumericalError("; ".join(failures))


def _lines(found: dict[str, Any], several: bool) -> str:
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
        figure = _figure({**bound, "unit": found["unit"]})
        text += f"\n{name}{figure} by the variational bound of the {bound['whose']}  ({terms})"
    return text


def _figure(found: dict[str, Any]) -> str:
    """``1.9020 ± 0.0388 bits/dim``."""
    if found["mean"] is None:
        return "no figure"
    error = "" if found["stderr_mean"] is None else f" ± {found['stderr_mean']:.4f}"
    return f"{found['mean']:.4f}{error} {found['unit']}"
