"""Pictures that stay in their files, in a folder or an archive, and are decoded when a batch needs them.

A picture is decoded by the same code as a picture that is read into memory (:mod:`.pictures`), so it has the same
pixels. How many channels the rows have is known from one pass over all files, in which every problem was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.opened import reason
from .pictures import decode
from .places import Place
from .raw import AS_IS, Array, Reading
from .rows import Stored

__all__ = ["PictureFiles", "decoded_size"]

TRIED = 20  # number of files among which a readable one is looked for


@dataclass(frozen=True, eq=False)
class PictureFiles(Stored):
    """Pictures as rows ``(C, H, W)``, each in a file of its own.

    Attributes:
        place: Where the files lie.
        files: The file of each row.
        reading: Options for reading the files.
        picture: Shape ``(C, H, W)`` of a row.
        pixels: Dtype of the pixels, uint8 or uint16.
        wide: False, because pixels have at most 16 bits.
    """

    place: Place
    files: tuple[Path, ...]
    reading: Reading
    picture: tuple[int, ...]
    pixels: np.dtype[np.generic]
    wide: bool = False

    @property
    def count(self) -> int:
        return len(self.files)

    @property
    def event(self) -> tuple[int, ...]:
        return self.picture

    @property
    def values(self) -> np.dtype[np.generic]:
        return self.pixels

    def widened(self, wide: bool) -> PictureFiles:
        return self

    def read(self, index: Array) -> Array:
        x = np.empty((len(index), *self.picture), self.pixels)
        for row, i in enumerate(index):
            file = self.files[i]
            try:
                found = decode(self.place.read(file), self.reading, self.picture[0])
            except OSError as error:
                raise DataError(f"{file} cannot be read: {reason(error)}") from error
            except ValueError as error:
                raise DataError(f"{file} {error}; it has changed since the data were opened") from error
            if found.shape != self.picture or found.dtype != self.pixels:
                raise DataError(
                    f"{file} now has the shape {found.shape} and the dtype {found.dtype}, not {self.picture} and "
                    f"{self.pixels}; it has changed since the data were opened"
                )
            x[row] = found
        return x


def decoded_size(place: Place, files: Sequence[Path], reading: Reading = AS_IS) -> int:
    """Return how many bytes all pictures would take in memory, judging by the first that can be decoded."""
    for file in files[:TRIED]:
        try:
            return decode(place.read(file), reading).nbytes * len(files)
        except (OSError, ValueError, MemoryError, ImportError):
            continue
    return 0
