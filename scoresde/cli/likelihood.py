"""The command ``scoresde likelihood``."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import UsageError
from ..core.limits import COUNT, RTOL, STEPS, WHOLE, Range
from ..core.parallel import sharing
from .bounds import PILOT, cost_of_bounds
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
from .scored import report
from .within import Within, mean_within, within_options
from .work import REQUEST, resume_option, work_in

if TYPE_CHECKING:
    from torch import Tensor

    from ..likelihood import Likelihood, Scores
    from ..run.run import Run
    from ..study.report import Chosen

__all__ = ["likelihood"]

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
            report(session, facts, names, how_each, work.finished["failures"])
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
        report(session, facts, files, [s.scores.depends_on() for s in sets[:n]], failures)
