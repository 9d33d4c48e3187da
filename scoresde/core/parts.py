"""Results of many rows, stored in one file per range of rows, so that an interrupted computation can be resumed.

The rows of a computation are independent of each other, and so are ranges of rows. Each finished range becomes one
file, written whole or not at all:

    parts/000000-000255.safetensors        rows 0 to 255

It holds the results. Its header holds the request (everything that the results depend on, except the rows) and has a
checksum of its own, which is verified before the results are read. A second call with the same request reads the
finished ranges and computes the rest in ranges of the same size, so its result is bit-identical to that of a single
call. Damaged ranges are computed again. The file names alone record what is done, so several processes may each
compute some of the ranges.
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
OPAQUE = "digest "  # prefix of values that mean nothing to a person
T = TypeVar("T")

Packed = tuple[dict[str, "Tensor"], dict[str, Any]]  # the tensors of a result, and its other data as plain JSON values


class Parts:
    """The stored parts of one request, in a folder.

    Args:
        folder: The folder of the parts; it is created with the first one.
        request: What the results depend on: plain JSON values under names that the user knows. The number of rows is
            not part of it.
        inputs: A function from row indices, int64 ``(b,)``, to the other tensors that the results of these rows depend
            on.

    Raises:
        UsageError: If the existing parts belong to another request.
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
        """Return how many rows to solve at once: the size of the existing ranges, or else ``batch``.

        The size is kept because the last bits of a row depend on how many rows are solved with it.
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
        """Return the result of a range of rows: the stored one, or else the return value of ``solve``, which is then
        stored.

        Args:
            index: The rows, int64 ``(b,)``, consecutive.
            solve: Computes the result.
            pack: Splits a result into tensors and plain values.
            unpack: Rebuilds the result; the tensors are on the CPU.

        Raises:
            UsageError: If the stored result was computed from other inputs.
            CheckpointError: If the result cannot be written.
        """
        first, last = int(index[0]), int(index[-1])
        path = self.folder / f"{first:06d}-{last:06d}.safetensors"
        inputs = digest(*(() if self.inputs is None else self.inputs(index)))
        header = _header(path) if path.is_file() else None
        if header is not None and header["inputs"] != inputs:
            raise UsageError(
                f"{path} was computed from data that differ from those of rows {first:,} to {last:,}; use a new folder",
                parameter="out",
            )
        if header is not None:
            try:
                return unpack(read_tensors(path), header["facts"])
            except CheckpointError:
                pass
        if path.exists():
            warnings.warn(f"{path} is damaged: computing rows {first:,} to {last:,} again", stacklevel=2)
        found = solve()
        tensors, facts = pack(found)
        header = {"request": self.request, "batch": getattr(self, "size", len(index)), "inputs": inputs, "facts": facts}
        write_tensors(path, tensors, {**header, "sum": _sum(header)})
        return found


def plain_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request in the form in which it is read back: plain JSON values, and ``repr`` of everything else."""
    found: dict[str, Any] = json.loads(json.dumps(dict(request), default=repr))
    return found


def check_request(asked: Mapping[str, Any], kept: Mapping[str, Any], whose: str) -> None:
    """Check that stored results belong to the same request.

    Raises:
        UsageError: If they do not; the message lists the differences.
    """
    names = [name for name in {**asked, **kept} if json.dumps(asked.get(name)) != json.dumps(kept.get(name))]
    told = [f"{_told(asked, name)}, but {whose} have {_told(kept, name)}" for name in names]
    if told:
        raise UsageError(
            f"this request differs from the first one: {'; '.join(told[:5])}; repeat the first request, or use a new "
            "folder",
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
    """Return a digest of tensors (any shapes; shapes and dtypes count) and texts."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for thing in things:
        if isinstance(thing, str):
            found.update(thing.encode())
            continue
        found.update(f"{thing.dtype}{tuple(thing.shape)}".encode())
        value = torch.cat([thing.detach().cpu().reshape(-1)])  # copy to dense memory, even if one number was expanded
        found.update(value.view(torch.uint8).numpy().data)
    return OPAQUE + found.hexdigest()


def rows_kept(folder: Path) -> int:
    """Return how many rows the parts in a folder cover, according to the file names."""
    return sum(last - first + 1 for _, (first, last) in _files(folder))


def batch_kept(folder: Path) -> int | None:
    """Return the size of the ranges in a folder; ``None`` if there are no ranges."""
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
    """Return the header of a part; ``None`` if it is damaged."""
    try:
        header = read_metadata(path)
        whole = {k: v for k, v in header.items() if k not in ("format", "sum")}
        return whole if header["sum"] == _sum(whole) and whole["batch"] > 0 else None
    except (CheckpointError, KeyError, TypeError):
        return None


def _sum(header: Mapping[str, Any]) -> str:
    return digest(json.dumps(header, sort_keys=True))
