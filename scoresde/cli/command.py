"""Commands that have a short and a full help text, and options that set the fields of the objects they build.

A command declares which objects it builds (:class:`Fields`). A field can be set with ``--set GROUP.NAME=VALUE``, and
also with ``--NAME VALUE`` unless the command has another option of that name. A field therefore need not be declared as
an option. The same declarations tell :func:`spelled` which option sets a given parameter of the library.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from ..core.errors import Advice, Preempted, Problems, ScoresdeError, Stopped, UsageError
from ..core.limits import Range, check_number
from ..core.registry import closest, fields_of, is_flag, parse_value, read_options, resolve
from ..core.text import printable

__all__ = [
    "Command", "Fields", "Group", "Option", "Real", "Whole", "echo", "first_line", "flags", "option", "settings",
    "spelled", "told", "verb", "warned",
]  # fmt: skip

EVERYWHERE = "Common options"  # the heading of the last section

# Library functions that error messages recommend, and the commands that call them.
CALLS = {
    "fit": "scoresde train --sde vp",
    "look": "scoresde data inspect",
    "resume": "scoresde train --resume",
    "train_classifier": "scoresde classifier",
    "noisy": "scoresde classifier --noisy",
}
# Settings that are fixed when a run is trained, so they are options of ``train``.
TRAINED = (
    "sde", "predict", "network", "weighting", "t_sampler", "coupling", "cond", "cond_drop", "augment", "learn_variance",
    "test_fraction",
)  # fmt: skip


class Option(click.Option):
    """An option that is listed under a heading.

    Args:
        under: The heading in the full help.
        first: Whether the short help shows the option.
        sets: The group of the field that the option sets (see :class:`Fields`), or ``None`` if it sets no field.
        files: Whether files that follow the value belong to the option, too, as if it were repeated. A shell expands
            ``--given *.png`` to such a list.
    """

    def __init__(
        self, *names: Any, under: str = EVERYWHERE, first: bool = False, sets: str | None = None, files: bool = False,
        **settings: Any,
    ) -> None:  # fmt: skip
        settings["multiple"] = files or settings.get("multiple", False)
        super().__init__(*names, **settings)
        self.under, self.first, self.sets, self.files = under, first, sets, files


class Whole(click.IntRange):
    """A parameter type for integers within a :class:`Range`.

    Args:
        within: The range of valid numbers.
    """

    def __init__(self, within: Range) -> None:
        super().__init__(min=None if within.low == -math.inf else int(within.low))
        self.within = within

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _within(self, super().convert(value, param, ctx), "int", param, ctx)


class Real(click.FloatRange):
    """A parameter type for numbers within a :class:`Range`. NaN is never valid.

    Args:
        within: The range of valid numbers.
    """

    def __init__(self, within: Range) -> None:
        low = None if within.low == -math.inf else within.low
        super().__init__(min=low, min_open=within.above and low is not None)
        self.within = within

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _within(self, super().convert(value, param, ctx), "float", param, ctx)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A parameter type for durations such as ``3h50m``, ``45m`` or ``90s``. The value is the seconds and the text."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, str]:
        found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(value).strip().lower())
        seconds = 0
        for number, unit in zip(found.groups() if found else (), (86_400, 3_600, 60, 1), strict=False):
            seconds += int(number or 0) * unit
        if not 0 < seconds <= 10_000_000:
            self.fail(f"{value!r} is not a duration; write it with units, such as 3h50m, 45m or 90s.", param, ctx)
        return float(seconds), str(value)


def _within(
    kind: Whole | Real, value: Any, annotation: str, param: click.Parameter | None, ctx: click.Context | None
) -> Any:
    """Check that a number is within the range of its option, and return the number."""
    try:
        return check_number("it", value, kind.within, annotation)
    except UsageError as error:
        kind.fail(f"{error}.", param, ctx)


def option(*names: str, under: str, first: bool = False, **settings: Any) -> Callable[[Any], Any]:
    """Add an option under a heading. The help shows the default value, if there is one."""
    settings.setdefault("show_default", settings.get("default") is not None and not settings.get("multiple"))
    return click.option(*names, cls=Option, under=under, first=first, **settings)


@dataclass(frozen=True)
class Fields:
    """The fields of an object that a command builds.

    Args:
        group: The text before the dot in ``--set``, such as ``solver`` in ``--set solver.steps=20``, or an empty string
            if the fields are set without a dot.
        what: The noun that messages use for the object.
        table: The names to choose from, each with the import path ``module:name`` of a class or function.
        option: The parameter of the command that selects a name from the table, or ``None`` if the table has only one
            entry or the library selects the entry.
        hidden: Fields that the user cannot set.
    """

    group: str
    what: str
    table: Mapping[str, str]
    option: str | None = None
    hidden: tuple[str, ...] = ()

    def factory(self, name: str | None) -> Any:
        """Return the class or function that builds the object.

        Return ``None`` if ``name`` is unknown, or if the library selects the class or function.
        """
        if self.option is None:
            return self._get(next(iter(self.table))) if len(self.table) == 1 else None
        return None if name is None or (name not in self.table and ":" not in name) else self._get(name)

    def of(self, name: str | None, everywhere: bool = False) -> dict[str, inspect.Parameter]:
        """Return the fields of the named object or, if ``everywhere`` is set, of all objects in the table."""
        factories = [self._get(key) for key in self.table] if everywhere else [self.factory(name)]
        found = {k: p for factory in factories if factory is not None for k, p in fields_of(factory).items()}
        return {k: p for k, p in found.items() if k not in self.hidden}

    def read(self, name: str | None, texts: Mapping[str, str]) -> dict[str, Any]:
        """Convert values given on the command line to the types of their fields.

        Raises:
            UsageError: If a field is unknown, or if a value cannot be converted to the type of its field.
        """
        factory = self.factory(name)
        try:
            if factory is not None:
                shown = "" if self.option is None else str(name)
                return read_options(factory, self.what, shown, texts, self.table if self.option else None)
            found: dict[str, Any] = {}  # the library selects the object and rejects unknown fields
            for field, text in texts.items():
                owner = next((f for f in map(self._get, self.table) if field in fields_of(f)), None)
                found |= {field: parse_value(text)} if owner is None else read_options(owner, "", "", {field: text})
            return found
        except UsageError as error:
            if error.parameter is not None:  # an option of the command may have the same name as the field
                error.parameter = ".".join(filter(None, (self.group, error.parameter)))
            raise

    def spelled(self, field: str, value: object = None) -> str:
        """Return the option that sets a field, such as ``--set solver.steps=20``."""
        return f"--set {self.group}{'.' * bool(self.group)}{field}={'VALUE' if value is None else value}"

    def _get(self, name: str) -> Any:
        return resolve(name, self.table, self.what, typed=True)


def settings(assignments: tuple[str, ...], groups: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Parse assignments of the form ``GROUP.NAME=VALUE`` or ``NAME=VALUE``, and collect them by group.

    ``("sde.beta_max=18", "clip=2")`` becomes ``{"sde": {"beta_max": "18"}, "": {"clip": "2"}}``.
    """
    found: dict[str, dict[str, str]] = {g: {} for g in groups}
    for text in assignments:
        key, equals, value = text.partition("=")
        group, _, name = key.strip().rpartition(".")
        name = name.replace("-", "_")
        if not equals or group not in found or not name:
            kinds = " or ".join(f"{g}.NAME=VALUE" if g else "NAME=VALUE" for g in groups)
            near = difflib.get_close_matches(group, groups, n=1, cutoff=0.5)
            meant = f"{near[0]}.{name}={value}" if near else f"{groups[0]}.{text}" if len(groups) == 1 else ""
            hint = f"; did you mean --set {meant}?" if equals and meant and group not in found else ""
            raise UsageError(f"--set {text}: expected {kinds}{hint}")
        found[group][name] = value
    return found


