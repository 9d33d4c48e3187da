"""What ``scoresde likelihood`` prints about the likelihoods of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import NumericalError
from .bounds import bounds_table
from .common import Session

__all__ = ["report"]

LARGE = 0.1  # largest share of the integration in the error of a mean


def report(session: Session, facts: dict[str, Any], files: list[Path], how: list[str], failures: list[str]) -> None:
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
