"""Read tables: CSV and TSV files with a line for each sample and a column for each number, as written by spreadsheets
and data-frame libraries.

The meaning of a cell is never guessed. Cells that are neither numbers nor classes are rejected with a single error that
covers all columns. Notes report every decision, such as which column is left out as an index, or which column contains
the classes.

References:
    Shafranovich (2005), RFC 4180, Common format and MIME type for comma-separated values.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, islice
from operator import not_
from pathlib import Path

import numpy as np

from ..core.errors import DataError, Problem, Problems
from ..core.opened import gunzipped, read_bytes, reason
from ..core.registry import closest
from .raw import AS_IS, Array, Known, Raw, Reading, index_labels

__all__ = ["TABLE_SUFFIXES", "Sheet", "is_table", "place_columns", "read_sheet", "read_table", "table_of"]

TABLE_SUFFIXES = (".csv", ".tsv")
LABELS = ("y", "label", "labels", "class", "target")
UNNAMED = ("", "unnamed: 0")  # names that data frames give to their index
MISSING = frozenset(("", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-"))
NO_CLASS = MISSING - {"none", "-"}
CLASSES = 100  # integers count as classes if there are at most this many distinct values
EXACT = 2**53  # float64 represents every integer up to this one exactly
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII)  # 1,5
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)  # 1,500, which is 1500 or 1.5
FIRST = "0123456789+-.,$€£¥"  # first characters of a number, a date or an amount
# Common contents of cells that are not numbers, and what to do about them.
HINTS = (
    (re.compile(r"[+-]?(inf|infinity)", re.I), "which is infinite (leave out the line, or write a finite number)"),
    (re.compile(r"[+-]?[\d.,\s]*\d\s*%"), "which is a percentage (write the number without the sign)"),
    (re.compile(r"[+-]?\d{1,3}([,'\s_]\d{3})+(\.\d*)?"), "which has thousands separators (remove them)"),
    (re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d*)?"), "which has thousands separators (remove them)"),
    (COMMA, "which has a decimal comma (write a point instead, or separate the columns with semicolons)"),
    (re.compile(r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{2,4})([ T].*)?|\d{1,2}:\d{2}(:\d{2}.*)?"),
     "which is a date or a time (write a number, such as days since the first date, or leave the column out)"),
    (re.compile(r"true|false|yes|no", re.I), "which is a truth value (write 1 or 0)"),
    (re.compile(r"[$€£¥]\s*[\d.,]+|[\d.,]+\s*[$€£¥]"), "which is a price (write the number without the currency)"),
)  # fmt: skip
TEXT = (
    "which is not a number (leave the column out, replace it with one column of 0 and 1 per value or, if it holds the "
    "class of each line, name it label)"
)
FEW = "which is not a number (correct the cell, or leave it empty)"
RARE = 0.5  # share of a column up to which cells with words are regarded as mistakes
LONE = 5  # most classes of a single line that are named, because they may be typing errors
USUAL = 10  # lowest mean number of lines of a class for which a single line is unusual


def is_table(path: Path) -> bool:
    """Return whether a file name has the suffix of a table, with or without ``.gz``."""
    return path.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES)


@dataclass(frozen=True)
class _Column:
    """A column of a table.

    Attributes:
        name: Name, or "" if the column has none.
        place: Position, counted from 1.
        cells: The cells as text.
        numbers: The cells as numbers, or ``None`` if a cell is not a number. Empty cells that are kept are replaced by
            the mean of the other cells, rounded if these are integers.
        whole: Whether all cells are written as integers, except for empty cells that are kept.
        known: A mask ``(N,)`` that is false for empty cells that are kept, or ``None`` if there are no such cells.
        gaps: Whether some cells may be empty.
    """

    name: str
    place: int
    cells: Sequence[str]
    numbers: Array | None = None
    whole: bool = False
    known: Array | None = None
    gaps: bool = False

    def __str__(self) -> str:
        return f"column {self.name!r}" if self.name else f"column {self.place}"

    @property
    def classes(self) -> int:
        """Number of distinct values if they are integers and few enough to be classes, else 0."""
        x = self.numbers
        if x is None or x.dtype == object or not np.array_equal(x, np.rint(x.astype(np.float64))):
            return 0
        found = len(np.unique(x))
        return found if found <= min(CLASSES, len(x) / 2) else 0


def read_table(path: Path, reading: Reading = AS_IS, keep: Collection[str] = ()) -> Raw:
    """Read a table, gzipped or not.

    Args:
        path: The file, in UTF-8, with cells separated by commas, semicolons or tabs. The first line may name the
            columns.
        reading: Options, of which only ``columns``, ``only`` and ``empty`` apply to tables.
        keep: Names of columns to keep as data, even if they look like an index or the class.

    Returns:
        The content of the table. ``train`` has shape ``(N, D)``. Its dtype is int64 if all columns contain only
        integers, and float64 otherwise.

    Raises:
        DataError: If the file is not a valid table.
        Problems: If cells are neither numbers nor classes. The error lists every column, with the line of the first
            such cell.
    """
    return table_of(path, _text(path), reading, keep)


def table_of(path: Path, text: str, reading: Reading = AS_IS, keep: Collection[str] = (), separator: str = "") -> Raw:
    """Read a table from a text. ``path`` is used only in messages.

    The other arguments and the result are those of :func:`read_table`. By default, the separator is found from the
    first lines.
    """
    separator = separator or _separator(text)
    names, rows, lines = _rows(path, text, separator)
    rows, lines, blank = _without_empty(path, names, rows, lines)
    cells = [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]
    numbers = sum(bool(NUMBER.fullmatch(name)) for name in names)
    of_them = "of its cells is a number" if numbers == 1 else "of its cells are numbers"
    notes = [f"the first line is read as column names, although {numbers} {of_them}"] if numbers else []
    notes += [left_out(len(blank), blank)] if blank else []
    if separator != "," and "," in text:
        _decimal_commas(path, cells, lines, notes)
    told, gaps = _told(path, names, reading.columns), reading.empty == "keep"
    columns = [
        _Column(name, i + 1, column, gaps=gaps or name in told)
        for i, (name, column) in enumerate(zip(names, cells, strict=True))
    ]
    if reading.only:
        columns, keep = _only(path, columns, reading.only, told, notes), (*keep, *reading.only)
    columns = [_parsed(column) for column in columns]
    columns = _without_index(path, columns, (*keep, *told), notes)
    given = [c for name in told for c in columns if c.name == name]
    columns = [c for c in columns if c.name not in told]
    if not columns:
        raise DataError(
            f"{path}: every column is part of the condition, so none is left for the model to generate; remove at "
            "least one column from the condition"
        )
    classes = _classes(path, columns, keep, lines, notes)
    columns = [c for c in columns if c is not classes]
    _check(path, given, columns, classes, lines)
    pointed = [str(c) for c in columns if not c.whole and (np.asarray(c.numbers) % 1 == 0).all()]
    if pointed:
        more = f" and {len(pointed) - 5} more" if pointed[5:] else ""
        notes.append(
            f"integers with a decimal point are treated as continuous in {', '.join(pointed[:5])}{more}; write the "
            "integers without the point to treat them as levels"
        )
    whole = all(c.whole for c in columns)
    train = np.stack([np.asarray(c.numbers) for c in columns], 1).astype(np.int64 if whole else np.float64, copy=False)
    labels = None
    if classes is not None:
        values = np.array(classes.cells) if classes.numbers is None else classes.numbers
        labels = values if values.dtype.kind in "iU" else values.astype(np.int64)
    (labels,), found = index_labels(path, labels)
    return Raw(
        "vector",
        train,
        train_labels=labels,
        classes=found,
        names=tuple(c.name for c in columns) if any(names) else (),
        whole=tuple(c.whole for c in columns),
        files=(path,),
        notes=tuple(notes),
        complete=_complete(columns),
        train_known=Known(_vector(given), tuple(told)) if told else Known(),
        lines=tuple(lines),
    )


# ------------------------------------------------------------------------------------------------ cells as they are


@dataclass(frozen=True, eq=False)
class Sheet:
    """The unparsed cells of a table, so that empty cells can be filled in and the table can be saved again.

    Attributes:
        path: The file.
        names: Names of the columns. Empty strings if the table has no header.
        rows: The cells, without the header.
        lines: The line of the file on which each row ends.
        separator: The character between two cells.
        commas: Whether the numbers have decimal commas.
    """

    path: Path
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    separator: str = ","
    commas: bool = False

    def column(self, place: int) -> list[str]:
        """Return the stripped cells of column ``place`` (counted from 0), with points in place of decimal commas."""
        cells = [row[place].strip() for row in self.rows]
        return [cell.replace(",", ".") if self.commas and COMMA.fullmatch(cell) else cell for cell in cells]

    def empty(self, place: int) -> list[bool]:
        """Return, for each cell of column ``place`` (counted from 0), whether the cell is empty."""
        return [cell.lower() in MISSING for cell in self.column(place)]

    def numbers(self, places: Iterable[int]) -> Array:
        """Return the numbers in the K columns ``places`` as a float64 array ``(N, K)``, with NaN for empty cells.

        Raises:
            DataError: If a cell is neither empty nor a number. The message names the line and column of the cell.
        """
        found, faults = [], []
        for place in places:
            column, gaps = _Column(self.names[place], place + 1, self.column(place)), self.empty(place)
            try:
                values = [float("nan") if gap else _number(cell) for cell, gap in zip(column.cells, gaps, strict=True)]
                found.append(np.array(values))
            except ValueError:
                faults.append(
                    _fault(column, self.lines, False) or f"{column} has an infinite number (write a finite one)"
                )
        if faults:
            raise DataError(f"{self.path}: " + "; ".join(faults))
        return np.stack(found, 1) if found else np.empty((len(self.rows), 0))


def read_sheet(path: Path) -> Sheet:
    """Read a table, gzipped or not, without parsing its cells.

    The supported formats are those of :func:`read_table`.

    Raises:
        DataError: If the file is not a table.
    """
    text = _text(path)
    separator = _separator(text)
    names, rows, lines = _rows(path, text, separator)
    notes: list[str] = []
    if separator != "," and "," in text:
        _decimal_commas(path, [[cell.strip() for cell in column] for column in zip(*rows, strict=True)], lines, notes)
    return Sheet(path, tuple(names), tuple(map(tuple, rows)), tuple(lines), separator, bool(notes))


def _number(cell: str) -> float:
    if not NUMBER.fullmatch(cell) or not np.isfinite(value := float(cell)):
        raise ValueError(cell)
    return value


# ------------------------------------------------------------------------------------------------------ text to cells


def _text(path: Path) -> str:
    """Return the text of a UTF-8 file, gzipped or not."""
    try:
        data = gunzipped(read_bytes(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged or truncated gzip file ({error}); compress the table again") from error
    except (OSError, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is encoded in UTF-16; save it as UTF-8 (in a spreadsheet, choose CSV UTF-8)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: byte 0x{data[error.start]:02x} in line {line} is not UTF-8; save the file as UTF-8 (in a "
            "spreadsheet, choose CSV UTF-8)"
        ) from error
    if "\0" in text:
        raise DataError(f"{path} contains NUL bytes, so it is not a text file; save it as CSV in UTF-8")
    return text


def _separator(text: str) -> str:
    """Return the separator (comma, semicolon or tab) that best splits the first lines into rows of numbers."""
    start = text[: 1 << 16]
    cut = len(start) < len(text)

    def merit(separator: str) -> tuple[bool, float, float, int]:
        rows = []
        try:
            for row in islice(csv.reader(io.StringIO(start, newline=""), delimiter=separator), 100):
                rows += [row] if row else []
        except csv.Error:
            rows = []
        if not rows:
            return False, 0.0, 0.0, 0
        rows = rows[:-1] if cut and len(rows) > 1 else rows  # the last row may be cut short
        width, times = Counter(map(len, rows)).most_common(1)[0]
        cells = [cell.strip() for cell in chain(*rows[1:] or rows)]
        numbers = sum(bool(NUMBER.fullmatch(c) or COMMA.fullmatch(c) or c.lower() in MISSING) for c in cells)
        return width > 1, numbers / max(len(cells), 1), times / len(rows), width

    return max(",;\t", key=merit)


def _rows(path: Path, text: str, separator: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the column names ("" if there is no header), the rows, and the line on which each row ends."""
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is not valid CSV ({error}); check its quotation marks"
        ) from error
    while rows and not rows[-1]:  # blank lines at the end of the file
        rows.pop()
    if not any(cell.strip() for row in rows for cell in row):
        nothing = ": it has neither column names nor values; name the columns in the first line, and" if rows else ";"
        raise DataError(f"{path} is empty{nothing} add a line for each sample")
    while not rows[0]:
        rows, lines = rows[1:], lines[1:]
    width = len(rows[0])
    if width > 1:
        kept = [i for i, row in enumerate(rows) if len(row) > 1 or any(cell.strip() for cell in row)]
        rows = [rows[i] if any(cell.strip() for cell in rows[i]) else [""] * width for i in kept]
        lines = [lines[i] for i in kept]
    else:
        rows = [row or [""] for row in rows]
        parts = rows[-1][0].split()
        if len(parts) > 1 and all(map(NUMBER.fullmatch, parts)):
            raise DataError(f"{path} has numbers separated by spaces; separate them with commas")
    for row, line in zip(rows, lines, strict=False):
        if len(row) != width:
            more = separator == "," and len(row) > width
            raise DataError(
                f"{path}: line {line} has {len(row)} cell{'s' if len(row) > 1 else ''}, but the first line has {width} "
                f"(separated by {separator!r}); all lines must have the same number of cells"
                + (" (a number with a decimal comma, such as 12,5, counts as two cells: write 12.5)" if more else "")
            )
    names = [" ".join(cell.split()) for cell in rows[0]]
    names[0] = names[0].removeprefix("#").lstrip()  # as np.savetxt writes it
    if not _is_header(names, rows[1:]):
        return [""] * width, rows, lines
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(
            f"{path}: several columns have the same name ({', '.join(map(repr, twice[:5]))}); give each column a "
            "unique name"
        )
    if len(rows) == 1:
        raise DataError(f"{path} has column names but no rows below them; add a row for each sample")
    return names, rows[1:], lines[1:]


