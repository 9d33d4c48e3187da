"""Functions that write pictures and print their paths, for all plot commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.errors import UsageError
from ...core.registry import closest
from ..command import option
from ..common import Decorator, Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["picture_option", "report", "target", "write"]

FORMATS = ("png", "pdf", "svg")


def picture_option(default: str) -> Decorator:
    """Add ``--out``, the file of a picture."""
    return option(
        "--out", under="Files", first=True, type=click.Path(path_type=Path), metavar="FILE",
        help=f"File to write (formats: {', '.join(FORMATS)}).  [default: {default}]",
    )  # fmt: skip


def target(out: Path | None, default: Path) -> Path:
    """Return the path to the picture to write. An unknown format is rejected before anything is computed."""
    file = out or default
    suffix = file.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"--out {file}: a picture cannot be written as {file.suffix or 'a file without a suffix'}; "
            f"{closest(suffix, FORMATS)}"
        )
    return file


def write(session: Session, file: Path, figure: Figure, facts: dict[str, Any]) -> None:
    """Write the picture and print its path."""
    from ...plot import save_figure

    save_figure(file, figure)
    report(session, [file], facts)


def report(session: Session, files: list[Path], facts: dict[str, Any]) -> None:
    """Print the paths to the pictures."""
    names = [str(f) for f in files]
    session.print({**facts, "files": names}, *names)
