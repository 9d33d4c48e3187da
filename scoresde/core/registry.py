"""Create objects from names, without importing any name that was read from a file.

Both ``build("vp", SDES, beta_max=18.0)`` and ``build("mymodule:MySDE", ..., typed=True)`` create an SDE. A name is
either a key in a table of ``"module:Class"`` strings (:mod:`scoresde.core.tables`) or such a string itself. Importing a
module runs its code, so all imports by name happen here, and what may be imported depends on where the name came from.
A name that a person *typed* may be any ``"module:Class"``, including a class in a module in the current folder. A name
that was *read* from a file is only looked up in the tables, and so are the names among the options of the object. Names
count as read by default, so no module is imported if the caller does not know the origin of a name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from .errors import CheckpointError, ScoresdeError, UsageError
from .limits import kinds_of
from .tables import MOVED

__all__ = [
    "FLAGS", "READ", "Typed", "build", "closest", "construct", "fields_of", "is_flag", "moved", "name_of", "options_of",
    "parse_value", "read_options", "resolve",
]  # fmt: skip

# Which names a person typed: all names (True), none (False), or the listed names. All others were read from files.
Typed = bool | Collection[str]
READ: Typed = ()

# For each kind of object, the parameter of `load`, `fit` or `reflow` that accepts the user's own name or object.
_PARAMETERS = {
    "SDE": "sde", "prediction": "predict", "weighting": "weighting", "time sampler": "t_sampler", "network": "network",
    "operator": "operator", "space": "space", "decay": "decay", "tracker": "track",
}  # fmt: skip


def _is_typed(name: str, typed: Typed) -> bool:
    return typed if isinstance(typed, bool) else name in typed


def closest(name: str, choices: Iterable[str]) -> str:
    """Return a hint for a misspelt name: the closest matches, followed by all choices."""
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}choose from: {', '.join(names) or '(none)'}"


def resolve(
    name: str, table: Mapping[str, str], what: str = "name", *, typed: Typed = READ, function: bool = False
) -> Any:
    """Return the class or function that ``name`` refers to.

    A user's function is wrapped, so that its unexpected errors are raised as ``UsageError``.

    Args:
        name: A key of ``table``, or ``"module:Name"``.
        table: A mapping from names to ``"module:Name"`` strings.
        what: The kind of object, as a noun for messages, such as ``"SDE"``.
        typed: Which names a person typed. Only these names may refer to a module that is not in the table.
        function: Whether to wrap a user's class as well.

    Raises:
        UsageError: If a typed name is unknown, if its module or attribute does not exist or cannot be imported, or if
            the attribute is neither a class nor a function.
        CheckpointError: If a name that was read from a file is not in the table.
    """
    name = moved(name)
    known = name in table
    if not known and not _is_typed(name, typed):
        parameter = _PARAMETERS.get(what)
        how = f" ({parameter}=)" if parameter else ""
        raise CheckpointError(
            f"the run refers to the {what} {name!r}, which is not a built-in; for safety, names read from files are "
            f"never imported, so pass the name again, or pass the object{how}",
            parameter=parameter,
            value=name,
        )
    path = table.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        raise UsageError(f"unknown {what} {name!r}; {closest(name, table)}; or pass your own as module:Name")
    loaded = importlib.import_module(module) if known else _imported(module, attribute, f"{what} {name!r}")
    if not hasattr(loaded, attribute):
        public = [n for n, value in vars(loaded).items() if callable(value) and not n.startswith("_")]
        raise UsageError(
            f"{what} {name!r}: module {module!r} ({getattr(loaded, '__file__', None) or 'built in'}) has no attribute "
            f"{attribute!r}; {closest(attribute, public)}"
        )
    found = getattr(loaded, attribute)
    if not callable(found):
        raise UsageError(f"{what} {name!r} is neither a class nor a function; its type is {type(found).__name__}")
    return found if known or (inspect.isclass(found) and not function) else _own(found, f"{what} {name!r}")


def _imported(module: str, attribute: str, what: str) -> Any:
    """Import a module that a person named, from the current folder or the installed packages."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        if module.startswith("."):  # a relative name, but there is no package that it could be relative to
            raise ModuleNotFoundError(name=module)
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):  # the module imports a missing module
            raise UsageError(f"{what}: {module} imports a module that cannot be found: {error}") from error
        if module.endswith(".py"):
            raise UsageError(f"{what}: omit the .py and use {module[:-3]}:{attribute}") from None
        raise UsageError(
            f"{what}: there is no module {module!r} in {here} or among the installed packages; "
            f"run from the folder that contains {module}.py"
        ) from None
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what}: importing {module} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)


