"""The folder of a command that keeps its results part by part, and goes on in it after an interruption.

The parts themselves are those of :mod:`scoresde.core.parts`; here is which folder they are in, what is said of them,
and when they are needed no more.
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

REQUEST = "request.json"  # what a finished result answers, where its own file does not say it


def resume_option() -> Decorator:
    """``--resume``, of a command that keeps parts."""
    return option(
        "--resume", under="Files", is_flag=True, help="Go on where the same command was interrupted, in the same --out."
    )


@dataclass(frozen=True)
class Work:
    """A folder that results are written to, part by part.

    Args:
        folder: The folder.
        total: How many rows are asked for.
        rows: What they are, for messages.
        finished: What the file of facts says, if all is done and there is nothing left to do.
    """

    folder: Path
    total: int
    rows: str
    finished: Mapping[str, Any] | None = None

    @property
    def parts(self) -> Path:
        """Where the parts are."""
        return self.folder / "parts"

    @property
    def kept(self) -> int:
        """How many rows have a part."""
        from ..core.parts import rows_kept

        folders = [self.parts, *(p for p in self.parts.glob("*") if p.is_dir())]
        return sum(rows_kept(folder) for folder in folders)

    def told(self) -> str:
        """What is kept."""
        if not self.parts.is_dir():
            return f"the result is in {self.folder}"
        if not self.kept:
            return f"what was finished is kept in {self.folder}"
        return f"{min(self.kept, self.total):,} of {self.total:,} {self.rows} are kept in {self.folder}"

    def done(self) -> None:
        """The results are written: the parts are needed no more."""
        import shutil

        from ..core.signals import held

        with held():
            shutil.rmtree(self.parts, ignore_errors=True)


@contextmanager
def work_in(
    session: Session, out: Path | None, default: Path, resume: bool, total: int, rows: str, facts: str,
    requests: Callable[[], Any],
) -> Iterator[Work]:  # fmt: skip
    """The folder of a command that keeps parts: a new one, or the one that it goes on in.

    Args:
        session: Who is told.
        out: What was typed; ``None`` for ``default``, or that with a number.
        default: The folder otherwise.
        resume: Whether to go on.
        total, rows: See :class:`Work`.
        facts: The file that is written when all is done; the requests are in it, or in ``request.json`` beside it.
        requests: What is asked for, as it is kept there; called if there is a finished result.

    Raises:
        UsageError: If the folder has nothing to go on from and is not empty, or has another result.
    """
    from ..core.files import new_folder, read_json
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
            raise UsageError(f"{found} has a finished result, which is not of this command; choose another folder",
                             parameter="out")  # fmt: skip
        for now, then in zip(asked, kept, strict=True):
            check_request(now, then, f"the results in {found}")
        yield replace(work, finished=stored)
        return
    if resume and (found is None or not work.parts.is_dir()):
        session.say(f"nothing to go on from in {work.folder}: beginning anew")
    if found is not None and work.parts.is_dir():
        session.say(f"going on: {work.told()}")
    if found is None and not resume and (first / "parts").is_dir():
        session.say(f"{first} has parts of an interrupted result, which --resume goes on with; this is another one")
    with new_folder(first) if found is None else nullcontext(found) as folder:
        work = replace(work, folder=folder)
        try:
            try:
                yield work
            except Exception:
                check()  # compiled code makes errors of its own of a signal
                raise
        except (Preempted, Stopped) as stop:
            if any(folder.iterdir()):
                stop.args = (f"{str(stop).partition(':')[0]}: {work.told()}",)
                stop.parameter, stop.value = "resume", folder
            raise
        except Exception:
            if work.kept:
                session.say(f"{work.told()}; --resume goes on")
            raise


def _unfinished(first: Path, numbered: bool, facts: str) -> Path | None:
    """The folder to go on in: one with parts, or else one with a result, or an empty one; ``None`` for a new one."""
    if first.exists() and not first.is_dir():
        return None  # which is refused where it is made
    n, folders = 2, [first] if first.is_dir() else []
    while numbered and folders and (folder := first.with_name(f"{first.name}-{n}")).is_dir():
        folders.append(folder)
        n += 1
    for wanted in (lambda f: any((f / "parts").glob("**/*.safetensors")), lambda f: (f / facts).is_file()):
        for folder in folders:
            if wanted(folder):
                return folder
    if folders and any(path.name != "parts" for path in first.iterdir()) and not numbered:
        told = f"{first} has neither parts nor a result to go on from; choose another folder"
        raise UsageError(told, parameter="out")
    return first if folders and not numbered else None
