"""Commands in forks of one process: torch is imported once, and a case costs its work and not its start.

A fork stands in a folder of its own, may neither compute nor wait for ever, has a limit on memory and on the size of a
file, and writes to pipes. Where the tests run as root it gives that up, so that what is read-only is so and no
mistaken path reaches beyond the folder.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import scoresde
from scoresde.cli import main

__all__ = ["CODES", "Fork", "Limits", "Outcome", "calls", "handed", "preload", "run", "tree"]

CODES = {0, 2, 3, 4, 75, 130}  # what the command line may answer
NOBODY = 65534


@dataclass(frozen=True)
class Limits:
    """What a fork may use: seconds of work, seconds by the clock (on a machine with other work), bytes."""

    seconds: int = int(os.environ.get("FUZZ_LIMIT", "20"))
    clock: float = 3.0 * int(os.environ.get("FUZZ_LIMIT", "20"))
    memory: int = 4 * 2**30  # above what the parent has
    file: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a fork ended.

    Attributes:
        code: The exit code; minus the signal that ended it.
        hung: Whether it was over a limit of time.
    """

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False

    @property
    def said(self) -> str:
        """What it said of an error, or else its last line."""
        lines = [line.strip() for line in (self.err.strip() or self.out).splitlines() if line.strip()]
        errors = [line for line in lines if "error: " in line.lower()]
        return (errors or lines or [""])[-1]

    def fault(self) -> str | None:
        """What no command may do, or ``None``."""
        if self.hung:
            place = next((line.strip() for line in self.err.splitlines() if "scoresde/" in line), self.said)
            return f"hangs: {place}"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        if "Traceback (most recent call last)" in self.err + self.out:
            return "traceback"
        if "unexpected error" in self.err:
            return "unexpected error"
        return None if self.code in CODES else f"exit code {self.code}"


