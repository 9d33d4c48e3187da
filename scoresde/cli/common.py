"""Groups of options that several commands share.

Each decorator adds a group of options and passes their values to the command as one object. The decorators are
:func:`session` (for the run, the device, the seed and the output), :func:`solver_options`, :func:`reading_options` and
:func:`conditioning`. Commands print messages and results through the session.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core import parallel
from ..core.errors import UsageError
from ..core.limits import COUNT, FRACTION, QUANTILE, RTOL, SCALE, SIZE, STEPS, Range, check_number
from ..core.parallel import own_device, rank, ranks
from ..core.registry import build, resolve
from ..core.signals import Limit
from ..core.tables import OPERATORS, SDES, SOLVERS
from .command import EVERYWHERE, Duration, Fields, Real, Whole, echo, option, settings

if TYPE_CHECKING:
    import torch

    from ..core.progress import Progress
    from ..data import Reading
    from ..run.run import Run
    from ..solvers import Solver, Step

__all__ = [
    "Conditioning", "Session", "SolverChoice", "builds", "conditioning", "counted", "edited_option", "in_list",
    "out_option", "reading_options", "sde_option", "session", "set_option", "solver_options", "strict", "together",
    "whole_numbers",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(name: str, make: Callable[..., Any], *options: Decorator, fields: tuple[Fields, ...] = ()) -> Decorator:
    """Add options whose values are passed to the command as one object.

    Args:
        name: The parameter of the command that receives the object.
        make: Function that builds the object from the values, which are passed as keyword arguments.
        options: The options, in the order in which the help lists them.
        fields: The fields of the objects that the command builds from the options.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        names: list[str] = []

        @functools.wraps(command)
        def called(**given: Any) -> Any:
            return command(**{name: make(**{n: given.pop(n) for n in names})}, **given)

        for add in reversed(options):
            add(called)
            names.append(called.__click_params__[-1].name)  # type: ignore[attr-defined]
        return builds(*fields)(called)

    return decorate


def builds(*fields: Fields) -> Callable[[F], F]:
    """Declare the objects whose fields are options of a command."""

    def decorate(command: F) -> F:
        command.fields = (*fields, *getattr(command, "fields", ()))  # type: ignore[attr-defined]
        return command

    return decorate


def own_class(operator: str | None) -> str | None:
    """Return ``operator`` if it names a user-defined class, and ``None`` otherwise.

    If a run was trained with such a class, the user must name the class again to load the run.
    """
    typed = operator or ""
    return operator if ":" in typed and typed.partition(":")[0] not in OPERATORS else None


# ------------------------------------------------------------------------------------------------------------- session


