"""The command line in this process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from scoresde.cli import main
from scoresde.core import parts

# A module of the user's, which leaves a mark when it is imported.
OWN = """
import math
from dataclasses import dataclass
from pathlib import Path
import torch
from scoresde import SDE

Path("imported").touch()

@dataclass(frozen=True)
class MySDE(SDE):
    def alpha(self, t): return torch.cos(math.pi / 2 * t)
    def sigma(self, t): return torch.sin(math.pi / 2 * t)
"""


class Shell:
    """``shell("sample --n 4")`` in this process: exit code, standard output and standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, line: str, code: int = 0) -> str:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        self.out, self.err = self.capsys.readouterr()
        assert stop.value.code == code, f"exit code {stop.value.code}\n{self.out}\n{self.err}"
        return self.out

    def json(self, line: str) -> dict[str, object]:
        out = self(f"{line} --json")
        assert out.count("\n") == 1 and out.endswith("\n")

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        found = json.loads(out, parse_constant=refuse)
        assert isinstance(found, dict)
        return found

    def refuses(self, line: str, code: int, *words: str) -> str:
        """The command fails with one paragraph that has the words in it, and prints no result."""
        out = self(line, code)
        assert out == ""
        assert "Traceback" not in self.err and "unexpected error" not in self.err, self.err
        start = self.err.lower().rfind("error:")
        message = self.err[start:]
        assert start >= 0 and message.count("\n") == 1, f"not one paragraph: {self.err}"
        for word in words:
            assert word in message, f"{word!r} is not in {message!r}"
        return message


def stop_after(patch: pytest.MonkeyPatch, count: int, number: int = signal.SIGTERM) -> None:
    """Have the operating system send a signal once so many parts are written."""
    real, written = parts.write_tensors, [0]

    def write(*args: Any) -> Path:
        path = real(*args)
        written[0] += 1
        if written[0] == count:
            os.kill(os.getpid(), number)
        return path

    patch.setattr(parts, "write_tensors", write)
