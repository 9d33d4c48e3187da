"""Record where a run was trained: the versions, the device, the threads and the command of each session.

A session is one call that trains a run, from its start or from a checkpoint. ``env.json`` in the run folder lists all
sessions of a run, so that a reader can tell why the figures of two runs differ. Training does not depend on this file,
and a run without it, such as a run of an earlier version, is complete. Environment variables, user names and names of
machines are never recorded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import CheckpointError
from ..core.files import read_object, write_json
from ..core.text import one_line
from ..core.version import __version__

__all__ = ["ENVIRONMENT", "in_words", "keep_session", "session_of", "sessions_of"]

ENVIRONMENT = "env.json"
PACKAGE = Path(__file__).resolve().parents[1]
WORDS = 200  # maximum number of words of a command that are kept
SECRET = re.compile(r"(token|secret|passw|credential|api.?key)", re.IGNORECASE)


def session_of(
    device: torch.device, dtype: torch.dtype, *, seed: int = 0, processes: int = 1, step: int = 0,
    threads: int | None = None, lanes: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Describe the current session as plain JSON values.

    Args:
        device, dtype: Device and precision of the training.
        seed: Seed of the run.
        processes: Number of processes that train together.
        step: Number of training steps that were done before the session.
        threads: Number of threads (default: that of PyTorch's operations).
        lanes: Number of threads that each evaluate a part of a batch.
    """
    gpu = device.type == "cuda"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "seed": seed,
        "scoresde": __version__, "commit": _commit(PACKAGE.parent), "code": _code(), "torch": torch.__version__,
        "numpy": np.__version__, "python": platform.python_version(), "platform": platform.platform(),
        "cpu": _cpu(), "cpus": _cpus(), "threads": threads or torch.get_num_threads(), "lanes": lanes,
        "processes": processes,
        "device": device.type, "device_name": torch.cuda.get_device_name(device) if gpu else None,
        "cuda": torch.version.cuda if gpu else None, "dtype": str(dtype).removeprefix("torch."),
        "matmul": torch.get_float32_matmul_precision(), "command": _command(sys.argv),
    }  # fmt: skip


def keep_session(folder: Path, session: Mapping[str, Any], *, new: bool) -> None:
    """Write a session to ``env.json`` in a run folder, after the earlier sessions unless the run is ``new``."""
    before = [] if new else sessions_of(folder)
    write_json(folder / ENVIRONMENT, {"sessions": [*before, session]})


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    """Read the sessions of a run, oldest first. The list is empty if they were not recorded or cannot be read."""
    path = folder / ENVIRONMENT
    if not os.path.lexists(path):
        return []
    try:
        found = read_object(path).get("sessions")
    except CheckpointError as error:
        warnings.warn(f"the environment of the run is left out: {error}", stacklevel=2)
        return []
    return [session for session in found if isinstance(session, dict)] if isinstance(found, list) else []


def in_words(sessions: Sequence[Mapping[str, Any]]) -> str:
    """Describe the sessions of a run in one line, or return "" if there are none."""
    if not sessions:
        return ""
    last = sessions[-1]
    threads, processes = last.get("threads"), last.get("processes")
    parts = [
        f"scoresde {last.get('scoresde')}" + (f" ({str(last['commit'])[:9]})" if last.get("commit") else ""),
        f"torch {last.get('torch')}",
        f"{last.get('device_name') or last.get('cpu') or last.get('device')}",
        f"{threads} thread{'s' * (threads != 1)}",
        *([f"{processes} processes"] if isinstance(processes, int) and processes > 1 else []),
        f"{last.get('dtype')}",
        *([f"{len(sessions)} sessions"] if len(sessions) > 1 else []),
    ]
    return one_line(", ".join(parts))


@functools.cache
def _code() -> str:
    """Return a short digest of the source files of this package."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def _commit(root: Path) -> str | None:
    """Return the git commit that is checked out in the folder ``root``, or ``None`` if it is not a checkout.

    The files of git are read directly, because a call of git could run the commands of its configuration.
    """
    git = common = root / ".git"
    try:
        if git.is_file():  # one of several working trees
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
            common = git / (git / "commondir").read_text(encoding="utf-8").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref:"):
            name = head.removeprefix("ref:").strip()
            loose = common / name
            if loose.is_file():
                head = loose.read_text(encoding="utf-8").strip()
            else:
                lines = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
                head = next((line.split()[0] for line in lines if line.endswith(f" {name}")), "")
    except (OSError, ValueError):
        return None
    return head if re.fullmatch(r"[0-9a-f]{40,64}", head) else None


def _cpu() -> str:
    """Return the model of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _command(words: Sequence[str]) -> str:
    """Return the command line as it was typed, without values that look like secrets."""
    if not words:
        return ""
    program = Path(words[0])
    own = program.stem == "scoresde" or program.parts[-2:] == ("scoresde", "__main__.py")
    shown, hide = ["scoresde" if own else program.name], False
    for word in words[1 : WORDS + 1]:
        flag, equals, _ = word.partition("=")
        secret = bool(SECRET.search(flag))
        shown.append("***" if hide else f"{flag}=***" if secret and equals else word)
        hide = secret and not equals and word.startswith("-")
    return shlex.join(shown) + " ..." * (len(words) > WORDS + 1)