class Command(click.Command):
    """A command with short and full help texts, options for fields, and errors that recommend options."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.fields: tuple[Fields, ...] = getattr(self.callback, "fields", ())
        self._everything = Option(
            ["--help-all"], is_flag=True, expose_value=False, is_eager=True, callback=self._help_all,
            help="Show all options and exit.",
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- parsing

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["scoresde.line"] = list(args)
        args = self._with_files(ctx, args)
        try:
            return super().parse_args(ctx, self._with_settings(ctx, args) if self.fields else args)
        except click.UsageError as error:
            several = [flag for flag, p in self._known(ctx).items() if getattr(p, "files", False) and flag in args]
            if several and "unexpected extra argument" in error.message:
                hint = f"to pass several files or folders, repeat {several[0]} before each of them"
                raise click.UsageError(f"{error.message.rstrip('.')}; {hint}", ctx) from None
            raise

    def _with_files(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat an option for files before each file that follows its value."""
        known, out, rest = self._known(ctx), list[str](), list(args)
        while rest and rest[0] != "--":
            word = rest.pop(0)
            flag, equals, _ = word.partition("=")
            param = known.get(flag)
            count = 0 if param is None or param.is_flag or equals else param.nargs
            out += [word, *rest[:count]]
            del rest[:count]
            while getattr(param, "files", False) and rest and not rest[0].startswith("-") and os.path.isfile(rest[0]):
                out += [flag, rest.pop(0)]
        return [*out, *rest]

    def _with_settings(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite undeclared options such as ``--snr 0.2`` as ``--set solver.snr=0.2``."""
        out: list[str] = []
        rest = list(args)
        chosen: dict[str, str] | None = None
        while rest:
            word = rest.pop(0)
            flag, equals, value = word.partition("=")
            known = self._known(ctx).get(flag)
            if word == "--":
                return [*out, word, *rest]
            if known is not None or not word.startswith("--"):
                count = 0 if known is None or known.is_flag or equals else known.nargs
                out += [word, *rest[:count]]
                del rest[:count]
                continue
            chosen = self._chosen(ctx, args) if chosen is None else chosen
            fields, field, flagged = self._field(ctx, flag, chosen)
            if flagged:
                value = ("yes" if field == _plain(flag) else "no") if not equals else value
            elif not equals:
                if not rest:
                    raise click.BadOptionUsage(flag, f"Option {flag!r} requires an argument.", ctx)
                value = rest.pop(0)
            out += fields.spelled(field, value).split(" ", 1)
        return out

    def _known(self, ctx: click.Context) -> dict[str, click.Option]:
        """Return the command's own options, keyed by flag, such as ``--out``."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        return {flag: p for p in options for flag in (*p.opts, *p.secondary_opts)}

    def _chosen(self, ctx: click.Context, args: list[str]) -> dict[str, str]:
        """Return the chosen or default name of each object, keyed by option, as in ``{"solver": "heun"}``."""
        known, deciding = self._known(ctx), {f.option for f in self.fields}
        found = {p.name: str(p.default) for p in known.values() if p.name in deciding and isinstance(p.default, str)}
        for word, following in zip(args, [*args[1:], ""], strict=False):
            flag, equals, value = word.partition("=")
            if flag in known and known[flag].name in deciding:
                found[known[flag].name] = value if equals else following
        return {str(k): v for k, v in found.items()}

    def _field(self, ctx: click.Context, flag: str, chosen: Mapping[str, str]) -> tuple[Fields, str, bool]:
        """Find the field that an undeclared option sets, and whether the field is a flag."""
        names = [_plain(flag), *([_plain(flag)[3:]] if flag.startswith("--no-") else [])]
        for everywhere in (False, True):
            found = []
            for fields in self.fields:
                try:
                    known = fields.of(chosen.get(fields.option or ""), everywhere)
                except ScoresdeError:
                    continue  # a misspelt name is reported when the object is built
                found += [(fields, name, is_flag(known[name])) for name in names if name in known]
            found = [(fields, name, flagged) for fields, name, flagged in found if flagged or name == names[0]]
            if len(found) == 1:
                return found[0]
            if found:
                several = " or ".join(fields.spelled(name) for fields, name, _ in found)
                whose = " or of the ".join(fields.what for fields, _, _ in found)
                raise UsageError(f"{flag} is ambiguous because it could be a field of the {whose}; use {several}")
        self._refuse(ctx, flag, chosen)

    def _refuse(self, ctx: click.Context, flag: str, chosen: Mapping[str, str]) -> NoReturn:
        """Report an unknown option, and suggest options with similar names."""
        names = {*self._known(ctx)}
        for fields in self.fields:
            try:
                names |= {_dashed(name) for name in fields.of(chosen.get(fields.option or ""), everywhere=True)}
            except ScoresdeError:
                continue
        raise click.NoSuchOption(flag, possibilities=difflib.get_close_matches(flag, sorted(names)), ctx=ctx)

    # ---------------------------------------------------------------------------------------------------------- help

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *params, help_option = super().get_params(ctx)
        return [*params, self._everything, help_option]

    def _help_all(self, ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(self.full_help(ctx))
            ctx.exit()

    def full_help(self, ctx: click.Context) -> str:
        """Return the full help: all options under headings, followed by the fields of the objects to build."""
        ctx.meta["scoresde.full"] = True
        try:
            return self.get_help(ctx)
        finally:
            del ctx.meta["scoresde.full"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option) and not p.hidden]
        own: list[click.Option] = options[:-2]
        everything, help_option = options[-2:]
        if not ctx.meta.get("scoresde.full"):
            short = [p for p in own if isinstance(p, Option) and p.first]
            _section(ctx, formatter, "Options", [*short, help_option])
            if len(short) < len(own) or self.fields:
                formatter.write_paragraph()
                formatter.write_text(f"All options:  {ctx.command_path} --help-all")
            return
        headings = list(dict.fromkeys(p.under if isinstance(p, Option) else EVERYWHERE for p in own))
        for heading in [*(h for h in headings if h != EVERYWHERE), EVERYWHERE]:
            shown = [p for p in own if (p.under if isinstance(p, Option) else EVERYWHERE) == heading]
            last = [everything, help_option] if heading == EVERYWHERE else []
            _section(ctx, formatter, heading, [*shown, *last])
        chosen = self._chosen(ctx, ctx.meta.get("scoresde.line", [])) if self.fields else {}
        for fields in self.fields:
            self._format_fields(ctx, formatter, fields, chosen.get(fields.option or ""))

    def _format_fields(
        self, ctx: click.Context, formatter: click.HelpFormatter, fields: Fields, name: str | None
    ) -> None:
        """Write the help for the fields of the named object, and list the fields of the other objects."""
        factory = fields.factory(name)
        taken = self._known(ctx)
        if factory is not None:
            docs = _described(factory)
            rows = []
            for field, parameter in fields.of(name).items():
                own = taken.get(_dashed(field))
                if own is not None and (fields.group == "" or getattr(own, "sets", None) == fields.group):
                    continue  # the option of the field is listed above
                flag = _dashed(field) if own is None else fields.spelled(field)
                if own is None:
                    flag += f" / {_dashed(f'no_{field}')}" if is_flag(parameter) else " VALUE"
                default = "" if parameter.default is parameter.empty else f"[default: {_short(parameter.default)}]"
                rows.append((flag, "  ".join(filter(None, (docs.get(field, ""), default)))))
            of = f"{name} " if fields.option is not None else ""
            if rows:
                also = fields.spelled("NAME")
                with formatter.section(f"Fields of the {of}{fields.what}, which can also be set with {also}"):
                    formatter.write_dl(rows)
        others = [key for key in fields.table if key != name] if factory is None or fields.option else []
        rows = [(key, " ".join(k for k in fields_of(fields._get(key)) if k not in fields.hidden)) for key in others]
        rows = [row for row in rows if row[1]]
        if rows:
            other = "other " * (factory is not None)
            with formatter.section(f"Fields of the {other}{fields.what}s, set with {fields.spelled('NAME')}"):
                formatter.write_dl(rows)

    # -------------------------------------------------------------------------------------------------------- errors

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ScoresdeError, Preempted, Stopped) as error:
            error.args = (told(ctx, error),)
            error.parameter = None  # the message now names the option
            raise