@dataclass(frozen=True, eq=False)
class Session:
    """The run, seed, device and output settings of a command.

    Args:
        seed: Seed for all random numbers.
        device, dtype, threads: The device, the floating-point type and the number of threads, as given by the user.
        json: Whether to print the result as one JSON object.
        quiet: Whether to suppress messages about data and progress.
        run: Name of the run, or ``None`` for the newest run.
        sde, network, predict, space, operator: Names of the run's SDE, network, prediction, space and operator classes,
            as ``module:Class``, if they are not built in.
        changed_data: Whether to accept the run's data even if they have changed.
        edited: Whether to accept the run's files even if they have been edited.
        others: Names of the other runs, for a command that compares several runs.
        precision, compile, channels_last: How the network is computed (:func:`scoresde.load`).
    """

    seed: int
    device: str
    dtype: str
    threads: int | None
    json: bool
    quiet: bool
    run: str | None = None
    sde: str | None = None
    network: str | None = None
    predict: str | None = None
    space: str | None = None
    operator: str | None = None
    changed_data: bool = False
    edited: bool = False
    others: tuple[str, ...] = ()
    precision: str = "auto"
    compile: bool = False
    channels_last: str = "auto"

    @cached_property
    def on(self) -> torch.device:
        """The device to compute on. The first access checks the device and sets the number of threads."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            chosen = own_device(torch.device(name))
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            reason = "unknown device" if "Expected one of" in str(error) else str(error).splitlines()[0]
            raise UsageError(f"device {name!r} cannot be used: {reason}", parameter="device", value="cpu") from None
        return chosen

    @property
    def main(self) -> bool:
        """Whether this process prints and writes the result. Of several processes, only the first one does."""
        return rank() == 0

    @property
    def floats(self) -> torch.dtype:
        """The floating-point type, which is ``torch.float32`` or ``torch.float64``."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @cached_property
    def found(self) -> Path:
        """The folder of the named run. If none is named, it is the newest run, and a line says which."""
        from ..run.files import find_run

        folder = find_run(self.run, edited=self.edited)
        if self.run is None:
            self.say(f"no run is named, so the newest is used: {folder}")
        return folder

    @cached_property
    def loaded(self) -> Run:
        """The named run (default: the newest run), loaded on the device of the session."""
        return self._load(self.found)

    @cached_property
    def all_loaded(self) -> list[Run]:
        """All named runs, in the given order."""
        return [self.loaded, *(self._load(name) for name in self.others)]

    def _load(self, name: str | Path) -> Run:
        from ..codec import names_of
        from ..run.config import TrainConfig
        from ..run.files import find_run, read_config
        from ..run.run import described, load

        given: dict[str, Any] = {"sde": self.sde, "network": self.network, "parametrization": self.predict}
        space = self.space
        if self.others:  # a class given on the command line may belong to only some of the runs
            folder = find_run(name, edited=self.edited)
            spec = described(folder, TrainConfig.from_dict(read_config(folder)))[1]
            parts = {"sde": spec.path, "network": spec.network, "parametrization": spec.parametrization}
            # A network that was passed as an object has no name.
            given = {name: value for name, value in given.items() if (part := parts[name]) is None or ":" in part.name}
            space = space if any(":" in name for name in names_of(spec.codec)) else None
        return load(
            name, **given, space=space, operator=self.operator, device=self.on, dtype=self.floats,
            changed_data=self.changed_data, edited=self.edited,
            precision=self.precision, compile=self.compile, channels_last=self.channels_last,
        )  # fmt: skip

    def share_threads(self, runs: Sequence[Run], rows: int, *, backward: bool = False) -> None:
        """Set the number of threads to one that suits calls with ``rows`` rows, unless the user has chosen a number.

        The argument ``backward`` states whether each call is followed by a backward pass.
        """
        from ..core.threads import BACKWARD, UNIT, chosen_by_user, default_threads

        if self.threads or chosen_by_user() or runs[0].device.type != "cpu":
            return
        import torch

        cores = torch.get_num_threads()
        threads = default_threads(max(run.work for run in runs) * rows, cores, BACKWARD if backward else UNIT)
        if threads < cores:
            torch.set_num_threads(threads)
            few = f"{threads} thread{'s' * (threads > 1)} of {cores}"
            self.say(f"using {few}, because a call of this network is too little work for more (--threads)")

    def lanes(self, runs: Sequence[Run], rows: int) -> AbstractContextManager[None]:
        """Return a context in which each thread computes rows of its own, if all runs allow it, and say so.

        Otherwise, the number of threads is one that suits calls with ``rows`` rows and a backward pass.
        """
        from ..core.threads import lanes

        count = min(run.lanes(rows) for run in runs)
        if count == 1:
            self.share_threads(runs, rows, backward=True)
        else:
            self.say(f"each of {count} threads computes up to {-(-rows // count)} samples at once")
        return lanes(count)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        assert self.loaded.folder is not None
        return self.loaded.folder

    @property
    def whence(self) -> str:
        """The run's folder and step, such as ``runs/digits-vp (step 2,000)``."""
        return f"{self.folder} (step {self.loaded.step:,})"

    def say(self, text: str) -> None:
        """Print a line to standard error, unless ``quiet``."""
        if not self.quiet:
            echo(text, err=True)

    @contextmanager
    def new_folder(self, path: Path) -> Iterator[Path]:
        """Create a folder for results (:func:`scoresde.core.files.new_folder`), and say so if its name is another."""
        from ..core.files import new_folder, taken

        with new_folder(path) as folder:
            if folder != path:
                self.say(taken(path, folder))
            yield folder

    def print(self, facts: Mapping[str, Any], *lines: str) -> None:
        """Print the result to standard output, as one JSON object or as lines."""
        if not self.main:
            return
        echo(json.dumps(strict(facts), default=str) if self.json else "\n".join(lines))