def _without_empty(
    path: Path, names: Sequence[str], rows: list[list[str]], lines: list[int]
) -> tuple[list[list[str]], list[int], list[int]]:
    """Leave out rows without a value, such as spreadsheets leave at the end. Return the rest and the lines left out.

    In a table with a single column, an empty row is an empty cell, and is kept.
    """
    there = [any(cell.strip() for cell in row) for row in rows]
    if not any(there):
        raise DataError(f"{path} has column names, but no row below them has a value; add a row for each sample")
    if len(names) == 1:
        return rows, lines, []
    return list(compress(rows, there)), list(compress(lines, there)), list(compress(lines, map(not_, there)))


def left_out(count: int, lines: Sequence[int]) -> str:
    """Say that ``count`` rows without values are left out, and on which lines of the file they are, if known."""
    listed = ", ".join(map(str, lines[:5])) + ", ..." * bool(lines[5:])
    what = f"line {listed}" if len(lines) == 1 else f"{count:,} {'lines' if lines else 'samples'}"
    what += f" ({listed})" * (len(lines) > 1)
    if count == 1:
        return f"{what if lines else '1 sample'} has no values and is left out"
    return f"{what} have no values and are left out"


def _is_header(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row names the columns."""
    for i, name in enumerate(first):
        if name.lower() in MISSING or name[0] in FIRST:
            continue
        below = next((row[i].strip() for row in rows if row[i].strip().lower() not in MISSING), None)
        if below is None or below[0] in FIRST:  # a word above a number, or above only empty cells
            return True
    # If words are only above words, the first row is a header only if it names a column of classes, such as label.
    return not any(map(NUMBER.fullmatch, first)) and any(name.lower() in LABELS[1:] for name in first)


# --------------------------------------------------------------------------------------------------- cells to numbers


def _decimal_commas(path: Path, columns: list[list[str]], lines: Sequence[int], notes: list[str]) -> None:
    """Replace decimal commas in ``columns`` with points, and add a note. The separator must not be a comma."""
    commas = [(i, cell) for column in columns for i, cell in enumerate(column) if "," in cell and COMMA.fullmatch(cell)]
    if not commas:
        return
    if all(GROUPED.fullmatch(cell) for _, cell in commas):
        i, cell = commas[0]
        number = cell.replace(",", "")
        raise DataError(
            f"{path}: {cell!r} in line {lines[i]} could mean {number} or {cell.replace(',', '.')}; "
            "write one or the other"
        )
    points = [(i, c) for column in columns for i, c in enumerate(column) if "." in c and NUMBER.fullmatch(c)]
    if points:
        (i, one), (k, other) = commas[0], points[0]
        raise DataError(
            f"{path}: {one!r} in line {lines[i]} has a decimal comma, but {other!r} in line {lines[k]} has a decimal "
            "point; write all numbers in the same way"
        )
    for column in columns:
        column[:] = [cell.replace(",", ".") if COMMA.fullmatch(cell) else cell for cell in column]
    notes.append(f"numbers with a decimal comma: {len(commas):,} (such as {commas[0][1]})")


def _told(path: Path, names: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """Check that the table has the columns ``asked``, and return their names."""
    for name in asked:
        if name not in names:
            hint = closest(name, filter(None, names)) if any(names) else "name the columns in the first line"
            raise DataError(f"{path} has no column {name!r}; {hint}", parameter="cond")
    return tuple(asked)


def place_columns(names: Sequence[str], wanted: Sequence[str], taken: Collection[int] = ()) -> list[int | None]:
    """Find columns by their names or, in a table without names, by their order.

    Args:
        names: The names of the columns of the table, which are empty strings if the table has no header.
        wanted: The names of the columns to find.
        taken: Positions of columns that are used for something else.

    Returns:
        The position of each wanted column, counted from 0, or ``None`` if the table does not have the column.
    """
    if any(names):
        return [list(names).index(name) if name in names else None for name in wanted]
    free = [i for i in range(len(names)) if i not in taken]
    return list(free) if len(free) == len(wanted) else [None] * len(wanted)


def _only(
    path: Path, columns: list[_Column], only: Sequence[str], told: Sequence[str], notes: list[str]
) -> list[_Column]:
    """Return the columns ``only``, in this order, followed by those of the condition and the class."""
    names = [c.name for c in columns]
    places = place_columns(names, only)
    missing = [name for name, place in zip(only, places, strict=True) if place is None]
    if missing:
        have = "" if any(names) else f", and the {len(columns)} columns of the table have no names"
        more = ", ..." if len(missing) > 10 else ""
        raise DataError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing[:10])}{more}{have}; add "
            f"{'them' if missing[1:] else 'it'}, or rename columns"
        )
    rest = [c for i, c in enumerate(columns) if i not in places]
    kept = [c.name in told or c.name.lower() in LABELS for c in rest]
    left = [str(c) for c, keeps in zip(rest, kept, strict=True) if not keeps]
    if left:
        more = f" and {len(left) - 5} more" if left[5:] else ""
        notes.append(f"not part of the data of the model, and left out: {', '.join(left[:5])}{more}")
    return [*(columns[i] for i in places if i is not None), *(c for c, keeps in zip(rest, kept, strict=True) if keeps)]


def _complete(columns: Sequence[_Column]) -> Array | None:
    """Return a boolean mask ``(N, D)`` of the cells that are not empty, or ``None`` if no cell is empty."""
    if all(c.known is None for c in columns):
        return None
    return np.stack([np.ones(len(c.cells), bool) if c.known is None else c.known for c in columns], 1)


def _vector(columns: Sequence[_Column]) -> Array:
    """Return the numbers in K columns as a float64 array ``(N, K)``, with NaN for empty cells."""
    x = np.stack([np.asarray(c.numbers, np.float64) for c in columns], 1)
    known = _complete(columns)
    return x if known is None else np.where(known, x, np.nan)


def _parsed(column: _Column) -> _Column:
    """Parse the cells of a column as numbers. If some are not numbers, return the column unchanged.

    If the column may have gaps, some cells may be empty, but not all.
    """
    empty = _missing(column.cells, MISSING) if column.gaps else []
    if empty and len(empty) < len(column.cells):
        known = np.ones(len(column.cells), bool)
        known[empty] = False
        rest = _parsed(replace(column, cells=list(compress(column.cells, known)), gaps=False))
        if rest.numbers is None:
            return column
        mean = float(np.asarray(rest.numbers, np.float64).mean())
        filled = np.full(len(known), round(mean) if rest.whole else mean, dtype=rest.numbers.dtype)
        filled[known] = rest.numbers
        return replace(column, numbers=filled, whole=rest.whole, known=known)
    letters = set("".join(column.cells))
    try:
        if letters <= set("0123456789+-"):
            # Python does not parse integers of more than 4,300 digits; as floats, they are infinite and are rejected.
            numbers: list[float] = [int(cell) if len(cell) <= 4300 else float(cell) for cell in column.cells]
            small = -(2**63) <= min(numbers) and max(numbers) < 2**63
            return replace(column, numbers=np.array(numbers, np.int64 if small else object), whole=True)
        if letters <= set("0123456789+-.eE"):
            return replace(column, numbers=np.array([float(cell) for cell in column.cells]))
    except ValueError:
        pass
    return column


def _without_index(path: Path, columns: list[_Column], keep: Collection[str], notes: list[str]) -> list[_Column]:
    """Leave out an unnamed index and unnamed empty columns, and add notes."""
    named = any(c.name for c in columns)
    if not named and _counts(columns[0]) and len(columns) > 1:
        notes.append("column 1 numbers the lines; leave it out if it is not part of the data")
    if not named:
        return columns
    kept = []
    for c in columns:
        if c.place == 1 and c.name.lower() in UNNAMED and c.name not in keep and _counts(c):
            notes.append("the first column has no name and numbers the lines, so it is left out")
        elif not c.name and not any(c.cells):
            notes.append(f"{c} has neither a name nor values, so it is left out")
        elif not c.name:
            raise DataError(f"{path}: {c} has no name in the first line; name it or remove it")
        else:
            if _counts(c) and c.name not in keep:
                notes.append(f"{c} numbers the lines; leave it out if it is not part of the data")
            kept.append(c)
    return kept


def _counts(column: _Column) -> bool:
    """Return whether a column numbers the lines, starting from 0 or 1."""
    x = column.numbers
    if x is None or not column.whole or len(x) < 3 or x[0] not in (0, 1):
        return False
    return np.array_equal(x, np.arange(len(x)) + x[0])


def _classes(
    path: Path, columns: Sequence[_Column], keep: Collection[str], lines: Sequence[int], notes: list[str]
) -> _Column | None:
    """Return the column that contains the class of each line, or ``None``."""
    called = [c for c in columns if c.name.lower() in LABELS and c.name not in keep]
    words = [c for c in called if _words(c) and not _mistyped(c)]
    points = any(c.name.lower() == "x" and c.numbers is not None for c in columns)  # x and y are coordinates in a plane
    numbers = [c for c in called if c.classes and not (points and c.name.lower() == "y")]
    if len(words) + len(numbers) > 1:
        listed = " and ".join(str(c) for c in (*words, *numbers))
        raise DataError(f"{path}: it is unclear which of {listed} holds the classes; rename or leave out all but one")
    for c in called:
        if c.numbers is not None and c not in numbers:
            notes.append(f"{c} is treated as data, not as the class, because it " + _why_no_class(c))
    found = next(iter((*words, *numbers)), None)
    if found is None:
        return None
    values = len(set(found.cells))
    if found in words and values == len(found.cells) > 1:
        raise DataError(
            f"{path}: {found} has a different value in each of {values} lines, such as {found.cells[0]!r}, so these "
            "are not classes; leave the column out"
        )
    if len(columns) == 1:
        raise DataError(f"{path}: {found} holds classes, but there are no columns of numbers; add at least one")
    counts = Counter(found.cells)
    lone = [i for i, cell in enumerate(found.cells) if counts[cell] == 1]
    alone = ""
    if 0 < len(lone) <= LONE and len(found.cells) >= USUAL * values:
        named = ", ".join(f"{_short(found.cells[i])!r} (line {lines[i]})" for i in lone)
        alone = f"; classes of a single line, which may be typing errors: {named}"
    notes.append(f"{found} holds the class of each line{alone}")
    return found


def _mistyped(column: _Column) -> bool:
    """Return whether a column holds numbers that cannot be classes, apart from some cells with words."""
    numbers = [cell for cell in column.cells if NUMBER.fullmatch(cell)]
    rest = _parsed(replace(column, cells=numbers, gaps=False))
    words = sum(not NUMBER.fullmatch(cell) and cell.lower() not in MISSING for cell in column.cells)
    return words <= RARE * len(numbers) and rest.numbers is not None and not rest.classes


def _words(column: _Column) -> bool:
    """Return whether a column has cells that are neither numbers nor missing."""
    if column.numbers is not None:
        return False
    return any(not NUMBER.fullmatch(cell) and cell.lower() not in MISSING for cell in column.cells)


def _why_no_class(column: _Column) -> str:
    x = np.asarray(column.numbers)
    if not np.array_equal(x, np.rint(x.astype(np.float64))):
        return "holds numbers that are not integers"
    values = len(np.unique(x))
    if values <= min(CLASSES, len(x) / 2):
        return "may be a coordinate (there is a column x); if it is the class, name it label"
    return f"has {values:,} distinct values in {len(x):,} lines"


def _check(
    path: Path, given: Sequence[_Column], data: Sequence[_Column], classes: _Column | None, lines: Sequence[int]
) -> None:
    """Raise a single error that covers all invalid cells of the condition ``given``, the data and the classes."""
    columns, whole = [*given, *data], all(c.whole for c in data)
    faults = [fault for c in columns if (fault := _fault(c, lines, whole and c not in given))]
    problems = [Problem(fault) for fault in faults[:8]]
    problems += [Problem(f"{len(faults) - 8} more columns have such cells")] if faults[8:] else []
    unknown = [] if classes is None else _missing(classes.cells, NO_CLASS if classes.numbers is None else MISSING)
    if unknown:
        problems.append(Problem(
            f"{len(unknown):,} empty cell{'s' * (len(unknown) > 1)}, the first in line {lines[unknown[0]]}, {classes}, "
            "which holds the classes (write a class, or leave out these lines or the column)"
        ))  # fmt: skip
    empty = {str(c): at for c in columns if c.numbers is None and (at := _missing(c.cells, MISSING))}
    nothing = [str(c) for c in columns if c.numbers is None and len(empty.get(str(c), ())) == len(c.cells)]
    if nothing:
        problems.append(Problem(
            f"there is no value in {', '.join(nothing[:5])}{', ...' * bool(nothing[5:])} (leave out "
            f"{'these columns' if nothing[1:] else 'the column'})"
        ))  # fmt: skip
    empty = {str(c): empty[str(c)] for c in columns if str(c) in empty and str(c) not in nothing and not c.gaps}
    if empty:
        name, at = min(empty.items(), key=lambda item: item[1][0])
        total = sum(map(len, empty.values()))
        more = f" in {len(empty)} columns ({', '.join(list(empty)[:5])}{', ...' if len(empty) > 5 else ''})"
        problems.append(Problem(
            f"{total:,} empty cell{'s' if total > 1 else ''}{more if len(empty) > 1 else ''}, the first in line "
            f"{lines[at[0]]}, {name} (write numbers, leave out these lines or columns, or train with the condition "
            "cells, which accepts empty cells)", {"cond": "cells"},
        ))  # fmt: skip
    if problems:
        raise Problems(path, problems)


def _missing(cells: Sequence[str], marks: Collection[str]) -> list[int]:
    return [i for i, cell in enumerate(cells) if cell.lower() in marks]


def _fault(column: _Column, lines: Sequence[int], whole: bool) -> str:
    """Describe the first invalid cell of a column, or return "" if there is none. Empty cells are ignored."""
    x, cells = column.numbers, column.cells
    if x is None:
        bad = [i for i, cell in enumerate(cells) if not NUMBER.fullmatch(cell) and cell.lower() not in MISSING]
        reason = next((hint for form, hint in HINTS if bad and form.fullmatch(cells[bad[0]])), "")
        if not reason:
            reason = TEXT if len(bad) > RARE * len(cells) else FEW
    elif column.whole:
        limit = 2**63 - 1 if whole else EXACT
        bad = [i for i, value in enumerate(x.tolist()) if abs(value) > limit]
        reason = "which has more digits than can be stored (leave the column out, or subtract an offset)"
    else:
        bad = np.flatnonzero(~np.isfinite(x)).tolist()
        reason = "which is beyond the range of floating-point numbers (write a smaller number)"
    if not bad:
        return ""
    others = f" ({len(bad):,} such cells)" if len(bad) > 1 else ""
    return f"{column} has {_short(cells[bad[0]])!r} in line {lines[bad[0]]}{others}, {reason}"


def _short(cell: str) -> str:
    return cell if len(cell) <= 40 else cell[:37] + "..."
