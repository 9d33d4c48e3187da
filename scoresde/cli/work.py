"""The work folder of a command that saves its results in parts and can resume after an interruption.

:mod:`scoresde.core.parts` reads and writes the parts. This module chooses their folder, reports on them, and deletes
them when they are no longer needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import Preempted, Stopped, UsageError
from ..core.signals import check
from .command import option
from .common import Decorator, Session

__all__ = ["REQUEST", "Work", "resume_option", "work_in"]

REQUEST = "request.json"  # the requests of a finished result, if the result's own file does not contain them


def resume_option() -> Decorator:
    """Add ``--resume`` to a command that saves parts."""
    return option(
        "--resume", under="Files", is_flag=True, help="Continue an interrupted command (repeat its other options)."
    )


@dataclass(frozen=True)
class Work:
    """A folder to which results are written in parts.

    Args:
        folder: The folder.
        total: The number of rows requested.
        rows: The noun that messages use for the rows, such as ``samples``.
        finished: The content of the result's JSON file if the result is finished, otherwise ``None``.
    """

    folder: Path
    total: int
    rows: str
    finished: Mapping[str, Any] | None = None

    @property
    def parts(self) -> Path:
        """The folder of the parts."""
        return self.folder / "parts"

    @property
    def kept(self) -> int:
        """The number of rows in the finished parts."""
        from ..core.parts import rows_kept

        folders = [self.parts, *(p for p in self.parts.glob("*") if p.is_dir())]
        return sum(rows_kept(folder) for folder in folders)

    def told(self) -> str:
        """Describe what the folder contains so far."""
        if not self.parts.is_dir():
            return f"the result is in {self.folder}"
        if not self.kept:
            return f"the finished parts are saved in {self.folder}"
        return f"{min(self.kept, self.total):,} of {self.total:,} {self.rows} are saved in {self.folder}"

    def done(self) -> None:
        """Delete the parts. Call this method after the results have been written."""
        import shutil

        from ..core.signals import held

        with held():
            shutil.rmtree(self.parts, ignore_errors=True)


@contextmanager
def work_in(
    session: Session, out: Path | None, default: Path, resume: bool, total: int, rows: str, facts: str,
    requests: Callable[[], Any],
) -> Iterator[Work]:  # fmt: skip
    """Open a new folder in which a command can save its parts, or an existing folder to resume from.

    Args:
        session: The session that prints the messages.
        out: The folder given on the command line, or ``None`` to use ``default``. If the folder exists and there is
            nothing to resume, a number is added to the name of the new folder.
        default: The default folder.
        resume: Whether to resume.
        total, rows: See :class:`Work`.
        facts: The name of the result's JSON file, which is written last. The requests are in this file, or in
            ``request.json`` in the same folder.
        requests: Function that returns the requests (see :mod:`scoresde.core.parts`) to compare with those of a
            finished result. It is called only if there is such a result.

    Raises:
        UsageError: If the folder contains another command's result, or contains files but nothing to resume from.
    """
    from ..core.files import read_json
    from ..core.parts import check_request, plain_request

    first = out or default
    found = _unfinished(first, out is None, facts) if resume else None
    work = Work(found or first, total, rows)
    if found is not None and not work.parts.is_dir() and (found / facts).is_file():
        stored = read_json(found / facts)
        if (found / REQUEST).is_file():
            stored |= read_json(found / REQUEST)
        kept, asked = stored.get("requests"), plain_request({"requests": requests()})["requests"]
        if not isinstance(kept, list) or len(kept) != len(asked):
            raise UsageError(f"{found} contains the finished result of another command; choose another folder",
                             parameter="out")  # fmt: skip
        for now, then in zip(asked, kept, strict=True):
            check_request(now, then, f"the results in {found}")
        yield replace(work, finished=stored)
        return
    if resume and (found is None or not work.parts.is_dir()):
        session.say(f"{work.folder} does not contain anything to resume; starting from the beginning")
    if found is not None and work.parts.is_dir():
        session.say(f"resuming: {work.told()}")
    if found is None and not resume and (first / "parts").is_dir():
        session.say(
            f"{first} contains an interrupted result; starting a new result (to continue the interrupted one, use "
            "--resume)"
        )
    with session.new_folder(first) if found is None else nullcontext(found) as folder:
        work = replace(work, folder=folder)
        try:
            try:
                yield work
            except Exception:
                check()  # compiled code may turn a signal into its own error
                raise
        except (Preempted, Stopped) as stop:
            if any(folder.iterdir()):
                stop.args = (f"{str(stop).partition(':')[0]}: {work.told()}",)
                stop.parameter, stop.value = "resume", folder
            raise
        except Exception:
            if work.kept:
                session.say(f"{work.told()}; use --resume to continue")
            raise


def _unfinished(first: Path, numbered: bool, facts: str) -> Path | None:
    """Return the folder to resume from, or ``None`` if a new folder is needed."""
    if first.exists() and not first.is_dir():
        return None  # creating the folder raises the error
    n, folders = 2, [first] if first.is_dir() else []
    while numbered and folders and (folder := first.with_name(f"{first.name}-{n}")).is_dir():
        folders.append(folder)
        n += 1
    # Unfinished parts take precedence over a finished result.
    for wanted in (lambda f: any((f / "parts").glob("**/*.safetensors")), lambda f: (f / facts).is_file()):
        for folder in folders:
            if wanted(folder):
                return folder
    if folders and any(path.name != "parts" for path in first.iterdir()) and not numbered:
        told = f"{first} contains files, but neither parts nor a result to resume from; choose another folder"
        raise UsageError(told, parameter="out")
    return first if folders and not numbered else None
