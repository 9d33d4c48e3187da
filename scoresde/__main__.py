"""The entry point of the command line, for both ``python -m scoresde`` and ``scoresde``.

Until the command handles signals itself (:mod:`scoresde.core.signals`), a signal ends the process with the exit code
for that signal. Once the command has finished and its result has been written, signals are ignored. The handlers are
installed before most modules are imported.
"""

import os
import signal

__all__ = ["main"]

CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75}


def _leave(number: int, _: object) -> None:
    os.write(2, f"{signal.Signals(number).name}: stopped before any work was started\n".encode())
    os._exit(CODES[signal.Signals(number).name])


def main() -> None:
    """Run the command line, and take over the signal handling of the whole process."""
    if "WORLD_SIZE" in os.environ:  # a connection that is lost because another process ends is told in one line
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
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