@dataclass
class Fork:
    """A fork that runs, with the ends of its pipes."""

    pid: int
    pipes: dict[int, bytearray]
    began: float
    limits: Limits

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Read what it writes until it has ended (true), or so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            open_ends = [end for end in self.pipes if end >= 0]
            ready, _, _ = select.select(open_ends, [], [], min(left, 0.5))
            for end in ready:
                found = os.read(end, 65536)
                self.pipes[end] += found
                if not found and self._ended(left):
                    self._drain()
                    return True
        return False

    def _drain(self) -> None:
        """Read what is left in the pipes: one may have ended before the other was read."""
        for end, text in self.pipes.items():
            while select.select([end], [], [], 0)[0] and (found := os.read(end, 65536)):
                text += found

    def _ended(self, seconds: float) -> bool:
        """Both pipes are closed when a fork ends, and a moment before."""
        return bool(select.select([self._handle], [], [], seconds)[0])

    def __post_init__(self) -> None:
        self._handle = os.pidfd_open(self.pid)

    def outcome(self) -> Outcome:
        """Wait for its end, or end it when its time is over."""
        hung = not self.wait(max(0.0, self.began + self.limits.clock - time.monotonic()))
        if hung:
            self.kill(signal.SIGXCPU)  # which says where it is
            if not self.wait(5.0):
                self.kill()
                self.wait(5.0)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it may have started
        _, status, _ = os.wait4(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        out, err = (bytes(text).decode("utf-8", "backslashreplace") for text in self.pipes.values())
        for end in (*self.pipes, self._handle):
            os.close(end)
        return Outcome(code, out, err, time.monotonic() - self.began, hung or code == -signal.SIGXCPU)


def start(work: Callable[[], object], home: Path, limits: Limits | None = None) -> Fork:
    """Start ``work`` in a fork that stands in ``home``."""
    limits = limits or Limits()
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(work, home, out_end, err_end, limits)
    os.close(out_end)
    os.close(err_end)
    return Fork(pid, {out: bytearray(), err: bytearray()}, began, limits)


def run(work: Callable[[], object] | Iterable[str], home: Path, limits: Limits | None = None) -> Outcome:
    """Run ``work``, or a command line in words, to its end."""
    return start(work if callable(work) else calls(*work), home, limits).outcome()


def calls(*words: str) -> Callable[[], None]:
    """A command line as work."""
    return lambda: main(list(words))


def _child(work: Callable[[], object], home: Path, out: int, err: int, limits: Limits) -> NoReturn:
    code = 70  # of a harness that failed
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 1024)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.stdin = open(0, closefd=False)
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        faulthandler.enable(sys.stderr)
        faulthandler.register(signal.SIGXCPU, sys.stderr, all_threads=False, chain=True)
        os.chdir(home)
        os.environ["HOME"] = str(home)
        _limit(limits)
        if os.getuid() == 0 and handed.gives_up:
            _give_up()
        warnings.resetwarnings()  # each is said again, as in a new process
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _limit(limits: Limits) -> None:
    """Set the limits of this process."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (now + limits.memory, now + limits.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = 2**30 if limits.file is None else limits.file
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _give_up() -> None:
    """Be nobody, who writes to what is his alone, and still may read all: Python may lie where only root can."""
    libc = ctypes.CDLL(None)
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    reading = 1 << 2  # CAP_DAC_READ_SEARCH
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(reading, reading))


def handed(folder: Path) -> Path:
    """Give a folder and all in it to whoever the forks are."""
    if os.getuid() == 0 and handed.gives_up:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return folder


handed.gives_up = True  # type: ignore[attr-defined]


def preload(home: Path) -> None:
    """Import all that the commands may need, and see whether forks that are not root can read it."""
    for module in pkgutil.walk_packages(scoresde.__path__, "scoresde."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
                 "matplotlib.backends.backend_pdf", "PIL.PngImagePlugin", "PIL.JpegImagePlugin", "PIL.GifImagePlugin",
                 "PIL.BmpImagePlugin", "PIL.TiffImagePlugin", "PIL.WebPImagePlugin", "scipy.optimize", "scipy.linalg",
                 "scipy.integrate", "scipy.special", "scipy.stats", "safetensors.torch", "torchsde", "torchdiffeq",
                 "tqdm", "torch._dynamo"):  # fmt: skip
        importlib.import_module(name)

    def reads() -> None:
        import matplotlib

        for file in (Path(scoresde.__file__), Path(os.__file__), Path(matplotlib.get_data_path()) / "matplotlibrc"):
            file.read_bytes()
        Path("written").touch()

    os.chmod(home, 0o755)
    handed.gives_up = run(reads, handed(home)).code == 0  # type: ignore[attr-defined]
    (home / "written").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ what is left


def tree(folder: Path) -> dict[str, int]:
    """The size of each file below a folder, and -1 for each folder, by their paths in it."""
    found: dict[str, int] = {}
    for root, folders, files in os.walk(folder):
        at = Path(root).relative_to(folder)
        found |= {str(at / name): -1 for name in folders}
        for name in files:
            with suppress(OSError):
                found[str(at / name)] = os.lstat(Path(root) / name).st_size
    return found


def left(before: Mapping[str, int], after: Mapping[str, int], failed: bool = True) -> Iterator[str]:
    """What a command left and should not have: temporary files, and of a failed one empty files and folders."""
    new = [path for path in after if path not in before]
    for path in new:
        if ".tmp-" in path:
            yield f"leaves {path}"
        elif failed and after[path] == 0:
            yield f"leaves the empty file {path}"
        elif failed and after[path] == -1 and str(Path(path).parent) in (*before, "."):  # the topmost that is new
            if not any(size >= 0 for other, size in after.items() if other.startswith(f"{path}/")):
                yield f"leaves the empty folder {path}"


@contextmanager
def quietly() -> Iterator[None]:
    """Without the parent's own warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