def session(
    run: bool = False, first: tuple[str, ...] = ("seed", "device"), only: tuple[str, ...] = (), several: bool = False,
    operator: bool = True, metavar: str | None = None, processes: bool = False, execution: bool = False,
) -> Decorator:  # fmt: skip
    """Add the options that all commands share, and pass their values to the command as ``session``.

    Args:
        run: Whether the command takes a run.
        several: Whether the command takes any number of runs.
        operator: Whether to add ``--operator`` for a command that takes a run.
        metavar: How the usage line shows the run (default: as one optional run, or as several).
        first: The options that the short help shows.
        only: The options to add, or an empty tuple to add all options.
        processes: Whether several processes can run the command together (:mod:`scoresde.core.parallel`).
        execution: Whether to add the options for how a run's network is computed.
    """

    def common(*names: str, **options: Any) -> Decorator:
        return option(*names, under=EVERYWHERE, first=names[0].removeprefix("--") in first, **options)

    options = {
        "seed": common("--seed", type=Whole(Range(0, 2**63 - 1)), default=0, help="Random seed."),
        "device": common("--device", default="auto", help="Device to compute on, such as auto, cpu, cuda or cuda:1."),
        "dtype": common(
            "--dtype", type=click.Choice(["float32", "float64"]), default="float32",
            help="Floating-point type of the weights and states.",
        ),
        "threads": common(
            "--threads", type=Whole(Range(1, 4096)),
            help="Number of CPU threads.  [default: all cores, but fewer if a call of a network is little work]",
        ),
        "max_time": common(
            "--max-time", type=Duration(), metavar="TIME",
            help="Stop after this time, such as 3h50m or 45m, and keep what is finished, as after SIGUSR1.",
        ),
        "json": common("--json", is_flag=True, help="Print the result as one JSON object."),
        "quiet": common("--quiet", is_flag=True, help="Do not print progress to standard error."),
    }  # fmt: skip
    absent: dict[str, Any] = {"seed": 0, "device": "auto", "dtype": "float32", "threads": None, "quiet": False}
    if not processes:
        del options["max_time"]
    chosen = [o for name, o in options.items() if not only or name in only]
    if run:
        argument = click.argument("run", nargs=-1 if several else 1, required=False, metavar=metavar)
        parts = _own_parts if operator else _own_parts[:-1]
        chosen = [argument, *parts, *(_execution if execution else ()), _changed_data, edited_option, *chosen]

    def make(**given: Any) -> Session:
        if several:
            given["run"], *others = given["run"] or (None,)
            given["others"] = tuple(others)
        if ranks() > 1 and not processes:
            name = click.get_current_context().info_name
            raise UsageError(
                f"torchrun has started {ranks()} processes, but only train, sample, likelihood and evaluate can run in "
                f"several; run {name} without torchrun"
            )
        given["quiet"] = given.get("quiet", False) or rank() > 0
        if (most := given.pop("max_time", None)) is not None:
            click.get_current_context().call_on_close(Limit(*most).cancel)
        return Session(**(absent | given))

    return together("session", make, *chosen)


def shares_rows(command: F) -> F:
    """Let the processes that ``torchrun`` has started share the rows of the results of a command."""

    @functools.wraps(command)
    def called(*, session: Session, **given: Any) -> Any:
        if ranks() < 2:
            return command(session=session, **given)
        with parallel.together(session.on) as world, parallel.shared_rows(world):
            return command(session=session, **given)

    return called  # type: ignore[return-value]


