"""From a name to an object: ``build("vp", SDES, beta_max=18.0)``, or ``"mymodule:MySDE"``.

A name is looked up in a table of ``"module:Class"`` strings (:mod:`scoresde.tables`) or is such a string itself,
typed by the user; the folder the user stands in is importable for names that were typed. Names read from a file are
only looked up in the tables (``typed=False``): loading a file never imports code.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import UsageError

__all__ = ["build", "closest", "construct", "fields_of", "name_of", "options_of", "parse_value", "resolve"]


def closest(name: str, choices: Iterable[str]) -> str:
    """Return a phrase that helps with a misspelt name: the near ones, then all of them."""
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}choose from: {', '.join(names) or '(none)'}"


def resolve(name: str, table: Mapping[str, str], what: str = "name", *, typed: bool = True) -> Any:
    """Return the class or function that ``name`` stands for.

    Args:
        name: A key of ``table``, or ``"module:Name"``.
        table: Names and the ``"module:Name"`` strings they stand for.
        what: The noun for messages, such as ``"SDE"``.
        typed: Whether a person typed the name; only then may it import a module that no table lists.

    Raises:
        UsageError: If the name is unknown, or the module or the attribute cannot be had.
    """
    known = name in table
    path = table.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        raise UsageError(f"unknown {what} {name!r}; {closest(name, table)}; or name your own as module:Name")
    if not known and not typed:
        raise UsageError(
            f"name the {what} yourself: {f'--sde {name}, or ' if what == 'SDE' else ''}in Python load(run, sde=, "
            f"network=, parametrization=). The run says {name!r}, which is in no table, and a name that comes from a "
            "file is never imported"
        )
    try:
        if known:
            loaded = importlib.import_module(module)
        else:
            here = os.getcwd()
            sys.path.insert(0, here)
            try:
                loaded = importlib.import_module(module)
            finally:
                sys.path.remove(here)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        if module.endswith(".py"):
            raise UsageError(f"{what} {name!r}: leave out the .py: {module[:-3]}:{attribute}") from None
        raise UsageError(
            f"{what} {name!r}: there is no module {module!r} in {os.getcwd()} or among the installed packages; "
            f"run from the folder that holds {module}.py"
        ) from None
    if not hasattr(loaded, attribute):
        public = [n for n, value in vars(loaded).items() if callable(value) and not n.startswith("_")]
        raise UsageError(f"{what} {name!r}: module {module!r} has no {attribute!r}; {closest(attribute, public)}")
    return getattr(loaded, attribute)


def fields_of(factory: Any) -> dict[str, inspect.Parameter]:
    """Return the options of a class or function by name."""
    return {
        name: p
        for name, p in inspect.signature(factory).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"
    }


def build(name: str | Any, table: Mapping[str, str], what: str = "name", **options: Any) -> Any:
    """Build the object that ``name`` stands for; an object that is no string is returned as it is.

    Raises:
        UsageError: If the name or an option is unknown: the message lists those there are.

    >>> from scoresde.tables import SDES
    >>> build("vp", SDES, beta_max=18.0)
    VPSDE(beta_min=0.1, beta_max=18.0)
    """
    if not isinstance(name, str):
        if options:
            raise UsageError(f"{what}: options {sorted(options)} go with a name, not with a ready object")
        return name
    return construct(resolve(name, table, what), what, name, options, table)


def construct(
    factory: Any, what: str, name: str, options: Mapping[str, Any], table: Mapping[str, str] | None = None
) -> Any:
    """Call a class or function with options that a user gave, and say in a :class:`UsageError` what is wrong."""
    fields = fields_of(factory)
    for option in options:
        if option not in fields:
            # such as a number of steps for an adaptive solver
            owners = ", ".join(n for n in table or {} if option in fields_of(resolve(n, table or {}, what)))
            others = f"; {option!r} is one of: {owners}" if owners else ""
            raise UsageError(f"{what} {name!r} has no option {option!r}; {closest(option, fields)}{others}")
    missing = [n for n, p in fields.items() if p.default is p.empty and n not in options]
    if missing:
        raise UsageError(f"{what} {name!r} needs a value for {', '.join(missing)}: --set {missing[0]}=...")
    try:
        return factory(**options)
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in options.items()) or "no options"
        raise UsageError(f"{what} {name!r} cannot be made with {given}: {error}") from error


def options_of(obj: Any) -> dict[str, Any]:
    """Return the fields of a frozen dataclass as a plain dict, or ``{}`` for any other object."""
    if not dataclasses.is_dataclass(obj):
        return {}
    return {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj) if f.init}


def name_of(obj: Any, table: Mapping[str, str]) -> str:
    """Return the table's name for the class of ``obj``, or ``"module:Class"``."""
    path = f"{type(obj).__module__}:{type(obj).__qualname__}"
    return next((name for name, known in table.items() if known == path), path)


def parse_value(text: str, default: Any = None) -> Any:
    """Read an option typed as text: bool, int, float, comma-separated tuple, ``none``, else the text itself.

    ``default`` tells ``1`` the number from ``1`` the float.

    >>> parse_value("1,2,4"), parse_value("true"), parse_value("3", 0.5), parse_value("abc")
    ((1, 2, 4), True, 3.0, 'abc')
    """
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("none", ""):
        return None
    if "," in text or isinstance(default, tuple):
        return tuple(parse_value(part) for part in text.split(",") if part.strip())
    for number in (int, float):
        try:
            value = number(lowered)
        except ValueError:
            continue
        return float(value) if isinstance(default, float) else value
    return text
