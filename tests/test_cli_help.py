"""The help is short, the full help forgets nothing, and every field of what a command builds is an option."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from shell import Shell

import scoresde
from scoresde import Likelihood
from scoresde.cli import cli
from scoresde.cli.command import Command, Fields, Option, settings
from scoresde.core.errors import UsageError
from scoresde.core.registry import fields_of, read_options, resolve
from scoresde.core.tables import SOLVERS


def commands(group: click.Group = cli, *names: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, by what is typed for it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


COMMANDS = dict(commands())
GROUPS = ["", "data", "plot", "demo", "config"]


def listed(text: str) -> list[str]:
    """The first spelling of each option that a help text has a row for."""
    return re.findall(r"^  (-[-\w]+)", text, re.M)


@pytest.mark.parametrize("line", [*COMMANDS, *GROUPS])
def test_short_help_has_few_options(shell: Shell, line: str) -> None:
    text = shell(f"{line} --help")
    assert 1 <= len(listed(text)) <= (15 if line == "train" else 10), listed(text)
    if line in COMMANDS:
        own = [p for p in COMMANDS[line].params if isinstance(p, click.Option)]
        more = len(listed(text)) - 1 < len(own)
        assert (f"All options:  scoresde {line} --help-all" in text) or not more


@pytest.mark.parametrize("line", COMMANDS)
def test_full_help_has_every_option_under_a_heading(shell: Shell, line: str) -> None:
    text = shell(f"{line} --help-all")
    for option in COMMANDS[line].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert isinstance(option, Option), f"{option.name} has no heading"
            assert listed(text).count(option.opts[0]) == 1, option.name
            assert f"\n{option.under}:\n" in text
            assert option.help, f"{option.name} is not explained"
    assert "Common options:" in text and set(listed(shell(f"{line} --help"))) <= set(listed(text))


def test_full_help_tells_the_fields_of_what_is_chosen(shell: Shell) -> None:
    text = shell("sample --help-all")
    for name in SOLVERS:
        assert name == "ode" or re.search(rf"^  {re.escape(name)}  ", text, re.M), f"{name} is not in the help"
    assert re.search(r"--atol VALUE +Absolute tolerance, or none to use the value of rtol", text)
    assert "--atol" not in shell("sample --help")
    text = shell("sample --solver pc --help-all")
    assert "Fields of the pc solver" in text and "--set solver.start=VALUE" in text and "--start" in text
    text = shell("likelihood --help-all")
    assert {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(Likelihood)} <= set(listed(text))
    assert "--redraw / --no-redraw" in text
    text = shell("train --help-all")
    assert "--clip VALUE" in text and "--beta-max VALUE" in text and "sigmoid  bias" in text


FIELDS = [
    (line, fields, name)
    for line, command in COMMANDS.items()
    if isinstance(command, Command)
    for fields in command.fields
    for name in fields.table
]


@pytest.mark.parametrize(("line", "fields", "name"), FIELDS, ids=[f"{a}-{b.group}-{c}" for a, b, c in FIELDS])
def test_every_field_is_an_option_by_itself_or_by_set(line: str, fields: Fields, name: str) -> None:
    """By its plain name unless that is taken, or is a field of two parts; then ``--set`` reaches it."""
    command = COMMANDS[line]
    assert isinstance(command, Command)
    assert any("--set" in p.opts for p in command.params)
    taken = {flag for p in command.params for flag in p.opts}
    for field in set(fields_of(resolve(name, fields.table))) - set(fields.hidden):
        flag = f"--{field.replace('_', '-')}"
        chosen = [] if fields.option is None else [f"--{fields.option.replace('_', '-')}", name]
        if flag in taken:
            continue
        try:
            parsed = command.make_context(line, [*chosen, f"{flag}=3"]).params["assignments"]
        except UsageError as error:
            assert f"--set {fields.group}.{field}=VALUE" in str(error)
        else:
            assert parsed == (fields.spelled(field, 3).removeprefix("--set "),)


def test_flags_among_the_fields_take_no_value() -> None:
    likelihood = COMMANDS["likelihood"]
    for line, value in (("--redraw", "yes"), ("--no-redraw", "no"), ("--redraw=off", "off")):
        assert likelihood.make_context("x", [line, "runs/a"]).params["assignments"] == (f"likelihood.redraw={value}",)
        assert likelihood.make_context("x", [line, "runs/a"]).params["run"] == ("runs/a",)
    with pytest.raises(click.NoSuchOption):
        likelihood.make_context("x", ["--no-draws"])


def test_what_follows_an_option_is_its_value() -> None:
    sample = COMMANDS["sample"]
    parsed = sample.make_context("x", ["--out", "--eta", "--solver=em", "--eta", "-1", "run"]).params
    assert str(parsed["out"]) == "--eta" and parsed["assignments"] == ("solver.eta=-1",) and parsed["run"] == "run"
    assert sample.make_context("x", ["--", "--eta"]).params["run"] == "--eta"


# ------------------------------------------------------------------------------------------------------------- values


@dataclasses.dataclass(frozen=True)
class Many:
    """Fields of many types."""

    flag: bool = False
    maybe: bool | None = None
    whole: int = 1
    number: float | None = None
    word: str = "none"
    times: str | tuple[float, ...] = "auto"
    several: tuple[int, ...] = (1,)
    anything: list[Any] | None = None


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("flag", "yes", True), ("flag", "On", True), ("flag", "false", False), ("flag", "no", False),
        ("flag", "off", False), ("flag", "true", True), ("maybe", "none", None), ("maybe", "no", False),
        ("whole", "3", 3), ("number", "3", 3.0), ("number", "1e-3", 1e-3), ("number", "none", None),
        ("word", "none", "none"), ("word", "yes", "yes"), ("word", "3", "3"), ("times", "1,0.5", (1, 0.5)),
        ("times", "karras", "karras"), ("several", "1,2", (1, 2)), ("several", "4", (4,)), ("anything", "3", 3),
    ],
)  # fmt: skip
def test_values_are_read_by_the_type_of_their_field(field: str, text: str, value: object) -> None:
    read = read_options(Many, "thing", "many", {field: text})[field]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "takes"),
    [
        ("flag", "1", "1; it must be yes or no"), ("flag", "abc", "'abc'; it must be yes or no"),
        ("whole", "1.5", "1.5; it must be an integer"), ("whole", "yes", "'yes'; it must be an integer"),
        ("number", "abc", "'abc'; it must be a number, or none"), ("number", "1,2", "'1,2'; it must be a number"),
        ("maybe", "2", "2; it must be yes or no, or none"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(field: str, text: str, takes: str) -> None:
    with pytest.raises(UsageError, match=f"thing 'many': {field} is {re.escape(takes)}"):
        read_options(Many, "thing", "many", {field: text})


def test_unknown_fields_are_refused_with_the_near_ones() -> None:
    with pytest.raises(UsageError, match="no option 'wole'; did you mean 'whole'"):
        read_options(Many, "thing", "many", {"wole": "3"})


def test_settings() -> None:
    found = settings(("sde.beta-max=18", "clip=2", "clip=3", "a=b=c"), ("", "sde"))
    assert found == {"": {"clip": "3", "a": "b=c"}, "sde": {"beta_max": "18"}}
    for text in ("sde", "net.a=1", "=3", "sde.=3"):
        with pytest.raises(UsageError, match=r"expected NAME=VALUE or sde\.NAME=VALUE"):
            settings((text,), ("", "sde"))


# ------------------------------------------------------------------------------------------------------- who says what

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+|scoresde (?:train|sample|classifier|reflow|likelihood|evaluate) ")


def test_the_library_speaks_of_parameters() -> None:
    """Outside the command line, no text spells a flag; docstrings may."""
    root = Path(scoresde.__file__).parent
    for path in root.rglob("*.py"):
        if "cli" in path.relative_to(root).parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        told = [n for n in ast.walk(tree) if isinstance(n, kinds) and ast.get_docstring(n) is not None]
        docs = {id(n.body[0].value) for n in told}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                assert not FLAG.search(node.value), f"{path}:{node.lineno}: {node.value}"


def test_no_field_of_the_likelihood_is_listed_again() -> None:
    names = {f.name for f in dataclasses.fields(Likelihood)}
    source = inspect.getsource(inspect.getmodule(COMMANDS["likelihood"].callback))  # type: ignore[arg-type]
    tree = ast.parse(source)
    words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert len(names & {word.removeprefix("--").replace("-", "_") for word in words}) <= 3


def test_what_the_library_warns_of_is_told_in_flags(shell: Shell, moons: str) -> None:
    shell(f"sample {moons} --n 1 --rtol 1e-7 --quiet")
    assert "use float64 (on the command line: --dtype float64)\n" in shell.err


@pytest.mark.parametrize("line", COMMANDS)
def test_the_manual_prints_the_full_help_of_a_command_that_was_not_typed(line: str) -> None:
    command = COMMANDS[line]
    assert isinstance(command, Command)
    # The command keeps its help option, so a context without these settings would take -h from the tests after this.
    context = click.Context(cli, info_name="scoresde", **cli.context_settings)
    assert "--help-all" in command.full_help(click.Context(command, context))


def test_the_short_help_names_the_options_of_a_condition(shell: Shell) -> None:
    assert {"--given", "--each", "--n"} <= set(listed(shell("evaluate -h")))
    assert "--cond-drop" in shell("train -h")
    full = shell("train --help-all")
    assert full.count("--cond-drop") == 2 and full.index("  --cond TEXT") < full.index("  --cond-drop")
    assert full.index("  --cond-drop") < full.index("  --size")  # in the section of the data, not among the fields
    line = "train --data moons --dry-run --quiet --set network.width=8 --batch 8"
    for given, value in (("", 0.1), (" --cond-drop 0", 0.0), (" --set cond_drop=0.3", 0.3)):
        assert shell.json(line + given)["config"]["cond_drop"] == value
    shell.refuses(f"{line} --cond-drop 1.5", 2, "--cond-drop", "1.5")
