"""Where the files of a data set lie: in a folder, in a zip archive, or in one or more tar archives.

A place lists folders and reads files. The path of a file in an archive continues the path of the archive, as in
``photos.zip/cat/7.png``, so that messages name such files like any others. Archives are never unpacked: their members
are read in memory, one at a time, from the positions that are found when the archive is opened. No archive stays open,
so several threads and processes can read from one place.

Archives are not trusted. A member whose name leads out of the archive, two members of one name, links, encrypted
members and members that unpack to far more than their size are rejected with their name, as is an archive that was cut
off. Compressed tar archives have no positions, so they are rejected as well.

References:
    PKWARE, APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.4, for the headers and fields of zip members; POSIX.1-2017, pax,
    for tar; Fifield (2019), A better zip bomb; the WebDataset format, for files of one sample that share a name.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DataError
from ..core.opened import GZIP, may_unpack, opened, read_bytes, reason
from ..core.text import one_line
from .rows import stamp_of

__all__ = ["Archive", "Folder", "Member", "Place", "Tree", "archive_of", "is_archive"]

MOST = 10**7  # largest number of members of an archive
BLOCK = 512  # size of the blocks of a tar archive
PACKED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # tar archives without positions
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


class Place(ABC):
    """A folder of files, or an archive that is read like one.

    Attributes:
        path: The path of the folder or of the archive, with which the paths of its files begin.
    """

    path: Path

    @abstractmethod
    def listed(self, folder: Path) -> list[tuple[str, bool]]:
        """Return the names in a folder, each with a flag that is true for folders."""

    @abstractmethod
    def is_folder(self, path: Path) -> bool:
        """Return whether ``path`` is a folder in this place."""

    @abstractmethod
    def read(self, file: Path, most: int | None = None) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: If the file is missing, damaged, too large for memory or larger than ``most`` bytes.
        """

    @abstractmethod
    def stamp(self, files: Iterable[Path]) -> str:
        """Return a hash of the names, sizes and times on which the content of ``files`` depends."""

    @property
    def links(self) -> bool:
        """Whether folders may be links to other folders."""
        return False