def echo(text: str, *, err: bool = False) -> None:
    """Print text with its control characters escaped, so that names from files cannot control the terminal."""
    click.echo(printable(text), err=err)


def told(ctx: click.Context | None, message: ScoresdeError | Preempted | Stopped | Advice) -> str:
    """Return the text of a message, followed by any options or commands that solve the problem."""
    if ctx is not None and isinstance(message, Problems):
        ways = [flags(ctx, problem.answers) for problem in message.problems]
        texts = [
            f"{p.message}{f' (on the command line: {way})' * bool(way)}"
            for p, way in zip(message.problems, ways, strict=True)
        ]
        several = {k: v for problem in message.problems for k, v in problem.answers.items()}
        together = f"\nall at once: {flags(ctx, several)}" if len(texts) > 1 and all(ways) else ""
        return f"{message.listed(texts)}{together}"
    typed = None
    # A message about the content of given files names them, so it need not say how they were given.
    plain = ctx is not None and message.value is None and _files_typed(ctx, message.parameter)
    if ctx is not None and message.parameter is not None and not plain:
        typed = spelled(ctx, message.parameter, message.value)
    if typed is None:
        return str(message)
    return (
        f"{message}; continue with: {typed}"
        if isinstance(message, Preempted | Stopped)
        else f"{message} (on the command line: {typed})"
    )


