"""Pages that explain diffusion with the figures of one's own model, or of an exact one.

A page is one HTML file of at most 1.5 MB for points in the plane and 2 MB for other data. It needs no network. For
points in the plane it has eight figures: the forward process, the reverse process, the score as a compass, the score
field, the ODE beside the SDE, schedules, solvers on this model, and the density. Pages of pictures, signals and other
vectors have four of them. The same run on the same machine with the same number of threads gives the same bytes.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import UsageError
from ..core.limits import SEED, Range, checked
from ..core.registry import build
from ..core.tables import SDES
from ..core.version import __version__
from ..data import Dataset, load_data
from ..run.run import Run
from ..sde.base import SDE
from ..study.compass import known_mixture
from .frames import frame_parts
from .plane import in_the_plane, plane_parts
from .posters import posters
from .views import sources_of
from .write import Page, fill

__all__ = ["exact_page", "make_page"]

PLANE, OTHER = 1.5, 2.0  # the largest page, in megabytes
BUDGET = Range(0.1, 100)

THINGS = {"image": "pictures", "volume": "volumes", "signal": "signals", "vector": "points"}

SAID = {
    "forward": "Data on the left, and the same data with more and more noise.",
    "reverse": "Noise on the left turns into samples of the model on the right.",
    "compass": "Arrows lead from points of the plane to what the model sees there.",
    "field": "Arrows of the score over noisy data, with much noise and with little noise.",
    "flows": "Paths of the probability flow from noise to data.",
    "schedules": "The share of the variance that is still data, over the time of several paths.",
    "solvers": "The distance of samples to data falls with the number of evaluations, for several solvers.",
    "density": "A map of the log-density of the model.",
}


@checked(seed=SEED, budget=BUDGET)
def make_page(
    run: Run, data: Dataset | None = None, *, seed: int = 0, weights: bool = True, budget: float | None = None
) -> Page:
    """Make the page of a trained run.

    Args:
        run: The run.
        data: The data of the run (default: those that it was trained on).
        seed: Seed for the noise.
        weights: Whether to include the weights of a network for points in the plane, in half precision. Without them,
            the compass reads the table.
        budget: The largest size in megabytes (default: 1.5 for points in the plane, 2 for other data).

    Raises:
        UsageError: If the page is larger than ``budget``.
        DataError: If the data are missing or unreadable.
    """
    return _page(run, run.data() if data is None else data, "", seed, weights, budget)


@checked(seed=SEED, budget=BUDGET)
def exact_page(
    name: str = "8gaussians", sde: SDE | str = "vp", *, seed: int = 0, budget: float | None = None
) -> Page:  # fmt: skip
    """Make the page of a distribution whose score is known exactly, without a network.

    Args:
        name: The distribution. Only ``8gaussians`` has an exact score.
        sde: The path, or its name.
        seed: Seed for the data and the noise.
        budget: The largest size in megabytes (default: 1.5).

    Raises:
        UsageError: If the score of the distribution is not known.

    Example:
        >>> from scoresde.page import exact_page
        >>> exact_page().facts["title"]
        '8gaussians, exact'
    """
    if name != "8gaussians":
        raise UsageError(
            f"the exact score is known only for 8gaussians, not for {name!r}; train a run on these data, and make the "
            "page of the run",
            parameter="data",
            value="8gaussians",
        )
    path: SDE = build(sde, SDES, "SDE", typed=True, kind=SDE)
    if path.coords:
        raise UsageError(
            f"the path {path!r} differs between coordinates, but the exact page is in the plane with the same noise in "
            "both; use another path, such as vp",
            parameter="sde",
            value="vp",
        )
    data = load_data(name, seed)
    mixture = known_mixture(data.info, data.codec, path)
    assert mixture is not None
    return _page(Run(mixture, data.codec, data.info), data, f"{name}, exact", seed, False, budget)


def _page(run: Run, data: Dataset, title: str, seed: int, weights: bool, budget: float | None) -> Page:
    plane = in_the_plane(run)
    parts = plane_parts(run, data, seed, weights) if plane else frame_parts(run, data, seed)
    about = parts["about"]
    about.setdefault("kind", "plane")
    title = title or sources_of(run)
    facts = {
        "title": title,
        "kind": about["kind"],
        "table_error": about.get("table_error"),
        "holes": about.get("holes", 0),
    }
    return fill(parts, _words(parts, run, title), posters(parts), budget or (PLANE if plane else OTHER), facts)


def _words(parts: dict[str, Any], run: Run, title: str) -> dict[str, str]:
    """Return the texts of a page."""
    about, exact = parts["about"], parts["about"]["exact"]
    things = THINGS.get(run.info.kind, "rows")
    error = about.get("table_error")
    facts = ""
    if error is not None:
        told = "no error could be measured" if error["rms"] is None else (
            f"their error is {error['rms']} model units (root mean square at {error['count']:,} noisy data; 99 % are "
            f"within {error['most']})"
        )  # fmt: skip
        facts = f"Fields and clouds read a table of what the model sees; {told}."
        if about["holes"]:
            facts += (
                f" The model returned no finite number at {about['holes']:,} of {about['nodes']:,} nodes, which are "
                "left blank."
            )
        if parts["network"] is not None:
            facts += " The compass evaluates the network itself, with weights in half precision."
        elif not exact:
            facts += " The compass reads the table as well."
    model = "an exact mixture of eight Gaussians" if exact else f"a model trained on {run.info.n_train:,} {things}"
    compass = parts.get("compass", {})
    count = "Eight" if about["kind"] == "plane" else "Four"
    if compass.get("memorised"):
        errors = (
            "The errors of this density are those of its computation alone, because the model is exact. So that there "
            f"are errors to see, the curves show another model, which has memorised {compass['memorised']} points "
            "of the data, beside the exact score: mean, and 10 % to 90 % of the points (dotted). At low noise it errs, "
            "because it knows these points alone."
        )
    else:
        errors = (
            "The curves compare the model's score, over noise levels from data to noise, with "
            f"{compass.get('against', 'an exact score')}: mean, and 10 % to 90 % of the points (dotted)."
        )
        if "training" in compass.get("against", ""):
            errors += " At low noise that score has memorised its points, so a model that generalises differs from it."
    words = {
        "title": f"How diffusion works: {title}",
        "lead": f"{count} figures that move, drawn from {model}. Each shows one idea. None needs the one before it.",
        "things": things,
        "who": "the exact model" if exact else "the model",
        "facts": facts,
        "version": __version__,
        "compass-words": errors,
    }
    return words | {f"poster-{name}": said for name, said in SAID.items()}