@dataclass(frozen=True)
class Folder(Place):
    """A folder on disk."""

    path: Path

    @property
    def links(self) -> bool:
        return True

    def listed(self, folder: Path) -> list[tuple[str, bool]]:
        with os.scandir(folder) as inside:
            return [(entry.name, entry.is_dir()) for entry in inside]

    def is_folder(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, file: Path, most: int | None = None) -> bytes:
        return read_bytes(file, most)

    def stamp(self, files: Iterable[Path]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            digest.update(f"{file}\0{stamp_of(file)}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        archive: Index of the archive.
        start: Position of the content in a tar archive, or of the header before it in a zip archive.
        packed: Size of the content in the archive.
        size: Size of the content.
        method: Compression method of a zip archive.
        check: CRC-32 of the content, or ``None`` if there is none.
    """

    archive: int
    start: int
    packed: int
    size: int
    method: int = STORED
    check: int | None = None


class Tree:
    """The files and folders of an archive, from the names of its members.

    Args:
        path: The path with which the paths of the files begin.

    Attributes:
        members: The member of each file.
        folders: The names in each folder, each with a flag that is true for folders.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[Path, Member] = {}
        self.folders: dict[Path, dict[str, bool]] = {}

    def add(self, archive: Path, name: str, member: Member) -> None:
        """Add the member called ``name`` of an archive.

        Raises:
            DataError: If the name leads out of the archive, or is already in use.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or name.startswith("/") or "\0" in name or not parts:
            raise DataError(
                f"{archive}: the name of the member {one_line(name)!r} leads out of the archive; make the archive "
                "again with names relative to the folder of the data"
            )
        path = self.path.joinpath(*parts)
        if path in self.members:
            raise DataError(
                f"{archive}: there are two members called {one_line(name)!r}, so it is unclear which to use; give each "
                "file its own name"
            )
        if len(self.members) == MOST:
            raise DataError(f"{archive} has more than {MOST:,} members; divide the data into several archives")
        self.members[path] = member
        inner, folded = path, False
        for above in path.parents:
            names = self.folders.setdefault(above, {})
            known = names.setdefault(inner.name, folded)
            if known != folded:
                raise DataError(f"{archive}: {one_line(name)!r} is used both as a file and as a folder")
            if above == self.path:
                break
            inner, folded = above, True

    def root(self) -> Path:
        """Return the only folder of an archive that holds a folder and not its content, or the path of the archive."""
        names = self.folders.get(self.path, {})
        visible = [name for name in names if name[0] != "." and name.lower() != "__macosx"]
        if len(visible) == 1 and names[visible[0]]:
            root = self.path / visible[0]
            inside = [folded for name, folded in self.folders[root].items() if name[0] != "."]
            if visible[0] == self.path.name.partition(".")[0] or (inside and all(inside)):
                return root
        return self.path

    def listed(self, folder: Path) -> list[tuple[str, bool]]:
        """Return the names in a folder, each with a flag that is true for folders."""
        return list(self.folders.get(folder, {}).items())


class Archive(Place):
    """The members of one zip archive, or of one or more tar archives, as one place.

    Args:
        path: The path with which the paths of the members begin.
        archives: The archives.

    Raises:
        DataError: If an archive is damaged, or has members that cannot be read safely.
    """

    def __init__(self, path: Path, archives: Sequence[Path]) -> None:
        self.path, self.archives = path, tuple(archives)
        self.stamps = [stamp_of(archive) for archive in archives]
        self.tree = Tree(path)
        for i, archive in enumerate(archives):
            found = _zip_members(archive, i) if archive.suffix.lower() == ".zip" else _tar_members(archive, i)
            for name, member in found:
                self.tree.add(archive, name, member)
        self.path = self.tree.root()

    def listed(self, folder: Path) -> list[tuple[str, bool]]:
        return self.tree.listed(folder)

    def is_folder(self, path: Path) -> bool:
        return path in self.tree.folders

    def read(self, file: Path, most: int | None = None) -> bytes:
        member = self.tree.members.get(file)
        if member is None:
            raise FileNotFoundError("there is no such member in the archive")
        if most is not None and member.size > most:
            raise OSError(f"its size is {member.size:,} bytes, but files of this kind may not exceed {most:,} bytes")
        may_unpack(member.packed, member.size)
        with opened(self.archives[member.archive]) as archive:
            if stamp_of(archive.fileno()) != self.stamps[member.archive]:
                raise OSError("the archive has changed since it was opened")
            archive.seek(member.start)
            if member.check is not None:
                head = archive.read(30)
                if head[:4] != b"PK\x03\x04" or len(head) < 30:
                    raise OSError("the archive is damaged: a header is missing")
                archive.seek(sum(struct.unpack("<HH", head[26:30])), os.SEEK_CUR)
            data = archive.read(member.packed)
        if len(data) != member.packed:
            raise OSError("the archive was cut off")
        if member.method == DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
            except zlib.error as error:
                raise OSError(f"its compressed content is damaged: {error}") from None
        if len(data) != member.size or (member.check is not None and zlib.crc32(data) != member.check):
            raise OSError("its content is damaged: the size or the checksum is wrong")
        return data

    def stamp(self, files: Iterable[Path]) -> str:
        told = [(str(path.resolve()), stamp) for path, stamp in zip(self.archives, self.stamps, strict=True)]
        return hashlib.blake2b(repr(told).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def is_archive(path: Path) -> bool:
    """Return whether a path has the suffix of an archive whose members can be read, or of a compressed tar archive."""
    return path.suffix.lower() in (".zip", ".tar") or path.name.lower().endswith(PACKED)


def archive_of(path: Path) -> Archive:
    """Open a zip archive, a tar archive, or a folder of tar archives.

    Raises:
        DataError: If the archive is damaged, compressed as a whole, or has members that cannot be read safely.
        OSError: If a file cannot be opened.
    """
    archives = sorted(p for p in path.iterdir() if p.suffix.lower() == ".tar") if path.is_dir() else [path]
    for archive in archives:
        with opened(archive) as file:
            begins = file.read(6)
        if begins.startswith((GZIP, b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")) or _packed(archive):
            raise DataError(
                f"{archive} is compressed as a whole, so its members cannot be read one at a time; unpack it and pass "
                "the folder, or make an uncompressed archive of that folder with scoresde data pack"
            )
    return Archive(path, archives)


def _packed(path: Path) -> bool:
    return path.name.lower().endswith(PACKED)


def _zip_members(path: Path, i: int) -> Iterator[tuple[str, Member]]:
    """Yield the name and the position of each file in a zip archive."""
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, MemoryError) as error:
        raise DataError(f"{path} is damaged or is not a zip archive: {reason(error)}; make it again") from error
    for info in found:
        if info.is_dir():
            continue
        what = "is encrypted" if info.flag_bits & 1 else "is compressed by an unsupported method"
        if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
            raise DataError(
                f"{path}: the member {one_line(info.filename)!r} {what}; make the archive again without it, for "
                "example with scoresde data pack"
            )
        name = info.filename.replace("\\", "/")
        yield name, Member(i, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)


def _tar_members(path: Path, i: int) -> Iterator[tuple[str, Member]]:
    """Yield the name and the position of each file in a tar archive."""
    last = ""
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = stamp_of(file.fileno())[0]
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # which would otherwise hold all members
                name = info.name
                if info.isreg() and not info.issparse():
                    if not 0 <= info.size <= size - info.offset_data:
                        raise DataError(f"{path} was cut off in the member {one_line(name)!r}; make it again")
                    yield name, Member(i, info.offset_data, info.size, info.size)
                elif not info.isdir():
                    what = "is a sparse file" if info.issparse() else "is a link" if info.islnk() or info.issym() else (
                        "is not a regular file"
                    )  # fmt: skip
                    raise DataError(
                        f"{path}: the member {one_line(name)!r} {what}; make the archive again from the files "
                        "themselves, for example with scoresde data pack"
                    )
                last = name
            file.seek(archive.offset)
            rest = file.read(BLOCK)
    except DataError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError, struct.error) as error:
        after = f" after the member {one_line(last)!r}" if last else ""
        raise DataError(f"{path} is damaged{after}, or is not a tar archive: {reason(error)}; make it again") from error
    if not rest:
        raise DataError(f"{path} ends after the member {one_line(last)!r} without an end mark; was it cut off?")
    if rest.strip(b"\0"):  # tarfile takes a damaged header for the end
        raise DataError(f"{path} is damaged after the member {one_line(last)!r}; make it again")