def sde_option(command: F) -> F:
    """Add ``--sde`` to a command that builds its own SDE."""
    found: F = option(
        "--sde", under="Path", first=True, default="vp", metavar="NAME",
        help=f"SDE: {', '.join(SDES)}, or module:Class.",
    )(command)  # fmt: skip
    return found


_own_parts = [
    option(
        name, under=EVERYWHERE, metavar="NAME", help=f"The run's {what} class, as module:Class, if it is not built in."
    )
    for name, what in (
        ("--sde", "SDE"),
        ("--network", "network"),
        ("--predict", "prediction"),
        ("--space", "space"),
        ("--operator", "operator"),
    )
]

_execution = [
    option(
        "--precision", under=EVERYWHERE, type=click.Choice(["auto", "float32", "bf16"]), default="auto",
        help="Precision of the network; auto is float32. The solver keeps --dtype.",
    ),
    option("--compile", under=EVERYWHERE, is_flag=True, help="Compile the network (torch.compile)."),
    option(
        "--channels-last", under=EVERYWHERE, type=click.Choice(["auto", "yes", "no"]), default="auto",
        help="Memory layout of the network; auto is the layout in which it was trained.",
    ),
]  # fmt: skip

_changed_data = option(
    "--changed-data", under=EVERYWHERE, is_flag=True, help="Use the run's data even if they have changed."
)


edited_option = option(
    "--edited", under=EVERYWHERE, is_flag=True, help="Use the run's files even if they have been edited."
)