def _files_typed(ctx: click.Context, parameter: str | None) -> bool:
    """Return whether ``parameter`` is an option for files that the user has typed."""
    files = any(param.name == parameter and getattr(param, "files", False) for param in ctx.command.params)
    return files and ctx.get_parameter_source(str(parameter)) is click.core.ParameterSource.COMMANDLINE


def warned(message: Warning | str) -> str:
    """Format a warning as one line."""
    ctx = click.get_current_context(silent=True)
    return f"warning: {told(ctx, message) if isinstance(message, Advice) else message}"


def spelled(ctx: click.Context, parameter: str, value: object = None) -> str | None:
    """Return the command-line equivalent of a parameter of the library, or ``None`` if there is none.

    The result is an option of the current command or, for a training setting that this command lacks, of ``train``. If
    ``parameter`` is the name of a library function, the result is the command that calls the function.
    """
    if parameter == "resume" and any(p.name == parameter and getattr(p, "is_flag", False) for p in ctx.command.params):
        return _resumed(ctx, value)
    if parameter in CALLS:
        end = "" if value is None else f" {shlex.quote(str(value))}"
        given = f" --data{end}" if parameter == "train_classifier" and end else end
        return f"{CALLS[parameter]}{given}"
    return _spelled(ctx, parameter, value)


