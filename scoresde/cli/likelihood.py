"""The command ``scoresde likelihood``."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import NumericalError, UsageError
from ..core.limits import COUNT, RTOL, STEPS, WHOLE, Range
from ..core.parallel import sharing
from .bounds import PILOT, bounds_table, cost_of_bounds
from .command import Fields, Real, Whole, echo, option, settings, verb, warned
from .common import (
    Conditioning,
    Session,
    conditioning,
    in_list,
    out_option,
    session,
    set_option,
    shares_rows,
    together,
)
from .within import Within, mean_within, within_options
from .work import REQUEST, resume_option, work_in

if TYPE_CHECKING:
    from torch import Tensor

    from ..likelihood import Likelihood, Scores
    from ..run.run import Run
    from ..study.report import Chosen

__all__ = ["likelihood"]

LARGE = 0.1  # largest share of the integration in the error of a mean
FEW = 16  # samples for which the cost of a low precision is measured

HOW = Fields("likelihood", "likelihood", {"likelihood": "scoresde.likelihood:Likelihood"})


def _how(assignments: tuple[str, ...], **typed: Any) -> Likelihood:
    """Build the likelihood settings from the options."""
    from ..likelihood import Likelihood

    texts = settings(assignments, ("likelihood",))["likelihood"]
    return Likelihood(**{k: v for k, v in typed.items() if v is not None} | HOW.read(None, texts))


@verb(
    short_help="Compute the likelihood of data under a run.",
    epilog="Examples:\n  scoresde likelihood runs/photos --probes 4 --elbo\n"
    "  scoresde likelihood runs/photos --data photos_test/ --data paintings/ --limit 500\n"
    "  scoresde likelihood runs/small runs/large --limit 0\n"
    "  scoresde likelihood runs/photos --within 0.005",
)
@option("--data", under="Data", first=True, files=True,
        help="Data to evaluate. The option may be repeated.  [default: the run's own data]")  # fmt: skip
@option("--split", under="Data", first=True, type=click.Choice(["test", "train", "all"]), default="test",
        help="Split of the data to evaluate.")  # fmt: skip
@option("--limit", under="Data", first=True, type=Whole(WHOLE), default=1000,
        help="Maximum number of samples to evaluate, drawn at random (0: all).")  # fmt: skip
@together(
    "how", _how,
    option("--probes", under="Likelihood", sets="likelihood", type=Whole(Range(1, 100_000)),
           help="Number of random probes per sample for estimating the divergence.  [default: 1]"),
    option("--rtol", under="Likelihood", first=True, sets="likelihood", type=Real(RTOL),
           help="Relative tolerance of the solver.  [default: 0.0001]"),
    set_option("likelihood.NAME=VALUE", "Any other option of the likelihood.", "Likelihood"),
    fields=(HOW,),
)  # fmt: skip
@within_options()
@option("--elbo", under="Likelihood", first=True, is_flag=True,
        help="Also compute the variational bound on the likelihood under the reverse SDE.")  # fmt: skip
@option("--strata", under="Likelihood", type=Whole(STEPS), default=64,
        help="Number of model evaluations per sample for the variational bound.")  # fmt: skip
@option("--all-bounds", under="Likelihood", is_flag=True,
        help="Also print a table of all bounds: of the flow, the reverse SDE and a chain.")  # fmt: skip
@option("--chain-steps", under="Likelihood", type=Whole(Range(2, STEPS.high)),
        help="Number of nodes of the chain among all bounds, even in the log-SNR.  [default: 1000]")  # fmt: skip
@option("--check/--no-check", under="Likelihood", default=True,
        help="Solve up to 16 samples again with higher accuracy, and warn if the results change.")  # fmt: skip
@option("--batch", under="Likelihood", type=Whole(COUNT), default=128, help="Maximum number of samples per batch.")
@option("--memory", under="Likelihood", type=Whole(Range(1, 2**40)),
        help="Memory limit for a batch, in MiB.  [default: 2048, or half of the GPU's free memory]")  # fmt: skip
@conditioning(labels=True, first=False)
@option("--save", under="Files", default="png,csv", help="Files to write: png, csv, npz.")
@out_option("RUN/likelihood")
@resume_option()
@session(run=True, first=("device",), several=True, processes=True, execution=True)
@shares_rows
def likelihood(
    data: tuple[str, ...], split: str, limit: int, how: Likelihood, within: Within, elbo: bool, strata: int,
    all_bounds: bool, chain_steps: int | None, check: bool, batch: int, memory: int | None, condition: Conditioning,
    save: str, out: Path | None, resume: bool, session: Session,
) -> None:  # fmt: skip
    """Compute the likelihood of data under a trained RUN (default: the newest).

    The command prints the mean, in bits/dim or nats, and its standard error.

    If --data is repeated, one picture shows the likelihoods of all data sets. If several runs are given, all of them
    are evaluated on the same samples with the same noise, and each is compared with the first run sample by sample. The
    samples come from the split of the first run.
    """
    import torch

    from ..core.files import check_kinds, write_json
    from ..core.progress import Progress
    from ..likelihood.elbo import whose
    from ..likelihood.memory import default_budget
    from ..study.report import KINDS, check_comparable, choose, cost_of_precision, how_told, unfair, units, write_scores

    kinds = check_kinds(in_list(save), KINDS)
    if within.within is not None:
        wanted = "--elbo" if elbo else "--all-bounds" if all_bounds else None
        within.check(how, len(data), 1 + len(session.others), wanted)
        limit = limit if within.limit is None else within.limit
    runs, seed = session.all_loaded, session.seed
    first = runs[0]
    for run in runs:
        check_comparable(run, first, by_class=condition.labels)
        if not (condition.labels or condition.given):
            condition.of(run).model  # noqa: B018  # report an invalid condition before reading the data
    if chain_steps is not None and not all_bounds:
        raise UsageError(
            f"chain_steps is {chain_steps:,}, but the chain is one of the bounds of all_bounds; add --all-bounds",
            parameter="chain_steps",
        )
    chosen = [
        choose(first, name, split, limit, seed, by_class=condition.labels, dequantise=how.dequantisation != "none")
        for name in data or (None,)
    ]

    def bind(run: Run, part: Chosen) -> Run:
        if condition.given:
            return condition.guide(part.given(run, seed))
        return condition.of(run) if part.label is None else condition.each(run, part.label)

    asked = [(run, part, bind(run, part)) for part in chosen for run in runs]
    if within.within is not None:
        told = "given" if condition.given else "labels" if condition.labels else condition.label
        mean_within(
            session, asked[0][2], chosen[0], how, within, split=split, batch=batch, memory=memory, out=out,
            resume=resume, condition={"condition": told, **{k: v for k, v in condition.facts.items() if k != "label"}},
        )  # fmt: skip
        return
    # A run has a likelihood without conditions only if some conditions were dropped in training.
    # In coordinates relative to an image, it has none.
    bare = {id(run): run.config is not None and run.config.cond_drop > 0 and "image" not in run.needs for run in runs}
    plain = {key: condition.given and found for key, found in bare.items()}
    for run in runs if condition.given else ():
        if not plain[id(run)]:
            why = "its space depends on the image" if "image" in run.needs else "it was trained with cond_drop=0"
            session.say(
                f"the comparison with log p(x) is left out: {run.folder} has no unconditional likelihood, because {why}"
            )
    for run, part, bound in asked:
        bound.model  # noqa: B018
        if all_bounds:
            bound.bounds_left_out(how, chain_steps)  # report options that do not go with it before any work
        reason = unfair(run, first, part)
        if reason is not None:
            warnings.warn(reason, stacklevel=1)
    n, total = len(runs), sum(len(part.x) * (1 + plain[id(run)]) for run, part, _ in asked)

    def requests() -> list[dict[str, Any]]:
        return [
            {**part.identity, **bound.score_request(how, seed=seed), "strata": strata if elbo else 0, "check": check,
             **({"all_bounds": strata, "chain_steps": chain_steps} if all_bounds else {}),
             **({"given": bound.told_digest} if condition.given else {})}
            for _, part, bound in asked
        ]  # fmt: skip

    default = session.folder / "likelihood"
    opened = work_in(session, out, default, resume, total, "scores", "likelihood.json", requests)
    with sharing().leading(opened) as work:
        if work.finished is not None:
            session.say(f"the result in {work.folder} is already finished; there is nothing left to do")
            facts = {name: value for name, value in work.finished.items() if name not in ("requests", "failures")}
            names = [path for kind in (*KINDS, "json") if (path := work.folder / f"likelihood.{kind}").is_file()]
            how_each = [how_told(found) for found in facts["sets"][:n]]
            _report(session, facts, names, how_each, work.finished["failures"])
            return
        for run, part, _ in asked:
            what = f"{len(part.x):,} of {part.total:,} samples of {part.name} ({split})"
            session.say(f"computing the likelihoods of {what} under {run.folder}")
            if data and part.left:
                session.say(
                    f"--split {split} leaves out {part.left:,} samples of {part.name}; use --split all to include "
                    "every sample that has no empty cells"
                )
        rows = min(batch, max(len(part.x) for part in chosen))
        began = time.monotonic()
        with (
            session.lanes([bound for _, _, bound in asked], rows),
            warnings.catch_warnings(record=True) as caught,
            Progress(total, "likelihood", quiet=session.quiet) as progress,
        ):
            warnings.simplefilter("always")
            sets = []
            for k, (run, part, bound) in enumerate(asked, 1):
                if elbo:
                    progress.note(f"computing the variational bounds of {len(part.x):,} samples of {part.name}")
                if all_bounds:
                    few = part.first(PILOT)
                    progress.note(
                        cost_of_bounds(
                            bind(run, few), few, len(part.x), how, strata=strata, chain_steps=chain_steps, seed=seed
                        )
                    )
                done: list[Tensor] = []
                until = progress.done + len(part.x)

                def watch(piece: Scores, done: list[Tensor] = done, until: int = until) -> None:
                    done.append(piece.values[piece.model.ok].double())
                    progress.update(len(piece.log_prob), {piece.unit: float(torch.cat(done).mean())})
                    if check and progress.done == until:
                        progress.note("solving some of the samples again to check convergence")

                scored = part.scored(
                    bound, how, seed=seed, batch=batch, check=check, strata=strata if elbo else 0,
                    memory=default_budget(run.device) if memory is None else memory * 2**20, watch=watch,
                    keep=work.parts / str(k), without=run if plain[id(run)] else None,
                )  # fmt: skip
                if all_bounds:
                    scored = part.with_bounds(
                        scored, bound, how, seed=seed, batch=batch, strata=strata, chain_steps=chain_steps,
                        memory=default_budget(run.device) if memory is None else memory * 2**20,
                        told=lambda row: progress.note(f"computing all bounds: {row}"), keep=work.parts / str(k),
                    )  # fmt: skip
                sets.append(replace(scored, run=str(run.folder) if n > 1 else None))
        sharing().wait()
        if not session.main:  # the first process writes the result
            return
        for text in dict.fromkeys(warned(w.message) for w in caught):  # print each warning once, below the progress bar
            echo(text, err=True)
        summaries = [s.summary(sets[i % n], sets[i - i % n]) for i, s in enumerate(sets)]
        for summary, (run, part, _) in zip(summaries, asked, strict=True):
            if run.execution.precision != "float32":
                session.say("computing the likelihoods of a few samples again with a network in float32")
                few = part.first(FEW)
                summary["precision"] = cost_of_precision(few, bind(run, few), how, seed=seed, batch=batch)
        for summary, (_, _, bound) in zip(summaries, asked, strict=True):
            if not bound.model.domain.consistent:
                summary["whose"] = whose(bound.model, "flow")
        facts = {
            "run": str(session.folder), "step": first.step, "sets": summaries,
            "condition": "given" if condition.given else "labels" if condition.labels else condition.label,
            **{k: v for k, v in condition.facts.items() if k != "label"},
            "seed": seed, "dtype": session.dtype, "device": str(first.device), "columns": units(sets),
            "seconds": round(time.monotonic() - began, 2),
        }  # fmt: skip
        if n > 1:
            facts["runs"] = [{"run": str(run.folder), "step": run.step} for run in runs]
        failures = [": ".join(filter(None, (s.run, s.name, t))) for s in sets for t in s.scores.model.failures()]
        failures += [told for s in sets if s.bounds is not None for told in s.bounds.failures()]
        write_json(work.folder / REQUEST, {"failures": failures, "requests": requests()})
        files = write_scores(work.folder, sets, facts, kinds)
        work.done()
        _report(session, facts, files, [s.scores.depends_on() for s in sets[:n]], failures)


def _report(session: Session, facts: dict[str, Any], files: list[Path], how: list[str], failures: list[str]) -> None:
    """Print the result and the settings of each run, and raise an error if any sample failed."""
    sets: list[dict[str, Any]] = facts["sets"]
    depends = dict(zip(reversed(how), (found.get("run") for found in reversed(sets[: len(how)])), strict=True))
    session.print(
        {**facts, "files": [str(f) for f in files]},
        *(_lines(found, len(sets) > len(how), facts["condition"] == "given") for found in sets),
        *(line for found in sets for line in bounds_table(found, _name(found, len(sets) > len(how)))),
        *_checks(sets, len(sets) > len(how)),
        *(text if len(depends) == 1 else f"{run}: {text}" for text, run in reversed(depends.items())),
        f"{files[0]}  {facts['seconds']:.1f} s  seed {facts['seed']}",
    )
    if failures:
        raise NumericalError("; ".join(failures))


def _name(found: dict[str, Any], several: bool) -> str:
    """Return a line prefix that names the run, if known, and the data set, if ``several`` is set."""
    return "".join(f"{found[key]}: " for key, shown in (("run", "run" in found), ("data", several)) if shown)


def _checks(sets: list[dict[str, Any]], several: bool) -> list[str]:
    """Format the convergence checks, with a single line if no data set was checked."""
    if all(found["converged"] is None for found in sets):
        return ["convergence not checked: a more accurate solution could change the result"]
    return [_name(found, several) + _check(found) for found in sets]


def _check(found: dict[str, Any]) -> str:
    """Format the convergence check of a data set."""
    if found["converged"] is None:
        return "convergence not checked"
    told = f"{found['checked']} samples" if "checked" in found else "some samples"  # as in an earlier version
    result = "passed" if found["converged"] else "FAILED"
    if found["change"] is None:
        return f"check {result}: solving {told} again failed for at least one of them"
    change = f"{found['change']:.2g} {found['unit']}"
    text = f"check {result}: solving {told} again changes the likelihoods by at most {change}"
    if found.get("share") is None:  # a single sample, or an earlier version
        return text
    text += f", and their mean by {found['shift']:+.2g}, which is {_percent(found['share'])} of its error"
    return text + ("; use a smaller --rtol for an accurate mean" if found["share"] > LARGE else "")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


def _lines(found: dict[str, Any], several: bool, given: bool = False) -> str:
    """Format the result for a data set."""
    name = _name(found, several)
    told = " given the conditions" if given else ""
    told += f" under the {found['whose']}" if "whose" in found else ""
    text = f"{name}{_figure(found)}{told}  (n = {found['n']:,} of {found['of']:,}, {found['split']}"
    if found["stderr_probes"]:
        text += f", ± {found['stderr_probes']:.4f} each from the probes"
    text += f", NFE mean {found['nfe_mean']:g} max {found['nfe_max']}"
    if found.get("auroc") is not None:
        text += f", AUROC {found['auroc']:.3f}"
    text += ")"
    if found["converged"] is False:
        change = found["change"]
        text += "  NOT CONVERGED: "
        text += "solving a sample again failed" if change is None else f"the results change by up to {change:.3g}"
    if "precision" in found:
        cost = found["precision"]
        change = {"unit": cost["unit"], "mean": cost["mean"], "stderr_mean": cost["stderr"]}
        text += f"\n{name}{_figure(change, '+')} is the change by the {cost['precision']} network, sample by sample"
        text += f"  (n = {cost['n']}, at most {cost['largest']:.2g})" if cost["largest"] is not None else ""
    if "gain" in found:
        gain = {"unit": found["unit"], "mean": found["gain"]["mean"], "stderr_mean": found["gain"]["stderr"]}
        text += f"\n{name}{_figure(gain, '+')} gained over log p(x), sample by sample"
        if found["gain"]["mean_without"] is not None:
            text += f"  (without the conditions: {found['gain']['mean_without']:.4f} {found['unit']})"
    if "elbo" in found:
        bound = found["elbo"]
        terms = ", ".join(f"{term} {bound[term]:.4f}" for term in ("prior", "diffusion", "reconstruction"))
        figure = _figure({**bound, "unit": found["unit"]})
        text += f"\n{name}{figure} by the variational bound of the {bound['whose']}  ({terms})"
    if "difference" in found:
        text += f"\n{name}{_against(found, found)}"
        if "difference" in found.get("elbo", {}):
            text += f"\n{name}{_against(found, found['elbo'], ' by the variational bound')}"
    return text


def _against(found: dict[str, Any], pairs: dict[str, Any], by: str = "") -> str:
    """Format the paired difference between two runs on the same data set."""
    better = "lower" if found["unit"] == "bits/dim" else "higher"
    told = {"unit": found["unit"], "mean": pairs["difference"], "stderr_mean": pairs["stderr_difference"]}
    n = pairs.get("paired", found["paired"])  # an earlier version wrote a single number for both differences
    return f"{_figure(told, '+')} against {found['against']}{by}, sample by sample  (n = {n:,}, {better} is better)"


def _figure(found: dict[str, Any], sign: str = "") -> str:
    """Format a value with its standard error, such as ``1.9020 ± 0.0388 bits/dim``."""
    if found["mean"] is None:
        return "no result"
    error = "" if found["stderr_mean"] is None else f" ± {found['stderr_mean']:.4f}"
    return f"{found['mean']:{sign}.4f}{error} {found['unit']}"
