"""What the verbs share: the options that mean the same in each, the device, the run, what goes to which stream."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..build import closest, parse_value, resolve
from ..errors import ScoresdeError, UsageError
from ..tables import SDES

if TYPE_CHECKING:
    import torch

    from ..run import Run

__all__ = [
    "Command", "Group", "common_options", "dtype_of", "load_run", "prepare", "print_json", "say",
    "sde_option", "settings", "verb", "whole_numbers",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command that says how the parameter of a library's error is typed here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ScoresdeError as error:
            if error.parameter is not None and (typed := self._typed(ctx, error.parameter)):
                value = "" if error.value is None else f" {error.value}"
                error.args = (f"{error} (here: {typed}{value})",)
            raise

    def _typed(self, ctx: click.Context, parameter: str) -> str | None:
        """How a parameter is given here or, if it is one of training, there."""
        group = ctx.find_root().command
        train = group.commands.get("train") if isinstance(group, click.Group) else None
        for command in (self, train):
            for option in () if command is None else command.params:
                if parameter == option.name:
                    return option.opts[0] if command is self else f"scoresde train {option.opts[0]}"
        return None


def verb(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a :class:`Command` of a function."""
    return click.command(name, cls=Command, **settings)


class Group(click.Group):
    """A group that helps with a misspelt command."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}; {closest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


def common_options(command: F) -> F:
    """The options that mean the same in every command."""
    for option in reversed(
        (
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1."),
            click.option(
                "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True,
                help="Precision of weights and states.",
            ),
            click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]"),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
            click.option("--quiet", is_flag=True, help="No progress on standard error."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def sde_option(help_text: str, default: str | None) -> Callable[[F], F]:
    """``--sde``: the SDE to train on, or the class of a run's own."""
    return click.option("--sde", default=default, show_default=default is not None, metavar="NAME", help=help_text)


def prepare(device: str, threads: int | None) -> torch.device:
    """Set the threads; the device to compute on, tried once."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = "there is no such device" if "Expected one of" in str(error) else str(error).splitlines()[0]
        raise UsageError(f"device {device!r} cannot be used: {reason}; try --device cpu") from None
    return chosen


def dtype_of(name: str) -> torch.dtype:
    """``"float64"`` to ``torch.float64``."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def settings(assignments: tuple[str, ...], groups: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``("sde.beta_max=18", "clip=2")`` to ``{"sde": {"beta_max": 18}, "": {"clip": 2}}``; group "" has no dot."""
    found: dict[str, dict[str, Any]] = {g: {} for g in groups}
    for text in assignments:
        key, equals, value = text.partition("=")
        group, _, name = key.strip().rpartition(".")
        if not equals or group not in found:
            kinds = ", ".join(f"{g}.NAME=VALUE" if g else "NAME=VALUE" for g in groups)
            raise UsageError(f"--set {text}: it takes {kinds}")
        found[group][name] = parse_value(value)
    return found


def whole_numbers(option: str, text: str) -> list[int]:
    """``"5,10,20"`` to ``[5, 10, 20]``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text!r}: it takes whole numbers above 0, such as 5,10,20,50")
    return [int(part) for part in parts]


def load_run(run: str | None, sde: str | None, device: str, threads: int | None, dtype: str) -> Run:
    """The run that was named (none: the newest), on its device."""
    chosen = prepare(device, threads)
    from ..run import load

    given = None if sde is None else resolve(sde, SDES, "SDE", typed=True)
    return load(run, sde=given, device=chosen, dtype=dtype_of(dtype))


def say(quiet: bool, text: str) -> None:
    """A line on standard error, unless it shall be quiet."""
    if not quiet:
        click.echo(text, err=True)


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(_strict(content), default=str))


def _strict(value: Any) -> Any:
    """NaN and infinity, which JSON has not, become null."""
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
