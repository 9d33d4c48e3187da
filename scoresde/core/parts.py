"""Results of many rows, kept in a file for each range of them, so that what was interrupted goes on where it stopped.

The rows of a computation do not depend on each other, and their ranges neither. Each range that is done becomes one
file, whole or not at all,

    parts/000000-000255.safetensors        rows 0 to 255,

with the results, and in its header the request (all that they depend on but the rows) and a checksum of its own, which
is looked at before the results are read. A second call with the same request reads what is there and does the rest, in
ranges of the same size, so that it returns what one call would have returned, to the bit. Ranges that are damaged are
done again. Nothing but the names says what is done, so that several processes may each do some of the ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import CheckpointError, UsageError
from .files import read_metadata, read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Parts", "batch_kept", "check_request", "digest", "plain_request", "rows_kept"]

NAME = re.compile(r"(\d{6,})-(\d{6,})\.safetensors")
OPAQUE = "digest "  # how a value begins that means nothing to a person
T = TypeVar("T")

Packed = tuple[dict[str, "Tensor"], dict[str, Any]]  # the tensors of a result, and its other facts as plain JSON values


class Parts:
    """The parts of one request in a folder.

    Args:
        folder: Where they are, or will be; made with the first of them.
        request: What the results depend on, plain JSON values by the names that a person knows. How many rows there are
            is no part of it.
        inputs: The tensors that some rows depend on besides, by their indices, int64 ``(b,)``.

    Raises:
        UsageError: If the parts that are there answer another request.
    """

    def __init__(
        self, folder: Path, request: Mapping[str, Any], inputs: Callable[[Tensor], Iterable[Tensor]] | None = None
    ) -> None:
        self.folder, self.request, self.inputs = folder, plain_request(request), inputs
        for path, _ in _files(folder):
            header = _header(path)
            if header is not None:
                check_request(self.request, header["request"], f"the parts in {folder}")

    def batch(self, batch: int) -> int:
        """How many rows are solved at once: as many as in the ranges that are there, or else ``batch``.

        The last bits of a row depend on how many are solved beside it.
        """
        self.size = batch_kept(self.folder) or batch
        return self.size

    def piece(
        self,
        index: Tensor,
        solve: Callable[[], T],
        pack: Callable[[T], Packed],
        unpack: Callable[[Mapping[str, Tensor], Mapping[str, Any]], T],
    ) -> T:
        """The result of a range of rows: what is kept of it, or else what ``solve`` returns, which is then kept.

        Args:
            index: The rows, int64 ``(b,)``, one after the other.
            solve: Does the work.
            pack: Takes a result apart.
            unpack: Puts it together again, from tensors on the CPU.

        Raises:
            UsageError: If it was made of other inputs.
            CheckpointError: If it cannot be written.
        """
        first, last = int(index[0]), int(index[-1])
        path = self.folder / f"{first:06d}-{last:06d}.safetensors"
        inputs = digest(*(() if self.inputs is None else self.inputs(index)))
        header = _header(path) if path.is_file() else None
        if header is not None and header["inputs"] != inputs:
            raise UsageError(
                f"{path} was made of other data than rows {first:,} to {last:,} are now; begin anew in another folder",
                parameter="out",
            )
        if header is not None:
            try:
                return unpack(read_tensors(path), header["facts"])
            except CheckpointError:
                pass
        if path.exists():
            warnings.warn(f"{path} is damaged: rows {first:,} to {last:,} are done again", stacklevel=2)
        found = solve()
        tensors, facts = pack(found)
        header = {"request": self.request, "batch": getattr(self, "size", len(index)), "inputs": inputs, "facts": facts}
        write_tensors(path, tensors, {**header, "sum": _sum(header)})
        return found


def plain_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as it is read again: plain JSON values, and ``repr`` of everything else."""
    found: dict[str, Any] = json.loads(json.dumps(dict(request), default=repr))
    return found


def check_request(asked: Mapping[str, Any], kept: Mapping[str, Any], whose: str) -> None:
    """Refuse to go on from the results of another request.

    Raises:
        UsageError: With what differs.
    """
    names = [name for name in {**asked, **kept} if json.dumps(asked.get(name)) != json.dumps(kept.get(name))]
    told = [f"{_told(asked, name)}, and {whose} have {_told(kept, name)}" for name in names]
    if told:
        raise UsageError(
            f"this is not what was asked for first: {'; '.join(told[:5])}; ask for the same again, or begin anew in "
            "another folder",
            parameter="out",
        )


def _told(request: Mapping[str, Any], name: str) -> str:
    if name not in request:
        return f"no {name}"
    value = request[name]
    if not isinstance(value, str):
        return f"{name} {json.dumps(value)}"
    return f"{name} {value.removeprefix(OPAQUE)[:8] if value.startswith(OPAQUE) else value}"


def digest(*things: Tensor | str) -> str:
    """Of tensors, with their shapes and dtypes, and texts."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for thing in things:
        if isinstance(thing, str):
            found.update(thing.encode())
            continue
        found.update(f"{thing.dtype}{tuple(thing.shape)}".encode())
        value = torch.cat([thing.detach().cpu().reshape(-1)])  # dense, also one number that was expanded
        found.update(value.view(torch.uint8).numpy().data)
    return OPAQUE + found.hexdigest()


def rows_kept(folder: Path) -> int:
    """How many rows have a part in a folder, by the names of the files."""
    return sum(last - first + 1 for _, (first, last) in _files(folder))


def batch_kept(folder: Path) -> int | None:
    """The size of the ranges in a folder; ``None`` if there is none."""
    for path, _ in _files(folder):
        header = _header(path)
        if header is not None:
            return int(header["batch"])
    return None


def _files(folder: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = NAME.fullmatch(path.name)
        if match is not None and path.is_file():
            yield path, (int(match[1]), int(match[2]))


def _header(path: Path) -> dict[str, Any] | None:
    """What stands in the header of a part; ``None`` if that is damaged."""
    try:
        header = read_metadata(path)
        whole = {k: v for k, v in header.items() if k not in ("format", "sum")}
        return whole if header["sum"] == _sum(whole) and whole["batch"] > 0 else None
    except (CheckpointError, KeyError, TypeError):
        return None


def _sum(header: Mapping[str, Any]) -> str:
    return digest(json.dumps(header, sort_keys=True))
