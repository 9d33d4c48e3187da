"""The command-line interface, which parses arguments, calls the library and prints results.

This package does not contain any mathematics, and torch is not imported before a command runs. Each command has its own
file, and :mod:`.common` contains the code that several commands share. Results are printed to standard output, and
everything else to standard error. The exit codes are those of :mod:`scoresde.core.errors`.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import click

from ..core.errors import NumericalError, Preempted, ScoresdeError, Stopped, UsageError
from ..core.opened import out_of_memory, reason
from ..core.parallel import Lost, rank, ranks
from ..core.signals import Interrupts, check
from ..core.version import __version__
from .bench import bench
from .classifier import classifier
from .command import Group, echo, warned
from .config import config
from .data import data
from .demo import demo
from .ema import ema
from .evaluate import evaluate
from .info import info
from .interpolate import interpolate
from .likelihood import likelihood
from .list import list_names
from .page import page
from .plot import plot
from .reflow import reflow
from .sample import sample
from .train import train
from .tune import tune

__all__ = ["cli", "main"]


def _show_versions(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        click.echo(f"scoresde {__version__}, torch {version('torch')}")  # does not import torch, which takes seconds
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
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def cli(debug: bool) -> None:
    """Train, sample and evaluate score-based generative models in continuous time.

    \b
    scoresde train --sde vp                      # train on the built-in digits (takes a few minutes on a CPU)
    scoresde sample --solver ode --rtol 1e-5     # sample from the newest run
    scoresde likelihood                          # compute the bits/dim of held-out data
    """


for _verb in (
    data,
    train,
    sample,
    interpolate,
    tune,
    bench,
    likelihood,
    evaluate,
    classifier,
    plot,
    page,
    reflow,
    ema,
    info,
    config,
    list_names,
    demo,
):
    cli.add_command(_verb)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not rank():
        echo(warned(message), err=True)


def main(args: list[str] | None = None) -> None:
    """Run the command in ``args`` (default: ``sys.argv[1:]``), and exit with its exit code.

    Signal handlers are restored before the exit. If a signal ends the command, the exit code depends on the signal
    (:mod:`scoresde.core.errors`).
    """
    args = sys.argv[1:] if args is None else args
    before = warnings.showwarning
    try:
        with Interrupts() as interrupts:
            warnings.showwarning = _warn
            code = _outcome([a for a in args if a != "--debug"], "--debug" in args)
            _flush()  # while the signal handlers are still installed
            interrupts.forget()  # the result is complete, so a signal makes no difference now
    except (Preempted, Stopped) as stop:
        if not rank():
            click.echo(f"stopped: {stop}", err=True)
        code = stop.exit_code
    finally:
        warnings.showwarning = before
    sys.exit(code)


def _complain(text: str) -> None:
    """Print an error and, if there are several processes, say which of them it concerns."""
    echo(f"process {rank()} of {ranks()}: {text}" if rank() else text, err=True)


def _flush() -> None:
    """Flush standard output, and ignore failures."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # the process that reads the output has ended
        return


def _outcome(args: list[str], debug: bool) -> int:
    """Run a command, print any error, and return the exit code."""
    try:
        try:
            code = cli.main(args=args, prog_name="scoresde", standalone_mode=False)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            check()  # compiled code may turn a signal into its own error
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
        if not rank():
            echo(written.getvalue().removesuffix("\n"), err=True)
        return error.exit_code
    except ScoresdeError as error:
        if debug:
            raise
        # Of an error that all processes have, one is enough; and a lost connection follows from an error elsewhere.
        common = isinstance(error, NumericalError | UsageError) and error.parameter != "device"
        common = common or getattr(error, "common", False) or (isinstance(error, Lost) and rank() > 1)
        if not rank() or not common:
            _complain(f"error: {error}")
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) or out_of_memory(error):  # such as a full disk, or closed standard output
            where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            _complain(f"error: {where}{reason(error)}")
            return 3
        _complain(f"unexpected error: {type(error).__name__}: {error}\n(use --debug to show the traceback)")
        return 1
