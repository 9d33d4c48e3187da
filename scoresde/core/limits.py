"""What a number may be: ranges that fields and arguments declare, and what fits into the memory.

A dataclass states the ranges of its fields in a class attribute, a function those of its arguments in a decorator,

    limits = ranges(sigma_min=POSITIVE)                  @checked(n=COUNT)

and what states nothing is held to its annotation all the same: a ``float`` is a finite number and an ``int`` a whole
one, so that a new field is safe before anybody has thought of it. The first number that cannot be right is refused,
with its name, its value and what it may be.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, ParamSpec, TypeVar

from .errors import UsageError

__all__ = [
    "ATOL", "CLASSES", "COUNT", "DEPTH", "EVALUATIONS", "FRACTION", "FRAMES", "LR", "NONNEGATIVE", "POSITIVE", "RTOL",
    "SCALE", "SEED", "SEVERAL", "SHARE", "SIZE", "STEPS", "TIME", "TOLD", "TRAINED", "WHOLE", "WIDTH", "Checked",
    "Range", "check_fields", "check_number", "checked", "duration", "enough_for_network", "enough_memory", "kinds_of",
    "memory", "ranges",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``.

    Args:
        low, high: The ends.
        above, below: Whether that end itself is left out.
        infinite: Whether infinity is a value.
        seconds: What each of a count takes at the very least; a number that is too large is told with the time.
        hint: A sentence more for who is outside.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False
    seconds: float = 0.0
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not self.infinite)):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def noun(self, whole: bool = False) -> str:
        """``a number > 0 and <= 1``."""
        told = self.infinite or self.high < math.inf
        words = "a whole number" if whole else "a number" if told else "a finite number"
        low, high = (f"{end:,d}" if whole and abs(end) < math.inf else f"{end:g}" for end in _ends(self, whole))
        ends = [f"{'>' if self.above else '>='} {low}"] if self.low > -math.inf else []
        ends += [f"{'<' if self.below else '<='} {high}"] if self.high < math.inf else []
        return " ".join(filter(None, (words, " and ".join(ends))))


def _ends(range_: Range, whole: bool) -> tuple[Any, Any]:
    ends = range_.low, range_.high
    return tuple(int(e) if whole and abs(e) < math.inf else e for e in ends)  # type: ignore[return-value]


NUMBER = Range()
POSITIVE = Range(0, above=True)
NONNEGATIVE = Range(0)
FRACTION = Range(0, 1)  # both ends are values
SHARE = Range(0, 1, above=True, below=True)
WHOLE = Range(0, 2**53)
COUNT = Range(1, 10**9)
SEVERAL = Range(2, 10**9)
TRAINED = Range(1, 10**8, seconds=1e-3)  # steps of training
STEPS = Range(1, 10**6, seconds=1e-4)  # of a solver, or strata of a bound; published are at most 2000
FRAMES = Range(2, 1000)  # of a moving picture
WIDTH = Range(1, 10**6)  # of a layer
DEPTH = Range(0, 1000)  # of blocks
LR = Range(0, 1e30, above=True)  # the learning rate
SEED = Range(0, 2**64 - 1)
SIZE = Range(0, 16_384)  # the side of a picture, in pixels
SCALE = Range(-1000, 1000, hint="of guidance; 1 is none")
EVALUATIONS = Range(1, 10**9)
TIME = Range(0, 1e6)
CLASSES = Range(0, 10**6)
TOLD = Range(0, 1000)  # numbers that a network is told of a row
RTOL = Range(0, 1e12, above=True, hint="for example 1e-5")
ATOL = Range(0, 1e12, hint="for example 1e-5")

_ANY = Range(-(2**63), 2**63 - 1)  # of a whole number of which nothing is said


@functools.lru_cache(maxsize=4096)
def _kinds(text: str) -> frozenset[str]:
    while "[" in text and (bare := re.sub(r"\[[^\[\]]*\]", "", text)) != text:
        text = bare
    return frozenset(part.strip() for part in text.split("|"))


def kinds_of(annotation: object) -> frozenset[str]:
    """What an annotation allows, ``float | None`` as two names; empty where nothing is said."""
    if annotation is inspect.Parameter.empty:
        return frozenset()
    return _kinds(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def check_number(
    name: str, value: Any, range_: Range | None = None, annotation: object = "float", where: str = ""
) -> Any:
    """A number, if it can be one; a NumPy number as a plain one.

    Args:
        name: What it is called.
        value: The value; tuples are checked number by number, and what the annotation leaves open is left as it is.
        range_: What it may be (default: any finite, or whole, number).
        annotation: What its type may be, as in a signature.
        where: What has it, for the message.

    Raises:
        UsageError: With the parameter, the value and what is allowed.

    >>> check_number("steps", 3, COUNT, "int"), check_number("rtol", None, POSITIVE, "float | None")
    (3, None)
    """
    kinds = kinds_of(annotation)
    if "tuple" in kinds and isinstance(value, tuple | list):
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        inner = re.search(r"tuple\[(\w+)", text)
        if inner and inner[1] in ("int", "float"):
            made = tuple(check_number(name, part, range_, inner[1], where) for part in value)
            return value if made == value else type(value)(made)
        return value
    if kinds == {"bool"}:
        return _flag(name, value, where)
    allowed = {"None": value is None, "str": isinstance(value, str), "bool": isinstance(value, bool)}
    if not kinds & {"int", "float"} or any(kind in kinds and found for kind, found in allowed.items()):
        return value
    whole = "float" not in kinds
    found = _number(value, whole)
    if found is None:
        known = kinds - {"int", "float", "None", "bool", "tuple", "str"}
        if known and not isinstance(value, str | bool | int | float | complex | None):
            return value  # a tensor, say, where one is allowed
    elif found in (range_ or (_ANY if whole else NUMBER)):
        plain = isinstance(value, int | float) or not _is_numpy(value)
        return value if plain else found
    raise _refused(name, value, found, range_ or NUMBER, whole, "None" in kinds, where)


def _flag(name: str, value: Any, where: str) -> Any:
    """A yes or a no."""
    if isinstance(value, bool):
        return value
    if _is_numpy(value) and type(value).__name__.startswith("bool"):
        return bool(value)
    raise UsageError(f"{where}{name} is {_shown(value)}; it must be true or false", parameter=name)


def _number(value: Any, whole: bool) -> Any:
    """The value as a plain number, or ``None`` if it is none."""
    if value is None or isinstance(value, bool | str | bytes | complex) or type(value).__name__ == "bool_":
        return None
    try:
        return operator.index(value) if whole else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _is_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy"


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        digits = value.bit_length() * 0.30103
        return f"about 1e{digits:.0f}" if digits > 30 else f"{value:,}" if abs(value) >= 10**6 else str(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refused(name: str, value: Any, found: Any, range_: Range, whole: bool, optional: bool, where: str) -> UsageError:
    """The error for a value out of its range."""
    noun = range_.noun(whole) + (", or none" if optional else "")
    more = f" ({range_.hint})" if range_.hint else ""
    large = found is not None and range_.high < found < math.inf
    if large and range_.seconds:
        told = duration(min(found, 10**30) * range_.seconds)
        more += f": that many would take at least {told}, take a smaller number"
    answer = (int(range_.high) if whole else range_.high) if large and not range_.below else None
    return UsageError(f"{where}{name} is {_shown(value)}; it must be {noun}{more}", parameter=name, value=answer)


def check_fields(thing: Any, where: str | None = None) -> None:
    """Hold every field of a dataclass to its annotation, and to the range that its class states in ``limits``.

    Args:
        thing: A dataclass, frozen or not; NumPy numbers in it become plain ones.
        where: What has the fields, for the message (default: the class).

    Raises:
        UsageError: With the first that offends.
    """
    limits: dict[str, Range] = {}
    for kind in reversed(type(thing).__mro__):
        limits |= vars(kind).get("limits", {})
    where = f"{type(thing).__name__}: " if where is None else where
    for field in dataclasses.fields(thing):
        if field.init:
            value = getattr(thing, field.name)
            plain = check_number(field.name, value, limits.get(field.name), field.type, where)
            if plain is not value:
                object.__setattr__(thing, field.name, plain)


def ranges(**limits: Range) -> Mapping[str, Range]:
    """The ranges of fields, as a class states them."""
    return MappingProxyType(limits)


class Checked:
    """A dataclass whose numbers are checked as soon as they are there.

    A subclass with a ``__post_init__`` of its own calls this one first.

    Attributes:
        limits: The ranges of fields, those of base classes included.
    """

    limits: ClassVar[Mapping[str, Range]] = ranges()

    def __post_init__(self) -> None:
        if dataclasses.is_dataclass(self):
            check_fields(self)


def checked(**limits: Range) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Hold the arguments of a function to their annotations and to these ranges, before it begins.

    >>> @checked(n=COUNT)
    ... def draw(n: int, scale: float = 1.0) -> float: return n * scale
    >>> draw(0)
    Traceback (most recent call last):
    ...
    scoresde.core.errors.UsageError: n is 0; it must be a whole number >= 1 and <= 1,000,000,000
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        known = {
            name: p.annotation for name, p in signature.parameters.items()
            if kinds_of(p.annotation) & {"int", "float", "tuple"}
        }  # fmt: skip

        @functools.wraps(function)
        def called(*args: P.args, **given: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **given)
            except TypeError:
                return function(*args, **given)  # which says what is missing in its own words
            for name, annotation in known.items():
                if name in bound.arguments:
                    bound.arguments[name] = check_number(name, bound.arguments[name], limits.get(name), annotation)
            return function(*bound.args, **bound.kwargs)

        return called

    return decorate


# ------------------------------------------------------------------------------------------------------------- memory


@functools.cache
def memory() -> int:
    """Bytes of memory that this process may have, 16 GiB if unknown.

    The least of the machine's, its control group's, and its own limit (``ulimit -v``).
    """
    found = [2**34]
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        pass
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # there is no such group, or it says "max"
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [limit] if limit != resource.RLIM_INFINITY else []
    except (ImportError, OSError, ValueError):
        pass  # not on every system
    return max(1, min(found))


def enough_memory(size: float, what: str, parameter: str, value: object = None) -> None:
    """Refuse what would need more memory than there is, before any of it is asked for.

    Args:
        size: Bytes, at the very least.
        what: What needs them, the subject of the message.
        parameter: The parameter that a smaller number would put right, and ``value`` such a number.

    Raises:
        UsageError: With both sizes.
    """
    if size > memory():
        gib, there = size / 2**30, memory() / 2**30
        asked = f"{gib:,.0f}" if gib < 1e9 else f"{gib:.1e}"
        raise UsageError(
            f"{what} would need at least {asked} GiB, and there are {there:,.0f} GiB of memory; take a smaller number",
            parameter=parameter,
            value=value,
        )


def enough_for_network(parameters: float, name: str, parameter: str) -> None:
    """Refuse a network that cannot be trained in the memory there is, before it is made.

    Args:
        parameters: How many it has, at the very least: each is there six times in training, as weight, gradient, two
            moments of Adam, average, and in the average that is looked at.
        name: What it is, and ``parameter`` what would make it smaller.
    """
    enough_memory(24 * parameters, f"training {name} of {parameters:,.0f} parameters", parameter)


def duration(seconds: float) -> str:
    """A time in words, ``3 hours``.

    >>> duration(90), duration(1e9)
    ('2 minutes', '32 years')
    """
    for unit, length in (("year", 31_557_600.0), ("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= length:
            count = round(seconds / length)
            shown = f"{count:,}" if count < 10**9 else f"{float(count):.0e}"
            return f"{shown} {unit}{'s' * (count != 1)}"
    return f"{seconds:.0f} seconds"
