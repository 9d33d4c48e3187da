"""Optional output, such as figures: a failure to make it leads to a warning, never to an error.

Figures and animations are made from numbers that took a long time to compute. Whatever goes wrong with a figure (a
backend that is not installed, a full disk, a character that a font or a parser cannot read) must not lose the numbers,
which are written first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["optional"]


@contextmanager
def optional(what: str, kept: str = "") -> Iterator[None]:
    """Turn any error in the block into a warning, but let interrupts pass.

    Args:
        what: The output that the block makes, as the subject of the warning.
        kept: A clause that says what is available in any case, for the end of the warning.

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
