"""The commands ``scoresde config show`` and ``scoresde config diff``."""

from __future__ import annotations

import click

from .command import Group, option, verb
from .common import Session, edited_option, session

__all__ = ["config"]


@click.group(cls=Group)
def config() -> None:
    """Show the settings of a run, or what differs between two runs.

    \b
    scoresde config show runs/a > a.toml     # train again with: scoresde train --config a.toml
    scoresde config diff runs/a runs/b       # why do their figures differ?
    """


@verb(
    short_help="Print settings that train --config reads.",
    epilog="Examples:\n  scoresde config show runs/photos > photos.toml\n  scoresde config show photos.toml --json",
)
@click.argument("source", required=False, metavar="[RUN|FILE]")
@option("--all", "everything", under="Settings", first=True, is_flag=True,
        help="Also print the settings that have their default values.")  # fmt: skip
@edited_option
@session(first=("json",), only=("json", "quiet"))
def show(source: str | None, everything: bool, edited: bool, session: Session) -> None:
    """Print the settings of a RUN (default: the newest) or a FILE, as TOML or, with --json, as JSON.

    In a run, all automatic choices have been made. Settings with their default values are left out.
    """
    from ..run.files import find_run
    from ..run.settings import nested, read_settings, settings_json, settings_text

    if source is None:
        source = str(find_run(None, edited=edited))
        session.say(f"no run is named, so the newest is used: {source}")
    read = read_settings(source, edited=edited)
    stated = nested(read.config, dtype=read.dtype, everything=everything)
    session.print(settings_json(stated), *([] if session.json else [settings_text(stated)]))


@verb(
    short_help="Compare two runs.",
    epilog="Example:\n  scoresde config diff runs/digits-vp-seed0 runs/digits-vp-seed1",
)
@click.argument("first", metavar="RUN_A")
@click.argument("second", metavar="RUN_B")
@option("--all", "everything", under="Comparison", first=True, is_flag=True,
        help="Also show the differences that do not change the weights, such as dates.")  # fmt: skip
@edited_option
@session(first=("json",), only=("json", "quiet"))
def diff(first: str, second: str, everything: bool, edited: bool, session: Session) -> None:
    """Show what differs between two runs: why do their figures differ?

    The data, the model, the settings, the training and the environment are compared, in this order.
    """
    from ..run.differences import compare

    found = compare(first, second, edited=edited)
    session.print(found.facts(), found.text(everything=everything))


for _verb in (show, diff):
    config.add_command(_verb)
