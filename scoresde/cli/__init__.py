"""The command line: parse, call, print. No mathematics here, and no torch before a command runs.

One file a verb; :mod:`.common` has what they share. Standard output carries results, standard error talks. Exit codes
are those of :mod:`scoresde.core.errors`.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import click

from ..core.errors import Preempted, ScoresdeError, Stopped
from ..core.opened import out_of_memory, reason
from ..core.signals import Interrupts, check
from ..core.version import __version__
from .bench import bench
from .classifier import classifier
from .command import Group, echo, warned
from .data import data
from .demo import demo
from .evaluate import evaluate
from .info import info
from .likelihood import likelihood
from .list import list_names
from .plot import plot
from .reflow import reflow
from .sample import sample
from .train import train

__all__ = ["cli", "main"]


def _show_versions(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        click.echo(f"scoresde {__version__}, torch {version('torch')}")  # of its metadata: to import it takes seconds
        context.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of scoresde and torch and exit.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Score-based generative models in continuous time: train, sample, score.

    \b
    scoresde train --sde vp                      # the embedded digits, a few minutes on a CPU
    scoresde sample --solver ode --rtol 1e-5     # from the newest run
    scoresde likelihood                          # bits/dim of held-out data
    """


for _verb in (data, train, sample, bench, likelihood, evaluate, classifier, plot, reflow, info, list_names, demo):
    cli.add_command(_verb)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    echo(warned(message), err=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened; handlers of signals are as before when it returns.

    Signals end it with exit codes of their own (:mod:`scoresde.core.signals`).
    """
    args = sys.argv[1:] if args is None else args
    before = warnings.showwarning
    try:
        with Interrupts() as interrupts:
            warnings.showwarning = _warn
            code = _outcome([a for a in args if a != "--debug"], "--debug" in args)
            _flush()
            interrupts.forget()  # one that makes no difference any more
    except (Preempted, Stopped) as stop:
        click.echo(f"error: {stop}", err=True)
        code = stop.exit_code
    finally:
        warnings.showwarning = before
    sys.exit(code)


def _flush() -> None:
    """What was printed is out before signals are let loose again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # whoever read it is gone
        return


def _outcome(args: list[str], debug: bool) -> int:
    """The exit code of a command, whose error is printed."""
    try:
        try:
            code = cli.main(args=args, prog_name="scoresde", standalone_mode=False)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            check()  # compiled code makes errors of its own of a signal
            raise
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt) as stop:
        cause = stop if isinstance(stop, Stopped) else stop.__cause__
        if isinstance(cause, Stopped):
            raise cause from None
        return Stopped.exit_code
    except click.ClickException as error:
        if debug:
            raise
        written = io.StringIO()
        error.show(written)
        echo(written.getvalue().removesuffix("\n"), err=True)
        return error.exit_code
    except ScoresdeError as error:
        if debug:
            raise
        echo(f"error: {error}", err=True)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) or out_of_memory(error):  # of a disk that is full, or of standard output
            where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            echo(f"error: {where}{reason(error)}", err=True)
            return 3
        echo(f"unexpected error: {type(error).__name__}: {error}\n(--debug shows the traceback)", err=True)
        return 1
