"""The command ``scoresde list``, which describes the names that the other commands accept.

The descriptions come from the tables and the docstrings.
"""

from __future__ import annotations

import inspect
import reprlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..core import tables
from ..core.errors import UsageError
from ..core.registry import closest, fields_of, resolve
from .command import first_line, verb
from .common import Session, session

__all__ = ["list_names"]

# Tables that have different names on the command line.
_CALLED = {
    "ANSWERS": "metrics-of-answers",
    "PARAMETRIZATIONS": "predictions",
    "RATES": "decays",
    "TIME_SAMPLERS": "t-samplers",
}
KINDS = {_CALLED.get(name, name.lower().replace("_", "-")): getattr(tables, name) for name in tables.__all__}
# Kinds whose entries have options.
OPTIONS = ("sdes", "solvers", "predictions", "weightings", "t-samplers", "decays", "networks", "operators", "spaces")
_short = reprlib.Repr()  # shortens long values, such as a table of a thousand betas


@verb(
    "list",
    short_help="List the names that options accept.",
    epilog="Set the options of an entry with --set, as in --set sde.beta_max=18. Options listed without a "
    "value are set from the data. The option of an operator or of a space follows a colon, as in --cond pool:2 or "
    "--space basis:dct.",
)
@click.argument("kind", required=False)
@session(first=("json",), only=("json",))
def list_names(kind: str | None, session: Session) -> None:
    """List all names of a KIND, such as solvers, with their descriptions and options.

    Without a KIND, list all kinds and their names.
    """
    if kind is None:
        names = {name: list(table) for name, table in KINDS.items()} | {"data": list(_data())}
        session.print(names, *_columns({name: ", ".join(entries) for name, entries in names.items()}))
        return
    if kind not in KINDS and kind != "data":
        raise UsageError(f"unknown kind {kind!r}; {closest(kind, [*KINDS, 'data'])}")
    entries = _data() if kind == "data" else {name: _entry(kind, name, value) for name, value in KINDS[kind].items()}
    lines = {}
    for name, entry in entries.items():
        options = [*entry.get("needs", ()), *(f"{k}={_short.repr(v)}" for k, v in entry.get("options", {}).items())]
        shown = entry.get("typed", name)
        lines[shown] = "\n".join(filter(None, (entry["what"], "  ".join(options).replace("'", ""))))
    told = {"kind": kind, "entries": [{"name": name, **entry} for name, entry in entries.items()]}
    session.print(told, *_columns(lines))


def _entry(kind: str, name: str, value: Any) -> dict[str, Any]:
    """Describe an entry of a table, with its options."""
    if isinstance(value, Mapping):  # a preset
        return {"what": "  ".join(f"{k}={v}" for k, v in value.items())}
    if not isinstance(value, str):
        return {"what": str(value)}
    found = resolve(name, KINDS[kind], kind)
    entry: dict[str, Any] = {"what": first_line(found)}
    if kind in OPTIONS:
        options = {k: p.default for k, p in fields_of(found).items()}
        if kind == "spaces":
            from ..codec.choice import typed_options

            options = {k: v for k, v in options.items() if k in typed_options(found)}
            entry["typed"] = f"{name}[:{next(iter(options)).upper()}]" if options else name
        if kind == "operators":
            from ..operators.choice import options_typed

            # The mask itself is not an option: it is read from the file whose name follows the colon.
            names = options_typed(found)
            options = {k: v for k, v in options.items() if k in names and k != "file"}
            first = names[0].upper() if names else ""
            entry["typed"] = f"{name}:{first}" if name == "mask" else f"{name}[:{first}]" if first else name
        entry["needs"] = [k for k, v in options.items() if v is inspect.Parameter.empty]
        entry["options"] = {k: v for k, v in options.items() if k not in entry["needs"]}
    return entry


def _data() -> dict[str, dict[str, Any]]:
    """Load and describe the built-in data sets."""
    from ..data import NAMES, load_data

    found = {}
    for name in NAMES:
        data = load_data(name)
        shape = " x ".join(map(str, data.info.shape))
        known = "; its density is known" if data.log_density is not None else ""
        words = data.info.known.words
        texts = f", each with a text ({len(words)} different words)" if words else ""
        count = data.info.n_train + data.info.n_test
        found[name] = {"what": f"{count:,} {data.info.kind}s of shape {shape}{texts}{known}"}
    return found


def _columns(lines: Mapping[str, str]) -> Iterator[str]:
    """Yield lines with names on the left and descriptions on the right."""
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        wrapped = [part for line in text.split("\n") for part in textwrap.wrap(line, 120 - width)]
        for i, line in enumerate(wrapped):
            yield f"{'' if i else name:{width}}{line}"