def _own(function: Any, what: str) -> Any:
    """Wrap a user's function so that its unexpected errors become a ``UsageError`` that names the function."""

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except ScoresdeError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(f"{what} failed: {type(error).__name__}: {error}") from error

    return called


def fields_of(factory: Any) -> dict[str, inspect.Parameter]:
    """Return the options of a class or function, keyed by name, or an empty dict if it has no signature."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some functions written in C
        return {}
    return {
        name: p
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"
    }


def build(
    name: str | Any, table: Mapping[str, str], what: str = "name", options: Mapping[str, Any] | None = None, /, *,
    typed: Typed = READ, kind: type | None = None, **more: Any,
) -> Any:  # fmt: skip
    """Build the object that ``name`` refers to, or return ``name`` itself if it is not a string.

    Args:
        name, table, what, typed: As in :func:`resolve`.
        options: The options to pass to the constructor. Names of any kind are possible, such as ``kind`` or ``name``.
        kind: The class that a new object must be an instance of.
        more: More options.

    Raises:
        UsageError: If the name or an option is unknown (the message lists the known names), or if the new object is not
            an instance of ``kind``.
        CheckpointError: If the name, or a name among the options, was read from a file and is not in a table.

    >>> from scoresde.core.tables import SDES
    >>> build("vp", SDES, beta_max=18.0)
    VPSDE(beta_min=0.1, beta_max=18.0)
    """
    options = {**(options or {}), **more}
    if not isinstance(name, str):
        if options:
            raise UsageError(f"{what}: options {sorted(options)} can be passed only with a name, not with an object")
        return name
    made = construct(resolve(name, table, what, typed=typed), what, name, options, table, typed=typed)
    if kind is not None and not isinstance(made, kind):
        raise UsageError(
            f"{what} {name!r} creates an object of type {type(made).__name__}, which is not a subclass of "
            f"{kind.__module__}.{kind.__name__}"
        )
    return made


def construct(
    factory: Any,
    what: str,
    name: str,
    options: Mapping[str, Any],
    table: Mapping[str, str] | None = None,
    *,
    typed: Typed = READ,
) -> Any:
    """Call a class or function with the options that a user chose, and return the result.

    The value of an option may itself be a name that the constructed object looks up later, such as the name of a
    solver's grid. The object cannot tell whether a person typed this name, so ``module:Name`` values that were read
    from a file are rejected here.

    Raises:
        UsageError: If an option is unknown, missing or invalid.
        CheckpointError: If an option that was read from a file is a ``module:Name`` string.
    """
    _refuse_unlisted(options, f"{what} {name!r}", typed)
    fields = fields_of(factory)
    _refuse_unknown(options, fields, what, name, table)
    missing = [n for n, p in fields.items() if p.default is p.empty and n not in options]
    if missing:
        raise UsageError(f"{what} {name!r} requires a value for {', '.join(missing)}", parameter=missing[0])
    try:
        return factory(**options)
    except UsageError as error:
        if error.parameter in fields and what in _PARAMETERS:  # add the owner of the field
            error.parameter = f"{_PARAMETERS[what]}.{error.parameter}"
        raise
    except (Exception, SystemExit) as error:
        if name in (table or {}) and not isinstance(error, TypeError | ValueError | RuntimeError | ArithmeticError):
            raise  # a bug in this package
        given = ", ".join(f"{k}={v!r}" for k, v in options.items()) or "no options"
        raise UsageError(f"{what} {name!r} cannot be created with {given}: {error}") from error


def _refuse_unknown(
    options: Iterable[str], fields: Collection[str], what: str, name: str, table: Mapping[str, str] | None
) -> None:
    """Reject an unknown option, and say which entries of the table have an option of that name."""
    for option in options:
        if option not in fields:
            # For example, an adaptive solver has no number of steps.
            owners = ", ".join(n for n in table or {} if option in fields_of(resolve(n, table or {}, what)))
            others = f"; {option!r} is an option of: {owners}" if owners else ""
            named = f"{what} {name!r}" if name else what
            raise UsageError(f"{named} has no option {option!r}; {closest(option, fields)}{others}")


def _refuse_unlisted(value: Any, where: str, typed: Typed) -> None:
    """Check that a person typed every ``module:Name`` string in ``value``."""
    if isinstance(value, str):
        # Reject any colon, because the import system accepts module names that do not look like one.
        if ":" in value and not _is_typed(value, typed):
            raise CheckpointError(
                f"the run sets an option of the {where} to {value!r}; for safety, names read from files are never "
                "imported, so create the object yourself and pass it"
            )
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _refuse_unlisted(key, where, typed)
            _refuse_unlisted(part, where, typed)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            _refuse_unlisted(part, where, typed)


def options_of(obj: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that its constructor accepts, or ``{}`` for any other object."""
    if not dataclasses.is_dataclass(obj):
        return {}
    return {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj) if f.init}


