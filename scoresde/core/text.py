"""Text that a file chose, fit to be shown: a terminal obeys control characters, and these are written out.

References:
    ECMA-48 for the control characters; Unicode Standard Annex 9 for the marks of direction, by which a text can be made
    to look like another (Boucher and Anderson 2023, arXiv:2111.00169).
"""

from __future__ import annotations

import re

__all__ = ["one_line", "printable"]

# All but tab and newline: controls, marks of direction, separators of lines, a byte order mark, annotations, halves of
# pairs, and tags.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""``text`` with its control characters written out, but for tabs and the ends of lines.

    >>> print(printable("cat\x1b[2J and dog\nbird"))
    cat\x1b[2J and dog
    bird
    """
    return CONTROL.sub(_written, text)


def one_line(name: object) -> str:
    r"""A name from a file, on one line.

    >>> print(one_line("cat\nerror: dog"))
    cat\nerror: dog
    """
    return re.sub(r"[\t\n]", _written, printable(str(name)))


def _written(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
