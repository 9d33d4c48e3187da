"""``scoresde data``: what is in a data set, before anything is trained on it."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from ..core.text import one_line
from .command import Group, flags
from .common import Session, reading_options, session

if TYPE_CHECKING:
    from ..data import DataInfo, Look, Reading

__all__ = ["data"]

FEW = 5_000  # pictures, below which a network repeats them
LARGE = 40  # pixels of a side, above which the network wants a GPU


@click.group(cls=Group)
def data() -> None:
    """Data sets: what is in them, and what is wrong with them."""


@data.command(
    "inspect",
    short_help="Say all that is wrong with data, or what they are.",
    epilog="\b\nExamples:\n  scoresde data inspect photos/\n  scoresde data inspect photos/ --size 64 --fit crop",
)
@click.argument("path")
@reading_options(first=True)
@session(first=("json",), only=("json",))
def inspect(path: str, reading: Reading, session: Session) -> None:
    """Read PATH, a folder of pictures or whatever else --data of train takes, as train would: list everything that is
    wrong with it at once, each with the options that answer it, or say what is in it and how it is split. Nothing is
    written. The exit code is 0 if train would take the data as they are, with these options, and 3 if not.
    """
    from ..data import look

    context = click.get_current_context()
    found = look(path, reading=reading)
    problems: list[dict[str, Any]] = [
        {"message": p.message, "answers": dict(p.answers), "options": flags(context, p.answers)} for p in found.problems
    ]
    answered = None if found.answers is None else _command(context, path, reading, found.answers)
    lines = [_listed(path, problems), *found.notes] if problems else _described(found)
    if found.dataset is not None:
        lines += [f"note: {advice}" for advice in _advised(found.dataset.info)]
    if answered or os.path.exists(path):
        lines.append(f"train with: {answered}" if answered else "what no option answers must be changed in the data")
    facts = {
        "data": path, "problems": problems, "notes": list(found.notes), "command": answered, "found": found.facts(),
    }  # fmt: skip
    session.print(facts, *lines)
    if problems:
        context.exit(3)


def _command(context: click.Context, path: str, reading: Reading, answers: Any) -> str:
    """How training is started on these data."""
    typed = {"size": reading.size, "fit": reading.fit, "layout": reading.layout, "on_bad": reading.on_bad}
    chosen = {k: v for k, v in typed.items() if v not in (0, "", "auto", "stop")} | dict(answers)
    options = flags(context, chosen).replace("scoresde train ", "")
    return f"scoresde train --data {shlex.quote(path)} {options}".rstrip()


def _listed(path: str, problems: list[dict[str, Any]]) -> str:
    """The problems, numbered, each with its options."""
    texts = [f"{p['message']}{' (here: {})'.format(p['options']) * bool(p['options'])}" for p in problems]
    count = f"{len(texts)} problem{'s' * (len(texts) > 1)}"
    return "\n".join([f"{path}: {count}", *(f"{i}. {text}" for i, text in enumerate(texts, 1))])


def _described(found: Look) -> list[str]:
    """What the data are."""
    assert found.dataset is not None
    lines = [found.dataset.describe()]
    if found.classes:
        counts = [f"{one_line(name)} ({n} + {m})" for name, (n, m) in found.classes.items()]
        more = ", ..." if len(counts) > 10 else ""
        lines.append(f"training + test samples of each: {', '.join(counts[:10])}{more}")
    return lines


def _advised(info: DataInfo) -> list[str]:
    """What might suit pictures of this number and size."""
    if info.kind != "image":
        return []
    advice = []
    if info.n_train + info.n_test < FEW:
        advice.append(
            f"fewer than {FEW:,} pictures: --augment of scoresde train shows them flipped, shifted and scaled as well, "
            "and samples are not"
        )
    if max(info.shape[1:]) > LARGE:
        advice.append(f"pictures of more than {LARGE} pixels train slowly without a GPU: --size 32 makes them smaller")
    return advice
