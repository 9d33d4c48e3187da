"""The commands ``scoresde data``, which inspect and pack data sets before a model is trained on them."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..core.text import one_line
from .command import Group, flags, option
from .common import Session, reading_options, session

if TYPE_CHECKING:
    from ..data import DataInfo, Look, Reading
    from ..data.given import Sources

__all__ = ["data"]

FEW = 5_000  # a network trained on fewer images tends to reproduce them
LARGE = 40  # a network for images with more pixels per side needs a GPU


@click.group(cls=Group)
def data() -> None:
    """Inspect and pack data sets before training on them."""


@data.command(
    "inspect",
    short_help="List all problems with a data set, or describe it if there are none.",
    epilog="\b\nExamples:\n  scoresde data inspect photos/\n  scoresde data inspect photos/ --size 64 --fit crop",
)
@click.argument("path")
@option("--cond", under="Data", first=True, default="none", metavar="TEXT",
        help="Condition of each sample, as in `scoresde train`. It determines which columns of a table are data, and "
             "whether cells may be empty.")  # fmt: skip
@reading_options(first=True)
@session(first=("json",), only=("json",))
def inspect(path: str, cond: str, reading: Reading, session: Session) -> None:
    """Read the data at PATH as `scoresde train` would, without writing anything.

    PATH is a folder of images, or anything else that `scoresde train --data` accepts. The command prints all problems
    with the data at once, and the options that solve them. If there are no problems, it describes the data and their
    split.

    The exit code is 0 if `scoresde train` accepts the data with these options, and 3 otherwise.
    """
    from ..data import look
    from ..run.config import TrainConfig

    context = click.get_current_context()
    config = TrainConfig(cond=cond)
    found = look(path, reading=replace(reading, columns=config.reading.columns, empty=config.reading.empty))
    problems: list[dict[str, Any]] = [
        {"message": p.message, "answers": dict(p.answers), "options": flags(context, p.answers)} for p in found.problems
    ]
    answered = None if found.answers is None else _command(context, path, cond, reading, found.answers)
    lines = [_listed(path, problems), *found.notes] if problems else _described(found)
    if found.dataset is not None:
        lines += [f"warning: {values}" for values in found.dataset.unusual]
    if found.dataset is not None:
        lines += [f"note: {advice}" for advice in _advised(found.dataset.info, config.sources)]
    if answered or os.path.exists(path):
        lines.append(
            f"train with: {answered}" if answered else "change the data to fix the problems that no option solves"
        )
    facts = {
        "data": path, "problems": problems, "notes": list(found.notes), "command": answered, "found": found.facts(),
    }  # fmt: skip
    session.print(facts, *lines)
    if problems:
        context.exit(3)


@data.command(
    "pack",
    short_help="Pack data into an array or into archives, which are read without unpacking them.",
    epilog="\b\nExamples:\n  scoresde data pack photos/ photos.zip\n"
           "  scoresde data pack photos/ photos.npy --size 64 --fit crop",
)  # fmt: skip
@click.argument("path")
@click.argument("out")
@reading_options()
@session(first=("json",), only=("json", "quiet"))
def pack(path: str, out: str, reading: Reading, session: Session) -> None:
    """Pack the data at PATH into OUT, so that few large files take the place of many small ones.

    The suffix of OUT determines the format. An archive (.zip, .tar, .parquet or, without a suffix, a folder of .tar
    files) holds picture files as they are, with their class folders, texts and given pictures. An array (.npy) holds
    decoded pictures or the rows of another array or table, and has a second file beside it, such as photos.keys.npz.

    Training on OUT instead of PATH gives the same split, the same batches and the same results.
    """
    from pathlib import Path

    from ..core.progress import Progress
    from ..data.pack import pack as write

    shown: list[Progress] = []
    with ExitStack() as held:

        def watch(done: int, of: int) -> None:
            if not shown:
                shown.append(held.enter_context(Progress(of, "pack", quiet=session.quiet)))
            shown[0].update(done - shown[0].done)

        source, target = (Path(os.path.expanduser(one)) for one in (path, out))
        found = write(source, target, reading, watch)
    size = sum(file.stat().st_size for file in found.files)
    more = f" in {len(found.files)} files" if len(found.files) > 1 else ""
    session.print(
        {"path": str(found.path), "rows": found.count, "bytes": size, "files": list(map(str, found.files))},
        f"{found.path}: {found.count:,} samples, {size / 1e6:,.1f} MB{more}",
        f"train with: scoresde train --data {shlex.quote(str(found.path))}",
    )


def _command(context: click.Context, path: str, cond: str, reading: Reading, answers: Any) -> str:
    """Return the command line that trains on these data."""
    typed = {
        "cond": cond, "size": reading.size, "fit": reading.fit, "layout": reading.layout, "on_bad": reading.on_bad,
    }  # fmt: skip
    chosen = {k: v for k, v in typed.items() if v not in (0, "", "auto", "stop", "none")} | dict(answers)
    options = flags(context, chosen).replace("scoresde train ", "")
    return f"scoresde train --data {shlex.quote(path)} {options}".rstrip()


def _listed(path: str, problems: list[dict[str, Any]]) -> str:
    """Format the problems as a numbered list, with the options that solve them."""
    texts = [
        f"{p['message']}{' (on the command line: {})'.format(p['options']) * bool(p['options'])}" for p in problems
    ]
    count = f"{len(texts)} problem{'s' * (len(texts) > 1)}"
    return "\n".join([f"{path}: {count}", *(f"{i}. {text}" for i, text in enumerate(texts, 1))])


def _described(found: Look) -> list[str]:
    assert found.dataset is not None
    lines = [found.dataset.describe()]
    if found.classes:
        counts = [f"{one_line(name)} ({n} + {m})" for name, (n, m) in found.classes.items()]
        more = ", ..." if len(counts) > 10 else ""
        lines.append(f"training + test samples per class: {', '.join(counts[:10])}{more}")
    return lines


def _advised(info: DataInfo, sources: Sources) -> list[str]:
    """Suggest training options that suit the data."""
    advice = []
    known = {
        "vector": ("the numbers", info.known.vector and not sources.vector),
        "image": ("the other images", info.known.image and not sources.image),
        "text": ("the texts", (info.known.words or info.known.features) and not sources.text),
    }
    for name, (what, unused) in known.items():
        if unused:
            advice.append(
                f"scoresde train uses {what} only with --cond {name}; scoresde sample --given can then "
                "condition samples on them"
            )
    if info.classes and not sources.label:
        advice.append(
            "scoresde train uses the classes only with --cond class; scoresde sample --label can then draw samples of "
            "one class"
        )
    if info.kind != "image":
        return advice
    if info.n_train + info.n_test < FEW:
        advice.append(
            f"for fewer than {FEW:,} images, consider --augment: the network is then also trained on flipped, shifted "
            "and scaled images, but the samples still look like the originals"
        )
    if max(info.shape[1:]) > LARGE:
        advice.append(
            f"training on images with more than {LARGE} pixels per side is slow without a GPU; use --size 32 to shrink "
            "them"
        )
    return advice
