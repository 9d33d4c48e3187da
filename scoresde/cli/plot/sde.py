"""The commands ``scoresde plot schedule`` and ``scoresde plot forward``, which draw SDEs and do not use a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ...core.limits import COUNT, Range
from ...core.registry import resolve
from ...core.tables import GRIDS, SDES
from ..command import Fields, Whole, option, settings, verb
from ..common import Session, builds, in_list, sde_option, session, set_option
from .common import picture_option, target, write

if TYPE_CHECKING:
    from ...sde.base import SDE

__all__ = ["forward", "schedule"]

PATH = Fields("sde", "SDE", SDES, "sde")


@verb(
    short_help="Draw the schedules of SDEs.",
    epilog="Example:  scoresde plot schedule --sde vp,ve,flow --set vp.beta_max=10",
)
@option("--sde", "sdes", under="Path", first=True, default="vp,cosine,flow", metavar="NAMES",
        help=f"SDEs to compare: {', '.join(SDES)}, or module:Class.")  # fmt: skip
@set_option("SDE.NAME=VALUE", "An option of an SDE, such as vp.beta_max=10; see `scoresde list sdes`.", "Path")
@picture_option("schedule.png")
@session(first=("json",))
def schedule(sdes: str, assignments: tuple[str, ...], out: Path | None, session: Session) -> None:
    """Draw the schedules of SDEs. This command does not use a run.

    Some panels show alpha, sigma, beta and log-SNR as functions of t. The others share a log-SNR axis and show alpha
    and sigma, the steps of a solver, and the noise levels drawn in training.

    Here, beta is -2 d log alpha/dt. A dotted line shows g^2 if it differs from beta. The two are equal if the SDE
    preserves the variance.
    """
    names = _names("--sde", sdes)
    options = settings(assignments, tuple(names))
    session.on  # noqa: B018  # sets the threads
    built = {name: _sde(replace(PATH, group=name), name, options[name]) for name in names}
    from ...plot import schedules
    from ...study.figures import schedules_of

    file = target(out, Path("schedule.png"))
    figure = schedules([curve for name, sde in built.items() for curve in schedules_of(name, sde, session.seed)])
    facts = {"sdes": {name: repr(sde) for name, sde in built.items()}, "seed": session.seed}
    write(session, file, figure, facts)


@verb(
    short_help="Draw data turning into noise.",
    epilog="Example:  scoresde plot forward --data moons --sde flow --n 1000 --steps 6",
)
@option("--data", under="Data", first=True, default="digits",
        help="Data: digits, a 2-D toy data set, or the path to an image folder, an npz file or IDX files.")  # fmt: skip
@sde_option
@set_option("sde.NAME=VALUE", "An option of the SDE.", "Path")
@option("--n", under="Picture", first=True, type=Whole(COUNT),
        help="Number of samples.  [default: 6, or 1000 for vectors]")  # fmt: skip
@option("--steps", under="Picture", first=True, type=Whole(Range(1, 1000)), default=10,
        help="Number of steps from data to noise.")  # fmt: skip
@option("--grid", under="Picture", first=True, default="uniform", metavar="NAME",
        help=f"Time grid of the steps: auto, {', '.join(GRIDS)}.")  # fmt: skip
@picture_option("forward.png")
@session(first=("seed",))
@builds(PATH)
def forward(
    data: str, sde: str, assignments: tuple[str, ...], n: int | None, steps: int, grid: str, out: Path | None,
    session: Session,
) -> None:  # fmt: skip
    """Draw data turning into noise, in one jump (x_t = alpha x_0 + sigma eps) and step by step.

    This command does not use a run.
    """
    session.on  # noqa: B018  # sets the threads
    texts = settings(assignments, ("sde",))["sde"]
    _sde(PATH, sde, texts)  # rejects invalid options before the data are read
    from ...codec import Composed, parse_spaces
    from ...core.noise import Noise
    from ...data import load_data
    from ...plot import strips
    from ...sde.check import check_event
    from ...sde.grids import make_grid
    from ...study.figures import column_labels, dissolve, shown, size_note

    dataset = load_data(data, session.seed)
    info, count = dataset.info, n or (1000 if dataset.info.kind == "vector" else 6)
    chosen = _sde(PATH, sde, texts, info.shape)
    check_event(chosen, info.shape)
    # The path may be stated in a basis. Without a known signal, the paths towards it are drawn as they are.
    basis = parse_spaces(chosen.stated_in) if chosen.stated_in.startswith("basis") else ()
    units = Composed((dataset.codec.continuous, *basis))
    file = target(out, Path("forward.png"))
    times = make_grid(grid, chosen, steps, *chosen.times("train"))
    x0 = units.to_model(dataset.test[:count].double())
    found = dissolve(chosen, x0, times, Noise.of(len(x0), session.seed))
    spread = {"jump": float(found.spread[0].mean()), "chain": float(found.spread[1].mean())}
    blocks = {
        r"one jump:  $x_t = \alpha_t x_0 + \sigma_t \varepsilon$,  the same $\varepsilon$ in all columns": found.jump,
        r"step by step:  $x_t = A x_s + S z$,  a new $z$ at each step;  "
        r"$A = \alpha_t/\alpha_s$,  $S^2 = \sigma_t^2 - A^2 \sigma_s^2$": found.chain,
    }
    note = (
        r"The jump and the steps give the same distribution at each t. The standard deviation of the noise "
        r"$(x_t - \alpha_t x_0)/\sigma_t$ here is "
        f"{spread['jump']:.3f} for the jump and {spread['chain']:.3f} for the steps."
    )
    figure = strips(
        {title: shown(chosen, units, x, times) for title, x in blocks.items()},
        ["data", *column_labels(times[1:])], info.kind, info.low, info.high,
        coloured_by=x0 if info.kind == "vector" else None, note=note + size_note(chosen, times),
    )  # fmt: skip
    facts = {"data": info.name, "sde": repr(chosen), "n": len(x0), "t": times.tolist(), "noise_std": spread}
    write(session, file, figure, {**facts, "seed": session.seed})


def _names(option: str, text: str) -> list[str]:
    names = list(dict.fromkeys(in_list(text)))
    if not names:
        raise UsageError(f"{option} must name at least one SDE, such as {', '.join(SDES)}, got {text!r}")
    return names


def _sde(fields: Fields, name: str, texts: dict[str, str], shape: tuple[int, ...] | None = None) -> SDE:
    """Build an SDE. If its field ``shape`` is ``auto``, it is set to ``shape``, the shape of an event."""
    resolve(name, SDES, "SDE", typed=True)
    from ...run.config import TrainConfig, build_sde

    config = TrainConfig(sde=name, sde_options=fields.read(name, texts))
    return build_sde(config if shape is None else config.shaped(shape))
