"""Check numeric fields and arguments against declared ranges, and requests for memory against the available memory.

A dataclass declares the ranges of its fields in a class attribute, and a function declares the ranges of its arguments
in a decorator:

    limits = ranges(sigma_min=POSITIVE)                  @checked(n=COUNT)

A number without a declared range is still checked against its annotation (a ``float`` field must be finite, and an
``int`` field must be an integer), so new fields are safe by default. The first invalid number raises an error that
states the name, the value and the allowed range.
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
    "ATOL", "CLASSES", "COUNT", "DEPTH", "EVALUATIONS", "FRACTION", "FRAMES", "LR", "NONNEGATIVE", "POSITIVE",
    "QUANTILE", "RTOL", "SCALE", "SEED", "SEVERAL", "SHARE", "SIZE", "STEPS", "TIME", "TOLD", "TRAINED",
    "WHOLE", "WIDTH", "Checked", "Range", "check_fields", "check_number", "checked", "duration", "enough_for_network",
    "enough_memory", "kinds_of", "memory", "ranges",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """A range of numbers from ``low`` to ``high``.

    Args:
        low, high: The ends of the range.
        above, below: Whether to exclude the lower and the upper end, respectively.
        infinite: Whether infinity is allowed.
        seconds: For a count of steps, the minimum duration of one step, in seconds. If the count is too large, the
            error message states how long all steps would take.
        hint: An explanation that is appended to the error message for a number outside the range.
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
        """Describe the range in words, for example as ``a number > 0 and <= 1``.

        If ``whole`` is set, the description says that the number must be an integer.
        """
        told = self.infinite or self.high < math.inf
        words = "an integer" if whole else "a number" if told else "a finite number"
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
FRACTION = Range(0, 1)  # both ends are included
QUANTILE = Range(0, 1, above=True)
SHARE = Range(0, 1, above=True, below=True)
WHOLE = Range(0, 2**53)
COUNT = Range(1, 10**9)
SEVERAL = Range(2, 10**9)
TRAINED = Range(1, 10**8, seconds=1e-3)  # training steps
STEPS = Range(1, 10**6, seconds=1e-4)  # solver steps, or strata of a likelihood bound; published work uses at most 2000
FRAMES = Range(2, 1000)  # number of frames of an animation
WIDTH = Range(1, 10**6)  # width of a layer
DEPTH = Range(0, 1000)  # number of blocks
LR = Range(0, 1e30, above=True)  # the learning rate
SEED = Range(0, 2**64 - 1)
SIZE = Range(0, 16_384)  # the side of an image, in pixels
SCALE = Range(-1000, 1000, hint="a guidance scale of 1 means no guidance")
EVALUATIONS = Range(1, 10**9)
TIME = Range(0, 1e6)
CLASSES = Range(0, 10**6)
TOLD = Range(0, 1000)  # number of extra network inputs per row
BAR = Range(1e-9, hint="for example 0.005")  # wanted standard error of a mean
RTOL = Range(0, 1e12, above=True, hint="for example 1e-5")
ATOL = Range(0, 1e12, hint="for example 1e-5")

_ANY = Range(-(2**63), 2**63 - 1)  # integers without a declared range


@functools.lru_cache(maxsize=4096)
def _kinds(text: str) -> frozenset[str]:
    while "[" in text and (bare := re.sub(r"\[[^\[\]]*\]", "", text)) != text:
        text = bare
    return frozenset(part.strip() for part in text.split("|"))


