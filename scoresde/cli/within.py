"""``scoresde likelihood --within``: a mean likelihood to a stated error (:mod:`scoresde.likelihood.mean`)."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..core.errors import NumericalError, UsageError
from ..core.limits import BAR
from ..core.parallel import sharing
from .command import Real, echo, option, warned
from .common import Decorator, Session, strict, together
from .work import REQUEST, work_in

if TYPE_CHECKING:
    from ..likelihood import Likelihood, MeanLikelihood
    from ..likelihood.telescope import Progress as Step
    from ..run.run import Run
    from ..study.report import Chosen

__all__ = ["Within", "mean_within", "within_options"]

NAMES = {"pictures": "the samples", "correction": "the correction", "tolerance": "the tolerance"}


class Within:
    """The options of a mean to a stated error.

    Args:
        within: The wanted standard error, or ``None`` for the likelihoods of all samples.
        of: ``population`` or ``these``.
        features: Whether to use features of the samples.
    """

    def __init__(self, within: float | None, of: str | None, features: bool | None) -> None:
        self.within, self.of, self.features = within, of or "population", features is not False
        for name, given in (("of", of), ("features", features)):
            if within is None and given is not None:
                raise UsageError(
                    f"--{name if given else f'no-{name}'} needs --within, the wanted error of the mean; add it, for "
                    "example as --within 0.005",
                    parameter="within",
                )

    def check(self, likelihood: Likelihood, data: int, runs: int, bound: str | None) -> None:
        """Check that the other options of the command suit a mean to a stated error.

        Args:
            likelihood: The options of the likelihood.
            data, runs: Number of data sets and of runs.
            bound: The option by which a bound was requested, such as ``--elbo``, or ``None``.

        Raises:
            UsageError: If an option does not suit it.
        """
        from ..likelihood.telescope import check_options

        assert self.within is not None
        check_options(likelihood, self.within, self.of)
        for wrong, what, instead in (
            (data > 1, "several data sets, whose AUROC needs the likelihood of each sample", "one --data"),
            (runs > 1, "several runs, which are compared sample by sample", "one run"),
            (bound is not None, f"{bound}", f"a second command with {bound}"),
            (_typed("save"), "--save, because no sample has a likelihood of its own", "likelihood.json"),
            (_typed("strata"), "--strata, which is for the variational bound", "a second command with --elbo"),
            (_typed("check"), "--check or --no-check, because the error contains the integration's", "--rtol"),
        ):
            if wrong:
                raise UsageError(f"--within does not support {what}; use {instead}, or leave out --within")

    @property
    def limit(self) -> int | None:
        """The default of ``--limit`` with ``--within``, or ``None`` if the user has typed one."""
        return None if self.within is None or _typed("limit") else 0


def _typed(name: str) -> bool:
    """Return whether the user has typed an option."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def within_options() -> Decorator:
    """Add ``--within`` and the options that belong to it, as ``within``."""
    return together(
        "within", Within,
        option("--within", under="Likelihood", first=True, type=Real(BAR), metavar="ERROR",
               help="Estimate the mean to this standard error, at the lowest cost, with --limit 0 by default."),
        option("--of", under="Likelihood", type=click.Choice(["population", "these"]),
               help="With --within: the mean of the data's distribution, or of these data.  [default: population]"),
        option("--features/--no-features", under="Likelihood", default=None,
               help="With --within: reduce the cost by a regression on features of the data.  [default: features]"),
    )  # fmt: skip


def mean_within(
    session: Session, run: Run, part: Chosen, how: Likelihood, within: Within, *, split: str, batch: int,
    memory: int | None, condition: dict[str, Any], out: Path | None, resume: bool,
) -> None:  # fmt: skip
    """Estimate the mean, and print and write it.

    Args:
        session: The session.
        run: The run, conditioned or not.
        part: The samples.
        how, within: The options.
        split, batch, memory, out, resume: The options of the command.
        condition: Facts about the condition, for the JSON file.
    """
    from ..core.progress import Progress
    from ..likelihood.memory import default_budget

    assert within.within is not None
    bar = within.within

    def requests() -> list[dict[str, Any]]:
        own = {"within": bar, "of": within.of, "features": within.features}
        own |= {"given": run.told_digest} if condition["condition"] == "given" else {}
        return [{**part.identity, **run.score_request(how, seed=session.seed), **own}]

    folder = session.folder / "likelihood"
    opened = work_in(session, out, folder, resume, len(part.x), "samples", "likelihood.json", requests)
    with sharing().leading(opened) as work:
        if work.finished is not None:
            session.say(f"the result in {work.folder} is already finished; there is nothing left to do")
            _report(session, {k: v for k, v in work.finished.items() if k != "requests"}, work.folder)
            return
        session.say(
            f"estimating the mean likelihood of {len(part.x):,} of {part.total:,} samples of {part.name} ({split}) "
            f"under {run.folder} to ± {bar:g}"
        )
        began = time.monotonic()
        with (
            session.lanes([run], min(batch, len(part.x))),
            warnings.catch_warnings(record=True) as caught,
            Progress(1, "likelihood", quiet=session.quiet) as progress,
        ):
            warnings.simplefilter("always")
            shown = _Shown(progress)
            found = part.padded(run).mean_likelihood(
                part.x, bar, how, of=within.of, features=within.features, seed=session.seed, batch=batch,
                memory=default_budget(run.device) if memory is None else memory * 2**20, watch=shown,
                keep=work.parts / "1",
            )  # fmt: skip
            shown.end()
        sharing().wait()
        if not session.main:
            return
        for text in dict.fromkeys(warned(w.message) for w in caught):
            echo(text, err=True)
        facts = strict({
            "run": str(session.folder), "step": run.step, "data": part.name, "split": split, "n": len(part.x),
            "total": part.total, **_facts(found), **condition, "seed": session.seed, "dtype": session.dtype,
            "device": str(run.device), "seconds": round(time.monotonic() - began, 2),
        })  # fmt: skip
        from ..core.files import write_json

        write_json(work.folder / REQUEST, {"requests": requests()})
        write_json(work.folder / "likelihood.json", facts)
        work.done()
        _report(session, facts, work.folder)


