"""Store row-wise results in one file per range of rows, so that an interrupted computation can be resumed.

The results of different rows are independent of each other. Each finished range of rows is stored in one file (a part),
which is written completely or not at all:

    parts/000000-000255.safetensors        rows 0 to 255

The file contains the results. Its header contains the request (all settings that affect the results) and a checksum of
the header, which is verified before the results are read. A second call with the same request reads the finished ranges
and computes the remaining rows in ranges of the same size, so its result is bit-identical to that of an uninterrupted
call. Damaged ranges are recomputed. The file names alone record which ranges are finished, so several processes can
share the work (:func:`pieces`).
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import CheckpointError, UsageError
from .files import read_metadata, read_tensors, write_tensors
from .parallel import sharing
from .signals import check
from .threads import in_lanes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Parts", "batch_kept", "check_request", "digest", "pieces", "plain_request", "rows_kept"]

NAME = re.compile(r"(\d{6,})-(\d{6,})\.safetensors")
OPAQUE = "digest "  # prefix of digests, which messages shorten
T = TypeVar("T")

Packed = tuple[dict[str, "Tensor"], dict[str, Any]]  # the tensors of a result, and its other values as plain JSON


class Parts:
    """The stored parts of one result. All parts are in the same folder and belong to the same request.

    Args:
        folder: The folder for the parts, which is created when the first part is written.
        request: The settings that affect the results, except the number of rows, keyed by names that the user knows.
        inputs: A function of the row indices, int64 ``(b,)``. It returns the data and the conditions of these rows, as
            tensors.

    Raises:
        UsageError: If the existing parts belong to a different request.
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
        """Return the number of rows to process at once: the size of the stored ranges, or ``batch`` if there are none.

        The stored size is kept because the last bits of a result depend on how many rows are processed together.
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
        """Return the stored result of a range of rows. If no result is stored, compute it with ``solve`` and store it.

        Args:
            index: The consecutive row indices of the range, int64 ``(b,)``.
            solve: A function that computes the result.
            pack: A function that splits a result into tensors and plain JSON values.
            unpack: A function that rebuilds a result from tensors on the CPU and plain JSON values.

        Raises:
            UsageError: If the stored result was computed from different inputs.
            CheckpointError: If the result cannot be written.
        """
        first, last = int(index[0]), int(index[-1])
        path = self.folder / f"{first:06d}-{last:06d}.safetensors"
        inputs = digest(*(() if self.inputs is None else self.inputs(index)))
        header = _header(path) if path.is_file() else None
        if header is not None and header["inputs"] != inputs:
            raise UsageError(
                f"{path} (rows {first:,} to {last:,}) was computed from different data; use a new folder",
                parameter="out",
            )
        if header is not None:
            try:
                return unpack(read_tensors(path), header["facts"])
            except CheckpointError:
                pass
        if path.exists():
            warnings.warn(f"{path} is damaged, so rows {first:,} to {last:,} are computed again", stacklevel=2)
        found = solve()
        tensors, facts = pack(found)
        header = {"request": self.request, "batch": getattr(self, "size", len(index)), "inputs": inputs, "facts": facts}
        write_tensors(path, tensors, {**header, "sum": _sum(header)})
        return found


def pieces(
    ranges: Sequence[Tensor],
    solve: Callable[[Tensor], T],
    pack: Callable[[T], Packed],
    unpack: Callable[[Mapping[str, Tensor], Mapping[str, Any]], T],
    parts: Parts | None = None,
    index: Tensor | None = None,
    watch: Callable[[T], object] | None = None,
) -> list[T]:
    """Return the results of ranges of rows, in order.

    If several processes share the rows (:func:`scoresde.core.parallel.shared_rows`), each of them computes a sequence
    of ranges, and all return the results of all.

    Args:
        ranges: The positions of the rows in each range, int64 ``(b,)``.
        solve: A function that computes the result of a range.
        pack, unpack: See :meth:`Parts.piece`.
        parts: The stored parts, or ``None`` if results are not stored.
        index: The index of each row in the names of the parts, int64 ``(n,)``. Required if there are parts.
        watch: A function that is called with each result, as soon as this process has it.
    """
    world = sharing()

    def piece(number: int) -> T:
        check()
        rows = ranges[number]
        if parts is None:
            return solve(rows)
        assert index is not None
        return parts.piece(index[rows], partial(solve, rows), pack, unpack)

    def seen(piece: T) -> T:
        if watch is not None:
            watch(piece)
        return piece

    everything = range(len(ranges))
    if not world.several:
        return [seen(one) for one in in_lanes(piece, everything)]
    own = everything[world.rows(len(ranges))]
    found = {number: seen(one) for number, one in zip(own, in_lanes(piece, own), strict=True)}
    if parts is not None:
        world.wait()
        return [found[number] if number in found else seen(piece(number)) for number in everything]
    packed = {}
    for number in own:
        tensors, facts = pack(found[number])
        packed[number] = {name: value.cpu() for name, value in tensors.items()}, facts
    for others in world.exchange(packed):
        for number, (tensors, facts) in others.items():
            if number not in found:
                found[number] = seen(unpack(tensors, facts))
    return [found[number] for number in everything]


def plain_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request as plain JSON values. A value that JSON cannot store is replaced by its ``repr``."""
    found: dict[str, Any] = json.loads(json.dumps(dict(request), default=repr))
    return found


def check_request(asked: Mapping[str, Any], kept: Mapping[str, Any], whose: str) -> None:
    """Check that stored results belong to the current request.

    Args:
        asked: The current request.
        kept: The request that is stored with the results.
        whose: A noun phrase for the stored results, such as ``"the results in runs/a"``.

    Raises:
        UsageError: If the two requests differ. The message lists the differences.
    """
    names = [name for name in {**asked, **kept} if json.dumps(asked.get(name)) != json.dumps(kept.get(name))]
    told = [f"{_told(asked, name)} instead of {_told(kept, name)}" for name in names]
    if told:
        raise UsageError(
            f"this request does not match {whose}: {', '.join(told[:5])}; repeat the original request, or use a new "
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
    """Return a digest of strings and tensors. It depends on the values, shapes and dtypes of the tensors."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for thing in things:
        if isinstance(thing, str):
            found.update(thing.encode())
            continue
        found.update(f"{thing.dtype}{tuple(thing.shape)}".encode())
        value = torch.cat([thing.detach().cpu().reshape(-1)])  # a dense copy, because the tensor may be expanded
        found.update(value.view(torch.uint8).numpy().data)
    return OPAQUE + found.hexdigest()


def rows_kept(folder: Path) -> int:
    """Return the number of rows that the parts in a folder cover, according to the file names."""
    return sum(last - first + 1 for _, (first, last) in _files(folder))


def batch_kept(folder: Path) -> int | None:
    """Return the batch size with which the parts in a folder were computed, or ``None`` if no part is readable."""
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
    """Return the header of a part, or ``None`` if the header is not valid."""
    try:
        header = read_metadata(path)
        whole = {k: v for k, v in header.items() if k not in ("format", "sum")}
        return whole if header["sum"] == _sum(whole) and whole["batch"] > 0 else None
    except (CheckpointError, KeyError, TypeError):
        return None


def _sum(header: Mapping[str, Any]) -> str:
    return digest(json.dumps(header, sort_keys=True))
