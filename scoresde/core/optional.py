"""Optional output, such as figures. If it cannot be created, the user gets a warning instead of an error.

Figures and animations show results that may have taken a long time to compute. The results are written first, so that
they are not lost if there is a problem with a figure (a missing backend, a full disk, or a character that a font or a
parser cannot handle).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["optional"]


@contextmanager
def optional(what: str, kept: str = "") -> Iterator[None]:
    """Turn any error in the block into a warning, but let interrupts propagate.

    Args:
        what: The output that the block creates, as the subject of the warning.
        kept: A clause that says what has been saved. It is appended to the warning.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught, optional("samples.png", "the samples are in samples.npz"):
    ...     raise OSError("disk full")
    >>> print(caught[0].message)
    samples.png was not created (OSError: disk full); the samples are in samples.npz
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(f"{what} was not created ({reason}){f'; {kept}' if kept else ''}", stacklevel=3)
