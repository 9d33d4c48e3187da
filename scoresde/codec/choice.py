"""Spaces as text, such as ``log+basis:dct``: reading them, naming their classes, and naming a user's classes again."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..core.errors import CheckpointError, UsageError
from ..core.registry import Typed, closest, construct, name_of, read_options, resolve
from ..core.tables import CODECS, SPACES
from .base import Codec, Composed, Unbuilt
from .space import Space

__all__ = ["check_together", "named_again", "names_of", "parse_spaces", "parts_of", "space_text", "typed_options"]

FITTED = ("table", "counts", "shift", "scale", "matrix")  # options that are computed from the training data


def parts_of(text: str) -> tuple[str, ...]:
    """Split the option ``space`` into its parts.

    >>> parts_of("log+basis:dct"), parts_of("none")
    (('log', 'basis:dct'), ())
    """
    return () if text == "none" else tuple(part.strip() for part in text.split("+"))


def names_of(given: str | Codec) -> tuple[str, ...]:
    """Return the names of the spaces in a text or in a codec: a name in the table, or ``module:Class``.

    >>> names_of("log+basis:dct+mymodule:Mine")
    ('log', 'basis', 'mymodule:Mine')
    """
    if isinstance(given, str):
        return tuple(head if (head := part.partition(":")[0]) in SPACES else part for part in parts_of(given))
    spaces = given.space.parts if isinstance(given, Composed) else (given,) if given.is_space else ()
    return tuple(part.name if isinstance(part, Unbuilt) else name_of(part, CODECS) for part in spaces)


def space_text(space: Codec) -> str:
    """Return the names of the spaces in a codec as a text, joined by ``+``."""
    return "+".join(names_of(space)) or "none"


def parse_spaces(text: str, *, typed: Typed = True) -> tuple[Space, ...]:
    """Build spaces from text. The value after a colon sets the first option of a space.

    Args:
        text: Names in :data:`scoresde.core.tables.SPACES`, or ``module:Class``, joined by ``+``; or ``none``.
        typed: Which names were typed by a person, rather than read from a file (:mod:`scoresde.core.registry`).

    Raises:
        UsageError: If a name is unknown, an option is invalid, or the spaces cannot be combined.
        CheckpointError: If a name that was read from a file is not built in.
    """
    return check_together(tuple(_parse(part, typed) for part in parts_of(text)))


def _parse(part: str, typed: Typed) -> Space:
    head, colon, rest = part.partition(":")
    if head not in SPACES:
        if not colon or not rest.isidentifier():
            raise UsageError(
                f"unknown space {part!r}; {closest(head, ['none', *SPACES])}; or pass your own as module:Name",
                parameter="space",
            )
        made = construct(resolve(part, SPACES, "space", typed=typed), "space", part, {}, typed=True)
        if not isinstance(made, Space):
            raise UsageError(
                f"{part!r} creates an object of type {type(made).__name__}, which is not a space; derive that class "
                "from scoresde.codec.Space",
                parameter="space",
            )
        return made
    factory = resolve(head, SPACES, "space")
    if not colon:
        made = factory()
        assert isinstance(made, Space)
        return made
    names = typed_options(factory)
    if not names:
        raise UsageError(f"the space {head!r} has no options, but {part!r} sets one; use {head}", parameter="space")
    named = rest if names[0] == "covariance" else read_options(factory, "space", head, {names[0]: rest})[names[0]]
    found: Space = factory(**{names[0]: named})
    return found


def typed_options(factory: Any) -> list[str]:
    """Return the names of those options of a space that can be written as text. A colon sets the first of them.

    >>> from scoresde.codec import Basis, Masked
    >>> typed_options(Basis), typed_options(Masked)
    (['kind', 'axes'], [])
    """
    return [f.name for f in fields(factory) if f.init and f.name not in FITTED]


def check_together(spaces: tuple[Space, ...]) -> tuple[Space, ...]:
    """Return the spaces, or reject a combination whose likelihood would be wrong.

    Padded rows must not be mixed with real numbers. A space that stretches or bends must not come before a space of
    fewer dimensions, because its log-determinant on the subspace differs from that over all stored numbers.
    """
    padded = any("mask" in space.needs for space in spaces)
    mixing = [space for space in spaces if padded and not space.masks]
    if mixing:
        raise UsageError(
            f"padded rows cannot be combined with the space {str(mixing[0])!r}, which mixes real and padded numbers",
            parameter="space",
        )
    for i, space in enumerate(spaces):
        narrow = space.subspace and "mask" not in space.needs  # the sums of a padded row omit its padding anyway
        bent = [before for before in spaces[:i] if narrow and not before.rigid]
        if bent:
            raise UsageError(
                f"the space {str(bent[0])!r} does not keep distances, so it cannot come before {str(space)!r}, which "
                "has fewer dimensions; put it after that space, or leave it out",
                parameter="space",
            )
    return spaces


def named_again(codec: Codec, given: str | type[Space] | Space | None, typed: Typed = True) -> Codec:
    """Replace the spaces of a stored codec that are not built in by classes that the user names again.

    Args:
        codec: The codec, as read from a file.
        given: The names of the classes (other names in the text are ignored), a class, or a space.
        typed: Which names were typed by a person.

    Raises:
        UsageError: If the run does not use such a space, or the class rejects the stored options.
    """
    parts = list(codec.parts) if isinstance(codec, Composed) else [codec]
    unbuilt = {part.name: i for i, part in enumerate(parts) if isinstance(part, Unbuilt)}
    if given is None:
        return codec
    names = [name for name in names_of(given) if name not in SPACES] if isinstance(given, str) else [
        name_of(given, CODECS)
    ]  # fmt: skip
    for name in names:
        if name not in unbuilt:
            uses = f"the spaces {', '.join(names_of(codec))}" if names_of(codec) else "no space"
            raise UsageError(f"the run was trained with {uses}, not with {name!r}; leave it out", parameter="space")
        part = parts[unbuilt[name]]
        assert isinstance(part, Unbuilt)
        if isinstance(given, Space):
            parts[unbuilt[name]] = given
            continue
        factory: Any = resolve(name, SPACES, "space", typed=typed) if isinstance(given, str) else given
        try:
            parts[unbuilt[name]] = factory.from_options(dict(part.options))
        except (UsageError, CheckpointError):
            raise
        except Exception as error:
            raise UsageError(f"space {name!r} cannot be created with {dict(part.options)}: {error}") from error
    return replace(codec, parts=tuple(parts)) if isinstance(codec, Composed) and is_dataclass(codec) else parts[0]
