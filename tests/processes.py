"""Several processes that work together, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 240  # seconds until processes that wait for each other are killed


@dataclass
class Processes:
    """Processes of one world."""

    started: list[subprocess.Popen[str]]

    def send(self, rank: int, number: int) -> None:
        self.started[rank].send_signal(number)

    def kill(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()

    def wait(self) -> list[tuple[int, str, str]]:
        """The exit code, the output and the messages of each process."""
        found = []
        try:
            for process in self.started:
                out, err = process.communicate(timeout=PATIENCE)
                found.append((process.returncode, out, err))
        finally:
            self.kill()
        return found


def start(line: Sequence[str], size: int, cwd: Path) -> Processes:
    """Start ``python LINE`` in each of ``size`` processes, which find each other by the variables of torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        environment = os.environ | {k: str(v) for k, v in there.items()} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        started.append(
            subprocess.Popen(
                [sys.executable, *line], cwd=cwd, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return Processes(started)


def scoresde(line: str, cwd: Path, size: int = 2) -> Processes:
    """Start a command line in each process."""
    return start(["-m", "scoresde", *line.split()], size, cwd)


def scoresde_in_place(line: str, cwd: Path, size: int = 2) -> Processes:
    """Start a command line in each process, for which all data are too large for the memory."""
    code = "import scoresde.data.inplace as d; d.LARGE = 1; from scoresde.cli import main; main()"
    return start(["-c", code, *line.split()], size, cwd)


def when(there: Callable[[], bool], processes: Processes) -> None:
    """Wait until something is the case while the processes run."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline, "it never happens"
        assert any(p.poll() is None for p in processes.started), [p.communicate() for p in processes.started]
        time.sleep(0.02)


SIGTERM, SIGKILL = signal.SIGTERM, signal.SIGKILL
