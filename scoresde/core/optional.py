"""Output that a result can do without: what fails there is a warning, and never an error.

Pictures and animations follow numbers that took long to compute. Whatever they raise (a backend that is not installed,
a full disk, a character that a font or a parser cannot read) must not cost the numbers, which are written first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["optional"]


@contextmanager
def optional(what: str, kept: str = "") -> Iterator[None]:
    """Turn any error of the block into a warning; an interrupt passes.

    Args:
        what: What is made in the block, for the warning.
        kept: What is there all the same, likewise.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught, optional("samples.png", "the samples are in samples.npz"):
    ...     raise OSError("disk full")
    >>> print(caught[0].message)
    samples.png was not made (OSError: disk full); the samples are in samples.npz
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(f"{what} was not made ({reason}){f'; {kept}' if kept else ''}", stacklevel=3)