class _Shown:
    """The progress line: forward passes done and planned, and the bar as it shrinks."""

    def __init__(self, progress: Any) -> None:
        self.progress, self.planned = progress, False

    def __call__(self, step: Step) -> None:
        if step.plan is not None and not self.planned:
            self.planned = True
            self.progress.note(f"plan: {step.plan}")
        done = round(step.cost)
        expected = done if step.plan is None else round(step.plan.cost)
        self.progress.expect(max(done, expected))
        self.progress.update(done - self.progress.done, {"±": step.terms.stderr})

    def end(self) -> None:
        self.progress.expect(self.progress.done)


def _facts(found: MeanLikelihood) -> dict[str, Any]:
    """Return the estimate as JSON-serialisable values."""
    from ..likelihood import Likelihood

    assert isinstance(found.how, Likelihood)
    plan = None if found.plan is None else {
        "sizes": found.plan.sizes, "cost": round(found.plan.cost), "plain": found.plan.plain,
        "plain_cost": round(found.plan.plain_cost), "text": str(found.plan),
    }  # fmt: skip
    return {
        "mean": found.mean, "stderr_mean": found.stderr, "unit": found.unit, "within": found.within,
        "reached": found.reached, "of": found.of, "parts": found.parts, "sizes": found.sizes, "plan": plan,
        "cost": round(found.cost), "floor": found.floor, "change": found.change, "slope": found.slope,
        "explained": found.explained, "failed": found.failed, "how": str(found.how), **asdict(found.how),
    }  # fmt: skip


def _report(session: Session, facts: dict[str, Any], folder: Path) -> None:
    """Print the estimate, and raise an error if any solve failed."""
    of = "these samples" if facts["of"] == "these" else "the population"
    missed = "" if facts["reached"] else "  NOT REACHED"
    plan = facts["plan"]
    parts = ", ".join(f"{NAMES[k]} {_told(v)}" for k, v in facts["parts"].items())
    levels = ", ".join(f"{n:,} {k}" for k, n in facts["sizes"].items())
    lines = [
        f"{_told(facts['mean'])} ± {_told(facts['stderr_mean'])} {facts['unit']} of {of}  "
        f"({facts['n']:,} samples of {facts['data']}, {facts['split']}; ± {facts['within']:g} was asked for){missed}",
        f"the error consists of: {parts}",
        f"{facts['cost']:,} forward passes ({levels})"
        + (f"; planned {plan['cost']:,}; a plain average {plan['plain_cost']:,}" if plan and plan["sizes"] else ""),
        f"{facts['how']}",
        f"{folder / 'likelihood.json'}  {facts['seconds']:.1f} s  seed {facts['seed']}",
    ]
    if not facts["reached"]:
        echo(f"warning: {too_small(facts)}", err=True)
    session.print({**facts, "files": [str(folder / "likelihood.json")]}, *lines)
    if facts["failed"]:
        raise NumericalError(f"{facts['failed']:,} solves failed, and were left out")


def _told(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def too_small(facts: dict[str, Any]) -> str:
    """Say that the data set is too small for the bar, and what to do."""
    floor = "an unknown error" if facts["floor"] is None else f"± {facts['floor']:.2g}"
    return (
        f"± {facts['within']:g} WAS NOT REACHED: the {facts['n']:,} samples allow {floor} at best "
        "(sd/sqrt(N)), and then only if nearly all of them are solved; use a larger --within, or more samples "
        "(--limit 0, --split all or other data)"
    )
