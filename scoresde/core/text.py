"""Escape the control characters in text from files, so that a terminal does not interpret them.

References:
    ECMA-48, for the control characters.
    Unicode Standard Annex 9, for the direction marks, which can make one text look like another (Boucher and Anderson
    2023, arXiv:2111.00169).
"""

from __future__ import annotations

import re

__all__ = ["one_line", "printable"]

# Everything except tab and newline: control characters, direction marks, line separators, the byte order mark,
# annotations, lone surrogates, and tags.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""Return ``text`` with its control characters escaped, except for tabs and newlines.

    >>> print(printable("cat\x1b[2J and dog\nbird"))
    cat\x1b[2J and dog
    bird
    """
    return CONTROL.sub(_written, text)


def one_line(name: object) -> str:
    r"""Return a name from a file as a single line, with all control characters escaped, including tabs and newlines.

    >>> print(one_line("cat\nerror: dog"))
    cat\nerror: dog
    """
    return re.sub(r"[\t\n]", _written, printable(str(name)))


def _written(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