def _resumed(ctx: click.Context, folder: object) -> str:
    """Return the command line that resumes this command in ``folder``."""
    words: list[str] = []
    rest = iter(ctx.meta.get("scoresde.line", []))
    for word in rest:
        if word == "--out":
            next(rest, None)
        elif word != "--resume" and not word.startswith("--out="):
            words.append(word)
    # These options come first, because the original command line may contain "--", which ends the options.
    return shlex.join([*ctx.command_path.split(), "--out", str(folder), "--resume", *words])


def flags(ctx: click.Context, answers: Mapping[str, object]) -> str:
    """Convert several parameters to options, such as ``--size 64 --fit crop``."""
    return " ".join(filter(None, (_spelled(ctx, name, value) for name, value in answers.items())))


def _spelled(ctx: click.Context, parameter: str, value: object) -> str | None:
    end = "" if value is None else f" {value}"
    group = ctx.find_root().command
    train = group.commands.get("train") if isinstance(group, click.Group) else None
    trained = parameter.partition(".")[0] in TRAINED
    for command in (ctx.command, train if trained else None):
        if not isinstance(command, Command):
            continue
        start = "" if command is ctx.command else "scoresde train "
        for param in command.params:
            if parameter == param.name and isinstance(param, click.Option):
                return f"{start}{param.opts[0]}{'' if param.is_flag else end}"
        of, _, field = parameter.rpartition(".")
        for fields in command.fields:
            name = ctx.params.get(fields.option) if fields.option and command is ctx.command else None
            known = {**fields.of(None, everywhere=True), **fields.of(name)}
            if of in ("", fields.group) and field in known:
                return f"{start}{fields.spelled(field, value)}"
    return None


class Group(click.Group):
    """A command group that suggests a similar name for a misspelt command."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}; {closest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


def verb(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Turn a function into a :class:`Command`. Examples in the epilog keep their line breaks."""
    if settings.get("epilog", "").startswith("Example"):
        settings["epilog"] = f"\b\n{settings['epilog']}"
    return click.command(name, cls=Command, **settings)


def _section(ctx: click.Context, formatter: click.HelpFormatter, heading: str, options: list[click.Option]) -> None:
    rows = [row for p in options if (row := p.get_help_record(ctx)) is not None]
    with formatter.section(heading):
        formatter.write_dl(rows)


def _plain(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _dashed(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def first_line(thing: Any) -> str:
    """Return the first line of the docstring of ``thing``, without markup and without the final full stop."""
    return _bare((thing.__doc__ or "").strip().partition("\n")[0]).rstrip(".")


def _bare(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    return re.sub(r"`+", "", text)


def _described(factory: Any) -> dict[str, str]:
    """Return the descriptions of the fields of ``factory``, taken from docstrings."""
    # If ``factory`` is a function, the docstrings are those of the class of its result.
    made = factory if inspect.isclass(factory) else type(factory())
    found: dict[str, str] = {}
    for kind in made.__mro__:
        for name, text in _arguments(kind):
            if name not in found and not text.startswith("See "):
                found[name] = text
    return found


def _arguments(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the name and the description of each argument in the docstring of a class."""
    doc = inspect.getdoc(kind) if "__doc__" in vars(kind) and kind.__doc__ else ""
    block = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", f"{doc}\n", re.M)
    for entry in re.split(r"^ {4}(?=\w)", block[1], flags=re.M)[1:] if block else ():
        names, _, text = entry.partition(":")
        for name in names.split(","):
            yield name.strip(), re.sub(r"\bNone\b", "none", _bare(" ".join(text.split())))