def strict(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot represent, with ``None``."""
    if isinstance(value, Mapping):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -------------------------------------------------------------------------------------------------------------- solver


@dataclass(frozen=True)
class SolverChoice:
    """A solver as given on the command line.

    Args:
        name: A name from the table of solvers, or ``module:Class``.
        options: The solver's options, converted to their types.
        named: Whether the user named the solver.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    named: bool = True

    def for_run(self, run: Run) -> SolverChoice:
        """Return the choice for a run to which everything is bound: the run's default if the user named no solver.

        A user who sets an option that the run's default solver lacks, such as ``--rtol``, means this solver.
        """
        from ..solvers import Ancestral, Multistep

        usual = run.default_solver
        if self.named or not isinstance(usual, Ancestral | Multistep) or set(self.options) - {"steps"}:
            return self
        name = "ancestral" if isinstance(usual, Ancestral) else "multistep"
        return replace(self, name=name, options={"steps": usual.steps, **self.options})

    def build(self) -> Solver:
        """Build the solver.

        Raises:
            UsageError: If an option is unknown or its value is invalid.
        """
        from ..solvers import Solver

        made: Solver = build(self.name, SOLVERS, "solver", self.options, typed=True, kind=Solver)
        return made

    @property
    def short(self) -> str:
        """The solver's name for use in folder names. For ``module:Class``, it is ``class``."""
        return self.name.rpartition(":")[2].lower()


SOLVER = Fields("solver", "solver", SOLVERS, "solver")


def solver_options(
    default: str, *typed: str, first: tuple[str, ...] = ("solver", "steps", "rtol"), steps: int | None = None,
    unless: Mapping[str, Mapping[str, Any]] | None = None,
    what: str = f"Solver: {', '.join(SOLVERS)}, or module:Class.",
    rtol: str = "Relative tolerance of an adaptive solver.", set_first: bool = True,
) -> Decorator:  # fmt: skip
    """Add the options of the solver, and pass them to the command as ``solver``, a :class:`SolverChoice`.

    Args:
        default: The name of the default solver.
        typed: The options to add besides ``--solver`` and ``--set``: any of ``steps`` and ``rtol``.
        first: The options that the short help shows.
        set_first: Whether the short help also shows ``--set``.
        steps: The default value of ``--steps``.
        unless: Defaults that this command uses instead of a solver's defaults, such as ``{"ode": {"rtol": 1e-4}}``.
        what, rtol: The help texts of ``--solver`` and ``--rtol``.
    """

    def default_of(name: str) -> str:
        special = [(solver, options[name]) for solver, options in (unless or {}).items() if name in options]
        told = ", ".join(f"{value:g} for {solver}" for solver, value in special)
        return f"  [default: {told}]" if told else ""

    numbers = {
        "steps": option(
            "--steps", under="Solver", first="steps" in first, sets="solver", type=Whole(STEPS), default=steps,
            help=f"Number of steps of a fixed-step solver.{default_of('steps')}",
        ),
        "rtol": option(
            "--rtol", under="Solver", first="rtol" in first, sets="solver", type=Real(RTOL),
            help=f"{rtol}{default_of('rtol')}",
        ),
    }  # fmt: skip

    def make(solver: str, assignments: tuple[str, ...], **given: Any) -> SolverChoice:
        numbers = {name: value for name, value in given.items() if value is not None}
        texts = settings(assignments, ("solver",))["solver"]
        resolve(solver, SOLVERS, "solver", typed=True)  # report a misspelt name first
        _refuse_moved(solver, texts)
        options = {**(unless or {}).get(solver, {}), **numbers, **SOLVER.read(solver, texts)}
        if "steps" in given and given["steps"] is not None and isinstance(options.get("grid"), tuple):
            raise UsageError(
                f"--steps {given['steps']} cannot be combined with a --grid that lists the times of the steps; omit "
                "--steps"
            )
        source = click.get_current_context().get_parameter_source("solver")
        return SolverChoice(solver, options, source is not click.core.ParameterSource.DEFAULT)

    return together(
        "solver", make,
        option("--solver", under="Solver", first=True, default=default, metavar="NAME", help=what),
        *(numbers[name] for name in typed),
        set_option("solver.NAME=VALUE", "Any other option of the solver.", "Solver", set_first),
        fields=(SOLVER,),
    )  # fmt: skip


def _refuse_moved(solver: str, texts: Mapping[str, str]) -> None:
    """Reject an option or a value that has been replaced, and name the replacement."""
    if texts.get("engine") == "torchsde":
        raise UsageError(
            "torchsde is not an engine of the ode solver; it is a solver for the reverse SDE", parameter="solver",
            value="torchsde",
        )  # fmt: skip
    fields = SOLVER.of(solver)
    if "order" in texts and "order" not in fields and "sequence" in fields and texts["order"] in ("pc", "cp"):
        raise UsageError(
            f"the {solver} solver has no option 'order'; use 'sequence' to set whether the predictor or the corrector "
            "comes first",
            parameter="solver.sequence", value=texts["order"],
        )  # fmt: skip


def counted(progress: Progress, batch: int) -> Callable[[Step], None]:
    """Return a callback that adds finished batches, and the finished fraction of the current batch, to ``progress``."""

    def watch(step: Step) -> None:
        first = int(step.index[0]) // batch * batch
        now = first + int(min(batch, progress.total - first) * step.done)
        progress.update(max(0, now - progress.done))

    return watch


# ------------------------------------------------------------------------------------------------------------- reading


def reading_options(first: bool = False) -> Decorator:
    """Add the options that determine how files are read, and pass their values to the command as ``reading``."""

    def make(fit: str | None, **given: Any) -> Reading:
        from ..data import Reading

        return Reading(fit=fit or "", **given)

    return together(
        "reading", make,
        option("--size", under="Data", first=first, type=Whole(SIZE), default=0, show_default=False,
               help="Resize all images to squares of this side length.  [default: keep their sizes]"),
        option("--fit", under="Data", first=first, type=click.Choice(["crop", "pad", "stretch"]),
               help="How --size handles images that are not square: crop them to the central square, pad them "
                    "with black, or stretch them."),
        option("--layout", under="Data", first=first, type=click.Choice(["auto", "first", "last"]), default="auto",
               help="Position of the channel axis in arrays of images."),
        option("--on-bad", under="Data", first=first, type=click.Choice(["stop", "skip"]), default="stop",
               help="What to do if a file cannot be read: stop, or skip the file."),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- conditioning


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of the samples, as given on the command line.

    Args:
        label: The class of all samples, by name or index.
        guidance: Scale of classifier-free guidance.
        labels: Whether each sample is conditioned on its own class.
        given: Whether each sample is conditioned on its whole condition, as in training.
        against: The model to move away from: a class, ``text:`` and a text, ``@`` and a step of the run, or another
            run. ``None`` means the model without a condition.
        interval: The noise levels sigma/alpha at which the model is guided, as text.
        rescale, threshold: The limits of the guided estimates (:meth:`scoresde.run.run.Run.limited`).
    """

    label: str | None
    guidance: float
    labels: bool = False
    given: bool = False
    against: str | None = None
    interval: str | None = None
    rescale: float = 0.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("--against", self.against), ("--guidance-interval", self.interval)):
            if value is not None and self.guidance == 1.0:
                raise UsageError(f"{name} {value} has no effect without guidance; use --guidance 2, for example")
        self._interval  # noqa: B018  # reports an invalid interval before anything else
        if self.given and (self.labels or self.label is not None):
            other = "--labels" if self.labels else "--label"
            raise UsageError(f"--given uses the whole condition of each sample, including its class; leave out {other}")
        if self.labels and self.label is not None:
            raise UsageError(
                "--labels conditions each sample on its own class, but --label conditions all samples on the same "
                "class; use only one of these options"
            )

    def of(self, run: Run) -> Run:
        """Return the run conditioned on the class, and guided unless each sample has its own class or condition."""
        known = run.given(self.label)
        return known if self.labels or self.given else self.guide(known)

    @property
    def _interval(self) -> tuple[float, float]:
        from ..guidance.classifier_free import ALL, check_interval

        if self.interval is None:
            return ALL
        try:
            low, high = (float(part) for part in self.interval.split(","))
        except ValueError:
            raise UsageError(
                f"--guidance-interval {self.interval} must be two noise levels sigma/alpha, such as 0,1 or 0.2,inf"
            ) from None
        check_interval((low, high))
        return low, high

    def guide(self, run: Run) -> Run:
        """Return the run, whose condition is already bound, with guidance and its limits."""
        against = None if self.against is None else self._against(run)
        return run.guided(self.guidance, against, self._interval).limited(self.rescale, self.threshold)

    def _against(self, run: Run) -> Run | str:
        """Return the model to move away from: another run, or a class or a text for the same run."""
        from ..run.run import load

        against = self.against or ""
        if against.startswith("text:"):
            return run.guided(1.0).given(text=against.removeprefix("text:").strip())
        if against.startswith("@"):
            step = against.removeprefix("@").replace(",", "")
            if not step.isdecimal() or run.folder is None:
                raise UsageError(
                    f"--against must be @ followed by the step of a checkpoint, such as @400; got {against}"
                )
            from ..codec import names_of

            parts = {} if run.spec is None else {
                "sde": run.spec.path, "network": run.spec.network, "parametrization": run.spec.parametrization,
            }  # fmt: skip
            own: dict[str, Any] = {  # the user has already named these classes to load the run
                name: part.name for name, part in parts.items() if part is not None and ":" in part.name
            }
            if run.spec is not None and (spaces := [n for n in names_of(run.spec.codec) if ":" in n]):
                own["space"] = "+".join(spaces)
            if run.operator is not None and ":" in str(run.config and run.config.sources.operator):
                own["operator"] = run.operator
            other = load(run.folder, step=int(step), device=run.device, dtype=run.dtype, **own)
            return replace(other, condition=run.condition)
        if against not in run.info.classes and (os.path.isdir(against) or os.path.isdir(os.path.join("runs", against))):
            other = load(against, device=run.device, dtype=run.dtype)
            if other.config is None or other.config.cond == "none":
                return other
            if other.info.classes != run.info.classes or other.info.known != run.info.known:
                raise UsageError(
                    f"--against {against}: this run was trained with other conditions than {run.folder}; use a run "
                    "with the same conditions, or one that was trained without conditions"
                )
            return replace(other, condition=run.condition)
        return against

    def all_of(self, run: Run, n: int, seed: int = 0) -> Run:
        """Return the run, conditioned for ``n`` samples and guided.

        If the user gave a class, the run is conditioned on it. If not, the condition depends on the run. If the run
        requires a class but no other condition, each sample is assigned a class. If the run was trained with other
        conditions, each sample gets the conditions of a held-out row. Otherwise, the run is not conditioned.
        """
        return self.of(run) if self.label is not None else self.guide(run.typical(n, seed))

    def each(self, run: Run, known: Any) -> Run:
        """Return the run with guidance, conditioned on the class of each sample in ``known``."""
        return self.guide(run.given(known))

    @property
    def facts(self) -> dict[str, Any]:
        more = {
            "against": self.against, "interval": self.interval, "rescale": self.rescale or None,
            "threshold": self.threshold,
        }  # fmt: skip
        return {"label": self.label, "guidance": self.guidance, **{k: v for k, v in more.items() if v is not None}}


def conditioning(labels: bool = False, first: bool = True) -> Decorator:
    """Add the options for conditioning, and pass their values to the command as ``condition``.

    Args:
        labels: Whether to add ``--labels`` and ``--given``, for a command that reads data and their conditions.
        first: Whether the short help shows ``--label``.
    """
    options = [
        option("--label", under="Conditioning", first=first, metavar="CLASS",
               help="Class of all samples, by name or index (for a run trained with --cond class)."),
        option("--guidance", under="Conditioning", type=Real(SCALE), default=1.0,
               help="Scale of guidance: how far to move away from the model without a condition, or from --against."),
        option("--against", under="Conditioning", metavar="MODEL",
               help="Model for --guidance to move away from: a class, text:TEXT, @STEP (an earlier checkpoint of the "
                    "run), or another run.  [default: the model without a condition]"),
        option("--guidance-interval", "interval", under="Conditioning", metavar="LOW,HIGH",
               help="Noise levels sigma/alpha at which to guide, such as 0,1.  [default: all]"),
        option("--rescale", under="Conditioning", type=Real(FRACTION), default=0.0, show_default=False, metavar="SHARE",
               help="Share of the contrast that guidance adds to take back, such as 0.7.  [default: 0]"),
        option("--threshold", under="Conditioning", type=Real(QUANTILE), metavar="QUANTILE",
               help="Quantile of the values of an estimate to scale down to the range of the data, such as 0.995.  "
                    "[default: no limit]"),
    ]  # fmt: skip
    if labels:
        options += [
            option("--labels", under="Conditioning", is_flag=True, help="Condition each sample on its own class."),
            option("--given", under="Conditioning", is_flag=True,
                   help="Use the whole condition of each sample, as in training (for a run trained with --cond), and "
                        "compare the result with the likelihood without a condition."),
        ]  # fmt: skip
    return together("condition", Conditioning, *options)


# ---------------------------------------------------------------------------------------------------------------- text


def set_option(metavar: str, help: str, under: str, first: bool = True) -> Decorator:
    """Add ``--set NAME=VALUE``, which may be repeated."""
    return option("--set", "assignments", under=under, first=first, multiple=True, metavar=metavar, help=help)


def out_option(default: str, what: str = "Folder to write to.") -> Decorator:
    """Add ``--out``, the folder or file for the results."""
    text = f"{what}  [default: {default}]"
    return option("--out", under="Files", first=True, type=click.Path(path_type=Path), help=text)


def in_list(text: str) -> list[str]:
    """Split a comma-separated list: ``"png, npz"`` becomes ``["png", "npz"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(flag: str, text: str) -> list[int]:
    """Parse a comma-separated list of positive integers: ``"5,10,20"`` becomes ``[5, 10, 20]``."""
    parts = in_list(text)
    if not parts or not all(part.isdecimal() and len(part) < 20 and int(part) > 0 for part in parts):
        raise UsageError(f"{flag} must be positive integers separated by commas, such as 5,10,20,50, got {text!r}")
    return [check_number(flag, int(part), COUNT, "int") for part in parts]