def kinds_of(annotation: object) -> frozenset[str]:
    """Return the names of the types that an annotation allows, such as ``float`` and ``None`` for ``float | None``."""
    if annotation is inspect.Parameter.empty:
        return frozenset()
    return _kinds(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def check_number(
    name: str, value: Any, range_: Range | None = None, annotation: object = "float", where: str = ""
) -> Any:
    """Check the value of a parameter and return it, converting a NumPy number to a plain Python number.

    Args:
        name: The name of the parameter.
        value: The value. The numbers in a tuple are checked one by one. If the annotation requires neither a number
            nor a bool, the value is returned unchanged.
        range_: The allowed range (default: any finite number, or any 64-bit integer for an ``int``).
        annotation: The allowed types, as written in a signature.
        where: A message prefix that names the owner of the parameter, such as ``"VPSDE: "``.

    Raises:
        UsageError: If the value is invalid. The message states the parameter, the value and the allowed range.

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
            return value  # for example a tensor, where the annotation allows one
    elif found in (range_ or (_ANY if whole else NUMBER)):
        plain = isinstance(value, int | float) or not _is_numpy(value)
        return value if plain else found
    raise _refused(name, value, found, range_ or NUMBER, whole, "None" in kinds, where)


def _flag(name: str, value: Any, where: str) -> Any:
    """Return a bool or a NumPy bool as a Python bool, and reject any other value."""
    if isinstance(value, bool):
        return value
    if _is_numpy(value) and type(value).__name__.startswith("bool"):
        return bool(value)
    raise UsageError(f"{where}{name} is {_shown(value)}; it must be true or false", parameter=name)


def _number(value: Any, whole: bool) -> Any:
    """Convert a number to a float, or to an int if ``whole``. Return ``None`` if this is not possible."""
    if value is None or isinstance(value, bool | str | bytes | complex) or type(value).__name__ in ("bool", "bool_"):
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
    """Return the error for a value that is not a number or is out of range."""
    noun = range_.noun(whole) + (", or none" if optional else "")
    more = f" ({range_.hint})" if range_.hint else ""
    large = found is not None and range_.high < found < math.inf
    if large and range_.seconds:
        told = duration(min(found, 10**30) * range_.seconds)
        more += f"; with this value, the computation would take at least {told}"
    answer = (int(range_.high) if whole else range_.high) if large and not range_.below else None
    return UsageError(f"{where}{name} is {_shown(value)}; it must be {noun}{more}", parameter=name, value=answer)


def check_fields(thing: Any, where: str | None = None) -> None:
    """Check every field of a dataclass against its annotation and against the range that the class sets in ``limits``.

    Args:
        thing: An instance of a dataclass, frozen or not. NumPy numbers in its fields are replaced by plain Python
            numbers.
        where: A message prefix that names the owner of the fields (default: the name of the class).

    Raises:
        UsageError: If a field is invalid. The message names the first invalid field.
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
    """Return field ranges, keyed by field name, as a read-only mapping for the class attribute ``limits``."""
    return MappingProxyType(limits)


class Checked:
    """Base class for dataclasses that check their numeric fields on construction.

    A subclass with its own ``__post_init__`` must call ``super().__post_init__()`` first.

    Attributes:
        limits: The ranges of the fields, keyed by field name. Ranges declared by base classes also apply.
    """

    limits: ClassVar[Mapping[str, Range]] = ranges()

    def __post_init__(self) -> None:
        if dataclasses.is_dataclass(self):
            check_fields(self)


def checked(**limits: Range) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks the arguments of each call against their annotations and the given ranges.

    >>> @checked(n=COUNT)
    ... def draw(n: int, scale: float = 1.0) -> float: return n * scale
    >>> draw(0)
    Traceback (most recent call last):
    ...
    scoresde.core.errors.UsageError: n is 0; it must be an integer >= 1 and <= 1,000,000,000
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
                return function(*args, **given)  # Python's own error says what is wrong with the call
            for name, annotation in known.items():
                if name in bound.arguments:
                    bound.arguments[name] = check_number(name, bound.arguments[name], limits.get(name), annotation)
            return function(*bound.args, **bound.kwargs)

        return called

    return decorate


# ------------------------------------------------------------------------------------------------------------- memory


@functools.cache
def memory() -> int:
    """Return the amount of memory that this process may use, in bytes.

    This is the smallest of the machine's memory (assumed to be 16 GiB if unknown), the limit of the cgroup, and
    the limit of the process (``ulimit -v``).
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
            continue  # there is no such group, or its limit is "max"
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [limit] if limit != resource.RLIM_INFINITY else []
    except (ImportError, OSError, ValueError):
        pass  # not available on every system
    return max(1, min(found))


def enough_memory(size: float, what: str, parameter: str, value: object = None) -> None:
    """Reject a request for more memory than is available, before anything is allocated.

    Args:
        size: A lower bound on the memory needed, in bytes.
        what: What the memory is needed for, as the subject of the message.
        parameter: The parameter to reduce.
        value: A value of the parameter that is small enough.

    Raises:
        UsageError: If there is not enough memory. The message states how much is needed and how much is available.
    """
    if size > memory():
        gib, there = size / 2**30, memory() / 2**30
        asked = f"{gib:,.0f}" if gib < 1e9 else f"{gib:.1e}"
        raise UsageError(
            f"{what} would need at least {asked} GiB of memory, but only {there:,.0f} GiB is available; "
            f"reduce {parameter}",
            parameter=parameter,
            value=value,
        )


def enough_for_network(parameters: float, name: str, parameter: str) -> None:
    """Reject a network that is too large to be trained in the available memory, before it is built.

    Args:
        parameters: A lower bound on the number of weights. For each weight, training stores six numbers: the weight,
            its gradient, the two moments of Adam, the moving average, and a copy of the average for evaluation.
        name: A description of the network, for the message.
        parameter: The option that the message advises to reduce.

    Raises:
        UsageError: If there is not enough memory.
    """
    enough_memory(24 * parameters, f"training {name} ({parameters:,.0f} parameters)", parameter)


def duration(seconds: float) -> str:
    """Express a duration in words, such as ``3 hours``.

    >>> duration(90), duration(1e9)
    ('2 minutes', '32 years')
    """
    for unit, length in (("year", 31_557_600.0), ("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= length:
            count = round(seconds / length)
            shown = f"{count:,}" if count < 10**9 else f"{float(count):.0e}"
            return f"{shown} {unit}{'s' * (count != 1)}"
    return f"{seconds:.0f} seconds"
