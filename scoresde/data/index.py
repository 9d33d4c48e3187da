"""Remember what a pass over large data found, so that the same files are not read in full again.

What is remembered is a small file of arrays in the user's cache folder, ``$XDG_CACHE_HOME/scoresde/index`` or
``~/.cache/scoresde/index``, never beside the data. The name of the file is a hash of everything that the result depends
on: the path, size and time of change of the data and the options for reading them. A file that is damaged, that
describes other data or whose arrays have unexpected shapes is made again, and a file that cannot be written costs only
the time of another pass. The files contain plain numbers and text, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CheckpointError
from ..core.files import write_arrays
from ..core.opened import read_arrays
from .raw import Array

__all__ = ["folder", "remembered"]

VERSION = 1  # part of the name of each file; to be raised if the arrays or their meaning change
ABOUT = "about"  # the array that says what a file describes


def folder() -> Path:
    """Return the folder of the remembered arrays. It may not exist."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "scoresde" / "index"


def remembered(
    about: Mapping[str, Any], make: Callable[[], dict[str, Array]], fits: Callable[[Mapping[str, Array]], bool]
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return remembered arrays, or make them and remember them.

    Args:
        about: Everything that the arrays depend on, as plain JSON values.
        make: Makes the arrays.
        fits: Whether arrays have the names, the shapes and the dtypes of those that ``make`` returns.

    Returns:
        The arrays, keyed by name, and a note if they could not be remembered.
    """
    told = json.dumps({"version": VERSION, **about}, sort_keys=True)
    name = hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    try:
        found = read_arrays(folder() / f"{name}.npz")
        if str(found.pop(ABOUT)) == told and fits(found):
            return found, ()
    except Exception:  # missing, or damaged in any way
        pass
    made = make()
    try:
        write_arrays(folder() / f"{name}.npz", {**made, ABOUT: np.array(told)})
    except (CheckpointError, OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        return made, (f"the data will be read in full again next time, because what was found was not kept: {error}",)
    return made, ()