def moved(name: str) -> str:
    """Return the current form of a name that an earlier version may have written, such as ``"scoresde.paths:Shifted"``.

    >>> moved("scoresde.paths:Shifted"), moved("vp"), moved("mine:SDE")
    ('scoresde.sde.modified:Shifted', 'vp', 'mine:SDE')
    """
    module, colon, attribute = name.partition(":")
    return MOVED.get(name) or (f"{MOVED.get(module, module)}:{attribute}" if colon else name)


def name_of(obj: Any, table: Mapping[str, str]) -> str:
    """Return the table's name for a class, function or object, or ``"module:Class"`` if the table does not list it."""
    named = obj if inspect.isfunction(obj) or inspect.isclass(obj) else type(obj)
    path = f"{named.__module__}:{named.__qualname__}"
    return next((name for name, known in table.items() if known == path), path)


def parse_value(text: str) -> Any:
    """Parse a flag, ``none``, a comma-separated tuple or a number from text. Return any other text unchanged.

    >>> parse_value("1,2,4"), parse_value("yes"), parse_value("3"), parse_value("abc")
    ((1, 2, 4), True, 3, 'abc')
    """
    lowered = text.strip().lower()
    if lowered in FLAGS:
        return FLAGS[lowered]
    if lowered in ("none", ""):
        return None
    if "," in text:
        return tuple(parse_value(part) for part in text.split(",") if part.strip())
    for number in (int, float):
        with suppress(ValueError):
            return number(lowered)
    return text


# The words that mean true or false.
FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_NOUNS = {
    "bool": "yes or no", "int": "an integer", "float": "a number", "tuple": "values separated by commas",
    "None": "none",
}  # fmt: skip


def is_flag(field: inspect.Parameter) -> bool:
    """Return whether a field is a flag, that is, whether its type is ``bool`` or ``bool | None``."""
    return kinds_of(field.annotation) in ({"bool"}, {"bool", "None"})


def read_options(
    factory: Any, what: str, name: str, texts: Mapping[str, str], table: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Parse the options of a class or function from text, each according to the type of its field.

    Args:
        factory: The class or function.
        what, name: The kind of object and its name, for messages.
        texts: The values as text, keyed by option name.
        table: A table of names. The message about an unknown option lists the entries of the table that have it.

    Raises:
        UsageError: If an option is unknown, or if its text is not a valid value.

    >>> from scoresde import VPSDE
    >>> read_options(VPSDE, "SDE", "vp", {"beta_max": "18"})
    {'beta_max': 18.0}
    """
    fields = fields_of(factory)
    _refuse_unknown(texts, fields, what, name, table)
    return {option: _read(option, text, fields[option], f"{what} {name!r}: " * bool(name)) for option, text in
            texts.items()}  # fmt: skip


def _read(option: str, text: str, field: inspect.Parameter, where: str) -> Any:
    kinds, value, lowered = kinds_of(field.annotation), parse_value(text), text.strip().lower()
    if "None" in kinds and lowered in ("none", ""):
        return None
    if "bool" in kinds and isinstance(value, bool):
        return value
    for kind, number in (("int", int), ("float", float)):
        if kind in kinds:
            with suppress(ValueError):
                return number(lowered)
    numbers = isinstance(value, tuple) and not any(isinstance(part, str) for part in value)
    if "tuple" in kinds and ("str" not in kinds or numbers):
        return value if isinstance(value, tuple) else (value,)
    if "str" in kinds:
        # A grid may also be given as a list of times.
        return value if numbers else lowered if lowered == "none" else text
    if kinds - set(_NOUNS) or not kinds:
        return value
    takes = ", or ".join(noun for kind, noun in _NOUNS.items() if kind in kinds)
    shown = value if isinstance(value, int | float) and not isinstance(value, bool) else text
    raise UsageError(f"{where}{option} is {shown!r}; it must be {takes}", parameter=option)
