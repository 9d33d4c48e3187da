"""What the pictures share: where they are written, and how they are reported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...build import closest
from ...errors import UsageError
from ..common import F, print_json, sde_option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["out_option", "own_sde", "report", "target", "write"]

FORMATS = ("png", "pdf", "svg")


def out_option(command: F) -> F:
    return click.option(
        "--out", type=click.Path(path_type=Path), metavar="FILE",
        help=f"File to write: {', '.join(FORMATS)}.  [default: RUN/plots/NAME.png]",
    )(command)  # fmt: skip


def own_sde(command: F) -> F:
    return sde_option("The run's SDE, if it is your own: module:Class.", None)(command)


def target(out: Path | None, default: Path) -> Path:
    """The file to write, refused before anything is computed."""
    file = out or default
    suffix = file.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"--out {file}: a picture is a file in one of {', '.join(FORMATS)}; {closest(suffix, FORMATS)}"
        )
    return file


def write(file: Path, figure: Figure, as_json: bool, facts: dict[str, Any]) -> None:
    """Write the picture and say where it is."""
    from ...plot import save_figure

    save_figure(file, figure)
    report([file], as_json, facts)


def report(files: list[Path], as_json: bool, facts: dict[str, Any]) -> None:
    names = [str(f) for f in files]
    if as_json:
        print_json({**facts, "files": names})
    else:
        click.echo("\n".join(names))
