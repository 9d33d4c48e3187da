"""``python -m scoresde`` is ``scoresde``: a process that is nothing but a command.

Until the command itself takes the signals (:mod:`scoresde.core.signals`), one of them ends the process with its exit
code, and nothing does after the command, when the result is out. Little is imported before that is so.
"""

import os
import signal

__all__ = ["main"]

CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75}


def _leave(number: int, _: object) -> None:
    os.write(2, f"{signal.Signals(number).name}: nothing was begun\n".encode())
    os._exit(CODES[signal.Signals(number).name])


def main() -> None:
    """Run the command line as the only thing that this process does."""
    numbers = [getattr(signal, name) for name in CODES if hasattr(signal, name)]
    for number in numbers:
        signal.signal(number, _leave)
    try:
        from .cli import main

        main()
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
