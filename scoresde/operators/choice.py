"""A choice of several operators, one of which is drawn at random for each row of a batch.

A network that is trained on such batches learns to restore samples that were degraded by any of the operators (Palette;
Saharia et al. 2022, arXiv:2111.05826, sec. 4.7). The network does not receive the index of the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.noise import Noise
from ..core.registry import Typed, closest, fields_of, read_options, resolve
from ..core.tables import OPERATORS
from .base import Operator
from .masks import Mask

__all__ = ["OneOf", "choices", "options_typed", "parse"]


@dataclass(frozen=True, eq=False)
class OneOf(Operator):
    """One of several operators, chosen at random for each row.

    Args:
        choices: The operators.
        which: Index of the operator chosen for each row, int64 ``(B,)``, or ``None`` until it is drawn.
    """

    choices: tuple[Operator, ...] = ()
    which: Tensor | None = None

    def on(self, event: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Self:
        return replace(self, choices=tuple(c.on(event, low, high) for c in self.choices), event=tuple(event))

    def drawn(self, noise: Noise, step: int = 0) -> Self:
        u = noise.uniform((1,), step, "task", torch.float64)[:, 0]
        which = (u * len(self.choices)).long()
        return replace(self, choices=tuple(c.drawn(noise, step) for c in self.choices), which=which)

    def __call__(self, x: Tensor) -> Tensor:
        raise UsageError(
            f"{self} is a choice of several operators, whose measurements may differ in shape; use one of them, such "
            f"as {self.choices[0]}"
        )

    def pinv(self, y: Tensor) -> Tensor:
        return self(y)

    def degrade(self, x: Tensor) -> Tensor:
        if self.which is None:
            raise UsageError("the operator of each row has not been drawn; call operator.on(shape).drawn(noise) first")
        found, which = torch.empty_like(x), self.which.to(x.device).expand(len(x))
        for i, operator in enumerate(self.choices):
            index = (which == i).nonzero().flatten()
            if len(index):
                found[index] = operator.rows(index).degrade(x[index])
        return found

    def rows(self, index: Tensor) -> Self:
        which = None if self.which is None else self.which[index.to(self.which.device)]
        return replace(self, choices=tuple(c.rows(index) for c in self.choices), which=which)

    def __str__(self) -> str:
        return "/".join(map(str, self.choices))


def choices(operator: Operator) -> tuple[Operator, ...]:
    """Return the choices of a :class:`OneOf`, or ``(operator,)`` if ``operator`` is of any other class."""
    return operator.choices if isinstance(operator, OneOf) else (operator,)


def options_typed(factory: Callable[..., Operator]) -> list[str]:
    """Return the names of those options of an operator that can be written as text.

    In ``name:value``, the value sets the first of these options.

    >>> from scoresde.operators import Half, Pool
    >>> options_typed(Pool), options_typed(Half)
    (['size'], ['which'])
    """
    inner = {f.name for f in dataclass_fields(factory) if not f.repr} if is_dataclass(factory) else set()
    return [name for name in fields_of(factory) if name != "event" and name not in inner]


def parse(text: str, *, typed: Typed = True, read_mask: Callable[[str], Tensor] | None = None) -> Operator:
    """Build an operator from text, such as ``pool:2``, ``cells``, ``module:Class`` or ``grey/hole/pool:4``.

    Args:
        text: Either ``module:Class``, or a name in :data:`scoresde.core.tables.OPERATORS`, which may be followed by a
            colon and the value of the operator's first option. Several such texts, joined by slashes, give a
            :class:`OneOf`.
        typed: Which names were typed by a person, rather than read from a file (:mod:`scoresde.core.registry`).
        read_mask: A function that reads the file in ``mask:FILE`` and returns a boolean mask, which is true where
            values are known. Without this function, ``mask:FILE`` is rejected.

    Raises:
        UsageError: If a name is unknown or an option is invalid.

    >>> str(parse("pool:2")), str(parse("hole/pool:4"))
    ('pool:2', 'hole/pool:4')
    """
    head, colon, rest = text.partition(":")
    if head == "mask":  # the path may contain slashes
        if not rest or read_mask is None:
            raise UsageError(
                "the operator 'mask' needs a file, as in mask:FILE, in which white pixels mark missing values; if you "
                "call parse yourself, also pass read_mask"
            )
        return Mask(read_mask(rest), rest)
    if "/" in text:
        return OneOf(tuple(parse(part, typed=typed, read_mask=read_mask) for part in text.split("/")))
    if head not in OPERATORS:
        if colon and not rest.isidentifier():
            raise UsageError(f"unknown operator {head!r}; {closest(head, OPERATORS)}; or name your own as module:Class")
        made = resolve(text, OPERATORS, "operator", typed=typed)()
        if not isinstance(made, Operator):
            raise UsageError(
                f"{text!r} creates an object of type {type(made).__name__}, which is not an operator; derive that "
                "class from scoresde.operators.Linear or Operator"
            )
        return made
    factory: Callable[..., Operator] = resolve(head, OPERATORS, "operator", typed=typed)
    if not colon:
        return factory()
    names = options_typed(factory)
    if not names:
        raise UsageError(f"the operator {head!r} has no options, but {text!r} sets one; use {head}", parameter="cond")
    return factory(**read_options(factory, "operator", head, {names[0]: rest}))
